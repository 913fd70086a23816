//! The wire format of messages.
//!
//! A frame (see [`FrameSink`], [`Decoder`](crate::Decoder)) carries one [`Envelope`]: its header as postcard, and
//! behind it, for AppendEntries, the packed entries exactly as they lie in the leader's memory and on its disk. The
//! first frame of every stream is a [`Preface`]. The ALPN token names the version of all of this; `tests/golden` pins
//! it.

use bytes::{Bytes, BytesMut};
use raft_core::{
    AppendAck, AppendEntries, AppendReject, Entries, Envelope, GroupId, Heartbeat, HeartbeatReply, LogId, LogIndex,
    Message, NodeId, Quiesce, ReadIndex, ReadIndexReply, Segment, Term, TimeoutNow, VoteReply, VoteRequest,
};
use serde::{Deserialize, Serialize};

use crate::frame::{FRAME_HEADER, FrameError, FrameSink, LENGTH_BYTES};

/// Frame kinds. Never reuse a number.
mod kind {
    pub(super) const PREFACE: u8 = 0;
    pub(super) const PRE_VOTE: u8 = 1;
    pub(super) const PRE_VOTE_REPLY: u8 = 2;
    pub(super) const REQUEST_VOTE: u8 = 3;
    pub(super) const REQUEST_VOTE_REPLY: u8 = 4;
    pub(super) const APPEND_ENTRIES: u8 = 5;
    pub(super) const APPEND_ACK: u8 = 6;
    pub(super) const APPEND_REJECT: u8 = 7;
    pub(super) const HEARTBEAT: u8 = 8;
    pub(super) const HEARTBEAT_REPLY: u8 = 9;
    pub(super) const TIMEOUT_NOW: u8 = 10;
    pub(super) const READ_INDEX: u8 = 11;
    pub(super) const READ_INDEX_REPLY: u8 = 12;
    pub(super) const QUIESCE: u8 = 13;
}

/// Limit for the first frame of a stream, in bytes: nobody may make us buffer more before we know what the stream is
/// for.
pub(crate) const PREFACE_LIMIT: usize = 64;

/// What a stream between nodes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Channel {
    /// Everything but entries: votes, heartbeats, all replies. Goes ahead of everything else.
    Control,
    /// AppendEntries that carry entries.
    Append,
}

impl Channel {
    /// The channel on which a message travels.
    pub fn of(message: &Message) -> Channel {
        match message {
            Message::AppendEntries(append) if !append.entries.is_empty() => Channel::Append,
            _ => Channel::Control,
        }
    }

    /// A small number, for arrays.
    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// The first frame of every stream: says what it is for, and between whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preface {
    /// What the stream is for.
    pub channel: Channel,
    /// Who opened it.
    pub from: NodeId,
    /// For whom it is meant.
    pub to: NodeId,
    /// Names the data directory of who opened it: see [`NetConfig::incarnation`](crate::NetConfig::incarnation).
    pub incarnation: u128,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The beginning of a stream.
    Preface(Preface),
    /// A message for a group.
    Message(GroupId, Envelope),
}

/// Who, to whom, in which term: the same for all messages.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Address {
    from: NodeId,
    to: NodeId,
    term: Term,
}

/// AppendEntries without its entries, which travel raw.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct AppendHead {
    epoch: u64,
    seq: u64,
    prev_log: LogId,
    leader_commit: LogIndex,
}

/// Appends a preface to `sink`.
pub fn encode_preface(preface: Preface, sink: &mut FrameSink) {
    // A preface has some twenty bytes: it fits.
    let _ = sink.frame(kind::PREFACE, 0, PREFACE_LIMIT, |out| put(out, &preface), &[]);
}

