//! What a batch of writes does to the database: one atomic batch of RocksDB's.

use raft_core::{GroupId, LogId, LogIndex, Segment, SnapshotMeta};
use rocksdb::{ColumnFamily, DB, WriteBatch};

use super::meta::{self, LogStart, Tag};
use super::record::{self, Record};
use super::scan::GroupState;
use super::{check_iterator, iterate};
use crate::error::StorageError;
use crate::fold::{Effect, pack};
use crate::outline;

/// A RocksDB batch under construction.
pub(super) struct Changes<'a> {
    db: &'a DB,
    log: &'a ColumnFamily,
    meta: &'a ColumnFamily,
    pub(super) batch: WriteBatch,
    scratch: &'a mut Vec<u8>,
    record_limit: usize,
    /// Entries that are new.
    pub(super) entries: u64,
    /// Bytes of entries before the logs' new starts.
    pub(super) purged: u64,
}

impl<'a> Changes<'a> {
    pub(super) fn new(
        db: &'a DB,
        log: &'a ColumnFamily,
        meta: &'a ColumnFamily,
        payload: usize,
        scratch: &'a mut Vec<u8>,
        record_limit: usize,
    ) -> Self {
        let batch = WriteBatch::with_capacity_bytes(payload);
        Changes { db, log, meta, batch, scratch, record_limit, entries: 0, purged: 0 }
    }

    /// Adds what happens to a group whose stored log ends at `stored_last`.
    pub(super) fn add(
        &mut self,
        group: GroupId,
        state: &mut GroupState,
        stored_last: LogIndex,
        effect: Effect,
    ) -> Result<(), StorageError> {
        let cut = effect.cut.filter(|&from| from <= stored_last);
        let stored_last = cut.map_or(stored_last, LogIndex::prev);
        match effect.start {
            Some(start) if effect.replaced || stored_last <= start.last.index => self.begin_anew(group, state, start),
            start => {
                if let Some(from) = cut {
                    self.cut(group, state, from)?;
                }
                if let Some(start) = start {
                    self.purge(group, state, start)?;
                }
            }
        }
        let mut result = Ok(());
        pack(effect.segments, self.record_limit, |segments| {
            if result.is_ok() {
                result = self.put(group, state, segments);
                self.entries += segments.iter().map(|segment| segment.len() as u64).sum::<u64>();
            }
        });
        if let Some(hard_state) = effect.hard_state {
            let key = meta::key(group, Tag::HardState);
            self.batch.put_cf(self.meta, key, meta::encode_hard_state(&key, hard_state));
        }
        state.outline.bytes = state.positions.bytes();
        result
    }

    /// Puts a record after the last one.
    fn put(&mut self, group: GroupId, state: &mut GroupState, segments: &[Segment]) -> Result<(), StorageError> {
        let Some(first) = segments.first().map(Segment::first_index) else { return Ok(()) };
        let link = record::encode(self.scratch, group, first, state.link, segments);
        if u32::try_from(self.scratch.len()).is_err() {
            // RocksDB would leave it out without a word.
            return Err(StorageError::engine("store an entry", format!("entry {first} has more than 4 GiB")));
        }
        self.batch.put_cf(self.log, record::key(group, first), &*self.scratch);
        state.positions.push(first, (self.scratch.len() - record::HEADER) as u64);
        state.link = link;
        Ok(())
    }

    /// Removes all entries from `from` on, which is in the stored log: deletes the records behind it, and rewrites the one that it lies in.
    ///
    /// The boundaries of records are looked up here instead of being kept in memory: truncations come with changes of
    /// leaders, and ten million small records would take a quarter of a gigabyte.
    fn cut(&mut self, group: GroupId, state: &mut GroupState, from: LogIndex) -> Result<(), StorageError> {
        let mut iter = iterate(self.db, self.log, group, state.first);
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
        let (first, prev) = (record.first(), record.prev);
        let kept = if first == from { None } else { record.segment()?.slice(first, from.prev()) };
        if kept.is_none() {
            self.batch.delete_cf(self.log, key);
        }
        iter.next();
        while let Some((key, value)) = iter.item() {
            self.batch.delete_cf(self.log, key);
            freed += value.len().saturating_sub(record::HEADER) as u64;
            iter.next();
        }
        check_iterator(&iter)?;
        state.positions.truncate(first, freed);
        state.link = prev;
        match kept {
            Some(kept) => self.put(group, state, &[kept]),
            None => Ok(()),
        }
    }

