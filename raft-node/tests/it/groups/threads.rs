//! Groups share threads: the long work of one is not what another waits for.

use std::io::{Error, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, GroupId, LogIndex, MembershipChange, NodeId, SnapshotMeta};
use raft_net::memory::MemoryNetwork;
use raft_node::{
    Consistency, Cut, GroupError, GroupOptions, Node, Outcome, Proposal, Raft, Replies, ReplySink, Responder,
    RestoreError, SnapshotError, SnapshotPolicy, StateMachine,
};
use raft_storage::MemoryStorage;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::nodes::PATIENCE;

/// Where a machine waits while it is closed.
#[derive(Clone, Default)]
struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    closed: bool,
    arrived: usize,
}

impl Gate {
    fn pass(&self) {
        let (state, opened) = &*self.0;
        let mut state = state.lock().expect("no panic");
        state.arrived += 1;
        while state.closed {
            state = opened.wait(state).expect("no panic");
        }
    }

    /// Whoever comes from now on waits.
    fn close(&self) {
        *self.0.0.lock().expect("no panic") = GateState { closed: true, arrived: 0 };
    }

    /// Until somebody waits here.
    async fn reached(&self) {
        let is_reached = async {
            while self.0.0.lock().expect("no panic").arrived == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, is_reached).await.expect("somebody comes here");
    }

    fn open(&self) {
        self.0.0.lock().expect("no panic").closed = false;
        self.0.1.notify_all();
    }
}

/// Counts commands, and has a gate before each kind of work.
#[derive(Clone, Default)]
struct Gated {
    applied: LogIndex,
    count: u8,
    applying: Gate,
    writing: Gate,
    restoring: Gate,
}

impl StateMachine for Gated {
    type Error = Error;

    fn applied(&self) -> LogIndex {
        self.applied
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Error> {
        self.applying.pass();
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                self.count += 1;
                replies.push(&[self.count]);
            }
            self.applied = entry.index;
        }
        Ok(())
    }

    fn query(&mut self, _: &[u8], answer: &mut BytesMut) -> Result<(), Error> {
        answer.extend_from_slice(&[self.count]);
        Ok(())
    }

    fn cut(&mut self) -> Result<Option<Box<dyn Cut>>, Error> {
        Ok(Some(Box::new(self.clone())))
    }

    fn restore(&mut self, meta: &SnapshotMeta, data: &mut dyn Read) -> Result<(), RestoreError<Error>> {
        self.restoring.pass();
        let mut count = [0];
        data.read_exact(&mut count)?;
        (self.applied, self.count) = (meta.last.index, count[0]);
        Ok(())
    }
}

impl Cut for Gated {
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> Result<(), Error> {
        self.writing.pass();
        out.write_all(&[self.count])
    }
}

/// A node with one thread for all state machines; and the directory, to be kept until the node has ended.
async fn start(network: &MemoryNetwork, id: NodeId) -> (TempDir, Node) {
    let (inbound, inbox) = mpsc::channel(4096);
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Node::builder().identity(id, "groups").data_dir(dir.path());
    let transport = network.endpoint(id, inbound);
    (dir, builder.start_with(MemoryStorage::new(), transport, inbox).await.expect("started"))
}

/// A group that has this node only, and something in it.
async fn group_of(node: &Node, id: u64) -> (Raft, Gated) {
    let machine = Gated::default();
    let policy = SnapshotPolicy { keep_entries: 0, keep_bytes: 0, ..SnapshotPolicy::default() };
    let options = GroupOptions::new().founders([node.id()]).snapshot_policy(policy);
    let raft = node.create_group(GroupId(id), machine.clone(), options).await.expect("opened");
    raft.leader().wait_for(Option::is_some).await.expect("it runs");
    raft.propose("a").await.expect("applied");
    (raft, machine)
}

