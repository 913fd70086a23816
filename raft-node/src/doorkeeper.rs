//! Tells the members from those who have come back under a member's id with an empty disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_core::{GroupId, Membership, NodeId};
use raft_net::{PeerCheck, Unwelcome};
use raft_storage::{Acquaintance, KnownPeers};

/// Decides who is let in.
///
/// Of a member that joined a running group the log says which one it is ([`Membership::identity`]). Of one with whom a group began, the first that was seen is
/// the one, on this node, for ever.
///
/// A link serves all groups, so who comes in must be the one that is meant in every group that is open here. A node that has lost its disk is let in again once
/// it has been removed from all groups that it shares with this one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doorkeeper {
    /// `None` where the storage was brought by the user, who then vouches for the peers.
    known: Option<KnownPeers>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// What the groups that are open say of their members: identity 0 is that of one with whom the group began. Each with the number of groups that say so.
    named: BTreeMap<NodeId, BTreeMap<u64, usize>>,
    groups: HashMap<GroupId, Vec<(NodeId, u64)>>,
    /// The members of groups that are on the disk, and not open. Who belongs to one of them is not forgotten.
    dormant: BTreeMap<GroupId, Vec<NodeId>>,
    /// Who came in last under each id.
    present: BTreeMap<NodeId, u128>,
}

/// What [`Membership::identity`] says of a node with this data directory, if it joins a running cluster.
pub(crate) fn identity_of(incarnation: u128) -> u64 {
    // Never 0, which stands for those with whom the cluster began.
    (incarnation as u64) | 1
}

impl Doorkeeper {
    /// `dormant`: the members of all groups that are on the disk.
    pub(crate) fn new(known: KnownPeers, dormant: BTreeMap<GroupId, Vec<NodeId>>) -> Self {
        Doorkeeper { known: Some(known), state: Arc::new(Mutex::new(State { dormant, ..State::default() })) }
    }

    /// For the transport.
    pub(crate) fn check(&self) -> PeerCheck {
        let own = self.clone();
        PeerCheck(Arc::new(move |peer, incarnation| {
            let mut state = own.lock();
            own.judge(&state, peer, incarnation)?;
            state.present.insert(peer, incarnation);
            Ok(())
        }))
    }

    /// The membership of a group that is open, or is opened with this. Returns who is here and is not the one that is meant.
    pub(crate) fn follow(&self, group: GroupId, membership: &Membership) -> Vec<NodeId> {
        let members = membership.members();
        let now: Vec<_> = members.iter().map(|id| (*id, membership.identity(*id))).collect();
        let mut state = self.lock();
        let before = state.groups.insert(group, now.clone());
        let opened = before.is_none();
        for (id, identity) in &now {
            *state.named.entry(*id).or_default().entry(*identity).or_default() += 1;
        }
        let gone = state.forget_naming(&before.unwrap_or_default());
        let last_of_all = opened && state.dormant.remove(&group).is_some() && state.dormant.is_empty();
        // A group that waits to be joined knows of nobody.
        if (gone || last_of_all) && !state.named.is_empty() {
            self.forget(&state);
        }
        let present = now.iter().filter_map(|(id, _)| Some((*id, *state.present.get(id)?)));
        present.filter(|(id, incarnation)| self.judge(&state, *id, *incarnation).is_err()).map(|(id, _)| id).collect()
    }

    /// The group is not open any more; it stays on the disk.
    pub(crate) fn leave(&self, group: GroupId) {
        let mut state = self.lock();
        let members = state.groups.remove(&group).unwrap_or_default();
        state.dormant.insert(group, members.iter().map(|(id, _)| *id).collect());
        state.forget_naming(&members);
    }

    /// Nothing is left on the disk of a group that is not open.
    pub(crate) fn delete(&self, group: GroupId) {
        let mut state = self.lock();
        let members = state.dormant.remove(&group).unwrap_or_default();
        if !state.named.is_empty() && members.iter().any(|id| !state.named.contains_key(id)) {
            self.forget(&state);
        }
    }

