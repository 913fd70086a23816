//! Who leads next, and what a leader may answer without asking: rules about transfers, priorities, leases, and reads at followers.

use std::time::Duration;

use raft_core::{
    AppendAck, Config, Envelope, Event, Heartbeat, HeartbeatReply, Input, Lease, LogId, LogIndex, Message, NodeId,
    ProposeError, ReadIndexReply, ReadOutcome, Role, TimeoutNow, VoteReply, VoteRequest,
};

use crate::hand::{Server, append, appends, ask_vote, config, id, to, vote};

/// 10 % are taken off each promise.
fn with_lease() -> Config {
    Config { check_quorum: true, lease: Some(Lease { drift_per_mille: 100 }), ..config() }
}

fn answer(round: u64, index: u64, promise_ms: u32, priority: u8) -> Message {
    let (received, match_index) = (LogIndex(index), LogIndex(index));
    Message::HeartbeatReply(HeartbeatReply { epoch: 1, round, received, match_index, promise_ms, priority, vigil: 1 })
}

/// Server 1 of three, elected, with one committed entry of its term.
fn leading(config: Config) -> Server {
    let mut server = Server::with(config, 3);
    server.time_out();
    server.receive(2, 1, vote(1, true));
    server.propose(&["x"]);
    server.receive(2, 1, Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(1) }));
    assert_eq!((server.raft.is_leader(), server.commit()), (true, 1));
    server
}

fn votes_for(sent: &[Envelope], candidate: u64) -> bool {
    let reply = |body: &Message| matches!(body, Message::RequestVoteReply(VoteReply { granted: true, .. }));
    to(sent, candidate).iter().any(reply)
}

/// Whether a read by the lease is answered at once.
fn reads_at_once(server: &mut Server) -> bool {
    let read = server.raft.read_by_lease(server.now).expect("leads");
    server
        .raft
        .take_output()
        .reads
        .iter()
        .any(|outcome| matches!(outcome, ReadOutcome::Ready { id, .. } if *id == read))
}

#[test]
fn a_lease_runs_from_the_sending_of_what_a_majority_answered() {
    let mut leader = leading(with_lease());
    assert!(!reads_at_once(&mut leader), "nobody has promised anything");
    leader.settle();
    // Round 1 left just now; its answer takes 200 ms.
    leader.now = leader.now + Duration::from_millis(200);
    leader.receive(2, 1, answer(1, 1, 300, 0));
    assert!(reads_at_once(&mut leader), "270 ms from the sending on");
    leader.now = leader.now + Duration::from_millis(69);
    assert!(reads_at_once(&mut leader));
    leader.now = leader.now + Duration::from_millis(1);
    assert!(!reads_at_once(&mut leader), "and not from the answer on");
}

/// A process that was stopped looks at the clock before it answers (catalogue: tikv#964): nobody has told it meanwhile that time went by.
#[test]
fn a_lease_ends_by_the_clock_and_not_by_what_was_heard_of_it() {
    let mut leader = leading(with_lease());
    reads_at_once(&mut leader);
    leader.settle();
    leader.receive(2, 1, answer(1, 1, 300, 0));
    assert!(reads_at_once(&mut leader));
    leader.now = leader.now + Duration::from_secs(5);
    assert!(!reads_at_once(&mut leader));
}

#[test]
fn who_promises_nothing_gives_no_lease() {
    let mut leader = leading(with_lease());
    reads_at_once(&mut leader);
    leader.settle();
    leader.receive(2, 1, answer(1, 1, 0, 0));
    assert!(!reads_at_once(&mut leader), "a server without leases");
    assert!(!leader.raft.status().has_lease);
}

/// The leader that was heard may count on a promise whatever term others are in: it hears of that last.
#[test]
fn a_promise_outlives_its_term_and_a_restart() {
    let asks = |transfer| Message::RequestVote(VoteRequest { last_log: id(9, 9), transfer });
    let promised = || {
        let mut voter = Server::with(with_lease(), 3);
        voter.now = voter.now + Duration::from_millis(400);
        let sent = voter.receive(2, 1, Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(1) }));
        assert!(matches!(to(&sent, 2)[..], [Message::HeartbeatReply(HeartbeatReply { promise_ms: 300, .. })]));
        // A late reply of server 3 tells of term 9, so server 2 is a leader of the past.
        voter.receive(3, 9, Message::PreVoteReply(VoteReply { election: raft_core::Term(10), granted: false }));
        assert_eq!((voter.term(), voter.raft.leader()), (9, None));
        voter.now = voter.now + Duration::from_millis(290);
        voter
    };
    assert!(!votes_for(&promised().receive(3, 9, asks(false)), 3), "of the term that it is in");
    assert!(!votes_for(&promised().receive(3, 10, asks(false)), 3), "of a newer one");
    assert!(votes_for(&promised().receive(3, 9, asks(true)), 3), "its leader has given leave");
    let mut voter = promised();
    voter.now = voter.now + Duration::from_millis(10);
    assert!(votes_for(&voter.receive(3, 9, asks(false)), 3), "the promise is over");

    let mut restarted = Server::with(with_lease(), 3);
    assert!(!votes_for(&restarted.receive(3, 1, asks(false)), 3), "who knows what it promised");
    restarted.now = restarted.now + Duration::from_millis(300);
    assert!(votes_for(&restarted.receive(3, 1, asks(false)), 3));
}

