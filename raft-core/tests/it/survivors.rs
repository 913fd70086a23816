//! Bugs that once survived `cargo xtask mutants`, each with the test that sees it now.

use raft_core::{AppendAck, Config, Envelope, LogId, LogIndex, Message, NodeId, VoteReply, VoteRequest};

use crate::hand::{Server, append, ask_vote, config, id, to};

/// Server 1, which heard server 2, the leader of term 1, so many milliseconds ago. Its election timeout is 300 ms at least.
fn after_silence(millis: u64) -> Server {
    let mut voter = Server::with(Config { pre_vote: true, check_quorum: true, ..config() }, 3);
    voter.receive(2, 1, append(1, LogId::ZERO, &[1], 0));
    voter.pass(millis);
    voter
}

/// Asks for a pre-vote in the name of server 3, whose log is the longer one.
fn is_granted(voter: &mut Server) -> bool {
    let sent = voter.receive(3, 1, Message::PreVote(VoteRequest { last_log: id(1, 9), transfer: false }));
    match to(&sent, 3)[..] {
        [Message::PreVoteReply(reply)] => reply.granted,
        ref other => panic!("an answer to a pre-vote: {other:?}"),
    }
}

/// A leader that restarts gives out the same epochs again. An acknowledgement from its earlier life is of an older term, and of a log
/// that the follower may have truncated since.
#[test]
fn an_acknowledgement_of_an_older_term_counts_for_nothing() {
    let (mut leader, _) = Server::leading(3, &[1]);
    let (proposed, _) = leader.propose(&["x"]);
    let acknowledged = || Message::AppendAck(AppendAck { epoch: 1, match_index: proposed.last });
    leader.receive(2, 1, acknowledged());
    assert_eq!((leader.progress(2).0, leader.commit()), (0, 0));
    leader.receive(2, 2, acknowledged());
    assert_eq!((LogIndex(leader.progress(2).0), LogIndex(leader.commit())), (proposed.last, proposed.last));
}

/// Else servers that ask one another in vain would keep one another waiting for a leader that is gone.
#[test]
fn an_answer_to_a_pre_vote_is_no_sign_of_the_leader() {
    let mut voter = after_silence(290);
    let deadline = voter.raft.deadline();
    assert!(!is_granted(&mut voter), "the leader was heard within the timeout");
    assert_eq!(voter.raft.deadline(), deadline, "and its own timer runs on");
    voter.pass(10);
    assert!(is_granted(&mut voter));
}

/// One broken link made elections for hours (Cloudflare, 2020): the server behind it asks, and everybody else still hears the leader.
#[test]
fn who_hears_the_leader_follows_nobody_else() {
    let mut voter = after_silence(290);
    assert!(!is_granted(&mut voter));
    let votes_for =
        |sent: &[Envelope]| matches!(to(sent, 3)[..], [Message::RequestVoteReply(VoteReply { granted: true, .. })]);
    assert!(!votes_for(&voter.receive(3, 5, ask_vote(id(1, 9)))));
    let status = voter.raft.status();
    assert_eq!((status.current_term.0, status.leader), (1, Some(NodeId(2))), "and the newer term is ignored");
    voter.pass(10);
    assert!(votes_for(&voter.receive(3, 5, ask_vote(id(1, 9)))));
}
