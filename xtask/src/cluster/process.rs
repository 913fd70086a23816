//! The processes of a local cluster: started together, watched, and stopped together.

use std::fs::{self, OpenOptions};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::description::{Description, Node, leader_in};
use crate::report::{Task, human, say};
use crate::{rocksdb, signals, workspace};

/// How long nodes get to end by themselves after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// How long a new cluster gets to elect a leader. An election takes about a second; a slow machine takes its time to start.
const LEADER_WITHIN: Duration = Duration::from_secs(30);
/// Lines of a node's log that are shown when it dies.
const LOG_LINES: usize = 15;

/// What to start.
pub(crate) struct Options<'a> {
    /// Folder for everything the cluster writes.
    pub(crate) dir: &'a Path,
    /// The `raft-node` program.
    pub(crate) program: &'a Path,
    /// Where each node listens.
    pub(crate) listen: &'a [SocketAddr],
    /// Log level of the nodes.
    pub(crate) log_level: &'a str,
    /// What keeps the logs; by default the node decides.
    pub(crate) engine: Option<&'a str>,
}

/// A running cluster. Dropping it stops its processes.
pub(crate) struct Cluster {
    description: Description,
    dir: PathBuf,
    processes: Vec<Process>,
}

struct Process {
    id: u64,
    child: Child,
    /// Length of the log when the process was started: what follows is its own.
    log_start: u64,
}

/// A node that ended without being asked to.
pub(crate) struct Dead {
    /// The node.
    pub(crate) id: u64,
    /// How it ended.
    pub(crate) status: ExitStatus,
    /// The end of its log.
    pub(crate) log: String,
}

impl Cluster {
    /// Makes certificates and configuration files where they are missing and starts one process for each node.
    pub(crate) fn start(options: &Options) -> Result<Cluster> {
        fs::create_dir_all(options.dir).with_context(|| format!("cannot create {}", options.dir.display()))?;
        let dir = options.dir.canonicalize().with_context(|| format!("cannot resolve {}", options.dir.display()))?;
        let description = Description::new(&dir, "demo", options.program, options.listen);
        if let Some(earlier) = Description::read(&dir)? {
            description.check_continues(&earlier, &dir)?;
            stop_leftovers(&earlier);
        }
        check_ports(&description.nodes)?;
        description.make_certificates(&dir)?;
        description.write_configs(&dir, options.log_level, options.engine)?;
        let mut cluster = Cluster { description, dir, processes: Vec::new() };
        for index in 0..cluster.description.nodes.len() {
            cluster.spawn(index)?;
        }
        cluster.description.write(&cluster.dir)?;
        Ok(cluster)
    }

    fn spawn(&mut self, index: usize) -> Result<()> {
        let node = &mut self.description.nodes[index];
        let log = OpenOptions::new().create(true).append(true).open(&node.log);
        let log = log.with_context(|| format!("cannot write {}", node.log.display()))?;
        let log_start = log.metadata()?.len();
        let mut command = serve_command(&self.description.program, node);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        own_group(&mut command);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", workspace::show(&command)))?;
        node.pid = Some(child.id());
        self.processes.push(Process { id: node.id, child, log_start });
        Ok(())
    }

    /// What `cluster.json` says.
    pub(crate) fn description(&self) -> &Description {
        &self.description
    }

    /// The folder of the cluster, absolute.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Asks the nodes until one of them leads, and returns its id.
    ///
    /// # Errors
    ///
    /// When a node dies meanwhile, when the user interrupts, or when there is no leader in time; with the end of the logs.
    pub(crate) fn wait_for_leader(&mut self) -> Result<u64> {
        let task = Task::spinner("waiting for a leader (about a second)");
        let mut last = String::from("it was never asked");
        while task.elapsed() < LEADER_WITHIN {
            if signals::stop_requested() {
                bail!("interrupted");
            }
            if let Some(dead) = self.take_dead().into_iter().next() {
                bail!("node {} ended at once ({}); the end of its log:\n{}", dead.id, dead.status, dead.log);
            }
            match self.status().map(|status| leader_in(&status)) {
                Ok(Some(leader)) => {
                    task.finish(&format!("node {leader} leads"));
                    return Ok(leader);
                }
                Ok(None) => "no node says that it leads".clone_into(&mut last),
                Err(error) => last = format!("{error:#}"),
            }
            sleep(Duration::from_millis(100));
        }
        let mut message = format!("no leader within {}; `raft-node status`: {last}", human(LEADER_WITHIN));
        for process in &self.processes {
            let (id, log) = (process.id.to_string(), self.log_tail(process));
            message.extend([
                "

end of the log of node ",
                &id,
                ":
",
                &log,
            ]);
        }
        bail!(message)
    }

