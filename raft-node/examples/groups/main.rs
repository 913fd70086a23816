//! What many groups in one node cost: three processes with up to a thousand groups.
//!
//! ```text
//! cargo xtask bench groups
//! cargo xtask bench groups --idle 200 --seconds 3       # a short one
//! cargo xtask bench groups --awake --groups 1           # what idle groups would cost if they did not sleep
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
    if args.idle > 0 {
        idle(&args)?;
    }
    println!(
        "\n| groups | clients | writes/s | p50 us | p99 us | syncs/s, all nodes | writes a sync | CPU, all nodes |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for &groups in &args.groups {
        spread(&args, groups.max(1))?;
    }
    Ok(())
}

/// A cluster in which nothing happens.
fn idle(args: &Args) -> Result<()> {
    let seconds = Duration::from_secs(args.seconds);
    let mut cluster = Cluster::start()?;
    let none = cluster.figures()?;
    let took = cluster.open(1..=args.idle, args.awake)?;
    // What the elections have left behind.
    std::thread::sleep(seconds.min(Duration::from_secs(5)));
    let before = cluster.figures()?;
    std::thread::sleep(seconds);
    let after = cluster.figures()?;
    println!(
        "{} idle groups in three processes{}, opened and led after {:.1} s; for each process:",
        args.idle,
        if args.awake { ", all awake" } else { "" },
        took.as_secs_f64()
    );
    println!("\n| node | leads | memory without groups | with | for a group | CPU | CPU for a group | messages/s |");
    println!("|---|---|---|---|---|---|---|---|");
    for (((node, none), before), after) in (1..).zip(&none).zip(&before).zip(&after) {
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64() / seconds.as_secs_f64();
        println!(
            "| {node} | {} | {:.1} MiB | {:.1} MiB | {:.1} KiB | {:.2} % | {:.1} us/s | {:.0} |",
            after.leads,
            mib(none.resident),
            mib(after.resident),
            (after.resident as f64 - none.resident as f64) / 1024.0 / args.idle as f64,
            cpu * 100.0,
            cpu * 1e6 / args.idle as f64,
            (after.frames - before.frames) as f64 / seconds.as_secs_f64(),
        );
    }
    cluster.stop()
}

/// The clients' load, spread over so many groups.
fn spread(args: &Args, groups: u64) -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.open(1..=groups, false)?;
    cluster.spread_leaders(1..=groups)?;
    let each = (args.clients / groups).max(1);
    cluster.load(each, args.size, 1).context("warm-up")?;
    let before = cluster.figures()?;
    let loaded = cluster.load(each, args.size, args.seconds)?;
    let after = cluster.figures()?;
    let difference =
        |get: fn(&Figures) -> f64| -> f64 { after.iter().map(get).sum::<f64>() - before.iter().map(get).sum::<f64>() };
    let syncs = difference(|figures| figures.syncs as f64);
    let rate = loaded.writes as f64 / args.seconds as f64;
    println!(
        "| {groups} | {} | {rate:.0} | {} | {} | {:.0} | {:.1} | {:.0} % |",
        each * groups,
        loaded.median,
        loaded.slowest,
        syncs / args.seconds as f64,
        // Each write is synced by the three nodes.
        3.0 * loaded.writes as f64 / syncs.max(1.0),
        difference(|figures| figures.cpu.as_secs_f64()) / args.seconds as f64 * 100.0,
    );
    cluster.stop()
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
