//! One server among liars: messages that are nearly right or wild, from members and strangers, answers to questions that nobody asked,
//! and a driver that reports what it was never given.
//!
//! What others say cannot be trusted here, so little of Raft's safety can hold. What a server promises *by itself* must: it does not
//! panic, its cursors are in order, it takes back neither term, vote nor commit, says nothing that its disk does not back, and
//! hands out writes and entries as it promised its driver.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use super::Choices;
use crate::change::MembershipChange;
use crate::config::Config;
use crate::entries::{ENTRY_HEADER, Entries, EntryKind, Segment};
use crate::io::{
    Event, FetchId, Input, Output, ReadId, ReadOutcome, Recovered, Restore, SnapshotId, SnapshotMeta, SnapshotReceived,
};
use crate::membership::Membership;
use crate::message::{
    AppendAck, AppendEntries, AppendReject, Envelope, Heartbeat, HeartbeatReply, Message, Quiesce, ReadIndex,
    ReadIndexReply, TimeoutNow, VoteReply, VoteRequest,
};
use crate::raft::Raft;
use crate::sim::checker::Checker;
use crate::sim::disk::Disk;
use crate::status::{Role, Status};
use crate::types::{Instant, LogId, LogIndex, NodeId, Term, WriteSeq};

const ME: NodeId = NodeId(1);

/// Feeds one server with what `data` describes. Says whether it led at some time, or committed something.
pub fn hostile(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let mut server = Server::new(&mut choices);
    let mut good = false;
    while !choices.is_over() {
        server.act(&mut choices);
        let status = server.settle();
        good |= status.role == Role::Leader || status.commit_index > LogIndex::ZERO;
    }
    good
}

struct Server {
    raft: Raft,
    disk: Disk,
    /// Knows what a server may say.
    checker: Checker,
    config: Config,
    members: u64,
    now: Instant,
    /// Writes complete at once.
    quick_disk: bool,
    before: Status,
    applied: LogIndex,
    reads: BTreeSet<ReadId>,
    /// The snapshot that the state machine is to take over.
    restoring: Option<Restore>,
}

impl Server {
    fn new(choices: &mut Choices<'_>) -> Self {
        let members = choices.one_of([5, 1, 2, 3, 4, 10]);
        let mut config = Config {
            pre_vote: choices.flip(),
            check_quorum: choices.flip(),
            no_op_on_election: choices.flip(),
            max_append_bytes: choices.one_of([1 << 20, 1, 64]),
            max_inflight_appends: choices.one_of([256, 1, 3]),
            max_inflight_bytes: choices.one_of([1 << 20, 1, 100]),
            max_uncommitted_bytes: choices.one_of([1 << 20, 1, 100]),
            max_unapplied_bytes: choices.one_of([1 << 20, 1, 100]),
            max_cached_bytes: choices.one_of([1 << 20, 0, 64]),
            max_reject_runs: choices.one_of([256, 1, 2]),
            election_timeout: Duration::from_millis(300),
            heartbeat_interval: Duration::from_millis(100),
            seed: choices.between(0, 255),
            ..Config::new(ME)
        };
        config.commit_notification_delay = Duration::from_millis(if config.seed % 5 == 1 { 2 } else { 0 });
        config.quiesce_after = config.seed.is_multiple_of(2).then_some(Duration::from_millis(200));
        let recovered = Recovered::fresh(Membership::of_voters((1..=members).map(NodeId)));
        let raft = Raft::new(config.clone(), recovered, Instant(0)).expect("the settings are fine");
        let before = raft.status();
        Server {
            raft,
            disk: Disk::empty(),
            checker: Checker::default(),
            config,
            members,
            now: Instant(0),
            quick_disk: !choices.flip(),
            before,
            applied: LogIndex::ZERO,
            reads: BTreeSet::new(),
            restoring: None,
        }
    }

