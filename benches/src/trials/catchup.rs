//! A follower has to catch up by a snapshot while clients write: how long it takes, and what the clients notice of it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use raft_core::NodeId;
use raft_node::client::protocol::{MemberChange, NodeStatus};
use raft_node::client::{Client, Error};

use super::outcome::{Outcome, short};
use super::phases::{Recorder, Step};
use super::{Arena, SETTLED_WITHIN, Stage, link};
use crate::lines::Lanes;
use crate::lines::Loop;
use crate::machine;
use crate::meter::Meter;
use crate::pace::{Excess, Schedule};
use crate::run::Bench;
use crate::workload::Workload;

const NODES: u64 = 3;
const GIB: f64 = (1u64 << 30) as f64;
/// What the state is made of: values of so many bytes.
const FILL_VALUE: usize = 4096;
/// Where its keys begin; those that are written all the while are below.
const FILL_FROM: u64 = 1_000_000;
const FILL_CLIENTS: u32 = 64;
/// Connections of the clients that write all the while, and keys that they write.
const CONNECTIONS: u32 = 4;
const KEYS: u64 = 10_000;
/// Requests under way on one of these connections, at most.
const IN_FLIGHT: usize = 4096;
/// Load before anything is measured, and what compactions after the filling get.
const WARM_UP: Duration = Duration::from_secs(3);
/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(25);
/// How long a look may take: a node that starts does not answer yet.
const LOOK_WITHIN: Duration = Duration::from_millis(200);
/// How long all of it may take, for each GiB; and in any case.
const PATIENCE: Duration = Duration::from_mins(10);
/// Who lacks fewer entries has caught up: under load there are always some.
const CAUGHT_UP: u64 = 1000;
/// Bytes that are sent to find out what the transport takes.
const BULK: u64 = 1 << 30;

/// A follower lacks so much that it needs a snapshot, which is streamed to it while clients write: time, rate, and the latency of the writes.
///
/// Either its disk is lost (it is removed, started anew with an empty one, and added), or it was away while all of the state was written.
///
/// The two aims pull in opposite directions here, where three nodes and the clients share a disk and two cores: what the transfer takes, the writes lack. The nodes
/// choose the writes' side. With `--max-bytes-per-second` the rate can be lowered further, to see what it buys.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// Size of the state, in GiB
    #[arg(long, default_value_t = 1.0)]
    gib: f64,
    /// Writes a second, all the while
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    rate: u64,
    /// Bytes of their values
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Why it lacks so much
    #[arg(long, value_enum, default_value = "wiped")]
    mode: Mode,
    /// Seconds for which latency is measured while nothing happens: before, with the follower away, and afterwards
    #[arg(long, default_value_t = 30.0)]
    quiet: f64,
    /// Seconds of rest after the state was written: a host may make whoever has written gigabytes pay for it for a minute or two
    #[arg(long, default_value_t = 0.0)]
    settle: f64,
    /// Bytes of a snapshot that are sent in a second, at most (`snapshot.max_bytes_per_second`) [default: the nodes']
    #[arg(long)]
    max_bytes_per_second: Option<u64>,
    /// What the nodes' network is, for the record: `cargo xtask bench catchup --link` makes one [default: the loopback device]
    #[arg(long)]
    link: Option<String>,
}

/// Why the follower lacks so much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Mode {
    /// Its disk was lost: it is removed, and added anew
    Wiped,
    /// It was away while the state was written
    Behind,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.gib > 0.0 && args.gib <= 1000.0, "--gib must be more than 0 and at most 1000");
    ensure!(args.settle >= 0.0 && args.settle <= 3600.0, "--settle must be at least 0 and at most 3600");
    ensure!(args.quiet > 0.0 && args.quiet <= 3600.0, "--quiet must be more than 0 and at most 3600");
    let size = (args.gib * GIB) as u64;
    check_room(args, size)?;
    let bulk = tokio::task::spawn_blocking(move || link::bulk_rate(size.min(BULK))).await??;
    eprintln!("catchup: the transport alone takes {:.0} MB/s", bulk / 1e6);
    let (arena, leadership) = Arena::open(&args.stage, &args.stage.dir, NODES, &settings(args, size)).await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let leader = leadership.leader;
    let follower = arena.nodes.ids().into_iter().find(|id| *id != leader).context("there is a follower")?;
    let operator = arena.nodes.client(|config| config.timeout = SETTLED_WITHIN)?;
    let recorder = Recorder::new(arena.nodes.pid(leader), arena.nodes.pid(follower));
    let mut trial = Trial { args, arena, bench, operator, recorder, leader, follower };
    let outcome = trial.measure(size).await;
    trial.operator.close().await;
    trial.bench.close().await;
    let Trial { arena, recorder, .. } = trial;
    arena.close().await;
    report(args, &recorder, &outcome?, bulk)
}

