//! Hard interleavings as text files, with the answer beside each command: see CONTRIBUTING.md for how to write one.
//!
//! A script drives a cluster of real cores by hand: nothing arrives, becomes durable or times out unless a command says so. After every
//! step the promises of Raft are checked, so a script fails also where its text does not look.

mod command;
mod format;
mod show;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use command::Session;
use format::{Answers, Script};

/// Set to `1`, this writes the present answers into the files.
const BLESS: &str = "RAFT_BLESS";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts")
}

/// Carries out a script. The error names the file and the line, and tells what came before.
fn answers(name: &str, script: &Script<'_>) -> Result<Answers, String> {
    let mut session = Session::default();
    let mut answers = Answers::new();
    for command in script.commands() {
        let run = catch_unwind(AssertUnwindSafe(|| session.run(command.text)));
        match run.unwrap_or_else(|_| Err("the core panicked, see above".to_owned())) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let mut said = script.with(&answers);
                said.extend(session.unfinished().iter().map(|line| format!("    {line}\n")));
                let said: Vec<&str> = said.lines().collect();
                let tail = said[said.len().saturating_sub(20)..].join("\n");
                return Err(format!("{name}:{}: {}: {error}\nbefore that:\n{tail}", command.line, command.text));
            }
        }
    }
    Ok(answers)
}

/// Compares the file with what really happens, or writes what happens into the file.
#[expect(clippy::disallowed_methods, reason = "the runner reads and writes scripts; the core does not")]
fn check(name: &str) {
    let path = folder().join(format!("{name}.txt"));
    let name = format!("raft-core/tests/scripts/{name}.txt");
    let source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
    let script = Script::parse(&source).unwrap_or_else(|error| panic!("{name}:{error}"));
    let answers = answers(&name, &script).unwrap_or_else(|error| panic!("{error}"));
    if std::env::var(BLESS).is_ok_and(|value| value == "1") {
        let text = script.with(&answers);
        if text != source {
            std::fs::write(&path, text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    } else if let Some(difference) = script.difference(&name, &answers) {
        panic!(
            "{difference}\nIf this is as it should be: {BLESS}=1 cargo test -p raft-core scripts, and read the diff."
        );
    }
}

/// One test for each file.
macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        const NAMES: &[&str] = &[$(stringify!($name)),*];
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*
    };
}

scripts! {
    append_below_the_log,
    append_delayed,
    bridging_voter,
    busy,
    candidate_own_vote,
    change_during_transfer,
    change_forced,
    change_refused,
    change_too_early,
    change_truncated,
    check_quorum,
    compaction,
    disk_hangs,
    figure_6,
    figure_7,
    figure_7_terms_one_by_one,
    figure_8_committed,
    figure_8_overwritten,
    heartbeat_is_no_proof,
    install_and_crash,
    install_overtaken,
    id_reused,
    join_restarted,
    joint_alone,
    joint_both_majorities,
    joint_leader_crash,
    large_entries,
    leader_disk,
    leader_without_a_log,
    learner_by_snapshot,
    lease,
    lease_survives_no_transfer,
    leader_removes_itself,
    members_grow,
    no_pre_vote,
    one_server,
    one_way_cut,
    other_election,
    other_pre_vote,
    pre_vote,
    quiesce,
    quiesce_after_a_newer_append,
    quiesce_and_link_reset,
    quiesce_deposed_leader,
    quiesce_laggard,
    quiesce_leader_dies,
    quiesce_learner,
    quiesce_lease,
    quiesce_lost,
    read_at_follower,
    read_at_follower_leader_changes,
    read_before_own_commit,
    read_deposed_leader,
    readded_in_same_term,
    reject_delayed,
    removed_and_needed,
    removed_restarts,
    removed_server,
    removed_while_down,
    reply_from_previous_life,
    restore_under_a_new_leader,
    slow_disk_is_no_loss,
    snapshot_during_change,
    snapshot_for_a_follower,
    snapshots_in_succession,
    stale_after_term_change,
    torn_write,
    transfer,
    transfer_fails,
    transfer_flag_ends_with_its_term,
    transfer_survives_pre_vote,
    transfer_target_leaves,
    two_servers,
    unknown_candidate,
    up_to_date,
    vote_and_crash_before_sync,
    window,
    write_overtaken_by_truncation,
}

#[test]
fn every_file_is_a_test() {
    let files = std::fs::read_dir(folder()).expect("the scripts are there");
    for file in files {
        let name = file.expect("a readable folder").file_name().into_string().expect("a plain name");
        let listed = name.strip_suffix(".txt").is_some_and(|name| NAMES.contains(&name));
        assert!(listed, "{name} is not listed in tests/it/scripts/mod.rs");
    }
}

/// What a script of these lines, after a comment, comes to.
fn outcome(lines: &str) -> Result<Answers, String> {
    let source = format!("# A test of the runner.\n{lines}");
    let script = Script::parse(&source)?;
    answers("x.txt", &script)
}

#[test]
fn what_makes_no_sense_is_an_error_with_file_and_line() {
    for (lines, error) in [
        ("cluster 3\n\njump 1\n", "x.txt:4: jump 1: there is no such command: `jump 1`\n"),
        ("settle\n", "x.txt:2: settle: the first command is `cluster`\n"),
        ("cluster 3 fast\n", "x.txt:2: cluster 3 fast: there is no such option: `fast`\n"),
        ("cluster 3\ncampaign 4\n", "x.txt:3: campaign 4: there is no server 4\n"),
        ("cluster 3\ncrash 1\ncampaign 1\n", "x.txt:4: campaign 1: server 1 is down\n"),
        ("cluster 3\nnode 1 log 1\n", "x.txt:3: node 1 log 1: an entry of server 1 is newer than its term\n"),
        ("cluster 3\ndeliver letters\n", "x.txt:3: deliver letters: `letters` names no messages"),
    ] {
        let failure = outcome(lines).expect_err(lines);
        assert!(failure.starts_with(error), "{failure}");
    }
}

/// Two servers with different pasts of the same term: what no run of Raft leads to, and what the checker must see.
#[test]
fn a_broken_promise_ends_a_script() {
    let lines = "cluster 3\nnode 1 term 1 log 1 1\nnode 2 term 3 log 2 3\nnode 3 term 3 log 1 3\n";
    assert!(outcome(lines).is_err_and(|error| error.starts_with("x.txt:5: node 3") && error.contains("log matching")));
}
