//! Clients: they get in by their own door, and only as many as there is room for.

use raft_core::NodeId;
use raft_net::{ClientEndpoint, CloseCode, DialError, Limits, Reject};

use crate::support::{Node, Pki, soon};

#[tokio::test]
async fn a_client_is_handed_over_by_name_and_served() {
    let pki = Pki::new();
    let mut node = Node::start(pki.config(1));
    let endpoint = ClientEndpoint::new(&pki.identity(&pki.client("alice")), Limits::default()).unwrap();
    let dialled = endpoint.connect(NodeId(1), &node.address.to_string()).await.unwrap();
    let accepted = soon("client", node.clients.recv()).await.unwrap();
    assert_eq!(accepted.name, "alice");
    assert_eq!(node.stats().clients_connected, 1);

    let server = async {
        let (mut send, mut recv) = accepted.connection.accept_bi().await.unwrap();
        let question = recv.read_to_end(100).await.unwrap();
        send.write_all(&[&question[..], b" indeed"].concat()).await.unwrap();
        send.finish().unwrap();
    };
    let client = async {
        let (mut send, mut recv) = dialled.open_bi().await.unwrap();
        send.write_all(b"hello").await.unwrap();
        send.finish().unwrap();
        recv.read_to_end(100).await.unwrap()
    };
    let ((), answer) = soon("exchange", async { tokio::join!(server, client) }).await;
    assert_eq!(answer, b"hello indeed");

    let traffic = node.stats().udp_bytes_sent;
    assert!(traffic > 0);
    soon("close", endpoint.close()).await;
    soon("noticed", accepted.connection.closed()).await;
    while node.stats().clients_connected > 0 {
        tokio::task::yield_now().await;
    }
    assert!(node.stats().udp_bytes_sent >= traffic, "what has been sent stays counted");
}

#[tokio::test]
async fn one_client_too_many_is_turned_away() {
    let pki = Pki::new();
    let mut config = pki.config(1);
    config.limits.max_clients = 1;
    let mut node = Node::start(config);
    let endpoint = ClientEndpoint::new(&pki.identity(&pki.client("alice")), Limits::default()).unwrap();
    let address = node.address.to_string();
    let _first = endpoint.connect(NodeId(1), &address).await.unwrap();
    soon("client", node.clients.recv()).await.unwrap();
    let second = endpoint.connect(NodeId(1), &address).await.unwrap();
    match soon("closed", second.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), CloseCode::Busy as u64);
        }
        other => panic!("{other}"),
    }
    assert_eq!(node.stats().rejected(Reject::Busy), 1);
}

#[tokio::test]
async fn a_client_that_finds_nobody_says_so() {
    let pki = Pki::new();
    let limits = Limits { handshake_timeout: std::time::Duration::from_millis(100), ..Limits::default() };
    let endpoint = ClientEndpoint::new(&pki.identity(&pki.client("alice")), limits).unwrap();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let error = endpoint.connect(NodeId(1), &silent.local_addr().unwrap().to_string()).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { node: NodeId(1), .. }), "{error}");
    let error = endpoint.connect(NodeId(1), "no port").await.unwrap_err();
    assert!(matches!(error, DialError::Resolve { .. }), "{error}");
    let error = endpoint.connect(NodeId(0), "127.0.0.1:1").await.unwrap_err();
    assert!(matches!(error, DialError::Name(_)), "{error}");
}
