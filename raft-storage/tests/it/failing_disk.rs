//! A write that the disk refuses poisons the storage, and loses nothing that was acknowledged before.

use std::env;
use std::path::Path;
use std::process::Command;

use raft_core::LogIndex;
use raft_storage::{Storage, StorageError};

use super::{GROUP, append, open};

const DIR: &str = "RAFT_STORAGE_TEST_FULL_DISK";

/// The operating system refuses to let a file of this process grow beyond a limit, as a full disk would. The limit cannot be taken
/// back, so this is a process of its own: this very test, started again.
#[test]
fn a_full_disk_poisons() {
    if let Some(dir) = env::var_os(DIR) {
        return write_until_it_fails(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact failing_disk::a_full_disk_poisons --nocapture";
    let output =
        Command::new("sh").arg("-c").arg(script).arg(env::current_exe().unwrap()).env(DIR, dir.path()).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = text.split("acknowledged ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    let acknowledged: u64 = acknowledged.parse().unwrap();
    assert!(acknowledged > 0);
    let last = open(dir.path()).unwrap().recover(GROUP).unwrap().last_index;
    assert!(last == LogIndex(acknowledged) || last == LogIndex(acknowledged + 1), "{last} of {acknowledged}");
}

fn write_until_it_fails(dir: &Path) {
    let mut storage = open(dir).unwrap();
    let payload = vec![7; 100_000];
    for index in 1..=200u64 {
        if let Err(error) = storage.write(&[append(index, 1, &[&payload])]) {
            assert!(matches!(error, StorageError::Engine { .. }), "{error}");
            let later = storage.write(&[append(index, 1, &[b"x"])]).unwrap_err();
            assert!(matches!(later, StorageError::Poisoned { .. }), "{later}");
            assert!(later.to_string().contains(&error.to_string()), "it says why: {later}");
            assert!(matches!(storage.recover(GROUP), Err(StorageError::Poisoned { .. })));
            println!("acknowledged {} writes", index - 1);
            return;
        }
    }
    panic!("20 MB went into files of 4 MB at most");
}
