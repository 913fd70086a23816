//! Who waits at a driver, and what they are told.

use std::time::Duration;

use raft_core::driver::{Driver, Job, Ports, RequestError, settle};
use raft_core::{
    AppendAck, Config, Envelope, Event, Fetch, HardState, HeartbeatReply, Input, Instant, LogId, LogIndex, Membership,
    Message, NodeId, Raft, ReadIndexReply, Recovered, Term, VoteRequest, Write,
};

use crate::hand::{append, config, entries, id, vote};

/// Everything that a driver wants, done by nobody; and who was told what.
#[derive(Debug, Default)]
struct Told {
    writes: Vec<Write>,
    fetches: Vec<Fetch>,
    /// Entries that the state machine was given, batch by batch.
    batches: Vec<Vec<u64>>,
    applied: Vec<u32>,
    read: Vec<u32>,
    failed: Vec<(u32, RequestError)>,
    failed_reads: Vec<(u32, RequestError)>,
    /// Numbers of the requests for a read index.
    requests: Vec<u64>,
}

impl Ports for Told {
    type Proposer = u32;
    type Reader = u32;
    fn send(&mut self, messages: &mut Vec<Envelope>) {
        let number = |message: Envelope| match message.body {
            Message::ReadIndex(request) => Some(request.id),
            _ => None,
        };
        self.requests.extend(messages.drain(..).filter_map(number));
    }
    fn write(&mut self, write: Write) {
        self.writes.push(write);
    }
    fn apply(&mut self, job: Job<u32, u32>) {
        match job {
            Job::Apply { entries, waiting } => {
                self.batches.push(entries.iter().map(|entry| entry.index.0).collect());
                settle(&entries, waiting, |proposer, _| self.applied.push(proposer));
            }
            Job::Query(readers) => self.read.extend(readers),
            Job::Restore(_) => {}
        }
    }
    fn fetch(&mut self, fetch: Fetch) {
        self.fetches.push(fetch);
    }
    fn send_snapshot(&mut self, _: raft_core::SendSnapshot) {}
    fn event(&mut self, _: &Event) {}
    fn fail_proposal(&mut self, proposer: u32, error: RequestError) {
        self.failed.push((proposer, error));
    }
    fn changed(&mut self, _: u32, _: LogId) {}
    fn fail_read(&mut self, reader: u32, error: RequestError) {
        self.failed_reads.push((reader, error));
    }
}

/// A driver's server 1, which leads three, and the ports that it works on.
fn driving() -> (Driver<u32, u32>, Told, Instant) {
    let recovered = Recovered::fresh(Membership::of_voters([1, 2, 3].map(NodeId)));
    let core = Raft::new(config(), recovered, Instant(0)).expect("the settings are fine");
    let (mut driver, mut told) = (Driver::new(core), Told::default());
    let now = driver.deadline();
    driver.step(now, Input::Wake);
    turns(&mut driver, &mut told, now);
    driver.step(now, message(2, 1, vote(1, true)));
    turns(&mut driver, &mut told, now);
    assert!(driver.core().is_leader());
    (driver, told, now)
}

/// Goes on until there is nothing to do, with a disk that is quick.
fn turns(driver: &mut Driver<u32, u32>, told: &mut Told, now: Instant) {
    while driver.turn(now, told) {
        told.writes.drain(..).for_each(|write| driver.step(now, Input::Persisted(write.seq)));
    }
}

fn message(from: u64, term: u64, body: Message) -> Input {
    Input::Message(Envelope { from: NodeId(from), to: NodeId(1), term: Term(term), body })
}

/// Server 1 leads, `7` has written and `8` wants to read it: the others have it on their disks and say that 1 leads. Its own disk does nothing, so it is not
/// applied here.
fn committed_elsewhere() -> (Driver<u32, u32>, Told, Instant) {
    let (mut driver, mut told, now) = driving();
    driver.propose(now, b"x".to_vec().into(), 7);
    while driver.turn(now, &mut told) {}
    // The leader numbers the lives of its followers.
    for (other, epoch) in [(2, 1), (3, 2)] {
        driver.step(now, message(other, 1, Message::AppendAck(AppendAck { epoch, match_index: LogIndex(1) })));
    }
    while driver.turn(now, &mut told) {}
    driver.read(8);
    while driver.turn(now, &mut told) {}
    let (epoch, round, received, match_index) = (1, 1, LogIndex(1), LogIndex(1));
    let leads = HeartbeatReply { epoch, round, received, match_index, promise_ms: 0, priority: 0, vigil: 1 };
    driver.step(now, message(2, 1, Message::HeartbeatReply(leads)));
    while driver.turn(now, &mut told) {}
    let status = driver.core().status();
    assert_eq!((status.commit_index, status.durable_index, driver.waits()), (LogIndex(1), LogIndex(0), 2));
    (driver, told, now)
}

