//! Several writes of one group, folded into one: what a batch does to a group when only the end counts.

use raft_core::{HardState, LogIndex, Segment, SnapshotMeta, Write};

/// The net effect of consecutive writes: move the start of the stored log, truncate it, append, replace the hard state. Because a batch becomes durable at
/// once, what is appended and truncated again within it never reaches the disk.
#[derive(Debug, Default)]
pub(crate) struct Effect {
    /// The log begins here: what is stored before is of no use any more.
    pub(crate) start: Option<SnapshotMeta>,
    /// Nor is anything else that is stored.
    pub(crate) replaced: bool,
    /// The stored log loses every entry from here on.
    pub(crate) cut: Option<LogIndex>,
    /// Then these are appended: consecutive, each beginning where the one before it ends.
    pub(crate) segments: Vec<Segment>,
    /// Then this replaces the hard state.
    pub(crate) hard_state: Option<HardState>,
}

impl Effect {
    /// Adds a write, which has been checked to follow on the ones before it, and about which it is known whether it begins the log anew.
    pub(crate) fn absorb(&mut self, write: &Write, replaces: bool) {
        if let Some(start) = &write.log_start {
            let first = start.last.index.next();
            if replaces {
                self.replaced = true;
                self.cut = None;
                self.segments.clear();
            }
            self.segments.retain_mut(|segment| match segment.slice(first, LogIndex::MAX) {
                Some(rest) => {
                    *segment = rest;
                    true
                }
                None => false,
            });
            self.start = Some(start.clone());
        }
        if let Some(from) = write.truncate_from {
            self.truncate(from);
        }
        self.segments.extend_from_slice(write.entries.segments());
        if write.hard_state.is_some() {
            self.hard_state = write.hard_state;
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        while self.segments.last().is_some_and(|segment| segment.first_index() >= from) {
            self.segments.pop();
        }
        match self.segments.last_mut() {
            Some(last) => {
                if let Some(kept) = last.slice(last.first_index(), from.prev()) {
                    *last = kept;
                }
            }
            None => self.cut = Some(self.cut.map_or(from, |cut| cut.min(from))),
        }
    }
}

/// Cuts segments into the runs that become one record each: as many as fit into `max_bytes`, at least one entry.
pub(crate) fn pack(segments: Vec<Segment>, max_bytes: usize, mut each: impl FnMut(&[Segment])) {
    let mut open: Vec<Segment> = Vec::new();
    let mut size = 0;
    for mut rest in segments {
        loop {
            let free = max_bytes.saturating_sub(size);
            if rest.byte_len() <= free {
                size += rest.byte_len();
                open.push(rest);
                break;
            }
            if !open.is_empty() {
                // Do not tear a segment that fits into a record of its own.
                each(&open);
                open.clear();
                size = 0;
                continue;
            }
            let head = rest.prefix(max_bytes);
            let next = head.last_index().next();
            each(&[head]);
            match rest.slice(next, LogIndex::MAX) {
                Some(tail) => rest = tail,
                None => break,
            }
        }
    }
    if !open.is_empty() {
        each(&open);
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{Entries, EntryKind, LogId, Term, WriteSeq};

    use super::*;

    fn segment(first: u64, payloads: &[usize]) -> Segment {
        let payloads: Vec<Vec<u8>> = payloads.iter().map(|&n| vec![7; n]).collect();
        Segment::pack(LogIndex(first), Term(1), EntryKind::Command, &payloads).unwrap()
    }

    fn write(truncate_from: Option<u64>, segment: Option<Segment>) -> Write {
        let entries = segment.map(Entries::from).unwrap_or_default();
        Write {
            seq: WriteSeq(1),
            hard_state: None,
            log_start: None,
            truncate_from: truncate_from.map(LogIndex),
            entries,
        }
    }

    #[test]
    fn what_is_truncated_within_the_batch_is_never_stored() {
        let mut effect = Effect::default();
        effect.absorb(&write(None, Some(segment(5, &[1, 1, 1]))), false);
        effect.absorb(&write(Some(6), Some(segment(6, &[2]))), false);
        assert_eq!((effect.cut, effect.segments.len()), (None, 2));
        assert_eq!(effect.segments[0].last_index(), LogIndex(5));
        effect.absorb(&write(Some(3), Some(segment(3, &[2]))), false);
        effect.absorb(&write(Some(4), None), false);
        assert_eq!((effect.cut, effect.segments.len()), (Some(LogIndex(3)), 1));
        effect.absorb(&write(Some(3), None), false);
        assert_eq!((effect.cut, effect.segments.len()), (Some(LogIndex(3)), 0));
    }

    #[test]
    fn what_is_before_the_start_is_never_stored() {
        let starting = |index: u64| Write {
            log_start: Some(SnapshotMeta { last: LogId::new(Term(1), LogIndex(index)), ..SnapshotMeta::default() }),
            ..write(None, None)
        };
        let mut effect = Effect::default();
        effect.absorb(&write(Some(4), Some(segment(4, &[1, 1]))), false);
        effect.absorb(&write(None, Some(segment(6, &[1, 1]))), false);
        effect.absorb(&starting(6), false);
        assert_eq!((effect.cut, effect.replaced, effect.segments.len()), (Some(LogIndex(4)), false, 1));
        assert_eq!(effect.segments[0].first_index(), LogIndex(7));
        effect.absorb(&starting(9), true);
        assert_eq!((effect.cut, effect.replaced, effect.segments.len()), (None, true, 0));
        effect.absorb(&write(None, Some(segment(10, &[1]))), false);
        assert_eq!(effect.start.map(|start| start.last.index), Some(LogIndex(9)));
        assert_eq!(effect.segments.len(), 1);
    }

    #[test]
    fn records_hold_what_fits_and_at_least_one_entry() {
        let cut = |segments: Vec<Segment>, max| {
            let mut records = Vec::new();
            pack(segments, max, |record| records.push(record.iter().map(Segment::len).sum::<usize>()));
            records
        };
        let one = 17 + 10;
        let three = || segment(1, &[10, 10, 10]);
        assert_eq!(cut(vec![three(), segment(4, &[10])], 4 * one), [4]);
        assert_eq!(cut(vec![three(), segment(4, &[10])], 3 * one), [3, 1]);
        assert_eq!(cut(vec![three(), segment(4, &[10])], 2 * one), [2, 2]);
        assert_eq!(cut(vec![segment(1, &[10]), segment(2, &[10, 10, 10])], 3 * one), [1, 3]);
        assert_eq!(cut(vec![three()], 1), [1, 1, 1]);
        assert_eq!(cut(vec![segment(1, &[10, 500, 10])], one), [1, 1, 1]);
        assert_eq!(cut(Vec::new(), one), [0; 0]);
    }
}
