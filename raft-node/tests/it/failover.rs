//! Crashes of real processes under load: nothing acknowledged is lost, and every key behaves like a register.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use raft_node::Consistency;
use raft_node::client::{Client, Error};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::history::{History, Operation};

const WRITERS: usize = 4;

/// Writes and reads under way on a cluster.
struct Load {
    stop: Arc<AtomicBool>,
    /// When the last write was acknowledged.
    acknowledged: watch::Receiver<Instant>,
    writers: JoinSet<Vec<(String, History)>>,
}

impl Load {
    fn start(cluster: &Cluster) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let (news, acknowledged) = watch::channel(Instant::now());
        let mut writers = JoinSet::new();
        for n in 0..WRITERS {
            let (client, stop, news) = (cluster.client(), stop.clone(), news.clone());
            writers.spawn(async move { write_and_read(&client, &format!("key-{n}"), &stop, &news).await });
        }
        Load { stop, acknowledged, writers }
    }

    async fn finish(mut self) -> Vec<(String, History)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut histories = Vec::new();
        while let Some(done) = self.writers.join_next().await {
            histories.extend(done.expect("a writer panicked"));
        }
        histories
    }

    /// Waits for a write that is acknowledged after now, and says how long that took.
    async fn next_acknowledged(&mut self) -> Duration {
        let begin = Instant::now();
        let at = *self.acknowledged.wait_for(|at| *at > begin).await.expect("writers run until they are told to stop");
        at - begin
    }
}

/// Writes ascending numbers to a key and reads them back. After a write of unknown outcome it goes on with another key: a write in
/// doubt may lawfully take effect after later ones, and then the history would prove less.
async fn write_and_read(
    client: &Client,
    name: &str,
    stop: &AtomicBool,
    news: &watch::Sender<Instant>,
) -> Vec<(String, History)> {
    let mut histories = vec![(format!("{name}-0"), History::default())];
    let mut value = 0;
    while !stop.load(Ordering::Relaxed) {
        let count = histories.len();
        let Some((key, history)) = histories.last_mut() else { break };
        value += 1;
        let start = Instant::now();
        match client.put(key.as_bytes(), value.to_string().as_bytes()).await {
            Ok(_) => {
                let end = Instant::now();
                history.0.push(Operation::Write { value, start, end: Some(end) });
                news.send_if_modified(|at| {
                    end > *at && {
                        *at = end;
                        true
                    }
                });
            }
            Err(Error::OutcomeUnknown { .. }) => {
                history.0.push(Operation::Write { value, start, end: None });
                read(client, key, history).await;
                histories.push((format!("{name}-{count}"), History::default()));
                continue;
            }
            Err(Error::Timeout { .. }) => value -= 1,
            Err(other) => panic!("a put of {key} failed: {other}"),
        }
        if value % 8 == 0 {
            read(client, key, history).await;
        }
    }
    histories
}

async fn read(client: &Client, key: &str, history: &mut History) {
    let start = Instant::now();
    match client.get(key.as_bytes(), Consistency::Linearizable).await {
        Ok(found) => {
            let value = found.map_or(0, |found| String::from_utf8_lossy(&found.value).parse().expect("a number"));
            history.0.push(Operation::Read { value, start, end: Instant::now() });
        }
        Err(Error::Timeout { .. }) => {}
        Err(other) => panic!("a read of {key} failed: {other}"),
    }
}

/// Reads every key once more, and checks each history.
async fn settle(cluster: &Cluster, histories: Vec<(String, History)>) -> usize {
    let client = cluster.client();
    let mut acknowledged = 0;
    for (key, mut history) in histories {
        read(&client, &key, &mut history).await;
        assert!(matches!(history.0.last(), Some(Operation::Read { .. })), "the cluster serves {key} at the end");
        history.check().unwrap_or_else(|problem| panic!("{key}: {problem}"));
        acknowledged += history.acknowledged();
    }
    assert!(acknowledged > 0, "something was written");
    acknowledged
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn twenty_killed_leaders_lose_nothing() {
    let mut cluster = Cluster::start(3).await;
    let mut load = Load::start(&cluster);
    let mut gaps = Vec::new();
    for _ in 0..20 {
        load.next_acknowledged().await;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        gaps.push(load.next_acknowledged().await);
        cluster.restart(leader).await;
    }
    let acknowledged = settle(&cluster, load.finish().await).await;
    gaps.sort_unstable();
    println!(
        "20 leaders killed, {acknowledged} acknowledged writes, none lost; next acknowledged write after \
         p50 {:.0?}, max {:.0?}",
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn all_killed_at_once_lose_nothing() {
    let mut cluster = Cluster::start(3).await;
    for _ in 0..3 {
        let mut load = Load::start(&cluster);
        for _ in 0..5 {
            load.next_acknowledged().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        for id in cluster.ids() {
            cluster.kill(id);
        }
        // Writers may be in the middle of something: that stays unknown or undone.
        load.stop.store(true, Ordering::Relaxed);
        for id in cluster.ids() {
            cluster.restart(id).await;
        }
        let acknowledged = settle(&cluster, load.finish().await).await;
        println!("all three killed under load: {acknowledged} acknowledged writes, none lost");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_paused_leader_serves_no_stale_read() {
    let mut cluster = Cluster::start(3).await;
    let mut load = Load::start(&cluster);
    let mut seen = History::default();
    for _ in 0..3 {
        load.next_acknowledged().await;
        let leader = cluster.leader().await;
        cluster.pause(leader);
        load.next_acknowledged().await;
        tokio::time::sleep(Duration::from_millis(1200)).await;
        cluster.resume(leader);
        // For an instant the old leader still believes in itself: ask precisely that one.
        let alone = cluster.client_with(|config| {
            config.nodes.retain(|id, _| *id == leader);
            config.timeout = Duration::from_millis(500);
        });
        for _ in 0..4 {
            read(&alone, "key-0-0", &mut seen).await;
        }
    }
    let mut histories = load.finish().await;
    for (_, history) in histories.iter_mut().filter(|(key, _)| key == "key-0-0") {
        history.0.append(&mut seen.0);
    }
    settle(&cluster, histories).await;
}
