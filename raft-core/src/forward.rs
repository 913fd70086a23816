//! Linearizable reads at a follower: it asks the leader for a read index, and reads locally once it has applied that much (thesis, section 6.4).

use std::collections::VecDeque;

use crate::io::{Anomaly, ReadId, ReadOutcome, WakeReason};
use crate::message::{Message, ReadIndex, ReadIndexReply};
use crate::raft::Raft;
use crate::role::{Reader, RoleState};
use crate::types::{Instant, LogIndex, NodeId};

/// Reads that a server asks the leader about.
///
/// A request stands for all reads that wait when it leaves. So an answer to it, however late, is good for all reads that had arrived before it
/// left, and for no other.
///
/// Invariants: `waiting` ascends in `request`, and those in no request yet come last.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Forwarded {
    /// Number of the first request of this life. It is drawn, so that answers to a former life of this server mean nothing.
    first: u64,
    /// Number of the next one.
    next: u64,
    waiting: VecDeque<Asked>,
    /// When the last request left.
    asked_at: Instant,
}

/// A read, and the first request that stands for it.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Asked {
    read: ReadId,
    since: Instant,
    request: Option<u64>,
}

impl Forwarded {
    /// Nobody waits yet; requests are numbered from `first` on.
    pub(crate) fn new(first: u64) -> Self {
        Forwarded { first, next: first, waiting: VecDeque::new(), asked_at: Instant(0) }
    }

    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whoever is a follower no more has to do with its reads itself.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Reader> {
        self.waiting.drain(..).map(|asked| Reader::Own(asked.read))
    }

    /// Those in no request yet are in the next one, which goes to someone who has heard of none of them.
    fn ask_anew(&mut self) {
        self.waiting.iter_mut().for_each(|asked| asked.request = None);
    }

    /// What time it is decides when to ask again, and nothing else: see [`Raft::forget_time`].
    #[cfg(feature = "sim")]
    pub(crate) fn forget_time(&mut self, now: Instant) {
        // Names every field, so that a new one has to be thought of here.
        let Forwarded { first: _, next: _, waiting, asked_at } = self;
        for asked in waiting {
            let Asked { read: _, since, request: _ } = asked;
            *since = now;
        }
        *asked_at = now;
    }
}

impl Raft {
    /// A read has come to a server that does not lead.
    pub(crate) fn forward_read(&mut self, read: ReadId) {
        self.forwarded.waiting.push_back(Asked { read, since: self.now, request: None });
    }

    /// Asks the leader about reads that are in no request yet, at once; and about all of them when it has not answered for a while. A read that has waited
    /// for two election timeouts is given up.
    #[inline]
    pub(crate) fn ask_leader(&mut self) {
        if !self.forwarded.is_empty() {
            self.ask_leader_for_those_who_wait();
        }
    }

    fn ask_leader_for_those_who_wait(&mut self) {
        let patience = self.config.election_timeout.saturating_mul(2);
        let Forwarded { waiting, asked_at, next, .. } = &mut self.forwarded;
        while let Some(asked) = waiting.pop_front_if(|asked| self.now.since(asked.since) >= patience) {
            self.out.reads.push(ReadOutcome::Lost { id: asked.read });
        }
        let Some(leader) = self.leader.filter(|leader| *leader != self.config.id) else { return };
        let Some(newest) = waiting.back() else { return };
        if newest.request.is_some() && self.now.since(*asked_at) < self.config.heartbeat_interval {
            return;
        }
        let id = *next;
        *next += 1;
        *asked_at = self.now;
        waiting.iter_mut().rev().take_while(|asked| asked.request.is_none()).for_each(|asked| asked.request = Some(id));
        self.send(leader, Message::ReadIndex(ReadIndex { id }));
    }

    /// When [`ask_leader`](Self::ask_leader) has something to do at the latest.
    pub(crate) fn forwarded_deadline(&self) -> Option<Instant> {
        let oldest = self.forwarded.waiting.front()?;
        let given_up = oldest.since + self.config.election_timeout.saturating_mul(2);
        let again = self.forwarded.asked_at + self.config.heartbeat_interval;
        Some(if self.leader.is_some() { given_up.min(again) } else { given_up })
    }

    /// There is no leader any more, or another one: whoever is asked next knows of nothing.
    pub(crate) fn forget_requests(&mut self) {
        self.forwarded.ask_anew();
    }

    /// A follower wants to read. If it has asked before and is in no round yet, this request stands for that one too.
    pub(crate) fn on_read_index(&mut self, from: NodeId, request: ReadIndex) {
        if self.is_leader() {
            self.rouse(WakeReason::Message);
        }
        let RoleState::Leader(leader) = &mut self.role else { return };
        let arrived = &mut leader.reads.arrived;
        let reader = Reader::Follower(from, request.id);
        match arrived.iter_mut().find(|other| matches!(other, Reader::Follower(id, _) if *id == from)) {
            Some(other) => *other = reader,
            None => arrived.push(reader),
        }
    }

    /// The leader has confirmed that it led when this request arrived.
    pub(crate) fn on_read_index_reply(&mut self, from: NodeId, reply: ReadIndexReply) {
        if reply.index > LogIndex::MAX {
            return self.reject(from, Anomaly::OutOfRange);
        }
        let forwarded = &mut self.forwarded;
        if !(forwarded.first..forwarded.next).contains(&reply.id) {
            return;
        }
        let covered = |asked: &mut Asked| asked.request.is_some_and(|id| id <= reply.id);
        while let Some(asked) = forwarded.waiting.pop_front_if(covered) {
            self.out.reads.push(ReadOutcome::Ready { id: asked.read, index: reply.index });
        }
    }
}
