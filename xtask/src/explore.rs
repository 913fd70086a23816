//! `cargo xtask explore`: every order of events, up to a bound.

use anyhow::Result;

use crate::workspace;

/// Tries every order of events on small clusters of the real core, breadth first.
///
/// Loss, repetition, delay and reordering of messages, timers at any time, and crashes at every point between a write and its completion; every state
/// is held against Raft's promises. What was seen is counted and printed; a violation is printed as the shortest way there. Ten million
/// states of one exploration take about a minute and a half and a gigabyte. `cargo xtask explore -- --help` tells about the bounds.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Stop each exploration at so many distinct states [default: 200000]
    #[arg(long)]
    states: Option<u64>,
    /// Only explorations whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Number of servers, where it is not given by their logs
    #[arg(long)]
    nodes: Option<u64>,
    /// Number of elections
    #[arg(long)]
    terms: Option<u64>,
    /// Further arguments for the explorer
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    workspace::run(&mut command(args))
}

/// A short run for `ci`: the states of each exploration that are the default.
pub(crate) fn short() -> Result<()> {
    run(&Args { states: None, only: None, nodes: None, terms: None, rest: Vec::new() })
}

/// Not the release profile: that one aborts at a panic, which is to be reported with the way there, and has no debug assertions. The core is
/// optimised in the development profile too.
fn command(args: &Args) -> std::process::Command {
    let mut command = workspace::cargo();
    command.args(["run", "-p", "raft-core", "--features", "sim", "--example", "explore", "--"]);
    for (flag, value) in [("--states", args.states), ("--nodes", args.nodes), ("--terms", args.terms)] {
        if let Some(value) = value {
            command.arg(flag).arg(value.to_string());
        }
    }
    if let Some(only) = &args.only {
        command.arg("--only").arg(only);
    }
    command.args(&args.rest);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_reaches_the_explorer() {
        let rest = vec!["--crashes".to_owned(), "0".to_owned()];
        let args = Args { states: Some(9), only: Some("Figure 8".to_owned()), nodes: None, terms: Some(3), rest };
        let shown = workspace::show(&command(&args));
        assert!(shown.contains("--example explore -- --states 9 --terms 3 --only"), "{shown}");
        assert!(shown.ends_with("--crashes 0"), "{shown}");
    }
}
