//! Where the outputs of the groups' cores go: what all groups of the node share, and what each has for itself.

use std::sync::Arc;
use std::sync::mpsc;

use raft_core::driver::{Ports, RequestError};
use raft_core::{Envelope, Event, Fetch, LogId, LogIndex, SendSnapshot, Write};
use raft_net::Transport;

use crate::applier::Job;
use crate::handle::ReadRequest;
use crate::inbox::Life;
use crate::pace::Pace;
use crate::pool::Submit;
use crate::reader::Question;
use crate::reply::{Flusher, Outcome, Responder};
use crate::roster::Roster;
use crate::snapshot::incoming::Incoming;
use crate::snapshot::manager::{Manager, Task};
use crate::timings::{Pulse, Timings};
use crate::writer::Order;

/// What all groups share: one log, one connection to each peer.
pub(crate) struct Outlets<T> {
    pub(crate) transport: T,
    pub(crate) roster: Roster,
    pub(crate) writer: mpsc::Sender<Order>,
    pub(crate) reader: mpsc::Sender<Question>,
    pub(crate) incoming: Arc<Incoming>,
    /// A thread that does not take its work any more.
    pub(crate) lost: Option<&'static str>,
    pub(crate) flusher: Flusher,
    pub(crate) timings: Option<Arc<Timings>>,
    /// Of work in the background.
    pub(crate) pace: Arc<Pace>,
}

/// What a group has for itself.
pub(crate) struct Own {
    pub(crate) life: Life,
    pub(crate) applier: Box<dyn Submit>,
    pub(crate) snapshots: Manager,
    /// This node has been removed, as the entry at this index says, and the state machine is to make that durable once it has applied it: else the node would not know any more after
    /// a restart.
    pub(crate) removed: Option<LogIndex>,
    /// Measures heartbeats, if they are to be.
    pub(crate) pulse: Pulse,
}

/// Both together: the ports of one group's driver.
pub(crate) struct Desk<'a, T> {
    pub(crate) node: &'a mut Outlets<T>,
    pub(crate) own: &'a mut Own,
}

impl<T> Desk<'_, T> {
    /// Gives the state machine something to do for a snapshot.
    pub(crate) fn order(&mut self, task: Option<Task>) {
        if let Some(task) = task
            && !self.own.applier.order(task)
        {
            self.node.lost = Some("applier");
        }
    }
}

impl<T: Transport> Ports for Desk<'_, T> {
    type Proposer = Responder;
    type Reader = ReadRequest;

    fn send(&mut self, messages: &mut Vec<Envelope>) {
        if let Some(timings) = &self.node.timings {
            self.own.pulse.sent(timings, messages);
        }
        self.node.transport.send(self.own.life.group, messages);
    }

    fn write(&mut self, write: Write) {
        if let Some(timings) = &self.node.timings {
            timings.ordered();
        }
        if self.node.writer.send(Order::Write(self.own.life, write)).is_err() {
            self.node.lost = Some("writer");
        }
    }

    fn send_snapshot(&mut self, wanted: SendSnapshot) {
        let task = self.own.snapshots.send(wanted, &mut self.node.transport);
        self.order(task);
    }

    fn apply(&mut self, job: Job) {
        if let Job::Apply { entries, .. } = &job
            && let Some(last) = entries.last_index()
        {
            self.own.snapshots.ledger.applied(last, entries.byte_len() as u64);
        }
        // A machine that failed is not asked anything more; who waits is told that the outcome is unknown.
        if !self.own.applier.submit(job) {
            self.node.lost = Some("applier");
        }
    }

    fn fetch(&mut self, fetch: Fetch) {
        if self.node.reader.send((self.own.life, fetch)).is_err() {
            self.node.lost = Some("reader");
        }
    }

    fn event(&mut self, event: &Event) {
        let group = self.own.life.group;
        match event {
            Event::BecameLeader { term } => tracing::info!(%group, %term, "became leader"),
            Event::SteppedDown { term, reason } => tracing::info!(%group, %term, ?reason, "stepped down"),
            Event::LeaderChanged { term, leader: Some(leader) } => tracing::info!(%group, %term, %leader, "leader"),
            Event::LeaderChanged { term, leader: None } => tracing::info!(%group, %term, "no leader"),
            Event::Campaigning { term, pre_vote } => tracing::info!(%group, %term, pre_vote, "campaigning"),
            Event::TransferBegun { term, to } => tracing::info!(%group, %term, %to, "handing over"),
            Event::TransferFailed { term, to } => tracing::warn!(%group, %term, %to, "did not take over in time"),
            Event::MembershipChanged { index, membership } => {
                tracing::info!(%group, %index, voters = ?membership.voters(), outgoing = ?membership.outgoing(),
                    learners = ?membership.learners(), "membership");
                self.node.roster.follow(group, membership, &mut self.node.transport);
            }
            Event::Removed { index } => {
                tracing::warn!(%group, %index, "this node has been removed from the cluster; it can be stopped");
                self.own.removed = Some(*index);
            }
            Event::Truncated { from } => tracing::info!(%group, %from, "uncommitted entries gave way to the leader's"),
            Event::Rejected { from, reason } => tracing::warn!(%group, %from, ?reason, "input rejected"),
            other => tracing::debug!(%group, ?other, "event"),
        }
    }

    fn fail_proposal(&mut self, responder: Responder, error: RequestError) {
        self.node.flusher.add(responder.reply(Outcome::Failed(error)));
    }

    fn changed(&mut self, responder: Responder, entry: LogId) {
        // Clients are told the index.
        let reply = postcard::to_stdvec(&entry.index.0).unwrap_or_default();
        self.node.flusher.add(responder.reply(Outcome::Applied {
            term: entry.term,
            index: entry.index,
            reply: &reply,
        }));
    }

    fn fail_read(&mut self, read: ReadRequest, error: RequestError) {
        self.node.flusher.add(read.responder.reply(Outcome::Failed(error)));
    }
}
