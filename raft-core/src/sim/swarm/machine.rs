//! The state machine that the swarm replicates: a few registers, each of which holds a number or nothing.

use crate::types::LogId;

/// A change to one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Write this.
    Put(u64),
    /// Replace `expected` by `value`, if that is what is there.
    Swap {
        /// What must be there.
        expected: Option<u64>,
        /// What to write. Not zero.
        value: u64,
    },
}

/// A command as it stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) key: u8,
    pub(super) change: Change,
}

/// Kind, key, number, expected number; zero stands for nothing.
const LENGTH: usize = 1 + 1 + 8 + 8;

impl Command {
    /// Its bytes, with `padding` more.
    pub(super) fn encode(self, padding: usize) -> Vec<u8> {
        let (kind, value, expected) = match self.change {
            Change::Put(value) => (0, value, None),
            Change::Swap { expected, value } => (1, value, expected),
        };
        let mut bytes = Vec::with_capacity(LENGTH + padding);
        bytes.extend([kind, self.key]);
        bytes.extend(value.to_le_bytes());
        bytes.extend(expected.unwrap_or(0).to_le_bytes());
        bytes.resize(LENGTH + padding, 0x55);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Command> {
        let (&[kind, key], numbers) = bytes.split_first_chunk::<2>()?;
        let (value, rest) = numbers.split_first_chunk::<8>()?;
        let (expected, _) = rest.split_first_chunk::<8>()?;
        let (value, expected) = (u64::from_le_bytes(*value), u64::from_le_bytes(*expected));
        let change = match kind {
            0 => Change::Put(value),
            1 => Change::Swap { expected: (expected > 0).then_some(expected), value },
            _ => return None,
        };
        Some(Command { key, change })
    }
}

/// The command is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nonsense;

/// The registers of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Machine {
    registers: [u64; 8],
    /// The last entry that was applied.
    pub(super) applied: LogId,
    /// Depends on every command that was applied, and on their order.
    digest: u64,
}

impl Machine {
    /// Applies a command. Returns what was in the register before.
    pub(super) fn apply(&mut self, id: LogId, bytes: &[u8]) -> Result<Option<u64>, Nonsense> {
        self.skip(id);
        for chunk in bytes.chunks(8) {
            let word = chunk.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
            self.digest = mixed(self.digest, word);
        }
        let command = Command::decode(bytes).ok_or(Nonsense)?;
        let register = self.registers.get_mut(usize::from(command.key)).ok_or(Nonsense)?;
        let before = (*register > 0).then_some(*register);
        match command.change {
            Change::Put(value) => *register = value,
            Change::Swap { expected, value } if expected == before => *register = value,
            Change::Swap { .. } => {}
        }
        Ok(before)
    }

    /// Passes over an entry that is no command.
    pub(super) fn skip(&mut self, id: LogId) {
        self.applied = id;
        self.digest = mixed(mixed(self.digest, id.term.0), id.index.0);
    }

    /// What is in a register.
    pub(super) fn get(&self, key: u8) -> Option<u64> {
        self.registers.get(usize::from(key)).copied().filter(|value| *value > 0)
    }
}

/// Mixes `word` into `hash`; good enough to tell runs and machines apart.
pub(super) fn mixed(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, Term};

    fn id(index: u64) -> LogId {
        LogId::new(Term(1), LogIndex(index))
    }

    #[test]
    fn commands_do_what_they_say() {
        let mut machine = Machine::default();
        let mut apply = |index, change| machine.apply(id(index), &Command { key: 3, change }.encode(index as usize));
        assert_eq!(apply(1, Change::Put(5)), Ok(None));
        assert_eq!(apply(2, Change::Swap { expected: Some(5), value: 6 }), Ok(Some(5)));
        assert_eq!(apply(3, Change::Swap { expected: Some(5), value: 7 }), Ok(Some(6)));
        assert_eq!(apply(4, Change::Swap { expected: None, value: 7 }), Ok(Some(6)));
        assert_eq!((machine.get(3), machine.get(2), machine.applied), (Some(6), None, id(4)));
        assert_eq!(machine.apply(id(5), b"nonsense"), Err(Nonsense));
    }

    #[test]
    fn machines_that_applied_other_things_or_in_another_order_differ() {
        let commands = [Change::Put(1), Change::Put(2)].map(|change| Command { key: 0, change }.encode(0));
        let run = |order: [usize; 2]| {
            let mut machine = Machine::default();
            machine.apply(id(1), &commands[order[0]]).unwrap();
            machine.apply(id(2), &commands[order[1]]).unwrap();
            machine
        };
        assert_eq!(run([0, 1]), run([0, 1]));
        assert_ne!(run([0, 1]), run([1, 0]));
        assert_ne!(run([0, 1]).digest, run([1, 1]).digest);
    }
}
