//! What is shown while it runs: a bar on a terminal, lines everywhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// How often the bar moves.
const STEP: Duration = Duration::from_millis(200);

/// Progress on standard error.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for something that takes about `expected`. Away from a terminal only lines are shown.
    pub(crate) fn new(expected: Duration) -> Self {
        let bar = ProgressBar::new(expected.as_secs().max(1));
        let template = format!("{{wide_bar}} {{elapsed}} of about {} s {{msg}}", expected.as_secs());
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(STEP);
        Progress { bar }
    }

    /// What is going on.
    pub(crate) fn now(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        let elapsed = self.bar.elapsed().as_secs();
        self.bar.set_position(elapsed.min(self.bar.length().unwrap_or(elapsed)));
    }

    /// Something that stays on the screen.
    pub(crate) fn line(&self, text: &str) {
        self.bar.suspend(|| eprintln!("{text}"));
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
