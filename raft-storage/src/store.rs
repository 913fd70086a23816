//! One of the two stores for production, as a setting says, or the directory.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use raft_core::{Entries, GroupId, LogIndex, NodeId, Write};

use crate::error::StorageError;
use crate::journal::{JournalOptions, JournalReader, JournalStorage};
use crate::metrics::StorageMetrics;
use crate::rocks::{Identity, KnownPeers, Options, RocksReader, RocksStorage};
use crate::storage::{RecoveredLog, Storage, StorageReader};

/// What keeps the logs of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Engine {
    /// [`RocksStorage`].
    RocksDb,
    /// [`JournalStorage`].
    Journal,
}

impl Engine {
    /// What keeps the logs in this directory, if there are any.
    pub fn found_in(dir: impl AsRef<Path>) -> Option<Engine> {
        let dir = dir.as_ref();
        if dir.join("CURRENT").exists() {
            Some(Engine::RocksDb)
        } else {
            dir.join(crate::journal::META).exists().then_some(Engine::Journal)
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::RocksDb => "rocksdb",
            Engine::Journal => "journal",
        })
    }
}

/// Settings of a [`Store`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreOptions {
    /// Which one. By default the one that the directory was made with, and for a new directory [`Engine::RocksDb`].
    pub engine: Option<Engine>,
    /// Settings of the one.
    pub rocksdb: Options,
    /// Settings of the other.
    pub journal: JournalOptions,
}

/// A store for production.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one for each node")]
pub enum Store {
    /// With RocksDB.
    RocksDb(RocksStorage),
    /// With a journal.
    Journal(JournalStorage),
}

/// Reader of a [`Store`].
#[derive(Clone)]
pub enum StoreReader {
    /// With RocksDB.
    RocksDb(RocksReader),
    /// With a journal.
    Journal(JournalReader),
}

macro_rules! either {
    ($store:expr, $inner:ident => $what:expr) => {
        match $store {
            Store::RocksDb($inner) => $what,
            Store::Journal($inner) => $what,
        }
    };
}

impl Store {
    /// Opens a directory, or creates it. A directory is opened with the engine that it was made with; there is no way from one to the other but
    /// to remove the node from its groups, empty the directory, and add it again.
    ///
    /// # Errors
    /// As those of [`RocksStorage::open`] and [`JournalStorage::open`]; [`StorageError::NotALog`] when the directory was made with another engine than `options` ask for.
    pub fn open(dir: impl AsRef<Path>, owner: &Identity, options: &StoreOptions) -> Result<Store, StorageError> {
        let dir = dir.as_ref();
        let found = Engine::found_in(dir);
        match (options.engine, found) {
            (Some(wanted), Some(found)) if wanted != found => {
                let found = format!("it was made with the engine `{found}`, and `{wanted}` cannot open it");
                Err(StorageError::NotALog { dir: dir.to_owned(), found })
            }
            (wanted, found) => match found.or(wanted).unwrap_or(Engine::RocksDb) {
                Engine::RocksDb => RocksStorage::open(dir, owner, &options.rocksdb).map(Store::RocksDb),
                Engine::Journal => JournalStorage::open(dir, owner, &options.journal).map(Store::Journal),
            },
        }
    }

    /// Which one it is.
    pub fn engine(&self) -> Engine {
        match self {
            Store::RocksDb(_) => Engine::RocksDb,
            Store::Journal(_) => Engine::Journal,
        }
    }

    /// A random number that was drawn when the directory was created. It tells a node that lost its disk from the one it was before.
    pub fn incarnation(&self) -> u128 {
        either!(self, store => store.incarnation())
    }

    /// By which incarnations the other nodes are known. When something about them cannot be written down, that is final for the storage, too.
    ///
    /// # Errors
    /// What is written down about them is damaged.
    pub fn known_peers(&self, group: GroupId) -> Result<KnownPeers, StorageError> {
        either!(self, store => store.known_peers(group))
    }

    /// Counters since it was opened.
    pub fn metrics(&self) -> Arc<StorageMetrics> {
        either!(self, store => store.metrics())
    }
}

impl Storage for Store {
    type Reader = StoreReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        either!(self, store => store.recover(group))
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        either!(self, store => store.write(batch))
    }

    fn reader(&self) -> StoreReader {
        match self {
            Store::RocksDb(store) => StoreReader::RocksDb(store.reader()),
            Store::Journal(store) => StoreReader::Journal(store.reader()),
        }
    }

    fn groups(&self) -> Vec<GroupId> {
        either!(self, store => Storage::groups(store))
    }

    fn founders(&self, group: GroupId) -> Result<Option<Vec<NodeId>>, StorageError> {
        either!(self, store => Storage::founders(store, group))
    }

    fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        either!(self, store => Storage::pin_founders(store, group, voters))
    }

    fn delete(&mut self, group: GroupId) -> Result<bool, StorageError> {
        either!(self, store => store.delete(group))
    }
}

impl StorageReader for StoreReader {
    fn entries(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Entries, StorageError> {
        match self {
            StoreReader::RocksDb(reader) => reader.entries(group, first, last, max_bytes),
            StoreReader::Journal(reader) => reader.entries(group, first, last, max_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_stays_with_the_engine_that_made_it() {
        let (dir, owner) = (tempfile::tempdir().unwrap(), Identity::new("test", NodeId(1)));
        let open = |name: &str, engine| {
            let mut options = StoreOptions { engine, ..StoreOptions::default() };
            options.journal.segment_bytes = 8192;
            Store::open(dir.path().join(name), &owner, &options).map(|store| store.engine())
        };
        assert_eq!(open("default", None).unwrap(), Engine::RocksDb);
        for engine in [Engine::RocksDb, Engine::Journal] {
            let name = engine.to_string();
            assert_eq!(open(&name, Some(engine)).unwrap(), engine);
            assert_eq!(open(&name, None).unwrap(), engine);
            let other = if engine == Engine::Journal { Engine::RocksDb } else { Engine::Journal };
            let error = open(&name, Some(other)).unwrap_err().to_string();
            assert!(error.contains(&format!("made with the engine `{engine}`")), "{error}");
        }
    }
}
