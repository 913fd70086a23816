//! What a run came to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::clients::{Outcomes, Sample};
use crate::deeds::{LEADER_REMOVED, LOST_DISK, NEW_VOTER, REMOVED, TRANSFER};
use crate::journal::human;
use crate::proxy::Totals;

/// A time without any acknowledged write counts as "without service" from this length on.
const NOTICEABLE: Duration = Duration::from_millis(500);

/// From this length on a run must have had something of everything.
const LONG: Duration = Duration::from_mins(2);

/// What a run was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) enum Aim {
    /// A schedule of this length, which has something of everything.
    Schedule(Duration),
    /// So many times kill -9.
    Cycles(u64),
    /// A measurement: it knows itself what it needs.
    Measurement,
}

/// Something of which there was less than there has to be for the run to prove anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lack {
    what: &'static str,
    actual: u64,
    least: u64,
}

/// All figures of a run; written as JSON, and shown as text.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) seconds: f64,
    pub(crate) operations: Outcomes,
    pub(crate) faults: BTreeMap<String, u64>,
    /// What the administrator did.
    pub(crate) deeds: BTreeMap<String, u64>,
    pub(crate) aim: Aim,
    /// How long the schedule took.
    pub(crate) endured_s: f64,
    /// Times that a node made its state durable and compacted its log.
    pub(crate) compactions: u64,
    pub(crate) snapshots_sent: u64,
    pub(crate) snapshots_restored: u64,
    /// By nodes, of nodes and clients.
    pub(crate) connections_refused: u64,
    /// Steps of counters, each of which must have been made once.
    pub(crate) increments: u64,
    pub(crate) counters: usize,
    /// Writes that were sent again although an earlier copy may have taken effect.
    pub(crate) repeated: u64,
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

/// As [`Fault::kinds`](crate::schedule::Fault::kinds) calls them.
const DISK_FAULTS: [&str; 3] = ["fsync error", "fsync delay", "full disk"];

impl Report {
    /// Whether nothing is wrong, and enough was looked at to say so.
    pub(crate) fn is_good(&self) -> bool {
        let looked = self.operations.ok > 0 && self.ledger_entries > 0 && self.is_explained();
        self.violations.is_empty() && looked && self.lacks().is_empty()
    }

    /// What there was too little of.
    fn lacks(&self) -> Vec<Lack> {
        let sum = |counts: &BTreeMap<String, u64>, of: &[&str]| {
            counts
                .iter()
                .filter(|(kind, _)| of.iter().any(|prefix| kind.starts_with(prefix)))
                .map(|(_, count)| count)
                .sum()
        };
        let (faults, deeds) = (|of: &[&str]| sum(&self.faults, of), |of: &[&str]| sum(&self.deeds, of));
        let least: Vec<(&str, u64, u64)> = match self.aim {
            Aim::Measurement => vec![],
            Aim::Cycles(count) => vec![("kills", faults(&["kill -9"]), count), ("increments", self.increments, 1)],
            Aim::Schedule(length) => {
                // In so many times two minutes.
                let times = (length.as_secs() / LONG.as_secs()).min(1_000_000);
                // Where a kind cannot be had, the report says so.
                let disks = DISK_FAULTS.iter().filter(|kind| !self.skipped.contains_key(**kind));
                let each = disks.clone().map(|kind| (*kind, faults(&[kind]), times / 5));
                let disk = ("disk faults", faults(&DISK_FAULTS), if disks.clone().count() > 0 { times } else { 0 });
                let mut least = vec![
                    disk,
                    ("kills", faults(&["kill -9", "crash loop"]), 3 * times),
                    ("cuts", faults(&["cut"]), 2 * times),
                    ("pauses", faults(&["pause"]), times),
                    ("transfers", deeds(&[TRANSFER]), times),
                    ("removals", deeds(&[REMOVED, LEADER_REMOVED]), times),
                    ("new voters", deeds(&[NEW_VOTER]), times),
                    ("lost disks", deeds(&[LOST_DISK]), times.min(1)),
                    ("compactions", self.compactions, times),
                    ("snapshots taken over", self.snapshots_restored, times),
                    ("increments", self.increments, 5 * times),
                    ("repeated writes", self.repeated, times.min(1)),
                ];
                least.extend(each);
                least
            }
        };
        let lacks = least.into_iter().filter(|(_, actual, least)| actual < least);
        lacks.map(|(what, actual, least)| Lack { what, actual, least }).collect()
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
        writeln!(f, "  faults           {}", list(&self.faults))?;
        writeln!(f, "  administration   {}", list(&self.deeds))?;
        writeln!(
            f,
            "  snapshots        {} compactions, {} snapshots sent, {} taken over",
            self.compactions, self.snapshots_sent, self.snapshots_restored
        )?;
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
            "  exactly once     {} steps of {} counters looked for on every node; {} writes were sent again",
            self.increments, self.counters, self.repeated
        )?;
        writeln!(
            f,
            "  recovery         first write after {}, one leader for all after {}",
            millis(self.recovery_ms),
            millis(self.agreement_ms)
        )?;
        for figure in &self.figures {
            writeln!(f, "  {figure}")?;
        }
        for Lack { what, actual, least } in self.lacks() {
            writeln!(
                f,
                "  TOO LITTLE       {what}: {actual}, at least {least} are needed for this run to prove anything"
            )?;
        }
        for violation in &self.violations {
            writeln!(f, "  VIOLATION        {violation}")?;
        }
        write!(f, "  {}", if self.is_good() { "passed" } else { "FAILED" })
    }
}

