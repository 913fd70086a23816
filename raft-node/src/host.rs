//! The loop of a node: wait for whatever comes first, take in all that has come, carry out what follows in the groups concerned.
//!
//! It is a task on the node's single-threaded runtime, beside the QUIC endpoint: from a packet to a core and back there is no
//! other thread. Only the disk, the state machines, the reader and the snapshots have threads of their own.
//!
//! The work of a turn is proportional to the groups in which something has happened. The others are not even looked at.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use raft_core::{GroupId, Input, Instant, NodeId};
use raft_net::{CloseCode, Inbound, Transport};
use tokio::sync::{mpsc as queue, watch};

use crate::alarms::Alarms;
use crate::group::Group;
use crate::handle::{Asked, Stopped, refuse};
use crate::inbox::{Fatal, Internal, Life, News};
use crate::node::{Control, GroupError, GroupStatus};
use crate::open::{Opened, Reservation, Tools};
use crate::ports::Outlets;
use crate::standing::{Entry, Reception, depends_on_others};
use crate::writer::Order;

/// Most inputs taken in before their consequences are carried out.
const MAX_DRAIN: usize = 4096;
/// So many groups have their turn before the network has one.
const GROUPS_AT_A_TIME: usize = 64;
/// What is said of a group in which this node has forgotten what it promised.
const BARRED: &str = "nothing is on the disk, and others know this node with another data directory: it takes no part";
/// Where the timer is set when no group has an alarm.
const LONGEST_SLEEP: Duration = Duration::from_hours(1);

/// What the loop listens to.
pub(crate) struct Inlets {
    pub(crate) internal: queue::UnboundedReceiver<News>,
    pub(crate) network: queue::Receiver<Inbound>,
    pub(crate) requests: queue::UnboundedReceiver<Asked>,
}

/// Everything that can wake the loop.
enum Happened {
    Internal(News),
    Network(Inbound),
    Request(Asked),
    Time,
}

/// What is left of a loop that has ended.
pub(crate) struct Ended<T> {
    pub(crate) result: Result<(), Arc<Fatal>>,
    /// The last replies have yet to leave.
    pub(crate) transport: T,
    /// How the group has ended that the node was there for.
    pub(crate) sole: Option<watch::Receiver<Stopped>>,
}

/// A node with its groups.
pub(crate) struct Host<T> {
    /// Looked up for every message: with few groups faster than by a hash, and with many as fast.
    groups: BTreeMap<GroupId, Group>,
    /// Groups that are being opened, or that were stopped and of which something is still in memory.
    taken: HashSet<GroupId>,
    /// Those in which something has happened.
    active: Vec<GroupId>,
    alarms: Alarms,
    inlets: Inlets,
    outlets: Outlets<T>,
    tools: Tools,
    reception: Reception,
    /// The node ends with this group; and how that has ended, when all work for it is done.
    sole: Option<(GroupId, watch::Receiver<Stopped>)>,
    /// Someone asked the node to stop.
    stopping: bool,
    /// Set when the loop is to end.
    ended: Option<Result<(), Arc<Fatal>>>,
    lives: u64,
    /// Messages for groups that are not here.
    strays: Arc<AtomicU64>,
}

impl<T: Transport> Host<T> {
    pub(crate) fn new(
        inlets: Inlets,
        outlets: Outlets<T>,
        tools: Tools,
        reception: Reception,
        strays: Arc<AtomicU64>,
    ) -> Self {
        Host {
            groups: BTreeMap::new(),
            taken: HashSet::new(),
            active: Vec::new(),
            alarms: Alarms::default(),
            inlets,
            outlets,
            tools,
            reception,
            sole: None,
            stopping: false,
            ended: None,
            lives: 0,
            strays,
        }
    }

    /// Runs until the node is asked to stop, or cannot go on.
    pub(crate) async fn run(mut self) -> Ended<T> {
        let result = match self.serve().await {
            Ok(result) => result,
            Err(fatal) => Err(Arc::new(fatal)),
        };
        for group in std::mem::take(&mut self.groups).into_values() {
            group.end(result.clone(), &mut self.outlets, self.tools.inbox.clone());
        }
        self.outlets.flusher.flush();
        self.inlets.requests.close();
        while let Ok(asked) = self.inlets.requests.try_recv() {
            // Those who ask the node itself see their channel close.
            if let Asked::Group(_, request) = asked {
                refuse(request);
            }
        }
        let sole = self.sole.map(|(_, stopped)| stopped);
        Ended { result, transport: self.outlets.transport, sole }
    }

