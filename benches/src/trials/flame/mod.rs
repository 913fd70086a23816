//! Where the time of a leader and of a follower goes: perf looks at their stacks some hundred times a second while clients write.
//!
//! Stacks are unwound by the tables that every program has for that (DWARF), not by frame pointers: RocksDB and the C library have none, and so it is the very
//! release program that is measured everywhere else.

mod drawing;
mod parts;
mod perf;
mod stacks;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use raft_core::NodeId;

use self::parts::Part;
use self::perf::{Recording, Settings};
use self::stacks::Sample;
use super::outcome::Outcome;
use super::{Arena, Stage};
use crate::lines::Loop;
use crate::meter::Meter;
use crate::probe::Cpu;
use crate::run::Bench;
use crate::workload::Workload;

const NODES: u64 = 3;
const CONNECTIONS: u32 = 4;
const KEYS: u64 = 10_000;
/// Load before anybody looks.
const WARM_UP: Duration = Duration::from_secs(2);
/// Functions that are named.
const FUNCTIONS: usize = 5;
/// Letters of a name in the table.
const LETTERS: usize = 60;
/// Where recordings lie meanwhile, if there is such a place: not on the disk that is being measured.
const IN_MEMORY: &str = "/dev/shm";

/// Makes flame graphs of the leader and of a follower under a closed loop of clients, and names what costs most.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// Numbers of clients
    #[arg(long, value_delimiter = ',', value_name = "N,N,...", default_value = "1,256",
          value_parser = clap::value_parser!(u32).range(1..=16_000))]
    clients: Vec<u32>,
    /// For how long each is looked at, in seconds
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Looks a second at each running thread
    #[arg(long, default_value_t = 499, value_parser = clap::value_parser!(u32).range(10..=5000))]
    frequency: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    ensure!(args.seconds >= 0.5 && args.seconds <= 600.0, "--seconds must be from 0.5 to 600");
    perf::available()?;
    let (mut arena, _) = Arena::open(&args.stage, &args.stage.dir, NODES, "").await?;
    let bench = Bench::new(arena.nodes.description(), arena.nodes.tls())?;
    let header = ["clients", "node", "what", "share of its CPU time %", "us a write"];
    let mut outcome = Outcome::new("flame", &args.stage.dir, &header);
    outcome.setting("value bytes", args.value_size.to_string());
    outcome.setting("seconds", args.seconds.to_string());
    outcome.setting("looks a second", args.frequency.to_string());
    for &clients in &args.clients {
        eprintln!("flame: {clients} clients");
        for seen in look(args, &mut arena, &bench, clients).await? {
            seen.tell(&mut outcome, clients);
        }
    }
    outcome.note(
        "parts: each look counts for the code that the thread was in, or that called what it was in when that belongs to nobody (copying, sorting); the \
         kernel's by the system call. functions: only what the thread was in itself",
    );
    outcome.note(
        "on a virtual machine without counters of its own the clock that looks cannot interrupt the kernel where it forbids that: what such a place costs is seen \
         where it ends, for example in finish_task_switch",
    );
    bench.close().await;
    arena.close().await;
    Ok(outcome)
}

/// What was seen of a node.
struct Seen {
    role: &'static str,
    samples: Vec<Sample>,
    /// CPU time in microseconds for each write.
    each: f64,
    /// Of one core, in percent.
    busy: f64,
    rate: f64,
}

/// Lets clients write, and looks at the leader and at a follower meanwhile.
async fn look(args: &Args, arena: &mut Arena, bench: &Bench, clients: u32) -> Result<Vec<Seen>> {
    let leader = arena.settled().await?.leader;
    let follower = arena.nodes.ids().into_iter().find(|id| *id != leader).context("there is no follower")?;
    let meter = Rc::new(Meter::new()?);
    let workload = |lane: u32| Workload::new(KEYS, args.value_size, u64::from(lane));
    let mut lanes = bench.connect(leader, Loop::Closed, CONNECTIONS.min(clients), &meter, workload).await?;
    let now = Instant::now();
    lanes.all.iter().cycle().take(clients as usize).for_each(|lane| lane.issue(now, false));
    let watched = async {
        tokio::time::sleep(WARM_UP).await;
        watch(args, arena, &[("leader", leader), ("follower", follower)], &meter).await
    };
    // Whoever loses leadership breaks off its connections: then nothing was seen of a leader.
    let seen = tokio::select! {
        seen = watched => seen?,
        failure = lanes.failure() => return Err(failure.context("leadership was lost")),
    };
    lanes.drain(&meter).await;
    Ok(seen)
}

