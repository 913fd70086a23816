//! A small cluster in which the bytes decide everything that may happen: which message arrives next, twice or never, whose clock
//! runs, which write completes, who crashes and what of its disk is left. All servers are honest, so all of Raft's promises
//! must hold at every step. If the bytes say so, everything is well in the end: then the cluster must serve.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::Choices;
use crate::change::MembershipChange;
use crate::config::Config;
use crate::io::{
    Fetch, Input, Output, ReadId, ReadOutcome, Recovered, Restore, SendSnapshot, SnapshotId, SnapshotMeta,
    SnapshotReceived,
};
use crate::membership::Membership;
use crate::message::Envelope;
use crate::raft::Raft;
use crate::sim::checker::{Checker, Violation};
use crate::sim::disk::Disk;
use crate::types::{Instant, LogId, LogIndex, NodeId, Term};

/// Messages that may be on their way at a time; more are lost, oldest first.
const MOST_MESSAGES: usize = 64;
/// Snapshots that may be on their way at a time.
const MOST_SNAPSHOTS: usize = 8;
/// Rounds of a healed cluster within which it must have elected, converged and committed.
const FINALE_ROUNDS: usize = 400;

/// What happened in a run: tells whether the inputs lead anywhere.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reached {
    /// Elections won before the finale.
    pub elected: usize,
    /// Entries committed before the finale.
    pub committed: u64,
    /// Logs cut.
    pub truncated: usize,
    /// Crashes that lost a write.
    pub lost_writes: usize,
    /// Reads answered.
    pub reads: usize,
    /// Entries read back from disk.
    pub fetched: usize,
    /// Changes of the membership begun.
    pub changes: usize,
    /// Snapshots taken over.
    pub restored: usize,
    /// Groups that went to sleep, as their leaders know it.
    pub slept: usize,
}

/// Runs the cluster that `data` describes.
pub fn cluster(data: &[u8]) -> Reached {
    let mut choices = Choices::new(data);
    // The finale takes longer than all that comes before it.
    let ends_well = choices.chance(1, 8);
    let mut world = World::new(&mut choices);
    let mut outcome = world.run(&mut choices);
    let reached = world.reached();
    if ends_well {
        outcome = outcome.and_then(|()| world.finale());
    }
    match outcome {
        Ok(()) => reached,
        Err(violation) => panic!("{violation}\n{world:#?}"),
    }
}

/// One server. Each has a clock of its own: nothing that must hold depends on how they compare.
#[derive(Debug)]
struct Server {
    raft: Option<Raft>,
    disk: Disk,
    now: Instant,
    lives: u64,
    /// Handed to the state machine and not reported as applied.
    applying: Option<LogIndex>,
    fetches: Vec<Fetch>,
    /// Reads in progress, with the index that was committed somewhere when they were asked.
    reads: BTreeMap<ReadId, LogIndex>,
    /// The snapshot that its state machine is to take over, and how many have come.
    restoring: Option<Restore>,
    snapshots: u64,
    /// Output is not taken, so that inputs gather.
    holding: bool,
}

/// A snapshot on its way.
#[derive(Clone, Debug)]
struct Transfer {
    from: usize,
    wanted: SendSnapshot,
    meta: SnapshotMeta,
}

#[derive(Debug)]
struct World {
    config: Config,
    founders: Membership,
    servers: Vec<Server>,
    network: Vec<Envelope>,
    transfers: Vec<Transfer>,
    checker: Checker,
    /// Highest index that any server has known as committed.
    committed: LogIndex,
    reached: Reached,
}

