//! One repetition: connect to the leader, warm up, measure, and make sure that nothing happened that spoils the figures.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use raft_core::NodeId;
use raft_net::TlsIdentity;

use crate::cluster::{Description, Leadership};
use crate::lines::{Lanes, Line, Loop, PATIENCE, drain, first_failure};
use crate::meter::Meter;
use crate::pace::{Excess, Schedule, pace};
use crate::probe::{Counters, Cpu, Memory};
use crate::scenario::{Load, Place, Repetition, Settings, Traffic};
use crate::target::{Moment, RaftCluster, Target};
use crate::workload::Workload;

/// Between two looks at how far the filling is.
const LOOK: Duration = Duration::from_millis(5);
/// Pause between repetitions: the nodes finish what is left over.
const REST: Duration = Duration::from_millis(200);

/// A cluster and what it takes to load it.
pub(crate) struct Bench {
    target: Target,
}

impl Bench {
    /// For a cluster of this project. Must be called within a tokio runtime.
    pub(crate) fn new(description: Description, tls: &TlsIdentity) -> Result<Self> {
        Ok(Bench::of(Target::Raft(Box::new(RaftCluster::new(description, tls)?))))
    }

    /// For any cluster.
    pub(crate) fn of(target: Target) -> Self {
        Bench { target }
    }

    /// The processes of the nodes.
    pub(crate) fn pids(&self) -> &[u32] {
        self.target.pids()
    }

    /// Waits for a leader.
    pub(crate) async fn leadership(&self) -> Result<Leadership> {
        self.target.leadership().await
    }

    /// Ends all connections.
    pub(crate) async fn close(&self) {
        self.target.close().await;
    }

    /// One repetition with writes. An error means that its figures are worthless (there was an election, for example): repeat it.
    pub(crate) async fn repetition(&self, load: Load, settings: &Settings, number: u64) -> Result<Repetition> {
        self.repetition_of(Traffic::Writes, load, settings, number).await
    }

    /// The same with other requests.
    pub(crate) async fn repetition_of(
        &self,
        traffic: Traffic,
        load: Load,
        settings: &Settings,
        number: u64,
    ) -> Result<Repetition> {
        let leadership = self.leadership().await?;
        let meter = Rc::new(Meter::new()?);
        let (kind, most) = match load {
            Load::Closed { clients } => (Loop::Closed, clients),
            Load::Open { .. } => (Loop::Open, u32::MAX),
        };
        let workload = |lane: u32| {
            let seed = settings.seed.wrapping_add(number << 16).wrapping_add(u64::from(lane));
            let puts = self.target.workload(settings.keys, settings.value_size, seed)?;
            match traffic {
                Traffic::Writes => Ok(puts),
                Traffic::Reads { percent, consistency, .. } => puts.reading(percent, consistency),
            }
        };
        let nodes = match traffic {
            Traffic::Reads { at: Place::Followers, .. } => self.target.others(leadership.leader),
            _ => vec![leadership.leader],
        };
        ensure!(!nodes.is_empty(), "there is nobody to ask");
        let mut lanes =
            self.target.connect(&nodes, kind, settings.connections.min(most).max(1), &meter, workload).await?;
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
        self.target.connect(&[node], kind, count, meter, workload).await
    }

    /// Has at least `count` requests carried out as fast as `clients` on `connections` can, and returns how many it were and how long that took.
    pub(crate) async fn fill(
        &self,
        leader: NodeId,
        (connections, clients): (u32, u32),
        count: u64,
        workload: impl Fn(u32) -> Result<Workload>,
    ) -> Result<(u64, Duration)> {
        let meter = Rc::new(Meter::new()?);
        let mut lanes = self.connect(leader, Loop::Closed, connections, &meter, workload).await?;
        let begin = Instant::now();
        lanes.all.iter().cycle().take(clients as usize).for_each(|lane| lane.issue(begin, false));
        let filled = async {
            while meter.done() < count {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = filled => {}
            failure = lanes.failure() => return Err(failure.context("while the cluster is filled")),
        }
        let unanswered = lanes.drain(&meter).await;
        ensure!(unanswered == 0, "{unanswered} writes were not answered");
        Ok((meter.done(), begin.elapsed()))
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
            let (start, cpu, done) = (Instant::now(), Cpu::read(self.pids()), meter.done());
            tokio::time::sleep_until((start + settings.measured()).into()).await;
            meter.set_measuring(false);
            let (seconds, cpu) = (start.elapsed().as_secs_f64(), Cpu::read(self.pids()).since(&cpu));
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
        repetition.distribution = meter.distribution();
        repetition.lateness = meter.lateness();
        repetition.errors = meter.errors();
        ensure!(repetition.operations > 0, "not one request was done");
        Ok(repetition)
    }

    /// Reads all counters, and makes sure that nothing has changed.
    async fn look(&self, expected: Leadership, meter: &Meter, lanes: &[Rc<dyn Line>]) -> Result<Look> {
        let done_before = meter.done();
        let Moment { leadership, counters } = self.target.look().await?;
        check(leadership, expected)?;
        let done_after = meter.done();
        let mut bytes = lanes.iter().map(|lane| lane.bytes());
        let client = bytes.try_fold((0, 0), |sum, lane| lane.map(|lane| (sum.0 + lane.0, sum.1 + lane.1)));
        Ok(Look { done: done_before.midpoint(done_after), counters, client })
    }

    fn judge(&self, leadership: Leadership, before: &Look, after: &Look, used: &Used) -> Repetition {
        let &Used { seconds, cpu, done } = used;
        // Counters are read a moment before and after the measured time: they have their own number of operations.
        let counted = (after.done - before.done).max(1) as f64;
        let counters = after.counters.since(&before.counters);
        let each = |count: Option<u64>| Some(count? as f64 / counted);
        let client = after.client.zip(before.client).map(|(now, then)| (now.0 - then.0, now.1 - then.1));
        let cpu_each = |micros: Option<f64>| Some(micros? / done.max(1) as f64);
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let memory = Memory::read(self.pids());
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
            peer_bytes: each(counters.peer_bytes.or_else(|| Some(counters.udp_bytes?.saturating_sub(client?.1)))),
            client_bytes: each(client.map(|(sent, received)| sent + received)),
            udp_sends: each(counters.udp_sends),
            resident: memory.resident,
            peak_resident: memory.peak,
            ..Repetition::default()
        }
    }
}

/// Counters at one moment.
struct Look {
    /// Requests done.
    done: u64,
    counters: Counters,
    /// Bytes that the clients have sent and received.
    client: Option<(u64, u64)>,
}

/// What the measured time cost.
struct Used {
    seconds: f64,
    cpu: Cpu,
    done: u64,
}

fn check(found: Option<Leadership>, expected: Leadership) -> Result<()> {
    match found {
        Some(leadership) if leadership == expected => Ok(()),
        Some(leadership) => bail!("there was an election: {leadership} leads, after {expected}"),
        None => bail!("there was an election after {expected}"),
    }
}

fn load_is_open(load: Load) -> bool {
    matches!(load, Load::Open { .. })
}
