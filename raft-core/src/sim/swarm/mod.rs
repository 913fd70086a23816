//! Whole clusters under every mix of faults: each seed decides how many servers there are and with which settings, what the network and
//! the disks do to them, and what clients ask of them. The faults go on for a minute or more of virtual time; then they end, and the
//! cluster must recover.
//!
//! What is held against every run:
//!
//! - Raft's promises, by the [`checker`](super::checker), after every event;
//! - the core's own order, by [`Raft::check_invariants`](crate::Raft::check_invariants), whenever a server has told of something out of the ordinary (a
//!   role, a term, a truncation), and else only every 32nd time that one is at work: the check takes time in proportion to the log in memory;
//! - every change that was acknowledged is committed, on the disks of a majority, and all state machines are equal;
//! - what the clients saw of each key is [linearizable](super::linearizability);
//! - a command that a client repeats in its session, because it does not know what came of it, is carried out at most once and answered alike each
//!   time; and whoever is told that nothing happened is told the truth;
//! - once the faults have ended, a leader is elected, every client is served, and all servers come to the same state, within a bound.
//!
//! A server whose sync fails is stopped by the simulation itself, which knows that this is the rule: that the real writer stops, and acknowledges nothing
//! after a failed sync, is tested where it is, in `raft-node`.
//!
//! Parts: [`mix`] is what a seed decides; [`sometimes`] counts what occurred; the others are private: the servers with their disks, clocks
//! and state machines, the network, the clients, the operator, who changes who belongs
//! to the cluster, and the nemesis, who decides about faults.

mod carry_out;
mod client;
mod clock;
mod conversation;
mod finale;
pub mod mix;
mod nemesis;
mod network;
mod once;
mod operator;
pub mod registers;
mod replica;
mod server;
mod sessions;
pub mod sometimes;
mod transfer;
pub mod watch;
pub mod workload;
mod world;

use std::time::Duration;

use self::mix::Mix;
use self::registers::Registers;
use self::sometimes::Counts;
use self::watch::Watch;
use self::workload::Workload;

/// What came of one seed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Which seed.
    pub seed: u64,
    /// What went wrong, if anything did.
    pub failure: Option<String>,
    /// How much virtual time passed.
    pub simulated: Duration,
    /// How long the cluster took to recover from the faults; `None` if the run ended before that.
    pub recovery: Option<Duration>,
    /// Operations of clients that succeeded.
    pub completed: u64,
    /// Changes of which the clients never heard.
    pub in_doubt: u64,
    /// Commands that were committed.
    pub committed: u64,
    /// Events that were handled.
    pub events: u64,
    /// Keys of which it could not be decided whether they were linearizable.
    pub unknown: u64,
    /// The rare situations that occurred.
    pub counts: Counts,
    /// Depends on everything that happened: equal for two runs of a seed.
    pub fingerprint: u64,
}

/// Runs the mix of a seed. `watch` is told the whole story.
pub fn run(seed: u64, watch: Option<&mut dyn Watch>) -> Report {
    run_mix(seed, Mix::of(seed), watch)
}

/// Runs a mix of your own making with the chance of a seed.
pub fn run_mix(seed: u64, mix: Mix, watch: Option<&mut dyn Watch>) -> Report {
    run_workload::<Registers>(seed, mix, watch)
}

/// Runs a mix on a state machine of your own.
pub fn run_workload<W: Workload>(seed: u64, mix: Mix, watch: Option<&mut dyn Watch>) -> Report {
    world::World::<W>::new(seed, mix, watch).run()
}
