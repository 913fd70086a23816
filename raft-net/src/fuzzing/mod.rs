//! Fuzz targets: functions of bytes that assert what must hold whatever the bytes are.
//!
//! The programs in `fuzz/` hand them what libFuzzer thinks of; the tests replay the corpus and run them as property tests. Behind the
//! feature `fuzzing`, and no part of the crate's interface.

mod frames;
mod messages;
mod names;
mod streams;

pub use frames::frames;
pub use messages::messages;
pub use names::names;
pub use raft_core::fuzzing::Target;
pub use streams::streams;

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: frames },
    Target { name: "messages", run: messages },
    Target { name: "names", run: names },
    Target { name: "streams", run: streams },
];
