//! All stores do the same, whatever is asked of them.

use proptest::prelude::*;
use raft_core::{
    Entries, EntryKind, GroupId, HardState, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term, Write,
    WriteSeq,
};
use raft_storage::{JournalOptions, JournalStorage, MemoryStorage, Options, RocksStorage, Storage, StorageReader};

#[derive(Clone, Debug)]
enum Op {
    /// One synced batch.
    Write(Vec<Change>),
    /// Start again with what is durable.
    Reopen,
    /// Read, positions in per mille of the log's length.
    Read { group: u64, first: u64, last: u64, max_bytes: usize },
}

/// A correct write, described relative to the log that it meets.
#[derive(Clone, Debug)]
struct Change {
    group: u64,
    /// Where the log is to begin: after the entry so many back from the last, or beyond the last; and whether it is to be one that the log
    /// does not hold.
    start: Option<(i64, bool)>,
    /// Whether the entries are memberships.
    memberships: bool,
    /// Entries to truncate, as far as there are so many.
    truncate: Option<u64>,
    /// Terms to advance before.
    advance: u64,
    vote: Option<u64>,
    /// Sizes of the payloads of each segment.
    segments: Vec<Vec<usize>>,
}

fn change() -> impl Strategy<Value = Change> {
    let segments = prop::collection::vec(prop::collection::vec(0..300usize, 1..8), 0..4);
    (
        (1..4u64, prop::option::weighted(0.2, (-6..30i64, any::<bool>())), prop::bool::weighted(0.1)),
        prop::option::weighted(0.3, 0..20u64),
        prop_oneof![3 => Just(0), 1 => 1..3u64],
        prop::option::of(1..4u64),
        segments,
    )
        .prop_map(|((group, start, memberships), truncate, advance, vote, segments)| Change {
            group,
            start,
            memberships,
            truncate,
            advance,
            vote,
            segments,
        })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop::collection::vec(change(), 1..6).prop_map(Op::Write),
        1 => Just(Op::Reopen),
        4 => (1..4u64, 0..1100u64, 0..1100u64, 0..4000usize)
            .prop_map(|(group, first, last, max_bytes)| Op::Read { group, first, last, max_bytes }),
    ]
}

/// What a group's log is to hold.
#[derive(Clone, Debug, Default)]
struct Log {
    start: LogId,
    /// The entries after it.
    entries: Vec<LogId>,
    hard_state: HardState,
}

impl Log {
    fn last(&self) -> LogId {
        self.entries.last().copied().unwrap_or(self.start)
    }

    /// Where the log begins anew, if `change` wants that and it is allowed.
    fn begin(&mut self, change: &Change) -> Option<SnapshotMeta> {
        let (back, foreign) = change.start?;
        let index = LogIndex(self.last().index.0.saturating_add_signed(-back));
        if index < self.start.index || (index == self.start.index && foreign) {
            return None;
        }
        let at = (index.0 - self.start.index.0) as usize;
        let held = if at == 0 { Some(self.start) } else { self.entries.get(at - 1).copied() };
        // A term that no entry has is the newest one, unless an entry has that.
        let newest = self.hard_state.current_term;
        match held.filter(|held| !foreign || held.term == newest) {
            Some(held) => {
                self.entries.drain(..at);
                self.start = held;
            }
            None => {
                self.entries.clear();
                self.start = LogId::new(newest, index);
            }
        }
        Some(SnapshotMeta { last: self.start, membership: Membership::of_voters([NodeId(index.0 + 1)]) })
    }
}