/// What else is known at the end.
struct Found {
    /// Bytes of the snapshot, and those that went over in a second.
    snapshot: u64,
    rate: f64,
    seconds: f64,
    elections: u64,
    /// The leader's counters.
    sent: u64,
    failed: u64,
    not_served: u64,
}

struct Trial<'a> {
    args: &'a Args,
    arena: Arena,
    bench: Bench,
    operator: Client,
    recorder: Recorder,
    leader: NodeId,
    follower: NodeId,
}

impl Trial<'_> {
    async fn measure(&mut self, size: u64) -> Result<Found> {
        if self.args.mode == Mode::Wiped {
            self.fill(size).await?;
        }
        let term = self.arena.settled().await?.term;
        let (mut lanes, meter) = self.steady().await?;
        self.quiet(&mut lanes, &meter, Step::QuietAll).await?;
        self.arena.nodes.kill(self.follower).await?;
        if self.args.mode == Mode::Behind {
            lanes.drain(&meter).await;
            drop(lanes);
            self.fill(size).await?;
            (lanes, _) = self.steady_into(&meter).await?;
        } else {
            self.arena.nodes.wipe(self.follower)?;
            let change = MemberChange { removed: vec![self.follower], ..MemberChange::default() };
            self.operator.change_membership(change).await.context("the follower cannot be removed")?;
        }
        self.quiet(&mut lanes, &meter, Step::QuietWithout).await?;
        let begin = Instant::now();
        self.arena.nodes.spawn(self.follower, self.args.mode == Mode::Wiped)?;
        self.recorder.follower(self.arena.nodes.pid(self.follower));
        self.recorder.begin(Step::Starting, &meter)?;
        let snapshot = tokio::select! {
            caught_up = self.catch_up(&meter) => caught_up?,
            failure = lanes.failure() => return Err(failure.context("while the follower catches up")),
        };
        let seconds = begin.elapsed().as_secs_f64();
        self.quiet(&mut lanes, &meter, Step::QuietAgain).await?;
        let unanswered = lanes.drain(&meter).await;
        let status = self.arena.observer.status_of(self.leader).await?;
        let count = |name: &str| status.metrics.get(name).copied().unwrap_or(0);
        Ok(Found {
            snapshot: snapshot.total,
            rate: snapshot.rate(),
            seconds,
            elections: status.term - term,
            sent: count("snapshot.sent"),
            failed: count("snapshot.failed"),
            not_served: unanswered + meter.errors().values().sum::<u64>(),
        })
    }

    /// Writes the state.
    async fn fill(&self, size: u64) -> Result<()> {
        let count = size / FILL_VALUE as u64;
        let step = u64::from(CONNECTIONS);
        let workload = |lane: u32| Workload::ascending(FILL_FROM + u64::from(lane), step, FILL_VALUE);
        let (done, took) = self.bench.fill(self.leader, (CONNECTIONS, FILL_CLIENTS), count, workload).await?;
        let (gib, seconds) = (done as f64 * FILL_VALUE as f64 / GIB, took.as_secs_f64());
        eprintln!("catchup: {gib:.2} GiB of state in {seconds:.0} s");
        tokio::time::sleep(Duration::from_secs_f64(self.args.settle)).await;
        Ok(())
    }

    /// Clients that write all the while, by the clock.
    async fn steady(&self) -> Result<(Lanes, Rc<Meter>)> {
        let meter = Rc::new(Meter::new()?);
        self.steady_into(&meter).await
    }

    async fn steady_into(&self, meter: &Rc<Meter>) -> Result<(Lanes, Rc<Meter>)> {
        let workload = |lane: u32| Workload::new(KEYS, self.args.value_size, 1 + u64::from(lane));
        let mut lanes = self.bench.connect(self.leader, Loop::Open, CONNECTIONS, meter, workload).await?;
        let begin = Instant::now();
        // They are told when it is over.
        let window = begin..begin + PATIENCE * 1000;
        let excess = Excess::Skip { most: IN_FLIGHT };
        lanes.pace(Schedule { rate: self.args.rate, window, excess }, meter);
        Ok((lanes, meter.clone()))
    }

    async fn quiet(&mut self, lanes: &mut Lanes, meter: &Rc<Meter>, step: Step) -> Result<()> {
        let measured = async {
            tokio::time::sleep(WARM_UP).await;
            self.recorder.begin(step, meter)?;
            let until = Instant::now() + Duration::from_secs_f64(self.args.quiet);
            while Instant::now() < until {
                tokio::time::sleep(LOOK).await;
                self.recorder.look(meter)?;
            }
            self.recorder.end(meter)
        };
        tokio::select! {
            measured = measured => measured,
            failure = lanes.failure() => Err(failure.context("while nothing happened")),
        }
    }

    /// Until the follower has (nearly) everything, and its vote.
    async fn catch_up(&mut self, meter: &Rc<Meter>) -> Result<Transfer> {
        let patience = PATIENCE.mul_f64(self.args.gib.max(1.0));
        let member = async {
            match self.args.mode {
                Mode::Wiped => add(&self.operator, &self.arena, self.follower).await,
                Mode::Behind => Ok(()),
            }
        };
        let watch = watch(&self.arena, &mut self.recorder, meter, self.leader, self.follower);
        let both = async { tokio::try_join!(member, watch) };
        let ((), transfer) = tokio::time::timeout(patience, both).await.context("the follower does not catch up")??;
        self.recorder.end(meter)?;
        Ok(transfer)
    }
}

