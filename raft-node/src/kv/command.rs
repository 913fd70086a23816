//! What is asked of the store, and what it answers, in bytes.
//!
//! The encoding is postcard: a variant number, then the fields; lengths and numbers as LEB128, keys and values as they are.
//! Variants are only ever appended, never reordered: these bytes lie in logs on disk.

use bytes::{Bytes, BytesMut};
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES};

/// A change to the store, borrowed from the log entry that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command<'a> {
    /// Sets a key.
    Put {
        /// The key.
        #[serde(with = "serde_bytes", borrow)]
        key: &'a [u8],
        /// Its new value.
        #[serde(with = "serde_bytes", borrow)]
        value: &'a [u8],
    },
    /// Removes a key.
    Delete {
        /// The key.
        #[serde(with = "serde_bytes", borrow)]
        key: &'a [u8],
    },
    /// Sets a key if it has not changed since it was read.
    Cas {
        /// The key.
        #[serde(with = "serde_bytes", borrow)]
        key: &'a [u8],
        /// The revision that the key must have; 0: it must be absent.
        expected: u64,
        /// Its new value.
        #[serde(with = "serde_bytes", borrow)]
        value: &'a [u8],
    },
    /// Opens a session; its id is in the reply.
    Register,
    /// Does what `command` says, unless this session has done so under this serial number before: then it is answered as it was the first
    /// time.
    InSession {
        /// The session's id.
        session: u64,
        /// Number of the command, from 1 on; each number stands for one command only. Gaps and any order are fine.
        serial: u64,
        /// The lowest serial number whose reply the client still waits for; what is below is forgotten, and refused if it comes late.
        first_unanswered: u64,
        /// The bytes of a put, a delete or a compare-and-swap.
        #[serde(with = "serde_bytes", borrow)]
        command: &'a [u8],
    },
    /// Ends a session.
    EndSession {
        /// The session's id.
        session: u64,
    },
}

/// Outcome of a [`Command`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The key now has this revision.
    Written {
        /// Log index of the command.
        revision: u64,
    },
    /// The key is gone.
    Deleted {
        /// Whether there was one.
        existed: bool,
    },
    /// Compare-and-swap found another revision; nothing was changed.
    Mismatch {
        /// What it found; 0: the key is absent.
        current: u64,
    },
    /// The command makes no sense; nothing was changed.
    Refused(Refusal),
    /// A session was opened.
    Registered {
        /// Its id: the log index of the command.
        session: u64,
    },
    /// The session is over, if there was one.
    Ended,
}

/// Why the store refuses a command or a query. Repeating it is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are not a command or query that this version knows.
    #[error("the request cannot be decoded")]
    Malformed,
    /// Keys have at least one byte.
    #[error("the key is empty")]
    EmptyKey,
    /// Keys have at most [`MAX_KEY_BYTES`].
    #[error("the key has {size} bytes; at most {limit} are allowed")]
    KeyTooLong {
        /// Its length, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// Values have at most [`MAX_VALUE_BYTES`], or what the node is configured for.
    #[error("the value has {size} bytes; at most {limit} are allowed")]
    ValueTooLong {
        /// Its length, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// There is no such session (any more): it was ended, or gave way to newer ones. What was repeated may have been carried out before.
    #[error("the session has expired")]
    SessionExpired,
    /// The client has said that it does not wait for this command any more.
    #[error("the command comes after its client has stopped to wait for it")]
    AlreadyAnswered,
    /// More than [`MAX_SESSION_REPLIES`](super::MAX_SESSION_REPLIES) commands of the session wait for their replies.
    #[error("too many commands of the session wait for their replies")]
    TooManyUnanswered,
}

/// A question to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query<'a> {
    /// The value of a key.
    Get {
        /// The key.
        #[serde(with = "serde_bytes", borrow)]
        key: &'a [u8],
    },
    /// The keys from `start` on, in the order of their bytes.
    Scan {
        /// First key, if it exists; empty: from the beginning.
        #[serde(with = "serde_bytes", borrow)]
        start: &'a [u8],
        /// The scan ends before this key; `None`: at the end.
        #[serde(borrow)]
        end: Option<&'a serde_bytes::Bytes>,
        /// Most keys to return; at most [`MAX_SCAN_ITEMS`](super::MAX_SCAN_ITEMS) in any case.
        limit: u32,
    },
}

/// Answer to a [`Query`], borrowed from the bytes that hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer<'a> {
    /// To a get: the key does not exist.
    Absent,
    /// To a get.
    Value {
        /// Log index of the key's last change.
        revision: u64,
        /// The value.
        #[serde(with = "serde_bytes", borrow)]
        value: &'a [u8],
    },
    /// To a scan.
    Items {
        /// Whether a limit was hit: there may be more keys after the last one.
        more: bool,
        /// Keys in ascending order.
        #[serde(borrow)]
        items: Vec<Item<'a>>,
    },
    /// The query makes no sense.
    Refused(Refusal),
}

