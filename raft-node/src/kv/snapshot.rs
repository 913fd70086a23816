//! The whole store as a stream of bytes, and back.
//!
//! ```text
//! item   tag u8 ('d' or 's') | key length u32 | value length u32 | key | value
//! end    0 u8 | number of items u64
//! ```
//!
//! Keys and values are those of the database, without the space; keys ascend within a tag. Numbers are big-endian.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Builder;

use raft_core::{GroupId, LogId, LogIndex, Membership, SnapshotMeta, Term};
use rocksdb::{DB, ReadOptions, Snapshot, WriteBatch};

use super::buffer::{Buffer, Change};
use super::open::{self, KvError, KvIdentity, encode_identity, identity_key};
use super::scan::Merged;
use super::store::{DATA, KvStore, PREFIX, SESSION, applied_entry, group_key, write_options};
use super::tables::{FILE_BYTES, TableError, Tables};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::background::{BIT, offer};
use crate::state_machine::{Cut, RestoreError};

/// Where it is written which space counts.
pub(super) const RESTORED_KEY: [u8; PREFIX] = [0, 0, 0, 0, 0, 0, 0, 0, b'r'];
/// Spaces of stores that were restored; the numbers of groups are below.
const RESTORED_SPACES: u64 = 1 << 63;
/// Bytes that are handed over in one go.
const BATCH: usize = 256 << 10;
const END: u8 = 0;
/// Longest value that is believed, in bytes: a revision and a value, or a session with all the replies it may keep.
const MAX_STORED: usize = MAX_VALUE_BYTES + (1 << 20);

/// The state at one point in time: what the database held then, and what was on its way there.
///
/// A snapshot of the database cannot leave the thread that made it, so a thread is made together with it. It waits for whoever wants to write.
pub(super) struct KvCut {
    go: Sender<SyncSender<io::Result<Vec<u8>>>>,
}

impl KvCut {
    /// Returns when the view is fixed.
    pub(super) fn begin(db: Arc<DB>, space: GroupId, buffer: Option<Arc<Buffer>>) -> io::Result<Self> {
        let (go, gone) = channel::<SyncSender<io::Result<Vec<u8>>>>();
        let (fixed, is_fixed) = channel();
        Builder::new().name("kv-cut".into()).spawn(move || {
            let view = db.snapshot();
            let _ = fixed.send(());
            // The cut was urgent; what follows is not.
            crate::background::yield_to_others();
            // Without a receiver nobody wants it any more.
            let Ok(out) = gone.recv() else { return };
            let mut stream = Stream { out, batch: Vec::with_capacity(BATCH), items: 0 };
            if let Err(error) = stream.write_all(&view, space, buffer.as_deref()) {
                let _ = stream.out.send(Err(error));
            }
        })?;
        is_fixed.recv().map_err(|_| io::Error::other("the thread of the cut is gone"))?;
        Ok(KvCut { go })
    }
}

impl Cut for KvCut {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()> {
        // Two pieces on their way: reading and writing overlap, and memory stays small.
        let (sender, pieces): (_, Receiver<io::Result<Vec<u8>>>) = sync_channel(2);
        self.go.send(sender).map_err(|_| io::Error::other("the thread of the cut is gone"))?;
        let mut ended = false;
        for piece in pieces {
            let piece = piece?;
            ended = piece.is_empty();
            out.write_all(&piece)?;
        }
        if ended { Ok(()) } else { Err(io::Error::other("the thread of the cut is gone")) }
    }
}

struct Stream {
    out: SyncSender<io::Result<Vec<u8>>>,
    batch: Vec<u8>,
    items: u64,
}

impl Stream {
    fn write_all(&mut self, view: &Snapshot<'_>, space: GroupId, buffer: Option<&Buffer>) -> io::Result<()> {
        self.write_data(view, space, buffer)?;
        self.write_sessions(view, space, buffer)?;
        self.batch.push(END);
        self.batch.extend_from_slice(&self.items.to_be_bytes());
        self.flush()?;
        // An empty piece says that this was all.
        self.flush()
    }