    fn status(&self) -> Result<serde_json::Value> {
        let mut command = Command::new(&self.description.program);
        command
            .args(["status", "--json", "--timeout", "1s", "--config"])
            .arg(&self.description.client.config)
            .stdin(Stdio::null());
        // Some nodes may be unreachable (and the exit code then not zero) while others already answer.
        let output = command.output().with_context(|| format!("cannot start `{}`", workspace::show(&command)))?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("not JSON: {}", String::from_utf8_lossy(&output.stderr).trim()))
    }

    /// The nodes that ended since the last call.
    pub(crate) fn take_dead(&mut self) -> Vec<Dead> {
        let mut dead = Vec::new();
        let mut running = Vec::new();
        for mut process in std::mem::take(&mut self.processes) {
            match process.child.try_wait() {
                Ok(Some(status)) => {
                    dead.push(Dead { id: process.id, status, log: self.log_tail(&process) });
                }
                Ok(None) | Err(_) => running.push(process),
            }
        }
        self.processes = running;
        dead
    }

    /// How many nodes run.
    pub(crate) fn running(&self) -> usize {
        self.processes.len()
    }

    fn log_tail(&self, process: &Process) -> String {
        let node = self.description.nodes.iter().find(|node| node.id == process.id);
        let bytes = node.and_then(|node| fs::read(&node.log).ok()).unwrap_or_default();
        let own = bytes.get(process.log_start as usize..).unwrap_or(&bytes);
        rocksdb::tail(&String::from_utf8_lossy(own), LOG_LINES)
    }

    /// Asks all nodes to end and waits for them; kills those that do not.
    pub(crate) fn stop(&mut self) {
        if self.processes.is_empty() {
            return;
        }
        let task = Task::spinner(format!("stopping {} nodes", self.processes.len()));
        for process in &self.processes {
            signals::terminate(process.child.id());
        }
        let deadline = Instant::now() + GRACE;
        let mut killed = Vec::new();
        for mut process in std::mem::take(&mut self.processes) {
            while matches!(process.child.try_wait(), Ok(None)) {
                if Instant::now() >= deadline {
                    killed.push(process.id.to_string());
                    // It may end between the two calls: then there is nothing to kill, and that is fine.
                    let _ = process.child.kill();
                    let _ = process.child.wait();
                    break;
                }
                sleep(Duration::from_millis(20));
            }
        }
        for node in &mut self.description.nodes {
            node.pid = None;
        }
        if let Err(error) = self.description.write(&self.dir) {
            say(&format!("warning: {error:#}"));
        }
        if killed.is_empty() {
            task.finish("stopped");
        } else {
            task.finish(&format!("killed after {}: node {}", human(GRACE), killed.join(", node ")));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The command that runs a node.
pub(crate) fn serve_command(program: &Path, node: &Node) -> Command {
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(&node.config);
    command
}

/// Addresses on the loopback interface: successive ports after `base`, or free ones when `base` is 0.
pub(crate) fn addresses(nodes: u16, base: u16) -> Result<Vec<SocketAddr>> {
    if base == 0 {
        // Held open together, so that the system does not hand out the same port twice.
        let sockets = (0..nodes).map(|_| UdpSocket::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>();
        let sockets = sockets.context("cannot find free UDP ports on 127.0.0.1")?;
        return sockets.iter().map(|socket| Ok(socket.local_addr()?)).collect();
    }
    (1..=nodes)
        .map(|id| {
            let port =
                base.checked_add(id).with_context(|| format!("--base-port {base} is too high for {nodes} nodes"))?;
            Ok(SocketAddr::from(([127, 0, 0, 1], port)))
        })
        .collect()
}

fn check_ports(nodes: &[Node]) -> Result<()> {
    for node in nodes {
        if let Err(error) = UdpSocket::bind(node.listen) {
            bail!(
                "node {} cannot listen on {} ({error}); is another cluster running? --base-port takes others",
                node.id,
                node.listen
            );
        }
    }
    Ok(())
}

/// Ends nodes that a run of xtask left behind that was itself killed. Only processes that still run this very node are touched: a
/// process id may belong to something else by now.
fn stop_leftovers(earlier: &Description) {
    let alive = |node: &Node| node.pid.is_some_and(|pid| runs_node(pid, &node.config));
    let left: Vec<&Node> = earlier.nodes.iter().filter(|node| alive(node)).collect();
    if left.is_empty() {
        return;
    }
    let task = Task::spinner(format!("stopping {} nodes that an earlier run left behind", left.len()));
    for pid in left.iter().filter_map(|node| node.pid) {
        signals::terminate(pid);
    }
    while task.elapsed() < GRACE && left.iter().any(|node| alive(node)) {
        sleep(Duration::from_millis(50));
    }
    task.finish("done");
}

fn runs_node(pid: u32, config: &Path) -> bool {
    let arguments = workspace::read(Command::new("ps").args(["-o", "args=", "-p", &pid.to_string()]));
    arguments.is_ok_and(|arguments| arguments.contains("serve") && arguments.contains(&*config.to_string_lossy()))
}

/// Ctrl-C in a terminal goes to the whole foreground group: in a group of its own a node ends when we say so, in order.
#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_follow_the_base_or_are_free_and_different() {
        let fixed = addresses(3, 7400).expect("in range");
        assert_eq!(fixed.iter().map(SocketAddr::port).collect::<Vec<_>>(), [7401, 7402, 7403]);
        assert!(addresses(3, u16::MAX - 1).is_err());
        let mut free: Vec<u16> = addresses(5, 0).expect("free ports").iter().map(SocketAddr::port).collect();
        free.sort_unstable();
        free.dedup();
        assert_eq!(free.len(), 5);
        assert!(!free.contains(&0));
    }

    #[test]
    fn a_port_in_use_is_refused_before_anything_starts() {
        let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let listen = [taken.local_addr().expect("bound")];
        let description = Description::new(Path::new("/x"), "demo", Path::new("/x"), &listen);
        let error = check_ports(&description.nodes).expect_err("taken");
        assert!(error.to_string().contains("--base-port"), "{error}");
    }
}
