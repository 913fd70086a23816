//! How messages, writes, logs and the like read in a script.
//!
//! `5@3` is the entry with index 5 of term 3, `5-7@3` are three of them. `1 -> 2` is said when 1 sends, `2 <- 1` when it arrives.

use std::fmt::Write as _;

use raft_core::sim::disk::Image;
use raft_core::{
    ChangeError, Entries, EntryKind, EntryRef, Envelope, Event, LogId, LogIndex, Membership, Message, NodeId,
    ProposeError, ReadError, ReadOutcome, SendSnapshot, Status, StepDownReason, WakeReason, Write,
};

use super::world::Transfer;

/// The name of a message's kind, as filters take it.
pub(super) fn kind(message: &Message) -> &'static str {
    match message {
        Message::PreVote(_) => "pre-vote",
        Message::PreVoteReply(_) => "pre-vote-reply",
        Message::RequestVote(_) => "vote",
        Message::RequestVoteReply(_) => "vote-reply",
        Message::AppendEntries(_) => "append",
        Message::AppendAck(_) => "ack",
        Message::AppendReject(_) => "reject",
        Message::Heartbeat(_) => "heartbeat",
        Message::HeartbeatReply(_) => "heartbeat-reply",
        Message::TimeoutNow(_) => "timeout-now",
        Message::ReadIndex(_) => "read-index",
        Message::ReadIndexReply(_) => "read-index-reply",
        Message::Quiesce(_) => "quiesce",
    }
}

/// Every name that [`kind`] gives.
pub(super) const KINDS: [&str; 13] = [
    "pre-vote",
    "pre-vote-reply",
    "vote",
    "vote-reply",
    "append",
    "ack",
    "reject",
    "heartbeat",
    "heartbeat-reply",
    "timeout-now",
    "read-index",
    "read-index-reply",
    "quiesce",
];

/// A message from its sender's side.
pub(super) fn sent(envelope: &Envelope) -> String {
    format!("{} -> {} {}", envelope.from, envelope.to, said(envelope))
}

/// A message from its receiver's side.
pub(super) fn arrived(envelope: &Envelope) -> String {
    format!("{} <- {} {}", envelope.to, envelope.from, said(envelope))
}

fn said(envelope: &Envelope) -> String {
    let mut text = format!("{} t{}", kind(&envelope.body), envelope.term);
    let ok = match &envelope.body {
        Message::PreVote(request) | Message::RequestVote(request) => {
            let leave = if request.transfer { ", with the leader's leave" } else { "" };
            write!(text, ": last {}{leave}", request.last_log)
        }
        Message::PreVoteReply(reply) | Message::RequestVoteReply(reply) => {
            write!(text, ": {} for t{}", if reply.granted { "yes" } else { "no" }, reply.election)
        }
        Message::AppendEntries(append) => {
            let entries = if append.entries.is_empty() { "nothing".to_owned() } else { runs_of(&append.entries) };
            let (epoch, seq, prev, commit) = (append.epoch, append.seq, append.prev_log, append.leader_commit);
            write!(text, " e{epoch}#{seq}: {entries} after {prev}, commit {commit}")
        }
        Message::AppendAck(ack) => write!(text, " e{}: match {}", ack.epoch, ack.match_index),
        Message::AppendReject(reject) => {
            let runs: Vec<String> = reject.runs.iter().map(ToString::to_string).collect();
            let runs = if runs.is_empty() { "none".to_owned() } else { runs.join(" ") };
            let (epoch, seq, last, commit) = (reject.epoch, reject.seq, reject.last_index, reject.commit_index);
            write!(text, " e{epoch}#{seq}: terms begin {runs}, end {last}, commit {commit}")
        }
        Message::Heartbeat(heartbeat) => match heartbeat.round {
            Some(round) => write!(text, " e{} round {round}: commit {}", heartbeat.epoch, heartbeat.commit),
            None => write!(text, " e{}: commit {}", heartbeat.epoch, heartbeat.commit),
        },
        Message::HeartbeatReply(reply) => {
            let (epoch, round, received, matched) = (reply.epoch, reply.round, reply.received, reply.match_index);
            let promise =
                if reply.promise_ms > 0 { format!(", no vote for {} ms", reply.promise_ms) } else { String::new() };
            write!(text, " e{epoch} round {round}: received {received}, match {matched}{promise}")
        }
        Message::TimeoutNow(request) => write!(text, ": last {}", request.last_log),
        // The first number is drawn, and tells nobody anything.
        Message::ReadIndex(_) => Ok(()),
        Message::ReadIndexReply(reply) => write!(text, ": index {}", reply.index),
        // The number of the vigil is drawn, too.
        Message::Quiesce(quiesce) => write!(text, ": last {}", quiesce.last),
    };
    ok.map_or_else(|_| String::new(), |()| text)
}

