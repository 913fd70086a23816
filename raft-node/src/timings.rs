//! Where the time of a write goes: each node follows one write at a time on its way, and one sync after the other.
//!
//! Off by default ([`Builder::timings`](crate::Builder::timings), `timings = true` in the section `[metrics]` of the file). Then nothing is looked at but one flag. When it is on, a
//! write that is followed costs a few looks at the clock and one lock; the next is followed when that one is done, so under load
//! it is a sample. What is measured begins and ends inside the node: the way from and to the client is not in it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use raft_core::{Envelope, Heartbeat, HeartbeatReply, LogIndex, Message, NodeId, Raft};

/// Longest time that is told apart, in nanoseconds.
const LONGEST: u64 = 60_000_000_000;
/// Significant digits of a histogram.
const DIGITS: u8 = 2;
/// A heartbeat that has not been answered after so many nanoseconds counts as lost: it was sent on a link that is no more.
const LOST_AFTER: Moment = LONGEST;

/// A part of the way of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Stage {
    /// Leader: the request has been read, until the loop takes it in.
    Queued,
    /// Leader: until it is packed, ordered at the writer, and queued for every follower.
    Sent,
    /// Leader: from there until the own disk has it, and the loop has heard of that.
    Durable,
    /// Leader: from there until the first follower's acknowledgement is taken in.
    Acknowledged,
    /// Leader: from there until it is committed.
    Committed,
    /// Leader: from there until the state machine has applied it.
    Applied,
    /// Leader: from there until the answer lies ready for the client's connection.
    Answered,
    /// Leader: all of it, from the request that was read to the answer that lies ready.
    Whole,
    /// Leader: a heartbeat is queued for a follower, until its answer is taken in.
    Heartbeat,
    /// Follower: entries have been taken in, until they are ordered at the writer.
    Ordered,
    /// Follower: from there until the own disk has them, and the loop has heard of that.
    Stored,
    /// Follower: from there until the acknowledgement is queued.
    Confirmed,
    /// Writer: the first write was ordered, until the writer begins with it. Under load that is the sync before.
    WriterWaited,
    /// Writer: one batch and its sync.
    WriterSynced,
    /// Writer: the sync was done, until the loop takes that in.
    WriterNoticed,
}

impl Stage {
    /// All of them, in the order of the way.
    pub const ALL: [Stage; 15] = [
        Stage::Queued,
        Stage::Sent,
        Stage::Durable,
        Stage::Acknowledged,
        Stage::Committed,
        Stage::Applied,
        Stage::Answered,
        Stage::Whole,
        Stage::Heartbeat,
        Stage::Ordered,
        Stage::Stored,
        Stage::Confirmed,
        Stage::WriterWaited,
        Stage::WriterSynced,
        Stage::WriterNoticed,
    ];

    /// Its name in the status: who, and what is done at its end.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Queued => "leader.taken_in",
            Stage::Sent => "leader.sent",
            Stage::Durable => "leader.durable",
            Stage::Acknowledged => "leader.acknowledged",
            Stage::Committed => "leader.committed",
            Stage::Applied => "leader.applied",
            Stage::Answered => "leader.answered",
            Stage::Whole => "leader.whole",
            Stage::Heartbeat => "leader.heartbeat_answered",
            Stage::Ordered => "follower.ordered",
            Stage::Stored => "follower.durable",
            Stage::Confirmed => "follower.acknowledged",
            Stage::WriterWaited => "writer.begun",
            Stage::WriterSynced => "writer.synced",
            Stage::WriterNoticed => "writer.noticed",
        }
    }
}

/// How long a stage took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageTimes {
    /// How many were measured.
    pub count: u64,
    /// Half of them were faster.
    pub p50: Duration,
    /// All but one of a hundred were faster.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

/// A moment, in nanoseconds since the timings began. Zero: not yet.
type Moment = u64;

/// The times of a node's writes.
#[derive(Debug)]
pub struct Timings {
    origin: Instant,
    /// Someone follows a write.
    following: AtomicBool,
    /// When the oldest write was ordered that the writer has not begun.
    ordered: AtomicU64,
    /// When the last sync was done.
    synced: AtomicU64,
    stages: Mutex<[Option<Histogram<u64>>; Stage::ALL.len()]>,
}

impl Timings {
    pub(crate) fn new() -> Self {
        Timings {
            origin: Instant::now(),
            following: AtomicBool::new(false),
            ordered: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            // A range and a precision that a histogram can have: without one, the stage is not measured.
            stages: Mutex::new(std::array::from_fn(|_| Histogram::new_with_bounds(1, LONGEST, DIGITS).ok())),
        }
    }

