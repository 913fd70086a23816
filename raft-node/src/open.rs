//! Opening a group: what its log and its state machine hold is put together, checked, and wired to the node's threads.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use raft_core::driver::Driver;
use raft_core::{Config, GroupId, Instant, LogId, LogIndex, Membership, NodeId, Raft as Core, Recovered, SnapshotMeta};
use raft_storage::RecoveredLog;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::alarms::Alarm;
use crate::applier::{self, Applier, Progress};
use crate::builder::StartError;
use crate::commits::Commits;
use crate::doorkeeper::{Doorkeeper, identity_of};
use crate::group::Group;
use crate::handle::{Asked, Links, Raft, Stopped};
use crate::handover::Handover;
use crate::inbox::{Inbox, Life, News};
use crate::member;
use crate::node::{GroupError, Metrics};
use crate::pace::Pace;
use crate::pool::Pool;
use crate::ports::Own;
use crate::roster::Addresses;
use crate::snapshot::directory::{Directory, sync_dir};
use crate::snapshot::file::FileReader;
use crate::snapshot::keeper::{self, Shelf};
use crate::snapshot::manager::Manager;
use crate::snapshot::policy::Ledger;
use crate::snapshot::{SnapshotFileError, SnapshotPolicy};
use crate::standing::{Entry, Standing};
use crate::state_machine::StateMachine;
use crate::timings::{Probe, Pulse};
use crate::writer::{Found, Open, Order};

/// What it takes to open a group on a node. Whoever has one keeps the node's threads alive: only tasks of the node's own do.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) id: NodeId,
    /// Names the data directory.
    pub(crate) incarnation: u128,
    /// Where snapshots are kept; without it there are none.
    pub(crate) data_dir: Option<PathBuf>,
    /// Where nodes are, as far as the configuration says.
    pub(crate) configured: Arc<BTreeMap<NodeId, String>>,
    pub(crate) room: Room,
    /// When the node's time began.
    pub(crate) origin: std::time::Instant,
    pub(crate) inbox: Inbox,
    pub(crate) writer: Sender<Order>,
    pub(crate) pool: Pool,
    pub(crate) keeper: Sender<keeper::Order>,
    pub(crate) requests: UnboundedSender<Asked>,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) doorkeeper: Doorkeeper,
    pub(crate) standing: watch::Receiver<Standing>,
    /// Those of the node; each group has its own of snapshots.
    pub(crate) metrics: Metrics,
    /// Of work in the background.
    pub(crate) pace: Arc<Pace>,
}

/// What the network takes of each group, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Room {
    /// The longest message with entries.
    pub(crate) frame: usize,
    /// Messages with entries that may wait for one peer.
    pub(crate) queue: usize,
}

/// What a group is to be like.
pub(crate) struct Plan {
    pub(crate) config: Config,
    pub(crate) founders: Vec<NodeId>,
    pub(crate) join: bool,
    pub(crate) policy: SnapshotPolicy,
}

/// A group that is ready to take part.
pub(crate) struct Opened {
    pub(crate) group: Group,
    pub(crate) shelf: Shelf,
    /// Who wants to know where the members are.
    pub(crate) published: watch::Sender<Addresses>,
    pub(crate) reservation: Reservation,
}

/// The right to open a group, which nobody else has meanwhile.
#[derive(Debug)]
pub(crate) struct Reservation {
    life: Life,
    /// To give it back.
    inbox: Option<Inbox>,
}

impl Reservation {
    pub(crate) fn new(life: Life, inbox: Inbox) -> Self {
        Reservation { life, inbox: Some(inbox) }
    }

    /// The group has been opened.
    pub(crate) fn keep(mut self) -> Life {
        self.inbox = None;
        self.life
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take() {
            inbox.send(News::Gone(self.life.group));
        }
    }
}

