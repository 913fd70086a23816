//! The store itself: a RocksDB in which the mutations of a batch and the applied index become visible together.
//!
//! # Layout
//!
//! One column family, whose memtables are flushed in order: what a crash leaves is always a prefix of the batches,
//! together with the applied index of exactly that prefix. There is no write-ahead log; the Raft log replays the rest.
//!
//! ```text
//! key                              value
//! 0 u64 BE     | 'i'               format u32 BE | node u64 BE | cluster
//! group u64 BE | 'a'               applied term u64 BE | applied index u64 BE
//! group u64 BE | 'd' | user's key  revision u64 BE | user's value
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, EntryRef, GroupId, LogId, LogIndex, Term};
use rocksdb::{DB, ReadOptions, WriteBatch, WriteOptions};

use super::command::check_key;
use super::open::{self, KvError, KvIdentity, KvOptions};
use super::{Answer, Command, Item, MAX_SCAN_BYTES, MAX_SCAN_ITEMS, MAX_VALUE_BYTES, Query, Refusal, Reply};
use crate::state_machine::{Replies, StateMachine};

const DATA: u8 = b'd';
const APPLIED: u8 = b'a';
const PREFIX: usize = 9;

/// The key-value store as a [`StateMachine`].
pub struct KvStore {
    db: DB,
    dir: PathBuf,
    group: GroupId,
    applied: LogId,
    write_options: WriteOptions,
    /// Key and value under construction; kept for their capacity.
    key: Vec<u8>,
    value: Vec<u8>,
}

impl KvStore {
    /// Opens the store in `dir`, which is created if it does not exist.
    ///
    /// # Errors
    /// When the directory is another node's, in use, damaged, or from a newer version; see [`KvError`].
    pub fn open(dir: impl AsRef<Path>, identity: &KvIdentity, options: &KvOptions) -> Result<Self, KvError> {
        let dir = dir.as_ref();
        let db = open::open(dir, identity, options)?;
        let mut store = KvStore {
            db,
            dir: dir.to_owned(),
            group: GroupId::FIRST,
            applied: LogId::ZERO,
            write_options: write_options(),
            key: Vec::new(),
            value: Vec::new(),
        };
        store.applied = store.read_applied()?;
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
    pub fn flush(&self) -> Result<(), KvError> {
        self.db.flush().map_err(|e| self.database("flushing", e))
    }

    fn read_applied(&self) -> Result<LogId, KvError> {
        let key = group_key(self.group, APPLIED);
        let value = self.db.get_pinned(key).map_err(|e| self.database("reading the applied index", e))?;
        let Some(value) = value else { return Ok(LogId::ZERO) };
        let Ok(bytes) = <[u8; 16]>::try_from(&value[..]) else {
            return Err(self.damaged("the applied index has the wrong length"));
        };
        let (term, index) = (u128::from_be_bytes(bytes) >> 64, u128::from_be_bytes(bytes));
        Ok(LogId::new(Term(term as u64), LogIndex(index as u64)))
    }

    /// Applies one command to the batch under construction.
    fn apply_command(&mut self, entry: &EntryRef<'_>, batch: &mut Pending) -> Result<Reply, KvError> {
        let Ok(command) = Command::decode(entry.payload) else {
            return Ok(Reply::Refused(Refusal::Malformed));
        };
        if let Err(refusal) = command.check(MAX_VALUE_BYTES) {
            return Ok(Reply::Refused(refusal));
        }
        let revision = entry.index.0;
        match command {
            Command::Put { key, value } => {
                self.put(key, revision, value, batch);
                Ok(Reply::Written { revision })
            }
            Command::Delete { key } => {
                let existed = self.revision(key, batch)? != 0;
                if existed {
                    self.set_key(key);
                    batch.writes.delete(&self.key);
                    batch.remember(key, 0);
                }
                Ok(Reply::Deleted { existed })
            }
            Command::Cas { key, expected, value } => {
                let current = self.revision(key, batch)?;
                if current != expected {
                    return Ok(Reply::Mismatch { current });
                }
                self.put(key, revision, value, batch);
                Ok(Reply::Written { revision })
            }
        }
    }

    fn put(&mut self, key: &[u8], revision: u64, value: &[u8], batch: &mut Pending) {
        self.set_key(key);
        self.value.clear();
        self.value.extend_from_slice(&revision.to_be_bytes());
        self.value.extend_from_slice(value);
        batch.writes.put(&self.key, &self.value);
        batch.remember(key, revision);
    }

    /// The revision of a key as the commands before this one leave it; 0: absent.
    fn revision(&mut self, key: &[u8], batch: &Pending) -> Result<u64, KvError> {
        if let Some(&revision) = batch.overlay.as_ref().and_then(|overlay| overlay.get(key)) {
            return Ok(revision);
        }
        self.set_key(key);
        let value = self.db.get_pinned(&self.key).map_err(|e| self.database("reading a key", e))?;
        value.map_or(Ok(0), |value| Ok(self.split(&value)?.0))
    }

    fn get(&mut self, key: &[u8], answer: &mut BytesMut) -> Result<(), KvError> {
        self.set_key(key);
        match self.db.get_pinned(&self.key).map_err(|e| self.database("reading a key", e))? {
            None => Answer::Absent.encode_to(answer),
            Some(stored) => {
                let (revision, value) = self.split(&stored)?;
                Answer::Value { revision, value }.encode_to(answer);
            }
        }
        Ok(())
    }

    fn scan(&self, start: &[u8], end: Option<&[u8]>, limit: u32, answer: &mut BytesMut) -> Result<(), KvError> {
        let limit = limit.min(MAX_SCAN_ITEMS) as usize;
        let mut options = ReadOptions::default();
        let prefix = group_key(self.group, DATA);
        let upper = match end {
            Some(end) => [&prefix[..], end].concat(),
            None => group_key(self.group, DATA + 1).to_vec(),
        };
        options.set_iterate_upper_bound(upper);
        let mut iterator = self.db.raw_iterator_opt(options);
        iterator.seek([&prefix[..], start].concat());
        let (mut found, mut bytes, mut more) = (Vec::new(), 0, false);
        while let Some((key, value)) = iterator.item() {
            if found.len() == limit || bytes >= MAX_SCAN_BYTES {
                more = true;
                break;
            }
            bytes += key.len() + value.len();
            found.push((key.to_vec(), value.to_vec()));
            iterator.next();
        }
        // An iterator that fails looks like one that is at its end.
        iterator.status().map_err(|e| self.database("scanning", e))?;
        let mut items = Vec::with_capacity(found.len());
        for (key, stored) in &found {
            let (revision, value) = self.split(stored)?;
            items.push(Item { key: &key[PREFIX..], revision, value });
        }
        Answer::Items { more, items }.encode_to(answer);
        Ok(())
    }

    fn set_key(&mut self, key: &[u8]) {
        self.key.clear();
        self.key.extend_from_slice(&group_key(self.group, DATA));
        self.key.extend_from_slice(key);
    }

    fn split<'v>(&self, stored: &'v [u8]) -> Result<(u64, &'v [u8]), KvError> {
        let (revision, value) = stored.split_first_chunk().ok_or_else(|| self.damaged("a value without a revision"))?;
        Ok((u64::from_be_bytes(*revision), value))
    }

