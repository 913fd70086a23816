//! What one run counts. All of it on one thread, so plain cells do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest latency that is told apart, in nanoseconds.
const LONGEST: u64 = 120_000_000_000;

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half of the requests were faster.
    pub(crate) p50: f64,
    /// 90 of 100 were faster.
    pub(crate) p90: f64,
    /// 99 of 100 were faster.
    pub(crate) p99: f64,
    /// 999 of 1000 were faster.
    pub(crate) p999: f64,
    /// The slowest.
    pub(crate) max: f64,
    /// Arithmetic mean.
    pub(crate) mean: f64,
}

/// One step of a distribution: this share of the requests took at most so many microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// From 0 to 1.
    pub(crate) share: f64,
    /// In microseconds.
    pub(crate) micros: f64,
}

/// An empty histogram of nanoseconds with three significant digits.
pub(crate) fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(100, LONGEST, 3).map_err(|error| anyhow!("no histogram: {error}"))
}

/// Reads a histogram of nanoseconds.
pub(crate) fn latency(histogram: &Histogram<u64>) -> Latency {
    let micros = |nanos: u64| nanos as f64 / 1000.0;
    let at = |quantile| micros(histogram.value_at_quantile(quantile));
    Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: micros(histogram.max()),
        mean: histogram.mean() / 1000.0,
    }
}

/// A histogram of nanoseconds in steps that are finer towards the slowest requests, as far as there are requests to tell.
pub(crate) fn distribution(histogram: &Histogram<u64>) -> Vec<Step> {
    const TENTHS: [f64; 9] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let nines = (1..=5).flat_map(|digits| {
        let rest = 0.1f64.powi(digits);
        [1.0, 0.7, 0.5, 0.3, 0.2].map(|part| 1.0 - rest * part)
    });
    let known = |share: &f64| (1.0 - share) * histogram.len() as f64 >= 1.0;
    let step = |share| Step { share, micros: histogram.value_at_quantile(share) as f64 / 1000.0 };
    TENTHS.into_iter().chain(nines).filter(known).map(step).collect()
}

/// Nanoseconds of a duration.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Counts while a run goes on.
pub(crate) struct Meter {
    /// Requests done since the beginning, warm-up included.
    done: Cell<u64>,
    /// Whether this is the measured part of the run.
    measuring: Cell<bool>,
    latencies: RefCell<Histogram<u64>>,
    /// Open loop only: how much later than intended requests were sent.
    lateness: RefCell<Histogram<u64>>,
    errors: RefCell<BTreeMap<&'static str, u64>>,
}

impl Meter {
    pub(crate) fn new() -> Result<Self> {
        Ok(Meter {
            done: Cell::new(0),
            measuring: Cell::new(false),
            latencies: RefCell::new(histogram()?),
            lateness: RefCell::new(histogram()?),
            errors: RefCell::default(),
        })
    }

    /// Whether this is the measured part of the run.
    pub(crate) fn is_measuring(&self) -> bool {
        self.measuring.get()
    }

    /// Begins or ends the measured part.
    pub(crate) fn set_measuring(&self, measuring: bool) {
        self.measuring.set(measuring);
    }

    /// A request was done.
    pub(crate) fn count(&self) {
        self.done.set(self.done.get() + 1);
    }

    /// Requests done since the beginning.
    pub(crate) fn done(&self) -> u64 {
        self.done.get()
    }

    /// A request of the measured part took from `begin` to `end`.
    pub(crate) fn record(&self, begin: Instant, end: Instant) {
        self.latencies.borrow_mut().saturating_record(nanos(end.saturating_duration_since(begin)));
    }

    /// A request of the measured part was sent so much later than intended.
    pub(crate) fn record_lateness(&self, late: Duration) {
        self.lateness.borrow_mut().saturating_record(nanos(late));
    }

    /// A request failed. Failures count in the warm-up, too: they are not to be expected at all.
    pub(crate) fn error(&self, what: &'static str, times: u64) {
        if times > 0 {
            *self.errors.borrow_mut().entry(what).or_default() += times;
        }
    }

    /// Latencies so far.
    pub(crate) fn latency(&self) -> Latency {
        latency(&self.latencies.borrow())
    }

    /// The same in steps.
    pub(crate) fn distribution(&self) -> Vec<Step> {
        distribution(&self.latencies.borrow())
    }

    /// Takes the latencies so far, and begins anew. For those who measure one phase after the other.
    pub(crate) fn take_latencies(&self) -> Result<Histogram<u64>> {
        Ok(self.latencies.replace(histogram()?))
    }

    /// Lateness so far; `None` when nothing was sent by a schedule.
    pub(crate) fn lateness(&self) -> Option<Latency> {
        let lateness = self.lateness.borrow();
        (!lateness.is_empty()).then(|| latency(&lateness))
    }

    /// Failures so far, by kind.
    pub(crate) fn errors(&self) -> BTreeMap<String, u64> {
        self.errors.borrow().iter().map(|(&what, &times)| (what.to_owned(), times)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_come_out_in_microseconds() {
        let meter = Meter::new().unwrap();
        let begin = Instant::now();
        for millis in 1..=1000 {
            meter.record(begin, begin + Duration::from_millis(millis));
        }
        let latency = meter.latency();
        let close = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert!(close(latency.p50, 500_000.0) && close(latency.p99, 990_000.0), "{latency:?}");
        assert!(close(latency.p999, 999_000.0) && close(latency.max, 1_000_000.0), "{latency:?}");
        assert_eq!(meter.lateness(), None);
    }

    #[test]
    fn a_distribution_rises_and_ends_where_requests_end() {
        let meter = Meter::new().unwrap();
        assert!(meter.distribution().is_empty());
        let begin = Instant::now();
        (1..=1000).for_each(|micros| meter.record(begin, begin + Duration::from_micros(micros)));
        let steps = meter.distribution();
        assert!(steps.windows(2).all(|two| two[0].share < two[1].share && two[0].micros <= two[1].micros), "{steps:?}");
        let last = steps.last().unwrap();
        assert!((last.share - 0.999).abs() < 1e-6 && (last.micros - 999.0).abs() < 2.0, "{last:?}");
    }

    #[test]
    fn what_lasts_longer_than_the_longest_is_not_lost() {
        let meter = Meter::new().unwrap();
        let begin = Instant::now();
        meter.record(begin, begin + Duration::from_secs(1000));
        assert!(meter.latency().max >= 119_000_000.0);
    }

    #[test]
    fn each_phase_has_its_own_latencies() {
        let meter = Meter::new().unwrap();
        let begin = Instant::now();
        meter.record(begin, begin + Duration::from_millis(5));
        let first = latency(&meter.take_latencies().unwrap());
        meter.record(begin, begin + Duration::from_millis(1));
        let second = latency(&meter.take_latencies().unwrap());
        assert!(first.max > 4900.0 && second.max < 1100.0 && second.max > 0.0, "{first:?}, {second:?}");
        assert!(meter.take_latencies().unwrap().is_empty());
    }

    #[test]
    fn failures_are_counted_by_kind() {
        let meter = Meter::new().unwrap();
        meter.error("busy", 2);
        meter.error("busy", 1);
        meter.error("late", 0);
        assert_eq!(meter.errors(), [("busy".to_owned(), 3)].into());
    }
}
