//! Raft's promises, checked from outside and after every event: what all servers wrote, sent, committed and
//! applied must fit together (paper, Figure 3).
//!
//! Everything is checked where it changes, so the cost of an event does not grow with the log. That is enough: a log changes by writes
//! only, and if every entry of a given term and index has the same content and the same predecessor wherever it is written, then
//! logs that share an entry share everything before it.

use std::collections::BTreeMap;

use super::disk::{Disk, Image};
use super::members::Members;
use crate::entries::{EntryKind, Segment};
use crate::io::{Event, Write};
use crate::membership::Membership;
use crate::message::{AppendAck, Envelope, HeartbeatReply, Message};
use crate::status::{Role, Status};
use crate::types::{HardState, LogId, LogIndex, NodeId, Term};

/// What a broken promise looks like, in words.
pub type Violation = String;

/// Watches all servers of one cluster.
#[derive(Debug, Default)]
pub struct Checker {
    /// Every entry that was ever written: its predecessor and its content.
    entries: BTreeMap<LogId, (LogId, Segment)>,
    /// Who led which term.
    leaders: BTreeMap<Term, NodeId>,
    /// What was committed at each index, from 1 on, and in which term that was first known.
    committed: Vec<(LogId, Term)>,
    /// What was seen of each server last.
    views: BTreeMap<NodeId, View>,
    /// The latest term in which each server acknowledged entries, and up to where. A crash does not take that back.
    acknowledged: BTreeMap<NodeId, (Term, LogIndex)>,
    searches: BTreeMap<NodeId, Search>,
    members: Members,
    most_round_trips: u64,
}

/// How many round trips the leader of a term needs to find where one follower's log parts from its own.
///
/// A refusal is not a round trip if the append was sent before the last one came back, or if it had merely overtaken an append
/// that it builds upon.
#[derive(Debug, Default)]
struct Search {
    term: Term,
    /// Number of the latest append.
    sent: u64,
    /// Appends that will arrive: number and last index.
    on_their_way: BTreeMap<u64, LogIndex>,
    /// Appends that overtook one that they build upon, or that build upon such a one.
    excused: BTreeMap<u64, LogIndex>,
    /// Refusals of appends up to this one count no more.
    counted: u64,
    round_trips: u64,
}

/// What was seen of a server. Terms and votes are remembered across restarts, the rest starts anew.
#[derive(Clone, Debug, Default)]
struct View {
    hard_state: HardState,
    alive: bool,
    leads: bool,
    commit: LogIndex,
    applied: LogIndex,
    /// What its state machine would remember. A crash does not take that back.
    saved: LogIndex,
}

impl Checker {
    /// A server has handed out a write, and `disk` has just taken it.
    ///
    /// # Errors
    /// Log Matching is broken: the entry is known with another content or another predecessor. Or the server truncates what is committed, or
    /// what it has acknowledged in the same term: if it crashes before the rest of the write is done, that is lost.
    pub fn wrote(&mut self, id: NodeId, write: &Write, disk: &Disk) -> Result<(), Violation> {
        for entry in write.entries.iter() {
            let (Some(prev), Some(segment)) = (disk.live().id_at(entry.index.prev()), disk.live().entry(entry.index))
            else {
                return Err(format!("{id:?} wrote {} and does not have it", entry.id()));
            };
            let (known_prev, known) = self.entries.entry(entry.id()).or_insert_with(|| (prev, segment.clone()));
            if *known_prev != prev || known != segment {
                return Err(format!(
                    "log matching: {id:?} wrote another {} after {prev} (not {known_prev})",
                    entry.id()
                ));
            }
        }
        self.forgot(id, write, disk)?;
        self.members.wrote(id, write, disk);
        match write.truncate_from {
            Some(from) if from <= self.views.entry(id).or_default().commit => {
                Err(format!("{id:?} truncates committed entries from {from}"))
            }
            Some(from) if self.has_acknowledged(id, disk.live().hard_state().current_term, from) => {
                Err(format!("{id:?} truncates from {from} what it has acknowledged in the same term"))
            }
            _ => Ok(()),
        }
    }

