//! Input that makes no sense: dropped, without a panic and without a trace in the state.

use bytes::Bytes;
use raft_core::sim::schedule::Dice;
use raft_core::{
    Anomaly, AppendAck, AppendEntries, AppendReject, Entries, EntryKind, Envelope, Event, FetchId, Heartbeat,
    HeartbeatReply, Input, Instant, LogId, LogIndex, Message, NodeId, ReadIndex, ReadIndexReply, Segment, Status, Term,
    TimeoutNow, VoteReply, VoteRequest, WriteSeq,
};

use crate::hand::{Server, append, appends, ask_vote, entries, id, vote};

/// What must not change.
fn essence(server: &Server) -> (Term, Option<NodeId>, LogId, LogIndex) {
    let Status { current_term, voted_for, last_log, commit_index, .. } = server.raft.status();
    (current_term, voted_for, last_log, commit_index)
}

/// The anomalies that were reported.
fn anomalies(server: &Server) -> Vec<Anomaly> {
    server
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Rejected { reason, .. } => Some(*reason),
            _ => None,
        })
        .collect()
}

#[track_caller]
fn changes_nothing(server: &mut Server, input: &Input, anomaly: Option<Anomaly>) {
    let before = essence(server);
    server.events.clear();
    let sent = server.step(input.clone());
    assert_eq!(essence(server), before, "{input:?}");
    assert_eq!(anomalies(server), anomaly.into_iter().collect::<Vec<_>>(), "{input:?}");
    assert!(anomaly.is_none() || sent.is_empty(), "{input:?} was answered with {sent:?}");
}

fn message(from: u64, to: u64, term: u64, body: Message) -> Input {
    Input::Message(Envelope { from: NodeId(from), to: NodeId(to), term: Term(term), body })
}

#[test]
fn nobody_and_oneself_are_not_heard() {
    for from in [0, 1] {
        let mut server = Server::following(3, 2, &[1, 2]);
        for body in [ask_vote(id(99, 99)), append(9, id(2, 2), &[3], 3), vote(3, true)] {
            changes_nothing(&mut server, &message(from, 1, 99, body), Some(Anomaly::Stranger));
        }
        changes_nothing(&mut server, &Input::LinkReset(NodeId(from)), None);
    }
}

#[test]
fn messages_for_others_are_not_taken() {
    let mut server = Server::following(3, 2, &[1, 2]);
    changes_nothing(&mut server, &message(2, 3, 99, ask_vote(id(99, 99))), Some(Anomaly::Misaddressed));
}

#[test]
fn terms_and_indices_beyond_belief_are_not_believed() {
    let bodies = || {
        [
            ask_vote(id(2, 2)),
            append(9, id(2, 2), &[], 0),
            vote(2, true),
            Message::PreVote(VoteRequest { last_log: id(2, 2), transfer: false }),
            Message::TimeoutNow(TimeoutNow { last_log: id(2, 2) }),
            Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(1) }),
        ]
    };
    for term in [u64::MAX, Term::MAX.0 + 1] {
        for body in bodies() {
            let mut server = Server::following(3, 2, &[1, 2]);
            changes_nothing(&mut server, &message(3, 1, term, body), Some(Anomaly::OutOfRange));
        }
    }
    for last in [id(u64::MAX, 1), id(2, u64::MAX)] {
        let mut server = Server::following(3, 2, &[1, 2]);
        changes_nothing(&mut server, &message(3, 1, 9, ask_vote(last)), Some(Anomaly::OutOfRange));
        changes_nothing(&mut server, &message(2, 1, 2, append(2, last, &[], 0)), Some(Anomaly::OutOfRange));
    }
}

#[test]
fn the_last_term_ends_elections_without_a_panic() {
    let mut server = Server::new(3);
    server.receive(2, Term::MAX.0, append(1, LogId::ZERO, &[], 0));
    assert_eq!(server.raft.current_term(), Term::MAX);
    for _ in 0..3 {
        assert!(server.time_out().is_empty(), "there is no later term to stand in");
    }
}

