//! The network between the nodes: a UDP proxy for each ordered pair, with a policy that can be changed at any time.
//!
//! Where a node is to be found is written in the log, the same for all. So each node has one *gate*, which everybody takes for the node; who sends there is told by the
//! address from which it comes. Of two nodes the lower id dials the other, from the port at which it listens, and both directions of the
//! connection share the addresses. So each pair has a socket besides, the *back*, which the higher takes for the lower. What comes in at the gate of the higher
//! goes out at the back of the pair, and the other way round, each direction under a policy of its own.
//!
//! Which packets are hit depends on the seed and on the packets; the latter are never the same twice.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use raft_core::NodeId;
use raft_core::sim::schedule::Dice;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Packets that wait to be delivered late, at most; more are dropped, as a router would.
const MAX_WAITING: usize = 4096;
/// How long a packet waits at most for its turn on a slow link, before it is dropped instead.
const MAX_BACKLOG: Duration = Duration::from_millis(500);
/// How much later than others a packet may come that is to be overtaken.
const OVERTAKEN_BY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(30));
/// Asked from the kernel for each socket, in bytes: a burst is not to be lost here by accident.
const SOCKET_BUFFER: usize = 4 << 20;

/// What happens to packets in one direction. Chances are in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Nothing comes through.
    pub(crate) cut: bool,
    /// Chance to vanish.
    pub(crate) loss: u64,
    /// Chance to come twice.
    pub(crate) duplicate: u64,
    /// Chance to have some bits flipped.
    pub(crate) flip: u64,
    /// Chance to be overtaken by others.
    pub(crate) reorder: u64,
    /// Every packet takes a time in this range.
    pub(crate) delay: Option<(Duration, Duration)>,
    /// Bytes per second.
    pub(crate) rate: Option<u64>,
}

/// What was done to packets, all directions together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    pub(crate) cut: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) flipped: u64,
    pub(crate) overtaken: u64,
    pub(crate) delayed: u64,
    pub(crate) overflowed: u64,
}

#[derive(Debug, Default)]
struct Counters {
    delivered: AtomicU64,
    cut: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    flipped: AtomicU64,
    overtaken: AtomicU64,
    delayed: AtomicU64,
    overflowed: AtomicU64,
}

/// One direction between two nodes.
#[derive(Debug, Default)]
struct Path {
    policy: Mutex<Policy>,
    counters: Counters,
}

impl Path {
    fn policy(&self) -> MutexGuard<'_, Policy> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All proxies. Dropping it stops them.
pub(crate) struct Network {
    paths: BTreeMap<(NodeId, NodeId), Arc<Path>>,
    /// Where each node is reached by the others.
    gates: BTreeMap<NodeId, SocketAddr>,
    _tasks: JoinSet<()>,
}

impl Network {
    /// Opens the sockets and begins to forward between nodes that listen at `nodes`.
    pub(crate) async fn start(nodes: &BTreeMap<NodeId, SocketAddr>, seed: u64) -> Result<Network> {
        let (mut paths, mut gates, mut tasks) = (BTreeMap::new(), BTreeMap::new(), JoinSet::new());
        let mut direction = |from: NodeId, to: NodeId, outlet: Outlet| {
            let path = Arc::new(Path::default());
            paths.insert((from, to), path.clone());
            Direction::new(path, outlet, Dice::new(seed, 1000 * from.0 + to.0))
        };
        for (&high, &high_address) in nodes {
            let gate = Arc::new(socket().await?);
            gates.insert(high, gate.local_addr()?);
            let mut inward = BTreeMap::new();
            for (&low, &low_address) in nodes.range(..high) {
                let back = Arc::new(socket().await?);
                let outlet = Outlet { socket: back.clone(), target: high_address };
                inward.insert(low_address, direction(low, high, outlet));
                let outlet = Outlet { socket: gate.clone(), target: low_address };
                let outward = [(high_address, direction(high, low, outlet))].into();
                tasks.spawn(Inlet { socket: back, directions: outward }.run());
            }
            tasks.spawn(Inlet { socket: gate, directions: inward }.run());
        }
        Ok(Network { paths, gates, _tasks: tasks })
    }

    /// The address at which the others believe to reach a node.
    pub(crate) fn address(&self, node: NodeId) -> Option<SocketAddr> {
        self.gates.get(&node).copied()
    }

    /// Changes the policies of the directions (from, to) that `of` picks; the others stay.
    pub(crate) fn change(&self, of: impl Fn(NodeId, NodeId) -> bool, change: impl Fn(&mut Policy)) {
        for (&(from, to), path) in &self.paths {
            if of(from, to) {
                change(&mut path.policy());
            }
        }
    }

    /// Everything comes through again.
    pub(crate) fn heal(&self) {
        self.change(|_, _| true, |policy| *policy = Policy::default());
    }

