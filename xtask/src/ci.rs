//! `cargo xtask ci`: what has to hold before a change goes in.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::report::{human, table};
use crate::{explore, mutants, setup, test, workspace};

/// Checks everything: format, lints, documentation, licences, the tests with the simulation, and a short exploration.
///
/// Stops at the first failure and prints what each step took. About twenty minutes on 2 cores once everything is compiled.
#[derive(clap::Args)]
pub(crate) struct Args {}

enum Outcome {
    Passed,
    Skipped(&'static str),
}

type Step = (&'static str, fn() -> Result<Outcome>);

const STEPS: &[Step] = &[
    ("setup", || passed(setup::run(false))),
    ("format", || cargo(&["fmt", "--all", "--check"])),
    ("lints", || cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])),
    ("documentation", documentation),
    ("licences and bans", deny),
    ("mutants apply", || passed(mutants::check())),
    ("tests", || passed(test::run(&test::Args::default()))),
    ("exploration", || passed(explore::short())),
];

/// Entry point of the subcommand.
pub(crate) fn run(_: &Args) -> Result<()> {
    let started = Instant::now();
    let mut rows = Vec::new();
    let mut failure = None;
    for (name, step) in STEPS {
        if failure.is_some() {
            rows.push(row(name, "not run", None));
            continue;
        }
        eprintln!("\n== {name}");
        let begun = Instant::now();
        let outcome = step();
        let took = begun.elapsed();
        match outcome {
            Ok(Outcome::Passed) => rows.push(row(name, "passed", Some(took))),
            Ok(Outcome::Skipped(why)) => rows.push(row(name, why, None)),
            Err(error) => {
                rows.push(row(name, "FAILED", Some(took)));
                failure = Some(error.context(format!("the step {name:?} failed")));
            }
        }
    }
    println!("\n{}", table(&["step", "outcome", "time"], &rows, &[2]));
    println!("{} in all", human(started.elapsed()));
    failure.map_or(Ok(()), Err)
}

fn row(name: &str, outcome: &str, took: Option<Duration>) -> Vec<String> {
    vec![name.to_owned(), outcome.to_owned(), took.map_or(String::new(), human)]
}

fn passed(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::Passed)
}

fn cargo(arguments: &[&str]) -> Result<Outcome> {
    passed(workspace::run(workspace::cargo().args(arguments)))
}

fn documentation() -> Result<Outcome> {
    // The simulator and the fuzz targets are behind features.
    let arguments = ["doc", "--workspace", "--all-features", "--no-deps", "--document-private-items"];
    passed(workspace::run(workspace::cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings")))
}

fn deny() -> Result<Outcome> {
    if !workspace::on_path("cargo-deny") {
        eprintln!("cargo-deny is not installed (`cargo install cargo-deny --locked`): skipped");
        return Ok(Outcome::Skipped("skipped: no cargo-deny"));
    }
    cargo(&["deny", "check", "licenses", "bans", "sources"]).context("see deny.toml")
}
