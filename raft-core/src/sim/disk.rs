//! A disk that knows what is *durable* from what is merely written: a crash keeps the one and loses the other.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::schedule::Dice;
use crate::entries::{Entries, EntryKind, Segment};
use crate::io::{Fetch, Recovered, SnapshotMeta, Write};
use crate::membership::Membership;
use crate::types::{HardState, Instant, LogId, LogIndex, NodeId, Term, WriteSeq};

/// What a server has stored: term and vote, and the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Image {
    hard_state: HardState,
    /// The entry before the first one in `entries`.
    start: LogId,
    /// Who belonged to the cluster as of that entry, once the log was told.
    membership: Option<Membership>,
    /// One entry each: entry `start.index + 1 + n` at position `n`.
    entries: Vec<Segment>,
}

impl Image {
    /// Term and vote.
    pub fn hard_state(&self) -> HardState {
        self.hard_state
    }

    /// The entry before the first one of the log.
    pub fn start(&self) -> LogId {
        self.start
    }

    /// The last entry, or [`Image::start`] when the log is empty.
    pub fn last(&self) -> LogId {
        match self.entries.last() {
            Some(entry) => LogId::new(entry.last_term(), entry.last_index()),
            None => self.start,
        }
    }

    /// Identity of the entry at `index`, if that is in the log or just before it.
    pub fn id_at(&self, index: LogIndex) -> Option<LogId> {
        if index == self.start.index {
            return Some(self.start);
        }
        self.entry(index).map(|entry| LogId::new(entry.first_term(), index))
    }

    /// The entry at `index`, as a segment of one.
    pub fn entry(&self, index: LogIndex) -> Option<&Segment> {
        (index > self.start.index).then(|| self.entries.get((index - self.start.index) as usize - 1))?
    }

    /// The memberships in the log, oldest first. One that cannot be understood is left out: its server did not write it.
    pub fn memberships(&self) -> Vec<(LogIndex, Membership)> {
        let changes = self.entries.iter().flat_map(|entry| entry.of_kind(EntryKind::Membership));
        changes.filter_map(|entry| Some((entry.index, Membership::decode(entry.payload).ok()?))).collect()
    }

    /// Who belonged to the cluster where the log begins, if it was ever told.
    pub fn start_membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// Size in bytes of term, vote and log, and of what is known of where it begins.
    pub fn byte_len(&self) -> usize {
        let membership = self.membership.as_ref().map_or(0, |membership| membership.encode().len());
        let entries = self.entries.iter().map(Segment::byte_len).sum::<usize>();
        size_of::<HardState>() + size_of::<LogId>() + membership + entries
    }

    /// Carries a write out, after a look at the promises that a [`Write`] makes and at those that a server makes for life: its term
    /// never goes back, and it votes once a term.
    fn apply(&mut self, write: &Write) -> Result<(), String> {
        if let Some(new) = write.hard_state {
            let old = self.hard_state;
            if new.current_term < old.current_term {
                return Err(format!("term went back from {} to {}", old.current_term, new.current_term));
            }
            if new.current_term == old.current_term && old.voted_for.is_some() && new.voted_for != old.voted_for {
                return Err(format!("vote of term {} changed: {old:?} to {new:?}", new.current_term));
            }
            self.hard_state = new;
        }
        if let Some(start) = &write.log_start {
            self.begin_after(start)?;
        }
        if let Some(from) = write.truncate_from {
            if from <= self.start.index || from > self.last().index.next() {
                return Err(format!("truncation at {from} is outside the log, which ends at {}", self.last()));
            }
            self.entries.truncate((from - self.start.index) as usize - 1);
        }
        for segment in write.entries.segments() {
            for entry in segment.iter() {
                let last = self.last();
                if entry.index != last.index.next() || entry.term < last.term {
                    return Err(format!("entry {} does not follow on {last}", entry.id()));
                }
                if entry.term > self.hard_state.current_term {
                    return Err(format!(
                        "entry {} is of a later term than {}",
                        entry.id(),
                        self.hard_state.current_term
                    ));
                }
                self.entries.extend(segment.slice(entry.index, entry.index));
            }
        }
        Ok(())
    }

