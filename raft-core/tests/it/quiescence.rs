//! A group in which nothing happens costs nothing. The hard interleavings are in `scripts/quiesce*.txt`; here is what can be counted.

use std::time::Duration;

use raft_core::{
    Config, ConfigError, Envelope, Event, Input, Instant, LogIndex, Membership, Message, NodeId, Raft, Recovered,
    StepDownReason, WriteSeq,
};

/// Servers on one clock. A message takes a millisecond; disks and state machines take no time.
struct Group {
    servers: Vec<Raft>,
    now: Instant,
    wire: Vec<(Instant, Envelope)>,
    /// Times that anything was fed to a core, and messages that were sent.
    steps: u64,
    sent: Vec<Envelope>,
    events: Vec<Event>,
    /// The disk of the first server does nothing; then this is the last write that it was given.
    hangs: bool,
    unfinished: Option<WriteSeq>,
}

fn config(id: u64) -> Config {
    Config { quiesce_after: Some(Duration::from_millis(500)), seed: 7, ..Config::new(NodeId(id)) }
}

impl Group {
    fn new(count: u64, change: impl Fn(&mut Config)) -> Group {
        let raft = |id| {
            let mut config = config(id);
            change(&mut config);
            let recovered = Recovered::fresh(Membership::of_voters((1..=count).map(NodeId)));
            Raft::new(config, recovered, Instant(0)).expect("the settings are fine")
        };
        let (now, servers) = (Instant(0), (1..=count).map(raft).collect());
        let (wire, sent, events) = (Vec::new(), Vec::new(), Vec::new());
        Group { servers, now, wire, steps: 0, sent, events, hangs: false, unfinished: None }
    }

    /// What is due until then happens, one thing after the other.
    fn run(&mut self, wait: Duration) {
        let until = self.now + wait;
        loop {
            let timer = self.servers.iter().map(Raft::deadline).min().unwrap_or(Instant::NEVER);
            let next = self.wire.iter().map(|(at, _)| *at).fold(timer, Instant::min);
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            let now = self.now;
            let arrived: Vec<_> = self.wire.extract_if(.., |(at, _)| *at <= now).collect();
            for (_, envelope) in arrived {
                let to = envelope.to.0 as usize - 1;
                self.step(to, Input::Message(envelope));
            }
            for i in 0..self.servers.len() {
                if self.servers[i].deadline() <= now {
                    self.step(i, Input::Wake);
                }
            }
        }
        self.now = until;
    }

    fn step(&mut self, i: usize, input: Input) {
        self.steps += 1;
        self.servers[i].step(self.now, input);
        self.pump(i);
    }

    fn pump(&mut self, i: usize) {
        let arrival = self.now + Duration::from_millis(1);
        let raft = &mut self.servers[i];
        loop {
            let output = raft.take_output();
            raft.check_invariants();
            if output.is_empty() {
                return;
            }
            self.sent.extend(output.messages.iter().cloned());
            self.wire.extend(output.messages.into_iter().map(|envelope| (arrival, envelope)));
            self.events.extend(output.events);
            if let Some(last) = output.apply.last_index() {
                raft.step(self.now, Input::Applied(last));
            }
            match output.write.map(|write| write.seq) {
                Some(seq) if self.hangs && i == 0 => self.unfinished = Some(seq),
                Some(seq) => raft.step(self.now, Input::Persisted(seq)),
                None => {}
            }
        }
    }

    fn leader(&self) -> usize {
        self.servers.iter().position(Raft::is_leader).expect("there is a leader")
    }

    fn propose(&mut self, command: &str) {
        let leader = self.leader();
        self.servers[leader].propose(self.now, &[command]).expect("it leads");
        self.pump(leader);
    }

    fn sleeps(&self) -> bool {
        let resting = |raft: &Raft| raft.status().quiesced && raft.deadline() == Instant::NEVER;
        self.wire.is_empty() && self.servers.iter().all(resting)
    }
}

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn a_group_in_which_nothing_happens_takes_no_step_and_sends_no_message() {
    for count in [1, 2, 3, 5] {
        let mut group = Group::new(count, |_| {});
        group.run(Duration::from_secs(5));
        assert!(group.sleeps(), "{count} servers are still busy");
        for command in ["one", "two", "three"] {
            let (steps, sent, leader) = (group.steps, group.sent.len(), group.leader());
            group.run(HOUR);
            assert_eq!((group.steps, group.sent.len(), group.leader()), (steps, sent, leader), "{count} servers");
            // What wakes it is served at once, by the same leader, and then it sleeps again.
            group.propose(command);
            let last = group.servers[leader].status().last_log.index;
            group.run(Duration::from_millis(10));
            assert!(group.servers.iter().all(|raft| raft.applied_index() == last), "{count} servers, {command}");
            group.run(Duration::from_secs(5));
            assert!(group.sleeps() && group.servers[leader].is_leader(), "{count} servers after {command}");
        }
        let terms: Vec<_> = group.servers.iter().map(Raft::current_term).collect();
        assert!(terms.iter().all(|term| *term == terms[0]), "nobody was elected anew: {terms:?}");
    }
}

