//! The leader's disk stalls: how long it takes until another node leads and writes go on.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use raft_node::client::protocol::NodeStatus;

use super::outcome::{Outcome, Quantiles, millis};
use super::strace::{self, Stall};
use super::writers::{Writers, longest_gap, longest_write};
use super::{Arena, SETTLED_WITHIN, Stage};
use crate::cluster::Leadership;

/// Between two looks at who leads.
const LOOK: Duration = Duration::from_millis(10);
/// What is waited for after a stall has ended.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Holds up one fsync of the leader's log (strace): time until another node leads, and until writes go on.
///
/// Without strace, or where it may not attach to a process, this is skipped.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// How often
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    stalls: u32,
    /// How long, in milliseconds
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    millis: u64,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// Clients that write
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let Args { stage, stalls, nodes, clients, .. } = args;
    let mut outcome = Outcome::new("stall", &stage.dir, &["what", "times", "p50 ms", "p99 ms", "max ms"]);
    outcome.setting("stall ms", args.millis.to_string());
    outcome.setting("nodes", nodes.to_string());
    outcome.setting("clients", clients.to_string());
    if let Err(why) = strace::available() {
        outcome.note(format!("SKIPPED, nothing was measured: {why}"));
        return Ok(outcome);
    }
    let (mut arena, _) = Arena::open(stage, &stage.dir, *nodes, "").await?;
    let writers = Writers::start(&arena.nodes, *clients as usize, args.value_size)?;
    let (mut moved, mut gaps, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    for number in 1..=*stalls {
        let before = arena.settled().await?;
        tokio::time::sleep(AFTERMATH).await;
        let begin = Instant::now();
        let stall = Stall::begin(&arena.nodes, before.leader, Duration::from_millis(args.millis)).await?;
        let after = new_leader(&arena, before).await?;
        moved.push(millis(begin.elapsed()));
        tokio::time::sleep(Duration::from_millis(args.millis).saturating_sub(begin.elapsed()) + AFTERMATH).await;
        drop(stall);
        let acks = writers.acks_since(begin);
        gaps.push(millis(longest_gap(&acks)));
        longest.push(millis(longest_write(&acks)));
        eprintln!("stall: {number} of {stalls}: {after} leads, after {before}");
    }
    let failures = writers.stop().await;
    arena.close().await;
    for (what, values) in
        [("another node leads", &moved), ("no write acknowledged", &gaps), ("longest write", &longest)]
    {
        let [p50, p99, max] = Quantiles::of(values.iter().copied()).cells();
        outcome.row(vec![what.into(), stalls.to_string(), p50, p99, max]);
    }
    let worst = Quantiles::of(gaps.iter().copied()).at(1.0);
    outcome.at_most("longest time without a write (the stall itself)", "ms", worst, args.millis as f64);
    outcome.never("failed writes", failures.len());
    failures.iter().take(3).for_each(|why| outcome.note(format!("failed: {why}")));
    for (name, values) in [("moved_ms", moved), ("gap_ms", gaps), ("longest_write_ms", longest)] {
        outcome.samples(name, values);
    }
    Ok(outcome)
}

/// Waits until some node leads in a newer term.
async fn new_leader(arena: &Arena, before: Leadership) -> Result<Leadership> {
    let begin = Instant::now();
    while begin.elapsed() < SETTLED_WITHIN {
        for id in arena.nodes.ids() {
            let Ok(NodeStatus { role, term, .. }) = arena.observer.status_of(id).await else { continue };
            if role == "leader" && term > before.term {
                return Ok(Leadership { leader: id, term });
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    bail!("leadership does not move from {before}")
}
