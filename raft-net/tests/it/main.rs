//! Integration tests of `raft-net`: real sockets on the loopback interface, real certificates.

mod client;
mod cluster;
mod golden;
mod hostile;
mod support;
