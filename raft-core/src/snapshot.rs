//! Compaction of the log, and snapshots in the place of entries that are gone (paper, section 7; thesis, chapter 5).
//!
//! The core holds no snapshot. What the state machine keeps durably is one; the core only knows where the log begins, asks for a snapshot to
//! be sent when a follower needs what lies before that, and decides when one that has come may be taken over.

use crate::io::{Anomaly, Event, Restore, SendSnapshot, SnapshotId, SnapshotMeta, SnapshotReceived, StepDownReason};
use crate::memberships::Memberships;
use crate::progress::Progress;
use crate::raft::Raft;
use crate::types::{LogId, LogIndex, NodeId, Term};

/// Snapshots that a follower has received and not taken over.
///
/// Invariants: `handed_out` ends behind what is applied, and nothing is handed to the state machine meanwhile; `next` ends behind it.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Restoring {
    /// With the state machine.
    handed_out: Option<Restore>,
    /// To be handed out next.
    next: Option<Restore>,
    /// What the present leader is to be told, and with which epoch, once one is taken over.
    epoch: Option<u64>,
}

impl Restoring {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.handed_out.is_none() && self.next.is_none()
    }

    /// The last entry of what the state machine is taking over.
    pub(crate) fn handed_out(&self) -> Option<LogId> {
        self.handed_out.as_ref().map(|restore| restore.meta.last)
    }

    /// The last entry of the newest.
    fn newest(&self) -> Option<LogId> {
        self.next.as_ref().or(self.handed_out.as_ref()).map(|restore| restore.meta.last)
    }

    /// Another leader, or none: what the former one would have been told concerns nobody.
    pub(crate) fn forget_leader(&mut self) {
        self.epoch = None;
    }
}

impl Raft {
    /// Forgets the log up to `up_to`, because the state machine has everything up to there *durably*: after a crash nobody else can give it back.
    /// No more is forgotten than the state machine has reported as applied, and an index at or below the present start is ignored; so is one as of which
    /// this server does not know who belonged to the cluster, since no follower could be sent a snapshot of that. How many entries are worth keeping for slow followers is up to the caller: who needs what is gone gets a snapshot.
    pub fn compact(&mut self, up_to: LogIndex) {
        let to = up_to.min(self.log.applied);
        if to <= self.log.start().index {
            return;
        }
        if let (Some(term), Some(membership)) = (self.log.term_at(to), self.membership_at(to).cloned()) {
            let last = LogId::new(term, to);
            self.stirred = true;
            self.memberships.purge(to);
            self.log.purge(last);
            self.durability.begins_after(SnapshotMeta { last, membership });
        }
    }

    /// A follower needs what is not in the log any more.
    pub(crate) fn offer_snapshot(&mut self, to: NodeId, progress: &mut Progress) {
        let (term, at_least) = (self.hard_state.current_term, self.log.start().index);
        // One that leaves is told so if that is cheap.
        if progress.leaves_at.is_some() {
            return;
        }
        if progress.send_snapshot(at_least, self.now) {
            self.out.snapshots.push(SendSnapshot { to, term, epoch: progress.epoch, at_least });
        }
    }

    pub(crate) fn snapshot_sent(&mut self, to: NodeId, epoch: u64, last: Option<LogId>) {
        let start = self.log.start().index;
        if last.is_some_and(|last| last.index >= start && !self.log.contains(last)) {
            return self.reject(self.config.id, Anomaly::Driver);
        }
        let again_at = self.now + self.config.heartbeat_interval;
        if let Some(progress) = self.progress_mut(to).filter(|progress| progress.epoch == epoch) {
            progress.snapshot_sent(last.map(|last| last.index), again_at);
        }
    }

    /// A snapshot has come from a leader. Terms count as they do in messages.
    pub(crate) fn snapshot_received(&mut self, received: SnapshotReceived) {
        let SnapshotReceived { from, term, epoch, meta, id } = received;
        if from == self.config.id {
            return self.reject(from, Anomaly::Stranger);
        }
        let last = meta.last;
        if term > Term::MAX || last.term > term || last.index > LogIndex::MAX {
            return self.reject(from, Anomaly::OutOfRange);
        }
        if meta.membership.voters().is_empty() {
            return self.reject(from, Anomaly::MalformedEntries);
        }
        if term > self.hard_state.current_term {
            self.become_follower(term, StepDownReason::NewerTerm);
        }
        if term < self.hard_state.current_term || !self.follow(from) {
            return;
        }
        if last.index <= self.log.commit && self.log.term_at(last.index).is_some_and(|term| term != last.term) {
            return self.reject(from, Anomaly::CommittedConflict);
        }
        if self.is_held(last) {
            self.owed_ack = Some(epoch);
            return;
        }
        self.restoring.epoch = Some(epoch);
        if self.restoring.newest().is_none_or(|newest| newest.index < last.index) {
            self.restoring.next = Some(Restore { id, meta });
        }
    }

