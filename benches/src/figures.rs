//! The figures of a scenario: what each is called, and how repetitions become one number and its uncertainty.

use serde::{Deserialize, Serialize};

use crate::scenario::Repetition;

/// One number of a repetition.
pub(crate) struct Figure {
    /// Its name in files.
    pub(crate) name: &'static str,
    /// What it is measured in.
    pub(crate) unit: &'static str,
    /// Whether more is better.
    pub(crate) more_is_better: bool,
    /// Takes it out of a repetition.
    pub(crate) of: fn(&Repetition) -> Option<f64>,
}

/// All figures, in the order of the tables.
pub(crate) const FIGURES: &[Figure] = &[
    Figure { name: "throughput", unit: "op/s", more_is_better: true, of: |r| Some(r.throughput) },
    Figure { name: "p50", unit: "us", more_is_better: false, of: |r| Some(r.latency.p50) },
    Figure { name: "p99", unit: "us", more_is_better: false, of: |r| Some(r.latency.p99) },
    Figure { name: "p99.9", unit: "us", more_is_better: false, of: |r| Some(r.latency.p999) },
    Figure { name: "max", unit: "us", more_is_better: false, of: |r| Some(r.latency.max) },
    Figure { name: "node_cpu", unit: "us/op", more_is_better: false, of: |r| r.node_cpu },
    Figure { name: "loader_cpu", unit: "us/op", more_is_better: false, of: |r| r.loader_cpu },
    Figure { name: "fsyncs", unit: "/op", more_is_better: false, of: |r| r.fsyncs },
    Figure { name: "peer_bytes", unit: "B/op", more_is_better: false, of: |r| r.peer_bytes },
    Figure { name: "client_bytes", unit: "B/op", more_is_better: false, of: |r| r.client_bytes },
    Figure { name: "log_bytes", unit: "B/op", more_is_better: false, of: |r| r.log_bytes },
    Figure { name: "disk_bytes", unit: "B/op", more_is_better: false, of: |r| r.disk_bytes },
    Figure { name: "udp_sends", unit: "/op", more_is_better: false, of: |r| r.udp_sends },
    Figure { name: "resident", unit: "B", more_is_better: false, of: |r| r.resident.map(|bytes| bytes as f64) },
];

/// The median of repetitions, and between what they lie.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    /// The middle one, or the mean of the two in the middle.
    pub(crate) median: f64,
    /// The least.
    pub(crate) min: f64,
    /// The greatest.
    pub(crate) max: f64,
}

impl Summary {
    /// `None` when there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Summary { median, min, max })
    }

    /// The median of what `figure` takes out of each repetition; `None` unless all have it.
    pub(crate) fn median(repetitions: &[Repetition], figure: impl Fn(&Repetition) -> Option<f64>) -> Option<f64> {
        let values: Option<Vec<f64>> = repetitions.iter().map(figure).collect();
        Summary::of(values?).map(|summary| summary.median)
    }

    /// A figure over all repetitions; `None` unless all have it.
    pub(crate) fn of_figure(figure: &Figure, repetitions: &[Repetition]) -> Option<Self> {
        Summary::of(repetitions.iter().map(figure.of).collect::<Option<Vec<f64>>>()?)
    }

    /// Half the distance between the extremes, in percent of the median.
    pub(crate) fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.max - self.min) / 2.0 / self.median * 100.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let odd = Summary::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        let even = Summary::of([4.0, 1.0, 2.0, 8.0]).unwrap();
        assert_eq!((even.median, odd.spread()), (3.0, 50.0));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn a_figure_that_one_repetition_lacks_is_unknown() {
        let figure = FIGURES.iter().find(|figure| figure.name == "fsyncs").unwrap();
        let with = Repetition { fsyncs: Some(3.0), ..Repetition::default() };
        let summary = Summary::of_figure(figure, &[with.clone(), with.clone()]);
        assert_eq!(summary.map(|summary| summary.median), Some(3.0));
        assert_eq!(Summary::of_figure(figure, &[with, Repetition::default()]), None);
    }
}
