//! What a client does when a node has no room.

use std::net::UdpSocket;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use raft_core::{Entries, EntryKind, LogIndex, NodeId};
use raft_net::TlsIdentity;
use raft_net::pki::{CertificateAuthority, Credentials};
use raft_node::client::protocol::Response;
use raft_node::client::{Client, ClientConfig, Error, Missing, Service, ServiceLimits};
use raft_node::{Raft, Replies, StateMachine};

const DAY: Duration = Duration::from_hours(24);

/// Counts commands.
#[derive(Default)]
struct Count(u64, LogIndex);

impl StateMachine for Count {
    type Error = std::convert::Infallible;

    fn applied(&self) -> LogIndex {
        self.1
    }

    fn apply(&mut self, entries: &Entries, replies: &mut Replies) -> Result<(), Self::Error> {
        for entry in entries.iter() {
            if entry.kind == EntryKind::Command {
                self.0 += 1;
                replies.push(&self.0.to_be_bytes());
            }
            self.1 = entry.index;
        }
        Ok(())
    }

    fn query(&mut self, _: &[u8], _: &mut BytesMut) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// A node that refuses commands as often as it has hints for, each with the next of them, and notes when it was asked.
struct Node {
    raft: Raft,
    asked: Arc<Mutex<Vec<Instant>>>,
    config: ClientConfig,
    _dir: tempfile::TempDir,
}

async fn node(hints: &'static [u64]) -> Node {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let ca = CertificateAuthority::generate(DAY).expect("an authority");
    let identity = |issued: Credentials| {
        TlsIdentity::from_pem(&ca.credentials().cert_pem, &issued.cert_pem, &issued.key_pem).expect("just issued")
    };
    let address = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port");
    let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let notes = asked.clone();
    let admission = move |_: &[u8]| {
        let mut asked = notes.lock().expect("nobody panics with it");
        asked.push(Instant::now());
        match hints.get(asked.len() - 1) {
            Some(hint) => Err(Response::Busy { retry_after: Duration::from_millis(*hint) }),
            None => Ok(()),
        }
    };
    let raft = Raft::builder(Count::default())
        .identity(NodeId(1), "room")
        .data_dir(dir.path())
        .listen(address)
        .peers([(NodeId(1), address.to_string())])
        .tls(identity(ca.issue_node("room", NodeId(1), DAY).expect("a certificate")))
        .serve_clients(move |raft, clients| {
            Service::new(raft, "room", ServiceLimits::default()).admission(Arc::new(admission)).run(clients)
        })
        .start()
        .await
        .expect("it starts");
    let tls = identity(ca.issue_client("room", "test", DAY).expect("a certificate"));
    let timeout = Duration::from_mins(1);
    let config = ClientConfig { timeout, ..ClientConfig::new([(NodeId(1), address.to_string())].into(), tls) };
    Node { raft, asked, config, _dir: dir }
}

impl Node {
    /// Times between two attempts.
    fn waits(&self) -> Vec<Duration> {
        let asked = self.asked.lock().expect("nobody panics with it");
        asked.windows(2).map(|two| two[1] - two[0]).collect()
    }

    async fn stop(self) {
        self.raft.shutdown();
        self.raft.stopped().await.expect("it stops");
    }
}

#[tokio::test]
async fn a_client_does_not_come_back_before_it_was_told_to() {
    let node = node(&[60, 60, 150]).await;
    let client = Client::new(node.config.clone()).expect("a client");
    let reply = client.write(Bytes::from_static(b"a")).await.expect("there is room in the end");
    assert_eq!(reply, 1u64.to_be_bytes().as_slice());
    let waits = node.waits();
    // More, if it does not lead yet.
    assert!(waits.len() >= 3, "{waits:?}");
    // The second and the third refusal in a row make it wait twice, and four times as long.
    let least = [60, 120, 600].map(Duration::from_millis);
    assert!(waits.iter().zip(least).all(|(wait, least)| *wait >= least), "{waits:?}");
    client.close().await;
    node.stop().await;
}

#[tokio::test]
async fn a_client_that_cannot_wait_so_long_says_what_it_was_told() {
    let node = node(&[61_000]).await;
    let client = Client::new(node.config.clone()).expect("a client");
    let error = client.write(Bytes::from_static(b"a")).await.expect_err("there is no room");
    let retry_after = Duration::from_secs(61);
    assert!(
        matches!(&error, Error::Timeout { reason: Missing::Room { retry_after: hint }, waited, .. } if *hint == retry_after && *waited < node.config.timeout),
        "{error}"
    );
    assert!(error.to_string().contains("retry in 61000 ms"), "{error}");
    client.close().await;
    node.stop().await;
}
