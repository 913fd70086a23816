//! The small values beside the log: hard state, start of the log, and whose directory it is.
//!
//! Every value is sealed by a CRC32C over its key and itself. See the [crate documentation](crate) for the layouts.

use std::collections::BTreeMap;
use std::path::Path;

use raft_core::{GroupId, HardState, LogId, LogIndex, Membership, NodeId, Term};

use crate::error::StorageError;

/// Format of the directory that this version writes. Raised whenever an older version must not open the result.
pub(crate) const STORE_FORMAT: u32 = 1;
const VALUE_FORMAT: u8 = 1;
/// Format of the start of a log.
const START_FORMAT: u8 = 2;
const CRC: usize = 4;

/// The last byte of a key in the column family `meta`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Tag {
    HardState = 1,
    LogStart = 2,
    Founders = 3,
    Peers = 4,
    Identity = 0xF0,
}

pub(crate) type Key = [u8; 9];

pub(crate) fn key(group: GroupId, tag: Tag) -> Key {
    let mut key = [0; 9];
    key[..8].copy_from_slice(&group.0.to_be_bytes());
    key[8] = tag as u8;
    key
}

/// The identity belongs to no group; its tag keeps it apart from the group 0.
pub(crate) fn identity_key() -> Key {
    key(GroupId(0), Tag::Identity)
}

pub(crate) fn parse_key(key: &[u8]) -> Result<(GroupId, Tag), StorageError> {
    let tag = match key.last() {
        Some(1) => Some(Tag::HardState),
        Some(2) => Some(Tag::LogStart),
        Some(3) => Some(Tag::Founders),
        Some(4) => Some(Tag::Peers),
        Some(0xF0) => Some(Tag::Identity),
        _ => None,
    };
    match (key.split_first_chunk::<8>(), tag) {
        (Some((group, _)), Some(tag)) if key.len() == 9 => Ok((GroupId(u64::from_be_bytes(*group)), tag)),
        _ => Err(damaged(&format!("meta key {key:02x?}"), "it is none of this format")),
    }
}

fn damaged(place: &str, what: &str) -> StorageError {
    StorageError::Damaged { place: place.to_owned(), what: what.to_owned() }
}

pub(super) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&crc.to_be_bytes());
    value
}

fn unseal<'a>(key: &[u8], value: &'a [u8], place: &str) -> Result<&'a [u8], StorageError> {
    let (value, crc) = value.split_last_chunk::<CRC>().ok_or_else(|| damaged(place, "it is too short"))?;
    let found = crc32c::crc32c_append(crc32c::crc32c(key), value);
    if u32::from_be_bytes(*crc) != found {
        return Err(damaged(place, "its checksum does not fit"));
    }
    Ok(value)
}

/// Reads fixed-width big-endian numbers off the front.
struct Fields<'a> {
    rest: &'a [u8],
    place: &'a str,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StorageError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| damaged(self.place, "it is too short"))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u64(&mut self) -> Result<u64, StorageError> {
        self.take().map(u64::from_be_bytes)
    }

    /// The format comes first in every value; a newer one is refused.
    fn format(&mut self) -> Result<(), StorageError> {
        self.format_up_to(VALUE_FORMAT).map(drop)
    }

    fn format_up_to(&mut self, newest: u8) -> Result<u8, StorageError> {
        let [found] = self.take()?;
        if (1..=newest).contains(&found) {
            return Ok(found);
        }
        Err(newer(self.place, u32::from(found), u32::from(newest)))
    }

    fn end(&self) -> Result<(), StorageError> {
        if self.rest.is_empty() { Ok(()) } else { Err(damaged(self.place, "it is too long")) }
    }
}

fn newer(place: &str, found: u32, supported: u32) -> StorageError {
    StorageError::NewerFormat { place: place.to_owned(), found, supported }
}

pub(crate) fn encode_hard_state(key: &Key, state: HardState) -> Vec<u8> {
    let mut value = vec![VALUE_FORMAT];
    value.extend_from_slice(&state.current_term.0.to_be_bytes());
    value.push(u8::from(state.voted_for.is_some()));
    value.extend_from_slice(&state.voted_for.unwrap_or_default().0.to_be_bytes());
    seal(key, value)
}

pub(crate) fn decode_hard_state(key: &[u8], group: GroupId, value: &[u8]) -> Result<HardState, StorageError> {
    let place = &format!("group {group}: the hard state");
    let mut fields = Fields { rest: unseal(key, value, place)?, place };
    fields.format()?;
    let current_term = Term(fields.u64()?);
    let voted_for = match (fields.take()?, fields.u64()?) {
        ([0], 0) => None,
        ([1], id) => Some(NodeId(id)),
        _ => return Err(damaged(place, "its vote is neither given nor withheld")),
    };
    fields.end()?;
    Ok(HardState { current_term, voted_for })
}

pub(crate) fn encode_founders(key: &Key, founders: &[NodeId]) -> Vec<u8> {
    let ids = founders.iter().flat_map(|id| id.0.to_be_bytes());
    seal(key, std::iter::once(VALUE_FORMAT).chain(ids).collect())
}