    async fn serve(&mut self) -> Result<Result<(), Arc<Fatal>>, Fatal> {
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            let due = self.next_look();
            // Moving the timer costs more than waking up once too early.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let first = tokio::select! {
                biased;
                Some(news) = self.inlets.internal.recv() => Happened::Internal(news),
                Some(inbound) = self.inlets.network.recv() => Happened::Network(inbound),
                Some(asked) = self.inlets.requests.recv() => Happened::Request(asked),
                () = &mut timer => Happened::Time,
            };
            self.take_in(self.now(), first)?;
            self.drain()?;
            self.follow_up().await;
            self.outlets.flusher.flush();
            if let Some(thread) = self.outlets.lost {
                return Err(self.why_lost(thread));
            }
            if self.stopping && self.groups.is_empty() {
                self.ended.get_or_insert(Ok(()));
            }
            if let Some(result) = self.ended.take() {
                return Ok(result);
            }
        }
    }

    /// Gives a turn to each group in which something has happened.
    async fn follow_up(&mut self) {
        let mut now = self.now();
        while let Some(id) = self.alarms.pop(now) {
            if let Some(group) = self.groups.get_mut(&id) {
                group.alarm.went_off();
                activate(&mut self.active, group);
            }
        }
        let mut active = std::mem::take(&mut self.active);
        for (number, id) in active.drain(..).enumerate() {
            if number > 0 && number % GROUPS_AT_A_TIME == 0 {
                self.outlets.flusher.flush();
                tokio::task::yield_now().await;
                now = self.now();
            }
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.active = false;
            if self.reception.frees(now, &mut group.entry) {
                group.driver.restart_election_timer(now);
            }
            group.turn(now, &mut self.outlets);
            if group.over {
                self.end(id, Ok(()));
            } else {
                let due = group.deadline();
                self.alarms.set(id, &mut group.alarm, due);
            }
        }
        // Keeps its room; nothing became active meanwhile.
        self.active = active;
    }

    fn now(&self) -> Instant {
        self.tools.now()
    }

    /// When the timer is to wake the loop.
    fn next_look(&self) -> tokio::time::Instant {
        let at = self.alarms.next().unwrap_or_else(|| self.now() + LONGEST_SLEEP);
        tokio::time::Instant::from_std(self.tools.origin + Duration::from_nanos(at.0))
    }

    /// Takes in what else has come, in the order of urgency.
    fn drain(&mut self) -> Result<(), Fatal> {
        for _ in 0..MAX_DRAIN {
            let next = if let Ok(news) = self.inlets.internal.try_recv() {
                Happened::Internal(news)
            } else if let Ok(inbound) = self.inlets.network.try_recv() {
                Happened::Network(inbound)
            } else if let Ok(asked) = self.inlets.requests.try_recv() {
                Happened::Request(asked)
            } else {
                return Ok(());
            };
            self.take_in(self.now(), next)?;
        }
        Ok(())
    }

    fn take_in(&mut self, now: Instant, happened: Happened) -> Result<(), Fatal> {
        match happened {
            Happened::Internal(News::Group(life, internal)) => self.news(now, life, internal),
            Happened::Internal(News::Gone(group)) => drop(self.taken.remove(&group)),
            Happened::Internal(News::Fatal(fatal)) => return Err(fatal),
            Happened::Network(Inbound::Messages { group, messages }) => match self.groups.get_mut(&group) {
                // Whoever meant it sends it again.
                Some(group) if !group.entry.is_free() => {}
                Some(group) => {
                    activate(&mut self.active, group);
                    // At a leader only proposals begin a write: an answer that comes beside one must not pass for its beginning.
                    if !group.driver.core().is_leader() {
                        group.probe.candidate(None);
                    }
                    if let Some(timings) = &self.outlets.timings {
                        group.own.pulse.received(timings, &messages);
                    }
                    messages.into_iter().for_each(|message| group.driver.step(now, Input::Message(message)));
                }
                None => {
                    self.strays.fetch_add(messages.len() as u64, Ordering::Relaxed);
                    tracing::debug!(%group, "messages for a group that is not here");
                }
            },
            Happened::Network(Inbound::LinkReset { peer }) => self.link_reset(now, peer),
            Happened::Network(Inbound::Accepted { peer }) => self.accepted(peer),
            Happened::Network(Inbound::Refused { peer, code, reason }) => self.refused(peer, code, reason),
            Happened::Network(_) => tracing::debug!("the network has news of an unknown kind"),
            Happened::Request(Asked::Group(life, request)) => match find(&mut self.groups, life) {
                Some(group) => {
                    activate(&mut self.active, group);
                    if group.entry.is_free() {
                        group.request(now, request, &mut self.outlets);
                    } else {
                        group.decline(now, request, &mut self.outlets);
                    }
                }
                None => refuse(request),
            },
            Happened::Request(Asked::Node(control)) => self.control(now, control),
            // Whose alarm it was is seen when all has been taken in.
            Happened::Time => {}
        }
        Ok(())
    }

    /// What is meant for a former life of a group is of no use to anybody.
    fn news(&mut self, now: Instant, life: Life, internal: Internal) {
        let Some(group) = find(&mut self.groups, life) else { return };
        if let Internal::Failed(why) = internal {
            group.wake_others(now, &mut self.outlets);
            return self.end(life.group, Err(why));
        }
        if matches!(internal, Internal::Core(_)) && !group.entry.is_free() {
            // A snapshot that somebody has sent, perhaps.
            return tracing::debug!(group = %life.group, "not while it takes no part");
        }
        activate(&mut self.active, group);
        if let (Internal::Core(Input::Persisted(_)), Some(timings)) = (&internal, &self.outlets.timings) {
            timings.noticed();
        }
        group.take_in(now, internal, &mut self.outlets);
    }

    /// Every group that has to do with this peer hears of it.
    fn link_reset(&mut self, now: Instant, peer: NodeId) {
        for (id, group) in &mut self.groups {
            if group.entry.is_free() && self.outlets.roster.concerns(*id, peer) {
                activate(&mut self.active, group);
                group.driver.step(now, Input::LinkReset(peer));
            }
        }
    }

    fn accepted(&mut self, peer: NodeId) {
        self.reception.accepted(peer);
        for group in self.groups.values_mut().filter(|group| !group.entry.is_free()) {
            activate(&mut self.active, group);
        }
    }

    fn refused(&mut self, peer: NodeId, code: CloseCode, reason: String) {
        if !self.reception.refused(peer, code, reason) {
            return;
        }
        for (id, group) in &mut self.groups {
            if group.entry != Entry::Barred && depends_on_others(group.driver.core()) {
                group.entry = Entry::Barred;
                activate(&mut self.active, group);
                tracing::error!(group = %id, %peer, "{BARRED}");
            }
        }
    }

    fn control(&mut self, now: Instant, control: Control) {
        // Whoever asked may be gone.
        match control {
            Control::Reserve { group, reserved } => drop(reserved.send(self.reserve(group))),
            Control::Install { opened, installed } => drop(installed.send(self.install(*opened))),
            Control::Find { group, found } => {
                drop(found.send(self.groups.get(&group).map(|group| group.raft.clone())));
            }
            Control::List(list) => {
                drop(list.send(self.groups.values().map(GroupStatus::of).collect()));
            }
            // If the writer is gone, the loop will hear of that.
            Control::Stored(list) => drop(self.tools.writer.send(Order::List(list))),
            Control::Shutdown => {
                self.stopping = true;
                for group in self.groups.values_mut() {
                    activate(&mut self.active, group);
                    group.leave(now);
                }
            }
        }
    }

    /// The group may be opened now, by one caller.
    pub(crate) fn reserve(&mut self, group: GroupId) -> Result<(Tools, Reservation), GroupError> {
        if self.stopping {
            return Err(GroupError::ShuttingDown);
        }
        if self.groups.contains_key(&group) || !self.taken.insert(group) {
            return Err(GroupError::Exists { group });
        }
        self.lives += 1;
        let life = Life { group, number: self.lives };
        Ok((self.tools.clone(), Reservation::new(life, self.tools.inbox.clone())))
    }

    /// A group that was opened begins to take part.
    pub(crate) fn install(&mut self, opened: Opened) -> Result<(), GroupError> {
        if self.stopping {
            return Err(GroupError::ShuttingDown);
        }
        let Opened { mut group, shelf, published, reservation } = opened;
        let id = reservation.keep().group;
        self.taken.remove(&id);
        group.entry = self.reception.entry(self.tools.now(), group.driver.core());
        if group.entry == Entry::Barred {
            tracing::error!(group = %id, "{BARRED}");
        }
        if shelf.directory.is_some() {
            self.outlets.incoming.add(id, shelf);
        }
        let Outlets { roster, transport, .. } = &mut self.outlets;
        roster.enter(id, group.membership(), published, transport);
        activate(&mut self.active, &mut group);
        self.groups.insert(id, group);
        Ok(())
    }

    /// The node ends when this group does.
    pub(crate) fn end_with(&mut self, group: GroupId) {
        self.sole = self.groups.get(&group).map(|open| (group, open.stopped.subscribe()));
    }

    fn end(&mut self, id: GroupId, result: Result<(), Arc<Fatal>>) {
        let Some(mut group) = self.groups.remove(&id) else { return };
        self.alarms.clear(id, &mut group.alarm);
        self.taken.insert(id);
        if self.sole.as_ref().is_some_and(|(sole, _)| *sole == id) {
            self.ended = Some(result.clone());
        } else if !self.stopping {
            // When the node ends, what was sent last has yet to leave.
            self.outlets.roster.leave(id, &mut self.outlets.transport);
        }
        group.end(result, &mut self.outlets, self.tools.inbox.clone());
    }

    /// A thread that is gone has said why, unless it panicked.
    fn why_lost(&mut self, thread: &'static str) -> Fatal {
        while let Ok(news) = self.inlets.internal.try_recv() {
            if let News::Fatal(fatal) = news {
                return fatal;
            }
        }
        Fatal::ThreadLost(thread)
    }
}

fn find(groups: &mut BTreeMap<GroupId, Group>, life: Life) -> Option<&mut Group> {
    groups.get_mut(&life.group).filter(|group| group.life() == life)
}

fn activate(active: &mut Vec<GroupId>, group: &mut Group) {
    if !std::mem::replace(&mut group.active, true) {
        active.push(group.life().group);
    }
}
