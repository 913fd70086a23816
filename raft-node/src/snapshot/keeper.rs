//! Writes snapshots to files, on a thread of its own, while the state machine goes on.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use raft_core::SnapshotMeta;

use super::directory::Directory;
use super::{SnapshotError, SnapshotMetrics, count};
use crate::event_loop::{Inbox, Internal};
use crate::state_machine::Cut;

/// A view of the state, and what it is.
pub(crate) struct Order {
    pub(crate) cut: Box<dyn Cut>,
    pub(crate) meta: SnapshotMeta,
}

/// Starts the thread. It ends when the sender is dropped and what was ordered is done.
pub(crate) fn spawn(
    directory: Option<Arc<Directory>>,
    inbox: Inbox,
    metrics: Arc<SnapshotMetrics>,
) -> std::io::Result<(Sender<Order>, JoinHandle<()>)> {
    let (sender, orders) = channel::<Order>();
    let thread = Builder::new().name("raft-snapshots".into()).spawn(move || {
        for Order { cut, meta } in orders {
            let Some(directory) = &directory else {
                inbox.send(Internal::SnapshotMade(Err(SnapshotError::Unsupported)));
                continue;
            };
            let (last, begin) = (meta.last, std::time::Instant::now());
            let made = directory.make(meta, |file| cut.write_to(file)).map_err(|error| {
                tracing::warn!(%error, "no snapshot");
                SnapshotError::Failed(error.to_string())
            });
            if let Ok(stored) = &made {
                count(&metrics.made);
                let millis = begin.elapsed().as_millis() as u64;
                tracing::info!(%last, bytes = stored.size, millis, "snapshot made");
            }
            inbox.send(Internal::SnapshotMade(made));
        }
    })?;
    Ok((sender, thread))
}
