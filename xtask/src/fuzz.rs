//! `cargo xtask fuzz`: libFuzzer on everything that reads bytes from outside, and on the protocol itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, bail};

use crate::report::{human, say, table};
use crate::{setup, workspace};

/// Searches for inputs that break a promise, with libFuzzer. Without a target it lists them.
///
/// Needs a nightly compiler and cargo-fuzz, and says how to get what is missing. What a target checks is in `src/fuzzing` of its crate;
/// ordinary tests run the same functions on the inputs in `fuzz/corpus`. What libFuzzer finds out goes to `target/fuzz` and is used again
/// the next time.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which target, or `all`
    target: Option<String>,
    /// Executions of each target
    #[arg(long, default_value_t = 1_000_000)]
    runs: u64,
    /// Stop a target after so many seconds, if it has not finished before
    #[arg(long)]
    seconds: Option<u64>,
    /// Longest input, in bytes
    #[arg(long, default_value_t = 400)]
    max_len: u32,
    /// Run this input only: replays a failure
    #[arg(long, conflicts_with_all = ["runs", "seconds", "keep"], requires = "target")]
    replay: Option<PathBuf>,
    /// Afterwards, add inputs that reach code which those in `fuzz/corpus` do not, to these
    #[arg(long, requires = "target")]
    keep: bool,
    /// Further arguments for libFuzzer
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Inputs that are kept are no longer than this, in bytes.
const LONGEST_KEPT: u32 = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    package: String,
    name: String,
}

impl Target {
    fn folder(&self) -> PathBuf {
        workspace::root().join(&self.package).join("fuzz")
    }

    /// The inputs that belong to the repository.
    fn corpus(&self) -> PathBuf {
        self.folder().join("corpus").join(&self.name)
    }

    /// A folder for what is found here.
    fn scratch(&self, kind: &str) -> PathBuf {
        scratch().join(kind).join(&self.name)
    }
}

fn scratch() -> PathBuf {
    workspace::target_dir().join("fuzz")
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let all = targets()?;
    let Some(wanted) = args.target.as_deref() else { return list(&all) };
    let chosen: Vec<Target> = all.iter().filter(|target| wanted == "all" || target.name == wanted).cloned().collect();
    if chosen.is_empty() {
        let names: Vec<&str> = all.iter().map(|target| target.name.as_str()).collect();
        bail!("no target `{wanted}`; there are {}, and `all`", names.join(", "));
    }
    check_tools()?;
    if chosen.iter().any(|target| target.package != "raft-core") {
        setup::run(false)?;
    }
    let mut rows = Vec::new();
    for target in &chosen {
        let started = Instant::now();
        say(&format!("\n== {} ({})", target.name, target.package));
        prepare(target)?;
        fuzz(target, args)?;
        if args.keep {
            workspace::run(&mut keep(target))?;
        }
        rows.push(vec![target.name.clone(), files(&target.corpus()).to_string(), human(started.elapsed())]);
    }
    if args.replay.is_none() {
        println!("\n{}\nno findings", table(&["target", "inputs kept", "time"], &rows, &[1, 2]));
    }
    Ok(())
}

fn list(targets: &[Target]) -> Result<()> {
    let row = |target: &Target| vec![target.name.clone(), target.package.clone(), files(&target.corpus()).to_string()];
    let rows: Vec<Vec<String>> = targets.iter().map(row).collect();
    println!("{}", table(&["target", "crate", "inputs kept"], &rows, &[2]));
    check_tools()?;
    println!("everything needed is there: cargo xtask fuzz TARGET");
    Ok(())
}

/// Every program in a folder `fuzz` of a crate.
fn targets() -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for package in sorted(&workspace::root())? {
        let programs = package.join("fuzz").join("fuzz_targets");
        if !programs.is_dir() {
            continue;
        }
        let package = package.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for program in sorted(&programs)? {
            let name = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            found.push(Target { package: package.clone(), name });
        }
    }
    Ok(found)
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn files(folder: &Path) -> usize {
    sorted(folder).map_or(0, |paths| paths.len())
}

/// Says what is missing, and the line that brings it.
fn check_tools() -> Result<()> {
    let mut missing = Vec::new();
    let works = |arguments: &[&str]| workspace::read(rustup().args(arguments)).is_ok();
    if !workspace::on_path("rustup") {
        bail!("fuzzing needs rustup, to call a nightly compiler: see the web page of rustup");
    }
    if !works(&["rustc", "--version"]) {
        missing.push("a nightly compiler:  rustup toolchain install nightly --profile minimal");
    }
    if !workspace::on_path("cargo-fuzz") && !works(&["cargo", "fuzz", "--version"]) {
        missing.push("cargo-fuzz:          cargo install cargo-fuzz --locked");
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("fuzzing needs more than the tests do. Missing:\n\n  {}\n", missing.join("\n  "))
}

/// `rustup run nightly`, free of what `cargo run` told this program about the other toolchain.
fn rustup() -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(workspace::root()).args(["run", "nightly"]);
    for name in ["CARGO", "RUSTUP_TOOLCHAIN", "RUSTC", "RUSTDOC", "CARGO_TARGET_DIR"] {
        command.env_remove(name);
    }
    command
}

