//! Runs a program, and understands from what it prints whether something failed.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::workspace;

/// A program under way, whose lines come as they are printed. It does not outlive this.
struct Watched {
    child: Child,
    lines: Receiver<String>,
    deadline: Instant,
}

impl Drop for Watched {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Watched {
    fn start(command: &mut Command, patience: Duration) -> Result<Watched> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", workspace::show(command)))?;
        let (sender, lines) = channel();
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            forward(out, sender.clone());
            forward(err, sender);
        }
        Ok(Watched { child, lines, deadline: Instant::now() + patience })
    }

    /// The next line; `None` at the end.
    fn next(&self) -> Result<Option<String>> {
        match self.lines.recv_timeout(self.deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => Err(Hangs.into()),
        }
    }
}

/// The program did not end in time.
#[derive(Debug)]
pub(super) struct Hangs;

impl std::fmt::Display for Hangs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("it does not come to an end")
    }
}

impl std::error::Error for Hangs {}

fn forward(stream: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            // A line of progress is written over by the next one.
            let text = text.trim_end().rsplit('\r').next().unwrap_or_default().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// Runs the swarm. The lowest seed that failed, and how.
pub(super) fn simulator(program: &mut Command, patience: Duration) -> Result<Option<(u64, String)>> {
    let mut program = Watched::start(program, patience)?;
    let mut failures: Vec<(u64, String)> = Vec::new();
    let mut panic = String::new();
    while let Some(line) = program.next()? {
        if let Some((seed, what)) = line.strip_prefix("seed ").and_then(|rest| rest.split_once(" FAILED: ")) {
            failures.push((seed.parse().context("the number of a seed")?, what.to_owned()));
        } else if line.contains("panicked at ") {
            panic = program.next()?.unwrap_or_default();
        } else if let Some(seed) = replayed(&line) {
            // The other threads would go on through all seeds.
            failures.push((seed, format!("panic: {panic}")));
            break;
        }
    }
    if let Some(first) = failures.into_iter().min_by_key(|(seed, _)| *seed) {
        return Ok(Some(first));
    }
    ended_well(&mut program)?;
    Ok(None)
}

/// `panicked; to replay:  cargo xtask sim --seed 7 --trace`
fn replayed(line: &str) -> Option<u64> {
    line.strip_prefix("panicked; to replay:")?.split_once("--seed ")?.1.split(' ').next()?.parse().ok()
}

/// A batch that misses a rare situation ends with 1, and that is no finding here. Anything else means that it did not run.
fn ended_well(program: &mut Watched) -> Result<()> {
    match program.child.wait()?.code() {
        Some(0 | 1) => Ok(()),
        code => bail!("the simulator ended with {code:?}, without a word"),
    }
}

/// Runs the lab tests: the first test that failed, with its seed, and how.
pub(super) fn lab(program: &mut Command, patience: Duration) -> Result<Option<(String, u64, String)>> {
    let mut program = Watched::start(program, patience)?;
    let (mut test, mut panic) = (String::new(), String::new());
    while let Some(line) = program.next()? {
        if let Some((seed, what)) = line.strip_prefix("    seed ").and_then(|rest| rest.split_once(": ")) {
            return Ok(Some((test, seed.parse().context("the number of a seed")?, what.to_owned())));
        } else if line.contains("panicked at ") {
            panic = program.next()?.unwrap_or_default();
        } else if let Some(seed) = replayed(&line) {
            let name = line.split_once("--test ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
            return Ok(Some((name.to_owned(), seed, format!("panic: {panic}"))));
        } else if let Some(name) = line.split(' ').next().filter(|word| word.starts_with("lab_")) {
            name.clone_into(&mut test);
        }
    }
    ended_well(&mut program)?;
    Ok(None)
}

/// What came of a program of tests.
pub(super) struct Tests {
    pub(super) ran: u64,
    /// The first test that failed, and how.
    pub(super) failure: Option<(String, String)>,
}

/// Runs a program made by `cargo test`.
pub(super) fn tests(program: &mut Command, patience: Duration) -> Result<Tests> {
    let mut program = Watched::start(program, patience)?;
    let mut seen = Output::default();
    loop {
        match program.next() {
            Ok(Some(line)) => seen.line(&line),
            Ok(None) => break,
            Err(error) if error.is::<Hangs>() => {
                let failure = Some((seen.unfinished(), error.to_string()));
                return Ok(Tests { ran: seen.ran, failure });
            }
            Err(error) => return Err(error),
        }
    }
    let status = program.child.wait()?;
    let failure = match seen.failed.first() {
        Some(test) => Some((test.clone(), seen.message.clone())),
        None if status.success() => None,
        // Somebody else has ended it: that says nothing about the bug.
        None if killed_from_outside(status) => bail!("the program of the tests was ended from outside: {status}"),
        None => Some((seen.unfinished(), format!("the program of the tests ended with {status}"))),
    };
    Ok(Tests { ran: seen.ran, failure })
}

/// Whether it was ended by one of the signals that people and systems send; a panic or an abort is none of them.
fn killed_from_outside(status: ExitStatus) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::process::ExitStatusExt;
        const INTERRUPT_KILL_TERMINATE: [i32; 3] = [2, 9, 15];
        status.signal().is_some_and(|signal| INTERRUPT_KILL_TERMINATE.contains(&signal))
    }
    #[cfg(not(unix))]
    {
        let _ = status;
        false
    }
}

