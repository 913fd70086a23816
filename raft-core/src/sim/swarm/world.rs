//! Everything that belongs to one run, and the loop that lets one thing happen after another.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use super::Report;
use super::client::{Answer, Ask, Client, Ticket};
use super::clock::Clock;
use super::mix::Mix;
use super::nemesis::Undo;
use super::network::Network;
use super::once::Once;
use super::operator::Operator;
use super::replica::mixed;
use super::server::{Item, Job, Server};
use super::sometimes::{Counts, Situation};
use super::transfer::Transfer;
use super::watch::{Arrow, Lane, Watch, describe};
use super::workload::Workload;
use crate::io::{Fetch, Input};
use crate::membership::Membership;
use crate::message::{Envelope, Message};
use crate::raft::Raft;
use crate::sim::checker::Checker;
use crate::sim::cluster::{id_of, index_of};
use crate::sim::disk::Disk;
use crate::sim::schedule::{Dice, Schedule};
use crate::types::{Instant, LogId, NodeId, Term, WriteSeq};

/// Something that will happen. Servers and clients are numbered from 0; what concerns a former life of a server concerns nobody.
#[derive(Debug)]
pub(super) enum Event {
    /// The time that a core asked for has come.
    Wake { server: usize, life: u64 },
    /// A server looks into its inbox.
    Pump { server: usize, life: u64 },
    /// A message arrives.
    Message { server: usize, envelope: Envelope, meant: Option<u64>, sent: Instant },
    /// A sync is done.
    Synced { server: usize, life: u64, seq: WriteSeq },
    /// The server hears of it.
    Told { server: usize, life: u64, seq: WriteSeq },
    /// Entries were read back.
    Fetched { server: usize, life: u64, fetch: Fetch },
    /// A snapshot arrives; once for all, its sender hears of it.
    Snapshot { server: usize, transfer: u64, reported: Option<Box<Event>> },
    /// A sender hears how a transfer has ended.
    SnapshotSent { server: usize, life: u64, to: NodeId, epoch: u64, last: Option<LogId> },
    /// A state machine is through with a job.
    Worked { server: usize, life: u64, job: Job },
    /// A request arrives.
    Request { server: usize, ticket: Ticket, ask: Ask },
    /// An answer arrives.
    Answer { ticket: Ticket, answer: Answer },
    /// A client's alarm.
    Client { ticket: Ticket },
    /// The next fault.
    Fault,
    /// The next change of who belongs to the cluster.
    Change,
    /// Those who have just left come back.
    ComeBack,
    /// A server hears that its connection to another was lost or made anew.
    Reset { server: usize, peer: usize },
    /// The end of a fault, unless all faults have ended since.
    Undo { undo: Undo, era: u32 },
    /// All faults end.
    Heal,
    /// Has the cluster recovered?
    Look,
}

/// What is known of the appends on the way from one leader to one follower, for the counters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stream {
    term: Term,
    append: u64,
    rejection: u64,
    refused: u64,
}

/// A run of one seed.
pub(super) struct World<'w, W> {
    pub(super) seed: u64,
    pub(super) mix: Mix,
    pub(super) schedule: Schedule<Event>,
    pub(super) dice: Dice,
    /// For all that has to do with snapshots.
    pub(super) snapshot_dice: Dice,
    /// For when links are noticed to be lost.
    pub(super) reset_dice: Dice,
    pub(super) network: Network,
    pub(super) servers: Vec<Server<W>>,
    pub(super) clients: Vec<Client>,
    pub(super) operator: Operator,
    pub(super) checker: Checker,
    pub(super) once: Once,
    pub(super) counts: Counts,
    pub(super) streams: Vec<Stream>,
    pub(super) candidates: BTreeMap<Term, usize>,
    /// Snapshots on their way, and how many were sent.
    pub(super) transfers: BTreeMap<u64, Transfer<W>>,
    pub(super) sent_snapshots: u64,
    /// What state machines are after each entry, from index 1 on.
    pub(super) states: Vec<u64>,
    pub(super) pumps: u64,
    /// The server at work has told of something out of the ordinary.
    pub(super) shaken: bool,
    /// The last transfer that was begun: in which term, and to whom.
    pub(super) handing_over: Option<(Term, NodeId)>,
    /// The term of a leader that died in its sleep, while nobody else leads.
    pub(super) died_asleep: Option<Term>,
    /// At the end, when the cluster sleeps, its leader dies once more: in which term.
    pub(super) last_death: Option<Term>,
    /// By how much some state machine was behind when all faults ended.
    pub(super) backlog: u64,
    /// Goes up when all faults end.
    pub(super) era: u32,
    /// When all faults ended.
    pub(super) healed: Option<Instant>,
    /// How long some of the clients were still to nap then.
    pub(super) last_nap: Duration,
    /// Clients begin nothing new.
    pub(super) quiet: bool,
    pub(super) over: bool,
    pub(super) failure: Option<String>,
    fingerprint: u64,
    watch: Option<&'w mut dyn Watch>,
    /// What the watch was told of each server.
    lanes: Vec<Lane>,
}

