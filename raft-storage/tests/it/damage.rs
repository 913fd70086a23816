//! Whatever happens to the files, a log is either whole or refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use raft_core::{
    EntryKind, GroupId, HardState, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term, Write,
};
use raft_storage::{RecordDamage, RecoveredLog, Storage, StorageError, StorageReader};
use rocksdb::{DB, IteratorMode, Options, WriteBatch};

use super::{GROUP, append, copy_dir, open, payloads};

/// Three records: entries 1 and 2, 3 and 4, 5.
fn three_records(dir: &Path) {
    let mut storage = open(dir).unwrap();
    storage.write(&[append(1, 1, &[b"one", b"two"])]).unwrap();
    storage.write(&[append(3, 2, &[b"three", b"four"])]).unwrap();
    storage.write(&[append(5, 3, &[b"five"])]).unwrap();
}

/// Reaches around the storage.
fn raw(dir: &Path) -> DB {
    DB::open_cf(&Options::default(), dir, ["log", "meta"]).unwrap()
}

fn key(group: u64, first: u64) -> Vec<u8> {
    [group.to_be_bytes(), first.to_be_bytes()].concat()
}

fn values(db: &DB, family: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
    let family = db.cf_handle(family).unwrap();
    db.iterator_cf(family, IteratorMode::Start).map(|item| item.map(|(k, v)| (k.into(), v.into())).unwrap()).collect()
}

fn put(db: &DB, family: &str, key: &[u8], value: &[u8]) {
    db.put_cf(db.cf_handle(family).unwrap(), key, value).unwrap();
}

fn delete(db: &DB, family: &str, key: &[u8]) {
    db.delete_cf(db.cf_handle(family).unwrap(), key).unwrap();
}

#[test]
fn a_flipped_byte_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    three_records(dir.path());
    let db = raw(dir.path());
    let all: Vec<_> = ["log", "meta"].iter().flat_map(|f| values(&db, f).into_iter().map(move |kv| (*f, kv))).collect();
    drop(db);
    assert_eq!(all.len(), 3 + 2);
    for (family, (key, good)) in all {
        // Opening takes a while: one byte of each field of a header, and some of the entries.
        for at in [0, 1, 4, 5, 9, 12, 13, 17, 21, 29, good.len() - 1].into_iter().filter(|&at| at < good.len()) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            put(&raw(dir.path()), family, &key, &bad);
            let error = open(dir.path()).unwrap_err();
            assert!(
                matches!(error, StorageError::Record { .. } | StorageError::Damaged { .. }),
                "byte {at} of {family} {key:?}: {error}"
            );
        }
        put(&raw(dir.path()), family, &key, &good);
    }
    assert_eq!(open(dir.path()).unwrap().recover(GROUP).unwrap().last_index, LogIndex(5));
}

#[test]
fn a_missing_record_is_refused() {
    for (first, next) in [(1, 3), (3, 5)] {
        let dir = tempfile::tempdir().unwrap();
        three_records(dir.path());
        delete(&raw(dir.path()), "log", &key(1, first));
        let error = open(dir.path()).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("group 1: the log has a gap: expected a record at index {first}, found the next at {next}")
        );
    }
}

#[test]
fn a_foreign_record_is_refused() {
    // The same indices, written by another history: every checksum of its own is right.
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    three_records(dir.path());
    let mut storage = open(other.path()).unwrap();
    storage.write(&[append(1, 1, &[b"one", b"TWO"])]).unwrap();
    storage.write(&[append(3, 2, &[b"three", b"four"])]).unwrap();
    drop(storage);
    let foreign = values(&raw(other.path()), "log");
    for (key, value) in &foreign {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        put(&raw(copy.path()), "log", key, value);
        let error = open(copy.path()).unwrap_err();
        assert!(matches!(error, StorageError::Record { what: RecordDamage::Chain { .. }, .. }), "{error}");
    }
    // Moved to another group or index, it fails its own checksum.
    for key in [key(2, 1), key(1, 6)] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        put(&raw(copy.path()), "log", &key, &foreign[0].1);
        let error = open(copy.path()).unwrap_err();
        assert!(matches!(error, StorageError::Record { what: RecordDamage::Checksum { .. }, .. }), "{error}");
    }
}

