//! One server as a whole: its core, disk, clock, inbox and state machine, and the clients who wait for it.

use std::collections::{BTreeMap, VecDeque};

use super::client::{Answer, Request, Ticket};
use super::clock::Clock;
use super::machine::Machine;
use crate::config::Config;
use crate::entries::{Entries, EntryKind};
use crate::io::{Input, ProposeError, ReadError, ReadId, ReadOutcome};
use crate::raft::Raft;
use crate::sim::cluster::index_of;
use crate::sim::disk::Disk;
use crate::types::{Instant, LogIndex, NodeId, Term, WriteSeq};

/// What waits in a server's inbox.
#[derive(Debug)]
pub(super) enum Item {
    /// For the core.
    Input(Input),
    /// Entries that the state machine is through with.
    Applied(Entries),
    /// From a client.
    Request(Ticket, Request),
}

/// A server that can crash and come back.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) id: NodeId,
    pub(super) raft: Option<Raft>,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// Number of the present life, or of the last one.
    pub(super) life: u64,
    pub(super) inbox: VecDeque<Item>,
    /// It will look into its inbox anyway.
    pub(super) pump_asked: bool,
    /// When the alarm that is set goes off, in true time.
    pub(super) alarm: Option<Instant>,
    pub(super) frozen_until: Instant,
    pub(super) stalled_until: Instant,
    pub(super) sync_fails: bool,
    /// The sync that is under way covers the writes up to this one.
    pub(super) syncing: Option<WriteSeq>,
    /// Writes that were synced, and those of them that the core was told of.
    pub(super) synced: WriteSeq,
    pub(super) told: WriteSeq,
    /// When the state machine is through with what it has.
    pub(super) applying_until: Instant,
    /// The last entry that was handed to the state machine.
    pub(super) handed: LogIndex,
    pub(super) machine: Machine,
    /// What the state machine would remember after a crash.
    pub(super) flushed: Machine,
    waiting: Waiting,
}

/// Clients who wait for an answer.
#[derive(Debug, Default)]
struct Waiting {
    changes: BTreeMap<LogIndex, (Term, Ticket)>,
    /// Reads that are not confirmed.
    reads: BTreeMap<ReadId, Vec<(Ticket, u8)>>,
    /// Reads that only wait for the state machine.
    confirmed: Vec<(LogIndex, Ticket, u8)>,
}

/// Answers for clients.
pub(super) type Answers = Vec<(Ticket, Answer)>;

impl Server {
    pub(super) fn new(id: NodeId, disk: Disk) -> Self {
        Server {
            id,
            raft: None,
            disk,
            clock: Clock::new(Instant(0), 0, 1000),
            life: 0,
            inbox: VecDeque::new(),
            pump_asked: false,
            alarm: None,
            frozen_until: Instant(0),
            stalled_until: Instant(0),
            sync_fails: false,
            syncing: None,
            synced: WriteSeq(0),
            told: WriteSeq(0),
            applying_until: Instant(0),
            handed: LogIndex::ZERO,
            machine: Machine::default(),
            flushed: Machine::default(),
            waiting: Waiting::default(),
        }
    }

    pub(super) fn is_up(&self) -> bool {
        self.raft.is_some()
    }

    pub(super) fn leads(&self) -> bool {
        self.raft.as_ref().is_some_and(Raft::is_leader)
    }

