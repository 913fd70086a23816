//! Logs that do not begin with their first entry.

use raft_core::{
    ENTRY_HEADER, EntryKind, GroupId, HardState, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term,
    Write,
};

use super::{Factory, GROUP, Model, Writer, id, read, recover, write};
use crate::error::StorageError;
use crate::storage::Storage;

pub(super) fn run<F: Factory>(factory: &mut F) {
    a_log_begins_where_it_is_told_to(factory);
    a_log_that_lacks_the_new_start_is_replaced(factory);
    a_start_and_the_rest_of_its_batch(factory);
    memberships_are_recovered(factory);
    bad_starts_are_refused(factory);
}

/// A write that lets the log begin after `last`, and nothing else.
fn starting(writer: &mut Writer, last: LogId) -> (GroupId, Write) {
    let (group, write) = writer.append(false, 1, 0, &[]);
    let meta = SnapshotMeta { last, membership: Membership::of_voters([NodeId(last.index.0)]) };
    (group, Write { log_start: Some(meta), ..write })
}

/// Checks a log that begins after `start` and then holds entries with these terms and payloads.
#[track_caller]
fn check_now<S: Storage>(storage: &mut S, start: LogId, expected: &[(u64, Vec<u8>)]) {
    let recovered = recover(storage, GROUP);
    let (begin, end) = (start.index.0 + 1, start.index.0 + expected.len() as u64);
    assert_eq!((recovered.log_start, recovered.last_index.0), (start, end));
    assert_eq!(recovered.membership, Some(Membership::of_voters([NodeId(start.index.0)])));
    let mut runs: Vec<LogId> = Vec::new();
    for (i, (term, _)) in expected.iter().enumerate() {
        if runs.last().is_none_or(|run| run.term.0 < *term) {
            runs.push(id(*term, begin + i as u64));
        }
    }
    assert_eq!(recovered.runs, runs, "first entry of each term");
    let bytes: usize = expected.iter().map(|(_, payload)| payload.len() + ENTRY_HEADER).sum();
    assert_eq!(recovered.bytes, bytes as u64, "size of the log");
    for first in 0..begin {
        assert_eq!(read(storage, GROUP, first, u64::MAX, usize::MAX), [], "entry {first} is before the start");
    }
    for first in begin..=end {
        let tail = &expected[(first - begin) as usize..];
        assert_eq!(read(storage, GROUP, first, u64::MAX, usize::MAX), tail, "from {first}");
        assert_eq!(read(storage, GROUP, first, first, 1), tail[..1], "{first} alone");
    }
    assert_eq!(read(storage, GROUP, end + 1, u64::MAX, usize::MAX), [], "beyond the end");
}

/// Checks, restarts, and checks again.
#[track_caller]
fn check_begun<F: Factory>(
    factory: &mut F,
    mut storage: F::Storage,
    start: LogId,
    expected: &[(u64, Vec<u8>)],
) -> F::Storage {
    check_now(&mut storage, start, expected);
    let mut storage = factory.restart(storage);
    check_now(&mut storage, start, expected);
    storage
}

/// Ten entries: terms 1 to 3, in records of different sizes.
fn ten<F: Factory>(factory: &mut F, writer: &mut Writer) -> (F::Storage, Model) {
    let mut storage = factory.create();
    write(&mut storage, &[writer.append(false, 1, 1, &[b"1"])]);
    write(&mut storage, &[writer.append(false, 2, 1, &[b"2", b"33", b"4"])]);
    write(&mut storage, &[writer.append(false, 5, 2, &[b"5", b"66", b"7"])]);
    write(&mut storage, &[writer.append(false, 8, 3, &[b"8", b"9"])]);
    write(&mut storage, &[writer.append(false, 10, 3, &[b"10"])]);
    let terms = [1, 1, 1, 1, 2, 2, 2, 3, 3, 3];
    let payloads = ["1", "2", "33", "4", "5", "66", "7", "8", "9", "10"];
    (storage, terms.into_iter().zip(payloads.map(|payload| payload.as_bytes().to_vec())).collect())
}