/// Appends `envelope` as one frame to `sink` and returns its size in bytes; `None`, with nothing appended, when the
/// frame would have more than `limit` bytes.
pub fn encode(envelope: &Envelope, group: GroupId, limit: usize, sink: &mut FrameSink) -> Option<usize> {
    let address = Address { from: envelope.from, to: envelope.to, term: envelope.term };
    let mut plain = |kind, body: &dyn Fn(&mut BytesMut)| {
        sink.frame(
            kind,
            group.0,
            limit,
            |out| {
                put(out, &address);
                body(out);
            },
            &[],
        )
    };
    match &envelope.body {
        Message::PreVote(body) => plain(kind::PRE_VOTE, &|out| put(out, body)),
        Message::PreVoteReply(body) => plain(kind::PRE_VOTE_REPLY, &|out| put(out, body)),
        Message::RequestVote(body) => plain(kind::REQUEST_VOTE, &|out| put(out, body)),
        Message::RequestVoteReply(body) => plain(kind::REQUEST_VOTE_REPLY, &|out| put(out, body)),
        Message::AppendAck(body) => plain(kind::APPEND_ACK, &|out| put(out, body)),
        Message::AppendReject(body) => plain(kind::APPEND_REJECT, &|out| put(out, body)),
        Message::Heartbeat(body) => plain(kind::HEARTBEAT, &|out| put(out, body)),
        Message::HeartbeatReply(body) => plain(kind::HEARTBEAT_REPLY, &|out| put(out, body)),
        Message::TimeoutNow(body) => plain(kind::TIMEOUT_NOW, &|out| put(out, body)),
        Message::ReadIndex(body) => plain(kind::READ_INDEX, &|out| put(out, body)),
        Message::ReadIndexReply(body) => plain(kind::READ_INDEX_REPLY, &|out| put(out, body)),
        Message::Quiesce(body) => plain(kind::QUIESCE, &|out| put(out, body)),
        Message::AppendEntries(body) => {
            let AppendEntries { epoch, seq, prev_log, leader_commit, ref entries } = *body;
            let head = AppendHead { epoch, seq, prev_log, leader_commit };
            let write = |out: &mut BytesMut| {
                put(out, &address);
                put(out, &head);
            };
            let segments = entries.segments();
            if let [only] = segments {
                sink.frame(kind::APPEND_ENTRIES, group.0, limit, write, &[only.bytes()])
            } else {
                let payload: Vec<Bytes> = segments.iter().map(Segment::bytes).collect();
                sink.frame(kind::APPEND_ENTRIES, group.0, limit, write, &payload)
            }
        }
    }
}

/// Reads a frame that [`Decoder::next_frame`](crate::Decoder::next_frame) returned. Entries are validated, and stay
/// slices of `frame`.
///
/// # Errors
/// The frame is not one that [`encode`] or [`encode_preface`] makes.
pub fn decode(frame: &Bytes) -> Result<Decoded, FrameError> {
    let short = || FrameError::TooShort(frame.len());
    let (&kind, rest) = frame.split_first().ok_or_else(short)?;
    let (group, body) = rest.split_first_chunk::<8>().ok_or_else(short)?;
    let group = GroupId(u64::from_le_bytes(*group));
    if kind == kind::PREFACE {
        return Ok(Decoded::Preface(whole(kind, body)?));
    }
    if kind > kind::QUIESCE {
        return Err(FrameError::Kind(kind));
    }
    let (Address { from, to, term }, body) = part(kind, body)?;
    let body = match kind {
        kind::PRE_VOTE => Message::PreVote(whole::<VoteRequest>(kind, body)?),
        kind::PRE_VOTE_REPLY => Message::PreVoteReply(whole::<VoteReply>(kind, body)?),
        kind::REQUEST_VOTE => Message::RequestVote(whole::<VoteRequest>(kind, body)?),
        kind::REQUEST_VOTE_REPLY => Message::RequestVoteReply(whole::<VoteReply>(kind, body)?),
        kind::APPEND_ENTRIES => Message::AppendEntries(append_entries(frame, body)?),
        kind::APPEND_ACK => Message::AppendAck(whole::<AppendAck>(kind, body)?),
        kind::APPEND_REJECT => Message::AppendReject(whole::<AppendReject>(kind, body)?),
        kind::HEARTBEAT => Message::Heartbeat(whole::<Heartbeat>(kind, body)?),
        kind::HEARTBEAT_REPLY => Message::HeartbeatReply(whole::<HeartbeatReply>(kind, body)?),
        kind::TIMEOUT_NOW => Message::TimeoutNow(whole::<TimeoutNow>(kind, body)?),
        kind::READ_INDEX => Message::ReadIndex(whole::<ReadIndex>(kind, body)?),
        kind::READ_INDEX_REPLY => Message::ReadIndexReply(whole::<ReadIndexReply>(kind, body)?),
        kind::QUIESCE => Message::Quiesce(whole::<Quiesce>(kind, body)?),
        other => return Err(FrameError::Kind(other)),
    };
    Ok(Decoded::Message(group, Envelope { from, to, term, body }))
}

