//! A set of numbers.

use std::collections::BTreeSet;

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, LogIndex};
use raft_node::{Replies, StateMachine, Work};

/// What a machine does when it is told the number 13, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Behaviour {
    #[default]
    Works,
    Fails,
    Panics,
    /// The same, but on the thread of the loop.
    FailsPromptly,
    PanicsPromptly,
    /// Fails when it is asked anything.
    FailsWhenAsked,
    /// Takes its time before it fails.
    FailsSlowly,
    /// Takes its time to say how far it is.
    OpensSlowly,
}

/// Remembers which numbers it was told. The same one may come several times, since clients repeat themselves.
#[derive(Default)]
pub(super) struct Numbers {
    applied: LogIndex,
    found: BTreeSet<u64>,
    behaviour: Behaviour,
}

impl Numbers {
    pub(super) fn new(behaviour: Behaviour) -> Self {
        Numbers { behaviour, ..Numbers::default() }
    }

    pub(super) fn command(number: u64) -> Vec<u8> {
        number.to_be_bytes().to_vec()
    }

    /// Understands the answer to any query.
    pub(super) fn answer(answer: &[u8]) -> BTreeSet<u64> {
        answer.chunks(8).map(|bytes| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))).collect()
    }
}

impl StateMachine for Numbers {
    type Error = std::io::Error;

    fn applied(&self) -> LogIndex {
        if self.behaviour == Behaviour::OpensSlowly {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        self.applied
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                let number = Numbers::answer(entry.payload).into_iter().next().unwrap_or_default();
                match self.behaviour {
                    Behaviour::Fails | Behaviour::FailsPromptly | Behaviour::FailsSlowly if number == 13 => {
                        if self.behaviour == Behaviour::FailsSlowly {
                            std::thread::sleep(std::time::Duration::from_millis(500));
                        }
                        return Err(std::io::Error::other("thirteen is too much"));
                    }
                    Behaviour::Panics | Behaviour::PanicsPromptly => assert!(number != 13, "thirteen, as asked"),
                    _ => {}
                }
                self.found.insert(number);
                replies.push(b"");
            }
            self.applied = entry.index;
        }
        Ok(())
    }

    fn is_prompt(&self, _: Work<'_>) -> bool {
        matches!(self.behaviour, Behaviour::FailsPromptly | Behaviour::PanicsPromptly)
    }

    fn query(&mut self, _query: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error> {
        if self.behaviour == Behaviour::FailsWhenAsked {
            return Err(std::io::Error::other("it was asked"));
        }
        self.found.iter().for_each(|number| answer.extend_from_slice(&number.to_be_bytes()));
        Ok(())
    }
}