    /// The log begins after `start`, within the stored log, of which only whole records can go. The one in which it begins says which those are:
    /// one look into the database, and a walk over at most as much as lies between two known positions.
    fn purge(&mut self, group: GroupId, state: &mut GroupState, start: SnapshotMeta) -> Result<(), StorageError> {
        let begin = start.last.index.next();
        let gap = |found| StorageError::Gap { group, expected: begin, found };
        let mut iter = iterate(self.db, self.log, group, state.first);
        iter.seek_for_prev(record::key(group, begin));
        let Some((key, value)) = iter.item() else {
            check_iterator(&iter)?;
            return Err(gap(LogIndex::ZERO));
        };
        let record = Record::parse(key, value)?;
        if record.last() < begin {
            return Err(gap(record.last().next()));
        }
        let (first, link) = (record.first(), record.prev);
        let before = record.segment()?.slice(first, start.last.index).map_or(0, |early| early.byte_len() as u64);
        let (known, mut skipped) = (state.positions.at_or_before(first), 0);
        if known < first {
            iter.seek(record::key(group, known));
            while let Some((key, value)) = iter.item() {
                if key >= record::key(group, first).as_slice() {
                    break;
                }
                skipped += value.len().saturating_sub(record::HEADER) as u64;
                iter.next();
            }
            check_iterator(&iter)?;
        }
        if state.first < first {
            self.batch.delete_range_cf(self.log, record::key(group, state.first), record::key(group, first));
        }
        self.purged += state.positions.begin(first, skipped, before);
        state.first = first;
        self.put_start(group, &LogStart { id: start.last, link, first, membership: Some(start.membership) });
        Ok(())
    }

    /// The log begins after `start`, and nothing that is stored belongs to it.
    fn begin_anew(&mut self, group: GroupId, state: &mut GroupState, start: SnapshotMeta) {
        let (from, to) = (record::key(group, LogIndex::ZERO), record::key(group, LogIndex(u64::MAX)));
        self.batch.delete_range_cf(self.log, from, to);
        self.purged += state.positions.clear();
        state.first = start.last.index.next();
        // The first record must say that it was written after this start, and not after another one.
        state.link = start_link(start.last);
        let (first, link) = (state.first, state.link);
        self.put_start(group, &LogStart { id: start.last, link, first, membership: Some(start.membership) });
    }

    fn put_start(&mut self, group: GroupId, start: &LogStart) {
        let key = meta::key(group, Tag::LogStart);
        self.batch.put_cf(self.meta, key, meta::encode_log_start(&key, start));
    }
}

/// Leaves nothing of a group but a hard state that says so.
pub(super) fn deletion(log: &ColumnFamily, meta: &ColumnFamily, group: GroupId) -> WriteBatch {
    let mut batch = WriteBatch::default();
    batch.delete_range_cf(log, record::key(group, LogIndex::ZERO), record::key(group, LogIndex(u64::MAX)));
    // Who is who belongs to the node, whatever group it is stored under.
    batch.delete_cf(meta, meta::key(group, Tag::LogStart));
    batch.delete_cf(meta, meta::key(group, Tag::Founders));
    let key = meta::key(group, Tag::HardState);
    batch.put_cf(meta, key, meta::encode_hard_state(&key, outline::DELETED));
    batch
}

/// Stands for the checksum of a record that ends with `id`.
fn start_link(id: LogId) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&id.term.0.to_be_bytes()), &id.index.0.to_be_bytes())
}
