//! A server's clock: it begins anywhere and runs a little fast or slow.

use crate::types::Instant;

/// A clock that shows `origin` when the true time is `begin`, and runs at `rate` thousandths of true time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    begin: Instant,
    origin: u64,
    rate: u64,
}

impl Clock {
    pub(super) fn new(begin: Instant, origin: u64, rate: u64) -> Self {
        Clock { begin, origin, rate: rate.max(1) }
    }

    /// What it shows at the true time `now`.
    pub(super) fn read(&self, now: Instant) -> Instant {
        let elapsed = u128::from(now.0.saturating_sub(self.begin.0));
        let shown = u128::from(self.origin) + elapsed * u128::from(self.rate) / 1000;
        Instant(u64::try_from(shown).unwrap_or(u64::MAX))
    }

    /// The first true time at which it shows `shown` or more.
    pub(super) fn when(&self, shown: Instant) -> Instant {
        let wait = u128::from(shown.0.saturating_sub(self.origin)) * 1000;
        let at = u128::from(self.begin.0) + wait.div_ceil(u128::from(self.rate));
        Instant(u64::try_from(at).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_goes_off_when_the_clock_shows_its_time_and_not_before() {
        for rate in [800, 999, 1000, 1001, 1200] {
            let clock = Clock::new(Instant(77), 1_000_000, rate);
            for shown in [1_000_000, 1_000_001, 1_234_567, 99_999_999] {
                let at = clock.when(Instant(shown));
                assert!(clock.read(at) >= Instant(shown), "{rate} {shown}");
                assert!(at == Instant(77) || clock.read(Instant(at.0 - 1)) < Instant(shown), "{rate} {shown}");
            }
        }
    }
}
