//! Measurements: one kind of fault each, done on purpose instead of by chance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use raft_core::NodeId;
use raft_core::sim::schedule::Dice;
use raft_node::client::{Client, Error, Missing};
use tokio::task::JoinSet;

use crate::arena::{Arena, RECOVERY_WITHIN};
use crate::clients::{self, Sample};
use crate::cluster::{Stopped, Trouble};
use crate::disk::{Injection, Tracer};
use crate::history::Record;
use crate::journal::human;
use crate::report::quantiles;
use crate::schedule::Syncs;

/// How long a node may take to stop when its disk fails and there is something to write.
const STOPS_WITHIN: Duration = Duration::from_secs(20);
/// Clients that ask precisely the node that was paused.
const ASKERS: usize = 8;
/// How long each of them waits after the node woke. (It is told of other nodes, but at addresses that serve nodes only.)
const ASK_WITHIN: Duration = Duration::from_millis(700);
/// So long before the node is stopped, and before it wakes, they begin.
const BUSY_BEFORE: Duration = Duration::from_millis(50);
/// How often each fsync stall is measured.
const STALLS: usize = 5;

/// One of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// SIGSTOP of the leader for 1, 5 and 30 seconds
    Pause,
    /// An fsync of the log returns EIO, at the leader and at a follower
    FsyncError,
    /// An fsync of the leader's log takes 0.3, 2 and 5 seconds longer
    FsyncStall,
    /// No space on the disk of a follower, then of the leader
    FullDisk,
}

impl Scenario {
    /// Carries it out.
    pub(crate) async fn run(self, arena: &mut Arena) -> Result<()> {
        let needs = match self {
            Scenario::Pause => None,
            Scenario::FsyncError => Some("fsync error"),
            Scenario::FsyncStall => Some("fsync delay"),
            Scenario::FullDisk => Some("full disk"),
        };
        if let Some(why) = needs.and_then(|kind| arena.notes.skipped.get(kind)) {
            arena.journal.say(&format!("skipped: {self:?} ({why})"));
            return Ok(());
        }
        match self {
            Scenario::Pause => pauses(arena).await,
            Scenario::FsyncError => sync_errors(arena).await,
            Scenario::FsyncStall => sync_stalls(arena).await,
            Scenario::FullDisk => full_disk(arena).await,
        }
    }
}

/// kill -9 of the leader, of a follower, and of all, in turn.
pub(crate) async fn cycles(arena: &mut Arena, count: u64, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed, 3);
    let mut gaps: [Vec<Duration>; 3] = Default::default();
    for cycle in 0..count {
        arena.load.next_write(RECOVERY_WITHIN).await?;
        let leader = settled(arena).await?;
        tokio::time::sleep(dice.time(Duration::ZERO, Duration::from_millis(300))).await;
        let kind = (cycle % 3) as usize;
        let victims: Vec<NodeId> = match kind {
            0 => vec![leader],
            1 => {
                let others: Vec<NodeId> = arena.cluster.ids().into_iter().filter(|id| *id != leader).collect();
                vec![others[dice.pick(others.len())]]
            }
            _ => arena.cluster.ids(),
        };
        victims.iter().try_for_each(|id| arena.cluster.kill(*id))?;
        arena.notes.count(["kill -9 of the leader", "kill -9 of a follower", "kill -9 of all"][kind]);
        let killed = Instant::now();
        if kind == 2 {
            arena.cluster.start_all()?;
        }
        arena.load.next_write(RECOVERY_WITHIN).await.with_context(|| format!("cycle {cycle}"))?;
        gaps[kind].push(killed.elapsed());
        arena.cluster.start_all()?;
        if (cycle + 1) % 30 == 0 {
            arena.journal.say(&format!("{} cycles", cycle + 1));
        }
    }
    for (what, gaps) in ["the leader", "a follower", "all"].iter().zip(&gaps) {
        arena.notes.figures.push(format!("kill -9 of {what}: next acknowledged write, {}", quantiles(gaps)));
    }
    Ok(())
}

