//! `raft-node member`: who belongs to the cluster.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use raft_core::NodeId;
use raft_node::client::protocol::{Member, MemberChange, NodeStatus};
use raft_node::client::{Client, Error};
use serde_json::json;

use super::{ClientArgs, Done, commands, output, parse_duration};

/// Between two attempts to give a learner its vote.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum MemberCommand {
    /// Show the members, as the leader knows them
    List(ClientArgs),
    /// Add a node: first as a learner, and once it has caught up with a vote
    ///
    /// Start the node itself first, with an empty data directory, all present members among its `[peers]`, and `raft-node serve --join`.
    Add(AddArgs),
    /// Give a learner its vote
    Promote(PromoteArgs),
    /// Remove a node, the leader perhaps
    ///
    /// It can be stopped then. To bring it back, also after its disk was lost, start it with an empty data directory and `--join`, and add it again.
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Where the other nodes reach it, `host:port`
    address: String,
    /// Leave it a learner: it gets every write and has no vote
    #[arg(long)]
    learner: bool,
    /// How long to wait for it to catch up: 90s, 500ms
    #[arg(long, value_name = "TIME", default_value = "300s", value_parser = parse_duration)]
    wait: Duration,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct PromoteArgs {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Even if it lacks part of the log, or if too few voters have been heard lately: writes may have to wait for it. A node that is no member is added first all the same
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// Id of the node
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    id: u64,
    /// Even if too few of the voters that remain have been heard lately: the cluster may not be able to go on
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    client: ClientArgs,
}

impl MemberCommand {
    pub(super) fn client(&self) -> &ClientArgs {
        match self {
            MemberCommand::List(client) => client,
            MemberCommand::Add(args) => &args.client,
            MemberCommand::Promote(args) => &args.client,
            MemberCommand::Remove(args) => &args.client,
        }
    }
}

pub(super) fn run(command: &MemberCommand) -> Result<Done> {
    let args = command.client();
    commands::with_client(args, false, async |client| match command {
        MemberCommand::List(_) => list(args, &client).await,
        MemberCommand::Add(add) => self::add(add, &client).await,
        MemberCommand::Promote(PromoteArgs { id, force, .. }) => {
            let change = MemberChange { voters: vec![NodeId(*id)], forced: *force, ..MemberChange::default() };
            report(args, *id, "voter", client.change_membership(change).await?)
        }
        MemberCommand::Remove(RemoveArgs { id, force, .. }) => {
            let change = MemberChange { removed: vec![NodeId(*id)], forced: *force, ..MemberChange::default() };
            report(args, *id, "removed", client.change_membership(change).await?)
        }
    })
}

fn report(args: &ClientArgs, id: u64, role: &str, index: u64) -> Result<Done> {
    let text = match role {
        "removed" => format!("node {id} is no member any more (index {index})"),
        role => format!("node {id} is a {role} (index {index})"),
    };
    output::line(args, &json!({ "node": id, "role": role, "index": index }), &text)?;
    Ok(Done::Ok)
}

/// The leader's view, or, without a leader, that of whoever has seen most.
async fn newest(client: &Client) -> Option<NodeStatus> {
    let answers = client.status_of_all().await;
    let known = answers.into_values().flatten();
    known.max_by_key(|status| (status.term, status.role == "leader", status.membership_index))
}

async fn list(args: &ClientArgs, client: &Client) -> Result<Done> {
    let Some(status) = newest(client).await else { bail!("no node answers") };
    let committed = status.membership_index <= status.commit_index;
    if args.json {
        let members = status.members.iter().map(|(id, member)| {
            let matched = status.followers.get(id);
            json!({ "node": id, "role": member.role, "address": member.address, "match_index": matched })
        });
        output::json(&json!({
            "index": status.membership_index, "committed": committed, "leader": status.leader, "members": members.collect::<Vec<_>>()
        }))?;
    } else {
        let mut rows = vec![["NODE", "ROLE", "ADDRESS", "MATCH", "NOTE"].map(str::to_owned)];
        rows.extend(status.members.iter().map(|(id, member)| {
            let leads = status.leader == Some(*id);
            let matched = if leads { Some(&status.durable_index) } else { status.followers.get(id) };
            let note = if leads { "leader" } else { "" };
            let matched = matched.map_or("-".into(), u64::to_string);
            [id.to_string(), member.role.clone(), member.address.clone(), matched, note.to_owned()]
        }));
        output::columns(&rows)?;
        if !committed {
            eprintln!("the change at index {} is not committed yet", status.membership_index);
        }
    }
    Ok(if status.role == "leader" { Done::Ok } else { Done::NoLeader })
}

