//! What is printed at the end.

use std::fmt::Write as _;

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::figures::{FIGURES, Figure, Summary};
use crate::ratio::Ratio;
use crate::report::{Report, Scenario};
use crate::scenario::{Load, Repetition};

/// Foreign CPU time from which on figures are doubtful, as a share of the machine.
const DISTURBED: f64 = 0.05;

/// The whole report, for people.
pub(crate) fn render(report: &Report) -> String {
    format!("\n{}\n{}", about(report), figures(report))
}

/// What must be known to judge the figures.
pub(crate) fn about(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "machine     {}", report.machine);
    let _ = writeln!(text, "durability  {}", report.durability);
    for other in &report.others {
        let _ = writeln!(text, "beside it   {}: {}", other.name, other.about);
    }
    let settings = &report.settings;
    let _ = writeln!(
        text,
        "settings    {} B values, {} keys, up to {} connections, median of {} x {} s after {} s, ± is half the range; commit {}",
        settings.value_size,
        settings.keys,
        settings.connections,
        settings.repetitions,
        settings.seconds,
        settings.warm_up_seconds,
        report.commit
    );
    let floors = &report.floors;
    let together = match floors.fdatasync_together {
        // Files of earlier runs do not have it.
        none if none.p50 == 0.0 => String::new(),
        some => format!(", by one writer for each node at once {:.0} us (p99 {:.0})", some.p50, some.p99),
    };
    let _ = writeln!(
        text,
        "floors      fdatasync of 256 B {:.0} us (p99 {:.0}){together}, UDP round trip {:.0} us (p99 {:.0}): a lone write takes at least {:.0} us",
        floors.fdatasync.p50,
        floors.fdatasync.p99,
        floors.udp_round_trip.p50,
        floors.udp_round_trip.p99,
        floors.write()
    );
    text
}

/// The tables, and what must be known of single figures.
pub(crate) fn figures(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}\n", speed(report));
    let _ = writeln!(text, "{}\n", cost(report));
    let _ = writeln!(
        text,
        "wire: UDP payload without IP and UDP headers. node: sent between nodes; client: between clients and leader, both ways.\n\
         log: bytes of log records, all nodes. disk: all that the nodes had written to disks, state machine and compaction included."
    );
    text + &remarks(report)
}

/// An empty table; the first column is to the left.
pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    // Markdown, so that it can be pasted into a document as it is.
    table.load_style(ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().copied());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn speed(report: &Report) -> Table {
    let header = ["op/s", "±%", "p50 us", "x floor", "p99 us", "p99.9 us", "max us", "failed", "leader"];
    let mut table = table_of(report, &header);
    for (target, scenario) in report.rows() {
        let summary = |name: &str| scenario.summary.get(name);
        let median = |name| shown(summary(name).map(|summary| summary.median), 0);
        let floors = summary("p50").map(|p50| p50.median / report.floors.write());
        let failures: u64 = scenario.repetitions.iter().map(Repetition::failures).sum();
        let cells = [
            median("throughput"),
            shown(summary("throughput").map(Summary::spread), 1),
            median("p50"),
            shown(floors, 1),
            median("p99"),
            median("p99.9"),
            median("max"),
            failures.to_string(),
            leaders(scenario),
        ];
        table.add_row(titles(report, target, scenario).chain(cells));
    }
    table
}

fn cost(report: &Report) -> Table {
    let header = [
        "CPU us/op",
        "±%",
        "loader CPU",
        "fsyncs/op",
        "node B/op",
        "client B/op",
        "log B/op",
        "disk B/op",
        "RSS MB",
        "peak MB",
    ];
    let mut table = table_of(report, &header);
    for (target, scenario) in report.rows() {
        let summary = |name: &str| scenario.summary.get(name);
        let median = |name, digits| shown(summary(name).map(|summary| summary.median), digits);
        let peak = scenario.repetitions.iter().filter_map(|repetition| repetition.peak_resident).max();
        let cells = [
            median("node_cpu", 1),
            shown(summary("node_cpu").map(Summary::spread), 1),
            median("loader_cpu", 1),
            median("fsyncs", 3),
            median("peer_bytes", 0),
            median("client_bytes", 0),
            median("log_bytes", 0),
            median("disk_bytes", 0),
            shown(summary("resident").map(|resident| resident.median / 1e6), 0),
            shown(peak.map(|bytes| bytes as f64 / 1e6), 0),
        ];
        table.add_row(titles(report, target, scenario).chain(cells));
    }
    table
}

/// A table with a row for each scenario; when there are several targets, for each of them.
fn table_of(report: &Report, header: &[&str]) -> Table {
    let mut all = vec!["scenario"];
    if report.others.is_empty() {
        all.extend(header);
        return table(&all);
    }
    all.push("cluster");
    all.extend(header);
    let mut table = table(&all);
    if let Some(column) = table.column_mut(1) {
        column.set_cell_alignment(CellAlignment::Left);
    }
    table
}

/// The first cells of such a row.
fn titles(report: &Report, target: &str, scenario: &Scenario) -> impl Iterator<Item = String> {
    let target = (!report.others.is_empty()).then(|| target.to_owned());
    std::iter::once(scenario.name.clone()).chain(target)
}

/// Node and term of every repetition, equal ones once.
fn leaders(scenario: &Scenario) -> String {
    let mut seen = Vec::new();
    for repetition in &scenario.repetitions {
        let leader = format!("{} (term {})", repetition.leader, repetition.term);
        if !seen.contains(&leader) {
            seen.push(leader);
        }
    }
    seen.join(", ")
}

