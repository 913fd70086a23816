//! Whether the output is worth taking (`Raft::has_output`), and messages that are taken in where they lie. That nothing is missed is asserted in the core
//! whenever output is taken, so every simulated cluster is a test of that; here it is that not everything counts.

use raft_core::{
    Config, Envelope, Input, LogId, LogIndex, MembershipChange, Message, NodeId, Output, Raft, Term, WriteSeq,
};

use crate::hand::{Server, ack, append, appends, config, id};

/// The number of the write that is in the next output.
fn write_of(raft: &mut Raft) -> WriteSeq {
    assert!(raft.has_output());
    raft.take_output().write.expect("something to write").seq
}

fn envelope(term: u64, body: Message) -> Envelope {
    Envelope { from: NodeId(2), to: NodeId(1), term: Term(term), body }
}

#[test]
fn a_leader_whose_disk_is_done_has_nothing_to_say_before_a_follower_is() {
    let (mut leader, _) = Server::leading(3, &[]);
    let Proposal { seq, append } = propose(&mut leader);
    leader.raft.step(leader.now, Input::Persisted(seq));
    assert!(!leader.raft.has_output() && leader.raft.take_output().is_empty());
    leader.raft.step(leader.now, Input::Message(envelope(1, ack(&append))));
    assert!(leader.raft.has_output(), "committed");
    let output = leader.raft.take_output();
    assert_eq!((output.apply.len(), leader.commit()), (1, 1));
    assert!(!leader.raft.has_output());
    // Of what the state machine has done nothing follows.
    leader.raft.step(leader.now, Input::Applied(LogIndex(1)));
    assert!(!leader.raft.has_output() && leader.raft.take_output().is_empty());
}

#[test]
fn a_leader_whose_disk_was_the_last_one_applies_then() {
    let (mut leader, _) = Server::leading(3, &[]);
    let Proposal { seq, append } = propose(&mut leader);
    let of_the_third = raft_core::AppendEntries { epoch: 2, ..append.clone() };
    let second = Envelope { from: NodeId(3), ..envelope(1, ack(&of_the_third)) };
    for acknowledged in [envelope(1, ack(&append)), second] {
        leader.raft.step(leader.now, Input::Message(acknowledged));
        let _ = leader.raft.take_output();
    }
    assert_eq!((leader.commit(), leader.raft.has_output()), (1, false));
    leader.raft.step(leader.now, Input::Persisted(seq));
    assert!(leader.raft.has_output());
    assert_eq!(leader.raft.take_output().apply.len(), 1);
}

#[test]
fn a_follower_acknowledges_when_its_disk_is_done() {
    let mut server = Server::new(3);
    server.raft.step(server.now, Input::Message(envelope(1, append(1, LogId::ZERO, &[1, 1], 0))));
    let seq = write_of(&mut server.raft);
    assert!(!server.raft.has_output());
    server.raft.step(server.now, Input::Persisted(seq));
    assert!(server.raft.has_output());
    assert!(matches!(server.raft.take_output().messages[..], [Envelope { body: Message::AppendAck(_), .. }]));
    assert!(!server.raft.has_output());
}

#[test]
fn what_makes_no_sense_is_told() {
    let mut server = Server::new(3);
    let _ = server.raft.take_output();
    for nonsense in [Input::Persisted(WriteSeq(9)), Input::Applied(LogIndex(9))] {
        assert!(!server.raft.has_output());
        server.raft.step(server.now, nonsense);
        assert!(server.raft.has_output());
        assert_eq!(server.raft.take_output().events.len(), 1);
    }
}

/// Usual appends and others, in the term of the server and not, and answers: taken in by value and in place, with the same result.
#[test]
fn a_message_may_be_taken_in_where_it_lies() {
    let mut by_value = Server::following(3, 2, &[1, 1, 2]).raft;
    let mut in_place = by_value.clone();
    let now = raft_core::Instant::from_millis(1);
    let messages = [
        (2, append(2, id(2, 3), &[2], 1)),
        (2, append(3, id(2, 4), &[2, 2], 4)),
        (2, append(3, id(2, 4), &[2, 2], 4)),
        (2, append(4, id(2, 9), &[2], 2)),
        (1, append(5, id(1, 1), &[1], 0)),
        (2, append(6, id(2, 6), &[3], 6)),
        (3, append(1, id(2, 4), &[3], 4)),
        (3, append(2, LogId::new(Term::MAX, LogIndex(u64::MAX)), &[], 4)),
    ];
    let mut output = Output::default();
    for (term, body) in messages {
        let mut message = envelope(term, body);
        by_value.step(now, Input::Message(message.clone()));
        in_place.step_message(now, &mut message);
        in_place.take_output_into(&mut output);
        assert_eq!(format!("{:?}", by_value.take_output()), format!("{output:?}"));
        assert_eq!(format!("{by_value:?}"), format!("{in_place:?}"));
    }
    assert_eq!(in_place.last_index(), LogIndex(5));
}

/// Otherwise whoever goes on as long as there is output would never come to take in what that waits for.
#[test]
fn what_somebody_else_has_to_end_first_is_no_output() {
    // The members change, and no follower has answered.
    let (mut leader, _) = Server::leading(3, &[]);
    let Proposal { seq, append } = propose(&mut leader);
    leader.raft.step(leader.now, Input::Persisted(seq));
    leader.receive(2, 1, ack(&append));
    assert_eq!(leader.commit(), 1);
    let learner = MembershipChange::new().learner(NodeId(4)).identity(NodeId(4), 0);
    leader.raft.change_membership(leader.now, &learner).expect("an entry of its term is committed");
    let seq = write_of(&mut leader.raft);
    leader.raft.step(leader.now, Input::Persisted(seq));
    let _ = leader.raft.take_output();
    assert_eq!((leader.raft.has_output(), leader.commit()), (false, 1));

    // The state machine has as much as it may have.
    let (mut alone, _) = Server::leading_with(Config { max_unapplied_bytes: 1, ..config() }, 1);
    alone.raft.propose(alone.now, &[b"x", b"y"]).expect("it leads");
    let seq = write_of(&mut alone.raft);
    alone.raft.step(alone.now, Input::Persisted(seq));
    let first = alone.raft.take_output().apply.last_index().expect("one of them");
    let last = alone.raft.last_index();
    assert!(first < last && alone.commit() == last.0 && !alone.raft.has_output());
    alone.raft.step(alone.now, Input::Applied(first));
    assert!(alone.raft.has_output() && alone.raft.take_output().apply.last_index() == Some(last));
}

struct Proposal {
    seq: WriteSeq,
    append: raft_core::AppendEntries,
}

/// A command is proposed, and its write is not done.
fn propose(leader: &mut Server) -> Proposal {
    // What announces the leader must not be in the way.
    for follower in [2, 3] {
        // Epochs are counted from 1 on, in the order of the members.
        let probe = raft_core::AppendAck { epoch: follower - 1, match_index: LogIndex(0) };
        leader.receive(follower, 1, Message::AppendAck(probe));
    }
    leader.raft.propose(leader.now, &[b"x"]).expect("it leads");
    let output = leader.raft.take_output();
    let append = appends(&output.messages, 2).pop().expect("an append");
    Proposal { seq: output.write.expect("something to write").seq, append }
}
