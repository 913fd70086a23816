//! The client's side of a session: which serial numbers are given out, and which replies are still waited for.
//!
//! What a session promises is described at [`Command::InSession`]. One session serves a client and all its clones, with any number of requests
//! under way, as long as their serial numbers are not too far apart for the nodes to remember all replies.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Client, Error};
use crate::kv::{Command, MAX_SESSION_REPLIES, Reply};

/// A session, opened when it is first needed, and again when it has expired.
#[derive(Default)]
pub(super) struct Session {
    state: Mutex<State>,
    /// Somebody who waited for a reply does so no more.
    room: Notify,
    /// Held while a session is being opened: everybody else waits for the outcome.
    opening: tokio::sync::Mutex<()>,
}

/// Invariant: everyone in `waiting` is of the present session, below `next_serial`, and less than [`MAX_SESSION_REPLIES`] below it.
#[derive(Default)]
struct State {
    id: Option<u64>,
    next_serial: u64,
    waiting: BTreeSet<u64>,
}

/// The right to send one command, once or many times. Dropping it says that nobody waits for the reply any more.
pub(super) struct Ticket<'a> {
    session: &'a Session,
    id: u64,
    serial: u64,
    first_unanswered: u64,
}

impl Session {
    /// The next serial number, in a session that is opened if there is none.
    pub(super) async fn ticket(&self, client: &Client) -> Result<Ticket<'_>, Error> {
        loop {
            // Who is told between the look and the wait must not miss it.
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            match self.next() {
                Next::Ticket(ticket) => return Ok(ticket),
                Next::Full => room.await,
                Next::Closed => self.open(client).await?,
            }
        }
    }

    fn next(&self) -> Next<'_> {
        let mut state = self.lock();
        let Some(id) = state.id else { return Next::Closed };
        let serial = state.next_serial;
        let first_unanswered = state.waiting.first().copied().unwrap_or(serial);
        if serial - first_unanswered >= MAX_SESSION_REPLIES as u64 {
            return Next::Full;
        }
        state.next_serial += 1;
        state.waiting.insert(serial);
        Next::Ticket(Ticket { session: self, id, serial, first_unanswered })
    }

    async fn open(&self, client: &Client) -> Result<(), Error> {
        let _opening = self.opening.lock().await;
        if self.lock().id.is_some() {
            return Ok(());
        }
        // If a copy that is thought lost arrives all the same, that session is never used, and gives way to others one day.
        let (reply, _) = client.run_write(Command::Register.encode(), true).await?;
        match Reply::decode(&reply)? {
            Reply::Registered { session } => {
                *self.lock() = State { id: Some(session), next_serial: 1, waiting: BTreeSet::new() };
                Ok(())
            }
            other => Err(Error::BadAnswer(format!("an unexpected reply: {other:?}"))),
        }
    }

    /// The session of this id has expired.
    pub(super) fn expired(&self, id: u64) {
        let mut state = self.lock();
        if state.id == Some(id) {
            *state = State::default();
        }
        drop(state);
        self.room.notify_waiters();
    }

    /// The present session, which is not used any more from now on.
    pub(super) fn take(&self) -> Option<u64> {
        std::mem::take(&mut *self.lock()).id
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next<'a> {
    Ticket(Ticket<'a>),
    /// Too many replies are waited for.
    Full,
    Closed,
}

impl Ticket<'_> {
    /// The session that it belongs to.
    pub(super) fn session(&self) -> u64 {
        self.id
    }

    /// The command to send for it.
    pub(super) fn stamp<'c>(&self, command: &'c [u8]) -> Command<'c> {
        let Ticket { id, serial, first_unanswered, .. } = *self;
        Command::InSession { session: id, serial, first_unanswered, command }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut state = self.session.lock();
        if state.id == Some(self.id) {
            state.waiting.remove(&self.serial);
        }
        drop(state);
        self.session.room.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened() -> Session {
        let session = Session::default();
        *session.lock() = State { id: Some(7), next_serial: 1, waiting: BTreeSet::new() };
        session
    }

    fn ticket(session: &Session) -> Option<Ticket<'_>> {
        match session.next() {
            Next::Ticket(ticket) => Some(ticket),
            Next::Full | Next::Closed => None,
        }
    }

    #[test]
    fn nodes_are_told_what_is_still_waited_for() {
        let session = opened();
        let (first, second) = (ticket(&session).unwrap(), ticket(&session).unwrap());
        drop(second);
        let third = ticket(&session).unwrap();
        assert_eq!((third.serial, third.first_unanswered), (3, 1));
        drop(first);
        assert_eq!(ticket(&session).unwrap().first_unanswered, 3);
        assert!(matches!(third.stamp(b"c"), Command::InSession { session: 7, serial: 3, first_unanswered: 1, .. }));
    }

    #[test]
    fn nobody_is_so_far_ahead_that_a_reply_would_be_forgotten() {
        let session = opened();
        let first = ticket(&session).unwrap();
        for _ in 1..MAX_SESSION_REPLIES {
            drop(ticket(&session).unwrap());
        }
        assert!(matches!(session.next(), Next::Full));
        drop(first);
        assert!(ticket(&session).is_some());
    }

    #[test]
    fn tickets_of_an_expired_session_do_not_count_in_the_next() {
        let session = opened();
        let old = ticket(&session).unwrap();
        session.expired(7);
        assert!(matches!(session.next(), Next::Closed));
        *session.lock() = State { id: Some(9), next_serial: 1, waiting: BTreeSet::new() };
        let new = ticket(&session).unwrap();
        drop(old);
        assert_eq!((new.session(), ticket(&session).unwrap().first_unanswered), (9, 1));
        session.expired(7);
        assert!(ticket(&session).is_some(), "another one has expired");
    }
}
