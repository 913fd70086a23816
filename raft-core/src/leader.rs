//! The leader's side: proposals, replication, the commit rule and heartbeats (paper, sections 5.3 and 5.4.2).

use crate::entries::{ENTRY_HEADER, Entries, EntryKind, Segment};
use crate::io::{Anomaly, Event, FetchId, ProposeError, Proposed, WakeReason};
use crate::message::{AppendAck, AppendEntries, AppendReject, Heartbeat, HeartbeatReply, Message};
use crate::progress::Progress;
use crate::raft::Raft;
use crate::role::{Leader, Reads, RoleState};
use crate::types::{Instant, LogId, LogIndex, NodeId};

impl Raft {
    pub(crate) fn become_leader(&mut self) {
        let term = self.hard_state.current_term;
        let last = self.log.last_index();
        let progress = self.progress_of_all();
        // The first appends go out at once and announce the leader.
        let heartbeat_at = self.now + self.config.heartbeat_interval;
        let reads = Reads { arrived: self.forwarded.take().collect(), ..Reads::default() };
        let yield_at = self.first_yield_at();
        let (transfer, lease_void, news_at, busy_at) = (None, false, None, self.now);
        self.role = RoleState::Leader(Leader {
            progress,
            heartbeat_at,
            reads,
            transfer,
            lease_void,
            news_at,
            busy_at,
            yield_at,
            pace: Box::default(),
        });
        (self.election_open, self.failed_elections) = (false, 0);
        self.forget_leader();
        self.leader = Some(self.config.id);
        self.out.events.push(Event::BecameLeader { term });
        self.out.events.push(Event::LeaderChanged { term, leader: self.leader });
        // A change that is under way is not to wait for a command.
        if (self.config.no_op_on_election || self.memberships.index() > self.log.commit)
            && let Some(no_op) = Segment::pack(last.next(), term, EntryKind::NoOp, &[b""])
        {
            self.log.append(no_op);
        }
    }

    /// Appends a batch of commands to the log, if this server leads (the course's `Start`). They leave with the next
    /// [`take_output`](Self::take_output), to the followers and to the disk at the same time. A batch is taken whole or not at all.
    ///
    /// # Errors
    /// On any error nothing was appended.
    pub fn propose<P: AsRef<[u8]>>(&mut self, now: Instant, commands: &[P]) -> Result<Proposed, ProposeError> {
        self.now = self.now.max(now);
        if !matches!(self.role, RoleState::Leader(_)) {
            return Err(ProposeError::NotLeader { hint: self.leader });
        }
        if let Some(to) = self.transferring_to() {
            return Err(ProposeError::Transferring { to, retry_after: self.transfer_over_after() });
        }
        let limit = self.config.max_entry_bytes;
        let mut bytes = 0usize;
        for command in commands {
            let size = command.as_ref().len();
            if size > limit {
                return Err(ProposeError::TooLarge { size, limit });
            }
            bytes = bytes.saturating_add(size + ENTRY_HEADER);
        }
        let (uncommitted, unapplied) = self.log.backlog();
        // A batch larger than the whole limit must still be possible when nothing else is in progress; and so must the first one
        // of a term, without which nothing that earlier leaders left uncommitted can ever be committed.
        let first_of_term = self.log.last_id().term < self.hard_state.current_term;
        let over =
            uncommitted > 0 && !first_of_term && uncommitted.saturating_add(bytes) > self.config.max_uncommitted_bytes;
        if over || unapplied > self.config.max_unapplied_bytes {
            return Err(ProposeError::Busy { retry_after: self.room_after(bytes, over) });
        }
        let first = self.log.last_index().next();
        let term = self.hard_state.current_term;
        let segment = Segment::pack(first, term, EntryKind::Command, commands).ok_or(ProposeError::BadBatch)?;
        self.stirred = true;
        let last = segment.last_index();
        self.rouse(WakeReason::Request);
        self.log.append(segment);
        Ok(Proposed { term, first, last })
    }

    /// What a leader does whenever output is taken: begin a round for new reads, send what is new, tell of commits.
    pub(crate) fn lead(&mut self) {
        if !matches!(self.role, RoleState::Leader(_)) {
            return;
        }
        // Whenever a match index or the own disk has moved it was counted; what else may make a difference is another membership.
        if self.memberships.index() > self.log.commit {
            self.advance_commit();
        }
        debug_assert!(self.counted().is_none(), "an entry is committed, and was not counted: {self:?}");
        self.advance_membership();
        self.begin_read_round();
        self.go_on_with_transfer();
        if self.lacks_something() {
            self.with_each_progress(Raft::replicate);
        }
        self.tell_commits();
        self.finish_reads();
        self.leave_when_removed();
    }

    /// Whether something is repeated now and then with whatever else happens: heartbeats are often enough for that.
    pub(crate) fn tries_again(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        leader.transfer.is_some() || leader.progress.values().any(Progress::has_failed_snapshot)
    }

