//! A way through the states, for people.

use super::event::{Event, Sent};
use super::server::{Effects, Server};
use super::settings::Settings;
use super::world::World;
use crate::entries::Entries;
use crate::io::Write;
use crate::message::{Envelope, Message};

/// Walks the way again and says what happens, one line an event and one for each thing that it brings about.
pub(super) fn tell(settings: &Settings, world: &World, start: &[u32], way: &[(usize, Event)]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut servers: Vec<Server> = (0..settings.servers).map(|at| world.server(start, at).clone()).collect();
    for (number, (at, event)) in (1..).zip(way) {
        let message = event.message().map(|id| format!(" {}", sent(world.message(id)))).unwrap_or_default();
        let status = servers[*at].status();
        lines.push(format!("{number:3}. n{} ({}, {:?}) {event}{message}", at + 1, status.role, status.current_term));
        match world.step(&servers[*at], *event) {
            Ok(Some((server, effects))) => {
                lines.extend(consequences(&effects).into_iter().map(|line| format!("        {line}")));
                let status = server.status();
                lines.push(format!(
                    "        = {} of {:?}, log to {}, durable to {}, committed to {}",
                    status.role, status.current_term, status.last_log, status.durable_index, status.commit_index
                ));
                servers[*at] = server;
            }
            Ok(None) => lines.push("        which is beyond the bounds".to_owned()),
            Err(what) => lines.push(format!("        and {what}")),
        }
    }
    lines
}

fn consequences(effects: &Effects) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(effects.events.iter().map(|event| format!("{event:?}")));
    for Write { seq, hard_state, log_start, truncate_from, entries } in &effects.writes {
        let start = log_start.as_ref().map(|start| format!(" begins after {}", start.last)).unwrap_or_default();
        let hard_state = hard_state.map(|h| format!(" {:?} vote {:?}", h.current_term, h.voted_for));
        let cut = truncate_from.map(|from| format!(" cut from {from}")).unwrap_or_default();
        lines.push(format!("writes ({seq:?}){}{start}{cut}{}", hard_state.unwrap_or_default(), list(entries)));
    }
    lines.extend(effects.messages.iter().map(|message| format!("sends {}", sent(message))));
    lines.extend(effects.applied.iter().map(|entry| format!("applies {entry}")));
    lines.extend(effects.reads.iter().map(|read| format!("{read:?}")));
    lines
}

/// What is on its way, in a few words.
fn sent(sent: &Sent) -> String {
    match sent {
        Sent::Message(envelope) => words(envelope),
        Sent::Snapshot(s) => format!("{:?}->{:?} {:?} snapshot up to {}", s.from, s.to, s.term, s.meta.last),
        Sent::Arrived(a) => format!("{:?}->{:?} {:?} the snapshot up to {} has arrived", a.from, a.to, a.term, a.last),
    }
}

/// A message in a few words.
fn words(envelope: &Envelope) -> String {
    let Envelope { from, to, term, body } = envelope;
    let body = match body {
        Message::PreVote(request) => format!("PreVote, last {}", request.last_log),
        Message::RequestVote(request) => {
            let leave = if request.transfer { ", with the leader's leave" } else { "" };
            format!("RequestVote, last {}{leave}", request.last_log)
        }
        Message::PreVoteReply(reply) => format!("PreVoteReply for {:?}: {}", reply.election, reply.granted),
        Message::RequestVoteReply(reply) => format!("RequestVoteReply for {:?}: {}", reply.election, reply.granted),
        Message::AppendEntries(a) => {
            format!("AppendEntries #{} after {}, commit {},{}", a.seq, a.prev_log, a.leader_commit, list(&a.entries))
        }
        Message::AppendAck(ack) => format!("AppendAck up to {}", ack.match_index),
        Message::AppendReject(r) => format!("AppendReject #{}, log to {}, runs {:?}", r.seq, r.last_index, r.runs),
        Message::Heartbeat(h) => format!("Heartbeat, commit {}, round {:?}", h.commit, h.round),
        Message::HeartbeatReply(r) => {
            format!("HeartbeatReply, round {}, received {}, match {}", r.round, r.received, r.match_index)
        }
        Message::TimeoutNow(request) => format!("TimeoutNow, last {}", request.last_log),
        Message::ReadIndex(request) => format!("ReadIndex {}", request.id),
        Message::ReadIndexReply(reply) => format!("ReadIndexReply {}, index {}", reply.id, reply.index),
        Message::Quiesce(quiesce) => format!("Quiesce, last {}", quiesce.last),
    };
    format!("{from:?}->{to:?} {term:?} {body}")
}

fn list(entries: &Entries) -> String {
    entries.iter().flat_map(|entry| [" ".to_owned(), entry.id().to_string()]).collect()
}
