use std::fs;
use std::path::Path;

use bytes::{Bytes, BytesMut};
use raft_core::{Entries, EntryKind, NodeId, Segment};
use rocksdb::IteratorMode;

use super::super::{Answer, Command, KvOptions, Query, Reply};
use super::*;
use crate::state_machine::{Replies, StateMachine};

fn identity() -> KvIdentity {
    KvIdentity { cluster: "test".into(), node: NodeId(1) }
}

fn open(dir: &Path) -> KvStore {
    KvStore::open(dir, &identity(), &KvOptions::default()).unwrap()
}

fn apply(store: &mut KvStore, commands: &[Bytes]) -> Vec<Reply> {
    let first = store.applied().next();
    let entries: Entries = Segment::pack(first, Term(2), EntryKind::Command, commands).unwrap().into();
    let mut replies = Replies::new(true);
    store.apply(&entries, &mut replies).unwrap();
    (0..replies.len()).map(|n| Reply::decode(replies.get(n).unwrap()).unwrap()).collect()
}

fn put(key: &str, value: &str) -> Bytes {
    Command::Put { key: key.as_bytes(), value: value.as_bytes() }.encode()
}

fn delete(key: &str) -> Bytes {
    Command::Delete { key: key.as_bytes() }.encode()
}

/// Key, revision and value of everything in it.
fn all(store: &mut KvStore) -> Vec<(String, u64, String)> {
    let mut answer = BytesMut::new();
    store.query(&Query::Scan { start: b"", end: None, limit: 1000 }.encode(), &mut answer).unwrap();
    let Answer::Items { more: false, items } = Answer::decode(&answer).unwrap() else { panic!("{answer:?}") };
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    items.iter().map(|item| (text(item.key), item.revision, text(item.value))).collect()
}

fn cut(store: &mut KvStore) -> Box<dyn Cut> {
    store.cut().unwrap().unwrap()
}

fn bytes(cut: Box<dyn Cut>) -> Vec<u8> {
    let mut bytes = Vec::new();
    cut.write_to(&mut bytes).unwrap();
    bytes
}

fn meta(index: u64) -> SnapshotMeta {
    let membership = Membership::of_voters([1, 2].map(NodeId));
    SnapshotMeta { last: LogId::new(Term(2), LogIndex(index)), membership }
}

/// The directory as a crash at this moment leaves it.
fn crashed(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// The spaces in which there is anything.
fn spaces(store: &KvStore) -> Vec<u64> {
    let keys = store.db.iterator(IteratorMode::Start).map(|item| item.unwrap().0);
    let mut spaces: Vec<u64> = keys.map(|key| u64::from_be_bytes(*key.first_chunk().unwrap())).collect();
    spaces.dedup();
    spaces
}

#[test]
fn a_cut_is_of_one_point_in_time_wherever_the_state_is() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let session = apply(&mut store, &[Command::Register.encode(), Command::Register.encode()]);
    assert_eq!(session, [Reply::Registered { session: 1 }, Reply::Registered { session: 2 }]);
    let once = Command::InSession { session: 1, serial: 1, first_unanswered: 1, command: &put("once", "1") }.encode();
    apply(&mut store, &[put("a", "1"), put("b", "1"), put("c", "1"), once.clone()]);
    // Some of it in the database, some on its way, some in memory; some of it changed or gone since.
    store.flush().unwrap();
    apply(&mut store, &[put("b", "2"), delete("c"), put("d", "1"), Command::EndSession { session: 2 }.encode()]);
    let expected = all(&mut store);
    let applied = store.applied();
    let first = cut(&mut store);
    apply(&mut store, &[put("a", "later"), delete("b"), put("e", "later")]);
    store.flush().unwrap();
    let second = cut(&mut store);
    let expected_second = all(&mut store);
    apply(&mut store, &[delete("a")]);
    store.flush().unwrap();

    let other = tempfile::tempdir().unwrap();
    let mut copy = open(other.path());
    apply(&mut copy, &[put("old", "state"), put("a", "of another history")]);
    copy.restore(&meta(applied.0), &mut &bytes(first)[..]).unwrap();
    assert_eq!((all(&mut copy), copy.applied(), copy.durable()), (expected, applied, Some(applied)));
    assert_eq!(copy.restored(), Some(meta(applied.0)));
    // What was written once in a session is not written again, and the session that ended is gone.
    assert_eq!(apply(&mut copy, &[once]), [Reply::Written { revision: 6 }]);
    let late = Command::InSession { session: 2, serial: 1, first_unanswered: 1, command: &put("late", "1") }.encode();
    assert!(matches!(apply(&mut copy, &[late])[..], [Reply::Refused(_)]));
    copy.restore(&meta(40), &mut &bytes(second)[..]).unwrap();
    assert_eq!((all(&mut copy), copy.applied()), (expected_second, LogIndex(40)));
    assert_eq!(spaces(&copy), [0, copy.space.0], "what was before is gone");
    drop(copy);
    let copy = open(other.path());
    assert_eq!((copy.applied(), copy.restored()), (LogIndex(40), Some(meta(40))));
}

