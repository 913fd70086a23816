//! openraft's state machine, with snapshots: it compacts its log by them only.

use std::io::Cursor;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::RaftStateMachine;
use openraft::{
    EmptyNode, Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError,
    StorageIOError, StoredMembership,
};

use super::Types;
use crate::sum::Sum;

/// Clones are the same state.
#[derive(Clone, Debug, Default)]
pub(super) struct State(Arc<Mutex<Held>>);

#[derive(Debug, Default)]
struct Held {
    sum: Sum,
    applied: Option<LogId<u64>>,
    membership: StoredMembership<u64, EmptyNode>,
    snapshot: Option<Snapshot<Types>>,
}

impl State {
    pub(super) fn sum(&self) -> Sum {
        self.held().sum
    }

    /// Nobody panics with the lock held.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftSnapshotBuilder<Types> for State {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StorageError<u64>> {
        let mut held = self.held();
        let meta = SnapshotMeta {
            last_log_id: held.applied,
            last_membership: held.membership.clone(),
            snapshot_id: held.sum.commands.to_string(),
        };
        let snapshot = Snapshot { meta, snapshot: Box::new(Cursor::new(held.sum.to_bytes().to_vec())) };
        held.snapshot = Some(snapshot.clone());
        Ok(snapshot)
    }
}

impl RaftStateMachine<Types> for State {
    type SnapshotBuilder = State;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<u64>>, StoredMembership<u64, EmptyNode>), StorageError<u64>> {
        let held = self.held();
        Ok((held.applied, held.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<u64>, StorageError<u64>>
    where
        I: IntoIterator<Item = Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut held = self.held();
        let entries = entries.into_iter();
        let mut replies = Vec::with_capacity(entries.size_hint().0);
        for entry in entries {
            held.applied = Some(entry.log_id);
            replies.push(match entry.payload {
                EntryPayload::Normal(command) => held.sum.apply(&command),
                EntryPayload::Membership(membership) => {
                    held.membership = StoredMembership::new(Some(entry.log_id), membership);
                    0
                }
                EntryPayload::Blank => 0,
            });
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> State {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError<u64>> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, EmptyNode>,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError<u64>> {
        let bytes: [u8; Sum::BYTES] = snapshot.get_ref().as_slice().try_into().map_err(|_| {
            let error = std::io::Error::from(std::io::ErrorKind::InvalidData);
            StorageIOError::read_snapshot(Some(meta.signature()), &error)
        })?;
        let mut held = self.held();
        (held.sum, held.applied) = (Sum::from_bytes(bytes), meta.last_log_id);
        held.membership = meta.last_membership.clone();
        held.snapshot = Some(Snapshot { meta: meta.clone(), snapshot });
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StorageError<u64>> {
        Ok(self.held().snapshot.clone())
    }
}
