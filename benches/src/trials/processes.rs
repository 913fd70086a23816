//! Nodes as processes of a cluster of its own: started, killed, wiped, and brought in anew.
//!
//! Whatever happens to this program, no process is left: they are killed when the [`Nodes`] are dropped, and the kernel kills them when this
//! program dies without getting there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use raft_core::NodeId;
use raft_net::TlsIdentity;
use raft_net::pki::{CertificateAuthority, Credentials};
use raft_node::client::{Client, ClientConfig};

use crate::cluster::{Description, Node as DescribedNode};
use crate::leash::Leash;

const CLUSTER: &str = "bench";
const DAY: Duration = Duration::from_hours(24);
/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);
/// Lines of a node's log that are shown when it ends by itself.
const LOG_LINES: usize = 15;

/// The processes.
pub(crate) struct Nodes {
    dir: PathBuf,
    program: PathBuf,
    all: BTreeMap<NodeId, Node>,
    tls: TlsIdentity,
    leash: Leash,
}

struct Node {
    address: SocketAddr,
    process: Option<Child>,
}

impl Nodes {
    /// Writes certificates and configuration files for nodes 1 to `count` into `dir`, which must be empty or absent, and starts all. `settings` is more of
    /// every node's configuration file.
    pub(crate) fn start(dir: &Path, program: &Path, count: u64, settings: &str) -> Result<Nodes> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        ensure!(fs::read_dir(&dir)?.next().is_none(), "{} is not empty", dir.display());
        let program = program.canonicalize().with_context(|| format!("there is no {}", program.display()))?;
        let ca = CertificateAuthority::generate(DAY)?;
        write(&dir, "ca", ca.credentials())?;
        let mut ports = free_ports();
        let mut nodes = BTreeMap::new();
        for id in (1..=count).map(NodeId) {
            let port = ports.next().context("no free UDP port")?;
            nodes.insert(id, Node { address: SocketAddr::from(([127, 0, 0, 1], port)), process: None });
            write(&dir, &format!("node-{id}"), &ca.issue_node(CLUSTER, id, DAY)?)?;
        }
        for (&id, node) in &nodes {
            let peers = nodes.iter().map(|(&id, node)| (id, node.address));
            fs::write(dir.join(format!("node-{id}.toml")), config(id, node.address, peers, settings)?)?;
        }
        let client = ca.issue_client(CLUSTER, "bench", DAY)?;
        write(&dir, "client", &client)?;
        let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &client.cert_pem, &client.key_pem)?;
        let mut nodes = Nodes { dir, program, all: nodes, tls, leash: Leash::find() };
        nodes.ids().into_iter().try_for_each(|id| nodes.spawn(id, false))?;
        Ok(nodes)
    }

    /// All nodes, running or not.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.all.keys().copied().collect()
    }

    /// Where a node listens.
    pub(crate) fn address(&self, id: NodeId) -> Result<SocketAddr> {
        Ok(self.all.get(&id).with_context(|| format!("there is no node {id}"))?.address)
    }

    /// The process of a node, while it runs.
    pub(crate) fn pid(&self, id: NodeId) -> Option<u32> {
        Some(self.all.get(&id)?.process.as_ref()?.id())
    }

    /// A client of all nodes.
    pub(crate) fn client(&self, change: impl FnOnce(&mut ClientConfig)) -> Result<Client> {
        let nodes = self.all.iter().map(|(&id, node)| (id, node.address.to_string())).collect();
        let mut config = ClientConfig::new(nodes, self.tls.clone());
        change(&mut config);
        Ok(Client::new(config)?)
    }

    /// The clients' certificate.
    pub(crate) fn tls(&self) -> &TlsIdentity {
        &self.tls
    }

    /// The cluster as it is at present, for [`Bench`](crate::run::Bench) and the like.
    pub(crate) fn description(&self) -> Description {
        let file = |name: &str| self.dir.join(name);
        let nodes = self.all.iter().map(|(&id, node)| DescribedNode {
            id: id.0,
            listen: node.address,
            data_dir: self.file(id, "data"),
            pid: node.process.as_ref().map(Child::id),
        });
        let files = [file("ca.pem"), file("client.pem"), file("client.key")];
        Description::new(CLUSTER, nodes.collect(), files)
    }

    /// Starts a node that does not run.
    pub(crate) fn spawn(&mut self, id: NodeId, joins: bool) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.file(id, "log"))?;
        let mut command = self.leashed(&self.program);
        command.args(["serve", "--config"]).arg(self.file(id, "toml")).env_remove("RUST_LOG");
        if joins {
            command.arg("--join");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {}", self.program.display()))?;
        self.node(id)?.process = Some(child);
        Ok(())
    }

    /// A command that ends with this program, and that Ctrl-C in a terminal does not reach.
    pub(crate) fn leashed(&self, program: &Path) -> Command {
        self.leash.command(program)
    }

    /// `kill -9`; returns when the process is gone. Other tasks go on meanwhile.
    pub(crate) async fn kill(&mut self, id: NodeId) -> Result<()> {
        let mut child = self.node(id)?.process.take().with_context(|| format!("node {id} does not run"))?;
        child.kill()?;
        let begin = Instant::now();
        while child.try_wait()?.is_none() {
            ensure!(begin.elapsed() < GONE_WITHIN, "node {id} cannot be killed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    /// Empties the data directory of a node that does not run, as if its disk had been replaced.
    pub(crate) fn wipe(&self, id: NodeId) -> Result<()> {
        let data = self.file(id, "data");
        fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))
    }

    /// Fails if a node has ended by itself, with the end of its log: figures of such a cluster mean nothing.
    pub(crate) fn check(&mut self) -> Result<()> {
        for (&id, node) in &mut self.all {
            let ended = node.process.as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                let log = fs::read_to_string(self.dir.join(format!("node-{id}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                bail!("node {id} ended ({status}); the end of its log:\n{tail}");
            }
        }
        Ok(())
    }

    /// A file of a node: `node-N.log` and the like.
    pub(crate) fn file(&self, id: NodeId, extension: &str) -> PathBuf {
        self.dir.join(format!("node-{id}.{extension}"))
    }

    fn node(&mut self, id: NodeId) -> Result<&mut Node> {
        self.all.get_mut(&id).with_context(|| format!("there is no node {id}"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for process in self.all.values_mut().filter_map(|node| node.process.as_mut()) {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Free UDP ports below the range from which the system gives ports to clients, so that nobody takes one while its node is down.
fn free_ports() -> impl Iterator<Item = u16> {
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 14_000;
    // Runs at the same time begin at different places.
    let offset = (std::process::id().wrapping_mul(83) % u32::from(COUNT)) as u16;
    let free = |port: &u16| UdpSocket::bind(("127.0.0.1", *port)).is_ok();
    (0..COUNT).map(move |i| FIRST + (offset + i) % COUNT).filter(free)
}

fn write(dir: &Path, name: &str, credentials: &Credentials) -> Result<()> {
    let file = |extension: &str| dir.join(format!("{name}.{extension}"));
    Ok(credentials.write(&file("pem"), &file("key"))?)
}

fn config(
    id: NodeId,
    address: SocketAddr,
    peers: impl Iterator<Item = (NodeId, SocketAddr)>,
    settings: &str,
) -> Result<String> {
    let mut text = format!(
        "[node]\nid = {id}\ncluster = \"{CLUSTER}\"\ndata_dir = \"node-{id}.data\"\nlisten = \"{address}\"\n\
         [tls]\nca = \"ca.pem\"\ncert = \"node-{id}.pem\"\nkey = \"node-{id}.key\"\n[peers]\n"
    );
    for (id, address) in peers {
        writeln!(text, "{id} = \"{address}\"")?;
    }
    Ok(text + settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_with_something_in_it_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "x").unwrap();
        let error = Nodes::start(dir.path(), Path::new("/bin/true"), 1, "").err().unwrap().to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_node_that_ends_by_itself_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Nodes::start(&dir.path().join("cluster"), Path::new("/bin/false"), 1, "").unwrap();
        let begin = Instant::now();
        let error = loop {
            match nodes.check() {
                Err(error) => break error.to_string(),
                Ok(()) => assert!(begin.elapsed() < GONE_WITHIN, "it is not noticed"),
            }
        };
        assert!(error.contains("node 1 ended"), "{error}");
    }

    #[test]
    fn settings_reach_the_configuration_of_every_node() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = dir.path().join("cluster");
        drop(
            Nodes::start(
                &cluster,
                Path::new("/bin/true"),
                3,
                "[raft]\nelection_timeout_ms = 150\nheartbeat_interval_ms = 50\n",
            )
            .unwrap(),
        );
        for id in 1..=3 {
            let file = cluster.join(format!("node-{id}.toml"));
            let config = raft_node::config::NodeConfig::load(&file, raft_node::config::Overrides::default()).unwrap();
            assert_eq!((config.raft.election_timeout, config.peers.len()), (Duration::from_millis(150), 3));
        }
    }
}
