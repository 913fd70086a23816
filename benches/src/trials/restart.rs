//! A long log: how much memory the nodes need for it, and how long it takes until they serve again after they were killed.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_core::NodeId;

use super::outcome::{Outcome, millis, short};
use super::{Arena, Stage};
use crate::figures::Summary;
use crate::machine;
use crate::plot::{Axis, Scale, Series};
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
/// First one follower is killed, then all nodes at once. Each log has a cluster of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// The logs: `ENTRIESxBYTES` of a value, several of them separated by commas
    #[arg(long, value_delimiter = ',', value_name = "NxB,...", default_value = "1000000x16", value_parser = log)]
    logs: Vec<Log>,
    /// How often each restart is measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
}

/// How long a log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Log {
    entries: u64,
    /// Bytes of the value in each of them.
    value_size: usize,
}

fn log(text: &str) -> Result<Log, String> {
    let log = text
        .split_once('x')
        .and_then(|(entries, size)| Some(Log { entries: entries.parse().ok()?, value_size: size.parse().ok()? }));
    let limit = raft_node::kv::MAX_VALUE_BYTES;
    log.filter(|log| (1..=100_000_000).contains(&log.entries) && log.value_size <= limit)
        .ok_or_else(|| format!("must be ENTRIESxBYTES, with 1 to 100000000 entries of values of at most {limit} bytes"))
}

