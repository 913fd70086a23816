//! What authors of Raft implementations got wrong, one rule a test.

use std::time::Duration;

use raft_core::sim::lab;
use raft_core::{
    AppendAck, AppendReject, Config, HardState, HeartbeatReply, Input, Instant, LogId, LogIndex, Membership,
    MembershipChange, Message, NodeId, ProposeError, Raft, Recovered, Role, Term, VoteReply, VoteRequest,
};

use crate::hand::{Server, ack, append, appends, ask_vote, config, id, to, vote};

fn granted(sent: &[raft_core::Envelope], candidate: u64) -> Option<bool> {
    to(sent, candidate).into_iter().find_map(|body| match body {
        Message::RequestVoteReply(reply) => Some(reply.granted),
        _ => None,
    })
}

/// A refusal of `append` by a follower whose log consists of these runs and ends at `last`.
fn refusal(append: &raft_core::AppendEntries, last: u64, runs: &[LogId]) -> Message {
    Message::AppendReject(AppendReject {
        epoch: append.epoch,
        seq: append.seq,
        last_index: LogIndex(last),
        commit_index: LogIndex::ZERO,
        runs: runs.to_vec(),
    })
}

fn acknowledge(server: &mut Server, from: u64, match_index: u64) {
    let epoch = from - 1; // The leader numbers its followers' epochs from 1, in the order of their ids.
    let term = server.term();
    server.receive(from, term, Message::AppendAck(AppendAck { epoch, match_index: LogIndex(match_index) }));
}

/// A leader lets a removed server know that it is out when that asks for votes: once at a time, when the removal is settled, and nobody else. One that is ahead in terms would only end
/// its leadership by answering.
#[test]
fn only_who_was_removed_for_good_is_told_so_when_it_asks_for_votes() {
    let (mut leader, _) = Server::leading_with(Config { check_quorum: true, ..config() }, 4);
    leader.propose(&["x"]);
    acknowledge(&mut leader, 2, 1);
    acknowledge(&mut leader, 3, 1);
    assert_eq!(leader.commit(), 1);
    let told = |leader: &mut Server, asker: u64, term: u64| {
        let request = VoteRequest { last_log: LogId::ZERO, transfer: false };
        let sent = leader.receive(asker, term, Message::PreVote(request));
        assert!(leader.raft.is_leader() && leader.term() == 1, "nobody disturbs it");
        let refused = |body: &Message| matches!(body, Message::PreVoteReply(reply) if !reply.granted);
        assert!(to(&sent, asker).iter().any(refused), "{sent:?}");
        appends(&sent, asker).len()
    };
    leader.raft.change_membership(leader.now, &MembershipChange::new().remove(NodeId(4))).expect("three are left");
    leader.settle();
    assert_eq!(told(&mut leader, 4, 1), 0, "it still belongs to the joint configuration");
    acknowledge(&mut leader, 2, 2);
    acknowledge(&mut leader, 3, 2);
    assert!(!leader.raft.membership().1.contains(NodeId(4)) && leader.commit() == 2);
    assert_eq!(told(&mut leader, 4, 1), 0, "the membership without it may never be committed");
    acknowledge(&mut leader, 2, 3);
    acknowledge(&mut leader, 3, 3);
    let followers = |leader: &Server| leader.raft.status().followers.iter().map(|f| f.id.0).collect::<Vec<_>>();
    for _ in 0..4 {
        leader.pass(100);
        acknowledge(&mut leader, 2, 3);
        acknowledge(&mut leader, 3, 3);
    }
    assert_eq!(followers(&leader), [2, 3], "it has had its time");
    assert_eq!(told(&mut leader, 9, 1), 0, "a stranger");
    assert_eq!(told(&mut leader, 4, 2), 0, "one that is ahead");
    assert_eq!(told(&mut leader, 4, 1), 1);
    assert_eq!(followers(&leader), [2, 3, 4]);
    assert_eq!(told(&mut leader, 4, 1), 0, "it is followed already");
    for _ in 0..4 {
        leader.pass(100);
        acknowledge(&mut leader, 2, 3);
        acknowledge(&mut leader, 3, 3);
    }
    assert_eq!(followers(&leader), [2, 3], "for an election timeout");
    assert_eq!(told(&mut leader, 4, 1), 1, "and once more");
}

