//! Pictures of what was measured: how it scales, how latencies are spread, what happens around the death of a leader.

mod chart;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use self::chart::{Axis, Chart, Scale, Series, draw};
use crate::figures::Summary;
use crate::meter::Step;
use crate::report::{Report, Scenario};
use crate::scenario::Load;
use crate::trials::Timeline;

/// Pictures of a run, each with the end of its file's name.
pub(crate) fn of_report(report: &Report) -> Vec<(&'static str, String)> {
    let footer = format!("{}; commit {}; {} nodes", report.machine, report.commit, report.nodes);
    let mut pictures = Vec::new();
    let scaling = scaling(report);
    if scaling.iter().any(|chart| chart.series.iter().any(|series| series.points.len() > 1)) {
        pictures.push(("scaling", draw(&scaling, &footer)));
    }
    pictures.push(("latency", draw(&distributions(report), &footer)));
    pictures
}

/// The picture of a trial: what happened around events, and its curves; `None` when it has neither.
pub(crate) fn of_trial(timelines: &[Timeline], charts: &[Chart], footer: &str) -> Option<String> {
    let charts: Vec<Chart> = timelines.iter().map(timeline).chain(charts.iter().cloned()).collect();
    (!charts.is_empty()).then(|| draw(&charts, footer))
}

