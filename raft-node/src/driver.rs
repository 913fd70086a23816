//! The order of events around the core: which input goes in when, and where each output goes.
//!
//! Everything in here is plain data and plain calls, so that a simulator can run it under a virtual clock: the
//! [`event loop`](crate::event_loop) around it only waits, and [`Ports`] only carry.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_core::{
    Entries, Event, Fetch, Input, Instant, LogIndex, Output, ProposeError, Proposed, Raft as Core, ReadId, ReadOutcome,
    Term, Write,
};
use raft_core::{Envelope, NodeId};

use crate::handle::{Consistency, Proposal, ReadRequest, Request};
use crate::reply::{Flusher, Outcome, RequestError, Responder};

/// Most bytes of commands that are proposed to the core as one batch (and so become one record on disk).
const MAX_BATCH_BYTES: usize = 4 << 20;

/// Where the outputs go. None of these may block: two parties each waiting for the other's queue is a deadlock.
pub(crate) trait Ports {
    /// Sends messages, best effort; leaves the vector empty.
    fn send(&mut self, messages: &mut Vec<Envelope>);
    /// Makes a write durable after all before it.
    fn write(&mut self, write: Write);
    /// Gives work to the state machine.
    fn apply(&mut self, job: Job);
    /// Reads old entries.
    fn fetch(&mut self, fetch: Fetch);
}

/// Work for the thread that owns the state machine, in order.
#[derive(Debug)]
pub(crate) enum Job {
    /// Committed entries, and those who wait for some of them, in the order of their indices.
    Apply { entries: Entries, waiting: VecDeque<Waiting> },
    /// Queries that may be answered once every job before this one is done.
    Query(Vec<ReadRequest>),
}

/// Someone waits for this entry to be applied.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) term: Term,
    pub(crate) index: LogIndex,
    pub(crate) responder: Responder,
}

/// The core and everyone who waits for it.
///
/// Invariants: `waiting` ascends in index; every responder that came in is either in here, or was handed to the state
/// machine's thread, or has been answered.
pub(crate) struct Driver {
    core: Core,
    max_entry_bytes: usize,
    /// Commands that came in since the last turn.
    proposals: Vec<Proposal>,
    proposal_bytes: usize,
    waiting: VecDeque<Waiting>,
    /// Reads that came in since the last turn, then by the round that must confirm them, then by the index that must be applied.
    reads: Vec<ReadRequest>,
    unconfirmed: BTreeMap<ReadId, Vec<ReadRequest>>,
    unapplied: VecDeque<(LogIndex, Vec<ReadRequest>)>,
    /// Highest index handed to the state machine's thread.
    dispatched: LogIndex,
    flusher: Flusher,
    stopping: bool,
}

impl Driver {
    pub(crate) fn new(core: Core, max_entry_bytes: usize) -> Self {
        let dispatched = core.status().applied_index;
        Driver {
            core,
            max_entry_bytes,
            proposals: Vec::new(),
            proposal_bytes: 0,
            waiting: VecDeque::new(),
            reads: Vec::new(),
            unconfirmed: BTreeMap::new(),
            unapplied: VecDeque::new(),
            dispatched,
            flusher: Flusher::default(),
            stopping: false,
        }
    }

    /// When [`Driver::turn`] is due at the latest.
    pub(crate) fn deadline(&self) -> Instant {
        self.core.deadline()
    }