/// A server's log ends with the entry that removes it, and nothing on its disk tells that this is committed but what is applied: up to there it knows, and is quiet for good. Else nobody
/// but this server might be electable, so it asks.
#[test]
fn a_removed_server_that_restarts_asks_for_votes_only_if_it_may_still_be_needed() {
    let three = Membership::of_voters([1, 2, 3].map(NodeId));
    let joint = three.changed(&MembershipChange::new().remove(NodeId(1))).expect("two are left");
    let without = Membership::of_voters([2, 3].map(NodeId));
    for (applied, asks) in [(0, 2), (1, 2), (2, 2), (3, 0)] {
        let recovered = Recovered {
            hard_state: HardState { current_term: Term(1), voted_for: None },
            runs: vec![id(1, 1)],
            last_index: LogIndex(3),
            applied: LogIndex(applied),
            changes: vec![(LogIndex(2), joint.clone()), (LogIndex(3), without.clone())],
            ..Recovered::fresh(three.clone())
        };
        let mut raft = Raft::new(Config { pre_vote: true, ..config() }, recovered, Instant(0))
            .expect("nothing contradicts itself");
        for _ in 0..5 {
            let now = raft.deadline();
            raft.step(now, Input::Wake);
            let sent = raft.take_output().messages;
            assert!(sent.iter().all(|message| matches!(message.body, Message::PreVote(_))), "{sent:?}");
            assert_eq!(sent.len(), asks, "with {applied} of 3 entries applied");
        }
    }
}

#[test]
fn rule_01_only_the_leader_appends_and_with_the_current_term() {
    let mut follower = Server::following(3, 4, &[1, 4]);
    let refused = follower.raft.propose(follower.now, &["x"]);
    assert_eq!(refused, Err(ProposeError::NotLeader { hint: Some(raft_core::NodeId(2)) }));
    assert_eq!(follower.log(), [1, 4]);

    let (mut leader, _) = Server::leading(3, &[1, 4]);
    let (proposed, _) = leader.propose(&["x", "y"]);
    assert_eq!((proposed.term, proposed.first, proposed.last), (Term(5), LogIndex(3), LogIndex(4)));
    assert_eq!(leader.log(), [1, 4, 5, 5]);
}

#[test]
fn rule_02_the_leader_counts_itself_with_its_durable_log() {
    let (mut leader, _) = Server::leading(3, &[]);
    leader.quick_disk = false;
    leader.propose(&["x"]);
    acknowledge(&mut leader, 2, 1);
    assert_eq!(leader.commit(), 0, "one disk of three has it");
    leader.persist();
    assert_eq!(leader.commit(), 1, "two disks of three have it");
}

#[test]
fn rule_03_the_majority_index_is_the_lower_middle_of_a_sorted_copy() {
    let (mut leader, _) = Server::leading(4, &[]);
    leader.propose(&["1", "2", "3", "4", "5"]);
    acknowledge(&mut leader, 2, 5);
    acknowledge(&mut leader, 3, 1);
    assert_eq!(leader.commit(), 1, "5, 5, 1, 0: three of four have 1, and only two have 5");
    acknowledge(&mut leader, 4, 3);
    assert_eq!(leader.commit(), 3);
    let matched = [2, 3, 4].map(|follower| leader.progress(follower).0);
    assert_eq!(matched, [5, 1, 3], "nobody's progress was mixed up with another's");
}

