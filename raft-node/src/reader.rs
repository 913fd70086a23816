//! The reader: one thread that reads entries which are no longer in memory, of all groups, for followers that lag and for restarts.

use std::sync::mpsc::{Sender, channel};
use std::thread::{Builder, JoinHandle};

use raft_core::{Fetch, Input};
use raft_storage::StorageReader;

use crate::inbox::{Fatal, Inbox, Internal, Life, News};

/// What is to be read, and for whom.
pub(crate) type Question = (Life, Fetch);

/// Starts the reader. It ends when the sender is dropped, or when an entry turns out to be damaged: then the node stops.
pub(crate) fn spawn<R: StorageReader>(storage: R, inbox: Inbox) -> std::io::Result<(Sender<Question>, JoinHandle<()>)> {
    let (sender, queue) = channel::<Question>();
    let thread = Builder::new().name("raft-reader".into()).spawn(move || {
        while let Ok((life, Fetch { id, first, last, max_bytes })) = queue.recv() {
            match storage.entries(life.group, first, last, max_bytes) {
                Ok(entries) => inbox.send(News::Group(life, Internal::Core(Input::Fetched { id, entries }))),
                Err(error) => return inbox.send(News::Fatal(Fatal::Storage(error))),
            }
        }
    })?;
    Ok((sender, thread))
}
