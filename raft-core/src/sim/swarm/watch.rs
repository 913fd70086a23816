//! Whoever watches a run: for a text to read, or a picture to look at. Being watched changes nothing.

use std::fmt;

use crate::message::Message;
use crate::status::Role;
use crate::types::{Instant, LogIndex, Term};

/// Is told what happens, in order. Servers are numbered from 0, and times are those of the simulation.
pub trait Watch {
    /// One more line of the story.
    fn line(&mut self, at: Instant, line: fmt::Arguments<'_>);

    /// A message has arrived, or was lost on the way.
    fn message(&mut self, message: &Arrow) {
        let _ = message;
    }

    /// A server is not what it was before.
    fn server(&mut self, at: Instant, server: usize, now: Lane) {
        let _ = (at, server, now);
    }
}

/// A message on its way from one server to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrow {
    /// Who sent it.
    pub from: usize,
    /// To whom.
    pub to: usize,
    /// When it left.
    pub sent: Instant,
    /// When it arrived; `None` if it was lost.
    pub arrived: Option<Instant>,
    /// The sender's term.
    pub term: Term,
    /// What it is, in one word.
    pub kind: &'static str,
    /// How many entries it carries.
    pub entries: usize,
}

/// What a server is, for its lane in a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Not running.
    Down,
    /// Running.
    Up {
        /// Its term.
        term: Term,
        /// Its role.
        role: Role,
        /// Its commit index.
        commit: LogIndex,
    },
}

/// What a message is, in one word, and how many entries it carries.
pub(super) fn describe(message: &Message) -> (&'static str, usize) {
    match message {
        Message::PreVote(_) => ("PreVote", 0),
        Message::PreVoteReply(reply) => (if reply.granted { "would vote" } else { "would not" }, 0),
        Message::RequestVote(_) => ("RequestVote", 0),
        Message::RequestVoteReply(reply) => (if reply.granted { "vote" } else { "no vote" }, 0),
        Message::AppendEntries(append) => ("AppendEntries", append.entries.len()),
        Message::AppendAck(_) => ("ack", 0),
        Message::AppendReject(_) => ("reject", 0),
        Message::Heartbeat(_) => ("heartbeat", 0),
        Message::HeartbeatReply(_) => ("heartbeat reply", 0),
        Message::TimeoutNow(_) => ("TimeoutNow", 0),
        Message::ReadIndex(_) => ("ReadIndex", 0),
        Message::ReadIndexReply(_) => ("read index", 0),
        Message::Quiesce(_) => ("quiesce", 0),
    }
}

/// Writes the story, one line for each thing that happens, each with its time in milliseconds.
pub struct Story<F>(pub F);

impl<F: FnMut(fmt::Arguments<'_>)> Watch for Story<F> {
    fn line(&mut self, at: Instant, line: fmt::Arguments<'_>) {
        let millis = at.0 as f64 / 1e6;
        (self.0)(format_args!("{millis:11.3}  {line}"));
    }
}

impl<F> fmt::Debug for Story<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Story")
    }
}
