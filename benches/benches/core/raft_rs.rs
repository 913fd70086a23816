//! The same with raft-rs: three of its nodes in one thread, messages handed over in memory, its own storage in memory.
//!
//! In the mode that suits it best: a batch is proposed as one message, entries share their bytes, append messages may hold a whole batch and be many at a time,
//! everything that its storage keeps counts as durable at once, and its log says nothing.

use bytes::Bytes;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};
use raft::storage::MemStorage;
use raft::{Config, RawNode, StateRole};

const SERVERS: u64 = 3;
/// Entries after which the log is forgotten, up to what is applied everywhere, and those that stay. Few: the protocol is measured, not
/// what it costs to reach memory that the processor's caches do not hold.
const COMPACTED_AFTER: u64 = 1024;
const KEPT: u64 = 256;
/// Batches after which a tick of 100 ms is over, as the other cluster counts time.
const BATCHES_PER_TICK: u64 = 2000;

struct Server {
    node: RawNode<MemStorage>,
    store: MemStorage,
    commands: u64,
    applied: u64,
    checksum: u64,
}

/// Three nodes, one of which was elected.
pub(crate) struct Cluster {
    servers: Vec<Server>,
    leader: usize,
    batches: u64,
    compacted: u64,
    /// Handed over so far.
    pub(crate) messages: u64,
}

impl Cluster {
    pub(crate) fn new() -> Self {
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let server = |id| {
            let store = MemStorage::new_with_conf_state(((1..=SERVERS).collect::<Vec<u64>>(), Vec::new()));
            let config = Config {
                id,
                election_tick: 10,
                heartbeat_tick: 1,
                max_size_per_msg: 1 << 20,
                max_inflight_msgs: 1024,
                check_quorum: true,
                pre_vote: true,
                batch_append: true,
                ..Config::default()
            };
            let node = RawNode::new(&config, store.clone(), &logger).expect("the configuration is valid");
            Server { node, store, commands: 0, applied: 0, checksum: 0 }
        };
        let servers = (1..=SERVERS).map(server).collect();
        let mut cluster = Cluster { servers, leader: 0, batches: 0, compacted: 0, messages: 0 };
        cluster.servers[0].node.campaign().expect("it may campaign");
        cluster.run();
        assert_eq!(cluster.servers[0].node.raft.state, StateRole::Leader, "it is not elected");
        cluster.messages = 0;
        cluster
    }

    /// Commands that are applied.
    pub(crate) fn commands(&self) -> u64 {
        self.servers[0].commands
    }

    /// Something that depends on every command.
    pub(crate) fn checksum(&self) -> u64 {
        self.servers.iter().map(|server| server.checksum).sum()
    }

    /// Proposes `commands` as one batch and runs until every node has applied them.
    pub(crate) fn commit(&mut self, commands: &[Bytes]) {
        let expected = self.commands() + commands.len() as u64;
        self.batches += 1;
        if self.batches.is_multiple_of(BATCHES_PER_TICK) {
            self.servers.iter_mut().for_each(|server| {
                server.node.tick();
            });
        }
        let leader = &mut self.servers[self.leader].node;
        let entries = commands.iter().map(|command| Entry { data: command.clone(), ..Entry::default() });
        let mut message = Message::default();
        message.set_msg_type(MessageType::MsgPropose);
        message.from = leader.raft.id;
        message.entries = entries.collect::<Vec<Entry>>().into();
        leader.raft.step(message).expect("the leader accepts commands");
        self.run();
        assert!(self.servers.iter().all(|server| server.commands == expected), "not applied everywhere");
        let applied = self.servers.iter().map(|server| server.applied).min().unwrap_or_default();
        if applied > self.compacted + COMPACTED_AFTER {
            self.compacted = applied - KEPT;
            for server in &self.servers {
                server.store.wl().compact(self.compacted).expect("it has that");
            }
        }
    }

    /// Carries out everything that follows, until nothing does.
    fn run(&mut self) {
        let mut busy = true;
        while std::mem::take(&mut busy) {
            for at in 0..self.servers.len() {
                let server = &mut self.servers[at];
                if !server.node.has_ready() {
                    continue;
                }
                busy = true;
                for message in server.carry_out().into_iter().flatten() {
                    self.messages += 1;
                    let to = &mut self.servers[message.to as usize - 1];
                    to.node.step(message).expect("it comes from a member");
                }
            }
        }
    }
}

impl Server {
    fn carry_out(&mut self) -> [Vec<Message>; 3] {
        let mut ready = self.node.ready();
        let messages = ready.take_messages();
        self.apply(&ready.take_committed_entries());
        {
            let mut store = self.store.wl();
            store.append(ready.entries()).expect("the entries follow each other");
            if let Some(state) = ready.hs() {
                store.set_hardstate(state.clone());
            }
        }
        let promises = ready.take_persisted_messages();
        let mut light = self.node.advance_append(ready);
        let replies = light.take_messages();
        self.apply(&light.take_committed_entries());
        self.node.advance_apply();
        [messages, promises, replies]
    }

    fn apply(&mut self, entries: &[Entry]) {
        let commands =
            entries.iter().filter(|entry| entry.get_entry_type() == EntryType::EntryNormal && !entry.data.is_empty());
        for entry in commands {
            self.commands += 1;
            self.checksum ^= entry.data.iter().step_by(64).map(|&byte| u64::from(byte)).sum::<u64>();
        }
        self.applied = entries.last().map_or(self.applied, |last| last.index);
    }
}