pub(crate) fn decode_founders(key: &[u8], group: GroupId, value: &[u8]) -> Result<Vec<NodeId>, StorageError> {
    let place = &format!("group {group}: the founders");
    let mut fields = Fields { rest: unseal(key, value, place)?, place };
    fields.format()?;
    let mut founders = Vec::new();
    while fields.end().is_err() {
        founders.push(NodeId(fields.u64()?));
    }
    Ok(founders)
}

/// The incarnations of other nodes, by node.
pub(crate) fn encode_peers(key: &Key, peers: &BTreeMap<NodeId, u128>) -> Vec<u8> {
    let mut value = vec![VALUE_FORMAT];
    for (id, incarnation) in peers {
        value.extend_from_slice(&id.0.to_be_bytes());
        value.extend_from_slice(&incarnation.to_be_bytes());
    }
    seal(key, value)
}

pub(crate) fn decode_peers(key: &[u8], group: GroupId, value: &[u8]) -> Result<BTreeMap<NodeId, u128>, StorageError> {
    let place = &format!("group {group}: the incarnations of peers");
    let mut fields = Fields { rest: unseal(key, value, place)?, place };
    fields.format()?;
    let mut peers = BTreeMap::new();
    while fields.end().is_err() {
        let id = NodeId(fields.u64()?);
        if peers.last_key_value().is_some_and(|(last, _)| *last >= id) {
            return Err(damaged(place, "they are out of order"));
        }
        peers.insert(id, u128::from_be_bytes(fields.take()?));
    }
    Ok(peers)
}

/// Where a log begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogStart {
    /// The entry before the first one.
    pub(crate) id: LogId,
    /// What the first record names as the checksum of its predecessor.
    pub(crate) link: u32,
    /// The index under which the first record is stored, at most one above `id`: what it holds up to `id` does not count. Whatever is stored
    /// under a smaller index is waiting to be deleted.
    pub(crate) first: LogIndex,
    /// Who belonged to the cluster as of `id`. Format 1 did not say.
    pub(crate) membership: Option<Membership>,
}

/// Without a membership it is of format 1, which has only whole records.
pub(crate) fn encode_log_start(key: &Key, start: &LogStart) -> Vec<u8> {
    let format = if start.membership.is_some() { START_FORMAT } else { VALUE_FORMAT };
    let mut value = vec![format];
    value.extend_from_slice(&start.id.index.0.to_be_bytes());
    value.extend_from_slice(&start.id.term.0.to_be_bytes());
    value.extend_from_slice(&start.link.to_be_bytes());
    if let Some(membership) = &start.membership {
        value.extend_from_slice(&start.first.0.to_be_bytes());
        value.extend_from_slice(&membership.encode());
    }
    seal(key, value)
}

pub(crate) fn decode_log_start(key: &[u8], group: GroupId, value: &[u8]) -> Result<LogStart, StorageError> {
    let place = &format!("group {group}: the start of the log");
    let mut fields = Fields { rest: unseal(key, value, place)?, place };
    let format = fields.format_up_to(START_FORMAT)?;
    let id = LogIndex(fields.u64()?);
    let id = LogId::new(Term(fields.u64()?), id);
    let link = u32::from_be_bytes(fields.take()?);
    if id.index > LogIndex::MAX {
        return Err(damaged(place, "its index is beyond all belief"));
    }
    if format == VALUE_FORMAT {
        fields.end()?;
        return Ok(LogStart { id, link, first: id.index.next(), membership: None });
    }
    let first = LogIndex(fields.u64()?);
    if first == LogIndex::ZERO || first > id.index.next() {
        return Err(damaged(place, "it is before the first record"));
    }
    let membership = Membership::decode(fields.rest).map_err(|error| damaged(place, &error.to_string()))?;
    Ok(LogStart { id, link, first, membership: Some(membership) })
}

/// Who a directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster, 1 to 255 bytes.
    pub cluster: String,
    /// The node.
    pub node: NodeId,
}

impl Identity {
    /// Puts them together.
    pub fn new(cluster: impl Into<String>, node: NodeId) -> Self {
        Identity { cluster: cluster.into(), node }
    }

    pub(crate) fn encode(&self, incarnation: u128) -> Vec<u8> {
        let mut value = STORE_FORMAT.to_be_bytes().to_vec();
        value.extend_from_slice(&self.node.0.to_be_bytes());
        value.extend_from_slice(&incarnation.to_be_bytes());
        value.extend_from_slice(self.cluster.as_bytes());
        seal(&identity_key(), value)
    }

