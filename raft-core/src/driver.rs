//! The order of events around the core: which input goes in when, where each output goes, and who waits for what.
//!
//! [`Raft`] says what must be done; a [`Driver`] also keeps those who wait (for a command to be applied, for a read to be confirmed) until
//! their answer is known or it is certain that there will be none. It is as pure as the core: it has no thread, no clock and no queue of
//! its own. Whoever owns it feeds it what has come in, calls [`Driver::turn`], and carries things through its [`Ports`]. So the same code
//! orders events in a node, where ports are threads and sockets, and in the simulator (`sim`), where they are events in virtual time.
//!
//! ```
//! use raft_core::driver::{Driver, Job, Ports, RequestError, settle};
//! use raft_core::*;
//!
//! /// A disk that is done at once, and a state machine that only says what it was told. Who waits is known by a number.
//! #[derive(Default)]
//! struct Everything { written: Vec<WriteSeq>, said: Vec<String> }
//!
//! impl Ports for Everything {
//!     type Proposer = u32;
//!     type Reader = u32;
//!     fn send(&mut self, messages: &mut Vec<Envelope>) { messages.clear() }
//!     fn write(&mut self, write: Write) { self.written.push(write.seq) }
//!     fn fetch(&mut self, _: Fetch) {}
//!     fn send_snapshot(&mut self, _: SendSnapshot) {}
//!     fn event(&mut self, _: &Event) {}
//!     fn apply(&mut self, job: Job<u32, u32>) {
//!         match job {
//!             Job::Apply { entries, waiting } => {
//!                 settle(&entries, waiting, |who, what| self.said.push(format!("{who}: {what:?}")));
//!             }
//!             Job::Query(readers) => self.said.push(format!("{readers:?} may read")),
//!             Job::Restore(_) => unreachable!("there is no other server"),
//!         }
//!     }
//!     fn fail_proposal(&mut self, who: u32, error: RequestError) { self.said.push(format!("{who}: {error}")) }
//!     fn changed(&mut self, who: u32, entry: LogId) { self.said.push(format!("{who}: changed by {entry}")) }
//!     fn fail_read(&mut self, who: u32, error: RequestError) { self.said.push(format!("{who}: {error}")) }
//! }
//!
//! let recovered = Recovered::fresh(Membership::of_voters([NodeId(1)]));
//! let core = Raft::new(Config::new(NodeId(1)), recovered, Instant(0)).unwrap();
//! let mut driver = Driver::new(core);
//! let mut ports = Everything::default();
//! driver.propose(Instant(0), b"too early".to_vec().into(), 7);
//! for turn in 0..8 {
//!     let now = driver.deadline().max(Instant(turn));
//!     if driver.core().is_leader() && turn == 4 {
//!         driver.propose(now, b"command".to_vec().into(), 8);
//!         driver.read(9);
//!     }
//!     driver.step(now, Input::Wake);
//!     driver.turn(now, &mut ports);
//!     ports.written.drain(..).for_each(|seq| driver.step(now, Input::Persisted(seq)));
//! }
//! assert_eq!(ports.said[0], "7: not the leader");
//! assert!(ports.said[1..].iter().any(|line| line.starts_with("8: Applied")));
//! assert!(ports.said[1..].iter().any(|line| line == "[9] may read"));
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::change::{ChangeError, MembershipChange};
use crate::entries::{Entries, EntryKind};
use crate::io::{
    Event, Fetch, Input, Output, ProposeError, Proposed, ReadError, ReadId, ReadOutcome, Restore, SendSnapshot,
    TransferError, Write,
};
use crate::message::Envelope;
use crate::raft::Raft;
use crate::types::{Instant, LogId, LogIndex, NodeId, Term};

/// Most bytes of commands that are proposed to the core as one batch (and so become one record on disk).
const MAX_BATCH_BYTES: usize = 4 << 20;
/// Most commands that wait while leadership is being handed over; their bytes are limited as those of a batch.
const MAX_HELD: usize = 1 << 16;

