//! Virtual time: a queue of things to come, and the dice that decide when they come.
//!
//! Time stands still while something is handled and then jumps to the next thing, so minutes of a cluster's life take
//! milliseconds. Things of the same moment happen in the order in which they were scheduled. Together with dice that are seeded,
//! this makes a run a function of its seed.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::types::Instant;

/// A queue of events in virtual time.
///
/// Invariant: nothing in the queue lies before `now`, so time never goes back.
#[derive(Debug)]
pub struct Schedule<E> {
    now: Instant,
    /// Distinguishes events of the same moment, and orders them first come, first served.
    ticket: u64,
    /// Where in `slots` each event lies: a tree moves what it holds, so it holds little.
    queue: BTreeMap<(Instant, u64), usize>,
    slots: Vec<Option<E>>,
    free: Vec<usize>,
    popped: u64,
}

impl<E> Default for Schedule<E> {
    fn default() -> Self {
        Schedule {
            now: Instant::default(),
            ticket: 0,
            queue: BTreeMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            popped: 0,
        }
    }
}

impl<E> Schedule<E> {
    /// The present moment.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// How many events have happened so far.
    pub fn popped(&self) -> u64 {
        self.popped
    }

    /// Lets `event` happen at `at`, or now if that is past.
    pub fn at(&mut self, at: Instant, event: E) {
        self.ticket += 1;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.queue.insert((at.max(self.now), self.ticket), slot);
    }

    /// Lets `event` happen after `delay`.
    pub fn after(&mut self, delay: Duration, event: E) {
        self.at(self.now + delay, event);
    }

    /// Moves time on to the next event and takes it. `None` when nothing will ever happen again.
    pub fn pop(&mut self) -> Option<E> {
        let ((at, _), slot) = self.queue.pop_first()?;
        self.now = at;
        self.popped += 1;
        self.free.push(slot);
        self.slots[slot].take()
    }
}

/// Seeded randomness. Every part of a simulation has dice of its own, so that one more throw in one part changes nothing
/// in the others.
#[derive(Clone, Debug)]
pub struct Dice(SmallRng);

impl Dice {
    /// Dice number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        Dice(SmallRng::seed_from_u64(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream))
    }

    /// A number between `low` and `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..=high.max(low))
    }

    /// An index below `len`; zero when there is nothing to choose from.
    pub fn pick(&mut self, len: usize) -> usize {
        self.between(0, (len as u64).saturating_sub(1)) as usize
    }

    /// True in `of` cases out of `outof`.
    pub fn chance(&mut self, of: u64, outof: u64) -> bool {
        self.between(1, outof) <= of
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.random()
    }

    /// A time between `low` and `high`, both included, in steps of a microsecond.
    pub fn time(&mut self, low: Duration, high: Duration) -> Duration {
        let micros = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.between(micros(low), micros(high)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_time_order_and_then_first_come_first_served() {
        let mut schedule = Schedule::default();
        schedule.after(Duration::from_millis(5), 'c');
        schedule.after(Duration::from_millis(2), 'a');
        schedule.after(Duration::from_millis(5), 'd');
        schedule.after(Duration::from_millis(3), 'b');
        let order: String = std::iter::from_fn(|| schedule.pop()).collect();
        assert_eq!(order, "abcd");
        assert_eq!(schedule.now(), Instant::from_millis(5));
    }

    #[test]
    fn time_never_goes_back() {
        let mut schedule = Schedule::default();
        schedule.at(Instant::from_millis(9), 1);
        assert_eq!(schedule.pop(), Some(1));
        schedule.at(Instant::from_millis(4), 2);
        assert_eq!(schedule.pop(), Some(2));
        assert_eq!(schedule.now(), Instant::from_millis(9));
    }

    #[test]
    fn dice_repeat_with_the_seed_and_differ_between_streams() {
        let throw = |seed, stream| {
            let mut dice = Dice::new(seed, stream);
            [dice.number(), dice.number(), dice.number()]
        };
        assert_eq!(throw(7, 1), throw(7, 1));
        assert_ne!(throw(7, 1), throw(7, 2));
        assert_ne!(throw(7, 1), throw(8, 1));
        let mut dice = Dice::new(1, 1);
        let throws: Vec<u64> = (0..1000).map(|_| dice.between(3, 5)).collect();
        assert_eq!((throws.iter().min(), throws.iter().max()), (Some(&3), Some(&5)));
    }
}
