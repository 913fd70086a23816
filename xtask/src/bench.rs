//! `cargo xtask bench`: how fast a cluster of real processes is, and what its clients notice when something happens to it.

mod rival;
mod trials;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::rival::Rival;
use self::trials::Trial;
use crate::cluster::{self, Cluster, Options, addresses};
use crate::report::{human, table};
use crate::{prerequisites, setup, signals, workspace};

/// Measures a three-node cluster of release processes on this machine: QUIC with mutual TLS, every write fsynced on a majority.
///
/// Builds everything (minutes the first time), starts the nodes in a fresh folder below target/bench, drives them with the load generator, prints a table and
/// writes the figures as JSON below target/bench. About five minutes once built, one with --quick.
///
/// Each of the subcommands measures something else, on a cluster of its own; `all` measures everything.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    kind: Option<Kind>,
    #[command(flatten)]
    load: Load,
}

#[derive(clap::Subcommand)]
enum Kind {
    /// Runs the criterion benchmarks of core, storage and transport (a few minutes)
    Criterion {
        /// Only benchmarks whose name contains this
        filter: Option<String>,
    },
    /// Measures in turn with etcd; the core in turn with raft-rs; and the library in turn with openraft; with 1 to 1024 clients (twenty minutes)
    Peers {
        /// Only beside this one
        #[arg(long)]
        only: Option<Peer>,
        #[command(flatten)]
        load: Load,
    },
    /// Makes docs/performance.md with its plots from the latest files below target/bench
    Page,
    #[command(flatten)]
    Trial(Trial),
    /// Counts to 10 000 while the client's connection is cut again and again: no increment may be lost or doubled (6 minutes)
    Retries {
        /// How far to count
        #[arg(long, default_value_t = 10_000)]
        increments: u64,
    },
    /// The curves over payload, nodes, groups and the length of the log, one after the other (seven minutes; two with --quick)
    Curves {
        /// Shorter measurements, and no log of ten million entries
        #[arg(long)]
        quick: bool,
    },
    /// Everything: throughput and latency, each of the others, beside peers, and at last an hour of load (about two hours and a half)
    All {
        /// The short form of each (half an hour)
        #[arg(long)]
        quick: bool,
        /// For how long write amplification is measured [default: 60; with --quick: 3]
        #[arg(long)]
        minutes: Option<f64>,
    },
}

/// Whom we measure ourselves with.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Peer {
    /// The cluster of processes
    Etcd,
    /// The protocol alone
    RaftRs,
    /// The library, in one process
    Openraft,
}

/// What the load generator shall do.
#[derive(Clone, clap::Args)]
struct Load {
    /// A short run: fewer and shorter measurements
    #[arg(long)]
    quick: bool,
    /// Numbers of clients that write at the same time, one measurement each [default: the load generator's]
    #[arg(long, value_delimiter = ',', value_name = "N,N,...")]
    clients: Vec<u32>,
    /// Length of each measurement in seconds [default: the load generator's]
    #[arg(long)]
    seconds: Option<u64>,
    /// Size of a value in bytes [default: 256]
    #[arg(long)]
    value_size: Option<usize>,
    /// Compare with the JSON file of an earlier run
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Measure another cluster in turn with this build's: of a raft-node program, FILE or NAME=FILE; of this one with another engine for its log, `journal`; or `etcd`. May be given several times
    #[arg(long, value_name = "WHAT", value_parser = Rival::parse)]
    against: Vec<Rival>,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Keep the folder of the cluster with data and logs
    #[arg(long)]
    keep: bool,
    /// Further arguments for the load generator
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(false)?;
    match &args.kind {
        Some(Kind::Criterion { filter }) => criterion(filter.as_deref()),
        Some(Kind::Peers { only, load }) => peers(*only, load),
        Some(Kind::Page) => build(false).and_then(|()| page()),
        Some(Kind::Trial(trial)) => trial.prepare().and_then(|()| build(false)).and_then(|()| trial.run()),
        Some(Kind::Retries { increments }) => build(false).and_then(|()| retries(*increments)),
        Some(Kind::Curves { quick }) => {
            build(false)?;
            steps(Trial::curves(*quick).into_iter().map(step).collect())
        }
        Some(Kind::All { quick, minutes }) => all(&Load { quick: *quick, ..args.load.clone() }, *minutes),
        None => load(&args.load),
    }
}

