//! Raft consensus as a pure state machine: inputs go in, outputs come out, and nothing else happens.
//!
//! This crate does no I/O, reads no clock, starts no thread, and takes no randomness from outside: time is handed in, and the
//! election timeouts come from a seed. The same inputs always give the same outputs, so any run can be replayed.
//!
//! # The contract
//!
//! A driver owns one [`Raft`] per group and does four things in a loop:
//!
//! 1. **Wait** for a message, the completion of something, a request, or [`Raft::deadline`], whichever comes first.
//! 2. **Feed** everything that has come: [`Raft::step`] for events, [`Raft::propose`] and [`Raft::read_index`] for requests. None of
//!    them blocks. Draining all that is there before the next point is what makes batches: nothing ever waits for a batch to fill.
//! 3. **Take** the [`Output`], once.
//! 4. **Carry it out**: every field has one destination (network, disk, state machine, reader, clients), and all may go at once
//!    and in any order. What must wait for the disk (votes, acknowledgements) has waited inside: whatever is in
//!    [`Output::messages`] may be sent.
//!
//! The driver's duties, which the core relies on:
//!
//! - [`Write`]s are made durable in the order of their numbers, and reported with [`Input::Persisted`] only when they are.
//!   After a failed write the server must stop: what is on the disk is not known any more.
//! - [`Output::apply`] goes to the state machine in order, and is reported with [`Input::Applied`]; [`Output::restore`] comes after it, and is reported
//!   with [`Input::Restored`].
//! - Messages are delivered to the server they name, from the server they name; they may be lost, repeated, delayed and reordered.
//! - After a crash, [`Recovered`] tells what the disk holds: all that was reported, and possibly more of what was handed out.
//!
//! Whatever a peer sends, [`Raft::step`] neither panics nor fails: nonsense is dropped and reported as [`Event::Rejected`].
//!
//! # A complete driver
//!
//! ```
//! use raft_core::*;
//!
//! // Three servers in one thread. The network, the disks and the state machines are vectors.
//! let ids = [1, 2, 3].map(NodeId);
//! let mut now = Instant::from_millis(0);
//! let mut servers: Vec<Raft> = ids.into_iter().map(|id| {
//!     Raft::new(Config::new(id), Recovered::fresh(Membership::of_voters(ids)), now).unwrap()
//! }).collect();
//! let mut applied: Vec<Vec<Vec<u8>>> = vec![Vec::new(); 3];
//! let mut network: Vec<Envelope> = Vec::new();
//!
//! while applied.iter().any(|commands| commands.is_empty()) {
//!     for (server, commands) in servers.iter_mut().zip(&mut applied) {
//!         // 1, 2: what has arrived, the clock, and a client that proposes once.
//!         let id = server.status().id;
//!         for message in network.extract_if(.., |m| m.to == id) {
//!             server.step(now, Input::Message(message));
//!         }
//!         server.step(now, Input::Wake);
//!         if server.is_leader() && server.status().uncommitted_bytes == 0 && commands.is_empty() {
//!             server.propose(now, &[b"hello"]).unwrap();
//!         }
//!         // 3, 4: and what is to be done.
//!         let output = server.take_output();
//!         network.extend(output.messages);
//!         if let Some(write) = output.write {
//!             // Here a real driver writes and syncs.
//!             server.step(now, Input::Persisted(write.seq));
//!         }
//!         for entry in output.apply.iter().filter(|entry| entry.kind == EntryKind::Command) {
//!             commands.push(entry.payload.to_vec());
//!         }
//!         if let Some(last) = output.apply.last_index() {
//!             server.step(now, Input::Applied(last));
//!         }
//!     }
//!     // A real driver sleeps until the next event or `Raft::deadline`.
//!     now = now + std::time::Duration::from_millis(1);
//! }
//! assert!(applied.iter().all(|commands| commands[0] == b"hello"));
//! ```
//!
//! # Testing what is built on it
//!
//! With the feature `sim` there is a deterministic simulator of whole clusters, `sim`: faults of every kind, a state machine of your own
//! (`sim::swarm::run_workload`), or an exhaustive search (`sim::explore`). A failure is a number that repeats it.
//!
//! # Sources
//!
//! "The paper" is Ongaro and Ousterhout, *In Search of an Understandable Consensus Algorithm (Extended Version)*, 2014; "the
//! thesis" is Ongaro, *Consensus: Bridging Theory and Practice*, 2014.
#![forbid(unsafe_code)]

mod cache;
mod change;
mod config;
pub mod driver;
mod durability;
mod election;
mod entries;
mod follower;
mod followers;
mod forward;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod io;
mod leader;
mod log;
mod membership;
mod memberships;
mod message;
mod progress;
mod quiescence;
mod raft;
mod read;
mod reconfigure;
mod recovery;
mod role;
mod room;
#[cfg(feature = "sim")]
pub mod sim;
mod snapshot;
mod status;
mod transfer;
mod types;

pub use change::{ChangeError, MembershipChange};
pub use config::{Config, ConfigError, Lease};
pub use entries::{ENTRY_HEADER, Entries, EntryError, EntryKind, EntryRef, Segment};
pub use io::{
    Anomaly, Event, Fetch, FetchId, Input, Output, ProposeError, Proposed, ReadError, ReadId, ReadOutcome, Recovered,
    Restore, SendSnapshot, SnapshotId, SnapshotMeta, SnapshotReceived, StepDownReason, TransferError, WakeReason,
    Write,
};
pub use membership::{Membership, MembershipError};
pub use message::{
    AppendAck, AppendEntries, AppendReject, Envelope, Heartbeat, HeartbeatReply, Message, Quiesce, ReadIndex,
    ReadIndexReply, TimeoutNow, VoteReply, VoteRequest,
};
pub use raft::Raft;
pub use status::{FollowerStatus, MemberRole, Role, SnapshotStatus, Status};
pub use types::{GroupId, HardState, Instant, LogId, LogIndex, NodeId, Term, WriteSeq};
