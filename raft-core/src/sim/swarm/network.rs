//! A network of independent messages: each may be lost, delivered twice, held up and overtaken, and every directed link may be
//! cut, slow or both.

use std::time::Duration;

use super::mix::Quality;
use super::sometimes::{Counts, Situation};
use crate::sim::schedule::Dice;
use crate::types::Instant;

/// Links between servers, which are numbered from 0.
#[derive(Debug)]
pub(super) struct Network {
    servers: usize,
    dice: Dice,
    quality: Quality,
    ordered: bool,
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    /// How many faults cut it.
    cuts: u32,
    /// What faults add to each delay.
    extra: Duration,
    /// When the latest message arrives.
    latest: Instant,
}

impl Network {
    pub(super) fn new(servers: usize, quality: Quality, ordered: bool, dice: Dice) -> Self {
        Network { servers, dice, quality, ordered, links: vec![Link::default(); servers * servers] }
    }

    fn link(&mut self, from: usize, to: usize) -> &mut Link {
        &mut self.links[from * self.servers + to]
    }

    /// One more fault cuts the link from `from` to `to`.
    pub(super) fn cut(&mut self, from: usize, to: usize) {
        self.link(from, to).cuts += 1;
    }

    /// One fault less cuts it.
    pub(super) fn mend(&mut self, from: usize, to: usize) {
        let link = self.link(from, to);
        link.cuts = link.cuts.saturating_sub(1);
    }

    /// Makes a link slower, or faster again.
    pub(super) fn slow_down(&mut self, from: usize, to: usize, extra: Duration) {
        self.link(from, to).extra = extra;
    }

    /// Changes how all links behave.
    pub(super) fn set_quality(&mut self, quality: Quality) {
        self.quality = quality;
    }

    /// Ends every fault.
    pub(super) fn heal(&mut self) {
        self.quality = Quality::GOOD;
        for link in &mut self.links {
            (link.cuts, link.extra) = (0, Duration::ZERO);
        }
    }

    pub(super) fn is_cut(&self, from: usize, to: usize) -> bool {
        self.links[from * self.servers + to].cuts > 0
    }

    /// When a message that is sent now arrives: never, once, or twice.
    pub(super) fn send(&mut self, from: usize, to: usize, now: Instant, counts: &mut Counts) -> [Option<Instant>; 2] {
        let quality = self.quality;
        if self.is_cut(from, to) || (quality.loss > 0 && self.dice.chance(quality.loss, 1000)) {
            counts.saw(Situation::Lost);
            return [None, None];
        }
        let first = self.arrival(from, to, now, counts);
        let twice = quality.duplication > 0 && self.dice.chance(quality.duplication, 1000);
        let second = twice.then(|| {
            counts.saw(Situation::Duplicated);
            self.arrival(from, to, now, counts)
        });
        [Some(first), second]
    }

    fn arrival(&mut self, from: usize, to: usize, now: Instant, counts: &mut Counts) -> Instant {
        let quality = self.quality;
        let mut delay = self.dice.time(quality.delay.0, quality.delay.1);
        if quality.straggling > 0 && self.dice.chance(quality.straggling, 1000) {
            delay += self.dice.time(Duration::ZERO, quality.straggle);
        }
        let ordered = self.ordered;
        let link = self.link(from, to);
        let mut at = now + delay + link.extra;
        if at < link.latest {
            if ordered {
                at = link.latest;
            } else {
                counts.saw(Situation::Overtaken);
            }
        }
        link.latest = link.latest.max(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(ordered: bool) -> Network {
        let delay = (Duration::from_millis(1), Duration::from_millis(9));
        let quality =
            Quality { loss: 100, duplication: 200, delay, straggling: 50, straggle: Duration::from_millis(100) };
        Network::new(2, quality, ordered, Dice::new(1, 1))
    }

    fn send_all(network: &mut Network) -> (Vec<Instant>, Counts) {
        let mut counts = Counts::default();
        let sent = (0..10_000).flat_map(|i| network.send(0, 1, Instant::from_millis(i), &mut counts));
        let arrived = sent.collect::<Vec<_>>().into_iter().flatten().collect();
        (arrived, counts)
    }

    #[test]
    fn messages_are_lost_repeated_and_overtaken() {
        let (arrived, counts) = send_all(&mut network(false));
        assert!((900..1100).contains(&counts.of(Situation::Lost)));
        assert!((1600..2000).contains(&counts.of(Situation::Duplicated)));
        assert!(!arrived.is_sorted() && counts.of(Situation::Overtaken) > 1000);
    }

    #[test]
    fn an_ordered_link_keeps_the_order() {
        let (arrived, counts) = send_all(&mut network(true));
        assert!(arrived.is_sorted() && counts.of(Situation::Overtaken) == 0);
    }

    #[test]
    fn a_link_that_two_faults_cut_works_when_both_are_over() {
        let (mut network, mut counts) = (network(false), Counts::default());
        network.set_quality(Quality::GOOD);
        network.cut(0, 1);
        network.cut(0, 1);
        network.mend(0, 1);
        assert_eq!(network.send(0, 1, Instant(0), &mut counts), [None, None]);
        assert!(network.send(1, 0, Instant(0), &mut counts)[0].is_some(), "the other direction works");
        network.mend(0, 1);
        assert!(network.send(0, 1, Instant(0), &mut counts)[0].is_some());
    }
}
