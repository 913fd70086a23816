//! Tests with real `raft-node` processes.

mod clients;
mod cluster;
mod command_line;
mod failover;
mod history;
mod review;