    fn judge(&self, state: &State, peer: NodeId, incarnation: u128) -> Result<(), Unwelcome> {
        let named = state.named.get(&peer);
        let is_meant = named.is_none_or(|named| named.keys().all(|id| *id == 0 || *id == identity_of(incarnation)));
        let is_founder = named.is_none_or(|named| named.contains_key(&0));
        let known = match &self.known {
            _ if !is_meant => false,
            Some(known) if is_founder => match known.meet(peer, incarnation) {
                Ok(acquaintance) => acquaintance == Acquaintance::Known,
                Err(error) => return Err(Unwelcome::CannotTell(format!("cannot tell who it is: {error}"))),
            },
            _ => true,
        };
        if known {
            return Ok(());
        }
        Err(Unwelcome::Another(format!(
            "node {peer} is known here with another data directory. If its disk was lost: `raft-node member remove {peer}`, \
             start it with an empty directory and --join, then `raft-node member add {peer} ADDRESS`"
        )))
    }

    /// Forgets those who belong to no group any more: who comes back later is another.
    fn forget(&self, state: &State) {
        let Some(known) = &self.known else { return };
        let dormant = state.dormant.values().flatten();
        let members: BTreeSet<NodeId> = state.named.keys().chain(dormant).copied().collect();
        if let Err(error) = known.retain(&members.into_iter().collect::<Vec<_>>()) {
            // Then somebody who comes back as a member of another identity is still judged by the log.
            tracing::warn!(%error, "cannot forget former members");
        }
    }

