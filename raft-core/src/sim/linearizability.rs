//! Is what clients saw linearizable? The search of Wing and Gong, with Lowe's memory of what was tried already.
//!
//! [`check_model`] answers this for any [`Model`] of an object that clients share; [`check`] for a register, which holds a number or nothing.
//! Objects are independent of one another (Herlihy and Wing, locality), so a history of many keys is checked key by key.
//!
//! A write to a register whose answer never came may have happened at any later time, or never. If each number is written once, that can be
//! settled before the search: a write whose number nobody saw might as well not have happened, and one whose number was seen
//! happened before that. What is left has a beginning and an end, so the search stays small.

use std::collections::{BTreeMap, BTreeSet};

use crate::types::Instant;

/// What an object does when nobody disturbs it.
pub trait Model {
    /// What is in it; it begins with the default.
    type State: Clone + Ord + Default;
    /// What a client did with it, and what it saw.
    type Action;
    /// What is in it after the action, or `None` if the action cannot happen in `state`, or not with what was seen. For an action whose
    /// answer never came, there is nothing to contradict.
    fn after(state: &Self::State, action: &Self::Action) -> Option<Self::State>;
}

/// A register that holds a number or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Register;

impl Model for Register {
    type State = Option<u64>;
    type Action = Action;

    fn after(state: &Option<u64>, action: &Action) -> Option<Option<u64>> {
        action.fits(*state).then(|| action.after(*state))
    }
}

/// What a client did with a register, and what it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote this, whatever was there.
    Put(u64),
    /// Saw this. A compare-and-swap that failed has seen what was there instead, and is one of these.
    Get(Option<u64>),
    /// Replaced `expected` by `value`. If its answer never came, it may also have found something else and left it there.
    Swap {
        /// What was there.
        expected: Option<u64>,
        /// What is there now.
        value: u64,
    },
    /// Removed what was there. If its answer never came, `existed` is true: one in doubt that found nothing has changed nothing.
    Delete {
        /// Whether there was something.
        existed: bool,
    },
}

impl Action {
    /// Whether the action can happen when the register holds `state`.
    fn fits(self, state: Option<u64>) -> bool {
        match self {
            Action::Put(_) => true,
            Action::Get(found) => found == state,
            Action::Swap { expected, .. } => expected == state,
            Action::Delete { existed } => existed == state.is_some(),
        }
    }

    /// What the register holds after it, if it held `state` before.
    fn after(self, state: Option<u64>) -> Option<u64> {
        match self {
            Action::Put(value) | Action::Swap { value, .. } => Some(value),
            Action::Get(_) => state,
            Action::Delete { .. } => None,
        }
    }

    fn writes(self) -> Option<u64> {
        match self {
            Action::Put(value) | Action::Swap { value, .. } => Some(value),
            Action::Get(_) | Action::Delete { .. } => None,
        }
    }

    fn sees(self) -> Option<u64> {
        match self {
            Action::Put(_) | Action::Delete { .. } => None,
            Action::Get(found) => found,
            Action::Swap { expected, .. } => expected,
        }
    }
}

/// One operation of one client on a register.
pub type Operation = Timed<Action>;

/// One operation of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timed<A> {
    /// What it did.
    pub action: A,
    /// When it began.
    pub invoked: Instant,
    /// When its answer came; `None` when none came, so that it may have happened or not.
    pub returned: Option<Instant>,
}

/// The answer to the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict<O = Operation> {
    /// There is an order that explains everything.
    Linearizable,
    /// There is none.
    Violation {
        /// An operation that no order explains together with those before it.
        stuck: O,
    },
    /// The budget ran out before an answer was found.
    Unknown,
}

/// Looks for an order of `history`, the operations on one register, which begins empty; gives up after `budget` steps.
pub fn check(history: &[Operation], budget: u64) -> Verdict {
    // A read in doubt has told nobody anything.
    let asked = |op: &&Operation| op.returned.is_some() || !matches!(op.action, Action::Get(_));
    let history: Vec<Operation> = history.iter().filter(asked).copied().collect();
    let written: Vec<u64> = history.iter().filter_map(|op| op.action.writes()).collect();
    if written.iter().collect::<BTreeSet<_>>().len() < written.len() {
        return check_model::<Register>(&history, budget);
    }
    let history = settle(history);
    let mut search = Search::<Register>::new(&history);
    search.queue_up();
    search.run(budget)
}

