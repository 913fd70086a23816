//! What the protocol itself costs: three cores in one thread, messages handed over in memory, stable storage in memory.
//!
//! One iteration of `core/commit` proposes a batch of 256-byte commands to the leader and runs until all three servers have
//! committed and applied it. The time for each element is for all three servers together. The disk of this bench keeps what is
//! written, and its state machine reads every command, so that neither is left out.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

#[path = "core/cluster.rs"]
mod cluster;
#[cfg(feature = "raft-rs")]
#[allow(dead_code, unused_imports, reason = "the load generator needs and tests all of it")]
#[path = "../src/machine.rs"]
mod machine;
#[cfg(feature = "raft-rs")]
#[path = "core/raft_rs.rs"]
mod raft_rs;
#[cfg(feature = "raft-rs")]
#[allow(dead_code, unused_imports, reason = "the load generator needs and tests all of it")]
#[path = "../src/ratio.rs"]
mod ratio;
#[cfg(feature = "raft-rs")]
#[path = "core/versus.rs"]
mod versus;

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use cluster::{Cluster, SERVERS};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_core::{MembershipChange, NodeId};

const PAYLOAD: usize = 256;

fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/commit");
    for batch in [1, 16, 256] {
        let commands: Vec<Bytes> = (0..batch).map(|i| Bytes::from(vec![i as u8; PAYLOAD])).collect();
        let mut cluster = Cluster::new();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| b.iter(|| cluster.commit(&commands)));
        let commands = cluster.servers[0].commands;
        eprintln!("core/commit/{batch}: {:.2} messages a command", cluster.messages as f64 / commands as f64);
        black_box(cluster.servers.iter().map(|server| server.checksum).sum::<u64>());
    }
    group.finish();
}

/// Beside raft-rs, in turn (feature `raft-rs`).
#[cfg(feature = "raft-rs")]
fn beside(c: &mut Criterion) {
    versus::commit(c);
}

#[cfg(not(feature = "raft-rs"))]
fn beside(_: &mut Criterion) {}

/// Reads that arrive together share one round of heartbeats (ReadIndex).
fn read(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/read_index");
    for count in [1, 1000] {
        let mut cluster = Cluster::new();
        group.throughput(Throughput::Elements(count));
        let before = cluster.messages;
        let mut rounds = 0;
        group.bench_function(BenchmarkId::new("reads on one round", count), |b| {
            b.iter(|| {
                rounds += 1;
                cluster.read(count);
            });
        });
        let messages = (cluster.messages - before) as f64;
        eprintln!("core/read_index/{count}: {:.1} messages a round", messages / f64::from(rounds.max(1)));
    }
    group.finish();
}

/// A voter becomes a learner and a voter again: each is a joint change, of two entries.
fn membership(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/membership");
    let mut cluster = Cluster::new();
    let other = (1..=SERVERS).map(NodeId).find(|id| id.0 as usize != cluster.leader + 1).expect("there are three");
    let changes = [MembershipChange::new().learner(other), MembershipChange::new().voter(other)];
    let mut turn = changes.iter().cycle();
    group.throughput(Throughput::Elements(1));
    group.bench_function("joint change", |b| {
        b.iter(|| turn.next().into_iter().for_each(|change| cluster.change(change)));
    });
    group.finish();
}

/// What the core does for a snapshot: the log is forgotten up to what the state machine has, 1024 entries a time.
fn compact(c: &mut Criterion) {
    const ENTRIES: u64 = 1024;
    let commands: Vec<Bytes> = (0..16).map(|i| Bytes::from(vec![i; PAYLOAD])).collect();
    let mut cluster = Cluster::new();
    let mut group = c.benchmark_group("core/compact");
    group.bench_function(BenchmarkId::new("entries", ENTRIES), |b| {
        b.iter_custom(|iterations| {
            let mut took = Duration::ZERO;
            for _ in 0..iterations {
                for _ in 0..ENTRIES / 16 {
                    cluster.commit(&commands);
                }
                let server = &mut cluster.servers[cluster.leader];
                let begin = std::time::Instant::now();
                server.raft.compact(server.raft.applied_index());
                let mut output = server.raft.take_output();
                took += begin.elapsed();
                assert!(output.write.as_ref().is_some_and(|write| write.log_start.is_some()), "nothing is forgotten");
                server.carry_out(cluster.now, &mut output);
            }
            took
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(40);
    targets = commit, beside, read, membership, compact
}
criterion_main!(benches);