impl World {
    fn new(choices: &mut Choices<'_>) -> Self {
        let count = choices.one_of([3, 1, 2, 3, 4, 5]);
        let (small, large) = (choices.between(1, 120) as usize, 1 << 20);
        let mut limit = || if choices.flip() { small } else { large };
        let mut config = Config {
            max_append_bytes: limit(),
            max_inflight_bytes: limit(),
            max_uncommitted_bytes: limit(),
            max_unapplied_bytes: limit(),
            max_cached_bytes: limit(),
            max_inflight_appends: limit().min(8),
            max_reject_runs: limit().min(3),
            pre_vote: choices.flip(),
            check_quorum: choices.flip(),
            no_op_on_election: choices.flip(),
            election_timeout: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(100),
            seed: choices.between(0, 255),
            ..Config::new(NodeId(1))
        };
        config.quiesce_after = (!(config.seed / 4).is_multiple_of(3)).then_some(Duration::from_millis(200));
        // Each in its own: a moment at which news are due is one at which nobody falls asleep.
        config.commit_notification_delay = Duration::from_millis(if config.quiesce_after.is_none() { 2 } else { 0 });
        let founders = match config.seed % 4 {
            2 => 1,
            3 => count.max(2) - 1,
            _ => count,
        };
        let server = |_| Server {
            raft: None,
            disk: Disk::empty(),
            now: Instant::default(),
            lives: 0,
            applying: None,
            fetches: Vec::new(),
            reads: BTreeMap::new(),
            restoring: None,
            snapshots: 0,
            holding: false,
        };
        World {
            config,
            // Now and then the last one, or all but the first, come later.
            founders: Membership::of_voters((1..=founders).map(NodeId)),
            servers: (0..count).map(server).collect(),
            network: Vec::new(),
            transfers: Vec::new(),
            checker: Checker::default(),
            committed: LogIndex::ZERO,
            reached: Reached::default(),
        }
    }

    fn run(&mut self, choices: &mut Choices<'_>) -> Result<(), Violation> {
        (0..self.servers.len()).try_for_each(|i| self.start(i))?;
        while !choices.is_over() {
            self.act(choices)?;
        }
        Ok(())
    }

    fn reached(&self) -> Reached {
        Reached { committed: self.committed.0, ..self.reached }
    }

    /// One thing happens.
    fn act(&mut self, choices: &mut Choices<'_>) -> Result<(), Violation> {
        while self.transfers.len() > MOST_SNAPSHOTS {
            self.end_transfer(0, false, true)?;
        }
        let action = choices.between(0, 31);
        let i = choices.pick(self.servers.len());
        match action {
            0..=5 => self.deliver(choices.pick(self.network.len()), choices.chance(1, 8)),
            6..=8 => self.deliver_all_to(i),
            9 => {
                self.lose(choices.pick(self.network.len()));
                Ok(())
            }
            10 => {
                self.lose_all_between(i, choices.pick(self.servers.len()));
                Ok(())
            }
            11..=13 => self.time_out(i),
            14 => self.pass(i, choices.between(0, 250)),
            15..=17 => self.complete(i, choices.between(1, 4) as usize),
            18 => self.applied(i, choices.flip()),
            19 => self.answer_fetch(i, choices.pick(3), choices.between(1, 255) as usize),
            20..=22 => self.propose(i, choices.between(1, 3), choices.between(0, 60)),
            23 => self.propose_to_leader(choices.between(0, 60)),
            24 => self.read(i),
            25 => self.crash(i, choices.pick(4), choices.flip().then(|| choices.pick(3))),
            26 => self.start(i),
            27 => self.link_reset(i, choices.pick(self.servers.len())),
            28 => self.hold(i, choices.flip()),
            29..=30 => self.settle(choices.pick(1 << self.servers.len()), 12),
            // What happens seldom shares a number, so that it does not keep the rest from happening.
            _ => match choices.between(0, 11) {
                0 => self.wake(i),
                1 => self.transfer(i, choices.pick(self.servers.len() + 1)),
                2..=4 => self.change_membership(i, choices),
                5..=6 => self.compact(i, choices.between(0, 3)),
                7 => self.end_transfer(choices.pick(self.transfers.len()), false, true),
                8..=9 => {
                    let (n, heard) = (choices.pick(self.transfers.len()), !choices.chance(1, 4));
                    self.end_transfer(n, true, heard)
                }
                _ => self.take_over(i, !choices.chance(1, 4)),
            },
        }
    }