/// The leader, when all follow it, by answers of now.
async fn settled(arena: &Arena) -> Result<NodeId> {
    arena.monitor.forget();
    arena.monitor.agreement(RECOVERY_WITHIN).await
}

/// A stale read would come from here: questions that a leader has in its hands or in its socket when it is stopped, and more that
/// arrive while it sleeps, wait for it as it wakes and believes itself the leader of a cluster that has gone on without it.
async fn pauses(arena: &mut Arena) -> Result<()> {
    let mut total = Answers::default();
    for seconds in [1, 5, 30] {
        let mut met = Answers::default();
        for _ in 0..3 {
            met.add(&pause(arena, Duration::from_secs(seconds)).await?);
        }
        arena.notes.figures.push(format!("leader paused for {seconds} s, 3 times: {met}"));
        total.add(&met);
    }
    if total.answered + total.refused == 0 {
        arena.notes.violations.push(format!("no read met a leader as it woke, which proves nothing: {total}"));
    }
    Ok(())
}

async fn pause(arena: &mut Arena, length: Duration) -> Result<Answers> {
    let leader = settled(arena).await?;
    let early = askers(arena, leader, length + ASK_WITHIN).await?;
    let late = askers(arena, leader, ASK_WITHIN).await?;
    let stopped = Arc::new(AtomicBool::new(false));
    let early = ask(arena, early, &stopped);
    // Each of them has a read under way at any moment.
    tokio::time::sleep(BUSY_BEFORE).await;
    arena.cluster.pause(leader)?;
    let paused = arena.journal.origin().elapsed();
    stopped.store(true, Ordering::Relaxed);
    arena.notes.count("pause");
    tokio::time::sleep(length.saturating_sub(BUSY_BEFORE)).await;
    // Connected beforehand: after a short pause the questions are there before any news.
    let stopped = Arc::new(AtomicBool::new(false));
    let late = ask(arena, late, &stopped);
    tokio::time::sleep(BUSY_BEFORE).await;
    let woken = arena.journal.origin().elapsed();
    arena.cluster.resume(leader)?;
    tokio::time::sleep(ASK_WITHIN).await;
    stopped.store(true, Ordering::Relaxed);
    let mut answers = Answers::default();
    for Asked { key, ended, fate } in early.join_all().await.into_iter().chain(late.join_all().await).flatten() {
        // Those that ended before are ordinary reads.
        let counts = ended >= woken;
        match fate {
            Fate::Answered(record) => {
                arena.extra.push(&key, record);
                answers.answered += u64::from(counts);
                answers.in_flight += u64::from(counts && u128::from(record.start) < paused.as_nanos());
            }
            Fate::Refused => answers.refused += u64::from(counts),
            Fate::Silence => answers.silent += u64::from(counts),
        }
    }
    let gap = longest_gap_since(arena, paused);
    arena.journal.say(&format!(
        "leader {leader} paused for {}: {} without a write; {answers}",
        human(length),
        human(gap)
    ));
    Ok(answers)
}

/// What became of the reads that waited for a leader as it woke, and of those that came in the moments after.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    answered: u64,
    /// Of the answered, those that were asked before it was stopped.
    in_flight: u64,
    /// It said that it does not lead.
    refused: u64,
    silent: u64,
}

impl Answers {
    fn add(&mut self, other: &Answers) {
        self.answered += other.answered;
        self.in_flight += other.in_flight;
        self.refused += other.refused;
        self.silent += other.silent;
    }
}

impl std::fmt::Display for Answers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answers { answered, in_flight, refused, silent } = self;
        write!(
            f,
            "of the reads that met it as it woke it answered {answered} ({in_flight} of them asked before it was stopped), "
        )?;
        write!(f, "refused {refused} as no leader, left {silent} unanswered")
    }
}