    fn act(&mut self, choices: &mut Choices<'_>) {
        let now = self.now;
        match choices.between(0, 31) {
            0 => {
                // Of a write under way a driver tells the truth; only numbers that it was never given are made up.
                let seq = WriteSeq(choices.number(3));
                self.disk.complete(seq).expect("what was accepted can be carried out");
                self.raft.step(now, Input::Persisted(seq));
            }
            1 => self.raft.step(now, Input::Applied(LogIndex(choices.number(self.before.commit_index.0)))),
            2 => {
                let (id, after) = (FetchId(choices.number(2)), self.log_id(choices));
                self.raft.step(now, Input::Fetched { id, entries: entries(choices, after) });
            }
            3 => self.raft.step(now, Input::LinkReset(NodeId(choices.number(2)))),
            4..=6 => self.time_out(),
            7 => {
                self.now = Instant(choices.number(self.now.0));
                self.raft.step(self.now, Input::Wake);
            }
            8..=9 => self.propose(choices),
            10 => {
                if let Ok(id) = self.raft.read_index(now) {
                    assert!(self.reads.insert(id), "two reads with one id");
                }
            }
            11 => self.quick_disk = !self.quick_disk,
            18 if choices.flip() => self.change_membership(choices),
            12..=14 => self.stand_and_win(),
            15..=17 => self.lead_it(choices),
            18 => self.snapshot(choices),
            _ => {
                let input = self.message(choices);
                self.raft.step(now, input);
            }
        }
    }

    /// Compaction, snapshots of whatever anybody claims, and reports about snapshots that were never asked for.
    fn snapshot(&mut self, choices: &mut Choices<'_>) {
        let input = match choices.between(0, 7) {
            0..=1 => return self.raft.compact(LogIndex(choices.number(self.applied.0))),
            2 => Input::SnapshotSent {
                to: NodeId(choices.between(0, self.members)),
                epoch: choices.between(0, 40),
                last: choices.flip().then(|| self.log_id(choices)),
            },
            3 => Input::Restored(SnapshotId(choices.between(0, 3))),
            4..=5 => {
                let last = if choices.flip() { self.log_id(choices) } else { self.beyond(choices) };
                let membership = Membership::of_voters((1..=self.members).map(NodeId));
                Input::SnapshotReceived(SnapshotReceived {
                    from: NodeId(self.before.leader.map_or(2, |id| id.0)),
                    term: Term(self.before.current_term.0.saturating_add(choices.between(0, 9) / 8)),
                    epoch: choices.between(0, 3),
                    meta: SnapshotMeta { last, membership },
                    id: SnapshotId(choices.between(0, 3)),
                })
            }
            _ => match self.restoring.clone() {
                Some(restore) => Input::Restored(restore.id),
                None => return,
            },
        };
        if let (Input::Restored(id), Some(restore)) = (&input, &self.restoring)
            && *id == restore.id
        {
            self.applied = restore.meta.last.index;
            self.restoring = None;
        }
        self.raft.step(self.now, input);
    }

    /// Some way behind the end of the log.
    fn beyond(&self, choices: &mut Choices<'_>) -> LogId {
        let (last, term) = (self.before.last_log, self.before.current_term);
        LogId::new(Term(term.0.min(last.term.0.max(1))), LogIndex(last.index.0.saturating_add(choices.between(1, 20))))
    }

    fn time_out(&mut self) {
        // The end of time is left to the clock that jumps.
        self.now = self.now.max(self.raft.deadline().min(self.now + Duration::from_secs(1)));
        self.raft.step(self.now, Input::Wake);
    }

    fn propose(&mut self, choices: &mut Choices<'_>) {
        let (count, size) = (choices.between(0, 3), choices.between(0, 60) as usize);
        let commands = vec![vec![b'c'; size]; count as usize];
        let last = self.raft.status().last_log.index;
        if let Ok(proposed) = self.raft.propose(self.now, &commands) {
            assert_eq!((proposed.first, proposed.last), (last.next(), last + count));
            assert_eq!(proposed.term, self.raft.current_term());
        }
    }

    fn change_membership(&mut self, choices: &mut Choices<'_>) {
        let mut change = MembershipChange::new();
        for _ in 0..choices.between(0, 4) {
            let id = NodeId(choices.between(0, 11));
            match choices.between(0, 3) {
                0 => change.voters.push(id),
                1 => change.learners.push(id),
                2 => change.removed.push(id),
                _ => change.info.push((id, Bytes::from(vec![b'i'; choices.between(0, 9) as usize]))),
            }
        }
        change.forced = choices.flip();
        // Most of those who join are introduced.
        let joins = |id: &NodeId| id.0 < 10 && !self.raft.membership().1.contains(*id);
        let joining: Vec<NodeId> = change.voters.iter().chain(&change.learners).copied().filter(joins).collect();
        change.identities.extend(joining.into_iter().map(|id| (id, 0)));
        let (last, before) = (self.raft.status().last_log.index, self.raft.membership().1.clone());
        if let Ok(entry) = self.raft.change_membership(self.now, &change) {
            let (index, membership) = self.raft.membership();
            assert!(entry.index == last.next() && index == entry.index && self.raft.is_leader());
            assert!(!before.is_joint() && *membership != before && !membership.voters().is_empty());
            assert!(membership.is_joint() || membership.voters() == before.voters(), "{before:?} to {membership:?}");
        }
    }

