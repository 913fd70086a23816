//! Trials: something that may happen to a cluster is made to happen, on purpose and several times, while clients go on; and it is measured what they
//! notice of it.
//!
//! Each has a cluster of its own: release processes on this machine, QUIC with mutual TLS, every write fsynced on a majority.

mod amplification;
mod catchup;
mod failover;
mod flame;
mod groups;
mod link;
mod nodes;
mod outcome;
mod overload;
mod payload;
mod phases;
mod processes;
mod reads;
mod restart;
mod saturation;
mod stall;
mod strace;
mod sweep;
mod timeline;
mod transfer;
mod writers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use self::processes::Nodes;
pub(crate) use self::timeline::Timeline;
use crate::cluster::{Leadership, Observer};
use crate::run::Bench;
use crate::scenario::{Load, Repetition, Settings, Traffic};

/// How long a cluster may take to have a leader that all nodes follow, and whose log they have; a machine that is busy needs time.
const SETTLED_WITHIN: Duration = Duration::from_mins(1);
/// Entries that a follower may lack and still count as up to date: under load there are always some.
const LAG: u64 = 5000;
/// Measurements that may be spoilt, each.
const ATTEMPTS: u32 = 3;

/// Which trial.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Failover(failover::Args),
    Flame(flame::Args),
    Catchup(catchup::Args),
    Transfer(transfer::Args),
    Overload(overload::Args),
    Stall(stall::Args),
    Restart(restart::Args),
    Saturation(saturation::Args),
    Reads(reads::Args),
    Payload(payload::Args),
    Nodes(nodes::Args),
    Groups(groups::Args),
    Amplification(amplification::Args),
}

/// Where a trial takes place.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Stage {
    /// The `raft-node` program
    #[arg(long, value_name = "FILE")]
    program: PathBuf,
    /// Folder for everything that the nodes write; must be empty or absent, and is removed in the end
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Folder for the JSON file
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    out: PathBuf,
    /// Keep data and logs of the nodes
    #[arg(long)]
    keep: bool,
    /// What keeps the nodes' logs [default: the nodes']
    #[arg(long, value_parser = ["rocksdb", "journal"])]
    engine: Option<String>,
}

