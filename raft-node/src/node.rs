//! Starting and stopping a node: everything opened, checked and wired, on a thread of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use raft_core::driver::Driver;
use raft_core::{
    Config, ConfigError, GroupId, Instant, LogId, LogIndex, Membership, NodeId, Raft as Core, Recovered, SnapshotMeta,
};
use raft_net::{ClientConnection, Inbound, NetConfig, NetError, NetMetrics, QuicTransport, TlsIdentity, Transport};
use raft_storage::{Identity, Options, RecoveredLog, RocksStorage, Storage, StorageError, StorageMetrics};
use tokio::sync::{mpsc, oneshot, watch};

use crate::applier::{self, Progress};
use crate::event_loop::{EventLoop, Inbox, Inlets, Outlets};
use crate::handle::{Raft, Stopped};
use crate::handover::Handover;
use crate::reply::Flusher;
use crate::roster::{Doorkeeper, Roster, identity_of};
use crate::snapshot::directory::Directory;
use crate::snapshot::file::FileReader;
use crate::snapshot::incoming::Incoming;
use crate::snapshot::manager::Manager;
use crate::snapshot::policy::Ledger;
use crate::snapshot::{SnapshotFileError, SnapshotMetrics, SnapshotPolicy, keeper};
use crate::state_machine::StateMachine;
use crate::{member, reader, writer};

/// Batches of messages that may wait for the loop before the transport stops reading.
const INBOUND_QUEUE: usize = 1024;
/// How long a node that stops waits for what it sent last to leave.
const FAREWELL: Duration = Duration::from_millis(20);
/// Client connections that may wait to be served.
const CLIENT_QUEUE: usize = 64;

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
    /// The node's thread died while starting.
    #[error("the node's thread ended while starting")]
    Died,
}

