//! The handle through which a program uses its node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::{GroupId, LogId, LogIndex, MembershipChange, NodeId, Proposed, Status, TransferError};
use tokio::sync::{mpsc, oneshot, watch};

use crate::inbox::{Fatal, Life};
use crate::node::{Control, Metrics};
use crate::reply::{Applied, OneShot, RequestError, Responder};
use crate::snapshot::SnapshotError;
use crate::standing::Standing;

/// How fresh a read must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Consistency {
    /// Sees every write that was acknowledged, by anyone, before the read began. Served after a round of heartbeats from the leader to a
    /// majority (ReadIndex; thesis, section 6.4); by a follower, once it has asked the leader and has applied that much.
    #[default]
    Linearizable,
    /// The same as far as clocks can be trusted: a leader with a [lease](raft_core::Lease) answers without asking anyone. Without a lease, or at a
    /// follower, it is what [`Linearizable`](Self::Linearizable) is.
    Lease,
    /// Whatever this node has applied; may be arbitrarily old.
    Stale,
}

/// A command to be replicated.
#[derive(Debug)]
pub struct Proposal {
    /// What the state machine will get.
    pub command: Bytes,
    /// Where the outcome goes.
    pub responder: Responder,
}

/// A query to be answered by the state machine.
#[derive(Debug)]
pub struct ReadRequest {
    /// What the state machine will get.
    pub query: Bytes,
    /// How fresh the answer must be.
    pub consistency: Consistency,
    /// Where the answer goes.
    pub responder: Responder,
}

/// What handles ask of the node's loop.
pub(crate) enum Asked {
    /// For a group, as long as it lives.
    Group(Life, Request),
    Node(Control),
}

/// What a handle asks of its group.
#[derive(Debug)]
pub(crate) enum Request {
    /// Read at a moment that only counts for the timings.
    Propose {
        proposals: Vec<Proposal>,
        asked: Option<u64>,
    },
    Start {
        command: Bytes,
        responder: Responder,
        placed: oneshot::Sender<Result<Proposed, RequestError>>,
    },
    Read(Vec<ReadRequest>),
    ChangeMembership {
        change: MembershipChange,
        responder: Responder,
    },
    Status(oneshot::Sender<Status>),
    Transfer {
        to: Option<NodeId>,
        done: oneshot::Sender<Result<NodeId, TransferFailure>>,
    },
    Snapshot(oneshot::Sender<Result<LogIndex, SnapshotError>>),
    Shutdown,
}

/// Why leadership was not handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferFailure {
    /// It was not even begun.
    #[error(transparent)]
    Refused(#[from] TransferError),
    /// The next leader was not there, or not up to date, within an election timeout. This node leads on, unless something else happened.
    #[error("node {to} did not take over in time")]
    TimedOut {
        /// Who should have.
        to: NodeId,
    },
    /// The node, or the group, is stopping or has stopped.
    #[error("the node is shutting down")]
    ShuttingDown,
}

/// How a node or a group ended, once it has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stopped(pub(crate) Option<Result<(), Arc<Fatal>>>);

/// A group that runs on this node; a node that was started by [`Raft::builder`] has one. Clones share it; it runs until [`shutdown`](Self::shutdown) is called
/// or something fatal happens, whether handles are left or not.
#[derive(Clone, Debug)]
pub struct Raft {
    id: NodeId,
    life: Life,
    address: Option<SocketAddr>,
    metrics: Metrics,
    links: Links,
}

/// What connects a handle with its group.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    pub(crate) requests: mpsc::UnboundedSender<Asked>,
    pub(crate) leader: watch::Receiver<Option<NodeId>>,
    pub(crate) addresses: watch::Receiver<BTreeMap<NodeId, String>>,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) stopped: watch::Receiver<Stopped>,
}

impl Raft {
    pub(crate) fn new(id: NodeId, life: Life, address: Option<SocketAddr>, metrics: Metrics, links: Links) -> Self {
        Raft { id, life, address, metrics, links }
    }

