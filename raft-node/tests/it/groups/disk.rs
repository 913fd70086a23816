//! A log that can be made to fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use raft_core::{GroupId, NodeId, Write};
use raft_net::memory::MemoryNetwork;
use raft_node::{Fatal, GroupOptions, Node, RequestError};
use raft_storage::{MemoryReader, MemoryStorage, RecoveredLog, Storage, StorageError};
use tokio::sync::mpsc;

use super::machine::Numbers;

struct Fragile {
    storage: MemoryStorage,
    broken: Arc<AtomicBool>,
}

impl Storage for Fragile {
    type Reader = MemoryReader;

    fn recover(&mut self, group: GroupId) -> Result<RecoveredLog, StorageError> {
        self.storage.recover(group)
    }

    fn write(&mut self, batch: &[(GroupId, Write)]) -> Result<(), StorageError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(StorageError::engine("sync", "as asked"));
        }
        self.storage.write(batch)
    }

    fn reader(&self) -> MemoryReader {
        self.storage.reader()
    }

    fn groups(&self) -> Vec<GroupId> {
        self.storage.groups()
    }
}

#[tokio::test]
async fn a_log_that_fails_ends_the_node_with_all_its_groups() {
    let broken = Arc::new(AtomicBool::new(false));
    let (inbound, inbox) = mpsc::channel(64);
    let transport = MemoryNetwork::new().endpoint(NodeId(1), inbound);
    let storage = Fragile { storage: MemoryStorage::new(), broken: broken.clone() };
    let builder = Node::builder().identity(NodeId(1), "groups");
    let node = builder.start_with(storage, transport, inbox).await.expect("started");
    let mut rafts = Vec::new();
    for id in 1..=5 {
        let raft = node.create_group(GroupId(id), Numbers::default(), GroupOptions::new()).await.expect("opened");
        raft.leader().wait_for(Option::is_some).await.expect("it runs");
        raft.propose(Numbers::command(1)).await.expect("applied");
        rafts.push(raft);
    }
    broken.store(true, Ordering::Relaxed);
    assert_eq!(rafts[2].propose(Numbers::command(2)).await, Err(RequestError::OutcomeUnknown));
    for raft in &rafts {
        let error = raft.stopped().await.expect_err("it failed");
        assert!(matches!(&*error, Fatal::Storage(_)), "{error}");
        assert_eq!(raft.propose(Numbers::command(3)).await, Err(RequestError::ShuttingDown));
    }
    assert!(matches!(&*node.stopped().await.expect_err("it failed"), Fatal::Storage(_)));
}
