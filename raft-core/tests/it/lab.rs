//! The tests of MIT's labs 2A to 2D, 3A and 3B, each over many seeds: 200, or as many as `RAFT_TEST_SEEDS` says.

use std::panic::{AssertUnwindSafe, catch_unwind};

use raft_core::sim::lab;

fn seeds() -> u64 {
    match std::env::var("RAFT_TEST_SEEDS") {
        Ok(text) => text.parse().expect("RAFT_TEST_SEEDS is a number"),
        Err(_) => 200,
    }
}

fn run(name: &str) {
    let test = lab::find(name).expect("the test is in the list");
    let mut failures = Vec::new();
    for seed in 0..seeds() {
        let failure = match catch_unwind(AssertUnwindSafe(|| lab::run(test, seed, None))) {
            Ok(report) => report.failure,
            Err(_) => Some("panicked".into()),
        };
        if let Some(failure) = failure {
            failures.push(format!("{failure}\n    replay: cargo xtask sim --test {name} --seed {seed} --trace"));
        }
    }
    assert!(failures.is_empty(), "{} of {} seeds failed:\n{}", failures.len(), seeds(), failures.join("\n"));
}

macro_rules! lab_tests {
    ($($name:ident),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_lab_test_is_run() {
            let here = [$(stringify!($name)),*];
            let there: Vec<_> = lab::TESTS.iter().map(|test| test.name).collect();
            assert_eq!(here[..], there[..]);
        }
    };
}

lab_tests!(
    lab_2a_initial_election,
    lab_2a_reelection,
    lab_2a_many_elections,
    lab_2b_basic_agree,
    lab_2b_rpc_bytes,
    lab_2b_follower_failure,
    lab_2b_leader_failure,
    lab_2b_fail_agree,
    lab_2b_fail_no_agree,
    lab_2b_concurrent_starts,
    lab_2b_rejoin,
    lab_2b_backup,
    lab_2b_count,
    lab_2c_persist1,
    lab_2c_persist2,
    lab_2c_persist3,
    lab_2c_figure8,
    lab_2c_unreliable_agree,
    lab_2c_figure8_unreliable,
    lab_2c_reliable_churn,
    lab_2c_unreliable_churn,
    lab_2d_snapshot_basic,
    lab_2d_snapshot_install,
    lab_2d_snapshot_install_unreliable,
    lab_2d_snapshot_install_crash,
    lab_2d_snapshot_install_unreliable_crash,
    lab_2d_snapshot_all_crash,
    lab_2d_snapshot_init,
    lab_3a_basic,
    lab_3a_speed,
    lab_3a_concurrent,
    lab_3a_unreliable,
    lab_3a_unreliable_one_key,
    lab_3a_one_partition,
    lab_3a_partitions_one_client,
    lab_3a_partitions_many_clients,
    lab_3a_persist_one_client,
    lab_3a_persist_many_clients,
    lab_3a_persist_unreliable,
    lab_3a_persist_partition,
    lab_3a_persist_partition_unreliable,
    lab_3a_persist_partition_unreliable_linearizable,
    lab_3b_snapshot_rpc,
    lab_3b_snapshot_size,
    lab_3b_speed,
    lab_3b_recover_one_client,
    lab_3b_recover_many_clients,
    lab_3b_unreliable,
    lab_3b_unreliable_recover,
    lab_3b_unreliable_recover_partition,
    lab_3b_unreliable_recover_partition_linearizable,
);

/// A failure can be repeated only if a run is a function of its seed.
#[test]
fn the_same_seed_makes_the_same_run() {
    let test = lab::find("lab_2c_unreliable_churn").expect("the test is in the list");
    let (a, b, c) = (lab::run(test, 5, None), lab::run(test, 5, None), lab::run(test, 6, None));
    assert_eq!(a.figures, b.figures);
    assert_ne!(a.figures, c.figures);
}
