//! Messages on their way, and how a script names some of them.

use std::collections::BTreeSet;

use raft_core::{Envelope, NodeId, Term};

use super::show;

/// A message on its way.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) envelope: Envelope,
    /// It does not arrive before it is released.
    pub(super) held: bool,
}

/// Which messages a command is about. Empty means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    from: Option<NodeId>,
    to: Option<NodeId>,
    kinds: BTreeSet<&'static str>,
    term: Option<Term>,
    /// Only this one of those that match otherwise, from 1 on.
    nth: Option<usize>,
}

impl Filter {
    /// Reads `1>2`, `*>2`, `1>*`, names of kinds (any of them), `t3` and `#2`.
    ///
    /// # Errors
    /// A word is none of these.
    pub(super) fn parse(words: &[&str]) -> Result<Filter, String> {
        let mut filter = Filter::default();
        for word in words {
            if let Some((from, to)) = word.split_once('>') {
                (filter.from, filter.to) = (end(from)?, end(to)?);
            } else if let Some(kind) = show::KINDS.iter().find(|kind| *kind == word) {
                filter.kinds.insert(kind);
            } else if let Some(term) = word.strip_prefix('t').and_then(|term| term.parse().ok()) {
                filter.term = Some(Term(term));
            } else if let Some(nth) = word.strip_prefix('#').and_then(|nth| nth.parse().ok()).filter(|nth| *nth > 0) {
                filter.nth = Some(nth);
            } else {
                return Err(format!(
                    "`{word}` names no messages: use 1>2, *>2, a kind ({}), t3, #2",
                    show::KINDS.join(", ")
                ));
            }
        }
        Ok(filter)
    }

    fn matches(&self, envelope: &Envelope) -> bool {
        self.from.is_none_or(|from| from == envelope.from)
            && self.to.is_none_or(|to| to == envelope.to)
            && self.term.is_none_or(|term| term == envelope.term)
            && (self.kinds.is_empty() || self.kinds.contains(show::kind(&envelope.body)))
    }
}

/// One end of `1>2`.
fn end(word: &str) -> Result<Option<NodeId>, String> {
    match word {
        "*" => Ok(None),
        _ => word.parse().map(|id| Some(NodeId(id))).map_err(|_| format!("`{word}` is no server")),
    }
}

/// All messages on their way, oldest first, and the links that let none through.
#[derive(Debug, Default)]
pub(super) struct Wire {
    packets: Vec<Packet>,
    cut: BTreeSet<(NodeId, NodeId)>,
}

impl Wire {
    /// Takes a message; `false` when the link is cut, and the message lost.
    pub(super) fn send(&mut self, envelope: Envelope) -> bool {
        let open = !self.cut.contains(&(envelope.from, envelope.to));
        if open {
            self.packets.push(Packet { envelope, held: false });
        }
        open
    }

    /// From now on messages are lost (or are not) in this direction.
    pub(super) fn set_cut(&mut self, from: NodeId, to: NodeId, cut: bool) {
        if cut {
            self.cut.insert((from, to));
        } else {
            self.cut.remove(&(from, to));
        }
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn packets(&self) -> &[Packet] {
        &self.packets
    }

    /// Positions of the messages that the filter names, held ones only or others only.
    fn find(&self, filter: &Filter, held: bool) -> Vec<usize> {
        let all = self.packets.iter().enumerate();
        let found = all.filter(|(_, packet)| packet.held == held && filter.matches(&packet.envelope)).map(|(at, _)| at);
        match filter.nth {
            Some(nth) => found.skip(nth - 1).take(1).collect(),
            None => found.collect(),
        }
    }

    /// Takes messages off the wire.
    pub(super) fn take(&mut self, filter: &Filter) -> Vec<Envelope> {
        let found = self.find(filter, false);
        let mut at = 0..;
        self.packets.extract_if(.., |_| at.next().is_some_and(|at| found.contains(&at))).map(|p| p.envelope).collect()
    }

    /// Takes the oldest message off the wire that goes from one of these servers to another of them.
    pub(super) fn take_first(&mut self, among: &[NodeId]) -> Option<Envelope> {
        let inside = |p: &Packet| !p.held && among.contains(&p.envelope.from) && among.contains(&p.envelope.to);
        let at = self.packets.iter().position(inside)?;
        Some(self.packets.remove(at).envelope)
    }

    /// Copies messages; the copies are the newest on the wire.
    pub(super) fn duplicate(&mut self, filter: &Filter) -> Vec<Envelope> {
        let copies: Vec<Packet> = self.find(filter, false).into_iter().map(|at| self.packets[at].clone()).collect();
        self.packets.extend(copies.iter().cloned());
        copies.into_iter().map(|packet| packet.envelope).collect()
    }

    /// Holds messages back, or lets those go that were held back.
    pub(super) fn hold(&mut self, filter: &Filter, held: bool) -> Vec<Envelope> {
        let found = self.find(filter, !held);
        found.iter().for_each(|at| self.packets[*at].held = held);
        found.into_iter().map(|at| self.packets[at].envelope.clone()).collect()
    }
}
