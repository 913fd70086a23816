//! The applier owns a group's state machine, applies what is committed, and answers those who wait. [`pool`](crate::pool) is where it does so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use bytes::BytesMut;
use raft_core::driver::{self, Settled, Waiting, settle};
use raft_core::{Entries, EntryKind, Input, LogId, LogIndex, Membership, Restore, SnapshotMeta};

use crate::farewell::{Farewell, Presence};
use crate::handle::ReadRequest;
use crate::inbox::{Fatal, Internal};
use crate::reply::{Flusher, Outcome, RequestError, Responder};
use crate::snapshot::SnapshotError;
use crate::snapshot::file::FileReader;
use crate::snapshot::keeper::{Make, Order, Shelf};
use crate::snapshot::manager::Task;
use crate::state_machine::{Replies, StateMachine, Work};
use crate::timings::Marker;

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

/// What an applier starts with.
pub(crate) struct Start<S> {
    pub(crate) machine: S,
    /// The last entry that the machine contains, and who belonged to the cluster as of then.
    pub(crate) state: SnapshotMeta,
    pub(crate) max_unapplied_bytes: usize,
    /// Where snapshots of others are found, and our own go.
    pub(crate) shelf: Shelf,
    /// To whoever writes our own.
    pub(crate) keeper: Sender<Order>,
    pub(crate) progress: Progress,
    pub(crate) marker: Marker,
}

/// The state machine failed, and the loop has been told.
#[derive(Debug)]
pub(crate) struct Failed;

/// Why.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A group's state machine, and those who wait for it.
pub(crate) struct Applier<S> {
    machine: S,
    /// Why it is not asked anything more.
    failure: Option<Arc<Fatal>>,
    /// The last entry that the machine contains, and who belongs to the cluster as of then.
    applied: LogId,
    membership: Membership,
    shelf: Shelf,
    keeper: Sender<Order>,
    /// What was applied when the machine was told to make it durable.
    persisting: Option<LogIndex>,
    /// Someone waits for a cut.
    cutting: bool,
    progress: Progress,
    marker: Marker,
    replies: Replies,
    flusher: Flusher,
    answer: BytesMut,
    /// Bytes applied since the core was last woken for it.
    quiet_bytes: usize,
    wake_after_bytes: usize,
    /// The snapshot that was ordered last.
    order: Option<Order>,
    /// Goes last: nothing of the group is in memory then.
    presence: Presence,
}

