//! Three nodes in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use raft_core::{GroupId, NodeId};
use raft_net::{TlsIdentity, pki};
use raft_node::{Consistency, GroupOptions, Node, NodeBuilder, Raft, RequestError};

use super::IDS;
use super::machine::Numbers;
use crate::cluster::free_port;

/// How long anything may take that should take a second, on a machine that is busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

pub(super) struct Trio {
    dir: tempfile::TempDir,
    tls: BTreeMap<NodeId, TlsIdentity>,
    addresses: BTreeMap<NodeId, String>,
    nodes: BTreeMap<NodeId, Node>,
}

/// A node by itself, with clients whose service opens a group; and the directory, to be kept until the node has ended.
pub(super) async fn serving(group: GroupId, machine: Numbers) -> (tempfile::TempDir, Node) {
    alone(|builder| {
        builder.serve_clients(move |node, _clients| async move {
            // The node may end before.
            let _ = node.create_group(group, machine, GroupOptions::new().founders([IDS[0]])).await;
        })
    })
    .await
}

/// A node by itself; and the directory, to be kept until the node has ended.
pub(super) async fn alone(with: impl FnOnce(NodeBuilder) -> NodeBuilder) -> (tempfile::TempDir, Node) {
    let (day, id) = (Duration::from_hours(24), IDS[0]);
    let ca = pki::CertificateAuthority::generate(day).expect("an authority");
    let own = ca.issue_node("groups", id, day).expect("a certificate");
    let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem).expect("valid");
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Node::builder()
        .identity(id, "groups")
        .data_dir(dir.path())
        .listen("127.0.0.1:0".parse().expect("an address"))
        .tls(tls);
    let node = with(builder).start().await.expect("started");
    (dir, node)
}

impl Trio {
    /// Without any group.
    pub(super) async fn start() -> Trio {
        let day = Duration::from_hours(24);
        let ca = pki::CertificateAuthority::generate(day).expect("an authority");
        let tls = |id| {
            let own = ca.issue_node("groups", id, day).expect("a certificate");
            TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem).expect("valid")
        };
        let mut trio = Trio {
            dir: tempfile::tempdir().expect("a directory"),
            tls: IDS.map(|id| (id, tls(id))).into(),
            addresses: IDS.map(|id| (id, format!("127.0.0.1:{}", free_port()))).into(),
            nodes: BTreeMap::new(),
        };
        for id in IDS {
            trio.restart(id).await;
        }
        trio
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    pub(super) async fn restart(&mut self, id: NodeId) {
        let node = Node::builder()
            .identity(id, "groups")
            .data_dir(self.dir.path().join(format!("node-{id}")))
            .listen(self.addresses[&id].parse().expect("an address"))
            .tls(self.tls[&id].clone())
            .peers(self.addresses.clone())
            .start()
            .await
            .expect("started");
        self.nodes.insert(id, node);
    }

    pub(super) async fn stop(&mut self, id: NodeId) {
        let node = self.nodes.remove(&id).expect("it runs");
        node.shutdown();
        node.stopped().await.expect("nothing failed");
    }

    /// Opens a group that has all nodes, on one of them.
    pub(super) async fn create(&self, id: NodeId, group: GroupId) -> Raft {
        self.create_with(id, group, Numbers::default()).await
    }

    pub(super) async fn create_with(&self, id: NodeId, group: GroupId, machine: Numbers) -> Raft {
        self.node(id).create_group(group, machine, GroupOptions::new()).await.expect("opened")
    }

    pub(super) async fn create_everywhere(&self, group: GroupId) {
        for id in IDS {
            self.create(id, group).await;
        }
    }

    /// The handle of whoever leads, on its node.
    pub(super) async fn leader(&self, group: GroupId) -> Raft {
        let start = Instant::now();
        loop {
            for node in self.nodes.values() {
                let Ok(raft) = node.group(group).await else { continue };
                let leads = raft.status().await.is_ok_and(|status| status.leader == Some(node.id()));
                if leads {
                    return raft;
                }
            }
            assert!(start.elapsed() < PATIENCE, "group {group} has no leader");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes this node lead the group.
    pub(super) async fn lead(&self, group: GroupId, id: NodeId) {
        self.eventually("leadership moves", async || {
            let leader = self.leader(group).await;
            leader.id() == id || leader.transfer_leadership(Some(id)).await == Ok(id)
        })
        .await;
    }

    pub(super) async fn eventually(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let start = Instant::now();
        while !is_so().await {
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Trio {
    /// Waits for their end, so that nothing is written to a folder that is being removed.
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut self.nodes);
        nodes.values().for_each(Node::shutdown);
        let wait = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                for node in nodes.values() {
                    // The test may have made it fail.
                    let _ = node.stopped().await;
                }
            });
        };
        std::thread::spawn(wait).join().expect("no panic");
    }
}

/// Writes a number to the group, whoever leads it, until that is acknowledged.
pub(super) async fn write(trio: &Trio, group: GroupId, number: u64) {
    let start = Instant::now();
    loop {
        let leader = trio.leader(group).await;
        match leader.propose(Numbers::command(number)).await {
            Ok(_) => return,
            Err(RequestError::TooLarge { .. } | RequestError::Change(_)) => panic!("it is neither"),
            Err(error) => assert!(start.elapsed() < PATIENCE, "group {group} does not take {number}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the group's machine on this node has.
pub(super) async fn numbers(raft: &Raft, consistency: Consistency) -> Option<BTreeSet<u64>> {
    raft.read("", consistency).await.ok().map(|answer| Numbers::answer(&answer))
}
