//! Rules that a review found broken, each with the clients that break it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use raft_core::{Entries, EntryKind, GroupId, LogIndex, NodeId};
use raft_net::{ClientEndpoint, Limits, TlsIdentity, pki};
use raft_node::client::protocol::{FrameReader, Request, Response};
use raft_node::client::{ClientConfig, Error, Missing};
use raft_node::{
    Consistency, Outcome, Proposal, Raft, ReadRequest, Replies, ReplySink, RequestError, Responder, StateMachine, Work,
};
use tokio::task::JoinSet;

use crate::cluster::Cluster;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to node 1 without the client library around it.
async fn raw_connection(cluster: &Cluster) -> quinn::Connection {
    let mut address = String::new();
    drop(cluster.client_with(|config: &mut ClientConfig| address.clone_from(&config.nodes[&NodeId(1)])));
    ClientEndpoint::new(cluster.tls(), Limits::default())
        .expect("an endpoint")
        .connect(NodeId(1), &address)
        .await
        .expect("it listens")
}

/// One place is taken by the observer of the cluster, one by the test.
const TWO_CLIENTS: &str = "[limits]\nmax_client_connections = 2\nmax_reply_bytes_per_connection = 1000";

#[tokio::test]
async fn a_client_that_takes_no_replies_and_vanishes_leaves_its_place() {
    let cluster = Cluster::start_with(1, TWO_CLIENTS).await;
    let connection = raw_connection(&cluster).await;
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    let mut out = BytesMut::new();
    for id in 0..10_000 {
        Request::Status { group: GroupId::FIRST }.encode_to(id, &mut out).expect("short");
    }
    // The replies fill what the client lets in, then what the node keeps for it; then the node reads no more.
    send.write_all(&out).await.expect("QUIC takes as much");
    tokio::time::sleep(Duration::from_secs(1)).await;
    connection.close(0u32.into(), b"gone");
    let start = Instant::now();
    let client = cluster.client_with(|config| config.timeout = Duration::from_secs(1));
    while let Err(error) = client.put(b"k", b"v").await {
        assert!(start.elapsed() < PATIENCE, "the place is still taken: {error}");
    }
}

#[tokio::test]
async fn a_client_that_resets_its_stream_is_disconnected() {
    let cluster = Cluster::start(1).await;
    let connection = raw_connection(&cluster).await;
    let (mut send, _recv) = connection.open_bi().await.expect("a stream");
    send.write_all(b"\x11").await.expect("it reads");
    send.reset(0u32.into()).expect("open");
    tokio::time::timeout(PATIENCE, connection.closed()).await.expect("of no further use");
}

#[tokio::test]
async fn a_value_that_no_frame_may_hold_is_refused_and_disturbs_nobody() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    client.put(b"k", b"v").await.expect("written");
    let error = client.put(b"k", &vec![0; 20 << 20]).await.expect_err("too long");
    assert!(matches!(error, Error::Refused(_) | Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_query_that_is_too_long_is_refused() {
    let cluster = Cluster::start(1).await;
    let connection = raw_connection(&cluster).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let mut out = BytesMut::new();
    let query = Bytes::from(vec![7; 4 << 20]);
    Request::Read { group: GroupId::FIRST, consistency: Consistency::Linearizable, query }
        .encode_to(1, &mut out)
        .expect("short");
    send.write_all(&out).await.expect("it reads");
    let mut reader = FrameReader::new(1 << 20);
    let frame = loop {
        if let Some(frame) = reader.next_frame().expect("well-formed") {
            break frame;
        }
        reader.push(&recv.read_chunk(1 << 16, true).await.expect("no error").expect("a reply").bytes);
    };
    assert!(matches!(frame.into_response(), Ok(Response::TooLarge { .. })));
}

/// The client needs a thread of its own: waiting for the process blocks this one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_still_answers() {
    let mut cluster = Cluster::start_with(2, "[raft]\ncheck_quorum = false").await;
    let leader = cluster.leader().await;
    let client = cluster.client_with(|config| config.timeout = PATIENCE);
    client.put(b"k", b"1").await.expect("written");
    for id in cluster.ids() {
        if id != leader {
            cluster.kill(id);
        }
    }
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.put(b"k", b"2").await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cluster.terminate(leader).success());
    let error = write.await.expect("no panic").expect_err("there is no majority");
    let Error::OutcomeUnknown { why } = &error else { panic!("{error}") };
    assert!(!why.contains("connection lost"), "{why}");
}

