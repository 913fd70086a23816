//! Disks that fail: syncs that return errors or take their time (strace), and a disk without space (a small tmpfs).
//!
//! Neither is to be had everywhere: strace may be missing or forbidden, and only root may mount. Then [`Tracer::available`] and
//! [`SmallDisk::mount`] say why, and these faults are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use raft_core::NodeId;

use crate::cluster::Cluster;
use crate::schedule::Syncs;

/// How long strace gets to attach.
const ATTACH_WITHIN: Duration = Duration::from_secs(10);
/// Name of the thread that writes the log.
const WRITER: &str = "raft-writer";
/// Size of the small disk when it is not full, in bytes: tmpfs takes only what is used.
const ROOMY: u64 = 4 << 30;
/// Marks a copy of this program that runs in a mount namespace of its own.
const NAMESPACE: &str = "RAFT_CHAOS_NAMESPACE";

/// What strace does to each sync.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Injection {
    /// It fails with EIO, without having been done.
    Error,
    /// It takes so much longer.
    Delay(Duration),
    /// The first one takes so much longer, the others do not.
    DelayOnce(Duration),
}

/// A strace at work on a node. Dropping it detaches; the node goes on.
pub(crate) struct Tracer {
    strace: Child,
    /// What it says.
    output: PathBuf,
}

impl Tracer {
    /// Why syncs cannot be disturbed here, if they cannot.
    pub(crate) fn available() -> Result<(), String> {
        let mut child = Command::new("sleep").arg("30").spawn().map_err(|error| format!("no `sleep`: {error}"))?;
        let pid = child.id();
        let mut command = Command::new("strace");
        command.args(["-e", "trace=fsync", "-p", &pid.to_string()]).stdout(Stdio::null()).stderr(Stdio::piped());
        let outcome = match command.spawn() {
            Err(error) => Err(format!("strace cannot be started: {error}")),
            Ok(mut strace) => {
                std::thread::sleep(Duration::from_millis(500));
                let running = strace.try_wait().is_ok_and(|status| status.is_none());
                // SIGTERM to strace would do as well; a tracer that dies detaches.
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

    /// Attaches to a running node; returns when every sync that begins is hit.
    pub(crate) fn attach(cluster: &Cluster, id: NodeId, syncs: Syncs, injection: Injection) -> Result<Tracer> {
        let pid = cluster.pid(id).with_context(|| format!("node {id} does not run"))?;
        let what = match injection {
            Injection::Error => "error=EIO".to_owned(),
            Injection::Delay(delay) => format!("delay_enter={}", delay.as_micros()),
            Injection::DelayOnce(delay) => format!("delay_enter={}:when=1", delay.as_micros()),
        };
        let output = cluster.file(id, "strace");
        let (log, mut command) = (fs::File::create(&output)?, cluster.leashed(Path::new("strace")));
        match syncs {
            Syncs::All => command.args(["-f", "-p", &pid.to_string()]),
            // Only this thread is stopped at each of its system calls; the others run at full speed.
            Syncs::Writer => command.args(["-p", &writer(pid)?.to_string()]),
        };
        command
            .args(["-e", "trace=fsync,fdatasync", "-e", &format!("inject=fsync,fdatasync:{what}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut tracer = Tracer { strace: command.spawn().context("cannot start strace")?, output: output.clone() };
        let begin = Instant::now();
        while !fs::read_to_string(&output)?.contains("attached") {
            if let Some(status) = tracer.strace.try_wait()? {
                bail!("strace ended ({status}): {}", fs::read_to_string(&output)?.trim());
            }
            if begin.elapsed() > ATTACH_WITHIN {
                bail!("strace does not attach to node {id} within {ATTACH_WITHIN:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(tracer)
    }

    /// Whether a sync has been hit.
    pub(crate) fn injected(&self) -> Result<bool> {
        Ok(fs::read_to_string(&self.output)?.contains("(INJECTED)"))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        // It may have ended together with the node.
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The thread of a node that writes its log; one that was started just now may not have it yet.
fn writer(pid: u32) -> Result<u32> {
    let begin = Instant::now();
    while begin.elapsed() < ATTACH_WITHIN {
        for entry in fs::read_dir(format!("/proc/{pid}/task"))? {
            let entry = entry?;
            let found = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if let (true, Some(id)) = (found.trim() == WRITER, entry.file_name().to_str()) {
                return Ok(id.parse()?);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("process {pid} has no thread {WRITER}")
}

/// A file system that can be filled to the last byte. Dropping it unmounts.
pub(crate) struct SmallDisk {
    dir: PathBuf,
}

impl SmallDisk {
    /// Mounts one at `dir`. The error says why that is not possible here.
    pub(crate) fn mount(dir: &Path) -> Result<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            bail!("only root may mount");
        }
        fs::create_dir_all(dir)?;
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={ROOMY}"), "raft-chaos"]).arg(dir))?;
        Ok(SmallDisk { dir: dir.to_owned() })
    }

    /// From now on no page more fits. Returns how many bytes are in use.
    pub(crate) fn fill(&self) -> Result<u64> {
        // A page more may have come into use between question and answer.
        for _ in 0..100 {
            let usage = rustix::fs::statvfs(&self.dir)?;
            let used = (usage.f_blocks - usage.f_bfree) * usage.f_frsize;
            if self.resize(used).is_ok() {
                return Ok(used);
            }
        }
        bail!("{} grows faster than it can be filled", self.dir.display())
    }

    /// There is space again.
    pub(crate) fn free(&self) -> Result<()> {
        self.resize(ROOMY)
    }

    fn resize(&self, bytes: u64) -> Result<()> {
        run(Command::new("mount").args(["-o", &format!("remount,size={bytes}")]).arg(&self.dir))
    }

    /// Copies what is on it to `target`: when it is unmounted, it is gone.
    pub(crate) fn save(&self, target: &Path) -> Result<()> {
        run(Command::new("cp").arg("-a").arg(&self.dir).arg(target))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open there keeps it, and nobody finds it any more.
        if let Err(error) = run(Command::new("umount").arg("-l").arg(&self.dir)) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs this program again in a mount namespace of its own, if that is possible here and has not been done: then the kernel takes the mounts down
/// with the last process, however this one ends. Returns only where it goes on as it is.
pub(crate) fn enter_namespace() {
    use std::os::unix::process::CommandExt as _;
    let possible = rustix::process::geteuid().is_root()
        && std::env::var_os(NAMESPACE).is_none()
        && run(Command::new("unshare").args(["--mount", "true"])).is_ok();
    if let (true, Ok(program)) = (possible, std::env::current_exe()) {
        let error = Command::new("unshare")
            .arg("--mount")
            .arg(program)
            .args(std::env::args_os().skip(1))
            .env(NAMESPACE, "1")
            .exec();
        eprintln!("warning: no namespace for mounts: {error}");
    }
}
