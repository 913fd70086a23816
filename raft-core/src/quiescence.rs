//! A group in which nothing happens goes to sleep: no heartbeats, no election timers, nothing on the wire.
//!
//! The leader decides when everybody has everything (on disk, committed, told), says so once ([`Quiesce`]), and stops its heartbeats and
//! CheckQuorum; a follower to whom that applies stops its election timer. Safety does not depend on it: nobody votes more readily, no lease is
//! prolonged, and a read still needs a round of heartbeats. What is given up is that a dead leader is missed by itself, so liveness is
//! shared with the transport, which reports links that are lost ([`Input::LinkReset`](crate::Input::LinkReset)):
//!
//! - Whoever sleeps has slept since a word of the leader that was sent after this follower had last heard of a lost link, been woken, or restarted:
//!   each such time has a number ([`HeartbeatReply::vigil`](crate::HeartbeatReply::vigil)), and the word names it. So a leader that dies later is
//!   reported later.
//! - One that is awake and hears nobody asks who would vote for it. Those who sleep refuse that, and wake; if the leader lives, its
//!   heartbeat comes long before anyone asks again, and otherwise they agree the next time.
//!
//! The idea is that of `CockroachDB`; the numbers, and that sleepers refuse the first question, are for links that lose and delay.

use crate::io::{Event, WakeReason};
use crate::message::{Message, Quiesce};
use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::{Instant, LogId, NodeId};

impl Raft {
    /// As the leader, when a heartbeat is due: sends everybody to sleep instead if nothing has happened for long enough, and nothing can.
    pub(crate) fn quiesces(&mut self) -> bool {
        let Some(after) = self.config.quiesce_after else { return false };
        let (now, settled) = (self.now, self.is_settled());
        let RoleState::Leader(leader) = &mut self.role else { return false };
        if self.quiesced || now < leader.heartbeat_at {
            return self.quiesced;
        }
        if !settled {
            leader.busy_at = now;
        }
        if now.since(leader.busy_at) < after || !settled {
            return false;
        }
        let last = self.log.last_id();
        self.with_each_progress(|raft, peer, progress| {
            let vigil = progress.vigil.unwrap_or_default();
            raft.send(peer, Message::Quiesce(Quiesce { last, vigil }));
        });
        self.begin_sleep();
        true
    }

    /// Whether all members have all there is, durably and applied here, have answered lately, and nobody wants anything. Nothing of that can change
    /// while all sleep.
    fn is_settled(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let (last, round) = (self.log.last_index(), leader.reads.round);
        let log = self.own_term_committed() && self.log.commit == last && self.log.applied == last;
        let disk = self.durability.is_idle() && self.durability.durable() == last && self.restoring.is_empty();
        let reads = leader.reads.arrived.is_empty() && leader.reads.waiting.is_empty();
        let stays = leader.transfer.is_none() && leader.news_at.is_none() && !self.memberships.current().is_joint();
        // Else it could never hand over to whoever should rather lead.
        let yields_to = |id, priority| priority > self.config.priority && self.memberships.current().is_voter(id);
        let mut followers = leader.progress.iter();
        let all = followers.all(|(id, p)| p.is_settled(last, round) && !yields_to(id, p.priority));
        log && disk && reads && stays && all
    }

    /// The leader goes to sleep, and so does whoever has what it has.
    pub(crate) fn on_quiesce(&mut self, from: NodeId, quiesce: Quiesce) {
        if self.quiesced && self.leader == Some(from) {
            // Once more, or an older one: this leader has said nothing else since.
            return;
        }
        if self.follow(from) && quiesce.vigil == self.vigil && self.may_sleep(quiesce.last) {
            // Of the last commit it may not have heard yet.
            self.log.commit_to(quiesce.last.index);
            self.verified = self.verified.max(self.log.commit);
            self.begin_sleep();
        }
    }

    /// Whether this follower's log is what the leader says it is, on its disk, and nobody here waits for the leader.
    fn may_sleep(&self, last: LogId) -> bool {
        let same = self.log.last_id() == last && self.durability.durable() == last.index;
        let idle = self.durability.is_idle() && self.restoring.is_empty() && self.forwarded.is_empty();
        self.config.quiesce_after.is_some() && same && idle
    }

    fn begin_sleep(&mut self) {
        self.quiesced = true;
        self.out.events.push(Event::Quiesced { term: self.hard_state.current_term });
    }

    /// Returns whether this server slept.
    pub(crate) fn end_sleep(&mut self, reason: WakeReason) -> bool {
        let slept = std::mem::take(&mut self.quiesced);
        if slept {
            self.vigil = self.vigil.wrapping_add(1);
            self.out.events.push(Event::Woken { term: self.hard_state.current_term, reason });
        }
        slept
    }

    /// Something happens in the group. A leader that slept sends heartbeats again, at once; a follower begins to wait for them. Neither can have
    /// heard anything, so for an election timeout neither holds that against the others.
    pub(crate) fn rouse(&mut self, reason: WakeReason) {
        let now = self.now;
        if let RoleState::Leader(leader) = &mut self.role {
            leader.busy_at = now;
        }
        if !self.end_sleep(reason) {
            return;
        }
        if let RoleState::Leader(leader) = &mut self.role {
            leader.heartbeat_at = now;
            leader.progress.values_mut().for_each(|progress| progress.presumed_present(now));
        } else {
            self.leader_heard_at = now;
            self.reset_election_timer();
        }
    }

    /// For a leader that is about to end while its links live on: if the group sleeps, everybody is told that it leads, once more, and so will miss it. One that
    /// is awake is missed anyway.
    pub fn wake_others(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.stirred = true;
        if self.quiesced && self.is_leader() {
            self.rouse(WakeReason::Request);
        }
    }

    /// A link was lost or made anew. What was on its way to a follower is to be sent again; and nobody sleeps who relies on whoever is at the
    /// other end: a leader relies on all members, a follower on its leader.
    pub(crate) fn link_reset(&mut self, peer: NodeId) {
        if let Some(progress) = self.progress_mut(peer) {
            progress.link_reset();
            self.rouse(WakeReason::LinkReset);
        } else if self.quiesced && self.leader == Some(peer) {
            self.rouse(WakeReason::LinkReset);
        } else if !self.quiesced && self.config.quiesce_after.is_some() {
            // Whatever a leader has said before, it may be dead by now.
            self.vigil = self.vigil.wrapping_add(1);
        }
    }

    /// Panics when an invariant is broken.
    pub(crate) fn check_quiescence(&self) {
        if !self.quiesced {
            return;
        }
        let last = self.log.last_index();
        assert_eq!(self.log.commit, last, "sleeps over what is not committed: {self:?}");
        assert_eq!(self.durability.durable(), last, "sleeps over what is not durable: {self:?}");
        assert!(self.leader.is_some() && self.forwarded.is_empty(), "sleeps, and somebody waits: {self:?}");
        match &self.role {
            RoleState::Follower => {}
            RoleState::Leader(leader) => {
                let reads = leader.reads.arrived.is_empty() && leader.reads.waiting.is_empty();
                assert!(reads && leader.transfer.is_none(), "sleeps, and somebody waits: {self:?}");
                assert!(leader.news_at.is_none(), "sleeps, and has news: {self:?}");
                let behind = leader.progress.values().any(|progress| progress.match_index != last);
                assert!(!behind, "sleeps, and a follower lacks something: {self:?}");
            }
            RoleState::PreCandidate(_) | RoleState::Candidate(_) => panic!("stands, and sleeps: {self:?}"),
        }
    }
}
