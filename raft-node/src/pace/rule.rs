//! The rule of the [pace](super), without a clock: times are since some beginning.

use std::time::Duration;

/// Bytes a second that work in the background gets in any case; in the four windows of five in which it works, so that 8 MB a second are left.
const SLOWEST: f64 = 10e6;
/// With so many it begins.
const FIRST: f64 = 24e6;
/// With others' writes beside it, it goes no faster.
const FASTEST_BESIDE: f64 = 32e6;
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
/// Share of the time by which writes may be late, or so many times what is late without the work, if that is more.
const MAY_BE_LATE: f64 = 0.005;
const MAY_BE_LATER: f64 = 1.25;
/// When so much of the time is late without the work, it goes no faster than at first.
const BLIND: f64 = 0.5;
/// After so many windows in which nothing was written, nobody writes.
const ALONE: u32 = 5;
/// What was made use of less says nothing about the rate.
const USED: f64 = 0.5;
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
/// Whoever sleeps wakes up later than it wanted to, and windows end when somebody looks: later by up to so much.
const SLACK: Duration = Duration::from_millis(1);
/// Longest rest.
pub(super) const LONGEST: Duration = Duration::from_millis(200);

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
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

    /// Something took so long, and ends in a window that is so old: only what lies in it counts there.
    fn note(&mut self, took: f64, age: f64, quiet: bool) {
        self.late += (took - LATE * self.usual).clamp(0.0, age);
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
            self.excess += late - MAY_BE_LATE.max(MAY_BE_LATER * self.without) * seconds;
        } else {
            self.without += NEWEST_WITHOUT * (late / seconds - self.without);
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
pub(super) struct Rule {
    synced: Watched,
    committed: Watched,
    /// When this window began, what it is for, and whether anything was seen in it.
    since: Duration,
    window: Window,
    seen: bool,
    /// The sync that is under way, and since when.
    pub(super) pending: Option<Duration>,
    /// Windows of work since something was written or being written.
    alone: u32,
    /// Windows since it rested last.
    windows: u32,
    /// Bytes by which the log has grown in this one, and by which it grows in a second.
    bytes: u64,
    growth: f64,
    /// When work was done last.
    worked: Option<Duration>,
    /// Seconds of work since the rate was changed last, and bytes that were done.
    seconds: f64,
    done: u64,
    /// The rate that was too much last.
    wall: f64,
    rate: f64,
    /// The rate allows more from then on.
    next: Duration,
}

impl Rule {
    pub(super) fn new() -> Self {
        Rule {
            synced: Watched::new(),
            committed: Watched::new(),
            since: Duration::ZERO,
            window: Window::Quiet,
            seen: false,
            pending: None,
            alone: 0,
            windows: 0,
            bytes: 0,
            growth: 0.0,
            worked: None,
            seconds: 0.0,
            done: 0,
            wall: 0.0,
            rate: FIRST,
            next: Duration::ZERO,
        }
    }

    pub(super) fn rate(&self) -> f64 {
        self.rate.max(self.growth * OUTGROWS).clamp(SLOWEST, FASTEST)
    }

    fn is_quiet(&self, now: Duration) -> bool {
        self.worked.is_none_or(|at| now.saturating_sub(at) > QUIET_AFTER)
    }

    pub(super) fn grown(&mut self, now: Duration, bytes: u64) {
        self.look(now);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    pub(super) fn note(&mut self, now: Duration, sign: Sign, took: Duration) {
        self.look(now);
        self.seen = true;
        let quiet = self.window == Window::Quiet;
        let watched = match sign {
            Sign::Synced => &mut self.synced,
            Sign::Committed => &mut self.committed,
        };
        watched.note(took.as_secs_f64(), now.saturating_sub(self.since).as_secs_f64(), quiet);
    }

    /// Says for how long to rest, now that so many bytes are done.
    pub(super) fn work(&mut self, now: Duration, bytes: u64) -> Duration {
        self.look(now);
        if self.window == Window::Quiet {
            // What was found out for other work, some time ago, is no more than a hint.
            self.rate = self.rate.min(FIRST);
            self.windows = 1;
            self.forget();
            self.begin(now, Window::Work);
            self.next = now;
        }
        self.worked = Some(now);
        self.done = self.done.saturating_add(bytes);
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate());
        let end = self.since + WINDOW;
        // What it does not do in a window of rest it need not make up for: the rate is that of the others.
        let from = if self.window == Window::Rest { end } else { now };
        // The work itself took its part of that. Of what is owed no more is kept than can be rested for.
        self.next = (self.next + takes).max(from).min(from + LONGEST);
        if self.rests_next() && self.next + SLACK >= end {
            // Whoever woke up within the rest would do a piece in it before hearing of it.
            self.next = self.next.max(end + WINDOW + SLACK);
        }
        self.next.saturating_sub(now)
    }

    /// Whether the window after this one is one of rest, unless something changes.
    fn rests_next(&self) -> bool {
        self.window == Window::Aftermath
            || (self.window == Window::Work && self.windows.saturating_add(1) >= RESTS_EVERY)
    }

    /// Ends the window if it is time.
    fn look(&mut self, now: Duration) {
        let length = now.saturating_sub(self.since);
        if length < WINDOW {
            return;
        }
        let seconds = length.as_secs_f64();
        // A long window counts as often as short ones in its place would.
        let weight = 1.0 - (1.0 - NEWEST).powf(seconds / WINDOW.as_secs_f64());
        self.growth += weight * (self.bytes as f64 / seconds - self.growth);
        if let Some(begun) = self.pending {
            let overdue = begun + Duration::from_secs_f64(LATE * self.synced.usual);
            self.synced.late += now.saturating_sub(overdue.max(self.since)).as_secs_f64();
            self.seen = true;
        }
        let over = self.is_quiet(now);
        match self.window {
            Window::Work if !over => self.judge(seconds),
            Window::Quiet | Window::Rest => self.closed(seconds, false),
            // It went on for a part of it, or in a way that is not meant.
            Window::Work | Window::Aftermath => {}
        }
        let rests = self.rests_next();
        let slower = self.window == Window::Work && !over && self.is_too_much() && self.give_way();
        self.windows = self.windows.saturating_add(1);
        self.begin(
            now,
            match () {
                () if over => Window::Quiet,
                () if slower => Window::Aftermath,
                // Whoever has just given way wants to know whether that was to any purpose.
                () if rests => Window::Rest,
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
        let was_alone = self.alone >= ALONE;
        self.alone = if self.seen { 0 } else { self.alone.saturating_add(1) };
        let is_blind = self.synced.without.max(self.committed.without) > BLIND;
        if self.alone == 0 && was_alone {
            self.forget();
        }
        if self.alone == 0 {
            self.rate = self.rate.min(if was_alone || is_blind { FIRST } else { FASTEST_BESIDE });
        }
        self.closed(seconds, true);
        self.seconds += seconds;
        let is_used = self.done as f64 >= USED * self.rate() * self.seconds;
        let faster = match () {
            () if self.alone >= ALONE && is_used => MUCH_FASTER,
            () if self.seconds < LONG_ENOUGH || self.excess() > 0.0 => return,
            () if !is_used || (is_blind && self.rate >= FIRST) => 1.0,
            () if (NEAR.0 * self.wall..NEAR.1 * self.wall).contains(&self.rate) => LITTLE_FASTER,
            () => FASTER,
        };
        let fastest = if self.alone < ALONE { FASTEST_BESIDE } else { FASTEST };
        self.rate = (self.rate * faster).clamp(SLOWEST, fastest);
        self.forget();
    }

    fn excess(&self) -> f64 {
        self.synced.excess.max(self.committed.excess)
    }

    /// Says whether it could become slower.
    fn give_way(&mut self) -> bool {
        let before = self.rate();
        let too_much = self.excess() / self.seconds;
        // Where nothing can give, there is no wall.
        self.wall = if self.rate > SLOWEST { self.rate } else { 0.0 };
        let slower = (1.0 - GIVES_WAY * too_much).clamp(AT_MOST, AT_LEAST);
        self.rate = (self.rate * slower).clamp(SLOWEST, FASTEST);
        self.forget();
        self.rate() < before
    }

    /// What was seen at another rate says nothing about this one.
    fn forget(&mut self) {
        (self.seconds, self.done) = (0.0, 0);
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
        /// The sync that is under way, since when, and how long it takes: one comes after the other.
        syncing: Option<(Duration, Duration)>,
        syncs: u32,
        /// Pieces that were done while the work was to rest.
        restless: u32,
    }

    impl Machine {
        fn new(spare: f64) -> Self {
            let (rule, now) = (Rule::new(), Duration::ZERO);
            let (stalls, others, done, load) = (None, 0, 0, 0.0);
            Machine {
                rule,
                now,
                spare,
                writes: true,
                stalls,
                others,
                done,
                load,
                rest_until: now,
                syncing: None,
                syncs: 0,
                restless: 0,
            }
        }

        /// So many milliseconds; returns the bytes of background work, and the share of late writes.
        fn run(&mut self, millis: u32, works: bool) -> (u64, f64) {
            let (mut bytes, mut late) = (0, 0);
            for at in 0..millis {
                self.now += MILLI;
                self.done = 0;
                while works && self.now >= self.rest_until {
                    self.rule.look(self.now);
                    self.restless += u32::from(self.rule.window == Window::Rest);
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
                if let Some((begun, took)) = self.syncing.filter(|(begun, took)| self.now >= *begun + *took) {
                    self.rule.pending = Some(begun);
                    self.rule.grown(self.now, 500);
                    (self.syncing, self.rule.pending) = (None, None);
                    self.rule.note(self.now, Sign::Synced, took);
                    // An entry that is followed takes two syncs, and then the next one is.
                    self.syncs += 1;
                    if self.syncs.is_multiple_of(2) {
                        self.rule.note(self.now, Sign::Committed, took * 2);
                    }
                }
                if self.writes && self.syncing.is_none() {
                    let stalled = self.stalls.is_some_and(|every| at % every == 0);
                    let waits = MILLI.mul_f64(((self.load - 1.5 * PIECE as f64).max(0.0) / 5e4).min(20.0))
                        + if stalled { MILLI * 10 } else { Duration::ZERO };
                    let took = MILLI / 2 + waits + MILLI * ((at.wrapping_mul(2_654_435_761) >> 16) % (self.others + 1));
                    late += u32::from(took > MILLI * 3);
                    (self.syncing, self.rule.pending) = (Some((self.now, took)), Some(self.now));
                }
            }
            (bytes, f64::from(late) / f64::from(millis))
        }
    }

    #[test]
    fn it_takes_what_the_disk_has_to_spare_and_no_more() {
        // Four windows of five are for the work, and there is a limit to it.
        for (spare, most) in [(14e6, 14e6), (20e6, 20e6), (100e6, FASTEST_BESIDE * 0.8)] {
            let mut machine = Machine::new(spare);
            machine.run(5000, false);
            // It begins low, and finds out.
            machine.run(10_000, true);
            let (bytes, late) = machine.run(20_000, true);
            let rate = bytes as f64 / 20.0;
            assert!(rate > most * 0.6 && rate < most * 1.1, "{rate} of {spare}");
            assert!(late < 0.03, "{late} late with {spare} to spare");
            // Who was to sleep through a rest that comes one window later, because it became slower, wakes up in it.
            assert!(machine.restless < 10, "{} pieces in rests", machine.restless);
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
        assert!(before > 30e6 && less < 20e6 && more > 30e6, "{before}, {less}, {more}");
    }

    #[test]
    fn when_nobody_writes_it_soon_has_no_limit() {
        let mut machine = Machine::new(1e12);
        machine.writes = false;
        machine.run(2500, true);
        // This machine does 262 MB a second at most.
        assert!(machine.rule.rate() > 400e6, "{}", machine.rule.rate());
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
        // Whatever is done here is late for good, so that a rest shows nothing: it goes no faster than at first.
        let rate = machine.rule.rate();
        assert!((SLOWEST..=FIRST).contains(&rate), "{rate}");
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
        let mut machine = Machine::new(30e6);
        // A tenth of the time, and not in step with the windows.
        machine.stalls = Some(97);
        machine.run(20_000, false);
        machine.run(3000, true);
        let (bytes, _) = machine.run(20_000, true);
        let rate = bytes as f64 / 20.0;
        assert!(rate > 18e6, "{rate}");
    }

    #[test]
    fn what_others_do_to_the_machine_is_not_blamed_on_the_work_but_what_it_adds_is() {
        // At most a third of the time is late without the work, and then most of it.
        for (others, spare, least, most) in [(2, 50e6, 25e6, 75e6), (2, 20e6, 10e6, 30e6), (8, 50e6, 15e6, 25e6)] {
            let mut machine = Machine::new(spare);
            machine.run(5000, false);
            machine.run(3000, true);
            machine.others = others;
            machine.run(10_000, true);
            let (bytes, _) = machine.run(30_000, true);
            let rate = bytes as f64 / 30.0;
            assert!(rate > least && rate < most, "{rate} of {spare} with {others}");
        }
    }

    #[test]
    fn a_sync_that_hangs_is_not_taken_for_silence() {
        let mut machine = Machine::new(50e6);
        machine.run(5000, false);
        machine.run(5000, true);
        let before = machine.rule.rate();
        machine.syncing = Some((machine.now, MILLI * 3000));
        machine.rule.pending = Some(machine.now);
        machine.run(2900, true);
        let hanging = machine.rule.rate();
        assert!(hanging < before && hanging < FIRST, "{before}, {hanging}");
    }

    #[test]
    fn a_rate_that_is_not_used_is_not_raised() {
        let mut machine = Machine::new(1e12);
        machine.run(5000, false);
        for _ in 0..100 {
            // A link that takes no more than so much.
            machine.rule.work(machine.now, 500_000);
            machine.run(100, false);
        }
        assert!(machine.rule.rate() <= FIRST, "{}", machine.rule.rate());
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
