//! Every order of events on small clusters, not very far: `cargo xtask explore` goes further.

use std::ops::ControlFlow;

use raft_core::sim::explore::{Limits, Report, Settings, Situation, explore, suite};
use raft_core::{Role, Status, Term};

fn run(settings: &Settings, states: u64) -> Report {
    let limits = Limits { states, depth: u32::MAX };
    explore(settings, limits, |_| ControlFlow::Continue(())).expect("a possible start")
}

fn without_violation(settings: &Settings, states: u64) -> Report {
    let report = run(settings, states);
    if let Some(violation) = &report.violation {
        panic!("{}: {}\n{}", settings.name, violation.what, violation.script.join("\n"));
    }
    report
}

#[test]
fn every_exploration_of_the_suite_keeps_raft_s_promises() {
    let reports: Vec<Report> = suite().iter().map(|settings| without_violation(settings, 20_000)).collect();
    let most = |value: &dyn Fn(&Report) -> u64| reports.iter().map(value).max().unwrap_or(0);
    // Where nothing happens, nothing can go wrong.
    assert!(most(&|report| report.most_committed as u64) >= 3, "{reports:#?}");
    assert!(most(&|report| report.leaders as u64) >= 2, "{reports:#?}");
    assert!(most(&|report| report.situations.of(Situation::Truncated)) >= 10, "{reports:#?}");
    assert!(most(&|report| report.situations.of(Situation::Installed)) >= 5, "{reports:#?}");
    // `cargo xtask explore` goes further, and asks each exploration for all that it is for.
    for situation in Situation::ALL {
        assert!(most(&|report| report.situations.of(situation)) > 0, "never: {}", situation.words());
    }
    assert!(reports.iter().all(|report| report.cut > 0 && report.progress.depth > 5), "{reports:#?}");
}

/// An exploration in which nothing happens finds nothing, and must not pass for one that has found nothing.
#[test]
fn an_exploration_that_misses_what_it_is_for_says_so() {
    let missing = |settings: &Settings, limits| {
        let report = explore(settings, limits, |_| ControlFlow::Continue(())).expect("a possible start");
        report.situations.missing(settings).collect::<Vec<Situation>>()
    };
    let nowhere = Limits { states: 1, depth: 0 };
    let due: Vec<Situation> = suite().iter().flat_map(|settings| missing(settings, nowhere)).collect();
    assert!(Situation::ALL.iter().all(|situation| due.contains(situation)), "somewhere each is due, not only {due:?}");

    let far = Limits { states: 20_000, depth: u32::MAX };
    let of_suite = |name| suite().into_iter().find(|settings| settings.name.starts_with(name)).expect("there is one");
    let reads = of_suite("reads");
    assert_eq!(missing(&reads, far), []);
    assert_eq!(missing(&Settings { rounds: 0, ..reads }, far), [Situation::ReadServed], "no round to confirm it");
    let change = of_suite("two servers; the leader is replaced");
    assert_eq!(missing(&change, far), []);
    let shorter = Settings { log_length: 2, ..change };
    assert_eq!(missing(&shorter, far), [Situation::ChangeCompleted], "no room for its last entry");
}

/// Within its bounds this is not a sample: there are no other states.
#[test]
fn one_election_and_one_command_are_explored_to_the_end() {
    let settings = Settings { terms: 1, commands: 1, crashes: 0, ..Settings::plain("to the end", 3) };
    let report = without_violation(&settings, u64::MAX);
    assert!(report.complete && report.progress.frontier == 0, "{report:?}");
    assert!(report.progress.states > 10_000 && report.most_committed == 1, "{report:?}");
    let two = Settings { terms: 2, commands: 1, ..Settings::plain("two servers", 2) };
    assert!(without_violation(&two, u64::MAX).complete);
}

#[test]
fn an_exploration_is_the_same_every_time() {
    let settings = Settings { led: true, ..Settings::plain("twice", 3) };
    let (first, second) = (run(&settings, 10_000), run(&settings, 10_000));
    assert_eq!(format!("{first:?}"), format!("{second:?}"));
}

fn two_leaders(statuses: &[Status]) -> bool {
    statuses.iter().filter(|status| status.role == Role::Leader).count() == 2
}

/// The way that is told is one that happened, and the shortest: five steps for an election, and one less for both, because the second
/// candidate's sync covers its vote for the first one too.
#[test]
fn the_shortest_way_to_a_situation_is_told() {
    let settings = Settings { wanted: Some(two_leaders), crashes: 0, ..Settings::plain("two leaders", 3) };
    let found = run(&settings, u64::MAX).violation.expect("an old leader that does not know of the new one");
    let story = found.script.join("\n");
    assert_eq!(found.depth, 9, "{story}");
    let elected: Vec<&str> =
        found.script.iter().map(|line| line.trim()).filter(|l| l.starts_with("BecameLeader")).collect();
    assert_eq!(elected.len(), 2, "{story}");
    assert!(
        story.contains("RequestVoteReply for t1: true") && story.contains("RequestVoteReply for t2: true"),
        "{story}"
    );

    let never = Settings { wanted: Some(|all| all.iter().any(|s| s.current_term > Term(2))), ..settings };
    assert_eq!(run(&never, 20_000).violation, None, "the bound on terms holds");
}

#[test]
fn an_impossible_start_is_refused() {
    let explore = |start: &[&[u64]]| {
        let start = start.iter().map(|log| log.to_vec()).collect();
        let settings = Settings { start, ..Settings::plain("impossible", 3) };
        explore(&settings, Limits { states: 10, depth: 1 }, |_| ControlFlow::Continue(()))
    };
    assert!(explore(&[&[2, 1]]).is_err(), "terms never fall");
    let problem = explore(&[&[1, 3], &[2, 3]]).expect_err("one entry, two pasts");
    assert!(problem.starts_with("log matching"), "{problem}");
    assert!(explore(&[&[1, 3], &[2]]).is_ok());
}