    /// Everybody votes for this server.
    fn stand_and_win(&mut self) {
        self.time_out();
        for _ in 0..2 {
            self.settle();
            let (term, role) = (self.raft.current_term(), self.before.role);
            let voters = self.raft.membership().1.members().into_iter().filter(|id| *id != ME);
            for voter in voters.map(|id| id.0).collect::<Vec<_>>() {
                let reply = |election| VoteReply { election, granted: true };
                let body = match role {
                    Role::PreCandidate => Message::PreVoteReply(reply(Term(term.0 + 1))),
                    Role::Candidate => Message::RequestVoteReply(reply(term)),
                    Role::Follower | Role::Leader => return,
                };
                self.raft.step(self.now, Input::Message(envelope(voter, term, body)));
            }
        }
    }

    /// A leader of this term, or of a later one, sends something that fits.
    fn lead_it(&mut self, choices: &mut Choices<'_>) {
        let leader = self.before.leader.filter(|id| *id != ME).map_or(2, |id| id.0);
        let term = Term(self.before.current_term.0.saturating_add(choices.between(0, 9) / 8));
        let prev_log = if choices.chance(3, 4) { self.before.last_log } else { self.log_id(choices) };
        let epoch = choices.between(0, 3);
        let entries = entries(choices, prev_log);
        let leader_commit = LogIndex(choices.number(prev_log.index.0));
        let append = AppendEntries { epoch, seq: 1, prev_log, leader_commit, entries };
        self.raft.step(self.now, Input::Message(envelope(leader, term, Message::AppendEntries(append))));
    }

    /// Somewhere near the log: an entry of it, or nearly.
    fn log_id(&self, choices: &mut Choices<'_>) -> LogId {
        let index = LogIndex(choices.number(self.before.last_log.index.0));
        match self.raft.term_at(index) {
            Some(term) if choices.chance(3, 4) => LogId::new(term, index),
            _ => LogId::new(Term(choices.number(self.before.current_term.0)), index),
        }
    }

    fn message(&self, choices: &mut Choices<'_>) -> Input {
        let from = if choices.chance(1, 32) { choices.number(3) } else { choices.between(2, self.members.max(2)) };
        let to = if choices.chance(1, 64) { NodeId(choices.number(1)) } else { ME };
        let current = self.before.current_term.0;
        // Terms creep upwards, so that there is time for things to happen within one.
        let term = Term(if choices.chance(1, 8) { choices.number(current) } else { current });
        let body = self.body(choices);
        Input::Message(Envelope { to, ..envelope(from, term, body) })
    }

    fn body(&self, choices: &mut Choices<'_>) -> Message {
        let (last, commit) = (self.before.last_log.index.0, self.before.commit_index.0);
        let (epoch, seq) = (choices.between(0, 40), choices.between(0, 12));
        let index = |choices: &mut Choices<'_>, near| LogIndex(choices.number(near));
        match choices.between(0, 12) {
            0 => Message::PreVote(VoteRequest { last_log: self.log_id(choices), transfer: choices.flip() }),
            1 => Message::RequestVote(VoteRequest { last_log: self.log_id(choices), transfer: choices.flip() }),
            2 => Message::PreVoteReply(self.vote(choices)),
            3 => Message::RequestVoteReply(self.vote(choices)),
            4 => Message::AppendAck(AppendAck { epoch, match_index: index(choices, last) }),
            5 => Message::AppendReject(AppendReject {
                epoch,
                seq,
                last_index: index(choices, last),
                commit_index: index(choices, commit),
                runs: (0..choices.between(0, 3)).map(|_| self.log_id(choices)).collect(),
            }),
            6 => Message::Heartbeat(Heartbeat {
                epoch,
                commit: index(choices, commit),
                round: choices.flip().then(|| choices.number(3)),
            }),
            7 => Message::HeartbeatReply(HeartbeatReply {
                epoch,
                round: choices.number(3),
                received: index(choices, last),
                match_index: index(choices, last),
                promise_ms: choices.number(300) as u32,
                priority: choices.between(0, 2) as u8,
                vigil: 1,
            }),
            8 => Message::TimeoutNow(TimeoutNow { last_log: self.log_id(choices) }),
            9 => Message::ReadIndex(ReadIndex { id: choices.number(1) }),
            10 => Message::ReadIndexReply(ReadIndexReply { id: choices.number(1), index: index(choices, commit) }),
            11 => {
                let last = if choices.chance(3, 4) { self.before.last_log } else { self.log_id(choices) };
                let vigil = if choices.chance(3, 4) { self.raft.vigil } else { choices.number(1) };
                Message::Quiesce(Quiesce { last, vigil })
            }
            _ => {
                let prev_log = self.log_id(choices);
                let entries = entries(choices, prev_log);
                let leader_commit = index(choices, commit);
                Message::AppendEntries(AppendEntries { epoch, seq, prev_log, leader_commit, entries })
            }
        }
    }