#[test]
fn appends_that_contradict_themselves_are_not_taken() {
    let malformed = |prev_log, entries| {
        Message::AppendEntries(AppendEntries { epoch: 1, seq: 9, prev_log, leader_commit: LogIndex(0), entries })
    };
    let cases = [
        (malformed(id(2, 2), entries(4, &[2])), "a gap"),
        (malformed(id(2, 2), entries(2, &[2])), "an overlap"),
        (malformed(id(2, 2), entries(3, &[1])), "a falling term"),
        (malformed(id(2, 2), entries(3, &[3])), "a term above the leader's"),
    ];
    for (body, what) in cases {
        let mut server = Server::following(3, 2, &[1, 2]);
        changes_nothing(&mut server, &message(2, 1, 2, body), Some(Anomaly::MalformedEntries));
        assert_eq!(server.log(), [1, 2], "{what}");
    }
}

#[test]
fn committed_entries_cannot_be_overwritten() {
    let mut server = Server::following(3, 1, &[1, 1, 1]);
    server.receive(2, 1, append(2, id(1, 3), &[], 2));
    assert_eq!(server.commit(), 2);
    server.receive(3, 5, append(1, LogId::ZERO, &[], 0));
    changes_nothing(&mut server, &message(3, 1, 5, append(2, id(1, 1), &[5], 0)), Some(Anomaly::CommittedConflict));
}

#[test]
fn a_second_leader_of_a_term_is_not_followed() {
    let mut server = Server::following(3, 2, &[1, 2]);
    changes_nothing(&mut server, &message(3, 1, 2, append(9, id(2, 2), &[2], 0)), Some(Anomaly::TwoLeaders));
    let (mut leader, _) = Server::leading(3, &[]);
    changes_nothing(&mut leader, &message(2, 1, 1, append(9, LogId::ZERO, &[1], 0)), Some(Anomaly::TwoLeaders));
    assert!(leader.raft.is_leader());
}

#[test]
fn commit_indices_beyond_the_log_commit_nothing_that_is_not_there() {
    let mut server = Server::following(3, 2, &[1, 2]);
    server.receive(2, 2, append(2, id(2, 2), &[], 1 << 40));
    assert_eq!(server.commit(), 2, "what matches is committed, and no more");
    let mut server = Server::following(3, 2, &[1, 2]);
    let heartbeat = Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(9), round: None });
    changes_nothing(&mut server, &message(2, 1, 2, heartbeat), Some(Anomaly::CommitBeyondLog));
}

#[test]
fn acknowledgements_of_what_was_never_sent_commit_nothing() {
    let (mut leader, _) = Server::leading(3, &[]);
    leader.propose(&["x"]);
    let ack = |epoch, index| Message::AppendAck(AppendAck { epoch, match_index: LogIndex(index) });
    changes_nothing(&mut leader, &message(2, 1, 1, ack(1, 2)), Some(Anomaly::AckBeyondLog));
    changes_nothing(&mut leader, &message(2, 1, 1, ack(1, u64::MAX)), Some(Anomaly::AckBeyondLog));
    changes_nothing(&mut leader, &message(2, 1, 1, ack(77, 1)), None);
    assert_eq!(leader.progress(2).0, 0);
}

#[test]
fn replies_to_nothing_are_dropped() {
    let replies = [
        vote(2, true),
        Message::PreVoteReply(VoteReply { election: Term(3), granted: true }),
        Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(2) }),
        Message::AppendReject(AppendReject {
            epoch: 1,
            seq: 1,
            last_index: LogIndex(0),
            commit_index: LogIndex(0),
            runs: Vec::new(),
        }),
        Message::HeartbeatReply(HeartbeatReply {
            epoch: 1,
            round: 9,
            received: LogIndex(2),
            match_index: LogIndex(2),
            promise_ms: 0,
            priority: 0,
            vigil: 1,
        }),
    ];
    for body in replies {
        let mut server = Server::following(3, 2, &[1, 2]);
        changes_nothing(&mut server, &message(2, 1, 2, body), None);
        assert!(!server.raft.is_leader());
    }
}

#[test]
fn duplicates_change_nothing_the_second_time() {
    let mut server = Server::following(3, 2, &[1, 2]);
    let message = message(2, 1, 2, append(2, id(2, 2), &[2, 2], 3));
    server.step(message.clone());
    let after = essence(&server);
    server.step(message);
    assert_eq!(essence(&server), after);
    assert_eq!(server.applied, [id(1, 1), id(2, 2), id(2, 3)]);
}

