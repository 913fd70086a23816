//! Clients that write all the time, as a program would that uses the client library: it looks for the leader, and repeats what got no reply.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use raft_node::client::{Client, ClientConfig};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::task::JoinSet;

use super::processes::Nodes;

/// Writers that share a client, and so its connections.
const PER_CLIENT: usize = 16;
/// Between two looks at whether a write was acknowledged.
const LOOK: Duration = Duration::from_millis(2);

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ack {
    pub(crate) begin: Instant,
    pub(crate) end: Instant,
}

#[derive(Default)]
struct Shared {
    /// In the order of their ends.
    acks: RefCell<Vec<Ack>>,
    failures: RefCell<Vec<String>>,
    stopping: Cell<bool>,
}

/// The writers. They end when this is dropped.
pub(crate) struct Writers {
    shared: Rc<Shared>,
    clients: Vec<Client>,
    tasks: JoinSet<()>,
}

impl Writers {
    /// Starts `count` of them, each with one write under way at any time. Must be called within a local set.
    pub(crate) fn start(nodes: &Nodes, count: usize, value_size: usize) -> Result<Writers> {
        Writers::start_with(nodes, count, value_size, |_| {})
    }

    /// The same with other settings of the clients.
    pub(crate) fn start_with(
        nodes: &Nodes,
        count: usize,
        value_size: usize,
        change: impl Fn(&mut ClientConfig),
    ) -> Result<Writers> {
        let shared = Rc::new(Shared::default());
        let mut writers = Writers { shared: shared.clone(), clients: Vec::new(), tasks: JoinSet::new() };
        for first in (0..count).step_by(PER_CLIENT) {
            let client = nodes.client(|config| {
                config.timeout = Duration::from_secs(30);
                change(config);
            })?;
            for n in first..count.min(first + PER_CLIENT) {
                writers.tasks.spawn_local(write(client.clone(), shared.clone(), n, value_size));
            }
            writers.clients.push(client);
        }
        Ok(writers)
    }

    /// Waits for the first acknowledgement of a write that began after `after`: what was answered before may still be on its way.
    pub(crate) async fn next_ack(&self, after: Instant, patience: Duration) -> Result<Ack> {
        let begin = Instant::now();
        loop {
            if let Some(ack) = self.first_ack(after) {
                return Ok(ack);
            }
            if begin.elapsed() > patience {
                bail!("no write was acknowledged within {patience:?}");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn first_ack(&self, after: Instant) -> Option<Ack> {
        let acks = self.shared.acks.borrow();
        let at = acks.partition_point(|ack| ack.end <= after);
        acks[at..].iter().find(|ack| ack.begin > after).copied()
    }

    /// What was acknowledged from `from` on until now, and the last one before that.
    pub(crate) fn acks_since(&self, from: Instant) -> Vec<Ack> {
        let acks = self.shared.acks.borrow();
        let at = acks.partition_point(|ack| ack.end < from);
        acks[at.saturating_sub(1)..].to_vec()
    }

    /// How many were acknowledged.
    pub(crate) fn count(&self) -> usize {
        self.shared.acks.borrow().len()
    }

    /// Lets them finish what they have begun. Returns what went wrong.
    pub(crate) async fn stop(mut self) -> Vec<String> {
        self.shared.stopping.set(true);
        while self.tasks.join_next().await.is_some() {}
        for client in &self.clients {
            client.close().await;
        }
        self.shared.failures.take()
    }
}

async fn write(client: Client, shared: Rc<Shared>, n: usize, value_size: usize) {
    let mut random = SmallRng::seed_from_u64(n as u64);
    let mut value = vec![0; value_size];
    random.fill_bytes(&mut value);
    while !shared.stopping.get() {
        let key = format!("writer-{n}/{}", random.random_range(0..100));
        let begin = Instant::now();
        match client.put(key.as_bytes(), &value).await {
            Ok(_) => shared.acks.borrow_mut().push(Ack { begin, end: Instant::now() }),
            Err(error) => shared.failures.borrow_mut().push(error.to_string()),
        }
    }
}

/// The longest time without an acknowledgement. `acks` are in the order of their ends.
pub(crate) fn longest_gap(acks: &[Ack]) -> Duration {
    acks.windows(2).map(|two| two[1].end - two[0].end).max().unwrap_or_default()
}

/// The longest that any of them took.
pub(crate) fn longest_write(acks: &[Ack]) -> Duration {
    acks.iter().map(|ack| ack.end - ack.begin).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_lies_between_two_ends() {
        let origin = Instant::now();
        let at = |millis| origin + Duration::from_millis(millis);
        let acks = [(0, 5), (1, 6), (2, 36), (36, 37)].map(|(begin, end)| Ack { begin: at(begin), end: at(end) });
        assert_eq!(longest_gap(&acks), Duration::from_millis(30));
        assert_eq!(longest_write(&acks), Duration::from_millis(34));
        assert_eq!((longest_gap(&acks[..1]), longest_write(&[])), (Duration::ZERO, Duration::ZERO));
    }
}
