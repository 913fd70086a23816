//! Where the replies of one connection are collected: the raft loop and the applier's thread put them in, the
//! connection's writer takes them out, a batch at a time.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft_core::NodeId;
use tokio::sync::Notify;

use super::protocol::{Response, encode_done};
use crate::reply::{Outcome, ReplySink};

/// When to ask again for an answer that was dropped because so many others wait to be taken. How quickly they are is the client's own doing, and unknown here;
/// in this time a link of a few Gbit/s carries the bytes that may wait.
const UNTAKEN: Duration = Duration::from_millis(50);

/// Tells where a node can be reached, for the hint in [`Response::NotLeader`].
pub(super) type Addresses = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// The replies of one connection. The token of a request is the id that the client gave it.
pub(super) struct ConnectionSink {
    state: Mutex<State>,
    /// Wakes the writer: there are replies, or there will be no more.
    replies: Notify,
    /// Wakes the reader: there is room for more requests, or none is left in progress.
    room: Notify,
    limits: SinkLimits,
    addresses: Addresses,
}

/// How much may be in progress on one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct SinkLimits {
    /// Requests without a reply.
    pub(super) requests: usize,
    /// Bytes of replies that the client has not taken yet.
    pub(super) reply_bytes: usize,
}

#[derive(Default)]
struct State {
    out: BytesMut,
    in_flight: usize,
    reader_waits: bool,
    /// The client has finished: once `out` is empty, the writer is done.
    finishing: bool,
    /// The connection is gone: nobody will take replies any more.
    closed: bool,
}

impl ConnectionSink {
    pub(super) fn new(limits: SinkLimits, addresses: Addresses) -> Self {
        ConnectionSink { state: Mutex::default(), replies: Notify::new(), room: Notify::new(), limits, addresses }
    }

