//! Runs the tests of MIT's labs 2A to 2D, 3A and 3B in virtual time, over many seeds, and prints what they took beside the course's own figures.
//!
//! ```text
//! cargo xtask sim [--seeds N] [--test NAME] [--seed S] [--trace]
//! ```
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::process::ExitCode;

use raft_core::sim::lab::{self, Figures, LabTest, TESTS, Variant};

const USAGE: &str = "\
Runs the tests of MIT's Raft labs 2A to 2D, 3A and 3B on the core, in virtual time.

  --seeds N     run every test with the seeds 0 to N-1 (default 200)
  --seed S      run only this seed
  --test NAME   run only this test; give it more than once for several
  --trace       print everything that happens: for one test and one seed
  --list        print the names of the tests";

struct Args {
    seeds: std::ops::Range<u64>,
    tests: Vec<&'static LabTest>,
    trace: bool,
}

thread_local! {
    /// What is running, so that a panic can say how to repeat it.
    static RUNNING: Cell<Option<(&'static str, u64)>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(Some(args)) => args,
        Ok(None) => return ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        if let Some((test, seed)) = RUNNING.get() {
            eprintln!("panicked; to replay:  {}", replay(test, seed));
        }
    }));
    if args.trace {
        return trace(&args);
    }
    println!(
        "{:26} {:>6} {:>6}   {:>7} {:>7} {:>9} {:>7}   {:>7} {:>7} {:>9} {:>7}",
        "", "", "", "mean", "", "", "", "handout", "", "", ""
    );
    println!(
        "{:26} {:>6} {:>6}   {:>7} {:>7} {:>9} {:>7}   {:>7} {:>7} {:>9} {:>7}",
        "test", "seeds", "failed", "s", "RPCs", "kB", "entries", "s", "RPCs", "kB", "entries"
    );
    let failed = args.tests.iter().map(|test| run_seeds(test, &args)).sum::<u64>();
    if failed == 0 {
        println!("all passed");
        ExitCode::SUCCESS
    } else {
        println!("{failed} runs failed");
        ExitCode::FAILURE
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let mut args = Args { seeds: 0..200, tests: Vec::new(), trace: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{word} wants a number, not `{text}`"));
        match word.as_str() {
            "--seeds" => args.seeds = 0..number(value()?)?,
            "--seed" => {
                let seed = number(value()?)?;
                args.seeds = seed..seed.checked_add(1).ok_or("that seed is too large")?;
            }
            "--test" => {
                let name = value()?;
                args.tests.push(lab::find(&name).ok_or_else(|| format!("no test is called `{name}`; see --list"))?);
            }
            "--trace" => args.trace = true,
            "--list" => {
                TESTS.iter().for_each(|test| println!("{:26} {}", test.name, test.original));
                return Ok(None);
            }
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(None);
            }
            _ => return Err(format!("`{word}` is not an option")),
        }
    }
    if args.trace && (args.tests.len() != 1 || args.seeds.end - args.seeds.start != 1) {
        return Err("--trace wants exactly one --test and one --seed".into());
    }
    if args.tests.is_empty() {
        args.tests = TESTS.iter().collect();
    }
    Ok(Some(args))
}

/// Runs one test with all seeds, and prints a line. Returns how many failed.
fn run_seeds(test: &'static LabTest, args: &Args) -> u64 {
    let mut failures = Vec::new();
    let mut sum = Figures::default();
    for seed in args.seeds.clone() {
        RUNNING.set(Some((test.name, seed)));
        let report = lab::run(test, seed, None);
        sum.seconds += report.figures.seconds;
        sum.rpcs += report.figures.rpcs;
        sum.bytes += report.figures.bytes;
        sum.entries += report.figures.entries;
        failures.extend(report.failure.map(|failure| (seed, failure)));
    }
    RUNNING.set(None);
    let runs = (args.seeds.end - args.seeds.start).max(1);
    let handout = match test.handout {
        Some(Figures { seconds, rpcs, bytes, entries }) => {
            format!("{seconds:7.1} {rpcs:7} {:9.1} {entries:7}", bytes as f64 / 1e3)
        }
        None => format!("{:>7} {:>7} {:>9} {:>7}", "-", "-", "-", "-"),
    };
    println!(
        "{:26} {:6} {:6}   {:7.1} {:7} {:9.1} {:7}   {handout}",
        test.name,
        runs,
        failures.len(),
        sum.seconds / runs as f64,
        sum.rpcs / runs,
        sum.bytes as f64 / 1e3 / runs as f64,
        sum.entries / runs,
    );
    for (seed, failure) in &failures {
        println!("    seed {seed}: {failure}\n    {:?}\n    replay: {}", Variant::of(*seed), replay(test.name, *seed));
    }
    failures.len() as u64
}

fn trace(args: &Args) -> ExitCode {
    let seed = args.seeds.start;
    let test = args.tests[0];
    RUNNING.set(Some((test.name, seed)));
    println!("         ms  `n1 <- n2`: a request from n2 reaches n1; `n1 <= n2`: a reply; `->`: a call that will fail");
    let report = lab::run(test, seed, Some(Box::new(|line| println!("{line}"))));
    match report.failure {
        None => {
            println!("passed: {:?}", report.figures);
            ExitCode::SUCCESS
        }
        Some(failure) => {
            println!("failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn replay(test: &str, seed: u64) -> String {
    format!("cargo xtask sim --test {test} --seed {seed} --trace")
}
