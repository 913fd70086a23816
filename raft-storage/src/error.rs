//! What can go wrong, and what the caller does about it.

use std::path::PathBuf;
use std::sync::Arc;

use raft_core::{EntryError, GroupId, LogIndex, MembershipError, NodeId, WriteSeq};

/// Why a storage cannot be opened, read or written.
///
/// Errors of `open` leave the directory as it was: mend the cause and try again. Any error of
/// [`Storage::write`](crate::Storage::write) is final: acknowledge nothing and stop the process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Another process, or another part of this one, has the directory open.
    #[error("{} is in use by another process (or is still open in this one)", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds something that this crate did not put there, or lacks what it did.
    #[error("{} is not a Raft log: {found}", dir.display())]
    NotALog {
        /// The directory.
        dir: PathBuf,
        /// What gave it away.
        found: String,
    },
    /// The directory belongs to a node of another cluster.
    #[error("{} belongs to cluster `{found}`, not to `{expected}`", dir.display())]
    WrongCluster {
        /// The directory.
        dir: PathBuf,
        /// The cluster that was to be opened.
        expected: String,
        /// The cluster that the directory belongs to.
        found: String,
    },
    /// The directory belongs to another node of this cluster.
    #[error("{} belongs to node {found}, not to node {expected}", dir.display())]
    WrongNode {
        /// The directory.
        dir: PathBuf,
        /// The node that was to be opened.
        expected: NodeId,
        /// The node that the directory belongs to.
        found: NodeId,
    },
    /// The group began with other voters than it is started with now.
    #[error(
        "{} began with the voters {}, not with {}: voters cannot be changed by starting with others",
        dir.display(), list(found), list(expected)
    )]
    WrongFounders {
        /// The directory.
        dir: PathBuf,
        /// The voters that it was started with.
        expected: Vec<NodeId>,
        /// The voters with which it began.
        found: Vec<NodeId>,
    },
    /// Written by a newer version of this software. Nothing is wrong with it; use that version.
    #[error("{place} has format {found}; this version reads up to format {supported}")]
    NewerFormat {
        /// Where.
        place: String,
        /// The format that was found.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// The name of a cluster cannot be stored.
    #[error("cluster name of {0} bytes: it must have 1 to 255")]
    BadClusterName(usize),
    /// Entries are missing in the middle of a log. Restore the node from its peers: remove it, empty the directory, add it again.
    #[error("group {group}: the log has a gap: expected a record at index {expected}, found the next at {found}")]
    Gap {
        /// The group whose log it is.
        group: GroupId,
        /// The index at which a record should begin.
        expected: LogIndex,
        /// The index at which the next one begins.
        found: LogIndex,
    },
    /// A record of the log is damaged. Restore the node from its peers.
    #[error("group {group}: the record at index {first} is damaged: {what}")]
    Record {
        /// The group whose log it is.
        group: GroupId,
        /// Index of the record's first entry.
        first: LogIndex,
        /// What is wrong.
        what: RecordDamage,
    },
    /// Something else than a record of the log is damaged. Restore the node from its peers.
    #[error("{place} is damaged: {what}")]
    Damaged {
        /// Where.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The group was deleted from this log: what was promised in it is forgotten, so it must not take part again.
    #[error(
        "group {group} was deleted here, and what this node promised in it is forgotten: it can never be opened here again under this id"
    )]
    Deleted {
        /// Which.
        group: GroupId,
    },
    /// A write contradicts the log or the hard state: a defect of the caller. The storage is poisoned.
    #[error("group {group}: write {seq} is refused: {reason}")]
    BadWrite {
        /// The group it was for.
        group: GroupId,
        /// Its number.
        seq: WriteSeq,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// An earlier write failed, and nothing is known about what reached the disk. Stop the process; after a restart, recovery finds out.
    #[error("storage is out of service since an earlier write failed: {cause}")]
    Poisoned {
        /// The message of the error that did it.
        cause: Arc<str>,
    },
    /// The operating system or the storage engine failed.
    #[error("cannot {action}: {source}")]
    Engine {
        /// What was attempted.
        action: &'static str,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn list(ids: &[NodeId]) -> String {
    ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl StorageError {
    /// An error of the engine below, while doing `action` ("cannot `action`: ...").
    pub fn engine(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        StorageError::Engine { action, source: source.into() }
    }
}

/// What is wrong with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordDamage {
    /// Too short to be a record.
    #[error("only {0} bytes")]
    Short(usize),
    /// Bytes changed since it was written.
    #[error("checksum {found:#010x} instead of {expected:#010x}")]
    Checksum {
        /// As stored.
        expected: u32,
        /// As computed.
        found: u32,
    },
    /// It was written after another record than the one that precedes it now.
    #[error("it follows on a record with checksum {expected:#010x}, but the one before it has {found:#010x}")]
    Chain {
        /// Checksum of the predecessor, as stored in this record.
        expected: u32,
        /// Checksum of the record that precedes it now.
        found: u32,
    },
    /// An entry in it is damaged.
    #[error(transparent)]
    Entry(EntryError),
    /// It holds another number of entries than it says.
    #[error("{found} entries instead of {expected}")]
    Count {
        /// As stored.
        expected: u32,
        /// As found.
        found: usize,
    },
    /// The term of its first entry is below the term of the entry before.
    #[error("its term is below that of the record before it")]
    Term,
    /// An entry of kind [`Membership`](raft_core::EntryKind::Membership) holds none.
    #[error("entry {index} holds no membership: {error}")]
    Membership {
        /// The entry.
        index: LogIndex,
        /// What is wrong with it.
        error: MembershipError,
    },
}
