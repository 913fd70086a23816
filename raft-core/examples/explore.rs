//! Tries every order of events on small clusters of real cores, breadth first, and prints how much there was to see.
//!
//! ```text
//! cargo xtask explore [--states N] [--only NAME] [--terms T] ...
//! ```
#![forbid(unsafe_code)]
// The explorer itself has no threads, no clock and no files. Its user may.
#![expect(clippy::disallowed_methods, clippy::disallowed_types, reason = "not part of the core")]

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use raft_core::sim::explore::{Limits, PROPERTIES, Progress, Report, Settings, Situation, explore, suite};

/// So many states of each exploration are enough to come across what it is for.
const STATES: u64 = 200_000;

const USAGE: &str = "\
Tries every order of events on small clusters of real cores, breadth first: loss, repetition, delay and reordering of messages,
timers at any time, crashes between any write and its completion.

  --states N     stop each exploration at so many distinct states (default 200000)
  --depth D      or at so many steps from the start
  --seconds S    or after so long
  --only TEXT    only explorations whose name contains TEXT
  --list         say which there are

and, instead of what an exploration says itself:

  --nodes N      servers: 1 to 9; those that start with logs keep their number
  --terms T      elections
  --log L        entries in a log
  --commands C   commands proposed, in all
  --reads R      reads asked for, in all
  --crashes C    crashes, in all
  --deaths D     servers that die for good, and
  --resets R     links that are reported as lost without a reason, where groups sleep
  --compactions C  times that a log is compacted, in all
  --rounds R     heartbeat rounds of a leadership
  --appends A    appends to a follower in a leadership
  --start LOGS   terms of the entries on the disks at the start, as in \"1 2/1/1 3\"
  --led B, --prompt-disks B, --single-entries B, --repeats B, --pre-vote B, --check-quorum B, --no-op B   true or false";

struct Args {
    limits: Limits,
    seconds: Option<u64>,
    list: bool,
    /// Something is as the explorations say it only in part: then they need not come across what they are for.
    changed: bool,
    explorations: Vec<Settings>,
}

