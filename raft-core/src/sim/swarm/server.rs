//! One server as a whole: the core with the driver around it, disk, clock, inbox and state machine.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::client::{Answer, Ask, Ticket};
use super::clock::Clock;
use super::once::Applied;
use super::replica::{Outcome, Replica};
use super::workload::Workload;
use crate::config::Config;
use crate::driver::{self, Driver, RequestError, Settled, settle};
use crate::entries::EntryKind;
use crate::io::{Input, Restore, SnapshotId, SnapshotMeta};
use crate::raft::Raft;
use crate::sim::cluster::index_of;
use crate::sim::disk::Disk;
use crate::sim::outbox;
use crate::types::{Instant, LogId, LogIndex, NodeId, Term, WriteSeq};

/// A client that wants to read.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) ticket: Ticket,
    query: Vec<u8>,
    pub(super) since: Instant,
}

/// Work for a state machine.
pub(super) type Job = driver::Job<Ticket, Reader>;
/// What the driver of a server hands out.
pub(super) type Outbox = outbox::Outbox<Ticket, Reader>;

/// What waits in a server's inbox.
#[derive(Debug)]
pub(super) enum Item {
    /// For the core.
    Input(Input),
    /// Work that the state machine is through with.
    Worked(Job),
    /// From a client.
    Request(Ticket, Ask),
}

/// A server that can crash and come back.
#[derive(Debug)]
pub(super) struct Server<W> {
    pub(super) id: NodeId,
    pub(super) driver: Option<Driver<Ticket, Reader>>,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    /// Which server this is of those that have had this id.
    pub(super) identity: u64,
    /// Index of the membership that counts here, and whether it is joint.
    pub(super) members_at: LogIndex,
    pub(super) members_joint: bool,
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
    /// What its disk holds has changed by itself. The checksums show it, to whoever reads it.
    pub(super) rotten: bool,
    /// It will never come back: what its disk holds cannot be trusted, and it knows.
    pub(super) lost: bool,
    /// The one that had the id before has lost its disk.
    pub(super) succeeds: bool,
    /// The sync that is under way covers the writes up to this one.
    pub(super) syncing: Option<WriteSeq>,
    /// Writes that were synced, and those of them that the core was told of.
    pub(super) synced: WriteSeq,
    pub(super) told: WriteSeq,
    /// Clients that were let in and have no answer yet, in this life.
    pub(super) open: BTreeSet<Ticket>,
    /// What the state machine did at once, and the core has not heard yet.
    pub(super) applied: Option<Input>,
    /// Bytes of it.
    pub(super) quiet_bytes: usize,
    /// Reads that were answered by a lease.
    pub(super) lease_reads: u64,
    /// How many jobs the state machine has, and when it is through with them.
    pub(super) jobs: usize,
    pub(super) applying_until: Instant,
    /// The last entry that was handed to the state machine.
    pub(super) handed: LogIndex,
    pub(super) replica: Replica<W>,
    /// What the state machine would remember after a crash.
    pub(super) flushed: Replica<W>,
    /// Together with that: the last snapshot that was taken over.
    pub(super) restored: Option<SnapshotMeta>,
    /// Snapshots that came from leaders in this life, and how many came in all.
    pub(super) received: BTreeMap<SnapshotId, Replica<W>>,
    pub(super) snapshots: u64,
    /// The state machine has taken one over, and nobody has looked at it yet.
    pub(super) taken_over: Option<LogId>,
    /// The state machine takes one over.
    pub(super) restoring: bool,
    /// What the state was after each entry, for those who compare.
    pub(super) trail: Vec<(LogIndex, u64)>,
    /// What came of commands with tags, for the same.
    pub(super) outcomes: Vec<Applied>,
}

/// Answers for clients.
pub(super) type Answers = Vec<(Ticket, Answer)>;

impl<W: Workload> Server<W> {
    pub(super) fn new(id: NodeId, disk: Disk) -> Self {
        Server {
            id,
            driver: None,
            disk,
            clock: Clock::new(Instant(0), 0, 1000),
            identity: 0,
            members_at: LogIndex::ZERO,
            members_joint: false,
            life: 0,
            inbox: VecDeque::new(),
            pump_asked: false,
            alarm: None,
            frozen_until: Instant(0),
            stalled_until: Instant(0),
            sync_fails: false,
            rotten: false,
            lost: false,
            succeeds: false,
            syncing: None,
            synced: WriteSeq(0),
            told: WriteSeq(0),
            open: BTreeSet::new(),
            applied: None,
            quiet_bytes: 0,
            lease_reads: 0,
            jobs: 0,
            applying_until: Instant(0),
            handed: LogIndex::ZERO,
            replica: Replica::default(),
            flushed: Replica::default(),
            restored: None,
            received: BTreeMap::new(),
            snapshots: 0,
            taken_over: None,
            restoring: false,
            trail: Vec::new(),
            outcomes: Vec::new(),
        }
    }

    pub(super) fn raft(&self) -> Option<&Raft> {
        self.driver.as_ref().map(Driver::core)
    }

    pub(super) fn is_up(&self) -> bool {
        self.driver.is_some()
    }

    pub(super) fn leads(&self) -> bool {
        self.raft().is_some_and(Raft::is_leader)
    }

