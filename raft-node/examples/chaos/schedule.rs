//! What goes wrong when: a function of the seed.
//!
//! Three tracks run at the same time, one for the network, one for processes and disks, and one for [what an administrator does](crate::deeds), so that all of them
//! meet. A track does one thing at a time. Who is hit is said by role, since roles are not known in advance: so the schedule repeats with the
//! seed, and the run of real processes does not. Kinds are dealt like cards, so that two minutes have something of everything.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use raft_core::NodeId;
use raft_core::sim::schedule::Dice;

use crate::deck::Deck;
use crate::deeds::{self, Appointment};
use crate::journal::human;
use crate::proxy::Policy;

/// A node, by what it is at the moment of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// The leader of the newest term, as far as anybody knows.
    Leader,
    /// One of the others, counted from 0 in the order of ids.
    Follower(usize),
}

/// Which directions of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    All,
    /// What a node sends, or what is sent to it, or both.
    From(Who),
    To(Who),
    Around(Who),
    /// One direction between two nodes, or both.
    OneWay(Who, Who),
    Between(Who, Who),
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    Loss(u64),
    Duplicate(u64),
    Flip(u64),
    Reorder(u64),
    Delay(Duration, Duration),
    /// Bytes per second.
    Slow(u64),
    Cut,
    /// Cut and whole again, for so long each.
    Flap(Duration),
}

/// Which syncs fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncs {
    /// Those of the thread that writes the log.
    Writer,
    /// Those of every thread, in the background too.
    All,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Network {
        links: Links,
        effects: Vec<Effect>,
    },
    /// kill -9 of these at once; they stay down as long as the fault lasts.
    Kill(Vec<Who>),
    KillAll,
    /// Killed and started again and again: how long up, how long down.
    CrashLoop(Who, Vec<(Duration, Duration)>),
    /// SIGSTOP, and SIGCONT at the end.
    Pause(Who),
    /// fsync and fdatasync return EIO.
    SyncError(Who, Syncs),
    /// fsync and fdatasync take so much longer.
    SyncDelay(Who, Duration),
    /// No byte more fits on the disk of the node that has a small one; if `restart`, it is also killed and started meanwhile.
    DiskFull {
        restart: bool,
    },
}

/// A fault with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// When it begins, counted from the start of the faults.
    pub(crate) at: Duration,
    /// How long it lasts.
    pub(crate) lasts: Duration,
    pub(crate) fault: Fault,
}

/// All tracks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) length: Duration,
    pub(crate) network: Vec<Event>,
    pub(crate) processes: Vec<Event>,
    pub(crate) deeds: Vec<Appointment>,
}

impl Schedule {
    /// The faults of `seed` for a cluster of `nodes` in the time `length`.
    pub(crate) fn new(seed: u64, nodes: usize, length: Duration) -> Schedule {
        let others = nodes - 1;
        let (mut wires, mut machines) = (Deck::new(&WIRES), Deck::new(&MACHINES));
        let mut schedule = Schedule {
            length,
            network: track(Dice::new(seed, 1), length, |dice| network(wires.deal(dice), dice, others)),
            processes: track(Dice::new(seed, 2), length, |dice| process(machines.deal(dice), dice, others)),
            deeds: deeds::deeds(Dice::new(seed, 3), others, length),
        };
        // At the end something gentle is no end of faults: let each run see all processes die at least once.
        if !schedule.processes.iter().any(|event| event.fault == Fault::KillAll)
            && let Some(last) = schedule.processes.last_mut()
        {
            last.lasts = last.lasts.min(Duration::from_secs(2));
            last.fault = Fault::KillAll;
        }
        schedule
    }
}

/// Events one after another, with pauses, until `length` is full.
fn track(mut dice: Dice, length: Duration, mut fault: impl FnMut(&mut Dice) -> (Duration, Fault)) -> Vec<Event> {
    let mut events = Vec::new();
    let mut at = dice.time(Duration::from_millis(500), Duration::from_secs(2));
    loop {
        let (lasts, fault) = fault(&mut dice);
        if at + lasts > length {
            return events;
        }
        events.push(Event { at, lasts, fault });
        at += lasts + dice.time(Duration::from_millis(300), Duration::from_secs(4));
    }
}

fn seconds(dice: &mut Dice, low: u64, high: u64) -> Duration {
    dice.time(Duration::from_secs(low), Duration::from_secs(high))
}

