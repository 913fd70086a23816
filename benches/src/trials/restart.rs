//! A long log: how much memory the nodes need for it, and how long it takes until they serve again after they were killed.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_core::NodeId;

use super::outcome::{Outcome, millis, short};
use super::{Arena, Stage};
use crate::machine;
use crate::probe::Memory;
use crate::run::Bench;
use crate::workload::Workload;

const NODES: u64 = 3;
const GIB: f64 = (1u64 << 30) as f64;
/// Who fills the log.
const CLIENTS: u32 = 512;
const CONNECTIONS: u32 = 4;
/// Keys that are written. Few: this is about the log.
const KEYS: u64 = 10_000;
/// Bytes of an entry in the log besides its value.
const OVERHEAD: u64 = 64;
/// Between two looks.
const LOOK: Duration = Duration::from_millis(5);
/// How long a look may take: a node that starts does not answer yet.
const LOOK_WITHIN: Duration = Duration::from_millis(200);
/// How long a restart may take.
const PATIENCE: Duration = Duration::from_mins(5);
/// What memory is measured after: what was left over has been done by then.
const REST: Duration = Duration::from_secs(1);

/// Fills the log, which is never compacted meanwhile, and kills the nodes: memory, and time until they serve again.
///
/// First one follower is killed, then all nodes at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// Entries in the log
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    entries: u64,
    /// Bytes of a value
    #[arg(long, default_value_t = 16)]
    value_size: usize,
    /// How often each restart is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    check_room(args)?;
    // Nothing of the log is forgotten.
    let settings = "[snapshot]\nentries = 0\nbytes = 0\n";
    let (mut arena, leadership) = Arena::open(&args.stage, &args.stage.dir, NODES, settings).await?;
    fill(args, &arena, leadership.leader).await?;
    arena.settled().await?;
    tokio::time::sleep(REST).await;
    let status = arena.observer.status_of(leadership.leader).await?;
    let start = status.metrics.get("log.start").copied().unwrap_or(0);
    ensure!(start == 0 && status.last_index >= args.entries, "the log has been compacted up to {start}");
    let bytes = status.metrics.get("log.bytes_written").copied().unwrap_or(0);
    let filled = memory(&arena)?;
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for number in 1..=args.times {
        one.push(millis(restart_one(&mut arena).await?));
        all.push(millis(restart_all(&mut arena).await?));
        let last = |times: &[f64]| short(times.last().copied().unwrap_or_default());
        eprintln!("restart: {number} of {}: one node {} ms, all {} ms", args.times, last(&one), last(&all));
    }
    tokio::time::sleep(REST).await;
    let restarted = memory(&arena)?;
    arena.close().await;
    Ok(report(args, bytes, [filled, restarted], one, all))
}

async fn fill(args: &Args, arena: &Arena, leader: NodeId) -> Result<()> {
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let workload = |lane: u32| Workload::new(KEYS, args.value_size, u64::from(lane));
    let (done, took) = bench.fill(leader, (CONNECTIONS, CLIENTS), args.entries, workload).await?;
    eprintln!("restart: {done} entries in {:.0} s", took.as_secs_f64());
    bench.close().await;
    Ok(())
}

/// From the start of a killed follower until it has applied all that was committed, and is ready.
async fn restart_one(arena: &mut Arena) -> Result<Duration> {
    let leadership = arena.settled().await?;
    let follower = arena.nodes.ids().into_iter().find(|id| *id != leadership.leader).context("there is a follower")?;
    let committed = arena.observer.status_of(leadership.leader).await?.commit_index;
    arena.nodes.kill(follower).await?;
    let begin = Instant::now();
    arena.nodes.spawn(follower, false)?;
    loop {
        arena.nodes.check()?;
        if let Ok(Ok(status)) = tokio::time::timeout(LOOK_WITHIN, arena.observer.status_of(follower)).await
            && status.applied_index >= committed
            && status.not_ready.is_empty()
        {
            return Ok(begin.elapsed());
        }
        ensure!(begin.elapsed() < PATIENCE, "node {follower} is not back after {PATIENCE:?}");
        tokio::time::sleep(LOOK).await;
    }
}

