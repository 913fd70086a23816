//! What a seed decides: sizes, settings and which faults, how often and how bad. Each seed picks its own mix, and leaves most
//! things out: faults that never come alone hide one another ("swarm testing", Groce et al., 2012).

use std::time::Duration;

use crate::config::{Config, Lease};
use crate::sim::schedule::Dice;
use crate::types::NodeId;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Links are cut so that the cluster falls into two or more parts.
    Partition,
    /// Some directed links are cut.
    OneWay,
    /// A link comes and goes.
    Flap,
    /// A link is slow.
    Slow,
    /// The whole network loses, repeats and delays.
    Storm,
    /// Servers crash, and come back.
    Crash,
    /// A server is frozen, and goes on.
    Pause,
    /// A disk takes seconds for a sync.
    Stall,
    /// A sync fails, which stops its server.
    SyncError,
    /// What a disk holds cannot be trusted any more: it rots, say. Its server notices when it reads, and stays out. Where the membership changes, it may come
    /// back with an empty disk: refused under its old id, until it has been removed and added as another.
    DiskLoss,
    /// A server comes back with an old image of its disk, and does not know. No Raft survives this, so no seed does it: it is here to show
    /// that what follows from it is seen.
    Rollback,
    /// Clients send more than the cluster can take.
    Overload,
    /// No fault, but at a time as good as any: a leader is asked to hand over.
    Transfer,
}

impl Fault {
    /// All that a cluster must survive.
    const ALL: [Fault; 12] = [
        Fault::Partition,
        Fault::OneWay,
        Fault::Flap,
        Fault::Slow,
        Fault::Storm,
        Fault::Crash,
        Fault::Pause,
        Fault::Stall,
        Fault::SyncError,
        Fault::DiskLoss,
        Fault::Overload,
        Fault::Transfer,
    ];
}

/// How a link treats messages. Probabilities are in thousandths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quality {
    /// Lost.
    pub loss: u64,
    /// Delivered twice.
    pub duplication: u64,
    /// Shortest and longest ordinary delay.
    pub delay: (Duration, Duration),
    /// Held up for much longer,
    pub straggling: u64,
    /// for up to this long.
    pub straggle: Duration,
}

impl Quality {
    /// How every link is once the faults are over.
    pub const GOOD: Quality = Quality {
        loss: 0,
        duplication: 0,
        delay: (Duration::from_micros(100), Duration::from_micros(900)),
        straggling: 0,
        straggle: Duration::ZERO,
    };
}

/// Who belongs to the cluster changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Servers that are there and do not belong to the cluster at first.
    pub spares: usize,
    /// Mean time between two changes.
    pub interval: Duration,
}

/// When logs are compacted, and how well snapshots travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// After so many entries more than those that are kept,
    pub every: u64,
    /// so many of which are kept for slow followers.
    pub keep: u64,
    /// Shortest and longest time that a snapshot takes.
    pub transfer: (Duration, Duration),
    /// So many transfers in a thousand break off.
    pub failing: u64,
    /// How long a state machine takes to replace its state, at most.
    pub restore: Duration,
}

/// When clients and all others who want something leave the cluster alone, so that it can go to [sleep](Config::quiesce_after).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Naps {
    /// Time from the beginning of one to that of the next,
    pub every: Duration,
    /// and how long one lasts.
    pub length: Duration,
    /// Within this time whoever is up at either end hears that a link is cut or mended, or that the other has died, started or is frozen.
    pub noticed_within: Duration,
}

/// Some clients open sessions, and repeat in them what they do not know the outcome of, until they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sessions {
    /// So many clients have one,
    pub clients: usize,
    /// and so many sessions the state machine keeps: when one more is opened, the one that was not used for longest ends.
    pub kept: u32,
    /// So many times in a thousand a client forgets its session before it begins something new, and opens another.
    pub forgetful: u64,
    /// So many attempts in a thousand are repeated after an instant already.
    pub impatient: u64,
    /// After so many commands in a thousand a copy of the one before comes to a server: it was on its way all the time.
    pub copies: u64,
}

