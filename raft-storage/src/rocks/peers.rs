//! Which data directory is meant by the id of each other node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use raft_core::{GroupId, NodeId};
use rocksdb::{DB, WriteOptions};

use super::{META, Poison, column, meta, read_error};
use crate::error::StorageError;

/// The incarnations under which the other nodes are known: the first that is seen of a node is written down, durably, before anything that the node says is
/// believed, and from then on it is the only one. A node that comes back with an empty directory under the same id has forgotten what it voted for and
/// acknowledged; here it is told apart.
///
/// Clones share their state. It does not keep the directory open.
#[derive(Clone)]
pub struct KnownPeers {
    db: Weak<DB>,
    group: GroupId,
    /// That of the storage.
    poison: Poison,
    known: Arc<Mutex<BTreeMap<NodeId, u128>>>,
}

/// What a look at an incarnation showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquaintance {
    /// It is the one that is known, or the first one, which is known from now on.
    Known,
    /// Another one is known.
    Other,
}

impl KnownPeers {
    pub(super) fn open(db: &Arc<DB>, group: GroupId, poison: Poison) -> Result<Self, StorageError> {
        let key = meta::key(group, meta::Tag::Peers);
        let stored = db.get_cf(column(db, META)?, key).map_err(|error| read_error("the known peers", error))?;
        let known = stored.map(|value| meta::decode_peers(&key, group, &value)).transpose()?.unwrap_or_default();
        Ok(KnownPeers { db: Arc::downgrade(db), group, poison, known: Arc::new(Mutex::new(known)) })
    }

    /// Whether `node` is known by this incarnation. If it is not known at all, it is now, after a sync.
    ///
    /// # Errors
    /// It could not be written down, or the storage is poisoned or closed: do not believe the node.
    pub fn meet(&self, node: NodeId, incarnation: u128) -> Result<Acquaintance, StorageError> {
        let mut known = self.lock();
        match known.get(&node) {
            Some(found) if *found == incarnation => Ok(Acquaintance::Known),
            Some(_) => Ok(Acquaintance::Other),
            None => {
                let mut next = known.clone();
                next.insert(node, incarnation);
                self.store(&next)?;
                *known = next;
                Ok(Acquaintance::Known)
            }
        }
    }

    /// Forgets everybody who is not among `members`: who comes back later is another.
    ///
    /// # Errors
    /// It could not be written down; then nobody is forgotten.
    pub fn retain(&self, members: &[NodeId]) -> Result<(), StorageError> {
        let mut known = self.lock();
        if known.keys().all(|id| members.contains(id)) {
            return Ok(());
        }
        let mut next = known.clone();
        next.retain(|id, _| members.contains(id));
        self.store(&next)?;
        *known = next;
        Ok(())
    }

    fn store(&self, known: &BTreeMap<NodeId, u128>) -> Result<(), StorageError> {
        self.poison.check()?;
        let db = self.db.upgrade().ok_or_else(|| StorageError::engine("writing the known peers", "it is closed"))?;
        let key = meta::key(self.group, meta::Tag::Peers);
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        db.put_cf_opt(column(&db, META)?, key, meta::encode_peers(&key, known), &synced)
            .map_err(|error| StorageError::engine("writing the known peers", error))
            .inspect_err(|error| self.poison.by(error))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, u128>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for KnownPeers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KnownPeers").field("group", &self.group).field("known", &*self.lock()).finish_non_exhaustive()
    }
}
