//! When a leader that refuses commands says that there will be room.

use std::time::Duration;

use raft_core::{Config, Input, Instant, LogIndex, ProposeError, Raft};

use crate::hand::{Server, config};

/// What an entry weighs besides its command.
const HEADER: usize = 17;

/// A single server that leads, a disk that is quick, and a state machine that applies what it is told to.
struct Alone(Raft, Instant);

impl Alone {
    fn new(config: Config) -> Self {
        let (server, _) = Server::leading_with(config, 1);
        Alone(server.raft, server.now)
    }

    /// Commits a command of so many bytes in all.
    fn commit(&mut self, bytes: usize) -> Result<LogIndex, ProposeError> {
        let proposed = self.0.propose(self.1, &[vec![b'x'; bytes - HEADER]])?;
        self.carry_on();
        assert_eq!(self.0.commit_index(), proposed.last);
        Ok(proposed.last)
    }

    fn carry_on(&mut self) {
        while let Some(write) = self.0.take_output().write {
            self.0.step(self.1, Input::Persisted(write.seq));
        }
    }

    fn apply(&mut self, index: LogIndex) {
        self.0.step(self.1, Input::Applied(index));
        self.carry_on();
    }

    /// Until the next heartbeats, which are 100 ms apart.
    fn beat(&mut self) {
        self.1 = self.0.deadline();
        self.0.step(self.1, Input::Wake);
        self.carry_on();
    }

    fn hint(&mut self) -> u64 {
        match self.commit(HEADER) {
            Err(ProposeError::Busy { retry_after }) => retry_after.as_millis() as u64,
            other => panic!("it is not refused: {other:?}"),
        }
    }
}

/// The bytes over the limit go as quickly as the state machine has applied bytes lately, however quickly they are committed.
#[test]
fn room_for_what_is_unapplied_is_made_by_the_state_machine() {
    let mut alone = Alone::new(Config { max_unapplied_bytes: 1000, ..config() });
    let first = alone.commit(900).expect("there is room");
    let mut next = alone.commit(600).expect("not over the limit before");
    assert_eq!(alone.hint(), 100, "nothing is known");
    alone.beat();
    assert_eq!(alone.hint(), 100, "nothing is known yet");
    alone.beat();
    assert_eq!(alone.hint(), 300, "it stands still: an election timeout");
    alone.apply(first);
    // 200 over the limit; after the 900, 600 are applied every 100 ms.
    for expected in [23, 34, 34, 34] {
        alone.beat();
        let newest = alone.commit(600).expect("there is room");
        assert_eq!(alone.hint(), expected);
        alone.apply(next);
        next = newest;
    }
    // With these it is 1200 since the last heartbeat but one, and there it stops.
    alone.commit(600).expect("there is room");
    for (later, expected) in [(50, 25), (40, 32)] {
        alone.1 = alone.1 + Duration::from_millis(later);
        assert_eq!(alone.hint(), expected);
    }
    (0..2).for_each(|_| alone.beat());
    assert_eq!(alone.hint(), 300, "it stands still again");
}

/// After an idle time, what was done in it says nothing about what can be done.
#[test]
fn an_idle_time_is_not_taken_for_a_slow_one() {
    let mut alone = Alone::new(Config { max_unapplied_bytes: 1000, ..config() });
    for _ in 0..50 {
        alone.beat();
        let index = alone.commit(20).expect("there is room");
        alone.apply(index);
    }
    alone.commit(2000).expect("there is room");
    alone.1 = alone.1 + Duration::from_millis(50);
    assert_eq!(alone.hint(), 100, "nothing is known");
}
