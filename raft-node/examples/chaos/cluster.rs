//! Real `raft-node` processes, each told addresses of its peers that are proxies.
//!
//! Whatever happens to this program, no process is left: they are killed when the [`Cluster`] is dropped, and the kernel kills them when this
//! program dies without getting there (`setpriv --pdeathsig`, where there is one).

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use raft_core::NodeId;
use raft_net::TlsIdentity;
use raft_net::pki::{CertificateAuthority, Credentials};
use raft_node::client::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};

use crate::proxy::Network;

const CLUSTER: &str = "chaos";
const DAY: Duration = Duration::from_hours(24);

/// The nodes.
pub(crate) struct Cluster {
    dir: PathBuf,
    program: PathBuf,
    /// Sections of every configuration file besides those that it must have.
    more: String,
    nodes: BTreeMap<NodeId, Node>,
    /// Those that had ended by themselves when they were to be killed.
    ended: Vec<Stopped>,
    tls: TlsIdentity,
    leash: bool,
}

struct Node {
    /// Where it listens.
    address: SocketAddr,
    /// Where the others reach it.
    gate: SocketAddr,
    /// Whether it waits to be added when it starts with an empty disk, instead of beginning a cluster.
    joins: bool,
    /// What is the matter with its disk at present, whoever starts it.
    trouble: Option<Trouble>,
    process: Option<Process>,
}

struct Process {
    child: Child,
    /// Length of the log when it was started.
    log_start: u64,
    /// What was done to its disk: then it may stop by itself, and must say that this is why.
    troubles: Vec<Trouble>,
}

/// What makes a node stop by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Its syncs fail.
    Sync,
    /// No space is left on its disk.
    Space,
}

impl Trouble {
    /// How the operating system puts it.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Trouble::Sync => "Input/output error",
            Trouble::Space => "No space left on device",
        }
    }
}

/// A node that ended without being killed.
#[derive(Debug)]
pub(crate) struct Stopped {
    pub(crate) id: NodeId,
    pub(crate) status: ExitStatus,
    /// What was done to its disk.
    pub(crate) troubles: Vec<Trouble>,
    /// The last line of its log.
    pub(crate) last_words: String,
}

impl Stopped {
    /// Whether it ended in an orderly way (not by a signal or a panic), for a reason that it was given, and with this reason as its last words.
    pub(crate) fn is_excused(&self) -> bool {
        self.status.code() == Some(1)
            && self.last_words.starts_with("error:")
            && self.troubles.iter().any(|trouble| self.last_words.contains(trouble.words()))
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} has stopped ({}", self.id, self.status)?;
        match &self.troubles[..] {
            [] => f.write_str(", without reason")?,
            troubles => write!(f, ", disk in trouble: {troubles:?}")?,
        }
        write!(f, "): {}", self.last_words)
    }
}

impl Cluster {
    /// Addresses for nodes 1 to `count`.
    pub(crate) fn addresses(count: u64) -> Result<BTreeMap<NodeId, SocketAddr>> {
        let mut ports = free_ports();
        (1..=count)
            .map(|id| {
                let port = ports.next().context("no free UDP port")?;
                Ok((NodeId(id), SocketAddr::from(([127, 0, 0, 1], port))))
            })
            .collect()
    }

