//! Who belongs to the cluster, and what makes a majority of it.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use std::collections::BTreeMap;
use std::fmt;

use bytes::{Buf, BufMut, Bytes};

use crate::types::{LogIndex, NodeId};

/// The members of a cluster. While a change is under way the cluster is *joint*: decisions need a majority of `voters` and
/// one of `outgoing` (paper, section 6).
///
/// It travels in the log, as the payload of an entry of kind [`EntryKind::Membership`](crate::EntryKind::Membership), and in snapshots. With each member goes
/// *information* that means nothing to Raft: its address and name, say, so that everyone who has the log knows how to reach everyone.
///
/// One who has lost its disk is another server, even if it comes back under the same id: it has forgotten what it voted for and acknowledged. So each member has
/// an *identity*, a number that is drawn anew for each empty disk; founders have the identity 0. A server that finds its id with another identity in a membership knows
/// that somebody else is meant, who had the id before. Whoever carries messages must know, too: what is meant for one identity must not
/// reach another.
///
/// Invariants: every list is sorted and free of duplicates and of node 0; a learner is not among the `voters` (but while joint, it may be one of
/// the `outgoing` who is to become a learner); only members have information, and an identity other than 0.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Membership(Box<Lists>);

/// What a membership consists of. It is large, and in a box, because it is part of what is moved with every write and hardly ever there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
struct Lists {
    voters: Vec<NodeId>,
    outgoing: Vec<NodeId>,
    learners: Vec<NodeId>,
    /// Without those who have none.
    info: BTreeMap<NodeId, Bytes>,
    /// Without those whose identity is 0.
    identities: BTreeMap<NodeId, u64>,
}

/// Why bytes are no [`Membership`]. They are damaged, or of another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The format is not known.
    #[error("format {0} of a membership is not known; a newer version may have written it")]
    Format(u8),
    /// The bytes end too early, or go on.
    #[error("a membership has the wrong length")]
    Length,
    /// A list is out of order, or the lists contradict one another.
    #[error("the lists of a membership contradict one another")]
    Lists,
}

/// Version of the encoding.
const FORMAT: u8 = 1;
/// Among so many voters one is found sooner from one end to the other than by halves.
const FEW: usize = 16;

