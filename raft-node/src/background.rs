//! Work that can wait, and does not get in the way of what cannot.

use std::time::{Duration, Instant};

/// By how much a thread in the background is "nicer" than the others; 19 would be most.
const NICENESS: i32 = 10;

/// From now on this thread gets the processor only while others have little use for it: a snapshot of gigabytes must not delay a write. On Linux priorities belong to
/// threads; elsewhere they belong to processes, so nothing is done there.
pub(crate) fn yield_to_others() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
}

/// Bytes between two rests.
const PIECE: u64 = 256 << 10;
/// Longest rest.
const LONGEST: Duration = Duration::from_millis(50);

/// Keeps work that reads or writes gigabytes from having the disk and the processor to itself: after each piece it rests for as long as the piece took. So it
/// gets half of what there is at most, and a sync of the log that comes meanwhile waits for one piece at most.
#[derive(Debug, Default)]
pub(crate) struct Breather {
    took: Duration,
    bytes: u64,
}

impl Breather {
    /// Does a bit of the work, with so many bytes. Rests afterwards, if it is time.
    pub(crate) fn work<T>(&mut self, bytes: usize, work: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let done = work();
        self.took += begun.elapsed();
        self.bytes += bytes as u64;
        if self.bytes >= PIECE {
            std::thread::sleep(self.took.min(LONGEST));
            *self = Breather::default();
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_rest_after_each_piece_and_it_is_as_long() {
        let mut breather = Breather::default();
        let (begun, piece, work) = (Instant::now(), PIECE as usize, Duration::from_millis(20));
        breather.work(piece - 1, || std::thread::sleep(work));
        // What is not work does not count.
        std::thread::sleep(work);
        let took = breather.took;
        assert_eq!((breather.work(1, || 7), breather.bytes), (7, 0));
        assert!(took >= work && begun.elapsed() >= took * 2 + work);
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