impl Tools {
    /// The time since the node was started.
    pub(crate) fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A write that is followed by another within this time costs one message less for each follower.
const COMMIT_NOTIFICATION_DELAY: Duration = Duration::from_millis(2);

/// What is on its way to one follower, and one message of it, in bytes: enough for a link and a disk that are near, and little enough that a follower
/// which catches up by the log does not keep its own disk or the leader's loop busy for more than a few milliseconds at a time. A stream of the transport has a smaller window anyway.
const INFLIGHT_BYTES: usize = 1 << 20;
const APPEND_BYTES: usize = 256 << 10;

/// Settings of a core that suit a node.
pub(crate) fn suited(id: NodeId) -> Config {
    let mut config = Config::new(id);
    config.commit_notification_delay = COMMIT_NOTIFICATION_DELAY;
    (config.max_append_bytes, config.max_inflight_bytes) = (APPEND_BYTES, INFLIGHT_BYTES);
    config
}

/// The settings of a group before they are changed.
pub(crate) fn config(id: NodeId, group: GroupId) -> Config {
    let mut config = suited(id);
    config.seed = RandomState::new().hash_one((id.0, group.0));
    config
}

/// Opens a group. Waits for the writer, reads snapshots, and has the machine restored: not to be called where nobody may wait.
pub(crate) fn open<M: StateMachine>(
    tools: &Tools,
    reservation: Reservation,
    mut machine: M,
    plan: Plan,
) -> Result<Opened, StartError> {
    let Plan { mut config, founders, join, policy } = plan;
    let life = reservation.life;
    check_room(&config, tools.room)?;
    let Found { log, founders } = find(tools, life.group, founders, join)?;
    // Those with whom the group begins have the identity 0.
    config.identity = if founders.is_empty() { identity_of(tools.incarnation) } else { 0 };
    let founders = member::founders(&founders, &tools.configured);
    let directory = open_directory(tools, life.group)?;
    let restored = restore_at_start(&mut machine, &log, directory.as_deref())?;
    let state = state_of(machine.applied(), &log, restored.as_ref(), &founders);
    let durable = machine.durable();
    let ledger = Ledger::new(policy, log.log_start.index, machine.applied(), log.bytes);
    let recovered = recovered(log, machine.applied(), founders, restored);
    tracing::info!(group = %life.group, start = %recovered.log_start, last = %recovered.last_index,
        applied = %recovered.applied, term = %recovered.hard_state.current_term, "recovered");
    let max_unapplied_bytes = config.max_unapplied_bytes;
    let core = Core::new(config, recovered, tools.now())?;

    let metrics = Metrics { snapshots: Arc::default(), ..tools.metrics.clone() };
    let shelf = Shelf { directory, inbox: tools.inbox.of(life), metrics: metrics.snapshots.clone() };
    let progress = Progress::default();
    let marker = metrics.timings.clone().map(|timings| (timings, Arc::default()));
    let start = applier::Start {
        machine,
        state,
        max_unapplied_bytes,
        shelf: shelf.clone(),
        keeper: tools.keeper.clone(),
        progress: progress.clone(),
        marker: marker.clone(),
    };
    let own = Own {
        life,
        applier: tools.pool.admit(life.group, Applier::new(start)),
        snapshots: Manager::new(ledger, durable.is_some(), shelf.clone()),
        removed: None,
        pulse: Pulse::default(),
    };
    let (leader, leader_seen) = watch::channel(None);
    let (stopped, stopped_seen) = watch::channel(Stopped::default());
    let (published, addresses) = watch::channel(BTreeMap::new());
    let links = Links {
        requests: tools.requests.clone(),
        leader: leader_seen,
        addresses,
        standing: tools.standing.clone(),
        stopped: stopped_seen,
    };
    let group = Group {
        driver: Driver::new(core),
        own,
        handover: Handover::default(),
        progress,
        seen: LogIndex::ZERO,
        durable: durable.unwrap_or_default(),
        leader,
        stopped,
        probe: Probe::new(marker),
        commits: Commits::default(),
        // Until it is installed.
        entry: Entry::Barred,
        raft: Raft::new(tools.id, life, tools.address, metrics, links),
        alarm: Alarm::default(),
        active: false,
        over: false,
    };
    Ok(Opened { group, shelf, published, reservation })
}

/// An entry of the largest size must fit into a frame; and what the core's window lets through must fit into the queue, or it would be dropped and sent again, time
/// after time.
fn check_room(config: &Config, room: Room) -> Result<(), StartError> {
    let (frame, window) = (frame_bytes(config), window_bytes(config));
    if frame > room.frame {
        return Err(StartError::FrameTooSmall { needed: frame, limit: room.frame });
    }
    if window > room.queue { Err(StartError::QueueTooSmall { needed: window, limit: room.queue }) } else { Ok(()) }
}

/// The longest message with entries, in bytes.
pub(crate) fn frame_bytes(config: &Config) -> usize {
    config.max_entry_bytes.max(config.max_append_bytes).saturating_add(64 << 10)
}

/// More than what a group sends to one peer before it hears of anything, in bytes: the last message may exceed the window, and each has a head.
pub(crate) fn window_bytes(config: &Config) -> usize {
    let heads = config.max_inflight_appends.saturating_mul(128);
    config.max_inflight_bytes.saturating_add(frame_bytes(config)).saturating_add(heads)
}

/// Asks the writer, which owns the log.
fn find(tools: &Tools, group: GroupId, founders: Vec<NodeId>, join: bool) -> Result<Found, StartError> {
    let (found, answer) = mpsc::channel();
    let open = Open { group, founders, join, found };
    tools.writer.send(Order::Open(open)).map_err(|_| StartError::Died)?;
    Ok(answer.recv().map_err(|_| StartError::Died)??)
}

fn recovered(log: RecoveredLog, applied: LogIndex, founders: Membership, restored: Option<SnapshotMeta>) -> Recovered {
    Recovered {
        hard_state: log.hard_state,
        log_start: log.log_start,
        runs: log.runs,
        last_index: log.last_index,
        applied,
        membership: log.membership.unwrap_or(founders),
        changes: log.changes,
        restored,
    }
}

fn open_directory(tools: &Tools, group: GroupId) -> Result<Option<Arc<Directory>>, StartError> {
    let Some(data_dir) = tools.data_dir.as_deref() else { return Ok(None) };
    let own = folder(data_dir, group);
    if let Some(all) = own.parent().filter(|all| *all != data_dir) {
        let io = |source| SnapshotFileError::Io { path: all.to_owned(), source };
        std::fs::create_dir_all(all).and_then(|()| sync_dir(data_dir)).map_err(io)?;
    }
    Ok(Some(Arc::new(Directory::open(&own, group, tools.pace.clone())?)))
}

/// Where a group's snapshots are. The first group has the folder that it had before there were others.
fn folder(data_dir: &Path, group: GroupId) -> PathBuf {
    let all = data_dir.join("snapshots");
    if group == GroupId::FIRST { all } else { all.join(format!("group-{group}")) }
}

/// Deletes what is on the disk of a group that is not open; nobody opens it meanwhile. Waits for the disk.
pub(crate) fn delete(tools: &Tools, reservation: &Reservation) -> Result<(), GroupError> {
    let group = reservation.life.group;
    let (done, answer) = mpsc::channel();
    tools.writer.send(Order::Delete(group, done)).map_err(|_| StartError::Died)?;
    let was_there = answer.recv().map_err(|_| StartError::Died)?.map_err(StartError::from)?;
    if !was_there {
        return Err(GroupError::Unknown { group });
    }
    tools.doorkeeper.delete(group);
    // The log first: a group with a log that begins after a snapshot, and without the snapshot, would be of no use.
    if let Some(data_dir) = &tools.data_dir {
        let own = folder(data_dir, group);
        delete_snapshots(&own).map_err(|source| StartError::from(SnapshotFileError::Io { path: own, source }))?;
    }
    tracing::info!(%group, "group deleted");
    Ok(())
}

/// The files only: in the folder of the first group are the folders of the others.
fn delete_snapshots(own: &Path) -> std::io::Result<()> {
    let files = match std::fs::read_dir(own) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        files => files?,
    };
    for file in files {
        let file = file?;
        if file.file_type()?.is_file() {
            std::fs::remove_file(file.path())?;
        }
    }
    // It may not be empty, and costs nothing.
    let _ = std::fs::remove_dir(own);
    Ok(())
}

