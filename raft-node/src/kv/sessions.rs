//! Sessions: a write that is repeated takes effect once (thesis, section 6.3).
//!
//! A session is opened by a command, whose log index is its id. Every command of the session carries a serial number, and the lowest serial that its
//! client still waits for. Replies from there on are kept: a command that comes again gets the reply that it got the first time. Everything here
//! depends on the log alone, so all nodes come to the same verdicts, also on which session gives way when there are too many.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{MAX_SESSION_REPLIES, MAX_SESSIONS, Refusal, Reply};

/// All sessions.
///
/// Invariants: at most `most` (by default [`MAX_SESSIONS`]); of each, at most [`MAX_SESSION_REPLIES`] replies are kept, none of them below `first_unanswered`.
#[derive(Debug)]
pub(super) struct Sessions {
    open: BTreeMap<u64, Session>,
    /// Tests lower it.
    most: usize,
    /// Those that have changed, or gone, since [`Sessions::take_changed`].
    changed: BTreeSet<u64>,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Session {
    /// Log index of its newest command.
    last_used: u64,
    /// The client waits for no reply below this one.
    first_unanswered: u64,
    /// Replies to commands, by serial number.
    replies: BTreeMap<u64, Reply>,
}

/// What a command of a session says about itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    pub(super) session: u64,
    pub(super) serial: u64,
    pub(super) first_unanswered: u64,
}

impl Default for Sessions {
    fn default() -> Self {
        Sessions { open: BTreeMap::new(), most: MAX_SESSIONS, changed: BTreeSet::new() }
    }
}

impl Sessions {
    /// Forgets everything: another state is taken over.
    pub(super) fn clear(&mut self) {
        self.open.clear();
        self.changed.clear();
    }

    /// Opens a session, named by the log index of the command that asks for it. When there are too many, the one that was not used for
    /// longest ends.
    pub(super) fn register(&mut self, index: u64) {
        if self.open.len() >= self.most
            && let Some(oldest) = self.open.iter().min_by_key(|(_, session)| session.last_used).map(|(&id, _)| id)
        {
            self.end(oldest);
        }
        self.open.insert(index, Session { last_used: index, first_unanswered: 1, ..Session::default() });
        self.changed.insert(index);
    }

    /// Ends a session, if there is one of that name.
    pub(super) fn end(&mut self, session: u64) {
        if self.open.remove(&session).is_some() {
            self.changed.insert(session);
        }
    }

    /// Whether a command is to be carried out (`None`), or was before, with this reply. It is at `index` in the log.
    ///
    /// # Errors
    /// The command is not carried out, now or ever.
    pub(super) fn admit(&mut self, ticket: Ticket, index: u64) -> Result<Option<Reply>, Refusal> {
        let Some(session) = self.open.get_mut(&ticket.session) else { return Err(Refusal::SessionExpired) };
        self.changed.insert(ticket.session);
        session.last_used = index;
        if ticket.first_unanswered > session.first_unanswered {
            session.first_unanswered = ticket.first_unanswered;
            session.replies = session.replies.split_off(&ticket.first_unanswered);
        }
        if ticket.serial < session.first_unanswered {
            return Err(Refusal::AlreadyAnswered);
        }
        match session.replies.get(&ticket.serial) {
            Some(&reply) => Ok(Some(reply)),
            None if session.replies.len() >= MAX_SESSION_REPLIES => Err(Refusal::TooManyUnanswered),
            None => Ok(None),
        }
    }

    /// There may be only so many from now on.
    #[cfg(test)]
    pub(super) fn limit(&mut self, most: usize) {
        self.most = most;
    }

    /// A command that was admitted was carried out.
    pub(super) fn record(&mut self, ticket: Ticket, reply: Reply) {
        if let Some(session) = self.open.get_mut(&ticket.session) {
            session.replies.insert(ticket.serial, reply);
        }
    }

