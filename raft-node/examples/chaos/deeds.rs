//! What an administrator does when: a function of the seed, like the faults, and at the same time.

use std::fmt;
use std::time::Duration;

use raft_core::sim::schedule::Dice;

use crate::deck::Deck;
use crate::schedule::Who;

/// Leadership was handed over.
pub(crate) const TRANSFER: &str = "transfer";
/// A member was removed, and it did not lead.
pub(crate) const REMOVED: &str = "member removed";
/// The leader was removed.
pub(crate) const LEADER_REMOVED: &str = "leader removed";
/// A learner got its vote.
pub(crate) const NEW_VOTER: &str = "learner to voter";
/// A member came back with an empty disk.
pub(crate) const LOST_DISK: &str = "disk lost";

/// What is done to a cluster that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Deed {
    /// Leadership is handed over: to this one, or to the best.
    Transfer(Option<Who>),
    /// A node makes its state durable and compacts its log.
    Snapshot(Who),
    /// A member is removed, its disk is emptied, and it is added again.
    Replace(Who),
    /// The node that does not belong to the cluster is added, then this member is removed.
    Swap(Who),
    /// A voter becomes a learner, and a voter again.
    Demote(Who),
    /// The disk of a member is lost, and it is started as if nothing had happened: it must be refused. Then it is removed and added again.
    Wipe(Who),
}

/// A deed with its time: not before this, and not before the one before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appointment {
    pub(crate) at: Duration,
    pub(crate) deed: Deed,
}

/// What is dealt again and again, the details apart.
#[derive(Clone, Copy, Debug)]
enum Card {
    Transfer,
    Snapshot,
    ReplaceLeader,
    ReplaceFollower,
    Change,
    Wipe,
}

/// Two or three hands fit into two minutes.
const HAND: [Card; 8] = [
    Card::Transfer,
    Card::Transfer,
    Card::Transfer,
    Card::Snapshot,
    Card::ReplaceLeader,
    Card::ReplaceFollower,
    Card::Change,
    Card::Wipe,
];

/// The deeds of a run of this length, for a cluster in which `others` follow the leader.
pub(crate) fn deeds(mut dice: Dice, others: usize, length: Duration) -> Vec<Appointment> {
    let (mut deck, mut appointments) = (Deck::new(&HAND), Vec::new());
    let pause = |dice: &mut Dice| dice.time(Duration::from_millis(300), Duration::from_secs(4));
    // There must be something in the log before it can be compacted.
    let mut at = Duration::from_secs(3) + pause(&mut dice);
    while at < length {
        let deed = deal(&mut deck, &mut dice, others);
        appointments.push(Appointment { at, deed });
        at += deed.takes() + pause(&mut dice);
    }
    appointments
}

fn deal(deck: &mut Deck<Card>, dice: &mut Dice, others: usize) -> Deed {
    let follower = Who::Follower(dice.pick(others));
    let anyone = if dice.chance(1, 3) { Who::Leader } else { follower };
    match deck.deal(dice) {
        Card::Transfer => Deed::Transfer(dice.chance(2, 3).then_some(follower)),
        Card::Snapshot => Deed::Snapshot(anyone),
        Card::ReplaceLeader => Deed::Replace(Who::Leader),
        Card::ReplaceFollower => Deed::Replace(follower),
        Card::Change if dice.chance(1, 2) => Deed::Demote(anyone),
        Card::Change => Deed::Swap(anyone),
        Card::Wipe => Deed::Wipe(anyone),
    }
}

impl Deed {
    /// What is counted when it has come off, of those that no run may lack.
    pub(crate) fn comes_off_as(self) -> Option<&'static str> {
        match self {
            Deed::Transfer(_) => Some(TRANSFER),
            Deed::Replace(_) => Some(NEW_VOTER),
            Deed::Wipe(_) => Some(LOST_DISK),
            Deed::Snapshot(_) | Deed::Swap(_) | Deed::Demote(_) => None,
        }
    }

    /// About how long it takes when there are no faults.
    fn takes(self) -> Duration {
        Duration::from_secs(match self {
            Deed::Transfer(_) | Deed::Snapshot(_) => 1,
            Deed::Replace(_) | Deed::Swap(_) | Deed::Demote(_) => 5,
            Deed::Wipe(_) => 8,
        })
    }
}

impl fmt::Display for Deed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Deed::Transfer(None) => f.write_str("leadership is handed over"),
            Deed::Transfer(Some(to)) => write!(f, "leadership is handed over to {to}"),
            Deed::Snapshot(who) => write!(f, "the log of {who} is compacted"),
            Deed::Replace(who) => write!(f, "{who} is removed, emptied and added again"),
            Deed::Swap(who) => write!(f, "another node takes the place of {who}"),
            Deed::Demote(who) => write!(f, "{who} loses its vote and gets it back"),
            Deed::Wipe(who) => write!(f, "{who} loses its disk"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_mins(2);

    #[test]
    fn every_two_minutes_have_deeds_of_each_kind_in_good_time() {
        for seed in 0..500 {
            let deeds = deeds(Dice::new(seed, 3), 2, LENGTH);
            assert!(deeds.windows(2).all(|two| two[0].at + two[0].deed.takes() < two[1].at), "seed {seed}");
            // So early that they can take three times as long as they should.
            let early = || deeds.iter().filter(|next| next.at < LENGTH / 2).map(|next| next.deed);
            let count = |kind: fn(&Deed) -> bool| early().filter(kind).count();
            assert!(count(|deed| matches!(deed, Deed::Transfer(_))) >= 3, "seed {seed}");
            assert!(count(|deed| matches!(deed, Deed::Snapshot(_))) >= 1, "seed {seed}");
            assert!(count(|deed| matches!(deed, Deed::Replace(Who::Leader))) >= 1, "seed {seed}");
            assert!(count(|deed| matches!(deed, Deed::Wipe(_))) >= 1, "seed {seed}");
        }
    }

    #[test]
    fn a_few_seeds_have_every_kind() {
        let all = (0..20).flat_map(|seed| deeds(Dice::new(seed, 3), 2, LENGTH)).map(|next| next.deed.to_string());
        let all: std::collections::BTreeSet<String> = all.collect();
        assert_eq!(all.len(), 3 + 3 + 3 + 3 + 3 + 3, "{all:?}");
    }
}
