//! etcd: started by us, loaded over its own interface, asked for its own counters.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use raft_core::NodeId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::grpc::{CallError, Channel, GrpcLine};
use super::members::{Members, without_settings};
use super::messages::{self, MemberStatus};
use crate::cluster::Leadership;
use crate::lines::{Line, Loop};
use crate::meter::Meter;
use crate::probe::{Counters, disk_bytes};
use crate::target::Moment;
use crate::workload::Workload;

/// How long the cluster may be without a leader before the measurement is given up.
const LEADER_WITHIN: Duration = Duration::from_secs(20);
/// How long a member may take to tell about itself.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Syncs of the write-ahead log.
const SYNCS: &str = "etcd_disk_wal_fsync_duration_seconds_count";
/// Bytes of messages to other members.
const PEER_BYTES: &str = "etcd_network_peer_sent_bytes_total";

/// A cluster of etcd. Its processes end with it.
pub(crate) struct Etcd {
    members: std::cell::RefCell<Members>,
    clients: Vec<SocketAddr>,
    pids: Vec<u32>,
    version: String,
}

impl Etcd {
    /// Starts `count` members with an empty state in `dir`.
    pub(crate) fn start(program: &Path, dir: &Path, count: usize) -> Result<Self> {
        let mut command = Command::new(program);
        without_settings(&mut command);
        let version = command.arg("--version").output();
        let version = version.with_context(|| format!("cannot start {}", program.display()))?;
        let version = version_of(&String::from_utf8_lossy(&version.stdout))?;
        let members = Members::start(program, dir, count)?;
        let clients = members.0.iter().map(|member| member.client).collect();
        let pids = members.0.iter().map(|member| member.process.id()).collect();
        Ok(Etcd { members: members.into(), clients, pids, version })
    }

    /// What must be known to judge its figures.
    pub(crate) fn about(&self) -> String {
        format!(
            "etcd {}, one process for each member, its own defaults (fsync before an acknowledgement); gRPC without TLS, also between members: in its favour; \
             syncs are those of its write-ahead log, bytes between members as it counts them itself",
            self.version
        )
    }

    /// The processes of the members.
    pub(crate) fn pids(&self) -> &[u32] {
        &self.pids
    }

    /// Waits until there is a leader that all members agree on.
    pub(crate) async fn leadership(&self) -> Result<Leadership> {
        let begin = Instant::now();
        loop {
            self.members.borrow_mut().check()?;
            let last = match self.statuses().await.map(|statuses| agreed(&statuses)) {
                Ok(Some(leadership)) => return Ok(leadership),
                Ok(None) => "the members do not agree on a leader".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            ensure!(begin.elapsed() < LEADER_WITHIN, "etcd has no leader within {LEADER_WITHIN:?}: {last}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Asks all members about themselves.
    pub(crate) async fn look(&self) -> Result<Moment> {
        self.members.borrow_mut().check()?;
        let leadership = agreed(&self.statuses().await?);
        let mut all = Vec::new();
        for &client in &self.clients {
            all.push(metrics(client).await.with_context(|| format!("the metrics of {client}"))?);
        }
        let sum = |name: &str| all.iter().map(|metrics| metrics.get(name).copied()).sum::<Option<u64>>();
        let counters = Counters {
            syncs: sum(SYNCS),
            peer_bytes: sum(PEER_BYTES),
            disk_bytes: disk_bytes(&self.pids),
            ..Counters::default()
        };
        Ok(Moment { leadership, counters })
    }

    /// One connection to a member.
    pub(crate) async fn connect(
        &self,
        node: NodeId,
        kind: Loop,
        meter: Rc<Meter>,
        workload: Workload,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Result<Rc<dyn Line>> {
        let at = (node.0 as usize).checked_sub(1).and_then(|at| self.clients.get(at));
        let (channel, connection) = Channel::connect(*at.context("there is no such member")?).await?;
        let line = GrpcLine::new(channel, kind, meter, workload)?;
        tasks.spawn_local(line.clone().run(connection));
        Ok(line)
    }

    async fn statuses(&self) -> Result<Vec<MemberStatus>> {
        let mut all = Vec::new();
        for &client in &self.clients {
            let status = tokio::time::timeout(ANSWER_WITHIN, status(client)).await;
            all.push(status.with_context(|| format!("{client} does not answer"))??);
        }
        Ok(all)
    }
}

/// Puts of `value_size` bytes over `keys` keys.
pub(crate) fn workload(keys: u64, value_size: usize, seed: u64) -> Result<Workload> {
    Workload::with(keys, value_size, seed, messages::put)
}

async fn status(client: SocketAddr) -> Result<MemberStatus> {
    let (channel, connection) = Channel::connect(client).await?;
    let method = channel.method("/etcdserverpb.Maintenance/Status")?;
    let answer = tokio::select! {
        answer = channel.call(&method, Bytes::from(messages::empty())) => answer,
        _ = connection => bail!("the connection broke"),
    };
    match answer {
        Ok(answer) => MemberStatus::decode(&answer),
        Err(CallError::Busy) => bail!("it is busy"),
        Err(CallError::Failed(error)) => Err(error),
    }
}

/// The leadership in which all members agree, if they do. Members are numbered from 1, in the order in which they were started.
fn agreed(statuses: &[MemberStatus]) -> Option<Leadership> {
    let first = statuses.first()?;
    let all = statuses.iter().all(|status| (status.leader, status.term) == (first.leader, first.term));
    let at = statuses.iter().position(|status| status.member == first.leader)?;
    (all && first.leader != 0).then_some(Leadership { leader: NodeId(at as u64 + 1), term: first.term })
}

/// The counters of a member, without their labels.
async fn metrics(client: SocketAddr) -> Result<BTreeMap<String, u64>> {
    let exchange = async {
        let mut stream = TcpStream::connect(client).await?;
        // The old version of the protocol: the answer comes in one piece, and ends with the connection.
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {client}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, exchange).await.context("no answer")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "refused: {}", head.lines().next().unwrap_or_default());
    Ok(parse_metrics(body))
}

/// Sums what differs in its labels only. Lines are `name{labels} value`, or comments.
fn parse_metrics(text: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, value)) = line.rsplit_once(' ') else { continue };
        let name = name.split('{').next().unwrap_or(name);
        if let Some(value) = value.parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0) {
            *all.entry(name.to_owned()).or_insert(0) += value as u64;
        }
    }
    all
}

