//! Packed entries, as they come from a disk or a peer.

use bytes::Bytes;

use super::Choices;
use crate::entries::{ENTRY_HEADER, Entries, EntryKind, Segment};
use crate::types::{LogIndex, Term};

/// Replaces the checksum of each entry in `packed` by the right one, as far as their shape can be followed: a fuzzer does not guess
/// checksums, and what is behind them must be reached too. The first entry has index `first`.
pub fn with_checksums(first: LogIndex, packed: &[u8]) -> Vec<u8> {
    let mut bytes = packed.to_vec();
    let (mut at, mut index) = (0usize, first);
    while let Some(entry) = bytes.get_mut(at..).filter(|rest| rest.len() >= ENTRY_HEADER) {
        let length = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]) as usize;
        let Some(entry) = entry.get_mut(..ENTRY_HEADER.saturating_add(length)) else { break };
        let crc = crc32c::crc32c_append(crc32c::crc32c(&index.0.to_le_bytes()), &entry[4..]);
        entry[..4].copy_from_slice(&crc.to_le_bytes());
        at += entry.len();
        index = index.next();
    }
    bytes
}

/// Reads packed entries; what is accepted must be whole and in order, and must be made of the same bytes however it is cut.
pub fn packed(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let first = LogIndex(choices.number(1));
    let (from, to) = (first + choices.between(0, 5), first + choices.between(0, 9));
    let limit = choices.between(0, 255) as usize;
    let mended = !choices.chance(1, 8);
    let rest = choices.rest();
    let bytes = if mended { Bytes::from(with_checksums(first, rest)) } else { Bytes::copy_from_slice(rest) };
    let Ok(Some(segment)) = Segment::unpack(first, bytes.clone()) else { return false };

    assert_eq!(segment.bytes(), bytes, "nothing is dropped, nothing is added");
    assert_eq!((segment.first_index(), segment.byte_len()), (first, bytes.len()));
    assert!(segment.first_index() > LogIndex::ZERO && segment.last_index() <= LogIndex::MAX);
    check_entries(&segment);
    check_cuts(&segment, from, to, limit);
    true
}

fn check_entries(segment: &Segment) {
    let (mut count, mut index, mut term) = (0, segment.first_index(), Term(0));
    for entry in segment.iter() {
        assert_eq!(entry.index, index);
        assert!(entry.term >= term && entry.term <= Term::MAX, "{segment:?}");
        assert_eq!(segment.term_at(index), Some(entry.term));
        assert_eq!(segment.get(index), Some(entry));
        assert_eq!(segment.payload(index).as_deref(), Some(entry.payload));
        // What is packed anew has the same bytes: there is one way to write an entry.
        let again = Segment::pack(index, entry.term, entry.kind, &[entry.payload]).expect("an entry is below 4 GiB");
        assert_eq!(Some(again), segment.slice(index, index));
        (count, index, term) = (count + 1, index.next(), entry.term);
    }
    assert_eq!((count, index.prev(), term), (segment.len(), segment.last_index(), segment.last_term()));
}

fn check_cuts(segment: &Segment, from: LogIndex, to: LogIndex, limit: usize) {
    match segment.slice(from, to) {
        Some(part) => {
            assert!(part.first_index() >= from && part.last_index() <= to.min(segment.last_index()));
            assert_eq!(Segment::unpack(part.first_index(), part.bytes()), Ok(Some(part)));
        }
        None => assert!(from > to || from > segment.last_index()),
    }
    let prefix = segment.prefix(limit);
    assert!(prefix.byte_len() <= limit || prefix.len() == 1);
    let mut rope = Entries::from(prefix.clone());
    if let Some(suffix) = segment.slice(prefix.last_index().next(), LogIndex::MAX) {
        assert!(
            prefix.byte_len() + ENTRY_HEADER + suffix.get(suffix.first_index()).map_or(0, |e| e.payload.len()) > limit
        );
        rope.push(suffix).expect("it follows");
    }
    assert_eq!(rope, Entries::from(segment.clone()), "cut and put together");
    rope.skip_to(from);
    assert!(rope.first_index().is_none_or(|index| index >= from));
    let after = Segment::pack(segment.last_index().next(), Term::MAX, EntryKind::NoOp, &[b""]).expect("one entry");
    if !rope.is_empty() {
        assert!(rope.push(after).is_ok());
        assert!(rope.push(segment.clone()).is_err(), "it does not follow on itself");
    }
}
