//! Starting and stopping a node: everything opened, checked and wired, on a thread of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use raft_core::{Config, GroupId, HardState, LogIndex, NodeId};
use raft_net::{ClientConnection, Inbound, NetConfig, QuicTransport, TlsIdentity, Transport};
use raft_storage::{Identity, Storage, StorageError, Store, StoreOptions};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{mpsc, oneshot, watch};

use crate::builder::StartError;
use crate::doorkeeper::Doorkeeper;
use crate::handle::{Asked, Stopped};
use crate::host::{Ended, Host, Inlets};
use crate::inbox::Inbox;
use crate::node::Metrics;
use crate::open::{self, Room, Tools};
use crate::pace::Pace;
use crate::pool::Pool;
use crate::ports::Outlets;
use crate::reply::Flusher;
use crate::roster::Roster;
use crate::snapshot::incoming::Incoming;
use crate::snapshot::keeper;
use crate::standing::Reception;
use crate::timings::Timings;
use crate::{reader, writer};

/// Batches of messages that may wait for the loop before the transport stops reading.
const INBOUND_QUEUE: usize = 1024;
/// How long a node that stops waits for what it sent last to leave.
const FAREWELL: Duration = Duration::from_millis(20);
/// Client connections that may wait to be served.
const CLIENT_QUEUE: usize = 64;

/// Serves the clients of a node, through a handle.
pub(crate) type ClientService<H> =
    Box<dyn FnOnce(H, mpsc::Receiver<ClientConnection>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// Settings of a node, as far as they have nothing to do with a group.
#[derive(Default)]
pub(crate) struct Start {
    pub(crate) id: Option<NodeId>,
    pub(crate) cluster: Option<String>,
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) tls: Option<TlsIdentity>,
    pub(crate) peers: BTreeMap<NodeId, String>,
    pub(crate) limits: raft_net::Limits,
    pub(crate) storage: StoreOptions,
    pub(crate) applier_threads: usize,
    pub(crate) timings: bool,
}

/// What both builders can be told, as methods that fill `self.start`.
macro_rules! node_settings {
    () => {
        /// This node's id, and the name of its cluster: all nodes that can have groups together. Both are written into the data directory and the
        /// certificate.
        pub fn identity(mut self, id: raft_core::NodeId, cluster: impl Into<String>) -> Self {
            self.start.id = Some(id);
            self.start.cluster = Some(cluster.into());
            self
        }

        /// Where the log lives. The node makes directories `log` and `snapshots` in it, and keeps the keys of its network identity there.
        pub fn data_dir(mut self, dir: impl Into<std::path::PathBuf>) -> Self {
            self.start.data_dir = Some(dir.into());
            self
        }

        /// Where to listen for peers and clients (UDP). Port 0 takes any free port.
        pub fn listen(mut self, address: std::net::SocketAddr) -> Self {
            self.start.listen = Some(address);
            self
        }

        /// Certificates and key.
        pub fn tls(mut self, tls: raft_net::TlsIdentity) -> Self {
            self.start.tls = Some(tls);
            self
        }

        /// Limits and times of the network. What a group with the settings known at the start needs is made room for.
        pub fn net_limits(mut self, limits: raft_net::Limits) -> Self {
            self.start.limits = limits;
            self
        }

        /// Measures where the time of writes goes: see [`Timings`](crate::Timings), which are part of the [`Metrics`](crate::Metrics). Off by default.
        pub fn timings(mut self, measured: bool) -> Self {
            self.start.timings = measured;
            self
        }

        /// Settings of the log's storage: which engine it has, and how that is set.
        pub fn storage_options(mut self, options: raft_storage::StoreOptions) -> Self {
            self.start.storage = options;
            self
        }
    };
}
pub(crate) use node_settings;

/// What a node is made of, besides what is opened on its thread.
pub(crate) struct Site {
    id: NodeId,
    /// Where nodes are, itself among them.
    configured: BTreeMap<NodeId, String>,
    data_dir: Option<PathBuf>,
    applier_threads: usize,
    timings: Option<Arc<Timings>>,
}

/// What is opened on the node's thread.
pub(crate) struct Parts<S, T> {
    storage: S,
    transport: T,
    network: mpsc::Receiver<Inbound>,
    clients: Option<mpsc::Receiver<ClientConnection>>,
    address: Option<SocketAddr>,
    metrics: Metrics,
    incarnation: u128,
    doorkeeper: Doorkeeper,
    room: Room,
    /// How long to wait for each of the others, when nothing was ever written here: see [`Reception`].
    patience: Option<Duration>,
}

/// Opens a node's parts, on its thread.
type Opening<S, T> = Box<dyn FnOnce() -> Result<Parts<S, T>, StartError> + Send>;

/// What a handle of the node needs.
pub(crate) struct Ends {
    pub(crate) requests: UnboundedSender<Asked>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) metrics: Metrics,
    pub(crate) stopped: watch::Receiver<Stopped>,
    pub(crate) runtime: Handle,
    pub(crate) configured: Arc<BTreeMap<NodeId, String>>,
}