/// A machine that keeps nothing itself starts from the newest snapshot that is whole; so does one whose own state is older than what the log still
/// has (its directory was lost, say). Returns what the machine was last restored from.
fn restore_at_start<M: StateMachine>(
    machine: &mut M,
    log: &RecoveredLog,
    directory: Option<&Directory>,
) -> Result<Option<SnapshotMeta>, StartError> {
    let keeps_state = machine.durable().is_some();
    if keeps_state && machine.applied() >= log.log_start.index {
        return Ok(machine.restored());
    }
    for stored in directory.map(Directory::all).unwrap_or_default() {
        let index = stored.index();
        if index <= machine.applied() || index < log.log_start.index {
            break;
        }
        match FileReader::check(&stored.path) {
            Ok(_) => {}
            Err(error @ SnapshotFileError::Damaged { .. }) => {
                tracing::error!(%error, "a snapshot is damaged; an older one may do");
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        let (meta, mut file) = (stored.header.meta, FileReader::open(&stored.path)?);
        machine.restore(&meta, &mut file).map_err(|error| StartError::Restore(Box::new(error)))?;
        tracing::info!(last = %meta.last, "the state machine starts from a snapshot");
        return Ok(Some(meta));
    }
    Ok(machine.restored())
}

/// The last entry that the machine contains, and who belonged to the cluster as of then.
fn state_of(
    applied: LogIndex,
    log: &RecoveredLog,
    restored: Option<&SnapshotMeta>,
    founders: &Membership,
) -> SnapshotMeta {
    if let Some(meta) = restored.filter(|meta| meta.last.index == applied) {
        return meta.clone();
    }
    let change = log.changes.iter().rev().find(|(index, _)| *index <= applied).map(|(_, membership)| membership);
    let membership = change.or(log.membership.as_ref()).unwrap_or(founders).clone();
    // What the log does not know will not be accepted by the core, either.
    let term = log.term_at(applied).unwrap_or_default();
    SnapshotMeta { last: LogId::new(term, applied), membership }
}
