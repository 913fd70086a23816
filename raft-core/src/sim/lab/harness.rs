//! What the tests' scripts are written with: the course's harness, on virtual time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Outcome;
use crate::entries::{EntryKind, EntryRef};
use crate::sim::cluster::{Applier, Cluster};
use crate::sim::disk::Disk;
use crate::sim::network::Traffic;
use crate::sim::schedule::Dice;
use crate::sim::task::{Failure, Joining, Sim};
use crate::status::Role;
use crate::types::{Instant, LogIndex, Term};

/// A command: a number as eight bytes, or a long string.
pub(super) type Command = Vec<u8>;

/// What a server said to `Start`, when it accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Started {
    pub(super) index: u64,
    pub(super) term: Term,
}

/// How a wait for an index ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// Enough servers have applied this.
    Value(Command),
    /// Some server is in a later term.
    MovedOn,
}

/// The time in which the course expects an election to be over.
pub(super) const ELECTION: u64 = 1000;

/// What every server has applied, over all its lives.
pub(super) struct Record {
    servers: Vec<BTreeMap<u64, Command>>,
    /// What was applied first at each index: nobody may ever apply anything else there.
    chosen: BTreeMap<u64, Command>,
    /// Servers keep a snapshot now and then.
    snapshots: bool,
}

impl Record {
    pub(super) fn new(servers: usize, snapshots: bool) -> Self {
        Record { servers: vec![BTreeMap::new(); servers], chosen: BTreeMap::new(), snapshots }
    }

    pub(super) fn highest(&self) -> u64 {
        self.chosen.last_key_value().map_or(0, |(index, _)| *index)
    }
}

impl Applier for Rc<RefCell<Record>> {
    fn apply(&mut self, server: usize, entry: &EntryRef<'_>) -> Result<(), Failure> {
        let index = entry.index.0;
        let mut record = self.borrow_mut();
        if entry.kind != EntryKind::Command && !record.snapshots {
            return Err(format!("{entry:?} takes an index that belongs to a command"));
        }
        let chosen = record.chosen.entry(index).or_insert_with(|| entry.payload.to_vec());
        if chosen != entry.payload {
            return Err(format!("n{} applies another command at {index} than was applied before", server + 1));
        }
        if index > 1 && !record.servers[server].contains_key(&(index - 1)) {
            return Err(format!("n{} applies {index} before {}", server + 1, index - 1));
        }
        record.servers[server].insert(index, entry.payload.to_vec());
        Ok(())
    }

    /// After every tenth command, as in the course: all values so far.
    fn snapshot(&mut self, server: usize, index: LogIndex, _: &Disk) -> Option<Bytes> {
        let record = self.borrow();
        if !record.snapshots || !(index.0 + 1).is_multiple_of(SNAPSHOT_INTERVAL) {
            return None;
        }
        let mut state = BytesMut::new();
        for value in (1..=index.0).map(|index| &record.servers[server][&index]) {
            state.put_u32(value.len() as u32);
            state.put_slice(value);
        }
        Some(state.freeze())
    }

    /// What the snapshot says replaces what the server has applied; and every value in it must be the one that was applied there first.
    fn restore(&mut self, server: usize, index: LogIndex, mut state: &[u8]) -> Result<(), Failure> {
        let mut record = self.borrow_mut();
        let mut values = BTreeMap::new();
        for at in 1..=index.0 {
            let len = state.try_get_u32().map_err(|_| format!("a snapshot up to {index} ends before {at}"))?;
            let value =
                state.split_off(..len as usize).ok_or_else(|| format!("entry {at} of a snapshot is cut off"))?;
            if record.chosen.get(&at).is_none_or(|chosen| chosen != value) {
                return Err(format!("n{} gets a snapshot with another command at {at} than was applied", server + 1));
            }
            values.insert(at, value.to_vec());
        }
        if !state.is_empty() {
            return Err(format!("a snapshot up to {index} goes on"));
        }
        record.servers[server] = values;
        Ok(())
    }
}

/// The course's `SnapShotInterval`.
const SNAPSHOT_INTERVAL: u64 = 10;

/// The harness of one running test.
#[derive(Clone)]
pub struct Lab {
    sim: Sim,
    record: Rc<RefCell<Record>>,
    dice: Rc<RefCell<Dice>>,
}

impl Lab {
    pub(super) fn new(sim: Sim, record: Rc<RefCell<Record>>, dice: Dice) -> Self {
        Lab { sim, record, dice: Rc::new(RefCell::new(dice)) }
    }

    // ---- the cluster ----

    pub(super) fn servers(&self) -> usize {
        self.cluster(|cluster| cluster.servers())
    }

