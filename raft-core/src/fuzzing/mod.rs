//! Fuzz targets: functions of bytes that assert what must hold whatever the bytes are.
//!
//! The programs in `fuzz/` hand them what libFuzzer thinks of; the tests replay the corpus and run them as property tests. Behind the
//! feature `fuzzing`, and no part of the crate's interface.

mod choices;
mod cluster;
mod hostile;
mod packed;

pub use choices::Choices;
pub use cluster::{Reached, cluster};
pub use hostile::hostile;
pub use packed::{packed, with_checksums};

/// A function of bytes that panics when something is wrong. It says whether the bytes got past the first checks, so that a test can tell
/// whether its inputs are any good.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: of the program in `fuzz/fuzz_targets`, and of the folder in `fuzz/corpus`.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]) -> bool,
}

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "cluster", run: |data| cluster(data).committed > 0 },
    Target { name: "hostile", run: hostile },
    Target { name: "packed", run: packed },
];
