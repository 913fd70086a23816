//! Real `raft-node` processes in a temporary folder, with certificates of their own. Nothing of them is left when the
//! [`Cluster`] is dropped.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use raft_core::NodeId;
use raft_net::TlsIdentity;
use raft_net::pki::{CertificateAuthority, Credentials};
use raft_node::client::{Client, ClientConfig};
use rustix::process::{Pid, Signal, kill_process};

const CLUSTER: &str = "test";
const DAY: Duration = Duration::from_hours(24);
/// How long anything may take that should take a second, on a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);

/// Some nodes, as processes.
pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    nodes: BTreeMap<NodeId, Node>,
    tls: TlsIdentity,
    /// For [`Cluster::leader`] and the like.
    observer: Client,
}

struct Node {
    address: String,
    process: Option<Child>,
}

impl Cluster {
    /// Starts `count` nodes, numbered from 1, and waits for a leader.
    pub(crate) async fn start(count: u64) -> Cluster {
        Cluster::start_with(count, "").await
    }

    /// The same with more lines in every node's configuration file.
    pub(crate) async fn start_with(count: u64, more: &str) -> Cluster {
        let mut cluster = Cluster::prepare(count, more);
        for id in cluster.ids() {
            cluster.spawn(id);
        }
        cluster.leader().await;
        cluster
    }

    /// Writes certificates and configuration files, but starts nothing.
    pub(crate) fn prepare(count: u64, more: &str) -> Cluster {
        Cluster::prepare_to_grow(count, count, more)
    }

