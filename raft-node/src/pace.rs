//! How fast work in the background may go: so fast that the writes of clients do not notice.
//!
//! Nobody knows beforehand what a disk, a processor and a network have to spare while clients write, and it changes. So it is found out as a download in the background does it
//! (LEDBAT, RFC 6817): go on faster until others are seen to wait, and then give way.
//!
//! # The rule
//!
//! Two times are watched, which exist anyway: how long a sync of the log takes, and, at a leader, how long it takes until an entry is committed. The second one has everything in it: the
//! processor, the own disk, the network, the disks of others.
//!
//! 1. **What is usual** is learned while no background work goes on: the time that 99 of 100 do not exceed. Whatever takes more than twice as long is *late* by what it takes beyond that.
//! 2. Time is cut into windows of 100 ms. What was late in one, divided by its length, is about the share of writes that had to wait for too long.
//! 3. **In every fifth window the work rests.** What is late there is not its doing: a disk may stall by itself, and a host may give its processors to others for minutes. So what may be
//!    late in the other windows is 1 % of the time and one and a half times what is late without the work. (A rule without such rests fell to its lowest rate and stayed there,
//!    while all syncs took four times as long for a reason of the host's.)
//! 4. What is late in excess of that is added up, window by window. When it is more than 10 ms (or, where much is late anyway, what that makes in half a second), the work becomes slower: by eight times the share
//!    that is too much, but by a fifth at least and by half at most; and the adding up begins anew, after a window that still suffers from what was begun before. When after
//!    400 ms of work or more there is no excess, it becomes faster, by a seventh; but by a fiftieth only around the rate that was too much last.
//! 5. In a window in which nothing was written nobody can be disturbed: it becomes faster by half. Without writes it is soon as fast as the disk and the link are. What was
//!    found out so says nothing about a time with writes: with the first of them it is back at 24 MB a second.
//! 6. It never becomes slower than 8 MB a second, and never slower than four times what the log grows by: a snapshot must arrive before
//!    the log has gone on by so much that another one is needed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bytes a second that work in the background gets in any case; in the four windows of five in which it works, so that 8 MB a second are left.
const SLOWEST: f64 = 10e6;
/// With so many it begins.
const FIRST: f64 = 24e6;
/// More would be no limit.
const FASTEST: f64 = 4e9;
/// How much faster than the log grows it goes in any case, in those windows; four times in all.
const OUTGROWS: f64 = 5.0;
/// How long it is watched before the rate changes.
const WINDOW: Duration = Duration::from_millis(100);
/// After so long without a piece of work, what is seen counts as usual again.
const QUIET_AFTER: Duration = Duration::from_millis(500);
/// In one of so many windows the work rests.
const RESTS_EVERY: u32 = 5;
/// Share of the time by which writes may be late, and times what is late without the work, by which they may be.
const MAY_BE_LATE: f64 = 0.01;
const MAY_BE_LATER: f64 = 1.5;
/// Late is what takes longer than so many times what is usual.
const LATE: f64 = 2.0;
/// So many seconds in excess are too much; or as many as are late anyway in so many seconds.
const EXCESS: f64 = 0.01;
const EXCESS_WITHIN: f64 = 0.5;
/// After so many seconds of work without excess it becomes faster.
const LONG_ENOUGH: f64 = 0.39;
/// How much slower it becomes for each share of the time that is too much; and at most, and at least, so that what has piled up can go away.
const GIVES_WAY: f64 = 8.0;
const AT_MOST: f64 = 0.5;
const AT_LEAST: f64 = 0.8;
/// How much faster it becomes otherwise, and around the rate that was too much last (from so many times that rate, to so many), and when nobody writes.
const FASTER: f64 = 8.0 / 7.0;
const LITTLE_FASTER: f64 = 1.02;
const NEAR: (f64, f64) = (0.8, 1.2);
const MUCH_FASTER: f64 = 1.5;
/// How much the newest window counts in an average.
const NEWEST: f64 = 0.1;
/// And one without the work, in what is late without it.
const NEWEST_WITHOUT: f64 = 0.2;
/// Longest rest.
const LONGEST: Duration = Duration::from_millis(200);

/// Finds the rate for the background work of a node. Shared by those who watch and those who work.
#[derive(Debug)]
pub(crate) struct Pace {
    origin: Instant,
    rule: Mutex<Rule>,
}

impl Pace {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Pace { origin: Instant::now(), rule: Mutex::new(Rule::new()) })
    }

    /// The log has been synced, with so many bytes that are new in it.
    pub(crate) fn synced(&self, took: Duration, bytes: usize) {
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
            f(&mut rule, self.origin.elapsed());
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Rule, Duration) -> T) -> T {
        // Nothing in here panics half-way through a change.
        f(&mut self.rule.lock().unwrap_or_else(PoisonError::into_inner), self.origin.elapsed())
    }
}

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Synced,
    Committed,
}

