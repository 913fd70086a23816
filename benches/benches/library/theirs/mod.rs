//! Three nodes of openraft, with the least that it can be given: a log, a state machine and a network that cost next to nothing.

mod log;
mod network;
mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use openraft::{Config, EmptyNode, Raft, SnapshotPolicy};

use self::log::Log;
use self::network::{Links, Nodes};
use self::state::State;
use crate::load::{Client, Cluster};
use crate::sum::Sum;
use crate::{COMPACT_AFTER, ELECTION_TIMEOUT, HEARTBEAT, KEEP, NODES};

/// How long the nodes may take to agree.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(30));

openraft::declare_raft_types!(
    /// Commands are bytes that are never copied, replies a number.
    pub(crate) Types: D = Bytes, R = u64, Node = EmptyNode
);

pub(crate) struct Theirs {
    nodes: Vec<(Raft<Types>, State)>,
}

/// Starts the nodes, makes them a cluster, and waits for a leader.
pub(crate) async fn start(max_payload_entries: u64) -> Result<Theirs> {
    let millis = |time: Duration| time.as_millis() as u64;
    let config = Config {
        cluster_name: "library".to_owned(),
        election_timeout_min: millis(ELECTION_TIMEOUT),
        election_timeout_max: 2 * millis(ELECTION_TIMEOUT),
        heartbeat_interval: millis(HEARTBEAT),
        max_payload_entries,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(COMPACT_AFTER),
        max_in_snapshot_log_to_keep: KEEP,
        // As in its own benchmark: fewer purges, each of more.
        purge_batch_size: 1024,
        // A follower is to get entries, not snapshots, as long as there are any.
        replication_lag_threshold: u64::MAX / 2,
        ..Config::default()
    };
    let config = Arc::new(config.validate()?);
    let all: Nodes = Arc::new(OnceLock::new());
    let mut nodes = Vec::new();
    for id in 1..=NODES {
        let state = State::default();
        let raft = Raft::new(id, config.clone(), Links(all.clone()), Log::default(), state.clone()).await?;
        nodes.push((raft, state));
    }
    let ids: BTreeSet<u64> = (1..=NODES).collect();
    // Nothing has been sent before.
    let _ = all.set((1..=NODES).zip(&nodes).map(|(id, (raft, _))| (id, raft.clone())).collect::<BTreeMap<_, _>>());
    let (first, _) = nodes.first().context("there are no nodes")?;
    first.initialize(ids).await?;
    first.wait(PATIENCE).metrics(|metrics| metrics.current_leader.is_some(), "a leader").await?;
    Ok(Theirs { nodes })
}

impl Theirs {
    fn leader(&self) -> Result<&Raft<Types>> {
        let leads = |raft: &Raft<Types>| {
            let metrics = raft.metrics();
            let metrics = metrics.borrow();
            metrics.current_leader == Some(metrics.id)
        };
        self.nodes.iter().map(|(raft, _)| raft).find(|raft| leads(raft)).context("nobody leads")
    }
}

impl Cluster for Theirs {
    const NAME: &'static str = "openraft";
    type Client = Raft<Types>;

    async fn client(&self) -> Result<Raft<Types>> {
        self.leader().cloned()
    }

    async fn term(&self) -> Result<u64> {
        Ok(self.leader()?.metrics().borrow().current_term)
    }

    async fn finish(self) -> Result<Vec<Sum>> {
        let last = self.leader()?.metrics().borrow().last_log_index;
        let mut sums = Vec::new();
        for (raft, _) in &self.nodes {
            raft.wait(PATIENCE).applied_index_at_least(last, "everything applied").await?;
        }
        for (raft, state) in &self.nodes {
            raft.shutdown().await?;
            sums.push(state.sum());
        }
        Ok(sums)
    }
}

impl Client for Raft<Types> {
    async fn write(&self, command: Bytes) -> Result<u64> {
        Ok(self.client_write(command).await?.data)
    }
}
