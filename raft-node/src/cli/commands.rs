//! The commands that read and write keys.

use std::ffi::OsStr;
use std::future::Future;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use raft_core::NodeId;
use raft_net::PeerIdentity;
use raft_node::Consistency;
use raft_node::client::{CasOutcome, Client, ClientConfig, Page};
use raft_node::config::ClientFile;
use raft_node::kv::MAX_VALUE_BYTES;
use serde_json::json;

use super::{
    CasArgs, ClientArgs, DeleteArgs, Done, Freshness, FreshnessArgs, GetArgs, PutArgs, ScanArgs, SnapshotArgs,
    TransferArgs, output,
};

/// Keys asked for at a time.
const PAGE: u32 = 1000;

pub(super) fn put(args: &PutArgs) -> Result<Done> {
    let value = read_value(&args.value)?;
    with_client(&args.client, !args.session.no_session, async |client| {
        let revision = client.put(bytes(&args.key), &value).await?;
        output::line(&args.client, &json!({ "revision": revision }), &format!("revision {revision}"))?;
        Ok(Done::Ok)
    })
}

pub(super) fn get(args: &GetArgs) -> Result<Done> {
    with_client(&args.client, false, async |client| {
        let key = bytes(&args.key);
        match client.get(key, consistency(&args.freshness)).await? {
            Some(found) if args.client.json => {
                output::json(&output::key_value(key, found.revision, &found.value))?;
                Ok(Done::Ok)
            }
            Some(found) => {
                output::raw(&found.value)?;
                Ok(Done::Ok)
            }
            None => not_found(&args.client),
        }
    })
}

pub(super) fn delete(args: &DeleteArgs) -> Result<Done> {
    with_client(&args.client, !args.session.no_session, async |client| {
        if !client.delete(bytes(&args.key)).await? {
            return not_found(&args.client);
        }
        output::line(&args.client, &json!({ "existed": true }), "deleted")?;
        Ok(Done::Ok)
    })
}

pub(super) fn cas(args: &CasArgs) -> Result<Done> {
    let value = read_value(&args.value)?;
    with_client(&args.client, !args.session.no_session, async |client| {
        match client.cas(bytes(&args.key), args.expected, &value).await? {
            CasOutcome::Written { revision } => {
                let json = json!({ "written": true, "revision": revision });
                output::line(&args.client, &json, &format!("revision {revision}"))?;
                Ok(Done::Ok)
            }
            CasOutcome::Mismatch { current } => {
                if args.client.json {
                    output::json(&json!({ "written": false, "current": current }))?;
                } else if current == 0 {
                    eprintln!("not written: the key does not exist");
                } else {
                    eprintln!("not written: the key has revision {current}");
                }
                Ok(Done::NotFound)
            }
        }
    })
}

pub(super) fn scan(args: &ScanArgs) -> Result<Done> {
    let (start, end) = match &args.prefix {
        Some(prefix) => (bytes(prefix).to_vec(), end_of_prefix(bytes(prefix))),
        None => (
            args.start.as_deref().map(bytes).unwrap_or_default().to_vec(),
            args.end.as_deref().map(|end| bytes(end).to_vec()),
        ),
    };
    with_client(&args.client, false, async |client| {
        let page = scan_pages(&client, start, end.as_deref(), args).await?;
        if args.client.json {
            let items: Vec<_> =
                page.items.iter().map(|item| output::key_value(&item.key, item.revision, &item.value)).collect();
            output::json(&json!({ "items": items, "more": page.more }))?;
        } else {
            output::table(&page)?;
        }
        Ok(Done::Ok)
    })
}

pub(super) fn transfer(args: &TransferArgs) -> Result<Done> {
    with_client(&args.client, false, async |client| {
        let leader = client.transfer_leadership(args.to.map(NodeId)).await?;
        output::line(&args.client, &json!({ "leader": leader.0 }), &format!("node {leader} leads"))?;
        Ok(Done::Ok)
    })
}

