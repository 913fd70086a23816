//! The journal: torn writes, damage, segments that are used again.

use std::fs;
use std::path::{Path, PathBuf};

use raft_core::sim::schedule::Dice;
use raft_core::{
    EntryKind, GroupId, HardState, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term, Write, WriteSeq,
};
use raft_storage::{
    Acquaintance, Identity, JournalOptions, JournalStorage, MemoryStorage, RecoveredLog, Storage, StorageError,
    StorageReader,
};

use super::{GROUP, append, copy_dir, me};

fn tiny() -> JournalOptions {
    let mut options = JournalOptions::default();
    (options.segment_bytes, options.spare_segments) = (16_384, 2);
    options
}

fn open(dir: &Path) -> Result<JournalStorage, StorageError> {
    JournalStorage::open(dir, &me(), &tiny())
}

/// Everything that there is: each log, with its entries.
type Contents = Vec<(GroupId, RecoveredLog, Vec<(LogId, Vec<u8>)>)>;

fn contents<S: Storage>(storage: &mut S) -> Contents {
    let groups: Vec<GroupId> = (1..4).map(GroupId).collect();
    let all = |storage: &mut S, group| {
        let log = storage.recover(group).unwrap();
        let first = log.log_start.index.next();
        let entries = storage.reader().entries(group, first, LogIndex::MAX, usize::MAX).unwrap();
        let entries: Vec<_> = entries.iter().map(|entry| (entry.id(), entry.payload.to_vec())).collect();
        assert_eq!(entries.len() as u64, log.last_index.0 - log.log_start.index.0);
        (group, log, entries)
    };
    groups.into_iter().map(|group| all(storage, group)).collect()
}

/// A correct write for a log that stands like this.
fn any_write(dice: &mut Dice, log: &RecoveredLog, seq: u64) -> Write {
    let before = log.hard_state;
    let mut now = before;
    if before.current_term == Term(0) || dice.chance(1, 10) {
        now = HardState { current_term: Term(before.current_term.0 + 1), voted_for: None };
    }
    let (start, last) = (log.log_start.index.0, log.last_index.0);
    let log_start = (last > start && dice.chance(1, 4)).then(|| {
        let index = LogIndex(dice.between(start + 1, last));
        let at = log.runs.partition_point(|run| run.index <= index);
        let term = log.runs[at - 1].term;
        SnapshotMeta { last: LogId::new(term, index), membership: Membership::of_voters([NodeId(seq)]) }
    });
    let start = log_start.as_ref().map_or(start, |meta| meta.last.index.0);
    let truncate_from = (last > start && dice.chance(1, 8)).then(|| LogIndex(dice.between(start + 1, last)));
    let first = truncate_from.unwrap_or(LogIndex(last + 1));
    let payloads: Vec<Vec<u8>> = (0..dice.between(0, 3))
        .map(|_| vec![seq as u8; dice.between(0, if seq.is_multiple_of(9) { 6000 } else { 300 }) as usize])
        .collect();
    let entries = Segment::pack(first, now.current_term, EntryKind::Command, &payloads);
    Write {
        seq: WriteSeq(seq),
        hard_state: (now != before).then_some(now),
        log_start,
        truncate_from,
        entries: entries.map(Into::into).unwrap_or_default(),
    }
}

fn any_batch(dice: &mut Dice, storage: &mut MemoryStorage, seq: &mut u64) -> Vec<(GroupId, Write)> {
    let mut batch = Vec::new();
    // A group at a time, so that each write is made for what it meets.
    for group in (1..4).map(GroupId).filter(|group| group.0 == 1 || dice.chance(1, 3 + 5 * group.0)).collect::<Vec<_>>()
    {
        *seq += 1;
        batch.push((group, any_write(dice, &storage.recover(group).unwrap(), *seq)));
    }
    batch
}

