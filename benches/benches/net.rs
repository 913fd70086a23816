//! What the transport costs: two nodes on the loopback interface, each with a thread of its own, QUIC with mutual TLS.
#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use raft_core::{
    AppendAck, AppendEntries, Entries, EntryKind, Envelope, GroupId, Heartbeat, HeartbeatReply, LogId, LogIndex,
    Message, NodeId, Segment, Term,
};
use raft_net::pki::{CertificateAuthority, DEFAULT_VALIDITY};
use raft_net::{Inbound, NetConfig, QuicTransport, TlsIdentity, Transport};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::{self, Receiver};

const NEAR: NodeId = NodeId(1);
const FAR: NodeId = NodeId(2);
/// Longest wait for anything; a message that is lost would otherwise hang the bench.
const PATIENCE: Duration = Duration::from_secs(10);

/// One end of the link.
struct End {
    transport: QuicTransport,
    inbox: Receiver<Inbound>,
}

impl End {
    /// Must be called within a tokio runtime.
    fn bind(ca: &CertificateAuthority, id: NodeId, peer: (NodeId, String)) -> Self {
        let own = ca.issue_node("bench", id, DEFAULT_VALIDITY).expect("a certificate");
        let tls = TlsIdentity::from_pem(&ca.credentials().cert_pem, &own.cert_pem, &own.key_pem).expect("an identity");
        let mut config = NetConfig::new(id, "bench", SocketAddr::from(([127, 0, 0, 1], 0)), tls);
        config.peers = BTreeMap::from([peer]);
        let (inbound, inbox) = mpsc::channel(1024);
        // There are no clients: nobody needs to listen for them.
        let (clients, _) = mpsc::channel(1);
        End { transport: QuicTransport::bind(config, inbound, clients).expect("a free port"), inbox }
    }

    /// The messages that arrive next.
    async fn receive(&mut self) -> Vec<Envelope> {
        loop {
            let inbound = tokio::time::timeout(PATIENCE, self.inbox.recv()).await.expect("a message in time");
            if let Inbound::Messages { messages, .. } = inbound.expect("the transport lives") {
                return messages;
            }
        }
    }

    fn send(&mut self, messages: &mut Vec<Envelope>) {
        self.transport.send(GroupId::FIRST, messages);
    }
}

/// A node here, and another on a thread of its own that answers everything.
struct Link {
    runtime: Runtime,
    near: End,
}

impl Link {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let ca = CertificateAuthority::generate(DEFAULT_VALIDITY).expect("a CA");
        let (told, address) = std::sync::mpsc::channel();
        let far_ca = CertificateAuthority::from_credentials(ca.credentials().clone()).expect("a copy of the CA");
        // Ends with the program.
        std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                // The lower id dials: where node 1 is does not matter.
                let mut far = End::bind(&far_ca, FAR, (NEAR, "127.0.0.1:1".into()));
                told.send(far.transport.local_addr().expect("bound")).expect("the other end waits");
                answer(&mut far).await;
            });
        });
        let far = address.recv().expect("the other end is bound").to_string();
        let near = runtime.block_on(async {
            let mut near = End::bind(&ca, NEAR, (FAR, far));
            let connected = tokio::time::timeout(PATIENCE, near.inbox.recv()).await.expect("a connection in time");
            assert_eq!(connected, Some(Inbound::LinkReset { peer: FAR }));
            near
        });
        Link { runtime, near }
    }

    /// Sends `count` copies of `message`, never more than `window` without an answer, and waits for all answers.
    fn exchange(&mut self, message: &Envelope, count: u64, window: u64) {
        let near = &mut self.near;
        self.runtime.block_on(async {
            let (mut sent, mut answered) = (0, 0);
            let mut batch = Vec::new();
            while answered < count {
                let due = (answered + window).min(count);
                batch.extend((sent..due).map(|_| message.clone()));
                sent = due;
                if !batch.is_empty() {
                    near.send(&mut batch);
                }
                answered += near.receive().await.len() as u64;
            }
        });
    }
}

/// Answers every message with a small one, until the other end is gone.
async fn answer(far: &mut End) {
    let mut answers = Vec::new();
    while let Some(inbound) = far.inbox.recv().await {
        let Inbound::Messages { messages, .. } = inbound else { continue };
        answers.extend(messages.into_iter().filter_map(|message| {
            let body = match message.body {
                Message::Heartbeat(beat) => Message::HeartbeatReply(HeartbeatReply {
                    epoch: beat.epoch,
                    round: beat.round?,
                    received: beat.commit,
                    match_index: beat.commit,
                    promise_ms: 0,
                    priority: 0,
                    vigil: 1,
                }),
                Message::AppendEntries(append) => {
                    Message::AppendAck(AppendAck { epoch: append.epoch, match_index: append.entries.last_index()? })
                }
                _ => return None,
            };
            Some(Envelope { from: FAR, to: NEAR, term: message.term, body })
        }));
        far.send(&mut answers);
    }
}

fn envelope(body: Message) -> Envelope {
    Envelope { from: NEAR, to: FAR, term: Term(1), body }
}

/// An append of `count` entries of 256 bytes.
fn append(count: usize) -> Envelope {
    let payloads = vec![[0xA5u8; 256]; count];
    let segment = Segment::pack(LogIndex(1), Term(1), EntryKind::Command, &payloads).expect("there are entries");
    envelope(Message::AppendEntries(AppendEntries {
        epoch: 1,
        seq: 1,
        prev_log: LogId::ZERO,
        leader_commit: LogIndex::ZERO,
        entries: Entries::from(segment),
    }))
}

/// A small message and its answer.
fn ping_pong(c: &mut Criterion) {
    let heartbeat = envelope(Message::Heartbeat(Heartbeat { epoch: 1, commit: LogIndex(0), round: Some(1) }));
    let mut link = Link::new();
    let mut group = c.benchmark_group("net/round_trip");
    group.throughput(Throughput::Elements(1));
    for window in [1, 64] {
        group.bench_function(BenchmarkId::new("heartbeat, in flight", window), |b| {
            b.iter_custom(|count| {
                let begin = std::time::Instant::now();
                link.exchange(&heartbeat, count, window);
                begin.elapsed()
            });
        });
    }
    let one = append(1);
    group.bench_function("append of 256 bytes", |b| {
        b.iter_custom(|count| {
            let begin = std::time::Instant::now();
            link.exchange(&one, count, 1);
            begin.elapsed()
        });
    });
    group.finish();
}

/// Appends as a follower gets them that has to catch up, 16 on their way.
fn bulk(c: &mut Criterion) {
    let mut link = Link::new();
    let mut group = c.benchmark_group("net/bulk");
    for count in [16, 256, 2048] {
        let message = append(count);
        let Message::AppendEntries(body) = &message.body else { continue };
        let bytes = body.entries.byte_len() as u64;
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function(BenchmarkId::new("append of bytes", bytes), |b| {
            b.iter_custom(|iterations| {
                let begin = std::time::Instant::now();
                link.exchange(&message, iterations, 16);
                begin.elapsed()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3)).sample_size(20);
    targets = ping_pong, bulk
}
criterion_main!(benches);
