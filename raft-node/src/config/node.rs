//! The configuration file of a node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use raft_core::{Lease, NodeId};
use raft_storage::Engine;
use serde::Deserialize;

use super::{ConfigError, Source, TlsFiles, beside};
use crate::client::ServiceLimits;
use crate::kv::{MAX_KEY_BYTES, MAX_VALUE_BYTES};
use crate::open::suited;
use crate::snapshot::SnapshotPolicy;

/// Bytes that a command needs besides its key and value, at most.
const COMMAND_OVERHEAD: usize = 64;

/// More does not fit into a frame of the network, whose length has 32 bits.
const MAX_APPEND_BYTES: usize = 1 << 30;

/// Everything that `raft-node serve` needs to know, validated.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NodeConfig {
    /// This node.
    pub id: NodeId,
    /// Name of the cluster.
    pub cluster: String,
    /// Where log and state live.
    pub data_dir: PathBuf,
    /// UDP address to listen at.
    pub listen: SocketAddr,
    /// This node joins a cluster that has begun without it.
    pub join: bool,
    /// Every node with which the cluster begins, this one included, as others reach it (`host:port`); on a node that joins, all
    /// present members: of two nodes the one with the lower id dials the other, and the leader may be anyone.
    pub peers: BTreeMap<NodeId, String>,
    /// Certificates.
    pub tls: TlsFiles,
    /// Settings of the protocol.
    pub raft: raft_core::Config,
    /// What clients may do.
    pub limits: Limits,
    /// When the log is compacted, and what is kept of it.
    pub snapshot: SnapshotPolicy,
    /// Bytes of a snapshot that are sent in a second, at most; zero: as many as go.
    pub snapshot_bytes_per_second: u64,
    /// What keeps the log; without a word, what made the directory.
    pub engine: Option<Engine>,
    /// Where the time of writes goes is measured.
    pub timings: bool,
    /// What is logged, and how.
    pub log: LogSettings,
}

