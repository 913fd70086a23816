//! A node with any number of groups, which come and go at run time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use raft_core::{Config, GroupId, LogIndex, NodeId, Role, Term};
use raft_net::{ClientConnection, Inbound, NetMetrics, Transport};
use raft_storage::{Storage, StorageMetrics};
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::{oneshot, watch};

use crate::builder::{StartError, Tune};
use crate::group::Group;
use crate::handle::{Asked, Raft, Stopped, wait_for_end};
use crate::host::Host;
use crate::inbox::Fatal;
use crate::launch::{self, ClientService, Ends, Start, node_settings};
use crate::open::{self, Opened, Plan, Reservation, Tools};
use crate::snapshot::{SnapshotMetrics, SnapshotPolicy};
use crate::state_machine::StateMachine;
use crate::timings::Timings;

/// A running node to which groups can be added. Clones share it; it runs until [`shutdown`](Self::shutdown) is called or something fatal happens,
/// whether handles are left or not.
///
/// Its groups share one log (writes of all groups that come at the same time cost one sync), one connection to each other node, one timer, and the threads of
/// the node. Each has its own state machine, members, leader and snapshots.
///
/// ```
/// use raft_core::{GroupId, NodeId};
/// use raft_net::{TlsIdentity, pki};
/// use raft_node::{GroupOptions, Node};
/// # use bytes::BytesMut;
/// # use raft_core::{Entries, EntryKind, LogIndex};
/// # use raft_node::{Replies, StateMachine};
/// # #[derive(Default)]
/// # struct Count { applied: LogIndex, count: u64 }
/// # impl StateMachine for Count {
/// #     type Error = std::convert::Infallible;
/// #     fn applied(&self) -> LogIndex { self.applied }
/// #     fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
/// #         for entry in entries.iter() {
/// #             if entry.kind == EntryKind::Command {
/// #                 self.count += 1;
/// #                 replies.push(self.count.to_string().as_bytes());
/// #             }
/// #             self.applied = entry.index;
/// #         }
/// #         Ok(())
/// #     }
/// #     fn query(&mut self, _: &[u8], _: &mut BytesMut) -> Result<(), Self::Error> { Ok(()) }
/// # }
///
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// # let ca = pki::CertificateAuthority::generate(pki::DEFAULT_VALIDITY)?;
/// # let own = ca.issue_node("demo", NodeId(1), pki::DEFAULT_VALIDITY)?;
/// # let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem)?;
/// # let dir = tempfile::tempdir()?;
/// // One node; the others of a larger cluster are given with `.peers(..)`.
/// let node = Node::builder()
///     .identity(NodeId(1), "demo")
///     .data_dir(dir.path())
///     .listen("127.0.0.1:0".parse()?)
///     .tls(tls)
///     .start()
///     .await?;
///
/// // `Count` is a state machine that counts commands: each group has one of its own.
/// for id in [1, 2, 70_000] {
///     let raft = node.create_group(GroupId(id), Count::default(), GroupOptions::new()).await?;
///     raft.leader().wait_for(Option::is_some).await?;
///     assert_eq!(raft.propose("command").await?.reply, "1");
/// }
/// node.stop_group(GroupId(2)).await?;
/// let open: Vec<u64> = node.groups().await?.iter().map(|status| status.group.0).collect();
/// assert_eq!(open, [1, 70_000]);
///
/// // Its log is on the disk, and it goes on where it was.
/// assert_eq!(node.stored_groups().await?, [1, 2, 70_000].map(GroupId));
/// let raft = node.create_group(GroupId(2), Count::default(), GroupOptions::new()).await?;
/// raft.leader().wait_for(Option::is_some).await?;
/// assert_eq!(raft.propose("command").await?.reply, "2");
///
/// // For good: what is deleted never comes back under this id.
/// node.stop_group(GroupId(1)).await?;
/// node.delete_group(GroupId(1)).await?;
/// assert_eq!(node.stored_groups().await?, [2, 70_000].map(GroupId));
///
/// node.shutdown();
/// node.stopped().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Node {
    id: NodeId,
    requests: UnboundedSender<Asked>,
    address: Option<SocketAddr>,
    metrics: Metrics,
    stopped: watch::Receiver<Stopped>,
    runtime: Handle,
    configured: Arc<BTreeMap<NodeId, String>>,
}

