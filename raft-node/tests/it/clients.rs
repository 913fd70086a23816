//! The client library and the protocol underneath, against real nodes.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_core::{GroupId, NodeId};
use raft_net::{ClientEndpoint, Limits};
use raft_node::client::protocol::{FrameReader, Request, Response};
use raft_node::client::{CasOutcome, Client, ClientConfig, Error, Missing};
use raft_node::{Consistency, Stage};
use tokio::task::JoinSet;

use crate::cluster::Cluster;

#[tokio::test]
async fn many_callers_share_a_connection() {
    let cluster = Cluster::start(3).await;
    let client = cluster.client();
    let mut writers = JoinSet::new();
    for n in 0..1000_u64 {
        let client = client.clone();
        writers.spawn(async move { (n, client.put(format!("key-{n:04}").as_bytes(), &n.to_be_bytes()).await) });
    }
    let mut revisions = Vec::new();
    while let Some(done) = writers.join_next().await {
        let (n, revision) = done.expect("no panic");
        revisions.push(revision.expect("written"));
        let found = client.get(format!("key-{n:04}").as_bytes(), Consistency::Linearizable).await.expect("read");
        assert_eq!(found.map(|found| found.value), Some(Bytes::copy_from_slice(&n.to_be_bytes())));
    }
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), 1000, "each write has a revision of its own");
    let page = client.scan(b"key-0990", None, 100, Consistency::Linearizable).await.expect("read");
    assert_eq!((page.items.len(), page.more), (10, false));
    let status = cluster.client().status(cluster.leader().await).await.expect("reachable");
    assert!(status.metrics["log.syncs"] < 1000, "{} syncs for 1000 writes", status.metrics["log.syncs"]);
}

/// The stages of a write, on every node: all that the leader measures lies within the whole.
#[tokio::test]
async fn a_node_tells_where_the_time_of_writes_goes_if_it_is_asked_to() {
    let cluster = Cluster::start_with(3, "[metrics]\ntimings = true\n").await;
    let client = cluster.client();
    for n in 0..50u32 {
        client.put(b"key", &n.to_be_bytes()).await.expect("written");
    }
    let leader = cluster.leader().await;
    let mut stages = BTreeMap::new();
    for id in cluster.ids() {
        let metrics = client.status(id).await.expect("reachable").metrics;
        for stage in Stage::ALL {
            let figure = |what: &str| metrics.get(&format!("timings.{}.{what}", stage.name())).copied();
            if let Some(count) = figure("count") {
                let times = ["p50_ns", "p99_ns", "max_ns"].map(|what| figure(what).expect("measured"));
                assert!(count > 0 && times.is_sorted(), "{id} {stage:?} {count} {times:?}");
                stages.insert((id, stage), (count, times[0]));
            }
        }
    }
    let found = |id: NodeId, stage: Stage| stages.get(&(id, stage)).copied().unwrap_or_default();
    let (whole, median) = found(leader, Stage::Whole);
    // One is followed at a time, so some may be missed; and a session begins with a write, and leadership with an entry of its own.
    assert!((20..=55).contains(&whole), "{whole} of 50 writes were followed");
    for stage in [
        Stage::Queued,
        Stage::Sent,
        Stage::Durable,
        Stage::Acknowledged,
        Stage::Committed,
        Stage::Applied,
        Stage::Answered,
    ] {
        let (count, part) = found(leader, stage);
        assert_eq!(count, whole, "{stage:?}");
        assert!(part <= 2 * median, "{stage:?} took {part} ns of {median}");
    }
    assert!(found(leader, Stage::Heartbeat).0 > 0, "{stages:?}");
    for id in cluster.ids() {
        assert!(found(id, Stage::WriterSynced).0 > 0 && found(id, Stage::WriterNoticed).0 > 0, "{stages:?}");
        let followed = [Stage::Ordered, Stage::Stored, Stage::Confirmed].map(|stage| found(id, stage).0);
        assert!(id == leader || followed.iter().all(|count| *count >= 20), "{id}: {followed:?}");
    }
    let table = cluster.command("status").arg("--timings").output().expect("runs");
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    assert!(table.contains("leader.whole") && table.contains("follower.durable"), "{table}");
}

/// Nothing is measured that nobody wants to know.
#[tokio::test]
async fn without_timings_there_are_none() {
    let cluster = Cluster::start(1).await;
    cluster.client().put(b"key", b"value").await.expect("written");
    let metrics = cluster.client().status(NodeId(1)).await.expect("reachable").metrics;
    assert!(metrics.keys().all(|name| !name.starts_with("timings")), "{metrics:?}");
}

#[tokio::test]
async fn one_address_is_enough_to_find_the_leader() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = cluster.ids().into_iter().find(|&id| id != leader).expect("three nodes");
    let client = cluster.client_with(|config| config.nodes.retain(|&id, _| id == follower));
    client.put(b"k", b"v").await.expect("the follower names the leader");
    assert_eq!((client.leader(), client.nodes().len()), (Some(leader), 2));
    let alone = cluster.client_with(|config| config.nodes.retain(|&id, _| id == follower));
    let mut stale = None;
    // A follower learns of the commit a little later.
    for _ in 0..200 {
        stale = alone.get(b"k", Consistency::Stale).await.expect("a follower answers");
        if stale.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(stale.is_some());
    assert_eq!(alone.leader(), None, "a stale read says nothing about who leads");
}