#[test]
fn rule_04_the_election_timer_restarts_for_the_leader_and_for_a_vote_given_only() {
    let restarts = |body: Message, from: u64, term: u64| {
        let mut server = Server::following(3, 3, &[1, 3]);
        let before = server.raft.deadline();
        server.now = server.now + Duration::from_millis(290);
        server.receive(from, term, body);
        let after = server.raft.deadline();
        assert!(after == before || after >= server.now + Duration::from_millis(300), "drawn anew or left alone");
        after != before
    };
    assert!(restarts(append(2, id(3, 2), &[], 0), 2, 3), "the leader's append");
    assert!(restarts(append(2, id(3, 9), &[], 0), 2, 3), "the leader's append, although it is refused");
    assert!(!restarts(append(2, id(1, 1), &[], 0), 3, 2), "an append of an older term");
    assert!(!restarts(ask_vote(id(1, 9)), 3, 4), "a vote refused for the log, although the term is newer");
    assert!(!restarts(ask_vote(id(9, 9)), 3, 2), "a vote refused for the term");
    assert!(restarts(ask_vote(id(3, 2)), 3, 4), "a vote given");
}

#[test]
fn rule_05_a_round_is_bound_to_the_term_and_role_it_began_in() {
    // An election that became pointless: votes come in after another leader was found in the same term.
    let mut server = Server::new(5);
    server.time_out();
    server.receive(2, 1, vote(1, true));
    server.receive(3, 1, append(1, LogId::ZERO, &[], 0));
    server.receive(4, 1, vote(1, true));
    assert_eq!(server.raft.status().role, Role::Follower);

    // Acknowledgements that come in after the leader stepped down.
    let (mut server, _) = Server::leading(3, &[]);
    server.propose(&["x"]);
    server.receive(3, 7, ask_vote(LogId::ZERO));
    server.receive(2, 1, Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(1) }));
    assert_eq!(server.commit(), 0);

    // Nobody sends a round that it has no right to any more.
    let sent = server.pass(290);
    let rounds = |body: &Message| matches!(body, Message::AppendEntries(_) | Message::Heartbeat(_));
    assert!(!sent.iter().any(|envelope| rounds(&envelope.body)), "{sent:?}");

    // Votes of an earlier election, by their number and by their sender's term.
    let mut server = Server::new(3);
    server.time_out();
    server.time_out();
    assert_eq!(server.term(), 2);
    server.receive(2, 2, vote(1, true));
    server.receive(3, 1, vote(1, true));
    assert_eq!(server.raft.status().role, Role::Candidate);
    server.receive(3, 2, vote(2, true));
    assert_eq!(server.raft.status().role, Role::Leader);
}

#[test]
fn rule_06_a_reply_first_aligns_the_term_and_then_is_looked_at() {
    let replies = [
        vote(1, true),
        Message::AppendAck(AppendAck { epoch: 99, match_index: LogIndex(99) }),
        Message::HeartbeatReply(HeartbeatReply {
            epoch: 99,
            round: 99,
            received: LogIndex::ZERO,
            match_index: LogIndex::ZERO,
            promise_ms: 0,
            priority: 0,
            vigil: 1,
        }),
        Message::PreVoteReply(VoteReply { election: Term(1), granted: false }),
    ];
    for reply in replies {
        let (mut leader, _) = Server::leading(3, &[]);
        leader.propose(&["x"]);
        leader.receive(2, 8, reply.clone());
        let status = leader.raft.status();
        assert_eq!((status.current_term, status.role), (Term(8), Role::Follower), "{reply:?}");
        assert_eq!(status.commit_index, LogIndex::ZERO, "{reply:?}");
    }
}

#[test]
fn rule_07_every_message_carries_what_its_receiver_needs() {
    let (mut leader, _) = Server::leading(3, &[]);
    leader.propose(&["x"]);
    acknowledge(&mut leader, 2, 1);
    let (_, sent) = leader.propose(&["y"]);
    assert!(!appends(&sent, 2).is_empty());
    assert!(appends(&sent, 2).iter().all(|append| append.leader_commit == LogIndex(1)), "{sent:?}");
    let sent = leader.pass(100);
    let told = to(&sent, 2).into_iter().find_map(|body| match body {
        Message::Heartbeat(heartbeat) => Some(heartbeat.commit),
        _ => None,
    });
    assert_eq!(told, Some(LogIndex(1)));

    let mut candidate = Server::following(3, 5, &[1, 1, 5]);
    let sent = candidate.time_out();
    let asked: Vec<_> = sent.iter().map(|envelope| &envelope.body).collect();
    assert_eq!(asked, [&ask_vote(id(5, 3)), &ask_vote(id(5, 3))]);
}

