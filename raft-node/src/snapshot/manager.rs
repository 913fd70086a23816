//! What the node's loop knows of a group's snapshots: which are wanted, and when the log is to be compacted.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use raft_core::{FollowerStatus, Input, Instant, LogIndex, SendSnapshot, SnapshotId};
use raft_net::Transport;
use raft_net::snapshot::{OutgoingSnapshot, SnapshotHeader, SnapshotProgress};
use tokio::sync::oneshot;

use super::directory::{Directory, Stored};
use super::holds::{Holds, Wish};
use super::incoming::Source;
use super::keeper::Shelf;
use super::policy::Ledger;
use super::{SnapshotError, SnapshotMetrics, count, lock};
use crate::inbox::{GroupInbox, Internal};

/// After so long it is looked again whether the log can be compacted as far as it was to be.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What the state machine is to do for snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Make durable what is applied. Only a machine with a disk of its own is told.
    Persist,
    /// Hand a view of the state to whoever writes the file.
    Cut,
}

/// Keeps the wishes together.
///
/// Invariant: while `making`, the state machine has been told to cut, or the file is being written.
pub(crate) struct Manager {
    pub(crate) ledger: Ledger,
    /// Without one there are no snapshots, and the log is never compacted.
    directory: Option<Arc<Directory>>,
    /// Whether the state machine's own disk is what counts, and not a file.
    machine_is_durable: bool,
    inbox: GroupInbox,
    metrics: Arc<SnapshotMetrics>,
    making: bool,
    /// Followers that wait for a file.
    wanted: Vec<SendSnapshot>,
    /// And what they will need of the log.
    pub(crate) holds: Holds,
    /// Up to where the log is to be compacted once they need that no longer, and when to look.
    put_off: Option<(LogIndex, Instant)>,
    /// Those who asked for a snapshot.
    asked: Vec<oneshot::Sender<Result<LogIndex, SnapshotError>>>,
}

impl Manager {
    pub(crate) fn new(ledger: Ledger, machine_is_durable: bool, shelf: Shelf) -> Self {
        let Shelf { directory, inbox, metrics } = shelf;
        let newest = directory.as_ref().and_then(|directory| directory.newest());
        metrics.newest.store(newest.map_or(0, |stored| stored.index().0), Ordering::Relaxed);
        Manager {
            ledger,
            directory,
            machine_is_durable,
            inbox,
            metrics,
            making: false,
            wanted: Vec::new(),
            holds: Holds::default(),
            put_off: None,
            asked: Vec::new(),
        }
    }

    /// Looks at the policy: what the state machine is to do, if it is time.
    pub(crate) fn task(&mut self) -> Option<Task> {
        if self.directory.is_none() || !self.ledger.is_due() {
            return None;
        }
        if self.machine_is_durable { Some(Task::Persist) } else { self.cut() }
    }

    /// Up to where the log is to be compacted, if it is time. The state machine's own state is durable up to `durable`; the log begins behind `start`. A leader knows its followers.
    pub(crate) fn compact(
        &mut self,
        now: Instant,
        durable: LogIndex,
        start: LogIndex,
        followers: impl FnOnce() -> Vec<FollowerStatus>,
    ) -> Option<LogIndex> {
        let directory = self.directory.as_ref()?;
        let durable = if self.machine_is_durable { durable } else { directory.newest()?.index() };
        let due = self.ledger.compact(durable);
        let wanted = due.or_else(|| self.put_off.take_if(|(_, at)| now >= *at).map(|(wanted, _)| wanted))?;
        if wanted <= start {
            tracing::info!(%durable, "the state is durable; the log is short enough to be kept whole");
            return None;
        }
        let mut up_to = wanted;
        if !self.holds.is_empty() {
            let (applied_bytes, most_bytes) = (self.ledger.applied_bytes(), self.ledger.hold_bytes());
            let wish = Wish { start, wanted, is_new: due.is_some(), applied_bytes, most_bytes };
            up_to = self.holds.limit(wish, &followers());
        }
        self.put_off = (up_to < wanted).then_some((wanted, now + LOOK_AGAIN));
        if up_to < wanted && (due.is_none() || up_to <= start) {
            if due.is_some() {
                tracing::info!(%wanted, "the log is kept for a follower that gets a snapshot");
            }
            return None;
        }
        count(&self.metrics.compactions);
        tracing::info!(%up_to, %durable, "the log is compacted");
        Some(up_to)
    }

