//! Damage to the frames in which RocksDB keeps its write-ahead log and its MANIFEST.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use raft_storage::{Storage, StorageError};

use super::{GROUP, append, copy_dir, open, payloads};

/// A frame's header: checksum u32, length u16, kind u8.
const HEADER: usize = 7;
const BLOCK: usize = 32 << 10;

/// A store that was opened again and has written a little since: sorted files, a MANIFEST and a write-ahead log with three writes.
fn reopened(dir: &Path) {
    let mut storage = open(dir).unwrap();
    storage.write(&[append(1, 1, &[b"one", b"two"])]).unwrap();
    drop(storage);
    let mut storage = open(dir).unwrap();
    for index in 3..6 {
        storage.write(&[append(index, index, &[b"more"])]).unwrap();
    }
}

/// The newest file whose name passes.
fn newest(dir: &Path, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| wanted(path.file_name().unwrap().to_str().unwrap())).max().unwrap()
}

fn wal(dir: &Path) -> PathBuf {
    newest(dir, |name| Path::new(name).extension().is_some_and(|extension| extension == "log"))
}

fn manifest(dir: &Path) -> PathBuf {
    newest(dir, |name| name.starts_with("MANIFEST-"))
}

/// Where the frames of a small file begin.
fn frames(bytes: &[u8]) -> Vec<usize> {
    assert!(bytes.len() < BLOCK);
    let next = |at: &usize| {
        let length = u16::from_le_bytes([*bytes.get(at + 4)?, *bytes.get(at + 5)?]);
        Some(at + HEADER + usize::from(length)).filter(|next| *next < bytes.len())
    };
    std::iter::successors(Some(0), next).collect()
}

/// Where a length or a kind is wrong, RocksDB takes the rest of the file for torn off by a power failure, or reads on and on.
#[test]
fn a_flipped_bit_in_the_header_of_a_frame_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    reopened(dir.path());
    for file in [wal(dir.path()), manifest(dir.path())] {
        let good = fs::read(&file).unwrap();
        let frames = frames(&good);
        assert!(frames.len() >= 3, "{}: {frames:?}", file.display());
        for at in frames {
            for bit in 32..HEADER * 8 {
                let copy = tempfile::tempdir().unwrap();
                copy_dir(dir.path(), copy.path());
                let mut bad = good.clone();
                bad[at + bit / 8] ^= 1 << (bit % 8);
                let name = file.file_name().unwrap();
                fs::write(copy.path().join(name), &bad).unwrap();
                let outcome = open(copy.path()).map(|storage| payloads(&storage).len());
                assert!(
                    matches!(outcome, Err(StorageError::Damaged { .. })),
                    "{}, frame at {at}, bit {bit}: {outcome:?}",
                    file.display()
                );
            }
        }
    }
}

/// What a power failure leaves of a write that was under way, or of a change of the MANIFEST, is no damage.
#[test]
fn a_frame_that_was_torn_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    reopened(dir.path());
    let file = wal(dir.path());
    let good = fs::read(&file).unwrap();
    let frames = frames(&good);
    let last = frames[frames.len() - 1];
    for cut in [last + 1, last + HEADER, last + HEADER + 1, good.len() - 1] {
        // The file system may have made the file longer before the data came.
        for zeros in [0, 3, 20, 40_000] {
            if zeros > 0 && cut > last + 4 {
                // A checksum that does not fit; RocksDB refuses it.
                continue;
            }
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let torn = File::options().write(true).open(copy.path().join(file.file_name().unwrap())).unwrap();
            torn.set_len(cut as u64).unwrap();
            torn.set_len(cut as u64 + zeros).unwrap();
            let mut storage = open(copy.path()).unwrap_or_else(|error| panic!("cut at {cut}, {zeros} zeros: {error}"));
            assert_eq!(storage.recover(GROUP).unwrap().last_index.0, 4, "cut at {cut}, {zeros} zeros");
        }
    }
}
