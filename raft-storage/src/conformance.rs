//! What every [`Storage`] must do, as a suite of checks that any implementation can run.
//!
//! ```
//! use raft_storage::{MemoryStorage, conformance};
//!
//! struct InMemory;
//!
//! impl conformance::Factory for InMemory {
//!     type Storage = MemoryStorage;
//!     fn create(&mut self) -> MemoryStorage {
//!         MemoryStorage::new()
//!     }
//!     fn restart(&mut self, mut storage: MemoryStorage) -> MemoryStorage {
//!         storage.crash(0);
//!         storage
//!     }
//! }
//!
//! conformance::run(&mut InMemory);
//! ```

mod start;

use std::sync::atomic::{AtomicBool, Ordering};

use raft_core::{
    ENTRY_HEADER, Entries, EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Segment, Term, Write, WriteSeq,
};

use crate::error::StorageError;
use crate::storage::{RecoveredLog, Storage, StorageReader};

/// Makes the storages under test.
pub trait Factory {
    /// What is tested.
    type Storage: Storage;

    /// A new, empty storage.
    fn create(&mut self) -> Self::Storage;

    /// Ends `storage` as brutally as can be arranged, and opens again what it left behind. No reader of it is alive.
    fn restart(&mut self, storage: Self::Storage) -> Self::Storage;
}

/// Runs every check.
///
/// # Panics
/// A check failed; the message says which.
pub fn run<F: Factory>(factory: &mut F) {
    an_empty_log(factory);
    entries_survive_restarts(factory);
    hard_state_alone(factory);
    truncation_inside_a_batch(factory);
    truncation_append_and_hard_state_in_one_write(factory);
    overwritten_indices(factory);
    writes_of_one_batch_build_on_one_another(factory);
    groups_do_not_mix(factory);
    reads_are_limited(factory);
    a_huge_entry(factory);
    many_small_writes(factory);
    bad_writes_poison(factory);
    readers_run_beside_the_writer(factory);
    start::run(factory);
}

const GROUP: GroupId = GroupId::FIRST;

/// A log as a test expects it: the terms and payloads of entries 1, 2, 3, ...
type Model = Vec<(u64, Vec<u8>)>;

/// Builds writes for one group.
struct Writer {
    group: GroupId,
    seq: u64,
    term: u64,
}

impl Writer {
    fn new(group: GroupId) -> Self {
        Writer { group, seq: 0, term: 0 }
    }

    /// A write that appends `payloads` in `term` from `first` on; `truncate` says whether it truncates there before.
    fn append(&mut self, truncate: bool, first: u64, term: u64, payloads: &[&[u8]]) -> (GroupId, Write) {
        self.seq += 1;
        let entries = Segment::pack(LogIndex(first), Term(term), EntryKind::Command, payloads);
        let hard_state = (term > self.term).then_some(HardState { current_term: Term(term), voted_for: None });
        self.term = self.term.max(term);
        let write = Write {
            seq: WriteSeq(self.seq),
            hard_state,
            log_start: None,
            truncate_from: truncate.then_some(LogIndex(first)),
            entries: entries.map(Entries::from).unwrap_or_default(),
        };
        (self.group, write)
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term(term), LogIndex(index))
}

#[track_caller]
fn write<S: Storage>(storage: &mut S, batch: &[(GroupId, Write)]) {
    storage.write(batch).expect("a correct batch is accepted");
}

#[track_caller]
fn recover<S: Storage>(storage: &mut S, group: GroupId) -> RecoveredLog {
    storage.recover(group).expect("an undamaged storage recovers")
}

#[track_caller]
fn read<S: Storage>(storage: &S, group: GroupId, first: u64, last: u64, max_bytes: usize) -> Vec<(u64, Vec<u8>)> {
    let entries =
        storage.reader().entries(group, LogIndex(first), LogIndex(last), max_bytes).expect("entries are read");
    if let Some(found) = entries.first_index() {
        assert_eq!(found, LogIndex(first), "entries begin where they were asked for");
    }
    entries.iter().map(|entry| (entry.term.0, entry.payload.to_vec())).collect()
}

