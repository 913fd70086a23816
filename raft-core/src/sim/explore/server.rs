//! One server: its real core and its disk, one step at a time; and what can be said about a step without looking at the other servers.

use std::hash::{DefaultHasher, Hasher};

use super::event::{Arrived, Event, NOW, Sent, Snapshot};
use super::machine::Machine;
use super::settings::Settings;
use crate::config::Config;
use crate::entries::{Entries, EntryKind, Segment};
use crate::io::{
    Fetch, Input, Output, ReadId, ReadOutcome, Recovered, SendSnapshot, SnapshotId, SnapshotMeta, SnapshotReceived,
    Write,
};
use crate::message::{AppendAck, Envelope, HeartbeatReply, Message};
use crate::raft::Raft;
use crate::sim::disk::{Disk, Image};
use crate::status::{Role, Status};
use crate::types::{HardState, Instant, LogId, LogIndex, NodeId, Term, WriteSeq};

/// A server between two steps. It has no output that was not carried out, and its state machine is up to date, or is taking over a snapshot.
#[derive(Clone, Debug)]
pub(super) struct Server {
    raft: Raft,
    disk: Disk,
    machine: Machine,
    /// What the core has asked the disk for.
    fetches: Vec<Fetch>,
    /// How often it has started, where that matters: each life numbers its times awake from another number on.
    life: u64,
}

/// What a step brought about outside the server.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) messages: Vec<Sent>,
    /// It has become the leader of this term.
    pub(super) led: Option<Term>,
    pub(super) read_asked: Option<ReadId>,
    pub(super) reads: Vec<ReadOutcome>,
    /// For the story.
    pub(super) events: Vec<crate::io::Event>,
    pub(super) writes: Vec<Write>,
    pub(super) applied: Vec<LogId>,
}

impl Server {
    /// A server that finds entries of these terms on its disk.
    pub(super) fn new(settings: &Settings, id: NodeId) -> Result<Self, String> {
        let terms = settings.start.get(id.0 as usize - 1).map_or(&[][..], Vec::as_slice);
        let mut entries = Entries::new();
        for (index, term) in (1..).map(LogIndex).zip(terms) {
            let segment = Segment::pack(index, Term(*term), EntryKind::Command, &[b"old"]);
            entries.push(segment.ok_or("an entry cannot be packed")?).map_err(|_| "terms must not fall")?;
        }
        let mut disk = Disk::empty();
        let term = settings.first_term();
        if term > Term(0) {
            // Everybody voted in the last election that there was, so nobody can win it again.
            let won = settings.start.iter().position(|log| log.contains(&term.0)).map(|i| NodeId(i as u64 + 1));
            let hard_state = Some(HardState { current_term: term, voted_for: won });
            disk.accept(Write { seq: WriteSeq(1), hard_state, log_start: None, truncate_from: None, entries })?;
            disk.complete(WriteSeq(1))?;
        }
        let mut machine = Machine::default();
        let forgotten = settings.forgotten.get(id.0 as usize - 1).copied().unwrap_or(0);
        if forgotten > 0 {
            let last = disk.live().id_at(LogIndex(forgotten)).ok_or("what is forgotten was never there")?;
            let meta = SnapshotMeta { last, membership: settings.founders(id) };
            machine.keep(&mut disk, meta.clone())?;
            let (entries, log_start) = (Entries::new(), Some(meta));
            disk.accept(Write { seq: WriteSeq(2), hard_state: None, log_start, truncate_from: None, entries })?;
            disk.complete(WriteSeq(2))?;
        }
        let raft = start(settings, id, &disk, LogIndex::ZERO, 0)?;
        let mut server = Server { raft, disk, machine, fetches: Vec::new(), life: 0 };
        server.forget_time();
        Ok(server)
    }