/// Why a group was not opened, not stopped, or not deleted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// The group is open on this node, or being opened, or being stopped: wait for its end ([`Raft::stopped`]).
    #[error("group {group} is open already")]
    Exists {
        /// Which.
        group: GroupId,
    },
    /// The group is not open on this node.
    #[error("group {group} is not open on this node")]
    Unknown {
        /// Which.
        group: GroupId,
    },
    /// The node is stopping, or has stopped.
    #[error("the node is shutting down")]
    ShuttingDown,
    /// It cannot be opened, or not be deleted. Nothing of it is left in memory, and the other groups are not concerned.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The group did not stop because someone asked for it.
    #[error("the group has failed: {0}")]
    Failed(Arc<Fatal>),
}

/// The counters of a node's parts; absent where the part was brought by the user.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Of the log's storage.
    pub storage: Option<Arc<StorageMetrics>>,
    /// Of the network.
    pub net: Option<Arc<NetMetrics>>,
    /// Of the snapshots of one group, if these are the metrics of a group.
    pub snapshots: Arc<SnapshotMetrics>,
    /// Messages that were dropped because they were for a group that is not open here.
    pub strays: Arc<AtomicU64>,
    /// Where the time of writes goes, if that is measured.
    pub timings: Option<Arc<Timings>>,
}

/// What [`Node::groups`] tells of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupStatus {
    /// Which.
    pub group: GroupId,
    /// What this node is in it.
    pub role: Role,
    /// Its current term.
    pub term: Term,
    /// The leader of that term, if it is known.
    pub leader: Option<NodeId>,
    /// Last entry of the log.
    pub last_index: LogIndex,
    /// Last entry that is known to be committed.
    pub commit_index: LogIndex,
    /// Whether the group [sleeps](raft_core::Config::quiesce_after): then it costs neither CPU time nor messages.
    pub quiesced: bool,
}

impl GroupStatus {
    pub(crate) fn of(group: &Group) -> Self {
        let status = group.driver.core().status();
        GroupStatus {
            group: group.life().group,
            role: status.role,
            term: status.current_term,
            leader: status.leader,
            last_index: status.last_log.index,
            commit_index: status.commit_index,
            quiesced: status.quiesced,
        }
    }
}

/// What the loop is asked for by [`Node`].
pub(crate) enum Control {
    Reserve { group: GroupId, reserved: oneshot::Sender<Result<(Tools, Reservation), GroupError>> },
    Install { opened: Box<Opened>, installed: oneshot::Sender<Result<(), GroupError>> },
    Find { group: GroupId, found: oneshot::Sender<Option<Raft>> },
    List(oneshot::Sender<Vec<GroupStatus>>),
    Stored(oneshot::Sender<Vec<GroupId>>),
    Shutdown,
}

