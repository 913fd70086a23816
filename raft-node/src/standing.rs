//! How the other nodes take this one: who refuses it, and whether it may take part in a group although it remembers nothing.
//!
//! A founder whose disk is empty is either new, like its cluster, or has lost what it promised. It cannot tell, but the others can. So it neither stands nor votes before they
//! were asked, and never when one of them says that it knows this node with another data directory: two who have both forgotten would else elect each other, beside those
//! who have everything.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use raft_core::{Instant, LogIndex, NodeId, Raft as Core, Term};
use raft_net::CloseCode;
use tokio::sync::watch;

/// Why a node will have nothing to do with this one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// What is wrong with this node.
    pub code: CloseCode,
    /// In the other's words, for people: a few hundred printable ASCII characters at most.
    pub reason: String,
}

/// How the other nodes take this one. See [`Raft::standing`](crate::Raft::standing).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Who refuses this node, until a connection to that one stands again.
    pub refusals: BTreeMap<NodeId, Refusal>,
    /// The first that knew this node with another data directory, if there was one since the start. Of the groups that are open then, this node takes part in none of which it
    /// remembers nothing and should be a founder, until it is started again: remove it, and start it with an empty directory to join. Nor does it in those that are opened
    /// later, while one of those who said so has not let it in.
    pub barred: Option<(NodeId, Refusal)>,
}

/// Whether this node takes part in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It does.
    Free,
    /// It asks these first, which are the other founders. Until then the core is told nothing: no message, no request, no time.
    Asks { others: Vec<NodeId>, until: Instant },
    /// It does not: it has forgotten what it promised.
    Barred,
}

impl Entry {
    pub(crate) fn is_free(&self) -> bool {
        matches!(self, Entry::Free)
    }

    /// When a group with this deadline of its own is to be looked at.
    pub(crate) fn deadline(&self, own: impl FnOnce() -> Instant) -> Instant {
        match self {
            Entry::Free => own(),
            Entry::Asks { until, .. } => *until,
            Entry::Barred => Instant::NEVER,
        }
    }
}

/// What is known of the others.
#[derive(Debug)]
pub(crate) struct Reception {
    published: watch::Sender<Standing>,
    /// Who has let this node in since its start.
    accepted: BTreeSet<NodeId>,
    /// Who knows it with another data directory, and has not let it in since.
    estranged: BTreeSet<NodeId>,
    /// How long each of the others is waited for, when nothing was on the disk at the start.
    patience: Option<Duration>,
    /// Since when each has been waited for.
    asked: BTreeMap<NodeId, Instant>,
}

impl Reception {
    /// `patience`: how long to wait for each of the others before this node takes part in something that it does not remember; `None` where something was on the disk, or
    /// whoever brought transport and storage vouches for it.
    pub(crate) fn new(patience: Option<Duration>) -> Self {
        let published = watch::Sender::new(Standing::default());
        let (accepted, estranged) = (BTreeSet::new(), BTreeSet::new());
        Reception { published, accepted, estranged, patience, asked: BTreeMap::new() }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Standing> {
        self.published.subscribe()
    }

    pub(crate) fn accepted(&mut self, peer: NodeId) {
        self.accepted.insert(peer);
        self.estranged.remove(&peer);
        self.published.send_if_modified(|standing| standing.refusals.remove(&peer).is_some());
    }

    /// Whether this node is barred from what it does not remember.
    pub(crate) fn refused(&mut self, peer: NodeId, code: CloseCode, reason: String) -> bool {
        self.accepted.remove(&peer);
        // That this node is no member, as others may say, is usual as long as they have not opened the group.
        let is_another = code == CloseCode::WrongIncarnation;
        let refusal = Refusal { code, reason };
        if is_another {
            self.estranged.insert(peer);
        }
        self.published.send_modify(|standing| {
            if is_another && standing.barred.is_none() {
                standing.barred = Some((peer, refusal.clone()));
            }
            standing.refusals.insert(peer, refusal);
        });
        is_another
    }

    /// How a group begins that is opened now.
    pub(crate) fn entry(&mut self, now: Instant, core: &Core) -> Entry {
        if !depends_on_others(core) {
            return Entry::Free;
        }
        if !self.estranged.is_empty() {
            return Entry::Barred;
        }
        let (others, Some(patience)) = (others(core), self.patience) else { return Entry::Free };
        let until = others.iter().filter(|id| !self.accepted.contains(id));
        let until = until.map(|id| *self.asked.entry(*id).or_insert(now) + patience).max();
        until.map_or(Entry::Free, |until| Entry::Asks { others, until })
    }

    /// Whether a group that waits need not wait any longer. Its election timeout begins then.
    pub(crate) fn frees(&self, now: Instant, entry: &mut Entry) -> bool {
        let Entry::Asks { others, until } = entry else { return false };
        let is_over = now >= *until || others.iter().all(|id| self.accepted.contains(id));
        if is_over {
            *entry = Entry::Free;
        }
        is_over
    }
}

/// Whether nothing was ever written in a group with which this node began, together with others (whoever joins knows of no members then): whether it has forgotten
/// something, only they can tell.
pub(crate) fn depends_on_others(core: &Core) -> bool {
    let status = core.status();
    status.current_term == Term(0) && status.last_log.index == LogIndex::ZERO && !others(core).is_empty()
}

/// The other members.
fn others(core: &Core) -> Vec<NodeId> {
    let own = core.config().id;
    core.membership().1.members().into_iter().filter(|id| *id != own).collect()
}

#[cfg(test)]
mod tests {
    use raft_core::{Config, HardState, Membership, Recovered};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn at(millis: u64) -> Instant {
        Instant::from_millis(millis)
    }

