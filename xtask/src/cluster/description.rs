//! The files of a local cluster: what each process reads, and `cluster.json`, from which tools learn about all of it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::workspace;

/// The name of the description in the folder of a cluster.
pub(crate) const FILE: &str = "cluster.json";

/// A local cluster, as `cluster.json` describes it. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// Name of the cluster; certificates and data directories belong to it.
    pub(crate) cluster: String,
    /// The program that runs the nodes, and serves as the command-line client.
    pub(crate) program: PathBuf,
    /// The nodes, in the order of their ids.
    pub(crate) nodes: Vec<Node>,
    /// How a client identifies itself.
    pub(crate) client: Client,
}

/// One node of a local cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Node {
    /// The node's id, from 1.
    pub(crate) id: u64,
    /// The UDP address where it listens for peers and clients.
    pub(crate) listen: SocketAddr,
    /// Its TOML file.
    pub(crate) config: PathBuf,
    /// Its data; survives a restart.
    pub(crate) data_dir: PathBuf,
    /// Where its output goes; appended to.
    pub(crate) log: PathBuf,
    /// Its process, while it runs.
    pub(crate) pid: Option<u32>,
}

/// The identity of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Client {
    /// TOML file for the client subcommands of `raft-node`.
    pub(crate) config: PathBuf,
    /// Certificate of the authority that signed the nodes' certificates.
    pub(crate) ca: PathBuf,
    /// The client's certificate.
    pub(crate) cert: PathBuf,
    /// The client's private key.
    pub(crate) key: PathBuf,
}

impl Description {
    /// The layout of a cluster in `dir`, one node for each address.
    pub(crate) fn new(dir: &Path, cluster: &str, program: &Path, listen: &[SocketAddr]) -> Description {
        let certs = certificate_dir(dir);
        let node = |(id, &listen): (u64, &SocketAddr)| Node {
            id,
            listen,
            config: dir.join(format!("node-{id}.toml")),
            data_dir: dir.join(format!("node-{id}.data")),
            log: dir.join(format!("node-{id}.log")),
            pid: None,
        };
        Description {
            cluster: cluster.to_owned(),
            program: program.to_path_buf(),
            nodes: (1..).zip(listen).map(node).collect(),
            client: Client {
                config: dir.join("client.toml"),
                ca: certs.join("ca.pem"),
                cert: certs.join("client-admin.pem"),
                key: certs.join("client-admin.key"),
            },
        }
    }

    /// Reads the description of the cluster in `dir`; `None` when there is none yet.
    pub(crate) fn read(dir: &Path) -> Result<Option<Description>> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        serde_json::from_str(&text).map(Some).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes `cluster.json`, whole or not at all.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let temporary = dir.join(format!("{FILE}.tmp"));
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(&temporary, text).with_context(|| format!("cannot write {}", temporary.display()))?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes the authority and the certificates that are not there yet, by `raft-node cert`.
    pub(crate) fn make_certificates(&self, dir: &Path) -> Result<()> {
        let certs = certificate_dir(dir);
        fs::create_dir_all(&certs).with_context(|| format!("cannot create {}", certs.display()))?;
        let make = |file: String, arguments: &[&str]| {
            if certs.join(file).is_file() {
                return Ok(());
            }
            let mut command = std::process::Command::new(&self.program);
            command.arg("cert").args(arguments).arg("--out").arg(&certs);
            workspace::read(&mut command).map(drop)
        };
        let authority = certs.to_str().with_context(|| format!("{} is not UTF-8", certs.display()))?;
        make("ca.pem".to_owned(), &["ca", "--cluster", &self.cluster])?;
        for node in &self.nodes {
            let id = node.id.to_string();
            make(format!("node-{id}.pem"), &["node", "--ca", authority, "--id", &id])?;
        }
        make("client-admin.pem".to_owned(), &["client", "--ca", authority, "--name", "admin"])
    }

    /// Writes the TOML files of the nodes and of the client.
    pub(crate) fn write_configs(&self, dir: &Path, log_level: &str, engine: Option<&str>) -> Result<()> {
        for node in &self.nodes {
            let text = self.node_config(node, &certificate_dir(dir), log_level, engine)?;
            save(&node.config, &text)?;
        }
        save(&self.client.config, &self.client_config()?)
    }

    fn node_config(&self, node: &Node, certs: &Path, log_level: &str, engine: Option<&str>) -> Result<String> {
        let id = node.id;
        let mut text = String::new();
        writeln!(text, "[node]\nid = {id}\ncluster = {}", quoted(&self.cluster)?)?;
        writeln!(text, "data_dir = {}\nlisten = {}", path(&node.data_dir)?, quoted(&node.listen.to_string())?)?;
        writeln!(text, "\n[peers]\n{}", self.addresses()?)?;
        writeln!(text, "[tls]\nca = {}", path(&self.client.ca)?)?;
        writeln!(text, "cert = {}", path(&certs.join(format!("node-{id}.pem")))?)?;
        writeln!(text, "key = {}", path(&certs.join(format!("node-{id}.key")))?)?;
        writeln!(text, "\n[log]\nlevel = {}\nformat = \"text\"", quoted(log_level)?)?;
        if let Some(engine) = engine {
            writeln!(text, "\n[storage]\nengine = {}", quoted(engine)?)?;
        }
        Ok(text)
    }

