//! What a leader knows and guesses about one follower.

use std::collections::VecDeque;
use std::time::Duration;

use crate::io::FetchId;
use crate::types::{Instant, LogIndex};

/// A leader's view of one follower.
///
/// `match_index` is a fact, learned only from acknowledgements; `next_index` is a guess, and neither is derived from the other.
///
/// Invariants: `match_index < next_index`; `inflight` ascends in `seq`; `inflight_bytes` is the sum of its sizes; while
/// `probing`, at most one append is on its way.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Progress {
    /// Names this life of the follower; replies that echo another epoch count for nothing.
    pub(crate) epoch: u64,
    /// Highest entry known to be on the follower's disk and equal to ours. Never goes back.
    pub(crate) match_index: LogIndex,
    /// The next entry to send.
    pub(crate) next_index: LogIndex,
    /// The point where the logs meet is not known: send one append at a time until one is accepted.
    pub(crate) probing: bool,
    /// Number of the next append.
    seq: u64,
    /// Rejections of appends before this one are stale: `next_index` was set anew since.
    rewound_at: u64,
    inflight: VecDeque<Inflight>,
    inflight_bytes: usize,
    /// Highest index that the follower is known to have received, durable or not.
    received: LogIndex,
    /// When the follower was last known to have received more.
    advanced_at: Instant,
    /// How long an append may stay unreceived before it is taken for lost, besides the time that its bytes take; doubles with each
    /// loss, up to a limit.
    patience: Duration,
    /// Highest commit index that the follower has been told.
    pub(crate) told_commit: LogIndex,
    /// Last reply; or when it became worth waiting for one.
    pub(crate) last_contact: Instant,
    /// Whether there was any reply.
    has_answered: bool,
    /// It is no member any more, and is forgotten at this time, which is set once that is committed.
    pub(crate) leaves_at: Option<Instant>,
    /// Highest heartbeat round that was answered.
    pub(crate) acked_round: u64,
    /// Until then the follower has promised to vote for nobody else, by our clock, with the margin taken off.
    pub(crate) promised_until: Instant,
    /// How much it should lead, as it last told.
    pub(crate) priority: u8,
    /// Number of the time in which it is awake, as it last told; `None` if it never did.
    pub(crate) vigil: Option<u64>,
    /// The fetch that must come back before anything can be sent.
    pub(crate) fetch: Option<FetchId>,
    /// The snapshot that is being sent, or is to be sent again. While entries that the follower needs are gone from the log, nothing else can be;
    /// heartbeats go on.
    snapshot: Option<Snapshot>,
}

/// A snapshot for a follower.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Snapshot {
    at_least: LogIndex,
    since: Instant,
    /// It failed; then is the time to try again.
    again_at: Option<Instant>,
}

/// How long so many bytes take on the slowest link that is believed in, of a megabyte a second.
fn time_to_send(bytes: usize) -> Duration {
    Duration::from_micros(bytes as u64)
}

/// An append on its way.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Inflight {
    seq: u64,
    prev: LogIndex,
    last: LogIndex,
    bytes: usize,
    /// The follower's `match_index` as it was known then.
    matched: LogIndex,
    sent_at: Instant,
}

impl Progress {
    pub(crate) fn new(epoch: u64, last: LogIndex, now: Instant, patience: Duration) -> Self {
        Progress {
            epoch,
            match_index: LogIndex::ZERO,
            next_index: last.next(),
            probing: true,
            seq: 1,
            rewound_at: 0,
            inflight: VecDeque::new(),
            inflight_bytes: 0,
            received: LogIndex::ZERO,
            advanced_at: now,
            patience,
            told_commit: LogIndex::ZERO,
            last_contact: now,
            has_answered: false,
            leaves_at: None,
            acked_round: 0,
            promised_until: Instant(0),
            priority: 0,
            vigil: None,
            fetch: None,
            snapshot: None,
        }
    }

    /// It has said something, just now.
    pub(crate) fn answered(&mut self, now: Instant) {
        self.last_contact = now;
        self.has_answered = true;
    }

    /// It was silent because it was told to be. Nobody has reported it lost, so it is taken to be there.
    pub(crate) fn presumed_present(&mut self, now: Instant) {
        self.last_contact = now;
    }

    /// Whether it has the whole log up to `last` on its disk, nothing is on its way to it, and it has answered the newest round of heartbeats or the one before.
    pub(crate) fn is_settled(&self, last: LogIndex, round: u64) -> bool {
        // A snapshot that failed and is to be tried again is not: the log got there by other means.
        let nothing_under_way = self.inflight.is_empty() && self.fetch.is_none() && self.snapshot().is_none();
        let stays = self.leaves_at.is_none() && self.vigil.is_some();
        stays && nothing_under_way && !self.probing && self.match_index == last && self.acked_round + 1 >= round
    }