/// One of the times that are watched.
#[derive(Debug)]
struct Watched {
    /// What 99 of 100 do not exceed while no background work goes on, in seconds.
    usual: f64,
    /// What came beyond twice that in this window, in seconds.
    late: f64,
    /// The share of the time that it takes without the work.
    without: f64,
    /// What was late with the work beyond what may be, in seconds, since the rate was changed last.
    excess: f64,
}

impl Watched {
    /// How far an estimate goes with each time.
    const STEP: f64 = 0.05;
    const EXCEEDED: f64 = 0.01;
    /// Between these is every disk that is believed in, in seconds.
    const RANGE: (f64, f64) = (100e-6, 0.1);

    fn new() -> Self {
        Watched { usual: 1e-3, late: 0.0, without: 0.0, excess: 0.0 }
    }

    fn note(&mut self, took: f64, quiet: bool) {
        self.late += (took - LATE * self.usual).max(0.0);
        if quiet {
            // At the right place one of 100 steps goes up, 99 times as far as the others go down.
            let step = if took > self.usual { 1.0 - Self::EXCEEDED } else { -Self::EXCEEDED };
            self.usual = (self.usual * (1.0 + Self::STEP * step)).clamp(Self::RANGE.0, Self::RANGE.1);
        }
    }

    /// A window of so many seconds is over.
    fn close(&mut self, seconds: f64, worked: bool) {
        let late = std::mem::take(&mut self.late);
        if worked {
            self.excess += late - (MAY_BE_LATE + MAY_BE_LATER * self.without) * seconds;
        } else {
            self.without += NEWEST_WITHOUT * ((late / seconds).min(1.0) - self.without);
        }
    }

    /// Whether what was late is too much.
    fn is_too_much(&self) -> bool {
        self.excess > EXCESS.max(self.without * EXCESS_WITHIN)
    }
}

/// What a window is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Window {
    /// There is no background work.
    Quiet,
    /// It rests.
    Rest,
    /// It goes on.
    Work,
    /// It goes on more slowly than a moment ago, and what was begun then still has to be waited for.
    Aftermath,
}

/// The rule, without a clock: times are since some beginning.
#[derive(Debug)]
struct Rule {
    synced: Watched,
    committed: Watched,
    /// When this window began, what it is for, and whether anything was seen in it.
    since: Duration,
    window: Window,
    seen: bool,
    /// Nothing was written in the window of work before.
    alone: bool,
    /// Windows since it rested last.
    windows: u32,
    /// Bytes by which the log has grown in this one, and by which it grows in a second.
    bytes: u64,
    growth: f64,
    /// When work was done last.
    worked: Option<Duration>,
    /// Seconds of work since the rate was changed last.
    seconds: f64,
    /// The rate that was too much last.
    wall: f64,
    rate: f64,
    /// The rate allows more from then on.
    next: Duration,
}

impl Rule {
    fn new() -> Self {
        Rule {
            synced: Watched::new(),
            committed: Watched::new(),
            since: Duration::ZERO,
            window: Window::Quiet,
            seen: false,
            alone: false,
            windows: 0,
            bytes: 0,
            growth: 0.0,
            worked: None,
            seconds: 0.0,
            wall: 0.0,
            rate: FIRST,
            next: Duration::ZERO,
        }
    }

    fn rate(&self) -> f64 {
        self.rate.max(self.growth * OUTGROWS).clamp(SLOWEST, FASTEST)
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.worked.is_none_or(|at| now.saturating_sub(at) > QUIET_AFTER)
    }

    fn grown(&mut self, now: Duration, bytes: u64) {
        self.look(now);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn note(&mut self, now: Duration, sign: Sign, took: Duration) {
        self.look(now);
        self.seen = true;
        let quiet = self.window == Window::Quiet;
        let watched = match sign {
            Sign::Synced => &mut self.synced,
            Sign::Committed => &mut self.committed,
        };
        watched.note(took.as_secs_f64(), quiet);
    }

    /// Says for how long to rest, now that so many bytes are done.
    fn work(&mut self, now: Duration, bytes: u64) -> Duration {
        self.look(now);
        if self.window == Window::Quiet {
            // What was found out for other work, some time ago, is no more than a hint.
            self.rate = self.rate.min(FIRST);
            self.windows = 1;
            self.forget();
            self.begin(now, Window::Work);
        }
        self.worked = Some(now);
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate());
        // What it does not do in a window of rest it need not make up for: the rate is that of the others.
        let from = if self.window == Window::Rest { self.since + WINDOW } else { now };
        self.next = self.next.max(from) + takes;
        self.next.saturating_sub(now)
    }

