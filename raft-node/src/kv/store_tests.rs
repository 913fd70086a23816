use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{NodeId, Segment};

use super::*;

fn identity() -> KvIdentity {
    KvIdentity { cluster: "test".into(), node: NodeId(1) }
}

fn open(dir: &Path) -> KvStore {
    KvStore::open(dir, &identity(), &KvOptions::default()).unwrap()
}

fn entries(first: u64, term: u64, commands: &[Bytes]) -> Entries {
    Segment::pack(LogIndex(first), Term(term), EntryKind::Command, commands).unwrap().into()
}

fn apply(store: &mut KvStore, commands: &[Bytes]) -> Vec<Reply> {
    let mut replies = Replies::new(true);
    store.apply(&entries(store.applied().0 + 1, 1, commands), &mut replies).unwrap();
    assert_eq!(replies.len(), commands.len());
    (0..replies.len()).map(|n| Reply::decode(replies.get(n).unwrap()).unwrap()).collect()
}

fn put(key: &[u8], value: &[u8]) -> Bytes {
    Command::Put { key, value }.encode()
}

fn delete(key: &[u8]) -> Bytes {
    Command::Delete { key }.encode()
}

fn cas(key: &[u8], expected: u64, value: &[u8]) -> Bytes {
    Command::Cas { key, expected, value }.encode()
}

fn ask(store: &mut KvStore, query: Query<'_>) -> BytesMut {
    let mut answer = BytesMut::new();
    store.query(&query.encode(), &mut answer).unwrap();
    answer
}

fn get(store: &mut KvStore, key: &[u8]) -> Option<(u64, Vec<u8>)> {
    match Answer::decode(&ask(store, Query::Get { key })).unwrap() {
        Answer::Absent => None,
        Answer::Value { revision, value } => Some((revision, value.to_vec())),
        other => panic!("{other:?}"),
    }
}

fn scan(store: &mut KvStore, start: &[u8], end: Option<&[u8]>, limit: u32) -> (Vec<Vec<u8>>, bool) {
    let answer = ask(store, Query::Scan { start, end: end.map(serde_bytes::Bytes::new), limit });
    match Answer::decode(&answer).unwrap() {
        Answer::Items { more, items } => (items.iter().map(|item| item.key.to_vec()).collect(), more),
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_do_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    assert_eq!(apply(&mut store, &[put(b"a", b"1")]), [Reply::Written { revision: 1 }]);
    assert_eq!(get(&mut store, b"a"), Some((1, b"1".to_vec())));
    assert_eq!(apply(&mut store, &[cas(b"a", 2, b"x")]), [Reply::Mismatch { current: 1 }]);
    assert_eq!(apply(&mut store, &[cas(b"a", 1, b"2")]), [Reply::Written { revision: 3 }]);
    assert_eq!(apply(&mut store, &[cas(b"b", 0, b"new")]), [Reply::Written { revision: 4 }]);
    assert_eq!(apply(&mut store, &[cas(b"c", 9, b"new")]), [Reply::Mismatch { current: 0 }]);
    assert_eq!(apply(&mut store, &[delete(b"a")]), [Reply::Deleted { existed: true }]);
    assert_eq!(apply(&mut store, &[delete(b"a")]), [Reply::Deleted { existed: false }]);
    assert_eq!((get(&mut store, b"a"), get(&mut store, b"b")), (None, Some((4, b"new".to_vec()))));
}

fn in_session(session: u64, serial: u64, first_unanswered: u64, command: &[u8]) -> Bytes {
    Command::InSession { session, serial, first_unanswered, command }.encode()
}

#[test]
fn within_a_session_a_repeated_command_takes_effect_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    assert_eq!(apply(&mut store, &[Command::Register.encode()]), [Reply::Registered { session: 1 }]);
    let first = in_session(1, 1, 1, &put(b"k", b"1"));
    assert_eq!(
        apply(&mut store, &[first.clone(), put(b"k", b"2")]),
        [2, 3].map(|revision| Reply::Written { revision })
    );
    assert_eq!(apply(&mut store, std::slice::from_ref(&first)), [Reply::Written { revision: 2 }], "the same reply");
    assert_eq!(get(&mut store, b"k"), Some((3, b"2".to_vec())), "and no second effect");
    // What was refused for its own sake is remembered as well.
    assert_eq!(apply(&mut store, &[in_session(1, 2, 2, &cas(b"k", 9, b"x"))]), [Reply::Mismatch { current: 3 }]);
    assert_eq!(apply(&mut store, &[first]), [Reply::Refused(Refusal::AlreadyAnswered)]);
    assert_eq!(apply(&mut store, &[in_session(7, 1, 1, &put(b"k", b"x"))]), [Reply::Refused(Refusal::SessionExpired)]);
    assert_eq!(apply(&mut store, &[in_session(1, 3, 2, b"nonsense")]), [Reply::Refused(Refusal::Malformed)]);
    assert_eq!(get(&mut store, b"k"), Some((3, b"2".to_vec())));
}

