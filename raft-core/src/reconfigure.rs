//! Changes of the membership: joint consensus, learners, and leaving (paper, section 6; thesis, chapter 4).
//!
//! A server uses the newest membership in its log, committed or not. A change of the voters takes two entries: while the first, the joint
//! configuration, is the newest, every decision needs a majority of the old voters and one of the new; once it is committed, the leader, whoever
//! that is by then, appends the new configuration alone. So there is no moment at which the old and the new voters could decide without each other.

use crate::change::{ChangeError, MembershipChange};
use crate::entries::{Entries, EntryKind, Segment};
use crate::followers::Followers;
use crate::io::{Event, StepDownReason, WakeReason};
use crate::membership::Membership;
use crate::progress::Progress;
use crate::raft::Raft;
use crate::role::{Leader, RoleState};
use crate::types::{Instant, LogId, LogIndex, NodeId, Term};

impl Raft {
    /// Begins to change who belongs to the cluster, if this server leads. Returns the first entry of the change. The change is complete when
    /// [`Status::membership`](crate::Status::membership) is not joint and its entry is committed; the leader sees to that by itself, and so does the next one if this one fails.
    ///
    /// # Errors
    /// On any error nothing was appended.
    pub fn change_membership(&mut self, now: Instant, change: &MembershipChange) -> Result<LogId, ChangeError> {
        self.now = self.now.max(now);
        self.stirred = true;
        self.rouse(WakeReason::Request);
        let RoleState::Leader(leader) = &self.role else {
            return Err(ChangeError::NotLeader { hint: self.leader });
        };
        let term = self.hard_state.current_term;
        // Whether a change of an earlier term is committed is known once an entry of this term is. (Ongaro, 2015: the bug in the single-server algorithm.)
        if self.log.term_at(self.log.commit) != Some(term) {
            return Err(ChangeError::TooEarly);
        }
        if let Some(to) = self.transferring_to() {
            return Err(ChangeError::Transferring { to });
        }
        let current = self.memberships.current();
        if current.is_joint() || self.memberships.index() > self.log.commit {
            return Err(ChangeError::InProgress { index: self.memberships.index() });
        }
        let next = current.changed(change)?;
        let (members, limit) = (next.size(), self.config.max_members);
        if members > limit && members > current.size() {
            return Err(ChangeError::TooMany { members, limit });
        }
        if next.is_joint() {
            if change.forced {
                self.check_way_back(leader, &next)?;
            } else {
                self.check_new_voters(leader, &next)?;
            }
        }
        let (size, limit) = (next.encode().len(), self.config.max_entry_bytes);
        if size > limit {
            return Err(ChangeError::TooLarge { size, limit });
        }
        self.append_membership(next);
        Ok(self.log.last_id())
    }

    /// New voters have nearly all of the log, and a majority of all who are to vote is there: else the cluster could stand still.
    fn check_new_voters(&self, leader: &Leader, next: &Membership) -> Result<(), ChangeError> {
        let own = self.config.id;
        // One that was removed, and is only to learn that it is out, may have been another server.
        let member = |id: &NodeId| leader.progress.get(*id).filter(|progress| progress.leaves_at.is_none());
        let heard = |id: &NodeId| {
            *id == own || member(id).is_some_and(|p| p.heard_within(self.config.election_timeout, self.now))
        };
        let limit = self.config.max_promotion_lag;
        for id in next.voters().iter().filter(|id| **id != own && !next.outgoing().contains(id)) {
            let matched = member(id).map_or(LogIndex::ZERO, |progress| progress.match_index);
            let lag = self.log.last_index() - matched;
            if !heard(id) {
                return Err(ChangeError::Silent(*id));
            }
            if lag > limit {
                return Err(ChangeError::NotCaughtUp { id: *id, lag, limit });
            }
        }
        let (voters, heard) = (next.voters().len(), next.voters().iter().filter(|id| heard(id)).count());
        if heard > voters / 2 { Ok(()) } else { Err(ChangeError::QuorumAtRisk { heard, voters }) }
    }

