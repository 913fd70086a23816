//! The store for production: RocksDB, one database for the logs and hard states of all groups of a node.

mod changes;
mod framing;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod meta;
mod open;
mod options;
mod peers;
mod positions;
mod purge;
mod reader;
mod record;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use raft_core::{GroupId, LogIndex, NodeId, Write};
use rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions, WriteOptions};

use changes::Changes;
pub use framing::{FramingError, check_framing};
pub use meta::Identity;
pub(crate) use open::create_dir;
pub use options::Options;
pub use peers::{Acquaintance, KnownPeers};
use purge::Purger;
use reader::Starts;
pub use reader::{Health, RocksReader};
use scan::GroupState;

use crate::error::StorageError;
use crate::fold::Effect;
use crate::metrics::StorageMetrics;
use crate::outline;
use crate::storage::{RecoveredLog, Storage};

/// Column family of the entries.
const LOG: &str = "log";
/// Column family of everything else.
const META: &str = "meta";

/// Logs and hard states in RocksDB. See the [crate documentation](crate) for the format and what it promises.
///
/// The directory stays locked until the storage *and* all its readers are dropped.
pub struct RocksStorage {
    db: Arc<DB>,
    dir: PathBuf,
    incarnation: u128,
    record_limit: usize,
    groups: BTreeMap<GroupId, GroupState>,
    /// Where each log begins, for the readers.
    starts: Arc<Starts>,
    purger: Purger,
    synced: WriteOptions,
    /// Where records are put together; kept to save an allocation for each.
    scratch: Vec<u8>,
    poison: Poison,
    metrics: Arc<StorageMetrics>,
}

/// Why nothing is written any more, once a write has failed: whoever writes to the database, what fails for one is final for all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Poison(Arc<OnceLock<Arc<str>>>);

impl Poison {
    pub(crate) fn by(&self, error: &StorageError) {
        // What failed first is the cause.
        let _ = self.0.set(error.to_string().into());
    }