/// Sessions become durable with the changes, so that a replay after a crash finds neither too few nor too many.
#[test]
fn sessions_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    apply(&mut store, &[Command::Register.encode(), Command::Register.encode()]);
    let write = in_session(1, 1, 1, &put(b"k", b"1"));
    apply(&mut store, &[write.clone(), in_session(2, 1, 1, &put(b"l", b"1"))]);
    store.flush().unwrap();
    assert_eq!(apply(&mut store, &[Command::EndSession { session: 2 }.encode()]), [Reply::Ended]);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.applied(), LogIndex(5));
    assert_eq!(apply(&mut store, &[write]), [Reply::Written { revision: 3 }]);
    assert_eq!(apply(&mut store, &[in_session(2, 1, 1, &put(b"l", b"2"))]), [Reply::Refused(Refusal::SessionExpired)]);
    assert_eq!(get(&mut store, b"k"), Some((3, b"1".to_vec())));
}

#[test]
fn a_batch_sees_its_own_earlier_writes() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let batch = [
        put(b"k", b"1"),
        cas(b"k", 1, b"2"),
        cas(b"k", 1, b"lost"),
        delete(b"k"),
        delete(b"k"),
        cas(b"k", 2, b"lost"),
        cas(b"k", 0, b"3"),
    ];
    let expected = [
        Reply::Written { revision: 1 },
        Reply::Written { revision: 2 },
        Reply::Mismatch { current: 2 },
        Reply::Deleted { existed: true },
        Reply::Deleted { existed: false },
        Reply::Mismatch { current: 0 },
        Reply::Written { revision: 7 },
    ];
    assert_eq!(apply(&mut store, &batch), expected);
    assert_eq!(get(&mut store, b"k"), Some((7, b"3".to_vec())));
}

/// However the log is cut into batches, state and replies are the same.
#[test]
fn batches_make_no_difference() {
    let mut seed = 7_u64;
    let mut random = move |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let commands: Vec<Bytes> = (0..2_000)
        .map(|i| {
            let key = [b'a' + random(5) as u8];
            match random(4) {
                0 => put(&key, &[i as u8]),
                1 => delete(&key),
                2 => cas(&key, 0, &[i as u8]),
                _ => cas(&key, random(i + 1), &[i as u8]),
            }
        })
        .collect();
    let (one, many) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut one, mut many) = (open(one.path()), open(many.path()));
    let singly: Vec<Reply> = commands.iter().flat_map(|c| apply(&mut one, std::slice::from_ref(c))).collect();
    let mut rest = &commands[..];
    let mut batched = Vec::new();
    while !rest.is_empty() {
        let (batch, after) = rest.split_at((1 + random(40) as usize).min(rest.len()));
        batched.extend(apply(&mut many, batch));
        rest = after;
    }
    assert_eq!(singly, batched);
    assert!(singly.iter().any(|r| matches!(r, Reply::Mismatch { current: 1.. })), "the test must meet conflicts");
    let all = Query::Scan { start: b"", end: None, limit: 100 };
    assert_eq!(ask(&mut one, all), ask(&mut many, all));
}