    /// Everything that can happen to it, but for messages.
    pub(super) fn events(&self, settings: &Settings) -> Vec<Event> {
        let status = self.raft.status();
        let pending = self.disk.pending().len();
        let mut events: Vec<Event> = (1..=pending as u8).map(Event::Persisted).collect();
        let busy = pending > 0;
        if status.role == Role::Leader {
            events.extend([Event::HeartbeatDue, Event::Propose]);
            events.extend((settings.quiesces && !status.quiesced).then_some(Event::QuiesceDue));
            let accepts = |change| self.raft.clone().change_membership(NOW, change).is_ok();
            events.extend(settings.change.as_ref().is_some_and(accepts).then_some(Event::Change));
            events.extend((self.raft.reads_asked() < settings.reads).then_some(Event::Read));
            events.extend(settings.check_quorum.then_some(Event::QuorumLost));
            events.extend((busy && !settings.check_quorum).then_some(Event::WriteStalled));
            events.extend(self.raft.transfers().map(|(to, _)| Event::TransferFails(to.0 as u8)));
        } else {
            if status.current_term < settings.last_term() {
                events.push(Event::ElectionTimeout);
                events.extend(busy.then_some(Event::ElectionTimeoutStalled));
            }
            events.extend(self.raft.protects_leader().then_some(Event::LeaseExpires));
        }
        events.extend((!self.fetches.is_empty()).then_some(Event::Fetched));
        events.extend((status.applied_index > self.machine.last().index).then_some(Event::Compact));
        events.extend(self.machine.is_taking_over().then_some(Event::Restored));
        if settings.quiesces {
            let others = (1..=settings.servers as u8).filter(|other| u64::from(*other) != status.id.0);
            events.extend(others.map(Event::LinkReset));
            events.push(Event::Dies);
        }
        if settings.crashes > 0 {
            events.push(Event::Crash { kept: pending as u8, torn: None });
            for (kept, write) in (0..).zip(self.disk.pending()) {
                events.push(Event::Crash { kept, torn: None });
                let torn = (0..write.entries.len() as u8).map(|torn| Event::Crash { kept, torn: Some(torn) });
                events.extend(torn);
            }
        }
        events
    }

    /// Lets one thing happen, with all that the core wants done at once; `message` is what the event delivers. `None` if it
    /// leads beyond the bounds.
    ///
    /// # Errors
    /// What is wrong with the outcome, in words.
    pub(super) fn step(
        &self,
        settings: &Settings,
        event: Event,
        message: Option<&Sent>,
    ) -> Result<Option<(Server, Effects)>, String> {
        let before = self.raft.status();
        let mut next = self.clone();
        let mut effects = Effects::default();
        let at = event.at(settings);
        match event {
            Event::Crash { kept, torn } => {
                next.disk.crash_keeping(kept.into(), torn.map(usize::from))?;
                next.fetches.clear();
                next.machine.crash();
                let applied = if settings.remembers_applied { before.applied_index } else { LogIndex::ZERO };
                next.life += u64::from(settings.quiesces);
                next.raft = start(settings, before.id, &next.disk, applied, next.life)?;
            }
            Event::Persisted(writes) => {
                let seq = next.disk.pending().nth(usize::from(writes) - 1).map(|write| write.seq);
                let seq = seq.ok_or("no such write")?;
                next.disk.complete(seq)?;
                next.raft.step(at, Input::Persisted(seq));
            }
            Event::Propose => {
                // Which entry of a term and index this is depends on who proposed it: two leaders of a term would differ.
                let command = [before.id.0 as u8];
                next.raft.propose(at, &[command]).map_err(|error| error.to_string())?;
            }
            Event::Change => {
                let change = settings.change.as_ref().ok_or("no such change")?;
                next.raft.change_membership(at, change).map_err(|error| error.to_string())?;
            }
            Event::Read => {
                effects.read_asked = Some(next.raft.read_index(at).map_err(|error| error.to_string())?);
            }
            Event::Fetched => {
                let fetch = next.fetches.remove(0);
                let entries = next.disk.read(&fetch);
                next.raft.step(at, Input::Fetched { id: fetch.id, entries });
            }
            Event::Compact => next.compact()?,
            Event::LinkReset(peer) => next.raft.step(at, Input::LinkReset(NodeId(peer.into()))),
            Event::Dies => return Ok(Some((next, effects))),
            Event::Restored => {
                let id = next.machine.finish(&mut next.disk)?;
                next.raft.step(at, Input::Restored(id));
            }
            Event::TransferFails(to) => {
                let to = NodeId(to.into());
                let epoch = next.raft.transfers().find(|(peer, _)| *peer == to).ok_or("sends it no snapshot")?.1;
                next.raft.step(at, Input::SnapshotSent { to, epoch, last: None });
            }
            Event::Deliver(id) | Event::DeliverLate(id) => {
                next.receive(at, SnapshotId(id.into()), message.ok_or("no such message")?, &mut effects);
            }
            Event::ElectionTimeout
            | Event::ElectionTimeoutStalled
            | Event::LeaseExpires
            | Event::HeartbeatDue
            | Event::QuiesceDue
            | Event::QuorumLost
            | Event::WriteStalled => next.raft.step(at, Input::Wake),
        }
        next.carry_out(settings, before.commit_index, &mut effects)?;
        next.machine.forget_unwanted();
        next.raft.check_invariants();
        next.check(&before, event)?;
        if next.is_beyond(settings) {
            return Ok(None);
        }
        next.forget_time();
        Ok(Some((next, effects)))
    }

    /// What the state machine has applied is kept, and then the log is not needed any more.
    fn compact(&mut self) -> Result<(), String> {
        let index = self.raft.status().applied_index;
        let last = self.disk.live().id_at(index).ok_or("has applied what is not in the log")?;
        let membership = self.raft.membership_at(index).ok_or("does not know who belonged to it")?.clone();
        self.machine.keep(&mut self.disk, SnapshotMeta { last, membership })?;
        self.raft.compact(index);
        Ok(())
    }

