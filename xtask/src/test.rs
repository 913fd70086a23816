//! `cargo xtask test`: every test of the workspace, and what it added up to.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::report::{human, table};
use crate::{chaos, setup, sim, workspace};

/// Runs all tests: unit tests, integration tests with real processes, the lab tests in simulation, examples and doc tests; then, unless only
/// some were asked for, thousands of seeds of `cargo xtask sim` and two minutes of `cargo xtask chaos`.
///
/// Takes about a quarter of an hour once everything is compiled. Benchmarks are not run. `RAFT_TEST_SEEDS` is the number of seeds of each lab test (200
/// unless set).
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Seeds of each lab test; sets `RAFT_TEST_SEEDS`
    #[arg(long)]
    seeds: Option<u64>,
    /// Without the two minutes of faults on real processes
    #[arg(long)]
    no_chaos: bool,
    /// Only this package
    #[arg(long, short)]
    package: Option<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Further arguments for the test programs, such as --nocapture
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    let started = Instant::now();
    setup::run(false)?;

    eprintln!("tests: building (minutes the first time, seconds when little changed)");
    let programs = build(args)?;
    let built = started.elapsed();
    eprintln!("tests: built in {}; running", human(built));

    let mut suites = Vec::new();
    let passed = execute(args, &programs, &mut suites)?;
    let whole = args.filter.is_none() && args.package.is_none() && args.rest.is_empty();
    let further = if passed && whole { further(args) } else { Ok(()) };
    summarize(&suites, built, started.elapsed());
    if !passed {
        bail!("tests failed; see above");
    }
    if args.filter.is_none() && suites.iter().all(|suite| suite.passed == 0) {
        bail!("no test ran: something is wrong with this command");
    }
    further
}

/// What takes longer than any test: the simulator, and real processes under faults.
fn further(args: &Args) -> Result<()> {
    eprintln!("\ntests: simulation");
    sim::short().context("the simulation failed")?;
    if args.no_chaos {
        return Ok(());
    }
    eprintln!("\ntests: chaos");
    chaos::short()
}

/// Without flags that select targets `cargo test` takes libraries, programs, integration tests, examples and doc tests, but no
/// benchmarks.
fn cargo_test(args: &Args, flags: &[&str]) -> Command {
    let mut command = workspace::cargo();
    command.arg("test");
    match &args.package {
        Some(package) => command.args(["--package", package]),
        None => command.arg("--workspace"),
    };
    command.args(flags);
    if let Some(seeds) = args.seeds {
        command.env("RAFT_TEST_SEEDS", seeds.to_string());
    }
    command
}

/// Compiles the test programs, with cargo's own progress, and returns which package and target each one belongs to.
fn build(args: &Args) -> Result<BTreeMap<String, String>> {
    let mut command = cargo_test(args, &["--no-run", "--message-format=json-render-diagnostics"]);
    let shown = workspace::show(&command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("the tests do not compile");
    }
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(program_in).collect())
}

/// From a line of cargo's JSON: the file name of a test program and what it tests.
fn program_in(line: &str) -> Option<(String, String)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let executable = file_name(message.get("executable")?.as_str()?)?;
    // .../raft-core/Cargo.toml: a folder of this workspace has the name of its crate, but for `benches`.
    let manifest = Path::new(message.get("manifest_path")?.as_str()?);
    let package = manifest.parent()?.file_name()?.to_str()?;
    let target = message.get("target")?;
    let (kind, name) = (target.get("kind")?.get(0)?.as_str()?, target.get("name")?.as_str()?);
    let what = match kind {
        "lib" | "proc-macro" => "unit tests".to_owned(),
        "bin" => format!("unit tests of {name}"),
        "test" => format!("tests/{name}"),
        "example" => format!("example {name}"),
        other => format!("{other} {name}"),
    };
    Some((executable, format!("{package}: {what}")))
}

fn file_name(path: &str) -> Option<String> {
    Some(Path::new(path).file_name()?.to_str()?.to_owned())
}

/// One test program, or the doc tests of one crate.
#[derive(Debug, Default, PartialEq)]
struct Suite {
    name: String,
    passed: u64,
    failed: u64,
    ignored: u64,
    time: Duration,
}

