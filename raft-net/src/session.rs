//! A connection between two nodes at work: two streams out, two streams in, one task each; and one more for each snapshot.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, ConnectionError, RecvStream};
use tokio::task::JoinSet;

use crate::Inbound;
use crate::codec::Channel;
use crate::config::Unwelcome;
use crate::error::CloseCode;
use crate::frame::FrameError;
use crate::link::{Link, Session, Stopped, lock};
use crate::metrics::{Reject, bump};
use crate::quic::Shared;
use crate::refusal::{Refusal, harmless};
use crate::stream::{Batches, StreamReader, Violation};
use crate::transfer;

/// Pieces of a stream that are looked at in one go. QUIC delivers one for each packet.
const PIECES: usize = 64;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The two had accepted each other.
    Served,
    /// It was lost before they had.
    Lost,
    /// One of the two has found fault with the other: trying again at once would end the same way.
    Refused,
}

/// Serves an authenticated connection to `link`'s peer until it ends.
pub(crate) async fn run(shared: &Arc<Shared>, link: &Arc<Link>, connection: Connection) -> Outcome {
    let metrics = &shared.metrics;
    let session = Arc::new(Session::new(connection.clone(), shared.node, shared.incarnation, link.peer));
    match link.install(&session) {
        Ok(Some(old)) => {
            bump(&metrics.disconnects, 1);
            CloseCode::Replaced.close(&old.connection, "there is a newer connection");
        }
        Ok(None) => bump(&metrics.peers_connected, 1),
        Err(Stopped) => {
            CloseCode::Removed.close(&connection, "no longer a peer");
            return Outcome::Lost;
        }
    }
    metrics.add_peer(&connection);
    bump(&metrics.connects, 1);
    if link.is_refused() {
        tracing::debug!(peer = %link.peer, address = %connection.remote_address(), "connected");
    } else {
        tracing::info!(peer = %link.peer, address = %connection.remote_address(), "connected");
    }
    // An error means that nobody listens any more: the node is going down.
    let _ = shared.inbound.send(Inbound::LinkReset { peer: link.peer }).await;

    // Who it is has been established: it may offer snapshots now.
    connection.set_max_concurrent_bi_streams(u32::try_from(shared.limits.max_snapshots).unwrap_or(u32::MAX).into());
    let mut tasks = JoinSet::new();
    for channel in [Channel::Control, Channel::Append] {
        tasks.spawn(write(shared.clone(), session.clone(), channel));
    }
    let reason = loop {
        tokio::select! {
            stream = connection.accept_uni() => match stream {
                Ok(stream) => {
                    tasks.spawn(read_or_cut_off(shared.clone(), link.clone(), session.clone(), stream));
                }
                Err(reason) => break reason,
            },
            stream = connection.accept_bi() => match stream {
                Ok((reply, stream)) => {
                    tasks.spawn(transfer::receive(shared.clone(), link.peer, connection.clone(), reply, stream));
                }
                Err(reason) => break reason,
            },
            Some(_) = tasks.join_next() => {}
        }
    };
    tasks.shutdown().await;
    let was_current = link.uninstall(&session);
    bump(&metrics.dropped_disconnected, session.stranded());
    metrics.retire(&connection);
    let refusal = Refusal::of(&reason);
    if was_current {
        bump(&metrics.disconnects, 1);
        metrics.peers_connected.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        if refusal.is_none() {
            tracing::info!(peer = %link.peer, reason = harmless(&reason.to_string()), "disconnected");
        }
        let _ = shared.inbound.send(Inbound::LinkReset { peer: link.peer }).await;
        if let Some(refusal) = refusal {
            shared.refused(link, refusal).await;
        }
    }
    if reason == ConnectionError::LocallyClosed || CloseCode::is_refusal(&reason) {
        Outcome::Refused
    } else if session.is_proven() {
        Outcome::Served
    } else {
        Outcome::Lost
    }
}

