//! One server's copy of the state machine, and how the swarm's commands stand in the log.

use super::sessions::{Refusal, Sessions};
use super::workload::Workload;
use crate::membership::Membership;
use crate::types::LogId;

/// The first byte of an entry's content: nothing but load, a command, one that opens a session, or one that belongs to a session.
const BALLAST: u8 = 0;
const COMMAND: u8 = 1;
const OPEN: u8 = 2;
const IN_SESSION: u8 = 3;
/// The length of the command, behind that byte; padding follows on the command.
const LENGTH: usize = 4;

/// Which attempt of which command an entry is. Only judges look at it: to the state machine it means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag {
    /// Number of the command, which no other client has either; zero in its lower half stands for opening a session.
    pub(super) unique: u64,
    /// Number of the attempt among those of its client.
    pub(super) attempt: u64,
}

impl Tag {
    /// Whether this is no command of a session, but opens one.
    pub(super) fn opens_session(self) -> bool {
        self.unique.trailing_zeros() >= 32
    }
}

/// What an entry is about, if it is more than a burden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content<'a> {
    Command(&'a [u8]),
    Open { tag: Tag, kept: u32 },
    InSession { tag: Tag, session: u64, serial: u64, command: &'a [u8] },
}

/// What came of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was carried out, now or before: as that entry.
    Done { answer: Vec<u8>, first: Option<LogId> },
    /// It was not carried out, and never will be.
    Refused(Refusal),
}

impl Outcome {
    fn now(answer: Vec<u8>) -> Self {
        Outcome::Done { answer, first: None }
    }
}

/// What an entry contains for a command and so much padding.
pub(super) fn encode(command: &[u8], padding: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + LENGTH + command.len() + padding);
    bytes.push(COMMAND);
    pad(&mut bytes, command, padding);
    bytes
}

/// What an entry contains that opens a session, of which there may be so many.
pub(super) fn open_session(tag: Tag, kept: u32) -> Vec<u8> {
    let mut bytes = vec![OPEN];
    bytes.extend([tag.unique, tag.attempt, u64::from(kept)].into_iter().flat_map(u64::to_le_bytes));
    bytes
}

/// What an entry contains for the command of that number of a session.
pub(super) fn in_session(tag: Tag, session: u64, serial: u64, command: &[u8], padding: usize) -> Vec<u8> {
    let mut bytes = vec![IN_SESSION];
    bytes.extend([tag.unique, tag.attempt, session, serial].into_iter().flat_map(u64::to_le_bytes));
    pad(&mut bytes, command, padding);
    bytes
}

fn pad(bytes: &mut Vec<u8>, command: &[u8], padding: usize) {
    bytes.extend((command.len() as u32).to_le_bytes());
    bytes.extend_from_slice(command);
    bytes.resize(bytes.len() + padding, 0x55);
}

/// What an entry contains that is only there to be a burden. No two of them are equal if the numbers are not.
pub(super) fn ballast(number: u64, padding: usize) -> Vec<u8> {
    let mut bytes = vec![BALLAST];
    bytes.extend(number.to_le_bytes());
    bytes.resize(bytes.len() + padding, 0x55);
    bytes
}

/// What an entry contains; `None` if it is ballast.
fn decode(bytes: &[u8]) -> Result<Option<Content<'_>>, Nonsense> {
    let (kind, mut rest) = bytes.split_first().ok_or(Nonsense)?;
    match *kind {
        BALLAST => Ok(None),
        COMMAND => Ok(Some(Content::Command(command(rest)?))),
        OPEN => {
            let tag = Tag { unique: number(&mut rest)?, attempt: number(&mut rest)? };
            Ok(Some(Content::Open { tag, kept: number(&mut rest)? as u32 }))
        }
        IN_SESSION => {
            let tag = Tag { unique: number(&mut rest)?, attempt: number(&mut rest)? };
            let (session, serial) = (number(&mut rest)?, number(&mut rest)?);
            Ok(Some(Content::InSession { tag, session, serial, command: command(rest)? }))
        }
        _ => Err(Nonsense),
    }
}

fn number(bytes: &mut &[u8]) -> Result<u64, Nonsense> {
    let (number, rest) = bytes.split_first_chunk::<8>().ok_or(Nonsense)?;
    *bytes = rest;
    Ok(u64::from_le_bytes(*number))
}

fn command(bytes: &[u8]) -> Result<&[u8], Nonsense> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>().ok_or(Nonsense)?;
    rest.get(..u32::from_le_bytes(*length) as usize).ok_or(Nonsense)
}

/// The entry was not proposed by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// The state machine of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replica<W> {
    pub(super) machine: W,
    pub(super) sessions: Sessions,
    /// The last entry that was applied.
    pub(super) applied: LogId,
    /// Who belongs to the cluster as of then; its founders, as long as nothing else was said.
    pub(super) membership: Option<Membership>,
    /// Depends on everything that was applied, and on the order.
    pub(super) digest: u64,
}