#[test]
fn rule_08_up_to_date_is_the_greater_term_and_then_the_greater_index() {
    let cases = [
        (id(5, 3), true, "the same"),
        (id(5, 4), true, "longer"),
        (id(6, 1), true, "of a later term, although shorter"),
        (id(5, 2), false, "shorter"),
        (id(4, 9), false, "of an earlier term, although longer"),
        (LogId::ZERO, false, "empty"),
    ];
    for (last_log, up_to_date, what) in cases {
        let mut server = Server::following(3, 5, &[1, 1, 5]);
        let sent = server.receive(3, 6, ask_vote(last_log));
        assert_eq!(granted(&sent, 3), Some(up_to_date), "{what}");
    }
}

#[test]
fn rule_09_leader_and_follower_both_apply_when_their_commit_index_moves() {
    let (mut leader, _) = Server::leading(3, &[]);
    leader.propose(&["x", "y"]);
    acknowledge(&mut leader, 2, 2);
    assert_eq!(leader.applied, [id(1, 1), id(1, 2)]);

    let mut follower = Server::following(3, 1, &[1, 1]);
    assert_eq!(follower.applied, []);
    follower.receive(2, 1, append(2, id(1, 2), &[], 1));
    assert_eq!(follower.applied, [id(1, 1)]);
}

#[test]
fn rule_10_what_matches_is_kept() {
    let mut server = Server::new(3);
    let newer = append(2, LogId::ZERO, &[1, 1, 1], 0);
    let older = append(1, LogId::ZERO, &[1], 0);
    for message in [&newer, &newer, &older, &older] {
        server.receive(2, 1, message.clone());
        assert_eq!(server.log(), [1, 1, 1]);
    }
    assert!(server.writes.iter().all(|write| write.truncate_from.is_none()));
    // What differs goes, with all that follows.
    server.receive(3, 2, append(1, id(1, 1), &[2], 0));
    assert_eq!(server.log(), [1, 2]);
}

#[test]
fn rule_11_a_late_refusal_does_not_move_next_index_back() {
    let (mut leader, sent) = Server::leading(3, &[1, 1, 1]);
    let probe = appends(&sent, 2).remove(0);
    leader.receive(2, 2, ack(&probe));
    assert_eq!(leader.progress(2), (3, 4));
    leader.receive(2, 2, refusal(&probe, 0, &[]));
    assert_eq!(leader.progress(2), (3, 4), "the match is known");

    let (mut leader, sent) = Server::leading(3, &[1, 1, 1]);
    let probe = appends(&sent, 2).remove(0);
    let sent = leader.receive(2, 2, refusal(&probe, 2, &[id(1, 1)]));
    let next = leader.progress(2).1;
    leader.receive(2, 2, ack(&appends(&sent, 2)[0]));
    leader.receive(2, 2, refusal(&probe, 0, &[]));
    assert_eq!((next, leader.progress(2)), (4, (3, 4)), "the same refusal again, and late");
}

#[test]
fn rule_11b_an_acknowledgement_that_overtakes_a_refusal_is_no_contradiction() {
    let (mut leader, sent) = Server::leading(3, &[]);
    let probe = appends(&sent, 2).remove(0);
    leader.receive(2, 1, ack(&probe));
    let (_, first) = leader.propose(&["x"]);
    let (_, second) = leader.propose(&["y"]);
    let (first, second) = (appends(&first, 2).remove(0), appends(&second, 2).remove(0));
    // The second append arrived first and was refused; the first was acknowledged; and the replies overtook each other, too.
    leader.receive(2, 1, ack(&first));
    let again = leader.receive(2, 1, refusal(&second, 0, &[]));
    assert!(!leader.events.iter().any(|event| matches!(event, raft_core::Event::Rejected { .. })));
    let again = appends(&again, 2);
    assert_eq!((again.len(), again[0].prev_log, again[0].entries.len()), (1, id(1, 1), 1), "sent again at once");
}

