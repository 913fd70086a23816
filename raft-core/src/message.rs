//! What nodes say to each other.

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

use crate::entries::Entries;
use crate::types::{LogId, LogIndex, NodeId, Term};

/// In a reply: the request was of a term that is over, and the reply tells of the newer term and nothing else. Epochs begin at 1.
pub(crate) const NO_EPOCH: u64 = 0;

/// A message with its sender, its receiver and the sender's term.
///
/// Every message carries the sender's `current_term`, so the rule "a newer term means: become a follower" is applied in
/// one place, before the body is looked at (paper, section 5.1).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Envelope {
    /// Who says it. The transport has verified it against the connection.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// The sender's current term when the message was made.
    pub term: Term,
    /// What is said.
    pub body: Message,
}

/// The body of a message. Requests and replies are separate variants, and no field has two meanings.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// "Would you vote for me?" Sent before a candidate raises its term, so that a server that cannot win does not
    /// disturb a working leader (thesis, section 9.6). The term in question is the envelope's plus one.
    PreVote(VoteRequest),
    /// Answer to [`Message::PreVote`].
    PreVoteReply(VoteReply),
    /// RequestVote (paper, section 5.2), in the envelope's term.
    RequestVote(VoteRequest),
    /// Answer to [`Message::RequestVote`].
    RequestVoteReply(VoteReply),
    /// AppendEntries with entries, or a probe without (paper, section 5.3).
    AppendEntries(AppendEntries),
    /// AppendEntries was accepted, and what it acknowledges is durable.
    AppendAck(AppendAck),
    /// AppendEntries was refused: the logs do not match at `prev_log`.
    AppendReject(AppendReject),
    /// "I lead": fills silence, tells of commits, and confirms leadership for reads. It implies nothing about the log.
    Heartbeat(Heartbeat),
    /// Answer to a [`Heartbeat`] that asked for one.
    HeartbeatReply(HeartbeatReply),
    /// "Campaign at once": the leader hands over (thesis, section 3.10).
    TimeoutNow(TimeoutNow),
    /// "What must I have applied, to read what is newest?" (thesis, section 6.4: a follower asks the leader, and reads locally).
    ReadIndex(ReadIndex),
    /// Answer to [`Message::ReadIndex`], once the leader has confirmed that it still leads.
    ReadIndexReply(ReadIndexReply),
    /// "Nothing happens here: I shall be silent, and you need not miss me." See [`Config::quiesce_after`](crate::Config::quiesce_after).
    Quiesce(Quiesce),
}

/// Arguments of RequestVote and of its pre-vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VoteRequest {
    /// The candidate's last entry, for the check of section 5.4.1.
    pub last_log: LogId,
    /// The leader itself asked for this election ([`TimeoutNow`]): a server that hears a leader votes all the same (thesis, section
    /// 4.2.3). Never set in a pre-vote.
    pub transfer: bool,
}

/// Answer to a vote request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct VoteReply {
    /// The term that was asked about. An answer to another election than the current one counts for nothing.
    pub election: Term,
    /// Whether the vote is given.
    pub granted: bool,
}

/// Arguments of AppendEntries.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AppendEntries {
    /// Which life of the follower, in the eyes of this leader, this belongs to; replies echo it. A member that was removed and added
    /// again in the same term gets a new one, so that acknowledgements of its former life count for nothing.
    pub epoch: u64,
    /// Number of this message within the epoch; a rejection echoes it, and one that is older than the latest rewind is stale.
    pub seq: u64,
    /// The entry before the first of `entries`.
    pub prev_log: LogId,
    /// The leader's commit index.
    pub leader_commit: LogIndex,
    /// Entries `prev_log.index + 1 ..`; may be empty (a probe).
    pub entries: Entries,
}

/// "Everything up to `match_index` equals your log and is on my disk." Acknowledgements are cumulative, and may
/// answer several appends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct AppendAck {
    /// Echo of [`AppendEntries::epoch`].
    pub epoch: u64,
    /// The highest index known to match and durable.
    pub match_index: LogIndex,
}

/// "I have nothing, or something else, at `prev_log`." Carries the follower's term runs, from which the
/// leader computes the point where the logs part, in one round trip.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct AppendReject {
    /// Echo of [`AppendEntries::epoch`]; 0, which is no epoch, when the append's term is over.
    pub epoch: u64,
    /// Echo of [`AppendEntries::seq`].
    pub seq: u64,
    /// Where the newest of `runs` ends: the follower's last index, or the refused `prev_log.index` if that is lower.
    pub last_index: LogIndex,
    /// The follower's commit index: the logs match at least up to here (Leader Completeness, paper, section 5.4.3).
    pub commit_index: LogIndex,
    /// The newest term runs that begin at or below the refused `prev_log.index`, oldest first: each is the first entry of its
    /// term. Bounded by [`Config::max_reject_runs`](crate::Config::max_reject_runs).
    pub runs: Vec<LogId>,
}

/// A sign of life from the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Heartbeat {
    /// Echo of this in replies proves that they belong to the same life of the follower as in [`AppendEntries::epoch`].
    pub epoch: u64,
    /// `min(match_index of the receiver, commit_index)`: safe to adopt without a look at the log.
    pub commit: LogIndex,
    /// Number of the round that this heartbeat belongs to, or `None` when no answer is wanted (news of a commit).
    /// An answer to round r proves that the sender still led when it began round r (thesis, section 6.4).
    pub round: Option<u64>,
}

/// Answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct HeartbeatReply {
    /// Echo of [`Heartbeat::epoch`]; 0, which is no epoch, when the heartbeat's term is over.
    pub epoch: u64,
    /// Echo of [`Heartbeat::round`].
    pub round: u64,
    /// Up to here the log is *known* to match the leader's, durable or not: tells an append that is lost from one
    /// that waits for a slow disk.
    pub received: LogIndex,
    /// As in [`AppendAck`]: known to match, and durable. Makes up for an acknowledgement that was lost.
    pub match_index: LogIndex,
    /// For so many milliseconds from now on, by its own clock, this server votes for nobody, unless the leader itself asks for an
    /// election; zero without [`Config::lease`](crate::Config::lease).
    pub promise_ms: u32,
    /// [`Config::priority`](crate::Config::priority) of this server.
    pub priority: u8,
    /// Number of the time in which this server is awake; a [`Quiesce`] that does not name it is of the past.
    pub vigil: u64,
}

/// Tells a follower that is to lead from now on that it must not wait for its election timer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct TimeoutNow {
    /// The leader's last entry. A server with another one does not stand: it would not be elected, or the leader has gone on since.
    pub last_log: LogId,
}

/// A follower's request for a read index; it may stand for many reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ReadIndex {
    /// Number of the request; the numbers of one life of a server ascend, and begin anywhere.
    pub id: u64,
}

/// "When your request arrived, nothing above `index` was committed": the leader led the term of the envelope then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct ReadIndexReply {
    /// Echo of [`ReadIndex::id`].
    pub id: u64,
    /// What must be applied before the reads of this request, and of all before it, are answered.
    pub index: LogIndex,
}

/// Sends a follower to sleep that has the whole log, all of it committed. Wants no answer: a follower to whom it does not apply goes on as
/// before, and when its election timer runs out, the question who would vote for it wakes the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct Quiesce {
    /// The leader's last entry, which is committed. A follower with another one stays awake.
    pub last: LogId,
    /// Echo of [`HeartbeatReply::vigil`]: a follower that has been woken or restarted since, or whose link was reset, stays awake. The leader may have died
    /// meanwhile, and nobody would say so again.
    pub vigil: u64,
}
