//! The writer: one thread that makes writes durable, everything that is queued with one sync.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use raft_core::{GroupId, Input, Write};
use raft_storage::Storage;

use crate::event_loop::{Fatal, Inbox, Internal};

/// Starts the writer. It ends when the sender is dropped and everything queued is durable, or when a write fails: then
/// nothing is acknowledged any more, and the node stops. A failed sync is never tried again: the kernel may have marked
/// the pages clean, and a second sync would succeed without having written them.
pub(crate) fn spawn<S: Storage>(
    mut storage: S,
    group: GroupId,
    inbox: Inbox,
) -> std::io::Result<(Sender<Write>, JoinHandle<()>)> {
    let (sender, queue) = channel();
    let thread = Builder::new().name("raft-writer".into()).spawn(move || run(&mut storage, group, &queue, &inbox))?;
    Ok((sender, thread))
}

fn run<S: Storage>(storage: &mut S, group: GroupId, queue: &Receiver<Write>, inbox: &Inbox) {
    let mut batch: Vec<(GroupId, Write)> = Vec::new();
    while let Ok(write) = queue.recv() {
        batch.push((group, write));
        // Group commit: whatever has come in since the last sync shares the next one.
        batch.extend(queue.try_iter().map(|write| (group, write)));
        if let Err(error) = storage.write(&batch) {
            inbox.send(Internal::Fatal(Fatal::Storage(error)));
            return;
        }
        if let Some((_, last)) = batch.last() {
            inbox.send(Internal::Core(Input::Persisted(last.seq)));
        }
        batch.clear();
    }
}
