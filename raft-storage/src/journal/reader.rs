//! Reads entries, while another thread writes.

use std::sync::{Arc, PoisonError, RwLock};

use raft_core::{Entries, GroupId, LogIndex};

use super::index::{self, Index};
use crate::error::StorageError;
use crate::rocks::RocksReader;
use crate::storage::{self, StorageReader};

/// Reader of a [`JournalStorage`](crate::JournalStorage). Each call sees one consistent state of the log.
#[derive(Clone)]
pub struct JournalReader {
    index: Arc<RwLock<Index>>,
    /// Keeps the directory locked.
    _meta: RocksReader,
}

impl JournalReader {
    pub(super) fn new(index: Arc<RwLock<Index>>, meta: RocksReader) -> Self {
        JournalReader { index, _meta: meta }
    }
}

impl StorageReader for JournalReader {
    fn entries(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Result<Entries, StorageError> {
        loop {
            let places = self.index.read().unwrap_or_else(PoisonError::into_inner).find(group, first, last, max_bytes);
            let mut found = Entries::new();
            let mut result = Ok(true);
            for (location, file) in &places {
                result = index::read(file, group, *location).and_then(|entries| {
                    let wanted = entries.slice(first, last);
                    wanted.map_or(Ok(false), |wanted| storage::take(&mut found, &wanted, group, last, max_bytes))
                });
                if !matches!(result, Ok(true)) {
                    break;
                }
            }
            // A segment may have gone out of use, and become another, while it was being read. Then so has the log's beginning.
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            if places.iter().all(|(location, _)| index.holds(location.segment)) {
                return result.map(|_| found);
            }
        }
    }
}
