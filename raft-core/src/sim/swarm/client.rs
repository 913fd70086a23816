//! Clients: each does one operation after another, asks some server, is sent on, waits, loses patience, tries again elsewhere; and
//! writes down what it knows.

use std::collections::BTreeMap;
use std::time::Duration;

use super::mix::{Mix, Sessions};
use super::replica::{self, Tag};
use super::sessions::Refusal;
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
    /// Done: the machine's answer, and which entry a command became; as which it was carried out, if that was before.
    Done { answer: Vec<u8>, entry: Option<LogId>, first: Option<LogId> },
    /// Not done, and never will be: ask another.
    NotLeader(Option<usize>),
    /// Not done, and never will be: ask again later.
    Busy,
    /// Not done, and never will be: another entry was committed in its place.
    Replaced,
    /// The session does not admit it.
    Refused(Refusal),
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
    /// Its number in the client's session; zero as long as it was not sent in it.
    serial: u64,
    /// An attempt may have been carried out, or may still be.
    doubtful: bool,
}

impl Undertaking {
    fn is_command(&self) -> bool {
        matches!(self.request, Request::Command(_))
    }
}

/// What a client sends in its session.
#[derive(Clone, Debug)]
struct Sent {
    unique: u64,
    session: u64,
    serial: u64,
    command: Vec<u8>,
    padding: usize,
}

impl Sent {
    fn content(&self, attempt: u64) -> Vec<u8> {
        let tag = Tag { unique: self.unique, attempt };
        replica::in_session(tag, self.session, self.serial, &self.command, self.padding)
    }
}

/// What a client needs to repeat a command.
#[derive(Debug)]
struct Repeater {
    settings: Sessions,
    dice: Dice,
    /// Its session, and the number of the newest command in it.
    session: Option<u64>,
    serial: u64,
    /// The command that each attempt was for.
    tags: BTreeMap<u64, Tag>,
    /// The last command that was answered.
    last: Option<Sent>,
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
    /// If it has one, it never gives up.
    repeater: Option<Repeater>,
    /// Operations on each object that have happened, or may have.
    pub(super) history: BTreeMap<usize, Vec<Operation>>,
    pub(super) acknowledged: Vec<Acknowledged>,
    /// When the last operation that succeeded had begun, and the last command among them.
    last_success: Option<Instant>,
    last_command: Option<Instant>,
    /// It has ever wanted to change something.
    commands: bool,
}