    /// What is forgotten at the beginning of the log is in a state machine that survives a crash; and a log that begins anew loses nothing that its
    /// owner has promised to keep.
    fn forgot(&self, id: NodeId, write: &Write, disk: &Disk) -> Result<(), Violation> {
        let Some(start) = &write.log_start else { return Ok(()) };
        let (last, live) = (start.last, disk.live());
        let view = self.views.get(&id).cloned().unwrap_or_default();
        if last.index > view.saved {
            return Err(format!(
                "{id:?} forgets its log up to {last}, and its state machine only keeps {}",
                view.saved
            ));
        }
        if self.committed_id(last.index) != Some(last) {
            let known = self.committed_id(last.index);
            return Err(format!("{id:?} begins its log after {last}, and {known:?} is what was committed there"));
        }
        let end = live.last().index;
        if view.commit > end || self.has_acknowledged(id, live.hard_state().current_term, end.next()) {
            return Err(format!("{id:?} drops its log behind {last}, committed up to {}: {write:?}", view.commit));
        }
        Ok(())
    }

    /// What was committed at `index`, if that is known.
    fn committed_id(&self, index: LogIndex) -> Option<LogId> {
        let Some(at) = (index.0 as usize).checked_sub(1) else { return Some(LogId::ZERO) };
        self.committed.get(at).map(|(id, _)| *id)
    }

    /// What a log has at `index`. What it forgot was committed.
    fn id_at(&self, image: &Image, index: LogIndex) -> Option<LogId> {
        if index < image.start().index { self.committed_id(index) } else { image.id_at(index) }
    }

    /// Whether a log has this entry, or had it and has forgotten it.
    pub(crate) fn holds(&self, image: &Image, id: LogId) -> bool {
        self.id_at(image, id.index) == Some(id)
    }

    fn has_acknowledged(&self, id: NodeId, term: Term, index: LogIndex) -> bool {
        self.acknowledged.get(&id).is_some_and(|(when, up_to)| *when == term && index <= *up_to)
    }

    /// A server says something. What it promises must be on its disk already.
    ///
    /// # Errors
    /// It is not.
    pub fn said(&mut self, id: NodeId, envelope: &Envelope, disk: &Disk) -> Result<(), Violation> {
        let durable = disk.durable();
        let kept = match &envelope.body {
            Message::RequestVote(request) => disk.has_voted(envelope.term, id) && self.holds(durable, request.last_log),
            Message::RequestVoteReply(reply) => !reply.granted || disk.has_voted(reply.election, envelope.to),
            // Not any entry at that place, but the one that the server now takes for it: an older one may still have to give way.
            // (What was said in an earlier term was true then, and leaves late.)
            Message::AppendAck(AppendAck { match_index, .. })
            | Message::HeartbeatReply(HeartbeatReply { match_index, .. }) => {
                let told = self.acknowledged.entry(id).or_default();
                *told = (*told).max((envelope.term, *match_index));
                *match_index <= durable.last().index
                    && (disk.live().hard_state().current_term > envelope.term
                        || self.id_at(durable, *match_index) == self.id_at(disk.live(), *match_index)
                        // Forgotten, and nobody is here who could say what it was.
                        || (*match_index < disk.live().start().index && self.committed_id(*match_index).is_none()))
            }
            Message::AppendEntries(append) => {
                self.leaders.get(&envelope.term) == Some(&id)
                    && (append.entries.is_empty() || append.entries.first_index() == Some(append.prev_log.index.next()))
            }
            Message::Heartbeat(_) => self.leaders.get(&envelope.term) == Some(&id),
            _ => true,
        };
        if kept { Ok(()) } else { Err(format!("{id:?} says what its disk does not back: {envelope:?}")) }
    }

    /// A server hands an entry to its state machine.
    ///
    /// # Errors
    /// State Machine Safety is broken: this is not what was committed there; or an entry was skipped or repeated.
    pub fn applied(&mut self, id: NodeId, entry: LogId) -> Result<(), Violation> {
        let view = self.views.entry(id).or_default();
        if entry.index != view.applied.next() {
            return Err(format!("{id:?} applies {entry} after {}", view.applied));
        }
        view.applied = entry.index;
        // The status that tells of the commit may be seen only after the entry; what was committed is then checked there.
        match self.committed.get(entry.index.0 as usize - 1) {
            Some((committed, _)) if *committed != entry => {
                Err(format!("state machine safety: {id:?} applies {entry}, committed is {committed}"))
            }
            _ => Ok(()),
        }
    }

