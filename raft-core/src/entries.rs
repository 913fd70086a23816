//! Log entries in their packed form: encoded once, then shared by the cache, the disk, the network and the state machine.
//!
//! A leader encodes the payloads of one batch of proposals into one contiguous [`Segment`]: the only copy that is made of a
//! payload. From there on the same bytes are the record that is written to disk, the tail of every
//! AppendEntries frame, the record that the follower writes, and what the state machine reads. Cloning and slicing a
//! segment costs one reference count, however many entries it holds.
//!
//! # Layout of an entry
//!
//! ```text
//! crc32c u32 LE | payload length u32 LE | term u64 LE | kind u8 | payload
//! ```
//!
//! The checksum covers the entry's index (u64 LE, not stored: it follows from the position) and everything after
//! the checksum itself. So an entry that was moved to another index, or damaged anywhere between the leader's memory and
//! this one, is noticed.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::types::{LogId, LogIndex, Term};

/// Bytes that an entry takes in addition to its payload.
pub const ENTRY_HEADER: usize = 17;

/// What an entry is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A command for the state machine.
    Command = 0,
    /// Nothing: appended by a new leader so that it has an entry of its own term to commit (paper, section 8).
    NoOp = 1,
    /// A cluster membership.
    Membership = 2,
}

impl TryFrom<u8> for EntryKind {
    type Error = u8;
    fn try_from(byte: u8) -> Result<Self, u8> {
        match byte {
            0 => Ok(EntryKind::Command),
            1 => Ok(EntryKind::NoOp),
            2 => Ok(EntryKind::Membership),
            other => Err(other),
        }
    }
}

/// One entry, borrowed from its segment.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct EntryRef<'a> {
    /// Its position.
    pub index: LogIndex,
    /// The term in which it was proposed.
    pub term: Term,
    /// What it is for.
    pub kind: EntryKind,
    /// The command, exactly as proposed; empty for a no-op.
    pub payload: &'a [u8],
}

impl EntryRef<'_> {
    /// Term and index.
    pub fn id(&self) -> LogId {
        LogId::new(self.term, self.index)
    }
}

impl fmt::Debug for EntryRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}[{}]", self.id(), self.kind, self.payload.len())
    }
}

/// Why bytes are not a segment. The bytes come from a disk or a peer: refuse the record or the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes end within an entry.
    #[error("entry {0} is cut short")]
    Truncated(LogIndex),
    /// The checksum does not fit the content.
    #[error("entry {0} fails its checksum")]
    Checksum(LogIndex),
    /// The kind is none that this version knows.
    #[error("entry {index} is of unknown kind {kind}")]
    Kind {
        /// Where.
        index: LogIndex,
        /// The byte that was found.
        kind: u8,
    },
    /// Terms must never decrease along the log.
    #[error("entry {0} has a term below its predecessor's, or beyond all belief")]
    Term(LogIndex),
    /// More than 4 GiB, an index beyond [`LogIndex::MAX`], or the first index zero.
    #[error("segment at {0} is out of range")]
    Range(LogIndex),
}

/// One or more consecutive entries in packed form. Cheap to clone and to slice.
///
/// Invariants: it holds at least one entry; terms never decrease; the boundaries `lo..=hi` are those of its entries,
/// and every entry in between has been validated (or was packed here).
#[derive(Clone)]
pub struct Segment {
    packed: Arc<Packed>,
    first: LogIndex,
    lo: u32,
    hi: u32,
}

/// Entries as they were packed or received, shared by all segments that were cut out of them: a segment is moved much more often than it is looked into, so
/// it is small, and there is one count of references.
struct Packed {
    buf: Bytes,
    /// How many entries there are.
    count: u32,
    /// Where each entry but the first begins in `buf`: for a lone one there is no list.
    inner: Vec<u32>,
    /// The term of all of them, if they have the same.
    term: Option<Term>,
    /// Whether one of them is a membership. Both are asked with every append, and found out once.
    has_memberships: bool,
}

