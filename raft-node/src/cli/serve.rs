//! `raft-node serve`: a node of the key-value store.

use std::collections::BTreeMap;
use std::fs;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use raft_node::client::protocol::Response;
use raft_node::client::{Service, ServiceLimits};
use raft_node::config::{LogFormat, LogSettings, NodeConfig, Overrides};
use raft_node::kv::{Command, KvIdentity, KvOptions, KvStore, Refusal};
use raft_node::{Metrics, Raft};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::{Done, ServeArgs};

pub(super) fn run(args: ServeArgs) -> Result<Done> {
    let ServeArgs { config, data_dir, listen, join, engine, log_level, log_format } = args;
    let config = NodeConfig::load(&config, Overrides { data_dir, listen, join, engine, log_level, log_format })?;
    init_logging(&config.log)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(serve(config))
}

async fn serve(config: NodeConfig) -> Result<Done> {
    // Before anything else, so that a signal during a long recovery is not the default's abrupt end.
    let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
    let raft = start(config).await?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
        _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        ended = raft.stopped() => {
            if let Err(error) = ended {
                bail!("the node has stopped: {error}");
            }
        }
    }
    raft.shutdown();
    raft.stopped().await.map_err(|error| anyhow::anyhow!("the node did not stop cleanly: {error}"))?;
    tracing::info!("stopped");
    Ok(Done::Ok)
}

async fn start(config: NodeConfig) -> Result<Raft> {
    let NodeConfig { id, cluster, data_dir, listen, join, peers, tls, raft: settings, limits, .. } = config;
    let (snapshot, snapshot_bytes_per_second) = (config.snapshot, config.snapshot_bytes_per_second);
    let timings = config.timings;
    let mut storage = raft_storage::StoreOptions::default();
    storage.engine = config.engine;
    let tls = tls.load()?;
    tls.expect_node(&cluster, id)?;
    fs::create_dir_all(&data_dir).with_context(|| format!("cannot create {}", data_dir.display()))?;
    let identity = KvIdentity { cluster: cluster.clone(), node: id };
    let store = KvStore::open(data_dir.join("kv"), &identity, &KvOptions::default())?;

    let net_limits = raft_net::Limits {
        max_clients: limits.service.connections,
        snapshot_bytes_per_second,
        ..raft_net::Limits::default()
    };
    let (service_cluster, service_limits, max_value) = (cluster.clone(), limits.service, limits.max_value_bytes);
    let raft = Raft::builder(store)
        .identity(id, cluster.clone())
        .data_dir(data_dir)
        .listen(listen)
        .net_limits(net_limits)
        .peers(peers)
        .join(join)
        .tls(tls)
        .snapshot_policy(snapshot)
        .storage_options(storage)
        .timings(timings)
        .tune(move |config| {
            // The seed of the timeouts stays the one that the builder drew.
            let seed = config.seed;
            *config = raft_core::Config { seed, ..settings };
        })
        .serve_clients(move |raft, clients| service(raft, service_cluster, service_limits, max_value).run(clients))
        .start()
        .await?;
    let address = raft.address().unwrap_or(listen);
    tracing::info!(%address, node = %id, cluster, version = env!("CARGO_PKG_VERSION"), "ready");
    Ok(raft)
}

fn service(raft: Raft, cluster: String, limits: ServiceLimits, max_value: usize) -> Service {
    let metrics = raft.metrics().clone();
    Service::new(raft, cluster, limits)
        .admission(Arc::new(move |command| admit(command, max_value)))
        .metrics(Arc::new(move || counters(&metrics)))
}

/// What would only be refused when it is applied need not be replicated first.
fn admit(command: &[u8], max_value: usize) -> Result<(), Response> {
    let refusal = match Command::decode(command) {
        Ok(command) => command.check(max_value),
        Err(_) => Err(Refusal::Malformed),
    };
    refusal.map_err(|refusal| match refusal {
        Refusal::ValueTooLong { size, limit } => Response::TooLarge { size, limit },
        other => Response::BadRequest(other.to_string()),
    })
}

