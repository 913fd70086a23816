//! What an operator wants to know of a node: why it cannot serve, what its followers lack, which snapshots are under way.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_core::{LogIndex, NodeId, Role, Status, Term};
use raft_net::CloseCode;

use super::protocol::{Lag, SnapshotTransfer};
use crate::snapshot::SnapshotStats;
use crate::standing::{Refusal, Standing};

/// A write that takes longer is worth a word: a disk that works takes milliseconds.
const SLOW_WRITE: Duration = Duration::from_millis(500);
/// Entries that may be committed and not applied without a word: under load there are always some.
const BACKLOG: u64 = 10_000;

/// Why the node cannot serve clients at present, as far as it knows itself; of several reasons the one that the others follow from.
pub(super) fn not_ready(status: &Status, snapshots: &SnapshotStats, standing: &Standing) -> Option<String> {
    refused(status, standing)
        .or_else(|| membership(status))
        .or_else(|| snapshot(status, snapshots))
        .or_else(|| if status.role == Role::Leader { as_leader(status) } else { without_leader(status) })
        .or_else(|| {
            let behind = status.commit_index.0.saturating_sub(status.applied_index.0);
            (behind > BACKLOG).then(|| format!("its state machine is {behind} entries behind"))
        })
}

/// What the others say of this node, as long as it has no leader: then nothing else will help.
fn refused(status: &Status, standing: &Standing) -> Option<String> {
    let (id, is_joining) = (status.id, status.membership.members().is_empty());
    let is_blank = status.current_term == Term(0) && status.last_log.index == LogIndex::ZERO;
    let lost = |peer: &NodeId| {
        let remedy = if is_joining { "then" } else { "start it with an empty directory and --join, then" };
        format!(
            "node {peer} knows node {id} with another data directory: `raft-node member remove {id}`, {remedy} `raft-node member add {id} ADDRESS`"
        )
    };
    if let Some((peer, _)) = standing.barred.as_ref().filter(|_| is_blank && !is_joining) {
        return Some(lost(peer));
    }
    if status.leader.is_some() {
        return None;
    }
    let mut refusals = standing.refusals.iter();
    if let Some((peer, _)) = refusals.clone().find(|(_, refusal)| refusal.code == CloseCode::WrongIncarnation) {
        return Some(lost(peer));
    }
    let is_no_member = |refusal: &Refusal| matches!(refusal.code, CloseCode::WrongNode | CloseCode::Removed);
    match refusals.find(|(_, refusal)| !is_joining || !is_no_member(refusal))? {
        (peer, refusal) if is_no_member(refusal) => Some(format!(
            "node {peer} says that node {id} is no member: if it was removed from the cluster, it can be stopped, \
             or come back with an empty directory, --join, and `raft-node member add {id} ADDRESS`"
        )),
        (peer, refusal) => Some(format!("node {peer} refuses it: {}", refusal.reason)),
    }
}

fn membership(status: &Status) -> Option<String> {
    let (id, membership) = (status.id, &status.membership);
    if membership.members().is_empty() {
        return Some(format!("it belongs to no cluster yet: `raft-node member add {id} ADDRESS`"));
    }
    if !membership.contains(id) {
        return Some(format!(
            "it is no member of the cluster any more: it can be stopped, or added again: `raft-node member add {id} ADDRESS`"
        ));
    }
    (membership.identity(id) != status.identity)
        .then(|| format!("the cluster knows node {id} with another data directory: remove it, empty this one, add it"))
}

fn snapshot(status: &Status, snapshots: &SnapshotStats) -> Option<String> {
    if status.is_restoring {
        return Some("it takes over a snapshot".to_owned());
    }
    snapshots.incoming.keys().next().map(|from| format!("it gets a snapshot from node {from}"))
}

