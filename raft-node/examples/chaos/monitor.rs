//! Watches the nodes from outside: who leads, since when, and that no term has two leaders.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use raft_core::NodeId;
use raft_node::client::Client;
use raft_node::client::protocol::NodeStatus;
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// How often each node is asked.
const EVERY: Duration = Duration::from_millis(50);
/// How long it gets to answer.
const PATIENCE: Duration = Duration::from_millis(400);

#[derive(Default)]
struct Known {
    /// What each node said last; nothing when it did not answer the last time.
    now: BTreeMap<NodeId, NodeStatus>,
    /// Those whose agreement counts.
    members: BTreeSet<NodeId>,
    /// Who led in each term.
    leaders: BTreeMap<u64, NodeId>,
    /// Of each counter of each node in [`COUNTED`], what was counted in former lives and in this one. What happened between the last look at a process and
    /// its end is missing.
    counters: BTreeMap<(NodeId, &'static str), (u64, u64)>,
    violations: Vec<String>,
}

/// The nodes' counters that are added up over all their lives.
const COUNTED: [&str; 4] = [MADE, SENT, RESTORED, REJECTED];
/// Times that a state was made durable, so that the log could be compacted.
pub(crate) const MADE: &str = "snapshot.made";
/// Snapshots sent to others, completely.
pub(crate) const SENT: &str = "snapshot.sent";
/// Snapshots of others that were taken over.
pub(crate) const RESTORED: &str = "snapshot.restored";
/// Connections that were refused.
pub(crate) const REJECTED: &str = "net.rejected";

/// Asks all nodes again and again until it is dropped.
pub(crate) struct Monitor {
    known: Arc<Mutex<Known>>,
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts asking.
    pub(crate) fn start(cluster: &Cluster) -> Result<Monitor> {
        let known = Arc::new(Mutex::new(Known::default()));
        let mut tasks = JoinSet::new();
        for id in cluster.ids() {
            tasks.spawn(watch(cluster.client_of(id, PATIENCE)?, id, known.clone()));
        }
        Ok(Monitor { known, _tasks: tasks })
    }

    /// These are to agree, the others may say what they like.
    pub(crate) fn expect(&self, members: impl IntoIterator<Item = NodeId>) {
        self.known().members = members.into_iter().collect();
    }

    /// What the leader of the newest term says of itself.
    pub(crate) fn leader_status(&self) -> Option<NodeStatus> {
        self.known().leader().cloned()
    }

    /// What a node said, if it answered the last time that it was asked.
    pub(crate) fn status(&self, id: NodeId) -> Option<NodeStatus> {
        self.known().now.get(&id).cloned()
    }

    /// Who belongs to the cluster, according to the leader or to whom knows of the newest term.
    pub(crate) fn members(&self) -> Vec<NodeId> {
        let known = self.known();
        let newest = known.now.values().max_by_key(|s| (s.term, s.role == "leader", s.membership_index));
        let members = newest.map(|status| status.members.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
        if members.is_empty() { known.members.iter().copied().collect() } else { members }
    }

    /// How often something was counted by all nodes in all their lives, as far as it was seen.
    pub(crate) fn counted(&self, name: &str) -> u64 {
        let known = self.known();
        known.counters.iter().filter(|((_, counter), _)| *counter == name).map(|(_, (past, now))| past + now).sum()
    }

    /// The leader of the newest term that anybody knows of.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.known().leader().map(|status| status.node)
    }

    /// The newest term.
    pub(crate) fn term(&self) -> u64 {
        self.known().now.values().map(|status| status.term).max().unwrap_or(0)
    }