/// Serves the clients of a node; see [`Builder::serve_clients`].
type ClientService =
    Box<dyn FnOnce(Raft, mpsc::Receiver<ClientConnection>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Changes settings of the protocol.
type Tune = Box<dyn FnOnce(&mut Config) + Send>;

/// Collects what a node needs. [`Raft::builder`] makes one.
#[must_use = "a builder does nothing until it is started"]
pub struct Builder<M> {
    machine: M,
    id: Option<NodeId>,
    cluster: Option<String>,
    data_dir: Option<PathBuf>,
    listen: Option<SocketAddr>,
    tls: Option<TlsIdentity>,
    peers: BTreeMap<NodeId, String>,
    join: bool,
    limits: raft_net::Limits,
    storage: Options,
    snapshots: SnapshotPolicy,
    tune: Tune,
    clients: Option<ClientService>,
}

impl Raft {
    /// Begins to describe a node around this state machine.
    pub fn builder<M: StateMachine>(machine: M) -> Builder<M> {
        Builder {
            machine,
            id: None,
            cluster: None,
            data_dir: None,
            listen: None,
            tls: None,
            peers: BTreeMap::new(),
            join: false,
            limits: raft_net::Limits::default(),
            storage: Options::default(),
            snapshots: SnapshotPolicy::default(),
            tune: Box::new(|_| {}),
            clients: None,
        }
    }
}

impl<M: StateMachine> Builder<M> {
    /// This node's id, and the name of its cluster. Both are written into the data directory and the certificate.
    pub fn identity(mut self, id: NodeId, cluster: impl Into<String>) -> Self {
        self.id = Some(id);
        self.cluster = Some(cluster.into());
        self
    }

    /// Where the log lives. The node makes directories `log` and `snapshots` in it, and keeps the keys of its network identity there.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// Where to listen for peers and clients (UDP). Port 0 takes any free port.
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// The voters with which the cluster begins, and their addresses (`host:port`); this node may be among them. Once the cluster has begun, who belongs to it is
    /// in its log ([`Raft::change_membership`](crate::Raft::change_membership)), and what stands here is only where to look first.
    pub fn peers(mut self, peers: impl IntoIterator<Item = (NodeId, String)>) -> Self {
        self.peers.extend(peers);
        self
    }

    /// This node is not one of those with which the cluster begins, but joins it later: it waits, belonging to nobody, until the leader has been told to add it.
    /// Of no effect on a node that has started before.
    pub fn join(mut self, join: bool) -> Self {
        self.join = join;
        self
    }

    /// Certificates and key.
    pub fn tls(mut self, tls: TlsIdentity) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Limits and times of the network.
    pub fn net_limits(mut self, limits: raft_net::Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Settings of the log's storage.
    pub fn storage_options(mut self, options: Options) -> Self {
        self.storage = options;
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
    pub async fn start(self) -> Result<Raft, StartError> {
        let id = self.id.ok_or(StartError::Missing("identity"))?;
        let cluster = self.cluster.ok_or(StartError::Missing("identity"))?;
        let data_dir = self.data_dir.ok_or(StartError::Missing("data_dir"))?;
        let listen = self.listen.ok_or(StartError::Missing("listen"))?;
        let tls = self.tls.ok_or(StartError::Missing("tls"))?;
        let (options, limits, peers, join) = (self.storage, self.limits, self.peers, self.join);
        let open = move |peers: BTreeMap<NodeId, String>, config: &Config| {
            let owner = Identity { cluster: cluster.clone(), node: id };
            let mut storage = RocksStorage::open(data_dir.join("log"), &owner, &options)?;
            let founders = find_founders(&mut storage, &peers, join)?;
            let doorkeeper = Doorkeeper::new(storage.known_peers(GroupId::FIRST)?);
            let incarnation = storage.incarnation();
            let directory = Arc::new(Directory::open(&data_dir.join("snapshots"), GroupId::FIRST)?);
            let storage_metrics = storage.metrics();
            let (inbound, network) = mpsc::channel(INBOUND_QUEUE);
            let (client_sender, clients) = mpsc::channel(CLIENT_QUEUE);
            let mut net = NetConfig::new(id, cluster, listen, tls);
            net.peers = peers;
            (net.incarnation, net.peer_check) = (incarnation, doorkeeper.check());
            net.data_dir = Some(data_dir);
            net.limits = limits;
            // An entry of the largest size must fit into a frame.
            net.limits.max_append_frame =
                net.limits.max_append_frame.max(config.max_entry_bytes.max(config.max_append_bytes) + (64 << 10));
            // What the core's window lets through must not be dropped on its way.
            net.limits.append_queue_bytes = net.limits.append_queue_bytes.max(config.max_inflight_bytes);
            let transport = QuicTransport::bind(net, inbound, client_sender)?;
            let address = Some(transport.local_addr()?);
            let net = Some(transport.metrics());
            let metrics = Metrics { storage: Some(storage_metrics), net, snapshots: Arc::default() };
            let (clients, directory) = (Some(clients), Some(directory));
            let member = Member { founders, incarnation, doorkeeper };
            Ok(Parts { storage, transport, member, network, clients, address, metrics, directory })
        };
        launch(id, peers, self.machine, (self.snapshots, self.tune), self.clients, open).await
    }

    /// Starts the node with another store and another transport. `network` is where the transport delivers. Snapshots are kept in the
    /// data directory; without one the log is never compacted.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with<S: Storage, T: Transport + Send + 'static>(
        self,
        storage: S,
        transport: T,
        network: mpsc::Receiver<Inbound>,
    ) -> Result<Raft, StartError> {
        let id = self.id.ok_or(StartError::Missing("identity"))?;
        let (join, data_dir) = (self.join, self.data_dir);
        let open = move |peers: BTreeMap<NodeId, String>, _: &Config| {
            let founders = if join { Vec::new() } else { peers.into_keys().collect() };
            let member = Member { founders, incarnation: rand::random(), doorkeeper: Doorkeeper::default() };
            let directory = data_dir.map(|dir| Directory::open(&dir.join("snapshots"), GroupId::FIRST)).transpose()?;
            let (directory, metrics) = (directory.map(Arc::new), Metrics::default());
            Ok(Parts { storage, transport, member, network, clients: None, address: None, metrics, directory })
        };
        launch(id, self.peers, self.machine, (self.snapshots, self.tune), self.clients, open).await
    }
}

/// The voters with which the cluster began: at the first start they are written down, and from then on what is written down counts.
fn find_founders(
    storage: &mut RocksStorage,
    peers: &BTreeMap<NodeId, String>,
    join: bool,
) -> Result<Vec<NodeId>, StartError> {
    let group = GroupId::FIRST;
    let configured: Vec<NodeId> = if join { Vec::new() } else { peers.keys().copied().collect() };
    let Some(found) = storage.founders(group)? else {
        storage.pin_founders(group, &configured)?;
        return Ok(configured);
    };
    let log = storage.recover(group)?;
    let has_changed = log.membership.is_some() || !log.changes.is_empty();
    if !join && !found.is_empty() && !has_changed {
        // As long as nothing else is known, others would be a mistake in the configuration.
        storage.pin_founders(group, &configured)?;
    }
    Ok(found)
}

/// The counters of a node's parts; absent where the part was brought by the user.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Of the log's storage.
    pub storage: Option<Arc<StorageMetrics>>,
    /// Of the network.
    pub net: Option<Arc<NetMetrics>>,
    /// Of snapshots.
    pub snapshots: Arc<SnapshotMetrics>,
}

/// Who this node is, and who the others are.
struct Member {
    /// The voters with which the cluster began; none on a node that joins later.
    founders: Vec<NodeId>,
    /// Names the data directory.
    incarnation: u128,
    doorkeeper: Doorkeeper,
}

/// What is opened on the node's thread.
struct Parts<S, T> {
    storage: S,
    transport: T,
    member: Member,
    network: mpsc::Receiver<Inbound>,
    clients: Option<mpsc::Receiver<ClientConnection>>,
    address: Option<SocketAddr>,
    metrics: Metrics,
    directory: Option<Arc<Directory>>,
}

async fn launch<M, S, T, O>(
    id: NodeId,
    mut peers: BTreeMap<NodeId, String>,
    machine: M,
    (policy, tune): (SnapshotPolicy, Tune),
    service: Option<ClientService>,
    open: O,
) -> Result<Raft, StartError>
where
    M: StateMachine,
    S: Storage,
    T: Transport + Send + 'static,
    O: FnOnce(BTreeMap<NodeId, String>, &Config) -> Result<Parts<S, T>, StartError> + Send + 'static,
{
    let mut config = Config::new(id);
    config.seed = RandomState::new().hash_one(id.0);
    tune(&mut config);
    peers.entry(id).or_default();
    let (ready, started) = oneshot::channel();
    std::thread::Builder::new().name(format!("raft-node-{id}")).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(StartError::Threads(error)))),
        };
        let local = async {
            match open(peers.clone(), &config).and_then(|parts| wire(config, peers, (machine, policy), parts)) {
                Ok((wired, clients)) => {
                    if let (Some(service), Some(clients)) = (service, clients) {
                        tokio::spawn(service(wired.raft.clone(), clients));
                    }
                    // Whoever started the node may be gone; then it stops when the handle is dropped unused.
                    if ready.send(Ok(wired.raft.clone())).is_ok() {
                        wired.run().await;
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        };
        runtime.block_on(local);
        // Replies that were just written still want to leave.
        runtime.shutdown_timeout(Duration::from_secs(1));
    })?;
    started.await.unwrap_or(Err(StartError::Died))
}