    /// Whether this leader has ever had an answer from this member.
    pub(crate) fn has_ever_answered(&self) -> bool {
        self.has_answered && self.leaves_at.is_none()
    }

    /// Whether it has said anything within so much time.
    pub(crate) fn heard_within(&self, time: Duration, now: Instant) -> bool {
        self.has_answered && now.since(self.last_contact) < time
    }

    /// The entries that the follower needs are gone: whether a snapshot that reaches `at_least` is to be sent now. One at a time, and after a failure
    /// not at once.
    pub(crate) fn send_snapshot(&mut self, at_least: LogIndex, now: Instant) -> bool {
        let due = self.snapshot.is_none_or(|snapshot| snapshot.again_at.is_some_and(|at| now >= at));
        if due {
            self.snapshot = Some(Snapshot { at_least, since: now, again_at: None });
        }
        due
    }

    /// A snapshot that ends with `last` has arrived at the follower, or none has; then it may be tried again at `again_at`.
    pub(crate) fn snapshot_sent(&mut self, last: Option<LogIndex>, again_at: Instant) {
        // A second report about the same transfer, perhaps.
        let Some(snapshot) = self.snapshot.take_if(|snapshot| snapshot.again_at.is_none()) else { return };
        match last.filter(|last| *last >= snapshot.at_least) {
            // The follower may have got there by other means.
            Some(last) if last < self.next_index => {}
            // It says nothing yet: it acknowledges when its disk and its state machine have it.
            Some(last) => self.rewind(last, false),
            None => self.snapshot = Some(Snapshot { again_at: Some(again_at), ..snapshot }),
        }
    }

    /// A snapshot that is on its way: what it must reach, and since when.
    pub(crate) fn snapshot(&self) -> Option<(LogIndex, Instant)> {
        self.snapshot.filter(|snapshot| snapshot.again_at.is_none()).map(|snapshot| (snapshot.at_least, snapshot.since))
    }

    /// Whether an append may be sent now.
    pub(crate) fn has_room(&self, max_appends: usize, max_bytes: usize) -> bool {
        let limit = if self.probing { 1 } else { max_appends };
        self.fetch.is_none() && self.inflight.len() < limit && self.inflight_bytes < max_bytes
    }

    /// Whether everything sent has been acknowledged.
    pub(crate) fn is_quiet(&self) -> bool {
        self.inflight.is_empty()
    }

    /// Appends and bytes on their way.
    pub(crate) fn in_flight(&self) -> (usize, usize) {
        (self.inflight.len(), self.inflight_bytes)
    }

    /// Notes an append of `next_index ..= last` (empty when `last < next_index`) as sent; returns its number.
    pub(crate) fn sent(&mut self, last: LogIndex, bytes: usize, now: Instant) -> u64 {
        let seq = self.seq;
        self.seq += 1;
        let (prev, matched) = (self.next_index.prev(), self.match_index);
        self.inflight.push_back(Inflight { seq, prev, last, bytes, matched, sent_at: now });
        self.inflight_bytes += bytes;
        self.next_index = self.next_index.max(last.next());
        seq
    }

    /// The follower has everything up to `index` on its disk. Old acknowledgements are harmless: facts stay facts.
    pub(crate) fn acked(&mut self, index: LogIndex, now: Instant, patience: Duration) {
        if index > self.match_index {
            self.match_index = index;
            self.advanced_at = now;
            self.patience = patience;
        }
        self.received = self.received.max(self.match_index);
        // An acknowledgement that reaches the probe's `prev` shows that the logs meet there.
        if self.inflight.front().is_some_and(|probe| probe.prev <= index) {
            self.probing = false;
        }
        if self.next_index <= self.match_index {
            self.next_index = self.match_index.next();
            // Whatever is being fetched starts too low now.
            self.fetch = None;
        }
        if self.next_index == self.match_index.next() {
            // Everything that was sent has arrived.
            self.inflight.clear();
            self.inflight_bytes = 0;
            return;
        }
        while let Some(front) = self.inflight.front().filter(|sent| sent.last <= self.match_index) {
            self.inflight_bytes -= front.bytes;
            self.inflight.pop_front();
        }
    }

    /// Whether a snapshot did not arrive, and another is to be sent.
    pub(crate) fn has_failed_snapshot(&self) -> bool {
        self.snapshot.is_some_and(|snapshot| snapshot.again_at.is_some())
    }

