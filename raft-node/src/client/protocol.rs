//! What travels between a client and a node, on one bidirectional QUIC stream (ALPN `raft-client/1`).
//!
//! ```text
//! u32 LE length of the rest | u64 LE request id | u8 kind | body
//!
//! request  1 write    group u64 LE | command, exactly as it will stand in the log
//!          2 read     group u64 LE | u8: 0 linearizable, 1 stale, 2 by a lease | query
//!          3 status   group u64 LE
//!          4 transfer group u64 LE | node id u64 LE, 0 for the best
//!          5 member   group u64 LE | postcard [`MemberChange`]
//!          6 snapshot group u64 LE
//! response 128 done           reply of the state machine, or a postcard [`NodeStatus`]; to a change of the membership, postcard: its index; after a
//!                             transfer the leader's id u64 LE; after a snapshot the index of its last entry u64 LE
//!          129 not leader     postcard: option of (node id, address)
//!          130 busy           u32 LE: milliseconds after which to try again
//!          131 too large      postcard: (size, limit)
//!          132 unknown        (the command may or may not take effect)
//!          133 bad request    UTF-8 text
//!          134 shutting down
//!          135 refused        postcard: (whether it may be accepted later, UTF-8 text)
//! ```
//!
//! A client sends as many requests as it likes without waiting; responses come in any order and carry the id of their
//! request. Ids are the client's choice and should be distinct among requests in progress. A frame that is too long,
//! too short or of an unknown kind breaks the connection: nothing after it can be trusted.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use raft_core::{ChangeError, GroupId, MembershipChange, NodeId};
use serde::{Deserialize, Serialize};

use crate::handle::Consistency;
use crate::member::MemberInfo;
use crate::reply::RequestError;

/// Bytes of a frame around its body: length, id and kind.
pub const FRAME_HEADER: usize = 13;
/// What the length field counts besides the body.
const ID_AND_KIND: usize = 9;

const WRITE: u8 = 1;
const READ: u8 = 2;
const STATUS: u8 = 3;
const TRANSFER: u8 = 4;
const MEMBER: u8 = 5;
const SNAPSHOT: u8 = 6;
const DONE: u8 = 128;
const NOT_LEADER: u8 = 129;
const BUSY: u8 = 130;
const TOO_LARGE: u8 = 131;
const UNKNOWN: u8 = 132;
const BAD_REQUEST: u8 = 133;
const SHUTTING_DOWN: u8 = 134;
const REFUSED: u8 = 135;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Replicate a command.
    Write {
        /// Where.
        group: GroupId,
        /// The command.
        command: Bytes,
    },
    /// Answer a query.
    Read {
        /// Where.
        group: GroupId,
        /// How fresh.
        consistency: Consistency,
        /// The query.
        query: Bytes,
    },
    /// Tell about yourself.
    Status {
        /// In which group.
        group: GroupId,
    },
    /// Hand leadership over.
    Transfer {
        /// In which group.
        group: GroupId,
        /// To whom; to the best, if that is left open.
        to: Option<NodeId>,
    },
    /// Make a snapshot, and compact the log.
    Snapshot {
        /// In which group.
        group: GroupId,
    },
    /// Change who belongs to the cluster.
    Member {
        /// In which group.
        group: GroupId,
        /// How.
        change: MemberChange,
    },
}

/// A change of who belongs to the cluster; see [`MembershipChange`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberChange {
    /// Who is to vote from now on.
    pub voters: Vec<NodeId>,
    /// Who is to get the log and not to vote.
    pub learners: Vec<NodeId>,
    /// Who is to leave.
    pub removed: Vec<NodeId>,
    /// Where members are to be found by the others, `host:port`.
    pub addresses: Vec<(NodeId, String)>,
    /// Which nodes are meant by the ids of those who join: their [`NodeStatus::identity`].
    pub identities: Vec<(NodeId, u64)>,
    /// Do it although the cluster might not be able to go on.
    pub forced: bool,
}

impl From<MemberChange> for MembershipChange {
    fn from(change: MemberChange) -> Self {
        let MemberChange { voters, learners, removed, addresses, identities, forced } = change;
        let info = addresses.into_iter().map(|(id, address)| (id, MemberInfo { address }.encode())).collect();
        MembershipChange { voters, learners, removed, info, identities, forced }
    }
}

