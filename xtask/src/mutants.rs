//! `cargo xtask mutants`: bugs that others shipped, put into a copy of this tree one at a time. Each must be caught.
//!
//! A harness that has never failed proves nothing. Each file of `xtask/mutants` is a patch that breaks the product on purpose, with a
//! header that says which bug it is and what should notice; the product's own code carries no switches for this.

mod detector;
mod patch;
mod scratch;
mod table;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::detector::{Bench, Catch, Detector};
use self::patch::Patch;
use self::scratch::Scratch;
use crate::report::{human, say};
use crate::{setup, workspace};

/// Breaks the product on purpose, in a scratch copy, and looks whether the tests notice.
///
/// Every patch in `xtask/mutants` is a bug that some real implementation had. It is applied, built and put before its detectors (the
/// simulator, the tests) until one fails. Fails when a bug survives, or when one is caught that is said to be invisible.
/// A few seconds for each bug that the simulator sees at once; all of them take about two and a half hours on 2 cores.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these: numbers of the catalogue, or parts of the patches' names
    which: Vec<String>,
    /// Threads of the simulator [default: as many as the machine runs at once]
    #[arg(long)]
    jobs: Option<usize>,
    /// Seeds until the simulator gives up
    #[arg(long, default_value_t = 3000)]
    max_seeds: u64,
    /// Only look whether the patches still apply
    #[arg(long, conflicts_with_all = ["table", "jobs"])]
    check: bool,
    /// Do not first look whether the detectors are quiet without a bug
    #[arg(long)]
    no_baseline: bool,
    /// Write the results into this file, as a table in Markdown; rows of bugs that were not asked for stay
    #[arg(long)]
    table: Option<PathBuf>,
}

/// What came of one bug.
struct Outcome {
    patch: Patch,
    caught: Option<Catch>,
    took: Duration,
}

impl Outcome {
    /// What is wrong with it, if something is.
    fn complaint(&self) -> Option<String> {
        let name = &self.patch.name;
        match (&self.caught, &self.patch.invisible) {
            (None, None) => Some(format!("{name} survives: {}", self.patch.bug)),
            (Some(catch), Some(_)) => {
                Some(format!("{name} is said to be invisible, but {} saw: {}", catch.by, catch.what))
            }
            _ => None,
        }
    }
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let patches = select(patch::all()?, &args.which)?;
    if args.check {
        return check_all(&patches);
    }
    if patches.iter().flat_map(|patch| &patch.detectors).any(Detector::needs_setup) {
        setup::run(false)?;
    }
    let scratch = Scratch::open()?;
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let bench = Bench { scratch: &scratch, jobs, max_seeds: args.max_seeds };
    if !args.no_baseline {
        baseline(&bench, &patches)?;
    }
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for (position, patch) in patches.into_iter().enumerate() {
        let outcome = try_one(&bench, patch)?;
        let verdict = match &outcome.caught {
            Some(catch) => format!("caught by {}: {}", catch.by_and_seeds(), catch.what),
            None if outcome.patch.invisible.is_some() => "not seen, as expected".to_owned(),
            None => "SURVIVED".to_owned(),
        };
        say(&format!("{:3}. {}: {verdict} ({})", position + 1, outcome.patch.name, human(outcome.took)));
        outcomes.push(outcome);
    }
    scratch.refresh()?;
    println!("\n{}", table::plain(&outcomes));
    if let Some(file) = &args.table {
        table::write(file, &outcomes)?;
    }
    let caught = outcomes.iter().filter(|outcome| outcome.caught.is_some()).count();
    println!("{caught} of {} caught, in {}", outcomes.len(), human(started.elapsed()));
    let complaints: Vec<String> = outcomes.iter().filter_map(Outcome::complaint).collect();
    if !complaints.is_empty() {
        bail!("{}", complaints.join("\n"));
    }
    Ok(())
}

