//! What is on the disk, what is on its way there, and what must wait for it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::entries::Entries;
use crate::io::{SnapshotMeta, Write};
use crate::message::Envelope;
use crate::types::{HardState, Instant, LogIndex, WriteSeq};

/// The durability gate. Writes are numbered and completed in order; messages that promise something about the disk stay
/// in here until the disk has it, so whatever leaves the core may always be sent at once.
///
/// Invariants: `persisted <= issued`; sequence numbers in `in_flight` and `gated` ascend; `durable` never exceeds what
/// completed writes contain *and* no later truncation has taken away.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Durability {
    issued: WriteSeq,
    persisted: WriteSeq,
    /// Highest entry on the disk. Moved by completed writes, and back by truncation.
    durable: LogIndex,
    in_flight: VecDeque<InFlight>,
    /// When a write was last completed: the one after it has had the disk to itself only since then.
    completed_at: Instant,
    gated: VecDeque<(WriteSeq, Envelope)>,
    /// Term and vote changed since the last write.
    hard_state_dirty: bool,
    /// The write that holds (or, while dirty, will hold) the present hard state.
    hard_state_seq: WriteSeq,
    /// First entry that is in no write yet.
    unwritten: LogIndex,
    truncate_from: Option<LogIndex>,
    /// Where the log begins, if the disk has not been told.
    log_start: Option<SnapshotMeta>,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct InFlight {
    seq: WriteSeq,
    /// The log's end after this write, lowered by later truncations: a write that was overtaken by a truncation
    /// must not count for what the truncation takes away.
    last: LogIndex,
    issued_at: Instant,
}

impl Durability {
    pub(crate) fn new(last: LogIndex) -> Self {
        Durability {
            issued: WriteSeq(0),
            persisted: WriteSeq(0),
            durable: last,
            in_flight: VecDeque::new(),
            completed_at: Instant(0),
            gated: VecDeque::new(),
            hard_state_dirty: false,
            hard_state_seq: WriteSeq(0),
            unwritten: last.next(),
            truncate_from: None,
            log_start: None,
        }
    }

    /// Highest entry that is safe on this server's disk.
    pub(crate) fn durable(&self) -> LogIndex {
        self.durable
    }

    /// First entry that no write contains yet.
    pub(crate) fn unwritten(&self) -> LogIndex {
        self.unwritten
    }

    pub(crate) fn hard_state_changed(&mut self) {
        self.hard_state_dirty = true;
        self.hard_state_seq = WriteSeq(self.issued.0 + 1);
    }

    /// Whether there is something to write besides entries.
    pub(crate) fn is_dirty(&self) -> bool {
        self.hard_state_dirty || self.truncate_from.is_some() || self.log_start.is_some()
    }

