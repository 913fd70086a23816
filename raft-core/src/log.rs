//! The log as the core sees it: the terms of all entries, the newest entries themselves, and four cursors.

use std::collections::VecDeque;

use crate::cache::Cache;
use crate::entries::{Entries, Segment};
use crate::room::Level;
use crate::types::{LogId, LogIndex, Term};

/// The log.
///
/// The core keeps the first index of every term (`runs`) for the *whole* log, so no decision of the protocol waits for
/// the disk, and the newest segments in memory for followers and the state machine.
///
/// Invariants, checked by [`Log::check`]:
///
/// 1. `start.index <= applied <= applying <= min(commit, max(durable, start.index))` and `commit, durable <= last`: what a snapshot holds
///    needs no place in the log.
/// 2. `runs` ascend strictly in term and index, and lie within `start.index + 1 ..= last`. The run that goes on where the log begins has lost its
///    first entries; what is concluded from runs never needs the first index of a term that is committed.
/// 3. `cache` is contiguous, ends at `last` when it is not empty, and holds every entry that is not yet durable.
///
/// `durable` is not in here but in [`Durability`](crate::durability::Durability), which owns the writes.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Log {
    /// The entry before the first: the last one that was forgotten, or zero. Moved by compaction and by snapshots; never back.
    start: LogId,
    runs: Vec<LogId>,
    last: LogIndex,
    cache: Cache,
    /// Highest entry known to be committed. Moved by the commit rule (leader) or by the leader's word (follower); never back.
    pub(crate) commit: LogIndex,
    /// Highest entry handed to the state machine. Bounded by `commit` and by what is durable here.
    pub(crate) applying: LogIndex,
    /// Highest entry that the state machine has reported as applied.
    pub(crate) applied: LogIndex,
    ledger: Ledger,
}

impl Log {
    pub(crate) fn new(start: LogId, runs: Vec<LogId>, last: LogIndex, applied: LogIndex) -> Self {
        Log {
            start,
            runs,
            last,
            cache: Cache::default(),
            commit: applied,
            applying: applied,
            applied,
            ledger: Ledger::default(),
        }
    }

    pub(crate) fn start(&self) -> LogId {
        self.start
    }

    pub(crate) fn last_index(&self) -> LogIndex {
        self.last
    }

    pub(crate) fn last_id(&self) -> LogId {
        LogId::new(self.runs.last().map_or(self.start.term, |run| run.term), self.last)
    }