/// Part of everything.
struct Step<'a> {
    name: String,
    /// How long it takes, about.
    minutes: f64,
    run: Box<dyn Fn() -> Result<()> + 'a>,
}

impl<'a> Step<'a> {
    fn new(name: &str, minutes: f64, run: impl Fn() -> Result<()> + 'a) -> Self {
        Step { name: name.to_owned(), minutes, run: Box::new(run) }
    }
}

fn step<'a>(trial: Trial) -> Step<'a> {
    Step { name: trial.name(), minutes: trial.minutes(), run: Box::new(move || trial.run()) }
}

/// Everything, from what is short to what is long.
fn all(args: &Load, minutes: Option<f64>) -> Result<()> {
    let quick = args.quick;
    build(false)?;
    let mut all = vec![Step::new("throughput and latency", if quick { 1.0 } else { 4.0 }, || load(args))];
    all.extend(Trial::all(quick).into_iter().map(step));
    let increments = if quick { 1000 } else { 10_000 };
    all.push(Step::new("retries", if quick { 1.0 } else { 6.0 }, move || retries(increments)));
    all.push(Step::new("criterion", 6.0, || criterion(None)));
    all.push(Step::new("peers", if quick { 4.0 } else { 15.0 }, || peers(None, args)));
    all.push(step(Trial::amplification(minutes.unwrap_or(if quick { 3.0 } else { 60.0 }))));
    steps(all)
}

/// One step after the other. What fails does not keep the others from being measured.
fn steps(steps: Vec<Step<'_>>) -> Result<()> {
    let total: f64 = steps.iter().map(|step| step.minutes).sum();
    let plan: Vec<Vec<String>> =
        steps.iter().map(|step| vec![step.name.clone(), format!("{:.1}", step.minutes)]).collect();
    eprintln!(
        "\n{}\nabout {total:.0} minutes in all, without what has to be built",
        table(&["what", "minutes"], &plan, &[1])
    );
    let (mut rows, mut failed, count, start) = (Vec::new(), Vec::new(), steps.len(), Instant::now());
    for (number, Step { name, minutes, run }) in (1..).zip(steps) {
        if signals::stop_requested() {
            bail!("interrupted");
        }
        let gone = human(start.elapsed());
        eprintln!(
            "\n== {number} of {count}: {name}: about {minutes:.1} minutes ({gone} of about {total:.0} minutes are over)"
        );
        let begun = Instant::now();
        let outcome = run();
        let word = if outcome.is_ok() { "done" } else { "FAILED" };
        rows.push(vec![name.clone(), word.to_owned(), human(begun.elapsed())]);
        if let Err(error) = outcome {
            eprintln!("bench: {name}: {error:#}");
            failed.push(name);
        }
    }
    println!(
        "\n{}\n`cargo xtask bench page` makes a page of all figures",
        table(&["what", "outcome", "time"], &rows, &[2])
    );
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

fn criterion(filter: Option<&str>) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["bench", "-p", "raft-benches", "--benches"]);
    if let Some(filter) = filter {
        command.arg("--").arg(filter);
    }
    workspace::run(&mut command)
}

/// Ours beside others, alternated: `only` one of them, or all.
fn peers(only: Option<Peer>, args: &Load) -> Result<()> {
    let wanted = |peer| only.is_none_or(|only| only == peer);
    if wanted(Peer::Etcd) {
        let mut args = args.clone();
        if !args.against.contains(&Rival::Etcd) {
            args.against.push(Rival::Etcd);
        }
        if args.clients.is_empty() && !args.quick {
            args.clients = vec![1, 16, 64, 256, 1024];
        }
        load(&args)?;
    }
    if wanted(Peer::RaftRs) {
        workspace::run(beside("raft-rs", "core").arg("core/commit"))?;
    }
    if wanted(Peer::Openraft) {
        workspace::run(beside("openraft", "library").args(library_flags(args)))?;
    }
    Ok(())
}

/// The benchmark `bench` with what it takes to measure it beside a peer; its figures go where the others are.
fn beside(peer: &str, bench: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["bench", "-p", "raft-benches", "--features", peer, "--bench", bench, "--"]);
    command.env("RAFT_BENCH_OUT", workspace::target_dir().join("bench"));
    command
}

