//! What the protocol itself costs: three cores in one thread, messages handed over in memory, stable storage in memory.
//!
//! One iteration of `core/commit` proposes a batch of 256-byte commands to the leader and runs until all three servers have
//! committed and applied it. The time for each element is for all three servers together. The disk of this bench keeps what is
//! written, and its state machine reads every command, so that neither is left out.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

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

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_core::{
    Config, Entries, EntryKind, Envelope, Input, Instant, Membership, MembershipChange, NodeId, Output, Raft,
    ReadOutcome, Recovered,
};

const PAYLOAD: usize = 256;
const SERVERS: u64 = 3;
/// Writes that a disk remembers; a real one would be truncated by snapshots.
const KEPT_WRITES: usize = 4096;

struct Server {
    raft: Raft,
    inbox: Vec<Envelope>,
    disk: VecDeque<Entries>,
    commands: u64,
    checksum: u64,
    /// Reads that may be answered.
    reads: u64,
    /// Something was put into the core since its output was taken.
    dirty: bool,
}

struct Cluster {
    servers: Vec<Server>,
    now: Instant,
    leader: usize,
    messages: u64,
}

impl Cluster {
    /// Three servers, one of which was elected.
    fn new() -> Self {
        let ids = || (1..=SERVERS).map(NodeId);
        let now = Instant::from_millis(0);
        let server = |id| Server {
            raft: Raft::new(Config::new(id), Recovered::fresh(Membership::of_voters(ids())), now)
                .expect("the default configuration is valid"),
            inbox: Vec::new(),
            disk: VecDeque::new(),
            commands: 0,
            checksum: 0,
            reads: 0,
            dirty: true,
        };
        let mut cluster = Cluster { servers: ids().map(server).collect(), now, leader: 0, messages: 0 };
        while !cluster.servers.iter().any(|server| server.raft.is_leader()) {
            cluster.now = cluster.now + Duration::from_millis(1);
            for server in &mut cluster.servers {
                server.raft.step(cluster.now, Input::Wake);
                server.dirty = true;
            }
            cluster.run();
        }
        cluster.leader = cluster.servers.iter().position(|server| server.raft.is_leader()).unwrap_or_default();
        cluster.messages = 0;
        cluster
    }

    /// Proposes `commands` as one batch and runs until every server has applied them.
    fn commit(&mut self, commands: &[Bytes]) {
        // Time passes as it would at some ten thousand batches a second, so heartbeats have their share.
        self.now = self.now + Duration::from_micros(50);
        let expected = self.servers[0].commands + commands.len() as u64;
        let leader = &mut self.servers[self.leader];
        leader.raft.propose(self.now, commands).expect("the leader accepts commands");
        leader.dirty = true;
        self.run();
        assert!(self.servers.iter().all(|server| server.commands == expected), "not applied everywhere");
    }

    /// Asks the leader for `count` reads at once, and runs until it may answer all of them.
    fn read(&mut self, count: u64) {
        self.now = self.now + Duration::from_micros(50);
        let leader = &mut self.servers[self.leader];
        let expected = leader.reads + count;
        for _ in 0..count {
            leader.raft.read_index(self.now).expect("it leads");
        }
        leader.dirty = true;
        self.run();
        assert_eq!(self.servers[self.leader].reads, expected, "not all reads may be answered");
    }

    /// Changes the membership, and runs until the new one is committed and counts alone.
    fn change(&mut self, change: &MembershipChange) {
        self.now = self.now + Duration::from_micros(50);
        let leader = &mut self.servers[self.leader];
        leader.raft.change_membership(self.now, change).expect("the leader accepts the change");
        leader.dirty = true;
        self.run();
        let leader = &self.servers[self.leader].raft;
        let (index, membership) = leader.membership();
        assert!(!membership.is_joint() && leader.commit_index() >= index, "the change is not complete");
    }

    /// Carries out everything that follows, until nothing does.
    fn run(&mut self) {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for at in 0..self.servers.len() {
                let server = &mut self.servers[at];
                if !server.dirty && server.inbox.is_empty() {
                    continue;
                }
                busy = true;
                server.dirty = false;
                for message in server.inbox.drain(..) {
                    server.raft.step(self.now, Input::Message(message));
                }
                let output = server.raft.take_output();
                self.messages += output.messages.len() as u64;
                for message in server.carry_out(self.now, output) {
                    let to = message.to.0 as usize - 1;
                    self.servers[to].inbox.push(message);
                }
            }
        }
    }
}

impl Server {
    fn carry_out(&mut self, now: Instant, output: Output) -> Vec<Envelope> {
        if let Some(write) = output.write {
            self.disk.push_back(write.entries);
            if self.disk.len() > KEPT_WRITES {
                self.disk.pop_front();
            }
            self.raft.step(now, Input::Persisted(write.seq));
            self.dirty = true;
        }
        if let Some(last) = output.apply.last_index() {
            for entry in output.apply.iter().filter(|entry| entry.kind == EntryKind::Command) {
                self.commands += 1;
                self.checksum ^= entry.payload.iter().step_by(64).map(|&byte| u64::from(byte)).sum::<u64>();
            }
            self.raft.step(now, Input::Applied(last));
            self.dirty = true;
        }
        let ready = output.reads.iter().filter(|read| matches!(read, ReadOutcome::Ready { .. }));
        self.reads += ready.count() as u64;
        output.messages
    }
}

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
                let output = server.raft.take_output();
                took += begin.elapsed();
                assert!(output.write.as_ref().is_some_and(|write| write.log_start.is_some()), "nothing is forgotten");
                server.carry_out(cluster.now, output);
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
