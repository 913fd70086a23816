//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use serde::Serialize;

use crate::codec::Channel;

/// Why a connection, or an attempt at one, was refused or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reject {
    /// The dialler showed no certificate.
    NoCertificate,
    /// The handshake failed for another reason: unknown CA, expired certificate, unknown protocol, time out.
    Handshake,
    /// The certificate names neither a node nor a client.
    Unnamed,
    /// A certificate of another cluster.
    WrongCluster,
    /// A client's certificate with the node protocol, or the other way round.
    WrongRole,
    /// A node's certificate, but not of a peer that may dial us.
    WrongNode,
    /// A frame over the limit.
    FrameTooLarge,
    /// Bytes that are not a frame or not a message.
    Malformed,
    /// A message from or for somebody else.
    Misaddressed,
    /// Too many clients or handshakes.
    Busy,
    /// A peer whose data directory is not the one that is known under its id.
    WrongIncarnation,
}

impl Reject {
    /// All of them, in order.
    pub const ALL: [Reject; 11] = [
        Reject::NoCertificate,
        Reject::Handshake,
        Reject::Unnamed,
        Reject::WrongCluster,
        Reject::WrongRole,
        Reject::WrongNode,
        Reject::FrameTooLarge,
        Reject::Malformed,
        Reject::Misaddressed,
        Reject::Busy,
        Reject::WrongIncarnation,
    ];
}

/// Traffic of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Messages.
    pub frames: u64,
    /// Bytes of their frames.
    pub bytes: u64,
}

/// The counters of an endpoint at one moment. They only grow, except `peers_connected` and `clients_connected`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NetStats {
    /// Handed to QUIC, by channel: control, append.
    pub sent: [Traffic; 2],
    /// Received and valid, by channel: control, append.
    pub received: [Traffic; 2],
    /// Messages dropped because the peer was not connected.
    pub dropped_unconnected: u64,
    /// Messages dropped because the peer's queue was full.
    pub dropped_full: u64,
    /// Messages dropped because their frame would be over the limit.
    pub dropped_oversized: u64,
    /// Messages dropped because they were queued when the connection was lost.
    pub dropped_disconnected: u64,
    /// Connections to peers that were made, first ones and later ones.
    pub connects: u64,
    /// Connections to peers that were lost or replaced.
    pub disconnects: u64,
    /// Attempts to reach a peer that failed.
    pub dial_failures: u64,
    /// Peers connected at present.
    pub peers_connected: u64,
    /// Clients connected at present.
    pub clients_connected: u64,
    /// Refusals, by [`Reject`] in its order.
    pub rejected: [u64; Reject::ALL.len()],
    /// Bytes of UDP payload sent over all connections, of peers and clients, past and present.
    pub udp_bytes_sent: u64,
    /// Bytes of UDP payload received over all connections.
    pub udp_bytes_received: u64,
    /// UDP datagrams sent.
    pub udp_datagrams_sent: u64,
    /// UDP datagrams received.
    pub udp_datagrams_received: u64,
    /// Send system calls; fewer than datagrams thanks to segmentation offload.
    pub udp_sends: u64,
}

impl NetStats {
    /// How often connections were refused for `reason`.
    pub fn rejected(&self, reason: Reject) -> u64 {
        self.rejected[reason as usize]
    }
}

