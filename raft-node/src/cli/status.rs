//! `raft-node status`: every node is asked, and each line says what that node knows of itself.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Result;
use raft_core::NodeId;
use raft_node::Stage;
use raft_node::client::Error;
use raft_node::client::protocol::{Lag, NodeStatus, SnapshotTransfer};
use serde_json::{Value, json};

use super::{ClientArgs, Done, commands, output};

type Answers = BTreeMap<NodeId, Result<NodeStatus, Error>>;

const HEADERS: [&str; 10] = ["NODE", "ROLE", "TERM", "LEADER", "START", "COMMIT", "APPLIED", "DURABLE", "LAST", "NOTE"];

pub(super) fn run(args: &ClientArgs, timings: bool) -> Result<Done> {
    commands::with_client(args, false, async |client| {
        let answers = client.status_of_all().await;
        if args.json {
            output::json(&as_json(&answers))?;
        } else {
            let table = if timings { timings_table(&answers) } else { as_table(&answers) };
            std::io::stdout().write_all(table.as_bytes())?;
        }
        let led = answers.values().flatten().any(|status| status.role == "leader");
        Ok(if led { Done::Ok } else { Done::NoLeader })
    })
}

fn as_json(answers: &Answers) -> Value {
    let nodes = answers.iter().map(|(id, answer)| match answer {
        Ok(status) => {
            let mut value = json!(status);
            if let Value::Object(fields) = &mut value {
                fields.insert("reachable".into(), true.into());
            }
            value
        }
        Err(error) => json!({ "node": id, "reachable": false, "error": error.to_string() }),
    });
    json!({ "nodes": nodes.collect::<Vec<_>>() })
}

fn as_table(answers: &Answers) -> String {
    let mut rows = vec![HEADERS.map(str::to_owned)];
    for (id, answer) in answers {
        rows.push(match answer {
            Ok(status) => [
                id.to_string(),
                status.role.clone(),
                status.term.to_string(),
                status.leader.map_or("-".into(), |leader| leader.to_string()),
                status.metrics.get("log.start").map_or("-".into(), u64::to_string),
                status.commit_index.to_string(),
                status.applied_index.to_string(),
                status.durable_index.to_string(),
                status.last_index.to_string(),
                note(status),
            ],
            Err(error) => {
                let mut row = [const { String::new() }; HEADERS.len()];
                (row[0], row[1]) = (id.to_string(), "unreachable".into());
                row[HEADERS.len() - 1] = reason(*id, error);
                row
            }
        });
    }
    output::aligned(&rows)
}

/// How long each stage of a write took, in microseconds, a line for each stage of each node.
fn timings_table(answers: &Answers) -> String {
    let mut rows = vec![["NODE", "ROLE", "STAGE", "COUNT", "P50 us", "P99 us", "MAX us"].map(str::to_owned)];
    for (id, answer) in answers {
        let line = |role: &str, stage: &str, figures: [String; 4]| {
            let [count, p50, p99, max] = figures;
            [id.to_string(), role.to_owned(), stage.to_owned(), count, p50, p99, max]
        };
        let status = match answer {
            Ok(status) => status,
            Err(error) => {
                rows.push(line("unreachable", &reason(*id, error), [const { String::new() }; 4]));
                continue;
            }
        };
        let figure =
            |stage: Stage, what: &str| status.metrics.get(&format!("timings.{}.{what}", stage.name())).copied();
        let micros = |nanos: Option<u64>| nanos.map_or("-".to_owned(), |nanos| format!("{:.1}", nanos as f64 / 1e3));
        let before = rows.len();
        for stage in Stage::ALL {
            if let Some(count) = figure(stage, "count") {
                let times = ["p50_ns", "p99_ns", "max_ns"].map(|what| micros(figure(stage, what)));
                let [p50, p99, max] = times;
                rows.push(line(&status.role, stage.name(), [count.to_string(), p50, p99, max]));
            }
        }
        if rows.len() == before {
            rows.push(line(
                &status.role,
                "none: timings are off, or nothing was written",
                [const { String::new() }; 4],
            ));
        }
    }
    output::aligned(&rows)
}

/// What keeps the node from serving; what the followers lack, where it leads; and how far the snapshots are that are under way.
fn note(status: &NodeStatus) -> String {
    let not_ready = (!status.not_ready.is_empty()).then(|| format!("not ready: {}", status.not_ready));
    // Where it is not ready, that is told already.
    let refusals = status.refusals.iter().filter(|_| status.not_ready.is_empty());
    let refusals = refusals.map(|(id, reason)| format!("refused by node {id}: {reason}"));
    let followers = status.lags.iter().map(|(id, lag)| {
        let waits = lag.needs_snapshot && !status.snapshots.iter().any(|t| t.outgoing && t.peer == *id);
        format!("node {id} {}{}", lacks(lag), if waits { " and waits for a snapshot" } else { "" })
    });
    let transfers = status.snapshots.iter().map(|transfer| {
        let SnapshotTransfer { peer, outgoing, bytes, total } = *transfer;
        let percent = bytes.saturating_mul(100).checked_div(total).unwrap_or(100);
        let way = if outgoing { "to" } else { "from" };
        format!("snapshot {way} node {peer}: {percent} % of {}", size(total))
    });
    not_ready.into_iter().chain(refusals).chain(followers).chain(transfers).collect::<Vec<_>>().join(", ")
}

