//! A second store for production: the logs and hard states of all groups in a journal of our own, made for one thing, that a small write is durable soon.

mod file;
mod frame;
mod index;
mod reader;
mod record;
mod replay;
mod spares;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};
use std::time::Instant;

use raft_core::{GroupId, LogIndex, NodeId, Write};
use rand::TryRngCore;
use rand::rngs::OsRng;

use file::{PAGE, SegmentFile, Title};
use frame::Place;
use index::{Index, Location};
pub use reader::JournalReader;
use record::Piece;
use replay::Replayed;
use spares::Spares;

use crate::error::StorageError;
use crate::metrics::StorageMetrics;
use crate::outline;
use crate::rocks::{Identity, KnownPeers, Options, RocksStorage, create_dir};
use crate::storage::{RecoveredLog, Storage};

/// The folder of the small things.
pub(crate) const META: &str = "meta";
/// Capacity of the first segment; each later one has twice that of the one before, up to the limit.
const FIRST_CAPACITY: u64 = 1 << 20;
/// Bytes of entries that move with one write.
const MOVED_AT_ONCE: usize = 256 << 10;
/// So many segments may be held whatever is in them.
const FEW_SEGMENTS: usize = 4;
/// A buffer that was needed once for a large write is not kept.
const KEPT_BUFFER: usize = 4 << 20;

/// Settings of a [`JournalStorage`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalOptions {
    /// Size of a segment in bytes, at most 1 GiB. Larger ones cost room, and time when the journal is opened; smaller ones a little throughput. Default: 64 MiB.
    pub segment_bytes: u64,
    /// Segments that are kept to be used again, when they are not needed. Default: 4.
    pub spare_segments: usize,
}

impl Default for JournalOptions {
    fn default() -> Self {
        JournalOptions { segment_bytes: 64 << 20, spare_segments: 4 }
    }
}

impl JournalOptions {
    fn limit(&self) -> u64 {
        self.segment_bytes.clamp(2 * PAGE as u64, 1 << 30)
    }
}

/// Logs and hard states in a journal of segments.
///
/// # What is on the disk
///
/// A directory holds numbered *segments* (`00000000000000000007.journal`), and in `meta` a small [`RocksStorage`] for what is rarely written: whose directory it is,
/// founders, peers, deleted groups. Each [`write`](Storage::write) appends one *frame* to the newest segment and syncs it. The blocks of a segment have been written before, when
/// the file was made or was another segment, so the sync has no new length or blocks to note down; that is what makes it faster than the write-ahead log of a
/// general engine. Nothing else happens on that way: no sorted table, no flush, no compaction. Where entries lie is kept in memory, 24 bytes for what was appended together.
///
/// The first frame of a segment ends with a *checkpoint*: how each group stands. So an old segment is needed only as long as a log has entries in it. When
/// compaction of the logs has left nothing in the oldest segment, its file becomes a later one. A group that is hardly ever written to, or not compacted, would
/// keep it from that: when less than a quarter of what is held is needed, entries *move* from the oldest segment to the newest, along with later writes.
///
/// # What is noticed, and what is not
///
/// Opening reads and verifies everything. A frame is valid in one place of one segment of one journal only, and names the checksum of the one before it; a segment names
/// where the one before it ends. A frame is written when the one before it is durable: so one that is damaged, with a valid one behind it, was acknowledged, and is
/// refused. Damage to the very last frame looks like a write that a power failure interrupted, which is what it nearly always is, and ends the log before it. Nothing notices when the newest
/// segments are replaced by older states of themselves.
///
/// The directory stays locked until the storage *and* all its readers are dropped.
pub struct JournalStorage {
    /// Goes before `meta`: when the lock is gone, nobody must work in the directory any more.
    spares: Spares,
    dir: PathBuf,
    owner: Identity,
    journal: u128,
    options: JournalOptions,
    meta: RocksStorage,
    logs: BTreeMap<GroupId, RecoveredLog>,
    index: Arc<RwLock<Index>>,
    active: Active,
    /// The next segment, if it has been taken already.
    next: Option<SegmentFile>,
    /// What is to move out of the oldest segment.
    moving: VecDeque<(GroupId, LogIndex)>,
    /// Where frames are put together; kept to save an allocation for each.
    buffer: Vec<u8>,
    metrics: Arc<StorageMetrics>,
}

