//! Reads entries, while another thread writes.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use raft_core::{Entries, GroupId, LogIndex};
use rocksdb::DB;

use super::record::Record;
use super::scan::GroupState;
use super::{LOG, check_iterator, column, iterate, read_error};
use crate::error::StorageError;
use crate::storage::{self, StorageReader};

/// Reader of a [`RocksStorage`](crate::RocksStorage). Each call sees one consistent state of the log.
#[derive(Clone)]
pub struct RocksReader {
    db: Arc<DB>,
    starts: Arc<Starts>,
}

/// Where the logs begin that do not begin with their first entry: the index of the entry before, and the index under which the first record is
/// stored. Written by the storage after the write that moved the start is durable.
#[derive(Debug, Default)]
pub(super) struct Starts(RwLock<BTreeMap<GroupId, (LogIndex, LogIndex)>>);

impl Starts {
    pub(super) fn set(&self, group: GroupId, state: &GroupState) {
        let start = state.outline.log_start.index;
        if start > LogIndex::ZERO {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(group, (start, state.first));
        }
    }

    pub(super) fn forget(&self, group: GroupId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&group);
    }

    fn of(&self, group: GroupId) -> (LogIndex, LogIndex) {
        let starts = self.0.read().unwrap_or_else(PoisonError::into_inner);
        starts.get(&group).copied().unwrap_or((LogIndex::ZERO, LogIndex(1)))
    }
}

/// How the engine below is doing. Anything but the default deserves an alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Flushes and compactions that failed since the storage was opened. The next write will fail, too.
    pub background_errors: u64,
    /// Whether writes stand still because flushes or compactions do not keep up.
    pub write_stopped: bool,
}

impl RocksReader {
    pub(super) fn new(db: Arc<DB>, starts: Arc<Starts>) -> Self {
        RocksReader { db, starts }
    }

    /// Asks the engine how it is doing. Takes microseconds; ask every few seconds.
    ///
    /// # Errors
    /// The engine does not answer.
    pub fn health(&self) -> Result<Health, StorageError> {
        let property = |name: &str| match self.db.property_int_value(name) {
            Ok(value) => Ok(value.unwrap_or_default()),
            Err(error) => Err(read_error("the log", error)),
        };
        Ok(Health {
            background_errors: property("rocksdb.background-errors")?,
            write_stopped: property("rocksdb.is-write-stopped")? != 0,
        })
    }
}

impl StorageReader for RocksReader {
    fn entries(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Entries, StorageError> {
        let mut found = Entries::new();
        // Should the start move while we read, we see either what was there before, or a log that begins later.
        let (start, lowest) = self.starts.of(group);
        if first <= start || first > last {
            return Ok(found);
        }
        let mut iter = iterate(&self.db, column(&self.db, LOG)?, group, lowest);
        iter.seek_for_prev(super::record::key(group, first));
        let mut before: Option<(LogIndex, u32)> = None;
        while let Some((key, value)) = iter.item() {
            let record = Record::parse(key, value)?;
            if let Some((next, link)) = before {
                record.follows(next, link)?;
            }
            before = Some((record.last().next(), record.link));
            if record.last() >= first && !take(&mut found, &record, group, first, last, max_bytes)? {
                break;
            }
            // When the log ends before `first`, the record at hand is the last one. If there is another, there is a gap.
            iter.next();
        }
        check_iterator(&iter)?;
        Ok(found)
    }
}

/// Adds what is wanted of `record`, and says whether more may be.
fn take(
    found: &mut Entries,
    record: &Record<'_>,
    group: GroupId,
    first: LogIndex,
    last: LogIndex,
    max_bytes: usize,
) -> Result<bool, StorageError> {
    let Some(wanted) = record.segment()?.slice(first, last) else { return Ok(false) };
    storage::take(found, &wanted, group, last, max_bytes)
}

#[cfg(test)]
mod tests {
    use crate::error::RecordDamage;
    use raft_core::{EntryKind, HardState, NodeId, Segment, Term, Write, WriteSeq};

    use super::super::{Identity, Options, RocksStorage, record};
    use super::*;
    use crate::storage::Storage;

    #[test]
    fn what_breaks_under_a_reader_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let me = Identity::new("test", NodeId(1));
        let mut storage = RocksStorage::open(dir.path(), &me, &Options::default()).unwrap();
        for first in [1, 3, 5] {
            let segment = Segment::pack(LogIndex(first), Term(1), EntryKind::Command, &["a", "b"]).unwrap();
            let hard_state = Some(HardState { current_term: Term(1), voted_for: None });
            let write = Write {
                seq: WriteSeq(first),
                hard_state,
                log_start: None,
                truncate_from: None,
                entries: segment.into(),
            };
            storage.write(&[(GroupId(1), write)]).unwrap();
        }
        let reader = storage.reader();
        let read = |first| reader.entries(GroupId(1), LogIndex(first), LogIndex::MAX, usize::MAX);
        assert_eq!((read(1).unwrap().len(), read(4).unwrap().len(), read(7).unwrap().len()), (6, 3, 0));

        let log = column(&storage.db, LOG).unwrap();
        let key = record::key(GroupId(1), LogIndex(3));
        let mut value = storage.db.get_cf(log, key).unwrap().unwrap();
        *value.last_mut().unwrap() ^= 1;
        storage.db.put_cf(log, key, &value).unwrap();
        for first in 1..=4 {
            assert!(
                matches!(read(first), Err(StorageError::Record { what: RecordDamage::Checksum { .. }, .. })),
                "{first}"
            );
        }
        storage.db.delete_cf(log, key).unwrap();
        for first in 1..=4 {
            assert!(matches!(read(first), Err(StorageError::Gap { .. })), "{first}");
        }
        assert_eq!((read(5).unwrap().len(), read(7).unwrap().len()), (2, 0));
        assert_eq!(reader.health().unwrap(), Health::default());
    }
}