/// Where the outputs go. None of these may block: two parties each waiting for the other's queue is a deadlock.
pub trait Ports {
    /// Whoever waits for a command that was proposed.
    type Proposer;
    /// Whoever waits to read, and what.
    type Reader;
    /// Sends messages, best effort, in order for each receiver; leaves the vector empty.
    fn send(&mut self, messages: &mut Vec<Envelope>);
    /// Makes a write durable after all before it, then reports [`Input::Persisted`].
    fn write(&mut self, write: Write);
    /// Gives work to the state machine, which does one job after the other. [`Input::Applied`] is to be reported now and then.
    fn apply(&mut self, job: Job<Self::Proposer, Self::Reader>);
    /// Reads old entries, then reports [`Input::Fetched`].
    fn fetch(&mut self, fetch: Fetch);
    /// Sends a snapshot, beside everything else, then reports [`Input::SnapshotSent`].
    fn send_snapshot(&mut self, wanted: SendSnapshot);
    /// Something worth telling happened.
    fn event(&mut self, event: &Event);
    /// A command will not be answered by the state machine.
    fn fail_proposal(&mut self, proposer: Self::Proposer, error: RequestError);
    /// A change of the membership is complete: the new configuration counts alone, and this entry, which is committed, brought it. (One that is not comes as
    /// [`fail_proposal`](Self::fail_proposal).)
    fn changed(&mut self, proposer: Self::Proposer, entry: LogId);
    /// A read will not be answered by the state machine.
    fn fail_read(&mut self, reader: Self::Reader, error: RequestError);
}

/// Why a request failed, and whether it may have had an effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// This node does not lead. Nothing happened: ask `hint`, or the others.
    #[error("not the leader{}", hint.map(|id| format!("; node {id} is")).unwrap_or_default())]
    NotLeader {
        /// The leader of the current term, if it is known.
        hint: Option<NodeId>,
    },
    /// Too much is in progress, or leadership is being handed over. Nothing happened: try again after a while.
    #[error("too much in progress; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When it will probably be accepted: see [`ProposeError::Busy`] and [`ProposeError::Transferring`]. Wait at least as long, and longer if that was in
        /// vain.
        retry_after: Duration,
    },
    /// The command is too large. Nothing happened, and it will never be accepted.
    #[error("command of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Leadership was lost while the command was in the log: it may still be applied, or never. Only the caller can
    /// know whether it is safe to propose it again.
    #[error("leadership was lost before the outcome was known; the command may or may not take effect")]
    OutcomeUnknown,
    /// A change of the membership was refused. Nothing happened.
    #[error(transparent)]
    Change(ChangeError),
    /// The node is stopping, or has stopped. Nothing happened: ask the others. (A command that is in the log already ends in
    /// [`OutcomeUnknown`](Self::OutcomeUnknown).)
    #[error("the node is shutting down")]
    ShuttingDown,
}

impl From<ProposeError> for RequestError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::NotLeader { hint } => RequestError::NotLeader { hint },
            ProposeError::Busy { retry_after } | ProposeError::Transferring { retry_after, .. } => {
                RequestError::Busy { retry_after }
            }
            ProposeError::TooLarge { size, limit } => RequestError::TooLarge { size, limit },
            ProposeError::BadBatch => RequestError::TooLarge { size: 0, limit: u32::MAX as usize },
        }
    }
}

impl From<ChangeError> for RequestError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotLeader { hint } => RequestError::NotLeader { hint },
            other => RequestError::Change(other),
        }
    }
}

/// Work for the state machine, in order.
#[derive(Debug)]
pub enum Job<P, R> {
    /// Committed entries, and those who wait for some of them, in the order of their indices.
    Apply {
        /// They follow on those of the job before.
        entries: Entries,
        /// To be told by [`settle`] once the entries are applied.
        waiting: VecDeque<Waiting<P>>,
    },
    /// Queries that may be answered once every job before this one is done.
    Query(Vec<R>),
    /// The whole state gives way to a snapshot. Once that is durable, [`Input::Restored`] is to be reported.
    Restore(Restore),
}

/// Someone waits for this entry to be applied.
#[derive(Debug)]
pub struct Waiting<P> {
    /// Term of the entry that was proposed.
    pub term: Term,
    /// Its place, if it is ever committed.
    pub index: LogIndex,
    /// Who waits.
    pub proposer: P,
}

/// What became of an entry that someone waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was committed and applied.
    Applied {
        /// The entry.
        id: LogId,
        /// Which of the commands of its batch it was, counted from zero: the place of its reply.
        command: usize,
    },
    /// Another entry was committed in its place: it is in no log that counts, and never will be.
    Replaced,
}