fn append_entries(frame: &Bytes, body: &[u8]) -> Result<AppendEntries, FrameError> {
    let (head, entries): (AppendHead, _) = part(kind::APPEND_ENTRIES, body)?;
    let AppendHead { epoch, seq, prev_log, leader_commit } = head;
    let packed = frame.slice(frame.len() - entries.len()..);
    let entries = Segment::unpack(prev_log.index.next(), packed)?.map(Entries::from).unwrap_or_default();
    Ok(AppendEntries { epoch, seq, prev_log, leader_commit, entries })
}

/// For an AppendEntries: the index of its first entry, and where in the frame its entries begin.
#[cfg(feature = "fuzzing")]
pub(crate) fn entries_in(frame: &[u8]) -> Option<(LogIndex, usize)> {
    let body = frame.get(FRAME_HEADER - LENGTH_BYTES..).filter(|_| frame[0] == kind::APPEND_ENTRIES)?;
    let (_, body) = part::<Address>(kind::APPEND_ENTRIES, body).ok()?;
    let (head, entries) = part::<AppendHead>(kind::APPEND_ENTRIES, body).ok()?;
    Some((head.prev_log.index.next(), frame.len() - entries.len()))
}

/// Size of the largest frame that an AppendEntries with `entry_bytes` bytes of packed entries can make, as the limit
/// counts it.
pub const fn append_frame_len(entry_bytes: usize) -> usize {
    // Eight varints of at most ten bytes each.
    FRAME_HEADER - LENGTH_BYTES + 80 + entry_bytes
}

fn put<T: Serialize>(out: &mut BytesMut, value: &T) {
    struct Tail<'a>(&'a mut BytesMut);
    impl postcard::ser_flavors::Flavor for Tail<'_> {
        type Output = ();
        fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
            self.0.extend_from_slice(&[byte]);
            Ok(())
        }
        fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
        fn finalize(self) -> postcard::Result<()> {
            Ok(())
        }
    }
    // Neither the buffer, which grows, nor our types, which have no custom serializers, can fail.
    let done = postcard::serialize_with_flavor(value, Tail(out));
    debug_assert!(done.is_ok());
}

fn part<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<(T, &'a [u8]), FrameError> {
    postcard::take_from_bytes(body).map_err(|_| FrameError::Malformed { kind, what: "the header does not parse" })
}

