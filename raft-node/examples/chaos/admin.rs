//! The administrator's track: leadership handed over, logs compacted, members changed and disks lost while the faults go on.
//!
//! Every step is repeated until the leader's own view shows that it was taken, since the answer to a request may be lost, and a request that was given up
//! may be carried out later. One disk is lost at a time: another only when who lost it has its vote again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use raft_core::NodeId;
use raft_core::sim::schedule::Dice;
use raft_node::client::protocol::{MemberChange, NodeStatus};
use raft_node::client::{Client, ClientConfig, Error};
use tokio::time::{Instant, sleep, sleep_until};

use crate::arena::Notes;
use crate::cluster::Cluster;
use crate::deeds::{Appointment, Deed, LEADER_REMOVED, LOST_DISK, NEW_VOTER, REMOVED, TRANSFER};
use crate::journal::{Journal, human};
use crate::monitor::Monitor;
use crate::schedule::Who;

/// How long a request waits for its answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a step is tried while there are faults. One that is not taken then is made good before the next deed.
const STEP: Duration = Duration::from_secs(25);
/// How long a learner may take to get its vote, before it is removed and added anew.
const CATCH_UP: Duration = Duration::from_secs(20);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a node with an emptied disk is watched: nobody may take it for the one that it was. It has to come up, and the others try less and less often.
const WATCH: Duration = Duration::from_secs(6);
/// Until its first words have come, others may have spoken to it, and cut it off then, again and again. Whoever is let in hears a leader for longer than this without a
/// break.
const LET_IN: Duration = Duration::from_secs(3);
/// A node's counter of the others with which it is connected.
const CONNECTED: &str = "net.peers_connected";
/// What a node that is refused finds in its log.
const REFUSAL: &str = "is known here with another data directory";

/// What is to be remembered from deed to deed.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// Members that have lost their disk, and were not added again since.
    blank: BTreeSet<NodeId>,
    /// The newest membership that was seen to be committed.
    newest: u64,
}

/// Who carries out the deeds.
pub(crate) struct Admin<'a, 'c> {
    pub(crate) cluster: &'a RefCell<&'c mut Cluster>,
    pub(crate) monitor: &'a Monitor,
    pub(crate) journal: &'a Journal,
    pub(crate) books: &'a mut Books,
    pub(crate) notes: &'a mut Notes,
    pub(crate) client: Client,
    /// How many voters there are to be.
    pub(crate) voters: usize,
    pub(crate) dice: Dice,
    /// The last complaint, without its numbers: it is often the same.
    pub(crate) complaint: String,
}

/// What a step is to come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Removed(NodeId),
    /// Of one who joins, which node is meant.
    Learner(NodeId, Option<u64>),
    Voter(NodeId),
}

impl Goal {
    fn is_met(self, roles: &Roles) -> bool {
        match self {
            Goal::Removed(id) => !roles.0.contains_key(&id),
            Goal::Learner(id, _) => roles.is(id, "learner"),
            Goal::Voter(id) => roles.is(id, "voter"),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Removed(id) => write!(f, "node {id} is no member"),
            Goal::Learner(id, _) => write!(f, "node {id} is a learner"),
            Goal::Voter(id) => write!(f, "node {id} is a voter"),
        }
    }
}

/// The members and what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Roles(BTreeMap<NodeId, String>);

impl Roles {
    /// The membership as the leader has it, if it is complete, committed, and not older than one that was seen before.
    fn of(status: &NodeStatus, newest: u64) -> Option<Roles> {
        let settled = status.membership_index <= status.commit_index && status.membership_index >= newest;
        let roles: BTreeMap<_, _> = status.members.iter().map(|(id, member)| (*id, member.role.clone())).collect();
        let joint = roles.values().any(|role| role != "voter" && role != "learner");
        (settled && !joint && !roles.is_empty()).then_some(Roles(roles))
    }

    fn is(&self, id: NodeId, role: &str) -> bool {
        self.0.get(&id).is_some_and(|actual| actual == role)
    }

    fn all(&self, role: &str) -> Vec<NodeId> {
        self.0.iter().filter(|(_, actual)| *actual == role).map(|(id, _)| *id).collect()
    }