/// A node that is ready to run.
struct Wired<T> {
    raft: Raft,
    event_loop: EventLoop<T>,
    threads: Vec<JoinHandle<()>>,
    stopped: watch::Sender<Stopped>,
}

type WiredParts<T> = (Wired<T>, Option<mpsc::Receiver<ClientConnection>>);

fn wire<M: StateMachine, S: Storage, T: Transport>(
    mut config: Config,
    peers: BTreeMap<NodeId, String>,
    (mut machine, policy): (M, SnapshotPolicy),
    parts: Parts<S, T>,
) -> Result<WiredParts<T>, StartError> {
    let Parts { mut storage, mut transport, member, network, clients, address, metrics, directory } = parts;
    let Member { founders, incarnation, doorkeeper } = member;
    // Those with whom the cluster begins have the identity 0.
    config.identity = if founders.is_empty() { identity_of(incarnation) } else { 0 };
    let founders = member::founders(&founders, &peers);
    let (id, group, max_unapplied_bytes) = (config.id, GroupId::FIRST, config.max_unapplied_bytes);
    let log = storage.recover(group)?;
    let restored = restore_at_start(&mut machine, &log, directory.as_deref())?;
    let state = state_of(machine.applied(), &log, restored.as_ref(), &founders);
    let durable = machine.durable();
    let ledger = Ledger::new(policy, log.log_start.index, machine.applied(), log.bytes);
    let recovered = Recovered {
        hard_state: log.hard_state,
        log_start: log.log_start,
        runs: log.runs,
        last_index: log.last_index,
        applied: machine.applied(),
        membership: log.membership.unwrap_or(founders),
        changes: log.changes,
        restored,
    };
    tracing::info!(start = %recovered.log_start, last = %recovered.last_index, applied = %recovered.applied,
        term = %recovered.hard_state.current_term, "recovered");
    let origin = std::time::Instant::now();
    let core = Core::new(config, recovered, Instant(0))?;

    let (internal_sender, internal) = mpsc::unbounded_channel();
    let inbox = Inbox(internal_sender);
    let progress = Progress::default();
    let (reader, reader_thread) = reader::spawn(storage.reader(), group, inbox.clone())?;
    let (writer, writer_thread) = writer::spawn(storage, group, inbox.clone())?;
    let (keeper, keeper_thread) = keeper::spawn(directory.clone(), inbox.clone(), metrics.snapshots.clone())?;
    let start = applier::Start { machine, state, max_unapplied_bytes, directory: directory.clone(), keeper };
    let (applier, applier_thread) = applier::spawn(start, progress.clone(), inbox.clone())?;
    if let Some(directory) = &directory {
        let incoming = Incoming::new(directory.clone(), inbox.clone(), metrics.snapshots.clone());
        transport.receive_snapshots(Arc::new(incoming));
    }
    let snapshots = Manager::new(ledger, directory, durable.is_some(), inbox, metrics.snapshots.clone());

    let (request_sender, requests) = mpsc::unbounded_channel();
    let (leader, leader_seen) = watch::channel(None);
    let (stopped, stopped_seen) = watch::channel(Stopped::default());
    let (addresses, addresses_seen) = watch::channel(BTreeMap::new());
    let mut roster = Roster::new(peers, addresses, doorkeeper);
    roster.follow(core.membership().1, &mut transport);
    let flusher = Flusher::default();
    let event_loop = EventLoop {
        driver: Driver::new(core),
        stopping: false,
        handover: Handover::default(),
        inlets: Inlets { internal, network, requests },
        outlets: Outlets { group, transport, roster, writer, applier, reader, snapshots, lost: None, flusher },
        progress,
        durable: durable.unwrap_or_default(),
        leader,
        origin,
    };
    let raft = Raft::new(id, request_sender, address, metrics, leader_seen, addresses_seen, stopped_seen);
    let threads = vec![writer_thread, applier_thread, reader_thread, keeper_thread];
    Ok((Wired { raft, event_loop, threads, stopped }, clients))
}

