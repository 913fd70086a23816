//! What a frame says, record by record. Numbers are big-endian.
//!
//! ```text
//! 1, a write:       group u64 | which of the following u8 | [hard state] | [start] | [truncate from u64] | number of pieces u32 | pieces
//! 2, a checkpoint:  group u64 | hard state | start | last index u64
//! 3, what moved:    group u64 | piece
//!
//! hard state:       current term u64 | voted u8 | voted for u64
//! start:            index u64 | term u64 | length u32 | membership (none if the length is zero)
//! piece:            first index u64 | length u32 | packed entries
//! ```

use std::ops::Range;

use raft_core::{GroupId, HardState, LogId, LogIndex, Membership, NodeId, Term, Write};

use crate::storage::RecoveredLog;

const WRITE: u8 = 1;
const CHECKPOINT: u8 = 2;
const MOVED: u8 = 3;

const HARD_STATE: u8 = 1;
const START: u8 = 2;
const TRUNCATE: u8 = 4;
/// The start is one that the log does not hold: all of it is gone.
const REPLACED: u8 = 8;

/// Entries, as they lie in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) first: LogIndex,
    pub(super) bytes: Range<usize>,
}

/// Where a log begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) last: LogId,
    pub(super) membership: Option<Membership>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Write {
        group: GroupId,
        hard_state: Option<HardState>,
        start: Option<Start>,
        /// Nothing of what was in the log before is in it any more.
        replaced: bool,
        truncate_from: Option<LogIndex>,
        pieces: Vec<Piece>,
    },
    /// How a group stands at the end of the frame. Every segment begins with one for each group, so that older ones are needed for their entries only.
    Checkpoint { group: GroupId, hard_state: HardState, start: Start, last: LogIndex },
    /// Entries that lay in an older segment lie here now.
    Moved { group: GroupId, piece: Piece },
}

/// Appends a write to a body, and its pieces to `pieces`; their ranges count from the beginning of `body`.
pub(super) fn put_write(body: &mut Vec<u8>, group: GroupId, write: &Write, replaced: bool, pieces: &mut Vec<Piece>) {
    let which = [
        (write.hard_state.is_some(), HARD_STATE),
        (write.log_start.is_some(), START),
        (write.truncate_from.is_some(), TRUNCATE),
        (replaced, REPLACED),
    ];
    body.push(WRITE);
    body.extend_from_slice(&group.0.to_be_bytes());
    body.push(which.iter().filter(|(given, _)| *given).map(|(_, flag)| flag).sum());
    if let Some(state) = write.hard_state {
        put_hard_state(body, state);
    }
    if let Some(start) = &write.log_start {
        put_start(body, start.last, Some(&start.membership));
    }
    if let Some(from) = write.truncate_from {
        body.extend_from_slice(&from.0.to_be_bytes());
    }
    let segments = write.entries.segments();
    body.extend_from_slice(&(segments.len() as u32).to_be_bytes());
    for segment in segments {
        pieces.push(put_piece(body, segment.first_index(), &segment.bytes()));
    }
}

/// Appends how a group stands.
pub(super) fn put_checkpoint(body: &mut Vec<u8>, group: GroupId, log: &RecoveredLog) {
    body.push(CHECKPOINT);
    body.extend_from_slice(&group.0.to_be_bytes());
    put_hard_state(body, log.hard_state);
    put_start(body, log.log_start, log.membership.as_ref());
    body.extend_from_slice(&log.last_index.0.to_be_bytes());
}

/// Appends entries that move.
pub(super) fn put_moved(body: &mut Vec<u8>, group: GroupId, first: LogIndex, entries: &[u8]) -> Piece {
    body.push(MOVED);
    body.extend_from_slice(&group.0.to_be_bytes());
    put_piece(body, first, entries)
}

fn put_hard_state(body: &mut Vec<u8>, state: HardState) {
    body.extend_from_slice(&state.current_term.0.to_be_bytes());
    body.push(u8::from(state.voted_for.is_some()));
    body.extend_from_slice(&state.voted_for.unwrap_or_default().0.to_be_bytes());
}

fn put_start(body: &mut Vec<u8>, last: LogId, membership: Option<&Membership>) {
    let membership = membership.map(Membership::encode).unwrap_or_default();
    body.extend_from_slice(&last.index.0.to_be_bytes());
    body.extend_from_slice(&last.term.0.to_be_bytes());
    body.extend_from_slice(&(membership.len() as u32).to_be_bytes());
    body.extend_from_slice(&membership);
}

fn put_piece(body: &mut Vec<u8>, first: LogIndex, entries: &[u8]) -> Piece {
    body.extend_from_slice(&first.0.to_be_bytes());
    body.extend_from_slice(&(entries.len() as u32).to_be_bytes());
    let begin = body.len();
    body.extend_from_slice(entries);
    Piece { first, bytes: begin..body.len() }
}

/// The records of a body, in order. `None` stands for bytes that are no record; nothing follows it.
pub(super) fn records(body: &[u8]) -> impl Iterator<Item = Option<Record>> {
    let mut fields = Fields { body, at: 0 };
    let mut broken = false;
    std::iter::from_fn(move || {
        if broken || fields.at == body.len() {
            return None;
        }
        let record = fields.record();
        broken = record.is_none();
        Some(record)
    })
}

struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

