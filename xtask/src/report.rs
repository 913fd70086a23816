//! What the user sees of a step: a line when it starts, progress while it runs, and how long it took.
//!
//! On a terminal progress is a bar or a spinner that disappears at the end; elsewhere (CI, a pipe) it is a plain line every now
//! and then, so that a log shows that something still happens without being flooded.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, progress is printed at most this often.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// A step under way.
pub(crate) struct Task {
    label: String,
    started: Instant,
    printed: Instant,
    bar: Option<ProgressBar>,
}

impl Task {
    /// A step whose length is unknown: a spinner with the elapsed time.
    pub(crate) fn spinner(label: impl Into<String>) -> Task {
        let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]");
        Task::start(label.into(), ProgressBar::new_spinner(), style)
    }

    /// A step of about `total` units: a bar.
    pub(crate) fn bar(label: impl Into<String>, total: u64) -> Task {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} [{elapsed}, about {eta} left]");
        Task::start(label.into(), ProgressBar::new(total), style)
    }

    fn start(label: String, bar: ProgressBar, style: Result<ProgressStyle, impl std::fmt::Debug>) -> Task {
        let now = Instant::now();
        let bar = if std::io::stderr().is_terminal() {
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_message(label.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            say(&format!("{label} ..."));
            None
        };
        Task { label, started: now, printed: now, bar }
    }

    /// Time since the step began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Shows how far the step is. Cheap enough to be called several times a second.
    pub(crate) fn progress(&mut self, done: u64, total: u64) {
        let total = total.max(done);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if self.printed.elapsed() >= PLAIN_INTERVAL {
            self.printed = Instant::now();
            let left = remaining(self.elapsed(), done, total)
                .map_or(String::new(), |left| format!(", about {} left", human(left)));
            let elapsed = human(self.elapsed());
            say(&format!("{}: {done} of about {total} after {elapsed}{left}", self.label));
        }
    }

    /// Ends the step and prints one line: the label, the outcome and the time.
    pub(crate) fn finish(self, outcome: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        say(&format!("{}: {outcome} ({})", self.label, human(self.elapsed())));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // A step that ends in an error leaves no half-drawn bar behind the error message.
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error. When nobody reads it any more that is no reason to end: there may be processes to stop.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// The time left if the rest goes as fast as what is done; nothing before there is something to go by.
fn remaining(elapsed: Duration, done: u64, total: u64) -> Option<Duration> {
    if done == 0 {
        return None;
    }
    let fraction = done as f64 / total.max(done) as f64;
    Some(elapsed.mul_f64((1.0 - fraction) / fraction))
}

/// A duration for people: `0.8 s`, `42 s`, `14 min 32 s`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// Prints rows in columns as wide as their widest cell; columns named in `right` are right-aligned.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::from(" ");
        for (column, (cell, &width)) in cells.zip(&widths).enumerate() {
            text.push(' ');
            let padding = " ".repeat(width - cell.chars().count());
            let (before, after) = if right.contains(&column) { (padding.as_str(), "") } else { ("", padding.as_str()) };
            text.extend([before, cell, after]);
            text.push(' ');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
        text
    };
    let mut text = line(&mut header.iter().copied());
    let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
    text.push_str(&line(&mut rule.iter().map(String::as_str)));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(human(Duration::from_millis(840)), "0.8 s");
        assert_eq!(human(Duration::from_millis(42_900)), "42 s");
        assert_eq!(human(Duration::from_secs(872)), "14 min 32 s");
    }

    #[test]
    fn the_estimate_is_proportional_and_needs_a_sample() {
        assert_eq!(remaining(Duration::from_secs(10), 0, 100), None);
        assert_eq!(remaining(Duration::from_secs(10), 25, 100), Some(Duration::from_secs(30)));
        assert_eq!(remaining(Duration::from_secs(10), 120, 100), Some(Duration::ZERO));
    }

    #[test]
    fn tables_align() {
        let rows = vec![vec!["fmt".to_owned(), "1.0 s".to_owned()], vec!["clippy".to_owned(), "42 s".to_owned()]];
        let expected = "  step     time\n  ------  -----\n  fmt     1.0 s\n  clippy   42 s\n";
        assert_eq!(table(&["step", "time"], &rows, &[1]), expected);
    }
}