fn as_leader(status: &Status) -> Option<String> {
    if let Some(to) = status.transferring_to {
        return Some(format!("it hands over to node {to}; writes wait"));
    }
    if let Some(busy) = status.writing_for.filter(|busy| *busy > SLOW_WRITE) {
        return Some(format!("its disk has been busy with one write for {:.1} s", busy.as_secs_f64()));
    }
    let (uncommitted, unapplied) = (status.uncommitted_bytes >> 20, status.unapplied_bytes >> 20);
    status
        .is_busy
        .then(|| format!("it has too much to do: {uncommitted} MiB are not committed yet, {unapplied} MiB not applied"))
}

fn without_leader(status: &Status) -> Option<String> {
    let term = status.current_term;
    match status.role {
        _ if status.leader.is_some() => None,
        Role::Follower => Some(format!("it knows no leader of term {}", term.0)),
        Role::PreCandidate => Some("it hears no leader, and asks whether it could win an election".to_owned()),
        Role::Candidate => Some(format!("it stands for election in term {}", term.0)),
        Role::Leader => None,
    }
}

/// What each follower lacks, when the node leads.
pub(super) fn lags(status: &Status) -> BTreeMap<NodeId, Lag> {
    let lag = |follower: &raft_core::FollowerStatus| Lag {
        entries: follower.missing_entries,
        bytes: follower.missing_bytes as u64,
        is_guess: !follower.missing_is_exact,
        needs_snapshot: follower.snapshot.is_some(),
        silent_ms: silent_ms(status, follower.silent_for),
    };
    status.followers.iter().map(|follower| (follower.id, lag(follower))).collect()
}

fn silent_ms(status: &Status, silent_for: Duration) -> u64 {
    let is_usual = status.quiesced || silent_for <= status.election_timeout;
    if is_usual { 0 } else { u64::try_from(silent_for.as_millis()).unwrap_or(u64::MAX) }
}

/// Snapshots that are under way, those to others first.
pub(super) fn transfers(snapshots: &SnapshotStats) -> Vec<SnapshotTransfer> {
    let of = |outgoing| {
        let all = if outgoing { &snapshots.outgoing } else { &snapshots.incoming };
        all.iter().map(move |(&peer, &(bytes, total))| SnapshotTransfer { peer, outgoing, bytes, total })
    };
    of(true).chain(of(false)).collect()
}

#[cfg(test)]
mod tests {
    use raft_core::{Config, Input, Instant, Membership, Raft, Recovered};

    use super::*;

    /// One of three, which has heard of nobody.
    fn status() -> Status {
        let membership = Membership::of_voters([1, 2, 3].map(NodeId));
        let config = Config::new(NodeId(1));
        let mut raft = Raft::new(config, Recovered::fresh(membership), Instant::from_millis(0)).unwrap();
        raft.step(Instant::from_millis(1), Input::Wake);
        raft.status()
    }

    fn reason(status: &Status) -> String {
        not_ready(status, &SnapshotStats::default(), &Standing::default()).unwrap_or_default()
    }

    #[test]
    fn what_the_others_say_comes_first_and_with_what_to_do() {
        let mut status = status();
        let mut standing = Standing::default();
        let refusal = |code| Refusal { code, reason: "so it is".into() };
        let reason = |status: &Status, standing: &Standing| {
            not_ready(status, &SnapshotStats::default(), standing).unwrap_or_default()
        };
        standing.refusals.insert(NodeId(2), refusal(CloseCode::WrongCluster));
        assert_eq!(reason(&status, &standing), "node 2 refuses it: so it is");
        standing.refusals.insert(NodeId(2), refusal(CloseCode::WrongNode));
        assert!(reason(&status, &standing).starts_with("node 2 says that node 1 is no member: if it was removed"));
        standing.refusals.insert(NodeId(3), refusal(CloseCode::WrongIncarnation));
        let lost = "node 3 knows node 1 with another data directory: `raft-node member remove 1`, start it with an empty directory";
        assert!(reason(&status, &standing).starts_with(lost));
        status.leader = Some(NodeId(2));
        assert_eq!(reason(&status, &standing), "", "the others suffice");
        // It takes no part, even if nobody refuses it any more.
        standing.barred = standing.refusals.remove_entry(&NodeId(3));
        standing.refusals.clear();
        assert!(reason(&status, &standing).starts_with(lost));
        status.current_term = Term(1);
        assert_eq!(reason(&status, &standing), "");
    }

