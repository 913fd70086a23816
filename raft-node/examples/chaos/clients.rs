//! The load: clients that read and write a few keys and remember what they were told.
//!
//! Every other client writes within a session and repeats each write until its outcome is known; it counts up a counter of its own, besides. The others do not, and
//! go on without having learnt what became of a write.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use raft_core::sim::schedule::Dice;
use raft_node::Consistency;
use raft_node::client::{CasOutcome, Client, ClientConfig, Error, Versioned};
use tokio::task::JoinSet;

use crate::history::{Did, History, Ledger, Record, Seen, Tallies};

/// Keys that are in use at the same time.
const SLOTS: usize = 5;
/// After so many operations a slot goes on with another key: the check of a history takes longer than in proportion.
const OPERATIONS_PER_KEY: u64 = 1200;
/// An operation of unknown outcome counts for so many: it makes the check longer still.
const WEIGHT_OF_DOUBT: u64 = 100;
/// Prefix of the keys that are written once.
pub(crate) const LEDGER: &str = "ledger/";

/// Prefix of the keys that are counted up by one client each.
pub(crate) const TALLY: &str = "tally/";

/// How the load looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Clients, each with one operation at a time.
    pub(crate) clients: u64,
    /// Longest wait of a client between two operations.
    pub(crate) think: Duration,
    /// How long a client waits for an operation.
    pub(crate) timeout: Duration,
    /// How long a client that has a session repeats one.
    pub(crate) patience: Duration,
    /// Longest value, in bytes; most are short.
    pub(crate) value_bytes: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Shape {
            clients: 6,
            think: Duration::from_millis(10),
            timeout: Duration::from_secs(2),
            patience: Duration::from_secs(30),
            value_bytes: 16 << 10,
        }
    }
}

/// How an acknowledged write went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// Since the beginning.
    pub(crate) start: Duration,
    pub(crate) took: Duration,
}

/// How many operations ended how.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Outcomes {
    pub(crate) ok: u64,
    /// Nothing was done, and the client was told.
    pub(crate) failed: u64,
    /// Writes that may have been done or not.
    pub(crate) unknown: u64,
}

/// All that the clients have to say.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) history: History,
    pub(crate) ledger: Ledger,
    pub(crate) tallies: Tallies,
    /// Writes that were sent again although an earlier copy may have taken effect.
    pub(crate) repeated: u64,
    pub(crate) outcomes: Outcomes,
    /// Errors that no fault explains.
    pub(crate) violations: Vec<String>,
}

impl Told {
    fn merge(&mut self, other: Told) {
        self.history.merge(other.history);
        self.ledger.merge(other.ledger);
        self.tallies.merge(other.tallies);
        self.repeated += other.repeated;
        self.outcomes.ok += other.outcomes.ok;
        self.outcomes.failed += other.outcomes.failed;
        self.outcomes.unknown += other.outcomes.unknown;
        self.violations.extend(other.violations);
    }
}

/// What the clients share.
struct Shared {
    origin: Instant,
    seed: u64,
    shape: Shape,
    stop: AtomicBool,
    slots: [AtomicU64; SLOTS],
    /// When a write was acknowledged last, in nanoseconds since the origin.
    last_write: AtomicU64,
    /// Longest time between two acknowledged writes.
    longest_gap: Mutex<(Duration, Duration)>,
    /// All acknowledged writes.
    samples: Mutex<Vec<Sample>>,
}

/// Clients at work.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<Told>,
}

impl Load {
    /// Starts clients. Their times count from `origin`.
    pub(crate) fn start(config: &ClientConfig, origin: Instant, seed: u64, shape: Shape) -> Result<Load> {
        let shared = Arc::new(Shared {
            origin,
            seed,
            shape,
            stop: AtomicBool::new(false),
            slots: Default::default(),
            last_write: AtomicU64::new(nanos(origin)),
            longest_gap: Mutex::default(),
            samples: Mutex::default(),
        });
        let mut clients = JoinSet::new();
        for number in 0..shape.clients {
            let sessions = number % 2 == 0;
            let timeout = if sessions { shape.patience } else { shape.timeout };
            let client = Client::new(ClientConfig { timeout, sessions, ..config.clone() }).context("no client")?;
            clients.spawn(Worker::new(number, sessions, client, shared.clone()).run());
        }
        Ok(Load { shared, clients })
    }