    /// Someone wants a snapshot, now.
    pub(crate) fn ask(&mut self, answer: oneshot::Sender<Result<LogIndex, SnapshotError>>) -> Option<Task> {
        if self.directory.is_none() {
            let _ = answer.send(Err(SnapshotError::Unsupported));
            return None;
        }
        self.asked.push(answer);
        self.ledger.demand();
        self.cut().or(self.machine_is_durable.then_some(Task::Persist))
    }

    /// A follower needs a snapshot: any file that reaches far enough will do.
    pub(crate) fn send(&mut self, wanted: SendSnapshot, transport: &mut impl Transport) -> Option<Task> {
        let Some(directory) = &self.directory else {
            self.failed(&wanted);
            return None;
        };
        if let Some(stored) = directory.newest().filter(|stored| stored.index() >= wanted.at_least) {
            self.transfer(wanted, &stored, transport);
            return None;
        }
        self.holds.begin(wanted.to, wanted.epoch, wanted.at_least, self.ledger.applied_bytes());
        self.wanted.push(wanted);
        self.cut()
    }

    fn cut(&mut self) -> Option<Task> {
        (!std::mem::replace(&mut self.making, true)).then_some(Task::Cut)
    }

    /// A file was made, or not.
    pub(crate) fn made(&mut self, made: Result<Stored, SnapshotError>, transport: &mut impl Transport) -> Option<Task> {
        self.making = false;
        let asked = std::mem::take(&mut self.asked);
        let answer = made.as_ref().map(Stored::index).map_err(Clone::clone);
        asked.into_iter().for_each(|who| drop(who.send(answer.clone())));
        let wanted = std::mem::take(&mut self.wanted);
        match made {
            Ok(stored) => {
                self.metrics.newest.fetch_max(stored.index().0, Ordering::Relaxed);
                for wish in wanted {
                    // The log may have been compacted meanwhile.
                    if stored.index() >= wish.at_least {
                        self.transfer(wish, &stored, transport);
                    } else {
                        self.wanted.push(wish);
                    }
                }
            }
            Err(_) => {
                wanted.iter().for_each(|wish| self.failed(wish));
                if !self.machine_is_durable {
                    self.ledger.give_up();
                }
            }
        }
        let newest = self.directory.as_ref().and_then(|directory| directory.newest()).map(|stored| stored.index());
        let short = !self.machine_is_durable && self.ledger.waits_for_more_than(newest.unwrap_or_default());
        if short || !self.wanted.is_empty() { self.cut() } else { None }
    }

    /// The state machine has taken over the snapshot that came under this number.
    pub(crate) fn restored(&mut self, id: SnapshotId, last: LogIndex) {
        self.ledger.restored(last);
        count(&self.metrics.restored);
        if let Some(directory) = &self.directory {
            directory.release(id);
        }
    }