#[tokio::test]
async fn a_read_without_an_answer_does_not_claim_that_nobody_was_there() {
    let mut cluster = Cluster::start_with(2, "[raft]\ncheck_quorum = false").await;
    let leader = cluster.leader().await;
    cluster.client().put(b"k", b"1").await.expect("written");
    for id in cluster.ids() {
        if id != leader {
            cluster.kill(id);
        }
    }
    let client = cluster.client_with(|config| {
        config.nodes.retain(|&id, _| id == leader);
        config.timeout = Duration::from_secs(2);
    });
    let error = client.get(b"k", Consistency::Linearizable).await.expect_err("there is no majority");
    assert!(!matches!(error, Error::Timeout { reason: Missing::Nodes, .. }), "{error}");
}

/// Whoever collects the log may end before the node does.
#[tokio::test]
async fn a_node_outlives_the_reader_of_its_log() {
    let mut cluster = Cluster::prepare(1, "");
    cluster.spawn_with_broken_log(NodeId(1));
    cluster.leader().await;
    cluster.client().put(b"k", b"v").await.expect("written");
    assert!(cluster.terminate(NodeId(1)).success());
}

/// Remembers nothing.
#[derive(Default)]
struct Nothing(LogIndex);

impl StateMachine for Nothing {
    type Error = std::convert::Infallible;

    fn applied(&self) -> LogIndex {
        self.0
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                replies.push(b"");
            }
            self.0 = entry.index;
        }
        Ok(())
    }

    fn query(&mut self, _query: &[u8], _answer: &mut BytesMut) -> Result<(), Self::Error> {
        Ok(())
    }
}

#[derive(Default)]
struct Counter(AtomicU64);

impl ReplySink for Counter {
    fn reply(&self, _token: u64, _outcome: Outcome<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {}
}

/// A node without peers, and the directory that it lives in.
async fn alone(machine: impl StateMachine) -> (Raft, tempfile::TempDir) {
    let day = Duration::from_hours(24);
    let ca = pki::CertificateAuthority::generate(day).expect("an authority");
    let own = ca.issue_node("demo", NodeId(1), day).expect("a certificate");
    let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem).expect("valid");
    let dir = tempfile::tempdir().expect("a directory");
    let raft = Raft::builder(machine)
        .identity(NodeId(1), "demo")
        .data_dir(dir.path())
        .listen("127.0.0.1:0".parse().expect("an address"))
        .tls(tls)
        .start()
        .await
        .expect("started");
    (raft, dir)
}

#[tokio::test]
async fn a_flood_of_requests_does_not_stop_the_clock() {
    let (raft, _dir) = alone(Nothing::default()).await;
    let flooding = Arc::new(Counter::default());
    let flood = std::thread::spawn({
        let (raft, answered) = (raft.clone(), flooding.clone());
        move || {
            let (start, mut sent) = (Instant::now(), 0_u64);
            while start.elapsed() < Duration::from_secs(4) {
                // Enough that the loop finds something whenever it looks, and not so much that memory runs out.
                if sent - answered.0.load(Ordering::Relaxed) < 100_000 {
                    for _ in 0..100 {
                        let responder = Responder::new(answered.clone(), 0);
                        raft.propose_batch(vec![Proposal { command: Bytes::new(), responder }]);
                    }
                    sent += 100;
                }
            }
        }
    });
    let elected = tokio::time::timeout(Duration::from_secs(3), raft.leader().wait_for(Option::is_some)).await.is_ok();
    flood.join().expect("no panic");
    assert!(elected, "no leader during the flood");
    raft.shutdown();
    raft.stopped().await.expect("stops in order");
    assert_eq!(raft.propose("late").await, Err(RequestError::ShuttingDown));
}

