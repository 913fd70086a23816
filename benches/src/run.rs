//! One repetition: connect to the leader, warm up, measure, and make sure that nothing happened that spoils the figures.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use raft_core::NodeId;
use raft_net::{ClientEndpoint, Limits, TlsIdentity};
use raft_node::client::protocol::NodeStatus;
use tokio::task::JoinSet;

use crate::cluster::{Description, Leadership, Observer, agreed};
use crate::lane::{Lane, Loop};
use crate::meter::Meter;
use crate::probe::{Counters, Cpu, Memory};
use crate::scenario::{Load, Repetition, Settings};
use crate::ticker::Ticker;
use crate::workload::Workload;

/// How long requests may take after the last one was sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// An open loop sends at most so often; at higher rates it sends several requests at a time.
const FINEST_PERIOD: Duration = Duration::from_micros(200);
/// An open loop goes on for so long after the measured time, so that the last counters are read under load, too.
const OVERTIME: Duration = Duration::from_millis(100);
/// Requests in progress from which on an open loop sends no more: the cluster cannot keep up, and memory is not endless.
const MAX_IN_PROGRESS: usize = 200_000;
/// Pause between repetitions: the nodes finish what is left over.
const REST: Duration = Duration::from_millis(200);

/// A cluster and what it takes to load it.
pub(crate) struct Bench {
    description: Description,
    pids: Vec<u32>,
    endpoint: ClientEndpoint,
    observer: Observer,
}

impl Bench {
    /// Must be called within a tokio runtime.
    pub(crate) fn new(description: Description, tls: &TlsIdentity) -> Result<Self> {
        let observer = Observer::new(&description, tls.clone())?;
        let endpoint = ClientEndpoint::new(tls, Limits::default()).context("no UDP socket")?;
        let pids = description.nodes.iter().filter_map(|node| node.pid).collect();
        Ok(Bench { description, pids, endpoint, observer })
    }

    /// Waits for a leader.
    pub(crate) async fn leadership(&self) -> Result<Leadership> {
        self.observer.leadership().await
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        self.observer.close().await;
        self.endpoint.close().await;
    }

    /// One repetition. An error means that its figures are worthless (there was an election, for example): repeat it.
    pub(crate) async fn repetition(&self, load: Load, settings: &Settings, number: u64) -> Result<Repetition> {
        let leadership = self.leadership().await?;
        let meter = Rc::new(Meter::new()?);
        let (kind, most) = match load {
            Load::Closed { clients } => (Loop::Closed, clients),
            Load::Open { .. } => (Loop::Open, u32::MAX),
        };
        let workload = |lane: u32| {
            let seed = settings.seed.wrapping_add(number << 16).wrapping_add(u64::from(lane));
            Workload::new(settings.keys, settings.value_size, seed)
        };
        let mut lanes =
            self.connect(leadership.leader, kind, settings.connections.min(most).max(1), &meter, workload).await?;
        let outcome = self.measure(&mut lanes, leadership, load, settings, &meter).await;
        drop(lanes);
        tokio::time::sleep(REST).await;
        outcome
    }

    /// Makes `count` connections to a node, the n-th of which sends what `workload(n)` makes.
    pub(crate) async fn connect(
        &self,
        node: NodeId,
        kind: Loop,
        count: u32,
        meter: &Rc<Meter>,
        workload: impl Fn(u32) -> Result<Workload>,
    ) -> Result<Lanes> {
        let address = self.description.address(node)?.to_string();
        let mut lanes = Lanes { all: Vec::new(), tasks: JoinSet::new() };
        for number in 0..count {
            let connection = self.endpoint.connect(node, &address).await.context("cannot connect to the leader")?;
            let lane = Lane::new(connection, kind, meter.clone(), workload(number)?);
            lanes.tasks.spawn_local(lane.clone().run());
            lanes.all.push(lane);
        }
        Ok(lanes)
    }