    /// Something arrives; a snapshot is to be known as `id`.
    fn receive(&mut self, at: Instant, id: SnapshotId, sent: &Sent, effects: &mut Effects) {
        match sent {
            Sent::Message(message) => self.raft.step(at, Input::Message(message.clone())),
            Sent::Snapshot(snapshot) => {
                let Snapshot { from, to, term, epoch, ref meta, state: _ } = *snapshot;
                self.machine.receive(id, snapshot);
                self.raft
                    .step(at, Input::SnapshotReceived(SnapshotReceived { from, term, epoch, meta: meta.clone(), id }));
                effects.messages.push(Sent::Arrived(Arrived { from: to, to: from, term, epoch, last: meta.last }));
            }
            Sent::Arrived(Arrived { from, epoch, last, .. }) => {
                self.raft.step(at, Input::SnapshotSent { to: *from, epoch: *epoch, last: Some(*last) });
            }
        }
    }

    /// The snapshot that a follower is to get: what the state machine keeps.
    fn snapshot_for(&self, wanted: SendSnapshot) -> Result<Snapshot, String> {
        let SendSnapshot { to, term, epoch, at_least } = wanted;
        let saved = self.disk.saved().filter(|saved| saved.meta.last.index >= at_least);
        let meta =
            saved.ok_or_else(|| format!("is to send a snapshot that it does not have: {wanted:?}"))?.meta.clone();
        Ok(Snapshot { from: self.raft.status().id, to, term, epoch, meta, state: self.machine.kept().to_vec() })
    }

    /// Takes output until there is none. The state machine is done at once; the disk, the network and readers take their time. `commit` was
    /// the commit index before: one write may cut the log and append in its place what is committed.
    fn carry_out(&mut self, settings: &Settings, commit: LogIndex, effects: &mut Effects) -> Result<(), String> {
        loop {
            let output = self.raft.take_output();
            if output.is_empty() {
                return Ok(());
            }
            let Output { messages, write, apply, fetches, reads, events, snapshots, restore } = output;
            let written = write.as_ref().map(|write| write.seq);
            if let Some(write) = write {
                if write.truncate_from.is_some_and(|from| from <= commit) {
                    return Err(format!("truncates committed entries: {write:?}, committed up to {commit}"));
                }
                effects.writes.push(write.clone());
                self.disk.accept(write)?;
            }
            for message in messages {
                self.check_promise(&message)?;
                effects.messages.push(Sent::Message(message));
            }
            for wanted in snapshots {
                effects.messages.push(Sent::Snapshot(self.snapshot_for(wanted)?));
            }
            if let Some(seq) = written.filter(|_| settings.prompt_disks) {
                self.disk.complete(seq)?;
                self.raft.step(NOW, Input::Persisted(seq));
            }
            for event in &events {
                match event {
                    crate::io::Event::Rejected { from, reason } => {
                        return Err(format!("was offended by {from:?}: {reason:?}"));
                    }
                    crate::io::Event::BecameLeader { term } => effects.led = Some(*term),
                    _ => {}
                }
            }
            self.apply(&apply, effects)?;
            if let Some(restore) = restore {
                self.machine.begin(restore, self.raft.status().applied_index)?;
            }
            self.fetches.extend(fetches);
            effects.reads.extend(reads);
            effects.events.extend(events);
        }
    }

    /// Gives entries to the state machine: in order, and as they are on the disk.
    fn apply(&mut self, entries: &Entries, effects: &mut Effects) -> Result<(), String> {
        let mut applied = self.raft.status().applied_index;
        if self.machine.is_taking_over() && !entries.is_empty() {
            return Err(format!("applies entries after {applied} while it takes over a snapshot"));
        }
        for entry in entries.iter() {
            if entry.index != applied.next() {
                return Err(format!("applies {} after {applied}", entry.id()));
            }
            let stored = self.disk.durable().entry(entry.index).and_then(|stored| stored.get(entry.index));
            if stored != Some(entry) {
                return Err(format!("applies {entry:?}, and has {stored:?} on its disk"));
            }
            applied = entry.index;
            effects.applied.push(entry.id());
        }
        if !entries.is_empty() {
            self.raft.step(NOW, Input::Applied(applied));
        }
        Ok(())
    }