/// Checks that log, runs and reads agree with `model`.
#[track_caller]
fn check<S: Storage>(storage: &mut S, group: GroupId, model: &Model) {
    let recovered = recover(storage, group);
    let mut runs: Vec<LogId> = Vec::new();
    for (i, (term, _)) in model.iter().enumerate() {
        if runs.last().is_none_or(|run| run.term.0 < *term) {
            runs.push(id(*term, i as u64 + 1));
        }
    }
    assert_eq!(recovered.runs, runs, "first entry of each term");
    assert_eq!(recovered.log_start, LogId::ZERO, "nothing was purged");
    assert_eq!(recovered.last_index, LogIndex(model.len() as u64), "last index");
    let bytes: usize = model.iter().map(|(_, payload)| payload.len() + ENTRY_HEADER).sum();
    assert_eq!(recovered.bytes, bytes as u64, "size of the log");
    assert_eq!(&read(storage, group, 1, u64::MAX, usize::MAX), model, "the entries");
    for first in 1..=model.len().min(40) {
        let last = (first + 2).min(model.len());
        assert_eq!(read(storage, group, first as u64, last as u64, usize::MAX), model[first - 1..last], "from {first}");
    }
    assert_eq!(read(storage, group, model.len() as u64 + 1, u64::MAX, usize::MAX), [], "beyond the end");
    assert_eq!(read(storage, group, 0, u64::MAX, usize::MAX), [], "index zero is no entry");
}

/// Checks, restarts, and checks again.
#[track_caller]
fn check_restarted<F: Factory>(factory: &mut F, mut storage: F::Storage, group: GroupId, model: &Model) -> F::Storage {
    check(&mut storage, group, model);
    let mut storage = factory.restart(storage);
    check(&mut storage, group, model);
    storage
}

fn model(entries: &[(u64, &[u8])]) -> Model {
    entries.iter().map(|(term, payload)| (*term, payload.to_vec())).collect()
}

fn an_empty_log<F: Factory>(factory: &mut F) {
    let mut storage = factory.create();
    assert_eq!(recover(&mut storage, GROUP), RecoveredLog::default());
    write(&mut storage, &[]);
    let nothing =
        Write { seq: WriteSeq(1), hard_state: None, log_start: None, truncate_from: None, entries: Entries::new() };
    write(&mut storage, &[(GROUP, nothing.clone())]);
    write(&mut storage, &[(GROUP, Write { truncate_from: Some(LogIndex(1)), ..nothing })]);
    check_restarted(factory, storage, GROUP, &Model::new());
}

fn entries_survive_restarts<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    write(&mut storage, &[writer.append(false, 1, 1, &[b"a", b"", b"ccc"])]);
    let expected = model(&[(1, b"a"), (1, b""), (1, b"ccc")]);
    let mut storage = check_restarted(factory, storage, GROUP, &expected);
    write(&mut storage, &[writer.append(false, 4, 1, &[b"d"])]);
    write(&mut storage, &[writer.append(false, 5, 3, &[b"e", b"f"])]);
    let expected = model(&[(1, b"a"), (1, b""), (1, b"ccc"), (1, b"d"), (3, b"e"), (3, b"f")]);
    let storage = check_restarted(factory, storage, GROUP, &expected);
    check_restarted(factory, storage, GROUP, &expected);
}

