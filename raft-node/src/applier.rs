//! The applier owns the state machine, applies what is committed, and answers those who wait: on a thread of its own, or, when
//! nothing is queued there and the machine says that the work is prompt, right on the loop's.
//!
//! Jobs are done in the order in which they were submitted. There is one submitter, and it works itself only when every earlier job is done.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};

use bytes::BytesMut;
use raft_core::driver::{self, Settled, Waiting, settle};
use raft_core::{Entries, Input, LogIndex};

use crate::event_loop::{Fatal, Inbox, Internal};
use crate::handle::ReadRequest;
use crate::reply::{Flusher, Outcome, RequestError, Responder};
use crate::state_machine::{Replies, StateMachine, Work};

/// Most entries of a job that is done on the loop's thread. Larger ones are worth a thread of their own.
const MAX_INLINE_ENTRIES: usize = 128;
/// Most bytes of entries of such a job.
const MAX_INLINE_BYTES: usize = 128 << 10;
/// Most queries of such a job: each may have to look at the disk.
const MAX_INLINE_QUERIES: usize = 16;

/// The core is woken to hear about progress only after so many bytes, or half of those at which it would hand out no more: it looks at
/// [`Progress`] whenever it is awake anyway, and hearing later costs it nothing but memory.
const WAKE_AFTER_BYTES: usize = 1 << 20;

/// Work for the state machine.
pub(crate) type Job = driver::Job<Responder, ReadRequest>;

/// Index up to which the state machine has applied, for the loop to look at.
pub(crate) type Progress = Arc<AtomicU64>;

pub(crate) fn spawn<S: StateMachine>(
    machine: S,
    max_unapplied_bytes: usize,
    progress: Progress,
    inbox: Inbox,
) -> std::io::Result<(Box<dyn Submit>, JoinHandle<()>)> {
    let (queue, jobs) = channel();
    let applier = Arc::new(Mutex::new(Applier {
        machine,
        progress,
        inbox,
        replies: Replies::default(),
        flusher: Flusher::default(),
        answer: BytesMut::new(),
        quiet_bytes: 0,
        wake_after_bytes: WAKE_AFTER_BYTES.min(max_unapplied_bytes / 2),
    }));
    let pending = Arc::new(AtomicUsize::new(0));
    let submitter = Submitter { applier: applier.clone(), queue, pending: pending.clone() };
    let thread = Builder::new().name("raft-applier".into()).spawn(move || run(&applier, &jobs, &pending))?;
    Ok((Box::new(submitter), thread))
}

/// Where the loop hands over its jobs.
pub(crate) trait Submit: Send {
    /// Does the job, or queues it. `false` when the applier is gone.
    fn submit(&mut self, job: Job) -> bool;
}

struct Submitter<S> {
    applier: Arc<Mutex<Applier<S>>>,
    queue: Sender<Job>,
    /// Jobs that are queued or being done on the thread.
    pending: Arc<AtomicUsize>,
}

impl<S: StateMachine> Submit for Submitter<S> {
    fn submit(&mut self, job: Job) -> bool {
        if self.pending.load(Ordering::Acquire) == 0
            && let Ok(mut applier) = self.applier.try_lock()
            && applier.is_prompt(&job)
        {
            let done = applier.work(job);
            applier.flusher.flush();
            return done.is_ok();
        }
        self.pending.fetch_add(1, Ordering::AcqRel);
        self.queue.send(job).is_ok()
    }
}

/// The thread: ends when the submitter is gone and everything queued is done, or when the state machine fails.
fn run<S: StateMachine>(applier: &Mutex<Applier<S>>, jobs: &Receiver<Job>, pending: &AtomicUsize) {
    while let Ok(first) = jobs.recv() {
        // After a panic of the state machine nobody looks at its state again: the node stops.
        let Ok(mut applier) = applier.lock() else { return };
        // Answers leave when the queue is empty, or after a few jobs: together they cost one wake-up.
        let mut batch = std::iter::once(first).chain(jobs.try_iter().take(64));
        let done = batch.try_for_each(|job| {
            applier.work(job)?;
            pending.fetch_sub(1, Ordering::AcqRel);
            Ok(())
        });
        applier.flusher.flush();
        if let Err(Failed) = done {
            return;
        }
    }
}

/// The state machine failed, and the loop has been told.
struct Failed;

struct Applier<S> {
    machine: S,
    progress: Progress,
    inbox: Inbox,
    replies: Replies,
    flusher: Flusher,
    answer: BytesMut,
    /// Bytes applied since the core was last woken for it.
    quiet_bytes: usize,
    wake_after_bytes: usize,
}

impl<S: StateMachine> Applier<S> {
    fn is_prompt(&self, job: &Job) -> bool {
        match job {
            Job::Apply { entries, .. } => {
                entries.len() <= MAX_INLINE_ENTRIES
                    && entries.byte_len() <= MAX_INLINE_BYTES
                    && self.machine.is_prompt(Work::Apply(entries))
            }
            Job::Query(reads) => {
                reads.len() <= MAX_INLINE_QUERIES
                    && reads.iter().all(|read| self.machine.is_prompt(Work::Query(&read.query)))
            }
            Job::Restore(_) => false,
        }
    }

    fn work(&mut self, job: Job) -> Result<(), Failed> {
        let done = match job {
            Job::Apply { entries, waiting } => self.apply(&entries, waiting),
            Job::Query(reads) => self.query(reads),
            Job::Restore(restore) => {
                // The transport delivers no snapshots, so there is none to take over.
                tracing::error!(last = %restore.meta.last, "a snapshot that never came is to be taken over");
                Ok(())
            }
        };
        done.map_err(|error| {
            self.inbox.send(Internal::Fatal(Fatal::StateMachine(Box::new(error))));
            Failed
        })
    }

    fn apply(&mut self, entries: &Entries, waiting: VecDeque<Waiting<Responder>>) -> Result<(), S::Error> {
        let Some(last) = entries.last_index() else { return Ok(()) };
        self.replies.reset(!waiting.is_empty());
        self.machine.apply(entries, &mut self.replies)?;
        self.answer_waiting(entries, waiting);
        self.progress.store(last.0, Ordering::Release);
        self.quiet_bytes += entries.byte_len();
        if self.quiet_bytes >= self.wake_after_bytes {
            self.quiet_bytes = 0;
            self.inbox.send(Internal::Core(Input::Applied(last)));
        }
        Ok(())
    }

    fn answer_waiting(&mut self, entries: &Entries, waiting: VecDeque<Waiting<Responder>>) {
        let Applier { replies, flusher, .. } = self;
        settle(entries, waiting, |responder, settled| {
            let outcome = match settled {
                Settled::Replaced => Outcome::Failed(RequestError::NotLeader { hint: None }),
                Settled::Applied { id, command } => match replies.get(command) {
                    Some(reply) => Outcome::Applied { term: id.term, index: id.index, reply },
                    None => Outcome::Failed(RequestError::OutcomeUnknown),
                },
            };
            flusher.add(responder.reply(outcome));
        });
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
