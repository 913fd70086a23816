//! Hours of moderate load while logs are purged: what reaches the disks for each byte that clients propose, and whether latency stays flat.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use raft_core::NodeId;
use raft_node::client::protocol::NodeStatus;

use super::outcome::{Outcome, short};
use super::{Arena, Stage};
use crate::lines::{Lanes, Loop};
use crate::machine;
use crate::meter::{Latency, Meter, histogram, latency};
use crate::pace::{Excess, Schedule};
use crate::plot::{Axis, Scale, Series};
use crate::probe;
use crate::run::Bench;
use crate::workload::Workload;

const NODES: u64 = 3;
const CONNECTIONS: u32 = 4;
/// Requests under way on one connection, at most: what a node works on before it stops reading.
const IN_FLIGHT: usize = 4096;
/// Load before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// Between two looks at the nodes.
const LOOK: Duration = Duration::from_secs(1);
/// After the load: what is left over has been done by then.
const REST: Duration = Duration::from_secs(3);
/// The first and the last so many are put beside each other.
const BESIDE: Duration = Duration::from_mins(10);
const MIB: f64 = (1 << 20) as f64;

/// Writes at a fixed rate for a long time with frequent snapshots: bytes on the disks for each byte proposed, and latency, minute by minute.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// For how long
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Writes a second
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Seconds of an interval, for each of which there is a point [default: 60, or a twentieth of a run that is shorter than 20 minutes]
    #[arg(long)]
    interval: Option<f64>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Keys that are written, at random
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    keys: u64,
    /// Entries after which a node makes its state durable and compacts its log (`snapshot.entries`)
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    snapshot_entries: u64,
    /// Entries that stay in the log then (`snapshot.keep_entries`)
    #[arg(long, default_value_t = 10_000)]
    keep_entries: u64,
}

impl Args {
    /// In seconds.
    fn interval(&self) -> f64 {
        self.interval.unwrap_or_else(|| (self.minutes * 3.0).clamp(1.0, 60.0).round())
    }
}

/// What the nodes have written so far, all together.
#[derive(Clone, Copy, Debug, Default)]
struct Written {
    log: u64,
    disk: u64,
    snapshots: u64,
    compactions: u64,
}

/// Some time of the run.
struct Span {
    /// When it ended, in minutes since the measurement began.
    end: f64,
    seconds: f64,
    writes: u64,
    latencies: Histogram<u64>,
    written: Written,
    /// Bytes on the disks at its end, in all data directories.
    size: u64,
}

/// The whole run.
struct Found {
    spans: Vec<Span>,
    /// Latencies of the seconds in which a node made its state durable or compacted its log, and of all others.
    busy: Histogram<u64>,
    quiet: Histogram<u64>,
    /// What has gone wrong.
    errors: BTreeMap<String, u64>,
    elections: u64,
    /// Bytes on the disks after the load: data directory by data directory.
    at_rest: Vec<u64>,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.minutes > 0.0 && args.minutes <= 10_000.0, "--minutes must be more than 0 and at most 10000");
    let interval = args.interval();
    ensure!((1.0..=3600.0).contains(&interval), "--interval must be from 1 to 3600 seconds");
    let settings =
        format!("[snapshot]\nentries = {}\nbytes = 0\nkeep_entries = {}\n", args.snapshot_entries, args.keep_entries);
    let (mut arena, before) = Arena::open(&args.stage, &args.stage.dir, NODES, &settings).await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let meter = Rc::new(Meter::new()?);
    let workload = |lane: u32| Workload::new(args.keys, args.value_size, u64::from(lane));
    let mut lanes = bench.connect(before.leader, Loop::Open, CONNECTIONS, &meter, workload).await?;
    let begin = Instant::now() + WARM_UP;
    let window = begin..begin + Duration::from_secs_f64(args.minutes * 60.0);
    lanes.pace(Schedule { rate: args.rate, window: window.clone(), excess: Excess::Skip { most: IN_FLIGHT } }, &meter);
    let mut found = watch(args, &mut arena, &mut lanes, &meter, &window).await?;
    let unanswered = lanes.drain(&meter).await;
    drop(lanes);
    tokio::time::sleep(REST).await;
    found.errors = meter.errors();
    found.errors.insert("unanswered".to_owned(), unanswered);
    found.elections = arena.settled().await?.term - before.term;
    found.at_rest = sizes(&arena)?;
    bench.close().await;
    arena.close().await;
    report(args, &found)
}

