//! One of the processes: a node that does what it is told, line by line.

use std::fs;
use std::io::{BufRead, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use raft_core::{GroupId, NodeId, Role};
use raft_net::TlsIdentity;
use raft_node::{GroupOptions, Node, Raft};
use tokio::task::JoinSet;

use crate::cluster::CLUSTER;
use crate::counter::Counter;

/// Groups that are opened at a time.
const AT_A_TIME: usize = 32;

/// Runs until it is told to stop, or nobody tells it anything any more.
pub(crate) fn run(id: u64, dir: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let node = runtime.block_on(start(NodeId(id), dir))?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer: Vec<u64> = match words[..] {
            ["figures"] => runtime.block_on(figures(&node))?,
            ["open", first, last, awake] => {
                runtime.block_on(open(&node, first.parse()?, last.parse()?, awake.parse()?))?
            }
            ["spread"] => runtime.block_on(spread(&node))?,
            ["load", clients, size, seconds] => {
                runtime.block_on(load(&node, clients.parse()?, size.parse()?, seconds.parse()?))?
            }
            ["stop"] => {
                runtime.block_on(async {
                    node.shutdown();
                    node.stopped().await
                })?;
                say(&[])?;
                return Ok(());
            }
            _ => bail!("not understood: {line}"),
        };
        say(&answer)?;
    }
    Ok(())
}

fn say(numbers: &[u64]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    write!(out, "ok")?;
    for number in numbers {
        write!(out, " {number}")?;
    }
    writeln!(out)?;
    Ok(out.flush()?)
}

async fn start(id: NodeId, dir: &Path) -> Result<Node> {
    let read = |name: String| fs::read(dir.join(&name)).with_context(|| name);
    let text = |name: String| -> Result<String> { Ok(String::from_utf8(read(name)?)?) };
    let tls = TlsIdentity::from_pem(&text("ca.pem".into())?, &text(format!("{id}.pem"))?, &text(format!("{id}.key"))?)?;
    let mut peers = Vec::new();
    for line in text("peers".into())?.lines() {
        let (peer, address) = line.split_once(' ').context("peers")?;
        peers.push((NodeId(peer.parse()?), address.to_owned()));
    }
    let own = &peers.iter().find(|(peer, _)| *peer == id).context("not a peer")?.1;
    let listen = own.parse()?;
    let data_dir = dir.join(format!("node-{id}"));
    Ok(Node::builder().identity(id, CLUSTER).data_dir(data_dir).listen(listen).tls(tls).peers(peers).start().await?)
}

async fn open(node: &Node, first: u64, last: u64, awake: bool) -> Result<Vec<u64>> {
    let mut opening = JoinSet::new();
    for id in first..=last {
        if opening.len() >= AT_A_TIME
            && let Some(done) = opening.join_next().await
        {
            done??;
        }
        let node = node.clone();
        opening.spawn(async move {
            node.create_group(GroupId(id), Counter::default(), GroupOptions::new().quiesce(!awake)).await.map(drop)
        });
    }
    while let Some(done) = opening.join_next().await {
        done??;
    }
    Ok(Vec::new())
}

/// Hands over what another node is to lead.
async fn spread(node: &Node) -> Result<Vec<u64>> {
    for raft in led(node).await? {
        let next = NodeId(raft.group().0 % 3 + 1);
        if next != node.id() {
            // If it fails, it is tried again.
            let _ = raft.transfer_leadership(Some(next)).await;
        }
    }
    Ok(Vec::new())
}

/// The groups that this node leads.
async fn led(node: &Node) -> Result<Vec<Raft>> {
    let mut led = Vec::new();
    for status in node.groups().await?.iter().filter(|status| status.role == Role::Leader) {
        led.push(node.group(status.group).await?);
    }
    Ok(led)
}

/// Each client writes again when its last write is done. Returns the writes, the median and the 99th percentile of their latencies, and failures.
async fn load(node: &Node, clients: u64, size: usize, seconds: u64) -> Result<Vec<u64>> {
    let command = bytes::Bytes::from(vec![7; size]);
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut writers = JoinSet::new();
    for raft in led(node).await? {
        for _ in 0..clients {
            let (raft, command) = (raft.clone(), command.clone());
            writers.spawn(async move {
                let (mut latencies, mut failures) = (Vec::new(), 0);
                while Instant::now() < end {
                    let begin = Instant::now();
                    match raft.propose(command.clone()).await {
                        Ok(_) => latencies.push(begin.elapsed().as_micros() as u32),
                        Err(_) => {
                            failures += 1;
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
                (latencies, failures)
            });
        }
    }
    let (mut all, mut failures) = (Vec::new(), 0);
    while let Some(done) = writers.join_next().await {
        let (latencies, failed) = done?;
        all.extend(latencies);
        failures += failed;
    }
    all.sort_unstable();
    let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or_default();
    Ok(vec![all.len() as u64, u64::from(at(0.5)), u64::from(at(0.99)), failures])
}

async fn figures(node: &Node) -> Result<Vec<u64>> {
    let groups = node.groups().await?;
    let metrics = node.metrics();
    let frames = metrics.net.as_ref().map_or(0, |net| net.snapshot().sent.iter().map(|both| both.frames).sum());
    let syncs = metrics.storage.as_ref().map_or(0, |storage| storage.syncs());
    let leads = groups.iter().filter(|status| status.role == Role::Leader).count() as u64;
    let led = groups.iter().filter(|status| status.leader.is_some()).count() as u64;
    let status = fs::read_to_string("/proc/self/status")?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let resident: u64 = resident.trim().trim_end_matches(" kB").parse()?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // After the name, which is in parentheses: user and system time are the 12th and 13th field, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(") ").context("no name")?.1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(vec![resident << 10, ticks * 10, frames, syncs, leads, led])
}
