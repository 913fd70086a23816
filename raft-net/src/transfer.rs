//! Snapshots over QUIC: both ends of a transfer. See [`snapshot`](crate::snapshot) for what goes over the wire.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use quinn::{Connection, RecvStream, SendStream};
use raft_core::NodeId;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::error::CloseCode;
use crate::frame::{FrameError, FrameSink, LENGTH_BYTES};
use crate::link::Link;
use crate::metrics::Reject;
use crate::quic::Shared;
use crate::snapshot::{
    HEADER_LIMIT, OutgoingSnapshot, REASON_LIMIT, Refusal, SNAPSHOT_CHUNK, SnapshotError, SnapshotHeader,
    SnapshotSource, decode_snapshot_header, encode_snapshot_header,
};

/// Votes and heartbeats have 10, entries 0.
const PRIORITY: i32 = -10;

/// Sends a snapshot over the connection that stands at present, and reports how it went.
pub(crate) async fn send(shared: Arc<Shared>, link: Arc<Link>, outgoing: OutgoingSnapshot) {
    let OutgoingSnapshot { to, header, source, progress, done } = outgoing;
    let sent = async {
        // More than a few at a time would only slow one another down. The semaphore is never closed.
        let _permit = shared.sending.acquire().await;
        let connection = link.connection().ok_or_else(|| SnapshotError::Lost("not connected".into()))?;
        let mut transfer = Sending { shared: &shared, connection, source: Some(source), header: &header, to };
        transfer.run(|offset| progress.reach(offset)).await
    };
    done(sent.await);
}

struct Sending<'a> {
    shared: &'a Shared,
    connection: Connection,
    /// On its way to a thread that reads, now and then.
    source: Option<Box<dyn SnapshotSource>>,
    header: &'a SnapshotHeader,
    to: NodeId,
}

fn lost(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Lost(error.to_string())
}

impl Sending<'_> {
    async fn run(&mut self, reached: impl Fn(u64)) -> Result<(), SnapshotError> {
        let stall = self.shared.limits.snapshot_stall;
        let opened = timeout(stall, self.connection.open_bi()).await.map_err(|_| SnapshotError::Stalled)?;
        let (mut stream, mut answers) = opened.map_err(lost)?;
        let _ = stream.set_priority(PRIORITY);
        let mut sink = FrameSink::new();
        if !encode_snapshot_header(self.shared.node, self.to, self.header, &mut sink) {
            return Err(SnapshotError::Refused("what is known of the members does not fit into a header".into()));
        }
        let mut head = Vec::new();
        sink.take_into(&mut head);
        within(stall, stream.write_all_chunks(&mut head)).await?;
        let mut offset = [0; 8];
        read_verdict(&mut answers, stall, Some(&mut offset)).await?;
        let begin = u64::from_le_bytes(offset);
        if begin > self.header.size {
            return Err(SnapshotError::Nonsense("it has more than there is"));
        }
        reached(begin);
        self.send_from(begin, &mut stream, &reached).await.or_else(|error| {
            // The receiver may have said why it wants no more; that is asked for below.
            if matches!(error, SnapshotError::Lost(_)) && self.connection.close_reason().is_none() {
                Ok(())
            } else {
                Err(error)
            }
        })?;
        let _ = stream.finish();
        // It checks all of it before it answers: that takes a while.
        read_verdict(&mut answers, stall.saturating_mul(10), None).await
    }

    async fn send_from(
        &mut self,
        mut offset: u64,
        stream: &mut SendStream,
        reached: &impl Fn(u64),
    ) -> Result<(), SnapshotError> {
        let (begun, first) = (Instant::now(), offset);
        let mut chunk = vec![0; SNAPSHOT_CHUNK];
        while offset < self.header.size {
            let wanted = usize::try_from(self.header.size - offset).unwrap_or(usize::MAX).min(SNAPSHOT_CHUNK);
            chunk = self.read(offset, chunk, wanted).await?;
            within(self.shared.limits.snapshot_stall, stream.write_all(&chunk[..wanted])).await?;
            offset += wanted as u64;
            reached(offset);
            let rate = self.shared.limits.snapshot_bytes_per_second;
            if rate > 0 {
                let due = begun + Duration::from_secs_f64((offset - first) as f64 / rate as f64);
                tokio::time::sleep_until(due.into()).await;
            }
        }
        Ok(())
    }

    /// Reads exactly `wanted` bytes, on a thread that may wait for the disk.
    async fn read(&mut self, offset: u64, mut chunk: Vec<u8>, wanted: usize) -> Result<Vec<u8>, SnapshotError> {
        let Some(mut source) = self.source.take() else { return Err(SnapshotError::Source(io::Error::other("gone"))) };
        let read = spawn_blocking(move || {
            let mut done = 0;
            while done < wanted {
                match source.read_at(offset + done as u64, &mut chunk[done..wanted])? {
                    0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                    n => done += n,
                }
            }
            Ok((source, chunk))
        });
        let (source, chunk) = read.await.map_err(io::Error::other).flatten().map_err(SnapshotError::Source)?;
        self.source = Some(source);
        Ok(chunk)
    }
}