/// Clients of one node only, connected.
async fn askers(arena: &Arena, node: NodeId, patience: Duration) -> Result<Vec<Client>> {
    let clients: Vec<Client> =
        (0..ASKERS).map(|_| arena.cluster.patient_client_of(node, patience)).collect::<Result<_>>()?;
    for client in &clients {
        let begin = Instant::now();
        while let Err(error) = client.status(node).await {
            ensure!(begin.elapsed() < RECOVERY_WITHIN, "the leader does not answer: {error}");
        }
    }
    Ok(clients)
}

/// A read of one node.
struct Asked {
    key: String,
    /// Since the beginning.
    ended: Duration,
    fate: Fate,
}

enum Fate {
    Answered(Record),
    Refused,
    Silence,
}

/// Each client reads, again and again until it is told to stop. Only one node can answer: the others are not where it says they are.
fn ask(arena: &Arena, clients: Vec<Client>, stop: &Arc<AtomicBool>) -> JoinSet<Vec<Asked>> {
    let (origin, keys) = (arena.journal.origin(), arena.load.keys());
    let mut tasks = JoinSet::new();
    for (n, client) in clients.into_iter().enumerate() {
        let (key, stop) = (keys[n % keys.len()].clone(), stop.clone());
        tasks.spawn(async move {
            let mut seen = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let fate = match clients::read(&client, origin, &key).await {
                    Ok(record) => Fate::Answered(record),
                    Err(error) => match error.downcast_ref() {
                        Some(Error::Timeout { reason: Missing::Leader, .. }) => Fate::Refused,
                        _ => Fate::Silence,
                    },
                };
                seen.push(Asked { key: key.clone(), ended: origin.elapsed(), fate });
            }
            seen
        });
    }
    tasks
}

async fn sync_errors(arena: &mut Arena) -> Result<()> {
    for at_leader in [true, false] {
        // With one node down every write needs the disk that fails: none may be acknowledged.
        let (victim, bystander) = victim_and_bystander(arena, at_leader).await?;
        arena.cluster.kill(bystander)?;
        arena.load.next_write(RECOVERY_WITHIN).await?;
        let (stopped, injected, took) = stop_by_error(arena, victim).await?;
        let acknowledged = writes_between(arena, injected, arena.journal.origin().elapsed());
        if acknowledged > 0 {
            let wrong = format!("{acknowledged} writes were acknowledged that {stopped} cannot have synced");
            arena.notes.violations.push(wrong);
        }
        arena.cluster.start(bystander)?;
        let gap = arena.load.next_write(RECOVERY_WITHIN).await?;
        arena.cluster.start(victim)?;
        let who = if at_leader { "leader" } else { "follower" };
        arena.notes.figures.push(format!(
            "EIO at the {who}, a majority only with it: stopped after {}, {acknowledged} writes acknowledged meanwhile; \
             writes again {} after the third node came back; it says `{}`",
            human(took),
            human(gap),
            stopped.last_words
        ));

        // With all nodes up the cluster goes on without it.
        let (victim, _) = victim_and_bystander(arena, at_leader).await?;
        let (_, injected, took) = stop_by_error(arena, victim).await?;
        arena.load.next_write(RECOVERY_WITHIN).await?;
        let gap = longest_gap_since(arena, injected);
        arena.notes.figures.push(format!(
            "EIO at the {who}, all nodes up: stopped after {}; longest time without a write {}",
            human(took),
            human(gap)
        ));
        arena.cluster.start(victim)?;
    }
    Ok(())
}

async fn victim_and_bystander(arena: &Arena, at_leader: bool) -> Result<(NodeId, NodeId)> {
    ensure!(arena.cluster.ids().len() == 3, "this measurement is for three nodes");
    let leader = settled(arena).await?;
    let others: Vec<NodeId> = arena.cluster.ids().into_iter().filter(|id| *id != leader).collect();
    Ok(if at_leader { (leader, others[0]) } else { (others[0], others[1]) })
}

