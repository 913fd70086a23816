//! Clients: each does one operation after another, asks some server, is sent on, waits, loses patience, tries again elsewhere; and
//! writes down what it knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mix::Mix;
use super::replica;
use super::sometimes::{Counts, Situation};
use super::workload::{Draw, Operation, Request, Workload};
use crate::change::MembershipChange;
use crate::sim::schedule::Dice;
use crate::types::{Instant, LogId};

/// Names one attempt of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    pub(super) client: usize,
    pub(super) attempt: u64,
}

/// What travels to a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// A linearizable read; by a lease, if the server that is asked has one.
    Query { query: Vec<u8>, by_lease: bool },
    /// The content of an entry.
    Propose(Vec<u8>),
    /// A change of who belongs to the cluster.
    Change(MembershipChange),
}

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Done: the machine's answer, and which entry a command became.
    Done { answer: Vec<u8>, entry: Option<LogId> },
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
#[derive(Clone, Debug, Default)]
pub(super) struct Next {
    /// Ask this of that server.
    pub(super) ask: Option<(usize, Ask)>,
    /// Be woken after this time.
    pub(super) wake: Option<Duration>,
}

/// A command that was acknowledged to a client: which entry it became, and what that must contain.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub(super) entry: LogId,
    pub(super) content: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Undertaking {
    object: usize,
    request: Request,
    padding: usize,
    by_lease: bool,
    invoked: Instant,
    /// An attempt is out, and not yet answered.
    asked: bool,
}

impl Undertaking {
    fn ask(&self) -> Ask {
        match &self.request {
            Request::Query(query) => Ask::Query { query: query.clone(), by_lease: self.by_lease },
            Request::Command(command) => Ask::Propose(replica::encode(command, self.padding)),
        }
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    number: usize,
    dice: Dice,
    servers: usize,
    objects: usize,
    padding: usize,
    leases: bool,
    think: Duration,
    patience: Duration,
    attempt: u64,
    drawn: u64,
    /// Which server it takes for the leader.
    leader: Option<usize>,
    /// What it last asked of each object and had answered.
    last: BTreeMap<usize, (Request, Vec<u8>)>,
    undertaking: Option<Undertaking>,
    /// Operations on each object that have happened, or may have.
    pub(super) history: BTreeMap<usize, Vec<Operation>>,
    pub(super) acknowledged: Vec<Acknowledged>,
    /// When the last operation that succeeded had begun.
    pub(super) last_success: Option<Instant>,
}

impl Client {
    pub(super) fn new(number: usize, mix: &Mix, dice: Dice) -> Self {
        Client {
            number,
            dice,
            servers: mix.slots(),
            objects: usize::from(mix.keys),
            padding: mix.padding,
            leases: mix.config.lease.is_some(),
            think: mix.think,
            patience: mix.patience,
            attempt: 0,
            drawn: 0,
            leader: None,
            last: BTreeMap::new(),
            undertaking: None,
            history: BTreeMap::new(),
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
        let done = self.history.values().flatten().filter(|op| op.returned.is_some()).count();
        let all: usize = self.history.values().map(Vec::len).sum();
        (done as u64, (all - done) as u64)
    }

    /// Its alarm goes off: the next operation, another try, or the end of its patience. `stop` means: begin nothing new.
    pub(super) fn wake<W: Workload>(&mut self, now: Instant, stop: bool, counts: &mut Counts) -> Next {
        match self.undertaking.take_if(|undertaking| undertaking.asked) {
            Some(undertaking) => {
                counts.saw(Situation::ClientTimedOut);
                self.leader = None;
                self.in_doubt(undertaking);
                self.rest()
            }
            None if self.undertaking.is_some() => self.ask(),
            None if stop => Next::default(),
            None => {
                self.begin::<W>(now);
                self.ask()
            }
        }
    }

    /// An answer to the present attempt.
    pub(super) fn answered(&mut self, now: Instant, answer: Answer) -> Next {
        let Some(undertaking) = &self.undertaking else { return Next::default() };
        match answer {
            Answer::Done { answer, entry } => {
                self.done(now, answer, entry);
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
                if matches!(undertaking.request, Request::Query(_)) {
                    return self.try_again(Duration::from_millis(30));
                }
                self.end();
                self.rest()
            }
        }
    }

    /// Whatever is still going on is in doubt.
    pub(super) fn end(&mut self) {
        if let Some(undertaking) = self.undertaking.take() {
            self.in_doubt(undertaking);
        }
    }

    fn begin<W: Workload>(&mut self, now: Instant) {
        self.drawn += 1;
        let unique = (self.number as u64 + 1) << 32 | self.drawn;
        let mut draw = Draw { dice: &mut self.dice, unique, objects: self.objects, last: &self.last };
        let (object, request) = W::draw(&mut draw);
        let padding = self.dice.between(0, self.padding as u64) as usize;
        let by_lease = self.leases && self.dice.chance(3, 4);
        self.undertaking = Some(Undertaking { object, request, padding, by_lease, invoked: now, asked: false });
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
        Next { ask: Some((server, undertaking.ask())), wake: Some(self.patience) }
    }

    fn try_again(&mut self, pause: Duration) -> Next {
        if let Some(undertaking) = &mut self.undertaking {
            undertaking.asked = false;
        }
        self.attempt += 1;
        Next { ask: None, wake: Some(pause + self.dice.time(Duration::ZERO, pause)) }
    }

    fn rest(&mut self) -> Next {
        self.attempt += 1;
        Next { ask: None, wake: Some(self.dice.time(Duration::ZERO, self.think * 2)) }
    }

    fn in_doubt(&mut self, undertaking: Undertaking) {
        // A read that nobody answered has told nobody anything.
        if let request @ Request::Command(_) = undertaking.request {
            let operation = Operation { action: (request, None), invoked: undertaking.invoked, returned: None };
            self.history.entry(undertaking.object).or_default().push(operation);
        }
    }

    fn done(&mut self, now: Instant, answer: Vec<u8>, entry: Option<LogId>) {
        let Some(undertaking) = self.undertaking.take() else { return };
        if let (Ask::Propose(content), Some(entry)) = (undertaking.ask(), entry) {
            self.acknowledged.push(Acknowledged { entry, content });
        }
        let Undertaking { object, request, invoked, .. } = undertaking;
        self.last_success = Some(invoked);
        self.last.insert(object, (request.clone(), answer.clone()));
        let operation = Operation { action: (request, Some(answer)), invoked, returned: Some(now) };
        self.history.entry(object).or_default().push(operation);
    }
}