impl Membership {
    /// A cluster of voters only.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Lists { voters: tidy(voters), ..Lists::default() }.into()
    }

    /// The voters of the (new) configuration, in order.
    pub fn voters(&self) -> &[NodeId] {
        &self.0.voters
    }

    /// Whether `id` votes, in the new configuration or in the one that is being left.
    pub fn is_voter(&self, id: NodeId) -> bool {
        // From one end to the other, if they are few: that is faster then.
        let among = |ids: &[NodeId]| if ids.len() <= FEW { ids.contains(&id) } else { ids.binary_search(&id).is_ok() };
        among(&self.0.voters) || among(&self.0.outgoing)
    }

    /// Whether `id` belongs to the cluster at all.
    pub fn contains(&self, id: NodeId) -> bool {
        self.is_voter(id) || self.0.learners.binary_search(&id).is_ok()
    }

    /// The voters of the configuration that is being left; empty unless the cluster is joint.
    pub fn outgoing(&self) -> &[NodeId] {
        &self.0.outgoing
    }

    /// Those who get the log and have no vote, in order.
    pub fn learners(&self) -> &[NodeId] {
        &self.0.learners
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.0.outgoing.is_empty()
    }

    /// What is known of a member besides its id; empty when that is nothing.
    pub fn info(&self, id: NodeId) -> Bytes {
        self.0.info.get(&id).cloned().unwrap_or_default()
    }

    /// The same with other information about one of its members; about anyone else there is none to be had.
    #[must_use]
    pub fn with_info(mut self, id: NodeId, info: Bytes) -> Self {
        if self.contains(id) && !info.is_empty() {
            self.0.info.insert(id, info);
        } else {
            self.0.info.remove(&id);
        }
        self
    }

    /// Which server is meant by the id of a member: 0 for founders.
    pub fn identity(&self, id: NodeId) -> u64 {
        self.0.identities.get(&id).copied().unwrap_or(0)
    }

    /// The same, in which the id of a member means this server.
    #[must_use]
    pub fn with_identity(mut self, id: NodeId, identity: u64) -> Self {
        if self.contains(id) && identity > 0 {
            self.0.identities.insert(id, identity);
        } else {
            self.0.identities.remove(&id);
        }
        self
    }

    /// Whether this very server votes.
    pub(crate) fn has_voter(&self, id: NodeId, identity: u64) -> bool {
        self.is_voter(id) && self.identity(id) == identity
    }

    /// Whether this very server is a member.
    pub(crate) fn has_member(&self, id: NodeId, identity: u64) -> bool {
        self.contains(id) && self.identity(id) == identity
    }

    /// The configuration with these voters and learners; joint, if these are other voters than before.
    pub(crate) fn with_lists(&self, voters: Vec<NodeId>, learners: Vec<NodeId>) -> Membership {
        let (voters, learners) = (tidy(voters), tidy(learners));
        let outgoing = if voters == self.0.voters { Vec::new() } else { self.0.voters.clone() };
        Membership::from(Lists { voters, outgoing, learners, ..(*self.0).clone() }).of_members()
    }

    /// What follows on a joint configuration: the voters that are being left are gone, unless they become learners.
    pub(crate) fn left(&self) -> Membership {
        Membership::from(Lists { outgoing: Vec::new(), ..(*self.0).clone() }).of_members()
    }

    /// Without what is known of those who are no members.
    fn of_members(mut self) -> Membership {
        let (mut info, mut identities) = (std::mem::take(&mut self.0.info), std::mem::take(&mut self.0.identities));
        info.retain(|id, _| self.contains(*id));
        identities.retain(|id, _| self.contains(*id));
        (self.0.info, self.0.identities) = (info, identities);
        self
    }

    /// How many members there are.
    pub(crate) fn size(&self) -> usize {
        self.members().len()
    }

    /// As bytes: `format u8 = 1`, then voters, outgoing and learners, each `count u32` and so many ids `u64`, then `count u32` of those with
    /// information, each `id u64, length u32, bytes`, then `count u32` of those with an identity, each `id u64, identity u64`. Numbers are big-endian.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        out.put_u8(FORMAT);
        for list in [&self.0.voters, &self.0.outgoing, &self.0.learners] {
            // A list of more than u32::MAX members does not fit into memory.
            out.put_u32(list.len() as u32);
            list.iter().for_each(|id| out.put_u64(id.0));
        }
        out.put_u32(self.0.info.len() as u32);
        for (id, info) in &self.0.info {
            out.put_u64(id.0);
            out.put_u32(info.len() as u32);
            out.put_slice(info);
        }
        out.put_u32(self.0.identities.len() as u32);
        for (id, identity) in &self.0.identities {
            out.put_u64(id.0);
            out.put_u64(*identity);
        }
        out.into()
    }

    /// Understands what [`encode`](Self::encode) has written.
    ///
    /// # Errors
    /// The bytes are damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, MembershipError> {
        let short = |_| MembershipError::Length;
        let mut rest = bytes;
        let format = rest.try_get_u8().map_err(short)?;
        if format != FORMAT {
            return Err(MembershipError::Format(format));
        }
        let mut list = || -> Result<Vec<NodeId>, MembershipError> {
            let count = rest.try_get_u32().map_err(short)?;
            (0..count).map(|_| rest.try_get_u64().map(NodeId).map_err(short)).collect()
        };
        let (voters, outgoing, learners) = (list()?, list()?, list()?);
        let mut membership = Membership::from(Lists { voters, outgoing, learners, ..Lists::default() });
        let count = rest.try_get_u32().map_err(short)?;
        for _ in 0..count {
            let id = NodeId(rest.try_get_u64().map_err(short)?);
            let length = rest.try_get_u32().map_err(short)? as usize;
            let info = rest.get(..length).ok_or(MembershipError::Length)?;
            rest.advance(length);
            if info.is_empty() || membership.0.info.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err(MembershipError::Lists);
            }
            membership.0.info.insert(id, Bytes::copy_from_slice(info));
        }
        let count = rest.try_get_u32().map_err(short)?;
        for _ in 0..count {
            let id = NodeId(rest.try_get_u64().map_err(short)?);
            let identity = rest.try_get_u64().map_err(short)?;
            if membership.0.identities.last_key_value().is_some_and(|(last, _)| *last >= id) {
                return Err(MembershipError::Lists);
            }
            membership.0.identities.insert(id, identity);
        }
        if !rest.is_empty() {
            return Err(MembershipError::Length);
        }
        if membership.is_sound() { Ok(membership) } else { Err(MembershipError::Lists) }
    }

    /// Whether the invariants hold.
    fn is_sound(&self) -> bool {
        let ascending = |ids: &[NodeId]| ids.windows(2).all(|w| w[0] < w[1]) && ids.first().is_none_or(|id| id.0 > 0);
        [&self.0.voters, &self.0.outgoing, &self.0.learners].into_iter().all(|ids| ascending(ids))
            && self.0.learners.iter().all(|id| self.0.voters.binary_search(id).is_err())
            && (self.0.outgoing.is_empty() || !self.0.voters.is_empty())
            && self.0.info.iter().all(|(&id, info)| self.contains(id) && !info.is_empty())
            && self.0.identities.iter().all(|(&id, identity)| self.contains(id) && *identity > 0)
    }

    /// All members, in order.
    pub fn members(&self) -> Vec<NodeId> {
        tidy([&self.0.voters, &self.0.outgoing, &self.0.learners].into_iter().flatten().copied())
    }

    /// Whether those for whom `has` is true form a majority (of both configurations while joint).
    pub(crate) fn has_quorum(&self, has: impl Fn(NodeId) -> bool) -> bool {
        let majority = |ids: &[NodeId]| ids.iter().filter(|&&id| has(id)).count() > ids.len() / 2;
        majority(&self.0.voters) && (self.0.outgoing.is_empty() || majority(&self.0.outgoing))
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
        let new = middle(&self.0.voters)?;
        Some(if self.0.outgoing.is_empty() { new } else { new.min(middle(&self.0.outgoing)?) })
    }

    /// The index that a majority has reached; zero without voters.
    pub(crate) fn committed(&self, match_index: impl Fn(NodeId) -> LogIndex) -> LogIndex {
        self.quorum_value(match_index).unwrap_or_default()
    }
}

