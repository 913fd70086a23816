//! Nodes through the library, around a state machine that keeps nothing on a disk: its snapshots are files, from which it starts again, and which
//! bring up others.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use raft_core::{
    Entries, EntryKind, Envelope, GroupId, HardState, LogIndex, NodeId, Segment, SnapshotMeta, Term, Write as LogWrite,
    WriteSeq,
};
use raft_net::pki::CertificateAuthority;
use raft_net::{TlsIdentity, Transport};
use raft_node::{Consistency, Cut, Raft, Replies, RestoreError, SnapshotPolicy, StateMachine};
use raft_storage::{MemoryStorage, Storage};

const PATIENCE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

/// What a machine has done since it was made; shared with the test.
#[derive(Clone, Debug, Default)]
struct Seen {
    applied: Arc<AtomicU64>,
    /// Entries that went through `apply`, of whatever kind.
    fed: Arc<AtomicU64>,
    restored: Arc<AtomicU64>,
}

/// A list of lines, in memory only.
#[derive(Default)]
struct Lines {
    lines: Vec<Vec<u8>>,
    seen: Seen,
}

impl StateMachine for Lines {
    type Error = std::convert::Infallible;

    fn applied(&self) -> LogIndex {
        LogIndex(self.seen.applied.load(Ordering::Relaxed))
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                self.lines.push(entry.payload.to_vec());
                replies.push(&(self.lines.len() as u64).to_be_bytes());
            }
            self.seen.fed.fetch_add(1, Ordering::Relaxed);
            self.seen.applied.store(entry.index.0, Ordering::Relaxed);
        }
        Ok(())
    }

    fn cut(&mut self) -> Result<Option<Box<dyn Cut>>, Self::Error> {
        Ok(Some(Box::new(LinesCut(self.lines.clone()))))
    }

    fn restore(&mut self, meta: &SnapshotMeta, data: &mut dyn Read) -> Result<(), RestoreError<Self::Error>> {
        let mut bytes = Vec::new();
        data.read_to_end(&mut bytes)?;
        self.lines = bytes.split_inclusive(|byte| *byte == b'\n').map(|line| line[..line.len() - 1].to_vec()).collect();
        self.seen.applied.store(meta.last.index.0, Ordering::Relaxed);
        self.seen.restored.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The number of lines and a checksum that depends on their order.
    fn query(&mut self, _: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error> {
        let sum =
            self.lines.iter().flatten().fold(7u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        answer.extend_from_slice(format!("{} lines, {sum:x}", self.lines.len()).as_bytes());
        Ok(())
    }
}

struct LinesCut(Vec<Vec<u8>>);

impl Cut for LinesCut {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        for line in &self.0 {
            out.write_all(line)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }
}

/// Three nodes in this process, each with a directory, an address and a certificate.
struct Cluster {
    dir: tempfile::TempDir,
    addresses: BTreeMap<NodeId, SocketAddr>,
    ca: CertificateAuthority,
    policy: SnapshotPolicy,
    nodes: BTreeMap<NodeId, (Raft, Seen)>,
}

impl Cluster {
    async fn start(policy: SnapshotPolicy) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        // Held open together, so that no port is given twice.
        let sockets = NODES.map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port"));
        let addresses = NODES.into_iter().zip(sockets.map(|socket| socket.local_addr().expect("bound"))).collect();
        let ca = CertificateAuthority::generate(DAY).expect("an authority");
        let mut cluster = Cluster { dir, addresses, ca, policy, nodes: BTreeMap::new() };
        for id in NODES {
            cluster.open(id).await;
        }
        cluster
    }

    /// Starts a node with a new, empty machine.
    async fn open(&mut self, id: NodeId) {
        let own = self.ca.issue_node("library", id, DAY).expect("a certificate");
        let ca = &self.ca.credentials().cert_pem;
        let machine = Lines::default();
        let seen = machine.seen.clone();
        let raft = Raft::builder(machine)
            .identity(id, "library")
            .data_dir(self.data(id))
            .listen(self.addresses[&id])
            .peers(self.addresses.iter().map(|(&id, address)| (id, address.to_string())))
            .tls(TlsIdentity::from_pem(ca, &own.cert_pem, &own.key_pem).expect("just issued"))
            .snapshot_policy(self.policy.clone())
            .start()
            .await
            .expect("the node starts");
        self.nodes.insert(id, (raft, seen));
    }

    /// Stops a node in an orderly way; its machine is gone with it.
    async fn close(&mut self, id: NodeId) {
        let (raft, _) = self.nodes.remove(&id).expect("it runs");
        raft.shutdown();
        raft.stopped().await.expect("it stops");
    }

    fn data(&self, id: NodeId) -> PathBuf {
        self.dir.path().join(format!("node-{id}"))
    }

    fn raft(&self, id: NodeId) -> &Raft {
        &self.nodes[&id].0
    }

    fn seen(&self, id: NodeId) -> &Seen {
        &self.nodes[&id].1
    }

    async fn leader(&self) -> NodeId {
        let begin = Instant::now();
        loop {
            for (id, (raft, _)) in &self.nodes {
                if raft.status().await.is_ok_and(|status| status.leader == Some(*id)) {
                    return *id;
                }
            }
            assert!(begin.elapsed() < PATIENCE, "no leader");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has `count` lines written, one after the other; whoever leads takes them.
    async fn write(&self, first: u64, count: u64) {
        let mut leader = self.leader().await;
        for n in first..first + count {
            let line = format!("line {n} {}", "x".repeat(200));
            while self.raft(leader).propose(line.clone()).await.is_err() {
                leader = self.leader().await;
            }
        }
    }

    /// Waits until a node has applied what the leader has.
    async fn catch_up(&self, id: NodeId) {
        let leader = self.leader().await;
        let goal = self.raft(leader).status().await.expect("it runs").commit_index.0;
        let what = format!("node {id} catches up");
        wait(|| async { self.seen(id).applied.load(Ordering::Relaxed) >= goal }, &what).await;
    }

    async fn state(&self, id: NodeId, consistency: Consistency) -> String {
        let answer = self.raft(id).read("", consistency).await.expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn log_start(&self, id: NodeId) -> u64 {
        self.raft(id).status().await.expect("it runs").log_start.index.0
    }

    fn files(&self, id: NodeId) -> usize {
        std::fs::read_dir(self.data(id).join("snapshots")).map_or(0, Iterator::count)
    }
}

async fn wait<F: Future<Output = bool>>(mut until: impl FnMut() -> F, what: &str) {
    let begin = Instant::now();
    while !until().await {
        assert!(begin.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Little is kept, and often.
fn often() -> SnapshotPolicy {
    SnapshotPolicy { entries: 100, bytes: 0, keep_entries: 10, keep_bytes: 1 << 20, hold_bytes: 1 << 20 }
}

/// Only when somebody asks.
fn never() -> SnapshotPolicy {
    SnapshotPolicy { entries: 0, bytes: 0, keep_entries: 0, keep_bytes: 0, hold_bytes: 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_in_memory_starts_from_its_last_file_and_another_is_brought_up_by_one() {
    let mut cluster = Cluster::start(often()).await;
    cluster.write(0, 150).await;
    let leader = cluster.leader().await;
    let away = NODES.into_iter().find(|id| *id != leader).expect("there are three");
    wait(|| async { cluster.log_start(away).await > 0 && cluster.files(away) > 0 }, "a file is written by policy")
        .await;
    cluster.catch_up(away).await;
    let (state, applied) =
        (cluster.state(away, Consistency::Stale).await, cluster.seen(away).applied.load(Ordering::Relaxed));
    cluster.close(away).await;

    // It starts with an empty machine, from its own file and the rest of its log: it is not fed from the beginning.
    cluster.open(away).await;
    cluster.catch_up(away).await;
    let seen = cluster.seen(away).clone();
    assert_eq!(seen.restored.load(Ordering::Relaxed), 1, "from a file");
    assert!(seen.fed.load(Ordering::Relaxed) < applied, "{seen:?}, though it had applied up to {applied}");
    assert_eq!(cluster.state(away, Consistency::Stale).await, state);
    cluster.close(away).await;

    // What it misses is gone from the logs of the others, and so it is sent a file.
    cluster.write(150, 300).await;
    let leader = cluster.leader().await;
    wait(|| async { cluster.log_start(leader).await > applied + 10 }, "the log is compacted").await;
    cluster.open(away).await;
    cluster.catch_up(away).await;
    let snapshots = cluster.raft(away).metrics().snapshots.snapshot();
    assert!(snapshots.received >= 1 && snapshots.restored >= 1, "{snapshots:?}");
    assert_eq!(
        cluster.seen(away).restored.load(Ordering::Relaxed),
        2,
        "from its own file first, then from the one that came"
    );
    let expected = cluster.state(leader, Consistency::Linearizable).await;
    assert!(expected.starts_with("450 lines"), "{expected}");
    assert_eq!(cluster.state(away, Consistency::Stale).await, expected);

    // It serves as a file of its own from now on.
    cluster.close(away).await;
    cluster.open(away).await;
    cluster.catch_up(away).await;
    assert_eq!(cluster.raft(away).metrics().snapshots.snapshot().received, 0, "nothing is sent again");
    assert_eq!(cluster.state(away, Consistency::Stale).await, expected);
    for id in NODES {
        cluster.close(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_asked_for_holds_what_was_applied_and_compacts_the_log() {
    let mut cluster = Cluster::start(never()).await;
    cluster.write(0, 60).await;
    let leader = cluster.leader().await;
    assert_eq!((cluster.log_start(leader).await, cluster.files(leader)), (0, 0), "the policy asks for none");
    let committed = cluster.raft(leader).status().await.expect("it runs").commit_index;
    let last = cluster.raft(leader).snapshot().await.expect("made");
    assert!(last >= committed, "{last} holds less than {committed}, which was acknowledged before");
    wait(|| async { cluster.log_start(leader).await == last.0 }, "the log is compacted up to it").await;
    let stats = cluster.raft(leader).metrics().snapshots.snapshot();
    assert_eq!((stats.made, stats.newest), (1, last.0));
    let expected = cluster.state(leader, Consistency::Linearizable).await;

    // All of its log is gone: what it starts from is the file alone.
    for id in NODES {
        cluster.close(id).await;
    }
    for id in NODES {
        cluster.open(id).await;
    }
    cluster.catch_up(leader).await;
    assert_eq!(cluster.seen(leader).restored.load(Ordering::Relaxed), 1);
    assert_eq!(cluster.state(leader, Consistency::Linearizable).await, expected);
    for id in NODES {
        cluster.close(id).await;
    }
}

/// There is no network.
struct Nowhere;

impl Transport for Nowhere {
    fn send(&mut self, _: GroupId, messages: &mut Vec<Envelope>) {
        messages.clear();
    }
    fn set_peers(&mut self, _: &BTreeMap<NodeId, String>) {}
}

/// What one turn of the loop hands out makes room for what the next asks for: a node that left that to whatever wakes it next would read an entry a heartbeat.
#[tokio::test]
async fn a_log_that_is_read_back_entry_by_entry_waits_for_nothing_in_between() {
    // More heartbeats than anybody has patience for.
    const ENTRIES: u64 = 2000;
    let lines: Vec<String> = (0..ENTRIES).map(|n| format!("line {n}")).collect();
    let entries = Segment::pack(LogIndex(1), Term(1), EntryKind::Command, &lines).map(Entries::from);
    let write = LogWrite {
        seq: WriteSeq(1),
        hard_state: Some(HardState { current_term: Term(1), voted_for: Some(NodeId(1)) }),
        log_start: None,
        truncate_from: None,
        entries: entries.expect("it has entries"),
    };
    let mut storage = MemoryStorage::new();
    storage.write(&[(GroupId::FIRST, write)]).expect("an empty log takes them");
    let (_network, inbound) = tokio::sync::mpsc::channel(1);
    let machine = Lines::default();
    let seen = machine.seen.clone();
    let tune = |config: &mut raft_core::Config| {
        config.election_timeout = Duration::from_millis(400);
        config.heartbeat_interval = Duration::from_millis(200);
        config.max_append_bytes = 1;
    };
    let builder = Raft::builder(machine).identity(NodeId(1), "alone").snapshot_policy(never()).tune(tune);
    let raft = builder.start_with(storage, Nowhere, inbound).await.expect("it starts");
    // Nobody asks the node: that would wake it.
    wait(|| async { seen.applied.load(Ordering::Relaxed) >= ENTRIES }, "it applies what is on its disk").await;
    raft.shutdown();
    raft.stopped().await.expect("it stops");
}