    fn client_config(&self) -> Result<String> {
        let Client { ca, cert, key, .. } = &self.client;
        let mut text = String::new();
        writeln!(text, "cluster = {}", quoted(&self.cluster)?)?;
        writeln!(text, "\n[nodes]\n{}", self.addresses()?)?;
        writeln!(text, "[tls]\nca = {}\ncert = {}\nkey = {}", path(ca)?, path(cert)?, path(key)?)?;
        Ok(text)
    }

    fn addresses(&self) -> Result<String> {
        let mut text = String::new();
        for node in &self.nodes {
            writeln!(text, "{} = {}", node.id, quoted(&node.listen.to_string())?)?;
        }
        Ok(text)
    }

    /// The members are fixed when the cluster is first started: its data knows them.
    pub(crate) fn check_continues(&self, earlier: &Description, dir: &Path) -> Result<()> {
        let members = |one: &Description| one.nodes.iter().map(|node| node.id).collect::<Vec<_>>();
        if earlier.cluster != self.cluster || members(earlier) != members(self) {
            bail!(
                "{} holds the cluster {:?} of {} nodes: start it with --nodes {}, take another --dir, or remove the folder",
                dir.display(),
                earlier.cluster,
                earlier.nodes.len(),
                earlier.nodes.len(),
            );
        }
        Ok(())
    }
}

/// The id of the leader in the output of `raft-node status --json`, looking through whatever surrounds the nodes' entries.
pub(crate) fn leader_in(status: &serde_json::Value) -> Option<u64> {
    use serde_json::Value;
    match status {
        Value::Array(items) => items.iter().find_map(leader_in),
        Value::Object(fields) => {
            let is_leader =
                fields.get("role").and_then(Value::as_str).is_some_and(|role| role.eq_ignore_ascii_case("leader"));
            let id = ["id", "node", "node_id"].into_iter().find_map(|name| fields.get(name)?.as_u64());
            if is_leader && id.is_some() { id } else { fields.values().find_map(leader_in) }
        }
        _ => None,
    }
}

fn certificate_dir(dir: &Path) -> PathBuf {
    dir.join("certs")
}

/// A TOML basic string; JSON's strings are such strings.
fn quoted(text: &str) -> Result<String> {
    Ok(serde_json::to_string(text)?)
}

fn path(path: &Path) -> Result<String> {
    quoted(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?)
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(dir: &Path, nodes: u16) -> Description {
        let listen: Vec<SocketAddr> = (1..=nodes).map(|id| SocketAddr::from(([127, 0, 0, 1], 7400 + id))).collect();
        Description::new(dir, "demo", Path::new("/bin/raft-node"), &listen)
    }

    #[test]
    fn a_description_survives_its_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        assert_eq!(Description::read(dir.path()).expect("readable"), None);
        let mut description = sample(dir.path(), 3);
        description.nodes[1].pid = Some(42);
        description.write(dir.path()).expect("written");
        assert_eq!(Description::read(dir.path()).expect("readable"), Some(description));
    }

    #[test]
    fn a_damaged_description_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join(FILE), "{").expect("written");
        let error = Description::read(dir.path()).expect_err("damaged");
        assert!(error.to_string().contains(FILE), "{error}");
    }

    #[test]
    fn node_files_name_every_peer_and_quote_paths() {
        let description = sample(Path::new("/tmp/with \"quote\""), 2);
        let text = description
            .node_config(&description.nodes[1], Path::new("/certs"), "info", Some("journal"))
            .expect("UTF-8");
        assert!(text.ends_with("[storage]\nengine = \"journal\"\n"), "{text}");
        assert!(text.contains("id = 2\ncluster = \"demo\"\n"), "{text}");
        assert!(text.contains(r#"data_dir = "/tmp/with \"quote\"/node-2.data""#), "{text}");
        assert!(text.contains("[peers]\n1 = \"127.0.0.1:7401\"\n2 = \"127.0.0.1:7402\"\n"), "{text}");
        assert!(text.contains("key = \"/certs/node-2.key\""), "{text}");
    }

    #[test]
    fn another_number_of_nodes_does_not_continue_a_cluster() {
        let dir = Path::new("/x");
        assert!(sample(dir, 3).check_continues(&sample(dir, 3), dir).is_ok());
        let error = sample(dir, 5).check_continues(&sample(dir, 3), dir).expect_err("other members");
        assert!(error.to_string().contains("--nodes 3"), "{error}");
    }

    #[test]
    fn the_leader_is_found_in_a_status() {
        let list = json!([{"id": 1, "role": "follower"}, {"id": 3, "role": "Leader"}]);
        assert_eq!(leader_in(&list), Some(3));
        let nested = json!({"nodes": [{"node": 2, "status": {"id": 2, "role": "leader"}}]});
        assert_eq!(leader_in(&nested), Some(2));
        assert_eq!(leader_in(&json!({"nodes": [{"id": 1, "error": "unreachable"}]})), None);
    }
}