/// What was seen of a transfer: the first and the last moment, and the bytes until then.
#[derive(Clone, Copy, Debug)]
struct Transfer {
    first: (Instant, u64),
    last: (Instant, u64),
    total: u64,
}

impl Transfer {
    /// Bytes a second.
    fn rate(&self) -> f64 {
        let seconds = (self.last.0 - self.first.0).as_secs_f64();
        if seconds > 0.0 { (self.last.1 - self.first.1) as f64 / seconds } else { 0.0 }
    }
}

/// Follows the follower from step to step, until it has caught up.
async fn watch(
    arena: &Arena,
    recorder: &mut Recorder,
    meter: &Rc<Meter>,
    leader: NodeId,
    follower: NodeId,
) -> Result<Transfer> {
    let mut seen: Option<Transfer> = None;
    loop {
        tokio::time::sleep(LOOK).await;
        recorder.look(meter)?;
        let look = |id| tokio::time::timeout(LOOK_WITHIN, arena.observer.status_of(id));
        let (Ok(Ok(of_leader)), of_follower) = tokio::join!(look(leader), look(follower)) else { continue };
        let at = Instant::now();
        let count = |name: String| of_leader.metrics.get(&name).copied();
        let done = count(format!("snapshot.to.{follower}.bytes"));
        if let (Some(done), Some(total)) = (done, count(format!("snapshot.to.{follower}.total"))) {
            let transfer = seen.get_or_insert(Transfer { first: (at, done), last: (at, done), total });
            if done > transfer.last.1 {
                transfer.last = (at, done);
            }
            transfer.total = total;
        }
        let Ok(Ok(of_follower)) = of_follower else { continue };
        let step = step(&of_leader, &of_follower, seen.is_some());
        if let (Step::Done, Some(transfer)) = (step, seen) {
            return Ok(transfer);
        }
        if step > recorder.step() && step != Step::Done {
            recorder.begin(step, meter)?;
        }
    }
}

/// How far the follower is, by what the nodes say.
fn step(leader: &NodeStatus, follower: &NodeStatus, seen_transfer: bool) -> Step {
    let count = |name: &str| follower.metrics.get(name).copied().unwrap_or(0);
    let caught_up = follower.applied_index.saturating_add(CAUGHT_UP) >= leader.commit_index;
    match () {
        () if count("snapshot.restored") > 0 && caught_up => Step::Done,
        () if count("snapshot.restored") > 0 => Step::Log,
        () if count("snapshot.received") > 0 => Step::Restoring,
        () if seen_transfer => Step::Transfer,
        () => Step::Starting,
    }
}

/// As `raft-node member add` does it: a learner first, and a vote as soon as the leader agrees.
async fn add(operator: &Client, arena: &Arena, id: NodeId) -> Result<()> {
    let address = arena.nodes.address(id)?.to_string();
    let begin = Instant::now();
    let identity = loop {
        match tokio::time::timeout(LOOK_WITHIN, arena.observer.status_of(id)).await {
            Ok(Ok(status)) => break status.identity,
            _ if begin.elapsed() > SETTLED_WITHIN => bail!("node {id} does not answer"),
            _ => tokio::time::sleep(LOOK).await,
        }
    };
    let learner = MemberChange {
        learners: vec![id],
        addresses: vec![(id, address)],
        identities: vec![(id, identity)],
        ..MemberChange::default()
    };
    operator.change_membership(learner).await.context("the follower cannot be added")?;
    loop {
        let voter = MemberChange { voters: vec![id], ..MemberChange::default() };
        match operator.change_membership(voter).await {
            Ok(_) => return Ok(()),
            Err(Error::ChangeRefused { later: true, .. }) => tokio::time::sleep(Duration::from_millis(200)).await,
            Err(error) => return Err(error).context("the follower gets no vote"),
        }
    }
}

