//! Nodes that are not let in: they hear of it and why, ask again, and hear when they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use raft_core::NodeId;
use raft_net::{CloseCode, Inbound, NetConfig, PeerCheck, Transport, Unwelcome};

use crate::support::{Node, Pki, append, heartbeat};

/// Whom a node lets in, as of now.
#[derive(Clone, Default)]
struct Door(Arc<AtomicBool>);

impl Door {
    fn check(&self) -> PeerCheck {
        let open = self.0.clone();
        PeerCheck(Arc::new(move |peer, _| {
            open.load(Ordering::Relaxed).then_some(()).ok_or(Unwelcome::Another(format!("not you,\n\x1b[31m{peer}")))
        }))
    }

    fn open(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// It asks again soon.
fn config(pki: &Pki, id: u64) -> NetConfig {
    let mut config = pki.config(id);
    config.limits.dial_backoff_max = Duration::from_millis(100);
    config
}

impl Node {
    /// What the node hears next of how `peer` thinks of it.
    async fn verdict(&mut self, of: NodeId) -> Inbound {
        loop {
            match self.next().await {
                Inbound::LinkReset { .. } => {}
                Inbound::Messages { messages, .. } => panic!("{messages:?}"),
                verdict => {
                    let (Inbound::Accepted { peer } | Inbound::Refused { peer, .. }) = &verdict else { panic!() };
                    assert_eq!(*peer, of);
                    return verdict;
                }
            }
        }
    }

    async fn is_let_in(&mut self, by: NodeId) {
        while self.verdict(by).await != (Inbound::Accepted { peer: by }) {}
    }
}

/// Whoever of the two dials: the one that is refused hears why, again and again, and in the end that it is let in. The one that refuses is welcome all the time.
#[tokio::test]
async fn who_is_refused_hears_why_and_is_let_in_when_the_other_has_changed_its_mind() {
    for refused in [1_u64, 2] {
        let (pki, door, other) = (Pki::new(), Door::default(), 3 - refused);
        let mut config_of_other = config(&pki, other);
        config_of_other.peer_check = door.check();
        let (mut host, mut guest) = (Node::start(config_of_other), Node::start(config(&pki, refused)));
        host.transport.set_peers(&[(guest.id, guest.address.to_string())].into());
        guest.transport.set_peers(&[(host.id, host.address.to_string())].into());
        for _ in 0..3 {
            let reason = format!("not you,??[31m{refused}");
            let refusal = Inbound::Refused { peer: host.id, code: CloseCode::WrongIncarnation, reason };
            assert_eq!(guest.verdict(host.id).await, refusal);
        }
        door.open();
        guest.is_let_in(host.id).await;
        // Refused or not, it thought nothing ill of the other.
        host.is_let_in(guest.id).await;
        guest.send(heartbeat(refused, other, 1));
        guest.send(append(refused, other, 1, 10));
        assert_eq!(host.messages(2).await.len(), 2);
    }
}

/// Nobody dials a node with a higher id that has been removed: it has to ask.
#[tokio::test]
async fn a_node_that_is_no_peer_any_more_hears_of_it_and_of_its_return() {
    for removed in [1_u64, 2] {
        let (pki, other) = (Pki::new(), 3 - removed);
        let (mut host, mut guest) = (Node::start(config(&pki, other)), Node::start(config(&pki, removed)));
        guest.transport.set_peers(&[(host.id, host.address.to_string())].into());
        for _ in 0..2 {
            let Inbound::Refused { code, reason, .. } = guest.verdict(host.id).await else { panic!("it is no peer") };
            assert_eq!((code, reason), (CloseCode::WrongNode, format!("node {removed} is not a peer")));
        }
        host.transport.set_peers(&[(guest.id, guest.address.to_string())].into());
        guest.is_let_in(host.id).await;
        host.is_let_in(guest.id).await;
        // While the connection stands.
        host.transport.set_peers(&[].into());
        let refusal = guest.verdict(host.id).await;
        assert!(matches!(refusal, Inbound::Refused { code: CloseCode::Removed, .. }), "{refusal:?}");
    }
}
