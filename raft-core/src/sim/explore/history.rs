//! What must be remembered of the past to judge the present, and the judgement: Raft's promises over all servers (paper, Figure 3).

use super::world::EntryId;
use crate::types::{NodeId, Term};

/// What has happened so far. Part of the state: two states that differ only in this are different.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct History {
    /// Who led which term; ascending.
    pub(super) leaders: Vec<(Term, NodeId)>,
    /// Who voted for whom in which term; sorted.
    pub(super) votes: Vec<(Term, NodeId, NodeId)>,
    /// What was committed, from index 1 on, and the term of the server that did so first.
    pub(super) committed: Vec<(EntryId, Term)>,
    /// Reads without an answer: of whom, which, and how much was committed when it was asked for.
    pub(super) reads: Vec<(NodeId, u64, usize)>,
    /// Who votes by the newest membership that is committed (or will, once it is not joint any more).
    pub(super) voters: Vec<NodeId>,
    /// The change of the membership was begun.
    pub(super) changed: bool,
    pub(super) commands: u64,
    pub(super) reads_asked: u64,
    pub(super) crashes: u64,
    pub(super) compactions: u64,
    /// Who has died.
    pub(super) dead: Vec<NodeId>,
    /// Who is yet to hear that its link to whom is lost.
    pub(super) unheard: Vec<(NodeId, NodeId)>,
    /// How often somebody heard so without a reason.
    pub(super) resets: u64,
}

/// What the promises are about, of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct View {
    pub(super) id: NodeId,
    pub(super) term: Term,
    pub(super) leads: bool,
    /// On whom it relies while it sleeps.
    pub(super) asleep: Option<NodeId>,
    pub(super) commit: usize,
    /// What the state machine keeps durably: the entries whose effects are in it.
    pub(super) kept: Vec<EntryId>,
    /// The log in memory, and before it, what of it was forgotten.
    pub(super) log: Vec<EntryId>,
    /// The log on the disk, and before it, what of it was forgotten.
    pub(super) durable: Vec<EntryId>,
    /// Who votes by the memberships in the log in memory, and their places.
    pub(super) voters: Vec<(usize, Vec<NodeId>)>,
}

impl History {
    /// Election Safety: at most one leader a term.
    pub(super) fn led(&mut self, id: NodeId, term: Term) -> Result<(), String> {
        match self.leaders.binary_search_by_key(&term, |(term, _)| *term) {
            Ok(at) if self.leaders[at].1 == id => Ok(()),
            Ok(at) => Err(format!("election safety: {:?} and {id:?} both lead term {term}", self.leaders[at].1)),
            Err(at) => {
                self.leaders.insert(at, (term, id));
                Ok(())
            }
        }
    }

    /// One vote a term, whatever crashes.
    pub(super) fn voted(&mut self, id: NodeId, term: Term, candidate: NodeId) -> Result<(), String> {
        match self.votes.binary_search_by_key(&(term, id), |(term, id, _)| (*term, *id)) {
            Ok(at) if self.votes[at].2 == candidate => Ok(()),
            Ok(at) => {
                Err(format!("{id:?} votes for {candidate:?} in term {term}, and has voted for {:?}", self.votes[at].2))
            }
            Err(at) => {
                self.votes.insert(at, (term, id, candidate));
                Ok(())
            }
        }
    }

    /// A server has these entries, and says that the first so many of them are committed.
    pub(super) fn commits(&mut self, view: &View) {
        for entry in view.log.iter().take(view.commit).skip(self.committed.len()) {
            self.committed.push((*entry, view.term));
        }
        if let Some((_, voters)) = view.voters.iter().rfind(|(at, _)| *at <= view.commit)
            && view.commit == self.committed.len()
        {
            self.voters.clone_from(voters);
        }
    }

    /// A read that was confirmed sees what was committed when it was asked for (thesis, section 6.4).
    pub(super) fn read_ready(&mut self, id: NodeId, read: u64, index: usize) -> Result<(), String> {
        let Some(at) = self.reads.iter().position(|(of, asked, _)| (*of, *asked) == (id, read)) else {
            return Err(format!("{id:?} answers read {read}, which was not asked or was answered before"));
        };
        let (.., needed) = self.reads.remove(at);
        if index < needed {
            return Err(format!("stale read: {id:?} reads at index {index}, and {needed} was committed when it asked"));
        }
        Ok(())
    }