impl<S: StateMachine> Applier<S> {
    pub(crate) fn new(start: Start<S>) -> Self {
        let Start { machine, state, max_unapplied_bytes, shelf, keeper, progress, marker } = start;
        Applier {
            machine,
            failure: None,
            applied: state.last,
            membership: state.membership,
            shelf,
            keeper,
            persisting: None,
            cutting: false,
            progress,
            marker,
            replies: Replies::default(),
            flusher: Flusher::default(),
            answer: BytesMut::new(),
            quiet_bytes: 0,
            wake_after_bytes: WAKE_AFTER_BYTES.min(max_unapplied_bytes / 2),
            order: None,
            presence: Presence::default(),
        }
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// Sends the answers.
    pub(crate) fn flush(&mut self) {
        self.flusher.flush();
        if let Some((timings, mark)) = &self.marker {
            mark.answered(timings);
        }
    }

    pub(crate) fn is_prompt(&self, job: &Job) -> bool {
        let is_prompt = |work: Work<'_>| self.machine.is_prompt(work);
        is_small(job)
            && match job {
                Job::Apply { entries, .. } => is_prompt(Work::Apply(entries)),
                Job::Query(reads) => reads.iter().all(|read| is_prompt(Work::Query(&read.query))),
                Job::Restore(_) => false,
            }
    }

    pub(crate) fn work(&mut self, job: Job) -> Result<(), Failed> {
        let done = match job {
            Job::Apply { entries, waiting } => self.apply(&entries, waiting).map_err(Cause::from),
            Job::Query(reads) => self.query(reads).map_err(Cause::from),
            Job::Restore(restore) => self.restore(&restore),
        };
        done.map_err(|cause| self.fail(cause))
    }

    pub(crate) fn fail(&mut self, cause: Cause) -> Failed {
        let why = Arc::new(Fatal::StateMachine(cause));
        self.failure = Some(why.clone());
        self.shelf.inbox.send(Internal::Failed(why));
        Failed
    }

    /// The group ends: nothing more comes for it. Its farewell is said when a file that is being written is finished, and the machine dropped.
    pub(crate) fn leave(&mut self, mut farewell: Farewell) {
        self.order.take().inspect(Order::call_off);
        if let (Ok(()), Some(why)) = (&farewell.result, &self.failure) {
            // The loop had done with the group, or has ended itself.
            tracing::error!(group = %farewell.group, error = %why, "failed while stopping");
            farewell.result = Err(why.clone());
        }
        self.presence.leave(farewell);
    }

    pub(crate) fn begin(&mut self, task: Task) -> Result<(), Failed> {
        self.cutting |= task == Task::Cut;
        // A cut on demand is to be followed by a compaction, too.
        if self.machine.durable().is_some() {
            self.machine.persist().map_err(|error| self.fail(error.into()))?;
            self.persisting = Some(self.applied.index);
        }
        Ok(())
    }

    /// Looks after what was begun. Whether there is more to look after.
    pub(crate) fn attend(&mut self) -> Result<bool, Failed> {
        if self.cutting && self.machine.can_cut().map_err(|error| self.fail(error.into()))? {
            self.cutting = false;
            self.cut().map_err(|error| self.fail(error.into()))?;
        }
        if let Some(goal) = self.persisting {
            match self.machine.durable() {
                Some(durable) if durable >= goal => {
                    self.persisting = None;
                    self.shelf.inbox.send(Internal::Durable(durable));
                }
                // A flush may have been under way that did not contain all of it.
                Some(_) => self.machine.persist().map_err(|error| self.fail(error.into()))?,
                None => self.persisting = None,
            }
        }
        Ok(self.cutting || self.persisting.is_some())
    }

    fn cut(&mut self) -> Result<(), S::Error> {
        let meta = SnapshotMeta { last: self.applied, membership: self.membership.clone() };
        // A server that joined later may not have applied yet who belongs to the cluster: such a snapshot would be of use to nobody.
        let whole = meta.last.index > LogIndex::ZERO && !meta.membership.voters().is_empty();
        let cut = self.machine.cut()?.filter(|_| whole);
        let (to, presence) = (self.shelf.clone(), self.presence.clone());
        self.order = cut.map(|cut| Order::new(Make { cut, meta, to, presence }));
        // The keeper ends after us.
        let taken = self.order.as_ref().is_some_and(|order| self.keeper.send(order.clone()).is_ok());
        if !taken {
            self.shelf.inbox.send(Internal::SnapshotMade(Err(SnapshotError::Unsupported)));
        }
        Ok(())
    }

    fn restore(&mut self, restore: &Restore) -> Result<(), Cause> {
        let Restore { id, meta } = restore;
        let path = self.shelf.directory.as_ref().and_then(|directory| directory.find(*id));
        let path = path.ok_or("a snapshot that was received is gone")?;
        let begin = std::time::Instant::now();
        let mut file = FileReader::open(&path)?;
        self.machine.restore(meta, &mut file)?;
        (self.applied, self.membership) = (meta.last, meta.membership.clone());
        self.persisting = None;
        // The loop hears of it by a message of its own, and not as entries that were applied.
        let millis = begin.elapsed().as_millis() as u64;
        tracing::info!(last = %meta.last, millis, "the state machine has taken over a snapshot");
        self.shelf.inbox.send(Internal::Restored { id: *id, last: meta.last.index });
        Ok(())
    }

    fn apply(&mut self, entries: &Entries, waiting: VecDeque<Waiting<Responder>>) -> Result<(), S::Error> {
        let (Some(last), Some(term)) = (entries.last_index(), entries.last_term()) else { return Ok(()) };
        self.replies.reset(!waiting.is_empty());
        self.machine.apply(entries, &mut self.replies)?;
        if let Some((timings, mark)) = &self.marker {
            mark.applied(timings, last);
        }
        self.answer_waiting(entries, waiting);
        self.applied = LogId::new(term, last);
        // The core has understood each of them.
        for change in entries.iter().filter(|entry| entry.kind == EntryKind::Membership) {
            self.membership =
                Membership::decode(change.payload).unwrap_or_else(|_| std::mem::take(&mut self.membership));
        }
        self.progress.store(last.0, Ordering::Release);
        self.quiet_bytes += entries.byte_len();
        if self.quiet_bytes >= self.wake_after_bytes {
            self.quiet_bytes = 0;
            self.shelf.inbox.send(Internal::Core(Input::Applied(last)));
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

/// Whether it is about few entries or queries, with few bytes.
pub(crate) fn is_small(job: &Job) -> bool {
    match job {
        Job::Apply { entries, .. } => entries.len() <= MAX_INLINE_ENTRIES && entries.byte_len() <= MAX_INLINE_BYTES,
        Job::Query(reads) => reads.len() <= MAX_INLINE_QUERIES,
        Job::Restore(_) => false,
    }
}

/// The index that the applier has reached.
pub(crate) fn reached(progress: &Progress) -> LogIndex {
    LogIndex(progress.load(Ordering::Acquire))
}
