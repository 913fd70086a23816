//! The gateway: every input comes in here, every output leaves here, and the rules about terms are here.

#[cfg(feature = "sim")]
mod explored;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::config::{Config, ConfigError};
use crate::durability::Durability;
use crate::entries::Entries;
use crate::forward::Forwarded;
use crate::io::{
    Anomaly, Event, Fetch, FetchId, Input, Output, Pending, ReadId, ReadOutcome, Recovered, StepDownReason, WakeReason,
    Write,
};
use crate::log::Log;
use crate::memberships::Memberships;
use crate::message::{Envelope, Message};
use crate::progress::Progress;
use crate::recovery;
use crate::role::{Reader, RoleState};
use crate::snapshot::Restoring;
use crate::types::{HardState, Instant, LogIndex, NodeId, Term, WriteSeq};

/// One server of a Raft cluster, as a deterministic state machine. See the [crate]'s documentation for the order of calls.
///
/// Invariants, checked by [`Raft::check_invariants`] and in simulation after every step:
///
/// 1. `log start <= applied <= applying <= min(commit, durable) <= last`, where what lies at or before the start of the log counts as durable.
/// 2. Term and vote change only together with a write that records them; no promise leaves before that write is durable.
/// 3. The term never goes back, and a vote given in a term is never taken back.
/// 4. A leader's commit index moves only to entries of its own term (paper, section 5.4.2), or to the end of a snapshot that it has taken over.
/// 5. While the state machine takes over a snapshot, nothing is handed to it, and what the snapshot ends with is the highest entry that may
///    count as committed, unless the log holds it by now. A leader's log does.
/// 6. A leader never truncates or overwrites its log (Leader Append-Only, paper, section 5.3).
#[derive(Clone, Debug)]
pub struct Raft {
    pub(crate) config: Config,
    pub(crate) memberships: Memberships,
    /// The newest membership that is known to be committed, and whether this server belongs to it.
    pub(crate) settled: LogIndex,
    pub(crate) belongs: bool,
    pub(crate) hard_state: HardState,
    pub(crate) log: Log,
    pub(crate) durability: Durability,
    pub(crate) role: RoleState,
    /// The leader of the current term, once it is known.
    pub(crate) leader: Option<NodeId>,
    /// When the leader was last heard.
    pub(crate) leader_heard_at: Instant,
    /// The shortest time to the next election, in nanoseconds, between 1 and what may be doubled without overflow. From the settings.
    election_base: u64,
    /// When to campaign, unless a leader is heard before.
    pub(crate) election_at: Instant,
    /// This server stands or has voted since it last heard a leader, and nothing has come of that yet.
    pub(crate) election_open: bool,
    /// How many elections have come to nothing since a leader was last heard.
    pub(crate) failed_elections: u32,
    /// The group sleeps, as far as this server knows; it follows or leads. See [`Config::quiesce_after`].
    pub(crate) quiesced: bool,
    /// Number of the time since it last slept, or heard of a link that was reset. Drawn at the start.
    pub(crate) vigil: u64,
    /// Reads that a leader must be asked about.
    pub(crate) forwarded: Forwarded,
    /// As a follower: up to here the log is known to equal the current leader's.
    pub(crate) verified: LogIndex,
    /// As a follower: the acknowledgement that is owed to the leader, by epoch.
    pub(crate) owed_ack: Option<u64>,
    /// As a follower: the match index that the last acknowledgement told.
    pub(crate) told_match: LogIndex,
    pub(crate) rng: SmallRng,
    /// The latest time handed in.
    pub(crate) now: Instant,
    pub(crate) next_epoch: u64,
    next_read: u64,
    next_fetch: u64,
    /// The fetch that brings the next entries to apply.
    pub(crate) apply_fetch: Option<FetchId>,
    /// What was handed to the state machine and not reported as applied: last index and bytes of each batch, and their sum.
    applying: std::collections::VecDeque<(LogIndex, usize)>,
    applying_bytes: usize,
    pub(crate) restoring: Restoring,
    pub(crate) out: Pending,
    /// See [`Raft::has_output`].
    pub(crate) stirred: bool,
}

