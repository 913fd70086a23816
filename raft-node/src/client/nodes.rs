//! The nodes that a client knows, and its link to each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use raft_core::NodeId;
use raft_net::{ClientEndpoint, Limits, TlsIdentity};
use tokio::time::Instant;

use super::error::Error;
use super::link::Link;

/// After a failed attempt to connect, those who ask within this time are told of the same failure.
const COOL_DOWN: Duration = Duration::from_millis(50);
/// How long a node that failed is asked only when there is no other. Followers go on naming a leader that was killed for about
/// an election timeout; connecting to it again each time would cost a whole attempt.
const SUSPICION: Duration = Duration::from_secs(1);
/// The first try to reach a node again that failed has so much time, each later one twice as much as the one before: packets to a
/// node that is down are lost without a word, and are sent again later than a node needs to come back.
const FIRST_TRY: Duration = Duration::from_millis(50);
/// Between two such tries.
const BETWEEN_TRIES: Duration = Duration::from_millis(25);
/// How long [`Nodes::close`] waits for the farewells to leave.
const FAREWELL: Duration = Duration::from_millis(200);

pub(super) struct Nodes {
    dialler: Dialler,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
}

/// Makes links.
#[derive(Clone)]
struct Dialler {
    endpoint: ClientEndpoint,
    timeout: Duration,
    silence: Duration,
}

struct Slot {
    node: NodeId,
    address: String,
    /// Until when the node is avoided.
    suspect_until: Mutex<Option<Instant>>,
    /// Whether a task is looking for it.
    is_sought: AtomicBool,
    /// The link, once there was one; it may be closed.
    link: Mutex<Option<Arc<Link>>>,
    /// Held while dialling: everybody else waits for the outcome.
    dialling: tokio::sync::Mutex<Option<Failure>>,
}

struct Failure {
    at: Instant,
    why: String,
}

