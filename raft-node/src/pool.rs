//! Where the state machines of all groups do their work: on a few threads that they share, or, when nothing is queued for a machine and it says that the
//! work is prompt, right on the loop's.
//!
//! A machine's jobs are done in the order in which they were submitted. There is one submitter, and it works itself only when every earlier job is done.
//!
//! A thread does one job after the other, so a long one holds up the groups that share it: batches of entries are bounded, and what restores a machine from
//! a snapshot gets a thread of its own for that time. Answers never wait for the work of another group.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use raft_core::GroupId;

use crate::applier::{Applier, Failed, Job, is_small};
use crate::farewell::Farewell;
use crate::snapshot::manager::Task;
use crate::state_machine::StateMachine;

/// How often a machine is asked whether what it was told to make durable is so, or whether it can be cut.
const POLL: Duration = Duration::from_millis(5);
/// Most jobs of a group that are done before answers leave: together they cost one wake-up.
const MAX_JOBS: usize = 64;
/// When they have taken so long, answers leave before the next.
const ANSWER_AFTER: Duration = Duration::from_millis(1);

/// The threads.
#[derive(Clone)]
pub(crate) struct Pool {
    queues: Vec<Sender<Item>>,
}

/// What is queued, and for whom.
struct Item {
    whom: Arc<dyn Served>,
    what: What,
}

enum What {
    Job(Job),
    Task(Task),
    /// Restores the machine from a snapshot; and the way back from there.
    Restore(Job, Sender<Item>),
    /// That is done.
    Restored,
    End(Farewell),
}

impl Pool {
    /// Starts so many threads, at least one. They end when all who submit are gone and everything queued is done.
    pub(crate) fn spawn(threads: usize) -> std::io::Result<(Pool, Vec<JoinHandle<()>>)> {
        let start = |number: usize| {
            let (sender, items) = channel();
            let name = if number == 0 { "raft-applier".to_owned() } else { format!("raft-applier-{number}") };
            let thread = Builder::new().name(name).spawn(move || run(&items))?;
            Ok((sender, thread))
        };
        let (queues, threads) = (0..threads.max(1)).map(start).collect::<std::io::Result<(Vec<_>, Vec<_>)>>()?;
        Ok((Pool { queues }, threads))
    }

    /// Takes in a group's state machine.
    pub(crate) fn admit<S: StateMachine>(&self, group: GroupId, applier: Applier<S>) -> Box<dyn Submit> {
        let queue = self.queues[(group.0 % self.queues.len() as u64) as usize].clone();
        let place = Arc::new(Place { applier: Mutex::new(applier), pending: AtomicUsize::new(0) });
        Box::new(Submitter { place, queue })
    }
}

/// Where the loop hands over a group's jobs.
pub(crate) trait Submit: Send {
    /// Does the job, or queues it. `false` when the thread is gone.
    fn submit(&mut self, job: Job) -> bool;

    /// Queues what is to be done for a snapshot, behind the jobs. `false` when the thread is gone.
    fn order(&mut self, task: Task) -> bool;

    /// Behind all jobs, lets go of the machine; then the farewell goes on its way.
    fn end(self: Box<Self>, farewell: Farewell);
}

/// A machine's place at a thread.
struct Place<S> {
    applier: Mutex<Applier<S>>,
    /// Jobs that are queued or being done on the thread.
    pending: AtomicUsize,
}

struct Submitter<S> {
    place: Arc<Place<S>>,
    queue: Sender<Item>,
}

impl<S: StateMachine> Submit for Submitter<S> {
    fn submit(&mut self, job: Job) -> bool {
        let Place { applier, pending } = &*self.place;
        if pending.load(Ordering::Acquire) == 0
            && let Ok(mut applier) = applier.try_lock()
            && applier.is_prompt(&job)
        {
            guard(&mut applier, |applier| applier.work(job));
            applier.flush();
            return true;
        }
        pending.fetch_add(1, Ordering::AcqRel);
        let what = match job {
            Job::Restore(_) => What::Restore(job, self.queue.clone()),
            _ => What::Job(job),
        };
        self.send(what)
    }

    fn order(&mut self, task: Task) -> bool {
        self.place.pending.fetch_add(1, Ordering::AcqRel);
        self.send(What::Task(task))
    }

    fn end(self: Box<Self>, farewell: Farewell) {
        // If there is no thread any more, nothing is queued, and the farewell is said right here.
        let _ = self.send(What::End(farewell));
    }
}

impl<S: StateMachine> Submitter<S> {
    fn send(&self, what: What) -> bool {
        self.queue.send(Item { whom: self.place.clone(), what }).is_ok()
    }
}

/// What a thread does for a machine.
trait Served: Send + Sync {
    fn job(&self, job: Job);
    fn task(&self, task: Task);
    /// Sends the answers.
    fn answer(&self);
    /// Sends the answers, and looks after what was begun. Whether there is more to look after.
    fn attend(&self) -> bool;
    /// Nothing more comes.
    fn end(&self, farewell: Farewell);
}

impl<S: StateMachine> Served for Place<S> {
    fn job(&self, job: Job) {
        guard(&mut self.lock(), |applier| applier.work(job));
        self.pending.fetch_sub(1, Ordering::AcqRel);
    }