#[test]
fn nonsense_gets_a_reply_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let long = vec![b'k'; super::super::MAX_KEY_BYTES + 1];
    let replies = apply(
        &mut store,
        &[Bytes::from_static(b"\xff\xff"), Bytes::new(), put(b"", b"v"), put(&long, b"v"), put(b"good", b"v")],
    );
    assert_eq!(replies[0], Reply::Refused(Refusal::Malformed));
    assert_eq!(replies[1], Reply::Refused(Refusal::Malformed));
    assert_eq!(replies[2], Reply::Refused(Refusal::EmptyKey));
    assert!(matches!(replies[3], Reply::Refused(Refusal::KeyTooLong { .. })));
    assert_eq!(replies[4], Reply::Written { revision: 5 });
    assert_eq!(scan(&mut store, b"", None, 10), (vec![b"good".to_vec()], false));
    let mut answer = BytesMut::new();
    store.query(b"\x77", &mut answer).unwrap();
    assert_eq!(Answer::decode(&answer), Ok(Answer::Refused(Refusal::Malformed)));
}

#[test]
fn scans_keep_to_their_range_and_limits() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let keys: [&[u8]; 5] = [b"a", b"b", b"b\0", b"c", b"\xff\xff"];
    apply(&mut store, &keys.map(|key| put(key, b"v")));
    let all: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
    assert_eq!(scan(&mut store, b"", None, 10), (all.clone(), false));
    assert_eq!(scan(&mut store, b"", None, 5), (all.clone(), false));
    assert_eq!(scan(&mut store, b"", None, 4), (all[..4].to_vec(), true));
    assert_eq!(scan(&mut store, b"b", Some(b"c"), 10), (all[1..3].to_vec(), false));
    assert_eq!(scan(&mut store, b"b", Some(b"b"), 10), (vec![], false));
    assert_eq!(scan(&mut store, b"c", Some(b"a"), 10), (vec![], false));
    // Bytes are limited as well, but one key always comes.
    let big = vec![0; MAX_SCAN_BYTES];
    apply(&mut store, &[put(b"a", &big), put(b"b", &big)]);
    assert_eq!(scan(&mut store, b"", None, 10), (all[..1].to_vec(), true));
}

#[test]
fn entries_that_are_no_commands_count_as_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let mut batch = Entries::from(Segment::pack(LogIndex(1), Term(1), EntryKind::NoOp, &[b""]).unwrap());
    batch.push(Segment::pack(LogIndex(2), Term(2), EntryKind::Command, &[put(b"k", b"v")]).unwrap()).unwrap();
    let mut replies = Replies::new(true);
    store.apply(&batch, &mut replies).unwrap();
    assert_eq!((replies.len(), store.applied_id()), (1, LogId::new(Term(2), LogIndex(2))));
}

#[test]
fn a_gap_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let error = store.apply(&entries(2, 1, &[put(b"k", b"v")]), &mut Replies::new(false)).unwrap_err();
    assert!(matches!(error, KvError::Gap { first: LogIndex(2), applied: LogIndex(0) }), "{error}");
}

/// What a `kill -9` leaves behind: the files as they are, without the memtable.
fn crash_image(dir: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        if file.file_name() != "LOCK" {
            std::fs::copy(file.path(), image.path().join(file.file_name())).unwrap();
        }
    }
    image
}

#[test]
fn a_crash_loses_a_suffix_which_the_log_replays() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let commands = [put(b"a", b"1"), cas(b"a", 1, b"2"), delete(b"a"), cas(b"a", 0, b"3")];
    apply(&mut store, &commands[..2]);
    store.flush().unwrap();
    apply(&mut store, &commands[2..]);
    let image = crash_image(dir.path());

    let mut again = open(image.path());
    assert_eq!(again.applied_id(), LogId::new(Term(1), LogIndex(2)), "the flushed prefix, and exactly that");
    assert_eq!(get(&mut again, b"a"), Some((2, b"2".to_vec())));
    let replayed = apply(&mut again, &commands[2..]);
    assert_eq!(replayed, [Reply::Deleted { existed: true }, Reply::Written { revision: 4 }]);
    assert_eq!(get(&mut again, b"a"), get(&mut store, b"a"));
}

#[test]
fn an_orderly_end_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    apply(&mut open(dir.path()), &[put(b"a", b"1"), put(b"b", b"2")]);
    let mut again = open(dir.path());
    assert_eq!(again.applied(), LogIndex(2));
    assert_eq!(get(&mut again, b"b"), Some((2, b"2".to_vec())));
}

