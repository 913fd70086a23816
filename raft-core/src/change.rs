//! What can be asked to change about who belongs to the cluster, and what comes of it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::membership::Membership;
use crate::types::{LogIndex, NodeId};

/// A change of the [`Membership`], as complicated as one likes: it is made in one go. If the voters change, that takes two entries in the log, a
/// joint configuration and then the new one (paper, section 6; thesis, section 4.3); otherwise one is enough.
///
/// ```
/// use raft_core::{MembershipChange, NodeId};
/// // A dead server is replaced by one that has joined as a learner before, and the next learner joins.
/// let change = MembershipChange::new().remove(NodeId(3)).voter(NodeId(4)).learner(NodeId(5)).info(NodeId(5), "10.0.0.5:7000");
/// # assert_eq!(change.voters, [NodeId(4)]);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MembershipChange {
    /// Who is to vote from now on: learners, or servers that do not belong to the cluster yet.
    pub voters: Vec<NodeId>,
    /// Who is to get the log and not to vote: new members, or voters.
    pub learners: Vec<NodeId>,
    /// Who is to leave.
    pub removed: Vec<NodeId>,
    /// What is to be known of members besides their id; empty for nothing.
    pub info: Vec<(NodeId, Bytes)>,
    /// Which servers are meant by the ids of those who join: see [`Membership`]. That of a member never changes.
    ///
    /// Whoever joins must be introduced, here or in `info`, also as a founder's identity of 0: an id alone, of a server that perhaps does not exist, is refused.
    pub identities: Vec<(NodeId, u64)>,
    /// Do it although new voters lack part of the log or have not answered lately, or although those who are left may be too few to go on. For
    /// emergencies.
    ///
    /// Two things are refused all the same, because a change needs a majority of the voters before and of those after, and so could not be undone either: to
    /// bring in somebody who was not introduced ([`ChangeError::NotIntroduced`]), and new voters that have never answered this leader, if there is no majority
    /// without them ([`ChangeError::NoWayBack`]). Of a server that votes already, or has answered once, nobody can tell whether it will ever be back: where a forced
    /// change makes the cluster depend on one, it stands still until that one is there.
    pub forced: bool,
}

impl MembershipChange {
    /// Changes nothing yet.
    pub fn new() -> Self {
        MembershipChange::default()
    }

    /// Adds a voter, which must be introduced ([`identity`](Self::identity), [`info`](Self::info)), or promotes a learner.
    #[must_use]
    pub fn voter(mut self, id: NodeId) -> Self {
        self.voters.push(id);
        self
    }

    /// Adds a learner, which must be introduced ([`identity`](Self::identity), [`info`](Self::info)), or takes the vote from a voter.
    #[must_use]
    pub fn learner(mut self, id: NodeId) -> Self {
        self.learners.push(id);
        self
    }

    /// Removes a member.
    #[must_use]
    pub fn remove(mut self, id: NodeId) -> Self {
        self.removed.push(id);
        self
    }

    /// Replaces the information about a member.
    #[must_use]
    pub fn info(mut self, id: NodeId, info: impl Into<Bytes>) -> Self {
        self.info.push((id, info.into()));
        self
    }

    /// Says which server is meant by the id of one that joins.
    #[must_use]
    pub fn identity(mut self, id: NodeId, identity: u64) -> Self {
        self.identities.push((id, identity));
        self
    }

    /// See [`MembershipChange::forced`].
    #[must_use]
    pub fn forced(mut self) -> Self {
        self.forced = true;
        self
    }
}

