//! Connections to one node with requests in progress, whatever protocol they speak.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

use crate::meter::Meter;
use crate::pace::{Schedule, pace};

/// How long requests may take after the last one was sent.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// What follows when a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    /// The client sends its next one at once.
    Closed,
    /// Nothing: requests are sent by the clock.
    Open,
}

/// One connection.
pub(crate) trait Line {
    /// Queues a request that begins at `begin`.
    fn issue(&self, begin: Instant, measured: bool);

    /// Sends nothing new from now on.
    fn stop(&self);

    /// Whether it was told to send nothing new.
    fn is_stopped(&self) -> bool;

    /// Requests without an answer.
    fn in_progress(&self) -> usize;

    /// Forgets the requests that were never answered, and returns their number; those that an open loop measures count as having taken until now, at least.
    fn give_up(&self, now: Instant) -> u64;

    /// Payload of this connection so far, in bytes: sent and received. `None` when nobody counts it.
    fn bytes(&self) -> Option<(u64, u64)>;

    /// Ends the connection.
    fn close(&self);
}

/// Some connections to one node, and those who use them. Dropping it closes them.
pub(crate) struct Lanes {
    /// The connections.
    pub(crate) all: Vec<Rc<dyn Line>>,
    /// What goes on on them.
    pub(crate) tasks: JoinSet<Result<()>>,
}

impl Lanes {
    /// Sends requests by the clock from now on.
    pub(crate) fn pace(&mut self, schedule: Schedule, meter: &Rc<Meter>) {
        self.tasks.spawn_local(pace(schedule, self.all.clone(), meter.clone()));
    }

    /// Waits for something to go wrong.
    pub(crate) async fn failure(&mut self) -> anyhow::Error {
        first_failure(&mut self.tasks).await
    }

    /// Sends nothing new, and waits for the answers that are still to come; returns how many requests stay without one.
    pub(crate) async fn drain(&self, meter: &Meter) -> u64 {
        self.all.iter().for_each(|lane| lane.stop());
        drain(&self.all, meter).await
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.all.iter().for_each(|lane| lane.close());
    }
}

pub(crate) async fn first_failure(tasks: &mut JoinSet<Result<()>>) -> anyhow::Error {
    loop {
        match tasks.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => return error.into(),
            None => std::future::pending().await,
        }
    }
}

/// Waits for the answers that are still to come; returns how many requests stay without one.
pub(crate) async fn drain(lanes: &[Rc<dyn Line>], meter: &Meter) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut last = meter.done();
    let mut waited_since = Instant::now();
    while lanes.iter().any(|lane| lane.in_progress() > 0) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if std::mem::replace(&mut last, meter.done()) != last {
            waited_since = Instant::now();
        }
        // A second without a single answer: none will come.
        if waited_since.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
    let now = Instant::now();
    lanes.iter().map(|lane| lane.give_up(now)).sum()
}