#[test]
fn proposals_are_refused_while_leadership_is_handed_over_and_only_then() {
    let mut leader = leading(config());
    assert_eq!(leader.raft.transfer_leadership(leader.now, Some(NodeId(3))), Ok(NodeId(3)));
    leader.settle();
    let refused = |ms| Err(ProposeError::Transferring { to: NodeId(3), retry_after: Duration::from_millis(ms) });
    assert_eq!(leader.raft.propose(leader.now, &["y"]), refused(100), "it is over long before it has failed");
    assert_eq!(leader.raft.status().transferring_to, Some(NodeId(3)));
    leader.pass(299);
    assert_eq!(leader.raft.propose(leader.now, &["y"]), refused(1), "what is left of it");
    leader.pass(1);
    assert!(leader.events.contains(&Event::TransferFailed { term: raft_core::Term(1), to: NodeId(3) }));
    leader.propose(&["y"]);

    // One that ends with the leadership leaves nothing behind for the next one.
    leader.receive(2, 1, Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(1) }));
    leader.raft.transfer_leadership(leader.now, Some(NodeId(2))).expect("it was heard");
    leader.receive(3, 2, ask_vote(LogId::ZERO));
    leader.time_out();
    let term = leader.term();
    leader.receive(2, term, vote(term, true));
    leader.propose(&["z"]);
}

#[test]
fn only_the_leader_can_send_a_server_into_an_election() {
    let timeout_now = |last_log| Message::TimeoutNow(TimeoutNow { last_log });
    let mut follower = Server::following(3, 2, &[1, 2]);
    follower.receive(2, 1, timeout_now(id(2, 2)));
    follower.receive(3, 2, timeout_now(id(2, 2)));
    follower.receive(2, 2, timeout_now(id(2, 3)));
    follower.receive(2, 2, timeout_now(id(2, 1)));
    assert_eq!((follower.term(), follower.raft.status().role), (2, Role::Follower));
    let sent = follower.receive(2, 2, timeout_now(id(2, 2)));
    assert_eq!((follower.term(), follower.raft.status().role), (3, Role::Candidate));
    assert!(matches!(to(&sent, 3)[..], [Message::RequestVote(VoteRequest { transfer: true, .. })]));
}

/// A server of higher priority takes over once it has kept up for a while, and not before.
#[test]
fn the_preferred_server_takes_over_when_it_keeps_up() {
    let mut leader = leading(Config { priority: 1, ..config() });
    let mut round = 0;
    let mut hear = |leader: &mut Server, priority| {
        round += 1;
        let mut sent = leader.pass(100);
        sent.extend(leader.receive(2, 1, answer(round, 1, 0, priority)));
        sent.iter().any(|envelope| matches!(envelope.body, Message::TimeoutNow(_)) && envelope.to == NodeId(2))
    };
    assert!((0..40).all(|_| !hear(&mut leader, 1)), "an equal");
    assert!(!hear(&mut leader, 2), "the next round of heartbeats is when it is looked at");
    assert!(hear(&mut leader, 2));

    let mut young = leading(config());
    let told = (1..=12).position(|round| {
        let mut sent = young.pass(100);
        sent.extend(young.receive(2, 1, answer(round, 1, 0, 5)));
        sent.iter().any(|envelope| matches!(envelope.body, Message::TimeoutNow(_)))
    });
    assert_eq!(told, Some(11), "four election timeouts of 300 ms after its election");
}

/// A follower that restarts may get the answers to what it asked before.
#[test]
fn an_answer_to_a_former_life_releases_no_read() {
    let asks = |seed| {
        let mut follower = Server::with(Config { seed, ..config() }, 3);
        follower.receive(2, 1, append(1, LogId::ZERO, &[1], 1));
        let read = follower.raft.read_index(follower.now).expect("follows");
        let sent = follower.settle();
        let asked = to(&sent, 2).into_iter().find_map(|body| match body {
            Message::ReadIndex(request) => Some(request.id),
            _ => None,
        });
        (follower, read, asked.expect("the leader is asked at once"))
    };
    let (_, _, former) = asks(1);
    let (mut follower, read, present) = asks(2);
    let mut hears = |id, index| {
        let body = Message::ReadIndexReply(ReadIndexReply { id, index: LogIndex(index) });
        let message = Envelope { from: NodeId(2), to: NodeId(1), term: raft_core::Term(1), body };
        follower.raft.step(follower.now, Input::Message(message));
        follower.raft.take_output().reads
    };
    assert_eq!(hears(former, 0), []);
    assert_eq!(hears(present + 1, 0), [], "nor does one to what was never asked");
    assert_eq!(hears(present, 1), [ReadOutcome::Ready { id: read, index: LogIndex(1) }]);
}

/// A disk that takes longer than an election timeout for the vote: the next term would only have to wait for the same disk.
#[test]
fn an_election_has_not_failed_before_its_requests_have_left() {
    let mut server = Server::with(Config { max_write_stall: Some(Duration::from_mins(1)), ..config() }, 3);
    server.quick_disk = false;
    server.time_out();
    assert!(server.pass(2000).is_empty());
    assert_eq!((server.term(), server.raft.status().role), (1, Role::Candidate));
    let sent = server.persist();
    assert_eq!(sent.len(), 2, "now they leave");
    assert!(server.raft.deadline() >= server.now + Duration::from_millis(300), "and have all the time there is");
    server.receive(2, 1, vote(1, true));
    assert!(server.raft.is_leader());
    assert!(appends(&server.pass(1), 2).is_empty());
}
