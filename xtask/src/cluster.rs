//! `cargo xtask cluster`: a cluster of real processes on this machine, to try things out.

mod description;
mod process;

use std::io::Write;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

pub(crate) use self::description::FILE as DESCRIPTION;
pub(crate) use self::process::{Cluster, Options, addresses};
use crate::report::{human, say};
use crate::{setup, signals, workspace};

/// Runs a local cluster until Ctrl-C.
///
/// Makes certificates, writes a configuration for each node, starts the processes, waits for a leader and prints the commands to
/// talk to them. The data survives: the next start with the same --dir finds it. The first build takes minutes (RocksDB is compiled once
/// on a machine); after that it takes about two seconds.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Folder for data, logs, certificates and configuration [default: target/cluster]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Build with optimisations: slower to build, faster to run
    #[arg(long)]
    release: bool,
    /// Node N listens on 127.0.0.1 at this UDP port + N; 0 takes free ports
    #[arg(long, default_value_t = 7400)]
    base_port: u16,
    /// Log level of the nodes: error, warn, info, debug or trace
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// Entry point of the subcommand.
pub(crate) fn run(args: &Args) -> Result<()> {
    setup::run(false)?;
    let program = build(args.release)?;
    let dir = args.dir.clone().unwrap_or_else(|| workspace::target_dir().join("cluster"));
    let started = Instant::now();
    signals::catch()?;
    let listen = addresses(args.nodes, args.base_port)?;
    let options = Options { dir: &dir, program: &program, listen: &listen, log_level: &args.log_level, engine: None };
    let mut cluster = Cluster::start(&options)?;
    let leader = cluster.wait_for_leader()?;
    introduce(&cluster, leader, started.elapsed());
    watch(&mut cluster)
}

/// Builds `raft-node` and returns its path.
pub(crate) fn build(release: bool) -> Result<PathBuf> {
    let mut command = workspace::cargo();
    command.args(["build", "-p", "raft-node", "--bin", "raft-node"]);
    if release {
        command.arg("--release");
    }
    workspace::run(&mut command)?;
    Ok(workspace::target_dir().join(if release { "release" } else { "debug" }).join("raft-node"))
}

fn introduce(cluster: &Cluster, leader: u64, took: Duration) {
    let description = cluster.description();
    let mut text = format!("\nCluster {:?} is up after {}: node {leader} leads.\n\n", description.cluster, human(took));
    for node in &description.nodes {
        let pid = node.pid.map_or("-".to_owned(), |pid| pid.to_string());
        let log = workspace::shorten(&node.log);
        text += &[&format!("  node {}  {}  process {pid:<7}", node.id, node.listen), " log ", &log, "\n"].concat();
    }
    let program = workspace::quote(&workspace::shorten(&description.program));
    let config = workspace::quote(&workspace::shorten(&description.client.config));
    text += "\nTalk to it:\n\n";
    for (subcommand, rest) in [("put", " greeting hello"), ("get", " greeting"), ("scan", ""), ("status", "")] {
        text += &["  ", &program, " ", subcommand, " --config ", &config, rest, "\n"].concat();
    }
    let dir = workspace::shorten(cluster.dir());
    text += &["\nEverything it writes is in ", &dir, " (", DESCRIPTION, " describes it). "].concat();
    text += "Ctrl-C stops all nodes; the data stays.\n";
    // Who closed the pipe has seen enough; the cluster goes on.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Waits for the end: a signal, or the death of all nodes. A single node may die (try it): the others go on.
fn watch(cluster: &mut Cluster) -> Result<()> {
    while !signals::stop_requested() {
        for dead in cluster.take_dead() {
            say(&format!("\nnode {} ended ({}); the end of its log:\n{}", dead.id, dead.status, dead.log));
            let description = cluster.description();
            if let Some(node) = description.nodes.iter().find(|node| node.id == dead.id) {
                let command = process::serve_command(&description.program, node);
                say(&format!("\nto start it again: {}\n", workspace::show(&command)));
            }
        }
        if cluster.running() == 0 {
            bail!("all nodes have ended");
        }
        sleep(Duration::from_millis(100));
    }
    say("");
    cluster.stop();
    Ok(())
}
