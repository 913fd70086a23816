//! The fuzz targets as tests, with an eye on the memory that they take.

use raft_net::fuzzing;

use crate::corpus;
use crate::frugal::frugal;

#[test]
fn every_target_holds_near_its_corpus() {
    corpus::complete(env!("CARGO_MANIFEST_DIR"), fuzzing::TARGETS.iter().map(|target| target.name));
    for target in fuzzing::TARGETS {
        corpus::check(env!("CARGO_MANIFEST_DIR"), target.name, 4000, 10, |data| frugal(data, target.run));
    }
}
