//! What to explore, and how far.

use std::time::Duration;

use crate::change::MembershipChange;
use crate::config::Config;
use crate::membership::Membership;
use crate::status::Status;
use crate::types::{NodeId, Term};

/// One exploration: a cluster, where it starts, what may happen to it, and the bounds that make it finite. Whatever leads beyond a bound
/// is cut off and counted.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it is called.
    pub name: String,
    /// How many servers, 1 to 9.
    pub servers: usize,
    /// How many of these, the last ones, are learners that know of nobody at the start.
    pub newcomers: usize,
    /// A change of the membership that leaders may begin, once in all, in so far as they accept it.
    pub change: Option<MembershipChange>,
    /// The terms of the entries on each server's disk at the start, after a restart of all of them; missing logs are empty. The terms
    /// must be such as real elections could have left.
    pub start: Vec<Vec<u64>>,
    /// How many entries at the beginning of each server's log are forgotten at the start, because its state machine keeps what came of them. Missing
    /// numbers are 0. Those entries must be committed.
    pub forgotten: Vec<u64>,
    /// Server 1 is elected first, without a fault; bounds count from there on.
    pub led: bool,
    /// Writes take no time, so that a crash loses none.
    pub prompt_disks: bool,
    /// [`Config::pre_vote`].
    pub pre_vote: bool,
    /// [`Config::check_quorum`].
    pub check_quorum: bool,
    /// [`Config::no_op_on_election`].
    pub no_op_on_election: bool,
    /// Groups sleep ([`Config::quiesce_after`]); then whoever lives hears it when another dies, sooner or later.
    pub quiesces: bool,
    /// Each append carries one entry at most ([`Config::max_append_bytes`]), so that it may say less than its sender knows.
    pub single_entries: bool,
    /// Whether a message may arrive again and again, or at most once. Either way it may be lost, delayed and overtaken.
    pub repeats: bool,
    /// A restarted state machine remembers what was applied (and is on the disk), or nothing.
    pub remembers_applied: bool,
    /// Elections: how many terms beyond those at the start.
    pub terms: u64,
    /// Entries in a log.
    pub log_length: u64,
    /// Commands proposed in all.
    pub commands: u64,
    /// Reads asked for in all.
    pub reads: u64,
    /// Crashes in all, of any servers.
    pub crashes: u64,
    /// How often, in all, a state machine keeps what it has, so that its log is forgotten.
    pub compactions: u64,
    /// How many servers die, and never come back.
    pub deaths: u64,
    /// How often, in all, a server hears without a reason that a link was lost.
    pub resets: u64,
    /// Heartbeat rounds of one leadership.
    pub rounds: u64,
    /// Appends to one follower in one leadership.
    pub appends: u64,
    /// A situation to look for: the search ends when it finds it, and tells the way there as it does with a violation.
    pub wanted: Option<fn(&[Status]) -> bool>,
}

impl Settings {
    /// The protocol at its plainest, from the very beginning: `servers` empty servers, no pre-vote, no CheckQuorum.
    pub fn plain(name: &str, servers: usize) -> Self {
        Settings {
            name: name.to_owned(),
            servers,
            newcomers: 0,
            change: None,
            start: Vec::new(),
            forgotten: Vec::new(),
            led: false,
            prompt_disks: false,
            pre_vote: false,
            check_quorum: false,
            no_op_on_election: false,
            quiesces: false,
            single_entries: false,
            repeats: true,
            remembers_applied: false,
            terms: 2,
            log_length: 2,
            commands: 2,
            reads: 0,
            crashes: 1,
            compactions: 0,
            deaths: 0,
            resets: 0,
            rounds: 0,
            appends: 4,
            wanted: None,
        }
    }

    /// Who founds the cluster, as server `id` knows it.
    pub(super) fn founders(&self, id: NodeId) -> Membership {
        let founders = (1..=(self.servers - self.newcomers) as u64).map(NodeId);
        if !founders.clone().any(|founder| founder == id) {
            return Membership::default();
        }
        let voters = Membership::of_voters(founders);
        // Whoever comes later is introduced already: that it has answered is up to the exploration.
        let newcomers = ((self.servers - self.newcomers) as u64 + 1..=self.servers as u64).map(NodeId);
        let joining = newcomers.fold(MembershipChange::new(), |change, id| change.learner(id).identity(id, 0));
        voters.changed(&joining).unwrap_or(voters)
    }

