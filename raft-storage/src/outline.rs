//! A group's log in outline, and the rules that every write must keep.

use raft_core::{
    EntryKind, GroupId, HardState, LogId, LogIndex, Membership, MembershipError, Segment, SnapshotMeta, Term, Write,
};

use crate::error::StorageError;
use crate::storage::RecoveredLog;

/// What a store knows about a group without looking at the entries. `bytes` is left to the store, which alone knows what a
/// truncation frees.
///
/// Invariants: `log_start.index <= last_index`; the indices and terms of `runs` strictly increase, indices within
/// `log_start.index + 1 ..= last_index`; there are runs exactly if there are entries, and the first of them begins with the log; the last term
/// is at most `hard_state.current_term`; the indices of `changes` strictly increase within the log.
pub(crate) type Outline = RecoveredLog;

/// All that is left of a group that was deleted: no later hard state is possible, and so no write. No group gets there otherwise, since its terms end at
/// [`Term::MAX`].
pub(crate) const DELETED: HardState = HardState { current_term: Term(u64::MAX), voted_for: None };

/// What a store knows of a group that was deleted.
pub(crate) fn deleted() -> Outline {
    Outline { hard_state: DELETED, ..Outline::default() }
}

pub(crate) fn is_deleted(outline: &Outline) -> bool {
    outline.hard_state == DELETED
}

/// Brings `outline` to where it is after `write`, or says which rule the write breaks (`outline` is then worthless). Returns whether
/// nothing of what was in the log before is in it any more because the write begins it anew.
pub(crate) fn advance(outline: &mut Outline, group: GroupId, write: &Write) -> Result<bool, StorageError> {
    let refuse = |reason| StorageError::BadWrite { group, seq: write.seq, reason };
    if is_deleted(outline) {
        return Err(refuse("the group was deleted"));
    }
    let replaced = match &write.log_start {
        Some(start) => !begin_after(outline, start).map_err(refuse)?,
        None => false,
    };
    if let Some(from) = write.truncate_from {
        truncate(outline, from).map_err(refuse)?;
    }
    if let Some(hard_state) = write.hard_state {
        check_hard_state(outline.hard_state, hard_state).map_err(refuse)?;
        outline.hard_state = hard_state;
    }
    for segment in write.entries.segments() {
        append(outline, segment).map_err(|misfit| refuse(misfit.rule()))?;
    }
    if outline.log_start.term > outline.hard_state.current_term {
        return Err(refuse("the term of the log's start is above the hard state's"));
    }
    Ok(replaced)
}

/// Lets the log begin after `start.last`. Whether the log holds that entry: if not, all of it is gone.
fn begin_after(outline: &mut Outline, start: &SnapshotMeta) -> Result<bool, &'static str> {
    let SnapshotMeta { last, membership } = start;
    if last.index < outline.log_start.index {
        return Err("it moves the start of the log back");
    }
    let held = outline.term_at(last.index) == Some(last.term);
    if !held && last.index == outline.log_start.index {
        return Err("it puts another entry where the log begins");
    }
    if held {
        let first = last.index.next();
        let run = outline.runs.partition_point(|run| run.index <= first);
        outline.runs.drain(..run.saturating_sub(1));
        match outline.runs.first_mut() {
            Some(_) if first > outline.last_index => outline.runs.clear(),
            Some(run) => run.index = run.index.max(first),
            None => {}
        }
        outline.changes.retain(|(index, _)| *index >= first);
    } else {
        outline.runs.clear();
        outline.changes.clear();
        outline.last_index = last.index;
    }
    outline.log_start = *last;
    outline.membership = Some(membership.clone());
    Ok(held)
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
    outline.changes.retain(|(index, _)| *index < from);
    while outline.runs.last().is_some_and(|run| run.index >= from) {
        outline.runs.pop();
    }
    Ok(())
}

/// Why entries cannot be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Misfit {
    /// A term above the hard state's.
    NewerTerm,
    /// They do not begin where the log ends.
    Gap,
    /// A term below that of the last entry.
    LowerTerm,
    /// An entry of kind `Membership` holds none.
    Membership(LogIndex, MembershipError),
}

impl Misfit {
    pub(crate) fn rule(self) -> &'static str {
        match self {
            Misfit::NewerTerm => "an entry's term is above the hard state's",
            Misfit::Gap => "its entries do not follow on the last one",
            Misfit::LowerTerm => "its entries have a lower term than the last one",
            Misfit::Membership(..) => "an entry of kind `Membership` holds none",
        }
    }
}