    /// The state machine of a server would remember everything up to `index`, and nothing behind it, if it crashed now.
    pub fn saved(&mut self, id: NodeId, index: LogIndex) {
        self.views.entry(id).or_default().saved = index;
    }

    /// The state machine of a server has given up its state for a snapshot that ends with `last`, durably.
    ///
    /// # Errors
    /// That is no snapshot of what was committed, or it goes back.
    pub fn restored(&mut self, id: NodeId, last: LogId) -> Result<(), Violation> {
        let known = self.committed_id(last.index);
        let view = self.views.entry(id).or_default();
        if known != Some(last) {
            return Err(format!("state machine safety: {id:?} takes over {last}, and {known:?} was committed there"));
        }
        if last.index <= view.applied {
            return Err(format!("{id:?} takes over a snapshot up to {last}, and has applied {}", view.applied));
        }
        (view.applied, view.saved) = (last.index, last.index);
        Ok(())
    }

    /// A server tells of an event.
    ///
    /// # Errors
    /// It saw something that does not happen between honest and undamaged servers.
    pub fn heard(&mut self, id: NodeId, event: &Event) -> Result<(), Violation> {
        match event {
            Event::Rejected { from, reason } => Err(format!("{id:?} was offended by {from:?}: {reason:?}")),
            Event::BecameLeader { term } => self.elected(id, *term),
            _ => Ok(()),
        }
    }

    /// A server has started, with a state machine that remembers everything up to `applied`.
    pub fn started(&mut self, id: NodeId, applied: LogIndex) {
        self.views.entry(id).or_default().applied = applied;
        self.members.restarted(id);
    }

    /// The disk of this server is lost. Others know it under this id; whoever comes in its place is another.
    pub(crate) fn bury(&mut self, id: NodeId, disk: &Disk) {
        self.members.bury(id, disk);
    }

    /// Every membership that counts, or may count yet, anywhere.
    pub(crate) fn memberships(&self) -> impl Iterator<Item = &Membership> {
        self.members.may_count()
    }

    /// Another server with an empty disk has taken the place of this one, under the same id: nothing that it has promised binds the new one.
    pub fn replaced(&mut self, id: NodeId, identity: u64) {
        self.members.replaced(id, identity);
        self.views.remove(&id);
        self.acknowledged.remove(&id);
        self.searches.remove(&id);
        self.members.restarted(id);
    }

    /// A server has stopped; its disk keeps what was durable.
    pub fn stopped(&mut self, id: NodeId) {
        let view = self.views.entry(id).or_default();
        *view = View { hard_state: view.hard_state, saved: view.saved, ..View::default() };
        self.members.restarted(id);
    }

    /// A message is sent, and `arrives` or does not.
    pub fn posted(&mut self, envelope: &Envelope, arrives: bool) {
        let Message::AppendEntries(append) = &envelope.body else { return };
        let search = self.searches.entry(envelope.to).or_default();
        if search.term < envelope.term {
            *search = Search { term: envelope.term, ..Search::default() };
        }
        if search.term == envelope.term {
            search.sent = append.seq;
            if arrives {
                search.on_their_way.insert(append.seq, append.prev_log.index + append.entries.len() as u64);
            }
        }
    }

    /// A message has arrived and is about to be handled, if there is still anyone to handle it.
    pub fn delivered(&mut self, envelope: &Envelope) {
        let follower = match &envelope.body {
            Message::AppendEntries(_) => envelope.to,
            _ => envelope.from,
        };
        let Some(search) = self.searches.get_mut(&follower).filter(|search| search.term == envelope.term) else {
            return;
        };
        match &envelope.body {
            Message::AppendEntries(append) => {
                search.on_their_way.remove(&append.seq);
                let fresh = search.counted.saturating_add(1).min(append.seq);
                let mut missing =
                    search.on_their_way.range(..append.seq).chain(search.excused.range(fresh..append.seq));
                if missing.any(|(_, last)| *last >= append.prev_log.index) {
                    search.excused.insert(append.seq, append.prev_log.index + append.entries.len() as u64);
                }
            }
            Message::AppendReject(reject) if reject.seq > search.counted => {
                search.counted = search.sent;
                search.round_trips += u64::from(!search.excused.contains_key(&reject.seq));
                self.most_round_trips = self.most_round_trips.max(search.round_trips);
            }
            Message::AppendAck(_) => search.round_trips = 0,
            _ => {}
        }
    }

