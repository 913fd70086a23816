//! A node's endpoint: one UDP socket for peers and clients alike.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::crypto::rustls::HandshakeData;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, Incoming, ServerConfig, TransportErrorCode, VarInt};
use raft_core::{Envelope, GroupId, NodeId};
use rustls::pki_types::CertificateDer;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::config::{Limits, NetConfig, PeerCheck};
use crate::dial::{Dial, keep_dialling, keep_knocking};
use crate::error::{CloseCode, NetError};
use crate::identity::{CertifiedName, PeerIdentity};
use crate::link::{Link, lock};
use crate::metrics::{NetMetrics, Reject, bump};
use crate::refusal::{Refusal, TurnedAway, harmless};
use crate::snapshot::{OutgoingSnapshot, SnapshotError, SnapshotReceiver};
use crate::tls::{ALPN_CLIENT, ALPN_NODE, TlsIdentity};
use crate::{Inbound, Transport, session, socket, transfer};

/// How long [`QuicTransport::close`] waits for peers to confirm.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// An authenticated client. Whoever receives it serves it, and closes it when it is done.
#[derive(Debug)]
pub struct ClientConnection {
    /// The connection. The client may open bidirectional streams, [`Limits::max_client_streams`] at a time.
    pub connection: Connection,
    /// The name in the client's certificate.
    pub name: String,
}

/// What the tasks of an endpoint have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) incarnation: u128,
    pub(crate) peer_check: PeerCheck,
    pub(crate) limits: Limits,
    pub(crate) metrics: Arc<NetMetrics>,
    pub(crate) endpoint: Endpoint,
    pub(crate) inbound: mpsc::Sender<Inbound>,
    pub(crate) dialling: Mutex<ClientConfig>,
    clients: mpsc::Sender<ClientConnection>,
    links: Mutex<BTreeMap<NodeId, Arc<Link>>>,
    handshakes: AtomicUsize,
    pub(crate) turned_away: Mutex<TurnedAway>,
    /// Snapshots that may yet be sent, and received.
    pub(crate) sending: Semaphore,
    pub(crate) receiving: Arc<Semaphore>,
    receiver: Mutex<Option<Arc<dyn SnapshotReceiver>>>,
}

impl Shared {
    /// Whoever takes snapshots.
    pub(crate) fn receiver(&self) -> Option<Arc<dyn SnapshotReceiver>> {
        lock(&self.receiver).clone()
    }

    /// Closes a connection because of what the other end is or did, and counts that.
    pub(crate) fn reject(&self, connection: &Connection, reason: Reject, code: CloseCode, detail: &str) {
        self.metrics.reject(reason);
        tracing::warn!(address = %connection.remote_address(), ?reason, detail, "connection refused");
        code.close(connection, detail);
    }

    /// The same for a node, of this cluster or another: it comes back soon, and the second time is no news.
    pub(crate) fn reject_node(
        &self,
        connection: &Connection,
        (cluster, node): (&str, NodeId),
        reason: Reject,
        code: CloseCode,
        detail: &str,
    ) {
        // Whoever knocks only asks.
        if code != CloseCode::WrongDirection && lock(&self.turned_away).note(cluster, node, code) {
            return self.reject(connection, reason, code, detail);
        }
        self.metrics.reject(reason);
        tracing::debug!(address = %connection.remote_address(), ?reason, detail, "connection refused, as before");
        code.close(connection, detail);
    }

    /// `link`'s peer has refused us. The first time that is worth a warning.
    pub(crate) async fn refused(&self, link: &Link, Refusal { code, reason }: Refusal) {
        let peer = link.peer;
        if link.note_refusal(Some(code)) == Some(code) {
            tracing::debug!(%peer, ?code, reason, "refused again");
        } else {
            tracing::warn!(%peer, ?code, reason, "the peer refuses this node; will ask again");
        }
        // An error means that nobody listens any more.
        let _ = self.inbound.send(Inbound::Refused { peer, code, reason }).await;
    }