fn a_log_begins_where_it_is_told_to<F: Factory>(factory: &mut F) {
    for last in [0, 1, 3, 4, 6, 10usize] {
        let mut writer = Writer::new(GROUP);
        let (mut storage, mut all) = ten(factory, &mut writer);
        let start = last.checked_sub(1).map_or(LogId::ZERO, |at| id(all[at].0, last as u64));
        write(&mut storage, &[starting(&mut writer, start)]);
        storage = check_begun(factory, storage, start, &all[last..]);
        // It goes on, is truncated (also down to the very start), and is compacted once more.
        write(&mut storage, &[writer.append(false, 11, 4, &[b"11", b"12", b"13"])]);
        all.extend([(4, b"11".to_vec()), (4, b"12".to_vec()), (4, b"13".to_vec())]);
        check_now(&mut storage, start, &all[last..]);
        let from = (last + 1).max(9);
        write(&mut storage, &[writer.append(true, from as u64, 5, &[b"new", b"newer"])]);
        all.truncate(from - 1);
        all.extend([(5, b"new".to_vec()), (5, b"newer".to_vec())]);
        storage = check_begun(factory, storage, start, &all[last..]);
        write(&mut storage, &[writer.append(true, last as u64 + 1, 5, &[])]);
        storage = check_begun(factory, storage, start, &[]);
        write(&mut storage, &[writer.append(false, last as u64 + 1, 6, &[b"x", b"y"])]);
        let two = [(6, b"x".to_vec()), (6, b"y".to_vec())];
        check_now(&mut storage, start, &two);
        let start = id(6, last as u64 + 1);
        write(&mut storage, &[starting(&mut writer, start)]);
        check_begun(factory, storage, start, &two[1..]);
    }
}

fn a_log_that_lacks_the_new_start_is_replaced<F: Factory>(factory: &mut F) {
    // Beyond the end; another entry in its place; with and without a prefix that went before.
    for (last, before) in [(id(3, 11), None), (id(3, 50), Some(id(2, 6))), (id(3, 7), None), (id(3, 7), Some(id(2, 6)))]
    {
        let mut writer = Writer::new(GROUP);
        let (mut storage, _) = ten(factory, &mut writer);
        if let Some(before) = before {
            write(&mut storage, &[starting(&mut writer, before)]);
        }
        write(&mut storage, &[starting(&mut writer, last)]);
        storage = check_begun(factory, storage, last, &[]);
        write(&mut storage, &[writer.append(false, last.index.0 + 1, 3, &[b"a", b"b"])]);
        write(&mut storage, &[writer.append(true, last.index.0 + 2, 4, &[b"c"])]);
        check_begun(factory, storage, last, &[(3, b"a".to_vec()), (4, b"c".to_vec())]);
    }
}

fn a_start_and_the_rest_of_its_batch<F: Factory>(factory: &mut F) {
    // One write with all of it, and several in one batch that build on one another.
    let mut writer = Writer::new(GROUP);
    let (mut storage, _) = ten(factory, &mut writer);
    let (_, start) = starting(&mut writer, id(1, 3));
    let (group, all) = writer.append(true, 6, 4, &[b"six", b"seven"]);
    let hard_state = Some(HardState { current_term: Term(5), voted_for: Some(NodeId(9)) });
    write(&mut storage, &[(group, Write { log_start: start.log_start, hard_state, ..all })]);
    let left = [(1, b"4".to_vec()), (2, b"5".to_vec()), (4, b"six".to_vec()), (4, b"seven".to_vec())];
    let mut storage = check_begun(factory, storage, id(1, 3), &left);
    assert_eq!(Some(recover(&mut storage, GROUP).hard_state), hard_state);
    writer.term = 5;
    let batch = [
        writer.append(false, 8, 5, &[b"8", b"9", b"10", b"11"]),
        starting(&mut writer, id(4, 7)),
        writer.append(true, 10, 5, &[b"ten"]),
        starting(&mut writer, id(5, 8)),
    ];
    write(&mut storage, &batch);
    let left = [(5, b"9".to_vec()), (5, b"ten".to_vec())];
    let mut storage = check_begun(factory, storage, id(5, 8), &left);
    let batch = [
        writer.append(false, 11, 5, &[b"11"]),
        starting(&mut writer, id(5, 20)),
        writer.append(false, 21, 5, &[b"21", b"22"]),
        starting(&mut writer, id(5, 21)),
        writer.append(true, 22, 6, &[b"twentytwo"]),
    ];
    write(&mut storage, &batch);
    let left = [(6, b"twentytwo".to_vec())];
    let mut storage = check_begun(factory, storage, id(5, 21), &left);
    let batch =
        [writer.append(true, 22, 7, &[]), starting(&mut writer, id(5, 21)), writer.append(false, 22, 7, &[b"x"])];
    write(&mut storage, &batch);
    check_begun(factory, storage, id(5, 21), &[(7, b"x".to_vec())]);
}

