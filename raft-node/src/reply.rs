//! How the outcome of a request finds its way back, without an allocation for each request.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
pub use raft_core::driver::RequestError;
use raft_core::{LogIndex, Term};
use tokio::sync::oneshot;

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Outcome<'a> {
    /// A command was committed, and applied on this node.
    Applied {
        /// Term of its entry.
        term: Term,
        /// Index of its entry.
        index: LogIndex,
        /// The state machine's reply.
        reply: &'a [u8],
    },
    /// A query was answered.
    Answered {
        /// The state machine's answer.
        answer: &'a [u8],
    },
    /// It was not carried out; see the error for what that means.
    Failed(RequestError),
}

/// Receives outcomes. One sink serves many requests (all those of a connection, say), told apart by a token of
/// the owner's choice. Called from the raft loop and from the applier's thread: it must never block.
pub trait ReplySink: Send + Sync + 'static {
    /// The outcome of the request `token`.
    fn reply(&self, token: u64, outcome: Outcome<'_>);
    /// No more replies follow for now: send what was collected.
    fn flush(&self);
}

/// Where one request's outcome goes. Dropped without an answer, it answers
/// [`OutcomeUnknown`](RequestError::OutcomeUnknown): there is never silence.
pub struct Responder {
    sink: Option<Arc<dyn ReplySink>>,
    token: u64,
}

impl Responder {
    /// The outcome goes to `sink` as `token`.
    pub fn new(sink: Arc<dyn ReplySink>, token: u64) -> Self {
        Responder { sink: Some(sink), token }
    }

    /// Nobody is interested.
    pub fn ignore() -> Self {
        Responder { sink: None, token: 0 }
    }

    /// Hands over the outcome and returns the sink, which is to be flushed when no more follow.
    pub fn reply(mut self, outcome: Outcome<'_>) -> Option<Arc<dyn ReplySink>> {
        let sink = self.sink.take()?;
        sink.reply(self.token, outcome);
        Some(sink)
    }

    /// Fails the request and flushes.
    pub fn fail(self, error: RequestError) {
        if let Some(sink) = self.reply(Outcome::Failed(error)) {
            sink.flush();
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.reply(self.token, Outcome::Failed(RequestError::OutcomeUnknown));
            sink.flush();
        }
    }
}

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Responder({})", self.token)
    }
}

/// Flushes each sink once, however many replies it got, as long as they come in runs.
#[derive(Default)]
pub(crate) struct Flusher {
    sinks: Vec<Arc<dyn ReplySink>>,
}

impl Flusher {
    pub(crate) fn add(&mut self, sink: Option<Arc<dyn ReplySink>>) {
        let Some(sink) = sink else { return };
        // Few connections are active at a time, and neighbours in a batch tend to be of the same one.
        if !self.sinks.iter().rev().any(|known| Arc::ptr_eq(known, &sink)) {
            self.sinks.push(sink);
        }
    }

    pub(crate) fn flush(&mut self) {
        for sink in self.sinks.drain(..) {
            sink.flush();
        }
    }
}

/// A command that was applied: where, and what the state machine replied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Term of its entry.
    pub term: Term,
    /// Index of its entry.
    pub index: LogIndex,
    /// The state machine's reply; for a query, its answer.
    pub reply: Bytes,
}

/// A sink for a single request, behind the handle's `async` methods.
pub(crate) struct OneShot(Mutex<Option<oneshot::Sender<Result<Applied, RequestError>>>>);

impl OneShot {
    pub(crate) fn responder() -> (Responder, oneshot::Receiver<Result<Applied, RequestError>>) {
        let (sender, receiver) = oneshot::channel();
        (Responder::new(Arc::new(OneShot(Mutex::new(Some(sender)))), 0), receiver)
    }
}

impl ReplySink for OneShot {
    fn reply(&self, _token: u64, outcome: Outcome<'_>) {
        let result = match outcome {
            Outcome::Applied { term, index, reply } => {
                Ok(Applied { term, index, reply: Bytes::copy_from_slice(reply) })
            }
            Outcome::Answered { answer } => {
                Ok(Applied { term: Term(0), index: LogIndex::ZERO, reply: Bytes::copy_from_slice(answer) })
            }
            Outcome::Failed(error) => Err(error),
        };
        let sender = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // The caller may have given up waiting.
            let _ = sender.send(result);
        }
    }

    fn flush(&self) {}
}