fn images(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|extension| extension == "journal")).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// The power fails during a write: of what it changed, any sectors reached the disk. The log is as it was before, or as after.
#[test]
fn a_torn_write_is_there_as_a_whole_or_not_at_all() {
    let (mut kept, mut lost, mut begun) = (0, 0, 0);
    for seed in 0..6 {
        let mut dice = Dice::new(seed, 77);
        let mut dir = tempfile::tempdir().unwrap();
        let (mut storage, mut memory, mut seq) = (open(dir.path()).unwrap(), MemoryStorage::new(), 0);
        for step in 0..330 {
            let batch = any_batch(&mut dice, &mut memory, &mut seq);
            if step % 11 != 10 {
                storage.write(&batch).unwrap();
                memory.write(&batch).unwrap();
                continue;
            }
            let before = contents(&mut memory);
            let copy = tempfile::tempdir().unwrap();
            let old = settled_images(dir.path());
            storage.write(&batch).unwrap();
            copy_dir(dir.path(), copy.path());
            drop(storage);
            begun += u64::from(tear(&mut dice, &old, copy.path()));
            dir = copy;
            storage = open(dir.path()).unwrap();
            let found = contents(&mut storage);
            let mut after = MemoryStorage::new();
            std::mem::swap(&mut after, &mut memory);
            if found == before {
                lost += 1;
                // Go on from there.
                memory = after;
            } else {
                after.write(&batch).unwrap();
                assert_eq!(found, contents(&mut after), "seed {seed}, step {step}");
                memory = after;
                kept += 1;
            }
        }
        assert_eq!(contents(&mut storage), contents(&mut memory));
    }
    assert!(kept >= 10 && lost >= 10 && begun >= 5, "kept {kept}, lost {lost}, begun segments {begun}");
}

/// The images once no segment is being prepared: the same names twice.
fn settled_images(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    std::thread::sleep(std::time::Duration::from_millis(20));
    images(dir)
}

/// Takes some of what was changed since `old` back, sector by sector. Returns whether that was the beginning of a segment.
fn tear(dice: &mut Dice, old: &[(PathBuf, Vec<u8>)], dir: &Path) -> bool {
    const SECTOR: usize = 512;
    let mut begins = false;
    let all = dice.pick(4);
    // The next segment is prepared, if need be out of one that is not needed any more, when the write is durable: so not yet.
    let is_old = |path: &Path| old.iter().any(|(old, _)| old.file_name() == path.file_name());
    images(dir).iter().filter(|(path, _)| !is_old(path)).for_each(|(path, _)| fs::remove_file(path).unwrap());
    for (path, image) in old {
        let path = dir.join(path.file_name().unwrap());
        if !path.exists() {
            fs::write(path, image).unwrap();
        }
    }
    for (path, image) in images(dir) {
        let name = path.file_name();
        let Some((_, before)) = old.iter().find(|(old, _)| old.file_name() == name) else { continue };
        let mut torn = image.clone();
        for (now, before) in torn.chunks_mut(SECTOR).zip(before.chunks(SECTOR)) {
            if now != before && (all == 0 || all > 1 && dice.chance(1, 2)) {
                now.copy_from_slice(before);
            }
        }
        begins |= image[..SECTOR] != before[..SECTOR];
        fs::write(path, torn).unwrap();
    }
    begins
}

/// Whatever byte is damaged: the log is refused, or nothing of it was in the damaged place. Only the last write may be lost.
#[test]
fn damage_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut dice, mut seq) = (Dice::new(5, 78), 0);
    let (mut storage, mut memory) = (open(dir.path()).unwrap(), MemoryStorage::new());
    for _ in 0..60 {
        let batch = any_batch(&mut dice, &mut memory, &mut seq);
        storage.write(&batch).unwrap();
        memory.write(&batch).unwrap();
    }
    let before_last = contents(&mut memory);
    storage.write(&[(GroupId(3), any_write(&mut dice, &memory.recover(GroupId(3)).unwrap(), 999))]).unwrap();
    let whole = contents(&mut storage);
    drop(storage);
    let (mut refused, mut unharmed, mut cut) = (0, 0, 0);
    for _ in 0..400 {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let files = images(copy.path());
        let (path, mut image) = files[dice.pick(files.len())].clone();
        let at = dice.pick(image.len());
        image[at] ^= 1 << dice.pick(8);
        fs::write(path, image).unwrap();
        match open(copy.path()) {
            Ok(mut storage) => match contents(&mut storage) {
                found if found == whole => unharmed += 1,
                found if found == before_last => cut += 1,
                _ => panic!("byte {at}: something was lost without a word"),
            },
            Err(StorageError::Damaged { .. } | StorageError::Record { .. } | StorageError::Gap { .. }) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 50 && unharmed > 10, "refused {refused}, unharmed {unharmed}, cut {cut}");
}

#[test]
fn a_missing_segment_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    for first in 1..80 {
        storage.write(&[append(first, 1, &[&[7; 700]])]).unwrap();
    }
    let (segments, _) = storage.held();
    assert!(segments >= 4, "{segments}");
    drop(storage);
    let files = images(dir.path());
    for (path, _) in &files[..segments - 1] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        fs::remove_file(copy.path().join(path.file_name().unwrap())).unwrap();
        let error = open(copy.path()).unwrap_err();
        assert!(matches!(error, StorageError::Damaged { .. } | StorageError::Gap { .. }), "{error}");
    }
    // All of them: what the node has promised is not known any more.
    let mut storage = open(dir.path()).unwrap();
    storage.pin_founders(GROUP, &[NodeId(1)]).unwrap();
    drop(storage);
    files.iter().for_each(|(path, _)| drop(fs::remove_file(path)));
    images(dir.path()).iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    let error = open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

