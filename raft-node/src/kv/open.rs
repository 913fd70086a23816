//! Opening the store's directory, and refusing the wrong one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use raft_core::{GroupId, LogIndex, NodeId};
use raft_storage::{FramingError, check_framing};
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, IteratorMode, LogLevel, Options, WriteBatch};

use super::store::{PREFIX, group_key, write_options};

/// The newest format of the directory that this version reads. A new directory has format 1; one that was restored from a snapshot has 2.
const FORMAT: u32 = 2;
const NEW: u32 = 1;

/// Whose store a directory is. It is written when the directory is created, and compared at every later opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KvIdentity {
    /// Name of the cluster.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
}

/// Settings of the store's RocksDB.
#[derive(Clone, Debug)]
pub struct KvOptions {
    /// Bytes of changed keys and values that are kept in memory before they are written out. At most twice as much accumulates
    /// while a write is under way.
    pub write_buffer_bytes: usize,
    /// Bytes of log entries after which changes are written out even if they are few: after a crash, at most about three times this
    /// much is replayed from the log.
    pub max_replay_bytes: usize,
    /// Size of the cache of uncompressed blocks, in bytes.
    pub block_cache_bytes: usize,
}

impl Default for KvOptions {
    fn default() -> Self {
        KvOptions { write_buffer_bytes: 16 << 20, max_replay_bytes: 64 << 20, block_cache_bytes: 32 << 20 }
    }
}

/// Why the store cannot be opened, or cannot go on. Nothing of this can be mended by trying again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// Another process (or another store of this one) has it open.
    #[error("{}: the state machine's directory is in use by another process", dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory holds something else.
    #[error("{}: not a directory of this state machine: {why}", dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// What was found.
        why: String,
    },
    /// The directory belongs to another node or cluster.
    #[error(
        "{}: this state machine belongs to node {} of cluster `{}`, not to node {} of cluster `{}`",
        dir.display(), found.node, found.cluster, expected.node, expected.cluster
    )]
    WrongIdentity {
        /// The directory.
        dir: PathBuf,
        /// Who asked.
        expected: KvIdentity,
        /// Whose it is.
        found: KvIdentity,
    },
    /// A newer version wrote it.
    #[error("{}: format {found} is newer than {FORMAT}, the newest that this version knows", dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Its content contradicts itself.
    #[error("{}: damaged: {what}", dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// Entries were handed over that do not follow on what is applied.
    #[error("entries from {first} on do not follow on the applied index {applied}")]
    Gap {
        /// First index of the entries.
        first: LogIndex,
        /// What the store contains.
        applied: LogIndex,
    },
    /// The directory cannot be read or made.
    #[error("{}: {source}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// An earlier flush failed: what was applied since then can never be written out.
    #[error("{}: an earlier flush failed: {why}", dir.display())]
    FlushFailed {
        /// The directory.
        dir: PathBuf,
        /// What RocksDB said then.
        why: String,
    },
    /// RocksDB failed.
    #[error("{}: {doing}: {source}", dir.display())]
    Database {
        /// The directory.
        dir: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// What RocksDB says.
        source: rocksdb::Error,
    },
}

/// Opens the database in `dir`, makes it if there is none, and checks whose it is.
pub(super) fn open(dir: &Path, identity: &KvIdentity, options: &KvOptions) -> Result<DB, KvError> {
    let directory = |source| KvError::Directory { dir: dir.to_owned(), source };
    fs::create_dir_all(dir).map_err(directory)?;
    if dir.join("CURRENT").exists() {
        check_frames(dir)?;
    } else {
        refuse_foreign_files(dir)?;
    }
    let db = DB::open(&database_options(options), dir).map_err(|source| {
        // RocksDB has no kind for this; both of its messages (same process, another process) name the lock file.
        if source.as_ref().contains("/LOCK") {
            KvError::InUse { dir: dir.to_owned() }
        } else {
            KvError::Database { dir: dir.to_owned(), doing: "opening", source }
        }
    })?;
    check_identity(&db, dir, identity)?;
    Ok(db)
}

