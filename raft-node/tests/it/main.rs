//! Tests with real `raft-node` processes.

mod cluster;
mod command_line;
mod failover;
mod history;
