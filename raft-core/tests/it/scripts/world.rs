//! The cluster that a script drives by hand: real cores, each with its own clock and disk, and a wire on which nothing moves by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_core::sim::checker::Checker;
use raft_core::sim::disk::Disk;
use raft_core::{
    Config, EntryKind, Envelope, HardState, Input, Instant, LogId, LogIndex, Membership, NodeId, Output, Raft, Restore,
    Segment, SendSnapshot, SnapshotId, SnapshotMeta, SnapshotReceived, Status, Term, Write, WriteSeq,
};

use super::show;
use super::wire::Wire;

/// More rounds than any server needs to come to rest after one event.
const MOST_ROUNDS: usize = 100;

/// What goes wrong, in words: a broken promise of Raft, or a command that makes no sense here.
pub(super) type Failure = String;

/// A server of the cluster.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: NodeId,
    /// `None` while it is down.
    pub(super) raft: Option<Raft>,
    pub(super) disk: Disk,
    /// Its own clock: the core compares none but its own times.
    pub(super) now: Instant,
    /// Writes wait for `sync`.
    pub(super) slow_disk: bool,
    /// Which of the servers that have had this id: 0 for the first.
    identity: u64,
    lives: u64,
    /// Its state machine takes its time for snapshots: they wait for `restore`.
    pub(super) slow_machine: bool,
    pub(super) restoring: Option<Restore>,
    snapshots: u64,
}

/// A snapshot on its way: what was asked for, and what is in it.
#[derive(Clone, Debug)]
pub(super) struct Transfer {
    pub(super) from: NodeId,
    pub(super) wanted: SendSnapshot,
    pub(super) meta: SnapshotMeta,
}

/// The cluster.
#[derive(Debug)]
pub(super) struct World {
    config: Config,
    /// Servers from 1 to this one have founded the cluster; the others know of nobody at first.
    founders: u64,
    servers: Vec<Server>,
    pub(super) wire: Wire,
    /// Snapshots on their way.
    pub(super) transfers: Vec<Transfer>,
    checker: Checker,
    /// How many messages have arrived, by sender, receiver and kind.
    pub(super) traffic: BTreeMap<(NodeId, NodeId, &'static str), u64>,
    said: Vec<String>,
    depth: usize,
}

impl World {
    /// A cluster of that many servers that have never run, of which the first few are its founders.
    pub(super) fn new(count: u64, founders: u64, config: Config) -> Result<World, Failure> {
        let server = |id| Server {
            id: NodeId(id),
            raft: None,
            disk: Disk::empty(),
            now: Instant::from_millis(0),
            slow_disk: false,
            identity: 0,
            lives: 0,
            slow_machine: false,
            restoring: None,
            snapshots: 0,
        };
        let mut world = World {
            config,
            founders,
            servers: (1..=count).map(server).collect(),
            wire: Wire::default(),
            transfers: Vec::new(),
            checker: Checker::default(),
            traffic: BTreeMap::new(),
            said: Vec::new(),
            depth: 0,
        };
        for id in world.ids() {
            world.start(id)?;
        }
        Ok(world)
    }

    pub(super) fn ids(&self) -> Vec<NodeId> {
        self.servers.iter().map(|server| server.id).collect()
    }

    /// Adds a line to the answer.
    pub(super) fn say(&mut self, line: impl AsRef<str>) {
        self.said.push("  ".repeat(self.depth) + line.as_ref().trim_end());
    }

    /// The answer so far; the next one begins empty.
    pub(super) fn take_said(&mut self) -> Vec<String> {
        self.depth = 0;
        std::mem::take(&mut self.said)
    }

    pub(super) fn server(&self, id: NodeId) -> Result<&Server, Failure> {
        self.servers.iter().find(|server| server.id == id).ok_or_else(|| format!("there is no server {id}"))
    }

    pub(super) fn server_mut(&mut self, id: NodeId) -> Result<&mut Server, Failure> {
        self.servers.iter_mut().find(|server| server.id == id).ok_or_else(|| format!("there is no server {id}"))
    }

