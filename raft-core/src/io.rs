//! What goes into the core and what comes out: the whole boundary, as plain data.

use std::time::Duration;

use crate::entries::Entries;
use crate::membership::Membership;
use crate::message::Envelope;
use crate::types::{HardState, LogId, LogIndex, NodeId, Term, WriteSeq};

/// Something that happened outside. See [`Raft::step`](crate::Raft::step).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The time that [`Raft::deadline`](crate::Raft::deadline) named has come. Waking too often does no harm.
    Wake,
    /// A message arrived. The transport has verified that it comes from `from` and is meant for this group.
    Message(Envelope),
    /// Every [`Write`] up to this one is durable, in the order in which they were handed out.
    Persisted(WriteSeq),
    /// The state machine has applied everything up to this index.
    Applied(LogIndex),
    /// Answer to a [`Fetch`]: entries that begin at its `first` and do not pass its `last`. Fewer are fine, as long as there is
    /// one; none, when the log was truncated or purged meanwhile.
    Fetched {
        /// Echo of [`Fetch::id`].
        id: FetchId,
        /// What was read.
        entries: Entries,
    },
    /// The connection to a peer was lost or made anew: messages on their way may be gone. A hint that saves a timeout;
    /// without it the core finds out by itself, unless the group [sleeps](crate::Config::quiesce_after). So with quiescence it is a duty: within a
    /// bounded time after a peer has died, or messages have begun to get lost for good in either direction, whoever of the two is up hears
    /// of it, once at least and after the fact. Telling too often does no harm.
    LinkReset(NodeId),
    /// A [`SendSnapshot`] has come to an end.
    SnapshotSent {
        /// Echo of [`SendSnapshot::to`].
        to: NodeId,
        /// Echo of [`SendSnapshot::epoch`].
        epoch: u64,
        /// The last entry in the snapshot, once the follower has all of it and has checked it; `None` when the transfer failed: it is
        /// asked for again after a while.
        last: Option<LogId>,
    },
    /// A leader's snapshot has arrived completely and is kept outside. The answer is [`Output::restore`], if it is of use: with the next output, or,
    /// while another is being taken over, with one after that. It may be thrown away once one that came later is handed out, or when nothing is
    /// being taken over and the next output has not asked for it.
    SnapshotReceived(SnapshotReceived),
    /// What [`Output::restore`] asked for is done, and durable: after a crash the state machine has this state or a newer one.
    Restored(SnapshotId),
}

/// Identifies a snapshot that was received, to whoever keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

/// What a snapshot says about itself (paper, section 7): it replaces the log up to its last entry. The same is remembered of the place where
/// a log begins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SnapshotMeta {
    /// The last entry whose effect is in it (the paper's `lastIncludedTerm` and `lastIncludedIndex`).
    pub last: LogId,
    /// Who belonged to the cluster as of that entry.
    pub membership: Membership,
}

/// A snapshot that a leader has sent. See [`Input::SnapshotReceived`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotReceived {
    /// Who sent it, as the transport has verified.
    pub from: NodeId,
    /// Its term when it began to send.
    pub term: Term,
    /// Echo of [`SendSnapshot::epoch`].
    pub epoch: u64,
    /// What it says about itself.
    pub meta: SnapshotMeta,
    /// To be echoed in [`Restore::id`].
    pub id: SnapshotId,
}

/// A wish to send a snapshot to a follower that needs entries which are no longer in the log. It may take its time, next to everything else.
/// Report [`Input::SnapshotSent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SendSnapshot {
    /// To whom.
    pub to: NodeId,
    /// In which term: the receiver must be told.
    pub term: Term,
    /// Names this life of the follower; the receiver must be told.
    pub epoch: u64,
    /// A snapshot whose last entry is below this one would not help.
    pub at_least: LogIndex,
}

/// A wish to replace the state of the state machine by a snapshot that was received. It comes in order with [`Output::apply`]: after all that was
/// handed out before, and nothing is handed out until [`Input::Restored`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Restore {
    /// Echo of [`SnapshotReceived::id`].
    pub id: SnapshotId,
    /// What it says about itself.
    pub meta: SnapshotMeta,
}

