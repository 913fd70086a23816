//! What comes out of a trial: a table, what was aimed at and whether it was reached, and a JSON file with every single value.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::Timeline;
use crate::machine::{self, Machine, timestamp};
use crate::plot::{self, Axis, Chart, Series};
use crate::table::table;

/// Version of the JSON file's format.
const FORMAT: u32 = 1;

/// The outcome of a trial, as it is written to a file.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    format: u32,
    /// Which trial.
    trial: &'static str,
    /// What its files are called.
    #[serde(skip)]
    name: String,
    started: String,
    commit: String,
    machine: Machine,
    /// How it was made.
    settings: BTreeMap<&'static str, String>,
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    /// Every value that went into the table.
    samples: BTreeMap<String, Vec<f64>>,
    /// What happened around events, step by step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timelines: Vec<Timeline>,
    /// Its curves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    charts: Vec<Chart>,
    /// Names of pictures that were drawn already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pictures: Vec<String>,
    /// The pictures themselves, as SVG.
    #[serde(skip)]
    drawn: Vec<String>,
    targets: Vec<Target>,
    notes: Vec<String>,
}

/// What was aimed at, and what was found.
#[derive(Debug, Serialize)]
struct Target {
    what: String,
    unit: &'static str,
    found: f64,
    limit: f64,
    /// Whether more is better.
    at_least: bool,
    /// Whether it is a promise: then missing it is a failure, however slow the machine.
    promise: bool,
}

impl Target {
    fn is_met(&self) -> bool {
        if self.at_least { self.found >= self.limit } else { self.found <= self.limit }
    }
}