impl<'w, W: Workload> World<'w, W> {
    pub(super) fn new(seed: u64, mix: Mix, watch: Option<&'w mut dyn Watch>) -> Self {
        let dice = |i| [300, 400].map(|stream| Dice::new(seed, stream + i as u64));
        let clients = (0..mix.clients).map(|i| Client::new(i, &mix, dice(i))).collect();
        World {
            seed,
            schedule: Schedule::default(),
            dice: Dice::new(seed, 2),
            snapshot_dice: Dice::new(seed, 4),
            reset_dice: Dice::new(seed, 5),
            network: Network::new(mix.slots(), mix.links, mix.ordered, Dice::new(seed, 1)),
            servers: (0..mix.slots()).map(|i| Server::new(id_of(i), Disk::empty())).collect(),
            clients,
            operator: Operator::new(Dice::new(seed, 3)),
            checker: Checker::default(),
            once: Once::default(),
            counts: Counts::default(),
            streams: vec![Stream::default(); mix.slots()],
            candidates: BTreeMap::new(),
            transfers: BTreeMap::new(),
            sent_snapshots: 0,
            states: Vec::new(),
            pumps: 0,
            shaken: false,
            handing_over: None,
            died_asleep: None,
            last_death: None,
            backlog: 0,
            era: 0,
            healed: None,
            last_nap: Duration::ZERO,
            quiet: false,
            over: false,
            failure: None,
            fingerprint: seed,
            watch,
            lanes: vec![Lane::Down; mix.slots()],
            mix,
        }
    }

    /// Runs to the end, or to the first failure.
    pub(super) fn run(mut self) -> Report {
        /// Many times what the busiest seed takes: whoever gets here goes in circles.
        const MAX_EVENTS: u64 = 10_000_000;
        self.note(format_args!("{:?}", self.mix.clone()));
        (0..self.servers.len()).for_each(|i| self.start(i));
        for i in 0..self.clients.len() {
            let wait = self.dice.time(Duration::ZERO, Duration::from_millis(500));
            self.schedule.after(wait, Event::Client { ticket: self.clients[i].ticket() });
        }
        self.schedule.after(Duration::from_millis(500), Event::Fault);
        self.schedule.after(Duration::from_millis(500), Event::Change);
        self.schedule.after(self.mix.troubled, Event::Heal);
        while self.failure.is_none() && !self.over {
            let Some(event) = self.schedule.pop() else {
                self.failed("the simulation ran dry".into());
                break;
            };
            self.handle(event);
            if self.schedule.popped() > MAX_EVENTS {
                self.failed(format!("still busy after {MAX_EVENTS} events"));
            }
        }
        let unknown = if self.failure.is_none() { self.examine() } else { 0 };
        self.report(unknown)
    }

    fn report(self, unknown: u64) -> Report {
        let tallies = self.clients.iter().map(Client::tally);
        let (completed, in_doubt) = tallies.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        let end = self.schedule.now();
        Report {
            seed: self.seed,
            failure: self.failure,
            simulated: end.since(Instant(0)),
            recovery: self.healed.map(|healed| end.since(healed)),
            completed,
            in_doubt,
            committed: self.checker.committed_commands() as u64,
            events: self.schedule.popped(),
            unknown,
            counts: self.counts,
            fingerprint: self.fingerprint,
        }
    }

    /// Whether anybody is told what happens.
    pub(super) fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    pub(super) fn now(&self) -> Instant {
        self.schedule.now()
    }