    /// What was measured since the start, for stages that were measured at all.
    pub fn snapshot(&self) -> BTreeMap<Stage, StageTimes> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let times = |histogram: &Histogram<u64>| StageTimes {
            count: histogram.len(),
            p50: Duration::from_nanos(histogram.value_at_quantile(0.5)),
            p99: Duration::from_nanos(histogram.value_at_quantile(0.99)),
            max: Duration::from_nanos(histogram.max()),
        };
        let all = Stage::ALL.into_iter().zip(stages.iter().flatten());
        all.filter(|(_, histogram)| !histogram.is_empty()).map(|(stage, histogram)| (stage, times(histogram))).collect()
    }

    pub(crate) fn now(&self) -> Moment {
        (self.origin.elapsed().as_nanos() as u64).max(1)
    }

    fn record(&self, times: &[(Stage, Moment, Moment)]) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        for &(stage, from, to) in times {
            if let Some(histogram) = &mut stages[stage as usize] {
                histogram.saturating_record(to.saturating_sub(from).max(1));
            }
        }
    }

    /// The writer has something to do.
    pub(crate) fn ordered(&self) {
        let _ = self.ordered.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The writer begins a batch.
    pub(crate) fn begun(&self) -> Moment {
        let (ordered, now) = (self.ordered.swap(0, Ordering::Relaxed), self.now());
        if ordered != 0 {
            self.record(&[(Stage::WriterWaited, ordered, now)]);
        }
        now
    }

    /// The batch that was begun then is durable.
    pub(crate) fn synced(&self, begun: Moment) {
        let now = self.now();
        self.synced.store(now, Ordering::Relaxed);
        self.record(&[(Stage::WriterSynced, begun, now)]);
    }

    /// The loop has heard of a sync.
    pub(crate) fn noticed(&self) {
        let synced = self.synced.swap(0, Ordering::Relaxed);
        if synced != 0 {
            self.record(&[(Stage::WriterNoticed, synced, self.now())]);
        }
    }
}

/// Follows heartbeats of one group: one at a time.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// To whom one was sent, which, and when.
    sent: Option<(NodeId, u64, Moment)>,
}

impl Pulse {
    /// These leave.
    pub(crate) fn sent(&mut self, timings: &Timings, messages: &[Envelope]) {
        let heartbeat = messages.iter().find_map(|envelope| match envelope.body {
            Message::Heartbeat(Heartbeat { round: Some(round), .. }) => Some((envelope.to, round)),
            _ => None,
        });
        let Some((to, round)) = heartbeat else { return };
        let now = timings.now();
        // An answer may be lost.
        if self.sent.is_none_or(|(_, _, at)| now.saturating_sub(at) > LOST_AFTER) {
            self.sent = Some((to, round, now));
        }
    }

    /// These have come.
    pub(crate) fn received(&mut self, timings: &Timings, messages: &[Envelope]) {
        let Some((to, sent, at)) = self.sent else { return };
        let is_answer = |envelope: &Envelope| match envelope.body {
            Message::HeartbeatReply(HeartbeatReply { round, .. }) => envelope.from == to && round >= sent,
            _ => false,
        };
        if messages.iter().any(is_answer) {
            self.sent = None;
            timings.record(&[(Stage::Heartbeat, at, timings.now())]);
        }
    }
}

/// Where the applier says when it was done with the entry that is followed.
#[derive(Debug, Default)]
pub(crate) struct Mark {
    /// The entry. Zero: none.
    index: AtomicU64,
    applied: AtomicU64,
    answered: AtomicU64,
}

