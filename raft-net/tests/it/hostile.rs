//! Peers that are not who they should be, or do not say what they should. Each time: connection closed with the code
//! that says why, counter raised, and nothing else happens.

use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, ConnectionError};
use raft_core::{Envelope, GroupId, NodeId};
use raft_net::pki::Credentials;
use raft_net::{
    ALPN_CLIENT, ALPN_NODE, Channel, ClientEndpoint, CloseCode, DialError, FrameSink, Limits, PeerCheck, Preface,
    Reject, Unwelcome, encode, encode_preface,
};

use crate::support::{CLUSTER, Node, Pki, append, heartbeat, soon};

/// Node 2, whose peers are nodes 1 and 3. Node 1 is up to the test, node 3 does not exist.
fn victim(pki: &Pki) -> Node {
    let mut config = pki.config(2);
    // Its peers are known with the incarnation 0.
    config.peer_check = PeerCheck(Arc::new(|peer, incarnation| match incarnation {
        0 => Ok(()),
        other => Err(Unwelcome::Another(format!("node {peer} is not known with the incarnation {other}"))),
    }));
    config.limits.max_append_frame = 10_000;
    for id in [1, 3] {
        config.peers.insert(NodeId(id), "127.0.0.1:1".to_owned());
    }
    Node::start(config)
}

