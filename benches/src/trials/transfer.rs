//! Leadership is handed over while many clients write: how long they wait.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_core::NodeId;
use raft_node::client::Error;

use super::outcome::{Outcome, Quantiles, millis};
use super::writers::{Writers, longest_gap, longest_write};
use super::{Arena, Stage};

/// What follows from a transfer shows within this time.
const AFTERMATH: Duration = Duration::from_millis(300);
/// Between two transfers.
const REST: Duration = Duration::from_millis(300);
/// How long a transfer may take to be called complete.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands leadership over again and again, while clients write: how long their writes pause, and whether one fails.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// How often
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    transfers: u32,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(2..=9))]
    nodes: u64,
    /// Clients that write
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let Args { stage, transfers, nodes, clients, value_size } = args;
    let mut outcome = Outcome::new("transfer", &stage.dir, &["what", "times", "p50 ms", "p99 ms", "max ms"]);
    outcome.setting("nodes", nodes.to_string());
    outcome.setting("clients", clients.to_string());
    outcome.setting("value bytes", value_size.to_string());
    let (mut arena, _) = Arena::open(stage, &stage.dir, *nodes, "").await?;
    let writers = Writers::start(&arena.nodes, *clients as usize, *value_size)?;
    let operator = arena.nodes.client(|config| config.timeout = PATIENCE)?;
    let (mut took, mut pauses, mut longest) = (Vec::new(), Vec::new(), Vec::new());
    let mut timed_out = 0_u32;
    let begun = Instant::now();
    for number in 1..=*transfers {
        let before = arena.settled().await?;
        tokio::time::sleep(REST).await;
        let to = next(&arena.nodes.ids(), before.leader);
        let begin = Instant::now();
        match operator.transfer_leadership(Some(to)).await {
            Ok(leads) => ensure!(leads == to, "node {leads} leads, not node {to}"),
            // The old leader leads on. That is a pause, too.
            Err(Error::BadRequest(why)) => {
                eprintln!("transfer: from {before} to node {to}: {why}");
                timed_out += 1;
            }
            Err(error) => return Err(error).with_context(|| format!("from {before} to node {to}")),
        }
        let done = Instant::now();
        tokio::time::sleep(AFTERMATH).await;
        let acks = writers.acks_since(begin);
        took.push(millis(done - begin));
        pauses.push(millis(longest_gap(&acks)));
        longest.push(millis(longest_write(&acks)));
        if number % 10 == 0 || number == *transfers {
            eprintln!("transfer: {number} of {transfers}");
        }
    }
    let (count, seconds) = (writers.count(), begun.elapsed().as_secs_f64());
    let failures = writers.stop().await;
    operator.close().await;
    arena.close().await;
    for (what, values) in [("transfer", &took), ("nobody's write acknowledged", &pauses), ("longest write", &longest)] {
        let [p50, p99, max] = Quantiles::of(values.iter().copied()).cells();
        outcome.row(vec![what.into(), transfers.to_string(), p50, p99, max]);
    }
    outcome.note(format!("{count} writes, {:.0} a second with all transfers", count as f64 / seconds));
    outcome.at_most("p99 of the pause", "ms", Quantiles::of(pauses.iter().copied()).at(0.99), 100.0);
    outcome.at_most(
        "p99 of the longest write of a transfer",
        "ms",
        Quantiles::of(longest.iter().copied()).at(0.99),
        100.0,
    );
    outcome.at_most("transfers that did not come about in time", "", f64::from(timed_out), 0.0);
    outcome.never("failed writes", failures.len());
    failures.iter().take(3).for_each(|why| outcome.note(format!("failed: {why}")));
    for (name, values) in [("transfer_ms", took), ("pause_ms", pauses), ("longest_write_ms", longest)] {
        outcome.samples(name, values);
    }
    Ok(outcome)
}

/// The node after this one, round and round.
fn next(ids: &[NodeId], leader: NodeId) -> NodeId {
    let later = ids.iter().find(|id| **id > leader);
    later.or(ids.first()).copied().unwrap_or(leader)
}
