//! How fast work in the background may go: so fast that the writes of clients do not notice.
//!
//! Nobody knows beforehand what a disk, a processor and a network have to spare while clients write, and it changes. So it is found out as a download in the background does it
//! (LEDBAT, RFC 6817): go on faster until others are seen to wait, and then give way.
//!
//! # The rule
//!
//! Two times are watched, which exist anyway: how long a sync of the log takes, and, at a leader, how long it takes until an entry is committed. The second one has the
//! processor, the own disk, the network and the disks of others in it; what a client waits for before its entry is proposed and after it is committed is in neither.
//!
//! 1. **What is usual** is learned while no background work goes on: the time that 99 of 100 do not exceed. Whatever takes more than twice as long is *late* by what it takes beyond that.
//! 2. Time is cut into windows of 100 ms. What was late in one, divided by its length, is about the share of writes that had to wait for too long.
//! 3. **In every fifth window the work rests.** What is late there is not its doing: a disk may stall by itself, and a host may give its processors to others for minutes. So what may be
//!    late in the other windows is 0.5 % of the time, or one and a quarter times what is late without the work, if that is more. (A rule without such rests fell to its lowest rate and stayed there,
//!    while all syncs took four times as long for a reason of the host's.) When more than half of the time is late without the work, nothing can be told from that any more, least of all
//!    whether a rest was long enough for what was begun before it: then it goes no faster than 24 MB a second.
//! 4. What is late in excess of that is added up, window by window. When it is more than 10 ms (or, where much is late anyway, what that makes in half a second), the work becomes slower: by eight times the share
//!    that is too much, but by a fifth at least and by half at most; and the adding up begins anew, after a window that still suffers from what was begun before. When after
//!    400 ms of work or more there is no excess, and the rate has been made use of, it becomes faster, by a seventh; but by a fiftieth only around the rate that was too much last.
//! 5. When for half a second nothing was written and nothing is being written, nobody can be disturbed: it becomes faster by half in each window. Without writes it is soon as fast as the disk and the link are. What was
//!    found out so says nothing about a time with writes: with the first of them it is back at 24 MB a second.
//! 6. While others write it never becomes faster than 32 MB a second, 26 with the rests: the two times do not hold all that a client waits for.
//! 7. It never becomes slower than 8 MB a second, and never slower than four times what the log grows by: a snapshot must arrive before
//!    the log has gone on by so much that another one is needed.

mod rule;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rule::{LONGEST, Rule, Sign};

/// Finds the rate for the background work of a node. Shared by those who watch and those who work.
#[derive(Debug)]
pub(crate) struct Pace {
    origin: Instant,
    rule: Mutex<Rule>,
    /// When the sync began that is under way, in nanoseconds since the origin; or zero.
    syncing: AtomicU64,
}

impl Pace {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Pace { origin: Instant::now(), rule: Mutex::new(Rule::new()), syncing: AtomicU64::new(0) })
    }

    /// A sync of the log begins. One that hangs is seen before it ends.
    pub(crate) fn syncs(&self) {
        self.syncing.store((self.origin.elapsed().as_nanos() as u64).max(1), Ordering::Relaxed);
    }

    /// The log has been synced, with so many bytes that are new in it.
    pub(crate) fn synced(&self, took: Duration, bytes: usize) {
        self.syncing.store(0, Ordering::Relaxed);
        self.see(|rule, now| {
            rule.grown(now, bytes as u64);
            rule.note(now, Sign::Synced, took);
        });
    }

    /// An entry has been committed that was proposed here.
    pub(crate) fn committed(&self, took: Duration) {
        self.see(|rule, now| rule.note(now, Sign::Committed, took));
    }

    /// So many bytes of work are done, or about to be: how long to rest before more.
    pub(crate) fn rest(&self, bytes: u64) -> Duration {
        self.with(|rule, now| rule.work(now, bytes)).min(LONGEST)
    }

    /// Bytes a second, at present.
    pub(crate) fn rate(&self) -> u64 {
        self.with(|rule, _| rule.rate() as u64)
    }

    /// Who is watched does not wait for who works: that one may have been put aside with the lock in its hands. Then this is not seen.
    fn see(&self, f: impl FnOnce(&mut Rule, Duration)) {
        if let Ok(mut rule) = self.rule.try_lock() {
            rule.pending = self.pending();
            f(&mut rule, self.origin.elapsed());
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Rule, Duration) -> T) -> T {
        // Nothing in here panics half-way through a change.
        let mut rule = self.rule.lock().unwrap_or_else(PoisonError::into_inner);
        rule.pending = self.pending();
        f(&mut rule, self.origin.elapsed())
    }

    fn pending(&self) -> Option<Duration> {
        let begun = self.syncing.load(Ordering::Relaxed);
        (begun > 0).then(|| Duration::from_nanos(begun))
    }
}
