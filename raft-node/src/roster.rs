//! Who is to be reached, and where: what the loop tells the transport when the members of a group change.
//!
//! There is one link to each peer, whatever number of groups it serves: those of the transport are the union over the groups.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use raft_core::{GroupId, Membership, NodeId};
use raft_net::Transport;
use tokio::sync::watch;

use crate::doorkeeper::Doorkeeper;
use crate::member;

/// Nodes and where they are.
pub(crate) type Addresses = BTreeMap<NodeId, String>;

/// The members of all groups that are open here.
///
/// Invariant: a link counts the groups whose view has its peer in `linked`, and there is none without a group.
#[derive(Debug)]
pub(crate) struct Roster {
    /// What the configuration says: where to look for those of whom the log does not say more, and for everybody in a group that has no log yet.
    configured: Addresses,
    views: HashMap<GroupId, View>,
    links: BTreeMap<NodeId, Link>,
    doorkeeper: Doorkeeper,
}

/// What a group knows.
#[derive(Debug)]
struct View {
    /// Where the present members are.
    current: Addresses,
    /// The present members, whether anybody knows where they are or not: a transport of the user's may reach them without that.
    members: BTreeSet<NodeId>,
    /// Those with an address, and who was a member until the last change.
    linked: BTreeSet<NodeId>,
    /// The addresses, for all who want to know.
    published: watch::Sender<Addresses>,
}

#[derive(Debug)]
struct Link {
    groups: usize,
    /// What the group said that spoke last.
    address: String,
}

impl Roster {
    pub(crate) fn new(configured: Addresses, doorkeeper: Doorkeeper) -> Self {
        Roster { configured, views: HashMap::new(), links: BTreeMap::new(), doorkeeper }
    }

    /// A group is open from now on.
    pub(crate) fn enter(
        &mut self,
        group: GroupId,
        membership: &Membership,
        published: watch::Sender<Addresses>,
        transport: &mut impl Transport,
    ) {
        let view = View { current: Addresses::new(), members: BTreeSet::new(), linked: BTreeSet::new(), published };
        self.views.insert(group, view);
        self.follow(group, membership, transport);
    }

    /// Another membership of the group counts. Those who were members until now are kept in touch with until the next change: who has been removed is to
    /// learn of it.
    pub(crate) fn follow(&mut self, group: GroupId, membership: &Membership, transport: &mut impl Transport) {
        let Some(view) = self.views.get_mut(&group) else { return };
        let present = if membership.members().is_empty() {
            self.configured.clone()
        } else {
            member::addresses(membership, &self.configured)
        };
        view.members = membership.members().into_iter().collect();
        let former = std::mem::replace(&mut view.current, present);
        let linked = former.keys().chain(view.current.keys()).copied().collect();
        let before = std::mem::replace(&mut view.linked, linked);
        let mut changed = false;
        for id in &view.linked {
            let known = view.current.get(id).or_else(|| former.get(id)).cloned().unwrap_or_default();
            let link = self.links.entry(*id).or_insert_with(|| {
                changed = true;
                Link { groups: 0, address: known.clone() }
            });
            link.groups += usize::from(!before.contains(id));
            if view.current.contains_key(id) && link.address != known {
                changed = true;
                link.address = known;
            }
        }
        view.published.send_replace(view.current.clone());
        let not_needed: Vec<NodeId> = before.difference(&view.linked).copied().collect();
        changed |= self.let_go(&not_needed);
        let strangers = self.doorkeeper.follow(group, membership);
        self.tell(changed, &strangers, transport);
    }

    /// The group is not open any more.
    pub(crate) fn leave(&mut self, group: GroupId, transport: &mut impl Transport) {
        let Some(view) = self.views.remove(&group) else { return };
        let changed = self.let_go(&view.linked);
        self.doorkeeper.leave(group);
        self.tell(changed, &[], transport);
    }

    /// Whether what happens to the link to this peer is of interest for the group.
    pub(crate) fn concerns(&self, group: GroupId, peer: NodeId) -> bool {
        self.views.get(&group).is_some_and(|view| view.members.contains(&peer) || view.linked.contains(&peer))
    }

