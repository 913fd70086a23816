//! The operator, who changes who belongs to the cluster: servers join as learners, are promoted, replaced and removed, the leader too; and come back
//! under the same id, with their disk or as another server with an empty one.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::client::{Ask, Ticket};
use super::mix::Fault;
use super::replica::Replica;
use super::server::{Item, Server};
use super::sometimes::Situation;
use super::workload::Workload;
use super::world::{Event, World};
use crate::change::{ChangeError, MembershipChange};
use crate::driver::RequestError;
use crate::membership::Membership;
use crate::message::{Envelope, Message};
use crate::sim::cluster::{id_of, index_of};
use crate::sim::disk::Disk;
use crate::sim::schedule::Dice;
use crate::types::{LogIndex, NodeId, Term};

/// The operator's name among the clients.
const OPERATOR: usize = usize::MAX - 1;

/// What the operator knows.
#[derive(Debug)]
pub(super) struct Operator {
    dice: Dice,
    /// The requests that are not answered yet, by number: to which server, in which of its lives.
    pending: BTreeMap<u64, (usize, u64)>,
    requests: u64,
    /// Whom the last request removes.
    removing: Vec<NodeId>,
    /// Who has left, in the term of which leader.
    left: BTreeMap<NodeId, Term>,
}

impl Operator {
    pub(super) fn new(dice: Dice) -> Self {
        Operator { dice, pending: BTreeMap::new(), requests: 0, removing: Vec::new(), left: BTreeMap::new() }
    }
}

