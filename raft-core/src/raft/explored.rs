//! For exploration: when two servers are in the same state, apart from what time it is.

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::{Instant, NodeId};

impl Raft {
    /// Puts the server into an equivalent state in which the time is `now`, all that is still awaited was begun just now, and
    /// writes are numbered from the last completed one on. What may happen next is the same, if time may pass at any speed; only whether a leader
    /// was heard lately is kept, because votes depend on it. Returns by how much the numbers of writes fell.
    pub(crate) fn forget_time(&mut self, now: Instant) -> u64 {
        let protects = self.config.check_quorum && (self.leader.is_some() || self.config.lease.is_some());
        let lately = protects && self.now.since(self.leader_heard_at) < self.config.election_timeout;
        self.leader_heard_at = if lately { now } else { Instant(0) };
        self.election_at = now + self.config.election_timeout * 2;
        (self.election_open, self.failed_elections) = (false, 0);
        self.forwarded.forget_time(now);
        self.now = now;
        self.log.forget_pace();
        self.rng = SmallRng::seed_from_u64(0);
        if let RoleState::Leader(leader) = &mut self.role {
            let crate::role::Leader {
                progress,
                heartbeat_at,
                reads,
                transfer,
                lease_void: _,
                news_at,
                busy_at,
                yield_at,
                pace,
            } = leader;
            *news_at = news_at.map(|_| now + self.config.commit_notification_delay);
            *heartbeat_at = now + self.config.heartbeat_interval;
            (*busy_at, *yield_at) = (now, now);
            **pace = crate::room::Pace::default();
            reads.begun.clear();
            if let Some(crate::transfer::Transfer { to: _, until, told_at }) = transfer {
                *until = now + self.config.election_timeout;
                *told_at = told_at.map(|_| now);
            }
            progress.values_mut().for_each(|progress| progress.forget_time(now));
        }
        self.durability.forget_time(now)
    }

    /// Feeds everything that decides about the future of the server into `hasher`. Call [`forget_time`](Self::forget_time) before,
    /// and take the output.
    pub(crate) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        // Names every field, so that a new one has to be thought of here.
        let Raft {
            config,
            memberships,
            settled,
            belongs,
            hard_state,
            log,
            durability,
            role,
            leader,
            leader_heard_at,
            // Part of the settings.
            election_base: _,
            election_at,
            election_open,
            failed_elections,
            quiesced,
            vigil,
            forwarded,
            verified,
            owed_ack,
            told_match,
            // Decides about time only.
            rng: _,
            now,
            next_epoch,
            next_read,
            next_fetch,
            apply_fetch,
            applying,
            applying_bytes,
            restoring,
            out,
            // Says only whether it is worth a look.
            stirred: _,
        } = self;
        debug_assert!(out.is_empty(), "the output belongs to the state until it is taken");
        (config, memberships, settled, belongs, hard_state, log, durability, role).hash(hasher);
        (leader, leader_heard_at, election_at, verified, owed_ack, told_match).hash(hasher);
        (election_open, failed_elections, quiesced, vigil, forwarded).hash(hasher);
        (now, next_epoch, next_read, next_fetch, apply_fetch, applying, applying_bytes, restoring).hash(hasher);
    }

    /// Heartbeat rounds begun and, for the follower that got most, appends sent in this life as a leader.
    pub(crate) fn effort(&self) -> (u64, u64) {
        match &self.role {
            RoleState::Leader(leader) => {
                let appends = leader.progress.values().map(crate::progress::Progress::appends_sent).max();
                (leader.reads.round, appends.unwrap_or(0))
            }
            _ => (0, 0),
        }
    }

    /// Who is being sent a snapshot, and the epoch that names it.
    pub(crate) fn transfers(&self) -> impl Iterator<Item = (NodeId, u64)> {
        let progress = match &self.role {
            RoleState::Leader(leader) => Some(&leader.progress),
            _ => None,
        };
        let under_way = progress.into_iter().flat_map(crate::followers::Followers::iter);
        under_way.filter(|(_, progress)| progress.snapshot().is_some()).map(|(id, progress)| (id, progress.epoch))
    }

    /// Reads asked for in this life of the server.
    pub(crate) fn reads_asked(&self) -> u64 {
        self.next_read - 1
    }

    /// Whether votes are refused for the sake of a leader that was heard lately.
    pub(crate) fn protects_leader(&self) -> bool {
        matches!(self.role, RoleState::Follower) && self.leader_heard_at.0 > 0
    }
}