/// What a node responds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done; the body is the state machine's.
    Done(Bytes),
    /// Nothing happened; ask the leader.
    NotLeader {
        /// Who and where it is, as far as this node knows.
        hint: Option<(NodeId, String)>,
    },
    /// Nothing happened; try again later.
    Busy {
        /// When, about: in whole milliseconds on the wire, rounded up, up to 2^32 - 1 of them. A node says 1 ms to 1 s; whoever asks again should wait
        /// at least as long, and longer if that was in vain.
        retry_after: Duration,
    },
    /// Nothing happened; it will never be accepted.
    TooLarge {
        /// Size, in bytes.
        size: u64,
        /// Limit, in bytes.
        limit: u64,
    },
    /// The command may or may not take effect.
    Unknown,
    /// Nothing happened: the request makes no sense to this node.
    BadRequest(String),
    /// Nothing happened; the node stops, ask the others.
    ShuttingDown,
    /// Nothing happened: the change is not possible, or not now.
    Refused {
        /// Whether it may be accepted later, without anybody doing anything.
        later: bool,
        /// Why.
        why: String,
    },
}

/// What a node knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// The node.
    pub node: NodeId,
    /// Its cluster.
    pub cluster: String,
    /// Version of its program.
    pub version: String,
    /// `leader`, `follower`, `pre-candidate` or `candidate`.
    pub role: String,
    /// Its current term.
    pub term: u64,
    /// The leader of that term, if it knows one.
    pub leader: Option<NodeId>,
    /// Index of the last committed entry that it knows of.
    pub commit_index: u64,
    /// Index of the last entry that its state machine has applied.
    pub applied_index: u64,
    /// Index of the last entry in its log.
    pub last_index: u64,
    /// Index of the last entry on its disk.
    pub durable_index: u64,
    /// Who belongs to the cluster, as far as it knows.
    pub members: BTreeMap<NodeId, Member>,
    /// Index of the entry that made it so, in the log, committed or not.
    pub membership_index: u64,
    /// Which of the nodes that have had this id: 0 for one with which the cluster began.
    pub identity: u64,
    /// When it leads: the highest entry known to be on each follower's disk.
    pub followers: BTreeMap<NodeId, u64>,
    /// When it leads: what each follower lacks.
    pub lags: BTreeMap<NodeId, Lag>,
    /// When it leads: to whom it is handing over.
    pub transferring_to: Option<NodeId>,
    /// Why it cannot serve clients at present, in words; empty when it can.
    pub not_ready: String,
    /// Snapshots that are under way.
    pub snapshots: Vec<SnapshotTransfer>,
    /// Who refuses to talk to it, and why in the other's words.
    pub refusals: BTreeMap<NodeId, String>,
    /// Counters since its start, by name.
    pub metrics: BTreeMap<String, u64>,
}

/// What a follower lacks of the leader's log: entries that are not known to be on its disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// So many entries.
    pub entries: u64,
    /// So many bytes of them; 0 if the leader cannot even guess.
    pub bytes: u64,
    /// The leader has not all of them in memory: it takes the others to be as large as those that it has.
    pub is_guess: bool,
    /// It gets a snapshot, because the log does not hold (any more) what it lacks.
    pub needs_snapshot: bool,
    /// For so many milliseconds it was not heard; 0 when that is no longer than usual, or the group sleeps. What it lacks is then what it lacked before.
    pub silent_ms: u64,
}

/// A snapshot that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotTransfer {
    /// The other end.
    pub peer: NodeId,
    /// Whether this node sends it, or receives it.
    pub outgoing: bool,
    /// Bytes that have been sent, or received.
    pub bytes: u64,
    /// Bytes in all.
    pub total: u64,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// `voter`; `learner`, who gets the log and has no vote; or, while the membership changes, `incoming` and `outgoing` voters.
    pub role: String,
    /// Where the others reach it, `host:port`; empty when that is not known.
    pub address: String,
    /// Which of the nodes that have had this id is meant: its [`NodeStatus::identity`].
    pub identity: u64,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Longer than agreed.
    #[error("a frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Length that the frame claims, in bytes.
        length: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// Too short for what it has to contain.
    #[error("a frame of kind {0} is too short")]
    TooShort(u8),
    /// No such kind, or not in this direction.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// The body is not what the kind demands.
    #[error("a frame of kind {0} has a malformed body")]
    Body(u8),
}

/// One frame, still undecoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Id of the request.
    pub id: u64,
    kind: u8,
    body: Bytes,
}

