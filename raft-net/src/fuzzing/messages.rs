//! A frame, read as a message.

use bytes::Bytes;
use raft_core::fuzzing::with_checksums;
use raft_core::{Envelope, Message};

use crate::codec::{self, Channel, Decoded, append_frame_len};
use crate::frame::{Decoder, FrameSink, LENGTH_BYTES};

/// What is decoded, encoded and decoded again is the same, and its frame is no longer than the one that was read. Entries must have been
/// validated.
pub fn messages(data: &[u8]) -> bool {
    let raw = Bytes::copy_from_slice(data);
    let frame = mended(&raw).unwrap_or(raw);
    let Ok(decoded) = codec::decode(&frame) else { return false };
    let mut sink = FrameSink::new();
    match &decoded {
        Decoded::Preface(preface) => codec::encode_preface(*preface, &mut sink),
        Decoded::Message(group, envelope) => {
            let size = codec::encode(envelope, *group, usize::MAX, &mut sink).expect("it came in a frame");
            assert_eq!(size, sink.len());
            let mut small = FrameSink::new();
            assert_eq!(codec::encode(envelope, *group, size - LENGTH_BYTES - 1, &mut small), None);
            assert!(small.is_empty(), "an oversized frame leaves a trace");
            check(envelope, frame.len());
        }
    }
    let again = only_frame(&mut sink);
    assert!(again.len() <= frame.len(), "longer than what was received: {decoded:?}");
    let second = codec::decode(&again);
    // A preface has no group to keep.
    assert_eq!(second.as_ref(), Ok(&decoded));
    true
}

fn check(envelope: &Envelope, size: usize) {
    let Message::AppendEntries(append) = &envelope.body else {
        assert_eq!(Channel::of(&envelope.body), Channel::Control);
        return;
    };
    assert_eq!(Channel::of(&envelope.body) == Channel::Append, !append.entries.is_empty());
    assert!(append.entries.first_index().is_none_or(|first| first == append.prev_log.index.next()));
    assert!(size <= append_frame_len(append.entries.byte_len()), "the limit of a frame is too small for its entries");
}

/// The frame with the checksums of its entries put right.
fn mended(frame: &Bytes) -> Option<Bytes> {
    let (first, at) = codec::entries_in(frame)?;
    let mut bytes = frame[..at].to_vec();
    bytes.extend(with_checksums(first, &frame[at..]));
    Some(bytes.into())
}

fn only_frame(sink: &mut FrameSink) -> Bytes {
    let mut chunks = Vec::new();
    sink.take_into(&mut chunks);
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push(chunks.concat().into());
    let frame = decoder.next_frame().expect("a sink makes frames").expect("one was encoded");
    assert!(!decoder.is_mid_frame(), "and only one");
    frame
}