#[test]
fn without_the_setting_nobody_ever_sleeps() {
    let mut group = Group::new(3, |config| config.quiesce_after = None);
    group.run(Duration::from_mins(1));
    assert!(group.servers.iter().all(|raft| !raft.status().quiesced && raft.deadline() < Instant::NEVER));
    assert!(!group.sent.iter().any(|envelope| matches!(envelope.body, Message::Quiesce(_))));
}

/// A driver that was not told to report links must not be sent to sleep by one that was: nobody would tell it that the leader is dead.
#[test]
fn a_follower_without_the_setting_stays_awake() {
    let mut group = Group::new(3, |config| {
        config.quiesce_after = config.quiesce_after.filter(|_| config.id.0 != 3);
        config.priority = u8::from(config.id.0 == 1);
    });
    group.run(Duration::from_mins(1));
    assert!(group.sent.iter().any(|envelope| matches!(envelope.body, Message::Quiesce(_))));
    assert!(!group.servers[2].status().quiesced && group.servers[2].deadline() < Instant::NEVER);
}

/// To forget the log is nobody else's business.
#[test]
fn a_sleeping_server_compacts_its_log_and_sleeps_on() {
    let mut group = Group::new(3, |_| {});
    group.run(Duration::from_secs(5));
    let sent = group.sent.len();
    for i in 0..3 {
        group.servers[i].compact(LogIndex(1));
        group.pump(i);
        assert_eq!(group.servers[i].log_start().index, LogIndex(1));
    }
    assert!(group.sleeps() && group.sent.len() == sent);
}

/// The disk of a leader may hang while it sleeps, if there is anything to write.
#[test]
fn a_sleeping_leader_whose_disk_hangs_steps_down() {
    let mut group = Group::new(3, |config| config.priority = u8::from(config.id.0 == 1));
    group.run(Duration::from_secs(20));
    assert!(group.sleeps() && group.leader() == 0, "the one that should lead does");
    group.hangs = true;
    group.servers[0].compact(LogIndex(1));
    group.pump(0);
    assert!(group.unfinished.is_some() && group.servers[0].deadline() < Instant::NEVER);
    group.events.clear();
    group.run(Duration::from_millis(900));
    let stalled = |event: &Event| matches!(event, Event::SteppedDown { reason: StepDownReason::WriteStalled, .. });
    assert!(group.events.iter().any(stalled), "{:?}", group.events);
}

/// Its node may be as well as before, so nobody else would tell them. Those that are awake need no telling, and nothing that is on its way is sent again.
#[test]
fn a_leader_that_is_about_to_end_wakes_those_who_sleep_and_nobody_else() {
    let mut group = Group::new(3, |_| {});
    group.run(Duration::from_secs(5));
    assert!(group.sleeps());
    let leader = group.leader();
    let tells = |group: &mut Group, server: usize| {
        let before = group.sent.len();
        group.servers[server].wake_others(group.now);
        group.pump(server);
        group.sent[before..].to_vec()
    };
    let told = tells(&mut group, (leader + 1) % 3);
    assert!(group.sleeps() && told.is_empty(), "a follower is not missed: {told:?}");

    let told = tells(&mut group, leader);
    assert!(told.len() == 2 && told.iter().all(|sent| matches!(sent.body, Message::Heartbeat(_))), "{told:?}");
    group.run(Duration::from_millis(1));
    assert!(group.servers.iter().all(|raft| !raft.status().quiesced && raft.deadline() < Instant::NEVER));

    group.propose("on its way");
    assert!(group.servers[leader].status().followers.iter().all(|follower| follower.inflight_appends > 0));
    assert_eq!(tells(&mut group, leader), [], "all are awake");
}

/// Else it would never hand over.
#[test]
fn a_leader_does_not_sleep_before_whoever_should_rather_lead() {
    let mut group = Group::new(3, |config| config.priority = config.id.0 as u8);
    group.run(Duration::from_mins(1));
    assert!(group.sleeps());
    assert_eq!(group.leader(), 2);
}

#[test]
fn everybody_must_have_had_time_to_answer_before_a_group_sleeps() {
    let config = Config { quiesce_after: Some(Duration::from_millis(199)), ..config(1) };
    let recovered = Recovered::fresh(Membership::of_voters([NodeId(1)]));
    let refused = Raft::new(config, recovered, Instant(0)).err();
    assert_eq!(refused, Some(ConfigError::Quiescence));
}
