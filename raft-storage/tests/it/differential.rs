//! The simulator's model of a disk against the real store: what `raft_core::sim::disk::Disk` says a disk does, RocksDB and the store in
//! memory must do. Everything that the simulator proves about crashes rests on this. Torn writes ([`Disk::crash_keeping`] with a part of one) are left out: they
//! are harsher than what a power failure leaves of RocksDB's batches, each of which is there as a whole or not at all.
//!
//! A run is a function of its seed. `RAFT_DIFFERENTIAL_SEED=7 cargo test -p raft-storage differential` repeats one,
//! `RAFT_DIFFERENTIAL_SEEDS=500` runs more than usual.

use std::fs::{self, File};
use std::path::PathBuf;

use raft_core::sim::disk::Disk;
use raft_core::sim::schedule::Dice;
use raft_core::{
    Entries, EntryKind, Fetch, FetchId, HardState, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term,
    Write, WriteSeq,
};
use raft_storage::{MemoryStorage, Options, RocksStorage, Storage, StorageReader};
use tempfile::TempDir;

use super::{GROUP, copy_dir, me};

/// Seeds that once failed.
const REGRESSIONS: [u64; 0] = [];
const SEEDS: u64 = 24;
const STEPS: u64 = 60;

#[test]
fn the_model_of_a_disk_and_the_real_stores_do_the_same() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().expect("a number"));
    let seeds: Vec<u64> = match number("RAFT_DIFFERENTIAL_SEED") {
        Some(seed) => vec![seed],
        None => REGRESSIONS.into_iter().chain(0..number("RAFT_DIFFERENTIAL_SEEDS").unwrap_or(SEEDS)).collect(),
    };
    let mut seen = Seen::default();
    for seed in &seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut three = Three::new(*seed);
            (0..STEPS).for_each(|_| three.act());
            let seen = three.seen;
            three.refuse();
            seen
        });
        match outcome {
            Ok(one) => seen.add(one),
            Err(panic) => {
                eprintln!("repeat it with: RAFT_DIFFERENTIAL_SEED={seed} cargo test -p raft-storage differential");
                std::panic::resume_unwind(panic);
            }
        }
    }
    eprintln!("{} seeds: {seen:?}", seeds.len());
    if seeds.len() >= SEEDS as usize {
        let Seen { lost, kept, torn, truncations, starts, reads, reopened } = seen;
        let rare = [lost, kept, torn, truncations, starts, reads, reopened].into_iter().min();
        assert!(rare >= Some(SEEDS), "some situations hardly occur: {seen:?}");
    }
}

/// How often something occurred.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Writes lost by a crash, and writes that were under way and survived.
    lost: u64,
    kept: u64,
    /// Crashes in the middle of a write.
    torn: u64,
    truncations: u64,
    /// Writes that let the log begin elsewhere.
    starts: u64,
    reads: u64,
    reopened: u64,
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.lost += other.lost;
        self.kept += other.kept;
        self.torn += other.torn;
        self.truncations += other.truncations;
        self.starts += other.starts;
        self.reads += other.reads;
        self.reopened += other.reopened;
    }
}

/// The model, the real store, and the one in memory.
struct Three {
    dice: Dice,
    disk: Disk,
    memory: MemoryStorage,
    rocks: Option<RocksStorage>,
    dir: TempDir,
    options: Options,
    seq: u64,
    seen: Seen,
}

