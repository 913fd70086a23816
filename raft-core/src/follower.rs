//! The receiver's side of AppendEntries and heartbeats (paper, section 5.3 and Figure 2).

use crate::entries::Entries;
use crate::io::{Anomaly, Event, StepDownReason, WakeReason};
use crate::membership::Membership;
use crate::message::{AppendAck, AppendEntries, AppendReject, Heartbeat, HeartbeatReply, Message, NO_EPOCH};
use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::{LogIndex, NodeId};

impl Raft {
    /// A message of the current term's leader: whoever is not following it follows it now. `false` if two servers
    /// claim to lead the same term.
    pub(crate) fn follow(&mut self, from: NodeId) -> bool {
        if matches!(self.role, RoleState::Leader(_)) || self.leader.is_some_and(|leader| leader != from) {
            self.reject(from, Anomaly::TwoLeaders);
            return false;
        }
        self.rouse(WakeReason::Message);
        if self.leader.is_none() {
            self.leave_role(StepDownReason::NewerTerm);
            self.forget_leader();
            self.leader = Some(from);
            self.out.events.push(Event::LeaderChanged { term: self.hard_state.current_term, leader: self.leader });
        }
        self.leader_heard_at = self.now;
        (self.election_open, self.failed_elections) = (false, 0);
        self.reset_election_timer();
        true
    }

    pub(crate) fn on_append(&mut self, from: NodeId, append: &mut AppendEntries) {
        if !self.follow(from) || self.append_usual(from, append) {
            return;
        }
        let changes = if self.is_well_formed(append) { Raft::memberships_in(&append.entries) } else { None };
        let Some(changes) = changes else {
            return self.reject(from, Anomaly::MalformedEntries);
        };
        // Entries below the start of our log are committed, so they match; the rest is compared.
        let below_start = append.prev_log.index < self.log.start().index;
        if !below_start && !self.log.contains(append.prev_log) {
            if self.awaits_restore(append.prev_log.index) {
                // A refusal would only bring the same snapshot again.
                return self.owe_after_restore(append.epoch);
            }
            return self.refuse_append(from, append);
        }
        let last_new = append.prev_log.index + append.entries.len() as u64;
        if !self.merge(from, std::mem::take(&mut append.entries), changes) {
            return;
        }
        // Below the start of the log, matching is only known if the entries reach it, or because it is all committed.
        self.verified = self.verified.max(last_new).max(self.log.commit);
        self.follow_commit(from, append.leader_commit);
        self.owed_ack = Some(append.epoch);
    }

    /// What nearly all appends are: one segment of the leader's own term, which follows on the end of this log and changes no membership. Then there is nothing
    /// to be compared, and nothing has to go. Returns whether it is one of those, and done.
    #[inline]
    fn append_usual(&mut self, from: NodeId, append: &mut AppendEntries) -> bool {
        let Some(segment) = append.entries.only() else { return false };
        let (last, term) = (self.log.last_id(), self.hard_state.current_term);
        let follows = append.prev_log == last && segment.first_index() == last.index.next();
        if !follows
            || segment.one_term() != Some(term)
            || segment.may_have_memberships()
            || segment.last_index() > LogIndex::MAX
        {
            return false;
        }
        if let Some(segment) = append.entries.pop() {
            self.log.append(segment);
        }
        self.verified = self.verified.max(self.log.last_index()).max(self.log.commit);
        self.follow_commit(from, append.leader_commit);
        self.owed_ack = Some(append.epoch);
        true
    }

    /// Entries follow on `prev_log`, their terms do not fall, and none is newer than the leader.
    fn is_well_formed(&self, append: &AppendEntries) -> bool {
        let Some(first) = append.entries.segments().first() else { return true };
        first.first_index() == append.prev_log.index.next()
            && first.first_term() >= append.prev_log.term
            && append.entries.last_term() <= Some(self.hard_state.current_term)
            && append.entries.last_index() <= Some(LogIndex::MAX)
    }

    /// Brings the log in line with `entries`: what already matches is kept, never truncated, so that a delayed or
    /// repeated append does no harm; the first entry that differs goes, with everything after it. `changes` are the memberships among
    /// them. `false` if that would be a committed entry.
    fn merge(&mut self, from: NodeId, mut entries: Entries, mut changes: Vec<(LogIndex, Membership)>) -> bool {
        let Some(last) = entries.last_index() else { return true };
        if entries.first_index() == Some(self.log.last_index().next()) {
            // Nearly always they follow on the end, which is `prev_log`: nothing is to be compared, and nothing has to go.
            return self.extend(entries, changes);
        }
        let known = LogIndex(last.0.min(self.log.last_index().0));
        let from_index = self.first_difference(&entries, known);
        if from_index > last {
            return true;
        }
        if from_index <= self.log.commit.max(self.verified.min(self.log.last_index())) {
            // Neither a committed entry nor one that this very leader has sent before can change.
            self.reject(from, Anomaly::CommittedConflict);
            return false;
        }
        let first_term = entries.segments().iter().find_map(|segment| segment.term_at(from_index));
        if first_term < self.log.term_at(from_index.prev()) {
            // What lies below the start of the log was not compared.
            self.reject(from, Anomaly::MalformedEntries);
            return false;
        }
        if from_index <= self.log.last_index() {
            self.log.truncate(from_index);
            self.durability.truncated(from_index);
            self.out.events.push(Event::Truncated { from: from_index });
            self.drop_memberships(from_index);
        }
        entries.skip_to(from_index);
        changes.retain(|(index, _)| *index >= from_index);
        self.extend(entries, changes)
    }

