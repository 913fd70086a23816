//! `cargo xtask`: everything one does with this repository besides editing it.
//!
//! Each subcommand says what it does and what it took, and makes the machine ready first (see [`setup`]). This program compiles in
//! seconds and depends on neither RocksDB nor QUIC; it calls cargo and the programs of the workspace.

#![forbid(unsafe_code)]

mod bench;
mod chaos;
mod ci;
mod cluster;
mod explore;
mod fuzz;
mod mutants;
mod prerequisites;
mod report;
mod rocksdb;
mod setup;
mod signals;
mod sim;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Builds, tests, measures and runs the Raft workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Cli {
    Setup(setup::Args),
    Test(test::Args),
    Ci(ci::Args),
    Bench(bench::Args),
    Cluster(cluster::Args),
    Sim(sim::Args),
    Chaos(chaos::Args),
    Mutants(mutants::Args),
    Explore(explore::Args),
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let outcome = match &Cli::parse() {
        Cli::Setup(args) => setup::command(args),
        Cli::Test(args) => test::run(args),
        Cli::Ci(args) => ci::run(args),
        Cli::Bench(args) => bench::run(args),
        Cli::Cluster(args) => cluster::run(args),
        Cli::Sim(args) => sim::run(args),
        Cli::Chaos(args) => chaos::run(args),
        Cli::Mutants(args) => mutants::run(args),
        Cli::Explore(args) => explore::run(args),
        Cli::Fuzz(args) => fuzz::run(args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::say(&format!("\nerror: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
