//! Leadership moves on purpose, under load: nobody's write fails. How long writes pause is printed (`cargo test transfer -- --nocapture`), and
//! depends on the machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use raft_core::NodeId;
use raft_node::Consistency;
use raft_node::client::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// Writers at a time; every four of them share their connections.
const WRITERS: usize = 64;

/// Writes under way.
struct Load {
    stop: Arc<AtomicBool>,
    start: Instant,
    /// Microseconds since `start` of the last acknowledgement, and the longest time without any since it was last asked for.
    last: Arc<AtomicU64>,
    longest: Arc<AtomicU64>,
    writers: JoinSet<u64>,
}

impl Load {
    /// Without sessions, a write whose outcome is unknown fails.
    fn start(cluster: &Cluster, sessions: bool) -> Load {
        let (stop, start) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let (last, longest) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let mut writers = JoinSet::new();
        let mut client = None;
        for n in 0..WRITERS {
            if n % 4 == 0 {
                client = Some(cluster.client_with(|config| {
                    config.sessions = sessions;
                    config.timeout = Duration::from_secs(30);
                }));
            }
            let client: Client = client.clone().expect("made above");
            let (stop, last, longest) = (stop.clone(), last.clone(), longest.clone());
            writers.spawn(async move {
                let key = format!("key-{n}");
                let mut count = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    count += 1;
                    client.put(key.as_bytes(), count.to_string().as_bytes()).await.expect("no write fails");
                    let now = u64::try_from(start.elapsed().as_micros()).expect("not that long");
                    let before = last.fetch_max(now, Ordering::Relaxed);
                    longest.fetch_max(now.saturating_sub(before), Ordering::Relaxed);
                }
                let found = client.get(key.as_bytes(), Consistency::Linearizable).await.expect("a read");
                assert_eq!(found.expect("it was written").value, count.to_string().as_bytes());
                count
            });
        }
        Load { stop, start, last, longest, writers }
    }

    /// The longest time without an acknowledgement since the last call.
    fn pause(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed))
    }

    async fn goes_on(&self) {
        let from = u64::try_from(self.start.elapsed().as_micros()).expect("not that long");
        while self.last.load(Ordering::Relaxed) <= from {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let mut writes = 0;
        while let Some(count) = self.writers.join_next().await {
            writes += count.expect("a writer");
        }
        writes
    }
}

#[tokio::test]
async fn leadership_moves_under_load_and_no_write_fails() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(&cluster, false);
    load.goes_on().await;
    let admin = cluster.client();
    let (mut pauses, mut moved) = (Vec::new(), 0);
    for round in 0..9 {
        let leader = cluster.leader().await;
        let to = NodeId(leader.0 % 3 + 1);
        load.goes_on().await;
        load.pause();
        // On a machine that is busy with other things, the next leader may be late; then it is the old one that leads on.
        match admin.transfer_leadership((round % 3 != 0).then_some(to)).await {
            Ok(next) => {
                moved += usize::from(next != leader);
                load.goes_on().await;
                pauses.push(load.pause());
            }
            Err(error) => eprintln!("round {round}: {error}"),
        }
    }
    let writes = load.finish().await;
    pauses.sort_unstable();
    println!("{writes} writes of {WRITERS} writers, {moved} of 9 transfers, pauses {pauses:?}");
    assert!(moved >= 5, "{moved} of 9 transfers");
}

#[tokio::test]
async fn a_leader_that_is_told_to_stop_hands_over_first() {
    let mut cluster = Cluster::start(3).await;
    // What is on its way to the node when it closes its connections has to be repeated.
    let load = Load::start(&cluster, true);
    let leader = cluster.leader().await;
    load.goes_on().await;
    load.pause();
    assert!(cluster.terminate(leader).success());
    load.goes_on().await;
    println!("a pause of {:?} when the leader was told to stop", load.pause());
    let log = std::fs::read_to_string(cluster.dir().join(format!("node-{leader}.log"))).expect("a log");
    assert!(log.contains("handing over") && log.contains("stepped down"), "{log}");
    load.finish().await;
}

#[tokio::test]
async fn the_command_line_moves_leadership_and_reads_as_freshly_as_it_is_told() {
    let cluster = Cluster::start_with(3, "[raft]\nlease_drift_per_mille = 50\n").await;
    let run = |name: &str, arguments: &[&str]| {
        let output = cluster.command(name).arg("--json").args(arguments).output().expect("the program starts");
        let said = if output.status.success() { &output.stdout } else { &output.stderr };
        (output.status.code(), serde_json::from_slice::<Value>(said).expect("JSON"))
    };
    assert_eq!(run("put", &["k", "v"]).0, Some(0));
    for how in ["linearizable", "lease"] {
        let (code, found) = run("get", &["k", "--consistency", how]);
        assert_eq!((code, &found["value"]), (Some(0), &json!("v")), "{how}");
    }
    assert_eq!(run("get", &["k", "--consistency", "stale"]).0.map(|code| code == 0 || code == 3), Some(true));

    let before = cluster.leader().await;
    let to = before.0 % 3 + 1;
    let (code, said) = run("transfer", &["--to", &to.to_string()]);
    assert_eq!((code, said), (Some(0), json!({ "leader": to })));
    assert_eq!(cluster.leader().await, NodeId(to));
    let (code, said) = run("transfer", &["--to", "9"]);
    assert_eq!(code, Some(1));
    assert!(said["error"].as_str().is_some_and(|error| error.contains("not a voter")), "{said}");
    let (code, said) = run("transfer", &["--to", &to.to_string()]);
    assert_eq!((code, said), (Some(0), json!({ "leader": to })), "it leads already");
}
