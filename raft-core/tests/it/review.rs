//! What a review of the core found, one rule a test.

use std::time::Duration;

use raft_core::{
    AppendAck, AppendEntries, Config, ConfigError, EntryKind, Heartbeat, HeartbeatReply, Input, Instant, LogId,
    LogIndex, Membership, Message, NodeId, ProposeError, Raft, ReadOutcome, Recovered, Role, Segment, Term,
};

use crate::hand::{Server, ack, append, appends, config, entries, id, to, vote};

fn answer(epoch: u64, round: u64, index: u64) -> Message {
    let (received, match_index) = (LogIndex(index), LogIndex(index));
    Message::HeartbeatReply(HeartbeatReply {
        epoch,
        round,
        received,
        match_index,
        promise_ms: 0,
        priority: 0,
        vigil: 1,
    })
}

/// Server 3 leads term 3, sends a heartbeat that travels for long, restarts, and leads term 5; its rounds and epochs begin anew.
/// Server 1 answers the heartbeat of old in term 5, before it hears of the leader that will have replaced server 3 when the answer
/// arrives. If that confirmed a read, the read would be stale.
#[test]
fn an_answer_to_a_heartbeat_of_an_older_term_confirms_no_read() {
    let mut voter = Server::following(3, 5, &[5]);
    let old = Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(1) });
    let refusal = to(&voter.receive(3, 3, old), 3).remove(0);

    let (mut leader, sent) = Server::leading(3, &[]);
    leader.receive(2, 1, ack(&appends(&sent, 2)[0]));
    let (_, sent) = leader.propose(&["x"]);
    leader.receive(2, 1, ack(&appends(&sent, 2)[0]));
    let read = leader.raft.read_index(leader.now).expect("leads");
    assert!(leader.raft.take_output().reads.is_empty(), "round 1 has begun");
    let mut reads = |body: Message| {
        let message = raft_core::Envelope { from: NodeId(2), to: NodeId(1), term: raft_core::Term(1), body };
        leader.raft.step(leader.now, Input::Message(message));
        leader.raft.take_output().reads
    };
    assert_eq!(reads(refusal), []);
    assert_eq!(reads(answer(1, 1, 1)), [ReadOutcome::Ready { id: read, index: LogIndex(1) }]);
}

#[test]
fn a_refusal_of_an_append_of_an_older_term_makes_no_one_send_it_all_again() {
    let mut voter = Server::following(3, 5, &[5]);
    let refusal = to(&voter.receive(3, 3, append(1, LogId::ZERO, &[], 0)), 3).remove(0);
    let (mut leader, sent) = Server::leading(3, &[1, 1, 1]);
    assert_eq!(appends(&sent, 2)[0].seq, 1, "the same number as the append of old");
    let again = leader.receive(2, 2, refusal);
    assert!(again.is_empty(), "the whole log again: {again:?}");
}

/// Without a no-op, only a command can commit what earlier leaders left behind: `Busy` would last for ever.
#[test]
fn the_first_command_of_a_term_is_never_refused_as_busy() {
    let mut server = Server::with(Config { max_uncommitted_bytes: 60, ..config() }, 3);
    server.receive(2, 1, append(1, LogId::ZERO, &[1, 1, 1], 0));
    server.time_out();
    server.receive(2, 2, crate::hand::vote(2, true));
    assert!(server.raft.is_leader() && server.raft.status().uncommitted_bytes > 60);
    let (proposed, _) = server.propose(&["x"]);
    assert!(matches!(server.raft.propose(server.now, &["y"]), Err(ProposeError::Busy { .. })), "the second is");
    server.receive(2, 2, Message::AppendAck(AppendAck { epoch: 1, match_index: proposed.last }));
    assert_eq!(server.raft.status().uncommitted_bytes, 0);
    server.propose(&["y"]);
}

#[test]
fn what_is_truncated_weighs_nothing() {
    let mut server = Server::following(3, 1, &[1, 1]);
    server.receive(2, 1, append(2, id(1, 2), &[], 1));
    assert_eq!(server.applied, [id(1, 1)]);
    server.receive(3, 2, append(1, id(1, 1), &[2], 0));
    assert_eq!(server.raft.status().uncommitted_bytes, entries(2, &[2]).byte_len());
}