/// What was found out about a log.
struct Found {
    log: Log,
    /// Bytes of the records that a node wrote.
    bytes: u64,
    /// Bytes of the node that takes most, now and at most: after the filling, and after the restarts.
    memory: [[u64; 2]; 2],
    /// In ms.
    one: Vec<f64>,
    all: Vec<f64>,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let mut found = Vec::new();
    for &log in &args.logs {
        check_room(args, log)?;
        let dir = args.stage.dir.join(format!("{}x{}", log.entries, log.value_size));
        found.push(measure(args, log, &dir).await?);
        // The next log needs the room.
        if !args.stage.keep {
            std::fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
    }
    Ok(report(args, &found))
}

async fn measure(args: &Args, log: Log, dir: &Path) -> Result<Found> {
    // Nothing of the log is forgotten.
    let settings = "[snapshot]\nentries = 0\nbytes = 0\n";
    let (mut arena, leadership) = Arena::open(&args.stage, dir, NODES, settings).await?;
    fill(log, &arena, leadership.leader).await?;
    arena.settled().await?;
    tokio::time::sleep(REST).await;
    let status = arena.observer.status_of(leadership.leader).await?;
    let start = status.metrics.get("log.start").copied().unwrap_or(0);
    ensure!(start == 0 && status.last_index >= log.entries, "the log has been compacted up to {start}");
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
    Ok(Found { log, bytes, memory: [filled, restarted], one, all })
}

async fn fill(log: Log, arena: &Arena, leader: NodeId) -> Result<()> {
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let workload = |lane: u32| Workload::new(KEYS, log.value_size, u64::from(lane));
    let (done, took) = bench.fill(leader, (CONNECTIONS, CLIENTS), log.entries, workload).await?;
    eprintln!("restart: {done} entries of {} B in {:.0} s", log.value_size, took.as_secs_f64());
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

fn report(args: &Args, found: &[Found]) -> Outcome {
    let header = [
        "entries",
        "value B",
        "log GiB",
        "one node ready again, ms",
        "all killed, until a write is acknowledged, ms",
        "MiB filled",
        "at most",
        "MiB restarted",
        "at most",
    ];
    let mut outcome = Outcome::new("restart", &args.stage.dir, &header);
    outcome.setting("times", args.times.to_string());
    outcome.note("times: the least and the most; MiB: memory of the node that takes most; nodes are killed, and nothing is in their caches but the system's");
    let extremes = |values: &[f64]| {
        let by = |better: fn(f64, f64) -> f64| values.iter().copied().reduce(better).map_or("-".to_owned(), short);
        format!("{} .. {}", by(f64::min), by(f64::max))
    };
    let (mut worst, mut most) = (0f64, 0f64);
    for Found { log, bytes, memory, one, all } in found {
        let mut row = vec![log.entries.to_string(), log.value_size.to_string(), format!("{:.2}", *bytes as f64 / GIB)];
        row.extend([extremes(one), extremes(all)]);
        row.extend(memory.iter().flatten().map(|bytes| short(mib(*bytes))));
        outcome.row(row);
        worst = all.iter().chain(one).copied().fold(worst, f64::max);
        most = memory.iter().map(|[_, peak]| mib(*peak)).fold(most, f64::max);
        let name = |what: &str| format!("{}x{}, {what}", log.entries, log.value_size);
        outcome.samples(name("one_ms"), one.iter().copied());
        outcome.samples(name("all_ms"), all.iter().copied());
        outcome.samples(name("resident_bytes"), memory.iter().map(|[now, _]| *now as f64));
        outcome.samples(name("peak_bytes"), memory.iter().map(|[_, peak]| *peak as f64));
    }
    outcome.at_most("time until it serves again", "s", worst / 1e3, 10.0);
    outcome.at_most("memory of a node", "MiB", most, 1024.0);
    charts(&mut outcome, found);
    outcome
}

/// Over the length of the log, for those whose entries are equally long.
fn charts(outcome: &mut Outcome, found: &[Found]) {
    let Some(value_size) = found.first().map(|first| first.log.value_size) else { return };
    let alike: Vec<&Found> = found.iter().filter(|found| found.log.value_size == value_size).collect();
    if alike.len() < 2 {
        return;
    }
    let entries = || {
        let ticks = alike.iter().map(|found| (found.log.entries as f64, found.log.entries.to_string()));
        Axis::of(format!("entries in the log, with values of {value_size} B"), ticks)
    };
    let line = |name: &str, color, figure: &dyn Fn(&Found) -> Option<f64>| {
        let points = alike.iter().filter_map(|found| Some((found.log.entries as f64, figure(found)?)));
        Series::new(name, color, points)
    };
    let median = |values: &[f64]| Summary::of(values.iter().copied()).map(|summary| summary.median);
    let times = vec![
        line("one node, until it is ready", 0, &|found| median(&found.one)),
        line("all nodes, until a write", 1, &|found| median(&found.all)),
    ];
    outcome.chart("restart", entries(), Axis::new("ms", Scale::Log), times);
    let memory = vec![
        line("after the filling", 0, &|found| Some(mib(found.memory[0][0]))),
        line("after the restarts", 1, &|found| Some(mib(found.memory[1][0]))),
        line("at most", 2, &|found| found.memory.iter().map(|[_, peak]| mib(*peak)).reduce(f64::max)),
    ];
    outcome.chart("memory of a node", entries(), Axis::new("MiB", Scale::Linear), memory);
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The logs of three nodes, twice where RocksDB has not yet deleted what it has written elsewhere.
fn check_room(args: &Args, log: Log) -> Result<()> {
    let parent = args.stage.dir.ancestors().find(|dir| dir.exists());
    let Some(free) = parent.and_then(machine::free_bytes) else { return Ok(()) };
    let needed = log.entries * (log.value_size as u64 + OVERHEAD) * 2 * NODES + (2 << 30);
    let gib = |bytes: u64| bytes as f64 / GIB;
    ensure!(
        free > needed,
        "{:.1} GiB are free, but this may take {:.1} GiB; take shorter --logs",
        gib(free),
        gib(needed)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_so_many_entries_of_so_many_bytes() {
        assert_eq!(log("250000x4096"), Ok(Log { entries: 250_000, value_size: 4096 }));
        for bad in ["", "5", "x5", "0x16", "5x", "1x999999999", "5x16x2"] {
            assert!(log(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn logs_of_the_same_entries_make_a_curve() {
        let stage =
            Stage { program: "x".into(), dir: std::env::temp_dir(), out: "x".into(), keep: false, engine: None };
        let found = |entries, value_size| Found {
            log: Log { entries, value_size },
            bytes: 1 << 30,
            memory: [[64 << 20, 128 << 20], [32 << 20, 64 << 20]],
            one: vec![300.0, 200.0],
            all: vec![12_000.0, 400.0],
        };
        let args = Args { stage, logs: Vec::new(), times: 2 };
        let outcome = report(&args, &[found(1000, 16), found(10_000, 16), found(5, 4096)]);
        let text = outcome.render();
        assert!(text.contains("200 .. 300") && text.contains("MISSED: time until it serves again: 12 s"), "{text}");
        let json = serde_json::to_value(&outcome).unwrap();
        let points = |chart: usize| json["charts"][chart]["series"][0]["points"].as_array().unwrap().len();
        assert_eq!((points(0), points(1)), (2, 2));
    }
}
