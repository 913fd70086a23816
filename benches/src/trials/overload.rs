//! More load than the cluster can carry: what it still serves, and what that costs.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_core::NodeId;

use super::outcome::{Outcome, short};
use super::{Arena, Stage, repeat};
use crate::lines::Loop;
use crate::meter::Meter;
use crate::pace::{Excess, Schedule};
use crate::probe::Memory;
use crate::run::Bench;
use crate::scenario::{Load, Settings, Traffic};
use crate::workload::Workload;

/// Requests that a node works on for one connection before it stops reading; see `limits.max_requests_per_connection`.
const IN_FLIGHT: usize = 4096;
/// Bytes of a request besides its value, at most.
const REQUEST_OVERHEAD: usize = 128;
/// Between two looks at the memory of the nodes.
const LOOK: Duration = Duration::from_millis(50);
/// Load before anything is measured.
const WARM_UP: Duration = Duration::from_secs(1);

/// Looks for the best throughput, then offers four times as much: what share of the best is still served, and what it costs.
///
/// Requests come by the clock, on many connections. When so many are under way on one that its node reads no further, the next ones are not sent,
/// as a client would give up that has to wait too long; they count as offered.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// Numbers of clients with which the best throughput is looked for
    #[arg(long, value_delimiter = ',', default_value = "64,256,1024", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: Vec<u32>,
    /// The load, as a multiple of the best throughput
    #[arg(long, default_value_t = 4.0)]
    times: f64,
    /// Connections under overload
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Seconds of each measurement of the best; the overload lasts four times as long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.times > 0.0 && args.times <= 1000.0, "--times must be more than 0 and at most 1000");
    ensure!(args.seconds > 0.0 && args.seconds <= 3600.0, "--seconds must be more than 0 and at most 3600");
    let (mut arena, _) = Arena::open(&args.stage, &args.stage.dir, args.nodes, "").await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let best = best(args, &bench).await?;
    let before = arena.settled().await?;
    let memory = Watch::default();
    let usual = memory.look(&arena)?;
    let rate = (best.throughput * args.times) as u64;
    eprintln!("overload: {:.0} op/s with {} clients; now {rate}/s", best.throughput, best.clients);
    let flood = flood(args, &arena, &bench, rate, &memory).await?;
    let after = arena.settled().await?;
    let elections = after.term.saturating_sub(before.term);
    bench.close().await;
    arena.close().await;

    let header = ["load", "offered/s", "served/s", "busy/s", "not sent/s", "p50 ms", "p99 ms", "max ms"];
    let mut outcome = Outcome::new("overload", &args.stage.dir, &header);
    outcome.setting("nodes", args.nodes.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("connections", args.connections.to_string());
    let best_name = format!("closed, {} clients", best.clients);
    let throughput = short(best.throughput);
    outcome.row(
        [&best_name, &throughput, &throughput, "0", "0"].map(str::to_owned).into_iter().chain(best.latency).collect(),
    );
    let Flood { served, busy, not_sent, latency, .. } = &flood;
    let counts = [rate as f64, *served, *busy, *not_sent].map(short);
    let name = format!("open, {} times that", args.times);
    outcome.row([name].into_iter().chain(counts).chain(latency.clone()).collect());
    let limits = raft_core::Config::new(NodeId(1));
    let waiting = args.connections as usize * IN_FLIGHT * (args.value_size + REQUEST_OVERHEAD);
    let more = limits.max_uncommitted_bytes + limits.max_unapplied_bytes + limits.max_cached_bytes + waiting;
    for (id, peak) in &flood.memory {
        let usual = usual.get(id).copied().unwrap_or(0);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        outcome.note(format!(
            "node {id}: {:.0} MiB resident at the best load, {:.0} MiB at most under overload",
            mib(usual),
            mib(*peak)
        ));
        outcome.at_most(
            format!("memory of node {id}: what it needs at the best load, and its limits"),
            "MiB",
            mib(*peak).round(),
            mib(usual + more as u64).round(),
        );
    }
    outcome.note(format!(
        "limits: {} MiB uncommitted, {} unapplied, {} cached, {} of requests on {} connections",
        limits.max_uncommitted_bytes >> 20,
        limits.max_unapplied_bytes >> 20,
        limits.max_cached_bytes >> 20,
        waiting >> 20,
        args.connections
    ));
    outcome.at_least("served, in percent of the best", "%", served / best.throughput * 100.0, 80.0);
    outcome.at_most("elections", "", elections as f64, 0.0);
    outcome.samples("best_per_second", [best.throughput]);
    outcome.samples("served_per_second", [*served]);
    Ok(outcome)
}

