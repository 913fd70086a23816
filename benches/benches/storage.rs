//! What a durable append costs, how fast a log is recovered, and how fast it is read.
//!
//! The files lie below the target folder, on a real file system: in a memory file system a sync would cost nothing.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use raft_core::{Entries, EntryKind, GroupId, HardState, LogIndex, NodeId, Segment, Term, Write, WriteSeq};
use raft_storage::{Engine, Identity, Storage, StorageReader, Store, StoreOptions};
use tempfile::TempDir;

const PAYLOAD: usize = 256;
const TERM: Term = Term(1);
/// Entries in the log that is recovered and read.
const LOG: u64 = 100_000;
/// Entries of each record in it: what a busy cluster writes at a time.
const RECORD: u64 = 64;

fn temporary() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory")
}

const ENGINES: [Engine; 2] = [Engine::RocksDb, Engine::Journal];

fn open(dir: &Path, engine: Engine) -> Store {
    let mut options = StoreOptions::default();
    options.engine = Some(engine);
    Store::open(dir, &Identity::new("bench", NodeId(1)), &options).expect("the log opens")
}

/// The write that appends `count` entries at `first`.
fn write(first: u64, count: u64) -> Write {
    let payloads: Vec<Vec<u8>> = (0..count).map(|i| vec![(first + i) as u8; PAYLOAD]).collect();
    let segment = Segment::pack(LogIndex(first), TERM, EntryKind::Command, &payloads).expect("there are entries");
    Write {
        seq: WriteSeq(first),
        hard_state: (first == 1).then_some(HardState { current_term: TERM, voted_for: Some(NodeId(1)) }),
        log_start: None,
        truncate_from: None,
        entries: Entries::from(segment),
    }
}

fn fill(storage: &mut Store) {
    for first in (1..=LOG).step_by(RECORD as usize) {
        storage.write(&[(GroupId::FIRST, write(first, RECORD.min(LOG + 1 - first)))]).expect("written");
    }
}

fn append(c: &mut Criterion) {
    let mut group = c.benchmark_group("storage/append");
    group.sampling_mode(SamplingMode::Flat);
    for batch in [1, 16, 256] {
        group.throughput(Throughput::Elements(batch));
        for engine in ENGINES {
            group.bench_function(BenchmarkId::new(engine.to_string(), batch), |b| {
                let dir = temporary();
                let mut storage = open(&dir.path().join("log"), engine);
                let mut next = 1;
                b.iter_custom(|iterations| {
                    let mut took = Duration::ZERO;
                    for _ in 0..iterations {
                        let batch_write = [(GroupId::FIRST, write(next, batch))];
                        let begin = Instant::now();
                        storage.write(&batch_write).expect("written");
                        took += begin.elapsed();
                        next += batch;
                    }
                    took
                });
            });
        }
        // The same bytes appended to a plain file: what the file system takes, and nobody can do better.
        group.bench_function(BenchmarkId::new("plain file", batch), |b| {
            let dir = temporary();
            let options = OpenOptions::new().append(true).create(true).clone();
            let mut file = options.open(dir.path().join("file")).expect("a file");
            let bytes = write(1, batch).entries.segments()[0].bytes();
            b.iter(|| {
                file.write_all(&bytes).expect("written");
                file.sync_data().expect("synced");
            });
        });
    }
    group.finish();
}

fn recovery(c: &mut Criterion) {
    let mut group = c.benchmark_group("storage/recovery");
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.throughput(Throughput::Elements(LOG));
    for engine in ENGINES {
        let dir = temporary();
        let original = dir.path().join("original");
        fill(&mut open(&original, engine));
        group.bench_function(BenchmarkId::new(engine.to_string(), LOG), |b| {
            b.iter_custom(|iterations| {
                let mut took = Duration::ZERO;
                for _ in 0..iterations {
                    // Each time as after a crash: opening writes the contents of a write-ahead log elsewhere.
                    let copy = dir.path().join("copy");
                    copy_dir(&original, &copy);
                    let begin = Instant::now();
                    let mut storage = open(&copy, engine);
                    let recovered = storage.recover(GroupId::FIRST).expect("recovered");
                    took += begin.elapsed();
                    assert_eq!(recovered.last_index, LogIndex(LOG));
                    drop(storage);
                    fs::remove_dir_all(&copy).expect("removed");
                }
                took
            });
        });
    }
    group.finish();
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("listed");
        if entry.path().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
        }
    }
}

fn read(c: &mut Criterion) {
    const CHUNK: u64 = 1024;
    let mut group = c.benchmark_group("storage/read");
    group.throughput(Throughput::Bytes(CHUNK * PAYLOAD as u64));
    for engine in ENGINES {
        let dir = temporary();
        let path = dir.path().join("log");
        fill(&mut open(&path, engine));
        // Opened anew, the entries lie where those lie that a lagging follower asks for.
        let storage = open(&path, engine);
        let reader = storage.reader();
        group.bench_function(BenchmarkId::new(engine.to_string(), CHUNK), |b| {
            let mut first = 1;
            b.iter(|| {
                let entries = reader
                    .entries(GroupId::FIRST, LogIndex(first), LogIndex(first + CHUNK - 1), usize::MAX)
                    .expect("entries are read");
                assert_eq!(entries.len() as u64, CHUNK);
                // Jumps about, and meets all of the log.
                first = (first + 7919 * CHUNK) % (LOG - CHUNK) + 1;
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = append, recovery, read
}
criterion_main!(benches);
