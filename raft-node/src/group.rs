//! One group of a node: its driver, and what comes in for it.

use std::sync::Arc;

use raft_core::driver::{Driver, RequestError};
use raft_core::{Input, Instant, LogIndex, Membership, NodeId, TransferError};
use raft_net::Transport;
use tokio::sync::watch;

use crate::alarms::Alarm;
use crate::applier::{self, Progress};
use crate::commits::Commits;
use crate::farewell::Farewell;
use crate::handle::{Consistency, Raft, ReadRequest, Request, Stopped};
use crate::handover::Handover;
use crate::inbox::{Fatal, Inbox, Internal, Life};
use crate::ports::{Desk, Outlets, Own};
use crate::reply::Responder;
use crate::snapshot::manager::Task;
use crate::standing::Entry;
use crate::timings::Probe;

/// A group that is open on this node.
pub(crate) struct Group {
    pub(crate) driver: Driver<Responder, ReadRequest>,
    pub(crate) own: Own,
    /// Leadership is being handed over, and those who wait for that.
    pub(crate) handover: Handover,
    pub(crate) progress: Progress,
    /// How much of the progress the core has heard of.
    pub(crate) seen: LogIndex,
    /// Up to where the state machine's own state is known to be durable.
    pub(crate) durable: LogIndex,
    pub(crate) leader: watch::Sender<Option<NodeId>>,
    pub(crate) stopped: watch::Sender<Stopped>,
    /// Measures where the time goes, if it is to.
    pub(crate) probe: Probe,
    pub(crate) commits: Commits,
    /// Whether this node takes part in it.
    pub(crate) entry: Entry,
    /// The handle, for those who ask for one.
    pub(crate) raft: Raft,
    pub(crate) alarm: Alarm,
    /// Something has happened that is to be followed up in this turn of the loop.
    pub(crate) active: bool,
    /// It is to be stopped now.
    pub(crate) over: bool,
}

impl Group {
    pub(crate) fn life(&self) -> Life {
        self.own.life
    }

    /// Who belongs to it, as far as it knows.
    pub(crate) fn membership(&self) -> &Membership {
        self.driver.core().membership().1
    }

    /// When it is to be looked at, whether something happens or not.
    pub(crate) fn deadline(&self) -> Instant {
        self.handover.deadline(self.entry.deadline(|| self.driver.deadline()))
    }

    /// Takes in what a thread has done.
    pub(crate) fn take_in<T: Transport>(&mut self, now: Instant, internal: Internal, node: &mut Outlets<T>) {
        match internal {
            Internal::Core(input) => {
                if let Input::SnapshotSent { to, epoch, last: None } = &input {
                    self.own.snapshots.holds.failed(*to, *epoch);
                }
                self.driver.step(now, input);
            }
            Internal::SnapshotMade(made) => {
                let task = self.own.snapshots.made(made, &mut node.transport);
                self.desk(node).order(task);
            }
            Internal::Durable(durable) => self.durable = self.durable.max(durable),
            Internal::Restored { id, last } => {
                self.durable = self.durable.max(last);
                self.own.snapshots.restored(id, last);
                self.driver.step(now, Input::Restored(id));
            }
            // The loop ends the group.
            Internal::Failed(_) => {}
        }
    }

    /// Takes in what a handle asks for.
    pub(crate) fn request<T: Transport>(&mut self, now: Instant, request: Request, node: &mut Outlets<T>) {
        match request {
            Request::Propose { proposals, asked } => {
                self.probe.candidate(asked);
                for proposal in proposals {
                    self.driver.propose(now, proposal.command, proposal.responder);
                }
            }
            Request::Start { command, responder, placed } => {
                // Whoever asked may be gone.
                let _ = placed.send(self.driver.start(now, command, responder).map_err(RequestError::from));
            }
            Request::Read(reads) => {
                let mut stale = Vec::new();
                for read in reads {
                    match read.consistency {
                        Consistency::Linearizable => self.driver.read(read),
                        Consistency::Lease => self.driver.read_by_lease(read),
                        Consistency::Stale => stale.push(read),
                    }
                }
                self.driver.read_stale(stale);
            }
            Request::ChangeMembership { change, responder } => {
                self.driver.change_membership(now, &change, responder);
            }
            Request::Transfer { to, done } => match self.driver.transfer_leadership(now, to) {
                Ok(to) => self.handover.await_end(now, to, self.driver.core(), done),
                // Whoever asked may be gone.
                Err(error) => drop(done.send(Err(error.into()))),
            },
            Request::Status(reply) => {
                // In a group where nothing else happens, the core has not heard of all that was applied.
                self.hear_progress(now);
                let _ = reply.send(self.driver.core().status());
            }
            Request::Snapshot(reply) => {
                let task = self.own.snapshots.ask(reply);
                self.desk(node).order(task);
            }
            Request::Shutdown => self.leave(now),
        }
    }