fn main() -> ExitCode {
    let args = match parse(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(Some(args)) => args,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(problem) => {
            eprintln!("{problem}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if args.list {
        args.explorations.iter().for_each(|settings| println!("{}", bounds(settings)));
        return ExitCode::SUCCESS;
    }
    println!("properties of every state: {}", PROPERTIES.join("; "));
    let begin = Instant::now();
    let mut total = Progress::default();
    for settings in &args.explorations {
        match run(settings, &args) {
            Ok(progress) => {
                total.states += progress.states;
                total.transitions += progress.transitions;
                total.depth = total.depth.max(progress.depth);
            }
            Err(problem) => {
                println!("FAILED: {problem}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!(
        "\n{} explorations: {} distinct states, {} transitions, depth up to {}, {:.0} s, no violation",
        args.explorations.len(),
        total.states,
        total.transitions,
        total.depth,
        begin.elapsed().as_secs_f64(),
    );
    ExitCode::SUCCESS
}

fn parse(words: &[String]) -> Result<Option<Args>, String> {
    let limits = Limits { states: STATES, depth: u32::MAX };
    let mut args = Args { limits, seconds: None, list: false, changed: false, explorations: suite() };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--help" | "-h" => return Ok(None),
            "--list" => args.list = true,
            _ => option(&mut args, word, words.next().ok_or_else(|| format!("{word} wants a value"))?)?,
        }
    }
    if args.explorations.is_empty() {
        return Err("there is no such exploration; --list tells which there are".into());
    }
    Ok(Some(args))
}

fn option(args: &mut Args, word: &str, value: &str) -> Result<(), String> {
    let number = || value.parse::<u64>().map_err(|_| format!("{word} wants a number, not `{value}`"));
    let flag = || value.parse::<bool>().map_err(|_| format!("{word} wants true or false, not `{value}`"));
    args.changed |= !["--states", "--only"].contains(&word);
    let (limits, all) = (&mut args.limits, &mut args.explorations);
    match word {
        "--states" => limits.states = number()?,
        "--depth" => limits.depth = u32::try_from(number()?).unwrap_or(u32::MAX),
        "--seconds" => args.seconds = Some(number()?),
        "--only" => all.retain(|settings| settings.name.contains(value)),
        "--nodes" => {
            let servers = number()?.clamp(1, 9) as usize;
            all.iter_mut().filter(|s| s.start.is_empty()).for_each(|s| s.servers = servers);
        }
        "--terms" => set(all, number()?, |s| &mut s.terms),
        "--log" => set(all, number()?, |s| &mut s.log_length),
        "--commands" => set(all, number()?, |s| &mut s.commands),
        "--reads" => set(all, number()?, |s| &mut s.reads),
        "--crashes" => set(all, number()?, |s| &mut s.crashes),
        "--deaths" => set(all, number()?, |s| &mut s.deaths),
        "--resets" => set(all, number()?, |s| &mut s.resets),
        "--compactions" => set(all, number()?, |s| &mut s.compactions),
        "--rounds" => set(all, number()?, |s| &mut s.rounds),
        "--appends" => set(all, number()?, |s| &mut s.appends),
        "--start" => set(all, logs(value)?, |s| &mut s.start),
        "--single-entries" => set(all, flag()?, |s| &mut s.single_entries),
        "--led" => set(all, flag()?, |s| &mut s.led),
        "--prompt-disks" => set(all, flag()?, |s| &mut s.prompt_disks),
        "--pre-vote" => set(all, flag()?, |s| &mut s.pre_vote),
        "--check-quorum" => set(all, flag()?, |s| &mut s.check_quorum),
        "--no-op" => set(all, flag()?, |s| &mut s.no_op_on_election),
        "--repeats" => set(all, flag()?, |s| &mut s.repeats),
        _ => return Err(format!("`{word}` is not an option")),
    }
    Ok(())
}

fn set<T: Clone>(all: &mut [Settings], value: T, field: impl Fn(&mut Settings) -> &mut T) {
    all.iter_mut().for_each(|settings| *field(settings) = value.clone());
}

/// `1 2/1/1 3`: the terms of the entries of each server.
fn logs(text: &str) -> Result<Vec<Vec<u64>>, String> {
    let term = |word: &str| word.parse::<u64>().map_err(|_| format!("`{word}` in `{text}` is not a term"));
    text.split('/').map(|log| log.split_whitespace().map(term).collect()).collect()
}

/// A description of what is explored.
fn bounds(settings: &Settings) -> String {
    // Names every field, so that a new one has to be thought of here.
    let Settings {
        name,
        servers,
        newcomers,
        change,
        start,
        forgotten,
        led,
        prompt_disks,
        pre_vote,
        check_quorum,
        no_op_on_election,
        quiesces,
        single_entries,
        repeats,
        remembers_applied,
        terms,
        log_length,
        commands,
        reads,
        crashes,
        compactions,
        deaths,
        resets,
        rounds,
        appends,
        wanted,
    } = settings;
    let mut words = vec![format!("{servers} servers")];
    words.extend((*newcomers > 0).then(|| format!("{newcomers} of them learners that know of nobody at first")));
    words.extend(change.as_ref().map(|change| format!("{change:?}")));
    words.extend((!start.is_empty()).then(|| format!("terms of the logs at the start {start:?}")));
    words.extend((!forgotten.is_empty()).then(|| format!("so many entries of which are forgotten {forgotten:?}")));
    let flags = [
        (led, "the first elected"),
        (prompt_disks, "prompt disks"),
        (pre_vote, "pre-vote"),
        (check_quorum, "CheckQuorum"),
        (no_op_on_election, "no-op"),
        (quiesces, "groups sleep"),
        (single_entries, "an entry an append"),
        (remembers_applied, "what was applied survives a crash"),
        (&wanted.is_some(), "until a situation is found"),
    ];
    words.extend(flags.into_iter().filter(|(on, _)| **on).map(|(_, name)| name.to_owned()));
    words.push(if *repeats { "messages repeat" } else { "messages arrive once" }.to_owned());
    let limits = [
        (terms, "terms"),
        (log_length, "entries in a log"),
        (commands, "commands"),
        (reads, "reads"),
        (crashes, "crashes"),
        (compactions, "compactions"),
        (deaths, "deaths"),
        (resets, "resets of links"),
        (rounds, "heartbeat rounds"),
        (appends, "appends"),
    ];
    let limits = limits.map(|(limit, what)| format!("{limit} {what}"));
    format!("{name}: {}; at most {}", words.join(", "), limits.join(", "))
}

/// One exploration, with its report.
fn run(settings: &Settings, args: &Args) -> Result<Progress, String> {
    println!("\n{}", bounds(settings));
    let begin = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let every = Duration::from_millis(if terminal { 200 } else { 15_000 });
    let mut shown = begin;
    let watch = |progress: &Progress| {
        if shown.elapsed() >= every {
            shown = Instant::now();
            show(progress, begin.elapsed(), terminal);
        }
        match args.seconds {
            Some(seconds) if begin.elapsed().as_secs() >= seconds => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    };
    let report = explore(settings, args.limits, watch)?;
    finish(&report, begin.elapsed(), terminal);
    let missing: Vec<&str> = report.situations.missing(settings).map(Situation::words).collect();
    match report.violation {
        None if !missing.is_empty() && !args.changed && args.limits.states >= STATES => {
            Err(format!("the search has missed what it is for: {}", missing.join("; ")))
        }
        None => Ok(report.progress),
        Some(violation) => {
            violation.script.iter().for_each(|line| println!("{line}"));
            Err(format!(
                "{}; found after {} states, {} steps from the start",
                violation.what, report.progress.states, violation.depth
            ))
        }
    }
}

fn show(progress: &Progress, elapsed: Duration, terminal: bool) {
    let (begin, end) = if terminal { ("\r", "") } else { ("", "\n") };
    print!(
        "{begin}  {} states, depth {}, frontier {}, {:.0} states/s {end}",
        progress.states,
        progress.depth,
        progress.frontier,
        progress.states as f64 / elapsed.as_secs_f64(),
    );
    let _ = std::io::stdout().flush();
}

fn finish(report: &Report, elapsed: Duration, terminal: bool) {
    let Progress { states, transitions, depth, frontier } = report.progress;
    let seconds = elapsed.as_secs_f64().max(1e-9);
    println!(
        "{}  {states} states ({}), {transitions} transitions, depth {depth}, frontier {frontier}, {} beyond the bounds, {seconds:.1} s, \
         {:.0} states/s\n  {} states of single servers, {} messages; at most {} entries committed, {} terms led",
        if terminal { "\r" } else { "" },
        if report.complete { "all there are" } else { "stopped" },
        report.cut,
        states as f64 / seconds,
        report.servers,
        report.messages,
        report.most_committed,
        report.leaders,
    );
    let met: Vec<String> = report.situations.met().map(|(what, times)| format!("{} ({times})", what.words())).collect();
    println!("  came across: {}", if met.is_empty() { "nothing".to_owned() } else { met.join("; ") });
}