    /// The sessions that have changed since the last call, encoded; `None` for one that has ended.
    pub(super) fn take_changed(&mut self) -> Vec<(u64, Option<Vec<u8>>)> {
        let encode = |id| (id, self.open.get(&id).map(Session::encode));
        std::mem::take(&mut self.changed).into_iter().map(encode).collect()
    }

    /// Takes over a session as [`take_changed`](Self::take_changed) has encoded it; `false` if it cannot be decoded.
    pub(super) fn load(&mut self, id: u64, bytes: &[u8]) -> bool {
        match postcard::from_bytes(bytes) {
            Ok(session) => self.open.insert(id, session).is_none(),
            Err(_) => false,
        }
    }
}

impl Session {
    fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self)
            .expect("writing to memory cannot fail, and these types serialize without an error of their own")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(session: u64, serial: u64, first_unanswered: u64) -> Ticket {
        Ticket { session, serial, first_unanswered }
    }

    fn written(revision: u64) -> Reply {
        Reply::Written { revision }
    }

    #[test]
    fn a_command_is_carried_out_once_and_its_reply_kept_until_nobody_waits() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(ticket(5, 1, 1), 4), Err(Refusal::SessionExpired));
        sessions.register(5);
        for (serial, index) in [(2, 6), (1, 7)] {
            assert_eq!(sessions.admit(ticket(5, serial, 1), index), Ok(None));
            sessions.record(ticket(5, serial, 1), written(index));
        }
        assert_eq!(sessions.admit(ticket(5, 1, 1), 8), Ok(Some(written(7))));
        assert_eq!(sessions.admit(ticket(5, 3, 2), 9), Ok(None));
        assert_eq!(sessions.admit(ticket(5, 2, 1), 10), Ok(Some(written(6))), "an old ticket forgets nothing");
        assert_eq!(sessions.admit(ticket(5, 1, 1), 11), Err(Refusal::AlreadyAnswered), "a copy that comes late");
        sessions.end(5);
        assert_eq!(sessions.admit(ticket(5, 4, 2), 12), Err(Refusal::SessionExpired));
    }

    #[test]
    fn there_are_limits_and_the_one_unused_for_longest_gives_way() {
        let mut sessions = Sessions::default();
        (1..=MAX_SESSIONS as u64).for_each(|id| sessions.register(id));
        assert_eq!(sessions.admit(ticket(1, 1, 1), 1_000_000), Ok(None));
        sessions.register(2_000_000);
        assert_eq!(sessions.open.len(), MAX_SESSIONS);
        assert_eq!(sessions.admit(ticket(2, 1, 1), 2_000_001), Err(Refusal::SessionExpired));
        for serial in 1..=MAX_SESSION_REPLIES as u64 {
            assert_eq!(sessions.admit(ticket(1, serial, 1), serial), Ok(None));
            sessions.record(ticket(1, serial, 1), written(serial));
        }
        let next = MAX_SESSION_REPLIES as u64 + 1;
        assert_eq!(sessions.admit(ticket(1, next, 1), 3_000_000), Err(Refusal::TooManyUnanswered));
        assert_eq!(sessions.admit(ticket(1, next, 2), 3_000_001), Ok(None));
    }

    #[test]
    fn what_has_changed_can_be_put_aside_and_taken_over() {
        let mut sessions = Sessions::default();
        sessions.register(3);
        sessions.register(4);
        assert_eq!(sessions.admit(ticket(3, 7, 6), 9), Ok(None));
        sessions.record(ticket(3, 7, 6), written(9));
        sessions.end(4);
        let changed = sessions.take_changed();
        assert!(sessions.take_changed().is_empty());
        assert_eq!(
            changed.iter().map(|(id, bytes)| (*id, bytes.is_some())).collect::<Vec<_>>(),
            [(3, true), (4, false)]
        );
        let mut copy = Sessions::default();
        assert!(copy.load(3, changed[0].1.as_ref().unwrap()));
        assert_eq!(copy.open, sessions.open);
        assert!(!copy.load(5, b"\xff"));
        assert_eq!(copy.admit(ticket(3, 7, 6), 10), Ok(Some(written(9))));
    }
}