pub(super) fn snapshot(args: &SnapshotArgs) -> Result<Done> {
    with_client(&args.client, false, async |client| {
        let nodes = match args.node {
            Some(id) => vec![NodeId(id)],
            // Members that the configuration does not name are found by their answers.
            None => client.status_of_all().await.into_keys().collect(),
        };
        let mut failure = None;
        for node in nodes {
            match client.snapshot(node).await {
                Ok(index) => {
                    let text = format!("node {node}: everything up to index {index}");
                    output::line(&args.client, &json!({ "node": node.0, "index": index }), &text)?;
                }
                // The others are to have theirs all the same.
                Err(error) => failure = failure.or(Some((node, error))),
            }
        }
        match failure {
            None => Ok(Done::Ok),
            Some((node, error)) => Err(anyhow::Error::new(error).context(format!("no snapshot at node {node}"))),
        }
    })
}

/// Reads pages until the limit of the command is reached.
async fn scan_pages(client: &Client, mut start: Vec<u8>, end: Option<&[u8]>, args: &ScanArgs) -> Result<Page> {
    let limit = args.limit as usize;
    let mut all = Page { items: Vec::new(), more: true };
    while all.more && all.items.len() < limit {
        let wanted = PAGE.min((limit - all.items.len()) as u32);
        let page = client.scan(&start, end, wanted, consistency(&args.freshness)).await?;
        all.more = page.more;
        all.items.extend(page.items);
        let Some(last) = all.items.last() else { break };
        // The smallest key above `last`.
        start = [&last.key[..], &[0]].concat();
    }
    Ok(all)
}

/// Sets up a client as the arguments say, and runs `work` with it.
pub(super) fn with_client<F: Future<Output = Result<Done>>>(
    args: &ClientArgs,
    sessions: bool,
    work: impl FnOnce(Client) -> F,
) -> Result<Done> {
    let file = ClientFile::load(&args.config)?;
    let tls = file.tls.load()?;
    let name = tls.name();
    if name.cluster != file.cluster || !matches!(name.identity, PeerIdentity::Client { .. }) {
        bail!(
            "{}: the certificate {} is for {name}, not for a client of cluster `{}`; `raft-node cert client` makes one",
            args.config.display(),
            file.tls.cert.display(),
            file.cluster
        );
    }
    let mut config = ClientConfig::new(file.nodes, tls);
    config.sessions = sessions;
    if let Some(timeout) = args.timeout.or(file.timeout) {
        config.timeout = timeout;
        config.attempt_timeout = config.attempt_timeout.min(timeout);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(async {
        let client = Client::new(config)?;
        let done = work(client.clone()).await;
        client.close().await;
        done
    })
}

fn not_found(args: &ClientArgs) -> Result<Done> {
    if args.json {
        output::json(&serde_json::Value::Null)?;
    } else {
        eprintln!("no such key");
    }
    Ok(Done::NotFound)
}

fn consistency(args: &FreshnessArgs) -> Consistency {
    match args.consistency {
        _ if args.stale => Consistency::Stale,
        Freshness::Linearizable => Consistency::Linearizable,
        Freshness::Lease => Consistency::Lease,
        Freshness::Stale => Consistency::Stale,
    }
}

/// Arguments are bytes on Unix, and keys are bytes.
fn bytes(text: &OsStr) -> &[u8] {
    text.as_encoded_bytes()
}

fn read_value(argument: &OsStr) -> Result<Vec<u8>> {
    if argument != "-" {
        return Ok(bytes(argument).to_vec());
    }
    let mut value = Vec::new();
    // One more than allowed, so that what is too long is refused without being read to its end.
    std::io::stdin()
        .take(MAX_VALUE_BYTES as u64 + 1)
        .read_to_end(&mut value)
        .context("cannot read the value from standard input")?;
    Ok(value)
}

/// The smallest key above all keys that begin with `prefix`; `None` when there is none.
fn end_of_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let keep = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=keep].to_vec();
    end[keep] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_it_should() {
        assert_eq!(end_of_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(end_of_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(end_of_prefix(b"\xff"), None);
        assert_eq!(end_of_prefix(b""), None);
    }
}
