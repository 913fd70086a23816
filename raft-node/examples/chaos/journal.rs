//! What happened when: every line carries the seconds since the start.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// Writes lines to standard output and to a file. Clones share both.
#[derive(Clone)]
pub(crate) struct Journal {
    origin: Instant,
    file: Arc<Mutex<File>>,
}

impl Journal {
    /// Time begins now; the file is `events.log` in `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Journal> {
        let path = dir.join("events.log");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Journal { origin: Instant::now(), file: Arc::new(Mutex::new(file)) })
    }

    /// When time began.
    pub(crate) fn origin(&self) -> Instant {
        self.origin
    }

    /// Adds a line.
    pub(crate) fn say(&self, text: &str) {
        let line = format!("{:>8.3}  {text}\n", self.origin.elapsed().as_secs_f64());
        // Nobody may be reading any more; there are processes to stop all the same.
        let _ = std::io::stdout().write_all(line.as_bytes());
        let _ = self.file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line.as_bytes());
    }
}

/// A duration for people: `340 ms`, `2.5 s`, `3 min 20 s`.
pub(crate) fn human(duration: Duration) -> String {
    match duration.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{} ms", duration.as_millis()),
        seconds if seconds < 60.0 => format!("{seconds:.1} s"),
        _ => format!("{} min {:02} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(340)), "340 ms");
        assert_eq!(human(Duration::from_millis(2500)), "2.5 s");
        assert_eq!(human(Duration::from_secs(200)), "3 min 20 s");
    }
}