fn lacks(lag: &Lag) -> String {
    match *lag {
        // What it has may be gone, for all that is known.
        Lag { entries: 0, silent_ms, .. } if silent_ms > 0 => silence(silent_ms),
        Lag { silent_ms, .. } if silent_ms > 0 => {
            format!("{} and {}", silence(silent_ms), lacks(&Lag { silent_ms: 0, ..*lag }))
        }
        Lag { entries: 0, .. } => "has everything".to_owned(),
        Lag { entries, bytes: 0, is_guess: true, .. } => format!("lacks {entries} entries"),
        Lag { entries, bytes, is_guess, .. } => {
            let (plural, about) =
                (if entries == 1 { "entry" } else { "entries" }, if is_guess { "about " } else { "" });
            format!("lacks {entries} {plural} ({about}{})", size(bytes))
        }
    }
}

fn silence(millis: u64) -> String {
    match millis {
        0..10_000 => format!("not heard for {:.1} s", millis as f64 / 1e3),
        _ => format!("not heard for {} s", millis / 1000),
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..=9_999 => format!("{bytes} B"),
        10_000..=9_999_999 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// What the node itself was heard to say, without the frame of a search that never was.
fn reason(id: NodeId, error: &Error) -> String {
    match error {
        Error::Timeout { nodes, .. } => nodes.0.get(&id).cloned().unwrap_or_else(|| error.to_string()),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raft_node::client::{Complaints, Missing};

    use super::*;

    fn answers() -> Answers {
        let leader = NodeStatus {
            node: NodeId(1),
            cluster: "demo".into(),
            version: "0.1.0".into(),
            role: "leader".into(),
            term: 3,
            leader: Some(NodeId(1)),
            commit_index: 120,
            applied_index: 119,
            last_index: 121,
            durable_index: 121,
            members: BTreeMap::new(),
            membership_index: 0,
            identity: 0,
            followers: [(NodeId(2), 117)].into(),
            lags: [
                (NodeId(2), Lag { entries: 4, bytes: 512, ..Lag::default() }),
                (
                    NodeId(3),
                    Lag { entries: 9000, bytes: 32 << 20, is_guess: true, needs_snapshot: true, silent_ms: 4321 },
                ),
                (NodeId(4), Lag { entries: 121, is_guess: true, needs_snapshot: true, ..Lag::default() }),
                (NodeId(5), Lag::default()),
            ]
            .into(),
            transferring_to: Some(NodeId(2)),
            not_ready: "it hands over".into(),
            snapshots: vec![SnapshotTransfer { peer: NodeId(3), outgoing: true, bytes: 5 << 20, total: 20 << 20 }],
            refusals: [(NodeId(3), "who are you".into())].into(),
            metrics: [("log.syncs".into(), 9), ("log.start".into(), 100)].into(),
        };
        let nodes = Complaints([(NodeId(2), "no answer".into())].into());
        let lost = Error::Timeout { waited: Duration::from_secs(1), reason: Missing::Answer, nodes };
        [(NodeId(1), Ok(leader)), (NodeId(2), Err(lost))].into()
    }

    #[test]
    fn the_table_has_a_line_for_each_node() {
        let expected = "\
NODE  ROLE         TERM  LEADER  START  COMMIT  APPLIED  DURABLE  LAST  NOTE
1     leader       3     1       100    120     119      121      121   not ready: it hands over, node 2 lacks 4 entries (512 B), \
node 3 not heard for 4.3 s and lacks 9000 entries (about 32 MiB), node 4 lacks 121 entries and waits for a snapshot, node 5 has everything, \
snapshot to node 3: 25 % of 20 MiB
2     unreachable                                                       no answer
";
        assert_eq!(as_table(&answers()), expected);
    }

    #[test]
    fn of_a_follower_that_is_silent_it_is_not_said_that_it_has_everything() {
        let lag = |entries, silent_ms| Lag { entries, silent_ms, ..Lag::default() };
        assert_eq!(lacks(&lag(0, 0)), "has everything");
        assert_eq!(lacks(&lag(0, 4321)), "not heard for 4.3 s");
        assert_eq!(lacks(&lag(7, 83_000)), "not heard for 83 s and lacks 7 entries (0 B)");
    }

    #[test]
    fn who_refuses_a_node_is_told_once() {
        let mut answers = answers();
        let Some(Ok(status)) = answers.get_mut(&NodeId(1)) else { panic!("it answers") };
        assert!(!note(status).contains("refused by"), "{}", note(status));
        status.not_ready.clear();
        assert!(note(status).starts_with("refused by node 3: who are you, node 2 lacks"), "{}", note(status));
    }

    #[test]
    fn json_names_who_is_reachable() {
        let json = as_json(&answers());
        let nodes = json["nodes"].as_array().unwrap();
        assert_eq!((&nodes[0]["node"], &nodes[0]["role"]), (&json!(1), &json!("leader")));
        assert_eq!((&nodes[0]["lags"]["2"]["bytes"], &nodes[0]["snapshots"][0]["peer"]), (&json!(512), &json!(3)));
        assert_eq!((&nodes[0]["transferring_to"], &nodes[0]["not_ready"]), (&json!(2), &json!("it hands over")));
        assert_eq!((&nodes[0]["reachable"], &nodes[0]["metrics"]["log.syncs"]), (&json!(true), &json!(9)));
        assert_eq!(nodes[0]["refusals"]["3"], json!("who are you"));
        assert_eq!((&nodes[1]["node"], &nodes[1]["reachable"]), (&json!(2), &json!(false)));
        assert!(nodes[1]["error"].as_str().unwrap().contains("no answer"));
    }
}
