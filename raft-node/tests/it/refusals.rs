//! Nodes that the others will have nothing to do with: they say so, and do no harm.

use std::time::{Duration, Instant};

use raft_core::NodeId;
use raft_node::Consistency;
use raft_node::client::protocol::NodeStatus;

use super::cluster::Cluster;
use super::members::{add_when_up, member};

/// Waits until a node gives such a reason for not being ready.
async fn says(cluster: &Cluster, id: NodeId, part: &str) -> NodeStatus {
    let (client, start) = (cluster.client(), Instant::now());
    loop {
        let last = client.status(id).await;
        if let Ok(status) = &last
            && status.not_ready.contains(part)
        {
            return status.clone();
        }
        assert!(start.elapsed() < Duration::from_secs(30), "node {id} does not say `{part}`: {last:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// They are a majority, and have nothing: what the third one has would be lost. Whether they dial it or it dials them.
#[tokio::test]
async fn two_founders_that_have_both_forgotten_do_not_begin_anew_beside_the_first() {
    two_forget(NodeId(1), "").await;
}

#[tokio::test]
async fn two_founders_that_have_both_forgotten_do_not_begin_anew_beside_the_last() {
    two_forget(NodeId(3), "").await;
}

/// There, whoever stands writes down that it has, and would not be taken for one that has forgotten after a restart.
#[tokio::test]
async fn two_founders_that_have_both_forgotten_do_not_begin_anew_without_pre_votes() {
    two_forget(NodeId(1), "[raft]\npre_vote = false\n").await;
}

async fn two_forget(kept: NodeId, settings: &str) {
    let mut cluster = Cluster::start_with(3, settings).await;
    cluster.client().put(b"k", b"1").await.expect("written");
    let lost: Vec<NodeId> = cluster.ids().into_iter().filter(|id| *id != kept).collect();
    for id in &lost {
        cluster.kill(*id);
        cluster.wipe(*id);
    }
    for id in &lost {
        cluster.spawn(*id);
    }
    for id in &lost {
        let status = says(&cluster, *id, "with another data directory").await;
        assert!(status.not_ready.starts_with(&format!("node {kept} knows node {id}")), "{status:?}");
        assert!(status.refusals.contains_key(&kept), "{status:?}");
    }
    let client = cluster.client_with(|config| config.timeout = Duration::from_secs(1));
    // Whoever asks them for something does not make them do anything.
    assert!(client.put(b"k", b"2").await.is_err(), "there is no majority that has what was there");
    assert!(client.get(b"k", Consistency::Linearizable).await.is_err());
    // Much longer than an election takes, and than they would wait for one that they cannot reach.
    tokio::time::sleep(Duration::from_secs(7)).await;
    for id in &lost {
        let status = client.status(*id).await.expect("it answers");
        assert_eq!((status.term, &*status.role, status.last_index), (0, "follower", 0), "{status:?}");
    }
    let found = client.get(b"k", Consistency::Linearizable).await;
    assert!(found.is_err(), "there is no majority that has it: {found:?}");
    assert!(client.status(kept).await.expect("it answers").last_index > 0, "what there was is there");
    // Nor after a restart.
    for id in &lost {
        cluster.kill(*id);
        cluster.restart(*id).await;
        says(&cluster, *id, "with another data directory").await;
        assert_eq!(client.status(*id).await.expect("it answers").term, 0);
    }
}

#[tokio::test]
async fn a_cluster_begins_although_one_of_its_founders_is_absent() {
    let mut cluster = Cluster::prepare(3, "");
    for id in [1, 3].map(NodeId) {
        cluster.spawn(id);
    }
    cluster.leader().await;
    cluster.client().put(b"k", b"1").await.expect("written");
}

/// Whether it would have dialled the others or they it.
#[tokio::test]
async fn a_node_that_was_removed_while_it_was_down_says_so_when_it_is_started() {
    for removed in [1, 3].map(NodeId) {
        let mut cluster = Cluster::start(3).await;
        cluster.client().put(b"k", b"1").await.expect("written");
        cluster.kill(removed);
        cluster.leader().await;
        let done = member(&cluster, &["remove", &removed.to_string()]).await;
        assert!(done.is_ok(), "{done:?}");
        cluster.restart(removed).await;
        let status = says(&cluster, removed, "is no member").await;
        assert!(status.not_ready.contains("it can be stopped"), "{status:?}");
        cluster.client().put(b"k", b"2").await.expect("the others go on");
    }
}

/// The vote of a learner is waited for in vain when its disk was lost: that is said at once.
#[tokio::test]
async fn a_learner_with_an_emptied_disk_is_to_be_removed_first() {
    let mut cluster = Cluster::prepare_to_grow(1, 2, "");
    cluster.ids().into_iter().for_each(|id| cluster.spawn(id));
    cluster.leader().await;
    cluster.restart_learner(NodeId(2)).await;
    let address = cluster.address(NodeId(2));
    let refused = member(&cluster, &["add", "2", &address]).await.expect_err("it is another");
    assert!(refused.contains("another data directory") && refused.contains("raft-node member remove 2"), "{refused}");
    says(&cluster, NodeId(2), "`raft-node member remove 2`, then `raft-node member add 2 ADDRESS`").await;
    let removed = member(&cluster, &["remove", "2"]).await;
    assert!(removed.is_ok(), "{removed:?}");
    // It may have heard already that it was.
    says(&cluster, NodeId(2), "`raft-node member add 2 ADDRESS`").await;
    add_when_up(&cluster, NodeId(2)).await;
}

impl Cluster {
    /// Adds a node as a learner, and takes its disk away.
    async fn restart_learner(&mut self, id: NodeId) {
        let start = Instant::now();
        while let Err(text) = member(self, &["add", &id.to_string(), &self.address(id), "--learner"]).await {
            assert!(text.contains("start it first") && start.elapsed() < Duration::from_secs(30), "{text}");
        }
        self.kill(id);
        self.wipe(id);
        self.restart(id).await;
    }
}