/// What is in a write.
pub(super) fn write(write: &Write) -> String {
    let mut parts = Vec::new();
    if let Some(hard_state) = write.hard_state {
        let vote = hard_state.voted_for.map_or_else(|| "no vote".to_owned(), |id| format!("vote for {id}"));
        parts.push(format!("term {}, {vote}", hard_state.current_term));
    }
    parts.extend(write.log_start.as_ref().map(|start| format!("begin after {}", start.last)));
    parts.extend(write.truncate_from.map(|from| format!("cut from {from}")));
    if !write.entries.is_empty() {
        parts.push(runs_of(&write.entries));
    }
    format!("w{}: {}", write.seq, parts.join("; "))
}

/// Entries with what is in them: `4@2 5@3=x`. Those that were there before the script began are empty.
pub(super) fn contents(entries: &Entries) -> String {
    entries.iter().map(|entry| entry.id().to_string() + &content(&entry)).collect::<Vec<_>>().join(" ")
}

fn content(entry: &EntryRef<'_>) -> String {
    match (entry.kind, entry.payload) {
        (EntryKind::NoOp, _) => "=(no-op)".to_owned(),
        (EntryKind::Membership, _) => "=(members)".to_owned(),
        (_, []) => String::new(),
        (_, payload) if payload.len() > 16 => format!("=({} bytes)", payload.len()),
        (_, payload) => format!("={}", String::from_utf8_lossy(payload)),
    }
}

/// Entries by terms: `1-3@1 4@2`.
pub(super) fn runs_of(entries: &Entries) -> String {
    let ids: Vec<LogId> = entries.iter().map(|entry| entry.id()).collect();
    runs(&ids)
}

fn runs(ids: &[LogId]) -> String {
    let runs = ids.chunk_by(|a, b| a.term == b.term).filter_map(|run| match run {
        [] => None,
        [one] => Some(one.to_string()),
        [first, .., last] => Some(format!("{}-{last}", first.index)),
    });
    runs.collect::<Vec<_>>().join(" ")
}

/// A log by terms; the part up to `mark` in brackets, and before it the last entry that was forgotten in parentheses.
pub(super) fn log(image: &Image, mark: LogIndex) -> String {
    let ids = |first: u64, last: u64| -> Vec<LogId> {
        (first..=last).filter_map(|index| image.id_at(LogIndex(index))).collect()
    };
    let last = image.last().index.0;
    let begin = image.start().index.0 + 1;
    let marked = runs(&ids(begin, mark.0.min(last)));
    let rest = runs(&ids(begin.max(mark.0 + 1), last));
    let log = match (marked.is_empty(), rest.is_empty()) {
        (true, true) => "empty".to_owned(),
        (true, false) => rest,
        (false, true) => format!("[{marked}]"),
        (false, false) => format!("[{marked}] {rest}"),
    };
    if begin > 1 { format!("({}) {log}", image.start()) } else { log }
}

/// A snapshot on its way.
pub(super) fn snapshot(transfer: &Transfer) -> String {
    let SendSnapshot { term, epoch, .. } = transfer.wanted;
    format!("snapshot t{term} e{epoch}: up to {}", transfer.meta.last)
}

/// What happened to a server, without its name; `None` when another line tells it.
pub(super) fn event(id: NodeId, event: &Event) -> Option<String> {
    Some(match event {
        Event::BecameLeader { term } => format!("leads term {term}"),
        Event::SteppedDown { term, reason } => {
            let why = match reason {
                StepDownReason::NewerTerm => "there is a newer term",
                StepDownReason::QuorumLost => "no majority answers",
                StepDownReason::WriteStalled => "its disk hangs",
                StepDownReason::Removed => "it is no voter any more",
            };
            format!("steps down from term {term}: {why}")
        }
        Event::LeaderChanged { leader, .. } if *leader == Some(id) => return None,
        Event::LeaderChanged { term, leader: Some(leader) } => format!("follows {leader} in term {term}"),
        Event::LeaderChanged { leader: None, .. } => "knows no leader".to_owned(),
        Event::Campaigning { term, pre_vote: true } => format!("asks who would vote for it in term {term}"),
        Event::Campaigning { term, pre_vote: false } => format!("stands for term {term}"),
        Event::TransferBegun { to, .. } => format!("hands over to {to}"),
        Event::TransferFailed { to, .. } => format!("gives up handing over to {to}"),
        Event::Truncated { from } => format!("drops its entries from {from} on"),
        Event::MembershipChanged { index, membership } => {
            format!("uses entry {index}: {}", self::membership(membership))
        }
        Event::Removed { index } => format!("learns from entry {index} that it has been removed"),
        Event::Restored { last, kept: true } => format!("begins its log after {last}, and keeps what follows"),
        Event::Restored { last, kept: false } => format!("begins its log anew after {last}"),
        Event::Quiesced { .. } => "goes to sleep".to_owned(),
        Event::Woken { reason, .. } => {
            let why = match reason {
                WakeReason::Request => "somebody wants something",
                WakeReason::Message => "another server has something to say",
                WakeReason::LinkReset => "a link was reset",
            };
            format!("wakes: {why}")
        }
        Event::Rejected { from, reason } => format!("rejects what {from} says: {reason:?}"),
        other => format!("{other:?}"),
    })
}