/// A flipped bit in the MANIFEST may make RocksDB forget files, and with them applied entries that the log does not hold any more.
fn check_frames(dir: &Path) -> Result<(), KvError> {
    check_framing(dir).map_err(|error| match error {
        FramingError::Unreadable { path, source } => KvError::Directory { dir: path, source },
        damaged => KvError::Damaged { dir: dir.to_owned(), what: damaged.to_string() },
    })
}

/// A crash while RocksDB makes a new database leaves files of its own; anything else is somebody's data.
fn refuse_foreign_files(dir: &Path) -> Result<(), KvError> {
    let directory = |source| KvError::Directory { dir: dir.to_owned(), source };
    for file in fs::read_dir(dir).map_err(directory)? {
        let name = file.map_err(directory)?.file_name();
        let name = name.to_string_lossy();
        let ours = ["LOCK", "LOG", "MANIFEST-", "IDENTITY", "OPTIONS-"].iter().any(|prefix| name.starts_with(prefix))
            || Path::new(&*name).extension().is_some_and(|ext| ext == "dbtmp" || ext == "log");
        if !ours {
            return Err(KvError::NotOurs { dir: dir.to_owned(), why: format!("it contains `{name}`") });
        }
    }
    Ok(())
}

fn check_identity(db: &DB, dir: &Path, expected: &KvIdentity) -> Result<(), KvError> {
    let database = |doing| move |source| KvError::Database { dir: dir.to_owned(), doing, source };
    // Group 0 is no group: its keys are about the store as a whole.
    let key = identity_key();
    let Some(value) = db.get_pinned(key).map_err(database("reading the identity"))? else {
        if db.iterator(IteratorMode::Start).next().is_some() {
            return Err(KvError::NotOurs {
                dir: dir.to_owned(),
                why: "it holds a RocksDB database without this state machine's identity".into(),
            });
        }
        let mut batch = WriteBatch::default();
        batch.put(key, encode(NEW, expected));
        db.write_opt(batch, &write_options()).map_err(database("writing the identity"))?;
        // There is no write-ahead log: flushed is what makes it last.
        return db.flush().map_err(database("flushing the identity"));
    };
    let damaged = || KvError::Damaged { dir: dir.to_owned(), what: "the identity cannot be decoded".into() };
    let (format, rest) = value.split_first_chunk().ok_or_else(damaged)?;
    let format = u32::from_be_bytes(*format);
    if format > FORMAT {
        return Err(KvError::NewerFormat { dir: dir.to_owned(), found: format });
    }
    let (node, cluster) = rest.split_first_chunk().ok_or_else(damaged)?;
    let cluster = std::str::from_utf8(cluster).map_err(|_| damaged())?;
    let found = KvIdentity { cluster: cluster.to_owned(), node: NodeId(u64::from_be_bytes(*node)) };
    if found != *expected {
        return Err(KvError::WrongIdentity { dir: dir.to_owned(), expected: expected.clone(), found });
    }
    Ok(())
}

pub(super) fn identity_key() -> [u8; PREFIX] {
    group_key(GroupId(0), b'i')
}

/// The identity of a store of the newest format.
pub(super) fn encode_identity(identity: &KvIdentity) -> Vec<u8> {
    encode(FORMAT, identity)
}

fn encode(format: u32, identity: &KvIdentity) -> Vec<u8> {
    [&format.to_be_bytes()[..], &identity.node.0.to_be_bytes(), identity.cluster.as_bytes()].concat()
}

pub(super) fn database_options(options: &KvOptions) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    // Compare-and-swap and get of absent keys need not touch the files.
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_format_version(5);
    let mut db = Options::default();
    db.create_if_missing(true);
    db.set_block_based_table_factory(&blocks);
    // A buffer arrives as one batch and is flushed at once: RocksDB need not do it on its own account.
    db.set_write_buffer_size(options.write_buffer_bytes.saturating_mul(4));
    db.set_max_write_buffer_number(2);
    db.set_compression_type(DBCompressionType::Lz4);
    db.set_max_background_jobs(2);
    db.set_bytes_per_sync(1 << 20);
    // One thread writes, so concurrent inserts would cost and bring nothing.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_log_level(LogLevel::Warn);
    db.set_keep_log_file_num(3);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db
}