    /// The greatest number of round trips that any leader needed to find where a follower's log parts from its own.
    pub fn most_round_trips(&self) -> u64 {
        self.most_round_trips
    }

    /// Looks at a server after an event. `disks` are those of all servers, stopped ones included, by position: server n at n-1.
    ///
    /// # Errors
    /// Which promise is broken, and by whom.
    pub fn observe<'d>(
        &mut self,
        status: &Status,
        disk: &Disk,
        disks: impl Iterator<Item = &'d Disk>,
    ) -> Result<(), Violation> {
        let id = status.id;
        self.check_cursors(status, disk)?;
        self.check_hard_state(status, disk)?;
        self.members.observe(status, disk)?;
        if status.role == Role::Leader {
            self.elected(id, status.current_term)?;
        }
        let view = self.views.entry(id).or_default();
        let newly_leads = status.role == Role::Leader && !view.leads;
        let old_commit = view.commit;
        view.alive = true;
        view.leads = status.role == Role::Leader;
        view.commit = status.commit_index;
        if status.commit_index < old_commit {
            return Err(format!("{id:?} takes back its commit index {old_commit} to {}", status.commit_index));
        }
        if status.commit_index > old_commit {
            self.committed(status, old_commit, disk, disks)?;
        }
        if newly_leads { self.check_completeness(status, disk) } else { Ok(()) }
    }

    /// `log start <= applied <= min(commit, durable) <= last`, the core's log is what it wrote, and what it takes for durable is. (A snapshot that was
    /// taken over needs no place in the log.)
    fn check_cursors(&self, status: &Status, disk: &Disk) -> Result<(), Violation> {
        let view = self.views.get(&status.id).cloned().unwrap_or_default();
        let applied = view.applied;
        let ordered = status.log_start.index <= status.applied_index
            && status.applied_index <= applied
            && status.applied_index <= status.commit_index.min(status.durable_index.max(status.log_start.index))
            && (applied <= status.commit_index.min(status.durable_index) || applied == view.saved)
            && status.commit_index <= status.last_log.index
            && status.durable_index <= status.last_log.index;
        if !ordered {
            return Err(format!("cursors out of order (handed out to apply: {applied}): {status:?}"));
        }
        if status.last_log != disk.live().last() {
            return Err(format!("the log ends at {}, what was written at {}", status.last_log, disk.live().last()));
        }
        if status.log_start != disk.live().start() {
            return Err(format!("the log begins after {}, on disk after {}", status.log_start, disk.live().start()));
        }
        let durable = self.id_at(disk.durable(), status.durable_index);
        if durable.is_none() || durable != self.id_at(disk.live(), status.durable_index) {
            return Err(format!("{:?} is wrong about what is durable: {status:?}", status.id));
        }
        Ok(())
    }

    /// Term and vote never go back, and the disk has been told of them.
    fn check_hard_state(&mut self, status: &Status, disk: &Disk) -> Result<(), Violation> {
        let now = HardState { current_term: status.current_term, voted_for: status.voted_for };
        let view = self.views.entry(status.id).or_default();
        let old = if view.alive { view.hard_state } else { disk.durable().hard_state() };
        let changed_vote =
            now.current_term == old.current_term && old.voted_for.is_some() && now.voted_for != old.voted_for;
        if now.current_term < old.current_term || changed_vote {
            return Err(format!("{:?} takes back its term or vote: {old:?} to {now:?}", status.id));
        }
        if disk.live().hard_state() != now {
            return Err(format!("{:?} has not written {now:?} but {:?}", status.id, disk.live().hard_state()));
        }
        view.hard_state = now;
        Ok(())
    }

    /// Election Safety: at most one leader a term.
    fn elected(&mut self, id: NodeId, term: Term) -> Result<(), Violation> {
        match self.leaders.entry(term).or_insert(id) {
            leader if *leader != id => Err(format!("election safety: {leader:?} and {id:?} both lead term {term}")),
            _ => Ok(()),
        }
    }

    /// Leader Completeness for a new leader: it has all that was committed in earlier terms. With Log Matching, having the last such
    /// entry is enough.
    fn check_completeness(&self, status: &Status, disk: &Disk) -> Result<(), Violation> {
        let count = self.committed.partition_point(|(_, term)| *term < status.current_term);
        match self.committed[..count].last() {
            Some((last, _)) if !self.holds(disk.live(), *last) => {
                Err(format!("leader completeness: {:?} leads term {} without {last}", status.id, status.current_term))
            }
            _ => Ok(()),
        }
    }

    /// The commit index of a server has moved from `old`.
    fn committed<'d>(
        &mut self,
        status: &Status,
        old: LogIndex,
        disk: &Disk,
        disks: impl Iterator<Item = &'d Disk>,
    ) -> Result<(), Violation> {
        let (id, term) = (status.id, status.current_term);
        let Some(last) = disk.live().id_at(status.commit_index) else {
            return Err(format!("{id:?} commits {} beyond its log", status.commit_index));
        };
        // Old entries ride along, but are never committed by counting (paper, section 5.4.2). What a snapshot holds was committed by others.
        if status.role == Role::Leader && last.term != term && last != disk.live().start() {
            return Err(format!("{id:?} commits {last} by counting, in term {term}"));
        }
        let mut first_time = false;
        for index in old.0 + 1..=status.commit_index.0 {
            let Some(entry) = self.id_at(disk.live(), LogIndex(index)) else {
                return Err(format!("{id:?} takes {index} for committed, has forgotten it, and nobody committed it"));
            };
            match self.committed.get(index as usize - 1) {
                Some((known, _)) if *known != entry => {
                    return Err(format!(
                        "state machine safety: {id:?} commits {entry}, and {known} was committed before"
                    ));
                }
                Some(_) => {}
                None => {
                    self.committed.push((entry, term));
                    if let Some(membership) = self.membership_in(entry) {
                        self.members.committed(entry.index, membership);
                    }
                    first_time = true;
                }
            }
        }
        let disks: Vec<&Disk> = disks.collect();
        self.members.check_kept(status, last, first_time, &disks)?;
        if first_time {
            self.members.check_electable(last, &disks)?;
        }
        // Leader Completeness for those who lead a later term already.
        for (other, view) in self.views.iter().filter(|(_, view)| view.leads && view.hard_state.current_term > term) {
            let disk = (other.0 as usize).checked_sub(1).and_then(|i| disks.get(i));
            if disk.is_none_or(|disk| !self.holds(disk.live(), last)) {
                return Err(format!(
                    "leader completeness: {other:?} leads, lacks {last}, and {id:?} commits it: {view:?}"
                ));
            }
        }
        Ok(())
    }

    /// The content of a committed entry, for those who want to compare it with what was acknowledged.
    pub fn committed_entry(&self, index: LogIndex) -> Option<&Segment> {
        let (id, _) = self.committed.get((index.0 as usize).checked_sub(1)?)?;
        self.entries.get(id).map(|(_, segment)| segment)
    }

    /// The membership that an entry is, if it is one.
    fn membership_in(&self, id: LogId) -> Option<Membership> {
        let entry = self.entries.get(&id).and_then(|(_, segment)| segment.get(id.index))?;
        (entry.kind == EntryKind::Membership).then(|| Membership::decode(entry.payload).ok())?
    }

    /// The newest membership that is committed, and the index of its entry.
    pub fn membership(&self) -> (LogIndex, &Membership) {
        self.members.newest_committed()
    }

    /// Number of committed commands.
    pub fn committed_commands(&self) -> usize {
        let is_command = |(id, _): &&(LogId, Term)| {
            self.entries.get(id).and_then(|(_, s)| s.get(id.index)).is_some_and(|e| e.kind == EntryKind::Command)
        };
        self.committed.iter().filter(is_command).count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::entries::Entries;
    use crate::message::VoteReply;
    use crate::sim::schedule::Dice;
    use crate::types::{Instant, WriteSeq};

    /// Three servers as the checker sees them: every write is durable at once.
    struct Three {
        checker: Checker,
        disks: Vec<Disk>,
        statuses: Vec<Status>,
        writes: u64,
    }

    impl Three {
        fn new() -> Self {
            let status = |id| Status {
                election_timeout: Duration::ZERO,
                quiesced: false,
                id: NodeId(id),
                identity: 0,
                role: Role::Follower,
                current_term: Term(0),
                voted_for: None,
                leader: None,
                transferring_to: None,
                has_lease: false,
                log_start: LogId::ZERO,
                last_log: LogId::ZERO,
                commit_index: LogIndex::ZERO,
                durable_index: LogIndex::ZERO,
                applied_index: LogIndex::ZERO,
                uncommitted_bytes: 0,
                unapplied_bytes: 0,
                writing_for: None,
                is_busy: false,
                is_restoring: false,
                membership: Arc::new(Membership::of_voters((1..=3).map(NodeId))),
                membership_index: LogIndex::ZERO,
                followers: Vec::new(),
            };
            let disks = (0..3).map(|i| Disk::new(Duration::ZERO, Dice::new(i, i))).collect();
            Three { checker: Checker::default(), disks, statuses: (1..=3).map(status).collect(), writes: 0 }
        }

        fn term(&mut self, i: usize, term: u64, voted_for: Option<u64>) {
            let vote = voted_for.map(NodeId);
            let hard_state = HardState { current_term: Term(term), voted_for: vote };
            self.write(i, Some(hard_state), None, Entries::new()).unwrap();
            (self.statuses[i].current_term, self.statuses[i].voted_for) = (Term(term), vote);
        }

        fn append(&mut self, i: usize, first: u64, term: u64, payload: &str) -> Result<(), Violation> {
            let entries = Segment::pack(LogIndex(first), Term(term), EntryKind::Command, &[payload]).unwrap();
            let truncate = (first <= self.statuses[i].last_log.index.0).then_some(LogIndex(first));
            self.write(i, None, truncate, entries.into())
        }

        fn write(
            &mut self,
            i: usize,
            hard_state: Option<HardState>,
            truncate_from: Option<LogIndex>,
            entries: Entries,
        ) -> Result<(), Violation> {
            self.writes += 1;
            let seq = WriteSeq(self.writes);
            let write = Write { seq, hard_state, log_start: None, truncate_from, entries };
            self.disks[i].submit(Instant(0), write.clone()).unwrap();
            self.disks[i].complete(seq).unwrap();
            self.statuses[i].last_log = self.disks[i].live().last();
            self.statuses[i].durable_index = self.disks[i].live().last().index;
            self.checker.wrote(NodeId(i as u64 + 1), &write, &self.disks[i])
        }

        fn look(&mut self, i: usize) -> Result<(), Violation> {
            self.checker.observe(&self.statuses[i], &self.disks[i], self.disks.iter())
        }

        /// Server 0 leads term 1, and everybody has its entry.
        fn settled() -> Self {
            let mut three = Three::new();
            for i in 0..3 {
                three.term(i, 1, Some(1));
                three.append(i, 1, 1, "a").unwrap();
            }
            three.statuses[0].role = Role::Leader;
            (0..3).for_each(|i| three.look(i).unwrap());
            three
        }
    }

    #[test]
    fn two_leaders_of_a_term_are_noticed() {
        let mut three = Three::settled();
        three.statuses[1].role = Role::Leader;
        assert!(three.look(1).unwrap_err().contains("election safety"));
    }

    #[test]
    fn entries_of_the_same_id_with_another_content_or_predecessor_are_noticed() {
        let mut three = Three::settled();
        assert!(three.append(1, 1, 1, "b").unwrap_err().contains("log matching"));
        let mut three = Three::settled();
        (0..3).for_each(|i| three.term(i, 3, None));
        three.append(1, 2, 2, "x").unwrap();
        three.append(1, 3, 3, "y").unwrap();
        three.append(2, 2, 1, "z").unwrap();
        assert!(three.append(2, 3, 3, "y").unwrap_err().contains("log matching"));
    }

    #[test]
    fn a_commit_without_a_durable_majority_is_noticed() {
        let mut three = Three::settled();
        three.append(0, 2, 1, "b").unwrap();
        three.statuses[0].commit_index = LogIndex(2);
        assert!(three.look(0).unwrap_err().contains("durable on [true, false, false]"));
    }

    #[test]
    fn an_old_entry_committed_by_counting_is_noticed() {
        let mut three = Three::settled();
        three.term(0, 2, Some(1));
        three.statuses[0].commit_index = LogIndex(1);
        assert!(three.look(0).unwrap_err().contains("by counting"));
    }

    #[test]
    fn a_leader_without_a_committed_entry_is_noticed() {
        let mut three = Three::settled();
        three.append(0, 2, 1, "b").unwrap();
        three.append(1, 2, 1, "b").unwrap();
        three.statuses[0].commit_index = LogIndex(2);
        three.look(0).unwrap();
        three.term(2, 2, Some(3));
        three.statuses[2].role = Role::Leader;
        assert!(three.look(2).unwrap_err().contains("leader completeness"));
    }

    #[test]
    fn a_commit_that_a_later_leader_lacks_is_noticed() {
        let mut three = Three::settled();
        three.term(2, 2, Some(3));
        three.statuses[2].role = Role::Leader;
        three.look(2).unwrap();
        three.append(0, 2, 1, "b").unwrap();
        three.append(1, 2, 1, "b").unwrap();
        three.statuses[0].commit_index = LogIndex(2);
        assert!(three.look(0).unwrap_err().contains("leader completeness"));
    }

    #[test]
    fn cursors_out_of_order_are_noticed() {
        type Twist = fn(&mut Status);
        let twists: [Twist; 4] = [
            |status| status.commit_index = LogIndex(2),
            |status| status.durable_index = LogIndex(2),
            |status| status.applied_index = LogIndex(1),
            |status| status.last_log.index = LogIndex(0),
        ];
        for twist in twists {
            let mut three = Three::settled();
            twist(&mut three.statuses[1]);
            assert!(three.look(1).is_err(), "{:?}", three.statuses[1]);
        }
        let mut three = Three::settled();
        three.checker.applied(NodeId(2), LogId::new(Term(1), LogIndex(1))).unwrap();
        assert!(three.look(1).unwrap_err().contains("cursors"), "applied before it is committed");
    }

    #[test]
    fn what_is_applied_must_be_what_was_committed_and_in_order() {
        let mut three = Three::settled();
        three.statuses[0].commit_index = LogIndex(1);
        three.look(0).unwrap();
        assert!(three.checker.applied(NodeId(2), LogId::new(Term(2), LogIndex(1))).is_err());
        assert!(three.checker.applied(NodeId(3), LogId::new(Term(1), LogIndex(2))).is_err());
    }

    #[test]
    fn a_term_or_a_vote_taken_back_is_noticed() {
        for (term, vote) in [(0, None), (1, Some(NodeId(3))), (1, None)] {
            let mut three = Three::settled();
            (three.statuses[1].current_term, three.statuses[1].voted_for) = (Term(term), vote);
            assert!(three.look(1).unwrap_err().contains("takes back"));
        }
    }

    #[test]
    fn a_promise_that_the_disk_does_not_back_is_noticed() {
        let mut three = Three::settled();
        let mut says = |term, body| {
            let envelope = Envelope { from: NodeId(2), to: NodeId(3), term: Term(term), body };
            three.checker.said(NodeId(2), &envelope, &three.disks[1])
        };
        let ack = |index| Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(index) });
        assert!(says(1, ack(1)).is_ok());
        assert!(says(1, ack(2)).is_err(), "an entry that it does not have");
        let vote = |election, granted| Message::RequestVoteReply(VoteReply { election: Term(election), granted });
        assert!(says(1, vote(1, false)).is_ok());
        assert!(says(1, vote(1, true)).is_err(), "its vote went to server 1");
        assert!(says(2, vote(2, true)).is_err(), "its disk knows nothing of that term");
    }
}
