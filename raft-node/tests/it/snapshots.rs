//! Snapshots with real processes: the log stays small, and whoever was away too long is brought up by a snapshot.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_core::NodeId;
use raft_node::Consistency;
use raft_node::client::Client;
use raft_node::client::protocol::NodeStatus;
use tokio::task::JoinSet;

use crate::cluster::Cluster;

const PATIENCE: Duration = Duration::from_mins(1);

/// A log that is compacted often, and of which little is kept.
fn often(bytes: u64) -> String {
    format!("[snapshot]\nbytes = {bytes}\nkeep_entries = 50\nkeep_bytes = {}\n", bytes / 4)
}

/// Writers that do not stop; each value says which write of its key it is.
struct Load {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    writers: JoinSet<(String, u64)>,
}

impl Load {
    fn start(cluster: &Cluster, writers: usize, value_bytes: usize) -> Load {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = JoinSet::new();
        for n in 0..writers {
            let (client, stop, written) = (cluster.client(), stop.clone(), written.clone());
            tasks.spawn(async move {
                let (key, mut round) = (format!("load-{n}"), 0u64);
                while !stop.load(Ordering::Relaxed) {
                    round += 1;
                    let mut value = vec![b'.'; value_bytes];
                    value[..8].copy_from_slice(&round.to_be_bytes());
                    client.put(key.as_bytes(), &value).await.expect("written, if need be after a while");
                    written.fetch_add(value_bytes as u64, Ordering::Relaxed);
                }
                (key, round)
            });
        }
        Load { stop, written, writers: tasks }
    }

    /// Until so many bytes more were written.
    async fn write(&self, bytes: u64) {
        let goal = self.written.load(Ordering::Relaxed) + bytes;
        wait(|| async { self.written.load(Ordering::Relaxed) >= goal }, "the load goes on").await;
    }

    /// The last round of each key.
    async fn finish(mut self) -> Vec<(String, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut last = Vec::new();
        while let Some(done) = self.writers.join_next().await {
            last.push(done.expect("a writer panicked"));
        }
        last
    }
}