#[test]
fn a_refusal_with_impossible_runs_moves_nothing() {
    let (mut leader, sent) = Server::leading(3, &[1, 1, 1]);
    let probe = appends(&sent, 2).remove(0);
    let before = leader.progress(2);
    let reject = AppendReject {
        epoch: probe.epoch,
        seq: probe.seq,
        last_index: LogIndex(3),
        commit_index: LogIndex(u64::MAX),
        runs: vec![id(9, 9), id(1, 1)],
    };
    changes_nothing(&mut leader, &message(2, 1, 2, Message::AppendReject(reject)), Some(Anomaly::AckBeyondLog));
    assert_eq!(leader.progress(2), before);
}

#[test]
fn a_driver_that_reports_what_was_never_handed_out_is_told_so() {
    let mut server = Server::following(3, 2, &[1, 2]);
    changes_nothing(&mut server, &Input::Persisted(WriteSeq(u64::MAX)), Some(Anomaly::Driver));
    changes_nothing(&mut server, &Input::Applied(LogIndex(2)), Some(Anomaly::Driver));
    changes_nothing(&mut server, &Input::Fetched { id: FetchId(7), entries: entries(1, &[1]) }, None);
}

#[test]
fn time_that_runs_backwards_stands_still() {
    let mut server = Server::new(3);
    server.time_out();
    let deadline = server.raft.deadline();
    server.now = Instant(0);
    server.step(Input::Wake);
    assert_eq!((server.term(), server.raft.deadline()), (1, deadline));
}

/// Arbitrary input, much of it nearly right.
struct Fuzz {
    dice: Dice,
    /// Nobody else leads or asks for votes for a while, so that this server can.
    quiet: bool,
}

impl Fuzz {
    fn small(&mut self, near: u64) -> u64 {
        match self.dice.between(0, 19) {
            0 => u64::MAX,
            1 => Term::MAX.0,
            2 => 0,
            3..=5 => self.dice.between(0, 12),
            _ => near.saturating_add(self.dice.between(0, 4)).saturating_sub(2),
        }
    }

    fn log_id(&mut self, server: &Server) -> LogId {
        let index = self.small(server.last_log().index.0);
        match server.raft.term_at(LogIndex(index)) {
            Some(term) if self.dice.chance(3, 4) => LogId::new(term, LogIndex(index)),
            _ => id(self.small(server.term()), index),
        }
    }

    fn entries(&mut self, after: LogId) -> Entries {
        let mut entries = Entries::new();
        let (mut index, mut term) = (after.index.0.saturating_add(1), after.term.0);
        if self.dice.chance(1, 10) {
            index = self.small(index).min(1 << 40);
        }
        for _ in 0..self.dice.between(0, 4) {
            term = term.saturating_add(self.dice.between(0, 5) / 4);
            let payload = Bytes::from(vec![b'x'; self.dice.between(0, 20) as usize]);
            let segment = Segment::pack(LogIndex(index), Term(term), EntryKind::Command, &[payload]).expect("small");
            if entries.push(segment).is_err() {
                break;
            }
            index = index.saturating_add(1);
        }
        entries
    }

