//! Settings of the RocksDB store, and how they become RocksDB's.

use std::ffi::c_int;

use rocksdb::{BlockBasedOptions, Cache, DBCompressionType, DBRecoveryMode, LogLevel};

/// Settings of a [`RocksStorage`](crate::RocksStorage). The defaults suit a log on an SSD.
///
/// Not settings, because anything else would be wrong: every write is synced; a write-ahead log with a damaged
/// record in the middle is refused, while a torn record at its very end (an ordinary power failure) is not; no compression, since a log is
/// written once and hardly ever read; files of the write-ahead log are not recycled (RocksDB's `recycle_log_file_num`, a third faster
/// for small writes): that forces a recovery mode which silently drops everything behind a damaged record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Largest record, in bytes of packed entries; an entry that is larger gets a record of its own. At most 1 GiB. Larger records cost less
    /// CPU per entry, but a reader always reads whole records. Default: 1 MiB.
    pub max_record_bytes: usize,
    /// Bytes collected in memory before they go to a sorted file. Default: 16 MiB.
    pub write_buffer_bytes: usize,
    /// Write buffers that may wait to be flushed; when all are full, writes stall. Default: 4.
    pub max_write_buffers: u32,
    /// Size of the write-ahead log, in bytes, at which the oldest data are flushed so that it can shrink. Bounds the time to replay it
    /// at open. Default: 256 MiB.
    pub max_wal_bytes: u64,
    /// Size of the sorted files, in bytes. Default: 64 MiB.
    pub file_bytes: u64,
    /// Background flushes and compactions tell the kernel to begin writing after this many bytes, so that a sync never meets a mountain of
    /// dirty pages. Zero: never. Default: 1 MiB.
    pub bytes_per_sync: u64,
    /// Threads for flushes and compactions. Default: 2.
    pub background_jobs: u32,
    /// Files at level 0 from which on writes are slowed down. Default: 40.
    pub level0_slowdown_files: u32,
    /// Files at level 0 from which on writes stop. Default: 60.
    pub level0_stop_files: u32,
    /// Memory for blocks of sorted files that were read, in bytes. Reads of entries bypass it; it holds indexes. Default: 8 MiB.
    pub block_cache_bytes: usize,
    /// Bytes that the verification at open reads ahead. Default: 4 MiB.
    pub scan_readahead_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_record_bytes: 1 << 20,
            write_buffer_bytes: 16 << 20,
            max_write_buffers: 4,
            max_wal_bytes: 256 << 20,
            file_bytes: 64 << 20,
            bytes_per_sync: 1 << 20,
            background_jobs: 2,
            level0_slowdown_files: 40,
            level0_stop_files: 60,
            block_cache_bytes: 8 << 20,
            scan_readahead_bytes: 4 << 20,
        }
    }
}

impl Options {
    /// What a record may hold: never so much that its length does not fit into 32 bits.
    pub(crate) fn record_limit(&self) -> usize {
        self.max_record_bytes.clamp(1, 1 << 30)
    }

    pub(crate) fn database(&self) -> rocksdb::Options {
        let mut db = rocksdb::Options::default();
        db.create_if_missing(true);
        db.create_missing_column_families(true);
        db.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        // Notices at open that a whole file of the write-ahead log has vanished.
        db.set_track_and_verify_wals_in_manifest(true);
        db.set_max_total_wal_size(self.max_wal_bytes);
        db.set_bytes_per_sync(self.bytes_per_sync);
        db.set_max_background_jobs(int(self.background_jobs));
        // One thread writes: what lets several write at once only costs.
        db.set_allow_concurrent_memtable_write(false);
        db.set_enable_write_thread_adaptive_yield(false);
        // Old files are deleted in the background, not by the thread that writes.
        db.set_avoid_unnecessary_blocking_io(true);
        db.set_stats_dump_period_sec(0);
        db.set_stats_persist_period_sec(0);
        db.set_log_level(LogLevel::Warn);
        db.set_max_log_file_size(8 << 20);
        db.set_keep_log_file_num(4);
        db
    }

    pub(crate) fn column_family(&self) -> rocksdb::Options {
        let mut cf = rocksdb::Options::default();
        cf.set_compression_type(DBCompressionType::None);
        cf.set_write_buffer_size(self.write_buffer_bytes);
        cf.set_max_write_buffer_number(int(self.max_write_buffers.max(2)));
        cf.set_target_file_size_base(self.file_bytes);
        cf.set_level_zero_slowdown_writes_trigger(int(self.level0_slowdown_files));
        cf.set_level_zero_stop_writes_trigger(int(self.level0_stop_files));
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_size(64 << 10);
        blocks.set_block_cache(&Cache::new_lru_cache(self.block_cache_bytes));
        cf.set_block_based_table_factory(&blocks);
        cf
    }
}

fn int(n: u32) -> c_int {
    c_int::try_from(n).unwrap_or(c_int::MAX)
}