    /// A request while this node takes no part: nobody is led by it, and the core, which would look at the clock, is not asked.
    pub(crate) fn decline<T: Transport>(&mut self, now: Instant, request: Request, node: &mut Outlets<T>) {
        let error = || RequestError::NotLeader { hint: None };
        match request {
            Request::Propose { proposals, .. } => {
                proposals.into_iter().for_each(|proposal| proposal.responder.fail(error()));
            }
            Request::Start { placed, responder, .. } => {
                responder.fail(error());
                // Whoever asked may be gone.
                let _ = placed.send(Err(error()));
            }
            Request::Read(reads) => reads.into_iter().for_each(|read| read.responder.fail(error())),
            Request::ChangeMembership { responder, .. } => responder.fail(error()),
            Request::Transfer { done, .. } => drop(done.send(Err(TransferError::NotLeader { hint: None }.into()))),
            Request::Status(_) | Request::Snapshot(_) | Request::Shutdown => self.request(now, request, node),
        }
    }

    /// Ends the group soon. Whoever leads hands over first, so that the others need not find out that it is gone.
    pub(crate) fn leave(&mut self, now: Instant) {
        if !self.entry.is_free() {
            self.over = true;
            return;
        }
        match self.driver.transfer_leadership(now, None) {
            Ok(_) | Err(TransferError::InProgress { .. }) => self.handover.leave(now, self.driver.core()),
            Err(_) => self.over = true,
        }
    }

    /// Carries out what follows from all that came in. `now` was read after that: leases and promises are timed, and what has come in must not seem
    /// younger than it is.
    pub(crate) fn turn<T: Transport>(&mut self, now: Instant, node: &mut Outlets<T>) {
        // As long as messages keep coming, nobody else looks at the clock.
        if self.entry.is_free() && now >= self.deadline() {
            self.driver.step(now, Input::Wake);
        }
        self.hear_progress(now);
        let task = self.own.snapshots.task();
        self.desk(node).order(task);
        let applied = self.seen;
        if self.own.removed.take_if(|removed| *removed <= applied).is_some() {
            self.desk(node).order(Some(Task::Persist));
        }
        let core = self.driver.core();
        let (start, followers) = (core.log_start().index, || core.status().followers);
        if let Some(up_to) = self.own.snapshots.compact(now, self.durable, start, followers) {
            self.driver.compact(up_to);
        }
        self.probe.look(self.driver.core(), false);
        // Some outputs make room for others: entries read back, for the next to be read.
        while self.driver.turn(now, &mut Desk { node, own: &mut self.own }) {}
        self.probe.look(self.driver.core(), true);
        if let Some(took) = self.commits.look(now, self.driver.core()) {
            node.pace.committed(took);
        }
        self.over |= self.handover.look(now, self.driver.core());
        let known = self.driver.core().leader();
        self.leader.send_if_modified(|leader| std::mem::replace(leader, known) != known);
    }

    /// Before a leader that has failed ends: followers that sleep would go on sleeping, since its node is as well as before. So they are woken, and will miss it.
    pub(crate) fn wake_others<T: Transport>(&mut self, now: Instant, node: &mut Outlets<T>) {
        self.driver.wake_others(now);
        self.driver.turn(now, &mut Desk { node, own: &mut self.own });
    }

    /// Ends the group: nobody is left without an answer, and its farewell follows behind the last work for it.
    pub(crate) fn end<T: Transport>(mut self, result: Result<(), Arc<Fatal>>, node: &mut Outlets<T>, inbox: Inbox) {
        let group = self.own.life.group;
        if let Err(error) = &result {
            tracing::error!(%group, %error, "the group stops");
        }
        self.driver.stop(&mut Desk { node, own: &mut self.own });
        node.flusher.flush();
        node.incoming.remove(group);
        self.own.applier.end(Farewell { group, result, stopped: self.stopped, inbox });
    }

    fn hear_progress(&mut self, now: Instant) {
        let applied = applier::reached(&self.progress);
        if applied > self.seen {
            self.seen = applied;
            self.driver.step(now, Input::Applied(applied));
        }
    }

    fn desk<'a, T>(&'a mut self, node: &'a mut Outlets<T>) -> Desk<'a, T> {
        Desk { node, own: &mut self.own }
    }
}
