//! When there will be room again: what a leader tells whoever it refuses a command.
//!
//! The estimate is the bytes over the limit, divided by the rate at which the leader has got rid of such bytes lately: by committing them, or
//! by applying them, whichever the limit is about. The log counts bytes by the batch; with the heartbeats the leader notes how far the count has come,
//! and all the rest is worked out when a command is refused. A command that is accepted pays for none of it.
//!
//! A rate says something only about a time in which there was always something to do. So a note counts only if a good part of the limit was in use when it
//! was made. Without such a note nothing is known, and the hint is the time to the next one.

use std::time::Duration;

use crate::raft::Raft;
use crate::role::RoleState;
use crate::types::Instant;

/// The shortest hint, in which hardly a disk gets anything done, and the longest: whoever waited longer would miss that things have changed.
const SHORTEST: Duration = Duration::from_millis(1);
const LONGEST: Duration = Duration::from_secs(1);

/// A note counts if more than one part in so many of the limit was in use.
const GOOD_PART: usize = 4;

/// Bytes on their way: to be committed, or to be applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Level {
    /// So many wait.
    pub(crate) waiting: usize,
    /// So many have waited. Only the difference of two such counts means something.
    pub(crate) done: u64,
}

/// How far both counts had come at some time.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(feature = "sim", derive(Hash))]
struct Note {
    at: Instant,
    uncommitted: Level,
    unapplied: Level,
}

/// A leader's last two notes: one of them is always old enough to tell a rate from, and never much older than two heartbeats.
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "sim", derive(Hash))]
pub(crate) struct Pace {
    older: Option<Note>,
    newer: Option<Note>,
}

/// What has to go before there is room, and what was done about it.
#[derive(Clone, Copy, Debug)]
struct Excess {
    /// Bytes that have to go.
    bytes: usize,
    /// Bytes that went since a note that counts was made, and how long ago that was.
    went: Option<(u64, Duration)>,
}

impl Pace {
    fn excess(&self, now: Instant, bytes: usize, limit: usize, done: u64, level: impl Fn(&Note) -> Level) -> Excess {
        let mut notes = [self.older.as_ref(), self.newer.as_ref()].into_iter().flatten();
        let note = notes.find(|note| level(note).waiting > limit / GOOD_PART);
        Excess { bytes, went: note.map(|note| (done.saturating_sub(level(note).done), now.since(note.at))) }
    }
}

impl Excess {
    /// How long it takes to go.
    fn lasts(self, heartbeat_interval: Duration, election_timeout: Duration) -> Duration {
        match self {
            Excess { bytes: 0, .. } => Duration::ZERO,
            Excess { went: None, .. } => heartbeat_interval,
            // A majority that is well, and far away, need not have answered in this time.
            Excess { went: Some((0, time)), .. } if time < heartbeat_interval => heartbeat_interval,
            // Nothing goes on. In an election timeout it does again, or somebody else leads.
            Excess { went: Some((0, _)), .. } => election_timeout,
            Excess { bytes, went: Some((went, time)) } => {
                let nanos = time.as_nanos().saturating_mul(bytes as u128) / u128::from(went);
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            }
        }
    }
}

/// A hint to retry after about this time: in whole milliseconds, rounded up, and within bounds.
pub(crate) fn hint(wait: Duration) -> Duration {
    let millis = wait.clamp(SHORTEST, LONGEST).as_nanos().div_ceil(1_000_000);
    Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX))
}

impl Raft {
    /// With the heartbeats: notes how far everything has come, if the last note is a heartbeat old. (Reads make for more rounds than that.)
    pub(crate) fn note_pace(&mut self) {
        let (now, interval) = (self.now, self.config.heartbeat_interval);
        let RoleState::Leader(leader) = &mut self.role else { return };
        let pace = &mut leader.pace;
        if pace.newer.as_ref().is_none_or(|newer| now.since(newer.at) >= interval) {
            let (uncommitted, unapplied) = self.log.levels();
            pace.older = pace.newer.replace(Note { at: now, uncommitted, unapplied });
        }
    }

