//! Snapshots: when a server forgets the beginning of its log, and how a snapshot gets from one server to another.

use std::time::Duration;

use super::replica::{Outcome, Replica};
use super::server::Item;
use super::sessions::Refusal;
use super::sometimes::Situation;
use super::workload::Workload;
use super::world::{Event, World};
use crate::io::{Input, SendSnapshot, SnapshotMeta, SnapshotReceived};
use crate::sim::cluster::{id_of, index_of};
use crate::types::{LogId, LogIndex};

/// A snapshot on its way.
#[derive(Debug)]
pub(super) struct Transfer<W> {
    received: SnapshotReceived,
    replica: Replica<W>,
    /// Which server is meant, of those that have had the receiver's id.
    meant: Option<u64>,
    /// How often it is yet to arrive.
    left: u32,
}

impl<W: Workload> World<'_, W> {
    /// A server forgets what its state machine keeps durably, if that is worth the trouble.
    pub(super) fn compact(&mut self, i: usize) {
        let Some(policy) = self.mix.compaction else { return };
        let server = &mut self.servers[i];
        let Some(raft) = server.raft() else { return };
        if raft.applied_index() - raft.log_start().index <= policy.every + policy.keep {
            return;
        }
        if server.replica.applied.index - server.flushed.applied.index > policy.every / 2 {
            server.flushed = server.replica.clone();
        }
        let (saved, start) = (server.flushed.applied.index, raft_start(server));
        let up_to = LogIndex(saved - LogIndex(policy.keep));
        if let Some(driver) = server.driver.as_mut().filter(|_| up_to > start) {
            driver.compact(up_to);
            if raft_start(server) == start {
                // It does not know yet who belonged to the cluster then.
                return;
            }
            self.checker.saved(id_of(i), saved);
            self.counts.saw(Situation::Compacted);
            self.note(format_args!("n{} forgets its log up to {up_to}", i + 1));
            self.ask_for_pump(i);
        }
    }

    /// A server sends what its state machine keeps, or a cut of its present state. That takes a while, and may fail on the way; and the word
    /// that it has arrived may be lost.
    pub(super) fn send_snapshot(&mut self, i: usize, wanted: SendSnapshot) {
        let SendSnapshot { to, term, epoch, at_least } = wanted;
        let Some(server) = index_of(to).filter(|to| *to < self.servers.len() && *to != i) else {
            return self.failed(format!("n{} sends a snapshot to {to:?}", i + 1));
        };
        let policy = self.mix.compaction.unwrap_or_default();
        let healthy = self.healed.is_some();
        let dice = &mut self.snapshot_dice;
        let (kept, present) = (&self.servers[i].flushed, &self.servers[i].replica);
        let cut = if kept.applied.index >= at_least && dice.chance(1, 2) { kept } else { present };
        let replica = cut.transferred();
        let last = replica.applied;
        if last.index < at_least {
            return self
                .failed(format!("n{} has forgotten its log up to {at_least}, and its state ends at {last}", i + 1));
        }
        let slowest = if healthy { policy.transfer.1.min(Duration::from_millis(10)) } else { policy.transfer.1 };
        let time = dice.time(policy.transfer.0.min(slowest), slowest) + Duration::from_micros(last.index.0);
        let breaks = !healthy && dice.chance(policy.failing, 1000);
        let unheard = !healthy && dice.chance(policy.failing / 4, 1000);
        let again = (!healthy && dice.chance(1, 8)).then(|| time + dice.time(Duration::ZERO, Duration::from_secs(4)));
        self.note(format_args!("n{} -> n{}  t{term} snapshot up to {last}", i + 1, server + 1));
        self.counts.saw(Situation::SnapshotSent);
        let life = self.servers[i].life;
        let sent = |last| Event::SnapshotSent { server: i, life, to, epoch, last };
        if breaks || self.network.is_cut(i, server) || self.network.is_cut(server, i) {
            return self.schedule.after(time / 2, sent(None));
        }
        // Who joined later knows of the members only what it has applied.
        let is_founder = self.servers[i].identity == 0;
        let Some(membership) = replica.membership.clone().or_else(|| is_founder.then(|| self.founders())) else {
            return self.failed(format!("n{} does not know who belonged to the cluster at {last}", i + 1));
        };
        let meta = SnapshotMeta { last, membership };
        // Its id is its receiver's to give.
        let received = SnapshotReceived { from: id_of(i), term, epoch, meta, id: crate::SnapshotId(0) };
        self.sent_snapshots += 1;
        let transfer = self.sent_snapshots;
        let left = 1 + u32::from(again.is_some());
        let meant = self.meant_by_leader(i, to);
        self.transfers.insert(transfer, Transfer { received, replica, meant, left });
        let reported = if unheard { sent(None) } else { sent(Some(last)) };
        self.schedule.after(time, Event::Snapshot { server, transfer, reported: Some(Box::new(reported)) });
        if let Some(again) = again {
            self.schedule.after(again, Event::Snapshot { server, transfer, reported: None });
        }
    }

    /// A snapshot has arrived, unless its receiver is down or the link was cut meanwhile. Its receiver may have restarted since it was sent.
    pub(super) fn snapshot_arrives(&mut self, i: usize, transfer: u64, reported: Option<Box<Event>>) {
        let Some(mut found) = self.transfers.remove(&transfer) else { return };
        let from = index_of(found.received.from).unwrap_or_default();
        let there = self.servers[i].is_up() && found.meant == Some(self.servers[i].identity);
        let lost = !there || self.network.is_cut(from, i);
        if let Some(reported) = reported {
            let reported = match *reported {
                Event::SnapshotSent { server, life, to, epoch, .. } if lost => {
                    Event::SnapshotSent { server, life, to, epoch, last: None }
                }
                other => other,
            };
            self.schedule.after(Duration::from_micros(300), reported);
        }
        if !lost {
            let server = &mut self.servers[i];
            server.snapshots += 1;
            let id = crate::SnapshotId(server.snapshots);
            server.received.insert(id, found.replica.clone());
            let received = SnapshotReceived { id, ..found.received.clone() };
            self.note(format_args!("n{} <- {received:?}", i + 1));
            self.counts.add(Situation::SnapshotsInSuccession, u64::from(self.servers[i].restoring));
            self.servers[i].inbox.push_back(Item::Input(Input::SnapshotReceived(received)));
            self.ask_for_pump(i);
        }
        found.left -= 1;
        if found.left > 0 {
            self.transfers.insert(transfer, found);
        }
    }

    /// A sender hears how a transfer has ended.
    pub(super) fn snapshot_sent(&mut self, i: usize, life: u64, input: Input) {
        if let Input::SnapshotSent { last: None, .. } = input {
            self.counts.saw(Situation::SnapshotFailed);
        }
        if let Some(server) = self.lives(i, life) {
            server.inbox.push_back(Item::Input(input));
            self.ask_for_pump(i);
        }
    }

    /// A state machine may have taken over a snapshot: that must be of what was committed.
    pub(super) fn look_at_restored(&mut self, i: usize) {
        if let Some(last) = self.servers[i].taken_over.take() {
            self.note(format_args!("the state machine of n{} has taken over a snapshot up to {last}", i + 1));
            let restored = self.checker.restored(id_of(i), last);
            self.check(restored);
        }
    }

    /// What a state machine has become after each entry, and after each snapshot, must be the same on all servers.
    pub(super) fn compare_states(&mut self, i: usize) {
        for (index, digest) in std::mem::take(&mut self.servers[i].trail) {
            let at = (index.0 as usize).saturating_sub(1);
            match self.states.get(at) {
                Some(known) if *known != digest => {
                    return self.failed(format!("n{} has another state after {index} than others", i + 1));
                }
                Some(_) => {}
                None if at == self.states.len() => self.states.push(digest),
                None => return self.failed(format!("n{} is at {index}, where nobody was before", i + 1)),
            }
        }
    }

    /// What came of commands with tags on this server.
    pub(super) fn look_at_outcomes(&mut self, i: usize) {
        for applied in std::mem::take(&mut self.servers[i].outcomes) {
            match &applied.outcome {
                Outcome::Refused(Refusal::Expired) => self.counts.saw(Situation::SessionEnded),
                Outcome::Refused(Refusal::Late) => self.counts.saw(Situation::LateCopy),
                Outcome::Done { first: Some(first), .. } => {
                    let restored = self.servers[i].restored.as_ref();
                    let heard = restored.is_some_and(|meta| first.index <= meta.last.index);
                    self.counts.add(Situation::KnownBySnapshot, u64::from(heard));
                }
                Outcome::Done { .. } => {}
            }
            let once = self.once.applied(applied).map_err(|failure| format!("n{}: {failure}", i + 1));
            self.check(once);
        }
    }

    /// A server has told that it took over a snapshot, or crashes: counts what is rare about that.
    pub(super) fn count_restored(&mut self, i: usize, last: LogId, kept: bool) {
        self.servers[i].restoring = false;
        self.counts.saw(if kept { Situation::InstallOvertaken } else { Situation::Installed });
        self.note(format_args!("the log of n{} begins after {last}", i + 1));
    }
}

fn raft_start<W: Workload>(server: &super::server::Server<W>) -> LogIndex {
    server.raft().map_or(LogIndex::ZERO, |raft| raft.log_start().index)
}
