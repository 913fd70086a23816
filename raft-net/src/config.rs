//! Settings of a node's end of the network, and what they mean for QUIC.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{AckFrequencyConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use raft_core::NodeId;

use crate::tls::TlsIdentity;

/// Settings of one node. [`NetConfig::new`] gives the defaults; change the fields you care about.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// This node. Its certificate must say the same.
    pub node: NodeId,
    /// Name of the cluster. The certificate must say the same.
    pub cluster: String,
    /// Where to listen (UDP). Port 0 takes any free port.
    pub listen: SocketAddr,
    /// The other nodes and their addresses, `host:port`, resolved at each dial. An entry for this node itself is
    /// ignored.
    pub peers: BTreeMap<NodeId, String>,
    /// Certificates and key.
    pub tls: TlsIdentity,
    /// Where the keys live by which peers notice a restart of this node within milliseconds. Without it they wait for
    /// [`Limits::idle_timeout`].
    pub data_dir: Option<PathBuf>,
    /// A number that the data directory of this node was given when it was made, and that no other has. Peers are told at the beginning of each stream: a
    /// node that comes back with an empty directory is another one, which has forgotten what it promised.
    pub incarnation: u128,
    /// Whether a peer with this incarnation is the one that is meant by its id.
    pub peer_check: PeerCheck,
    /// Sizes and times.
    pub limits: Limits,
}

/// Judges a peer by its incarnation, before anything that it says is believed. The error is what the peer is told.
#[derive(Clone)]
pub struct PeerCheck(pub Arc<dyn Fn(NodeId, u128) -> Result<(), Unwelcome> + Send + Sync>);

/// Why a peer is not let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unwelcome {
    /// Another one is known under its id: [`CloseCode::WrongIncarnation`](crate::CloseCode::WrongIncarnation).
    Another(String),
    /// Whether it is the one that is meant cannot be found out at present; it may try again: [`CloseCode::CannotTell`](crate::CloseCode::CannotTell).
    CannotTell(String),
}

impl Default for PeerCheck {
    /// Believes everybody.
    fn default() -> Self {
        PeerCheck(Arc::new(|_, _| Ok(())))
    }
}

impl std::fmt::Debug for PeerCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PeerCheck")
    }
}

impl NetConfig {
    /// A node without peers, with default limits.
    pub fn new(node: NodeId, cluster: impl Into<String>, listen: SocketAddr, tls: TlsIdentity) -> Self {
        NetConfig {
            node,
            cluster: cluster.into(),
            listen,
            peers: BTreeMap::new(),
            tls,
            data_dir: None,
            incarnation: 0,
            peer_check: PeerCheck::default(),
            limits: Limits::default(),
        }
    }
}

