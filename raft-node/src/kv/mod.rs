//! A replicated key-value store: the state machine of the `raft-node` binary.
//!
//! Keys and values are bytes. Each key carries the *revision* of its last change: the log index of the command that made
//! it, so revisions grow along the whole store, and compare-and-swap on a revision cannot be fooled by a value that came
//! back. Revision 0 means that the key is absent.
//!
//! - [`Command`] is what goes into the log, [`Reply`] what its proposer gets;
//! - [`Query`] is what a read asks, [`Answer`] what it gets;
//! - [`KvStore`] keeps the data in a RocksDB of its own, apart from the log.
//!
//! A client that repeats a command whose reply it did not get opens a session ([`Command::Register`]): within one, a command that arrives twice
//! takes effect once, and both copies get the same reply (thesis, section 6.3).
//!
//! Limits on keys, values and sessions are constants of the format, because every node must come to the same verdict on the same
//! command. A node may refuse more at its edge (see [`Command::check`]), before a command gets into the log.

mod buffer;
mod command;
mod flush;
mod open;
mod scan;
mod sessions;
#[cfg(test)]
mod simulated;
mod snapshot;
mod store;
mod tables;

pub use command::{Answer, Command, DecodeError, Item, Query, Refusal, Reply};
pub use open::{KvError, KvIdentity, KvOptions};
pub use store::KvStore;

/// Longest key, in bytes. The shortest has one byte.
pub const MAX_KEY_BYTES: usize = 4 << 10;

/// Longest value, in bytes: with its key and framing it fits into the core's default limit of an entry (8 MiB).
pub const MAX_VALUE_BYTES: usize = (8 << 20) - (8 << 10);

/// Most sessions at a time. When one more is opened, the one that was not used for longest ends.
pub const MAX_SESSIONS: usize = 10_000;

/// Most commands of one session that its client may wait for at a time.
pub const MAX_SESSION_REPLIES: usize = 1024;

/// Most keys that one scan returns.
pub const MAX_SCAN_ITEMS: u32 = 10_000;

/// A scan stops after this many bytes of keys and values (but returns at least one key).
pub const MAX_SCAN_BYTES: usize = 1 << 20;