impl Start {
    /// Makes the network's limits large enough for a group with these settings.
    pub(crate) fn make_room(&mut self, config: &Config) {
        self.limits.max_append_frame = self.limits.max_append_frame.max(open::frame_bytes(config));
        // What the core's window lets through must not be dropped on its way.
        self.limits.append_queue_bytes = self.limits.append_queue_bytes.max(open::window_bytes(config));
    }

    fn site(&self) -> Result<Site, StartError> {
        let id = self.id.ok_or(StartError::Missing("identity"))?;
        let mut configured = self.peers.clone();
        configured.entry(id).or_default();
        let timings = self.timings.then(|| Arc::new(Timings::new()));
        Ok(Site { id, configured, data_dir: self.data_dir.clone(), applier_threads: self.applier_threads, timings })
    }

    /// With a store on the disk and QUIC.
    pub(crate) fn quic(self) -> Result<(Site, Opening<Store, QuicTransport>), StartError> {
        let site = self.site()?;
        let Start { cluster, data_dir, listen, tls, limits, storage: options, .. } = self;
        let cluster = cluster.ok_or(StartError::Missing("identity"))?;
        let data_dir = data_dir.ok_or(StartError::Missing("data_dir"))?;
        let listen = listen.ok_or(StartError::Missing("listen"))?;
        let tls = tls.ok_or(StartError::Missing("tls"))?;
        let id = site.id;
        let open = move || {
            let owner = Identity { cluster: cluster.clone(), node: id };
            let mut storage = Store::open(data_dir.join("log"), &owner, &options)?;
            let (dormant, is_blank) = members_on_disk(&mut storage)?;
            // A peer that is up and can be reached has been met by then, whoever of the two dials: its last attempt has ended, or its connection to a former life of this
            // node, and it has tried again.
            let patience = limits.handshake_timeout.max(limits.idle_timeout) + limits.dial_backoff_max;
            let patience = is_blank.then_some(patience);
            let doorkeeper = Doorkeeper::new(storage.known_peers(GroupId::FIRST)?, dormant);
            let incarnation = storage.incarnation();
            let (inbound, network) = mpsc::channel(INBOUND_QUEUE);
            let (client_sender, clients) = mpsc::channel(CLIENT_QUEUE);
            let mut net = NetConfig::new(id, cluster, listen, tls);
            (net.incarnation, net.peer_check) = (incarnation, doorkeeper.check());
            net.data_dir = Some(data_dir);
            let room = Room { frame: limits.max_append_frame, queue: limits.append_queue_bytes };
            net.limits = limits;
            let transport = QuicTransport::bind(net, inbound, client_sender)?;
            let address = Some(transport.local_addr()?);
            let metrics =
                Metrics { storage: Some(storage.metrics()), net: Some(transport.metrics()), ..Metrics::default() };
            let clients = Some(clients);
            Ok(Parts {
                storage,
                transport,
                network,
                clients,
                address,
                metrics,
                incarnation,
                doorkeeper,
                room,
                patience,
            })
        };
        Ok((site, Box::new(open)))
    }

    /// With what the user brings.
    pub(crate) fn with<S, T>(
        self,
        storage: S,
        transport: T,
        network: mpsc::Receiver<Inbound>,
    ) -> Result<(Site, Opening<S, T>), StartError>
    where
        S: Send + 'static,
        T: Send + 'static,
    {
        let open = move || {
            Ok(Parts {
                storage,
                transport,
                network,
                clients: None,
                address: None,
                metrics: Metrics::default(),
                incarnation: rand::random(),
                doorkeeper: Doorkeeper::default(),
                room: Room { frame: usize::MAX, queue: usize::MAX },
                patience: None,
            })
        };
        Ok((self.site()?, Box::new(open)))
    }
}

/// Who belongs to the groups that the log has something of; and whether nothing was ever written in any of them.
fn members_on_disk(storage: &mut Store) -> Result<(BTreeMap<GroupId, Vec<NodeId>>, bool), StorageError> {
    let (mut all, mut is_blank) = (BTreeMap::new(), true);
    for group in Storage::groups(storage) {
        let log = storage.recover(group)?;
        is_blank &= log.hard_state == HardState::default() && log.last_index == LogIndex::ZERO;
        let known = log.changes.last().map(|(_, membership)| membership).or(log.membership.as_ref());
        let members = match known {
            Some(membership) => membership.members(),
            None => storage.founders(group)?.unwrap_or_default(),
        };
        all.insert(group, members);
    }
    Ok((all, is_blank))
}

