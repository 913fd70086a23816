//! The loop around the driver: wait for whatever comes first, take in all that has come, carry out what follows.
//!
//! It is a task on the node's single-threaded runtime, beside the QUIC endpoint: from a packet to the core and back there is no
//! other thread. Only the disk, the state machine and the reader have threads of their own.

use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

use raft_core::driver::{Driver, Ports, RequestError};
use raft_core::{
    Envelope, Event, Fetch, GroupId, Input, Instant, LogId, LogIndex, NodeId, SendSnapshot, SnapshotId, Write,
};
use raft_net::{Inbound, Transport};
use raft_storage::StorageError;
use tokio::sync::mpsc as queue;
use tokio::sync::watch;

use crate::applier::{self, Job, Progress, Submit};
use crate::handle::{Consistency, ReadRequest, Request, refuse};
use crate::handover::Handover;
use crate::reply::{Flusher, Outcome, Responder};
use crate::roster::Roster;
use crate::snapshot::SnapshotError;
use crate::snapshot::directory::Stored;
use crate::snapshot::manager::{Manager, Task};

/// Most inputs taken in before their consequences are carried out.
const MAX_DRAIN: usize = 4096;

/// Why a node cannot go on. It acknowledges nothing any more and stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// A write, a sync or a read of the log failed. What is on the disk is not known: look at the disk, then restart.
    #[error("the log's storage failed: {0}")]
    Storage(#[source] StorageError),
    /// The state machine failed.
    #[error("the state machine failed: {0}")]
    StateMachine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread of the node ended unexpectedly (it panicked).
    #[error("the {0} thread is gone")]
    ThreadLost(&'static str),
}

/// What comes from the node's own threads.
#[derive(Debug)]
pub(crate) enum Internal {
    Core(Input),
    /// A file was made, or not.
    SnapshotMade(Result<Stored, SnapshotError>),
    /// The state machine's own state is durable up to here.
    Durable(LogIndex),
    /// The state machine has taken over a snapshot of another node.
    Restored {
        id: SnapshotId,
        last: LogIndex,
    },
    Fatal(Fatal),
}

/// The way from the node's threads to its loop. Never blocks; once the loop is gone, messages to it are pointless.
#[derive(Clone, Debug)]
pub(crate) struct Inbox(pub(crate) queue::UnboundedSender<Internal>);

impl Inbox {
    pub(crate) fn send(&self, message: Internal) {
        if let Err(queue::error::SendError(Internal::Fatal(error))) = self.0.send(message) {
            tracing::error!(%error, "failed while stopping");
        }
    }
}

/// The other ends of what leaves the loop.
pub(crate) struct Outlets<T> {
    pub(crate) group: GroupId,
    pub(crate) transport: T,
    pub(crate) roster: Roster,
    pub(crate) writer: mpsc::Sender<Write>,
    pub(crate) applier: Box<dyn Submit>,
    pub(crate) reader: mpsc::Sender<Fetch>,
    pub(crate) snapshots: Manager,
    /// A thread that does not take its work any more.
    pub(crate) lost: Option<&'static str>,
    pub(crate) flusher: Flusher,
}

impl<T: Transport> Outlets<T> {
    /// Gives the state machine something to do for a snapshot.
    fn order(&mut self, task: Option<Task>) {
        if let Some(task) = task
            && self.lost.is_none()
            && !self.applier.order(task)
        {
            self.lost = Some("applier");
        }
    }
}

impl<T: Transport> Ports for Outlets<T> {
    type Proposer = Responder;
    type Reader = ReadRequest;

    fn send(&mut self, messages: &mut Vec<Envelope>) {
        self.transport.send(self.group, messages);
    }

    fn write(&mut self, write: Write) {
        if self.writer.send(write).is_err() {
            self.lost = Some("writer");
        }
    }

    fn send_snapshot(&mut self, wanted: SendSnapshot) {
        let task = self.snapshots.send(wanted, &mut self.transport);
        self.order(task);
    }

    fn apply(&mut self, job: Job) {
        if let Job::Apply { entries, .. } = &job
            && let Some(last) = entries.last_index()
        {
            self.snapshots.ledger.applied(last, entries.byte_len() as u64);
        }
        // A machine that failed is not asked anything more; who waits is told that the outcome is unknown.
        if self.lost.is_none() && !self.applier.submit(job) {
            self.lost = Some("applier");
        }
    }

    fn fetch(&mut self, fetch: Fetch) {
        if self.reader.send(fetch).is_err() {
            self.lost = Some("reader");
        }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::BecameLeader { term } => tracing::info!(%term, "became leader"),
            Event::SteppedDown { term, reason } => tracing::info!(%term, ?reason, "stepped down"),
            Event::LeaderChanged { term, leader: Some(leader) } => tracing::info!(%term, %leader, "leader"),
            Event::LeaderChanged { term, leader: None } => tracing::info!(%term, "no leader"),
            Event::Campaigning { term, pre_vote } => tracing::info!(%term, pre_vote, "campaigning"),
            Event::TransferBegun { term, to } => tracing::info!(%term, %to, "handing over"),
            Event::TransferFailed { term, to } => tracing::warn!(%term, %to, "did not take over in time"),
            Event::MembershipChanged { index, membership } => {
                tracing::info!(%index, voters = ?membership.voters(), outgoing = ?membership.outgoing(),
                    learners = ?membership.learners(), "membership");
                self.roster.follow(membership, &mut self.transport);
            }
            Event::Removed { index } => {
                tracing::warn!(%index, "this node has been removed from the cluster; it can be stopped");
            }
            Event::Truncated { from } => tracing::info!(%from, "uncommitted entries gave way to the leader's"),
            Event::Rejected { from, reason } => tracing::warn!(%from, ?reason, "input rejected"),
            other => tracing::debug!(?other, "event"),
        }
    }

    fn fail_proposal(&mut self, responder: Responder, error: RequestError) {
        self.flusher.add(responder.reply(Outcome::Failed(error)));
    }

    fn changed(&mut self, responder: Responder, entry: LogId) {
        // Clients are told the index.
        let reply = postcard::to_stdvec(&entry.index.0).unwrap_or_default();
        self.flusher.add(responder.reply(Outcome::Applied { term: entry.term, index: entry.index, reply: &reply }));
    }

    fn fail_read(&mut self, read: ReadRequest, error: RequestError) {
        self.flusher.add(read.responder.reply(Outcome::Failed(error)));
    }
}

