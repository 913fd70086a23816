//! Our library beside openraft, as programs embed them: three nodes in one process, logs in memory, messages handed over in memory, and clients that await one write
//! after another.
//!
//! This is the shape of openraft's own benchmark of a cluster: no disk, no network, no encoding. Both get the same: 256 bytes made anew for each write, the
//! same state machine, the same runtime threads for the clients, the same timeouts, logs compacted at the same lengths. What differs is how they are built.
//! openraft's nodes are tasks on the runtime of its clients, and share the entries themselves. Each of our nodes has threads of its own (for its loop, its
//! disk, its state machine), and copies a payload once, into the record that a disk and a network would take.
//!
//! Repetitions alternate, in an order that changes from round to round, and ratios are those of pairs made one right after the other.
#![forbid(unsafe_code)]

mod load;
mod ours;
mod report;
mod sum;
mod theirs;

#[allow(dead_code, unused_imports, reason = "the load generator needs and tests all of it")]
#[path = "../../src/machine.rs"]
mod machine;
#[allow(dead_code, unused_imports, reason = "the load generator needs and tests all of it")]
#[path = "../../src/ratio.rs"]
mod ratio;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::load::{Cluster, Measured, Times};
use crate::report::Row;

/// Bytes of a command.
const PAYLOAD: usize = 256;
/// Nodes of each cluster.
const NODES: u64 = 3;
/// No node of an idle machine has to wait longer for a leader; one that has so much to do that heartbeats are late is not taken for dead.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Entries after which a log is compacted, and of those that stay.
const COMPACT_AFTER: u64 = 20_000;
const KEEP: u64 = 10_000;
/// A repetition that fails is made again, but not for ever.
const TRIES: usize = 3;

/// Measures our library in turn with openraft.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: Vec<u32>,
    /// Seconds that each repetition measures
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Seconds of load before that
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Repetitions of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Threads of the runtime that the clients share with openraft's nodes [default: one for each core]
    #[arg(long)]
    workers: Option<usize>,
    /// Most entries that openraft sends at once; its own default is 300
    #[arg(long, default_value_t = 300)]
    openraft_entries: u64,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    ensure!(
        args.seconds > 0.0 && args.warm_up >= 0.0 && args.seconds + args.warm_up < 3600.0,
        "less than an hour each"
    );
    let workers = args.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .thread_name("clients")
        .build()
        .context("no runtime")?;
    let rows = runtime.block_on(measure(&args))?;
    runtime.shutdown_timeout(Duration::from_secs(1));
    report::show(&args, workers, &rows)
}

async fn measure(args: &Args) -> Result<Vec<Row>> {
    let ours = ours::start().await.context("our nodes do not start")?;
    let theirs = theirs::start(args.openraft_entries).await.context("openraft's nodes do not start")?;
    let times =
        Times { warm_up: Duration::from_secs_f64(args.warm_up), measured: Duration::from_secs_f64(args.seconds) };
    let mut rows: Vec<Row> = args.clients.iter().map(|&clients| Row::new(clients)).collect();
    for round in 0..args.repetitions {
        for row in &mut rows {
            for ours_now in [round % 2 == 0, round % 2 != 0] {
                let clients = row.clients;
                if ours_now {
                    row.ours.push(repetition(&ours, clients, &times).await?);
                } else {
                    row.theirs.push(repetition(&theirs, clients, &times).await?);
                }
            }
            eprintln!("library: round {} of {}, {row}", round + 1, args.repetitions);
        }
    }
    finish(ours).await?;
    finish(theirs).await?;
    Ok(rows)
}

/// One with an election in it is made again.
async fn repetition<C: Cluster>(cluster: &C, clients: u32, times: &Times) -> Result<Measured> {
    for _ in 0..TRIES {
        let term = cluster.term().await?;
        match load::run(cluster.client().await?, clients, times).await {
            Ok(measured) if cluster.term().await? == term => return Ok(measured),
            Ok(_) => eprintln!("library: {}: there was an election; again", C::NAME),
            Err(error) => eprintln!("library: {}: {error:#}; again", C::NAME),
        }
    }
    anyhow::bail!("{}: {TRIES} repetitions in a row were of no use", C::NAME)
}

/// Figures of a cluster that has not replicated everything would mean nothing.
async fn finish<C: Cluster>(cluster: C) -> Result<()> {
    let acknowledged = load::acknowledged::<C>();
    let sums = cluster.finish().await?;
    let first = sums.first().context("no nodes")?;
    ensure!(sums.iter().all(|sum| sum == first), "{}: the nodes differ: {sums:?}", C::NAME);
    ensure!(first.commands >= acknowledged, "{}: {acknowledged} acknowledged, but {first:?} applied", C::NAME);
    Ok(())
}