impl Node {
    /// Begins to describe a node.
    pub fn builder() -> NodeBuilder {
        NodeBuilder { start: Start::default(), clients: None }
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Where the node listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Counters of the parts that all groups share.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Opens a group: begins a new one, or goes on with what is on the disk from before. Each node of the group opens it; until enough of them
    /// have, it has no leader.
    ///
    /// Once this has been polled, the node does the work, and the group goes on, whether the caller waits for the result or not, and when the handle is dropped. A
    /// node that ends does not wait for anybody to look at the result.
    ///
    /// # Errors
    /// See [`GroupError`]; nothing is left of the attempt. The state machine has been dropped.
    pub async fn create_group<M: StateMachine>(
        &self,
        group: GroupId,
        machine: M,
        options: GroupOptions,
    ) -> Result<Raft, GroupError> {
        let plan = options.plan(self.id, group, &self.configured);
        let node = self.clone();
        // What it works with keeps the node's threads alive, so it must not be left to the caller, who may keep this future and never poll it again.
        let opening = self.runtime.spawn(async move { node.open(group, machine, plan).await });
        opening.await.unwrap_or(Err(GroupError::ShuttingDown))
    }

    async fn open<M: StateMachine>(&self, group: GroupId, machine: M, plan: Plan) -> Result<Raft, GroupError> {
        let (tools, reservation) = self.ask(|reserved| Control::Reserve { group, reserved }).await??;
        // The machine may be restored from a snapshot, which takes its time.
        let opening = self.runtime.spawn_blocking(move || open::open(&tools, reservation, machine, plan));
        let opened = match opening.await {
            Ok(opened) => opened?,
            Err(error) if error.is_panic() => return Err(StartError::Restore("it panicked".into()).into()),
            Err(_) => return Err(GroupError::ShuttingDown),
        };
        let raft = opened.group.raft.clone();
        self.ask(|installed| Control::Install { opened: Box::new(opened), installed }).await??;
        Ok(raft)
    }

    /// The handle of a group that is open.
    ///
    /// # Errors
    /// [`GroupError::Unknown`] or [`GroupError::ShuttingDown`].
    pub async fn group(&self, group: GroupId) -> Result<Raft, GroupError> {
        self.ask(|found| Control::Find { group, found }).await?.ok_or(GroupError::Unknown { group })
    }

    /// The groups that are open, in the order of their ids.
    ///
    /// # Errors
    /// Only [`GroupError::ShuttingDown`].
    pub async fn groups(&self) -> Result<Vec<GroupStatus>, GroupError> {
        self.ask(Control::List).await
    }

    /// The groups that are on the disk, open or not. After a restart these are the ones to be opened again.
    ///
    /// # Errors
    /// Only [`GroupError::ShuttingDown`].
    pub async fn stored_groups(&self) -> Result<Vec<GroupId>, GroupError> {
        self.ask(Control::Stored).await
    }

    /// Stops a group on this node, and waits until nothing works for it any more; its state machine has been dropped. If this node leads it, it hands over
    /// first, and waits for that no longer than an election timeout. Requests in progress are answered. What is on the disk stays there: the group can be
    /// opened again. The other groups are not concerned.
    ///
    /// # Errors
    /// [`GroupError::Unknown`], [`GroupError::ShuttingDown`], or how else it has ended meanwhile.
    pub async fn stop_group(&self, group: GroupId) -> Result<(), GroupError> {
        let raft = self.group(group).await?;
        raft.shutdown();
        raft.stopped().await.map_err(GroupError::Failed)
    }

    /// Deletes what this node has on its disk of a group that is not open: its log and its snapshots. What the state machine has written elsewhere is the caller's.
    ///
    /// That is for good. The node forgets what it promised in the group, as if its disk had been lost, so the group can never be opened here again under this id: a
    /// group that is to go on somewhere else, or begin anew, needs another. First remove the node from the group's members ([`Raft::change_membership`]); to
    /// them, one who is not removed is down for ever.
    ///
    /// Once this has been polled, the node does the work. When it is called again after a crash or an error, it finishes what it began.
    ///
    /// # Errors
    /// [`GroupError::Exists`] when the group is open, or was stopped a moment ago: wait for its end. [`GroupError::Unknown`] when there is nothing of it on the disk.
    pub async fn delete_group(&self, group: GroupId) -> Result<(), GroupError> {
        let node = self.clone();
        let deleting = self.runtime.spawn(async move {
            let (tools, reservation) = node.ask(|reserved| Control::Reserve { group, reserved }).await??;
            let deleting = node.runtime.spawn_blocking(move || open::delete(&tools, &reservation));
            deleting.await.unwrap_or(Err(GroupError::ShuttingDown))
        });
        deleting.await.unwrap_or(Err(GroupError::ShuttingDown))
    }

    /// Asks the node to stop, with all its groups. Where it leads it hands over first.
    pub fn shutdown(&self) {
        // If it is gone, it has stopped.
        let _ = self.requests.send(Asked::Node(Control::Shutdown));
    }

    /// Waits until the node has stopped and its threads are gone.
    ///
    /// # Errors
    /// What made it stop, if nobody asked for it.
    pub async fn stopped(&self) -> Result<(), Arc<Fatal>> {
        wait_for_end(self.stopped.clone()).await
    }

    async fn ask<R>(&self, question: impl FnOnce(oneshot::Sender<R>) -> Control) -> Result<R, GroupError> {
        let (sender, answer) = oneshot::channel();
        let asked = Asked::Node(question(sender));
        self.requests.send(asked).map_err(|_| GroupError::ShuttingDown)?;
        answer.await.map_err(|_| GroupError::ShuttingDown)
    }
}

/// How long nothing must happen in a group before it goes to sleep.
const QUIESCE_AFTER: Duration = Duration::from_secs(1);

/// What a group is to be like; the same on all its nodes, except where it says otherwise.
#[must_use = "options do nothing by themselves"]
pub struct GroupOptions {
    founders: Option<Vec<NodeId>>,
    join: bool,
    quiesce: bool,
    snapshots: SnapshotPolicy,
    tune: Tune,
}

impl Default for GroupOptions {
    fn default() -> Self {
        GroupOptions {
            founders: None,
            join: false,
            quiesce: true,
            snapshots: SnapshotPolicy::default(),
            tune: Box::new(|_| {}),
        }
    }
}

impl GroupOptions {
    /// The group begins with all nodes of which the configuration knows, and default settings.
    pub fn new() -> Self {
        GroupOptions::default()
    }

