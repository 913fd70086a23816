//! What clients did and saw, and whether that can be explained.

use std::collections::{BTreeMap, BTreeSet};

use raft_core::Instant;
use raft_core::sim::linearizability::{self, Action, Operation, Verdict};

/// Steps of the search for an explanation of one key, at most.
const BUDGET: u64 = 3_000_000;

/// A value with the revision of its key; revision 0 stands for "absent".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) revision: u64,
    pub(crate) value: u64,
}

/// What a client asked, and what it was told. Every value is written by one operation only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Did {
    /// `revision` is `None` when no answer came; so in the others.
    Put {
        value: u64,
        revision: Option<u64>,
    },
    Get {
        found: Option<Seen>,
    },
    /// Compare-and-swap that succeeded, or of which no answer came.
    Swap {
        expected: Option<Seen>,
        value: u64,
        revision: Option<u64>,
    },
    /// Compare-and-swap that found this revision instead.
    Mismatch {
        current: u64,
    },
    Delete {
        existed: Option<bool>,
    },
}

/// An operation on a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) did: Did,
    /// Nanoseconds since the beginning.
    pub(crate) start: u64,
    /// `None`: no answer came.
    pub(crate) end: Option<u64>,
}

/// The operations on each key.
#[derive(Debug, Default)]
pub(crate) struct History(BTreeMap<String, Vec<Record>>);

/// What became of the check.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) violations: Vec<String>,
    /// Keys that can be explained.
    pub(crate) explained: usize,
    /// Keys for which the search was given up.
    pub(crate) open: usize,
}

impl History {
    /// Adds an operation.
    pub(crate) fn push(&mut self, key: &str, record: Record) {
        match self.0.get_mut(key) {
            Some(records) => records.push(record),
            None => {
                self.0.insert(key.to_owned(), vec![record]);
            }
        }
    }

    /// Adds another client's operations.
    pub(crate) fn merge(&mut self, other: History) {
        for (key, mut records) in other.0 {
            self.0.entry(key).or_default().append(&mut records);
        }
    }

    /// The keys that were used.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// The operations on a key, in the order of their beginning, one a line.
    pub(crate) fn show(&self, key: &str) -> String {
        let mut records = self.0.get(key).cloned().unwrap_or_default();
        records.sort_by_key(|record| record.start);
        let millis = |nanos: u64| nanos as f64 / 1e6;
        let line = |record: &Record| {
            let end = record.end.map_or("no answer".to_owned(), |end| format!("{:.3}", millis(end)));
            format!("{:.3} .. {end} ms  {:?}\n", millis(record.start), record.did)
        };
        records.iter().map(line).collect()
    }

    /// Checks each key.
    pub(crate) fn check(&self) -> Findings {
        let mut findings = Findings::default();
        for (key, records) in &self.0 {
            match check_key(records) {
                Ok(Verdict::Linearizable) => findings.explained += 1,
                Ok(Verdict::Unknown) => findings.open += 1,
                Ok(Verdict::Violation { stuck }) => {
                    findings.violations.push(format!("{key} is not linearizable: nothing explains {stuck:?}"));
                }
                Err(problem) => findings.violations.push(format!("{key}: {problem}")),
            }
        }
        findings
    }
}

fn check_key(records: &[Record]) -> Result<Verdict, String> {
    let values = values_by_revision(records)?;
    let operations: Vec<Operation> = records.iter().filter_map(|record| operation(record, &values)).collect();
    Ok(linearizability::check(&operations, BUDGET))
}

/// Which value each revision has, as far as anybody was told. A revision is the place of a write in the log: it has one value; and a value
/// that has two was written twice.
fn values_by_revision(records: &[Record]) -> Result<BTreeMap<u64, u64>, String> {
    let mut values = BTreeMap::new();
    let mut revisions = BTreeMap::new();
    for record in records {
        let told = match record.did {
            Did::Put { value, revision } => [revision.map(|revision| Seen { revision, value }), None],
            Did::Get { found } => [found, None],
            Did::Swap { expected, value, revision } => [revision.map(|revision| Seen { revision, value }), expected],
            Did::Mismatch { .. } | Did::Delete { .. } => [None, None],
        };
        for Seen { revision, value } in told.into_iter().flatten() {
            let other_value = *values.entry(revision).or_insert(value);
            if other_value != value {
                return Err(format!("revision {revision} has two values: {other_value} and {value}"));
            }
            let other_revision = *revisions.entry(value).or_insert(revision);
            if other_revision != revision {
                return Err(format!("{value} was written twice, at revisions {other_revision} and {revision}"));
            }
        }
    }
    Ok(values)
}