    /// Adds a line to the story.
    pub(super) fn note(&mut self, line: fmt::Arguments<'_>) {
        if let Some(watch) = self.watch.as_mut() {
            watch.line(self.schedule.now(), line);
        }
    }

    pub(super) fn failed(&mut self, failure: String) {
        self.note(format_args!("FAILED: {failure}"));
        self.failure.get_or_insert(failure);
    }

    pub(super) fn check(&mut self, result: Result<(), String>) {
        if let Err(failure) = result {
            self.failed(failure);
        }
    }

    /// Adds to what tells this run from others.
    pub(super) fn print(&mut self, word: u64) {
        self.fingerprint = mixed(self.fingerprint, word);
    }

    /// The server that leads the newest term, if any does.
    pub(super) fn leader(&self) -> Option<usize> {
        (0..self.servers.len()).filter(|i| self.servers[*i].leads()).max_by_key(|i| self.servers[*i].term())
    }

    fn handle(&mut self, event: Event) {
        self.print(self.schedule.now().0);
        match event {
            Event::Wake { server, life } => {
                let now = self.now();
                if let Some(it) = self.lives(server, life).filter(|server| server.alarm == Some(now)) {
                    it.alarm = None;
                    if it.is_due(now) { self.ask_for_pump(server) } else { self.set_alarm(server) }
                }
            }
            Event::Pump { server, life } => {
                if let Some(it) = self.lives(server, life) {
                    it.pump_asked = false;
                    self.ask_for_pump_now(server);
                }
            }
            Event::Message { server, envelope, meant, sent } => self.message_arrives(server, envelope, meant, sent),
            Event::Synced { server, life, seq } => self.synced(server, life, seq),
            Event::Told { server, life, seq } => self.put(server, life, Item::Input(Input::Persisted(seq))),
            Event::Fetched { server, life, fetch } => {
                if let Some(it) = self.lives(server, life) {
                    if it.rotten {
                        self.counts.saw(Situation::RotRead);
                        self.crash(server);
                        return self.lose(server);
                    }
                    let entries = it.disk.read(&fetch);
                    self.put(server, life, Item::Input(Input::Fetched { id: fetch.id, entries }));
                }
            }
            Event::Snapshot { server, transfer, reported } => self.snapshot_arrives(server, transfer, reported),
            Event::SnapshotSent { server, life, to, epoch, last } => {
                self.snapshot_sent(server, life, Input::SnapshotSent { to, epoch, last });
            }
            Event::Worked { server, life, job } => self.put(server, life, Item::Worked(job)),
            Event::Request { server, ticket, ask } => self.request_arrives(server, ticket, ask),
            Event::Answer { ticket, answer } => self.client_hears(ticket, answer),
            Event::Client { ticket } => self.client_wakes(ticket),
            Event::Fault => self.next_fault(),
            Event::Change => self.next_change(),
            Event::ComeBack => self.come_back(),
            Event::Reset { server, peer } => self.tell_reset(server, peer),
            Event::Undo { undo, era } => {
                if era == self.era {
                    self.undo(undo);
                }
            }
            Event::Heal => self.heal(),
            Event::Look => self.look(),
        }
    }

    /// The server, if it is still in this life.
    pub(super) fn lives(&mut self, server: usize, life: u64) -> Option<&mut Server<W>> {
        self.servers.get_mut(server).filter(|server| server.is_up() && server.life == life)
    }

    fn put(&mut self, server: usize, life: u64, item: Item) {
        if let Some(it) = self.lives(server, life) {
            it.inbox.push_back(item);
            self.ask_for_pump(server);
        }
    }

    /// A server is to look into its inbox: at once, soon, or when it is no longer frozen.
    pub(super) fn ask_for_pump(&mut self, i: usize) {
        if self.servers[i].pump_asked {
            return;
        }
        if self.mix.loop_delay.is_zero() || self.healed.is_some() {
            return self.ask_for_pump_now(i);
        }
        let delay = self.dice.time(Duration::ZERO, self.mix.loop_delay);
        self.servers[i].pump_asked = true;
        let life = self.servers[i].life;
        self.schedule.after(delay, Event::Pump { server: i, life });
    }

    fn ask_for_pump_now(&mut self, i: usize) {
        let (now, life, until) = (self.now(), self.servers[i].life, self.servers[i].frozen_until);
        if now < until {
            self.servers[i].pump_asked = true;
            self.schedule.at(until, Event::Pump { server: i, life });
        } else {
            self.pump(i);
        }
    }

