//! Clients as they should be: each has a session, and repeats a command there until it knows what came of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use raft_core::Instant;
use raft_core::sim::linearizability::{Action, Operation};
use raft_core::sim::schedule::Dice;
use raft_core::sim::task::{Failure, Sim};

use super::stores::Stores;
use crate::kv::{Command, Refusal, Reply};

/// What clients did with each key.
pub(super) type Histories = Rc<RefCell<BTreeMap<u64, Vec<Operation>>>>;

/// How many keys there are.
const KEYS: u64 = 4;

/// A client. It does one thing after the other.
pub(super) struct Client {
    pub(super) sim: Sim,
    pub(super) stores: Stores,
    pub(super) dice: Dice,
    pub(super) servers: usize,
    pub(super) history: Histories,
    /// Its first number, which no other client uses; those that follow neither.
    pub(super) number: u64,
    session: Option<u64>,
    serial: u64,
    /// The last commands that were answered: one may come to a server once more.
    sent: VecDeque<Bytes>,
    /// The revision of each key that it saw last.
    seen: BTreeMap<u64, u64>,
    leader: usize,
}

/// One thing that a client wants.
#[derive(Clone, Copy)]
enum Wish {
    Read,
    Put,
    Delete,
    Swap { expected: u64 },
}

impl Client {
    pub(super) fn new(
        (sim, stores): (Sim, Stores),
        dice: Dice,
        servers: usize,
        history: Histories,
        number: u64,
    ) -> Client {
        let (session, serial, sent, seen, leader) = (None, 0, VecDeque::new(), BTreeMap::new(), 0);
        Client { sim, stores, dice, servers, history, number, session, serial, sent, seen, leader }
    }

    /// One operation after the other, until it is told to stop.
    pub(super) async fn run(mut self, stop: Rc<Cell<bool>>) -> Result<(), Failure> {
        while !stop.get() {
            self.pause(40_000).await;
            // One that has forgotten its session leaves it to its fate.
            self.session = self.session.filter(|_| !self.dice.chance(1, 15));
            let key = self.dice.between(1, KEYS);
            let expected = self.seen.get(&key).copied().unwrap_or(0);
            let wish = [Wish::Read, Wish::Put, Wish::Swap { expected }, Wish::Swap { expected }, Wish::Delete]
                [self.dice.pick(5)];
            self.number += 1;
            self.fulfil(key, wish).await?;
            let server = self.dice.pick(self.servers);
            if self.dice.chance(1, 6)
                && let Some(copy) = self.sent.get(self.dice.pick(3))
            {
                // A copy that was on its way all the time.
                let _ = self.sim.with(|cluster| cluster.propose(server, copy));
            }
        }
        Ok(())
    }

    async fn fulfil(&mut self, key: u64, wish: Wish) -> Result<(), Failure> {
        let (name, value) = (key.to_be_bytes(), self.number.to_le_bytes());
        let command = match wish {
            // No revision is that high: the answer says which it is, and takes its place in the log like any other.
            Wish::Read => Command::Cas { key: &name, expected: u64::MAX, value: b"" },
            Wish::Put => Command::Put { key: &name, value: &value },
            Wish::Delete => Command::Delete { key: &name },
            Wish::Swap { expected } => Command::Cas { key: &name, expected, value: &value },
        };
        let invoked = self.sim.now();
        let reply = match wish {
            Wish::Read => Some(self.until_answered(&command.encode()).await),
            _ => self.once(&command.encode()).await?,
        };
        self.note(key, wish, invoked, reply)
    }

    /// A command in the session; `None` if that ended before the outcome was known.
    async fn once(&mut self, command: &[u8]) -> Result<Option<Reply>, Failure> {
        let (mut serial, mut doubt) = (None, false);
        loop {
            let session = match self.session {
                Some(session) => session,
                None => self.open().await?,
            };
            let serial = *serial.get_or_insert_with(|| {
                self.serial += 1;
                self.serial
            });
            // It need not say at once that it has heard of the one before.
            let first_unanswered = serial - self.dice.between(0, 1).min(serial - 1);
            let content = Command::InSession { session, serial, first_unanswered, command }.encode();
            match self.attempt(&content).await {
                Ok(Reply::Refused(Refusal::SessionExpired)) => {
                    self.session = None;
                    if doubt {
                        return Ok(None);
                    }
                    return Box::pin(self.once(command)).await;
                }
                Ok(Reply::Refused(refusal)) => {
                    return Err(format!("a command that is waited for is refused: {refusal}"));
                }
                Ok(reply) => {
                    self.sent.push_front(content);
                    self.sent.truncate(3);
                    return Ok(Some(reply));
                }
                Err(happened) => doubt |= happened == Known::Nothing,
            }
        }
    }