    /// Writes certificates and configuration files into `dir`, and starts nothing. The cluster begins with the first `founders`; the others wait to be added.
    pub(crate) fn prepare(
        dir: &Path,
        program: &Path,
        addresses: &BTreeMap<NodeId, SocketAddr>,
        founders: u64,
        network: &Network,
        more: &str,
    ) -> Result<Cluster> {
        let gates: BTreeMap<NodeId, SocketAddr> =
            addresses.iter().map(|(&id, &address)| (id, network.address(id).unwrap_or(address))).collect();
        let peers: BTreeMap<_, _> = gates.iter().filter(|(id, _)| id.0 <= founders).collect();
        let ca = CertificateAuthority::generate(DAY)?;
        write(dir, "ca", ca.credentials())?;
        for (&id, &address) in addresses {
            write(dir, &format!("node-{id}"), &ca.issue_node(CLUSTER, id, DAY)?)?;
            fs::write(dir.join(format!("node-{id}.toml")), config(id, address, &peers, more)?)?;
        }
        let client = ca.issue_client(CLUSTER, "chaos", DAY)?;
        let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &client.cert_pem, &client.key_pem)?;
        let node = |(&id, &gate)| {
            let (address, joins) = (addresses[&id], id.0 > founders);
            (id, Node { address, gate, joins, trouble: None, process: None })
        };
        let nodes = gates.iter().map(node).collect();
        let leash = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "true"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        let (dir, program, more) = (dir.to_owned(), program.to_owned(), more.to_owned());
        Ok(Cluster { dir, program, more, nodes, ended: Vec::new(), tls, leash })
    }

    /// All nodes, running or not.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// Where a node keeps its data.
    pub(crate) fn data_dir(&self, id: NodeId) -> PathBuf {
        self.file(id, "data")
    }

    /// Settings for a client of all nodes, which it reaches without a proxy.
    pub(crate) fn client_config(&self) -> ClientConfig {
        let nodes = self.nodes.iter().map(|(&id, node)| (id, node.address.to_string())).collect();
        ClientConfig::new(nodes, self.tls.clone())
    }

    /// A client that begins with one node.
    pub(crate) fn client_of(&self, id: NodeId, timeout: Duration) -> Result<Client> {
        let mut config = self.client_config();
        config.nodes.retain(|&node, _| node == id);
        config.timeout = timeout;
        Ok(Client::new(config)?)
    }

    /// Such a client that asks once and waits for the answer so long, even if the node gives no sign of life.
    pub(crate) fn patient_client_of(&self, id: NodeId, patience: Duration) -> Result<Client> {
        let mut config = self.client_config();
        config.nodes.retain(|&node, _| node == id);
        (config.timeout, config.attempt_timeout, config.silence_timeout) = (patience, patience, patience);
        Ok(Client::new(config)?)
    }

    /// Starts every node that does not run.
    pub(crate) fn start_all(&mut self) -> Result<()> {
        self.ids().into_iter().try_for_each(|id| self.start(id))
    }

    /// Starts a node, unless it runs. Must be called on the thread that lives longest: the leash of a process is its parent's thread.
    pub(crate) fn start(&mut self, id: NodeId) -> Result<()> {
        if self.is_up(id) {
            return Ok(());
        }
        let path = self.file(id, "log");
        let log = File::options().create(true).append(true).open(&path)?;
        let log_start = log.metadata()?.len();
        let Node { joins, trouble, .. } = *self.node(id)?;
        let child = self
            .leashed(&self.program)
            .args(["serve", "--config"])
            .arg(self.file(id, "toml"))
            .args(joins.then_some("--join"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.node(id)?.process = Some(Process { child, log_start, troubles: trouble.into_iter().collect() });
        Ok(())
    }

    /// Kills a node, empties its disk and starts it as if nothing had happened; if `joins`, from now on it waits to be added when it has nothing.
    pub(crate) fn start_empty(&mut self, id: NodeId, joins: bool) -> Result<()> {
        self.kill(id)?;
        if joins {
            // Of two nodes the lower id dials the other: who joins must know everybody who may lead by now.
            let gates: BTreeMap<_, _> = self.nodes.iter().map(|(id, node)| (id, &node.gate)).collect();
            let text = config(id, self.nodes[&id].address, &gates, &self.more)?;
            fs::write(self.file(id, "toml"), text)?;
            self.node(id)?.joins = true;
        }
        let dir = self.data_dir(id);
        // The directory itself may be a disk of its own.
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("cannot remove {}", path.display()))?;
        }
        self.start(id)
    }

    /// A node that is not needed any more: it is killed, and forgotten but for its log.
    pub(crate) fn dismiss(&mut self, id: NodeId) -> Result<()> {
        self.kill(id)?;
        self.nodes.remove(&id);
        Ok(())
    }

    /// Where the others reach a node.
    pub(crate) fn gate(&self, id: NodeId) -> Option<SocketAddr> {
        self.nodes.get(&id).map(|node| node.gate)
    }

    /// A command that ends with this program, and that Ctrl-C in a terminal does not reach.
    pub(crate) fn leashed(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self.leash {
            command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(program);
        }
        command.process_group(0);
        command
    }

    /// Whether it was started and not killed since; it may have stopped by itself.
    pub(crate) fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.process.is_some())
    }

    /// `kill -9`, if it runs.
    pub(crate) fn kill(&mut self, id: NodeId) -> Result<()> {
        // One that has ended by itself is not to be taken for a victim.
        let ended = self.reap_one(id)?;
        self.ended.extend(ended);
        if let Some(mut process) = self.node(id)?.process.take() {
            process.child.kill()?;
            process.child.wait()?;
        }
        Ok(())
    }

    /// SIGSTOP; the process goes on where it stood after [`resume`](Self::resume).
    pub(crate) fn pause(&mut self, id: NodeId) -> Result<()> {
        self.signal(id, Signal::STOP)
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, id: NodeId) -> Result<()> {
        self.signal(id, Signal::CONT)
    }

    /// SIGCONT to all.
    pub(crate) fn resume_all(&mut self) -> Result<()> {
        self.ids().into_iter().try_for_each(|id| self.resume(id))
    }

    /// From now on, until it is started anew, this node may stop by itself for this reason.
    pub(crate) fn may_stop(&mut self, id: NodeId, trouble: Trouble) -> Result<()> {
        if let Some(process) = &mut self.node(id)?.process {
            process.troubles.push(trouble);
        }
        Ok(())
    }

    /// From now on, however often it is started, until it is said that nothing is the matter with its disk (`None`): then the process that runs may still stop for it.
    pub(crate) fn set_trouble(&mut self, id: NodeId, trouble: Option<Trouble>) -> Result<()> {
        self.node(id)?.trouble = trouble;
        trouble.map_or(Ok(()), |trouble| self.may_stop(id, trouble))
    }

    /// Process id of a node.
    pub(crate) fn pid(&self, id: NodeId) -> Option<u32> {
        Some(self.nodes.get(&id)?.process.as_ref()?.child.id())
    }

    /// The nodes that have ended by themselves since the last call.
    pub(crate) fn reap(&mut self) -> Result<Vec<Stopped>> {
        let mut stopped = std::mem::take(&mut self.ended);
        for id in self.ids() {
            stopped.extend(self.reap_one(id)?);
        }
        Ok(stopped)
    }

    fn reap_one(&mut self, id: NodeId) -> Result<Option<Stopped>> {
        let Some(process) = &mut self.node(id)?.process else { return Ok(None) };
        let Some(status) = process.child.try_wait()? else { return Ok(None) };
        let (troubles, start) = (std::mem::take(&mut process.troubles), process.log_start);
        self.node(id)?.process = None;
        let last_words = self.log_since(id, start)?.lines().last().unwrap_or("(silence)").to_owned();
        Ok(Some(Stopped { id, status, troubles, last_words }))
    }

    /// What a node has logged in all its lives.
    pub(crate) fn log(&self, id: NodeId) -> Result<String> {
        self.log_since(id, 0)
    }

    fn log_since(&self, id: NodeId, start: u64) -> Result<String> {
        let mut file = File::open(self.file(id, "log"))?;
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn signal(&mut self, id: NodeId, signal: Signal) -> Result<()> {
        let Some(pid) = self.pid(id) else { return Ok(()) };
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a process id")?;
        // It is our child and was not waited for, so the id is still its own even when it has ended.
        kill_process(pid, signal).with_context(|| format!("cannot signal node {id}"))
    }

    /// A file of a node: `node-N.log` and the like.
    pub(crate) fn file(&self, id: NodeId, extension: &str) -> PathBuf {
        self.dir.join(format!("node-{id}.{extension}"))
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&id).with_context(|| format!("there is no node {id}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.values_mut().filter_map(|node| node.process.as_mut()) {
            // It may have ended by itself. SIGKILL also ends a paused process.
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

/// Free UDP ports below the range from which the system gives ports to clients, so that nobody takes one while its node is down.
fn free_ports() -> impl Iterator<Item = u16> {
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 14_000;
    // Runs at the same time begin at different places.
    let offset = (std::process::id().wrapping_mul(89) % u32::from(COUNT)) as u16;
    let free = |port: &u16| UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    (0..COUNT).map(move |i| FIRST + (offset + i) % COUNT).filter(free)
}

fn write(dir: &Path, name: &str, credentials: &Credentials) -> Result<()> {
    let file = |extension: &str| dir.join(format!("{name}.{extension}"));
    Ok(credentials.write(&file("pem"), &file("key"))?)
}

fn config(id: NodeId, address: SocketAddr, peers: &BTreeMap<&NodeId, &SocketAddr>, more: &str) -> Result<String> {
    let mut text = format!(
        "[node]\nid = {id}\ncluster = \"{CLUSTER}\"\ndata_dir = \"node-{id}.data\"\nlisten = \"{address}\"\n\
         {more}[tls]\nca = \"ca.pem\"\ncert = \"node-{id}.pem\"\nkey = \"node-{id}.key\"\n[peers]\n"
    );
    for (id, address) in peers {
        writeln!(text, "{id} = \"{address}\"")?;
    }
    // Each cluster has nodes of both engines.
    let engine = if id.0.is_multiple_of(2) { "journal" } else { "rocksdb" };
    write!(text, "[storage]\nengine = \"{engine}\"\n")?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn only_the_trouble_that_a_node_was_given_excuses_its_end() {
        let no_space = "error: cannot write and sync the log: No space left on device";
        let excused = |wait_status, troubles: &[Trouble], last_words: &str| {
            let (status, troubles) = (ExitStatus::from_raw(wait_status), troubles.to_vec());
            Stopped { id: NodeId(1), status, troubles, last_words: last_words.to_owned() }.is_excused()
        };
        let failure = 1 << 8;
        assert!(excused(failure, &[Trouble::Space], no_space));
        assert!(excused(failure, &[Trouble::Sync, Trouble::Space], no_space));
        assert!(!excused(failure, &[Trouble::Sync], no_space), "for another reason");
        assert!(!excused(failure, &[], no_space), "without any");
        assert!(!excused(failure, &[Trouble::Space], "error: term went back from 3 to 2"), "it says something else");
        assert!(!excused(failure, &[Trouble::Space], "INFO No space left on device"), "it goes without a word");
        assert!(!excused(101 << 8, &[Trouble::Space], no_space), "a panic");
        assert!(!excused(6, &[Trouble::Space], no_space), "SIGABRT");
    }
}
