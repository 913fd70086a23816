//! The way to one peer: who it is, and the session over which it can be reached at present.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quinn::Connection;
use raft_core::{Envelope, GroupId, Message, NodeId};
use tokio::sync::{Notify, watch};

use crate::codec::{self, Channel, Preface};
use crate::config::Limits;
use crate::error::CloseCode;
use crate::frame::FrameSink;
use crate::metrics::{NetMetrics, bump};

/// A peer. Lives as long as the peer is configured; sessions come and go.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) peer: NodeId,
    address: Mutex<String>,
    /// The session that is used for sending. A newer one replaces it, never the other way round.
    session: Mutex<Option<Arc<Session>>>,
    stopped: watch::Sender<bool>,
    /// Why the peer has refused us last, until it lets us in.
    refused: Mutex<Option<CloseCode>>,
    /// The peer, which is to be dialled, asks why nobody does.
    knocked: Notify,
}

impl Link {
    pub(crate) fn new(peer: NodeId, address: String) -> Self {
        let (stopped, _) = watch::channel(false);
        Link {
            peer,
            address: Mutex::new(address),
            session: Mutex::new(None),
            stopped,
            refused: Mutex::new(None),
            knocked: Notify::new(),
        }
    }

    pub(crate) fn address(&self) -> String {
        lock(&self.address).clone()
    }

    /// Where to dial next time. A connection that stands is left alone.
    pub(crate) fn set_address(&self, address: &str) {
        address.clone_into(&mut lock(&self.address));
    }

    /// Queues a message, or drops and counts it. Never blocks.
    pub(crate) fn post(&self, group: GroupId, envelope: &Envelope, limits: &Limits, metrics: &NetMetrics) {
        match &*lock(&self.session) {
            Some(session) => session.lane(Channel::of(&envelope.body)).post(group, envelope, limits, metrics),
            None => bump(&metrics.dropped_unconnected, 1),
        }
    }

    /// Makes `session` the one that is used, and returns the one that was, if any. An error when the link is stopped.
    pub(crate) fn install(&self, session: &Arc<Session>) -> Result<Option<Arc<Session>>, Stopped> {
        let mut current = lock(&self.session);
        // Looked at under the lock that `stop` takes after it has set it: one of the two sees the other.
        if self.is_stopped() { Err(Stopped) } else { Ok(current.replace(session.clone())) }
    }

    /// The connection that stands at present, if there is one.
    pub(crate) fn connection(&self) -> Option<Connection> {
        lock(&self.session).as_ref().map(|session| session.connection.clone())
    }

    /// Stops using `session`, if it is still in use.
    pub(crate) fn uninstall(&self, session: &Arc<Session>) -> bool {
        let mut current = lock(&self.session);
        let is_current = current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session));
        if is_current {
            *current = None;
        }
        is_current
    }

    /// The peer has refused us, or has let us in: returns what it said before.
    pub(crate) fn note_refusal(&self, code: Option<CloseCode>) -> Option<CloseCode> {
        std::mem::replace(&mut *lock(&self.refused), code)
    }

    /// Whether the peer refuses us, as far as is known.
    pub(crate) fn is_refused(&self) -> bool {
        lock(&self.refused).is_some()
    }

    /// The peer would like to be dialled.
    pub(crate) fn knock(&self) {
        if self.connection().is_none() {
            self.knocked.notify_one();
        }
    }

    /// Resolves when the peer has knocked.
    pub(crate) async fn knocked(&self) {
        self.knocked.notified().await;
    }

    /// Ends the session and all dialling, for good.
    pub(crate) fn stop(&self, code: CloseCode, reason: &str) {
        self.stopped.send_replace(true);
        if let Some(session) = &*lock(&self.session) {
            code.close(&session.connection, reason);
        }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    /// Resolves once the link is stopped.
    pub(crate) async fn stopped(&self) {
        // The sender is in `self`: it cannot be gone.
        let _ = self.stopped.subscribe().wait_for(|stopped| *stopped).await;
    }
}

/// The peer is no longer one.
#[derive(Debug)]
pub(crate) struct Stopped;

/// A connection to a peer with the queues that lead into it. The queues end with it: messages that were meant for a
/// lost connection are stale by the time there is another.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    lanes: [Lane; 2],
    /// The peer has sent a valid preface: it knows us by name, not only has it finished the handshake.
    proven: AtomicBool,
    /// We have judged the peer, and let it in. It is told by our stream for entries, which is opened only then.
    let_in: Notify,
    /// Channels for which the peer has opened a stream, a bit each.
    opened: AtomicU8,
}

impl Session {
    pub(crate) fn new(connection: Connection, from: NodeId, incarnation: u128, to: NodeId) -> Self {
        let lane = |channel| Lane::new(Preface { channel, from, to, incarnation });
        Session {
            connection,
            lanes: [lane(Channel::Control), lane(Channel::Append)],
            proven: AtomicBool::new(false),
            let_in: Notify::new(),
            opened: AtomicU8::new(0),
        }
    }