/// Looks for an order of `history`, the operations on one object; gives up after `budget` steps.
pub fn check_model<M: Model>(history: &[Timed<M::Action>], budget: u64) -> Verdict<Timed<M::Action>>
where
    M::Action: Clone,
{
    Search::<M>::new(history).run(budget)
}

/// Decides about the operations in doubt, if every number is written once: those that were seen get an end, the others are
/// left out. An operation that is left out changes nothing for the others: nobody saw what it wrote.
///
/// Deletes are the exception, since they have no number. One in doubt stays so. And where one has found something it does not say what: so
/// it may have found a number that nobody else saw. That can only matter where nothing else was there, so such writes stay in
/// doubt as swaps of nothing for their number.
fn settle(mut history: Vec<Operation>) -> Vec<Operation> {
    let nameless = history.iter().any(|op| op.returned.is_some() && op.action == Action::Delete { existed: true });
    loop {
        let mut seen: BTreeMap<u64, Instant> = BTreeMap::new();
        for op in &history {
            if let (Some(value), Some(at)) = (op.action.sees(), op.returned) {
                let first = seen.entry(value).or_insert(at);
                *first = at.min(*first);
            }
        }
        let mut settled = false;
        for op in history.iter_mut().filter(|op| op.returned.is_none()) {
            op.returned = op.action.writes().and_then(|value| seen.get(&value)).map(|at| op.invoked.max(*at));
            settled |= op.returned.is_some();
        }
        if !settled {
            break;
        }
    }
    history.retain_mut(|op| match op.action {
        _ if op.returned.is_some() => true,
        Action::Delete { existed } => existed,
        Action::Put(value) | Action::Swap { expected: None, value } => {
            op.action = Action::Swap { expected: None, value };
            nameless
        }
        Action::Swap { .. } | Action::Get(_) => false,
    });
    history
}

/// All that what comes next depends on: the set of placed operations, the state they led to, and, when the last one is in doubt and something must need
/// it now, the state before it.
type Situation<S> = (Vec<u64>, S, Option<S>);

/// The state of the search: a list of calls and returns in the order of time, from which operations are lifted out as they
/// are given their place, and put back when that leads nowhere.
struct Search<'a, M: Model> {
    history: &'a [Timed<M::Action>],
    /// Position 0 is the head; operation i is called at 2i + 1 and returns at 2i + 2. The list ends with position 0 again.
    next: Vec<usize>,
    prev: Vec<usize>,
    placed: Vec<u64>,
    state: M::State,
    /// What was placed, and the state before it.
    trail: Vec<(usize, M::State)>,
    /// Where the search has been already.
    tried: BTreeSet<Situation<M::State>>,
    /// Operations that must be placed and are not.
    missing: usize,
    /// Operations in doubt that can stand for one another, in the order of their calls: deletes, and writes that nobody saw. The
    /// first may do whatever the second could, so none is placed before its predecessor; and each may as well wait until something needs it.
    queues: [Vec<usize>; 2],
}