async fn wait<F: Future<Output = bool>>(mut until: impl FnMut() -> F, what: &str) {
    let start = Instant::now();
    while !until().await {
        assert!(start.elapsed() < PATIENCE, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn status(client: &Client, id: NodeId) -> Option<NodeStatus> {
    client.status(id).await.ok()
}

async fn metric(client: &Client, id: NodeId, name: &str) -> u64 {
    status(client, id).await.and_then(|status| status.metrics.get(name).copied()).unwrap_or(0)
}

/// Waits until a node has applied what the leader had committed when this was called.
async fn catch_up(cluster: &Cluster, client: &Client, id: NodeId) {
    let leader = cluster.leader().await;
    let goal = status(client, leader).await.expect("it leads").commit_index;
    let caught_up = || async { status(client, id).await.is_some_and(|status| status.applied_index >= goal) };
    wait(caught_up, "the node catches up").await;
}

/// A client that knows no other node.
fn alone(cluster: &Cluster, id: NodeId) -> Client {
    cluster.client_with(|config| config.nodes.retain(|&other, _| other == id))
}

/// What this very node has, though it may not lead.
async fn check_local(cluster: &Cluster, id: NodeId, expected: &[(String, u64)]) {
    let client = alone(cluster, id);
    for (key, round) in expected {
        let read = || async {
            let found = client.get(key.as_bytes(), Consistency::Stale).await.expect("it answers")?;
            Some(u64::from_be_bytes(*found.value.first_chunk()?))
        };
        wait(|| async { read().await == Some(*round) }, "the node has the last write").await;
    }
}

fn size_of(dir: &Path) -> u64 {
    let files = std::fs::read_dir(dir).map(|files| files.flatten().collect::<Vec<_>>()).unwrap_or_default();
    files.iter().filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

/// 16 KiB values at `fill-0` and so on, so that a snapshot has a size.
async fn fill(cluster: &Cluster, keys: u64) {
    const AT_ONCE: u64 = 8;
    let mut writers = JoinSet::new();
    for first in 0..AT_ONCE {
        let client = cluster.client();
        let value: Vec<u8> = (0..16u32 << 10).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        writers.spawn(async move {
            for n in (first..keys).step_by(AT_ONCE as usize) {
                client.put(format!("fill-{n}").as_bytes(), &value).await.expect("written");
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_the_log_is_compacted_and_a_node_that_was_away_is_brought_up_by_a_snapshot() {
    let mut cluster = Cluster::start_with(3, &often(1 << 20)).await;
    let client = cluster.client();
    fill(&cluster, 64).await;
    let load = Load::start(&cluster, 4, 4 << 10);
    let leader = cluster.leader().await;
    let away = cluster.ids().into_iter().find(|&id| id != leader).expect("there are three");
    cluster.kill(away);
    let last = status(&client, leader).await.expect("it leads").last_index;
    let purged = || async { metric(&client, leader, "log.start").await > last };
    load.write(2 << 20).await;
    wait(purged, "the log is compacted beyond what the other node has").await;

    cluster.restart(away).await;
    catch_up(&cluster, &client, away).await;
    assert!(metric(&client, away, "snapshot.restored").await >= 1, "by a snapshot");
    assert!(metric(&client, away, "log.start").await >= last);
    let expected = load.finish().await;
    catch_up(&cluster, &client, away).await;
    check_local(&cluster, away, &expected).await;

    // It starts again from what it has taken over, without another snapshot.
    cluster.kill(away);
    cluster.restart(away).await;
    catch_up(&cluster, &client, away).await;
    check_local(&cluster, away, &expected).await;
    assert_eq!(metric(&client, away, "snapshot.restored").await, 0, "nothing is sent twice");
    let log = size_of(&cluster.dir().join(format!("node-{leader}.data/log")));
    assert!(log < 400 << 20, "{log} bytes of log");
}

/// Kills a follower and writes until the log does not have what it lacks. Returns the leader and the follower.
async fn leave_behind(cluster: &mut Cluster, client: &Client) -> (NodeId, NodeId) {
    let leader = cluster.leader().await;
    let away = cluster.ids().into_iter().find(|&id| id != leader).expect("there are three");
    cluster.kill(away);
    let last = status(client, leader).await.expect("it leads").last_index;
    fill(cluster, 160).await;
    let purged = || async { metric(client, leader, "log.start").await > last };
    wait(purged, "the log is compacted").await;
    (leader, away)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_arrives_though_either_end_is_killed_in_the_middle() {
    // Slow, so that there is a middle.
    let mut cluster = Cluster::start_with(3, &(often(256 << 10) + "max_bytes_per_second = 1000000\n")).await;
    let client = cluster.client();
    let (leader, away) = leave_behind(&mut cluster, &client).await;
    let arrived = cluster.dir().join(format!("node-{away}.data/snapshots"));

    // The receiver is killed twice, each time after something more has arrived: it goes on where it was.
    let mut before = 0;
    for _ in 0..2 {
        cluster.spawn(away);
        wait(|| async { size_of(&arrived) > before }, "a part of a snapshot arrives").await;
        before = size_of(&arrived);
        cluster.kill(away);
    }
    assert!(before < 160 << 14, "only a part: {before}");
    cluster.spawn(away);
    let progress = |id: NodeId| format!("snapshot.to.{id}.bytes");
    let resumed = || async { metric(&client, leader, &progress(away)).await >= before };
    wait(resumed, "the leader's status shows how far it is").await;
    wait(|| async { arrivals(&cluster.log(away)).len() >= 3 }, "it arrives for the third time").await;
    let offsets = arrivals(&cluster.log(away));
    assert!(offsets[0] == 0 && offsets.is_sorted_by(|a, b| a < b), "begun anew: {offsets:?}");

    // The sender is killed, too: another one has to begin anew.
    cluster.kill(leader);
    cluster.restart(leader).await;
    catch_up(&cluster, &client, away).await;
    client.put(b"after", b"all").await.expect("written");
    catch_up(&cluster, &client, away).await;
    for key in ["fill-0", "fill-159"] {
        let found = alone(&cluster, away).get(key.as_bytes(), Consistency::Stale).await.expect("it answers");
        assert_eq!(found.map(|found| found.value.len()), Some(16 << 10), "{key}");
    }
}

/// Where in the file each transfer to a node has begun, by what it has logged.
fn arrivals(log: &str) -> Vec<u64> {
    let lines = log.lines().filter(|line| line.contains("a snapshot arrives"));
    lines.filter_map(|line| line.split_once("offset=")?.1.split_whitespace().next()?.parse().ok()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_snapshot_is_enough_though_the_log_is_compacted_many_times_while_it_is_sent() {
    // Some three seconds for what takes the log a few hundredths of one.
    let mut cluster = Cluster::start_with(3, &(often(256 << 10) + "max_bytes_per_second = 1000000\n")).await;
    let client = cluster.client();
    let (leader, away) = leave_behind(&mut cluster, &client).await;

    let load = Load::start(&cluster, 2, 4 << 10);
    cluster.restart(away).await;
    wait(|| async { metric(&client, away, "snapshot.restored").await > 0 }, "a snapshot is taken over").await;
    load.write(1 << 20).await;
    catch_up(&cluster, &client, away).await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(metric(&client, leader, "snapshot.sent").await, 1, "the log goes on where the snapshot ends");
    // Afterwards it is as short as ever.
    let caught_up = status(&client, leader).await.expect("it leads").last_index;
    wait(|| async { metric(&client, leader, "log.start").await > caught_up }, "the log is compacted").await;
    let expected = load.finish().await;
    catch_up(&cluster, &client, away).await;
    check_local(&cluster, away, &expected).await;
}