    /// Ends the window if it is time.
    fn look(&mut self, now: Duration) {
        let length = now.saturating_sub(self.since);
        if length < WINDOW {
            return;
        }
        let seconds = length.as_secs_f64();
        self.growth += NEWEST * (self.bytes as f64 / seconds - self.growth);
        let over = self.is_quiet(now);
        match self.window {
            Window::Work if !over => self.judge(seconds),
            Window::Quiet | Window::Rest => self.closed(seconds, false),
            // It went on for a part of it, or in a way that is not meant.
            Window::Work | Window::Aftermath => {}
        }
        let slower = self.window == Window::Work && !over && self.is_too_much();
        if slower {
            self.give_way();
        }
        self.windows += 1;
        self.begin(
            now,
            match () {
                () if over => Window::Quiet,
                () if slower => Window::Aftermath,
                // Whoever has just given way wants to know whether that was to any purpose.
                () if self.window == Window::Aftermath || self.windows >= RESTS_EVERY => Window::Rest,
                () => Window::Work,
            },
        );
    }

    fn closed(&mut self, seconds: f64, worked: bool) {
        self.synced.close(seconds, worked);
        self.committed.close(seconds, worked);
    }

    fn is_too_much(&self) -> bool {
        self.synced.is_too_much() || self.committed.is_too_much()
    }

    /// A window of work is over. Becomes faster if nobody minds.
    fn judge(&mut self, seconds: f64) {
        if std::mem::replace(&mut self.alone, !self.seen) && self.seen {
            self.rate = self.rate.min(FIRST);
            self.forget();
        }
        self.closed(seconds, true);
        self.seconds += seconds;
        let faster = match () {
            () if !self.seen => MUCH_FASTER,
            () if self.seconds < LONG_ENOUGH || self.synced.excess.max(self.committed.excess) > 0.0 => return,
            () if (NEAR.0 * self.wall..NEAR.1 * self.wall).contains(&self.rate) => LITTLE_FASTER,
            () => FASTER,
        };
        self.rate = (self.rate * faster).clamp(SLOWEST, FASTEST);
        self.forget();
    }

    fn give_way(&mut self) {
        let too_much = self.synced.excess.max(self.committed.excess) / self.seconds;
        // Where nothing can give, there is no wall.
        self.wall = if self.rate > SLOWEST { self.rate } else { 0.0 };
        let slower = (1.0 - GIVES_WAY * too_much).clamp(AT_MOST, AT_LEAST);
        self.rate = (self.rate * slower).clamp(SLOWEST, FASTEST);
        self.forget();
    }

    /// What was seen at another rate says nothing about this one.
    fn forget(&mut self) {
        self.seconds = 0.0;
        (self.synced.excess, self.committed.excess) = (0.0, 0.0);
    }

