//! How many bytes of entries a log has, also after a part of it went.

use std::collections::VecDeque;

use raft_core::LogIndex;

/// Distance between two known positions, in bytes.
const STEP: u64 = 1 << 20;

/// Counts the bytes of a log's entries from its beginning on, and remembers now and then where a record begins. So the size of what a purge
/// frees is known without reading all of it, and a log of 10 GiB costs 160 KiB of memory.
///
/// Invariants: `known` ascends, in indices and in positions; when there are records, the first is known.
#[derive(Debug, Default)]
pub(super) struct Positions {
    /// Where the log begins and ends. Entries of the first record that do not count lie before the beginning.
    begin: u64,
    end: u64,
    /// Records, by their first index, and where they begin.
    known: VecDeque<(LogIndex, u64)>,
}

impl Positions {
    /// Whether there are no records.
    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Bytes between the beginning and the end.
    pub(super) fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.begin)
    }

    /// A record was appended that holds so many bytes.
    pub(super) fn push(&mut self, first: LogIndex, bytes: u64) {
        if self.known.back().is_none_or(|(_, position)| self.end - position >= STEP) {
            self.known.push_back((first, self.end));
        }
        self.end += bytes;
    }

    /// The first `bytes` of the first record do not count.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.begin += bytes;
    }

    /// The records from `first` on are gone, which had so many bytes.
    pub(super) fn truncate(&mut self, first: LogIndex, bytes: u64) {
        while self.known.pop_back_if(|(known, _)| *known >= first).is_some() {}
        self.end = self.end.saturating_sub(bytes);
    }

    /// The last record that is known among those which begin at `first` or before.
    pub(super) fn at_or_before(&self, first: LogIndex) -> LogIndex {
        let after = self.known.partition_point(|(known, _)| *known <= first);
        after.checked_sub(1).map_or(first, |at| self.known[at].0)
    }

    /// The log begins `before` bytes behind the beginning of the record `first`, which begins `skipped` bytes behind the one that
    /// [`at_or_before`](Self::at_or_before) names. Returns how many bytes fewer it has.
    pub(super) fn begin(&mut self, first: LogIndex, skipped: u64, before: u64) -> u64 {
        let mut base = self.begin;
        while let Some((_, position)) = self.known.pop_front_if(|(known, _)| *known <= first) {
            base = position;
        }
        let position = base + skipped;
        self.known.push_front((first, position));
        let old = std::mem::replace(&mut self.begin, position + before);
        self.begin.saturating_sub(old)
    }

    /// Everything is gone. Returns how many bytes that were.
    pub(super) fn clear(&mut self) -> u64 {
        let bytes = self.bytes();
        *self = Positions::default();
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_known_to_the_byte_from_a_few_positions() {
        let mut positions = Positions::default();
        let size = |index: u64| 1000 + index * 7;
        (1..=5000).for_each(|index| positions.push(LogIndex(index), size(index)));
        let sum = |from: u64, to: u64| (from..=to).map(size).sum::<u64>();
        assert_eq!(positions.bytes(), sum(1, 5000));
        assert!((10..100).contains(&positions.known.len()), "{}", positions.known.len());
        for first in [1, 2, 700, 701, 3999] {
            let known = positions.at_or_before(LogIndex(first));
            assert!(known.0 <= first && sum(known.0, first - 1) <= STEP + size(5000));
            // Ten bytes of the record do not count.
            positions.begin(LogIndex(first), sum(known.0, first - 1), 10);
            assert_eq!(positions.bytes(), sum(first, 5000) - 10);
            assert_eq!(positions.at_or_before(LogIndex(first)), LogIndex(first));
        }
        positions.truncate(LogIndex(4500), sum(4500, 5000));
        assert_eq!(positions.bytes(), sum(3999, 4499) - 10);
        positions.push(LogIndex(4500), 5);
        assert_eq!(positions.bytes(), sum(3999, 4499) - 5);
        assert_eq!(positions.clear(), sum(3999, 4499) - 5);
        positions.push(LogIndex(9000), 50);
        positions.skip(20);
        assert_eq!((positions.bytes(), positions.at_or_before(LogIndex(9001))), (30, LogIndex(9000)));
    }
}
