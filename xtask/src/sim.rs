//! `cargo xtask sim`: the protocol in simulation.

mod ledger;

use std::process::Command;

use anyhow::{Result, bail};

use self::ledger::Tally;
use crate::workspace;

/// Runs clusters in virtual time: the course's lab tests, then whole clusters under every mix of faults.
///
/// Each seed of the second kind is a minute and more of a cluster's life with another mix of faults, sizes and settings; five thousand of
/// them take two or three minutes on two cores, once built (a minute the first time; only Rust is needed, neither RocksDB nor QUIC). What
/// occurred is counted and printed. A failing seed prints the command that replays it.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// How many seeds [default: 1000; for lab tests 200 each]
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<u64>,
    /// The first seed
    #[arg(long, conflicts_with_all = ["seed", "test"])]
    from: Option<u64>,
    /// Run this seed only
    #[arg(long)]
    seed: Option<u64>,
    /// Run this lab test only
    #[arg(long)]
    test: Option<String>,
    /// Print a time line: who did what, when
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Draw what happens into this file, as SVG: nodes as lanes, messages as arrows, terms as colours
    #[arg(long, requires = "seed", conflicts_with = "test")]
    svg: Option<String>,
    /// What to draw, in milliseconds, as FROM..TO [default: the last 150 ms before a failure, or the first election]
    #[arg(long, requires = "svg")]
    window: Option<String>,
    /// Append a line about the batch to this file, and print what its lines add up to
    #[arg(long, conflicts_with_all = ["seed", "test"])]
    ledger: Option<String>,
    /// Only print what the lines of the ledger add up to: seeds, simulated hours, faults, failures
    #[arg(long, requires = "ledger", conflicts_with_all = ["seeds", "from"])]
    tally: bool,
    /// Further arguments for the simulator
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Seeds of each lab test that run before the swarm.
const LAB_SEEDS: u64 = 20;

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.trace && args.seed.is_none() {
        bail!("--trace shows one run: say which one with --seed S");
    }
    let mut outcome = Ok(());
    if !args.tally {
        outcome = commands(args).iter_mut().try_for_each(workspace::run);
    }
    if let Some(file) = &args.ledger {
        // Cargo starts the simulator in the root of the workspace. A batch in which a seed failed is in there, too.
        match Tally::of(&workspace::root().join(file)) {
            Ok(tally) => println!("{file}: {tally}"),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Seeds of a short run: a minute and more of a cluster's life each, all together two or three minutes on two cores.
const SHORT_SEEDS: u64 = 5000;

/// A short run for `test` and `ci`.
pub(crate) fn short() -> Result<()> {
    let args = Args { seeds: Some(SHORT_SEEDS), ..Args::default() };
    run(&args)
}

fn commands(args: &Args) -> Vec<Command> {
    if args.test.is_some() {
        return vec![simulator("lab", args)];
    }
    let mut commands = Vec::new();
    if args.seed.is_none() {
        let mut labs = example("lab");
        labs.arg("--seeds").arg(LAB_SEEDS.to_string());
        commands.push(labs);
    }
    commands.push(simulator("swarm", args));
    commands
}

fn example(name: &str) -> Command {
    let mut command = workspace::cargo();
    command.args(["run", "--profile", "sim", "-p", "raft-core", "--features", "sim", "--example", name, "--"]);
    command
}

/// One of the two simulators, with everything that was asked for.
fn simulator(name: &str, args: &Args) -> Command {
    let mut command = example(name);
    for (flag, value) in [("--seeds", args.seeds), ("--from", args.from), ("--seed", args.seed)] {
        if let Some(value) = value {
            command.arg(flag).arg(value.to_string());
        }
    }
    let texts = [("--test", &args.test), ("--ledger", &args.ledger), ("--svg", &args.svg), ("--window", &args.window)];
    for (flag, value) in texts {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    if args.trace {
        command.arg("--trace");
    }
    command.args(&args.rest);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &Args) -> Vec<String> {
        commands(args).iter().map(workspace::show).collect()
    }

    #[test]
    fn a_replay_of_a_lab_test_names_seed_and_test() {
        let args = Args { seed: Some(7), test: Some("backup_2b".to_owned()), trace: true, ..Args::default() };
        let shown = shown(&args);
        assert!(
            shown.len() == 1 && shown[0].ends_with("--example lab -- --seed 7 --test backup_2b --trace"),
            "{shown:?}"
        );
    }

    #[test]
    fn a_replay_of_a_seed_runs_the_swarm_alone() {
        let shown = shown(&Args { seed: Some(7), trace: true, ..Args::default() });
        assert!(shown.len() == 1 && shown[0].ends_with("--example swarm -- --seed 7 --trace"), "{shown:?}");
    }

    #[test]
    fn a_batch_runs_the_lab_tests_first() {
        let shown = shown(&Args { seeds: Some(9), from: Some(100), ..Args::default() });
        assert!(shown[0].ends_with("--example lab -- --seeds 20"), "{shown:?}");
        assert!(shown[1].ends_with("--example swarm -- --seeds 9 --from 100"), "{shown:?}");
    }
}
