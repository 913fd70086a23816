//! How many writes were acknowledged before, while and after something happened, in short steps.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::writers::Ack;

/// Length of a step.
const STEP: Duration = Duration::from_millis(50);
/// From so long before the event.
const BEFORE: Duration = Duration::from_millis(500);
/// Until so long after it.
const AFTER: Duration = Duration::from_secs(2);

/// Acknowledged writes a second, step by step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Timeline {
    /// What it is of.
    pub(crate) title: String,
    /// When the first step begins, in seconds from the event.
    pub(crate) begin: f64,
    /// Length of a step, in seconds.
    pub(crate) step: f64,
    /// Mean over all events; a step counts where the next event had not come yet.
    pub(crate) mean: Vec<f64>,
    /// Around one event: the one after which it took the median time until writes went on.
    pub(crate) median: Vec<f64>,
}

impl Timeline {
    /// `events` with the time until writes went on, in their order; `acks` in the order of their ends.
    pub(super) fn of(title: String, events: &[(Instant, Duration)], acks: &[Ack]) -> Timeline {
        let each: Vec<Vec<f64>> = (0..events.len())
            .map(|at| {
                let until = events.get(at + 1).map(|next| next.0);
                around(events[at].0, until, acks)
            })
            .collect();
        let steps = each.iter().map(Vec::len).max().unwrap_or(0);
        let mean = (0..steps).map(|step| {
            let there: Vec<f64> = each.iter().filter_map(|steps| steps.get(step).copied()).collect();
            there.iter().sum::<f64>() / there.len().max(1) as f64
        });
        let mut order: Vec<usize> = (0..events.len()).collect();
        order.sort_by_key(|&at| events[at].1);
        let median = order.get(order.len() / 2).map(|&at| each[at].clone()).unwrap_or_default();
        let (begin, step) = (-BEFORE.as_secs_f64(), STEP.as_secs_f64());
        Timeline { title, begin, step, mean: mean.collect(), median }
    }
}

/// The steps around an event that are over before `until`.
fn around(event: Instant, until: Option<Instant>, acks: &[Ack]) -> Vec<f64> {
    let begin = event.checked_sub(BEFORE).unwrap_or(event);
    let steps = (BEFORE + AFTER).div_duration_f64(STEP).round() as u32;
    let ends = (1..=steps).map(|step| begin + STEP * step).take_while(|end| until.is_none_or(|until| *end <= until));
    let mut from = acks.partition_point(|ack| ack.end < begin);
    ends.map(|end| {
        let next = acks.partition_point(|ack| ack.end < end);
        let count = next - from;
        from = next;
        count as f64 / STEP.as_secs_f64()
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_count_what_ends_in_them() {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        // One write every 10 ms, but for the 400 ms after each of two events.
        let ends = (0..400u64).map(|n| n * 10).filter(|ms| !(1000..1400).contains(ms) && !(2500..2900).contains(ms));
        let acks: Vec<Ack> = ends.map(|ms| Ack { begin: at(ms), end: at(ms) }).collect();
        let outage = Duration::from_millis(400);
        let timeline = Timeline::of("x".into(), &[(at(1000), outage), (at(2500), outage)], &acks);
        assert_eq!((timeline.mean.len(), timeline.begin, timeline.step), (50, -0.5, 0.05));
        let close = |found: &[f64], expected: f64| found.iter().all(|value| (value - expected).abs() < 1e-6);
        assert!(close(&timeline.mean[..10], 100.0), "{timeline:?}");
        assert!(close(&timeline.mean[10..18], 0.0) && close(&timeline.mean[18..30], 100.0), "{timeline:?}");
        // Around the first event nothing is known after the second.
        let first = Timeline::of("x".into(), &[(at(1000), outage), (at(2500), outage * 2)], &acks);
        assert_eq!(first.median.len(), 50);
        assert_eq!(around(at(1000), Some(at(2500)), &acks).len(), 40);
        assert!(Timeline::of("x".into(), &[], &acks).mean.is_empty());
    }
}
