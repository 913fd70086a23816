//! Peers that will have nothing to do with this node, and those that it will have nothing to do with itself: what is made of a refusal, and how often it is logged.

use std::collections::BTreeMap;

use quinn::ConnectionError;
use raft_core::NodeId;

use crate::error::CloseCode;

/// Longest text of another that is kept or logged, in characters: enough for two sentences.
const TEXT_LIMIT: usize = 300;
/// Refusals that are remembered so as not to be logged again. Whoever is among them holds a certificate of our authority.
const REMEMBERED: usize = 1024;

/// A peer has closed the connection because of who this node is.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) code: CloseCode,
    /// In the peer's words, made [harmless].
    pub(crate) reason: String,
}

impl Refusal {
    /// `None` when the connection has ended for any other reason.
    pub(crate) fn of(reason: &ConnectionError) -> Option<Refusal> {
        let ConnectionError::ApplicationClosed(close) = reason else { return None };
        let code = CloseCode::of(close.error_code.into_inner()).filter(|code| code.concerns_identity())?;
        Some(Refusal { code, reason: harmless(&String::from_utf8_lossy(&close.reason)) })
    }
}

/// What another has said, fit for a log or a terminal: short, and nothing in it that would be obeyed rather than shown.
pub(crate) fn harmless(text: &str) -> String {
    let shown = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let mut kept: String = text.chars().take(TEXT_LIMIT).map(shown).collect();
    if text.chars().nth(TEXT_LIMIT).is_some() {
        kept.push_str("...");
    }
    kept
}

/// Whom this endpoint has turned away, and why, by cluster and node: whoever is refused comes again and again, and is news only once.
#[derive(Debug, Default)]
pub(crate) struct TurnedAway(BTreeMap<(String, NodeId), CloseCode>);

impl TurnedAway {
    /// Whether that is news.
    pub(crate) fn note(&mut self, cluster: &str, node: NodeId, code: CloseCode) -> bool {
        let who = (cluster.to_owned(), node);
        if self.0.len() >= REMEMBERED && !self.0.contains_key(&who) {
            self.0.clear();
        }
        self.0.insert(who, code) != Some(code)
    }

    /// It has been let in.
    pub(crate) fn forget(&mut self, cluster: &str, node: NodeId) {
        self.0.remove(&(cluster.to_owned(), node));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quinn::{ApplicationClose, VarInt};

    use super::*;

    fn closed(code: u32, reason: &'static [u8]) -> ConnectionError {
        let close = ApplicationClose { error_code: VarInt::from_u32(code), reason: Bytes::from_static(reason) };
        ConnectionError::ApplicationClosed(close)
    }

    #[test]
    fn only_who_we_are_is_a_refusal() {
        let refusal = |code: CloseCode| Refusal::of(&closed(code as u32, b"because")).map(|refusal| refusal.code);
        for code in [CloseCode::Removed, CloseCode::WrongCluster, CloseCode::WrongNode, CloseCode::WrongIncarnation] {
            assert_eq!(refusal(code), Some(code));
        }
        for code in [CloseCode::Shutdown, CloseCode::Replaced, CloseCode::Malformed, CloseCode::WrongDirection] {
            assert_eq!(refusal(code), None, "{code:?}");
        }
        assert!(Refusal::of(&closed(9999, b"")).is_none() && Refusal::of(&ConnectionError::TimedOut).is_none());
    }

    #[test]
    fn what_others_say_is_short_and_only_shown() {
        let close = closed(CloseCode::WrongNode as u32, b"\x1b[2Jnode\n3 \xff\xe2\x80\xae`x`");
        assert_eq!(Refusal::of(&close).unwrap().reason, "?[2Jnode?3 ??`x`");
        let long = harmless(&"x".repeat(5000));
        assert_eq!((long.len(), long.ends_with("x...")), (TEXT_LIMIT + 3, true));
        assert_eq!(harmless(&"x".repeat(TEXT_LIMIT)).len(), TEXT_LIMIT);
    }

    #[test]
    fn a_refusal_is_news_once_for_each_reason_until_the_peer_is_let_in() {
        let mut turned = TurnedAway::default();
        let mut note = |node, code| turned.note("test", NodeId(node), code);
        assert!(note(3, CloseCode::WrongNode) && !note(3, CloseCode::WrongNode) && note(4, CloseCode::WrongNode));
        assert!(note(3, CloseCode::WrongIncarnation) && !note(3, CloseCode::WrongIncarnation));
        turned.forget("test", NodeId(3));
        assert!(turned.note("test", NodeId(3), CloseCode::WrongIncarnation));
        assert!(turned.note("other", NodeId(3), CloseCode::WrongIncarnation));
        for node in 0..2 * REMEMBERED as u64 {
            turned.note("test", NodeId(node), CloseCode::WrongNode);
        }
        assert!(turned.0.len() <= REMEMBERED);
    }
}
