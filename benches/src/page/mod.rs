//! The page of the documentation that tells how fast all this is: its text is a template, its figures come from the files of the latest runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::machine::Machine;
use crate::report::Report;
use crate::trials::Timeline;
use crate::{plot, table, versus};

const TEMPLATE: &str = include_str!("template.md");
/// Name of the page in the folder of the documentation, and of the folder of its pictures.
const PAGE: &str = "performance.md";
const PLOTS: &str = "plots";

/// Makes the page about performance from the latest files of the runs.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder with the JSON files
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    from: PathBuf,
    /// Folder of the documentation: performance.md and plots/ are written there
    #[arg(long, value_name = "DIR", default_value = "docs")]
    docs: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let latest = latest(&args.from)?;
    ensure!(!latest.is_empty(), "{} has no file of a run", args.from.display());
    let plots = args.docs.join(PLOTS);
    let mut sections = BTreeMap::new();
    for (name, path) in &latest {
        let section = if name == RUN { of_run(path, &plots)? } else { of_trial(name, path, &plots)? };
        println!("{name}: {}", crate::shorten(path).display());
        sections.insert(name.as_str(), section);
    }
    let page = args.docs.join(PAGE);
    fs::write(&page, fill(TEMPLATE, &sections)?).with_context(|| format!("cannot write {}", page.display()))?;
    println!("written: {} and {}", crate::shorten(&page).display(), crate::shorten(&plots).display());
    Ok(())
}

/// The section of a run of scenarios.
const RUN: &str = "run";

/// What replaces the names in a section.
type Section = BTreeMap<&'static str, String>;

/// The latest file of every kind. Files are called `<when>.json` or `<when>-<trial>.json`, and times sort like text.
fn latest(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut latest: BTreeMap<String, PathBuf> = BTreeMap::new();
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if path.extension().is_none_or(|extension| extension != "json")
            || !stem.starts_with(|c: char| c.is_ascii_digit())
        {
            continue;
        }
        let kind = stem.split_once('-').map_or(RUN, |(_, trial)| trial).to_owned();
        let newest = latest.entry(kind).or_default();
        if *newest < path {
            *newest = path;
        }
    }
    Ok(latest)
}

fn of_run(path: &Path, plots: &Path) -> Result<Section> {
    let report = Report::load(path)?;
    let mut section = Section::new();
    section.insert("about", table::about(&report).trim().to_owned());
    let figures = format!("{}\n{}", table::figures(&report), versus::render(&report));
    section.insert("figures", kept_lines(figures.trim()));
    let pictures = plot::of_report(&report);
    plot::save(plots, RUN, &pictures)?;
    for (name, _) in pictures {
        section.insert(name, picture(&format!("{RUN}-{name}"), name));
    }
    Ok(section)
}

/// Markdown would run lines together that are no table.
fn kept_lines(text: &str) -> String {
    let kept =
        |line: &str| if line.is_empty() || line.starts_with('|') { line.to_owned() } else { format!("{line}  ") };
    text.lines().map(kept).collect::<Vec<_>>().join("\n")
}

fn of_trial(name: &str, path: &Path, plots: &Path) -> Result<Section> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let trial: Trial = serde_json::from_str(&text).with_context(|| format!("{} is no trial", path.display()))?;
    let mut section = Section::new();
    section.insert("figures", trial.render().trim().to_owned());
    let footer = format!("{}; commit {}", trial.machine, trial.commit);
    if let Some(drawn) = plot::of_trial(&trial.timelines, &trial.charts, &footer) {
        fs::create_dir_all(plots)?;
        fs::write(plots.join(format!("{name}.svg")), drawn)?;
        section.insert("plot", picture(name, name));
    }
    let mut pictures = Vec::new();
    for one in &trial.pictures {
        let (from, to) = (plot::beside(path, one), format!("{name}-{one}"));
        fs::create_dir_all(plots)?;
        fs::copy(&from, plots.join(format!("{to}.svg"))).with_context(|| format!("cannot copy {}", from.display()))?;
        pictures.push(picture(&to, one));
    }
    if !pictures.is_empty() {
        section.insert("pictures", pictures.join("\n\n"));
    }
    Ok(section)
}

fn picture(file: &str, name: &str) -> String {
    format!("![{name}]({PLOTS}/{file}.svg)")
}

/// As much of the outcome of a trial as is shown.
#[derive(Deserialize)]
struct Trial {
    commit: String,
    machine: Machine,
    #[serde(default)]
    settings: BTreeMap<String, String>,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
    #[serde(default)]
    timelines: Vec<Timeline>,
    #[serde(default)]
    charts: Vec<plot::Chart>,
    #[serde(default)]
    pictures: Vec<String>,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    notes: Vec<String>,
}

#[derive(Deserialize)]
struct Target {
    what: String,
    unit: String,
    found: f64,
    limit: f64,
    at_least: bool,
}

