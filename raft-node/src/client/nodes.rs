//! The nodes that a client knows, and its link to each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
/// How long [`Nodes::close`] waits for the farewells to leave.
const FAREWELL: Duration = Duration::from_millis(200);

pub(super) struct Nodes {
    endpoint: ClientEndpoint,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
    dial_timeout: Duration,
    silence: Duration,
}

struct Slot {
    address: String,
    /// Until when the node is avoided.
    suspect_until: Mutex<Option<Instant>>,
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
        let slots = addresses.into_iter().map(|(id, address)| (id, Slot::new(address))).collect();
        Ok(Nodes { endpoint, slots: Mutex::new(slots), dial_timeout, silence })
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

    /// The node failed: others are asked first for a while.
    pub(super) fn suspect(&self, node: NodeId) {
        if let Some(slot) = self.lock().get(&node) {
            *slot.suspect_until() = Some(Instant::now() + SUSPICION);
        }
    }

    /// Whether the node failed just now.
    pub(super) fn is_suspect(&self, node: NodeId) -> bool {
        self.lock().get(&node).is_some_and(|slot| slot.is_suspect())
    }

    /// Another node was mentioned. What the user configured takes precedence: it may be the only address that works from here.
    pub(super) fn learn(&self, node: NodeId, address: String) {
        self.lock().entry(node).or_insert_with(|| Slot::new(address));
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
        match self.dial(node, &slot.address).await {
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

    async fn dial(&self, node: NodeId, address: &str) -> Result<Arc<Link>, String> {
        let dial = async {
            let connection = self.endpoint.connect(node, address).await.map_err(|e| e.to_string())?;
            Link::open(connection, self.silence).await
        };
        match tokio::time::timeout(self.dial_timeout, dial).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("{address} does not answer")),
        }
    }

    pub(super) async fn close(&self) {
        self.close_links();
        // Farewells are a courtesy: a node that misses them finds out by itself.
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.close()).await;
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

impl Slot {
    fn new(address: String) -> Arc<Slot> {
        Arc::new(Slot {
            address,
            suspect_until: Mutex::new(None),
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
