//! A network in memory, for tests: the same trait and the same events as the real one, with links that can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use raft_core::{Envelope, GroupId, NodeId};
use tokio::sync::mpsc;

use crate::link::lock;
use crate::snapshot::{OutgoingSnapshot, SNAPSHOT_CHUNK, SnapshotError, SnapshotReceiver};
use crate::{Inbound, Transport};

/// The wires. Cheap to clone; all clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct MemoryNetwork {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<NodeId, mpsc::Sender<Inbound>>,
    receivers: BTreeMap<NodeId, Arc<dyn SnapshotReceiver>>,
    /// Pairs that cannot talk, the lower id first.
    cut: BTreeSet<(NodeId, NodeId)>,
    delivered: u64,
    dropped: u64,
}

impl State {
    fn deliver(&mut self, from: NodeId, to: NodeId, group: GroupId, messages: Vec<Envelope>) {
        let count = messages.len() as u64;
        let reachable = self.nodes.contains_key(&from) && !self.cut.contains(&pair(from, to));
        let sent = match self.nodes.get(&to) {
            Some(inbound) if reachable => inbound.try_send(Inbound::Messages { group, messages }).is_ok(),
            _ => false,
        };
        *(if sent { &mut self.delivered } else { &mut self.dropped }) += count;
    }

    /// Tells `node` that its link to `peer` is not what it was. It gets lost in a full inbox, so tests in which groups sleep need one with room.
    fn reset(&self, node: NodeId, peer: NodeId) {
        if let Some(inbound) = self.nodes.get(&node) {
            let _ = inbound.try_send(Inbound::LinkReset { peer });
        }
    }

    fn reset_both(&self, (a, b): (NodeId, NodeId)) {
        self.reset(a, b);
        self.reset(b, a);
    }
}

impl MemoryNetwork {
    /// A network without nodes.
    pub fn new() -> Self {
        MemoryNetwork::default()
    }

    /// Connects `node`, whose messages go to `inbound`, to all others. A second endpoint for the same node replaces
    /// the first: a restart.
    pub fn endpoint(&self, node: NodeId, inbound: mpsc::Sender<Inbound>) -> MemoryTransport {
        let mut state = lock(&self.state);
        state.nodes.insert(node, inbound.clone());
        for &peer in state.nodes.keys().filter(|&&peer| peer != node) {
            state.reset_both((node, peer));
        }
        MemoryTransport { network: self.clone(), node, inbound }
    }

    /// Cuts the link between two nodes, in both directions.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        let mut state = lock(&self.state);
        if state.cut.insert(pair(a, b)) {
            state.reset_both((a, b));
        }
    }

    /// Mends the link between two nodes.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        let mut state = lock(&self.state);
        if state.cut.remove(&pair(a, b)) {
            state.reset_both((a, b));
        }
    }

    /// Cuts `node` off from everybody.
    pub fn isolate(&self, node: NodeId) {
        let others: Vec<NodeId> = lock(&self.state).nodes.keys().copied().filter(|&other| other != node).collect();
        for other in others {
            self.cut(node, other);
        }
    }

    /// Mends all links.
    pub fn heal_all(&self) {
        let mut state = lock(&self.state);
        for ends in std::mem::take(&mut state.cut) {
            state.reset_both(ends);
        }
    }

    /// Messages delivered to an inbox.
    pub fn delivered(&self) -> u64 {
        lock(&self.state).delivered
    }

    /// Messages dropped: link cut, nobody there, or inbox full.
    pub fn dropped(&self) -> u64 {
        lock(&self.state).dropped
    }
}

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

/// One node's end of a [`MemoryNetwork`]. Dropping it disconnects the node.
#[derive(Debug)]
pub struct MemoryTransport {
    network: MemoryNetwork,
    node: NodeId,
    inbound: mpsc::Sender<Inbound>,
}

impl Transport for MemoryTransport {
    fn send(&mut self, group: GroupId, messages: &mut Vec<Envelope>) {
        let mut state = lock(&self.network.state);
        let mut messages = messages.drain(..).peekable();
        // Neighbours with the same receiver arrive together, as they do over a stream.
        while let Some(first) = messages.next() {
            let to = first.to;
            let mut batch = vec![first];
            while let Some(more) = messages.next_if(|next| next.to == to) {
                batch.push(more);
            }
            state.deliver(self.node, to, group, batch);
        }
    }

    /// Nothing to do: in memory everybody is reachable by id.
    fn set_peers(&mut self, _peers: &BTreeMap<NodeId, String>) {}

    /// A thread of its own carries it over, chunk by chunk, as long as the link is whole.
    fn send_snapshot(&mut self, mut outgoing: OutgoingSnapshot) {
        let (network, from) = (self.network.clone(), self.node);
        std::thread::spawn(move || {
            let done = carry(&network, from, &mut outgoing);
            (outgoing.done)(done);
        });
    }

