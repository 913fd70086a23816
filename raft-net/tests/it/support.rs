//! Nodes, certificates and messages for the tests.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use raft_core::{
    AppendEntries, EntryKind, Envelope, GroupId, Heartbeat, LogId, LogIndex, Message, NodeId, Segment, Term,
};
use raft_net::pki::{CertificateAuthority, Credentials, DEFAULT_VALIDITY};
use raft_net::{ClientConnection, Inbound, NetConfig, NetStats, QuicTransport, TlsIdentity, Transport};
use rcgen::{CertificateParams, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::mpsc;

pub(crate) const CLUSTER: &str = "test";

/// Nothing in these tests takes seconds; this is for machines that are busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits something that must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: did not happen"))
}

pub(crate) struct Pki(CertificateAuthority);

impl Pki {
    pub(crate) fn new() -> Self {
        Pki(CertificateAuthority::generate(DEFAULT_VALIDITY).unwrap())
    }

    pub(crate) fn node(&self, cluster: &str, id: u64) -> Credentials {
        self.0.issue_node(cluster, NodeId(id), DEFAULT_VALIDITY).unwrap()
    }

    pub(crate) fn client(&self, name: &str) -> Credentials {
        self.0.issue_client(CLUSTER, name, DEFAULT_VALIDITY).unwrap()
    }

    /// A certificate that our CA signed, for something that has nothing to do with Raft.
    pub(crate) fn unnamed(&self) -> Credentials {
        let ca = self.0.credentials();
        let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, KeyPair::from_pem(&ca.key_pem).unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["www.example.org".to_owned()]).unwrap();
        Credentials { cert_pem: params.signed_by(&key, &issuer).unwrap().pem(), key_pem: key.serialize_pem() }
    }

    pub(crate) fn identity(&self, own: &Credentials) -> TlsIdentity {
        TlsIdentity::from_pem(&self.0.credentials().cert_pem, &own.cert_pem, &own.key_pem).unwrap()
    }

    pub(crate) fn config(&self, id: u64) -> NetConfig {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        NetConfig::new(NodeId(id), CLUSTER, listen, self.identity(&self.node(CLUSTER, id)))
    }

    /// Dials by hand, with a certificate or without.
    pub(crate) async fn dial(
        &self,
        own: Option<&Credentials>,
        alpn: &[u8],
        address: SocketAddr,
        node: u64,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.credentials().cert_pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut tls = match own {
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_slice(own.cert_pem.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        tls.alpn_protocols = vec![alpn.to_vec()];
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).unwrap();
        let name = format!("node-{node}.{CLUSTER}.raft.internal");
        soon("handshake", endpoint.connect_with(config, address, &name).unwrap()).await
    }
}

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) transport: QuicTransport,
    pub(crate) inbox: mpsc::Receiver<Inbound>,
    pub(crate) clients: mpsc::Receiver<ClientConnection>,
    pub(crate) address: SocketAddr,
}

impl Node {
    pub(crate) fn start(config: NetConfig) -> Node {
        Node::with_inbox(config, 1024)
    }

    pub(crate) fn with_inbox(config: NetConfig, capacity: usize) -> Node {
        let id = config.node;
        let (inbound, inbox) = mpsc::channel(capacity);
        let (client_sender, clients) = mpsc::channel(16);
        let transport = QuicTransport::bind(config, inbound, client_sender).unwrap();
        let address = transport.local_addr().unwrap();
        Node { id, transport, inbox, clients, address }
    }

    /// Starts a node on an address that another socket may be about to release.
    pub(crate) async fn restart(config: &NetConfig) -> Node {
        let attempt = async {
            loop {
                let (inbound, inbox) = mpsc::channel(1024);
                let (client_sender, clients) = mpsc::channel(16);
                match QuicTransport::bind(config.clone(), inbound, client_sender) {
                    Ok(transport) => {
                        return Node { id: config.node, transport, inbox, clients, address: config.listen };
                    }
                    Err(raft_net::NetError::AddressInUse(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
                    Err(other) => panic!("{other}"),
                }
            }
        };
        soon("port free again", attempt).await
    }

    pub(crate) fn stats(&self) -> NetStats {
        self.transport.metrics().snapshot()
    }

    pub(crate) async fn next(&mut self) -> Inbound {
        soon("inbound", self.inbox.recv()).await.expect("the transport is alive")
    }

    /// Waits until the connection to `peer` was made or lost.
    pub(crate) async fn link_reset(&mut self, peer: NodeId) {
        while self.next().await != (Inbound::LinkReset { peer }) {}
    }

    /// The next `count` messages.
    pub(crate) async fn messages(&mut self, count: usize) -> Vec<Envelope> {
        let mut all = Vec::new();
        while all.len() < count {
            if let Inbound::Messages { messages, .. } = self.next().await {
                all.extend(messages);
            }
        }
        assert_eq!(all.len(), count);
        all
    }

    /// Nothing but link resets has arrived, or that a peer has let this node in.
    pub(crate) fn assert_no_messages(&mut self) {
        while let Ok(inbound) = self.inbox.try_recv() {
            assert!(matches!(inbound, Inbound::LinkReset { .. } | Inbound::Accepted { .. }), "{inbound:?}");
        }
    }

    pub(crate) fn send(&mut self, message: Envelope) {
        self.transport.send(GroupId::FIRST, &mut vec![message]);
    }
}

/// Nodes 1..=n, each connected to all others.
pub(crate) async fn cluster(pki: &Pki, n: u64) -> Vec<Node> {
    let mut nodes: Vec<Node> = (1..=n).map(|id| Node::start(pki.config(id))).collect();
    connect(&mut nodes).await;
    nodes
}

/// Tells everybody of everybody, and waits until all links stand.
pub(crate) async fn connect(nodes: &mut [Node]) {
    let peers: BTreeMap<NodeId, String> = nodes.iter().map(|node| (node.id, node.address.to_string())).collect();
    for node in &mut *nodes {
        node.transport.set_peers(&peers);
    }
    for node in &mut *nodes {
        let mut made = 1;
        while made < peers.len() {
            match node.next().await {
                Inbound::LinkReset { .. } => made += 1,
                other => assert!(matches!(other, Inbound::Accepted { .. }), "{other:?}"),
            }
        }
    }
}

/// A small message that tells `n`.
pub(crate) fn heartbeat(from: u64, to: u64, n: u64) -> Envelope {
    let body = Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(n), round: None });
    Envelope { from: NodeId(from), to: NodeId(to), term: Term(1), body }
}

/// An AppendEntries of one entry at `index` with `bytes` bytes.
pub(crate) fn append(from: u64, to: u64, index: u64, bytes: usize) -> Envelope {
    let entry = vec![index as u8; bytes];
    let segment = Segment::pack(LogIndex(index), Term(1), EntryKind::Command, &[entry]).unwrap();
    let body = Message::AppendEntries(AppendEntries {
        epoch: 1,
        seq: index,
        prev_log: LogId::new(Term(1), LogIndex(index - 1)),
        leader_commit: LogIndex(0),
        entries: segment.into(),
    });
    Envelope { from: NodeId(from), to: NodeId(to), term: Term(1), body }
}
