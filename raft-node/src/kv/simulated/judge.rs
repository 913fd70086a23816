//! Keeps the books about all stores, and believes none: whether a command took effect is seen from its key, before and after.

use std::collections::BTreeMap;

use raft_core::sim::task::Failure;
use raft_core::{EntryRef, Term};

use crate::kv::{Command, Refusal, Reply};

/// Revision and number of a key, as a store tells them; `None` if it is absent.
pub(super) type Found = Option<(u64, u64)>;

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Operations of clients that came to an end, and those that stayed in doubt.
    pub(super) done: u64,
    pub(super) in_doubt: u64,
    /// Commands that were repeated and got their first reply: anywhere, under another leader than the first time, and from a table that came
    /// with a snapshot.
    pub(super) repeated: u64,
    pub(super) under_another_leader: u64,
    pub(super) known_by_snapshot: u64,
    /// Commands that were refused because their sessions had ended, and copies that came too late.
    pub(super) expired: u64,
    pub(super) late: u64,
    /// Stores that were opened again with what they had on disk, and that were restored from a snapshot.
    pub(super) reopened: u64,
    pub(super) restored: u64,
}

impl Counts {
    fn parts(&mut self) -> [&mut u64; 9] {
        let Counts {
            done,
            in_doubt,
            repeated,
            under_another_leader,
            known_by_snapshot,
            expired,
            late,
            reopened,
            restored,
        } = self;
        [done, in_doubt, repeated, under_another_leader, known_by_snapshot, expired, late, reopened, restored]
    }

    /// Whether everything occurred.
    pub(super) fn is_complete(mut self) -> bool {
        self.parts().into_iter().all(|count| *count > 0)
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, mut other: Counts) {
        self.parts().into_iter().zip(other.parts()).for_each(|(sum, more)| *sum += *more);
    }
}

/// What is known of the entry at some index.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Applied {
    term: Term,
    command: Vec<u8>,
    reply: Option<Reply>,
    took_effect: bool,
}

/// The books.
#[derive(Default)]
pub(super) struct Judge {
    log: BTreeMap<u64, Applied>,
    /// As which entry each command of a session came first, and its reply; by session and serial number.
    first: BTreeMap<(u64, u64), (u64, Reply)>,
    /// As which entry it took effect.
    effects: BTreeMap<(u64, u64), u64>,
    /// The number that each revision stands for.
    numbers: BTreeMap<u64, u64>,
    pub(super) counts: Counts,
}

impl Judge {
    /// A store has applied an entry; its key was so before and is so now. `snapshot` is the index of the snapshot that the store was last restored from.
    pub(super) fn applied(
        &mut self,
        server: usize,
        entry: &EntryRef<'_>,
        reply: Option<Reply>,
        key: [Found; 2],
        snapshot: u64,
    ) -> Result<(), Failure> {
        let (index, took_effect) = (entry.index.0, key[0] != key[1]);
        let command = entry.payload.to_vec();
        let applied = Applied { term: entry.term, command, reply, took_effect };
        match self.log.get(&index) {
            Some(known) if *known != applied => {
                return Err(format!("n{} comes to {applied:?} at {index}, others to {known:?}", server + 1));
            }
            Some(_) => {}
            None => drop(self.log.insert(index, applied)),
        }
        if let [_, Some((revision, number))] = key
            && took_effect
        {
            self.numbers.insert(revision, number);
        }
        match (Command::decode(entry.payload), reply) {
            (Ok(Command::InSession { session, serial, .. }), Some(reply)) => {
                self.in_session((session, serial), entry, reply, took_effect, snapshot)
            }
            _ => Ok(()),
        }
    }

    fn in_session(
        &mut self,
        name: (u64, u64),
        entry: &EntryRef<'_>,
        reply: Reply,
        took_effect: bool,
        snapshot: u64,
    ) -> Result<(), Failure> {
        let index = entry.index.0;
        if took_effect && let Some(earlier) = self.effects.insert(name, index).filter(|earlier| *earlier != index) {
            return Err(format!("command {name:?} took effect at {earlier} and at {index}"));
        }
        if let Reply::Refused(refusal) = reply {
            match refusal {
                Refusal::SessionExpired => self.counts.expired += 1,
                Refusal::AlreadyAnswered => self.counts.late += 1,
                other => return Err(format!("command {name:?} is refused: {other}")),
            }
            return Ok(());
        }
        let (first, known) = *self.first.entry(name).or_insert((index, reply));
        if known != reply {
            return Err(format!("command {name:?} was answered {known:?} at {first}, and {reply:?} at {index}"));
        }
        if first < index {
            self.counts.repeated += 1;
            self.counts.known_by_snapshot += u64::from(first <= snapshot);
            let then = self.log.get(&first).map(|applied| applied.term);
            self.counts.under_another_leader += u64::from(then.is_some_and(|term| term != entry.term));
        }
        Ok(())
    }

    /// The reply to the command that was proposed as this entry, if it became it.
    pub(super) fn reply(&self, index: u64, term: Term, command: &[u8]) -> Option<Reply> {
        let applied = self.log.get(&index)?;
        applied.reply.filter(|_| applied.term == term && applied.command == command)
    }

    /// The number that a revision stands for; `None` for revision 0, which is none.
    pub(super) fn number(&self, revision: u64) -> Option<u64> {
        self.numbers.get(&revision).copied()
    }
}
