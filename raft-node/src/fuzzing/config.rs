//! Configuration files, written by people and by their tools.

use std::fmt::Write;
use std::path::Path;

use raft_core::fuzzing::Choices;
use raft_core::{Instant, Membership, Recovered};

use crate::config::{ClientFile, ConfigError, NodeConfig, Overrides};

/// A file is refused with a message that names it, or means something that a node can start with.
pub fn config(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let (of_node, raw) = (choices.flip(), choices.chance(1, 4));
    let text = match (raw, of_node) {
        (true, _) => String::from_utf8_lossy(choices.rest()).into_owned(),
        (false, true) => node_text(&mut choices),
        (false, false) => client_text(&mut choices),
    };
    let path = Path::new("dir/raft.toml");
    if of_node {
        NodeConfig::parse(path, &text, Overrides::default())
            .map(|config| check_node(&config))
            .map_err(|error| check_error(&error))
            .is_ok()
    } else {
        ClientFile::parse(path, &text).map(|file| check_client(&file)).map_err(|error| check_error(&error)).is_ok()
    }
}

fn check_node(config: &NodeConfig) {
    assert!(config.id.0 > 0 && config.peers.contains_key(&config.id), "{config:?}");
    for address in config.peers.values() {
        check_address(address);
    }
    for path in [&config.data_dir, &config.tls.ca, &config.tls.cert, &config.tls.key] {
        assert!(path.is_absolute() || path.starts_with("dir"), "{} is not beside the file", path.display());
    }
    // The core must not complain later, when nobody knows any more which file a setting came from.
    let recovered = Recovered::fresh(Membership::of_voters(config.peers.keys().copied()));
    let core = raft_core::Raft::new(config.raft.clone(), recovered, Instant::default());
    assert!(core.is_ok(), "{:?} of {:?}", core.err(), config.raft);
    // A value that is let in must fit into an entry.
    assert!(config.limits.max_value_bytes > 0 && config.limits.max_value_bytes < config.raft.max_entry_bytes);
}

fn check_client(file: &ClientFile) {
    assert!(!file.nodes.is_empty() && file.nodes.keys().all(|id| id.0 > 0));
    file.nodes.values().for_each(|address| check_address(address));
    assert!(file.timeout.is_none_or(|timeout| !timeout.is_zero()));
}

fn check_address(address: &str) {
    let (host, port) = address.rsplit_once(':').expect("host and port");
    assert!(!host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0), "{address}");
}

fn check_error(error: &ConfigError) {
    assert!(error.to_string().starts_with("dir/raft.toml: "), "{error}");
    assert!(!matches!(error, ConfigError::Read { .. }), "nothing was read");
}

const RAFT: [&str; 12] = [
    "election_timeout_ms",
    "heartbeat_interval_ms",
    "max_write_stall_ms",
    "pre_vote",
    "check_quorum",
    "no_op_on_election",
    "max_append_bytes",
    "max_inflight_appends",
    "max_inflight_bytes",
    "max_uncommitted_bytes",
    "max_unapplied_bytes",
    "max_cached_bytes",
];
const LIMITS: [&str; 4] =
    ["max_value_bytes", "max_client_connections", "max_requests_per_connection", "max_reply_bytes_per_connection"];

/// A value, mostly one that is right for the key.
fn value(choices: &mut Choices<'_>, key: &str) -> String {
    if choices.chance(1, 12) {
        let odd =
            ["-1", "0", "18446744073709551615", "9223372036854775807", "1e9", "nan", "\"\"", "[]", "{}", "1979-05-27"];
        return odd[choices.pick(odd.len())].to_owned();
    }
    match key {
        "pre_vote" | "check_quorum" | "no_op_on_election" => choices.flip().to_string(),
        _ => match choices.between(0, 3) {
            0 => choices.between(1, 3000),
            1 => choices.between(1, 1 << 31),
            _ => 1000 + choices.between(0, 255),
        }
        .to_string(),
    }
}

fn section(text: &mut String, choices: &mut Choices<'_>, name: &str, keys: &[&str]) {
    // Writing to a string does not fail.
    let _ = writeln!(text, "[{name}]");
    for key in keys {
        if choices.chance(1, 3) {
            let _ = writeln!(text, "{key} = {}", value(choices, key));
        }
    }
}

/// A string in quotes, mostly `usual`.
fn quoted(choices: &mut Choices<'_>, usual: &str) -> String {
    if choices.chance(1, 10) {
        format!("{:?}", String::from_utf8_lossy(choices.bytes(20)))
    } else {
        format!("{usual:?}")
    }
}

fn addresses(text: &mut String, choices: &mut Choices<'_>, name: &str) {
    let _ = writeln!(text, "[{name}]");
    for id in 1..=choices.between(1, 3) {
        let id = if choices.chance(1, 12) { choices.number(id) } else { id };
        let _ = writeln!(text, "{id} = {}", quoted(choices, "host:7401"));
    }
}

fn tls(text: &mut String, choices: &mut Choices<'_>) {
    let file = quoted(choices, "ca.pem");
    let _ = writeln!(text, "[tls]\nca = {file}\ncert = {file}\nkey = \"k\"");
}

fn node_text(choices: &mut Choices<'_>) -> String {
    let mut text = "[node]\n".to_owned();
    let id = if choices.chance(1, 12) { choices.number(1) } else { 1 };
    let (cluster, data_dir) = (quoted(choices, "demo"), quoted(choices, "data"));
    let _ = writeln!(text, "id = {id}\ncluster = {cluster}\ndata_dir = {data_dir}");
    let _ = writeln!(text, "listen = {}", quoted(choices, "127.0.0.1:7401"));
    addresses(&mut text, choices, "peers");
    tls(&mut text, choices);
    section(&mut text, choices, "raft", &RAFT);
    section(&mut text, choices, "limits", &LIMITS);
    if choices.chance(1, 4) {
        let (level, format) = (quoted(choices, "debug"), quoted(choices, "json"));
        let _ = writeln!(text, "[log]\nlevel = {level}\nformat = {format}");
    }
    text.push_str(&String::from_utf8_lossy(choices.bytes(30)));
    text
}

fn client_text(choices: &mut Choices<'_>) -> String {
    let mut text = format!("cluster = {}\n", quoted(choices, "demo"));
    if choices.flip() {
        let _ = writeln!(text, "timeout_ms = {}", value(choices, "timeout_ms"));
    }
    addresses(&mut text, choices, "nodes");
    tls(&mut text, choices);
    text.push_str(&String::from_utf8_lossy(choices.bytes(30)));
    text
}