    /// A group does not need these links any more. Whether one of them goes.
    fn let_go<'a>(&mut self, peers: impl IntoIterator<Item = &'a NodeId>) -> bool {
        let mut gone = false;
        for id in peers {
            if let Some(link) = self.links.get_mut(id) {
                link.groups -= 1;
                if link.groups == 0 {
                    gone = true;
                    self.links.remove(id);
                }
            }
        }
        gone
    }

    /// Strangers are cut off: the link to whoever has their id begins anew.
    fn tell(&self, changed: bool, strangers: &[NodeId], transport: &mut impl Transport) {
        let mut peers: Addresses = self.links.iter().map(|(id, link)| (*id, link.address.clone())).collect();
        if !strangers.is_empty() {
            let others = peers.iter().filter(|(id, _)| !strangers.contains(id));
            transport.set_peers(&others.map(|(id, address)| (*id, address.clone())).collect());
        }
        if changed || !strangers.is_empty() {
            // Nothing is sent to a node without an address.
            peers.retain(|_, address| !address.is_empty());
            transport.set_peers(&peers);
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_core::Envelope;

    use super::*;

    #[derive(Default)]
    struct Peers {
        now: BTreeMap<u64, String>,
        calls: usize,
    }

    impl Transport for Peers {
        fn send(&mut self, _: GroupId, _: &mut Vec<Envelope>) {}

        fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>) {
            self.now = peers.iter().map(|(id, address)| (id.0, address.clone())).collect();
            self.calls += 1;
        }
    }

    impl Peers {
        fn ids(&self) -> Vec<u64> {
            self.now.keys().copied().collect()
        }
    }

    fn address(id: u64) -> (NodeId, String) {
        (NodeId(id), format!("host-{id}:7000"))
    }

    fn of(ids: &[u64]) -> Membership {
        let configured: Addresses = (1..=9).map(address).collect();
        member::founders(&ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>(), &configured)
    }

    fn seen() -> (watch::Sender<Addresses>, watch::Receiver<Addresses>) {
        watch::channel(Addresses::new())
    }

    #[test]
    fn who_is_removed_is_kept_in_touch_with_until_the_next_change() {
        let (published, seen) = seen();
        let mut roster = Roster::new([1, 2, 3].map(address).into(), Doorkeeper::default());
        let (mut transport, group) = (Peers::default(), GroupId::FIRST);
        roster.enter(group, &Membership::default(), published, &mut transport);
        assert_eq!(transport.ids(), [1, 2, 3], "somewhere to look first");
        roster.follow(group, &of(&[1, 2, 3]), &mut transport);
        roster.follow(group, &of(&[1, 2]), &mut transport);
        assert_eq!(transport.ids(), [1, 2, 3]);
        assert_eq!(*seen.borrow(), [1, 2].map(address).into());
        roster.follow(group, &of(&[1, 2]), &mut transport);
        assert_eq!(transport.ids(), [1, 2]);
        roster.leave(group, &mut transport);
        assert!(transport.ids().is_empty() && roster.links.is_empty());
    }

    #[test]
    fn a_link_stays_as_long_as_any_group_needs_it() {
        let mut roster = Roster::new(Addresses::new(), Doorkeeper::default());
        let mut transport = Peers::default();
        for (group, ids) in [(1, [1, 2, 3]), (2, [1, 3, 4]), (3, [1, 3, 4])] {
            roster.enter(GroupId(group), &of(&ids), seen().0, &mut transport);
        }
        assert_eq!((transport.ids(), transport.calls), (vec![1, 2, 3, 4], 2), "nothing changed with the third");
        // Twice: then who was removed is not kept in touch with any more.
        for _ in 0..2 {
            roster.follow(GroupId(1), &of(&[1, 2]), &mut transport);
            roster.follow(GroupId(2), &of(&[1, 4]), &mut transport);
        }
        assert_eq!(transport.ids(), [1, 2, 3, 4], "the third has it");
        assert!(roster.concerns(GroupId(3), NodeId(3)) && !roster.concerns(GroupId(1), NodeId(3)));
        roster.leave(GroupId(3), &mut transport);
        assert_eq!(transport.ids(), [1, 2, 4]);
        roster.follow(GroupId(2), &of(&[1, 4, 2]), &mut transport);
        roster.leave(GroupId(1), &mut transport);
        assert_eq!(transport.ids(), [1, 2, 4]);
    }

    #[test]
    fn the_address_that_was_heard_last_counts() {
        let mut roster = Roster::new(Addresses::new(), Doorkeeper::default());
        let mut transport = Peers::default();
        for group in [1, 2] {
            roster.enter(GroupId(group), &of(&[1, 2]), seen().0, &mut transport);
        }
        let info = crate::MemberInfo { address: "elsewhere:1".into() }.encode();
        roster.follow(GroupId(2), &of(&[1, 2]).with_info(NodeId(2), info), &mut transport);
        assert_eq!(transport.now[&2], "elsewhere:1");
    }

    /// Two data directories under one id: the link to the one that is not meant is cut.
    #[test]
    fn who_turns_out_to_be_another_is_cut_off() {
        let doorkeeper = Doorkeeper::default();
        let check = doorkeeper.check();
        let mut roster = Roster::new(Addresses::new(), doorkeeper);
        let mut transport = Peers::default();
        roster.enter(GroupId(1), &of(&[1, 2]), seen().0, &mut transport);
        assert_eq!((check.0)(NodeId(2), 5), Ok(()));
        let calls = transport.calls;
        roster.enter(GroupId(2), &of(&[1, 2]).with_identity(NodeId(2), 7), seen().0, &mut transport);
        assert_eq!((transport.calls, transport.ids()), (calls + 2, vec![1, 2]), "gone, and there again");
        assert!((check.0)(NodeId(2), 5).is_err() && (check.0)(NodeId(2), 7).is_ok());
        roster.enter(GroupId(3), &of(&[1, 2]).with_identity(NodeId(2), 7), seen().0, &mut transport);
        assert_eq!(transport.calls, calls + 2);
    }
}