/// What is to be done after one or more steps. Every field has exactly one destination, and all of them may be served in
/// any order and at the same time: what had to wait for something else is not in here yet.
#[must_use = "the protocol stands still unless its output is carried out"]
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Output {
    /// For the transport: send now, best effort, in order for each receiver.
    pub messages: Vec<Envelope>,
    /// For the writer: make durable after all earlier writes, then report [`Input::Persisted`].
    pub write: Option<Write>,
    /// For the state machine: committed and locally durable entries, following on what was handed out before.
    /// Report [`Input::Applied`].
    pub apply: Entries,
    /// For the reader: entries that are no longer in memory. Report [`Input::Fetched`].
    pub fetches: Vec<Fetch>,
    /// For the transport: followers that need a snapshot.
    pub snapshots: Vec<SendSnapshot>,
    /// For the state machine, after `apply`: take over a snapshot that was received.
    pub restore: Option<Restore>,
    /// For those who asked to read.
    pub reads: Vec<ReadOutcome>,
    /// For those who watch: logs, metrics, waiting proposals.
    pub events: Vec<Event>,
}

impl Output {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
            && self.write.is_none()
            && self.apply.is_empty()
            && self.fetches.is_empty()
            && self.snapshots.is_empty()
            && self.restore.is_none()
            && self.reads.is_empty()
            && self.events.is_empty()
    }
}

/// Puts a queue in the place of one that was carried out, and keeps the memory of that.
fn exchange<T>(new: &mut Vec<T>, old: &mut Vec<T>) {
    old.clear();
    std::mem::swap(new, old);
}

/// What has come together for the next [`Output`]. The rest of that is made when it is taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) messages: Vec<Envelope>,
    pub(crate) apply: Entries,
    pub(crate) fetches: Vec<Fetch>,
    pub(crate) snapshots: Vec<SendSnapshot>,
    pub(crate) reads: Vec<ReadOutcome>,
    pub(crate) events: Vec<Event>,
}

impl Pending {
    /// Puts everything in the place of what is in `output`, and keeps the memory of that for what comes next.
    #[inline]
    pub(crate) fn hand_over(&mut self, output: &mut Output) {
        // Names every field, so that a new one has to be thought of here. `apply` has gone before.
        let Pending { messages, apply: _, fetches, snapshots, reads, events } = self;
        if messages.len() | output.messages.len() != 0 {
            exchange(messages, &mut output.messages);
        }
        // Nearly always there is none of these, and to find that out is less than to move them.
        let new = fetches.len() | snapshots.len() | reads.len() | events.len();
        let old = output.fetches.len() | output.snapshots.len() | output.reads.len() | output.events.len();
        if new | old != 0 {
            self.hand_over_the_rest(output);
        }
    }

    #[cold]
    fn hand_over_the_rest(&mut self, output: &mut Output) {
        exchange(&mut self.fetches, &mut output.fetches);
        exchange(&mut self.snapshots, &mut output.snapshots);
        exchange(&mut self.reads, &mut output.reads);
        exchange(&mut self.events, &mut output.events);
    }

    #[cfg(feature = "sim")]
    pub(crate) fn is_empty(&self) -> bool {
        let Pending { messages, apply, fetches, snapshots, reads, events } = self;
        let asked = fetches.is_empty() && snapshots.is_empty() && reads.is_empty();
        messages.is_empty() && apply.is_empty() && asked && events.is_empty()
    }
}

/// Changes to the stable storage, to be made in this order: log start, truncate, append, hard state; atomically, or at
/// least so that after a crash an entry is never visible without the truncation and hard state of the same write.
///
/// Invariant: `entries` begin at `truncate_from` if that is set, and otherwise right after the last entry written before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    /// Number of this write.
    pub seq: WriteSeq,
    /// The new term and vote, when they changed.
    pub hard_state: Option<HardState>,
    /// From now on the log begins after this entry. If the log holds it, the entries up to it are forgotten; if it does not (another one is in its place,
    /// or none), every entry is. What is forgotten only to save space may be forgotten later.
    pub log_start: Option<SnapshotMeta>,
    /// Forget every entry at this index and above.
    pub truncate_from: Option<LogIndex>,
    /// Append these.
    pub entries: Entries,
}

/// Identifies a [`Fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FetchId(pub u64);

/// A wish to read entries from the stable log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fetch {
    /// To be echoed in [`Input::Fetched`].
    pub id: FetchId,
    /// First entry wanted.
    pub first: LogIndex,
    /// Last entry wanted.
    pub last: LogIndex,
    /// Stop when this many bytes are read (but deliver at least one entry).
    pub max_bytes: usize,
}

