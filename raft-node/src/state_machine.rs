//! What a user of the library brings: the machine that committed commands drive.

use bytes::BytesMut;
use raft_core::{Entries, LogIndex};

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
///   loses is replayed from the log.
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

    /// Answers a query from the present state, by appending the answer to `answer`. A query that makes no sense gets an
    /// answer that says so.
    ///
    /// # Errors
    /// The machine can go on no longer; the node stops.
    fn query(&mut self, query: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error>;
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
