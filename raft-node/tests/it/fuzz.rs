//! The fuzz targets as tests, with an eye on the memory that they take.

use raft_node::fuzzing;

use crate::corpus;
use crate::frugal::frugal;

#[test]
fn every_target_holds_near_its_corpus() {
    corpus::complete(env!("CARGO_MANIFEST_DIR"), fuzzing::TARGETS.iter().map(|target| target.name));
    for target in fuzzing::TARGETS {
        let run = |data: &[u8]| match target.name {
            // A parser of TOML may take what it wants; the file is ours.
            "config" => (target.run)(data),
            _ => frugal(data, target.run),
        };
        corpus::check(env!("CARGO_MANIFEST_DIR"), target.name, 2000, 10, run);
    }
}
