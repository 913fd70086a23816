//! Who belongs to the cluster, and what makes a majority of it.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::types::{LogIndex, NodeId};

/// The members of a cluster. While a change is under way the cluster is *joint*: decisions need a majority of `voters` and
/// one of `outgoing` (paper, section 6).
///
/// Invariants: every list is sorted and free of duplicates and of node 0; a learner is not a voter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Membership {
    voters: Vec<NodeId>,
    outgoing: Vec<NodeId>,
    learners: Vec<NodeId>,
}

impl Membership {
    /// A cluster of voters only.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Membership { voters: tidy(voters), ..Membership::default() }
    }

    /// The voters of the (new) configuration, in order.
    pub fn voters(&self) -> &[NodeId] {
        &self.voters
    }

    /// Whether `id` votes, in the new configuration or in the one that is being left.
    pub fn is_voter(&self, id: NodeId) -> bool {
        self.voters.binary_search(&id).is_ok() || self.outgoing.binary_search(&id).is_ok()
    }

    /// Whether `id` belongs to the cluster at all.
    pub fn contains(&self, id: NodeId) -> bool {
        self.is_voter(id) || self.learners.binary_search(&id).is_ok()
    }

    /// All members, in order.
    pub fn members(&self) -> Vec<NodeId> {
        tidy([&self.voters, &self.outgoing, &self.learners].into_iter().flatten().copied())
    }

    /// Whether those for whom `has` is true form a majority (of both configurations while joint).
    pub(crate) fn has_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let majority = |ids: &[NodeId]| ids.iter().filter(|&&id| has(id)).count() > ids.len() / 2;
        majority(&self.voters) && (self.outgoing.is_empty() || majority(&self.outgoing))
    }

    /// Whether those for whom `refused` is true make a majority impossible.
    pub(crate) fn is_lost(&self, refused: impl Fn(NodeId) -> bool) -> bool {
        !self.has_quorum(|id| !refused(id))
    }

    /// The greatest value that a majority has reached (the commit rule, paper, section 5.3). Works on a sorted *copy*; with an even
    /// number of voters the lower middle counts.
    pub(crate) fn quorum_value<T: Ord + Copy>(&self, value: impl Fn(NodeId) -> T) -> Option<T> {
        // Of n ascending values, the one at (n-1)/2 is reached by n - (n-1)/2 > n/2 members.
        let middle = |ids: &[NodeId]| match *ids {
            [] => None,
            [a] => Some(value(a)),
            // The usual clusters, on the path of every acknowledgement, without an allocation.
            [a, b, c] => {
                let (a, b, c) = (value(a), value(b), value(c));
                Some(a.max(b).min(a.min(b).max(c)))
            }
            [a, ..] if ids.len() <= 9 => {
                let mut values = [value(a); 9];
                values.iter_mut().zip(ids).for_each(|(slot, &id)| *slot = value(id));
                let values = &mut values[..ids.len()];
                values.sort_unstable();
                Some(values[(values.len() - 1) / 2])
            }
            _ => {
                let mut values: Vec<T> = ids.iter().map(|&id| value(id)).collect();
                values.sort_unstable();
                Some(values[(values.len() - 1) / 2])
            }
        };
        let new = middle(&self.voters)?;
        Some(if self.outgoing.is_empty() { new } else { new.min(middle(&self.outgoing)?) })
    }

    /// The index that a majority has reached; zero without voters.
    pub(crate) fn committed(&self, match_index: impl Fn(NodeId) -> LogIndex) -> LogIndex {
        self.quorum_value(match_index).unwrap_or_default()
    }
}

fn tidy(ids: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = ids.into_iter().filter(|id| id.0 != 0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ids: &[u64]) -> Membership {
        Membership::of_voters(ids.iter().copied().map(NodeId))
    }

    #[test]
    fn the_commit_index_is_what_a_majority_has() {
        let value = |values: &'static [u64]| move |id: NodeId| LogIndex(values[id.0 as usize - 1]);
        assert_eq!(of(&[1]).committed(value(&[7])), LogIndex(7));
        assert_eq!(of(&[1, 2]).committed(value(&[7, 3])), LogIndex(3));
        for three in [[9, 2, 5], [9, 5, 2], [2, 9, 5], [2, 5, 9], [5, 2, 9], [5, 9, 2]] {
            assert_eq!(of(&[1, 2, 3]).committed(|id| LogIndex(three[id.0 as usize - 1])), LogIndex(5));
        }
        assert_eq!(of(&[1, 2, 3, 4]).committed(value(&[9, 2, 5, 7])), LogIndex(5));
        assert_eq!(of(&[1, 2, 3, 4, 5]).committed(value(&[1, 2, 3, 4, 5])), LogIndex(3));
        assert_eq!(of(&[]).committed(value(&[])), LogIndex::ZERO);
        let ten: Vec<u64> = (1..=10).collect();
        assert_eq!(of(&ten).committed(|id| LogIndex(11 - id.0)), LogIndex(5));
    }

    #[test]
    fn a_joint_cluster_needs_both_majorities() {
        let joint = Membership { outgoing: tidy([3, 4, 5].map(NodeId)), ..of(&[1, 2, 3]) };
        assert!(!joint.has_quorum(|id| id.0 <= 2));
        assert!(joint.has_quorum(|id| (2..=4).contains(&id.0)));
        assert_eq!(joint.committed(|id| LogIndex(10 - id.0)), LogIndex(6));
    }
}