    fn damaged(&self, what: &str) -> KvError {
        KvError::Damaged { dir: self.dir.clone(), what: what.to_owned() }
    }

    fn database(&self, doing: &'static str, source: rocksdb::Error) -> KvError {
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
        let mut batch = Pending::for_entries(entries);
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Command) {
            let reply = self.apply_command(&entry, &mut batch)?;
            replies.push_with(|buf| reply.encode_to(buf));
        }
        let applied = [term.0.to_be_bytes(), index.0.to_be_bytes()].concat();
        batch.writes.put(group_key(self.group, APPLIED), applied);
        self.db.write_opt(batch.writes, &self.write_options).map_err(|e| self.database("applying a batch", e))?;
        self.applied = LogId::new(term, index);
        Ok(())
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

/// The mutations of one batch of entries.
struct Pending {
    writes: WriteBatch,
    /// Revisions of the keys that the batch changed, for the commands in it that look at a revision. `None` when there are
    /// no such commands: then nothing needs to be remembered.
    overlay: Option<HashMap<Box<[u8]>, u64>>,
}

impl Pending {
    fn for_entries(entries: &Entries) -> Self {
        let looks = |entry: EntryRef<'_>| {
            entry.kind == EntryKind::Command
                && matches!(Command::decode(entry.payload), Ok(Command::Delete { .. } | Command::Cas { .. }))
        };
        // A lone command sees nothing but the database.
        let overlay = (entries.len() > 1 && entries.iter().any(looks)).then(HashMap::new);
        Pending { writes: WriteBatch::with_capacity_bytes(entries.byte_len() + 64), overlay }
    }

    fn remember(&mut self, key: &[u8], revision: u64) {
        if let Some(overlay) = &mut self.overlay {
            overlay.insert(key.into(), revision);
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

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