/// The segment that is written to.
#[derive(Debug)]
struct Active {
    file: Arc<SegmentFile>,
    /// Where the next frame begins.
    at: u64,
    /// Checksum of the last one.
    previous: u32,
}

/// What a write changes in the index, once it is durable. The ranges of pieces count from the beginning of the frame.
struct Change<'a> {
    group: GroupId,
    write: &'a Write,
    replaced: bool,
    pieces: Vec<Piece>,
}

impl JournalStorage {
    /// Opens the directory of `owner`, creates it when it is absent or empty, and verifies everything in it: about a second for each GiB.
    ///
    /// # Errors
    /// The directory is in use, belongs to someone else, is that of another store, comes from a newer version, or is damaged. The message says where, and the data are left as they are.
    pub fn open(dir: impl AsRef<Path>, owner: &Identity, options: &JournalOptions) -> Result<Self, StorageError> {
        let (dir, begin) = (dir.as_ref(), Instant::now());
        create_dir(dir).map_err(|error| StorageError::engine("create the log's directory", error))?;
        check_dir(dir)?;
        // From here on it is locked.
        let meta = RocksStorage::open(dir.join(META), owner, &small())?;
        file::settle_names(dir).map_err(|error| StorageError::engine("sync the log's directory", error))?;
        let (numbers, _) = file::list(dir).map_err(|error| StorageError::engine("list the log's directory", error))?;
        let deleted: BTreeSet<GroupId> = meta.deleted_groups().collect();
        let replayed = match replay::replay(dir, owner, &numbers, &deleted)? {
            Some(replayed) => replayed,
            None if meta.is_unused() && replay::never_begun(dir, &numbers)? => create(dir, owner, options.limit())?,
            None => {
                let what = "its segments are missing; what this node has promised is not known any more".to_owned();
                return Err(StorageError::Damaged { place: dir.display().to_string(), what });
            }
        };
        let Replayed { journal, mut index, mut logs, active, end, previous, spare } = replayed;
        // It has been read as a whole.
        active.leave_cache();
        spare.iter().for_each(SegmentFile::leave_cache);
        for group in deleted {
            index.forget(group);
            logs.insert(group, outline::deleted());
        }
        tracing::info!(
            dir = %dir.display(),
            groups = logs.len(),
            bytes = logs.values().map(|log| log.bytes).sum::<u64>(),
            segments = index.segments().count(),
            millis = begin.elapsed().as_millis() as u64,
            "journal opened and verified"
        );
        let spares = Spares::start(dir.to_owned(), options.spare_segments)?;
        let mut storage = JournalStorage {
            dir: dir.to_owned(),
            owner: owner.clone(),
            journal,
            options: options.clone(),
            meta,
            logs,
            index: Arc::new(RwLock::new(index)),
            active: Active { file: active, at: end, previous },
            next: spare,
            spares,
            moving: VecDeque::new(),
            buffer: Vec::new(),
            metrics: Arc::default(),
        };
        storage.retire();
        if storage.next.is_none() {
            storage.prepare();
        }
        Ok(storage)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A random number that was drawn when the directory was created. It tells a node that lost its disk from the one it was before.
    pub fn incarnation(&self) -> u128 {
        self.meta.incarnation()
    }

    /// By which incarnations the other nodes are known. When something about them cannot be written down, that is final for the storage, too.
    ///
    /// # Errors
    /// What is written down about them is damaged.
    pub fn known_peers(&self, group: GroupId) -> Result<KnownPeers, StorageError> {
        self.meta.known_peers(group)
    }

    /// Counters since it was opened.
    pub fn metrics(&self) -> Arc<StorageMetrics> {
        self.metrics.clone()
    }

    /// The segments that are held, and their size in bytes: without those that are out of use.
    pub fn held(&self) -> (usize, u64) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        index.segments().fold((0, 0), |(number, bytes), held| (number + 1, bytes + held.file.capacity))
    }

