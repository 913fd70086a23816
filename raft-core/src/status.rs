//! What a server tells about itself.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Config;
use crate::membership::Membership;
use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::{Instant, LogId, LogIndex, NodeId, Term};

/// The role of a server (paper, Figure 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Follows a leader, or waits for one.
    Follower,
    /// Asks whether it could win an election.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Follower => "follower",
            Role::PreCandidate => "pre-candidate",
            Role::Candidate => "candidate",
            Role::Leader => "leader",
        })
    }
}

/// What a follower is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberRole {
    /// It votes (in one of the configurations, while the cluster is joint).
    Voter,
    /// It gets the log and has no vote.
    Learner,
    /// It is no member any more, and is being told so.
    Leaving,
}

impl std::fmt::Display for MemberRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MemberRole::Voter => "voter",
            MemberRole::Learner => "learner",
            MemberRole::Leaving => "leaving",
        })
    }
}

/// A leader's view of one follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Who.
    pub id: NodeId,
    /// What it is to the cluster.
    pub member: MemberRole,
    /// Highest entry known to be on its disk.
    pub match_index: LogIndex,
    /// Next entry to be sent.
    pub next_index: LogIndex,
    /// Whether the leader is still looking for the point where the logs meet.
    pub probing: bool,
    /// Appends on their way.
    pub inflight_appends: usize,
    /// Bytes of entries on their way.
    pub inflight_bytes: usize,
    /// A snapshot on its way.
    pub snapshot: Option<SnapshotStatus>,
    /// Entries of the leader's log that are not known to be on its disk.
    pub missing_entries: u64,
    /// Bytes of those entries. Those that are not in the leader's memory any more are taken to be as large as those that are; if none is, this is 0.
    pub missing_bytes: usize,
    /// Whether all of them are: otherwise [`missing_bytes`](Self::missing_bytes) is a guess.
    pub missing_is_exact: bool,
    /// How long ago it was last heard, as of the last event; or, if never in this life of its, since when the leader waits for that. A group that
    /// [sleeps](crate::Config::quiesce_after) hears nothing.
    pub silent_for: Duration,
}

/// A snapshot on its way to a follower, as the leader's core knows it; the transport knows how far it has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotStatus {
    /// What it must reach, to be of use.
    pub at_least: LogIndex,
    /// When it was asked for, on the clock that is handed to the core.
    pub since: Instant,
}

/// A snapshot of a server's state, for people and for tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// This server.
    pub id: NodeId,
    /// Which of the servers that have had this id: see [`Config::identity`](crate::Config::identity).
    pub identity: u64,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub current_term: Term,
    /// Its vote in that term.
    pub voted_for: Option<NodeId>,
    /// The leader of that term, if it is known.
    pub leader: Option<NodeId>,
    /// To whom this server, which leads, is handing over.
    pub transferring_to: Option<NodeId>,
    /// The shortest time after which one that was not heard counts as silent: [`Config::election_timeout`].
    pub election_timeout: Duration,
    /// Whether the group [sleeps](crate::Config::quiesce_after), as far as this server knows.
    pub quiesced: bool,
    /// Whether it may answer reads by its [lease](crate::Lease).
    pub has_lease: bool,
    /// The entry before the first in the log.
    pub log_start: LogId,
    /// The last entry.
    pub last_log: LogId,
    /// Highest entry known to be committed.
    pub commit_index: LogIndex,
    /// Highest entry on this server's disk. Behind a snapshot that was just taken over, until the log has heard of it.
    pub durable_index: LogIndex,
    /// Highest entry that the state machine has applied.
    pub applied_index: LogIndex,
    /// Bytes proposed or received and not yet committed.
    pub uncommitted_bytes: usize,
    /// Bytes committed and not yet applied.
    pub unapplied_bytes: usize,
    /// How long its disk has been busy with one write, as of the last event; not set when none is on its way.
    pub writing_for: Option<Duration>,
    /// Whether a leader would refuse commands for the time being, because too much is not committed or not applied.
    pub is_busy: bool,
    /// Whether its state machine is taking over a snapshot.
    pub is_restoring: bool,
    /// Who belongs to the cluster: the newest membership in the log, committed or not.
    pub membership: Arc<Membership>,
    /// Index of the entry that brought it, or of the start of the log. It is committed when [`commit_index`](Self::commit_index) has reached it.
    pub membership_index: LogIndex,
    /// The followers, when this server leads.
    pub followers: Vec<FollowerStatus>,
}

