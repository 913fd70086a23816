//! The store itself: the newest changes in memory, everything else in a RocksDB, where the mutations of many batches and the
//! applied index become visible together.
//!
//! # Layout
//!
//! One column family, written by one batch for each full buffer: what a crash leaves is always a prefix of the commands,
//! together with the applied index of exactly that prefix. There is no write-ahead log; the Raft log replays the rest.
//!
//! ```text
//! key                              value
//! 0 u64 BE     | 'i'               format u32 BE | node u64 BE | cluster
//! 0 u64 BE     | 'r'               space u64 BE | term u64 BE | index u64 BE | membership
//! space u64 BE | 'a'               applied term u64 BE | applied index u64 BE
//! space u64 BE | 'd' | user's key  revision u64 BE | user's value
//! space u64 BE | 's' | session u64 BE  what is remembered of it (postcard)
//! ```
//!
//! The *space* is the group's number, until the store is first restored from a snapshot: that fills another space, and then the value under 'r', which
//! says which space counts and what it came from, is switched together with the applied index. Every other space is garbage.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, EntryRef, GroupId, LogId, LogIndex, SnapshotMeta, Term};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, WriteOptions};

use super::buffer::Buffer;
use super::command::check_key;
use super::flush::{Flusher, Full};
use super::open::{self, KvError, KvIdentity, KvOptions};
use super::scan::Merged;
use super::sessions::{Sessions, Ticket};
use super::snapshot::{self, KvCut};
use super::tables;
use super::{Answer, Command, Item, MAX_SCAN_BYTES, MAX_SCAN_ITEMS, MAX_VALUE_BYTES, Query, Refusal, Reply};
use crate::state_machine::{Cut, Replies, RestoreError, StateMachine, Work};

pub(super) const DATA: u8 = b'd';
const APPLIED: u8 = b'a';
pub(super) const SESSION: u8 = b's';
pub(super) const PREFIX: usize = 9;

/// The key-value store as a [`StateMachine`].
///
/// A key's newest change is in `active`, else in `flushing`, else in the database. `applied` covers all three, the applied index in
/// the database only what is in the database.
pub struct KvStore {
    pub(super) db: Arc<DB>,
    pub(super) dir: PathBuf,
    identity: KvIdentity,
    /// Where the data are, and where they came from.
    pub(super) space: GroupId,
    restored: Option<SnapshotMeta>,
    applied: LogId,
    /// What is durable, and what will be when the buffer that is being flushed is written.
    flushed: LogIndex,
    flushing_to: LogIndex,
    /// Takes the changes.
    active: Buffer,
    /// Is being written to the database.
    flushing: Option<Arc<Buffer>>,
    flusher: Flusher,
    sessions: Sessions,
    /// Bytes of log entries that a crash would have to replay, `flushing` not counted.
    replay_bytes: usize,
    /// `active` holds part of a batch that is not done. If it broke off, nothing may be written any more.
    torn: bool,
    pub(super) options: KvOptions,
    /// A key under construction; kept for its capacity.
    key: Vec<u8>,
}

impl KvStore {
    /// Opens the store in `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// When the directory is another node's, in use, damaged, or from a newer version; see [`KvError`].
    pub fn open(dir: impl AsRef<Path>, identity: &KvIdentity, options: &KvOptions) -> Result<Self, KvError> {
        let dir = dir.as_ref();
        let db = Arc::new(open::open(dir, identity, options)?);
        // Not before the database is ours.
        tables::clear_away(dir).map_err(|source| KvError::Directory { dir: dir.to_owned(), source })?;
        let flusher = Flusher::start(db.clone(), dir.to_owned())
            .map_err(|source| KvError::Directory { dir: dir.to_owned(), source })?;
        let mut store = KvStore {
            db,
            dir: dir.to_owned(),
            identity: identity.clone(),
            space: GroupId::FIRST,
            restored: None,
            applied: LogId::ZERO,
            flushed: LogIndex::ZERO,
            flushing_to: LogIndex::ZERO,
            active: Buffer::default(),
            flushing: None,
            flusher,
            sessions: Sessions::default(),
            replay_bytes: 0,
            torn: false,
            options: options.clone(),
            key: Vec::new(),
        };
        (store.space, store.restored) = store.read_space()?;
        store.applied = store.read_applied()?;
        store.flushed = store.applied.index;
        store.read_sessions()?;
        snapshot::clear_other_spaces(&store.db, store.space).map_err(|e| store.database("clearing away", e))?;
        Ok(store)
    }

