//! The newest part of the log, in memory.

use std::collections::VecDeque;

use crate::entries::Segment;
use crate::types::LogIndex;

/// Segments, the older ones first, each of which follows on the one before.
///
/// A leader with a slow follower holds tens of megabytes of them, and small entries make that a hundred thousand segments: nothing here but
/// [`check`](Self::check) takes time in proportion to their number.
///
/// Invariants: the segments are contiguous; `bytes` is the sum of their sizes; the ends of two of them differ by the sizes of all after the
/// first, up to the second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    held: VecDeque<Held>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Held {
    segment: Segment,
    /// Bytes from some point before the first segment to the end of this one.
    end: u64,
}

/// Where the counting began makes no difference.
#[cfg(feature = "sim")]
impl std::hash::Hash for Cache {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        let Cache { held, bytes } = self;
        bytes.hash(state);
        held.iter().for_each(|Held { segment, end: _ }| segment.hash(state));
    }
}

impl Cache {
    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// First index in memory, if any is.
    pub(crate) fn first_index(&self) -> Option<LogIndex> {
        self.front().map(Segment::first_index)
    }

    pub(crate) fn front(&self) -> Option<&Segment> {
        self.held.front().map(|held| &held.segment)
    }

    #[inline]
    pub(crate) fn back(&self) -> Option<&Segment> {
        self.held.back().map(|held| &held.segment)
    }

    /// Follows on what is there.
    #[inline]
    pub(crate) fn push_back(&mut self, segment: Segment) {
        let bytes = segment.byte_len();
        let end = self.held.back().map_or(0, |held| held.end) + bytes as u64;
        self.bytes += bytes;
        self.held.push_back(Held { segment, end });
    }

    pub(crate) fn pop_front(&mut self) -> Option<Segment> {
        let Held { segment, .. } = self.held.pop_front()?;
        self.bytes -= segment.byte_len();
        Some(segment)
    }

    /// Forgets `from` and what comes after it.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        while let Some(Held { segment, .. }) = self.held.pop_back_if(|held| held.segment.last_index() >= from) {
            self.bytes -= segment.byte_len();
            if let Some(kept) = segment.slice(LogIndex::ZERO, from.prev()) {
                self.push_back(kept);
            }
        }
    }

    /// Forgets the segments that end at `to` or before.
    pub(crate) fn purge(&mut self, to: LogIndex) {
        let gone = self.held.partition_point(|held| held.segment.last_index() <= to);
        self.bytes -= self.held.drain(..gone).map(|held| held.segment.byte_len()).sum::<usize>();
    }

    /// The segments from the one that holds `index` on, which must be in memory.
    pub(crate) fn from(&self, index: LogIndex) -> impl Iterator<Item = &Segment> {
        self.held.range(self.position(index)..).map(|held| &held.segment)
    }

    /// Bytes of the entries from `index` on, as far as they are in memory.
    pub(crate) fn bytes_from(&self, index: LogIndex) -> usize {
        if self.first_index().is_none_or(|first| index <= first) {
            return self.bytes;
        }
        let (Some(newest), Some(held)) = (self.held.back(), self.held.get(self.position(index))) else { return 0 };
        let part = held.segment.slice(index, held.segment.last_index());
        // No more than `bytes`.
        (newest.end - held.end) as usize + part.map_or(0, |part| part.byte_len())
    }

    /// Position of the segment that holds `index`, or of the first one that is not before it. Nearly always it is one of the newest: those are
    /// looked at first, because a binary search over many small segments walks cold memory.
    fn position(&self, index: LogIndex) -> usize {
        let near = self.held.iter().rev().take(16).position(|held| held.segment.first_index() <= index);
        match near {
            Some(back) => self.held.len() - 1 - back,
            None => self.held.partition_point(|held| held.segment.last_index() < index),
        }
    }

    /// Panics when an invariant is broken, or when the segments do not end right before `end`.
    pub(crate) fn check(&self, end: LogIndex) {
        let mut next = self.first_index().unwrap_or(end);
        let mut before: Option<u64> = None;
        for Held { segment, end } in &self.held {
            assert_eq!(segment.first_index(), next, "gap in the cache: {self:?}");
            let bytes = segment.byte_len() as u64;
            assert!(before.is_none_or(|before| before + bytes == *end), "ends that do not fit: {self:?}");
            (next, before) = (segment.last_index().next(), Some(*end));
        }
        assert_eq!(next, end, "the cache does not reach the end: {self:?}");
        assert_eq!(self.bytes, self.held.iter().map(|held| held.segment.byte_len()).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::EntryKind;
    use crate::types::Term;

    /// Segments of one entry each, the first of which has index `first`, of the given sizes.
    fn cache(first: u64, sizes: &[usize]) -> Cache {
        let mut cache = Cache::default();
        for (index, size) in (first..).zip(sizes) {
            let segment = Segment::pack(LogIndex(index), Term(1), EntryKind::Command, &[vec![0; *size]]);
            cache.push_back(segment.expect("one small entry"));
        }
        cache
    }

    /// Counted one by one.
    fn counted(cache: &Cache, index: LogIndex) -> usize {
        let rest = |segment: &Segment| segment.slice(index, segment.last_index()).map_or(0, |part| part.byte_len());
        cache.held.iter().map(|held| rest(&held.segment)).sum()
    }

    #[test]
    fn bytes_are_counted_right_whatever_was_dropped() {
        let sizes: Vec<usize> = (0..100).map(|i| 1 + i * 7 % 31).collect();
        let mut cache = cache(5, &sizes);
        let compare = |cache: &Cache| {
            for index in 1..=110 {
                assert_eq!(cache.bytes_from(LogIndex(index)), counted(cache, LogIndex(index)), "from {index}");
            }
        };
        compare(&cache);
        (0..10).for_each(|_| drop(cache.pop_front()));
        compare(&cache);
        cache.purge(LogIndex(40));
        cache.truncate(LogIndex(90));
        cache.check(LogIndex(90));
        compare(&cache);
        let more = Segment::pack(LogIndex(90), Term(2), EntryKind::Command, &[[0; 9], [0; 9], [0; 9]]);
        cache.push_back(more.expect("small entries"));
        compare(&cache);
        // In the middle of a segment.
        cache.truncate(LogIndex(92));
        cache.check(LogIndex(92));
        compare(&cache);
        cache.purge(LogIndex(91));
        cache.check(LogIndex(92));
        assert_eq!((cache.bytes(), cache.bytes_from(LogIndex(92))), (0, 0));
    }
}
