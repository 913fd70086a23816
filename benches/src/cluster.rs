//! The cluster under load: who its nodes are, how to reach them, what they say about themselves.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use raft_core::NodeId;
use raft_net::TlsIdentity;
use raft_node::client::protocol::NodeStatus;
use raft_node::client::{Client, ClientConfig};
use serde::Deserialize;

/// How long the cluster may be without a leader before the measurement is given up.
const LEADER_WITHIN: Duration = Duration::from_secs(10);

/// What `cluster.json` says; `cargo xtask cluster` and `cargo xtask bench` write it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Description {
    /// Name of the cluster.
    pub(crate) cluster: String,
    /// The nodes, in the order of their ids.
    pub(crate) nodes: Vec<Node>,
    /// The program that its nodes run.
    #[serde(default)]
    pub(crate) program: Option<PathBuf>,
    client: ClientFiles,
}

/// One node's process.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Node {
    /// The node's id.
    pub(crate) id: u64,
    /// Where it listens (UDP).
    pub(crate) listen: SocketAddr,
    /// Where its log and its data lie.
    pub(crate) data_dir: PathBuf,
    /// Its process, if it runs.
    pub(crate) pid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
struct ClientFiles {
    /// For the client subcommands of the program.
    #[serde(default)]
    config: Option<PathBuf>,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Description {
    /// Reads `cluster.json`.
    pub(crate) fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let description: Description =
            serde_json::from_str(&text).with_context(|| format!("{} is no cluster description", path.display()))?;
        if description.nodes.is_empty() {
            bail!("{} names no nodes", path.display());
        }
        Ok(description)
    }

    /// Describes a cluster; `files` are the authority's certificate, and the client's certificate and key.
    pub(crate) fn new(cluster: &str, nodes: Vec<Node>, files: [PathBuf; 3]) -> Self {
        let [ca, cert, key] = files;
        Description {
            cluster: cluster.to_owned(),
            nodes,
            program: None,
            client: ClientFiles { config: None, ca, cert, key },
        }
    }

    /// The client's identity.
    pub(crate) fn tls(&self) -> Result<TlsIdentity> {
        let ClientFiles { ca, cert, key, .. } = &self.client;
        TlsIdentity::load(ca, cert, key).context("the client's certificate cannot be used")
    }

    /// Where a node listens.
    pub(crate) fn address(&self, id: NodeId) -> Result<SocketAddr> {
        let node = self.nodes.iter().find(|node| node.id == id.0);
        Ok(node.with_context(|| format!("node {id} is not in the cluster description"))?.listen)
    }
}

/// Who leads, and since which election. Two equal ones with nothing but time in between: there was no election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leadership {
    /// The leader.
    pub(crate) leader: NodeId,
    /// The term it was elected in.
    pub(crate) term: u64,
}

impl std::fmt::Display for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node {} in term {}", self.leader, self.term)
    }
}

/// Asks the nodes about themselves, beside the load.
pub(crate) struct Observer {
    client: Client,
    /// The nodes' own program and the client's configuration file: another build may tell about itself in words that this one does not understand.
    program: Option<(PathBuf, PathBuf)>,
    /// Whether that was found to be so.
    is_foreign: Cell<bool>,
}

impl Observer {
    /// Does not connect yet. Must be called within a tokio runtime.
    pub(crate) fn new(description: &Description, tls: TlsIdentity) -> Result<Self> {
        let nodes = description.nodes.iter().map(|node| (NodeId(node.id), node.listen.to_string())).collect();
        let client = Client::new(ClientConfig::new(nodes, tls)).context("no client")?;
        let program = description.program.clone().zip(description.client.config.clone());
        Ok(Observer { client, program, is_foreign: Cell::new(false) })
    }

    /// What one node says of itself.
    ///
    /// # Errors
    /// It cannot be reached.
    pub(crate) async fn status_of(&self, node: NodeId) -> Result<NodeStatus> {
        Ok(self.client.status(node).await?)
    }

    /// What every node says of itself.
    ///
    /// # Errors
    /// A node cannot be reached: figures of a cluster that lost a node mean nothing.
    pub(crate) async fn status(&self) -> Result<BTreeMap<NodeId, NodeStatus>> {
        if !self.is_foreign.get() {
            let answers = self.client.status_of_all().await;
            let answers: Result<_> = answers
                .into_iter()
                .map(|(id, answer)| Ok((id, answer.with_context(|| format!("node {id}"))?)))
                .collect();
            if answers.is_ok() || self.program.is_none() {
                return answers;
            }
        }
        let Some((program, config)) = &self.program else { bail!("nobody knows the nodes' program") };
        let status = status_by(program, config).await?;
        self.is_foreign.set(true);
        Ok(status)
    }

