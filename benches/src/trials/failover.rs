//! The leader is killed, again and again: how long nobody's writes are acknowledged.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::outcome::{Outcome, Quantiles, millis, short};
use super::writers::{Writers, longest_write};
use super::{Arena, SETTLED_WITHIN, Stage, Timeline};

/// Between the moment when all is well and the next kill, at most: so that kills do not always meet the same moment between two heartbeats.
const REST_MILLIS: u64 = 300;

/// Kills the leader (kill -9) again and again: time to the next acknowledged write.
///
/// Some clients write all the time; like any program with this client they look for the next leader by themselves, and repeat what got no reply. The time counts
/// from the kill to the first acknowledgement of a write that began when the process was gone. Then the dead node is started again and catches up before the next one is killed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) stage: Stage,
    /// How often, with each of the timeouts
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    kills: u32,
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    nodes: u64,
    /// Clients that write
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Bytes of a value
    #[arg(long, default_value_t = 256)]
    value_size: usize,
    /// Timeouts of the nodes
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["default", "lan"])]
    timeouts: Vec<Timeouts>,
}

/// Timeouts of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Timeouts {
    /// What a node has without being told otherwise
    Default,
    /// 50 ms between heartbeats, elections after 150 to 300 ms; clients give up a silent node after 150 ms
    Lan,
}

impl Timeouts {
    fn settings(self) -> &'static str {
        match self {
            Timeouts::Default => "",
            Timeouts::Lan => "[raft]\nelection_timeout_ms = 150\nheartbeat_interval_ms = 50\n",
        }
    }

    /// After how long a client gives up a node of which it hears nothing: in a LAN it need not wait longer than the nodes do.
    fn silence(self, usual: Duration) -> Duration {
        match self {
            Timeouts::Default => usual,
            Timeouts::Lan => Duration::from_millis(150),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Timeouts::Default => "default",
            Timeouts::Lan => "lan",
        }
    }

    /// What p50 and p99 should be at most, in milliseconds.
    fn targets(self) -> (f64, f64) {
        match self {
            Timeouts::Default => (600.0, 1500.0),
            Timeouts::Lan => (350.0, 700.0),
        }
    }
}

pub(super) async fn run(args: &Args) -> Result<Outcome> {
    let Args { stage, kills, nodes, clients, value_size, timeouts } = args;
    let header = ["timeouts", "kills", "min ms", "p50 ms", "p99 ms", "max ms", "longest write ms", "failed writes"];
    let mut outcome = Outcome::new("failover", &stage.dir, &header);
    outcome.setting("nodes", nodes.to_string());
    outcome.setting("clients", clients.to_string());
    outcome.setting("value bytes", value_size.to_string());
    for &timeouts in timeouts {
        let name = timeouts.name();
        let Found { gaps, longest, failures, timeline } =
            measure(args, timeouts).await.with_context(|| format!("timeouts {name}"))?;
        outcome.timeline(timeline);
        let quantiles = Quantiles::of(gaps.iter().copied().map(millis));
        let [p50, p99, max] = quantiles.cells();
        let (least, longest) = (short(quantiles.at(0.0)), short(millis(longest)));
        outcome.row(vec![name.into(), kills.to_string(), least, p50, p99, max, longest, failures.len().to_string()]);
        let (p50, p99) = timeouts.targets();
        outcome.at_most(format!("{name}: p50 of the time to the next write"), "ms", quantiles.at(0.5), p50);
        outcome.at_most(format!("{name}: p99 of the time to the next write"), "ms", quantiles.at(0.99), p99);
        outcome.never(format!("{name}: failed writes"), failures.len());
        failures.iter().take(3).for_each(|why| outcome.note(format!("failed: {why}")));
        outcome.samples(format!("{name}_ms"), gaps.into_iter().map(millis));
    }
    outcome.note("longest write: of any client, over all kills; it includes finding the next leader");
    Ok(outcome)
}

/// What was seen with one of the timeouts.
struct Found {
    /// The time without an acknowledged write after each kill.
    gaps: Vec<Duration>,
    /// The longest that a write took.
    longest: Duration,
    /// What failed.
    failures: Vec<String>,
    timeline: Timeline,
}

async fn measure(args: &Args, timeouts: Timeouts) -> Result<Found> {
    let dir = args.stage.dir.join(timeouts.name());
    let (mut arena, _) = Arena::open(&args.stage, &dir, args.nodes, timeouts.settings()).await?;
    let writers = Writers::start_with(&arena.nodes, args.clients as usize, args.value_size, |config| {
        config.silence_timeout = timeouts.silence(config.silence_timeout);
    })?;
    let (mut kills, mut longest, begin) = (Vec::new(), Duration::ZERO, Instant::now());
    for number in 1..=args.kills {
        let before = arena.settled().await?;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..REST_MILLIS))).await;
        let killed = Instant::now();
        arena.nodes.kill(before.leader).await?;
        let ack = writers.next_ack(Instant::now(), SETTLED_WITHIN).await?;
        let gap = ack.end - killed;
        arena.nodes.spawn(before.leader, false)?;
        let after = arena.settled().await?;
        ensure!(after.term > before.term, "the leader was killed, and there was no election: {after} after {before}");
        longest = longest.max(longest_write(&writers.acks_since(killed)));
        if number % 10 == 0 || number == args.kills {
            eprintln!("failover: {} of {} kills, timeouts {}", number, args.kills, timeouts.name());
        }
        kills.push((killed, gap));
    }
    let title = format!("kill -9 of the leader, {} timeouts, {} times", timeouts.name(), args.kills);
    let timeline = Timeline::of(title, &kills, &writers.acks_since(begin));
    let failures = writers.stop().await;
    arena.close().await;
    let gaps = kills.into_iter().map(|(_, gap)| gap).collect();
    Ok(Found { gaps, longest, failures, timeline })
}