/// After `entries` were applied: calls `tell` for everyone who waited for one of them.
pub fn settle<P>(entries: &Entries, mut waiting: VecDeque<Waiting<P>>, mut tell: impl FnMut(P, Settled)) {
    if waiting.is_empty() {
        return;
    }
    let mut commands = 0;
    for entry in entries.iter() {
        let is_command = entry.kind == EntryKind::Command;
        commands += usize::from(is_command);
        if let Some(Waiting { term, proposer, .. }) = waiting.pop_front_if(|front| front.index == entry.index) {
            let same = is_command && term == entry.term;
            let applied = Settled::Applied { id: entry.id(), command: commands.wrapping_sub(1) };
            tell(proposer, if same { applied } else { Settled::Replaced });
        }
    }
}

/// A core and everyone who waits for it.
///
/// Invariants: `waiting` ascends in index; everyone who came in is either in here, or was handed to [`Ports::apply`], or has failed.
pub struct Driver<P, R> {
    core: Raft,
    /// What the last turn has carried out: its memory is used again.
    output: Option<Box<Output>>,
    /// Commands that came in since the last turn.
    proposals: Vec<Bytes>,
    proposers: Vec<P>,
    proposal_bytes: usize,
    /// Until then at the latest, commands wait for the end of a transfer of leadership instead of being refused.
    hold_until: Instant,
    waiting: VecDeque<Waiting<P>>,
    /// Who waits for a change of the membership, and its first entry. There is one at a time.
    changing: Option<(P, LogId)>,
    /// Those whose change is complete, and the entry that made it so.
    changed: Vec<(P, LogId)>,
    /// Reads that came in since the last turn, then by the round that must confirm them, then by the index that must be applied.
    reads: Vec<R>,
    lease_reads: Vec<R>,
    unconfirmed: BTreeMap<ReadId, Vec<R>>,
    unapplied: VecDeque<(LogIndex, Vec<R>)>,
    /// Those who failed between two turns.
    failed: Vec<(P, RequestError)>,
    failed_reads: Vec<(R, RequestError)>,
    /// Highest index handed to the state machine.
    dispatched: LogIndex,
}

impl<P, R> Driver<P, R> {
    /// Nobody waits yet.
    pub fn new(core: Raft) -> Self {
        Driver {
            dispatched: core.status().applied_index,
            core,
            output: None,
            proposals: Vec::new(),
            proposers: Vec::new(),
            proposal_bytes: 0,
            hold_until: Instant(0),
            waiting: VecDeque::new(),
            changing: None,
            changed: Vec::new(),
            reads: Vec::new(),
            lease_reads: Vec::new(),
            unconfirmed: BTreeMap::new(),
            unapplied: VecDeque::new(),
            failed: Vec::new(),
            failed_reads: Vec::new(),
        }
    }

    /// See [`Raft::restart_election_timer`].
    pub fn restart_election_timer(&mut self, now: Instant) {
        self.core.restart_election_timer(now);
    }

    /// The core, to look at.
    pub fn core(&self) -> &Raft {
        &self.core
    }

    /// How many wait here: for their command to be handed to the state machine, or for their read to be.
    pub fn waits(&self) -> usize {
        let reads = self.unconfirmed.values().chain(self.unapplied.iter().map(|(_, readers)| readers));
        let changers = usize::from(self.changing.is_some()) + self.changed.len();
        let proposers = self.proposers.len() + self.waiting.len() + self.failed.len() + changers;
        let new_reads = self.reads.len() + self.lease_reads.len();
        proposers + new_reads + self.failed_reads.len() + reads.map(Vec::len).sum::<usize>()
    }

    /// When [`Driver::turn`] is due at the latest, after a [`Driver::step`] with [`Input::Wake`].
    pub fn deadline(&self) -> Instant {
        let at = self.core.deadline();
        let at = if self.proposals.is_empty() { at } else { at.min(self.hold_until) };
        let hangs_at = self.core.durability.stalled_at(self.core.config.write_stall_limit());
        // A leader steps down then, which is in its own deadline.
        hangs_at.filter(|_| !self.core.is_leader() && self.waits_for_disk()).map_or(at, |hangs_at| at.min(hangs_at))
    }

    /// Takes in an event; what follows from it is carried out at the next [`Driver::turn`].
    #[inline]
    pub fn step(&mut self, now: Instant, input: Input) {
        self.core.step(now, input);
    }

    /// Forgets the log up to `up_to`, which the state machine has durably: see [`Raft::compact`]. The disk hears of it at the next turn.
    pub fn compact(&mut self, up_to: LogIndex) {
        self.core.compact(up_to);
    }

