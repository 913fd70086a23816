//! Reads beside writes, in the same run: at the leader by a round of heartbeats (ReadIndex) and by its lease, at followers, stale ones, and reads mixed with writes.

use anyhow::{Result, ensure};
use raft_node::Consistency;

use super::outcome::Outcome;
use super::{Arena, Stage, repeat};
use crate::figures::Summary;
use crate::plot::{Axis, Scale, Series};
use crate::ratio::Ratio;
use crate::run::Bench;
use crate::scenario::{Load, Place, Repetition, Settings, Traffic};
use crate::table::shown;
use crate::workload::Workload;

const NODES: u64 = 3;
/// Who writes the values that are read.
const FILL_CLIENTS: u32 = 64;
/// How much faster reads should be than writes.
const TARGET: f64 = 5.0;

/// What is measured; the first is what the others are compared with.
const KINDS: [(&str, Traffic); 6] = [
    ("writes", Traffic::Writes),
    ("ReadIndex, leader", reads(100, Consistency::Linearizable, Place::Leader)),
    ("lease, leader", reads(100, Consistency::Lease, Place::Leader)),
    ("ReadIndex, followers", reads(100, Consistency::Linearizable, Place::Followers)),
    ("stale, followers", reads(100, Consistency::Stale, Place::Followers)),
    ("mix, 90 % ReadIndex", reads(90, Consistency::Linearizable, Place::Leader)),
];

const fn reads(percent: u32, consistency: Consistency, at: Place) -> Traffic {
    Traffic::Reads { percent, consistency, at }
}

/// Measures each kind of read beside writes, in turn, with the same clients.
///
/// The nodes have leases; a read that asks for ReadIndex makes no use of them.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,16,256", value_parser = clap::value_parser!(u32).range(1..=16_000))]
    clients: Vec<u32>,
    /// Seconds that each repetition measures
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Repetitions of each kind
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=1000))]
    repetitions: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Number of keys
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// Connections, at most; a measurement uses no more than it has clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
}

/// All repetitions with some number of clients, by kind.
type Found = [Vec<Repetition>; KINDS.len()];

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds must be more than 0 and at most 3600");
    let settings = "[raft]\nlease_drift_per_mille = 100\n";
    let (mut arena, leadership) = Arena::open(&args.stage, &args.stage.dir, NODES, settings).await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let step = u64::from(args.connections);
    let workload = |lane: u32| Workload::ascending(u64::from(lane), step, args.value_size);
    // One lane may be ahead of another: until none is behind, each key has its value.
    bench.fill(leadership.leader, (args.connections, FILL_CLIENTS), args.keys * 2, workload).await?;
    // Who reads at a follower finds every key, too.
    arena.settled_within(0).await?;
    let mut found = Vec::new();
    for &clients in &args.clients {
        found.push((clients, measure(args, &bench, clients).await?));
    }
    bench.close().await;
    arena.close().await;
    Ok(report(args, &found))
}

async fn measure(args: &Args, bench: &Bench, clients: u32) -> Result<Found> {
    let settings = Settings {
        seconds: args.seconds,
        warm_up_seconds: (args.seconds / 4.0).min(1.0),
        repetitions: args.repetitions,
        value_size: args.value_size,
        keys: args.keys,
        connections: args.connections,
        seed: 1,
    };
    let mut found = Found::default();
    for round in 0..args.repetitions {
        let mut order: Vec<usize> = (0..KINDS.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let (name, traffic) = KINDS[at];
            let number = u64::from(round) * 1000 + at as u64;
            let repetition = repeat("reads", bench, (traffic, Load::Closed { clients }), &settings, number).await?;
            let Repetition { throughput, latency, .. } = &repetition;
            eprintln!(
                "reads: {clients} clients, {} of {}: {name}: {throughput:.0} op/s, p50 {:.0} us, p99 {:.0} us",
                round + 1,
                args.repetitions,
                latency.p50,
                latency.p99
            );
            found[at].push(repetition);
        }
    }
    Ok(found)
}