/// A log that is compacted again and again, beside one that is hardly ever written to: the room it takes stays the same.
#[test]
fn segments_are_used_again_and_idle_groups_do_not_prevent_that() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    let idle = append(1, 1, &[b"idle", b"since then"]).1;
    let mut first = 1;
    let mut most = 0;
    for round in 0..120 {
        if round == 3 {
            storage.write(&[(GroupId(2), idle.clone())]).unwrap();
        }
        for _ in 0..12 {
            storage.write(&[append(first, 1, &[&[round as u8; 900]])]).unwrap();
            first += 1;
        }
        let last = LogId::new(Term(1), LogIndex(first - 2));
        let meta = SnapshotMeta { last, membership: Membership::of_voters([NodeId(1)]) };
        let mut compact = append(first, 1, &[]).1;
        compact.log_start = Some(meta);
        storage.write(&[(GROUP, compact)]).unwrap();
        if round > 20 {
            most = most.max(storage.held().0);
        }
        if round % 40 == 39 {
            drop(storage);
            storage = open(dir.path()).unwrap();
        }
    }
    assert!(most <= 12, "{most} segments are held");
    assert!(images(dir.path()).len() <= 16);
    let found = storage.reader().entries(GroupId(2), LogIndex(1), LogIndex::MAX, usize::MAX).unwrap();
    assert_eq!(found.iter().map(|entry| entry.payload.to_vec()).collect::<Vec<_>>(), [&b"idle"[..], b"since then"]);
    assert_eq!(storage.recover(GROUP).unwrap().last_index, LogIndex(first - 1));
}

#[test]
fn a_journal_belongs_to_one_node_and_one_engine() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("journal");
    let storage = open(&dir).unwrap();
    let incarnation = storage.incarnation();
    let reader = storage.reader();
    assert!(matches!(open(&dir), Err(StorageError::InUse { .. })));
    drop(storage);
    assert!(matches!(open(&dir), Err(StorageError::InUse { .. })), "a reader keeps it locked");
    drop(reader);
    assert_eq!(open(&dir).unwrap().incarnation(), incarnation);
    let other = |cluster, node| JournalStorage::open(&dir, &Identity::new(cluster, NodeId(node)), &tiny()).unwrap_err();
    assert!(matches!(other("prod", 1), StorageError::WrongCluster { .. }));
    assert!(matches!(other("test", 2), StorageError::WrongNode { .. }));
    let error = super::open(&dir).unwrap_err();
    assert!(matches!(error, StorageError::NotALog { .. }), "{error}");
    let rocks = tmp.path().join("rocks");
    super::open(&rocks).unwrap();
    let error = open(&rocks).unwrap_err().to_string();
    assert!(error.contains("engine `rocksdb`"), "{error}");
    fs::write(dir.join("thesis.tex"), "dear").unwrap();
    assert!(open(&dir).unwrap_err().to_string().contains("thesis.tex"));
}

#[test]
fn what_is_rarely_written_is_kept_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    storage.pin_founders(GROUP, &[NodeId(1), NodeId(2)]).unwrap();
    storage.known_peers(GROUP).unwrap().meet(NodeId(2), 77).unwrap();
    storage.write(&[append(1, 1, &[b"x"])]).unwrap();
    storage.write(&[(GroupId(2), append(1, 1, &[b"y"]).1)]).unwrap();
    drop(storage);
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.founders(GROUP).unwrap(), Some(vec![NodeId(1), NodeId(2)]));
    assert!(matches!(storage.pin_founders(GROUP, &[NodeId(3)]), Err(StorageError::WrongFounders { .. })));
    assert_eq!(storage.known_peers(GROUP).unwrap().meet(NodeId(2), 77).unwrap(), Acquaintance::Known);
    assert_eq!(storage.groups(), [GROUP, GroupId(2)]);
    // A group is deleted for good, whether its founders were pinned or not.
    for group in [GROUP, GroupId(2)] {
        assert!(storage.delete(group).unwrap());
        assert!(matches!(storage.recover(group), Err(StorageError::Deleted { .. })));
    }
    assert!(!storage.delete(GroupId(9)).unwrap());
    drop(storage);
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.groups(), []);
    assert!(matches!(storage.recover(GROUP), Err(StorageError::Deleted { .. })));
    assert!(matches!(storage.write(&[append(1, 5, &[b"again"])]), Err(StorageError::BadWrite { .. })));
}