#[test]
fn rule_12_the_entry_after_the_last_is_beyond_the_end() {
    let refused = |prev: LogId| {
        let mut server = Server::following(3, 1, &[1, 1]);
        let sent = server.receive(2, 1, append(2, prev, &[1], 0));
        let refused = to(&sent, 2).iter().any(|body| matches!(body, Message::AppendReject(_)));
        assert_eq!(server.log().len(), if refused { 2 } else { 3.min(prev.index.0 as usize + 1).max(2) });
        refused
    };
    assert!(!refused(LogId::ZERO));
    assert!(!refused(id(1, 1)));
    assert!(!refused(id(1, 2)), "the last entry");
    assert!(refused(id(1, 3)), "the one after it");
    assert!(refused(id(1, 4)));
}

#[test]
fn rule_13_a_vote_request_raises_the_term_even_when_it_is_refused() {
    let mut server = Server::following(3, 3, &[3, 3]);
    let sent = server.receive(3, 9, ask_vote(id(2, 9)));
    assert_eq!(granted(&sent, 3), Some(false));
    assert_eq!((server.term(), server.raft.status().voted_for), (9, None));
}

#[test]
fn rule_14_election_timeouts_are_drawn_anew_for_each_round() {
    let mut server = Server::new(3);
    let mut rounds = Vec::new();
    for _ in 0..50 {
        // A leader that was heard and is lost.
        server.receive(2, server.term().max(1), append(1, LogId::ZERO, &[], 0));
        let before = server.now;
        server.time_out();
        rounds.push(server.now.since(before));
    }
    let (low, high) = (Duration::from_millis(300), Duration::from_millis(600));
    assert!(rounds.iter().all(|round| (low..high).contains(round)), "{rounds:?}");
    rounds.sort_unstable();
    rounds.dedup();
    assert!(rounds.len() > 45, "only {} different timeouts of 50", rounds.len());
    // While elections come to nothing, they get more time, up to a limit.
    let waits: Vec<u128> = (0..9)
        .map(|_| {
            let before = server.now;
            server.time_out();
            server.now.since(before).as_millis()
        })
        .collect();
    assert!((300..600).contains(&waits[0]) && (600..1200).contains(&waits[1]), "{waits:?}");
    assert!(waits[2..].iter().all(|wait| (1200..2400).contains(wait)), "{waits:?}");
    let first = |seed| Server::with(raft_core::Config { seed, ..config() }, 3).raft.deadline();
    assert_ne!(first(1), first(2), "servers with different seeds differ");
}

#[test]
fn rule_15_a_candidate_does_not_wait_for_replies() {
    let mut server = Server::new(5);
    for term in 1..=4 {
        let sent = server.time_out();
        assert_eq!((server.term(), sent.len()), (term, 4), "a new round, a new term, and everyone is asked");
    }
    for (voter, election) in [(2, 1), (3, 2), (4, 3), (5, 3)] {
        server.receive(voter, election, vote(election, true));
    }
    assert_eq!(server.raft.status().role, Role::Candidate, "four votes, none of this round");
    server.receive(2, 4, vote(4, true));
    server.receive(2, 4, vote(4, true));
    assert_eq!(server.raft.status().role, Role::Candidate, "one voter counts once");
    server.receive(3, 4, vote(4, true));
    assert_eq!(server.raft.status().role, Role::Leader);
}

