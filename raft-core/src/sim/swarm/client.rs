//! Clients: each does one operation after another, asks some server, is sent on, waits, loses patience, tries again elsewhere; and
//! writes down what it knows.

use std::time::Duration;

use super::machine::{Change, Command};
use super::mix::Mix;
use super::sometimes::{Counts, Situation};
use crate::sim::linearizability::{Action, Operation};
use crate::sim::schedule::Dice;
use crate::types::{Instant, LogId};

/// Names one attempt of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    pub(super) client: usize,
    pub(super) attempt: u64,
}

/// What a client asks of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// A linearizable read.
    Get { key: u8 },
    /// A change, with so much padding.
    Change(Command, usize),
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done. What was in the register (for a change: before it), and which entry a change became.
    Done { found: Option<u64>, entry: Option<LogId> },
    /// Not done, and never will be: ask another.
    NotLeader(Option<usize>),
    /// Not done, and never will be: ask again later.
    Busy,
    /// Not done, and never will be: another entry was committed in its place.
    Replaced,
    /// Leadership was lost; the change may still happen.
    Unknown,
}

/// What a client does next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Next {
    /// Ask this of that server.
    pub(super) ask: Option<(usize, Request)>,
    /// Be woken after this time.
    pub(super) wake: Option<Duration>,
}

/// A change that was acknowledged to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acknowledged {
    pub(super) entry: LogId,
    pub(super) command: Command,
    pub(super) padding: usize,
}

#[derive(Clone, Copy, Debug)]
struct Undertaking {
    key: u8,
    request: Request,
    invoked: Instant,
    /// An attempt is out, and not yet answered.
    asked: bool,
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    number: usize,
    dice: Dice,
    servers: usize,
    keys: u8,
    padding: usize,
    think: Duration,
    patience: Duration,
    attempt: u64,
    written: u64,
    /// Which server it takes for the leader.
    leader: Option<usize>,
    /// What it saw last under each key.
    seen: Vec<Option<u64>>,
    undertaking: Option<Undertaking>,
    /// Operations on each key that have happened, or may have.
    pub(super) history: Vec<Vec<Operation>>,
    pub(super) acknowledged: Vec<Acknowledged>,
    /// When the last operation that succeeded had begun.
    pub(super) last_success: Option<Instant>,
}

impl Client {
    pub(super) fn new(number: usize, mix: &Mix, dice: Dice) -> Self {
        let keys = usize::from(mix.keys);
        Client {
            number,
            dice,
            servers: mix.servers,
            keys: mix.keys,
            padding: mix.padding,
            think: mix.think,
            patience: mix.patience,
            attempt: 0,
            written: 0,
            leader: None,
            seen: vec![None; keys],
            undertaking: None,
            history: vec![Vec::new(); keys],
            acknowledged: Vec::new(),
            last_success: None,
        }
    }