/// Writes what the lane of `channel` collects. Ends with the connection.
///
/// The stream for entries is opened when the peer has passed our check: so that stream tells the peer that it is welcome.
async fn write(shared: Arc<Shared>, session: Arc<Session>, channel: Channel) {
    let lane = session.lane(channel);
    if channel == Channel::Append {
        session.let_in().await;
    }
    let Ok(mut stream) = session.connection.open_uni().await else { return };
    // Heartbeats, votes and acknowledgements go ahead of entries; snapshots will come last.
    let _ = stream.set_priority(match channel {
        Channel::Control => 10,
        Channel::Append => 0,
    });
    let mut batch = Vec::new();
    loop {
        let frames = lane.take(&mut batch).await;
        let bytes: usize = batch.iter().map(Bytes::len).sum();
        shared.metrics.flow_out(channel).add(frames, bytes as u64);
        let mut rest = &mut batch[..];
        while !rest.is_empty() {
            match stream.write_chunks(rest).await {
                Ok(written) => {
                    lane.written(written.bytes);
                    rest = &mut rest[written.chunks..];
                }
                Err(error) => {
                    // Either the connection is gone, and closing it changes nothing, or the peer wants this stream
                    // to stop, and without it the connection is of no use.
                    CloseCode::Malformed.close(&session.connection, &error.to_string());
                    return;
                }
            }
        }
        batch.clear();
    }
}

async fn read_or_cut_off(shared: Arc<Shared>, link: Arc<Link>, session: Arc<Session>, stream: RecvStream) {
    let (reject, code, detail) = match read(&shared, &link, &session, stream).await {
        Ok(()) => return,
        Err(Violation::Frame(error @ FrameError::TooLarge { .. })) => {
            (Reject::FrameTooLarge, CloseCode::FrameTooLarge, error.to_string())
        }
        Err(Violation::Frame(error)) => (Reject::Malformed, CloseCode::Malformed, error.to_string()),
        Err(Violation::Stream(what)) => (Reject::Malformed, CloseCode::Malformed, what.to_owned()),
        Err(Violation::Unwelcome(Unwelcome::Another(why))) => {
            (Reject::WrongIncarnation, CloseCode::WrongIncarnation, why)
        }
        Err(Violation::Unwelcome(Unwelcome::CannotTell(why))) => (Reject::Busy, CloseCode::CannotTell, why),
        Err(Violation::Misaddressed) => {
            (Reject::Misaddressed, CloseCode::Misaddressed, "message from or for somebody else".to_owned())
        }
    };
    shared.reject_node(&session.connection, (&shared.cluster, link.peer), reject, code, &detail);
}

/// Reads one stream until the connection ends.
async fn read(shared: &Shared, link: &Link, session: &Session, mut stream: RecvStream) -> Result<(), Violation> {
    let mut reader = StreamReader::new(link.peer, shared.node, shared.limits.clone());
    let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
    loop {
        let count = match stream.read_chunks(&mut pieces).await {
            Ok(Some(count)) => count,
            Err(quinn::ReadError::ConnectionLost(_)) => return Ok(()),
            // These streams live as long as their connection.
            Ok(None) | Err(_) => return Err(FrameError::Ended.into()),
        };
        let mut batches = Batches::default();
        let before = reader.channel();
        for piece in &mut pieces[..count] {
            reader.push(std::mem::take(piece), &mut batches, |preface| {
                (shared.peer_check.0)(link.peer, preface.incarnation).map_err(Violation::Unwelcome)?;
                lock(&shared.turned_away).forget(&shared.cluster, link.peer);
                let first = session.open(preface.channel);
                first.then_some(()).ok_or(Violation::Stream("a second stream for one channel"))
            })?;
        }
        if before.is_none() && reader.channel() == Some(Channel::Append) {
            shared.accepted(link).await;
        }
        if let Some(channel) = reader.channel() {
            shared.metrics.flow_in(channel).add(batches.frames, batches.bytes);
        }
        for (group, messages) in batches.groups {
            // When the core does not keep up we wait here, QUIC's windows fill, and the sender waits in turn.
            if shared.inbound.send(Inbound::Messages { group, messages }).await.is_err() {
                return Ok(());
            }
        }
    }
}
