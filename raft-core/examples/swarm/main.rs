//! Runs whole clusters under every mix of faults in virtual time, one after another on every core of the machine, and prints what
//! occurred.
//!
//! ```text
//! cargo xtask sim [--seeds N] [--from S] [--seed S [--trace] [--svg FILE]]
//! ```
#![forbid(unsafe_code)]
// The simulator itself has no threads, no clock and no files. Its user may.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "not part of the core")]

mod timeline;

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use raft_core::sim::swarm::sometimes::{Situation, Tally};
use raft_core::sim::swarm::watch::{Lane, Story, Watch};
use raft_core::sim::swarm::{self, Report};

use crate::timeline::Timeline;

/// Runs whole clusters under every mix of faults, in virtual time.
#[derive(Parser)]
#[command(name = "cargo xtask sim")]
struct Args {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..u64::MAX / 4))]
    from: u64,
    /// On so many threads [default: as many as the machine runs at once]
    #[arg(long)]
    jobs: Option<usize>,
    /// Stop at the first seed that fails
    #[arg(long)]
    until_failure: bool,
    /// Append a line about this batch to this file
    #[arg(long)]
    ledger: Option<PathBuf>,
    /// Run only this seed, and say what came of it
    #[arg(long, conflicts_with_all = ["seeds", "from", "ledger"])]
    seed: Option<u64>,
    /// Print everything that happens
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Draw what happens as a picture into this file (SVG): nodes as lanes, messages as arrows, terms as colours
    #[arg(long, requires = "seed")]
    svg: Option<PathBuf>,
    /// What to draw, in milliseconds, as FROM..TO [default: the last 150 ms before a failure, or the first leader's election]
    #[arg(long, requires = "svg", value_parser = window)]
    window: Option<Range<u64>>,
}

fn window(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("`{text}`: {error}"));
    let window = number(from)?..number(to)?;
    if window.is_empty() { Err("it ends before it begins".into()) } else { Ok(window) }
}

thread_local! {
    /// What is running, so that a panic can say how to repeat it.
    static RUNNING: Cell<Option<u64>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let args = Args::parse();
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default_hook(info);
        if let Some(seed) = RUNNING.get() {
            eprintln!("panicked; to replay:  {}", replay(seed));
        }
    }));
    match args.seed {
        Some(seed) => one(seed, &args),
        None => batch(&args),
    }
}

fn one(seed: u64, args: &Args) -> ExitCode {
    RUNNING.set(Some(seed));
    let mut story = Story(|line: std::fmt::Arguments<'_>| println!("{line}"));
    let report = swarm::run(seed, args.trace.then_some(&mut story as &mut dyn Watch));
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
    if let Some(file) = &args.svg
        && let Err(error) = draw(seed, &report, args.window.clone(), file)
    {
        eprintln!("cannot write {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            println!("FAILED: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the seed once more, which is the same run, and draws a part of it.
fn draw(seed: u64, report: &Report, window: Option<Range<u64>>, file: &Path) -> std::io::Result<()> {
    let end = u64::try_from(report.simulated.as_millis()).unwrap_or(u64::MAX);
    let window = window.unwrap_or_else(|| {
        let from =
            if report.failure.is_some() { end.saturating_sub(150) } else { first_election(seed).saturating_sub(50) };
        from..from + 151
    });
    let mut timeline = Timeline::new(window.start, window.end);
    let _ = swarm::run(seed, Some(&mut timeline));
    svg::save(file, &timeline.draw())?;
    println!("drew {} to {} ms into {}", window.start, window.end, file.display());
    Ok(())
}

/// When the first leader appears, in milliseconds.
fn first_election(seed: u64) -> u64 {
    struct First(Option<u64>);
    impl Watch for First {
        fn line(&mut self, _: raft_core::Instant, _: std::fmt::Arguments<'_>) {}
        fn server(&mut self, at: raft_core::Instant, _: usize, now: Lane) {
            if let Lane::Up { role: raft_core::Role::Leader, .. } = now {
                self.0.get_or_insert(at.0 / 1_000_000);
            }
        }
    }
    let mut first = First(None);
    let _ = swarm::run(seed, Some(&mut first));
    first.0.unwrap_or(0)
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
        let jobs = args.jobs.or_else(|| std::thread::available_parallelism().ok().map(Into::into));
        for _ in 0..jobs.unwrap_or(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.seeds {
                        break;
                    }
                    RUNNING.set(Some(seed));
                    let report = survive(seed);
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

/// Runs a seed; one that panics has failed, and the others go on.
fn survive(seed: u64) -> Report {
    std::panic::catch_unwind(|| swarm::run(seed, None)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Report { seed, failure: Some(format!("panicked: {}", text.unwrap_or("?"))), ..Report::default() }
    })
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
        "seeds {}..{}: {} of them in {:.1} simulated hours, {seconds:.0} s ({:.1} seeds/s, {:.0} times real time), {} events, {} operations, \
         {} in doubt, {} commands, {} faults, longest recovery {:.1} s (seed {}), {} keys undecided, {} failed{}",
        args.from,
        args.from + args.seeds,
        sum.seeds,
        sum.hours(),
        sum.seeds as f64 / seconds,
        sum.simulated.as_secs_f64() / seconds,
        sum.events,
        sum.completed,
        sum.in_doubt,
        sum.committed,
        sum.tally.faults(),
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
            eprintln!("cannot write the ledger {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    // A question that stays open now and then is the price of a budget; many are a check that does not check.
    let open = sum.unknown > 1 + sum.seeds / 1000;
    if open {
        println!("too many histories are undecided");
    }
    if sum.failures.is_empty() && missing.is_empty() && !open { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn replay(seed: u64) -> String {
    format!("cargo xtask sim --seed {seed} --trace")
}