/// A process that was stopped for a while finds its timers overdue, and what they wait for in its inbox.
#[test]
fn what_came_in_during_a_pause_counts_before_the_silence_does() {
    let message = |from, term, body| {
        Input::Message(raft_core::Envelope { from: NodeId(from), to: NodeId(1), term: raft_core::Term(term), body })
    };
    // A leader of five: the quorum has answered, and its disk is done.
    let mut leader = Server::with(Config { check_quorum: true, ..config() }, 5);
    leader.time_out();
    for voter in [2, 3] {
        leader.receive(voter, 1, crate::hand::vote(1, true));
    }
    leader.pass(100);
    leader.raft.propose(leader.now, &["x"]).expect("leads");
    let write = leader.raft.take_output().write.expect("there is something to write");
    leader.now = leader.now + Duration::from_secs(5);
    leader.raft.step(leader.now, Input::Wake);
    leader.raft.step(leader.now, message(2, 1, answer(1, 1, 0)));
    leader.raft.step(leader.now, message(3, 1, answer(2, 1, 0)));
    leader.raft.step(leader.now, Input::Persisted(write.seq));
    leader.settle();
    assert!(leader.raft.is_leader());

    // A follower: its leader is there.
    let mut follower = Server::following(3, 1, &[1]);
    follower.now = follower.now + Duration::from_secs(5);
    follower.raft.step(follower.now, Input::Wake);
    let heartbeat = Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(9) };
    follower.raft.step(follower.now, message(2, 1, Message::Heartbeat(heartbeat)));
    follower.settle();
    assert_eq!((follower.term(), follower.raft.status().role), (1, Role::Follower));
}

#[test]
fn a_disk_that_has_much_to_do_is_not_taken_for_one_that_hangs() {
    let (mut leader, _) = Server::leading(3, &[]);
    let limit = config().write_stall_limit();
    leader.raft.propose(leader.now, &["x"]).expect("leads");
    let first = leader.raft.take_output().write.expect("a write");
    leader.raft.propose(leader.now, &["y"]).expect("leads");
    let second = leader.raft.take_output().write.expect("a write");
    leader.now = leader.now + limit / 2;
    leader.step(Input::Persisted(first.seq));
    leader.now = leader.now + limit * 3 / 4;
    leader.step(Input::Wake);
    assert!(leader.raft.is_leader(), "three quarters of the limit for each write");
    leader.now = leader.now + limit / 4;
    assert!(leader.raft.deadline() <= leader.now);
    leader.step(Input::Wake);
    assert!(!leader.raft.is_leader(), "the whole limit for one");
    leader.step(Input::Persisted(second.seq));
}

/// A leader whose disk stalls is gone within two election timeouts, however long these are; only who asks for it waits longer.
#[test]
fn how_long_a_stalled_disk_is_waited_for_follows_the_election_timeout() {
    let millis = Duration::from_millis;
    for (election_timeout, max_write_stall, limit) in [
        (millis(200), None, millis(400)),
        (millis(400), None, millis(800)),
        (millis(3000), None, millis(6000)),
        (millis(400), Some(millis(5000)), millis(5000)),
        (millis(3000), Some(millis(800)), millis(800)),
    ] {
        // Heartbeats are not what this is about.
        let config = Config { election_timeout, max_write_stall, check_quorum: false, ..config() };
        let (mut leader, _) = Server::leading_with(config, 3);
        leader.raft.propose(leader.now, &["x"]).expect("leads");
        assert!(leader.raft.take_output().write.is_some());
        leader.now = leader.now + limit.saturating_sub(millis(1));
        leader.step(Input::Wake);
        assert!(leader.raft.is_leader(), "{election_timeout:?}, {max_write_stall:?}");
        assert!(leader.raft.deadline() <= leader.now + millis(1));
        leader.now = leader.now + millis(1);
        leader.step(Input::Wake);
        assert!(!leader.raft.is_leader(), "{election_timeout:?}, {max_write_stall:?}");
    }
    let never = Config { max_write_stall: Some(Duration::ZERO), ..config() };
    assert_eq!(
        Raft::new(never, Recovered::fresh(Membership::default()), Instant(0)).err(),
        Some(ConfigError::Zero("max_write_stall"))
    );
}

#[test]
fn an_index_received_beyond_the_log_does_not_stop_replication() {
    let (mut leader, sent) = Server::leading(3, &[]);
    leader.receive(2, 1, ack(&appends(&sent, 2)[0]));
    leader.pass(100);
    let received = LogIndex(u64::MAX);
    let reply =
        HeartbeatReply { epoch: 1, round: 1, received, match_index: LogIndex(0), promise_ms: 0, priority: 0, vigil: 1 };
    leader.receive(2, 1, Message::HeartbeatReply(reply));
    leader.step(Input::LinkReset(NodeId(2)));
    let (_, sent) = leader.propose(&["x"]);
    let again = leader.step(Input::LinkReset(NodeId(2)));
    assert!(appends(&sent, 2).iter().chain(&appends(&again, 2)).any(|append| append.entries.len() == 1));
}

