//! The network of a Raft cluster: QUIC with certificates on both sides, between nodes and from clients.
//!
//! # Contract
//!
//! A [`Transport`] carries [`Envelope`]s, best effort. What it promises:
//!
//! - **Identity.** A message that arrives in [`Inbound::Messages`] was sent by the node that its `from` names, and is
//!   meant for this one. Connections of strangers, of other clusters and of clients never get that far; whoever sends
//!   what does not parse is cut off and counted ([`Reject`]), and nothing else happens.
//! - **Integrity.** Entries have passed their checksums ([`Segment::unpack`](raft_core::Segment::unpack)).
//! - **Order, as far as it goes.** Messages of one [`Channel`] to one peer arrive in order, or not at all. The control
//!   channel may overtake the other.
//! - **No waiting.** [`Transport::send`] never blocks. A message for a peer that is not connected, or whose queue is
//!   full, is dropped and counted: Raft repeats itself.
//! - **News.** [`Inbound::LinkReset`] tells that messages on their way to or from a peer may be gone: when a connection is made, made anew, or lost. It is never
//!   dropped, and groups that [sleep](raft_core::Config::quiesce_after) rely on it: in whatever way messages between two nodes that were connected stop getting
//!   through, also in one direction only, and when one of the two has died or was restarted, whoever is up hears of it within a bounded
//!   time. A connection on which nothing is said is kept alive ([`Limits::keep_alive`]), and one on which nothing arrives is lost after
//!   [`Limits::idle_timeout`]; where only one end hears nothing, the other notices when the first has fallen silent, after at most twice that.
//! - **Refusals are told.** Who is let in is judged by both ends. [`Inbound::Accepted`] says that a peer has let this node in, [`Inbound::Refused`] that it has not, and
//!   why. A peer of which nothing is heard is asked by either end, also by the one that is otherwise dialled, so that a node that was removed learns of it.
//! - **Bounded memory**, against a slow peer (queues in bytes) and a hostile one (nothing is allocated for a length
//!   that was only claimed).
//!
//! Snapshots go on streams of their own ([`snapshot`]), behind everything else, and only as fast as they are taken.
//!
//! It does not judge who has failed: that is Raft's business. Idle time-outs only recycle connections, and wake those who sleep.
//!
//! [`QuicTransport`] is the real one, [`memory`] has one for tests. Certificates come from [`pki`].
//!
//! # Two nodes, one message
//!
//! ```
//! use raft_core::{Envelope, GroupId, Heartbeat, LogIndex, Message, NodeId, Term};
//! use raft_net::pki::{CertificateAuthority, DEFAULT_VALIDITY};
//! use raft_net::{Inbound, NetConfig, QuicTransport, TlsIdentity, Transport};
//! use tokio::sync::mpsc;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ca = CertificateAuthority::generate(DEFAULT_VALIDITY)?;
//! let config = |id| -> Result<NetConfig, Box<dyn std::error::Error>> {
//!     let own = ca.issue_node("demo", id, DEFAULT_VALIDITY)?;
//!     let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem)?;
//!     Ok(NetConfig::new(id, "demo", "127.0.0.1:0".parse()?, tls))
//! };
//! # let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//! # runtime.block_on(async {
//! let (one, two) = (NodeId(1), NodeId(2));
//! let (inbound_1, mut inbox_1) = mpsc::channel(64);
//! let (inbound_2, mut inbox_2) = mpsc::channel(64);
//! let (clients, _) = mpsc::channel(1);
//!
//! // Node 2 waits for node 1: the lower id dials.
//! let mut config_2 = config(two)?;
//! config_2.peers.insert(one, "127.0.0.1:1".into());
//! let mut node_2 = QuicTransport::bind(config_2, inbound_2, clients.clone())?;
//! let mut config_1 = config(one)?;
//! config_1.peers.insert(two, node_2.local_addr()?.to_string());
//! let mut node_1 = QuicTransport::bind(config_1, inbound_1, clients)?;
//!
//! // Connected: a link reset is the first thing that both hear.
//! assert_eq!(inbox_1.recv().await, Some(Inbound::LinkReset { peer: two }));
//! let body = Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(1) });
//! let hello = Envelope { from: one, to: two, term: Term(1), body };
//! node_1.send(GroupId::FIRST, &mut vec![hello.clone()]);
//!
//! assert_eq!(inbox_2.recv().await, Some(Inbound::LinkReset { peer: one }));
//! let messages = Inbound::Messages { group: GroupId::FIRST, messages: vec![hello] };
//! // And that node 1 has let it in.
//! let two_more = [inbox_2.recv().await, inbox_2.recv().await];
//! assert!(two_more.contains(&Some(messages)) && two_more.contains(&Some(Inbound::Accepted { peer: one })));
//! node_1.close().await;
//! node_2.close().await;
//! # Ok(())
//! # })
//! # }
//! ```
#![forbid(unsafe_code)]

