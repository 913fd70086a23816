//! Real processes, real disks, real packets, and faults of every kind: `cargo xtask chaos`.
//!
//! Starts a cluster of `raft-node` processes whose packets to one another go through proxies, puts clients on it, and lets a schedule of faults
//! loose that is a function of the seed. Meanwhile leadership is handed over, logs are compacted, members are removed and added, and disks are lost.
//! At the end everything heals; then the cluster must recover, every client's history must be linearizable, every acknowledged write must be on
//! every node, once, and all nodes must hold the same.
//!
//! The faults repeat with the seed. What they hit does not: processes, disks and packets have a timing of their own.

#![forbid(unsafe_code)]

#[cfg(unix)]
mod admin;
#[cfg(unix)]
mod arena;
#[cfg(unix)]
mod clients;
#[cfg(unix)]
mod cluster;
#[cfg(unix)]
mod deck;
#[cfg(unix)]
mod deeds;
#[cfg(unix)]
mod disk;
#[cfg(unix)]
mod history;
#[cfg(unix)]
mod journal;
#[cfg(unix)]
mod monitor;
#[cfg(unix)]
mod nemesis;
#[cfg(unix)]
mod program;
#[cfg(unix)]
mod proxy;
#[cfg(unix)]
mod report;
#[cfg(unix)]
mod scenarios;
#[cfg(unix)]
mod schedule;

use std::process::ExitCode;

#[cfg(unix)]
fn main() -> ExitCode {
    program::main()
}

#[cfg(not(unix))]
fn main() -> ExitCode {
    eprintln!("error: chaos stops, continues and kills processes by signals, which only Unix has");
    ExitCode::FAILURE
}