    /// Checks that the stored identity `value` is this one, and returns the incarnation.
    pub(crate) fn verify(&self, value: &[u8], dir: &Path) -> Result<u128, StorageError> {
        let place = &format!("the identity of {}", dir.display());
        let mut fields = Fields { rest: unseal(&identity_key(), value, place)?, place };
        // Every format has its number here and a checksum at the end, so that an older version can tell.
        let format = u32::from_be_bytes(fields.take()?);
        if format != STORE_FORMAT {
            return Err(newer(&dir.display().to_string(), format, STORE_FORMAT));
        }
        let node = NodeId(fields.u64()?);
        let incarnation = u128::from_be_bytes(fields.take()?);
        let cluster =
            std::str::from_utf8(fields.rest).map_err(|_| damaged(place, "the cluster's name is not UTF-8"))?;
        if cluster != self.cluster {
            let (expected, found) = (self.cluster.clone(), cluster.to_owned());
            return Err(StorageError::WrongCluster { dir: dir.to_owned(), expected, found });
        }
        if node != self.node {
            return Err(StorageError::WrongNode { dir: dir.to_owned(), expected: self.node, found: node });
        }
        Ok(incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: GroupId = GroupId(9);

    #[test]
    fn hard_states_come_back_and_damage_is_noticed() {
        let key = key(GROUP, Tag::HardState);
        for voted_for in [None, Some(NodeId(0)), Some(NodeId(u64::MAX))] {
            let state = HardState { current_term: Term(1 << 40), voted_for };
            let good = encode_hard_state(&key, state);
            assert_eq!(decode_hard_state(&key, GROUP, &good).unwrap(), state);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_hard_state(&key, GROUP, &bad).is_err(), "bit {bit}");
            }
            assert!((0..good.len()).all(|cut| decode_hard_state(&key, GROUP, &good[..cut]).is_err()));
            let other = super::key(GroupId(8), Tag::HardState);
            assert!(decode_hard_state(&other, GroupId(8), &good).is_err());
        }
    }

    #[test]
    fn the_start_of_a_log_can_be_read() {
        let key = key(GROUP, Tag::LogStart);
        let id = LogId::new(Term(3), LogIndex(7));
        let old = LogStart { id, link: 99, first: LogIndex(8), membership: None };
        let joint = Membership::of_voters([1, 5].map(NodeId)).with_info(NodeId(5), "five".into());
        let new = LogStart { first: LogIndex(4), membership: Some(joint), ..old.clone() };
        for start in [old.clone(), new.clone()] {
            let good = encode_log_start(&key, &start);
            assert_eq!(decode_log_start(&key, GROUP, &good).unwrap(), start);
            for bit in 0..good.len() * 8 {
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode_log_start(&key, GROUP, &bad).is_err(), "bit {bit}");
            }
            let refuse = |change: &dyn Fn(&mut Vec<u8>)| {
                let mut value = good[..good.len() - CRC].to_vec();
                change(&mut value);
                decode_log_start(&key, GROUP, &seal(&key, value)).unwrap_err().to_string()
            };
            assert!(refuse(&|value| value.push(0)).contains(if start.membership.is_some() {
                "length"
            } else {
                "long"
            }));
            assert!(refuse(&|value| value.truncate(20)).contains("short"));
            assert!(refuse(&|value| value[0] = 3).contains("format 3"));
            assert!(refuse(&|value| value[0] = 0).contains("format 0"));
            assert!(refuse(&|value| value[1] = 0xff).contains("belief"));
        }
        for first in [0, 9] {
            let bad = encode_log_start(&key, &LogStart { first: LogIndex(first), ..new.clone() });
            assert!(decode_log_start(&key, GROUP, &bad).unwrap_err().to_string().contains("before the first record"));
        }
        // The layout stays what it is.
        let bare = LogStart { membership: Some(Membership::default()), ..new };
        let value = encode_log_start(&key, &bare);
        assert_eq!(
            value[..29],
            [&[2][..], &7u64.to_be_bytes(), &3u64.to_be_bytes(), &99u32.to_be_bytes(), &4u64.to_be_bytes()].concat()
        );
        assert_eq!(value[29..value.len() - CRC], [&[1][..], &[0; 20]].concat(), "an empty membership");
    }

    #[test]
    fn keys_of_other_formats_are_refused() {
        assert_eq!(parse_key(&key(GROUP, Tag::LogStart)).unwrap(), (GROUP, Tag::LogStart));
        assert_eq!(parse_key(&identity_key()).unwrap(), (GroupId(0), Tag::Identity));
        for bad in [&[][..], &[1], &[0, 0, 0, 0, 0, 0, 0, 1, 77], &[0, 0, 0, 0, 0, 0, 0, 0, 1, 1]] {
            assert!(parse_key(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn an_identity_tells_who_and_since_which_format() {
        let (me, dir) = (Identity::new("blue", NodeId(4)), Path::new("some/dir"));
        let value = me.encode(1 << 100);
        assert_eq!(me.verify(&value, dir).unwrap(), 1 << 100);
        let error = |of: Identity, value: &[u8]| of.verify(value, dir).unwrap_err().to_string();
        assert_eq!(error(Identity::new("red", NodeId(4)), &value), "some/dir belongs to cluster `blue`, not to `red`");
        assert_eq!(error(Identity::new("blue", NodeId(5)), &value), "some/dir belongs to node 4, not to node 5");
        let mut newer = value[..value.len() - CRC].to_vec();
        newer[3] = 9;
        assert_eq!(
            error(me.clone(), &seal(&identity_key(), newer)),
            "some/dir has format 9; this version reads up to format 1"
        );
        let mut bad = value.clone();
        bad[10] ^= 1;
        assert!(error(me, &bad).contains("checksum"));
    }
}
