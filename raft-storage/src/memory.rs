//! A store for tests and simulators, which knows what is written from what is durable.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_core::{Entries, EntryKind, GroupId, HardState, LogId, LogIndex, Membership, Segment, SnapshotMeta, Write};

use crate::error::StorageError;
use crate::metrics::StorageMetrics;
use crate::outline::{self, Outline};
use crate::storage::{RecoveredLog, Storage, StorageReader};

/// Logs and hard states in memory, twice: *live*, as the program sees them, and *durable*, as a crash would leave them.
///
/// [`Storage::write`] brings both up to date. A simulator that wants to crash between the two calls [`submit`](Self::submit),
/// [`sync`](Self::sync) and [`crash`](Self::crash) itself.
///
/// ```
/// use raft_core::{Entries, EntryKind, GroupId, HardState, LogIndex, Segment, Term, Write, WriteSeq};
/// use raft_storage::{MemoryStorage, Storage};
///
/// let write = |seq: u64| Write {
///     seq: WriteSeq(seq),
///     hard_state: Some(HardState { current_term: Term(1), voted_for: None }),
///     log_start: None,
///     truncate_from: None,
///     entries: Segment::pack(LogIndex(seq), Term(1), EntryKind::Command, &["x"]).map(Entries::from).unwrap(),
/// };
/// let mut storage = MemoryStorage::new();
/// storage.write(&[(GroupId::FIRST, write(1))])?;
/// storage.submit(&[(GroupId::FIRST, write(2)), (GroupId::FIRST, write(3))])?;
/// assert_eq!(storage.recover(GroupId::FIRST)?.last_index, LogIndex(3));
/// storage.crash(1); // One of the two unsynced writes happens to have reached the disk.
/// assert_eq!(storage.recover(GroupId::FIRST)?.last_index, LogIndex(2));
/// # Ok::<(), raft_storage::StorageError>(())
/// ```
#[derive(Debug, Default)]
pub struct MemoryStorage {
    live: Arc<Mutex<Image>>,
    /// The live groups in outline, so that a write is checked without a walk through its log.
    outlines: BTreeMap<GroupId, Outline>,
    durable: Image,
    unsynced: Vec<(GroupId, Write)>,
    failing: bool,
    poisoned: Option<Arc<str>>,
    metrics: Arc<StorageMetrics>,
}

type Image = BTreeMap<GroupId, GroupImage>;

/// No entry has this index.
const NEVER: LogIndex = LogIndex(u64::MAX);

/// A group's log, kept as plainly as can be, so that other stores can be compared with it.
#[derive(Clone, Debug, Default)]
struct GroupImage {
    hard_state: HardState,
    start: LogId,
    membership: Option<Membership>,
    segments: Vec<Segment>,
}

impl GroupImage {
    fn apply(&mut self, write: &Write) {
        if let Some(SnapshotMeta { last, membership }) = &write.log_start {
            let holds = |segment: &Segment| segment.term_at(last.index) == Some(last.term);
            let first = if self.start == *last || self.segments.iter().any(holds) { last.index.next() } else { NEVER };
            self.segments = self.segments.iter().filter_map(|s| s.slice(first, LogIndex::MAX)).collect();
            (self.start, self.membership) = (*last, Some(membership.clone()));
        }
        if let Some(from) = write.truncate_from {
            self.segments = self.segments.iter().filter_map(|s| s.slice(LogIndex::ZERO, from.prev())).collect();
        }
        self.segments.extend_from_slice(write.entries.segments());
        self.hard_state = write.hard_state.unwrap_or(self.hard_state);
    }

    fn outline(&self) -> RecoveredLog {
        let (mut runs, mut changes): (Vec<LogId>, Vec<_>) = (Vec::new(), Vec::new());
        for entry in self.segments.iter().flat_map(Segment::iter) {
            if runs.last().is_none_or(|run| run.term < entry.term) {
                runs.push(entry.id());
            }
            if entry.kind == EntryKind::Membership {
                // Checked when it was written.
                changes.extend(Membership::decode(entry.payload).ok().map(|membership| (entry.index, membership)));
            }
        }
        RecoveredLog {
            hard_state: self.hard_state,
            log_start: self.start,
            membership: self.membership.clone(),
            changes,
            runs,
            last_index: self.segments.last().map_or(self.start.index, Segment::last_index),
            bytes: self.segments.iter().map(|segment| segment.byte_len() as u64).sum(),
        }
    }
}

impl MemoryStorage {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Changes the live image only: readers and [`recover`](Storage::recover) see the batch, a crash loses it.
    ///
    /// # Errors
    /// As [`Storage::write`].
    pub fn submit(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        self.check_alive()?;
        for (group, write) in batch {
            outline::advance(self.outlines.entry(*group).or_default(), *group, write).map_err(|e| self.poison(e))?;
        }
        let mut live = lock(&self.live);
        for (group, write) in batch {
            live.entry(*group).or_default().apply(write);
        }
        self.unsynced.extend_from_slice(batch);
        Ok(())
    }

    /// Makes everything durable that was submitted.
    ///
    /// # Errors
    /// As [`Storage::write`], and after [`fail_next_sync`](Self::fail_next_sync). What of the batch is durable
    /// then is open: [`crash`](Self::crash) decides.
    pub fn sync(&mut self) -> Result<(), StorageError> {
        self.check_alive()?;
        if self.failing {
            return Err(self.poison(StorageError::engine("sync", "a failure was asked for")));
        }
        let writes = std::mem::take(&mut self.unsynced);
        for (group, write) in &writes {
            self.durable.entry(*group).or_default().apply(write);
        }
        if !writes.is_empty() {
            let entries = writes.iter().map(|(_, write)| write.entries.len() as u64).sum();
            let bytes = writes.iter().map(|(_, write)| write.entries.byte_len() as u64).sum();
            self.metrics.count_sync(writes.len() as u64, entries, bytes);
        }
        Ok(())
    }

