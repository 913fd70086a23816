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
//! With a state machine of your own ([`swarm::workload::Workload`]), of which each object is checked by itself:
//!
//! ```
//! use raft_core::sim::swarm::mix::Mix;
//! use raft_core::sim::swarm::run_workload;
//! use raft_core::sim::swarm::workload::{Draw, Request, Workload};
//!
//! /// Flags that can be raised.
//! #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
//! struct Flags([bool; 8]);
//!
//! impl Workload for Flags {
//!     fn apply(&mut self, command: &[u8]) -> Vec<u8> {
//!         vec![u8::from(std::mem::replace(&mut self.0[usize::from(command[0])], true))]
//!     }
//!     fn query(&self, query: &[u8]) -> Vec<u8> {
//!         vec![u8::from(self.0[usize::from(query[0])])]
//!     }
//!     fn draw(draw: &mut Draw<'_>) -> (usize, Request) {
//!         let flag = draw.dice.pick(draw.objects);
//!         let bytes = vec![flag as u8];
//!         (flag, if draw.dice.chance(1, 2) { Request::Query(bytes) } else { Request::Command(bytes) })
//!     }
//! }
//!
//! let report = run_workload::<Flags>(7, Mix::of(7), None);
//! assert_eq!(report.failure, None);
//! assert!(report.committed > 0);
//! ```
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
