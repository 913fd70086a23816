//! A cluster in virtual time: servers, disks, the network between them, and what carries out that which their drivers hand out.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::checker::Checker;
use super::disk::Disk;
use super::network::{self, Call, CallKind, Fate, Network};
use super::node::Node;
use super::schedule::{Dice, Schedule};
use super::task::{Failure, TaskId};
use crate::config::Config;
use crate::driver::Job;
use crate::entries::EntryRef;
use crate::io::{
    Fetch, Input, ProposeError, Proposed, Restore, SendSnapshot, SnapshotId, SnapshotMeta, SnapshotReceived,
};
use crate::membership::Membership;
use crate::message::Envelope;
use crate::status::Status;
use crate::types::{Instant, LogId, LogIndex, NodeId, WriteSeq};

/// Something that will happen.
#[derive(Debug)]
pub enum Event {
    /// A script goes on.
    Task(TaskId),
    /// A server asked to be woken.
    Wake {
        /// Which server, from 0.
        server: usize,
        /// In which life.
        life: u64,
    },
    /// A server carries out what its core wants since the last proposals.
    Pump {
        /// Which server, from 0.
        server: usize,
        /// In which life.
        life: u64,
    },
    /// A request reaches its server.
    Request(Call, Envelope),
    /// A reply reaches the caller.
    Reply(Call, Envelope),
    /// A call fails.
    Failed(Call),
    /// A snapshot reaches its receiver.
    Snapshot(Call, Box<SnapshotReceived>, Bytes),
    /// A transfer of a snapshot has come to an end for its sender.
    SnapshotSent(Call, u64, Option<LogId>),
    /// A write is durable.
    Written {
        /// On whose disk, from 0.
        server: usize,
        /// In which life.
        life: u64,
        /// Up to which write.
        seq: WriteSeq,
    },
    /// Entries were read back.
    Read {
        /// By which server, from 0.
        server: usize,
        /// In which life.
        life: u64,
        /// What it asked for.
        fetch: Fetch,
    },
}

/// A state machine, or whoever stands in for those of all servers.
pub trait Applier {
    /// Server `server` (from 0) applies an entry.
    ///
    /// # Errors
    /// What is wrong with that; ends the simulation.
    fn apply(&mut self, server: usize, entry: &EntryRef<'_>) -> Result<(), Failure>;

    /// Server `server` starts: what it kept in memory is gone. [`Applier::restore`] follows if a state was kept on its disk.
    fn start(&mut self, server: usize) {
        let _ = server;
    }

    /// Server `server` has applied the entry at `index`: its state, if it is to be kept now in the place of the log (the lab's `Snapshot`).
    fn snapshot(&mut self, server: usize, index: LogIndex, disk: &Disk) -> Option<Bytes> {
        let _ = (server, index, disk);
        None
    }

    /// Server `server` begins with a state that was kept, or takes one over from the leader: as of the entry at `index`.
    ///
    /// # Errors
    /// What is wrong with that; ends the simulation.
    fn restore(&mut self, server: usize, index: LogIndex, state: &[u8]) -> Result<(), Failure> {
        let _ = (server, index, state);
        Ok(())
    }
}

/// What may differ between clusters.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of servers.
    pub servers: usize,
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Settings of the cores; id and seed are filled in.
    pub config: Config,
    /// A write to disk takes up to this.
    pub slowest_write: Duration,
    /// Cores are told of calls that failed.
    pub tell_failures: bool,
}