    /// Whether this log, or what came before it, ends no earlier than a snapshot that ends with `last`: then the snapshot is of no use, except
    /// that it shows what is committed.
    fn is_held(&mut self, last: LogId) -> bool {
        let held = last.index <= self.log.commit || (last.index <= self.commit_limit() && self.log.contains(last));
        if held {
            self.log.commit_to(last.index);
            self.verified = self.verified.max(self.log.commit);
        }
        held
    }

    /// Forgets a snapshot that waits if entries were quicker.
    pub(crate) fn drop_useless_snapshot(&mut self) {
        if let Some(Restore { meta: SnapshotMeta { last, .. }, .. }) = self.restoring.next
            && self.is_held(last)
        {
            self.restoring.next = None;
            if self.restoring.handed_out.is_none() {
                self.owed_ack = self.owed_ack.or(self.restoring.epoch.take());
            }
        }
    }

    /// Hands out the newest snapshot that has come, after everything that was handed out before.
    pub(crate) fn hand_out_restore(&mut self) -> Option<Restore> {
        if self.restoring.handed_out.is_some() {
            return None;
        }
        self.restoring.handed_out = Some(self.restoring.next.take()?);
        // What is being read for the state machine is in the snapshot.
        self.apply_fetch = None;
        self.restoring.handed_out.clone()
    }

    /// The state machine has taken over what it was handed, durably. The log follows (paper, section 7): if it holds the snapshot's last entry, what
    /// comes after that stays, and otherwise nothing does. A crash before the log's write is done is noticed at the next start. Entries may
    /// have come meanwhile, and commits; nothing goes back.
    pub(crate) fn restored(&mut self, id: SnapshotId) {
        let Some(Restore { meta, .. }) = self.restoring.handed_out.take_if(|restore| restore.id == id) else {
            return self.reject(self.config.id, Anomaly::Driver);
        };
        let last = meta.last;
        let kept = self.log.contains(last);
        if kept {
            self.log.commit_to(last.index);
            self.log.applying = last.index;
            self.log.applied_to(last.index);
            self.memberships.purge(last.index);
            self.log.purge(last);
            self.durability.begins_after(meta);
        } else {
            // Up to the commit index the old log was right.
            self.durability.restarts_after(meta.clone(), self.log.commit);
            let changed = *self.memberships.current() != meta.membership;
            self.memberships = Memberships::new(last.index, meta.membership, Vec::new());
            if changed {
                self.tell_membership();
            }
            self.log.restart(last);
            self.verified = last.index;
            self.told_match = self.told_match.min(last.index);
        }
        self.forget_applying();
        self.verified = self.verified.max(self.log.commit);
        self.owed_ack = self.owed_ack.or(self.restoring.epoch);
        if self.restoring.next.is_none() {
            self.restoring.epoch = None;
        }
        self.out.events.push(Event::Restored { last, kept });
    }

    /// Up to here the commit index may go. An honest leader never comes into the way of this: a snapshot holds nothing but what is committed.
    pub(crate) fn commit_limit(&self) -> LogIndex {
        match self.restoring.handed_out() {
            Some(last) if !self.log.contains(last) => last.index.prev(),
            _ => LogIndex(u64::MAX),
        }
    }

    /// Whether a snapshot that is being taken over will put `prev` into the log, or something before it: no reason to refuse an append, and the
    /// acknowledgement of the snapshot will say more.
    pub(crate) fn awaits_restore(&self, prev: LogIndex) -> bool {
        self.restoring.newest().is_some_and(|last| last.index <= prev)
    }

    /// An append had to be dropped: its sender is told as soon as the snapshot is taken over.
    pub(crate) fn owe_after_restore(&mut self, epoch: u64) {
        self.restoring.epoch = Some(epoch);
    }

    /// Whether the log lacks what it is known to need: then it cannot win an election, and must not try.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.restoring.newest().is_some_and(|last| !self.log.contains(last))
    }
}