impl<W: Workload> World<'_, W> {
    /// Something is changed, and the next change is planned.
    pub(super) fn next_change(&mut self) {
        let Some(changes) = self.mix.changes.filter(|_| self.healed.is_none()) else { return };
        if self.nap_left().is_some() {
            // Nobody wants anything.
        } else if self.nothing_asked() {
            if self.operator.dice.chance(1, 3) {
                let i = self.operator.dice.pick(self.servers.len());
                let lost = (0..self.servers.len()).find(|i| self.servers[*i].lost);
                self.replace(lost.unwrap_or(i));
            }
            self.change_something();
        } else if self.operator.dice.chance(1, 4) {
            // As somebody would who does not know that a change is under way.
            self.change_something();
        }
        // Some follow on one another at once.
        let wait = if self.operator.dice.chance(1, 3) { Duration::from_millis(60) } else { changes.interval * 2 };
        let wait = self.operator.dice.time(Duration::ZERO, wait);
        self.schedule.after(wait, Event::Change);
    }

    /// Whether no request waits for an answer.
    pub(super) fn nothing_asked(&mut self) -> bool {
        let servers = &self.servers;
        self.operator.pending.retain(|_, (server, life)| servers[*server].is_up() && servers[*server].life == *life);
        self.operator.pending.is_empty()
    }

    fn change_something(&mut self) {
        let anyone = self.operator.dice.chance(1, 20).then(|| self.operator.dice.pick(self.servers.len()));
        let Some(server) = anyone.or_else(|| self.leader()) else { return };
        let Some(membership) = self.servers[server].raft().map(|raft| raft.membership().1.clone()) else { return };
        let gone = self.gone(&membership).filter(|_| self.operator.dice.chance(1, 2));
        let change = match gone {
            Some(id) => MembershipChange { removed: vec![id], ..MembershipChange::new() },
            None => self.draw_change(&membership, id_of(server)),
        };
        self.operator.removing.clone_from(&change.removed);
        self.ask_for_change(server, change);
    }

    /// A member that has lost its disk.
    fn gone(&self, membership: &Membership) -> Option<NodeId> {
        let gone = |id: &NodeId| self.servers[place(*id)].lost || !self.is_meant(membership, place(*id));
        membership.members().into_iter().find(gone)
    }

    /// Whether a membership that has this server's id means the server that has it now.
    pub(super) fn is_meant(&self, membership: &Membership, i: usize) -> bool {
        !membership.contains(id_of(i)) || membership.identity(id_of(i)) == self.servers[i].identity
    }

    /// Whether what its disk holds can be trusted.
    pub(super) fn is_sound(&self, i: usize) -> bool {
        !self.servers[i].rotten && !self.servers[i].lost
    }

    /// Whether a majority of a membership has its disks, also without this server.
    pub(super) fn has_majority(&self, membership: &Membership, without: Option<usize>) -> bool {
        membership.has_quorum(|id| {
            let i = place(id);
            Some(i) != without && self.is_sound(i) && self.is_meant(membership, i)
        })
    }

    /// Those who were removed just now come back, while the leader still tells them that they are out; as others, perhaps.
    pub(super) fn come_back(&mut self) {
        let back = std::mem::take(&mut self.operator.removing);
        let (Some(leader), true) = (self.leader(), self.healed.is_none() && self.nothing_asked()) else { return };
        if let (Some(id), true) = (back.first(), self.operator.dice.chance(1, 2)) {
            self.replace(place(*id));
        }
        let mut change = MembershipChange { learners: back, ..MembershipChange::new() };
        self.introduce(&mut change);
        self.ask_for_change(leader, change);
    }

    /// Whoever is asked knows who was heard lately; that a disk is lost only the operator knows, who takes care not to depend on it.
    fn ask_for_change(&mut self, server: usize, change: MembershipChange) {
        let now = self.servers[server].raft().map(|raft| raft.membership().1);
        let next = now.and_then(|now| now.changed(&change).ok());
        if self.mix.has(Fault::DiskLoss) && next.is_some_and(|next| !self.has_majority(&next, None)) {
            return;
        }
        self.note(format_args!("the operator asks n{}: {change:?}", server + 1));
        self.operator.requests += 1;
        self.operator.pending.insert(self.operator.requests, (server, self.servers[server].life));
        let ticket = Ticket { client: OPERATOR, attempt: self.operator.requests };
        self.servers[server].inbox.push_back(Item::Request(ticket, Ask::Change(change)));
        self.ask_for_pump(server);
    }

    fn draw_change(&mut self, now: &Membership, leader: NodeId) -> MembershipChange {
        let dice = &mut self.operator.dice;
        let all: Vec<NodeId> = (0..self.servers.len()).map(id_of).collect();
        let outsiders: Vec<NodeId> = all.iter().copied().filter(|id| !now.contains(*id)).collect();
        let members = now.members();
        let mut any = |ids: &[NodeId]| (!ids.is_empty()).then(|| ids[dice.pick(ids.len())]);
        let (outsider, learner, voter, member) =
            (any(&outsiders), any(now.learners()), any(now.voters()), any(&members));
        let mut change = MembershipChange::new();
        let growing = now.voters().len() < 3;
        match dice.pick(8) {
            0 => change.learners.extend(outsider),
            1 => change.voters.extend_from_slice(now.learners()),
            2 if growing => change.voters.extend(learner.or(outsider)),
            2 => change.removed.extend(if dice.chance(1, 2) { Some(leader) } else { member }),
            3 => {
                change.voters.extend(learner);
                change.removed.extend(voter);
            }
            4 => change.learners.extend(voter.filter(|_| !growing).or(outsider)),
            5 => change.removed.extend(member.filter(|_| !growing)),
            6 => change.info.extend(member.map(|id| (id, Bytes::from(format!("{}", dice.pick(3)))))),
            _ => {
                for id in all {
                    match dice.pick(4) {
                        0 => change.voters.push(id),
                        1 => change.learners.push(id),
                        2 if now.contains(id) => change.removed.push(id),
                        _ => {}
                    }
                }
            }
        }
        change.forced = dice.chance(1, 12);
        self.introduce(&mut change);
        change
    }

    /// Says which servers are meant: others may have had their ids before.
    fn introduce(&self, change: &mut MembershipChange) {
        let joining: Vec<NodeId> = change.voters.iter().chain(&change.learners).copied().collect();
        change.identities.extend(joining.into_iter().map(|id| (id, self.servers[place(id)].identity)));
    }

    /// Puts another server, with an empty disk, in the place of one that has left for good: no log that may still count knows it.
    fn replace(&mut self, i: usize) {
        let (id, (index, committed)) = (id_of(i), self.checker.membership());
        let knows = |disk: &Disk| {
            let logs = [disk.live(), disk.durable()].into_iter().flat_map(super::super::disk::Image::memberships);
            logs.into_iter().any(|(at, membership)| at > index && membership.contains(id))
        };
        let others = self.servers.iter().filter(|server| server.id != id);
        let fresh = self.servers[i].disk.live().last().index == LogIndex::ZERO && !self.servers[i].lost;
        if fresh || committed.is_joint() || committed.contains(id) || others.into_iter().any(|other| knows(&other.disk))
        {
            return;
        }
        self.crash(i);
        self.note(format_args!("another server takes the place of n{}, and knows nothing", i + 1));
        self.counts.saw(Situation::Replaced);
        self.renew(i);
        self.start(i);
    }

    /// From now on another server has this id, with an empty disk.
    fn renew(&mut self, i: usize) {
        let server = &mut self.servers[i];
        (server.disk, server.flushed, server.replica) = (Disk::empty(), Replica::default(), Replica::default());
        server.restored = None;
        server.identity += 1;
        server.succeeds |= server.lost;
        (server.rotten, server.lost) = (false, false);
        let identity = server.identity;
        self.checker.replaced(id_of(i), identity);
    }

    /// As somebody would who does not know better: the disk of a server is emptied, and it is started under its old id as if nothing had happened.
    pub(super) fn wipe_perhaps(&mut self, i: usize) {
        if self.operator.dice.chance(1, 2) {
            self.note(format_args!("n{} is to start again with an empty disk", i + 1));
            self.checker.bury(id_of(i), &self.servers[i].disk);
            self.renew(i);
            self.start_later(i);
        }
    }

    /// Which server under this id the sender of a message means, as far as it knows; servers tell one another who they are when they connect.
    /// Answers go to whoever asked.
    pub(super) fn meant(&self, envelope: &Envelope) -> Option<u64> {
        let asks = matches!(
            envelope.body,
            Message::PreVote(_)
                | Message::RequestVote(_)
                | Message::AppendEntries(_)
                | Message::Heartbeat(_)
                | Message::TimeoutNow(_)
                | Message::Quiesce(_)
        );
        if !asks {
            return None;
        }
        let sender = &self.servers[index_of(envelope.from)?];
        let (_, membership) = sender.raft()?.membership();
        if membership.contains(envelope.to) {
            return Some(membership.identity(envelope.to));
        }
        // One that has left, and is told so.
        let known = sender.disk.live().memberships().into_iter().rev().find(|(_, known)| known.contains(envelope.to));
        Some(known.map_or(0, |(_, known)| known.identity(envelope.to)))
    }

    /// Whom the leader means when it sends a snapshot to `to`.
    pub(super) fn meant_by_leader(&self, leader: usize, to: NodeId) -> Option<u64> {
        let (_, membership) = self.servers[leader].raft()?.membership();
        membership.contains(to).then(|| membership.identity(to))
    }

    /// The operator has an answer.
    pub(super) fn operator_hears(&mut self, ticket: Ticket, outcome: Result<(), &RequestError>) {
        if ticket.client != OPERATOR {
            return;
        }
        self.operator.pending.remove(&ticket.attempt);
        let situation = match outcome {
            Ok(()) => {
                let newest = ticket.attempt == self.operator.requests && !self.operator.removing.is_empty();
                if newest && self.operator.dice.chance(1, 2) {
                    let wait = self.operator.dice.time(Duration::ZERO, Duration::from_millis(30));
                    self.schedule.after(wait, Event::ComeBack);
                }
                Situation::MembersChanged
            }
            Err(RequestError::Change(ChangeError::TooEarly)) => Situation::ChangeTooEarly,
            Err(RequestError::Change(ChangeError::InProgress { .. })) => Situation::ChangeInProgress,
            Err(RequestError::Change(ChangeError::NotCaughtUp { .. })) => Situation::NotCaughtUp,
            Err(RequestError::Change(ChangeError::Silent(_))) => Situation::NewVoterSilent,
            Err(RequestError::Change(ChangeError::QuorumAtRisk { .. })) => Situation::QuorumAtRisk,
            Err(RequestError::OutcomeUnknown) => Situation::ChangeUndecided,
            Err(_) => return,
        };
        self.counts.saw(situation);
    }

    /// Another membership counts at a server.
    pub(super) fn members_changed(&mut self, i: usize, index: LogIndex, membership: &Membership) {
        let server = &mut self.servers[i];
        let before = std::mem::replace(&mut server.members_at, index);
        let was_joint = std::mem::replace(&mut server.members_joint, membership.is_joint());
        self.counts.add(Situation::ChangeTruncated, u64::from(index < before));
        let Some(raft) = self.servers[i].raft().filter(|raft| raft.is_leader()) else { return };
        let term = raft.current_term();
        let inherited = was_joint && !membership.is_joint() && raft.term_at(before).is_some_and(|made| made < term);
        self.counts.add(Situation::JointInherited, u64::from(inherited));
        for id in (0..self.servers.len()).map(id_of) {
            if !membership.contains(id) {
                self.operator.left.entry(id).or_insert(term);
            } else if self.operator.left.remove(&id) == Some(term) {
                self.counts.saw(Situation::BackInSameTerm);
            }
            if membership.contains(id) && self.is_meant(membership, place(id)) {
                let succeeds = std::mem::take(&mut self.servers[place(id)].succeeds);
                self.counts.add(Situation::WipedBack, u64::from(succeeds));
            }
        }
    }

    /// At the end, those who do not belong to the cluster are switched off.
    pub(super) fn dismiss(&mut self) {
        let nothing_asked = self.nothing_asked();
        let (index, committed) = self.checker.membership();
        if self.mix.changes.is_none() || index == LogIndex::ZERO || committed.is_joint() || !nothing_asked {
            return;
        }
        // One stays who alone knows of a newer membership, and whom a newer one counts in: that may still be committed.
        let newer = |server: &Server<W>| server.disk.live().memberships().into_iter().filter(|(at, _)| *at > index);
        let needed = |id| self.servers.iter().flat_map(newer).any(|(_, membership)| membership.contains(id));
        let idle = |i: &usize| {
            let id = id_of(*i);
            let up = self.servers[*i].is_up() && !committed.contains(id);
            up && !needed(id) && newer(&self.servers[*i]).next().is_none()
        };
        let idle: Vec<usize> = (0..self.servers.len()).filter(idle).collect();
        idle.into_iter().for_each(|i| self.crash(i));
    }
}

/// Where a server is that is known to be one.
fn place(id: NodeId) -> usize {
    index_of(id).unwrap_or_default()
}