    /// The term of the entry at `index`: known for every entry from `start` to `last`, whether it is in memory or not.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index < self.start.index || index > self.last {
            return None;
        }
        // Nearly always it is one of the newest term.
        if let Some(newest) = self.runs.last().filter(|newest| newest.index <= index) {
            return Some(newest.term);
        }
        let after = self.runs.partition_point(|run| run.index <= index);
        after.checked_sub(1).map(|run| self.runs[run].term)
    }

    /// Whether this very entry is in the log.
    pub(crate) fn contains(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term)
    }

    /// The last index of `term`, if the log holds any entry of it (the one at `start` included).
    fn last_of_term(&self, term: Term) -> Option<LogIndex> {
        match self.runs.binary_search_by_key(&term, |run| run.term) {
            Ok(at) => Some(self.runs.get(at + 1).map_or(self.last, |next| next.index.prev())),
            Err(_) => (term == self.start.term).then_some(self.start.index),
        }
    }

    /// The newest term runs that begin at or below `index`, oldest first, at most `most`.
    pub(crate) fn runs_up_to(&self, index: LogIndex, most: usize) -> Vec<LogId> {
        let end = self.runs.partition_point(|run| run.index <= index);
        self.runs[end.saturating_sub(most)..end].to_vec()
    }

    /// Where this log and a peer's part, given the peer's runs, the last of which ends at `end`.
    ///
    /// A term has one leader, which only appends: its entries are a prefix of one sequence in every log, with the same first
    /// index. So the longest common prefix ends at the smaller of the two last indices of the largest term that both logs hold.
    /// Returns that index and `true`; or, if none of the given terms is in this log, the best position for another try and `false`.
    pub(crate) fn matching(&self, runs: &[LogId], end: LogIndex, floor: LogIndex) -> (LogIndex, bool) {
        let mut run_end = end;
        for run in runs.iter().rev() {
            if let Some(own_end) = self.last_of_term(run.term) {
                return (own_end.min(run_end).max(floor), true);
            }
            run_end = run.index.prev();
        }
        (run_end.max(floor), run_end <= floor)
    }

    /// Appends a segment, which must begin right after the end. The caller has checked that.
    #[inline]
    pub(crate) fn append(&mut self, segment: Segment) {
        debug_assert_eq!(segment.first_index(), self.last.next(), "appends are contiguous");
        debug_assert!(segment.first_term() >= self.last_id().term, "terms never decrease");
        match segment.one_term() {
            Some(term) => self.extend_runs(LogId::new(term, segment.first_index())),
            None => segment.iter().for_each(|entry| self.extend_runs(entry.id())),
        }
        let bytes = segment.byte_len();
        self.last = segment.last_index();
        self.ledger.push(segment.first_index(), self.last, bytes);
        self.cache.push_back(segment);
    }

    fn extend_runs(&mut self, id: LogId) {
        // Without runs, the entry at `start` is the only one whose term is known; a run for it begins after it.
        if self.runs.last().is_none_or(|run| run.term < id.term) {
            self.runs.push(id);
        }
    }

    /// Forgets `from` and everything after it. The caller has checked that it is not committed.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        debug_assert!(from > self.commit, "a committed entry is never truncated");
        self.cache.truncate(from);
        self.last = self.last.min(from.prev());
        let end = self.runs.partition_point(|run| run.index < from);
        self.runs.truncate(end);
        self.ledger.truncate(from);
    }

    /// Forgets everything up to `to`, which is in the log and applied.
    pub(crate) fn purge(&mut self, to: LogId) {
        debug_assert!(self.contains(to) && to.index <= self.applied, "only what is applied is forgotten");
        let after = self.runs.partition_point(|run| run.index <= to.index);
        let next = self.runs.get(after).map_or(self.last.next(), |run| run.index);
        let mut gone = after;
        if next > to.index.next()
            && let Some(run) = after.checked_sub(1).and_then(|at| self.runs.get_mut(at))
        {
            // It goes on behind `to`.
            run.index = to.index.next();
            gone = after - 1;
        }
        self.runs.drain(..gone);
        self.start = to;
        self.cache.purge(to.index);
    }

    /// Forgets everything: the log begins, and ends, after `start`, which a snapshot holds and the state machine has taken over.
    pub(crate) fn restart(&mut self, start: LogId) {
        *self = Log::new(start, Vec::new(), start.index, start.index);
    }

    /// Raises the commit index; it never goes back.
    pub(crate) fn commit_to(&mut self, index: LogIndex) -> bool {
        let raised = index.min(self.last) > self.commit;
        if raised {
            self.commit = index.min(self.last);
            if self.commit == self.last {
                self.ledger.all_committed();
            } else {
                self.ledger.committed(self.commit);
            }
        }
        raised
    }

    /// The state machine is done up to `index`.
    pub(crate) fn applied_to(&mut self, index: LogIndex) {
        self.applied = index;
        if index == self.last {
            self.ledger.all_applied();
        } else {
            self.ledger.applied(index);
        }
    }

    /// Bytes appended and not committed; and bytes committed and not applied.
    pub(crate) fn backlog(&self) -> (usize, usize) {
        (self.ledger.uncommitted, self.ledger.unapplied)
    }

    /// The same, and how many bytes have been committed, and applied, before.
    pub(crate) fn levels(&self) -> (Level, Level) {
        let Ledger { appended, uncommitted, unapplied, .. } = self.ledger;
        let committed = appended.saturating_sub(uncommitted as u64);
        let uncommitted = Level { waiting: uncommitted, done: committed };
        (uncommitted, Level { waiting: unapplied, done: committed.saturating_sub(unapplied as u64) })
    }

    /// For exploration: counts bytes from here on.
    #[cfg(feature = "sim")]
    pub(crate) fn forget_pace(&mut self) {
        self.ledger.appended = (self.ledger.uncommitted + self.ledger.unapplied) as u64;
    }

    /// Bytes of the entries after `index`, and whether that is known: of those that are not in memory it is guessed, by the size of those that are. Without
    /// any there is no guess, and nothing is counted.
    pub(crate) fn bytes_after(&self, index: LogIndex) -> (usize, bool) {
        let next = index.next();
        let first = self.cached_from().unwrap_or(self.last.next());
        let held = self.cache.bytes_from(next);
        if index >= self.last || first <= next {
            return (held, true);
        }
        let (unknown, known) = (first.0 - next.0, self.last.next().0 - first.0);
        let guess = u128::from(unknown) * held as u128 / u128::from(known.max(1));
        (held.saturating_add(usize::try_from(guess).unwrap_or(usize::MAX)), false)
    }

    /// First index in memory, if any is.
    pub(crate) fn cached_from(&self) -> Option<LogIndex> {
        self.cache.first_index()
    }

    /// Entries `from ..= to` of at most `max_bytes` (but at least one), if `from` is in memory.
    #[expect(
        clippy::inline_always,
        reason = "nearly always it is a comparison and a count, and the entries are made where they go"
    )]
    #[inline(always)]
    pub(crate) fn cached(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> Option<Entries> {
        match self.newest(from, to, max_bytes) {
            Some(newest) => Some(newest.clone().into()),
            None => self.some_cached(from, to, max_bytes),
        }
    }

    /// The newest segment, if that is what is wanted, all of it, and it fits; so it is nearly always.
    #[inline]
    pub(crate) fn newest(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> Option<&Segment> {
        let newest = self.cache.back().filter(|newest| newest.first_index() == from && self.last <= to);
        newest.filter(|newest| newest.byte_len() <= max_bytes)
    }

    #[inline(never)]
    fn some_cached(&self, from: LogIndex, to: LogIndex, max_bytes: usize) -> Option<Entries> {
        if from > to {
            return None;
        }
        if let Some(newest) = self.cache.back().filter(|newest| newest.first_index() <= from)
            && newest.byte_len() <= max_bytes
        {
            return newest.slice(from, to).map(Entries::from);
        }
        if self.cached_from().is_none_or(|first| first > from) {
            return None;
        }
        let mut entries = Entries::new();
        let mut room = max_bytes;
        for segment in self.cache.from(from) {
            let Some(part) = segment.slice(from, to) else { break };
            let fits = part.byte_len() <= room;
            if !fits && !entries.is_empty() && part.prefix(1).byte_len() > room {
                break;
            }
            let part = if fits { part } else { part.prefix(room) };
            room = room.saturating_sub(part.byte_len());
            // Segments of the cache are contiguous, so this cannot fail.
            let _ = entries.push(part);
            if !fits {
                break;
            }
        }
        Some(entries)
    }

    /// Drops the oldest segments from memory beyond `max_bytes`: those that are durable and applied; and, when even
    /// `max_bytes + extra` is exceeded, those that are merely durable. They can be fetched.
    #[inline]
    pub(crate) fn evict(&mut self, durable: LogIndex, max_bytes: usize, extra: usize) {
        while self.cache.bytes() > max_bytes {
            let Some(front) = self.cache.front() else { break };
            let needed = front.last_index() > self.applied && self.cache.bytes() <= max_bytes.saturating_add(extra);
            if front.last_index() > durable || needed {
                break;
            }
            self.cache.pop_front();
        }
    }

    /// Panics when an invariant is broken.
    pub(crate) fn check(&self, durable: LogIndex) {
        let held = durable.max(self.start.index);
        assert!(self.start.index <= self.applied, "forgotten before it was applied: {self:?}");
        assert!(self.applied <= self.applying, "applied what was not handed out: {self:?}");
        assert!(self.applying <= self.commit.min(held), "applying beyond commit or disk: {self:?}");
        assert!(self.commit <= self.last && durable <= self.last, "cursor beyond the end: {self:?} {durable}");
        let ascending = |w: &[LogId]| w[0].term < w[1].term && w[0].index < w[1].index;
        assert!(self.runs.windows(2).all(ascending), "runs do not ascend: {self:?}");
        assert!(self.runs.first().is_none_or(|run| run.index > self.start.index), "run in the snapshot: {self:?}");
        assert!(self.runs.last().is_none_or(|run| run.index <= self.last), "run beyond the end: {self:?}");
        let first = self.cached_from().unwrap_or(self.last.next());
        assert!(first <= held.next(), "an entry is neither durable nor in memory: {self:?} {durable}");
        self.cache.check(self.last.next());
    }
}

/// Sizes of the segments that were appended and are not applied yet, for the limits on what is in progress.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Ledger {
    /// In order; the first `split` of them are committed.
    segments: VecDeque<Weight>,
    split: usize,
    uncommitted: usize,
    unapplied: usize,
    /// Bytes of all that was ever added and not truncated.
    appended: u64,
}