#[test]
fn a_lost_hard_state_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    three_records(dir.path());
    let hard_state = [&1u64.to_be_bytes()[..], &[1]].concat();
    delete(&raw(dir.path()), "meta", &hard_state);
    let error = open(dir.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "group 1: the hard state is damaged: it has term 0, but the log has entries of term 1"
    );
}

#[test]
fn unknown_keys_and_newer_formats_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    three_records(dir.path());
    let refuse = |family: &str, key: &[u8], value: &[u8]| {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        put(&raw(copy.path()), family, key, value);
        open(copy.path()).unwrap_err()
    };
    assert!(matches!(refuse("log", b"odd", b""), StorageError::Damaged { .. }));
    assert!(matches!(refuse("meta", b"odd", b""), StorageError::Damaged { .. }));

    let identity = [&0u64.to_be_bytes()[..], &[0xF0]].concat();
    let mut value = values(&raw(dir.path()), "meta").into_iter().find(|(key, _)| *key == identity).unwrap().1;
    value.truncate(value.len() - 4);
    value[3] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&identity), &value);
    value.extend_from_slice(&crc.to_be_bytes());
    let error = refuse("meta", &identity, &value);
    assert!(matches!(error, StorageError::NewerFormat { found: 2, supported: 1, .. }), "{error}");
}

#[test]
fn a_log_may_begin_behind_a_purged_prefix() {
    // As the first version of the format has it: in whole records, without a membership.
    let dir = tempfile::tempdir().unwrap();
    three_records(dir.path());
    let db = raw(dir.path());
    let link = values(&db, "log")[0].1[9..13].to_vec();
    let start_key = [&1u64.to_be_bytes()[..], &[2]].concat();
    let mut start = [&[1u8][..], &2u64.to_be_bytes(), &1u64.to_be_bytes(), &link].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&start_key), &start);
    start.extend_from_slice(&crc.to_be_bytes());
    let mut batch = WriteBatch::default();
    batch.put_cf(db.cf_handle("meta").unwrap(), &start_key, &start);
    batch.delete_cf(db.cf_handle("log").unwrap(), key(1, 1));
    db.write(batch).unwrap();
    drop(db);
    let mut storage = open(dir.path()).unwrap();
    let recovered = storage.recover(GROUP).unwrap();
    assert_eq!((recovered.log_start.index, recovered.log_start.term), (LogIndex(2), Term(1)));
    assert_eq!((recovered.last_index, recovered.runs.len()), (LogIndex(5), 2));
    let read = |first| storage.reader().entries(GROUP, LogIndex(first), LogIndex::MAX, usize::MAX).unwrap().len();
    assert_eq!((read(1), read(2), read(3)), (0, 0, 3));
}

/// The log begins after entry 3, which lies within a record.
fn begun(dir: &Path) {
    three_records(dir);
    let mut storage = open(dir).unwrap();
    let membership = Membership::of_voters([1, 2, 3].map(NodeId));
    let last = LogId::new(Term(2), LogIndex(3));
    let (group, write) = append(6, 3, &[]);
    storage.write(&[(group, Write { log_start: Some(SnapshotMeta { last, membership }), ..write })]).unwrap();
}

#[test]
fn a_damaged_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    begun(dir.path());
    let key = [&1u64.to_be_bytes()[..], &[2]].concat();
    let good = values(&raw(dir.path()), "meta").into_iter().find(|(found, _)| *found == key).unwrap().1;
    for at in [0, 1, 8, 9, 16, 17, 20, 21, 28, 29, 40, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        put(&raw(dir.path()), "meta", &key, &bad);
        let error = open(dir.path()).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. }), "byte {at}: {error}");
    }
    // Without it the log has a gap at its beginning.
    delete(&raw(dir.path()), "meta", &key);
    assert!(matches!(open(dir.path()).unwrap_err(), StorageError::Gap { .. }));
    put(&raw(dir.path()), "meta", &key, &good);
    let recovered = open(dir.path()).unwrap().recover(GROUP).unwrap();
    assert_eq!((recovered.log_start.index, recovered.last_index), (LogIndex(3), LogIndex(5)));
}

