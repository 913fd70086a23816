//! Carries out a schedule.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::Result;
use raft_core::NodeId;
use raft_core::sim::schedule::Dice;
use raft_node::client::Client;
use tokio::time::{Instant, sleep, sleep_until};

use crate::admin::{self, Admin};
use crate::arena::{Arena, Notes};
use crate::cluster::{Cluster, Stopped, Trouble};
use crate::disk::{Injection, SmallDisk, Tracer};
use crate::journal::{Journal, human};
use crate::monitor::Monitor;
use crate::proxy::{Network, Policy};
use crate::schedule::{Effect, Event, Fault, Links, Schedule, Syncs, Who};

/// How long a node may take to stop after all its syncs failed, before the fault is called off: it may have had nothing to write.
const GIVE_UP: Duration = Duration::from_secs(15);
/// How long a node may take to stop after a sync has failed.
const TO_STOP: Duration = Duration::from_secs(2);

/// Runs all tracks of `schedule` to their end.
pub(crate) async fn run(arena: &mut Arena, schedule: &Schedule) -> Result<()> {
    let begin = Instant::now();
    let ids = arena.cluster.ids();
    let client = Client::new(admin::client_config(arena.cluster.client_config()))?;
    let (voters, seed) = (arena.founders(), arena.seed());
    let cluster = RefCell::new(&mut arena.cluster);
    let (monitor, journal) = (&arena.monitor, &arena.journal);
    let (mut network_notes, mut admin_notes) = (Notes::default(), Notes::default());
    let wire = Wire { network: &arena.network, monitor, journal, ids: &ids, notes: &mut network_notes };
    let small = arena.small.as_ref();
    let mut machines = Machines { cluster: &cluster, monitor, journal, small, ids: &ids, notes: &mut arena.notes };
    let admin = Admin {
        cluster: &cluster,
        monitor,
        journal,
        books: &mut arena.books,
        notes: &mut admin_notes,
        client,
        voters,
        dice: Dice::new(seed, 4),
        complaint: String::new(),
    };
    let (one, other, third) = tokio::join!(
        wire.run(&schedule.network, begin),
        machines.run(&schedule.processes, begin),
        admin.run(&schedule.deeds, begin, schedule.length)
    );
    arena.notes.add(network_notes);
    arena.notes.add(admin_notes);
    arena.notes.endured = begin.elapsed();
    one.and(other).and(third)
}

/// Who is who at a moment.
struct Cast {
    leader: NodeId,
    others: Vec<NodeId>,
}

impl Cast {
    /// Whoever is no member is nobody.
    fn now(monitor: &Monitor, ids: &[NodeId]) -> Cast {
        let members = monitor.members();
        let leader = monitor.leader().unwrap_or_else(|| members.first().copied().unwrap_or(ids[0]));
        Cast { leader, others: members.into_iter().filter(|id| *id != leader).collect() }
    }

    fn node(&self, who: Who) -> NodeId {
        match who {
            Who::Leader => self.leader,
            Who::Follower(n) => self.others.get(n % self.others.len().max(1)).copied().unwrap_or(self.leader),
        }
    }
}

/// The track of the network.
struct Wire<'a> {
    network: &'a Network,
    monitor: &'a Monitor,
    journal: &'a Journal,
    ids: &'a [NodeId],
    notes: &'a mut Notes,
}

