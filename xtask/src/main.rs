//! `cargo xtask`: everything one does with this repository besides editing it.
#![forbid(unsafe_code)]
mod report;
mod rocksdb;
mod workspace;
fn main() -> anyhow::Result<()> { rocksdb::setup() }
