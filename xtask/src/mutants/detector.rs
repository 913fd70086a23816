//! What may notice a bug: the simulator and the tests.

use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::scratch::Scratch;
use super::table::shorten;

mod watch;

/// A program of tests that takes longer than this hangs.
const PATIENCE: Duration = Duration::from_mins(10);
/// The simulator ends after its seeds; but a mutant may turn in circles.
const LONG_PATIENCE: Duration = Duration::from_mins(30);
/// Seeds of each lab test.
const LAB_SEEDS: u64 = 20;
/// Most mutants do not survive so many seeds of the swarm: they are run with a core that is not optimised, since that compiles in a tenth of the
/// time. The others run five times as fast.
const QUICK_SEEDS: u64 = 30;
/// The profile of the workspace optimises the core.
const QUICKLY: [&str; 2] = ["--config", "profile.dev.package.raft-core.opt-level=0"];

/// Something that may notice a bug.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Detector {
    /// Whole clusters under every mix of faults. Built without debug assertions, as in a release: its judges look from outside.
    Swarm,
    /// The tests of the course, in simulation; likewise.
    Lab,
    /// The tests of a crate, or those of them whose names contain a word.
    Tests { package: &'static str, filter: String },
}

/// The crates whose tests are detectors, and the tests that are not run there because they are detectors of their own.
const PACKAGES: &[(&str, &str, &[&str])] = &[
    ("core-tests", "raft-core", &["lab::", "swarm::"]),
    ("storage-tests", "raft-storage", &[]),
    ("net-tests", "raft-net", &[]),
    ("node-tests", "raft-node", &[]),
];

impl Detector {
    /// Whether more than Rust is needed to build it.
    pub(super) fn needs_setup(&self) -> bool {
        matches!(self, Detector::Tests { package, .. } if *package != "raft-core")
    }
}

impl FromStr for Detector {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (word, filter) = text.split_once(": ").unwrap_or((text, ""));
        match word {
            "swarm" if filter.is_empty() => return Ok(Detector::Swarm),
            "lab" if filter.is_empty() => return Ok(Detector::Lab),
            _ => {}
        }
        match PACKAGES.iter().find(|(name, ..)| *name == word) {
            Some((_, package, _)) => Ok(Detector::Tests { package, filter: filter.trim().to_owned() }),
            None => bail!("`{text}` is no detector"),
        }
    }
}

impl fmt::Display for Detector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Detector::Swarm => f.write_str("swarm"),
            Detector::Lab => f.write_str("lab"),
            Detector::Tests { package, filter } => {
                let name = PACKAGES.iter().find(|(_, known, _)| known == package).map_or(*package, |(name, ..)| name);
                f.write_str(name)?;
                if filter.is_empty() { Ok(()) } else { write!(f, ": {filter}") }
            }
        }
    }
}

/// That a bug was noticed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Catch {
    /// The detector, and the test in it.
    pub(super) by: String,
    /// The first line of what it said.
    pub(super) what: String,
    /// How many seeds that took, where there are seeds.
    pub(super) seeds: Option<u64>,
}

impl Catch {
    pub(super) fn by_and_seeds(&self) -> String {
        match self.seeds {
            Some(1) => format!("{}, at the first seed", self.by),
            Some(seeds) => format!("{}, after {seeds} seeds", self.by),
            None => self.by.clone(),
        }
    }
}

/// Where detectors run.
#[derive(Clone, Copy)]
pub(super) struct Bench<'a> {
    pub(super) scratch: &'a Scratch,
    pub(super) jobs: usize,
    pub(super) max_seeds: u64,
}