impl Wire<'_> {
    async fn run(self, events: &[Event], begin: Instant) -> Result<()> {
        for Event { at, lasts, fault } in events {
            let Fault::Network { links, effects } = fault else { continue };
            sleep_until(begin + *at).await;
            // Roles change; the fault stays where it is.
            let chosen: Vec<(NodeId, NodeId)> = self.directions(*links);
            self.journal.say(&format!("{fault}, for {} {}", human(*lasts), arrows(*links, &chosen)));
            let meant = |from, to| chosen.contains(&(from, to));
            self.network.change(meant, |policy| effects.iter().for_each(|effect| effect.apply(policy)));
            fault.kinds().iter().for_each(|kind| self.notes.count(kind));
            let flap = effects.iter().find_map(|effect| match effect {
                Effect::Flap(time) => Some(*time),
                _ => None,
            });
            match flap {
                Some(time) if !effects.contains(&Effect::Cut) => {
                    let end = begin + *at + *lasts;
                    while Instant::now() < end {
                        sleep(time).await;
                        self.network.change(meant, |policy: &mut Policy| policy.cut = !policy.cut);
                    }
                }
                _ => sleep(*lasts).await,
            }
            self.network.heal();
            self.journal.say("network: whole again");
        }
        Ok(())
    }

    fn directions(&self, links: Links) -> Vec<(NodeId, NodeId)> {
        // Asked once: the answer may change while the question is put again.
        let cast = Cast::now(self.monitor, self.ids);
        let pairs = self.ids.iter().flat_map(|&from| self.ids.iter().map(move |&to| (from, to)));
        pairs.filter(|&(from, to)| from != to && links.contains(from, to, |who| cast.node(who))).collect()
    }
}

fn arrows(links: Links, chosen: &[(NodeId, NodeId)]) -> String {
    if links == Links::All {
        return String::new();
    }
    let arrows: Vec<String> = chosen.iter().map(|(from, to)| format!("{from}->{to}")).collect();
    format!("({})", arrows.join(" "))
}

/// The track of processes and disks.
struct Machines<'a, 'c> {
    cluster: &'a RefCell<&'c mut Cluster>,
    monitor: &'a Monitor,
    journal: &'a Journal,
    small: Option<&'a (NodeId, SmallDisk)>,
    ids: &'a [NodeId],
    notes: &'a mut Notes,
}

impl Machines<'_, '_> {
    async fn run(&mut self, events: &[Event], begin: Instant) -> Result<()> {
        for event in events {
            sleep_until(begin + event.at).await;
            self.look_after()?;
            if let Some(kind) = event.fault.kinds().iter().find(|kind| self.notes.skipped.contains_key(*kind)) {
                self.journal.say(&format!("skipped: {kind}"));
                continue;
            }
            if self.inflict(event).await? {
                event.fault.kinds().iter().for_each(|kind| self.notes.count(kind));
            }
            self.look_after()?;
        }
        Ok(())
    }

    /// Returns whether it could be done.
    async fn inflict(&mut self, event: &Event) -> Result<bool> {
        let Event { lasts, fault, .. } = event;
        let announce = |machines: &Self, nodes: &[NodeId]| {
            let nodes: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
            machines.journal.say(&format!("{fault}, for {} (node {})", human(*lasts), nodes.join(", ")));
        };
        match fault {
            Fault::Kill(victims) => {
                let victims: Vec<NodeId> = victims.iter().map(|who| self.resolve(*who)).collect();
                announce(self, &victims);
                self.kill(&victims, *lasts).await?;
            }
            Fault::KillAll => {
                announce(self, self.ids);
                self.kill(self.ids, *lasts).await?;
            }
            Fault::CrashLoop(who, rounds) => {
                let node = self.resolve(*who);
                announce(self, &[node]);
                for (up, down) in rounds {
                    self.kill(&[node], *down).await?;
                    sleep(*up).await;
                }
            }
            Fault::Pause(who) => {
                let node = self.resolve(*who);
                announce(self, &[node]);
                self.cluster.borrow_mut().pause(node)?;
                sleep(*lasts).await;
                self.cluster.borrow_mut().resume(node)?;
                self.journal.say(&format!("SIGCONT: node {node}"));
            }
            Fault::SyncError(who, syncs) => {
                let node = self.resolve(*who);
                announce(self, &[node]);
                return self.fail_syncs(node, *syncs).await;
            }
            Fault::SyncDelay(who, delay) => {
                let node = self.resolve(*who);
                announce(self, &[node]);
                let Some(tracer) = self.trace(node, Syncs::Writer, Injection::Delay(*delay)) else { return Ok(false) };
                sleep(*lasts).await;
                drop(tracer);
                self.journal.say(&format!("node {node} syncs as before"));
            }
            Fault::DiskFull { restart } => {
                let Some((node, disk)) = self.small else { return Ok(false) };
                announce(self, &[*node]);
                self.fill(*node, disk, *lasts, *restart).await?;
            }
            Fault::Network { .. } => return Ok(false),
        }
        Ok(true)
    }

