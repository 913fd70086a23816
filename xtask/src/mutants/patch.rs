//! A bug as a file: a header, and a patch that `git apply` takes.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::detector::Detector;
use crate::workspace;

/// A bug to be put into the tree.
#[derive(Debug)]
pub(super) struct Patch {
    /// The file's name without its ending.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// In the catalogue of bugs; several patches may express the same one.
    pub(super) number: u32,
    /// What is wrong, in one line.
    pub(super) bug: String,
    /// Who had it.
    pub(super) shipped: String,
    /// What is to notice it, in the order in which they are asked.
    pub(super) detectors: Vec<Detector>,
    /// Why nothing can notice it, if nothing can.
    pub(super) invisible: Option<String>,
}

/// All of them, in the order of their names.
pub(super) fn all() -> Result<Vec<Patch>> {
    let folder = workspace::root().join("xtask").join("mutants");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "patch") {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    paths.into_iter().map(read).collect()
}

fn read(path: PathBuf) -> Result<Patch> {
    let shown = workspace::shorten(&path);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {shown}"))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let patch = Patch::parse(name, &text).with_context(|| format!("the header of {shown}"))?;
    Ok(Patch { path, ..patch })
}

impl Patch {
    /// Reads the header: lines of the form `Name: value` up to the patch itself; an indented line goes on with the value before it.
    pub(super) fn parse(name: &str, text: &str) -> Result<Patch> {
        let Some((header, _)) = text.split_once("diff --git ") else { bail!("there is no patch after it") };
        let mut fields: Vec<(&str, String)> = Vec::new();
        for line in header.lines().filter(|line| !line.trim().is_empty()) {
            match (line.strip_prefix(' '), fields.last_mut()) {
                (Some(more), Some((_, value))) => {
                    value.push(' ');
                    value.push_str(more.trim());
                }
                _ => {
                    let (field, value) = line.split_once(": ").with_context(|| format!("`{line}` has no `: `"))?;
                    fields.push((field, value.trim().to_owned()));
                }
            }
        }
        let mut take = |wanted: &str| {
            let at = fields.iter().position(|(field, _)| *field == wanted);
            at.map(|at| fields.remove(at).1).filter(|value| !value.is_empty())
        };
        let number = take("Number").context("Number is missing")?.parse().context("Number")?;
        let bug = take("Bug").context("Bug is missing")?;
        let shipped = take("Shipped").context("Shipped is missing")?;
        let detectors = take("Detectors").context("Detectors are missing")?;
        let detectors = detectors.split(',').map(|word| word.trim().parse()).collect::<Result<_>>()?;
        let invisible = take("Invisible");
        if let Some((field, _)) = fields.first() {
            bail!("`{field}` is none of Number, Bug, Shipped, Detectors and Invisible");
        }
        if !name.starts_with(&format!("{number:02}-")) {
            bail!("the name of the file does not begin with its number, {number:02}");
        }
        Ok(Patch { name: name.to_owned(), path: PathBuf::new(), number, bug, shipped, detectors, invisible })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "Number: 7\nBug: a line\n  and more\nShipped: x#1\nDetectors: swarm, core-tests: rule_1\n\ndiff --git a b\n";

    #[test]
    fn a_header_is_read() {
        let patch = Patch::parse("07-name", GOOD).unwrap();
        assert_eq!((patch.number, patch.bug.as_str(), patch.invisible), (7, "a line and more", None));
        let shown: Vec<String> = patch.detectors.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["swarm", "core-tests: rule_1"]);
        let why = GOOD.replace("\n\n", "\nInvisible: it is not\n\n");
        assert_eq!(Patch::parse("07-name", &why).unwrap().invisible.as_deref(), Some("it is not"));
    }

    #[test]
    fn mistakes_in_a_header_are_named() {
        let problem = |name, text: &str| Patch::parse(name, text).unwrap_err().to_string();
        assert!(problem("08-name", GOOD).contains("begin with its number"));
        assert!(problem("07-name", &GOOD.replace("diff", "")).contains("no patch"));
        assert!(problem("07-name", &GOOD.replace("Bug", "Bag")).contains("Bug is missing"));
        assert!(problem("07-name", &GOOD.replace("swarm", "swirl")).contains("`swirl`"));
        assert!(problem("07-name", &GOOD.replace("\n\n", "\nMore: x\n\n")).contains("`More`"));
    }
}