#[test]
fn rule_16_match_index_is_a_fact_and_next_index_a_guess() {
    let (mut leader, sent) = Server::leading(3, &[1, 1, 1]);
    let probe = appends(&sent, 2).remove(0);
    assert_eq!(leader.progress(2), (0, 4), "elected: nothing is known, and the end of the log is a guess");
    leader.propose(&["x"]);
    leader.receive(2, 2, refusal(&probe, 1, &[id(1, 1)]));
    let (matched, next) = leader.progress(2);
    assert_eq!((matched, next), (0, 5), "what was sent after the meeting point was found is not known to have arrived");
    acknowledge(&mut leader, 2, 2);
    assert_eq!(leader.progress(2), (2, 5), "an acknowledgement is a fact, and takes nothing back");
    acknowledge(&mut leader, 2, 1);
    assert_eq!(leader.progress(2), (2, 5), "and so is an old one");
}

#[test]
fn rule_17_entries_of_older_terms_are_not_committed_by_counting() {
    let (mut leader, sent) = Server::leading(5, &[1, 2]);
    for follower in [2, 3, 4] {
        let probe = appends(&sent, follower).remove(0);
        leader.receive(follower, 3, ack(&probe));
    }
    assert_eq!(leader.commit(), 0, "entry 2 is of term 2, and on four servers of five");
    leader.propose(&["x"]);
    acknowledge(&mut leader, 2, 3);
    assert_eq!(leader.commit(), 0);
    acknowledge(&mut leader, 3, 3);
    assert_eq!((leader.commit(), leader.applied.len()), (3, 3), "the older entries ride along");
}

#[test]
fn rule_18_nothing_waits_for_a_timer() {
    // Proposals leave at once.
    let (mut leader, sent) = Server::leading(3, &[]);
    leader.receive(2, 1, ack(&appends(&sent, 2)[0]));
    let (_, sent) = leader.propose(&["x"]);
    let sent = appends(&sent, 2);
    assert_eq!((sent.len(), sent[0].entries.len()), (1, 1));
    // News of a commit as well.
    let epoch = sent[0].epoch;
    let body = Message::AppendAck(AppendAck { epoch, match_index: LogIndex(1) });
    let news = leader.receive(2, 1, body);
    let told = |body: &Message| matches!(body, Message::Heartbeat(h) if h.commit == LogIndex(1) && h.round.is_none());
    assert!(to(&news, 2).iter().any(told), "{news:?}");

    // And one refusal is enough, however many entries and terms the logs differ by.
    let terms: Vec<u64> = (0..100).map(|i| 10 + i / 2 * 2).collect();
    let (mut leader, sent) = Server::leading(3, &terms);
    let probe = appends(&sent, 2).remove(0);
    // The follower has the first ten entries, then one of term 20 where the leader has two, and then eighty that nobody wants.
    let shared = [(10, 1), (12, 3), (14, 5), (16, 7), (18, 9), (20, 11)];
    let runs: Vec<LogId> = shared.into_iter().chain([(21, 12)]).map(|(term, index)| id(term, index)).collect();
    let sent = leader.receive(2, leader.term(), refusal(&probe, 91, &runs));
    let sent = appends(&sent, 2);
    assert_eq!((sent[0].prev_log, sent[0].entries.len()), (id(20, 11), 89));
}

#[test]
fn rule_19_a_hundred_clean_runs_in_a_row() {
    let test = lab::find("lab_2c_figure8").expect("the test is in the list");
    for seed in 1_000_000..1_000_100 {
        let report = lab::run(test, seed, None);
        assert_eq!(report.failure, None, "cargo xtask sim --test {} --seed {seed} --trace", test.name);
    }
}

/// A server is what it was handed: the same inputs make the same outputs.
#[test]
fn the_core_is_deterministic() {
    let run = || {
        let (mut leader, sent) = Server::leading(5, &[1, 2, 2]);
        let (_, more) = leader.propose(&["x"]);
        (format!("{sent:?}{more:?}"), format!("{:?}", leader.raft.status()))
    };
    assert_eq!(run(), run());
    let copy = |raft: &Raft| raft.clone().status();
    let (leader, _) = Server::leading(3, &[]);
    assert_eq!(copy(&leader.raft), leader.raft.status());
}