/// The log is compacted often enough that it does not hold all of the state.
fn settings(args: &Args, size: u64) -> String {
    let (bytes, keep) = ((size / 4).clamp(1, 256 << 20), (size / 16).clamp(1, 64 << 20));
    let pace = args.max_bytes_per_second.map(|most| format!("max_bytes_per_second = {most}\n"));
    format!("[snapshot]\nbytes = {bytes}\nkeep_bytes = {keep}\n{}", pace.unwrap_or_default())
}

/// State, log and snapshot files of three nodes, and what compactions need meanwhile.
fn check_room(args: &Args, size: u64) -> Result<()> {
    let parent = args.stage.dir.ancestors().find(|dir| dir.exists());
    let Some(free) = parent.and_then(machine::free_bytes) else { return Ok(()) };
    let needed = size * 10 + (2 << 30);
    let gib = |bytes: u64| bytes as f64 / GIB;
    ensure!(
        free > needed,
        "{:.1} GiB are free, but this may take {:.1} GiB; take a smaller --gib",
        gib(free),
        gib(needed)
    );
    Ok(())
}

/// Of the table of phases.
const HEADER: [&str; 10] =
    ["phase", "s", "op/s", "p50 ms", "p99 ms", "max ms", "leader CPU %", "follower CPU %", "all CPU %", "stolen CPU %"];

fn report(args: &Args, recorder: &Recorder, found: &Found, bulk: f64) -> Result<Outcome> {
    let mut outcome = Outcome::new("catchup", &args.stage.dir, &HEADER);
    outcome.setting("state GiB", args.gib.to_string());
    outcome.setting("writes a second", args.rate.to_string());
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("rest after the filling, s", args.settle.to_string());
    outcome.setting("mode", format!("{:?}", args.mode).to_lowercase());
    if args.mode == Mode::Behind {
        outcome.variant("behind");
    }
    if let Some(link) = &args.link {
        outcome.setting("link", link.clone());
        outcome.variant("link");
    }
    for row in recorder.rows() {
        outcome.row(row);
    }
    recorder.chart(&mut outcome);
    // A host is not the same from one minute to the next: what is quiet is measured on both sides.
    let quiet = recorder.p99_ms(&[Step::QuietAll, Step::QuietAgain])?;
    let (before, during) = (recorder.p99_ms(&[Step::QuietAll])?, recorder.p99_ms_of_catching_up()?);
    let Found { snapshot, rate, seconds, elections, sent, failed, not_served } = *found;
    outcome.note(format!(
        "caught up after {seconds:.1} s; snapshot of {:.0} MB at {:.0} MB/s; the transport alone takes {:.0} MB/s; {sent} sent, {failed} broke off",
        snapshot as f64 / 1e6,
        rate / 1e6,
        bulk / 1e6
    ));
    outcome.note("CPU: in percent of one core; all: the whole machine, with whatever else runs on it; stolen: what the host took from it meanwhile");
    outcome.at_most(
        "p99 of writes while the follower catches up, as a multiple of the quiet p99 before and after",
        "x",
        ratio(during, quiet),
        2.0,
    );
    outcome.at_least("rate of the transfer, in percent of the transport alone", "%", ratio(rate, bulk) * 100.0, 50.0);
    outcome.note(format!("as a multiple of the quiet p99 before alone: {}", short(ratio(during, before))));
    outcome.at_most("elections", "", elections as f64, 0.0);
    outcome.at_most("writes that were not served", "", not_served as f64, 0.0);
    outcome.samples("quiet_p99_ms", [quiet]);
    outcome.samples("p99_ms", [during]);
    outcome.samples("seconds", [seconds]);
    outcome.samples("transfer_bytes_per_second", [rate]);
    outcome.samples("transport_bytes_per_second", [bulk]);
    eprintln!("catchup: p99 {} ms, quiet {} ms", short(during), short(quiet));
    Ok(outcome)
}

fn ratio(value: f64, of: f64) -> f64 {
    if of > 0.0 { value / of } else { f64::INFINITY }
}
