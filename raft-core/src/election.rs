//! Elections: pre-vote, vote, and who may be elected (paper, sections 5.2 and 5.4.1; thesis, sections 4.2.3 and 9.6).

use crate::io::{Event, StepDownReason, WakeReason};
use crate::message::{Envelope, Message, VoteReply, VoteRequest};
use crate::raft::Raft;
use crate::role::{RoleState, Votes};
use crate::types::{HardState, Instant, NodeId, Term};

impl Raft {
    /// A server that was held back, and was told nothing, may take part from now on: an election timeout begins, as when it was started. A leader goes on leading.
    pub fn restart_election_timer(&mut self, now: Instant) {
        self.now = self.now.max(now);
        self.reset_election_timer();
    }

    /// The election timer ran out: ask the others, first whether it makes sense at all.
    pub(crate) fn campaign(&mut self) {
        self.reset_election_timer();
        self.forget_leader();
        if !self.may_stand() {
            return self.ask_without_standing();
        }
        let Some(term) = self.hard_state.current_term.next() else { return };
        self.out.events.push(Event::Campaigning { term, pre_vote: self.config.pre_vote });
        if self.config.pre_vote {
            self.role = RoleState::PreCandidate(Votes::default());
            self.ask_all();
            self.tally();
        } else {
            self.stand(term, false);
        }
    }

    /// Who may not stand cannot win, but who sleeps must hear that someone misses the leader: it may have told everyone else to sleep, and nobody would
    /// ever speak to this server again.
    fn ask_without_standing(&mut self) {
        let is_member = self.memberships.current().has_member(self.config.id, self.config.identity);
        if self.config.quiesce_after.is_some() && is_member {
            self.ask_all();
        }
    }

    fn ask_all(&mut self) {
        let request = VoteRequest { last_log: self.log.last_id(), transfer: false };
        self.for_each_voter(|raft, peer| raft.send(peer, Message::PreVote(request)));
    }

    /// The leader hands over: stand at once. Whatever comes of it, the next election of this server is an ordinary one.
    pub(crate) fn campaign_for_transfer(&mut self) {
        let Some(term) = self.hard_state.current_term.next().filter(|_| self.may_stand()) else { return };
        self.forget_leader();
        self.out.events.push(Event::Campaigning { term, pre_vote: false });
        self.stand(term, true);
    }

    /// Only voters do. A server whose disk hangs would be elected, and hang; one that takes over a snapshot lacks what is committed.
    fn may_stand(&self) -> bool {
        self.may_campaign() && !self.disk_hangs() && !self.is_incomplete()
    }

    /// Whether the disk has not finished a write for longer than any should take.
    pub(crate) fn disk_hangs(&self) -> bool {
        self.durability.stalled_at(self.config.write_stall_limit()).is_some_and(|at| self.now >= at)
    }

    /// Begins a real election: the new term and the vote for oneself are one write, and nothing leaves before it is durable.
    fn stand(&mut self, term: Term, transfer: bool) {
        self.hard_state = HardState { current_term: term, voted_for: Some(self.config.id) };
        self.durability.hard_state_changed();
        self.role = RoleState::Candidate(Votes::default());
        self.election_open = true;
        self.reset_election_timer();
        let request = VoteRequest { last_log: self.log.last_id(), transfer };
        self.for_each_voter(|raft, peer| raft.send_gated(peer, Message::RequestVote(request)));
    }

    fn for_each_voter(&mut self, mut send: impl FnMut(&mut Raft, NodeId)) {
        for peer in self.memberships.current().members() {
            if peer != self.config.id && self.memberships.current().is_voter(peer) {
                send(self, peer);
            }
        }
    }

    /// While a leader is alive, requests to vote are ignored, and their term with them: a server that was cut off or removed
    /// cannot disturb (thesis, section 4.2.3). Replies and appends always count, and so does an election that the leader itself wants.
    pub(crate) fn ignores_newer_term(&self, message: &Envelope) -> bool {
        match &message.body {
            Message::PreVote(_) => self.hears_leader(),
            Message::RequestVote(request) => !request.transfer && self.hears_leader(),
            _ => false,
        }
    }

    /// Whether a leader was heard, or is led, within the shortest election timeout, or has said that it would be silent. Only with `CheckQuorum` does this protect the
    /// leader: without it a leader that lost its majority would go on being protected for ever.
    fn hears_leader(&self) -> bool {
        self.config.check_quorum
            && match self.role {
                RoleState::Leader(_) => true,
                _ => self.has_promised() || self.leader.is_some() && (self.quiesced || self.heard_within_timeout()),
            }
    }

