//! Linearizable reads without a log entry (ReadIndex; thesis, section 6.4).

use crate::io::{ReadError, ReadId, ReadOutcome};
use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::Instant;

impl Raft {
    /// Asks for a linearizable read, or a batch of them. The answer comes as a [`ReadOutcome`] with the same id: once a majority has
    /// confirmed that this server still leads. Reads that arrive during a round share the next one.
    ///
    /// # Errors
    /// When this server does not lead. A read has no effect, so it may be repeated anywhere.
    pub fn read_index(&mut self, now: Instant) -> Result<ReadId, ReadError> {
        self.now = self.now.max(now);
        let id = self.next_read_id();
        match &mut self.role {
            RoleState::Leader(leader) => {
                leader.reads.arrived.push(id);
                Ok(id)
            }
            _ => Err(ReadError::NotLeader { hint: self.leader }),
        }
    }

    /// Begins a heartbeat round when reads want one, or when it is time for a heartbeat. At most one round is under way for
    /// reads, so that many of them share it; one that got no answer is followed by the next heartbeat's.
    pub(crate) fn begin_read_round(&mut self) {
        let own_term_committed = self.log.term_at(self.log.commit) == Some(self.hard_state.current_term);
        let (now, commit) = (self.now, self.log.commit);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let heartbeat_due = now >= leader.heartbeat_at;
        let reads = &mut leader.reads;
        // Before an entry of its own term is committed, a leader does not know what is.
        let wanted = own_term_committed && !reads.arrived.is_empty() && reads.round == reads.confirmed;
        if !heartbeat_due && !wanted {
            return;
        }
        reads.round += 1;
        if own_term_committed {
            let round = reads.round;
            reads.waiting.extend(reads.arrived.drain(..).map(|id| (id, commit, round)));
        }
        self.broadcast_heartbeat();
        self.confirm_reads();
    }

    /// A majority (this server included) has answered all rounds up to which one?
    pub(crate) fn confirm_reads(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let (own, round) = (self.config.id, leader.reads.round);
        let answered = |id| if id == own { round } else { leader.progress.get(&id).map_or(0, |p| p.acked_round) };
        leader.reads.confirmed =
            self.memberships.current().quorum_value(answered).unwrap_or(0).max(leader.reads.confirmed);
    }

    /// Lets the reads go whose round is confirmed.
    pub(crate) fn finish_reads(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let reads = &mut leader.reads;
        let free = reads.waiting.partition_point(|(.., round)| *round <= reads.confirmed);
        self.out.reads.extend(reads.waiting.drain(..free).map(|(id, index, _)| ReadOutcome::Ready { id, index }));
    }
}
