//! `raft-load`: drives a running cluster and tells how fast it was and what that cost.
//!
//! It speaks the client protocol (QUIC with mutual TLS) to the processes that `cluster.json` describes, and takes the figures from three places: its own
//! clock (throughput, latency), the operating system (CPU time, memory), and the nodes' counters (syncs, bytes). Repetitions of all scenarios
//! are interleaved, so that a disturbance does not hit one of them alone; one with an election in it is rejected and made again.
//!
//! `lane` is one connection, `run` one repetition, `scenario` what is measured; `report`, `table` and `figures` are what comes out. Other clusters can be
//! measured in turn with the first (`target`, `versus`).
//!
//! `trials` are situations that are made on purpose, each on a cluster of its own: a leader that is killed, a follower that has to catch up.
#![forbid(unsafe_code)]

mod args;
mod cluster;
mod figures;
mod floors;
mod lane;
mod leash;
mod lines;
mod machine;
mod meter;
mod pace;
mod page;
#[cfg(feature = "etcd")]
mod peers;
mod plot;
mod probe;
mod progress;
mod ratio;
mod report;
mod run;
mod scenario;
mod suite;
mod table;
mod target;
mod ticker;
mod trials;
mod versus;
mod workload;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::args::{Against, Args};
use crate::cluster::Description;
use crate::floors::FloorMeter;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::report::{Other, Report};
use crate::run::Bench;

/// Logs grow by about this many bytes for each operation and node, beyond the value itself.
const LOG_OVERHEAD: u64 = 64;
/// What to assume for the number of operations a second when looking for room on the disk.
const ASSUMED_RATE: u64 = 100_000;

/// Loads Raft clusters and measures them.
#[derive(Parser)]
#[command(version, name = "raft-load")]
enum Cli {
    Measure(Args),
    Page(page::Args),
    #[command(flatten)]
    Trial(trials::Command),
}

fn main() -> Result<()> {
    match Cli::parse() {
        Cli::Measure(args) => measure(&args),
        Cli::Page(args) => page::run(&args),
        Cli::Trial(command) => trials::run(&command),
    }
}

fn measure(args: &Args) -> Result<()> {
    let baseline = args.baseline.as_deref().map(Report::load).transpose()?;
    let description = Description::load(&args.cluster)?;
    let settings = args.settings();
    let data_dir = description.nodes.first().map(|node| node.data_dir.clone()).unwrap_or_default();
    check_room(&data_dir, args, description.nodes.len())?;
    let machine = Machine::find_out(&data_dir);
    let mut report = Report::new(machine, machine::commit(), description.nodes.len(), settings);
    let progress = Progress::new(args.duration());
    progress.line(&format!("load: cluster {:?} on {}", description.cluster, report.machine));

    let floors_dir = data_dir.parent().unwrap_or(Path::new(".")).to_owned();
    let floor_time = args.floor_time();
    let mut floors = FloorMeter::new()?;
    progress.now("floors: fdatasync and UDP round trip");
    floors.measure(&floors_dir, description.nodes.len(), floor_time)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
        let benches = benches(args, &description, &mut report)?;
        let outcome = suite::run(&benches, &args.loads(), args.rate(), &mut report, &progress).await;
        for bench in benches {
            bench.close().await;
        }
        outcome
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome?;

    progress.now("floors again");
    floors.measure(&floors_dir, description.nodes.len(), floor_time)?;
    report.floors = floors.floors();
    progress.finish();
    let path = report.save(&args.out)?;
    println!("{}", table::render(&report));
    if !report.others.is_empty() {
        println!("{}", versus::render(&report));
    }
    if let Some(baseline) = baseline {
        println!("{}", table::compare(&report, &baseline));
    }
    println!("every repetition is in {}", shorten(&path).display());
    for picture in plot::save(&args.out, &report.started, &plot::of_report(&report))? {
        println!("a picture of it is {}", shorten(&picture).display());
    }
    Ok(())
}

/// Our cluster, and those that are measured in turn with it.
fn benches(args: &Args, description: &Description, report: &mut Report) -> Result<Vec<Bench>> {
    let mut benches = vec![Bench::new(description.clone(), &description.tls()?)?];
    let mut add = |bench: Bench, name: &str, about: String| {
        benches.push(bench);
        report.others.push(Other { name: name.to_owned(), about, scenarios: Vec::new() });
    };
    for Against { name, cluster } in &args.against {
        let other = Description::load(cluster)?;
        ensure!(other.nodes.len() == description.nodes.len(), "{name} has another number of nodes");
        let bench = Bench::new(other.clone(), &other.tls()?)?;
        let program = other.program.unwrap_or_default();
        add(bench, name, format!("another build of this project: {}", shorten(&program).display()));
    }
    #[cfg(feature = "etcd")]
    if let Some(dir) = &args.etcd_dir {
        let etcd = peers::etcd::Etcd::start(&args.etcd, dir, description.nodes.len())?;
        let about = etcd.about();
        add(Bench::of(target::Target::Etcd(Box::new(etcd))), "etcd", about);
    }
    Ok(benches)
}

/// The path as it can be typed where the program was started.
fn shorten(path: &Path) -> &Path {
    let here = std::env::current_dir().ok();
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

/// A log that fills the disk in the middle of a run would be a waste of everybody's time.
fn check_room(data_dir: &Path, args: &Args, nodes: usize) -> Result<()> {
    let Some(free) = machine::free_bytes(data_dir) else { return Ok(()) };
    let each = args.value_size as u64 + LOG_OVERHEAD;
    let needed = args.duration().as_secs() * ASSUMED_RATE / 2 * each * nodes as u64;
    let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
    ensure!(
        free > needed,
        "{:.1} GiB are free on the disk of {}, but the logs may take {:.1} GiB; --quick or a smaller --seconds need less",
        gib(free),
        data_dir.display(),
        gib(needed)
    );
    Ok(())
}