/// From the first line, `etcd Version: 3.4.23`.
fn version_of(text: &str) -> Result<String> {
    let line = text.lines().next().unwrap_or_default();
    let version = line.strip_prefix("etcd Version: ").with_context(|| format!("this is not etcd: {line:?}"))?;
    Ok(version.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Bench;
    use crate::scenario::{Load, Repetition, Settings};
    use crate::target::Target;

    #[test]
    fn the_leader_is_the_one_that_all_members_name() {
        let member = |member, leader, term| MemberStatus { member, leader, term };
        let good = [member(7, 9, 3), member(9, 9, 3), member(8, 9, 3)];
        assert_eq!(agreed(&good), Some(Leadership { leader: NodeId(2), term: 3 }));
        assert_eq!(agreed(&[member(7, 9, 3), member(9, 9, 4)]), None);
        assert_eq!(agreed(&[member(7, 0, 3), member(9, 0, 3)]), None);
        assert_eq!(agreed(&[]), None);
    }

    #[test]
    fn counters_are_summed_over_their_labels() {
        let text = "# HELP x y\n# TYPE x counter\nsent{To=\"a b\"} 1.5e+03\nsent{To=\"c\"} 2\nsyncs 7\nbad NaN\n\n";
        let metrics = parse_metrics(text);
        assert_eq!(metrics, [("sent".to_owned(), 1502), ("syncs".to_owned(), 7)].into());
    }

    #[test]
    fn only_etcd_is_etcd() {
        assert_eq!(version_of("etcd Version: 3.4.23\nGit SHA: x\n").unwrap(), "3.4.23");
        assert!(version_of("hello\n").is_err());
        assert!(Etcd::start(Path::new("/there/is/none"), Path::new("/tmp/none"), 3).is_err());
    }

    #[test]
    fn a_put_carries_the_key_and_the_value_of_the_workload() {
        let mut workload = workload(1, 64, 1).unwrap();
        let (mut first, mut second) = (bytes::BytesMut::new(), bytes::BytesMut::new());
        workload.append(0, &mut first);
        workload.append(u64::MAX, &mut second);
        assert_eq!(first.len(), second.len());
        let key_end = first.len() - 64 - 2;
        assert_eq!(first[..key_end], second[..key_end], "there is one key, and no id");
        assert!(first[..key_end].ends_with(b"bench/000000000000"), "{first:?}");
        assert_ne!(first[key_end..], second[key_end..]);
    }

    #[test]
    fn it_is_started_and_loaded_where_there_is_one() {
        if Command::new("etcd").arg("--version").output().is_err() {
            eprintln!("skipped: there is no etcd");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let etcd = Etcd::start(Path::new("etcd"), &dir.path().join("etcd"), 3).unwrap();
            assert!(etcd.about().starts_with("etcd 3."), "{}", etcd.about());
            let bench = Bench::of(Target::Etcd(Box::new(etcd)));
            let settings = Settings {
                seconds: 0.3,
                warm_up_seconds: 0.1,
                repetitions: 1,
                value_size: 256,
                keys: 10,
                connections: 2,
                seed: 1,
            };
            for load in [Load::Closed { clients: 3 }, Load::Open { rate: 50 }] {
                let found = repeated(&bench, load, &settings).await;
                assert!(found.operations > 0 && found.latency.p50 > 0.0 && found.failures() == 0, "{found:?}");
                assert!(found.fsyncs.is_some_and(|syncs| syncs > 0.1), "{found:?}");
                assert!(found.peer_bytes.is_some_and(|bytes| bytes > 256.0), "{found:?}");
                assert!(found.node_cpu.is_some() && found.resident.is_some_and(|bytes| bytes > 1 << 20), "{found:?}");
            }
            bench.close().await;
        });
    }

    /// An election on a busy machine spoils a repetition.
    async fn repeated(bench: &Bench, load: Load, settings: &Settings) -> Repetition {
        let mut last = None;
        for number in 0..5 {
            match bench.repetition(load, settings, number).await {
                Ok(found) => return found,
                Err(error) => last = Some(error),
            }
        }
        panic!("{last:?}")
    }
}