    /// `link`'s peer has let us in.
    pub(crate) async fn accepted(&self, link: &Link) {
        let peer = link.peer;
        if link.note_refusal(None).is_some() {
            tracing::info!(%peer, "the peer does not refuse this node any more");
        }
        let _ = self.inbound.send(Inbound::Accepted { peer }).await;
    }
}

/// The QUIC transport of a node. Dropping it closes every connection.
#[derive(Debug)]
pub struct QuicTransport {
    shared: Arc<Shared>,
    /// The same as in `shared`, to be read without a lock.
    links: BTreeMap<NodeId, Arc<Link>>,
    runtime: Handle,
    accepting: AbortHandle,
}

impl QuicTransport {
    /// Opens the socket, begins to accept, and dials every peer with a higher id. Messages and link resets go to
    /// `inbound`, authenticated clients to `clients`. Must be called within a tokio runtime, which then runs all of it.
    ///
    /// # Errors
    /// [`NetError`]: the address is in use, the certificate is not this node's, a setting cannot work.
    pub fn bind(
        config: NetConfig,
        inbound: mpsc::Sender<Inbound>,
        clients: mpsc::Sender<ClientConnection>,
    ) -> Result<Self, NetError> {
        let NetConfig { node, cluster, listen, peers, tls, data_dir, incarnation, peer_check, limits } = config;
        limits.check().map_err(|(key, reason)| NetError::Setting { key, reason })?;
        tls.expect_node(&cluster, node)?;
        let runtime = Handle::try_current().map_err(|_| NetError::NoRuntime)?;
        let endpoint_config = socket::endpoint_config(data_dir.as_deref(), limits.max_udp_payload)?;
        let socket = socket::bind(listen, limits.socket_buffer, socket::Role::Node)?;
        let endpoint =
            Endpoint::new(endpoint_config, Some(accepting(&tls, &limits)?), socket, Arc::new(quinn::TokioRuntime))
                .map_err(NetError::Endpoint)?;
        let shared = Arc::new(Shared {
            node,
            cluster,
            incarnation,
            peer_check,
            dialling: Mutex::new(dialling(&tls, &limits, ALPN_NODE)?),
            sending: Semaphore::new(limits.max_snapshots),
            receiving: Arc::new(Semaphore::new(limits.max_snapshots)),
            receiver: Mutex::new(None),
            limits,
            metrics: Arc::new(NetMetrics::default()),
            endpoint,
            inbound,
            clients,
            links: Mutex::new(BTreeMap::new()),
            handshakes: AtomicUsize::new(0),
            turned_away: Mutex::default(),
        });
        let accepting = runtime.spawn(accept(shared.clone())).abort_handle();
        let mut transport = QuicTransport { shared, links: BTreeMap::new(), runtime, accepting };
        transport.set_peers(&peers);
        Ok(transport)
    }

    /// Where this endpoint listens: the port that was chosen when the configured one was 0.
    ///
    /// # Errors
    /// The operating system does not say.
    pub fn local_addr(&self) -> Result<SocketAddr, NetError> {
        self.shared.endpoint.local_addr().map_err(NetError::Endpoint)
    }

    /// The counters.
    pub fn metrics(&self) -> Arc<NetMetrics> {
        self.shared.metrics.clone()
    }

    /// Uses other certificates from now on. Connections that stand are left alone.
    ///
    /// # Errors
    /// The certificate is not this node's, or not usable; then nothing has changed.
    pub fn reload_tls(&mut self, tls: &TlsIdentity) -> Result<(), NetError> {
        tls.expect_node(&self.shared.cluster, self.shared.node)?;
        let (server, client) = (accepting(tls, &self.shared.limits)?, dialling(tls, &self.shared.limits, ALPN_NODE)?);
        self.shared.endpoint.set_server_config(Some(server));
        *lock(&self.shared.dialling) = client;
        Ok(())
    }

    /// Closes all connections, telling the other ends, and waits until they know (a second at most). The port is free
    /// soon after the transport and its inbox have been dropped.
    pub async fn close(&mut self) {
        self.stop();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.shared.endpoint.wait_idle()).await;
        self.shared.metrics.retire_all();
    }

    fn stop(&mut self) {
        self.accepting.abort();
        lock(&self.shared.links).clear();
        for link in std::mem::take(&mut self.links).into_values() {
            link.stop(CloseCode::Shutdown, "shutting down");
        }
        self.shared.endpoint.close(VarInt::from_u32(u32::from(CloseCode::Shutdown as u8)), b"shutting down");
    }
}