    /// Whether the time that the core asked for has come, by its own clock.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.driver.as_ref().is_some_and(|driver| driver.deadline() <= self.clock.read(now))
    }

    /// The core's term; zero while it is down.
    pub(super) fn term(&self) -> Term {
        self.raft().map_or(Term(0), Raft::current_term)
    }

    /// Begins a new life with nothing but what its disk and its state machine remember.
    pub(super) fn begin(&mut self, raft: Raft, clock: Clock) {
        let (members_at, membership) = raft.membership();
        *self = Server {
            members_at,
            members_joint: membership.is_joint(),
            identity: self.identity,
            succeeds: self.succeeds,
            driver: Some(Driver::new(raft)),
            disk: std::mem::replace(&mut self.disk, Disk::empty()),
            clock,
            life: self.life,
            handed: self.flushed.applied.index,
            replica: self.flushed.clone(),
            flushed: self.flushed.clone(),
            restored: self.restored.take(),
            snapshots: self.snapshots,
            ..Server::new(self.id, Disk::empty())
        };
    }

    /// The settings of the next life: each draws other timeouts.
    pub(super) fn next_config(&mut self, config: &Config, priority: u8) -> Config {
        self.life += 1;
        Config {
            id: self.id,
            identity: self.identity,
            priority,
            seed: config.seed.wrapping_add(self.life << 32),
            ..config.clone()
        }
    }

    /// Feeds the driver everything that is in the inbox, and tells it when it is awake because of the time. Says what to answer at once.
    pub(super) fn drain_inbox(&mut self, now: Instant) -> Answers {
        let mut answers = Answers::new();
        let due = self.is_due(now);
        let (since, now) = (now, self.clock.read(now));
        while let Some(item) = self.inbox.pop_front() {
            match item {
                Item::Input(input) => {
                    if let Input::Persisted(seq) = input {
                        self.told = self.told.max(seq);
                    }
                    self.step(now, input);
                }
                Item::Worked(job) => {
                    self.jobs -= 1;
                    if let Some(applied) = self.work(job, &mut answers) {
                        self.step(now, applied);
                    }
                }
                Item::Request(ticket, ask) => {
                    let Some(driver) = &mut self.driver else { continue };
                    self.open.insert(ticket);
                    match ask {
                        Ask::Query { query, by_lease: true } => {
                            self.lease_reads += u64::from(driver.core().has_lease());
                            driver.read_by_lease(Reader { ticket, query, since });
                        }
                        Ask::Query { query, by_lease: false } => driver.read(Reader { ticket, query, since }),
                        Ask::Change(change) => driver.change_membership(now, &change, ticket),
                        Ask::Propose(content) => driver.propose(now, content.into(), ticket),
                    }
                }
            }
        }
        if due {
            self.step(now, Input::Wake);
        }
        if let Some(applied) = self.applied.take() {
            self.quiet_bytes = 0;
            self.step(now, applied);
        }
        answers
    }

    pub(super) fn step(&mut self, now: Instant, input: Input) {
        if let Some(driver) = &mut self.driver {
            driver.step(now, input);
        }
    }

    /// The next thing that the driver hands out, if there is anything.
    pub(super) fn turn(&mut self, now: Instant) -> Option<Outbox> {
        let mut outbox = Outbox::default();
        let now = self.clock.read(now);
        self.driver.as_mut()?.turn(now, &mut outbox).then_some(outbox)
    }

    /// The state machine does a job; those who wait for it get their answers. Returns what the core must hear.
    pub(super) fn work(&mut self, job: Job, answers: &mut Answers) -> Option<Input> {
        match job {
            Job::Query(readers) => {
                let machine = &self.replica.machine;
                answers.extend(readers.into_iter().map(|reader| {
                    let answer = machine.query(&reader.query);
                    (reader.ticket, Answer::Done { answer, entry: None, first: None })
                }));
                None
            }
            Job::Apply { entries, waiting } => {
                let mut replies = Vec::new();
                for entry in entries.iter() {
                    match entry.kind {
                        EntryKind::Command => replies.push(self.apply(entry.id(), entry.payload)),
                        EntryKind::Membership => self.replica.change(entry.id(), entry.payload),
                        EntryKind::NoOp => self.replica.skip(entry.id()),
                    }
                    self.trail.push((entry.index, self.replica.digest));
                }
                settle(&entries, waiting, |ticket, settled| {
                    let answer = match settled {
                        Settled::Replaced => Answer::Replaced,
                        Settled::Applied { id, command } => match replies.get(command).cloned() {
                            Some(Some(Outcome::Done { answer, first })) => {
                                Answer::Done { answer, entry: Some(id), first }
                            }
                            Some(Some(Outcome::Refused(refusal))) => Answer::Refused(refusal),
                            _ => Answer::Replaced,
                        },
                    };
                    answers.push((ticket, answer));
                });
                entries.last_index().map(Input::Applied)
            }
            Job::Restore(Restore { id, meta }) => {
                // Those that came before are of no use any more. One that was never kept shows when states are compared.
                self.replica = self.received.remove(&id).unwrap_or_default();
                self.received.retain(|other, _| *other > id);
                self.flushed = self.replica.clone();
                self.trail.push((meta.last.index, self.replica.digest));
                self.taken_over = Some(meta.last);
                self.restored = Some(meta);
                Some(Input::Restored(id))
            }
        }
    }

    fn apply(&mut self, id: LogId, content: &[u8]) -> Option<Outcome> {
        let (outcome, tag) = self.replica.apply(id, content).ok()?;
        if let Some(tag) = tag {
            self.outcomes.push(Applied { tag, id, outcome: outcome.clone() });
        }
        Some(outcome)
    }
}

/// What a client hears of an error.
pub(super) fn told(error: &RequestError) -> Answer {
    match error {
        RequestError::NotLeader { hint } => Answer::NotLeader(hint.and_then(index_of)),
        RequestError::Busy { .. } => Answer::Busy,
        RequestError::OutcomeUnknown | RequestError::ShuttingDown | RequestError::TooLarge { .. } => Answer::Unknown,
        // Clients change no membership.
        RequestError::Change(_) => Answer::Unknown,
    }
}
