//! All servers together. Whatever a state is made of is kept once and has a number, so that a state is a handful of numbers, and what a
//! server's core does with one event is computed once, however many states of the whole need it.

use std::hash::{BuildHasherDefault, DefaultHasher};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::event::{Event, MessageId, Sent};
use super::history::{History, View, judge};
use super::server::{Effects, Server};
use super::settings::Settings;
use super::situations::{Situation, Situations};
use crate::entries::Segment;
use crate::io::ReadOutcome;
use crate::message::{Envelope, Message};
use crate::sim::disk::Image;
use crate::status::Role;
use crate::types::{NodeId, Term};

/// Not the standard one only in that its keys are no secret: same numbers, same order of states, in every run.
#[expect(clippy::disallowed_types, reason = "looked into, never iterated over")]
pub(super) type Map<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// An entry of a log, small enough to be compared by the million. Contents are numbered.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct EntryId {
    pub(super) index: u8,
    pub(super) term: u8,
    pub(super) content: u8,
}

impl EntryId {
    /// What makes it unique, if the protocol is right.
    pub(super) fn position(self) -> (u8, u8) {
        (self.index, self.term)
    }
}

impl std::fmt::Debug for EntryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.index, self.term)
    }
}

/// What an event does to a server in a certain state.
#[derive(Clone, Debug)]
pub(super) enum Transition {
    /// Nothing at all.
    Nothing,
    /// It leads beyond the bounds.
    Beyond,
    /// The server's next state, and the messages that it sends, ascending.
    To { server: u32, messages: Box<[MessageId]>, news: Option<Box<News>> },
}

/// What a step adds to the history.
#[derive(Clone, Debug, Default)]
pub(super) struct News {
    led: Option<Term>,
    votes: Vec<(Term, NodeId)>,
    /// The commit index moved.
    commits: bool,
    read_asked: Option<u64>,
    reads: Vec<ReadOutcome>,
}

/// A state in words of 32 bits: `servers` states of servers, the history, and the messages on their way, ascending.
pub(super) type Words = Vec<u32>;

/// Numbers things that are equal only to themselves.
#[derive(Debug)]
struct Numbered<T> {
    all: Vec<T>,
    numbers: Map<T, u32>,
}

impl<T: Clone + Eq + std::hash::Hash> Numbered<T> {
    fn new() -> Self {
        Numbered { all: Vec::new(), numbers: Map::default() }
    }

    fn number(&mut self, thing: &T) -> u32 {
        if let Some(number) = self.numbers.get(thing) {
            return *number;
        }
        let number = self.all.len() as u32;
        self.all.push(thing.clone());
        self.numbers.insert(thing.clone(), number);
        number
    }
}

/// Everything that has been seen of servers, messages and histories, by number.
#[derive(Debug)]
pub(super) struct World {
    settings: Settings,
    servers: Vec<Known>,
    /// By fingerprint.
    numbers: Map<u64, u32>,
    messages: Numbered<Sent>,
    /// Of each message: the term in which it says something to its receiver for the last time, if it is a reply.
    last_terms: Vec<Option<Term>>,
    histories: Numbered<History>,
    views: Numbered<View>,
    contents: Numbered<Vec<u8>>,
    memo: Map<(u32, Event), u32>,
    transitions: Vec<Transition>,
    /// What steps came across.
    pub(super) situations: Situations,
}