    /// The same handle; but the end of the group is only told when the whole node has ended.
    pub(crate) fn ends_with(mut self, stopped: watch::Receiver<Stopped>) -> Self {
        self.links.stopped = stopped;
        self
    }

    /// This node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Which group this is: [`GroupId::FIRST`] on a node with one.
    pub fn group(&self) -> GroupId {
        self.life.group
    }

    /// Where the node listens, if it does.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Counters of the node's parts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The leader of the current term, as it changes.
    pub fn leader(&self) -> watch::Receiver<Option<NodeId>> {
        self.links.leader.clone()
    }

    /// Where the members of the cluster are (`host:port`), as far as this node knows, as it changes.
    pub fn addresses(&self) -> watch::Receiver<BTreeMap<NodeId, String>> {
        self.links.addresses.clone()
    }

    /// How the other nodes take this one, as it changes: who refuses it, because its disk was lost perhaps or because it was removed.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.links.standing.clone()
    }

    /// Waits until the group has stopped, and nothing works for it any more; its state machine has been dropped. If it was started by [`Raft::builder`], waits until
    /// the node has stopped and its threads are gone.
    ///
    /// # Errors
    /// What made it stop, if nobody asked for it.
    pub async fn stopped(&self) -> Result<(), Arc<Fatal>> {
        wait_for_end(self.links.stopped.clone()).await
    }

    /// Proposes a command and waits until it is committed, and applied on this node.
    ///
    /// # Errors
    /// See [`RequestError`]: it says whether the command may have taken effect.
    pub async fn propose(&self, command: impl Into<Bytes>) -> Result<Applied, RequestError> {
        let (responder, outcome) = OneShot::responder();
        self.propose_batch(vec![Proposal { command: command.into(), responder }]);
        outcome.await.unwrap_or(Err(RequestError::OutcomeUnknown))
    }

    /// The course's `Start`: returns as soon as the command is in the leader's log, with the place it will have
    /// *if* it is ever committed. Whether it was can be seen at the state machine.
    ///
    /// # Errors
    /// On any error the command is not in the log.
    pub async fn start(&self, command: impl Into<Bytes>) -> Result<Proposed, RequestError> {
        let (placed, place) = oneshot::channel();
        self.send(Request::Start { command: command.into(), responder: Responder::ignore(), placed });
        place.await.unwrap_or(Err(RequestError::ShuttingDown))
    }

    /// Answers a query.
    ///
    /// # Errors
    /// A read has no effect, so each may be repeated.
    pub async fn read(&self, query: impl Into<Bytes>, consistency: Consistency) -> Result<Bytes, RequestError> {
        let (responder, outcome) = OneShot::responder();
        self.read_batch(vec![ReadRequest { query: query.into(), consistency, responder }]);
        outcome.await.unwrap_or(Err(RequestError::ShuttingDown)).map(|applied| applied.reply)
    }

    /// Changes who belongs to the cluster, and waits until the change is complete: the new membership is committed, and counts alone. The information about each
    /// member is a [`MemberInfo`](crate::MemberInfo), so that the others know how to reach it.
    ///
    /// # Errors
    /// [`RequestError::Change`] says why it is refused; with [`RequestError::OutcomeUnknown`] look at the [`status`](Self::status).
    pub async fn change_membership(&self, change: MembershipChange) -> Result<LogId, RequestError> {
        let (responder, outcome) = OneShot::responder();
        self.change_membership_with(change, responder);
        let applied = outcome.await.unwrap_or(Err(RequestError::OutcomeUnknown))?;
        Ok(LogId::new(applied.term, applied.index))
    }

    /// The same; the outcome goes to `responder`.
    pub fn change_membership_with(&self, change: MembershipChange, responder: Responder) {
        self.send(Request::ChangeMembership { change, responder });
    }

    /// Proposes many commands at once; outcomes go to their responders. Never waits: what is too much is answered
    /// with [`Busy`](RequestError::Busy), which says when to try again.
    pub fn propose_batch(&self, proposals: Vec<Proposal>) {
        let asked = self.metrics.timings.as_ref().map(|timings| timings.now());
        self.send(Request::Propose { proposals, asked });
    }

    /// Reads many things at once; answers go to their responders. One round of heartbeats serves all of them.
    pub fn read_batch(&self, reads: Vec<ReadRequest>) {
        self.send(Request::Read(reads));
    }

    /// What the node knows of itself and its cluster.
    ///
    /// # Errors
    /// Only [`RequestError::ShuttingDown`].
    pub async fn status(&self) -> Result<Status, RequestError> {
        let (sender, receiver) = oneshot::channel();
        self.send(Request::Status(sender));
        receiver.await.map_err(|_| RequestError::ShuttingDown)
    }

    /// Makes a snapshot of what is applied now, whatever the policy says, and then compacts the log. Writes go on meanwhile. Returns the index of the
    /// last entry that is in the snapshot, when its file is on the disk.
    ///
    /// # Errors
    /// There is none; everything else goes on as before.
    pub async fn snapshot(&self) -> Result<LogIndex, SnapshotError> {
        let (sender, receiver) = oneshot::channel();
        self.send(Request::Snapshot(sender));
        receiver.await.unwrap_or(Err(SnapshotError::ShuttingDown))
    }

    /// Has this node, which leads, hand over: to `to`, or to the node that has most of the log. Returns who leads then. Meanwhile commands wait
    /// for a moment, and are then referred to the next leader; none of them fails.
    ///
    /// # Errors
    /// See [`TransferFailure`].
    pub async fn transfer_leadership(&self, to: Option<NodeId>) -> Result<NodeId, TransferFailure> {
        let (done, outcome) = oneshot::channel();
        self.send(Request::Transfer { to, done });
        outcome.await.unwrap_or(Err(TransferFailure::ShuttingDown))
    }

    /// Asks the group to stop, and the node, if it was started by [`Raft::builder`]. If it leads, it hands over first, and waits for that no longer than an
    /// election timeout. What is in the log stays there; requests in progress are answered as unknown.
    pub fn shutdown(&self) {
        self.send(Request::Shutdown);
    }

    /// Index up to which this node has applied, for tests and monitoring.
    ///
    /// # Errors
    /// Only [`RequestError::ShuttingDown`].
    pub async fn applied(&self) -> Result<LogIndex, RequestError> {
        Ok(self.status().await?.applied_index)
    }

    fn send(&self, request: Request) {
        let asked = Asked::Group(self.life, request);
        if let Err(mpsc::error::SendError(Asked::Group(_, request))) = self.links.requests.send(asked) {
            refuse(request);
        }
    }
}

/// Waits until it is said how a node or a group has ended.
pub(crate) async fn wait_for_end(mut stopped: watch::Receiver<Stopped>) -> Result<(), Arc<Fatal>> {
    match stopped.wait_for(|stopped| stopped.0.is_some()).await {
        Ok(stopped) => stopped.0.clone().unwrap_or(Ok(())),
        Err(_) => Err(Arc::new(Fatal::ThreadLost("node"))),
    }
}

/// The group is gone, or its node: nothing of this request was or will be done.
pub(crate) fn refuse(request: Request) {
    match request {
        Request::Propose { proposals, .. } => {
            proposals.into_iter().for_each(|p| p.responder.fail(RequestError::ShuttingDown));
        }
        Request::ChangeMembership { responder, .. } => responder.fail(RequestError::ShuttingDown),
        Request::Read(reads) => reads.into_iter().for_each(|r| r.responder.fail(RequestError::ShuttingDown)),
        // Their callers see the channel close.
        Request::Start { .. }
        | Request::Status(_)
        | Request::Transfer { .. }
        | Request::Snapshot(_)
        | Request::Shutdown => {}
    }
}
