//! A curve: the same measurements at several places along an axis, each with few and with many clients.

use anyhow::{Result, ensure};

use super::outcome::{Outcome, short};
use super::repeat;
use crate::figures::Summary;
use crate::plot::{Axis, Scale, Series};
use crate::run::Bench;
use crate::scenario::{Load, Repetition, Settings, Traffic};
use crate::table::shown;

/// How each place is measured.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Extent {
    /// Numbers of clients, one line of the curve each
    #[arg(long, value_delimiter = ',', default_value = "1,64", value_parser = clap::value_parser!(u32).range(1..=16_000))]
    clients: Vec<u32>,
    /// Seconds that each repetition measures
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// Repetitions of each measurement
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) repetitions: u32,
    /// Connections, at most; a measurement uses no more than it has clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
}

/// All that was measured with some number of clients at one place.
struct Point {
    /// Where on the axis, and what stands there.
    at: f64,
    name: String,
    clients: u32,
    value_size: usize,
    repetitions: Vec<Repetition>,
}

/// The measurements so far.
pub(super) struct Sweep<'a> {
    trial: &'static str,
    extent: &'a Extent,
    points: Vec<Point>,
}

impl<'a> Sweep<'a> {
    /// Without any yet.
    pub(super) fn new(trial: &'static str, extent: &'a Extent) -> Result<Self> {
        ensure!(extent.seconds > 0.0 && extent.seconds <= 3600.0, "--seconds must be more than 0 and at most 3600");
        Ok(Sweep { trial, extent, points: Vec::new() })
    }

    /// One repetition of each number of clients at `at`, called `name`, with values of `value_size` bytes over `keys` keys.
    pub(super) async fn measure(
        &mut self,
        bench: &Bench,
        (at, name): (f64, &str),
        (value_size, keys): (usize, u64),
        round: u32,
    ) -> Result<()> {
        let Extent { seconds, repetitions, connections, .. } = *self.extent;
        let warm_up_seconds = (seconds / 4.0).min(1.0);
        let settings = Settings { seconds, warm_up_seconds, repetitions, value_size, keys, connections, seed: 1 };
        for &clients in &self.extent.clients {
            let load = Load::Closed { clients };
            let repetition = repeat(self.trial, bench, (Traffic::Writes, load), &settings, u64::from(round)).await?;
            eprintln!(
                "{}: {name}, {}, {} of {repetitions}: {:.0} op/s, p50 {:.0} us",
                self.trial,
                load.name(),
                round + 1,
                repetition.throughput,
                repetition.latency.p50
            );
            let known = self.points.iter_mut().find(|point| point.name == name && point.clients == clients);
            match known {
                Some(point) => point.repetitions.push(repetition),
                None => {
                    let (name, repetitions) = (name.to_owned(), vec![repetition]);
                    self.points.push(Point { at, name, clients, value_size, repetitions });
                }
            }
        }
        Ok(())
    }

