//! How long a client waits before it asks again.

use std::time::Duration;

/// Waits after every node was asked in vain: they double from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

/// A node that is busy is asked again after this time at the earliest, whatever it says,
const SHORTEST: Duration = Duration::from_millis(1);
/// and after this time at the latest, unless it says to wait longer.
const LONGEST: Duration = Duration::from_secs(1);

/// How long one request has had to wait so far.
#[derive(Debug)]
pub(super) struct Patience {
    /// The next wait, once every node was asked.
    backoff: Duration,
    /// How often in a row the answer was that the node is busy.
    refusals: u32,
}

impl Patience {
    pub(super) fn new() -> Self {
        Patience { backoff: BACKOFF.0, refusals: 0 }
    }

    /// Something else than "busy" was heard.
    pub(super) fn not_refused(&mut self) {
        self.refusals = 0;
    }

    /// After every node was asked in vain. `random` is between 0 and 1: half of the wait depends on it, so that many clients do not come back at
    /// the same moment.
    pub(super) fn after_all(&mut self, random: f64) -> Duration {
        let wait = self.backoff.mul_f64(0.5 + random / 2.0);
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
        wait
    }

    /// After a node has said that it is busy, and to retry after the time `told`; `left` is what is left of the request's time.
    ///
    /// The wait is never shorter than the hint; it is up to half as long again, as `random` (between 0 and 1) has it, because many may have been told the
    /// same. It doubles with each refusal that follows on another: then the hint was too short, or those who came back were too many. Of what would be left
    /// after the hint, at least a quarter is kept for the attempt. `None`: not even the hint fits, and waiting is of no use.
    pub(super) fn after_busy(&mut self, told: Duration, left: Duration, random: f64) -> Option<Duration> {
        let told = told.max(SHORTEST);
        let longer = told.saturating_mul(1 << self.refusals.min(10)).min(told.max(LONGEST));
        self.refusals = self.refusals.saturating_add(1);
        let spare = left.checked_sub(told)?;
        let wait = longer + longer.min(LONGEST).mul_f64(random / 2.0);
        Some(wait.min(told + spare.mul_f64(0.5 + random / 4.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_client_waits_as_long_as_it_was_told_and_somewhat_longer() {
        let wait = |random| Patience::new().after_busy(ms(200), ms(5000), random);
        assert_eq!([0.0, 0.5, 1.0].map(wait), [200, 250, 300].map(|wait| Some(ms(wait))));
        assert_eq!(Patience::new().after_busy(Duration::ZERO, ms(5000), 0.0), Some(SHORTEST), "never at once");
        assert_eq!(Patience::new().after_busy(ms(3000), ms(5000), 0.1), Some(ms(3050)), "however long");
    }

    #[test]
    fn refusals_in_a_row_make_it_wait_longer() {
        let mut patience = Patience::new();
        let mut waits = |told: &[u64]| {
            let waits = told.iter().map(|told| patience.after_busy(ms(*told), ms(60_000), 0.0).unwrap().as_millis());
            let waits: Vec<_> = waits.collect();
            patience.not_refused();
            waits
        };
        assert_eq!(waits(&[100, 100, 100, 100, 100, 100]), [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(
            waits(&[100, 10, 2000, 700]),
            [100, 20, 2000, 1000],
            "it began anew; no longer than a second, unless told to"
        );
        for _ in 0..100 {
            patience.after_busy(ms(1), ms(60_000), 0.0);
        }
        assert_eq!(patience.after_busy(ms(1), ms(60_000), 0.0), Some(ms(1000)));
    }

    #[test]
    fn no_wait_is_longer_than_what_is_left() {
        let refused_once = || {
            let mut patience = Patience::new();
            patience.after_busy(ms(300), ms(5000), 0.0);
            patience
        };
        assert_eq!(Patience::new().after_busy(ms(300), ms(299), 0.0), None, "there is no use in waiting");
        assert_eq!(refused_once().after_busy(ms(300), ms(500), 0.0), Some(ms(400)), "200 are left after the hint");
        assert_eq!(refused_once().after_busy(ms(300), ms(500), 1.0), Some(ms(450)));
        assert_eq!(Patience::new().after_busy(Duration::MAX, ms(5000), 1.0), None);
    }

    #[test]
    fn pauses_grow_to_a_tenth_of_a_second() {
        let mut patience = Patience::new();
        let pauses: Vec<_> = (0..7).map(|_| patience.after_all(1.0).as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 100, 100]);
        assert_eq!(patience.after_all(0.0), ms(50));
    }
}
