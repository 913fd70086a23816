//! Writes snapshots to files, on a thread of its own, while the state machines go on.

use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use raft_core::SnapshotMeta;

use super::directory::Directory;
use super::{SnapshotError, SnapshotMetrics, count, lock};
use crate::farewell::Presence;
use crate::inbox::{GroupInbox, Internal};
use crate::state_machine::Cut;

/// What the keeper is asked for: a file, unless that is called off before it has begun with it.
#[derive(Clone)]
pub(crate) struct Order(Arc<Mutex<Option<Make>>>);

/// A view of the state, what it is, and where it is to go.
pub(crate) struct Make {
    pub(crate) cut: Box<dyn Cut>,
    pub(crate) meta: SnapshotMeta,
    pub(crate) to: Shelf,
    /// The group has not come to its end while a file of it is being written.
    pub(crate) presence: Presence,
}

impl Order {
    pub(crate) fn new(make: Make) -> Self {
        Order(Arc::new(Mutex::new(Some(make))))
    }

    /// The group ends. What is not begun will not be: there may be a large file of another group before it.
    pub(crate) fn call_off(&self) {
        drop(self.take());
    }

    fn take(&self) -> Option<Make> {
        lock(&self.0).take()
    }
}

/// Where a group's snapshots go, and who is to hear of it.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub(crate) directory: Option<Arc<Directory>>,
    pub(crate) inbox: GroupInbox,
    pub(crate) metrics: Arc<SnapshotMetrics>,
}

/// Starts the thread. It ends when the senders are dropped and what was ordered is done.
pub(crate) fn spawn() -> std::io::Result<(Sender<Order>, JoinHandle<()>)> {
    let (sender, orders) = channel::<Order>();
    let thread = Builder::new().name("raft-snapshots".into()).spawn(move || {
        crate::background::yield_to_others();
        for make in orders.into_iter().filter_map(|order| order.take()) {
            let presence = make.presence.clone();
            make.carry_out();
            drop(presence);
        }
    })?;
    Ok((sender, thread))
}

impl Make {
    fn carry_out(self) {
        let Make { cut, meta, to: Shelf { directory, inbox, metrics }, .. } = self;
        let Some(directory) = directory else {
            return inbox.send(Internal::SnapshotMade(Err(SnapshotError::Unsupported)));
        };
        let (last, begin) = (meta.last, std::time::Instant::now());
        let made = directory.make(meta, |file| cut.write_to(file)).map_err(|error| {
            tracing::warn!(%error, "no snapshot");
            SnapshotError::Failed(error.to_string())
        });
        if let Ok(stored) = &made {
            count(&metrics.made);
            let millis = begin.elapsed().as_millis() as u64;
            tracing::info!(group = %directory.group(), %last, bytes = stored.size, millis, pace = directory.pace().rate(), "snapshot made");
        }
        inbox.send(Internal::SnapshotMade(made));
    }
}