/// Carries a trial out, prints what came of it, and cleans up.
pub(crate) fn run(command: &Command) -> Result<()> {
    let stage = match command {
        Command::Failover(args) => &args.stage,
        Command::Flame(args) => &args.stage,
        Command::Catchup(args) => &args.stage,
        Command::Transfer(args) => &args.stage,
        Command::Overload(args) => &args.stage,
        Command::Stall(args) => &args.stage,
        Command::Restart(args) => &args.stage,
        Command::Saturation(args) => &args.stage,
        Command::Reads(args) => &args.stage,
        Command::Payload(args) => &args.stage,
        Command::Nodes(args) => &args.stage,
        Command::Groups(args) => &args.stage,
        Command::Amplification(args) => &args.stage,
    };
    if stage.engine.is_some() && matches!(command, Command::Groups(_)) {
        bail!("the groups choose for themselves what keeps their logs: without --engine");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let outcome = tokio::task::LocalSet::new().block_on(&runtime, async {
        let trial = async {
            match command {
                Command::Failover(args) => failover::run(args).await,
                Command::Flame(args) => flame::run(args).await,
                Command::Catchup(args) => catchup::run(args).await,
                Command::Transfer(args) => transfer::run(args).await,
                Command::Overload(args) => overload::run(args).await,
                Command::Stall(args) => stall::run(args).await,
                Command::Restart(args) => restart::run(args).await,
                Command::Saturation(args) => saturation::run(args).await,
                Command::Reads(args) => reads::run(args).await,
                Command::Payload(args) => payload::run(args).await,
                Command::Nodes(args) => nodes::run(args).await,
                Command::Groups(args) => groups::run(args).await,
                Command::Amplification(args) => amplification::run(args).await,
            }
        };
        // The nodes end with the trial that was given up.
        tokio::select! {
            outcome = trial => outcome,
            signal = interrupted() => Err(signal.err().unwrap_or_else(|| anyhow::anyhow!("interrupted"))),
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    if stage.keep {
        eprintln!("data and logs are in {}", stage.dir.display());
    } else if outcome.is_err() && stage.dir.exists() {
        eprintln!("logs are kept in {}", stage.dir.display());
    } else if stage.dir.exists() {
        std::fs::remove_dir_all(&stage.dir).with_context(|| format!("cannot remove {}", stage.dir.display()))?;
    }
    let mut outcome = outcome?;
    if let Some(engine) = &stage.engine {
        outcome.setting("engine", engine.clone());
        outcome.variant(engine);
    }
    let path = outcome.save(&stage.out)?;
    println!("{}\nevery value is in {}", outcome.render(), crate::shorten(&path).display());
    if let Some(picture) = outcome.picture(&path)? {
        println!("a picture of it is {}", crate::shorten(&picture).display());
    }
    for picture in outcome.save_pictures(&path)? {
        println!("a picture of it is {}", crate::shorten(&picture).display());
    }
    outcome.verdict()
}

/// One measurement of the trial `name`; one that is spoilt is made again, on a machine that does other things, too.
async fn repeat(
    name: &str,
    bench: &Bench,
    (traffic, load): (Traffic, Load),
    settings: &Settings,
    number: u64,
) -> Result<Repetition> {
    for _ in 0..ATTEMPTS {
        match bench.repetition_of(traffic, load, settings, number).await {
            Ok(found) => return Ok(found),
            Err(error) => eprintln!("{name}: {}: rejected, made again: {error:#}", load.name()),
        }
    }
    bench.repetition_of(traffic, load, settings, number).await.with_context(|| load.name())
}

/// Waits for SIGINT or SIGTERM.
#[cfg(unix)]
async fn interrupted() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Waits for Ctrl-C.
#[cfg(not(unix))]
async fn interrupted() -> Result<()> {
    Ok(tokio::signal::ctrl_c().await?)
}

/// A cluster that has just begun, and somebody who asks its nodes.
struct Arena {
    nodes: Nodes,
    observer: Observer,
}

impl Arena {
    /// Starts `count` nodes in `dir`, and waits for a leader.
    async fn open(stage: &Stage, dir: &Path, count: u64, settings: &str) -> Result<(Arena, Leadership)> {
        let engine = stage.engine.as_ref().map(|engine| format!("\n[storage]\nengine = \"{engine}\"\n"));
        let nodes = Nodes::start(dir, &stage.program, count, &(settings.to_owned() + &engine.unwrap_or_default()))?;
        let observer = Observer::new(&nodes.description(), nodes.tls().clone())?;
        let mut arena = Arena { nodes, observer };
        let leadership = arena.settled().await?;
        Ok((arena, leadership))
    }

    /// Waits until all nodes run, follow one leader, and have (nearly) all of its log.
    async fn settled(&mut self) -> Result<Leadership> {
        self.settled_within(LAG).await
    }

    /// The same, until no node lacks more than `lag` entries.
    async fn settled_within(&mut self, lag: u64) -> Result<Leadership> {
        let begin = tokio::time::Instant::now();
        loop {
            self.nodes.check()?;
            let patience = SETTLED_WITHIN.saturating_sub(begin.elapsed());
            let leadership = self.observer.leadership_within(patience).await?;
            let status = self.observer.status().await.unwrap_or_default();
            let committed = status.get(&leadership.leader).map_or(u64::MAX, |leader| leader.commit_index);
            if status.values().all(|node| node.applied_index.saturating_add(lag) >= committed) {
                return Ok(leadership);
            }
            if begin.elapsed() > SETTLED_WITHIN {
                bail!("the nodes do not come to one state within {SETTLED_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends all connections, and the nodes.
    async fn close(self) {
        self.observer.close().await;
    }
}
