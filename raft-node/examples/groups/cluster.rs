//! The three processes, seen from the one that started them.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::net::UdpSocket;
use std::ops::RangeInclusive;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use raft_core::NodeId;
use raft_net::pki::CertificateAuthority;

/// Nodes.
const NODES: u64 = 3;
/// Name of the cluster.
pub(crate) const CLUSTER: &str = "groups";
/// How long groups may take to get their leaders.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a process says of itself.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Resident memory, in bytes.
    pub(crate) resident: u64,
    /// CPU time since it was started.
    pub(crate) cpu: Duration,
    /// Messages sent to other nodes.
    pub(crate) frames: u64,
    /// Syncs of the log.
    pub(crate) syncs: u64,
    /// Groups that it leads, and groups of which it knows the leader.
    pub(crate) leads: u64,
    pub(crate) led: u64,
}

/// What came of a load.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Writes done, in all processes.
    pub(crate) writes: u64,
    /// Latencies in microseconds, of the process where they are worst: the median, and the 99th percentile.
    pub(crate) median: u64,
    pub(crate) slowest: u64,
}

/// The processes, and a folder for everything. Both are gone when it is dropped.
pub(crate) struct Cluster {
    members: Vec<Member>,
    _dir: tempfile::TempDir,
}

struct Member {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Cluster {
    pub(crate) fn start() -> Result<Cluster> {
        let dir = tempfile::tempdir()?;
        let day = Duration::from_hours(24);
        let ca = CertificateAuthority::generate(day)?;
        fs::write(dir.path().join("ca.pem"), &ca.credentials().cert_pem)?;
        // Bound all at once, so that they differ.
        let sockets = (0..NODES).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let mut peers = Vec::new();
        for (id, socket) in (1..).zip(&sockets) {
            writeln!(peers, "{id} {}", socket.local_addr()?)?;
            let own = ca.issue_node(CLUSTER, NodeId(id), day)?;
            own.write(&dir.path().join(format!("{id}.pem")), &dir.path().join(format!("{id}.key")))?;
        }
        fs::write(dir.path().join("peers"), peers)?;
        drop(sockets);
        let program = std::env::current_exe()?;
        let start = |id: u64| -> Result<Member> {
            let mut process = Command::new(&program)
                .args(["--node", &id.to_string(), "--dir"])
                .arg(dir.path())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let input = process.stdin.take().context("no input")?;
            let output = BufReader::new(process.stdout.take().context("no output")?);
            Ok(Member { process, input, output })
        };
        let members = (1..=NODES).map(start).collect::<Result<Vec<_>>>()?;
        Ok(Cluster { members, _dir: dir })
    }

    /// Asks all members the same at the same time, and understands what they answer as numbers.
    fn ask(&mut self, question: &str) -> Result<Vec<Vec<u64>>> {
        for member in &mut self.members {
            writeln!(member.input, "{question}")?;
        }
        let answer = |member: &mut Member| -> Result<Vec<u64>> {
            let mut line = String::new();
            member.output.read_line(&mut line)?;
            let numbers = line.strip_prefix("ok").with_context(|| format!("{question}: {line:?}"))?;
            numbers.split_whitespace().map(|word| Ok(word.parse()?)).collect()
        };
        self.members.iter_mut().map(answer).collect()
    }

    pub(crate) fn figures(&mut self) -> Result<Vec<Figures>> {
        let read = |numbers: Vec<u64>| -> Result<Figures> {
            let [resident, cpu, frames, syncs, leads, led] = numbers[..] else { bail!("figures: {numbers:?}") };
            Ok(Figures { resident, cpu: Duration::from_millis(cpu), frames, syncs, leads, led })
        };
        self.ask("figures")?.into_iter().map(read).collect()
    }

    /// Opens these groups everywhere, and waits until each has a leader that all know. Returns how long that took.
    pub(crate) fn open(&mut self, groups: RangeInclusive<u64>, awake: bool) -> Result<Duration> {
        let start = Instant::now();
        self.ask(&format!("open {} {} {awake}", groups.start(), groups.end()))?;
        let count = groups.count() as u64;
        loop {
            let figures = self.figures()?;
            if figures.iter().all(|one| one.led == count) {
                return Ok(start.elapsed());
            }
            ensure!(start.elapsed() < PATIENCE, "not all groups have a leader: {figures:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Moves leadership so that each node leads as many groups as the others.
    pub(crate) fn spread_leaders(&mut self, groups: RangeInclusive<u64>) -> Result<()> {
        let start = Instant::now();
        let count = groups.count() as u64;
        loop {
            self.ask("spread")?;
            let leads: Vec<u64> = self.figures()?.iter().map(|one| one.leads).collect();
            let fair = leads.iter().all(|leads| *leads >= count / NODES) && leads.iter().sum::<u64>() == count;
            if fair {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "leaders cannot be spread: {leads:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// So many clients for each group write for so long.
    pub(crate) fn load(&mut self, clients: u64, size: usize, seconds: u64) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        for numbers in self.ask(&format!("load {clients} {size} {seconds}"))? {
            let [writes, median, slowest, failures] = numbers[..] else { bail!("load: {numbers:?}") };
            ensure!(failures == 0, "{failures} writes failed: there was an election, or the machine is too busy");
            loaded.writes += writes;
            loaded.median = loaded.median.max(median);
            loaded.slowest = loaded.slowest.max(slowest);
        }
        Ok(loaded)
    }

    /// Ends the processes in an orderly way.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.ask("stop")?;
        for member in &mut self.members {
            ensure!(member.process.wait()?.success(), "a node did not stop well");
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            // It may have ended by itself.
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}