#[test]
fn the_record_in_which_the_log_begins_must_be_the_one_that_was_there() {
    let dir = tempfile::tempdir().unwrap();
    begun(dir.path());
    let db = raw(dir.path());
    assert_eq!(values(&db, "log").iter().map(|(key, _)| key.clone()).collect::<Vec<_>>(), [key(1, 3), key(1, 5)]);
    let first = values(&db, "log")[0].1.clone();
    drop(db);
    delete(&raw(dir.path()), "log", &key(1, 3));
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::Gap { expected: LogIndex(3), found: LogIndex(5), .. }), "{error}");
    // The same entries after another history.
    let other = tempfile::tempdir().unwrap();
    let mut storage = open(other.path()).unwrap();
    storage.write(&[append(1, 1, &[b"one", b"TWO"])]).unwrap();
    storage.write(&[append(3, 2, &[b"three", b"four"])]).unwrap();
    drop(storage);
    let foreign = values(&raw(other.path()), "log")[1].1.clone();
    put(&raw(dir.path()), "log", &key(1, 3), &foreign);
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::Record { what: RecordDamage::Chain { .. }, .. }), "{error}");
    // What lies below is of no interest, whatever it is: it waits to be deleted.
    put(&raw(dir.path()), "log", &key(1, 3), &first);
    put(&raw(dir.path()), "log", &key(1, 1), b"rest");
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.recover(GROUP).unwrap().log_start.index, LogIndex(3));
    let read = |first| storage.reader().entries(GROUP, LogIndex(first), LogIndex::MAX, usize::MAX).unwrap().len();
    assert_eq!([1, 2, 3, 4, 5].map(read), [0, 0, 0, 2, 1]);
}

#[test]
fn a_hard_state_that_is_older_than_the_start_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    begun(dir.path());
    let mut storage = open(dir.path()).unwrap();
    let last = LogId::new(Term(3), LogIndex(70));
    let (group, write) = append(6, 3, &[]);
    let log_start = Some(SnapshotMeta { last, membership: Membership::default() });
    storage.write(&[(group, Write { log_start, ..write })]).unwrap();
    drop(storage);
    delete(&raw(dir.path()), "meta", &[&1u64.to_be_bytes()[..], &[1]].concat());
    let error = open(dir.path()).unwrap_err();
    assert_eq!(error.to_string(), "group 1: the hard state is damaged: it has term 0, but the log begins in term 3");
}

#[test]
fn an_entry_that_should_hold_a_membership_and_does_not_is_refused() {
    // Only a defect can write it; the checksums are right. It must be found now, and not when the core asks who votes.
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    three_records(dir.path());
    let db = raw(dir.path());
    let prev = values(&db, "log")[2].1[9..13].to_vec();
    let entry = Segment::pack(LogIndex(6), Term(3), EntryKind::Membership, &[b"nobody"]).unwrap().bytes();
    let mut record = [&[1u8, 0, 0, 0, 1][..], &prev].concat();
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&key(1, 6)), &record), &entry);
    record.extend_from_slice(&crc.to_be_bytes());
    record.extend_from_slice(&entry);
    put(&db, "log", &key(1, 6), &record);
    drop(db);
    let error = open(dir.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "group 1: the record at index 6 is damaged: entry 6 holds no membership: format 110 of a membership is not known; a newer version may have written it"
    );
    // And the store does not write it.
    let mut storage = open(other.path()).unwrap();
    let (group, write) = append(1, 1, &[]);
    let entries = Segment::pack(LogIndex(1), Term(1), EntryKind::Membership, &[b"nobody"]).unwrap().into();
    assert!(matches!(storage.write(&[(group, Write { entries, ..write })]), Err(StorageError::BadWrite { .. })));
}