fn hard_state_alone<F: Factory>(factory: &mut F) {
    let mut storage = factory.create();
    let votes = [(1, Some(3)), (2, None), (2, Some(1)), (7, Some(u64::MAX))];
    for (seq, (term, vote)) in votes.into_iter().enumerate() {
        let hard_state = HardState { current_term: Term(term), voted_for: vote.map(NodeId) };
        let only = Write {
            seq: WriteSeq(seq as u64),
            hard_state: Some(hard_state),
            log_start: None,
            truncate_from: None,
            entries: Entries::new(),
        };
        write(&mut storage, &[(GROUP, only)]);
        storage = factory.restart(storage);
        assert_eq!(recover(&mut storage, GROUP), RecoveredLog { hard_state, ..RecoveredLog::default() });
    }
}

fn truncation_inside_a_batch<F: Factory>(factory: &mut F) {
    for from in 1..=6 {
        let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
        let all: Model = model(&[(1, b"a"), (1, b"bb"), (1, b"c"), (1, b"d"), (2, b"e"), (2, b"f")]);
        write(&mut storage, &[writer.append(false, 1, 1, &[b"a"])]);
        write(&mut storage, &[writer.append(false, 2, 1, &[b"bb", b"c", b"d"])]);
        write(&mut storage, &[writer.append(false, 5, 2, &[b"e", b"f"])]);
        write(&mut storage, &[writer.append(true, from, 2, &[])]);
        let mut left: Model = all[..from as usize - 1].to_vec();
        let mut storage = check_restarted(factory, storage, GROUP, &left);
        write(&mut storage, &[writer.append(false, from, 2, &[b"new"])]);
        left.push((2, b"new".to_vec()));
        check_restarted(factory, storage, GROUP, &left);
    }
}

fn truncation_append_and_hard_state_in_one_write<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    write(&mut storage, &[writer.append(false, 1, 1, &[b"a", b"b", b"c", b"d"])]);
    let (group, mut all) = writer.append(true, 3, 4, &[b"C", b"D", b"E"]);
    let hard_state = HardState { current_term: Term(5), voted_for: Some(NodeId(2)) };
    all.hard_state = Some(hard_state);
    write(&mut storage, &[(group, all)]);
    let expected = model(&[(1, b"a"), (1, b"b"), (4, b"C"), (4, b"D"), (4, b"E")]);
    let mut storage = check_restarted(factory, storage, GROUP, &expected);
    assert_eq!(recover(&mut storage, GROUP).hard_state, hard_state);
}

fn overwritten_indices<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    let mut expected = Model::new();
    for term in 1..=12u64 {
        // Each term overwrites a good part of what the one before wrote, with records that begin elsewhere.
        let first = expected.len() as u64 / 2 + 1;
        let payloads: Vec<Vec<u8>> = (0..term + 3).map(|n| vec![term as u8; n as usize * 5]).collect();
        let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        write(&mut storage, &[writer.append(true, first, term, &slices)]);
        expected.truncate(first as usize - 1);
        expected.extend(payloads.into_iter().map(|payload| (term, payload)));
        storage = check_restarted(factory, storage, GROUP, &expected);
    }
}

fn writes_of_one_batch_build_on_one_another<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    write(&mut storage, &[writer.append(false, 1, 1, &[b"1", b"2", b"3"])]);
    let batch = [
        writer.append(false, 4, 1, &[b"4", b"5"]),
        writer.append(false, 6, 2, &[b"6"]),
        writer.append(true, 5, 3, &[b"five"]),
        writer.append(false, 6, 3, &[b"six"]),
        writer.append(true, 3, 4, &[b"three", b"four"]),
        writer.append(false, 5, 4, &[b"V"]),
        writer.append(true, 5, 4, &[]),
    ];
    write(&mut storage, &batch);
    let expected = model(&[(1, b"1"), (1, b"2"), (4, b"three"), (4, b"four")]);
    check_restarted(factory, storage, GROUP, &expected);
}