impl Packed {
    /// Where the entry in this slot begins, or the one before it ends.
    #[inline]
    fn offset(&self, slot: u32) -> usize {
        if slot == 0 {
            0
        } else if slot >= self.count {
            self.buf.len()
        } else {
            self.inner[slot as usize - 1] as usize
        }
    }
}

impl Segment {
    /// Packs `payloads` as consecutive entries of `term` and `kind` that begin at `first`. `None` when there are none, or
    /// when they make more than 4 GiB together.
    pub fn pack<P: AsRef<[u8]>>(first: LogIndex, term: Term, kind: EntryKind, payloads: &[P]) -> Option<Segment> {
        let total: usize = payloads.iter().map(|p| ENTRY_HEADER + p.as_ref().len()).sum();
        if payloads.is_empty() || u32::try_from(total).is_err() {
            return None;
        }
        let mut buf = Vec::with_capacity(total);
        let mut inner = Vec::with_capacity(payloads.len() - 1);
        for (i, payload) in payloads.iter().enumerate() {
            let payload = payload.as_ref();
            let mut head = [0; ENTRY_HEADER];
            head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            head[8..16].copy_from_slice(&term.0.to_le_bytes());
            head[16] = kind as u8;
            let crc = checksum(first + i as u64, &head, payload);
            head[..4].copy_from_slice(&crc.to_le_bytes());
            if i > 0 {
                inner.push(buf.len() as u32);
            }
            buf.extend_from_slice(&head);
            buf.extend_from_slice(payload);
        }
        let (count, has_memberships) = (payloads.len() as u32, kind == EntryKind::Membership);
        Some(Segment::whole(first, Packed { buf: buf.into(), count, inner, term: Some(term), has_memberships }))
    }

    fn whole(first: LogIndex, packed: Packed) -> Segment {
        Segment { first, lo: 0, hi: packed.count, packed: Arc::new(packed) }
    }

    /// Reads packed entries, the first of which has index `first`, and verifies every one of them: shape, kind,
    /// checksum, and that terms do not decrease. `Ok(None)` when `buf` is empty.
    ///
    /// # Errors
    /// The bytes are not what was packed: refuse the record or the frame that they came in.
    pub fn unpack(first: LogIndex, buf: Bytes) -> Result<Option<Segment>, EntryError> {
        if buf.is_empty() {
            return Ok(None);
        }
        if u32::try_from(buf.len()).is_err() || first == LogIndex::ZERO {
            return Err(EntryError::Range(first));
        }
        let (mut inner, mut count, mut has_memberships) = (Vec::new(), 0, false);
        let (mut at, mut index, mut term, mut first_term) = (0usize, first, Term(0), Term(0));
        while at < buf.len() {
            if index > LogIndex::MAX {
                return Err(EntryError::Range(index));
            }
            let rest = &buf[at..];
            let Some((head, body)) = rest.split_at_checked(ENTRY_HEADER) else {
                return Err(EntryError::Truncated(index));
            };
            let len = le_u32(&head[4..8]) as usize;
            let Some(payload) = body.get(..len) else {
                return Err(EntryError::Truncated(index));
            };
            if le_u32(&head[..4]) != checksum(index, head, payload) {
                return Err(EntryError::Checksum(index));
            }
            let kind = EntryKind::try_from(head[16]).map_err(|kind| EntryError::Kind { index, kind })?;
            let this = Term(le_u64(&head[8..16]));
            if this < term || this > Term::MAX {
                return Err(EntryError::Term(index));
            }
            term = this;
            if count == 0 {
                first_term = term;
            } else {
                inner.push(at as u32);
            }
            has_memberships |= kind == EntryKind::Membership;
            at += ENTRY_HEADER + len;
            count += 1;
            index = index.next();
        }
        let term = (first_term == term).then_some(term);
        Ok(Some(Segment::whole(first, Packed { buf, count, inner, term, has_memberships })))
    }

    /// Index of the first entry.
    #[inline]
    pub fn first_index(&self) -> LogIndex {
        self.first
    }