impl Bench<'_> {
    /// Builds a detector in the copy as it is now, and runs it. `None` when it notices nothing.
    pub(super) fn run(&self, detector: &Detector) -> Result<Option<Catch>> {
        let seen = match detector {
            Detector::Swarm => self.swarm(),
            Detector::Lab => self.lab(),
            Detector::Tests { package, filter } => self.tests(detector, package, filter),
        };
        match seen {
            // Without a bug it ends long before.
            Err(error) if error.is::<watch::Hangs>() => {
                Ok(Some(Catch { by: detector.to_string(), what: error.to_string(), seeds: None }))
            }
            seen => seen,
        }
    }

    fn swarm(&self) -> Result<Option<Catch>> {
        let quick = QUICK_SEEDS.min(self.max_seeds);
        let mut seen = self.swarm_of(false, 0, quick)?;
        if seen.is_none() && quick < self.max_seeds {
            seen = self.swarm_of(true, quick, self.max_seeds - quick)?;
        }
        Ok(seen.map(|(seed, what)| Catch { by: "swarm".into(), what: shorten(&what), seeds: Some(seed + 1) }))
    }

    fn swarm_of(&self, optimised: bool, from: u64, seeds: u64) -> Result<Option<(u64, String)>> {
        let mut program = self.example("swarm", optimised)?;
        for (flag, value) in [("--from", from), ("--seeds", seeds), ("--jobs", self.jobs as u64)] {
            program.arg(flag).arg(value.to_string());
        }
        watch::simulator(program.arg("--until-failure"), LONG_PATIENCE)
    }

    fn lab(&self) -> Result<Option<Catch>> {
        let mut program = self.example("lab", true)?;
        program.args(["--seeds", &LAB_SEEDS.min(self.max_seeds).to_string()]);
        let seen = watch::lab(&mut program, LONG_PATIENCE)?;
        Ok(seen.map(|(test, seed, what)| Catch {
            by: format!("lab: {test}"),
            what: shorten(&what),
            seeds: Some(seed + 1),
        }))
    }

    fn example(&self, name: &str, optimised: bool) -> Result<Command> {
        let mut cargo = self.scratch.cargo();
        if !optimised {
            cargo.args(QUICKLY);
        }
        cargo.args(["build", "-p", "raft-core", "--features", "sim", "--example", name]);
        cargo.env("CARGO_PROFILE_DEV_DEBUG_ASSERTIONS", "false").env("CARGO_PROFILE_DEV_OVERFLOW_CHECKS", "false");
        let built = build(cargo)?;
        let program = built.first().context("cargo built no program")?;
        Ok(Command::new(program))
    }

    fn tests(&self, detector: &Detector, package: &str, filter: &str) -> Result<Option<Catch>> {
        let mut cargo = self.scratch.cargo();
        cargo.args(QUICKLY).args(["test", "--no-run", "-p", package, "--lib", "--tests"]);
        let mut ran = 0;
        for program in build(cargo)? {
            let mut tests = Command::new(program);
            tests.current_dir(self.scratch.tree().join(package));
            if !filter.is_empty() {
                tests.arg(filter);
            }
            let skipped = PACKAGES.iter().find(|(_, known, _)| *known == package).map_or(&[][..], |(.., skip)| skip);
            for name in skipped {
                tests.args(["--skip", name]);
            }
            let seen = watch::tests(&mut tests, PATIENCE)?;
            ran += seen.ran;
            if let Some((test, what)) = seen.failure {
                let name = detector.to_string();
                let name = name.split(':').next().unwrap_or_default();
                return Ok(Some(Catch { by: format!("{name}: {test}"), what: shorten(&what), seeds: None }));
            }
        }
        if ran == 0 {
            bail!("{detector}: no such test");
        }
        Ok(None)
    }
}

/// Builds, and returns the programs that came of it.
fn build(mut cargo: Command) -> Result<Vec<PathBuf>> {
    cargo.args(["--message-format=json-render-diagnostics", "--quiet"]);
    let output = cargo.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("it does not compile:\n{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let programs = String::from_utf8_lossy(&output.stdout).lines().filter_map(program_in).collect();
    Ok(programs)
}

/// From a line of cargo's JSON: a program that can be run.
fn program_in(line: &str) -> Option<PathBuf> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    // The program of a package is built for its integration tests, without being one.
    let is_test = message.get("profile")?.get("test")?.as_bool()?;
    let is_example = message.get("target")?.get("kind")?.get(0)?.as_str()? == "example";
    let program = message.get("executable")?.as_str()?;
    (is_test || is_example).then(|| PathBuf::from(program))
}