    fn receive_snapshots(&mut self, receiver: Arc<dyn SnapshotReceiver>) {
        lock(&self.network.state).receivers.insert(self.node, receiver);
    }
}

fn carry(network: &MemoryNetwork, from: NodeId, outgoing: &mut OutgoingSnapshot) -> Result<(), SnapshotError> {
    let OutgoingSnapshot { to, header, source, progress, .. } = outgoing;
    let is_whole = || {
        let state = lock(&network.state);
        let whole =
            state.nodes.contains_key(&from) && state.nodes.contains_key(to) && !state.cut.contains(&pair(from, *to));
        if whole { Ok(()) } else { Err(SnapshotError::Lost("the link is cut".into())) }
    };
    is_whole()?;
    let receiver = lock(&network.state).receivers.get(to).cloned();
    let receiver = receiver.ok_or_else(|| SnapshotError::Refused("no snapshots are taken there".into()))?;
    let refused = |reason: crate::snapshot::Refusal| SnapshotError::Refused(reason.to_string());
    let (mut offset, mut sink) = receiver.begin(from, header).map_err(refused)?;
    let mut chunk = vec![0; SNAPSHOT_CHUNK];
    while offset < header.size {
        progress.reach(offset);
        is_whole()?;
        match source.read_at(offset, &mut chunk).map_err(SnapshotError::Source)? {
            0 => return Err(SnapshotError::Source(std::io::ErrorKind::UnexpectedEof.into())),
            n => {
                sink.write(&chunk[..n]).map_err(refused)?;
                offset += n as u64;
            }
        }
    }
    is_whole()?;
    progress.reach(offset);
    sink.finish().map_err(refused)
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        let mut state = lock(&self.network.state);
        // After a restart the entry is the successor's.
        if state.nodes.get(&self.node).is_some_and(|current| current.same_channel(&self.inbound)) {
            state.nodes.remove(&self.node);
            state.receivers.remove(&self.node);
            for &peer in state.nodes.keys() {
                state.reset(peer, self.node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_core::{Heartbeat, LogIndex, Message, Term};

    fn envelope(from: u64, to: u64, round: u64) -> Envelope {
        let body = Message::Heartbeat(Heartbeat { epoch: 0, commit: LogIndex(0), round: Some(round) });
        Envelope { from: NodeId(from), to: NodeId(to), term: Term(1), body }
    }

    fn drain(inbox: &mut mpsc::Receiver<Inbound>) -> Vec<Inbound> {
        std::iter::from_fn(|| inbox.try_recv().ok()).collect()
    }

    #[test]
    fn delivers_in_order_and_only_over_whole_links() {
        let network = MemoryNetwork::new();
        let (tx1, mut rx1) = mpsc::channel(16);
        let (tx2, mut rx2) = mpsc::channel(16);
        let mut one = network.endpoint(NodeId(1), tx1);
        let two = network.endpoint(NodeId(2), tx2);
        assert_eq!(drain(&mut rx1), [Inbound::LinkReset { peer: NodeId(2) }]);
        drain(&mut rx2);

        one.send(GroupId::FIRST, &mut vec![envelope(1, 2, 1), envelope(1, 2, 2), envelope(1, 3, 3)]);
        let messages = vec![envelope(1, 2, 1), envelope(1, 2, 2)];
        assert_eq!(drain(&mut rx2), [Inbound::Messages { group: GroupId::FIRST, messages }]);
        assert_eq!((network.delivered(), network.dropped()), (2, 1));

        network.cut(NodeId(2), NodeId(1));
        one.send(GroupId::FIRST, &mut vec![envelope(1, 2, 4)]);
        assert_eq!(drain(&mut rx2), [Inbound::LinkReset { peer: NodeId(1) }]);
        network.heal_all();
        one.send(GroupId::FIRST, &mut vec![envelope(1, 2, 5)]);
        assert_eq!(drain(&mut rx2).len(), 2);

        drain(&mut rx1);
        drop(two);
        assert_eq!(drain(&mut rx1), [Inbound::LinkReset { peer: NodeId(2) }]);
        one.send(GroupId::FIRST, &mut vec![envelope(1, 2, 6)]);
        assert_eq!((network.delivered(), network.dropped()), (3, 3));
    }

    #[test]
    fn a_full_inbox_drops() {
        let network = MemoryNetwork::new();
        let (tx1, _rx1) = mpsc::channel(16);
        let (tx2, _rx2) = mpsc::channel(1);
        let mut one = network.endpoint(NodeId(1), tx1);
        let _two = network.endpoint(NodeId(2), tx2);
        one.send(GroupId::FIRST, &mut vec![envelope(1, 2, 1)]);
        assert_eq!(network.dropped(), 1, "the link reset already fills it");
    }
}