fn wal(dir: &Path) -> PathBuf {
    let logs: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    assert_eq!(logs.len(), 1, "{logs:?}");
    logs[0].clone()
}

/// Twelve synced writes in one write-ahead log; some overwrite, so that a half-applied batch would show. Returns the payloads after
/// each write (from the log's start on), and the length of the write-ahead log at that moment.
fn history(dir: &Path) -> Vec<(Vec<Vec<u8>>, u64)> {
    let mut storage = open(dir).unwrap();
    let wal = wal(dir);
    let mut states = vec![(Vec::new(), fs::metadata(&wal).unwrap().len())];
    let mut model: Vec<Vec<u8>> = Vec::new();
    for term in 1..=12u64 {
        let first = (model.len() as u64 + 1).saturating_sub(term % 3).max(1);
        let payloads: Vec<Vec<u8>> = (0..3).map(|n| format!("{term}.{n}").into_bytes().repeat(9)).collect();
        let slices: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
        let (group, mut write) = append(first, term, &slices);
        write.truncate_from = Some(LogIndex(first));
        storage.write(&[(group, write)]).unwrap();
        model.truncate(first as usize - 1);
        model.extend(payloads);
        states.push((model.clone(), fs::metadata(&wal).unwrap().len()));
    }
    states
}

#[test]
fn a_write_ahead_log_cut_anywhere_leaves_whole_writes() {
    let dir = tempfile::tempdir().unwrap();
    let states = history(dir.path());
    let bytes = fs::read(wal(dir.path())).unwrap();
    let (begin, end) = (states[0].1, states[12].1);
    assert!(begin < end && end <= bytes.len() as u64);
    for cut in (begin..=end).step_by(23).chain(states.iter().map(|(_, len)| *len)) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        fs::write(wal(copy.path()), &bytes[..cut as usize]).unwrap();
        // Everything that was synced before the cut, and nothing of what was not.
        let expected = states.iter().rev().find(|(_, len)| *len <= cut).unwrap();
        let mut storage = open(copy.path()).unwrap();
        assert_eq!(payloads(&storage), expected.0, "cut at {cut}");
        let term = storage.recover(GROUP).unwrap().hard_state.current_term.0;
        assert_eq!(states[term as usize].0, expected.0, "cut at {cut}: the hard state belongs to the entries");
    }
}

/// Writes that move the start of the log, each with entries and a term of its own; some begin the log anew. A crash leaves all of a write or
/// nothing of it.
#[test]
fn the_start_is_durable_with_the_rest_of_its_write() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    let wal = wal(dir.path());
    let mut states = vec![(RecoveredLog::default(), fs::metadata(&wal).unwrap().len())];
    for term in 1..=14u64 {
        let recovered = storage.recover(GROUP).unwrap();
        let last = match term % 3 {
            0 => LogId::new(Term(term), recovered.last_index + term),
            _ => recovered.last(),
        };
        // Every third time there is no start, and entries 2 and 3 of each batch stay.
        let (group, mut write) = append(last.index.0 + 1, term, &[&[7; 90], b"two", b"three"]);
        if term % 3 != 1 {
            write.log_start = Some(SnapshotMeta { last, membership: Membership::of_voters([NodeId(term)]) });
        }
        storage.write(&[(group, write)]).unwrap();
        states.push((storage.recover(GROUP).unwrap(), fs::metadata(&wal).unwrap().len()));
    }
    drop(storage);
    let bytes = fs::read(&wal).unwrap();
    let (begin, end) = (states[0].1, states[14].1);
    for cut in (begin..=end).step_by(19).chain(states.iter().map(|(_, len)| *len)) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        fs::write(copy.path().join(wal.file_name().unwrap()), &bytes[..cut as usize]).unwrap();
        let expected = &states.iter().rev().find(|(_, len)| *len <= cut).unwrap().0;
        assert_eq!(open(copy.path()).unwrap().recover(GROUP).unwrap(), *expected, "cut at {cut}");
    }
}