fn groups_do_not_mix<F: Factory>(factory: &mut F) {
    let mut storage = factory.create();
    let ids = [0, 1, 2, 0x1_0000, u64::MAX - 1, u64::MAX];
    let mut groups: Vec<(Writer, Model)> = ids.map(|n| (Writer::new(GroupId(n)), Model::new())).into();
    for round in 1..=8u64 {
        let mut batch = Vec::new();
        for (n, (writer, expected)) in groups.iter_mut().enumerate() {
            if !(round + n as u64).is_multiple_of(3) {
                let payload = format!("{round} of {n}");
                let truncate = round % 4 == 0 && !expected.is_empty();
                expected.truncate(expected.len() - usize::from(truncate));
                let first = expected.len() as u64 + 1;
                batch.push(writer.append(truncate, first, round, &[payload.as_bytes(), b"+"]));
                expected.extend([(round, payload.clone().into_bytes()), (round, b"+".to_vec())]);
            }
        }
        write(&mut storage, &batch);
    }
    for (writer, expected) in &groups {
        storage = check_restarted(factory, storage, writer.group, expected);
    }
    assert_eq!(recover(&mut storage, GroupId(3)), RecoveredLog::default());
}

fn reads_are_limited<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    write(&mut storage, &[writer.append(false, 1, 1, &[&[1; 83], &[2; 83]])]);
    write(&mut storage, &[writer.append(false, 3, 1, &[&[3; 83]]), writer.append(false, 4, 2, &[&[4; 83], &[5; 183]])]);
    let one = 83 + ENTRY_HEADER;
    let sizes = [
        (1, 9, 0, 1),
        (1, 9, 1, 1),
        (1, 9, one, 1),
        (1, 9, 2 * one - 1, 1),
        (1, 9, 2 * one, 2),
        (1, 9, 3 * one - 1, 2),
        (1, 9, 3 * one, 3),
        (1, 9, 6 * one - 1, 4),
        (1, 9, 6 * one, 5),
        (1, 3, usize::MAX, 3),
        (2, 2, usize::MAX, 1),
        (2, 4, usize::MAX, 3),
        (5, 5, 1, 1),
        (4, 3, usize::MAX, 0),
        (6, 9, usize::MAX, 0),
    ];
    for (first, last, max_bytes, expected) in sizes {
        let found = read(&storage, GROUP, first, last, max_bytes);
        assert_eq!(found.len(), expected, "{first}..={last} within {max_bytes} bytes");
        assert!(found.iter().enumerate().all(|(i, (_, payload))| usize::from(payload[0]) == first as usize + i));
    }
    assert_eq!(read(&storage, GroupId(2), 1, 9, usize::MAX), [], "another group");
}

fn a_huge_entry<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    let huge: Vec<u8> = (0..5_000_000u32).map(|n| (n ^ n >> 8) as u8).collect();
    write(&mut storage, &[writer.append(false, 1, 1, &[b"before", &huge, b"after"])]);
    let mut expected = model(&[(1, b"before"), (1, &huge), (1, b"after")]);
    let mut storage = check_restarted(factory, storage, GROUP, &expected);
    write(&mut storage, &[writer.append(true, 3, 2, &[b"instead"])]);
    expected[2] = (2, b"instead".to_vec());
    let mut storage = check_restarted(factory, storage, GROUP, &expected);
    write(&mut storage, &[writer.append(true, 2, 2, &[])]);
    expected.truncate(1);
    check_restarted(factory, storage, GROUP, &expected);
}

fn many_small_writes<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    let payloads: Vec<Vec<u8>> = (0..3000).map(|n| format!("payload {n}").into_bytes()).collect();
    let mut expected = Model::new();
    for chunk in payloads.chunks(300) {
        let batch: Vec<_> = chunk
            .iter()
            .map(|payload| {
                let term = expected.len() as u64 / 1000 + 1;
                expected.push((term, payload.clone()));
                writer.append(false, expected.len() as u64, term, &[payload])
            })
            .collect();
        write(&mut storage, &batch);
    }
    let mut storage = check_restarted(factory, storage, GROUP, &expected);
    write(&mut storage, &[writer.append(true, 1500, 4, &[b"x"])]);
    expected.truncate(1499);
    expected.push((4, b"x".to_vec()));
    check_restarted(factory, storage, GROUP, &expected);
}

