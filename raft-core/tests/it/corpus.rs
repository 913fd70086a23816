//! Runs a fuzz target as an ordinary test: on its corpus, on bytes near to those of the corpus, and on any bytes. The tests of the
//! other crates include this file.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{TestCaseError, TestRunner};

/// How well the inputs of a target did.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) runs: u32,
    /// Inputs that got past the first checks.
    pub(crate) good: u32,
}

/// Replays the corpus in `fuzz/corpus/NAME` below `package`, then runs `cases` inputs. At least `percent` of them must be good: a test whose
/// inputs are all refused at the door proves little.
#[track_caller]
pub(crate) fn check(package: &str, name: &str, cases: u32, percent: u32, run: impl Fn(&[u8]) -> bool) {
    let corpus = read(&Path::new(package).join("fuzz/corpus").join(name));
    let good = corpus.iter().filter(|input| run(input)).count();
    assert!(good * 10 >= corpus.len(), "{name}: only {good} of {} inputs of the corpus are good", corpus.len());

    let tally = std::cell::RefCell::new(Tally::default());
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&inputs(corpus), |input| {
        let good = run(&input);
        let mut tally = tally.borrow_mut();
        tally.runs += 1;
        tally.good += u32::from(good);
        Ok::<(), TestCaseError>(())
    });
    if let Err(failure) = outcome {
        panic!("{name}: {failure}\nput the bytes into a file in fuzz/corpus/{name}: they are replayed from then on");
    }
    let Tally { runs, good } = tally.into_inner();
    assert!(good * 100 >= runs * percent, "{name}: only {good} of {runs} inputs are good");
}

/// That the programs in `fuzz/fuzz_targets` below `package` are those of `targets`: a target without a program is never fuzzed, a program
/// without a target is no test.
#[track_caller]
pub(crate) fn complete(package: &str, targets: impl Iterator<Item = &'static str>) {
    let mut targets: Vec<String> = targets.map(str::to_owned).collect();
    targets.sort();
    let programs = list(&Path::new(package).join("fuzz/fuzz_targets"));
    let programs: Vec<_> = programs.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(programs, targets, "programs on the left, targets on the right");
}

#[allow(
    clippy::disallowed_methods,
    reason = "the core reads no files; this test does, and is part of other crates, too"
)]
fn read(folder: &Path) -> Vec<Vec<u8>> {
    let paths = list(folder);
    assert!(paths.len() >= 5, "{} has hardly any input", folder.display());
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

/// The files in a folder, in the order of their names.
#[allow(clippy::disallowed_methods, reason = "as above")]
fn list(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// A change to an input.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Cut(Index),
    /// The beginning of this one, the rest of another.
    Splice(Index, Index),
}

impl Edit {
    fn apply(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let len = input.len();
        match self {
            Edit::Set(at, byte) if len > 0 => input[at.index(len)] = *byte,
            Edit::Flip(at, bit) if len > 0 => input[at.index(len)] ^= 1 << (bit % 8),
            Edit::Insert(at, bytes) => {
                let at = at.index(len + 1);
                input.splice(at..at, bytes.iter().copied());
            }
            Edit::Remove(at, count) if len > 0 => {
                let at = at.index(len);
                input.drain(at..(at + count).min(len));
            }
            Edit::Cut(at) => input.truncate(at.index(len + 1)),
            Edit::Splice(at, other) => {
                let other = other.get(corpus);
                let at = at.index(len + 1);
                input.truncate(at);
                input.extend_from_slice(&other[at.min(other.len())..]);
            }
            Edit::Set(..) | Edit::Flip(..) | Edit::Remove(..) => {}
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => (at(), 1..8usize).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => at().prop_map(Edit::Cut),
        2 => (at(), at()).prop_map(|(at, other)| Edit::Splice(at, other)),
    ]
}

/// Inputs of the corpus with some edits; now and then anything.
fn inputs(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let near = (any::<Index>(), prop::collection::vec(edit(), 0..5)).prop_map(move |(which, edits)| {
        let mut input = which.get(&corpus).clone();
        edits.iter().for_each(|edit| edit.apply(&mut input, &corpus));
        input
    });
    prop_oneof![9 => near, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}
