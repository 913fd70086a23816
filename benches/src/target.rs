//! What is loaded: a cluster of this project, or a peer. Whoever measures does not know which.

use std::rc::Rc;

use anyhow::{Context, Result};
use raft_core::NodeId;
use raft_net::{ClientEndpoint, Limits, TlsIdentity};
use tokio::task::JoinSet;

use crate::cluster::{Description, Leadership, Observer, agreed};
use crate::lane::Lane;
use crate::lines::{Lanes, Line, Loop};
use crate::meter::Meter;
#[cfg(feature = "etcd")]
use crate::peers::etcd::Etcd;
use crate::probe::Counters;
use crate::workload::Workload;

/// A running cluster.
pub(crate) enum Target {
    /// Of this project, of this build or another.
    Raft(Box<RaftCluster>),
    /// Of etcd.
    #[cfg(feature = "etcd")]
    Etcd(Box<Etcd>),
}

/// What a cluster says of itself.
pub(crate) struct Moment {
    /// The leader, if all nodes agree on it.
    pub(crate) leadership: Option<Leadership>,
    /// Its counters.
    pub(crate) counters: Counters,
}

impl Target {
    /// The processes of the nodes.
    pub(crate) fn pids(&self) -> &[u32] {
        match self {
            Target::Raft(cluster) => &cluster.pids,
            #[cfg(feature = "etcd")]
            Target::Etcd(etcd) => etcd.pids(),
        }
    }

    /// Waits for a leader.
    pub(crate) async fn leadership(&self) -> Result<Leadership> {
        match self {
            Target::Raft(cluster) => cluster.observer.leadership().await,
            #[cfg(feature = "etcd")]
            Target::Etcd(etcd) => etcd.leadership().await,
        }
    }

    /// Asks all nodes about themselves.
    pub(crate) async fn look(&self) -> Result<Moment> {
        match self {
            Target::Raft(cluster) => cluster.look().await,
            #[cfg(feature = "etcd")]
            Target::Etcd(etcd) => etcd.look().await,
        }
    }

    /// Puts of `value_size` bytes over `keys` keys, in the words that its nodes understand.
    pub(crate) fn workload(&self, keys: u64, value_size: usize, seed: u64) -> Result<Workload> {
        match self {
            Target::Raft(_) => Workload::new(keys, value_size, seed),
            #[cfg(feature = "etcd")]
            Target::Etcd(_) => crate::peers::etcd::workload(keys, value_size, seed),
        }
    }

    /// All nodes but this one; none of a peer, which is asked at its leader only.
    pub(crate) fn others(&self, leader: NodeId) -> Vec<NodeId> {
        match self {
            Target::Raft(cluster) => {
                let all = cluster.description.nodes.iter().map(|node| NodeId(node.id));
                all.filter(|id| *id != leader).collect()
            }
            #[cfg(feature = "etcd")]
            Target::Etcd(_) => Vec::new(),
        }
    }

    /// Makes `count` connections, to `nodes` in turn, the n-th of which sends what `workload(n)` makes.
    pub(crate) async fn connect(
        &self,
        nodes: &[NodeId],
        kind: Loop,
        count: u32,
        meter: &Rc<Meter>,
        workload: impl Fn(u32) -> Result<Workload>,
    ) -> Result<Lanes> {
        let mut lanes = Lanes { all: Vec::new(), tasks: JoinSet::new() };
        for (number, &node) in (0..count).zip(nodes.iter().cycle()) {
            let line: Rc<dyn Line> = match self {
                Target::Raft(cluster) => {
                    let connection = cluster.connect(node).await?;
                    let lane = Lane::new(connection, kind, meter.clone(), workload(number)?);
                    lanes.tasks.spawn_local(lane.clone().run());
                    lane
                }
                #[cfg(feature = "etcd")]
                Target::Etcd(etcd) => {
                    etcd.connect(node, kind, meter.clone(), workload(number)?, &mut lanes.tasks).await?
                }
            };
            lanes.all.push(line);
        }
        Ok(lanes)
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        match self {
            Target::Raft(cluster) => cluster.close().await,
            #[cfg(feature = "etcd")]
            Target::Etcd(_) => {}
        }
    }
}

/// A cluster of this project.
pub(crate) struct RaftCluster {
    description: Description,
    pids: Vec<u32>,
    endpoint: ClientEndpoint,
    observer: Observer,
}

impl RaftCluster {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(description: Description, tls: &TlsIdentity) -> Result<Self> {
        let observer = Observer::new(&description, tls.clone())?;
        let endpoint = ClientEndpoint::new(tls, Limits::default()).context("no UDP socket")?;
        let pids = description.nodes.iter().filter_map(|node| node.pid).collect();
        Ok(RaftCluster { description, pids, endpoint, observer })
    }

    async fn look(&self) -> Result<Moment> {
        let status = self.observer.status().await?;
        Ok(Moment { leadership: agreed(&status), counters: Counters::read(&status, &self.pids) })
    }

    async fn connect(&self, node: NodeId) -> Result<quinn::Connection> {
        let address = self.description.address(node)?.to_string();
        self.endpoint.connect(node, &address).await.with_context(|| format!("cannot connect to node {node}"))
    }

    async fn close(&self) {
        self.observer.close().await;
        self.endpoint.close().await;
    }
}
