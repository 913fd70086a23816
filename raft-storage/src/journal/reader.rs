//! Reads entries, while another thread writes.

use std::sync::{Arc, PoisonError, RwLock};

use raft_core::{Entries, GroupId, LogIndex};

use super::index::{self, Index};
use crate::error::{RecordDamage, StorageError};
use crate::rocks::RocksReader;
use crate::storage::StorageReader;

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
                    wanted.map_or(Ok(false), |wanted| take(&mut found, &wanted, group, last, max_bytes))
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

/// Adds what is wanted and has room, and says whether there may be more.
fn take(
    found: &mut Entries,
    wanted: &raft_core::Segment,
    group: GroupId,
    last: LogIndex,
    max_bytes: usize,
) -> Result<bool, StorageError> {
    let free = max_bytes.saturating_sub(found.byte_len());
    let head = wanted.prefix(free);
    if !found.is_empty() && head.byte_len() > free {
        return Ok(false);
    }
    let more = head.len() == wanted.len() && head.byte_len() < free && head.last_index() < last;
    let first = head.first_index();
    found.push(head).map_err(|_| StorageError::Record { group, first, what: RecordDamage::Term })?;
    Ok(more)
}