    async fn measure(
        &self,
        lanes: &mut Lanes,
        leadership: Leadership,
        load: Load,
        settings: &Settings,
        meter: &Rc<Meter>,
    ) -> Result<Repetition> {
        let Lanes { all, tasks } = lanes;
        let begin = Instant::now() + settings.warm_up();
        let window = begin..begin + settings.measured();
        match load {
            Load::Closed { clients } => {
                let now = Instant::now();
                all.iter().cycle().take(clients as usize).for_each(|lane| lane.issue(now, false));
            }
            Load::Open { rate } => {
                let schedule = Schedule { rate, window: window.clone(), excess: Excess::Fail };
                tasks.spawn_local(pace(schedule, all.clone(), meter.clone()));
            }
        }
        let watched = async {
            tokio::time::sleep_until(window.start.into()).await;
            let before = self.look(leadership, meter, all).await?;
            meter.set_measuring(true);
            let (start, cpu, done) = (Instant::now(), Cpu::read(&self.pids), meter.done());
            tokio::time::sleep_until((start + settings.measured()).into()).await;
            meter.set_measuring(false);
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), Cpu::read(&self.pids).since(&cpu));
            let done = meter.done() - done;
            let after = self.look(leadership, meter, all).await?;
            let used = Used { seconds, cpu, done };
            Ok(self.judge(leadership, &before, &after, &used))
        };
        let mut repetition = tokio::select! {
            outcome = watched => outcome,
            // The pacer of an open loop ends well; a lane never does.
            failure = first_failure(tasks) => Err(failure),
        }?;
        all.iter().for_each(|lane| lane.stop());
        let unanswered = drain(all, meter).await;
        if load_is_open(load) {
            meter.error("unanswered", unanswered);
        } else {
            ensure!(unanswered == 0, "{unanswered} requests were not answered within {} s", PATIENCE.as_secs());
        }
        repetition.latency = meter.latency();
        repetition.lateness = meter.lateness();
        repetition.errors = meter.errors();
        ensure!(repetition.operations > 0, "not one request was done");
        Ok(repetition)
    }

    /// Reads all counters, and makes sure that nothing has changed.
    async fn look(&self, expected: Leadership, meter: &Meter, lanes: &[Rc<Lane>]) -> Result<Look> {
        let done_before = meter.done();
        let status = self.observer.status().await?;
        check(&status, expected)?;
        let done_after = meter.done();
        let bytes = lanes.iter().map(|lane| lane.udp_bytes());
        let (sent, received) = bytes.fold((0, 0), |sum, lane| (sum.0 + lane.0, sum.1 + lane.1));
        Ok(Look {
            done: done_before.midpoint(done_after),
            counters: Counters::read(&status, &self.pids),
            sent,
            received,
        })
    }

    fn judge(&self, leadership: Leadership, before: &Look, after: &Look, used: &Used) -> Repetition {
        let &Used { seconds, cpu, done } = used;
        // Counters are read a moment before and after the measured time: they have their own number of operations.
        let counted = (after.done - before.done).max(1) as f64;
        let counters = after.counters.since(&before.counters);
        let each = |count: Option<u64>| Some(count? as f64 / counted);
        let (sent, received) = (after.sent - before.sent, after.received - before.received);
        let cpu_each = |micros: Option<f64>| Some(micros? / done.max(1) as f64);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let memory = Memory::read(&self.pids);
        Repetition {
            leader: leadership.leader.0,
            term: leadership.term,
            seconds,
            operations: done,
            throughput: done as f64 / seconds,
            node_cpu: cpu_each(cpu.nodes),
            loader_cpu: cpu_each(cpu.loader),
            foreign_cpu: cpu.others().map(|micros| micros / (seconds * 1e6 * cores)),
            fsyncs: each(counters.syncs),
            log_bytes: each(counters.log_bytes),
            disk_bytes: each(counters.disk_bytes),
            // What nodes send to clients is exactly what the clients receive.
            peer_bytes: each(counters.udp_bytes.map(|all| all.saturating_sub(received))),
            client_bytes: each(Some(sent + received)),
            udp_sends: each(counters.udp_sends),
            resident: memory.resident,
            peak_resident: memory.peak,
            ..Repetition::default()
        }
    }
}

/// Some connections to one node, and those who use them. Dropping it closes them.
pub(crate) struct Lanes {
    /// The connections.
    pub(crate) all: Vec<Rc<Lane>>,
    /// What goes on on them.
    pub(crate) tasks: JoinSet<Result<()>>,
}

impl Lanes {
    /// Sends requests by the clock from now on.
    pub(crate) fn pace(&mut self, schedule: Schedule, meter: &Rc<Meter>) {
        self.tasks.spawn_local(pace(schedule, self.all.clone(), meter.clone()));
    }

    /// Waits for something to go wrong.
    pub(crate) async fn failure(&mut self) -> anyhow::Error {
        first_failure(&mut self.tasks).await
    }

