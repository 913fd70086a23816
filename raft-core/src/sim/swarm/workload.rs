//! What is replicated, and what clients do with it: a state machine of your own, for the swarm to try.

use std::collections::BTreeMap;
use std::fmt::Debug;

use crate::sim::linearizability::{self, Model, Timed, Verdict};
use crate::sim::schedule::Dice;

/// What a client asks of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Request {
    /// To be replicated and applied.
    Command(Vec<u8>),
    /// To be answered from the newest state, without a trace in the log.
    Query(Vec<u8>),
}

/// A deterministic state machine, and how clients use it.
///
/// The swarm replicates it on every cluster of every mix of faults, and checks that all replicas are equal at the end, that no acknowledged
/// command is lost, and that what the clients saw is linearizable. See `examples/counter.rs` for a whole user.
pub trait Workload: Clone + Default + Debug + Ord + 'static {
    /// Carries out a command, and answers it.
    fn apply(&mut self, command: &[u8]) -> Vec<u8>;

    /// Answers a query.
    fn query(&self, query: &[u8]) -> Vec<u8>;

    /// The machine as it comes out of a snapshot of itself. Whoever has an encoding for that can put it to the test here.
    #[must_use]
    fn transferred(&self) -> Self {
        self.clone()
    }

    /// What a client does next: which of the independent objects it is about (a key, say; any number below [`Draw::objects`]), and what
    /// it asks. If all requests belong together, the object is 0.
    fn draw(draw: &mut Draw<'_>) -> (usize, Request);

    /// Whether what clients did with one object can be explained; gives up after `budget` steps. A faster way than the search through the
    /// states of a whole machine, if there is one, can be put here.
    fn check(history: &[Operation], budget: u64) -> Verdict<Operation> {
        linearizability::check_model::<Whole<Self>>(history, budget)
    }
}

/// What clients did with a state machine: what they asked, and the answer if they got one.
pub type Operation = Timed<(Request, Option<Vec<u8>>)>;

/// A state machine as the model of a shared object.
#[derive(Debug)]
pub struct Whole<W>(std::marker::PhantomData<W>);

impl<W: Workload> Model for Whole<W> {
    type State = W;
    type Action = (Request, Option<Vec<u8>>);

    fn after(state: &W, (request, answer): &Self::Action) -> Option<W> {
        let mut after = state.clone();
        let found = match request {
            Request::Command(command) => after.apply(command),
            Request::Query(query) => state.query(query),
        };
        answer.as_ref().is_none_or(|answer| *answer == found).then_some(after)
    }
}

/// What a client has at hand when it decides what to do next.
#[derive(Debug)]
pub struct Draw<'a> {
    /// Chance.
    pub dice: &'a mut Dice,
    /// A number that no other request of the run has, and no other client.
    pub unique: u64,
    /// How many independent objects the clients of this run use.
    pub objects: usize,
    pub(super) last: &'a BTreeMap<usize, (Request, Vec<u8>)>,
}

impl Draw<'_> {
    /// What this client last asked of an object and had answered.
    pub fn last(&self, object: usize) -> Option<(&Request, &[u8])> {
        self.last.get(&object).map(|(request, answer)| (request, answer.as_slice()))
    }
}
