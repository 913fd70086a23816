//! Open loops: requests that are sent by the clock, answered or not.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::lines::Line;
use crate::meter::Meter;
use crate::ticker::Ticker;

/// An open loop sends at most so often; at higher rates it sends several requests at a time.
const FINEST_PERIOD: Duration = Duration::from_micros(200);
/// An open loop goes on for so long after the measured time, so that the last counters are read under load, too.
const OVERTIME: Duration = Duration::from_millis(100);
/// Requests in progress from which on an open loop sends no more: the cluster cannot keep up, and memory is not endless.
const MAX_IN_PROGRESS: usize = 200_000;

/// When requests of an open loop are due.
pub(crate) struct Schedule {
    /// Requests a second.
    pub(crate) rate: u64,
    /// What is measured. Sending ends soon after it, or when the lanes are told to stop.
    pub(crate) window: std::ops::Range<Instant>,
    /// What becomes of requests that the cluster cannot keep up with.
    pub(crate) excess: Excess,
}

/// What becomes of requests that are due while too many are still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// The measurement ends: it would only measure how long its own queue is.
    Fail,
    /// They are not sent, and counted as "not sent": a client that has so many requests under way on its connection gives up.
    Skip {
        /// Requests under way on one connection, at most.
        most: usize,
    },
}

/// Sends requests by the clock until the window has ended.
///
/// They are due at the ticks of a clock of 1/rate, or, when that is finer than [`FINEST_PERIOD`], several at once at the ticks of that one. A tick that
/// is noticed late still counts from when it was due: whatever holds up the cluster, or this program, is part of the latency.
pub(crate) async fn pace(schedule: Schedule, lanes: Vec<Rc<dyn Line>>, meter: Rc<Meter>) -> Result<()> {
    let Schedule { rate, window, excess } = schedule;
    ensure!(rate > 0, "the rate must not be zero");
    let period = Duration::from_secs_f64(1.0 / rate as f64).max(FINEST_PERIOD);
    let mut ticker = Ticker::new(period)?;
    let (begin, mut ticks, mut sent) = (Instant::now(), 0u32, 0u64);
    let mut turn = lanes.iter().cycle();
    loop {
        ticker.tick().await?;
        let now = Instant::now();
        loop {
            let due = begin + period * (ticks + 1);
            if due > now {
                break;
            }
            if due >= window.end + OVERTIME || lanes.iter().all(|lane| lane.is_stopped()) {
                return Ok(());
            }
            ticks += 1;
            let measured = window.contains(&due);
            let target = (f64::from(ticks) * period.as_secs_f64() * rate as f64).round() as u64;
            for _ in sent..target {
                match (turn.next(), excess) {
                    (Some(lane), Excess::Skip { most }) if lane.in_progress() >= most => meter.error("not sent", 1),
                    (Some(lane), _) => lane.issue(due, measured),
                    (None, _) => {}
                }
                if measured {
                    meter.record_lateness(now.saturating_duration_since(due));
                }
            }
            sent = sent.max(target);
        }
        let in_progress: usize = lanes.iter().map(|lane| lane.in_progress()).sum();
        let bounded = excess != Excess::Fail || in_progress < MAX_IN_PROGRESS;
        ensure!(bounded, "{rate} requests a second are more than the cluster can do");
    }
}