    /// Term and index of the last entry that the state contains.
    pub fn applied_id(&self) -> LogId {
        self.applied
    }

    /// Makes everything durable that was applied so far.
    ///
    /// # Errors
    /// When RocksDB fails: the node must stop.
    pub fn flush(&mut self) -> Result<(), KvError> {
        self.finish_flush()?;
        self.begin_flush();
        self.finish_flush()
    }

    /// Begins to write out the active buffer, if anything would be gained by it. No other may be under way.
    fn begin_flush(&mut self) {
        if self.torn || (self.replay_bytes == 0 && self.active.is_empty()) {
            return;
        }
        self.active.set_sessions(self.sessions.take_changed());
        let buffer = Arc::new(std::mem::take(&mut self.active));
        self.replay_bytes = 0;
        self.flushing_to = self.applied.index;
        self.flusher.begin(Full { space: self.space, buffer: buffer.clone(), applied: self.applied });
        self.flushing = Some(buffer);
    }

    fn finish_flush(&mut self) -> Result<(), KvError> {
        if self.flushing.is_some() {
            self.flusher.wait()?;
            self.flush_done();
        }
        Ok(())
    }

    fn flush_done(&mut self) {
        self.flushing = None;
        self.flushed = self.flushing_to;
    }

    /// Takes note of a flush that is done.
    fn poll_flush(&mut self) -> Result<(), KvError> {
        if self.flushing.is_some()
            && let Some(result) = self.flusher.poll()
        {
            result?;
            self.flush_done();
        }
        Ok(())
    }

    /// Writes out the active buffer when it is large, or when much would have to be replayed without. Waits only when
    /// the one before is not written by the time that this one is twice as large as it should be.
    fn flush_if_due(&mut self) -> Result<(), KvError> {
        self.poll_flush()?;
        let (buffer, replay) = (self.options.write_buffer_bytes, self.options.max_replay_bytes);
        if self.active.bytes() >= buffer.saturating_mul(2) || self.replay_bytes >= replay.saturating_mul(2) {
            self.finish_flush()?;
        }
        if self.flushing.is_none() && (self.active.bytes() >= buffer || self.replay_bytes >= replay) {
            self.begin_flush();
        }
        Ok(())
    }

    fn read_space(&self) -> Result<(GroupId, Option<SnapshotMeta>), KvError> {
        match self.db.get_pinned(snapshot::RESTORED_KEY).map_err(|e| self.database("reading where it came from", e))? {
            None => Ok((GroupId::FIRST, None)),
            Some(value) => match snapshot::decode_restored(&value) {
                Some((space, meta)) => Ok((space, Some(meta))),
                None => Err(self.damaged("where it came from cannot be decoded")),
            },
        }
    }

    fn read_applied(&self) -> Result<LogId, KvError> {
        let key = group_key(self.space, APPLIED);
        let value = self.db.get_pinned(key).map_err(|e| self.database("reading the applied index", e))?;
        let Some(value) = value else { return Ok(LogId::ZERO) };
        let Ok(bytes) = <[u8; 16]>::try_from(&value[..]) else {
            return Err(self.damaged("the applied index has the wrong length"));
        };
        let (term, index) = (u128::from_be_bytes(bytes) >> 64, u128::from_be_bytes(bytes));
        Ok(LogId::new(Term(term as u64), LogIndex(index as u64)))
    }

