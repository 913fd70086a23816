//! Clusters of several sizes on the same machine: what a further follower costs.

use anyhow::{Result, ensure};

use super::outcome::Outcome;
use super::sweep::{Extent, Sweep};
use super::{Arena, Stage};
use crate::run::Bench;

const KEYS: u64 = 10_000;

/// Measures writes to clusters of several sizes, one after the other, with few and with many clients.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    #[command(flatten)]
    extent: Extent,
    /// Numbers of nodes
    #[arg(long, value_delimiter = ',', default_value = "1,3,5,7", value_parser = clap::value_parser!(u64).range(1..=31))]
    nodes: Vec<u64>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.value_size <= raft_node::kv::MAX_VALUE_BYTES, "--value-size is too large");
    let mut sweep = Sweep::new("nodes", &args.extent)?;
    for &count in &args.nodes {
        let dir = args.stage.dir.join(format!("{count}-nodes"));
        let (arena, _) = Arena::open(&args.stage, &dir, count, "").await?;
        let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
        for round in 0..args.extent.repetitions {
            sweep.measure(&bench, (count as f64, &count.to_string()), (args.value_size, KEYS), round).await?;
        }
        bench.close().await;
        arena.close().await;
    }
    let mut outcome = Outcome::new("nodes", &args.stage.dir, &Sweep::header("nodes"));
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.note(
        "all nodes and the load generator share the cores of one machine: a further node takes some from the others",
    );
    sweep.report(&mut outcome, "nodes");
    Ok(outcome)
}
