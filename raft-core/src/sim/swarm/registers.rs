//! The state machine that the swarm replicates unless it is given another: registers, each of which holds a number or nothing.

use std::collections::BTreeMap;

use super::workload::{Draw, Operation, Request, Workload};
use crate::sim::linearizability::{self, Action, Timed, Verdict};

/// A few registers, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Registers(BTreeMap<u8, u64>);

/// A change to one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
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

impl Change {
    /// The command that makes this change to register `key`: kind, key, number, expected number; zero stands for nothing.
    pub fn encode(self, key: u8) -> Vec<u8> {
        let (kind, value, expected) = match self {
            Change::Put(value) => (0, value, None),
            Change::Swap { expected, value } => (1, value, expected),
        };
        let mut bytes = vec![kind, key];
        bytes.extend(value.to_le_bytes());
        bytes.extend(expected.unwrap_or(0).to_le_bytes());
        bytes
    }

    /// The register, and the change to it.
    fn decode(bytes: &[u8]) -> Option<(u8, Change)> {
        let (&[kind, key], numbers) = bytes.split_first_chunk::<2>()?;
        let (value, rest) = numbers.split_first_chunk::<8>()?;
        let (value, expected) = (u64::from_le_bytes(*value), number(rest));
        match kind {
            0 => Some((key, Change::Put(value))),
            1 => Some((key, Change::Swap { expected, value })),
            _ => None,
        }
    }
}

/// What a register holds, as an answer tells it.
fn number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    (number > 0).then_some(number)
}

impl Registers {
    fn get(&self, key: u8) -> Option<u64> {
        self.0.get(&key).copied()
    }
}

impl Workload for Registers {
    /// Key and number of each register, one after the other.
    fn transferred(&self) -> Self {
        let bytes: Vec<u8> =
            self.0.iter().flat_map(|(key, value)| [&[*key][..], &value.to_le_bytes()].concat()).collect();
        let register = |bytes: &[u8]| Some((*bytes.first()?, u64::from_le_bytes(*bytes.get(1..)?.first_chunk()?)));
        Registers(bytes.chunks(9).filter_map(register).collect())
    }

    /// The answer is what was in the register before.
    fn apply(&mut self, command: &[u8]) -> Vec<u8> {
        let Some((key, change)) = Change::decode(command) else { return Vec::new() };
        let before = self.get(key);
        match change {
            Change::Put(value) => {
                self.0.insert(key, value);
            }
            Change::Swap { expected, value } if expected == before => {
                self.0.insert(key, value);
            }
            Change::Swap { .. } => {}
        }
        before.unwrap_or(0).to_le_bytes().to_vec()
    }

    fn query(&self, query: &[u8]) -> Vec<u8> {
        let found = query.first().and_then(|key| self.get(*key));
        found.unwrap_or(0).to_le_bytes().to_vec()
    }

    fn draw(draw: &mut Draw<'_>) -> (usize, Request) {
        let object = draw.dice.pick(draw.objects);
        let (key, value) = (object as u8, draw.unique);
        let request = match draw.dice.pick(100) {
            0..45 => Request::Query(vec![key]),
            45..80 => Request::Command(Change::Put(value).encode(key)),
            _ => {
                let expected = draw.last(object).and_then(|(request, answer)| seen(request, answer));
                Request::Command(Change::Swap { expected, value }.encode(key))
            }
        };
        (object, request)
    }

    fn check(history: &[Operation], budget: u64) -> Verdict<Operation> {
        let actions: Vec<_> = history
            .iter()
            .map(|Timed { action: (request, answer), invoked, returned }| Timed {
                action: action(request, answer.as_deref()),
                invoked: *invoked,
                returned: *returned,
            })
            .collect();
        match linearizability::check(&actions, budget) {
            Verdict::Linearizable => Verdict::Linearizable,
            Verdict::Unknown => Verdict::Unknown,
            Verdict::Violation { stuck } => {
                let place = actions.iter().position(|action| *action == stuck).unwrap_or_default();
                Verdict::Violation { stuck: history[place].clone() }
            }
        }
    }
}

/// What a client did to its register.
fn action(request: &Request, answer: Option<&[u8]>) -> Action {
    match request {
        Request::Query(_) => Action::Get(answer.and_then(number)),
        Request::Command(command) => match (Change::decode(command), answer) {
            (Some((_, Change::Put(value))), _) => Action::Put(value),
            (Some((_, Change::Swap { expected, value })), None) => Action::Swap { expected, value },
            (Some((_, Change::Swap { expected, value })), Some(answer)) => {
                let found = number(answer);
                if found == expected { Action::Swap { expected, value } } else { Action::Get(found) }
            }
            (None, _) => Action::Get(None),
        },
    }
}

/// What a client knows to be in a register after this answer.
fn seen(request: &Request, answer: &[u8]) -> Option<u64> {
    match action(request, Some(answer)) {
        Action::Put(value) | Action::Swap { value, .. } => Some(value),
        Action::Get(found) => found,
        Action::Delete { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Instant;

    #[test]
    fn commands_do_what_they_say() {
        let mut registers = Registers::default();
        let mut apply = |change: Change| number(&registers.apply(&change.encode(3)));
        assert_eq!(apply(Change::Put(5)), None);
        assert_eq!(apply(Change::Swap { expected: Some(5), value: 6 }), Some(5));
        assert_eq!(apply(Change::Swap { expected: Some(5), value: 7 }), Some(6));
        assert_eq!(apply(Change::Swap { expected: None, value: 7 }), Some(6));
        assert_eq!((number(&registers.query(&[3])), number(&registers.query(&[2]))), (Some(6), None));
        assert!(registers.apply(b"nonsense").is_empty());
    }

    /// The quick check and the search through whole machines must agree.
    #[test]
    fn the_check_of_registers_and_that_of_any_machine_agree() {
        let put = |value| Request::Command(Change::Put(value).encode(0));
        let swap = |expected, value| Request::Command(Change::Swap { expected: Some(expected), value }.encode(0));
        let answer = |number: u64| Some(number.to_le_bytes().to_vec());
        let done = |from, to, request, found| Timed {
            action: (request, answer(found)),
            invoked: Instant(from),
            returned: Some(Instant(to)),
        };
        let doubt = |from, request| Timed { action: (request, None), invoked: Instant(from), returned: None };
        let get = || Request::Query(vec![0]);
        let histories = [
            (true, vec![done(0, 1, put(1), 0), done(2, 3, swap(1, 2), 1), done(4, 5, get(), 2)]),
            (true, vec![done(0, 1, put(1), 0), doubt(2, swap(1, 2)), done(4, 5, get(), 2)]),
            (true, vec![done(0, 1, put(1), 0), done(2, 3, swap(7, 2), 1), done(4, 5, get(), 1)]),
            (false, vec![done(0, 1, put(1), 0), done(2, 3, swap(7, 2), 1), done(4, 5, get(), 2)]),
            (false, vec![done(0, 1, put(1), 0), done(2, 3, put(2), 1), done(4, 5, get(), 1)]),
            (false, vec![done(0, 1, put(1), 0), done(2, 3, get(), 0)]),
        ];
        for (right, history) in histories {
            let quick = Registers::check(&history, 1000);
            let whole = linearizability::check_model::<super::super::workload::Whole<Registers>>(&history, 1000);
            assert_eq!(quick == Verdict::Linearizable, right, "{history:?}: {quick:?}");
            assert_eq!(whole == Verdict::Linearizable, right, "{history:?}: {whole:?}");
        }
    }
}
