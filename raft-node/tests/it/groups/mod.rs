//! Many groups on the nodes of one cluster: RocksDB, QUIC and certificates are real, the state machines small.

mod disk;
mod machine;
mod nodes;
mod sleep;
mod threads;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use raft_core::{GroupId, MembershipChange, NodeId, Role};
use raft_node::{Consistency, Fatal, GroupError, GroupOptions, Raft, RequestError};
use tokio::task::JoinHandle;

use machine::{Behaviour, Numbers};
use nodes::{PATIENCE, Trio, numbers, write};

const IDS: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

fn group(id: u64) -> GroupId {
    GroupId(id)
}

#[tokio::test]
async fn groups_share_a_node_and_nothing_else() {
    let trio = Trio::start().await;
    let net = trio.node(NodeId(1)).metrics().net.clone().expect("QUIC");
    trio.create_everywhere(group(1)).await;
    trio.eventually("all are connected", async || net.snapshot().peers_connected == 2).await;
    let first = net.snapshot();
    for id in 2..=5 {
        trio.create_everywhere(group(id)).await;
    }
    for number in 0..20 {
        for id in 1..=5 {
            write(&trio, group(id), id * 1000 + number).await;
        }
    }
    for id in 1..=5 {
        let expected: BTreeSet<u64> = (0..20).map(|number| id * 1000 + number).collect();
        for node in IDS {
            let raft = trio.node(node).group(group(id)).await.expect("open");
            trio.eventually("each node has what was written to the group, and nothing else", async || {
                numbers(&raft, Consistency::Stale).await == Some(expected.clone())
            })
            .await;
        }
    }
    let listed = trio.node(NodeId(1)).groups().await.expect("it runs");
    assert_eq!(listed.iter().map(|status| status.group.0).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(listed.iter().all(|status| status.leader.is_some() && status.commit_index.0 >= 20), "{listed:?}");
    let all = net.snapshot();
    assert_eq!((all.peers_connected, all.connects), (2, first.connects), "one connection to each other node");
}

#[tokio::test]
async fn who_asks_for_what_is_not_possible_is_told_so() {
    let trio = Trio::start().await;
    let node = trio.node(NodeId(1));
    let alone = || GroupOptions::new().founders([NodeId(1)]);
    assert!(matches!(node.group(group(7)).await, Err(GroupError::Unknown { group: GroupId(7) })));
    assert!(matches!(node.stop_group(group(7)).await, Err(GroupError::Unknown { .. })));
    let too_large = alone().tune(|config| config.max_entry_bytes = 1 << 30);
    let refused = node.create_group(group(7), Numbers::default(), too_large).await.expect_err("too large");
    assert!(refused.to_string().contains("max_append_frame"), "{refused}");
    let too_much = alone().tune(|config| config.max_inflight_bytes = 1 << 30);
    let refused = node.create_group(group(7), Numbers::default(), too_much).await.expect_err("too much");
    assert!(refused.to_string().contains("append_queue_bytes"), "{refused}");
    let raft = node.create_group(group(7), Numbers::default(), alone()).await.expect("what failed leaves nothing");
    assert!(matches!(node.create_group(group(7), Numbers::default(), alone()).await, Err(GroupError::Exists { .. })));
    raft.leader().wait_for(Option::is_some).await.expect("it runs");
    node.stop_group(group(7)).await.expect("stopped");
    assert_eq!(raft.propose(vec![1]).await, Err(RequestError::ShuttingDown));
    let others = GroupOptions::new().founders([NodeId(1), NodeId(2)]);
    let refused = node.create_group(group(7), Numbers::default(), others).await.expect_err("it began with others");
    assert!(matches!(refused, GroupError::Start(_)), "{refused}");
    let again = node.create_group(group(7), Numbers::default(), alone()).await.expect("opened again");
    assert_eq!(raft.propose(vec![1]).await, Err(RequestError::ShuttingDown), "a handle of its former life");
    again.leader().wait_for(Option::is_some).await.expect("it runs");
    again.propose(vec![1]).await.expect("applied");
    node.shutdown();
    node.stopped().await.expect("nothing failed");
    assert!(matches!(node.groups().await, Err(GroupError::ShuttingDown)));
    let late = node.create_group(group(8), Numbers::default(), alone()).await;
    assert!(matches!(late, Err(GroupError::ShuttingDown)));
    again.stopped().await.expect("nothing failed");
}

#[tokio::test]
async fn a_node_that_stops_hands_over_and_opens_its_groups_again() {
    let mut trio = Trio::start().await;
    let all: Vec<GroupId> = (1..=6).map(GroupId).collect();
    for id in &all {
        trio.create_everywhere(*id).await;
        write(&trio, *id, 1).await;
    }
    // It leads two of them, whatever else.
    for id in &all[..2] {
        trio.lead(*id, NodeId(2)).await;
    }
    trio.stop(NodeId(2)).await;
    for id in &all {
        write(&trio, *id, 2).await;
    }
    trio.restart(NodeId(2)).await;
    assert_eq!(trio.node(NodeId(2)).groups().await.expect("it runs"), []);
    assert_eq!(trio.node(NodeId(2)).stored_groups().await.expect("it runs"), all);
    for id in &all {
        let raft = trio.create(NodeId(2), *id).await;
        trio.eventually("it catches up", async || {
            numbers(&raft, Consistency::Stale).await == Some(BTreeSet::from([1, 2]))
        })
        .await;
    }
    trio.lead(all[0], NodeId(2)).await;
    write(&trio, all[0], 3).await;
}

/// Writes to a group until it is told to stop, and fails the test when a write cannot be brought to its end.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Load {
    fn start(trio: &Arc<Trio>, id: GroupId) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (trio, ends, count) = (trio.clone(), stop.clone(), written.clone());
        let task = tokio::spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let number = count.load(Ordering::Relaxed);
                write(&trio, id, number).await;
                count.store(number + 1, Ordering::Relaxed);
            }
        });
        Load { stop, written, task }
    }

    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("every write was brought to its end");
        self.written.load(Ordering::Relaxed)
    }
}

