//! The program `perf`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::trials::processes::Nodes;

/// Bytes of a stack that are kept for unwinding; nearly all are smaller.
const STACK: u32 = 16 << 10;
/// How long perf may take to end after its time.
const PATIENCE: Duration = Duration::from_secs(20);

/// How it is to look.
pub(super) struct Settings {
    /// Looks a second.
    pub(super) frequency: u32,
    /// For how long.
    pub(super) time: Duration,
}

/// Fails, with advice, when perf is missing or may not look here.
pub(super) fn available() -> Result<()> {
    let mut command = Command::new("perf");
    command.args(["record", "-q", "-o", "/dev/null", "--", "true"]).stdin(Stdio::null()).stdout(Stdio::null());
    let output = match command.stderr(Stdio::piped()).output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(
                "there is no perf: Debian's package linux-perf brings it, Ubuntu's linux-tools-generic, Fedora's and Arch's perf"
            )
        }
        Err(error) => return Err(error).context("perf cannot be started"),
    };
    ensure!(
        output.status.success(),
        "perf may not look at programs here (root may, or everybody after sysctl kernel.perf_event_paranoid=1): {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// A perf at work, and the file that it fills.
pub(super) struct Recording {
    process: Child,
    file: PathBuf,
}

impl Recording {
    /// Looks at all threads of a process from now on. It ends by itself.
    pub(super) fn begin(nodes: &Nodes, pid: u32, file: PathBuf, settings: &Settings) -> Result<Recording> {
        let mut command = nodes.leashed(Path::new("perf"));
        command.args(["record", "-q", "--call-graph", &format!("dwarf,{STACK}")]);
        command.args(["-F", &settings.frequency.to_string(), "-p", &pid.to_string(), "-o"]).arg(&file);
        command.args(["--", "sleep", &settings.time.as_secs_f64().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = command.spawn().context("perf cannot be started")?;
        Ok(Recording { process, file })
    }

    /// What it has seen, in perf's words.
    pub(super) async fn finish(mut self) -> Result<String> {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.process.try_wait()? {
                break status;
            }
            ensure!(begin.elapsed() < PATIENCE, "perf does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.success(), "perf failed ({status})");
        let mut command = Command::new("perf");
        // To look up what was inlined would take minutes.
        command.args(["script", "--no-inline", "-F", "comm,tid,period,event,ip,sym,dso", "-i"]).arg(&self.file);
        let output = command.stdin(Stdio::null()).output().context("perf cannot be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "perf cannot read what it has written: {}", said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_file(&self.file);
    }
}
