//! What is written: puts of random keys with values that do not compress.

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};
use raft_core::GroupId;
use raft_node::client::protocol::Request;
use raft_node::kv::Command;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

/// Digits in a key.
const DIGITS: usize = 12;
/// Random bytes from which values are cut. Longer than the window of any fast compressor.
const POOL: usize = 1 << 20;
/// Where the request id lies in a frame: after the length.
const ID_AT: usize = 4;

/// Makes request frames. One frame is encoded by the client protocol; all others are copies of it with another id, key and
/// value: a load generator that shares its cores with the cluster must not spend them.
pub(crate) struct Workload {
    template: Vec<u8>,
    /// Whether it has a request id.
    has_id: bool,
    key_at: usize,
    value_at: usize,
    value_size: usize,
    keys: Keys,
    pool: Vec<u8>,
    rng: SmallRng,
}

/// Which keys are written.
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
    let mut frame = BytesMut::new();
    let request = Request::Write { group: GroupId::FIRST, command };
    request.encode_to(0, &mut frame).context("the value is too long for a frame")?;
    Ok(frame.to_vec())
}

impl Workload {
    /// Puts of `value_size` bytes over `keys` keys.
    pub(crate) fn new(keys: u64, value_size: usize, seed: u64) -> Result<Self> {
        Workload::with(keys, value_size, seed, encode).map(|workload| Workload { has_id: true, ..workload })
    }

    /// The same in other words: `encode` makes a frame of a key and a value. It has no request id, and the value at its end.
    pub(crate) fn with(keys: u64, value_size: usize, seed: u64, encode: Encode) -> Result<Self> {
        ensure!(keys > 0, "there must be a key");
        Workload::over(Keys::Random(keys), value_size, seed, encode)
    }

    /// Puts of `value_size` bytes to the keys `first`, `first + step` and so on, none of them twice.
    pub(crate) fn ascending(first: u64, step: u64, value_size: usize) -> Result<Self> {
        ensure!(step > 0, "the keys must differ");
        let workload = Workload::over(Keys::Ascending { next: first, step }, value_size, first, encode)?;
        Ok(Workload { has_id: true, ..workload })
    }

    fn over(keys: Keys, value_size: usize, seed: u64, encode: Encode) -> Result<Self> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut pool = vec![0; POOL + value_size];
        rng.fill_bytes(&mut pool);
        let key = format!("bench/{:0DIGITS$}", 0);
        let frame = encode(key.as_bytes(), &pool[..value_size])?;
        let find = |part: &[u8]| frame.windows(part.len()).position(|window| window == part);
        let key_at = find(key.as_bytes()).context("keys are not sent as they are")? + key.len() - DIGITS;
        // The value ends the frame.
        let value_at = frame.len() - value_size;
        ensure!(frame[value_at..] == pool[..value_size], "values are not sent as they are");
        Ok(Workload { template: frame, has_id: false, key_at, value_at, value_size, keys, pool, rng })
    }

    /// Appends a put of a random key.
    pub(crate) fn append(&mut self, id: u64, out: &mut BytesMut) {
        let start = out.len();
        out.extend_from_slice(&self.template[..self.value_at]);
        let offset = self.rng.random_range(0..POOL);
        out.extend_from_slice(&self.pool[offset..offset + self.value_size]);
        let frame = &mut out[start..];
        if self.has_id {
            frame[ID_AT..ID_AT + 8].copy_from_slice(&id.to_le_bytes());
        }
        let mut key = match &mut self.keys {
            Keys::Random(keys) => self.rng.random_range(0..*keys),
            Keys::Ascending { next, step } => std::mem::replace(next, *next + *step),
        };
        for digit in frame[self.key_at..self.key_at + DIGITS].iter_mut().rev() {
            *digit = b'0' + (key % 10) as u8;
            key /= 10;
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_node::client::protocol::FrameReader;

    use super::*;

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
                let digits = std::str::from_utf8(&out[workload.key_at..workload.key_at + DIGITS]).unwrap().to_owned();
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
            frames.iter().map(|frame| frame[workload.key_at..workload.key_at + DIGITS].to_vec()).collect();
        let values: std::collections::BTreeSet<_> =
            frames.iter().map(|frame| frame[workload.value_at..].to_vec()).collect();
        assert_eq!(keys.len(), 4);
        assert!(values.len() > 90);
    }
}
