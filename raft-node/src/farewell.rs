//! The end of a group: said when everything that worked for it is done.

use std::sync::Arc;

use raft_core::GroupId;
use tokio::sync::watch;

use crate::handle::Stopped;
use crate::inbox::{Fatal, Inbox, News};

/// Goes through the node's threads behind the last work for a group. Whoever has it last drops it: then nothing of the group is in memory any more, those
/// who wait for its end are told, and the group may be opened again.
#[derive(Debug)]
pub(crate) struct Farewell {
    pub(crate) group: GroupId,
    pub(crate) result: Result<(), Arc<Fatal>>,
    pub(crate) stopped: watch::Sender<Stopped>,
    pub(crate) inbox: Inbox,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        tracing::info!(group = %self.group, "group stopped");
        // First the loop, so that whoever hears that it is over can open it again.
        self.inbox.send(News::Gone(self.group));
        self.stopped.send_replace(Stopped(Some(self.result.clone())));
    }
}