    /// Waits until there is a leader that all nodes agree on.
    pub(crate) async fn leadership(&self) -> Result<Leadership> {
        self.leadership_within(LEADER_WITHIN).await
    }

    /// The same, no longer than `patience`.
    pub(crate) async fn leadership_within(&self, patience: Duration) -> Result<Leadership> {
        let begin = tokio::time::Instant::now();
        loop {
            let last = match self.status().await {
                Ok(status) => match agreed(&status) {
                    Some(leadership) => return Ok(leadership),
                    None => "the nodes do not agree on a leader".to_owned(),
                },
                Err(error) => format!("{error:#}"),
            };
            if begin.elapsed() > patience {
                bail!("no leader within {} s: {last}", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Ends the connections.
    pub(crate) async fn close(&self) {
        self.client.close().await;
    }
}

/// What the nodes' own program finds out about them.
async fn status_by(program: &Path, config: &Path) -> Result<BTreeMap<NodeId, NodeStatus>> {
    let mut command = Command::new(program);
    command.args(["status", "--json", "--timeout", "1s", "--config"]).arg(config).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await?;
    let output = output.with_context(|| format!("cannot start {}", program.display()))?;
    let error = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
    parse_status(&output.stdout).with_context(|| format!("`{} status`: {}", program.display(), error()))
}

/// Takes out of the JSON what is needed here; every build has had that.
fn parse_status(json: &[u8]) -> Result<BTreeMap<NodeId, NodeStatus>> {
    #[derive(Deserialize)]
    struct Answers {
        nodes: Vec<Answer>,
    }
    #[derive(Deserialize)]
    struct Answer {
        node: NodeId,
        reachable: bool,
        #[serde(default)]
        role: String,
        #[serde(default)]
        term: u64,
        leader: Option<NodeId>,
        #[serde(default)]
        metrics: BTreeMap<String, u64>,
    }
    let answers: Answers = serde_json::from_slice(json)?;
    let status = |answer: Answer| {
        let Answer { node, reachable, role, term, leader, metrics } = answer;
        ensure!(reachable, "node {node} cannot be reached");
        Ok((node, NodeStatus { node, role, term, leader, metrics, ..NodeStatus::default() }))
    };
    answers.nodes.into_iter().map(status).collect()
}

/// The leadership in which all nodes agree, if they do.
pub(crate) fn agreed(status: &BTreeMap<NodeId, NodeStatus>) -> Option<Leadership> {
    let term = status.values().map(|node| node.term).max()?;
    let leader = status.values().find(|node| node.role == "leader" && node.term == term)?.node;
    let all = status.values().all(|node| node.term == term && node.leader == Some(leader));
    all.then_some(Leadership { leader, term })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, role: &str, term: u64, leader: Option<u64>) -> (NodeId, NodeStatus) {
        let leader = leader.map(NodeId);
        (NodeId(id), NodeStatus { node: NodeId(id), role: role.into(), term, leader, ..NodeStatus::default() })
    }

    #[test]
    fn only_a_leader_of_the_newest_term_that_all_follow_counts() {
        let good = [node(1, "follower", 3, Some(2)), node(2, "leader", 3, Some(2))];
        assert_eq!(agreed(&good.into()), Some(Leadership { leader: NodeId(2), term: 3 }));
        let behind = [node(1, "follower", 3, Some(2)), node(2, "leader", 2, Some(2))];
        assert_eq!(agreed(&behind.into()), None);
        let unaware = [node(1, "follower", 3, None), node(2, "leader", 3, Some(2))];
        assert_eq!(agreed(&unaware.into()), None);
        assert_eq!(agreed(&BTreeMap::new()), None);
    }

    #[test]
    fn a_status_of_another_build_is_understood_as_far_as_it_is_needed() {
        let json = br#"{"nodes":[{"node":1,"reachable":true,"role":"leader","term":3,"leader":1,"new":[7],"metrics":{"log.syncs":9}}]}"#;
        let status = parse_status(json).unwrap();
        assert_eq!(agreed(&status), Some(Leadership { leader: NodeId(1), term: 3 }));
        assert_eq!(status[&NodeId(1)].metrics["log.syncs"], 9);
        let error = parse_status(br#"{"nodes":[{"node":2,"reachable":false,"error":"x"}]}"#).unwrap_err().to_string();
        assert!(error.contains("node 2 cannot be reached"), "{error}");
        assert!(parse_status(b"").is_err());
    }

    #[test]
    fn a_description_needs_nodes() {
        let dir = std::env::temp_dir().join(format!("raft-load-test-{}", std::process::id()));
        fs::write(&dir, r#"{"cluster":"c","nodes":[],"client":{"ca":"a","cert":"b","key":"c"}}"#).unwrap();
        let error = Description::load(&dir).unwrap_err().to_string();
        fs::remove_file(&dir).unwrap();
        assert!(error.contains("names no nodes"), "{error}");
    }
}