/// Sizes and times. The defaults were measured; see `ARCHITECTURE.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest frame with entries that is accepted or sent, in bytes. Must exceed the largest entry.
    pub max_append_frame: usize,
    /// Largest frame of any other kind, in bytes.
    pub max_control_frame: usize,
    /// Bytes of entries of each group that may wait for one peer; what comes on top is dropped (and counted), and has to be sent again. It must exceed what a group
    /// sends before it hears of anything (`raft_core::Config::max_inflight_bytes` and one message): then nothing is dropped, and what waits for a peer that does
    /// not read is bounded by the windows of the groups that it shares with this node.
    pub append_queue_bytes: usize,
    /// Bytes of other messages, of all groups, that may wait for one peer; what comes on top is dropped (and counted).
    pub control_queue_bytes: usize,
    /// QUIC flow control window of one stream, in bytes. Larger does not speed up a LAN, it only queues: heartbeats
    /// then wait behind bulk data.
    pub stream_receive_window: u32,
    /// QUIC flow control window of a connection, in bytes.
    pub receive_window: u32,
    /// Unacknowledged bytes that a connection keeps, at most.
    pub send_window: u32,
    /// Send and receive buffer asked from the kernel for the socket, in bytes.
    pub socket_buffer: usize,
    /// Largest UDP payload that path MTU discovery tries, in bytes. Ten of them must fit into 64 KiB.
    pub max_udp_payload: u16,
    /// A connection without any packet for so long is given up.
    pub idle_timeout: Duration,
    /// A silent connection is kept alive by a packet this often.
    pub keep_alive: Duration,
    /// Round-trip time to assume before the first measurement.
    pub initial_rtt: Duration,
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// Longest wait before the first retry of a dial; doubles with each failure.
    pub dial_backoff_min: Duration,
    /// Longest wait before any retry of a dial.
    pub dial_backoff_max: Duration,
    /// Clients connected at a time; more are turned away.
    pub max_clients: usize,
    /// Requests (bidirectional streams) a client may have open at a time.
    pub max_client_streams: u32,
    /// Handshakes in progress from which on a dialler must first prove its address (one round trip more).
    pub retry_above: usize,
    /// Handshakes in progress at most; more are refused.
    pub max_handshakes: usize,
    /// Snapshots that are sent at a time, and that are received at a time. More wait, or are tried again.
    pub max_snapshots: usize,
    /// A snapshot of which nothing moves for so long is given up.
    pub snapshot_stall: Duration,
    /// Bytes of each snapshot that are sent in a second, at most; zero: as many as the source delivers, and the network and the other end take.
    pub snapshot_bytes_per_second: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_append_frame: 16 << 20,
            max_control_frame: 256 << 10,
            append_queue_bytes: 32 << 20,
            control_queue_bytes: 1 << 20,
            stream_receive_window: 256 << 10,
            receive_window: 8 << 20,
            send_window: 4 << 20,
            socket_buffer: 4 << 20,
            max_udp_payload: 6500,
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_millis(500),
            initial_rtt: Duration::from_millis(10),
            handshake_timeout: Duration::from_secs(3),
            dial_backoff_min: Duration::from_millis(50),
            dial_backoff_max: Duration::from_secs(2),
            max_clients: 1024,
            max_client_streams: 256,
            retry_above: 32,
            max_handshakes: 256,
            max_snapshots: 2,
            snapshot_stall: Duration::from_secs(10),
            snapshot_bytes_per_second: 0,
        }
    }
}

impl Limits {
    /// The name of a setting that cannot work, with the reason.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let u32_max = u32::MAX as usize;
        if self.max_append_frame > u32_max || self.max_control_frame > u32_max {
            return Err(("max_append_frame, max_control_frame", "the length field has 32 bits"));
        }
        if !(1200..=6553).contains(&self.max_udp_payload) {
            return Err(("max_udp_payload", "must be between 1200 and 6553 bytes"));
        }
        if IdleTimeout::try_from(self.idle_timeout).is_err() || self.idle_timeout.is_zero() {
            return Err(("idle_timeout", "must be more than zero and less than 2^62 ms"));
        }
        if self.keep_alive.is_zero() || self.keep_alive >= self.idle_timeout {
            return Err(("keep_alive", "must be more than zero and less than idle_timeout"));
        }
        if self.dial_backoff_min.is_zero() || self.dial_backoff_min > self.dial_backoff_max {
            return Err(("dial_backoff_min", "must be more than zero and at most dial_backoff_max"));
        }
        if self.max_snapshots == 0 || self.max_snapshots > 1024 {
            return Err(("max_snapshots", "must be between 1 and 1024"));
        }
        if self.max_handshakes == 0 {
            return Err(("max_handshakes", "must not be zero"));
        }
        Ok(())
    }

    /// QUIC's parameters for every connection. Streams of clients are granted after their authentication.
    pub(crate) fn transport(&self) -> Arc<TransportConfig> {
        let mut cubic = CubicConfig::default();
        // A LAN of equals: begin with what slow start would reach after a few round trips.
        cubic.initial_window(256 << 10);
        let mut ack = AckFrequencyConfig::default();
        // Brings the recovery of a lost last packet from 26 ms to about 4 ms, and saves acknowledgements.
        ack.ack_eliciting_threshold(VarInt::from_u32(10)).max_ack_delay(Some(Duration::from_millis(2)));
        let mut mtu = MtuDiscoveryConfig::default();
        mtu.upper_bound(self.max_udp_payload);

        let mut transport = TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(8))
            .max_idle_timeout(IdleTimeout::try_from(self.idle_timeout).ok())
            .keep_alive_interval(Some(self.keep_alive))
            .initial_rtt(self.initial_rtt)
            .stream_receive_window(VarInt::from_u32(self.stream_receive_window))
            .receive_window(VarInt::from_u32(self.receive_window))
            .send_window(u64::from(self.send_window))
            .datagram_receive_buffer_size(None)
            .congestion_controller_factory(Arc::new(cubic))
            .ack_frequency_config(Some(ack))
            .mtu_discovery_config(Some(mtu));
        Arc::new(transport)
    }
}