/// From now on every sync of the node's log fails. Returns how it ended, when that began, and how long it took.
async fn stop_by_error(arena: &mut Arena, node: NodeId) -> Result<(Stopped, Duration, Duration)> {
    arena.cluster.may_stop(node, Trouble::Sync)?;
    let tracer = Tracer::attach(&arena.cluster, node, Syncs::Writer, Injection::Error)?;
    let injected = arena.journal.origin().elapsed();
    arena.notes.count("fsync error");
    arena.journal.say(&format!("fsync of node {node} returns EIO"));
    let stopped = wait_for_end(arena, node, Trouble::Sync).await?;
    drop(tracer);
    Ok((stopped, injected, arena.journal.origin().elapsed().saturating_sub(injected)))
}

/// Waits until a node ends by itself, and sees that its log says why.
async fn wait_for_end(arena: &mut Arena, node: NodeId, reason: Trouble) -> Result<Stopped> {
    let begin = Instant::now();
    while begin.elapsed() < STOPS_WITHIN {
        tokio::time::sleep(Duration::from_millis(5)).await;
        for stopped in arena.cluster.reap()? {
            arena.journal.say(&stopped.to_string());
            if stopped.id != node || !stopped.is_excused() {
                arena.notes.violations.push(format!("expected `{}` of node {node}: {stopped}", reason.words()));
            }
            if stopped.id == node {
                return Ok(stopped);
            }
        }
    }
    bail!("node {node} does not stop within {STOPS_WITHIN:?}")
}

fn writes_between(arena: &Arena, from: Duration, to: Duration) -> usize {
    arena.load.samples().iter().filter(|s| s.start > from && s.start + s.took < to).count()
}

fn longest_gap_since(arena: &Arena, from: Duration) -> Duration {
    let mut ends: Vec<Duration> =
        arena.load.samples().iter().map(|s| s.start + s.took).filter(|end| *end > from).collect();
    ends.push(from);
    ends.sort_unstable();
    ends.windows(2).map(|two| two[1].saturating_sub(two[0])).max().unwrap_or_default()
}

async fn sync_stalls(arena: &mut Arena) -> Result<()> {
    let window = Duration::from_secs(4);
    let leader = settled(arena).await?;
    let from = arena.journal.origin().elapsed();
    tokio::time::sleep(window).await;
    report_latency(arena, "without a stall", from);
    let tracer = Tracer::attach(&arena.cluster, leader, Syncs::Writer, Injection::Delay(Duration::ZERO))?;
    let from = arena.journal.origin().elapsed();
    tokio::time::sleep(window).await;
    report_latency(arena, "strace attached, no stall", from);
    drop(tracer);
    for stall in [300, 2000, 5000].map(Duration::from_millis) {
        let (mut moved, mut gaps) = (0, Vec::new());
        let began = arena.journal.origin().elapsed();
        for _ in 0..STALLS {
            let (leader, term) = (settled(arena).await?, arena.monitor.term());
            let from = arena.journal.origin().elapsed();
            let tracer = Tracer::attach(&arena.cluster, leader, Syncs::Writer, Injection::DelayOnce(stall))?;
            arena.notes.count("fsync delay");
            tokio::time::sleep(stall + Duration::from_secs(2)).await;
            drop(tracer);
            arena.load.next_write(RECOVERY_WITHIN).await?;
            let (now, now_term) = (settled(arena).await?, arena.monitor.term());
            let gap = longest_gap_since(arena, from);
            let moves = if (now, now_term) == (leader, term) { "stays leader" } else { "leads no more" };
            arena.journal.say(&format!(
                "fsync of leader {leader} stalled for {}: it {moves} (now node {now}, term {term} -> {now_term}); {} without a write",
                human(stall),
                human(gap)
            ));
            moved += usize::from((now, now_term) != (leader, term));
            gaps.push(gap);
        }
        arena.notes.figures.push(format!(
            "leader's fsync stalled for {}: leadership moved {moved} times of {STALLS}; time without a write: {}",
            human(stall),
            quantiles(&gaps)
        ));
        report_latency(arena, &format!("with stalls of {}", human(stall)), began);
    }
    Ok(())
}