/// From the start of all nodes, which were killed, until a write is acknowledged.
async fn restart_all(arena: &mut Arena) -> Result<Duration> {
    arena.settled().await?;
    for id in arena.nodes.ids() {
        arena.nodes.kill(id).await?;
    }
    let begin = Instant::now();
    for id in arena.nodes.ids() {
        arena.nodes.spawn(id, false)?;
    }
    let client = arena.nodes.client(|config| config.timeout = PATIENCE)?;
    let written = client.put(b"after the restart", b"").await;
    let took = begin.elapsed();
    client.close().await;
    arena.nodes.check()?;
    written.context("no write is acknowledged")?;
    Ok(took)
}

/// Of the node that takes most: bytes at present, and at most so far.
fn memory(arena: &Arena) -> Result<[u64; 2]> {
    let mut most = [0; 2];
    for pid in arena.nodes.ids().into_iter().filter_map(|id| arena.nodes.pid(id)) {
        let Memory { resident, peak } = Memory::read(&[pid]);
        let (resident, peak) = resident.zip(peak).context("the memory of a node cannot be read")?;
        most = [most[0].max(resident), most[1].max(peak)];
    }
    Ok(most)
}

fn report(args: &Args, bytes: u64, memory: [[u64; 2]; 2], one: Vec<f64>, all: Vec<f64>) -> Outcome {
    let mut outcome = Outcome::new("restart", &args.stage.dir, &["what", "min", "max"]);
    outcome.setting("entries", args.entries.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.note(format!(
        "the log of a node has {:.2} GiB; nodes are killed, and nothing is in their caches but the system's",
        bytes as f64 / GIB
    ));
    let extremes = |values: &[f64]| {
        let by = |better: fn(f64, f64) -> f64| values.iter().copied().reduce(better).map_or("-".to_owned(), short);
        [by(f64::min), by(f64::max)]
    };
    for (what, values) in [("one node ready again, ms", &one), ("all killed, until a write is acknowledged, ms", &all)]
    {
        let [min, max] = extremes(values);
        outcome.row(vec![what.to_owned(), min, max]);
    }
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for (what, [now, peak]) in [("after the filling", memory[0]), ("after the restarts", memory[1])] {
        outcome.row(vec![format!("MiB of the largest node {what}: now, at most"), short(mib(now)), short(mib(peak))]);
    }
    let worst = all.iter().chain(&one).copied().fold(0.0, f64::max) / 1e3;
    outcome.at_most("time until it serves again", "s", worst, 10.0);
    let peak = memory.iter().map(|[_, peak]| mib(*peak)).fold(0.0, f64::max);
    outcome.at_most("memory of a node", "MiB", peak, 1024.0);
    outcome.samples("one_ms", one);
    outcome.samples("all_ms", all);
    outcome.samples("resident_bytes", memory.iter().map(|[now, _]| *now as f64));
    outcome.samples("peak_bytes", memory.iter().map(|[_, peak]| *peak as f64));
    outcome
}

/// The logs of three nodes, twice where RocksDB has not yet deleted what it has written elsewhere.
fn check_room(args: &Args) -> Result<()> {
    let parent = args.stage.dir.ancestors().find(|dir| dir.exists());
    let Some(free) = parent.and_then(machine::free_bytes) else { return Ok(()) };
    let needed = args.entries * (args.value_size as u64 + OVERHEAD) * 2 * NODES + (2 << 30);
    let gib = |bytes: u64| bytes as f64 / GIB;
    ensure!(
        free > needed,
        "{:.1} GiB are free, but this may take {:.1} GiB; take fewer --entries",
        gib(free),
        gib(needed)
    );
    Ok(())
}
