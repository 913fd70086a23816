//! The reader: one thread that reads entries which are no longer in memory, for followers that lag and for restarts.

use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use raft_core::{Fetch, GroupId, Input};
use raft_storage::StorageReader;

use crate::event_loop::{Fatal, Inbox, Internal};

/// Starts the reader. It ends when the sender is dropped, or when an entry turns out to be damaged: then the node stops.
pub(crate) fn spawn<R: StorageReader>(
    storage: R,
    group: GroupId,
    inbox: Inbox,
) -> std::io::Result<(Sender<Fetch>, JoinHandle<()>)> {
    let (sender, queue) = channel::<Fetch>();
    let thread = Builder::new().name("raft-reader".into()).spawn(move || {
        while let Ok(Fetch { id, first, last, max_bytes }) = queue.recv() {
            match storage.entries(group, first, last, max_bytes) {
                Ok(entries) => inbox.send(Internal::Core(Input::Fetched { id, entries })),
                Err(error) => return inbox.send(Internal::Fatal(Fatal::Storage(error))),
            }
        }
    })?;
    Ok((sender, thread))
}