fn millis(dice: &mut Dice, low: u64, high: u64) -> Duration {
    dice.time(Duration::from_millis(low), Duration::from_millis(high))
}

fn who(dice: &mut Dice, others: usize) -> Who {
    if dice.chance(1, 2) { Who::Leader } else { Who::Follower(dice.pick(others)) }
}

/// Two different nodes.
fn two(dice: &mut Dice, others: usize) -> (Who, Who) {
    let first = dice.pick(others);
    if others == 1 || dice.chance(1, 2) {
        let pair = (Who::Leader, Who::Follower(first));
        if dice.chance(1, 2) { pair } else { (pair.1, pair.0) }
    } else {
        (Who::Follower(first), Who::Follower((first + 1 + dice.pick(others - 1)) % others))
    }
}

/// What is done to the network.
#[derive(Clone, Copy, Debug)]
enum Wire {
    /// A node is cut off, in one direction or both.
    Isolate,
    /// Two nodes are cut off from each other, in one direction or both.
    Part,
    /// Anything anywhere.
    Anything,
}

const WIRES: [Wire; 5] = [Wire::Isolate, Wire::Part, Wire::Anything, Wire::Anything, Wire::Anything];

fn network(wire: Wire, dice: &mut Dice, others: usize) -> (Duration, Fault) {
    let (a, b) = two(dice, others);
    let links = match (wire, dice.pick(8)) {
        (Wire::Isolate, 0 | 1) | (Wire::Anything, 2) => Links::From(who(dice, others)),
        (Wire::Isolate, 2 | 3) | (Wire::Anything, 3) => Links::To(who(dice, others)),
        (Wire::Isolate, _) | (Wire::Anything, 4) => Links::Around(who(dice, others)),
        (Wire::Part, 0..=3) | (Wire::Anything, 5 | 6) => Links::OneWay(a, b),
        (Wire::Part, _) | (Wire::Anything, 7) => Links::Between(a, b),
        (Wire::Anything, _) => Links::All,
    };
    let (effects, longest) = match wire {
        // Every few seconds there is to be a majority again.
        Wire::Isolate | Wire::Part => (vec![Effect::Cut], 6),
        Wire::Anything => (effects(dice, links == Links::All), 10),
    };
    (seconds(dice, 1, longest), Fault::Network { links, effects })
}

fn effects(dice: &mut Dice, everywhere: bool) -> Vec<Effect> {
    let mut effects = Vec::new();
    let mut kinds = BTreeSet::new();
    for _ in 0..dice.between(1, 3) {
        let kind = dice.pick(8);
        if !kinds.insert(kind) {
            continue;
        }
        effects.push(match kind {
            0 => Effect::Loss(dice.between(10, if everywhere { 200 } else { 500 })),
            1 => Effect::Duplicate(dice.between(20, 500)),
            2 => Effect::Flip(dice.between(5, 150)),
            3 => Effect::Reorder(dice.between(20, 500)),
            4 => {
                let low = millis(dice, 0, 60);
                Effect::Delay(low, low + millis(dice, 0, 60))
            }
            5 => Effect::Slow(dice.between(20_000, 400_000)),
            6 => Effect::Flap(millis(dice, 50, 900)),
            _ => Effect::Cut,
        });
    }
    effects
}

/// What is done to processes and disks.
#[derive(Clone, Copy, Debug)]
enum Machine {
    Kill,
    KillMajority,
    KillAll,
    CrashLoop,
    Pause,
    LongPause,
    SyncError,
    SyncDelay,
    DiskFull,
}

/// One and a half of these fit into two minutes.
const MACHINES: [Machine; 12] = [
    Machine::Kill,
    Machine::Kill,
    Machine::KillMajority,
    Machine::KillAll,
    Machine::CrashLoop,
    Machine::Pause,
    Machine::Pause,
    Machine::LongPause,
    Machine::SyncError,
    Machine::SyncError,
    Machine::SyncDelay,
    Machine::DiskFull,
];

