//! The ledger that `cargo xtask sim --ledger` keeps: a line for each batch, written by the simulator; and what they add up to.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// What some batches add up to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    batches: u64,
    seeds: u64,
    hours: f64,
    events: u64,
    operations: u64,
    faults: u64,
    /// Batches that say nothing about faults: older ones.
    without_faults: u64,
    failed: u64,
}

impl Tally {
    /// Adds up a ledger.
    ///
    /// # Errors
    /// It cannot be read, or a line is none that the simulator has written.
    pub(super) fn of(file: &Path) -> Result<Tally> {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let mut sum = Tally::default();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let batch = batch(line);
            sum.add(batch.with_context(|| format!("{}:{number} is no line of a ledger: {line}", file.display()))?);
        }
        Ok(sum)
    }

    fn add(&mut self, batch: Tally) {
        let Tally { batches, seeds, hours, events, operations, faults, without_faults, failed } = batch;
        self.batches += batches;
        self.seeds += seeds;
        self.hours += hours;
        self.events += events;
        self.operations += operations;
        self.faults += faults;
        self.without_faults += without_faults;
        self.failed += failed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { batches, seeds, hours, events, operations, faults, without_faults, failed } = self;
        write!(f, "{batches} batches: {seeds} seeds, {hours:.1} simulated hours, {events} events, ")?;
        write!(f, "{operations} operations, {faults} faults, {failed} seeds failed")?;
        match without_faults {
            0 => Ok(()),
            some => write!(f, " (faults were not counted in {some} of the batches)"),
        }
    }
}

/// What a line says: `seeds 0..5000: 5000 of them in 96.6 simulated hours, ..., 114075999 events, ..., 0 failed []`. The words behind the numbers
/// tell which is which, and older lines lack some.
fn batch(line: &str) -> Option<Tally> {
    let (range, rest) = line.strip_prefix("seeds ")?.split_once(": ")?;
    let (from, to) = range.split_once("..")?;
    let planned = to.parse::<u64>().ok()?.checked_sub(from.parse().ok()?)?;
    let number = |what: &str| number_before(rest, what);
    let whole = |what: &str| number(what)?.parse::<u64>().ok();
    let faults = whole(" faults");
    Some(Tally {
        batches: 1,
        seeds: whole(" of them in ").unwrap_or(planned),
        hours: number(" simulated hours")?.parse().ok()?,
        events: whole(" events")?,
        operations: whole(" operations")?,
        faults: faults.unwrap_or(0),
        without_faults: u64::from(faults.is_none()),
        failed: whole(" failed")?,
    })
}

/// The number that stands before the first such word.
fn number_before<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let (before, _) = text.split_once(word)?;
    let begin = before.rfind(|c: char| !c.is_ascii_digit() && c != '.').map_or(0, |at| at + 1);
    Some(&before[begin..]).filter(|number| !number.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "seeds 100000..103000: 56.9 simulated hours in 56 s (53.1 seeds/s, 3627 times real time), 90140371 events, \
        3506015 operations, 76718 in doubt, 2716116 commands, longest recovery 12.7 s (seed 102782), 0 keys undecided, 2 failed [7, 8]";
    const NEW: &str = "seeds 0..3000: 1000 of them in 19.1 simulated hours, 60 s (50.0 seeds/s, 3000 times real time), 29 events, \
        11 operations, 3 in doubt, 7 commands, 4321 faults, longest recovery 12.7 s (seed 102), 0 keys undecided, 1 failed [9]";

    #[test]
    fn lines_add_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{OLD}\n{NEW}\n\n")).unwrap();
        assert_eq!(
            Tally::of(file.path()).unwrap().to_string(),
            "2 batches: 4000 seeds, 76.0 simulated hours, 90140400 events, 3506026 operations, 4321 faults, 3 seeds failed \
             (faults were not counted in 1 of the batches)"
        );
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for spoilt in [OLD.replace("operations", "operas"), OLD.replace("100000..", ".."), OLD.replace("56.9", "many")]
        {
            std::fs::write(file.path(), format!("{OLD}\n{spoilt}\n")).unwrap();
            let error = Tally::of(file.path()).unwrap_err().to_string();
            assert!(error.contains(":2 is no line of a ledger"), "{error}");
        }
        assert!(Tally::of(Path::new("no such file")).is_err());
    }
}