    /// It is no member yet, and that the others say so is no news.
    #[test]
    fn who_waits_to_be_added_is_told_to_be_removed_first_if_it_is_a_member() {
        let mut status = status();
        status.membership = Membership::default().into();
        let mut standing = Standing::default();
        let refusal = |code| Refusal { code, reason: String::new() };
        standing.refusals.insert(NodeId(2), refusal(CloseCode::WrongNode));
        let reason = not_ready(&status, &SnapshotStats::default(), &standing).unwrap();
        assert_eq!(reason, "it belongs to no cluster yet: `raft-node member add 1 ADDRESS`");
        standing.refusals.insert(NodeId(2), refusal(CloseCode::WrongIncarnation));
        let reason = not_ready(&status, &SnapshotStats::default(), &standing).unwrap();
        assert!(reason.ends_with("`raft-node member remove 1`, then `raft-node member add 1 ADDRESS`"), "{reason}");
    }

    #[test]
    fn the_reason_is_the_one_that_the_others_follow_from() {
        let mut status = status();
        assert_eq!(reason(&status), "it knows no leader of term 0");
        status.role = Role::Candidate;
        assert!(reason(&status).contains("stands for election"));
        status.is_restoring = true;
        assert_eq!(reason(&status), "it takes over a snapshot");
        status.membership = Membership::of_voters([2, 3].map(NodeId)).into();
        assert!(reason(&status).contains("no member"));
        status.membership = Membership::default().into();
        assert!(reason(&status).contains("raft-node member add 1"));
    }

    #[test]
    fn a_follower_that_hears_its_leader_is_ready_unless_it_is_far_behind() {
        let mut status = status();
        status.leader = Some(NodeId(2));
        assert_eq!(reason(&status), "");
        let incoming = SnapshotStats { incoming: [(NodeId(2), (1, 4))].into(), ..SnapshotStats::default() };
        assert_eq!(not_ready(&status, &incoming, &Standing::default()).unwrap(), "it gets a snapshot from node 2");
        status.commit_index.0 = status.applied_index.0 + BACKLOG + 5;
        assert!(reason(&status).contains("10005 entries behind"));
    }

    #[test]
    fn a_leader_says_what_holds_it_up() {
        let mut status = status();
        (status.role, status.leader) = (Role::Leader, Some(NodeId(1)));
        assert_eq!(reason(&status), "");
        status.is_busy = true;
        status.uncommitted_bytes = 64 << 20;
        assert!(reason(&status).contains("64 MiB are not committed"));
        status.writing_for = Some(Duration::from_millis(1300));
        assert!(reason(&status).contains("busy with one write for 1.3 s"));
        status.transferring_to = Some(NodeId(3));
        assert!(reason(&status).contains("hands over to node 3"));
    }

    #[test]
    fn silence_is_told_when_it_is_longer_than_usual() {
        let mut status = status();
        let usual = status.election_timeout;
        assert_eq!(silent_ms(&status, usual), 0);
        assert_eq!(silent_ms(&status, usual + Duration::from_secs(4)), (usual.as_millis() + 4000) as u64);
        status.quiesced = true;
        assert_eq!(silent_ms(&status, usual * 100), 0);
    }

    #[test]
    fn transfers_say_which_way_they_go() {
        let stats = SnapshotStats {
            outgoing: [(NodeId(3), (5, 20))].into(),
            incoming: [(NodeId(2), (1, 4))].into(),
            ..SnapshotStats::default()
        };
        let found = transfers(&stats).into_iter().map(|t| (t.peer.0, t.outgoing, t.bytes, t.total));
        assert_eq!(found.collect::<Vec<_>>(), [(3, true, 5, 20), (2, false, 1, 4)]);
    }
}
