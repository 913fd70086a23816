//! All repetitions of all scenarios, interleaved.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::args::Rate;
use crate::probe::Cpu;
use crate::progress::Progress;
use crate::report::{Rejected, Report, Scenario};
use crate::run::Bench;
use crate::scenario::{Load, Repetition};

/// Rejected repetitions of one scenario, in a row, after which the run is given up.
const MAX_REJECTED: u32 = 3;

/// How long the other clusters may go on with what they still have to do (to compact, say) before a repetition begins.
const QUIET_WITHIN: Duration = Duration::from_secs(5);
/// For so long all clusters must be quiet.
const QUIET: Duration = Duration::from_millis(100);
/// CPU time of all nodes in which a cluster that is not loaded counts as quiet, as a share of one core.
const QUIET_SHARE: f64 = 0.1;

/// Runs the closed loops `loads`, and an open loop, in turn, and puts the outcome into `report`. The first of `benches` is ours; the others are
/// those of the report. Each repetition is made with all of them, one right after the other, and the order changes from round to round.
pub(crate) async fn run(
    benches: &[Bench],
    loads: &[Load],
    rate: Rate,
    report: &mut Report,
    progress: &Progress,
) -> Result<()> {
    loads.iter().for_each(|&load| report.add(load));
    if let Rate::Fixed(rate) = rate {
        report.add(Load::Open { rate });
    }
    progress.now("waiting for a leader");
    for (target, bench) in benches.iter().enumerate() {
        let leadership = bench.leadership().await?;
        let whose = named(report, target);
        progress.line(&format!("load: {whose}{leadership} leads"));
    }
    for round in 0..report.settings.repetitions {
        let mut at = 0;
        while at < report.scenarios.len() {
            let mut order: Vec<usize> = (0..benches.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for target in order {
                quiet(benches).await;
                let number = u64::from(round) * 1000 + at as u64;
                let repetition = repeat(&benches[target], (target, at), number, report, progress).await?;
                let (of, whose) = (report.settings.repetitions, named(report, target));
                let name = format!("{whose}{}", report.scenarios[at].name);
                progress.line(&line(&name, round + 1, of, &repetition));
                report.of_mut(target)[at].push(repetition);
            }
            at += 1;
            let all_closed = at == loads.len() && round == 0;
            if let Some(rate) = half_of_best(report).filter(|_| all_closed && rate == Rate::HalfOfBest) {
                report.add(Load::Open { rate });
            }
        }
    }
    Ok(())
}

/// Whose a line of the progress is, when there are several.
fn named(report: &Report, target: usize) -> String {
    let targets = report.targets();
    if targets.len() == 1 { String::new() } else { format!("{}: ", targets[target]) }
}

/// Waits until no cluster is busy with what is left of its last repetition: the others would pay for it.
async fn quiet(benches: &[Bench]) {
    if benches.len() == 1 {
        return;
    }
    let begin = Instant::now();
    let pids: Vec<u32> = benches.iter().flat_map(Bench::pids).copied().collect();
    while begin.elapsed() < QUIET_WITHIN {
        let (before, since) = (Cpu::read(&pids), Instant::now());
        tokio::time::sleep(QUIET).await;
        let Some(used) = Cpu::read(&pids).since(&before).nodes else { return };
        if used <= QUIET_SHARE * benches.len() as f64 * since.elapsed().as_secs_f64() * 1e6 {
            return;
        }
    }
}

/// One accepted repetition of a scenario of a target.
async fn repeat(
    bench: &Bench,
    (target, at): (usize, usize),
    number: u64,
    report: &mut Report,
    progress: &Progress,
) -> Result<Repetition> {
    let Scenario { name, load, .. } = report.of(target)[at].clone();
    let name = format!("{}{name}", named(report, target));
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

/// Half of the best throughput so far, in round numbers; with several targets that of the slowest, so that all can carry the same load.
fn half_of_best(report: &Report) -> Option<u64> {
    let best = |target: usize| {
        let all = report.of(target).iter().flat_map(|scenario| &scenario.repetitions);
        all.map(|repetition| repetition.throughput).max_by(f64::total_cmp)
    };
    let bests: Option<Vec<f64>> = (0..=report.others.len()).map(best).collect();
    let half = (bests?.into_iter().min_by(f64::total_cmp)? / 2.0) as u64;
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
    use crate::report::Other;

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
        report.others = vec![Other { name: "x".into(), about: String::new(), scenarios: Vec::new() }];
        assert_eq!(half_of_best(&report), None, "the other has not been measured yet");
        let mut slower = Scenario::new(Load::Closed { clients: 1 });
        slower.push(Repetition { throughput: 200.0, ..Repetition::default() });
        report.others[0].scenarios.push(slower);
        report.scenarios[0].push(Repetition { throughput: 900.0, ..Repetition::default() });
        assert_eq!(half_of_best(&report), Some(100), "both must be able to carry it");
    }
}