    /// Even an emergency must have an end: a joint configuration whose new majority needs servers that nobody has ever heard could be neither completed nor
    /// taken back if they do not exist. Whoever votes already has existed, and may come back.
    fn check_way_back(&self, leader: &Leader, next: &Membership) -> Result<(), ChangeError> {
        let answered = |id: &NodeId| leader.progress.get(*id).is_some_and(Progress::has_ever_answered);
        let known = |id: &&NodeId| **id == self.config.id || next.outgoing().contains(id) || answered(id);
        let (voters, known) = (next.voters().len(), next.voters().iter().filter(known).count());
        if known > voters / 2 { Ok(()) } else { Err(ChangeError::NoWayBack { known, voters }) }
    }

    /// As the leader: from now on this membership counts.
    fn append_membership(&mut self, membership: Membership) {
        let (index, term) = (self.log.last_index().next(), self.hard_state.current_term);
        let Some(segment) = Segment::pack(index, term, EntryKind::Membership, &[membership.encode()]) else { return };
        self.log.append(segment);
        self.memberships.push(index, membership);
        // It counts from now on: another quorum may have been reached already.
        self.stirred = true;
        self.tell_membership();
        self.track_members();
    }

    /// As the leader: follows every member from now on, and lets go of those who are none any more once they can know it. One that comes
    /// back is a new one: what it said before counts for nothing.
    fn track_members(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let membership = self.memberships.current();
        for (peer, progress) in leader.progress.iter_mut() {
            if !membership.contains(peer) && progress.leaves_at.is_none() {
                progress.leaves_at = Some(Instant(u64::MAX));
            }
        }
        let (own, outgoing) = (self.config.id, membership.outgoing());
        for peer in membership.members().into_iter().filter(|peer| *peer != own) {
            let known = leader.progress.get_mut(peer).filter(|progress| progress.leaves_at.is_none());
            if let Some(progress) = known {
                if !outgoing.is_empty() && !outgoing.contains(&peer) {
                    // A new voter has an election timeout to be heard in before it can be missed.
                    progress.last_contact = self.now;
                }
            } else {
                let epoch = self.next_epoch;
                self.next_epoch += 1;
                let (last, patience) = (self.log.last_index(), self.config.heartbeat_interval);
                leader.progress.insert(peer, Progress::new(epoch, last, self.now, patience));
            }
        }
    }

    /// As the leader: what is to be done once the newest membership is committed.
    pub(crate) fn advance_membership(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        if self.memberships.index() > self.log.commit {
            return;
        }
        if self.memberships.current().is_joint() {
            // Also when another leader began it: else a cluster would stay joint for ever if the first leader fails.
            let next = self.memberships.current().left();
            return self.append_membership(next);
        }
        if leader.progress.values().any(|progress| progress.leaves_at.is_some()) {
            // Whoever has left hears of it for as long as it takes to miss a leader, and may learn that it is out.
            let (now, last_word) = (self.now, self.now + self.config.election_timeout);
            for at in leader.progress.values_mut().filter_map(|progress| progress.leaves_at.as_mut()) {
                *at = (*at).min(last_word);
            }
            leader.progress.retain(|progress| progress.leaves_at.is_none_or(|at| now < at));
        }
    }

    /// As the leader: a server that was removed asks for votes. It was not there when it could have heard of it, or has forgotten since, and would ask for ever: it
    /// is followed for an election timeout once more, gets the log, and reads there that it is out (thesis, section 4.2.3, leaves it at being ignored).
    /// It counts for nothing: every majority is one of voters.
    ///
    /// Told is who was a member by some membership that this log still knows of, and only from entries that it still has: a stranger must not
    /// make a leader send anything, and a snapshot is not for outsiders. After a compaction beyond the removal nobody can tell the two apart; who
    /// carries the messages may know. Nor is one told whose term is ahead: its answer would end this leadership.
    pub(crate) fn tell_removed(&mut self, asker: NodeId, term: Term, last_log: LogId) {
        let settled = self.memberships.index() <= self.log.commit && !self.memberships.current().is_joint();
        let removed = self.memberships.knows(asker) && !self.memberships.current().contains(asker);
        let in_reach = last_log.index >= self.log.start().index && term <= self.hard_state.current_term;
        let (now, last, patience) = (self.now, self.log.last_index(), self.config.heartbeat_interval);
        let RoleState::Leader(leader) = &mut self.role else { return };
        if settled && removed && in_reach && !leader.progress.contains(asker) {
            let mut progress = Progress::new(self.next_epoch, last, now, patience);
            self.next_epoch += 1;
            progress.leaves_at = Some(now + self.config.election_timeout);
            leader.progress.insert(asker, progress);
        }
    }