    /// The voters with which the group begins: all its nodes must be told the same. They are written down when it is opened first; from then on who belongs to it is
    /// in its log. Their addresses are those of [`NodeBuilder::peers`].
    pub fn founders(mut self, founders: impl IntoIterator<Item = NodeId>) -> Self {
        self.founders = Some(founders.into_iter().collect());
        self
    }

    /// This node is not one of those with which the group begins, but joins it later: it waits until the group's leader has been told to add it. Of no effect when the group is
    /// opened again.
    pub fn join(mut self, join: bool) -> Self {
        self.join = join;
        self
    }

    /// Whether the group goes to [sleep](raft_core::Config::quiesce_after) when nothing happens in it for a second (or four heartbeats, if that is longer), and costs nothing
    /// until something does. Default: yes. [`tune`](Self::tune) can set another time; with `false` it alone decides.
    pub fn quiesce(mut self, quiesce: bool) -> Self {
        self.quiesce = quiesce;
        self
    }

    /// When the group's log is compacted.
    pub fn snapshot_policy(mut self, policy: SnapshotPolicy) -> Self {
        self.snapshots = policy;
        self
    }

    /// Changes settings of the protocol, such as timeouts and limits.
    pub fn tune(mut self, tune: impl FnOnce(&mut Config) + Send + 'static) -> Self {
        self.tune = Box::new(tune);
        self
    }

    fn plan(self, id: NodeId, group: GroupId, configured: &BTreeMap<NodeId, String>) -> Plan {
        let mut config = open::config(id, group);
        (self.tune)(&mut config);
        if self.quiesce {
            config.quiesce_after.get_or_insert(QUIESCE_AFTER.max(config.heartbeat_interval.saturating_mul(4)));
        }
        let mut founders = self.founders.unwrap_or_else(|| configured.keys().copied().collect());
        founders.sort_unstable();
        founders.dedup();
        Plan { config, founders, join: self.join, policy: self.snapshots }
    }
}

impl std::fmt::Debug for GroupOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupOptions")
            .field("founders", &self.founders)
            .field("join", &self.join)
            .finish_non_exhaustive()
    }
}

/// Collects what a node needs. [`Node::builder`] makes one.
#[must_use = "a builder does nothing until it is started"]
pub struct NodeBuilder {
    start: Start,
    clients: Option<ClientService<Node>>,
}

impl NodeBuilder {
    node_settings!();

    /// Where nodes are (`host:port`); this node may be among them. Connections are made to the members of the groups that are open, and to no others.
    pub fn peers(mut self, peers: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        self.start.peers.extend(peers);
        self
    }

    /// Threads that the state machines of all groups share; the groups are divided among them. Default: 1.
    pub fn applier_threads(mut self, threads: usize) -> Self {
        self.start.applier_threads = threads;
        self
    }

    /// Runs `service` on the node's thread, with the handle and the clients that connect (authenticated already). Without
    /// a service clients are turned away.
    pub fn serve_clients<F, S>(mut self, service: S) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
        S: FnOnce(Node, mpsc::Receiver<ClientConnection>) -> F + Send + 'static,
    {
        self.clients = Some(Box::new(|node, clients| Box::pin(service(node, clients))));
        self
    }

    /// Starts the node on a thread of its own, with RocksDB and QUIC. Returns when it is listening. It has no groups yet.
    ///
    /// # Errors
    /// Nothing is left running. The message says what to mend.
    pub async fn start(mut self) -> Result<Node, StartError> {
        let id = self.make_room()?;
        let opening = self.start.quic()?;
        launch::launch(opening, handle(id), self.clients).await
    }

    /// Starts the node with another store and another transport. `network` is where the transport delivers. Snapshots are kept in the
    /// data directory; without one logs are never compacted.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with<S: Storage, T: Transport + Send + 'static>(
        mut self,
        storage: S,
        transport: T,
        network: mpsc::Receiver<Inbound>,
    ) -> Result<Node, StartError> {
        let id = self.make_room()?;
        let opening = self.start.with(storage, transport, network)?;
        launch::launch(opening, handle(id), self.clients).await
    }

    /// Groups with default settings must fit.
    fn make_room(&mut self) -> Result<NodeId, StartError> {
        let id = self.start.id.ok_or(StartError::Missing("identity"))?;
        self.start.make_room(&Config::new(id));
        Ok(id)
    }
}

fn handle<T: Transport>(id: NodeId) -> impl FnOnce(&mut Host<T>, Ends) -> Result<Node, StartError> + Send {
    move |_, ends| {
        let Ends { requests, address, metrics, stopped, runtime, configured } = ends;
        Ok(Node { id, requests, address, metrics, stopped, runtime, configured })
    }
}
