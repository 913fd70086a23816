//! A log that is compacted as it grows stays small on the disk, and is not written over and over.

use std::path::Path;

use raft_core::{LogId, LogIndex, Membership, NodeId, SnapshotMeta, Term};
use raft_storage::{Options, RocksStorage, Storage, StorageReader};

use super::{GROUP, append, me};

fn directory_size(dir: &Path) -> u64 {
    std::fs::read_dir(dir).unwrap().filter_map(|file| file.unwrap().metadata().ok()).map(|data| data.len()).sum()
}

/// Bytes that this process has handed to the disk, as Linux counts them; zero where nobody counts.
fn bytes_to_disk() -> u64 {
    let counters = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    counters.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok()).unwrap_or(0)
}

/// Writes `total` bytes of entries, keeps the last `keep` of them, and compacts after every `step`. Returns the largest size of the directory.
fn grow(dir: &Path, options: &Options, total: u64, keep: u64, step: u64) -> u64 {
    const ENTRY: usize = 16 << 10;
    let mut storage = RocksStorage::open(dir, &me(), options).unwrap();
    let payload: Vec<u8> = (0..ENTRY).map(|n| ((n * 31) ^ (n >> 7)) as u8).collect();
    let payloads = [payload.as_slice(); 16];
    let (mut last, mut purged, mut largest) = (0u64, 0u64, 0);
    while last * (ENTRY as u64) < total {
        let (group, mut write) = append(last + 1, 1, &payloads);
        last += payloads.len() as u64;
        if (last - purged) * ENTRY as u64 > keep + step {
            // Never at the boundary of a record.
            purged = last - keep / ENTRY as u64 + 3;
            let last = LogId::new(Term(1), LogIndex(purged));
            write.log_start = Some(SnapshotMeta { last, membership: Membership::of_voters([NodeId(1)]) });
            largest = largest.max(directory_size(dir));
        }
        storage.write(&[(group, write)]).unwrap();
    }
    let recovered = storage.recover(GROUP).unwrap();
    assert_eq!((recovered.log_start.index.0, recovered.last_index.0), (purged, last));
    let whole = storage.reader().entries(GROUP, LogIndex(purged + 1), LogIndex::MAX, usize::MAX).unwrap();
    assert_eq!((whole.len() as u64, whole.byte_len() as u64), (last - purged, recovered.bytes));
    drop(storage);
    let mut again = RocksStorage::open(dir, &me(), options).unwrap();
    assert_eq!(again.recover(GROUP).unwrap(), recovered);
    largest
}

#[test]
fn a_compacted_log_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::default();
    // As the defaults, but an eighth of their size, so that the test is soon over.
    options.write_buffer_bytes = 2 << 20;
    options.max_wal_bytes = 32 << 20;
    options.file_bytes = 8 << 20;
    let largest = grow(dir.path(), &options, 96 << 20, 4 << 20, 8 << 20);
    eprintln!("96 MiB written, 4 to 12 kept: at most {} MiB on disk", largest >> 20);
    assert!(largest < 64 << 20, "{largest}");
}

/// With the defaults: `cargo test -p raft-storage --release -- --ignored --nocapture a_gibibyte`.
#[test]
#[ignore = "writes a gibibyte"]
fn a_gibibyte_of_log_needs_little_space() {
    let dir = tempfile::tempdir().unwrap();
    let (total, before) = (1 << 30, bytes_to_disk());
    let largest = grow(dir.path(), &Options::default(), total, 32 << 20, 64 << 20);
    let amplification = (bytes_to_disk() - before) as f64 / total as f64;
    eprintln!(
        "1 GiB written, 32 to 96 MiB kept: at most {} MiB on disk, {amplification:.2} bytes written for each",
        largest >> 20
    );
    assert!(largest < 512 << 20, "{largest}");
}
