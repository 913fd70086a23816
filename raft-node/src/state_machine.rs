//! What a user of the library brings: the machine that committed commands drive.

use std::io::{self, Read, Write};

use bytes::BytesMut;
use raft_core::{Entries, LogIndex, SnapshotMeta};

/// The replicated state machine (paper, section 2). It lives on a thread of its own, which calls it with one batch of
/// committed entries after another, and with queries in between.
///
/// # Contract
///
/// - **Deterministic**: the same entries in the same order give the same state and the same replies on every
///   node. No clock, no randomness, no iteration over a randomly ordered map.
/// - **Contiguous**: the first batch begins at `applied() + 1` and no entry is left out.
/// - **Atomic**: a machine that keeps its own durable state stores the mutations of a batch together with the index of
///   its last entry, so that after a crash [`applied`](Self::applied) tells exactly what is in it. It need not sync: what a crash
///   loses is replayed from the log, which is only ever compacted up to [`durable`](Self::durable).
///
/// # Snapshots
///
/// Without [`cut`](Self::cut) and [`restore`](Self::restore) a machine works, but its log is never compacted. With them, there are two kinds:
///
/// - A machine that **keeps its own durable state** says how far that goes ([`durable`](Self::durable)), and remembers durably what it was
///   [`restored`](Self::restored) from. The log is compacted up to there, without any file; files are made only for followers that are too far behind.
/// - A machine **without a disk** says `None`. Now and then its state is written to a file, and the log compacted up to that; when the node starts,
///   the machine is restored from the newest file first.
pub trait StateMachine: Send + 'static {
    /// Why it can go on no longer (its disk failed, say). The node stops: a machine that skipped an entry would diverge.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Index of the last entry that the state contains; zero for an empty machine, which is then fed the whole log.
    fn applied(&self) -> LogIndex;

    /// Applies committed entries in order. For each entry of kind [`Command`](raft_core::EntryKind::Command) exactly one reply is
    /// pushed; entries of other kinds are counted as applied and get none. A command that makes no sense is no error of the
    /// machine: it gets a reply that says so, the same on every node.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error>;

    /// Whether this work, if it were given now, would take microseconds for each entry or query, and wait for nobody. Then the node may
    /// do it on the thread of its loop, which saves two switches of threads for each write or read; the loop stands still
    /// meanwhile, so a wrong "yes" delays heartbeats. "No", the default, is always right.
    fn is_prompt(&self, work: Work<'_>) -> bool {
        let _ = work;
        false
    }

    /// Up to where the state survives a crash of the whole machine; `None`, the default, when the machine keeps nothing on a disk itself.
    fn durable(&mut self) -> Option<LogIndex> {
        None
    }

    /// Asks the machine to make durable, soon and without waiting for it, what is applied by now: the log is to be compacted.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn persist(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Whether a cut would be cheap right now. If not, the node asks again a few milliseconds later.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn can_cut(&mut self) -> Result<bool, Self::Error> {
        Ok(true)
    }

    /// A view of the state as it is now, at one point in time, whatever is applied afterwards. Must be cheap: nothing is applied meanwhile. `None`,
    /// the default, when the machine has no snapshots.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn cut(&mut self) -> Result<Option<Box<dyn Cut>>, Self::Error> {
        Ok(None)
    }

    /// Replaces the whole state by the one that a [`Cut`] has written. A machine with durable state does that atomically, together with
    /// [`applied`](Self::applied) (the index of `meta.last`) and [`restored`](Self::restored) (`meta`): a crash leaves the old or the new state, and
    /// once this returns, the new one. What `data` delivers has been checked to be what was written.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn restore(&mut self, meta: &SnapshotMeta, data: &mut dyn Read) -> Result<(), RestoreError<Self::Error>> {
        let _ = (meta, data);
        Err(RestoreError::Unsupported)
    }

    /// What the durable state was last restored from, if it ever was.
    fn restored(&self) -> Option<SnapshotMeta> {
        None
    }

    /// Answers a query from the present state, by appending the answer to `answer`. A query that makes no sense gets an
    /// answer that says so.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn query(&mut self, query: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error>;
}

/// The state of a [`StateMachine`] at one point in time.
pub trait Cut: Send + 'static {
    /// Writes all of it, so that [`StateMachine::restore`] understands it; on another thread, while the machine goes on.
    ///
    /// # Errors
    /// It cannot be written, or the state cannot be read. Nothing has happened: it is tried again later.
    fn write_to(self: Box<Self>, out: &mut dyn Write) -> io::Result<()>;
}

/// Why a state machine was not restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError<E: std::error::Error + 'static> {
    /// The machine has no snapshots.
    #[error("this state machine cannot be restored from a snapshot")]
    Unsupported,
    /// The snapshot cannot be read, or it is none of this machine.
    #[error("the snapshot cannot be used: {0}")]
    Data(#[from] io::Error),
    /// The machine failed.
    #[error(transparent)]
    Machine(E),
}

/// Work for a [`StateMachine`], to be judged by [`StateMachine::is_prompt`].
#[derive(Clone, Copy, Debug)]
pub enum Work<'a> {
    /// Entries to apply: a small batch.
    Apply(&'a Entries),
    /// A query to answer.
    Query(&'a [u8]),
}

/// Collects the replies of one batch in one buffer. On a node where nobody waits, they are dropped at once.
#[derive(Debug, Default)]
pub struct Replies {
    wanted: bool,
    buf: BytesMut,
    ends: Vec<usize>,
    pushed: usize,
}

impl Replies {
    /// An empty collection; unless `wanted`, only the number of replies is kept.
    pub fn new(wanted: bool) -> Self {
        Replies { wanted, ..Replies::default() }
    }

    /// Whether anybody waits for the replies: if not, they need not be computed, but must still be pushed (empty).
    pub fn wanted(&self) -> bool {
        self.wanted
    }

    /// The reply to the next command.
    pub fn push(&mut self, reply: &[u8]) {
        self.push_with(|buf| buf.extend_from_slice(reply));
    }

    /// The reply to the next command, written by `write`, which is only called when somebody waits. It must only append.
    pub fn push_with(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.pushed += 1;
        if self.wanted {
            write(&mut self.buf);
            self.ends.push(self.buf.len());
        }
    }

    /// Number of replies pushed.
    pub fn len(&self) -> usize {
        self.pushed
    }

    /// Whether none was pushed.
    pub fn is_empty(&self) -> bool {
        self.pushed == 0
    }

    /// The reply to the command number `n` of the batch, counted from zero.
    pub fn get(&self, n: usize) -> Option<&[u8]> {
        let end = *self.ends.get(n)?;
        let start = n.checked_sub(1).map_or(0, |before| self.ends[before]);
        self.buf.get(start..end)
    }

    pub(crate) fn reset(&mut self, wanted: bool) {
        self.buf.clear();
        self.ends.clear();
        self.pushed = 0;
        self.wanted = wanted;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_kept_apart() {
        let mut replies = Replies::new(true);
        replies.push(b"one");
        replies.push(b"");
        replies.push(b"three");
        assert_eq!((replies.get(0), replies.get(1)), (Some(&b"one"[..]), Some(&b""[..])));
        assert_eq!((replies.get(2), replies.get(3)), (Some(&b"three"[..]), None));
        replies.reset(false);
        replies.push_with(|_| unreachable!("nobody waits"));
        assert_eq!((replies.len(), replies.get(0)), (1, None));
    }
}
