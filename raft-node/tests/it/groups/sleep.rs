//! Groups in which nothing happens: they cost nothing, and wake when they are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use raft_core::{GroupId, NodeId};
use raft_net::memory::MemoryNetwork;
use raft_node::{Consistency, Fatal, GroupError, GroupOptions, Node, Raft};
use raft_storage::MemoryStorage;
use tokio::sync::mpsc;

use super::machine::{Behaviour, Numbers};
use super::nodes::{PATIENCE, Trio, numbers, write};
use super::{IDS, group};

/// Goes to sleep soon.
fn sleepy() -> GroupOptions {
    GroupOptions::new().founders(IDS).tune(|config| config.quiesce_after = Some(config.heartbeat_interval * 2))
}

/// Waits until all groups sleep on these nodes.
async fn asleep(trio: &Trio, ids: &[NodeId]) {
    trio.eventually("all fall asleep", async || {
        for id in ids {
            let groups = trio.node(*id).groups().await.expect("it runs");
            if !groups.iter().all(|status| status.quiesced) {
                return false;
            }
        }
        true
    })
    .await;
}

fn frames(trio: &Trio) -> u64 {
    let sent = |id| trio.node(id).metrics().net.clone().expect("QUIC").snapshot().sent;
    IDS.iter().flat_map(|id| sent(*id)).map(|traffic| traffic.frames).sum()
}

#[tokio::test]
async fn groups_that_sleep_send_nothing_and_wake_for_a_write() {
    let trio = Trio::start().await;
    for id in 1..=20 {
        for node in IDS {
            trio.node(node).create_group(group(id), Numbers::default(), sleepy()).await.expect("opened");
        }
        write(&trio, group(id), 1).await;
    }
    asleep(&trio, &IDS).await;
    let before = frames(&trio);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(frames(&trio), before, "not one message in two seconds");
    write(&trio, group(7), 2).await;
    assert!(frames(&trio) > before);
    let awake = trio.leader(group(7)).await;
    let groups = trio.node(awake.id()).groups().await.expect("it runs");
    let others = groups.iter().filter(|status| status.group != group(7));
    assert!(others.into_iter().all(|status| status.quiesced), "the others sleep on: {groups:?}");
}

#[tokio::test]
async fn whoever_stops_or_fails_does_not_leave_the_others_asleep() {
    let trio = Trio::start().await;
    let (handed_over, failed) = (group(1), group(2));
    // Keeps the links: the end of one would wake everybody.
    trio.create_everywhere(group(3)).await;
    for node in IDS {
        trio.node(node).create_group(handed_over, Numbers::default(), sleepy()).await.expect("opened");
        let machine = Numbers::new(Behaviour::FailsWhenAsked);
        trio.node(node).create_group(failed, machine, sleepy()).await.expect("opened");
    }
    for id in [handed_over, failed] {
        trio.lead(id, NodeId(1)).await;
    }
    asleep(&trio, &IDS).await;
    trio.node(NodeId(1)).stop_group(handed_over).await.expect("stopped");
    write(&trio, handed_over, 1).await;
    // A stale read asks nobody else, and wakes nobody.
    let raft = trio.node(NodeId(1)).group(failed).await.expect("open");
    assert!(raft.read("", Consistency::Stale).await.is_err());
    let error = raft.stopped().await.expect_err("it failed");
    assert!(matches!(&*error, Fatal::StateMachine(_)), "{error}");
    write(&trio, failed, 1).await;
}

/// Three nodes without disks and sockets, that know the others' addresses or not: in memory, ids are enough.
async fn in_memory(know_addresses: bool) -> (MemoryNetwork, BTreeMap<NodeId, Node>) {
    let network = MemoryNetwork::new();
    let mut nodes = BTreeMap::new();
    for id in IDS {
        let (inbound, inbox) = mpsc::channel(4096);
        let transport = network.endpoint(id, inbound);
        let peers = IDS.into_iter().filter(|_| know_addresses).map(|id| (id, format!("memory:{id}")));
        let builder = Node::builder().identity(id, "groups").peers(peers);
        let node = builder.start_with(MemoryStorage::new(), transport, inbox).await.expect("started");
        nodes.insert(id, node);
    }
    (network, nodes)
}

async fn eventually<R>(what: &str, get: impl AsyncFn() -> Option<R>) -> R {
    let start = Instant::now();
    loop {
        if let Some(found) = get().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The leader of the group among these nodes.
async fn leader(nodes: &BTreeMap<NodeId, Node>, among: &[NodeId], id: GroupId) -> Raft {
    eventually("a leader", async || {
        for node in among.iter().map(|id| &nodes[id]) {
            let raft = node.group(id).await.expect("open");
            let leads = raft.status().await.expect("it runs").leader == Some(node.id());
            if leads && raft.propose(Numbers::command(1)).await.is_ok() {
                return Some(raft);
            }
        }
        None
    })
    .await
}

#[tokio::test]
async fn a_link_that_is_lost_wakes_all_groups_that_relied_on_it() {
    all_wake(30, true).await;
}

/// Whoever brings a transport of his own need not have addresses.
#[tokio::test]
async fn a_link_that_is_lost_wakes_groups_whose_members_have_no_addresses() {
    all_wake(3, false).await;
}

async fn all_wake(groups: u64, know_addresses: bool) {
    let (network, nodes) = in_memory(know_addresses).await;
    let all: Vec<GroupId> = (1..=groups).map(GroupId).collect();
    for id in &all {
        for node in nodes.values() {
            node.create_group(*id, Numbers::default(), sleepy()).await.expect("opened");
        }
        let raft = leader(&nodes, &IDS, *id).await;
        if raft.id() != NodeId(1) {
            raft.transfer_leadership(Some(NodeId(1))).await.expect("it takes over");
        }
    }
    eventually("all fall asleep", async || {
        let mut asleep = true;
        for node in nodes.values() {
            asleep &= node.groups().await.expect("it runs").iter().all(|status| status.quiesced);
        }
        asleep.then_some(())
    })
    .await;
    let (delivered, others) = (network.delivered(), [NodeId(2), NodeId(3)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(network.delivered(), delivered, "all sleep");
    network.isolate(NodeId(1));
    for id in &all {
        leader(&nodes, &others, *id).await;
    }
    network.heal_all();
    for id in &all {
        let raft = nodes[&NodeId(1)].group(*id).await.expect("open");
        eventually("it follows", async || {
            (numbers(&raft, Consistency::Linearizable).await == Some(BTreeSet::from([1]))).then_some(())
        })
        .await;
    }
    for node in nodes.values() {
        node.shutdown();
        node.stopped().await.expect("nothing failed");
        assert!(matches!(node.groups().await, Err(GroupError::ShuttingDown)));
    }
}
