//! State that belongs to a role lives inside the role's variant, and is gone when the role is.

use std::collections::{BTreeMap, VecDeque};

use crate::followers::Followers;
use crate::io::ReadId;
use crate::room::Pace;
use crate::transfer::Transfer;
use crate::types::{Instant, LogIndex, NodeId};

/// The role of a server (paper, Figure 4), with what only that role knows.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) enum RoleState {
    Follower,
    PreCandidate(Votes),
    Candidate(Votes),
    Leader(Leader),
}

/// Answers to a vote request, by voter. The candidate's own vote is not in here: it counts once it is durable.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Votes(pub(crate) BTreeMap<NodeId, bool>);

/// What a leader keeps.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Leader {
    pub(crate) progress: Followers,
    /// When to begin the next heartbeat round at the latest.
    pub(crate) heartbeat_at: Instant,
    pub(crate) reads: Reads,
    /// Leadership is being handed over.
    pub(crate) transfer: Option<Transfer>,
    /// Someone was told to stand in this term, whatever has become of that: no promise not to vote holds any more.
    pub(crate) lease_void: bool,
    /// When to tell of a commit for whose sake nothing was sent yet.
    pub(crate) news_at: Option<Instant>,
    /// When something last happened in the group, heartbeats apart.
    pub(crate) busy_at: Instant,
    /// When to hand over to a server of higher priority at the earliest.
    pub(crate) yield_at: Instant,
    /// How quickly things go on, for those who are refused. Seldom looked at, and so not in the way of the rest.
    pub(crate) pace: Box<Pace>,
}

/// Linearizable reads in progress (ReadIndex; thesis, section 6.4).
///
/// Invariants: `waiting` ascends in round; a read's round began after the read arrived.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Reads {
    /// The newest heartbeat round. Rounds begin at 1.
    pub(crate) round: u64,
    /// The newest round that a majority has answered.
    pub(crate) confirmed: u64,
    /// Arrived, and in no round yet.
    pub(crate) arrived: Vec<Reader>,
    /// Waiting for their round: read, index that it must see, round.
    pub(crate) waiting: VecDeque<(Reader, LogIndex, u64)>,
    /// When the newest rounds began, the oldest of them first; the last is `round`. Kept for leases only, and as long as a promise may last.
    pub(crate) begun: VecDeque<Instant>,
}

/// Who wants to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) enum Reader {
    /// This server.
    Own(ReadId),
    /// A follower, with the number of its request.
    Follower(NodeId, u64),
}
