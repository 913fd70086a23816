//! Integration tests of `raft-net`: real sockets on the loopback interface, real certificates.

mod client;
mod cluster;
#[path = "../../../raft-core/tests/it/corpus.rs"]
mod corpus;
mod frugal;
mod fuzz;
mod golden;
mod hostile;
mod refusals;
mod snapshots;
mod support;
