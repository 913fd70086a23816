//! News of commits that wait for an append to ride on (`Config::commit_notification_delay`).

use std::time::Duration;

use raft_core::{AppendAck, Config, Envelope, Heartbeat, LogIndex, Message};

use crate::hand::{Server, ack, appends, config, to};

/// A leader of three whose followers have answered its first append.
fn leader(delay_ms: u64) -> Server {
    let commit_notification_delay = Duration::from_millis(delay_ms);
    let (mut leader, sent) = Server::leading_with(Config { commit_notification_delay, ..config() }, 3);
    for follower in [2, 3] {
        leader.receive(follower, 1, ack(&appends(&sent, follower)[0]));
    }
    leader
}

/// Follower `from` has on disk what these messages brought it.
fn answer(leader: &mut Server, from: u64, sent: &[Envelope]) -> Vec<Envelope> {
    let append = appends(sent, from).pop().expect("an append");
    leader.receive(from, 1, ack(&append))
}

/// What heartbeats outside of rounds tell `follower`.
fn news(sent: &[Envelope], follower: u64) -> Vec<u64> {
    let told = |body| match body {
        Message::Heartbeat(Heartbeat { commit, round: None, .. }) => Some(commit.0),
        _ => None,
    };
    to(sent, follower).into_iter().filter_map(told).collect()
}

#[test]
fn the_next_append_carries_the_news_and_nothing_else_is_sent() {
    let mut leader = leader(2);
    for index in 1..=5 {
        let (_, sent) = leader.propose(&["x"]);
        let carried = appends(&sent, 2)[0].leader_commit;
        assert_eq!((carried, appends(&sent, 3)[0].leader_commit), (LogIndex(index - 1), LogIndex(index - 1)));
        for follower in [2, 3] {
            assert!(answer(&mut leader, follower, &sent).is_empty(), "entry {index}");
        }
        assert_eq!((leader.commit(), leader.applied.len() as u64), (index, index), "the leader does not wait");
        assert!(leader.pass(1).is_empty());
    }
}

#[test]
fn without_an_append_they_go_by_themselves_once_and_in_time() {
    let mut leader = leader(2);
    let (_, sent) = leader.propose(&["x"]);
    assert!(answer(&mut leader, 2, &sent).is_empty());
    assert_eq!(leader.commit(), 1);
    let committed_at = leader.now;
    leader.pass(1);
    assert!(answer(&mut leader, 3, &sent).is_empty());
    assert_eq!(leader.raft.deadline(), committed_at + Duration::from_millis(2), "counted from the first");
    let sent = leader.pass(1);
    assert_eq!((news(&sent, 2), news(&sent, 3)), (vec![1], vec![1]));
    assert!(leader.pass(20).is_empty(), "once");
}

#[test]
fn a_follower_that_still_has_something_under_way_is_told_when_it_has_answered() {
    let mut leader = leader(2);
    let (_, sent) = leader.propose(&["x"]);
    answer(&mut leader, 2, &sent);
    let later = leader.pass(2);
    assert_eq!((news(&later, 2), news(&later, 3)), (vec![1], vec![]));
    assert!(answer(&mut leader, 3, &sent).is_empty());
    let later = leader.pass(2);
    assert_eq!((news(&later, 2), news(&later, 3)), (vec![], vec![1]));
}

#[test]
fn a_heartbeat_carries_them_too_and_without_a_delay_they_leave_at_once() {
    let mut patient = leader(1000);
    let (_, sent) = patient.propose(&["x"]);
    answer(&mut patient, 2, &sent);
    let sent = patient.pass(100);
    let beats: Vec<_> = to(&sent, 2).into_iter().filter(|body| matches!(body, Message::Heartbeat(_))).collect();
    assert!(matches!(beats[..], [Message::Heartbeat(Heartbeat { commit: LogIndex(1), round: Some(_), .. })]));

    let mut prompt = leader(0);
    let (_, sent) = prompt.propose(&["x"]);
    let epoch = appends(&sent, 2)[0].epoch;
    let sent = prompt.receive(2, 1, Message::AppendAck(AppendAck { epoch, match_index: LogIndex(1) }));
    assert_eq!(news(&sent, 2), [1]);
}

/// In an idle cluster a follower that is dead lacks nothing either.
#[test]
fn a_leader_tells_how_long_it_has_not_heard_a_follower() {
    let (mut leader, _) = Server::leading(3, &[]);
    let silence = |leader: &Server| -> Vec<u128> {
        leader.raft.status().followers.iter().map(|follower| follower.silent_for.as_millis()).collect()
    };
    assert_eq!(silence(&leader), [0, 0], "it begins to wait for them");
    leader.pass(200);
    let term = leader.term();
    let ack = Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(0) });
    leader.receive(2, term, ack);
    assert_eq!(silence(&leader), [0, 200]);
    leader.pass(700);
    assert_eq!(silence(&leader), [700, 900]);
    assert_eq!(leader.raft.status().election_timeout, leader.raft.config().election_timeout);
}