    pub(crate) fn check(&self) -> Result<(), StorageError> {
        match self.0.get() {
            Some(cause) => Err(StorageError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

impl RocksStorage {
    /// Opens the directory of `identity`, creates it when it is absent or empty, and verifies every record in it: a second or two for
    /// each GiB.
    ///
    /// # Errors
    /// The directory is in use, belongs to someone else, comes from a newer version, is damaged, or is no such directory at all. The
    /// message says where, and the data are left as they are.
    pub fn open(dir: impl AsRef<Path>, identity: &Identity, options: &Options) -> Result<Self, StorageError> {
        let (dir, begin) = (dir.as_ref(), Instant::now());
        let (db, incarnation) = open::open(dir, identity, options)?;
        let groups = scan::scan(&db, options)?;
        tracing::info!(
            dir = %dir.display(),
            groups = groups.len(),
            bytes = groups.values().map(|group| group.outline.bytes).sum::<u64>(),
            millis = begin.elapsed().as_millis() as u64,
            "log opened and verified"
        );
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let db = Arc::new(db);
        let starts = Arc::new(Starts::default());
        groups.iter().for_each(|(group, state)| starts.set(*group, state));
        Ok(RocksStorage {
            purger: Purger::start(db.clone(), options)
                .map_err(|error| StorageError::engine("start the thread that purges", error))?,
            starts,
            db,
            dir: dir.to_owned(),
            incarnation,
            record_limit: options.record_limit(),
            groups,
            synced,
            scratch: Vec::new(),
            poison: Poison::default(),
            metrics: Arc::default(),
        })
    }

    /// A random number that was drawn when the directory was created. It tells a node that lost its disk from the one it was before.
    pub fn incarnation(&self) -> u128 {
        self.incarnation
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The voters with which a group began, if they were pinned.
    ///
    /// # Errors
    /// The storage is poisoned, or what it says is damaged.
    pub fn founders(&self, group: GroupId) -> Result<Option<Vec<NodeId>>, StorageError> {
        self.poison.check()?;
        let key = meta::key(group, meta::Tag::Founders);
        let found = self.db.get_cf(column(&self.db, META)?, key).map_err(|error| read_error("the founders", error))?;
        found.map(|value| meta::decode_founders(&key, group, &value)).transpose()
    }

    /// By which incarnations the other nodes are known. When something about them cannot be written down, that is final for the storage, too.
    ///
    /// # Errors
    /// What is written down about them is damaged.
    pub fn known_peers(&self, group: GroupId) -> Result<KnownPeers, StorageError> {
        KnownPeers::open(&self.db, group, self.poison.clone())
    }

    /// Pins the voters with which a group begins: the first call writes them down, durably; every later one, also after a
    /// restart, must name the same. Two nodes that start from different voters could each find a majority of its own.
    ///
    /// # Errors
    /// [`StorageError::WrongFounders`] when the group began with others: nothing has changed, mend the configuration. Any other error
    /// is final, for all groups: they share the disk whose sync failed.
    pub fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        self.poison.check()?;
        self.check_there(group)?;
        let key = meta::key(group, meta::Tag::Founders);
        match self.founders(group)? {
            Some(found) if found == voters => Ok(()),
            Some(found) => Err(StorageError::WrongFounders { dir: self.dir.clone(), expected: voters.to_vec(), found }),
            None => {
                self.db
                    .put_cf_opt(column(&self.db, META)?, key, meta::encode_founders(&key, voters), &self.synced)
                    .map_err(|error| StorageError::engine("writing the founders", error))
                    .inspect_err(|error| self.poison.by(error))?;
                self.groups.entry(group).or_default();
                Ok(())
            }
        }
    }

    /// Every group that was ever written to, or whose founders were pinned, and that was not deleted.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|(_, state)| !outline::is_deleted(&state.outline)).map(|(group, _)| *group)
    }

    fn check_there(&self, group: GroupId) -> Result<(), StorageError> {
        let deleted = self.groups.get(&group).is_some_and(|state| outline::is_deleted(&state.outline));
        if deleted { Err(StorageError::Deleted { group }) } else { Ok(()) }
    }

    /// What fails here is final for the store that this one belongs to, and the other way round.
    pub(crate) fn poison(&self) -> &Poison {
        &self.poison
    }

    /// Whether nothing of any group was ever written.
    pub(crate) fn is_unused(&self) -> bool {
        self.groups.is_empty()
    }

    pub(crate) fn deleted_groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.iter().filter(|(_, state)| outline::is_deleted(&state.outline)).map(|(group, _)| *group)
    }

    /// There is something of the group elsewhere: it can be deleted.
    pub(crate) fn know(&mut self, group: GroupId) {
        self.groups.entry(group).or_default();
    }

    /// Counters since it was opened.
    pub fn metrics(&self) -> Arc<StorageMetrics> {
        self.metrics.clone()
    }

    /// Moves the outlines on, then writes one batch with one sync. When it fails half-way, the outlines are ahead of the disk: the
    /// caller poisons the storage.
    fn write_synced(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        let mut effects: BTreeMap<GroupId, (LogIndex, Effect)> = BTreeMap::new();
        for (group, write) in batch {
            let outline = &mut self.groups.entry(*group).or_default().outline;
            let (_, effect) = effects.entry(*group).or_insert_with(|| (outline.last_index, Effect::default()));
            let replaced = outline::advance(outline, *group, write)?;
            effect.absorb(write, replaced);
        }
        let payload: usize = batch.iter().map(|(_, write)| write.entries.byte_len() + 128).sum();
        let (log, meta) = (column(&self.db, LOG)?, column(&self.db, META)?);
        let mut changes = Changes::new(&self.db, log, meta, payload, &mut self.scratch, self.record_limit);
        let mut moved = Vec::new();
        for (group, (stored_last, effect)) in effects {
            moved.extend(effect.start.is_some().then_some(group));
            // The loop above made the entry.
            let state = self.groups.entry(group).or_default();
            changes.add(group, state, stored_last, effect)?;
        }
        let Changes { batch: changes, entries, mut purged, .. } = changes;
        if changes.is_empty() {
            return Ok(());
        }
        let bytes = changes.size_in_bytes() as u64;
        self.db
            .write_opt(changes, &self.synced)
            .map_err(|error| StorageError::engine("write and sync the log", error))?;
        self.metrics.count_sync(batch.len() as u64, entries, bytes);
        for group in moved {
            if let Some(state) = self.groups.get(&group) {
                self.starts.set(group, state);
                self.purger.purged(group, state.first, std::mem::take(&mut purged));
            }
        }
        Ok(())
    }
}

impl Storage for RocksStorage {
    type Reader = RocksReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        self.poison.check()?;
        self.check_there(group)?;
        Ok(self.groups.get(&group).map(|state| state.outline.clone()).unwrap_or_default())
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        self.poison.check()?;
        self.write_synced(batch).inspect_err(|error| {
            tracing::error!(dir = %self.dir.display(), %error, "the log cannot be written any more");
            self.poison.by(error);
        })
    }

    fn reader(&self) -> RocksReader {
        RocksReader::new(self.db.clone(), self.starts.clone())
    }

    fn groups(&self) -> Vec<GroupId> {
        RocksStorage::groups(self).collect()
    }

    fn founders(&self, group: GroupId) -> Result<Option<Vec<NodeId>>, StorageError> {
        RocksStorage::founders(self, group)
    }

    fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        RocksStorage::pin_founders(self, group, voters)
    }

    fn delete(&mut self, group: GroupId) -> Result<bool, StorageError> {
        self.poison.check()?;
        let Some(state) = self.groups.get_mut(&group) else { return Ok(false) };
        let bytes = state.outline.bytes;
        let batch = changes::deletion(column(&self.db, LOG)?, column(&self.db, META)?, group);
        self.db
            .write_opt(batch, &self.synced)
            .map_err(|error| StorageError::engine("delete a group", error))
            .inspect_err(|error| self.poison.by(error))?;
        *state = GroupState { outline: outline::deleted(), ..GroupState::default() };
        self.starts.forget(group);
        self.purger.purged(group, LogIndex(u64::MAX), bytes);
        Ok(true)
    }
}

impl std::fmt::Debug for RocksStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStorage").field("dir", &self.dir).field("poison", &self.poison).finish_non_exhaustive()
    }
}

fn column<'a>(db: &'a DB, name: &'static str) -> Result<&'a ColumnFamily, StorageError> {
    db.cf_handle(name).ok_or_else(|| StorageError::engine("find a column family", name))
}

/// An iterator over one group's records from the one that is stored under `first`, which leaves the block cache alone.
fn iterate<'a>(db: &'a DB, log: &ColumnFamily, group: GroupId, first: LogIndex) -> DBRawIterator<'a> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_lower_bound(record::key(group, first));
    options.set_iterate_upper_bound(record::key(group, LogIndex(u64::MAX)));
    db.raw_iterator_cf_opt(log, options)
}

fn check_iterator(iter: &DBRawIterator<'_>) -> Result<(), StorageError> {
    iter.status().map_err(|error| read_error("the log", error))
}

fn read_error(place: &str, error: rocksdb::Error) -> StorageError {
    match error.kind() {
        ErrorKind::Corruption => StorageError::Damaged { place: place.to_owned(), what: error.into_string() },
        _ => StorageError::engine("read the log", error),
    }
}
