//! The journal, opened again: what interrupted processes, power failures and damage leave behind, and what must not be made of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use raft_core::sim::schedule::Dice;
use raft_core::{GroupId, HardState, LogId, LogIndex, Membership, NodeId, SnapshotMeta, Term, Write};
use raft_storage::{JournalOptions, JournalStorage, Storage, StorageError, StorageReader};

use super::{GROUP, append, copy_dir, me};

const OTHER: GroupId = GroupId(2);
const PAGE: usize = 4096;

fn options(segment_bytes: u64, spare_segments: usize) -> JournalOptions {
    let mut options = JournalOptions::default();
    (options.segment_bytes, options.spare_segments) = (segment_bytes, spare_segments);
    options
}

fn open(dir: &Path) -> Result<JournalStorage, StorageError> {
    JournalStorage::open(dir, &me(), &options(16_384, 2))
}

/// The files of the segments, in order.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "journal")).collect();
    files.sort();
    files
}

/// Waits until the segment after the active one is prepared. `active` counts from one.
fn prepared(dir: &Path, active: usize) {
    let next = dir.join(format!("{:020}.journal", active + 1));
    while !next.exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn flip(path: &Path, at: usize) {
    let mut image = fs::read(path).unwrap();
    image[at] ^= 1;
    fs::write(path, image).unwrap();
}

/// Puts back what was there before.
fn restore(path: &Path, before: &[u8], range: std::ops::Range<usize>) {
    let mut image = fs::read(path).unwrap();
    image[range.clone()].copy_from_slice(&before[range]);
    fs::write(path, image).unwrap();
}

/// Appends entries of `size` bytes, one for each index in `indices`, and returns the number of segments that were begun.
fn fill(storage: &mut JournalStorage, indices: std::ops::RangeInclusive<u64>, size: usize) -> usize {
    indices.for_each(|index| storage.write(&[append(index, 1, &[&vec![7; size]])]).unwrap());
    storage.held().0
}

fn cut(mut write: Write, start: u64) -> Write {
    let last = LogId::new(Term(1), LogIndex(start));
    write.log_start = Some(SnapshotMeta { last, membership: Membership::of_voters([NodeId(1)]) });
    write
}

fn indices(storage: &JournalStorage, group: GroupId) -> Vec<u64> {
    (1..200)
        .find_map(|first| {
            let found = storage.reader().entries(group, LogIndex(first), LogIndex::MAX, usize::MAX).unwrap();
            let found: Vec<u64> = found.iter().map(|entry| entry.index.0).collect();
            (!found.is_empty()).then_some(found)
        })
        .unwrap_or_default()
}

#[test]
fn a_group_that_was_deleted_is_not_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = JournalStorage::open(dir.path(), &me(), &options(16_384, 0)).unwrap();
    for index in 1..60 {
        storage.write(&[(OTHER, append(index, 1, &[&[7; 900]]).1)]).unwrap();
    }
    storage.write(&[append(1, 1, &[b"stays"])]).unwrap();
    assert!(storage.held().0 >= 3);
    storage.delete(OTHER).unwrap();
    assert!(storage.held().0 <= 2, "what it held is free");
    drop(storage);
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.recover(GROUP).unwrap().last_index, LogIndex(1));
    assert!(matches!(storage.recover(OTHER), Err(StorageError::Deleted { .. })));
}

/// Who opens a directory by mistake must not disturb the one who has it.
#[test]
fn a_directory_in_use_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let storage = open(dir.path()).unwrap();
    prepared(dir.path(), 1);
    let unfinished = dir.path().join("unfinished.tmp");
    fs::write(&unfinished, "a segment that is being prepared").unwrap();
    assert!(matches!(open(dir.path()), Err(StorageError::InUse { .. })));
    assert!(unfinished.exists());
    drop(storage);
    let _storage = open(dir.path()).unwrap();
    assert_ne!(fs::read(&unfinished).unwrap_or_default(), b"a segment that is being prepared");
}

/// The segment after the next is prepared when the first frame of the next is durable: so that one has been there.
#[test]
fn what_is_prepared_tells_what_has_been_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    let mut index = 0;
    while storage.held().0 < 3 {
        index += 1;
        fill(&mut storage, index..=index, 900);
    }
    prepared(dir.path(), 3);
    drop(storage);
    let refused = |what: &str, harm: &dyn Fn(&Path)| {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        harm(&segments(copy.path())[2]);
        match open(copy.path()) {
            Err(StorageError::Damaged { .. }) => {}
            other => panic!("{what}: {:?}", other.map(|mut storage| storage.recover(GROUP).unwrap().last_index)),
        }
    };
    refused("its title", &|path| flip(path, 20));
    refused("its only frame", &|path| flip(path, PAGE + 100));
    refused("it", &|path| fs::remove_file(path).unwrap());
    assert_eq!(open(dir.path()).unwrap().recover(GROUP).unwrap().last_index, LogIndex(index));
}

