//! One server's copy of the state machine, and how the swarm's commands stand in the log.

use super::workload::Workload;
use crate::membership::Membership;
use crate::types::LogId;

/// The first byte of an entry's content: nothing but load, or a command.
const BALLAST: u8 = 0;
const COMMAND: u8 = 1;
/// That byte, and the length of the command; padding follows on the command.
const HEADER: usize = 1 + 4;

/// What an entry contains for a command and so much padding.
pub(super) fn encode(command: &[u8], padding: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + command.len() + padding);
    bytes.push(COMMAND);
    bytes.extend((command.len() as u32).to_le_bytes());
    bytes.extend_from_slice(command);
    bytes.resize(HEADER + command.len() + padding, 0x55);
    bytes
}

/// What an entry contains that is only there to be a burden. No two of them are equal if the numbers are not.
pub(super) fn ballast(number: u64, padding: usize) -> Vec<u8> {
    let mut bytes = vec![BALLAST];
    bytes.extend(number.to_le_bytes());
    bytes.resize(bytes.len() + padding, 0x55);
    bytes
}

/// The command that an entry contains; `None` if it is ballast.
fn decode(bytes: &[u8]) -> Result<Option<&[u8]>, Nonsense> {
    let (kind, rest) = bytes.split_first().ok_or(Nonsense)?;
    if *kind == BALLAST {
        return Ok(None);
    }
    let (len, rest) = rest.split_first_chunk::<4>().ok_or(Nonsense)?;
    rest.get(..u32::from_le_bytes(*len) as usize).map(Some).ok_or(Nonsense)
}

/// The entry was not proposed by a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// The state machine of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Replica<W> {
    pub(super) machine: W,
    /// The last entry that was applied.
    pub(super) applied: LogId,
    /// Who belongs to the cluster as of then; its founders, as long as nothing else was said.
    pub(super) membership: Option<Membership>,
    /// Depends on everything that was applied, and on the order.
    pub(super) digest: u64,
}

impl<W: Workload> Replica<W> {
    /// Applies a command, and answers it.
    pub(super) fn apply(&mut self, id: LogId, bytes: &[u8]) -> Result<Vec<u8>, Nonsense> {
        self.skip(id);
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.digest = mixed(self.digest, word);
        }
        Ok(decode(bytes)?.map_or_else(Vec::new, |command| self.machine.apply(command)))
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
            assert_eq!(decode(&encode(b"command", padding)), Ok(Some(&b"command"[..])));
            assert_eq!(decode(&ballast(3, padding)), Ok(None));
        }
        assert_eq!(decode(b""), Err(Nonsense));
        assert_eq!(decode(&[COMMAND, 9, 0, 0, 0, 1]), Err(Nonsense), "shorter than it says");
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