    fn begin(&mut self, now: Duration, window: Window) {
        (self.since, self.window) = (now, window);
        if window == Window::Rest {
            self.windows = 0;
        }
        (self.seen, self.bytes) = (false, 0);
        (self.synced.late, self.committed.late) = (0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);
    const PIECE: u64 = 256 << 10;

    /// A machine on which a sync takes half a millisecond, and longer as soon as the background work takes more than the disk can spare.
    struct Machine {
        rule: Rule,
        now: Duration,
        /// Bytes a second that may be taken without anybody noticing.
        spare: f64,
        writes: bool,
        /// Every so many milliseconds the disk stalls for ten, by itself.
        stalls: Option<u32>,
        /// Somebody else has the machine: each sync takes up to so many milliseconds more.
        others: u32,
        /// Work done in the present millisecond makes the next sync wait.
        done: u64,
        /// Bytes with which the disk is behind.
        load: f64,
        rest_until: Duration,
        /// One sync comes after the other.
        syncs_until: Duration,
    }

    impl Machine {
        fn new(spare: f64) -> Self {
            let (rule, now) = (Rule::new(), Duration::ZERO);
            let (stalls, others, done, load, rest_until, syncs_until) = (None, 0, 0, 0.0, now, now);
            Machine { rule, now, spare, writes: true, stalls, others, done, load, rest_until, syncs_until }
        }

        /// So many milliseconds; returns the bytes of background work, and the share of late writes.
        fn run(&mut self, millis: u32, works: bool) -> (u64, f64) {
            let (mut bytes, mut late) = (0, 0);
            for at in 0..millis {
                self.now += MILLI;
                self.done = 0;
                while works && self.now >= self.rest_until {
                    let rest = self.rule.work(self.now, PIECE);
                    self.rest_until = self.now + rest;
                    self.done += PIECE;
                    if rest < MILLI / 10 {
                        break;
                    }
                }
                bytes += self.done;
                // What is too much stays for a while; a single piece is not noticed.
                self.load = (self.load + self.done as f64 - self.spare / 1e3).max(0.0);
                if self.writes && self.now >= self.syncs_until {
                    let stalled = self.stalls.is_some_and(|every| at % every == 0);
                    let waits = MILLI.mul_f64(((self.load - 1.5 * PIECE as f64).max(0.0) / 5e4).min(20.0))
                        + if stalled { MILLI * 10 } else { Duration::ZERO };
                    let took = MILLI / 2 + waits + MILLI * ((at.wrapping_mul(2_654_435_761) >> 16) % (self.others + 1));
                    self.syncs_until = self.now + took;
                    late += u32::from(took > MILLI * 3);
                    self.rule.grown(self.now, 500);
                    self.rule.note(self.now, Sign::Synced, took);
                    self.rule.note(self.now, Sign::Committed, took * 2);
                }
            }
            (bytes, f64::from(late) / f64::from(millis))
        }
    }

    #[test]
    fn it_takes_what_the_disk_has_to_spare_and_no_more() {
        for spare in [20e6, 50e6, 100e6] {
            let mut machine = Machine::new(spare);
            machine.run(5000, false);
            // It begins low, and finds out.
            machine.run(10_000, true);
            let (bytes, late) = machine.run(20_000, true);
            let rate = bytes as f64 / 20.0;
            assert!(rate > spare * 0.6 && rate < spare * 1.15, "{rate} of {spare}");
            assert!(late < 0.03, "{late} late with {spare} to spare");
        }
    }

    #[test]
    fn it_follows_when_less_is_to_spare_and_when_there_is_more_again() {
        let mut machine = Machine::new(100e6);
        machine.run(5000, false);
        machine.run(5000, true);
        let before = machine.rule.rate();
        machine.spare = 15e6;
        machine.run(2000, true);
        let less = machine.rule.rate();
        machine.spare = 100e6;
        machine.run(15_000, true);
        let more = machine.rule.rate();
        assert!(before > 60e6 && less < 30e6 && more > 60e6, "{before}, {less}, {more}");
    }

    #[test]
    fn when_nobody_writes_it_soon_has_no_limit() {
        let mut machine = Machine::new(1e12);
        machine.writes = false;
        machine.run(1500, true);
        assert!(machine.rule.rate() > 1e9, "{}", machine.rule.rate());
        // And it gives way as soon as somebody does.
        (machine.writes, machine.spare) = (true, 20e6);
        machine.run(1500, true);
        assert!(machine.rule.rate() < 40e6, "{}", machine.rule.rate());
    }

    #[test]
    fn it_is_never_slower_than_the_floor_nor_than_the_log_grows() {
        let mut machine = Machine::new(0.0);
        machine.run(5000, false);
        machine.run(5000, true);
        assert_eq!(machine.rule.rate().to_bits(), SLOWEST.to_bits());
        let (bytes, _) = machine.run(5000, true);
        assert!(bytes as f64 / 5.0 > 8e6 * 0.95, "{bytes}");
        for _ in 0..100 {
            machine.now += WINDOW;
            machine.rule.grown(machine.now, 1_000_000);
            machine.rule.note(machine.now, Sign::Synced, MILLI * 100);
        }
        // Ten megabytes a second are written.
        assert!((machine.rule.rate() / 50e6 - 1.0).abs() < 0.05, "{}", machine.rule.rate());
    }

    #[test]
    fn a_disk_that_stalls_by_itself_is_not_blamed_on_the_work() {
        let mut machine = Machine::new(50e6);
        // A tenth of the time.
        machine.stalls = Some(100);
        machine.run(20_000, false);
        machine.run(3000, true);
        let (bytes, _) = machine.run(20_000, true);
        let rate = bytes as f64 / 20.0;
        assert!(rate > 30e6, "{rate}");
    }

    #[test]
    fn what_others_do_to_the_machine_is_not_blamed_on_the_work_but_what_it_adds_is() {
        for spare in [50e6, 20e6] {
            let mut machine = Machine::new(spare);
            machine.run(5000, false);
            machine.run(3000, true);
            machine.others = 8;
            machine.run(10_000, true);
            let (bytes, _) = machine.run(30_000, true);
            let rate = bytes as f64 / 30.0;
            assert!(rate > spare * 0.5 && rate < spare * 1.5, "{rate} of {spare}");
        }
    }

    #[test]
    fn what_is_usual_is_learned_only_while_nothing_else_goes_on() {
        let mut machine = Machine::new(0.0);
        machine.run(5000, false);
        let usual = machine.rule.synced.usual;
        assert!((0.4e-3..0.7e-3).contains(&usual), "{usual}");
        machine.run(10_000, true);
        assert_eq!(machine.rule.synced.usual.to_bits(), usual.to_bits(), "nothing was learned");
        // Two threads that work share the rate.
        let mut rule = Rule::new();
        let rests = [rule.work(MILLI, 24_000), rule.work(MILLI, 24_000)];
        assert_eq!(rests, [MILLI, MILLI * 2]);
    }
}