    fn body(&mut self, server: &Server) -> Message {
        let last = server.last_log().index.0;
        let (epoch, seq) = (self.dice.between(0, 40), self.dice.between(0, 12));
        let request = VoteRequest { last_log: self.log_id(server), transfer: self.dice.chance(1, 2) };
        // An election of this term, or a pre-vote for the next.
        let election = server.term() + self.dice.between(0, 1);
        let election = Term(if self.dice.chance(1, 2) { election } else { self.small(election) });
        let reply = VoteReply { election, granted: self.dice.chance(4, 5) };
        let kind = if self.quiet { [2, 3, 4, 5, 7][self.dice.pick(5)] } else { self.dice.between(0, 12) };
        match kind {
            0 => Message::PreVote(request),
            1 => Message::RequestVote(request),
            2 => Message::PreVoteReply(reply),
            3 => Message::RequestVoteReply(reply),
            4 => Message::AppendAck(AppendAck { epoch, match_index: LogIndex(self.small(last)) }),
            5 => Message::AppendReject(AppendReject {
                epoch,
                seq,
                last_index: LogIndex(self.small(last)),
                commit_index: LogIndex(self.small(server.commit())),
                runs: (0..self.dice.between(0, 3)).map(|_| self.log_id(server)).collect(),
            }),
            6 => Message::Heartbeat(Heartbeat {
                epoch,
                commit: LogIndex(self.small(server.commit())),
                round: self.dice.chance(1, 2).then(|| self.small(3)),
            }),
            7 => Message::HeartbeatReply(HeartbeatReply {
                epoch,
                round: self.small(3),
                received: LogIndex(self.small(last)),
                match_index: LogIndex(self.small(last)),
                promise_ms: self.small(300) as u32,
                priority: self.dice.between(0, 2) as u8,
                vigil: 1,
            }),
            8 => Message::TimeoutNow(TimeoutNow { last_log: self.log_id(server) }),
            9 => Message::ReadIndex(ReadIndex { id: self.small(1) }),
            10 => Message::ReadIndexReply(ReadIndexReply { id: self.small(1), index: LogIndex(self.small(last)) }),
            _ => {
                let prev_log = self.log_id(server);
                let entries = self.entries(prev_log);
                let leader_commit = LogIndex(self.small(server.commit()));
                Message::AppendEntries(AppendEntries { epoch, seq, prev_log, leader_commit, entries })
            }
        }
    }

    fn input(&mut self, server: &Server) -> Input {
        match self.dice.between(0, 30) {
            0 => Input::Persisted(WriteSeq(self.small(3))),
            1 => Input::Applied(LogIndex(self.small(server.commit()))),
            2 => {
                let after = self.log_id(server);
                Input::Fetched { id: FetchId(self.small(2)), entries: self.entries(after) }
            }
            3 => Input::LinkReset(NodeId(self.dice.between(0, 5))),
            4..=6 => Input::Wake,
            _ => {
                let from = if self.dice.chance(1, 50) { self.small(3) } else { self.dice.between(2, 5) };
                // Terms creep upwards, so that there is time for things to happen within one.
                let often = if self.quiet { 49 } else { 9 };
                let term = if self.dice.chance(often, often + 1) { server.term() } else { self.small(server.term()) };
                let term = if term > 1 << 50 && self.dice.chance(99, 100) { server.term() } else { term };
                message(from, 1, term, self.body(server))
            }
        }
    }
}

/// A hundred thousand inputs of all sorts: no panic, and what a server promises for life holds.
#[test]
fn arbitrary_input_never_panics_and_never_breaks_a_promise() {
    let mut led = 0;
    for seed in 0..100 {
        let mut fuzz = Fuzz { dice: Dice::new(seed, 9), quiet: false };
        let switch = |fuzz: &mut Fuzz| fuzz.dice.chance(1, 2);
        let config = raft_core::Config {
            seed,
            pre_vote: switch(&mut fuzz),
            check_quorum: switch(&mut fuzz),
            no_op_on_election: switch(&mut fuzz),
            max_cached_bytes: if switch(&mut fuzz) { 64 } else { 1 << 20 },
            ..crate::hand::config()
        };
        let mut server = Server::with(config, 5);
        for step in 0..1000 {
            fuzz.quiet = step / 100 % 2 == 1;
            let before = server.raft.status();
            server.quick_disk = fuzz.dice.chance(3, 4);
            if fuzz.dice.chance(1, 3) {
                server.now =
                    server.now.max(server.raft.deadline().min(server.now + std::time::Duration::from_millis(100)));
            }
            if fuzz.dice.chance(1, 10) {
                _ = server.raft.propose(server.now, &["a command"]);
                _ = server.raft.read_index(server.now);
            }
            let input = fuzz.input(&server);
            server.step(input);
            let after = server.raft.status();
            led += u64::from(after.role == raft_core::Role::Leader);
            assert!(after.current_term >= before.current_term && after.commit_index >= before.commit_index);
            assert!(
                after.current_term > before.current_term
                    || before.voted_for.is_none()
                    || after.voted_for == before.voted_for
            );
            assert!(after.applied_index <= after.commit_index.min(after.durable_index));
        }
        let steps = server.applied.windows(2).all(|w| w[1].index == w[0].index.next());
        assert!(steps, "applied out of order: {:?}", server.applied);
    }
    assert!(led > 1000, "the fuzzer hardly ever gets a leader: {led} steps");
}
