//! The processes of an etcd cluster.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::leash::Leash;

/// Bytes that etcd may keep, all earlier versions of values included; its own limit of 2 GB is meant to be reached by accident only.
const QUOTA: u64 = 64 << 30;

/// One process.
pub(super) struct Member {
    /// Where it listens for clients.
    pub(super) client: SocketAddr,
    /// Its process.
    pub(super) process: Child,
}

/// All of them. They are killed when this is dropped.
pub(super) struct Members(pub(super) Vec<Member>);

impl Members {
    /// Starts `count` members with an empty state; data and logs go into `dir`, which must be empty or absent. Everything is as etcd has it by default: each write is
    /// synced by a majority.
    pub(super) fn start(program: &Path, dir: &Path, count: usize) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        ensure!(fs::read_dir(dir)?.next().is_none(), "{} is not empty", dir.display());
        // Held open together, so that the system does not hand out the same port twice.
        let sockets = (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<Vec<_>>>();
        let ports = sockets.context("no free TCP ports")?;
        let addresses = ports.iter().map(TcpListener::local_addr).collect::<std::io::Result<Vec<SocketAddr>>>()?;
        drop(ports);
        let (peers, clients) = addresses.split_at(count);
        let initial: Vec<String> = (1..).zip(peers).map(|(id, peer)| format!("n{id}=http://{peer}")).collect();
        let leash = Leash::find();
        let mut members = Members(Vec::new());
        for (id, (peer, &client)) in (1..).zip(peers.iter().zip(clients)) {
            let mut command = leash.command(program);
            command.args(flags(id, *peer, client, &initial.join(",")));
            command.arg("--data-dir").arg(dir.join(format!("member-{id}.data")));
            let log = File::create(dir.join(format!("member-{id}.log")))?;
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
            without_settings(&mut command);
            let process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
            members.0.push(Member { client, process });
        }
        Ok(members)
    }

    /// Fails if one has ended by itself: figures of such a cluster mean nothing.
    pub(super) fn check(&mut self) -> Result<()> {
        for (number, member) in (1..).zip(&mut self.0) {
            let ended = member.process.try_wait()?;
            ensure!(ended.is_none(), "member {number} of etcd ended by itself; see its log");
        }
        Ok(())
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        for member in &mut self.0 {
            // It may have ended by itself.
            let _ = member.process.kill();
            let _ = member.process.wait();
        }
    }
}

fn flags(id: usize, peer: SocketAddr, client: SocketAddr, initial: &str) -> Vec<String> {
    let url = |address: SocketAddr| format!("http://{address}");
    let flags = [
        ("name", format!("n{id}")),
        ("listen-peer-urls", url(peer)),
        ("initial-advertise-peer-urls", url(peer)),
        ("listen-client-urls", url(client)),
        ("advertise-client-urls", url(client)),
        ("initial-cluster", initial.to_owned()),
        ("initial-cluster-state", "new".to_owned()),
        ("initial-cluster-token", format!("bench-{}", std::process::id())),
        ("quota-backend-bytes", QUOTA.to_string()),
    ];
    flags.into_iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// What is set in the environment for somebody's own etcd does not concern this one.
pub(super) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
}