mod client;
mod codec;
mod config;
mod dial;
mod error;
mod frame;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod link;
pub mod memory;
mod metrics;
pub mod pki;
mod quic;
mod refusal;
mod session;
pub mod snapshot;
mod socket;
mod stream;
mod tls;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use raft_core::{Envelope, GroupId, NodeId};

pub use client::ClientEndpoint;
pub use codec::{Channel, Decoded, Preface, append_frame_len, decode, encode, encode_preface};
pub use config::{Limits, NetConfig, PeerCheck, Unwelcome};
pub use error::{CloseCode, DialError, NetError};
pub use frame::{Decoder, FRAME_HEADER, FrameError, FrameSink};
pub use identity::{CertifiedName, NameError, PeerIdentity};
pub use metrics::{NetMetrics, NetStats, Reject, Traffic};
pub use quic::{ClientConnection, QuicTransport};
use snapshot::{OutgoingSnapshot, SnapshotError, SnapshotReceiver};
pub use tls::{ALPN_CLIENT, ALPN_NODE, TlsError, TlsIdentity};

/// Something that the network has to tell the node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inbound {
    /// Messages that arrived together, in order. Never empty.
    Messages {
        /// For which group.
        group: GroupId,
        /// From the same peer, to this node.
        messages: Vec<Envelope>,
    },
    /// The connection to `peer` was made, made anew, or lost.
    LinkReset {
        /// Which peer.
        peer: NodeId,
    },
    /// `peer` has let this node in: it was reached, and knows this node as the one that is meant by its id. Comes after the [`LinkReset`](Self::LinkReset) of a
    /// connection; messages on the control channel may have come before it. What the peer [refused](Self::Refused) before is over.
    Accepted {
        /// Which peer.
        peer: NodeId,
    },
    /// `peer` will have nothing to do with this node, because of who it is. It is asked again, within [`Limits::dial_backoff_max`] and a handshake, as long as it is a
    /// peer; each time this is said again.
    Refused {
        /// Which peer.
        peer: NodeId,
        /// What is wrong with this node.
        code: CloseCode,
        /// In the peer's words, for people: a few hundred printable ASCII characters at most, whatever it has sent. Not to be relied on.
        reason: String,
    },
}

/// Carries messages to the other nodes. See the [crate's contract](crate).
pub trait Transport: Send {
    /// Takes all `messages` and sends them, best effort, in order for each receiver and channel. Never blocks.
    fn send(&mut self, group: GroupId, messages: &mut Vec<Envelope>);

    /// Replaces the set of peers and their addresses (`host:port`). Links to those who remain are left alone.
    fn set_peers(&mut self, peers: &BTreeMap<NodeId, String>);

    /// Sends a snapshot, next to everything else and after it; may take minutes. Never blocks. A failed transfer is not tried again, but the
    /// next one of the same snapshot goes on where it broke off.
    fn send_snapshot(&mut self, outgoing: OutgoingSnapshot) {
        (outgoing.done)(Err(SnapshotError::Unsupported));
    }

    /// Whoever takes the snapshots that others send; until there is someone, they are refused.
    fn receive_snapshots(&mut self, receiver: Arc<dyn SnapshotReceiver>) {
        let _ = receiver;
    }
}