#[test]
fn a_damaged_write_ahead_log_loses_nothing_silently() {
    let dir = tempfile::tempdir().unwrap();
    let states = history(dir.path());
    let bytes = fs::read(wal(dir.path())).unwrap();
    // The last write is left alone: damage there can look like a write that a power failure tore.
    let (begin, end) = (states[0].1, states[11].1);
    for at in (begin..end).step_by(17) {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let mut bad = bytes.clone();
        bad[at as usize] ^= 0x40;
        fs::write(wal(copy.path()), &bad).unwrap();
        match open(copy.path()) {
            Ok(storage) => assert_eq!(payloads(&storage), states[12].0, "byte {at}"),
            Err(StorageError::Damaged { .. } | StorageError::Gap { .. } | StorageError::Record { .. }) => {}
            Err(error) => panic!("byte {at}: {error}"),
        }
    }
}

#[test]
fn a_killed_process_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    for index in 1..=40u64 {
        storage.write(&[append(index, 1, &[index.to_string().as_bytes()])]).unwrap();
        if index % 8 == 0 {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            assert_eq!(payloads(&open(copy.path()).unwrap()).len() as u64, index);
        }
    }
    assert_eq!(storage.recover(GroupId(2)).unwrap().last_index, LogIndex::ZERO);
}

/// A store whose data lie in sorted files and in the write-ahead log, as after a restart; and what it holds.
fn settled(dir: &Path) -> (Vec<Vec<u8>>, HardState) {
    history(dir);
    // Opening moves what is in the write-ahead log to sorted files.
    let mut storage = open(dir).unwrap();
    let (group, mut write) = append(20, 13, &[b"thirteen"]);
    write.truncate_from = Some(LogIndex(20));
    write.hard_state = Some(HardState { current_term: Term(13), voted_for: Some(NodeId(2)) });
    let last = storage.recover(group).unwrap().last_index;
    assert!(last >= LogIndex(19), "{last}");
    storage.write(&[(group, write)]).unwrap();
    storage.write(&[append(21, 14, &[b"fourteen"])]).unwrap();
    (payloads(&storage), storage.recover(group).unwrap().hard_state)
}

/// Bits rot in each of the files that RocksDB keeps, wherever: then the directory is refused, or everything is there.
#[test]
fn a_flipped_bit_in_any_file_is_refused_or_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let expected = settled(dir.path());
    let mut refused: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for file in fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path()) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let good = fs::read(&file).unwrap();
        // The name of a file of a kind: `000012.sst` is `sst`, `MANIFEST-000005` is `MANIFEST`.
        let kind = name.trim_matches(|c: char| c.is_ascii_digit() || ".-".contains(c)).to_owned();
        // The last two writes of the write-ahead log: damage there can look like a write that a power failure tore.
        let end = if kind == "log" { 0 } else { good.len() };
        let positions = std::env::var("RAFT_DAMAGE_EVERY_BYTE").map_or(40, |_| usize::MAX);
        for at in (0..end).step_by((end / positions).max(1)) {
            let copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(copy.path().join(&name), &bad).unwrap();
            let (tried, failed) = refused.entry(kind.clone()).or_default();
            *tried += 1;
            match open(copy.path()) {
                Ok(mut storage) => {
                    let found = (payloads(&storage), storage.recover(GROUP).unwrap().hard_state);
                    assert_eq!(found, expected, "byte {at} of {name}");
                }
                Err(StorageError::Damaged { .. } | StorageError::Gap { .. } | StorageError::Record { .. }) => {
                    *failed += 1;
                }
                Err(error) => {
                    eprintln!("byte {at} of {name}: {error}");
                    *failed += 1;
                }
            }
        }
    }
    eprintln!("flips and refusals: {refused:?}");
    for kind in ["sst", "MANIFEST", "CURRENT"] {
        assert!(refused.get(kind).is_some_and(|(_, failed)| *failed > 5), "no damage to {kind}: {refused:?}");
    }
}