fn process(machine: Machine, dice: &mut Dice, others: usize) -> (Duration, Fault) {
    let someone = who(dice, others);
    match machine {
        Machine::Kill => (millis(dice, 0, 4000), Fault::Kill(vec![someone])),
        Machine::KillMajority => {
            // The leader and as many others as it takes to lose the majority.
            let mut victims = vec![Who::Leader];
            victims.extend((0..others.div_ceil(2)).map(Who::Follower));
            (millis(dice, 0, 3000), Fault::Kill(victims))
        }
        Machine::KillAll => (millis(dice, 0, 1500), Fault::KillAll),
        Machine::CrashLoop => {
            let rounds: Vec<_> =
                (0..dice.between(3, 6)).map(|_| (millis(dice, 20, 1200), millis(dice, 0, 400))).collect();
            (rounds.iter().map(|(up, down)| *up + *down).sum(), Fault::CrashLoop(someone, rounds))
        }
        Machine::Pause => (seconds(dice, 1, 6), Fault::Pause(someone)),
        Machine::LongPause => (seconds(dice, 6, 24), Fault::Pause(someone)),
        Machine::SyncError => {
            let syncs = if dice.chance(1, 3) { Syncs::All } else { Syncs::Writer };
            (seconds(dice, 2, 5), Fault::SyncError(someone, syncs))
        }
        Machine::SyncDelay => (seconds(dice, 2, 8), Fault::SyncDelay(someone, millis(dice, 20, 3000))),
        Machine::DiskFull => (seconds(dice, 3, 8), Fault::DiskFull { restart: dice.chance(1, 2) }),
    }
}

impl Effect {
    /// Puts the effect into a policy; flapping begins cut.
    pub(crate) fn apply(self, policy: &mut Policy) {
        match self {
            Effect::Loss(chance) => policy.loss = chance,
            Effect::Duplicate(chance) => policy.duplicate = chance,
            Effect::Flip(chance) => policy.flip = chance,
            Effect::Reorder(chance) => policy.reorder = chance,
            Effect::Delay(low, high) => policy.delay = Some((low, high)),
            Effect::Slow(rate) => policy.rate = Some(rate),
            Effect::Cut | Effect::Flap(_) => policy.cut = true,
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Effect::Loss(_) => "loss",
            Effect::Duplicate(_) => "duplication",
            Effect::Flip(_) => "bit flips",
            Effect::Reorder(_) => "reordering",
            Effect::Delay(..) => "delay",
            Effect::Slow(_) => "slow link",
            Effect::Cut => "cut",
            Effect::Flap(_) => "flapping",
        }
    }
}

impl Fault {
    /// What to count it as.
    pub(crate) fn kinds(&self) -> Vec<String> {
        let one = |kind: &str| vec![kind.to_owned()];
        match self {
            Fault::Network { links, effects } => {
                let half = matches!(links, Links::From(_) | Links::To(_) | Links::OneWay(..));
                let way = if half { ", one way" } else { "" };
                effects.iter().map(|effect| format!("{}{way}", effect.kind())).collect()
            }
            Fault::Kill(victims) if victims.len() == 1 => one("kill -9"),
            Fault::Kill(_) => one("kill -9 of a majority"),
            Fault::KillAll => one("kill -9 of all"),
            Fault::CrashLoop(..) => one("crash loop"),
            Fault::Pause(_) => one("pause"),
            Fault::SyncError(..) => one("fsync error"),
            Fault::SyncDelay(..) => one("fsync delay"),
            Fault::DiskFull { .. } => one("full disk"),
        }
    }
}

impl Links {
    /// Whether the direction between `from` and `to` is meant, when `node` says who is who.
    pub(crate) fn contains(self, from: NodeId, to: NodeId, node: impl Fn(Who) -> NodeId) -> bool {
        match self {
            Links::All => true,
            Links::From(a) => from == node(a),
            Links::To(a) => to == node(a),
            Links::Around(a) => from == node(a) || to == node(a),
            Links::OneWay(a, b) => (from, to) == (node(a), node(b)),
            Links::Between(a, b) => (from, to) == (node(a), node(b)) || (from, to) == (node(b), node(a)),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Leader => f.write_str("the leader"),
            Who::Follower(n) => write!(f, "follower {n}"),
        }
    }
}

