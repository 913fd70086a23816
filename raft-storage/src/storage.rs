//! The two traits, and what recovery tells.

use raft_core::{Entries, GroupId, HardState, LogId, LogIndex, Membership, NodeId, Segment, Term, Write};

use crate::error::{RecordDamage, StorageError};

/// Durable logs and hard states of all groups of a node. One thread, the writer, owns it; other threads read through
/// clones of its [`StorageReader`].
///
/// # Rules
///
/// - Writes of a group become durable in the order in which they were given, and each one entirely or not at all.
/// - A write is refused with [`StorageError::BadWrite`] when it would leave a gap in the log, lower a term (of the log or
///   of the hard state), append an entry of a term above the hard state's, change or withdraw a vote within a term, move the start of the log
///   back, or append an entry of kind `Membership` that holds none. No correct caller does any of these; a store that lets them pass turns a
///   defect into lost data.
/// - What lies before the start of the log ([`Write::log_start`](raft_core::Write::log_start)) is never delivered again, also when its space is
///   freed later. The new start is durable together with the rest of its write.
/// - After any error of [`write`](Storage::write) the storage is *poisoned*: every later call of it fails with
///   [`StorageError::Poisoned`]. A failed sync must not be tried again, since the operating system may have marked
///   the pages clean.
pub trait Storage: Send + 'static {
    /// What reads the entries back.
    type Reader: StorageReader;

    /// What this group's log and hard state hold now. A group that was never written to has the defaults.
    ///
    /// # Errors
    /// [`StorageError::Poisoned`] after a failed write; [`StorageError::Deleted`].
    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError>;

    /// Makes all of `batch` durable, in order, with one sync. Returns when it is on the disk.
    ///
    /// # Errors
    /// All are final: acknowledge nothing of this batch and stop.
    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError>;

    /// A reader of this storage.
    fn reader(&self) -> Self::Reader;

    /// The groups that it holds something of, in ascending order: those that were ever written to, or whose founders were pinned, and that were not deleted.
    fn groups(&self) -> Vec<GroupId>;

    /// The voters with which a group began, if they were pinned. By default nobody remembers them.
    ///
    /// # Errors
    /// The storage is poisoned, or what it says is damaged.
    fn founders(&self, group: GroupId) -> Result<Option<Vec<NodeId>>, StorageError> {
        let _ = group;
        Ok(None)
    }

    /// Pins the voters with which a group begins: the first call writes them down, durably, and every later one must name the same. By default
    /// nobody does.
    ///
    /// # Errors
    /// [`StorageError::WrongFounders`] when the group began with others; then nothing has changed. Any other error is final.
    fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        let _ = (group, voters);
        Ok(())
    }

    /// Deletes all that it holds of a group, durably, except that it was: from then on the group is [`StorageError::Deleted`] for ever. A group whose term and vote are
    /// forgotten could vote twice in a term, or be counted for entries that it has no more. `false`: there never was anything of it. By default nothing can be deleted.
    ///
    /// # Errors
    /// All are final.
    fn delete(&mut self, group: GroupId) -> Result<bool, StorageError> {
        let _ = group;
        Err(StorageError::engine("delete a group", "this storage does not support it"))
    }
}

/// Reads entries that were written, from any thread, while the writer goes on.
pub trait StorageReader: Clone + Send + Sync + 'static {
    /// The entries `first ..= last`, as far as they are in the log. Stops before `max_bytes` (headers included) would be exceeded, but
    /// delivers at least one entry. Empty when `first` is not, or not any more, in the log.
    ///
    /// # Errors
    /// The log is damaged, or cannot be read.
    fn entries(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Entries, StorageError>;
}

/// For readers: adds as much of `wanted` to `found` as has room in `max_bytes`, one entry at least, and says whether more may follow, up to `last`.
pub(crate) fn take(
    found: &mut Entries,
    wanted: &Segment,
    group: GroupId,
    last: LogIndex,
    max_bytes: usize,
) -> Result<bool, StorageError> {
    let free = max_bytes.saturating_sub(found.byte_len());
    let head = wanted.prefix(free);
    if !found.is_empty() && head.byte_len() > free {
        return Ok(false);
    }
    let more = head.len() == wanted.len() && head.byte_len() < free && head.last_index() < last;
    let first = head.first_index();
    found.push(head).map_err(|_| StorageError::Record { group, first, what: RecordDamage::Term })?;
    Ok(more)
}

/// A group's log and hard state, without the entries. This is what the core wants to know when it starts: it never needs the
/// entries themselves to take a decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredLog {
    /// Term and vote.
    pub hard_state: HardState,
    /// The entry before the first one of the log; [`LogId::ZERO`] unless a prefix was purged.
    pub log_start: LogId,
    /// Who belonged to the cluster as of that entry; `None` as long as the log has its first entry, and nobody has said.
    pub membership: Option<Membership>,
    /// The memberships in the log, oldest first: each entry of kind [`Membership`](raft_core::EntryKind::Membership).
    pub changes: Vec<(LogIndex, Membership)>,
    /// The first entry of each term in the log, oldest first.
    pub runs: Vec<LogId>,
    /// Index of the last entry; `log_start.index` when the log is empty.
    pub last_index: LogIndex,
    /// Size of the log's entries in bytes, entry headers included.
    pub bytes: u64,
}

impl RecoveredLog {
    /// Term and index of the last entry; `log_start` when the log is empty.
    pub fn last(&self) -> LogId {
        LogId::new(self.runs.last().unwrap_or(&self.log_start).term, self.last_index)
    }

    /// Term of the entry at `index`, if that is in the log or just before it.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.log_start.index {
            return Some(self.log_start.term);
        }
        let run = self.runs.partition_point(|run| run.index <= index).checked_sub(1)?;
        (index <= self.last_index).then(|| self.runs[run].term)
    }
}