/// Runs `cargo test`, shows its output as it comes, and adds the suites to `suites`. Returns whether all passed.
fn execute(args: &Args, programs: &BTreeMap<String, String>, suites: &mut Vec<Suite>) -> Result<bool> {
    // One pipe for both streams keeps their order: the name of a suite is on one, its result on the other.
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut command = cargo_test(args, &["--no-fail-fast"]);
    if args.filter.is_some() || !args.rest.is_empty() {
        command.arg("--").args(&args.filter).args(&args.rest);
    }
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", workspace::show(&command)))?;
    // The command holds the writing end too, and reading would never end.
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    let mut name = String::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        if let Some(started) = suite_name(&text, programs) {
            name = started;
        } else if let Some(suite) = suite_result(&text, &name) {
            suites.push(suite);
        }
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// `Running tests/it/main.rs (target/debug/deps/it-0123456789abcdef)` or `Doc-tests raft_core`.
fn suite_name(line: &str, programs: &BTreeMap<String, String>) -> Option<String> {
    let line = line.trim();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{}: doc tests", name.replace('_', "-")));
    }
    let (source, program) = line.strip_prefix("Running ")?.rsplit_once('(')?;
    let program = file_name(program.strip_suffix(')')?)?;
    Some(programs.get(&program).cloned().unwrap_or_else(|| source.trim().to_owned()))
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s`
fn suite_result(line: &str, name: &str) -> Option<Suite> {
    let line = line.trim().strip_prefix("test result: ")?;
    let mut suite = Suite { name: name.to_owned(), ..Suite::default() };
    for part in line.split(['.', ';'].as_slice()).map(str::trim) {
        let Some((number, what)) = part.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "passed" => suite.passed = number,
            "failed" => suite.failed = number,
            "ignored" => suite.ignored = number,
            _ => {}
        }
    }
    let seconds = line.rsplit_once("finished in ").and_then(|(_, time)| time.trim_end_matches('s').parse().ok());
    suite.time = Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default();
    Some(suite)
}

fn summarize(suites: &[Suite], built: Duration, total: Duration) {
    let row = |suite: &Suite| {
        let numbers = [suite.passed, suite.failed, suite.ignored].map(|number| number.to_string());
        let mut row = vec![suite.name.clone()];
        row.extend(numbers);
        row.push(human(suite.time));
        row
    };
    // Programs without a test (most binaries and examples) only hide the others.
    let rows: Vec<Vec<String>> =
        suites.iter().filter(|suite| suite.passed + suite.failed + suite.ignored > 0).map(row).collect();
    println!("\n{}", table(&["suite", "passed", "failed", "ignored", "time"], &rows, &[1, 2, 3, 4]));
    let sum = |field: fn(&Suite) -> u64| suites.iter().map(field).sum::<u64>();
    println!(
        "{} passed, {} failed, {} ignored; {} in all, {} of it building",
        sum(|suite| suite.passed),
        sum(|suite| suite.failed),
        sum(|suite| suite.ignored),
        human(total),
        human(built),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_understood() {
        let line =
            "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.25s\n";
        let expected =
            Suite { name: "x".to_owned(), passed: 12, failed: 2, ignored: 1, time: Duration::from_millis(250) };
        assert_eq!(suite_result(line, "x"), Some(expected));
        assert_eq!(suite_result("test log::truncates ... ok\n", "x"), None);
    }

    #[test]
    fn suites_are_named_by_package_and_target() {
        let json = r#"{"reason":"compiler-artifact","manifest_path":"/w/raft-core/Cargo.toml",
            "target":{"kind":["test"],"name":"it"},"executable":"/w/target/debug/deps/it-0a1b"}"#
            .replace('\n', "");
        let programs: BTreeMap<String, String> = program_in(&json).into_iter().collect();
        let line = "     Running tests/it/main.rs (target/debug/deps/it-0a1b)\n";
        assert_eq!(suite_name(line, &programs).as_deref(), Some("raft-core: tests/it"));
        let unknown = "     Running unittests src/main.rs (target/debug/deps/xtask-ff)\n";
        assert_eq!(suite_name(unknown, &programs).as_deref(), Some("unittests src/main.rs"));
        assert_eq!(suite_name("   Doc-tests raft_core\n", &programs).as_deref(), Some("raft-core: doc tests"));
        assert_eq!(suite_name("running 3 tests\n", &programs), None);
    }
}