    /// Moves the logs on, then writes one frame with one sync. When it fails half-way, the logs are ahead of the disk: the caller
    /// poisons the storage.
    fn write_synced(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        buffer.resize(frame::HEADER, 0);
        let mut changes = Vec::with_capacity(batch.len());
        for (group, write) in batch {
            let log = self.logs.entry(*group).or_default();
            let replaced = outline::advance(log, *group, write)?;
            let mut pieces = Vec::with_capacity(write.entries.segments().len());
            record::put_write(&mut buffer, *group, write, replaced, &mut pieces);
            changes.push(Change { group: *group, write, replaced, pieces });
        }
        let moved = self.put_moved(&mut buffer, batch)?;
        let (segment, base, bytes) = self.commit(&mut buffer)?;
        self.advance_index(&changes, &moved, segment, base)?;
        let entries = batch.iter().map(|(_, write)| write.entries.len() as u64).sum();
        self.metrics.count_sync(batch.len() as u64, entries, bytes);
        if buffer.capacity() <= KEPT_BUFFER {
            self.buffer = buffer;
        }
        Ok(())
    }

    /// Makes the frame in `buffer` durable. Returns the segment that it is in, where it begins there, and its size.
    fn commit(&mut self, buffer: &mut Vec<u8>) -> Result<(u64, u64, u64), StorageError> {
        let fits = |at: u64, file: &SegmentFile, buffer: &[u8]| {
            at + frame::size(buffer.len() - frame::HEADER) as u64 <= file.capacity
        };
        let is_full = !fits(self.active.at, &self.active.file, buffer);
        if is_full {
            for (group, log) in self.logs.iter().filter(|(_, log)| !outline::is_deleted(log)) {
                record::put_checkpoint(buffer, *group, log);
            }
        }
        let body = buffer.len() - frame::HEADER;
        if body > frame::MAX_BODY {
            return Err(StorageError::engine("write so much at once", format!("{body} bytes")));
        }
        if is_full {
            return self.begin_segment(buffer);
        }
        let Active { file, at, previous } = &mut self.active;
        let place = Place { journal: self.journal, segment: file.number, offset: *at };
        let checksum = frame::seal(buffer, place, *previous);
        let (base, size) = (*at, buffer.len() as u64);
        write_pages(file, buffer, base)?;
        (*at, *previous) = (base + size, checksum);
        Ok((file.number, base, size))
    }

    /// Makes the frame in `buffer` the first of a new segment, durable with its title.
    fn begin_segment(&mut self, buffer: &mut Vec<u8>) -> Result<(u64, u64, u64), StorageError> {
        let mut file = match self.next.take() {
            Some(file) => file,
            None => self.spares.take()?,
        };
        let needed = (PAGE + frame::size(buffer.len() - frame::HEADER)) as u64;
        if file.capacity < needed {
            file.extend(needed, |_| true).map_err(|error| StorageError::engine("enlarge a segment", error))?;
        }
        let title = Title {
            journal: self.journal,
            number: file.number,
            previous_end: self.active.at,
            previous: self.active.previous,
            owner: self.owner.clone(),
        };
        let place = Place { journal: self.journal, segment: file.number, offset: PAGE as u64 };
        let checksum = frame::seal(buffer, place, self.active.previous);
        let size = buffer.len() as u64;
        let mut pages = title.encode();
        pages.extend_from_slice(buffer);
        write_pages(&file, &mut pages, 0)?;
        let file = Arc::new(file);
        self.lock().add_segment(file.clone());
        self.active = Active { file, at: PAGE as u64 + size, previous: checksum };
        self.prepare();
        self.plan_moves();
        Ok((self.active.file.number, PAGE as u64, size))
    }

    /// Has the segment after the active one prepared.
    fn prepare(&self) {
        let limit = self.options.limit();
        let file = &self.active.file;
        self.spares.prepare(file.number + 1, (2 * file.capacity).clamp(FIRST_CAPACITY.min(limit), limit));
    }

