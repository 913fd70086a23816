//! Who is to be reached, where, and who is meant: what the loop tells the transport when the membership changes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use raft_core::{Membership, NodeId};
use raft_net::{PeerCheck, Transport};
use raft_storage::{Acquaintance, KnownPeers};
use tokio::sync::watch;

use crate::member;

/// The members' addresses, and who they are.
#[derive(Debug)]
pub(crate) struct Roster {
    /// What the configuration says: where to look for those of whom the log does not say more, and for everybody on a node that has no log yet.
    configured: BTreeMap<NodeId, String>,
    /// The addresses of the present members.
    current: BTreeMap<NodeId, String>,
    /// The same, for all who want to know.
    published: watch::Sender<BTreeMap<NodeId, String>>,
    doorkeeper: Doorkeeper,
}

impl Roster {
    pub(crate) fn new(
        configured: BTreeMap<NodeId, String>,
        published: watch::Sender<BTreeMap<NodeId, String>>,
        doorkeeper: Doorkeeper,
    ) -> Self {
        Roster { configured, current: BTreeMap::new(), published, doorkeeper }
    }

    /// Another membership counts. Those who were members until now are kept in touch with until the next change: who has been removed is to learn of it.
    pub(crate) fn follow(&mut self, membership: &Membership, transport: &mut impl Transport) {
        self.doorkeeper.follow(membership);
        let present = if membership.members().is_empty() {
            self.configured.clone()
        } else {
            member::addresses(membership, &self.configured)
        };
        let mut peers = std::mem::replace(&mut self.current, present);
        peers.extend(self.current.iter().map(|(id, address)| (*id, address.clone())));
        transport.set_peers(&peers);
        self.published.send_replace(self.current.clone());
    }
}

/// Tells the members from those who have come back under a member's id with an empty disk.
///
/// Of a member that joined the running cluster the log says which one it is ([`Membership::identity`]). Of one with whom the cluster began, the first that was seen is
/// the one, on this node, for ever.
#[derive(Clone, Debug, Default)]
pub(crate) struct Doorkeeper {
    /// `None` where the storage was brought by the user, who then vouches for the peers.
    known: Option<KnownPeers>,
    identities: Arc<Mutex<BTreeMap<NodeId, u64>>>,
}

/// What [`Membership::identity`] says of a node with this data directory, if it joins a running cluster.
pub(crate) fn identity_of(incarnation: u128) -> u64 {
    // Never 0, which stands for those with whom the cluster began.
    (incarnation as u64) | 1
}

impl Doorkeeper {
    pub(crate) fn new(known: KnownPeers) -> Self {
        Doorkeeper { known: Some(known), identities: Arc::default() }
    }

    /// For the transport.
    pub(crate) fn check(&self) -> PeerCheck {
        let own = self.clone();
        PeerCheck(Arc::new(move |peer, incarnation| own.judge(peer, incarnation)))
    }

    fn judge(&self, peer: NodeId, incarnation: u128) -> Result<(), String> {
        let expected = self.identities.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).copied();
        let known = match (expected, &self.known) {
            (Some(identity), _) => identity == identity_of(incarnation),
            (None, None) => true,
            (None, Some(known)) => match known.meet(peer, incarnation) {
                Ok(acquaintance) => acquaintance == Acquaintance::Known,
                Err(error) => return Err(format!("cannot tell who it is: {error}")),
            },
        };
        if known {
            return Ok(());
        }
        Err(format!(
            "node {peer} is known here with another data directory. If its disk was lost: `raft-node member remove {peer}`, \
             start it with an empty directory and --join, then `raft-node member add {peer} ADDRESS`"
        ))
    }

    fn follow(&self, membership: &Membership) {
        let members = membership.members();
        if members.is_empty() {
            return;
        }
        let joined = members.iter().map(|id| (*id, membership.identity(*id))).filter(|(_, identity)| *identity > 0);
        *self.identities.lock().unwrap_or_else(PoisonError::into_inner) = joined.collect();
        if let Some(known) = &self.known
            && let Err(error) = known.retain(&members)
        {
            // Then somebody who comes back as a member of another identity is still judged by the log.
            tracing::warn!(%error, "cannot forget former members");
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{Envelope, GroupId};

    use super::*;

    #[derive(Default)]
    struct Peers(Vec<u64>);

    impl Transport for Peers {
        fn send(&mut self, _: GroupId, _: &mut Vec<Envelope>) {}

        fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>) {
            self.0 = peers.keys().map(|id| id.0).collect();
        }
    }

    fn address(id: u64) -> (NodeId, String) {
        (NodeId(id), format!("host-{id}:7000"))
    }

    #[test]
    fn who_is_removed_is_kept_in_touch_with_until_the_next_change() {
        let (published, seen) = watch::channel(BTreeMap::new());
        let configured: BTreeMap<_, _> = [1, 2, 3].map(address).into();
        let mut roster = Roster::new(configured.clone(), published, Doorkeeper::default());
        let mut transport = Peers::default();
        roster.follow(&Membership::default(), &mut transport);
        assert_eq!(transport.0, [1, 2, 3], "somewhere to look first");
        let of = |ids: &[u64]| member::founders(&ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>(), &configured);
        roster.follow(&of(&[1, 2, 3]), &mut transport);
        roster.follow(&of(&[1, 2]), &mut transport);
        assert_eq!(transport.0, [1, 2, 3]);
        assert_eq!(*seen.borrow(), [1, 2].map(address).into());
        roster.follow(&of(&[1, 2]), &mut transport);
        assert_eq!(transport.0, [1, 2]);
    }

    #[test]
    fn of_who_joined_the_log_says_which_one_is_meant() {
        let doorkeeper = Doorkeeper::default();
        let check = doorkeeper.check();
        let membership = Membership::of_voters([1, 2].map(NodeId)).with_identity(NodeId(2), identity_of(1 << 70 | 6));
        doorkeeper.follow(&membership);
        assert_eq!((check.0)(NodeId(2), 1 << 70 | 6), Ok(()));
        let refused = (check.0)(NodeId(2), 8).unwrap_err();
        assert!(refused.contains("raft-node member remove 2"), "it says what to do: {refused}");
        assert_eq!((check.0)(NodeId(1), 8), Ok(()));
    }
}