    /// Index of the last entry.
    #[inline]
    pub fn last_index(&self) -> LogIndex {
        self.first + (u64::from(self.hi - self.lo) - 1)
    }

    /// Number of entries; never zero.
    #[expect(clippy::len_without_is_empty, reason = "a segment is never empty")]
    pub fn len(&self) -> usize {
        (self.hi - self.lo) as usize
    }

    /// Size in bytes, headers included.
    #[inline]
    pub fn byte_len(&self) -> usize {
        let whole = self.lo == 0 && self.hi == self.packed.count;
        if whole { self.packed.buf.len() } else { self.offset(self.hi) - self.offset(self.lo) }
    }

    /// The packed entries, to be written or sent as they are. No copy is made.
    pub fn bytes(&self) -> Bytes {
        self.packed.buf.slice(self.offset(self.lo)..self.offset(self.hi))
    }

    /// Term of the first entry.
    pub fn first_term(&self) -> Term {
        self.term_of(self.lo)
    }

    /// Term of the last entry.
    pub fn last_term(&self) -> Term {
        self.term_of(self.hi - 1)
    }

    /// Term of the entry at `index`, if it is in here.
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        (index >= self.first && index <= self.last_index()).then(|| self.term_of(self.lo + (index - self.first) as u32))
    }

    /// The entry at `index`, if it is in here.
    pub fn get(&self, index: LogIndex) -> Option<EntryRef<'_>> {
        (index >= self.first && index <= self.last_index()).then(|| self.entry(self.lo + (index - self.first) as u32))
    }

    /// The payload of the entry at `index` as owned bytes that share this segment's buffer.
    pub fn payload(&self, index: LogIndex) -> Option<Bytes> {
        self.get(index).map(|entry| self.packed.buf.slice_ref(entry.payload))
    }

    /// The entries of one kind, in order. Looks at one byte of each of the others.
    pub(crate) fn of_kind(&self, kind: EntryKind) -> impl Iterator<Item = EntryRef<'_>> {
        let some = kind != EntryKind::Membership || self.may_have_memberships();
        let slots = self.lo..if some { self.hi } else { self.lo };
        slots.filter(move |slot| self.packed.buf[self.offset(*slot) + 16] == kind as u8).map(|slot| self.entry(slot))
    }

    /// The entries in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = EntryRef<'_>> + ExactSizeIterator {
        (self.lo as usize..self.hi as usize).map(|slot| self.entry(slot as u32))
    }

    /// The part from `from` to `to`, both included, as far as it is in here.
    pub fn slice(&self, from: LogIndex, to: LogIndex) -> Option<Segment> {
        let from = from.max(self.first);
        let to = to.min(self.last_index());
        (from <= to).then(|| Segment {
            packed: self.packed.clone(),
            first: from,
            lo: self.lo + (from - self.first) as u32,
            hi: self.lo + (to - self.first) as u32 + 1,
        })
    }

    /// The longest prefix of at most `max_bytes`, but at least one entry: an entry that is larger than the limit travels
    /// alone, it is never skipped.
    #[must_use]
    pub fn prefix(&self, max_bytes: usize) -> Segment {
        let base = self.offset(self.lo);
        // The second entry and those after it: where each ends is where the next begins.
        let ends = &self.packed.inner[self.lo as usize..self.hi as usize - 1];
        let mut fit = ends.partition_point(|&end| end as usize - base <= max_bytes);
        fit += usize::from(fit == ends.len() && self.byte_len() <= max_bytes);
        Segment { hi: self.lo + fit.max(1) as u32, ..self.clone() }
    }

    #[inline]
    fn offset(&self, slot: u32) -> usize {
        self.packed.offset(slot)
    }

    #[inline]
    fn term_of(&self, slot: u32) -> Term {
        self.packed.term.unwrap_or_else(|| {
            let at = self.offset(slot);
            Term(le_u64(&self.packed.buf[at + 8..at + 16]))
        })
    }

    /// The term of all entries, if they have the same.
    #[inline]
    pub(crate) fn one_term(&self) -> Option<Term> {
        let first = self.first_term();
        (self.packed.term.is_some() || first == self.last_term()).then_some(first)
    }

    /// Whether there may be entries that are memberships.
    pub(crate) fn may_have_memberships(&self) -> bool {
        self.packed.has_memberships
    }

    fn entry(&self, slot: u32) -> EntryRef<'_> {
        let (at, end) = (self.offset(slot), self.offset(slot + 1));
        let (head, payload) = self.packed.buf[at..end].split_at(ENTRY_HEADER);
        EntryRef {
            index: self.first + u64::from(slot - self.lo),
            term: Term(le_u64(&head[8..16])),
            // Validated when the segment was made.
            kind: EntryKind::try_from(head[16]).unwrap_or(EntryKind::NoOp),
            payload,
        }
    }
}

