//! Where the state machines of all groups do their work: on a few threads that they share, or, when nothing is queued for a machine and it says that the
//! work is prompt, right on the loop's.
//!
//! A machine's jobs are done in the order in which they were submitted. There is one submitter, and it works itself only when every earlier job is done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use raft_core::GroupId;

use crate::applier::{Applier, Failed, Job};
use crate::farewell::Farewell;
use crate::snapshot::keeper;
use crate::snapshot::manager::Task;
use crate::state_machine::StateMachine;

/// How often a machine is asked whether what it was told to make durable is so, or whether it can be cut.
const POLL: Duration = Duration::from_millis(5);
/// Most jobs that are done before answers leave: together they cost one wake-up.
const MAX_JOBS: usize = 64;

/// The threads.
#[derive(Clone)]
pub(crate) struct Pool {
    queues: Vec<Sender<Item>>,
}

/// What is queued, and for whom.
enum Item {
    Job(Arc<dyn Served>, Job),
    Task(Arc<dyn Served>, Task),
    End(Arc<dyn Served>, Farewell),
}

impl Pool {
    /// Starts so many threads, at least one. They end when all who submit are gone and everything queued is done.
    pub(crate) fn spawn(
        threads: usize,
        keeper: &Sender<keeper::Order>,
    ) -> std::io::Result<(Pool, Vec<JoinHandle<()>>)> {
        let start = |number: usize| {
            let (sender, items) = channel();
            let name = if number == 0 { "raft-applier".to_owned() } else { format!("raft-applier-{number}") };
            let keeper = keeper.clone();
            let thread = Builder::new().name(name).spawn(move || run(&items, &keeper))?;
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
        self.queue.send(Item::Job(self.place.clone(), job)).is_ok()
    }

    fn order(&mut self, task: Task) -> bool {
        self.place.pending.fetch_add(1, Ordering::AcqRel);
        self.queue.send(Item::Task(self.place.clone(), task)).is_ok()
    }

    fn end(self: Box<Self>, farewell: Farewell) {
        let Submitter { place, queue } = *self;
        // If there is no thread any more, nothing is queued, and the farewell is said right here.
        let _ = queue.send(Item::End(place, farewell));
    }
}

/// What a thread does for a machine.
trait Served: Send + Sync {
    fn job(&self, job: Job);
    fn task(&self, task: Task);
    /// Sends the answers, and looks after what was begun. Whether there is more to look after.
    fn attend(&self) -> bool;
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

    fn attend(&self) -> bool {
        let mut applier = self.lock();
        applier.flush();
        guard(&mut applier, Applier::attend).unwrap_or(false)
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

fn run(items: &Receiver<Item>, keeper: &Sender<keeper::Order>) {
    // Whom this thread works for at the moment; between two batches only those who are to be looked after.
    let mut busy: Vec<Arc<dyn Served>> = Vec::new();
    loop {
        let first = if busy.is_empty() {
            let Ok(item) = items.recv() else { return };
            Some(item)
        } else {
            match items.recv_timeout(POLL) {
                Ok(item) => Some(item),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        };
        for item in first.into_iter().chain(items.try_iter().take(MAX_JOBS)) {
            match item {
                Item::Job(served, job) => {
                    served.job(job);
                    remember(&mut busy, served);
                }
                Item::Task(served, task) => {
                    served.task(task);
                    remember(&mut busy, served);
                }
                Item::End(served, farewell) => {
                    served.attend();
                    busy.retain(|other| !Arc::ptr_eq(other, &served));
                    drop(served);
                    // If the keeper is gone, nothing is being written, and this drops the farewell.
                    let _ = keeper.send(keeper::Order::End(farewell));
                }
            }
        }
        busy.retain(|served| served.attend());
    }
}

fn remember(busy: &mut Vec<Arc<dyn Served>>, served: Arc<dyn Served>) {
    if !busy.iter().rev().any(|other| Arc::ptr_eq(other, &served)) {
        busy.push(served);
    }
}
