//! `cargo xtask sim`: the protocol in simulation.

use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace;

/// Runs the lab tests of the protocol in simulation, in virtual time.
///
/// Hundreds of seeds of every test take seconds once it is built (a minute the first time; only Rust is needed, neither RocksDB nor QUIC). A
/// failing seed prints the command that replays it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds for each test [default: the simulator's]
    #[arg(long, conflicts_with = "seed")]
    seeds: Option<u64>,
    /// Run this seed only
    #[arg(long)]
    seed: Option<u64>,
    /// Run this test only
    #[arg(long)]
    test: Option<String>,
    /// Print a time line: who did what, when
    #[arg(long)]
    trace: bool,
    /// Further arguments for the simulator
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.trace && (args.seed.is_none() || args.test.is_none()) {
        bail!("--trace shows one run: say which one with --seed S and --test NAME");
    }
    workspace::run(&mut command(args))
}

/// A short run for `ci`.
pub(crate) fn short() -> Result<()> {
    workspace::run(&mut command(&Args { seeds: Some(20), seed: None, test: None, trace: false, rest: Vec::new() }))
}

fn command(args: &Args) -> Command {
    let mut command = workspace::cargo();
    command.args(["run", "--release", "-p", "raft-core", "--features", "sim", "--example", "lab", "--"]);
    for (flag, value) in [("--seeds", args.seeds), ("--seed", args.seed)] {
        if let Some(value) = value {
            command.arg(flag).arg(value.to_string());
        }
    }
    if let Some(test) = &args.test {
        command.arg("--test").arg(test);
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

    #[test]
    fn a_replay_names_seed_and_test() {
        let args =
            Args { seeds: None, seed: Some(7), test: Some("backup_2b".to_owned()), trace: true, rest: Vec::new() };
        assert!(workspace::show(&command(&args)).ends_with("-- --seed 7 --test backup_2b --trace"));
    }
}
