//! Small and large values: from where on bytes cost more than writes do.

use anyhow::{Result, ensure};

use super::outcome::Outcome;
use super::sweep::{Extent, Sweep};
use super::{Arena, Stage};
use crate::run::Bench;

const NODES: u64 = 3;
/// Keys that are written, but no more than make up so many bytes: the state shall stay small beside the log.
const KEYS: u64 = 10_000;
const STATE: u64 = 64 << 20;

/// Measures writes with values of several sizes, in turn, with few and with many clients.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    #[command(flatten)]
    extent: Extent,
    /// Bytes of a value
    #[arg(long, value_delimiter = ',', default_value = "16,256,1024,4096,16384,65536")]
    sizes: Vec<usize>,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let limit = raft_node::kv::MAX_VALUE_BYTES;
    ensure!(args.sizes.iter().all(|size| (1..=limit).contains(size)), "--sizes must be from 1 to {limit}");
    let mut sweep = Sweep::new("payload", &args.extent)?;
    let (arena, _) = Arena::open(&args.stage, &args.stage.dir, NODES, "").await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    for round in 0..args.extent.repetitions {
        for &size in &args.sizes {
            let keys = KEYS.min(STATE / size as u64).max(1);
            sweep.measure(&bench, (size as f64, &name(size)), (size, keys), round).await?;
        }
    }
    bench.close().await;
    arena.close().await;
    let mut outcome = Outcome::new("payload", &args.stage.dir, &Sweep::header("value"));
    outcome.setting("nodes", NODES.to_string());
    sweep.report(&mut outcome, "bytes of a value");
    Ok(outcome)
}

fn name(size: usize) -> String {
    if size >= 1024 && size.is_multiple_of(1024) { format!("{} KiB", size / 1024) } else { format!("{size} B") }
}
