//! The configuration file of a client.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use raft_core::NodeId;
use serde::Deserialize;

use super::{ConfigError, Source, TlsFiles};

/// What the client commands of `raft-node` need to know, validated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientFile {
    /// Name of the cluster.
    pub cluster: String,
    /// Its nodes, as this client reaches them (`host:port`).
    pub nodes: BTreeMap<NodeId, String>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How long a request may take in all, if the file says so.
    pub timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: String,
    timeout_ms: Option<u64>,
    nodes: BTreeMap<String, String>,
    tls: TlsFiles,
}

impl ClientFile {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the fix.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let source = Source { path };
        Self::validate(&source, source.read()?)
    }

    /// The same from a text; `path` is for messages, and relative paths are relative to it.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the fix.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let source = Source { path };
        Self::validate(&source, source.parse(text)?)
    }

    fn validate(source: &Source<'_>, file: File) -> Result<Self, ConfigError> {
        if let Err(error) = raft_net::CertifiedName::node(file.cluster.as_str(), NodeId(1)).dns_name() {
            return Err(source.invalid("cluster", format!("cannot be used: {error}")));
        }
        if file.timeout_ms == Some(0) {
            return Err(source.invalid("timeout_ms", "is 0, but must be at least 1 (ms)"));
        }
        Ok(ClientFile {
            cluster: file.cluster,
            nodes: source.addresses("nodes", file.nodes)?,
            tls: file.tls.relative_to(source.path),
            timeout: file.timeout_ms.map(Duration::from_millis),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "
        cluster = \"demo\"
        timeout_ms = 250
        [nodes]
        1 = \"127.0.0.1:7401\"
        [tls]
        ca = \"ca.pem\"
        cert = \"client.pem\"
        key = \"client.key\"
    ";

    fn parse(text: &str) -> Result<ClientFile, String> {
        ClientFile::parse(Path::new("dir/client.toml"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_file_is_understood() {
        let file = parse(GOOD).unwrap();
        assert_eq!((file.cluster.as_str(), file.timeout), ("demo", Some(Duration::from_millis(250))));
        assert_eq!(file.nodes[&NodeId(1)], "127.0.0.1:7401");
        assert_eq!(file.tls.key, Path::new("dir/client.key"));
    }

    #[test]
    fn complaints_name_the_key_and_the_fix() {
        for (original, replacement, expected) in [
            ("cluster = \"demo\"", "cluster = \"\"", "`cluster` cannot be used"),
            ("timeout_ms = 250", "timeout_ms = 0", "`timeout_ms` is 0, but must be at least 1"),
            ("timeout_ms", "timeout", "unknown field `timeout`"),
            ("1 = \"127.0.0.1:7401\"", "1 = \"127.0.0.1\"", "`nodes.1` is `127.0.0.1`, but must be an address"),
            ("1 = \"127.0.0.1:7401\"", "", "`nodes` must name at least one node"),
        ] {
            let error = parse(&GOOD.replace(original, replacement)).unwrap_err();
            assert!(error.starts_with("dir/client.toml: ") && error.contains(expected), "{error}");
        }
    }
}