    /// What is to be done first so that there are so many voters, none of them in `blank`, and nobody else; `None` when nothing is. Of those who are to
    /// come back, those with the lowest id.
    fn repair(&self, voters: usize, blank: &BTreeSet<NodeId>, nodes: &[NodeId]) -> Option<Repair> {
        if let Some(id) = self.0.keys().find(|id| blank.contains(id)) {
            return Some(Repair::Remove(*id));
        }
        let present = self.all("voter");
        match self.all("learner").first() {
            Some(id) if present.len() < voters => return Some(Repair::Promote(*id)),
            Some(id) => return Some(Repair::Remove(*id)),
            None => {}
        }
        if present.len() > voters {
            return present.last().map(|id| Repair::Remove(*id));
        }
        let absent = nodes.iter().find(|id| !self.0.contains_key(id));
        absent.filter(|_| present.len() < voters).map(|id| Repair::Admit(*id))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repair {
    Remove(NodeId),
    Promote(NodeId),
    Admit(NodeId),
}

/// Whether a node is connected to somebody, and hears a leader.
fn is_connected(status: &NodeStatus) -> bool {
    status.leader.is_some() && status.metrics.get(CONNECTED).is_some_and(|peers| *peers > 0)
}

/// Settings of a client for this work.
pub(crate) fn client_config(config: ClientConfig) -> ClientConfig {
    ClientConfig { timeout: PATIENCE, sessions: false, ..config }
}

impl Admin<'_, '_> {
    /// Keeps the appointments, until the faults are over; what every run has to have is made up for then, if it never came off.
    pub(crate) async fn run(mut self, appointments: &[Appointment], begin: Instant, length: Duration) -> Result<()> {
        let mut dropped = 0;
        for Appointment { at, deed } in appointments {
            sleep_until(begin + *at).await;
            let needed = deed.comes_off_as().is_some_and(|kind| !self.notes.deeds.contains_key(kind));
            if begin.elapsed() >= length && !needed {
                dropped += 1;
                continue;
            }
            let done = match deed {
                // These need nobody's whole attention.
                Deed::Transfer(_) | Deed::Snapshot(_) => self.carry_out(*deed).await,
                _ => match self.mend(STEP).await {
                    Ok(()) => self.carry_out(*deed).await,
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = done {
                self.journal.say(&format!("administrator: {deed}: given up: {error:#}"));
                self.notes.deed("given up");
            }
        }
        if dropped > 0 {
            self.journal.say(&format!("administrator: there was no time for {dropped} more deeds"));
        }
        Ok(())
    }

    async fn carry_out(&mut self, deed: Deed) -> Result<()> {
        let node = |who: Who| self.resolve(who);
        match deed {
            Deed::Transfer(to) => {
                let to = to.map(node).transpose()?;
                self.announce(deed, to);
                self.transfer(to, STEP).await
            }
            Deed::Snapshot(who) => {
                let node = node(who)?;
                self.announce(deed, Some(node));
                self.snapshot(node).await
            }
            Deed::Replace(who) => {
                let node = node(who)?;
                self.announce(deed, Some(node));
                self.remove(node, STEP).await?;
                // Left alone for a while, it may make itself unpopular.
                sleep(self.dice.time(Duration::ZERO, Duration::from_millis(1500))).await;
                self.admit(node, STEP).await
            }
            Deed::Swap(who) => {
                let node = node(who)?;
                self.announce(deed, Some(node));
                let spare = self.nodes().into_iter().find(|id| !self.monitor.members().contains(id));
                self.admit(spare.context("all nodes are members")?, STEP).await?;
                self.remove(node, STEP).await
            }
            Deed::Demote(who) => {
                let node = node(who)?;
                self.announce(deed, Some(node));
                self.demote(node).await
            }
            Deed::Wipe(who) => {
                let node = node(who)?;
                self.announce(deed, Some(node));
                self.wipe(node).await
            }
        }
    }

    fn announce(&self, deed: Deed, node: Option<NodeId>) {
        let node = node.map_or(String::new(), |id| format!(" (node {id})"));
        self.journal.say(&format!("administrator: {deed}{node}"));
    }

    /// A member, by what it is at present.
    fn resolve(&self, who: Who) -> Result<NodeId> {
        let leader = self.monitor.leader().context("nobody leads")?;
        let others: Vec<NodeId> = self.monitor.members().into_iter().filter(|id| *id != leader).collect();
        match who {
            Who::Leader => Ok(leader),
            Who::Follower(n) => others.get(n % others.len().max(1)).copied().context("nobody follows"),
        }
    }

    fn nodes(&self) -> Vec<NodeId> {
        self.cluster.borrow().ids()
    }

    /// Until it succeeds.
    pub(crate) async fn transfer(&mut self, to: Option<NodeId>, within: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let before = self.monitor.leader();
            match self.client.transfer_leadership(to).await {
                Ok(leader) => {
                    if before.is_some_and(|before| before != leader) {
                        self.notes.deed(TRANSFER);
                    }
                    self.journal.say(&format!("administrator: node {leader} leads, after {}", human(begin.elapsed())));
                    return Ok(());
                }
                Err(error) => self.failed("refused: transfer", &error),
            }
            if begin.elapsed() > within {
                bail!("no transfer within {within:?}");
            }
            sleep(PAUSE).await;
        }
    }

    /// Until it succeeds.
    async fn snapshot(&mut self, node: NodeId) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.client.snapshot(node).await {
                Ok(_) => {
                    self.notes.deed("compaction on demand");
                    return Ok(());
                }
                Err(error) => self.failed("refused: compaction", &error),
            }
            if begin.elapsed() > STEP {
                bail!("no snapshot within {STEP:?}");
            }
            sleep(PAUSE).await;
        }
    }

    async fn demote(&mut self, node: NodeId) -> Result<()> {
        self.reach(Goal::Learner(node, None), STEP).await?;
        self.notes.deed("voter to learner");
        sleep(self.dice.time(Duration::ZERO, Duration::from_millis(1500))).await;
        self.reach(Goal::Voter(node), STEP).await?;
        self.notes.deed(NEW_VOTER);
        Ok(())
    }

    async fn wipe(&mut self, node: NodeId) -> Result<()> {
        // Of founders everyone remembers whom it met, so all must have met. Who has not cannot know that this is another one.
        let acquainted = |monitor: &Monitor| {
            let members = monitor.members();
            let met = |status: NodeStatus| status.metrics.get(CONNECTED).copied().unwrap_or(0) as usize;
            members.iter().all(|id| monitor.status(*id).is_some_and(|status| met(status) + 1 >= members.len()))
        };
        let begin = Instant::now();
        while !acquainted(self.monitor) {
            if begin.elapsed() > STEP {
                bail!("the members do not meet within {STEP:?}");
            }
            sleep(PAUSE).await;
        }
        let refusals = self.refusals(node)?;
        self.books.blank.insert(node);
        self.cluster.borrow_mut().start_empty(node, false)?;
        self.notes.deed(LOST_DISK);
        self.watch(node, refusals).await?;
        self.remove(node, STEP).await?;
        self.admit(node, STEP).await
    }

    /// Nobody may talk to this node, which has lost its disk; it was refused so often before.
    async fn watch(&mut self, node: NodeId, before: usize) -> Result<()> {
        // What it said in its former life is forgotten by the time that it comes up.
        sleep(Duration::from_secs(1)).await;
        let (begin, mut since) = (Instant::now(), None::<Instant>);
        while begin.elapsed() < WATCH {
            let status = self.monitor.status(node).filter(is_connected);
            match (status, since) {
                (None, _) => since = None,
                (Some(_), None) => since = Some(Instant::now()),
                (Some(status), Some(since)) if since.elapsed() > LET_IN => {
                    let wrong =
                        format!("node {node} has lost its disk, and was taken for the one that it was: {status:?}");
                    self.notes.violations.push(wrong);
                    return Ok(());
                }
                _ => {}
            }
            sleep(PAUSE).await;
        }
        if self.refusals(node)? > before {
            self.notes.deed("empty node refused");
        }
        Ok(())
    }

    /// How often a node was told that another one is meant by its id.
    fn refusals(&self, node: NodeId) -> Result<usize> {
        Ok(self.cluster.borrow().log(node)?.matches(REFUSAL).count())
    }

    /// Removes a member, the leader perhaps.
    async fn remove(&mut self, node: NodeId, within: Duration) -> Result<()> {
        let led = self.monitor.leader() == Some(node);
        self.reach(Goal::Removed(node), within).await?;
        self.books.blank.remove(&node);
        self.notes.deed(if led { LEADER_REMOVED } else { REMOVED });
        Ok(())
    }

    /// Starts a node that is no member with an empty disk, and gives it a vote.
    async fn admit(&mut self, node: NodeId, within: Duration) -> Result<()> {
        let begin = Instant::now();
        self.cluster.borrow_mut().start_empty(node, true)?;
        // Whoever begins with nothing shall need a snapshot.
        if let Some(leader) = self.monitor.leader()
            && let Err(error) = self.client.snapshot(leader).await
        {
            self.failed("refused: compaction", &error);
        }
        let identity = self.identity(node, within).await?;
        self.reach(Goal::Learner(node, Some(identity)), within.saturating_sub(begin.elapsed())).await?;
        self.notes.deed("learner added");
        self.reach(Goal::Voter(node), within.max(CATCH_UP)).await?;
        self.notes.deed(NEW_VOTER);
        self.journal.say(&format!("administrator: node {node} votes, {} after it was empty", human(begin.elapsed())));
        Ok(())
    }

    /// Which node has this id now, according to itself.
    async fn identity(&self, node: NodeId, within: Duration) -> Result<u64> {
        let client = self.cluster.borrow().client_of(node, Duration::from_secs(1))?;
        let begin = Instant::now();
        loop {
            match client.status(node).await {
                Ok(status) => return Ok(status.identity),
                Err(error) if begin.elapsed() > within => return Err(error.into()),
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    /// Asks until it is so.
    async fn reach(&mut self, goal: Goal, within: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            if self.view().is_some_and(|roles| goal.is_met(&roles)) {
                return Ok(());
            }
            if begin.elapsed() > within {
                bail!("not within {within:?}: {goal}; {}", self.monitor.describe());
            }
            match self.client.change_membership(self.change(goal)).await {
                // The next look at the leader may be an old one.
                Ok(index) => self.books.newest = self.books.newest.max(index),
                Err(error) => self.failed("refused: change", &error),
            }
            sleep(PAUSE).await;
        }
    }

    /// The members, as far as that can be relied upon.
    fn view(&mut self) -> Option<Roles> {
        let status = self.monitor.leader_status()?;
        let roles = Roles::of(&status, self.books.newest)?;
        self.books.newest = status.membership_index;
        Some(roles)
    }

    fn change(&self, goal: Goal) -> MemberChange {
        match goal {
            Goal::Removed(id) => MemberChange { removed: vec![id], ..MemberChange::default() },
            Goal::Voter(id) => MemberChange { voters: vec![id], ..MemberChange::default() },
            Goal::Learner(id, None) => MemberChange { learners: vec![id], ..MemberChange::default() },
            Goal::Learner(id, Some(identity)) => {
                let gate = self.cluster.borrow().gate(id);
                let addresses = gate.map(|gate| (id, gate.to_string())).into_iter().collect();
                let identities = vec![(id, identity)];
                MemberChange { learners: vec![id], addresses, identities, ..MemberChange::default() }
            }
        }
    }

    /// Brings the membership into order: so many voters, none of them without what it had, and nobody else.
    pub(crate) async fn mend(&mut self, within: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let rest = within.saturating_sub(begin.elapsed());
            let repair = self.view().map(|roles| roles.repair(self.voters, &self.books.blank, &self.nodes()));
            let step = match repair {
                Some(None) => return Ok(()),
                Some(Some(repair)) => {
                    self.journal.say(&format!("administrator: to be mended: {repair:?}"));
                    match repair {
                        Repair::Remove(id) => self.remove(id, rest).await,
                        Repair::Admit(id) => self.admit(id, rest).await,
                        Repair::Promote(id) => match self.reach(Goal::Voter(id), rest.min(CATCH_UP)).await {
                            // Perhaps another one is meant by its id.
                            Err(_) => self.remove(id, rest).await,
                            done => done,
                        },
                    }
                }
                None => Ok(()),
            };
            if begin.elapsed() > within {
                step?;
                bail!("the membership is not in order within {within:?}: {}", self.monitor.describe());
            }
            sleep(PAUSE).await;
        }
    }

    /// Faults explain that something is refused or takes too long, and nothing else.
    fn failed(&mut self, what: &str, error: &Error) {
        self.notes.deed(what);
        match error {
            Error::Timeout { .. }
            | Error::OutcomeUnknown { .. }
            | Error::ChangeRefused { .. }
            | Error::BadRequest(_) => {
                let said = format!("administrator: {what}: {error}");
                let complaint: String = said.chars().filter(|c| !c.is_ascii_digit()).collect();
                if complaint != self.complaint {
                    self.journal.say(&said);
                    self.complaint = complaint;
                }
            }
            _ => self.notes.violations.push(format!("{what}: an error that no fault explains: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_node::client::protocol::Member;

    use super::*;

    fn status(index: u64, commit_index: u64, members: &[(u64, &str)]) -> NodeStatus {
        let member = |(id, role): &(u64, &str)| {
            (NodeId(*id), Member { role: (*role).to_owned(), address: String::new(), identity: 0 })
        };
        let members = members.iter().map(member).collect();
        NodeStatus { membership_index: index, commit_index, members, ..NodeStatus::default() }
    }

    fn roles(members: &[(u64, &str)]) -> Roles {
        Roles::of(&status(1, 1, members), 0).unwrap()
    }

    #[test]
    fn only_what_is_committed_complete_and_not_old_is_believed() {
        let members = [(1, "voter"), (2, "learner")];
        assert!(Roles::of(&status(5, 5, &members), 5).is_some());
        assert!(Roles::of(&status(5, 4, &members), 5).is_none(), "it may be taken back");
        assert!(Roles::of(&status(5, 9, &members), 6).is_none(), "there is a newer one");
        assert!(Roles::of(&status(5, 9, &[(1, "voter"), (2, "incoming")]), 5).is_none(), "half of a change");
        assert!(Roles::of(&status(0, 0, &[]), 0).is_none(), "who has joined nothing yet knows nothing");
    }

    #[test]
    fn a_goal_is_met_by_what_the_members_are() {
        let roles = roles(&[(1, "voter"), (2, "learner")]);
        for (goal, met) in [
            (Goal::Removed(NodeId(3)), true),
            (Goal::Removed(NodeId(2)), false),
            (Goal::Learner(NodeId(2), None), true),
            (Goal::Learner(NodeId(1), Some(7)), false),
            (Goal::Voter(NodeId(1)), true),
            (Goal::Voter(NodeId(2)), false),
            (Goal::Voter(NodeId(3)), false),
        ] {
            assert_eq!(goal.is_met(&roles), met, "{goal}");
        }
    }

    #[test]
    fn who_hears_a_leader_on_a_connection_that_lasts_was_let_in() {
        let metrics = |peers| [(CONNECTED.to_owned(), peers)].into();
        let status = |leader, peers| NodeStatus { leader, metrics: metrics(peers), ..NodeStatus::default() };
        assert!(is_connected(&status(Some(NodeId(2)), 1)));
        assert!(!is_connected(&status(Some(NodeId(2)), 0)), "it heard one, and was cut off");
        assert!(!is_connected(&status(None, 2)), "nobody has said anything");
    }

    #[test]
    fn whatever_was_left_undone_is_mended_step_by_step() {
        let nodes = [1, 2, 3, 4].map(NodeId);
        let next = |members: &[(u64, &str)], blank: &[u64]| {
            roles(members).repair(3, &blank.iter().map(|id| NodeId(*id)).collect(), &nodes)
        };
        let whole = [(1, "voter"), (2, "voter"), (4, "voter")];
        assert_eq!(next(&whole, &[]), None);
        assert_eq!(next(&whole, &[3]), None, "no member");
        assert_eq!(next(&whole, &[2]), Some(Repair::Remove(NodeId(2))), "it has lost what it knew");
        assert_eq!(next(&whole[..2], &[]), Some(Repair::Admit(NodeId(3))));
        let learns = [(1, "voter"), (2, "voter"), (3, "learner")];
        assert_eq!(next(&learns, &[]), Some(Repair::Promote(NodeId(3))));
        assert_eq!(next(&[&whole[..], &learns[2..]].concat(), &[]), Some(Repair::Remove(NodeId(3))), "one too many");
        let four = [1, 2, 3, 4].map(|id| (id, "voter"));
        assert_eq!(next(&four, &[]), Some(Repair::Remove(NodeId(4))));
    }
}
