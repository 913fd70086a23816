//! The end of a run: all faults end, the cluster must recover within a bound, and then everything is looked at once more.

use std::collections::BTreeMap;
use std::time::Duration;

use super::replica::Replica;
use super::server::Server;
use super::sometimes::Situation;
use super::workload::{Operation, Workload};
use super::world::{Event, World};
use crate::sim::cluster::{id_of, index_of};
use crate::sim::linearizability::Verdict;
use crate::types::{Instant, LogId, LogIndex};

impl<W: Workload> World<'_, W> {
    /// Every fault ends: links work and are quick, disks sync, the frozen go on, the crashed start.
    pub(super) fn heal(&mut self) {
        self.note(format_args!("all faults end"));
        self.era += 1;
        let now = self.now();
        self.last_nap = self.nap_left().unwrap_or_default();
        self.healed = Some(now);
        self.network.heal();
        let behind = self.servers.iter().map(|server| server.disk.live().last().index).min();
        let ahead = self.servers.iter().map(|server| server.disk.live().last().index).max();
        let applied = self.survivors().map(|server| if server.is_up() { &server.replica } else { &server.flushed });
        let applied = applied.map(|replica| replica.applied.index.0).min();
        self.backlog = ahead.map_or(0, |ahead| ahead.0) - applied.unwrap_or(0);
        if ahead.zip(behind).is_some_and(|(ahead, behind)| ahead - behind > 20) {
            self.counts.saw(Situation::Backlog);
        }
        for i in 0..self.servers.len() {
            let server = &mut self.servers[i];
            server.stalled_until = now;
            server.sync_fails = false;
            // What has rotted and was never read again is mended by hand before the end: recovery is not to be put off by new losses.
            server.rotten &= !server.is_up();
            server.frozen_until = now;
            if server.is_up() {
                server.pump_asked = false;
                self.ask_for_pump(i);
            } else {
                self.start(i);
            }
        }
        self.schedule.after(Self::LOOK_EVERY, Event::Look);
    }

    const LOOK_EVERY: Duration = Duration::from_millis(50);

    /// How long recovery may take: some elections (each may be lost to a split vote), what clients wait before they ask again, and the
    /// time to catch up a log, entry by entry in the worst case.
    fn bound(&self) -> Duration {
        self.mix.config.election_timeout * 20
            + self.mix.patience * 4
            + Duration::from_secs(5)
            + Duration::from_millis(20) * self.backlog as u32
    }

    /// Has the cluster recovered? First every client must succeed with something that it began after the end of the faults, and with a command, unless it
    /// only ever reads; then the clients fall silent, and all servers must come to the same state.
    pub(super) fn look(&mut self) {
        self.dismiss();
        self.bring_back();
        let (now, bound) = (self.now(), self.bound());
        let Some(healed) = self.healed else { return };
        // Whoever naps while the faults end comes when the nap is over.
        let late = now.since(healed) > bound + self.last_nap;
        if !self.quiet {
            self.quiet = self.clients.iter().all(|client| client.is_served_since(healed));
            if !self.quiet && late {
                return self.not_recovered("serve every client");
            }
        } else if self.clients.iter().all(super::client::Client::is_idle) && self.agree() {
            self.over = self.has_rested();
            if !self.over && late {
                return self.not_recovered("go to sleep");
            }
        } else if late {
            return self.not_recovered("come to one state");
        }
        self.schedule.after(Self::LOOK_EVERY, Event::Look);
    }

    /// Where groups sleep: they do, since nobody wants anything, and then the leader dies, and they have a new one all the same. It comes back, and they
    /// sleep again.
    fn has_rested(&mut self) -> bool {
        if self.mix.naps.is_none() || !self.can_sleep() {
            return true;
        }
        let sleeps =
            |server: &Server<W>| server.driver.as_ref().is_some_and(|driver| driver.deadline() == Instant::NEVER);
        if !self.survivors().all(sleeps) {
            return false;
        }
        let Some(leader) = self.leader() else { return false };
        let term = self.servers[leader].term();
        if let Some(died_in) = self.last_death {
            return term > died_in;
        }
        let (_, members) = self.checker.membership();
        let others_elect =
            members.has_quorum(|id| id != id_of(leader) && self.survivors().any(|server| server.id == id));
        if others_elect {
            self.note(format_args!("all sleep, and the leader dies"));
            self.last_death = Some(term);
            // All that is promised begins anew.
            (self.healed, self.last_nap) = (Some(self.now()), Duration::ZERO);
            self.crash(leader);
        }
        !others_elect
    }

    /// Whether this cluster can come to rest: nobody is missing, and the leader has something to show for its term. (A member that should rather lead does
    /// not keep it awake for ever: it gets what it wants first.)
    fn can_sleep(&self) -> bool {
        let (_, members) = self.checker.membership();
        let missing = members.members().into_iter().any(|id| !self.survivors().any(|server| server.id == id));
        let leader = self.leader().and_then(|i| self.servers[i].raft());
        let own = leader.is_some_and(|raft| raft.term_at(raft.commit_index()) == Some(raft.current_term()));
        !missing && own
    }

    /// The leader that died in the end comes back when another leads.
    fn bring_back(&mut self) {
        let Some(died_in) = self.last_death else { return };
        let replaced = self.leader().is_some_and(|leader| self.servers[leader].term() > died_in);
        let down = (0..self.servers.len()).find(|i| {
            let server = &self.servers[*i];
            let members = self.checker.membership().1;
            !server.is_up() && !server.lost && members.has_member(server.id, server.identity)
        });
        if let Some(i) = down.filter(|_| replaced) {
            self.start(i);
        }
    }

    fn not_recovered(&mut self, what: &str) {
        let states: Vec<_> = self.servers.iter().map(|server| server.raft().map(crate::Raft::status)).collect();
        self.failed(format!(
            "liveness: {:?} after the end of all faults the cluster does not {what}: {states:#?}",
            self.bound() + self.last_nap
        ));
    }

    /// The servers that take part to the end: members that have their disks.
    fn survivors(&self) -> impl Iterator<Item = &Server<W>> {
        let (_, members) = self.checker.membership();
        self.servers.iter().filter(|server| !server.lost && members.has_member(server.id, server.identity))
    }

    /// All follow one leader, and have the same log, committed and applied. (Whoever led before may know of more that is committed than a leader that cannot
    /// commit it.)
    fn agree(&self) -> bool {
        let Some(leader) = self.leader() else { return false };
        let Some(first) = self.servers[leader].raft().map(crate::Raft::status) else { return false };
        // Without an entry of its own term, a leader cannot commit what earlier ones left (paper, section 5.4.2). With one, it commits them all.
        let settled = !first.membership.is_joint() && first.membership_index <= first.commit_index;
        let may_wait = !self.mix.config.no_op_on_election && first.last_log.term < first.current_term;
        let all_committed = may_wait || first.commit_index == first.last_log.index;
        settled
            && all_committed
            && self.survivors().all(|server| {
                let Some(status) = server.raft().map(crate::Raft::status) else { return false };
                status.leader == Some(id_of(leader))
                    && status.last_log == first.last_log
                    && (status.commit_index == first.commit_index
                        || may_wait && status.commit_index > first.commit_index)
                    && status.membership == first.membership
                    && status.durable_index == status.last_log.index
                    && server.replica.applied.index == status.commit_index
                    // Whoever was let in has an answer; but reads wait for what a leader has committed itself.
                    && (may_wait
                        || server.open.is_empty()
                            && server.driver.as_ref().is_none_or(|driver| driver.waits() == 0))
            })
    }

    /// The last look, when everything has come to rest. Returns for how many keys the question of linearizability stayed open.
    pub(super) fn examine(&mut self) -> u64 {
        self.clients.iter_mut().for_each(super::client::Client::end);
        let equal = self.check_equal();
        self.check(equal);
        let kept = self.check_acknowledged();
        self.check(kept);
        let histories = self.histories();
        let mut unknown = 0;
        for (object, history) in histories {
            match W::check(&history, 1_000_000) {
                Verdict::Linearizable => {}
                Verdict::Unknown => unknown += 1,
                Verdict::Violation { stuck } => {
                    self.note(format_args!("history of object {object}:"));
                    history.iter().for_each(|op| self.note(format_args!("    {op:?}")));
                    self.failed(format!("object {object} is not linearizable: no order explains {stuck:?}"));
                }
            }
        }
        unknown
    }

    /// Those that have applied as much are equal.
    fn check_equal(&self) -> Result<(), String> {
        let mut known: BTreeMap<LogIndex, &Replica<W>> = BTreeMap::new();
        for replica in self.survivors().map(|server| &server.replica) {
            let other = *known.entry(replica.applied.index).or_insert(replica);
            if other != replica {
                return Err(format!("the state machines differ: {other:#?} and {replica:#?}"));
            }
        }
        Ok(())
    }

    /// What all clients did with each object, in the order in which it began.
    fn histories(&self) -> BTreeMap<usize, Vec<Operation>> {
        let mut histories: BTreeMap<usize, Vec<Operation>> = BTreeMap::new();
        for client in &self.clients {
            for (object, operations) in &client.history {
                histories.entry(*object).or_default().extend_from_slice(operations);
            }
        }
        histories.values_mut().for_each(|history| history.sort_by_key(|op| op.invoked));
        histories
    }

    /// Every change that was acknowledged is committed at its place with its content, is on the disks of a majority, and is there once.
    fn check_acknowledged(&self) -> Result<(), String> {
        let mut places: BTreeMap<LogIndex, LogId> = BTreeMap::new();
        for acknowledged in self.clients.iter().flat_map(|client| &client.acknowledged) {
            let entry = acknowledged.entry;
            if places.insert(entry.index, entry).is_some() {
                return Err(format!("two changes were acknowledged as {entry}"));
            }
            let committed = self.checker.committed_entry(entry.index).and_then(|segment| segment.get(entry.index));
            if !committed.is_some_and(|committed| committed.id() == entry && committed.payload == acknowledged.content)
            {
                return Err(format!("acknowledged as {entry}, but committed there is {committed:?}"));
            }
            // A disk that nobody may trust any more counts for nothing, nor does that of a member in whose place another server is by now: a majority of the
            // others has it all, since faults leave one.
            let (_, members) = self.checker.membership();
            let has = |id| {
                let Some(server) = index_of(id).and_then(|i| self.servers.get(i)) else { return false };
                let gone = server.lost || !members.has_member(id, server.identity);
                !gone && self.checker.holds(server.disk.durable(), entry)
            };
            if !members.has_quorum(has) {
                return Err(format!("{entry} was acknowledged and is not on the disks of a majority of {members:?}"));
            }
        }
        Ok(())
    }
}