#[derive(Debug, Default)]
pub(crate) struct Flow {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Flow {
    pub(crate) fn add(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn read(&self) -> Traffic {
        Traffic { frames: self.frames.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// The living counters of an endpoint. Shared; read them with [`snapshot`](Self::snapshot).
#[derive(Debug, Default)]
pub struct NetMetrics {
    pub(crate) sent: [Flow; 2],
    pub(crate) received: [Flow; 2],
    pub(crate) dropped_unconnected: AtomicU64,
    pub(crate) dropped_full: AtomicU64,
    pub(crate) dropped_oversized: AtomicU64,
    pub(crate) dropped_disconnected: AtomicU64,
    pub(crate) connects: AtomicU64,
    pub(crate) disconnects: AtomicU64,
    pub(crate) dial_failures: AtomicU64,
    pub(crate) peers_connected: AtomicU64,
    rejected: [AtomicU64; Reject::ALL.len()],
    connections: Mutex<Connections>,
}

/// QUIC counts per connection, and forgets with it. So a connection's counts move to `past` when it ends.
#[derive(Debug, Default)]
struct Connections {
    live: Vec<(Connection, bool)>,
    past: Udp,
}

#[derive(Clone, Copy, Debug, Default)]
struct Udp {
    bytes_sent: u64,
    bytes_received: u64,
    datagrams_sent: u64,
    datagrams_received: u64,
    sends: u64,
}

impl Udp {
    fn add(&mut self, connection: &Connection) {
        let stats = connection.stats();
        self.bytes_sent += stats.udp_tx.bytes;
        self.bytes_received += stats.udp_rx.bytes;
        self.datagrams_sent += stats.udp_tx.datagrams;
        self.datagrams_received += stats.udp_rx.datagrams;
        self.sends += stats.udp_tx.ios;
    }
}

impl NetMetrics {
    /// All counters now. Takes a lock for each connection: once a second is fine, once a message is not.
    pub fn snapshot(&self) -> NetStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (udp, clients) = {
            let connections = self.connections();
            let mut udp = connections.past;
            connections.live.iter().for_each(|(connection, _)| udp.add(connection));
            (udp, connections.live.iter().filter(|(_, is_client)| *is_client).count())
        };
        NetStats {
            sent: self.sent.each_ref().map(Flow::read),
            received: self.received.each_ref().map(Flow::read),
            dropped_unconnected: load(&self.dropped_unconnected),
            dropped_full: load(&self.dropped_full),
            dropped_oversized: load(&self.dropped_oversized),
            dropped_disconnected: load(&self.dropped_disconnected),
            connects: load(&self.connects),
            disconnects: load(&self.disconnects),
            dial_failures: load(&self.dial_failures),
            peers_connected: load(&self.peers_connected),
            clients_connected: clients as u64,
            rejected: self.rejected.each_ref().map(load),
            udp_bytes_sent: udp.bytes_sent,
            udp_bytes_received: udp.bytes_received,
            udp_datagrams_sent: udp.datagrams_sent,
            udp_datagrams_received: udp.datagrams_received,
            udp_sends: udp.sends,
        }
    }

    pub(crate) fn reject(&self, reason: Reject) {
        self.rejected[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn flow_in(&self, channel: Channel) -> &Flow {
        &self.received[channel.index()]
    }

    pub(crate) fn flow_out(&self, channel: Channel) -> &Flow {
        &self.sent[channel.index()]
    }

    /// Begins to count a client's connection, unless there are `limit` already.
    pub(crate) fn admit_client(&self, connection: &Connection, limit: usize) -> bool {
        let mut connections = self.connections();
        let admitted = connections.live.iter().filter(|(_, is_client)| *is_client).count() < limit;
        if admitted {
            connections.live.push((connection.clone(), true));
        }
        admitted
    }

    /// Begins to count a peer's connection.
    pub(crate) fn add_peer(&self, connection: &Connection) {
        self.connections().live.push((connection.clone(), false));
    }

    /// Keeps the counts of a connection that has ended.
    pub(crate) fn retire(&self, connection: &Connection) {
        let mut connections = self.connections();
        let id = connection.stable_id();
        if let Some(at) = connections.live.iter().position(|(live, _)| live.stable_id() == id) {
            let (ended, _) = connections.live.swap_remove(at);
            connections.past.add(&ended);
        }
    }

    /// Keeps the counts of all connections and lets go of them.
    pub(crate) fn retire_all(&self) {
        let mut connections = self.connections();
        for (ended, _) in std::mem::take(&mut connections.live) {
            connections.past.add(&ended);
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        // Counters have no invariant that a panic elsewhere could break.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