#[tokio::test]
async fn one_of_many_rivals_wins() {
    let cluster = Cluster::start(1).await;
    let client = cluster.client();
    let mut rivals = JoinSet::new();
    for n in 0..50_u8 {
        let client = client.clone();
        rivals.spawn(async move { client.cas(b"lock", 0, &[n]).await.expect("an outcome") });
    }
    let outcomes = rivals.join_all().await;
    let won = outcomes.iter().filter(|outcome| matches!(outcome, CasOutcome::Written { .. })).count();
    assert_eq!((won, outcomes.len()), (1, 50));
}

#[tokio::test]
async fn a_paused_node_is_left_and_its_write_reported_as_unknown() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client_with(|config| config.sessions = false);
    client.put(b"k", b"1").await.expect("written");
    let leader = client.leader().expect("just used");
    cluster.pause(leader);
    let error = client.put(b"k", b"2").await.expect_err("nobody can say");
    assert!(matches!(&error, Error::OutcomeUnknown { why } if why.contains("silent")), "{error}");
    client.put(b"k", b"3").await.expect("the others go on");
    assert_ne!(client.leader(), Some(leader));
    cluster.resume(leader);
    let repeating = cluster.client();
    repeating.put(b"k", b"4").await.expect("written");
    cluster.pause(repeating.leader().expect("just used"));
    repeating.put(b"k", b"5").await.expect("repeated at the next leader");
    let read = repeating.get(b"k", Consistency::Linearizable).await.expect("read");
    assert_eq!(read.map(|found| found.value), Some(Bytes::from_static(b"5")));
}

#[tokio::test]
async fn nobody_there_is_a_timeout_that_says_so() {
    let cluster = Cluster::prepare(2, "");
    let client = cluster.client_with(|config| config.timeout = Duration::from_millis(300));
    let error = client.put(b"k", b"v").await.expect_err("nobody listens");
    let Error::Timeout { reason: Missing::Nodes, nodes, .. } = &error else { panic!("{error}") };
    assert!(!nodes.0.is_empty(), "{error}");
}

/// A connection without the client library around it.
async fn raw_connection(cluster: &Cluster) -> quinn::Connection {
    let mut address = String::new();
    let client = cluster.client_with(|config: &mut ClientConfig| address.clone_from(&config.nodes[&NodeId(1)]));
    drop::<Client>(client);
    ClientEndpoint::new(cluster.tls(), Limits::default())
        .expect("an endpoint")
        .connect(NodeId(1), &address)
        .await
        .expect("it listens")
}

#[tokio::test]
async fn requests_may_be_pipelined_and_responses_are_complete_at_the_end() {
    let cluster = Cluster::start(1).await;
    let connection = raw_connection(&cluster).await;
    let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
    let mut out = BytesMut::new();
    for id in 0..20_000 {
        let group = if id % 2 == 0 { GroupId::FIRST } else { GroupId(7) };
        Request::Status { group }.encode_to(id, &mut out).expect("short");
    }
    // More than may be in progress, and the end of the stream at once: every request must get its response all the same.
    let writing = tokio::spawn(async move {
        send.write_all(&out).await.expect("it reads");
        send.finish().expect("open");
        send
    });
    let mut reader = FrameReader::new(1 << 20);
    let mut answered = vec![false; 20_000];
    while let Some(chunk) = recv.read_chunk(1 << 16, true).await.expect("no error") {
        reader.push(&chunk.bytes);
        while let Some(frame) = reader.next_frame().expect("well-formed") {
            let id = frame.id;
            let response = frame.into_response().expect("well-formed");
            assert_eq!(matches!(response, Response::Done(_)), id % 2 == 0, "{response:?}");
            assert!(!std::mem::replace(&mut answered[id as usize], true), "{id} was answered twice");
        }
    }
    assert!(answered.iter().all(|&answered| answered));
    writing.await.expect("no panic");
}

#[tokio::test]
async fn nonsense_closes_the_connection_and_nothing_else() {
    let cluster = Cluster::start(1).await;
    let garbage: [(&[u8], &str); 4] = [
        (b"\xff\xff\xff\xff", "over the limit"),
        (b"\x01\0\0\0", "too short"),
        (b"\x11\0\0\0\x07\0\0\0\0\0\0\0\x63\x01\0\0\0\0\0\0\0", "unknown kind 99"),
        (b"\x12\0\0\0\x07\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\x09", "malformed body"),
    ];
    for (bytes, expected) in garbage {
        let connection = raw_connection(&cluster).await;
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("it reads");
        let closed =
            tokio::time::timeout(Duration::from_secs(5), connection.closed()).await.expect("closed").to_string();
        assert!(closed.contains(expected), "{closed}");
    }
    cluster.client().put(b"k", b"v").await.expect("others are served as before");
}

/// A client that has a connection to the process that was killed hears that it is lost only when it asks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_killed_and_is_back_answers_the_first_question() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client();
    let id = cluster.leader().await;
    for _ in 0..5 {
        client.status(id).await.expect("it is there");
        cluster.kill(id);
        cluster.restart(id).await;
        client.status(id).await.expect("it is there again");
    }
}