    fn read_sessions(&mut self) -> Result<(), KvError> {
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(group_key(self.space, SESSION + 1));
        let from = group_key(self.space, SESSION);
        let stored = self.db.iterator_opt(IteratorMode::From(&from, Direction::Forward), options);
        for item in stored {
            let (key, value) =
                item.map_err(|e| KvError::Database { dir: self.dir.clone(), doing: "reading sessions", source: e })?;
            let id = key.get(PREFIX..).and_then(|id| <[u8; 8]>::try_from(id).ok()).map(u64::from_be_bytes);
            if !id.is_some_and(|id| self.sessions.load(id, &value)) {
                return Err(self.damaged("a session cannot be decoded"));
            }
        }
        Ok(())
    }

    fn apply_command(&mut self, entry: &EntryRef<'_>) -> Result<Reply, KvError> {
        let Ok(command) = Command::decode(entry.payload) else {
            return Ok(Reply::Refused(Refusal::Malformed));
        };
        if let Err(refusal) = command.check(MAX_VALUE_BYTES) {
            return Ok(Reply::Refused(refusal));
        }
        let index = entry.index.0;
        match command {
            Command::Register => {
                self.sessions.register(index);
                Ok(Reply::Registered { session: index })
            }
            Command::EndSession { session } => {
                self.sessions.end(session);
                Ok(Reply::Ended)
            }
            Command::InSession { session, serial, first_unanswered, command } => {
                self.apply_once(Ticket { session, serial, first_unanswered }, index, command)
            }
            data => self.apply_data(data, index),
        }
    }

    fn apply_once(&mut self, ticket: Ticket, index: u64, command: &[u8]) -> Result<Reply, KvError> {
        let reply = match (self.sessions.admit(ticket, index), Command::decode_inner(command)) {
            (Ok(Some(reply)), _) => return Ok(reply),
            (Ok(None), Ok(command)) => self.apply_data(command, index)?,
            (Err(refusal), _) | (_, Err(refusal)) => return Ok(Reply::Refused(refusal)),
        };
        self.sessions.record(ticket, reply);
        Ok(reply)
    }

    /// A put, a delete or a compare-and-swap; nothing else comes here.
    fn apply_data(&mut self, command: Command<'_>, revision: u64) -> Result<Reply, KvError> {
        match command {
            Command::Put { key, value } => {
                self.active.put(key, revision, value);
                Ok(Reply::Written { revision })
            }
            Command::Delete { key } => {
                let existed = self.revision(key)? != 0;
                if existed {
                    self.active.delete(key, revision);
                }
                Ok(Reply::Deleted { existed })
            }
            Command::Cas { key, expected, value } => {
                let current = self.revision(key)?;
                if current != expected {
                    return Ok(Reply::Mismatch { current });
                }
                self.active.put(key, revision, value);
                Ok(Reply::Written { revision })
            }
            Command::Register | Command::InSession { .. } | Command::EndSession { .. } => {
                Ok(Reply::Refused(Refusal::Malformed))
            }
        }
    }

    /// The revision of a key; 0: absent.
    fn revision(&mut self, key: &[u8]) -> Result<u64, KvError> {
        self.look_up(key, |found| found.map_or(0, |(revision, _)| revision))
    }

    fn get(&mut self, key: &[u8], answer: &mut BytesMut) -> Result<(), KvError> {
        self.look_up(key, |found| match found {
            None => Answer::Absent.encode_to(answer),
            Some((revision, value)) => Answer::Value { revision, value }.encode_to(answer),
        })
    }