    /// Number of writes that were submitted and not synced.
    pub fn unsynced(&self) -> usize {
        self.unsynced.len()
    }

    /// The power fails, and comes back: of the unsynced writes the first `survivors` are durable, the others are gone. Also ends
    /// what [`fail_next_sync`](Self::fail_next_sync) began. Readers go on, with the new live image.
    pub fn crash(&mut self, survivors: usize) {
        for (group, write) in std::mem::take(&mut self.unsynced).iter().take(survivors) {
            self.durable.entry(*group).or_default().apply(write);
        }
        lock(&self.live).clone_from(&self.durable);
        self.outlines = self.durable.iter().map(|(group, image)| (*group, image.outline())).collect();
        self.poisoned = None;
        self.failing = false;
    }

    /// The next sync, and with it the next write, fails and poisons the store.
    pub fn fail_next_sync(&mut self) {
        self.failing = true;
    }

    /// Counters since it was made.
    pub fn metrics(&self) -> Arc<StorageMetrics> {
        self.metrics.clone()
    }

    fn check_alive(&self) -> Result<(), StorageError> {
        match &self.poisoned {
            Some(cause) => Err(StorageError::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    fn poison(&mut self, error: StorageError) -> StorageError {
        self.poisoned = Some(error.to_string().into());
        error
    }
}

/// No code that holds the lock panics half-way through a change, so a poisoned lock guards a sound image.
fn lock(image: &Mutex<Image>) -> MutexGuard<'_, Image> {
    image.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Storage for MemoryStorage {
    type Reader = MemoryReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        self.check_alive()?;
        match lock(&self.live).get(&group).map(GroupImage::outline) {
            Some(outline) if outline::is_deleted(&outline) => Err(StorageError::Deleted { group }),
            found => Ok(found.unwrap_or_default()),
        }
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        self.submit(batch)?;
        self.sync()
    }

    fn reader(&self) -> MemoryReader {
        MemoryReader { live: self.live.clone() }
    }

    fn groups(&self) -> Vec<GroupId> {
        self.outlines.iter().filter(|(_, outline)| !outline::is_deleted(outline)).map(|(group, _)| *group).collect()
    }

    fn delete(&mut self, group: GroupId) -> Result<bool, StorageError> {
        self.sync()?;
        let Some(outline) = self.outlines.get_mut(&group) else { return Ok(false) };
        *outline = outline::deleted();
        let image = GroupImage { hard_state: outline::DELETED, ..GroupImage::default() };
        lock(&self.live).insert(group, image.clone());
        self.durable.insert(group, image);
        Ok(true)
    }
}

/// Reader of a [`MemoryStorage`]: reads the live image.
#[derive(Clone, Debug)]
pub struct MemoryReader {
    live: Arc<Mutex<Image>>,
}

impl StorageReader for MemoryReader {
    fn entries(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Entries, StorageError> {
        let mut found = Entries::new();
        let live = lock(&self.live);
        let start = live.get(&group).map(|image| image.start.index).unwrap_or_default();
        if first <= start {
            return Ok(found);
        }
        let segments = live.get(&group).map(|image| image.segments.as_slice()).unwrap_or_default();
        let from = segments.partition_point(|segment| segment.last_index() < first);
        for wanted in segments[from..].iter().map_while(|segment| segment.slice(first, last)) {
            let free = max_bytes.saturating_sub(found.byte_len());
            let head = wanted.prefix(free);
            if !found.is_empty() && head.byte_len() > free {
                break;
            }
            let whole = head.len() == wanted.len();
            // The writes were checked to be consecutive.
            if found.push(head).is_err() || !whole {
                break;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{EntryKind, Term, WriteSeq};

    use super::*;

    fn write(index: u64) -> (GroupId, Write) {
        let entries = Segment::pack(LogIndex(index), Term(1), EntryKind::Command, &[b"x"]).unwrap().into();
        let hard_state = Some(HardState { current_term: Term(1), voted_for: None });
        (GroupId(1), Write { seq: WriteSeq(index), hard_state, log_start: None, truncate_from: None, entries })
    }

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_the_rest() {
        let mut storage = MemoryStorage::new();
        storage.write(&[write(1)]).unwrap();
        storage.submit(&[write(2), write(3)]).unwrap();
        storage.submit(&[write(4)]).unwrap();
        assert_eq!((storage.unsynced(), storage.recover(GroupId(1)).unwrap().last_index), (3, LogIndex(4)));
        storage.crash(2);
        assert_eq!((storage.unsynced(), storage.recover(GroupId(1)).unwrap().last_index), (0, LogIndex(3)));
        storage.crash(9);
        assert_eq!(storage.recover(GroupId(1)).unwrap().last_index, LogIndex(3));
        assert_eq!((storage.metrics().syncs(), storage.metrics().entries()), (1, 1));
    }

    #[test]
    fn a_failed_sync_poisons_until_the_restart() {
        let mut storage = MemoryStorage::new();
        storage.write(&[write(1)]).unwrap();
        storage.fail_next_sync();
        assert!(matches!(storage.write(&[write(2)]), Err(StorageError::Engine { .. })));
        assert!(matches!(storage.write(&[write(3)]), Err(StorageError::Poisoned { .. })));
        assert!(matches!(storage.recover(GroupId(1)), Err(StorageError::Poisoned { .. })));
        storage.crash(0);
        assert_eq!(storage.recover(GroupId(1)).unwrap().last_index, LogIndex(1));
        storage.write(&[write(2)]).unwrap();
    }
}
