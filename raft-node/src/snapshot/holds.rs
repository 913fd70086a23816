//! What stays in a leader's log for followers that are getting a snapshot.
//!
//! Whoever has taken one over goes on with the entry behind it. If the log did not reach back that far any more, it would need another snapshot, and then another: whenever the
//! log is compacted faster than a snapshot gets across, for ever. So the entries behind a snapshot stay from the moment when it is asked for until its follower has all that the log
//! would lose, within a limit: a follower that takes too long must not fill the disk.

use std::collections::BTreeMap;

use raft_core::{FollowerStatus, LogIndex, NodeId};

/// Who needs what.
///
/// Invariant: whatever `behind` names, the log is held there since the earliest `since` among those that name it or less; nobody makes that time begin anew.
#[derive(Debug, Default)]
pub(crate) struct Holds(BTreeMap<NodeId, Hold>);

#[derive(Debug)]
struct Hold {
    /// Entries behind this one will be needed.
    behind: LogIndex,
    /// Bytes that had been applied when the log began to be held there.
    since: u64,
    /// Names the transfer.
    epoch: u64,
    /// It broke off, and has not been tried again; and it was so when the log was to be compacted before.
    failed: bool,
    struck: bool,
}

/// The log is to be compacted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    /// It begins behind this entry.
    pub(crate) start: LogIndex,
    /// It is to begin behind this one.
    pub(crate) wanted: LogIndex,
    /// Whether that is new, and not what was put off before.
    pub(crate) is_new: bool,
    /// Bytes that have been applied, and how many may be while a place is held.
    pub(crate) applied_bytes: u64,
    pub(crate) most_bytes: u64,
}

impl Holds {
    /// `to` will need the entries behind `behind`; so many bytes have been applied by now.
    pub(crate) fn begin(&mut self, to: NodeId, epoch: u64, behind: LogIndex, applied_bytes: u64) {
        // What is held already has been for as long as it is; else two that fail in turn would hold it for ever.
        let held = self.0.values().filter(|hold| hold.behind >= behind).map(|hold| hold.since).min();
        let since = held.unwrap_or(applied_bytes);
        let hold = self.0.entry(to).or_insert(Hold { behind, since, epoch, failed: false, struck: false });
        (hold.behind, hold.epoch, hold.failed) = (behind, epoch, false);
    }

