//! Fuzz targets: functions of bytes that assert what must hold whatever the bytes are.
//!
//! The programs in `fuzz/` hand them what libFuzzer thinks of; the tests replay the corpus and run them as property tests. Behind the
//! feature `fuzzing`, and no part of the crate's interface.

mod commands;
mod config;
mod frames;

pub use commands::commands;
pub use config::config;
pub use frames::{requests, responses};
pub use raft_core::fuzzing::Target;

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "commands", run: commands },
    Target { name: "config", run: config },
    Target { name: "requests", run: requests },
    Target { name: "responses", run: responses },
];
