//! The memberships that the log knows of.

use std::sync::Arc;

use crate::membership::Membership;
use crate::types::{LogIndex, NodeId};

/// Every membership in the log, and the one that held where the log begins. A server uses the newest one that it has, committed or not (paper,
/// section 6); so when entries are truncated, the one before counts again.
///
/// Invariants: never empty; indices ascend strictly; the first one is where the log begins, or below.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Memberships {
    all: Vec<(LogIndex, Arc<Membership>)>,
    /// Index of the newest: it is asked several times with every output.
    index: LogIndex,
}

impl Memberships {
    /// The membership as of the start of the log, and those in the log after it, which ascend in index.
    pub(crate) fn new(start: LogIndex, membership: Membership, changes: Vec<(LogIndex, Membership)>) -> Self {
        let all = std::iter::once((start, membership)).chain(changes);
        let all = all.map(|(index, membership)| (index, Arc::new(membership))).collect();
        let mut memberships = Memberships { all, index: start };
        memberships.index = memberships.newest().0;
        memberships
    }

    fn newest(&self) -> &(LogIndex, Arc<Membership>) {
        // Never empty.
        &self.all[self.all.len() - 1]
    }

    /// The membership that counts.
    pub(crate) fn current(&self) -> &Membership {
        &self.newest().1
    }

    /// The same, to keep.
    pub(crate) fn shared(&self) -> &Arc<Membership> {
        &self.newest().1
    }

    /// The membership that would count if the newest change were truncated, if the log still knows of it.
    pub(crate) fn before(&self) -> Option<&Membership> {
        self.all.len().checked_sub(2).map(|at| &*self.all[at].1)
    }

    /// Index of the entry that brought it, or of the start of the log.
    pub(crate) fn index(&self) -> LogIndex {
        self.index
    }

    /// The membership as of the entry at `index`, which must not be below the start of the log.
    pub(crate) fn at(&self, index: LogIndex) -> &Membership {
        let after = self.all.partition_point(|(at, _)| *at <= index);
        &self.all[after.saturating_sub(1)].1
    }

    /// Whether it was a member by any of them.
    pub(crate) fn knows(&self, id: NodeId) -> bool {
        self.all.iter().any(|(_, membership)| membership.contains(id))
    }

    /// An entry that changes it was appended.
    pub(crate) fn push(&mut self, index: LogIndex, membership: Membership) {
        debug_assert!(index > self.index(), "appends ascend");
        self.all.push((index, Arc::new(membership)));
        self.index = index;
    }

    /// Entries from `from` on are gone. Whether that changed what counts.
    pub(crate) fn truncate(&mut self, from: LogIndex) -> bool {
        let keep = self.all.partition_point(|(at, _)| *at < from).max(1);
        let changed = keep < self.all.len();
        self.all.truncate(keep);
        self.index = self.newest().0;
        changed
    }

    /// The log begins after `index` now: what was replaced by then is of no use any more.
    pub(crate) fn purge(&mut self, index: LogIndex) {
        let after = self.all.partition_point(|(at, _)| *at <= index);
        self.all.drain(..after.saturating_sub(1));
    }

    /// Panics when an invariant is broken.
    pub(crate) fn check(&self, start: LogIndex, last: LogIndex) {
        assert_eq!(self.index, self.newest().0, "the newest is another: {self:?}");
        assert!(self.all.windows(2).all(|w| w[0].0 < w[1].0), "memberships do not ascend: {self:?}");
        assert!(
            self.all.first().is_some_and(|(at, _)| *at <= start),
            "no membership for the start of the log: {self:?}"
        );
        assert!(self.index() <= last, "a membership that is not in the log: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(n: u64) -> Membership {
        Membership::of_voters((1..=n).map(NodeId))
    }

    #[test]
    fn the_newest_counts_and_truncation_brings_back_the_one_before() {
        let mut all = Memberships::new(LogIndex(4), of(1), vec![(LogIndex(6), of(2))]);
        all.push(LogIndex(9), of(3));
        assert_eq!((all.current(), all.index()), (&of(3), LogIndex(9)));
        assert_eq!([4, 5, 6, 8, 9, 20].map(|i| all.at(LogIndex(i)).voters().len()), [1, 1, 2, 2, 3, 3]);
        assert!(!all.truncate(LogIndex(10)));
        assert!(all.truncate(LogIndex(7)));
        assert_eq!((all.current(), all.index()), (&of(2), LogIndex(6)));
        all.push(LogIndex(7), of(4));
        all.purge(LogIndex(6));
        all.check(LogIndex(6), LogIndex(7));
        assert_eq!(all.at(LogIndex(6)), &of(2));
        assert!(all.knows(NodeId(4)) && !all.knows(NodeId(5)));
        all.purge(LogIndex(6));
        assert!(all.truncate(LogIndex(7)) && !all.truncate(LogIndex(1)), "the one at the start stays");
        assert_eq!(all.current(), &of(2));
        assert!(all.knows(NodeId(2)) && !all.knows(NodeId(4)), "what is gone is forgotten");
    }
}