/// A machine that keeps nothing itself starts from the newest snapshot that is whole; so does one whose own state is older than what the log still
/// has (its directory was lost, say). Returns what the machine was last restored from.
fn restore_at_start<M: StateMachine>(
    machine: &mut M,
    log: &RecoveredLog,
    directory: Option<&Directory>,
) -> Result<Option<SnapshotMeta>, StartError> {
    let keeps_state = machine.durable().is_some();
    if keeps_state && machine.applied() >= log.log_start.index {
        return Ok(machine.restored());
    }
    for stored in directory.map(Directory::all).unwrap_or_default() {
        let index = stored.index();
        if index <= machine.applied() || index < log.log_start.index {
            break;
        }
        match FileReader::check(&stored.path) {
            Ok(_) => {}
            Err(error @ SnapshotFileError::Damaged { .. }) => {
                tracing::error!(%error, "a snapshot is damaged; an older one may do");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let (meta, mut file) = (stored.header.meta, FileReader::open(&stored.path)?);
        machine.restore(&meta, &mut file).map_err(|error| StartError::Restore(Box::new(error)))?;
        tracing::info!(last = %meta.last, "the state machine starts from a snapshot");
        return Ok(Some(meta));
    }
    Ok(machine.restored())
}

/// The last entry that the machine contains, and who belonged to the cluster as of then.
fn state_of(
    applied: LogIndex,
    log: &RecoveredLog,
    restored: Option<&SnapshotMeta>,
    founders: &Membership,
) -> SnapshotMeta {
    if let Some(meta) = restored.filter(|meta| meta.last.index == applied) {
        return meta.clone();
    }
    let change = log.changes.iter().rev().find(|(index, _)| *index <= applied).map(|(_, membership)| membership);
    let membership = change.or(log.membership.as_ref()).unwrap_or(founders).clone();
    // What the log does not know will not be accepted by the core, either.
    let term = log.term_at(applied).unwrap_or_default();
    SnapshotMeta { last: LogId::new(term, applied), membership }
}

impl<T: Transport> Wired<T> {
    /// Runs the node to its end, and makes sure that what was handed to its threads is finished.
    async fn run(self) {
        let Wired { raft, event_loop, threads, stopped } = self;
        let (result, transport) = event_loop.run().await;
        let result = result.map_err(Arc::new);
        if let Err(error) = &result {
            tracing::error!(%error, "the node stops");
        }
        drop(raft);
        // The loop is gone and with it the senders: the threads finish what is queued and end.
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the node panicked");
            }
        }
        // Replies made meanwhile are on their way to the clients; after them, farewells to everybody.
        tokio::time::sleep(FAREWELL).await;
        drop(transport);
        tokio::time::sleep(FAREWELL).await;
        stopped.send_replace(Stopped(Some(result)));
    }
}
