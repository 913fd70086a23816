//! Snapshots between nodes: what whoever sends and receives them brings, and what goes before the bytes.
//!
//! A snapshot travels on a bidirectional QUIC stream of its own, of the lowest priority:
//!
//! ```text
//! sender     frame with a header: from, to, term, epoch, last entry, id, size, membership
//! receiver   0 u8, offset u64 LE   (it has the bytes before that one)   or a refusal: 1 u8, length u16 LE, reason
//! sender     the bytes from the offset to the end, then the end of the stream
//! receiver   0 u8                  (all is there and has been checked)  or a refusal
//! ```
//!
//! Sender and receiver each hold one chunk in memory, and QUIC its windows: whoever is slower makes the other one wait.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut};
use raft_core::{GroupId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, Term};

use crate::frame::{FRAME_HEADER, FrameError, FrameSink, LENGTH_BYTES};

/// Bytes that are read, sent and written in one go.
pub const SNAPSHOT_CHUNK: usize = 64 << 10;
/// Longest header, in bytes: nearly all of it is what is known of the members.
pub(crate) const HEADER_LIMIT: usize = 1 << 20;
/// Longest reason for a refusal, in bytes.
pub(crate) const REASON_LIMIT: usize = 1 << 10;
/// Kind of the frame with the header; among those of [`codec`](crate::decode), and never reused.
const KIND: u8 = 16;

/// What a sender says about a snapshot before it sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Whose state it is.
    pub group: GroupId,
    /// The sender's term when it was asked to send.
    pub term: Term,
    /// Names this life of the receiver; to be echoed.
    pub epoch: u64,
    /// Last entry, and members as of then.
    pub meta: SnapshotMeta,
    /// Tells these bytes from all others: a transfer that broke off goes on only if it is the same.
    pub id: u64,
    /// Number of bytes.
    pub size: u64,
}

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// There is no connection to the receiver, or it was lost. Try again when there is one.
    #[error("the connection to the receiver is gone: {0}")]
    Lost(String),
    /// The receiver does not want it, or what it received fails its check.
    #[error("the receiver refuses: {0}")]
    Refused(String),
    /// Nothing has moved for [`Limits::snapshot_stall`](crate::Limits::snapshot_stall).
    #[error("nothing moved for too long")]
    Stalled,
    /// The bytes to be sent cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Source(#[source] io::Error),
    /// The receiver answers with something that is no answer.
    #[error("the receiver's answer makes no sense: {0}")]
    Nonsense(&'static str),
    /// This transport cannot send snapshots.
    #[error("this transport cannot send snapshots")]
    Unsupported,
}

/// The bytes of a snapshot that is sent. Called on threads that may wait.
pub trait SnapshotSource: Send {
    /// Reads the bytes from `offset` on, as many as there are and `buf` takes.
    ///
    /// # Errors
    /// They cannot be read: the transfer ends.
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

/// Why a snapshot is not taken; the sender is told.
pub type Refusal = Box<dyn std::error::Error + Send + Sync>;

/// Takes in snapshots. Called on threads that may wait.
pub trait SnapshotReceiver: Send + Sync + fmt::Debug {
    /// `from` wants to send this. The answer says how many of its bytes are here already, and who takes the rest.
    ///
    /// # Errors
    /// It is not wanted.
    fn begin(&self, from: NodeId, header: &SnapshotHeader) -> Result<(u64, Box<dyn SnapshotSink>), Refusal>;
}

/// Takes the bytes of one snapshot, in order. When it is dropped unfinished, what it has may be of use for another attempt.
pub trait SnapshotSink: Send {
    /// The next bytes.
    ///
    /// # Errors
    /// They cannot be kept: the transfer ends.
    fn write(&mut self, chunk: &[u8]) -> Result<(), Refusal>;

    /// All bytes are here.
    ///
    /// # Errors
    /// They are not what they should be.
    fn finish(self: Box<Self>) -> Result<(), Refusal>;
}

/// How far a transfer is.
#[derive(Debug, Default)]
pub struct SnapshotProgress {
    moved: AtomicU64,
    total: AtomicU64,
}

impl SnapshotProgress {
    /// A transfer of so many bytes that has not begun.
    pub fn of(total: u64) -> Arc<Self> {
        Arc::new(SnapshotProgress { moved: AtomicU64::new(0), total: AtomicU64::new(total) })
    }

    /// The bytes before this one have been sent, or received.
    pub fn reach(&self, offset: u64) {
        self.moved.store(offset, Ordering::Relaxed);
    }

