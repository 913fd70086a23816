//! The applier owns a group's state machine, applies what is committed, and answers those who wait. [`pool`](crate::pool) is where it does so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;

use bytes::BytesMut;
use raft_core::driver::{self, Settled, Waiting, settle};
use raft_core::{Entries, EntryKind, Input, LogId, LogIndex, Membership, Restore, SnapshotMeta};

use crate::background::Breather;
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
        let found = self.shelf.directory.as_ref().and_then(|directory| Some((directory.find(*id)?, directory.pace())));
        let (path, pace) = found.ok_or("a snapshot that was received is gone")?;
        let begin = std::time::Instant::now();
        let mut file = FileReader::open(&path)?.in_background(Breather::blind_and_heavy(pace));
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use raft_core::driver::{Driver, Ports};
    use raft_core::{Config, Envelope, Event, Fetch, GroupId, Instant, NodeId, Raft, Recovered, SendSnapshot, Write};

    use super::*;
    use crate::inbox::{Inbox, Life, News};

    /// A machine that keeps nothing.
    struct Nothing;

    impl StateMachine for Nothing {
        type Error = std::convert::Infallible;

        fn applied(&self) -> LogIndex {
            LogIndex::ZERO
        }

        fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
            entries.iter().filter(|entry| entry.kind == EntryKind::Command).for_each(|_| replies.push(b""));
            Ok(())
        }

        fn query(&mut self, _: &[u8], _: &mut BytesMut) -> Result<(), Self::Error> {
            Ok(())
        }
    }

    /// The ports of a server that is alone, with a disk that is quick.
    struct Alone {
        applier: Applier<Nothing>,
        writes: Vec<Write>,
    }

    impl Ports for Alone {
        type Proposer = Responder;
        type Reader = ReadRequest;
        fn send(&mut self, messages: &mut Vec<Envelope>) {
            messages.clear();
        }
        fn write(&mut self, write: Write) {
            self.writes.push(write);
        }
        fn apply(&mut self, job: Job) {
            self.applier.work(job).expect("it cannot fail");
        }
        fn fetch(&mut self, _: Fetch) {}
        fn send_snapshot(&mut self, _: SendSnapshot) {}
        fn event(&mut self, _: &Event) {}
        fn fail_proposal(&mut self, _: Responder, error: RequestError) {
            panic!("{error}");
        }
        fn changed(&mut self, _: Responder, _: LogId) {}
        fn fail_read(&mut self, _: ReadRequest, error: RequestError) {
            panic!("{error}");
        }
    }

    /// Goes on as long as anything comes in: from the disk, or from the applier. Nobody looks at the clock, or at the progress.
    fn until_nothing_comes(
        driver: &mut Driver<Responder, ReadRequest>,
        ports: &mut Alone,
        news: &mut tokio::sync::mpsc::UnboundedReceiver<News>,
        now: Instant,
    ) {
        loop {
            while driver.turn(now, ports) {}
            let mut inputs: Vec<Input> = ports.writes.drain(..).map(|write| Input::Persisted(write.seq)).collect();
            while let Ok(News::Group(_, Internal::Core(input))) = news.try_recv() {
                inputs.push(input);
            }
            if inputs.is_empty() {
                return;
            }
            inputs.into_iter().for_each(|input| driver.step(now, input));
        }
    }

    /// The core hands out no more than a limit before it hears of progress. Whoever waits with that until it is awake for another reason, waits for
    /// a heartbeat; and nobody may be there to send one.
    #[test]
    fn the_core_hears_of_progress_before_it_hands_out_nothing_more_however_little_that_is() {
        const COMMANDS: u64 = 50;
        for max_unapplied_bytes in [1, 40, 100, 1000] {
            let (inbox, mut news) = Inbox::new();
            let shelf = Shelf {
                directory: None,
                inbox: inbox.of(Life { group: GroupId::FIRST, number: 1 }),
                metrics: Arc::default(),
            };
            let progress = Progress::default();
            let state = SnapshotMeta { last: LogId::ZERO, membership: Membership::of_voters([NodeId(1)]) };
            let recovered = Recovered::fresh(state.membership.clone());
            let (keeper, _) = channel();
            let start = Start {
                machine: Nothing,
                state,
                max_unapplied_bytes,
                shelf,
                keeper,
                progress: progress.clone(),
                marker: None,
            };
            let mut ports = Alone { applier: Applier::new(start), writes: Vec::new() };
            let config = Config { max_unapplied_bytes, no_op_on_election: false, ..Config::new(NodeId(1)) };
            let core = Raft::new(config, recovered, Instant(0)).expect("the settings are fine");
            let mut driver = Driver::new(core);
            let now = driver.deadline();
            driver.step(now, Input::Wake);
            until_nothing_comes(&mut driver, &mut ports, &mut news, now);
            assert!(driver.core().is_leader());
            for _ in 0..COMMANDS {
                driver.propose(now, vec![0; 20].into(), Responder::ignore());
            }
            until_nothing_comes(&mut driver, &mut ports, &mut news, now);
            let reached = reached(&progress);
            assert_eq!(reached, LogIndex(COMMANDS), "of {COMMANDS} commands, with a limit of {max_unapplied_bytes}");
        }
    }
}