impl Raft {
    /// What this server knows of itself and, when it leads, of its followers.
    pub fn status(&self) -> Status {
        let (role, followers) = match &self.role {
            RoleState::Follower => (Role::Follower, Vec::new()),
            RoleState::PreCandidate(_) => (Role::PreCandidate, Vec::new()),
            RoleState::Candidate(_) => (Role::Candidate, Vec::new()),
            RoleState::Leader(leader) => {
                let followers = leader.progress.iter().map(|(id, progress)| {
                    let (inflight_appends, inflight_bytes) = progress.in_flight();
                    let (match_index, next_index) = (progress.match_index, progress.next_index);
                    let probing = progress.probing;
                    let member = self.member_role(id);
                    let snapshot = progress.snapshot().map(|(at_least, since)| SnapshotStatus { at_least, since });
                    let (missing_bytes, missing_is_exact) = self.log.bytes_after(match_index);
                    FollowerStatus {
                        id,
                        member,
                        match_index,
                        next_index,
                        probing,
                        inflight_appends,
                        inflight_bytes,
                        snapshot,
                        missing_entries: self.log.last_index().0.saturating_sub(match_index.0),
                        missing_bytes,
                        missing_is_exact,
                        silent_for: self.now.since(progress.last_contact),
                    }
                });
                (Role::Leader, followers.collect())
            }
        };
        let (uncommitted_bytes, unapplied_bytes) = self.log.backlog();
        Status {
            id: self.config.id,
            identity: self.config.identity,
            role,
            current_term: self.hard_state.current_term,
            voted_for: self.hard_state.voted_for,
            leader: self.leader,
            transferring_to: self.transferring_to(),
            election_timeout: self.config.election_timeout,
            quiesced: self.quiesced,
            has_lease: self.has_lease(),
            log_start: self.log.start(),
            last_log: self.log.last_id(),
            commit_index: self.log.commit,
            durable_index: self.durability.durable(),
            applied_index: self.log.applied,
            uncommitted_bytes,
            unapplied_bytes,
            writing_for: self.durability.writing_since().map(|since| self.now.since(since)),
            is_busy: uncommitted_bytes >= self.config.max_uncommitted_bytes
                || unapplied_bytes > self.config.max_unapplied_bytes,
            is_restoring: self.restoring.handed_out().is_some(),
            membership: self.memberships.shared().clone(),
            membership_index: self.memberships.index(),
            followers,
        }
    }

    fn member_role(&self, id: NodeId) -> MemberRole {
        let membership = self.memberships.current();
        if membership.is_voter(id) {
            MemberRole::Voter
        } else if membership.contains(id) {
            MemberRole::Learner
        } else {
            MemberRole::Leaving
        }
    }

    /// Who belongs to the cluster: the newest membership in the log, and the index of its entry.
    pub fn membership(&self) -> (LogIndex, &Membership) {
        (self.memberships.index(), self.memberships.current())
    }

    /// Who belonged to the cluster as of the entry at `index`; `None` if that is below the start of the log, or behind its end; and on a server
    /// that joined later before the first entry that says who belongs to it. For whoever makes a snapshot: without that, it is of use to nobody.
    pub fn membership_at(&self, index: LogIndex) -> Option<&Membership> {
        let known = self.log.term_at(index).map(|_| self.memberships.at(index));
        known.filter(|membership| !membership.voters().is_empty())
    }

    /// Whether this server leads. Cheaper than [`status`](Self::status).
    pub fn is_leader(&self) -> bool {
        matches!(self.role, RoleState::Leader(_))
    }

    /// Its settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The leader of the current term, if it is known.
    pub fn leader(&self) -> Option<NodeId> {
        self.leader
    }

    /// The current term.
    pub fn current_term(&self) -> Term {
        self.hard_state.current_term
    }

    /// The last entry of the log, whether it is durable or not.
    pub fn last_index(&self) -> LogIndex {
        self.log.last_index()
    }

    /// Highest entry that is known to be on this server's disk.
    pub fn durable_index(&self) -> LogIndex {
        self.durability.durable()
    }

    /// Highest entry that any other member has acknowledged, as far as this server knows; zero on one that does not lead.
    pub fn best_match_index(&self) -> LogIndex {
        let RoleState::Leader(leader) = &self.role else { return LogIndex::ZERO };
        leader.progress.values().map(|progress| progress.match_index).max().unwrap_or_default()
    }

    /// Highest entry known to be committed.
    pub fn commit_index(&self) -> LogIndex {
        self.log.commit
    }

    /// The entry before the first one in the log.
    pub fn log_start(&self) -> LogId {
        self.log.start()
    }

    /// Highest entry that the state machine has applied.
    pub fn applied_index(&self) -> LogIndex {
        self.log.applied
    }

    /// The term of the entry at `index`, if the log reaches there.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.log.term_at(index)
    }

    /// Checks the invariants that are stated at [`Raft`]. For tests and simulation; costs time in proportion to what is cached.
    ///
    /// # Panics
    /// When one is broken, which is a bug in this crate.
    pub fn check_invariants(&self) {
        self.log.check(self.durability.durable());
        self.memberships.check(self.log.start().index, self.log.last_index());
        if let Some(last) = self.restoring.handed_out() {
            assert!(last.index > self.log.applying, "takes over what is behind it: {self:?}");
            let incomplete = !self.log.contains(last);
            assert!(!incomplete || self.log.commit < last.index, "committed beside a snapshot: {self:?}");
            assert!(!incomplete || !self.is_leader(), "leads without what is committed: {self:?}");
        }
        self.check_quiescence();
        assert!(self.log.last_id().term <= self.hard_state.current_term, "an entry is newer than the term: {self:?}");
        if let RoleState::Leader(leader) = &self.role {
            assert_eq!(self.leader, Some(self.config.id));
            let membership = self.memberships.current();
            assert!(
                !membership.contains(self.config.id) || membership.identity(self.config.id) == self.config.identity
            );
            assert_eq!(self.hard_state.voted_for, Some(self.config.id), "a leader voted for itself");
            for progress in leader.progress.values() {
                progress.check();
                assert!(progress.match_index <= self.log.last_index(), "matches what is not there: {self:?}");
            }
        } else {
            assert!(self.verified <= self.log.last_index(), "verified what is not there: {self:?}");
            assert!(self.leader != Some(self.config.id), "follows itself: {self:?}");
        }
    }
}