impl Raft {
    /// Starts a server from what its disk and its state machine remember.
    ///
    /// # Errors
    /// When settings or recovered state contradict themselves; nothing has happened then.
    pub fn new(config: Config, recovered: Recovered, now: Instant) -> Result<Raft, ConfigError> {
        config.validate()?;
        let installed = recovery::check(&recovered)?;
        let Recovered { hard_state, log_start, runs, last_index, applied, membership, changes, restored: _ } =
            recovered;
        let election_base = (Instant(0) + config.election_timeout).0.clamp(1, u64::MAX >> 4);
        let seed = config.seed ^ config.id.0.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // Far from the end of the numbers.
        let mut names = SmallRng::seed_from_u64(!seed);
        let (first_request, first_vigil) = (names.random_range(1..u64::MAX / 2), names.random_range(1..u64::MAX / 2));
        let memberships = Memberships::new(log_start.index, membership, changes);
        let mut raft = Raft {
            settled: memberships.index().min(applied),
            belongs: memberships.at(applied).has_member(config.id, config.identity),
            config,
            memberships,
            hard_state,
            log: Log::new(log_start, runs, last_index, applied),
            durability: Durability::new(last_index),
            role: RoleState::Follower,
            leader: None,
            leader_heard_at: now,
            election_base,
            election_at: now,
            election_open: false,
            failed_elections: 0,
            quiesced: false,
            vigil: first_vigil,
            forwarded: Forwarded::new(first_request),
            verified: applied,
            owed_ack: None,
            told_match: LogIndex::ZERO,
            rng: SmallRng::seed_from_u64(seed),
            now,
            next_epoch: 1,
            next_read: 1,
            next_fetch: 1,
            apply_fetch: None,
            applying: std::collections::VecDeque::new(),
            applying_bytes: 0,
            restoring: Restoring::default(),
            out: Pending::default(),
            stirred: true,
        };
        if let Some(start) = installed {
            raft.finish_install(start);
        }
        raft.reset_election_timer();
        Ok(raft)
    }

