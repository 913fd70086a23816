//! A node that hands leadership over: because someone asked for it, or because it is to stop.

use raft_core::{Instant, NodeId, Raft as Core};
use tokio::sync::oneshot;

use crate::handle::TransferFailure;

type Done = oneshot::Sender<Result<NodeId, TransferFailure>>;

/// What waits for the end of a transfer of leadership.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// To whom, how long at most, and who wants to know.
    waiting: Vec<(NodeId, Instant, Done)>,
    /// The node stops when it has handed over, and at this time at the latest.
    leave_at: Option<Instant>,
}

impl Handover {
    /// `done` is told when the transfer to `to`, which was just begun, has come to an end.
    pub(crate) fn await_end(&mut self, now: Instant, to: NodeId, core: &Core, done: Done) {
        // The attempt itself takes one election timeout at most; then the next leader must become known.
        self.waiting.push((to, now + core.config().election_timeout * 2, done));
    }

    /// The node stops once it has handed over.
    pub(crate) fn leave(&mut self, now: Instant, core: &Core) {
        self.leave_at.get_or_insert(now + core.config().election_timeout);
    }

    /// When to look again at the latest; the loop wakes at `deadline` anyway.
    pub(crate) fn deadline(&self, deadline: Instant) -> Instant {
        let ends = self.waiting.iter().map(|(_, until, _)| *until).chain(self.leave_at);
        ends.fold(deadline, Instant::min)
    }

    /// Tells those who wait what has come of it. Whether the node is to stop now.
    pub(crate) fn look(&mut self, now: Instant, core: &Core) -> bool {
        if self.waiting.is_empty() && self.leave_at.is_none() {
            return false;
        }
        let leads_on = core.is_leader() && core.transferring_to().is_none();
        let next = core.leader().filter(|_| !core.is_leader());
        let over = |until: Instant| leads_on || next.is_some() || now >= until;
        for (to, _, done) in self.waiting.extract_if(.., |(_, until, _)| over(*until)) {
            // Whoever asked may be gone.
            let _ = done.send(next.ok_or(TransferFailure::TimedOut { to }));
        }
        self.leave_at.is_some_and(over)
    }
}