#[tokio::test]
async fn groups_come_and_go_while_others_are_under_load() {
    let trio = Arc::new(Trio::start().await);
    for id in [1, 2] {
        trio.create_everywhere(group(id)).await;
    }
    let loads = [1, 2].map(|id| Load::start(&trio, group(id)));
    let id = group(3);
    for round in 0..5_u64 {
        trio.create_everywhere(id).await;
        write(&trio, id, round).await;
        // In another order each time, so that leaders and followers are stopped.
        for node in 0..3 {
            let node = trio.node(IDS[((node + round) % 3) as usize]);
            node.stop_group(id).await.expect("it was open");
            assert!(matches!(node.group(id).await, Err(GroupError::Unknown { .. })));
        }
    }
    trio.create_everywhere(id).await;
    write(&trio, id, 5).await;
    let raft = trio.leader(id).await;
    let found = numbers(&raft, Consistency::Linearizable).await.expect("it leads");
    assert_eq!(found, (0..=5).collect(), "what was acknowledged in any of its lives is there");
    for (load, id) in loads.into_iter().zip([1, 2]) {
        let written = load.end().await;
        let raft = trio.leader(group(id)).await;
        let found = numbers(&raft, Consistency::Linearizable).await.expect("it leads");
        assert_eq!(found, (0..written).collect(), "every write of group {id}");
    }
}

#[tokio::test]
async fn a_state_machine_that_fails_ends_its_group_on_this_node_only() {
    for behaviour in [Behaviour::Fails, Behaviour::Panics, Behaviour::FailsPromptly, Behaviour::PanicsPromptly] {
        let trio = Trio::start().await;
        let (sick, well) = (group(1), group(2));
        trio.create_everywhere(well).await;
        for node in IDS {
            let behaviour = if node == NodeId(2) { behaviour } else { Behaviour::Works };
            trio.create_with(node, sick, Numbers::new(behaviour)).await;
        }
        trio.lead(sick, NodeId(2)).await;
        let raft = trio.node(NodeId(2)).group(sick).await.expect("open");
        let outcome = raft.propose(Numbers::command(13)).await;
        assert_eq!(outcome, Err(RequestError::OutcomeUnknown), "{behaviour:?}");
        let error = raft.stopped().await.expect_err("it failed");
        assert!(matches!(&*error, Fatal::StateMachine(cause) if cause.to_string().contains("thirteen")), "{error}");
        assert!(matches!(trio.node(NodeId(2)).group(sick).await, Err(GroupError::Unknown { .. })));
        // The others go on without it, and the node with its other groups.
        write(&trio, sick, 1).await;
        trio.lead(well, NodeId(2)).await;
        write(&trio, well, 1).await;
        // A machine that was mended goes on with the log.
        let raft = trio.create_with(NodeId(2), sick, Numbers::default()).await;
        trio.eventually("it catches up", async || {
            numbers(&raft, Consistency::Stale).await == Some(BTreeSet::from([1, 13]))
        })
        .await;
    }
}