impl Drop for QuicTransport {
    fn drop(&mut self) {
        self.stop();
        self.shared.metrics.retire_all();
    }
}

impl Transport for QuicTransport {
    fn send(&mut self, group: GroupId, messages: &mut Vec<Envelope>) {
        let Shared { limits, metrics, .. } = &*self.shared;
        for envelope in messages.drain(..) {
            match self.links.get(&envelope.to) {
                Some(link) => link.post(group, &envelope, limits, metrics),
                None => bump(&metrics.dropped_unconnected, 1),
            }
        }
    }

    fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>) {
        let own = self.shared.node;
        self.links.retain(|id, link| {
            let stays = peers.contains_key(id);
            if !stays {
                link.stop(CloseCode::Removed, "no longer a peer");
            }
            stays
        });
        for (&id, address) in peers.iter().filter(|&(&id, _)| id != own) {
            if let Some(link) = self.links.get(&id) {
                link.set_address(address);
                continue;
            }
            let link = Arc::new(Link::new(id, address.clone()));
            self.links.insert(id, link.clone());
            // One of the two has to dial: the lower id does.
            if own < id {
                self.runtime.spawn(keep_dialling(self.shared.clone(), link));
            } else {
                self.runtime.spawn(keep_knocking(self.shared.clone(), link));
            }
        }
        lock(&self.shared.links).clone_from(&self.links);
    }

    fn send_snapshot(&mut self, outgoing: OutgoingSnapshot) {
        match self.links.get(&outgoing.to) {
            Some(link) => drop(self.runtime.spawn(transfer::send(self.shared.clone(), link.clone(), outgoing))),
            None => (outgoing.done)(Err(SnapshotError::Lost("not a peer".into()))),
        }
    }

    fn receive_snapshots(&mut self, receiver: Arc<dyn SnapshotReceiver>) {
        *lock(&self.shared.receiver) = Some(receiver);
    }
}

fn accepting(tls: &TlsIdentity, limits: &Limits) -> Result<ServerConfig, NetError> {
    let mut config = ServerConfig::with_crypto(Arc::new(tls.server_config()?));
    // Nodes do not roam: an address that changes in mid-connection is not one of ours.
    config.migration(false).max_incoming(64).transport_config(limits.transport());
    Ok(config)
}

pub(crate) fn dialling(tls: &TlsIdentity, limits: &Limits, alpn: &[u8]) -> Result<ClientConfig, NetError> {
    let mut config = ClientConfig::new(Arc::new(tls.client_config(alpn)?));
    config.transport_config(limits.transport());
    Ok(config)
}

/// Accepts until the endpoint is closed.
async fn accept(shared: Arc<Shared>) {
    while let Some(incoming) = shared.endpoint.accept().await {
        let pending = shared.handshakes.load(Ordering::Relaxed);
        if pending >= shared.limits.max_handshakes {
            shared.metrics.reject(Reject::Busy);
            incoming.refuse();
        } else if pending >= shared.limits.retry_above && !incoming.remote_address_validated() {
            // Under load only those who receive at the address they claim cost us a handshake. It is not an error that
            // a retry fails when the dialler has done one before.
            let _ = incoming.retry();
        } else {
            let handshake = Handshake::begin(&shared);
            tokio::spawn(serve(shared.clone(), incoming, handshake));
        }
    }
}

/// Counts a handshake as long as it lives.
struct Handshake(Arc<Shared>);