    /// Settings of server `id`. No timer runs out by itself: the explorer decides what time it is.
    pub(super) fn config(&self, id: NodeId) -> Config {
        let config = Config::new(id);
        Config {
            quiesce_after: self.quiesces.then_some(config.heartbeat_interval * 2),
            pre_vote: self.pre_vote,
            check_quorum: self.check_quorum,
            no_op_on_election: self.no_op_on_election,
            max_append_bytes: if self.single_entries { 1 } else { 1 << 20 },
            max_write_stall: Some(WRITE_STALL),
            ..config
        }
    }

    /// The greatest term at the start.
    pub(super) fn first_term(&self) -> Term {
        Term(self.start.iter().flatten().copied().max().unwrap_or(0))
    }

    /// The greatest term that is explored.
    pub(super) fn last_term(&self) -> Term {
        Term(self.first_term().0 + u64::from(self.led) + self.terms)
    }
}

/// Longer than two election timeouts, so that an election timer may run out without the disk being taken for dead.
pub(super) const WRITE_STALL: Duration = Duration::from_secs(10);

/// The explorations that `cargo xtask explore` runs: each strains another part of the protocol, with bounds as tight as that allows, because
/// every crash, heartbeat or term more multiplies the states.
pub fn suite() -> Vec<Settings> {
    let three = |name| Settings::plain(name, 3);
    let led = |name| Settings { led: true, terms: 1, ..three(name) };
    let mut suite = vec![
        Settings { terms: 1, commands: 1, ..three("one election, a command, a crash") },
        Settings { commands: 1, ..three("two elections, a command, a crash") },
        led("a leader, two commands, and its successor"),
        Settings {
            repeats: false,
            crashes: 2,
            rounds: 1,
            ..led("the same, with heartbeats and a crash more, messages arrive once")
        },
        Settings {
            pre_vote: true,
            check_quorum: true,
            no_op_on_election: true,
            remembers_applied: true,
            log_length: 3,
            commands: 1,
            ..led("pre-vote, CheckQuorum and no-op: the defaults")
        },
        Settings {
            prompt_disks: true,
            no_op_on_election: true,
            log_length: 3,
            commands: 1,
            reads: 1,
            rounds: 1,
            crashes: 0,
            ..led("reads, and a leader that does not know that it is none")
        },
        Settings {
            start: vec![vec![1, 2], vec![1], vec![1, 3]],
            prompt_disks: true,
            log_length: 3,
            commands: 0,
            crashes: 0,
            ..three("Figure 8 of the paper, from (b) on")
        },
        Settings {
            start: vec![vec![1, 1, 3], vec![1, 2, 2], vec![1]],
            terms: 1,
            log_length: 4,
            ..three("logs that part in several terms")
        },
        Settings {
            start: vec![vec![1, 2, 2], vec![1], vec![1]],
            prompt_disks: true,
            single_entries: true,
            log_length: 3,
            commands: 1,
            crashes: 0,
            ..three("a longer log of an older term")
        },
        Settings {
            newcomers: 1,
            change: Some(MembershipChange::new().voter(NodeId(3)).remove(NodeId(1)).forced()),
            prompt_disks: true,
            repeats: false,
            no_op_on_election: true,
            log_length: 4,
            commands: 0,
            crashes: 0,
            ..led("two servers; the leader is replaced by a third")
        },
        Settings {
            start: vec![vec![1, 1], vec![1, 1], vec![]],
            forgotten: vec![1, 1],
            log_length: 3,
            commands: 1,
            compactions: 1,
            ..led("a follower that needs a snapshot, and perhaps a newer one")
        },
        Settings {
            terms: 3,
            log_length: 3,
            crashes: 3,
            commands: 3,
            rounds: 1,
            ..Settings::plain("two servers, three elections, three crashes", 2)
        },
    ];
    suite.extend(sleeping());
    suite
}

/// Groups that sleep, and one server of them dies.
fn sleeping() -> [Settings; 2] {
    let plain = |name, servers| Settings {
        led: true,
        quiesces: true,
        prompt_disks: true,
        no_op_on_election: true,
        commands: 0,
        crashes: 0,
        deaths: 1,
        resets: 1,
        rounds: 1,
        terms: 1,
        ..Settings::plain(name, servers)
    };
    [
        plain("two servers that sleep, and one dies", 2),
        Settings {
            pre_vote: true,
            repeats: false,
            ..plain("three servers that sleep, with pre-vote, and one dies", 3)
        },
    ]
}
