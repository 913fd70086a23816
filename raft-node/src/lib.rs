//! A Raft node: the pure core wired to disk, network and a state machine.
#![forbid(unsafe_code)]

pub mod client;
pub mod config;
mod handle;
pub mod kv;
mod reply;
mod state_machine;

pub use handle::{Consistency, Proposal, Raft, ReadRequest};
pub use reply::{Applied, Outcome, ReplySink, RequestError, Responder};
pub use state_machine::{Replies, StateMachine};