/// What of the load is meant for the library, too.
fn library_flags(load: &Load) -> Vec<String> {
    let mut flags = Vec::new();
    if !load.clients.is_empty() {
        let clients: Vec<String> = load.clients.iter().map(u32::to_string).collect();
        flags.extend(["--clients".to_owned(), clients.join(",")]);
    }
    match load.seconds {
        Some(seconds) => flags.extend(["--seconds".to_owned(), seconds.to_string()]),
        None if load.quick => {
            flags.extend(["--seconds", "0.5", "--warm-up", "0.3", "--repetitions", "3"].map(str::to_owned));
        }
        None => {}
    }
    flags
}

fn page() -> Result<()> {
    let target = workspace::target_dir();
    let mut command = Command::new(target.join("release").join("raft-load"));
    command.current_dir(workspace::root()).arg("page").arg("--from").arg(target.join("bench"));
    workspace::run(command.arg("--docs").arg("docs"))
}

/// The test of exactly-once writes, against release programs, and longer.
fn retries(increments: u64) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["test", "-p", "raft-node", "--test", "it", "a_counter_counts_every_increment", "--", "--nocapture"]);
    command.env("RAFT_TEST_INCREMENTS", increments.to_string());
    command.env("RAFT_TEST_PROGRAM", workspace::target_dir().join("release").join("raft-node"));
    workspace::run(&mut command)
}

/// Builds the release programs; the load generator with what it takes to load `etcd`, if that is wanted.
fn build(etcd: bool) -> Result<()> {
    let started = Instant::now();
    eprintln!("bench: building release binaries (minutes the first time)");
    let mut command = workspace::cargo();
    command.args(["build", "--release", "-p", "raft-node", "-p", "raft-benches", "--bins"]);
    if etcd {
        command.args(["--features", "raft-benches/etcd"]);
    }
    workspace::run(&mut command)?;
    eprintln!("bench: built in {}", human(started.elapsed()));
    signals::catch()
}

fn load(load: &Load) -> Result<()> {
    let started = Instant::now();
    // A path is taken from where the command was typed; the load generator runs in the root.
    let baseline = load
        .baseline
        .as_deref()
        .map(|path| path.canonicalize().with_context(|| format!("no baseline {}", path.display())));
    let baseline = baseline.transpose()?;

    let with_etcd = load.against.contains(&Rival::Etcd);
    if with_etcd {
        prerequisites::ensure_etcd()?;
    }
    build(with_etcd)?;
    let output = workspace::target_dir().join("bench");
    let dir = output.join(format!("cluster-{}", std::process::id()));
    let measured = measure(load, &dir, &output, baseline.as_deref());
    if load.keep {
        eprintln!("bench: data and logs are in {}", workspace::shorten(&dir));
    } else if measured.is_err() && !signals::stop_requested() {
        eprintln!("bench: logs are kept in {}", workspace::shorten(&dir));
    } else if let Err(error) = std::fs::remove_dir_all(&dir) {
        eprintln!("warning: cannot remove {}: {error}", dir.display());
    }
    measured?;
    eprintln!("bench: {} in all; the figures are in {}", human(started.elapsed()), workspace::shorten(&output));
    Ok(())
}

/// Starts a cluster in `dir`, and one for each rival, lets the load generator run against them, and stops them.
fn measure(load: &Load, dir: &Path, output: &Path, baseline: Option<&Path>) -> Result<()> {
    let binaries = workspace::target_dir().join("release");
    let ours = binaries.join("raft-node");
    let start = |dir: &Path, program: &Path, engine: Option<&str>| {
        let listen = addresses(load.nodes, 0)?;
        let mut cluster = Cluster::start(&Options { dir, program, listen: &listen, log_level: "warn", engine })?;
        cluster.wait_for_leader().map(|_| cluster)
    };
    let mut clusters = vec![start(dir, &ours, None)?];
    for rival in &load.against {
        let (program, engine) = match rival {
            Rival::Build { program, .. } => (program, None),
            Rival::Engine(engine) => (&ours, Some(*engine)),
            Rival::Etcd => continue,
        };
        let cluster = start(&dir.join(format!("against-{}", clusters.len())), program, engine);
        clusters.push(cluster.with_context(|| format!("the cluster of {rival:?} does not start"))?);
    }
    let dirs: Vec<&Path> = clusters.iter().map(Cluster::dir).collect();
    let mut command = load_command(load, &binaries, &dirs, output, baseline);
    let outcome = drive(&mut command, &mut clusters);
    clusters.iter_mut().for_each(Cluster::stop);
    outcome
}