    async fn open(&mut self) -> Result<u64, Failure> {
        match self.until_answered(&Command::Register.encode()).await {
            Reply::Registered { session } => {
                (self.session, self.serial) = (Some(session), 0);
                Ok(session)
            }
            other => Err(format!("a session is opened with {other:?}")),
        }
    }

    /// For what may be done as often as one likes.
    async fn until_answered(&mut self, content: &[u8]) -> Reply {
        loop {
            if let Ok(reply) = self.attempt(content).await {
                return reply;
            }
        }
    }

    /// Asks one server, which may take long, or be unable to say, or whose answer may be lost.
    async fn attempt(&mut self, content: &[u8]) -> Result<Reply, Known> {
        self.pause(2000).await;
        let server = if self.dice.chance(1, 8) { self.dice.pick(self.servers) } else { self.leader };
        self.leader = server;
        let life = self.sim.with(|cluster| cluster.node(server).life());
        let Ok(proposed) = self.sim.with(|cluster| cluster.propose(server, content)) else {
            self.leader = self.dice.pick(self.servers);
            return Err(Known::NotDone);
        };
        let lost = self.dice.chance(1, 10);
        for _ in 0..self.dice.between(4, 80) {
            self.pause(4000).await;
            if self.sim.with(|cluster| cluster.node(server).life()) != life {
                break;
            }
            if !self.stores.has_applied(server, proposed.first) {
                continue;
            }
            match self.stores.reply(proposed.first, proposed.term, content) {
                Some(reply) if !lost => return Ok(reply),
                Some(_) => {}
                None => break,
            }
        }
        self.leader = self.dice.pick(self.servers);
        Err(Known::Nothing)
    }

    async fn pause(&mut self, micros: u64) {
        let pause = Duration::from_micros(self.dice.between(micros / 20, micros));
        self.sim.sleep(pause).await;
    }

    fn note(&mut self, key: u64, wish: Wish, invoked: Instant, reply: Option<Reply>) -> Result<(), Failure> {
        let found = |revision: u64| match (revision, self.stores.number(revision)) {
            (0, _) => Ok(None),
            (_, Some(number)) => Ok(Some(number)),
            (_, None) => Err(format!("revision {revision} was never written")),
        };
        let value = self.number;
        let (action, now) = match (wish, reply) {
            (_, Some(Reply::Mismatch { current })) => (Action::Get(found(current)?), Some(current)),
            (Wish::Put, Some(Reply::Written { revision })) => (Action::Put(value), Some(revision)),
            (Wish::Put, None) => (Action::Put(value), None),
            (Wish::Swap { expected }, Some(Reply::Written { revision })) => {
                (Action::Swap { expected: found(expected)?, value }, Some(revision))
            }
            (Wish::Swap { expected }, None) => (Action::Swap { expected: found(expected)?, value }, None),
            (Wish::Delete, Some(Reply::Deleted { existed })) => (Action::Delete { existed }, Some(0)),
            (Wish::Delete, None) => (Action::Delete { existed: true }, None),
            (_, reply) => return Err(format!("an answer that makes no sense: {reply:?}")),
        };
        if let Some(revision) = now {
            self.seen.insert(key, revision);
        }
        self.stores.count(|counts| match reply {
            Some(_) => counts.done += 1,
            None => counts.in_doubt += 1,
        });
        let returned = reply.map(|_| self.sim.now());
        self.history.borrow_mut().entry(key).or_default().push(Operation { action, invoked, returned });
        Ok(())
    }
}

/// What a client knows after an attempt without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// That it was not done, and will not be.
    NotDone,
    /// Nothing.
    Nothing,
}
