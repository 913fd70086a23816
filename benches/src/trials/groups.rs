//! Many groups in three processes: what an idle one costs, and how load spreads over them. Another program measures; this keeps what it found.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::Stage;
use super::outcome::{Outcome, short};
use crate::leash::Leash;
use crate::plot::{Axis, Scale, Series};

/// Measures idle groups and groups under load with the example `groups` of raft-node, which is the program and the nodes at once.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// That example
    #[arg(long, value_name = "FILE")]
    example: PathBuf,
    /// Its arguments
    #[arg(last = true)]
    rest: Vec<String>,
}

/// What it prints.
#[derive(Debug, Deserialize)]
struct Found {
    clients: u64,
    size: usize,
    seconds: u64,
    idle: Option<Idle>,
    spread: Vec<Spread>,
}

/// Groups in which nothing happens; one figure for each process.
#[derive(Debug, Deserialize)]
struct Idle {
    groups: u64,
    awake: bool,
    opened_seconds: f64,
    /// Bytes of memory for a group.
    bytes_each: Vec<f64>,
    /// CPU time for a group, in microseconds a second.
    cpu_each: Vec<f64>,
    messages_per_second: Vec<f64>,
}

/// The same load over some groups.
#[derive(Debug, Deserialize)]
struct Spread {
    groups: u64,
    clients: u64,
    writes_per_second: f64,
    p50_us: f64,
    p99_us: f64,
    syncs_per_second: f64,
    writes_per_sync: f64,
    /// CPU time of all nodes, in percent of one core.
    cpu_percent: f64,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    std::fs::create_dir_all(&args.stage.dir)?;
    let dir = args.stage.dir.canonicalize()?;
    let mut command = Leash::find().command(&args.example);
    // Where its nodes keep their data.
    command.env("TMPDIR", &dir).arg("--json").args(&args.rest).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.with_context(|| format!("cannot start {}", args.example.display()))?;
    ensure!(output.status.success(), "{} failed ({})", args.example.display(), output.status);
    let found: Found = serde_json::from_slice(&output.stdout).context("its figures make no sense")?;
    Ok(report(args, &found))
}

fn report(args: &Args, found: &Found) -> Outcome {
    let header = [
        "groups",
        "clients",
        "writes/s",
        "p50 us",
        "p99 us",
        "syncs/s, all nodes",
        "writes a sync",
        "CPU %, all nodes",
    ];
    let mut outcome = Outcome::new("groups", &args.stage.dir, &header);
    outcome.setting("clients", found.clients.to_string());
    outcome.setting("bytes of a command", found.size.to_string());
    outcome.setting("seconds", found.seconds.to_string());
    for one in &found.spread {
        let Spread { groups, clients, writes_per_second, .. } = one;
        let mut row = vec![groups.to_string(), clients.to_string(), format!("{writes_per_second:.0}")];
        row.extend([one.p50_us, one.p99_us, one.syncs_per_second, one.writes_per_sync, one.cpu_percent].map(short));
        outcome.row(row);
        outcome.samples(format!("{groups} groups, writes_per_second"), [*writes_per_second]);
    }
    if let Some(idle) = &found.idle {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        outcome.note(format!(
            "{} idle groups{}, opened and led after {:.1} s; for each of them a process has {:.1} KiB of memory and {:.2} us of CPU time a second; \
             a process sends {:.1} messages a second for all of them",
            idle.groups,
            if idle.awake { ", kept awake" } else { "" },
            idle.opened_seconds,
            mean(&idle.bytes_each) / 1024.0,
            mean(&idle.cpu_each),
            mean(&idle.messages_per_second),
        ));
        outcome.samples("idle_bytes_each", idle.bytes_each.iter().copied());
        outcome.samples("idle_cpu_us_per_second_each", idle.cpu_each.iter().copied());
        outcome.samples("idle_messages_per_second", idle.messages_per_second.iter().copied());
    }
    outcome.note("clients run in the processes of the nodes: no client network, so these rates do not compare with those of the other tables");
    let axis = || Axis::of("groups", found.spread.iter().map(|one| (one.groups as f64, one.groups.to_string())));
    let line = |name: &str, color, figure: fn(&Spread) -> f64| {
        Series::new(name, color, found.spread.iter().map(|one| (one.groups as f64, figure(one))))
    };
    let linear = |label: &str| Axis::new(label, Scale::Linear);
    outcome.chart(
        "the same clients, spread over groups",
        axis(),
        linear("writes a second"),
        vec![line("all groups together", 0, |one| one.writes_per_second)],
    );
    let both = vec![line("p50", 0, |one| one.p50_us), line("p99", 1, |one| one.p99_us)];
    outcome.chart("latency", axis(), Axis::new("microseconds", Scale::Log), both);
    outcome.chart(
        "one log for all groups",
        axis(),
        linear("writes for each sync"),
        vec![line("all nodes", 0, |one| one.writes_per_sync)],
    );
    outcome.chart(
        "CPU time of all nodes",
        axis(),
        linear("microseconds a write"),
        vec![line("all nodes", 0, |one| one.cpu_percent * 1e4 / one.writes_per_second.max(1.0))],
    );
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_example_prints_is_understood() {
        let json = r#"{"clients": 300, "size": 256, "seconds": 3,
            "idle": {"groups": 10, "awake": false, "opened_seconds": 1.5, "bytes_each": [2048.0, 1024.0], "cpu_each": [0.1, 0.3], "messages_per_second": [1.0, 0.0]},
            "spread": [{"groups": 1, "clients": 300, "writes_per_second": 5e4, "p50_us": 900, "p99_us": 4000, "syncs_per_second": 3000,
                "writes_per_sync": 50, "cpu_percent": 150}]}"#;
        let found: Found = serde_json::from_str(json).unwrap();
        let stage =
            Stage { program: "x".into(), dir: std::env::temp_dir(), out: "x".into(), keep: false, engine: None };
        let text = report(&Args { stage, example: "x".into(), rest: Vec::new() }, &found).render();
        assert!(text.contains("| 1      |     300 |    50000 |    900 |"), "{text}");
        assert!(text.contains("has 1.5 KiB of memory and 0.20 us"), "{text}");
    }
}