    /// Waits until all nodes follow one leader.
    pub(crate) async fn agreement(&self, patience: Duration) -> Result<NodeId> {
        let begin = Instant::now();
        loop {
            {
                let known = self.known();
                let newest = known.expected().max_by_key(|status| status.term);
                let follow = |leader| known.expected().all(|status| status.leader == Some(leader));
                if let Some(NodeStatus { leader: Some(leader), term, .. }) = newest
                    && known.is_complete()
                    && known.expected().all(|status| status.term == *term)
                    && follow(*leader)
                {
                    return Ok(*leader);
                }
            }
            if begin.elapsed() > patience {
                bail!("the nodes do not follow one leader within {patience:?}: {}", self.describe());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until all nodes have applied the same, and as much as is committed.
    pub(crate) async fn convergence(&self, patience: Duration) -> Result<u64> {
        let begin = Instant::now();
        loop {
            {
                let known = self.known();
                let last = known.expected().map(|status| status.last_index).max().unwrap_or(0);
                let same = |status: &NodeStatus| {
                    [status.last_index, status.durable_index, status.commit_index, status.applied_index]
                        .iter()
                        .all(|index| *index == last)
                };
                if known.is_complete() && known.expected().all(same) {
                    return Ok(last);
                }
            }
            if begin.elapsed() > patience {
                bail!("the nodes do not converge within {patience:?}: {}", self.describe());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Forgets what the nodes said before: the next answers count.
    pub(crate) fn forget(&self) {
        self.known().now.clear();
    }

    /// How many terms had a leader that was seen.
    pub(crate) fn elections(&self) -> usize {
        self.known().leaders.len()
    }

    /// What is wrong with the elections.
    pub(crate) fn violations(&self) -> Vec<String> {
        self.known().violations.clone()
    }

    /// One line about every node.
    pub(crate) fn describe(&self) -> String {
        let known = self.known();
        let one = |s: &NodeStatus| {
            let leader = s.leader.map_or("none".to_owned(), |id| id.to_string());
            format!(
                "node {}: {} in term {}, leader {leader}, last {}, durable {}, committed {}, applied {}",
                s.node, s.role, s.term, s.last_index, s.durable_index, s.commit_index, s.applied_index
            )
        };
        let lines: Vec<String> = known.now.values().map(one).collect();
        if lines.is_empty() { "no node answers".to_owned() } else { lines.join("; ") }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(client: Client, id: NodeId, known: Arc<Mutex<Known>>) {
    loop {
        let answer = client.status(id).await;
        known.lock().unwrap_or_else(PoisonError::into_inner).learn(id, answer.ok());
        tokio::time::sleep(EVERY).await;
    }
}

impl Known {
    fn leader(&self) -> Option<&NodeStatus> {
        self.now.values().filter(|status| status.role == "leader").max_by_key(|status| status.term)
    }

    /// What was said by those whose agreement counts.
    fn expected(&self) -> impl Iterator<Item = &NodeStatus> {
        self.members.iter().filter_map(|id| self.now.get(id))
    }

    /// Whether all of them have answered.
    fn is_complete(&self) -> bool {
        self.members.iter().all(|id| self.now.contains_key(id))
    }

    fn learn(&mut self, id: NodeId, status: Option<NodeStatus>) {
        let Some(status) = status else {
            self.now.remove(&id);
            return;
        };
        if status.role == "leader" {
            let leader = *self.leaders.entry(status.term).or_insert(id);
            if leader != id {
                self.violations.push(format!("term {} has two leaders: {leader} and {id}", status.term));
            }
        }
        for name in COUNTED {
            let now = status.metrics.get(name).copied().unwrap_or(0);
            let (past, last) = self.counters.entry((id, name)).or_default();
            if now < *last {
                // Another process.
                *past += *last;
            }
            *last = now;
        }
        self.now.insert(id, status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node: u64, role: &str, term: u64) -> NodeStatus {
        NodeStatus { node: NodeId(node), role: role.into(), term, ..NodeStatus::default() }
    }

    #[test]
    fn two_leaders_of_a_term_are_noticed() {
        let mut known = Known::default();
        known.learn(NodeId(1), Some(status(1, "leader", 3)));
        known.learn(NodeId(2), Some(status(2, "leader", 4)));
        known.learn(NodeId(1), None);
        known.learn(NodeId(1), Some(status(1, "follower", 4)));
        assert!(known.violations.is_empty());
        known.learn(NodeId(1), Some(status(1, "leader", 4)));
        assert_eq!(known.violations.len(), 1);
    }

    #[test]
    fn what_a_node_counts_is_added_up_over_its_lives() {
        let mut known = Known::default();
        for sent in [1, 3, 3, 0, 2] {
            let metrics = [(SENT.to_owned(), sent)].into();
            known.learn(NodeId(1), Some(NodeStatus { metrics, ..status(1, "follower", 3) }));
            known.learn(NodeId(1), None);
        }
        assert_eq!(known.counters[&(NodeId(1), SENT)], (3, 2));
    }

    #[test]
    fn only_members_are_to_agree() {
        let mut known = Known { members: [NodeId(1), NodeId(2)].into(), ..Known::default() };
        known.learn(NodeId(1), Some(status(1, "leader", 3)));
        known.learn(NodeId(3), Some(status(3, "follower", 0)));
        assert!(!known.is_complete());
        known.learn(NodeId(2), Some(status(2, "follower", 3)));
        assert!(known.is_complete() && known.expected().count() == 2);
    }
}