/// The best that closed loops achieve.
struct Best {
    clients: u32,
    throughput: f64,
    /// p50, p99 and maximum, in ms.
    latency: [String; 3],
}

async fn best(args: &Args, bench: &Bench) -> Result<Best> {
    let mut best: Option<Best> = None;
    for (number, &clients) in args.clients.iter().enumerate() {
        let settings = Settings {
            seconds: args.seconds,
            warm_up_seconds: WARM_UP.as_secs_f64(),
            repetitions: 1,
            value_size: args.value_size,
            keys: 10_000,
            connections: args.connections,
            seed: 1,
        };
        let load = Load::Closed { clients };
        let found = repeat("overload", bench, (Traffic::Writes, load), &settings, number as u64).await?;
        if best.as_ref().is_none_or(|best| best.throughput < found.throughput) {
            let latency = [found.latency.p50, found.latency.p99, found.latency.max].map(|micros| short(micros / 1e3));
            best = Some(Best { clients, throughput: found.throughput, latency });
        }
    }
    best.context("no number of clients is given")
}

/// What came of the overload, a second.
struct Flood {
    served: f64,
    busy: f64,
    not_sent: f64,
    /// p50, p99 and maximum of what was served, in ms.
    latency: [String; 3],
    /// The most that was resident in each node, in bytes.
    memory: BTreeMap<NodeId, u64>,
}

async fn flood(args: &Args, arena: &Arena, bench: &Bench, rate: u64, memory: &Watch) -> Result<Flood> {
    let leadership = bench.leadership().await?;
    let meter = Rc::new(Meter::new()?);
    let workload = |lane: u32| Workload::new(10_000, args.value_size, 1000 + u64::from(lane));
    let mut lanes = bench.connect(leadership.leader, Loop::Open, args.connections, &meter, workload).await?;
    let begin = Instant::now() + WARM_UP;
    let window = begin..begin + Duration::from_secs_f64(args.seconds * 4.0);
    let excess = Excess::Skip { most: IN_FLIGHT };
    lanes.pace(Schedule { rate, window: window.clone(), excess }, &meter);
    let count = || (meter.done(), meter.errors());
    let watched = async {
        tokio::time::sleep_until(window.start.into()).await;
        let (before, start) = (count(), Instant::now());
        while Instant::now() < window.end {
            memory.look(arena)?;
            tokio::time::sleep(LOOK).await;
        }
        Ok::<_, anyhow::Error>((before, count(), start.elapsed().as_secs_f64()))
    };
    let (before, after, seconds) = tokio::select! {
        watched = watched => watched?,
        failure = lanes.failure() => return Err(failure.context("under overload")),
    };
    lanes.drain(&meter).await;
    let each = |what: &str| {
        let of = |errors: &BTreeMap<String, u64>| errors.get(what).copied().unwrap_or(0);
        (of(&after.1) - of(&before.1)) as f64 / seconds
    };
    let latency = meter.latency();
    Ok(Flood {
        served: (after.0 - before.0) as f64 / seconds,
        busy: each("busy"),
        not_sent: each("not sent"),
        latency: [latency.p50, latency.p99, latency.max].map(|micros| short(micros / 1e3)),
        memory: memory.peaks.borrow().clone(),
    })
}

/// The most that was resident in each node.
#[derive(Default)]
struct Watch {
    peaks: RefCell<BTreeMap<NodeId, u64>>,
}

impl Watch {
    /// Looks at all nodes; returns what is resident now, in bytes.
    fn look(&self, arena: &Arena) -> Result<BTreeMap<NodeId, u64>> {
        let mut all = BTreeMap::new();
        for id in arena.nodes.ids() {
            let pid = arena.nodes.pid(id).with_context(|| format!("node {id} does not run"))?;
            let resident = Memory::read(&[pid]).resident.with_context(|| format!("node {id} is gone"))?;
            let mut peaks = self.peaks.borrow_mut();
            let peak = peaks.entry(id).or_default();
            *peak = resident.max(*peak);
            all.insert(id, resident);
        }
        Ok(all)
    }
}
