//! What can go wrong for a client.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use raft_core::NodeId;

use crate::kv::{DecodeError, Refusal};

/// Why a request of a [`Client`](super::Client) failed, and whether it may have had an effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No node carried the request out in time. It definitely had no effect.
    #[error("{reason} within {:.1} s, nothing was done; {nodes}", waited.as_secs_f64())]
    Timeout {
        /// How long was tried.
        waited: Duration,
        /// What was missing.
        reason: Missing,
        /// What each node said last.
        nodes: Complaints,
    },
    /// The request was sent, but its outcome is not known: it may have taken effect, may still take effect, or never will.
    /// Read before you write again.
    #[error("the outcome is unknown, the write may or may not take effect: {why}")]
    OutcomeUnknown {
        /// Why there was no reply.
        why: String,
    },
    /// Larger than the node accepts. Nothing happened.
    #[error("{size} bytes are over the limit of {limit}")]
    TooLarge {
        /// Size, in bytes.
        size: u64,
        /// Limit, in bytes.
        limit: u64,
    },
    /// The store refuses the command or query; repeating it is of no use.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The node does not understand the request. Nothing happened.
    #[error("the node refuses the request: {0}")]
    BadRequest(String),
    /// The leader refuses a change of the membership. Nothing happened.
    #[error("refused: {why}")]
    ChangeRefused {
        /// Whether it may be accepted later, without anybody doing anything.
        later: bool,
        /// Why.
        why: String,
    },
    /// The node answered with something that this version does not understand.
    #[error("the node's answer makes no sense: {0}")]
    BadAnswer(String),
    /// The client was given settings with which it cannot work.
    #[error("{0}")]
    Config(String),
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Error::BadAnswer(error.to_string())
    }
}

/// What a request waited for in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No node could be reached at all.
    Nodes,
    /// Nodes answered, but none of them leads: there may be no majority.
    Leader,
    /// Room: the node that would have carried it out had too much in progress, the last time it was asked.
    Room {
        /// What that node said: when to try again, about. It may be beyond what [`ClientConfig::timeout`](super::ClientConfig::timeout) left, so that the client
        /// gave up at once.
        retry_after: Duration,
    },
    /// A node took the request, but did not get to it in time: it is busy, stands still, or leads without a majority.
    Answer,
    /// The one node that was to be asked could not be reached, or did not answer.
    Node,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Missing::Room { retry_after } => {
                return write!(f, "the cluster had too much in progress (retry in {} ms)", retry_after.as_millis());
            }
            Missing::Nodes => "no node could be reached",
            Missing::Leader => "no leader was found (is there a majority of nodes?)",
            Missing::Answer => "no answer came (is there a majority of nodes?)",
            Missing::Node => "the node did not answer",
        })
    }
}

/// What each node said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Complaints(pub BTreeMap<NodeId, String>);

impl fmt::Display for Complaints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no node was asked");
        }
        for (i, (node, said)) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}node {node}: {said}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_says_what_was_missing() {
        let nodes = Complaints([(NodeId(1), "does not lead".into()), (NodeId(2), "unreachable".into())].into());
        let error = Error::Timeout { waited: Duration::from_millis(1500), reason: Missing::Leader, nodes };
        assert_eq!(
            error.to_string(),
            "no leader was found (is there a majority of nodes?) within 1.5 s, nothing was done; \
             node 1: does not lead; node 2: unreachable"
        );
    }

    #[test]
    fn who_was_refused_for_lack_of_room_is_told_when_to_come_again() {
        let nodes = Complaints([(NodeId(1), "is busy".into())].into());
        let reason = Missing::Room { retry_after: Duration::from_millis(250) };
        let error = Error::Timeout { waited: Duration::from_millis(300), reason, nodes };
        assert_eq!(
            error.to_string(),
            "the cluster had too much in progress (retry in 250 ms) within 0.3 s, nothing was done; node 1: is busy"
        );
    }
}