    /// What was done so far.
    pub(crate) fn totals(&self) -> Totals {
        let sum = |pick: fn(&Counters) -> &AtomicU64| {
            self.paths.values().map(|path| pick(&path.counters).load(Ordering::Relaxed)).sum()
        };
        Totals {
            delivered: sum(|c| &c.delivered),
            cut: sum(|c| &c.cut),
            lost: sum(|c| &c.lost),
            duplicated: sum(|c| &c.duplicated),
            flipped: sum(|c| &c.flipped),
            overtaken: sum(|c| &c.overtaken),
            delayed: sum(|c| &c.delayed),
            overflowed: sum(|c| &c.overflowed),
        }
    }
}

async fn socket() -> Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context("cannot open a UDP socket")?;
    // The kernel may allow less; then a burst is lost now and then, which is what networks do.
    let _ = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER);
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER);
    Ok(socket)
}

/// Where a direction ends.
struct Outlet {
    socket: Arc<UdpSocket>,
    target: SocketAddr,
}

/// Where directions begin: what comes in here belongs to the one of its sender.
struct Inlet {
    socket: Arc<UdpSocket>,
    directions: BTreeMap<SocketAddr, Direction>,
}

impl Inlet {
    async fn run(mut self) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let due = self.directions.values().filter_map(Direction::due).min();
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.directions.values_mut().for_each(Direction::deliver_due);
                }
                received = self.socket.recv_from(&mut buffer) => {
                    // Nobody else has any business here; and an error on UDP concerns one packet.
                    let Ok((len, from)) = received else { continue };
                    if let Some(direction) = self.directions.get_mut(&from) {
                        direction.take(&mut buffer[..len]);
                    }
                }
            }
        }
    }
}

/// What happens to packets on their way from one node to another.
struct Direction {
    path: Arc<Path>,
    outlet: Outlet,
    dice: Dice,
    /// Packets to be delivered later, in the order of their time; the number keeps those of the same moment apart.
    waiting: BTreeMap<(Instant, u64), Vec<u8>>,
    number: u64,
    /// When a slow link has sent everything that it took so far.
    busy_until: Instant,
}

impl Direction {
    fn new(path: Arc<Path>, outlet: Outlet, dice: Dice) -> Direction {
        Direction { path, outlet, dice, waiting: BTreeMap::new(), number: 0, busy_until: Instant::now() }
    }

    /// When the next packet is to be delivered that waits.
    fn due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Decides about a packet.
    fn take(&mut self, packet: &mut [u8]) {
        let policy = *self.path.policy();
        let path = self.path.clone();
        let count = |counter: &AtomicU64| {
            counter.fetch_add(1, Ordering::Relaxed);
        };
        if policy.cut {
            return count(&path.counters.cut);
        }
        if self.dice.chance(policy.loss, 1000) {
            return count(&path.counters.lost);
        }
        let copies = if self.dice.chance(policy.duplicate, 1000) { 2 } else { 1 };
        if copies > 1 {
            count(&path.counters.duplicated);
        }
        if self.dice.chance(policy.flip, 1000) && !packet.is_empty() {
            count(&path.counters.flipped);
            for _ in 0..self.dice.between(1, 4) {
                packet[self.dice.pick(packet.len())] ^= 1 << self.dice.between(0, 7);
            }
        }
        for _ in 0..copies {
            match self.delay(&policy, packet.len()) {
                None => count(&path.counters.overflowed),
                Some(Duration::ZERO) => self.send(packet),
                Some(_) if self.waiting.len() >= MAX_WAITING => count(&path.counters.overflowed),
                Some(wait) => {
                    self.number += 1;
                    self.waiting.insert((Instant::now() + wait, self.number), packet.to_vec());
                }
            }
        }
    }

    /// How long a packet takes; `None` if the link cannot take it.
    fn delay(&mut self, policy: &Policy, len: usize) -> Option<Duration> {
        let counters = &self.path.counters;
        let mut wait = Duration::ZERO;
        if let Some((low, high)) = policy.delay {
            counters.delayed.fetch_add(1, Ordering::Relaxed);
            wait += self.dice.time(low, high);
        }
        if self.dice.chance(policy.reorder, 1000) {
            counters.overtaken.fetch_add(1, Ordering::Relaxed);
            wait += self.dice.time(OVERTAKEN_BY.0, OVERTAKEN_BY.1);
        }
        if let Some(rate) = policy.rate {
            let now = Instant::now();
            let begin = self.busy_until.max(now);
            if begin - now > MAX_BACKLOG {
                return None;
            }
            self.busy_until = begin + Duration::from_secs_f64(len as f64 / rate.max(1) as f64);
            wait += self.busy_until - now;
        }
        Some(wait)
    }

    fn deliver_due(&mut self) {
        let now = Instant::now();
        while let Some(entry) = self.waiting.first_entry().filter(|entry| entry.key().0 <= now) {
            let packet = entry.remove();
            self.send(&packet);
        }
    }