/// The throughput as a multiple of that of the writes of the same round.
fn times(of: &[Repetition], writes: &[Repetition]) -> Option<Ratio> {
    let throughput = |all: &[Repetition]| all.iter().map(|one| one.throughput).collect::<Vec<f64>>();
    Ratio::of_pairs(&throughput(of), &throughput(writes))
}

fn report(args: &Args, found: &[(u32, Found)]) -> Outcome {
    let header = [
        "requests",
        "clients",
        "op/s",
        "times the writes",
        "95 %",
        "p50 us",
        "p99 us",
        "CPU us/op",
        "loader CPU",
        "node B/op",
    ];
    let mut outcome = Outcome::new("reads", &args.stage.dir, &header);
    outcome.setting("nodes", NODES.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("keys", args.keys.to_string());
    outcome.setting("repetitions", format!("median of {} x {} s", args.repetitions, args.seconds));
    for (clients, all) in found {
        for ((name, _), repetitions) in KINDS.iter().zip(all) {
            let median = |figure: fn(&Repetition) -> Option<f64>| Summary::median(repetitions, figure);
            let ratio = times(repetitions, &all[0]).filter(|_| *name != KINDS[0].0);
            outcome.row(vec![
                (*name).to_owned(),
                clients.to_string(),
                shown(median(|one| Some(one.throughput)), 0),
                shown(ratio.map(|ratio| ratio.guess), 2),
                ratio.map_or("-".to_owned(), |ratio| format!("{:.2} .. {:.2}", ratio.low, ratio.high)),
                shown(median(|one| Some(one.latency.p50)), 0),
                shown(median(|one| Some(one.latency.p99)), 0),
                shown(median(|one| one.node_cpu), 1),
                shown(median(|one| one.loader_cpu), 1),
                shown(median(|one| one.peer_bytes), 0),
            ]);
            outcome.samples(format!("{name}, {clients} clients, op/s"), repetitions.iter().map(|one| one.throughput));
        }
        if let Some(ratio) = times(&all[1], &all[0]) {
            let what = format!("ReadIndex reads at the leader as a multiple of the writes, clients: {clients}");
            outcome.at_least(what, "x", ratio.guess, TARGET);
        }
    }
    outcome.note("CPU of all nodes together, and of the load generator, which runs on the same cores");
    charts(&mut outcome, found);
    outcome
}

fn charts(outcome: &mut Outcome, found: &[(u32, Found)]) {
    let clients = || {
        let ticks = found.iter().map(|(clients, _)| (f64::from(*clients), clients.to_string()));
        Axis::of("clients, each with one request under way", ticks)
    };
    let lines = |figure: fn(&Repetition) -> Option<f64>| {
        let line = |at: usize| {
            let points = found
                .iter()
                .filter_map(|(clients, all)| Some((f64::from(*clients), Summary::median(&all[at], figure)?)));
            Series::new(KINDS[at].0, at, points)
        };
        (0..KINDS.len()).map(line).collect::<Vec<_>>()
    };
    outcome.chart(
        "throughput",
        clients(),
        Axis::new("requests a second", Scale::Log),
        lines(|one| Some(one.throughput)),
    );
    outcome.chart(
        "CPU time of all nodes",
        clients(),
        Axis::new("microseconds a request", Scale::Log),
        lines(|one| one.node_cpu),
    );
    outcome.chart("latency, p50", clients(), Axis::new("microseconds", Scale::Log), lines(|one| Some(one.latency.p50)));
    outcome.chart("latency, p99", clients(), Axis::new("microseconds", Scale::Log), lines(|one| Some(one.latency.p99)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_compared_with_the_writes_of_its_round() {
        let all = |throughputs: [f64; 2]| -> Vec<Repetition> {
            throughputs.map(|throughput| Repetition { throughput, ..Repetition::default() }).into()
        };
        let ratio = times(&all([600.0, 1200.0]), &all([100.0, 200.0])).unwrap();
        assert!((ratio.guess - 6.0).abs() < 1e-9, "{ratio:?}");
        assert!(times(&all([1.0, 1.0])[..1], &all([1.0, 1.0])).is_none());
    }
}