/// The one place that knows the flags of `raft-load`. `clusters` are the folders of this build's cluster and of each rival's.
fn load_command(load: &Load, binaries: &Path, clusters: &[&Path], output: &Path, baseline: Option<&Path>) -> Command {
    let description = |at: usize| clusters.get(at).map(|dir| dir.join(cluster::DESCRIPTION)).unwrap_or_default();
    let mut command = Command::new(binaries.join("raft-load"));
    command.current_dir(workspace::root()).arg("measure").arg("--cluster").arg(description(0)).arg("--out").arg(output);
    if load.quick {
        command.arg("--quick");
    }
    if !load.clients.is_empty() {
        let clients: Vec<String> = load.clients.iter().map(u32::to_string).collect();
        command.arg("--clients").arg(clients.join(","));
    }
    if let Some(seconds) = load.seconds {
        command.arg("--seconds").arg(seconds.to_string());
    }
    if let Some(size) = load.value_size {
        command.arg("--value-size").arg(size.to_string());
    }
    if let Some(baseline) = baseline {
        command.arg("--baseline").arg(baseline);
    }
    for (at, name) in (1..).zip(load.against.iter().filter_map(Rival::name)) {
        command.arg("--against").arg(format!("{name}={}", description(at).display()));
    }
    if load.against.contains(&Rival::Etcd) {
        command.arg("--etcd-dir").arg(clusters.first().map(|dir| dir.join("etcd")).unwrap_or_default());
    }
    command.args(&load.rest);
    command
}

/// Waits for the load generator, watching the nodes meanwhile: figures of a cluster that lost a node mean nothing.
fn drive(command: &mut Command, clusters: &mut [Cluster]) -> Result<()> {
    let shown = workspace::show(command);
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let failure = loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("`{shown}` failed ({status})");
        }
        if signals::stop_requested() {
            break "interrupted".to_owned();
        }
        if let Some(dead) = clusters.iter_mut().flat_map(Cluster::take_dead).next() {
            break format!(
                "node {} ended during the measurement ({}); the end of its log:\n{}",
                dead.id, dead.status, dead.log
            );
        }
        sleep(Duration::from_millis(50));
    };
    // It may have ended meanwhile; then there is nothing to kill.
    let _ = child.kill();
    let _ = child.wait();
    bail!(failure)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        load: Load,
    }

    #[test]
    fn flags_reach_the_load_generator() {
        let cli = Cli::try_parse_from(["bench", "--quick", "--clients", "1,16", "--seconds", "3", "--", "--rate", "5"]);
        let load = cli.map_err(|error| error.to_string()).expect("valid flags").load;
        let command =
            load_command(&load, Path::new("/b"), &[Path::new("/c")], Path::new("/o"), Some(Path::new("/old.json")));
        assert_eq!(
            workspace::show(&command),
            "/b/raft-load measure --cluster /c/cluster.json --out /o --quick --clients 1,16 --seconds 3 --baseline /old.json --rate 5"
        );
    }

    #[test]
    fn flags_reach_the_library_benchmark() {
        let flags = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["bench"], words].concat()).map_err(|error| error.to_string());
            library_flags(&cli.expect("valid flags").load).join(" ")
        };
        assert_eq!(flags(&[]), "");
        assert_eq!(flags(&["--clients", "1,16", "--seconds", "3", "--quick"]), "--clients 1,16 --seconds 3");
        assert!(flags(&["--quick"]).contains("--repetitions 3"));
    }

    #[test]
    fn what_is_measured_beside_it_is_named() {
        let program = std::env::current_exe().expect("a program");
        let flag = format!("--against=old={}", program.display());
        let cli = Cli::try_parse_from(["bench", "--against=etcd", &flag]).map_err(|error| error.to_string());
        let load = cli.expect("valid flags").load;
        let clusters = [Path::new("/c"), Path::new("/c/against-1")];
        let command = load_command(&load, Path::new("/b"), &clusters, Path::new("/o"), None);
        let line = workspace::show(&command);
        assert!(line.ends_with("--against old=/c/against-1/cluster.json --etcd-dir /c/etcd"), "{line}");
    }
}