    /// A server's core and time.
    pub(super) fn up(&mut self, id: NodeId) -> Result<(&mut Raft, Instant), Failure> {
        let server = self.server_mut(id)?;
        let now = server.now;
        server.raft.as_mut().map(|raft| (raft, now)).ok_or_else(|| format!("server {id} is down"))
    }

    /// Gives a server that has not done anything yet a past: term, vote, and a log of entries of these terms.
    pub(super) fn give_past(&mut self, id: NodeId, hard_state: HardState, terms: &[u64]) -> Result<(), Failure> {
        let fresh = self.server(id)?.disk.live().hard_state() == HardState::default();
        if !fresh || terms.windows(2).any(|pair| pair[0] > pair[1]) {
            return Err(format!("server {id} has a past already, or its terms descend"));
        }
        if terms.last().is_some_and(|last| *last > hard_state.current_term.0) {
            return Err(format!("an entry of server {id} is newer than its term"));
        }
        let mut write = Write {
            seq: WriteSeq(1),
            hard_state: Some(hard_state),
            log_start: None,
            truncate_from: None,
            entries: raft_core::Entries::new(),
        };
        for (term, index) in terms.iter().zip(1..) {
            let segment = Segment::pack(LogIndex(index), Term(*term), EntryKind::Command, &[""]);
            let pushed = segment.map(|segment| write.entries.push(segment));
            if !matches!(pushed, Some(Ok(()))) {
                return Err(format!("entry {index} of server {id} cannot be"));
            }
        }
        self.accept(id, &write)?;
        self.server_mut(id)?.disk.complete(WriteSeq(1))?;
        self.stop(id)?;
        self.start(id)
    }

    /// A new life, from what is durable.
    pub(super) fn start(&mut self, id: NodeId) -> Result<(), Failure> {
        let founders = self.founders;
        let template = self.config.clone();
        let server = self.server_mut(id)?;
        if server.raft.is_some() {
            return Err(format!("server {id} is up"));
        }
        server.lives += 1;
        let voters = (1..=founders).map(NodeId).filter(|_| id.0 <= founders && server.identity == 0);
        let config = Config { id, identity: server.identity, seed: server.lives << 32, ..template };
        let recovered = server.disk.recover(Membership::of_voters(voters));
        let applied = recovered.applied;
        server.raft = Some(Raft::new(config, recovered, server.now).map_err(|error| error.to_string())?);
        self.checker.started(id, applied);
        self.pump(id)
    }

    /// Another server takes the place of this one, under the same id: its disk is empty, and it knows of nobody. What is on its way to and from the old one is not lost, unless it is dropped.
    pub(super) fn replace(&mut self, id: NodeId) -> Result<(), Failure> {
        if self.server(id)?.raft.is_some() {
            self.stop(id)?;
        }
        let server = self.server_mut(id)?;
        (server.disk, server.identity) = (Disk::empty(), server.identity + 1);
        let identity = server.identity;
        self.checker.replaced(id, identity);
        self.start(id)
    }

    fn stop(&mut self, id: NodeId) -> Result<(), Failure> {
        let server = self.server_mut(id)?;
        server.raft.take().ok_or_else(|| format!("server {id} is down"))?;
        server.restoring = None;
        self.checker.stopped(id);
        Ok(())
    }

    /// Pulls the plug of a server. The oldest `kept` of its pending writes have reached the disk, and of the next one, if `torn`
    /// says so, all but its entries, of which there are only that many.
    pub(super) fn crash(&mut self, id: NodeId, kept: usize, torn: Option<usize>) -> Result<(), Failure> {
        self.stop(id)?;
        self.server_mut(id)?.disk.crash_keeping(kept, torn)
    }

    /// Something happens to a server, and everything that follows from it at that server follows.
    pub(super) fn step(&mut self, id: NodeId, input: Input) -> Result<(), Failure> {
        let (raft, now) = self.up(id)?;
        raft.step(now, input);
        self.pump(id)
    }