    async fn kill(&mut self, victims: &[NodeId], down: Duration) -> Result<()> {
        victims.iter().try_for_each(|id| self.cluster.borrow_mut().kill(*id))?;
        sleep(down).await;
        victims.iter().try_for_each(|id| self.cluster.borrow_mut().start(*id))?;
        if victims.len() > 1 || down > Duration::from_millis(500) {
            let victims: Vec<String> = victims.iter().map(NodeId::to_string).collect();
            self.journal.say(&format!("started: node {}", victims.join(", ")));
        }
        Ok(())
    }

    /// Attaches strace, if the node is there: it may have refused to start on a disk that failed before.
    fn trace(&self, node: NodeId, syncs: Syncs, injection: Injection) -> Option<Tracer> {
        match Tracer::attach(&self.cluster.borrow(), node, syncs, injection) {
            Ok(tracer) => Some(tracer),
            Err(error) => {
                self.journal.say(&format!("not done: {error:#}"));
                None
            }
        }
    }

    /// Until the node has stopped, or for a while.
    async fn fail_syncs(&mut self, node: NodeId, syncs: Syncs) -> Result<bool> {
        self.cluster.borrow_mut().may_stop(node, Trouble::Sync)?;
        let process = self.cluster.borrow().pid(node);
        let Some(tracer) = self.trace(node, syncs, Injection::Error) else { return Ok(false) };
        let begin = Instant::now();
        while begin.elapsed() < GIVE_UP {
            sleep(Duration::from_millis(50)).await;
            if self.look_after()?.contains(&node) {
                return Ok(true);
            }
        }
        let failed = tracer.injected()?;
        drop(tracer);
        // The last of them may have failed just now.
        sleep(TO_STOP).await;
        if self.look_after()?.contains(&node) {
            return Ok(true);
        }
        // Somebody else may have killed it meanwhile, and what was traced is gone. Of syncs that are not the log's, RocksDB may try some again.
        if failed && syncs == Syncs::Writer && process.is_some() && self.cluster.borrow().pid(node) == process {
            self.notes.violations.push(format!("node {node} goes on although a sync of its log has failed"));
        }
        self.journal.say(&format!("node {node} had {}", if failed { "a sync that failed" } else { "nothing to sync" }));
        Ok(failed)
    }

    async fn fill(&mut self, node: NodeId, disk: &SmallDisk, lasts: Duration, restart: bool) -> Result<()> {
        self.cluster.borrow_mut().set_trouble(node, Some(Trouble::Space))?;
        let used = disk.fill()?;
        self.journal.say(&format!("node {node}: no space after {used} bytes"));
        sleep(lasts / 2).await;
        let died = self.cluster.borrow_mut().reap()?;
        for stopped in &died {
            self.judge(stopped);
            if stopped.id != node && !self.cluster.borrow().is_up(stopped.id) {
                self.cluster.borrow_mut().start(stopped.id)?;
            }
        }
        if restart || !died.is_empty() {
            // It may well refuse to start, or soon stop again: if it says why.
            self.cluster.borrow_mut().kill(node)?;
            self.cluster.borrow_mut().start(node)?;
        }
        sleep(lasts / 2).await;
        disk.free()?;
        self.cluster.borrow_mut().set_trouble(node, None)?;
        self.journal.say(&format!("node {node}: there is space again"));
        Ok(())
    }

    /// Starts again what has stopped; returns which nodes had.
    fn look_after(&mut self) -> Result<Vec<NodeId>> {
        let stopped = self.cluster.borrow_mut().reap()?;
        for one in &stopped {
            self.judge(one);
            if !self.cluster.borrow().is_up(one.id) {
                self.cluster.borrow_mut().start(one.id)?;
            }
        }
        Ok(stopped.iter().map(|one| one.id).collect())
    }

    fn judge(&mut self, stopped: &Stopped) {
        self.journal.say(&stopped.to_string());
        if !stopped.is_excused() {
            self.notes.violations.push(stopped.to_string());
        }
    }

    fn resolve(&self, who: Who) -> NodeId {
        Cast::now(self.monitor, self.ids).node(who)
    }
}