impl From<Lists> for Membership {
    fn from(lists: Lists) -> Self {
        Membership(Box::new(lists))
    }
}

/// As if there were no box.
impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lists { voters, outgoing, learners, info, identities } = &*self.0;
        let mut lists = f.debug_struct("Membership");
        lists.field("voters", voters).field("outgoing", outgoing).field("learners", learners);
        lists.field("info", info).field("identities", identities).finish()
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
    fn bytes_and_back_and_nothing_else_is_believed() {
        let joint =
            Lists { outgoing: tidy([3, 4, 5].map(NodeId)), learners: tidy([5, 9].map(NodeId)), ..*of(&[1, 2, 3]).0 };
        let joint = Membership::from(joint);
        let joint =
            joint.with_info(NodeId(9), Bytes::from_static(b"nine")).with_info(NodeId(7), Bytes::from_static(b"nobody"));
        let joint = joint.with_identity(NodeId(4), 44).with_identity(NodeId(9), 99).with_identity(NodeId(7), 77);
        assert_eq!([4, 5, 7, 9].map(|id| joint.identity(NodeId(id))), [44, 0, 0, 99]);
        let bytes = joint.encode();
        assert_eq!(Membership::decode(&bytes), Ok(joint.clone()));
        assert_eq!(Membership::decode(&of(&[]).encode()), Ok(of(&[])));
        for cut in 0..bytes.len() {
            assert_eq!(Membership::decode(&bytes[..cut]), Err(MembershipError::Length), "{cut}");
        }
        assert_eq!(Membership::decode(&[&bytes[..], &[0]].concat()), Err(MembershipError::Length));
        assert_eq!(Membership::decode(&[2]), Err(MembershipError::Format(2)));
        assert_eq!(Membership::decode(&[1, 255, 255, 255, 255]), Err(MembershipError::Length));
        let unsound = [
            Lists { voters: vec![NodeId(2), NodeId(1)], ..Lists::default() },
            Lists { voters: vec![NodeId(0)], ..Lists::default() },
            Lists { learners: vec![NodeId(1)], ..*of(&[1]).0 },
            Lists { outgoing: vec![NodeId(1)], ..Lists::default() },
            Lists { info: BTreeMap::from([(NodeId(4), Bytes::from_static(b"x"))]), ..*of(&[1]).0 },
            Lists { identities: BTreeMap::from([(NodeId(4), 1)]), ..*of(&[1]).0 },
            Lists { identities: BTreeMap::from([(NodeId(1), 0)]), ..*of(&[1]).0 },
        ];
        for membership in unsound.map(Membership::from) {
            assert_eq!(Membership::decode(&membership.encode()), Err(MembershipError::Lists), "{membership:?}");
        }
    }

    #[test]
    fn a_joint_cluster_needs_both_majorities() {
        let joint = Lists { outgoing: tidy([3, 4, 5].map(NodeId)), ..*of(&[1, 2, 3]).0 };
        let joint = Membership::from(joint);
        assert!(!joint.has_quorum(|id| id.0 <= 2));
        assert!(joint.has_quorum(|id| (2..=4).contains(&id.0)));
        assert_eq!(joint.committed(|id| LogIndex(10 - id.0)), LogIndex(6));
    }
}
