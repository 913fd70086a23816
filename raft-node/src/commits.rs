//! How long a leader's entries take until they are committed: the wait that clients have.

use std::time::Duration;

use raft_core::{Instant, LogIndex, Raft};

/// Watches one entry of a group after the other, while this node leads: the next one when the one before is committed.
#[derive(Debug, Default)]
pub(crate) struct Commits {
    /// The entry, and when it was new.
    followed: Option<(LogIndex, Instant)>,
    /// The end of the log when it was looked at last.
    last: LogIndex,
}

impl Commits {
    /// What came in has been taken in, and what follows from it has been carried out. Returns how long an entry took that is committed now.
    pub(crate) fn look(&mut self, now: Instant, core: &Raft) -> Option<Duration> {
        self.see(now, core.is_leader(), core.last_index(), core.commit_index())
    }

    fn see(&mut self, now: Instant, leads: bool, last: LogIndex, committed: LogIndex) -> Option<Duration> {
        let before = std::mem::replace(&mut self.last, last);
        if !leads {
            // Whoever leads next may never commit it.
            self.followed = None;
            return None;
        }
        let done = self.followed.take_if(|(index, _)| *index <= committed);
        if self.followed.is_none() && last > before && last > committed {
            self.followed = Some((last, now));
        }
        done.map(|(_, since)| now.since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_entry_after_the_other_is_followed_until_it_is_committed_or_the_leader_is_none_any_more() {
        let mut commits = Commits::default();
        let mut see = |millis: u64, leads, last, committed| {
            let now = Instant(millis * 1_000_000);
            commits.see(now, leads, LogIndex(last), LogIndex(committed)).map(|took| took.as_millis())
        };
        assert_eq!(see(10, true, 5, 4), None);
        // More come meanwhile, and wait for their turn.
        assert_eq!(see(12, true, 7, 4), None);
        assert_eq!(see(13, true, 7, 5), Some(3));
        // Nobody knows since when 7 has waited.
        assert_eq!(see(20, true, 7, 7), None);
        // The next one begins when it comes, even while another one ends.
        assert_eq!(see(30, true, 8, 7), None);
        assert_eq!(see(31, true, 9, 8), Some(1));
        assert_eq!(see(35, true, 9, 9), Some(4));
        // What it had proposed is somebody else's now.
        assert_eq!(see(40, true, 10, 9), None);
        assert_eq!(see(41, false, 10, 9), None);
        assert_eq!(see(90, true, 10, 10), None);
    }
}
