//! Handing leadership over on purpose (thesis, section 3.10), and to whom it should belong.

use std::time::Duration;

use crate::io::{Event, TransferError, WakeReason};
use crate::message::{Message, TimeoutNow};
use crate::progress::Progress;
use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::{Instant, NodeId};

/// A leader hands over. It lives inside the role, so it ends with the leadership at the latest.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    /// Then it has failed.
    pub(crate) until: Instant,
    /// When the next leader was last told to stand.
    pub(crate) told_at: Option<Instant>,
}

/// Election timeouts after which a leader hands over to a server of higher priority, and between two attempts to do so: long enough for a server that
/// comes and goes not to take the leadership with it each time.
const YIELD_AFTER: u32 = 4;
const YIELD_AGAIN_AFTER: u32 = 16;

impl Raft {
    /// Hands leadership over, to `to` or to the voter that has most of the log; says to whom. Meanwhile proposals are refused
    /// ([`ProposeError::Transferring`](crate::ProposeError::Transferring)). Once everything in the log is committed and on the disk of the next leader, that is told
    /// to stand at once. It has succeeded when [`Event::SteppedDown`] comes; after an election timeout it has failed
    /// ([`Event::TransferFailed`]), and this server goes on leading. Asking for the same again changes nothing.
    ///
    /// # Errors
    /// When this server does not lead, or nobody can take over. Nothing has changed then.
    pub fn transfer_leadership(&mut self, now: Instant, to: Option<NodeId>) -> Result<NodeId, TransferError> {
        self.now = self.now.max(now);
        self.stirred = true;
        self.rouse(WakeReason::Request);
        let RoleState::Leader(leader) = &self.role else {
            return Err(TransferError::NotLeader { hint: self.leader });
        };
        if let Some(transfer) = leader.transfer {
            let same = to.is_none_or(|to| to == transfer.to);
            return if same { Ok(transfer.to) } else { Err(TransferError::InProgress { to: transfer.to }) };
        }
        let is_voter = |id: NodeId| self.memberships.current().is_voter(id);
        let to = match to {
            Some(to) if to == self.config.id => return Err(TransferError::Leads { to }),
            Some(to) => {
                let progress =
                    leader.progress.get(to).filter(|_| is_voter(to)).ok_or(TransferError::NotVoter { to })?;
                if !self.heard_lately(progress) {
                    return Err(TransferError::Unreachable { to });
                }
                to
            }
            None => {
                let able = leader.progress.iter().filter(|(id, progress)| is_voter(*id) && self.heard_lately(progress));
                let best = able.max_by_key(|(id, progress)| (progress.match_index, progress.priority, id.0));
                best.ok_or(TransferError::NoCandidate)?.0
            }
        };
        self.begin_transfer(to);
        Ok(to)
    }