    /// A leader is about to end while its links live on: see [`Raft::wake_others`]. They hear of it with the next turn.
    pub fn wake_others(&mut self, now: Instant) {
        self.core.wake_others(now);
    }

    /// Takes in a command. All that come in before the next turn become one batch: one record, one sync, one message.
    pub fn propose(&mut self, now: Instant, command: Bytes, proposer: P) {
        let (size, limit) = (command.len(), self.core.config.max_entry_bytes);
        if size > limit {
            return self.failed.push((proposer, RequestError::TooLarge { size, limit }));
        }
        if self.proposal_bytes + size > MAX_BATCH_BYTES {
            self.propose_queued(now);
        }
        if self.holds(now) && (self.proposal_bytes + size > MAX_BATCH_BYTES || self.proposals.len() >= MAX_HELD) {
            let retry_after = self.core.handed_over_after(now, self.hold_until);
            return self.failed.push((proposer, RequestError::Busy { retry_after }));
        }
        self.proposal_bytes += size;
        self.proposals.push(command);
        self.proposers.push(proposer);
    }

    /// Takes in a command, and says at once which place in the log it will have, if it is ever committed: the course's `Start`.
    ///
    /// # Errors
    /// On any error the command is not in the log.
    pub fn start(&mut self, now: Instant, command: Bytes, proposer: P) -> Result<Proposed, ProposeError> {
        self.propose_queued(now);
        let placed = self.core.propose(now, &[command])?;
        self.waiting.push_back(Waiting { term: placed.term, index: placed.first, proposer });
        Ok(placed)
    }

    /// Begins a change of the membership. Whoever asked is told when it is complete, or that it is refused ([`RequestError::Change`]), or that it is not known
    /// what comes of it.
    pub fn change_membership(&mut self, now: Instant, change: &MembershipChange, proposer: P) {
        self.settle_change();
        match self.core.change_membership(now, change) {
            Ok(first) => self.changing = Some((proposer, first)),
            Err(error) => self.failed.push((proposer, error.into())),
        }
    }

    /// Hands leadership over, to `to` or to the best: see [`Raft::transfer_leadership`]. Commands that come in meanwhile wait, up to a limit: until it has
    /// failed, or until the next leader is known, to which they are then referred.
    ///
    /// # Errors
    /// When this server does not lead, or nobody can take over.
    pub fn transfer_leadership(&mut self, now: Instant, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        self.propose_queued(now);
        let to = self.core.transfer_leadership(now, to)?;
        self.hold(now);
        Ok(to)
    }

    /// Takes in someone who wants to read what is newest (linearizable), here or from a server that follows the leader. All that come in before
    /// the next turn share one request.
    pub fn read(&mut self, reader: R) {
        self.reads.push(reader);
    }

    /// Takes in someone who wants to read what is newest as far as clocks can be trusted: see [`Raft::read_by_lease`].
    pub fn read_by_lease(&mut self, reader: R) {
        self.lease_reads.push(reader);
    }

    /// Takes in those who read whatever this server has applied: answered in the next turn, after the jobs that were handed out before.
    pub fn read_stale(&mut self, readers: Vec<R>) {
        if !readers.is_empty() {
            self.unapplied.push_front((LogIndex::ZERO, readers));
        }
    }

    /// Carries out what follows from what came in since the last turn; `now` must have been read after all of that was taken in. Says whether there was anything: then another turn may find more (the
    /// entries that were handed out made room for the next), so go on until there is nothing.
    pub fn turn(&mut self, now: Instant, ports: &mut impl Ports<Proposer = P, Reader = R>) -> bool {
        self.propose_queued(now);
        self.ask_for_reads(now);
        let mut output = self.output.take().unwrap_or_default();
        self.core.take_output_into(&mut output);
        let busy = !output.is_empty();
        // The disk first: it works while the messages are being encoded.
        if let Some(write) = output.write.take() {
            ports.write(write);
        }
        if !output.messages.is_empty() {
            ports.send(&mut output.messages);
        }
        for fetch in output.fetches.drain(..) {
            ports.fetch(fetch);
        }
        for wanted in output.snapshots.drain(..) {
            ports.send_snapshot(wanted);
        }
        self.apply(&mut output, ports);
        self.restore(&mut output, ports);
        self.settle_change();
        for event in output.events.drain(..) {
            ports.event(&event);
            match event {
                Event::SteppedDown { .. } => self.give_up(),
                // The core may begin to hand over by itself, too.
                Event::TransferBegun { .. } => self.hold(now),
                _ => {}
            }
        }
        let busy = self.finish_reads(&mut output, ports) || busy;
        self.output = Some(output);
        self.give_up_on_disk();
        self.tell_failed(ports) || busy
    }

