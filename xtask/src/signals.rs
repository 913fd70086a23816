//! Ctrl-C, SIGTERM and a closed terminal ask for an orderly end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};

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
