//! Nodes that talk, lose one another, and find one another again.

use std::time::Duration;

use raft_core::{GroupId, Message, NodeId};
use raft_net::{Inbound, NetError, QuicTransport, TlsError, Transport};
use tokio::sync::mpsc;

use crate::support::{Node, Pki, append, cluster, connect, heartbeat, soon};

#[tokio::test]
async fn everybody_hears_everybody() {
    let mut nodes = cluster(&Pki::new(), 3).await;
    for from in 1..=3u64 {
        let others = (1..=3).filter(|&to| to != from);
        let mut messages: Vec<_> =
            others.flat_map(|to| [heartbeat(from, to, 10 * from), append(from, to, from, 2000)]).collect();
        nodes[from as usize - 1].transport.send(GroupId::FIRST, &mut messages);
        assert!(messages.is_empty());
    }
    for to in 1..=3u64 {
        let node = &mut nodes[to as usize - 1];
        let mut heard = node.messages(4).await;
        heard.sort_by_key(|envelope| (envelope.from, matches!(envelope.body, Message::AppendEntries(_))));
        let expected: Vec<_> = (1..=3)
            .filter(|&from| from != to)
            .flat_map(|from| [heartbeat(from, to, 10 * from), append(from, to, from, 2000)])
            .collect();
        assert_eq!(heard, expected);
        let stats = node.stats();
        assert_eq!((stats.received[0].frames, stats.received[1].frames), (2, 2));
        assert_eq!((stats.sent[0].frames, stats.sent[1].frames), (2, 2));
        assert!(stats.sent[1].bytes > 4000 && stats.udp_bytes_sent > stats.sent[1].bytes);
        assert!(stats.udp_sends > 0 && stats.udp_bytes_received > 4000);
        assert_eq!((stats.connects, stats.peers_connected, stats.disconnects), (2, 2, 0));
        assert_eq!(stats.rejected.iter().sum::<u64>(), 0);
    }
}