    /// How long nobody will want anything from the cluster.
    pub(super) fn nap_left(&self) -> Option<Duration> {
        let naps = self.mix.naps.filter(|_| self.healed.is_none())?;
        let since = Duration::from_nanos(self.now().0 % naps.every.as_nanos().max(1) as u64);
        // The run begins with work.
        (since >= naps.every.saturating_sub(naps.length)).then(|| naps.every.saturating_sub(since))
    }

    fn message_arrives(&mut self, i: usize, envelope: Envelope, meant: Option<u64>, sent: Instant) {
        self.show_message(&envelope, sent, true);
        if meant.is_some_and(|identity| identity != self.servers[i].identity) {
            // The server that it was meant for is gone for ever.
            let refused = !self.is_meant(self.checker.membership().1, i);
            self.counts.add(Situation::WipedRefused, u64::from(refused));
            return self.counts.saw(Situation::MeantAnother);
        }
        let Some(raft) = self.servers[i].raft() else { return };
        let (_, membership) = raft.membership();
        self.counts.add(Situation::Stranger, u64::from(!membership.contains(envelope.from)));
        self.note(format_args!("n{} <- {:?}  t{} {:?}", i + 1, envelope.from, envelope.term, envelope.body));
        self.print(envelope.from.0 << 32 ^ envelope.to.0 << 40 ^ envelope.term.0);
        self.count_message(i, &envelope);
        self.arrives(i, Item::Input(Input::Message(envelope)));
    }

    /// Shows a message that has arrived now, or is lost.
    pub(super) fn show_message(&mut self, envelope: &Envelope, sent: Instant, arrives: bool) {
        let now = self.now();
        if let Some(watch) = self.watch.as_mut()
            && let Some((from, to)) = index_of(envelope.from).zip(index_of(envelope.to))
        {
            let (kind, entries) = describe(&envelope.body);
            let arrived = arrives.then_some(now);
            watch.message(&Arrow { from, to, sent, arrived, term: envelope.term, kind, entries });
        }
    }

    /// Shows what a server is, if that has changed.
    pub(super) fn show_server(&mut self, i: usize) {
        let Some(watch) = self.watch.as_mut() else { return };
        let lane = match self.servers[i].raft().map(Raft::status) {
            None => Lane::Down,
            Some(status) => Lane::Up { term: status.current_term, role: status.role, commit: status.commit_index },
        };
        if std::mem::replace(&mut self.lanes[i], lane) != lane {
            watch.server(self.schedule.now(), i, lane);
        }
    }

    /// Something from outside, for which there may be no room.
    pub(super) fn arrives(&mut self, i: usize, item: Item) {
        let server = &mut self.servers[i];
        if server.inbox.len() >= self.mix.inbox {
            return self.counts.saw(Situation::InboxFull);
        }
        server.inbox.push_back(item);
        self.ask_for_pump(i);
    }

    fn count_message(&mut self, to: usize, envelope: &Envelope) {
        let counts = &mut self.counts;
        let follower = match envelope.body {
            Message::AppendEntries(_) | Message::Heartbeat(_) => Some(to),
            _ => index_of(envelope.from),
        };
        let Some(stream) = follower.and_then(|i| self.streams.get_mut(i)) else { return };
        if envelope.term > stream.term {
            *stream = Stream { term: envelope.term, ..Stream::default() };
        }
        let current = envelope.term == stream.term;
        match &envelope.body {
            Message::AppendEntries(_) | Message::Heartbeat(_) if envelope.term < self.servers[to].term() => {
                counts.saw(Situation::StaleTerm);
            }
            Message::AppendEntries(append) if current => {
                if append.seq <= stream.append {
                    counts.saw(Situation::RepeatedAppend);
                }
                stream.append = stream.append.max(append.seq);
            }
            Message::AppendReject(reject) if current => {
                if reject.seq <= stream.rejection {
                    counts.saw(Situation::StaleRejection);
                } else {
                    stream.rejection = reject.seq;
                    stream.refused += 1;
                }
            }
            Message::AppendAck(_) if current => {
                match stream.refused {
                    0 => {}
                    1 => counts.saw(Situation::FoundInOne),
                    _ => counts.saw(Situation::FoundInSeveral),
                }
                stream.refused = 0;
            }
            _ => {}
        }
    }

