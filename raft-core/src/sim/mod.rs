//! A deterministic simulator: whole clusters in virtual time, on one thread, as a function of one number.
//!
//! The parts know little of each other, so that each can be replaced by another model:
//!
//! - [`schedule`]: the queue of things to come, and the dice.
//! - [`network`]: which messages arrive, when, and what they count for.
//! - [`disk`]: what is written, and what of it a crash leaves.
//! - [`outbox`]: what a server's [driver](crate::driver) hands out.
//! - [`node`]: a server, up or down: core, driver and disk.
//! - [`cluster`]: what connects servers, disks and network.
//! - [`checker`]: Raft's promises, checked after every event.
//! - [`task`]: scripts on virtual time.
//! - [`lab`]: the tests of MIT's course on distributed systems, labs 2A to 2D, 3A and 3B, written on all of this.
//! - [`linearizability`]: whether what clients saw can be explained.
//! - [`swarm`]: clusters under every mix of faults, with clients and a state machine; each seed another mix.
//! - [`explore`]: no dice: every order of events, up to a bound.
//!
//! Nothing here reads a clock, starts a thread or touches a file; all chance comes from the seed. A failure is replayed by
//! running its seed again.

pub mod checker;
pub mod cluster;
pub mod disk;
pub mod explore;
pub mod lab;
pub mod linearizability;
mod members;
pub mod network;
pub mod node;
pub mod outbox;
pub mod schedule;
pub mod swarm;
pub mod task;
