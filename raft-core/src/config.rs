//! Settings of one server.

use std::time::Duration;

use crate::types::NodeId;

/// Settings of one [`Raft`](crate::Raft). [`Config::new`] gives the defaults; change the fields you care about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// This server.
    pub id: NodeId,
    /// Which of the servers that have had this id: 0 for a founder, and a number that is drawn anew for each empty disk that joins later. See
    /// [`Membership`](crate::Membership).
    pub identity: u64,
    /// Shortest time without a leader after which a follower campaigns; each wait is drawn anew from `[t, 2t)`
    /// (paper, section 5.2). Also how long a leader goes on without a majority, and how long a follower that hears a leader refuses to vote.
    pub election_timeout: Duration,
    /// Time between heartbeats. At most half of `election_timeout`.
    pub heartbeat_interval: Duration,
    /// How long a leader may keep the news that something is committed to itself when nothing is on its way to a follower that could carry it. The
    /// next append carries it, and under load that comes soon: a lone write then costs two messages a follower instead of three. What is acknowledged, and
    /// when, does not depend on it; followers apply later by as much. Heartbeats carry it, too. Zero, the default: not at all.
    pub commit_notification_delay: Duration,
    /// Ask before raising the term, so that a server that cannot win does no harm (thesis, section 9.6).
    pub pre_vote: bool,
    /// A leader that hears no majority for an election timeout steps down (thesis, section 6.2).
    pub check_quorum: bool,
    /// A new leader appends an empty entry, so that entries of earlier terms are committed and reads can be served without
    /// waiting for a command (paper, section 8). Off, commands alone take indices: the first has index 1.
    pub no_op_on_election: bool,
    /// Largest command, in bytes.
    pub max_entry_bytes: usize,
    /// Most bytes of entries in one AppendEntries. A larger single entry travels alone.
    pub max_append_bytes: usize,
    /// Most AppendEntries on their way to one follower.
    pub max_inflight_appends: usize,
    /// Most bytes of entries on their way to one follower.
    pub max_inflight_bytes: usize,
    /// Bytes of entries that may be proposed and not yet committed; beyond it, [`Busy`](crate::ProposeError::Busy).
    pub max_uncommitted_bytes: usize,
    /// Bytes of entries that may be with the state machine at a time; and beyond it for all that is committed and not applied,
    /// [`Busy`](crate::ProposeError::Busy).
    pub max_unapplied_bytes: usize,
    /// Bytes of the newest entries kept in memory for followers, beyond those that must be kept.
    pub max_cached_bytes: usize,
    /// Most term runs in one rejection. One round trip finds the match of two logs that differ in fewer terms.
    pub max_reject_runs: usize,
    /// A leader whose own disk takes longer than this for a write steps down, so that heartbeats do not outlive a dead disk. `None`, the default, is twice
    /// `election_timeout`, whatever that is: see [`Config::write_stall_limit`]. Longer is possible, for disks that pause now and then and are worth waiting for;
    /// writes then wait that long, where another server would have led after two election timeouts.
    pub max_write_stall: Option<Duration>,
    /// Most members, learners included.
    pub max_members: usize,
    /// Most entries that a learner may lack and become a voter nevertheless.
    pub max_promotion_lag: u64,
    /// Reads without a round trip, at the leader: see [`Lease`]. Off by default, because it trusts clocks. Must be the same on all servers.
    pub lease: Option<Lease>,
    /// A group in which nothing has happened for this long goes to sleep: no heartbeats, no election timers, nothing on the wire, until something
    /// happens again. `None`, the default, is never; otherwise it is at least twice `heartbeat_interval`. Must be the same on all servers.
    ///
    /// Who sleeps hears of a dead leader only from the transport, so the driver must see to it that [`Input::LinkReset`](crate::Input::LinkReset) comes
    /// within a bounded time after a peer has died or cannot be reached.
    pub quiesce_after: Option<Duration>,
    /// How much this server should lead: a leader hands over to a voter of higher priority once that has kept up for a while. Votes do
    /// not depend on it, so it costs no safety, and no availability when the preferred servers are down.
    pub priority: u8,
    /// Seed of the election timeouts, and of the names under which a follower asks the leader about reads. Servers need different ones (the
    /// id is mixed in), and every start of a server needs another.
    pub seed: u64,
}

