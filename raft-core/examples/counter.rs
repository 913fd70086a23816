//! A state machine of your own under every mix of faults: a dispenser of numbers, of which no two clients may ever get the same.
//!
//! ```text
//! cargo run -p raft-core --features sim --example counter
//! ```
#![forbid(unsafe_code)]

use raft_core::sim::swarm::mix::Mix;
use raft_core::sim::swarm::run_workload;
use raft_core::sim::swarm::workload::{Draw, Request, Workload};

/// How many numbers each dispenser has given out: there are some, and clients use one or the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Dispensers([u64; 8]);

impl Workload for Dispensers {
    /// Takes a number.
    fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        let count = &mut self.0[usize::from(command[0])];
        *count += 1;
        count.to_le_bytes().to_vec()
    }

    /// Looks how many were taken.
    fn query(&self, query: &[u8]) -> Vec<u8> {
        self.0[usize::from(query[0])].to_le_bytes().to_vec()
    }

    fn draw(draw: &mut Draw<'_>) -> (usize, Request) {
        let which = draw.dice.pick(draw.objects);
        let bytes = vec![which as u8];
        (which, if draw.dice.chance(1, 2) { Request::Query(bytes) } else { Request::Command(bytes) })
    }
}

fn main() {
    let (mut taken, mut undecided) = (0, 0);
    for seed in 0..20 {
        let report = run_workload::<Dispensers>(seed, Mix::of(seed), None);
        if let Some(failure) = report.failure {
            panic!("seed {seed}: {failure}");
        }
        taken += report.committed;
        undecided += report.unknown;
    }
    assert!(undecided <= 10, "most histories must be decided");
    println!("20 clusters, {taken} commands under faults: linearizable ({undecided} objects undecided)");
}

/// The tests of this crate run it, too.
#[test]
fn no_two_clients_get_the_same_number() {
    main();
}