/// What clients may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest value, in bytes.
    pub max_value_bytes: usize,
    /// Limits of the client service.
    pub service: ServiceLimits,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,raft_net=debug`.
    pub level: String,
    /// For people, or for programs.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings { level: "info".into(), format: LogFormat::Text }
    }
}

/// Form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What keeps the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// RocksDB.
    #[value(name = "rocksdb")]
    RocksDb,
    /// A journal: small writes are durable sooner, with less work.
    Journal,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Engine {
        match name {
            EngineName::RocksDb => Engine::RocksDb,
            EngineName::Journal => Engine::Journal,
        }
    }
}

/// What the command line has to say; it overrides the file.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Instead of `node.data_dir`.
    pub data_dir: Option<PathBuf>,
    /// Instead of `node.listen`.
    pub listen: Option<SocketAddr>,
    /// As if `node.join` were set.
    pub join: bool,
    /// Instead of `storage.engine`.
    pub engine: Option<EngineName>,
    /// Instead of `log.level`.
    pub log_level: Option<String>,
    /// Instead of `log.format`.
    pub log_format: Option<LogFormat>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    node: NodeSection,
    peers: BTreeMap<String, String>,
    tls: TlsFiles,
    #[serde(default)]
    raft: RaftSection,
    #[serde(default)]
    limits: LimitsSection,
    #[serde(default)]
    snapshot: SnapshotSection,
    #[serde(default)]
    log: LogSettings,
    #[serde(default)]
    metrics: MetricsSection,
    #[serde(default)]
    storage: StorageSection,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    id: u64,
    cluster: String,
    data_dir: PathBuf,
    listen: String,
    #[serde(default)]
    join: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MetricsSection {
    timings: bool,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct StorageSection {
    engine: Option<EngineName>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RaftSection {
    election_timeout_ms: Option<u64>,
    heartbeat_interval_ms: Option<u64>,
    max_write_stall_ms: Option<u64>,
    pre_vote: Option<bool>,
    check_quorum: Option<bool>,
    no_op_on_election: Option<bool>,
    priority: Option<u8>,
    lease_drift_per_mille: Option<u32>,
    max_append_bytes: Option<usize>,
    max_inflight_appends: Option<usize>,
    max_inflight_bytes: Option<usize>,
    max_uncommitted_bytes: Option<usize>,
    max_unapplied_bytes: Option<usize>,
    max_cached_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SnapshotSection {
    entries: Option<u64>,
    bytes: Option<u64>,
    keep_entries: Option<u64>,
    keep_bytes: Option<u64>,
    hold_bytes: Option<u64>,
    max_bytes_per_second: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the names are the keys of the file")]
struct LimitsSection {
    max_value_bytes: Option<usize>,
    max_client_connections: Option<usize>,
    max_requests_per_connection: Option<usize>,
    max_reply_bytes_per_connection: Option<usize>,
}

impl NodeConfig {
    /// Reads and validates the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the fix.
    pub fn load(path: &Path, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source { path };
        Self::validate(&source, source.read()?, overrides)
    }

    /// The same from a text; `path` is for messages, and relative paths are relative to it.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the key and the fix.
    pub fn parse(path: &Path, text: &str, overrides: Overrides) -> Result<Self, ConfigError> {
        let source = Source { path };
        Self::validate(&source, source.parse(text)?, overrides)
    }

    fn validate(source: &Source<'_>, file: File, overrides: Overrides) -> Result<Self, ConfigError> {
        let File { node, peers, tls, raft, limits, snapshot, log, metrics, storage } = file;
        if node.id == 0 {
            return Err(source.invalid("node.id", "must be at least 1; 0 is no node"));
        }
        let id = NodeId(node.id);
        if let Err(error) = raft_net::CertifiedName::node(node.cluster.as_str(), id).dns_name() {
            return Err(source.invalid("node.cluster", format!("cannot be used: {error}")));
        }
        let listen = match overrides.listen {
            Some(listen) => listen,
            None => node.listen.parse().map_err(|_| {
                let problem =
                    format!("is `{}`, but must be an IP address and a port like \"127.0.0.1:7401\"", node.listen);
                source.invalid("node.listen", problem)
            })?,
        };
        let peers = source.addresses("peers", peers)?;
        let join = overrides.join || node.join;
        // Where the others reach a node that joins, `member add` says.
        if !join && !peers.contains_key(&id) {
            let problem = format!("must also name this node: add {id} = \"host:port\", as the others reach it");
            return Err(source.invalid("peers", problem));
        }
        let limits = limits.validate(source)?;
        let raft = raft.validate(source, id, &limits)?;
        let log = LogSettings {
            level: overrides.log_level.unwrap_or(log.level),
            format: overrides.log_format.unwrap_or(log.format),
        };
        Ok(NodeConfig {
            id,
            cluster: node.cluster,
            data_dir: overrides.data_dir.unwrap_or_else(|| beside(source.path, &node.data_dir)),
            listen,
            join,
            peers,
            tls: tls.relative_to(source.path),
            raft,
            limits,
            snapshot_bytes_per_second: snapshot.max_bytes_per_second.unwrap_or(0),
            snapshot: snapshot.or_default(),
            engine: overrides.engine.or(storage.engine).map(Engine::from),
            timings: metrics.timings,
            log,
        })
    }
}

impl RaftSection {
    fn validate(self, source: &Source<'_>, id: NodeId, limits: &Limits) -> Result<raft_core::Config, ConfigError> {
        let mut config = suited(id);
        let millis = |key: &str, value: Option<u64>, default: Duration| match value {
            None => Ok(default),
            Some(ms @ 1..=3_600_000) => Ok(Duration::from_millis(ms)),
            Some(ms) => {
                Err(source.invalid(format!("raft.{key}"), format!("is {ms}, but must be from 1 to 3600000 (ms)")))
            }
        };
        config.election_timeout = millis("election_timeout_ms", self.election_timeout_ms, config.election_timeout)?;
        config.heartbeat_interval =
            millis("heartbeat_interval_ms", self.heartbeat_interval_ms, config.heartbeat_interval)?;
        if self.max_write_stall_ms.is_some() {
            // Else it follows the election timeout.
            config.max_write_stall = Some(millis("max_write_stall_ms", self.max_write_stall_ms, Duration::ZERO)?);
        }
        if config.heartbeat_interval * 2 > config.election_timeout {
            let problem = format!(
                "is {}, but must be at most half of `raft.election_timeout_ms` ({}), so that one lost heartbeat does not cost the leader its office",
                config.heartbeat_interval.as_millis(),
                config.election_timeout.as_millis()
            );
            return Err(source.invalid("raft.heartbeat_interval_ms", problem));
        }
        for (switch, value) in [
            (&mut config.pre_vote, self.pre_vote),
            (&mut config.check_quorum, self.check_quorum),
            (&mut config.no_op_on_election, self.no_op_on_election),
        ] {
            *switch = value.unwrap_or(*switch);
        }
        config.priority = self.priority.unwrap_or(config.priority);
        if let Some(drift_per_mille) = self.lease_drift_per_mille {
            if drift_per_mille >= 1000 {
                let problem = format!("is {drift_per_mille}, but must be below 1000: nothing would be left of a lease");
                return Err(source.invalid("raft.lease_drift_per_mille", problem));
            }
            if !config.check_quorum {
                let problem = "needs `raft.check_quorum`: without it nobody keeps the promise that a lease rests on";
                return Err(source.invalid("raft.lease_drift_per_mille", problem.to_owned()));
            }
            config.lease = Some(Lease { drift_per_mille });
        }
        for (key, setting, value) in [
            ("max_append_bytes", &mut config.max_append_bytes, self.max_append_bytes),
            ("max_inflight_appends", &mut config.max_inflight_appends, self.max_inflight_appends),
            ("max_inflight_bytes", &mut config.max_inflight_bytes, self.max_inflight_bytes),
            ("max_uncommitted_bytes", &mut config.max_uncommitted_bytes, self.max_uncommitted_bytes),
            ("max_unapplied_bytes", &mut config.max_unapplied_bytes, self.max_unapplied_bytes),
        ] {
            *setting = positive(source, &format!("raft.{key}"), value, *setting)?;
        }
        if config.max_append_bytes > MAX_APPEND_BYTES {
            let problem = format!("is {}, but must be at most {MAX_APPEND_BYTES}", config.max_append_bytes);
            return Err(source.invalid("raft.max_append_bytes", problem));
        }
        config.max_cached_bytes = self.max_cached_bytes.unwrap_or(config.max_cached_bytes);
        config.max_entry_bytes = limits.max_value_bytes + MAX_KEY_BYTES + COMMAND_OVERHEAD;
        Ok(config)
    }
}

impl SnapshotSection {
    /// Every number has a meaning: zero entries or bytes are not counted, and nothing needs to be kept.
    fn or_default(self) -> SnapshotPolicy {
        let default = SnapshotPolicy::default();
        SnapshotPolicy {
            entries: self.entries.unwrap_or(default.entries),
            bytes: self.bytes.unwrap_or(default.bytes),
            keep_entries: self.keep_entries.unwrap_or(default.keep_entries),
            keep_bytes: self.keep_bytes.unwrap_or(default.keep_bytes),
            hold_bytes: self.hold_bytes.unwrap_or(default.hold_bytes),
        }
    }
}

impl LimitsSection {
    fn validate(self, source: &Source<'_>) -> Result<Limits, ConfigError> {
        let max_value_bytes = positive(source, "limits.max_value_bytes", self.max_value_bytes, 1 << 20)?;
        if max_value_bytes > MAX_VALUE_BYTES {
            let problem = format!("is {max_value_bytes}, but must be at most {MAX_VALUE_BYTES}");
            return Err(source.invalid("limits.max_value_bytes", problem));
        }
        let default = ServiceLimits::default();
        let limit = |key: &str, value, default| positive(source, &format!("limits.{key}"), value, default);
        let service = ServiceLimits {
            connections: limit("max_client_connections", self.max_client_connections, default.connections)?,
            in_flight: limit("max_requests_per_connection", self.max_requests_per_connection, default.in_flight)?,
            // A value somewhat over the limit is to be refused with a message, not with a broken connection.
            request_bytes: (2 * max_value_bytes).max(MAX_VALUE_BYTES) + MAX_KEY_BYTES + COMMAND_OVERHEAD,
            query_bytes: default.query_bytes,
            reply_bytes: limit(
                "max_reply_bytes_per_connection",
                self.max_reply_bytes_per_connection,
                default.reply_bytes,
            )?,
        };
        Ok(Limits { max_value_bytes, service })
    }
}

fn positive(source: &Source<'_>, key: &str, value: Option<usize>, default: usize) -> Result<usize, ConfigError> {
    match value {
        None => Ok(default),
        Some(0) => Err(source.invalid(key, "is 0, but must be at least 1; leave it out for the default")),
        Some(value) => Ok(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [node]
        id = 1
        cluster = "demo"
        data_dir = "data"
        listen = "127.0.0.1:7401"
        [peers]
        1 = "127.0.0.1:7401"
        2 = "host-2:7402"
        [tls]
        ca = "ca.pem"
        cert = "/certs/node-1.pem"
        key = "node-1.key"
    "#;

    fn parse(text: &str) -> Result<NodeConfig, String> {
        NodeConfig::parse(Path::new("/etc/raft/node.toml"), text, Overrides::default()).map_err(|e| e.to_string())
    }

    /// The error that `replacement` in place of `original` brings.
    fn complaint(original: &str, replacement: &str) -> String {
        assert!(GOOD.contains(original));
        parse(&GOOD.replace(original, replacement)).unwrap_err()
    }

    #[test]
    fn a_good_file_is_understood() {
        let config = parse(GOOD).unwrap();
        assert_eq!((config.id, config.cluster.as_str(), config.peers.len()), (NodeId(1), "demo", 2));
        assert_eq!(config.data_dir, Path::new("/etc/raft/data"));
        assert_eq!(config.tls.ca, Path::new("/etc/raft/ca.pem"));
        assert_eq!(config.tls.cert, Path::new("/certs/node-1.pem"));
        assert_eq!(config.log, LogSettings { level: "info".into(), format: LogFormat::Text });
        assert_eq!(config.raft.election_timeout, Duration::from_millis(400));
        assert!(config.raft.pre_vote && config.raft.check_quorum);
        assert_eq!(config.raft.write_stall_limit(), Duration::from_millis(800));
    }

    #[test]
    fn a_stalled_disk_is_waited_for_as_long_as_the_election_timeout_says_unless_the_file_does() {
        let with = |more: &str| parse(&format!("{GOOD}[raft]\nelection_timeout_ms = 1500\n{more}"));
        let limit = |more: &str| with(more).unwrap().raft.write_stall_limit();
        assert_eq!(limit(""), Duration::from_secs(3));
        assert_eq!(limit("max_write_stall_ms = 5000"), Duration::from_secs(5));
        assert!(with("max_write_stall_ms = 0").is_err());
    }

    #[test]
    fn every_section_is_heeded() {
        let more = "
            [raft]\nelection_timeout_ms = 1000\nheartbeat_interval_ms = 200\npre_vote = false\ncheck_quorum = false
            [limits]\nmax_value_bytes = 5\nmax_requests_per_connection = 7
            [snapshot]\nentries = 0\nbytes = 1000\nkeep_entries = 10\nhold_bytes = 8\nmax_bytes_per_second = 9
            [log]\nlevel = \"debug\"\nformat = \"json\"";
        let config = parse(&format!("{GOOD}{more}")).unwrap();
        assert_eq!(config.raft.election_timeout, Duration::from_secs(1));
        assert_eq!(config.raft.heartbeat_interval, Duration::from_millis(200));
        assert!(!config.raft.pre_vote && !config.raft.check_quorum);
        assert_eq!((config.limits.max_value_bytes, config.limits.service.in_flight), (5, 7));
        let keep_bytes = SnapshotPolicy::default().keep_bytes;
        assert_eq!(config.snapshot_bytes_per_second, 9);
        assert_eq!(
            config.snapshot,
            SnapshotPolicy { entries: 0, bytes: 1000, keep_entries: 10, keep_bytes, hold_bytes: 8 }
        );
        assert_eq!(config.log, LogSettings { level: "debug".into(), format: LogFormat::Json });
    }

    #[test]
    fn the_command_line_wins() {
        let overrides = Overrides {
            join: true,
            data_dir: Some("elsewhere".into()),
            listen: Some("[::1]:9".parse().unwrap()),
            log_level: Some("trace".into()),
            log_format: Some(LogFormat::Json),
            engine: Some(EngineName::Journal),
        };
        let config = NodeConfig::parse(Path::new("x.toml"), GOOD, overrides).unwrap();
        assert_eq!((config.data_dir.to_str(), config.listen.port()), (Some("elsewhere"), 9));
        assert_eq!(config.log, LogSettings { level: "trace".into(), format: LogFormat::Json });
        assert_eq!(config.engine, Some(Engine::Journal));
        let engine =
            |name: &str| parse(&format!("{GOOD}\n[storage]\nengine = \"{name}\"\n")).map(|config| config.engine);
        assert_eq!(parse(GOOD).unwrap().engine, None);
        assert_eq!(engine("rocksdb"), Ok(Some(Engine::RocksDb)));
        assert!(engine("leveldb").unwrap_err().contains("expected `rocksdb` or `journal`"));
    }

    #[test]
    fn complaints_name_the_key_and_the_fix() {
        for (original, replacement, expected) in [
            ("id = 1", "id = 0", "`node.id` must be at least 1"),
            (
                "cluster = \"demo\"",
                "cluster = \"De mo\"",
                "`node.cluster` cannot be used: cluster name `De mo` must be",
            ),
            ("listen = \"127.0.0.1:7401\"", "listen = \"here\"", "`node.listen` is `here`, but must be an IP address"),
            ("2 = \"host-2:7402\"", "2 = \"host-2\"", "`peers.2` is `host-2`, but must be an address like"),
            ("2 = \"host-2:7402\"", "2 = \":7402\"", "`peers.2` is `:7402`"),
            ("2 = \"host-2:7402\"", "2 = \"host-2:0\"", "`peers.2` is `host-2:0`"),
            ("2 = \"host-2:7402\"", "two = \"host-2:7402\"", "`peers.two` must be a node id"),
            ("2 = \"host-2:7402\"", "01 = \"host-2:7402\"", "names node 1 a second time"),
            (
                "        1 = \"127.0.0.1:7401\"",
                "        3 = \"127.0.0.1:7401\"",
                "`peers` must also name this node: add 1 =",
            ),
            ("data_dir", "datadir", "unknown field `datadir`, expected one of"),
            ("[peers]", "[[peers]]", "peers"),
            ("key = \"node-1.key\"", "", "missing field `key`"),
        ] {
            let error = complaint(original, replacement);
            assert!(error.starts_with("/etc/raft/node.toml: "), "{error}");
            assert!(error.contains(expected), "{replacement}: {error}");
        }
    }

    #[test]
    fn a_node_that_joins_need_not_say_where_it_is_reached() {
        let others = GOOD.replace("        1 = \"127.0.0.1:7401\"", "        3 = \"127.0.0.1:7401\"");
        assert_ne!(others, GOOD);
        let config = parse(&others.replace("[peers]", "join = true\n[peers]")).unwrap();
        assert!(config.join && !config.peers.contains_key(&NodeId(1)));
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        for (more, expected) in [
            ("[raft]\nelection_timeout_ms = 0", "`raft.election_timeout_ms` is 0, but must be from 1"),
            ("[raft]\nheartbeat_interval_ms = 300", "`raft.heartbeat_interval_ms` is 300, but must be at most half of"),
            ("[raft]\nmax_append_bytes = 0", "`raft.max_append_bytes` is 0, but must be at least 1"),
            ("[raft]\nmax_append_bytes = 5000000000", "`raft.max_append_bytes` is 5000000000, but must be at most"),
            ("[raft]\nprevote = true", "unknown field `prevote`"),
            ("[limits]\nmax_value_bytes = 900000000", "`limits.max_value_bytes` is 900000000, but must be at most"),
            ("[limits]\nmax_client_connections = 0", "`limits.max_client_connections` is 0"),
            ("[snapshot]\nentries = -1", "invalid value"),
            ("[snapshot]\nkeep = 5", "unknown field `keep`"),
            ("[log]\nformat = \"xml\"", "unknown variant `xml`, expected `text` or `json`"),
            ("[log]\nlevel = 3", "invalid type"),
            ("[more]", "unknown field `more`"),
        ] {
            let error = parse(&format!("{GOOD}\n{more}")).unwrap_err();
            assert!(error.contains(expected), "{more}: {error}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = NodeConfig::load(Path::new("/nowhere/node.toml"), Overrides::default()).unwrap_err().to_string();
        assert!(error.starts_with("/nowhere/node.toml: "), "{error}");
    }
}