    /// Appends entries that follow on the end of the log, and `changes`, which are the memberships among them.
    fn extend(&mut self, entries: Entries, changes: Vec<(LogIndex, Membership)>) -> bool {
        self.adopt_memberships(changes);
        for segment in entries.into_segments() {
            self.log.append(segment);
        }
        true
    }

    /// The first index of `entries` that is not in the log as it stands there.
    fn first_difference(&self, entries: &Entries, known: LogIndex) -> LogIndex {
        let begin = entries.first_index().unwrap_or_default();
        let start = self.log.start().index;
        // If the last entry that both have is the same, then all before it are (Log Matching).
        if known < begin {
            return begin;
        }
        let last_known = entries.segments().iter().find_map(|segment| segment.term_at(known));
        if known >= start && last_known == self.log.term_at(known) {
            return known.next();
        }
        let differs =
            |entry: &crate::EntryRef<'_>| entry.index > start && self.log.term_at(entry.index) != Some(entry.term);
        entries.iter().find(differs).map_or(known.next(), |entry| entry.index)
    }

    /// Adopts the leader's commit index as far as the log is known to match.
    fn follow_commit(&mut self, from: NodeId, leader_commit: LogIndex) {
        if leader_commit > LogIndex::MAX {
            return self.reject(from, Anomaly::OutOfRange);
        }
        self.log.commit_to(leader_commit.min(self.verified).min(self.commit_limit()));
    }

    /// "I have nothing, or something else, at `prev_log`."
    fn refuse_append(&mut self, from: NodeId, append: &AppendEntries) {
        let end = self.log.last_index().min(append.prev_log.index);
        let reject = AppendReject {
            epoch: append.epoch,
            seq: append.seq,
            last_index: end,
            commit_index: self.log.commit,
            runs: self.log.runs_up_to(end, self.config.max_reject_runs),
        };
        self.send(from, Message::AppendReject(reject));
    }

    /// The sender's term is over: our term, in the envelope, tells it so, and no epoch is echoed. The sender may have restarted
    /// since, lead our term now, and have given the same epoch out again: it would take this for an answer of today.
    pub(crate) fn refuse_stale_append(&mut self, from: NodeId, append: &AppendEntries) {
        let (epoch, seq, zero) = (NO_EPOCH, append.seq, LogIndex::ZERO);
        let nothing = AppendReject { epoch, seq, last_index: zero, commit_index: zero, runs: Vec::new() };
        self.send(from, Message::AppendReject(nothing));
    }

    pub(crate) fn on_heartbeat(&mut self, from: NodeId, heartbeat: Heartbeat) {
        if !self.follow(from) {
            return;
        }
        if heartbeat.commit > self.log.last_index() {
            // It names what we acknowledged as durable, so this disk has lost it; or the leader is mad.
            self.reject(from, Anomaly::CommitBeyondLog);
        } else {
            self.log.commit_to(heartbeat.commit.min(self.commit_limit()));
            self.verified = self.verified.max(self.log.commit);
        }
        if let Some(round) = heartbeat.round {
            let match_index = self.verified.min(self.durability.durable());
            self.send_gated(
                from,
                Message::HeartbeatReply(HeartbeatReply {
                    epoch: heartbeat.epoch,
                    round,
                    received: self.verified,
                    match_index,
                    promise_ms: self.promise_ms(),
                    priority: self.config.priority,
                    vigil: self.vigil,
                }),
            );
        }
    }

    /// As for an append. Here an epoch that is echoed would confirm reads: rounds begin at 1 in every term.
    pub(crate) fn refuse_stale_heartbeat(&mut self, from: NodeId, heartbeat: Heartbeat) {
        if let Some(round) = heartbeat.round {
            let zero = LogIndex::ZERO;
            let (epoch, promise_ms, priority, vigil) = (NO_EPOCH, 0, self.config.priority, self.vigil);
            let reply = HeartbeatReply { epoch, round, received: zero, match_index: zero, promise_ms, priority, vigil };
            self.send(from, Message::HeartbeatReply(reply));
        }
    }

    /// Acknowledges what is verified and durable, once for all appends that have come in and all writes that have
    /// completed since the last time.
    pub(crate) fn acknowledge(&mut self) {
        let (Some(epoch), Some(leader)) = (self.owed_ack, self.leader) else { return };
        let match_index = self.verified.min(self.durability.durable());
        let complete = match_index == self.verified;
        let news = match_index > self.told_match || complete;
        if news && self.durability.hard_state_durable() {
            self.told_match = match_index;
            if complete {
                self.owed_ack = None;
            }
            self.send(leader, Message::AppendAck(AppendAck { epoch, match_index }));
        }
    }
}