/// Settings of lease reads (thesis, section 6.4.1): while a majority has promised to vote for nobody else, the leader answers reads without asking.
///
/// The promises are timed by the monotonic clocks of the servers, which must also go on while a machine is suspended. A leader's lease
/// begins when it *sends* a round of heartbeats that a majority answers. It ends before the promises do, and for good when the leader begins to hand
/// over. With leases, servers vote for nobody for an election timeout after they start, because they do not know what they have promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    /// By how much a lease is shorter than the promises, in thousandths: at least the part by which the clocks of two servers can differ in
    /// speed. With clocks that are right within d, that is 2d. Below 1000.
    pub drift_per_mille: u32,
}

impl Config {
    /// The defaults, for server `id`.
    pub fn new(id: NodeId) -> Self {
        Config {
            id,
            identity: 0,
            election_timeout: Duration::from_millis(400),
            heartbeat_interval: Duration::from_millis(100),
            commit_notification_delay: Duration::ZERO,
            pre_vote: true,
            check_quorum: true,
            no_op_on_election: true,
            max_entry_bytes: 8 << 20,
            max_append_bytes: 1 << 20,
            max_inflight_appends: 256,
            max_inflight_bytes: 16 << 20,
            max_uncommitted_bytes: 64 << 20,
            max_unapplied_bytes: 64 << 20,
            max_cached_bytes: 32 << 20,
            max_reject_runs: 256,
            max_write_stall: None,
            lease: None,
            quiesce_after: None,
            priority: 0,
            max_members: 64,
            max_promotion_lag: 1000,
            seed: 0,
        }
    }

    /// How long a leader's own disk may take for a write: [`max_write_stall`](Self::max_write_stall), or else two election timeouts.
    pub fn write_stall_limit(&self) -> Duration {
        self.max_write_stall.unwrap_or(self.election_timeout.saturating_mul(2))
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let positive = [
            ("max_entry_bytes", self.max_entry_bytes),
            ("max_append_bytes", self.max_append_bytes),
            ("max_inflight_appends", self.max_inflight_appends),
            ("max_inflight_bytes", self.max_inflight_bytes),
            ("max_uncommitted_bytes", self.max_uncommitted_bytes),
            ("max_unapplied_bytes", self.max_unapplied_bytes),
            ("max_reject_runs", self.max_reject_runs),
            ("max_members", self.max_members),
        ];
        if let Some(&(name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::Zero(name));
        }
        if self.id.0 == 0 {
            return Err(ConfigError::Zero("id"));
        }
        if self.heartbeat_interval.is_zero() {
            return Err(ConfigError::Zero("heartbeat_interval"));
        }
        if self.max_write_stall.is_some_and(|limit| limit.is_zero()) {
            return Err(ConfigError::Zero("max_write_stall"));
        }
        if self.heartbeat_interval.saturating_mul(2) > self.election_timeout {
            return Err(ConfigError::HeartbeatTooSlow);
        }
        if self.lease.is_some_and(|lease| !self.check_quorum || lease.drift_per_mille >= 1000) {
            return Err(ConfigError::Lease);
        }
        if self.quiesce_after.is_some_and(|after| after < self.heartbeat_interval.saturating_mul(2)) {
            return Err(ConfigError::Quiescence);
        }
        Ok(())
    }
}

/// Why a server cannot start. Nothing has happened yet: mend the settings or the recovered state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting must not be zero.
    #[error("`{0}` must not be zero")]
    Zero(&'static str),
    /// The election timeout must leave room for a lost heartbeat.
    #[error("`heartbeat_interval` must be at most half of `election_timeout`")]
    HeartbeatTooSlow,
    /// Leases are promises not to vote, which only servers with CheckQuorum make; and of a promise something must be left.
    #[error("`lease` needs `check_quorum`, and a drift below 1000 thousandths")]
    Lease,
    /// Before a group sleeps, everybody must have answered a heartbeat of the time in which nothing happened.
    #[error("`quiesce_after` must be at least twice `heartbeat_interval`")]
    Quiescence,
    /// The recovered log, hard state and applied index contradict one another.
    #[error("recovered state is inconsistent: {0}")]
    Recovered(&'static str),
}