fn list(counts: &BTreeMap<String, u64>) -> String {
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
    if counts.is_empty() { "none".to_owned() } else { counts.join("; ") }
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

    /// Of a run of so many minutes in which enough happened.
    fn report(minutes: u64) -> Report {
        let counts = |kinds: &[&str]| kinds.iter().map(|kind| ((*kind).to_owned(), 3 * minutes)).collect();
        Report {
            seed: 1,
            nodes: 3,
            seconds: 60.0 * minutes as f64,
            operations: Outcomes { ok: 1000, failed: 0, unknown: 0 },
            faults: counts(&[
                "kill -9",
                "kill -9 of all",
                "cut",
                "cut, one way",
                "pause",
                "fsync error",
                "fsync delay",
                "full disk",
            ]),
            deeds: counts(&[TRANSFER, LEADER_REMOVED, NEW_VOTER, LOST_DISK]),
            aim: Aim::Schedule(Duration::from_mins(minutes)),
            endured_s: 60.0 * minutes as f64,
            compactions: 9 * minutes,
            snapshots_sent: 3 * minutes,
            snapshots_restored: 3 * minutes,
            connections_refused: 0,
            increments: 90 * minutes,
            counters: 3,
            repeated: 9,
            skipped: BTreeMap::new(),
            packets: Totals::default(),
            elections: 3,
            last_term: 4,
            longest_without_a_write_ms: 9,
            longest_began_s: 1.0,
            without_service_s: 0.0,
            linearizable: true,
            keys_explained: 9,
            keys_open: 0,
            ledger_entries: 9,
            ledger_problems: 0,
            recovery_ms: Some(1),
            agreement_ms: Some(1),
            figures: vec![],
            violations: vec![],
        }
    }

    #[test]
    fn a_run_in_which_too_little_happened_fails_and_says_of_what() {
        let good = |change: fn(&mut Report)| {
            let mut report = report(4);
            change(&mut report);
            assert_eq!(report.is_good(), !report.to_string().contains("TOO LITTLE"), "{report}");
            report.is_good()
        };
        assert!(good(|_| {}));
        assert!(!good(|report| report.faults.retain(|kind, _| !kind.starts_with("cut"))));
        assert!(!good(|report| report.faults.retain(|kind, _| !kind.starts_with("kill"))));
        assert!(!good(|report| report.faults.retain(|kind, _| !DISK_FAULTS.contains(&kind.as_str()))));
        assert!(good(|report| {
            report.faults.retain(|kind, _| !DISK_FAULTS.contains(&kind.as_str()));
            report.skipped = DISK_FAULTS.iter().map(|kind| ((*kind).to_owned(), "not root".to_owned())).collect();
        }));
        assert!(!good(|report| *report.deeds.get_mut(TRANSFER).expect("some") = 1));
        assert!(!good(|report| report.deeds.retain(|kind, _| kind != LEADER_REMOVED)));
        assert!(!good(|report| report.deeds.retain(|kind, _| kind != LOST_DISK)));
        assert!(!good(|report| report.snapshots_restored = 1));
        assert!(!good(|report| report.repeated = 0));
        assert!(!good(|report| report.increments = 0));
    }

    #[test]
    fn long_runs_need_each_kind_of_disk_fault() {
        let without = |minutes, missing: &str| {
            let mut report = report(minutes);
            report.faults.retain(|kind, _| kind != missing);
            report.is_good()
        };
        for kind in DISK_FAULTS {
            assert!(without(8, kind) && !without(10, kind), "{kind}");
        }
    }

    #[test]
    fn what_is_needed_depends_on_what_the_run_is_for() {
        let nothing = |aim| {
            let (faults, deeds) = (BTreeMap::new(), BTreeMap::new());
            Report { aim, faults, deeds, snapshots_restored: 0, repeated: 0, ..report(1) }
        };
        assert!(nothing(Aim::Schedule(Duration::from_secs(119))).is_good(), "too short to demand anything");
        assert!(!nothing(Aim::Schedule(Duration::from_mins(2))).is_good());
        assert!(nothing(Aim::Measurement).is_good());
        assert!(!nothing(Aim::Cycles(3)).is_good());
        assert!(Report { aim: Aim::Cycles(6), ..report(1) }.is_good());
    }

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
