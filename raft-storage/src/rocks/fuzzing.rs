//! Fuzz targets: functions of bytes that assert what must hold whatever the bytes are.
//!
//! The programs in `fuzz/` hand them what libFuzzer thinks of; the tests replay the corpus and run them as property tests. Behind the
//! feature `fuzzing`, and no part of the crate's interface.

use std::path::Path;

use raft_core::fuzzing::{Choices, with_checksums};
use raft_core::{GroupId, LogIndex, NodeId, Segment};

use super::meta::{self, Identity, Tag};
use super::record::{self, HEADER, Record};
use crate::error::StorageError;

pub use raft_core::fuzzing::Target;

/// The targets of this crate.
pub const TARGETS: &[Target] = &[
    Target { name: "records", run: records },
    Target { name: "meta", run: meta },
    Target { name: "framing", run: framing },
];

/// A record of the log. What is accepted must be exactly what is written for the same entries: one log, one string of bytes.
pub fn records(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let (group, first) = (GroupId(choices.number(1)), LogIndex(choices.number(1)));
    let value = if choices.chance(1, 8) { choices.rest().to_vec() } else { mended(group, first, choices) };
    let key = record::key(group, first);
    assert_eq!(record::parse_key(&key).ok(), Some((group, first)));
    assert_eq!(record::parse_key(data).map_err(explained).is_ok(), data.len() == key.len());

    let segment = match Record::parse(&key, &value).and_then(|found| Ok((found, found.segment()?))) {
        Ok((found, segment)) => {
            assert_eq!((found.first(), found.last()), (segment.first_index(), segment.last_index()));
            assert!(found.follows(first, found.prev).is_ok());
            assert!(found.follows(first.next(), found.prev).map_err(explained).is_err());
            assert!(found.follows(first, !found.prev).map_err(explained).is_err());
            let mut buf = b"left over".to_vec();
            let link = record::encode(&mut buf, group, first, found.prev, &in_two(&segment));
            assert_eq!((link, &buf), (found.link, &value), "another record of the same entries");
            segment
        }
        Err(error) => {
            explained(error);
            return false;
        }
    };
    // At another place it is damage.
    assert!(Record::parse(&record::key(group, first.next()), &value).is_err());
    assert!(Record::parse(&record::key(GroupId(group.0 ^ 1), first), &value).is_err());
    assert!(!segment.bytes().is_empty());
    true
}

/// A record with the right checksums, and mostly the right number of entries: a fuzzer does not guess them.
fn mended(group: GroupId, first: LogIndex, mut choices: Choices<'_>) -> Vec<u8> {
    let format = if choices.chance(1, 16) { choices.number(1) as u8 } else { record::FORMAT };
    let miscount = if choices.chance(1, 8) { choices.number(0) as u32 } else { 0 };
    let prev = choices.number(0) as u32;
    let body = with_checksums(first, choices.rest());
    let count = Segment::unpack(first, body.clone().into()).ok().flatten().map_or(0, |segment| segment.len() as u32);
    let mut value = vec![format];
    value.extend_from_slice(&count.wrapping_add(miscount).to_be_bytes());
    value.extend_from_slice(&prev.to_be_bytes());
    let key = record::key(group, first);
    let crc = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&key), &value), &body);
    value.extend_from_slice(&crc.to_be_bytes());
    assert_eq!(value.len(), HEADER);
    value.extend(body);
    value
}

/// How entries are cut into segments must not matter.
fn in_two(segment: &Segment) -> Vec<Segment> {
    let head = segment.prefix(segment.byte_len() / 2);
    let tail = segment.slice(head.last_index().next(), LogIndex::MAX);
    std::iter::once(head).chain(tail).collect()
}

/// The message of an error is for people: it can be made, and says something.
fn explained(error: StorageError) -> StorageError {
    assert!(error.to_string().len() > 10, "{error:?}");
    error
}