    /// A message arrives, if there is anyone to take it.
    pub(super) fn arrive(&mut self, envelope: Envelope) -> Result<(), Failure> {
        let to = envelope.to;
        if self.server(to)?.raft.is_none() {
            self.say(format!("{}: lost, {to} is down", show::arrived(&envelope)));
            return Ok(());
        }
        self.say(show::arrived(&envelope));
        *self.traffic.entry((envelope.from, to, show::kind(&envelope.body))).or_default() += 1;
        self.depth += 1;
        let result = self.step(to, Input::Message(envelope));
        self.depth -= 1;
        result
    }

    /// The disk is done with the oldest `count` of the pending writes.
    pub(super) fn sync(&mut self, id: NodeId, count: usize) -> Result<(), Failure> {
        let disk = &mut self.server_mut(id)?.disk;
        let Some(seq) = disk.pending().take(count).next_back().map(|write| write.seq) else { return Ok(()) };
        disk.complete(seq)?;
        self.step(id, Input::Persisted(seq))
    }

    /// A server's clock goes on by `wait`, and its timers go off on the way.
    pub(super) fn tick(&mut self, id: NodeId, wait: Duration) -> Result<(), Failure> {
        let until = self.server(id)?.now + wait;
        for _ in 0..MOST_ROUNDS {
            let (raft, _) = self.up(id)?;
            let deadline = raft.deadline();
            if deadline > until {
                self.server_mut(id)?.now = until;
                return Ok(());
            }
            self.wake_at(id, deadline)?;
        }
        Err(format!("the timers of server {id} go off all the time"))
    }

    /// A server's clock goes on to `at`, and whatever is due goes off.
    pub(super) fn wake_at(&mut self, id: NodeId, at: Instant) -> Result<(), Failure> {
        let server = self.server_mut(id)?;
        server.now = server.now.max(at);
        self.step(id, Input::Wake)
    }

    /// The driver's loop: takes what the core wants until it wants nothing. A quick disk and the state machine are done at once.
    pub(super) fn pump(&mut self, id: NodeId) -> Result<(), Failure> {
        for _ in 0..MOST_ROUNDS {
            let (raft, _) = self.up(id)?;
            let output = raft.take_output();
            raft.check_invariants();
            let (idle, status) = (output.is_empty(), raft.status());
            let then = self.carry_out(id, output)?;
            self.observe(&status)?;
            for input in then {
                let (raft, now) = self.up(id)?;
                raft.step(now, input);
            }
            if idle {
                return Ok(());
            }
        }
        Err(format!("server {id} does not come to rest"))
    }

    /// Returns what the core is to be told afterwards.
    fn carry_out(&mut self, id: NodeId, output: Output) -> Result<Vec<Input>, Failure> {
        let mut then = Vec::new();
        for event in &output.events {
            if let Some(text) = show::event(id, event) {
                self.say(format!("{id} {text}"));
            }
            self.checker.heard(id, event)?;
        }
        if let Some(write) = output.write {
            self.say(format!("{id} writes {}", show::write(&write)));
            then.extend(self.accept(id, &write)?.map(Input::Persisted));
        }
        for envelope in output.messages {
            self.post(id, envelope)?;
        }
        if !output.apply.is_empty() {
            self.say(format!("{id} applies {}", show::contents(&output.apply)));
        }
        for entry in output.apply.iter() {
            self.checker.applied(id, entry.id())?;
        }
        then.extend(output.apply.last_index().map(Input::Applied));
        for fetch in &output.fetches {
            let entries = self.server(id)?.disk.read(fetch);
            self.say(format!("{id} reads {} back", show::runs_of(&entries)));
            then.push(Input::Fetched { id: fetch.id, entries });
        }
        for wanted in output.snapshots {
            self.send_snapshot(id, wanted)?;
        }
        if let Some(restore) = output.restore {
            let last = restore.meta.last;
            self.server_mut(id)?.restoring = Some(restore);
            if self.server(id)?.slow_machine {
                self.say(format!("{id} is to take over the snapshot up to {last}"));
            } else {
                then.extend(self.take_over(id)?);
            }
        }
        for outcome in output.reads {
            self.say(format!("{id} {}", show::read(outcome)));
        }
        Ok(then)
    }