/// Time goes by, and nothing else happens.
fn pass(driver: &mut Driver<u32, u32>, told: &mut Told, until: Instant) {
    for alarms in 0.. {
        assert!(alarms < 1000, "it is always due: {told:?}");
        let now = driver.deadline();
        if now > until {
            return;
        }
        driver.step(now, Input::Wake);
        while driver.turn(now, told) {}
    }
}

#[test]
fn nobody_waits_for_the_disk_of_a_leader_that_has_stepped_down_because_of_it() {
    let (mut driver, mut told, now) = committed_elsewhere();
    let stall = driver.core().config().write_stall_limit();
    pass(&mut driver, &mut told, now + stall.saturating_sub(Duration::from_millis(1)));
    assert!(driver.core().is_leader() && driver.waits() == 2);
    pass(&mut driver, &mut told, now + stall);
    assert!(!driver.core().is_leader());
    assert_eq!(told.failed, [(7, RequestError::OutcomeUnknown)]);
    assert_eq!(told.failed_reads, [(8, RequestError::NotLeader { hint: None })]);
    assert_eq!(driver.waits(), 0);
}

/// One that has lost its leadership for another reason answers as soon as its disk goes on, but does not wait longer for it than a leader would.
#[test]
fn nobody_waits_for_ever_for_the_disk_of_a_server_that_leads_no_more() {
    for goes_on in [true, false] {
        let (mut driver, mut told, now) = committed_elsewhere();
        driver.step(now, message(2, 2, append(1, LogId::ZERO, &[], 0)));
        while driver.turn(now, &mut told) {}
        assert!(!driver.core().is_leader() && told.failed.is_empty() && told.failed_reads.is_empty(), "{told:?}");
        let stall = driver.core().config().write_stall_limit();
        pass(&mut driver, &mut told, now + stall.saturating_sub(Duration::from_millis(1)));
        assert_eq!(driver.waits(), 2, "{told:?}");
        // Also when no timer of the core's own goes off just then.
        assert!(driver.deadline() <= now + stall);
        if goes_on {
            let write = told.writes.iter().find(|write| !write.entries.is_empty()).expect("the command").seq;
            driver.step(now + stall, Input::Persisted(write));
            while driver.turn(now + stall, &mut told) {}
        }
        pass(&mut driver, &mut told, now + stall);
        assert_eq!(driver.waits(), 0);
        if goes_on {
            assert_eq!((told.applied, told.read, told.failed.len()), (vec![7], vec![8], 0));
        } else {
            assert_eq!(told.failed, [(7, RequestError::OutcomeUnknown)]);
            let hint = driver.core().leader();
            assert_eq!(told.failed_reads, [(8, RequestError::NotLeader { hint })]);
        }
    }
}

/// What a follower's client wants to see is on the disks of the others.
#[test]
fn nobody_waits_for_ever_to_read_at_a_follower_whose_disk_hangs() {
    let recovered = Recovered::fresh(Membership::of_voters([1, 2, 3].map(NodeId)));
    let core = Raft::new(config(), recovered, Instant(0)).expect("the settings are fine");
    let (mut driver, mut told, now) = (Driver::new(core), Told::default(), Instant(1));
    driver.step(now, message(2, 1, append(1, LogId::ZERO, &[1], 1)));
    while driver.turn(now, &mut told) {}
    driver.read(8);
    while driver.turn(now, &mut told) {}
    let asked = told.requests[0];
    driver.step(now, message(2, 1, Message::ReadIndexReply(ReadIndexReply { id: asked, index: LogIndex(1) })));
    while driver.turn(now, &mut told) {}
    assert_eq!(driver.waits(), 1);
    let stall = now + driver.core().config().write_stall_limit();
    while driver.waits() > 0 {
        let at = driver.deadline().min(stall);
        // Its leader lives.
        driver.step(at, message(2, 1, append(2, id(1, 1), &[], 1)));
        pass(&mut driver, &mut told, at);
        assert!(at < stall || driver.waits() == 0, "it is told in time");
    }
    assert_eq!(told.failed_reads, [(8, RequestError::NotLeader { hint: Some(NodeId(2)) })]);
}

