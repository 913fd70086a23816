//! Changes that are not in the database yet: a sorted map in memory, written out in one piece.
//!
//! The Raft log is this store's write-ahead log, so nothing is lost if memory is. What the buffer saves is work: a key that is
//! written a thousand times between two flushes reaches RocksDB once, in order, off the path of the writes. (Measured: inserting
//! every change into RocksDB's own memtable took half of a node's CPU time under load.)

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// What a key costs in memory besides its bytes, roughly.
const OVERHEAD: usize = 128;
/// Bytes of a key that lie in the map itself.
const INLINE: usize = 24;

/// A key, most of which are short: to find one in the map, few others are compared, and none of them has to be fetched from elsewhere. (Measured: with
/// every key in a box of its own, looking for the place of a put was a fifth of a node's CPU time under load.)
///
/// Invariant: `head` is the beginning of the key, filled up with zeros; `long` is the whole key if it does not fit there, and empty otherwise.
#[derive(Clone, Debug)]
struct Key {
    head: [u8; INLINE],
    /// Bytes of `head` that are part of the key.
    length: u8,
    long: Box<[u8]>,
}

impl Key {
    fn new(key: &[u8]) -> Self {
        let mut head = [0; INLINE];
        let length = key.len().min(INLINE);
        head[..length].copy_from_slice(&key[..length]);
        let long = if key.len() > INLINE { key.into() } else { Box::default() };
        Key { head, length: length as u8, long }
    }

    fn bytes(&self) -> &[u8] {
        if self.long.is_empty() { &self.head[..usize::from(self.length)] } else { &self.long }
    }

    /// Eight bytes of the head that compare as they do.
    #[inline]
    fn word(&self, at: usize) -> u64 {
        self.head[8 * at..].first_chunk().map_or(0, |word| u64::from_be_bytes(*word))
    }
}

impl Ord for Key {
    /// As their bytes. Where the heads are equal, zeros at the end of one may be part of the other: the shorter one comes first.
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        // Word by word, each of them a comparison of numbers. (Measured: as an array made on the way, this was a call for every key that is passed, and a
        // tenth of the CPU time of reads.)
        for at in 0..INLINE / 8 {
            let (own, others) = (self.word(at), other.word(at));
            if own != others {
                return own.cmp(&others);
            }
        }
        self.length.cmp(&other.length).then_with(|| match (self.long.is_empty(), other.long.is_empty()) {
            (true, true) => Ordering::Equal,
            _ => self.long.cmp(&other.long),
        })
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Key {}

/// The newest change of a key.
#[derive(Debug)]
pub(super) struct Change {
    /// Log index of the command that made it.
    pub(super) revision: u64,
    /// The value; `None` when the key was deleted.
    pub(super) value: Option<Vec<u8>>,
}

/// The newest change of every key that was changed.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    changes: BTreeMap<Key, Change>,
    bytes: usize,
    /// Sessions that have changed, encoded (`None`: ended); set when the buffer takes no more changes.
    sessions: Vec<(u64, Option<Vec<u8>>)>,
}

impl Buffer {
    /// Sets a key, in place if it is already here.
    pub(super) fn put(&mut self, key: &[u8], revision: u64, value: &[u8]) {
        match self.changes.entry(Key::new(key)) {
            Entry::Occupied(known) => {
                let change = known.into_mut();
                change.revision = revision;
                let old = change.value.get_or_insert_default();
                self.bytes = self.bytes - old.len() + value.len();
                old.clear();
                old.extend_from_slice(value);
            }
            Entry::Vacant(free) => {
                self.bytes += key.len() + value.len() + OVERHEAD;
                free.insert(Change { revision, value: Some(value.to_vec()) });
            }
        }
    }

    /// Notes that a key is gone.
    pub(super) fn delete(&mut self, key: &[u8], revision: u64) {
        let gone = Change { revision, value: None };
        match self.changes.entry(Key::new(key)) {
            Entry::Occupied(mut known) => {
                let old = known.insert(gone);
                self.bytes -= old.value.map_or(0, |value| value.len());
            }
            Entry::Vacant(free) => {
                self.bytes += key.len() + OVERHEAD;
                free.insert(gone);
            }
        }
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        self.changes.get(&Key::new(key))
    }

    /// Changes of keys from `start` on, in order.
    pub(super) fn from(&self, start: &[u8]) -> impl Iterator<Item = (&[u8], &Change)> {
        self.changes.range(Key::new(start)..).map(|(key, change)| (key.bytes(), change))
    }

    /// What goes with the changes, as of the last of them.
    pub(super) fn set_sessions(&mut self, sessions: Vec<(u64, Option<Vec<u8>>)>) {
        self.sessions = sessions;
    }

    pub(super) fn sessions(&self) -> &[(u64, Option<Vec<u8>>)] {
        &self.sessions
    }

    /// Memory it takes, in bytes, roughly.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each, and of keys that differ only where one ends.
    #[test]
    fn keys_are_ordered_as_their_bytes() {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for length in [0, 1, 7, 8, 9, 23, 24, 25, 31, 40] {
            for last in [0, 1, 0x7f, 0x80, 0xff] {
                keys.push([vec![b'k'; length], vec![last]].concat());
                keys.push([vec![0; length], vec![last]].concat());
                keys.push(vec![0xff; length]);
            }
        }
        for a in &keys {
            assert_eq!(Key::new(a).bytes(), a.as_slice());
            for b in &keys {
                assert_eq!(Key::new(a).cmp(&Key::new(b)), a.cmp(b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn the_newest_change_counts_and_bytes_are_kept() {
        let mut buffer = Buffer::default();
        buffer.put(b"a", 1, b"one");
        buffer.put(b"b", 2, b"two");
        let both = buffer.bytes();
        buffer.put(b"a", 3, b"eleven");
        assert_eq!(buffer.bytes(), both + 3);
        buffer.delete(b"a", 4);
        assert_eq!(buffer.bytes(), both - 3);
        assert!(matches!(buffer.get(b"a"), Some(Change { revision: 4, value: None })));
        buffer.put(b"a", 5, b"one");
        buffer.delete(b"c", 6);
        assert_eq!(buffer.bytes(), both + 1 + OVERHEAD);
        let keys: Vec<&[u8]> = buffer.from(b"b").map(|(key, _)| key).collect();
        assert_eq!(keys, [b"b", b"c"]);
    }
}
