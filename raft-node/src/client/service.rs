//! The node's side of the client protocol: reads requests, hands them to the raft handle in batches, writes the
//! replies that come back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use quinn::{Connection, RecvStream, SendStream, VarInt};
use raft_core::{NodeId, Status, TransferError};
use raft_net::ClientConnection;
use tokio::sync::mpsc;

use super::protocol::{FRAME_HEADER, Frame, FrameError, FrameReader, Member, NodeStatus, Request, Response};
use super::readiness;
use super::sink::{ConnectionSink, SinkLimits};
use crate::handle::{Proposal, Raft, ReadRequest, TransferFailure};
use crate::member::MemberInfo;
use crate::reply::{ReplySink as _, RequestError, Responder};
use crate::snapshot::SnapshotError;

/// How long a connection may take to open its stream.
const STREAM_TIMEOUT: Duration = Duration::from_secs(10);

const CLOSE_DONE: VarInt = VarInt::from_u32(0);
const CLOSE_PROTOCOL: VarInt = VarInt::from_u32(1);
const CLOSE_TOO_MANY: VarInt = VarInt::from_u32(2);

/// Limits of the client service. Beyond them the node stops reading, and the transport makes the client wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceLimits {
    /// Connections at a time; more are closed at once.
    pub connections: usize,
    /// Requests without a reply, for each connection.
    pub in_flight: usize,
    /// Longest command, in bytes.
    pub request_bytes: usize,
    /// Longest query, in bytes. Unlike commands, of which the core takes only so many, all queries in progress are kept.
    pub query_bytes: usize,
    /// Bytes of replies that a client has not taken yet, for each connection.
    pub reply_bytes: usize,
}

impl Default for ServiceLimits {
    fn default() -> Self {
        ServiceLimits {
            connections: 1024,
            in_flight: 4096,
            request_bytes: 8 << 20,
            query_bytes: 64 << 10,
            reply_bytes: 16 << 20,
        }
    }
}

/// Decides at the node's edge whether a command may be proposed; the error is what the client gets instead.
pub type Admission = Arc<dyn Fn(&[u8]) -> Result<(), Response> + Send + Sync>;
/// Counters to show in the node's status.
pub type Metrics = Arc<dyn Fn() -> BTreeMap<String, u64> + Send + Sync>;

/// Serves clients; see [`run`](Self::run).
pub struct Service {
    raft: Raft,
    cluster: String,
    limits: ServiceLimits,
    admission: Admission,
    metrics: Metrics,
    connections: AtomicUsize,
}

impl Service {
    /// A service for the clients of `raft`, a group of `cluster`, which admits every command.
    pub fn new(raft: Raft, cluster: impl Into<String>, limits: ServiceLimits) -> Self {
        Service {
            raft,
            cluster: cluster.into(),
            limits,
            admission: Arc::new(|_| Ok(())),
            metrics: Arc::new(BTreeMap::new),
            connections: AtomicUsize::new(0),
        }
    }

    /// What may be proposed.
    #[must_use]
    pub fn admission(mut self, admission: Admission) -> Self {
        self.admission = admission;
        self
    }

