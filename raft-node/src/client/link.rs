//! One connection to one node, shared by everybody in the program who asks it something.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use quinn::{Connection, RecvStream, SendStream, VarInt};
use raft_core::GroupId;
use tokio::sync::{Notify, oneshot};
use tokio::time::MissedTickBehavior;

use super::protocol::{FrameReader, Request, Response};

/// Longest response that is accepted, in bytes. Answers of our state machines stay far below.
const MAX_RESPONSE_BYTES: usize = 64 << 20;

/// So many times in a row must the node be asked in vain for a sign of life before the link is given up. Counted in turns of
/// this program's own loop, so that a pause of this program is not taken for one of the node.
const SILENT_TURNS: u32 = 5;

/// Why a call got no response, and what that means for the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LinkError {
    /// The request has not left this program: nothing happened.
    NotSent(String),
    /// It may have arrived.
    MaybeSent(String),
}

type Waiter = oneshot::Sender<Result<Response, LinkError>>;

/// A connection with requests in progress.
pub(super) struct Link {
    connection: Connection,
    state: Mutex<State>,
    /// Wakes the writer.
    work: Notify,
}

#[derive(Default)]
struct State {
    out: BytesMut,
    next_id: u64,
    /// Requests below this id were handed to the transport.
    sent_below: u64,
    waiting: HashMap<u64, Waiter>,
    /// Something arrived since the last turn of the watchdog.
    heard: bool,
    closed: Option<String>,
}

impl Link {
    /// Opens the stream on a fresh connection. The link is given up when requests wait and nothing at all arrives for `silence`.
    pub(super) async fn open(connection: Connection, silence: Duration) -> Result<Arc<Link>, String> {
        let (send, recv) = connection.open_bi().await.map_err(|e| e.to_string())?;
        let link = Arc::new(Link { connection, state: Mutex::default(), work: Notify::new() });
        let writer = tokio::spawn(link.clone().write(send));
        let reading = link.clone();
        tokio::spawn(async move {
            let why = reading.read(recv, silence).await;
            reading.close(&why);
            writer.abort();
        });
        Ok(link)
    }

    /// Sends a request and waits for its response. Dropping the future abandons the request, which may be carried out all the same.
    pub(super) async fn call(&self, request: &Request) -> Result<Response, LinkError> {
        let (waiter, response) = oneshot::channel();
        let id = {
            let mut state = self.lock();
            if let Some(why) = &state.closed {
                return Err(LinkError::NotSent(why.clone()));
            }
            let id = state.next_id;
            if request.encode_to(id, &mut state.out).is_none() {
                return Err(LinkError::NotSent("the request is longer than a frame can be".into()));
            }
            state.next_id += 1;
            // After a time without requests silence is no sign of anything.
            state.heard |= state.waiting.is_empty();
            state.waiting.insert(id, waiter);
            id
        };
        self.work.notify_one();
        let _abandon = Abandon { link: self, id };
        response.await.unwrap_or_else(|_| Err(LinkError::MaybeSent("the connection was dropped".into())))
    }

    /// Whether it is of no further use.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    /// Closes the connection; all who wait are told `why`.
    pub(super) fn close(&self, why: &str) {
        let (waiting, sent_below) = {
            let mut state = self.lock();
            if state.closed.is_none() {
                state.closed = Some(why.to_owned());
            }
            state.out = BytesMut::new();
            (std::mem::take(&mut state.waiting), state.sent_below)
        };
        self.connection.close(VarInt::from_u32(0), why.as_bytes());
        for (id, waiter) in waiting {
            let error = if id < sent_below { LinkError::MaybeSent } else { LinkError::NotSent };
            // Whoever has stopped waiting does not need to know.
            let _ = waiter.send(Err(error(why.to_owned())));
        }
    }

    async fn write(self: Arc<Self>, mut send: SendStream) {
        loop {
            let bytes = {
                let mut state = self.lock();
                state.sent_below = state.next_id;
                state.out.split().freeze()
            };
            if bytes.is_empty() {
                self.work.notified().await;
            } else if let Err(error) = send.write_chunk(bytes).await {
                return self.close(&self.lost(&error));
            }
        }
    }

    /// Hands out responses until the connection ends; returns why it did.
    async fn read(&self, mut recv: RecvStream, silence: Duration) -> String {
        let mut reader = FrameReader::new(MAX_RESPONSE_BYTES);
        let mut chunks = [const { Bytes::new() }; 32];
        let mut turn = tokio::time::interval((silence / SILENT_TURNS).max(Duration::from_millis(1)));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut silent_turns = 0;
        loop {
            tokio::select! {
                biased;
                read = recv.read_chunks(&mut chunks) => match read {
                    Ok(Some(count)) => {
                        chunks[..count].iter_mut().for_each(|c| reader.push(&std::mem::take(c)));
                        if let Err(why) = self.deliver(&mut reader) {
                            return why;
                        }
                    }
                    Ok(None) => return "the node closed the stream".into(),
                    Err(error) => return self.lost(&error),
                },
                _ = turn.tick() => {
                    silent_turns = if self.expects_a_sign() { silent_turns + 1 } else { 0 };
                    if silent_turns >= SILENT_TURNS {
                        return format!("the node has been silent for {} ms", silence.as_millis());
                    }
                }
            }
        }
    }

    /// Why the connection is gone, as the other end put it if it did; `error` by itself does not say.
    fn lost(&self, error: &dyn std::error::Error) -> String {
        match self.connection.close_reason() {
            Some(reason) => format!("connection lost: {reason}"),
            None => format!("connection lost: {error}"),
        }
    }

    /// Whether requests wait and nothing has arrived since the last turn; then the node is asked for a sign of life. Its
    /// loop answers that even when its disk or its majority is slow.
    fn expects_a_sign(&self) -> bool {
        let mut state = self.lock();
        if std::mem::take(&mut state.heard) || state.waiting.is_empty() {
            return false;
        }
        // No one waits for this id, so its response is dropped.
        let id = state.next_id;
        let sign = Request::Status { group: GroupId::FIRST };
        if sign.encode_to(id, &mut state.out).is_some() {
            state.next_id += 1;
        }
        drop(state);
        self.work.notify_one();
        true
    }

    fn deliver(&self, reader: &mut FrameReader) -> Result<(), String> {
        let mut state = self.lock();
        state.heard = true;
        loop {
            match reader.next_frame() {
                Ok(None) => return Ok(()),
                Ok(Some(frame)) => {
                    let Some(waiter) = state.waiting.remove(&frame.id) else { continue };
                    let response = frame.into_response().map_err(|e| format!("the node sent nonsense: {e}"))?;
                    let _ = waiter.send(Ok(response));
                }
                Err(error) => return Err(format!("the node sent nonsense: {error}")),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a request that nobody waits for any more.
struct Abandon<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        self.link.lock().waiting.remove(&self.id);
    }
}
