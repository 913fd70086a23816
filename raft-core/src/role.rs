//! State that belongs to a role lives inside the role's variant, and is gone when the role is.

use std::collections::{BTreeMap, VecDeque};

use crate::io::ReadId;
use crate::progress::Progress;
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
    pub(crate) progress: BTreeMap<NodeId, Progress>,
    /// When to begin the next heartbeat round at the latest.
    pub(crate) heartbeat_at: Instant,
    pub(crate) reads: Reads,
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
    pub(crate) arrived: Vec<ReadId>,
    /// Waiting for their round: read, index that it must see, round.
    pub(crate) waiting: VecDeque<(ReadId, LogIndex, u64)>,
}
