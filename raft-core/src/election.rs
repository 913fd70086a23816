//! Elections: pre-vote, vote, and who may be elected (paper, sections 5.2 and 5.4.1; thesis, sections 4.2.3 and 9.6).

use crate::io::{Event, StepDownReason};
use crate::message::{Envelope, Message, VoteReply, VoteRequest};
use crate::raft::Raft;
use crate::role::{RoleState, Votes};
use crate::types::{HardState, NodeId, Term};

impl Raft {
    /// The election timer ran out: ask the others, first whether it makes sense at all.
    pub(crate) fn campaign(&mut self) {
        self.reset_election_timer();
        self.forget_leader();
        let stalled = self.durability.stalled_at(self.config.max_write_stall).is_some_and(|at| self.now >= at);
        if !self.memberships.current().is_voter(self.config.id) || stalled {
            // A server whose disk hangs would be elected, and hang.
            return;
        }
        let Some(term) = self.hard_state.current_term.next() else { return };
        self.out.events.push(Event::Campaigning { term, pre_vote: self.config.pre_vote });
        if self.config.pre_vote {
            self.role = RoleState::PreCandidate(Votes::default());
            let request = VoteRequest { last_log: self.log.last_id() };
            self.for_each_voter(|raft, peer| raft.send(peer, Message::PreVote(request)));
            self.tally();
        } else {
            self.stand(term);
        }
    }

    /// Begins a real election: the new term and the vote for oneself are one write, and nothing leaves before it is durable.
    fn stand(&mut self, term: Term) {
        self.hard_state = HardState { current_term: term, voted_for: Some(self.config.id) };
        self.durability.hard_state_changed();
        self.role = RoleState::Candidate(Votes::default());
        self.reset_election_timer();
        let request = VoteRequest { last_log: self.log.last_id() };
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
    /// cannot disturb (thesis, section 4.2.3). Replies and appends always count.
    pub(crate) fn ignores_newer_term(&self, message: &Envelope) -> bool {
        matches!(message.body, Message::RequestVote(_) | Message::PreVote(_)) && self.hears_leader()
    }

    /// Whether a leader was heard, or is led, within the shortest election timeout. Only with `CheckQuorum` does this protect the
    /// leader: without it a leader that lost its majority would go on being protected for ever.
    fn hears_leader(&self) -> bool {
        self.config.check_quorum
            && match self.role {
                RoleState::Leader(_) => true,
                _ => self.leader.is_some() && self.now.since(self.leader_heard_at) < self.config.election_timeout,
            }
    }

    /// Section 5.4.1: only a server whose log is at least as up-to-date as ours.
    fn is_up_to_date(&self, request: VoteRequest) -> bool {
        request.last_log >= self.log.last_id()
    }

    pub(crate) fn on_pre_vote(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let granted = term >= self.hard_state.current_term
            && !self.hears_leader()
            && !matches!(self.role, RoleState::Leader(_))
            && self.memberships.current().is_voter(from)
            && self.is_up_to_date(request);
        // Answering changes nothing here, not even the timer: it is not a vote.
        let election = term.next().unwrap_or(term);
        self.send(from, Message::PreVoteReply(VoteReply { election, granted }));
    }

    pub(crate) fn on_request_vote(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let current = self.hard_state;
        let granted = term == current.current_term
            && current.voted_for.is_none_or(|voted| voted == from)
            && !matches!(self.role, RoleState::Leader(_))
            && self.memberships.current().is_voter(from)
            && self.is_up_to_date(request);
        if granted {
            if current.voted_for.is_none() {
                self.hard_state.voted_for = Some(from);
                self.durability.hard_state_changed();
            }
            self.role = RoleState::Follower;
            self.reset_election_timer();
        }
        self.send_gated(from, Message::RequestVoteReply(VoteReply { election: term, granted }));
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
        let own = self.config.id;
        let granted = |id| if id == own { pre_vote || own_counts } else { votes.get(&id) == Some(&true) };
        let refused = |id| votes.get(&id) == Some(&false);
        let won = self.memberships.current().has_quorum(granted);
        let lost = self.memberships.current().is_lost(refused);
        if won && pre_vote {
            if let Some(term) = self.hard_state.current_term.next() {
                self.out.events.push(Event::Campaigning { term, pre_vote: false });
                self.stand(term);
            }
        } else if won {
            self.become_leader();
        } else if lost {
            // Wait for the next timeout; the vote stays given.
            self.leave_role(StepDownReason::QuorumLost);
        }
    }
}
