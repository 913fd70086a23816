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
use crate::refusal::{Refusal, harmless};
use crate::session::{self, Outcome};

/// A handshake with a peer that is up takes a few round trips. One that is not up does not answer at all, and
/// retransmissions grow further and further apart: so begin anew after this time, and be patient only little by little.
const FIRST_TIMEOUT: Duration = Duration::from_millis(250);

/// After so many failures the wait is at its longest, for limits that make sense.
const HOPELESS: u32 = 17;

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
    let mut was_refused = false;
    while !link.is_stopped() {
        let timeout = FIRST_TIMEOUT.saturating_mul(1 << failures.min(10)).min(limits.handshake_timeout);
        let connected = tokio::select! {
            biased;
            () = link.stopped() => return,
            result = shared.dial(&link).connect(failures as usize, timeout) => result,
        };
        let outcome = match connected {
            Ok(connection) => session::run(&shared, &link, connection).await,
            Err(error) => {
                bump(&shared.metrics.dial_failures, 1);
                let error = harmless(&error.to_string());
                // A peer that is down is no news after the first time.
                if failures == 0 {
                    tracing::info!(peer = %link.peer, error, "cannot connect; will keep trying");
                } else {
                    tracing::debug!(peer = %link.peer, error, failures, "cannot connect");
                }
                Outcome::Lost
            }
        };
        failures = match outcome {
            Outcome::Served => 0,
            Outcome::Lost => failures.saturating_add(1),
            // A node that has just been started may not have opened yet what we have in common.
            Outcome::Refused if !was_refused => failures.saturating_add(1),
            Outcome::Refused => failures.saturating_add(1).max(HOPELESS),
        };
        was_refused = outcome == Outcome::Refused;
        let wait = backoff(limits.dial_backoff_min, limits.dial_backoff_max, failures);
        tokio::select! {
            biased;
            () = link.stopped() => return,
            () = tokio::time::sleep(wait) => {}
            // At once, but not as often as it likes.
            () = async { link.knocked().await; tokio::time::sleep(limits.dial_backoff_min).await } => {}
        }
    }
}

/// Asks `link`'s peer, which is the one that dials, why it does not: a node that has been removed while it was down is dialled by nobody, and would never hear of it. The
/// answer is always that we are not to dial; but a peer to which we are one makes haste to dial then, and any other says that it does not know us.
pub(crate) async fn keep_knocking(shared: Arc<Shared>, link: Arc<Link>) {
    let limits = &shared.limits;
    for attempt in 0.. {
        // A peer that is up has dialled by then, unless it was told a moment ago that it is no peer.
        let max = limits.dial_backoff_max;
        let wait = if attempt == 0 { max / 4 } else { (max + backoff(limits.dial_backoff_min, max, HOPELESS)) / 2 };
        tokio::select! {
            biased;
            () = link.stopped() => return,
            () = tokio::time::sleep(wait) => {}
        }
        if link.connection().is_some() {
            continue;
        }
        let answer = tokio::select! {
            biased;
            () = link.stopped() => return,
            answer = knock(&shared, &link, attempt) => answer,
        };
        // Unless the peer has come by itself meanwhile.
        if let Some(refusal) = answer.filter(|_| link.connection().is_none()) {
            shared.refused(&link, refusal).await;
        }
    }
}

async fn knock(shared: &Shared, link: &Link, attempt: usize) -> Option<Refusal> {
    let timeout = shared.limits.handshake_timeout;
    let connection = shared.dial(link).connect(attempt, timeout).await.ok()?;
    Refusal::of(&tokio::time::timeout(timeout, connection.closed()).await.ok()?)
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

    #[test]
    fn who_is_refused_waits_as_long_as_anybody() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(2));
        let longest = (0..200).map(|_| backoff(min, max, HOPELESS)).max().unwrap();
        assert!(longest > max / 2, "{longest:?}");
    }
}