async fn within<T, E: std::fmt::Display>(
    stall: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, SnapshotError> {
    timeout(stall, work).await.map_err(|_| SnapshotError::Stalled)?.map_err(lost)
}

/// Reads what the receiver says: yes, with these bytes behind it, or no, and why.
async fn read_verdict(
    answers: &mut RecvStream,
    patience: Duration,
    behind: Option<&mut [u8]>,
) -> Result<(), SnapshotError> {
    let mut verdict = [0];
    within(patience, answers.read_exact(&mut verdict)).await?;
    match verdict {
        [0] => match behind {
            Some(behind) => within(patience, answers.read_exact(behind)).await,
            None => Ok(()),
        },
        [1] => {
            let mut length = [0; 2];
            within(patience, answers.read_exact(&mut length)).await?;
            let mut reason = vec![0; usize::from(u16::from_le_bytes(length)).min(REASON_LIMIT)];
            within(patience, answers.read_exact(&mut reason)).await?;
            Err(SnapshotError::Refused(String::from_utf8_lossy(&reason).into_owned()))
        }
        _ => Err(SnapshotError::Nonsense("neither yes nor no")),
    }
}

/// Serves a stream on which `peer` offers a snapshot.
pub(crate) async fn receive(
    shared: Arc<Shared>,
    peer: NodeId,
    connection: Connection,
    mut reply: SendStream,
    mut stream: RecvStream,
) {
    let _ = reply.set_priority(PRIORITY);
    match receive_checked(&shared, peer, &mut reply, &mut stream).await {
        Ok(()) => {
            let _ = reply.write_all(&[0]).await;
        }
        Err(Trouble::Refused(reason)) => {
            tracing::warn!(%peer, %reason, "a snapshot is refused");
            let mut text = reason.to_string();
            text.truncate(text.floor_char_boundary(REASON_LIMIT));
            let length = (text.len() as u16).to_le_bytes();
            let _ = reply.write_all(&[&[1][..], &length, text.as_bytes()].concat()).await;
            let _ = stream.stop(0u32.into());
        }
        // The sender is gone, or tries again.
        Err(Trouble::Gone(reason)) => tracing::info!(%peer, reason, "a snapshot broke off"),
        Err(Trouble::Violation(what)) => {
            return shared.reject(&connection, Reject::Malformed, CloseCode::Malformed, &what);
        }
    }
    let _ = reply.finish();
    // Until the sender has read it, or is gone.
    let _ = timeout(shared.limits.snapshot_stall, reply.stopped()).await;
}

enum Trouble {
    Refused(Refusal),
    Gone(String),
    /// The peer is broken or hostile.
    Violation(String),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        Trouble::Refused(refusal)
    }
}

impl From<FrameError> for Trouble {
    fn from(error: FrameError) -> Self {
        Trouble::Violation(error.to_string())
    }
}

async fn receive_checked(
    shared: &Shared,
    peer: NodeId,
    reply: &mut SendStream,
    stream: &mut RecvStream,
) -> Result<(), Trouble> {
    let header = read_header(shared, peer, stream).await?;
    let Some(receiver) = shared.receiver() else { return Err(Refusal::from("no snapshots are taken here").into()) };
    let _permit: OwnedSemaphorePermit = shared
        .receiving
        .clone()
        .try_acquire_owned()
        .map_err(|_| Refusal::from("enough snapshots are being received; try again later"))?;
    let size = header.size;
    let begun = blocking(move || receiver.begin(peer, &header)).await?;
    let (offset, mut sink) = begun;
    if offset > size {
        return Err(Refusal::from("more is here than there is").into());
    }
    reply
        .write_all(&[&[0][..], &offset.to_le_bytes()].concat())
        .await
        .map_err(|error| Trouble::Gone(error.to_string()))?;
    let mut missing = size - offset;
    loop {
        // One byte more than there should be is enough to know that it does not end.
        let most = usize::try_from(missing.saturating_add(1)).unwrap_or(usize::MAX).min(SNAPSHOT_CHUNK);
        let chunk = read_chunk(shared, stream, most).await?;
        if chunk.len() as u64 > missing {
            return Err(Trouble::Violation("a snapshot goes on after its end".into()));
        }
        missing -= chunk.len() as u64;
        if chunk.is_empty() {
            break;
        }
        sink = blocking(move || sink.write(&chunk).map(|()| sink)).await?;
    }
    if missing > 0 {
        return Err(Trouble::Gone(format!("{missing} bytes are missing")));
    }
    blocking(move || sink.finish()).await?;
    Ok(())
}

async fn read_header(shared: &Shared, peer: NodeId, stream: &mut RecvStream) -> Result<SnapshotHeader, Trouble> {
    let stall = shared.limits.snapshot_stall;
    let gone = |error: SnapshotError| Trouble::Gone(error.to_string());
    let mut length = [0; LENGTH_BYTES];
    within(stall, stream.read_exact(&mut length)).await.map_err(gone)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > HEADER_LIMIT {
        return Err(FrameError::TooLarge { length, limit: HEADER_LIMIT }.into());
    }
    // Grows with what arrives.
    let mut frame = BytesMut::new();
    while frame.len() < length {
        let part = within(stall, stream.read_chunk(length - frame.len(), true)).await.map_err(gone)?;
        frame.extend_from_slice(&part.ok_or(FrameError::Ended)?.bytes);
    }
    let (from, to, header) = decode_snapshot_header(&frame)?;
    if from != peer || to != shared.node {
        return Err(Trouble::Violation("a snapshot from or for somebody else".into()));
    }
    Ok(header)
}

/// The next `most` bytes; fewer at the end of the stream, and none after it.
async fn read_chunk(shared: &Shared, stream: &mut RecvStream, most: usize) -> Result<BytesMut, Trouble> {
    let mut chunk = BytesMut::with_capacity(most);
    while chunk.len() < most {
        let part = within(shared.limits.snapshot_stall, stream.read_chunk(most - chunk.len(), true)).await;
        match part.map_err(|error| Trouble::Gone(error.to_string()))? {
            Some(part) => chunk.extend_from_slice(&part.bytes),
            None => break,
        }
    }
    Ok(chunk)
}

/// Does something on a thread that may wait for the disk.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Trouble> {
    match spawn_blocking(work).await {
        Ok(done) => done.map_err(Trouble::Refused),
        Err(panic) => Err(Trouble::Refused(panic.into())),
    }
}