impl Mark {
    /// Everything up to `last` is applied.
    pub(crate) fn applied(&self, timings: &Timings, last: LogIndex) {
        let index = self.index.load(Ordering::Acquire);
        if index != 0 && index <= last.0 {
            let _ = self.applied.compare_exchange(0, timings.now(), Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// All answers have been handed over.
    pub(crate) fn answered(&self, timings: &Timings) {
        if self.index.load(Ordering::Acquire) != 0
            && self.applied.load(Ordering::Relaxed) != 0
            && self.answered.load(Ordering::Relaxed) == 0
        {
            self.answered.store(timings.now(), Ordering::Release);
        }
    }

    fn begin(&self, index: LogIndex) {
        self.applied.store(0, Ordering::Relaxed);
        self.answered.store(0, Ordering::Relaxed);
        self.index.store(index.0, Ordering::Release);
    }

    fn end(&self) {
        self.index.store(0, Ordering::Release);
    }
}

/// What an applier needs to tell.
pub(crate) type Marker = Option<(Arc<Timings>, Arc<Mark>)>;

/// Follows writes of one group, on its loop's side.
pub(crate) struct Probe {
    marker: Marker,
    /// A write has come in that may be followed: when it was asked for, and when the loop took it in.
    candidate: Option<(Moment, Moment)>,
    followed: Option<Followed>,
    /// The end of the log when it was looked at last.
    last: LogIndex,
}

/// An entry on its way.
struct Followed {
    leads: bool,
    index: LogIndex,
    asked: Moment,
    taken: Moment,
    sent: Moment,
    durable: Moment,
    acknowledged: Moment,
    committed: Moment,
}

impl Probe {
    pub(crate) fn new(marker: Marker) -> Self {
        Probe { marker, candidate: None, followed: None, last: LogIndex::ZERO }
    }

    /// A proposal was taken in that was read at `asked`, or entries have come from a leader.
    pub(crate) fn candidate(&mut self, asked: Option<Moment>) {
        if let (Some((timings, _)), None, None) = (&self.marker, &self.candidate, &self.followed) {
            let now = timings.now();
            self.candidate = Some((asked.unwrap_or(now), now));
        }
    }

    /// What came in has been taken in; `carried_out` says whether what follows from it has been carried out, too.
    pub(crate) fn look(&mut self, core: &Raft, carried_out: bool) {
        let Some((timings, mark)) = &self.marker else { return };
        let last = std::mem::replace(&mut self.last, core.last_index());
        match &mut self.followed {
            Some(followed) => {
                if followed.look(timings, mark, core) {
                    mark.end();
                    self.followed = None;
                    timings.following.store(false, Ordering::Relaxed);
                }
            }
            None if carried_out => {
                let grown = core.last_index() > last;
                if let Some((asked, taken)) = self.candidate.take().filter(|_| grown)
                    && !timings.following.swap(true, Ordering::Relaxed)
                {
                    let (leads, index) = (core.is_leader(), core.last_index());
                    mark.begin(index);
                    let sent = timings.now();
                    let (durable, acknowledged, committed) = (0, 0, 0);
                    self.followed =
                        Some(Followed { leads, index, asked, taken, sent, durable, acknowledged, committed });
                }
            }
            // Between the two, the log grows without having been carried out.
            None => self.last = last,
        }
    }
}

impl Drop for Probe {
    /// The next group may follow one.
    fn drop(&mut self) {
        if let (Some((timings, _)), Some(_)) = (&self.marker, &self.followed) {
            timings.following.store(false, Ordering::Relaxed);
        }
    }
}

impl Followed {
    /// Notes how far it is; whether that was the end of it.
    fn look(&mut self, timings: &Timings, mark: &Mark, core: &Raft) -> bool {
        if core.is_leader() != self.leads || core.last_index() < self.index {
            return true;
        }
        let now = timings.now();
        let note = |moment: &mut Moment, reached: LogIndex| {
            if *moment == 0 && reached >= self.index {
                *moment = now;
            }
        };
        note(&mut self.durable, core.durable_index());
        if !self.leads {
            if self.durable == 0 {
                return false;
            }
            // The acknowledgement leaves in the turn that begins now, or has just ended.
            let first = std::mem::replace(&mut self.committed, now) == 0;
            if !first {
                timings.record(&[
                    (Stage::Ordered, self.taken, self.sent),
                    (Stage::Stored, self.sent, self.durable),
                    (Stage::Confirmed, self.durable, now),
                ]);
            }
            return !first;
        }
        note(&mut self.acknowledged, core.best_match_index());
        note(&mut self.committed, core.commit_index());
        let answered = mark.answered.load(Ordering::Acquire);
        let complete = answered != 0 && self.committed != 0 && self.durable != 0 && self.acknowledged != 0;
        if complete {
            let applied = mark.applied.load(Ordering::Relaxed);
            timings.record(&[
                (Stage::Queued, self.asked, self.taken),
                (Stage::Sent, self.taken, self.sent),
                (Stage::Durable, self.sent, self.durable),
                (Stage::Acknowledged, self.sent, self.acknowledged),
                (Stage::Committed, self.sent, self.committed),
                (Stage::Applied, self.committed, applied),
                (Stage::Answered, applied, answered),
                (Stage::Whole, self.asked, answered),
            ]);
        }
        complete
    }
}
