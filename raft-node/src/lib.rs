//! A Raft node: the pure core wired to a disk, a network and a state machine.
//!
//! # As a library
//!
//! Bring a [`StateMachine`]; [`Raft::builder`] takes a data directory, an address and certificates, and starts the node on a
//! thread of its own. The [`Raft`] handle proposes commands and answers queries, from any thread and any runtime.
//!
//! The contract:
//!
//! - A command that [`Raft::propose`] reports as applied is on the disks of a majority, and survives any crash.
//! - Every request ends: with its result, with an error after which it is certain that nothing happened
//!   ([`NotLeader`](RequestError::NotLeader), [`Busy`](RequestError::Busy), [`TooLarge`](RequestError::TooLarge),
//!   [`ShuttingDown`](RequestError::ShuttingDown)), or with [`OutcomeUnknown`](RequestError::OutcomeUnknown). There is never silence.
//! - [`Raft::read`] is linearizable unless [`Consistency::Stale`] is asked for.
//! - When the disk or the state machine fails, the node acknowledges nothing more and stops; [`Raft::stopped`] tells why. (On a node with several groups, a
//!   state machine that fails ends its own group, and no other.)
//!
//! ```
//! use bytes::BytesMut;
//! use raft_core::{Entries, EntryKind, LogIndex, NodeId};
//! use raft_net::{TlsIdentity, pki};
//! use raft_node::{Consistency, Raft, Replies, StateMachine};
//!
//! /// Adds up what it is told, and replies with the sum.
//! #[derive(Default)]
//! struct Sum {
//!     applied: LogIndex,
//!     sum: u64,
//! }
//!
//! impl StateMachine for Sum {
//!     type Error = std::convert::Infallible;
//!
//!     fn applied(&self) -> LogIndex {
//!         self.applied // nothing is kept on disk: the log is replayed from its beginning
//!     }
//!
//!     fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
//!         for entry in entries.iter() {
//!             if entry.kind == EntryKind::Command {
//!                 self.sum += entry.payload.iter().map(|&byte| u64::from(byte)).sum::<u64>();
//!                 replies.push(self.sum.to_string().as_bytes());
//!             }
//!             self.applied = entry.index;
//!         }
//!         Ok(())
//!     }
//!
//!     fn query(&mut self, _query: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error> {
//!         answer.extend_from_slice(self.sum.to_string().as_bytes());
//!         Ok(())
//!     }
//! }
//!
//! # tokio::runtime::Runtime::new()?.block_on(async {
//! // Certificates: usually made once, with `raft-node cert`.
//! let ca = pki::CertificateAuthority::generate(pki::DEFAULT_VALIDITY)?;
//! let node = ca.issue_node("demo", NodeId(1), pki::DEFAULT_VALIDITY)?;
//! let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &node.cert_pem, &node.key_pem)?;
//! let dir = tempfile::tempdir()?;
//!
//! // A cluster of one; the peers of a larger one are given with `.peers(..)`.
//! let raft = Raft::builder(Sum::default())
//!     .identity(NodeId(1), "demo")
//!     .data_dir(dir.path())
//!     .listen("127.0.0.1:0".parse()?)
//!     .tls(tls)
//!     .start()
//!     .await?;
//! raft.leader().wait_for(Option::is_some).await?;
//!
//! let applied = raft.propose(vec![1, 2, 3]).await?;
//! assert_eq!(applied.reply, "6");
//! assert_eq!(raft.read("", Consistency::Linearizable).await?, "6");
//!
//! raft.shutdown();
//! raft.stopped().await?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Many groups
//!
//! [`Node::builder`] starts a node without any. [`Node::create_group`] opens one, with a [`StateMachine`] of its own, and returns its [`Raft`] handle;
//! groups come and go at run time. They share the log's database and its syncs, the connections, the timer and the threads.
//!
//! # As a program
//!
//! The binary `raft-node` serves the replicated key-value store in [`kv`] to the clients in [`client`]; [`config`] is its
//! configuration file.
#![forbid(unsafe_code)]

mod alarms;
mod applier;
mod background;
mod builder;
pub mod client;
mod commits;
pub mod config;
mod doorkeeper;
mod farewell;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod handle;
mod handover;
mod host;
mod inbox;
pub mod kv;
mod launch;
mod member;
mod node;
mod open;
mod pace;
mod pool;
mod ports;
mod reader;
mod reply;
mod roster;
mod snapshot;
mod standing;
mod state_machine;
mod timings;
mod writer;

pub use builder::{Builder, StartError};
pub use handle::{Consistency, Proposal, Raft, ReadRequest, TransferFailure};
pub use inbox::Fatal;
pub use member::MemberInfo;
pub use node::{GroupError, GroupOptions, GroupStatus, Metrics, Node, NodeBuilder};
pub use reply::{Applied, Outcome, ReplySink, RequestError, Responder};
pub use snapshot::{SnapshotError, SnapshotFileError, SnapshotMetrics, SnapshotPolicy, SnapshotStats};
pub use standing::{Refusal, Standing};
pub use state_machine::{Cut, Replies, RestoreError, StateMachine, Work};
pub use timings::{Stage, StageTimes, Timings};