async fn closed_with(connection: &Connection) -> u64 {
    match soon("connection closed", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}

/// The dialler may learn of its rejection after its own side of the handshake is complete, so look at the counter.
async fn assert_rejected(victim: &mut Node, reason: Reject) {
    soon("counted", async {
        while victim.stats().rejected(reason) == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    let stats = victim.stats();
    assert_eq!((stats.rejected(reason), stats.rejected.iter().sum()), (1, 1), "{stats:?}");
    assert_eq!(stats.received.map(|traffic| traffic.frames), [0, 0]);
    victim.assert_no_messages();
    assert!(victim.clients.try_recv().is_err());
}

async fn refused(own: impl Fn(&Pki) -> Credentials, alpn: &[u8], reason: Reject, code: CloseCode) {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    let connection = pki.dial(Some(&own(&pki)), alpn, victim.address, 2).await.unwrap();
    assert_eq!(closed_with(&connection).await, code as u64);
    assert_rejected(&mut victim, reason).await;
    assert_eq!(victim.stats().connects, 0);
}

#[tokio::test]
async fn another_clusters_node() {
    refused(|pki| pki.node("other", 1), ALPN_NODE, Reject::WrongCluster, CloseCode::WrongCluster).await;
}

#[tokio::test]
async fn a_node_that_is_no_peer() {
    refused(|pki| pki.node(CLUSTER, 9), ALPN_NODE, Reject::WrongNode, CloseCode::WrongNode).await;
}

#[tokio::test]
async fn a_peer_that_should_wait_to_be_dialled() {
    refused(|pki| pki.node(CLUSTER, 3), ALPN_NODE, Reject::WrongNode, CloseCode::WrongDirection).await;
}

#[tokio::test]
async fn the_victims_own_certificate() {
    refused(|pki| pki.node(CLUSTER, 2), ALPN_NODE, Reject::WrongNode, CloseCode::WrongNode).await;
}

#[tokio::test]
async fn a_client_that_poses_as_a_node() {
    refused(|pki| pki.client("mallory"), ALPN_NODE, Reject::WrongRole, CloseCode::WrongRole).await;
}

#[tokio::test]
async fn a_node_that_poses_as_a_client() {
    refused(|pki| pki.node(CLUSTER, 1), ALPN_CLIENT, Reject::WrongRole, CloseCode::WrongRole).await;
}

#[tokio::test]
async fn a_certificate_that_names_nobody() {
    let pki = Pki::new();
    let nobody = pki.unnamed();
    let mut victim = victim(&pki);
    let connection = pki.dial(Some(&nobody), ALPN_NODE, victim.address, 2).await.unwrap();
    assert_eq!(closed_with(&connection).await, CloseCode::Unnamed as u64);
    assert_rejected(&mut victim, Reject::Unnamed).await;
}

#[tokio::test]
async fn no_certificate() {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    // With TLS 1.3 the dialler believes to be done before the acceptor has seen that there is no certificate.
    if let Ok(connection) = pki.dial(None, ALPN_NODE, victim.address, 2).await {
        soon("closed", connection.closed()).await;
    }
    assert_rejected(&mut victim, Reject::NoCertificate).await;
}

#[tokio::test]
async fn a_certificate_of_another_authority() {
    let (pki, other) = (Pki::new(), Pki::new());
    let mut victim = victim(&pki);
    if let Ok(connection) = pki.dial(Some(&other.node(CLUSTER, 1)), ALPN_NODE, victim.address, 2).await {
        soon("closed", connection.closed()).await;
    }
    assert_rejected(&mut victim, Reject::Handshake).await;
}

#[tokio::test]
async fn an_unknown_protocol() {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    assert!(pki.dial(Some(&pki.node(CLUSTER, 1)), b"raft/99", victim.address, 2).await.is_err());
    assert_rejected(&mut victim, Reject::Handshake).await;
}

#[tokio::test]
async fn a_dialler_notices_who_answers() {
    let pki = Pki::new();
    let victim = victim(&pki);
    let client = ClientEndpoint::new(&pki.identity(&pki.client("alice")), Limits::default()).unwrap();
    let error = client.connect(NodeId(3), &victim.address.to_string()).await.unwrap_err();
    assert!(matches!(error, DialError::Handshake { node: NodeId(3), .. }), "{error}");
}

/// Node 1, with a good certificate, sends `streams`, one stream each, and is cut off.
async fn cut_off(streams: Vec<(Vec<u8>, bool)>, reason: Reject, code: CloseCode) {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    let connection = pki.dial(Some(&pki.node(CLUSTER, 1)), ALPN_NODE, victim.address, 2).await.unwrap();
    let mut open = Vec::new();
    for (bytes, finish) in streams {
        let mut stream = connection.open_uni().await.unwrap();
        // The victim may close while we still write.
        let _ = stream.write_all(&bytes).await;
        if finish {
            let _ = stream.finish();
        }
        open.push(stream);
    }
    assert_eq!(closed_with(&connection).await, code as u64);
    assert_rejected(&mut victim, reason).await;
    soon("disconnected", async {
        while victim.stats().peers_connected > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
    })
    .await;
    assert_eq!((victim.stats().connects, victim.stats().disconnects), (1, 1));
}

fn preface(channel: Channel, from: u64, to: u64) -> Vec<u8> {
    preface_of(channel, from, to, 0)
}

fn preface_of(channel: Channel, from: u64, to: u64, incarnation: u128) -> Vec<u8> {
    let mut sink = FrameSink::new();
    encode_preface(Preface { channel, from: NodeId(from), to: NodeId(to), incarnation }, &mut sink);
    bytes(&mut sink)
}

fn frame(envelope: &Envelope) -> Vec<u8> {
    let mut sink = FrameSink::new();
    encode(envelope, GroupId::FIRST, usize::MAX, &mut sink).unwrap();
    bytes(&mut sink)
}

fn bytes(sink: &mut FrameSink) -> Vec<u8> {
    let mut chunks: Vec<Bytes> = Vec::new();
    sink.take_into(&mut chunks);
    chunks.concat()
}

fn control(rest: &[u8]) -> Vec<u8> {
    [&preface(Channel::Control, 1, 2), rest].concat()
}

#[tokio::test]
async fn garbage_instead_of_a_preface() {
    let garbage: Vec<u8> = (0..10_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 1).collect();
    cut_off(vec![(garbage, false)], Reject::FrameTooLarge, CloseCode::FrameTooLarge).await;
}

#[tokio::test]
async fn garbage_in_a_frame() {
    let garbage = [&[20, 0, 0, 0, 3][..], &[0xff; 19]].concat();
    cut_off(vec![(control(&garbage), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn an_unknown_kind_of_frame() {
    let unknown = [&[9, 0, 0, 0, 99][..], &[0; 8]].concat();
    cut_off(vec![(control(&unknown), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn a_length_over_the_limit() {
    let claim = [&preface(Channel::Append, 1, 2)[..], &10_001u32.to_le_bytes()].concat();
    cut_off(vec![(claim, false)], Reject::FrameTooLarge, CloseCode::FrameTooLarge).await;
}

#[tokio::test]
async fn a_length_too_short_for_a_frame() {
    cut_off(vec![(control(&[0; 4]), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn half_a_frame_and_then_the_end() {
    let whole = frame(&heartbeat(1, 2, 1));
    cut_off(vec![(control(&whole[..whole.len() / 2]), true)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn a_stream_that_ends() {
    cut_off(vec![(control(&[]), true)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn half_a_frame_and_then_a_lost_connection_is_forgotten() {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    let connection = pki.dial(Some(&pki.node(CLUSTER, 1)), ALPN_NODE, victim.address, 2).await.unwrap();
    victim.link_reset(NodeId(1)).await;
    let mut stream = connection.open_uni().await.unwrap();
    let whole = frame(&heartbeat(1, 2, 1));
    let one_and_a_half = [&whole[..], &whole[..whole.len() - 1]].concat();
    stream.write_all(&control(&one_and_a_half)).await.unwrap();
    assert_eq!(victim.messages(1).await, [heartbeat(1, 2, 1)]);
    connection.close(0u32.into(), b"oops");
    victim.link_reset(NodeId(1)).await;
    victim.assert_no_messages();
    assert_eq!(victim.stats().rejected.iter().sum::<u64>(), 0);
}

#[tokio::test]
async fn damaged_entries() {
    let mut damaged = frame(&append(1, 2, 5, 100));
    *damaged.last_mut().unwrap() ^= 0x40;
    let stream = [preface(Channel::Append, 1, 2), damaged].concat();
    cut_off(vec![(stream, false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn a_stream_without_a_preface() {
    cut_off(vec![(frame(&heartbeat(1, 2, 1)), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn two_prefaces() {
    let second = preface(Channel::Control, 1, 2);
    cut_off(vec![(control(&second), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn two_streams_for_one_channel() {
    cut_off(vec![(control(&[]), false), (control(&[]), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn entries_on_the_control_stream() {
    cut_off(vec![(control(&frame(&append(1, 2, 1, 10))), false)], Reject::Malformed, CloseCode::Malformed).await;
}

#[tokio::test]
async fn a_message_in_somebody_elses_name() {
    cut_off(vec![(control(&frame(&heartbeat(3, 2, 1))), false)], Reject::Misaddressed, CloseCode::Misaddressed).await;
}

#[tokio::test]
async fn a_message_for_somebody_else() {
    cut_off(vec![(control(&frame(&heartbeat(1, 3, 1))), false)], Reject::Misaddressed, CloseCode::Misaddressed).await;
}

#[tokio::test]
async fn a_preface_in_somebody_elses_name() {
    let stream = preface(Channel::Control, 3, 2);
    cut_off(vec![(stream, false)], Reject::Misaddressed, CloseCode::Misaddressed).await;
}

/// What it sent with its first breath does not count either.
#[tokio::test]
async fn a_peer_that_has_lost_its_memory() {
    let stream = [preface_of(Channel::Control, 1, 2, u128::MAX), frame(&heartbeat(1, 2, 7))].concat();
    cut_off(vec![(stream, false)], Reject::WrongIncarnation, CloseCode::WrongIncarnation).await;
}

/// The newest authenticated connection wins, and only it is listened to.
#[tokio::test]
async fn a_second_connection_of_the_same_node_replaces_the_first() {
    let pki = Pki::new();
    let mut victim = victim(&pki);
    let own = pki.node(CLUSTER, 1);
    let first = pki.dial(Some(&own), ALPN_NODE, victim.address, 2).await.unwrap();
    victim.link_reset(NodeId(1)).await;
    let second = pki.dial(Some(&own), ALPN_NODE, victim.address, 2).await.unwrap();
    victim.link_reset(NodeId(1)).await;
    assert_eq!(closed_with(&first).await, CloseCode::Replaced as u64);
    let mut stream = second.open_uni().await.unwrap();
    stream.write_all(&control(&frame(&heartbeat(1, 2, 7)))).await.unwrap();
    assert_eq!(victim.messages(1).await, [heartbeat(1, 2, 7)]);
    let stats = victim.stats();
    assert_eq!((stats.connects, stats.disconnects, stats.peers_connected), (2, 1, 1));
}