    fn write_data(&mut self, view: &Snapshot<'_>, space: GroupId, buffer: Option<&Buffer>) -> io::Result<()> {
        let mut stored = view.raw_iterator_opt(range(space, DATA));
        stored.seek(group_key(space, DATA));
        let changes = buffer.into_iter().flat_map(|buffer| buffer.from(b""));
        let none: Option<std::iter::Empty<(&[u8], &Change)>> = None;
        let mut merged = Merged::new(changes, none, stored);
        while let Some((key, value)) = merged.next_item(PREFIX) {
            self.item(DATA, &key, &value)?;
        }
        merged.status().map_err(io::Error::other)
    }

    fn write_sessions(&mut self, view: &Snapshot<'_>, space: GroupId, buffer: Option<&Buffer>) -> io::Result<()> {
        let changed = buffer.map(Buffer::sessions).unwrap_or_default();
        let mut sessions: std::collections::BTreeMap<Vec<u8>, Vec<u8>> = std::collections::BTreeMap::new();
        let mut stored = view.raw_iterator_opt(range(space, SESSION));
        stored.seek(group_key(space, SESSION));
        while let Some((key, value)) = stored.item() {
            sessions.insert(key.get(PREFIX..).unwrap_or_default().to_vec(), value.to_vec());
            stored.next();
        }
        stored.status().map_err(io::Error::other)?;
        for (id, state) in changed {
            let key = id.to_be_bytes().to_vec();
            match state {
                Some(bytes) => drop(sessions.insert(key, bytes.clone())),
                None => drop(sessions.remove(&key)),
            }
        }
        sessions.iter().try_for_each(|(key, value)| self.item(SESSION, key, value))
    }

    fn item(&mut self, tag: u8, key: &[u8], value: &[u8]) -> io::Result<()> {
        let before = self.batch.len();
        self.items += 1;
        self.batch.push(tag);
        self.batch.extend_from_slice(&(key.len() as u32).to_be_bytes());
        self.batch.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.batch.extend_from_slice(key);
        self.batch.extend_from_slice(value);
        if self.batch.len() / BIT > before / BIT {
            offer();
        }
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.out.send(Ok(piece)).map_err(|_| io::Error::other("nobody wants it any more"))
    }
}

fn range(space: GroupId, tag: u8) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.fill_cache(false);
    options.set_iterate_upper_bound(group_key(space, tag + 1));
    options
}

/// A space that is not in use.
pub(super) fn next_space(space: GroupId) -> GroupId {
    GroupId((space.0 | RESTORED_SPACES).wrapping_add(1) | RESTORED_SPACES)
}

/// Makes what `data` delivers part of the database, in `space`, which does not count yet: if a crash comes, it is cleared away at the next start.
pub(super) fn fill(store: &KvStore, space: GroupId, data: &mut dyn Read) -> Result<(), RestoreError<KvError>> {
    let options = open::database_options(&store.options);
    let machine = |error| RestoreError::Machine(error);
    let mut tables =
        Tables::create(&options, &store.dir, FILE_BYTES).map_err(|source| machine(store.directory(source)))?;
    let failed = |error| match error {
        TableError::NotAscending => senseless("the keys do not ascend".into()),
        TableError::Database(source) => machine(store.database("restoring", source)),
    };
    let mut items = 0u64;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    loop {
        let mut tag = [0];
        data.read_exact(&mut tag)?;
        let tag = match tag {
            [END] => break,
            [tag @ (DATA | SESSION)] => tag,
            [other] => return Err(senseless(format!("an item of unknown kind {other}"))),
        };
        let (key_len, value_len) = (number(data)?, number(data)?);
        if key_len > MAX_KEY_BYTES || value_len > MAX_STORED || (tag == DATA && value_len < 8) {
            return Err(senseless(format!("an item with a key of {key_len} and a value of {value_len} bytes")));
        }
        key.clear();
        key.extend_from_slice(&group_key(space, tag));
        key.resize(PREFIX + key_len, 0);
        data.read_exact(&mut key[PREFIX..])?;
        value.resize(value_len, 0);
        data.read_exact(&mut value)?;
        tables.put(&key, &value).map_err(failed)?;
        items += 1;
    }
    let mut count = [0; 8];
    data.read_exact(&mut count)?;
    if u64::from_be_bytes(count) != items {
        return Err(senseless(format!("{items} items instead of {}", u64::from_be_bytes(count))));
    }
    if data.read(&mut [0])? > 0 {
        return Err(senseless("something behind the end".into()));
    }
    tables.ingest(&store.db).map_err(failed)
}