/// A store in memory and on disk, and a snapshot for it.
fn bench() -> (tempfile::TempDir, KvStore, Vec<u8>) {
    let source = tempfile::tempdir().unwrap();
    let mut store = open(source.path());
    apply(&mut store, &[put("new", "state")]);
    let snapshot = bytes(cut(&mut store));
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    apply(&mut store, &[put("old", "durable")]);
    store.flush().unwrap();
    apply(&mut store, &[put("old", "in memory")]);
    (dir, store, snapshot)
}

#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one() {
    let (dir, mut store, snapshot) = bench();
    let old = vec![("old".to_owned(), 1, "durable".to_owned())];
    let new = vec![("new".to_owned(), 1, "state".to_owned())];
    let space = next_space(store.space);
    let check = |what: &str, expected: &[(String, u64, String)], applied: u64, restored: Option<SnapshotMeta>| {
        let copy = crashed(dir.path());
        let mut after = open(copy.path());
        assert_eq!((all(&mut after).as_slice(), after.applied().0), (expected, applied), "{what}");
        assert_eq!((after.restored(), after.durable()), (restored, Some(LogIndex(applied))), "{what}");
        assert_eq!(spaces(&after).len(), 2, "{what}: garbage");
        // And it can be restored (again).
        after.restore(&meta(90), &mut &snapshot[..]).unwrap();
        assert_eq!((all(&mut after), after.applied().0), (new.clone(), 90), "{what}");
    };
    // Half-way through, and all of the data: they do not count before the switch.
    assert!(fill(&store, space, &mut &snapshot[..snapshot.len() - 3]).is_err());
    check("half of it", &old, 1, None);
    fill(&store, space, &mut &snapshot[..]).unwrap();
    check("all of it", &old, 1, None);
    assert_eq!(spaces(&store), [0, 1, space.0], "what does not count yet");
    switch(&store, &identity(), space, &meta(50)).unwrap();
    check("switched", &new, 50, Some(meta(50)));
    store.restore(&meta(60), &mut &snapshot[..]).unwrap();
    check("once more", &new, 60, Some(meta(60)));
    // Changes that were in memory when the store was restored are nowhere any more.
    apply(&mut store, &[put("next", "1")]);
    store.flush().unwrap();
    let both = [new.clone(), vec![("next".to_owned(), 61, "1".to_owned())]].concat();
    let mut sorted = both.clone();
    sorted.sort();
    check("and went on", &sorted, 61, Some(meta(60)));
}

#[test]
fn the_files_of_a_restore_that_a_crash_ended_are_cleared_away() {
    let (dir, store, _) = bench();
    let place = dir.path().join("restoring");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("000000.sst"), b"half of a file").unwrap();
    drop(store);
    drop(open(dir.path()));
    assert!(!place.exists());
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (_dir, mut store, snapshot) = bench();
    let before = all(&mut store);
    for cut in 0..snapshot.len() {
        assert!(store.restore(&meta(9), &mut &snapshot[..cut]).is_err(), "{cut}");
    }
    let item = |key: u32, value: u32| [&[DATA][..], &key.to_be_bytes(), &value.to_be_bytes(), &[7; 40]].concat();
    // Twice the same key.
    let small = |tag| [&[tag][..], &1u32.to_be_bytes(), &8u32.to_be_bytes(), &[7; 9]].concat();
    let mut miscounted = snapshot.clone();
    *miscounted.last_mut().unwrap() ^= 1;
    for bad in [
        [&snapshot[..], b"x"].concat(),
        miscounted,
        b"x".to_vec(),
        [small(DATA), small(DATA)].concat(),
        // Sessions come behind the data.
        [small(SESSION), small(DATA)].concat(),
        item(u32::MAX, 8),
        item(1, u32::MAX),
        // No room for a revision.
        item(1, 7),
    ] {
        let refused = store.restore(&meta(9), &mut &bad[..]);
        assert!(matches!(refused, Err(RestoreError::Data(_))), "{refused:?}");
    }
    assert_eq!((all(&mut store), store.applied(), store.restored()), (before, LogIndex(2), None));
    apply(&mut store, &[put("and", "on")]);
}

#[test]
fn a_cut_that_nobody_wants_or_that_cannot_be_written_is_no_harm() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::StorageFull))
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (_dir, mut store, _) = bench();
    drop(cut(&mut store));
    assert_eq!(cut(&mut store).write_to(&mut Full).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(store.can_cut().is_ok());
    bytes(cut(&mut store));
}
