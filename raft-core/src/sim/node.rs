//! One server: its core with the driver around it while it is up, its disk always, and its alarm clock.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::disk::Disk;
use super::outbox::Outbox;
use super::schedule::Dice;
use crate::config::{Config, ConfigError};
use crate::driver::Driver;
use crate::io::SnapshotId;
use crate::membership::Membership;
use crate::raft::Raft;
use crate::types::{Instant, NodeId};

/// A server that can crash and come back.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    disk: Disk,
    /// Nobody waits for its answers: the course's tests look at what is applied.
    driver: Option<Driver<(), ()>>,
    /// Number of the present life, or of the last one. What was sent to or asked by a former life does not reach a later one.
    life: u64,
    /// When the alarm that is set goes off.
    alarm: Option<Instant>,
    pump_asked: bool,
    /// Snapshots that came from leaders in this life, and how many came in all.
    received: BTreeMap<SnapshotId, Bytes>,
    snapshots: u64,
}

impl Node {
    /// A server that has never run.
    pub fn new(id: NodeId, slowest_write: Duration, dice: Dice) -> Self {
        Node {
            id,
            disk: Disk::new(slowest_write, dice),
            driver: None,
            life: 0,
            alarm: None,
            pump_asked: false,
            received: BTreeMap::new(),
            snapshots: 0,
        }
    }

    /// Its core, while it is up.
    pub fn raft(&self) -> Option<&Raft> {
        self.driver.as_ref().map(Driver::core)
    }

    /// Its driver, while it is up.
    pub(crate) fn driver_mut(&mut self) -> Option<&mut Driver<(), ()>> {
        self.driver.as_mut()
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Its disk.
    pub(crate) fn disk_mut(&mut self) -> &mut Disk {
        &mut self.disk
    }

    /// Which life it is in; `None` while it is down.
    pub fn life(&self) -> Option<u64> {
        self.driver.as_ref().map(|_| self.life)
    }

    /// Starts from what is durable. Each life draws other timeouts.
    pub(crate) fn start(&mut self, config: &Config, membership: Membership, now: Instant) -> Result<(), ConfigError> {
        self.life += 1;
        let config = Config { id: self.id, seed: config.seed.wrapping_add(self.life << 32), ..config.clone() };
        self.driver = Some(Driver::new(Raft::new(config, self.disk.recover(membership), now)?));
        self.alarm = None;
        self.pump_asked = false;
        Ok(())
    }

    /// Stops at once; what was not durable is lost.
    pub(crate) fn crash(&mut self) {
        self.driver = None;
        self.received.clear();
        self.disk.crash();
    }

    /// Keeps a snapshot that has come.
    pub(crate) fn keep_snapshot(&mut self, data: Bytes) -> SnapshotId {
        self.snapshots += 1;
        let id = SnapshotId(self.snapshots);
        self.received.insert(id, data);
        id
    }

    /// Gives out a snapshot that was kept; those that came before it are of no use any more.
    pub(crate) fn take_snapshot(&mut self, id: SnapshotId) -> Option<Bytes> {
        let data = self.received.remove(&id);
        self.received.retain(|other, _| *other > id);
        data
    }

    /// What the driver hands out, if there is anything.
    pub(crate) fn turn(&mut self, now: Instant) -> Option<Outbox<(), ()>> {
        self.pump_asked = false;
        let mut outbox = Outbox::default();
        self.driver.as_mut()?.turn(now, &mut outbox).then_some(outbox)
    }

    /// Asks for a pump at the end of this moment. Returns the present life, or `None` when one was asked for already.
    pub(crate) fn ask_for_pump(&mut self) -> Option<u64> {
        let first = !self.pump_asked;
        self.pump_asked = true;
        self.life().filter(|_| first)
    }

    /// The alarm went off: is it for this life, and has the core's deadline come? It may have been put off since the alarm was set.
    pub(crate) fn is_due(&mut self, life: u64, now: Instant) -> bool {
        if self.life() != Some(life) || self.alarm.is_none_or(|at| at > now) {
            return false;
        }
        self.alarm = None;
        self.driver.as_ref().is_some_and(|driver| driver.deadline() <= now)
    }

    /// When to set the alarm, if none that is set goes off in time. Returns the present life with it.
    pub(crate) fn next_alarm(&mut self) -> Option<(Instant, u64)> {
        let deadline = self.driver.as_ref()?.deadline();
        if deadline == Instant::NEVER || self.alarm.is_some_and(|at| at <= deadline) {
            return None;
        }
        self.alarm = Some(deadline);
        Some((deadline, self.life))
    }
}
