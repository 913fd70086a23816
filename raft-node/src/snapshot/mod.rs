//! Snapshots at a node: when they are made, where they are kept, how they are sent and taken over.
//!
//! The state that a crash leaves *is* the snapshot, as far as the log is concerned: a machine with a disk of its own is only told to make its state
//! durable, and the log is compacted up to there. A machine without one gets a file now and then, from which it starts again. Files are also
//! what is sent to a follower that needs what the log no longer has; they are made when the first one is needed.

pub(crate) mod directory;
pub(crate) mod file;
mod holds;
pub(crate) mod incoming;
pub(crate) mod keeper;
pub(crate) mod manager;
pub(crate) mod policy;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use file::SnapshotFileError;
pub use policy::SnapshotPolicy;
use raft_core::NodeId;
use raft_net::snapshot::SnapshotProgress;

/// Why there is no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The state machine cannot be cut, or there is no directory to keep snapshots in.
    #[error("this node makes no snapshots")]
    Unsupported,
    /// It could not be made. The node goes on; it is tried again later.
    #[error("the snapshot could not be made: {0}")]
    Failed(String),
    /// The node is stopping, or has stopped.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// What a node has done with snapshots since it was started, and what it is doing.
#[derive(Debug, Default)]
pub struct SnapshotMetrics {
    made: AtomicU64,
    sent: AtomicU64,
    failed: AtomicU64,
    received: AtomicU64,
    restored: AtomicU64,
    compactions: AtomicU64,
    newest: AtomicU64,
    outgoing: Mutex<BTreeMap<NodeId, Arc<SnapshotProgress>>>,
    incoming: Mutex<BTreeMap<NodeId, Arc<SnapshotProgress>>>,
}

/// The values of [`SnapshotMetrics`] at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotStats {
    /// Files that were made.
    pub made: u64,
    /// Transfers to others that were completed, and that broke off.
    pub sent: u64,
    /// Transfers to others that broke off; each is tried again.
    pub failed: u64,
    /// Snapshots that have arrived.
    pub received: u64,
    /// Snapshots of others that the state machine has taken over.
    pub restored: u64,
    /// How often the log was compacted.
    pub compactions: u64,
    /// Last index in the newest file; zero if there is none.
    pub newest: u64,
    /// To whom one is being sent: bytes sent, and bytes in all.
    pub outgoing: BTreeMap<NodeId, (u64, u64)>,
    /// From whom one is being received: bytes received, and bytes in all.
    pub incoming: BTreeMap<NodeId, (u64, u64)>,
}

impl SnapshotMetrics {
    /// The values at present.
    pub fn snapshot(&self) -> SnapshotStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let under_way = |transfers: &Mutex<BTreeMap<NodeId, Arc<SnapshotProgress>>>| {
            lock(transfers).iter().map(|(&id, progress)| (id, progress.get())).collect()
        };
        SnapshotStats {
            made: get(&self.made),
            sent: get(&self.sent),
            failed: get(&self.failed),
            received: get(&self.received),
            restored: get(&self.restored),
            compactions: get(&self.compactions),
            newest: get(&self.newest),
            outgoing: under_way(&self.outgoing),
            incoming: under_way(&self.incoming),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// No code that holds a lock panics half-way through a change, so a poisoned lock guards a sound value.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
