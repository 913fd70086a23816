//! Tests with real `raft-node` processes.

mod clients;
mod cluster;
mod command_line;
#[path = "../../../raft-core/tests/it/corpus.rs"]
mod corpus;
mod failover;
#[path = "../../../raft-net/tests/it/frugal.rs"]
mod frugal;
mod fuzz;
mod groups;
mod history;
mod library;
mod members;
mod refusals;
mod review;
mod room;
mod sessions;
mod snapshots;
mod transfer;
