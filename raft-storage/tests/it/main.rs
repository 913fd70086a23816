//! Integration tests of the stores.

mod conformance;
#[path = "../../../raft-core/tests/it/corpus.rs"]
mod corpus;
mod damage;
mod deletion;
mod differential;
mod failing_disk;
mod framing;
mod fuzz;
mod identity;
mod journal;
mod journal_reopened;
mod model;
mod space;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use raft_core::{Entries, EntryKind, GroupId, HardState, LogIndex, NodeId, Segment, Term, Write, WriteSeq};
use raft_storage::{Identity, Options, RocksStorage, Storage, StorageError, StorageReader};

const GROUP: GroupId = GroupId::FIRST;

fn me() -> Identity {
    Identity::new("test", NodeId(1))
}

fn open(dir: &Path) -> Result<RocksStorage, StorageError> {
    RocksStorage::open(dir, &me(), &Options::default())
}

/// A write of one entry for each payload, in `term`.
fn append(first: u64, term: u64, payloads: &[&[u8]]) -> (GroupId, Write) {
    let entries = Segment::pack(LogIndex(first), Term(term), EntryKind::Command, payloads);
    let hard_state = Some(HardState { current_term: Term(term), voted_for: None });
    let entries = entries.map(Entries::from).unwrap_or_default();
    (GROUP, Write { seq: WriteSeq(first), hard_state, log_start: None, truncate_from: None, entries })
}

fn payloads(storage: &RocksStorage) -> Vec<Vec<u8>> {
    let entries = storage.reader().entries(GROUP, LogIndex(1), LogIndex::MAX, usize::MAX).unwrap();
    entries.iter().map(|entry| entry.payload.to_vec()).collect()
}

/// The state of a directory as a killed process leaves it: whatever it handed to the operating system. A kill takes all files at one
/// moment, a copy does not, so it is repeated until no file came or went meanwhile.
fn copy_dir(from: &Path, to: &Path) {
    while try_copy(from, to).is_none_or(|names| names != list(from)) {
        std::fs::remove_dir_all(to).unwrap();
    }
}

fn list(dir: &Path) -> BTreeSet<OsString> {
    std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name()).collect()
}

fn try_copy(from: &Path, to: &Path) -> Option<BTreeSet<OsString>> {
    std::fs::create_dir_all(to).unwrap();
    let names = list(from);
    for name in &names {
        if from.join(name).is_dir() {
            std::fs::create_dir_all(to.join(name)).unwrap();
            copy_dir(&from.join(name), &to.join(name));
            continue;
        }
        match std::fs::copy(from.join(name), to.join(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            copied => assert!(copied.is_ok(), "{copied:?}"),
        }
    }
    Some(names)
}