/// Everything that a seed decides beforehand.
#[derive(Clone, Debug)]
pub struct Mix {
    /// Number of servers that found the cluster.
    pub servers: usize,
    /// Whether, and how, that changes.
    pub changes: Option<Changes>,
    /// Settings of the cores; the id is filled in.
    pub config: Config,
    /// How long faults go on.
    pub troubled: Duration,
    /// Which faults happen.
    pub faults: Vec<Fault>,
    /// Mean time between two of them.
    pub fault_interval: Duration,
    /// Links between servers in ordinary times.
    pub links: Quality,
    /// Messages between two servers arrive in order, as on one connection.
    pub ordered: bool,
    /// Servers are told when a connection was lost.
    pub tells_resets: bool,
    /// Shortest and longest sync.
    pub sync: (Duration, Duration),
    /// One sync in a thousand of these takes 50 times as long.
    pub sync_hiccups: u64,
    /// A crash may tear a write.
    pub tears: bool,
    /// How long a server takes from the first thing in its inbox until it looks at all of it.
    pub loop_delay: Duration,
    /// How many messages and requests an inbox holds.
    pub inbox: usize,
    /// How long a state machine takes for what it is handed.
    pub apply: Duration,
    /// State machines remember something across a crash.
    pub keeps_state: bool,
    /// How fast each server's clock runs, in thousandths of the true rate.
    pub clock_rates: Vec<u64>,
    /// Number of clients.
    pub clients: usize,
    /// Number of independent objects.
    pub keys: u8,
    /// Mean time that a client thinks between two operations.
    pub think: Duration,
    /// How long a client waits for an answer.
    pub patience: Duration,
    /// Largest padding of a command, in bytes.
    pub padding: usize,
    /// Servers forget the beginning of their logs; never, if there is no policy.
    pub compaction: Option<Compaction>,
    /// Servers hear of what their state machine did on the way only the next time they are awake, as nodes do; otherwise at once.
    pub late_progress: bool,
    /// Which servers should rather lead.
    pub priorities: Vec<u8>,
    /// Whether groups sleep, and what for.
    pub naps: Option<Naps>,
    /// Whether clients repeat what they do not know the outcome of.
    pub sessions: Option<Sessions>,
}

impl Mix {
    /// The mix of a seed.
    pub fn of(seed: u64) -> Mix {
        let mut dice = Dice::new(seed, MIX);
        let dice = &mut dice;
        let servers = [1, 3, 3, 3, 3, 3, 5, 5, 5, 7][dice.pick(10)];
        let mut config = config(seed, dice);
        let mut faults: Vec<Fault> = Fault::ALL.into_iter().filter(|_| dice.chance(2, 5)).collect();
        if faults.is_empty() {
            faults.push(Fault::ALL[dice.pick(Fault::ALL.len())]);
        }
        let changes = changes(seed, servers);
        let wild = dice.chance(1, 4);
        let drift = [0, 10, 200][dice.pick(3)];
        if config.check_quorum && dice.chance(1, 2) {
            // The fastest clock gains that much on the slowest one.
            let drift_per_mille = (2 * drift * 1000 / (1000 + drift) + 1) as u32;
            config.lease = Some(Lease { drift_per_mille });
        }
        let naps = naps(seed, &mut config);
        let ranks = if dice.chance(1, 4) { 2 } else { 0 };
        Mix {
            servers,
            changes,
            troubled: Duration::from_secs(dice.between(60, 75)),
            faults,
            fault_interval: dice.time(Duration::from_millis(300), Duration::from_secs(6)),
            links: links(dice),
            ordered: dice.chance(1, 4),
            tells_resets: dice.chance(1, 2),
            sync: sync(dice),
            sync_hiccups: if dice.chance(1, 3) { dice.between(1, 30) } else { 0 },
            tears: dice.chance(1, 2),
            loop_delay: if dice.chance(1, 3) { dice.time(Duration::ZERO, millis(3)) } else { Duration::ZERO },
            inbox: if dice.chance(1, 4) { dice.between(8, 64) as usize } else { 4096 },
            apply: if dice.chance(1, 3) { dice.time(Duration::ZERO, millis(30)) } else { Duration::ZERO },
            keeps_state: dice.chance(2, 3),
            clock_rates: (0..servers).map(|_| dice.between(1000 - drift, 1000 + drift)).collect(),
            clients: dice.between(2, 6) as usize,
            keys: dice.between(1, 6) as u8,
            think: dice.time(millis(20), millis(if wild { 60 } else { 400 })),
            patience: dice.time(millis(300), millis(3000)),
            padding: if dice.chance(1, 3) { dice.between(1, 600) as usize } else { 0 },
            late_progress: dice.chance(1, 2),
            priorities: (0..servers).map(|_| dice.between(0, ranks) as u8).collect(),
            compaction: compaction(&mut Dice::new(seed, COMPACTION)),
            naps,
            sessions: None,
            config,
        }
        .with_sessions(seed)
    }