fn operation(record: &Record, values: &BTreeMap<u64, u64>) -> Option<Operation> {
    let action = match record.did {
        Did::Put { value, .. } => Action::Put(value),
        Did::Get { found } => Action::Get(found.map(|seen| seen.value)),
        Did::Swap { expected, value, .. } => Action::Swap { expected: expected.map(|seen| seen.value), value },
        Did::Mismatch { current: 0 } => Action::Get(None),
        // Somebody's write of which no answer came, and which nobody read: it tells nothing.
        Did::Mismatch { current } => Action::Get(Some(*values.get(&current)?)),
        Did::Delete { existed } => Action::Delete { existed: existed.unwrap_or(true) },
    };
    Some(Operation { action, invoked: Instant(record.start), returned: record.end.map(Instant) })
}

/// Keys that are written once, and never changed: each acknowledged one must be there at the end, on every node.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) acknowledged: BTreeMap<String, u64>,
    /// No answer came: there or not.
    pub(crate) in_doubt: BTreeMap<String, u64>,
    /// The client was told that nothing was done.
    pub(crate) refused: BTreeSet<String>,
}

impl Ledger {
    /// Adds another client's entries.
    pub(crate) fn merge(&mut self, mut other: Ledger) {
        self.acknowledged.append(&mut other.acknowledged);
        self.in_doubt.append(&mut other.in_doubt);
        self.refused.append(&mut other.refused);
    }

    /// What is wrong with the ledger as a node has it.
    pub(crate) fn check(&self, found: &BTreeMap<String, u64>) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in &self.acknowledged {
            match found.get(key) {
                None => problems.push(format!("{key}: the acknowledged write of {value} is lost")),
                Some(other) if other != value => problems.push(format!("{key}: holds {other} instead of {value}")),
                Some(_) => {}
            }
        }
        for (key, value) in found {
            if self.refused.contains(key) {
                problems.push(format!("{key}: holds {value}, although the client was told that nothing was done"));
            } else if !self.acknowledged.contains_key(key) && self.in_doubt.get(key) != Some(value) {
                problems.push(format!("{key}: holds {value}, which nobody wrote"));
            }
        }
        problems
    }
}

/// Keys that were counted up, by one client each: where they are to stand at the end, on every node.
#[derive(Debug, Default)]
pub(crate) struct Tallies(BTreeMap<String, Tally>);

#[derive(Clone, Copy, Debug)]
struct Tally {
    /// How far it was counted, as far as was told.
    count: u64,
    /// Nothing was told of one step more.
    in_doubt: bool,
}

impl Tallies {
    /// Notes how far a counter has come.
    pub(crate) fn put(&mut self, key: String, count: u64, in_doubt: bool) {
        self.0.insert(key, Tally { count, in_doubt });
    }

    /// Adds another client's counters.
    pub(crate) fn merge(&mut self, mut other: Tallies) {
        self.0.append(&mut other.0);
    }

    /// How many counters there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// How many steps were made.
    pub(crate) fn total(&self) -> u64 {
        self.0.values().map(|tally| tally.count).sum()
    }

