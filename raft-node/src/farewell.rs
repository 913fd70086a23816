//! The end of a group: said when everything that worked for it is done.

use std::sync::{Arc, Mutex, PoisonError};

use raft_core::GroupId;
use tokio::sync::watch;

use crate::handle::Stopped;
use crate::inbox::{Fatal, Inbox, News};

/// Follows behind the last work for a group. Whoever has it last drops it: then nothing of the group is in memory any more, those
/// who wait for its end are told, and the group may be opened again.
#[derive(Debug)]
pub(crate) struct Farewell {
    pub(crate) group: GroupId,
    pub(crate) result: Result<(), Arc<Fatal>>,
    pub(crate) stopped: watch::Sender<Stopped>,
    pub(crate) inbox: Inbox,
}

/// Shared by all that work for a group on threads. Once the farewell is in it, it is said when the last of them is done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Presence(Arc<Mutex<Option<Farewell>>>);

impl Presence {
    /// What is still under way is the last.
    pub(crate) fn leave(&self, farewell: Farewell) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(farewell);
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        tracing::info!(group = %self.group, "group stopped");
        // First the loop, so that whoever hears that it is over can open it again.
        self.inbox.send(News::Gone(self.group));
        self.stopped.send_replace(Stopped(Some(self.result.clone())));
    }
}