    /// Sends nothing new, and waits for the answers that are still to come; returns how many requests stay without one.
    pub(crate) async fn drain(&self, meter: &Meter) -> u64 {
        self.all.iter().for_each(|lane| lane.stop());
        drain(&self.all, meter).await
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.all.iter().for_each(|lane| lane.close());
    }
}

/// Counters at one moment.
struct Look {
    /// Requests done.
    done: u64,
    counters: Counters,
    sent: u64,
    received: u64,
}

/// What the measured time cost.
struct Used {
    seconds: f64,
    cpu: Cpu,
    done: u64,
}

fn check(status: &BTreeMap<NodeId, NodeStatus>, expected: Leadership) -> Result<()> {
    match agreed(status) {
        Some(leadership) if leadership == expected => Ok(()),
        Some(leadership) => bail!("there was an election: {leadership} leads, after {expected}"),
        None => bail!("there was an election after {expected}"),
    }
}

async fn first_failure(tasks: &mut JoinSet<Result<()>>) -> anyhow::Error {
    loop {
        match tasks.join_next().await {
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => return error,
            Some(Err(error)) => return error.into(),
            None => std::future::pending().await,
        }
    }
}

fn load_is_open(load: Load) -> bool {
    matches!(load, Load::Open { .. })
}

/// Waits for the answers that are still to come; returns how many requests stay without one.
async fn drain(lanes: &[Rc<Lane>], meter: &Meter) -> u64 {
    let deadline = Instant::now() + PATIENCE;
    let mut last = meter.done();
    let mut waited_since = Instant::now();
    while lanes.iter().any(|lane| lane.in_progress() > 0) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if std::mem::replace(&mut last, meter.done()) != last {
            waited_since = Instant::now();
        }
        // A second without a single answer: none will come.
        if waited_since.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
    let now = Instant::now();
    lanes.iter().map(|lane| lane.give_up(now)).sum()
}

/// When requests of an open loop are due.
pub(crate) struct Schedule {
    /// Requests a second.
    pub(crate) rate: u64,
    /// What is measured. Sending ends soon after it, or when the lanes are told to stop.
    pub(crate) window: std::ops::Range<Instant>,
    /// What becomes of requests that the cluster cannot keep up with.
    pub(crate) excess: Excess,
}

/// What becomes of requests that are due while too many are still under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Excess {
    /// The measurement ends: it would only measure how long its own queue is.
    Fail,
    /// They are not sent, and counted as "not sent": a client that has so many requests under way on its connection gives up.
    Skip {
        /// Requests under way on one connection, at most.
        most: usize,
    },
}

/// Sends requests by the clock until the window has ended.
///
/// They are due at the ticks of a clock of 1/rate, or, when that is finer than [`FINEST_PERIOD`], several at once at the ticks of that one. A tick that
/// is noticed late still counts from when it was due: whatever holds up the cluster, or this program, is part of the latency.
async fn pace(schedule: Schedule, lanes: Vec<Rc<Lane>>, meter: Rc<Meter>) -> Result<()> {
    let Schedule { rate, window, excess } = schedule;
    ensure!(rate > 0, "the rate must not be zero");
    let period = Duration::from_secs_f64(1.0 / rate as f64).max(FINEST_PERIOD);
    let mut ticker = Ticker::new(period)?;
    let (begin, mut ticks, mut sent) = (Instant::now(), 0u32, 0u64);
    let mut turn = lanes.iter().cycle();
    loop {
        ticker.tick().await?;
        let now = Instant::now();
        loop {
            let due = begin + period * (ticks + 1);
            if due > now {
                break;
            }
            if due >= window.end + OVERTIME || lanes.iter().all(|lane| lane.is_stopped()) {
                return Ok(());
            }
            ticks += 1;
            let measured = window.contains(&due);
            let target = (f64::from(ticks) * period.as_secs_f64() * rate as f64).round() as u64;
            for _ in sent..target {
                match (turn.next(), excess) {
                    (Some(lane), Excess::Skip { most }) if lane.in_progress() >= most => meter.error("not sent", 1),
                    (Some(lane), _) => lane.issue(due, measured),
                    (None, _) => {}
                }
                if measured {
                    meter.record_lateness(now.saturating_duration_since(due));
                }
            }
            sent = sent.max(target);
        }
        let in_progress: usize = lanes.iter().map(|lane| lane.in_progress()).sum();
        let bounded = excess != Excess::Fail || in_progress < MAX_IN_PROGRESS;
        ensure!(bounded, "{rate} requests a second are more than the cluster can do");
    }
}
