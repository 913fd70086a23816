//! What stays in a leader's log for followers that are getting a snapshot.
//!
//! Whoever has taken one over goes on with the entry behind it. If the log does not reach back that far any more, it needs another snapshot, and then another: whenever the
//! log is compacted faster than a snapshot gets across, for ever. So the entries behind a snapshot stay from the moment when it is asked for until its follower needs them no
//! longer, within a limit: a follower that takes too long must not fill the disk.

use std::collections::BTreeMap;

use raft_core::{FollowerStatus, LogIndex, NodeId};

/// Who needs what.
#[derive(Debug, Default)]
pub(crate) struct Holds(BTreeMap<NodeId, Hold>);

#[derive(Debug)]
struct Hold {
    /// Entries behind this one will be needed.
    behind: LogIndex,
    /// Bytes that had been applied when it began.
    since: u64,
    /// The transfer broke off. If it is tried again, it holds again.
    failed: bool,
}

impl Holds {
    /// `to` will need the entries behind `behind`; so many bytes have been applied by now. Trying again does not begin anew: else the limit would be none.
    pub(crate) fn begin(&mut self, to: NodeId, behind: LogIndex, applied_bytes: u64) {
        let hold = self.0.entry(to).or_insert(Hold { behind, since: applied_bytes, failed: false });
        (hold.behind, hold.failed) = (behind, false);
    }

    /// The transfer to `to` broke off.
    pub(crate) fn failed(&mut self, to: NodeId) {
        if let Some(hold) = self.0.get_mut(&to) {
            hold.failed = true;
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The log would be compacted up to `wanted`: how far it may be, for now. Forgets those who need nothing any more: nobody but a leader has `followers`.
    pub(crate) fn limit(
        &mut self,
        wanted: LogIndex,
        applied_bytes: u64,
        most_bytes: u64,
        followers: &[FollowerStatus],
    ) -> LogIndex {
        let mut limit = wanted;
        self.0.retain(|id, hold| {
            let Some(follower) = followers.iter().find(|follower| follower.id == *id) else { return false };
            let needed = hold.behind.max(follower.match_index);
            let over = hold.failed || applied_bytes.saturating_sub(hold.since) > most_bytes;
            if over || (follower.snapshot.is_none() && needed >= wanted) {
                return false;
            }
            limit = limit.min(needed);
            true
        });
        limit
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{Instant, MemberRole, SnapshotStatus};

    use super::*;

    fn follower(id: u64, at: u64, is_sent: bool) -> FollowerStatus {
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
        }
    }

    const WANTED: LogIndex = LogIndex(1000);

    #[test]
    fn what_lies_behind_a_snapshot_stays_until_its_follower_has_it() {
        let mut holds = Holds::default();
        assert_eq!(holds.limit(WANTED, 0, 100, &[follower(2, 5, false)]), WANTED, "nobody needs anything");
        holds.begin(NodeId(2), LogIndex(10), 0);
        assert_eq!(holds.limit(WANTED, 50, 100, &[follower(2, 0, true), follower(3, 7, false)]), LogIndex(10));
        // The file that is sent reaches further than what was asked for.
        holds.begin(NodeId(2), LogIndex(300), 60);
        assert_eq!(holds.limit(WANTED, 60, 100, &[follower(2, 0, true)]), LogIndex(300));
        assert_eq!(holds.limit(WANTED, 70, 100, &[follower(2, 300, false)]), LogIndex(300), "it has taken it over");
        assert_eq!(holds.limit(WANTED, 80, 100, &[follower(2, 700, false)]), LogIndex(700), "it catches up");
        assert_eq!(holds.limit(WANTED, 90, 100, &[follower(2, 1000, false)]), WANTED);
        assert!(holds.is_empty());
    }

    #[test]
    fn it_ends_with_the_limit_with_a_failure_and_with_the_leadership() {
        let sent = [follower(2, 0, true)];
        let held = || {
            let mut holds = Holds::default();
            holds.begin(NodeId(2), LogIndex(10), 1000);
            holds
        };
        let mut long = held();
        // Trying again is no reason to wait longer.
        long.begin(NodeId(2), LogIndex(20), 1050);
        assert_eq!(long.limit(WANTED, 1100, 100, &sent), LogIndex(20));
        assert_eq!(long.limit(WANTED, 1101, 100, &sent), WANTED);
        assert!(long.is_empty());

        let mut broken = held();
        broken.failed(NodeId(2));
        broken.begin(NodeId(2), LogIndex(20), 1000);
        assert_eq!(broken.limit(WANTED, 1000, 100, &sent), LogIndex(20), "it goes on");
        broken.failed(NodeId(2));
        assert_eq!(broken.limit(WANTED, 1000, 100, &sent), WANTED);

        assert_eq!(held().limit(WANTED, 1000, 100, &[]), WANTED, "another leads");
        assert_eq!(held().limit(WANTED, 1000, 100, &[follower(3, 0, true)]), WANTED, "it was removed");
    }
}