/// The programs use the versions of libraries that the workspace uses.
fn prepare(target: &Target) -> Result<()> {
    let (lock, theirs) = (target.folder().join("Cargo.lock"), workspace::root().join("Cargo.lock"));
    if changed(&lock).is_none_or(|copied| changed(&theirs).is_some_and(|changed| changed > copied)) {
        fs::copy(&theirs, &lock).context("cannot copy Cargo.lock")?;
    }
    for kind in ["corpus", "artifacts"] {
        let folder = target.scratch(kind);
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

/// When a file was written last, if it is there.
fn changed(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|metadata| metadata.modified()).ok()
}

/// Targets in which bytes only choose what happens next. There are no numbers to be guessed, so looking at comparisons only takes half of the time.
const CHOOSING: [&str; 2] = ["cluster", "hostile"];

/// `cargo fuzz run`. Our code has no `unsafe`, so there is nothing to find for a sanitizer, and without one it is twice as fast.
fn cargo_fuzz(target: &Target) -> Command {
    let mut command = rustup();
    command.args(["cargo", "fuzz", "run", "--sanitizer", "none", "--fuzz-dir"]).arg(target.folder());
    command.args(CHOOSING.contains(&target.name.as_str()).then_some("--no-trace-compares"));
    command.arg("--target-dir").arg(scratch()).arg(&target.name);
    command
}

fn fuzz(target: &Target, args: &Args) -> Result<()> {
    if let Some(input) = &args.replay {
        // The path is meant from where the user stands.
        let input = fs::canonicalize(input).with_context(|| format!("cannot read {}", input.display()))?;
        return workspace::run(cargo_fuzz(target).arg(input));
    }
    let begun = SystemTime::now();
    workspace::run(&mut search(target, args)).with_context(|| match finding(&target.scratch("artifacts"), begun) {
        Some(input) => {
            let (name, input) = (&target.name, workspace::shorten(&input));
            let corpus = workspace::shorten(&target.corpus());
            format!(
                "{name} has a finding: {input}\nReplay it with: cargo xtask fuzz {name} --replay {input}\n\
                 Once it is fixed, move it to {corpus}: the tests run it from then on"
            )
        }
        None => format!("{} was not built, or was interrupted: there is no finding", target.name),
    })
}

/// The input that was written last since `begun`, if there is one.
fn finding(artifacts: &Path, begun: SystemTime) -> Option<PathBuf> {
    let inputs = fs::read_dir(artifacts).ok()?.flatten().map(|entry| entry.path());
    let written = inputs.filter_map(|path| changed(&path).map(|at| (at, path))).filter(|(at, _)| *at >= begun);
    written.max().map(|(_, path)| path)
}

fn search(target: &Target, args: &Args) -> Command {
    let mut command = cargo_fuzz(target);
    // What is new goes to the first folder; the others are only read.
    command.arg(target.scratch("corpus")).arg(target.corpus()).arg("--");
    command.arg(format!("-artifact_prefix={}/", target.scratch("artifacts").display()));
    command.args([format!("-runs={}", args.runs), format!("-max_len={}", args.max_len)]);
    command.args(["-print_final_stats=1", "-timeout=20"]);
    command.args(args.seconds.map(|seconds| format!("-max_total_time={seconds}")));
    command.args(&args.rest);
    command
}

/// Few inputs that reach the code that all of them reach; how often they pass through it does not matter here.
fn keep(target: &Target) -> Command {
    let mut command = cargo_fuzz(target);
    command.arg(target.corpus()).arg(target.scratch("corpus"));
    command.args(["--", "-set_cover_merge=1", "-use_counters=0"]).arg(format!("-max_len={LONGEST_KEPT}"));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_inputs_and_is_found() {
        let targets = targets().expect("the folders can be listed");
        assert!(targets.iter().any(|target| target.package == "raft-core" && target.name == "cluster"), "{targets:?}");
        for target in targets {
            assert!(files(&target.corpus()) >= 5, "{target:?} has hardly any inputs in its corpus");
            let manifest = fs::read_to_string(target.folder().join("Cargo.toml")).expect("a manifest");
            assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{target:?} is not in its manifest");
        }
    }

    #[test]
    fn a_finding_is_an_input_that_was_written_since() {
        let dir = std::env::temp_dir().join(format!("raft-xtask-finding-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let before = SystemTime::now();
        fs::write(dir.join("crash-1"), b"x").expect("a file");
        let late = SystemTime::now() + std::time::Duration::from_mins(1);
        let found = [finding(&dir, before - std::time::Duration::from_secs(1)), finding(&dir, late)];
        let expected = dir.join("crash-1");
        fs::remove_dir_all(&dir).expect("it was there");
        assert_eq!(found, [Some(expected), None]);
        assert_eq!(finding(&dir, before), None, "no folder");
    }

    #[test]
    fn what_is_found_does_not_go_into_the_repository_by_itself() {
        let target = Target { package: "raft-core".to_owned(), name: "cluster".to_owned() };
        let args = Args {
            target: None,
            runs: 7,
            seconds: Some(5),
            max_len: 9,
            replay: None,
            keep: false,
            rest: vec!["-jobs=2".to_owned()],
        };
        let folders = |command: &Command| -> Vec<PathBuf> {
            let words = command.get_args().skip_while(|word| *word != "cluster").skip(1).take(2);
            words.map(PathBuf::from).collect()
        };
        // libFuzzer writes to the first one.
        assert_eq!(folders(&search(&target, &args)), [target.scratch("corpus"), target.corpus()]);
        assert_eq!(folders(&keep(&target)), [target.corpus(), target.scratch("corpus")]);
        let shown = workspace::show(&search(&target, &args));
        assert!(shown.contains("run nightly cargo fuzz run --sanitizer none"), "{shown}");
        assert!(
            shown.ends_with("-runs=7 -max_len=9 -print_final_stats=1 -timeout=20 -max_total_time=5 -jobs=2"),
            "{shown}"
        );
    }
}