fn refusal(dir: &Path, identity: &KvIdentity) -> KvError {
    KvStore::open(dir, identity, &KvOptions::default()).err().expect("must be refused")
}

#[test]
fn the_wrong_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    assert!(matches!(refusal(dir.path(), &identity()), KvError::InUse { .. }));
    drop(store);

    for other in [KvIdentity { node: NodeId(2), ..identity() }, KvIdentity { cluster: "other".into(), ..identity() }] {
        let error = refusal(dir.path(), &other);
        assert!(matches!(error, KvError::WrongIdentity { .. }), "{error}");
        assert!(error.to_string().contains("belongs to node 1 of cluster `test`"), "{error}");
    }
    // A refusal leaves the directory usable.
    drop(open(dir.path()));
}

#[test]
fn a_foreign_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("holiday.jpg"), b"x").unwrap();
    let error = refusal(dir.path(), &identity());
    assert!(matches!(error, KvError::NotOurs { .. }) && error.to_string().contains("holiday.jpg"), "{error}");

    let dir = tempfile::tempdir().unwrap();
    DB::open_default(dir.path()).unwrap().put(b"k", b"v").unwrap();
    let error = refusal(dir.path(), &identity());
    assert!(matches!(error, KvError::NotOurs { .. }), "{error}");
}

#[test]
fn a_newer_format_and_damage_are_refused() {
    for (value, newer) in [(&[0, 0, 0, 9, 1][..], true), (&[0, 0][..], false), (&[0, 0, 0, 1, 0][..], false)] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()));
        DB::open_default(dir.path()).unwrap().put(group_key(GroupId(0), b'i'), value).unwrap();
        let error = refusal(dir.path(), &identity());
        assert_eq!(matches!(error, KvError::NewerFormat { found: 9, .. }), newer, "{error}");
        assert_eq!(matches!(error, KvError::Damaged { .. }), !newer, "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    DB::open_default(dir.path()).unwrap().put(group_key(GroupId::FIRST, APPLIED), b"short").unwrap();
    assert!(matches!(refusal(dir.path(), &identity()), KvError::Damaged { .. }));
}

/// Small buffers, so that every source of the data is met: answers are the same as from one buffer that is never written out.
#[test]
fn flushing_makes_no_difference() {
    let (small, large) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = KvOptions { write_buffer_bytes: 2_000, max_replay_bytes: 10_000, ..KvOptions::default() };
    let mut small = KvStore::open(small.path(), &identity(), &options).unwrap();
    let mut large = open(large.path());
    let mut flushed = 0;
    for round in 0..300_u32 {
        let key =
            |n: u32| format!("key-{}", (round.wrapping_mul(2_654_435_761) >> 7).wrapping_add(n * 7) % 60).into_bytes();
        let batch = [put(&key(1), &round.to_be_bytes()), delete(&key(2)), cas(&key(3), 0, b"new"), put(&key(4), b"x")];
        assert_eq!(apply(&mut small, &batch), apply(&mut large, &batch));
        flushed += u32::from(small.flushing.is_some());
        for n in 1..6 {
            assert_eq!(get(&mut small, &key(n)), get(&mut large, &key(n)));
        }
        let range = Query::Scan { start: b"key-2", end: Some(serde_bytes::Bytes::new(b"key-5")), limit: 20 };
        assert_eq!(ask(&mut small, range), ask(&mut large, range));
    }
    assert!(flushed > 0 && small.db.get_pinned(group_key(GroupId::FIRST, APPLIED)).unwrap().is_some());
    small.flush().unwrap();
    let all = Query::Scan { start: b"", end: None, limit: 100 };
    assert_eq!(ask(&mut small, all), ask(&mut large, all));
}