    /// Whether no write is on its way, or is to be made.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && !self.is_dirty()
    }

    /// Whether messages wait for the disk.
    pub(crate) fn holds_back(&self) -> bool {
        !self.gated.is_empty()
    }

    /// Whether the present term and vote are on the disk.
    pub(crate) fn hard_state_durable(&self) -> bool {
        self.persisted >= self.hard_state_seq
    }

    /// The log was cut: from now on nothing at `from` or above is durable, whatever writes are yet to complete.
    pub(crate) fn truncated(&mut self, from: LogIndex) {
        self.durable = self.durable.min(from.prev());
        for write in &mut self.in_flight {
            write.last = write.last.min(from.prev());
        }
        if from < self.unwritten {
            self.unwritten = from;
            self.truncate_from = Some(self.truncate_from.map_or(from, |at| at.min(from)));
        }
    }

    /// The log begins after `start.last` now.
    pub(crate) fn begins_after(&mut self, start: SnapshotMeta) {
        let first = start.last.index.next();
        self.unwritten = self.unwritten.max(first);
        // What was to be cut before is gone; what follows on it may still be there.
        self.truncate_from = self.truncate_from.map(|at| at.max(first));
        self.log_start = Some(start);
    }

    /// The log was dropped, and begins after `start.last` now. Of what is on the disk, or on its way there, only the entries up to `known` are
    /// also in the new log; the rest of that counts for nothing, until the disk has the new start.
    pub(crate) fn restarts_after(&mut self, start: SnapshotMeta, known: LogIndex) {
        self.durable = self.durable.min(known);
        for write in &mut self.in_flight {
            write.last = write.last.min(known);
        }
        self.unwritten = start.last.index.next();
        self.begins_after(start);
    }

    /// Holds a message back until the present term and vote are durable.
    pub(crate) fn gate(&mut self, message: Envelope) {
        self.gated.push_back((self.hard_state_seq, message));
    }

    /// The messages that need not wait any longer, in order.
    pub(crate) fn released(&mut self) -> impl Iterator<Item = Envelope> {
        let free = self.gated.partition_point(|(seq, _)| *seq <= self.persisted);
        self.gated.drain(..free).map(|(_, message)| message)
    }

    /// The next write, if there is anything to write. `entries` are those from [`Self::unwritten`] on.
    #[cfg(test)]
    pub(crate) fn next_write(&mut self, hard_state: HardState, entries: Entries, now: Instant) -> Option<Write> {
        let mut write = None;
        if self.is_dirty() || !entries.is_empty() {
            let last = entries.last_index().unwrap_or(self.unwritten.prev());
            self.next_write_into(&mut write, hard_state, entries, last, now);
        }
        write
    }

    /// Puts the next write in the place of one that was carried out, or of none. `entries` are those from [`Self::unwritten`] on, up to `last`.
    #[inline]
    pub(crate) fn next_write_into(
        &mut self,
        place: &mut Option<Write>,
        hard_state: HardState,
        entries: Entries,
        last: LogIndex,
        now: Instant,
    ) {
        self.issued = WriteSeq(self.issued.0 + 1);
        self.unwritten = last.next();
        self.in_flight.push_back(InFlight { seq: self.issued, last, issued_at: now });
        let write = Write {
            seq: self.issued,
            hard_state: std::mem::take(&mut self.hard_state_dirty).then_some(hard_state),
            log_start: self.log_start.take(),
            truncate_from: self.truncate_from.take(),
            entries,
        };
        match place {
            Some(place) => *place = write,
            None => *place = Some(write),
        }
    }

    /// Every write up to `seq` is durable, as of `now`. `false` when no such write was handed out.
    pub(crate) fn persisted(&mut self, seq: WriteSeq, now: Instant) -> bool {
        if seq > self.issued {
            return false;
        }
        self.persisted = self.persisted.max(seq);
        while let Some(write) = self.in_flight.front().filter(|write| write.seq <= seq) {
            self.durable = self.durable.max(write.last);
            self.in_flight.pop_front();
            self.completed_at = now;
        }
        true
    }

    /// When the oldest write will have taken `limit`, if one is on its way. Waiting for the writes before it does not count: a disk
    /// that has much to do is not one that hangs.
    pub(crate) fn stalled_at(&self, limit: Duration) -> Option<Instant> {
        self.writing_since().map(|since| since + limit)
    }

    /// Since when the disk has been busy with the oldest write, if one is on its way.
    pub(crate) fn writing_since(&self) -> Option<Instant> {
        self.in_flight.front().map(|write| write.issued_at.max(self.completed_at))
    }

    /// Counts writes from the last completed one on, and takes those in flight for new: see [`Raft::forget_time`](crate::Raft::forget_time).
    /// Returns by how much the numbers fell.
    #[cfg(feature = "sim")]
    pub(crate) fn forget_time(&mut self, now: Instant) -> u64 {
        // Names every field, so that a new one has to be thought of here.
        let Durability {
            issued,
            persisted,
            durable: _,
            in_flight,
            completed_at,
            gated,
            hard_state_dirty: _,
            hard_state_seq,
            unwritten: _,
            truncate_from: _,
            log_start: _,
        } = self;
        let by = persisted.0;
        for write in in_flight {
            let InFlight { seq, last: _, issued_at } = write;
            seq.0 -= by;
            *issued_at = now;
        }
        // To the network, which may lose, repeat and reorder, one of each kind in any order is as good as what there is.
        let kind = |(seq, message): &(WriteSeq, Envelope)| {
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(message, &mut hasher);
            (*seq, std::hash::Hasher::finish(&hasher))
        };
        gated.make_contiguous().sort_by_key(kind);
        let mut kinds: Vec<_> = std::mem::take(gated).into();
        kinds.dedup();
        *gated = kinds.into();
        for (seq, _) in gated {
            seq.0 = seq.0.saturating_sub(by);
        }
        hard_state_seq.0 = hard_state_seq.0.saturating_sub(by);
        issued.0 -= by;
        *persisted = WriteSeq(0);
        *completed_at = now;
        by
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::{EntryKind, Segment};
    use crate::types::{LogId, Term};

    fn entries(first: u64, n: usize) -> Entries {
        Segment::pack(LogIndex(first), Term(1), EntryKind::Command, &vec![b"x"; n]).unwrap().into()
    }

    #[test]
    fn a_write_overtaken_by_a_truncation_does_not_count_for_what_was_cut() {
        let mut d = Durability::new(LogIndex(0));
        let first = d.next_write(HardState::default(), entries(1, 10), Instant(0)).unwrap();
        d.truncated(LogIndex(5));
        let second = d.next_write(HardState::default(), entries(5, 2), Instant(0)).unwrap();
        assert_eq!((second.truncate_from, second.entries.first_index()), (Some(LogIndex(5)), Some(LogIndex(5))));
        assert!(d.persisted(first.seq, Instant(0)));
        assert_eq!(d.durable(), LogIndex(4));
        assert!(d.persisted(second.seq, Instant(0)));
        assert_eq!(d.durable(), LogIndex(6));
        assert!(!d.persisted(WriteSeq(3), Instant(0)), "was never handed out");
    }

    /// Reports are cumulative, so one that comes late says nothing new.
    #[test]
    fn a_report_that_comes_late_takes_nothing_back() {
        let mut d = Durability::new(LogIndex(0));
        d.hard_state_changed();
        let first = d.next_write(HardState::default(), entries(1, 2), Instant(0)).unwrap();
        d.hard_state_changed();
        let second = d.next_write(HardState::default(), entries(3, 2), Instant(0)).unwrap();
        for seq in [second.seq, first.seq] {
            assert!(d.persisted(seq, Instant(0)));
            assert!(d.hard_state_durable(), "after {seq:?}");
            assert_eq!(d.durable(), LogIndex(4));
        }
    }

    #[test]
    fn entries_that_were_never_written_need_no_truncation_on_disk() {
        let mut d = Durability::new(LogIndex(3));
        d.truncated(LogIndex(4));
        assert!(d.next_write(HardState::default(), Entries::new(), Instant(0)).is_none());
        d.truncated(LogIndex(3));
        let write = d.next_write(HardState::default(), Entries::new(), Instant(0)).unwrap();
        assert_eq!((write.truncate_from, d.durable()), (Some(LogIndex(3)), LogIndex(2)));
        assert_eq!(d.unwritten(), LogIndex(3));
    }
    fn start(term: u64, index: u64) -> SnapshotMeta {
        SnapshotMeta { last: LogId::new(Term(term), LogIndex(index)), ..SnapshotMeta::default() }
    }

    #[test]
    fn writes_overtaken_by_a_snapshot_count_only_for_what_it_confirms() {
        let mut d = Durability::new(LogIndex(3));
        let first = d.next_write(HardState::default(), entries(4, 10), Instant(0)).unwrap();
        d.restarts_after(start(2, 8), LogIndex(5));
        assert_eq!(d.durable(), LogIndex(3));
        let second = d.next_write(HardState::default(), Entries::new(), Instant(0)).unwrap();
        assert_eq!((second.log_start, second.truncate_from), (Some(start(2, 8)), None));
        let third = d.next_write(HardState::default(), entries(9, 2), Instant(0)).unwrap();
        assert_eq!(third.log_start, None, "once is enough");
        let durable_after = [(first.seq, 5), (second.seq, 8), (third.seq, 10)].map(|(seq, index)| {
            assert!(d.persisted(seq, Instant(0)));
            (d.durable(), LogIndex(index))
        });
        durable_after.into_iter().for_each(|(durable, expected)| assert_eq!(durable, expected));
    }

    #[test]
    fn a_log_that_begins_behind_a_truncation_is_cut_where_it_begins() {
        let mut d = Durability::new(LogIndex(9));
        d.truncated(LogIndex(4));
        d.begins_after(start(2, 6));
        let write = d.next_write(HardState::default(), entries(7, 1), Instant(0)).unwrap();
        assert_eq!((write.truncate_from, write.entries.first_index()), (Some(LogIndex(7)), Some(LogIndex(7))));
        d.begins_after(start(2, 7));
        let write = d.next_write(HardState::default(), Entries::new(), Instant(0)).unwrap();
        assert_eq!((write.log_start, d.unwritten()), (Some(start(2, 7)), LogIndex(8)));
    }
}
