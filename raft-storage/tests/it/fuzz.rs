//! The fuzz targets as tests.

use raft_storage::fuzzing;

use crate::corpus;

#[test]
fn every_target_holds_near_its_corpus() {
    corpus::complete(env!("CARGO_MANIFEST_DIR"), fuzzing::TARGETS.iter().map(|target| target.name));
    for target in fuzzing::TARGETS {
        corpus::check(env!("CARGO_MANIFEST_DIR"), target.name, 4000, 10, target.run);
    }
}
