//! The fuzz targets as tests.

use raft_storage::fuzzing;

use crate::corpus;

#[test]
fn every_target_holds_near_its_corpus() {
    for target in fuzzing::TARGETS {
        corpus::check(env!("CARGO_MANIFEST_DIR"), target.name, 4000, 10, target.run);
    }
}