    /// Runs `f` for every follower, with its progress taken out of the leader's state.
    pub(crate) fn with_each_progress(&mut self, mut f: impl FnMut(&mut Raft, NodeId, &mut Progress)) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let mut all = std::mem::take(&mut leader.progress);
        for (peer, progress) in all.iter_mut() {
            f(self, peer, progress);
        }
        if let RoleState::Leader(leader) = &mut self.role {
            leader.progress = all;
        }
    }

    pub(crate) fn progress_mut(&mut self, peer: NodeId) -> Option<&mut Progress> {
        match &mut self.role {
            RoleState::Leader(leader) => leader.progress.get_mut(peer),
            _ => None,
        }
    }

    /// Whether there is anything to send to anybody, or to ask for.
    fn lacks_something(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        let (start, last) = (self.log.start().index, self.log.last_index());
        let (appends, bytes) = (self.config.max_inflight_appends, self.config.max_inflight_bytes);
        leader.progress.values().any(|progress| {
            let lacks = progress.next_index <= last || progress.probing || progress.next_index.prev() < start;
            lacks && progress.has_room(appends, bytes)
        })
    }

    /// Sends whatever the follower lacks and the window allows. While probing, that may be an append without entries.
    fn replicate(&mut self, peer: NodeId, progress: &mut Progress) {
        while progress.has_room(self.config.max_inflight_appends, self.config.max_inflight_bytes) {
            let first = progress.next_index;
            let last = self.log.last_index();
            if first.prev() < self.log.start().index {
                // The entry before it is gone: only a snapshot helps this follower.
                return self.offer_snapshot(peer, progress);
            }
            if first > last {
                if progress.probing {
                    self.send_append(peer, progress, Entries::new());
                }
                return;
            }
            match self.log.cached(first, last, self.config.max_append_bytes) {
                Some(entries) => self.send_append(peer, progress, entries),
                None => {
                    let to = self.log.cached_from().map_or(last, LogIndex::prev);
                    progress.fetch = Some(self.fetch(first, to.max(first), self.config.max_append_bytes));
                    return;
                }
            }
        }
    }

    #[inline]
    fn send_append(&mut self, peer: NodeId, progress: &mut Progress, entries: Entries) {
        let prev = progress.next_index.prev();
        let Some(term) = self.log.term_at(prev) else {
            // Below the start of the log: only a snapshot helps.
            return self.offer_snapshot(peer, progress);
        };
        let last = entries.last_index().unwrap_or(prev);
        let seq = progress.sent(last, entries.byte_len(), self.now);
        progress.told_commit = progress.told_commit.max(self.log.commit.min(last));
        let append = AppendEntries {
            epoch: progress.epoch,
            seq,
            prev_log: LogId::new(term, prev),
            leader_commit: self.log.commit,
            entries,
        };
        self.send(peer, Message::AppendEntries(append));
    }

    /// News of a commit rides on the next append; when none comes within [`Config::commit_notification_delay`](crate::Config), it goes by itself.
    fn tell_commits(&mut self) {
        let (now, delay) = (self.now, self.config.commit_notification_delay);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let planned = leader.news_at;
        let commit = self.log.commit;
        let has_news =
            |progress: &Progress| progress.is_quiet() && progress.match_index.min(commit) > progress.told_commit;
        if !leader.progress.values().any(has_news) {
            leader.news_at = None;
            return;
        }
        let due = delay.is_zero() || planned.is_some_and(|at| now >= at);
        let mut waits = false;
        self.with_each_progress(|raft, peer, progress| {
            if !progress.is_quiet() {
                // What is under way is answered, and then it is looked at again.
            } else if due {
                raft.say_commit(peer, progress);
            } else {
                waits |= raft.commit_news(progress).is_some();
            }
        });
        if let RoleState::Leader(leader) = &mut self.role {
            leader.news_at = waits.then(|| planned.unwrap_or(now + delay));
        }
    }

    /// What is committed of what a follower is known to have, if it was not told.
    fn commit_news(&self, progress: &Progress) -> Option<LogIndex> {
        Some(progress.match_index.min(self.log.commit)).filter(|commit| *commit > progress.told_commit)
    }

    /// Tells a follower, now.
    pub(crate) fn say_commit(&mut self, peer: NodeId, progress: &mut Progress) {
        if let Some(commit) = self.commit_news(progress) {
            progress.told_commit = commit;
            self.send(peer, Message::Heartbeat(Heartbeat { epoch: progress.epoch, commit, round: None }));
        }
    }

    /// Sends a heartbeat of the present round to everyone.
    pub(crate) fn broadcast_heartbeat(&mut self) {
        self.note_pace();
        let RoleState::Leader(leader) = &mut self.role else { return };
        leader.heartbeat_at = self.now + self.config.heartbeat_interval;
        let round = Some(leader.reads.round);
        self.with_each_progress(|raft, peer, progress| {
            let commit = progress.match_index.min(raft.log.commit);
            progress.told_commit = progress.told_commit.max(commit);
            raft.send(peer, Message::Heartbeat(Heartbeat { epoch: progress.epoch, commit, round }));
        });
    }

    pub(crate) fn on_append_ack(&mut self, from: NodeId, ack: AppendAck) {
        self.note_match(from, ack.epoch, ack.match_index);
    }

    /// A follower's word that its disk has everything up to `match_index`. Returns whether it was believed.
    fn note_match(&mut self, from: NodeId, epoch: u64, match_index: LogIndex) -> bool {
        let (last, now, patience) = (self.log.last_index(), self.now, self.config.heartbeat_interval);
        let Some(progress) = self.progress_mut(from).filter(|progress| progress.epoch == epoch) else { return false };
        if match_index > last {
            self.reject(from, Anomaly::AckBeyondLog);
            return false;
        }
        progress.answered(now);
        progress.acked(match_index, now, patience);
        self.advance_commit();
        true
    }

    pub(crate) fn on_append_reject(&mut self, from: NodeId, reject: &AppendReject) {
        let (last, now) = (self.log.last_index(), self.now);
        let ascending = |w: &[LogId]| w[0].term < w[1].term && w[0].index < w[1].index;
        let sane = reject.commit_index <= last && reject.runs.windows(2).all(ascending);
        let found = self.log.matching(&reject.runs, reject.last_index, reject.commit_index);
        let Some(progress) = self.progress_mut(from).filter(|progress| progress.epoch == reject.epoch) else { return };
        progress.answered(now);
        if !progress.is_current_rejection(reject.seq) {
            return;
        }
        if !sane || progress.contradicts_ack(reject.seq) {
            // Answering at once would go round in circles; the next heartbeat's reply sets things going again.
            return self.reject(from, Anomaly::AckBeyondLog);
        }
        let (matched, exact) = found;
        progress.rewind(matched.min(last), exact);
    }

    pub(crate) fn on_heartbeat_reply(&mut self, from: NodeId, reply: HeartbeatReply) {
        let limit = self.config.election_timeout.max(self.config.heartbeat_interval.saturating_mul(4));
        let (last, now) = (self.log.last_index(), self.now);
        let newest_round = match &self.role {
            RoleState::Leader(leader) => leader.reads.round,
            _ => return,
        };
        if reply.round > newest_round || !self.note_match(from, reply.epoch, reply.match_index) {
            return;
        }
        let promised_until = self.promised_until(reply.round, reply.promise_ms);
        let Some(progress) = self.progress_mut(from) else { return };
        progress.priority = reply.priority;
        progress.promised_until = progress.promised_until.max(promised_until);
        if reply.round > progress.acked_round {
            progress.acked_round = reply.round;
            progress.vigil = Some(reply.vigil);
            progress.heard(reply.received.min(last), now, limit);
        }
        self.confirm_reads();
    }

    pub(crate) fn fetched_for_follower(&mut self, id: FetchId, entries: &Entries) {
        let own = self.is_own(entries);
        self.with_each_progress(|raft, peer, progress| {
            if progress.fetch != Some(id) {
                return;
            }
            progress.fetch = None;
            if own && entries.first_index() == Some(progress.next_index) {
                raft.send_append(peer, progress, entries.clone());
            }
        });
    }

    /// The commit rule: an entry of the *current* term that is durable on a majority is committed, and with it all before it. Entries
    /// of older terms are never committed by counting (paper, section 5.4.2, Figure 8).
    #[inline]
    pub(crate) fn advance_commit(&mut self) {
        if self.is_leader() && self.log.commit < self.log.last_index() {
            self.count_commit();
        }
    }

    fn count_commit(&mut self) {
        if let Some(index) = self.counted() {
            self.log.commit_to(index);
        }
    }

    /// Up to where this leader may commit, if that is more than it has.
    fn counted(&self) -> Option<LogIndex> {
        let RoleState::Leader(leader) = &self.role else { return None };
        let own = self.config.id;
        let durable = self.durability.durable();
        // Who is not the only voter cannot commit alone: nearly always that tells before anything is counted.
        let others = leader.progress.values().any(|progress| progress.match_index > self.log.commit);
        if !others && self.memberships.current().voters().len() > 1 {
            return None;
        }
        let reached = |id| {
            if id == own { durable } else { leader.progress.get(id).map_or(LogIndex::ZERO, |p| p.match_index) }
        };
        let index = self.memberships.current().committed(reached);
        let counts = index > self.log.commit && self.log.term_at(index) == Some(self.hard_state.current_term);
        counts.then_some(index)
    }

    /// The latest time at which a majority had been heard.
    pub(crate) fn quorum_heard_at(&self, leader: &Leader) -> Instant {
        let (own, now) = (self.config.id, self.now);
        let heard = |id| if id == own { now } else { leader.progress.get(id).map_or(Instant(0), |p| p.last_contact) };
        self.memberships.current().quorum_value(heard).unwrap_or(now)
    }
}
