//! The program from outside: what it prints, its exit codes, and what it says to bad input.

use std::fs;
use std::io::Write as _;
use std::net::UdpSocket;
use std::process::{Command, Output, Stdio};

use raft_core::NodeId;
use serde_json::{Value, json};

use crate::cluster::{Cluster, program};

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().expect("no signal"), text(&stdout), text(&stderr))
}

/// Runs a client command and takes its JSON.
fn run_json(command: &mut Command) -> (i32, Value) {
    let (code, stdout, stderr) = run(command.arg("--json"));
    (code, serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("not JSON: {stdout} {stderr}")))
}

#[tokio::test]
async fn keys_can_be_written_and_read() {
    let cluster = Cluster::start(1).await;
    let command = |name: &str, arguments: &[&str]| run(cluster.command(name).args(arguments));
    let (code, out, err) = command("put", &["greeting", "hello"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let revision: u64 = out.trim().strip_prefix("revision ").expect("the revision").parse().expect("a number");
    assert_eq!(command("get", &["greeting"]), (0, "hello".into(), String::new()));

    let found = run_json(cluster.command("get").arg("greeting"));
    assert_eq!(found, (0, json!({ "key": "greeting", "revision": revision, "value": "hello" })));
    assert_eq!(command("get", &["nobody"]), (3, String::new(), "no such key\n".into()));
    assert_eq!(run_json(cluster.command("get").arg("nobody")), (3, Value::Null));

    let lost = run_json(cluster.command("cas").args(["greeting", "--expect", "0", "other"]));
    assert_eq!(lost, (3, json!({ "written": false, "current": revision })));
    let (code, won) = run_json(cluster.command("cas").args(["greeting", "other", "--expect", &revision.to_string()]));
    assert_eq!((code, &won["written"], won["revision"].as_u64() > Some(revision)), (0, &json!(true), true));

    assert_eq!(command("put", &["greeting-2", "x"]).0, 0);
    assert_eq!(command("put", &["other", "y"]).0, 0);
    let (code, page) = run_json(cluster.command("scan").args(["--prefix", "greeting"]));
    let keys: Vec<_> = page["items"].as_array().expect("items").iter().map(|item| item["key"].clone()).collect();
    assert_eq!((code, keys, &page["more"]), (0, vec![json!("greeting"), json!("greeting-2")], &json!(false)));
    let (_, page) = run_json(cluster.command("scan").args(["--limit", "1"]));
    assert_eq!((page["items"].as_array().map(Vec::len), &page["more"]), (Some(1), &json!(true)));

    assert_eq!(command("delete", &["greeting"]).0, 0);
    assert_eq!(command("delete", &["greeting"]).0, 3);
}

#[tokio::test]
async fn any_bytes_come_back_as_they_went_in() {
    let cluster = Cluster::start(1).await;
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let mut put = cluster.command("put").args(["blob", "-"]).stdin(Stdio::piped()).spawn().expect("the program starts");
    put.stdin.take().expect("piped").write_all(&value).expect("it reads its input");
    assert!(put.wait().expect("it ends").success());
    let get = cluster.command("get").arg("blob").output().expect("the program starts");
    assert!(get.stdout == value, "{} bytes came back", get.stdout.len());
}

#[tokio::test]
async fn a_value_over_the_limit_is_refused() {
    let cluster = Cluster::start_with(1, "[limits]\nmax_value_bytes = 10").await;
    assert_eq!(run(cluster.command("put").args(["k", "0123456789"])).0, 0);
    let (code, _, error) = run(cluster.command("put").args(["k", "0123456789a"]));
    assert_eq!((code, error.as_str()), (1, "error: 11 bytes are over the limit of 10\n"));
    let (code, _, error) = run(cluster.command("put").args(["", "v"]));
    assert_eq!((code, error.as_str()), (1, "error: the key is empty\n"));
}

#[tokio::test]
async fn without_a_majority_the_error_says_so() {
    let mut cluster = Cluster::start(3).await;
    let survivor = cluster.ids()[2];
    for id in cluster.ids() {
        if id != survivor {
            cluster.kill(id);
        }
    }
    // Until the survivor has noticed, it may still lead, and take a write that it cannot commit.
    let attempt = || run(cluster.command("put").args(["k", "v", "--timeout", "3"]));
    let (mut code, _, mut error) = attempt();
    if code == 5 {
        (code, _, error) = attempt();
    }
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("no leader was found (is there a majority of nodes?) within"), "{error}");
    assert!(error.contains(&format!("node {survivor}: does not lead")), "{error}");
    let (code, status) = run_json(&mut cluster.command("status"));
    let reachable = status["nodes"].as_array().expect("nodes").iter().filter(|node| node["reachable"] == json!(true));
    assert_eq!((code, reachable.count()), (4, 1));
}

#[tokio::test]
async fn sigterm_ends_a_node_and_its_data_survives() {
    let mut cluster = Cluster::start(1).await;
    let node = NodeId(1);
    cluster.client().put(b"k", b"v").await.expect("written");
    assert!(cluster.terminate(node).success());
    cluster.restart(node).await;
    assert_eq!(run(cluster.command("get").arg("k")), (0, "v".into(), String::new()));
}

/// Runs `serve` in the folder of a cluster that was only prepared; it must fail at once.
fn serve_fails(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = program();
    command.current_dir(cluster.dir()).args(["serve", "--config", "node-1.toml"]).args(arguments);
    let (code, out, error) = run(&mut command);
    assert_eq!((code, out.as_str()), (1, ""), "{error}");
    error
}

fn change_config(cluster: &Cluster, from: &str, to: &str) {
    let file = cluster.dir().join("node-1.toml");
    let text = fs::read_to_string(&file).expect("readable");
    assert!(text.contains(from));
    fs::write(file, text.replace(from, to)).expect("writable");
}

#[tokio::test]
async fn a_wrong_key_in_the_file_is_named() {
    let cluster = Cluster::prepare(1, "[raft]\nelection_timeout = 5");
    let error = serve_fails(&cluster, &[]);
    assert!(error.contains("node-1.toml") && error.contains("unknown field `election_timeout`"), "{error}");
}

#[tokio::test]
async fn the_wrong_certificate_is_refused() {
    let cluster = Cluster::prepare(2, "");
    change_config(&cluster, "node-1.pem", "node-2.pem");
    let error = serve_fails(&cluster, &[]);
    assert!(error.contains("does not belong to certificate"), "{error}");
    change_config(&cluster, "node-1.key", "node-2.key");
    let error = serve_fails(&cluster, &[]);
    assert!(error.contains("the certificate is for node 2 of cluster `test`"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = Cluster::prepare(1, "");
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    let error = serve_fails(&cluster, &["--listen", &address]);
    assert!(error.contains(&format!("UDP {address} is in use")), "{error}");
}

#[tokio::test]
async fn the_data_of_another_node_is_refused() {
    let mut cluster = Cluster::prepare(2, "");
    cluster.restart(NodeId(2)).await;
    let error = serve_fails(&cluster, &["--data-dir", "node-2.data"]);
    assert!(error.contains("in use"), "{error}");
    assert!(cluster.terminate(NodeId(2)).success());
    let error = serve_fails(&cluster, &["--data-dir", "node-2.data"]);
    assert!(error.contains("belongs to node 2 of cluster `test`, not to node 1"), "{error}");
}

/// A node of three that was started again as a cluster of one would elect itself and acknowledge writes alone.
#[tokio::test]
async fn other_voters_than_at_the_first_start_are_refused() {
    let mut cluster = Cluster::start(3).await;
    assert!(cluster.terminate(NodeId(1)).success());
    for peer in ["2 = ", "3 = "] {
        change_config(&cluster, &format!("\n{peer}"), &format!("\n# {peer}"));
    }
    let error = serve_fails(&cluster, &[]);
    assert!(error.contains("began with the voters 1, 2, 3, not with 1"), "{error}");
}

#[tokio::test]
async fn certificates_can_be_made_on_the_command_line() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let certs = dir.path().to_str().expect("UTF-8");
    let cert = |arguments: &[&str]| run(program().arg("cert").args(arguments).args(["--out", certs]));
    assert_eq!(cert(&["ca", "--cluster", "demo"]).0, 0);
    assert_eq!(cert(&["node", "--ca", certs, "--id", "7"]).0, 0);
    assert_eq!(cert(&["client", "--ca", certs, "--name", "admin"]).0, 0);
    let load = |name: &str| {
        let file = |file: String| dir.path().join(file);
        raft_net::TlsIdentity::load(&file("ca.pem".into()), &file(format!("{name}.pem")), &file(format!("{name}.key")))
            .expect("usable")
    };
    assert_eq!(load("node-7").name(), &raft_net::CertifiedName::node("demo", NodeId(7)));
    assert_eq!(load("client-admin").name(), &raft_net::CertifiedName::client("demo", "admin"));

    let (code, _, error) = cert(&["ca", "--cluster", "demo"]);
    assert!(code == 1 && error.contains("exists; --force overwrites it"), "{error}");
    let (code, _, error) = cert(&["client", "--ca", certs, "--name", "No Body"]);
    assert!(code == 1 && error.contains("lower-case letters"), "{error}");
}

#[tokio::test]
async fn a_client_needs_a_certificate_of_its_own() {
    let cluster = Cluster::prepare(1, "");
    let file = cluster.dir().join("client.toml");
    let text = fs::read_to_string(&file).expect("readable");
    fs::write(&file, text.replace("client.pem", "node-1.pem").replace("client.key", "node-1.key")).expect("writable");
    let (code, _, error) = run(cluster.command("get").arg("k"));
    assert!(code == 1 && error.contains("is for node 1 of cluster `test`, not for a client"), "{error}");
}

/// On demand, the log is compacted without waiting for it to grow.
#[tokio::test]
async fn a_snapshot_can_be_asked_for() {
    let cluster = Cluster::start_with(1, "[snapshot]\nkeep_entries = 1\nkeep_bytes = 1\n").await;
    for value in ["1", "2", "3", "4"] {
        assert_eq!(run(cluster.command("put").args(["k", value])).0, 0);
    }
    let (code, made) = run_json(&mut cluster.command("snapshot"));
    assert_eq!((code, &made["node"]), (0, &json!(1)));
    let index = made["index"].as_u64().expect("an index");
    assert!(index >= 4, "{made}");
    let (_, status) = run_json(&mut cluster.command("status"));
    assert!(status["nodes"][0]["metrics"]["log.start"].as_u64() > Some(0), "{status}");
    let (code, _, text) = run(cluster.command("snapshot").args(["--node", "9"]));
    assert_eq!((code, text.contains("node 9")), (4, true), "{text}");
}

/// The configuration of a client is seldom changed when a node is added.
#[tokio::test]
async fn members_that_the_configuration_does_not_name_are_found() {
    let mut cluster = Cluster::prepare_to_grow(1, 2, "");
    cluster.spawn(NodeId(1));
    cluster.leader().await;
    cluster.restart(NodeId(2)).await;
    let mut add = program();
    add.args(["member", "add", "2", &cluster.address(NodeId(2)), "--learner", "--config"]);
    let (code, _, error) = run(add.arg(cluster.dir().join("client.toml")));
    assert_eq!(code, 0, "{error}");

    let text = fs::read_to_string(cluster.dir().join("client.toml")).expect("it is there");
    let without = |line: &&str| !line.starts_with("2 = ");
    let few = cluster.dir().join("few.toml");
    fs::write(&few, text.lines().filter(without).collect::<Vec<_>>().join("\n")).expect("writable");
    let command = |name: &str| {
        let mut command = program();
        command.arg(name).arg("--config").arg(&few);
        command
    };
    let (code, status) = run_json(&mut command("status"));
    assert_eq!((code, &status["nodes"][1]["node"], &status["nodes"][1]["reachable"]), (0, &json!(2), &json!(true)));

    // One that cannot be asked does not keep the others from it.
    cluster.kill(NodeId(2));
    let (code, made, error) = run(command("snapshot").args(["--timeout", "2s"]));
    assert!(code == 4 && made.contains("node 1: everything up to index"), "{code} {made} {error}");
    assert!(error.contains("no snapshot at node 2") && error.contains("did not answer"), "{error}");
}
