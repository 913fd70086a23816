//! A disk that stalls: strace holds up one sync of a node's log.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use raft_core::NodeId;

use super::processes::Nodes;

/// How long strace gets to attach.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);
/// How long it is watched whether it can attach at all.
const TRIAL: Duration = Duration::from_millis(500);
/// Name of the thread that writes the log.
const WRITER: &str = "raft-writer";

/// A strace at work on a node. Dropping it detaches; the node goes on.
pub(crate) struct Stall(Child);

/// Why syncs cannot be held up here, if they cannot: strace may be missing or forbidden.
pub(crate) fn available() -> Result<(), String> {
    let mut child = Command::new("sleep").arg("30").spawn().map_err(|error| format!("no `sleep`: {error}"))?;
    let mut command = Command::new("strace");
    command.args(["-e", "trace=fsync", "-p", &child.id().to_string()]).stdout(Stdio::null()).stderr(Stdio::piped());
    let outcome = match command.spawn() {
        Err(error) => Err(format!("strace cannot be started: {error}")),
        Ok(mut strace) => {
            std::thread::sleep(TRIAL);
            let running = strace.try_wait().is_ok_and(|status| status.is_none());
            // A tracer that dies detaches.
            let _ = strace.kill();
            let output = strace.wait_with_output().map_err(|error| error.to_string());
            output.and_then(|output| {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                if running { Ok(()) } else { Err(format!("strace cannot attach: {said}")) }
            })
        }
    };
    let _ = child.kill();
    let _ = child.wait();
    outcome
}

impl Stall {
    /// The next sync of the node's log takes `delay` longer, the ones after it do not. Returns when that is certain.
    pub(crate) async fn begin(nodes: &Nodes, id: NodeId, delay: Duration) -> Result<Stall> {
        let pid = nodes.pid(id).with_context(|| format!("node {id} does not run"))?;
        let output = nodes.file(id, "strace");
        let injection = format!("inject=fsync,fdatasync:delay_enter={}:when=1", delay.as_micros());
        let mut command = nodes.leashed(Path::new("strace"));
        // Only this thread is stopped at its system calls; the others run at full speed.
        command.args(["-p", &writer(pid)?.to_string(), "-e", "trace=fsync,fdatasync", "-e", &injection]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&output)?);
        let mut stall = Stall(command.spawn().context("cannot start strace")?);
        let begin = Instant::now();
        while !fs::read_to_string(&output)?.contains("attached") {
            if let Some(status) = stall.0.try_wait()? {
                bail!("strace ended ({status}): {}", fs::read_to_string(&output)?.trim());
            }
            if begin.elapsed() > ATTACH_WITHIN {
                bail!("strace does not attach to node {id} within {ATTACH_WITHIN:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(stall)
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        // It may have ended together with the node.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The thread of a node that writes its log.
fn writer(pid: u32) -> Result<u32> {
    for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
        let entry = entry?;
        let found = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let (true, Some(id)) = (found.trim() == WRITER, entry.file_name().to_str()) {
            return Ok(id.parse()?);
        }
    }
    bail!("process {pid} has no thread {WRITER}")
}
