//! The applier: one thread that owns the state machine, applies what is committed, and answers those who wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, Input, LogIndex};

use crate::driver::{Job, Waiting};
use crate::event_loop::{Fatal, Inbox, Internal};
use crate::handle::ReadRequest;
use crate::reply::{Flusher, Outcome, RequestError};
use crate::state_machine::{Replies, StateMachine};

/// The core is woken to hear about progress only after so many bytes: it looks at [`Progress`] whenever it is awake anyway,
/// and hearing later costs it nothing but memory. Far below the limit at which it would hand out no more.
const WAKE_AFTER_BYTES: usize = 1 << 20;

/// Index up to which the state machine has applied, for the loop to look at.
pub(crate) type Progress = Arc<AtomicU64>;

pub(crate) fn spawn<S: StateMachine>(
    machine: S,
    progress: Progress,
    inbox: Inbox,
) -> std::io::Result<(Sender<Job>, JoinHandle<()>)> {
    let (sender, queue) = channel();
    let applier = Applier {
        machine,
        progress,
        inbox,
        replies: Replies::default(),
        flusher: Flusher::default(),
        answer: BytesMut::new(),
        quiet_bytes: 0,
    };
    let thread = Builder::new().name("raft-applier".into()).spawn(move || applier.run(&queue))?;
    Ok((sender, thread))
}

struct Applier<S> {
    machine: S,
    progress: Progress,
    inbox: Inbox,
    replies: Replies,
    flusher: Flusher,
    answer: BytesMut,
    /// Bytes applied since the core was last woken for it.
    quiet_bytes: usize,
}

impl<S: StateMachine> Applier<S> {
    fn run(mut self, queue: &Receiver<Job>) {
        while let Ok(job) = queue.recv() {
            // Answers leave when the queue is empty, or after a few jobs: together they cost one wake-up.
            let jobs = std::iter::once(job).chain(queue.try_iter().take(64));
            for job in jobs {
                if let Err(error) = self.work(job) {
                    return self.inbox.send(Internal::Fatal(Fatal::StateMachine(Box::new(error))));
                }
            }
            self.flusher.flush();
        }
    }

    fn work(&mut self, job: Job) -> Result<(), S::Error> {
        match job {
            Job::Apply { entries, waiting } => self.apply(&entries, waiting),
            Job::Query(reads) => self.query(reads),
        }
    }

    fn apply(&mut self, entries: &Entries, waiting: VecDeque<Waiting>) -> Result<(), S::Error> {
        let Some(last) = entries.last_index() else { return Ok(()) };
        self.replies.reset(!waiting.is_empty());
        self.machine.apply(entries, &mut self.replies)?;
        self.answer_waiting(entries, waiting);
        self.progress.store(last.0, Ordering::Release);
        self.quiet_bytes += entries.byte_len();
        if self.quiet_bytes >= WAKE_AFTER_BYTES {
            self.quiet_bytes = 0;
            self.inbox.send(Internal::Core(Input::Applied(last)));
        }
        Ok(())
    }

    fn answer_waiting(&mut self, entries: &Entries, mut waiting: VecDeque<Waiting>) {
        if waiting.is_empty() {
            return;
        }
        let commands = entries.iter().filter(|entry| entry.kind == EntryKind::Command);
        for (n, entry) in commands.enumerate() {
            if waiting.front().is_none_or(|front| front.index != entry.index) {
                continue;
            }
            let Some(Waiting { term, index, responder }) = waiting.pop_front() else { break };
            let outcome = match self.replies.get(n) {
                Some(reply) if term == entry.term => Outcome::Applied { term, index, reply },
                // Another entry took the place: this one is definitely not in the log.
                _ if term != entry.term => Outcome::Failed(RequestError::NotLeader { hint: None }),
                _ => Outcome::Failed(RequestError::OutcomeUnknown),
            };
            self.flusher.add(responder.reply(outcome));
        }
        // Whoever is left waited for an entry that is no command: another took the place.
        for lost in waiting {
            self.flusher.add(lost.responder.reply(Outcome::Failed(RequestError::NotLeader { hint: None })));
        }
    }

    fn query(&mut self, reads: Vec<ReadRequest>) -> Result<(), S::Error> {
        for read in reads {
            self.answer.clear();
            self.machine.query(&read.query, &mut self.answer)?;
            self.flusher.add(read.responder.reply(Outcome::Answered { answer: &self.answer }));
        }
        Ok(())
    }
}

/// The index that the applier has reached.
pub(crate) fn reached(progress: &Progress) -> LogIndex {
    LogIndex(progress.load(Ordering::Acquire))
}