    fn send(&self, packet: &[u8]) {
        // A full buffer loses the packet, as a network may.
        if self.outlet.socket.try_send_to(packet, self.outlet.target).is_ok() {
            self.path.counters.delivered.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);

    /// Two sockets with a network in between, and what one sees of 200 packets of the other under a policy from A to B.
    async fn seen(change: impl Fn(&mut Policy)) -> (Vec<Vec<u8>>, Totals) {
        let (a, b) = (socket().await.unwrap(), socket().await.unwrap());
        let nodes = [(A, a.local_addr().unwrap()), (B, b.local_addr().unwrap())].into();
        let network = Network::start(&nodes, 7).await.unwrap();
        let mut buffer = [0; 200];
        a.send_to(b"first", network.address(B).unwrap()).await.unwrap();
        let (_, lower) = tokio::time::timeout(Duration::from_secs(5), b.recv_from(&mut buffer)).await.unwrap().unwrap();
        network.change(|from, to| (from, to) == (A, B), change);
        for i in 0..200u8 {
            a.send_to(&[i; 100], network.address(B).unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        let mut packets = Vec::new();
        let silence = Duration::from_millis(600);
        while let Ok(Ok((len, from))) = tokio::time::timeout(silence, b.recv_from(&mut buffer)).await {
            assert_eq!(from, lower, "always the same");
            packets.push(buffer[..len].to_vec());
        }
        // The other direction is none of this policy's business.
        b.send_to(b"back", lower).await.unwrap();
        let (len, from) =
            tokio::time::timeout(Duration::from_secs(5), a.recv_from(&mut buffer)).await.unwrap().unwrap();
        assert_eq!((&buffer[..len], from), (&b"back"[..], network.address(B).unwrap()), "from where it was sent to");
        (packets, network.totals())
    }

    #[tokio::test]
    async fn a_gate_is_for_all_and_strangers_do_not_come_in() {
        let nodes = [socket().await.unwrap(), socket().await.unwrap(), socket().await.unwrap()];
        let addresses = (1..).map(NodeId).zip(nodes.iter().map(|node| node.local_addr().unwrap())).collect();
        let network = Network::start(&addresses, 7).await.unwrap();
        let gate = network.address(NodeId(3)).unwrap();
        let stranger = socket().await.unwrap();
        stranger.send_to(b"0", gate).await.unwrap();
        let mut backs = Vec::new();
        for name in [b"1", b"2"] {
            let (sender, mut buffer) = (&nodes[usize::from(name[0] - b'1')], [0; 9]);
            sender.send_to(name, gate).await.unwrap();
            let received = tokio::time::timeout(Duration::from_secs(5), nodes[2].recv_from(&mut buffer)).await;
            let (len, from) = received.unwrap().unwrap();
            assert_eq!(&buffer[..len], name);
            backs.push(from);
        }
        assert_ne!(backs[0], backs[1], "the senders can be told apart");
    }

    #[tokio::test]
    async fn without_a_policy_all_packets_pass_in_order() {
        let (packets, totals) = seen(|_| {}).await;
        assert!(packets.iter().enumerate().all(|(i, packet)| *packet == [i as u8; 100]), "in order");
        assert_eq!((packets.len(), totals.delivered), (200, 202), "and one before, and one after");
    }

    #[tokio::test]
    async fn each_policy_does_what_it_says_and_counts() {
        let (packets, totals) = seen(|policy| policy.cut = true).await;
        assert_eq!((packets.len(), totals.cut), (0, 200));
        let (packets, totals) = seen(|policy| policy.loss = 300).await;
        assert!((20..=100).contains(&totals.lost) && packets.len() as u64 == 200 - totals.lost, "{totals:?}");
        let (packets, totals) = seen(|policy| policy.duplicate = 300).await;
        assert!(totals.duplicated > 20 && packets.len() as u64 == 200 + totals.duplicated, "{totals:?}");
        let (packets, totals) = seen(|policy| policy.flip = 300).await;
        let damaged = packets.iter().filter(|packet| packet.iter().any(|byte| *byte != packet[50])).count();
        assert!(totals.flipped > 20 && damaged as u64 > totals.flipped / 2, "{totals:?}");
        let (packets, totals) = seen(|policy| policy.reorder = 300).await;
        assert!(totals.overtaken > 20 && packets.len() == 200 && !packets.is_sorted(), "{totals:?}");
    }

    #[tokio::test]
    async fn a_slow_link_takes_its_time_and_drops_what_is_too_much() {
        let begin = Instant::now();
        // 20 kB in all, of which half a second's worth waits; nobody takes 20 s to send the rest.
        let (packets, totals) = seen(|policy| policy.rate = Some(1_000)).await;
        assert!(begin.elapsed() > Duration::from_millis(450), "{:?}", begin.elapsed());
        assert!(packets.len() < 200 && totals.overflowed > 0, "{totals:?}");
    }

    #[tokio::test]
    async fn delay_delays() {
        let begin = Instant::now();
        let late = Duration::from_millis(300);
        let (packets, totals) = seen(|policy| policy.delay = Some((late, late))).await;
        assert!(begin.elapsed() >= late && packets.len() == 200 && totals.delayed == 200, "{totals:?}");
    }
}
