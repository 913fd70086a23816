//! What a server makes of what it finds when it starts.

use crate::config::ConfigError;
use crate::io::{Recovered, SnapshotMeta};
use crate::memberships::Memberships;
use crate::raft::Raft;
use crate::types::{HardState, LogIndex, Term};

/// Checks that what was found makes sense. Returns the snapshot that the state machine had taken over when a crash came before the log was told.
///
/// # Errors
/// What was found contradicts itself. Then nothing of it may be believed: a state machine, say, that claims more than its log has, and cannot say that
/// a snapshot brought it there.
pub(crate) fn check(recovered: &Recovered) -> Result<Option<SnapshotMeta>, ConfigError> {
    let Recovered { hard_state, log_start, runs, last_index, applied, changes, restored, .. } = recovered;
    let installed = restored.as_ref().filter(|meta| {
        // What a log forgot, it had.
        let in_log = meta.last.index < log_start.index || term_at(recovered, meta.last.index) == Some(meta.last.term);
        !in_log
    });
    let problem = if last_index < &log_start.index {
        "the log ends before it begins"
    } else if applied < &log_start.index {
        "the state machine lacks entries that are no longer in the log"
    } else if installed.is_some_and(|meta| meta.last.index <= log_start.index || *applied != meta.last.index) {
        "the state machine has taken over a snapshot that contradicts the log"
    } else if applied > last_index && installed.is_none() {
        "the state machine has applied entries that are not in the log"
    } else if runs
        .iter()
        .any(|run| run.index <= log_start.index || run.index > *last_index || run.term < log_start.term)
    {
        "a term begins outside the log"
    } else if runs.windows(2).any(|w| w[0].term >= w[1].term || w[0].index >= w[1].index) {
        "terms do not ascend"
    } else if last_index > &log_start.index && runs.first().is_none_or(|run| run.index != log_start.index.next()) {
        "the terms of the entries are missing"
    } else if changes.windows(2).any(|w| w[0].0 >= w[1].0)
        || changes.iter().any(|(index, _)| *index <= log_start.index || index > last_index)
    {
        "a membership is not in the log, or they do not ascend"
    } else if runs.last().unwrap_or(log_start).term > hard_state.current_term {
        "an entry has a term above the current term"
    } else if hard_state.current_term > Term::MAX
        || last_index > &LogIndex::MAX
        || installed.is_some_and(|meta| meta.last.term > Term::MAX || meta.last.index > LogIndex::MAX)
    {
        "a term or an index is out of range"
    } else {
        return Ok(installed.cloned());
    };
    Err(ConfigError::Recovered(problem))
}

/// The term of the entry at `index`, if that is in the log, or the one before it.
fn term_at(recovered: &Recovered, index: LogIndex) -> Option<Term> {
    let Recovered { log_start, runs, last_index, .. } = recovered;
    if index > *last_index {
        return None;
    }
    let run = runs.iter().rev().find(|run| run.index <= index);
    run.or(Some(log_start).filter(|start| start.index == index)).map(|run| run.term)
}

impl Raft {
    /// The state machine has taken over a snapshot, and a crash came before the log had heard of it: the first write tells it.
    pub(crate) fn finish_install(&mut self, start: SnapshotMeta) {
        let last = start.last;
        // The leader's term, which it came in, may have been lost in the same crash.
        if last.term > self.hard_state.current_term {
            self.hard_state = HardState { current_term: last.term, voted_for: None };
            self.durability.hard_state_changed();
        }
        self.durability.restarts_after(start.clone(), self.log.start().index);
        self.memberships = Memberships::new(last.index, start.membership, Vec::new());
        self.settled = last.index;
        self.belongs = self.memberships.current().has_member(self.config.id, self.config.identity);
        self.log.restart(last);
        self.verified = last.index;
    }
}