    /// The attempt that is going on.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { client: self.number, attempt: self.attempt }
    }

    /// Whether it is between two operations.
    pub(super) fn is_idle(&self) -> bool {
        self.undertaking.is_none()
    }

    /// Operations that are in its books: completed, and in doubt.
    pub(super) fn tally(&self) -> (u64, u64) {
        let done = self.history.iter().flatten().filter(|op| op.returned.is_some()).count();
        let all: usize = self.history.iter().map(Vec::len).sum();
        (done as u64, (all - done) as u64)
    }

    /// Its alarm goes off: the next operation, another try, or the end of its patience. `stop` means: begin nothing new.
    pub(super) fn wake(&mut self, now: Instant, stop: bool, counts: &mut Counts) -> Next {
        match self.undertaking {
            None if stop => Next::default(),
            None => {
                self.begin(now);
                self.ask()
            }
            Some(Undertaking { asked: false, .. }) => self.ask(),
            Some(undertaking) => {
                counts.saw(Situation::ClientTimedOut);
                self.leader = None;
                self.in_doubt(undertaking);
                self.rest()
            }
        }
    }

    /// An answer to the present attempt.
    pub(super) fn answered(&mut self, now: Instant, answer: Answer, counts: &mut Counts) -> Next {
        let Some(undertaking) = self.undertaking else { return Next::default() };
        match answer {
            Answer::Done { found, entry } => {
                self.done(now, undertaking, found, entry, counts);
                self.rest()
            }
            Answer::NotLeader(hint) => {
                self.leader = hint;
                self.try_again(Duration::from_millis(if hint.is_some() { 1 } else { 30 }))
            }
            Answer::Busy => self.try_again(Duration::from_millis(60)),
            Answer::Replaced => self.try_again(Duration::from_millis(10)),
            Answer::Unknown => {
                self.leader = None;
                match undertaking.request {
                    Request::Get { .. } => self.try_again(Duration::from_millis(30)),
                    Request::Change(..) => {
                        self.in_doubt(undertaking);
                        self.rest()
                    }
                }
            }
        }
    }

    /// Whatever is still going on when the simulation ends is in doubt.
    pub(super) fn end(&mut self) {
        if let Some(undertaking) = self.undertaking {
            self.in_doubt(undertaking);
        }
    }

    fn begin(&mut self, now: Instant) {
        let key = self.dice.between(0, u64::from(self.keys) - 1) as u8;
        let draw = self.dice.pick(100);
        self.written += 1;
        // No two writes of a run write the same number.
        let value = (self.number as u64 + 1) << 32 | self.written;
        let change = |change| Command { key, change };
        let padding = self.dice.between(0, self.padding as u64) as usize;
        let request = match draw {
            0..45 => Request::Get { key },
            45..80 => Request::Change(change(Change::Put(value)), padding),
            _ => Request::Change(change(Change::Swap { expected: self.seen[usize::from(key)], value }), padding),
        };
        self.undertaking = Some(Undertaking { key, request, invoked: now, asked: false });
    }

    fn ask(&mut self) -> Next {
        let Some(undertaking) = &mut self.undertaking else { return Next::default() };
        self.attempt += 1;
        undertaking.asked = true;
        // Now and then it asks someone else: an old leader that does not know better, for example.
        let server = match self.leader {
            Some(leader) if !self.dice.chance(1, 12) => leader,
            _ => self.dice.pick(self.servers),
        };
        self.leader = Some(server);
        Next { ask: Some((server, undertaking.request)), wake: Some(self.patience) }
    }

    fn try_again(&mut self, pause: Duration) -> Next {
        if let Some(undertaking) = &mut self.undertaking {
            undertaking.asked = false;
        }
        self.attempt += 1;
        Next { ask: None, wake: Some(pause + self.dice.time(Duration::ZERO, pause)) }
    }

    fn rest(&mut self) -> Next {
        self.undertaking = None;
        self.attempt += 1;
        Next { ask: None, wake: Some(self.dice.time(Duration::ZERO, self.think * 2)) }
    }

    fn in_doubt(&mut self, undertaking: Undertaking) {
        let Request::Change(command, _) = undertaking.request else { return };
        let action = match command.change {
            Change::Put(value) => Action::Put(value),
            Change::Swap { expected, value } => Action::Swap { expected, value },
        };
        self.note(undertaking, action, None);
    }

    fn done(
        &mut self,
        now: Instant,
        undertaking: Undertaking,
        found: Option<u64>,
        entry: Option<LogId>,
        counts: &mut Counts,
    ) {
        let (action, holds) = match undertaking.request {
            Request::Get { .. } => (Action::Get(found), found),
            Request::Change(Command { change: Change::Put(value), .. }, _) => (Action::Put(value), Some(value)),
            Request::Change(Command { change: Change::Swap { expected, value }, .. }, _) if found == expected => {
                (Action::Swap { expected, value }, Some(value))
            }
            Request::Change(..) => {
                counts.saw(Situation::SwapFailed);
                (Action::Get(found), found)
            }
        };
        self.note(undertaking, action, Some(now));
        self.seen[usize::from(undertaking.key)] = holds;
        self.last_success = Some(undertaking.invoked);
        if let (Request::Change(command, padding), Some(entry)) = (undertaking.request, entry) {
            self.acknowledged.push(Acknowledged { entry, command, padding });
        }
    }

    fn note(&mut self, undertaking: Undertaking, action: Action, returned: Option<Instant>) {
        let operation = Operation { action, invoked: undertaking.invoked, returned };
        self.history[usize::from(undertaking.key)].push(operation);
    }
}
