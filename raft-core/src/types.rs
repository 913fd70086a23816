//! The words of the protocol: identities, positions in the log, and moments.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
        #[cfg_attr(feature = "serde", serde(transparent))]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }
    };
}

number!(
    /// Identity of a node, unique in its cluster for ever. Zero is not a node.
    NodeId,
    "n"
);
number!(
    /// Identity of a Raft group on a node. Every storage key and network frame carries one; a node that
    /// serves a single group uses [`GroupId::FIRST`].
    GroupId,
    "g"
);
number!(
    /// A term: Raft's logical clock (paper, section 5.1). Zero is the term before the first election.
    Term,
    "t"
);
number!(
    /// A position in the log. The first entry has index 1; index 0 stands for "before the log".
    LogIndex,
    "i"
);
number!(
    /// Number of a [`Write`](crate::Write). Strictly increasing in the order in which writes are handed out.
    WriteSeq,
    "w"
);

impl GroupId {
    /// The group of a node that has only one.
    pub const FIRST: GroupId = GroupId(1);
}

impl Term {
    /// The largest term that is believed. No cluster holds 2^62 elections, so a greater term comes from a
    /// damaged or hostile peer; believing it would leave no room for the next election.
    pub const MAX: Term = Term(1 << 62);

    /// The term that a new election begins, or `None` at the end of time.
    pub(crate) fn next(self) -> Option<Term> {
        (self < Term::MAX).then(|| Term(self.0 + 1))
    }
}

impl LogIndex {
    /// The position before the first entry.
    pub const ZERO: LogIndex = LogIndex(0);
    /// The largest index that is believed, for the same reason as [`Term::MAX`].
    pub const MAX: LogIndex = LogIndex(1 << 62);

    /// The index after this one.
    #[must_use]
    pub fn next(self) -> LogIndex {
        LogIndex(self.0.saturating_add(1))
    }

    /// The index before this one; zero stays zero.
    #[must_use]
    pub fn prev(self) -> LogIndex {
        LogIndex(self.0.saturating_sub(1))
    }
}

impl Add<u64> for LogIndex {
    type Output = LogIndex;
    fn add(self, n: u64) -> LogIndex {
        LogIndex(self.0.saturating_add(n))
    }
}

/// Distance in entries; zero when `other` is beyond `self`.
impl Sub<LogIndex> for LogIndex {
    type Output = u64;
    fn sub(self, other: LogIndex) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

/// Term and index of an entry. Two logs that hold the same `LogId` are identical up to it (Log Matching, paper,
/// section 5.3). The order, by term and then by index, is the paper's "at least as up-to-date" (section 5.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct LogId {
    /// Term in which the entry was proposed.
    pub term: Term,
    /// Its position.
    pub index: LogIndex,
}

impl LogId {
    /// Before the first entry.
    pub const ZERO: LogId = LogId { term: Term(0), index: LogIndex(0) };

    /// Puts a term and an index together.
    pub const fn new(term: Term, index: LogIndex) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// What a server must remember across restarts besides its log (paper, Figure 2). Term and vote always travel
/// together, so no crash can separate them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
pub struct HardState {
    /// Latest term the server has seen.
    pub current_term: Term,
    /// Candidate that received its vote in that term.
    pub voted_for: Option<NodeId>,
}

/// A moment on the caller's monotonic clock, in nanoseconds from an origin of the caller's choice. The core
/// never reads a clock: a node hands in monotonic time, a simulator hands in virtual time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Instant(pub u64);

impl Instant {
    /// Later than any moment that comes: a deadline that is none.
    pub const NEVER: Instant = Instant(u64::MAX);

    /// The moment `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Instant {
        Instant(millis.saturating_mul(1_000_000))
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, d: Duration) -> Instant {
        // `as_nanos` would count with 128 bits.
        let nanos = d.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(d.subsec_nanos()));
        Instant(self.0.saturating_add(nanos))
    }
}