/// On a slow link a megabyte takes most of a second. Repeating it every now and then would take the link for itself.
#[test]
fn an_append_is_not_repeated_while_it_may_be_on_its_way() {
    let (mut leader, sent) = Server::leading(3, &[]);
    leader.receive(2, 1, ack(&appends(&sent, 2)[0]));
    let (_, sent) = leader.propose(&["x".repeat(1_000_000).as_str()]);
    let append = appends(&sent, 2).remove(0);
    let mut repeated = |round: std::ops::RangeInclusive<u64>, received: u64| {
        round
            .flat_map(|round| {
                let mut sent = leader.pass(100);
                sent.extend(leader.receive(2, 1, answer(1, round, received)));
                appends(&sent, 2)
            })
            .filter(|again| again.prev_log == append.prev_log && !again.entries.is_empty())
            .count()
    };
    assert_eq!(repeated(1..=9, 0), 0, "it may still come");
    assert_eq!(repeated(10..=12, 0), 1, "it is lost");
}

#[test]
fn endless_durations_do_not_overflow() {
    let settings = |heartbeat_interval, election_timeout| Config { heartbeat_interval, election_timeout, ..config() };
    let start = |config| Raft::new(config, Recovered::fresh(Membership::of_voters([NodeId(1)])), Instant(0));
    assert!(start(settings(Duration::MAX, Duration::from_secs(1))).is_err());
    let mut leader = Server::with(settings(Duration::MAX / 2, Duration::MAX), 3);
    leader.time_out();
    leader.receive(2, 1, crate::hand::vote(1, true));
    assert!(leader.raft.is_leader());
    leader.receive(2, 1, answer(1, 1, 0));
}

#[test]
fn a_recovered_log_names_the_term_of_every_entry() {
    let recovered = |start: LogId, runs: &[LogId]| {
        let hard_state = raft_core::HardState { current_term: raft_core::Term(5), voted_for: None };
        let (runs, last_index, applied) = (runs.to_vec(), start.index + 4, start.index);
        let membership = Membership::of_voters([NodeId(1)]);
        let recovered = Recovered {
            hard_state,
            log_start: start,
            runs,
            last_index,
            applied,
            membership,
            changes: Vec::new(),
            restored: None,
        };
        Raft::new(config(), recovered, Instant(0)).is_ok()
    };
    assert!(recovered(LogId::ZERO, &[id(1, 1), id(2, 3)]));
    assert!(!recovered(LogId::ZERO, &[id(2, 3)]), "entries 1 and 2 are of no term");
    assert!(recovered(id(3, 100), &[id(3, 101)]));
    assert!(!recovered(id(3, 100), &[]), "nor is any here");
}

/// Found by fuzzing. A server that joins gets the log from its beginning, and leads as soon as it has the entry that makes it a voter, before that is applied.
/// What it has applied by then is from a time when it did not know who belonged to the cluster. It forgot the log up to there, and what it sent to
/// followers that needed a snapshot was refused for want of members, again and again.
#[test]
fn the_log_is_kept_as_long_as_it_is_not_known_who_belonged_to_the_cluster() {
    let mut server = Server::with(config(), 0);
    let mut entries = entries(1, &[1]);
    let membership = Membership::of_voters([1, 2].map(NodeId)).encode();
    entries
        .push(Segment::pack(LogIndex(2), Term(1), EntryKind::Membership, &[membership]).expect("one"))
        .expect("next");
    let append = AppendEntries { epoch: 1, seq: 1, prev_log: LogId::ZERO, leader_commit: LogIndex(1), entries };
    server.receive(2, 1, Message::AppendEntries(append));
    assert_eq!((server.last_log(), server.applied.len()), (id(1, 2), 1));
    assert!(server.raft.membership_at(LogIndex(1)).is_none() && server.raft.membership_at(LogIndex(2)).is_some());
    server.raft.compact(LogIndex(1));
    server.settle();
    assert_eq!(server.raft.log_start(), LogId::ZERO);

    server.time_out();
    let sent = server.receive(2, 2, vote(2, true));
    assert!(server.raft.is_leader() && server.raft.take_output().snapshots.is_empty(), "{sent:?}");
    let probe = appends(&sent, 2).remove(0);
    let sent = server.receive(2, 2, ack(&probe));
    server.settle();
    assert_eq!(server.applied.len(), 3, "{sent:?}");
    server.raft.compact(LogIndex(2));
    server.settle();
    assert_eq!(server.raft.log_start(), id(1, 2));
}