    /// All others are yet to hear of it.
    pub(super) fn died(&mut self, id: NodeId, servers: usize) {
        self.dead.push(id);
        let living = (1..=servers as u64).map(NodeId).filter(|other| !self.dead.contains(other));
        self.unheard.retain(|(who, _)| *who != id);
        self.unheard.extend(living.map(|other| (other, id)));
        self.unheard.sort_unstable();
    }

    /// A server has heard that its link to another is lost.
    pub(super) fn link_reset(&mut self, id: NodeId, peer: NodeId) {
        match self.unheard.iter().position(|unheard| *unheard == (id, peer)) {
            Some(at) => drop(self.unheard.remove(at)),
            None => self.resets += 1,
        }
    }

    /// A read ended without an answer.
    pub(super) fn read_lost(&mut self, id: NodeId, read: Option<u64>) {
        self.reads.retain(|(of, asked, _)| *of != id || read.is_some_and(|read| read != *asked));
    }
}

/// All that can be seen in one state: Log Matching, State Machine Safety, Leader Completeness, and durability of what is committed.
pub(super) fn judge(history: &History, views: &[&View]) -> Result<(), String> {
    for (i, a) in views.iter().enumerate() {
        for b in &views[..i] {
            log_matching(a, b)?;
        }
        if !history.committed.iter().map(|(entry, _)| entry).take(a.kept.len()).eq(&a.kept) {
            return Err(format!("snapshots: {:?} keeps {:?}, and not all of that was committed", a.id, a.kept));
        }
        let committed = a.log.iter().take(a.commit).zip(&history.committed);
        if let Some((own, (first, _))) = committed.into_iter().find(|(own, (first, _))| *own != first) {
            return Err(format!("state machine safety: {:?} commits {own:?}, and {first:?} was committed there", a.id));
        }
    }
    somebody_would_wake(history, views)?;
    for (at, (entry, term)) in history.committed.iter().enumerate() {
        if let Some(leader) = views.iter().find(|v| v.leads && v.term > *term && v.log.get(at) != Some(entry)) {
            return Err(format!(
                "leader completeness: {:?} leads term {} without {entry:?}, committed in term {term}",
                leader.id, leader.term
            ));
        }
        let voters = views.iter().filter(|v| history.voters.contains(&v.id));
        let copies = voters.filter(|v| v.durable.get(at) == Some(entry)).count();
        if copies <= history.voters.len() / 2 {
            return Err(format!("durability: {entry:?} is committed, and on the disks of {copies} servers only"));
        }
    }
    Ok(())
}

/// When all who live sleep, one of them leads all the others, unless somebody is yet to hear of a lost link: else nobody would ever miss the leader.
fn somebody_would_wake(history: &History, views: &[&View]) -> Result<(), String> {
    let mut living = views.iter().filter(|view| !history.dead.contains(&view.id));
    if !history.unheard.is_empty() || !living.clone().all(|view| view.asleep.is_some()) {
        return Ok(());
    }
    let leader = living.clone().find(|view| view.leads);
    match living.find(|view| leader.map(|leader| (leader.id, leader.term)) != view.asleep.zip(Some(view.term))) {
        Some(view) => Err(format!("sleep: {:?} relies on {:?}, and nobody is awake", view.id, view.asleep)),
        None => Ok(()),
    }
}

