//! What arrives on one stream between nodes: a preface, and then messages that keep to it. Nothing here waits or touches a socket.

use bytes::Bytes;
use raft_core::{Envelope, GroupId, NodeId};

use crate::codec::{self, Channel, Decoded, PREFACE_LIMIT, Preface};
use crate::config::{Limits, Unwelcome};
use crate::frame::{Decoder, FrameError};

/// What a peer did to have its connection cut off.
#[derive(Debug)]
pub(crate) enum Violation {
    Frame(FrameError),
    /// A message that names somebody else as its sender or receiver.
    Misaddressed,
    /// Not the node that is meant by this id, one with another data directory; or nobody knows.
    Unwelcome(Unwelcome),
    /// No preface at the beginning, or one where there must be none, or a second stream for a channel, or a
    /// message on the wrong channel.
    Stream(&'static str),
}

impl From<FrameError> for Violation {
    fn from(error: FrameError) -> Self {
        Violation::Frame(error)
    }
}

/// All messages that arrived together, by group.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    pub(crate) groups: Vec<(GroupId, Vec<Envelope>)>,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
}

impl Batches {
    fn push(&mut self, group: GroupId, envelope: Envelope) {
        match self.groups.iter_mut().find(|(other, _)| *other == group) {
            Some((_, messages)) => messages.push(envelope),
            None => self.groups.push((group, vec![envelope])),
        }
    }
}

/// Reads one stream from `peer` to `node`.
#[derive(Debug)]
pub(crate) struct StreamReader {
    peer: NodeId,
    node: NodeId,
    limits: Limits,
    decoder: Decoder,
    /// Known once the preface has arrived.
    channel: Option<Channel>,
}

impl StreamReader {
    pub(crate) fn new(peer: NodeId, node: NodeId, limits: Limits) -> Self {
        StreamReader { peer, node, limits, decoder: Decoder::new(PREFACE_LIMIT), channel: None }
    }

    /// What the stream is for, once its preface has said so.
    pub(crate) fn channel(&self) -> Option<Channel> {
        self.channel
    }

    /// Takes the next piece of the stream and adds the messages that it completes to `batches`. `claim` is asked whether what
    /// the preface says is acceptable. After an error the connection is to be cut off.
    pub(crate) fn push(
        &mut self,
        piece: Bytes,
        batches: &mut Batches,
        mut claim: impl FnMut(Preface) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        batches.bytes += piece.len() as u64;
        self.decoder.push(piece);
        while let Some(frame) = self.decoder.next_frame()? {
            match (codec::decode(&frame)?, self.channel) {
                (Decoded::Preface(preface), None) => self.open(preface, &mut claim)?,
                (Decoded::Message(group, envelope), Some(channel)) => {
                    if envelope.from != self.peer || envelope.to != self.node {
                        return Err(Violation::Misaddressed);
                    }
                    if Channel::of(&envelope.body) != channel {
                        return Err(Violation::Stream("a message on the wrong stream"));
                    }
                    batches.frames += 1;
                    batches.push(group, envelope);
                }
                (Decoded::Preface(_), Some(_)) => return Err(Violation::Stream("a second preface")),
                (Decoded::Message(..), None) => return Err(Violation::Stream("a stream without a preface")),
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        preface: Preface,
        claim: &mut impl FnMut(Preface) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        if preface.from != self.peer || preface.to != self.node {
            return Err(Violation::Misaddressed);
        }
        claim(preface)?;
        self.decoder.set_limit(match preface.channel {
            Channel::Control => self.limits.max_control_frame,
            Channel::Append => self.limits.max_append_frame,
        });
        self.channel = Some(preface.channel);
        Ok(())
    }
}
