//! `cargo xtask chaos`: real processes under faults of every kind.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::report::human;
use crate::{setup, signals, workspace};

/// Torments a cluster of real `raft-node` processes and judges what comes of it.
///
/// All packets between the nodes go through proxies that lose, delay, reorder, double, damage and cut; processes are killed and paused; syncs fail
/// and stall (needs strace); a disk runs full (needs root). What cannot be had here is skipped, and said. Meanwhile leadership is handed over, logs are
/// compacted, members are removed, emptied and added again, and disks are lost. Clients read and write all the while, half of them within a session.
/// At the end everything heals: then the cluster must have its voters and recover, every key's history must be linearizable, every acknowledged
/// write must be on every node, and every step of a counter must have been made once. A run of two minutes or more must also have had at least so
/// and so many of the most important faults and changes. The report lies below target/chaos; after a failure so do logs and data.
///
/// The schedule of faults is a function of the seed. The run is not: processes, disks and packets have a timing of their own.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seed of the faults [default: by the clock; it is printed]
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on, in minutes [default: 2]
    #[arg(long)]
    minutes: Option<f64>,
    /// Number of nodes, 3 to 7 [default: 3]
    #[arg(long)]
    nodes: Option<u64>,
    /// Instead: so many times kill -9 of the leader, of a follower and of all, in turn
    #[arg(long, conflicts_with = "scenario")]
    cycles: Option<u64>,
    /// Instead, a measurement: pause, fsync-error, fsync-stall or full-disk
    #[arg(long)]
    scenario: Option<String>,
    /// Print the schedule of a seed and do nothing
    #[arg(long)]
    plan: bool,
    /// Log level of the nodes [default: info]
    #[arg(long)]
    log_level: Option<String>,
    /// Election timeout of the nodes in milliseconds [default: theirs]; a machine that is busy with other things needs a longer one
    #[arg(long, value_name = "MS")]
    election_timeout: Option<u64>,
    /// Keep logs and data in any case
    #[arg(long)]
    keep: bool,
    /// Build with optimisations; without, the nodes check their own arithmetic and assertions
    #[arg(long)]
    release: bool,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(false)?;
    build(args.release)?;
    drive(&mut command(args))
}

/// The run that belongs to the tests: two minutes, the same faults each time.
pub(crate) fn short() -> Result<()> {
    let begin = Instant::now();
    build(false)?;
    eprintln!("chaos: two minutes of faults on real processes (built in {})", human(begin.elapsed()));
    drive(&mut command(&Args {
        seed: Some(1),
        minutes: Some(2.0),
        nodes: None,
        cycles: None,
        scenario: None,
        plan: false,
        log_level: None,
        // Tests must not fail because the machine is busy with something else.
        election_timeout: Some(1000),
        keep: false,
        release: false,
    }))
}

fn build(release: bool) -> Result<()> {
    let mut command = workspace::cargo();
    // With the whole workspace in view dependencies have the same features as for the tests, and need not be compiled anew.
    command.args(["build", "--workspace", "--bin", "raft-node", "--example", "chaos"]);
    if release {
        command.arg("--release");
    }
    workspace::run(&mut command)
}

/// The one place that knows the flags of the example.
fn command(args: &Args) -> Command {
    let binaries = workspace::target_dir().join(if args.release { "release" } else { "debug" });
    let mut command = Command::new(binaries.join("examples").join("chaos"));
    command.current_dir(workspace::root());
    command.arg("--program").arg(binaries.join("raft-node"));
    command.arg("--out").arg(workspace::target_dir().join("chaos"));
    let numbers = [
        ("--seed", args.seed),
        ("--nodes", args.nodes),
        ("--cycles", args.cycles),
        ("--election-timeout", args.election_timeout),
    ];
    let minutes = [("--minutes", args.minutes.map(|minutes| minutes.to_string()))];
    let words = [("--scenario", args.scenario.clone()), ("--log-level", args.log_level.clone())];
    let numbers = numbers.map(|(flag, value)| (flag, value.map(|value| value.to_string())));
    for (flag, value) in numbers.into_iter().chain(minutes).chain(words) {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    for (flag, set) in [("--plan", args.plan), ("--keep", args.keep)] {
        if set {
            command.arg(flag);
        }
    }
    command
}

fn drive(command: &mut Command) -> Result<()> {
    let shown = workspace::show(command);
    let status = signals::supervise(command)?;
    if !status.success() {
        bail!("`{shown}` failed ({status}); the seed is in its output");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn shown(words: &[&str]) -> String {
        let cli = Cli::try_parse_from([&["chaos"], words].concat()).map_err(|error| error.to_string());
        workspace::show(&command(&cli.expect("valid flags").args))
    }

    #[test]
    fn flags_reach_the_example() {
        let line = shown(&["--seed", "7", "--minutes", "0.5", "--nodes", "5", "--release", "--keep"]);
        assert!(line.contains("release/examples/chaos --program "), "{line}");
        assert!(line.ends_with("/chaos --seed 7 --nodes 5 --minutes 0.5 --keep"), "{line}");
        let line = shown(&["--cycles", "300", "--log-level", "debug"]);
        assert!(line.contains("debug/examples/chaos "), "{line}");
        assert!(line.ends_with("/chaos --cycles 300 --log-level debug"), "{line}");
        assert!(shown(&["--scenario", "pause", "--plan"]).ends_with("/chaos --scenario pause --plan"));
    }
}