/// Turns a change into a write that is correct after what `log` says, and moves that on.
fn write(change: &Change, seq: u64, log: &mut Log, fill: &mut u8) -> Write {
    let before = log.hard_state;
    if change.advance > 0 {
        log.hard_state = HardState { current_term: Term(before.current_term.0 + change.advance), voted_for: None };
    }
    log.hard_state.voted_for = log.hard_state.voted_for.or(change.vote.map(NodeId));
    let log_start = log.begin(change);
    let truncate_from = change.truncate.map(|back| {
        log.entries.truncate(log.entries.len().saturating_sub(back as usize));
        log.last().index.next()
    });
    let mut entries = Entries::new();
    for sizes in &change.segments {
        *fill = fill.wrapping_add(1);
        let membership = Membership::of_voters([NodeId(u64::from(*fill) + 1)]).encode().to_vec();
        let (kind, payloads): (_, Vec<Vec<u8>>) = if change.memberships {
            (EntryKind::Membership, vec![membership])
        } else {
            (EntryKind::Command, sizes.iter().map(|&size| vec![*fill; size]).collect())
        };
        let first = log.last().index.next();
        let segment = Segment::pack(first, log.hard_state.current_term, kind, &payloads).unwrap();
        log.entries.extend(segment.iter().map(|entry| entry.id()));
        entries.push(segment).unwrap();
    }
    Write {
        seq: WriteSeq(seq),
        hard_state: (log.hard_state != before).then_some(log.hard_state),
        log_start,
        truncate_from,
        entries,
    }
}

fn in_rocksdb(ops: &[Op], max_record_bytes: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.max_record_bytes = max_record_bytes;
    run(ops, || RocksStorage::open(dir.path(), &crate::me(), &options).unwrap());
}

fn in_a_journal(ops: &[Op], segment_bytes: u64, spare_segments: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = JournalOptions::default();
    (options.segment_bytes, options.spare_segments) = (segment_bytes, spare_segments);
    run(ops, || JournalStorage::open(dir.path(), &crate::me(), &options).unwrap());
}

fn run<S: Storage>(ops: &[Op], open: impl Fn() -> S) {
    let (mut store, mut memory) = (open(), MemoryStorage::new());
    let mut logs: [Log; 4] = Default::default();
    let (mut seq, mut fill) = (0, 0);
    for op in ops {
        match op {
            Op::Write(changes) => {
                let batch: Vec<(GroupId, Write)> = changes
                    .iter()
                    .map(|change| {
                        seq += 1;
                        let log = &mut logs[change.group as usize];
                        (GroupId(change.group), write(change, seq, log, &mut fill))
                    })
                    .collect();
                store.write(&batch).unwrap();
                memory.write(&batch).unwrap();
            }
            Op::Reopen => {
                drop(store);
                store = open();
                memory.crash(0);
            }
            &Op::Read { group, first, last, max_bytes } => {
                let log = &logs[group as usize];
                // A little before the start, too.
                let (lowest, len) = (log.start.index.0.saturating_sub(2), log.entries.len() as u64 + 3);
                let at = |permille: u64| LogIndex(lowest + len * permille / 1000);
                let read = |found: Result<Entries, _>| found.unwrap();
                let (group, first, last) = (GroupId(group), at(first), at(last));
                let expected = read(memory.reader().entries(group, first, last, max_bytes));
                assert_eq!(read(store.reader().entries(group, first, last, max_bytes)), expected);
            }
        }
        for group in (1..4).map(GroupId) {
            assert_eq!(store.recover(group).unwrap(), memory.recover(group).unwrap(), "after {op:?}");
        }
    }
    drop(store);
    let mut store = open();
    for group in (1..4).map(GroupId) {
        assert_eq!(store.recover(group).unwrap(), memory.recover(group).unwrap());
        let all = |found: Result<Entries, _>| found.unwrap();
        let Log { start, entries, .. } = &logs[group.0 as usize];
        let first = start.index.next();
        let expected = all(memory.reader().entries(group, first, LogIndex::MAX, usize::MAX));
        assert_eq!(expected.iter().map(|entry| entry.id()).collect::<Vec<_>>(), *entries);
        assert_eq!(all(store.reader().entries(group, first, LogIndex::MAX, usize::MAX)), expected);
        assert_eq!(store.recover(group).unwrap().log_start, *start);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rocksdb_and_memory_agree(ops in prop::collection::vec(op(), 1..40), max_record_bytes in prop_oneof![Just(1 << 20), 1..2000usize]) {
        in_rocksdb(&ops, max_record_bytes);
    }

    #[test]
    fn journal_and_memory_agree(ops in prop::collection::vec(op(), 1..60), segment_bytes in 8192..40_000u64, spares in 0..3usize) {
        in_a_journal(&ops, segment_bytes, spares);
    }
}