impl Trial {
    fn render(&self) -> String {
        let mut text = String::new();
        let settings: Vec<String> = self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let _ = writeln!(text, "{}; commit {}. {}\n", self.machine, self.commit, settings.join(", "));
        let mut shown = table::table(&self.header.iter().map(String::as_str).collect::<Vec<_>>());
        shown.add_rows(&self.rows);
        let _ = writeln!(text, "{shown}\n");
        for Target { what, unit, found, limit, at_least } in &self.targets {
            let is_met = if *at_least { found >= limit } else { found <= limit };
            let (verdict, bound) =
                (if is_met { "met" } else { "**missed**" }, if *at_least { "at least" } else { "at most" });
            let _ = writeln!(text, "- {what}: {found:.2} {unit}, aimed at {bound} {limit} {unit}: {verdict}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

/// Fills the template: `{{#name}}` to `{{/name}}` stays where there is such a section, `{{word}}` in it is replaced.
fn fill(template: &str, sections: &BTreeMap<&str, Section>) -> Result<String> {
    let mut page = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{#") {
        page += before;
        let (name, after) = after.split_once("}}\n").context("the name of a section does not end")?;
        let end = format!("{{{{/{name}}}}}\n");
        let (body, after) = after.split_once(&end).with_context(|| format!("the section {name} does not end"))?;
        if let Some(section) = sections.get(name) {
            page += &fill_section(body, section);
        }
        rest = after;
    }
    page += rest;
    Ok(page.trim_end().to_owned() + "\n")
}

/// A line with nothing but a word for which there is nothing is left out.
fn fill_section(body: &str, section: &Section) -> String {
    let mut text = String::new();
    for line in body.lines() {
        match line.strip_prefix("{{").and_then(|line| line.strip_suffix("}}")) {
            Some(word) => {
                if let Some(value) = section.get(word) {
                    text += value;
                    text.push('\n');
                }
            }
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    // What was left out leaves no second empty line behind.
    while text.contains("\n\n\n") {
        text = text.replace("\n\n\n", "\n\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_on_the_page() {
        let template = "a\n\n{{#x}}\nb\n\n{{plot}}\n\n{{figures}}\n\n{{/x}}\n{{#y}}\nc\n{{/y}}\nend\n";
        let section = Section::from([("figures", "1\n2".to_owned())]);
        assert_eq!(fill(template, &BTreeMap::from([("x", section)])).unwrap(), "a\n\nb\n\n1\n2\n\nend\n");
        assert_eq!(fill(template, &BTreeMap::new()).unwrap(), "a\n\nend\n");
        assert!(fill("{{#x}}\n", &BTreeMap::new()).is_err());
    }

    #[test]
    fn lines_that_are_no_table_stay_lines() {
        assert_eq!(kept_lines("a\n\n| b |\nc"), "a  \n\n| b |\nc  ");
    }

    #[test]
    fn the_template_is_whole() {
        let page = fill(TEMPLATE, &BTreeMap::new()).unwrap();
        assert!(page.starts_with("# Performance\n") && !page.contains("{{"), "{page}");
    }

    #[test]
    fn the_latest_file_of_each_kind_counts() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["20260101T000000Z.json", "20260102T000000Z.json", "20260101T000000Z-failover.json"];
        let others = ["x.json", "20260103T000000Z-scaling.svg", "20260104T000000Z.json.tmp"];
        files.iter().chain(&others).for_each(|name| fs::write(dir.path().join(name), "{}").unwrap());
        let latest = latest(dir.path()).unwrap();
        assert_eq!(latest.keys().collect::<Vec<_>>(), ["failover", "run"]);
        assert!(latest["run"].ends_with(files[1]), "{latest:?}");
    }

    #[test]
    fn a_page_is_made_of_files_and_pictures() {
        let (dir, docs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        crate::report::tests::report().save(dir.path()).unwrap();
        let machine = serde_json::to_value(Machine::default()).unwrap();
        let timeline = serde_json::json!({"title": "t", "begin": 0, "step": 1, "mean": [1, 2], "median": [2, 1]});
        let target = serde_json::json!({"what": "p50", "unit": "ms", "found": 5, "limit": 4, "at_least": false});
        let trial = serde_json::json!({"commit": "abc", "machine": machine, "header": ["timeouts"], "rows": [["lan"]],
            "timelines": [timeline], "targets": [target]});
        fs::write(dir.path().join("20260101T000000Z-failover.json"), trial.to_string()).unwrap();
        run(&Args { from: dir.path().to_owned(), docs: docs.path().to_owned() }).unwrap();
        let page = fs::read_to_string(docs.path().join(PAGE)).unwrap();
        for part in
            ["| lan", "p50: 5.00 ms, aimed at at most 4 ms: **missed**", "(plots/failover.svg)", "fsync on 2 of 3"]
        {
            assert!(page.contains(part), "{part} is missing in {page}");
        }
        assert!(!page.contains("Leadership is handed over"), "{page}");
        assert!(docs.path().join("plots/failover.svg").exists());
        assert!(run(&Args { from: docs.path().to_owned(), docs: docs.path().to_owned() }).is_err());
    }
}
