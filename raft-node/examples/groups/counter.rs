//! A state machine that counts, and keeps nothing on a disk.

use bytes::BytesMut;
use raft_core::{Entries, EntryKind, LogIndex};
use raft_node::{Replies, StateMachine, Work};

#[derive(Default)]
pub(crate) struct Counter {
    applied: LogIndex,
    count: u64,
}

impl StateMachine for Counter {
    type Error = std::convert::Infallible;

    fn applied(&self) -> LogIndex {
        self.applied
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                self.count += 1;
                let count = self.count;
                replies.push_with(|out| out.extend_from_slice(&count.to_le_bytes()));
            }
            self.applied = entry.index;
        }
        Ok(())
    }

    fn is_prompt(&self, _: Work<'_>) -> bool {
        true
    }

    fn query(&mut self, _query: &[u8], answer: &mut BytesMut) -> Result<(), Self::Error> {
        answer.extend_from_slice(&self.count.to_le_bytes());
        Ok(())
    }
}