    pub(crate) fn lane(&self, channel: Channel) -> &Lane {
        &self.lanes[channel.index()]
    }

    /// Notes that the peer, which has passed our check, opened its stream for `channel`; false when it had one already.
    pub(crate) fn open(&self, channel: Channel) -> bool {
        self.proven.store(true, Ordering::Relaxed);
        self.let_in.notify_one();
        let bit = 1 << channel.index();
        self.opened.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    pub(crate) fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    /// Resolves when the peer has been let in; for one that waits.
    pub(crate) async fn let_in(&self) {
        self.let_in.notified().await;
    }

    /// Number of messages that wait in vain.
    pub(crate) fn stranded(&self) -> u64 {
        self.lanes.iter().map(|lane| lock(&lane.queue).frames).sum()
    }
}

/// A bounded queue of encoded frames: filled by [`Link::post`], emptied by one task that writes all there is at once.
#[derive(Debug)]
pub(crate) struct Lane {
    channel: Channel,
    queue: Mutex<Queue>,
    wake: Notify,
}

/// To whom room in a queue belongs. Entries of each group have their own: a group sends no more than its window before it hears that something has arrived, so
/// it gets along with that, whatever others do. With one room for all, a few busy groups would fill it, and what is dropped of one of them makes everything useless that
/// it sends after that. Other messages are small, and all groups share the room (`None`).
type Owner = Option<GroupId>;

/// Invariant: `waiting` is the sum of `order` for each owner, and has no zeros.
#[derive(Debug)]
struct Queue {
    sink: FrameSink,
    frames: u64,
    /// Bytes queued or being written.
    waiting: HashMap<Owner, usize>,
    /// The same bytes, in the order in which they leave.
    order: VecDeque<(Owner, usize)>,
}

impl Queue {
    fn waiting(&self, owner: Owner) -> usize {
        self.waiting.get(&owner).copied().unwrap_or_default()
    }

    fn add(&mut self, owner: Owner, bytes: usize) {
        *self.waiting.entry(owner).or_default() += bytes;
        match self.order.back_mut() {
            Some((last, run)) if *last == owner => *run += bytes,
            _ => self.order.push_back((owner, bytes)),
        }
    }

    fn release(&mut self, mut bytes: usize) {
        while let Some((owner, run)) = self.order.front_mut().filter(|_| bytes > 0) {
            let part = bytes.min(*run);
            (bytes, *run) = (bytes - part, *run - part);
            let left = self.waiting.get_mut(owner).map_or(0, |waiting| {
                *waiting -= part;
                *waiting
            });
            if left == 0 {
                self.waiting.remove(owner);
            }
            if *run == 0 {
                self.order.pop_front();
            }
        }
    }
}

impl Lane {
    fn new(preface: Preface) -> Self {
        let mut sink = FrameSink::new();
        codec::encode_preface(preface, &mut sink);
        let preface_bytes = sink.len();
        let mut queue = Queue { sink, frames: 0, waiting: HashMap::new(), order: VecDeque::new() };
        queue.add(None, preface_bytes);
        Lane { channel: preface.channel, queue: Mutex::new(queue), wake: Notify::new() }
    }

    fn post(&self, group: GroupId, envelope: &Envelope, limits: &Limits, metrics: &NetMetrics) {
        let (owner, max_frame, max_waiting) = match self.channel {
            Channel::Control => (None, limits.max_control_frame, limits.control_queue_bytes),
            Channel::Append => (Some(group), limits.max_append_frame, limits.append_queue_bytes),
        };
        let size = match &envelope.body {
            Message::AppendEntries(append) => append.entries.byte_len(),
            _ => 0,
        };
        let mut queue = lock(&self.queue);
        let waiting = queue.waiting(owner);
        // What is larger than the queue passes when the queue is (almost) empty: otherwise it would never pass.
        if waiting.saturating_add(size) > max_waiting && waiting > codec::PREFACE_LIMIT {
            bump(&metrics.dropped_full, 1);
            return;
        }
        let was_empty = queue.sink.is_empty();
        let Some(written) = codec::encode(envelope, group, max_frame, &mut queue.sink) else {
            bump(&metrics.dropped_oversized, 1);
            return;
        };
        queue.frames += 1;
        queue.add(owner, written);
        drop(queue);
        if was_empty {
            self.wake.notify_one();
        }
    }

    /// Waits until there is something, moves all of it into the empty `batch`, and returns the number of messages.
    pub(crate) async fn take(&self, batch: &mut Vec<Bytes>) -> u64 {
        loop {
            {
                let mut queue = lock(&self.queue);
                queue.sink.take_into(batch);
                if !batch.is_empty() {
                    return std::mem::take(&mut queue.frames);
                }
            }
            self.wake.notified().await;
        }
    }

    /// `bytes` of what was taken now belong to QUIC.
    pub(crate) fn written(&self, bytes: usize) {
        lock(&self.queue).release(bytes);
    }
}

/// Nothing that is locked here is left half-done by a panic: each critical section is a few assignments.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_core::{AppendAck, AppendEntries, EntryKind, LogId, LogIndex, Segment, Term};

