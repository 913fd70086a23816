//! The writer: one thread that owns the log's storage and makes the writes of all groups durable, everything that is queued with one sync.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use raft_core::{GroupId, Input, NodeId, Write, WriteSeq};
use raft_storage::{RecoveredLog, Storage, StorageError};
use tokio::sync::oneshot;

use crate::inbox::{Fatal, Inbox, Internal, Life, News};
use crate::pace::Pace;
use crate::timings::Timings;

/// What the writer is asked for.
pub(crate) enum Order {
    Write(Life, Write),
    Open(Open),
    /// Nothing of a group is to be left. Answers whether there was anything.
    Delete(GroupId, Sender<Result<bool, StorageError>>),
    /// Which groups are there?
    List(oneshot::Sender<Vec<GroupId>>),
}

/// A group is to be opened: what does its log hold, and with whom did it begin?
pub(crate) struct Open {
    pub(crate) group: GroupId,
    /// The voters with which it begins, if it has not begun yet.
    pub(crate) founders: Vec<NodeId>,
    /// This node is none of them, and belongs to nobody until it is added.
    pub(crate) join: bool,
    pub(crate) found: Sender<Result<Found, StorageError>>,
}

/// What a group's log holds.
pub(crate) struct Found {
    pub(crate) log: RecoveredLog,
    pub(crate) founders: Vec<NodeId>,
}

/// Who wants to know how long a sync takes.
pub(crate) struct Watch {
    pub(crate) timings: Option<Arc<Timings>>,
    pub(crate) pace: Arc<Pace>,
}

/// Starts the writer. It ends when the senders are dropped and everything queued is durable, or when a write fails: then
/// nothing is acknowledged any more, and the node stops. A failed sync is never tried again: the kernel may have marked
/// the pages clean, and a second sync would succeed without having written them.
pub(crate) fn spawn<S: Storage>(
    mut storage: S,
    inbox: Inbox,
    watch: Watch,
) -> std::io::Result<(Sender<Order>, JoinHandle<()>)> {
    let (sender, queue) = channel();
    let thread = Builder::new().name("raft-writer".into()).spawn(move || run(&mut storage, &queue, &inbox, &watch))?;
    Ok((sender, thread))
}

fn run<S: Storage>(storage: &mut S, queue: &Receiver<Order>, inbox: &Inbox, watch: &Watch) {
    let (timings, pace) = (watch.timings.as_deref(), &watch.pace);
    let mut batch: Vec<(GroupId, Write)> = Vec::new();
    let mut last: Vec<(Life, WriteSeq)> = Vec::new();
    while let Ok(first) = queue.recv() {
        let mut question = None;
        // Group commit: whatever has come in since the last sync, for any group, shares the next one.
        for order in std::iter::once(first).chain(queue.try_iter()) {
            match order {
                Order::Write(life, write) => {
                    last.push((life, write.seq));
                    batch.push((life.group, write));
                }
                other => {
                    question = Some(other);
                    break;
                }
            }
        }
        if !batch.is_empty() {
            let bytes = batch.iter().map(|(_, write)| write.entries.byte_len()).sum();
            let since = Instant::now();
            let begun = timings.map(Timings::begun);
            pace.syncs();
            if let Err(error) = storage.write(&batch) {
                inbox.send(News::Fatal(Fatal::Storage(error)));
                return;
            }
            batch.clear();
            pace.synced(since.elapsed(), bytes);
            timings.zip(begun).inspect(|(timings, begun)| timings.synced(*begun));
            report(&mut last, inbox);
        }
        // Behind the writes that came before: they may be of the same group's former life. Whoever asked may be gone.
        match question {
            Some(Order::Open(Open { group, founders, join, found })) => {
                drop(found.send(look(storage, group, founders, join)));
            }
            Some(Order::Delete(group, done)) => drop(done.send(storage.delete(group))),
            Some(Order::List(list)) => drop(list.send(storage.groups())),
            Some(Order::Write(..)) | None => {}
        }
    }
}

/// Tells each group once how far its log is durable.
fn report(last: &mut Vec<(Life, WriteSeq)>, inbox: &Inbox) {
    last.sort_unstable();
    let mut last = last.drain(..).peekable();
    while let Some((life, seq)) = last.next() {
        if last.peek().is_none_or(|(next, _)| *next != life) {
            inbox.send(News::Group(life, Internal::Core(Input::Persisted(seq))));
        }
    }
}

/// What the log holds, and the voters with which the group began: at the first start they are written down, and from then on what is written down counts.
fn look<S: Storage>(
    storage: &mut S,
    group: GroupId,
    configured: Vec<NodeId>,
    join: bool,
) -> Result<Found, StorageError> {
    let configured = if join { Vec::new() } else { configured };
    let log = storage.recover(group)?;
    let Some(founders) = storage.founders(group)? else {
        storage.pin_founders(group, &configured)?;
        return Ok(Found { log, founders: configured });
    };
    let has_changed = log.membership.is_some() || !log.changes.is_empty();
    if !join && !founders.is_empty() && !has_changed {
        // As long as nothing else is known, others would be a mistake in the configuration.
        storage.pin_founders(group, &configured)?;
    }
    Ok(Found { log, founders })
}

#[cfg(test)]
mod tests {
    use raft_core::{Entries, EntryKind, HardState, LogIndex, Segment, Term};
    use raft_storage::{Identity, MemoryReader, MemoryStorage, Options, RocksStorage};
    use tokio::sync::mpsc::UnboundedReceiver;

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