    /// Nothing here is left half-done by a panic.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A group does not name these any more. Whether one of them is named by none.
    fn forget_naming(&mut self, members: &[(NodeId, u64)]) -> bool {
        let mut gone = false;
        for (id, identity) in members {
            let Some(named) = self.named.get_mut(id) else { continue };
            if let Some(count) = named.get_mut(identity) {
                *count -= 1;
            }
            named.retain(|_, count| *count > 0);
            if named.is_empty() {
                self.named.remove(id);
                gone = true;
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use raft_storage::{Identity, Options, RocksStorage};

    use super::*;

    const G: [GroupId; 4] = [GroupId(0), GroupId(1), GroupId(2), GroupId(3)];

    fn of(ids: &[u64]) -> Membership {
        Membership::of_voters(ids.iter().map(|id| NodeId(*id)))
    }

    #[test]
    fn of_who_joined_the_log_says_which_one_is_meant() {
        let doorkeeper = Doorkeeper::default();
        let check = doorkeeper.check();
        let membership = of(&[1, 2]).with_identity(NodeId(2), identity_of(1 << 70 | 6));
        assert!(doorkeeper.follow(G[1], &membership).is_empty());
        assert_eq!((check.0)(NodeId(2), 1 << 70 | 6), Ok(()));
        let Err(Unwelcome::Another(why)) = (check.0)(NodeId(2), 8) else { panic!("it is another") };
        assert!(why.contains("raft-node member remove 2"), "it says what to do: {why}");
        assert_eq!((check.0)(NodeId(1), 8), Ok(()));
    }

    struct Bench {
        storage: Option<RocksStorage>,
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { storage: None, dir: tempfile::tempdir().unwrap() }
        }

        /// The node was started again, with these groups on its disk.
        fn start(&mut self, dormant: &[(GroupId, &[u64])]) -> (Doorkeeper, PeerCheck) {
            self.storage = None;
            let storage =
                RocksStorage::open(self.dir.path(), &Identity::new("test", NodeId(1)), &Options::default()).unwrap();
            let dormant = dormant.iter().map(|(group, ids)| (*group, ids.iter().map(|id| NodeId(*id)).collect()));
            let doorkeeper = Doorkeeper::new(storage.known_peers(GroupId::FIRST).unwrap(), dormant.collect());
            self.storage = Some(storage);
            (doorkeeper.clone(), doorkeeper.check())
        }
    }

    #[test]
    fn a_founder_of_any_group_is_known_for_as_long_as_it_belongs_to_one() {
        let mut bench = Bench::new();
        let (doorkeeper, check) = bench.start(&[]);
        doorkeeper.follow(G[1], &of(&[1, 2]));
        doorkeeper.follow(G[2], &of(&[1, 2]));
        assert!((check.0)(NodeId(2), 5).is_ok() && (check.0)(NodeId(2), 6).is_err());
        doorkeeper.follow(G[1], &of(&[1]));
        assert!((check.0)(NodeId(2), 6).is_err(), "it belongs to the other group");
        // A group that is stopped, or not opened yet, still has its members.
        doorkeeper.leave(G[2]);
        doorkeeper.follow(G[3], &of(&[1, 3]));
        doorkeeper.follow(G[3], &of(&[1]));
        assert!((check.0)(NodeId(2), 6).is_err(), "it belongs to the group that is stopped");
        let (doorkeeper, check) = bench.start(&[(G[1], &[1]), (G[2], &[1, 2]), (G[3], &[1])]);
        assert!((check.0)(NodeId(2), 6).is_err(), "also before a group is open");
        doorkeeper.follow(G[1], &of(&[1]));
        doorkeeper.follow(G[3], &of(&[1]));
        assert!((check.0)(NodeId(2), 6).is_err());
        doorkeeper.follow(G[2], &of(&[1, 2]));
        assert!((check.0)(NodeId(2), 6).is_err());
        doorkeeper.follow(G[2], &of(&[1]));
        assert!((check.0)(NodeId(2), 6).is_ok(), "it belonged to none any more");
    }

    #[test]
    fn who_cannot_be_judged_is_not_taken_for_another() {
        let mut bench = Bench::new();
        let (doorkeeper, check) = bench.start(&[]);
        doorkeeper.follow(G[1], &of(&[1, 2]));
        // The node stops.
        bench.storage = None;
        assert!(matches!((check.0)(NodeId(2), 5), Err(Unwelcome::CannotTell(_))));
    }

    #[test]
    fn a_group_that_is_deleted_knows_nobody_any_more() {
        let mut bench = Bench::new();
        let (doorkeeper, check) = bench.start(&[(G[1], &[1, 3]), (G[2], &[1, 2])]);
        assert!((check.0)(NodeId(2), 5).is_ok());
        doorkeeper.follow(G[1], &of(&[1, 3]));
        assert!((check.0)(NodeId(2), 6).is_err(), "it belongs to the group that is not open");
        doorkeeper.delete(G[2]);
        assert!((check.0)(NodeId(2), 6).is_ok());
    }

    #[test]
    fn who_came_in_before_a_group_was_open_is_judged_when_it_is() {
        let mut bench = Bench::new();
        let (doorkeeper, check) = bench.start(&[]);
        let joined = |identity| of(&[1, 2]).with_identity(NodeId(2), identity);
        assert!(doorkeeper.follow(G[1], &joined(5)).is_empty());
        assert!((check.0)(NodeId(2), 5).is_ok());
        assert!(doorkeeper.follow(G[2], &joined(5)).is_empty());
        assert!(doorkeeper.follow(G[3], &of(&[1, 2])).is_empty(), "the first that is seen");
        // As a founder of the third group it is the one that was here then.
        doorkeeper.leave(G[1]);
        doorkeeper.leave(G[2]);
        assert!((check.0)(NodeId(2), 7).is_err());
        assert_eq!(doorkeeper.follow(G[1], &joined(7)), [NodeId(2)], "it is not the one that is meant there");
        assert!((check.0)(NodeId(2), 5).is_err() && (check.0)(NodeId(2), 7).is_err(), "nobody is both");
    }
}