/// The values beside the log: hard state, founders, start of the log, identity. What is accepted must be what is written for it.
pub fn meta(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let group = GroupId(choices.number(1));
    let tag = choices.one_of([Tag::HardState, Tag::LogStart, Tag::Founders, Tag::Peers, Tag::Identity]);
    let key = if tag == Tag::Identity { meta::identity_key() } else { meta::key(group, tag) };
    let group = if tag == Tag::Identity { GroupId(0) } else { group };
    assert_eq!(meta::parse_key(&key).ok(), Some((group, tag)));
    if let Ok((found, tag)) = meta::parse_key(data) {
        assert_eq!(meta::key(found, tag), data, "two keys for one value");
    }
    let mended = !choices.chance(1, 8);
    let rest = choices.rest();
    let value = if mended { meta::seal(&key, rest.to_vec()) } else { rest.to_vec() };
    let written = match tag {
        Tag::HardState => {
            meta::decode_hard_state(&key, group, &value).map(|state| meta::encode_hard_state(&key, state))
        }
        Tag::Founders => meta::decode_founders(&key, group, &value).map(|ids| meta::encode_founders(&key, &ids)),
        Tag::Peers => meta::decode_peers(&key, group, &value).map(|peers| meta::encode_peers(&key, &peers)),
        Tag::LogStart => meta::decode_log_start(&key, group, &value).map(|start| meta::encode_log_start(&key, &start)),
        Tag::Identity => owner(rest).verify(&value, Path::new("some/dir")).map(|number| owner(rest).encode(number)),
    };
    match written {
        Ok(written) => assert_eq!(written, value, "another value of the same meaning"),
        Err(error) => {
            explained(error);
            return false;
        }
    }
    // Under another key it is damage.
    assert!(meta::decode_founders(&meta::key(GroupId(group.0 ^ 1), tag), group, &value).is_err());
    true
}

/// Frames of RocksDB's files: any bytes at all; whole ones, cut off anywhere, which pass; and such with a wrong length, which do not when RocksDB would
/// take it for the end.
pub fn framing(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    if choices.chance(1, 4) {
        return super::framing::check_file(choices.rest()).expect("memory can be read").is_none();
    }
    let (cut, victim, length) = (choices.between(0, 255) as usize, choices.pick(8), choices.number(0) as u16);
    let (mut file, mut starts) = (Vec::new(), Vec::new());
    while !choices.is_over() {
        let kind = choices.between(1, 4) as u8;
        // Large ones reach the end of a block, but cost as much as a thousand small ones.
        let repeat = if choices.chance(1, 40) { 700 } else { 1 };
        let mut payload = choices.bytes(40).repeat(repeat);
        let room = super::framing::room_after(file.len());
        let Some(room) = room.checked_sub(super::framing::HEADER) else {
            file.resize(file.len() + room, 0);
            continue;
        };
        payload.truncate(room);
        starts.push((file.len(), payload.len()));
        file.extend(super::framing::frame(kind, &payload));
    }
    let look = |file: &[u8]| super::framing::check_file(file).expect("memory can be read");
    let torn = file.len().saturating_sub(cut);
    assert_eq!(look(&file), None);
    let last = starts.iter().rfind(|(at, _)| at + super::framing::HEADER <= torn).map(|(at, _)| &file[*at..torn]);
    assert!(look(&file[..torn]).is_none() || last.is_some_and(has_its_checksum_by_chance));
    if let Some(&(at, right)) = starts.get(starts.len().saturating_sub(victim + 1)) {
        file[at + 4..at + 6].copy_from_slice(&length.to_le_bytes());
        let silent = at + super::framing::HEADER + usize::from(length) > file.len();
        assert!(usize::from(length) == right || !silent || look(&file).is_some(), "frame at {at} of {right} bytes");
    }
    starts.len() > 1
}

/// Whether the first bytes of what is left of a frame have the checksum of the whole: then nobody can tell that it is torn.
fn has_its_checksum_by_chance(torn: &[u8]) -> bool {
    let (header, payload) = torn.split_at(super::framing::HEADER);
    (0..=payload.len()).any(|length| super::framing::frame(header[6], &payload[..length])[..4] == header[..4])
}

/// Whom an identity of these bytes would belong to, so that it can be accepted.
fn owner(value: &[u8]) -> Identity {
    let node = value.get(4..12).and_then(<[u8]>::first_chunk).map_or(0, |id| u64::from_be_bytes(*id));
    Identity::new(String::from_utf8_lossy(value.get(28..).unwrap_or_default()), NodeId(node))
}
