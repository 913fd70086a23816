//! What a snapshot costs the key-value store: the cut, for which writes wait, and the writing, for which they do not.
//!
//! The files lie below the target folder, on a real file system.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use raft_core::{Entries, EntryKind, LogIndex, NodeId, Segment, Term};
use raft_node::kv::{Command, KvIdentity, KvOptions, KvStore};
use raft_node::{Cut, Replies, StateMachine};

/// Keys in the store.
const KEYS: u64 = 1_000_000;
const VALUE: usize = 100;
/// Keys that are written between two cuts: so much is in memory then.
const CHANGED: u64 = 10_000;
/// Commands of a batch.
const BATCH: u64 = 1000;

/// Writes the keys from `first` on.
fn put(store: &mut KvStore, first: u64, count: u64) {
    for batch in (first..first + count).step_by(BATCH as usize) {
        let value = [batch as u8; VALUE];
        let command = |n: u64| Command::Put { key: format!("key-{:012}", n % KEYS).as_bytes(), value: &value }.encode();
        let commands: Vec<_> = (batch..(batch + BATCH).min(first + count)).map(command).collect();
        let next = store.applied().next();
        let segment = Segment::pack(next, Term(1), EntryKind::Command, &commands).expect("there are commands");
        store.apply(&Entries::from(segment), &mut Replies::new(false)).expect("applied");
    }
}

/// A cut, as soon as it is cheap; and how long it took.
fn cut(store: &mut KvStore) -> (Box<dyn Cut>, Duration) {
    while !store.can_cut().expect("the store works") {
        std::thread::sleep(Duration::from_millis(1));
    }
    let begin = Instant::now();
    let cut = store.cut().expect("the store works").expect("the store can be cut");
    (cut, begin.elapsed())
}

/// Counts what it gets.
struct Counter(u64);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn snapshot(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let identity = KvIdentity { cluster: "bench".into(), node: NodeId(1) };
    let mut store = KvStore::open(dir.path().join("kv"), &identity, &KvOptions::default()).expect("the store opens");
    put(&mut store, 0, KEYS);
    assert_eq!(store.applied(), LogIndex(KEYS));
    let mut written = Counter(0);
    cut(&mut store).0.write_to(&mut written).expect("written");

    let mut group = c.benchmark_group("machine/snapshot");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    let mut next = 0;
    group.bench_function(BenchmarkId::new("cut, keys", KEYS), |b| {
        b.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    put(&mut store, next, CHANGED);
                    next += CHANGED;
                    cut(&mut store).1
                })
                .sum()
        });
    });
    group.throughput(Throughput::Bytes(written.0));
    group.bench_function(BenchmarkId::new("write, keys", KEYS), |b| {
        b.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let (cut, _) = cut(&mut store);
                    let begin = Instant::now();
                    cut.write_to(&mut Counter(0)).expect("written");
                    begin.elapsed()
                })
                .sum()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    targets = snapshot
}
criterion_main!(benches);
