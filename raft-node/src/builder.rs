//! Starting a node that has one group.

use std::future::Future;

use raft_core::{Config, ConfigError, GroupId, NodeId};
use raft_net::{ClientConnection, Inbound, NetError, Transport};
use raft_storage::{Storage, StorageError};
use tokio::sync::mpsc;

use crate::handle::Raft;
use crate::host::Host;
use crate::launch::{self, ClientService, Ends, Start, node_settings};
use crate::open::{self, Plan};
use crate::snapshot::{SnapshotFileError, SnapshotPolicy};
use crate::state_machine::StateMachine;

/// Why a node did not start. Nothing of it is left running.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is missing.
    #[error("`{0}` must be set before the node can start")]
    Missing(&'static str),
    /// A snapshot cannot be read, or its directory cannot be.
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    /// The state machine cannot be restored from a snapshot.
    #[error("the state machine cannot be restored: {0}")]
    Restore(Box<dyn std::error::Error + Send + Sync>),
    /// The log's directory cannot be opened, or what is in it must not be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The network cannot be set up.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Settings of the protocol, or the recovered state, contradict themselves.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The operating system refused a thread or a runtime.
    #[error("cannot start the node's threads: {0}")]
    Threads(#[from] std::io::Error),
    /// Messages with entries would be longer than what the network takes.
    #[error("messages with entries may have {needed} bytes, but `max_append_frame` of the network is {limit}")]
    FrameTooSmall {
        /// What the settings of the group ask for, in bytes.
        needed: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// What is on its way to a follower would not fit into the queue of the network.
    #[error(
        "messages with entries for one follower may have {needed} bytes in all (`max_inflight_bytes` and one message more), but \
         `append_queue_bytes` of the network is {limit}"
    )]
    QueueTooSmall {
        /// What the settings of the group ask for, in bytes.
        needed: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The node's thread died while starting.
    #[error("the node's thread ended while starting")]
    Died,
}

/// Changes settings of the protocol.
pub(crate) type Tune = Box<dyn FnOnce(&mut Config) + Send>;

/// Collects what a node with one group needs. [`Raft::builder`] makes one. For many groups there is [`Node::builder`](crate::Node::builder).
#[must_use = "a builder does nothing until it is started"]
pub struct Builder<M> {
    machine: M,
    start: Start,
    join: bool,
    snapshots: SnapshotPolicy,
    tune: Tune,
    clients: Option<ClientService<Raft>>,
}

impl Raft {
    /// Begins to describe a node around this state machine.
    pub fn builder<M: StateMachine>(machine: M) -> Builder<M> {
        Builder {
            machine,
            start: Start::default(),
            join: false,
            snapshots: SnapshotPolicy::default(),
            tune: Box::new(|_| {}),
            clients: None,
        }
    }
}

impl<M: StateMachine> Builder<M> {
    node_settings!();

    /// The voters with which the cluster begins, and their addresses (`host:port`); this node may be among them. Once the cluster has begun, who belongs to it is
    /// in its log ([`Raft::change_membership`](crate::Raft::change_membership)), and what stands here is only where to look first.
    pub fn peers(mut self, peers: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        self.start.peers.extend(peers);
        self
    }

    /// This node is not one of those with which the cluster begins, but joins it later: it waits, belonging to nobody, until the leader has been told to add it.
    /// Of no effect on a node that has started before.
    pub fn join(mut self, join: bool) -> Self {
        self.join = join;
        self
    }

    /// When the log is compacted.
    pub fn snapshot_policy(mut self, policy: SnapshotPolicy) -> Self {
        self.snapshots = policy;
        self
    }

    /// Changes settings of the protocol, such as timeouts and limits.
    pub fn tune(mut self, tune: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.tune = Box::new(tune);
        self
    }

    /// Runs `service` on the node's thread, with the handle and the clients that connect (authenticated already). Without
    /// a service clients are turned away.
    pub fn serve_clients<F, S>(mut self, service: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: FnOnce(Raft, mpsc::Receiver<ClientConnection>) -> F + Send + 'static,
    {
        self.clients = Some(Box::new(|raft, clients| Box::pin(service(raft, clients))));
        self
    }

    /// Starts the node on a thread of its own, with RocksDB and QUIC. Returns when it is listening.
    ///
    /// # Errors
    /// Nothing is left running. The message says what to mend.
    pub async fn start(mut self) -> Result<Raft, StartError> {
        let plan = self.plan()?;
        let opening = self.start.quic()?;
        launch::launch(opening, open_sole(self.machine, plan), self.clients).await
    }

    /// Starts the node with another store and another transport. `network` is where the transport delivers. Snapshots are kept in the
    /// data directory; without one the log is never compacted.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with<S: Storage, T: Transport + Send + 'static>(
        mut self,
        storage: S,
        transport: T,
        network: mpsc::Receiver<Inbound>,
    ) -> Result<Raft, StartError> {
        let plan = self.plan()?;
        let opening = self.start.with(storage, transport, network)?;
        launch::launch(opening, open_sole(self.machine, plan), self.clients).await
    }

    /// What its group is to be like, and room for that in the network.
    fn plan(&mut self) -> Result<Plan, StartError> {
        let id = self.start.id.ok_or(StartError::Missing("identity"))?;
        let mut config = open::config(id, GroupId::FIRST);
        std::mem::replace(&mut self.tune, Box::new(|_| {}))(&mut config);
        self.start.make_room(&config);
        let mut founders: Vec<NodeId> = self.start.peers.keys().copied().chain([id]).collect();
        founders.sort_unstable();
        founders.dedup();
        Ok(Plan { config, founders, join: self.join, policy: self.snapshots.clone() })
    }
}

/// The node has one group, and ends with it.
fn open_sole<M: StateMachine, T: Transport>(
    machine: M,
    plan: Plan,
) -> impl FnOnce(&mut Host<T>, Ends) -> Result<Raft, StartError> + Send {
    move |host, ends| {
        let (tools, reservation) = host.reserve(GroupId::FIRST).map_err(|_| StartError::Died)?;
        let opened = open::open(&tools, reservation, machine, plan)?;
        let raft = opened.group.raft.clone().ends_with(ends.stopped);
        host.install(opened).map_err(|_| StartError::Died)?;
        host.end_with(GroupId::FIRST);
        Ok(raft)
    }
}
