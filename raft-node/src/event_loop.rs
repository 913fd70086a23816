//! The loop around the driver: wait for whatever comes first, take in all that has come, carry out what follows.
//!
//! It is a task on the node's single-threaded runtime, beside the QUIC endpoint: from a packet to the core and back there is no
//! other thread. Only the disk, the state machine and the reader have threads of their own.

use std::pin::pin;
use std::sync::mpsc;
use std::time::Duration;

use raft_core::{Envelope, Fetch, GroupId, Input, Instant, LogIndex, NodeId, Write};
use raft_net::{Inbound, Transport};
use raft_storage::StorageError;
use tokio::sync::mpsc as queue;
use tokio::sync::watch;

use crate::applier::{self, Progress, Submit};
use crate::driver::{Driver, Job, Ports};
use crate::handle::{Request, refuse};

/// Most inputs taken in before their consequences are carried out.
const MAX_DRAIN: usize = 4096;

/// Why a node cannot go on. It acknowledges nothing any more and stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fatal {
    /// A write, a sync or a read of the log failed. What is on the disk is not known: look at the disk, then restart.
    #[error("the log's storage failed: {0}")]
    Storage(#[source] StorageError),
    /// The state machine failed.
    #[error("the state machine failed: {0}")]
    StateMachine(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread of the node ended unexpectedly (it panicked).
    #[error("the {0} thread is gone")]
    ThreadLost(&'static str),
}

/// What comes from the node's own threads.
#[derive(Debug)]
pub(crate) enum Internal {
    Core(Input),
    Fatal(Fatal),
}

/// The way from the node's threads to its loop. Never blocks; once the loop is gone, messages to it are pointless.
#[derive(Clone, Debug)]
pub(crate) struct Inbox(pub(crate) queue::UnboundedSender<Internal>);

impl Inbox {
    pub(crate) fn send(&self, message: Internal) {
        if let Err(queue::error::SendError(Internal::Fatal(error))) = self.0.send(message) {
            tracing::error!(%error, "failed while stopping");
        }
    }
}

/// The other ends of what leaves the loop.
pub(crate) struct Outlets<T> {
    pub(crate) group: GroupId,
    pub(crate) transport: T,
    pub(crate) writer: mpsc::Sender<Write>,
    pub(crate) applier: Box<dyn Submit>,
    pub(crate) reader: mpsc::Sender<Fetch>,
    /// A thread that does not take its work any more.
    pub(crate) lost: Option<&'static str>,
}

impl<T: Transport> Ports for Outlets<T> {
    fn send(&mut self, messages: &mut Vec<Envelope>) {
        self.transport.send(self.group, messages);
    }

    fn write(&mut self, write: Write) {
        if self.writer.send(write).is_err() {
            self.lost = Some("writer");
        }
    }

    fn apply(&mut self, job: Job) {
        // A machine that failed is not asked anything more; who waits is told that the outcome is unknown.
        if self.lost.is_none() && !self.applier.submit(job) {
            self.lost = Some("applier");
        }
    }

    fn fetch(&mut self, fetch: Fetch) {
        if self.reader.send(fetch).is_err() {
            self.lost = Some("reader");
        }
    }
}

/// What the loop listens to.
pub(crate) struct Inlets {
    pub(crate) internal: queue::UnboundedReceiver<Internal>,
    pub(crate) network: queue::Receiver<Inbound>,
    pub(crate) requests: queue::UnboundedReceiver<Request>,
}

/// Everything that can wake the loop.
enum Happened {
    Internal(Internal),
    Network(Inbound),
    Request(Request),
    Time,
}

pub(crate) struct EventLoop<T> {
    pub(crate) driver: Driver,
    pub(crate) inlets: Inlets,
    pub(crate) outlets: Outlets<T>,
    pub(crate) progress: Progress,
    pub(crate) leader: watch::Sender<Option<NodeId>>,
    pub(crate) origin: std::time::Instant,
}

impl<T: Transport> EventLoop<T> {
    /// Runs until the node is asked to stop, or cannot go on. The transport is given back, since the last replies have yet to leave.
    pub(crate) async fn run(mut self) -> (Result<(), Fatal>, T) {
        let result = self.serve().await;
        self.driver.stop();
        self.inlets.requests.close();
        while let Ok(request) = self.inlets.requests.try_recv() {
            refuse(request);
        }
        (result, self.outlets.transport)
    }

    async fn serve(&mut self) -> Result<(), Fatal> {
        let mut seen = LogIndex::ZERO;
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        while !self.driver.is_stopping() {
            let deadline = self.driver.deadline();
            let due = tokio::time::Instant::from_std(self.origin + Duration::from_nanos(deadline.0));
            // Moving the timer costs more than waking up once too early.
            if due < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(due);
            }
            let first = tokio::select! {
                biased;
                Some(internal) = self.inlets.internal.recv() => Happened::Internal(internal),
                Some(inbound) = self.inlets.network.recv() => Happened::Network(inbound),
                Some(request) = self.inlets.requests.recv() => Happened::Request(request),
                () = &mut timer => Happened::Time,
            };
            let now = self.now();
            self.take_in(now, first)?;
            self.drain(now)?;
            if now >= deadline {
                // As long as requests keep coming, nobody looks at the timer.
                self.driver.step(now, Input::Wake);
            }
            let applied = applier::reached(&self.progress);
            if applied > seen {
                seen = applied;
                self.driver.step(now, Input::Applied(applied));
            }
            self.driver.turn(now, &mut self.outlets);
            if let Some(thread) = self.outlets.lost {
                return Err(self.why_lost(thread));
            }
            self.leader
                .send_if_modified(|leader| std::mem::replace(leader, self.driver.leader()) != self.driver.leader());
        }
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Takes in what else has come, in the order of urgency.
    fn drain(&mut self, now: Instant) -> Result<(), Fatal> {
        for _ in 0..MAX_DRAIN {
            let next = if let Ok(internal) = self.inlets.internal.try_recv() {
                Happened::Internal(internal)
            } else if let Ok(inbound) = self.inlets.network.try_recv() {
                Happened::Network(inbound)
            } else if let Ok(request) = self.inlets.requests.try_recv() {
                Happened::Request(request)
            } else {
                return Ok(());
            };
            self.take_in(now, next)?;
        }
        Ok(())
    }

    fn take_in(&mut self, now: Instant, happened: Happened) -> Result<(), Fatal> {
        match happened {
            Happened::Internal(Internal::Core(input)) => self.driver.step(now, input),
            Happened::Internal(Internal::Fatal(fatal)) => return Err(fatal),
            Happened::Network(Inbound::Messages { group, messages }) => {
                if group == self.outlets.group {
                    messages.into_iter().for_each(|message| self.driver.step(now, Input::Message(message)));
                } else {
                    tracing::debug!(%group, "messages for a group that is not here");
                }
            }
            Happened::Network(Inbound::LinkReset { peer }) => self.driver.step(now, Input::LinkReset(peer)),
            Happened::Network(_) => tracing::debug!("the network has news of an unknown kind"),
            Happened::Request(request) => self.driver.request(now, request),
            Happened::Time => self.driver.step(now, Input::Wake),
        }
        Ok(())
    }

    /// A thread that is gone has said why, unless it panicked.
    fn why_lost(&mut self, thread: &'static str) -> Fatal {
        while let Ok(internal) = self.inlets.internal.try_recv() {
            if let Internal::Fatal(fatal) = internal {
                return fatal;
            }
        }
        Fatal::ThreadLost(thread)
    }
}
