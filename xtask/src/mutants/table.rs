//! The results as a table, for the terminal and for the documentation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Outcome, patch};
use crate::report;

/// Longest description of a failure, in characters.
const LONGEST: usize = 110;

const INTRODUCTION: &str = "\
# Bugs that others shipped, and what catches them here

Each row is a patch in `xtask/mutants` that puts a bug into a copy of this tree: one that a real implementation had. Written by
`cargo xtask mutants --table docs/mutants.md`; `cargo xtask mutants 12` tries number 12 alone. A bug that nothing notices fails the command,
unless its patch says why it cannot be seen.

`swarm` is the simulator of whole clusters (built without debug assertions, so that its judges alone decide), `lab` the course's tests in
simulation; *seeds* is how many of them it took, counted from seed 0. The others are tests of the crates.

";

const HEADER: &str = "\
| mutant | bug | shipped by | caught by | what it said | seeds | seconds |
|---|---|---|---|---|---:|---:|
";

/// For the terminal.
pub(super) fn plain(outcomes: &[Outcome]) -> String {
    let row = |outcome: &Outcome| {
        let (by, what, seeds) = verdict(outcome);
        vec![outcome.patch.name.clone(), by, seeds, format!("{:.0}", outcome.took.as_secs_f64()), what]
    };
    let rows: Vec<Vec<String>> = outcomes.iter().map(row).collect();
    report::table(&["mutant", "caught by", "seeds", "s", "what it said"], &rows, &[2, 3])
}

/// Who caught it, what that said, and the seeds it took.
fn verdict(outcome: &Outcome) -> (String, String, String) {
    match (&outcome.caught, &outcome.patch.invisible) {
        (Some(catch), _) => {
            (catch.by.clone(), catch.what.clone(), catch.seeds.map_or(String::new(), |seeds| seeds.to_string()))
        }
        (None, Some(why)) => ("cannot be seen".to_owned(), why.clone(), String::new()),
        (None, None) => ("SURVIVED".to_owned(), String::new(), String::new()),
    }
}

/// Writes the file anew. What stands before the table stays, and rows of mutants that did not run this time as long as their patches exist.
pub(super) fn write(file: &Path, outcomes: &[Outcome]) -> Result<()> {
    let known: Vec<String> = patch::all()?.into_iter().map(|patch| patch.name).collect();
    let old = fs::read_to_string(file).unwrap_or_default();
    let text = markdown(&old, outcomes, &known);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn markdown(old: &str, outcomes: &[Outcome], known: &[String]) -> String {
    let mut rows: BTreeMap<String, String> = BTreeMap::new();
    for line in old.lines() {
        let name = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')).map(|(name, _)| name.to_owned());
        if let Some(name) = name.filter(|name| known.contains(name)) {
            rows.insert(name, line.to_owned());
        }
    }
    for outcome in outcomes {
        let (by, what, seeds) = verdict(outcome);
        let patch = &outcome.patch;
        let what =
            if what.is_empty() || outcome.caught.is_none() { what } else { format!("`{}`", what.replace('`', "'")) };
        let cells = [&patch.bug, &patch.shipped, &by, &what, &seeds].map(|cell| cell.replace('|', "\\|"));
        let mut line = format!("| `{}` | ", patch.name);
        for cell in cells {
            // A String takes everything.
            let _ = write!(line, "{cell} | ");
        }
        let _ = write!(line, "{:.0} |", outcome.took.as_secs_f64());
        rows.insert(patch.name.clone(), line);
    }
    let introduction = old.split_once(HEADER).map_or(INTRODUCTION, |(before, _)| before);
    let mut text = format!("{introduction}{HEADER}");
    for row in rows.into_values() {
        text.push_str(&row);
        text.push('\n');
    }
    text
}

/// The first line, if need be with an ellipsis.
pub(super) fn shorten(text: &str) -> String {
    let line = without_folders(text.lines().next().unwrap_or_default().trim());
    if line.chars().count() <= LONGEST {
        return line;
    }
    let mut short: String = line.chars().take(LONGEST).collect();
    short.push('…');
    short
}

/// Names of temporary folders are another time's and another machine's.
fn without_folders(line: &str) -> String {
    let mut parts = line.split("/tmp/.tmp");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        short.push_str("DIR");
        short.push_str(part.trim_start_matches(|c: char| c.is_ascii_alphanumeric()));
    }
    short
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::detector::Catch;
    use super::super::patch::Patch;
    use super::*;

    fn outcome(name: &str, what: &str) -> Outcome {
        let header = format!("Number: {}\nBug: b\nShipped: s\nDetectors: lab\n\ndiff --git a/x b/x\n", &name[..2]);
        Outcome {
            patch: Patch::parse(name, &header).unwrap(),
            caught: Some(Catch { by: "lab".to_owned(), what: what.to_owned(), seeds: Some(3) }),
            took: Duration::from_secs(2),
        }
    }

    #[test]
    fn rows_of_other_mutants_stay_and_those_of_lost_patches_go() {
        let known = ["01-a", "02-b"].map(str::to_owned);
        let first = markdown("", &[outcome("01-a", "x|y"), outcome("02-b", "x"), outcome("03-c", "x")], &known);
        assert!(first.contains(r"| `01-a` | b | s | lab | `x\|y` | 3 | 2 |"), "{first}");
        let said = first.replace("# Bugs", "Somebody's own words.\n\n# Bugs");
        let second = markdown(&said, &[outcome("02-b", "new")], &known);
        assert!(
            second.starts_with("Somebody's own words.\n\n# Bugs") && second.matches("# Bugs").count() == 1,
            "{second}"
        );
        let rows: Vec<&str> = second.lines().filter(|line| line.starts_with("| `")).collect();
        assert_eq!(rows.len(), 2, "{second}");
        assert!(rows[0].contains("01-a") && rows[1].contains("`new`"));
    }

    #[test]
    fn long_words_are_cut() {
        assert_eq!(shorten(" one\ntwo"), "one");
        assert_eq!(shorten("at \"/tmp/.tmp0aB\", and /tmp/.tmpX1/log"), "at \"DIR\", and DIR/log");
        assert_eq!(shorten(&"ä".repeat(200)).chars().count(), LONGEST + 1);
    }
}