    /// Finds the newest revision and value of a key.
    fn look_up<T>(&mut self, key: &[u8], found: impl FnOnce(Option<(u64, &[u8])>) -> T) -> Result<T, KvError> {
        let flushing = || self.flushing.as_ref().and_then(|buffer| buffer.get(key));
        if let Some(change) = self.active.get(key).or_else(flushing) {
            return Ok(found(change.value.as_ref().map(|value| (change.revision, &value[..]))));
        }
        data_key(self.space, key, &mut self.key);
        match self.db.get_pinned(&self.key).map_err(|e| self.database("reading a key", e))? {
            None => Ok(found(None)),
            Some(stored) => Ok(found(Some(self.split(&stored)?))),
        }
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32, answer: &mut BytesMut) -> Result<(), KvError> {
        let limit = limit.min(MAX_SCAN_ITEMS) as usize;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(group_key(self.space, DATA + 1));
        let mut stored = self.db.raw_iterator_opt(options);
        stored.seek([&group_key(self.space, DATA)[..], start].concat());
        let mut merged = Merged::new(self.active.from(start), self.flushing.as_deref().map(|b| b.from(start)), stored);
        let (mut found, mut bytes, mut more) = (Vec::new(), 0, false);
        while let Some((key, value)) = merged.next_item(PREFIX) {
            if end.is_some_and(|end| key.as_slice() >= end) {
                break;
            }
            if found.len() == limit || bytes >= MAX_SCAN_BYTES {
                more = true;
                break;
            }
            bytes += key.len() + value.len();
            found.push((key, value));
        }
        merged.status().map_err(|e| self.database("scanning", e))?;
        let mut items = Vec::with_capacity(found.len());
        for (key, stored) in &found {
            let (revision, value) = self.split(stored)?;
            items.push(Item { key, revision, value });
        }
        Answer::Items { more, items }.encode_to(answer);
        Ok(())
    }

    fn split<'v>(&self, stored: &'v [u8]) -> Result<(u64, &'v [u8]), KvError> {
        let (revision, value) = stored.split_first_chunk().ok_or_else(|| self.damaged("a value without a revision"))?;
        Ok((u64::from_be_bytes(*revision), value))
    }

    pub(super) fn damaged(&self, what: &str) -> KvError {
        KvError::Damaged { dir: self.dir.clone(), what: what.to_owned() }
    }

    pub(super) fn directory(&self, source: std::io::Error) -> KvError {
        KvError::Directory { dir: self.dir.clone(), source }
    }

    pub(super) fn database(&self, doing: &'static str, source: rocksdb::Error) -> KvError {
        KvError::Database { dir: self.dir.clone(), doing, source }
    }
}

impl StateMachine for KvStore {
    type Error = KvError;