/// A later buffer must not be written when an earlier one is missing: the applied index would tell of changes that are not there.
#[test]
fn after_a_failed_flush_nothing_is_written_and_nobody_waits() {
    let (done, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let dir = tempfile::tempdir().unwrap();
        let options = KvOptions { write_buffer_bytes: 1_000, ..KvOptions::default() };
        let mut store = KvStore::open(dir.path(), &identity(), &options).unwrap();
        std::fs::remove_dir_all(dir.path()).unwrap();
        let mut failures = Vec::new();
        for index in 1..100 {
            let full = entries(index, 1, &[put(b"k", &[7; 3_000])]);
            failures.extend(store.apply(&full, &mut Replies::new(false)).err().map(|error| error.to_string()));
        }
        failures.extend(store.flush().err().map(|error| error.to_string()));
        done.send(failures).unwrap();
        drop(store);
        done.send(Vec::new()).unwrap();
    });
    let patience = std::time::Duration::from_secs(10);
    let failures = ended.recv_timeout(patience).expect("a failure is final");
    assert!(failures.len() > 91, "{failures:?}");
    let why = |error: &String| error.contains("No such file or directory");
    assert!(failures.iter().all(why), "whatever is the last word of the node says why: {failures:?}");
    ended.recv_timeout(patience).expect("the store can be dropped");
}

/// The contract of a state machine: changes and applied index belong together, also when a batch breaks off in its middle.
#[test]
fn a_batch_that_breaks_off_is_never_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    apply(&mut store, &[put(b"a", b"1")]);
    let mut key = Vec::new();
    data_key(GroupId::FIRST, b"damaged", &mut key);
    store.db.put_opt(&key, b"short", &write_options()).unwrap();
    let half = entries(2, 1, &[put(b"a", b"2"), delete(b"damaged")]);
    assert!(matches!(store.apply(&half, &mut Replies::new(false)), Err(KvError::Damaged { .. })));
    drop(store);
    let mut store = open(dir.path());
    let before = (store.applied(), get(&mut store, b"a"));
    assert!(matches!(before, (LogIndex(1), Some((1, _))) | (LogIndex::ZERO, None)), "{before:?}");
}

/// The newest file of the directory whose name passes.
fn newest(dir: &Path, wanted: impl Fn(&str) -> bool) -> PathBuf {
    let files = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| wanted(path.file_name().unwrap().to_str().unwrap())).max().unwrap()
}

/// Where the frames of a MANIFEST or a write-ahead log of less than a block begin. A header: checksum u32, length u16, kind u8.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let next = |at: &usize| {
        let length = u16::from_le_bytes([*bytes.get(at + 4)?, *bytes.get(at + 5)?]);
        Some(at + 7 + usize::from(length))
    };
    std::iter::successors(Some(0), next).filter(|at| *at < bytes.len()).collect()
}

/// RocksDB alone would take some of these for the end of the MANIFEST and open the store without its newest files, or read on for ever. The
/// applied index would go back, to entries that the log does not hold any more.
#[test]
fn a_flipped_bit_in_the_header_of_a_frame_is_refused_or_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for n in 0..4_u8 {
        apply(&mut store, &[put(&[n], b"value"), delete(&[n.wrapping_sub(1)])]);
        store.flush().unwrap();
    }
    drop(store);
    let manifest = newest(dir.path(), |name| name.starts_with("MANIFEST-"));
    let wal = newest(dir.path(), |name| Path::new(name).extension().is_some_and(|extension| extension == "log"));
    // Every change is in a file; if that is no longer so, the frames of the write-ahead log need to be tried as well.
    assert_eq!(std::fs::read(&wal).unwrap(), b"", "{}", wal.display());
    let good = std::fs::read(&manifest).unwrap();
    let frames = frames(&good);
    assert!(frames.len() > 4 && good.len() < 32 << 10, "{frames:?}");
    let mut refused = 0;
    for (at, bit) in frames.iter().flat_map(|at| (32..56).map(move |bit| (*at, bit))) {
        let mut bad = good.clone();
        bad[at + bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&manifest, &bad).unwrap();
        match KvStore::open(dir.path(), &identity(), &KvOptions::default()) {
            Err(KvError::Damaged { what, .. }) => {
                assert!(what.contains("MANIFEST-"), "{what}");
                refused += 1;
            }
            Err(error) => assert!(matches!(error, KvError::Database { .. }), "frame at {at}, bit {bit}: {error}"),
            Ok(store) => panic!("frame at {at}, bit {bit}: opened, with {} applied", store.applied()),
        }
    }
    assert!(refused > 0);
    std::fs::write(&manifest, &good).unwrap();
    let mut store = open(dir.path());
    assert_eq!((store.applied(), get(&mut store, &[3])), (LogIndex(8), Some((7, b"value".to_vec()))));
}
