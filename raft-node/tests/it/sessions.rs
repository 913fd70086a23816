//! Writes that are repeated because their replies were lost, and take effect once all the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raft_core::NodeId;
use raft_node::Consistency;
use raft_node::client::{CasOutcome, Client, Error};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::cluster::Cluster;

/// Stands between one client and the nodes, and cuts their connections: from time to time nothing passes for longer than the client waits.
struct Cutter {
    nodes: BTreeMap<NodeId, String>,
    cuts: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Cutter {
    async fn start(nodes: &BTreeMap<NodeId, String>, silence: Duration, seed: u64) -> Cutter {
        let (open, cuts) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let mut cutter = Cutter { nodes: BTreeMap::new(), cuts: cuts.clone(), tasks: JoinSet::new() };
        for (&id, address) in nodes {
            let front = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            let back = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            back.connect(address).await.expect("an address");
            cutter.nodes.insert(id, front.local_addr().expect("bound").to_string());
            cutter.tasks.spawn(forward(front, back, open.clone()));
        }
        cutter.tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed);
            loop {
                tokio::time::sleep(silence.mul_f64(random.random_range(0.2..4.0))).await;
                open.store(false, Ordering::Relaxed);
                tokio::time::sleep(silence.mul_f64(1.5)).await;
                open.store(true, Ordering::Relaxed);
                cuts.fetch_add(1, Ordering::Relaxed);
            }
        });
        cutter
    }
}

/// Both directions, for one client.
async fn forward(front: UdpSocket, back: UdpSocket, open: Arc<AtomicBool>) {
    let (mut request, mut response) = (vec![0; 65_536], vec![0; 65_536]);
    let mut client = None;
    loop {
        tokio::select! {
            Ok((length, from)) = front.recv_from(&mut request) => {
                client = Some(from);
                if open.load(Ordering::Relaxed) {
                    let _ = back.send(&request[..length]).await;
                }
            }
            Ok(length) = back.recv(&mut response) => if let Some(client) = client
                && open.load(Ordering::Relaxed)
            {
                let _ = front.send_to(&response[..length], client).await;
            },
        }
    }
}

/// A client whose connections are cut all the time.
async fn cut_off_now_and_then(cluster: &Cluster, sessions: bool, seed: u64) -> (Client, Cutter) {
    let silence = Duration::from_millis(60);
    let mut nodes = BTreeMap::new();
    drop::<Client>(cluster.client_with(|config| nodes.clone_from(&config.nodes)));
    let cutter = Cutter::start(&nodes, silence, seed).await;
    let client = cluster.client_with(|config| {
        config.nodes.clone_from(&cutter.nodes);
        config.silence_timeout = silence;
        config.attempt_timeout = silence * 2;
        config.timeout = Duration::from_secs(30);
        config.sessions = sessions;
    });
    (client, cutter)
}

/// Counts up from `revision`, the counter's present one, until something else than success comes; returns how far it came.
async fn count(client: &Client, up_to: u64) -> (u64, Option<Result<CasOutcome, Error>>) {
    let mut expected = 0;
    for n in 1..=up_to {
        match client.cas(b"counter", expected, n.to_string().as_bytes()).await {
            Ok(CasOutcome::Written { revision }) => expected = revision,
            other => return (n - 1, Some(other)),
        }
    }
    (up_to, None)
}

/// Each step says which revision it follows on. If a copy took effect of its own, or were answered for what it found, the next step would
/// not fit.
#[tokio::test]
async fn a_counter_counts_every_increment_once_although_replies_are_lost() {
    // RAFT_TEST_INCREMENTS=10000 for a longer storm.
    let increments = std::env::var("RAFT_TEST_INCREMENTS").map_or(1_000, |n| n.parse().expect("a number"));
    let cluster = Cluster::start(3).await;
    let (client, cutter) = cut_off_now_and_then(&cluster, true, 1).await;
    let counted = count(&client, increments).await;
    let cuts = cutter.cuts.load(Ordering::Relaxed);
    assert!(counted.0 == increments, "{counted:?} after {cuts} cuts");
    let found = cluster.client().get(b"counter", Consistency::Linearizable).await.expect("read").expect("set");
    assert_eq!(&found.value[..], increments.to_string().as_bytes());
    assert!(cuts > 10, "{cuts} cuts prove little");
    assert!(client.repeated() > 0, "the client counts what it repeats");
    println!("{increments} increments, {cuts} cuts");
}

/// The same without a session comes to an end at the first reply that is lost: nobody guesses.
#[tokio::test]
async fn without_a_session_a_lost_reply_is_an_unknown_outcome() {
    let cluster = Cluster::start(1).await;
    let (client, _cutter) = cut_off_now_and_then(&cluster, false, 2).await;
    let (_, end) = count(&client, 1_000_000).await;
    assert_eq!(client.repeated(), 0);
    assert!(matches!(end, Some(Err(Error::OutcomeUnknown { .. }))), "{end:?}");
}