impl PartialEq for Segment {
    fn eq(&self, other: &Self) -> bool {
        self.first == other.first && self.bytes() == other.bytes()
    }
}
impl Eq for Segment {}

impl Hash for Segment {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.first.hash(state);
        self.bytes().hash(state);
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}@{}..{}", self.first, self.last_index(), self.first_term(), self.last_term())
    }
}

/// Consecutive entries: a rope of segments, possibly empty. Cheap to clone.
///
/// Invariants: each segment begins right after the one before it, and terms never decrease across segments.
#[derive(Clone, Default)]
pub struct Entries {
    /// Nearly always one: what was proposed together travels together.
    segments: SmallVec<[Segment; 1]>,
}

impl Entries {
    /// No entries.
    pub const fn new() -> Self {
        Entries { segments: SmallVec::new_const() }
    }

    /// Appends a segment.
    ///
    /// # Errors
    /// Returns the segment unless it begins right after the present end, with no lower term.
    pub fn push(&mut self, segment: Segment) -> Result<(), Segment> {
        match self.segments.last() {
            Some(last)
                if last.last_index().next() != segment.first_index() || segment.first_term() < last.last_term() =>
            {
                Err(segment)
            }
            _ => {
                self.segments.push(segment);
                Ok(())
            }
        }
    }

    /// The segments, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The segment, if there is just one.
    pub(crate) fn only(&self) -> Option<&Segment> {
        if let [only] = &self.segments[..] { Some(only) } else { None }
    }

    /// Takes the last segment out.
    pub(crate) fn pop(&mut self) -> Option<Segment> {
        self.segments.pop()
    }

    /// The segments, in order, to keep.
    pub fn into_segments(self) -> impl Iterator<Item = Segment> {
        self.segments.into_iter()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// Size in bytes, headers included.
    #[inline]
    pub fn byte_len(&self) -> usize {
        match &self.segments[..] {
            [only] => only.byte_len(),
            all => all.iter().map(Segment::byte_len).sum(),
        }
    }

    /// Index of the first entry.
    pub fn first_index(&self) -> Option<LogIndex> {
        self.segments.first().map(Segment::first_index)
    }

    /// Index of the last entry.
    pub fn last_index(&self) -> Option<LogIndex> {
        self.segments.last().map(Segment::last_index)
    }

    /// Term of the last entry.
    pub fn last_term(&self) -> Option<Term> {
        self.segments.last().map(Segment::last_term)
    }

    /// The entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.segments.iter().flat_map(Segment::iter)
    }

    /// Drops every entry before `index`.
    pub fn skip_to(&mut self, index: LogIndex) {
        if self.first_index().is_none_or(|first| first >= index) {
            return;
        }
        self.segments.retain_mut(|segment| match segment.slice(index, LogIndex::MAX) {
            Some(rest) => {
                *segment = rest;
                true
            }
            None => false,
        });
    }
}

impl From<Segment> for Entries {
    fn from(segment: Segment) -> Self {
        Entries { segments: SmallVec::from_buf([segment]) }
    }
}

/// Content counts, not how it is cut into segments.
impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.byte_len() == other.byte_len() && self.iter().eq(other.iter())
    }
}
impl Eq for Entries {}

