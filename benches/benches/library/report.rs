//! What came of it: a table, and a file like those of the load generator's trials, so that it can go on the same page.

use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets};

use crate::load::Measured;
use crate::ratio::Ratio;
use crate::{Args, COMPACT_AFTER, PAYLOAD, machine};

/// How many times faster we want to be.
const TARGET: f64 = 2.0;

/// All repetitions of one number of clients.
pub(crate) struct Row {
    pub(crate) clients: u32,
    pub(crate) ours: Vec<Measured>,
    pub(crate) theirs: Vec<Measured>,
}

/// A figure of a repetition.
type Figure = fn(&Measured) -> f64;

const HEADER: [&str; 12] = [
    "clients",
    "ours, op/s",
    "openraft, op/s",
    "ratio",
    "95 %",
    "verdict",
    "ours, p50 us",
    "openraft, p50 us",
    "ours, p99 us",
    "openraft, p99 us",
    "ours, CPU us/op",
    "openraft, CPU us/op",
];

impl Row {
    pub(crate) fn new(clients: u32) -> Self {
        Row { clients, ours: Vec::new(), theirs: Vec::new() }
    }

    fn ratio(&self) -> Option<Ratio> {
        let rates = |all: &[Measured]| all.iter().map(|one| one.rate).collect::<Vec<_>>();
        Ratio::of_pairs(&rates(&self.ours), &rates(&self.theirs))
    }

    fn cells(&self) -> [String; 12] {
        let ratio = self.ratio();
        let verdict = match ratio {
            Some(ratio) if !ratio.is_outside_noise() => "not certain",
            Some(ratio) if ratio.guess > 1.0 => "ahead",
            Some(_) => "behind",
            None => "too few values",
        };
        let both = |figure: Figure, digits: usize| {
            [&self.ours, &self.theirs].map(|all| format!("{:.digits$}", median(all, figure)))
        };
        let [rate, their_rate] = both(|one| one.rate, 0);
        let [p50, their_p50] = both(|one| one.p50, 0);
        let [p99, their_p99] = both(|one| one.p99, 0);
        let [cpu, their_cpu] = both(|one| one.cpu, 1);
        [
            self.clients.to_string(),
            rate,
            their_rate,
            ratio.map_or("-".to_owned(), |ratio| format!("{:.3}", ratio.guess)),
            ratio.map_or("-".to_owned(), |ratio| format!("{:.3} .. {:.3}", ratio.low, ratio.high)),
            verdict.to_owned(),
            p50,
            their_p50,
            p99,
            their_p99,
            cpu,
            their_cpu,
        ]
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = |all: &[Measured]| all.last().map_or(0.0, |one| one.rate);
        write!(f, "{} clients: {:.0} op/s, openraft {:.0}", self.clients, rate(&self.ours), rate(&self.theirs))
    }
}

fn median(all: &[Measured], figure: Figure) -> f64 {
    let mut values: Vec<f64> = all.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// Prints the table, and writes the figures into the folder `RAFT_BENCH_OUT` if that is set.
pub(crate) fn show(args: &Args, workers: usize, rows: &[Row]) -> Result<()> {
    let cells: Vec<[String; 12]> = rows.iter().map(Row::cells).collect();
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_header(HEADER).add_rows(&cells);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    println!("{table}");
    if let Some(dir) = std::env::var_os("RAFT_BENCH_OUT") {
        save(Path::new(&dir), args, workers, rows, &cells)?;
    }
    Ok(())
}

fn save(dir: &Path, args: &Args, workers: usize, rows: &[Row], cells: &[[String; 12]]) -> Result<()> {
    let started = machine::timestamp(time::OffsetDateTime::now_utc());
    let figures: [(&str, Figure); 4] =
        [("op_per_second", |m| m.rate), ("p50_us", |m| m.p50), ("p99_us", |m| m.p99), ("cpu_us", |m| m.cpu)];
    let mut samples = serde_json::Map::new();
    for row in rows {
        for (name, all) in [("ours", &row.ours), ("openraft", &row.theirs)] {
            for (figure, of) in figures {
                let values: Vec<f64> = all.iter().map(of).collect();
                samples.insert(format!("{name}, {} clients, {figure}", row.clients), values.into());
            }
        }
    }
    let targets = rows.iter().filter_map(|row| {
        let found = row.ratio()?.guess;
        let what = format!("writes a second with {} clients, as a multiple of openraft's", row.clients);
        Some(serde_json::json!({"what": what, "unit": "x", "found": found, "limit": TARGET, "at_least": true}))
    });
    let outcome = serde_json::json!({
        "format": 1,
        "trial": "library",
        "started": started,
        "commit": machine::commit(),
        "machine": machine::Machine::find_out(dir),
        "settings": {
            "bytes of a command": PAYLOAD.to_string(),
            "runtime threads": workers.to_string(),
            "repetitions": format!("{} of {} s after {} s", args.repetitions, args.seconds, args.warm_up),
            "openraft": format!("0.9, up to {} entries at once", args.openraft_entries),
            "log compacted after": format!("{COMPACT_AFTER} entries"),
        },
        "header": HEADER,
        "rows": cells,
        "samples": samples,
        "targets": targets.collect::<Vec<_>>(),
    });
    std::fs::create_dir_all(dir)?;
    let path = dir.join(format!("{started}-library.json"));
    std::fs::write(&path, format!("{outcome:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("library: every value is in {}", path.display());
    Ok(())
}