    /// What a message promises must be on the disk already.
    fn check_promise(&self, envelope: &Envelope) -> Result<(), String> {
        let durable = self.disk.durable();
        let kept = match &envelope.body {
            Message::RequestVote(request) => {
                self.disk.has_voted(envelope.term, envelope.from)
                    && durable.id_at(request.last_log.index) == Some(request.last_log)
            }
            Message::RequestVoteReply(reply) => !reply.granted || self.disk.has_voted(reply.election, envelope.to),
            // Not any entry at that place, but the one that the server now takes for it: an older one may still have to give way.
            // (What was said in an earlier term was true then, and leaves late.)
            Message::AppendAck(AppendAck { match_index, .. })
            | Message::HeartbeatReply(HeartbeatReply { match_index, .. }) => {
                *match_index <= durable.last().index
                    && (self.disk.live().hard_state().current_term > envelope.term
                        || self.id_at(durable, *match_index) == self.id_at(self.disk.live(), *match_index))
            }
            _ => true,
        };
        if kept { Ok(()) } else { Err(format!("says what its disk does not back: {envelope:?}")) }
    }

    /// What one of its logs has at `index`, or had before that was forgotten.
    fn id_at(&self, log: &Image, index: LogIndex) -> Option<LogId> {
        if index < log.start().index { self.machine.id_at(index) } else { log.id_at(index) }
    }

    fn is_beyond(&self, settings: &Settings) -> bool {
        let status = self.raft.status();
        let (rounds, appends) = self.raft.effort();
        status.current_term > settings.last_term()
            || status.last_log.index.0 > settings.log_length
            || rounds > settings.rounds
            || appends > settings.appends
    }

    /// The core agrees with its disk, and has taken nothing back.
    fn check(&self, before: &Status, event: Event) -> Result<(), String> {
        let now = self.raft.status();
        let (live, durable) = (self.disk.live(), self.disk.durable());
        let hard_state = HardState { current_term: now.current_term, voted_for: now.voted_for };
        if now.last_log != live.last() || hard_state != live.hard_state() {
            return Err(format!("has not written what it has in memory: {now:?}, {live:?}"));
        }
        let end = self.id_at(durable, now.durable_index);
        if end.is_none() || end != self.id_at(live, now.durable_index) {
            return Err(format!("is wrong about what is durable: {now:?}, {durable:?}"));
        }
        self.machine.check(live)?;
        self.machine.check(durable)?;
        let idle = self.fetches.is_empty() && !self.machine.is_taking_over();
        // A snapshot is taken over before the log has been told.
        let appliable = now.commit_index.min(now.durable_index).max(self.machine.last().index);
        if idle && now.applied_index != appliable {
            return Err(format!("does not apply what is committed and durable: {now:?}"));
        }
        if matches!(event, Event::Crash { .. }) {
            return Ok(());
        }
        let revoked =
            now.current_term == before.current_term && before.voted_for.is_some() && now.voted_for != before.voted_for;
        if now.current_term < before.current_term || revoked {
            return Err(format!("takes back its term or vote: {before:?}, then {now:?}"));
        }
        if now.commit_index < before.commit_index {
            return Err(format!("takes back its commit index: {before:?}, then {now:?}"));
        }
        Ok(())
    }

    /// See [`Raft::forget_time`].
    fn forget_time(&mut self) {
        let fell = self.raft.forget_time(NOW);
        self.disk.renumber(fell);
    }

    /// Equal for servers that are in the same state.
    pub(super) fn fingerprint(&self) -> u64 {
        // Names every field, so that a new one has to be thought of here.
        let Server { raft, disk, machine, fetches, life } = self;
        let mut hasher = DefaultHasher::new();
        raft.fingerprint(&mut hasher);
        disk.fingerprint(&mut hasher);
        machine.fingerprint(&mut hasher);
        std::hash::Hash::hash(&(fetches, life), &mut hasher);
        hasher.finish()
    }

    /// How many writes have not been reported as durable.
    pub(super) fn pending(&self) -> usize {
        self.disk.pending().len()
    }

    /// Whether it knows of a change of the membership that is complete.
    pub(super) fn has_changed(&self, settings: &Settings) -> bool {
        let (index, membership) = self.raft.membership();
        let others = membership.voters() != settings.founders(NodeId(1)).voters();
        others && index <= self.raft.commit_index() && !membership.is_joint()
    }

    pub(super) fn status(&self) -> Status {
        self.raft.status()
    }

    /// The entries whose effects its state machine keeps durably.
    pub(super) fn kept(&self) -> &[Segment] {
        self.machine.kept()
    }

    /// The log in memory, and the one that a crash would leave.
    pub(super) fn logs(&self) -> (&Image, &Image) {
        (self.disk.live(), self.disk.durable())
    }
}

fn start(settings: &Settings, id: NodeId, disk: &Disk, applied: LogIndex, life: u64) -> Result<Raft, String> {
    let found = disk.recover(settings.founders(id));
    let found = Recovered { applied: applied.max(found.applied), ..found };
    let config = Config { seed: life, ..settings.config(id) };
    Raft::new(config, found, NOW).map_err(|error| format!("does not start: {error}"))
}