    /// If the entry is in the log, what comes after it stays.
    fn begin_after(&mut self, start: &SnapshotMeta) -> Result<(), String> {
        let last = start.last;
        if last.index < self.start.index || (last.index == self.start.index && last != self.start) {
            return Err(format!("the log begins after {}, and would go back to {last}", self.start));
        }
        if self.id_at(last.index) == Some(last) {
            self.entries.drain(..(last.index - self.start.index) as usize);
        } else {
            self.entries.clear();
        }
        self.start = last;
        self.membership = Some(start.membership.clone());
        Ok(())
    }
}

/// What a state machine keeps durably: its whole state at one point in the log. As a file, it is a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Saved {
    /// The last entry in it, and the membership as of then.
    pub meta: SnapshotMeta,
    /// What the state machine makes of it.
    pub data: Bytes,
    /// The last snapshot that was taken over from a leader, if any.
    pub restored: Option<SnapshotMeta>,
}

/// One server's disk: the log with term and vote, and what the state machine keeps. These are two things, and a crash may come between them.
///
/// Invariant: `live` is `durable` with every write of `pending` carried out, in order.
#[derive(Clone, Debug)]
pub struct Disk {
    live: Image,
    durable: Image,
    pending: VecDeque<Write>,
    /// Durable at once, and replaced as a whole.
    saved: Option<Saved>,
    /// When the last accepted write is done: the disk takes one after the other.
    busy_until: Instant,
    slowest: Duration,
    dice: Dice,
}

impl Disk {
    /// An empty disk on which each write takes up to `slowest`.
    pub fn new(slowest: Duration, dice: Dice) -> Self {
        Disk {
            live: Image::default(),
            durable: Image::default(),
            pending: VecDeque::new(),
            saved: None,
            busy_until: Instant::default(),
            slowest,
            dice,
        }
    }

    /// An empty disk whose owner decides when writes become durable.
    pub fn empty() -> Self {
        Disk::new(Duration::ZERO, Dice::new(0, 0))
    }

    /// What is written, durable or not: equals the log in the server's memory.
    pub fn live(&self) -> &Image {
        &self.live
    }

    /// What a crash would leave.
    pub fn durable(&self) -> &Image {
        &self.durable
    }

    /// Accepts a write. When it becomes durable is for the caller to say, by [`Disk::complete`].
    ///
    /// # Errors
    /// What is wrong with the write, in words.
    pub fn accept(&mut self, write: Write) -> Result<(), String> {
        self.live.apply(&write)?;
        self.pending.push_back(write);
        Ok(())
    }

    /// The writes that are not durable, oldest first.
    pub fn pending(&self) -> impl DoubleEndedIterator<Item = &Write> + ExactSizeIterator {
        self.pending.iter()
    }

    /// Accepts a write and says when it will be durable.
    ///
    /// # Errors
    /// What is wrong with the write, in words.
    pub fn submit(&mut self, now: Instant, write: Write) -> Result<Instant, String> {
        self.accept(write)?;
        let delay = self.dice.time(Duration::ZERO, self.slowest);
        self.busy_until = self.busy_until.max(now + delay);
        Ok(self.busy_until)
    }

    /// Makes every write up to `seq` durable. Says whether there was any: a completion may have been overtaken by a later one.
    ///
    /// # Errors
    /// What is wrong with the writes, in words.
    pub fn complete(&mut self, seq: WriteSeq) -> Result<bool, String> {
        let mut any = false;
        while let Some(write) = self.pending.pop_front_if(|write| write.seq <= seq) {
            self.durable.apply(&write)?;
            any = true;
        }
        Ok(any)
    }

