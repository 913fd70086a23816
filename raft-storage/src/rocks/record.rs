//! The records of the log: their keys, their header, their checksums.
//!
//! One record holds a contiguous piece of one group's log, usually what one batch appended. See the
//! [crate documentation](crate) for the layout.

use bytes::Bytes;
use raft_core::{GroupId, LogIndex, Segment};

use crate::error::{RecordDamage, StorageError};

/// Format of the records that this version writes.
pub(crate) const FORMAT: u8 = 1;
/// Bytes before the packed entries.
pub(crate) const HEADER: usize = 13;
/// Bytes of a record's key.
pub(crate) const KEY: usize = 16;

/// Stands for "the record before the first one".
pub(crate) const NO_LINK: u32 = 0;

pub(crate) fn key(group: GroupId, first: LogIndex) -> [u8; KEY] {
    let mut key = [0; KEY];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8..].copy_from_slice(&first.0.to_be_bytes());
    key
}

pub(crate) fn parse_key(key: &[u8]) -> Result<(GroupId, LogIndex), StorageError> {
    match key.split_first_chunk::<8>() {
        Some((group, first)) if first.len() == 8 => {
            Ok((GroupId(u64::from_be_bytes(*group)), LogIndex(first.iter().fold(0, |n, &b| n << 8 | u64::from(b)))))
        }
        _ => Err(StorageError::Damaged {
            place: format!("log key {key:02x?}"),
            what: format!("{} bytes long", key.len()),
        }),
    }
}

/// Replaces the content of `buf` by the record of `segments`, and returns its checksum. They are consecutive, and not none.
pub(crate) fn encode(buf: &mut Vec<u8>, group: GroupId, first: LogIndex, prev: u32, segments: &[Segment]) -> u32 {
    let count = segments.iter().map(|s| s.len() as u32).sum::<u32>();
    buf.clear();
    buf.reserve(HEADER + segments.iter().map(Segment::byte_len).sum::<usize>());
    buf.push(FORMAT);
    buf.extend_from_slice(&count.to_be_bytes());
    buf.extend_from_slice(&prev.to_be_bytes());
    buf.extend_from_slice(&[0; 4]);
    for segment in segments {
        buf.extend_from_slice(&segment.bytes());
    }
    let link = checksum(group, first, &buf[..HEADER - 4], &buf[HEADER..]);
    buf[HEADER - 4..HEADER].copy_from_slice(&link.to_be_bytes());
    link
}

fn checksum(group: GroupId, first: LogIndex, head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&key(group, first)), head), body)
}

/// A record whose checksum has been verified; its entries have not.
#[derive(Clone, Copy)]
pub(crate) struct Record<'a> {
    group: GroupId,
    first: LogIndex,
    count: u32,
    /// Checksum of the record before it.
    pub(crate) prev: u32,
    /// Its own checksum.
    pub(crate) link: u32,
    /// The packed entries.
    pub(crate) body: &'a [u8],
}

impl<'a> Record<'a> {
    pub(crate) fn parse(key: &[u8], value: &'a [u8]) -> Result<Self, StorageError> {
        let (group, first) = parse_key(key)?;
        let damaged = |what| StorageError::Record { group, first, what };
        let Some((head, body)) = value.split_first_chunk::<HEADER>() else {
            return Err(damaged(RecordDamage::Short(value.len())));
        };
        let be_u32 = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (count, prev, link) = (be_u32(1), be_u32(5), be_u32(9));
        // Every format has the checksum here, so that damage is not mistaken for a newer format.
        let found = checksum(group, first, &head[..HEADER - 4], body);
        if found != link {
            return Err(damaged(RecordDamage::Checksum { expected: link, found }));
        }
        if head[0] != FORMAT {
            return Err(StorageError::NewerFormat {
                place: format!("group {group}: the record at index {first}"),
                found: u32::from(head[0]),
                supported: u32::from(FORMAT),
            });
        }
        if body.is_empty() || count == 0 {
            return Err(damaged(RecordDamage::Count { expected: count, found: 0 }));
        }
        Ok(Record { group, first, count, prev, link, body })
    }