    fn heard_within_timeout(&self) -> bool {
        self.now.since(self.leader_heard_at) < self.config.election_timeout
    }

    /// Whether some leader may count on this server's not voting: see [`promise_ms`](Self::promise_ms). It may be one of an older term, of which nothing
    /// else is left; and right after the start, one that was heard before.
    fn has_promised(&self) -> bool {
        self.config.lease.is_some() && !matches!(self.role, RoleState::Leader(_)) && self.heard_within_timeout()
    }

    /// How long this server will not vote after hearing the leader just now, as it tells that.
    pub(crate) fn promise_ms(&self) -> u32 {
        let promise = self.config.lease.map_or(0, |_| self.config.election_timeout.as_millis());
        u32::try_from(promise).unwrap_or(u32::MAX)
    }

    /// Section 5.4.1: only a server whose log is at least as up-to-date as ours.
    fn is_up_to_date(&self, request: VoteRequest) -> bool {
        request.last_log >= self.log.last_id()
    }

    // Whether the candidate or this server is a member does not matter to a vote: who has the longer log may know better. The candidate counts only the voters of
    // its own membership (paper, section 6; thesis, section 4.2.1).

    pub(crate) fn on_pre_vote(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let granted = term >= self.hard_state.current_term
            && !self.hears_leader()
            && !matches!(self.role, RoleState::Leader(_))
            && self.is_up_to_date(request);
        // Answering changes nothing here, not even the timer: it is not a vote.
        let election = term.next().unwrap_or(term);
        self.send(from, Message::PreVoteReply(VoteReply { election, granted }));
        // Except that someone misses the leader, who may have been removed.
        self.rouse(WakeReason::Message);
        self.tell_removed(from, term, request.last_log);
    }

    pub(crate) fn on_request_vote(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let current = self.hard_state;
        let granted = term == current.current_term
            && current.voted_for.is_none_or(|voted| voted == from)
            && (request.transfer || !self.has_promised())
            && !matches!(self.role, RoleState::Leader(_))
            && self.is_up_to_date(request);
        if granted {
            if current.voted_for.is_none() {
                self.hard_state.voted_for = Some(from);
                self.durability.hard_state_changed();
            }
            self.role = RoleState::Follower;
            self.election_open = true;
            self.reset_election_timer();
        }
        self.send_gated(from, Message::RequestVoteReply(VoteReply { election: term, granted }));
        self.rouse(WakeReason::Message);
        self.tell_removed(from, term, request.last_log);
    }

    pub(crate) fn on_pre_vote_reply(&mut self, from: NodeId, reply: VoteReply) {
        let asked = self.hard_state.current_term.next();
        if let RoleState::PreCandidate(votes) = &mut self.role
            && Some(reply.election) == asked
        {
            votes.0.insert(from, reply.granted);
            self.tally();
        }
    }

    pub(crate) fn on_vote_reply(&mut self, from: NodeId, reply: VoteReply) {
        if let RoleState::Candidate(votes) = &mut self.role
            && reply.election == self.hard_state.current_term
        {
            votes.0.insert(from, reply.granted);
            self.tally();
        }
    }

    /// Counts the votes of the election that is going on, if one is.
    pub(crate) fn tally(&mut self) {
        let own_counts = self.durability.hard_state_durable();
        let (votes, pre_vote) = match &self.role {
            RoleState::PreCandidate(votes) => (&votes.0, true),
            RoleState::Candidate(votes) => (&votes.0, false),
            RoleState::Follower | RoleState::Leader(_) => return,
        };
        let (own, votes_itself) = (self.config.id, self.is_voter());
        let granted =
            |id| if id == own { votes_itself && (pre_vote || own_counts) } else { votes.get(&id) == Some(&true) };
        let refused = |id| votes.get(&id) == Some(&false);
        let won = self.memberships.current().has_quorum(granted);
        let lost = self.memberships.current().is_lost(refused);
        if won && pre_vote {
            if let Some(term) = self.hard_state.current_term.next() {
                self.out.events.push(Event::Campaigning { term, pre_vote: false });
                self.stand(term, false);
            }
        } else if won {
            self.become_leader();
        } else if lost {
            // Wait for the next timeout; the vote stays given.
            self.leave_role(StepDownReason::QuorumLost);
        }
    }
}
