//! The stores of all servers, each on a RocksDB of its own, in the place of the simulator's state machines.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use raft_core::sim::cluster::Applier;
use raft_core::sim::disk::Disk;
use raft_core::sim::schedule::Dice;
use raft_core::sim::task::Failure;
use raft_core::{EntryKind, EntryRef, LogId, LogIndex, Membership, NodeId, Segment, SnapshotMeta, Term};
use tempfile::TempDir;

use super::judge::{Counts, Found, Judge};
use crate::kv::{Answer, Command, KvError, KvIdentity, KvOptions, KvStore, Query, Reply};
use crate::state_machine::{Replies, StateMachine};

/// All of them. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stores(Rc<RefCell<Inner>>);

struct Inner {
    machines: Vec<Option<Machine>>,
    judge: Judge,
    dice: Dice,
    max_sessions: usize,
}

struct Machine {
    store: KvStore,
    dir: TempDir,
}

impl Stores {
    pub(super) fn new(servers: usize, max_sessions: usize, dice: Dice) -> Self {
        let machines = (0..servers).map(|_| None).collect();
        Stores(Rc::new(RefCell::new(Inner { machines, judge: Judge::default(), dice, max_sessions })))
    }

    /// Whether a server has applied the entry at `index`, so that it can say what came of a command that was proposed there.
    pub(super) fn has_applied(&self, server: usize, index: LogIndex) -> bool {
        let machine = &self.0.borrow().machines[server];
        machine.as_ref().is_some_and(|machine| machine.store.applied() >= index)
    }

    /// The reply to a command that was proposed as this entry; `None` if another came in its place.
    pub(super) fn reply(&self, index: LogIndex, term: Term, command: &[u8]) -> Option<Reply> {
        self.0.borrow().judge.reply(index.0, term, command)
    }

    /// The number that a revision stands for.
    pub(super) fn number(&self, revision: u64) -> Option<u64> {
        self.0.borrow().judge.number(revision)
    }

    pub(super) fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.0.borrow_mut().judge.counts);
    }

    pub(super) fn counts(&self) -> Counts {
        self.0.borrow().judge.counts
    }

    /// The whole state of each store, data and sessions, and as of which entry.
    pub(super) fn states(&self) -> Vec<(LogIndex, Bytes)> {
        let mut inner = self.0.borrow_mut();
        let machines = inner.machines.iter_mut().flatten();
        machines.map(|machine| (machine.store.applied(), machine.cut())).collect()
    }
}

impl Inner {
    fn machine(&mut self, server: usize) -> &mut Machine {
        self.machines[server].as_mut().expect("it was started")
    }
}

impl Machine {
    fn open(dir: TempDir, max_sessions: usize) -> Machine {
        let identity = KvIdentity { cluster: "simulated".into(), node: NodeId(1) };
        let open = || KvStore::open(dir.path(), &identity, &KvOptions::default());
        let mut store = loop {
            match open() {
                // The thread of the last cut lets go of the database a moment after it has written everything.
                Err(KvError::InUse { .. }) => std::thread::yield_now(),
                store => break store.expect("a directory of our own"),
            }
        };
        store.limit_sessions(max_sessions);
        Machine { store, dir }
    }

    /// What is not flushed is lost, as in a crash.
    fn crash(mut self) -> TempDir {
        self.store.forget_buffer();
        drop(self.store);
        self.dir
    }

    fn get(&mut self, key: &[u8]) -> Found {
        let mut answer = BytesMut::new();
        self.store.query(&Query::Get { key }.encode(), &mut answer).expect("a read");
        match Answer::decode(&answer) {
            Ok(Answer::Value { revision, value }) => {
                Some((revision, u64::from_le_bytes(value.try_into().expect("clients write eight bytes"))))
            }
            _ => None,
        }
    }

    /// A snapshot, and the term that it reaches into in front of it. All of it is on the disk when this returns, so that a run stays a function of its
    /// seed.
    fn cut(&mut self) -> Bytes {
        let mut bytes = self.store.applied_id().term.0.to_be_bytes().to_vec();
        let cut = self.store.cut().expect("a cut").expect("the store has snapshots");
        cut.write_to(&mut bytes).expect("memory takes everything");
        self.store.flush().expect("a flush");
        bytes.into()
    }
}

impl Applier for Stores {
    fn start(&mut self, server: usize) {
        let inner = &mut *self.0.borrow_mut();
        let dir = match inner.machines[server].take() {
            None => tempfile::tempdir().expect("a directory"),
            Some(machine) => {
                inner.judge.counts.reopened += 1;
                machine.crash()
            }
        };
        inner.machines[server] = Some(Machine::open(dir, inner.max_sessions));
    }

    fn apply(&mut self, server: usize, entry: &EntryRef<'_>) -> Result<(), Failure> {
        let inner = &mut *self.0.borrow_mut();
        let machine = inner.machines[server].as_mut().ok_or("it was not started")?;
        // What it had on its disk may reach farther than what the simulator has kept for it.
        if entry.index <= machine.store.applied() {
            return Ok(());
        }
        let key = key_of(entry);
        let before = key.as_ref().and_then(|key| machine.get(key));
        let segment = Segment::pack(entry.index, entry.term, entry.kind, &[entry.payload]).ok_or("too large")?;
        let mut replies = Replies::new(true);
        machine.store.apply(&segment.into(), &mut replies).map_err(|error| error.to_string())?;
        let reply = replies.get(0).map(Reply::decode).transpose().map_err(|error| error.to_string())?;
        if reply.is_some() != (entry.kind == EntryKind::Command) {
            return Err(format!("{entry:?} is answered with {reply:?}"));
        }
        let after = key.as_ref().and_then(|key| machine.get(key));
        if inner.dice.chance(1, 60) {
            machine.store.flush().map_err(|error| error.to_string())?;
        }
        let snapshot = machine.store.restored().map_or(0, |meta| meta.last.index.0);
        inner.judge.applied(server, entry, reply, [before, after], snapshot)
    }

    fn snapshot(&mut self, server: usize, index: LogIndex, _: &Disk) -> Option<Bytes> {
        let inner = &mut *self.0.borrow_mut();
        let wanted = inner.dice.chance(1, 40);
        let machine = inner.machine(server);
        (wanted && machine.store.applied() == index).then(|| machine.cut())
    }

    fn restore(&mut self, server: usize, index: LogIndex, state: &[u8]) -> Result<(), Failure> {
        let inner = &mut *self.0.borrow_mut();
        let (term, mut data) = state.split_first_chunk().ok_or("a snapshot without a term")?;
        let machine = inner.machines[server].as_mut().ok_or("it was not started")?;
        if machine.store.applied() >= index {
            return Ok(());
        }
        let last = LogId::new(Term(u64::from_be_bytes(*term)), index);
        let meta = SnapshotMeta { last, membership: Membership::of_voters([NodeId(1)]) };
        inner.judge.counts.restored += 1;
        machine.store.restore(&meta, &mut data).map_err(|error| error.to_string())
    }
}

/// The key that an entry is about.
fn key_of(entry: &EntryRef<'_>) -> Option<Vec<u8>> {
    let command = Command::decode(entry.payload).ok().filter(|_| entry.kind == EntryKind::Command)?;
    let command =
        if let Command::InSession { command, .. } = command { Command::decode(command).ok()? } else { command };
    command.key_and_value().map(|(key, _)| key.to_vec())
}