    fn applied(&self) -> LogIndex {
        self.applied.index
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), KvError> {
        let (Some(first), Some(index), Some(term)) = (entries.first_index(), entries.last_index(), entries.last_term())
        else {
            return Ok(());
        };
        if first != self.applied.index.next() {
            return Err(KvError::Gap { first, applied: self.applied.index });
        }
        self.torn = true;
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
            let reply = self.apply_command(&entry)?;
            replies.push_with(|buf| reply.encode_to(buf));
        }
        self.applied = LogId::new(term, index);
        self.torn = false;
        self.replay_bytes += entries.byte_len();
        self.flush_if_due()
    }

    /// A put only touches memory, unless it has to wait for a buffer that is being written out; a delete, a compare-and-swap and a get look at
    /// a few blocks, mostly cached; a scan may read a great many.
    fn is_prompt(&self, work: Work<'_>) -> bool {
        match work {
            Work::Apply(entries) => {
                let room = |used: usize, limit: usize| used.saturating_add(2 * entries.byte_len()) < limit;
                self.flushing.is_none()
                    || room(self.active.bytes(), self.options.write_buffer_bytes)
                        && room(self.replay_bytes, self.options.max_replay_bytes)
            }
            Work::Query(query) => matches!(Query::decode(query), Ok(Query::Get { .. })),
        }
    }

    fn durable(&mut self) -> Option<LogIndex> {
        if let Err(error) = self.poll_flush() {
            // The thread is gone, as whoever applies next will find.
            tracing::error!(%error, "a flush failed");
        }
        Some(self.flushed)
    }

    fn persist(&mut self) -> Result<(), KvError> {
        self.poll_flush()?;
        if self.flushing.is_none() {
            self.begin_flush();
        }
        Ok(())
    }

    /// While a buffer is being written, the changes since then cannot be put aside without a copy.
    fn can_cut(&mut self) -> Result<bool, KvError> {
        self.poll_flush()?;
        Ok(self.flushing.is_none())
    }

    /// What is in memory begins its way to the database, and belongs to the cut whether it is there yet or not.
    fn cut(&mut self) -> Result<Option<Box<dyn Cut>>, KvError> {
        self.finish_flush()?;
        self.begin_flush();
        let cut = KvCut::begin(self.db.clone(), self.space, self.flushing.clone())
            .map_err(|source| self.directory(source))?;
        Ok(Some(Box::new(cut)))
    }

    fn restore(&mut self, meta: &SnapshotMeta, data: &mut dyn Read) -> Result<(), RestoreError<KvError>> {
        self.finish_flush().map_err(RestoreError::Machine)?;
        let space = snapshot::next_space(self.space);
        snapshot::fill(self, space, data)?;
        let failed = |error: KvError| RestoreError::Machine(error);
        snapshot::switch(self, &self.identity, space, meta).map_err(failed)?;
        // From here on the new state counts, and nothing of the old one must be written any more.
        self.active = Buffer::default();
        (self.replay_bytes, self.torn) = (0, false);
        (self.space, self.restored) = (space, Some(meta.clone()));
        (self.applied, self.flushed) = (meta.last, meta.last.index);
        self.sessions.clear();
        self.read_sessions().map_err(failed)?;
        snapshot::clear_other_spaces(&self.db, space).map_err(|e| failed(self.database("clearing away", e)))
    }

    fn restored(&self) -> Option<SnapshotMeta> {
        self.restored.clone()
    }

    fn query(&mut self, query: &[u8], answer: &mut BytesMut) -> Result<(), KvError> {
        match Query::decode(query) {
            Ok(Query::Get { key }) => match check_key(key) {
                Ok(()) => self.get(key, answer)?,
                Err(refusal) => Answer::Refused(refusal).encode_to(answer),
            },
            Ok(Query::Scan { start, end, limit }) => self.scan(start, end.map(|end| &**end), limit, answer)?,
            Err(_) => Answer::Refused(Refusal::Malformed).encode_to(answer),
        }
        Ok(())
    }
}

/// For simulations.
#[cfg(test)]
impl KvStore {
    /// So few sessions that some end within seconds; the same on all servers.
    pub(super) fn limit_sessions(&mut self, most: usize) {
        self.sessions.limit(most);
    }

    /// What is in memory will not be written, as if the process were killed.
    pub(super) fn forget_buffer(&mut self) {
        self.torn = true;
    }
}

/// An orderly end spares the next start the replay.
impl Drop for KvStore {
    fn drop(&mut self) {
        if let Err(error) = self.flush() {
            // Nothing is lost: the log has it.
            tracing::warn!(%error, "not flushed");
        }
    }
}

/// No write-ahead log, hence nothing to sync.
pub(super) fn write_options() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.disable_wal(true);
    options
}

pub(super) fn group_key(group: GroupId, tag: u8) -> [u8; PREFIX] {
    let mut key = [tag; PREFIX];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key
}

/// The database's key for a user's key.
pub(super) fn data_key(group: GroupId, name: &[u8], key: &mut Vec<u8>) {
    key.clear();
    key.extend_from_slice(&group_key(group, DATA));
    key.extend_from_slice(name);
}

/// The database's key for a session.
pub(super) fn session_key(group: GroupId, session: u64) -> Vec<u8> {
    [&group_key(group, SESSION)[..], &session.to_be_bytes()].concat()
}

/// The database's value for a user's value.
pub(super) fn stored_value(revision: u64, bytes: &[u8], value: &mut Vec<u8>) {
    value.clear();
    value.extend_from_slice(&revision.to_be_bytes());
    value.extend_from_slice(bytes);
}

/// Key and value of the applied index.
pub(super) fn applied_entry(group: GroupId, applied: LogId) -> ([u8; PREFIX], Vec<u8>) {
    (group_key(group, APPLIED), [applied.term.0.to_be_bytes(), applied.index.0.to_be_bytes()].concat())
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