/// Where the story of a run goes, line by line.
pub type Tracer = Box<dyn FnMut(fmt::Arguments<'_>)>;

/// A cluster in virtual time. Servers are numbered from 0; server `i` has the id `i + 1`.
pub struct Cluster {
    options: Options,
    membership: Membership,
    schedule: Schedule<Event>,
    nodes: Vec<Node>,
    network: Network,
    checker: Checker,
    applier: Box<dyn Applier>,
    /// Requests that a server is still working on, by callee.
    open: BTreeMap<usize, Vec<(Instant, Call)>>,
    /// Number of the newest call, and of the newest one from each server to each other.
    calls: u64,
    newest_call: BTreeMap<(usize, usize), u64>,
    failure: Option<Failure>,
    tracer: Option<Tracer>,
}

macro_rules! trace {
    ($cluster:expr, $($arg:tt)*) => {
        if let Some(tracer) = $cluster.tracer.as_mut() {
            let millis = $cluster.schedule.now().0 as f64 / 1e6;
            tracer(format_args!("{millis:11.3}  {}", format_args!($($arg)*)));
        }
    };
}

impl Cluster {
    /// A cluster of stopped servers with empty disks on a network without links.
    pub fn new(mut options: Options, applier: Box<dyn Applier>, tracer: Option<Tracer>) -> Self {
        let servers = options.servers;
        options.config.seed = options.seed;
        let disk_dice = |i| Dice::new(options.seed, 100 + i as u64);
        Cluster {
            membership: Membership::of_voters((0..servers).map(id_of)),
            schedule: Schedule::default(),
            nodes: (0..servers).map(|i| Node::new(id_of(i), options.slowest_write, disk_dice(i))).collect(),
            network: Network::new(servers, Dice::new(options.seed, 1)),
            checker: Checker::default(),
            applier,
            open: BTreeMap::new(),
            calls: 0,
            newest_call: BTreeMap::new(),
            failure: None,
            tracer,
            options,
        }
    }

    /// Number of servers.
    pub fn servers(&self) -> usize {
        self.nodes.len()
    }

    /// The present moment.
    pub fn now(&self) -> Instant {
        self.schedule.now()
    }

    /// How many events have happened.
    pub fn events(&self) -> u64 {
        self.schedule.popped()
    }

    /// The first thing that went wrong.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The links, their weather and the counters.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The links, their weather and the counters.
    pub fn network_mut(&mut self) -> &mut Network {
        &mut self.network
    }

    /// What was checked so far.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// Server `i`.
    pub fn node(&self, i: usize) -> &Node {
        &self.nodes[i]
    }

    /// What server `i` says about itself; `None` while it is down.
    pub fn status(&self, i: usize) -> Option<Status> {
        self.nodes[i].raft().map(crate::Raft::status)
    }

    /// Adds a line to the story.
    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        trace!(self, "{line}");
    }

    /// Lets something happen later.
    pub fn schedule_at(&mut self, at: Instant, event: Event) {
        self.schedule.at(at, event);
    }

    /// Moves on to the next event.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        self.schedule.pop()
    }

    /// Starts server `i` from what is durable on its disk; one that runs is crashed first.
    pub fn start(&mut self, i: usize) {
        self.crash(i);
        trace!(self, "n{} starts", i + 1);
        let now = self.now();
        if let Err(error) = self.nodes[i].start(&self.options.config, self.membership.clone(), now) {
            self.failed(format!("n{} cannot start: {error}", i + 1));
        }
        self.applier.start(i);
        if let Some(saved) = self.nodes[i].disk().saved() {
            let index = saved.meta.last.index;
            self.checker.started(id_of(i), index);
            let restored = self.applier.restore(i, index, &saved.data);
            self.check(restored);
        }
        self.pump(i, None);
    }

    /// Kills server `i` and cuts its links. What was not durable is lost.
    pub fn crash(&mut self, i: usize) {
        self.network.disconnect(i);
        if self.nodes[i].raft().is_some() {
            trace!(self, "n{} crashes", i + 1);
            self.nodes[i].crash();
            self.open.remove(&i);
            self.checker.stopped(id_of(i));
        }
    }

    /// Offers a command to server `i`. It is carried out in this very moment, but together with others of the same moment, as
    /// a node that empties its inbox would.
    ///
    /// # Errors
    /// The server does not lead, or is down.
    pub fn propose(&mut self, i: usize, command: &[u8]) -> Result<Proposed, ProposeError> {
        let now = self.now();
        let Some(driver) = self.nodes[i].driver_mut() else { return Err(ProposeError::NotLeader { hint: None }) };
        let proposed = driver.start(now, command.to_vec().into(), ())?;
        trace!(self, "n{} accepts a command of {} bytes: {proposed:?}", i + 1, command.len());
        if let Some(life) = self.nodes[i].ask_for_pump() {
            self.schedule.at(now, Event::Pump { server: i, life });
        }
        Ok(proposed)
    }

    /// Carries an event out.
    pub(crate) fn handle(&mut self, event: Event) {
        match event {
            Event::Task(_) => {}
            Event::Wake { server, life } => {
                if self.nodes[server].is_due(life, self.schedule.now()) {
                    trace!(self, "n{} wakes", server + 1);
                    self.step(server, Input::Wake, None);
                } else {
                    self.set_alarm(server);
                }
            }
            Event::Pump { server, life } => {
                if self.nodes[server].life() == Some(life) {
                    self.pump(server, None);
                }
            }
            Event::Request(call, envelope) => self.request_arrives(call, envelope),
            Event::Reply(call, envelope) => self.reply_arrives(call, envelope),
            Event::Failed(call) => {
                // Of several that fail together only the newest tells: else each would be answered by calls that fail as well, and so on.
                let is_newest = self.newest_call.get(&(call.from, call.to)) == Some(&call.number);
                if is_newest && self.nodes[call.from].life() == Some(call.from_life) {
                    self.step(call.from, Input::LinkReset(id_of(call.to)), None);
                }
            }
            Event::Snapshot(call, received, state) => self.snapshot_arrives(call, *received, state),
            Event::SnapshotSent(call, epoch, last) => {
                if self.nodes[call.from].life() == Some(call.from_life) {
                    self.step(call.from, Input::SnapshotSent { to: id_of(call.to), epoch, last }, None);
                }
            }
            Event::Written { server, life, seq } => {
                if self.nodes[server].life() == Some(life) {
                    match self.nodes[server].disk_mut().complete(seq) {
                        Ok(true) => self.step(server, Input::Persisted(seq), None),
                        Ok(false) => {}
                        Err(error) => self.failed(error),
                    }
                }
            }
            Event::Read { server, life, fetch } => {
                if self.nodes[server].life() == Some(life) {
                    let entries = self.nodes[server].disk().read(&fetch);
                    self.step(server, Input::Fetched { id: fetch.id, entries }, None);
                }
            }
        }
    }

    fn request_arrives(&mut self, call: Call, envelope: Envelope) {
        self.checker.delivered(&envelope);
        if self.nodes[call.to].life() != Some(call.to_life) {
            self.call_fails(call, Duration::ZERO);
            return;
        }
        self.network.dispatched();
        trace!(self, "n{} <- n{}  t{} {:?}", call.to + 1, call.from + 1, envelope.term, envelope.body);
        self.step(call.to, Input::Message(envelope), Some(call));
    }

    fn reply_arrives(&mut self, call: Call, envelope: Envelope) {
        if self.nodes[call.from].life() != Some(call.from_life) {
            return;
        }
        self.checker.delivered(&envelope);
        self.network.replied(network::encoded_len(&envelope));
        trace!(self, "n{} <= n{}  t{} {:?}", call.from + 1, call.to + 1, envelope.term, envelope.body);
        self.step(call.from, Input::Message(envelope), None);
    }

    fn step(&mut self, i: usize, input: Input, call: Option<Call>) {
        let now = self.now();
        if let Some(driver) = self.nodes[i].driver_mut() {
            driver.step(now, input);
            self.pump(i, call);
        }
    }

    /// Carries out what the driver of server `i` hands out, in the order save, send, apply, until there is nothing more.
    /// `call` is the request that the server is handling.
    fn pump(&mut self, i: usize, mut call: Option<Call>) {
        self.carry_out(i, &mut call);
        self.observe(i);
        if self.compact(i) {
            self.carry_out(i, &mut call);
            self.observe(i);
        }
        if let Some(call) = call.filter(|call| call.kind != CallKind::Nothing) {
            self.open.entry(i).or_default().push((self.schedule.now(), call));
        }
        self.set_alarm(i);
    }

    /// The service has its state on disk, so the log may go. Whether there was anything to forget.
    fn compact(&mut self, i: usize) -> bool {
        let saved = self.nodes[i].disk().saved().map_or(LogIndex::ZERO, |saved| saved.meta.last.index);
        let Some(driver) = self.nodes[i].driver_mut() else { return false };
        let start = driver.core().log_start();
        driver.compact(saved);
        driver.core().log_start() != start
    }

    fn carry_out(&mut self, i: usize, call: &mut Option<Call>) {
        while self.failure.is_none() {
            let now = self.now();
            let Some(outbox) = self.nodes[i].turn(now) else { break };
            for event in &outbox.events {
                trace!(self, "n{} tells: {event:?}", i + 1);
                let heard = self.checker.heard(id_of(i), event);
                self.check(heard);
            }
            let persisted = outbox.writes.into_iter().filter_map(|write| self.save(i, write)).last();
            for envelope in outbox.messages {
                let said = self.checker.said(id_of(i), &envelope, self.nodes[i].disk());
                self.check(said);
                self.send(i, envelope, call);
            }
            let done: Vec<Input> = outbox.jobs.into_iter().filter_map(|job| self.work(i, job)).collect();
            for wanted in outbox.snapshots {
                self.send_snapshot(i, wanted);
            }
            for fetch in outbox.fetches {
                if let Some(life) = self.nodes[i].life() {
                    self.schedule.after(Duration::from_micros(200), Event::Read { server: i, life, fetch });
                }
            }
            if let Some(driver) = self.nodes[i].driver_mut() {
                if let Some(seq) = persisted {
                    driver.step(now, Input::Persisted(seq));
                }
                done.into_iter().for_each(|input| driver.step(now, input));
            }
        }
    }

    /// The state machine does a job, at once. Returns what the core must hear.
    fn work(&mut self, i: usize, job: Job<(), ()>) -> Option<Input> {
        match job {
            Job::Query(_) => None,
            Job::Apply { entries, .. } => {
                for entry in entries.iter() {
                    let applied = self.checker.applied(id_of(i), entry.id());
                    let applied = applied.and_then(|()| self.applier.apply(i, &entry));
                    self.check(applied);
                    if let Some(state) = self.applier.snapshot(i, entry.index, self.nodes[i].disk()) {
                        trace!(self, "n{} saves its state as of {}", i + 1, entry.id());
                        let meta = SnapshotMeta { last: entry.id(), membership: self.membership.clone() };
                        self.nodes[i].disk_mut().save(meta, state);
                        self.checker.saved(id_of(i), entry.index);
                    }
                }
                entries.last_index().map(Input::Applied)
            }
            Job::Restore(Restore { id, meta }) => {
                trace!(self, "n{} takes over a snapshot up to {}", i + 1, meta.last);
                let Some(state) = self.nodes[i].take_snapshot(id) else {
                    self.failed(format!("n{} is to take over {id:?}, which it does not have", i + 1));
                    return None;
                };
                let restored = self.checker.restored(id_of(i), meta.last);
                let restored = restored.and_then(|()| self.applier.restore(i, meta.last.index, &state));
                self.check(restored);
                self.nodes[i].disk_mut().restore(meta, state);
                Some(Input::Restored(id))
            }
        }
    }

    /// Sends what the service has kept, as a call of its own. A transport gives up on a link that is silent sooner than calls do here.
    fn send_snapshot(&mut self, i: usize, wanted: SendSnapshot) {
        const PATIENCE: Duration = Duration::from_millis(300);
        let (Some(to), Some(from_life)) = (index_of(wanted.to), self.nodes[i].life()) else { return };
        let to_life = self.nodes[to].life();
        let weather = self.network.weather();
        let (to_life, kind, number) = (to_life.unwrap_or(0), CallKind::Snapshot, self.calls);
        let call = Call { from: i, to, from_life, to_life, kind, number, weather };
        let SendSnapshot { term, epoch, at_least, .. } = wanted;
        let Some(saved) = self.nodes[i].disk().saved().filter(|saved| saved.meta.last.index >= at_least).cloned()
        else {
            return self.failed(format!("n{} has forgotten its log up to {at_least}, and has no snapshot", i + 1));
        };
        let fate = self.network.request(i, to, self.nodes[to].life().is_some(), saved.data.len());
        trace!(self, "n{} -> n{}  t{term} snapshot up to {}: {fate:?}", i + 1, to + 1, saved.meta.last);
        match fate {
            Fate::Arrives(delay) => {
                // Its id is its receiver's to give.
                let id = SnapshotId(0);
                let received = SnapshotReceived { from: id_of(i), term, epoch, meta: saved.meta, id };
                self.schedule.after(delay, Event::Snapshot(call, Box::new(received), saved.data));
            }
            Fate::Lost(delay) => self.schedule.after(delay.min(PATIENCE), Event::SnapshotSent(call, epoch, None)),
        }
    }

    fn snapshot_arrives(&mut self, call: Call, mut received: SnapshotReceived, state: Bytes) {
        let (epoch, last) = (received.epoch, received.meta.last);
        if self.nodes[call.to].life() != Some(call.to_life) {
            return self.schedule.after(Duration::ZERO, Event::SnapshotSent(call, epoch, None));
        }
        self.network.dispatched();
        trace!(self, "n{} <- n{}  t{} snapshot up to {last}", call.to + 1, call.from + 1, received.term);
        received.id = self.nodes[call.to].keep_snapshot(state);
        self.step(call.to, Input::SnapshotReceived(received), None);
        let (delay, last) = match self.network.reply(&call) {
            Fate::Arrives(delay) => (delay, Some(last)),
            Fate::Lost(delay) => (delay, None),
        };
        self.schedule.after(delay, Event::SnapshotSent(call, epoch, last));
    }

    /// Hands a write to the disk. Returns its number if it is durable at once.
    fn save(&mut self, i: usize, write: crate::io::Write) -> Option<WriteSeq> {
        let now = self.now();
        let (seq, copy) = (write.seq, write.clone());
        let node = &mut self.nodes[i];
        let life = node.life()?;
        let done = node.disk_mut().submit(now, write);
        let wrote = self.checker.wrote(id_of(i), &copy, self.nodes[i].disk());
        self.check(wrote);
        match done {
            Ok(at) if at <= now => {
                let completed = self.nodes[i].disk_mut().complete(seq).map(|_| ());
                self.check(completed);
                Some(seq)
            }
            Ok(at) => {
                self.schedule.at(at, Event::Written { server: i, life, seq });
                None
            }
            Err(error) => {
                self.failed(format!("n{}: {error}", i + 1));
                None
            }
        }
    }

    /// Sends a message: as the reply to the request that is being handled, to one that is still open, or as a call of its own.
    fn send(&mut self, i: usize, envelope: Envelope, call: &mut Option<Call>) {
        let Some(to) = index_of(envelope.to).filter(|to| *to < self.nodes.len() && *to != i) else {
            self.failed(format!("n{} writes to {:?}", i + 1, envelope.to));
            return;
        };
        if let Some(kind) = network::answers(&envelope.body) {
            let handled = call.take_if(|call| call.from == to);
            if let Some(call) = handled.or_else(|| self.take_open(i, to, kind)) {
                match self.network.reply(&call) {
                    Fate::Arrives(delay) => self.schedule.after(delay, Event::Reply(call, envelope)),
                    Fate::Lost(delay) => self.call_fails(call, delay),
                }
                return;
            }
        }
        let Some(from_life) = self.nodes[i].life() else { return };
        let to_life = self.nodes[to].life();
        let bytes = network::encoded_len(&envelope);
        let kind = network::asks(&envelope.body);
        let weather = self.network.weather();
        self.calls += 1;
        self.newest_call.insert((i, to), self.calls);
        let call = Call { from: i, to, from_life, to_life: to_life.unwrap_or(0), kind, number: self.calls, weather };
        let fate = self.network.request(i, to, to_life.is_some(), bytes);
        self.checker.posted(&envelope, matches!(fate, Fate::Arrives(_)));
        match fate {
            Fate::Arrives(delay) => self.schedule.after(delay, Event::Request(call, envelope)),
            Fate::Lost(delay) => {
                trace!(self, "n{} -> n{}  lost: t{} {:?}", i + 1, to + 1, envelope.term, envelope.body);
                self.call_fails(call, delay);
            }
        }
    }

    fn call_fails(&mut self, call: Call, delay: Duration) {
        if self.options.tell_failures {
            self.schedule.after(delay, Event::Failed(call));
        }
    }

    /// The oldest request from `from` that server `i` has not yet answered. A server that takes long over an answer waits for its
    /// disk, so requests older than that were left unanswered on purpose.
    fn take_open(&mut self, i: usize, from: usize, kind: CallKind) -> Option<Call> {
        const PATIENCE: Duration = Duration::from_millis(100);
        let now = self.schedule.now();
        let open = self.open.get_mut(&i)?;
        open.retain(|(since, _)| now.since(*since) < PATIENCE);
        let found = open.iter().position(|(_, call)| call.from == from && call.kind == kind)?;
        Some(open.remove(found).1)
    }

    fn observe(&mut self, i: usize) {
        if let Some(raft) = self.nodes[i].raft() {
            let disks = self.nodes.iter().map(Node::disk);
            let seen = self.checker.observe(&raft.status(), self.nodes[i].disk(), disks);
            self.check(seen);
        }
    }

    fn set_alarm(&mut self, i: usize) {
        if let Some((at, life)) = self.nodes[i].next_alarm() {
            self.schedule.at(at, Event::Wake { server: i, life });
        }
    }

    fn check(&mut self, result: Result<(), Failure>) {
        if let Err(failure) = result {
            self.failed(failure);
        }
    }

    fn failed(&mut self, failure: Failure) {
        trace!(self, "FAILED: {failure}");
        self.failure.get_or_insert(failure);
    }
}

/// Id of server `i`.
pub fn id_of(i: usize) -> NodeId {
    NodeId(i as u64 + 1)
}

/// Number of the server with this id.
pub fn index_of(id: NodeId) -> Option<usize> {
    usize::try_from(id.0).ok()?.checked_sub(1)
}
