//! The tests of labs 2A to 2D, 3A and 3B of MIT 6.824 / 6.5840 (2021 to 2023), in virtual time and over many seeds.
//!
//! Harder than the original: Raft's promises are checked after every event, each seed is another run, and the seed also
//! decides what a server is like (see [`Variant`]).

mod agreement;
mod elections;
mod harness;
mod kv;
mod persistence;
mod snapshots;

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use Snapshots::{EveryTenth, Never};
pub use harness::Lab;
use harness::Record;
use kv::{Kv, Service};

use super::cluster::{Applier, Cluster, Options, Tracer};
use super::schedule::Dice;
use super::task::{Failure, Sim};
use crate::config::Config;
use crate::types::{Instant, NodeId};

/// How a test ends.
pub type Outcome = Result<(), Failure>;

type Script = Pin<Box<dyn Future<Output = Outcome>>>;

/// One test.
#[derive(Clone, Copy)]
pub struct LabTest {
    /// Its name here.
    pub name: &'static str,
    /// Its name in the course.
    pub original: &'static str,
    /// Number of servers.
    pub servers: usize,
    /// Whether the network is reliable at first.
    pub reliable: bool,
    /// When servers keep a snapshot of their state, and forget the log up to there.
    pub snapshots: Snapshots,
    /// What a run of the course's own solution took.
    pub handout: Option<Figures>,
    script: Kind,
}

/// When a server keeps a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshots {
    /// It never does.
    Never,
    /// After every tenth command (the course's `SnapShotInterval`).
    EveryTenth,
    /// Once term, vote and log take more than so many bytes on its disk (the course's `maxraftstate`).
    Beyond(usize),
}

impl LabTest {
    /// The scripts of labs 2A to 2C say which index a command has to get, so there commands alone take indices.
    fn allows_no_ops(&self) -> bool {
        matches!(self.script, Kind::Kv(_)) || self.snapshots != Snapshots::Never
    }
}

/// What a test is written with.
#[derive(Clone, Copy)]
enum Kind {
    /// Servers that record what they apply.
    Raft(fn(Lab) -> Script),
    /// A key-value service.
    Kv(fn(Kv) -> Script),
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Seconds: of virtual time here, of real time in the handout.
    pub seconds: f64,
    /// Calls made.
    pub rpcs: u64,
    /// Bytes sent and replied.
    pub bytes: u64,
    /// Highest index applied.
    pub entries: u64,
}

/// What the seed decides about servers and network besides the course of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Candidates ask before they raise the term.
    pub pre_vote: bool,
    /// Leaders step down without a majority.
    pub check_quorum: bool,
    /// A write takes up to 2 ms, instead of none.
    pub slow_disk: bool,
    /// Cores are told when a call fails.
    pub tell_failures: bool,
    /// Cores keep next to no entries in memory and have to read them back.
    pub small_cache: bool,
    /// New leaders append an empty entry, where a test does not count on commands alone taking indices.
    pub no_op: bool,
}

