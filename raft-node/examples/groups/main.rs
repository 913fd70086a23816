//! What many groups in one node cost: three processes with up to a thousand groups.
//!
//! ```text
//! cargo xtask bench groups
//! cargo xtask bench groups -- --idle 200 --seconds 3       # a short one
//! cargo xtask bench groups -- --awake --groups 1           # what idle groups would cost if they did not sleep
//! ```
//!
//! First all groups are idle: memory, CPU time and messages of a process, for each group. Then the same number of clients writes to 1, 10 and 100 groups, whose leaders
//! are spread over the processes; each client runs in the process that leads its group.
//!
//! This process starts the others (the same program with `--node`) and talks to them over their standard input and output, a line each way.
#![forbid(unsafe_code)]

mod cluster;
mod counter;
mod member;

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use serde::Serialize;

use cluster::{Cluster, Figures};

/// Measures many groups in three processes.
#[derive(Parser)]
struct Args {
    /// Idle groups
    #[arg(long, default_value_t = 1000)]
    idle: u64,
    /// Idle groups do not go to sleep
    #[arg(long)]
    awake: bool,
    /// Groups over which the load is spread, one measurement each
    #[arg(long, value_delimiter = ',', default_value = "1,10,100")]
    groups: Vec<u64>,
    /// Clients, which are the same in each measurement: rounded to a multiple of the groups
    #[arg(long, default_value_t = 300)]
    clients: u64,
    /// Bytes of a command
    #[arg(long, default_value_t = 256)]
    size: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Print the figures as JSON, for the load generator, instead of tables
    #[arg(long)]
    json: bool,
    /// Run as this node, for the process that started it
    #[arg(long, hide = true)]
    node: Option<u64>,
    /// Where everything is, for a node
    #[arg(long, hide = true)]
    dir: Option<std::path::PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let (Some(node), Some(dir)) = (args.node, &args.dir) {
        return member::run(node, dir);
    }
    let mut found = Found { clients: args.clients, size: args.size, seconds: args.seconds, ..Found::default() };
    if args.idle > 0 {
        found.idle = Some(idle(&args)?);
    }
    if !args.json {
        println!(
            "\n| groups | clients | writes/s | p50 us | p99 us | syncs/s, all nodes | writes a sync | CPU, all nodes |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    for &groups in &args.groups {
        found.spread.push(spread(&args, groups.max(1))?);
    }
    if args.json {
        println!("{}", serde_json::to_string(&found)?);
    }
    Ok(())
}

/// All figures.
#[derive(Default, Serialize)]
struct Found {
    clients: u64,
    size: usize,
    seconds: u64,
    idle: Option<Idle>,
    spread: Vec<Spread>,
}

/// Of groups in which nothing happens; one figure for each process.
#[derive(Serialize)]
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

/// Of a load over some groups.
#[derive(Serialize)]
struct Spread {
    groups: u64,
    clients: u64,
    writes_per_second: f64,
    p50_us: u64,
    p99_us: u64,
    syncs_per_second: f64,
    writes_per_sync: f64,
    /// CPU time of all nodes, in percent of one core.
    cpu_percent: f64,
}

/// A cluster in which nothing happens.
fn idle(args: &Args) -> Result<Idle> {
    let seconds = Duration::from_secs(args.seconds);
    let mut cluster = Cluster::start()?;
    let none = cluster.figures()?;
    let took = cluster.open(1..=args.idle, args.awake)?;
    // What the elections have left behind.
    std::thread::sleep(seconds.min(Duration::from_secs(5)));
    let before = cluster.figures()?;
    std::thread::sleep(seconds);
    let after = cluster.figures()?;
    cluster.stop()?;
    if !args.json {
        println!(
            "{} idle groups in three processes{}, opened and led after {:.1} s; for each process:",
            args.idle,
            if args.awake { ", all awake" } else { "" },
            took.as_secs_f64()
        );
        println!(
            "\n| node | leads | memory without groups | with | for a group | CPU | CPU for a group | messages/s |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    let mut idle = Idle {
        groups: args.idle,
        awake: args.awake,
        opened_seconds: took.as_secs_f64(),
        bytes_each: Vec::new(),
        cpu_each: Vec::new(),
        messages_per_second: Vec::new(),
    };
    for (((node, none), before), after) in (1..).zip(&none).zip(&before).zip(&after) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds.as_secs_f64();
        let bytes = (after.resident as f64 - none.resident as f64) / args.idle as f64;
        let messages = (after.frames - before.frames) as f64 / seconds.as_secs_f64();
        idle.bytes_each.push(bytes);
        idle.cpu_each.push(cpu * 1e6 / args.idle as f64);
        idle.messages_per_second.push(messages);
        if !args.json {
            println!(
                "| {node} | {} | {:.1} MiB | {:.1} MiB | {:.1} KiB | {:.2} % | {:.1} us/s | {messages:.0} |",
                after.leads,
                mib(none.resident),
                mib(after.resident),
                bytes / 1024.0,
                cpu * 100.0,
                cpu * 1e6 / args.idle as f64,
            );
        }
    }
    Ok(idle)
}

/// The clients' load, spread over so many groups.
fn spread(args: &Args, groups: u64) -> Result<Spread> {
    let mut cluster = Cluster::start()?;
    cluster.open(1..=groups, false)?;
    cluster.spread_leaders(1..=groups)?;
    let each = (args.clients / groups).max(1);
    cluster.load(each, args.size, 1).context("warm-up")?;
    let before = cluster.figures()?;
    let loaded = cluster.load(each, args.size, args.seconds)?;
    let after = cluster.figures()?;
    cluster.stop()?;
    let difference =
        |get: fn(&Figures) -> f64| -> f64 { after.iter().map(get).sum::<f64>() - before.iter().map(get).sum::<f64>() };
    let (syncs, seconds) = (difference(|figures| figures.syncs as f64), args.seconds as f64);
    let spread = Spread {
        groups,
        clients: each * groups,
        writes_per_second: loaded.writes as f64 / seconds,
        p50_us: loaded.median,
        p99_us: loaded.slowest,
        syncs_per_second: syncs / seconds,
        // Each write is synced by the three nodes.
        writes_per_sync: 3.0 * loaded.writes as f64 / syncs.max(1.0),
        cpu_percent: difference(|figures| figures.cpu.as_secs_f64()) / seconds * 100.0,
    };
    if !args.json {
        println!(
            "| {groups} | {} | {:.0} | {} | {} | {:.0} | {:.1} | {:.0} % |",
            spread.clients,
            spread.writes_per_second,
            spread.p50_us,
            spread.p99_us,
            spread.syncs_per_second,
            spread.writes_per_sync,
            spread.cpu_percent,
        );
    }
    Ok(spread)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