/// Why a change of the membership was refused. Nothing was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// This server is not the leader. Go to `hint`, or try the others.
    #[error("not the leader")]
    NotLeader {
        /// The leader of the current term, if it is known.
        hint: Option<NodeId>,
    },
    /// This leader has not committed an entry of its term yet, so it does not know whether an earlier change is under way (Ongaro, 2015). Try
    /// again after a while.
    #[error("the leader is too new to change the membership; retry later")]
    TooEarly,
    /// Another change is under way: its entry is not committed, or the cluster is joint. Wait until it is complete.
    #[error("another change of the membership is under way, at index {index}")]
    InProgress {
        /// Where it is in the log.
        index: LogIndex,
    },
    /// Leadership is being handed over. Wait for the next leader, or until that has failed.
    #[error("leadership is being handed over to node {to}; retry later")]
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// A server that is to vote has not answered within an election timeout: the cluster might have to wait for it. Bring it in as a learner first, or force the
    /// change.
    #[error("node {0} cannot vote yet: it has not answered lately")]
    Silent(NodeId),
    /// A server that is to vote lacks too much of the log: the cluster might have to wait for it. Let it catch up as a learner, or force the change.
    #[error("node {id} cannot vote yet: it lacks {lag} entries, and {limit} are allowed")]
    NotCaughtUp {
        /// Which one.
        id: NodeId,
        /// How many entries it lacks, as far as the leader knows.
        lag: u64,
        /// How many it may lack: [`Config::max_promotion_lag`](crate::Config::max_promotion_lag).
        limit: u64,
    },
    /// Of those who would vote, no majority has been heard within an election timeout. Bring them back, or force the change.
    #[error("only {heard} of the {voters} voters that would remain have been heard lately: no majority")]
    QuorumAtRisk {
        /// How many have been heard, the leader included.
        heard: usize,
        /// How many there would be.
        voters: usize,
    },
    /// Even forced: without the new voters that have never answered this leader there is no majority, so that the cluster, if they do not exist, could never decide
    /// anything again, not even to be without them. Bring them in as learners first.
    #[error(
        "only {known} of the {voters} voters that would be are known to exist: no majority; add the others as learners first"
    )]
    NoWayBack {
        /// How many have a vote already or have answered this leader, the leader included.
        known: usize,
        /// How many there would be.
        voters: usize,
    },
    /// It is to join, and neither its identity nor anything about it is given. A server is added with these, as a learner; then it can be given its vote.
    #[error("node {0} is not a member: add it first")]
    NotIntroduced(NodeId),
    /// Nobody would be left to vote.
    #[error("no voter would be left")]
    NoVoters,
    /// It is no member.
    #[error("node {0} is not a member")]
    Unknown(NodeId),
    /// It is a member, and another server is meant by its id. If that one has lost its disk, remove it first, then add it again.
    #[error("node {0} is a member with another identity; remove it first")]
    OtherIdentity(NodeId),
    /// It is named more than once, or has no valid id.
    #[error("node {0} is named twice, or is none")]
    Contradiction(NodeId),
    /// There would be too many members.
    #[error("{members} members are more than the limit of {limit}")]
    TooMany {
        /// How many there would be.
        members: usize,
        /// How many there may be: [`Config::max_members`](crate::Config::max_members).
        limit: usize,
    },
    /// The membership is too large for an entry, because of what is to be known about its members.
    #[error("a membership of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// It is all as it should be already.
    #[error("the membership is like that already")]
    NothingChanges,
}