#[tokio::test]
async fn a_change_of_one_group_leaves_the_links_of_others_alone() {
    let trio = Trio::start().await;
    for id in [1, 2] {
        trio.create_everywhere(group(id)).await;
        trio.lead(group(id), NodeId(1)).await;
    }
    let before = trio.node(NodeId(1)).metrics().net.clone().expect("QUIC").snapshot();
    let raft = trio.leader(group(1)).await;
    // The second change ends what is left of the first: until then a removed member is kept in touch with.
    for gone in [NodeId(3), NodeId(2)] {
        raft.change_membership(MembershipChange::new().remove(gone)).await.expect("removed");
    }
    for number in 0..10 {
        write(&trio, group(1), number).await;
        write(&trio, group(2), number).await;
    }
    let third = trio.node(NodeId(3)).group(group(2)).await.expect("open");
    trio.eventually("the other group goes on with all its nodes", async || {
        numbers(&third, Consistency::Stale).await.is_some_and(|found| found.len() == 10)
    })
    .await;
    let after = trio.node(NodeId(1)).metrics().net.clone().expect("QUIC").snapshot();
    assert_eq!((after.connects, after.disconnects), (before.connects, before.disconnects));
}

#[tokio::test]
async fn messages_for_a_group_that_is_not_here_are_counted_and_dropped() {
    let trio = Trio::start().await;
    trio.create_everywhere(group(1)).await;
    for node in [NodeId(1), NodeId(2)] {
        trio.create(node, group(9)).await;
    }
    write(&trio, group(9), 1).await;
    let strays = trio.node(NodeId(3)).metrics().strays.clone();
    trio.eventually("counted", async || strays.load(Ordering::Relaxed) > 0).await;
    // It comes late, and gets everything.
    let raft = trio.create(NodeId(3), group(9)).await;
    trio.eventually("it catches up", async || numbers(&raft, Consistency::Stale).await == Some(BTreeSet::from([1])))
        .await;
}

/// Its service holds what the node's threads work with, and only the node's own thread can take that from it.
#[tokio::test]
async fn a_node_ends_although_its_service_is_opening_a_group() {
    let (_dir, node) = nodes::serving(group(1), Numbers::new(Behaviour::OpensSlowly)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(node.groups().await.expect("it runs"), [], "it is still being opened");
    node.shutdown();
    tokio::time::timeout(PATIENCE, node.stopped()).await.expect("it ends").expect("nothing failed");
}

/// Whoever asked for a group may never look at the answer, and keep it.
#[tokio::test]
async fn a_node_ends_although_somebody_keeps_a_group_that_is_being_opened() {
    for polls in 0..=2 {
        let (_dir, node) = nodes::alone(|builder| builder).await;
        let options = GroupOptions::new().founders([NodeId(1)]);
        let mut opening = Box::pin(node.create_group(group(1), Numbers::new(Behaviour::OpensSlowly), options));
        for _ in 0..polls {
            assert!(opening.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        node.shutdown();
        tokio::time::timeout(PATIENCE, node.stopped()).await.expect("it ends").expect("nothing failed");
        let opened = tokio::time::timeout(PATIENCE, opening).await.expect("there is an answer");
        assert!(matches!(opened, Err(GroupError::ShuttingDown)), "{polls}: {opened:?}");
    }
}

#[tokio::test]
async fn a_machine_that_fails_while_its_group_is_being_stopped_has_failed() {
    let (_dir, node) = nodes::alone(|builder| builder).await;
    let options = GroupOptions::new().founders([NodeId(1)]);
    let machine = Numbers::new(Behaviour::FailsSlowly);
    let raft = node.create_group(group(1), machine, options).await.expect("opened");
    raft.leader().wait_for(Option::is_some).await.expect("it runs");
    let placed = raft.start(Numbers::command(13)).await.expect("it leads");
    while raft.status().await.expect("it runs").commit_index < placed.last {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stopped = node.stop_group(group(1)).await;
    assert!(matches!(&stopped, Err(GroupError::Failed(why)) if why.to_string().contains("thirteen")), "{stopped:?}");
    assert!(raft.stopped().await.is_err());
    node.shutdown();
    node.stopped().await.expect("it was the group's failure, not the node's");
}

#[tokio::test]
async fn stopping_the_node_stops_all_its_groups() {
    let trio = Trio::start().await;
    let mut rafts: Vec<Raft> = Vec::new();
    for id in 1..=20 {
        trio.create_everywhere(group(id)).await;
        rafts.push(trio.leader(group(id)).await);
    }
    let node = trio.node(NodeId(1)).clone();
    trio.lead(group(1), NodeId(1)).await;
    let led = node.groups().await.expect("it runs").iter().filter(|status| status.role == Role::Leader).count();
    let start = Instant::now();
    node.shutdown();
    node.stopped().await.expect("nothing failed");
    assert!(start.elapsed() < PATIENCE, "{led} groups were handed over in {:?}", start.elapsed());
    for raft in rafts.iter().filter(|raft| raft.id() == NodeId(1)) {
        raft.stopped().await.expect("nothing failed");
        assert_eq!(raft.propose(Numbers::command(1)).await, Err(RequestError::ShuttingDown));
    }
    // The others go on.
    for id in 1..=20 {
        write(&trio, group(id), 1).await;
    }
}