    /// Pulls the plug: what was not durable is gone.
    pub fn crash(&mut self) {
        self.pending.clear();
        self.live = self.durable.clone();
        self.busy_until = Instant::default();
    }

    /// Pulls the plug, and some of what was on its way to the disk has arrived: the oldest `writes` of those pending, and of the
    /// next one, if `torn` says so, all but its entries, of which there are only that many. That is harsher than what a store leaves whose writes are atomic,
    /// as RocksDB's batches are: the core relies on less.
    ///
    /// # Errors
    /// What is wrong with the writes, in words.
    pub fn crash_keeping(&mut self, writes: usize, torn: Option<usize>) -> Result<(), String> {
        for write in self.pending.drain(..writes.min(self.pending.len())) {
            self.durable.apply(&write)?;
        }
        if let (Some(kept), Some(mut write)) = (torn, self.pending.pop_front()) {
            let mut entries = Entries::new();
            let first = write.entries.first_index().unwrap_or_default();
            for segment in write.entries.segments() {
                if let Some(part) = (kept > 0).then(|| segment.slice(first, first + (kept as u64 - 1))).flatten() {
                    // Parts of a rope, in order.
                    let _ = entries.push(part);
                }
            }
            write.entries = entries;
            self.durable.apply(&write)?;
        }
        self.crash();
        Ok(())
    }

    /// Puts an older image in the place of a disk whose server is down: the last `entries` entries are gone, and the vote. No server may
    /// survive this unnoticed; it is here to show that what follows from it is seen.
    pub fn roll_back(&mut self, entries: u64) {
        let left = self.durable.entries.len().saturating_sub(usize::try_from(entries).unwrap_or(usize::MAX));
        self.durable.entries.truncate(left);
        self.durable.hard_state = HardState { current_term: self.durable.last().term, voted_for: None };
        self.crash();
    }

    /// What the state machine would know after a crash.
    pub fn saved(&self) -> Option<&Saved> {
        self.saved.as_ref()
    }

    /// The state machine keeps its state as of `meta.last`.
    pub fn save(&mut self, meta: SnapshotMeta, data: Bytes) {
        let restored = self.saved.take().and_then(|saved| saved.restored);
        self.saved = Some(Saved { meta, data, restored });
    }

    /// The state machine has given up its state for a leader's.
    pub fn restore(&mut self, meta: SnapshotMeta, data: Bytes) {
        self.saved = Some(Saved { restored: Some(meta.clone()), meta, data });
    }

    /// Numbers the pending writes anew, from `by` less on: for those who compare disks.
    pub(crate) fn renumber(&mut self, by: u64) {
        self.pending.iter_mut().for_each(|write| write.seq.0 -= by);
    }