/// Values so large that the store is written out every few dozen of them, in the middle of which all nodes are killed.
#[tokio::test]
async fn stores_that_were_killed_while_writing_are_the_same_everywhere() {
    let mut cluster = Cluster::start(3).await;
    let mut written: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    for round in 0..3_u64 {
        let mut writers = JoinSet::new();
        for n in 0..8_u64 {
            let client = cluster.client_with(|config| config.timeout = Duration::from_secs(2));
            writers.spawn(async move {
                let mut done = BTreeMap::new();
                for i in 0..40 {
                    let key = format!("key-{n}-{}", i % 7).into_bytes();
                    let value = vec![(round * 40 + i) as u8; 200_000 + (i as usize * 997)];
                    match client.put(&key, &value).await {
                        Ok(revision) => drop(done.insert(key, revision)),
                        Err(_) => break,
                    }
                }
                done
            });
        }
        tokio::time::sleep(Duration::from_millis(700 + round * 150)).await;
        for id in cluster.ids() {
            cluster.kill(id);
        }
        for done in writers.join_all().await {
            for (key, revision) in done {
                let newest = written.entry(key).or_default();
                *newest = revision.max(*newest);
            }
        }
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        cluster.leader().await;
    }
    let mut states = Vec::new();
    let fence = cluster.client().put(b"fence", b"").await.expect("written");
    for id in cluster.ids() {
        let client = cluster.client_with(|config| config.nodes.retain(|&node, _| node == id));
        let start = Instant::now();
        while client.get(b"fence", Consistency::Stale).await.expect("read").is_none_or(|found| found.revision < fence) {
            assert!(start.elapsed() < PATIENCE, "node {id} lags");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut state = BTreeMap::new();
        for key in written.keys() {
            let found = client.get(key, Consistency::Stale).await.expect("read").expect("acknowledged");
            assert!(found.revision >= written[key], "node {id} lost a write");
            state.insert(key.clone(), (found.revision, found.value));
        }
        states.push(state);
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "the stores differ");
}

/// Refuses the second command, and remembers whether it was asked anything after that.
struct Failing {
    applied: LogIndex,
    failed: bool,
    asked: Arc<AtomicU64>,
}

impl StateMachine for Failing {
    type Error = std::io::Error;

    fn applied(&self) -> LogIndex {
        self.applied
    }

    fn is_prompt(&self, _work: Work<'_>) -> bool {
        true
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
            if entry.payload == b"fail" {
                self.failed = true;
                return Err(std::io::Error::other("as asked"));
            }
            replies.push(b"");
        }
        self.applied = entries.last_index().unwrap_or(self.applied);
        Ok(())
    }

    fn query(&mut self, _query: &[u8], _answer: &mut BytesMut) -> Result<(), Self::Error> {
        self.asked.fetch_add(u64::from(self.failed), Ordering::Relaxed);
        Ok(())
    }
}

#[tokio::test]
async fn a_state_machine_that_failed_is_not_asked_again() {
    for _ in 0..5 {
        let asked = Arc::new(AtomicU64::new(0));
        let machine = Failing { applied: LogIndex::ZERO, failed: false, asked: asked.clone() };
        let (raft, _dir) = alone(machine).await;
        raft.leader().wait_for(Option::is_some).await.expect("a leader");
        let write = tokio::spawn({
            let raft = raft.clone();
            async move { raft.propose("fail").await }
        });
        let answered = Arc::new(Counter::default());
        let mut sent = 0;
        while !write.is_finished() {
            // One of them meets the very turn of the loop in which the command is applied.
            if sent - answered.0.load(Ordering::Relaxed) < 100 {
                let responder = Responder::new(answered.clone(), 0);
                let consistency = Consistency::Linearizable;
                raft.read_batch(vec![ReadRequest { query: Bytes::new(), consistency, responder }]);
                sent += 1;
            }
            tokio::task::yield_now().await;
        }
        assert!(write.await.expect("no panic").is_err());
        let error = raft.stopped().await.expect_err("it failed").to_string();
        assert!(error.contains("as asked"), "{error}");
        assert_eq!(asked.load(Ordering::Relaxed), 0, "asked after it had failed");
    }
}