fn whole<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, FrameError> {
    match part(kind, body)? {
        (value, []) => Ok(value),
        _ => Err(FrameError::Malformed { kind, what: "bytes are left over" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Decoder;
    use proptest::prelude::*;
    use raft_core::EntryKind;

    fn id() -> impl Strategy<Value = LogId> {
        any::<(u64, u64)>().prop_map(|(t, i)| LogId::new(Term(t), LogIndex(i)))
    }

    fn entries() -> impl Strategy<Value = (LogId, Entries)> {
        let segment = (0u64..3, prop::collection::vec(prop::collection::vec(any::<u8>(), 0..6000), 1..4));
        (0u64..1 << 40, prop::collection::vec(segment, 0..4)).prop_map(|(prev, segments)| {
            let mut rope = Entries::new();
            let (mut term, mut first) = (Term(1), LogIndex(prev).next());
            for (more, payloads) in segments {
                term = Term(term.0 + more);
                let segment = Segment::pack(first, term, EntryKind::Command, &payloads).unwrap();
                first = segment.last_index().next();
                rope.push(segment).unwrap();
            }
            (LogId::new(Term(1), LogIndex(prev)), rope)
        })
    }

    fn message() -> impl Strategy<Value = Message> {
        let n = any::<u64>;
        prop_oneof![
            id().prop_map(|last_log| Message::PreVote(VoteRequest { last_log, transfer: false })),
            (id(), any::<bool>())
                .prop_map(|(last_log, transfer)| Message::RequestVote(VoteRequest { last_log, transfer })),
            id().prop_map(|last_log| Message::TimeoutNow(TimeoutNow { last_log })),
            (id(), n()).prop_map(|(last, vigil)| Message::Quiesce(Quiesce { last, vigil })),
            n().prop_map(|id| Message::ReadIndex(ReadIndex { id })),
            (n(), n()).prop_map(|(id, i)| Message::ReadIndexReply(ReadIndexReply { id, index: LogIndex(i) })),
            any::<(u64, bool)>()
                .prop_map(|(t, granted)| Message::PreVoteReply(VoteReply { election: Term(t), granted })),
            any::<(u64, bool)>()
                .prop_map(|(t, granted)| Message::RequestVoteReply(VoteReply { election: Term(t), granted })),
            (n(), n(), n(), entries()).prop_map(|(epoch, seq, commit, (prev_log, entries))| {
                Message::AppendEntries(AppendEntries { epoch, seq, prev_log, leader_commit: LogIndex(commit), entries })
            }),
            any::<(u64, u64)>()
                .prop_map(|(epoch, i)| Message::AppendAck(AppendAck { epoch, match_index: LogIndex(i) })),
            (n(), n(), n(), n(), prop::collection::vec(id(), 0..40)).prop_map(|(epoch, seq, last, commit, runs)| {
                let (last_index, commit_index) = (LogIndex(last), LogIndex(commit));
                Message::AppendReject(AppendReject { epoch, seq, last_index, commit_index, runs })
            }),
            any::<(u64, u64, Option<u64>)>().prop_map(|(epoch, i, round)| Message::Heartbeat(Heartbeat {
                epoch,
                commit: LogIndex(i),
                round
            })),
            any::<(u64, u64, u64, u64, u32, u8, u64)>().prop_map(
                |(epoch, round, i, m, promise_ms, priority, vigil)| {
                    let (received, match_index) = (LogIndex(i), LogIndex(m));
                    Message::HeartbeatReply(HeartbeatReply {
                        epoch,
                        round,
                        received,
                        match_index,
                        promise_ms,
                        priority,
                        vigil,
                    })
                }
            ),
        ]
    }

    fn envelope() -> impl Strategy<Value = (GroupId, Envelope)> {
        (any::<[u64; 4]>(), message()).prop_map(|([group, from, to, term], body)| {
            (GroupId(group), Envelope { from: NodeId(from), to: NodeId(to), term: Term(term), body })
        })
    }

    fn bytes_of(sink: &mut FrameSink) -> Bytes {
        let mut chunks = Vec::new();
        sink.take_into(&mut chunks);
        chunks.concat().into()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(messages in prop::collection::vec(envelope(), 1..5)) {
            let mut sink = FrameSink::new();
            let mut total = 0;
            for (group, envelope) in &messages {
                total += encode(envelope, *group, usize::MAX, &mut sink).unwrap();
            }
            prop_assert_eq!(total, sink.len());
            let mut decoder = Decoder::new(1 << 20);
            decoder.push(bytes_of(&mut sink));
            for (group, envelope) in messages {
                let frame = decoder.next_frame().unwrap().unwrap();
                if let Message::AppendEntries(append) = &envelope.body {
                    prop_assert!(frame.len() <= append_frame_len(append.entries.byte_len()));
                }
                prop_assert_eq!(decode(&frame), Ok(Decoded::Message(group, envelope)));
            }
            prop_assert!(!decoder.is_mid_frame());
        }

        #[test]
        fn arbitrary_frames_never_panic(kind in 0u8..16, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frame = vec![kind];
            frame.extend_from_slice(&bytes);
            let _ = decode(&frame.into());
        }

        #[test]
        fn a_frame_that_lacks_its_end_is_refused((group, envelope) in envelope(), cut in any::<prop::sample::Index>()) {
            let mut sink = FrameSink::new();
            encode(&envelope, group, usize::MAX, &mut sink).unwrap();
            let frame = bytes_of(&mut sink).slice(LENGTH_BYTES..);
            let cut = cut.index(frame.len());
            // An append that is cut between two entries is a shorter append; everything else must be noticed.
            match decode(&frame.slice(..cut)) {
                Err(_) => {}
                Ok(Decoded::Message(_, Envelope { body: Message::AppendEntries(short), .. })) => {
                    let Message::AppendEntries(whole) = envelope.body else { panic!("kind changed") };
                    prop_assert!(short.entries.len() < whole.entries.len());
                }
                Ok(other) => prop_assert!(false, "accepted {other:?}"),
            }
        }
    }

    #[test]
    fn entries_are_slices_of_the_frame() {
        let segment = Segment::pack(LogIndex(8), Term(2), EntryKind::Command, &[vec![1; 9000]]).unwrap();
        let body = Message::AppendEntries(AppendEntries {
            epoch: 1,
            seq: 2,
            prev_log: LogId::new(Term(1), LogIndex(7)),
            leader_commit: LogIndex(7),
            entries: segment.into(),
        });
        let envelope = Envelope { from: NodeId(1), to: NodeId(2), term: Term(2), body };
        let mut sink = FrameSink::new();
        encode(&envelope, GroupId::FIRST, usize::MAX, &mut sink).unwrap();
        let frame = bytes_of(&mut sink).slice(LENGTH_BYTES..);
        let Ok(Decoded::Message(_, Envelope { body: Message::AppendEntries(append), .. })) = decode(&frame) else {
            panic!("not an append")
        };
        let packed = append.entries.segments()[0].bytes();
        assert!(frame.as_ptr_range().contains(&packed.as_ptr()));
    }

    #[test]
    fn an_unknown_kind_and_a_damaged_entry_are_refused() {
        assert_eq!(decode(&Bytes::from_static(&[77, 0, 0, 0, 0, 0, 0, 0, 0])), Err(FrameError::Kind(77)));
        assert_eq!(decode(&Bytes::from_static(&[1, 0])), Err(FrameError::TooShort(2)));
        let segment = Segment::pack(LogIndex(1), Term(2), EntryKind::Command, &[b"x"]).unwrap();
        let append = AppendEntries {
            epoch: 0,
            seq: 0,
            prev_log: LogId::ZERO,
            leader_commit: LogIndex::ZERO,
            entries: segment.into(),
        };
        let body = Message::AppendEntries(append);
        let mut sink = FrameSink::new();
        let envelope = Envelope { from: NodeId(1), to: NodeId(2), term: Term(2), body };
        encode(&envelope, GroupId::FIRST, usize::MAX, &mut sink).unwrap();
        let mut frame = bytes_of(&mut sink)[LENGTH_BYTES..].to_vec();
        *frame.last_mut().unwrap() ^= 1;
        assert!(matches!(decode(&frame.into()), Err(FrameError::Entries(_))));
    }
}
