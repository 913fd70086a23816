//! The store for production: RocksDB, one database for the logs and hard states of all groups of a node.

mod framing;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod meta;
mod open;
mod options;
mod reader;
mod record;
mod scan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use raft_core::{GroupId, LogIndex, NodeId, Segment, Write};
use rocksdb::{ColumnFamily, DB, DBRawIterator, ErrorKind, ReadOptions, WriteBatch, WriteOptions};

pub use meta::Identity;
pub use options::Options;
pub use reader::{Health, RocksReader};
use record::Record;
use scan::GroupState;

use crate::error::StorageError;
use crate::fold::{Effect, pack};
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
    synced: WriteOptions,
    /// Where records are put together; kept to save an allocation for each.
    scratch: Vec<u8>,
    poisoned: Option<Arc<str>>,
    metrics: Arc<StorageMetrics>,
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
        Ok(RocksStorage {
            db: Arc::new(db),
            dir: dir.to_owned(),
            incarnation,
            record_limit: options.record_limit(),
            groups,
            synced,
            scratch: Vec::new(),
            poisoned: None,
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

    /// Pins the voters with which a group begins: the first call writes them down, durably; every later one, also after a
    /// restart, must name the same. Two nodes that start from different voters could each find a majority of its own.
    ///
    /// # Errors
    /// [`StorageError::WrongFounders`] when the group began with others: nothing has changed, mend the configuration. Any other error
    /// is final.
    pub fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        self.check_alive()?;
        let key = meta::key(group, meta::Tag::Founders);
        let meta = column(&self.db, META)?;
        match self.db.get_cf(meta, key).map_err(|error| read_error("the founders", error))? {
            Some(value) => {
                let found = meta::decode_founders(&key, group, &value)?;
                if found == voters {
                    return Ok(());
                }
                Err(StorageError::WrongFounders { dir: self.dir.clone(), expected: voters.to_vec(), found })
            }
            None => self
                .db
                .put_cf_opt(meta, key, meta::encode_founders(&key, voters), &self.synced)
                .map_err(|error| StorageError::engine("writing the founders", error)),
        }
    }

    /// Every group that was ever written to.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        self.groups.keys().copied()
    }

    /// Counters since it was opened.
    pub fn metrics(&self) -> Arc<StorageMetrics> {
        self.metrics.clone()
    }

    fn check_alive(&self) -> Result<(), StorageError> {
        match &self.poisoned {
            Some(cause) => Err(StorageError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Moves the outlines on, then writes one batch with one sync. When it fails half-way, the outlines are ahead of the disk: the
    /// caller poisons the storage.
    fn write_synced(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        let mut effects: BTreeMap<GroupId, (LogIndex, Effect)> = BTreeMap::new();
        for (group, write) in batch {
            let outline = &mut self.groups.entry(*group).or_default().outline;
            let (_, effect) = effects.entry(*group).or_insert_with(|| (outline.last_index, Effect::default()));
            outline::advance(outline, *group, write)?;
            effect.absorb(write);
        }
        let payload: usize = batch.iter().map(|(_, write)| write.entries.byte_len() + 128).sum();
        let mut changes = Changes {
            log: column(&self.db, LOG)?,
            meta: column(&self.db, META)?,
            db: &self.db,
            batch: WriteBatch::with_capacity_bytes(payload),
            scratch: &mut self.scratch,
            record_limit: self.record_limit,
            entries: 0,
        };
        for (group, (stored_last, effect)) in effects {
            // The loop above made the entry.
            let state = self.groups.entry(group).or_default();
            changes.add(group, state, stored_last, effect)?;
        }
        let Changes { batch: changes, entries, .. } = changes;
        if changes.is_empty() {
            return Ok(());
        }
        let bytes = changes.size_in_bytes() as u64;
        self.db
            .write_opt(changes, &self.synced)
            .map_err(|error| StorageError::engine("write and sync the log", error))?;
        self.metrics.count_sync(batch.len() as u64, entries, bytes);
        Ok(())
    }
}

impl Storage for RocksStorage {
    type Reader = RocksReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        self.check_alive()?;
        Ok(self.groups.get(&group).map(|state| state.outline.clone()).unwrap_or_default())
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        self.check_alive()?;
        self.write_synced(batch).inspect_err(|error| {
            tracing::error!(dir = %self.dir.display(), %error, "the log cannot be written any more");
            self.poisoned = Some(error.to_string().into());
        })
    }

    fn reader(&self) -> RocksReader {
        RocksReader::new(self.db.clone())
    }
}

impl std::fmt::Debug for RocksStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStorage").field("dir", &self.dir).field("poisoned", &self.poisoned).finish_non_exhaustive()
    }
}