    /// Starts a server from what its disk and its state machine remember.
    pub(super) fn start(&mut self, i: usize) {
        if self.servers[i].is_up() || self.servers[i].lost {
            return;
        }
        let now = self.now();
        let clock =
            Clock::new(now, self.dice.between(0, 1 << 40), self.mix.clock_rates.get(i).copied().unwrap_or(1000));
        let founded = i < self.mix.servers && self.servers[i].identity == 0;
        let membership = if founded { self.founders() } else { Membership::default() };
        let server = &mut self.servers[i];
        if server.rotten {
            return self.lose(i);
        }
        let priority = self.mix.priorities.get(i).copied().unwrap_or(0);
        let config = server.next_config(&self.mix.config, priority);
        let mut recovered = server.disk.recover(membership);
        recovered.applied = server.flushed.applied.index;
        recovered.restored.clone_from(&server.restored);
        let applied = recovered.applied;
        self.note(format_args!("n{} starts with a log of {} and {applied} applied", i + 1, recovered.last_index));
        match Raft::new(config, recovered, clock.read(now)) {
            Ok(raft) => {
                self.servers[i].begin(raft, clock);
                self.tell_resets_around(i);
                self.checker.started(id_of(i), applied);
                self.pump(i);
            }
            Err(error) => self.failed(format!("n{} cannot start: {error}", i + 1)),
        }
    }

    /// Who belongs to the cluster at first.
    pub(super) fn founders(&self) -> Membership {
        Membership::of_voters((0..self.mix.servers).map(id_of))
    }

    /// A server has found out that its disk cannot be trusted. It will not come back under its name; but where the membership changes, somebody may
    /// empty the disk and start it all the same.
    pub(super) fn lose(&mut self, i: usize) {
        self.note(format_args!("n{} does not trust its disk, and stays out", i + 1));
        self.counts.saw(Situation::DiskLost);
        self.servers[i].lost = true;
        if self.healed.is_none() && self.mix.changes.is_some() {
            self.wipe_perhaps(i);
        }
    }

    /// Kills a server, for whatever reason; whoever does counts the fault, if it is one. Of what was not synced, some may be on its disk nevertheless.
    pub(super) fn crash(&mut self, i: usize) {
        if !self.servers[i].is_up() {
            return;
        }
        if let Some(status) = self.servers[i].raft().map(Raft::status).filter(|status| status.quiesced) {
            self.counts.saw(Situation::DiedAsleep);
            self.died_asleep = self.died_asleep.max(self.servers[i].leads().then_some(status.current_term));
        }
        self.tell_resets_around(i);
        let server = &mut self.servers[i];
        let pending = server.disk.pending().len();
        let kept = self.dice.between(0, pending as u64) as usize;
        let next = server.disk.pending().nth(kept).map(|write| write.entries.len() as u64);
        let torn = next
            .filter(|_| self.mix.tears && self.dice.chance(1, 2))
            .map(|entries| self.dice.between(0, entries) as usize);
        for (occurred, situation) in [
            (true, Situation::Stopped),
            (kept < pending, Situation::WritesLost),
            (kept > 0, Situation::WritesKept),
            (torn.is_some_and(|kept| Some(kept as u64) < next), Situation::WriteTorn),
            (server.synced > server.told, Situation::CrashAfterSync),
        ] {
            self.counts.add(situation, u64::from(occurred));
        }
        server.driver = None;
        server.inbox.clear();
        server.restoring = false;
        let crashed = server.disk.crash_keeping(kept, torn);
        let unheard = server.restored.as_ref().is_some_and(|meta| {
            let log = server.disk.durable();
            meta.last.index > log.start().index && log.id_at(meta.last.index) != Some(meta.last)
        });
        self.counts.add(Situation::InstallUnfinished, u64::from(unheard));
        self.note(format_args!("n{} crashes, {kept} of {pending} writes survive, and of the next {torn:?}", i + 1));
        self.check(crashed);
        self.show_server(i);
        self.checker.stopped(id_of(i));
        if self.servers.iter().all(|server| !server.is_up()) {
            self.counts.saw(Situation::AllCrashed);
        }
    }
}