impl Handshake {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.handshakes.fetch_add(1, Ordering::Relaxed);
        Handshake(shared.clone())
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.handshakes.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, handshake: Handshake) {
    let address = incoming.remote_address();
    let connection = match tokio::time::timeout(shared.limits.handshake_timeout, incoming.into_future()).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(ConnectionError::LocallyClosed)) => return,
        Ok(Err(error)) => {
            let reason = handshake_reject(&error);
            tracing::warn!(%address, ?reason, error = harmless(&error.to_string()), "handshake failed");
            return shared.metrics.reject(reason);
        }
        Err(_) => {
            tracing::warn!(%address, "handshake timed out");
            return shared.metrics.reject(Reject::Handshake);
        }
    };
    drop(handshake);
    match admit(&shared, &connection) {
        Ok(Admitted::Peer(link)) => {
            session::run(&shared, &link, connection).await;
        }
        Ok(Admitted::Client(name)) => serve_client(&shared, connection, name).await,
        Err((reason, code, detail)) => match certified_name(&connection) {
            Ok(CertifiedName { cluster, identity: PeerIdentity::Node(id) }) => {
                shared.reject_node(&connection, (&cluster, id), reason, code, &detail);
            }
            _ => shared.reject(&connection, reason, code, &detail),
        },
    }
}

fn handshake_reject(error: &ConnectionError) -> Reject {
    // TLS alert 116, certificate_required (RFC 8446, section 6.2).
    const CERTIFICATE_REQUIRED: u8 = 116;
    match error {
        ConnectionError::TransportError(error) if error.code == TransportErrorCode::crypto(CERTIFICATE_REQUIRED) => {
            Reject::NoCertificate
        }
        _ => Reject::Handshake,
    }
}

enum Admitted {
    Peer(Arc<Link>),
    Client(String),
}

/// The handshake has proved that our CA knows the dialler. Who it is, and whether that one may come in by this door, is
/// decided here, before anything is read.
fn admit(shared: &Shared, connection: &Connection) -> Result<Admitted, (Reject, CloseCode, String)> {
    let alpn = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol)
        .unwrap_or_default();
    let name = certified_name(connection).map_err(|what| (Reject::Unnamed, CloseCode::Unnamed, what))?;
    if name.cluster != shared.cluster {
        return Err((Reject::WrongCluster, CloseCode::WrongCluster, format!("this is not your cluster, {name}")));
    }
    match (alpn.as_slice(), name.identity) {
        (ALPN_NODE, PeerIdentity::Node(id)) => match lock(&shared.links).get(&id) {
            Some(link) if id < shared.node => Ok(Admitted::Peer(link.clone())),
            Some(link) => {
                link.knock();
                Err((Reject::WrongNode, CloseCode::WrongDirection, format!("node {id} must be dialled, not dial")))
            }
            None => Err((Reject::WrongNode, CloseCode::WrongNode, format!("node {id} is not a peer"))),
        },
        (ALPN_CLIENT, PeerIdentity::Client { name }) => Ok(Admitted::Client(name)),
        (_, identity) => Err((Reject::WrongRole, CloseCode::WrongRole, format!("not a protocol for {identity}"))),
    }
}

/// Whom the other end's certificate names.
fn certified_name(connection: &Connection) -> Result<CertifiedName, String> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .unwrap_or_default();
    let own = chain.first().ok_or("no certificate")?;
    CertifiedName::from_certificate(own).map_err(|error| error.to_string())
}

/// Hands a client over and keeps its counters until it is gone.
async fn serve_client(shared: &Shared, connection: Connection, name: String) {
    if !shared.metrics.admit_client(&connection, shared.limits.max_clients) {
        return shared.reject(&connection, Reject::Busy, CloseCode::Busy, "too many clients");
    }
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(shared.limits.max_client_streams));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
    tracing::debug!(name, address = %connection.remote_address(), "client connected");
    if shared.clients.send(ClientConnection { connection: connection.clone(), name }).await.is_err() {
        CloseCode::Shutdown.close(&connection, "no client service");
    }
    connection.closed().await;
    shared.metrics.retire(&connection);
}

impl Shared {
    /// What it takes to dial `link`'s peer once.
    pub(crate) fn dial(&self, link: &Link) -> Dial {
        Dial {
            endpoint: self.endpoint.clone(),
            config: lock(&self.dialling).clone(),
            node: link.peer,
            cluster: self.cluster.clone(),
            address: link.address(),
        }
    }
}
