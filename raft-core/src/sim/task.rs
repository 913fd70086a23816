//! Scripts on virtual time: a single-threaded executor for futures that wait for nothing but the simulation's own clock
//! and one another. So a test reads from top to bottom, several clients run side by side, and a run is still a function of its seed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::cluster::{Cluster, Event};
use crate::types::Instant;

/// Number of a task.
pub type TaskId = u64;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A running simulation, as its scripts see it. Cheap to clone; one thread only.
#[derive(Clone)]
pub struct Sim(Rc<Shared>);

struct Shared {
    cluster: RefCell<Cluster>,
    /// Tasks that were spawned and not yet adopted by the loop.
    nursery: RefCell<Vec<(TaskId, Task)>>,
    next_task: Cell<TaskId>,
    /// The task that is being polled: the one that a timer must wake.
    current: Cell<TaskId>,
}

/// Why a simulation ended early: what was expected, and what was seen instead.
pub type Failure = String;

impl Sim {
    /// Puts a cluster on the clock.
    pub fn new(cluster: Cluster) -> Sim {
        Sim(Rc::new(Shared {
            cluster: RefCell::new(cluster),
            nursery: RefCell::default(),
            next_task: Cell::new(0),
            current: Cell::new(0),
        }))
    }

    /// Looks at the cluster or acts upon it. Not to be nested.
    pub fn with<T>(&self, act: impl FnOnce(&mut Cluster) -> T) -> T {
        act(&mut self.0.cluster.borrow_mut())
    }

    /// The present moment.
    pub fn now(&self) -> Instant {
        self.0.cluster.borrow().now()
    }

    /// Waits.
    pub async fn sleep(&self, time: Duration) {
        let until = self.now() + time;
        let mut set = false;
        poll_fn(|_| {
            if set && self.now() >= until {
                return Poll::Ready(());
            }
            if !set {
                self.with(|cluster| cluster.schedule_at(until, Event::Task(self.0.current.get())));
                set = true;
            }
            Poll::Pending
        })
        .await;
    }

    /// Starts a task that runs beside the others from this moment on.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Joining<T> {
        let state = Rc::new(RefCell::new(JoinState { value: None, waiter: None }));
        let (sim, shared) = (self.clone(), state.clone());
        let task = self.0.next_task.get() + 1;
        self.0.next_task.set(task);
        self.0.nursery.borrow_mut().push((
            task,
            Box::pin(async move {
                let value = future.await;
                let mut state = shared.borrow_mut();
                state.value = Some(value);
                if let Some(waiter) = state.waiter.take() {
                    sim.with(|cluster| cluster.schedule_at(cluster.now(), Event::Task(waiter)));
                }
            }),
        ));
        self.with(|cluster| cluster.schedule_at(cluster.now(), Event::Task(task)));
        Joining { sim: self.clone(), state }
    }

    /// Runs `script` to its end, and everything else alongside.
    ///
    /// # Errors
    /// What the script returned, the first invariant that was broken, or that the simulation ran dry or past `limit`.
    pub fn run<T: 'static>(
        &self,
        limit: Duration,
        script: impl Future<Output = Result<T, Failure>> + 'static,
    ) -> Result<T, Failure> {
        /// Many times what the longest script takes: whoever gets here goes in circles.
        const MAX_EVENTS: u64 = 5_000_000;
        let main = self.spawn(script);
        let mut tasks: BTreeMap<TaskId, Task> = BTreeMap::new();
        loop {
            tasks.extend(self.0.nursery.borrow_mut().drain(..));
            let event = self.with(Cluster::next_event).ok_or("the simulation ran dry")?;
            match event {
                Event::Task(task) => self.poll(&mut tasks, task),
                event => self.with(|cluster| cluster.handle(event)),
            }
            if let Some(failure) = self.with(|cluster| cluster.failure().cloned()) {
                return Err(failure);
            }
            if let Some(result) = main.state.borrow_mut().value.take() {
                return result;
            }
            if self.now() > Instant::default() + limit || self.with(|cluster| cluster.events()) > MAX_EVENTS {
                return Err(format!("not done after {} s", self.now().since(Instant::default()).as_secs_f64()));
            }
        }
    }

    /// Lets one task run until it waits again. A task that is done may still have timers out; they find nobody.
    fn poll(&self, tasks: &mut BTreeMap<TaskId, Task>, id: TaskId) {
        let Some(task) = tasks.get_mut(&id) else { return };
        self.0.current.set(id);
        // Nothing here needs a waker: tasks wait for timers and for other tasks, and both know the task by its number.
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            tasks.remove(&id);
        }
    }
}

struct JoinState<T> {
    value: Option<T>,
    waiter: Option<TaskId>,
}

/// A task that was spawned, to be waited for. Dropping it lets the task run on.
#[must_use = "a task that nobody joins ends unseen"]
pub struct Joining<T> {
    sim: Sim,
    state: Rc<RefCell<JoinState<T>>>,
}

impl<T> Joining<T> {
    /// Waits for the task to end.
    pub async fn join(self) -> T {
        poll_fn(|_| {
            let mut state = self.state.borrow_mut();
            match state.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    state.waiter = Some(self.sim.0.current.get());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::entries::EntryRef;
    use crate::sim::cluster::{Applier, Options};
    use crate::types::NodeId;

    struct Nothing;

    impl Applier for Nothing {
        fn apply(&mut self, _server: usize, _entry: &EntryRef<'_>) -> Result<(), Failure> {
            Ok(())
        }
    }

    /// A simulation without servers: only scripts.
    fn sim() -> Sim {
        let config = Config::new(NodeId(1));
        let options = Options { servers: 0, seed: 1, config, slowest_write: Duration::ZERO, tell_failures: false };
        Sim::new(Cluster::new(options, Box::new(Nothing), None))
    }

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn tasks_run_side_by_side_in_virtual_time() {
        let sim = sim();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let (s, log) = (sim.clone(), seen.clone());
        let script = async move {
            let tasks: Vec<_> = [30, 10, 20]
                .into_iter()
                .map(|millis| {
                    let (sim, log) = (s.clone(), log.clone());
                    s.spawn(async move {
                        sim.sleep(MILLI * millis).await;
                        log.borrow_mut().push(millis);
                        millis
                    })
                })
                .collect();
            let mut sum = 0;
            for task in tasks {
                sum += task.join().await;
            }
            Ok((sum, s.now()))
        };
        assert_eq!(sim.run(MILLI * 100, script), Ok((60, Instant::from_millis(30))));
        assert_eq!(*seen.borrow(), [10, 20, 30]);
    }

    #[test]
    fn a_task_that_ended_before_it_is_joined_is_not_lost() {
        let sim = sim();
        let s = sim.clone();
        let script = async move {
            let task = s.spawn(async { 7 });
            s.sleep(MILLI * 5).await;
            Ok(task.join().await)
        };
        assert_eq!(sim.run(MILLI * 100, script), Ok(7));
    }

    #[test]
    fn a_script_that_takes_too_long_fails() {
        let sim = sim();
        let s = sim.clone();
        let script = async move {
            loop {
                s.sleep(MILLI * 50).await;
                if s.now() > Instant::from_millis(10_000) {
                    return Ok(());
                }
            }
        };
        assert!(sim.run(MILLI * 100, script).unwrap_err().contains("not done"));
    }

    #[test]
    fn a_script_that_waits_for_nothing_fails() {
        let sim = sim();
        let never = std::future::pending::<Result<(), Failure>>();
        assert_eq!(sim.run(MILLI, never), Err("the simulation ran dry".into()));
    }
}
