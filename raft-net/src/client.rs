//! The client's end: dials nodes, shows a client's certificate.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use quinn::{ClientConfig, Connection, Endpoint, VarInt};
use raft_core::NodeId;
use tokio::runtime::Handle;

use crate::config::Limits;
use crate::dial::Dial;
use crate::error::{CloseCode, DialError, NetError};
use crate::quic::dialling;
use crate::socket;
use crate::tls::{ALPN_CLIENT, TlsIdentity};

/// Dials nodes of one cluster as a client. Cheap to clone; one serves any number of connections.
#[derive(Clone, Debug)]
pub struct ClientEndpoint {
    endpoint: Endpoint,
    config: ClientConfig,
    cluster: String,
    limits: Limits,
}

impl ClientEndpoint {
    /// Opens a socket on any free port. The cluster is the one that the certificate names. Must be called within a
    /// tokio runtime.
    ///
    /// # Errors
    /// The certificate or a setting is not usable, or there is no socket to be had.
    pub fn new(tls: &TlsIdentity, limits: Limits) -> Result<Self, NetError> {
        limits.check().map_err(|(key, reason)| NetError::Setting { key, reason })?;
        Handle::try_current().map_err(|_| NetError::NoRuntime)?;
        let config = dialling(tls, &limits, ALPN_CLIENT)?;
        let endpoint_config = socket::endpoint_config(None, limits.max_udp_payload)?;
        // Both families, if the machine has both.
        let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let socket = socket::bind(everywhere, limits.socket_buffer, socket::Role::Client)
            .or_else(|_| socket::bind((Ipv4Addr::UNSPECIFIED, 0).into(), limits.socket_buffer, socket::Role::Client))?;
        let endpoint =
            Endpoint::new(endpoint_config, None, socket, Arc::new(quinn::TokioRuntime)).map_err(NetError::Endpoint)?;
        Ok(ClientEndpoint { endpoint, config, cluster: tls.name().cluster.clone(), limits })
    }

    /// Connects to `node` at `address` (`host:port`). The other end has proved that it is that node of this cluster;
    /// whether it welcomes us shows with the first use of the connection.
    ///
    /// # Errors
    /// [`DialError`]: nobody there, or not who was expected, within [`Limits::handshake_timeout`].
    pub async fn connect(&self, node: NodeId, address: &str) -> Result<Connection, DialError> {
        let dial = Dial {
            endpoint: self.endpoint.clone(),
            config: self.config.clone(),
            node,
            cluster: self.cluster.clone(),
            address: address.to_owned(),
        };
        dial.connect(0, self.limits.handshake_timeout).await
    }

    /// Closes all connections and waits until the other ends know.
    pub async fn close(&self) {
        self.endpoint.close(VarInt::from_u32(u32::from(CloseCode::Shutdown as u8)), b"done");
        self.endpoint.wait_idle().await;
    }
}
