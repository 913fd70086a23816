//! The configuration files of a node and of a client.
//!
//! Both are TOML. Relative paths in a file are relative to the file. A key that does not exist is an error, as is a
//! value that cannot work: the message names the file, the key, and what to do about it.
//!
//! A node's file must have `[node]` (`id`, `cluster`, `data_dir`, `listen`, and `join = true` for a node that is added later), `[peers]` (`id = "host:port"` for
//! every voter; a node that is added later names those that it shall find, and need not name itself) and `[tls]` (`ca`, `cert`, `key`). Optional, with the defaults of [`raft_core::Config`] (but `max_append_bytes`
//! 256 KiB and `max_inflight_bytes` 1 MiB) and [`ServiceLimits`](crate::client::ServiceLimits):
//!
//! - `[raft]`: `election_timeout_ms`, `heartbeat_interval_ms`, `max_write_stall_ms` (for how long a write to the leader's own disk may take before it steps down; absent: two election timeouts), `pre_vote`, `check_quorum`, `no_op_on_election`, `priority` (who
//!   should lead: the highest; 0 to 255), `lease_drift_per_mille` (reads by a lease, for clocks whose rates differ by no more; absent: no leases), `max_append_bytes`, `max_inflight_appends`, `max_inflight_bytes`, `max_uncommitted_bytes`, `max_unapplied_bytes`, `max_cached_bytes`;
//! - `[limits]`: `max_value_bytes`, `max_client_connections`, `max_requests_per_connection`, `max_reply_bytes_per_connection`;
//! - `[snapshot]`: when the log is compacted (`entries`, `bytes`: so many applied since the last time; 0 does not count) and what is kept of it for
//!   followers that are a little behind (`keep_entries`, `keep_bytes`) and for those that are getting a snapshot (`hold_bytes`), with the defaults of [`SnapshotPolicy`](crate::SnapshotPolicy); and how fast a
//!   snapshot is sent at most (`max_bytes_per_second`, by default 0: no limit but that clients who write shall not notice it; it goes on with 8 MB a second in any case);
//! - `[storage]`: `engine` (what keeps the log in a new data directory: `rocksdb`, the default, or `journal`; a directory stays with the one that made it);
//! - `[log]`: `level` (a level, or directives), `format` (`text` or `json`);
//! - `[metrics]`: `timings` (whether it is measured where the time of writes goes, for `raft-node status --timings`; by default not).
//!
//! A client's file must have `cluster`, `[nodes]` (`id = "host:port"`) and `[tls]`; `timeout_ms` is optional.

mod client;
mod node;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use raft_core::NodeId;
use raft_net::TlsIdentity;
use serde::Deserialize;
use serde::de::DeserializeOwned;

pub use client::ClientFile;
pub use node::{EngineName, Limits, LogFormat, LogSettings, NodeConfig, Overrides};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// The file is not TOML of the expected shape.
    #[error("{}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, key and problem.
        message: String,
    },
    /// A value cannot work.
    #[error("{}: `{key}` {problem}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The key, with its section.
        key: String,
        /// What is wrong, and what to do about it.
        problem: String,
    },
}

/// Where certificate and key lie.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// Certificate of the authority, PEM.
    pub ca: PathBuf,
    /// Own certificate, PEM.
    pub cert: PathBuf,
    /// Key of the own certificate, PEM.
    pub key: PathBuf,
}

impl TlsFiles {
    /// Loads them.
    ///
    /// # Errors
    /// When a file is missing, or is not what it should be.
    pub fn load(&self) -> Result<TlsIdentity, raft_net::TlsError> {
        TlsIdentity::load(&self.ca, &self.cert, &self.key)
    }

    fn relative_to(self, file: &Path) -> Self {
        TlsFiles { ca: beside(file, &self.ca), cert: beside(file, &self.cert), key: beside(file, &self.key) }
    }
}

/// Collects what is needed to complain about a file.
struct Source<'a> {
    path: &'a Path,
}

impl Source<'_> {
    fn invalid(&self, key: impl Into<String>, problem: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { path: self.path.to_owned(), key: key.into(), problem: problem.into() }
    }

    fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: self.path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })
    }

    fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let text = std::fs::read_to_string(self.path)
            .map_err(|source| ConfigError::Read { path: self.path.to_owned(), source })?;
        self.parse(&text)
    }

    /// A table of node ids and addresses.
    fn addresses(
        &self,
        section: &str,
        table: BTreeMap<String, String>,
    ) -> Result<BTreeMap<NodeId, String>, ConfigError> {
        let mut addresses = BTreeMap::new();
        for (id, address) in table {
            let key = format!("{section}.{id}");
            let id = match id.parse() {
                Ok(0) | Err(_) => return Err(self.invalid(key, "must be a node id, a number from 1 on")),
                Ok(id) => NodeId(id),
            };
            let port =
                address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(1..))) {
                return Err(
                    self.invalid(key, format!("is `{address}`, but must be an address like \"127.0.0.1:7401\""))
                );
            }
            if addresses.insert(id, address).is_some() {
                return Err(self.invalid(key, format!("names node {id} a second time")));
            }
        }
        if addresses.is_empty() {
            return Err(self.invalid(section, "must name at least one node, like 1 = \"127.0.0.1:7401\""));
        }
        Ok(addresses)
    }
}

fn beside(file: &Path, path: &Path) -> PathBuf {
    // `join` keeps an absolute path as it is.
    file.parent().unwrap_or(Path::new("")).join(path)
}