impl Fields<'_> {
    fn record(&mut self) -> Option<Record> {
        let (kind, group) = (self.u8()?, GroupId(self.u64()?));
        match kind {
            WRITE => self.write(group),
            CHECKPOINT => {
                let (hard_state, start) = (self.hard_state()?, self.start()?);
                Some(Record::Checkpoint { group, hard_state, start, last: LogIndex(self.u64()?) })
            }
            MOVED => Some(Record::Moved { group, piece: self.piece()? }),
            _ => None,
        }
    }

    fn write(&mut self, group: GroupId) -> Option<Record> {
        let which = self.u8()?;
        let hard_state = if which & HARD_STATE != 0 { Some(self.hard_state()?) } else { None };
        let start = if which & START != 0 { Some(self.start()?) } else { None };
        let truncate_from = if which & TRUNCATE != 0 { Some(LogIndex(self.u64()?)) } else { None };
        let number = self.u32()?;
        let pieces = (0..number).map(|_| self.piece()).collect::<Option<_>>()?;
        Some(Record::Write { group, hard_state, start, replaced: which & REPLACED != 0, truncate_from, pieces })
    }

    fn hard_state(&mut self) -> Option<HardState> {
        let current_term = Term(self.u64()?);
        let voted_for = match (self.u8()?, self.u64()?) {
            (0, 0) => None,
            (1, id) => Some(NodeId(id)),
            _ => return None,
        };
        Some(HardState { current_term, voted_for })
    }

    fn start(&mut self) -> Option<Start> {
        let index = LogIndex(self.u64()?);
        let last = LogId::new(Term(self.u64()?), index);
        let membership = self.bytes()?;
        let membership =
            if membership.is_empty() { None } else { Some(Membership::decode(&self.body[membership]).ok()?) };
        (index <= LogIndex::MAX).then_some(Start { last, membership })
    }

    fn piece(&mut self) -> Option<Piece> {
        let first = LogIndex(self.u64()?);
        let bytes = self.bytes()?;
        (first > LogIndex::ZERO && first <= LogIndex::MAX && !bytes.is_empty()).then_some(Piece { first, bytes })
    }

    fn bytes(&mut self) -> Option<Range<usize>> {
        let length = self.u32()? as usize;
        let end = self.at.checked_add(length).filter(|end| *end <= self.body.len())?;
        Some(std::mem::replace(&mut self.at, end)..end)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = *self.body.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{Entries, EntryKind, Segment, SnapshotMeta, WriteSeq};

    use super::*;

    const GROUP: GroupId = GroupId(9);

    fn full() -> Write {
        let piece = |first, payload: &str| {
            Segment::pack(LogIndex(first), Term(3), EntryKind::Command, &[payload]).expect("one entry")
        };
        let mut entries = Entries::from(piece(8, "eight"));
        entries.push(piece(9, "nine")).expect("they follow");
        let membership = Membership::of_voters([1, 2, 3].map(NodeId));
        Write {
            seq: WriteSeq(1),
            hard_state: Some(HardState { current_term: Term(3), voted_for: Some(NodeId(2)) }),
            log_start: Some(SnapshotMeta { last: LogId::new(Term(2), LogIndex(7)), membership }),
            truncate_from: Some(LogIndex(8)),
            entries,
        }
    }

    #[test]
    fn writes_come_back_with_whatever_they_have() {
        for which in 0..16u8 {
            let mut write = full();
            write.hard_state = write.hard_state.filter(|_| which & 1 != 0);
            write.log_start = write.log_start.filter(|_| which & 2 != 0);
            write.truncate_from = write.truncate_from.filter(|_| which & 4 != 0);
            if which & 8 == 0 {
                write.entries = Entries::new();
            }
            let (mut body, mut put) = (b"before".to_vec(), Vec::new());
            put_write(&mut body, GROUP, &write, which & 2 != 0, &mut put);
            assert_eq!(put.len(), write.entries.segments().len());
            for (piece, segment) in put.iter().zip(write.entries.segments()) {
                assert_eq!((piece.first, &body[piece.bytes.clone()]), (segment.first_index(), &segment.bytes()[..]));
            }
            let found: Vec<_> = records(&body[6..]).collect();
            let [Some(Record::Write { group, hard_state, start, replaced, truncate_from, pieces })] = &found[..] else {
                panic!("{found:?}")
            };
            assert_eq!((*group, *hard_state, *truncate_from), (GROUP, write.hard_state, write.truncate_from));
            assert_eq!(*replaced, which & 2 != 0);
            assert_eq!(start.as_ref().map(|start| start.last), write.log_start.as_ref().map(|start| start.last));
            assert_eq!(pieces.len(), put.len());
        }
    }

    #[test]
    fn every_record_comes_back_and_no_part_of_one_does() {
        let log = RecoveredLog { last_index: LogIndex(12), ..RecoveredLog::default() };
        let mut body = Vec::new();
        put_checkpoint(&mut body, GROUP, &log);
        let moved = put_moved(&mut body, GROUP, LogIndex(4), b"entries");
        put_write(&mut body, GROUP, &full(), false, &mut Vec::new());
        let found: Vec<_> = records(&body).map(Option::unwrap).collect();
        let start = Start { last: LogId::ZERO, membership: None };
        let checkpoint =
            Record::Checkpoint { group: GROUP, hard_state: HardState::default(), start, last: LogIndex(12) };
        assert_eq!(found[0], checkpoint);
        assert_eq!(found[1], Record::Moved { group: GROUP, piece: moved });
        assert_eq!(found.len(), 3);
        for cut in 0..body.len() {
            let found: Vec<_> = records(&body[..cut]).collect();
            let whole = found.iter().flatten().count();
            assert!(whole < 3 && found.len() <= whole + 1, "{cut}: {found:?}");
        }
        assert_eq!(records(&[77; 40]).collect::<Vec<_>>(), [None]);
    }
}