    /// Bytes sent or received, and bytes in all.
    pub fn get(&self) -> (u64, u64) {
        (self.moved.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// A snapshot to be sent.
pub struct OutgoingSnapshot {
    /// To whom.
    pub to: NodeId,
    /// What it is.
    pub header: SnapshotHeader,
    /// Where its bytes are.
    pub source: Box<dyn SnapshotSource>,
    /// Is kept up to date.
    pub progress: Arc<SnapshotProgress>,
    /// Called exactly once, from any thread: the receiver has all of it and has checked it, or why not.
    pub done: Box<dyn FnOnce(Result<(), SnapshotError>) + Send>,
}

impl fmt::Debug for OutgoingSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutgoingSnapshot").field("to", &self.to).field("header", &self.header).finish_non_exhaustive()
    }
}

/// Appends the header as one frame. `false`, with nothing appended, when it is too long.
pub fn encode_snapshot_header(from: NodeId, to: NodeId, header: &SnapshotHeader, sink: &mut FrameSink) -> bool {
    let SnapshotHeader { group, term, epoch, ref meta, id, size } = *header;
    let write = |out: &mut bytes::BytesMut| {
        for number in [from.0, to.0, term.0, epoch, meta.last.term.0, meta.last.index.0, id, size] {
            out.put_u64_le(number);
        }
        out.put_slice(&meta.membership.encode());
    };
    sink.frame(KIND, group.0, HEADER_LIMIT, write, &[]).is_some()
}

/// Understands a frame (without its length field) that [`encode_snapshot_header`] made: from whom, for whom, and what.
///
/// # Errors
/// It is none: the peer is broken or hostile.
pub fn decode_snapshot_header(frame: &[u8]) -> Result<(NodeId, NodeId, SnapshotHeader), FrameError> {
    let Some((&[kind, ref group @ ..], mut body)) = frame.split_first_chunk::<{ FRAME_HEADER - LENGTH_BYTES }>() else {
        return Err(FrameError::TooShort(frame.len()));
    };
    if kind != KIND {
        return Err(FrameError::Kind(kind));
    }
    let malformed = |what| FrameError::Malformed { kind, what };
    let mut number = || body.try_get_u64_le().map_err(|_| malformed("it ends too early"));
    let (from, to, term, epoch) = (NodeId(number()?), NodeId(number()?), Term(number()?), number()?);
    let (last_term, last_index) = (Term(number()?), LogIndex(number()?));
    let (id, size) = (number()?, number()?);
    if term > Term::MAX || last_term > term || !(LogIndex(1)..=LogIndex::MAX).contains(&last_index) {
        return Err(malformed("a term or an index is beyond all belief"));
    }
    let membership = Membership::decode(body).map_err(|_| malformed("it has no membership"))?;
    let meta = SnapshotMeta { last: LogId::new(last_term, last_index), membership };
    let group = GroupId(u64::from_le_bytes(*group));
    Ok((from, to, SnapshotHeader { group, term, epoch, meta, id, size }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn header() -> SnapshotHeader {
        let membership = Membership::of_voters([1, 2, 3].map(NodeId)).with_info(NodeId(2), Bytes::from_static(b"two"));
        let meta = SnapshotMeta { last: LogId::new(Term(4), LogIndex(1000)), membership };
        SnapshotHeader { group: GroupId(7), term: Term(5), epoch: 9, meta, id: 0xABCD, size: 1 << 40 }
    }

    fn frame(header: &SnapshotHeader) -> Vec<u8> {
        let mut sink = FrameSink::new();
        assert!(encode_snapshot_header(NodeId(1), NodeId(2), header, &mut sink));
        let mut chunks = Vec::new();
        sink.take_into(&mut chunks);
        chunks.concat()[LENGTH_BYTES..].to_vec()
    }

    #[test]
    fn a_header_comes_back_and_its_layout_stays() {
        let bytes = frame(&header());
        assert_eq!(decode_snapshot_header(&bytes), Ok((NodeId(1), NodeId(2), header())));
        assert_eq!(bytes[..17], [16, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes.len(), 9 + 64 + header().meta.membership.encode().len());
        for cut in 0..bytes.len() {
            assert!(decode_snapshot_header(&bytes[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let last = |term, index| SnapshotMeta { last: LogId::new(Term(term), LogIndex(index)), ..header().meta };
        for bad in [
            SnapshotHeader { meta: last(4, 0), ..header() },
            SnapshotHeader { meta: last(6, 9), ..header() },
            SnapshotHeader { meta: last(4, u64::MAX), ..header() },
            SnapshotHeader { term: Term(u64::MAX), ..header() },
        ] {
            assert!(matches!(decode_snapshot_header(&frame(&bad)), Err(FrameError::Malformed { .. })), "{bad:?}");
        }
        let huge = header().meta.membership.with_info(NodeId(1), vec![1; HEADER_LIMIT].into());
        let huge = SnapshotHeader { meta: SnapshotMeta { membership: huge, ..header().meta }, ..header() };
        let mut sink = FrameSink::new();
        assert!(!encode_snapshot_header(NodeId(1), NodeId(2), &huge, &mut sink) && sink.is_empty());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_no_harm(mut bytes in prop::collection::vec(any::<u8>(), 0..200), near in any::<bool>(), at in 0..73usize, to in any::<u8>()) {
            if near {
                bytes = frame(&header());
                bytes[at] = to;
            }
            if let Ok((from, to, header)) = decode_snapshot_header(&bytes) {
                let mut sink = FrameSink::new();
                prop_assert!(encode_snapshot_header(from, to, &header, &mut sink));
                let mut chunks = Vec::new();
                sink.take_into(&mut chunks);
                prop_assert_eq!(&chunks.concat()[LENGTH_BYTES..], &bytes[..]);
            }
        }
    }
}