/// Looks at the nodes every second until the window is over.
async fn watch(
    args: &Args,
    arena: &mut Arena,
    lanes: &mut Lanes,
    meter: &Meter,
    window: &std::ops::Range<Instant>,
) -> Result<Found> {
    let watched = async {
        tokio::time::sleep_until(window.start.into()).await;
        let mut found = Found {
            spans: Vec::new(),
            busy: histogram()?,
            quiet: histogram()?,
            errors: BTreeMap::new(),
            elections: 0,
            at_rest: Vec::new(),
        };
        meter.take_latencies()?;
        let mut span = Begun::now(arena, meter, Instant::now()).await?;
        let mut last = span.written;
        while Instant::now() < window.end {
            tokio::time::sleep(LOOK).await;
            arena.nodes.check()?;
            let (now, written) = (Instant::now(), look(arena).await?);
            let latencies = meter.take_latencies()?;
            let works = written.snapshots + written.compactions > last.snapshots + last.compactions;
            (if works { &mut found.busy } else { &mut found.quiet }).add(&latencies)?;
            span.latencies.add(&latencies)?;
            last = written;
            if now.duration_since(span.at).as_secs_f64() >= args.interval() || now >= window.end {
                let size = sizes(arena)?.into_iter().sum();
                let next = Begun { at: now, written, done: meter.done(), latencies: histogram()? };
                let ended = std::mem::replace(&mut span, next).end(&span, window.start, size);
                eprintln!("amplification: {}", line(args, &ended)?);
                found.spans.push(ended);
            }
        }
        anyhow::Ok(found)
    };
    // Whoever loses leadership breaks off its connections: then the figures until there are of no use.
    tokio::select! {
        found = watched => found,
        failure = lanes.failure() => Err(failure.context("the load broke off")),
    }
}

/// A span that goes on.
struct Begun {
    at: Instant,
    written: Written,
    done: u64,
    latencies: Histogram<u64>,
}

impl Begun {
    async fn now(arena: &Arena, meter: &Meter, at: Instant) -> Result<Begun> {
        Ok(Begun { at, written: look(arena).await?, done: meter.done(), latencies: histogram()? })
    }

    /// It ends where the next one begins.
    fn end(self, next: &Begun, start: Instant, size: u64) -> Span {
        let (now, then) = (next.written, self.written);
        Span {
            end: next.at.duration_since(start).as_secs_f64() / 60.0,
            seconds: next.at.duration_since(self.at).as_secs_f64(),
            writes: next.done - self.done,
            latencies: self.latencies,
            written: Written {
                log: now.log.saturating_sub(then.log),
                disk: now.disk.saturating_sub(then.disk),
                snapshots: now.snapshots.saturating_sub(then.snapshots),
                compactions: now.compactions.saturating_sub(then.compactions),
            },
            size,
        }
    }
}

impl Span {
    /// Several that follow each other, as one.
    fn of(spans: &[Span]) -> Result<Span> {
        let last = spans.last().context("nothing was measured")?;
        let mut all = Span {
            end: last.end,
            seconds: 0.0,
            writes: 0,
            latencies: histogram()?,
            written: Written::default(),
            size: last.size,
        };
        for span in spans {
            all.seconds += span.seconds;
            all.writes += span.writes;
            all.latencies.add(&span.latencies)?;
            all.written.log += span.written.log;
            all.written.disk += span.written.disk;
            all.written.snapshots += span.written.snapshots;
            all.written.compactions += span.written.compactions;
        }
        Ok(all)
    }

