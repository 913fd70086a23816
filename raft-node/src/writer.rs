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

#[cfg(test)]
mod tests {
    use raft_core::{Entries, EntryKind, HardState, LogIndex, Segment, Term, WriteSeq};
    use raft_storage::{MemoryReader, MemoryStorage, RecoveredLog, StorageError};
    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    /// A disk that says when it is asked to write, and does so when it is told to: with or without success.
    struct Disk {
        storage: MemoryStorage,
        asked: Sender<usize>,
        answer: Receiver<bool>,
    }

    impl Storage for Disk {
        type Reader = MemoryReader;

        fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
            self.storage.recover(group)
        }

        fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
            self.asked.send(batch.len()).expect("the test listens");
            if self.answer.recv() == Ok(true) {
                return self.storage.write(batch);
            }
            Err(StorageError::engine("sync", "a failure was asked for"))
        }

        fn reader(&self) -> MemoryReader {
            self.storage.reader()
        }
    }

    struct Bench {
        writer: Sender<Write>,
        thread: JoinHandle<()>,
        inbox: UnboundedReceiver<Internal>,
        asked: Receiver<usize>,
        answer: Sender<bool>,
    }

    fn bench() -> Bench {
        let (asked_sender, asked) = channel();
        let (answer, answer_receiver) = channel();
        let disk = Disk { storage: MemoryStorage::new(), asked: asked_sender, answer: answer_receiver };
        let (sender, inbox) = unbounded_channel();
        let (writer, thread) = spawn(disk, GroupId::FIRST, Inbox(sender)).expect("a thread");
        Bench { writer, thread, inbox, asked, answer }
    }

    fn write(seq: u64) -> Write {
        let entries = Segment::pack(LogIndex(seq), Term(1), EntryKind::Command, &["x"]).map(Entries::from);
        Write {
            seq: WriteSeq(seq),
            hard_state: Some(HardState { current_term: Term(1), voted_for: None }),
            log_start: None,
            truncate_from: None,
            entries: entries.expect("one entry"),
        }
    }

    #[test]
    fn nothing_is_reported_before_the_disk_has_it_and_what_waits_shares_a_sync() {
        let mut bench = bench();
        bench.writer.send(write(1)).expect("runs");
        assert_eq!(bench.asked.recv(), Ok(1));
        bench.writer.send(write(2)).expect("runs");
        bench.writer.send(write(3)).expect("runs");
        assert!(bench.inbox.try_recv().is_err(), "the disk is at it");
        bench.answer.send(true).expect("it waits");
        assert!(matches!(bench.inbox.blocking_recv(), Some(Internal::Core(Input::Persisted(WriteSeq(1))))));
        assert_eq!(bench.asked.recv(), Ok(2));
        assert!(bench.inbox.try_recv().is_err(), "the disk is at it");
        bench.answer.send(true).expect("it waits");
        assert!(matches!(bench.inbox.blocking_recv(), Some(Internal::Core(Input::Persisted(WriteSeq(3))))));
        drop(bench.writer);
        bench.thread.join().expect("it ends");
    }

    /// A second sync would succeed, without what the first one lost.
    #[test]
    fn after_a_failed_sync_nothing_is_written_or_reported_any_more() {
        let mut bench = bench();
        bench.writer.send(write(1)).expect("runs");
        bench.answer.send(false).expect("it runs");
        // If it asked again, this would be its answer.
        let _ = bench.answer.send(true);
        assert!(matches!(bench.inbox.blocking_recv(), Some(Internal::Fatal(Fatal::Storage(_)))));
        bench.thread.join().expect("it ends");
        assert!(bench.inbox.blocking_recv().is_none(), "that was its last word");
        assert!(bench.writer.send(write(2)).is_err());
        assert_eq!(bench.asked.iter().count(), 1, "asked once");
    }
}
