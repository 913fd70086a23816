//! All repetitions of all scenarios, interleaved.

use anyhow::{Context, Result};

use crate::args::Rate;
use crate::progress::Progress;
use crate::report::{Rejected, Report, Scenario};
use crate::run::Bench;
use crate::scenario::{Load, Repetition};

/// Rejected repetitions of one scenario, in a row, after which the run is given up.
const MAX_REJECTED: u32 = 3;

/// Runs the closed loops `loads`, and an open loop, in turn, and puts the outcome into `report`.
pub(crate) async fn run(
    bench: &Bench,
    loads: &[Load],
    rate: Rate,
    report: &mut Report,
    progress: &Progress,
) -> Result<()> {
    report.scenarios = loads.iter().map(|&load| Scenario::new(load)).collect();
    if let Rate::Fixed(rate) = rate {
        report.scenarios.push(Scenario::new(Load::Open { rate }));
    }
    progress.now("waiting for a leader");
    let leadership = bench.leadership().await?;
    progress.line(&format!("load: {leadership} leads"));
    for round in 0..report.settings.repetitions {
        let mut at = 0;
        while at < report.scenarios.len() {
            let number = u64::from(round) * 1000 + at as u64;
            let repetition = repeat(bench, at, number, report, progress).await?;
            let of = report.settings.repetitions;
            progress.line(&line(&report.scenarios[at].name, round + 1, of, &repetition));
            report.scenarios[at].push(repetition);
            at += 1;
            let all_closed = at == loads.len() && round == 0;
            if let Some(rate) = half_of_best(report).filter(|_| all_closed && rate == Rate::HalfOfBest) {
                report.scenarios.push(Scenario::new(Load::Open { rate }));
            }
        }
    }
    Ok(())
}

/// One accepted repetition.
async fn repeat(bench: &Bench, at: usize, number: u64, report: &mut Report, progress: &Progress) -> Result<Repetition> {
    let Scenario { name, load, .. } = report.scenarios[at].clone();
    let mut rejected = 0;
    loop {
        progress.now(&name);
        match bench.repetition(load, &report.settings, number).await {
            Ok(repetition) => return Ok(repetition),
            Err(error) if rejected < MAX_REJECTED => {
                rejected += 1;
                let reason = format!("{error:#}");
                progress.line(&format!("load: {name}: rejected, made again: {reason}"));
                report.rejected.push(Rejected { scenario: name.clone(), reason });
            }
            Err(error) => return Err(error).with_context(|| format!("{name}: {} attempts failed", MAX_REJECTED + 1)),
        }
    }
}

/// Half of the best throughput so far, in round numbers.
fn half_of_best(report: &Report) -> Option<u64> {
    let all = report.scenarios.iter().flat_map(|scenario| &scenario.repetitions);
    let best = all.map(|repetition| repetition.throughput).max_by(f64::total_cmp)?;
    let half = (best / 2.0) as u64;
    let unit = 10u64.pow(half.checked_ilog10().unwrap_or(0).saturating_sub(1));
    Some((half / unit * unit).max(1))
}

fn line(name: &str, number: u32, of: u32, repetition: &Repetition) -> String {
    let Repetition { throughput, latency, .. } = repetition;
    let failures = match repetition.failures() {
        0 => String::new(),
        failures => format!(", {failures} FAILED"),
    };
    format!(
        "load: {name}, {number} of {of}: {throughput:.0} op/s, p50 {:.0} us, p99 {:.0} us{failures}",
        latency.p50, latency.p99
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    #[test]
    fn the_open_loop_runs_at_a_round_rate() {
        let settings = crate::scenario::Settings {
            seconds: 1.0,
            warm_up_seconds: 1.0,
            repetitions: 1,
            value_size: 1,
            keys: 1,
            connections: 1,
            seed: 1,
        };
        let mut report = Report::new(Machine::default(), String::new(), 3, settings);
        assert_eq!(half_of_best(&report), None);
        let mut rate_for = |throughput| {
            let mut scenario = Scenario::new(Load::Closed { clients: 1 });
            scenario.push(Repetition { throughput, ..Repetition::default() });
            report.scenarios = vec![scenario];
            half_of_best(&report)
        };
        assert_eq!(rate_for(71_234.0), Some(35_000));
        assert_eq!(rate_for(19.0), Some(9));
        assert_eq!(rate_for(0.5), Some(1));
    }
}