    fn core(ids: &[u64], term: u64) -> Core {
        let mut recovered = Recovered::fresh(Membership::of_voters(ids.iter().map(|id| NodeId(*id))));
        recovered.hard_state = HardState { current_term: Term(term), voted_for: None };
        Core::new(Config::new(NodeId(1)), recovered, at(0)).unwrap()
    }

    fn refuse(reception: &mut Reception, peer: u64, code: CloseCode) -> bool {
        reception.refused(NodeId(peer), code, "because".into())
    }

    #[test]
    fn who_remembers_nothing_asks_everybody_or_waits_for_a_while() {
        let mut reception = Reception::new(Some(PATIENCE));
        let mut entry = reception.entry(at(100), &core(&[1, 2, 3], 0));
        assert_eq!(entry, Entry::Asks { others: vec![NodeId(2), NodeId(3)], until: at(5100) });
        assert_eq!(entry.deadline(|| at(1)), at(5100), "its own time does not run");
        let mut patient = entry.clone();
        reception.accepted(NodeId(2));
        assert!(!reception.frees(at(200), &mut entry) && !entry.is_free(), "node 3 has not been heard");
        reception.accepted(NodeId(3));
        assert!(reception.frees(at(200), &mut entry) && entry.is_free());
        assert_eq!(entry.deadline(|| at(900)), at(900));
        assert!(!reception.frees(at(200), &mut entry), "once is enough");
        // The next group need not ask those who have answered, nor wait for the others as long again.
        assert!(reception.entry(at(300), &core(&[1, 2, 3], 0)).is_free());
        let mut next = reception.entry(at(300), &core(&[1, 2, 4], 0));
        assert_eq!(next.deadline(|| at(1)), at(5300));
        assert_eq!(reception.entry(at(400), &core(&[1, 4], 0)).deadline(|| at(1)), at(5300));
        assert!(reception.frees(at(5300), &mut next), "node 4 was given its time");
        assert!(Reception::new(Some(PATIENCE)).frees(at(5100), &mut patient));
    }

    #[test]
    fn who_remembers_something_or_is_alone_or_joins_need_not_ask() {
        let mut reception = Reception::new(Some(PATIENCE));
        for core in [core(&[1, 2, 3], 1), core(&[1], 0), core(&[], 0)] {
            assert!(reception.entry(at(0), &core).is_free());
        }
        assert!(Reception::new(None).entry(at(0), &core(&[1, 2, 3], 0)).is_free(), "there was something on the disk");
    }

    #[test]
    fn who_is_known_as_another_is_barred_until_it_is_started_again() {
        let code = CloseCode::WrongIncarnation;
        // Also where something else was on the disk.
        let mut reception = Reception::new(None);
        let standing = reception.watch();
        assert!(refuse(&mut reception, 3, code) && refuse(&mut reception, 2, code));
        assert_eq!(reception.entry(at(0), &core(&[1, 2, 3], 0)), Entry::Barred);
        assert!(reception.entry(at(0), &core(&[1], 0)).is_free(), "nobody else is concerned");
        reception.accepted(NodeId(3));
        assert_eq!(reception.entry(at(0), &core(&[1, 2, 3], 0)), Entry::Barred, "node 2 has not changed its mind");
        refuse(&mut reception, 3, code);
        assert_eq!(standing.borrow().refusals.keys().copied().collect::<Vec<_>>(), [NodeId(2), NodeId(3)]);
        for peer in [2, 3] {
            reception.accepted(NodeId(peer));
        }
        assert!(standing.borrow().refusals.is_empty());
        assert_eq!(
            standing.borrow().barred.as_ref().map(|(peer, _)| *peer),
            Some(NodeId(3)),
            "those that it met are not freed"
        );
        assert!(reception.entry(at(0), &core(&[1, 2, 3], 0)).is_free(), "it was added again");
        assert_eq!(Entry::Barred.deadline(|| at(1)), Instant::NEVER);
        assert!(reception.entry(at(0), &core(&[1, 2, 3], 1)).is_free(), "there it remembers something");
        let mut reception = Reception::new(None);
        assert!(!refuse(&mut reception, 3, CloseCode::WrongNode));
        assert!(reception.entry(at(0), &core(&[1, 2, 3], 0)).is_free(), "the other may not have opened the group");
    }
}