    /// What is wrong with the counters as a node has them.
    pub(crate) fn check(&self, found: &BTreeMap<String, u64>) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, Tally { count, in_doubt }) in &self.0 {
            let actual = found.get(key).copied().unwrap_or(0);
            if actual != *count && !(*in_doubt && actual == count + 1) {
                problems.push(format!("{key}: stands at {actual} instead of {count}"));
            }
        }
        let unknown = found.keys().filter(|key| !self.0.contains_key(*key));
        problems.extend(unknown.map(|key| format!("{key}: nobody has counted there")));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(start: u64, end: u64, did: Did) -> Record {
        Record { did, start, end: (end > 0).then_some(end) }
    }

    fn put(value: u64, revision: u64) -> Did {
        Did::Put { value, revision: Some(revision) }
    }

    fn get(revision: u64, value: u64) -> Did {
        Did::Get { found: (revision > 0).then_some(Seen { revision, value }) }
    }

    fn findings(records: &[Record]) -> Findings {
        let mut history = History::default();
        records.iter().for_each(|record| history.push("k", *record));
        history.check()
    }

    #[test]
    fn a_history_that_can_be_explained_passes() {
        let found = findings(&[
            record(0, 1, put(1, 10)),
            record(2, 3, get(10, 1)),
            record(4, 0, Did::Put { value: 2, revision: None }),
            record(5, 6, Did::Swap { expected: Some(Seen { revision: 10, value: 1 }), value: 3, revision: Some(12) }),
            record(7, 8, Did::Mismatch { current: 13 }),
            record(9, 10, get(13, 2)),
            record(11, 12, Did::Delete { existed: Some(true) }),
            record(13, 14, Did::Mismatch { current: 0 }),
            record(15, 16, get(0, 0)),
        ]);
        assert_eq!((found.violations, found.explained, found.open), (vec![], 1, 0));
    }

    #[test]
    fn what_cannot_be_explained_is_found() {
        let stale = [record(0, 1, put(1, 10)), record(2, 3, put(2, 11)), record(4, 5, get(10, 1))];
        let lost = [record(0, 1, put(1, 10)), record(2, 3, get(0, 0))];
        let twice = [record(0, 1, put(1, 10)), record(2, 3, put(2, 11)), record(4, 5, get(12, 1))];
        let torn = [record(0, 9, put(1, 10)), record(0, 9, put(2, 10))];
        let back = [
            record(0, 1, put(1, 10)),
            record(2, 3, Did::Delete { existed: Some(true) }),
            record(4, 5, Did::Mismatch { current: 10 }),
        ];
        for records in [&stale[..], &lost, &twice, &torn, &back] {
            assert_eq!(findings(records).violations.len(), 1, "{records:?}");
        }
    }

    #[test]
    fn the_ledger_finds_what_is_lost_changed_or_invented() {
        let entry = |name: &str, value| (name.to_owned(), value);
        let ledger = Ledger {
            acknowledged: [entry("a", 1), entry("b", 2)].into(),
            in_doubt: [entry("c", 3)].into(),
            refused: ["d".to_owned()].into(),
        };
        assert!(ledger.check(&[entry("a", 1), entry("b", 2)].into()).is_empty());
        assert!(ledger.check(&[entry("a", 1), entry("b", 2), entry("c", 3)].into()).is_empty());
        for wrong in [
            vec![entry("a", 1)],
            vec![entry("a", 1), entry("b", 3)],
            vec![entry("a", 1), entry("b", 2), entry("c", 4)],
            vec![entry("a", 1), entry("b", 2), entry("d", 4)],
            vec![entry("a", 1), entry("b", 2), entry("x", 4)],
        ] {
            assert_eq!(ledger.check(&wrong.iter().cloned().collect()).len(), 1, "{wrong:?}");
        }
    }

    #[test]
    fn a_counter_stands_where_it_was_counted_to() {
        let mut tallies = Tallies::default();
        tallies.put("a".to_owned(), 7, false);
        tallies.put("b".to_owned(), 3, true);
        tallies.put("c".to_owned(), 0, false);
        let check = |found: &[(&str, u64)]| {
            tallies.check(&found.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect()).len()
        };
        assert_eq!((tallies.count(), tallies.total()), (3, 10));
        assert_eq!(check(&[("a", 7), ("b", 3)]), 0);
        assert_eq!(check(&[("a", 7), ("b", 4)]), 0, "that was in doubt");
        for wrong in [&[("a", 8), ("b", 3)][..], &[("a", 6), ("b", 3)], &[("b", 3)], &[("a", 7), ("b", 5)]] {
            assert_eq!(check(wrong), 1, "{wrong:?}");
        }
        assert_eq!(check(&[("a", 7), ("b", 3), ("d", 1)]), 1, "nobody counts there");
    }
}
