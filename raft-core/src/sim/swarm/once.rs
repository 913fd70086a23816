//! Whether clients that repeat their commands are told the truth. What a replica remembers of its sessions is not believed: every attempt of a client
//! carries a tag, and whatever an entry with a tag does is written down here.

use std::collections::{BTreeMap, BTreeSet};

use super::client::Answer;
use super::replica::{Outcome, Tag};
use crate::sim::checker::Violation;
use crate::types::LogId;

/// What came of an entry with a tag on one server.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) tag: Tag,
    pub(super) id: LogId,
    pub(super) outcome: Outcome,
}

/// What is known of all commands with tags.
#[derive(Debug, Default)]
pub(super) struct Once {
    /// Which entry each attempt became.
    attempts: BTreeMap<Tag, LogId>,
    /// As which entry each command was carried out, and the answer.
    carried_out: BTreeMap<u64, (LogId, Vec<u8>)>,
    /// Attempts whose clients were told that nothing has happened, and nothing will.
    denied: BTreeSet<Tag>,
}

impl Once {
    /// A server has applied an entry.
    pub(super) fn applied(&mut self, applied: Applied) -> Result<(), Violation> {
        let Applied { tag, id, outcome } = applied;
        if self.denied.contains(&tag) {
            return Err(format!("{id} is applied, and its client was told that nothing would happen: {tag:?}"));
        }
        match self.attempts.insert(tag, id) {
            Some(earlier) if earlier != id => {
                return Err(format!("proposed once, committed as {earlier} and {id}: {tag:?}"));
            }
            _ => {}
        }
        let Outcome::Done { answer, first } = outcome else { return Ok(()) };
        if tag.opens_session() {
            return Ok(());
        }
        let first = first.unwrap_or(id);
        match self.carried_out.get(&tag.unique) {
            None => {
                self.carried_out.insert(tag.unique, (first, answer));
                Ok(())
            }
            Some((known, _)) if *known != first => Err(format!("carried out twice, as {known} and {first}: {tag:?}")),
            Some((_, known)) if *known != answer => {
                Err(format!("answered {known:?} at first, and {answer:?} when it was repeated: {tag:?}"))
            }
            Some(_) => Ok(()),
        }
    }

    /// A server answers an attempt. Whether the answer arrives does not matter.
    pub(super) fn answered(&mut self, tag: Tag, answer: &Answer) -> Result<(), Violation> {
        match answer {
            Answer::Done { entry, .. } if *entry != self.attempts.get(&tag).copied() => {
                Err(format!("answered for {entry:?}, and became {:?}: {tag:?}", self.attempts.get(&tag)))
            }
            Answer::Done { answer, .. } if !tag.opens_session() => match self.carried_out.get(&tag.unique) {
                Some((_, known)) if known == answer => Ok(()),
                other => Err(format!("answered {answer:?}, and came to {other:?}: {tag:?}")),
            },
            Answer::NotLeader(_) | Answer::Busy => {
                self.denied.insert(tag);
                match self.attempts.get(&tag) {
                    Some(id) => Err(format!("{id} was applied, and its client is told that nothing happened: {tag:?}")),
                    None => Ok(()),
                }
            }
            Answer::Done { .. } | Answer::Refused(_) | Answer::Replaced | Answer::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, Term};

    fn id(index: u64) -> LogId {
        LogId::new(Term(1), LogIndex(index))
    }

    fn tag(attempt: u64) -> Tag {
        Tag { unique: 1 << 32 | 5, attempt }
    }

    fn done(answer: u8, first: Option<LogId>) -> Outcome {
        Outcome::Done { answer: vec![answer], first }
    }

    fn told(answer: u8, entry: LogId) -> Answer {
        Answer::Done { answer: vec![answer], entry: Some(entry), first: None }
    }

    /// Attempt 1 became entry 7 and was carried out as such, and answered with 3.
    fn after_the_first() -> Once {
        let mut once = Once::default();
        once.applied(Applied { tag: tag(1), id: id(7), outcome: done(3, None) }).unwrap();
        once
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let mut once = after_the_first();
        once.applied(Applied { tag: tag(1), id: id(7), outcome: done(3, None) }).unwrap();
        once.applied(Applied { tag: tag(2), id: id(9), outcome: done(3, Some(id(7))) }).unwrap();
        once.answered(tag(1), &told(3, id(7))).unwrap();
        once.answered(tag(2), &told(3, id(9))).unwrap();
        once.answered(tag(3), &Answer::Busy).unwrap();
        once.answered(tag(1), &Answer::Unknown).unwrap();
    }

    #[test]
    fn a_command_that_is_carried_out_twice_is_noticed() {
        let again = |id, outcome| after_the_first().applied(Applied { tag: tag(2), id, outcome }).unwrap_err();
        assert!(again(id(9), done(3, None)).contains("carried out twice"));
        assert!(again(id(9), done(3, Some(id(8)))).contains("carried out twice"));
        assert!(again(id(9), done(4, Some(id(7)))).contains("when it was repeated"));
        let copy = Applied { tag: tag(1), id: id(9), outcome: done(3, Some(id(7))) };
        assert!(after_the_first().applied(copy).unwrap_err().contains("proposed once"));
    }

    #[test]
    fn an_answer_that_is_not_true_is_noticed() {
        let says = |attempt, answer| after_the_first().answered(tag(attempt), &answer).unwrap_err();
        assert!(says(1, told(4, id(7))).contains("came to"));
        assert!(says(1, told(3, id(8))).contains("answered for"));
        assert!(says(2, told(3, id(8))).contains("answered for"), "an attempt that nobody has applied");
        assert!(says(1, Answer::NotLeader(None)).contains("nothing happened"));
        let mut once = after_the_first();
        once.answered(tag(2), &Answer::Busy).unwrap();
        let later = Applied { tag: tag(2), id: id(9), outcome: done(3, Some(id(7))) };
        assert!(once.applied(later).unwrap_err().contains("nothing would happen"));
    }
}