    /// Bytes of the commands that clients proposed.
    fn proposed(&self, args: &Args) -> Result<u64> {
        Ok(self.writes * Workload::command_bytes(args.value_size)?)
    }

    /// Bytes of log records and bytes on the disk of one node, for each byte proposed.
    fn amplification(&self, args: &Args) -> Result<[f64; 2]> {
        let proposed = self.proposed(args)?.max(1) as f64;
        Ok([self.written.log, self.written.disk].map(|bytes| bytes as f64 / NODES as f64 / proposed))
    }
}

async fn look(arena: &Arena) -> Result<Written> {
    let status = arena.observer.status().await?;
    let sum = |name: &str| status.values().map(|node: &NodeStatus| node.metrics.get(name).copied().unwrap_or(0)).sum();
    let pids: Vec<u32> = arena.nodes.ids().into_iter().filter_map(|id| arena.nodes.pid(id)).collect();
    let disk = probe::disk_bytes(&pids).context("the system does not tell what the nodes write")?;
    let (snapshots, compactions) = (sum("snapshot.made"), sum("log.compactions"));
    Ok(Written { log: sum("log.bytes_written"), disk, snapshots, compactions })
}

/// What the data directories take on the disk, in bytes, node by node.
fn sizes(arena: &Arena) -> Result<Vec<u64>> {
    let size = |id: NodeId| size_of(&arena.nodes.file(id, "data"));
    arena.nodes.ids().into_iter().map(size).collect()
}

/// Of a folder with all that is in it. What is deleted meanwhile does not count.
fn size_of(dir: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        let Ok(metadata) = entry.metadata() else { continue };
        sum += if metadata.is_dir() { size_of(&entry.path()).unwrap_or(0) } else { machine::allocated(&metadata) };
    }
    Ok(sum)
}

fn line(args: &Args, span: &Span) -> Result<String> {
    let ([log, disk], Latency { p50, p99, .. }) = (span.amplification(args)?, latency(&span.latencies));
    Ok(format!(
        "{:.1} min: {:.0} op/s, p50 {p50:.0} us, p99 {p99:.0} us, each node: log x {log:.2}, disk x {disk:.2}; {:.0} MiB on disks, {} compactions",
        span.end,
        span.writes as f64 / span.seconds,
        span.size as f64 / MIB,
        span.written.compactions,
    ))
}

fn row(args: &Args, name: String, span: &Span) -> Result<Vec<String>> {
    let ([log, disk], latency) = (span.amplification(args)?, latency(&span.latencies));
    let millis = |micros: f64| short(micros / 1e3);
    Ok(vec![
        name,
        format!("{:.0}", span.writes as f64 / span.seconds),
        millis(latency.p50),
        millis(latency.p99),
        millis(latency.p999),
        millis(latency.max),
        format!("{:.0}", span.proposed(args)? as f64 / MIB),
        format!("{log:.2}"),
        format!("{disk:.2}"),
        format!("{:.0}", span.size as f64 / MIB),
        span.written.snapshots.to_string(),
        span.written.compactions.to_string(),
    ])
}

