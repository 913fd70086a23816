//! Frames on a byte stream: cutting them out of what arrives, collecting them for what leaves.
//!
//! ```text
//! length u32 LE | kind u8 | group u64 LE | body
//! ```
//!
//! `length` counts everything after itself. This module knows nothing of what the body means; that is
//! [`codec`](crate::codec)'s business.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes of the length field.
pub(crate) const LENGTH_BYTES: usize = 4;
/// Bytes of a frame before its body, the length field included.
pub const FRAME_HEADER: usize = LENGTH_BYTES + 1 + 8;

/// Why bytes are not a frame or not a message. The peer is broken or hostile: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The length field claims more than is allowed here. Nothing was allocated for it.
    #[error("frame of {length} bytes is over the limit of {limit}")]
    TooLarge {
        /// What was claimed, in bytes.
        length: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// The length field leaves no room for kind and group.
    #[error("frame of {0} bytes is too short for a header")]
    TooShort(usize),
    /// No such kind of frame in this version.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// The body is not what its kind promises.
    #[error("malformed frame of kind {kind}: {what}")]
    Malformed {
        /// Kind of the frame.
        kind: u8,
        /// What is wrong.
        what: &'static str,
    },
    /// The packed entries are damaged.
    #[error("entries in a frame are damaged: {0}")]
    Entries(#[from] raft_core::EntryError),
    /// A stream ended in the middle of a frame, or ended at all where it must not.
    #[error("the stream ended")]
    Ended,
}

/// Cuts frames out of a byte stream, whatever the pieces are in which it arrives.
///
/// Invariants: it holds no more than one unfinished frame besides the piece that was pushed last, and never
/// allocates more than twice what has arrived of that frame; a frame that arrives in one piece is not copied at all,
/// any other is gathered in a buffer of its own.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    /// The beginning of a frame whose end has not arrived.
    partial: BytesMut,
    /// What was pushed and not looked at yet. Non-empty only until the next call to `next_frame`s returns `None`.
    piece: Bytes,
}

impl Decoder {
    /// A decoder that refuses frames of more than `limit` bytes (the length field not counted).
    pub fn new(limit: usize) -> Self {
        Decoder { limit, partial: BytesMut::new(), piece: Bytes::new() }
    }

    /// Sets another limit for the frames that follow.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Takes the next piece of the stream. Call [`next_frame`](Self::next_frame) until it returns `None` before the
    /// next one.
    pub fn push(&mut self, piece: Bytes) {
        if self.piece.is_empty() {
            self.piece = piece;
        } else {
            // The caller did not drain us. Correct all the same, at the price of a copy.
            let mut joined = BytesMut::with_capacity(self.piece.len() + piece.len());
            joined.extend_from_slice(&self.piece);
            joined.extend_from_slice(&piece);
            self.piece = joined.freeze();
        }
    }

    /// The next complete frame, from its kind on, or `None` until more has been pushed. After an error the stream
    /// cannot be followed any more: every further call fails.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] and [`FrameError::TooShort`].
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, FrameError> {
        if self.partial.is_empty() {
            if let Some(total) = self.total_length(&self.piece)?
                && self.piece.len() >= total
            {
                let mut frame = self.piece.split_to(total);
                let _length = frame.split_to(LENGTH_BYTES);
                return Ok(Some(frame));
            }
        } else {
            if self.partial.len() < LENGTH_BYTES {
                self.take(LENGTH_BYTES);
            }
            if let Some(total) = self.total_length(&self.partial)? {
                self.take(total);
                if self.partial.len() == total {
                    let mut frame = std::mem::take(&mut self.partial).freeze();
                    let _length = frame.split_to(LENGTH_BYTES);
                    return Ok(Some(frame));
                }
            }
        }
        // Whatever is left belongs to a frame that is not complete.
        let rest = std::mem::take(&mut self.piece);
        self.partial.extend_from_slice(&rest);
        Ok(None)
    }

    /// Whether the stream stands in the middle of a frame.
    pub fn is_mid_frame(&self) -> bool {
        !self.partial.is_empty() || !self.piece.is_empty()
    }

    /// Bytes allocated for the unfinished frame.
    pub fn allocated(&self) -> usize {
        self.partial.capacity()
    }

    /// Size of the frame that `bytes` begin with, its length field included, once that is known.
    fn total_length(&self, bytes: &[u8]) -> Result<Option<usize>, FrameError> {
        let Some(length) = bytes.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge { length, limit: self.limit });
        }
        if length < FRAME_HEADER - LENGTH_BYTES {
            return Err(FrameError::TooShort(length));
        }
        Ok(Some(LENGTH_BYTES + length))
    }

    /// Moves from `piece` to `partial` until that holds `upto` bytes, as far as there are any.
    fn take(&mut self, upto: usize) {
        let n = upto.saturating_sub(self.partial.len()).min(self.piece.len());
        let part = self.piece.split_to(n);
        // Grow with what has arrived, not with what was claimed; and exactly, once the end is near.
        if self.partial.capacity() - self.partial.len() < n {
            let missing = upto - self.partial.len();
            self.partial.reserve(missing.min(n.max(self.partial.len())));
        }
        self.partial.extend_from_slice(&part);
    }
}

/// Collects encoded frames for one stream. Small pieces are copied together, large payloads stay where they are.
///
/// Invariant: `chunks` followed by `tail` are the bytes to send, and `len` is their number.
#[derive(Debug, Default)]
pub struct FrameSink {
    chunks: Vec<Bytes>,
    tail: BytesMut,
    len: usize,
}