impl<'a, M: Model> Search<'a, M>
where
    M::Action: Clone,
{
    fn new(history: &'a [Timed<M::Action>]) -> Self {
        let count = history.len();
        let mut order: Vec<(Instant, bool, usize)> = Vec::with_capacity(2 * count);
        for (i, op) in history.iter().enumerate() {
            // Of the same moment, calls come first: the operations overlap.
            order.push((op.invoked, false, 2 * i + 1));
            order.push((op.returned.unwrap_or(Instant(u64::MAX)), true, 2 * i + 2));
        }
        order.sort_unstable();
        let (mut next, mut prev) = (vec![0; 2 * count + 1], vec![0; 2 * count + 1]);
        let mut last = 0;
        for (.., position) in order {
            next[last] = position;
            prev[position] = last;
            last = position;
        }
        prev[0] = last;
        Search {
            missing: history.iter().filter(|op| op.returned.is_some()).count(),
            placed: vec![0; count.div_ceil(64)],
            history,
            next,
            prev,
            state: M::State::default(),
            trail: Vec::new(),
            tried: BTreeSet::new(),
            queues: [Vec::new(), Vec::new()],
        }
    }

    fn is_placed(&self, op: usize) -> bool {
        self.placed[op / 64] & (1 << (op % 64)) != 0
    }

    fn is_queued(&self, op: usize) -> bool {
        self.history[op].returned.is_none() && self.queues.iter().any(|queue| queue.contains(&op))
    }

    /// Whether `op` need not be tried here, because another order that is tried explains as much: another of its kind goes first, or
    /// one in doubt that was placed just now is not what makes it fit.
    fn is_needless(&self, op: usize) -> bool {
        let queued = self.is_queued(op);
        let first = |queue: &Vec<usize>| queue.iter().copied().find(|&other| !self.is_placed(other));
        if queued && !self.queues.iter().any(|queue| first(queue) == Some(op)) {
            return true;
        }
        match self.trail.last() {
            Some((last, before)) if self.is_queued(*last) => {
                queued || M::after(before, &self.history[op].action).is_some()
            }
            _ => false,
        }
    }

    fn run(mut self, budget: u64) -> Verdict<Timed<M::Action>> {
        let mut at = self.next[0];
        let mut deepest = (0, None);
        for _ in 0..budget {
            if self.missing == 0 {
                return Verdict::Linearizable;
            }
            if at % 2 == 1 {
                at = if self.place(at / 2) { self.next[0] } else { self.next[at] };
                continue;
            }
            // Whoever returns here (or, at the end, nobody) should have had a place by now: something before was wrong.
            if at != 0 && (deepest.1.is_none() || self.trail.len() > deepest.0) {
                deepest = (self.trail.len(), Some(at / 2 - 1));
            }
            match self.take_back() {
                Some(op) => at = self.next[2 * op + 1],
                None => {
                    let stuck = deepest.1.unwrap_or_default();
                    return Verdict::Violation { stuck: self.history[stuck].clone() };
                }
            }
        }
        Verdict::Unknown
    }

    /// Gives operation `op` the next place, if it fits there and that was not tried before.
    fn place(&mut self, op: usize) -> bool {
        let Some(state) = M::after(&self.state, &self.history[op].action) else { return false };
        if self.is_needless(op) {
            return false;
        }
        self.placed[op / 64] |= 1 << (op % 64);
        let before = self.is_queued(op).then(|| self.state.clone());
        if !self.tried.insert((self.placed.clone(), state.clone(), before)) {
            self.placed[op / 64] &= !(1 << (op % 64));
            return false;
        }
        self.trail.push((op, std::mem::replace(&mut self.state, state)));
        self.missing -= usize::from(self.history[op].returned.is_some());
        for position in [2 * op + 1, 2 * op + 2] {
            let (prev, next) = (self.prev[position], self.next[position]);
            self.next[prev] = next;
            self.prev[next] = prev;
        }
        true
    }

    /// Puts the operation that was placed last back into the list.
    fn take_back(&mut self) -> Option<usize> {
        let (op, state) = self.trail.pop()?;
        self.state = state;
        self.missing += usize::from(self.history[op].returned.is_some());
        self.placed[op / 64] &= !(1 << (op % 64));
        for position in [2 * op + 2, 2 * op + 1] {
            let (prev, next) = (self.prev[position], self.next[position]);
            self.next[prev] = position;
            self.prev[next] = position;
        }
        Some(op)
    }
}