impl Three {
    fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed, 31);
        let mut options = Options::default();
        options.max_record_bytes = [1 << 20, 1, 60, 700][dice.pick(4)];
        // Small enough for some flushes, and for several files of the write-ahead log.
        options.write_buffer_bytes = [16 << 20, 64 << 10][dice.pick(2)];
        let dir = tempfile::tempdir().unwrap();
        let rocks = RocksStorage::open(dir.path(), &me(), &options).unwrap();
        let (disk, memory) = (Disk::empty(), MemoryStorage::new());
        Three { dice, disk, memory, rocks: Some(rocks), dir, options, seq: 0, seen: Seen::default() }
    }

    fn rocks(&mut self) -> &mut RocksStorage {
        self.rocks.as_mut().expect("open, but for a moment in a crash")
    }

    fn act(&mut self) {
        match self.dice.between(0, 19) {
            0..=8 => self.submit(),
            9..=12 => self.sync(),
            13..=16 => self.read_live(),
            17 => {
                self.sync();
                self.reopen();
            }
            _ => self.crash(),
        }
    }

    /// A correct write, not yet synced.
    fn submit(&mut self) {
        let write = self.write();
        self.seen.truncations +=
            u64::from(write.truncate_from.is_some_and(|from| from <= self.disk.live().last().index));
        self.disk.accept(write.clone()).unwrap();
        self.memory.submit(&[(GROUP, write)]).unwrap();
        let live = self.memory.recover(GROUP).unwrap();
        assert_eq!((live.hard_state, live.last()), (self.disk.live().hard_state(), self.disk.live().last()));
    }

    fn write(&mut self) -> Write {
        self.seq += 1;
        let last = self.disk.live().last();
        let before = self.disk.live().hard_state();
        let mut now = before;
        if self.dice.chance(1, 4) {
            now = HardState { current_term: Term(before.current_term.0 + self.dice.between(1, 3)), voted_for: None };
        }
        if self.dice.chance(1, 3) {
            now.voted_for = now.voted_for.or(Some(NodeId(self.dice.between(1, 5))));
        }
        let log_start = self.log_start(now.current_term);
        self.seen.starts += u64::from(log_start.is_some());
        // The start comes first; what is left of the log after it may be truncated.
        let (start, last) = match &log_start {
            Some(meta) if self.disk.live().id_at(meta.last.index) == Some(meta.last) => (meta.last, last),
            Some(meta) => (meta.last, meta.last),
            None => (self.disk.live().start(), last),
        };
        let length = last.index.0 - start.index.0;
        let back = if self.dice.chance(1, 3) { self.dice.between(0, 12).min(length) } else { 0 };
        let truncate_from = (back > 0 || self.dice.chance(1, 20)).then(|| LogIndex(last.index.0 + 1 - back));
        let prev = LogIndex(last.index.0 - back);
        let prev = if prev == start.index { start } else { self.disk.live().id_at(prev).unwrap_or(LogId::ZERO) };
        let entries = if self.dice.chance(1, 6) { Entries::new() } else { self.entries(prev, now.current_term) };
        Write { seq: WriteSeq(self.seq), hard_state: (now != before).then_some(now), log_start, truncate_from, entries }
    }

    /// Now and then the log is to begin elsewhere: where it has an entry, beyond its end, or at an entry that it has in another term.
    fn log_start(&mut self, term: Term) -> Option<SnapshotMeta> {
        let (start, last) = (self.disk.live().start().index.0, self.disk.live().last().index.0);
        if !self.dice.chance(1, 6) {
            return None;
        }
        let beyond = if self.dice.chance(1, 5) { 20 } else { 0 };
        let index = LogIndex(self.dice.between(start, last + beyond));
        let held = self.disk.live().id_at(index).filter(|_| index.0 == start || !self.dice.chance(1, 5));
        let last = held.unwrap_or(LogId::new(term, index));
        Some(SnapshotMeta { last, membership: Membership::of_voters([NodeId(self.seq)]) })
    }

    /// Entries that follow on `prev`, in rising terms up to `term`.
    fn entries(&mut self, prev: LogId, term: Term) -> Entries {
        let mut entries = Entries::new();
        let (mut first, mut low) = (prev.index.next(), prev.term.0);
        for _ in 0..self.dice.between(1, 3) {
            low = self.dice.between(low, term.0);
            let fill = self.dice.between(0, 255) as u8;
            let size = if self.dice.chance(1, 8) { 9000 } else { 200 };
            let payloads: Vec<Vec<u8>> =
                (0..self.dice.between(1, 6)).map(|_| vec![fill; self.dice.between(0, size) as usize]).collect();
            let segment = Segment::pack(first, Term(low), EntryKind::Command, &payloads).unwrap();
            first = segment.last_index().next();
            entries.push(segment).unwrap();
        }
        entries
    }

    /// One sync for all that was submitted.
    fn sync(&mut self) {
        let batch = self.pending();
        self.rocks().write(&batch).unwrap();
        self.memory.sync().unwrap();
        self.disk.complete(WriteSeq(self.seq)).unwrap();
        self.compare();
    }

    fn pending(&self) -> Vec<(raft_core::GroupId, Write)> {
        self.disk.pending().map(|write| (GROUP, write.clone())).collect()
    }

    /// What was submitted and not synced can be read, too, where such a state exists.
    fn read_live(&mut self) {
        let synced = self.disk.pending().len() == 0;
        for _ in 0..4 {
            let (begin, end) =
                (self.disk.live().start().index.0.saturating_sub(3), self.disk.live().last().index.0 + 3);
            let (first, last) = (LogIndex(self.dice.between(begin, end)), LogIndex(self.dice.between(begin, end)));
            let max_bytes = if self.dice.chance(1, 3) { usize::MAX } else { self.dice.between(0, 3000) as usize };
            let expected = self.disk.read(&Fetch { id: FetchId(1), first, last, max_bytes });
            let what = format!("entries {first} to {last}, {max_bytes} bytes");
            assert_eq!(
                self.memory.reader().entries(GROUP, first, last, max_bytes).unwrap(),
                expected,
                "memory: {what}"
            );
            if synced {
                assert_eq!(self.rocks().reader().entries(GROUP, first, last, max_bytes).unwrap(), expected, "{what}");
                self.seen.reads += u64::from(!expected.is_empty());
            }
        }
    }

    fn reopen(&mut self) {
        self.rocks = None;
        self.rocks = Some(RocksStorage::open(self.dir.path(), &me(), &self.options).unwrap());
        self.disk.crash();
        self.memory.crash(0);
        self.seen.reopened += 1;
        self.compare();
    }

    /// The power fails while the writes under way go to the disk, each or several together with a sync of their own: the write-ahead
    /// log ends at some byte of them.
    fn crash(&mut self) {
        let pending = self.pending();
        let mut ends: Vec<(usize, PathBuf, u64)> = Vec::new();
        let (begin, mut done) = (self.newest_wal(), 0);
        while done < pending.len() {
            let upto = (done + self.dice.between(1, 3) as usize).min(pending.len());
            self.rocks().write(&pending[done..upto]).unwrap();
            let (wal, end) = self.newest_wal();
            ends.push((upto, wal, end));
            done = upto;
        }
        let (wal, end) = self.newest_wal();
        let start = if begin.0 == wal { begin.1 } else { 0 };
        let cut = match self.dice.between(0, 3) {
            0 => end,
            1 => start,
            _ => self.dice.between(start, end),
        };
        let survives = |(_, file, end): &&(usize, PathBuf, u64)| *file != wal || *end <= cut;
        let survivors = ends.iter().filter(survives).map(|(count, ..)| *count).max().unwrap_or(0);
        let clean = cut == start || ends.iter().any(|(_, file, end)| *file == wal && *end == cut);
        self.seen.torn += u64::from(!clean);
        self.seen.kept += survivors as u64;
        self.seen.lost += (pending.len() - survivors) as u64;

        let copy = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), copy.path());
        let cut_file = copy.path().join(wal.file_name().expect("a file"));
        File::options().write(true).open(cut_file).unwrap().set_len(cut).unwrap();
        self.rocks = None;
        self.dir = copy;
        self.rocks = Some(RocksStorage::open(self.dir.path(), &me(), &self.options).unwrap());
        self.disk.crash_keeping(survivors, None).unwrap();
        self.memory.crash(survivors);
        self.compare();
    }

    /// The file of the write-ahead log that is written to, and its length.
    fn newest_wal(&self) -> (PathBuf, u64) {
        let files = fs::read_dir(self.dir.path()).unwrap().map(|file| file.unwrap().path());
        let newest = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max().unwrap();
        let len = fs::metadata(&newest).unwrap().len();
        (newest, len)
    }

    /// Nothing is under way: all three tell the same about everything.
    fn compare(&mut self) {
        let founders = Membership::of_voters([NodeId(77)]);
        let model = self.disk.recover(founders.clone());
        let first = model.log_start.index.next();
        let all = self.disk.read(&Fetch { id: FetchId(1), first, last: LogIndex::MAX, max_bytes: usize::MAX });
        assert_eq!(all.len() as u64, model.last_index.0 - model.log_start.index.0);
        for found in [self.memory.recover(GROUP).unwrap(), self.rocks().recover(GROUP).unwrap()] {
            assert_eq!(found.hard_state, model.hard_state);
            assert_eq!((found.log_start, &found.runs), (model.log_start, &model.runs));
            assert_eq!((found.last_index, found.bytes), (model.last_index, all.byte_len() as u64));
            assert_eq!(found.membership.unwrap_or(founders.clone()), model.membership);
        }
        let (whole, max) = (LogIndex::MAX, usize::MAX);
        assert_eq!(self.memory.reader().entries(GROUP, first, whole, max).unwrap(), all);
        assert_eq!(self.rocks().reader().entries(GROUP, first, whole, max).unwrap(), all);
        assert!(self.rocks().reader().entries(GROUP, model.log_start.index, whole, max).unwrap().is_empty());
    }

    /// A write that breaks a rule is refused by all three. The last thing in a run: afterwards they take no more.
    fn refuse(mut self) {
        self.sync();
        let (last, hard_state) = (self.disk.live().last(), self.disk.live().hard_state());
        let HardState { current_term, voted_for } = hard_state;
        let segment =
            |index, term| Segment::pack(LogIndex(index), Term(term), EntryKind::Command, &["x"]).unwrap().into();
        let mut bad = Write {
            seq: WriteSeq(self.seq + 1),
            hard_state: None,
            log_start: None,
            truncate_from: None,
            entries: Entries::new(),
        };
        match self.dice.between(0, 4) {
            0 => bad.entries = segment(last.index.0 + 2, current_term.0),
            1 => bad.entries = segment(last.index.0 + 1, current_term.0 + 1),
            2 if last.term.0 > 0 => bad.entries = segment(last.index.0 + 1, last.term.0 - 1),
            3 if voted_for.is_some() => bad.hard_state = Some(HardState { current_term, voted_for: None }),
            _ if current_term.0 > 0 => {
                bad.hard_state = Some(HardState { current_term: Term(current_term.0 - 1), voted_for: None });
            }
            _ => bad.truncate_from = Some(LogIndex::ZERO),
        }
        let batch = [(GROUP, bad.clone())];
        assert!(self.rocks().write(&batch).is_err(), "RocksDB takes {bad:?} after {last} and {hard_state:?}");
        assert!(
            self.memory.write(&batch).is_err(),
            "the store in memory takes {bad:?} after {last} and {hard_state:?}"
        );
        assert!(self.disk.accept(bad.clone()).is_err(), "the model takes {bad:?} after {last} and {hard_state:?}");
    }
}
