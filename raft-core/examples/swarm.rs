//! Runs whole clusters under every mix of faults in virtual time, one after another on every core of the machine, and prints what
//! occurred.
//!
//! ```text
//! cargo xtask sim [--seeds N] [--from S] [--seed S [--trace]]
//! ```
#![forbid(unsafe_code)]
// The simulator itself has no threads, no clock and no files. Its user may.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "not part of the core")]

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_core::sim::swarm::sometimes::{Situation, Tally};
use raft_core::sim::swarm::{self, Report};

const USAGE: &str = "\
Runs whole clusters under every mix of faults, in virtual time.

  --seeds N      how many seeds (default 1000)
  --from S       the first of them (default 0)
  --jobs J       on so many threads (default: as many as the machine runs at once)
  --until-failure  stop at the first seed that fails
  --ledger FILE  append a line about this batch to FILE
  --seed S       run only this seed, and say what came of it
  --trace        with --seed: print everything that happens";

struct Args {
    from: u64,
    seeds: u64,
    jobs: usize,
    until_failure: bool,
    ledger: Option<String>,
    one: Option<u64>,
    trace: bool,
}

thread_local! {
    /// What is running, so that a panic can say how to repeat it.
    static RUNNING: Cell<Option<u64>> = const { Cell::new(None) };
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
        if let Some(seed) = RUNNING.get() {
            eprintln!("panicked; to replay:  {}", replay(seed));
        }
    }));
    match args.one {
        Some(seed) => one(seed, args.trace),
        None => batch(&args),
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Option<Args>, String> {
    let jobs = std::thread::available_parallelism().map_or(1, Into::into);
    let mut args = Args { from: 0, seeds: 1000, jobs, until_failure: false, ledger: None, one: None, trace: false };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{word} wants a number, not `{text}`"));
        match word.as_str() {
            "--seeds" => args.seeds = number(value()?)?,
            "--from" => args.from = number(value()?)?,
            "--jobs" => args.jobs = number(value()?)?.clamp(1, 1024) as usize,
            "--ledger" => args.ledger = Some(value()?),
            "--seed" => args.one = Some(number(value()?)?),
            "--trace" => args.trace = true,
            "--until-failure" => args.until_failure = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(None);
            }
            _ => return Err(format!("`{word}` is not an option")),
        }
    }
    if args.trace && args.one.is_none() {
        return Err("--trace shows one run: say which one with --seed".into());
    }
    if args.from.checked_add(args.seeds).is_none_or(|end| end > u64::MAX / 2) {
        return Err("those seeds are too large".into());
    }
    Ok(Some(args))
}

fn one(seed: u64, trace: bool) -> ExitCode {
    RUNNING.set(Some(seed));
    let report = swarm::run(seed, trace.then(|| Box::new(|line: std::fmt::Arguments<'_>| println!("{line}")) as _));
    let mut tally = Tally::default();
    tally.add(&report.counts);
    println!("{tally}");
    println!(
        "seed {seed}: {:.1} s simulated, {} events, {} operations and {} in doubt, {} commands committed, recovered in {:.2} s, \
         fingerprint {:016x}",
        report.simulated.as_secs_f64(),
        report.events,
        report.completed,
        report.in_doubt,
        report.committed,
        report.recovery.unwrap_or_default().as_secs_f64(),
        report.fingerprint,
    );
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// What came of a batch, added up.
#[derive(Default)]
struct Sum {
    seeds: u64,
    simulated: Duration,
    /// And in which seed.
    longest_recovery: (Duration, u64),
    completed: u64,
    in_doubt: u64,
    committed: u64,
    events: u64,
    unknown: u64,
    tally: Tally,
    failures: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, report: Report) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.longest_recovery = self.longest_recovery.max((report.recovery.unwrap_or_default(), report.seed));
        self.completed += report.completed;
        self.in_doubt += report.in_doubt;
        self.committed += report.committed;
        self.events += report.events;
        self.unknown += report.unknown;
        self.tally.add(&report.counts);
        if let Some(failure) = report.failure {
            println!("\rseed {} FAILED: {failure}\n    replay: {}", report.seed, replay(report.seed));
            self.failures.push((report.seed, failure));
        }
    }

    fn hours(&self) -> f64 {
        self.simulated.as_secs_f64() / 3600.0
    }
}

fn batch(args: &Args) -> ExitCode {
    let begin = Instant::now();
    let next = AtomicU64::new(args.from);
    let sum = Mutex::new(Sum::default());
    let shown = Mutex::new(begin);
    // A line that is written over on a terminal, and now and then a new one elsewhere.
    let every = Duration::from_millis(if std::io::stdout().is_terminal() { 200 } else { 15_000 });
    std::thread::scope(|scope| {
        for _ in 0..args.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.seeds {
                        break;
                    }
                    RUNNING.set(Some(seed));
                    let report = swarm::run(seed, None);
                    let mut sum = sum.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if args.until_failure && report.failure.is_some() {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                    sum.add(report);
                    let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if shown.elapsed() >= every {
                        *shown = Instant::now();
                        progress(&sum, args, begin.elapsed());
                    }
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    finish(&sum, args, begin.elapsed())
}

fn progress(sum: &Sum, args: &Args, elapsed: Duration) {
    let (start, end) = if std::io::stdout().is_terminal() { ("\r", "") } else { ("", "\n") };
    let rate = sum.seeds as f64 / elapsed.as_secs_f64();
    print!(
        "{start}{} of {} seeds, {:.1} seeds/s, {:.1} simulated hours, {} failed {end}",
        sum.seeds,
        args.seeds,
        rate,
        sum.hours(),
        sum.failures.len(),
    );
    let _ = std::io::stdout().flush();
}

fn finish(sum: &Sum, args: &Args, elapsed: Duration) -> ExitCode {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    println!("\r{}", sum.tally);
    let missing: Vec<_> = sum.tally.missing().map(Situation::words).collect();
    let line = format!(
        "seeds {}..{}: {:.1} simulated hours in {seconds:.0} s ({:.1} seeds/s, {:.0} times real time), {} events, {} operations, \
         {} in doubt, {} commands, longest recovery {:.1} s (seed {}), {} keys undecided, {} failed{}",
        args.from,
        args.from + args.seeds,
        sum.hours(),
        sum.seeds as f64 / seconds,
        sum.simulated.as_secs_f64() / seconds,
        sum.events,
        sum.completed,
        sum.in_doubt,
        sum.committed,
        sum.longest_recovery.0.as_secs_f64(),
        sum.longest_recovery.1,
        sum.unknown,
        sum.failures.len(),
        if missing.is_empty() { String::new() } else { format!(", never occurred: {}", missing.join("; ")) },
    );
    println!("{line}");
    for (seed, failure) in &sum.failures {
        let first: String = failure.lines().next().unwrap_or_default().chars().take(150).collect();
        println!("seed {seed}: {first}\n    replay: {}", replay(*seed));
    }
    if let Some(file) = &args.ledger {
        let failed: Vec<u64> = sum.failures.iter().map(|(seed, _)| *seed).collect();
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(file);
        if let Err(error) = opened.and_then(|mut file| writeln!(file, "{line} {failed:?}")) {
            eprintln!("cannot write the ledger {file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if sum.failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64) -> String {
    format!("cargo xtask sim --seed {seed} --trace")
}
