//! A Raft node: the pure core wired to disk, network and a state machine.
#![forbid(unsafe_code)]

pub mod client;
pub mod config;
mod applier;
mod driver;
mod event_loop;
mod handle;
pub mod kv;
mod node;
mod reader;
mod reply;
mod state_machine;
mod writer;

pub use event_loop::Fatal;
pub use node::{Builder, Metrics, StartError};
pub use handle::{Consistency, Proposal, Raft, ReadRequest};
pub use reply::{Applied, Outcome, ReplySink, RequestError, Responder};
pub use state_machine::{Replies, StateMachine};