    /// Whether a rejection of append `seq` is news.
    pub(crate) fn is_current_rejection(&self, seq: u64) -> bool {
        seq >= self.rewound_at && self.inflight.iter().any(|sent| sent.seq == seq)
    }

    /// Whether append `seq` began at or before what the follower had acknowledged when it was sent, so that it had no right to
    /// refuse it. An acknowledgement that came since proves nothing: appends and replies may have overtaken one another.
    pub(crate) fn contradicts_ack(&self, seq: u64) -> bool {
        self.inflight.iter().any(|sent| sent.seq == seq && sent.prev <= sent.matched)
    }

    /// Starts again after `matched`: `exact` when that is known to be the meeting point, else as a probe.
    pub(crate) fn rewind(&mut self, matched: LogIndex, exact: bool) {
        self.next_index = matched.max(self.match_index).next();
        self.probing = !exact;
        self.rewound_at = self.seq;
        self.inflight.clear();
        self.inflight_bytes = 0;
        self.fetch = None;
        self.told_commit = LogIndex::ZERO;
    }

    /// The newest word of the follower is that it has received everything up to `received` (durable or not). If an append
    /// that was sent long enough ago is not among that, and nothing new has arrived since either, it is lost: send again. A
    /// large one takes its time on a slow link, and the appends before it took theirs: repeating it would only make the link slower.
    ///
    /// May go back: a follower that restarted has lost what was not durable.
    pub(crate) fn heard(&mut self, received: LogIndex, now: Instant, max_patience: Duration) {
        if received > self.received {
            self.advanced_at = now;
        }
        self.received = received.max(self.match_index);
        let Some(missing) = self.inflight.iter().find(|sent| sent.last > self.received) else {
            return;
        };
        let begun_at = missing.sent_at.max(self.advanced_at);
        if now.since(begun_at) >= self.patience.saturating_add(time_to_send(missing.bytes)) {
            self.patience = self.patience.saturating_mul(2).min(max_patience);
            // A lost probe is repeated as it was; in a stream, what was received is known to match.
            let from = if self.probing { missing.prev } else { self.received };
            self.rewind(from, false);
        }
    }

    /// The connection was lost, and with it whatever was on its way.
    pub(crate) fn link_reset(&mut self) {
        let probed = self.inflight.front().map_or(self.next_index.prev(), |probe| probe.prev);
        self.rewind(if self.probing { probed } else { self.received }, false);
    }

    /// Everything was sent and heard just now, and patience is at its shortest: see [`Raft::forget_time`](crate::Raft::forget_time).
    #[cfg(feature = "sim")]
    pub(crate) fn forget_time(&mut self, now: Instant) {
        // Names every field, so that a new one has to be thought of here.
        let Progress {
            epoch: _,
            match_index: _,
            next_index: _,
            probing: _,
            seq: _,
            rewound_at: _,
            inflight,
            inflight_bytes: _,
            received: _,
            advanced_at,
            patience,
            told_commit: _,
            last_contact,
            has_answered: _,
            leaves_at,
            acked_round: _,
            promised_until,
            priority: _,
            vigil: _,
            fetch: _,
            snapshot,
        } = self;
        if let Some(Snapshot { at_least: _, since, again_at }) = snapshot {
            *since = now;
            *again_at = again_at.map(|_| now);
        }
        for append in inflight {
            let Inflight { seq: _, prev: _, last: _, bytes: _, matched: _, sent_at } = append;
            *sent_at = now;
        }
        (*advanced_at, *last_contact, *patience) = (now, now, Duration::from_nanos(1));
        // Nothing that is explored depends on it: leases are off there.
        *promised_until = Instant(0);
        if let Some(at) = leaves_at.as_mut().filter(|at| at.0 < u64::MAX) {
            *at = now;
        }
    }

    /// Appends sent in this life of the follower.
    #[cfg(feature = "sim")]
    pub(crate) fn appends_sent(&self) -> u64 {
        self.seq - 1
    }

    /// Panics when an invariant is broken.
    pub(crate) fn check(&self) {
        assert!(self.match_index < self.next_index, "{self:?}");
        assert!(!self.probing || self.inflight.len() <= 1, "{self:?}");
        assert_eq!(self.inflight_bytes, self.inflight.iter().map(|sent| sent.bytes).sum::<usize>(), "{self:?}");
        assert!(self.inflight.iter().zip(self.inflight.iter().skip(1)).all(|(a, b)| a.seq < b.seq), "{self:?}");
    }
}