fn memberships_are_recovered<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    let of = |voter: u64| Membership::of_voters([NodeId(voter)]).with_info(NodeId(voter), vec![7; 300].into());
    let mut append = |storage: &mut F::Storage, first: u64, truncate: bool, voter: u64| {
        let (group, mut next) = writer.append(truncate, first, 1, &[]);
        next.truncate_from = truncate.then_some(LogIndex(first));
        for (index, kind, payload) in [
            (first, EntryKind::Command, b"x".to_vec()),
            (first + 1, EntryKind::Membership, of(voter).encode().to_vec()),
            (first + 2, EntryKind::NoOp, Vec::new()),
        ] {
            let segment = Segment::pack(LogIndex(index), Term(1), kind, &[payload]).expect("one entry");
            next.entries.push(segment).expect("they follow on one another");
        }
        write(storage, &[(group, next)]);
    };
    append(&mut storage, 1, false, 12);
    append(&mut storage, 4, false, 15);
    append(&mut storage, 7, false, 18);
    let changes = |factory: &mut F, mut storage: F::Storage, start: Option<u64>, expected: &[u64]| {
        for _ in 0..2 {
            let recovered = recover(&mut storage, GROUP);
            let expected: Vec<_> = expected.iter().map(|&index| (LogIndex(index), of(10 + index))).collect();
            assert_eq!(recovered.changes, expected);
            assert_eq!(recovered.membership, start.map(|last| Membership::of_voters([NodeId(last)])));
            storage = factory.restart(storage);
        }
        storage
    };
    let mut storage = changes(factory, storage, None, &[2, 5, 8]);
    append(&mut storage, 7, true, 18);
    let mut storage = changes(factory, storage, None, &[2, 5, 8]);
    let mut writer = Writer { group: GROUP, seq: 100, term: 1 };
    write(&mut storage, &[starting(&mut writer, id(1, 2))]);
    let mut storage = changes(factory, storage, Some(2), &[5, 8]);
    write(&mut storage, &[writer.append(true, 8, 1, &[])]);
    let mut storage = changes(factory, storage, Some(2), &[5]);
    write(&mut storage, &[starting(&mut writer, id(1, 30))]);
    changes(factory, storage, Some(30), &[]);
}

fn bad_starts_are_refused<F: Factory>(factory: &mut F) {
    for (bad, why) in [(id(1, 4), "back"), (id(2, 5), "another"), (id(9, 50), "above")] {
        let mut writer = Writer::new(GROUP);
        let (mut storage, all) = ten(factory, &mut writer);
        write(&mut storage, &[starting(&mut writer, id(1, 4))]);
        write(&mut storage, &[starting(&mut writer, id(2, 5))]);
        let bad = if why == "another" { id(1, 5) } else { bad };
        let refused = storage.write(&[starting(&mut writer, bad)]);
        assert!(matches!(refused, Err(StorageError::BadWrite { .. })), "{why}: {refused:?}");
        assert!(matches!(storage.write(&[]), Err(StorageError::Poisoned { .. })), "{why}");
        let storage = factory.restart(storage);
        check_begun(factory, storage, id(2, 5), &all[5..]);
    }
}