impl Nodes {
    pub(super) fn new(
        addresses: BTreeMap<NodeId, String>,
        tls: &TlsIdentity,
        dial_timeout: Duration,
        silence: Duration,
    ) -> Result<Self, Error> {
        let limits = Limits { handshake_timeout: dial_timeout, ..Limits::default() };
        let endpoint = ClientEndpoint::new(tls, limits).map_err(|e| Error::Config(e.to_string()))?;
        let slots = addresses.into_iter().map(|(id, address)| (id, Slot::new(id, address))).collect();
        Ok(Nodes { dialler: Dialler { endpoint, timeout: dial_timeout, silence }, slots: Mutex::new(slots) })
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.lock().keys().copied().collect()
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// The node after `last`, round and round, without those that failed just now unless all did. There is always at least one.
    pub(super) fn after(&self, last: Option<NodeId>) -> NodeId {
        let slots = self.lock();
        // Where to begin is anybody's guess: not all clients with the same node.
        let begin = match last {
            Some(last) => slots.range(..=last).count(),
            None => rand::random_range(0..slots.len().max(1)),
        };
        let in_turn = || slots.iter().cycle().skip(begin).take(slots.len());
        let next = in_turn().find(|(_, slot)| !slot.is_suspect()).or_else(|| in_turn().next());
        next.map_or(NodeId(0), |(&id, _)| id)
    }

    /// The node failed: others are asked first for a while. Should it be back earlier, that is noticed: it may be the next leader.
    pub(super) fn suspect(&self, node: NodeId) {
        if let Some(slot) = self.lock().get(&node) {
            *slot.suspect_until() = Some(Instant::now() + SUSPICION);
            if !slot.is_sought.swap(true, Ordering::Relaxed) {
                tokio::spawn(seek(Arc::downgrade(slot), self.dialler.clone()));
            }
        }
    }

    /// Whether the node failed just now.
    pub(super) fn is_suspect(&self, node: NodeId) -> bool {
        self.lock().get(&node).is_some_and(|slot| slot.is_suspect())
    }

    /// Another node was mentioned. What the user configured takes precedence: it may be the only address that works from here.
    pub(super) fn learn(&self, node: NodeId, address: String) {
        self.lock().entry(node).or_insert_with(|| Slot::new(node, address));
    }

    /// The link to a node, made if need be.
    pub(super) async fn link(&self, node: NodeId) -> Result<Arc<Link>, String> {
        let Some(slot) = self.lock().get(&node).cloned() else { return Err("its address is not known".into()) };
        if let Some(link) = slot.open_link() {
            return Ok(link);
        }
        let asked = Instant::now();
        let mut failure = slot.dialling.lock().await;
        // Somebody else may have succeeded, or failed, while this one waited.
        if let Some(link) = slot.open_link() {
            return Ok(link);
        }
        if let Some(last) = &*failure
            && (last.at >= asked || last.at.elapsed() < COOL_DOWN)
        {
            return Err(last.why.clone());
        }
        match self.dialler.dial(&slot, self.dialler.timeout).await {
            Ok(link) => {
                *slot.link() = Some(link.clone());
                *failure = None;
                Ok(link)
            }
            Err(why) => {
                *failure = Some(Failure { at: Instant::now(), why: why.clone() });
                Err(why)
            }
        }
    }

    pub(super) async fn close(&self) {
        self.close_links();
        // Farewells are a courtesy: a node that misses them finds out by itself.
        let _ = tokio::time::timeout(FAREWELL, self.dialler.endpoint.close()).await;
    }

    fn close_links(&self) {
        for slot in self.lock().values() {
            if let Some(link) = slot.link().take() {
                link.close("the client was closed");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The links' tasks keep the links alive; only closing ends them.
impl Drop for Nodes {
    fn drop(&mut self) {
        self.close_links();
    }
}

impl Dialler {
    async fn dial(&self, slot: &Slot, timeout: Duration) -> Result<Arc<Link>, String> {
        let dial = async {
            let connection = self.endpoint.connect(slot.node, &slot.address).await.map_err(|e| e.to_string())?;
            Link::open(connection, self.silence).await
        };
        match tokio::time::timeout(timeout, dial).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("{} does not answer", slot.address)),
        }
    }
}

/// Tries to reach a node as long as it is avoided, and avoids it no longer once that succeeds.
async fn seek(slot: Weak<Slot>, dialler: Dialler) {
    let mut patience = FIRST_TRY;
    while let Some(slot) = slot.upgrade() {
        if !slot.is_suspect() {
            slot.is_sought.store(false, Ordering::Relaxed);
            return;
        }
        // Whoever else dials, or is still connected, will hear of it.
        if let Ok(mut failure) = slot.dialling.try_lock()
            && slot.open_link().is_none()
        {
            if let Ok(link) = dialler.dial(&slot, patience.min(dialler.timeout)).await {
                *slot.link() = Some(link);
                *slot.suspect_until() = None;
                *failure = None;
            }
            patience *= 2;
        }
        drop(slot);
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
}

impl Slot {
    fn new(node: NodeId, address: String) -> Arc<Slot> {
        Arc::new(Slot {
            node,
            address,
            suspect_until: Mutex::new(None),
            is_sought: AtomicBool::new(false),
            link: Mutex::new(None),
            dialling: tokio::sync::Mutex::new(None),
        })
    }

    fn is_suspect(&self) -> bool {
        self.suspect_until().is_some_and(|until| until > Instant::now())
    }

    fn suspect_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.suspect_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_link(&self) -> Option<Arc<Link>> {
        self.link().clone().filter(|link| !link.is_closed())
    }

    fn link(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use raft_net::pki::{CertificateAuthority, Credentials};
    use raft_net::{NetConfig, QuicTransport};
    use tokio::sync::mpsc;

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const NODE: NodeId = NodeId(1);

    fn identity(ca: &CertificateAuthority, credentials: &Credentials) -> TlsIdentity {
        TlsIdentity::from_pem(&ca.credentials().cert_pem, &credentials.cert_pem, &credentials.key_pem).unwrap()
    }

    /// A node that was killed may be the next leader a moment after it is back.
    #[tokio::test]
    async fn a_node_that_failed_is_avoided_until_it_is_back() {
        let ca = CertificateAuthority::generate(DAY).unwrap();
        let client = identity(&ca, &ca.issue_client("test", "client", DAY).unwrap());
        let server = identity(&ca, &ca.issue_node("test", NODE, DAY).unwrap());
        // The port is free when nobody listens, and known beforehand.
        let address = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let nodes = Nodes::new([(NODE, address.to_string())].into(), &client, Duration::from_secs(5), DAY).unwrap();
        assert!(!nodes.is_suspect(NODE));
        nodes.suspect(NODE);
        tokio::time::sleep(2 * FIRST_TRY).await;
        assert!(nodes.is_suspect(NODE), "nobody is there");
        let slot = nodes.lock().get(&NODE).cloned().unwrap();
        // However long this program is kept from running: it is avoided until it is reached, not until some time has passed.
        *slot.suspect_until() = Some(Instant::now() + DAY);
        let (inbound, _messages) = mpsc::channel(1);
        let (clients, _connections) = mpsc::channel(1);
        let transport = QuicTransport::bind(NetConfig::new(NODE, "test", address, server), inbound, clients).unwrap();
        while nodes.is_suspect(NODE) {
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        assert!(slot.open_link().is_some(), "whoever asks next need not dial");
        drop(transport);
    }
}
