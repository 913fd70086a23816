//! Work that can wait, and does not get in the way of what cannot.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pace::Pace;

/// By how much a thread in the background is "nicer" than the others: it gets a tenth of a processor that others want all the time. 19 would be most, and a seventieth:
/// then a snapshot would never be done while clients keep all processors busy.
const NICENESS: i32 = 10;

/// From now on this thread gets the processor only while others have little use for it: a snapshot of gigabytes must not delay a write. On Linux priorities belong to
/// threads; elsewhere they belong to processes, so nothing is done there.
pub(crate) fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// Whoever waits for this processor gets it now. A thread that is merely nicer may keep it until the kernel's next tick, some milliseconds.
pub(crate) fn offer() {
    std::thread::yield_now();
}

/// Bytes between two offers.
pub(crate) const BIT: usize = 16 << 10;

/// Bytes between two rests, and between two syncs of what is written: what waits for one piece waits for as long as that takes, so it is small. With four times as many, and
/// 32 MB a second of them, the p99 of the log's syncs was 0.75 ms instead of 0.45 on a calm machine; what these make of it has not been measured on one.
pub(crate) const PIECE: usize = 64 << 10;
/// Longest rest because of the work itself.
const LONGEST: Duration = Duration::from_millis(50);

/// Keeps work that reads or writes gigabytes from having the disk and the processor to itself: after each piece it rests, so that a sync of the log that comes meanwhile waits
/// for one piece at most. For how long, the node's [`Pace`] says.
#[derive(Debug)]
pub(crate) struct Breather {
    pace: Arc<Pace>,
    /// Rests for so many times as long as the piece took in any case.
    least: u32,
    took: Duration,
    bytes: u64,
}

impl Breather {
    /// For work at a node that sees the writes which it may disturb.
    pub(crate) fn new(pace: Arc<Pace>) -> Self {
        Breather { pace, least: 0, took: Duration::ZERO, bytes: 0 }
    }

    /// For work at a follower that gets nothing but this, so that it sees no writes: it also rests for as long as the work took, and gets half of what there is at most. Its disk
    /// may belong to others as well.
    pub(crate) fn blind(pace: Arc<Pace>) -> Self {
        Breather { least: 1, ..Breather::new(pace) }
    }

    /// As [`blind`](Self::blind), for work that keeps disk and processor busier than what comes in over a network: a third of the time.
    pub(crate) fn blind_and_heavy(pace: Arc<Pace>) -> Self {
        Breather { least: 2, ..Breather::new(pace) }
    }

    /// Does a bit of the work, with so many bytes. Rests afterwards, if it is time.
    pub(crate) fn work<T>(&mut self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.worked(bytes, begun.elapsed());
        done
    }

    /// So many bytes of the work have been done, and took so long. Rests, if it is time.
    pub(crate) fn worked(&mut self, bytes: usize, took: Duration) {
        self.took += took;
        self.bytes += bytes as u64;
        if self.bytes >= PIECE as u64 {
            let least = (self.took * self.least).min(LONGEST);
            // What the pace asks for includes the work.
            let rest = self.pace.rest(self.bytes).max(least);
            (self.took, self.bytes) = (Duration::ZERO, 0);
            std::thread::sleep(rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_rest_after_each_piece_and_without_sight_it_is_as_long() {
        let mut breather = Breather::blind(Pace::new());
        let (begun, piece, work) = (Instant::now(), PIECE, Duration::from_millis(20));
        breather.work(piece - 1, || std::thread::sleep(work));
        // What is not work does not count.
        std::thread::sleep(work);
        let took = breather.took;
        assert_eq!((breather.work(1, || 7), breather.bytes), (7, 0));
        assert!(took >= work && begun.elapsed() >= took * 2 + work);
    }

    #[test]
    fn the_pace_is_kept() {
        let pace = Pace::new();
        let mut breather = Breather::new(pace.clone());
        let (begun, rate) = (Instant::now(), pace.rate());
        (0..32).for_each(|_| breather.work(PIECE, || ()));
        let least = Duration::from_secs_f64(32.0 * PIECE as f64 / rate as f64);
        // It may have become faster meanwhile, since nobody writes: by half in each tenth of a second.
        assert!(begun.elapsed() >= least / 2, "{:?}, {least:?}", begun.elapsed());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_this_thread_becomes_nicer() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let before = own();
        let other = std::thread::spawn(move || {
            yield_to_others();
            own()
        });
        assert_eq!(other.join().unwrap(), before.max(NICENESS));
        assert_eq!(own(), before);
    }
}
