//! One server, driven by hand: the test plays everybody else.

use std::time::Duration;

use raft_core::{
    AppendAck, AppendEntries, Config, Entries, EntryKind, Envelope, Event, Input, Instant, LogId, LogIndex, Membership,
    Message, NodeId, Proposed, Raft, Recovered, Segment, Term, VoteReply, VoteRequest, Write, WriteSeq,
};

/// Server 1 of a cluster, with a disk that is quick unless told otherwise.
pub(crate) struct Server {
    pub(crate) raft: Raft,
    pub(crate) now: Instant,
    /// Writes complete at once; else they wait for [`Server::persist`].
    pub(crate) quick_disk: bool,
    pub(crate) writes: Vec<Write>,
    pub(crate) applied: Vec<LogId>,
    pub(crate) events: Vec<Event>,
    unfinished: Option<WriteSeq>,
}

pub(crate) fn config() -> Config {
    Config {
        election_timeout: Duration::from_millis(300),
        heartbeat_interval: Duration::from_millis(100),
        pre_vote: false,
        check_quorum: false,
        no_op_on_election: false,
        ..Config::new(NodeId(1))
    }
}

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term(term), LogIndex(index))
}

/// Entries that begin at `first`, with these terms.
pub(crate) fn entries(first: u64, terms: &[u64]) -> Entries {
    let mut entries = Entries::new();
    for (term, index) in terms.iter().zip(first..) {
        let payload = format!("command {index} of term {term}");
        let segment = Segment::pack(LogIndex(index), Term(*term), EntryKind::Command, &[payload]).expect("one entry");
        entries.push(segment).expect("ascending");
    }
    entries
}

/// An append of `terms` after `prev`.
pub(crate) fn append(seq: u64, prev: LogId, terms: &[u64], commit: u64) -> Message {
    let entries = entries(prev.index.next().0, terms);
    Message::AppendEntries(AppendEntries { epoch: 1, seq, prev_log: prev, leader_commit: LogIndex(commit), entries })
}

pub(crate) fn vote(election: u64, granted: bool) -> Message {
    Message::RequestVoteReply(VoteReply { election: Term(election), granted })
}

pub(crate) fn ask_vote(last_log: LogId) -> Message {
    Message::RequestVote(VoteRequest { last_log, transfer: false })
}

impl Server {
    /// A fresh server in a cluster of `voters`.
    pub(crate) fn new(voters: u64) -> Self {
        Server::with(config(), voters)
    }

    pub(crate) fn with(config: Config, voters: u64) -> Self {
        let recovered = Recovered::fresh(Membership::of_voters((1..=voters).map(NodeId)));
        let raft = Raft::new(config, recovered, Instant(0)).expect("the settings are fine");
        let (writes, applied, events) = (Vec::new(), Vec::new(), Vec::new());
        Server { raft, now: Instant(0), quick_disk: true, writes, applied, events, unfinished: None }
    }

    /// A server with these settings and an empty log that everyone has elected.
    pub(crate) fn leading_with(config: Config, voters: u64) -> (Self, Vec<Envelope>) {
        Server::with(config, voters).elected()
    }

    /// A server that got the entries of these terms from server 2, the leader of `term`.
    pub(crate) fn following(voters: u64, term: u64, terms: &[u64]) -> Self {
        let mut server = Server::new(voters);
        server.receive(2, term, append(1, LogId::ZERO, terms, 0));
        assert_eq!(server.raft.status().last_log.index, LogIndex(terms.len() as u64));
        server
    }

    /// A server with entries of these terms that was then elected leader by everyone.
    pub(crate) fn leading(voters: u64, terms: &[u64]) -> (Self, Vec<Envelope>) {
        let mut server = Server::new(voters);
        if let Some(last) = terms.last() {
            server.receive(2, *last, append(1, LogId::ZERO, terms, 0));
        }
        server.elected()
    }

    fn elected(mut self) -> (Self, Vec<Envelope>) {
        self.time_out();
        let term = self.term();
        let voters: Vec<NodeId> = self.raft.membership().1.voters().to_vec();
        let mut sent = Vec::new();
        for voter in voters.into_iter().filter(|voter| *voter != NodeId(1)) {
            sent.extend(self.receive(voter.0, term, vote(term, true)));
        }
        assert!(self.raft.is_leader());
        (self, sent)
    }