    fn transfer(&mut self, wanted: SendSnapshot, stored: &Stored, transport: &mut impl Transport) {
        let SendSnapshot { to, term, epoch, .. } = wanted;
        self.holds.begin(to, epoch, stored.index(), self.ledger.applied_bytes());
        let Some(pace) = self.directory.as_ref().map(|directory| directory.pace()) else { return self.failed(&wanted) };
        let file = match File::open(&stored.path) {
            Ok(file) => file,
            Err(error) => {
                tracing::warn!(path = %stored.path.display(), %error, "the snapshot cannot be read");
                return self.failed(&wanted);
            }
        };
        let meta = stored.header.meta.clone();
        let last = meta.last;
        let header =
            SnapshotHeader { group: stored.header.group, term, epoch, meta, id: stored.header.id, size: stored.size };
        let progress = SnapshotProgress::of(stored.size);
        lock(&self.metrics.outgoing).insert(to, progress.clone());
        tracing::info!(%to, %last, bytes = stored.size, "sending a snapshot");
        let (inbox, metrics, ours, found) = (self.inbox.clone(), self.metrics.clone(), progress.clone(), pace.clone());
        let done = move |sent: Result<(), raft_net::snapshot::SnapshotError>| {
            // A later transfer to the same follower has its own place.
            let mut outgoing = lock(&metrics.outgoing);
            if outgoing.get(&to).is_some_and(|progress| Arc::ptr_eq(progress, &ours)) {
                outgoing.remove(&to);
            }
            drop(outgoing);
            match &sent {
                Ok(()) => {
                    count(&metrics.sent);
                    tracing::info!(%to, %last, pace = found.rate(), "snapshot sent");
                }
                Err(error) => {
                    count(&metrics.failed);
                    tracing::warn!(%to, %last, %error, "the snapshot was not sent");
                }
            }
            inbox.send(Internal::Core(Input::SnapshotSent { to, epoch, last: sent.ok().map(|()| last) }));
        };
        let source = Box::new(Source { file, pace });
        transport.send_snapshot(OutgoingSnapshot { to, header, source, progress, done: Box::new(done) });
    }

    fn failed(&self, wanted: &SendSnapshot) {
        let SendSnapshot { to, epoch, .. } = *wanted;
        count(&self.metrics.failed);
        self.inbox.send(Internal::Core(Input::SnapshotSent { to, epoch, last: None }));
    }
}

impl Drop for Manager {
    /// Nobody is left without an answer.
    fn drop(&mut self) {
        self.asked.drain(..).for_each(|who| drop(who.send(Err(SnapshotError::ShuttingDown))));
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{GroupId, NodeId};

    use super::super::holds::tests::follower;
    use super::super::policy::SnapshotPolicy;
    use super::*;
    use crate::inbox::{Inbox, Life};
    use crate::pace::Pace;

    #[test]
    fn a_compaction_that_was_put_off_is_made_up_for_without_another_write() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), GroupId(1), Pace::new()).unwrap();
        let (inbox, _news) = Inbox::new();
        let inbox = inbox.of(Life { group: GroupId(1), number: 1 });
        let shelf = Shelf { directory: Some(Arc::new(directory)), inbox, metrics: Arc::default() };
        let policy = SnapshotPolicy { entries: 100, bytes: 0, keep_entries: 0, keep_bytes: 0, hold_bytes: 1000 };
        let ledger = Ledger::new(policy, LogIndex::ZERO, LogIndex::ZERO, 0);
        let mut manager = Manager::new(ledger, true, shelf);
        manager.holds.begin(NodeId(2), 1, LogIndex(40), 0);
        (1..=100).for_each(|index| manager.ledger.applied(LogIndex(index), 1));
        assert_eq!(manager.task(), Some(Task::Persist));

        let mut compact = |at: Duration, start: u64, matched: u64| {
            manager.compact(Instant(0) + at, LogIndex(100), LogIndex(start), || vec![follower(2, matched, false)])
        };
        assert_eq!(compact(Duration::ZERO, 0, 40), Some(LogIndex(40)), "as far as it can go");
        assert_eq!(compact(LOOK_AGAIN / 2, 40, 100), None, "nobody looks yet");
        assert_eq!(compact(LOOK_AGAIN, 40, 70), None, "a little more is no reason to compact");
        assert_eq!(compact(LOOK_AGAIN * 2, 40, 100), Some(LogIndex(100)), "and the rest");
        assert_eq!(compact(LOOK_AGAIN * 9, 100, 100), None, "once");
    }
}
