//! `raft-node cert`: a private certificate authority in a folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use raft_core::NodeId;
use raft_net::pki::{CertificateAuthority, Credentials};

use super::{AuthorityArgs, CertCommand, Done, OutArgs};

/// Holds the name of the cluster beside the authority's certificate, so that it need not be given again.
const CLUSTER_FILE: &str = "ca.cluster";

pub(super) fn run(command: CertCommand) -> Result<Done> {
    match command {
        CertCommand::Ca { cluster, out } => {
            // Fails on a name that no certificate could carry, before anything is written.
            raft_net::CertifiedName::node(cluster.as_str(), NodeId(1)).dns_name()?;
            let authority = CertificateAuthority::generate(out.validity())?;
            write(&out, "ca", authority.credentials())?;
            let file = out.dir.join(CLUSTER_FILE);
            fs::write(&file, format!("{cluster}\n")).with_context(|| format!("cannot write {}", file.display()))?;
        }
        CertCommand::Node { authority, id, out } => {
            let (authority, cluster) = load(&authority)?;
            write(&out, &format!("node-{id}"), &authority.issue_node(&cluster, NodeId(id), out.validity())?)?;
        }
        CertCommand::Client { authority, name, out } => {
            let (authority, cluster) = load(&authority)?;
            let credentials = authority.issue_client(&cluster, &name, out.validity())?;
            write(&out, &format!("client-{name}"), &credentials)?;
        }
    }
    Ok(Done::Ok)
}

impl OutArgs {
    fn validity(&self) -> Duration {
        Duration::from_secs(u64::from(self.days) * 24 * 3600)
    }
}

fn load(args: &AuthorityArgs) -> Result<(CertificateAuthority, String)> {
    let authority = CertificateAuthority::load(&args.dir.join("ca.pem"), &args.dir.join("ca.key"))
        .context("cannot use the certificate authority (`raft-node cert ca` makes one)")?;
    let file = args.dir.join(CLUSTER_FILE);
    let cluster = fs::read_to_string(&file)
        .with_context(|| format!("cannot read {}, which holds the name of the cluster", file.display()))?;
    Ok((authority, cluster.trim().to_owned()))
}

fn write(out: &OutArgs, name: &str, credentials: &Credentials) -> Result<()> {
    fs::create_dir_all(&out.dir).with_context(|| format!("cannot create {}", out.dir.display()))?;
    let [cert, key] = ["pem", "key"].map(|extension| out.dir.join(format!("{name}.{extension}")));
    if !out.force {
        refuse_overwriting(&[&cert, &key])?;
    }
    credentials.write(&cert, &key)?;
    println!("{}\n{}", cert.display(), key.display());
    Ok(())
}

fn refuse_overwriting(files: &[&PathBuf]) -> Result<()> {
    for file in files {
        if Path::exists(file) {
            bail!("{} exists; --force overwrites it", file.display());
        }
    }
    Ok(())
}