impl Outcome {
    /// Without anything in it. The nodes' data lies in or below `dir`.
    pub(crate) fn new(trial: &'static str, dir: &Path, header: &[&'static str]) -> Self {
        Outcome {
            format: FORMAT,
            trial,
            name: trial.to_owned(),
            started: timestamp(time::OffsetDateTime::now_utc()),
            commit: machine::commit(),
            machine: Machine::find_out(dir),
            settings: BTreeMap::new(),
            header: header.to_vec(),
            rows: Vec::new(),
            samples: BTreeMap::new(),
            timelines: Vec::new(),
            charts: Vec::new(),
            pictures: Vec::new(),
            drawn: Vec::new(),
            targets: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// How the trial was made.
    pub(crate) fn setting(&mut self, name: &'static str, value: impl Into<String>) {
        self.settings.insert(name, value.into());
    }

    /// It was made in another way than usual: it does not take the place of the usual one among the files.
    pub(crate) fn variant(&mut self, way: &str) {
        self.name = format!("{}-{way}", self.name);
    }

    /// A line of the table.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Single values, for the file.
    pub(crate) fn samples(&mut self, name: impl Into<String>, values: impl IntoIterator<Item = f64>) {
        self.samples.insert(name.into(), values.into_iter().collect());
    }

    /// What happened around events.
    pub(crate) fn timeline(&mut self, timeline: Timeline) {
        self.timelines.push(timeline);
    }

    /// A curve.
    pub(crate) fn chart(&mut self, title: impl Into<String>, x: Axis, y: Axis, series: Vec<Series>) {
        self.charts.push(Chart { title: title.into(), x, y, series });
    }

    /// A picture that is no curve: an SVG with a name.
    pub(crate) fn picture_of(&mut self, name: impl Into<String>, svg: String) {
        self.pictures.push(name.into());
        self.drawn.push(svg);
    }

    /// This should be at most that.
    pub(crate) fn at_most(&mut self, what: impl Into<String>, unit: &'static str, found: f64, limit: f64) {
        self.targets.push(Target { what: what.into(), unit, found, limit, at_least: false, promise: false });
    }

    /// This should be at least that.
    pub(crate) fn at_least(&mut self, what: impl Into<String>, unit: &'static str, found: f64, limit: f64) {
        self.targets.push(Target { what: what.into(), unit, found, limit, at_least: true, promise: false });
    }

    /// This must not happen, however slow the machine.
    pub(crate) fn never(&mut self, what: impl Into<String>, times: usize) {
        let (what, found) = (what.into(), times as f64);
        self.targets.push(Target { what, unit: "", found, limit: 0.0, at_least: false, promise: true });
    }

    /// Something to know about it. Said twice, it stands there once.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// For people.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "\nmachine   {}; commit {}", self.machine, self.commit);
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(text, "settings  {}\n", settings.join(", "));
        if !self.rows.is_empty() {
            let mut shown = table(&self.header);
            for row in &self.rows {
                shown.add_row(row);
            }
            let _ = writeln!(text, "{shown}\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "{note}");
        }
        for target in &self.targets {
            let Target { what, unit, found, limit, at_least, .. } = target;
            let verdict = if target.is_met() { "met" } else { "MISSED" };
            let bound = if *at_least { "at least" } else { "at most" };
            let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
            let _ = writeln!(text, "{verdict}: {what}: {}{unit}, should be {bound} {limit}{unit}", short(*found));
        }
        if cfg!(debug_assertions) {
            text += "warning: the load generator was built without optimisation\n";
        }
        text
    }

    /// Writes it into `dir`, whole or not at all, as `<when it began>-<name>.json`.
    pub(crate) fn save(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(format!("{}-{}.json", self.started, self.name));
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

    /// Draws it beside its file, if there is something to draw; returns where.
    pub(crate) fn picture(&self, file: &Path) -> Result<Option<PathBuf>> {
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let footer = format!("{}; commit {}; {}", self.machine, self.commit, settings.join(", "));
        let Some(picture) = plot::of_trial(&self.timelines, &self.charts, &footer) else { return Ok(None) };
        let path = file.with_extension("svg");
        fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Some(path))
    }

    /// Writes the pictures that were drawn already beside its file, as `<its name>-<theirs>.svg`; returns where.
    pub(crate) fn save_pictures(&self, file: &Path) -> Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (name, svg) in self.pictures.iter().zip(&self.drawn) {
            let path = plot::beside(file, name);
            fs::write(&path, svg).with_context(|| format!("cannot write {}", path.display()))?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// Fails when a promise was broken. Being slow is not a failure: that is for the reader to judge.
    pub(crate) fn verdict(&self) -> Result<()> {
        let broken: Vec<&str> =
            self.targets.iter().filter(|target| target.promise && !target.is_met()).map(|t| &*t.what).collect();
        if broken.is_empty() { Ok(()) } else { bail!("must never happen, and did: {}", broken.join(", ")) }
    }
}

/// Milliseconds.
pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// A number with as many digits as say something.
pub(crate) fn short(value: f64) -> String {
    let is_whole = (value - value.round()).abs() < 1e-9;
    let digits = if is_whole || value.abs() >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$}")
}

/// Quantiles of a few values: each of them was there.
#[derive(Clone, Debug)]
pub(crate) struct Quantiles(Vec<f64>);

impl Quantiles {
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Quantiles(values)
    }

    /// The smallest value that at least this share of all does not exceed; 0 when there are none.
    pub(crate) fn at(&self, share: f64) -> f64 {
        let rank = (share * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or(0.0)
    }

    /// p50, p99 and the largest, as cells of a table.
    pub(crate) fn cells(&self) -> [String; 3] {
        [0.5, 0.99, 1.0].map(|share| short(self.at(share)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let quantiles = Quantiles::of((1..=100).rev().map(f64::from));
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| short(quantiles.at(share))), ["1", "50", "99", "100"]);
        let few = Quantiles::of([3.0, 1.0]);
        assert_eq!(few.cells(), ["1", "3", "3"]);
        assert_eq!(Quantiles::of([]).cells(), ["0", "0", "0"]);
    }

    #[test]
    fn a_missed_target_is_shown_and_only_a_broken_promise_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let mut outcome = Outcome::new("transfer", dir.path(), &["what", "ms"]);
        outcome.setting("clients", "64");
        outcome.row(vec!["pause".into(), "12".into()]);
        outcome.samples("pause_ms", [12.0]);
        outcome.at_most("pause p99", "ms", 12.0, 10.0);
        outcome.at_least("share", "%", 81.0, 80.0);
        outcome.never("failed writes", 0);
        assert!(outcome.verdict().is_ok());
        let text = outcome.render();
        assert!(text.contains("MISSED: pause p99: 12 ms, should be at most 10 ms"), "{text}");
        assert!(text.contains("met: share: 81 %") && text.contains("clients 64"), "{text}");
        outcome.never("elections", 2);
        assert!(outcome.verdict().unwrap_err().to_string().contains("elections"));
        let path = outcome.save(&dir.path().join("out")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!((&json["trial"], &json["samples"]["pause_ms"][0]), (&"transfer".into(), &12.0.into()));
    }
}
