//! Ctrl-C, SIGTERM and a closed terminal ask for an orderly end.

use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::workspace;

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on these signals set a flag instead of ending this program, so that it can stop the processes it has started.
#[cfg(unix)]
pub(crate) fn catch() -> Result<()> {
    let flag = STOP.get_or_init(Arc::default);
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag)).context("cannot handle signals")?;
    }
    Ok(())
}

/// Without Unix signals the program simply ends.
#[cfg(not(unix))]
pub(crate) fn catch() -> Result<()> {
    Ok(())
}

/// Has one of the signals come?
pub(crate) fn stop_requested() -> bool {
    STOP.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// Runs a program that has processes of its own to its end. When we are asked to stop, it is given the time to stop them.
pub(crate) fn supervise(command: &mut Command) -> Result<ExitStatus> {
    catch()?;
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", workspace::show(command)))?;
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop_requested() && !told {
            told = true;
            terminate(child.id());
        }
        sleep(Duration::from_millis(50));
    }
}

/// Asks a child process to end.
#[cfg(unix)]
pub(crate) fn terminate(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        // An error means that the process has ended already, and that is what we want.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Without Unix signals processes can only be killed.
#[cfg(not(unix))]
pub(crate) fn terminate(_: u32) {}
