//! Linearizable reads without a log entry (ReadIndex and leases; thesis, section 6.4).

use crate::io::{ReadError, ReadId, ReadOutcome, WakeReason};
use crate::message::{Message, ReadIndexReply};
use crate::raft::Raft;
use crate::role::{Reader, RoleState};
use crate::types::Instant;

impl Raft {
    /// Asks for a linearizable read, or a batch of them. The answer comes as a [`ReadOutcome`] with the same id: once a majority has
    /// confirmed that this server still leads. Reads that arrive during a round share the next one. A server that follows a leader
    /// asks that one; when it gets no answer for two election timeouts, the read is lost.
    ///
    /// # Errors
    /// When this server neither leads nor knows a leader. A read has no effect, so it may be repeated anywhere.
    pub fn read_index(&mut self, now: Instant) -> Result<ReadId, ReadError> {
        self.now = self.now.max(now);
        self.stirred = true;
        self.rouse(WakeReason::Request);
        let id = self.next_read_id();
        match &mut self.role {
            RoleState::Leader(leader) => leader.reads.arrived.push(Reader::Own(id)),
            _ if self.leader.is_some() => self.forward_read(id),
            _ => return Err(ReadError::NotLeader { hint: None }),
        }
        Ok(id)
    }

    /// As [`read_index`](Self::read_index), but without a round trip while this server leads and has a [lease](crate::Lease). `now` must not be older than
    /// the wish to read.
    ///
    /// # Errors
    /// When this server neither leads nor knows a leader.
    pub fn read_by_lease(&mut self, now: Instant) -> Result<ReadId, ReadError> {
        let id = self.read_index(now)?;
        if self.has_lease()
            && let RoleState::Leader(leader) = &mut self.role
        {
            leader.reads.arrived.pop();
            self.out.reads.push(ReadOutcome::Ready { id, index: self.log.commit });
        }
        Ok(id)
    }

    /// Whether, as of the latest time handed in, nobody else can have been elected: a majority has promised not to vote, and this server has
    /// told nobody to stand. Before an entry of its own term is committed, it does not know what is.
    pub(crate) fn has_lease(&self) -> bool {
        let RoleState::Leader(leader) = &self.role else { return false };
        if self.config.lease.is_none() || leader.transfer.is_some() || leader.lease_void || !self.own_term_committed() {
            return false;
        }
        let own = self.config.id;
        // This server votes for nobody while it leads.
        let until = |id| {
            if id == own { Instant(u64::MAX) } else { leader.progress.get(id).map_or(Instant(0), |p| p.promised_until) }
        };
        self.memberships.current().quorum_value(until).is_some_and(|until| self.now < until)
    }

    pub(crate) fn own_term_committed(&self) -> bool {
        self.log.term_at(self.log.commit) == Some(self.hard_state.current_term)
    }

    /// Begins a heartbeat round when reads want one, or when it is time for a heartbeat. At most one round is under way for
    /// reads, so that many of them share it; one that got no answer is followed by the next heartbeat's.
    pub(crate) fn begin_read_round(&mut self) {
        if self.quiesces() {
            return;
        }
        let now = self.now;
        if let RoleState::Leader(leader) = &self.role
            && leader.reads.arrived.is_empty()
            && now < leader.heartbeat_at
        {
            return;
        }
        let own_term_committed = self.own_term_committed();
        let commit = self.log.commit;
        let keep = self.config.lease.map(|_| self.config.election_timeout);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let heartbeat_due = now >= leader.heartbeat_at;
        let reads = &mut leader.reads;
        // Before an entry of its own term is committed, a leader does not know what is.
        let wanted = own_term_committed && !reads.arrived.is_empty() && reads.round == reads.confirmed;
        if !heartbeat_due && !wanted {
            return;
        }
        reads.round += 1;
        if let Some(keep) = keep {
            // What is older than a promise can last gives no lease.
            while reads.begun.pop_front_if(|begun| now.since(*begun) >= keep).is_some() {}
            reads.begun.push_back(now);
        }
        if own_term_committed {
            let round = reads.round;
            reads.waiting.extend(reads.arrived.drain(..).map(|reader| (reader, commit, round)));
        }
        if heartbeat_due {
            self.yield_to_preferred();
        }
        self.broadcast_heartbeat();
        self.confirm_reads();
    }

    /// Until when a promise counts that was given in answer to the heartbeats of this round: from the moment they were *sent* on, because it is not known
    /// when they arrived, and shorter by what the clocks may differ in speed.
    pub(crate) fn promised_until(&self, round: u64, promise_ms: u32) -> Instant {
        let (RoleState::Leader(leader), Some(lease)) = (&self.role, self.config.lease) else { return Instant(0) };
        let newest = leader.reads.begun.len().checked_sub(1);
        let place = newest.zip(usize::try_from(leader.reads.round.saturating_sub(round)).ok());
        let Some(begun) = place.and_then(|(last, back)| leader.reads.begun.get(last.checked_sub(back)?)) else {
            return Instant(0);
        };
        let nanos = u64::from(promise_ms) * 1000 * u64::from(1000_u32.saturating_sub(lease.drift_per_mille));
        Instant(begun.0.saturating_add(nanos))
    }

    /// A majority (this server included) has answered all rounds up to which one?
    pub(crate) fn confirm_reads(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let (own, round) = (self.config.id, leader.reads.round);
        let answered = |id| if id == own { round } else { leader.progress.get(id).map_or(0, |p| p.acked_round) };
        leader.reads.confirmed =
            self.memberships.current().quorum_value(answered).unwrap_or(0).max(leader.reads.confirmed);
    }

    /// Lets the reads go whose round is confirmed.
    pub(crate) fn finish_reads(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        if reads.waiting.is_empty() {
            return;
        }
        let free = reads.waiting.partition_point(|(.., round)| *round <= reads.confirmed);
        let free: Vec<_> = reads.waiting.drain(..free).collect();
        for (reader, index, _) in free {
            match reader {
                Reader::Own(id) => self.out.reads.push(ReadOutcome::Ready { id, index }),
                Reader::Follower(to, id) => self.send(to, Message::ReadIndexReply(ReadIndexReply { id, index })),
            }
        }
    }
}