fn report(args: &Args, found: &Found) -> Result<Outcome> {
    let header = [
        "when",
        "op/s",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "max ms",
        "MiB proposed",
        "log B a byte",
        "disk B a byte",
        "MiB on disks",
        "snapshots",
        "compactions",
    ];
    let mut outcome = Outcome::new("amplification", &args.stage.dir, &header);
    outcome.setting("nodes", NODES.to_string());
    outcome.setting("minutes", args.minutes.to_string());
    outcome.setting("writes a second", args.rate.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("keys", args.keys.to_string());
    outcome.setting("snapshot after entries", args.snapshot_entries.to_string());
    outcome.setting("entries kept", args.keep_entries.to_string());
    // At most a third of the run, so that there is something between them.
    let spans = &found.spans;
    let beside = (BESIDE.as_secs_f64() / args.interval()).round() as usize;
    let beside = beside.clamp(1, (spans.len() / 3).max(1)).min(spans.len());
    let (first, last, all) = (Span::of(&spans[..beside])?, Span::of(&spans[spans.len() - beside..])?, Span::of(spans)?);
    for (name, span) in [("first", &first), ("last", &last)] {
        outcome.row(row(args, format!("{name} {} min", short(span.seconds / 60.0)), span)?);
    }
    outcome.row(row(args, "all of it".to_owned(), &all)?);
    notes(args, found, &all, &mut outcome)?;
    let ([_, early], [_, late]) = (first.amplification(args)?, last.amplification(args)?);
    outcome.at_most(
        "bytes on the disk for a byte in the end, as a multiple of those in the beginning",
        "x",
        late / early,
        1.25,
    );
    let p99 = |span: &Span| latency(&span.latencies).p99;
    outcome.at_most("p99 in the end, as a multiple of that in the beginning", "x", p99(&last) / p99(&first), 2.0);
    outcome.never("elections", usize::try_from(found.elections)?);
    outcome.never("writes without an answer", usize::try_from(found.errors.get("unanswered").copied().unwrap_or(0))?);
    curves(args, spans, &mut outcome)?;
    Ok(outcome)
}

fn notes(args: &Args, found: &Found, all: &Span, outcome: &mut Outcome) -> Result<()> {
    outcome.note("a byte is one that a client proposes: key and value; log and disk are what one node writes for it, the mean of the three; at each \
         compaction a node has made its state durable and forgets its log up to there; snapshots are files for followers that need one");
    let [busy, quiet] = [&found.busy, &found.quiet].map(latency);
    outcome.note(format!(
        "p50 and p99 of the seconds in which a node made a snapshot or compacted its log: {} and {} ms; of all other seconds: {} and {} ms",
        short(busy.p50 / 1e3),
        short(busy.p99 / 1e3),
        short(quiet.p50 / 1e3),
        short(quiet.p99 / 1e3)
    ));
    let sizes: Vec<String> = found.at_rest.iter().map(|bytes| format!("{:.0}", *bytes as f64 / MIB)).collect();
    outcome.note(format!(
        "at rest, after {:.0} MiB were proposed, the data directories have {} MiB; the state is {:.0} MiB of keys and values",
        all.proposed(args)? as f64 / MIB,
        sizes.join(", "),
        args.keys as f64 * Workload::command_bytes(args.value_size)? as f64 / MIB,
    ));
    for (what, times) in found.errors.iter().filter(|(_, times)| **times > 0) {
        outcome.note(format!("{times} x {what}"));
    }
    Ok(())
}

fn curves(args: &Args, spans: &[Span], outcome: &mut Outcome) -> Result<()> {
    let minutes = || Axis::new("minutes", Scale::Linear);
    let values = |figure: &dyn Fn(&Span) -> f64| -> Vec<f64> { spans.iter().map(figure).collect() };
    let pairs: Vec<[f64; 2]> = spans.iter().map(|span| span.amplification(args)).collect::<Result<_>>()?;
    let quantiles: Vec<Latency> = spans.iter().map(|span| latency(&span.latencies)).collect();
    let all = [
        ("log_bytes_a_byte", pairs.iter().map(|pair| pair[0]).collect()),
        ("disk_bytes_a_byte", pairs.iter().map(|pair| pair[1]).collect()),
        ("p50_us", quantiles.iter().map(|one| one.p50).collect()),
        ("p99_us", quantiles.iter().map(|one| one.p99).collect()),
        ("p999_us", quantiles.iter().map(|one| one.p999).collect()),
        ("disk_mib", values(&|span| span.size as f64 / MIB)),
        ("snapshots", values(&|span| span.written.snapshots as f64)),
        ("compactions", values(&|span| span.written.compactions as f64)),
        ("proposed_bytes", spans.iter().map(|span| Ok(span.proposed(args)? as f64)).collect::<Result<_>>()?),
        ("log_bytes", values(&|span| span.written.log as f64)),
        ("disk_bytes", values(&|span| span.written.disk as f64)),
        ("end_minutes", values(&|span| span.end)),
    ];
    let all: BTreeMap<&str, Vec<f64>> = all.into();
    let series = |name: &str, color, figure: &str| {
        let points = spans.iter().zip(&all[figure]).map(|(span, value)| (span.end, *value));
        Series { marked: false, ..Series::new(name, color, points) }
    };
    let linear = |label: &str| Axis::new(label, Scale::Linear);
    let written = vec![series("disk", 0, "disk_bytes_a_byte"), series("log records", 1, "log_bytes_a_byte")];
    outcome.chart("what a node writes", minutes(), linear("bytes for each byte proposed"), written);
    let latency = vec![series("p50", 0, "p50_us"), series("p99", 1, "p99_us"), series("p99.9", 2, "p999_us")];
    outcome.chart("latency of writes", minutes(), Axis::new("microseconds", Scale::Log), latency);
    outcome.chart(
        "data of all nodes",
        minutes(),
        linear("MiB on the disks"),
        vec![series("data directories", 0, "disk_mib")],
    );
    let work = vec![series("compactions of logs", 0, "compactions"), series("snapshots", 1, "snapshots")];
    outcome.chart("housekeeping of all nodes", minutes(), linear("times in an interval"), work);
    for (name, values) in all {
        outcome.samples(name, values);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> Args {
        let stage =
            Stage { program: "x".into(), dir: std::env::temp_dir(), out: "x".into(), keep: false, engine: None };
        Args {
            stage,
            minutes: 6.0,
            rate: 1000,
            interval: Some(60.0),
            value_size: 256,
            keys: 10,
            snapshot_entries: 1000,
            keep_entries: 10,
        }
    }

    fn span(minute: u64, disk: u64) -> Span {
        let mut latencies = histogram().unwrap();
        latencies.record(1_000_000 * minute).unwrap();
        let bytes = 1000 * Workload::command_bytes(256).unwrap();
        let written = Written { log: bytes * 3, disk: bytes * 3 * disk, snapshots: 0, compactions: 3 };
        Span { end: minute as f64, seconds: 60.0, writes: 1000, latencies, written, size: 3 << 20 }
    }

    #[test]
    fn the_end_is_put_beside_the_beginning() {
        let spans = [2, 2, 3, 3, 4, 4].into_iter().zip(1..).map(|(disk, minute)| span(minute, disk)).collect();
        let (busy, quiet) = (histogram().unwrap(), histogram().unwrap());
        let errors = BTreeMap::from([("busy".to_owned(), 7)]);
        let found = Found { spans, busy, quiet, errors, elections: 0, at_rest: vec![1 << 20; 3] };
        let outcome = report(&args(), &found).unwrap();
        let text = outcome.render();
        for part in ["| first 2 min |", "| last 2 min", "7 x busy", "have 1, 1, 1 MiB"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert!(
            text.contains(
                "MISSED: bytes on the disk for a byte in the end, as a multiple of those in the beginning: 2 x"
            ),
            "{text}"
        );
        assert!(text.contains("MISSED: p99 in the end") && outcome.verdict().is_ok(), "{text}");
    }

    #[test]
    fn what_lies_in_folders_counts() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), vec![1; 10_000]).unwrap();
        fs::write(dir.path().join("c"), vec![1; 10_000]).unwrap();
        let size = size_of(dir.path()).unwrap();
        assert!((10_000..100_000).contains(&size), "{size}");
        assert!(size_of(&dir.path().join("d")).is_err());
    }
}