/// Cuts a stream of bytes into frames. It holds no more than was received, whatever lengths are claimed.
#[derive(Debug)]
pub struct FrameReader {
    buf: BytesMut,
    limit: usize,
}

impl FrameReader {
    /// Refuses frames of more than `limit` bytes (without the length field).
    pub fn new(limit: usize) -> Self {
        FrameReader { buf: BytesMut::new(), limit }
    }

    /// Takes what arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    /// The next complete frame, if there is one. After an error the stream is of no further use.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(&length) = self.buf.first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(length) as usize;
        if length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        if length < ID_AND_KIND {
            return Err(FrameError::TooShort(0));
        }
        if self.buf.len() < 4 + length {
            return Ok(None);
        }
        self.buf.advance(4);
        let mut body = self.buf.split_to(length).freeze();
        let (id, kind) = (body.get_u64_le(), body.get_u8());
        Ok(Some(Frame { id, kind, body }))
    }
}

impl Frame {
    /// Reads it as a request.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn into_request(self) -> Result<Request, FrameError> {
        let Frame { kind, mut body, .. } = self;
        let too_short = |_| FrameError::TooShort(kind);
        if !(WRITE..=SNAPSHOT).contains(&kind) {
            return Err(FrameError::Kind(kind));
        }
        let group = GroupId(body.try_get_u64_le().map_err(too_short)?);
        Ok(match kind {
            WRITE => Request::Write { group, command: body },
            READ => {
                let consistency = match body.try_get_u8().map_err(too_short)? {
                    0 => Consistency::Linearizable,
                    1 => Consistency::Stale,
                    2 => Consistency::Lease,
                    _ => return Err(FrameError::Body(kind)),
                };
                Request::Read { group, consistency, query: body }
            }
            MEMBER => {
                let Ok((change, [])) = postcard::take_from_bytes(&body) else { return Err(FrameError::Body(kind)) };
                Request::Member { group, change }
            }
            TRANSFER => {
                let to = body.try_get_u64_le().map_err(too_short)?;
                if !body.is_empty() {
                    return Err(FrameError::Body(kind));
                }
                Request::Transfer { group, to: Some(NodeId(to)).filter(|to| to.0 != 0) }
            }
            STATUS if body.is_empty() => Request::Status { group },
            SNAPSHOT if body.is_empty() => Request::Snapshot { group },
            _ => return Err(FrameError::Body(kind)),
        })
    }

    /// Reads it as a response.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn into_response(self) -> Result<Response, FrameError> {
        let Frame { kind, body, .. } = self;
        let malformed = |_| FrameError::Body(kind);
        Ok(match kind {
            DONE => Response::Done(body),
            NOT_LEADER => Response::NotLeader { hint: postcard::from_bytes(&body).map_err(malformed)? },
            TOO_LARGE => {
                let (size, limit) = postcard::from_bytes(&body).map_err(malformed)?;
                Response::TooLarge { size, limit }
            }
            REFUSED => {
                let (later, why) = postcard::from_bytes(&body).map_err(malformed)?;
                Response::Refused { later, why }
            }
            BAD_REQUEST => Response::BadRequest(String::from_utf8_lossy(&body).into_owned()),
            BUSY => {
                let millis = <[u8; 4]>::try_from(&body[..]).map_err(|_| FrameError::Body(kind))?;
                Response::Busy { retry_after: Duration::from_millis(u32::from_le_bytes(millis).into()) }
            }
            UNKNOWN | SHUTTING_DOWN if !body.is_empty() => return Err(FrameError::Body(kind)),
            UNKNOWN => Response::Unknown,
            SHUTTING_DOWN => Response::ShuttingDown,
            _ => return Err(FrameError::Kind(kind)),
        })
    }
}

impl Request {
    /// Appends the request as a frame. `None` (and nothing appended) if it is longer than a frame can be (4 GiB).
    pub fn encode_to(&self, id: u64, out: &mut BytesMut) -> Option<()> {
        match self {
            Request::Write { group, command } => frame(out, id, WRITE, &[&group.0.to_le_bytes(), command]),
            Request::Read { group, consistency, query } => {
                let consistency = match consistency {
                    Consistency::Linearizable => 0,
                    Consistency::Stale => 1,
                    Consistency::Lease => 2,
                };
                frame(out, id, READ, &[&group.0.to_le_bytes(), &[consistency], query])
            }
            Request::Status { group } => frame(out, id, STATUS, &[&group.0.to_le_bytes()]),
            Request::Snapshot { group } => frame(out, id, SNAPSHOT, &[&group.0.to_le_bytes()]),
            Request::Member { group, change } => {
                let change = postcard::to_stdvec(change).ok()?;
                frame(out, id, MEMBER, &[&group.0.to_le_bytes(), &change])
            }
            Request::Transfer { group, to } => {
                let to = to.map_or(0, |to| to.0);
                frame(out, id, TRANSFER, &[&group.0.to_le_bytes(), &to.to_le_bytes()])
            }
        }
    }
}

