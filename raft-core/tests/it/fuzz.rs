//! The fuzz targets as tests.

use raft_core::fuzzing::{self, Reached};
use raft_core::sim::schedule::Dice;

use crate::corpus;

#[test]
fn every_target_holds_near_its_corpus() {
    corpus::complete(env!("CARGO_MANIFEST_DIR"), fuzzing::TARGETS.iter().map(|target| target.name));
    for target in fuzzing::TARGETS {
        corpus::check(env!("CARGO_MANIFEST_DIR"), target.name, 3000, 10, target.run);
    }
}

fn bytes(dice: &mut Dice, len: usize) -> Vec<u8> {
    (0..len).map(|_| dice.between(0, 255) as u8).collect()
}

/// Long series of arbitrary decisions. That clusters get somewhere in them is checked as well.
#[test]
fn arbitrary_clusters_keep_every_promise() {
    let mut dice = Dice::new(1, 17);
    let mut sum = Reached::default();
    for _ in 0..2400 {
        let Reached { elected, committed, truncated, lost_writes, reads, fetched, changes, restored, slept } =
            fuzzing::cluster(&bytes(&mut dice, 2000));
        sum.elected += elected;
        sum.committed += committed;
        sum.truncated += truncated;
        sum.lost_writes += lost_writes;
        sum.reads += reads;
        sum.fetched += fetched;
        sum.changes += changes;
        sum.restored += restored;
        sum.slept += slept;
    }
    let often = [sum.elected, sum.committed as usize, sum.lost_writes, sum.reads, sum.fetched, sum.changes];
    let seldom = [sum.truncated, sum.restored, sum.slept];
    assert!(
        often.iter().all(|count| *count >= 200) && seldom.iter().all(|count| *count >= 20),
        "some situations hardly occur: {sum:?}"
    );
}

#[test]
fn a_server_among_liars_keeps_its_own_promises() {
    let mut dice = Dice::new(2, 17);
    let good = (0..400).filter(|_| fuzzing::hostile(&bytes(&mut dice, 2000))).count();
    assert!(good >= 200, "hardly ever a leader or a commit: {good} of 400");
}
