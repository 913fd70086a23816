//! Gives back the space of what lies before the start of a log, on a thread of its own.
//!
//! That it is gone was decided, durably, by the write that moved the start; here it only stops taking space.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};

use raft_core::{GroupId, LogIndex};
use rocksdb::DB;

use super::record::key;
use super::{LOG, META, Options, column};
use crate::error::StorageError;

/// Tells a thread to clean up whenever it is worth it.
pub(super) struct Purger {
    /// `None` once it is being stopped.
    queue: Option<Sender<(GroupId, LogIndex)>>,
    thread: Option<JoinHandle<()>>,
    /// Bytes that were purged since the last time.
    waiting: u64,
    /// Bytes that are worth it.
    worth: u64,
}

impl Purger {
    pub(super) fn start(db: Arc<DB>, options: &Options) -> std::io::Result<Self> {
        let (queue, orders) = channel();
        let thread = Builder::new().name("raft-purge".into()).spawn(move || run(&db, &orders))?;
        let worth = options.write_buffer_bytes as u64;
        Ok(Purger { queue: Some(queue), thread: Some(thread), waiting: 0, worth })
    }

    /// The log of `group` begins with the record stored under `first` now; so many bytes lie before it.
    pub(super) fn purged(&mut self, group: GroupId, first: LogIndex, bytes: u64) {
        self.waiting += bytes;
        if self.waiting >= self.worth {
            self.waiting = 0;
            // Without the thread, compactions will free the space one day.
            let _ = self.queue.as_ref().map(|queue| queue.send((group, first)));
        }
    }
}

impl Drop for Purger {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed, and changes nothing.
            let _ = thread.join();
        }
    }
}

fn run(db: &DB, orders: &Receiver<(GroupId, LogIndex)>) {
    while let Ok((group, first)) = orders.recv() {
        if let Err(error) = clean_up(db, group, first) {
            // If the disk is full or broken, the next write will tell, too.
            tracing::warn!(%error, "the space of old entries cannot be freed yet");
        }
    }
}

fn clean_up(db: &DB, group: GroupId, first: LogIndex) -> Result<(), StorageError> {
    // Files with nothing else in them go at once, without being read.
    db.delete_file_in_range_cf(column(db, LOG)?, key(group, LogIndex::ZERO), key(group, first))
        .map_err(|error| StorageError::engine("delete old files of the log", error))?;
    // The few bytes beside the log would keep every file of the write-ahead log since they were last flushed.
    db.flush_cf(column(db, META)?).map_err(|error| StorageError::engine("flush", error))
}