/// A first segment with a damaged title is not one that was never begun.
#[test]
fn the_only_segment_is_not_begun_anew() {
    for with_spare in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let mut storage = open(dir.path()).unwrap();
        fill(&mut storage, 1..=1, 10);
        prepared(dir.path(), 1);
        drop(storage);
        if !with_spare {
            fs::remove_file(&segments(dir.path())[1]).unwrap();
        }
        flip(&segments(dir.path())[0], 20);
        let error = open(dir.path()).expect_err("one entry was acknowledged");
        assert!(matches!(error, StorageError::Damaged { .. }), "{error}");
    }
}

/// Whatever of the creation reached the disk, the directory can be opened.
#[test]
fn an_interrupted_creation_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    for keep in [0..0, 0..512, PAGE..PAGE + 512, 0..PAGE] {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        let files = segments(copy.path());
        files[1..].iter().for_each(|path| fs::remove_file(path).unwrap());
        let whole = fs::read(&files[0]).unwrap();
        fs::write(&files[0], vec![0; whole.len()]).unwrap();
        restore(&files[0], &whole, keep);
        let mut storage = open(copy.path()).unwrap();
        fill(&mut storage, 1..=3, 10);
        drop(storage);
        assert_eq!(open(copy.path()).unwrap().recover(GROUP).unwrap().last_index, LogIndex(3));
    }
}

/// Deleted groups are known there only: without it they could come back, and vote again.
#[test]
fn segments_without_the_folder_beside_them_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    fill(&mut storage, 1..=1, 10);
    drop(storage);
    fs::remove_dir_all(dir.path().join("meta")).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert!(matches!(error, StorageError::Damaged { .. }) && error.to_string().contains("meta"), "{error}");
}

/// The power fails while a segment is begun: its first frame is there, its title is not, so it never was. Later it is begun again, and the power fails when the
/// title is there and the frame is not. Then the frame of the first attempt must not stand in for it.
#[test]
fn a_segment_that_is_begun_twice_has_nothing_of_the_first_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    fill(&mut storage, 1..=1, 900);
    prepared(dir.path(), 1);
    assert_eq!(fill(&mut storage, 2..=2, 14_000), 2, "it had no room in the first segment");
    drop(storage);
    let second = segments(dir.path())[1].clone();
    let image = fs::read(&second).unwrap();
    restore(&second, &vec![0; image.len()], 0..PAGE);
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.recover(GROUP).unwrap().last_index, LogIndex(1));
    // One that has room, and one that has not. The second attempt never got to the disk but for the title.
    fill(&mut storage, 2..=2, 900);
    let before = fs::read(&second).unwrap();
    assert_eq!(fill(&mut storage, 3..=3, 14_000), 2);
    drop(storage);
    for path in &segments(dir.path())[2..] {
        fs::remove_file(path).unwrap();
    }
    restore(&second, &before, PAGE..before.len());
    let mut storage = open(dir.path()).unwrap();
    assert_eq!(storage.recover(GROUP).unwrap().last_index, LogIndex(2));
}

/// The last frame may be one whose sync failed: in memory, and taken for clean. It is written again, so that it counts for good.
#[test]
fn the_last_frame_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    fill(&mut storage, 1..=3, 10);
    drop(storage);
    let first = segments(dir.path())[0].clone();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    fs::File::options().write(true).open(&first).unwrap().set_modified(long_ago).unwrap();
    let before = fs::read(&first).unwrap();
    drop(open(dir.path()).unwrap());
    assert!(fs::metadata(&first).unwrap().modified().unwrap() > long_ago, "nothing was written");
    assert!(fs::read(&first).unwrap() == before, "something else was written");
}