/// What a reader must know before believing the tables.
fn remarks(report: &Report) -> String {
    let mut text = String::new();
    for (target, scenario) in report.rows() {
        let name = titles(report, target, scenario).collect::<Vec<_>>().join(", ");
        for (kind, times) in scenario.errors() {
            let _ = writeln!(text, "failed: {name}: {times} x {kind}");
        }
        if let Load::Open { rate } = scenario.load {
            let lateness = scenario.repetitions.iter().filter_map(|repetition| repetition.lateness);
            if let Some(late) = Summary::of(lateness.map(|late| late.p99)) {
                let _ = writeln!(
                    text,
                    "{name}: latency counts from when a request was due; the load generator itself was late by {:.0} us (p99), which is included",
                    late.median
                );
            }
            let short =
                scenario.repetitions.iter().filter(|repetition| repetition.throughput < 0.98 * rate as f64).count();
            if short > 0 {
                let _ = writeln!(text, "{name}: the cluster did not keep up in {short} repetitions");
            }
        }
    }
    for rejected in &report.rejected {
        let _ = writeln!(text, "rejected and repeated: {}: {}", rejected.scenario, rejected.reason);
    }
    let all = || report.rows().flat_map(|(_, scenario)| &scenario.repetitions);
    let disturbed = all().filter(|repetition| repetition.foreign_cpu.is_some_and(|share| share > DISTURBED)).count();
    if disturbed > 0 {
        let _ = writeln!(
            text,
            "warning: during {disturbed} of {} repetitions other programs, or the host, had more than {:.0} % of the machine",
            all().count(),
            DISTURBED * 100.0
        );
    }
    if cfg!(debug_assertions) {
        text += "warning: the load generator was built without optimisation\n";
    }
    text
}

/// What has changed against an earlier run.
pub(crate) fn compare(new: &Report, old: &Report) -> String {
    let mut text =
        format!("\ncompared with {} (commit {}): ratio new/old with its 95 % interval\n", old.started, old.commit);
    if new.machine != old.machine {
        let _ = writeln!(text, "warning: another machine then: {}", old.machine);
    }
    if (new.settings.value_size, new.nodes) != (old.settings.value_size, old.nodes) {
        text += "warning: another size of values or another number of nodes then\n";
    }
    let mut table = table(&["scenario", "figure", "old", "new", "ratio", "95 %", "verdict"]);
    for scenario in &new.scenarios {
        let Some(before) = old.scenarios.iter().find(|old| old.load.key() == scenario.load.key()) else {
            let _ = writeln!(text, "{}: not in the earlier run", scenario.name);
            continue;
        };
        for figure in FIGURES {
            if let Some(row) = compare_figure(figure, scenario, before) {
                table.add_row(row);
            }
        }
    }
    let _ = writeln!(text, "{table}");
    text
}

/// `None` when it is not known of both.
fn compare_figure(figure: &Figure, new: &Scenario, old: &Scenario) -> Option<[String; 7]> {
    let values = |scenario: &Scenario| scenario.repetitions.iter().map(figure.of).collect::<Option<Vec<f64>>>();
    let (new_values, old_values) = (values(new)?, values(old)?);
    let ratio = Ratio::of(&new_values, &old_values);
    // In an open loop the throughput is given, not found.
    let given = figure.name == "throughput" && matches!(new.load, Load::Open { .. });
    let verdict = match ratio {
        _ if given => "given",
        Some(ratio) if !ratio.is_outside_noise() => "within the noise",
        Some(ratio) if (ratio.guess > 1.0) == figure.more_is_better => "BETTER",
        Some(_) => "WORSE",
        None => "too few values",
    };
    let median = |values: Vec<f64>| shown(Summary::of(values).map(|summary| summary.median), 2);
    Some([
        new.name.clone(),
        format!("{} [{}]", figure.name, figure.unit),
        median(old_values),
        median(new_values),
        shown(ratio.map(|ratio| ratio.guess), 3),
        ratio.map_or("-".to_owned(), |ratio| format!("{:.3} .. {:.3}", ratio.low, ratio.high)),
        verdict.to_owned(),
    ])
}

/// A number, or a dash when it is not known.
pub(crate) fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;
    use crate::scenario::Settings;

    fn report(throughputs: &[f64]) -> Report {
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
        let mut scenario = Scenario::new(Load::Closed { clients: 16 });
        for &throughput in throughputs {
            scenario.push(Repetition { leader: 2, term: 5, throughput, ..Repetition::default() });
        }
        report.scenarios.push(scenario);
        report
    }

    #[test]
    fn the_table_shows_what_is_known_and_what_went_wrong() {
        let mut report = report(&[1000.0, 1100.0, 900.0]);
        report.scenarios[0].repetitions[1].errors.insert("busy".into(), 7);
        report.rejected.push(crate::report::Rejected { scenario: "x".into(), reason: "an election".into() });
        let text = render(&report);
        for part in ["closed, 16 clients", "1000", "10.0", "2 (term 5)", "7 x busy", "an election", "fsync on 2 of 3"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn a_comparison_says_what_is_better() {
        let (old, same, better) =
            (report(&[100.0, 101.0, 99.0]), report(&[101.0, 100.0, 98.5]), report(&[130.0, 131.0, 129.0]));
        assert!(compare(&same, &old).contains("within the noise"));
        assert!(compare(&better, &old).contains("BETTER"));
        assert!(compare(&old, &better).contains("WORSE"));
        let mut elsewhere = old.clone();
        elsewhere.machine.cpu = "another".into();
        assert!(compare(&old, &elsewhere).contains("another machine"));
    }
}
