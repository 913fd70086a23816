//! What clients did and saw, and whether it could have been a single register for each key.
//!
//! Every key has one writer, which writes ascending numbers one after another. For such a register, a history is linearizable
//! exactly when no read sees a value that was not yet written, none misses a write that was acknowledged before it began, and
//! none goes back behind a read that ended before it began. A write whose outcome is unknown may take effect at any
//! time after it began, so it must be the last one of its key.

use std::time::Instant;

/// An operation on one key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// A write; `end` is `None` when its outcome is not known.
    Write { value: u64, start: Instant, end: Option<Instant> },
    /// A read; zero stands for "absent".
    Read { value: u64, start: Instant, end: Instant },
}

/// The operations on one key, in any order.
#[derive(Debug, Default)]
pub(crate) struct History(pub(crate) Vec<Operation>);

impl History {
    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> usize {
        self.writes().filter(|(.., end)| end.is_some()).count()
    }

    fn writes(&self) -> impl Iterator<Item = (u64, Instant, Option<Instant>)> {
        self.0.iter().filter_map(|op| match *op {
            Operation::Write { value, start, end } => Some((value, start, end)),
            Operation::Read { .. } => None,
        })
    }

    fn reads(&self) -> impl Iterator<Item = (u64, Instant, Instant)> {
        self.0.iter().filter_map(|op| match *op {
            Operation::Read { value, start, end } => Some((value, start, end)),
            Operation::Write { .. } => None,
        })
    }

    /// Says what is wrong, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (value, start, end) in self.reads() {
            let possible =
                self.writes().filter(|(_, begun, _)| *begun < end).map(|(value, ..)| value).max().unwrap_or(0);
            if value > possible {
                return Err(format!("read {value}, but only {possible} had been written"));
            }
            let certain = self.writes().filter(|(.., end)| end.is_some_and(|end| end < start)).map(|(value, ..)| value);
            let seen = self.reads().filter(|(.., end)| *end < start).map(|(value, ..)| value);
            let least = certain.chain(seen).max().unwrap_or(0);
            if value < least {
                return Err(format!("read {value} after {least} had been acknowledged or read"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn history(ops: &[(char, u64, u64, u64)]) -> History {
        let origin = Instant::now();
        let at = |ms| origin + Duration::from_millis(ms);
        History(
            ops.iter()
                .map(|&(kind, value, start, end)| match kind {
                    'w' => Operation::Write { value, start: at(start), end: Some(at(end)) },
                    '?' => Operation::Write { value, start: at(start), end: None },
                    _ => Operation::Read { value, start: at(start), end: at(end) },
                })
                .collect(),
        )
    }

    #[test]
    fn accepts_what_a_register_can_do() {
        history(&[('w', 1, 0, 10), ('r', 0, 1, 4), ('r', 1, 2, 5), ('r', 1, 20, 21)]).check().unwrap();
        history(&[('?', 1, 0, 0), ('r', 0, 5, 6), ('r', 1, 7, 8), ('w', 2, 9, 12), ('r', 2, 13, 14)]).check().unwrap();
    }

    #[test]
    fn refuses_what_it_cannot() {
        assert!(history(&[('w', 1, 0, 10), ('r', 0, 11, 12)]).check().is_err(), "a stale read");
        assert!(history(&[('w', 1, 5, 10), ('r', 1, 1, 2)]).check().is_err(), "a read from the future");
        assert!(history(&[('w', 1, 0, 30), ('r', 1, 5, 6), ('r', 0, 7, 8)]).check().is_err(), "a read that goes back");
    }
}
