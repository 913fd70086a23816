//! What can happen to a server.

use std::fmt;

use super::settings::{Settings, WRITE_STALL};
use crate::entries::Segment;
use crate::io::SnapshotMeta;
use crate::message::Envelope;
use crate::types::{Instant, LogId, NodeId, Term};

/// Number of a message, in the order in which messages were first sent.
pub(super) type MessageId = u32;

/// Time stands still, at this moment, between the events: see [`Raft::forget_time`](crate::Raft::forget_time).
pub(super) const NOW: Instant = Instant::from_millis(3_600_000);

/// What is on its way to a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Sent {
    /// A message of the protocol.
    Message(Envelope),
    /// A snapshot, all of it.
    Snapshot(Snapshot),
    /// The news, for the sender of a snapshot, that it has arrived.
    Arrived(Arrived),
}

/// A snapshot, as the transport brings it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Snapshot {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) term: Term,
    pub(super) epoch: u64,
    pub(super) meta: SnapshotMeta,
    /// The entries that lead to the state that it holds.
    pub(super) state: Vec<Segment>,
}

/// Who has received which snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Arrived {
    pub(super) from: NodeId,
    pub(super) to: NodeId,
    pub(super) term: Term,
    pub(super) epoch: u64,
    pub(super) last: LogId,
}

impl Sent {
    pub(super) fn from(&self) -> NodeId {
        match self {
            Sent::Message(envelope) => envelope.from,
            Sent::Snapshot(snapshot) => snapshot.from,
            Sent::Arrived(arrived) => arrived.from,
        }
    }

    pub(super) fn to(&self) -> NodeId {
        match self {
            Sent::Message(envelope) => envelope.to,
            Sent::Snapshot(snapshot) => snapshot.to,
            Sent::Arrived(arrived) => arrived.to,
        }
    }
}

/// A step of an exploration: it happens to one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// A message arrives.
    Deliver(MessageId),
    /// A heartbeat's answer arrives, so late that what it does not know of is taken for lost.
    DeliverLate(MessageId),
    /// The election timer runs out.
    ElectionTimeout,
    /// The same, when a write has been under way for so long that the disk is taken for dead.
    ElectionTimeoutStalled,
    /// The leader was not heard for the shortest election timeout: votes are given again.
    LeaseExpires,
    /// The leader's next heartbeat is due.
    HeartbeatDue,
    /// Nothing has happened for so long that all may go to sleep.
    QuiesceDue,
    /// The leader has not heard a majority for an election timeout.
    QuorumLost,
    /// It hears that its link to this server was lost.
    LinkReset(u8),
    /// It dies, and never comes back.
    Dies,
    /// The leader's disk is taken for dead.
    WriteStalled,
    /// The oldest so many writes have reached the disk, and the core is told.
    Persisted(u8),
    /// A client proposes a command.
    Propose,
    /// The leader begins the change of the membership.
    Change,
    /// A client asks to read.
    Read,
    /// Entries that were asked for are read from the disk.
    Fetched,
    /// The state machine keeps what it has applied, and the log may be forgotten up to there.
    Compact,
    /// The state machine has taken over a snapshot.
    Restored,
    /// A leader is told that its snapshot did not reach this server, which may be wrong.
    TransferFails(u8),
    /// The server crashes and starts again. Of the pending writes the oldest `kept` have reached the disk, and of the next one
    /// all but the entries after the first `torn`.
    Crash {
        /// Writes.
        kept: u8,
        /// Entries.
        torn: Option<u8>,
    },
}

impl Event {
    /// The time at which it happens: far enough from [`NOW`] for what it is about, and for nothing else.
    pub(super) fn at(self, settings: &Settings) -> Instant {
        let config = settings.config(crate::NodeId(1));
        match self {
            Event::DeliverLate(_) => NOW + config.heartbeat_interval / 10,
            Event::HeartbeatDue => NOW + config.heartbeat_interval,
            Event::QuiesceDue => NOW + config.quiesce_after.unwrap_or_default(),
            Event::LeaseExpires | Event::QuorumLost => NOW + config.election_timeout,
            Event::ElectionTimeout => NOW + config.election_timeout * 2,
            Event::ElectionTimeoutStalled | Event::WriteStalled => NOW + WRITE_STALL,
            _ => NOW,
        }
    }

    /// Whether it belongs to the history, also when it changes nothing else.
    pub(super) fn is_remembered(self) -> bool {
        matches!(self, Event::Crash { .. } | Event::LinkReset(_) | Event::Dies)
    }

    /// The message that is delivered, if one is.
    pub(super) fn message(self) -> Option<MessageId> {
        match self {
            Event::Deliver(id) | Event::DeliverLate(id) => Some(id),
            _ => None,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Deliver(_) => f.write_str("receives"),
            Event::DeliverLate(_) => f.write_str("receives, late,"),
            Event::ElectionTimeout => f.write_str("election timer runs out"),
            Event::ElectionTimeoutStalled => f.write_str("election timer runs out, and its disk hangs"),
            Event::LeaseExpires => f.write_str("has not heard the leader for an election timeout"),
            Event::HeartbeatDue => f.write_str("heartbeat is due"),
            Event::QuiesceDue => f.write_str("nothing has happened for long"),
            Event::LinkReset(peer) => write!(f, "hears that its link to n{peer} was lost"),
            Event::Dies => f.write_str("dies for good"),
            Event::QuorumLost => f.write_str("has not heard a majority for an election timeout"),
            Event::WriteStalled => f.write_str("disk hangs"),
            Event::Persisted(1) => f.write_str("its oldest write is durable"),
            Event::Persisted(n) => write!(f, "its oldest {n} writes are durable"),
            Event::Propose => f.write_str("a client proposes a command"),
            Event::Change => f.write_str("begins to change the membership"),
            Event::Read => f.write_str("a client asks to read"),
            Event::Fetched => f.write_str("entries are read from its disk"),
            Event::Compact => f.write_str("its state machine keeps what it has, and the log is compacted"),
            Event::Restored => f.write_str("its state machine has taken over the snapshot"),
            Event::TransferFails(to) => write!(f, "hears that its snapshot did not reach n{to}"),
            Event::Crash { kept, torn: None } => {
                write!(f, "crashes and restarts; {kept} of the pending writes are kept")
            }
            Event::Crash { kept, torn: Some(torn) } => {
                write!(
                    f,
                    "crashes and restarts; {kept} of the pending writes are kept, and the next with {torn} entries"
                )
            }
        }
    }
}