impl Response {
    /// Appends the response as a frame.
    pub fn encode_to(&self, id: u64, out: &mut BytesMut) {
        let (kind, text) = match self {
            Response::Done(body) => return encode_done(id, body, out),
            Response::NotLeader { hint } => return encode_parts(id, NOT_LEADER, hint, out),
            Response::Refused { later, why } => return encode_parts(id, REFUSED, &(later, why), out),
            Response::Busy { retry_after } => return encode_busy(id, *retry_after, out),
            Response::TooLarge { size, limit } => return encode_parts(id, TOO_LARGE, &(size, limit), out),
            Response::BadRequest(why) => (BAD_REQUEST, why.as_str()),
            Response::Unknown => (UNKNOWN, ""),
            Response::ShuttingDown => (SHUTTING_DOWN, ""),
        };
        // A short text fits into a frame.
        let _ = frame(out, id, kind, &[text.as_bytes()]);
    }

    /// The response to a request that failed. `address` tells where a node can be reached.
    pub fn from_error(error: &RequestError, address: impl Fn(NodeId) -> Option<String>) -> Self {
        match *error {
            RequestError::NotLeader { hint } => {
                Response::NotLeader { hint: hint.and_then(|id| Some((id, address(id)?))) }
            }
            RequestError::Busy { retry_after } => Response::Busy { retry_after },
            RequestError::TooLarge { size, limit } => Response::TooLarge { size: size as u64, limit: limit as u64 },
            RequestError::ShuttingDown => Response::ShuttingDown,
            RequestError::Change(error) => Response::Refused { later: may_pass(&error), why: error.to_string() },
            // Whatever cannot be told more exactly.
            _ => Response::Unknown,
        }
    }
}

/// Whether what stands in the way of a change may go away by itself.
fn may_pass(error: &ChangeError) -> bool {
    matches!(
        error,
        ChangeError::TooEarly
            | ChangeError::InProgress { .. }
            | ChangeError::Transferring { .. }
            | ChangeError::Silent(_)
            | ChangeError::NotCaughtUp { .. }
            | ChangeError::QuorumAtRisk { .. }
            | ChangeError::NoWayBack { .. }
    )
}

/// Appends a [`Response::Done`], without the detour over owned bytes.
pub fn encode_done(id: u64, body: &[u8], out: &mut BytesMut) {
    if frame(out, id, DONE, &[body]).is_none() {
        // No state machine should answer with 4 GiB, but the client must not wait for ever.
        Response::BadRequest("the answer is longer than a frame can be".into()).encode_to(id, out);
    }
}

/// In whole milliseconds, rounded up: whoever waits as long has waited long enough.
fn encode_busy(id: u64, retry_after: Duration, out: &mut BytesMut) {
    let millis = u32::try_from(retry_after.as_nanos().div_ceil(1_000_000)).unwrap_or(u32::MAX);
    // Four bytes fit into a frame.
    let _ = frame(out, id, BUSY, &[&millis.to_le_bytes()]);
}

fn encode_parts<T: Serialize>(id: u64, kind: u8, parts: &T, out: &mut BytesMut) {
    // Writing plain numbers and a short text to memory does not fail; an empty body would only be refused by the client.
    let body = postcard::to_stdvec(parts).unwrap_or_default();
    let _ = frame(out, id, kind, &[&body]);
}

fn frame(out: &mut BytesMut, id: u64, kind: u8, parts: &[&[u8]]) -> Option<()> {
    let length = ID_AND_KIND + parts.iter().map(|part| part.len()).sum::<usize>();
    let header = u32::try_from(length).ok()?.to_le_bytes();
    out.reserve(4 + length);
    out.extend_from_slice(&header);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&[kind]);
    parts.iter().for_each(|part| out.extend_from_slice(part));
    Some(())
}

#[cfg(test)]
mod tests;
