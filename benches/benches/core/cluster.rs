//! Three of our cores in one thread: messages handed over in memory, stable storage in memory.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    Config, Entries, EntryKind, Input, Instant, LogIndex, Membership, MembershipChange, NodeId, Output, Raft,
    ReadOutcome, Recovered,
};

pub(crate) const SERVERS: u64 = 3;
/// Entries after which the log is forgotten, up to what is applied everywhere, and those that stay. Few: the protocol is measured, not
/// what it costs to reach memory that the processor's caches do not hold. As in the cluster of raft-rs.
const COMPACTED_AFTER: u64 = 1024;
const KEPT: u64 = 256;

/// One of the servers, with its disk and its state machine.
pub(crate) struct Server {
    pub(crate) raft: Raft,
    disk: VecDeque<Entries>,
    pub(crate) commands: u64,
    pub(crate) checksum: u64,
    /// Reads that may be answered.
    reads: u64,
}

/// Three servers in one thread.
pub(crate) struct Cluster {
    pub(crate) servers: Vec<Server>,
    pub(crate) now: Instant,
    pub(crate) leader: usize,
    compacted: LogIndex,
    /// What is being carried out.
    output: Output,
    /// Handed over so far.
    pub(crate) messages: u64,
}

impl Cluster {
    /// Three servers, one of which was elected.
    pub(crate) fn new() -> Self {
        let ids = || (1..=SERVERS).map(NodeId);
        let now = Instant::from_millis(0);
        let server = |id| Server {
            raft: Raft::new(Config::new(id), Recovered::fresh(Membership::of_voters(ids())), now)
                .expect("the default configuration is valid"),
            disk: VecDeque::new(),
            commands: 0,
            checksum: 0,
            reads: 0,
        };
        let mut cluster = Cluster {
            servers: ids().map(server).collect(),
            now,
            leader: 0,
            compacted: LogIndex::ZERO,
            output: Output::default(),
            messages: 0,
        };
        while !cluster.servers.iter().any(|server| server.raft.is_leader()) {
            cluster.now = cluster.now + Duration::from_millis(1);
            for server in &mut cluster.servers {
                server.raft.step(cluster.now, Input::Wake);
            }
            cluster.run();
        }
        cluster.leader = cluster.servers.iter().position(|server| server.raft.is_leader()).unwrap_or_default();
        cluster.messages = 0;
        cluster
    }

    /// Proposes `commands` as one batch and runs until every server has applied them.
    pub(crate) fn commit(&mut self, commands: &[Bytes]) {
        // Time passes as it would at some ten thousand batches a second, so heartbeats have their share.
        self.now = self.now + Duration::from_micros(50);
        let expected = self.servers[0].commands + commands.len() as u64;
        let leader = &mut self.servers[self.leader];
        leader.raft.propose(self.now, commands).expect("the leader accepts commands");
        self.run();
        assert!(self.servers.iter().all(|server| server.commands == expected), "not applied everywhere");
        self.compact();
    }

    /// Forgets the beginning of the log, when it has grown for a while.
    fn compact(&mut self) {
        let applied = self.servers.iter().map(|server| server.raft.applied_index()).min().unwrap_or_default();
        if applied - self.compacted > COMPACTED_AFTER {
            self.compacted = LogIndex(applied.0 - KEPT);
            for server in &mut self.servers {
                server.raft.compact(self.compacted);
            }
            self.run();
        }
    }

    /// Asks the leader for `count` reads at once, and runs until it may answer all of them.
    pub(crate) fn read(&mut self, count: u64) {
        self.now = self.now + Duration::from_micros(50);
        let leader = &mut self.servers[self.leader];
        let expected = leader.reads + count;
        for _ in 0..count {
            leader.raft.read_index(self.now).expect("it leads");
        }
        self.run();
        assert_eq!(self.servers[self.leader].reads, expected, "not all reads may be answered");
    }

    /// Changes the membership, and runs until the new one is committed and counts alone.
    pub(crate) fn change(&mut self, change: &MembershipChange) {
        self.now = self.now + Duration::from_micros(50);
        let leader = &mut self.servers[self.leader];
        leader.raft.change_membership(self.now, change).expect("the leader accepts the change");
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
                let (server, output) = (&mut self.servers[at], &mut self.output);
                if !server.raft.has_output() {
                    continue;
                }
                busy = true;
                server.raft.take_output_into(output);
                server.carry_out(self.now, output);
                self.messages += output.messages.len() as u64;
                for message in &mut output.messages {
                    self.servers[message.to.0 as usize - 1].raft.step_message(self.now, message);
                }
            }
        }
    }
}

impl Server {
    /// All but the messages.
    pub(crate) fn carry_out(&mut self, now: Instant, output: &mut Output) {
        if let Some(write) = &mut output.write {
            if let Some(start) = &write.log_start {
                let forgotten = |entries: &Entries| entries.last_index().is_some_and(|last| last <= start.last.index);
                self.disk.drain(..self.disk.partition_point(forgotten));
            }
            if !write.entries.is_empty() {
                self.disk.push_back(std::mem::take(&mut write.entries));
            }
            self.raft.step(now, Input::Persisted(write.seq));
        }
        if let Some(last) = output.apply.last_index() {
            for entry in output.apply.iter().filter(|entry| entry.kind == EntryKind::Command) {
                self.commands += 1;
                self.checksum ^= entry.payload.iter().step_by(64).map(|&byte| u64::from(byte)).sum::<u64>();
            }
            // Nothing follows from it at once: it goes in with what comes next, as in a node.
            self.raft.step(now, Input::Applied(last));
        }
        let ready = output.reads.iter().filter(|read| matches!(read, ReadOutcome::Ready { .. }));
        self.reads += ready.count() as u64;
    }
}
