//! A clock that ticks more finely than the runtime's milliseconds.

use std::time::Duration;

use anyhow::{Context, Result};

/// Ticks at a fixed period. Ticks that nobody waited for are not made up for: look at the time.
pub(crate) struct Ticker {
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
    #[cfg(not(target_os = "linux"))]
    timer: tokio::time::Interval,
}

#[cfg(target_os = "linux")]
impl Ticker {
    /// Begins to tick. Must be called within a tokio runtime.
    pub(crate) fn new(period: Duration) -> Result<Self> {
        use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).context("no timer")?;
        let period = Timespec { tv_sec: period.as_secs().try_into()?, tv_nsec: i64::from(period.subsec_nanos()) };
        let schedule = Itimerspec { it_interval: period, it_value: period };
        rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &schedule)
            .context("the timer does not start")?;
        // Its successor is unsafe because the type of a descriptor might close it in the meantime. `OwnedFd` does not.
        #[expect(deprecated, reason = "sound for an OwnedFd")]
        let timer = tokio::io::unix::AsyncFd::new(timer).context("no timer")?;
        Ok(Ticker { timer })
    }

    /// Waits for the next tick.
    pub(crate) async fn tick(&mut self) -> Result<()> {
        let mut ticks = [0; 8];
        loop {
            let mut ready = self.timer.readable().await.context("the timer failed")?;
            // A timer is read by taking the number of its ticks.
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer, &mut ticks)?));
            if let Ok(result) = read {
                result.context("the timer failed")?;
                return Ok(());
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Ticker {
    /// Begins to tick. Must be called within a tokio runtime.
    pub(crate) fn new(period: Duration) -> Result<Self> {
        let period = period.max(Duration::from_millis(1));
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        Ok(Ticker { timer })
    }

    /// Waits for the next tick.
    pub(crate) async fn tick(&mut self) -> Result<()> {
        self.timer.tick().await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_take_their_time_and_no_more() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let took = runtime.block_on(async {
            let begin = std::time::Instant::now();
            let mut ticker = Ticker::new(Duration::from_millis(2)).unwrap();
            for _ in 0..10 {
                ticker.tick().await.unwrap();
            }
            begin.elapsed()
        });
        // A busy machine may miss ticks, never hasten them; the upper bound only catches a clock that stands still.
        assert!(took >= Duration::from_millis(18) && took < Duration::from_secs(10), "{took:?}");
    }
}
