//! What can go wrong when the network is set up or a node is dialled.

use std::io;
use std::net::SocketAddr;

use raft_core::NodeId;

use crate::identity::NameError;
use crate::pki::PkiError;
use crate::tls::TlsError;

/// Why an endpoint cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// Another socket has the address.
    #[error("UDP {0} is in use: stop the other process or choose another port")]
    AddressInUse(SocketAddr),
    /// The address cannot be bound for another reason.
    #[error("cannot listen on UDP {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Certificates or keys are not usable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A setting cannot work.
    #[error("setting `{key}`: {reason}")]
    Setting {
        /// Which field of [`Limits`](crate::Limits).
        key: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The keys in the data directory cannot be read or written.
    #[error("connection keys: {0}")]
    Keys(#[from] PkiError),
    /// The socket works, but the QUIC endpoint does not start.
    #[error("cannot start QUIC: {0}")]
    Endpoint(io::Error),
    /// Called from outside a tokio runtime.
    #[error("no tokio runtime: bind the endpoint from within one")]
    NoRuntime,
}

/// Why a dial failed. Trying again later may help, except after [`DialError::Name`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// Host name resolution failed.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// The address.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The host name resolves to nothing that this endpoint can reach.
    #[error("{0} resolves to no usable address")]
    NoAddress(String),
    /// The address or this endpoint is unusable.
    #[error("cannot dial node {node} at {address}: {source}")]
    Connect {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectError,
    },
    /// Nobody answers, or not who was expected, or we are not welcome.
    #[error("node {node} at {address}: {source}")]
    Handshake {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: quinn::ConnectionError,
    },
    /// No answer in time.
    #[error("node {node} at {address} does not answer")]
    Timeout {
        /// Whom.
        node: NodeId,
        /// Where.
        address: SocketAddr,
    },
    /// The cluster's name cannot be part of a certificate.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Why a connection was closed by this crate. The number is the QUIC application error code that the other end sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum CloseCode {
    /// The node is shutting down, or the client is done.
    Shutdown = 0,
    /// A newer connection took this one's place.
    Replaced = 1,
    /// The peer is no longer configured.
    Removed = 2,
    /// Too many clients.
    Busy = 3,
    /// Whether the peer is the one that is meant by its id cannot be found out at present.
    CannotTell = 4,
    /// The certificate's cluster is another.
    WrongCluster = 16,
    /// A client spoke the node protocol, or a node the client protocol.
    WrongRole = 17,
    /// The certificate's node is not a peer.
    WrongNode = 18,
    /// The certificate names neither a node nor a client.
    Unnamed = 19,
    /// A frame claimed to be over the limit.
    FrameTooLarge = 20,
    /// Bytes that are not a frame or not a message.
    Malformed = 21,
    /// A message from or for somebody else than this connection's ends.
    Misaddressed = 22,
    /// The peer's data directory is not the one that is known under its id.
    WrongIncarnation = 23,
    /// The peer is one that is dialled, and does not dial.
    WrongDirection = 24,
}

impl CloseCode {
    const ALL: [CloseCode; 14] = [
        CloseCode::Shutdown,
        CloseCode::Replaced,
        CloseCode::Removed,
        CloseCode::Busy,
        CloseCode::CannotTell,
        CloseCode::WrongCluster,
        CloseCode::WrongRole,
        CloseCode::WrongNode,
        CloseCode::Unnamed,
        CloseCode::FrameTooLarge,
        CloseCode::Malformed,
        CloseCode::Misaddressed,
        CloseCode::WrongIncarnation,
        CloseCode::WrongDirection,
    ];

    /// The code with this number.
    pub(crate) fn of(number: u64) -> Option<Self> {
        CloseCode::ALL.into_iter().find(|code| *code as u64 == number)
    }

    /// Whether it says that the other end is not whom this one deals with: then nothing that the other sends will help.
    pub(crate) fn concerns_identity(self) -> bool {
        match self {
            CloseCode::Removed
            | CloseCode::WrongCluster
            | CloseCode::WrongRole
            | CloseCode::WrongNode
            | CloseCode::Unnamed
            | CloseCode::WrongIncarnation => true,
            CloseCode::Shutdown
            | CloseCode::Replaced
            | CloseCode::Busy
            | CloseCode::CannotTell
            | CloseCode::FrameTooLarge
            | CloseCode::Malformed
            | CloseCode::Misaddressed
            | CloseCode::WrongDirection => false,
        }
    }

    /// Whether the other end has closed the connection because of who or what we are, or of what we sent.
    pub(crate) fn is_refusal(reason: &quinn::ConnectionError) -> bool {
        match reason {
            quinn::ConnectionError::ApplicationClosed(close) => {
                close.error_code.into_inner() >= CloseCode::WrongCluster as u64
            }
            _ => false,
        }
    }

    pub(crate) fn close(self, connection: &quinn::Connection, reason: &str) {
        connection.close(quinn::VarInt::from_u32(u32::from(self as u8)), reason.as_bytes());
    }
}
