//! The search itself.

use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;

use super::event::Event;
use super::settings::Settings;
use super::situations::{Situation, Situations};
use super::story;
use super::world::{Step, Words, World};

/// When to stop, if not everything within the bounds has been seen before.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Distinct states.
    pub states: u64,
    /// Steps from the start.
    pub depth: u32,
}

/// How far a search is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Distinct states.
    pub states: u64,
    /// Steps that were tried, whether they led to a new state, a known one, or nowhere.
    pub transitions: u64,
    /// Steps from the start to the states that are looked at now.
    pub depth: u32,
    /// States that are known, and whose successors are not.
    pub frontier: u64,
}

/// What came of a search.
#[derive(Clone, Debug)]
pub struct Report {
    /// How far it went.
    pub progress: Progress,
    /// Nothing was left to be looked at: this is everything within the bounds.
    pub complete: bool,
    /// Steps that were not taken because they lead beyond the bounds.
    pub cut: u64,
    /// Different states of single servers, messages, and histories.
    pub servers: usize,
    /// See `servers`.
    pub messages: usize,
    /// The longest committed log, and the highest term with a leader, in any state.
    pub most_committed: usize,
    /// See `most_committed`.
    pub leaders: usize,
    /// What it came across.
    pub situations: Situations,
    /// What went wrong, if anything did.
    pub violation: Option<Violation>,
}

/// A broken promise, and the shortest way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub what: String,
    /// Steps from the start.
    pub depth: u32,
    /// The way there, step by step, for people.
    pub script: Vec<String>,
}

/// How a state was reached first.
#[derive(Clone, Copy, Debug)]
struct Origin {
    from: u32,
    server: u8,
    event: Event,
}

/// Where a fingerprint belongs in a table: it is a hash already.
#[derive(Clone, Copy, Debug, Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[expect(clippy::disallowed_types, reason = "looked into, never iterated over")]
type Seen = std::collections::HashSet<u64, BuildHasherDefault<AsItIs>>;

/// States of equal depth, one after the other: number, length, words.
#[derive(Debug, Default)]
struct Level {
    words: Vec<u32>,
    states: u64,
}

impl Level {
    fn push(&mut self, number: u32, state: &[u32]) {
        self.words.extend([number, state.len() as u32]);
        self.words.extend_from_slice(state);
        self.states += 1;
    }

    /// The state that begins at `at`, its number, and where the next one begins.
    fn get(&self, at: usize) -> Option<(u32, &[u32], usize)> {
        let (number, len) = (*self.words.get(at)?, *self.words.get(at + 1)? as usize);
        let end = at + 2 + len;
        Some((number, &self.words[at + 2..end], end))
    }
}

struct Search {
    world: World,
    seen: Seen,
    origins: Vec<Origin>,
    next: Level,
    progress: Progress,
    cut: u64,
    most_committed: usize,
    leaders: usize,
    /// What states of the whole came across.
    situations: Situations,
}

/// Explores everything within the bounds of `settings`, breadth first, until nothing is left, a promise is broken, a limit is reached, or
/// `watch`, which is told every now and then how far it is, says to stop.
///
/// # Errors
/// The start is not one: what is wrong with it, in words.
pub fn explore(
    settings: &Settings,
    limits: Limits,
    mut watch: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Report, String> {
    let mut world = World::new(settings.clone());
    let start = world.start()?;
    let mut search = Search {
        world,
        seen: Seen::default(),
        origins: Vec::new(),
        next: Level::default(),
        progress: Progress::default(),
        cut: 0,
        most_committed: 0,
        leaders: 0,
        situations: Situations::default(),
    };
    search.enter(&start, Origin { from: 0, server: 0, event: Event::ElectionTimeout });
    let mut violation = None;
    while search.next.states > 0 && search.progress.depth < limits.depth {
        let level = std::mem::take(&mut search.next);
        match search.level(&level, limits, &mut watch) {
            Ok(ControlFlow::Continue(())) => search.progress.depth += 1,
            Ok(ControlFlow::Break(())) => break,
            Err((origin, what)) => {
                violation = Some(search.tell(settings, &start, origin, what));
                break;
            }
        }
    }
    let Search { world, progress, cut, most_committed, leaders, mut situations, .. } = search;
    Situation::ALL.iter().for_each(|situation| situations.add(*situation, world.situations.of(*situation)));
    let (servers, messages, _) = world.sizes();
    let complete = progress.frontier == 0 && violation.is_none();
    Ok(Report { progress, complete, cut, servers, messages, most_committed, leaders, situations, violation })
}

impl Search {
    /// Notes a state, if it is new.
    fn enter(&mut self, state: &[u32], origin: Origin) {
        let mut hasher = DefaultHasher::new();
        state.hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            return;
        }
        let history = self.world.history(state);
        self.most_committed = self.most_committed.max(history.committed.len());
        self.leaders = self.leaders.max(history.leaders.len());
        self.world.look(state, &mut self.situations);
        self.next.push(self.origins.len() as u32, state);
        self.origins.push(origin);
        self.progress.states += 1;
        self.progress.frontier += 1;
    }

    /// Looks at every state of a level and notes what follows on them.
    fn level(
        &mut self,
        level: &Level,
        limits: Limits,
        watch: &mut impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, (Origin, String)> {
        let (mut events, mut next, mut at) = (Vec::new(), Words::new(), 0);
        while let Some((number, state, end)) = level.get(at) {
            at = end;
            self.world.events(state, &mut events);
            for (server, event) in &events {
                let origin = Origin { from: number, server: *server as u8, event: *event };
                match self.world.successor(state, *server, *event, &mut next) {
                    Ok(Some(Step::To)) => self.enter(&next, origin),
                    Ok(Some(Step::Beyond)) => self.cut += 1,
                    Ok(None) => {}
                    Err(what) => return Err((origin, what)),
                }
            }
            self.progress.transitions += events.len() as u64;
            self.progress.frontier -= 1;
            let full = self.progress.states >= limits.states || self.origins.len() >= u32::MAX as usize;
            if full || (number % 4096 == 0 && watch(&self.progress).is_break()) {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The way to a violation, from the start.
    fn tell(&self, settings: &Settings, start: &[u32], last: Origin, what: String) -> Violation {
        let mut way = vec![(usize::from(last.server), last.event)];
        let mut at = last.from;
        while at != 0 {
            let Origin { from, server, event } = self.origins[at as usize];
            way.push((usize::from(server), event));
            at = from;
        }
        way.reverse();
        let depth = way.len() as u32;
        let script = story::tell(settings, &self.world, start, &way);
        Violation { what, depth, script }
    }
}