    /// The state machine keeps what it has, and the log is forgotten up to `up_to`.
    pub(super) fn compact(&mut self, id: NodeId, up_to: LogIndex) -> Result<(), Failure> {
        let (raft, _) = self.up(id)?;
        let applied = raft.applied_index();
        let term = raft.term_at(applied).ok_or("what was applied is not in the log")?;
        let membership = raft.membership_at(applied).ok_or("what was applied is not in the log")?.clone();
        let meta = SnapshotMeta { last: LogId::new(term, applied), membership };
        self.server_mut(id)?.disk.save(meta, bytes::Bytes::new());
        self.checker.saved(id, applied);
        self.up(id)?.0.compact(up_to);
        self.pump(id)
    }

    /// What a state machine keeps is what is sent.
    fn send_snapshot(&mut self, from: NodeId, wanted: SendSnapshot) -> Result<(), Failure> {
        let saved = self.server(from)?.disk.saved().filter(|saved| saved.meta.last.index >= wanted.at_least);
        let meta = saved.ok_or_else(|| format!("{from} has no snapshot up to {}", wanted.at_least))?.meta.clone();
        let transfer = Transfer { from, wanted, meta };
        self.say(format!("{from} -> {} {}", wanted.to, show::snapshot(&transfer)));
        self.transfers.push(transfer);
        Ok(())
    }

    /// A snapshot arrives.
    pub(super) fn snapshot_arrives(&mut self, transfer: &Transfer) -> Result<(), Failure> {
        let Transfer { from, wanted: SendSnapshot { to, term, epoch, .. }, meta } = transfer.clone();
        let server = self.server_mut(to)?;
        server.snapshots += 1;
        let id = SnapshotId(server.snapshots);
        self.say(format!("{to} <- {from} {}", show::snapshot(transfer)));
        self.step(to, Input::SnapshotReceived(SnapshotReceived { from, term, epoch, meta, id }))
    }

    /// The state machine takes over the snapshot that it was handed. Returns what the core is to be told.
    pub(super) fn take_over(&mut self, id: NodeId) -> Result<Option<Input>, Failure> {
        let server = self.server_mut(id)?;
        let Some(Restore { id: snapshot, meta }) = server.restoring.take() else { return Ok(None) };
        let last = meta.last;
        server.disk.restore(meta, bytes::Bytes::new());
        self.say(format!("{id} takes over the snapshot up to {last}"));
        self.checker.restored(id, last)?;
        Ok(Some(Input::Restored(snapshot)))
    }

    /// Hands a write to the disk. Returns its number if it is durable at once.
    fn accept(&mut self, id: NodeId, write: &Write) -> Result<Option<WriteSeq>, Failure> {
        let Some(server) = self.servers.iter_mut().find(|server| server.id == id) else { return Ok(None) };
        server.disk.accept(write.clone())?;
        self.checker.wrote(id, write, &server.disk)?;
        if server.slow_disk {
            return Ok(None);
        }
        server.disk.complete(write.seq)?;
        Ok(Some(write.seq))
    }

    fn post(&mut self, id: NodeId, envelope: Envelope) -> Result<(), Failure> {
        let text = show::sent(&envelope);
        if let Some(server) = self.servers.iter().find(|server| server.id == id) {
            self.checker.said(id, &envelope, &server.disk)?;
        }
        let lost = if self.wire.send(envelope) { "" } else { " (lost)" };
        self.say(format!("{text}{lost}"));
        Ok(())
    }

    fn observe(&mut self, status: &Status) -> Result<(), Failure> {
        let disks = self.servers.iter().map(|server| &server.disk);
        match self.servers.iter().find(|server| server.id == status.id) {
            Some(server) => self.checker.observe(status, &server.disk, disks),
            None => Ok(()),
        }
    }
}