#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Weight {
    first: LogIndex,
    last: LogIndex,
    bytes: usize,
}

impl Ledger {
    fn push(&mut self, first: LogIndex, last: LogIndex, bytes: usize) {
        self.segments.push_back(Weight { first, last, bytes });
        self.uncommitted += bytes;
        self.appended += bytes as u64;
    }

    /// As [`committed`](Self::committed) for all there is, without a walk.
    fn all_committed(&mut self) {
        self.split = self.segments.len();
        self.unapplied += std::mem::take(&mut self.uncommitted);
    }

    /// As [`applied`](Self::applied) for all there is, which must be committed.
    fn all_applied(&mut self) {
        debug_assert_eq!((self.split, self.uncommitted), (self.segments.len(), 0), "applied and not committed");
        self.segments.clear();
        (self.split, self.unapplied) = (0, 0);
    }

    fn committed(&mut self, index: LogIndex) {
        while let Some(&Weight { bytes, .. }) = self.segments.get(self.split).filter(|weight| weight.last <= index) {
            self.split += 1;
            self.uncommitted -= bytes;
            self.unapplied += bytes;
        }
    }

    fn applied(&mut self, index: LogIndex) {
        while let Some(&Weight { bytes, .. }) = self.segments.front().filter(|weight| weight.last <= index)
            && self.split > 0
        {
            self.segments.pop_front();
            self.split -= 1;
            self.unapplied -= bytes;
        }
    }