impl FrameSink {
    /// Payloads from this size on are sent from where they lie; a copy of less costs no more than the reference count
    /// and the bookkeeping of a chunk of its own.
    const BY_REFERENCE: usize = 4096;
    /// Memory is taken in blocks of this size.
    const BLOCK: usize = 16 * 1024;

    /// An empty sink.
    pub fn new() -> Self {
        FrameSink::default()
    }

    /// Bytes collected.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is collected.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything collected.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.tail.clear();
        self.len = 0;
    }

    /// Moves everything collected to the end of `out`.
    pub fn take_into(&mut self, out: &mut Vec<Bytes>) {
        self.cut();
        self.len = 0;
        if out.is_empty() {
            std::mem::swap(out, &mut self.chunks);
        } else {
            out.append(&mut self.chunks);
        }
    }

    /// Appends a frame: header, a body that `write` produces, and `payload` after it. Returns the frame's size in
    /// bytes, or `None`, with nothing appended, when it exceeds `limit`.
    pub(crate) fn frame(
        &mut self,
        kind: u8,
        group: u64,
        limit: usize,
        write: impl FnOnce(&mut BytesMut),
        payload: &[Bytes],
    ) -> Option<usize> {
        if self.tail.capacity() - self.tail.len() < FRAME_HEADER + 128 {
            self.cut();
            self.tail.reserve(Self::BLOCK);
        }
        let start = self.tail.len();
        self.tail.put_u32_le(0);
        self.tail.put_u8(kind);
        self.tail.put_u64_le(group);
        write(&mut self.tail);
        let payload_len: usize = payload.iter().map(Bytes::len).sum();
        let length = self.tail.len() - start - LENGTH_BYTES + payload_len;
        let Some(length32) = u32::try_from(length).ok().filter(|_| length <= limit) else {
            self.tail.truncate(start);
            return None;
        };
        self.tail[start..start + LENGTH_BYTES].copy_from_slice(&length32.to_le_bytes());
        for part in payload {
            if part.len() < Self::BY_REFERENCE {
                self.tail.extend_from_slice(part);
            } else {
                self.cut();
                self.chunks.push(part.clone());
            }
        }
        self.len += LENGTH_BYTES + length;
        Some(LENGTH_BYTES + length)
    }

    /// Makes what is in `tail` a chunk.
    fn cut(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stream(bodies: &[Vec<u8>]) -> Vec<u8> {
        let mut sink = FrameSink::new();
        for (i, body) in bodies.iter().enumerate() {
            let payload = [Bytes::from(body.clone())];
            assert!(sink.frame(7, i as u64, usize::MAX, |_| (), &payload).is_some());
        }
        let mut chunks = Vec::new();
        let len = sink.len();
        sink.take_into(&mut chunks);
        assert!(sink.is_empty());
        let bytes = chunks.concat();
        assert_eq!(bytes.len(), len);
        bytes
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..6),
            cuts in prop::collection::vec(1usize..3000, 1..8),
        ) {
            let bytes = Bytes::from(stream(&bodies));
            let mut decoder = Decoder::new(10_000);
            let (mut at, mut seen) = (0, Vec::new());
            for cut in cuts.iter().cycle() {
                let end = (at + cut).min(bytes.len());
                decoder.push(bytes.slice(at..end));
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame[FRAME_HEADER - LENGTH_BYTES..].to_vec());
                }
                at = end;
                if at == bytes.len() {
                    break;
                }
            }
            prop_assert_eq!(seen, bodies);
            prop_assert!(!decoder.is_mid_frame());
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_never_allocate_ahead(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..20),
        ) {
            let mut decoder = Decoder::new(1 << 30);
            let mut arrived = 0;
            for piece in pieces {
                arrived += piece.len();
                decoder.push(piece.into());
                loop {
                    match decoder.next_frame() {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(decoder.allocated() <= 2 * arrived + 64);
            }
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_anything_is_allocated() {
        let mut decoder = Decoder::new(100);
        decoder.push(Bytes::from_static(&[101, 0]));
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(Bytes::from_static(&[0, 0]));
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLarge { length: 101, limit: 100 }));
        assert!(decoder.allocated() <= 64);
        assert!(decoder.next_frame().is_err(), "a lost stream stays lost");
    }

    #[test]
    fn a_claimed_length_costs_nothing() {
        let mut decoder = Decoder::new(1 << 30);
        decoder.push(Bytes::copy_from_slice(&(1u32 << 30).to_le_bytes()));
        assert_eq!(decoder.next_frame(), Ok(None));
        decoder.push(Bytes::from_static(&[1, 2, 3]));
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.allocated() < 1024, "{}", decoder.allocated());
        assert!(decoder.is_mid_frame());
    }

    #[test]
    fn a_whole_frame_is_not_copied() {
        let bytes = Bytes::from(stream(&[vec![1; 500], vec![2; 500]]));
        let mut decoder = Decoder::new(10_000);
        decoder.push(bytes.clone());
        let first = decoder.next_frame().unwrap().unwrap();
        assert_eq!(first.as_ptr(), bytes[LENGTH_BYTES..].as_ptr());
        assert_eq!(decoder.next_frame().unwrap().unwrap().len(), 509);
    }

    #[test]
    fn large_payloads_are_not_copied_and_oversized_frames_leave_no_trace() {
        let large = Bytes::from(vec![3; 100_000]);
        let mut sink = FrameSink::new();
        assert_eq!(sink.frame(1, 1, 50_000, |_| (), std::slice::from_ref(&large)), None);
        assert!(sink.is_empty());
        sink.frame(1, 1, 200_000, |_| (), std::slice::from_ref(&large)).unwrap();
        let mut chunks = Vec::new();
        sink.take_into(&mut chunks);
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[1].as_ptr(), large.as_ptr());
    }
}