    /// Whoever leads, or server `i`, is asked to change who belongs to the cluster. What came of it is for the checker to judge.
    fn change_membership(&mut self, i: usize, choices: &mut Choices<'_>) -> Result<(), Violation> {
        let i = self.leader().unwrap_or(i);
        let mut change = MembershipChange { forced: choices.flip(), ..MembershipChange::new() };
        for id in (0..self.servers.len()).map(id_of) {
            match choices.between(0, 4) {
                0 | 1 => change.voters.push(id),
                2 => change.learners.push(id),
                3 => change.removed.push(id),
                _ => {}
            }
        }
        let server = &mut self.servers[i];
        let Some(raft) = &mut server.raft else { return Ok(()) };
        // Removing those who are no members is refused, and would make most changes pointless.
        let now = raft.membership().1.clone();
        change.removed.retain(|id| now.contains(*id));
        let joining = change.voters.iter().chain(&change.learners).filter(|id| !now.contains(**id));
        change.identities = joining.map(|id| (*id, 0)).collect();
        self.reached.changes += usize::from(raft.change_membership(server.now, &change).is_ok());
        self.pump(i)
    }

    /// The state machine keeps what it has, and the log is forgotten, but for the last `keep` entries.
    fn compact(&mut self, i: usize, keep: u64) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        let Some(raft) = &mut server.raft else { return Ok(()) };
        let applied = raft.applied_index();
        let Some(term) = raft.term_at(applied).filter(|_| server.restoring.is_none()) else { return Ok(()) };
        let Some(membership) = raft.membership_at(applied).cloned() else { return Ok(()) };
        server.disk.save(SnapshotMeta { last: LogId::new(term, applied), membership }, Bytes::new());
        self.checker.saved(id_of(i), applied);
        raft.compact(LogIndex(applied - LogIndex(keep)));
        self.pump(i)
    }

    /// A snapshot arrives or not. Its sender hears that, or hears nothing yet: then it may arrive again, or the sender may hear later that it failed.
    fn end_transfer(&mut self, n: usize, arrives: bool, heard: bool) -> Result<(), Violation> {
        let Some(Transfer { from, wanted, meta }) = self.transfers.get(n).cloned() else { return Ok(()) };
        let SendSnapshot { to, term, epoch, .. } = wanted;
        if heard {
            self.transfers.remove(n);
        }
        let receiver = index_of(to).filter(|to| arrives && self.servers[*to].raft.is_some());
        if let Some(to) = receiver {
            self.servers[to].snapshots += 1;
            let (from, id) = (id_of(from), SnapshotId(self.servers[to].snapshots));
            let meta = meta.clone();
            self.step(to, Input::SnapshotReceived(SnapshotReceived { from, term, epoch, meta, id }))?;
        }
        if !heard {
            return Ok(());
        }
        let last = receiver.map(|_| meta.last);
        self.step(from, Input::SnapshotSent { to, epoch, last })
    }

    /// A state machine is done with the snapshot that it was handed; the core hears of it, or there is a crash.
    fn take_over(&mut self, i: usize, heard: bool) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        let Some(Restore { id, meta }) = server.restoring.take() else { return Ok(()) };
        let last = meta.last;
        server.disk.restore(meta, Bytes::new());
        server.applying = None;
        self.checker.restored(id_of(i), last)?;
        self.reached.restored += 1;
        if heard { self.step(i, Input::Restored(id)) } else { self.crash(i, 0, None) }
    }

    fn step(&mut self, i: usize, input: Input) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        if let Some(raft) = &mut server.raft {
            raft.step(server.now, input);
        }
        self.pump(i)
    }

    /// Carries out what the core of server `i` wants.
    fn pump(&mut self, i: usize) -> Result<(), Violation> {
        if self.servers[i].holding {
            return Ok(());
        }
        let Some(raft) = &mut self.servers[i].raft else { return Ok(()) };
        let output = raft.take_output();
        self.carry_out(i, output)?;
        self.observe(i)
    }

    fn carry_out(&mut self, i: usize, output: Output) -> Result<(), Violation> {
        let id = id_of(i);
        for event in &output.events {
            self.checker.heard(id, event)?;
            self.reached.elected += usize::from(matches!(event, crate::Event::BecameLeader { .. }));
            let sent = |envelope: &Envelope| matches!(envelope.body, crate::Message::Quiesce(_));
            let slept = matches!(event, crate::Event::Quiesced { .. }) && output.messages.iter().any(sent);
            self.reached.slept += usize::from(slept);
            self.reached.truncated += usize::from(matches!(event, crate::Event::Truncated { .. }));
        }
        if let Some(write) = output.write {
            self.servers[i].disk.accept(write.clone())?;
            self.checker.wrote(id, &write, &self.servers[i].disk)?;
        }
        for envelope in output.messages {
            self.checker.said(id, &envelope, &self.servers[i].disk)?;
            if index_of(envelope.to).is_none_or(|to| to >= self.servers.len() || to == i) || envelope.from != id {
                return Err(format!("{id:?} sends {envelope:?}"));
            }
            self.network.push(envelope);
        }
        let excess = self.network.len().saturating_sub(MOST_MESSAGES);
        self.network.drain(..excess);
        for entry in output.apply.iter() {
            self.checker.applied(id, entry.id())?;
        }
        let server = &mut self.servers[i];
        server.applying = output.apply.last_index().or(server.applying);
        server.fetches.extend(output.fetches);
        server.restoring = output.restore.or(server.restoring.take());
        self.send_snapshots(i, output.snapshots)?;
        for outcome in output.reads {
            self.answered(i, outcome)?;
        }
        Ok(())
    }

    /// What a state machine keeps is what is sent. That a server was told of no end of a transfer before it crashed does not matter any more.
    fn send_snapshots(&mut self, from: usize, wanted: Vec<SendSnapshot>) -> Result<(), Violation> {
        for wanted in wanted {
            let saved = self.servers[from].disk.saved().filter(|saved| saved.meta.last.index >= wanted.at_least);
            let Some(saved) = saved else { return Err(format!("{:?} has no snapshot: {wanted:?}", id_of(from))) };
            let open =
                |other: &Transfer| (other.from, other.wanted.to, other.wanted.term) == (from, wanted.to, wanted.term);
            if self.transfers.iter().any(open) {
                return Err(format!("{:?} asks twice: {wanted:?}", id_of(from)));
            }
            self.transfers.push(Transfer { from, wanted, meta: saved.meta.clone() });
        }
        Ok(())
    }

    /// A read must see what was committed anywhere when it was asked (linearizability), and is answered once.
    fn answered(&mut self, i: usize, outcome: ReadOutcome) -> Result<(), Violation> {
        let (ReadOutcome::Ready { id, .. } | ReadOutcome::Lost { id }) = outcome;
        let Some(committed) = self.servers[i].reads.remove(&id) else {
            return Err(format!("{:?} answers a read that nobody asked: {outcome:?}", id_of(i)));
        };
        match outcome {
            ReadOutcome::Ready { index, .. } if index < committed => {
                Err(format!("stale read at {:?}: {outcome:?}, and {committed} was committed before", id_of(i)))
            }
            ReadOutcome::Ready { .. } => {
                self.reached.reads += 1;
                Ok(())
            }
            ReadOutcome::Lost { .. } => Ok(()),
        }
    }

    fn observe(&mut self, i: usize) -> Result<(), Violation> {
        let server = &self.servers[i];
        if let Some(raft) = &server.raft {
            raft.check_invariants();
            let status = raft.status();
            self.checker.observe(&status, &server.disk, self.servers.iter().map(|server| &server.disk))?;
            self.committed = self.committed.max(status.commit_index);
        }
        Ok(())
    }

    fn deliver(&mut self, n: usize, again: bool) -> Result<(), Violation> {
        let Some(envelope) = self.network.get(n).cloned() else { return Ok(()) };
        if !again {
            self.network.remove(n);
        }
        self.arrive(envelope)
    }

    fn arrive(&mut self, envelope: Envelope) -> Result<(), Violation> {
        match index_of(envelope.to) {
            Some(to) => self.step(to, Input::Message(envelope)),
            None => Ok(()),
        }
    }

    fn deliver_all_to(&mut self, i: usize) -> Result<(), Violation> {
        let messages: Vec<Envelope> = self.network.extract_if(.., |envelope| envelope.to == id_of(i)).collect();
        messages.into_iter().try_for_each(|envelope| self.arrive(envelope))
    }

    fn lose(&mut self, n: usize) {
        if n < self.network.len() {
            self.network.remove(n);
        }
    }

    fn lose_all_between(&mut self, i: usize, k: usize) {
        self.network.retain(|envelope| (envelope.from, envelope.to) != (id_of(i), id_of(k)));
    }

    fn wake(&mut self, i: usize) -> Result<(), Violation> {
        self.step(i, Input::Wake)
    }

    fn time_out(&mut self, i: usize) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        if let Some(raft) = server.raft.as_ref().filter(|raft| raft.deadline() < Instant::NEVER) {
            server.now = server.now.max(raft.deadline());
        }
        self.wake(i)
    }

    fn pass(&mut self, i: usize, millis: u64) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        server.now = server.now + Duration::from_millis(millis);
        self.wake(i)
    }

    /// The disk finishes the oldest `count` writes; the core hears of the last one.
    fn complete(&mut self, i: usize, count: usize) -> Result<(), Violation> {
        let disk = &mut self.servers[i].disk;
        let Some(seq) = disk.pending().take(count).next_back().map(|write| write.seq) else { return Ok(()) };
        disk.complete(seq)?;
        self.step(i, Input::Persisted(seq))
    }

    /// The state machine has applied what it got, or only a part.
    fn applied(&mut self, i: usize, part: bool) -> Result<(), Violation> {
        let Some(last) = self.servers[i].applying else { return Ok(()) };
        if part && last > LogIndex(1) {
            return self.step(i, Input::Applied(last.prev()));
        }
        self.servers[i].applying = None;
        self.step(i, Input::Applied(last))
    }

    /// The disk answers a fetch, from the log as it stands now.
    fn answer_fetch(&mut self, i: usize, n: usize, max_bytes: usize) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        if server.fetches.is_empty() {
            return Ok(());
        }
        let fetch = server.fetches.remove(n.min(server.fetches.len() - 1));
        let entries = server.disk.read(&Fetch { max_bytes: max_bytes.min(fetch.max_bytes), ..fetch });
        self.reached.fetched += entries.len();
        self.step(i, Input::Fetched { id: fetch.id, entries })
    }

    fn propose(&mut self, i: usize, count: u64, size: u64) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        let Some(raft) = &mut server.raft else { return Ok(()) };
        let before = raft.status().last_log.index;
        let commands: Vec<Vec<u8>> = (0..count).map(|n| vec![n as u8; size as usize]).collect();
        if let Ok(proposed) = raft.propose(server.now, &commands)
            && (proposed.first != before.next() || proposed.last != before + count)
        {
            return Err(format!("{:?} takes {count} commands after {before} as {proposed:?}", id_of(i)));
        }
        self.pump(i)
    }

    fn propose_to_leader(&mut self, size: u64) -> Result<(), Violation> {
        match self.leader() {
            Some(leader) => self.propose(leader, 1, size),
            None => Ok(()),
        }
    }

    fn read(&mut self, i: usize) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        if let Some(raft) = &mut server.raft
            && let Ok(id) = raft.read_index(server.now)
        {
            server.reads.insert(id, self.committed);
        }
        self.pump(i)
    }

    /// Server `i` is asked to hand over, to one of the others or to whom it thinks best.
    fn transfer(&mut self, i: usize, to: usize) -> Result<(), Violation> {
        let to = (to < self.servers.len()).then(|| id_of(to));
        let server = &mut self.servers[i];
        if let Some(raft) = &mut server.raft
            && let Ok(target) = raft.transfer_leadership(server.now, to)
            && (target == id_of(i) || to.is_some_and(|to| to != target))
        {
            return Err(format!("{:?} hands over to {target:?}, asked for {to:?}", id_of(i)));
        }
        self.pump(i)
    }

    /// Pulls the plug: of the writes under way the first `kept` are on the disk, and of the next one `torn` entries.
    fn crash(&mut self, i: usize, kept: usize, torn: Option<usize>) -> Result<(), Violation> {
        let server = &mut self.servers[i];
        if server.raft.take().is_some() {
            self.reached.lost_writes += usize::from(server.disk.pending().len() > kept);
            server.disk.crash_keeping(kept, torn)?;
            server.applying = None;
            server.fetches.clear();
            server.restoring = None;
            self.transfers.retain(|transfer| transfer.from != i);
            server.reads.clear();
            self.checker.stopped(id_of(i));
        }
        Ok(())
    }

    fn start(&mut self, i: usize) -> Result<(), Violation> {
        if self.servers[i].raft.is_some() {
            return Ok(());
        }
        let server = &mut self.servers[i];
        server.lives += 1;
        server.holding = false;
        let seed = self.config.seed.wrapping_add(server.lives << 32);
        let config = Config { id: id_of(i), seed, ..self.config.clone() };
        let founders = if self.founders.contains(id_of(i)) { self.founders.clone() } else { Membership::default() };
        let recovered: Recovered = server.disk.recover(founders);
        self.checker.started(id_of(i), recovered.applied);
        match Raft::new(config, recovered, server.now) {
            Ok(raft) => server.raft = Some(raft),
            Err(error) => return Err(format!("{:?} cannot start from its own disk: {error}", id_of(i))),
        }
        self.pump(i)
    }

    fn link_reset(&mut self, i: usize, peer: usize) -> Result<(), Violation> {
        self.step(i, Input::LinkReset(id_of(peer)))
    }

    fn hold(&mut self, i: usize, holding: bool) -> Result<(), Violation> {
        self.servers[i].holding = holding;
        self.pump(i)
    }

    /// Everything goes well for some rounds among the servers in the bit set `mask` (all, if it is empty).
    fn settle(&mut self, mask: usize, rounds: usize) -> Result<(), Violation> {
        let everyone = (1 << self.servers.len()) - 1;
        let mask = if mask == 0 { everyone } else { mask };
        let inside = |i: usize| mask >> i & 1 == 1;
        for _ in 0..rounds {
            for i in (0..self.servers.len()).filter(|&i| inside(i)) {
                self.hold(i, false)?;
                self.complete(i, usize::MAX)?;
                self.answer_fetch(i, 0, usize::MAX)?;
                self.applied(i, false)?;
                self.take_over(i, true)?;
            }
            for n in (0..self.transfers.len()).rev() {
                let Some(Transfer { from, wanted, .. }) = self.transfers.get(n) else { continue };
                if inside(*from) && index_of(wanted.to).is_some_and(inside) {
                    self.end_transfer(n, true, true)?;
                }
            }
            let arrives = |envelope: &mut Envelope| {
                [envelope.from, envelope.to].into_iter().all(|id| index_of(id).is_some_and(inside))
            };
            let messages: Vec<Envelope> = self.network.extract_if(.., arrives).collect();
            if messages.is_empty() {
                break;
            }
            messages.into_iter().try_for_each(|envelope| self.arrive(envelope))?;
        }
        Ok(())
    }

    /// A server that leads the newest term.
    fn leader(&self) -> Option<usize> {
        let rafts = self.servers.iter().enumerate().filter_map(|(i, server)| Some((i, server.raft.as_ref()?)));
        rafts.filter(|(_, raft)| raft.is_leader()).max_by_key(|(_, raft)| raft.current_term()).map(|(i, _)| i)
    }

    /// Everybody is up, nothing is lost any more, and the clocks agree: there must be a leader soon, a command must be committed, and
    /// everybody must know.
    fn finale(&mut self) -> Result<(), Violation> {
        let now = self.servers.iter().map(|server| server.now).max().unwrap_or_default();
        self.servers.iter_mut().for_each(|server| server.now = now);
        (0..self.servers.len()).try_for_each(|i| self.start(i))?;
        let pairs = (0..self.servers.len()).flat_map(|i| (0..self.servers.len()).map(move |k| (i, k)));
        // The transport's duty where groups sleep.
        let told = pairs.filter(|(i, k)| i != k && self.config.quiesce_after.is_some());
        told.collect::<Vec<_>>().into_iter().try_for_each(|(i, k)| self.link_reset(i, k))?;
        let mut asked: Option<(Term, LogIndex)> = None;
        for _ in 0..FINALE_ROUNDS {
            self.settle(0, 12)?;
            self.dismiss()?;
            if let Some((term, index)) = asked
                && self.everybody_knows(term, index)
            {
                return Ok(());
            }
            if let Some(i) = self.leader()
                && let Some(raft) = &mut self.servers[i].raft
                && asked.is_none_or(|(term, _)| term < raft.current_term())
                // Busy: a heartbeat will find out what the entries in progress wait for.
                && let Ok(proposed) = raft.propose(now, &[b"the last word"])
            {
                asked = Some((proposed.term, proposed.last));
                self.pump(i)?;
                continue;
            }
            let deadlines = self.servers.iter().filter_map(|server| server.raft.as_ref().map(Raft::deadline));
            let Some(next) = deadlines.min() else { break };
            for i in 0..self.servers.len() {
                self.servers[i].now = self.servers[i].now.max(next);
                self.wake(i)?;
            }
        }
        Err("no leader, or no progress, although everything is well".to_owned())
    }

    /// Those who do not belong to the cluster any more are switched off, unless they alone know of something newer, or something newer, which may yet be
    /// committed, counts them in.
    fn dismiss(&mut self) -> Result<(), Violation> {
        let (index, members) = self.checker.membership();
        if index == LogIndex::ZERO || members.is_joint() {
            return Ok(());
        }
        let newer = |server: &Server| server.disk.live().memberships().into_iter().filter(|(at, _)| *at > index);
        let needed = |id| self.servers.iter().flat_map(newer).any(|(_, membership)| membership.contains(id));
        let gone = |i: &usize| {
            let id = id_of(*i);
            !members.contains(id) && !needed(id) && newer(&self.servers[*i]).next().is_none()
        };
        let gone: Vec<usize> = (0..self.servers.len()).filter(gone).collect();
        gone.into_iter().try_for_each(|i| self.crash(i, usize::MAX, None))
    }

    fn everybody_knows(&self, term: Term, index: LogIndex) -> bool {
        let Some(members) = self.leader().and_then(|i| self.servers[i].raft.as_ref()).map(Raft::status) else {
            return false;
        };
        let settled = !members.membership.is_joint() && members.membership_index <= members.commit_index;
        let rafts = self.servers.iter().filter_map(|server| server.raft.as_ref());
        settled
            && rafts.map(Raft::status).filter(|status| members.membership.contains(status.id)).all(|status| {
                let raft = index_of(status.id).and_then(|i| self.servers[i].raft.as_ref());
                raft.is_some_and(|raft| raft.term_at(index).is_none_or(|found| found == term))
                    && status.applied_index >= index
            })
            && self.servers.iter().filter(|server| server.raft.as_ref().is_some_and(Raft::is_leader)).count() == 1
    }
}

fn id_of(i: usize) -> NodeId {
    NodeId(i as u64 + 1)
}

fn index_of(id: NodeId) -> Option<usize> {
    (id.0 as usize).checked_sub(1)
}