impl<W: Workload> Replica<W> {
    /// Applies a command, and says what came of it; and which attempt of a client it is, if it says so.
    pub(super) fn apply(&mut self, id: LogId, bytes: &[u8]) -> Result<(Outcome, Option<Tag>), Nonsense> {
        self.skip(id);
        self.digest(bytes);
        match decode(bytes)? {
            None => Ok((Outcome::now(Vec::new()), None)),
            Some(Content::Command(command)) => Ok((Outcome::now(self.machine.apply(command)), None)),
            Some(Content::Open { tag, kept }) => {
                self.sessions.open(id.index.0, kept);
                Ok((Outcome::now(Vec::new()), Some(tag)))
            }
            Some(Content::InSession { tag, session, serial, command }) => {
                let outcome = match self.sessions.admit(session, serial, id.index) {
                    Err(refusal) => Outcome::Refused(refusal),
                    Ok(Some((first, answer))) => Outcome::Done { answer, first: Some(first) },
                    Ok(None) => {
                        let answer = self.machine.apply(command);
                        self.sessions.record(session, serial, id, answer.clone());
                        Outcome::now(answer)
                    }
                };
                self.digest_outcome(&outcome);
                Ok((outcome, Some(tag)))
            }
        }
    }

    fn digest(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.digest = mixed(self.digest, word);
        }
    }

    /// What a table of sessions decides depends on more than the entry.
    fn digest_outcome(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Done { answer, first } => {
                self.digest = mixed(self.digest, first.map_or(0, |first| first.index.0));
                self.digest(answer);
            }
            Outcome::Refused(refusal) => self.digest = mixed(self.digest, 1 + *refusal as u64),
        }
    }

    /// The replica as it comes out of a snapshot of itself.
    pub(super) fn transferred(&self) -> Self {
        Replica { machine: self.machine.transferred(), sessions: self.sessions.transferred(), ..self.clone() }
    }

    /// Notes who belongs to the cluster from now on.
    pub(super) fn change(&mut self, id: LogId, bytes: &[u8]) {
        self.skip(id);
        self.membership = Membership::decode(bytes).ok().or(self.membership.take());
    }

    /// Passes over an entry that is no command.
    pub(super) fn skip(&mut self, id: LogId) {
        assert_eq!(id.index, self.applied.index.next(), "one entry after the other");
        self.applied = id;
        self.digest = mixed(mixed(self.digest, id.term.0), id.index.0);
    }
}

/// Mixes `word` into `hash`; good enough to tell runs and machines apart.
pub(super) fn mixed(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::super::registers::{Change, Registers};
    use super::*;
    use crate::types::{LogIndex, Term};

    fn id(index: u64) -> LogId {
        LogId::new(Term(1), LogIndex(index))
    }

    #[test]
    fn a_command_is_what_was_asked_whatever_the_padding() {
        for padding in [0, 1, 77] {
            assert_eq!(decode(&encode(b"command", padding)), Ok(Some(Content::Command(b"command"))));
            assert_eq!(decode(&ballast(3, padding)), Ok(None));
            let tag = Tag { unique: 1 << 32 | 2, attempt: 3 };
            let content = Content::InSession { tag, session: 4, serial: 5, command: b"command" };
            assert_eq!(decode(&in_session(tag, 4, 5, b"command", padding)), Ok(Some(content)));
            assert_eq!(decode(&open_session(tag, 6)), Ok(Some(Content::Open { tag, kept: 6 })));
        }
        assert_eq!(decode(b""), Err(Nonsense));
        assert_eq!(decode(&[COMMAND, 9, 0, 0, 0, 1]), Err(Nonsense), "shorter than it says");
        assert_eq!(decode(&[OPEN, 9]), Err(Nonsense));
        assert_eq!(decode(&[9]), Err(Nonsense));
    }

    #[test]
    fn a_command_that_is_repeated_in_its_session_is_carried_out_once() {
        let mut replica = Replica::<Registers>::default();
        let tag = |attempt| Tag { unique: 1 << 32 | 1, attempt };
        let put = Change::Put(7).encode(0);
        replica.apply(id(1), &open_session(Tag { unique: 1 << 32, attempt: 1 }, 4)).unwrap();
        let first = replica.apply(id(2), &in_session(tag(2), 1, 1, &put, 0)).unwrap();
        assert_eq!(first, (Outcome::now(0_u64.to_le_bytes().to_vec()), Some(tag(2))));
        let mut copy = replica.transferred();
        assert_eq!(copy, replica);
        let Outcome::Done { answer, .. } = first.0 else { unreachable!() };
        let again = Outcome::Done { answer, first: Some(id(2)) };
        assert_eq!(copy.apply(id(3), &in_session(tag(3), 1, 1, &put, 9)), Ok((again, Some(tag(3)))));
        assert_eq!(copy.machine, replica.machine);
        let refused = copy.apply(id(4), &in_session(tag(4), 9, 1, &put, 0)).unwrap();
        assert_eq!(refused.0, Outcome::Refused(Refusal::Expired));
        // One that has lost its table comes to another state.
        copy.sessions = Sessions::default();
        let digest = |mut replica: Replica<Registers>| {
            replica.apply(id(replica.applied.index.0 + 1), &in_session(tag(5), 1, 1, &put, 0)).unwrap();
            replica.digest
        };
        let whole = Replica { sessions: replica.sessions.clone(), ..copy.clone() };
        assert_ne!(digest(copy), digest(whole));
    }

    #[test]
    fn replicas_that_applied_other_things_or_in_another_order_differ() {
        let commands = [Change::Put(1), Change::Put(2)].map(|change| encode(&change.encode(0), 0));
        let run = |order: [usize; 2]| {
            let mut replica = Replica::<Registers>::default();
            replica.apply(id(1), &commands[order[0]]).unwrap();
            replica.apply(id(2), &commands[order[1]]).unwrap();
            replica
        };
        assert_eq!(run([0, 1]), run([0, 1]));
        assert_ne!(run([0, 1]), run([1, 0]));
        assert_ne!(run([0, 1]).digest, run([1, 1]).digest);
    }
}
