//! Measures durable appends, and how long it takes to open the log again.
//!
//! ```text
//! cargo run --release -p raft-storage --example append -- DIRECTORY [WRITES [ENTRIES_EACH [BYTES_EACH]]]
//! ```
//!
//! DIRECTORY should be new and on the disk that is to be measured. Under `strace -f -c -e trace=fdatasync,fsync` it shows that a write
//! costs one sync.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::{Duration, Instant};

use raft_core::{Entries, EntryKind, GroupId, HardState, LogIndex, NodeId, Segment, Term, Write, WriteSeq};
use raft_storage::{Identity, Options, RocksStorage, Storage};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("usage: append DIRECTORY [WRITES [ENTRIES_EACH [BYTES_EACH]]]")?;
    let mut number = |default: usize| args.next().map_or(Ok(default), |arg| arg.parse::<usize>());
    let (writes, entries_each, bytes_each) = (number(1000)?.max(1), number(1)?.max(1), number(256)?);
    let payloads = vec![vec![7u8; bytes_each]; entries_each];

    let me = Identity::new("measurement", NodeId(1));
    let mut storage = RocksStorage::open(&dir, &me, &Options::default())?;
    let recovered = storage.recover(GroupId::FIRST)?;
    let term = Term(recovered.hard_state.current_term.0 + 1);
    let mut last = recovered.last_index;
    let mut times: Vec<Duration> = Vec::with_capacity(writes);
    for n in 0..writes {
        let entries = Segment::pack(last.next(), term, EntryKind::Command, &payloads).map(Entries::from);
        let hard_state = (n == 0).then_some(HardState { current_term: term, voted_for: Some(NodeId(1)) });
        let write = Write {
            seq: WriteSeq(n as u64),
            hard_state,
            log_start: None,
            truncate_from: None,
            entries: entries.unwrap_or_default(),
        };
        last = last + entries_each as u64;
        let begin = Instant::now();
        storage.write(&[(GroupId::FIRST, write)])?;
        times.push(begin.elapsed());
    }
    times.sort_unstable();
    let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
    println!("{writes} writes of {entries_each} x {bytes_each} bytes, each synced:");
    println!("  p50 {:?}, p99 {:?}, p99.9 {:?}, total {:?}", at(500), at(990), at(999), times.iter().sum::<Duration>());
    drop(storage);

    let begin = Instant::now();
    let recovered = RocksStorage::open(&dir, &me, &Options::default())?.recover(GroupId::FIRST)?;
    assert_eq!(recovered.last_index, LogIndex(last.0));
    println!("  opened and verified {} bytes in {:?}", recovered.bytes, begin.elapsed());
    Ok(())
}
