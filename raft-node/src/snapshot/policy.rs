//! When the log is compacted, and how far.

use std::collections::VecDeque;

use raft_core::LogIndex;

/// When the log is compacted, and what is kept of it. All of it is the node's own affair: nodes of a cluster may differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPolicy {
    /// After so many entries were applied since the last time. Zero: entries are not counted. Default: 500 000.
    pub entries: u64,
    /// After so many bytes of entries were applied since the last time. Zero: bytes are not counted. Default: 256 MiB.
    pub bytes: u64,
    /// So many entries stay in the log, for followers that are a little behind: to those, entries cost less than a snapshot. Default: 50 000.
    pub keep_entries: u64,
    /// But not more than so many bytes of them. Default: 64 MiB.
    pub keep_bytes: u64,
    /// While a follower gets a snapshot, what lies behind that stays in the leader's log beyond these limits, until the follower has it or so many bytes were applied: otherwise
    /// it would need another snapshot as soon as it has this one. In each group; looked at when the log is to be compacted. Default: 1 GiB.
    pub hold_bytes: u64,
}

impl Default for SnapshotPolicy {
    fn default() -> Self {
        SnapshotPolicy {
            entries: 500_000,
            bytes: 256 << 20,
            keep_entries: 50_000,
            keep_bytes: 64 << 20,
            hold_bytes: 1 << 30,
        }
    }
}

/// Distance between two remembered positions: a part of `keep_bytes`.
const STEPS: u64 = 16;

/// Counts what is applied.
///
/// Invariants: `positions` ascend; `durable_goal` is set from the moment when it is time until the log was compacted.
#[derive(Debug)]
pub(crate) struct Ledger {
    policy: SnapshotPolicy,
    /// Bytes of entries that were applied, and where that count was at some indices.
    applied_bytes: u64,
    positions: VecDeque<(LogIndex, u64)>,
    applied: LogIndex,
    /// When it was last time to compact, and how many bytes had been applied.
    last_time: (LogIndex, u64),
    /// The state up to here must be durable before the log is compacted.
    durable_goal: Option<LogIndex>,
}

impl Ledger {
    /// A log that begins after `start` and has `bytes`, of which everything up to `applied` has been applied.
    pub(crate) fn new(policy: SnapshotPolicy, start: LogIndex, applied: LogIndex, bytes: u64) -> Self {
        Ledger {
            policy,
            applied_bytes: bytes,
            positions: VecDeque::from([(applied, bytes)]),
            applied,
            last_time: (start, 0),
            durable_goal: None,
        }
    }

    /// Entries up to `last` were handed to the state machine, with so many bytes.
    pub(crate) fn applied(&mut self, last: LogIndex, bytes: u64) {
        self.applied = last;
        self.applied_bytes += bytes;
        let known = self.positions.back().map_or(0, |(_, position)| *position);
        if self.applied_bytes - known >= (self.policy.keep_bytes / STEPS).max(1) {
            self.positions.push_back((last, self.applied_bytes));
        }
        let oldest_of_use = self.applied_bytes.saturating_sub(self.policy.keep_bytes.saturating_mul(2));
        while self.positions.len() > 1 && self.positions[1].1 <= oldest_of_use {
            self.positions.pop_front();
        }
    }

    /// The state machine has taken over a snapshot: the log begins there.
    pub(crate) fn restored(&mut self, last: LogIndex) {
        self.applied = self.applied.max(last);
        self.positions = VecDeque::from([(self.applied, self.applied_bytes)]);
        self.last_time = (self.applied, self.applied_bytes);
        self.durable_goal = None;
    }

    /// Whether the state has to be made durable now, so that the log can be compacted. Says so once.
    pub(crate) fn is_due(&mut self) -> bool {
        let (index, bytes) = self.last_time;
        let over = |limit: u64, grown: u64| limit > 0 && grown >= limit;
        let due = self.durable_goal.is_none()
            && (over(self.policy.entries, self.applied.0.saturating_sub(index.0))
                || over(self.policy.bytes, self.applied_bytes - bytes));
        if due {
            self.demand();
        }
        due
    }

    /// It is time, whatever the policy says.
    pub(crate) fn demand(&mut self) {
        self.last_time = (self.applied, self.applied_bytes);
        self.durable_goal = Some(self.applied);
    }

    /// The state could not be made durable: at the next limit it is tried again.
    pub(crate) fn give_up(&mut self) {
        self.durable_goal = None;
    }

    /// Bytes of entries that were applied so far.
    pub(crate) fn applied_bytes(&self) -> u64 {
        self.applied_bytes
    }