    /// When a batch of `bytes`, which is refused now, will probably be taken. `uncommitted` says whether it is because of the limit on uncommitted bytes;
    /// the limit on unapplied ones may be exceeded as well, or instead.
    #[cold]
    pub(crate) fn room_after(&self, bytes: usize, uncommitted: bool) -> Duration {
        let (interval, timeout) = (self.config.heartbeat_interval, self.config.election_timeout);
        let RoleState::Leader(leader) = &self.role else { return hint(interval) };
        let (now, pace) = (self.now, &leader.pace);
        let (to_commit, to_apply) = self.log.levels();
        let limit = self.config.max_uncommitted_bytes;
        let over = to_commit.waiting.saturating_add(bytes).saturating_sub(limit);
        // However large it is, it is taken when nothing else is in progress.
        let over = if uncommitted { over.min(to_commit.waiting) } else { 0 };
        let commit = pace.excess(now, over, limit, to_commit.done, |note| note.uncommitted);
        let limit = self.config.max_unapplied_bytes;
        let over = to_apply.waiting.saturating_sub(limit);
        let apply = pace.excess(now, over, limit, to_apply.done, |note| note.unapplied);
        hint(commit.lasts(interval, timeout).max(apply.lasts(interval, timeout)))
    }

    /// When whoever is refused because leadership is handed over, an attempt that ends at `until`, should come again. Nearly always the next leader is there after
    /// some milliseconds; if a message is lost, it is repeated with the next heartbeat.
    pub(crate) fn handed_over_after(&self, now: Instant, until: Instant) -> Duration {
        hint(until.since(now).min(self.config.heartbeat_interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(ms: u64, waiting: usize, done: u64) -> Note {
        let level = Level { waiting, done };
        Note { at: Instant::from_millis(ms), uncommitted: level, unapplied: Level::default() }
    }

    /// What is said at 1000 ms with 1000 bytes done, when the limit is 400 and 50 bytes have to go: heartbeats are 100 ms apart, elections 400 ms.
    fn said(older: Option<Note>, newer: Option<Note>) -> u128 {
        let pace = Pace { older, newer };
        let excess = pace.excess(Instant::from_millis(1000), 50, 400, 1000, |note| note.uncommitted);
        hint(excess.lasts(100 * MS, 400 * MS)).as_millis()
    }

    #[test]
    fn the_hint_follows_the_rate() {
        assert_eq!(said(Some(at(800, 300, 500)), Some(at(900, 300, 600))), 20, "500 bytes in 200 ms");
        assert_eq!(said(Some(at(800, 300, 900)), Some(at(900, 300, 950))), 100, "100 bytes in 200 ms");
        assert_eq!(said(Some(at(800, 300, 999)), Some(at(900, 300, 999))), 1000, "a byte in 200 ms: not for ever");
        assert_eq!(said(Some(at(999, 300, 0)), None), 1, "a byte in a microsecond: not at once");
        assert_eq!(said(Some(at(800, 300, 300)), None), 15, "14.3 ms, rounded up");
    }

    #[test]
    fn only_what_was_done_under_load_counts() {
        assert_eq!(said(None, None), 100, "nothing is known");
        assert_eq!(said(Some(at(800, 100, 990)), Some(at(900, 100, 995))), 100, "there was little to do");
        assert_eq!(said(Some(at(800, 100, 990)), Some(at(900, 101, 900))), 50, "there was little to do at first");
    }

    #[test]
    fn what_stands_still_is_asked_again_when_it_must_have_changed() {
        assert_eq!(said(None, Some(at(901, 300, 1000))), 100, "it may only seem so");
        assert_eq!(said(None, Some(at(900, 300, 1000))), 400);
    }

    #[test]
    fn extremes_do_no_harm() {
        let rate = Excess { bytes: usize::MAX, went: Some((1, Duration::MAX)) };
        assert_eq!(hint(rate.lasts(MS, MS)), LONGEST);
        let nothing = Excess { bytes: 0, went: Some((0, Duration::MAX)) };
        assert_eq!(hint(nothing.lasts(MS, MS)), SHORTEST);
    }
}