impl Membership {
    /// What comes of a change: the next configuration, which is joint if the voters change.
    ///
    /// # Errors
    /// It makes no sense. Not checked here is what depends on more than who the members are.
    pub fn changed(&self, change: &MembershipChange) -> Result<Membership, ChangeError> {
        let mut named: Vec<NodeId> =
            [&change.voters, &change.learners, &change.removed].into_iter().flatten().copied().collect();
        named.sort_unstable();
        let twice = named.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0]);
        if let Some(id) = twice.or_else(|| named.first().copied().filter(|id| id.0 == 0)) {
            return Err(ChangeError::Contradiction(id));
        }
        if let Some(id) = change.removed.iter().find(|id| !self.contains(**id)) {
            return Err(ChangeError::Unknown(*id));
        }
        let introduced = |id: NodeId| {
            change.identities.iter().any(|(other, _)| *other == id) || change.info.iter().any(|(other, _)| *other == id)
        };
        let mut stay_or_join = change.voters.iter().chain(&change.learners);
        if let Some(id) = stay_or_join.find(|id| !self.contains(**id) && !introduced(**id)) {
            return Err(ChangeError::NotIntroduced(*id));
        }
        let stay = |ids: &[NodeId], more: &[NodeId]| {
            let kept = ids.iter().filter(|id| named.binary_search(id).is_err());
            kept.chain(more).copied().collect::<Vec<_>>()
        };
        let voters = stay(self.voters(), &change.voters);
        let learners = stay(self.learners(), &change.learners);
        if voters.is_empty() {
            return Err(ChangeError::NoVoters);
        }
        let info = change.info.iter().cloned().collect::<BTreeMap<NodeId, Bytes>>();
        if let Some((id, _)) = change.info.iter().find(|(id, _)| !voters.contains(id) && !learners.contains(id)) {
            return Err(ChangeError::Unknown(*id));
        }
        let known = |id: &NodeId| voters.contains(id) || learners.contains(id);
        if let Some((id, _)) = change.identities.iter().find(|(id, _)| !known(id)) {
            return Err(ChangeError::Unknown(*id));
        }
        let other = |id: NodeId, identity| self.contains(id) && self.identity(id) != identity;
        if let Some((id, _)) = change.identities.iter().find(|(id, identity)| other(*id, *identity)) {
            return Err(ChangeError::OtherIdentity(*id));
        }
        let mut next = self.with_lists(voters, learners);
        for (id, identity) in &change.identities {
            next = next.with_identity(*id, *identity);
        }
        for (id, info) in info {
            next = next.with_info(id, info);
        }
        if next == *self { Err(ChangeError::NothingChanges) } else { Ok(next) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn n(id: u64) -> NodeId {
        NodeId(id)
    }

    fn three() -> Membership {
        Membership::of_voters([1, 2, 3].map(NodeId)).with_info(n(3), Bytes::from_static(b"three"))
    }

    fn ids(ids: &[NodeId]) -> Vec<u64> {
        ids.iter().map(|id| id.0).collect()
    }

    #[test]
    fn learners_and_information_come_and_go_without_a_joint_phase() {
        let with = three().changed(&MembershipChange::new().learner(n(4)).info(n(4), "four")).unwrap();
        assert!(!with.is_joint());
        assert_eq!((ids(with.voters()), ids(with.learners())), (vec![1, 2, 3], vec![4]));
        assert_eq!(with.info(n(4)), "four");
        let without = with.changed(&MembershipChange::new().remove(n(4))).unwrap();
        assert_eq!(without, three(), "what was known of it is gone, too");
        let renamed = three().changed(&MembershipChange::new().info(n(3), "")).unwrap();
        assert_eq!(renamed, Membership::of_voters([1, 2, 3].map(NodeId)));
    }

    #[test]
    fn an_identity_or_information_introduces_a_server() {
        let change = MembershipChange::new;
        let founder = three().changed(&change().learner(n(4)).identity(n(4), 0)).unwrap();
        assert_eq!((ids(founder.learners()), founder.identity(n(4))), (vec![4], 0));
        assert_eq!(ids(three().changed(&change().voter(n(4)).info(n(4), "four")).unwrap().voters()), [1, 2, 3, 4]);
        assert_eq!(ids(founder.changed(&change().voter(n(4))).unwrap().voters()), [1, 2, 3, 4], "once is enough");
    }

    #[test]
    fn a_change_of_voters_is_joint_until_it_is_left() {
        let change = MembershipChange::new().remove(n(3)).voter(n(4)).learner(n(2)).info(n(4), "four");
        let joint = three().changed(&change).unwrap();
        assert!(joint.is_joint());
        assert_eq!((ids(joint.voters()), ids(joint.outgoing())), (vec![1, 4], vec![1, 2, 3]));
        assert!(joint.contains(n(2)) && joint.contains(n(3)) && joint.info(n(3)) == "three");
        let left = joint.left();
        assert_eq!((ids(left.voters()), ids(left.outgoing()), ids(left.learners())), (vec![1, 4], vec![], vec![2]));
        assert!(!left.contains(n(3)) && left.info(n(3)).is_empty() && left.info(n(4)) == "four");
        assert_eq!(Membership::decode(&joint.encode()), Ok(joint));
        assert_eq!(Membership::decode(&left.encode()), Ok(left));
    }

    #[test]
    fn a_member_keeps_its_identity_until_it_leaves() {
        let change = MembershipChange::new;
        let four = three().changed(&change().learner(n(4)).identity(n(4), 44)).unwrap();
        assert_eq!((four.identity(n(4)), four.identity(n(3))), (44, 0));
        assert!(four.has_member(n(4), 44) && !four.has_member(n(4), 0) && !four.has_voter(n(4), 44));
        assert_eq!(four.changed(&change().identity(n(4), 45)), Err(ChangeError::OtherIdentity(n(4))));
        assert_eq!(four.changed(&change().voter(n(4)).identity(n(4), 44)).unwrap().identity(n(4)), 44);
        assert_eq!(four.changed(&change().identity(n(5), 1)), Err(ChangeError::Unknown(n(5))));
        let gone = four.changed(&change().remove(n(4))).unwrap();
        assert_eq!(gone.changed(&change().learner(n(4)).identity(n(4), 45)).unwrap().identity(n(4)), 45);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let new = MembershipChange::new;
        for (change, error) in [
            (new(), ChangeError::NothingChanges),
            (new().voter(n(2)), ChangeError::NothingChanges),
            (new().info(n(3), "three"), ChangeError::NothingChanges),
            (new().remove(n(4)), ChangeError::Unknown(n(4))),
            (new().info(n(4), "x"), ChangeError::Unknown(n(4))),
            (new().remove(n(3)).info(n(3), "x"), ChangeError::Unknown(n(3))),
            (new().voter(n(4)).learner(n(4)), ChangeError::Contradiction(n(4))),
            (new().remove(n(3)).remove(n(3)), ChangeError::Contradiction(n(3))),
            (new().learner(n(0)), ChangeError::Contradiction(n(0))),
            (new().voter(n(4)), ChangeError::NotIntroduced(n(4))),
            (new().voter(n(4)).forced(), ChangeError::NotIntroduced(n(4))),
            (new().learner(n(4)).voter(n(2)), ChangeError::NotIntroduced(n(4))),
            (new().learner(n(4)).learner(n(5)).identity(n(4), 0), ChangeError::NotIntroduced(n(5))),
            (new().remove(n(1)).remove(n(2)).remove(n(3)), ChangeError::NoVoters),
            (new().learner(n(1)).learner(n(2)).learner(n(3)), ChangeError::NoVoters),
        ] {
            assert_eq!(three().changed(&change), Err(error), "{change:?}");
        }
    }
}
