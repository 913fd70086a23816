//! Changes that are not in the database yet: a sorted map in memory, written out in one piece.
//!
//! The Raft log is this store's write-ahead log, so nothing is lost if memory is. What the buffer saves is work: a key that is
//! written a thousand times between two flushes reaches RocksDB once, in order, off the path of the writes. (Measured: inserting
//! every change into RocksDB's own memtable took half of a node's CPU time under load.)

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

/// What a key costs in memory besides its bytes, roughly.
const OVERHEAD: usize = 96;

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
    changes: BTreeMap<Box<[u8]>, Change>,
    bytes: usize,
    /// Sessions that have changed, encoded (`None`: ended); set when the buffer takes no more changes.
    sessions: Vec<(u64, Option<Vec<u8>>)>,
}

impl Buffer {
    /// Sets a key, in place if it is already here.
    pub(super) fn put(&mut self, key: &[u8], revision: u64, value: &[u8]) {
        if let Some(change) = self.changes.get_mut(key) {
            change.revision = revision;
            let old = change.value.get_or_insert_default();
            self.bytes = self.bytes - old.len() + value.len();
            old.clear();
            old.extend_from_slice(value);
        } else {
            self.bytes += key.len() + value.len() + OVERHEAD;
            self.changes.insert(key.into(), Change { revision, value: Some(value.to_vec()) });
        }
    }

    /// Notes that a key is gone.
    pub(super) fn delete(&mut self, key: &[u8], revision: u64) {
        let gone = Change { revision, value: None };
        match self.changes.entry(key.into()) {
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
        self.changes.get(key)
    }

    /// Changes of keys from `start` on, in order.
    pub(super) fn from(&self, start: &[u8]) -> impl Iterator<Item = (&[u8], &Change)> {
        let range = (Bound::Included(start), Bound::Unbounded);
        self.changes.range::<[u8], _>(range).map(|(key, change)| (&**key, change))
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