/// Logs that share an entry share everything before it.
fn log_matching(a: &View, b: &View) -> Result<(), String> {
    let shared = a.log.iter().zip(&b.log).rposition(|(x, y)| x.position() == y.position());
    match shared {
        Some(last) if a.log[..=last] != b.log[..=last] => {
            Err(format!("log matching: {:?} has {:?}, {:?} has {:?}", a.id, a.log, b.id, b.log))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Terms of a log, and a mark that tells entries of one term and index apart.
    fn log(entries: &[(u64, u8)]) -> Vec<EntryId> {
        (1..).zip(entries).map(|(index, (term, mark))| EntryId { index, term: *term as u8, content: *mark }).collect()
    }

    fn view(id: u64, term: u64, commit: usize, entries: &[(u64, u8)]) -> View {
        let log = log(entries);
        View {
            id: NodeId(id),
            term: Term(term),
            leads: false,
            asleep: None,
            commit,
            kept: Vec::new(),
            durable: log.clone(),
            log,
            voters: Vec::new(),
        }
    }

    fn verdict(history: &History, views: &[View]) -> String {
        judge(history, &views.iter().collect::<Vec<_>>()).err().unwrap_or_default()
    }

    #[test]
    fn every_promise_can_be_seen_to_break() {
        let mut history = History { voters: [1, 2, 3].map(NodeId).to_vec(), ..History::default() };
        let good = [view(1, 2, 2, &[(1, 0), (2, 0)]), view(2, 2, 1, &[(1, 0), (2, 0)]), view(3, 1, 0, &[])];
        history.commits(&good[0]);
        assert_eq!((history.committed.len(), verdict(&history, &good)), (2, String::new()));

        let differs = [good[0].clone(), view(2, 2, 0, &[(1, 7), (2, 0)]), good[2].clone()];
        assert!(verdict(&history, &differs).starts_with("log matching"));

        let other = [good[0].clone(), good[1].clone(), view(3, 3, 2, &[(1, 0), (3, 0)])];
        assert!(verdict(&history, &other).starts_with("state machine safety"));

        let leader = View { leads: true, ..view(3, 3, 1, &[(1, 0), (3, 0)]) };
        assert!(verdict(&history, &[good[0].clone(), good[1].clone(), leader]).starts_with("leader completeness"));

        let kept = View { kept: log(&[(1, 0), (1, 0)]), ..good[2].clone() };
        assert!(verdict(&history, &[good[0].clone(), good[1].clone(), kept]).starts_with("snapshots"));
        let kept = View { kept: log(&[(1, 0), (2, 0), (2, 0)]), ..good[2].clone() };
        assert!(verdict(&history, &[good[0].clone(), good[1].clone(), kept]).starts_with("snapshots"));

        let lost = View { durable: log(&[(1, 0)]), ..good[1].clone() };
        assert!(verdict(&history, &[good[0].clone(), lost, good[2].clone()]).starts_with("durability"));
    }

    #[test]
    fn nobody_may_sleep_for_ever_over_a_dead_leader() {
        let relying_on = |leader| View { asleep: Some(NodeId(leader)), ..view(2, 1, 0, &[]) };
        let leader = View { leads: true, asleep: Some(NodeId(1)), ..view(1, 1, 0, &[]) };
        let mut history = History::default();
        assert_eq!(verdict(&history, &[leader.clone(), relying_on(1)]), "");
        assert!(verdict(&history, &[leader.clone(), relying_on(3)]).starts_with("sleep"));
        history.died(NodeId(1), 2);
        assert_eq!(verdict(&history, &[leader.clone(), relying_on(1)]), "", "it is yet to hear of it");
        history.link_reset(NodeId(2), NodeId(1));
        assert!(verdict(&history, &[leader.clone(), relying_on(1)]).starts_with("sleep"));
        assert_eq!(verdict(&history, &[leader, view(2, 1, 0, &[])]), "", "it is awake");
    }

    #[test]
    fn nobody_votes_or_wins_twice_in_a_term() {
        let mut history = History::default();
        let (a, b) = (NodeId(1), NodeId(2));
        history.voted(a, Term(1), a).unwrap();
        history.voted(a, Term(2), b).unwrap();
        history.voted(a, Term(2), b).unwrap();
        assert!(history.voted(a, Term(1), b).is_err());
        history.led(a, Term(1)).unwrap();
        history.led(a, Term(1)).unwrap();
        history.led(b, Term(2)).unwrap();
        assert!(history.led(b, Term(1)).is_err());
    }

    #[test]
    fn a_read_must_see_what_was_committed_when_it_was_asked() {
        let mut history = History { reads: vec![(NodeId(1), 1, 2), (NodeId(1), 2, 0)], ..History::default() };
        assert!(history.clone().read_ready(NodeId(1), 1, 1).is_err());
        assert!(history.clone().read_ready(NodeId(2), 1, 9).is_err(), "never asked");
        history.read_ready(NodeId(1), 1, 2).unwrap();
        history.read_lost(NodeId(1), None);
        assert_eq!(history.reads, []);
    }
}