/// Writes pictures into `dir`, as `<stem>-<name>.svg`, and returns their paths.
pub(crate) fn save(dir: &Path, stem: &str, pictures: &[(&'static str, String)]) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let write = |(name, text): &(&'static str, String)| {
        let path = dir.join(format!("{stem}-{name}.svg"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    };
    pictures.iter().map(write).collect()
}

/// Where a picture called `name` lies that belongs to a file of figures.
pub(crate) fn beside(file: &Path, name: &str) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-{name}.svg"))
}

/// Throughput, latency, and CPU time over the number of clients.
fn scaling(report: &Report) -> Vec<Chart> {
    let lines = |figures: &[(&str, bool)]| {
        let mut series = Vec::new();
        for (color, target) in report.targets().into_iter().enumerate() {
            for &(figure, dashed) in figures {
                let points: Vec<(f64, f64)> = report.of(color).iter().filter_map(|one| point(one, figure)).collect();
                let name = if figures.len() > 1 { format!("{target}, {figure}") } else { target.to_owned() };
                if !points.is_empty() {
                    series.push(Series { dashed, ..Series::new(name, color, points) });
                }
            }
        }
        series
    };
    let clients = || {
        let ticks = report.scenarios.iter().filter_map(closed);
        Axis::of("clients, each with one write under way", ticks.map(|clients| (clients, format!("{clients}"))))
    };
    let chart = |title: &str, label, series| Chart {
        title: title.to_owned(),
        x: clients(),
        y: Axis::new(label, Scale::Log),
        series,
    };
    vec![
        chart("throughput", "writes a second", lines(&[("throughput", false)])),
        chart("latency", "microseconds", lines(&[("p50", false), ("p99", true)])),
        chart("CPU time of all nodes", "microseconds a write", lines(&[("node_cpu", false)])),
        chart("syncs of all nodes", "for each write", lines(&[("fsyncs", false)])),
    ]
}

fn closed(scenario: &Scenario) -> Option<f64> {
    match scenario.load {
        Load::Closed { clients } => Some(f64::from(clients)),
        Load::Open { .. } => None,
    }
}

fn point(scenario: &Scenario, figure: &str) -> Option<(f64, f64)> {
    Some((closed(scenario)?, scenario.summary.get(figure)?.median))
}

/// For each scenario which share of the writes took how long at most.
fn distributions(report: &Report) -> Vec<Chart> {
    let shares = [(0.0, "0"), (0.9, "90 %"), (0.99, "99 %"), (0.999, "99.9 %"), (0.9999, "99.99 %")];
    let ticks = shares.map(|(share, name)| (rarity(share), name.to_owned()));
    let chart = |at: usize| {
        let series = report.targets().into_iter().enumerate().filter_map(|(color, target)| {
            let points = spread(report.of(color).get(at)?);
            let name = target.to_owned();
            (!points.is_empty()).then_some(Series { name, points, color, dashed: false, marked: false })
        });
        Chart {
            title: format!("latency: {}", report.scenarios[at].name),
            x: Axis::of("share of the writes that took at most so long", ticks.clone()),
            y: Axis::new("microseconds", Scale::Log),
            series: series.collect(),
        }
    };
    (0..report.scenarios.len()).map(chart).collect()
}

/// One in so many takes longer.
fn rarity(share: f64) -> f64 {
    1.0 / (1.0 - share)
}

/// The median over the repetitions of each step that all of them have.
fn spread(scenario: &Scenario) -> Vec<(f64, f64)> {
    let of = |at: usize| -> Option<Vec<Step>> {
        scenario.repetitions.iter().map(|repetition| repetition.distribution.get(at).copied()).collect()
    };
    let steps = (0..).map_while(|at| of(at).filter(|steps| !steps.is_empty()));
    let point = |steps: Vec<Step>| {
        let share = steps.first()?.share;
        Some((rarity(share), Summary::of(steps.iter().map(|step| step.micros))?.median))
    };
    steps.filter_map(point).collect()
}

fn timeline(timeline: &Timeline) -> Chart {
    let line = |name: &str, values: &[f64], color, dashed| {
        let at = |(number, &value): (usize, &f64)| (timeline.begin + (number as f64 + 0.5) * timeline.step, value);
        let points = values.iter().enumerate().map(at).collect();
        Series { name: name.to_owned(), points, color, dashed, marked: false }
    };
    Chart {
        title: timeline.title.clone(),
        x: Axis::new("seconds since the leader was killed", Scale::Linear),
        y: Axis::new("acknowledged writes a second", Scale::Linear),
        series: vec![
            line("mean of all kills", &timeline.mean, 0, false),
            line("one kill, the median", &timeline.median, 1, true),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;
    use crate::scenario::Repetition;

    fn scenario(clients: u32, throughput: f64) -> Scenario {
        let mut scenario = Scenario::new(Load::Closed { clients });
        for factor in [1.0, 3.0, 2.0] {
            let step = |share| Step { share, micros: factor * 100.0 / (1.0 - share) };
            let distribution = vec![step(0.0), step(0.5), step(0.9)];
            scenario.push(Repetition { throughput: throughput * factor, distribution, ..Repetition::default() });
        }
        scenario
    }

    #[test]
    fn a_run_has_a_curve_over_its_clients_and_the_spread_of_each_scenario() {
        let mut report = report();
        report.scenarios = vec![scenario(1, 100.0), scenario(64, 900.0)];
        let found = spread(&report.scenarios[0]);
        let medians = [(1.0, 200.0), (2.0, 400.0), (10.0, 2000.0)];
        assert_eq!(found.len(), medians.len());
        let close = |one: f64, other: f64| (one / other - 1.0).abs() < 1e-9;
        assert!(
            found.iter().zip(medians).all(|(one, other)| close(one.0, other.0) && close(one.1, other.1)),
            "{found:?}"
        );
        let pictures = of_report(&report);
        assert_eq!(pictures.iter().map(|picture| picture.0).collect::<Vec<_>>(), ["scaling", "latency"]);
        assert!(pictures[0].1.contains("writes a second") && pictures[0].1.contains("\n64\n"), "{}", pictures[0].1);
        assert!(pictures[1].1.contains("latency: closed, 64 clients"), "{}", pictures[1].1);
        report.scenarios.pop();
        assert_eq!(of_report(&report).len(), 1, "one number of clients is no curve");
    }

    #[test]
    fn a_picture_is_written_under_the_name_of_its_run() {
        let dir = tempfile::tempdir().unwrap();
        let paths = save(&dir.path().join("plots"), "run", &[("scaling", "<svg/>".to_owned())]).unwrap();
        assert_eq!(paths, [dir.path().join("plots/run-scaling.svg")]);
        assert_eq!(fs::read_to_string(&paths[0]).unwrap(), "<svg/>");
    }
}