    fn cluster<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        self.sim.with(act)
    }

    pub(super) fn disconnect(&self, i: usize) {
        self.note(&format!("script: disconnect n{}", i + 1));
        self.cluster(|cluster| cluster.network_mut().disconnect(i));
    }

    pub(super) fn connect(&self, i: usize) {
        self.note(&format!("script: connect n{}", i + 1));
        self.cluster(|cluster| cluster.network_mut().connect(i));
    }

    pub(super) fn crash(&self, i: usize) {
        self.note(&format!("script: crash n{}", i + 1));
        self.cluster(|cluster| cluster.crash(i));
    }

    /// Starts a server, or restarts it; it stays isolated until it is connected.
    pub(super) fn start(&self, i: usize) {
        self.note(&format!("script: start n{}", i + 1));
        self.cluster(|cluster| cluster.start(i));
    }

    /// Which life a server is in; `None` while it is down.
    pub(super) fn life(&self, i: usize) -> Option<u64> {
        self.cluster(|cluster| cluster.node(i).life())
    }

    /// Links all servers with one another.
    pub(super) fn link_all(&self) {
        self.partition(&vec![true; self.servers()]);
    }

    /// Links those servers with one another that are on the same side, and cuts all other links.
    pub(super) fn partition(&self, sides: &[bool]) {
        self.note(&format!("script: partition {sides:?}"));
        self.cluster(|cluster| cluster.network_mut().partition(sides));
    }

    pub(super) fn is_alive(&self, i: usize) -> bool {
        self.cluster(|cluster| cluster.node(i).raft().is_some())
    }

    pub(super) fn is_connected(&self, i: usize) -> bool {
        self.cluster(|cluster| cluster.network().is_connected(i))
    }

    pub(super) fn is_reliable(&self) -> bool {
        self.cluster(|cluster| cluster.network().weather().reliable)
    }

    pub(super) fn set_reliable(&self, reliable: bool) {
        self.cluster(|cluster| cluster.network_mut().weather_mut().reliable = reliable);
    }

    pub(super) fn set_long_reordering(&self, on: bool) {
        self.cluster(|cluster| cluster.network_mut().weather_mut().long_reordering = on);
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.cluster(|cluster| cluster.network().traffic())
    }

    /// The most round trips that any leader needed to find where a follower's log parts from its own.
    pub(super) fn most_round_trips(&self) -> u64 {
        self.cluster(|cluster| cluster.checker().most_round_trips())
    }

    /// The most bytes that any server has saved of its term, vote and log, up or down: the course's `LogSize`.
    pub(super) fn log_size(&self) -> usize {
        self.cluster(|cluster| (0..cluster.servers()).map(|i| cluster.node(i).disk().durable().byte_len()).max())
            .unwrap_or(0)
    }

    /// Term of a server and whether it leads; `None` while it is down.
    pub(super) fn state(&self, i: usize) -> Option<(Term, bool)> {
        let status = self.cluster(|cluster| cluster.status(i))?;
        Some((status.current_term, status.role == Role::Leader))
    }

    /// The lab's `Start`.
    pub(super) fn propose(&self, i: usize, command: &[u8]) -> Option<Started> {
        let proposed = self.cluster(|cluster| cluster.propose(i, command)).ok()?;
        Some(Started { index: proposed.first.0, term: proposed.term })
    }

    // ---- time, chance and tasks ----

    pub(super) fn now(&self) -> Instant {
        self.sim.now()
    }

    pub(super) async fn sleep(&self, millis: u64) {
        self.sim.sleep(Duration::from_millis(millis)).await;
    }

    pub(super) async fn sleep_micros(&self, micros: u64) {
        self.sim.sleep(Duration::from_micros(micros)).await;
    }

    pub(super) fn spawn<T: 'static>(&self, task: impl Future<Output = T> + 'static) -> Joining<T> {
        self.sim.spawn(task)
    }

    pub(super) fn between(&self, low: u64, high: u64) -> u64 {
        self.dice.borrow_mut().between(low, high)
    }

    pub(super) fn chance(&self, of: u64, outof: u64) -> bool {
        self.dice.borrow_mut().chance(of, outof)
    }

    pub(super) fn pick_server(&self) -> usize {
        let servers = self.servers();
        self.dice.borrow_mut().pick(servers)
    }

    pub(super) fn random_command(&self) -> Command {
        number(self.dice.borrow_mut().number() >> 1)
    }

    pub(super) fn random_string(&self, len: usize) -> Command {
        let mut dice = self.dice.borrow_mut();
        (0..len).map(|_| b'a' + dice.between(0, 25) as u8).collect()
    }

    pub(super) fn note(&self, line: &str) {
        self.cluster(|cluster| cluster.note(format_args!("{line}")));
    }

    // ---- what the course's harness asks and demands ----

    /// Waits for exactly one leader among the connected, and names it.
    pub(super) async fn check_one_leader(&self) -> Result<usize, Failure> {
        for _ in 0..10 {
            let pause = self.between(450, 549);
            self.sleep(pause).await;
            let mut leaders: BTreeMap<Term, usize> = BTreeMap::new();
            for i in (0..self.servers()).filter(|i| self.is_connected(*i)) {
                if let Some((term, true)) = self.state(i)
                    && let Some(other) = leaders.insert(term, i)
                {
                    return Err(format!("n{} and n{} both lead term {term}", other + 1, i + 1));
                }
            }
            if let Some((term, leader)) = leaders.last_key_value() {
                self.note(&format!("script: n{} leads term {term}", leader + 1));
                return Ok(*leader);
            }
        }
        Err("no leader after ten looks".into())
    }

    /// All connected servers are in the same term.
    pub(super) fn check_terms(&self) -> Result<Term, Failure> {
        let mut terms = (0..self.servers())
            .filter(|i| self.is_connected(*i))
            .filter_map(|i| self.state(i))
            .map(|(term, _)| term)
            .collect::<Vec<_>>();
        terms.dedup();
        match terms[..] {
            [term] => Ok(term),
            _ => Err(format!("servers disagree on the term: {terms:?}")),
        }
    }

    /// No connected server leads.
    pub(super) fn check_no_leader(&self) -> Outcome {
        let leads = |i: &usize| self.is_connected(*i) && self.state(*i).is_some_and(|(_, leads)| leads);
        match (0..self.servers()).find(leads) {
            Some(leader) => Err(format!("n{} leads without a majority", leader + 1)),
            None => Ok(()),
        }
    }

    /// How many servers have applied something at `index`, and what. (That it is the same on all was checked on the way.)
    pub(super) fn committed(&self, index: u64) -> (usize, Option<Command>) {
        let record = self.record.borrow();
        let mut values = record.servers.iter().filter_map(|server| server.get(&index));
        let first = values.next().cloned();
        (usize::from(first.is_some()) + values.count(), first)
    }

    /// Nobody has applied anything at `index`.
    pub(super) fn check_not_committed(&self, index: u64) -> Outcome {
        match self.committed(index) {
            (0, _) => Ok(()),
            (count, _) => Err(format!("{count} servers have applied {index}, and there was no majority for it")),
        }
    }

    /// Gets a command agreed on by at least `servers` servers, and says at which index. With `retry` it is proposed again when
    /// that takes more than two seconds, and so may be committed twice.
    pub(super) async fn one(&self, command: &[u8], servers: usize, retry: bool) -> Result<u64, Failure> {
        let begin = self.now();
        let mut server = 0;
        while self.now().since(begin) < Duration::from_secs(10) {
            let mut started = None;
            for _ in 0..self.servers() {
                server = (server + 1) % self.servers();
                if self.is_connected(server) && self.is_alive(server) {
                    started = self.propose(server, command);
                    if started.is_some() {
                        break;
                    }
                }
            }
            let Some(Started { index, .. }) = started else {
                self.sleep(50).await;
                continue;
            };
            let proposed = self.now();
            while self.now().since(proposed) < Duration::from_secs(2) {
                let (count, value) = self.committed(index);
                if count > 0 && count >= servers && value.as_deref() == Some(command) {
                    return Ok(index);
                }
                self.sleep(20).await;
            }
            if !retry {
                return Err(format!("no agreement on {} at {index} within 2 s", show(command)));
            }
        }
        Err(format!("no agreement on {} within 10 s", show(command)))
    }

    /// Waits until at least `servers` servers have applied `index`, or until one is beyond `start_term`.
    pub(super) async fn wait(&self, index: u64, servers: usize, start_term: Option<Term>) -> Result<Waited, Failure> {
        let mut pause = 10;
        for _ in 0..30 {
            if self.committed(index).0 >= servers {
                break;
            }
            self.sleep(pause).await;
            if pause < 1280 {
                pause *= 2;
            }
            let later = |i: usize| self.state(i).is_some_and(|(term, _)| start_term.is_some_and(|start| term > start));
            if (0..self.servers()).any(later) {
                return Ok(Waited::MovedOn);
            }
        }
        match self.committed(index) {
            (count, Some(value)) if count >= servers => Ok(Waited::Value(value)),
            (count, _) => Err(format!("only {count} of {servers} servers applied {index}")),
        }
    }
}

/// A number as a command.
pub(super) fn number(value: u64) -> Command {
    value.to_le_bytes().to_vec()
}

fn show(command: &[u8]) -> String {
    match command.try_into() {
        Ok(bytes) => format!("command {}", u64::from_le_bytes(bytes)),
        Err(_) => format!("a command of {} bytes", command.len()),
    }
}

/// Fails a script unless `holds`.
pub(super) fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}