    /// The same for a cluster that begins with the first `founders` nodes; the others are to be added later.
    pub(crate) fn prepare_to_grow(founders: u64, count: u64, more: &str) -> Cluster {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let addresses: BTreeMap<NodeId, String> =
            (1..=count).map(|id| (NodeId(id), format!("127.0.0.1:{}", free_port()))).collect();
        let ca = CertificateAuthority::generate(DAY).expect("an authority");
        write(&dir, "ca", ca.credentials());
        for (&id, address) in &addresses {
            write(&dir, &format!("node-{id}"), &ca.issue_node(CLUSTER, id, DAY).expect("a certificate"));
            let file = dir.path().join(format!("node-{id}.toml"));
            let joins = id.0 > founders;
            let known = |other: &NodeId| other.0 <= founders || *other == id;
            let peers = addresses.iter().filter(|(other, _)| known(other)).map(|(id, a)| (*id, a.clone())).collect();
            fs::write(file, node_config(id, address, &peers, joins, more)).expect("writable");
        }
        let client = ca.issue_client(CLUSTER, "test", DAY).expect("a certificate");
        write(&dir, "client", &client);
        fs::write(dir.path().join("client.toml"), client_config(&addresses)).expect("writable");
        let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &client.cert_pem, &client.key_pem)
            .expect("what was just issued is valid");
        let observer = Client::new(ClientConfig { timeout: Duration::from_secs(1), ..client_of(&addresses, &tls) })
            .expect("a client");
        let nodes = addresses.into_iter().map(|(id, address)| (id, Node { address, process: None })).collect();
        Cluster { dir, nodes, tls, observer }
    }

    /// The folder with everything: `node-N.toml`, `node-N.data`, `node-N.log`, `client.toml`, certificates.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// All nodes, running or not.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// A client of all nodes.
    pub(crate) fn client(&self) -> Client {
        self.client_with(|_| {})
    }

    /// A client with other settings.
    pub(crate) fn client_with(&self, change: impl FnOnce(&mut ClientConfig)) -> Client {
        let addresses = self.nodes.iter().map(|(&id, node)| (id, node.address.clone())).collect();
        let mut config = client_of(&addresses, &self.tls);
        change(&mut config);
        Client::new(config).expect("a client")
    }

    /// Where a node listens.
    pub(crate) fn address(&self, id: NodeId) -> String {
        self.nodes[&id].address.clone()
    }

    /// Empties the data directory of a node that does not run, as if its disk had been replaced.
    pub(crate) fn wipe(&self, id: NodeId) {
        fs::remove_dir_all(self.file(id, "data")).expect("it can be removed");
    }

    /// What a node has logged so far.
    pub(crate) fn log(&self, id: NodeId) -> String {
        fs::read_to_string(self.file(id, "log")).unwrap_or_default()
    }

    /// The clients' certificate.
    pub(crate) fn tls(&self) -> &TlsIdentity {
        &self.tls
    }

    /// Waits until a node leads that a majority agrees on, and says which.
    pub(crate) async fn leader(&self) -> NodeId {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let answers = self.observer.status_of_all().await;
            let known: Vec<_> = answers.values().flatten().collect();
            let newest = known.iter().map(|status| status.term).max().unwrap_or(0);
            let leads = known.iter().find(|status| status.role == "leader" && status.term == newest);
            if let Some(leader) = leads
                && known.iter().filter(|status| status.leader == Some(leader.node)).count() > leader.members.len() / 2
            {
                return leader.node;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no leader within {PATIENCE:?}\n{}", self.logs());
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, id: NodeId) {
        let mut process = self.node(id).process.take().expect("it runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it ends");
    }

    /// SIGTERM; waits for the orderly end.
    pub(crate) fn terminate(&mut self, id: NodeId) -> ExitStatus {
        self.signal(id, Signal::TERM);
        let mut process = self.node(id).process.take().expect("it runs");
        let start = Instant::now();
        loop {
            if let Some(status) = process.try_wait().expect("it can be waited for") {
                return status;
            }
            if start.elapsed() > PATIENCE {
                process.kill().expect("it can be killed");
                panic!("node {id} does not end\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Starts a node that was killed or terminated, and waits until it answers.
    pub(crate) async fn restart(&mut self, id: NodeId) {
        self.spawn(id);
        let start = Instant::now();
        while let Err(error) = self.observer.status(id).await {
            assert!(start.elapsed() < PATIENCE, "node {id} does not come back: {error}\n{}", self.logs());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops its clock: the process goes on where it stood when it is resumed.
    pub(crate) fn pause(&mut self, id: NodeId) {
        self.signal(id, Signal::STOP);
        // The signal goes to one of its threads, and until that has had its turn the others go on.
        let tasks = PathBuf::from(format!("/proc/{}/task", self.pid(id)));
        let start = Instant::now();
        while !fs::read_dir(&tasks).is_ok_and(|tasks| tasks.flatten().all(|task| is_stopped(&task.path()))) {
            assert!(start.elapsed() < PATIENCE, "node {id} cannot be paused");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&mut self, id: NodeId) {
        self.signal(id, Signal::CONT);
    }

    /// Process id of a running node.
    pub(crate) fn pid(&self, id: NodeId) -> u32 {
        self.nodes[&id].process.as_ref().expect("it runs").id()
    }

    /// Starts a node without waiting for it.
    pub(crate) fn spawn(&mut self, id: NodeId) {
        let log = File::options().create(true).append(true).open(self.file(id, "log")).expect("a log file");
        self.spawn_with(id, &[], log.into());
    }

    /// The same for a node that joins, whatever its configuration says.
    pub(crate) fn spawn_joining(&mut self, id: NodeId) {
        let log = File::options().create(true).append(true).open(self.file(id, "log")).expect("a log file");
        self.spawn_with(id, &["--join"], log.into());
    }

    /// The same, but nobody reads the log: every line of it is an error.
    pub(crate) fn spawn_with_broken_log(&mut self, id: NodeId) {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        self.spawn_with(id, &[], writer.into());
    }

    fn spawn_with(&mut self, id: NodeId, flags: &[&str], log: Stdio) {
        let process = program()
            .args(["serve", "--config"])
            .arg(self.file(id, "toml"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program was built with the tests");
        self.node(id).process = Some(process);
    }

    fn file(&self, id: NodeId, extension: &str) -> PathBuf {
        self.dir.path().join(format!("node-{id}.{extension}"))
    }

    /// A client command of the program, to be completed and run.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = program();
        command.arg(name).arg("--config").arg(self.dir().join("client.toml"));
        command
    }

    fn signal(&mut self, id: NodeId, signal: Signal) {
        let pid = i32::try_from(self.pid(id)).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).expect("a child can be signalled");
    }

    fn node(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("such a node")
    }

    /// The end of every node's log.
    fn logs(&self) -> String {
        let mut logs = String::new();
        for id in self.nodes.keys() {
            let log = fs::read_to_string(self.dir.path().join(format!("node-{id}.log"))).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(20)..].join("\n");
            writeln!(logs, "--- end of the log of node {id}:\n{tail}").expect("memory");
        }
        logs
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.values_mut().filter_map(|node| node.process.as_mut()) {
            // It may have ended by itself. SIGKILL also ends a paused process.
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The program under test: `RAFT_TEST_PROGRAM`, a release build perhaps, or the one that was built with the tests.
pub(crate) fn program() -> Command {
    let program = std::env::var_os("RAFT_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_raft-node").into());
    let mut command = Command::new(program);
    command.env_remove("RAFT_CLIENT_CONFIG").env_remove("RUST_LOG");
    command
}

/// Whether the system says so of a thread.
fn is_stopped(task: &Path) -> bool {
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
}

/// A UDP port for a node. It lies below the range from which the system gives ports to clients, so that nobody takes it while
/// the node is down.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 18_000;
    const COUNT: u16 = 14_000;
    // Test programs that run at the same time begin at different places.
    let offset = (std::process::id().wrapping_mul(97) % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let port = FIRST + (offset + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT) % COUNT;
        if UdpSocket::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free UDP port");
}

fn client_of(addresses: &BTreeMap<NodeId, String>, tls: &TlsIdentity) -> ClientConfig {
    ClientConfig::new(addresses.clone(), tls.clone())
}

fn write(dir: &tempfile::TempDir, name: &str, credentials: &Credentials) {
    let file = |extension: &str| -> PathBuf { dir.path().join(format!("{name}.{extension}")) };
    credentials.write(&file("pem"), &file("key")).expect("writable");
}

fn node_config(id: NodeId, address: &str, peers: &BTreeMap<NodeId, String>, joins: bool, more: &str) -> String {
    let mut text = format!(
        "[node]\nid = {id}\ncluster = \"{CLUSTER}\"\ndata_dir = \"node-{id}.data\"\nlisten = \"{address}\"\njoin = {joins}\n\
         [tls]\nca = \"ca.pem\"\ncert = \"node-{id}.pem\"\nkey = \"node-{id}.key\"\n[peers]\n"
    );
    for (id, address) in peers {
        writeln!(text, "{id} = \"{address}\"").expect("memory");
    }
    // Each cluster has nodes of both engines.
    let engine = if id.0.is_multiple_of(2) { "journal" } else { "rocksdb" };
    write!(text, "[storage]\nengine = \"{engine}\"\n").expect("memory");
    text + more
}

fn client_config(addresses: &BTreeMap<NodeId, String>) -> String {
    let mut text = format!(
        "cluster = \"{CLUSTER}\"\n[tls]\nca = \"ca.pem\"\ncert = \"client.pem\"\nkey = \"client.key\"\n[nodes]\n"
    );
    for (id, address) in addresses {
        writeln!(text, "{id} = \"{address}\"").expect("memory");
    }
    text
}
