//! Counters that any thread may read at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a storage has written since it was opened. Counters only grow.
#[derive(Debug, Default)]
pub struct StorageMetrics {
    writes: AtomicU64,
    syncs: AtomicU64,
    entries: AtomicU64,
    bytes: AtomicU64,
}

impl StorageMetrics {
    /// Writes (one for each [`Write`](raft_core::Write)) that became durable.
    pub fn writes(&self) -> u64 {
        self.writes.load(Relaxed)
    }

    /// Synced batches: `writes / syncs` is the group commit's mean size.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Relaxed)
    }

    /// Entries that were appended.
    pub fn entries(&self) -> u64 {
        self.entries.load(Relaxed)
    }

    /// Bytes handed to the write-ahead log: entries with all headers, hard states, truncations.
    pub fn bytes_written(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Counts one synced batch. For implementations of [`Storage`](crate::Storage).
    pub fn count_sync(&self, writes: u64, entries: u64, bytes: u64) {
        self.writes.fetch_add(writes, Relaxed);
        self.syncs.fetch_add(1, Relaxed);
        self.entries.fetch_add(entries, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }
}