impl Search<'_, Register> {
    /// After [`settle`]: whatever is in doubt now is one of two kinds.
    fn queue_up(&mut self) {
        let mut doubts: Vec<usize> =
            (0..self.history.len()).filter(|&op| self.history[op].returned.is_none()).collect();
        doubts.sort_by_key(|&op| self.history[op].invoked);
        let is_delete = |op: &usize| matches!(self.history[*op].action, Action::Delete { .. });
        let (deletes, writes) = doubts.into_iter().partition(is_delete);
        self.queues = [deletes, writes];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::schedule::Dice;

    const BUDGET: u64 = 100_000;

    fn op(invoked: u64, returned: u64, action: Action) -> Operation {
        Operation { action, invoked: Instant(invoked), returned: Some(Instant(returned)) }
    }

    fn doubt(invoked: u64, action: Action) -> Operation {
        Operation { action, invoked: Instant(invoked), returned: None }
    }

    fn swap(expected: u64, value: u64) -> Action {
        Action::Swap { expected: (expected > 0).then_some(expected), value }
    }

    fn get(value: u64) -> Action {
        Action::Get((value > 0).then_some(value))
    }

    fn put(value: u64) -> Action {
        Action::Put(value)
    }

    fn delete(existed: bool) -> Action {
        Action::Delete { existed }
    }

    fn is_right(history: &[Operation]) -> bool {
        match check(history, BUDGET) {
            Verdict::Linearizable => true,
            Verdict::Violation { .. } => false,
            Verdict::Unknown => panic!("no answer within {BUDGET} steps"),
        }
    }

    #[test]
    fn right_histories() {
        let histories: [&[Operation]; 12] = [
            &[],
            &[op(0, 1, get(0)), op(2, 3, put(1)), op(4, 5, get(1)), op(6, 7, swap(1, 2)), op(8, 9, get(2))],
            // Overlapping: the reads may fall on either side of the write.
            &[op(0, 10, put(1)), op(1, 3, get(0)), op(4, 6, get(1))],
            &[op(0, 10, put(1)), op(0, 10, put(2)), op(11, 12, get(1))],
            // In doubt, and seen late; in doubt, and never seen.
            &[doubt(0, put(1)), op(5, 6, get(0)), op(100, 101, get(1))],
            &[op(0, 1, put(1)), doubt(2, put(2)), op(3, 4, get(1)), op(50, 51, get(1))],
            // A chain of doubts, only the end of which was seen.
            &[doubt(0, put(1)), doubt(1, swap(1, 2)), doubt(2, swap(2, 3)), op(9, 10, get(3))],
            // A swap in doubt that found something else.
            &[op(0, 1, put(1)), doubt(2, swap(7, 8)), op(3, 4, get(1))],
            // Deletes that find something, and find nothing.
            &[
                op(0, 1, delete(false)),
                op(2, 3, put(1)),
                op(4, 5, delete(true)),
                op(6, 7, get(0)),
                op(8, 9, swap(0, 2)),
            ],
            // A delete in doubt, of which only the effect was seen; and one that never happened, or happened to nothing.
            &[op(0, 1, put(1)), doubt(2, delete(true)), op(3, 4, get(1)), op(5, 6, get(0))],
            &[doubt(0, delete(true)), op(1, 2, put(1)), op(3, 4, get(1)), op(5, 6, get(1))],
            // A write in doubt that nobody saw, but a delete found it.
            &[doubt(0, put(1)), op(2, 3, get(0)), op(4, 5, delete(true)), op(6, 7, get(0))],
        ];
        for history in histories {
            assert!(is_right(history), "{history:?}");
        }
    }

    #[test]
    fn wrong_histories() {
        let histories: [&[Operation]; 14] = [
            // A stale read; a lost write; a number from nowhere; time travel.
            &[op(0, 1, put(1)), op(2, 3, put(2)), op(4, 5, get(1))],
            &[op(0, 1, put(1)), op(2, 3, get(0))],
            &[op(0, 1, put(1)), op(2, 3, get(9))],
            &[op(0, 1, get(1)), op(2, 3, put(1))],
            // Two readers that disagree about the order of two writes.
            &[op(0, 20, put(1)), op(0, 20, put(2)), op(1, 2, get(1)), op(3, 4, get(2)), op(5, 6, get(1))],
            // Two swaps of the same number.
            &[op(0, 1, put(1)), op(2, 9, swap(1, 2)), op(2, 9, swap(1, 3))],
            // A write in doubt that was seen, then forgotten, then seen again.
            &[op(0, 1, put(1)), doubt(2, put(2)), op(3, 4, get(2)), op(5, 6, get(1))],
            // One in doubt that was seen before it began.
            &[op(0, 1, get(5)), doubt(2, put(5))],
            // A swap in doubt that needs what was never there.
            &[op(0, 1, put(1)), doubt(2, swap(7, 8)), op(3, 4, get(8))],
            // What was deleted comes back; a delete finds what is not there, or does not find what is.
            &[op(0, 1, put(1)), op(2, 3, delete(true)), op(4, 5, get(1))],
            &[op(0, 1, delete(true))],
            &[op(0, 1, put(1)), op(2, 3, delete(false)), op(4, 5, get(1))],
            // One write in doubt cannot be found by two deletes; nothing is gone without a delete.
            &[doubt(0, put(1)), op(2, 3, delete(true)), op(4, 5, delete(true))],
            &[op(0, 1, put(1)), doubt(2, put(2)), op(3, 4, get(0))],
        ];
        for history in histories {
            assert!(!is_right(history), "{history:?}");
        }
    }

    #[test]
    fn the_stuck_operation_is_named() {
        let stale = op(4, 5, get(1));
        let history = [op(0, 1, put(1)), op(2, 3, put(2)), stale, op(6, 7, get(2))];
        assert_eq!(check(&history, BUDGET), Verdict::Violation { stuck: stale });
    }

    #[test]
    fn numbers_written_twice_are_searched_without_settling() {
        assert!(is_right(&[op(0, 1, put(1)), doubt(2, put(1)), op(3, 4, put(2)), op(5, 6, get(1))]));
        assert!(!is_right(&[op(0, 1, put(1)), op(0, 1, put(1)), op(3, 4, put(2)), op(5, 6, get(1))]));
    }

    #[test]
    fn a_budget_that_is_too_small_gives_no_answer() {
        let history: Vec<_> = (0..20).map(|i| op(0, 100, put(i + 1))).chain([op(200, 201, get(99))]).collect();
        assert_eq!(check(&history, 50), Verdict::Unknown);
    }

    /// A register that works, used by several clients at once; then the same history with one answer replaced.
    #[test]
    fn histories_of_a_real_register_pass_and_a_stale_answer_in_them_does_not() {
        let mut caught = 0;
        for seed in 0..300 {
            let mut dice = Dice::new(seed, 1);
            let (mut state, mut history, mut written) = (None, Vec::new(), vec![0]);
            for i in 0..120 {
                // What happens happens at 10 i; the client's view of it is wider.
                let (begin, end) = (10 * i + 30 - dice.between(0, 30), 10 * i + 30 + dice.between(0, 30));
                let value = i + 1;
                let action = match dice.pick(7) {
                    0 | 1 => put(value),
                    2 | 3 => Action::Get(state),
                    4 => delete(state.is_some()),
                    _ => Action::Swap { expected: state, value },
                };
                let happens = matches!(action, Action::Get(_)) || !dice.chance(1, 20);
                let known = happens && !dice.chance(1, 10);
                if happens {
                    state = action.after(state);
                }
                // One in doubt could also happen at the very end.
                if known {
                    written.extend(action.writes());
                }
                history.push(Operation { action, invoked: Instant(begin), returned: known.then_some(Instant(end)) });
            }
            assert!(is_right(&history), "seed {seed}");
            let stale = written[written.len() / 2];
            history.push(op(2000, 2001, get(stale)));
            caught += usize::from(!is_right(&history));
        }
        assert_eq!(caught, 300);
    }

    /// Short histories of anything, right and wrong, with and without the thoughts that spare work.
    #[test]
    fn sparing_work_changes_no_verdict() {
        let (mut right, mut wrong) = (0, 0);
        for seed in 0..20_000 {
            let mut dice = Dice::new(seed, 2);
            let mut history = Vec::new();
            for value in 1..=dice.between(2, 7) {
                let seen = dice.between(0, 7);
                let in_doubt = dice.chance(1, 3);
                let action = match dice.pick(4) {
                    0 => put(value),
                    1 => get(seen),
                    2 => delete(in_doubt || dice.chance(1, 2)),
                    _ => swap(seen, value),
                };
                let invoked = dice.between(0, 20);
                let returned = invoked + dice.between(1, 8);
                history.push(if in_doubt { doubt(invoked, action) } else { op(invoked, returned, action) });
            }
            let thorough = check_model::<Register>(&history, u64::MAX) == Verdict::Linearizable;
            assert_eq!(is_right(&history), thorough, "{history:?}");
            *if thorough { &mut right } else { &mut wrong } += 1;
        }
        assert!(right > 1000 && wrong > 1000, "{right} {wrong}");
    }
}
