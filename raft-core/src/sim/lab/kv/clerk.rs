//! Lab 3's clerks: clients that find the leader, and repeat an operation until a server says what came of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::service::{Op, Request, Service, Text};
use crate::sim::lab::harness::{Lab, ensure};
use crate::sim::lab::{Outcome, Snapshots};
use crate::sim::linearizability::{Timed, Verdict, check_model};
use crate::types::Instant;

/// How often a server looks whether an operation was applied.
const LOOK: Duration = Duration::from_micros(500);
/// How long a clerk waits when no server has led.
const PAUSE: Duration = Duration::from_millis(20);
/// Steps of the search for an order of one key's history.
const BUDGET: u64 = 300_000;

/// The operations on each key.
type Histories = BTreeMap<String, Vec<Timed<(Op, String)>>>;

/// Servers, clerks and what clerks have seen.
#[derive(Clone)]
pub(in crate::sim::lab) struct Kv {
    pub(super) lab: Lab,
    service: Service,
    history: Rc<RefCell<Histories>>,
    clerks: Rc<RefCell<u64>>,
}

impl Kv {
    pub(in crate::sim::lab) fn new(lab: Lab, service: Service) -> Self {
        Kv { lab, service, history: Rc::default(), clerks: Rc::default() }
    }

    /// A clerk with links to some servers. It sees all of them in random order.
    pub(super) fn clerk(&self, linked: impl IntoIterator<Item = usize>) -> Clerk {
        let mut servers: Vec<usize> = (0..self.lab.servers()).collect();
        let mut links = vec![false; servers.len()];
        linked.into_iter().for_each(|i| links[i] = true);
        for i in (1..servers.len()).rev() {
            servers.swap(i, self.lab.between(0, i as u64) as usize);
        }
        let mut clerks = self.clerks.borrow_mut();
        *clerks += 1;
        Clerk {
            kv: self.clone(),
            id: *clerks,
            servers,
            links: Links(Rc::new(RefCell::new(links))),
            serial: 0,
            leader: 0,
        }
    }

    pub(super) fn clerk_of_all(&self) -> Clerk {
        self.clerk(0..self.lab.servers())
    }

    /// Every key's history can be explained by operations that happened one after the other.
    pub(super) fn check_history(&self) -> Outcome {
        let history = self.history.borrow();
        for (key, operations) in &*history {
            match check_model::<Text>(operations, BUDGET) {
                Verdict::Linearizable => {}
                Verdict::Unknown => self.lab.note(&format!("undecided: the {} operations on {key}", operations.len())),
                Verdict::Violation { stuck } => {
                    return Err(format!("the history of {key} is not linearizable: {stuck:?}"));
                }
            }
        }
        Ok(())
    }

    /// The most bytes of term, vote and log that a server may have saved where servers keep snapshots; and where they do not, there is none.
    pub(super) fn check_sizes(&self) -> Outcome {
        const MAX_LOG_SIZE: usize = 8000;
        if self.service.snapshots() == Snapshots::Never {
            let largest = self.service.largest_snapshot();
            return ensure(largest == 0, || format!("a snapshot of {largest} bytes that nobody asked for"));
        }
        let size = self.lab.log_size();
        ensure(size <= MAX_LOG_SIZE, || format!("{size} bytes of log are saved"))
    }

    /// Size in bytes of the largest snapshot so far.
    pub(super) fn largest_snapshot(&self) -> usize {
        self.service.largest_snapshot()
    }

    /// Whether a server has begun with a snapshot or taken one over, in its present life.
    pub(super) fn restored(&self, server: usize) -> bool {
        self.service.look(server, |machine| machine.restored)
    }

    /// A call to a server, with its reply: what came of the operation, or `None` if the server does not lead, or the network lost something.
    async fn call(&self, links: &Links, server: usize, request: &Request) -> Option<String> {
        let lab = &self.lab;
        let Some(life) = lab.life(server).filter(|_| links.0.borrow()[server]) else {
            lab.sleep(lab.between(0, 99)).await;
            return None;
        };
        let reliable = lab.is_reliable();
        let lost = || !reliable && lab.chance(100, 1000);
        let slow = if reliable { 0 } else { lab.between(0, 26) * 1000 };
        lab.sleep_micros(slow + lab.between(100, 1000)).await;
        if lost() || lab.life(server) != Some(life) {
            return None;
        }
        let reply = self.serve(server, life, request).await?;
        if lost() {
            return None;
        }
        lab.sleep_micros(lab.between(100, 1000)).await;
        Some(reply)
    }

    /// The server's side: proposes the operation and waits for what comes of it.
    async fn serve(&self, server: usize, life: u64, request: &Request) -> Option<String> {
        if let Some(known) = self.service.look(server, |machine| machine.outcome(request)) {
            return Some(known);
        }
        let started = self.lab.propose(server, &request.encode())?;
        loop {
            self.lab.sleep_micros(LOOK.as_micros() as u64).await;
            if self.lab.life(server) != Some(life) {
                return None;
            }
            let reached = self.service.look(server, |machine| {
                let ours = machine.holds(started.index, request).then(|| machine.outcome(request)).flatten();
                (machine.applied >= started.index).then_some(ours)
            });
            if let Some(outcome) = reached {
                return outcome;
            }
            if self.lab.state(server).is_none_or(|(term, _)| term != started.term) {
                return None;
            }
        }
    }
}

/// Which servers a clerk can reach.
#[derive(Clone)]
pub(super) struct Links(Rc<RefCell<Vec<bool>>>);

impl Links {
    pub(super) fn connect_all(&self) {
        self.0.borrow_mut().fill(true);
    }
}

/// A client. It does one thing after the other.
pub(super) struct Clerk {
    kv: Kv,
    id: u64,
    servers: Vec<usize>,
    links: Links,
    serial: u64,
    /// Which of its servers led last.
    leader: usize,
}

impl Clerk {
    pub(super) fn links(&self) -> Links {
        self.links.clone()
    }

    pub(super) async fn get(&mut self, key: &str) -> String {
        self.run(key, Op::Get).await
    }

    pub(super) async fn put(&mut self, key: &str, value: &str) {
        self.run(key, Op::Put(value.to_owned())).await;
    }

    pub(super) async fn append(&mut self, key: &str, value: &str) {
        self.run(key, Op::Append(value.to_owned())).await;
    }

    async fn run(&mut self, key: &str, op: Op) -> String {
        self.serial += 1;
        let request = Request { clerk: self.id, serial: self.serial, key: key.to_owned(), op };
        let invoked = self.kv.lab.now();
        let found = loop {
            let server = self.servers[self.leader];
            if let Some(found) = self.kv.call(&self.links, server, &request).await {
                break found;
            }
            self.leader = (self.leader + 1) % self.servers.len();
            if self.leader == 0 {
                self.kv.lab.sleep_micros(PAUSE.as_micros() as u64).await;
            }
        };
        self.note(request, &found, invoked);
        found
    }

    fn note(&self, request: Request, found: &str, invoked: Instant) {
        let returned = Some(self.kv.lab.now());
        let timed = Timed { action: (request.op, found.to_owned()), invoked, returned };
        self.kv.history.borrow_mut().entry(request.key).or_default().push(timed);
    }
}
