//! A write that the disk refuses poisons the storage, and loses nothing that was acknowledged before.

use std::env;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use raft_core::{GroupId, LogIndex, NodeId};
use raft_storage::{Engine, Storage, StorageError, Store, StoreOptions};

use super::{GROUP, append, me, open};

const DIR: &str = "RAFT_STORAGE_TEST_FULL_DISK";
const SYNC_DIR: &str = "RAFT_STORAGE_TEST_FAILED_SYNC";
const PIN_DIR: &str = "RAFT_STORAGE_TEST_FAILED_PIN";
const MEET_DIR: &str = "RAFT_STORAGE_TEST_FAILED_MEETING";

/// The operating system refuses to let a file of this process grow beyond a limit, as a full disk would. The limit cannot be taken
/// back, so this is a process of its own: this very test, started again.
#[test]
fn a_full_disk_poisons() {
    if let Some(dir) = env::var_os(DIR) {
        return write_until_it_fails(Path::new(&dir));
    }
    [Engine::RocksDb, Engine::Journal].into_iter().for_each(fills_the_disk);
}

fn fills_the_disk(engine: Engine) {
    let dir = made_with(engine);
    let script = "trap '' XFSZ; ulimit -f 4096; exec \"$0\" --exact failing_disk::a_full_disk_poisons --nocapture";
    let output =
        Command::new("sh").arg("-c").arg(script).arg(env::current_exe().unwrap()).env(DIR, dir.path()).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    let acknowledged = acknowledged(&text).unwrap();
    assert!(acknowledged > 0);
    let last = open_store(dir.path()).recover(GROUP).unwrap().last_index;
    assert!(last == LogIndex(acknowledged) || last == LogIndex(acknowledged + 1), "{last} of {acknowledged}");
}

/// A directory that was made with this engine: whoever opens it later need not know. The second segment of a journal is prepared, so that for some time
/// only what is written is synced.
fn made_with(engine: Engine) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::default();
    options.engine = Some(engine);
    let store = Store::open(dir.path(), &me(), &options).unwrap();
    while engine == Engine::Journal && !dir.path().join(format!("{:020}.journal", 2)).exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(store);
    dir
}

fn open_store(dir: &Path) -> Store {
    Store::open(dir, &me(), &StoreOptions::default()).unwrap()
}

/// How many writes succeeded before one failed, if one did.
fn acknowledged(text: &str) -> Option<u64> {
    text.split("acknowledged ").nth(1)?.split(' ').next()?.parse().ok()
}

/// A sync fails once, and the next one would succeed without having written what the first one could not (Rebello et al., "Can
/// Applications Recover from fsync Failures?", ATC 2020). And no write returns without a sync. Again a process of its own: its disk is
/// played by strace.
#[test]
fn a_failed_sync_is_final() {
    if let Some(dir) = env::var_os(SYNC_DIR) {
        return write_until_it_fails(Path::new(&dir));
    }
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed (`cargo xtask setup` installs it)");
        return;
    }
    // Opening syncs some files as well, and fails when that fails. The first sync after it is that of the first write.
    for engine in [Engine::RocksDb, Engine::Journal] {
        let fails = |nth| writes_until_sync_fails(engine, nth);
        let first = (1..30).find(|&nth| fails(nth).is_some()).expect("a write fails when its sync does");
        assert_eq!(fails(first), Some(0), "{engine}");
        assert_eq!(fails(first + 3), Some(3), "{engine}: each write has a sync of its own");
    }
}

fn writes_until_sync_fails(engine: Engine, nth: u32) -> Option<u64> {
    let dir = made_with(engine);
    let inject = format!("inject=fdatasync:error=EIO:when={nth}");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "failing_disk::a_failed_sync_is_final", "--nocapture"])
        .env(SYNC_DIR, dir.path())
        .output()
        .unwrap();
    let acknowledged = acknowledged(&String::from_utf8_lossy(&output.stdout))?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let last = open_store(dir.path()).recover(GROUP).unwrap().last_index;
    // The write whose sync failed may have arrived all the same.
    assert!(last == LogIndex(acknowledged) || last == LogIndex(acknowledged + 1), "{last} of {acknowledged}");
    Some(acknowledged)
}

/// The groups of a node share its disk: when the founders of a new one cannot be synced, no other may be acknowledged anything any more.
#[test]
fn a_failed_sync_of_founders_is_final_for_all_groups() {
    if let Some(dir) = env::var_os(PIN_DIR) {
        let mut storage = open(Path::new(&dir)).unwrap();
        let error = storage.pin_founders(GroupId(7), &[NodeId(1)]).unwrap_err();
        assert!(matches!(error, StorageError::Engine { .. }), "{error}");
        let later = storage.write(&[append(1, 1, &[b"x"])]).unwrap_err();
        assert!(matches!(later, StorageError::Poisoned { .. }), "{later}");
        return println!("poisoned");
    }
    dies_of_a_failed_sync(PIN_DIR, "a_failed_sync_of_founders_is_final_for_all_groups");
}

/// Who is who is written by another thread, but to the same disk.
#[test]
fn a_failed_sync_of_who_is_who_is_final_for_the_log() {
    if let Some(dir) = env::var_os(MEET_DIR) {
        let mut storage = open(Path::new(&dir)).unwrap();
        let peers = storage.known_peers(GROUP).unwrap();
        let error = peers.meet(NodeId(2), 7).unwrap_err();
        assert!(matches!(error, StorageError::Engine { .. }), "{error}");
        let later = storage.write(&[append(1, 1, &[b"x"])]).unwrap_err();
        assert!(matches!(later, StorageError::Poisoned { .. }), "{later}");
        let other = peers.meet(NodeId(3), 8).unwrap_err();
        assert!(matches!(other, StorageError::Poisoned { .. }), "{other}");
        return println!("poisoned");
    }
    dies_of_a_failed_sync(MEET_DIR, "a_failed_sync_of_who_is_who_is_final_for_the_log");
}

/// Starts the test again, in a process of its own in which one sync fails: it says "poisoned" when that was the one that it is about.
fn dies_of_a_failed_sync(variable: &str, test: &str) {
    if Command::new("strace").arg("-V").output().is_err() {
        eprintln!("skipped: strace is not installed (`cargo xtask setup` installs it)");
        return;
    }
    let fails = |nth: u32| {
        let dir = tempfile::tempdir().unwrap();
        let inject = format!("inject=fdatasync:error=EIO:when={nth}");
        let output = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", &inject])
            .arg(env::current_exe().unwrap())
            .args(["--exact", &format!("failing_disk::{test}"), "--nocapture"])
            .env(variable, dir.path())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).contains("poisoned")
    };
    // Opening syncs as well, and fails when that fails.
    assert!((1..30).any(fails), "the storage goes on after a failed sync");
}

fn write_until_it_fails(dir: &Path) {
    let mut storage = open_store(dir);
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
    panic!("200 writes, and the disk refused none");
}