    /// Whether someone asked the node to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// The current leader, if known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.core.leader()
    }

    /// Takes in an event; what follows from it is carried out at the next [`Driver::turn`].
    pub(crate) fn step(&mut self, now: Instant, input: Input) {
        self.core.step(now, input);
    }

    /// Takes in a request.
    pub(crate) fn request(&mut self, now: Instant, request: Request) {
        match request {
            Request::Propose(proposals) => {
                for proposal in proposals {
                    self.enqueue(now, proposal);
                }
            }
            Request::Start { command, responder, placed } => {
                self.propose_queued(now);
                // Whoever asked may be gone.
                let _ = placed.send(self.propose_one(now, command, responder));
            }
            Request::Read(reads) => self.read(reads),
            Request::Status(reply) => {
                let _ = reply.send(self.core.status());
            }
            Request::Shutdown => self.stopping = true,
        }
    }

    /// Carries out everything that follows from what came in since the last turn.
    pub(crate) fn turn(&mut self, now: Instant, ports: &mut impl Ports) {
        self.propose_queued(now);
        self.ask_for_reads(now);
        let mut output = self.core.take_output();
        // The disk first: its thread wakes up while the messages are being encoded.
        if let Some(write) = output.write.take() {
            ports.write(write);
        }
        if !output.messages.is_empty() {
            ports.send(&mut output.messages);
        }
        for fetch in output.fetches.drain(..) {
            ports.fetch(fetch);
        }
        self.apply(&mut output, ports);
        for event in output.events.drain(..) {
            self.event(&event);
        }
        self.finish_reads(&mut output, ports);
        self.flusher.flush();
    }

    fn enqueue(&mut self, now: Instant, proposal: Proposal) {
        let size = proposal.command.len();
        if size > self.max_entry_bytes {
            let error = RequestError::TooLarge { size, limit: self.max_entry_bytes };
            return self.flusher.add(proposal.responder.reply(Outcome::Failed(error)));
        }
        if self.proposal_bytes + size > MAX_BATCH_BYTES {
            self.propose_queued(now);
        }
        self.proposal_bytes += size;
        self.proposals.push(proposal);
    }

    /// Proposes all that has come in as one batch: one record, one fsync, one frame.
    fn propose_queued(&mut self, now: Instant) {
        if self.proposals.is_empty() {
            return;
        }
        self.proposal_bytes = 0;
        let (commands, responders): (Vec<Bytes>, Vec<Responder>) =
            self.proposals.drain(..).map(|proposal| (proposal.command, proposal.responder)).unzip();
        match self.core.propose(now, &commands) {
            Ok(Proposed { term, first, .. }) => {
                let waiting = responders.into_iter().enumerate();
                self.waiting.extend(waiting.map(|(i, responder)| Waiting { term, index: first + i as u64, responder }));
            }
            Err(error) => self.refuse(responders, error),
        }
    }

    fn propose_one(&mut self, now: Instant, command: Bytes, responder: Responder) -> Result<Proposed, RequestError> {
        let placed = self.core.propose(now, &[command])?;
        self.waiting.push_back(Waiting { term: placed.term, index: placed.first, responder });
        Ok(placed)
    }

    fn refuse(&mut self, responders: Vec<Responder>, error: ProposeError) {
        for responder in responders {
            self.flusher.add(responder.reply(Outcome::Failed(error.into())));
        }
    }

    fn read(&mut self, reads: Vec<ReadRequest>) {
        let (linearizable, stale): (Vec<_>, Vec<_>) =
            reads.into_iter().partition(|read| read.consistency == Consistency::Linearizable);
        self.reads.extend(linearizable);
        if !stale.is_empty() {
            // Index zero: answered in this turn, after whatever was dispatched before.
            self.unapplied.push_front((LogIndex::ZERO, stale));
        }
    }

    /// All reads of a turn share one id, and many turns may share one round.
    fn ask_for_reads(&mut self, now: Instant) {
        if self.reads.is_empty() {
            return;
        }
        let reads = std::mem::take(&mut self.reads);
        match self.core.read_index(now) {
            Ok(id) => {
                self.unconfirmed.insert(id, reads);
            }
            Err(raft_core::ReadError::NotLeader { hint }) => self.fail_reads(reads, hint),
        }
    }

    fn fail_reads(&mut self, reads: Vec<ReadRequest>, hint: Option<NodeId>) {
        for read in reads {
            self.flusher.add(read.responder.reply(Outcome::Failed(RequestError::NotLeader { hint })));
        }
    }

    fn apply(&mut self, output: &mut Output, ports: &mut impl Ports) {
        let entries = std::mem::take(&mut output.apply);
        let Some(last) = entries.last_index() else { return };
        let split = self.waiting.partition_point(|waiting| waiting.index <= last);
        let rest = self.waiting.split_off(split);
        let waiting = std::mem::replace(&mut self.waiting, rest);
        self.dispatched = last;
        ports.apply(Job::Apply { entries, waiting });
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::BecameLeader { term } => tracing::info!(%term, "became leader"),
            Event::SteppedDown { term, reason } => {
                tracing::info!(%term, ?reason, "stepped down");
                self.give_up();
            }
            Event::LeaderChanged { term, leader: Some(leader) } => tracing::info!(%term, %leader, "leader"),
            Event::LeaderChanged { term, leader: None } => tracing::info!(%term, "no leader"),
            Event::Campaigning { term, pre_vote } => tracing::info!(%term, pre_vote, "campaigning"),
            Event::Truncated { from } => tracing::info!(%from, "uncommitted entries gave way to the leader's"),
            Event::Rejected { from, reason } => tracing::warn!(%from, ?reason, "input rejected"),
            other => tracing::debug!(?other, "event"),
        }
    }

    /// After leadership is lost: a command that is committed will still be applied here and answered; of all others the
    /// outcome is unknown.
    fn give_up(&mut self) {
        let commit = self.core.commit_index();
        for waiting in std::mem::take(&mut self.waiting) {
            let certain = waiting.index <= commit && self.core.term_at(waiting.index) == Some(waiting.term);
            if certain {
                self.waiting.push_back(waiting);
            } else {
                self.flusher.add(waiting.responder.reply(Outcome::Failed(RequestError::OutcomeUnknown)));
            }
        }
    }

    /// Reads go to the state machine's thread behind the entries that they must see.
    fn finish_reads(&mut self, output: &mut Output, ports: &mut impl Ports) {
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
        while self.unapplied.front().is_some_and(|(index, _)| *index <= self.dispatched) {
            if let Some((_, reads)) = self.unapplied.pop_front() {
                ports.apply(Job::Query(reads));
            }
        }
    }

    /// The node stops: nobody is left without an answer.
    pub(crate) fn stop(&mut self) {
        for proposal in self.proposals.drain(..) {
            self.flusher.add(proposal.responder.reply(Outcome::Failed(RequestError::ShuttingDown)));
        }
        for waiting in self.waiting.drain(..) {
            self.flusher.add(waiting.responder.reply(Outcome::Failed(RequestError::OutcomeUnknown)));
        }
        let unconfirmed = std::mem::take(&mut self.unconfirmed).into_values();
        let unapplied = std::mem::take(&mut self.unapplied).into_iter().map(|(_, reads)| reads);
        let reads = std::mem::take(&mut self.reads);
        for read in unconfirmed.chain(unapplied).flatten().chain(reads) {
            self.flusher.add(read.responder.reply(Outcome::Failed(RequestError::ShuttingDown)));
        }
        self.flusher.flush();
    }
}
