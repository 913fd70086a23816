//! Durable logs and hard states for Raft: what a server must remember across restarts (paper, Figure 2).
//!
//! # Contract
//!
//! A [`Storage`] belongs to one thread, the *writer*. It takes whatever the groups of the node want written, hands all of it to
//! [`Storage::write`] as one batch, and when that returns, everything in it is on the disk: one sync for all of them, however
//! many there are (group commit). Any error of it is final; see [`StorageError`]. Meanwhile other threads read entries through
//! clones of a [`StorageReader`]. At start, [`Storage::recover`] tells what the core wants to know of a group.
//!
//! There are two stores for production: [`RocksStorage`], and [`JournalStorage`], which makes small writes durable sooner and with less work. A [`Store`] is one of them, as a
//! setting says. [`MemoryStorage`] is for tests: it can lose what was not synced. All pass the [`conformance`] suite; so should yours.
//!
//! ```
//! use raft_core::{Entries, EntryKind, GroupId, HardState, LogIndex, NodeId, Segment, Term, Write, WriteSeq};
//! use raft_storage::{Identity, Options, RocksStorage, Storage, StorageReader};
//!
//! # let tmp = tempfile::tempdir()?;
//! # let dir = tmp.path().join("log");
//! let me = Identity::new("my-cluster", NodeId(1));
//! let mut storage = RocksStorage::open(&dir, &me, &Options::default())?;
//!
//! let entries = Segment::pack(LogIndex(1), Term(1), EntryKind::Command, &["x = 1", "y = 2"]).map(Entries::from);
//! let write = Write {
//!     seq: WriteSeq(1),
//!     hard_state: Some(HardState { current_term: Term(1), voted_for: Some(NodeId(1)) }),
//!     log_start: None,
//!     truncate_from: None,
//!     entries: entries.unwrap_or_default(),
//! };
//! storage.write(&[(GroupId::FIRST, write)])?;
//! // Here, and not earlier, the write may be acknowledged.
//! drop(storage);
//!
//! let mut storage = RocksStorage::open(&dir, &me, &Options::default())?;
//! let recovered = storage.recover(GroupId::FIRST)?;
//! assert_eq!((recovered.hard_state.current_term, recovered.last_index), (Term(1), LogIndex(2)));
//! let read = storage.reader().entries(GroupId::FIRST, LogIndex(2), LogIndex(2), usize::MAX)?;
//! assert_eq!(read.iter().map(|entry| entry.payload).collect::<Vec<_>>(), [b"y = 2"]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is on the disk
//!
//! This is about [`RocksStorage`]; the format of the journal is told where it [belongs](JournalStorage).
//!
//! A directory is one `RocksDB` database with two column families. Numbers are big-endian; a checksum is a CRC32C.
//!
//! **`log`**: key `group u64 | index of the first entry u64`. The value is a *record*: a contiguous piece of the group's log, usually
//! all that one batch appended, since an engine's costs are for each key, not for each byte. At most
//! [`Options::max_record_bytes`], unless a single entry is larger.
//!
//! ```text
//! format u8 = 1 | number of entries u32 | checksum of the record before u32 | checksum u32 | packed entries
//! ```
//!
//! The entries are packed as [`raft_core::Segment`] packs them, each with a checksum of its own, in the very bytes that travelled. The
//! record's checksum covers its key, its header and its entries, and the next record repeats it: records form a chain, so
//! one that is missing, or that a lost truncation left behind, does not fit between its neighbours. The first
//! record names the checksum in the log start, or 0.
//!
//! A log that is compacted loses whole records, those before the one in which it begins; entries of that one that lie before the start do not
//! count. The new start and one range deletion are part of the atomic batch that the write becomes; the space is given back later, by
//! deleting files that hold nothing else and by RocksDB's compactions. Records under smaller keys than the log start's first record are ignored.
//! When a log begins after an entry that it does not hold, all its records are deleted, and the first new one names a checksum
//! that is made of that entry's term and index.
//!
//! Truncating at index k deletes the records that begin at k or above, and rewrites the one that k lies inside of with what is
//! before k, in the same atomic batch as the entries that replace it.
//!
//! **`meta`**: key `group u64 | tag u8`. Each value ends in a checksum over its key and itself.
//!
//! | tag | value |
//! |---|---|
//! | 1, hard state | `format u8 = 1, current term u64, voted u8, voted for u64`; the term 2^64 - 1 says that the group was deleted, and nothing else is left of it |
//! | 2, log start | `format u8 = 2, index u64, term u64, checksum that the first record names u32, index under which the first record is stored u64`, then the membership as of the start ([`raft_core::Membership::encode`]); absent until the log is compacted. Format 1 ends after the checksum: the first record begins right after the start |
//! | 3, founders | `format u8 = 1`, then each voter of the first membership `u64` |
//! | 4, peers | `format u8 = 1`, then for each node whose messages were ever believed `node u64, incarnation u128` |
//! | 0xF0 of group 0, identity | `format u32 = 1, node u64, incarnation u128, name of the cluster` |
//!
//! # What is noticed, and what is not
//!
//! Opening reads everything once. It refuses another cluster's or node's directory, a newer format, a directory that is in
//! use or that holds something else, a gap between records, a record or an entry that fails its checksum or its place
//! in the chain, a damaged or missing hard state (the last entry's term must not be above it), and a write-ahead log or a MANIFEST that is
//! damaged. (`RocksDB` alone would take a flipped bit in the length of one of its frames for the end of the file.) What it cannot
//! notice is that the *end* of such a file is cleanly cut off: that is what a power failure leaves behind, and after a sync that
//! the disk confirmed, only a lying disk does. Compare the last index with what the state machine has applied to notice some of
//! that, too.

#![forbid(unsafe_code)]

pub mod conformance;
mod error;
mod fold;
mod journal;
mod memory;
mod metrics;
mod outline;
mod rocks;
mod storage;
mod store;

pub use error::{RecordDamage, StorageError};
pub use journal::{JournalOptions, JournalReader, JournalStorage};
pub use memory::{MemoryReader, MemoryStorage};
pub use metrics::StorageMetrics;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use rocks::fuzzing;
pub use rocks::{
    Acquaintance, FramingError, Health, Identity, KnownPeers, Options, RocksReader, RocksStorage, check_framing,
};
pub use storage::{RecoveredLog, Storage, StorageReader};
pub use store::{Engine, Store, StoreOptions, StoreReader};
