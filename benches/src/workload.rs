//! What is asked of the cluster: puts of random keys with values that do not compress, and gets of the same keys.

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use raft_core::GroupId;
use raft_node::Consistency;
use raft_node::client::protocol::Request;
use raft_node::kv::{Command, Query};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Digits in a key.
const DIGITS: usize = 12;
/// Random bytes from which values are cut. Longer than the window of any fast compressor.
const POOL: usize = 1 << 20;
/// Where the request id lies in a frame: after the length.
const ID_AT: usize = 4;

/// Makes request frames. One frame of each kind is encoded by the client protocol; all others are copies of it with another id, key and
/// value: a load generator that shares its cores with the cluster must not spend them.
pub(crate) struct Workload {
    put: Template,
    /// Gets, and how many of 100 requests are such.
    get: Option<(Template, u32)>,
    value_size: usize,
    keys: Keys,
    pool: Vec<u8>,
    rng: SmallRng,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// That a value is written.
    Put,
    /// A value.
    Get,
}

/// Which keys are written and read.
enum Keys {
    /// Any of so many.
    Random(u64),
    /// From this one on, every so many-th.
    Ascending { next: u64, step: u64 },
}

/// Makes a frame of a key and a value.
type Encode = fn(&[u8], &[u8]) -> Result<Vec<u8>>;

/// In the words of our client protocol.
fn encode(key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let command: Bytes = Command::Put { key, value }.encode();
    frame(&Request::Write { group: GroupId::FIRST, command })
}

fn frame(request: &Request) -> Result<Vec<u8>> {
    let mut frame = BytesMut::new();
    request.encode_to(0, &mut frame).context("the value is too long for a frame")?;
    Ok(frame.to_vec())
}

/// A frame of which others are copies.
struct Template {
    /// Without the value, which would be at the end.
    bytes: Vec<u8>,
    key_at: usize,
    /// Whether it has a request id.
    has_id: bool,
}

impl Template {
    /// `encode` makes a frame of a key and of `value`.
    fn new(encode: impl Fn(&[u8], &[u8]) -> Result<Vec<u8>>, value: &[u8]) -> Result<Self> {
        let key = format!("bench/{:0DIGITS$}", 0);
        let mut bytes = encode(key.as_bytes(), value)?;
        let key_at = bytes.windows(key.len()).position(|window| window == key.as_bytes());
        let key_at = key_at.context("keys are not sent as they are")? + key.len() - DIGITS;
        ensure!(bytes.ends_with(value), "values are not sent as they are");
        bytes.truncate(bytes.len() - value.len());
        Ok(Template { bytes, key_at, has_id: false })
    }

    /// Appends a copy without its value.
    fn append(&self, id: u64, mut key: u64, out: &mut BytesMut) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let frame = &mut out[start..];
        if self.has_id {
            frame[ID_AT..ID_AT + 8].copy_from_slice(&id.to_le_bytes());
        }
        for digit in frame[self.key_at..self.key_at + DIGITS].iter_mut().rev() {
            *digit = b'0' + (key % 10) as u8;
            key /= 10;
        }
    }
}

impl Workload {
    /// Puts of `value_size` bytes over `keys` keys.
    pub(crate) fn new(keys: u64, value_size: usize, seed: u64) -> Result<Self> {
        Ok(Workload::with(keys, value_size, seed, encode)?.with_ids())
    }

    /// The same in other words: `encode` makes a frame of a key and a value. It has no request id, and the value at its end.
    pub(crate) fn with(keys: u64, value_size: usize, seed: u64, encode: Encode) -> Result<Self> {
        ensure!(keys > 0, "there must be a key");
        Workload::over(Keys::Random(keys), value_size, seed, encode)
    }

    /// Puts of `value_size` bytes to the keys `first`, `first + step` and so on, none of them twice.
    pub(crate) fn ascending(first: u64, step: u64, value_size: usize) -> Result<Self> {
        ensure!(step > 0, "the keys must differ");
        Ok(Workload::over(Keys::Ascending { next: first, step }, value_size, first, encode)?.with_ids())
    }

    /// Bytes of the command of a put: its key, its value, and the few that say so.
    pub(crate) fn command_bytes(value_size: usize) -> Result<u64> {
        let (key, value) = (format!("bench/{:0DIGITS$}", 0), vec![0; value_size]);
        Ok(u64::try_from(Command::Put { key: key.as_bytes(), value: &value }.encode().len())?)
    }

    /// `percent` of 100 requests are gets of the same keys, in our client protocol.
    pub(crate) fn reading(mut self, percent: u32, consistency: Consistency) -> Result<Self> {
        let encode = |key: &[u8], _: &[u8]| {
            frame(&Request::Read { group: GroupId::FIRST, consistency, query: Query::Get { key }.encode() })
        };
        self.get = Some((Template { has_id: true, ..Template::new(encode, &[])? }, percent));
        Ok(self)
    }