    /// The server stops: nobody is left without an answer.
    pub fn stop(&mut self, ports: &mut impl Ports<Proposer = P, Reader = R>) {
        self.proposals.clear();
        let queued = self.proposers.drain(..).map(|proposer| (proposer, RequestError::ShuttingDown));
        let waiting = self.waiting.drain(..).map(|waiting| (waiting.proposer, RequestError::OutcomeUnknown));
        self.failed.extend(queued.chain(waiting));
        self.failed.extend(self.changing.take().map(|(proposer, _)| (proposer, RequestError::OutcomeUnknown)));
        let unconfirmed = std::mem::take(&mut self.unconfirmed).into_values().flatten();
        let unapplied = std::mem::take(&mut self.unapplied).into_iter().flat_map(|(_, reads)| reads);
        let reads = unconfirmed.chain(unapplied).chain(self.reads.drain(..)).chain(self.lease_reads.drain(..));
        self.failed_reads.extend(reads.map(|reader| (reader, RequestError::ShuttingDown)));
        self.tell_failed(ports);
    }

    fn hold(&mut self, now: Instant) {
        self.hold_until = now + self.core.config.election_timeout;
    }

    /// Whether commands wait because leadership is being handed over, or was and the next leader is not known yet.
    fn holds(&self, now: Instant) -> bool {
        self.core.transferring_to().is_some() || self.core.leader().is_none() && now < self.hold_until
    }

    fn propose_queued(&mut self, now: Instant) {
        if self.proposals.is_empty() || self.holds(now) {
            return;
        }
        self.proposal_bytes = 0;
        let proposed = self.core.propose(now, &self.proposals);
        self.proposals.clear();
        match proposed {
            Ok(Proposed { term, first, .. }) => {
                let waiting = self.proposers.drain(..).enumerate();
                self.waiting.extend(waiting.map(|(i, proposer)| Waiting { term, index: first + i as u64, proposer }));
            }
            Err(error) => self.failed.extend(self.proposers.drain(..).map(|proposer| (proposer, error.into()))),
        }
    }

    /// All reads of a turn share one id, and many turns may share one round.
    fn ask_for_reads(&mut self, now: Instant) {
        for by_lease in [false, true] {
            let reads = std::mem::take(if by_lease { &mut self.lease_reads } else { &mut self.reads });
            if reads.is_empty() {
                continue;
            }
            match if by_lease { self.core.read_by_lease(now) } else { self.core.read_index(now) } {
                Ok(id) => {
                    self.unconfirmed.insert(id, reads);
                }
                Err(ReadError::NotLeader { hint }) => self.fail_reads(reads, hint),
            }
        }
    }

    fn fail_reads(&mut self, reads: Vec<R>, hint: Option<NodeId>) {
        self.failed_reads.extend(reads.into_iter().map(|reader| (reader, RequestError::NotLeader { hint })));
    }

    fn apply(&mut self, output: &mut Output, ports: &mut impl Ports<Proposer = P, Reader = R>) {
        let entries = std::mem::take(&mut output.apply);
        let Some(last) = entries.last_index() else { return };
        let split = self.waiting.partition_point(|waiting| waiting.index <= last);
        let rest = self.waiting.split_off(split);
        let waiting = std::mem::replace(&mut self.waiting, rest);
        self.dispatched = last;
        ports.apply(Job::Apply { entries, waiting });
    }

    /// A change is complete when its first entry is committed and the newest membership is, too, and not joint.
    fn settle_change(&mut self) {
        let Some((_, first)) = &self.changing else { return };
        let (commit, (index, membership)) = (self.core.commit_index(), self.core.membership());
        // As long as this server leads, its log keeps what it appended; but it may be forgotten by now.
        let term = self.core.term_at(first.index);
        let begun = first.index <= commit && term.is_none_or(|term| term == first.term);
        if begun && index <= commit && !membership.is_joint() {
            let entry = LogId::new(self.core.term_at(index).unwrap_or(first.term), index);
            self.changed.extend(self.changing.take().map(|(proposer, _)| (proposer, entry)));
        }
    }

