//! Reaching another node.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{ClientConfig, Connection, Endpoint};
use raft_core::NodeId;
use rand::Rng;

use crate::error::DialError;
use crate::identity::CertifiedName;
use crate::link::Link;
use crate::metrics::bump;
use crate::quic::Shared;
use crate::session;

/// A handshake with a peer that is up takes a few round trips. One that is not up does not answer at all, and
/// retransmissions grow further and further apart: so begin anew after this time, and be patient only little by little.
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);

/// One attempt to connect.
pub(crate) struct Dial {
    pub(crate) endpoint: Endpoint,
    pub(crate) config: ClientConfig,
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    /// `host:port`.
    pub(crate) address: String,
}

impl Dial {
    /// Resolves the address and connects to the `attempt`-th of the results (counting round and round).
    pub(crate) async fn connect(self, attempt: usize, timeout: Duration) -> Result<Connection, DialError> {
        let Dial { endpoint, config, node, cluster, address } = self;
        // Only the holder of this name's certificate can complete the handshake.
        let server_name = CertifiedName::node(cluster, node).dns_name()?;
        let ipv6 = endpoint.local_addr().is_ok_and(|own| own.is_ipv6());
        let found: Vec<SocketAddr> = tokio::net::lookup_host(&address)
            .await
            .map_err(|source| DialError::Resolve { address: address.clone(), source })?
            .filter(|found| ipv6 || found.is_ipv4())
            .collect();
        let Some(&address) = found.get(attempt % found.len().max(1)) else {
            return Err(DialError::NoAddress(address));
        };
        let connecting = endpoint.connect_with(config, address, &server_name).map_err(|source| DialError::Connect {
            node,
            address,
            source,
        })?;
        match tokio::time::timeout(timeout, connecting).await {
            Ok(result) => result.map_err(|source| DialError::Handshake { node, address, source }),
            Err(_) => Err(DialError::Timeout { node, address }),
        }
    }
}

/// Dials `link`'s peer, serves the connection, and dials again when it is lost, until the link is stopped.
pub(crate) async fn keep_dialling(shared: Arc<Shared>, link: Arc<Link>) {
    let limits = &shared.limits;
    let mut failures: u32 = 0;
    while !link.is_stopped() {
        let timeout = FIRST_TIMEOUT.saturating_mul(1 << failures.min(10)).min(limits.handshake_timeout);
        let connected = tokio::select! {
            biased;
            () = link.stopped() => return,
            result = shared.dial(&link).connect(failures as usize, timeout) => result,
        };
        let accepted = match connected {
            Ok(connection) => session::run(&shared, &link, connection).await,
            Err(error) => {
                bump(&shared.metrics.dial_failures, 1);
                // A peer that is down is no news after the first time.
                if failures == 0 {
                    tracing::info!(peer = %link.peer, %error, "cannot connect; will keep trying");
                } else {
                    tracing::debug!(peer = %link.peer, %error, failures, "cannot connect");
                }
                false
            }
        };
        failures = if accepted { 0 } else { failures.saturating_add(1) };
        let wait = backoff(limits.dial_backoff_min, limits.dial_backoff_max, failures);
        tokio::select! {
            biased;
            () = link.stopped() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Full jitter: anything from zero to the bound, which doubles with each failure. So nodes that lost each other at the
/// same moment do not come back at the same moment.
fn backoff(min: Duration, max: Duration, failures: u32) -> Duration {
    let bound = min.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(max);
    bound.mul_f64(rand::rng().random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_bounded() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        for failures in [0, 1, 2, 5, 20, u32::MAX] {
            let longest = (0..200).map(|_| backoff(min, max, failures)).max().unwrap();
            let bound = if failures < 2 { min } else { max };
            assert!(longest <= bound && longest > Duration::ZERO, "{failures}: {longest:?}");
        }
    }
}