    /// Takes in one event. Never fails and never panics, whatever the input; what makes no sense is dropped, with an
    /// [`Event::Rejected`]. Time that runs backwards is taken for time that stands still.
    ///
    /// Timers wait for [`take_output`](Self::take_output): after a pause, the heartbeat, the answer or the finished write that has
    /// come in by then counts before the silence does, in whatever order a batch of events is handed in.
    #[expect(
        clippy::inline_always,
        reason = "whoever calls it knows which input it is: nothing is moved, nothing is asked again"
    )]
    #[inline(always)]
    pub fn step(&mut self, now: Instant, input: Input) {
        self.now = self.now.max(now);
        match input {
            Input::Message(mut message) => self.receive(&mut message),
            Input::Persisted(seq) => {
                // Now, while it is known that there is nothing to drop in it.
                drop(input);
                self.persisted(seq);
            }
            Input::Applied(index) => {
                drop(input);
                self.applied(index);
            }
            other => self.step_seldom(other),
        }
    }

    fn step_seldom(&mut self, input: Input) {
        self.stirred = true;
        match input {
            Input::Wake | Input::Message(_) | Input::Persisted(_) | Input::Applied(_) => {}
            Input::Fetched { id, entries } => self.fetched(id, &entries),
            Input::LinkReset(peer) => self.link_reset(peer),
            Input::SnapshotSent { to, epoch, last } => self.snapshot_sent(to, epoch, last),
            Input::SnapshotReceived(received) => self.snapshot_received(received),
            Input::Restored(id) => self.restored(id),
        }
    }

    /// Takes in a message where it lies, as [`step`](Self::step) does, without moving it; its entries are taken out of it if they are of use.
    pub fn step_message(&mut self, now: Instant, message: &mut Envelope) {
        self.now = self.now.max(now);
        self.receive(message);
    }

    /// Whether the output is worth taking: something has come in since, or something was left. Without that, and before the
    /// [`deadline`](Self::deadline), there is nothing in it that could not wait until then. A look in vain does no harm.
    pub fn has_output(&self) -> bool {
        self.stirred
    }

    /// When to [`step`](Self::step) with [`Input::Wake`] at the latest, if nothing else happens before; [`Instant::NEVER`] while the group
    /// [sleeps](Config::quiesce_after). Ask again after every [`take_output`](Self::take_output).
    pub fn deadline(&self) -> Instant {
        match &self.role {
            RoleState::Follower if self.quiesced => Instant::NEVER,
            RoleState::Leader(leader) => {
                let mut at = if self.quiesced { Instant::NEVER } else { leader.heartbeat_at };
                if self.config.check_quorum && !self.quiesced {
                    at = at.min(self.quorum_heard_at(leader) + self.config.election_timeout);
                }
                at = leader.transfer.map_or(at, |transfer| at.min(transfer.until));
                at = leader.news_at.map_or(at, |news| at.min(news));
                self.durability.stalled_at(self.config.write_stall_limit()).map_or(at, |stall| at.min(stall))
            }
            _ => self.forwarded_deadline().map_or(self.election_at, |at| at.min(self.election_at)),
        }
    }

    /// What is to be done now. Call it after one step or after many: everything that has come together travels together.
    pub fn take_output(&mut self) -> Output {
        let mut output = Output::default();
        self.take_output_into(&mut output);
        output
    }

    /// The same, in the place of an output that was carried out: its memory is used again. What is left in it is forgotten.
    pub fn take_output_into(&mut self, output: &mut Output) {
        let expected = !cfg!(debug_assertions) || self.stirred || self.now >= self.deadline() || self.tries_again();
        self.stirred = false;
        if !self.restoring.is_empty() {
            self.drop_useless_snapshot();
        }
        self.check_timers();
        self.lead();
        self.ask_leader();
        self.notice_removal();
        self.acknowledge();
        self.write(&mut output.write);
        self.release();
        self.apply(&mut output.apply);
        if output.restore.is_some() || !self.restoring.is_empty() {
            output.restore = self.hand_out_restore();
        }
        let durable = self.durability.durable();
        self.log.evict(durable, self.config.max_cached_bytes, self.config.max_unapplied_bytes);
        self.out.hand_over(output);
        debug_assert!(expected || output.is_empty(), "was quiet, and has output: {self:?} {output:?}");
        // More may be there to be applied than fits at a time. For what has to come first, somebody has to come in.
        let waits = self.apply_fetch.is_some() || self.restoring.handed_out().is_some() || self.has_enough_to_apply();
        self.stirred |= self.may_apply() && !waits;
    }

    /// Sends what has waited for the disk.
    fn release(&mut self) {
        if !self.durability.holds_back() {
            return;
        }
        let term = self.hard_state.current_term;
        let stands = matches!(self.role, RoleState::Candidate(_));
        let mut voted = false;
        self.out.messages.extend(self.durability.released().filter(|message| {
            let (request, vote) = match &message.body {
                Message::RequestVote(_) => (true, false),
                Message::RequestVoteReply(reply) => (false, reply.granted),
                _ => return true,
            };
            let current = message.term == term && (!request || stands);
            voted |= current && (request || vote);
            // An election that is over needs no more votes; and the log that the request speaks of may be another by now.
            !request || current
        }));
        if voted && self.election_open {
            // The others have heard nothing before: a slow disk must not use up the time in which they could answer.
            self.reset_election_timer();
        }
    }

    fn receive(&mut self, message: &mut Envelope) {
        self.stirred = true;
        let (from, own) = (message.from, self.config.id);
        // What nearly all are: of the present term, and nothing in them is out of range.
        if message.term == self.hard_state.current_term && message.to == own && from != own && from.0 != 0 {
            match &mut message.body {
                Message::AppendAck(ack) => return self.on_append_ack(from, *ack),
                Message::Heartbeat(heartbeat) => return self.on_heartbeat(from, *heartbeat),
                Message::AppendEntries(append)
                    if append.prev_log.term <= Term::MAX && append.prev_log.index <= LogIndex::MAX =>
                {
                    return self.on_append(from, append);
                }
                _ => {}
            }
        }
        self.receive_any(message);
    }

    fn receive_any(&mut self, message: &mut Envelope) {
        let from = message.from;
        if let Some(reason) = self.anomaly(message) {
            self.reject(from, reason);
            return;
        }
        if message.term > self.hard_state.current_term && !self.ignores_newer_term(message) {
            self.become_follower(message.term, StepDownReason::NewerTerm);
        }
        let (term, current) = (message.term, self.hard_state.current_term);
        match &mut message.body {
            Message::PreVote(request) => self.on_pre_vote(from, term, *request),
            Message::RequestVote(request) => self.on_request_vote(from, term, *request),
            Message::AppendEntries(append) if term == current => self.on_append(from, append),
            Message::AppendEntries(append) => self.refuse_stale_append(from, append),
            Message::Heartbeat(heartbeat) if term == current => self.on_heartbeat(from, *heartbeat),
            Message::Heartbeat(heartbeat) => self.refuse_stale_heartbeat(from, *heartbeat),
            Message::PreVoteReply(reply) => self.on_pre_vote_reply(from, *reply),
            // Replies of an older term belong to a round that is over, and its leader has nothing to hand over. Whoever asks for a read
            // index will ask again.
            _ if term < current => {}
            Message::RequestVoteReply(reply) => self.on_vote_reply(from, *reply),
            Message::AppendAck(ack) => self.on_append_ack(from, *ack),
            Message::AppendReject(reject) => self.on_append_reject(from, reject),
            Message::HeartbeatReply(reply) => self.on_heartbeat_reply(from, *reply),
            Message::TimeoutNow(request) => self.on_timeout_now(from, *request),
            Message::ReadIndex(request) => self.on_read_index(from, *request),
            Message::ReadIndexReply(reply) => self.on_read_index_reply(from, *reply),
            Message::Quiesce(quiesce) => self.on_quiesce(from, *quiesce),
        }
    }

    /// What makes a message unbelievable, whatever its content.
    fn anomaly(&self, message: &Envelope) -> Option<Anomaly> {
        let last = match &message.body {
            Message::PreVote(request) | Message::RequestVote(request) => request.last_log,
            Message::AppendEntries(append) => append.prev_log,
            Message::TimeoutNow(request) => request.last_log,
            Message::Quiesce(quiesce) => quiesce.last,
            _ => crate::LogId::ZERO,
        };
        if message.to != self.config.id {
            Some(Anomaly::Misaddressed)
        } else if message.from == self.config.id || message.from.0 == 0 {
            // Whoever else is heard is answered, a member or not: this server's membership may be the older one (paper, section 6).
            Some(Anomaly::Stranger)
        } else if message.term > Term::MAX || last.term > Term::MAX || last.index > LogIndex::MAX {
            Some(Anomaly::OutOfRange)
        } else {
            None
        }
    }

    pub(crate) fn reject(&mut self, from: NodeId, reason: Anomaly) {
        self.out.events.push(Event::Rejected { from, reason });
    }

    /// Enters a newer term as a follower, or gives up candidacy or leadership within the present one. The vote is cleared only
    /// with a newer term.
    pub(crate) fn become_follower(&mut self, term: Term, reason: StepDownReason) {
        // A newer term alone is no reason to wait longer: else candidates that cannot win would keep the one that can from standing
        // (paper, section 5.2: the timer starts anew on hearing the leader and on giving a vote). A leader has no timer running.
        if matches!(self.role, RoleState::Leader(_)) {
            self.reset_election_timer();
        }
        self.leave_role(reason);
        if term > self.hard_state.current_term {
            self.hard_state = HardState { current_term: term, voted_for: None };
            self.durability.hard_state_changed();
        }
        self.forget_leader();
    }

    /// Ends the present role. A leader's unanswered reads are lost.
    pub(crate) fn leave_role(&mut self, reason: StepDownReason) {
        let role = std::mem::replace(&mut self.role, RoleState::Follower);
        if let RoleState::Leader(leader) = role {
            let readers = leader.reads.waiting.iter().map(|(reader, ..)| *reader).chain(leader.reads.arrived);
            // Followers find out by themselves, and ask the next leader.
            self.out.reads.extend(readers.filter_map(|reader| match reader {
                Reader::Own(id) => Some(ReadOutcome::Lost { id }),
                Reader::Follower(..) => None,
            }));
            self.out.events.push(Event::SteppedDown { term: self.hard_state.current_term, reason });
        }
    }

    /// No leader is known (any more); nothing is known about how the log compares to the next one's, except that
    /// committed entries will be in it (Leader Completeness).
    pub(crate) fn forget_leader(&mut self) {
        if self.end_sleep(WakeReason::Message) {
            self.reset_election_timer();
        }
        self.verified = self.log.commit;
        self.told_match = LogIndex::ZERO;
        self.owed_ack = None;
        self.forget_requests();
        self.restoring.forget_leader();
        if self.leader.take().is_some() {
            self.out.events.push(Event::LeaderChanged { term: self.hard_state.current_term, leader: None });
        }
    }

    /// Draws a new timeout from `[t, 2t)` (paper, section 5.2), where t doubles, and doubles once more, while elections come to nothing: when votes
    /// take about an election timeout to arrive, candidates would otherwise stop one another for ever.
    pub(crate) fn reset_election_timer(&mut self) {
        const MOST_DOUBLINGS: u32 = 2;
        let base = self.election_base << self.failed_elections.min(MOST_DOUBLINGS);
        let wait = base.saturating_add(self.rng.random_range(0..base));
        self.election_at = Instant(self.now.0.saturating_add(wait));
    }

    fn check_timers(&mut self) {
        if let RoleState::Leader(leader) = &self.role {
            let stalled = self.durability.stalled_at(self.config.write_stall_limit());
            let counts = self.config.check_quorum && !self.quiesced;
            let (now, timeout) = (self.now, self.config.election_timeout);
            // If all are heard, then so is a majority.
            let silent = |progress: &Progress| now >= progress.last_contact + timeout;
            let someone_silent = counts && leader.progress.values().any(silent);
            if someone_silent && now >= self.quorum_heard_at(leader) + timeout {
                self.become_follower(self.hard_state.current_term, StepDownReason::QuorumLost);
            } else if stalled.is_some_and(|at| self.now >= at) {
                self.become_follower(self.hard_state.current_term, StepDownReason::WriteStalled);
            }
            self.check_transfer();
        } else if !self.quiesced && self.now >= self.election_at {
            if self.election_open && !self.durability.hard_state_durable() {
                // Its request, or its vote, has not even left; what another term has to say would not leave sooner.
                return self.reset_election_timer();
            }
            self.failed_elections =
                self.failed_elections.saturating_add(u32::from(std::mem::take(&mut self.election_open)));
            self.campaign();
        }
    }

    fn persisted(&mut self, seq: WriteSeq) {
        let led = self.is_leader();
        if self.durability.persisted(seq, self.now) {
            if matches!(self.role, RoleState::PreCandidate(_) | RoleState::Candidate(_)) {
                self.tally();
            }
            self.advance_commit();
            // For a leader it makes a difference only if something waits for it.
            self.stirred |= !led || self.durability.holds_back() || self.may_apply();
        } else {
            self.stirred = true;
            self.reject(self.config.id, Anomaly::Driver);
        }
    }

    fn applied(&mut self, index: LogIndex) {
        if index > self.log.applying {
            self.stirred = true;
            return self.reject(self.config.id, Anomaly::Driver);
        }
        if index > self.log.applied {
            // There is room for more, if there is more.
            self.stirred |= self.may_apply();
            self.log.applied_to(index);
            if index == self.log.applying {
                return self.forget_applying();
            }
            while let Some((_, bytes)) = self.applying.front().filter(|(last, _)| *last <= index) {
                self.applying_bytes -= bytes;
                self.applying.pop_front();
            }
        }
    }

    /// Whatever was handed to the state machine is done, or replaced.
    pub(crate) fn forget_applying(&mut self) {
        self.applying.clear();
        self.applying_bytes = 0;
    }

    /// Hands out a write with everything that is not in one yet, in the place of one that was carried out.
    fn write(&mut self, place: &mut Option<Write>) {
        let (from, last) = (self.durability.unwritten(), self.log.last_index());
        let entries = if from > last {
            if !self.durability.is_dirty() {
                // Nearly always it was taken out of there: to find that out is less than to move nothing.
                if place.is_some() {
                    *place = None;
                }
                return;
            }
            Entries::new()
        } else {
            // What was not handed out for writing is always in memory.
            self.log.cached(from, last, usize::MAX).unwrap_or_default()
        };
        // What the disk answers for is what it got, and nothing else.
        let written = entries.last_index().unwrap_or(from.prev());
        debug_assert_eq!(written, last.max(from.prev()), "entries are neither written nor in memory");
        self.durability.next_write_into(place, self.hard_state, entries, written, self.now);
    }

    /// Hands committed and durable entries to the state machine, within the limit of what it may have at a time.
    #[inline]
    fn apply(&mut self, place: &mut Entries) {
        if !self.out.apply.is_empty() {
            // What was read for it.
            *place = std::mem::take(&mut self.out.apply);
        } else if let Some(entries) = self.may_apply().then(|| self.next_to_apply()).flatten() {
            *place = entries;
        } else if !place.is_empty() {
            *place = Entries::new();
        }
    }

    /// Whether the state machine is to finish some of what it has before it gets more.
    fn has_enough_to_apply(&self) -> bool {
        self.applying_bytes >= self.config.max_unapplied_bytes
    }

    /// Whether there is something to apply that was not handed out.
    fn may_apply(&self) -> bool {
        self.log.applying < self.log.commit.min(self.durability.durable())
    }

    #[inline]
    fn next_to_apply(&mut self) -> Option<Entries> {
        let ready = self.log.commit.min(self.durability.durable());
        let waiting = self.apply_fetch.is_some() || self.restoring.handed_out().is_some();
        if waiting || self.has_enough_to_apply() {
            return None;
        }
        let first = self.log.applying.next();
        let room = self.config.max_unapplied_bytes - self.applying_bytes;
        if let Some(newest) = self.log.newest(first, ready, room) {
            let (last, bytes, entries) = (newest.last_index(), newest.byte_len(), newest.clone().into());
            self.counts_as_applying(last, bytes);
            return Some(entries);
        }
        let entries = self.log.cached(first, ready, room);
        match entries.as_ref().and_then(|entries| Some((entries.last_index()?, entries.byte_len()))) {
            Some((last, bytes)) => self.counts_as_applying(last, bytes),
            None => self.apply_fetch = Some(self.fetch(first, ready, room.min(self.config.max_append_bytes))),
        }
        entries
    }

    /// What ends here goes to the state machine.
    #[inline]
    fn counts_as_applying(&mut self, last: LogIndex, bytes: usize) {
        self.log.applying = last;
        self.applying.push_back((last, bytes));
        self.applying_bytes += bytes;
    }

    /// Asks for entries that are only on the disk.
    pub(crate) fn fetch(&mut self, first: LogIndex, last: LogIndex, max_bytes: usize) -> FetchId {
        let id = FetchId(self.next_fetch);
        self.next_fetch += 1;
        self.out.fetches.push(Fetch { id, first, last, max_bytes });
        id
    }

    fn fetched(&mut self, id: FetchId, entries: &Entries) {
        if self.apply_fetch != Some(id) {
            return self.fetched_for_follower(id, entries);
        }
        self.apply_fetch = None;
        let ready = self.log.commit.min(self.durability.durable());
        let first_fits = entries.first_index() == Some(self.log.applying.next());
        let Some(last) = entries.last_index().filter(|last| first_fits && *last <= ready && self.is_own(entries))
        else {
            return self.reject(self.config.id, Anomaly::Driver);
        };
        if self.out.apply.is_empty() {
            self.counts_as_applying(last, entries.byte_len());
            self.out.apply = entries.clone();
        }
    }

    /// Whether these are entries of the log as it is now.
    pub(crate) fn is_own(&self, entries: &Entries) -> bool {
        entries.iter().all(|entry| self.log.contains(entry.id()))
    }

    pub(crate) fn next_read_id(&mut self) -> ReadId {
        let id = ReadId(self.next_read);
        self.next_read += 1;
        id
    }

    /// Sends now. For what promises nothing about the disk.
    pub(crate) fn send(&mut self, to: NodeId, body: Message) {
        self.out.messages.push(self.envelope(to, body));
    }

    /// Sends as soon as the present term and vote are durable.
    pub(crate) fn send_gated(&mut self, to: NodeId, body: Message) {
        let envelope = self.envelope(to, body);
        self.durability.gate(envelope);
    }

    fn envelope(&self, to: NodeId, body: Message) -> Envelope {
        Envelope { from: self.config.id, to, term: self.hard_state.current_term, body }
    }
}