/// A RocksDB batch under construction.
struct Changes<'a> {
    db: &'a DB,
    log: &'a ColumnFamily,
    meta: &'a ColumnFamily,
    batch: WriteBatch,
    scratch: &'a mut Vec<u8>,
    record_limit: usize,
    entries: u64,
}

impl Changes<'_> {
    /// Adds what happens to a group whose stored log ends at `stored_last`.
    fn add(
        &mut self,
        group: GroupId,
        state: &mut GroupState,
        stored_last: LogIndex,
        effect: Effect,
    ) -> Result<(), StorageError> {
        if let Some(from) = effect.cut.filter(|&from| from <= stored_last) {
            let (link, freed) = self.cut(group, from)?;
            state.link = link;
            state.outline.bytes = state.outline.bytes.saturating_sub(freed);
        }
        let mut result = Ok(());
        pack(effect.segments, self.record_limit, |segments| {
            match self.put(group, state.link, segments) {
                Ok(link) => state.link = link,
                Err(error) => result = Err(error),
            }
            state.outline.bytes += segments.iter().map(|segment| segment.byte_len() as u64).sum::<u64>();
        });
        if let Some(hard_state) = effect.hard_state {
            let key = meta::key(group, meta::Tag::HardState);
            self.batch.put_cf(self.meta, key, meta::encode_hard_state(&key, hard_state));
        }
        result
    }

    /// Puts a record that follows on one with checksum `prev`, and returns its checksum.
    fn put(&mut self, group: GroupId, prev: u32, segments: &[Segment]) -> Result<u32, StorageError> {
        let Some(first) = segments.first().map(Segment::first_index) else { return Ok(prev) };
        let link = record::encode(self.scratch, group, first, prev, segments);
        if u32::try_from(self.scratch.len()).is_err() {
            // RocksDB would leave it out without a word.
            return Err(StorageError::engine("store an entry", format!("entry {first} has more than 4 GiB")));
        }
        self.batch.put_cf(self.log, record::key(group, first), &*self.scratch);
        self.entries += segments.iter().map(|segment| segment.len() as u64).sum::<u64>();
        Ok(link)
    }

    /// Removes all entries from `from` on, which is in the stored log: deletes the records behind it, and rewrites the one that it lies
    /// in. Returns the checksum of what is now the last record, and how many bytes of entries are gone.
    ///
    /// The boundaries of records are looked up here instead of being kept in memory: truncations come with changes of
    /// leaders, and ten million small records would take a quarter of a gigabyte.
    fn cut(&mut self, group: GroupId, from: LogIndex) -> Result<(u32, u64), StorageError> {
        let mut iter = iterate(self.db, self.log, group);
        iter.seek_for_prev(record::key(group, from));
        let Some((key, value)) = iter.item() else {
            check_iterator(&iter)?;
            return Err(StorageError::Gap { group, expected: from, found: LogIndex::ZERO });
        };
        let record = Record::parse(key, value)?;
        if record.last() < from {
            return Err(StorageError::Gap { group, expected: record.last().next(), found: from.next() });
        }
        let mut freed = record.body.len() as u64;
        let link = if record.first() == from {
            self.batch.delete_cf(self.log, key);
            record.prev
        } else {
            let kept: Vec<Segment> = record.segment()?.slice(record.first(), from.prev()).into_iter().collect();
            freed -= kept.iter().map(|segment| segment.byte_len() as u64).sum::<u64>();
            let entries = self.entries;
            let link = self.put(group, record.prev, &kept)?;
            // They are not new.
            self.entries = entries;
            link
        };
        iter.next();
        while let Some((key, value)) = iter.item() {
            self.batch.delete_cf(self.log, key);
            freed += value.len().saturating_sub(record::HEADER) as u64;
            iter.next();
        }
        check_iterator(&iter)?;
        Ok((link, freed))
    }
}

fn column<'a>(db: &'a DB, name: &'static str) -> Result<&'a ColumnFamily, StorageError> {
    db.cf_handle(name).ok_or_else(|| StorageError::engine("find a column family", name))
}

/// An iterator over one group's records, which leaves the block cache alone.
fn iterate<'a>(db: &'a DB, log: &ColumnFamily, group: GroupId) -> DBRawIterator<'a> {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_lower_bound(record::key(group, LogIndex::ZERO));
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