#[test]
fn commands_wait_while_leadership_is_handed_over() {
    // It fails: they are taken in after all.
    let (mut driver, mut told, now) = driving();
    assert_eq!(driver.transfer_leadership(now, Some(NodeId(2))), Ok(NodeId(2)));
    driver.propose(now, b"x".to_vec().into(), 7);
    turns(&mut driver, &mut told, now);
    assert_eq!((told.failed.len(), driver.waits(), driver.core().status().last_log.index), (0, 1, LogIndex(0)));
    let later = now + Duration::from_millis(300);
    assert!(driver.deadline() <= later);
    driver.step(later, Input::Wake);
    turns(&mut driver, &mut told, later);
    assert_eq!((told.failed.len(), driver.waits(), driver.core().status().last_log.index), (0, 1, LogIndex(1)));

    // More than fits is refused, until then at the latest; it is nearly always over before the next heartbeat.
    let (mut driver, mut told, now) = driving();
    driver.transfer_leadership(now, Some(NodeId(2))).expect("it was heard");
    driver.propose(now, vec![0; 3 << 20].into(), 6);
    for (proposer, later) in [(7, 0), (8, 240)] {
        driver.propose(now + Duration::from_millis(later), vec![0; 3 << 20].into(), proposer);
    }
    turns(&mut driver, &mut told, now);
    let busy = |ms| RequestError::Busy { retry_after: Duration::from_millis(ms) };
    assert_eq!(told.failed, [(7, busy(100)), (8, busy(60))]);

    // It succeeds: they are told who leads next, as soon as that is known.
    let (mut driver, mut told, now) = driving();
    driver.transfer_leadership(now, Some(NodeId(2))).expect("it was heard");
    driver.step(now, message(2, 2, Message::RequestVote(VoteRequest { last_log: LogId::ZERO, transfer: true })));
    driver.propose(now, b"x".to_vec().into(), 7);
    turns(&mut driver, &mut told, now);
    assert_eq!((driver.core().is_leader(), told.failed.len(), driver.waits()), (false, 0, 1));
    driver.step(now, message(2, 2, append(1, LogId::ZERO, &[], 0)));
    turns(&mut driver, &mut told, now);
    assert_eq!(told.failed, [(7, RequestError::NotLeader { hint: Some(NodeId(2)) })]);

    // Nobody leads next: nobody waits for ever.
    let (mut driver, mut told, now) = driving();
    driver.transfer_leadership(now, Some(NodeId(2))).expect("it was heard");
    driver.step(now, message(2, 2, Message::RequestVote(VoteRequest { last_log: LogId::ZERO, transfer: true })));
    driver.propose(now, b"x".to_vec().into(), 7);
    turns(&mut driver, &mut told, now);
    let later = now + Duration::from_millis(300);
    assert!(told.failed.is_empty() && driver.deadline() <= later);
    turns(&mut driver, &mut told, later);
    assert_eq!(told.failed, [(7, RequestError::NotLeader { hint: None })]);
}

/// What is handed out makes room for what is asked for next. Whoever stops at the first turn leaves that to whatever wakes the server next: the entries of a
/// server that starts again then wait for a heartbeat each.
#[test]
fn turns_go_on_until_nothing_follows() {
    let (terms, last) = ([1; 5], LogIndex(5));
    let hard_state = HardState { current_term: Term(1), voted_for: None };
    let fresh = Recovered::fresh(Membership::of_voters([1, 2, 3].map(NodeId)));
    let recovered = Recovered { hard_state, runs: vec![id(1, 1)], last_index: last, ..fresh };
    // One entry is read from the disk at a time.
    let core = Raft::new(Config { max_append_bytes: 1, ..config() }, recovered, Instant(0)).expect("a possible past");
    let (mut driver, mut told, now) = (Driver::new(core), Told::default(), Instant(1));
    driver.step(now, message(2, 1, append(1, id(1, 5), &[], 5)));
    loop {
        turns(&mut driver, &mut told, now);
        let Some(Fetch { id, first, .. }) = told.fetches.pop() else { break };
        let entries = entries(first.0, &terms[..1]);
        driver.step(now, Input::Fetched { id, entries });
    }
    assert_eq!((driver.core().commit_index(), told.batches), (last, vec![vec![1], vec![2], vec![3], vec![4], vec![5]]));
}