    /// A leader that is no voter any more goes when that is committed (thesis, section 4.2.2). Its last words are that it is.
    pub(crate) fn leave_when_removed(&mut self) {
        let led = matches!(self.role, RoleState::Leader(_)) && self.memberships.index() <= self.log.commit;
        if led && !self.is_voter() {
            self.with_each_progress(Raft::say_commit);
            self.name_successor();
            self.become_follower(self.hard_state.current_term, StepDownReason::Removed);
        }
    }

    /// The memberships among some entries that are about to be appended; `None` if one of them cannot be understood, or leaves nobody to vote.
    pub(crate) fn memberships_in(entries: &Entries) -> Option<Vec<(LogIndex, Membership)>> {
        let mut changes = Vec::new();
        for entry in entries.segments().iter().flat_map(|segment| segment.of_kind(EntryKind::Membership)) {
            let membership = Membership::decode(entry.payload).ok()?;
            if membership.voters().is_empty() {
                return None;
            }
            changes.push((entry.index, membership));
        }
        Some(changes)
    }

    /// As a follower: these entries were appended.
    pub(crate) fn adopt_memberships(&mut self, changes: Vec<(LogIndex, Membership)>) {
        for (index, membership) in changes {
            self.memberships.push(index, membership);
            self.tell_membership();
        }
    }

    /// As a follower: entries from `from` on were truncated.
    pub(crate) fn drop_memberships(&mut self, from: LogIndex) {
        if self.memberships.truncate(from) {
            self.tell_membership();
        }
    }

    /// Tells that another membership counts.
    pub(crate) fn tell_membership(&mut self) {
        let (index, membership) = (self.memberships.index(), self.memberships.current().clone());
        self.out.events.push(Event::MembershipChanged { index, membership });
    }

    /// Finds out whether this server has been removed for good.
    pub(crate) fn notice_removal(&mut self) {
        let index = self.memberships.index();
        if index > self.settled && index <= self.log.commit {
            self.settled = index;
            let belongs = self.memberships.current().has_member(self.config.id, self.config.identity);
            if self.belongs && !belongs {
                self.out.events.push(Event::Removed { index });
            }
            self.belongs = belongs;
        }
    }

    /// Whether this server votes, by the newest membership in its log. While it catches up, that may be one of long ago, when another server had its id.
    pub(crate) fn is_voter(&self) -> bool {
        self.memberships.current().has_voter(self.config.id, self.config.identity)
    }

    /// Whether this server may stand for election: if it votes, or if the membership that takes its vote may never be committed without
    /// it. (It may be the only one that can be elected: the entry is in its log, so those who lack it are not up-to-date. Thesis, section 4.2.2, Figure 4.6.)
    ///
    /// Nothing in a log tells whether its last membership was committed, so after a restart that is known up to what is applied, and no further: see
    /// [`Event::Removed`]. One who has forgotten stands once more, and a leader lets it know ([`tell_removed`](Self::tell_removed)).
    pub(crate) fn may_campaign(&self) -> bool {
        let votes = |membership: &Membership| membership.has_voter(self.config.id, self.config.identity);
        let unsettled = self.memberships.index() > self.log.commit;
        self.is_voter() || (unsettled && self.memberships.before().is_some_and(votes))
    }

    /// What a new leader knows of the members: nothing yet.
    pub(crate) fn progress_of_all(&mut self) -> Followers {
        let (last, now, patience) = (self.log.last_index(), self.now, self.config.heartbeat_interval);
        let peers = self.memberships.current().members().into_iter().filter(|peer| *peer != self.config.id);
        let first_epoch = self.next_epoch;
        let progress: Followers =
            peers.zip(first_epoch..).map(|(peer, epoch)| (peer, Progress::new(epoch, last, now, patience))).collect();
        self.next_epoch += progress.len() as u64;
        progress
    }
}