/// What the loop listens to.
pub(crate) struct Inlets {
    pub(crate) internal: queue::UnboundedReceiver<Internal>,
    pub(crate) network: queue::Receiver<Inbound>,
    pub(crate) requests: queue::UnboundedReceiver<Request>,
}

/// Everything that can wake the loop.
enum Happened {
    Internal(Internal),
    Network(Inbound),
    Request(Request),
    Time,
}

pub(crate) struct EventLoop<T> {
    pub(crate) driver: Driver<Responder, ReadRequest>,
    /// Someone asked the node to stop.
    pub(crate) stopping: bool,
    /// The node hands over, and those who wait for that.
    pub(crate) handover: Handover,
    pub(crate) inlets: Inlets,
    pub(crate) outlets: Outlets<T>,
    pub(crate) progress: Progress,
    /// Up to where the state machine's own state is known to be durable.
    pub(crate) durable: LogIndex,
    pub(crate) leader: watch::Sender<Option<NodeId>>,
    pub(crate) origin: std::time::Instant,
}

impl<T: Transport> EventLoop<T> {
    /// Runs until the node is asked to stop, or cannot go on. The transport is given back, since the last replies have yet to leave.
    pub(crate) async fn run(mut self) -> (Result<(), Fatal>, T) {
        let result = self.serve().await;
        self.driver.stop(&mut self.outlets);
        self.outlets.flusher.flush();
        self.inlets.requests.close();
        while let Ok(request) = self.inlets.requests.try_recv() {
            refuse(request);
        }
        (result, self.outlets.transport)
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        let mut seen = LogIndex::ZERO;
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        while !self.stopping {
            let deadline = self.handover.deadline(self.driver.deadline());
            let due = tokio::time::Instant::from_std(self.origin + Duration::from_nanos(deadline.0));
            // Moving the timer costs more than waking up once too early.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let first = tokio::select! {
                biased;
                Some(internal) = self.inlets.internal.recv() => Happened::Internal(internal),
                Some(inbound) = self.inlets.network.recv() => Happened::Network(inbound),
                Some(request) = self.inlets.requests.recv() => Happened::Request(request),
                () = &mut timer => Happened::Time,
            };
            let now = self.now();
            self.take_in(now, first)?;
            self.drain()?;
            // Leases and promises are timed: what has come in must not seem younger than it is.
            let now = self.now();
            if now >= deadline {
                // As long as requests keep coming, nobody looks at the timer.
                self.driver.step(now, Input::Wake);
            }
            let applied = applier::reached(&self.progress);
            if applied > seen {
                seen = applied;
                self.driver.step(now, Input::Applied(applied));
            }
            let task = self.outlets.snapshots.task();
            self.outlets.order(task);
            if let Some(up_to) = self.outlets.snapshots.compact(self.durable) {
                self.driver.compact(up_to);
            }
            // Some outputs make room for others: entries read back, for the next to be read.
            while self.driver.turn(now, &mut self.outlets) {}
            self.stopping |= self.handover.look(now, self.driver.core());
            self.outlets.flusher.flush();
            if let Some(thread) = self.outlets.lost {
                return Err(self.why_lost(thread));
            }
            let known = self.driver.core().leader();
            self.leader.send_if_modified(|leader| std::mem::replace(leader, known) != known);
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Takes in what else has come, in the order of urgency.
    fn drain(&mut self) -> Result<(), Fatal> {
        for _ in 0..MAX_DRAIN {
            let next = if let Ok(internal) = self.inlets.internal.try_recv() {
                Happened::Internal(internal)
            } else if let Ok(inbound) = self.inlets.network.try_recv() {
                Happened::Network(inbound)
            } else if let Ok(request) = self.inlets.requests.try_recv() {
                Happened::Request(request)
            } else {
                return Ok(());
            };
            self.take_in(self.now(), next)?;
        }
        Ok(())
    }

    fn take_in(&mut self, now: Instant, happened: Happened) -> Result<(), Fatal> {
        match happened {
            Happened::Internal(Internal::Core(input)) => self.driver.step(now, input),
            Happened::Internal(Internal::SnapshotMade(made)) => {
                let task = self.outlets.snapshots.made(made, &mut self.outlets.transport);
                self.outlets.order(task);
            }
            Happened::Internal(Internal::Durable(durable)) => self.durable = self.durable.max(durable),
            Happened::Internal(Internal::Restored { id, last }) => {
                self.durable = self.durable.max(last);
                self.outlets.snapshots.restored(id, last);
                self.driver.step(now, Input::Restored(id));
            }
            Happened::Internal(Internal::Fatal(fatal)) => return Err(fatal),
            Happened::Network(Inbound::Messages { group, messages }) => {
                if group == self.outlets.group {
                    messages.into_iter().for_each(|message| self.driver.step(now, Input::Message(message)));
                } else {
                    tracing::debug!(%group, "messages for a group that is not here");
                }
            }
            Happened::Network(Inbound::LinkReset { peer }) => self.driver.step(now, Input::LinkReset(peer)),
            Happened::Network(_) => tracing::debug!("the network has news of an unknown kind"),
            Happened::Request(request) => self.request(now, request),
            Happened::Time => self.driver.step(now, Input::Wake),
        }
        Ok(())
    }

    fn request(&mut self, now: Instant, request: Request) {
        match request {
            Request::Propose(proposals) => {
                for proposal in proposals {
                    self.driver.propose(now, proposal.command, proposal.responder);
                }
            }
            Request::Start { command, responder, placed } => {
                // Whoever asked may be gone.
                let _ = placed.send(self.driver.start(now, command, responder).map_err(RequestError::from));
            }
            Request::Read(reads) => {
                let mut stale = Vec::new();
                for read in reads {
                    match read.consistency {
                        Consistency::Linearizable => self.driver.read(read),
                        Consistency::Lease => self.driver.read_by_lease(read),
                        Consistency::Stale => stale.push(read),
                    }
                }
                self.driver.read_stale(stale);
            }
            Request::ChangeMembership { change, responder } => {
                self.driver.change_membership(now, &change, responder);
            }
            Request::Transfer { to, done } => match self.driver.transfer_leadership(now, to) {
                Ok(to) => self.handover.await_end(now, to, self.driver.core(), done),
                // Whoever asked may be gone.
                Err(error) => drop(done.send(Err(error.into()))),
            },
            Request::Status(reply) => {
                let _ = reply.send(self.driver.core().status());
            }
            Request::Snapshot(reply) => {
                let task = self.outlets.snapshots.ask(reply);
                self.outlets.order(task);
            }
            // Whoever leads hands over first, so that the others need not find out that it is gone.
            Request::Shutdown => match self.driver.transfer_leadership(now, None) {
                Ok(_) => self.handover.leave(now, self.driver.core()),
                Err(_) => self.stopping = true,
            },
        }
    }

    /// A thread that is gone has said why, unless it panicked.
    fn why_lost(&mut self, thread: &'static str) -> Fatal {
        while let Ok(internal) = self.inlets.internal.try_recv() {
            if let Internal::Fatal(fatal) = internal {
                return fatal;
            }
        }
        Fatal::ThreadLost(thread)
    }
}