    fn over(keys: Keys, value_size: usize, seed: u64, encode: Encode) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut pool = vec![0; POOL + value_size];
        rng.fill_bytes(&mut pool);
        let put = Template::new(encode, &pool[..value_size])?;
        Ok(Workload { put, get: None, value_size, keys, pool, rng })
    }

    fn with_ids(mut self) -> Self {
        self.put.has_id = true;
        self
    }

    /// Appends a request, and tells what it asks for.
    pub(crate) fn append(&mut self, id: u64, out: &mut BytesMut) -> Asked {
        let key = match &mut self.keys {
            Keys::Random(keys) => self.rng.random_range(0..*keys),
            Keys::Ascending { next, step } => std::mem::replace(next, *next + *step),
        };
        if let Some((get, percent)) = &self.get
            && self.rng.random_range(0..100) < *percent
        {
            get.append(id, key, out);
            return Asked::Get;
        }
        self.put.append(id, key, out);
        let offset = self.rng.random_range(0..POOL);
        out.extend_from_slice(&self.pool[offset..offset + self.value_size]);
        Asked::Put
    }
}

#[cfg(test)]
mod tests {
    use raft_node::client::protocol::FrameReader;

    use super::*;

    fn key_of(workload: &Workload) -> std::ops::Range<usize> {
        workload.put.key_at..workload.put.key_at + DIGITS
    }

    #[test]
    fn frames_are_what_the_client_protocol_would_send() {
        for value_size in [0, 1, 16, 256, 70_000] {
            let mut workload = Workload::new(10, value_size, 1).unwrap();
            let mut out = BytesMut::new();
            workload.append(7, &mut out);
            workload.append(u64::MAX, &mut out);
            let mut reader = FrameReader::new(1 << 20);
            reader.push(&out);
            for id in [7, u64::MAX] {
                let frame = reader.next_frame().unwrap().unwrap();
                assert_eq!(frame.id, id);
                let Request::Write { command, .. } = frame.into_request().unwrap() else { panic!("not a write") };
                let Command::Put { key, value } = Command::decode(&command).unwrap() else { panic!("not a put") };
                assert_eq!(value.len(), value_size);
                let number: u64 = std::str::from_utf8(key).unwrap().strip_prefix("bench/").unwrap().parse().unwrap();
                assert!(number < 10, "{number}");
            }
            assert_eq!(reader.next_frame().unwrap(), None);
        }
    }

    #[test]
    fn two_that_ascend_in_turn_write_every_key_once() {
        let mut keys = Vec::new();
        for first in [100, 101] {
            let mut workload = Workload::ascending(first, 2, 16).unwrap();
            for _ in 0..5 {
                let mut out = BytesMut::new();
                workload.append(0, &mut out);
                let digits = std::str::from_utf8(&out[key_of(&workload)]).unwrap().to_owned();
                keys.push(digits.parse::<u64>().unwrap());
            }
        }
        keys.sort_unstable();
        assert_eq!(keys, (100..110).collect::<Vec<_>>());
    }

    #[test]
    fn no_key_is_left_out_and_values_differ() {
        let mut workload = Workload::new(4, 64, 2).unwrap();
        let frames: Vec<_> = (0..100)
            .map(|_| {
                let mut out = BytesMut::new();
                workload.append(0, &mut out);
                out
            })
            .collect();
        let keys: std::collections::BTreeSet<_> =
            frames.iter().map(|frame| frame[key_of(&workload)].to_vec()).collect();
        let values: std::collections::BTreeSet<_> =
            frames.iter().map(|frame| frame[workload.put.bytes.len()..].to_vec()).collect();
        assert_eq!(keys.len(), 4);
        assert!(values.len() > 90);
    }

    #[test]
    fn a_mix_has_as_many_reads_as_it_should() {
        let mut workload = Workload::new(10, 64, 3).unwrap().reading(90, Consistency::Lease).unwrap();
        let (mut out, mut gets) = (BytesMut::new(), 0);
        let asked: Vec<Asked> = (0..1000).map(|id| workload.append(id, &mut out)).collect();
        let mut reader = FrameReader::new(1 << 20);
        reader.push(&out);
        for (id, asked) in (0..).zip(asked) {
            let frame = reader.next_frame().unwrap().unwrap();
            assert_eq!(frame.id, id);
            match (asked, frame.into_request().unwrap()) {
                (Asked::Get, Request::Read { consistency: Consistency::Lease, query, .. }) => {
                    let Ok(Query::Get { key }) = Query::decode(&query) else { panic!("not a get") };
                    assert!(key.starts_with(b"bench/00000000000") && key.len() == 6 + DIGITS, "{key:?}");
                    gets += 1;
                }
                (Asked::Put, Request::Write { command, .. }) => {
                    let Ok(Command::Put { value, .. }) = Command::decode(&command) else { panic!("not a put") };
                    assert_eq!(value.len(), 64);
                }
                other => panic!("{other:?}"),
            }
        }
        assert!((860..=940).contains(&gets), "{gets}");
    }
}