    /// An answer to an election of this term, to a pre-vote for the next, or to none.
    fn vote(&self, choices: &mut Choices<'_>) -> VoteReply {
        let election = self.before.current_term.0.saturating_add(choices.between(0, 1));
        let election = Term(if choices.chance(1, 8) { choices.number(election) } else { election });
        VoteReply { election, granted: !choices.chance(1, 4) }
    }

    /// The driver's loop, with a look at everything that comes out. Not for ever: at the end of time the next heartbeat is always due.
    fn settle(&mut self) -> Status {
        for _ in 0..8 {
            let output = self.raft.take_output();
            let idle = output.is_empty();
            self.carry_out(&output);
            self.observe();
            self.answer(&output);
            if idle {
                break;
            }
        }
        self.before.clone()
    }

    fn carry_out(&mut self, output: &Output) {
        let kept = |outcome: Result<(), String>| outcome.unwrap_or_else(|what| panic!("{what}"));
        for event in output.events.iter().filter(|event| !matches!(event, Event::Rejected { .. })) {
            kept(self.checker.heard(ME, event));
        }
        if let Some(write) = &output.write {
            let led = self.before.role == Role::Leader && self.before.current_term == self.raft.current_term();
            assert!(!led || write.truncate_from.is_none(), "a leader cuts its own log");
            assert!(
                write.truncate_from.is_none_or(|from| from > self.before.commit_index),
                "committed entries are cut"
            );
            kept(self.disk.accept(write.clone()));
        }
        for envelope in &output.messages {
            assert!(envelope.from == ME && envelope.to != ME && envelope.to.0 > 0, "{envelope:?}");
            assert!(envelope.term <= self.raft.current_term(), "{envelope:?}");
            kept(self.checker.said(ME, envelope, &self.disk));
            self.check_size(&envelope.body);
        }
        for entry in output.apply.iter() {
            assert_eq!(self.restoring, None, "the state machine is busy");
            assert_eq!(entry.index, self.applied.next(), "skipped or repeated");
            assert_eq!(self.disk.durable().id_at(entry.index), Some(entry.id()), "applied before it is durable");
            self.applied = entry.index;
        }
        if let Some(restore) = &output.restore {
            assert_eq!(self.restoring, None, "one at a time");
            assert!(restore.meta.last.index > self.applied, "back to {restore:?}");
            self.restoring = Some(restore.clone());
        }
        for wanted in &output.snapshots {
            assert!(self.before.log_start.index <= wanted.at_least && wanted.to != ME, "{wanted:?}");
        }
        for fetch in &output.fetches {
            assert!(fetch.first <= fetch.last && fetch.last <= self.raft.status().last_log.index, "{fetch:?}");
        }
        for outcome in &output.reads {
            let (ReadOutcome::Ready { id, .. } | ReadOutcome::Lost { id }) = outcome;
            assert!(self.reads.remove(id), "a read that nobody asked, or that was answered: {outcome:?}");
        }
    }

    /// What honest workers answer.
    fn answer(&mut self, output: &Output) {
        if let Some(last) = output.apply.last_index() {
            self.raft.step(self.now, Input::Applied(last));
        }
        let newest = self.disk.pending().next_back().map(|write| write.seq);
        if let Some(seq) = newest.filter(|_| self.quick_disk) {
            self.disk.complete(seq).expect("what was accepted can be carried out");
            self.raft.step(self.now, Input::Persisted(seq));
        }
        for fetch in &output.fetches {
            let entries = self.disk.read(fetch);
            self.raft.step(self.now, Input::Fetched { id: fetch.id, entries });
        }
    }