    /// Whoever still waits for an entry that is in the snapshot will not get its reply: the entry may have been applied, by others.
    fn restore(&mut self, output: &mut Output, ports: &mut impl Ports<Proposer = P, Reader = R>) {
        let Some(restore) = output.restore.take() else { return };
        let last = restore.meta.last.index;
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.index <= last) {
            self.failed.push((waiting.proposer, RequestError::OutcomeUnknown));
        }
        self.dispatched = self.dispatched.max(last);
        ports.apply(Job::Restore(restore));
    }

    /// After leadership is lost: a command that is committed will still be applied here and answered; of all others the
    /// outcome is unknown.
    fn give_up(&mut self) {
        self.failed.extend(self.changing.take().map(|(proposer, _)| (proposer, RequestError::OutcomeUnknown)));
        let commit = self.core.commit_index();
        for waiting in std::mem::take(&mut self.waiting) {
            let certain = waiting.index <= commit && self.core.term_at(waiting.index) == Some(waiting.term);
            if certain {
                self.waiting.push_back(waiting);
            } else {
                self.failed.push((waiting.proposer, RequestError::OutcomeUnknown));
            }
        }
    }

    /// Whether anybody waits for what is not on the own disk yet, and so cannot be applied.
    fn waits_for_disk(&self) -> bool {
        let durable = self.core.durability.durable();
        self.waiting.back().is_some_and(|waiting| waiting.index > durable)
            || self.unapplied.iter().any(|(index, _)| *index > durable)
    }

    /// What others have committed is answered here once the own disk has it, too. One that hangs may take for ever: whoever has written hears that
    /// the outcome is unknown, and whoever reads that this is not the place. The next leader can tell them, at once if they have a session. A leader steps
    /// down before it comes to that.
    fn give_up_on_disk(&mut self) {
        if self.core.is_leader() || !self.core.disk_hangs() || !self.waits_for_disk() {
            return;
        }
        let (durable, hint) = (self.core.durability.durable(), self.core.leader());
        let split = self.waiting.partition_point(|waiting| waiting.index <= durable);
        let unknown = self.waiting.split_off(split).into_iter();
        self.failed.extend(unknown.map(|waiting| (waiting.proposer, RequestError::OutcomeUnknown)));
        let (ready, hopeless) =
            std::mem::take(&mut self.unapplied).into_iter().partition(|(index, _)| *index <= durable);
        self.unapplied = ready;
        let hopeless: VecDeque<_> = hopeless;
        hopeless.into_iter().for_each(|(_, readers)| self.fail_reads(readers, hint));
    }

    /// Reads go to the state machine behind the entries that they must see.
    fn finish_reads(&mut self, output: &mut Output, ports: &mut impl Ports<Proposer = P, Reader = R>) -> bool {
        for outcome in output.reads.drain(..) {
            match outcome {
                ReadOutcome::Ready { id, index } => {
                    if let Some(reads) = self.unconfirmed.remove(&id) {
                        self.unapplied.push_back((index, reads));
                    }
                }
                ReadOutcome::Lost { id } => {
                    if let Some(reads) = self.unconfirmed.remove(&id) {
                        self.fail_reads(reads, self.core.leader());
                    }
                }
            }
        }
        let mut any = false;
        while let Some((_, readers)) = self.unapplied.pop_front_if(|(index, _)| *index <= self.dispatched) {
            ports.apply(Job::Query(readers));
            any = true;
        }
        any
    }

    fn tell_failed(&mut self, ports: &mut impl Ports<Proposer = P, Reader = R>) -> bool {
        let any = !self.failed.is_empty() || !self.failed_reads.is_empty() || !self.changed.is_empty();
        self.changed.drain(..).for_each(|(proposer, entry)| ports.changed(proposer, entry));
        self.failed.drain(..).for_each(|(proposer, error)| ports.fail_proposal(proposer, error));
        self.failed_reads.drain(..).for_each(|(reader, error)| ports.fail_read(reader, error));
        any
    }
}

impl<P, R> std::fmt::Debug for Driver<P, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("core", &self.core)
            .field("waiting", &self.waiting.len())
            .field("unconfirmed", &self.unconfirmed.len())
            .field("unapplied", &self.unapplied.len())
            .finish_non_exhaustive()
    }
}