impl Variant {
    /// The variant that belongs to a seed: six coins, so that 64 consecutive seeds see every combination.
    pub fn of(seed: u64) -> Self {
        let coin = |bit: u32| seed >> bit & 1 == 1;
        Variant {
            pre_vote: !coin(0),
            check_quorum: !coin(1),
            slow_disk: coin(2),
            tell_failures: coin(3),
            small_cache: coin(4),
            no_op: coin(5),
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What it took.
    pub figures: Figures,
}

const RELIABLE: bool = true;
const UNRELIABLE: bool = false;
/// The course's `maxraftstate` in lab 3B.
const BEYOND_1000: Snapshots = Snapshots::Beyond(1000);

/// A test: its name and the course's, servers, network, snapshots, script, and what it took the course's own solution.
macro_rules! lab_test {
    ($name:literal, $original:literal, $servers:literal, $reliable:expr, $snapshots:expr, $kind:ident($script:path), $handout:expr) => {
        LabTest {
            name: $name,
            original: $original,
            servers: $servers,
            reliable: $reliable,
            snapshots: $snapshots,
            handout: $handout,
            script: Kind::$kind(|test| Box::pin($script(test))),
        }
    };
}

const fn took(seconds: f64, rpcs: u64, bytes: u64, entries: u64) -> Figures {
    Figures { seconds, rpcs, bytes, entries }
}

/// All tests, in the course's order.
#[rustfmt::skip]
pub const TESTS: &[LabTest] = &[
    lab_test!("lab_2a_initial_election", "TestInitialElection2A", 3, RELIABLE, Never, Raft(elections::initial_election), Some(took(3.5, 58, 16_840, 0))),
    lab_test!("lab_2a_reelection", "TestReElection2A", 3, RELIABLE, Never, Raft(elections::reelection), Some(took(5.4, 118, 25_269, 0))),
    lab_test!("lab_2a_many_elections", "TestManyElections2A", 7, RELIABLE, Never, Raft(elections::many_elections), Some(took(7.3, 624, 138_014, 0))),
    lab_test!("lab_2b_basic_agree", "TestBasicAgree2B", 3, RELIABLE, Never, Raft(agreement::basic_agree), Some(took(0.9, 16, 4572, 3))),
    lab_test!("lab_2b_rpc_bytes", "TestRPCBytes2B", 3, RELIABLE, Never, Raft(agreement::rpc_bytes), Some(took(1.7, 48, 114_536, 11))),
    lab_test!("lab_2b_follower_failure", "TestFollowerFailure2B", 3, RELIABLE, Never, Raft(agreement::follower_failure), None),
    lab_test!("lab_2b_leader_failure", "TestLeaderFailure2B", 3, RELIABLE, Never, Raft(agreement::leader_failure), None),
    lab_test!("lab_2b_fail_agree", "TestFailAgree2B", 3, RELIABLE, Never, Raft(agreement::fail_agree), Some(took(3.6, 78, 22_131, 7))),
    lab_test!("lab_2b_fail_no_agree", "TestFailNoAgree2B", 5, RELIABLE, Never, Raft(agreement::fail_no_agree), Some(took(3.8, 172, 40_935, 3))),
    lab_test!("lab_2b_concurrent_starts", "TestConcurrentStarts2B", 3, RELIABLE, Never, Raft(agreement::concurrent_starts), Some(took(1.1, 24, 7379, 6))),
    lab_test!("lab_2b_rejoin", "TestRejoin2B", 3, RELIABLE, Never, Raft(agreement::rejoin), Some(took(5.1, 152, 37_021, 4))),
    lab_test!("lab_2b_backup", "TestBackup2B", 5, RELIABLE, Never, Raft(agreement::backup), Some(took(17.2, 2080, 1_587_388, 102))),
    lab_test!("lab_2b_count", "TestCount2B", 3, RELIABLE, Never, Raft(agreement::count), Some(took(2.2, 60, 20_119, 12))),
    lab_test!("lab_2c_persist1", "TestPersist12C", 3, RELIABLE, Never, Raft(persistence::persist1), Some(took(5.0, 86, 22_849, 6))),
    lab_test!("lab_2c_persist2", "TestPersist22C", 5, RELIABLE, Never, Raft(persistence::persist2), Some(took(17.6, 952, 218_854, 16))),
    lab_test!("lab_2c_persist3", "TestPersist32C", 3, RELIABLE, Never, Raft(persistence::persist3), Some(took(2.0, 34, 8937, 4))),
    lab_test!("lab_2c_figure8", "TestFigure82C", 5, RELIABLE, Never, Raft(persistence::figure8), Some(took(31.2, 580, 130_675, 32))),
    lab_test!("lab_2c_unreliable_agree", "TestUnreliableAgree2C", 5, UNRELIABLE, Never, Raft(persistence::unreliable_agree), Some(took(1.7, 1044, 366_392, 246))),
    lab_test!("lab_2c_figure8_unreliable", "TestFigure8Unreliable2C", 5, UNRELIABLE, Never, Raft(persistence::figure8_unreliable), Some(took(33.6, 10_700, 33_695_245, 308))),
    lab_test!("lab_2c_reliable_churn", "TestReliableChurn2C", 5, RELIABLE, Never, Raft(persistence::churn), Some(took(16.1, 8864, 44_771_259, 1544))),
    lab_test!("lab_2c_unreliable_churn", "TestUnreliableChurn2C", 5, UNRELIABLE, Never, Raft(persistence::churn), Some(took(16.5, 4220, 6_414_632, 906))),
    lab_test!("lab_2d_snapshot_basic", "TestSnapshotBasic2D", 3, RELIABLE, EveryTenth, Raft(snapshots::basic), Some(took(11.6, 176, 61_716, 192))),
    lab_test!("lab_2d_snapshot_install", "TestSnapshotInstall2D", 3, RELIABLE, EveryTenth, Raft(snapshots::install), Some(took(64.2, 878, 320_610, 336))),
    lab_test!("lab_2d_snapshot_install_unreliable", "TestSnapshotInstallUnreliable2D", 3, UNRELIABLE, EveryTenth, Raft(snapshots::install), Some(took(81.1, 1059, 375_850, 341))),
    lab_test!("lab_2d_snapshot_install_crash", "TestSnapshotInstallCrash2D", 3, RELIABLE, EveryTenth, Raft(snapshots::install_crash), Some(took(53.5, 601, 256_638, 339))),
    lab_test!("lab_2d_snapshot_install_unreliable_crash", "TestSnapshotInstallUnCrash2D", 3, UNRELIABLE, EveryTenth, Raft(snapshots::install_crash), Some(took(63.5, 687, 288_294, 336))),
    lab_test!("lab_2d_snapshot_all_crash", "TestSnapshotAllCrash2D", 3, RELIABLE, EveryTenth, Raft(snapshots::all_crash), Some(took(19.5, 268, 81_352, 58))),
    lab_test!("lab_2d_snapshot_init", "TestSnapshotInit2D", 3, RELIABLE, EveryTenth, Raft(snapshots::init), None),
    lab_test!("lab_3a_basic", "TestBasic3A", 5, RELIABLE, Never, Kv(kv::one_client), Some(took(15.5, 4576, 0, 903))),
    lab_test!("lab_3a_speed", "TestSpeed3A", 3, RELIABLE, Never, Kv(kv::speed), Some(took(15.7, 3022, 0, 0))),
    lab_test!("lab_3a_concurrent", "TestConcurrent3A", 5, RELIABLE, Never, Kv(kv::five_clients), Some(took(15.9, 5884, 0, 1160))),
    lab_test!("lab_3a_unreliable", "TestUnreliable3A", 5, UNRELIABLE, Never, Kv(kv::five_clients), Some(took(19.2, 5083, 0, 441))),
    lab_test!("lab_3a_unreliable_one_key", "TestUnreliableOneKey3A", 3, UNRELIABLE, Never, Kv(kv::one_key), Some(took(2.5, 218, 0, 52))),
    lab_test!("lab_3a_one_partition", "TestOnePartition3A", 5, RELIABLE, Never, Kv(kv::one_partition), Some(took(3.9, 275, 0, 8))),
    lab_test!("lab_3a_partitions_one_client", "TestManyPartitionsOneClient3A", 5, RELIABLE, Never, Kv(kv::partitions_one_client), Some(took(23.8, 4501, 0, 765))),
    lab_test!("lab_3a_partitions_many_clients", "TestManyPartitionsManyClients3A", 5, RELIABLE, Never, Kv(kv::partitions_many_clients), Some(took(23.5, 5692, 0, 974))),
    lab_test!("lab_3a_persist_one_client", "TestPersistOneClient3A", 5, RELIABLE, Never, Kv(kv::persist_one_client), Some(took(22.2, 4721, 0, 908))),
    lab_test!("lab_3a_persist_many_clients", "TestPersistConcurrent3A", 5, RELIABLE, Never, Kv(kv::persist_many_clients), Some(took(22.5, 5490, 0, 1033))),
    lab_test!("lab_3a_persist_unreliable", "TestPersistConcurrentUnreliable3A", 5, UNRELIABLE, Never, Kv(kv::persist_many_clients), Some(took(26.5, 3532, 0, 474))),
    lab_test!("lab_3a_persist_partition", "TestPersistPartition3A", 5, RELIABLE, Never, Kv(kv::persist_partition), Some(took(29.7, 6122, 0, 1060))),
    lab_test!("lab_3a_persist_partition_unreliable", "TestPersistPartitionUnreliable3A", 5, UNRELIABLE, Never, Kv(kv::persist_partition), Some(took(32.9, 2967, 0, 317))),
    lab_test!("lab_3a_persist_partition_unreliable_linearizable", "TestPersistPartitionUnreliableLinearizable3A", 7, UNRELIABLE, Never, Kv(kv::persist_partition_random_keys), Some(took(35.0, 8249, 0, 746))),
    lab_test!("lab_3b_snapshot_rpc", "TestSnapshotRPC3B", 3, RELIABLE, BEYOND_1000, Kv(kv::left_behind), Some(took(4.0, 289, 0, 63))),
    lab_test!("lab_3b_snapshot_size", "TestSnapshotSize3B", 3, RELIABLE, BEYOND_1000, Kv(kv::small_state), Some(took(2.6, 2418, 0, 800))),
    lab_test!("lab_3b_speed", "TestSpeed3B", 3, RELIABLE, BEYOND_1000, Kv(kv::speed), Some(took(3.2, 3025, 0, 0))),
    lab_test!("lab_3b_recover_one_client", "TestSnapshotRecover3B", 5, RELIABLE, BEYOND_1000, Kv(kv::persist_one_client), Some(took(21.9, 29_266, 0, 5820))),
    lab_test!("lab_3b_recover_many_clients", "TestSnapshotRecoverManyClients3B", 5, RELIABLE, BEYOND_1000, Kv(kv::persist_twenty_clients), Some(took(21.5, 33_115, 0, 6420))),
    lab_test!("lab_3b_unreliable", "TestSnapshotUnreliable3B", 5, UNRELIABLE, BEYOND_1000, Kv(kv::five_clients), Some(took(17.4, 3233, 0, 482))),
    lab_test!("lab_3b_unreliable_recover", "TestSnapshotUnreliableRecover3B", 5, UNRELIABLE, BEYOND_1000, Kv(kv::persist_many_clients), Some(took(22.7, 3337, 0, 471))),
    lab_test!("lab_3b_unreliable_recover_partition", "TestSnapshotUnreliableRecoverConcurrentPartition3B", 5, UNRELIABLE, BEYOND_1000, Kv(kv::persist_partition), Some(took(30.4, 2725, 0, 274))),
    lab_test!("lab_3b_unreliable_recover_partition_linearizable", "TestSnapshotUnreliableRecoverConcurrentPartitionLinearizable3B", 7, UNRELIABLE, BEYOND_1000, Kv(kv::persist_partition_random_keys), Some(took(37.7, 8378, 0, 681))),
];

/// The test of this name, ours or the course's.
pub fn find(name: &str) -> Option<&'static LabTest> {
    TESTS.iter().find(|test| test.name == name || test.original == name)
}

/// No test may take longer than this, in virtual time.
const LIMIT: Duration = Duration::from_mins(2);

/// Runs one test with one seed.
pub fn run(test: &LabTest, seed: u64, tracer: Option<Tracer>) -> Report {
    let variant = Variant::of(seed);
    let options = Options {
        servers: test.servers,
        seed,
        config: Config { no_op_on_election: variant.no_op && test.allows_no_ops(), ..config(variant) },
        slowest_write: Duration::from_millis(if variant.slow_disk { 2 } else { 0 }),
        tell_failures: variant.tell_failures,
    };
    let record = Rc::new(RefCell::new(Record::new(test.servers, test.snapshots == Snapshots::EveryTenth)));
    let service = Service::new(test.servers, test.snapshots);
    let applier: Box<dyn Applier> = match test.script {
        Kind::Raft(_) => Box::new(record.clone()),
        Kind::Kv(_) => Box::new(service.clone()),
    };
    let mut cluster = Cluster::new(options, applier, tracer);
    cluster.note(format_args!("{} with seed {seed}: {variant:?}", test.name));
    cluster.network_mut().weather_mut().reliable = test.reliable;
    (0..test.servers).for_each(|i| cluster.start(i));
    (0..test.servers).for_each(|i| cluster.network_mut().connect(i));
    let sim = Sim::new(cluster);
    let lab = Lab::new(sim.clone(), record.clone(), Dice::new(seed, 2));
    let script = match test.script {
        Kind::Raft(script) => script(lab),
        Kind::Kv(script) => {
            // Calls to the unreachable fail soon.
            sim.with(|cluster| cluster.network_mut().weather_mut().long_delays = false);
            script(Kv::new(lab, service.clone()))
        }
    };
    let failure = sim.run(LIMIT, script).err();
    if let Some(failure) = &failure {
        sim.with(|cluster| cluster.note(format_args!("FAILED: {failure}")));
    }
    let traffic = sim.with(|cluster| cluster.network().traffic());
    let figures = Figures {
        seconds: sim.now().since(Instant::default()).as_secs_f64(),
        rpcs: traffic.sent,
        bytes: traffic.bytes,
        entries: record.borrow().highest().max(service.highest()),
    };
    Report { failure, figures }
}

/// Ten heartbeats a second, and elections well within the five seconds that the tests allow. Commands alone take indices.
fn config(variant: Variant) -> Config {
    Config {
        election_timeout: Duration::from_millis(400),
        heartbeat_interval: Duration::from_millis(100),
        pre_vote: variant.pre_vote,
        check_quorum: variant.check_quorum,
        no_op_on_election: false,
        max_cached_bytes: if variant.small_cache { 64 } else { 32 << 20 },
        ..Config::new(NodeId(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a test whose servers keep snapshots at other times than they should.
    fn failure_with(name: &str, snapshots: Snapshots) -> Option<Failure> {
        let test = LabTest { snapshots, ..*find(name).unwrap() };
        run(&test, 1, None).failure
    }

    #[test]
    fn a_log_that_grows_and_grows_is_noticed() {
        for name in ["lab_3b_snapshot_size", "lab_3b_speed", "lab_3b_unreliable"] {
            assert_eq!(failure_with(name, BEYOND_1000), None);
            let failure = failure_with(name, Snapshots::Beyond(1 << 20)).expect("the limit is 8000");
            assert!(failure.contains("bytes of log are saved"), "{failure}");
        }
    }

    #[test]
    fn snapshots_that_are_not_taken_are_noticed() {
        let failure = failure_with("lab_3b_snapshot_rpc", Never).expect("the third server needs one");
        assert!(failure.contains("without a snapshot"), "{failure}");
    }
}