/// How a read ended.
pub(super) fn read(outcome: ReadOutcome) -> String {
    match outcome {
        ReadOutcome::Ready { id, index } => format!("read {}: ready once {index} is applied", id.0),
        ReadOutcome::Lost { id } => format!("read {}: lost, ask another", id.0),
    }
}

/// Why a proposal was refused.
pub(super) fn propose_error(error: ProposeError) -> String {
    match error {
        ProposeError::NotLeader { hint: Some(hint) } => format!("refuses: not the leader, ask {hint}"),
        other => format!("refuses: {other}"),
    }
}

/// Why a change of the membership was refused.
pub(super) fn change_error(error: ChangeError) -> String {
    match error {
        ChangeError::NotLeader { hint: Some(hint) } => format!("refuses: not the leader, ask {hint}"),
        other => format!("refuses: {other}"),
    }
}

/// Who belongs to the cluster: `voters 1 2 4, before 1 2 3, learners 5`.
pub(super) fn membership(membership: &Membership) -> String {
    let list = |name: &str, ids: &[NodeId]| {
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        (!ids.is_empty()).then(|| format!("{name} {}", ids.join(" ")))
    };
    let lists = [
        list("voters", membership.voters()),
        list("before", membership.outgoing()),
        list("learners", membership.learners()),
    ];
    let info = membership.members().into_iter().filter(|id| !membership.info(*id).is_empty());
    let info = info.map(|id| format!("{id} is {}", String::from_utf8_lossy(&membership.info(id))));
    let parts: Vec<String> = lists.into_iter().flatten().chain(info).collect();
    if parts.is_empty() { "nobody".to_owned() } else { parts.join(", ") }
}

/// Why a read was refused.
pub(super) fn read_error(error: ReadError) -> String {
    match error {
        ReadError::NotLeader { hint: Some(hint) } => format!("refuses: not the leader, ask {hint}"),
        ReadError::NotLeader { hint: None } => format!("refuses: {error}"),
    }
}

/// One line about a server.
pub(super) fn status(status: &Status) -> String {
    let id = |id: Option<NodeId>| id.map_or_else(|| "nobody".to_owned(), |id| id.to_string());
    format!(
        "{}: {}{} in term {}, voted for {}, leader {}; last {}, durable {}, commit {}, applied {}; {} bytes uncommitted",
        status.id,
        if status.quiesced { "sleeping " } else { "" },
        status.role,
        status.current_term,
        id(status.voted_for),
        id(status.leader),
        status.last_log,
        status.durable_index,
        status.commit_index,
        status.applied_index,
        status.uncommitted_bytes,
    )
}

/// What a leader knows of its followers, a line for each.
pub(super) fn progress(status: &Status) -> Vec<String> {
    let line = |follower: &raft_core::FollowerStatus| {
        let state = if follower.probing { "probing" } else { "streaming" };
        let (id, matched, next) = (follower.id, follower.match_index, follower.next_index);
        let (appends, bytes) = (follower.inflight_appends, follower.inflight_bytes);
        let snapshot =
            follower.snapshot.map(|snapshot| format!(", and a snapshot up to {} or more", snapshot.at_least));
        let snapshot = snapshot.unwrap_or_default();
        let kind = match follower.member {
            raft_core::MemberRole::Voter => String::new(),
            other => format!("{other}, "),
        };
        format!(
            "{id}: {kind}match {matched}, next {next}, {state}, {appends} appends of {bytes} bytes on their way{snapshot}"
        )
    };
    status.followers.iter().map(line).collect()
}