/// What a program of tests has printed so far.
#[derive(Default)]
struct Output {
    ran: u64,
    failed: Vec<String>,
    /// The section of the first failed test has begun; then the line after "panicked at" is what it said.
    in_section: bool,
    panicked: bool,
    message: String,
}

impl Output {
    fn line(&mut self, line: &str) {
        if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            match result {
                "ok" => self.ran += 1,
                "FAILED" => {
                    self.ran += 1;
                    self.failed.push(name.to_owned());
                }
                _ => {}
            }
        } else if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            // Sections come in another order than results.
            self.in_section = self.message.is_empty();
            self.panicked = false;
            if self.in_section {
                self.failed.retain(|failed| failed != name);
                self.failed.insert(0, name.to_owned());
            }
        } else if self.in_section && self.message.is_empty() {
            if self.panicked && !line.trim().is_empty() {
                line.trim().clone_into(&mut self.message);
            } else if line.contains("panicked at ") || line.starts_with("Error: ") {
                self.panicked = true;
                if let Some(error) = line.strip_prefix("Error: ") {
                    error.clone_into(&mut self.message);
                }
            }
        }
    }

    /// For a program that ended in the middle of things.
    fn unfinished(&self) -> String {
        self.failed.first().cloned().unwrap_or_else(|| format!("after {} tests that passed", self.ran))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn the_lowest_failing_seed_counts() {
        let script = r"printf 'line\r\rseed 12 FAILED: later\n    more\nseed 7 FAILED: what: it was\n'; exit 1";
        assert_eq!(simulator(&mut shell(script), LONG).unwrap(), Some((7, "what: it was".to_owned())));
        assert_eq!(simulator(&mut shell("echo 10 of 20 seeds; exit 1"), LONG).unwrap(), None);
        assert!(simulator(&mut shell("exit 2"), LONG).is_err(), "it did not understand its arguments");
        assert!(
            simulator(&mut shell("exec sleep 100"), Duration::from_millis(50)).is_err_and(|error| error.is::<Hangs>())
        );
    }

    #[test]
    fn a_panic_ends_the_watch() {
        let script = "echo \"thread 'x' panicked at a.rs:1:2:\" >&2; echo index out of range >&2; \
                      echo 'panicked; to replay:  cargo xtask sim --seed 9 --trace' >&2; exec sleep 100";
        assert_eq!(simulator(&mut shell(script), LONG).unwrap(), Some((9, "panic: index out of range".to_owned())));
    }

    #[test]
    fn a_failed_lab_test_is_named() {
        let script = "echo 'lab_2b_backup   20  1  0.1'; echo '    seed 3: it never agrees'; exit 1";
        let found = ("lab_2b_backup".to_owned(), 3, "it never agrees".to_owned());
        assert_eq!(lab(&mut shell(script), LONG).unwrap(), Some(found));
    }

    #[test]
    fn the_first_failed_test_and_its_message_are_found() {
        let script = "printf 'test a::b ... ok\ntest z ... FAILED\ntest c ... FAILED\n\nfailures:\n\n---- c stdout ----\n\n\
                      thread %s panicked at x.rs:1:2:\nassertion failed: no\n\n---- z stdout ----\n\n\
                      thread panicked at y.rs:1:2:\nother\n' \"'c'\"; exit 101";
        let seen = tests(&mut shell(script), LONG).unwrap();
        assert_eq!((seen.ran, seen.failure), (3, Some(("c".to_owned(), "assertion failed: no".to_owned()))));
        let seen = tests(&mut shell("echo 'test a ... ok'"), LONG).unwrap();
        assert_eq!((seen.ran, seen.failure), (1, None));
    }

    #[test]
    fn tests_that_die_or_hang_have_failed() {
        let died = tests(&mut shell("echo 'test a ... ok'; exit 134"), LONG).unwrap().failure.unwrap();
        assert!(died.1.contains("134"), "{died:?}");
        let hung = tests(&mut shell("exec sleep 100"), Duration::from_millis(50)).unwrap().failure.unwrap();
        assert!(hung.1.contains("end"), "{hung:?}");
    }
}