    /// Feeds what is stored and what is on its way into `hasher`.
    pub(crate) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        // Names every field, so that a new one has to be thought of here.
        let Disk { live: _, durable, pending, saved, busy_until: _, slowest: _, dice: _ } = self;
        (durable, pending, saved).hash(hasher);
    }

    /// What a server finds when it starts; `membership` is what it was told when it was set up. Its state machine starts with what it has saved, and
    /// the rest is to be applied again.
    pub fn recover(&self, membership: Membership) -> Recovered {
        let mut runs: Vec<LogId> = Vec::new();
        for entry in &self.durable.entries {
            if runs.last().is_none_or(|run| run.term < entry.first_term()) {
                runs.push(LogId::new(entry.first_term(), entry.first_index()));
            }
        }
        Recovered {
            hard_state: self.durable.hard_state,
            log_start: self.durable.start,
            runs,
            last_index: self.durable.last().index,
            applied: self.saved.as_ref().map_or(LogIndex::ZERO, |saved| saved.meta.last.index),
            membership: self.durable.membership.clone().unwrap_or(membership),
            changes: self.durable.memberships(),
            restored: self.saved.as_ref().and_then(|saved| saved.restored.clone()),
        }
    }

    /// Reads entries back; none when the log no longer reaches that far.
    pub fn read(&self, fetch: &Fetch) -> Entries {
        let mut entries = Entries::new();
        let mut bytes = 0;
        let mut index = fetch.first;
        while let Some(entry) = self.live.entry(index).filter(|_| index <= fetch.last) {
            bytes += entry.byte_len();
            if !entries.is_empty() && bytes > fetch.max_bytes {
                break;
            }
            // Entries of an image follow on one another, so the rope takes each.
            if entries.push(entry.clone()).is_err() {
                break;
            }
            index = index.next();
        }
        entries
    }

    /// Whether it is durable here that this server voted for `candidate` in `term`, or is beyond that term.
    pub fn has_voted(&self, term: Term, candidate: NodeId) -> bool {
        let HardState { current_term, voted_for } = self.durable.hard_state;
        current_term > term || (current_term == term && voted_for == Some(candidate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::FetchId;

    fn disk(slowest: u64) -> Disk {
        Disk::new(Duration::from_millis(slowest), Dice::new(1, 1))
    }

    fn write(seq: u64, term: u64, truncate: Option<u64>, first: u64, count: usize) -> Write {
        let segment = Segment::pack(LogIndex(first), Term(term), EntryKind::Command, &vec![b"command"; count]);
        Write {
            seq: WriteSeq(seq),
            hard_state: Some(HardState { current_term: Term(term), voted_for: None }),
            log_start: None,
            truncate_from: truncate.map(LogIndex),
            entries: segment.map(Entries::from).unwrap_or_default(),
        }
    }

    #[test]
    fn a_crash_loses_exactly_what_was_not_durable() {
        let mut disk = disk(5);
        disk.submit(Instant(0), write(1, 1, None, 1, 3)).unwrap();
        assert!(disk.complete(WriteSeq(1)).unwrap());
        disk.submit(Instant(0), write(2, 2, Some(3), 3, 4)).unwrap();
        assert_eq!(disk.live().last(), LogId::new(Term(2), LogIndex(6)));
        disk.crash();
        assert_eq!(disk.live().last(), LogId::new(Term(1), LogIndex(3)));
        assert_eq!(disk.live().hard_state().current_term, Term(1));
        assert!(!disk.complete(WriteSeq(2)).unwrap(), "the write is gone");
    }

    #[test]
    fn a_crash_may_keep_a_prefix_and_tear_the_next_write() {
        for (kept, torn, last, term) in
            [(0, None, 3, 1), (1, None, 5, 2), (0, Some(0), 2, 2), (0, Some(2), 4, 2), (1, Some(1), 6, 3)]
        {
            let mut disk = disk(5);
            disk.submit(Instant(0), write(1, 1, None, 1, 3)).unwrap();
            disk.complete(WriteSeq(1)).unwrap();
            disk.accept(write(2, 2, Some(3), 3, 3)).unwrap();
            disk.accept(write(3, 3, None, 6, 2)).unwrap();
            disk.crash_keeping(kept, torn).unwrap();
            assert_eq!(disk.live().last().index, LogIndex(last), "{kept} {torn:?}");
            assert_eq!(disk.live().hard_state().current_term, Term(term), "{kept} {torn:?}");
            assert_eq!(disk.pending().len(), 0);
        }
    }

    #[test]
    fn completions_are_cumulative_and_in_order() {
        let mut disk = disk(5);
        let first = disk.submit(Instant(0), write(1, 1, None, 1, 1)).unwrap();
        let second = disk.submit(Instant(0), write(2, 1, None, 2, 1)).unwrap();
        assert!(first <= second);
        assert!(disk.complete(WriteSeq(2)).unwrap());
        assert!(!disk.complete(WriteSeq(1)).unwrap(), "covered by the later one");
        assert_eq!(disk.durable().last().index, LogIndex(2));
    }

    #[test]
    fn writes_that_break_their_promise_are_noticed() {
        let mut disk = disk(0);
        disk.submit(Instant(0), write(1, 2, None, 1, 2)).unwrap();
        assert!(disk.submit(Instant(0), write(2, 2, None, 4, 1)).is_err(), "a gap");
        assert!(disk.submit(Instant(0), write(2, 1, None, 3, 1)).is_err(), "a term that goes back");
        assert!(disk.submit(Instant(0), write(2, 2, Some(9), 9, 1)).is_err(), "a truncation beyond the end");
        let vote = |of| Write {
            hard_state: Some(HardState { current_term: Term(3), voted_for: Some(NodeId(of)) }),
            ..write(3, 3, None, 3, 0)
        };
        disk.submit(Instant(0), vote(1)).unwrap();
        assert!(disk.submit(Instant(0), vote(2)).is_err(), "a second vote");
    }

    #[test]
    fn a_server_recovers_the_runs_of_its_durable_log() {
        let mut disk = disk(0);
        disk.submit(Instant(0), write(1, 1, None, 1, 2)).unwrap();
        disk.submit(Instant(0), write(2, 4, None, 3, 2)).unwrap();
        disk.complete(WriteSeq(2)).unwrap();
        let found = disk.recover(Membership::of_voters([NodeId(1)]));
        assert_eq!(found.runs, [LogId::new(Term(1), LogIndex(1)), LogId::new(Term(4), LogIndex(3))]);
        assert_eq!((found.last_index, found.applied), (LogIndex(4), LogIndex(0)));
    }

    #[test]
    fn a_log_that_begins_later_keeps_what_follows_on_its_start() {
        let begin = |disk: &mut Disk, seq, term, index| {
            let last = LogId::new(Term(term), LogIndex(index));
            let meta = SnapshotMeta { last, membership: Membership::of_voters([NodeId(1)]) };
            disk.submit(Instant(0), Write { hard_state: None, log_start: Some(meta), ..write(seq, 9, None, 1, 0) })
        };
        let mut disk = disk(0);
        disk.submit(Instant(0), write(1, 1, None, 1, 5)).unwrap();
        begin(&mut disk, 2, 1, 3).unwrap();
        assert_eq!((disk.live().start().index, disk.live().last().index), (LogIndex(3), LogIndex(5)));
        assert_eq!(disk.live().entry(LogIndex(4)).unwrap().first_index(), LogIndex(4));
        assert!(begin(&mut disk, 3, 1, 2).is_err(), "back");
        begin(&mut disk, 3, 2, 4).unwrap();
        assert_eq!(disk.live().last(), LogId::new(Term(2), LogIndex(4)), "another entry is in its place");
        begin(&mut disk, 4, 2, 9).unwrap();
        assert_eq!(disk.live().last(), LogId::new(Term(2), LogIndex(9)), "beyond the end");
        assert_eq!((disk.durable().last().index, disk.pending().len()), (LogIndex(0), 4));
        disk.complete(WriteSeq(4)).unwrap();
        let found = disk.recover(Membership::of_voters([NodeId(7)]));
        assert_eq!((found.log_start, found.last_index), (LogId::new(Term(2), LogIndex(9)), LogIndex(9)));
        assert_eq!(found.membership.voters(), [NodeId(1)]);
    }

    #[test]
    fn reads_stop_at_the_limit_but_deliver_at_least_one() {
        let mut disk = disk(0);
        disk.submit(Instant(0), write(1, 1, None, 1, 5)).unwrap();
        let read = |first, last, max_bytes| {
            disk.read(&Fetch { id: FetchId(1), first: LogIndex(first), last: LogIndex(last), max_bytes }).len()
        };
        assert_eq!(read(2, 4, 1 << 20), 3);
        assert_eq!(read(2, 4, 1), 1);
        assert_eq!(read(6, 9, 1), 0);
    }
}
