//! Clusters that were measured in turn: what the ratios of their figures are, and of which of them one can be sure.

use std::fmt::Write as _;

use crate::figures::{FIGURES, Figure, Summary};
use crate::ratio::Ratio;
use crate::report::{OURS, Report, Scenario};
use crate::scenario::Load;
use crate::table::{shown, table};

/// Figures that are compared; the others are for looking things up.
const COMPARED: [&str; 9] =
    ["throughput", "p50", "p99", "p99.9", "node_cpu", "fsyncs", "peer_bytes", "disk_bytes", "resident"];

/// The ratios of our figures to those of every other cluster, for people.
pub(crate) fn render(report: &Report) -> String {
    let mut text = String::new();
    for (at, other) in report.others.iter().enumerate() {
        let name = &other.name;
        let _ = writeln!(
            text,
            "{OURS} / {name}: ratios from pairs of repetitions made one right after the other, with their 95 % interval; \
             ahead or behind only where it excludes 1\n"
        );
        let mut table = table(&["scenario", "figure", OURS, name, "ratio", "95 %", "verdict"]);
        for (ours, theirs) in report.scenarios.iter().zip(report.of(at + 1)) {
            let figures = FIGURES.iter().filter(|figure| COMPARED.contains(&figure.name));
            table.add_rows(figures.filter_map(|figure| row(figure, ours, theirs)));
        }
        let _ = writeln!(text, "{table}\n");
    }
    text
}

/// `None` when the figure is not known of both.
fn row(figure: &Figure, ours: &Scenario, theirs: &Scenario) -> Option<[String; 7]> {
    let values = |scenario: &Scenario| scenario.repetitions.iter().map(figure.of).collect::<Option<Vec<f64>>>();
    let (our_values, their_values) = (values(ours)?, values(theirs)?);
    let ratio = Ratio::of_pairs(&our_values, &their_values);
    let median = |values: Vec<f64>| shown(Summary::of(values).map(|summary| summary.median), 2);
    Some([
        ours.name.clone(),
        format!("{} [{}]", figure.name, figure.unit),
        median(our_values),
        median(their_values),
        shown(ratio.map(|ratio| ratio.guess), 3),
        ratio.map_or("-".to_owned(), |ratio| format!("{:.3} .. {:.3}", ratio.low, ratio.high)),
        verdict(figure, ours.load, ratio).to_owned(),
    ])
}

fn verdict(figure: &Figure, load: Load, ratio: Option<Ratio>) -> &'static str {
    match ratio {
        // In an open loop the throughput is given, not found.
        _ if figure.name == "throughput" && matches!(load, Load::Open { .. }) => "given",
        Some(ratio) if !ratio.is_outside_noise() => "not certain",
        Some(ratio) if (ratio.guess > 1.0) == figure.more_is_better => "AHEAD",
        Some(_) => "BEHIND",
        None => "too few values",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::report::Other;
    use crate::scenario::{Repetition, Settings};

    fn scenario(throughputs: &[f64]) -> Scenario {
        let mut scenario = Scenario::new(Load::Closed { clients: 16 });
        for &throughput in throughputs {
            scenario.push(Repetition { throughput, node_cpu: Some(1e6 / throughput), ..Repetition::default() });
        }
        scenario
    }

    fn against(ours: &[f64], theirs: &[f64]) -> String {
        let settings = Settings {
            seconds: 1.0,
            warm_up_seconds: 0.1,
            repetitions: 3,
            value_size: 256,
            keys: 10,
            connections: 4,
            seed: 0,
        };
        let mut report = Report::new(Machine::default(), "abc".into(), 3, settings);
        report.scenarios.push(scenario(ours));
        let scenarios = vec![scenario(theirs)];
        report.others.push(Other { name: "peer".into(), about: "of long ago".into(), scenarios });
        render(&report) + &crate::table::render(&report)
    }

    #[test]
    fn a_win_needs_an_interval_that_excludes_one() {
        let text = against(&[130.0, 260.0, 65.0], &[100.0, 201.0, 49.0]);
        let lines: Vec<&str> = text.lines().filter(|line| line.contains("AHEAD")).collect();
        assert!(lines.len() == 2 && lines[0].contains("throughput") && lines[1].contains("node_cpu"), "{text}");
        assert!(text.contains("beside it   peer: of long ago"), "{text}");
        let text = against(&[100.0, 201.0, 49.0], &[130.0, 260.0, 65.0]);
        assert_eq!(text.matches("BEHIND").count(), 2, "{text}");
        let text = against(&[130.0, 260.0, 30.0], &[100.0, 201.0, 49.0]);
        assert!(text.contains("not certain") && !text.contains("AHEAD") && !text.contains("BEHIND"), "{text}");
        assert!(against(&[1.0], &[1.0]).contains("too few values"));
    }

    #[test]
    fn the_table_has_a_row_for_each_cluster() {
        let text = against(&[130.0, 131.0], &[100.0, 101.0]);
        let row =
            |name: &str| text.lines().any(|line| line.starts_with("| closed, 16 clients | ") && line.contains(name));
        assert!(row("| this build ") && row("| peer "), "{text}");
    }
}