impl Hash for Entries {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.byte_len().hash(state);
        self.iter().for_each(|entry| entry.hash(state));
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.segments).finish()
    }
}

/// Of an entry with this head, whose first four bytes are the place of the checksum itself.
fn checksum(index: LogIndex, head: &[u8], payload: &[u8]) -> u32 {
    // In one piece: beginning a piece takes longer than those few bytes do.
    let mut front = [0; 8 + ENTRY_HEADER - 4];
    front[..8].copy_from_slice(&index.0.to_le_bytes());
    front[8..].copy_from_slice(&head[4..ENTRY_HEADER]);
    crc32c::crc32c_append(crc32c::crc32c(&front), payload)
}

/// The first four bytes; the caller has checked the length.
fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// The first eight bytes; the caller has checked the length.
fn le_u64(bytes: &[u8]) -> u64 {
    u64::from(le_u32(bytes)) | u64::from(le_u32(&bytes[4..])) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment() -> Segment {
        Segment::pack(LogIndex(5), Term(3), EntryKind::Command, &[&b"a"[..], b"", b"ccc"]).unwrap()
    }

    #[test]
    fn packs_and_unpacks() {
        let s = segment();
        let again = Segment::unpack(LogIndex(5), s.bytes()).unwrap().unwrap();
        assert_eq!(s, again);
        assert_eq!(s.last_index(), LogIndex(7));
        assert_eq!(s.byte_len(), 3 * ENTRY_HEADER + 4);
        let payloads: Vec<_> = again.iter().map(|e| e.payload.to_vec()).collect();
        assert_eq!(payloads, [b"a".to_vec(), b"".to_vec(), b"ccc".to_vec()]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = segment().bytes();
        for bit in 0..good.len() * 8 {
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Segment::unpack(LogIndex(5), bad.into()).is_err(), "bit {bit}");
        }
        let whole = [0, ENTRY_HEADER + 1, 2 * ENTRY_HEADER + 1, good.len()];
        for cut in (0..good.len()).filter(|cut| !whole.contains(cut)) {
            assert!(Segment::unpack(LogIndex(5), good.slice(..cut)).is_err(), "cut {cut}");
        }
        assert_eq!(Segment::unpack(LogIndex(6), good), Err(EntryError::Checksum(LogIndex(6))));
    }

    #[test]
    fn slices_keep_indices() {
        let s = segment().slice(LogIndex(6), LogIndex(9)).unwrap();
        assert_eq!((s.first_index(), s.last_index(), s.len()), (LogIndex(6), LogIndex(7), 2));
        assert_eq!(s.get(LogIndex(7)).unwrap().payload, b"ccc");
        assert_eq!(s.get(LogIndex(5)), None);
        assert_eq!(Segment::unpack(LogIndex(6), s.bytes()).unwrap().unwrap(), s);
        assert_eq!(segment().slice(LogIndex(8), LogIndex(9)), None);
    }

    #[test]
    fn an_oversized_entry_travels_alone() {
        assert_eq!(segment().prefix(1).len(), 1);
        assert_eq!(segment().prefix(2 * ENTRY_HEADER + 1).len(), 2);
        assert_eq!(segment().prefix(usize::MAX).len(), 3);
    }

    #[test]
    fn a_rope_refuses_gaps_and_falling_terms() {
        let mut rope = Entries::from(segment());
        let gap = Segment::pack(LogIndex(9), Term(3), EntryKind::NoOp, &[b""]).unwrap();
        assert!(rope.push(gap).is_err());
        let old = Segment::pack(LogIndex(8), Term(2), EntryKind::NoOp, &[b""]).unwrap();
        assert!(rope.push(old).is_err());
        let fits = Segment::pack(LogIndex(8), Term(4), EntryKind::NoOp, &[b""]).unwrap();
        assert!(rope.push(fits).is_ok());
        assert_eq!(rope.len(), 4);
        rope.skip_to(LogIndex(7));
        assert_eq!((rope.first_index(), rope.len()), (Some(LogIndex(7)), 2));
    }
}