fn report_latency(arena: &mut Arena, when: &str, from: Duration) {
    let samples = arena.load.samples();
    let times: Vec<Duration> = samples.iter().filter(|s: &&Sample| s.start > from).map(|s| s.took).collect();
    arena.notes.figures.push(format!("acknowledged writes {when}: {}", quantiles(&times)));
}

async fn full_disk(arena: &mut Arena) -> Result<()> {
    let small = arena.small.as_ref().map(|(node, _)| *node).context("there is no small disk")?;
    for at_leader in [false, true] {
        make_leader(arena, small, at_leader).await?;
        let who = if at_leader { "leader" } else { "follower" };
        arena.cluster.may_stop(small, Trouble::Space)?;
        let begin = Instant::now();
        let from = arena.journal.origin().elapsed();
        let used = disk(arena)?.fill()?;
        arena.notes.count("full disk");
        arena.journal.say(&format!("the disk of node {small} ({who}) is full after {used} bytes"));
        let bulk = tokio::spawn(write_much(Client::new(arena.cluster.client_config())?));
        let stopped = wait_for_end(arena, small, Trouble::Space).await;
        bulk.abort();
        let stopped = stopped?;
        let took = begin.elapsed();
        arena.load.next_write(RECOVERY_WITHIN).await?;
        let gap = longest_gap_since(arena, from);

        arena.cluster.start(small)?;
        arena.cluster.may_stop(small, Trouble::Space)?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let restarted = match arena.cluster.reap()?.pop() {
            Some(again) => {
                if !again.is_excused() {
                    arena.notes.violations.push(again.to_string());
                }
                format!("refuses to start: `{}`", again.last_words)
            }
            None => "starts all the same".to_owned(),
        };
        disk(arena)?.free()?;
        arena.journal.say(&format!("node {small} {restarted}; there is space again"));
        let freed = Instant::now();
        arena.cluster.start(small)?;
        arena.monitor.forget();
        // It may still stop for an error of before.
        while let Err(error) = arena.monitor.agreement(Duration::from_millis(500)).await {
            ensure!(freed.elapsed() < RECOVERY_WITHIN, "after space returned: {error:#}");
            arena.restart_stopped()?;
        }
        arena.notes.figures.push(format!(
            "disk of the {who} full: stopped after {}, `{}`; longest time without a write {}; while full it {restarted}; \
             part of the cluster {} after space returned",
            human(took),
            stopped.last_words,
            human(gap),
            human(freed.elapsed())
        ));
    }
    Ok(())
}

fn disk(arena: &Arena) -> Result<&crate::disk::SmallDisk> {
    Ok(&arena.small.as_ref().context("there is no small disk")?.1)
}

/// Kills leaders until the right node leads, or does not.
async fn make_leader(arena: &mut Arena, node: NodeId, wanted: bool) -> Result<()> {
    for _ in 0..50 {
        let leader = settled(arena).await?;
        if (leader == node) == wanted {
            return Ok(());
        }
        arena.cluster.kill(leader)?;
        arena.load.next_write(RECOVERY_WITHIN).await?;
        arena.cluster.start(leader)?;
    }
    bail!("chance has it that node {node} {} leads", if wanted { "never" } else { "always" })
}

/// Fills logs quickly; until it is aborted. What it writes looks like other values, since whole nodes are compared at the end.
async fn write_much(client: Client) {
    let mut value = b"1:".to_vec();
    value.resize(256 << 10, b'x');
    for n in 0u64.. {
        // The leader may be the one that fails; then another one will be.
        let _ = client.put(format!("bulk/{}", n % 8).as_bytes(), &value).await;
    }
}
