//! The two stores do the same, whatever is asked of them.

use proptest::prelude::*;
use raft_core::{Entries, EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Segment, Term, Write, WriteSeq};
use raft_storage::{MemoryStorage, Options, RocksStorage, Storage, StorageReader};

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
        1..4u64,
        prop::option::weighted(0.3, 0..20u64),
        prop_oneof![3 => Just(0), 1 => 1..3u64],
        prop::option::of(1..4u64),
        segments,
    )
        .prop_map(|(group, truncate, advance, vote, segments)| Change { group, truncate, advance, vote, segments })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop::collection::vec(change(), 1..6).prop_map(Op::Write),
        1 => Just(Op::Reopen),
        4 => (1..4u64, 0..1100u64, 0..1100u64, 0..4000usize)
            .prop_map(|(group, first, last, max_bytes)| Op::Read { group, first, last, max_bytes }),
    ]
}

/// Turns a change into a write that is correct after what `last` and `hard_state` say, and moves them on.
fn write(change: &Change, seq: u64, last: &mut Vec<LogId>, hard_state: &mut HardState, fill: &mut u8) -> Write {
    let truncate_from = change.truncate.map(|back| {
        last.truncate(last.len().saturating_sub(back as usize));
        LogIndex(last.len() as u64 + 1)
    });
    let before = *hard_state;
    if change.advance > 0 {
        *hard_state = HardState { current_term: Term(before.current_term.0 + change.advance), voted_for: None };
    }
    hard_state.voted_for = hard_state.voted_for.or(change.vote.map(NodeId));
    let mut entries = Entries::new();
    for sizes in &change.segments {
        *fill = fill.wrapping_add(1);
        let payloads: Vec<Vec<u8>> = sizes.iter().map(|&size| vec![*fill; size]).collect();
        let first = LogIndex(last.len() as u64 + 1);
        let segment = Segment::pack(first, hard_state.current_term, EntryKind::Command, &payloads).unwrap();
        last.extend(segment.iter().map(|entry| entry.id()));
        entries.push(segment).unwrap();
    }
    Write {
        seq: WriteSeq(seq),
        hard_state: (*hard_state != before).then_some(*hard_state),
        log_start: None,
        truncate_from,
        entries,
    }
}

fn run(ops: &[Op], max_record_bytes: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    options.max_record_bytes = max_record_bytes;
    let open = || RocksStorage::open(dir.path(), &crate::me(), &options).unwrap();
    let (mut rocks, mut memory) = (open(), MemoryStorage::new());
    let mut logs: [(Vec<LogId>, HardState); 4] = Default::default();
    let (mut seq, mut fill) = (0, 0);
    for op in ops {
        match op {
            Op::Write(changes) => {
                let batch: Vec<(GroupId, Write)> = changes
                    .iter()
                    .map(|change| {
                        seq += 1;
                        let (last, hard_state) = &mut logs[change.group as usize];
                        (GroupId(change.group), write(change, seq, last, hard_state, &mut fill))
                    })
                    .collect();
                rocks.write(&batch).unwrap();
                memory.write(&batch).unwrap();
            }
            Op::Reopen => {
                drop(rocks);
                rocks = open();
                memory.crash(0);
            }
            &Op::Read { group, first, last, max_bytes } => {
                let len = logs[group as usize].0.len() as u64;
                let at = |permille: u64| LogIndex(len * permille / 1000);
                let read = |found: Result<Entries, _>| found.unwrap();
                let (group, first, last) = (GroupId(group), at(first), at(last));
                let expected = read(memory.reader().entries(group, first, last, max_bytes));
                assert_eq!(read(rocks.reader().entries(group, first, last, max_bytes)), expected);
            }
        }
        for group in (1..4).map(GroupId) {
            assert_eq!(rocks.recover(group).unwrap(), memory.recover(group).unwrap(), "after {op:?}");
        }
    }
    drop(rocks);
    let mut rocks = open();
    for group in (1..4).map(GroupId) {
        assert_eq!(rocks.recover(group).unwrap(), memory.recover(group).unwrap());
        let all = |found: Result<Entries, _>| found.unwrap();
        let expected = all(memory.reader().entries(group, LogIndex(1), LogIndex::MAX, usize::MAX));
        assert_eq!(expected.len(), logs[group.0 as usize].0.len());
        assert_eq!(all(rocks.reader().entries(group, LogIndex(1), LogIndex::MAX, usize::MAX)), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn rocksdb_and_memory_agree(ops in prop::collection::vec(op(), 1..40), max_record_bytes in prop_oneof![Just(1 << 20), 1..2000usize]) {
        run(&ops, max_record_bytes);
    }
}