    /// To whom leadership is being handed over.
    pub fn transferring_to(&self) -> Option<NodeId> {
        match &self.role {
            RoleState::Leader(leader) => leader.transfer.map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// When a command that is refused because leadership is handed over should be tried again.
    #[cold]
    pub(crate) fn transfer_over_after(&self) -> Duration {
        let until = match &self.role {
            RoleState::Leader(leader) => leader.transfer.map_or(self.now, |transfer| transfer.until),
            _ => self.now,
        };
        self.handed_over_after(self.now, until)
    }

    fn heard_lately(&self, progress: &Progress) -> bool {
        self.now.since(progress.last_contact) < self.config.election_timeout
    }

    fn begin_transfer(&mut self, to: NodeId) {
        let until = self.now + self.config.election_timeout;
        if let RoleState::Leader(leader) = &mut self.role {
            leader.transfer = Some(Transfer { to, until, told_at: None });
            self.out.events.push(Event::TransferBegun { term: self.hard_state.current_term, to });
        }
    }

    /// The attempt is over when an election timeout has passed, or its target is no voter any more.
    pub(crate) fn check_transfer(&mut self) {
        let RoleState::Leader(leader) = &mut self.role else { return };
        let over = |transfer: &Transfer| {
            self.now >= transfer.until
                || !self.memberships.current().is_voter(transfer.to)
                || !leader.progress.contains(transfer.to)
        };
        if let Some(Transfer { to, .. }) = leader.transfer.filter(over) {
            leader.transfer = None;
            self.out.events.push(Event::TransferFailed { term: self.hard_state.current_term, to });
        }
    }

    /// Tells the next leader to stand, as soon as it has everything; and again with each heartbeat, because the message may be lost.
    ///
    /// Whatever this leader took in is committed first: so whoever proposed it gets an answer. What earlier leaders left, and only an entry
    /// of this term could commit, is nobody's here.
    #[inline]
    pub(crate) fn go_on_with_transfer(&mut self) {
        if self.transferring_to().is_some() {
            self.tell_next_leader();
        }
    }

    fn tell_next_leader(&mut self) {
        let last_log = self.log.last_id();
        let settled = self.log.commit == last_log.index || last_log.term < self.hard_state.current_term;
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(transfer) = &mut leader.transfer else { return };
        let has_all = leader.progress.get(transfer.to).is_some_and(|progress| progress.match_index == last_log.index);
        let due = transfer.told_at.is_none_or(|at| now.since(at) >= interval);
        if has_all && settled && due {
            transfer.told_at = Some(now);
            // From now on others may be elected although they have heard us.
            leader.lease_void = true;
            let to = transfer.to;
            self.send(to, Message::TimeoutNow(TimeoutNow { last_log }));
        }
    }

    /// This leader must go, now: a voter that has everything is told to stand, so that nobody waits for a timeout. If the message is lost, everybody does.
    pub(crate) fn name_successor(&mut self) {
        let last_log = self.log.last_id();
        let RoleState::Leader(leader) = &self.role else { return };
        let able = leader.progress.iter().filter(|(id, progress)| {
            let has_all = progress.match_index == last_log.index && self.heard_lately(progress);
            has_all && self.memberships.current().is_voter(*id)
        });
        if let Some((to, _)) = able.max_by_key(|(id, progress)| (progress.priority, id.0)) {
            self.send(to, Message::TimeoutNow(TimeoutNow { last_log }));
        }
    }

    /// With each round of heartbeats: whoever should lead rather than this server, has been there for a while and keeps up, takes over.
    pub(crate) fn yield_to_preferred(&mut self) {
        let RoleState::Leader(leader) = &self.role else { return };
        if self.now < leader.yield_at || leader.transfer.is_some() {
            return;
        }
        let keeps_up = |progress: &Progress| {
            !progress.probing && progress.next_index > self.log.commit && self.heard_lately(progress)
        };
        let preferred = leader
            .progress
            .iter()
            .filter(|(id, progress)| {
                progress.priority > self.config.priority
                    && self.memberships.current().is_voter(*id)
                    && keeps_up(progress)
            })
            .max_by_key(|(_, progress)| (progress.priority, progress.match_index))
            .map(|(id, _)| id);
        if let Some(to) = preferred {
            let again_at = self.now + self.config.election_timeout.saturating_mul(YIELD_AGAIN_AFTER);
            if let RoleState::Leader(leader) = &mut self.role {
                leader.yield_at = again_at;
            }
            self.begin_transfer(to);
        }
    }

    /// When a new leader may think of handing over by itself.
    pub(crate) fn first_yield_at(&self) -> Instant {
        self.now + self.config.election_timeout.saturating_mul(YIELD_AFTER)
    }

    /// The leader hands over to this server: it stands at once, without asking first (the others would refuse, because they hear the
    /// leader), and with the leader's leave.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, request: TimeoutNow) {
        if self.follow(from) && self.log.last_id() == request.last_log {
            self.campaign_for_transfer();
        }
    }
}