/// Identifies a batch of reads that was given to [`Raft::read_index`](crate::Raft::read_index).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// How a request to read ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// Once the state machine has applied `index`, a local read is linearizable (thesis, section 6.4).
    Ready {
        /// Which reads.
        id: ReadId,
        /// What must be applied first.
        index: LogIndex,
    },
    /// Leadership was lost before it was confirmed, or the leader did not answer: ask again, here or elsewhere.
    Lost {
        /// Which reads.
        id: ReadId,
    },
}

/// Positions that a batch of proposals took: `first ..= last`, in `term`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The leader's term.
    pub term: Term,
    /// Index of the first command.
    pub first: LogIndex,
    /// Index of the last command.
    pub last: LogIndex,
}

/// Why a proposal was refused. It is definitely not in the log: trying again, here or elsewhere, is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This server is not the leader. Go to `hint`, or try the others.
    #[error("not the leader")]
    NotLeader {
        /// The leader of the current term, if it is known.
        hint: Option<NodeId>,
    },
    /// Too many bytes are uncommitted or unapplied. Try again after a while.
    #[error("too much in progress; retry in {} ms", retry_after.as_millis())]
    Busy {
        /// When there will probably be room for as much as was proposed, going by how quickly things went on lately: whole milliseconds, from 1 ms to 1 s. It is
        /// no promise. Wait about as long (a little longer, each a little differently, if there are many who wait), and longer if it was in vain.
        retry_after: Duration,
    },
    /// Leadership is being handed over. Try again after a moment, first at `to`.
    #[error("handing over to node {to}; retry in {} ms", retry_after.as_millis())]
    Transferring {
        /// Who leads next, if all goes well.
        to: NodeId,
        /// What is left of the attempt, but no more than a heartbeat interval, because it is nearly always over before: whole milliseconds, from 1 ms to 1 s.
        retry_after: Duration,
    },
    /// A command is larger than [`Config::max_entry_bytes`](crate::Config::max_entry_bytes). It will never be accepted.
    #[error("command of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
        /// The limit, in bytes.
        limit: usize,
    },
    /// There was no command in the batch, or more than 4 GiB of them.
    #[error("a batch must hold between one command and 4 GiB")]
    BadBatch,
}

/// Why a read was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This server is not the leader, and knows of none that it could ask. Try the others.
    #[error("not the leader")]
    NotLeader {
        /// The leader of the current term, if it is known.
        hint: Option<NodeId>,
    },
}

/// Why leadership is not handed over. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This server is not the leader. Go to `hint`, or try the others.
    #[error("not the leader")]
    NotLeader {
        /// The leader of the current term, if it is known.
        hint: Option<NodeId>,
    },
    /// The server that was named leads already.
    #[error("node {to} leads already")]
    Leads {
        /// Which.
        to: NodeId,
    },
    /// Only a voter can lead.
    #[error("node {to} is not a voter")]
    NotVoter {
        /// Which server was named.
        to: NodeId,
    },
    /// The server that was named has not been heard for an election timeout.
    #[error("node {to} has not been heard lately")]
    Unreachable {
        /// Which.
        to: NodeId,
    },
    /// No other voter has been heard for an election timeout.
    #[error("no other voter has been heard lately")]
    NoCandidate,
    /// Leadership is being handed over to someone else. That ends within an election timeout.
    #[error("handing over to node {to} already")]
    InProgress {
        /// To whom.
        to: NodeId,
    },
}

