//! The few messages of etcd's interface that are needed here, in the encoding of protocol buffers.
//!
//! Field numbers are those of etcd's public interface description (`rpc.proto`, package `etcdserverpb`): `PutRequest` has key 1 and value 2;
//! `StatusResponse` has header 1, version 2, leader 4 and raft term 6; the header has the member's id 2.

use anyhow::{Context, Result, bail};

/// Bytes before a message in a gRPC stream: whether it is compressed, and its length.
pub(super) const PREFIX: usize = 5;

/// Wire types.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

/// A `PutRequest` as it goes over the wire, gRPC's prefix included.
pub(super) fn put(key: &[u8], value: &[u8]) -> Result<Vec<u8>> {
    let mut message = Vec::with_capacity(key.len() + value.len() + 16);
    for (field, bytes) in [(1, key), (2, value)] {
        varint(field << 3 | BYTES, &mut message);
        varint(bytes.len() as u64, &mut message);
        message.extend_from_slice(bytes);
    }
    framed(&message)
}

/// A message without any field, such as `StatusRequest`.
pub(super) fn empty() -> Vec<u8> {
    vec![0; PREFIX]
}

fn framed(message: &[u8]) -> Result<Vec<u8>> {
    let length = u32::try_from(message.len()).context("a message is too long")?;
    Ok([&[0], &length.to_be_bytes()[..], message].concat())
}

/// What a member says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MemberStatus {
    /// Its id.
    pub(super) member: u64,
    /// The id of the leader; 0 when it knows none.
    pub(super) leader: u64,
    /// Its term.
    pub(super) term: u64,
}

impl MemberStatus {
    /// Reads a `StatusResponse`, gRPC's prefix included.
    pub(super) fn decode(frame: &[u8]) -> Result<Self> {
        let message = frame.get(PREFIX..).context("the answer is too short")?;
        let mut status = MemberStatus::default();
        for field in Fields(message) {
            match field? {
                (1, Value::Bytes(header)) => {
                    for field in Fields(header) {
                        if let (2, Value::Number(id)) = field? {
                            status.member = id;
                        }
                    }
                }
                (4, Value::Number(leader)) => status.leader = leader,
                (6, Value::Number(term)) => status.term = term,
                _ => {}
            }
        }
        Ok(status)
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a type that is not needed here.
    Other,
}

/// The fields of a message; after an error there are no more.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let tag = self.number()?;
        let value = match tag & 7 {
            VARINT => Value::Number(self.number()?),
            BYTES => {
                let length = usize::try_from(self.number()?)?;
                Value::Bytes(self.take(length)?)
            }
            FIXED_64 => self.take(8).map(|_| Value::Other)?,
            FIXED_32 => self.take(4).map(|_| Value::Other)?,
            other => bail!("a field has the unknown type {other}"),
        };
        Ok((tag >> 3, value))
    }

    fn number(&mut self) -> Result<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        bail!("a number is too long")
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("a message ends too early")?;
        self.0 = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_encoded_as_the_interface_says() {
        assert_eq!(put(b"k", b"vv").unwrap(), [0, 0, 0, 0, 7, 0x0A, 1, b'k', 0x12, 2, b'v', b'v']);
        let long = put(b"", &[7; 300]).unwrap();
        assert_eq!(long[..PREFIX + 5], [0, 0, 0, 1, 49, 0x0A, 0, 0x12, 0xAC, 2]);
    }

    #[test]
    fn a_status_is_read_whatever_else_is_in_it() {
        let mut frame = empty();
        frame.extend([0x0A, 4, 0x08, 9, 0x10, 5, 0x12, 1, b'3', 0x18, 0x80, 1, 0x20, 0xAC, 2, 0x28, 1, 0x30, 7]);
        frame.extend([0x41, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(MemberStatus::decode(&frame).unwrap(), MemberStatus { member: 5, leader: 300, term: 7 });
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in [&[0x0A, 200][..], &[0x20], &[0x0B], &[0x20, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255]] {
            assert!(MemberStatus::decode(&[&empty(), bad].concat()).is_err(), "{bad:?}");
        }
        assert!(MemberStatus::decode(&[0, 0]).is_err());
    }
}