/// Why this node cannot be added, whatever the leader says: `known` is the member of its id, `found` what answers at its address.
fn obstacle(id: NodeId, known: Option<&Member>, found: Option<&NodeStatus>) -> Option<String> {
    if let (Some(member), Some(found)) = (known, found)
        && found.identity != member.identity
    {
        return Some(format!(
            "the node that answers has another data directory than node {id}, which is a member ({}): \
             remove that first: `raft-node member remove {id}`",
            member.role
        ));
    }
    if let Some(member) = known.filter(|member| member.role != "learner") {
        return Some(format!(
            "node {id} is a member already: {}. If its disk was lost, remove it first: `raft-node member remove {id}`, \
             and start it with an empty directory and --join",
            member.role
        ));
    }
    // It would begin a cluster of its own, or has forgotten that it has belonged to this one.
    let is_founder = found.is_some_and(|found| found.identity == 0 && found.term == 0 && !found.members.is_empty());
    is_founder.then(|| {
        format!(
            "node {id} has an empty data directory and was not started to join: start it again with an empty directory and --join"
        )
    })
}

async fn add(args: &AddArgs, client: &Client) -> Result<Done> {
    let id = NodeId(args.id);
    let newest = newest(client).await;
    let known = newest.as_ref().and_then(|status| status.members.get(&id));
    // Whoever has the id now is meant, and nobody who had it before.
    client.add_node(id, &args.address);
    let answer = client.status(id).await;
    if let Some(why) = obstacle(id, known, answer.as_ref().ok()) {
        bail!(why);
    }
    let since = newest.as_ref().filter(|_| known.is_some_and(|member| member.address == args.address));
    let index = if let Some(status) = since {
        // It is a learner already, and has its vote yet to get.
        status.membership_index
    } else {
        let status = answer.with_context(|| {
            format!("node {id} does not answer at {}: start it first, with `raft-node serve --join`", args.address)
        })?;
        let identities = vec![(id, status.identity)];
        let addresses = vec![(id, args.address.clone())];
        let change = MemberChange { learners: vec![id], addresses, identities, ..MemberChange::default() };
        client.change_membership(change).await?
    };
    if args.learner {
        return report(&args.client, args.id, "learner", index);
    }
    let until = Instant::now() + args.wait;
    let mut said = String::new();
    loop {
        let change = MemberChange { voters: vec![id], ..MemberChange::default() };
        match client.change_membership(change).await {
            Ok(index) => return report(&args.client, args.id, "voter", index),
            Err(Error::ChangeRefused { later: true, why }) if Instant::now() < until => {
                // How much it lacks changes all the time.
                let kind: String = why.chars().filter(|c| !c.is_ascii_digit()).collect();
                if kind != said {
                    eprintln!("waiting: {why}");
                    said = kind;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(Error::ChangeRefused { why, .. }) => {
                bail!("node {id} remains a learner: {why}; `raft-node member promote {id}` tries again")
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_added_must_be_the_one_that_is_meant() {
        let member = |role: &str, identity| Member { role: role.into(), address: "a:1".into(), identity };
        let node = |identity, term| NodeStatus { identity, term, ..NodeStatus::default() };
        let obstacle = |known: Option<Member>, found: Option<NodeStatus>| {
            super::obstacle(NodeId(4), known.as_ref(), found.as_ref()).unwrap_or_default()
        };
        assert_eq!(obstacle(None, Some(node(7, 0))), "");
        assert_eq!(obstacle(Some(member("learner", 7)), Some(node(7, 3))), "", "it goes on where it was");
        assert_eq!(obstacle(Some(member("learner", 7)), None), "", "the leader knows more");
        for role in ["learner", "voter"] {
            let other = obstacle(Some(member(role, 7)), Some(node(9, 0)));
            assert!(other.contains("another data directory"), "{other}");
            assert!(other.ends_with("remove that first: `raft-node member remove 4`"), "{other}");
        }
        let voter = obstacle(Some(member("voter", 0)), Some(node(0, 0)));
        assert!(
            voter.contains("is a member already: voter") && voter.contains("`raft-node member remove 4`"),
            "{voter}"
        );
        let founder = NodeStatus { members: [(NodeId(4), member("voter", 0))].into(), ..NodeStatus::default() };
        assert!(obstacle(None, Some(founder)).contains("--join"));
    }
}
