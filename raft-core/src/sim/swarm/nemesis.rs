//! Faults: which one comes next, whom it hits, and when it ends.

use std::time::Duration;

use super::client::{Ask, Ticket};
use super::mix::{Fault, Quality};
use super::replica;
use super::sometimes::Situation;
use super::workload::Workload;
use super::world::{Event, World};
use crate::io::Input;
use crate::sim::cluster::id_of;
use crate::types::{Instant, LogIndex};

/// Directed links.
pub(super) type Links = Vec<(usize, usize)>;

/// How a fault ends, or goes on.
#[derive(Debug)]
pub(super) enum Undo {
    /// These links are not cut by it any more.
    Mend(Links),
    /// The link is as quick as the others.
    Hasten(usize, usize),
    /// The weather is as usual.
    Calm,
    /// A server comes back.
    Start(usize),
    /// A link changes between cut and whole, until then.
    Toggle { links: Links, cut: bool, until: Instant },
    /// The next of so many requests that nobody waits for.
    Flood(u32),
}

impl<W: Workload> World<'_, W> {
    /// Something goes wrong, and the next thing is planned.
    pub(super) fn next_fault(&mut self) {
        if self.healed.is_some() {
            return;
        }
        let fault = self.mix.faults[self.dice.pick(self.mix.faults.len())];
        match fault {
            Fault::Transfer | Fault::Overload if self.nap_left().is_some() => {}
            Fault::Partition => self.partition(),
            Fault::OneWay => self.cut_one_way(),
            Fault::Flap => self.flap(),
            Fault::Slow => self.slow_link(),
            Fault::Storm => self.storm(),
            Fault::Crash => self.crash_some(),
            Fault::Pause => self.pause(),
            Fault::Stall => self.stall(),
            Fault::SyncError => self.fail_sync(),
            Fault::DiskLoss => self.lose_disk(),
            Fault::Rollback => self.roll_back(),
            Fault::Transfer => self.transfer(),
            Fault::Overload => {
                let requests = self.dice.between(50, 200) as u32;
                self.flood(requests);
            }
        }
        let wait = self.dice.time(Duration::ZERO, self.mix.fault_interval * 2);
        self.schedule.after(wait, Event::Fault);
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        self.note(format_args!("{undo:?}"));
        match undo {
            Undo::Mend(links) => {
                links.iter().for_each(|(from, to)| self.network.mend(*from, *to));
                self.tell_resets(&links);
            }
            Undo::Hasten(from, to) => self.network.slow_down(from, to, Duration::ZERO),
            Undo::Calm => self.network.set_quality(self.mix.links),
            Undo::Start(i) => self.start(i),
            Undo::Toggle { links, cut, until } => self.toggle(links, cut, until),
            Undo::Flood(left) => self.flood(left),
        }
    }

    fn later(&mut self, delay: Duration, undo: Undo) {
        self.schedule.after(delay, Event::Undo { undo, era: self.era });
    }

    /// Most faults are short; some last.
    fn duration(&mut self) -> Duration {
        let longest = if self.dice.chance(1, 4) { 10_000 } else { 2500 };
        self.dice.time(Duration::from_millis(50), Duration::from_millis(longest))
    }

    fn any_server(&mut self) -> usize {
        // Faults that hit the leader are the interesting ones.
        match self.leader() {
            Some(leader) if self.dice.chance(1, 3) => leader,
            _ => self.dice.pick(self.servers.len()),
        }
    }

    fn cut(&mut self, links: Links, situation: Situation) {
        if links.is_empty() {
            return;
        }
        self.note(format_args!("{}: {links:?}", situation.words()));
        self.counts.saw(situation);
        if let Some(leader) = self.leader()
            && links.iter().filter(|(from, _)| *from == leader).count() > (self.servers.len() - 1) / 2
        {
            self.counts.saw(Situation::LeaderCutOff);
        }
        links.iter().for_each(|(from, to)| self.network.cut(*from, *to));
        self.tell_resets(&links);
        let duration = self.duration();
        self.later(duration, Undo::Mend(links));
    }

    /// The servers at both ends of a link hear that their connection was lost.
    fn tell_resets(&mut self, links: &Links) {
        if self.mix.naps.is_some() {
            return links.iter().for_each(|(from, to)| self.tell_reset_soon(*from, *to));
        }
        if !self.mix.tells_resets {
            return;
        }
        for (from, to) in links {
            for (here, there) in [(*from, *to), (*to, *from)] {
                self.tell_reset(here, there);
            }
        }
    }

    /// A server hears that its connection to another was lost, or made anew.
    pub(super) fn tell_reset(&mut self, here: usize, there: usize) {
        if self.servers[here].is_up() {
            let reset = super::server::Item::Input(Input::LinkReset(id_of(there)));
            self.servers[here].inbox.push_back(reset);
            self.ask_for_pump(here);
        }
    }

    /// Where groups sleep, both ends hear of everything that may keep them apart, each after a time of its own: that is the transport's contract. What
    /// was on its way may still arrive after that.
    fn tell_reset_soon(&mut self, one: usize, other: usize) {
        let Some(naps) = self.mix.naps else { return };
        for (server, peer) in [(one, other), (other, one)] {
            let delay = self.reset_dice.time(Duration::ZERO, naps.noticed_within);
            self.schedule.after(delay, Event::Reset { server, peer });
        }
    }

    /// A server has died, starts, or is frozen for a while: its connections to all others are lost, or made anew.
    pub(super) fn tell_resets_around(&mut self, i: usize) {
        (0..self.servers.len()).filter(|other| *other != i).for_each(|other| self.tell_reset_soon(i, other));
    }

    fn partition(&mut self) {
        let count = self.servers.len();
        // Every server goes to one of the parts; or one server stays in touch with both.
        let parts = self.dice.between(2, 3);
        let mut part: Vec<u64> = (0..count).map(|_| self.dice.between(1, parts)).collect();
        let shape = self.dice.pick(4);
        let alone = self.any_server();
        if shape == 0 {
            (0..count).for_each(|i| part[i] = u64::from(i == alone));
        } else if shape == 1 {
            part[alone] = 0;
        }
        let bridge = shape == 1;
        let apart = |a: usize, b: usize| part[a] != part[b] && !(bridge && (a == alone || b == alone));
        let links: Links =
            (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| apart(*a, *b)).collect();
        let largest = (0..count).map(|a| part.iter().filter(|other| **other == part[a]).count()).max();
        let situation = match largest {
            _ if bridge => Situation::Bridge,
            Some(largest) if largest > count / 2 => Situation::MajorityCut,
            _ => Situation::NoMajority,
        };
        self.cut(links, situation);
    }

    fn cut_one_way(&mut self) {
        let count = self.servers.len();
        let (it, shape) = (self.any_server(), self.dice.pick(3));
        let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b))).filter(|(a, b)| a != b);
        let links = match shape {
            // It hears nobody, or nobody hears it, or anything.
            0 => pairs.filter(|(_, to)| *to == it).collect(),
            1 => pairs.filter(|(from, _)| *from == it).collect(),
            _ => pairs.filter(|_| self.dice.chance(1, 3)).collect(),
        };
        self.cut(links, Situation::OneWayCut);
    }

    /// Two different servers; `None` in a cluster of one.
    fn pair(&mut self) -> Option<(usize, usize)> {
        let (from, to) = (self.any_server(), self.dice.pick(self.servers.len()));
        (from != to).then_some((from, to))
    }

    fn flap(&mut self) {
        let Some((from, to)) = self.pair() else { return };
        let links = if self.dice.chance(1, 2) { vec![(from, to)] } else { vec![(from, to), (to, from)] };
        self.counts.saw(Situation::Flapping);
        let until = self.now() + self.duration();
        self.toggle(links, true, until);
    }

    fn toggle(&mut self, links: Links, cut: bool, until: Instant) {
        for (from, to) in &links {
            if cut {
                self.network.cut(*from, *to);
            } else {
                self.network.mend(*from, *to);
            }
        }
        self.tell_resets(&links);
        if cut || self.now() < until {
            let wait = self.dice.time(Duration::from_millis(10), Duration::from_millis(400));
            self.later(wait, Undo::Toggle { links, cut: !cut, until });
        }
    }

    fn slow_link(&mut self) {
        let Some((from, to)) = self.pair() else { return };
        self.counts.saw(Situation::SlowLink);
        let extra = self.dice.time(Duration::from_millis(5), Duration::from_millis(1500));
        self.network.slow_down(from, to, extra);
        let duration = self.duration();
        self.later(duration, Undo::Hasten(from, to));
    }

    fn storm(&mut self) {
        self.counts.saw(Situation::Storm);
        let quality = Quality {
            loss: self.dice.between(50, 500),
            duplication: self.dice.between(0, 300),
            delay: (Duration::from_millis(1), Duration::from_millis(self.dice.between(5, 200))),
            straggling: self.dice.between(0, 300),
            straggle: Duration::from_millis(self.dice.between(100, 4000)),
        };
        self.note(format_args!("storm: {quality:?}"));
        self.network.set_quality(quality);
        let duration = self.duration();
        self.later(duration, Undo::Calm);
    }

    /// One server, several, or all at once.
    fn crash_some(&mut self) {
        let count = self.servers.len();
        let victims = match self.dice.pick(6) {
            0 => count,
            1 => self.dice.between(1, count as u64) as usize,
            _ => 1,
        };
        for _ in 0..victims {
            let i =
                if victims == count { (0..count).find(|i| self.servers[*i].is_up()) } else { Some(self.any_server()) };
            if let Some(i) = i.filter(|i| self.servers[*i].is_up()) {
                self.counts.saw(Situation::Crash);
                self.crash(i);
                self.start_later(i);
            }
        }
    }

    pub(super) fn start_later(&mut self, i: usize) {
        let down = if self.dice.chance(1, 3) { Duration::from_millis(1) } else { self.duration() };
        self.later(down, Undo::Start(i));
    }

    fn pause(&mut self) {
        let i = self.any_server();
        if !self.servers[i].is_up() {
            return;
        }
        let until = self.now() + self.duration();
        self.note(format_args!("n{} is frozen until {} ms", i + 1, until.0 / 1_000_000));
        self.counts.saw(Situation::Paused);
        self.counts.add(Situation::LeaderPaused, u64::from(self.servers[i].leads()));
        self.servers[i].frozen_until = until;
        self.tell_resets_around(i);
    }

    /// Someone asks a server that leads, or thinks so, to hand over.
    fn transfer(&mut self) {
        let now = self.now();
        let i = self.any_server();
        let i = if self.servers[i].leads() { i } else { self.leader().unwrap_or(i) };
        let to = self.dice.chance(1, 2).then(|| id_of(self.dice.pick(self.servers.len())));
        let server = &mut self.servers[i];
        if now < server.frozen_until {
            return;
        }
        let now = server.clock.read(now);
        if let Some(driver) = &mut server.driver {
            let answer = driver.transfer_leadership(now, to);
            self.note(format_args!("n{} is asked to hand over to {to:?}: {answer:?}", i + 1));
            self.ask_for_pump(i);
        }
    }

    fn stall(&mut self) {
        let i = self.any_server();
        let until = self.now() + self.duration();
        self.note(format_args!("the disk of n{} hangs until {} ms", i + 1, until.0 / 1_000_000));
        self.counts.saw(Situation::DiskStalled);
        self.servers[i].stalled_until = until;
    }

    fn fail_sync(&mut self) {
        let i = self.any_server();
        self.servers[i].sync_fails = true;
    }

    /// What a disk holds changes by itself. A majority of disks is always left, of every membership that may count yet.
    fn lose_disk(&mut self) {
        let i = self.any_server();
        let spare = self.mix.changes.is_none() || self.nothing_asked();
        let kept = |membership| self.has_majority(membership, Some(i));
        if !self.is_sound(i) || !spare || !self.checker.memberships().all(kept) {
            return;
        }
        // Checksums show that to whoever reads (the store's own tests flip bits in every region of its files), so a mark is enough here.
        self.note(format_args!("the disk of n{} rots", i + 1));
        self.servers[i].rotten = true;
        if self.dice.chance(1, 2) {
            self.crash(i);
            self.start_later(i);
        }
    }

    /// A server comes back with its disk as it was some time ago, and does not know.
    fn roll_back(&mut self) {
        let i = self.any_server();
        self.crash(i);
        let writes = self.dice.between(1, 20);
        self.note(format_args!("the last {writes} entries on the disk of n{} are gone, and its vote", i + 1));
        self.servers[i].disk.roll_back(writes);
        self.servers[i].flushed = replica::Replica::default();
        self.checker.saved(id_of(i), LogIndex::ZERO);
        self.start_later(i);
    }

    /// A burst of large changes, a few a millisecond.
    fn flood(&mut self, left: u32) {
        let Some(server) = self.leader() else { return };
        self.counts.saw(Situation::Overload);
        let many = self.dice.between(1, 8).min(u64::from(left)) as u32;
        for _ in 0..many {
            let content = replica::ballast(self.dice.number(), self.dice.between(0, 300) as usize);
            self.send_request(server, Ticket { client: usize::MAX, attempt: 0 }, Ask::Propose(content));
        }
        if left > many {
            let wait = self.dice.time(Duration::from_micros(100), Duration::from_millis(4));
            self.later(wait, Undo::Flood(left - many));
        }
    }
}