    /// When a write was acknowledged last, since the beginning.
    pub(crate) fn last_write(&self) -> Duration {
        Duration::from_nanos(self.shared.last_write.load(Ordering::Relaxed))
    }

    /// Waits for a write that is acknowledged after now, and says how long that took; an error after `patience`.
    pub(crate) async fn next_write(&self, patience: Duration) -> Result<Duration> {
        let begin = Instant::now();
        let seen = self.last_write();
        while self.last_write() == seen {
            if begin.elapsed() > patience {
                anyhow::bail!("no write was acknowledged for {patience:?}");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(begin.elapsed())
    }

    /// The longest time between two acknowledged writes, and when it began.
    pub(crate) fn longest_gap(&self) -> (Duration, Duration) {
        *self.shared.longest_gap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writes acknowledged so far.
    pub(crate) fn samples(&self) -> Vec<Sample> {
        self.shared.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The keys that are in use now.
    pub(crate) fn keys(&self) -> Vec<String> {
        let count = |slot: &AtomicU64| slot.load(Ordering::Relaxed);
        self.shared.slots.iter().enumerate().map(|(slot, used)| key_of(slot, count(used))).collect()
    }

    /// Stops the clients and gathers what they were told.
    pub(crate) async fn finish(mut self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        while let Some(one) = self.clients.join_next().await {
            match one {
                Ok(one) => told.merge(one),
                Err(error) => told.violations.push(format!("a client has failed: {error}")),
            }
        }
        told
    }
}

/// The key of a slot after `count` operations.
fn key_of(slot: usize, count: u64) -> String {
    format!("key-{slot}-{}", count / OPERATIONS_PER_KEY)
}

fn nanos(origin: Instant) -> u64 {
    u64::try_from(origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    fn written(&self, start: u64, end: u64) {
        let sample = Sample { start: Duration::from_nanos(start), took: Duration::from_nanos(end - start) };
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
        let gap = Duration::from_nanos(end.saturating_sub(self.last_write.fetch_max(end, Ordering::Relaxed)));
        let mut longest = self.longest_gap.lock().unwrap_or_else(PoisonError::into_inner);
        if gap > longest.0 {
            *longest = (gap, Duration::from_nanos(end).saturating_sub(gap));
        }
    }
}

/// What became of a write.
enum Outcome<T> {
    Done(T),
    InDoubt,
    NotDone,
}

/// A key that one client counts up. Nobody else touches it, so its revision is always the one that the client was told last.
#[derive(Clone, Debug, Default)]
struct Counter {
    key: String,
    count: u64,
    revision: u64,
}

impl Counter {
    /// Client `number` begins its `generation`th.
    fn new(number: u64, generation: usize) -> Counter {
        Counter { key: format!("{TALLY}{number}/{generation}"), count: 0, revision: 0 }
    }
}

/// One client.
struct Worker {
    number: u64,
    client: Client,
    shared: Arc<Shared>,
    dice: Dice,
    /// What it counts up, if it has a session.
    counter: Option<Counter>,
    /// Values written so far.
    count: u64,
    /// What this client saw last in each slot, with its key: compare-and-swap begins there.
    seen: [(String, Option<Seen>); SLOTS],
    told: Told,
}

impl Worker {
    fn new(number: u64, sessions: bool, client: Client, shared: Arc<Shared>) -> Worker {
        let dice = Dice::new(shared.seed, 100 + number);
        let counter = sessions.then(|| Counter::new(number, 0));
        Worker { number, client, shared, dice, counter, count: 0, seen: Default::default(), told: Told::default() }
    }

    async fn run(mut self) -> Told {
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.dice.pick(20) {
                0..=6 => self.put().await,
                7..=13 => self.get().await,
                14..=16 => self.swap().await,
                17 => self.delete().await,
                18 => match self.counter.take() {
                    Some(counter) => self.increment(counter).await,
                    None => self.enter().await,
                },
                _ => self.enter().await,
            }
            tokio::time::sleep(self.dice.time(Duration::ZERO, self.shared.shape.think)).await;
        }
        self.told.repeated = self.client.repeated();
        if let Some(Counter { key, count, .. }) = self.counter {
            self.told.tallies.put(key, count, false);
        }
        self.client.close().await;
        self.told
    }

    /// A slot and the key that is in use there now.
    fn key(&mut self) -> (usize, String) {
        let slot = self.dice.pick(SLOTS);
        let count = self.shared.slots[slot].fetch_add(1, Ordering::Relaxed);
        let key = key_of(slot, count);
        if self.seen[slot].0 != key {
            self.seen[slot] = (key.clone(), None);
        }
        (slot, key)
    }

    /// A value that nobody else writes, and its bytes: mostly short, sometimes not.
    fn value(&mut self) -> (u64, Vec<u8>) {
        self.count += 1;
        let value = ((self.number + 1) << 32) | self.count;
        let length = if self.dice.chance(1, 20) { self.dice.between(0, self.shared.shape.value_bytes) } else { 20 };
        let mut bytes = format!("{value}:").into_bytes();
        bytes.resize(bytes.len() + length as usize, b'x');
        (value, bytes)
    }

    async fn put(&mut self) {
        let ((slot, key), (value, bytes)) = (self.key(), self.value());
        let start = nanos(self.shared.origin);
        let outcome = self.client.put(key.as_bytes(), &bytes).await;
        let revision = match self.written(start, outcome, slot, &key) {
            Outcome::Done(revision) => {
                self.seen[slot].1 = Some(Seen { revision, value });
                Some(revision)
            }
            Outcome::InDoubt => None,
            Outcome::NotDone => return,
        };
        self.record(&key, start, revision.is_some(), Did::Put { value, revision });
    }

    async fn get(&mut self) {
        let (slot, key) = self.key();
        let start = nanos(self.shared.origin);
        let outcome = self.client.get(key.as_bytes(), Consistency::Linearizable).await;
        match outcome.map(|found| found.as_ref().map(seen).transpose()) {
            Ok(Ok(found)) => {
                self.told.outcomes.ok += 1;
                self.seen[slot].1 = found;
                self.record(&key, start, true, Did::Get { found });
            }
            Ok(Err(error)) => self.told.violations.push(format!("{key}: {error:#}")),
            Err(error) => self.failed(&key, &error),
        }
    }

    async fn swap(&mut self) {
        let ((slot, key), (value, bytes)) = (self.key(), self.value());
        let expected = self.seen[slot].1;
        let start = nanos(self.shared.origin);
        let outcome = self.client.cas(key.as_bytes(), expected.map_or(0, |seen| seen.revision), &bytes).await;
        let (answered, did) = match self.written(start, outcome, slot, &key) {
            Outcome::Done(CasOutcome::Mismatch { current }) => {
                self.seen[slot].1 = None;
                (true, Did::Mismatch { current })
            }
            Outcome::Done(CasOutcome::Written { revision }) => {
                self.seen[slot].1 = Some(Seen { revision, value });
                (true, Did::Swap { expected, value, revision: Some(revision) })
            }
            Outcome::InDoubt => (false, Did::Swap { expected, value, revision: None }),
            Outcome::NotDone => return,
        };
        self.record(&key, start, answered, did);
    }

    async fn delete(&mut self) {
        let (slot, key) = self.key();
        let start = nanos(self.shared.origin);
        let outcome = self.client.delete(key.as_bytes()).await;
        let existed = match self.written(start, outcome, slot, &key) {
            Outcome::Done(existed) => Some(existed),
            Outcome::InDoubt => None,
            Outcome::NotDone => return,
        };
        self.seen[slot].1 = None;
        self.record(&key, start, existed.is_some(), Did::Delete { existed });
    }

    /// An entry of the ledger: a key that is written once.
    async fn enter(&mut self) {
        let (value, bytes) = self.value();
        let key = format!("{LEDGER}{}/{:08}", self.number, self.count);
        let start = nanos(self.shared.origin);
        let outcome = self.client.put(key.as_bytes(), &bytes).await;
        match self.written(start, outcome, usize::MAX, &key) {
            Outcome::Done(_) => drop(self.told.ledger.acknowledged.insert(key, value)),
            Outcome::InDoubt => drop(self.told.ledger.in_doubt.insert(key, value)),
            Outcome::NotDone => drop(self.told.ledger.refused.insert(key)),
        }
    }

    /// Counts up by one. However often that is repeated, it must have been done once: the second time the revision would not be the expected one any more.
    async fn increment(&mut self, mut counter: Counter) {
        let next = counter.count + 1;
        let start = nanos(self.shared.origin);
        let outcome = self.client.cas(counter.key.as_bytes(), counter.revision, format!("{next}:").as_bytes()).await;
        match self.written(start, outcome, usize::MAX, &counter.key) {
            Outcome::Done(CasOutcome::Written { revision }) => (counter.count, counter.revision) = (next, revision),
            Outcome::Done(CasOutcome::Mismatch { current }) => {
                self.told.violations.push(format!(
                    "{}: counting to {next} was done twice, or once more than was told: revision {current} instead of {}",
                    counter.key, counter.revision
                ));
                counter = self.next_counter(&counter, true);
            }
            Outcome::InDoubt => counter = self.next_counter(&counter, true),
            Outcome::NotDone => {}
        }
        self.counter = Some(counter);
    }

    /// Puts a counter aside.
    fn next_counter(&mut self, counter: &Counter, in_doubt: bool) -> Counter {
        self.told.tallies.put(counter.key.clone(), counter.count, in_doubt);
        Counter::new(self.number, self.told.tallies.count())
    }

    /// Counts what became of a write.
    fn written<T>(&mut self, start: u64, outcome: Result<T, Error>, slot: usize, key: &str) -> Outcome<T> {
        match outcome {
            Ok(answer) => {
                let end = nanos(self.shared.origin);
                self.told.outcomes.ok += 1;
                self.shared.written(start, end);
                Outcome::Done(answer)
            }
            Err(Error::OutcomeUnknown { .. }) => {
                self.told.outcomes.unknown += 1;
                if let Some(slot) = self.shared.slots.get(slot) {
                    slot.fetch_add(WEIGHT_OF_DOUBT, Ordering::Relaxed);
                }
                Outcome::InDoubt
            }
            Err(error) => {
                self.failed(key, &error);
                Outcome::NotDone
            }
        }
    }

    fn failed(&mut self, key: &str, error: &Error) {
        self.told.outcomes.failed += 1;
        if !matches!(error, Error::Timeout { .. }) {
            self.told.violations.push(format!("{key}: an error that no fault explains: {error}"));
        }
    }

    fn record(&mut self, key: &str, start: u64, answered: bool, did: Did) {
        let end = answered.then(|| nanos(self.shared.origin));
        self.told.history.push(key, Record { did, start, end });
    }
}

/// Reads a key of the history as any client would.
pub(crate) async fn read(client: &Client, origin: Instant, key: &str) -> Result<Record> {
    let start = nanos(origin);
    let found = client.get(key.as_bytes(), Consistency::Linearizable).await?;
    let found = found.as_ref().map(seen).transpose()?;
    Ok(Record { did: Did::Get { found }, start, end: Some(nanos(origin)) })
}

fn seen(found: &Versioned) -> Result<Seen> {
    Ok(Seen { revision: found.revision, value: number(&found.value)? })
}

/// The number in a value; the rest must be what was written, too.
pub(crate) fn number(bytes: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(bytes).context("a value that nobody wrote")?;
    let (number, filling) = text.split_once(':').context("a value that nobody wrote")?;
    anyhow::ensure!(filling.bytes().all(|byte| byte == b'x'), "a damaged value");
    number.parse().context("a value that nobody wrote")
}