/// A server's state, with what is asked of it again and again.
#[derive(Debug)]
struct Known {
    server: Server,
    term: Term,
    view: u32,
    events: Box<[Event]>,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        World {
            settings,
            servers: Vec::new(),
            numbers: Map::default(),
            messages: Numbered::new(),
            last_terms: Vec::new(),
            histories: Numbered::new(),
            views: Numbered::new(),
            contents: Numbered::new(),
            memo: Map::default(),
            transitions: Vec::new(),
            situations: Situations::default(),
        }
    }

    /// The state in which an exploration begins.
    pub(super) fn start(&mut self) -> Result<Words, String> {
        let mut state = self.restarted()?;
        if self.settings.led {
            self.elect(&mut state)?;
        }
        Ok(state)
    }

    /// The first server's timer runs out, and everything goes well until there is nothing left to do. What was sent has then arrived, and
    /// does not arrive again; but snapshots are on their way.
    fn elect(&mut self, state: &mut Words) -> Result<(), String> {
        let (mut events, mut next) = (Vec::new(), Words::new());
        let mut delivered = std::collections::BTreeSet::new();
        let mut due = Some((0, Event::ElectionTimeout));
        while let Some((at, event)) = due {
            delivered.extend(event.message());
            match self.successor(state, at, event, &mut next)? {
                Some(Step::To) => std::mem::swap(state, &mut next),
                Some(Step::Beyond) => return Err("the bounds leave no room for the election".into()),
                None => {}
            }
            self.events(state, &mut events);
            due = events.iter().copied().find(|(_, event)| match event {
                Event::Deliver(id) => !delivered.contains(id) && !self.is_snapshot(*id),
                event => *event == Event::Persisted(1),
            });
        }
        let led = self.server(state, 0).status().role == Role::Leader;
        let first = self.settings.servers + 1;
        let snapshots = state[first..].iter().copied().filter(|id| self.is_snapshot(*id)).collect::<Words>();
        state.truncate(first);
        state.extend(snapshots);
        if led { Ok(()) } else { Err("the first server cannot win the election".into()) }
    }

    /// All servers with what is on their disks at the start, and no past.
    fn restarted(&mut self) -> Result<Words, String> {
        let mut words = Words::new();
        for id in 1..=self.settings.servers as u64 {
            let server = Server::new(&self.settings, NodeId(id))?;
            words.push(self.add(server));
        }
        let mut history = History { voters: self.settings.founders(NodeId(1)).voters().to_vec(), ..History::default() };
        let views: Vec<&View> = words.iter().map(|s| self.view_of(*s)).collect();
        views.iter().for_each(|view| history.commits(view));
        judge(&history, &views)?;
        words.push(self.histories.number(&history));
        Ok(words)
    }

    /// States of single servers, messages and histories that were seen.
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        (self.servers.len(), self.messages.all.len(), self.histories.all.len())
    }

    pub(super) fn message(&self, id: MessageId) -> &Sent {
        &self.messages.all[id as usize]
    }

    fn is_snapshot(&self, id: MessageId) -> bool {
        matches!(self.message(id), Sent::Snapshot(_))
    }

    pub(super) fn server(&self, state: &[u32], at: usize) -> &Server {
        &self.servers[state[at] as usize].server
    }

    pub(super) fn history(&self, state: &[u32]) -> &History {
        &self.histories.all[state[self.settings.servers] as usize]
    }

    /// Counts what this state comes across.
    pub(super) fn look(&self, state: &[u32], met: &mut Situations) {
        let History { leaders, dead, .. } = self.history(state);
        if let [.., (_, before), (_, last)] = leaders[..] {
            met.saw(Situation::Replaced, before != last);
        }
        if self.settings.quiesces {
            let views = state[..self.settings.servers].iter().map(|server| self.view_of(*server));
            let mut living = views.filter(|view| !dead.contains(&view.id));
            met.saw(Situation::Asleep, living.all(|view| view.asleep.is_some()));
        }
    }

    /// The messages on their way.
    fn on_the_way<'s>(&self, state: &'s [u32]) -> &'s [MessageId] {
        &state[self.settings.servers + 1..]
    }

    fn view_of(&self, server: u32) -> &View {
        &self.views.all[self.servers[server as usize].view as usize]
    }

    /// Everything that can happen in `state`: to which server, by position, and what.
    pub(super) fn events(&self, state: &[u32], events: &mut Vec<(usize, Event)>) {
        events.clear();
        let history = self.history(state);
        let dead = |at: usize| history.dead.contains(&NodeId(at as u64 + 1));
        for (at, server) in state[..self.settings.servers].iter().enumerate().filter(|(at, _)| !dead(*at)) {
            let own = self.servers[*server as usize].events.iter().filter(|event| match event {
                Event::Crash { .. } => history.crashes < self.settings.crashes,
                Event::Propose => history.commands < self.settings.commands,
                Event::Change => !history.changed,
                Event::Compact => history.compactions < self.settings.compactions,
                Event::Read => history.reads_asked < self.settings.reads,
                Event::Dies => (history.dead.len() as u64) < self.settings.deaths,
                Event::LinkReset(peer) => {
                    let reset = (NodeId(at as u64 + 1), NodeId((*peer).into()));
                    history.unheard.contains(&reset) || history.resets < self.settings.resets
                }
                _ => true,
            });
            events.extend(own.map(|event| (at, *event)));
        }
        for id in self.on_the_way(state) {
            let sent = self.message(*id);
            let at = sent.to().0 as usize - 1;
            if dead(at) {
                continue;
            }
            events.push((at, Event::Deliver(*id)));
            if matches!(sent, Sent::Message(Envelope { body: Message::HeartbeatReply(_), .. })) {
                events.push((at, Event::DeliverLate(*id)));
            }
        }
    }

    /// What `event` makes of `state`, in `next`. `false` if it leads beyond the bounds, or nowhere.
    ///
    /// # Errors
    /// Which promise is broken.
    pub(super) fn successor(
        &mut self,
        state: &[u32],
        at: usize,
        event: Event,
        next: &mut Words,
    ) -> Result<Option<Step>, String> {
        let number = self.transition(state[at], event)?;
        let (server, messages, news) = match &self.transitions[number as usize] {
            Transition::Beyond => return Ok(Some(Step::Beyond)),
            Transition::Nothing if self.settings.repeats || event.message().is_none() => return Ok(None),
            Transition::Nothing => (state[at], &[][..], None),
            Transition::To { server, messages, news } => (*server, &**messages, news.as_deref()),
        };
        let servers = self.settings.servers;
        next.clear();
        next.extend_from_slice(&state[..=servers]);
        next[at] = server;
        let gone = event.message().filter(|_| !self.settings.repeats);
        let crashed = matches!(event, Event::Crash { .. });
        // What became of a snapshot is told to the very process that sent it.
        let over =
            |id| crashed && matches!(self.message(id), Sent::Arrived(arrived) if arrived.to.0 as usize == at + 1);
        let old = state[servers + 1..].iter().copied().filter(|id| Some(*id) != gone && !over(*id));
        merge(old, messages, next);
        let own = event.is_remembered() || matches!(event, Event::Propose | Event::Change | Event::Compact);
        if news.is_some() || own {
            let mut history = self.history(state).clone();
            match event {
                Event::Dies => history.died(NodeId(at as u64 + 1), servers),
                Event::LinkReset(peer) => history.link_reset(NodeId(at as u64 + 1), NodeId(peer.into())),
                _ => {}
            }
            let orphaned = history.leaders.last().is_some_and(|(_, leader)| history.dead.contains(leader));
            let elected = news.is_some_and(|news| news.led.is_some());
            self.situations.saw(Situation::DeadReplaced, orphaned && elected);
            add_news(&mut history, self.view_of(server), event, news)?;
            next[servers] = self.histories.number(&history);
        }
        self.forget_replies(next)?;
        self.judge(state, next)?;
        Ok(Some(Step::To))
    }

    /// Drops replies to rounds that are over for their receivers: they do nothing there, and never will. That they do nothing is not
    /// believed but tried.
    fn forget_replies(&mut self, state: &mut Words) -> Result<(), String> {
        let first = self.settings.servers + 1;
        let mut kept = first;
        for at in first..state.len() {
            let id = state[at];
            let server = state[self.message(id).to().0 as usize - 1];
            let over = self.last_terms[id as usize].is_some_and(|last| self.servers[server as usize].term > last);
            let number = if over { Some(self.transition(server, Event::Deliver(id))?) } else { None };
            if !number.is_some_and(|number| matches!(self.transitions[number as usize], Transition::Nothing)) {
                state[kept] = id;
                kept += 1;
            }
        }
        state.truncate(kept);
        Ok(())
    }

    /// Looks at what has changed, if it matters to any promise.
    fn judge(&self, old: &[u32], new: &[u32]) -> Result<(), String> {
        let servers = self.settings.servers;
        let view = |state: &[u32], at: usize| self.servers[state[at] as usize].view;
        if old[servers] == new[servers] && (0..servers).all(|at| view(old, at) == view(new, at)) {
            return Ok(());
        }
        let views: Vec<&View> = new[..servers].iter().map(|server| self.view_of(*server)).collect();
        judge(self.history(new), &views)?;
        let found = self.settings.wanted.is_some_and(|wanted| {
            let statuses: Vec<_> = (0..servers).map(|at| self.server(new, at).status()).collect();
            wanted(&statuses)
        });
        if found { Err("what was wanted is found".to_owned()) } else { Ok(()) }
    }

    /// What `event` does to a server, looked up or found out.
    fn transition(&mut self, server: u32, event: Event) -> Result<u32, String> {
        if let Some(known) = self.memo.get(&(server, event)) {
            return Ok(*known);
        }
        let transition = self.find_out(server, event)?;
        let number = self.transitions.len() as u32;
        self.transitions.push(transition);
        self.memo.insert((server, event), number);
        Ok(number)
    }

    fn find_out(&mut self, number: u32, event: Event) -> Result<Transition, String> {
        let Some((server, effects)) = self.step(&self.servers[number as usize].server, event)? else {
            return Ok(Transition::Beyond);
        };
        let before = &self.servers[number as usize].server;
        let commit = before.status().commit_index;
        count(&mut self.situations, &self.settings, event, (before, &server), &effects);
        let id = server.status().id;
        let mut news = News {
            led: effects.led,
            votes: effects.messages.iter().filter_map(vote).collect(),
            commits: server.status().commit_index > commit,
            read_asked: effects.read_asked.map(|read| read.0),
            reads: effects.reads,
        };
        news.votes.dedup();
        debug_assert!(effects.messages.iter().all(|message| message.from() == id), "a server speaks for itself");
        let mut messages: Vec<MessageId> = effects.messages.iter().map(|m| self.messages.number(m)).collect();
        let unseen = &self.messages.all[self.last_terms.len()..];
        self.last_terms.extend(unseen.iter().map(last_term));
        messages.sort_unstable();
        messages.dedup();
        let next = self.add(server);
        let news = (!news.is_empty()).then(|| Box::new(news));
        if next == number && messages.is_empty() && news.is_none() && !event.is_remembered() {
            return Ok(Transition::Nothing);
        }
        Ok(Transition::To { server: next, messages: messages.into(), news })
    }

    /// A step of the real core. What panics in there is a finding like any other.
    pub(super) fn step(&self, server: &Server, event: Event) -> Result<Option<(Server, Effects)>, String> {
        let message = event.message().map(|id| self.message(id));
        let stepped = catch_unwind(AssertUnwindSafe(|| server.step(&self.settings, event, message)));
        let outcome = stepped.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!("panicked: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
        });
        outcome.map_err(|what| format!("{:?} {what}", server.status().id))
    }

    /// The number of a server's state.
    fn add(&mut self, server: Server) -> u32 {
        let fingerprint = server.fingerprint();
        if let Some(known) = self.numbers.get(&fingerprint) {
            return *known;
        }
        let view = self.view(&server);
        let number = self.servers.len() as u32;
        let events = server.events(&self.settings).into();
        let term = server.status().current_term;
        self.servers.push(Known { server, term, view, events });
        self.numbers.insert(fingerprint, number);
        number
    }

    fn view(&mut self, server: &Server) -> u32 {
        let status = server.status();
        let (live, durable) = server.logs();
        let view = View {
            id: status.id,
            term: status.current_term,
            leads: status.role == Role::Leader,
            asleep: status.leader.filter(|_| status.quiesced),
            commit: status.commit_index.0 as usize,
            kept: self.entries(server.kept(), None),
            log: self.entries(server.kept(), Some(live)),
            durable: self.entries(server.kept(), Some(durable)),
            voters: live.memberships().into_iter().map(|(at, m)| (at.0 as usize, m.voters().to_vec())).collect(),
        };
        self.views.number(&view)
    }

    /// What a state machine keeps; or a log, and before it what of that was forgotten.
    fn entries(&mut self, kept: &[Segment], log: Option<&Image>) -> Vec<EntryId> {
        let before = log.map_or(kept.len(), |log| (log.start().index.0 as usize).min(kept.len()));
        let mut entries: Vec<EntryId> = kept[..before].iter().filter_map(|segment| self.entry(segment)).collect();
        let Some(log) = log else { return entries };
        let mut index = log.start().index.next();
        while let Some(entry) = log.entry(index).and_then(|segment| self.entry(segment)) {
            entries.push(entry);
            index = index.next();
        }
        entries
    }

    fn entry(&mut self, segment: &Segment) -> Option<EntryId> {
        let entry = segment.get(segment.first_index())?;
        let mut content = vec![entry.kind as u8];
        content.extend_from_slice(entry.payload);
        let content = self.contents.number(&content) as u8;
        Some(EntryId { index: entry.index.0 as u8, term: entry.term.0 as u8, content })
    }
}