impl fmt::Display for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Links::All => f.write_str("everywhere"),
            Links::From(a) => write!(f, "from {a}"),
            Links::To(a) => write!(f, "to {a}"),
            Links::Around(a) => write!(f, "from and to {a}"),
            Links::OneWay(a, b) => write!(f, "from {a} to {b}"),
            Links::Between(a, b) => write!(f, "between {a} and {b}"),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |chance: u64| chance as f64 / 10.0;
        match *self {
            Effect::Loss(chance) => write!(f, "{} % lost", percent(chance)),
            Effect::Duplicate(chance) => write!(f, "{} % twice", percent(chance)),
            Effect::Flip(chance) => write!(f, "{} % with flipped bits", percent(chance)),
            Effect::Reorder(chance) => write!(f, "{} % overtaken", percent(chance)),
            Effect::Delay(low, high) => write!(f, "{} to {} ms late", low.as_millis(), high.as_millis()),
            Effect::Slow(rate) => write!(f, "{} kB/s", rate / 1000),
            Effect::Cut => f.write_str("cut"),
            Effect::Flap(time) => write!(f, "flapping every {}", human(time)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Network { links, effects } => {
                write!(f, "network {links}: ")?;
                let effects: Vec<String> = effects.iter().map(Effect::to_string).collect();
                f.write_str(&effects.join(", "))
            }
            Fault::Kill(victims) => {
                let victims: Vec<String> = victims.iter().map(Who::to_string).collect();
                write!(f, "kill -9: {}", victims.join(", "))
            }
            Fault::KillAll => f.write_str("kill -9: all"),
            Fault::CrashLoop(who, rounds) => write!(f, "crash loop of {who}, {} times", rounds.len()),
            Fault::Pause(who) => write!(f, "SIGSTOP: {who}"),
            Fault::SyncError(who, Syncs::Writer) => write!(f, "fsync of {who}'s log fails"),
            Fault::SyncError(who, Syncs::All) => write!(f, "every fsync of {who} fails"),
            Fault::SyncDelay(who, delay) => write!(f, "every fsync of {who}'s log takes {} longer", human(*delay)),
            Fault::DiskFull { restart: false } => f.write_str("disk full"),
            Fault::DiskFull { restart: true } => f.write_str("disk full, and a restart"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_mins(3);

    #[test]
    fn the_schedule_is_a_function_of_the_seed() {
        assert_eq!(Schedule::new(7, 3, LENGTH), Schedule::new(7, 3, LENGTH));
        assert_ne!(Schedule::new(7, 3, LENGTH), Schedule::new(8, 3, LENGTH));
    }

    #[test]
    fn the_events_of_a_track_follow_one_another_and_end_in_time() {
        for seed in 0..200 {
            let Schedule { network, processes, .. } = Schedule::new(seed, 5, LENGTH);
            for track in [network, processes] {
                assert!(track.len() > 3, "seed {seed}: {track:?}");
                assert!(track.windows(2).all(|two| two[0].at + two[0].lasts < two[1].at), "seed {seed}");
                assert!(track.iter().all(|event| event.at + event.lasts <= LENGTH), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_few_seeds_have_every_kind_of_fault_and_each_kills_all() {
        let mut kinds = BTreeSet::new();
        for seed in 0..20 {
            let Schedule { network, processes, .. } = Schedule::new(seed, 3, LENGTH);
            assert!(processes.iter().any(|event| event.fault == Fault::KillAll), "seed {seed}");
            kinds.extend(network.iter().chain(&processes).flat_map(|event| event.fault.kinds()));
        }
        assert_eq!(kinds.len(), 24, "{kinds:?}");
    }

    /// What a report demands of a run, with nothing left to chance.
    #[test]
    fn every_two_minutes_have_kills_cuts_and_pauses_enough() {
        for seed in 0..1000 {
            let Schedule { network, processes, .. } = Schedule::new(seed, 3, Duration::from_mins(2));
            let kinds: Vec<_> = network.iter().chain(&processes).flat_map(|event| event.fault.kinds()).collect();
            let count = |of: &str| kinds.iter().filter(|kind| kind.starts_with(of)).count();
            assert!(count("kill -9") + count("crash loop") >= 3, "seed {seed}: {kinds:?}");
            assert!(count("cut") >= 2, "seed {seed}: {kinds:?}");
            assert!(count("pause") >= 1, "seed {seed}: {kinds:?}");
            assert!(count("fsync") + count("full disk") >= 1, "seed {seed}: {kinds:?}");
        }
    }

    #[test]
    fn two_nodes_are_two() {
        for seed in 0..500 {
            let mut dice = Dice::new(seed, 0);
            for others in 1..5 {
                let (a, b) = two(&mut dice, others);
                assert_ne!(a, b, "seed {seed}");
            }
        }
    }
}
