//! All stores pass the conformance suite.

use raft_storage::{JournalOptions, JournalStorage, MemoryStorage, Options, RocksStorage, conformance};
use tempfile::TempDir;

struct InMemory;

impl conformance::Factory for InMemory {
    type Storage = MemoryStorage;

    fn create(&mut self) -> MemoryStorage {
        MemoryStorage::new()
    }

    fn restart(&mut self, mut storage: MemoryStorage) -> MemoryStorage {
        storage.crash(0);
        storage
    }
}

#[test]
fn the_memory_store_conforms() {
    conformance::run(&mut InMemory);
}

/// Each restart opens a copy that was taken while the store was still running, as `kill -9` would leave it.
struct OnRocks {
    options: Options,
    dirs: Vec<TempDir>,
}

impl OnRocks {
    fn with(change: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::default();
        change(&mut options);
        OnRocks { options, dirs: Vec::new() }
    }

    fn open(&mut self, dir: TempDir) -> RocksStorage {
        let storage = RocksStorage::open(dir.path(), &crate::me(), &self.options).unwrap();
        self.dirs.push(dir);
        storage
    }
}

impl conformance::Factory for OnRocks {
    type Storage = RocksStorage;

    fn create(&mut self) -> RocksStorage {
        self.dirs.clear();
        self.open(tempfile::tempdir().unwrap())
    }

    fn restart(&mut self, storage: RocksStorage) -> RocksStorage {
        let dir = tempfile::tempdir().unwrap();
        crate::copy_dir(storage.dir(), dir.path());
        drop(storage);
        self.dirs.clear();
        self.open(dir)
    }
}

#[test]
fn the_rocksdb_store_conforms() {
    conformance::run(&mut OnRocks::with(|_| ()));
}

#[test]
fn the_rocksdb_store_conforms_with_tiny_records() {
    conformance::run(&mut OnRocks::with(|options| options.max_record_bytes = 40));
}

/// The same for the journal.
struct InJournal {
    options: JournalOptions,
    dirs: Vec<TempDir>,
}

impl InJournal {
    fn with(segment_bytes: u64) -> Self {
        let mut options = JournalOptions::default();
        options.segment_bytes = segment_bytes;
        InJournal { options, dirs: Vec::new() }
    }

    fn open(&mut self, dir: TempDir) -> JournalStorage {
        let storage = JournalStorage::open(dir.path(), &crate::me(), &self.options).unwrap();
        self.dirs.push(dir);
        storage
    }
}

impl conformance::Factory for InJournal {
    type Storage = JournalStorage;

    fn create(&mut self) -> JournalStorage {
        self.dirs.clear();
        self.open(tempfile::tempdir().unwrap())
    }

    fn restart(&mut self, storage: JournalStorage) -> JournalStorage {
        let dir = tempfile::tempdir().unwrap();
        crate::copy_dir(storage.dir(), dir.path());
        drop(storage);
        self.dirs.clear();
        self.open(dir)
    }
}

#[test]
fn the_journal_conforms() {
    conformance::run(&mut InJournal::with(64 << 20));
}

#[test]
fn the_journal_conforms_with_tiny_segments() {
    conformance::run(&mut InJournal::with(1));
}
