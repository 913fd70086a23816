//! Sessions of the swarm's clients: what a replica remembers so that a command that is repeated is carried out once (thesis, section 6.3).
//!
//! A session is opened by an entry, whose index is its name. A client has one command under way at a time and numbers them, so of each session
//! the newest is enough. Everything here depends on the log alone, also which session ends when there are too many: the entry that opens one says how
//! many there may be.

use std::collections::BTreeMap;

use crate::types::{LogId, LogIndex, Term};

/// All sessions of one replica, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sessions(BTreeMap<u64, Session>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Session {
    /// Index of the newest entry that belongs to it.
    last_used: u64,
    /// Number of its newest command, the entry as which that was carried out, and the answer.
    serial: u64,
    first: LogId,
    answer: Vec<u8>,
}

/// Why a command is not carried out, neither now nor ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// There is no such session any more. The command may have been carried out before.
    Expired,
    /// The client has gone on to its next command.
    Late,
}

impl Sessions {
    /// Opens a session, named by the index of the entry that asks for it. Of more than `kept`, those end that were not used for longest.
    pub(super) fn open(&mut self, index: u64, kept: u32) {
        self.0.insert(index, Session { last_used: index, ..Session::default() });
        while self.0.len() > kept.max(1) as usize {
            let oldest = self.0.iter().min_by_key(|(_, session)| session.last_used).map(|(name, _)| *name);
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
    }

    /// Whether a command is to be carried out (`None`), or was before, as which entry and with which answer. It is at `index` now.
    pub(super) fn admit(
        &mut self,
        session: u64,
        serial: u64,
        index: LogIndex,
    ) -> Result<Option<(LogId, Vec<u8>)>, Refusal> {
        let session = self.0.get_mut(&session).ok_or(Refusal::Expired)?;
        session.last_used = index.0;
        match session.serial {
            newest if serial < newest => Err(Refusal::Late),
            newest if serial == newest => Ok(Some((session.first, session.answer.clone()))),
            _ => Ok(None),
        }
    }

    /// A command that was admitted was carried out.
    pub(super) fn record(&mut self, session: u64, serial: u64, first: LogId, answer: Vec<u8>) {
        if let Some(session) = self.0.get_mut(&session) {
            *session = Session { last_used: session.last_used, serial, first, answer };
        }
    }

    /// The table as it comes out of a snapshot: five numbers, the length of the answer, the answer, for each session.
    pub(super) fn transferred(&self) -> Self {
        let mut bytes = Vec::new();
        for (name, Session { last_used, serial, first, answer }) in &self.0 {
            for number in [*name, *last_used, *serial, first.term.0, first.index.0, answer.len() as u64] {
                bytes.extend(number.to_le_bytes());
            }
            bytes.extend_from_slice(answer);
        }
        let mut rest = &bytes[..];
        Sessions(std::iter::from_fn(|| read(&mut rest)).collect())
    }
}

fn read(rest: &mut &[u8]) -> Option<(u64, Session)> {
    let mut number = || {
        let (bytes, behind) = rest.split_first_chunk::<8>()?;
        *rest = behind;
        Some(u64::from_le_bytes(*bytes))
    };
    let (name, last_used, serial) = (number()?, number()?, number()?);
    let (term, index, length) = (number()?, number()?, number()?);
    let (answer, behind) = rest.split_at_checked(length as usize)?;
    *rest = behind;
    let first = LogId::new(Term(term), LogIndex(index));
    Some((name, Session { last_used, serial, first, answer: answer.to_vec() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(Term(3), LogIndex(index))
    }

    #[test]
    fn a_command_is_carried_out_once_and_answered_alike_as_long_as_its_client_waits() {
        let mut sessions = Sessions::default();
        assert_eq!(sessions.admit(1, 1, LogIndex(1)), Err(Refusal::Expired));
        sessions.open(2, 3);
        assert_eq!(sessions.admit(2, 1, LogIndex(3)), Ok(None));
        sessions.record(2, 1, id(3), b"answer".to_vec());
        assert_eq!(sessions.admit(2, 1, LogIndex(4)), Ok(Some((id(3), b"answer".to_vec()))));
        assert_eq!(sessions.admit(2, 4, LogIndex(5)), Ok(None), "a gap");
        sessions.record(2, 4, id(5), Vec::new());
        assert_eq!(sessions.admit(2, 1, LogIndex(6)), Err(Refusal::Late));
        sessions.open(7, 2);
        assert_eq!(sessions.transferred(), sessions);
    }

    #[test]
    fn the_session_that_was_not_used_for_longest_gives_way() {
        let mut sessions = Sessions::default();
        (1..=2).for_each(|name| sessions.open(name, 2));
        assert_eq!(sessions.admit(1, 1, LogIndex(3)), Ok(None));
        sessions.open(4, 2);
        assert_eq!(sessions.admit(2, 1, LogIndex(5)), Err(Refusal::Expired));
        assert_eq!(sessions.admit(1, 1, LogIndex(6)), Ok(None));
        sessions.open(7, 0);
        assert_eq!(sessions.admit(7, 1, LogIndex(8)), Ok(None), "there is always room for the new one");
    }
}