    pub(crate) fn first(&self) -> LogIndex {
        self.first
    }

    pub(crate) fn last(&self) -> LogIndex {
        self.first + (u64::from(self.count) - 1)
    }

    /// The entries, each of them verified. Copies them once, out of the engine's memory.
    pub(crate) fn segment(&self) -> Result<Segment, StorageError> {
        let damaged = |what| StorageError::Record { group: self.group, first: self.first, what };
        let segment = Segment::unpack(self.first, Bytes::copy_from_slice(self.body))
            .map_err(|error| damaged(RecordDamage::Entry(error)))?;
        match segment {
            Some(segment) if segment.len() == self.count as usize => Ok(segment),
            other => Err(damaged(RecordDamage::Count { expected: self.count, found: other.map_or(0, |s| s.len()) })),
        }
    }

    /// Checks that this record follows on one with checksum `link` that ends right before `next`.
    pub(crate) fn follows(&self, next: LogIndex, link: u32) -> Result<(), StorageError> {
        if self.first != next {
            return Err(StorageError::Gap { group: self.group, expected: next, found: self.first });
        }
        if self.prev != link {
            let what = RecordDamage::Chain { expected: self.prev, found: link };
            return Err(StorageError::Record { group: self.group, first: self.first, what });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{EntryKind, Term};

    use super::*;

    fn record() -> (Vec<u8>, u32, Segment) {
        let segment = Segment::pack(LogIndex(5), Term(2), EntryKind::Command, &[&b"ab"[..], b"", b"c"]).unwrap();
        let mut buf = vec![1, 2, 3];
        let halves = [segment.prefix(19), segment.slice(LogIndex(6), LogIndex(7)).unwrap()];
        let link = encode(&mut buf, GroupId(3), LogIndex(5), 77, &halves);
        (buf, link, segment)
    }

    #[test]
    fn what_was_encoded_comes_back() {
        let (buf, link, segment) = record();
        assert_eq!(buf.len(), HEADER + segment.byte_len());
        let key = key(GroupId(3), LogIndex(5));
        let record = Record::parse(&key, &buf).unwrap();
        assert_eq!((record.prev, record.link, record.first(), record.last()), (77, link, LogIndex(5), LogIndex(7)));
        assert_eq!(record.segment().unwrap(), segment);
        assert!(record.follows(LogIndex(5), 77).is_ok());
        assert!(matches!(record.follows(LogIndex(4), 77), Err(StorageError::Gap { .. })));
        assert!(matches!(
            record.follows(LogIndex(5), 78),
            Err(StorageError::Record { what: RecordDamage::Chain { .. }, .. })
        ));
    }

    #[test]
    fn the_layout_stays_what_it_is() {
        // The bytes on disk of version 1: a change here is a change of format.
        let (buf, link, segment) = record();
        assert_eq!(&buf[..9], &[1, 0, 0, 0, 3, 0, 0, 0, 77]);
        assert_eq!(&buf[9..13], &link.to_be_bytes());
        assert_eq!(&buf[13..], &segment.bytes()[..]);
        assert_eq!(key(GroupId(3), LogIndex(5)), [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 5]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (good, _, _) = record();
        let at = key(GroupId(3), LogIndex(5));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Record::parse(&at, &bad), Err(StorageError::Record { .. })), "bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(Record::parse(&at, &good[..cut]).is_err(), "cut {cut}");
        }
        assert!(Record::parse(&key(GroupId(3), LogIndex(6)), &good).is_err());
        assert!(Record::parse(&key(GroupId(4), LogIndex(5)), &good).is_err());
        assert!(Record::parse(&at[..15], &good).is_err());
    }

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let (mut newer, _, _) = record();
        newer[0] = FORMAT + 1;
        let link = checksum(GroupId(3), LogIndex(5), &newer[..9], &newer[HEADER..]);
        newer[9..13].copy_from_slice(&link.to_be_bytes());
        let result = Record::parse(&key(GroupId(3), LogIndex(5)), &newer);
        assert!(matches!(result, Err(StorageError::NewerFormat { found: 2, .. })));
    }
}
