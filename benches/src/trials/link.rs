//! How fast bytes go from one node to another when nothing else happens: the transport of the nodes, two ends of it in this program, and no disk.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use raft_core::{GroupId, LogId, LogIndex, Membership, NodeId, SnapshotMeta, Term};
use raft_net::pki::{CertificateAuthority, DEFAULT_VALIDITY};
use raft_net::snapshot::{
    OutgoingSnapshot, Refusal, SnapshotHeader, SnapshotProgress, SnapshotReceiver, SnapshotSink, SnapshotSource,
};
use raft_net::{Inbound, NetConfig, QuicTransport, TlsIdentity, Transport};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

const CLUSTER: &str = "bulk";
const NEAR: NodeId = NodeId(1);
const FAR: NodeId = NodeId(2);
/// How long the two ends may take to find each other.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);

/// Bytes a second that go through the stream of a snapshot, measured with so many bytes. Blocks.
pub(super) fn bulk_rate(bytes: u64) -> Result<f64> {
    let ca = CertificateAuthority::generate(DEFAULT_VALIDITY)?;
    let (told, address) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let (far_ca, near_ca) = (CertificateAuthority::from_credentials(ca.credentials().clone())?, ca);
    // A thread for each end, as each node has one.
    let far = std::thread::spawn(move || -> Result<()> {
        Builder::new_current_thread().enable_all().build()?.block_on(async {
            // The lower id dials: where that node is does not matter.
            let (mut transport, _inbox) = bind(&far_ca, FAR, (NEAR, "127.0.0.1:1".into()))?;
            transport.receive_snapshots(Arc::new(Nowhere));
            told.send(transport.local_addr()?)?;
            // An error means that the other end has given up.
            let _ = stopped.await;
            transport.close().await;
            Ok(())
        })
    });
    let near = std::thread::spawn(move || -> Result<f64> {
        let address: SocketAddr = address.recv().context("the receiving end does not listen")?;
        Builder::new_current_thread().enable_all().build()?.block_on(send(&near_ca, address, bytes))
    });
    let rate = near.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the sending end panicked")));
    drop(stop);
    let far = far.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the receiving end panicked")));
    far.and(rate).context("cannot measure what the transport takes")
}

async fn send(ca: &CertificateAuthority, address: SocketAddr, bytes: u64) -> Result<f64> {
    let (mut transport, mut inbox) = bind(ca, NEAR, (FAR, address.to_string()))?;
    tokio::time::timeout(CONNECTED_WITHIN, inbox.recv()).await.context("the ends do not connect")?;
    let (report, done) = oneshot::channel();
    let meta = SnapshotMeta { last: LogId::new(Term(1), LogIndex(1)), membership: Membership::of_voters([NEAR, FAR]) };
    let begin = Instant::now();
    transport.send_snapshot(OutgoingSnapshot {
        to: FAR,
        header: SnapshotHeader { group: GroupId::FIRST, term: Term(1), epoch: 1, meta, id: 1, size: bytes },
        source: Box::new(Pattern),
        progress: SnapshotProgress::of(bytes),
        // Nobody waits for it any more if the measurement was given up.
        done: Box::new(move |sent| drop(report.send(sent))),
    });
    done.await.context("the transfer was dropped")??;
    let rate = bytes as f64 / begin.elapsed().as_secs_f64();
    transport.close().await;
    Ok(rate)
}

fn bind(
    ca: &CertificateAuthority,
    id: NodeId,
    peer: (NodeId, String),
) -> Result<(QuicTransport, tokio::sync::mpsc::Receiver<Inbound>)> {
    let own = ca.issue_node(CLUSTER, id, DEFAULT_VALIDITY)?;
    let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem)?;
    let mut config = NetConfig::new(id, CLUSTER, SocketAddr::from(([127, 0, 0, 1], 0)), tls);
    config.peers = BTreeMap::from([peer]);
    let (inbound, inbox) = tokio::sync::mpsc::channel(1024);
    // There are no clients: nobody needs to listen for them.
    let (clients, _) = tokio::sync::mpsc::channel(1);
    Ok((QuicTransport::bind(config, inbound, clients)?, inbox))
}

/// Bytes from nowhere.
struct Pattern;

impl SnapshotSource for Pattern {
    fn read_at(&mut self, offset: u64, buf: &mut [u8]) -> std::io::Result<usize> {
        buf.fill(offset as u8);
        Ok(buf.len())
    }
}

/// Takes everything and keeps nothing.
#[derive(Debug)]
struct Nowhere;

impl SnapshotReceiver for Nowhere {
    fn begin(&self, _: NodeId, _: &SnapshotHeader) -> Result<(u64, Box<dyn SnapshotSink>), Refusal> {
        Ok((0, Box::new(Nowhere)))
    }
}

impl SnapshotSink for Nowhere {
    fn write(&mut self, _: &[u8]) -> Result<(), Refusal> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), Refusal> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn bytes_get_to_the_other_end() {
        // How fast says nothing here: only that it comes to an end.
        assert!(super::bulk_rate(1 << 20).unwrap() > 0.0);
    }
}