/// Extends the outline by `segment`. Also used by recovery.
pub(crate) fn append(outline: &mut Outline, segment: &Segment) -> Result<(), Misfit> {
    if segment.last_term() > outline.hard_state.current_term {
        return Err(Misfit::NewerTerm);
    }
    if segment.first_index() != outline.last_index.next() {
        return Err(Misfit::Gap);
    }
    let mut term = outline.last().term;
    if segment.first_term() < term {
        return Err(Misfit::LowerTerm);
    }
    // The common case, one term throughout, costs next to nothing for each entry.
    if segment.last_term() != term || outline.runs.is_empty() {
        for entry in segment.iter() {
            if entry.term > term || outline.runs.is_empty() {
                term = entry.term;
                outline.runs.push(LogId::new(term, entry.index));
            }
        }
    }
    for entry in segment.iter().filter(|entry| entry.kind == EntryKind::Membership) {
        let membership = Membership::decode(entry.payload).map_err(|error| Misfit::Membership(entry.index, error))?;
        outline.changes.push((entry.index, membership));
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

    fn starting(term: u64, last: (u64, u64)) -> Write {
        let meta = SnapshotMeta { last: id(last.0, last.1), membership: Membership::of_voters([NodeId(last.1)]) };
        Write { log_start: Some(meta), ..write(term, None, 1, &[]) }
    }

    fn membership(voter: u64) -> Vec<u8> {
        Membership::of_voters([NodeId(voter)]).encode().to_vec()
    }

    /// Terms 1, 1, 2, 3, 3; memberships at 2 and 4.
    fn five() -> Outline {
        let mut o = Outline::default();
        advance(&mut o, GroupId(1), &write(3, None, 1, &[1])).unwrap();
        for (index, term, payload) in [(2, 1, Some(12)), (3, 2, None), (4, 3, Some(14)), (5, 3, None)] {
            let kind = if payload.is_some() { EntryKind::Membership } else { EntryKind::Command };
            let payload = payload.map_or(b"x".to_vec(), membership);
            let mut next = write(3, None, index, &[]);
            next.entries = Segment::pack(LogIndex(index), Term(term), kind, &[payload]).unwrap().into();
            assert!(!advance(&mut o, GroupId(1), &next).unwrap());
        }
        o
    }

    fn changes(o: &Outline) -> Vec<u64> {
        o.changes.iter().map(|(index, _)| index.0).collect()
    }

    #[test]
    fn a_log_that_holds_the_new_start_loses_what_is_before_it() {
        type Case<'a> = ((u64, u64), &'a [LogId], &'a [u64]);
        let cases: [Case<'_>; 6] = [
            ((0, 0), &[id(1, 1), id(2, 3), id(3, 4)], &[2, 4]),
            ((1, 1), &[id(1, 2), id(2, 3), id(3, 4)], &[2, 4]),
            ((1, 2), &[id(2, 3), id(3, 4)], &[4]),
            ((2, 3), &[id(3, 4)], &[4]),
            ((3, 4), &[id(3, 5)], &[]),
            ((3, 5), &[], &[]),
        ];
        for (last, runs, left) in cases {
            let mut o = five();
            assert_eq!(changes(&o), [2, 4]);
            assert!(!advance(&mut o, GroupId(1), &starting(3, last)).unwrap(), "{last:?}");
            assert_eq!((o.runs.as_slice(), changes(&o).as_slice()), (runs, left), "{last:?}");
            assert_eq!((o.log_start, o.last_index), (id(last.0, last.1), LogIndex(5)));
            assert_eq!(o.membership, Some(Membership::of_voters([NodeId(last.1)])));
            advance(&mut o, GroupId(1), &write(3, None, 6, &[3])).unwrap();
            assert_eq!(o.last(), id(3, 6));
        }
    }

    #[test]
    fn a_log_that_does_not_hold_the_new_start_is_gone() {
        for last in [(3, 7), (2, 5), (3, 2), (3, 6)] {
            let mut o = five();
            assert!(advance(&mut o, GroupId(1), &starting(3, last)).unwrap(), "{last:?}");
            assert_eq!((o.log_start, o.last()), (id(last.0, last.1), id(last.0, last.1)));
            assert_eq!((o.runs.len(), o.changes.len()), (0, 0));
            // The start comes first, then what else is in the write.
            let mut o = five();
            let mut both = write(3, Some(last.1 + 1), last.1 + 1, &[3]);
            both.log_start = starting(3, last).log_start;
            advance(&mut o, GroupId(1), &both).unwrap();
            assert_eq!((o.runs, o.last_index.0), (vec![id(3, last.1 + 1)], last.1 + 1));
        }
    }

    #[test]
    fn the_start_keeps_its_rules_too() {
        let refuses = |bad: Write, why: &str| {
            let mut o = five();
            advance(&mut o, GroupId(1), &starting(3, (2, 3))).unwrap();
            let error = advance(&mut o, GroupId(1), &bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        };
        refuses(starting(3, (1, 2)), "start of the log back");
        refuses(starting(3, (3, 3)), "another entry where the log begins");
        refuses(starting(3, (4, 9)), "log's start is above");
        refuses(write(3, Some(3), 3, &[]), "truncates below the start");
        let mut broken = write(3, None, 6, &[]);
        broken.entries = Segment::pack(LogIndex(6), Term(3), EntryKind::Membership, &[b"none"]).unwrap().into();
        refuses(broken, "holds none");
        let mut o = five();
        advance(&mut o, GroupId(1), &write(3, Some(4), 4, &[])).unwrap();
        assert_eq!(changes(&o), [2], "truncated");
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