/// Makes a correct write incorrect.
type Spoil = fn(&mut Write);

fn bad_writes_poison<F: Factory>(factory: &mut F) {
    let base = |writer: &mut Writer| writer.append(false, 1, 3, &[b"a", b"b"]);
    let voted = |term, vote| HardState { current_term: Term(term), voted_for: vote };
    let bad: [(&str, Spoil); 6] = [
        ("a gap", |w| w.entries = one(4, 3)),
        ("an index that is taken", |w| w.entries = one(2, 3)),
        ("a falling term", |w| w.entries = one(3, 2)),
        ("a term above the hard state's", |w| w.entries = one(3, 4)),
        ("a lower hard state", |w| w.hard_state = Some(HardState { current_term: Term(2), voted_for: None })),
        ("truncation below the log", |w| w.truncate_from = Some(LogIndex::ZERO)),
    ];
    for (what, spoil) in bad {
        let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
        write(&mut storage, &[base(&mut writer)]);
        let mut spoilt = writer.append(false, 3, 3, &[]);
        spoil(&mut spoilt.1);
        let good = writer.append(false, 3, 3, &[b"c"]);
        let refused = storage.write(&[(GroupId(5), good.1.clone()), spoilt]);
        assert!(matches!(refused, Err(StorageError::BadWrite { .. })), "{what}: {refused:?}");
        let refused = storage.write(std::slice::from_ref(&good));
        assert!(matches!(refused, Err(StorageError::Poisoned { .. })), "after {what}: {refused:?}");
        let refused = storage.recover(GROUP);
        assert!(matches!(refused, Err(StorageError::Poisoned { .. })), "after {what}: {refused:?}");
        let mut storage = factory.restart(storage);
        check(&mut storage, GROUP, &model(&[(3, b"a"), (3, b"b")]));
        check(&mut storage, GroupId(5), &Model::new());
        write(&mut storage, &[good]);
    }
    let mut storage = factory.create();
    let vote = |seq, hard_state| {
        let (hard_state, entries) = (Some(hard_state), Entries::new());
        [(GROUP, Write { seq: WriteSeq(seq), hard_state, log_start: None, truncate_from: None, entries })]
    };
    write(&mut storage, &vote(1, voted(3, Some(NodeId(1)))));
    let refused = storage.write(&vote(2, voted(3, Some(NodeId(2)))));
    assert!(matches!(refused, Err(StorageError::BadWrite { .. })), "a second vote: {refused:?}");
}

fn one(index: u64, term: u64) -> Entries {
    Segment::pack(LogIndex(index), Term(term), EntryKind::Command, &[b"x"]).map(Entries::from).unwrap_or_default()
}

fn readers_run_beside_the_writer<F: Factory>(factory: &mut F) {
    let (mut storage, mut writer) = (factory.create(), Writer::new(GROUP));
    write(&mut storage, &[writer.append(false, 1, 1, &[b"1"])]);
    let reader = storage.reader();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (mut seen, mut last_round) = (0, false);
                while !last_round {
                    last_round = done.load(Ordering::Acquire);
                    let found = reader.entries(GROUP, LogIndex(1), LogIndex::MAX, usize::MAX).expect("it can be read");
                    assert!(found.len() >= seen, "a log that only grows never shrinks for a reader");
                    assert!(found.iter().all(|entry| entry.payload == entry.index.0.to_string().as_bytes()));
                    seen = found.len();
                }
                assert_eq!(seen, 200, "what was written can be read");
            });
        }
        let result = (2..=200u64)
            .try_for_each(|index| storage.write(&[writer.append(false, index, 1, &[index.to_string().as_bytes()])]));
        done.store(true, Ordering::Release);
        result.expect("a correct batch is accepted");
    });
}