    /// How many of them may be applied while a follower gets a snapshot, before the log is compacted without regard for it.
    pub(crate) fn hold_bytes(&self) -> u64 {
        self.policy.hold_bytes
    }

    /// Whether something beyond `durable` is still to become durable.
    pub(crate) fn waits_for_more_than(&self, durable: LogIndex) -> bool {
        self.durable_goal.is_some_and(|goal| goal > durable)
    }

    /// Up to where the log can go, once the state is durable up to `durable`. Says so once.
    pub(crate) fn compact(&mut self, durable: LogIndex) -> Option<LogIndex> {
        self.durable_goal.take_if(|goal| *goal <= durable)?;
        let by_entries = LogIndex(durable.0.saturating_sub(self.policy.keep_entries));
        // The earliest place behind which there are at most so many bytes, among those that are remembered. If that is the first of them, there may
        // be others before it.
        let oldest = self.applied_bytes.saturating_sub(self.policy.keep_bytes);
        let by_bytes = match self.positions.partition_point(|(_, position)| *position < oldest) {
            0 => LogIndex::ZERO,
            at => self.positions.get(at).map_or(durable, |(index, _)| *index),
        };
        Some(by_entries.max(by_bytes).min(durable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(entries: u64, bytes: u64, keep_entries: u64, keep_bytes: u64) -> Ledger {
        let policy = SnapshotPolicy { entries, bytes, keep_entries, keep_bytes, hold_bytes: 0 };
        Ledger::new(policy, LogIndex::ZERO, LogIndex::ZERO, 0)
    }

    #[test]
    fn it_is_time_after_so_many_entries_or_bytes_and_said_once() {
        let mut by_entries = ledger(100, 0, 10, 1 << 30);
        (1..100).for_each(|index| by_entries.applied(LogIndex(index), 1 << 20));
        assert!(!by_entries.is_due());
        by_entries.applied(LogIndex(100), 1);
        assert!(by_entries.is_due() && !by_entries.is_due());
        assert_eq!(by_entries.compact(LogIndex(99)), None, "not yet durable");
        by_entries.applied(LogIndex(130), 1);
        assert_eq!(by_entries.compact(LogIndex(120)), Some(LogIndex(110)));
        assert_eq!(by_entries.compact(LogIndex(130)), None, "said once");
        assert!(!by_entries.is_due());
        by_entries.applied(LogIndex(200), 1);
        assert!(by_entries.is_due());
        by_entries.give_up();
        assert!(!by_entries.is_due() && by_entries.compact(LogIndex(300)).is_none());

        let mut by_bytes = ledger(0, 1000, 10, 1 << 30);
        by_bytes.applied(LogIndex(5000), 999);
        assert!(!by_bytes.is_due());
        by_bytes.applied(LogIndex(5001), 1);
        assert!(by_bytes.is_due());
        assert_eq!(by_bytes.compact(LogIndex(5001)), Some(LogIndex(4991)));
        by_bytes.restored(LogIndex(9000));
        by_bytes.applied(LogIndex(9001), 999);
        assert!(!by_bytes.is_due());

        let mut never = ledger(0, 0, 0, 0);
        never.applied(LogIndex(1 << 40), 1 << 50);
        assert!(!never.is_due());
        never.demand();
        assert_eq!(never.compact(LogIndex(1 << 40)), Some(LogIndex(1 << 40)));
    }

    #[test]
    fn what_is_kept_is_limited_in_entries_and_in_bytes() {
        let mut ledger = ledger(10_000, 0, 5000, 16 << 10);
        (1..=10_000).for_each(|index| ledger.applied(LogIndex(index), 100));
        assert!(ledger.is_due());
        let up_to = ledger.compact(LogIndex(10_000)).unwrap();
        let kept = (10_000 - up_to.0) * 100;
        assert!((15 << 10..=16 << 10).contains(&kept), "{kept} bytes");
        assert!(ledger.positions.len() < 40, "{}", ledger.positions.len());
    }

    #[test]
    fn after_a_start_only_entries_are_counted_until_positions_are_known() {
        let policy = SnapshotPolicy { entries: 100, bytes: 0, keep_entries: 30, keep_bytes: 1000, hold_bytes: 0 };
        let mut ledger = Ledger::new(policy, LogIndex(1000), LogIndex(1090), 900);
        assert!(!ledger.is_due());
        ledger.applied(LogIndex(1100), 50);
        assert!(ledger.is_due());
        assert_eq!(ledger.compact(LogIndex(1100)), Some(LogIndex(1070)));
    }
}