/// A step of `ci`: every patch still applies.
pub(crate) fn check() -> Result<()> {
    check_all(&patch::all()?)
}

fn check_all(patches: &[Patch]) -> Result<()> {
    let stale: Vec<String> =
        patches.iter().filter_map(|patch| applies(patch).err()).map(|e| format!("{e:#}")).collect();
    if !stale.is_empty() {
        bail!("{} (xtask/mutants/README.md says how to mend a patch)", stale.join("\n"));
    }
    println!("{} patches apply", patches.len());
    Ok(())
}

fn applies(patch: &Patch) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root()).args(["apply", "--check"]).arg(&patch.path);
    workspace::read(&mut git).map(drop).with_context(|| format!("the mutant {} does not apply any more", patch.name))
}

fn select(all: Vec<Patch>, which: &[String]) -> Result<Vec<Patch>> {
    let wanted = |patch: &Patch, word: &String| match word.parse::<u32>() {
        Ok(number) => patch.number == number,
        Err(_) => patch.name.contains(word.as_str()),
    };
    if let Some(word) = which.iter().find(|word| !all.iter().any(|patch| wanted(patch, word))) {
        bail!("no mutant is called `{word}`; they are in xtask/mutants");
    }
    Ok(all.into_iter().filter(|patch| which.is_empty() || which.iter().any(|word| wanted(patch, word))).collect())
}

/// Without a bug nothing may fail: else the detectors would "catch" everything.
fn baseline(bench: &Bench<'_>, patches: &[Patch]) -> Result<()> {
    let mut detectors: Vec<&Detector> = patches.iter().flat_map(|patch| &patch.detectors).collect();
    detectors.sort_unstable();
    detectors.dedup();
    bench.scratch.refresh()?;
    for detector in detectors {
        let started = Instant::now();
        let quiet = Bench { max_seeds: bench.max_seeds.min(100), ..*bench };
        if let Some(catch) = quiet.run(detector)? {
            bail!("without any bug {} fails: {}", catch.by, catch.what);
        }
        say(&format!("without a bug {detector} is quiet ({})", human(started.elapsed())));
    }
    Ok(())
}

fn try_one(bench: &Bench<'_>, patch: Patch) -> Result<Outcome> {
    let started = Instant::now();
    bench.scratch.refresh()?;
    bench.scratch.apply(&patch)?;
    let mut caught = None;
    for detector in &patch.detectors {
        caught = bench.run(detector).with_context(|| format!("the mutant {}", patch.name))?;
        if caught.is_some() {
            break;
        }
    }
    Ok(Outcome { patch, caught, took: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_patch_is_well_formed_and_numbers_select() {
        let all = patch::all().unwrap();
        assert!(all.len() > 20, "{}", all.len());
        let ones = select(patch::all().unwrap(), &["1".to_owned()]).unwrap();
        assert!(!ones.is_empty() && ones.iter().all(|patch| patch.number == 1));
        assert!(select(all, &["no-such-bug".to_owned()]).is_err());
    }

    #[test]
    fn a_survivor_and_a_wrong_excuse_are_complaints() {
        let outcome = |caught: bool, invisible: bool| Outcome {
            patch: Patch::parse("01-x", "Number: 1\nBug: b\nShipped: s\nDetectors: lab\n\ndiff --git a/x b/x\n")
                .map(|patch| Patch { invisible: invisible.then(|| "a reason".to_owned()), ..patch })
                .unwrap(),
            caught: caught.then(|| Catch { by: "lab".to_owned(), what: "w".to_owned(), seeds: Some(1) }),
            took: Duration::ZERO,
        };
        assert!(outcome(true, false).complaint().is_none());
        assert!(outcome(false, true).complaint().is_none());
        assert!(outcome(false, false).complaint().is_some_and(|text| text.contains("survives")));
        assert!(outcome(true, true).complaint().is_some_and(|text| text.contains("invisible")));
    }
}
