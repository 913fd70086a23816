//! The outcome of a whole run, as it is written to a file and read back for comparison.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::figures::{FIGURES, Summary};
use crate::floors::Floors;
use crate::machine::{Machine, timestamp};
use crate::scenario::{Load, Repetition, Settings};

/// Version of the file's format.
const FORMAT: u32 = 1;

/// What this build is called beside others.
pub(crate) const OURS: &str = "this build";

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    format: u32,
    /// When it began: UTC, `YYYYMMDDThhmmssZ`.
    pub(crate) started: String,
    /// The source it was built from.
    pub(crate) commit: String,
    /// Where it ran.
    pub(crate) machine: Machine,
    /// Number of nodes.
    pub(crate) nodes: usize,
    /// What an acknowledged write survives, and who shares the machine.
    pub(crate) durability: String,
    /// How repetitions were made.
    pub(crate) settings: Settings,
    /// What the machine can do.
    pub(crate) floors: Floors,
    /// What was measured.
    pub(crate) scenarios: Vec<Scenario>,
    /// What was measured beside it, in turn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<Other>,
    /// Repetitions that were thrown away.
    pub(crate) rejected: Vec<Rejected>,
}

/// Another cluster, measured in the same run: its repetitions took turns with ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Other {
    /// What it is called in tables.
    pub(crate) name: String,
    /// What must be known of it to judge its figures.
    pub(crate) about: String,
    /// The same scenarios as ours.
    pub(crate) scenarios: Vec<Scenario>,
}

/// One scenario with all its repetitions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Scenario {
    /// Its name.
    pub(crate) name: String,
    /// The load.
    pub(crate) load: Load,
    /// Median and extremes of each figure.
    #[serde(default)]
    pub(crate) summary: BTreeMap<String, Summary>,
    /// Every repetition, in order.
    pub(crate) repetitions: Vec<Repetition>,
}

/// A repetition whose figures are worthless.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rejected {
    /// Of which scenario.
    pub(crate) scenario: String,
    /// Why.
    pub(crate) reason: String,
}

impl Scenario {
    pub(crate) fn new(load: Load) -> Self {
        Scenario { name: load.name(), load, summary: BTreeMap::new(), repetitions: Vec::new() }
    }

    /// Adds a repetition.
    pub(crate) fn push(&mut self, repetition: Repetition) {
        self.repetitions.push(repetition);
        let figures = FIGURES
            .iter()
            .filter_map(|figure| Some((figure.name.to_owned(), Summary::of_figure(figure, &self.repetitions)?)));
        self.summary = figures.collect();
    }

    /// Failures in all repetitions, by kind.
    pub(crate) fn errors(&self) -> BTreeMap<&str, u64> {
        let mut all = BTreeMap::new();
        for (kind, times) in self.repetitions.iter().flat_map(|repetition| &repetition.errors) {
            *all.entry(kind.as_str()).or_default() += times;
        }
        all
    }
}

impl Report {
    /// A report without any measurement yet.
    pub(crate) fn new(machine: Machine, commit: String, nodes: usize, settings: Settings) -> Self {
        let majority = nodes / 2 + 1;
        let durability = format!(
            "acknowledged after fsync on {majority} of {nodes} nodes; QUIC with mutual TLS; {nodes} processes and the load generator on one machine"
        );
        Report {
            format: FORMAT,
            started: timestamp(time::OffsetDateTime::now_utc()),
            commit,
            machine,
            nodes,
            durability,
            settings,
            floors: Floors::default(),
            scenarios: Vec::new(),
            others: Vec::new(),
            rejected: Vec::new(),
        }
    }

    /// The names of all that is measured; the first is ours.
    pub(crate) fn targets(&self) -> Vec<&str> {
        std::iter::once(OURS).chain(self.others.iter().map(|other| other.name.as_str())).collect()
    }

    /// The scenarios of one of [`targets`](Report::targets).
    pub(crate) fn of(&self, target: usize) -> &[Scenario] {
        match target.checked_sub(1).and_then(|other| self.others.get(other)) {
            Some(other) => &other.scenarios,
            None => &self.scenarios,
        }
    }

    /// The same, to add to them.
    pub(crate) fn of_mut(&mut self, target: usize) -> &mut Vec<Scenario> {
        match target.checked_sub(1).and_then(|other| self.others.get_mut(other)) {
            Some(other) => &mut other.scenarios,
            None => &mut self.scenarios,
        }
    }

    /// A scenario for every target.
    pub(crate) fn add(&mut self, load: Load) {
        (0..=self.others.len()).for_each(|target| self.of_mut(target).push(Scenario::new(load)));
    }

    /// Every scenario with the name of its target, ours before those of the others, scenario by scenario.
    pub(crate) fn rows(&self) -> impl Iterator<Item = (&str, &Scenario)> {
        let targets = self.targets();
        (0..self.scenarios.len()).flat_map(move |at| {
            targets
                .clone()
                .into_iter()
                .enumerate()
                .filter_map(move |(target, name)| Some((name, self.of(target).get(at)?)))
        })
    }

    /// Writes it into `dir`, as `<when it began>.json`, whole or not at all.
    pub(crate) fn save(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}.json", self.started));
        let temporary = path.with_extension("json.tmp");
        let text = serde_json::to_string_pretty(self)? + "\n";
        let write = || {
            fs::create_dir_all(dir)?;
            fs::write(&temporary, text)?;
            fs::rename(&temporary, &path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Reads the report of an earlier run.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let report: Report =
            serde_json::from_str(&text).with_context(|| format!("{} is no report of this program", path.display()))?;
        let found = report.format;
        ensure!(found == FORMAT, "{} has format {found}; this program understands {FORMAT}", path.display());
        Ok(report)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn report() -> Report {
        Report::new(Machine::default(), "abc".into(), 3, settings())
    }

    fn settings() -> Settings {
        Settings {
            seconds: 1.0,
            warm_up_seconds: 0.1,
            repetitions: 2,
            value_size: 256,
            keys: 10,
            connections: 4,
            seed: 0,
        }
    }

    #[test]
    fn a_report_survives_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new(Machine::default(), "abc".into(), 3, settings());
        let mut scenario = Scenario::new(Load::Closed { clients: 16 });
        for throughput in [100.0, 120.0] {
            let errors = [("busy".to_owned(), 1)].into();
            scenario.push(Repetition { throughput, errors, fsyncs: Some(0.5), ..Repetition::default() });
        }
        assert_eq!(scenario.errors(), [("busy", 2)].into());
        report.scenarios.push(scenario);
        let path = report.save(&dir.path().join("new")).unwrap();
        let read = Report::load(&path).unwrap();
        assert_eq!(read.scenarios[0].repetitions, report.scenarios[0].repetitions);
        assert!((read.scenarios[0].summary["throughput"].median - 110.0).abs() < 1e-9);
        assert_eq!(read.scenarios[0].load, Load::Closed { clients: 16 });
        assert!(!read.scenarios[0].summary.contains_key("peer_bytes"), "unknown figures are left out");
        assert!(read.durability.contains("fsync on 2 of 3"), "{}", read.durability);
    }

    #[test]
    fn a_report_of_another_format_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut report = Report::new(Machine::default(), "abc".into(), 3, settings());
        report.format = FORMAT + 1;
        let path = report.save(dir.path()).unwrap();
        let error = Report::load(&path).unwrap_err().to_string();
        assert!(error.contains("has format 2"), "{error}");
        fs::write(&path, "{}").unwrap();
        assert!(Report::load(&path).is_err());
    }
}
