//! Clusters that change while they are being used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_core::NodeId;
use raft_node::Consistency;
use raft_node::client::Client;
use tokio::task::JoinHandle;

use super::cluster::{Cluster, program};

/// A client that writes one key after the other, and fails the test when a write fails.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(client: Client) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, count) = (stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let n = count.load(Ordering::Relaxed);
                client.put(format!("key-{n}").as_bytes(), b"value").await.expect("a retry could finish it");
                count.store(n + 1, Ordering::Relaxed);
            }
        });
        Load { stop, written, task }
    }

    /// Waits until so many more writes have been acknowledged.
    async fn goes_on(&self, writes: u64) {
        let start = (Instant::now(), self.written.load(Ordering::Relaxed));
        while self.written.load(Ordering::Relaxed) < start.1 + writes {
            assert!(start.0.elapsed() < Duration::from_secs(30), "writes have stopped");
            assert!(!self.task.is_finished(), "a write failed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("no write failed");
        self.written.load(Ordering::Relaxed)
    }
}

/// Runs `raft-node member ...` and returns what it prints.
pub(crate) async fn member(cluster: &Cluster, arguments: &[&str]) -> Result<String, String> {
    let mut command = program();
    command.arg("member").args(arguments).arg("--config").arg(cluster.dir().join("client.toml"));
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// Waits until a node has applied what the leader has committed by now.
pub(crate) async fn catches_up(client: &Client, id: NodeId) {
    let leader = client.leader().expect("just used");
    let goal = client.status(leader).await.expect("it answers").commit_index;
    let start = Instant::now();
    loop {
        let at = client.status(id).await.map_or(0, |status| status.applied_index);
        if at >= goal {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "node {id} is at {at}, not at {goal}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_cluster_grows_from_one_to_five_and_shrinks_to_three_under_load() {
    let mut cluster = Cluster::prepare_to_grow(1, 5, "");
    cluster.ids().into_iter().for_each(|id| cluster.spawn(id));
    assert_eq!(cluster.leader().await, NodeId(1));
    let client = cluster.client();
    let load = Load::start(client.clone());
    load.goes_on(20).await;
    for id in 2..=5 {
        add_when_up(&cluster, NodeId(id)).await;
        load.goes_on(10).await;
    }
    let listed = member(&cluster, &["list", "--json"]).await.expect("a list");
    assert_eq!(listed.matches("\"voter\"").count(), 5, "{listed}");
    let leader = cluster.leader().await;
    let removed = member(&cluster, &["remove", &leader.to_string()]).await;
    assert!(removed.is_ok(), "the leader may go: {removed:?}");
    load.goes_on(20).await;
    let next = cluster.ids().into_iter().find(|id| *id != leader && Some(*id) != client.leader()).expect("another");
    let removed = member(&cluster, &["remove", &next.to_string()]).await;
    assert!(removed.is_ok(), "{removed:?}");
    for id in [leader, next] {
        cluster.terminate(id);
    }
    load.goes_on(20).await;
    let written = load.end().await;
    let last = format!("key-{}", written - 1);
    assert!(client.get(last.as_bytes(), Consistency::Linearizable).await.expect("read").is_some());
    let listed = member(&cluster, &["list"]).await.expect("a list");
    assert_eq!(listed.matches(" voter ").count(), 3, "{listed}");
    for id in cluster.ids().into_iter().filter(|id| ![leader, next].contains(id)) {
        catches_up(&client, id).await;
    }
}

#[tokio::test]
async fn a_learner_gets_everything_and_its_vote_is_not_needed() {
    let mut cluster = Cluster::prepare_to_grow(1, 2, "");
    cluster.spawn(NodeId(1));
    cluster.leader().await;
    let client = cluster.client();
    client.put(b"k", b"1").await.expect("written");
    let arguments = ["add", "2", &cluster.address(NodeId(2)), "--learner"];
    let refused = member(&cluster, &arguments).await.expect_err("nobody can say which node that is");
    assert!(refused.contains("start it first"), "{refused}");
    cluster.restart(NodeId(2)).await;
    let added = member(&cluster, &arguments).await;
    assert!(added.as_ref().is_ok_and(|text| text.contains("learner")), "{added:?}");
    catches_up(&client, NodeId(2)).await;
    cluster.kill(NodeId(2));
    client.put(b"k", b"2").await.expect("its vote is not needed");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let refused = member(&cluster, &["promote", "2"]).await.expect_err("it has not answered for a while");
    assert!(refused.contains("cannot vote yet"), "{refused}");
    cluster.restart(NodeId(2)).await;
    catches_up(&client, NodeId(2)).await;
    let promoted = member(&cluster, &["promote", "2"]).await;
    assert!(promoted.is_ok(), "{promoted:?}");
}

/// A disk that was lost took with it what the node had promised. Under its old id it is nobody, until it has been removed and added again.
#[tokio::test]
async fn a_node_with_an_emptied_disk_is_refused_until_it_is_added_anew() {
    // The beginning of the log is soon gone: who has nothing needs a snapshot.
    let often = "[snapshot]\nbytes = 65536\nkeep_entries = 10\nkeep_bytes = 16384\n";
    let mut cluster = Cluster::start_with(3, often).await;
    let client = cluster.client();
    client.put(b"k", b"1").await.expect("written");
    for n in 0..300_u32 {
        client.put(&n.to_be_bytes(), &[7; 1024]).await.expect("written");
    }
    let leader = cluster.leader().await;
    let lost = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    catches_up(&client, lost).await;
    cluster.kill(lost);
    cluster.wipe(lost);
    cluster.restart(lost).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let status = cluster.client().status(lost).await.expect("it answers");
    assert_eq!((status.applied_index, status.role == "leader"), (0, false), "nobody talks to it: {status:?}");
    let log = cluster.log(lost);
    assert!(log.contains("raft-node member remove"), "it is told what to do:\n{log}");
    assert!(status.not_ready.contains(&format!("`raft-node member remove {lost}`")), "and tells it: {status:?}");
    let refused = member(&cluster, &["add", &lost.to_string(), &cluster.address(lost)]).await.expect_err("a member");
    assert!(refused.contains(&format!("remove it first: `raft-node member remove {lost}`")), "{refused}");
    client.put(b"k", b"2").await.expect("the others go on");

    cluster.kill(lost);
    cluster.wipe(lost);
    let removed = member(&cluster, &["remove", &lost.to_string()]).await;
    assert!(removed.is_ok(), "{removed:?}");
    cluster.spawn_joining(lost);
    add_when_up(&cluster, lost).await;
    catches_up(&client, lost).await;
    let status = cluster.client().status(lost).await.expect("it answers");
    assert!(status.metrics["snapshot.restored"] >= 1, "by a snapshot: {status:?}");
    assert_eq!(status.members.len(), 3, "which says who belongs to the cluster");
    let found = client.get(b"k", Consistency::Linearizable).await.expect("read").expect("kept");
    assert_eq!(&found.value[..], b"2");
    let other = cluster.ids().into_iter().find(|id| *id != leader && *id != lost).expect("a third");
    cluster.kill(other);
    client.put(b"k", b"3").await.expect("its vote counts again");
}

/// It has just been started.
pub(crate) async fn add_when_up(cluster: &Cluster, id: NodeId) {
    let start = Instant::now();
    loop {
        match member(cluster, &["add", &id.to_string(), &cluster.address(id)]).await {
            Ok(_) => return,
            Err(text) => {
                assert!(text.contains("start it first") && start.elapsed() < Duration::from_secs(30), "{text}");
            }
        }
    }
}

/// Who belongs to the cluster is in its log: the configuration file is only for the first start.
#[tokio::test]
async fn a_grown_cluster_survives_a_restart_of_all() {
    let mut cluster = Cluster::prepare_to_grow(1, 3, "");
    cluster.ids().into_iter().for_each(|id| cluster.spawn(id));
    cluster.leader().await;
    let client = cluster.client();
    client.put(b"k", b"1").await.expect("written");
    add_when_up(&cluster, NodeId(2)).await;
    add_when_up(&cluster, NodeId(3)).await;
    for id in cluster.ids() {
        cluster.kill(id);
    }
    for id in [2, 3] {
        cluster.spawn(NodeId(id));
    }
    let leader = cluster.leader().await;
    assert_ne!(leader, NodeId(1), "it does not run");
    let again = cluster.client();
    let found = again.get(b"k", Consistency::Linearizable).await.expect("read").expect("kept");
    assert_eq!(&found.value[..], b"1");
    cluster.restart(NodeId(1)).await;
    catches_up(&again, NodeId(1)).await;
}

/// Nobody talks to it any more, so what it does not remember it will never know again.
#[tokio::test]
async fn a_removed_node_knows_that_after_a_restart() {
    let mut cluster = Cluster::start(3).await;
    let client = cluster.client();
    client.put(b"k", b"1").await.expect("written");
    let leader = cluster.leader().await;
    let out = cluster.ids().into_iter().find(|id| *id != leader).expect("a follower");
    catches_up(&client, out).await;
    let removed = member(&cluster, &["remove", &out.to_string()]).await;
    assert!(removed.is_ok(), "{removed:?}");
    let start = Instant::now();
    while !cluster.log(out).contains("it can be stopped") {
        assert!(start.elapsed() < Duration::from_secs(30), "it does not hear of it:\n{}", cluster.log(out));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Some election timeouts, for its state to become durable; and then for it to stand, if it did.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.kill(out);
    let before = cluster.log(out).len();
    cluster.restart(out).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let log = cluster.log(out);
    assert!(!log[before..].contains("campaigning"), "{}", &log[before..]);
    let status = cluster.client().status(out).await.expect("it answers");
    assert!(!status.members.contains_key(&out), "{status:?}");
}