    /// The first columns of its table; the first of all is what the axis is.
    pub(super) fn header(axis: &'static str) -> Vec<&'static str> {
        vec![
            axis,
            "clients",
            "op/s",
            "±%",
            "MB/s",
            "p50 us",
            "p99 us",
            "CPU us/op",
            "fsyncs/op",
            "node B/op",
            "disk B/op",
            "RSS MB",
        ]
    }

    /// Puts the table and the curves into `outcome`; `axis` says what the places are.
    pub(super) fn report(&self, outcome: &mut Outcome, axis: &str) {
        let Extent { seconds, repetitions, connections, .. } = self.extent;
        outcome.setting("repetitions", format!("median of {repetitions} x {seconds} s"));
        outcome.setting("connections", format!("up to {connections}"));
        for point in &self.points {
            let throughput = Summary::of(point.repetitions.iter().map(|one| one.throughput));
            let median = |figure: fn(&Repetition) -> Option<f64>| shown(point.median(figure), 0);
            outcome.row(vec![
                point.name.clone(),
                point.clients.to_string(),
                median(|one| Some(one.throughput)),
                shown(throughput.map(|summary| summary.spread()), 1),
                point.megabytes().map_or("-".to_owned(), short),
                median(|one| Some(one.latency.p50)),
                median(|one| Some(one.latency.p99)),
                shown(point.median(|one| one.node_cpu), 1),
                shown(point.median(|one| one.fsyncs), 3),
                median(|one| one.peer_bytes),
                median(|one| one.disk_bytes),
                shown(point.median(|one| one.resident.map(|bytes| bytes as f64 / 1e6)), 0),
            ]);
            let name = format!("{}, {} clients, op/s", point.name, point.clients);
            outcome.samples(name, point.repetitions.iter().map(|one| one.throughput));
        }
        let places = || Axis::of(axis, self.points.iter().map(|point| (point.at, point.name.clone())));
        let log = |label: &str| Axis::new(label, Scale::Log);
        outcome.chart(
            "throughput",
            places(),
            log("writes a second"),
            self.lines("", |point| point.median(|one| Some(one.throughput))),
        );
        let p99 = self.lines(", p99", |point| point.median(|one| Some(one.latency.p99)));
        let p99 = p99.into_iter().map(|line| Series { dashed: true, ..line });
        let p50 = self.lines(", p50", |point| point.median(|one| Some(one.latency.p50)));
        outcome.chart("latency", places(), log("microseconds"), p50.into_iter().chain(p99).collect());
        outcome.chart("payload of all writes", places(), log("MB a second"), self.lines("", Point::megabytes));
        outcome.chart(
            "CPU time of all nodes",
            places(),
            log("microseconds a write"),
            self.lines("", |point| point.median(|one| one.node_cpu)),
        );
    }

    /// One line for each number of clients.
    fn lines(&self, what: &str, figure: impl Fn(&Point) -> Option<f64>) -> Vec<Series> {
        let line = |(color, &clients): (usize, &u32)| {
            let points = self.points.iter().filter(|point| point.clients == clients);
            let points = points.filter_map(|point| Some((point.at, figure(point)?)));
            let plural = if clients == 1 { "" } else { "s" };
            Series::new(format!("{clients} client{plural}{what}"), color, points)
        };
        self.extent.clients.iter().enumerate().map(line).collect()
    }
}

impl Point {
    fn median(&self, figure: impl Fn(&Repetition) -> Option<f64>) -> Option<f64> {
        Summary::median(&self.repetitions, figure)
    }

    /// Of values, in a second.
    fn megabytes(&self) -> Option<f64> {
        Some(self.median(|one| Some(one.throughput))? * self.value_size as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_of_clients_has_its_line() {
        let extent = Extent { clients: vec![1, 64], seconds: 1.0, repetitions: 2, connections: 4 };
        let mut sweep = Sweep::new("payload", &extent).unwrap();
        for (at, clients, throughput) in [(16.0, 1, 100.0), (16.0, 64, 900.0), (1024.0, 64, 500.0)] {
            let repetition = Repetition { throughput, ..Repetition::default() };
            let (name, repetitions) = (format!("{at} B"), vec![repetition.clone(), repetition]);
            sweep.points.push(Point { at, name, clients, value_size: at as usize, repetitions });
        }
        let lines = sweep.lines("", Point::megabytes);
        let close = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-9;
        assert_eq!((lines.len(), lines[0].name.as_str(), lines[1].points.len()), (2, "1 client", 2));
        assert!(close(lines[0].points[0].1, 0.0016) && close(lines[1].points[1].1, 0.512), "{lines:?}");
        let dir = tempfile::tempdir().unwrap();
        let mut outcome = Outcome::new("payload", dir.path(), &Sweep::header("value"));
        sweep.report(&mut outcome, "bytes of a value");
        let text = outcome.render();
        assert!(text.contains("| 1024 B |      64 |  500 |"), "{text}");
    }
}
