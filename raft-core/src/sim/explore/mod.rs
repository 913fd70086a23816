//! Every order of events, up to a bound: a breadth-first search through all states of a small cluster of real cores.
//!
//! Simulation throws dice; this leaves nothing to them. From a start, every event that can happen next is tried in every state, and
//! each state is entered once. Between two events any message that was ever sent may arrive at its receiver (again, if
//! [`Settings::repeats`]), or never: so loss, repetition, delay and reordering are all in there, without a bound of their own. A server
//! may crash at any moment and starts again with any prefix of its pending writes, the next of them torn. A write that has reached the
//! disk, and of which the core has not been told yet, needs no event of its own: nobody could tell it from a pending one, but for a
//! crash, which may keep it.
//!
//! **Time.** Timers run out when the explorer says so, in any order, on servers that know nothing of each other's clocks. Between the events
//! time stands still: what is awaited begins anew after each (`Raft::forget_time`), so states that differ only in what time
//! it is are one.
//!
//! **Snapshots.** A state machine may keep its state at any moment, and its log is then forgotten up to there, which takes a write like any other. A
//! snapshot is a message; that it has arrived, or has not, its sender hears sooner or later or never, and may hear wrongly that it has not. Taking it over
//! takes the state machine's time, and then a write of the log; a crash may come before, between and after.
//!
//! **Sleep.** Where groups sleep, a server may die for good, and each of the others hears then, sooner or later, that its link to that one is lost: that is
//! the transport's duty. It may hear so without a reason, too.
//!
//! **What is held against every state:** Election Safety, one vote a term, Log Matching, Leader Completeness, State Machine Safety, what is
//! committed is on the disks of a majority, reads see what was committed when they were asked, what a log has forgotten is durable in its server's
//! state machine, which keeps nothing but what was committed, nobody sleeps for ever over a dead leader; and of each step: the
//! invariants of the core, its debug assertions, no anomaly is reported, what is said is backed by the disk, memory and disk agree,
//! terms, votes and commit indices are never taken back, entries are applied in order and as they are on the disk.
//!
//! **How it is fast.** Each server's states are numbered, and what one event does to one of them is computed once. The
//! state of the whole is a list of numbers.

mod event;
mod history;
mod machine;
mod search;
mod server;
mod settings;
mod situations;
mod story;
mod world;

pub use search::{Limits, Progress, Report, Violation, explore};
pub use settings::{Settings, suite};
pub use situations::{Situation, Situations};

/// What every state is held against, in words.
pub const PROPERTIES: [&str; 11] = [
    "election safety",
    "one vote a term, kept through crashes",
    "log matching",
    "leader completeness",
    "state machine safety",
    "what is committed is on the disks of a majority",
    "reads see what was committed when they were asked",
    "what a log has forgotten is in the durable state of its server's state machine",
    "nobody keeps, sends or takes over a snapshot of anything but what was committed",
    "when all who live sleep, one of them leads the others, or somebody is yet to hear of a lost link",
    "per step: the core's own invariants, promises backed by the disk, nothing taken back",
];