#[tokio::test]
async fn groups_are_kept_apart_and_order_is_kept() {
    let mut nodes = cluster(&Pki::new(), 2).await;
    for n in 0..100 {
        nodes[0].transport.send(GroupId(n % 3), &mut vec![heartbeat(1, 2, n)]);
    }
    let mut seen: [Vec<u64>; 3] = Default::default();
    while seen.iter().map(Vec::len).sum::<usize>() < 100 {
        if let Inbound::Messages { group, messages } = nodes[1].next().await {
            for message in messages {
                let Message::Heartbeat(heartbeat) = message.body else { panic!("{message:?}") };
                seen[group.0 as usize].push(heartbeat.commit.0);
            }
        }
    }
    for (group, numbers) in seen.into_iter().enumerate() {
        assert_eq!(numbers, (0..100).filter(|n| n % 3 == group as u64).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn large_appends_and_heartbeats_all_arrive_in_order() {
    const APPENDS: u64 = 120;
    let pki = Pki::new();
    let mut nodes: Vec<Node> = (1..=2)
        .map(|id| {
            let mut config = pki.config(id);
            config.limits.append_queue_bytes = 256 << 20;
            Node::start(config)
        })
        .collect();
    connect(&mut nodes).await;
    for n in 1..=APPENDS {
        // Some larger than a stream's window, some smaller than a packet.
        nodes[0].send(append(1, 2, n, if n % 3 == 0 { 100 } else { 400_000 }));
        nodes[0].send(heartbeat(1, 2, n));
    }
    let (mut appends, mut heartbeats) = (Vec::new(), Vec::new());
    for envelope in nodes[1].messages(2 * APPENDS as usize).await {
        match envelope.body {
            Message::AppendEntries(body) => {
                let entries: Vec<_> = body.entries.iter().collect();
                assert_eq!(entries.len(), 1);
                assert!(entries[0].payload.iter().all(|&byte| byte == entries[0].index.0 as u8));
                appends.push(entries[0].index.0);
            }
            Message::Heartbeat(body) => heartbeats.push(body.commit.0),
            other => panic!("{other:?}"),
        }
    }
    let all: Vec<u64> = (1..=APPENDS).collect();
    assert_eq!((appends, heartbeats), (all.clone(), all));
    assert_eq!(nodes[0].stats().dropped_full, 0);
}

#[tokio::test]
async fn what_does_not_fit_into_the_queue_is_dropped_and_counted() {
    const SENT: usize = 200;
    let pki = Pki::new();
    let mut config = pki.config(1);
    config.limits.append_queue_bytes = 1 << 20;
    // A receiver that does not look into its inbox: QUIC's windows fill, then the queue.
    let mut nodes = [Node::start(config), Node::with_inbox(pki.config(2), 2)];
    connect(&mut nodes).await;
    let [one, two] = &mut nodes;
    for n in 1..=SENT {
        one.send(append(1, 2, n as u64, 128 << 10));
        tokio::task::yield_now().await;
    }
    let dropped = one.stats().dropped_full as usize;
    assert!(dropped > 0, "25 MiB went into queues and windows of 5 MiB");
    let arrived = two.messages(SENT - dropped).await;
    assert!(arrived.is_sorted_by_key(|envelope| match &envelope.body {
        Message::AppendEntries(body) => body.seq,
        other => panic!("{other:?}"),
    }));
    // Room has come back.
    one.send(append(1, 2, 1000, 10));
    assert_eq!(two.messages(1).await, [append(1, 2, 1000, 10)]);
    assert_eq!(one.stats().dropped_full as usize, dropped);
}

/// Each has its own room in the queue, so that one that keeps within its window loses nothing because others send much.
#[tokio::test]
async fn many_busy_groups_and_a_peer_that_does_not_read() {
    let (pki, groups) = (Pki::new(), 20_u64);
    let mut config = pki.config(1);
    config.limits.append_queue_bytes = 1 << 20;
    let mut nodes = [Node::start(config), Node::with_inbox(pki.config(2), 2)];
    connect(&mut nodes).await;
    let [one, two] = &mut nodes;
    for n in 1..=6 {
        for group in 1..=groups {
            one.transport.send(GroupId(group), &mut vec![append(1, 2, n, 128 << 10)]);
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(one.stats().dropped_full, 0);
    let mut seen = vec![0; groups as usize];
    while seen.iter().sum::<usize>() < 6 * groups as usize {
        if let Inbound::Messages { group, messages } = two.next().await {
            seen[group.0 as usize - 1] += messages.len();
        }
    }
    assert_eq!(seen, vec![6; groups as usize]);
}

#[tokio::test]
async fn messages_to_nobody_are_dropped_and_counted() {
    let pki = Pki::new();
    let mut node = Node::start(pki.config(2));
    node.send(heartbeat(2, 1, 1));
    node.send(heartbeat(2, 9, 1));
    assert_eq!(node.stats().dropped_unconnected, 2);
}

#[tokio::test]
async fn a_frame_over_the_limit_is_not_sent() {
    let pki = Pki::new();
    let mut config = pki.config(1);
    config.limits.max_append_frame = 1000;
    let mut nodes = [Node::start(config), Node::start(pki.config(2))];
    connect(&mut nodes).await;
    nodes[0].send(append(1, 2, 1, 2000));
    nodes[0].send(append(1, 2, 2, 500));
    assert_eq!(nodes[1].messages(1).await, [append(1, 2, 2, 500)]);
    assert_eq!(nodes[0].stats().dropped_oversized, 1);
}

/// Either end goes down in good order and comes back: the other hears of both, and messages flow again.
#[tokio::test]
async fn a_restarted_node_is_found_again() {
    for restarted in [1usize, 2] {
        let pki = Pki::new();
        let mut nodes = cluster(&pki, 2).await;
        let addresses = [nodes[0].address, nodes[1].address];
        let mut survivor = nodes.remove(2 - restarted);
        let mut gone = nodes.remove(0);
        let gone_id = gone.id;
        gone.transport.close().await;
        assert_eq!(gone.stats().peers_connected, 0);
        drop(gone);
        survivor.link_reset(gone_id).await;
        assert_eq!((survivor.stats().peers_connected, survivor.stats().disconnects), (0, 1));

        let mut config = pki.config(restarted as u64);
        config.listen = addresses[restarted - 1];
        config.peers.insert(survivor.id, survivor.address.to_string());
        let mut back = Node::restart(&config).await;
        survivor.link_reset(back.id).await;
        back.link_reset(survivor.id).await;
        survivor.send(heartbeat(survivor.id.0, back.id.0, 1));
        back.send(heartbeat(back.id.0, survivor.id.0, 2));
        assert_eq!(back.messages(1).await, [heartbeat(survivor.id.0, back.id.0, 1)]);
        assert_eq!(survivor.messages(1).await, [heartbeat(back.id.0, survivor.id.0, 2)]);
        let stats = survivor.stats();
        assert_eq!((stats.connects, stats.peers_connected), (2, 1));
    }
}

/// As after `kill -9`: the process says nothing, its successor has the same keys, and so the survivor learns of it
/// from the answer to its next packet instead of waiting for the idle time-out (here an hour).
#[test]
fn a_node_that_died_is_missed_at_once_when_it_is_back() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let pki = Pki::new();
    let dir = tempfile::tempdir().unwrap();
    let patient = |id| {
        let mut config = pki.config(id);
        config.limits.idle_timeout = Duration::from_hours(1);
        config.limits.keep_alive = Duration::from_millis(200);
        config
    };
    let mut config = patient(2);
    config.data_dir = Some(dir.path().to_owned());
    config.peers.insert(NodeId(1), "127.0.0.1:1".to_owned());

    let (surviving, dying) = (runtime(), runtime());
    let mut victim = {
        let _inside = dying.enter();
        Node::start(config.clone())
    };
    config.listen = victim.address;
    let mut one = {
        let _inside = surviving.enter();
        let mut config = patient(1);
        config.peers.insert(NodeId(2), victim.address.to_string());
        Node::start(config)
    };
    surviving.block_on(one.link_reset(NodeId(2)));
    dying.block_on(victim.link_reset(NodeId(1)));
    // Without its runtime the endpoint cannot say goodbye.
    dying.shutdown_timeout(Duration::from_secs(10));
    drop(victim);

    surviving.block_on(async {
        let mut back = Node::restart(&config).await;
        one.link_reset(NodeId(2)).await;
        back.link_reset(NodeId(1)).await;
        soon("connected anew", async {
            while one.stats().connects < 2 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        one.link_reset(NodeId(2)).await;
        one.send(heartbeat(1, 2, 7));
        assert_eq!(back.messages(1).await, [heartbeat(1, 2, 7)]);
    });
}

#[tokio::test]
async fn a_removed_peer_is_disconnected_and_can_be_added_again() {
    let mut nodes = cluster(&Pki::new(), 2).await;
    let address = nodes[1].address.to_string();
    nodes[0].transport.set_peers(&[].into());
    nodes[1].link_reset(NodeId(1)).await;
    nodes[0].send(heartbeat(1, 2, 1));
    assert_eq!(nodes[0].stats().dropped_unconnected, 1);
    nodes[0].transport.set_peers(&[(NodeId(2), address)].into());
    nodes[1].link_reset(NodeId(1)).await;
    nodes[1].send(heartbeat(2, 1, 2));
    assert_eq!(nodes[0].messages(1).await, [heartbeat(2, 1, 2)]);
}

#[tokio::test]
async fn certificates_are_replaced_without_a_disconnect() {
    let pki = Pki::new();
    let mut nodes = cluster(&pki, 2).await;
    for id in 1..=2u64 {
        let fresh = pki.identity(&pki.node("test", id));
        nodes[id as usize - 1].transport.reload_tls(&fresh).unwrap();
    }
    let foreign = pki.identity(&pki.node("test", 3));
    assert!(nodes[0].transport.reload_tls(&foreign).is_err());
    nodes[0].send(heartbeat(1, 2, 1));
    assert_eq!(nodes[1].messages(1).await, [heartbeat(1, 2, 1)]);
    assert_eq!(nodes[0].stats().connects, 1);
}

#[tokio::test]
async fn an_endpoint_that_cannot_start_says_why() {
    let pki = Pki::new();
    let bind = |config| QuicTransport::bind(config, mpsc::channel(1).0, mpsc::channel(1).0).map(drop);
    let first = Node::start(pki.config(1));

    let mut config = pki.config(2);
    config.listen = first.address;
    let error = bind(config).unwrap_err();
    assert!(matches!(error, NetError::AddressInUse(address) if address == first.address), "{error}");

    let mut config = pki.config(2);
    config.node = NodeId(3);
    assert!(matches!(bind(config), Err(NetError::Tls(TlsError::NotOurs { .. }))));
    let mut config = pki.config(2);
    config.cluster = "other".to_owned();
    assert!(matches!(bind(config), Err(NetError::Tls(TlsError::NotOurs { .. }))));

    let mut config = pki.config(2);
    config.limits.max_udp_payload = 9000;
    assert!(matches!(bind(config), Err(NetError::Setting { key: "max_udp_payload", .. })));

    let mut config = pki.config(2);
    config.data_dir = Some("/proc/no/such/directory".into());
    assert!(matches!(bind(config), Err(NetError::Keys(_))));
}

#[test]
fn without_a_runtime_nothing_starts() {
    let pki = Pki::new();
    let result = QuicTransport::bind(pki.config(1), mpsc::channel(1).0, mpsc::channel(1).0);
    assert!(matches!(result, Err(NetError::NoRuntime)));
}