impl Client {
    /// A client that throws the first of these dice; whatever has to do with repetition is decided by the second.
    pub(super) fn new(number: usize, mix: &Mix, [dice, dice_to_repeat]: [Dice; 2]) -> Self {
        let repeater = |settings| {
            let (session, serial, tags, last) = (None, 0, BTreeMap::new(), None);
            Repeater { settings, dice: dice_to_repeat, session, serial, tags, last }
        };
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
            repeater: mix.sessions.filter(|sessions| number < sessions.clients).map(repeater),
            history: BTreeMap::new(),
            acknowledged: Vec::new(),
            last_success: None,
            last_command: None,
            commands: false,
        }
    }

    /// The attempt that is going on.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { client: self.number, attempt: self.attempt }
    }

    /// Which command an attempt was for, if that was one that can be repeated.
    pub(super) fn tag(&self, attempt: u64) -> Option<Tag> {
        self.repeater.as_ref().and_then(|repeater| repeater.tags.get(&attempt).copied())
    }

    /// Whether it is between two operations.
    pub(super) fn is_idle(&self) -> bool {
        self.undertaking.is_none()
    }

    /// Whether it has succeeded with something that it began since then, and also with a command, if it knows any: a leader that answers reads and
    /// commits nothing serves nobody.
    pub(super) fn is_served_since(&self, instant: Instant) -> bool {
        let since = |begun: Option<Instant>| begun.is_some_and(|begun| begun >= instant);
        since(self.last_success) && (!self.commands || since(self.last_command))
    }

    /// Operations that are in its books: completed, and in doubt.
    pub(super) fn tally(&self) -> (u64, u64) {
        let done = self.history.values().flatten().filter(|op| op.returned.is_some()).count();
        let all: usize = self.history.values().map(Vec::len).sum();
        (done as u64, (all - done) as u64)
    }

    /// Its alarm goes off: the next operation, another try, or the end of its patience. `stop` means: begin nothing new.
    pub(super) fn wake<W: Workload>(&mut self, now: Instant, stop: bool, counts: &mut Counts) -> Next {
        let repeats = self.repeats();
        match self.undertaking.take_if(|undertaking| undertaking.asked && !repeats) {
            Some(undertaking) => {
                counts.saw(Situation::ClientTimedOut);
                self.leader = None;
                self.in_doubt(undertaking);
                self.rest()
            }
            None if self.undertaking.as_ref().is_some_and(|undertaking| undertaking.asked) => {
                counts.saw(Situation::ClientTimedOut);
                self.doubt(counts);
                self.ask()
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
    pub(super) fn answered(&mut self, now: Instant, answer: Answer, counts: &mut Counts) -> Next {
        let Some(undertaking) = &self.undertaking else { return Next::default() };
        match answer {
            Answer::Done { entry: Some(entry), .. } if self.opens_session() => {
                self.opened(entry);
                self.ask()
            }
            Answer::Done { answer, entry, first } => {
                if let Some((first, entry)) = first.zip(entry) {
                    counts.saw(Situation::AnsweredAgain);
                    counts.add(Situation::AnsweredByAnother, u64::from(first.term != entry.term));
                }
                let copy = self.done(now, answer, entry);
                Next { ask: copy, ..self.rest() }
            }
            Answer::Refused(_) => self.refused(),
            Answer::NotLeader(hint) => {
                self.leader = hint;
                self.try_again(Duration::from_millis(if hint.is_some() { 1 } else { 30 }))
            }
            Answer::Busy => self.try_again(Duration::from_millis(60)),
            Answer::Replaced => self.try_again(Duration::from_millis(10)),
            Answer::Unknown if self.repeats() => {
                self.doubt(counts);
                self.try_again(Duration::from_millis(30))
            }
            Answer::Unknown => {
                self.leader = None;
                if !undertaking.is_command() {
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
        let unique = unique(self.number, self.drawn);
        let mut draw = Draw { dice: &mut self.dice, unique, objects: self.objects, last: &self.last };
        let (object, request) = W::draw(&mut draw);
        self.commands |= matches!(request, Request::Command(_));
        let padding = self.dice.between(0, self.padding as u64) as usize;
        let by_lease = self.leases && self.dice.chance(3, 4);
        let (asked, serial, doubtful) = (false, 0, false);
        self.undertaking =
            Some(Undertaking { object, request, padding, by_lease, invoked: now, asked, serial, doubtful });
        if let Some(repeater) = &mut self.repeater {
            let forgets = repeater.dice.chance(repeater.settings.forgetful, 1000);
            repeater.session = repeater.session.filter(|_| !forgets);
        }
    }

    /// Whether what it is about is repeated until it knows the outcome.
    fn repeats(&self) -> bool {
        self.repeater.is_some() && self.undertaking.as_ref().is_some_and(Undertaking::is_command)
    }

    /// Whether the present attempt opens a session.
    fn opens_session(&self) -> bool {
        self.tag(self.attempt).is_some_and(Tag::opens_session)
    }

    /// It will not know what came of the present attempt, and is going to repeat it, here or elsewhere.
    fn doubt(&mut self, counts: &mut Counts) {
        let opens = self.opens_session();
        if let (Some(undertaking), Some(repeater)) = (&mut self.undertaking, &mut self.repeater) {
            self.leader = self.leader.filter(|_| repeater.dice.chance(1, 2));
            undertaking.doubtful |= !opens;
            counts.add(Situation::Repeated, u64::from(!opens));
        }
    }

    /// The entry that was to open a session is committed.
    fn opened(&mut self, entry: LogId) {
        let content = self.content();
        self.acknowledged.push(Acknowledged { entry, content });
        if let Some(repeater) = &mut self.repeater {
            (repeater.session, repeater.serial) = (Some(entry.index.0), 0);
        }
    }

    /// Its session is over. What cannot have happened in it is done in the next; else nobody can tell it.
    fn refused(&mut self) -> Next {
        if let Some(repeater) = &mut self.repeater {
            repeater.session = None;
        }
        match &mut self.undertaking {
            Some(undertaking) if !undertaking.doubtful => {
                undertaking.serial = 0;
                self.try_again(Duration::from_millis(20))
            }
            _ => {
                self.end();
                self.rest()
            }
        }
    }

    /// What the present attempt sends in its session, if it does.
    fn sent(&self) -> Option<Sent> {
        let undertaking = self.undertaking.as_ref().filter(|undertaking| undertaking.serial > 0)?;
        let Undertaking { request: Request::Command(command), padding, serial, .. } = undertaking else { return None };
        let session = self.repeater.as_ref()?.session?;
        let unique = unique(self.number, self.drawn);
        Some(Sent { unique, session, serial: *serial, command: command.clone(), padding: *padding })
    }

    /// What the entry contains that the present attempt is to become.
    fn content(&self) -> Vec<u8> {
        let Some(Undertaking { request: Request::Command(command), padding, .. }) = &self.undertaking else {
            return Vec::new();
        };
        match (&self.repeater, self.tag(self.attempt), self.sent()) {
            (Some(repeater), Some(tag), _) if tag.opens_session() => replica::open_session(tag, repeater.settings.kept),
            (_, _, Some(sent)) => sent.content(self.attempt),
            _ => replica::encode(command, *padding),
        }
    }

    /// A command in its session was answered. Perhaps a copy of the one before, which nobody waits for any more, comes to a server only now: as an attempt
    /// of its own.
    fn copy(&mut self, done: Sent) -> Option<(usize, Ask)> {
        let repeater = self.repeater.as_mut()?;
        let former = repeater.last.replace(done)?;
        if !repeater.dice.chance(repeater.settings.copies, 1000) {
            return None;
        }
        // The number that the attempt will have once the client rests.
        let attempt = self.attempt + 1;
        repeater.tags.insert(attempt, Tag { unique: former.unique, attempt });
        Some((self.leader?, Ask::Propose(former.content(attempt))))
    }

    /// The next attempt of a command that can be repeated gets its tag, and if it is the first in its session, its number. Returns how long to wait for
    /// the answer.
    fn name_attempt(&mut self) -> Option<Duration> {
        let undertaking = self.undertaking.as_mut().filter(|undertaking| undertaking.is_command())?;
        let repeater = self.repeater.as_mut()?;
        let mut unique = unique(self.number, 0);
        if repeater.session.is_some() {
            unique = self::unique(self.number, self.drawn);
            if undertaking.serial == 0 {
                repeater.serial += 1;
                undertaking.serial = repeater.serial;
            }
        }
        repeater.tags.insert(self.attempt, Tag { unique, attempt: self.attempt });
        let instant = (self.patience / 8).min(Duration::from_millis(40));
        let impatient = repeater.dice.chance(repeater.settings.impatient, 1000);
        Some(if impatient { repeater.dice.time(Duration::from_millis(1), instant) } else { self.patience })
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
        let patience = self.name_attempt().unwrap_or(self.patience);
        let ask = match &self.undertaking {
            Some(Undertaking { request: Request::Query(query), by_lease, .. }) => {
                Ask::Query { query: query.clone(), by_lease: *by_lease }
            }
            _ => Ask::Propose(self.content()),
        };
        Next { ask: Some((server, ask)), wake: Some(patience) }
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

    /// What it was about is done. Returns what comes of it besides: see [`copy`](Self::copy).
    fn done(&mut self, now: Instant, answer: Vec<u8>, entry: Option<LogId>) -> Option<(usize, Ask)> {
        let (content, sent) = (self.content(), self.sent());
        let undertaking = self.undertaking.take()?;
        if let Some(entry) = entry {
            self.acknowledged.push(Acknowledged { entry, content });
        }
        let copy = sent.and_then(|sent| self.copy(sent));
        let Undertaking { object, request, invoked, .. } = undertaking;
        self.last_success = Some(invoked);
        if let Request::Command(_) = request {
            self.last_command = Some(invoked);
        }
        self.last.insert(object, (request.clone(), answer.clone()));
        let operation = Operation { action: (request, Some(answer)), invoked, returned: Some(now) };
        self.history.entry(object).or_default().push(operation);
        copy
    }
}

/// A number that no other client uses, and this one for nothing else.
fn unique(client: usize, drawn: u64) -> u64 {
    (client as u64 + 1) << 32 | drawn
}

#[cfg(test)]
mod tests {
    use super::super::registers::Registers;
    use super::*;

    #[test]
    fn whoever_has_commands_is_not_served_by_reads_alone() {
        let mix = Mix { sessions: None, ..Mix::of(1) };
        let mut client = Client::new(0, &mix, [Dice::new(1, 300), Dice::new(1, 400)]);
        let mut counts = Counts::default();
        let done = Answer::Done { answer: vec![0; 8], entry: None, first: None };
        for (commands_are, served) in [(Answer::Unknown, false), (done.clone(), true)] {
            for i in 1..=20 {
                let next = client.wake::<Registers>(Instant(i), false, &mut counts);
                let (_, ask) = next.ask.expect("it never stops");
                let answer = if let Ask::Propose(_) = ask { commands_are.clone() } else { done.clone() };
                client.answered(Instant(i), answer, &mut counts);
            }
            assert!(client.last_success.is_some(), "it reads, too");
            assert_eq!(client.is_served_since(Instant(1)), served);
        }
        assert!(!client.is_served_since(Instant(21)), "that was before");
    }
}