    /// In half of the seeds clients have sessions. Seldom there is room for fewer sessions than clients.
    fn with_sessions(self, seed: u64) -> Mix {
        let mut dice = Dice::new(seed, SESSIONS);
        let clients = dice.between(1, self.clients as u64);
        let kept = dice.between((clients - 1).max(1), clients + 3) as u32;
        let forgetful = if dice.chance(1, 2) { dice.between(1, 100) } else { 0 };
        let impatient = if dice.chance(1, 2) { dice.between(1, 300) } else { 0 };
        let copies = if dice.chance(1, 2) { dice.between(1, 100) } else { 0 };
        let sessions = Sessions { clients: clients as usize, kept, forgetful, impatient, copies };
        Mix { sessions: dice.chance(1, 2).then_some(sessions), ..self }
    }

    /// Number of servers, those included that do not belong to the cluster at first.
    pub fn slots(&self) -> usize {
        self.servers + self.changes.map_or(0, |changes| changes.spares)
    }

    /// Whether a fault can happen at all.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

/// What is decided apart throws dice of its own, so that it neither changes what else is decided nor goes along with it.
const MIX: u64 = 1000;
const COMPACTION: u64 = 1001;
const NAPS: u64 = 1002;
const CHANGES: u64 = 1003;
const SESSIONS: u64 = 1004;

/// In half of the seeds the membership changes.
fn changes(seed: u64, servers: usize) -> Option<Changes> {
    let mut dice = Dice::new(seed, CHANGES);
    let spares = dice.between(u64::from(servers < 3), 4.min(8 - servers as u64)) as usize;
    let interval = dice.time(millis(100), millis(4000));
    dice.chance(1, 2).then_some(Changes { spares, interval })
}

/// In a quarter of the seeds groups sleep.
fn naps(seed: u64, config: &mut Config) -> Option<Naps> {
    if seed % 4 != 1 {
        return None;
    }
    let mut dice = Dice::new(seed, NAPS);
    let after = config.heartbeat_interval * dice.between(2, 6) as u32;
    config.quiesce_after = Some(after);
    let length = after * 2 + dice.time(millis(500), millis(12_000));
    let every = length + dice.time(millis(300), millis(4000));
    Some(Naps { every, length, noticed_within: dice.time(millis(1), millis(3000)) })
}

fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Most settings keep their default; small limits bring out what large ones hide.
fn config(seed: u64, dice: &mut Dice) -> Config {
    let election_timeout = dice.time(millis(200), millis(1200));
    let mut config = Config {
        election_timeout,
        heartbeat_interval: election_timeout / dice.between(2, 8) as u32,
        pre_vote: dice.chance(3, 4),
        check_quorum: dice.chance(3, 4),
        no_op_on_election: dice.chance(3, 4),
        max_write_stall: Some(dice.time(millis(500), millis(3000))),
        seed,
        ..Config::new(NodeId(1))
    };
    let mut limit = |setting: &mut usize, low, high| {
        if dice.chance(1, 4) {
            *setting = dice.between(low, high) as usize;
        }
    };
    limit(&mut config.max_append_bytes, 1, 2000);
    limit(&mut config.max_inflight_appends, 1, 16);
    limit(&mut config.max_inflight_bytes, 1, 4000);
    limit(&mut config.max_uncommitted_bytes, 60, 2000);
    limit(&mut config.max_unapplied_bytes, 60, 2000);
    limit(&mut config.max_cached_bytes, 0, 2000);
    limit(&mut config.max_reject_runs, 1, 6);
    config.commit_notification_delay =
        [0, 2, 50][(seed / 3 % 3) as usize] * millis(1).min(config.heartbeat_interval / 50);
    config.max_promotion_lag = [1000, 10, 0][(seed % 3) as usize];
    config
}

fn links(dice: &mut Dice) -> Quality {
    let mut some = |of, outof, low, high| if dice.chance(of, outof) { dice.between(low, high) } else { 0 };
    let (loss, duplication) = (some(1, 2, 1, 120), some(1, 3, 1, 100));
    let (straggling, straggle) = (some(1, 3, 1, 100), some(1, 1, 20, 2500));
    let slowest = dice.between(1, 30);
    let fastest = if dice.chance(1, 2) { slowest * 900 } else { 100 };
    Quality {
        loss,
        duplication,
        delay: (Duration::from_micros(fastest), millis(slowest)),
        straggling,
        straggle: millis(straggle),
    }
}

/// Of four seeds, one never compacts, two do all the time, and one seldom.
fn compaction(dice: &mut Dice) -> Option<Compaction> {
    let (every, keep) = match dice.pick(4) {
        0 => return None,
        1 | 2 => (dice.between(0, 20), dice.between(0, 8)),
        _ => (dice.between(30, 200), dice.between(0, 60)),
    };
    let slowest = if dice.chance(1, 2) { dice.between(2, 20) } else { dice.between(20, 3000) };
    Some(Compaction {
        every,
        keep,
        transfer: (millis(1), millis(slowest)),
        failing: if dice.chance(1, 2) { dice.between(50, 500) } else { 0 },
        restore: if dice.chance(1, 2) { dice.time(Duration::ZERO, millis(300)) } else { millis(2) },
    })
}

fn sync(dice: &mut Dice) -> (Duration, Duration) {
    match dice.pick(3) {
        0 => (Duration::from_micros(50), millis(1)),
        1 => (millis(1), millis(8)),
        _ => (millis(1), millis(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mix_is_valid_and_lasts_a_minute() {
        for seed in 0..2000 {
            let mix = Mix::of(seed);
            mix.config.validate().unwrap();
            assert!(mix.troubled >= Duration::from_mins(1) && !mix.faults.is_empty());
            assert!(mix.links.delay.0 <= mix.links.delay.1 && mix.sync.0 <= mix.sync.1);
            assert_eq!((mix.clock_rates.len(), mix.priorities.len()), (mix.servers, mix.servers));
            assert!(mix.compaction.is_none_or(|policy| policy.transfer.0 <= policy.transfer.1));
        }
    }

    /// They threw the same dice once: then a log of which 5 to 8 or more than 30 entries were kept never met a change of the membership.
    #[test]
    fn how_logs_are_compacted_says_nothing_of_how_the_membership_changes() {
        let mixes: Vec<Mix> = (0..2000).map(Mix::of).collect();
        let both = |keep: std::ops::RangeInclusive<u64>, changes: bool| {
            let kept = |mix: &&Mix| mix.compaction.is_some_and(|policy| keep.contains(&policy.keep));
            mixes.iter().filter(kept).filter(|mix| mix.changes.is_some() == changes).count()
        };
        for keep in [0..=4, 5..=8, 9..=30, 31..=60] {
            let (with, without) = (both(keep.clone(), true), both(keep.clone(), false));
            assert!(with * 3 > without && without * 3 > with && with >= 50, "{keep:?}: {with} and {without}");
        }
        for spares in [1, 4] {
            let with = mixes.iter().filter(|mix| mix.changes.is_some_and(|changes| changes.spares == spares));
            assert!(with.filter(|mix| mix.compaction.is_none()).count() >= 10, "{spares} spares, and never compacted");
        }
    }

    #[test]
    fn half_of_the_seeds_have_sessions_some_for_all_clients_and_some_with_too_little_room() {
        let mixes: Vec<Mix> = (0..400).map(Mix::of).collect();
        let with = |is: fn(&Sessions, &Mix) -> bool| {
            mixes.iter().filter(|mix| mix.sessions.is_some_and(|sessions| is(&sessions, mix))).count()
        };
        assert!((150..250).contains(&with(|_, _| true)));
        assert!(with(|sessions, mix| sessions.clients == mix.clients) > 20);
        assert!(with(|sessions, mix| sessions.clients < mix.clients) > 20);
        assert!(with(|sessions, _| (sessions.kept as usize) < sessions.clients) > 10);
        assert!(with(|sessions, _| sessions.forgetful > 0 && sessions.impatient == 0) > 10);
    }

    #[test]
    fn seeds_differ_in_every_fault_and_size() {
        let mixes: Vec<Mix> = (0..200).map(Mix::of).collect();
        for fault in Fault::ALL {
            let with = mixes.iter().filter(|mix| mix.has(fault)).count();
            assert!((40..160).contains(&with), "{fault:?} in {with} of 200");
        }
        for servers in [1, 3, 5, 7] {
            assert!(mixes.iter().any(|mix| mix.servers == servers), "{servers} servers");
        }
    }
}