/// A key, as a scan returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item<'a> {
    /// The key.
    #[serde(with = "serde_bytes", borrow)]
    pub key: &'a [u8],
    /// Log index of its last change.
    pub revision: u64,
    /// Its value.
    #[serde(with = "serde_bytes", borrow)]
    pub value: &'a [u8],
}

/// The bytes are not what they should be: they come from another version, or are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("these bytes are not a valid {0}")]
pub struct DecodeError(&'static str);

impl<'a> Command<'a> {
    /// Reads a command.
    ///
    /// # Errors
    /// [`DecodeError`], also when bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        decode(bytes, "command")
    }

    /// The bytes to propose.
    pub fn encode(&self) -> Bytes {
        let mut buf = BytesMut::with_capacity(self.payload_bytes() + 24);
        encode(self, &mut buf);
        buf.freeze()
    }

    /// The key that it concerns, and the value that it writes (empty for a delete). `None` for commands about sessions.
    pub fn key_and_value(&self) -> Option<(&'a [u8], &'a [u8])> {
        match *self {
            Command::Put { key, value } | Command::Cas { key, value, .. } => Some((key, value)),
            Command::Delete { key } => Some((key, &[])),
            Command::Register | Command::InSession { .. } | Command::EndSession { .. } => None,
        }
    }

    /// The command in the bytes of [`Command::InSession`].
    ///
    /// # Errors
    /// It is none, or about sessions itself.
    pub fn decode_inner(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let inner = Command::decode(bytes).map_err(|_| Refusal::Malformed)?;
        if inner.key_and_value().is_some() { Ok(inner) } else { Err(Refusal::Malformed) }
    }

    /// Checks the limits. `max_value` (bytes) may be lower than [`MAX_VALUE_BYTES`] where a node checks what clients send; the
    /// state machine itself checks against that constant.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn check(&self, max_value: usize) -> Result<(), Refusal> {
        if let Command::InSession { command, .. } = self {
            return Command::decode_inner(command)?.check(max_value);
        }
        let Some((key, value)) = self.key_and_value() else { return Ok(()) };
        check_key(key)?;
        let (size, limit) = (value.len(), max_value.min(MAX_VALUE_BYTES));
        if size > limit {
            return Err(Refusal::ValueTooLong { size: size as u64, limit: limit as u64 });
        }
        Ok(())
    }

    fn payload_bytes(&self) -> usize {
        match self {
            Command::InSession { command, .. } => command.len() + 24,
            other => other.key_and_value().map_or(0, |(key, value)| key.len() + value.len()),
        }
    }
}

impl Reply {
    /// Reads a reply.
    ///
    /// # Errors
    /// [`DecodeError`], also when bytes are left over.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        decode(bytes, "reply")
    }

    /// Appends the reply's bytes.
    pub fn encode_to(&self, buf: &mut BytesMut) {
        encode(self, buf);
    }
}

impl<'a> Query<'a> {
    /// Reads a query.
    ///
    /// # Errors
    /// [`DecodeError`], also when bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        decode(bytes, "query")
    }

    /// The bytes to send.
    pub fn encode(&self) -> Bytes {
        let mut buf = BytesMut::new();
        encode(self, &mut buf);
        buf.freeze()
    }
}

impl<'a> Answer<'a> {
    /// Reads an answer.
    ///
    /// # Errors
    /// [`DecodeError`], also when bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        decode(bytes, "answer")
    }

    /// Appends the answer's bytes.
    pub fn encode_to(&self, buf: &mut BytesMut) {
        encode(self, buf);
    }
}

pub(super) fn check_key(key: &[u8]) -> Result<(), Refusal> {
    match key.len() {
        0 => Err(Refusal::EmptyKey),
        size if size > MAX_KEY_BYTES => Err(Refusal::KeyTooLong { size: size as u64, limit: MAX_KEY_BYTES as u64 }),
        _ => Ok(()),
    }
}

/// Nothing may be left over: otherwise two byte strings would mean the same command, and damage could go unnoticed.
fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &'static str) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(DecodeError(what)),
    }
}

fn encode<T: Serialize>(value: &T, buf: &mut BytesMut) {
    postcard::serialize_with_flavor(value, Append(buf))
        .expect("writing to memory cannot fail, and these types serialize without an error of their own");
}