    fn task(&self, task: Task) {
        guard(&mut self.lock(), |applier| applier.begin(task));
        self.pending.fetch_sub(1, Ordering::AcqRel);
    }

    fn answer(&self) {
        self.lock().flush();
    }

    fn attend(&self) -> bool {
        let mut applier = self.lock();
        applier.flush();
        guard(&mut applier, Applier::attend).unwrap_or(false)
    }

    fn end(&self, farewell: Farewell) {
        self.lock().leave(farewell);
    }
}

impl<S> Place<S> {
    /// A machine that panicked is marked as failed, and nobody looks at its state again.
    fn lock(&self) -> MutexGuard<'_, Applier<S>> {
        self.applier.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A machine that panics has failed, like one that returns an error, and the machines of other groups go on (where a panic does not end the whole process). What
/// it was given is dropped, and so those who wait are told that the outcome is unknown.
fn guard<S: StateMachine, R>(
    applier: &mut Applier<S>,
    work: impl FnOnce(&mut Applier<S>) -> Result<R, Failed>,
) -> Option<R> {
    if applier.has_failed() {
        return None;
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| work(applier)));
    match outcome {
        Ok(done) => done.ok(),
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            let Failed = applier.fail(format!("it panicked: {text}").into());
            None
        }
    }
}

fn run(items: &Receiver<Item>) {
    let mut worker = Worker { busy: Vec::new(), away: Vec::new(), unanswered: None, answered: Instant::now() };
    loop {
        let first = if worker.busy.is_empty() {
            let Ok(item) = items.recv() else { return };
            Some(item)
        } else {
            match items.recv_timeout(POLL) {
                Ok(item) => Some(item),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        worker.answered = Instant::now();
        for item in first.into_iter().chain(items.try_iter().take(MAX_JOBS)) {
            worker.take(item);
        }
        worker.unanswered = None;
        worker.busy.retain(|served| served.attend());
    }
}

/// For whom a thread works.
struct Worker {
    /// Those who had work in this batch; between two batches only those who are to be looked after.
    busy: Vec<Arc<dyn Served>>,
    /// Those who are being restored on a thread of their own, and what has come for them meanwhile.
    away: Vec<(Arc<dyn Served>, VecDeque<Item>)>,
    /// Whose answers have not left.
    unanswered: Option<Arc<dyn Served>>,
    /// When answers left.
    answered: Instant,
}

impl Worker {
    fn take(&mut self, item: Item) {
        let away = self.away.iter().position(|(other, _)| Arc::ptr_eq(other, &item.whom));
        let Item { whom, what } = match away {
            Some(at) if matches!(item.what, What::Restored) => return self.welcome(at),
            Some(at) => return self.away[at].1.push_back(item),
            None => item,
        };
        match what {
            What::Job(job) => {
                let same = self.unanswered.as_ref().is_some_and(|other| Arc::ptr_eq(other, &whom));
                if !same || !is_small(&job) || self.answered.elapsed() >= ANSWER_AFTER {
                    self.answer();
                }
                whom.job(job);
                self.unanswered = Some(whom.clone());
                self.remember(whom);
            }
            What::Task(task) => {
                self.answer();
                whom.task(task);
                self.remember(whom);
            }
            What::Restore(job, back) => self.send_away(whom, job, back),
            // Nobody is welcomed who was not away.
            What::Restored => {}
            What::End(farewell) => {
                self.answer();
                self.busy.retain(|other| !Arc::ptr_eq(other, &whom));
                whom.end(farewell);
            }
        }
    }

    fn answer(&mut self) {
        if let Some(served) = self.unanswered.take() {
            served.answer();
        }
        self.answered = Instant::now();
    }

    fn remember(&mut self, served: Arc<dyn Served>) {
        if !self.busy.iter().rev().any(|other| Arc::ptr_eq(other, &served)) {
            self.busy.push(served);
        }
    }

    /// A snapshot can be large: the machines of other groups do not wait for it.
    fn send_away(&mut self, whom: Arc<dyn Served>, job: Job, back: Sender<Item>) {
        self.answer();
        let (hand_over, given) = channel();
        let own = whom.clone();
        let spawned = Builder::new().name("raft-restore".into()).spawn(move || {
            crate::background::yield_to_others();
            if let Ok(job) = given.recv() {
                own.job(job);
                own.answer();
                // This thread keeps nothing; and the other one is there as long as somebody can send to it.
                let _ = back.send(Item { whom: own, what: What::Restored });
            }
        });
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to restore a state machine; others wait for it");
            whom.job(job);
            whom.answer();
            return self.remember(whom);
        }
        self.busy.retain(|other| !Arc::ptr_eq(other, &whom));
        self.away.push((whom, VecDeque::new()));
        // It waits for this.
        let _ = hand_over.send(job);
    }

    fn welcome(&mut self, at: usize) {
        let (served, waiting) = self.away.swap_remove(at);
        // Something may have been begun before.
        self.remember(served);
        waiting.into_iter().for_each(|item| self.take(item));
    }
}
