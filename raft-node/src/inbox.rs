//! What comes back to the loop from the node's own threads, and which group it is for.

use std::sync::Arc;

use raft_core::{GroupId, Input, LogIndex, SnapshotId};
use raft_storage::StorageError;
use tokio::sync::mpsc as queue;

use crate::snapshot::SnapshotError;
use crate::snapshot::directory::Stored;

/// Why a node, or one of its groups, cannot go on. It acknowledges nothing any more and stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// A write, a sync or a read of the log failed. What is on the disk is not known: look at the disk, then restart. It ends the node, with all its
    /// groups, since they share the log's database.
    #[error("the log's storage failed: {0}")]
    Storage(#[source] StorageError),
    /// The state machine failed. It ends the group that it belongs to; the others go on.
    #[error("the state machine failed: {0}")]
    StateMachine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread of the node ended unexpectedly (it panicked). It ends the node.
    #[error("the {0} thread is gone")]
    ThreadLost(&'static str),
}

/// The time of a group on this node, from when it is opened until it is stopped. A group that is opened again has another number: what was meant for
/// its former life must not reach it. (A write of that life that became durable would pass for a later one's.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Life {
    pub(crate) group: GroupId,
    pub(crate) number: u64,
}

/// What comes from the node's threads.
#[derive(Debug)]
pub(crate) enum News {
    Group(Life, Internal),
    /// A group that was stopped is gone: nothing of it is in memory, and nobody works for it.
    Gone(GroupId),
    Fatal(Fatal),
}

/// What is for one group.
#[derive(Debug)]
pub(crate) enum Internal {
    Core(Input),
    /// A file was made, or not.
    SnapshotMade(Result<Stored, SnapshotError>),
    /// The state machine's own state is durable up to here.
    Durable(LogIndex),
    /// The state machine has taken over a snapshot of another node.
    Restored {
        id: SnapshotId,
        last: LogIndex,
    },
    /// The state machine can go on no longer. A group that is being stopped is told by its farewell.
    Failed(Arc<Fatal>),
}

/// The way from the node's threads to its loop. Never blocks; once the loop is gone, messages to it are pointless.
#[derive(Clone, Debug)]
pub(crate) struct Inbox(queue::UnboundedSender<News>);

impl Inbox {
    pub(crate) fn new() -> (Inbox, queue::UnboundedReceiver<News>) {
        let (sender, receiver) = queue::unbounded_channel();
        (Inbox(sender), receiver)
    }

    pub(crate) fn send(&self, news: News) {
        if let Err(queue::error::SendError(News::Fatal(error))) = self.0.send(news) {
            tracing::error!(%error, "failed while stopping");
        }
    }

    /// The same way, for those who work for one group.
    pub(crate) fn of(&self, life: Life) -> GroupInbox {
        GroupInbox { life, inbox: self.clone() }
    }
}

/// The way back for what is done for one group.
#[derive(Clone, Debug)]
pub(crate) struct GroupInbox {
    life: Life,
    inbox: Inbox,
}

impl GroupInbox {
    pub(crate) fn send(&self, internal: Internal) {
        self.inbox.send(News::Group(self.life, internal));
    }
}