/// Lets postcard append to a buffer in whole slices.
struct Append<'a>(&'a mut BytesMut);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.extend_from_slice(&[data]);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logs on disk hold these bytes: a change here is a change of format.
    #[test]
    fn the_encoding_is_fixed() {
        let put = Command::Put { key: b"k", value: b"vv" };
        let delete = Command::Delete { key: b"k" };
        let cas = Command::Cas { key: b"k", expected: 300, value: b"v" };
        assert_eq!(&put.encode()[..], b"\x00\x01k\x02vv");
        assert_eq!(&delete.encode()[..], b"\x01\x01k");
        assert_eq!(&cas.encode()[..], b"\x02\x01k\xac\x02\x01v");
        let nested = put.encode();
        let in_session = Command::InSession { session: 300, serial: 2, first_unanswered: 1, command: &nested };
        assert_eq!(&Command::Register.encode()[..], b"\x03");
        assert_eq!(&in_session.encode()[..], b"\x04\xac\x02\x02\x01\x06\x00\x01k\x02vv");
        assert_eq!(&Command::EndSession { session: 1 }.encode()[..], b"\x05\x01");
        for command in [put, delete, cas, Command::Register, in_session, Command::EndSession { session: 9 }] {
            assert_eq!(Command::decode(&command.encode()), Ok(command));
        }
        let get = Query::Get { key: b"k" };
        let scan = Query::Scan { start: b"a", end: Some(serde_bytes::Bytes::new(b"b")), limit: 5 };
        assert_eq!(&get.encode()[..], b"\x00\x01k");
        assert_eq!(&scan.encode()[..], b"\x01\x01a\x01\x01b\x05");
        for query in [get, scan] {
            assert_eq!(Query::decode(&query.encode()), Ok(query));
        }
    }

    #[test]
    fn replies_and_answers_are_fixed_too() {
        let replies: [(Reply, &[u8]); 9] = [
            (Reply::Written { revision: 7 }, b"\x00\x07"),
            (Reply::Deleted { existed: true }, b"\x01\x01"),
            (Reply::Mismatch { current: 0 }, b"\x02\x00"),
            (Reply::Refused(Refusal::Malformed), b"\x03\x00"),
            (Reply::Refused(Refusal::EmptyKey), b"\x03\x01"),
            (Reply::Refused(Refusal::KeyTooLong { size: 5, limit: 4 }), b"\x03\x02\x05\x04"),
            (Reply::Refused(Refusal::SessionExpired), b"\x03\x04"),
            (Reply::Registered { session: 300 }, b"\x04\xac\x02"),
            (Reply::Ended, b"\x05"),
        ];
        for (reply, bytes) in replies {
            let mut buf = BytesMut::new();
            reply.encode_to(&mut buf);
            assert_eq!((&buf[..], Reply::decode(bytes)), (bytes, Ok(reply)));
        }
        let item = Item { key: b"k", revision: 2, value: b"v" };
        let answers: [(Answer, &[u8]); 4] = [
            (Answer::Absent, b"\x00"),
            (Answer::Value { revision: 1, value: b"v" }, b"\x01\x01\x01v"),
            (Answer::Items { more: true, items: vec![item] }, b"\x02\x01\x01\x01k\x02\x01v"),
            (Answer::Refused(Refusal::ValueTooLong { size: 9, limit: 8 }), b"\x03\x03\x09\x08"),
        ];
        for (answer, bytes) in answers {
            let mut buf = BytesMut::new();
            answer.encode_to(&mut buf);
            assert_eq!((&buf[..], Answer::decode(bytes)), (bytes, Ok(answer)));
        }
    }

    #[test]
    fn cuts_and_left_overs_are_refused() {
        let whole = Command::Cas { key: b"key", expected: 1 << 40, value: b"value" }.encode();
        for cut in 0..whole.len() {
            assert!(Command::decode(&whole[..cut]).is_err(), "cut {cut}");
        }
        let longer = [&whole[..], b"x"].concat();
        assert!(Command::decode(&longer).is_err());
        assert!(Command::decode(b"\x06\x01k").is_err(), "no such variant");
        assert!(Command::decode(b"\x01\xff\xff\xff\xff\x0fk").is_err(), "a length that is only claimed");
    }

    #[test]
    fn sessions_hold_commands_about_data_only() {
        let check = |command: &[u8]| {
            Command::InSession { session: 1, serial: 1, first_unanswered: 1, command }.check(MAX_VALUE_BYTES)
        };
        assert_eq!(check(&Command::Delete { key: b"k" }.encode()), Ok(()));
        assert_eq!(check(&Command::Delete { key: b"" }.encode()), Err(Refusal::EmptyKey));
        assert_eq!(check(&Command::Register.encode()), Err(Refusal::Malformed));
        assert_eq!(check(b"?"), Err(Refusal::Malformed));
    }

    #[test]
    fn limits_are_inclusive() {
        let key = vec![b'k'; MAX_KEY_BYTES + 1];
        assert_eq!(Command::Delete { key: &key[1..] }.check(0), Ok(()));
        assert_eq!(
            Command::Delete { key: &key }.check(0),
            Err(Refusal::KeyTooLong { size: MAX_KEY_BYTES as u64 + 1, limit: MAX_KEY_BYTES as u64 })
        );
        assert_eq!(Command::Delete { key: b"" }.check(0), Err(Refusal::EmptyKey));
        assert_eq!(Command::Put { key: b"k", value: b"12" }.check(2), Ok(()));
        assert_eq!(
            Command::Put { key: b"k", value: b"123" }.check(2),
            Err(Refusal::ValueTooLong { size: 3, limit: 2 })
        );
    }
}