    /// The transfer to `to` broke off.
    pub(crate) fn failed(&mut self, to: NodeId, epoch: u64) {
        if let Some(hold) = self.0.get_mut(&to).filter(|hold| hold.epoch == epoch) {
            hold.failed = true;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How far the log may be compacted for now. Forgets those who need nothing any more, or cannot be helped: nobody but a leader has `followers`.
    pub(crate) fn limit(&mut self, wish: Wish, followers: &[FollowerStatus]) -> LogIndex {
        let mut limit = wish.wanted;
        self.0.retain(|id, hold| {
            let Some(follower) = followers.iter().find(|follower| follower.id == *id) else { return false };
            hold.behind = hold.behind.max(follower.match_index);
            // Between the end of a transfer and the moment when it has been taken over there is no snapshot on its way, and the follower has nothing yet.
            let has_all = follower.snapshot.is_none() && follower.match_index >= wish.wanted;
            if has_all || hold.behind < wish.start {
                return false;
            }
            let gone = hold.failed && hold.struck;
            hold.struck = if wish.is_new { hold.failed } else { hold.struck };
            if !gone && wish.applied_bytes.saturating_sub(hold.since) <= wish.most_bytes {
                limit = limit.min(hold.behind);
            }
            true
        });
        // One that has ended stays as long as others hold the same: it must not begin anew.
        self.0.retain(|_, hold| hold.behind >= limit);
        limit
    }
}

#[cfg(test)]
pub(super) mod tests {
    use raft_core::{Instant, MemberRole, SnapshotStatus};

    use super::*;

    pub(in crate::snapshot) fn follower(id: u64, at: u64, is_sent: bool) -> FollowerStatus {
        FollowerStatus {
            id: NodeId(id),
            member: MemberRole::Voter,
            match_index: LogIndex(at),
            next_index: LogIndex(at + 1),
            probing: false,
            inflight_appends: 0,
            inflight_bytes: 0,
            snapshot: is_sent.then_some(SnapshotStatus { at_least: LogIndex(1), since: Instant(0) }),
            missing_entries: 0,
            missing_bytes: 0,
            missing_is_exact: true,
            silent_for: std::time::Duration::ZERO,
        }
    }

    const WANTED: LogIndex = LogIndex(1000);

    /// The log is to be compacted; 100 bytes may be applied meanwhile.
    fn wish(applied_bytes: u64) -> Wish {
        Wish { start: LogIndex(5), wanted: WANTED, is_new: true, applied_bytes, most_bytes: 100 }
    }

    #[test]
    fn what_lies_behind_a_snapshot_stays_until_its_follower_has_it() {
        let mut holds = Holds::default();
        assert_eq!(holds.limit(wish(0), &[follower(2, 5, false)]), WANTED, "nobody needs anything");
        holds.begin(NodeId(2), 1, LogIndex(10), 0);
        assert_eq!(holds.limit(wish(50), &[follower(2, 0, true), follower(3, 7, false)]), LogIndex(10));
        // The file that is sent reaches further than what was asked for.
        holds.begin(NodeId(2), 1, LogIndex(300), 60);
        assert_eq!(holds.limit(wish(60), &[follower(2, 0, true)]), LogIndex(300));
        assert_eq!(holds.limit(wish(70), &[follower(2, 300, false)]), LogIndex(300), "it has taken it over");
        assert_eq!(holds.limit(wish(80), &[follower(2, 700, false)]), LogIndex(700), "it catches up");
        assert_eq!(holds.limit(wish(90), &[follower(2, 1000, false)]), WANTED);
        assert!(holds.is_empty());
    }

    #[test]
    fn a_follower_that_has_the_file_and_has_not_taken_it_over_is_waited_for() {
        let mut holds = Holds::default();
        holds.begin(NodeId(2), 1, LogIndex(1200), 0);
        // Nothing is lost to it yet, and it needs the hold later.
        assert_eq!(holds.limit(wish(10), &[follower(2, 0, false)]), WANTED);
        let next = Wish { wanted: LogIndex(2000), ..wish(20) };
        assert_eq!(holds.limit(next, &[follower(2, 0, false)]), LogIndex(1200));
    }

    #[test]
    fn it_ends_with_the_limit_with_failures_and_with_the_leadership() {
        let sent = [follower(2, 0, true)];
        let held = || {
            let mut holds = Holds::default();
            holds.begin(NodeId(2), 1, LogIndex(10), 1000);
            holds
        };
        let mut long = held();
        // Trying again is no reason to wait longer.
        long.begin(NodeId(2), 1, LogIndex(20), 1050);
        assert_eq!(long.limit(wish(1100), &sent), LogIndex(20));
        assert_eq!(long.limit(wish(1101), &sent), WANTED);
        assert!(long.is_empty());

        let mut broken = held();
        broken.failed(NodeId(2), 1);
        assert_eq!(broken.limit(wish(1000), &sent), LogIndex(10), "it may go on in a moment");
        broken.begin(NodeId(2), 2, LogIndex(20), 1000);
        // What an older transfer ends with says nothing about this one.
        broken.failed(NodeId(2), 1);
        assert_eq!(broken.limit(wish(1000), &sent), LogIndex(20), "it goes on");
        broken.failed(NodeId(2), 2);
        assert_eq!(broken.limit(wish(1000), &sent), LogIndex(20));
        let again = Wish { is_new: false, ..wish(1000) };
        assert_eq!(held().limit(again, &sent), LogIndex(10));
        assert_eq!(broken.limit(wish(1000), &sent), WANTED, "twice in a row");

        assert_eq!(held().limit(wish(1000), &[]), WANTED, "another leads");
        assert_eq!(held().limit(wish(1000), &[follower(3, 0, true)]), WANTED, "it was removed");
        let gone = Wish { start: LogIndex(50), ..wish(1000) };
        assert_eq!(held().limit(gone, &sent), WANTED, "the log does not have it any more");
    }

    #[test]
    fn two_that_fail_in_turn_do_not_hold_the_log_for_ever() {
        let (mut holds, both) = (Holds::default(), [follower(2, 0, true), follower(3, 0, true)]);
        let ends = (0..1000).find(|round| {
            // The file is the same as long as the log reaches back to it.
            let (now, id) = (round * 40, NodeId(2 + round % 2));
            holds.begin(id, 1, LogIndex(10), now);
            holds.limit(wish(now), &both) == WANTED
        });
        assert_eq!(ends, Some(3), "120 bytes after the first");
    }
}
