//! What a peer sends on its streams, up to the messages that reach the core.

use bytes::{Bytes, BytesMut};
use raft_core::fuzzing::{Choices, with_checksums};
use raft_core::{GroupId, NodeId};

use crate::codec::{self, Channel, Preface};
use crate::config::Limits;
use crate::frame::{FrameSink, LENGTH_BYTES};
use crate::stream::{Batches, StreamReader, Violation};

const PEER: NodeId = NodeId(2);
const ME: NodeId = NodeId(1);

/// Two streams of one connection. Whatever passes names the peer as its sender, is meant for this node, and travels on its
/// channel's one stream.
pub fn streams(data: &[u8]) -> bool {
    let mut choices = Choices::new(data);
    let limits = Limits { max_append_frame: 400, max_control_frame: 100, ..Limits::default() };
    let mut readers = [(); 2].map(|()| StreamReader::new(PEER, ME, limits.clone()));
    let mut claimed = [false; 2];
    let mut arrived = 0;
    while !choices.is_over() {
        let which = choices.pick(2);
        let bytes = piece(&mut choices);
        let before = readers[which].channel();
        let mut batches = Batches::default();
        let outcome = readers[which].push(bytes.clone(), &mut batches, |preface| {
            let taken = std::mem::replace(&mut claimed[preface.channel.index()], true);
            if taken { Err(Violation::Stream("a second stream for one channel")) } else { Ok(()) }
        });
        assert_eq!(batches.bytes, bytes.len() as u64);
        arrived += check(&batches, readers[which].channel());
        assert!(before.is_none() || readers[which].channel() == before, "a stream changes its channel");
        let channels = [readers[0].channel(), readers[1].channel()];
        assert!(channels[0] != channels[1] || channels[0].is_none(), "two streams for one channel");
        if outcome.is_err() {
            // The connection is cut off.
            break;
        }
    }
    arrived > 0
}

/// Counts the messages.
fn check(batches: &Batches, channel: Option<Channel>) -> u64 {
    let mut count = 0;
    for (group, messages) in &batches.groups {
        assert!(!messages.is_empty(), "a batch without a message, for {group}");
        assert_eq!(batches.groups.iter().filter(|(other, _)| other == group).count(), 1, "two batches for {group}");
        for envelope in messages {
            assert_eq!((envelope.from, envelope.to), (PEER, ME), "misaddressed: {envelope:?}");
            assert_eq!(Some(Channel::of(&envelope.body)), channel, "on the wrong stream: {envelope:?}");
            count += 1;
        }
    }
    assert_eq!(batches.frames, count);
    count
}

/// A preface, a frame that is mostly right, or anything; sometimes only the beginning of it.
fn piece(choices: &mut Choices<'_>) -> Bytes {
    let mut piece = match choices.between(0, 7) {
        0 => preface(choices),
        1 => choices.bytes(60).to_vec(),
        _ => frame(choices),
    };
    if choices.chance(1, 12) {
        piece.truncate(choices.pick(piece.len() + 1));
    }
    piece.into()
}

fn preface(choices: &mut Choices<'_>) -> Vec<u8> {
    let channel = choices.one_of([Channel::Control, Channel::Append]);
    let mut node = |right| if choices.chance(1, 16) { NodeId(choices.number(1)) } else { right };
    let mut sink = FrameSink::new();
    codec::encode_preface(Preface { channel, from: node(PEER), to: node(ME), incarnation: 7 }, &mut sink);
    let mut chunks = Vec::new();
    sink.take_into(&mut chunks);
    chunks.concat()
}

/// Length, kind, group and address are mostly right; the body is the fuzzer's.
fn frame(choices: &mut Choices<'_>) -> Vec<u8> {
    let kind = choices.between(0, 14) as u8;
    let group = GroupId(choices.between(1, 2));
    let mut body = BytesMut::from(&[kind][..]);
    body.extend_from_slice(&group.0.to_le_bytes());
    for right in [PEER, ME] {
        let id = if choices.chance(1, 32) { NodeId(choices.between(0, 3)) } else { right };
        body.extend_from_slice(&[id.0 as u8]);
    }
    body.extend_from_slice(choices.bytes(120));
    let mut body = body.freeze();
    if let Some((first, at)) = codec::entries_in(&body) {
        body = [&body[..at], &with_checksums(first, &body[at..])].concat().into();
    }
    let mut frame = Vec::with_capacity(LENGTH_BYTES + body.len());
    frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
    frame.extend_from_slice(&body);
    frame
}
