//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::clients::{Outcomes, Sample};
use crate::journal::human;
use crate::proxy::Totals;

/// A time without any acknowledged write counts as "without service" from this length on.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// All figures of a run; written as JSON, and shown as text.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) seconds: f64,
    pub(crate) operations: Outcomes,
    pub(crate) faults: BTreeMap<String, u64>,
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) packets: Totals,
    /// Terms that had a leader.
    pub(crate) elections: usize,
    pub(crate) last_term: u64,
    pub(crate) longest_without_a_write_ms: u64,
    pub(crate) longest_began_s: f64,
    /// All times of more than 500 ms without a write, together.
    pub(crate) without_service_s: f64,
    pub(crate) linearizable: bool,
    pub(crate) keys_explained: usize,
    pub(crate) keys_open: usize,
    /// Acknowledged writes to keys that are written once; each was looked for on every node.
    pub(crate) ledger_entries: usize,
    pub(crate) ledger_problems: usize,
    /// From the end of the faults to the first acknowledged write.
    pub(crate) recovery_ms: Option<u64>,
    /// From the end of the faults until all nodes followed one leader.
    pub(crate) agreement_ms: Option<u64>,
    pub(crate) figures: Vec<String>,
    pub(crate) violations: Vec<String>,
}

impl Report {
    /// Whether nothing is wrong, and enough was looked at to say so.
    pub(crate) fn is_good(&self) -> bool {
        self.violations.is_empty() && self.operations.ok > 0 && self.ledger_entries > 0 && self.is_explained()
    }

    /// Whether the histories of all but a few keys could be explained.
    fn is_explained(&self) -> bool {
        self.keys_explained > 0 && self.keys_open * 10 <= self.keys_explained
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcomes { ok, failed, unknown } = self.operations;
        let seconds = |s: f64| human(Duration::try_from_secs_f64(s).unwrap_or_default());
        let millis = |ms: Option<u64>| ms.map_or("never".to_owned(), |ms| human(Duration::from_millis(ms)));
        writeln!(f, "seed {}, {} nodes, {}", self.seed, self.nodes, seconds(self.seconds))?;
        writeln!(f, "  operations       {ok} ok, {failed} failed (nothing done), {unknown} unknown")?;
        let faults: Vec<String> = self.faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        writeln!(f, "  faults           {}", if faults.is_empty() { "none".to_owned() } else { faults.join("; ") })?;
        for (kind, why) in &self.skipped {
            writeln!(f, "  skipped          {kind}: {why}")?;
        }
        let p = &self.packets;
        writeln!(
            f,
            "  packets          {} delivered; {} lost, {} cut, {} doubled, {} damaged, {} overtaken, {} delayed, {} overflowed",
            p.delivered, p.lost, p.cut, p.duplicated, p.flipped, p.overtaken, p.delayed, p.overflowed
        )?;
        writeln!(f, "  elections        {} terms with a leader, the last is {}", self.elections, self.last_term)?;
        writeln!(
            f,
            "  unavailability   longest {} (at {:.1} s); {} in all, counting 500 ms and more",
            human(Duration::from_millis(self.longest_without_a_write_ms)),
            self.longest_began_s,
            seconds(self.without_service_s)
        )?;
        let open = if self.keys_open > 0 { format!(", {} open", self.keys_open) } else { String::new() };
        let verdict = match (self.linearizable, self.is_explained()) {
            (true, true) => "yes",
            (true, false) => "NOT KNOWN",
            (false, _) => "NO",
        };
        writeln!(f, "  linearizable     {verdict} ({} keys explained{open})", self.keys_explained)?;
        let verdict = if self.ledger_problems == 0 { "nothing lost" } else { "LOST" };
        writeln!(f, "  durability       {verdict}: {} single writes looked for on every node", self.ledger_entries)?;
        writeln!(
            f,
            "  recovery         first write after {}, one leader for all after {}",
            millis(self.recovery_ms),
            millis(self.agreement_ms)
        )?;
        for figure in &self.figures {
            writeln!(f, "  {figure}")?;
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATION        {violation}")?;
        }
        write!(f, "  {}", if self.is_good() { "passed" } else { "FAILED" })
    }
}

/// The times without an acknowledged write that are long enough to be noticed, together.
pub(crate) fn without_service(writes: &[Sample]) -> Duration {
    let mut ends: Vec<Duration> = writes.iter().map(|sample| sample.start + sample.took).collect();
    ends.sort_unstable();
    ends.windows(2).map(|two| two[1].saturating_sub(two[0])).filter(|gap| *gap >= NOTICEABLE).sum()
}

/// `p50`, `p99` and the largest of some times.
pub(crate) fn quantiles(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let Some(largest) = times.last() else { return "none".to_owned() };
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    format!("{} of them, p50 {:.1?}, p99 {:.1?}, max {:.1?}", times.len(), at(50), at(99), largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn only_noticeable_gaps_count() {
        let writes: Vec<Sample> =
            [100, 0, 400, 1400, 1500, 2100].map(|start| Sample { start: millis(start), took: millis(10) }).into();
        assert_eq!(without_service(&writes), millis(1600));
        assert_eq!(without_service(&[]), Duration::ZERO);
    }

    #[test]
    fn quantiles_are_members() {
        let times: Vec<Duration> = (0..=100).map(millis).collect();
        assert_eq!(quantiles(&times), "101 of them, p50 50.0ms, p99 99.0ms, max 100.0ms");
        assert_eq!(quantiles(&[]), "none");
    }
}
