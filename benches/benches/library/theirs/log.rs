//! openraft's log: entries in memory. What is appended counts as durable at once.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{Entry, LogId, LogState, OptionalSend, RaftLogReader, StorageError, Vote};

use super::Types;

/// Clones are the same log: openraft reads it while it appends.
#[derive(Clone, Debug, Default)]
pub(super) struct Log(Arc<Mutex<Held>>);

/// Invariant: `entries` follow one another, the first is the one after `purged`.
#[derive(Debug, Default)]
struct Held {
    vote: Option<Vote<u64>>,
    purged: Option<LogId<u64>>,
    entries: VecDeque<Entry<Types>>,
}

impl Held {
    /// Index of the first entry.
    fn first(&self) -> u64 {
        self.entries.front().map_or(0, |entry| entry.log_id.index)
    }

    /// How many entries have a smaller index.
    fn before(&self, index: u64) -> usize {
        usize::try_from(index.saturating_sub(self.first())).unwrap_or(usize::MAX).min(self.entries.len())
    }
}

impl Log {
    /// Nobody panics with the lock held.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry<Types>>, StorageError<u64>> {
        let from = match range.start_bound() {
            Bound::Included(&index) => index,
            Bound::Excluded(&index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&index) => index + 1,
            Bound::Excluded(&index) => index,
            Bound::Unbounded => u64::MAX,
        };
        let held = self.held();
        let (from, to) = (held.before(from), held.before(to));
        Ok(held.entries.range(from..to.max(from)).cloned().collect())
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError<u64>> {
        let held = self.held();
        let last_log_id = held.entries.back().map(|entry| entry.log_id).or(held.purged);
        Ok(LogState { last_purged_log_id: held.purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StorageError<u64>> {
        self.held().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StorageError<u64>> {
        Ok(self.held().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        self.held().entries.extend(entries);
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut held = self.held();
        let kept = held.before(from.index);
        held.entries.truncate(kept);
        Ok(())
    }

    async fn purge(&mut self, to: LogId<u64>) -> Result<(), StorageError<u64>> {
        let mut held = self.held();
        let gone = held.before(to.index + 1);
        held.entries.drain(..gone);
        held.purged = Some(to);
        Ok(())
    }
}