fn number(data: &mut dyn Read) -> io::Result<usize> {
    let mut bytes = [0; 4];
    data.read_exact(&mut bytes)?;
    Ok(u32::from_be_bytes(bytes) as usize)
}

fn senseless(what: String) -> RestoreError<KvError> {
    RestoreError::Data(io::Error::new(io::ErrorKind::InvalidData, what))
}

/// From here on `space` counts, and what is in it is durable: one batch says so, together with the applied index. There is no write-ahead log, so what
/// is flushed after the data is durable after them. An older version could not know which space counts: the format is raised.
pub(super) fn switch(
    store: &KvStore,
    identity: &KvIdentity,
    space: GroupId,
    meta: &SnapshotMeta,
) -> Result<(), KvError> {
    let mut batch = WriteBatch::default();
    let (key, value) = applied_entry(space, meta.last);
    batch.put(key, value);
    batch.put(RESTORED_KEY, encode_restored(space, meta));
    batch.put(identity_key(), encode_identity(identity));
    let failed = |e| store.database("switching to what was restored", e);
    store.db.write_opt(batch, &write_options()).map_err(failed)?;
    store.db.flush().map_err(failed)
}

fn encode_restored(space: GroupId, meta: &SnapshotMeta) -> Vec<u8> {
    let mut value = space.0.to_be_bytes().to_vec();
    value.extend_from_slice(&meta.last.term.0.to_be_bytes());
    value.extend_from_slice(&meta.last.index.0.to_be_bytes());
    value.extend_from_slice(&meta.membership.encode());
    value
}

pub(super) fn decode_restored(value: &[u8]) -> Option<(GroupId, SnapshotMeta)> {
    let (space, rest) = value.split_first_chunk()?;
    let (term, rest) = rest.split_first_chunk()?;
    let (index, rest) = rest.split_first_chunk()?;
    let last = LogId::new(Term(u64::from_be_bytes(*term)), LogIndex(u64::from_be_bytes(*index)));
    let membership = Membership::decode(rest).ok()?;
    Some((GroupId(u64::from_be_bytes(*space)), SnapshotMeta { last, membership }))
}

/// Removes what is in spaces that do not count: the state before the last switch, or a restore that a crash ended.
pub(super) fn clear_other_spaces(db: &DB, space: GroupId) -> Result<(), rocksdb::Error> {
    let mut batch = WriteBatch::default();
    let mut iter = db.raw_iterator();
    // Space 0 is no space: its keys are about the store as a whole.
    iter.seek(1u64.to_be_bytes());
    while let Some(found) = iter.key().and_then(|key| key.first_chunk::<8>()).map(|bytes| u64::from_be_bytes(*bytes)) {
        if found != space.0 {
            clear(&mut batch, GroupId(found));
        }
        let Some(next) = found.checked_add(1) else { break };
        iter.seek(next.to_be_bytes());
    }
    iter.status()?;
    if batch.is_empty() { Ok(()) } else { db.write_opt(batch, &write_options()) }
}

fn clear(batch: &mut WriteBatch, space: GroupId) {
    batch.delete_range(group_key(space, 0), group_key(space, u8::MAX));
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