/// Counts what a step of a single server came across.
fn count(
    met: &mut Situations,
    settings: &Settings,
    event: Event,
    (before, after): (&Server, &Server),
    effects: &Effects,
) {
    let truncated = |event: &&crate::io::Event| matches!(event, crate::io::Event::Truncated { .. });
    met.add(Situation::Truncated, effects.events.iter().filter(truncated).count() as u64);
    let served = |outcome: &&ReadOutcome| matches!(outcome, ReadOutcome::Ready { .. });
    met.add(Situation::ReadServed, effects.reads.iter().filter(served).count() as u64);
    if let Event::Crash { kept, .. } = event {
        let pending = before.pending();
        met.saw(Situation::WriteLost, usize::from(kept) < pending);
        met.saw(Situation::WriteKept, kept > 0);
    }
    met.saw(
        Situation::ChangeCompleted,
        settings.change.is_some() && after.has_changed(settings) && !before.has_changed(settings),
    );
    met.saw(Situation::Compacted, event == Event::Compact);
    met.saw(Situation::Installed, event == Event::Restored);
}

/// Where an event leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Beyond the bounds.
    Beyond,
    /// To the state that was written down.
    To,
}

impl News {
    fn is_empty(&self) -> bool {
        let News { led, votes, commits, read_asked, reads } = self;
        led.is_none() && votes.is_empty() && !commits && read_asked.is_none() && reads.is_empty()
    }
}