    pub(crate) fn term(&self) -> u64 {
        self.raft.current_term().0
    }

    pub(crate) fn last_log(&self) -> LogId {
        self.raft.status().last_log
    }

    pub(crate) fn commit(&self) -> u64 {
        self.raft.commit_index().0
    }

    /// What is in the log, as terms.
    pub(crate) fn log(&self) -> Vec<u64> {
        (1..=self.last_log().index.0).map(|i| self.raft.term_at(LogIndex(i)).expect("within the log").0).collect()
    }

    /// Match and next index of a follower.
    pub(crate) fn progress(&self, of: u64) -> (u64, u64) {
        let status = self.raft.status();
        let follower = status.followers.iter().find(|f| f.id == NodeId(of)).expect("leads, and has this follower");
        (follower.match_index.0, follower.next_index.0)
    }

    /// A message comes from server `from` in its `term`. Returns what is sent because of it.
    pub(crate) fn receive(&mut self, from: u64, term: u64, body: Message) -> Vec<Envelope> {
        self.step(Input::Message(Envelope { from: NodeId(from), to: NodeId(1), term: Term(term), body }))
    }

    pub(crate) fn step(&mut self, input: Input) -> Vec<Envelope> {
        self.raft.step(self.now, input);
        self.settle()
    }

    /// Time goes by, and nothing else happens.
    pub(crate) fn pass(&mut self, millis: u64) -> Vec<Envelope> {
        let until = self.now + Duration::from_millis(millis);
        let mut sent = Vec::new();
        while self.raft.deadline() <= until {
            self.now = self.raft.deadline();
            sent.extend(self.step(Input::Wake));
        }
        self.now = until;
        sent
    }

    /// The next timer goes off.
    pub(crate) fn time_out(&mut self) -> Vec<Envelope> {
        self.now = self.raft.deadline();
        self.step(Input::Wake)
    }

    pub(crate) fn propose(&mut self, commands: &[&str]) -> (Proposed, Vec<Envelope>) {
        let proposed = self.raft.propose(self.now, commands).expect("leads");
        (proposed, self.settle())
    }

    /// The disk finishes what it was given.
    pub(crate) fn persist(&mut self) -> Vec<Envelope> {
        match self.unfinished.take() {
            Some(seq) => self.step(Input::Persisted(seq)),
            None => Vec::new(),
        }
    }

    /// The driver's loop: save, send, apply.
    pub(crate) fn settle(&mut self) -> Vec<Envelope> {
        let mut sent = Vec::new();
        loop {
            let output = self.raft.take_output();
            self.raft.check_invariants();
            if output.is_empty() {
                return sent;
            }
            sent.extend(output.messages);
            self.events.extend(output.events);
            self.applied.extend(output.apply.iter().map(|entry| entry.id()));
            if let Some(last) = output.apply.last_index() {
                self.raft.step(self.now, Input::Applied(last));
            }
            if let Some(write) = output.write {
                self.unfinished = Some(write.seq);
                self.writes.push(write);
            }
            if self.quick_disk
                && let Some(seq) = self.unfinished.take()
            {
                self.raft.step(self.now, Input::Persisted(seq));
            }
        }
    }
}

/// Those of `sent` that went to server `to`.
pub(crate) fn to(sent: &[Envelope], to: u64) -> Vec<Message> {
    sent.iter().filter(|envelope| envelope.to == NodeId(to)).map(|envelope| envelope.body.clone()).collect()
}

/// The appends among what was sent to server `to`.
pub(crate) fn appends(sent: &[Envelope], server: u64) -> Vec<AppendEntries> {
    to(sent, server)
        .into_iter()
        .filter_map(|body| match body {
            Message::AppendEntries(append) => Some(append),
            _ => None,
        })
        .collect()
}

/// The acknowledgement of everything up to the end of an append.
pub(crate) fn ack(append: &AppendEntries) -> Message {
    let match_index = append.prev_log.index + append.entries.len() as u64;
    Message::AppendAck(AppendAck { epoch: append.epoch, match_index })
}
