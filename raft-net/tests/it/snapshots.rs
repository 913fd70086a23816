//! Snapshots between nodes: whole, broken off and resumed, refused; and what a hostile sender can do.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use raft_core::{GroupId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, Term};
use raft_net::memory::MemoryNetwork;
use raft_net::snapshot::{
    OutgoingSnapshot, Refusal, SnapshotError, SnapshotHeader, SnapshotProgress, SnapshotReceiver, SnapshotSink,
    SnapshotSource, encode_snapshot_header,
};
use raft_net::{ALPN_NODE, FrameSink, Reject, Transport};
use tokio::sync::{mpsc, oneshot};

use crate::support::{CLUSTER, Node, Pki, cluster, heartbeat, soon};

fn header(id: u64, size: usize) -> SnapshotHeader {
    let membership = Membership::of_voters([1, 2].map(NodeId));
    let meta = SnapshotMeta { last: LogId::new(Term(3), LogIndex(100)), membership };
    SnapshotHeader { group: GroupId(1), term: Term(4), epoch: 5, meta, id, size: size as u64 }
}

fn bytes(size: usize) -> Arc<Vec<u8>> {
    Arc::new((0..size as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect())
}

/// Bytes to be sent; after so many of them, reading waits for the test.
struct Source {
    bytes: Arc<Vec<u8>>,
    pause: Option<(u64, std::sync::mpsc::Receiver<()>)>,
}

impl SnapshotSource for Source {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if let Some((_, resume)) = self.pause.take_if(|(at, _)| offset >= *at) {
            // The test goes on, or is over.
            let _ = resume.recv();
        }
        let rest = self.bytes.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

/// Keeps what has arrived, by id.
#[derive(Clone, Debug, Default)]
struct Receiver {
    parts: Arc<Mutex<BTreeMap<u64, Vec<u8>>>>,
    done: Arc<Mutex<Vec<(NodeId, SnapshotHeader)>>>,
    offsets: Arc<Mutex<Vec<u64>>>,
}

struct Sink {
    receiver: Receiver,
    from: NodeId,
    header: SnapshotHeader,
}

impl SnapshotReceiver for Receiver {
    fn begin(&self, from: NodeId, header: &SnapshotHeader) -> Result<(u64, Box<dyn SnapshotSink>), Refusal> {
        if header.id == 13 {
            return Err("thirteen is not wanted".into());
        }
        let here = self.parts.lock().unwrap().entry(header.id).or_default().len() as u64;
        self.offsets.lock().unwrap().push(here);
        Ok((here, Box::new(Sink { receiver: self.clone(), from, header: header.clone() })))
    }
}

impl SnapshotSink for Sink {
    fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal> {
        if self.header.id == 14 {
            return Err("the disk is full".into());
        }
        self.receiver.parts.lock().unwrap().entry(self.header.id).or_default().extend_from_slice(chunk);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Refusal> {
        self.receiver.done.lock().unwrap().push((self.from, self.header));
        Ok(())
    }
}

type Sent = oneshot::Receiver<Result<(), SnapshotError>>;

fn send(
    transport: &mut impl Transport,
    to: u64,
    header: SnapshotHeader,
    source: Source,
) -> (Sent, Arc<SnapshotProgress>) {
    let (sender, sent) = oneshot::channel();
    let progress = SnapshotProgress::of(header.size);
    let done = Box::new(|how| drop(sender.send(how)));
    let (source, ours) = (Box::new(source), progress.clone());
    transport.send_snapshot(OutgoingSnapshot { to: NodeId(to), header, source, progress: ours, done });
    (sent, progress)
}

async fn outcome(sent: Sent) -> Result<(), SnapshotError> {
    soon("the transfer ends", sent).await.expect("it is told")
}

fn plain(bytes: &Arc<Vec<u8>>) -> Source {
    Source { bytes: bytes.clone(), pause: None }
}

#[tokio::test]
async fn a_snapshot_arrives_whole_while_messages_go_ahead() {
    let mut nodes = cluster(&Pki::new(), 2).await;
    let receiver = Receiver::default();
    let data = bytes(20 << 20);
    let (early, _) = send(&mut nodes[0].transport, 2, header(1, 5), plain(&data));
    assert!(matches!(outcome(early).await, Err(SnapshotError::Refused(_))), "nobody takes snapshots yet");
    nodes[1].transport.receive_snapshots(Arc::new(receiver.clone()));
    let (sent, progress) = send(&mut nodes[0].transport, 2, header(1, data.len()), plain(&data));
    // Heartbeats do not wait for it.
    for n in 0..20 {
        nodes[0].send(heartbeat(1, 2, n));
        assert_eq!(nodes[1].messages(1).await, [heartbeat(1, 2, n)]);
    }
    outcome(sent).await.unwrap();
    assert_eq!(*receiver.done.lock().unwrap(), [(NodeId(1), header(1, data.len()))]);
    assert!(receiver.parts.lock().unwrap()[&1] == *data);
    assert_eq!(progress.get(), (data.len() as u64, data.len() as u64));
    // In the other direction, an empty one, to a stranger.
    nodes[0].transport.receive_snapshots(Arc::new(receiver.clone()));
    let (sent, _) = send(&mut nodes[1].transport, 1, header(2, 0), plain(&data));
    outcome(sent).await.unwrap();
    let (sent, _) = send(&mut nodes[1].transport, 9, header(2, 0), plain(&data));
    assert!(matches!(outcome(sent).await, Err(SnapshotError::Lost(_))));
}

#[tokio::test]
async fn a_refusal_comes_with_its_reason() {
    let mut nodes = cluster(&Pki::new(), 2).await;
    nodes[1].transport.receive_snapshots(Arc::new(Receiver::default()));
    let data = bytes(3 << 20);
    for (id, reason) in [(13, "thirteen is not wanted"), (14, "the disk is full")] {
        let (sent, _) = send(&mut nodes[0].transport, 2, header(id, data.len()), plain(&data));
        match outcome(sent).await {
            Err(SnapshotError::Refused(why)) => assert_eq!(why, reason),
            other => panic!("{other:?}"),
        }
    }
    // A source that has less than it says.
    let (sent, _) = send(&mut nodes[0].transport, 2, header(3, data.len() + 1), plain(&data));
    assert!(matches!(outcome(sent).await, Err(SnapshotError::Source(_))));
    assert_eq!(nodes[1].stats().rejected.iter().sum::<u64>(), 0, "the connection is as good as before");
}

#[tokio::test]
async fn a_transfer_that_broke_off_goes_on_where_it_was() {
    let pki = Pki::new();
    let mut nodes = cluster(&pki, 2).await;
    let receiver = Receiver::default();
    nodes[1].transport.receive_snapshots(Arc::new(receiver.clone()));
    let data = bytes(4 << 20);
    let (resume, pause) = std::sync::mpsc::channel();
    let source = Source { bytes: data.clone(), pause: Some((2 << 20, pause)) };
    let (sent, _) = send(&mut nodes[0].transport, 2, header(1, data.len()), source);
    soon("half of it arrives", async {
        while receiver.parts.lock().unwrap().get(&1).is_none_or(|part| part.len() < 1 << 20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // The receiver goes down.
    nodes.pop();
    drop(resume);
    assert!(matches!(outcome(sent).await, Err(SnapshotError::Lost(_))));
    let here = receiver.parts.lock().unwrap()[&1].len() as u64;
    assert!((1 << 20..data.len() as u64).contains(&here));
    nodes.push(Node::start(pki.config(2)));
    nodes[1].transport.receive_snapshots(Arc::new(receiver.clone()));
    let peers: BTreeMap<_, _> = nodes.iter().map(|node| (node.id, node.address.to_string())).collect();
    nodes.iter_mut().for_each(|node| node.transport.set_peers(&peers));
    nodes[1].link_reset(NodeId(1)).await;
    let (sent, _) = send(&mut nodes[0].transport, 2, header(1, data.len()), plain(&data));
    outcome(sent).await.unwrap();
    let offsets = receiver.offsets.lock().unwrap().clone();
    assert!(offsets[0] == 0 && offsets[1] >= here, "{offsets:?}, {here}");
    assert!(receiver.parts.lock().unwrap()[&1] == *data);
}

#[tokio::test]
async fn only_so_many_at_a_time() {
    let mut nodes = cluster(&Pki::new(), 2).await;
    let receiver = Receiver::default();
    nodes[1].transport.receive_snapshots(Arc::new(receiver.clone()));
    let data = bytes(1 << 20);
    let mut paused = Vec::new();
    for id in 1..=3 {
        let (resume, pause) = std::sync::mpsc::channel();
        let source = Source { bytes: data.clone(), pause: Some((0, pause)) };
        let (sent, progress) = send(&mut nodes[0].transport, 2, header(id, data.len()), source);
        paused.push((resume, sent, progress));
    }
    soon("two are accepted", async {
        while receiver.offsets.lock().unwrap().len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(receiver.offsets.lock().unwrap().len(), 2, "the third one waits");
    for (resume, sent, progress) in paused {
        drop(resume);
        outcome(sent).await.unwrap();
        assert_eq!(progress.get().0, data.len() as u64);
    }
}

/// Offers a snapshot by hand, with these bytes.
async fn offer(bytes: &[u8]) -> (Node, Receiver, quinn::Connection) {
    let pki = Pki::new();
    let mut config = pki.config(2);
    config.limits.snapshot_stall = Duration::from_millis(300);
    config.peers.insert(NodeId(1), "127.0.0.1:1".to_owned());
    let mut victim = Node::start(config);
    let receiver = Receiver::default();
    victim.transport.receive_snapshots(Arc::new(receiver.clone()));
    let own = pki.node(CLUSTER, 1);
    let connection = pki.dial(Some(&own), ALPN_NODE, victim.address, 2).await.unwrap();
    let (mut stream, reply) = soon("a stream", connection.open_bi()).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    // It is not finished: whoever waits for the end waits in vain.
    std::mem::forget((stream, reply));
    (victim, receiver, connection)
}

fn head(from: u64, to: u64, header: &SnapshotHeader) -> Vec<u8> {
    let (mut sink, mut chunks) = (FrameSink::new(), Vec::new());
    assert!(encode_snapshot_header(NodeId(from), NodeId(to), header, &mut sink));
    sink.take_into(&mut chunks);
    chunks.concat()
}

#[tokio::test]
async fn who_does_not_keep_to_the_rules_is_cut_off() {
    let good = head(1, 2, &header(1, 10));
    let mut damaged = good.clone();
    damaged[4] = 77;
    for bytes in [
        damaged,
        head(3, 2, &header(1, 10)),
        head(1, 3, &header(1, 10)),
        vec![255; 100],
        [&good[..], &[0; 11]].concat(),
        [&9u32.to_le_bytes()[..], &good[4..13]].concat(),
    ] {
        let (victim, receiver, connection) = offer(&bytes).await;
        soon("cut off", connection.closed()).await;
        assert_eq!(victim.stats().rejected(Reject::Malformed), 1);
        assert!(receiver.done.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn who_never_ends_is_not_waited_for_and_another_may_come() {
    // A header that goes no further, and data that stop.
    let good = head(1, 2, &header(1, 1 << 20));
    for bytes in [&good[..20], &[&good[..], &[7; 1000]].concat()] {
        let (victim, receiver, connection) = offer(bytes).await;
        for n in 0..3 {
            let (mut stream, mut reply) = soon("a stream", connection.open_bi()).await.unwrap();
            stream.write_all(&head(1, 2, &header(100 + n, 4))).await.unwrap();
            stream.write_all(b"four").await.unwrap();
            stream.finish().unwrap();
            let answer = soon("an answer", reply.read_to_end(100)).await.unwrap();
            assert_eq!(answer, [0; 10], "from the first byte on, and done");
        }
        assert_eq!(receiver.done.lock().unwrap().len(), 3);
        assert_eq!(victim.stats().rejected.iter().sum::<u64>(), 0);
    }
}

#[tokio::test]
async fn in_memory_it_is_the_same() {
    let network = MemoryNetwork::new();
    let (sender, _inbox) = mpsc::channel(16);
    let (mut one, mut two) = (network.endpoint(NodeId(1), sender.clone()), network.endpoint(NodeId(2), sender));
    let (data, receiver) = (bytes(1 << 20), Receiver::default());
    let (sent, _) = send(&mut one, 2, header(1, data.len()), plain(&data));
    assert!(matches!(outcome(sent).await, Err(SnapshotError::Refused(_))));
    two.receive_snapshots(Arc::new(receiver.clone()));
    let (resume, pause) = std::sync::mpsc::channel();
    let source = Source { bytes: data.clone(), pause: Some((512 << 10, pause)) };
    let (sent, _) = send(&mut one, 2, header(1, data.len()), source);
    soon("half of it arrives", async {
        while receiver.parts.lock().unwrap().get(&1).is_none_or(|part| part.len() < 512 << 10) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    network.cut(NodeId(1), NodeId(2));
    drop(resume);
    assert!(matches!(outcome(sent).await, Err(SnapshotError::Lost(_))));
    network.heal_all();
    let (sent, _) = send(&mut one, 2, header(1, data.len()), plain(&data));
    outcome(sent).await.unwrap();
    assert!(receiver.parts.lock().unwrap()[&1] == *data);
    assert!(receiver.offsets.lock().unwrap()[1] >= 512 << 10);
}