    /// A segment that is cut within keeps its whole weight: an overestimate until it is applied.
    fn truncate(&mut self, from: LogIndex) {
        while self.segments.len() > self.split {
            let Some(back) = self.segments.back_mut().filter(|weight| weight.last >= from) else { break };
            if back.first < from {
                back.last = from.prev();
                break;
            }
            self.uncommitted -= back.bytes;
            self.appended -= back.bytes as u64;
            self.segments.pop_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entries::EntryKind;

    fn segment(first: u64, term: u64, n: usize) -> Segment {
        Segment::pack(LogIndex(first), Term(term), EntryKind::Command, &vec![b"12345678"; n]).unwrap()
    }

    fn log(runs: &[(u64, usize)]) -> Log {
        let mut log = Log::new(LogId::ZERO, Vec::new(), LogIndex::ZERO, LogIndex::ZERO);
        for &(term, n) in runs {
            log.append(segment(log.last.0 + 1, term, n));
        }
        log
    }

    #[test]
    fn terms_are_known_for_the_whole_log() {
        let log = log(&[(1, 3), (1, 1), (4, 2)]);
        let terms: Vec<_> = (0..8).map(|i| log.term_at(LogIndex(i)).map(|t| t.0)).collect();
        assert_eq!(terms, [Some(0), Some(1), Some(1), Some(1), Some(1), Some(4), Some(4), None]);
        assert_eq!(log.runs, [LogId::new(Term(1), LogIndex(1)), LogId::new(Term(4), LogIndex(5))]);
        log.check(LogIndex(0));
    }

    /// All pairs of short logs that can arise: compared entry by entry, and through their runs.
    #[test]
    fn the_match_of_two_logs_is_found_from_their_runs() {
        // Entry i of term t exists in both or differs by term; a term's entries begin at the same index everywhere.
        let shapes: [&[(u64, usize)]; 8] = [
            &[],
            &[(1, 3)],
            &[(1, 5)],
            &[(1, 3), (2, 4)],
            &[(1, 3), (2, 2), (5, 3)],
            &[(1, 3), (3, 2)],
            &[(1, 3), (3, 4), (4, 1)],
            &[(1, 5), (4, 6)],
        ];
        for a in shapes.map(log) {
            for b in shapes.map(log) {
                let same = |i: &u64| a.term_at(LogIndex(*i)) == b.term_at(LogIndex(*i));
                let both = a.last.0.min(b.last.0);
                let expected = (1..=both).take_while(same).last().unwrap_or(0);
                // Terms 4 of different shapes begin at different indices: such a pair cannot arise.
                let possible = a.runs.iter().all(|x| b.runs.iter().all(|y| x.term != y.term || x.index == y.index));
                if possible {
                    let found = a.matching(&b.runs_up_to(LogIndex::MAX, 99), b.last, LogIndex::ZERO);
                    assert_eq!(found, (LogIndex(expected), true), "{:?} {:?}", a.runs, b.runs);
                }
            }
        }
    }

    #[test]
    fn a_bounded_list_of_runs_leads_further_down() {
        let leader = log(&[(1, 2), (9, 1)]);
        let follower = log(&[(1, 4), (2, 1), (3, 1), (4, 1)]);
        let runs = follower.runs_up_to(LogIndex(7), 2);
        assert_eq!(leader.matching(&runs, LogIndex(7), LogIndex::ZERO), (LogIndex(5), false));
        let runs = follower.runs_up_to(LogIndex(5), 2);
        assert_eq!(leader.matching(&runs, LogIndex(5), LogIndex::ZERO), (LogIndex(2), true));
    }

    #[test]
    fn truncation_cuts_within_a_segment_and_keeps_count() {
        let mut log = log(&[(1, 4), (2, 4)]);
        let each = log.cache.bytes() / 8;
        log.truncate(LogIndex(7));
        assert_eq!((log.last, log.cache.bytes(), log.last_id().term), (LogIndex(6), 6 * each, Term(2)));
        log.truncate(LogIndex(3));
        assert_eq!((log.last, log.runs.len(), log.cache.bytes()), (LogIndex(2), 1, 2 * each));
        log.append(segment(3, 5, 2));
        log.check(LogIndex(0));
        log.commit_to(LogIndex(4));
        assert_eq!(log.backlog().0, 0);
        log.applying = LogIndex(4);
        log.applied_to(LogIndex(4));
        assert_eq!(log.backlog(), (0, 0));
        // What was cut off within a segment counts as done with the rest of it; what is gone as a whole does not.
        assert_eq!(log.levels().1, Level { waiting: 0, done: 6 * each as u64 });
        log.truncate(LogIndex(5));
        log.check(LogIndex(4));
    }

    #[test]
    fn what_is_forgotten_leaves_the_terms_of_the_rest() {
        let full = log(&[(1, 3), (2, 3), (4, 1), (5, 2)]);
        for to in 1..=9 {
            let mut log = full.clone();
            log.commit_to(LogIndex(9));
            (log.applying, log.applied) = (LogIndex(9), LogIndex(9));
            let id = LogId::new(full.term_at(LogIndex(to)).unwrap(), LogIndex(to));
            log.purge(id);
            log.check(LogIndex(9));
            assert_eq!((log.start(), log.last_id()), (id, full.last_id()));
            for index in (0..=11).map(LogIndex) {
                let expected = full.term_at(index).filter(|_| index >= id.index);
                assert_eq!(log.term_at(index), expected, "{index} after {to} were forgotten");
            }
            // The same as what would be found on disk.
            assert!(log.runs.first().is_none_or(|run| run.index == LogIndex(to + 1)), "{:?}", log.runs);
            log.append(segment(10, 5, 2));
            log.check(LogIndex(9));
            log.restart(LogId::new(Term(6), LogIndex(40)));
            log.check(LogIndex(3));
            assert_eq!((log.last_id(), log.commit, log.backlog()), (log.start(), LogIndex(40), (0, 0)));
        }
    }

    #[test]
    fn logs_match_whatever_of_them_was_forgotten() {
        let shapes: [&[(u64, usize)]; 4] = [&[(1, 3)], &[(1, 3), (2, 4)], &[(1, 3), (3, 4), (4, 1)], &[(1, 5), (4, 6)]];
        for (a, b) in shapes.iter().flat_map(|a| shapes.map(|b| (log(a), log(b)))) {
            let same =
                |i: &u64| a.term_at(LogIndex(*i)).is_some() && a.term_at(LogIndex(*i)) == b.term_at(LogIndex(*i));
            let common = (1..=20).take_while(same).last().unwrap_or(0);
            if a.runs.iter().any(|x| b.runs.iter().any(|y| x.term == y.term && x.index != y.index)) {
                continue;
            }
            // Only what is committed may be forgotten, and that is common.
            for (leader_start, commit) in (0..=common).flat_map(|x| (0..=common).map(move |y| (x, y))) {
                let (mut leader, mut follower) = (a.clone(), b.clone());
                for (log, start) in [(&mut leader, leader_start), (&mut follower, commit)] {
                    log.commit_to(LogIndex(common));
                    (log.applying, log.applied) = (LogIndex(common), LogIndex(common));
                    if start > 0 {
                        log.purge(LogId::new(log.term_at(LogIndex(start)).unwrap(), LogIndex(start)));
                    }
                }
                let found = leader.matching(&follower.runs_up_to(LogIndex::MAX, 99), follower.last, LogIndex(commit));
                assert_eq!(found, (LogIndex(common), true), "{:?} {:?}", leader.runs, follower.runs);
            }
        }
    }

    #[test]
    fn what_a_follower_lacks_is_counted_and_what_is_not_in_memory_guessed() {
        let mut log = log(&[(1, 3), (1, 3), (2, 3)]);
        let each = log.cache.bytes() / 9;
        for index in 0..=9 {
            assert_eq!(log.bytes_after(LogIndex(index)), ((9 - index as usize) * each, true), "after {index}");
        }
        log.commit_to(LogIndex(9));
        (log.applying, log.applied) = (LogIndex(9), LogIndex(9));
        log.evict(LogIndex(9), 5 * each, 0);
        assert_eq!(
            log.bytes_after(LogIndex(4)),
            (5 * each, false),
            "5 and 6 are gone, and taken to be like the others"
        );
        assert_eq!(log.bytes_after(LogIndex(6)), (3 * each, true));
        log.evict(LogIndex(9), 0, 0);
        assert_eq!((log.bytes_after(LogIndex(8)), log.bytes_after(LogIndex(9))), ((0, false), (0, true)));
    }

    #[test]
    fn reads_from_memory_respect_the_limit() {
        let mut log = log(&[(1, 3), (1, 3), (2, 3)]);
        let each = log.cache.bytes() / 9;
        let all = log.cached(LogIndex(2), LogIndex(8), usize::MAX).unwrap();
        assert_eq!((all.first_index(), all.last_index()), (Some(LogIndex(2)), Some(LogIndex(8))));
        let some = log.cached(LogIndex(2), LogIndex(9), 4 * each).unwrap();
        assert_eq!(some.last_index(), Some(LogIndex(5)));
        assert_eq!(log.cached(LogIndex(2), LogIndex(9), 1).unwrap().len(), 1);
        log.commit_to(LogIndex(3));
        log.applying = LogIndex(3);
        log.applied_to(LogIndex(3));
        log.evict(LogIndex(3), 0, usize::MAX);
        assert_eq!(log.cached(LogIndex(3), LogIndex(9), 1), None);
        assert_eq!(log.cached_from(), Some(LogIndex(4)));
        log.check(LogIndex(3));
    }
}