    /// Whether the time that the core asked for has come, by its own clock.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.raft.as_ref().is_some_and(|raft| raft.deadline() <= self.clock.read(now))
    }

    /// The core's term; zero while it is down.
    pub(super) fn term(&self) -> Term {
        self.raft.as_ref().map_or(Term(0), Raft::current_term)
    }

    /// Begins a new life with nothing but what its disk and its state machine remember.
    pub(super) fn begin(&mut self, raft: Raft, clock: Clock) {
        *self = Server {
            id: self.id,
            raft: Some(raft),
            disk: std::mem::replace(&mut self.disk, Disk::empty()),
            clock,
            life: self.life,
            handed: self.flushed.applied.index,
            machine: self.flushed.clone(),
            flushed: self.flushed.clone(),
            ..Server::new(self.id, Disk::empty())
        };
    }

    /// The settings of the next life: each draws other timeouts.
    pub(super) fn next_config(&mut self, config: &Config) -> Config {
        self.life += 1;
        Config { id: self.id, seed: config.seed.wrapping_add(self.life << 32), ..config.clone() }
    }

    /// Feeds everything that is in the inbox: first what happened, then what clients want, all changes as one batch and all reads
    /// as another. Says what to answer at once.
    pub(super) fn drain_inbox(&mut self, now: Instant) -> Answers {
        let mut answers = Answers::new();
        let (mut changes, mut tickets, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        let now = self.clock.read(now);
        while let Some(item) = self.inbox.pop_front() {
            let input = match item {
                Item::Input(input) => input,
                Item::Applied(entries) => {
                    self.apply(&entries, &mut answers);
                    match entries.last_index() {
                        Some(last) => Input::Applied(last),
                        None => continue,
                    }
                }
                Item::Request(ticket, Request::Get { key }) => {
                    reads.push((ticket, key));
                    continue;
                }
                Item::Request(ticket, Request::Change(command, padding)) => {
                    changes.push(command.encode(padding));
                    tickets.push(ticket);
                    continue;
                }
            };
            if let Input::Persisted(seq) = input {
                self.told = self.told.max(seq);
            }
            if let Some(raft) = &mut self.raft {
                raft.step(now, input);
            }
        }
        self.propose(now, &changes, &tickets, &mut answers);
        self.read(now, reads, &mut answers);
        answers
    }

    fn propose(&mut self, now: Instant, changes: &[Vec<u8>], tickets: &[Ticket], answers: &mut Answers) {
        let Some(raft) = self.raft.as_mut().filter(|_| !changes.is_empty()) else { return };
        match raft.propose(now, changes) {
            Ok(proposed) => {
                for (i, ticket) in tickets.iter().enumerate() {
                    let old = self.waiting.changes.insert(proposed.first + i as u64, (proposed.term, *ticket));
                    // An earlier proposal for that place is gone from this log, but it may live on in another.
                    answers.extend(old.map(|(_, ticket)| (ticket, Answer::Unknown)));
                }
            }
            Err(ProposeError::NotLeader { hint }) => {
                let hint = hint.and_then(index_of);
                answers.extend(tickets.iter().map(|ticket| (*ticket, Answer::NotLeader(hint))));
            }
            Err(_) => answers.extend(tickets.iter().map(|ticket| (*ticket, Answer::Busy))),
        }
    }

    fn read(&mut self, now: Instant, reads: Vec<(Ticket, u8)>, answers: &mut Answers) {
        let Some(raft) = self.raft.as_mut().filter(|_| !reads.is_empty()) else { return };
        match raft.read_index(now) {
            Ok(id) => {
                self.waiting.reads.insert(id, reads);
            }
            Err(ReadError::NotLeader { hint }) => {
                let hint = hint.and_then(index_of);
                answers.extend(reads.into_iter().map(|(ticket, _)| (ticket, Answer::NotLeader(hint))));
            }
        }
    }

    /// The state machine applies entries; those who wait for them, or for reads up to them, get their answers.
    pub(super) fn apply(&mut self, entries: &Entries, answers: &mut Answers) {
        for entry in entries.iter() {
            let before = if entry.kind == EntryKind::Command {
                Some(self.machine.apply(entry.id(), entry.payload))
            } else {
                self.machine.skip(entry.id());
                None
            };
            if let Some((term, ticket)) = self.waiting.changes.remove(&entry.index) {
                let answer = match before {
                    Some(Ok(found)) if term == entry.term => Answer::Done { found, entry: Some(entry.id()) },
                    // What is committed here is another entry than the one that was proposed.
                    _ => Answer::Replaced,
                };
                answers.push((ticket, answer));
            }
        }
        let (applied, machine) = (self.machine.applied.index, &self.machine);
        answers.extend(
            self.waiting
                .confirmed
                .extract_if(.., |(index, ..)| *index <= applied)
                .map(|(_, ticket, key)| (ticket, Answer::Done { found: machine.get(key), entry: None })),
        );
    }

    /// Reads were confirmed or lost.
    pub(super) fn read_decided(&mut self, outcome: ReadOutcome, answers: &mut Answers) {
        match outcome {
            ReadOutcome::Ready { id, index } => {
                for (ticket, key) in self.waiting.reads.remove(&id).unwrap_or_default() {
                    if index <= self.machine.applied.index {
                        answers.push((ticket, Answer::Done { found: self.machine.get(key), entry: None }));
                    } else {
                        self.waiting.confirmed.push((index, ticket, key));
                    }
                }
            }
            ReadOutcome::Lost { id } => {
                let lost = self.waiting.reads.remove(&id).unwrap_or_default();
                answers.extend(lost.into_iter().map(|(ticket, _)| (ticket, Answer::Unknown)));
            }
        }
    }

    /// Gives up on all proposals: their outcome is unknown.
    pub(super) fn give_up(&mut self, answers: &mut Answers) {
        let changes = std::mem::take(&mut self.waiting.changes);
        answers.extend(changes.into_values().map(|(_, ticket)| (ticket, Answer::Unknown)));
    }
}