    /// Waits until at least one more request may be taken, and returns how many. `None` when nobody will take replies any more.
    pub(super) async fn room(&self) -> Option<usize> {
        loop {
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let free = self.limits.requests.saturating_sub(state.in_flight);
                if free > 0 && state.out.len() < self.limits.reply_bytes {
                    return Some(free);
                }
                state.reader_waits = true;
            }
            // A wake-up between the check and here is kept by `Notify`.
            self.room.notified().await;
        }
    }

    /// Waits until every request has its reply.
    pub(super) async fn idle(&self) {
        loop {
            {
                let mut state = self.lock();
                if state.in_flight == 0 {
                    return;
                }
                state.reader_waits = true;
            }
            self.room.notified().await;
        }
    }

    /// `count` more requests will be replied to.
    pub(super) fn expect(&self, count: usize) {
        self.lock().in_flight += count;
    }

    /// The response to one of the requests announced with [`expect`](Self::expect).
    pub(super) fn respond(&self, id: u64, response: &Response) {
        let mut state = self.lock();
        if !state.closed {
            response.encode_to(id, &mut state.out);
        }
        self.settle(state);
    }

    /// What is to be sent now; waits for it. `None` when there will be no more.
    pub(super) async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut state = self.lock();
                if !state.out.is_empty() {
                    let bytes = state.out.split().freeze();
                    if std::mem::take(&mut state.reader_waits) {
                        self.room.notify_one();
                    }
                    return Some(bytes);
                }
                if state.finishing || state.closed {
                    return None;
                }
            }
            self.replies.notified().await;
        }
    }

    /// No more requests come: the writer ends when it has sent what there is.
    pub(super) fn finish(&self) {
        self.lock().finishing = true;
        self.replies.notify_one();
    }

    /// The connection is gone: replies are dropped from now on.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.out = BytesMut::new();
        self.replies.notify_one();
        // The reader may wait for room that nobody will make.
        self.room.notify_one();
    }

    fn settle(&self, mut state: MutexGuard<'_, State>) {
        state.in_flight = state.in_flight.saturating_sub(1);
        if std::mem::take(&mut state.reader_waits) {
            self.room.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done by a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplySink for ConnectionSink {
    fn reply(&self, token: u64, outcome: Outcome<'_>) {
        let mut state = self.lock();
        if !state.closed {
            match outcome {
                Outcome::Applied { reply, .. } => encode_done(token, reply, &mut state.out),
                // Answers can be large. A client that asks faster than it takes them has to ask again; an outcome of a write
                // is small and never dropped.
                Outcome::Answered { .. } if state.out.len() >= self.limits.reply_bytes => {
                    Response::Busy { retry_after: UNTAKEN }.encode_to(token, &mut state.out);
                }
                Outcome::Answered { answer } => encode_done(token, answer, &mut state.out),
                Outcome::Failed(error) => {
                    Response::from_error(&error, &*self.addresses).encode_to(token, &mut state.out);
                }
            }
        }
        self.settle(state);
    }

    fn flush(&self) {
        self.replies.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{LogIndex, Term};

    use super::super::protocol::FrameReader;
    use super::*;
    use crate::reply::{RequestError, Responder};

    fn sink(requests: usize, reply_bytes: usize) -> Arc<ConnectionSink> {
        let addresses: Addresses = Arc::new(|id| (id.0 == 2).then(|| "two:1".into()));
        Arc::new(ConnectionSink::new(SinkLimits { requests, reply_bytes }, addresses))
    }

    fn responses(bytes: &[u8]) -> Vec<(u64, Response)> {
        let mut reader = FrameReader::new(1 << 20);
        reader.push(bytes);
        std::iter::from_fn(|| reader.next_frame().unwrap().map(|f| (f.id, f.into_response().unwrap()))).collect()
    }

    #[tokio::test]
    async fn replies_leave_in_one_piece_and_make_room() {
        let sink = sink(2, 1 << 20);
        assert_eq!(sink.room().await, Some(2));
        sink.expect(2);
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.room().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let outcome = Outcome::Applied { term: Term(1), index: LogIndex(1), reply: b"a" };
        assert!(Responder::new(sink.clone(), 7).reply(outcome).is_some());
        Responder::new(sink.clone(), 8).fail(RequestError::NotLeader { hint: Some(NodeId(2)) });
        assert_eq!(waiting.await.unwrap(), Some(2));
        let expected = vec![
            (7, Response::Done(Bytes::from_static(b"a"))),
            (8, Response::NotLeader { hint: Some((NodeId(2), "two:1".into())) }),
        ];
        assert_eq!(responses(&sink.take().await.unwrap()), expected);
        sink.idle().await;
        sink.finish();
        assert_eq!(sink.take().await, None);
    }

    #[tokio::test]
    async fn large_answers_are_bounded_but_outcomes_of_writes_are_not_dropped() {
        let sink = sink(10, 100);
        sink.expect(4);
        sink.reply(1, Outcome::Answered { answer: &[0; 200] });
        sink.reply(2, Outcome::Answered { answer: &[0; 200] });
        sink.reply(3, Outcome::Applied { term: Term(1), index: LogIndex(1), reply: b"w" });
        drop(Responder::new(sink.clone(), 4));
        let got = responses(&sink.take().await.unwrap());
        assert!(matches!(got[0].1, Response::Done(_)));
        assert_eq!(got[1], (2, Response::Busy { retry_after: UNTAKEN }));
        assert_eq!(got[2], (3, Response::Done(Bytes::from_static(b"w"))));
        assert_eq!(got[3], (4, Response::Unknown));
    }

    #[tokio::test]
    async fn a_closed_connection_keeps_nothing() {
        let sink = sink(1, 100);
        sink.expect(1);
        let waiting = tokio::spawn({
            let sink = sink.clone();
            async move { sink.room().await }
        });
        tokio::task::yield_now().await;
        sink.close();
        assert_eq!(waiting.await.unwrap(), None);
        sink.reply(1, Outcome::Answered { answer: b"late" });
        assert_eq!(sink.take().await, None);
    }
}
