//! `cargo xtask setup`: makes this machine and this clone ready to build.

use std::time::Instant;

use anyhow::Result;

use crate::report::human;
use crate::{prerequisites, rocksdb};

/// Makes this machine ready to build: C++ compiler, libclang, pkg-config, and a compiled RocksDB.
///
/// Installs what is missing with apt-get when this user may (root, or sudo without a password), otherwise prints the line to type. Compiles
/// RocksDB once for this machine into ~/.cache/raft-xtask (15 minutes on 2 cores the first time, nothing after that) and writes
/// .cargo/rocksdb.toml, so that every cargo call in this clone uses it. All other commands do this first.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Do not use the compiled RocksDB: remove .cargo/rocksdb.toml, cargo then compiles RocksDB for each profile
    #[arg(long)]
    no_cache: bool,
}

/// Entry point of the subcommand.
pub(crate) fn command(args: &Args) -> Result<()> {
    let started = Instant::now();
    run(args.no_cache)?;
    eprintln!("ready to build ({})", human(started.elapsed()));
    Ok(())
}

/// The same, without a word when there is nothing to do.
pub(crate) fn run(no_cache: bool) -> Result<()> {
    prerequisites::ensure()?;
    // Set for one command or for good: without the cache everything still works, only slower.
    if no_cache || std::env::var_os("RAFT_XTASK_NO_CACHE").is_some() { rocksdb::disable() } else { rocksdb::setup() }
}