    /// What was written is durable: readers may see it.
    fn advance_index(
        &mut self,
        changes: &[Change<'_>],
        moved: &[(GroupId, Piece)],
        segment: u64,
        base: u64,
    ) -> Result<(), StorageError> {
        let locate = |piece: &Piece| Location {
            first: piece.first,
            segment,
            // Segments are smaller than 4 GiB.
            offset: (base + piece.bytes.start as u64) as u32,
            length: piece.bytes.len() as u32,
        };
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        for Change { group, write, replaced, pieces } in changes {
            if let Some(start) = &write.log_start {
                index.begin_after(*group, start.last.index, *replaced)?;
            }
            if let Some(from) = write.truncate_from {
                index.truncate(*group, from)?;
            }
            for (piece, entries) in pieces.iter().zip(write.entries.segments()) {
                if !index.append(*group, locate(piece), entries.last_index()) {
                    return Err(StorageError::engine("note where entries are", "they are there already"));
                }
            }
        }
        for (group, piece) in moved {
            if !index.moved(*group, locate(piece)) {
                return Err(StorageError::engine("note where entries are", "they are not there any more"));
            }
        }
        for Change { group, pieces, .. } in changes {
            if let Some(log) = self.logs.get_mut(group) {
                log.bytes += pieces.iter().map(|piece| piece.bytes.len() as u64).sum::<u64>();
            }
        }
        for Change { group, .. } in changes.iter().filter(|change| cuts(change.write)) {
            if let Some(log) = self.logs.get_mut(group) {
                log.bytes = index.bytes(*group);
            }
        }
        drop(index);
        if !moved.is_empty() || changes.iter().any(|change| cuts(change.write)) {
            self.retire();
        }
        Ok(())
    }

    /// Segments in which nothing is left that is needed can be used again.
    fn retire(&mut self) {
        let retired = self.lock().retire(self.active.file.number);
        retired.into_iter().for_each(|file| self.spares.retired(file));
    }

    /// When little of what is held is needed, what is in the oldest segment is to move.
    fn plan_moves(&mut self) {
        let needed: u64 = self.logs.values().map(|log| log.bytes).sum();
        let (segments, held) = self.held();
        if self.moving.is_empty() && segments > FEW_SEGMENTS && needed < held / 4 {
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let oldest = index.segments().next().map(|held| held.file.number);
            self.moving = oldest.into_iter().flat_map(|oldest| index.located_in(oldest)).collect();
        }
    }

    /// Appends some of the entries that are to move to a body. Not of groups that `batch` cuts: what is cut off must not move.
    fn put_moved(
        &mut self,
        body: &mut Vec<u8>,
        batch: &[(GroupId, Write)],
    ) -> Result<Vec<(GroupId, Piece)>, StorageError> {
        let mut moved = Vec::new();
        if self.moving.is_empty() {
            return Ok(moved);
        }
        let cut: BTreeSet<GroupId> = batch.iter().filter(|(_, write)| cuts(write)).map(|(group, _)| *group).collect();
        let mut bytes = 0;
        for _ in 0..self.moving.len() {
            let Some((group, first)) = self.moving.pop_front_if(|_| bytes < MOVED_AT_ONCE) else { break };
            if cut.contains(&group) {
                self.moving.push_back((group, first));
                continue;
            }
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            // It may be needed no more, or have moved.
            let (Some(location), Some(held)) = (index.at(group, first), index.segments().next()) else { continue };
            if held.file.number != location.segment {
                continue;
            }
            let entries = index::read(&held.file, group, location)?;
            bytes += location.length as usize;
            moved.push((group, record::put_moved(body, group, first, &entries.bytes())));
        }
        Ok(moved)
    }

    fn lock(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Storage for JournalStorage {
    type Reader = JournalReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        self.meta.poison().check()?;
        match self.logs.get(&group) {
            Some(log) if outline::is_deleted(log) => Err(StorageError::Deleted { group }),
            log => Ok(log.cloned().unwrap_or_default()),
        }
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        self.meta.poison().check()?;
        self.write_synced(batch).inspect_err(|error| {
            tracing::error!(dir = %self.dir.display(), %error, "the log cannot be written any more");
            self.meta.poison().by(error);
        })
    }

    fn reader(&self) -> JournalReader {
        JournalReader::new(self.index.clone(), self.meta.reader())
    }

    fn groups(&self) -> Vec<GroupId> {
        let logs = self.logs.iter().filter(|(_, log)| !outline::is_deleted(log)).map(|(group, _)| *group);
        let mut groups: Vec<_> = logs.chain(self.meta.groups()).collect();
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn founders(&self, group: GroupId) -> Result<Option<Vec<NodeId>>, StorageError> {
        self.meta.founders(group)
    }

    fn pin_founders(&mut self, group: GroupId, voters: &[NodeId]) -> Result<(), StorageError> {
        self.meta.pin_founders(group, voters)
    }

    fn delete(&mut self, group: GroupId) -> Result<bool, StorageError> {
        self.meta.poison().check()?;
        let log = self.logs.get(&group);
        if log.is_some_and(|log| !outline::is_deleted(log)) {
            // There must be something for it to write on.
            self.meta.know(group);
        }
        let deleted = self.meta.delete(group)?;
        if deleted {
            self.lock().forget(group);
            self.logs.insert(group, outline::deleted());
            self.retire();
        }
        Ok(deleted)
    }
}

impl std::fmt::Debug for JournalStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalStorage")
            .field("dir", &self.dir)
            .field("poison", self.meta.poison())
            .finish_non_exhaustive()
    }
}

/// Whether a log loses entries by this write.
fn cuts(write: &Write) -> bool {
    write.log_start.is_some() || write.truncate_from.is_some()
}

/// Writes `bytes` at `offset`, with zeros up to the end of the page, and syncs. So a page is only ever written from its beginning, or when it is in memory: the kernel
/// need not read it first.
fn write_pages(file: &SegmentFile, bytes: &mut Vec<u8>, offset: u64) -> Result<(), StorageError> {
    let end = offset + bytes.len() as u64;
    bytes.resize((end.next_multiple_of(PAGE as u64) - offset) as usize, 0);
    let failed = |action| move |error| StorageError::engine(action, format!("{}: {error}", file.path().display()));
    file.write(bytes, offset).map_err(failed("write the log"))?;
    file.sync().map_err(failed("sync the log"))
}

/// The database of what is rarely written needs little.
fn small() -> Options {
    Options { write_buffer_bytes: 1 << 20, max_wal_bytes: 4 << 20, block_cache_bytes: 1 << 20, ..Options::default() }
}

/// Only what this store puts there may be there.
fn check_dir(dir: &Path) -> Result<(), StorageError> {
    let (numbers, others) = file::list(dir).map_err(|error| StorageError::engine("list the log's directory", error))?;
    if !numbers.is_empty() && !dir.join(META).join("CURRENT").exists() {
        let what = format!("its folder `{META}` is missing; which groups were deleted is not known any more");
        return Err(StorageError::Damaged { place: dir.display().to_string(), what });
    }
    let strange = |found| Err(StorageError::NotALog { dir: dir.to_owned(), found });
    if others.iter().any(|name| name == "CURRENT") {
        return strange("it is one, but of the engine `rocksdb`, not a journal".to_owned());
    }
    match others.iter().find(|name| ![META, "lost+found"].contains(&name.as_str())) {
        Some(other) => strange(format!("it holds `{other}`")),
        None => Ok(()),
    }
}

/// Begins a journal: its first segment, with a first frame.
fn create(dir: &Path, owner: &Identity, limit: u64) -> Result<Replayed, StorageError> {
    let failed = |error| StorageError::engine("create the journal", error);
    let mut random = [0; 16];
    OsRng
        .try_fill_bytes(&mut random)
        .map_err(|error| StorageError::engine("draw a random number", error.to_string()))?;
    let journal = u128::from_be_bytes(random);
    let file = SegmentFile::create(dir, 1, FIRST_CAPACITY.min(limit), |_| true).map_err(failed)?;
    let title = Title { journal, number: 1, previous_end: 0, previous: 0, owner: owner.clone() };
    let mut first = vec![0; frame::HEADER];
    let previous = frame::seal(&mut first, Place { journal, segment: 1, offset: PAGE as u64 }, 0);
    let mut pages = title.encode();
    pages.extend_from_slice(&first);
    write_pages(&file, &mut pages, 0)?;
    let (mut index, active) = (Index::default(), Arc::new(file));
    index.add_segment(active.clone());
    let end = (PAGE + first.len()) as u64;
    Ok(Replayed { journal, index, logs: BTreeMap::new(), active, end, previous, spare: None })
}
