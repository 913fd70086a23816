//! More clients than the cluster can serve at once, for a long time: whether heartbeats still get through, and nobody is elected.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_node::Stage as Part;
use raft_node::client::protocol::NodeStatus;

use super::outcome::{Outcome, short};
use super::{Arena, Stage};
use crate::floors::Echoes;
use crate::lines::Loop;
use crate::meter::Meter;
use crate::probe::Stolen;
use crate::run::Bench;
use crate::workload::Workload;

const NODES: u64 = 3;
const CONNECTIONS: u32 = 4;
const KEYS: u64 = 10_000;
/// Between two lines that say how it goes.
const LINE: Duration = Duration::from_secs(30);
/// Between two round trips of a bare datagram: as long as between two heartbeats.
const PAUSE: Duration = Duration::from_millis(100);

/// Loads the cluster with a closed loop of many clients for some minutes: elections, and the round trips of heartbeats meanwhile.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// For how long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Clients, which is requests under way
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=16_000))]
    clients: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.minutes > 0.0 && args.minutes <= 10_000.0, "--minutes must be more than 0 and at most 10000");
    let (mut arena, before) = Arena::open(&args.stage, &args.stage.dir, NODES, "[metrics]\ntimings = true\n").await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let meter = Rc::new(Meter::new()?);
    let workload = |lane: u32| Workload::new(KEYS, args.value_size, u64::from(lane));
    let mut lanes = bench.connect(before.leader, Loop::Closed, CONNECTIONS, &meter, workload).await?;
    let (begin, end) = (Instant::now(), Instant::now() + Duration::from_secs_f64(args.minutes * 60.0));
    lanes.all.iter().cycle().take(args.clients as usize).for_each(|lane| lane.issue(begin, false));
    meter.set_measuring(true);
    let (echoes, clock) = (Echoes::begin(PAUSE)?, Stolen::read());
    let loaded = async {
        while Instant::now() < end {
            tokio::time::sleep(LINE.min(end.saturating_duration_since(Instant::now()))).await;
            arena.nodes.check()?;
            let seconds = begin.elapsed().as_secs_f64();
            eprintln!("saturation: {seconds:.0} s, {:.0} op/s", meter.done() as f64 / seconds);
        }
        anyhow::Ok(())
    };
    // Whoever loses leadership breaks off its connections: then the figures until there are of no use.
    tokio::select! {
        ended = loaded => ended?,
        failure = lanes.failure() => return Err(failure.context("leadership was lost under load, which must not happen")),
    }
    meter.set_measuring(false);
    let (echoes, stolen) = (echoes.end()?, Stolen::read().zip(clock).map(|(now, then)| now.percent_since(&then)));
    let seconds = begin.elapsed().as_secs_f64();
    let unanswered = lanes.drain(&meter).await;
    drop(lanes);
    let status = arena.observer.status().await?;
    let leader = status.get(&before.leader).context("the leader does not answer")?;
    let elections = status.values().map(|node| node.term).max().unwrap_or(before.term) - before.term;
    let mut outcome = Outcome::new("saturation", &args.stage.dir, &["what", "times", "p50 ms", "p99 ms", "max ms"]);
    outcome.setting("clients", args.clients.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("minutes", args.minutes.to_string());
    let latency = meter.latency();
    let micros = |micros: f64| short(micros / 1e3);
    let done = meter.done();
    outcome.row(vec!["writes".into(), done.to_string(), micros(latency.p50), micros(latency.p99), micros(latency.max)]);
    outcome.row([vec!["heartbeats, there and back".into()], part(leader, Part::Heartbeat)].concat());
    let (times, echo) = echoes;
    let bare = vec!["a bare datagram, there and back".into(), times.to_string()];
    outcome.row([bare, vec![micros(echo.p50), micros(echo.p99), micros(echo.max)]].concat());
    outcome.row([vec!["syncs of the leader's log".into()], part(leader, Part::WriterSynced)].concat());
    outcome.note(format!(
        "{:.0} writes a second; {} counted as busy, and sent again",
        done as f64 / seconds,
        busy(&meter.errors())
    ));
    outcome.note("bare datagram: between two threads of the load generator that do nothing else, under the same load: as fast as two threads get a processor");
    if let Some(percent) = stolen {
        outcome.note(format!("the machine's host gave {percent:.1} % of its processors' time to others meanwhile"));
    }
    let p99 = figure(leader, Part::Heartbeat, "p99_ns").context("no heartbeat was answered")?;
    outcome.at_most("p99 of a heartbeat's round trip", "ms", p99 as f64 / 1e6, 5.0);
    outcome.never("elections", usize::try_from(elections)?);
    outcome.never("writes without an answer", usize::try_from(unanswered)?);
    outcome.samples("op_per_second", [done as f64 / seconds]);
    bench.close().await;
    arena.close().await;
    Ok(outcome)
}

fn busy(errors: &BTreeMap<String, u64>) -> u64 {
    errors.get("busy").copied().unwrap_or(0)
}

/// What a node has measured of a part of its work.
fn figure(status: &NodeStatus, part: Part, what: &str) -> Option<u64> {
    status.metrics.get(&format!("timings.{}.{what}", part.name())).copied()
}

fn part(status: &NodeStatus, part: Part) -> Vec<String> {
    let millis = |what| figure(status, part, what).map_or("-".to_owned(), |nanos| short(nanos as f64 / 1e6));
    let count = figure(status, part, "count").unwrap_or(0).to_string();
    vec![count, millis("p50_ns"), millis("p99_ns"), millis("max_ns")]
}
