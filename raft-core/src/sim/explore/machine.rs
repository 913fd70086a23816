//! A server's state machine: what it keeps durably, which is a snapshot of the log up to there, and what it is to take over from a leader.

use super::event::Snapshot;
use crate::entries::Segment;
use crate::io::{Restore, SnapshotId, SnapshotMeta};
use crate::sim::disk::{Disk, Image};
use crate::types::{LogId, LogIndex};

/// The state that entries lead to is the list of these entries: whether two are the same, and whether an entry is missing, is then easy to see.
///
/// What it has applied and not kept is in the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Machine {
    /// From index 1 on, one entry each. On the disk.
    kept: Vec<Segment>,
    /// Snapshots that have come in this life and may still be asked for, in the order in which they came.
    received: Vec<(SnapshotId, Vec<Segment>)>,
    /// It is busy with this.
    taking_over: Option<Restore>,
}

impl Machine {
    /// The entries whose effects it keeps, as segments of one.
    pub(super) fn kept(&self) -> &[Segment] {
        &self.kept
    }

    /// The last of them.
    pub(super) fn last(&self) -> LogId {
        self.kept.last().map_or(LogId::ZERO, |entry| LogId::new(entry.last_term(), entry.last_index()))
    }

    /// One of them, or what is before the first one.
    pub(super) fn id_at(&self, index: LogIndex) -> Option<LogId> {
        match (index.0 as usize).checked_sub(1) {
            None => Some(LogId::ZERO),
            Some(at) => self.kept.get(at).map(|entry| LogId::new(entry.first_term(), entry.first_index())),
        }
    }

    pub(super) fn is_taking_over(&self) -> bool {
        self.taking_over.is_some()
    }

    /// Keeps its state as of `meta.last`, which it has applied.
    ///
    /// # Errors
    /// An entry is missing.
    pub(super) fn keep(&mut self, disk: &mut Disk, meta: SnapshotMeta) -> Result<(), String> {
        while self.last().index < meta.last.index {
            let next = self.last().index.next();
            let entry = disk.live().entry(next).cloned();
            self.kept.push(entry.ok_or_else(|| format!("has lost entry {next}, which no snapshot holds"))?);
        }
        disk.save(meta, bytes::Bytes::new());
        Ok(())
    }

    /// A snapshot has come completely.
    pub(super) fn receive(&mut self, id: SnapshotId, snapshot: &Snapshot) {
        if self.received.iter().all(|(known, _)| *known != id) {
            self.received.push((id, snapshot.state.clone()));
        }
    }

    /// It gets a snapshot to take over. Those that came before are thrown away, as [`Input::SnapshotReceived`](crate::Input::SnapshotReceived) allows.
    ///
    /// # Errors
    /// It is busy with another one; it does not have this one; or this one would take it back.
    pub(super) fn begin(&mut self, restore: Restore, applied: LogIndex) -> Result<(), String> {
        if let Some(busy) = &self.taking_over {
            return Err(format!("is to take over {restore:?}, and has not done {busy:?}"));
        }
        let at = self.received.iter().position(|(id, _)| *id == restore.id);
        let at = at.ok_or_else(|| format!("is to take over {restore:?}, which it does not have"))?;
        if restore.meta.last.index <= applied {
            return Err(format!("goes back from {applied} to {restore:?}"));
        }
        self.received.drain(..at);
        self.taking_over = Some(restore);
        Ok(())
    }

    /// It has taken the snapshot over, durably. Which one that was.
    ///
    /// # Errors
    /// There was none, or it is not what was said about it.
    pub(super) fn finish(&mut self, disk: &mut Disk) -> Result<SnapshotId, String> {
        let Restore { id, meta } = self.taking_over.take().ok_or("has nothing to take over")?;
        let at = self.received.iter().position(|(known, _)| *known == id).ok_or("has lost its snapshot")?;
        self.kept = self.received.remove(at).1;
        if self.last() != meta.last {
            return Err(format!("has taken over {meta:?}, and that ends with {}", self.last()));
        }
        disk.restore(meta, bytes::Bytes::new());
        Ok(id)
    }

    /// The output has been taken: what was not asked for is not needed any more.
    pub(super) fn forget_unwanted(&mut self) {
        if self.taking_over.is_none() {
            self.received.clear();
        }
    }

    /// What is not durable is gone.
    pub(super) fn crash(&mut self) {
        self.received.clear();
        self.taking_over = None;
    }

    /// What a log has forgotten is kept here, durably: else it would be nowhere.
    pub(super) fn check(&self, log: &Image) -> Result<(), String> {
        let start = log.start();
        if self.id_at(start.index) == Some(start) {
            return Ok(());
        }
        Err(format!("its log begins after {start}, and its state machine keeps only up to {}", self.last()))
    }

    /// Feeds all of it into `hasher`.
    pub(super) fn fingerprint(&self, hasher: &mut impl std::hash::Hasher) {
        // Names every field, so that a new one has to be thought of here.
        let Machine { kept, received, taking_over } = self;
        std::hash::Hash::hash(&(kept, received, taking_over), hasher);
    }
}
