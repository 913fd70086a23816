//! A group's log in outline, and the rules that every write must keep.

use raft_core::{GroupId, HardState, LogId, LogIndex, Segment, Write};

use crate::error::StorageError;
use crate::storage::RecoveredLog;

/// What a store knows about a group without looking at the entries. `bytes` is left to the store, which alone knows what a
/// truncation frees.
///
/// Invariants: `log_start.index <= last_index`; the indices and terms of `runs` strictly increase, indices within
/// `log_start.index + 1 ..= last_index`; there are runs exactly if there are entries; the last term is at most
/// `hard_state.current_term`.
pub(crate) type Outline = RecoveredLog;

/// Brings `outline` to where it is after `write`, or says which rule the write breaks (`outline` is then worthless).
pub(crate) fn advance(outline: &mut Outline, group: GroupId, write: &Write) -> Result<(), StorageError> {
    let refuse = |reason| StorageError::BadWrite { group, seq: write.seq, reason };
    if let Some(from) = write.truncate_from {
        truncate(outline, from).map_err(refuse)?;
    }
    if let Some(hard_state) = write.hard_state {
        check_hard_state(outline.hard_state, hard_state).map_err(refuse)?;
        outline.hard_state = hard_state;
    }
    for segment in write.entries.segments() {
        append(outline, segment).map_err(refuse)?;
    }
    Ok(())
}

fn check_hard_state(old: HardState, new: HardState) -> Result<(), &'static str> {
    if new.current_term < old.current_term {
        return Err("it lowers the current term");
    }
    if new.current_term == old.current_term && old.voted_for.is_some() && new.voted_for != old.voted_for {
        return Err("it changes a vote within its term");
    }
    Ok(())
}

fn truncate(outline: &mut Outline, from: LogIndex) -> Result<(), &'static str> {
    if from <= outline.log_start.index {
        return Err("it truncates below the start of the log");
    }
    outline.last_index = outline.last_index.min(from.prev());
    while outline.runs.last().is_some_and(|run| run.index >= from) {
        outline.runs.pop();
    }
    Ok(())
}

/// Extends the outline by `segment`. Also used by recovery, which has no hard state to compare with until the end.
pub(crate) fn append(outline: &mut Outline, segment: &Segment) -> Result<(), &'static str> {
    if segment.last_term() > outline.hard_state.current_term {
        return Err("an entry's term is above the hard state's");
    }
    if segment.first_index() != outline.last_index.next() {
        return Err("its entries do not follow on the last one");
    }
    let mut term = outline.last().term;
    if segment.first_term() < term {
        return Err("its entries have a lower term than the last one");
    }
    // The common case, one term throughout, costs nothing for each entry.
    if segment.last_term() != term || outline.runs.is_empty() {
        for entry in segment.iter() {
            if entry.term > term || outline.runs.is_empty() {
                term = entry.term;
                outline.runs.push(LogId::new(term, entry.index));
            }
        }
    }
    outline.last_index = segment.last_index();
    Ok(())
}

#[cfg(test)]
mod tests {
    use raft_core::{EntryKind, NodeId, Term, WriteSeq};

    use super::*;

    fn write(term: u64, from: Option<u64>, first: u64, terms: &[u64]) -> Write {
        let mut entries = raft_core::Entries::new();
        for (i, &t) in terms.iter().enumerate() {
            let at = LogIndex(first + i as u64);
            entries.push(Segment::pack(at, Term(t), EntryKind::Command, &[b"x"]).unwrap()).unwrap();
        }
        let hard_state = Some(HardState { current_term: Term(term), voted_for: None });
        Write { seq: WriteSeq(1), hard_state, log_start: None, truncate_from: from.map(LogIndex), entries }
    }

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term(term), LogIndex(index))
    }

    #[test]
    fn runs_follow_appends_and_truncations() {
        let mut o = Outline::default();
        advance(&mut o, GroupId(1), &write(3, None, 1, &[1, 1, 2, 3, 3])).unwrap();
        assert_eq!(o.runs, [id(1, 1), id(2, 3), id(3, 4)]);
        advance(&mut o, GroupId(1), &write(4, Some(4), 4, &[4])).unwrap();
        assert_eq!((o.runs.clone(), o.last()), (vec![id(1, 1), id(2, 3), id(4, 4)], id(4, 4)));
        advance(&mut o, GroupId(1), &write(4, Some(1), 1, &[])).unwrap();
        assert_eq!((o.runs.len(), o.last()), (0, LogId::ZERO));
        advance(&mut o, GroupId(1), &write(4, None, 1, &[0])).unwrap();
        assert_eq!(o.runs, [id(0, 1)]);
    }

    #[test]
    fn every_rule_is_kept() {
        let good = write(3, None, 1, &[1, 2]);
        let refuses = |bad: Write, why: &str| {
            let mut o = Outline::default();
            advance(&mut o, GroupId(1), &good).unwrap();
            let error = advance(&mut o, GroupId(1), &bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refuses(write(3, None, 4, &[3]), "follow");
        refuses(write(3, None, 2, &[3]), "follow");
        refuses(write(3, Some(4), 4, &[3]), "follow");
        refuses(write(3, None, 3, &[1]), "lower term");
        refuses(write(3, None, 3, &[4]), "above the hard state");
        refuses(write(2, None, 3, &[]), "current term");
        refuses(write(3, Some(0), 1, &[]), "start of the log");
    }

    #[test]
    fn a_vote_stands() {
        let state =
            |term, vote: u64| HardState { current_term: Term(term), voted_for: (vote > 0).then_some(NodeId(vote)) };
        assert!(check_hard_state(state(1, 0), state(1, 2)).is_ok());
        assert!(check_hard_state(state(1, 2), state(1, 2)).is_ok());
        assert!(check_hard_state(state(1, 2), state(2, 0)).is_ok());
        assert!(check_hard_state(state(1, 2), state(1, 3)).is_err());
        assert!(check_hard_state(state(1, 2), state(1, 0)).is_err());
    }
}