fn add_news(history: &mut History, view: &View, event: Event, news: Option<&News>) -> Result<(), String> {
    let id = view.id;
    if let Event::Crash { .. } = event {
        history.crashes += 1;
        history.read_lost(id, None);
    }
    history.commands += u64::from(event == Event::Propose);
    history.changed |= event == Event::Change;
    history.compactions += u64::from(event == Event::Compact);
    let Some(News { led, votes, commits, read_asked, reads }) = news else { return Ok(()) };
    for (term, candidate) in votes {
        history.voted(id, *term, *candidate)?;
    }
    if let Some(term) = led {
        history.led(id, *term)?;
    }
    if let Some(read) = read_asked {
        history.reads_asked += 1;
        history.reads.push((id, *read, history.committed.len()));
    }
    if *commits {
        history.commits(view);
    }
    for read in reads {
        match read {
            ReadOutcome::Ready { id: read, index } => history.read_ready(id, read.0, index.0 as usize)?,
            ReadOutcome::Lost { id: read } => history.read_lost(id, Some(read.0)),
        }
    }
    Ok(())
}

/// After which term of its receiver a reply, or a snapshot, is of no interest to it any more.
fn last_term(sent: &Sent) -> Option<Term> {
    let envelope = match sent {
        Sent::Message(envelope) => envelope,
        Sent::Snapshot(snapshot) => return Some(snapshot.term),
        Sent::Arrived(arrived) => return Some(arrived.term),
    };
    match &envelope.body {
        // An answer about the election of term t is for those who are in term t - 1.
        Message::PreVoteReply(reply) => Some(Term(reply.election.0 - 1)),
        Message::RequestVoteReply(_)
        | Message::AppendAck(_)
        | Message::AppendReject(_)
        | Message::HeartbeatReply(_)
        | Message::TimeoutNow(_)
        | Message::ReadIndex(_)
        | Message::ReadIndexReply(_)
        | Message::Quiesce(_) => Some(envelope.term),
        Message::PreVote(_) | Message::RequestVote(_) | Message::AppendEntries(_) | Message::Heartbeat(_) => None,
    }
}

/// For whom the sender of a message has voted, if it says so.
fn vote(sent: &Sent) -> Option<(Term, NodeId)> {
    let Sent::Message(envelope) = sent else { return None };
    match &envelope.body {
        Message::RequestVote(_) => Some((envelope.term, envelope.from)),
        Message::RequestVoteReply(reply) if reply.granted => Some((reply.election, envelope.to)),
        _ => None,
    }
}

/// Appends two ascending sequences to `out` as one, without repetitions.
fn merge(old: impl Iterator<Item = MessageId>, new: &[MessageId], out: &mut Words) {
    let mut new = new.iter().copied().peekable();
    for id in old {
        while let Some(earlier) = new.next_if(|other| *other < id) {
            out.push(earlier);
        }
        let _ = new.next_if_eq(&id);
        out.push(id);
    }
    out.extend(new);
}