/// Entries move out of the oldest segment a few at a time, and what has not moved yet is cut off meanwhile. Without the oldest segment, the
/// log is known with a hole until the rest has moved.
#[test]
fn a_log_is_cut_while_it_moves() {
    let dir = tempfile::tempdir().unwrap();
    let large = options(1 << 20, 0);
    let mut storage = JournalStorage::open(dir.path(), &me(), &large).unwrap();
    let (part, small) = (vec![1; 100_000], vec![2; 10]);
    storage.write(&[(OTHER, append(1, 1, &[&part, &part, &part]).1)]).unwrap();
    storage.write(&[(OTHER, append(4, 1, &vec![&small[..]; 17]).1)]).unwrap();
    storage.write(&[(OTHER, append(21, 1, &[]).1)]).unwrap();
    let mut index = 1;
    // More than a few segments, with nothing in them.
    while storage.held().0 <= 4 {
        let (_, write) = append(index, 1, &[&vec![3; 250_000]]);
        storage.write(&[(GROUP, write)]).unwrap();
        storage.write(&[(GROUP, cut(append(index + 1, 1, &[]).1, index))]).unwrap();
        index += 1;
    }
    let (_, touch) = append(index, 1, &[b"x"]);
    storage.write(&[(GROUP, touch)]).unwrap();
    storage.write(&[(OTHER, cut(append(21, 1, &[]).1, 6))]).unwrap();
    storage.write(&[(OTHER, cut(append(21, 1, &[]).1, 8))]).unwrap();
    for more in 1..4 {
        storage.write(&[append(index + more, 1, &[b"y"])]).unwrap();
    }
    assert_eq!(indices(&storage, OTHER), (9..=20).collect::<Vec<_>>());
    drop(storage);
    let oldest = segments(dir.path())[0].file_name().unwrap().to_owned();
    assert_ne!(oldest, "00000000000000000001.journal", "everything moved out of it");
    let storage = JournalStorage::open(dir.path(), &me(), &large).unwrap();
    assert_eq!(indices(&storage, OTHER), (9..=20).collect::<Vec<_>>());
}

/// A busy group that is cut with each of its writes does not keep the entries of others where they are.
#[test]
fn logs_move_while_others_are_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = open(dir.path()).unwrap();
    storage.write(&[(OTHER, append(1, 1, &[b"idle"]).1)]).unwrap();
    let mut most = 0;
    fill(&mut storage, 1..=1, 900);
    for index in 2..1200 {
        let (_, write) = append(index, 1, &[&[7; 900]]);
        storage.write(&[(GROUP, cut(write, index - 1))]).unwrap();
        most = most.max(storage.held().0);
    }
    assert!(most <= 12, "{most} segments are held");
    drop(storage);
    let mut storage = open(dir.path()).unwrap();
    assert_eq!((indices(&storage, OTHER), storage.recover(GROUP).unwrap().last_index), (vec![1], LogIndex(1199)));
    assert_eq!(storage.recover(OTHER).unwrap().hard_state, HardState { current_term: Term(1), voted_for: None });
}

/// Whatever the files hold: they are refused, or what is in them is a log. Most of what is tried here is near to the truth.
#[test]
fn no_bytes_of_a_file_make_it_panic() {
    let dir = tempfile::tempdir().unwrap();
    let mut storage = JournalStorage::open(dir.path(), &me(), &options(8192, 2)).unwrap();
    let mut index = 0;
    while storage.held().0 < 3 {
        index += 1;
        fill(&mut storage, index..=index, 500);
    }
    drop(storage);
    let (mut dice, mut opened, mut refused) = (Dice::new(3, 79), 0, 0);
    for _ in 0..120 {
        let copy = tempfile::tempdir().unwrap();
        copy_dir(dir.path(), copy.path());
        for _ in 0..dice.between(1, 3) {
            mutate(&mut dice, copy.path());
        }
        match open(copy.path()) {
            Ok(mut storage) => {
                opened += 1;
                let last = storage.recover(GROUP).unwrap().last_index;
                assert_eq!(indices(&storage, GROUP), (1..=last.0).collect::<Vec<_>>());
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().len() > 10, "{error:?}");
            }
        }
    }
    assert!(opened > 5 && refused > 40, "opened {opened}, refused {refused}");
}

/// Does something to one of the segments.
fn mutate(dice: &mut Dice, dir: &Path) {
    let files = segments(dir);
    let Some(path) = files.get(dice.pick(files.len().max(1))) else { return };
    let other = fs::read(&files[dice.pick(files.len())]).unwrap();
    let mut image = fs::read(path).unwrap();
    let (at, length) = (dice.pick(image.len() + 1), dice.pick(600));
    let range = at..image.len().min(at + length);
    match dice.pick(7) {
        0 => image.truncate(at),
        1 => image.resize(at + length, 9),
        2 => image[range].fill(dice.pick(256) as u8),
        3 => image[range].iter_mut().for_each(|byte| *byte = dice.pick(256) as u8),
        4 => image.drain(range).for_each(drop),
        5 => image = other,
        _ => {
            let name = format!("{:020}.journal", [0, 1, 2, 4, 7, u64::MAX][dice.pick(6)]);
            return fs::rename(path, dir.join(name)).unwrap();
        }
    }
    fs::write(path, image).unwrap();
}