        fn groups(&self) -> Vec<GroupId> {
            self.storage.groups()
        }
    }

    struct Bench {
        writer: Sender<Order>,
        thread: JoinHandle<()>,
        inbox: UnboundedReceiver<News>,
        asked: Receiver<usize>,
        answer: Sender<bool>,
    }

    fn bench() -> Bench {
        let (asked_sender, asked) = channel();
        let (answer, answer_receiver) = channel();
        let disk = Disk { storage: MemoryStorage::new(), asked: asked_sender, answer: answer_receiver };
        let (sender, inbox) = Inbox::new();
        let (writer, thread) = spawn(disk, sender, Watch { timings: None, pace: Pace::new() }).expect("a thread");
        Bench { writer, thread, inbox, asked, answer }
    }

    fn write(seq: u64) -> Order {
        write_of(GroupId::FIRST, seq)
    }

    fn write_of(group: GroupId, seq: u64) -> Order {
        let entries = Segment::pack(LogIndex(seq), Term(1), EntryKind::Command, &["x"]).map(Entries::from);
        let write = Write {
            seq: WriteSeq(seq),
            hard_state: Some(HardState { current_term: Term(1), voted_for: None }),
            log_start: None,
            truncate_from: None,
            entries: entries.expect("one entry"),
        };
        Order::Write(Life { group, number: 7 }, write)
    }

    /// Which group is told of which write.
    fn persisted(news: Option<&News>) -> (u64, u64) {
        let Some(News::Group(life, Internal::Core(Input::Persisted(seq)))) = news else { panic!("{news:?}") };
        assert_eq!(life.number, 7);
        (life.group.0, seq.0)
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
        assert_eq!(persisted(bench.inbox.blocking_recv().as_ref()), (1, 1));
        assert_eq!(bench.asked.recv(), Ok(2));
        assert!(bench.inbox.try_recv().is_err(), "the disk is at it");
        bench.answer.send(true).expect("it waits");
        assert_eq!(persisted(bench.inbox.blocking_recv().as_ref()), (1, 3));
        drop(bench.writer);
        bench.thread.join().expect("it ends");
    }

    #[test]
    fn groups_share_a_sync_and_each_is_told_once() {
        let mut bench = bench();
        bench.writer.send(write(1)).expect("runs");
        assert_eq!(bench.asked.recv(), Ok(1));
        for (group, seq) in [(9, 1), (1, 2), (9, 2), (5, 1), (1, 3)] {
            bench.writer.send(write_of(GroupId(group), seq)).expect("runs");
        }
        let (found, answer) = channel();
        let open = Open { group: GroupId(9), founders: vec![NodeId(1)], join: false, found };
        bench.writer.send(Order::Open(open)).expect("runs");
        bench.writer.send(write_of(GroupId(9), 3)).expect("runs");
        bench.answer.send(true).expect("it waits");
        assert_eq!(persisted(bench.inbox.blocking_recv().as_ref()), (1, 1));
        assert_eq!(bench.asked.recv(), Ok(5));
        assert!(answer.try_recv().is_err(), "what is being written belongs to what is found");
        bench.answer.send(true).expect("it waits");
        let told: Vec<_> = (0..3).map(|_| persisted(bench.inbox.blocking_recv().as_ref())).collect();
        assert_eq!(told, [(1, 3), (5, 1), (9, 2)]);
        let found = answer.recv().expect("an answer").expect("a log");
        assert_eq!((found.log.last_index, found.founders), (LogIndex(2), vec![NodeId(1)]));
        assert_eq!(bench.asked.recv(), Ok(1));
        bench.answer.send(true).expect("it waits");
        assert_eq!(persisted(bench.inbox.blocking_recv().as_ref()), (9, 3));
        drop(bench.writer);
        bench.thread.join().expect("it ends");
    }

    /// Else it would be elected, or vote, before the cluster knows of it.
    #[test]
    fn whoever_has_joined_is_no_founder_after_a_restart_whatever_its_configuration_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let configured = || vec![NodeId(1), NodeId(2)];
        let founders = |group, join| {
            let mut storage =
                RocksStorage::open(dir.path(), &Identity::new("test", NodeId(3)), &Options::default()).expect("opened");
            look(&mut storage, group, configured(), join).expect("what was written down").founders
        };
        assert_eq!(founders(GroupId(1), true), []);
        assert_eq!(founders(GroupId(1), false), [], "it has heard of nobody yet, and belongs to nobody");
        assert_eq!(founders(GroupId(2), false), configured());
        assert_eq!(founders(GroupId(2), true), configured(), "it was there from the beginning");
    }

    /// A second sync would succeed, without what the first one lost.
    #[test]
    fn after_a_failed_sync_nothing_is_written_or_reported_any_more() {
        let mut bench = bench();
        bench.writer.send(write(1)).expect("runs");
        bench.answer.send(false).expect("it runs");
        // If it asked again, this would be its answer.
        let _ = bench.answer.send(true);
        assert!(matches!(bench.inbox.blocking_recv(), Some(News::Fatal(Fatal::Storage(_)))));
        bench.thread.join().expect("it ends");
        assert!(bench.inbox.blocking_recv().is_none(), "that was its last word");
        assert!(bench.writer.send(write(2)).is_err());
        assert_eq!(bench.asked.iter().count(), 1, "asked once");
    }
}
