//! Going through buffers and database together, in the order of keys.

use std::iter::Peekable;

use rocksdb::{DB, DBRawIteratorWithThreadMode};

use super::buffer::Change;
use super::store::stored_value;

/// The newest change of every key, from newest source to oldest: the active buffer, the one that is being flushed, the database.
/// Deleted keys are left out.
pub(super) struct Merged<'a, A: Iterator<Item = (&'a [u8], &'a Change)>, F: Iterator<Item = (&'a [u8], &'a Change)>> {
    active: Peekable<A>,
    flushing: Option<Peekable<F>>,
    stored: DBRawIteratorWithThreadMode<'a, DB>,
}

impl<'a, A, F> Merged<'a, A, F>
where
    A: Iterator<Item = (&'a [u8], &'a Change)>,
    F: Iterator<Item = (&'a [u8], &'a Change)>,
{
    /// All three must stand at the same starting point.
    pub(super) fn new(active: A, flushing: Option<F>, stored: DBRawIteratorWithThreadMode<'a, DB>) -> Self {
        Merged { active: active.peekable(), flushing: flushing.map(Iterator::peekable), stored }
    }

    /// The next key, without the `prefix` bytes that only the database knows, and its value as the database stores it.
    pub(super) fn next_item(&mut self, prefix: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        loop {
            let active = self.active.peek().copied();
            let flushing = self.flushing.as_mut().and_then(|flushing| flushing.peek().copied());
            let stored = self.stored.key().map(|key| key.get(prefix..).unwrap_or_default());
            let newest = [active.map(|(key, _)| key), flushing.map(|(key, _)| key), stored];
            let key = newest.into_iter().flatten().min()?.to_vec();
            let of_key = |change: Option<(&'a [u8], &'a Change)>| change.filter(|(k, _)| *k == key).map(|(_, c)| c);
            let (in_active, in_flushing) = (of_key(active), of_key(flushing));
            let in_stored = stored == Some(&key[..]);
            let change = in_active.or(in_flushing);
            let value = match change {
                Some(Change { revision, value }) => value.as_ref().map(|bytes| {
                    let mut value = Vec::with_capacity(bytes.len() + 8);
                    stored_value(*revision, bytes, &mut value);
                    value
                }),
                None => self.stored.value().map(<[u8]>::to_vec),
            };
            if in_active.is_some() {
                self.active.next();
            }
            if in_flushing.is_some() {
                self.flushing.as_mut().and_then(Iterator::next);
            }
            if in_stored {
                self.stored.next();
            }
            if let Some(value) = value {
                return Some((key, value));
            }
        }
    }

    /// An iterator of the database that fails looks like one that is at its end: this tells them apart.
    pub(super) fn status(&self) -> Result<(), rocksdb::Error> {
        self.stored.status()
    }
}
