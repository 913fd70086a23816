//! Raft, as a pure state machine.
mod config;
mod entries;
mod io;
mod membership;
mod message;
mod types;

pub use config::{Config, ConfigError};
pub use entries::{ENTRY_HEADER, Entries, EntryError, EntryKind, EntryRef, Segment};
pub use io::{
    Anomaly, Event, Fetch, FetchId, Input, Output, ProposeError, Proposed, ReadError, ReadId, ReadOutcome, Recovered,
    StepDownReason, Write,
};
pub use membership::Membership;
pub use message::{
    AppendAck, AppendEntries, AppendReject, Envelope, Heartbeat, HeartbeatReply, Message, VoteReply, VoteRequest,
};
pub use types::{GroupId, HardState, Instant, LogId, LogIndex, NodeId, Term, WriteSeq};