    fn check_size(&self, message: &Message) {
        match message {
            Message::AppendEntries(AppendEntries { entries, .. }) => {
                assert!(entries.len() <= 1 || entries.byte_len() <= self.config.max_append_bytes);
            }
            Message::AppendReject(reject) => assert!(reject.runs.len() <= self.config.max_reject_runs),
            _ => {}
        }
    }

    fn observe(&mut self) {
        self.raft.check_invariants();
        let (old, new) = (&self.before, self.raft.status());
        assert!(new.current_term >= old.current_term && new.commit_index >= old.commit_index, "{old:?}, then {new:?}");
        let vote_stands = old.voted_for.is_none() || new.voted_for == old.voted_for;
        assert!(new.current_term > old.current_term || vote_stands, "{old:?}, then {new:?}");
        assert!(new.current_term <= Term::MAX && new.last_log.index <= LogIndex::MAX.next(), "{new:?}");
        assert!(new.applied_index <= self.applied);
        let held = new.durable_index.max(new.log_start.index);
        assert!(self.applied <= new.commit_index.min(held) && new.commit_index <= new.last_log.index);
        assert_eq!(new.last_log, self.disk.live().last(), "the log in memory is not the one on disk");
        let durable = self.disk.durable().id_at(new.durable_index);
        // What was forgotten cannot be compared.
        let starts = [self.disk.live().start().index, self.disk.durable().start().index];
        let behind = starts.iter().any(|start| new.durable_index < *start);
        let same = durable.is_some() && durable == self.disk.live().id_at(new.durable_index);
        assert!(behind || same, "{new:?}");
        let newly_led = new.role == Role::Leader && new.commit_index > old.commit_index && old.role == Role::Leader;
        let committed_term = self.raft.term_at(new.commit_index);
        // What a snapshot holds was committed by others.
        let shown = new.commit_index == new.log_start.index;
        assert!(!newly_led || shown || committed_term == Some(new.current_term), "committed by counting: {new:?}");
        for follower in &new.followers {
            assert!(follower.inflight_appends <= self.config.max_inflight_appends, "{follower:?}");
            // The last append that was let through may exceed the limit.
            let most =
                self.config.max_inflight_bytes.saturating_add(self.config.max_append_bytes.max(ENTRY_HEADER + 64));
            assert!(follower.inflight_bytes <= most, "{follower:?}");
        }
        self.before = new;
    }
}

fn envelope(from: u64, term: Term, body: Message) -> Envelope {
    Envelope { from: NodeId(from), to: ME, term, body }
}

/// Some entries after `after`, or nearly.
fn entries(choices: &mut Choices<'_>, after: LogId) -> Entries {
    let mut entries = Entries::new();
    let (mut index, mut term) = (after.index.next(), after.term);
    if choices.chance(1, 16) {
        index = LogIndex(choices.number(index.0).max(1));
    }
    for _ in 0..choices.between(0, 4) {
        term = Term(term.0.saturating_add(choices.between(0, 5) / 4));
        let payload = Bytes::from(vec![b'x'; choices.between(0, 20) as usize]);
        let segment = match choices.between(0, 15) {
            // What others take for the cluster; and what nobody can understand.
            0 => Segment::pack(index, term, EntryKind::Membership, &[membership(choices).encode()]),
            1 if choices.chance(1, 4) => Segment::pack(index, term, EntryKind::Membership, &[payload]),
            _ => Segment::pack(index, term, EntryKind::Command, &[payload]),
        };
        let Some(segment) = segment else { break };
        if entries.push(segment).is_err() {
            break;
        }
        index = index.next();
    }
    entries
}

fn membership(choices: &mut Choices<'_>) -> Membership {
    let mut change = MembershipChange::new();
    for id in 1..=choices.between(0, 5) {
        match choices.between(0, 3) {
            0 => change.learners.push(NodeId(id)),
            _ => change.voters.push(NodeId(id)),
        }
    }
    // Joint, if there are voters that differ; and nobody at all, if the change makes no sense.
    let before = Membership::of_voters((0..choices.between(0, 3)).map(|id| NodeId(id + 2)));
    change.identities = change.voters.iter().chain(&change.learners).map(|id| (*id, 0)).collect();
    before.changed(&change).unwrap_or_default()
}