fn counters(metrics: &Metrics) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let mut add = |name: &str, value: u64| {
        counters.insert(name.to_owned(), value);
    };
    if let Some(log) = &metrics.storage {
        add("log.writes", log.writes());
        add("log.syncs", log.syncs());
        add("log.entries", log.entries());
        add("log.bytes_written", log.bytes_written());
    }
    let snapshots = metrics.snapshots.snapshot();
    add("snapshot.made", snapshots.made);
    add("snapshot.sent", snapshots.sent);
    add("snapshot.failed", snapshots.failed);
    add("snapshot.received", snapshots.received);
    add("snapshot.restored", snapshots.restored);
    add("snapshot.newest", snapshots.newest);
    add("log.compactions", snapshots.compactions);
    for (way, transfers) in [("to", snapshots.outgoing), ("from", snapshots.incoming)] {
        for (id, (done, total)) in transfers {
            add(&format!("snapshot.{way}.{id}.bytes"), done);
            add(&format!("snapshot.{way}.{id}.total"), total);
        }
    }
    for (stage, times) in metrics.timings.iter().flat_map(|timings| timings.snapshot()) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        for (what, value) in [
            ("count", times.count),
            ("p50_ns", nanos(times.p50)),
            ("p99_ns", nanos(times.p99)),
            ("max_ns", nanos(times.max)),
        ] {
            add(&format!("timings.{}.{what}", stage.name()), value);
        }
    }
    if let Some(net) = &metrics.net {
        let net = net.snapshot();
        let [sent, received] = [net.sent, net.received].map(|both| both.iter().map(|t| t.frames).sum());
        add("net.frames_sent", sent);
        add("net.frames_received", received);
        let dropped = net.dropped_unconnected + net.dropped_full + net.dropped_oversized + net.dropped_disconnected;
        add("net.frames_dropped", dropped);
        add("net.peers_connected", net.peers_connected);
        add("net.clients_connected", net.clients_connected);
        add("net.rejected", net.rejected.iter().sum());
        add("net.udp_bytes_sent", net.udp_bytes_sent);
        add("net.udp_bytes_received", net.udp_bytes_received);
        add("net.udp_datagrams_sent", net.udp_datagrams_sent);
        add("net.udp_datagrams_received", net.udp_datagrams_received);
        add("net.udp_sends", net.udp_sends);
    }
    counters
}

/// The log goes to standard error.
fn init_logging(settings: &LogSettings) -> Result<()> {
    let filter = filter(&settings.level)?;
    // A line that cannot be written is lost; complaining about that on the same standard error would be a panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let installed = match settings.format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
    };
    installed.map_err(|error| anyhow::anyhow!("cannot set up logging: {error}"))
}

/// A filter would take a word that is no level for the name of a module, and log next to nothing.
fn filter(level: &str) -> Result<EnvFilter> {
    let no_level =
        |word: &&str| !word.contains(['=', '[']) && (word.is_empty() || word.parse::<LevelFilter>().is_err());
    if let Some(word) = level.split(',').find(no_level) {
        bail!("`log.level` has `{word}`, but must be error, warn, info, debug or trace, or like info,raft_net=debug");
    }
    EnvFilter::try_new(level).with_context(|| format!("`log.level` is `{level}`, but must be a level such as info"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_noticed() {
        for good in ["info", "WARN", "off", "info,raft_net=debug", "info,raft_node::driver=trace", "[span]=debug"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,verbose", "raft_net=loud"] {
            assert!(filter(bad).unwrap_err().to_string().contains("`log.level`"), "{bad}");
        }
    }

    #[test]
    fn the_edge_refuses_what_the_store_would() {
        assert_eq!(admit(&Command::Put { key: b"k", value: b"12" }.encode(), 2), Ok(()));
        let too_large = Response::TooLarge { size: 3, limit: 2 };
        assert_eq!(admit(&Command::Put { key: b"k", value: b"123" }.encode(), 2), Err(too_large));
        let Err(Response::BadRequest(why)) = admit(b"garbage", 2) else { panic!("must be refused") };
        assert_eq!(why, "the request cannot be decoded");
        let Err(Response::BadRequest(why)) = admit(&Command::Delete { key: b"" }.encode(), 2) else {
            panic!("must be refused")
        };
        assert_eq!(why, "the key is empty");
    }
}