async fn watch(args: &Args, arena: &Arena, nodes: &[(&'static str, NodeId)], meter: &Meter) -> Result<Vec<Seen>> {
    let settings = Settings { frequency: args.frequency, time: Duration::from_secs_f64(args.seconds) };
    let mut recordings = Vec::new();
    for &(role, id) in nodes {
        let pid = arena.nodes.pid(id).with_context(|| format!("node {id} does not run"))?;
        let file = recording(&args.stage, role);
        recordings.push((role, pid, Recording::begin(&arena.nodes, pid, file, &settings)?, Cpu::read(&[pid])));
    }
    let (begin, done) = (Instant::now(), meter.done());
    tokio::time::sleep(settings.time).await;
    let (seconds, done) = (begin.elapsed().as_secs_f64(), (meter.done() - done) as f64);
    ensure!(done > 0.0, "nothing was written");
    let used = |pid, before: &Cpu| Cpu::read(&[pid]).since(before).nodes.context("a node cannot be looked at");
    let mut ended = Vec::new();
    for (role, pid, recording, before) in recordings {
        ended.push((role, used(pid, &before)?, recording));
    }
    let mut seen = Vec::new();
    for (role, micros, recording) in ended {
        let samples = stacks::parse(&recording.finish().await?);
        ensure!(!samples.is_empty(), "perf has seen nothing of the {role}");
        let (each, busy) = (micros / done, micros / 1e4 / seconds);
        seen.push(Seen { role, samples, each, busy, rate: done / seconds });
    }
    Ok(seen)
}

fn recording(stage: &Stage, role: &str) -> PathBuf {
    let folder = Path::new(IN_MEMORY);
    let folder = if folder.is_dir() { folder } else { stage.dir.as_path() };
    folder.join(format!("raft-flame-{}-{role}.perf", std::process::id()))
}

impl Seen {
    fn tell(&self, outcome: &mut Outcome, clients: u32) {
        let Seen { role, samples, each, busy, rate } = self;
        let whole: u64 = samples.iter().map(|sample| sample.weight).sum();
        let mut row = |what: &str, weight: u64| {
            let share = weight as f64 / whole.max(1) as f64;
            let cells = [format!("{:.1}", share * 100.0), format!("{:.2}", share * each)];
            outcome.row([vec![clients.to_string(), (*role).to_owned(), what.to_owned()], cells.to_vec()].concat());
        };
        row("**all**", whole);
        for (part, weight) in sums(samples.iter().map(|sample| (Part::of(sample), sample.weight))) {
            row(part.name(), weight);
        }
        let own = samples.iter().map(|sample| (sample.function().to_owned(), sample.weight));
        for (function, weight) in sums(own).into_iter().take(FUNCTIONS) {
            row(&format!("`{}`", drawing::shorten(&function, LETTERS)), weight);
        }
        let many = if clients == 1 { "client" } else { "clients" };
        let title = format!(
            "{role}, {clients} {many}: {rate:.0} writes/s, {busy:.0} % of a core, {each:.1} us of CPU time a write"
        );
        outcome.picture_of(format!("{role}-{clients}"), drawing::draw(&title, samples));
        if !samples.iter().any(Sample::is_in_kernel) {
            outcome.note("the kernel's stacks are missing: sysctl kernel.perf_event_paranoid=1 shows them");
        }
    }
}

/// Adds up what belongs together, the largest first.
fn sums<K: Ord>(all: impl Iterator<Item = (K, u64)>) -> Vec<(K, u64)> {
    let mut sums: BTreeMap<K, u64> = BTreeMap::new();
    all.for_each(|(key, weight)| *sums.entry(key).or_default() += weight);
    let mut sums: Vec<(K, u64)> = sums.into_iter().collect();
    sums.sort_by_key(|(_, weight)| std::cmp::Reverse(*weight));
    sums
}