/// Has it commit one more command; does not wait until that is applied.
async fn commit(raft: &Raft) {
    let placed = raft.start("b").await.expect("it leads");
    while raft.status().await.expect("it runs").commit_index < placed.last {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn end(node: &Node) {
    node.shutdown();
    timeout(PATIENCE, node.stopped()).await.expect("it ends").expect("nothing failed");
}

/// Collects answers until it is told that no more follow, as a connection does.
struct Collecting {
    collected: AtomicUsize,
    sent: mpsc::UnboundedSender<usize>,
}

impl ReplySink for Collecting {
    fn reply(&self, _: u64, outcome: Outcome<'_>) {
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
        self.collected.fetch_add(1, Ordering::Relaxed);
    }

    fn flush(&self) {
        // The test may be over.
        let _ = self.sent.send(self.collected.swap(0, Ordering::Relaxed));
    }
}

#[tokio::test]
async fn an_answer_does_not_wait_for_the_work_of_other_groups() {
    let (_dir, node) = start(&MemoryNetwork::new(), NodeId(1)).await;
    let ((first, early), (second, _), (third, late)) =
        (group_of(&node, 1).await, group_of(&node, 2).await, group_of(&node, 3).await);
    // All that follows is queued behind this.
    early.applying.close();
    commit(&first).await;
    early.applying.reached().await;
    late.applying.close();
    let before = second.status().await.expect("it runs").commit_index;
    let (sent, mut answers) = mpsc::unbounded_channel();
    let sink = Arc::new(Collecting { collected: AtomicUsize::new(0), sent });
    second.propose_batch(vec![Proposal { command: "c".into(), responder: Responder::new(sink, 0) }]);
    while second.status().await.expect("it runs").commit_index == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    commit(&third).await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    early.applying.open();
    assert_eq!(timeout(PATIENCE, answers.recv()).await.expect("its own work is done"), Some(1));
    late.applying.reached().await;
    late.applying.open();
    end(&node).await;
}

#[tokio::test]
async fn a_group_can_be_stopped_while_a_snapshot_of_another_is_written() {
    let (_dir, node) = start(&MemoryNetwork::new(), NodeId(1)).await;
    let ((first, slow), (second, _), (_third, _)) =
        (group_of(&node, 1).await, group_of(&node, 2).await, group_of(&node, 3).await);
    slow.writing.close();
    let written = tokio::spawn(async move { first.snapshot().await });
    slow.writing.reached().await;
    timeout(PATIENCE, node.stop_group(GroupId(3))).await.expect("it has no snapshot").expect("stopped");
    // Behind the other one, and not begun.
    let queued = tokio::spawn(async move { second.snapshot().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    timeout(PATIENCE, node.stop_group(GroupId(2)))
        .await
        .expect("what is not begun is not waited for")
        .expect("stopped");
    assert_eq!(queued.await.expect("no panic"), Err(SnapshotError::ShuttingDown));
    // But the one that is being written is.
    let stopping = node.stop_group(GroupId(1));
    tokio::pin!(stopping);
    assert!(timeout(Duration::from_millis(50), &mut stopping).await.is_err(), "its snapshot is being written");
    slow.writing.open();
    stopping.await.expect("stopped");
    assert!(written.await.expect("no panic").is_err(), "nobody waits for it any more");
    end(&node).await;
}

#[tokio::test]
async fn a_group_is_deleted_when_it_is_stopped_and_never_comes_back() {
    let (dir, node) = start(&MemoryNetwork::new(), NodeId(1)).await;
    let files = |of: &str| std::fs::read_dir(dir.path().join(of)).map_or(0, Iterator::count);
    let mut groups = Vec::new();
    for id in [1, 2, 3] {
        let (raft, _) = group_of(&node, id).await;
        raft.snapshot().await.expect("made");
        groups.push(raft);
    }
    let other = GroupOptions::new().founders([NodeId(1)]);
    assert!(matches!(node.delete_group(GroupId(2)).await, Err(GroupError::Exists { .. })), "it runs");
    assert!(matches!(node.delete_group(GroupId(4)).await, Err(GroupError::Unknown { .. })));
    assert_eq!((files("snapshots"), files("snapshots/group-2")), (3, 1), "two folders, and a file of the first group");
    for id in [1, 2] {
        node.stop_group(GroupId(id)).await.expect("stopped");
        node.delete_group(GroupId(id)).await.expect("deleted");
        node.delete_group(GroupId(id)).await.expect("it is");
    }
    assert_eq!(node.stored_groups().await.expect("it runs"), [GroupId(3)]);
    assert_eq!((files("snapshots"), files("snapshots/group-3")), (1, 1));
    let refused = node.create_group(GroupId(2), Gated::default(), other).await.expect_err("it was deleted");
    assert!(refused.to_string().contains("deleted"), "{refused}");
    assert_eq!(groups[2].propose("b").await.expect("applied").reply[..], [2], "the others go on");
    end(&node).await;
}

/// Two nodes, and a group of the first whose machine on the second is about to take over a snapshot, and waits for its gate.
struct Joining {
    leader: Raft,
    follower: Raft,
    machine: Gated,
    nodes: [(TempDir, Node); 2],
}

impl Joining {
    async fn start() -> Joining {
        let network = MemoryNetwork::new();
        let nodes = [start(&network, NodeId(1)).await, start(&network, NodeId(2)).await];
        let [(_, one), (_, two)] = &nodes;
        let (leader, _) = group_of(one, 1).await;
        leader.snapshot().await.expect("made");
        leader.propose("b").await.expect("applied");
        let machine = Gated::default();
        machine.restoring.close();
        let follower = two.create_group(GroupId(1), machine.clone(), GroupOptions::new().join(true)).await;
        let follower = follower.expect("opened");
        let identity = follower.status().await.expect("it runs").identity;
        let change = MembershipChange::new().learner(NodeId(2)).identity(NodeId(2), identity);
        leader.change_membership(change).await.expect("added");
        machine.restoring.reached().await;
        Joining { leader, follower, machine, nodes }
    }
}

/// Until the machine on this node has counted so many commands.
async fn counted(raft: &Raft, count: u8) {
    let all_there = async {
        while raft.read("", Consistency::Stale).await.expect("it runs")[..] != [count] {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, all_there).await.expect("it gets everything");
}

#[tokio::test]
async fn a_group_that_takes_over_a_snapshot_holds_up_no_other() {
    let Joining { leader, follower, machine, nodes: [(_dir, one), (_other_dir, two)] } = Joining::start().await;
    let (busy, _) = group_of(&two, 2).await;
    for count in 2..=50 {
        let applied = timeout(PATIENCE, busy.propose("b")).await.expect("its thread is free").expect("applied");
        assert_eq!(applied.reply[..], [count]);
    }
    // What comes meanwhile waits for it.
    let read = follower.read("", Consistency::Stale);
    tokio::pin!(read);
    assert!(timeout(Duration::from_millis(50), &mut read).await.is_err(), "its machine has other work");
    leader.propose("c").await.expect("applied");
    machine.restoring.open();
    assert!((1..=3).contains(&timeout(PATIENCE, read).await.expect("answered").expect("a count")[0]));
    counted(&follower, 3).await;
    end(&one).await;
    end(&two).await;
}

#[tokio::test]
async fn a_group_that_is_stopped_while_it_takes_over_a_snapshot_ends_behind_that() {
    let Joining { follower, machine, nodes: [(_dir, one), (_other_dir, two)], .. } = Joining::start().await;
    let stopping = two.stop_group(GroupId(1));
    tokio::pin!(stopping);
    assert!(timeout(Duration::from_millis(50), &mut stopping).await.is_err(), "its machine is at work");
    let again = || two.create_group(GroupId(1), Gated::default(), GroupOptions::new());
    assert!(matches!(again().await, Err(GroupError::Exists { .. })));
    machine.restoring.open();
    timeout(PATIENCE, stopping).await.expect("it ends").expect("nothing failed");
    assert!(follower.read("", Consistency::Stale).await.is_err());
    counted(&again().await.expect("opened again"), 2).await;
    end(&one).await;
    end(&two).await;
}
