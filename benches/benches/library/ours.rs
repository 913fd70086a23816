//! Three of our nodes: the library's default node, with the store and the transport in memory that come with it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use raft_core::{Entries, EntryKind, LogIndex, NodeId};
use raft_net::memory::MemoryNetwork;
use raft_node::{Raft, Replies, SnapshotPolicy, StateMachine, Work};
use raft_storage::MemoryStorage;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::load::{Client, Cluster};
use crate::sum::Sum;
use crate::{COMPACT_AFTER, ELECTION_TIMEOUT, HEARTBEAT, KEEP, NODES};

/// Batches of messages that may wait for a node.
const INBOX: usize = 4096;
/// How long a node may take to have what the others have.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Ours {
    nodes: Vec<(Raft, Machine)>,
    /// Goes last. Nothing is ever written there: a state machine that says how far it is durable needs no files of snapshots.
    _dirs: Vec<TempDir>,
}

/// Adds up. What it says about durability lets the log be compacted.
#[derive(Clone, Debug, Default)]
struct Machine {
    applied: LogIndex,
    sum: Sum,
    /// For whoever looks at it from outside.
    shown: Arc<Mutex<(LogIndex, Sum)>>,
}

impl Machine {
    fn shown(&self) -> (LogIndex, Sum) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateMachine for Machine {
    type Error = Infallible;

    fn applied(&self) -> LogIndex {
        self.applied
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Infallible> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                let reply = self.sum.apply(entry.payload);
                replies.push_with(|out| out.extend_from_slice(&reply.to_le_bytes()));
            }
            self.applied = entry.index;
        }
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = (self.applied, self.sum);
        Ok(())
    }

    fn is_prompt(&self, _: Work<'_>) -> bool {
        true
    }

    fn durable(&mut self) -> Option<LogIndex> {
        Some(self.applied)
    }

    fn query(&mut self, _: &[u8], answer: &mut BytesMut) -> Result<(), Infallible> {
        answer.extend_from_slice(&self.sum.commands.to_le_bytes());
        Ok(())
    }
}

/// Starts the nodes, and waits for a leader.
pub(crate) async fn start() -> Result<Ours> {
    let network = MemoryNetwork::new();
    let ids = || (1..=NODES).map(NodeId);
    let (mut nodes, mut dirs) = (Vec::new(), Vec::new());
    for id in ids() {
        let (inbound, inbox) = mpsc::channel(INBOX);
        let (machine, dir) = (Machine::default(), tempfile::tempdir()?);
        let policy = SnapshotPolicy {
            entries: COMPACT_AFTER,
            bytes: 0,
            keep_entries: KEEP,
            keep_bytes: 1 << 32,
            ..SnapshotPolicy::default()
        };
        let builder = Raft::builder(machine.clone())
            .identity(id, "library")
            .peers(ids().map(|id| (id, format!("memory:{id}"))))
            .data_dir(dir.path())
            .snapshot_policy(policy)
            .tune(|config| (config.election_timeout, config.heartbeat_interval) = (ELECTION_TIMEOUT, HEARTBEAT));
        let raft = builder.start_with(MemoryStorage::new(), network.endpoint(id, inbound), inbox).await?;
        nodes.push((raft, machine));
        dirs.push(dir);
    }
    let mut leader = nodes.first().map(|(raft, _): &(Raft, Machine)| raft.leader()).context("there are no nodes")?;
    tokio::time::timeout(PATIENCE, leader.wait_for(Option::is_some)).await.context("no leader")??;
    Ok(Ours { nodes, _dirs: dirs })
}

impl Ours {
    fn leader(&self) -> Result<&Raft> {
        let mut rafts = self.nodes.iter().map(|(raft, _)| raft);
        rafts.find(|raft| *raft.leader().borrow() == Some(raft.id())).context("nobody leads")
    }
}

impl Cluster for Ours {
    const NAME: &'static str = "ours";
    type Client = Raft;

    async fn client(&self) -> Result<Raft> {
        self.leader().cloned()
    }

    async fn term(&self) -> Result<u64> {
        Ok(self.leader()?.status().await?.current_term.0)
    }

    async fn finish(self) -> Result<Vec<Sum>> {
        let last = self.leader()?.status().await?.last_log.index;
        let begin = Instant::now();
        while self.nodes.iter().any(|(_, machine)| machine.shown().0 < last) {
            ensure!(begin.elapsed() < PATIENCE, "a node does not apply everything within {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.nodes.iter().for_each(|(raft, _)| raft.shutdown());
        let mut sums = Vec::new();
        for (raft, machine) in &self.nodes {
            raft.stopped().await?;
            sums.push(machine.shown().1);
        }
        Ok(sums)
    }
}

impl Client for Raft {
    async fn write(&self, command: Bytes) -> Result<u64> {
        let reply = self.propose(command).await?.reply;
        let (number, _) = reply.split_first_chunk().context("a reply of another length")?;
        Ok(u64::from_le_bytes(*number))
    }
}