    /// What the status shows besides the state of the protocol.
    #[must_use]
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Serves the connections that arrive on `clients`, until that channel closes. To be spawned on the node's runtime.
    pub async fn run(self, mut clients: mpsc::Receiver<ClientConnection>) {
        let service = Arc::new(self);
        while let Some(client) = clients.recv().await {
            if service.connections.load(Ordering::Relaxed) >= service.limits.connections {
                tracing::warn!(client = client.name, limit = service.limits.connections, "too many client connections");
                client.connection.close(CLOSE_TOO_MANY, b"too many connections");
                continue;
            }
            service.connections.fetch_add(1, Ordering::Relaxed);
            let service = service.clone();
            tokio::spawn(async move {
                service.serve(client).await;
                service.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }

    async fn serve(&self, client: ClientConnection) {
        let ClientConnection { connection, name } = client;
        let Ok(Ok((send, recv))) = tokio::time::timeout(STREAM_TIMEOUT, connection.accept_bi()).await else {
            connection.close(CLOSE_PROTOCOL, b"no stream was opened");
            return;
        };
        let limits = SinkLimits { requests: self.limits.in_flight, reply_bytes: self.limits.reply_bytes };
        let addresses = self.raft.addresses();
        let sink = Arc::new(ConnectionSink::new(limits, Arc::new(move |id| addresses.borrow().get(&id).cloned())));
        let mut writer = tokio::spawn(write_replies(sink.clone(), send));
        match self.read_requests(&connection, recv, &sink).await {
            Ok(()) => {
                // The client has sent all it wants: it gets its replies, unless it goes away.
                tokio::select! {
                    () = sink.idle() => sink.finish(),
                    _ = connection.closed() => sink.close(),
                }
                // An error here means that nobody is there to hear of it.
                let _ = (&mut writer).await;
                connection.close(CLOSE_DONE, b"done");
            }
            Err(ReadFailure::Protocol(error)) => {
                tracing::warn!(client = name, %error, "closing a client connection");
                connection.close(CLOSE_PROTOCOL, error.to_string().as_bytes());
            }
            Err(ReadFailure::Lost(error)) => {
                tracing::debug!(client = name, %error, "client connection lost");
                // When only the stream is gone, the connection is of no use.
                connection.close(CLOSE_PROTOCOL, error.as_bytes());
            }
        }
        sink.close();
        writer.abort();
    }

    async fn read_requests(
        &self,
        connection: &Connection,
        mut recv: RecvStream,
        sink: &Arc<ConnectionSink>,
    ) -> Result<(), ReadFailure> {
        // A command of the greatest size, its group, and the flag of a read.
        let mut reader = FrameReader::new(self.limits.request_bytes.saturating_add(FRAME_HEADER + 9));
        let mut chunks = [const { Bytes::new() }; 32];
        let mut batch = Batch::default();
        loop {
            let room = tokio::select! {
                biased;
                room = sink.room() => room.ok_or_else(|| ReadFailure::Lost("the client takes no replies".into()))?,
                // Nobody reads while there is no room, so nobody else would notice.
                reason = connection.closed() => return Err(ReadFailure::Lost(reason.to_string())),
            };
            if !batch.fill(&mut reader, room)? {
                match recv.read_chunks(&mut chunks).await.map_err(|e| ReadFailure::Lost(e.to_string()))? {
                    Some(count) => chunks[..count].iter_mut().for_each(|c| reader.push(&std::mem::take(c))),
                    None => return Ok(()),
                }
                batch.fill(&mut reader, room)?;
            }
            self.submit(&mut batch, sink).await;
        }
    }

    /// Hands everything that was read to the node: one message to its loop for all commands, one for all queries.
    async fn submit(&self, batch: &mut Batch, sink: &Arc<ConnectionSink>) {
        let requests = std::mem::take(&mut batch.requests);
        sink.expect(requests.len());
        let (mut proposals, mut reads, mut answered) = (Vec::new(), Vec::new(), false);
        for (id, request) in requests {
            match self.admit(&request) {
                Err(response) => {
                    sink.respond(id, &response);
                    answered = true;
                }
                Ok(()) => match request {
                    Request::Write { command, .. } => {
                        proposals.push(Proposal { command, responder: Responder::new(sink.clone(), id) });
                    }
                    Request::Read { consistency, query, .. } => {
                        reads.push(ReadRequest { query, consistency, responder: Responder::new(sink.clone(), id) });
                    }
                    Request::Member { change, .. } => {
                        self.raft.change_membership_with(change.into(), Responder::new(sink.clone(), id));
                    }
                    Request::Status { .. } => {
                        sink.respond(id, &self.status().await);
                        answered = true;
                    }
                    Request::Transfer { to, .. } => self.transfer(to, id, sink),
                    Request::Snapshot { .. } => self.snapshot(id, sink),
                },
            }
        }
        if !proposals.is_empty() {
            self.raft.propose_batch(proposals);
        }
        if !reads.is_empty() {
            self.raft.read_batch(reads);
        }
        if answered {
            sink.flush();
        }
    }

    fn admit(&self, request: &Request) -> Result<(), Response> {
        let group = match request {
            Request::Write { group, .. }
            | Request::Read { group, .. }
            | Request::Status { group }
            | Request::Snapshot { group }
            | Request::Transfer { group, .. }
            | Request::Member { group, .. } => *group,
        };
        if group != self.raft.group() {
            return Err(Response::BadRequest(format!("this node does not serve group {group}")));
        }
        match request {
            Request::Write { command, .. } => (self.admission)(command),
            Request::Read { query, .. } if query.len() > self.limits.query_bytes => {
                Err(Response::TooLarge { size: query.len() as u64, limit: self.limits.query_bytes as u64 })
            }
            Request::Read { .. }
            | Request::Status { .. }
            | Request::Snapshot { .. }
            | Request::Transfer { .. }
            | Request::Member { .. } => Ok(()),
        }
    }

    /// Takes as long as an election: other requests go on meanwhile.
    fn transfer(&self, to: Option<NodeId>, id: u64, sink: &Arc<ConnectionSink>) {
        let (raft, sink, addresses) = (self.raft.clone(), sink.clone(), self.raft.addresses());
        tokio::spawn(async move {
            let response = match raft.transfer_leadership(to).await {
                // Perhaps it was asked before, and the answer was lost.
                Ok(leader) | Err(TransferFailure::Refused(TransferError::Leads { to: leader })) => {
                    Response::Done(leader.0.to_le_bytes().to_vec().into())
                }
                Err(TransferFailure::ShuttingDown) => Response::ShuttingDown,
                Err(TransferFailure::Refused(TransferError::NotLeader { hint })) => {
                    Response::from_error(&RequestError::NotLeader { hint }, |id| addresses.borrow().get(&id).cloned())
                }
                Err(why) => Response::BadRequest(why.to_string()),
            };
            sink.respond(id, &response);
            sink.flush();
        });
    }

    /// Takes as long as writing all of the state: other requests go on meanwhile.
    fn snapshot(&self, id: u64, sink: &Arc<ConnectionSink>) {
        let (raft, sink) = (self.raft.clone(), sink.clone());
        tokio::spawn(async move {
            let response = match raft.snapshot().await {
                Ok(last) => Response::Done(last.0.to_le_bytes().to_vec().into()),
                Err(SnapshotError::ShuttingDown) => Response::ShuttingDown,
                Err(why) => Response::BadRequest(why.to_string()),
            };
            sink.respond(id, &response);
            sink.flush();
        });
    }

    async fn status(&self) -> Response {
        let Ok(status) = self.raft.status().await else { return Response::ShuttingDown };
        let status = self.describe(&status);
        match postcard::to_stdvec(&status) {
            Ok(body) => Response::Done(body.into()),
            Err(error) => Response::BadRequest(format!("the status cannot be encoded: {error}")),
        }
    }

    fn describe(&self, status: &Status) -> NodeStatus {
        let mut metrics = (self.metrics)();
        metrics.insert("log.start".to_owned(), status.log_start.index.0);
        let transfers = self.raft.metrics().snapshots.snapshot();
        let mut standing = self.raft.standing().borrow().clone();
        // What others say, in whatever group they belong to, is of no interest here.
        let addresses = self.raft.addresses();
        standing.refusals.retain(|id, _| addresses.borrow().contains_key(id));
        NodeStatus {
            node: self.raft.id(),
            cluster: self.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            role: status.role.to_string(),
            term: status.current_term.0,
            leader: status.leader,
            commit_index: status.commit_index.0,
            applied_index: status.applied_index.0,
            last_index: status.last_log.index.0,
            durable_index: status.durable_index.0,
            members: members(status),
            membership_index: status.membership_index.0,
            identity: status.identity,
            followers: status.followers.iter().map(|f| (f.id, f.match_index.0)).collect(),
            lags: readiness::lags(status),
            transferring_to: status.transferring_to,
            not_ready: readiness::not_ready(status, &transfers, &standing).unwrap_or_default(),
            snapshots: readiness::transfers(&transfers),
            refusals: standing.refusals.into_iter().map(|(id, refusal)| (id, refusal.reason)).collect(),
            metrics,
        }
    }
}

fn members(status: &Status) -> BTreeMap<NodeId, Member> {
    let membership = &status.membership;
    let role = |id: &NodeId| match (membership.voters().contains(id), membership.outgoing().contains(id)) {
        (true, true) => "voter",
        (true, false) if membership.is_joint() => "incoming",
        (true, false) => "voter",
        (false, true) => "outgoing",
        (false, false) => "learner",
    };
    let address = |id| MemberInfo::decode(&membership.info(id)).map(|info| info.address).unwrap_or_default();
    let member = |id: NodeId| {
        (id, Member { role: role(&id).to_owned(), address: address(id), identity: membership.identity(id) })
    };
    membership.members().into_iter().map(member).collect()
}

/// Why reading from a client ended before the client wanted it to.
enum ReadFailure {
    Protocol(FrameError),
    Lost(String),
}

impl From<FrameError> for ReadFailure {
    fn from(error: FrameError) -> Self {
        ReadFailure::Protocol(error)
    }
}

/// Requests that are handed over together.
#[derive(Default)]
struct Batch {
    requests: Vec<(u64, Request)>,
}

impl Batch {
    /// Takes complete requests, up to `room` of them. Whether there was any.
    fn fill(&mut self, reader: &mut FrameReader, room: usize) -> Result<bool, FrameError> {
        while self.requests.len() < room
            && let Some(frame) = reader.next_frame()?
        {
            let Frame { id, .. } = frame;
            self.requests.push((id, frame.into_request()?));
        }
        Ok(!self.requests.is_empty())
    }
}

async fn write_replies(sink: Arc<ConnectionSink>, mut send: SendStream) {
    while let Some(bytes) = sink.take().await {
        if send.write_chunk(bytes).await.is_err() {
            // The reader notices that the connection is gone.
            sink.close();
            return;
        }
    }
    if send.finish().is_ok() {
        // Until the client has it all, or is gone; either way there is nothing left to do.
        let _ = send.stopped().await;
    }
}