/// Something worth telling. Events carry no duty, except that whoever holds proposals must give up on those which
/// [`Event::SteppedDown`] leaves undecided.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// This server was elected.
    BecameLeader {
        /// In this term.
        term: Term,
    },
    /// This server leads no more. Proposals of its term above the commit index have an unknown outcome.
    SteppedDown {
        /// The term it led.
        term: Term,
        /// Why.
        reason: StepDownReason,
    },
    /// A leader became known, or was lost from sight.
    LeaderChanged {
        /// The current term.
        term: Term,
        /// Its leader, if known.
        leader: Option<NodeId>,
    },
    /// This server began an election, or a pre-vote.
    Campaigning {
        /// The term it asks for.
        term: Term,
        /// Whether it only asks what would happen.
        pre_vote: bool,
    },
    /// This server leads, and hands over: it takes no proposals until that has come to an end.
    TransferBegun {
        /// The term it leads.
        term: Term,
        /// To whom.
        to: NodeId,
    },
    /// Handing over took longer than an election timeout: this server goes on leading.
    TransferFailed {
        /// The term it leads.
        term: Term,
        /// To whom.
        to: NodeId,
    },
    /// Uncommitted entries gave way to the leader's.
    Truncated {
        /// First index that was dropped.
        from: LogIndex,
    },
    /// Another membership counts from now on: its entry was appended, and need not be committed yet; or the one before counts again, because an entry
    /// was truncated; or a snapshot brought it (paper, section 6).
    MembershipChanged {
        /// Index of the entry that brought it, or of the start of the log.
        index: LogIndex,
        /// Who belongs to the cluster.
        membership: Membership,
    },
    /// A membership without this server is committed: it has been removed, and may be stopped. It does not campaign any more.
    ///
    /// Nor does it after a restart, if the state machine has `index` durably by then ([`Recovered::applied`]): what is committed is remembered nowhere
    /// else, so whoever drives the core should make that so when this event comes. Otherwise it asks for votes again, which does no harm, until a
    /// leader that still knows of it tells it once more.
    Removed {
        /// Index of the entry.
        index: LogIndex,
    },
    /// The state machine has taken over a leader's snapshot, and the log follows.
    Restored {
        /// The last entry in it.
        last: LogId,
        /// The log held that entry by then, and keeps what comes after it; otherwise it begins anew.
        kept: bool,
    },
    /// The group has gone to [sleep](crate::Config::quiesce_after), as far as this server knows: it has no deadline any more.
    Quiesced {
        /// The current term.
        term: Term,
    },
    /// This server is awake again.
    Woken {
        /// The current term.
        term: Term,
        /// Why.
        reason: WakeReason,
    },
    /// An input contradicts the protocol and was ignored.
    Rejected {
        /// Who sent it.
        from: NodeId,
        /// What is wrong with it.
        reason: Anomaly,
    },
}

/// Why a leader stepped down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepDownReason {
    /// Someone has a newer term.
    NewerTerm,
    /// No majority has answered for an election timeout (`CheckQuorum`; thesis, section 6.2).
    QuorumLost,
    /// Its own disk has not finished a write for [`Config::max_write_stall`](crate::Config::max_write_stall).
    WriteStalled,
    /// It is not among the voters any more, and the membership that says so is committed (thesis, section 4.2.2).
    Removed,
}

/// Why a server that slept does not any more. See [`Event::Woken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// Someone here has proposed, wants to read, to change the membership or to hand over.
    Request,
    /// Another server has said something that is no answer.
    Message,
    /// The link to a peer was [reset](Input::LinkReset): it may be down.
    LinkReset,
}

/// What can be wrong with an input. None of these happens between honest, undamaged servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Anomaly {
    /// The sender is this server itself, or has no valid id.
    Stranger,
    /// The message is for another server.
    Misaddressed,
    /// A term or an index beyond [`Term::MAX`] or [`LogIndex::MAX`].
    OutOfRange,
    /// Two servers claim to lead the same term.
    TwoLeaders,
    /// Entries do not follow on `prev_log`, or have a term above their sender's.
    MalformedEntries,
    /// Entries contradict a committed entry.
    CommittedConflict,
    /// Acknowledges more than was ever sent.
    AckBeyondLog,
    /// A commit index beyond what can be known.
    CommitBeyondLog,
    /// The driver reported something that was never handed out.
    Driver,
}

/// What the stable storage and the state machine know when a server starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Term and vote.
    pub hard_state: HardState,
    /// The entry before the first one in the log: [`LogId::ZERO`], or the last entry of the newest snapshot.
    pub log_start: LogId,
    /// The first entry of each term in the log, oldest first.
    pub runs: Vec<LogId>,
    /// Index of the last entry; `log_start.index` when the log is empty.
    pub last_index: LogIndex,
    /// What the state machine has applied; at least `log_start.index`.
    pub applied: LogIndex,
    /// Who belonged to the cluster as of `log_start`.
    pub membership: Membership,
    /// The changes to that which are in the log, oldest first: each entry of kind [`Membership`](crate::EntryKind::Membership).
    pub changes: Vec<(LogIndex, Membership)>,
    /// The last snapshot that the state machine has taken over from a leader, if any. A crash may have come before the log was told.
    pub restored: Option<SnapshotMeta>,
}

impl Recovered {
    /// A server that has never run before.
    pub fn fresh(membership: Membership) -> Self {
        Recovered {
            hard_state: HardState::default(),
            log_start: LogId::ZERO,
            runs: Vec::new(),
            last_index: LogIndex::ZERO,
            applied: LogIndex::ZERO,
            membership,
            changes: Vec::new(),
            restored: None,
        }
    }
}
