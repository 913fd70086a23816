//! The command line: builds an arena, lets a schedule or a measurement loose in it, and shows the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use raft_core::sim::schedule::Dice;
use tokio::signal::unix::{SignalKind, signal};

use crate::arena::{Arena, Options};
use crate::clients::Shape;
use crate::journal::{self, Journal};
use crate::report::{Aim, Report};
use crate::scenarios::{self, Scenario};
use crate::schedule::Schedule;
use crate::{disk, nemesis};

/// Torments a cluster of real processes and judges what comes of it.
#[derive(Debug, Parser)]
struct Args {
    /// Seed of the faults [default: by the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on, in minutes
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=7))]
    nodes: u64,
    /// Instead of the schedule: so many times kill -9 of the leader, of a follower and of all, in turn
    #[arg(long, conflicts_with = "scenario")]
    cycles: Option<u64>,
    /// Instead of the schedule: a measurement
    #[arg(long)]
    scenario: Option<Scenario>,
    /// Print the schedule and do nothing
    #[arg(long)]
    plan: bool,
    /// The `raft-node` program [default: beside this one]
    #[arg(long)]
    program: Option<PathBuf>,
    /// Folder for reports, and for logs and data of a run that failed
    #[arg(long, default_value = "target/chaos")]
    out: PathBuf,
    /// Log level of the nodes
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Election timeout of the nodes in milliseconds [default: theirs]; a machine that is busy with other things needs a longer one
    #[arg(long)]
    election_timeout: Option<u64>,
    /// Keep logs and data in any case
    #[arg(long)]
    keep: bool,
}

/// The program.
pub(crate) fn main() -> ExitCode {
    let args = Args::parse();
    if args.plan {
        plan(&args);
        return ExitCode::SUCCESS;
    }
    disk::enter_namespace();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn length(&self) -> Duration {
        Duration::try_from_secs_f64(self.minutes * 60.0).unwrap_or_default()
    }

    /// What this run is called.
    fn name(&self, seed: u64) -> String {
        match (self.cycles, self.scenario) {
            (Some(cycles), _) => format!("{cycles}-cycles-{seed}"),
            (None, Some(scenario)) => format!("{scenario:?}-{seed}").to_lowercase(),
            (None, None) => format!("seed-{seed}"),
        }
    }
}

fn plan(args: &Args) {
    let schedule = Schedule::new(args.seed.unwrap_or(0), args.nodes as usize, args.length());
    let faults = schedule.network.iter().chain(&schedule.processes);
    let faults = faults.map(|event| (event.at, format!("{}, for {}", event.fault, journal::human(event.lasts))));
    let deeds = schedule.deeds.iter().map(|next| (next.at, format!("administrator: {}", next.deed)));
    let mut lines: Vec<(Duration, String)> = faults.chain(deeds).collect();
    lines.sort();
    for (at, line) in lines {
        println!("{:>8.3}  {line}", at.as_secs_f64());
    }
}

fn run(args: &Args) -> Result<bool> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = args.seed.unwrap_or(clock.as_secs());
    fs::create_dir_all(&args.out).with_context(|| format!("cannot create {}", args.out.display()))?;
    let out = args.out.canonicalize()?;
    let dir = out.join(format!("{}-{}", args.name(seed), std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // The main thread runs the faults and starts the processes: it lives longest.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let outcome = runtime.block_on(async {
        let (mut interrupt, mut terminate, mut hangup) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
        tokio::select! {
            outcome = torment(args, seed, &dir) => outcome.map(Some),
            _ = interrupt.recv() => Ok(None),
            _ = terminate.recv() => Ok(None),
            _ = hangup.recv() => Ok(None),
        }
    });
    match outcome {
        Ok(Some(report)) => {
            let good = report.is_good();
            // First to where somebody may be looking: a disk may be full.
            println!("\n{report}\n");
            let stem = out.join(format!("report-{}", args.name(seed)));
            fs::write(stem.with_extension("json"), serde_json::to_string_pretty(&report)?)
                .and_then(|()| fs::write(stem.with_extension("txt"), format!("{report}\n")))
                .with_context(|| format!("cannot write the report of seed {seed} to {}.json", stem.display()))?;
            println!("the report is in {}.json", stem.display());
            tidy(&dir, good && !args.keep)?;
            Ok(good)
        }
        Ok(None) => {
            tidy(&dir, !args.keep)?;
            bail!("interrupted; all processes are gone")
        }
        Err(error) => {
            tidy(&dir, false)?;
            Err(error.context(format!("seed {seed}")))
        }
    }
}

fn tidy(dir: &Path, remove: bool) -> Result<()> {
    if remove {
        return fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()));
    }
    println!("logs and data are kept in {}", dir.display());
    Ok(())
}

/// What the configuration file of every node says besides.
fn more(args: &Args, seed: u64) -> String {
    let log = format!("[log]\nlevel = \"{}\"\n", args.log_level);
    let raft = args.election_timeout.map(|millis| format!("[raft]\nelection_timeout_ms = {millis}\n"));
    let snapshot = args.scenario.is_none().then(|| {
        // So little that whoever was away for a second or a few needs a snapshot.
        let mut dice = Dice::new(seed, 6);
        let (entries, keep) = (dice.between(50, 500), dice.between(10, 100));
        let bytes = dice.between(16 << 10, 256 << 10);
        format!("[snapshot]\nentries = {entries}\nkeep_entries = {keep}\nkeep_bytes = {bytes}\n")
    });
    [log, raft.unwrap_or_default(), snapshot.unwrap_or_default()].concat()
}

async fn torment(args: &Args, seed: u64, dir: &Path) -> Result<Report> {
    let journal = Journal::new(dir)?;
    journal.say(&format!("seed {seed}"));
    let program = match &args.program {
        Some(program) => program.clone(),
        // target/debug/examples/chaos, target/debug/raft-node
        None => std::env::current_exe()?.ancestors().nth(2).context("no folder")?.join("raft-node"),
    };
    let aim = match (args.cycles, args.scenario) {
        (Some(count), _) => Aim::Cycles(count),
        (None, Some(_)) => Aim::Measurement,
        (None, None) => Aim::Schedule(args.length()),
    };
    let options = Options {
        seed,
        nodes: args.nodes,
        // Only the schedule changes the membership.
        spare: matches!(aim, Aim::Schedule(_)),
        aim,
        dir: dir.to_owned(),
        program,
        more: more(args, seed),
        shape: Shape::default(),
    };
    let mut arena = Arena::start(options, journal).await?;
    let outcome = match (args.cycles, args.scenario) {
        (Some(count), _) => scenarios::cycles(&mut arena, count, seed).await,
        (None, Some(scenario)) => scenario.run(&mut arena).await,
        (None, None) => {
            let schedule = Schedule::new(seed, args.nodes as usize, args.length());
            nemesis::run(&mut arena, &schedule).await
        }
    };
    if let Err(error) = outcome {
        // Whatever it was, what clients and nodes have to say is worth hearing.
        arena.journal.say(&format!("broken off: {error:#}"));
        arena.notes.violations.push(format!("broken off: {error:#}"));
    }
    Ok(arena.finish().await)
}