/// Starts a node on a thread of its own. `begin` makes the handle, and opens what is to be open from the beginning.
pub(crate) async fn launch<S, T, H, B>(
    (site, open): (Site, Opening<S, T>),
    begin: B,
    service: Option<ClientService<H>>,
) -> Result<H, StartError>
where
    S: Storage,
    T: Transport + Send + 'static,
    H: Clone + Send + 'static,
    B: FnOnce(&mut Host<T>, Ends) -> Result<H, StartError> + Send + 'static,
{
    let (ready, started) = oneshot::channel();
    std::thread::Builder::new().name(format!("raft-node-{}", site.id)).spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(StartError::Threads(error)))),
        };
        let local = async {
            match open().and_then(|parts| wire(site, parts, begin)) {
                Ok((wired, handle, clients)) => {
                    if let (Some(service), Some(clients)) = (service, clients) {
                        tokio::spawn(service(handle.clone(), clients));
                    }
                    // Whoever started the node may be gone; then it stops when the handle is dropped unused.
                    if ready.send(Ok(handle)).is_ok() {
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
    host: Host<T>,
    threads: Vec<JoinHandle<()>>,
    stopped: watch::Sender<Stopped>,
}

type WiredNode<T, H> = (Wired<T>, H, Option<mpsc::Receiver<ClientConnection>>);

fn wire<S: Storage, T: Transport, H>(
    site: Site,
    parts: Parts<S, T>,
    begin: impl FnOnce(&mut Host<T>, Ends) -> Result<H, StartError>,
) -> Result<WiredNode<T, H>, StartError> {
    let Site { id, configured, data_dir, applier_threads, timings } = site;
    let Parts { storage, mut transport, network, clients, address, mut metrics, .. } = parts;
    let Parts { incarnation, doorkeeper, room, patience, .. } = parts;
    let reception = Reception::new(patience);
    metrics.timings.clone_from(&timings);
    let (inbox, internal) = Inbox::new();
    let (requests, asked) = mpsc::unbounded_channel();
    let (reader, reader_thread) = reader::spawn(storage.reader(), inbox.clone())?;
    let pace = Pace::new();
    let watch = writer::Watch { timings: timings.clone(), pace: pace.clone() };
    let (writer, writer_thread) = writer::spawn(storage, inbox.clone(), watch)?;
    let (keeper, keeper_thread) = keeper::spawn()?;
    let (pool, mut threads) = Pool::spawn(applier_threads)?;
    threads.extend([writer_thread, reader_thread, keeper_thread]);
    let incoming = Arc::new(Incoming::default());
    transport.receive_snapshots(incoming.clone());
    let tools = Tools {
        id,
        incarnation,
        data_dir,
        configured: Arc::new(configured.clone()),
        room,
        origin: std::time::Instant::now(),
        inbox,
        writer: writer.clone(),
        pool,
        keeper,
        requests: requests.clone(),
        address,
        doorkeeper: doorkeeper.clone(),
        standing: reception.watch(),
        metrics: metrics.clone(),
        pace: pace.clone(),
    };
    let (stopped, stopped_seen) = watch::channel(Stopped::default());
    let ends = Ends {
        requests,
        address,
        stopped: stopped_seen,
        runtime: Handle::current(),
        configured: tools.configured.clone(),
        metrics: metrics.clone(),
    };
    let roster = Roster::new(configured, doorkeeper);
    let flusher = Flusher::default();
    let outlets = Outlets { transport, roster, writer, reader, incoming, lost: None, flusher, timings, pace };
    let inlets = Inlets { internal, network, requests: asked };
    let mut host = Host::new(inlets, outlets, tools, reception, metrics.strays);
    match begin(&mut host, ends) {
        Ok(handle) => Ok((Wired { host, threads, stopped }, handle, clients)),
        Err(error) => {
            // Nothing of it is left: what was opened may be opened again at once.
            drop(host);
            join(threads);
            Err(error)
        }
    }
}

impl<T: Transport> Wired<T> {
    /// Runs the node to its end, and makes sure that what was handed to its threads is finished.
    async fn run(self) {
        let Wired { host, threads, stopped } = self;
        let Ended { mut result, transport, sole } = host.run().await;
        if let Err(error) = &result {
            tracing::error!(%error, "the node stops");
        }
        // The loop is gone and with it the senders: the threads finish what is queued and end. Not waited for on this thread: a service that was about to
        // open a group has senders, too, and drops them once it has heard here that the node ends.
        if tokio::task::spawn_blocking(move || join(threads)).await.is_err() {
            tracing::error!("nobody waits for the threads of the node");
        }
        // Its state machine may have failed with the last of its work.
        if let (Ok(()), Some(sole)) = (&result, sole)
            && let Some(last) = sole.borrow().0.clone()
        {
            result = last;
        }
        // Replies made meanwhile are on their way to the clients; after them, farewells to everybody.
        tokio::time::sleep(FAREWELL).await;
        drop(transport);
        tokio::time::sleep(FAREWELL).await;
        stopped.send_replace(Stopped(Some(result)));
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the node panicked");
        }
    }
}