    fn lane(channel: Channel) -> Lane {
        Lane::new(Preface { channel, from: NodeId(1), to: NodeId(2), incarnation: 3 })
    }

    fn envelope(body: Message) -> Envelope {
        Envelope { from: NodeId(1), to: NodeId(2), term: Term(1), body }
    }

    fn append(bytes: usize) -> Envelope {
        let segment = Segment::pack(LogIndex(1), Term(1), EntryKind::Command, &[vec![0; bytes]]).unwrap();
        let (prev_log, leader_commit) = (LogId::ZERO, LogIndex::ZERO);
        envelope(Message::AppendEntries(AppendEntries {
            epoch: 0,
            seq: 0,
            prev_log,
            leader_commit,
            entries: segment.into(),
        }))
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let limits = Limits { append_queue_bytes: 1000, max_append_frame: 5000, ..Limits::default() };
        let (lane, metrics) = (lane(Channel::Append), NetMetrics::default());
        lane.post(GroupId::FIRST, &append(600), &limits, &metrics);
        lane.post(GroupId::FIRST, &append(600), &limits, &metrics);
        assert_eq!(metrics.snapshot().dropped_full, 1);
        lane.post(GroupId::FIRST, &append(300), &limits, &metrics);
        assert_eq!((metrics.snapshot().dropped_full, lock(&lane.queue).frames), (1, 2));
    }

    #[test]
    fn what_exceeds_the_queue_passes_alone_and_what_exceeds_the_frame_never() {
        let limits = Limits { append_queue_bytes: 1000, max_append_frame: 5000, ..Limits::default() };
        let (lane, metrics) = (lane(Channel::Append), NetMetrics::default());
        lane.post(GroupId::FIRST, &append(6000), &limits, &metrics);
        assert_eq!((metrics.snapshot().dropped_oversized, lock(&lane.queue).frames), (1, 0));
        lane.post(GroupId::FIRST, &append(3000), &limits, &metrics);
        assert_eq!(lock(&lane.queue).frames, 1);
    }

    #[tokio::test]
    async fn no_group_takes_the_room_of_another_and_each_gets_back_its_own() {
        let limits = Limits { append_queue_bytes: 1000, max_append_frame: 5000, ..Limits::default() };
        let (lane, metrics) = (lane(Channel::Append), NetMetrics::default());
        let dropped = || metrics.snapshot().dropped_full;
        for group in 1..=50 {
            lane.post(GroupId(group), &append(700), &limits, &metrics);
        }
        assert_eq!((dropped(), lock(&lane.queue).frames), (0, 50));
        lane.post(GroupId(1), &append(700), &limits, &metrics);
        lane.post(GroupId(2), &append(100), &limits, &metrics);
        assert_eq!((dropped(), lock(&lane.queue).frames), (1, 51));
        let mut batch = Vec::new();
        lane.take(&mut batch).await;
        let all: usize = batch.iter().map(Bytes::len).sum();
        // The first group's is at the front: when half of everything has left, it has room, and the last group has none.
        lane.written(all / 2);
        for group in [1, 50] {
            lane.post(GroupId(group), &append(700), &limits, &metrics);
        }
        assert_eq!((dropped(), lock(&lane.queue).frames), (2, 1));
        lane.written(all - all / 2);
        assert_eq!(lock(&lane.queue).order.iter().map(|(owner, _)| *owner).collect::<Vec<_>>(), [Some(GroupId(1))]);
        lane.take(&mut batch).await;
        lane.written(batch.iter().map(Bytes::len).sum::<usize>());
        assert!(lock(&lane.queue).waiting.is_empty() && lock(&lane.queue).order.is_empty());
    }

    #[tokio::test]
    async fn everything_queued_is_taken_at_once_and_room_returns_when_it_is_written() {
        let limits = Limits { control_queue_bytes: 200, ..Limits::default() };
        let (lane, metrics) = (lane(Channel::Control), NetMetrics::default());
        let ack = envelope(Message::AppendAck(AppendAck { epoch: 1, match_index: LogIndex(2) }));
        for _ in 0..50 {
            lane.post(GroupId::FIRST, &ack, &limits, &metrics);
        }
        let dropped = metrics.snapshot().dropped_full;
        assert!(dropped > 0);
        let mut batch = Vec::new();
        assert_eq!(lane.take(&mut batch).await, 50 - dropped);
        lane.post(GroupId::FIRST, &ack, &limits, &metrics);
        assert_eq!(metrics.snapshot().dropped_full, dropped + 1, "bytes being written count as well");
        lane.written(batch.iter().map(Bytes::len).sum());
        lane.post(GroupId::FIRST, &ack, &limits, &metrics);
        assert_eq!(metrics.snapshot().dropped_full, dropped + 1);
        batch.clear();
        assert_eq!(lane.take(&mut batch).await, 1);
    }
}
