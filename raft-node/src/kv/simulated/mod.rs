//! The store under faults, in virtual time: real stores, each on its own RocksDB, in the place of the state machines of `raft_core`'s simulator. Clients
//! repeat their commands until they know what came of them, answers are lost, servers crash and come back with what their stores have on
//! disk or with a snapshot from the leader, leaders change, and sessions end because there are too many.

mod client;
mod judge;
mod stores;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use raft_core::sim::cluster::{Cluster, Options};
use raft_core::sim::linearizability::{Verdict, check};
use raft_core::sim::schedule::Dice;
use raft_core::sim::task::{Failure, Sim};
use raft_core::{Config, NodeId};

use client::{Client, Histories};
use judge::Counts;
use stores::Stores;

use super::Command;

const SERVERS: usize = 3;
const CLIENTS: u64 = 4;
/// Clients forget theirs now and then: so those that are in use end only if they are not used for long.
const MAX_SESSIONS: usize = 5;

/// Something goes wrong, or well again.
async fn trouble(sim: &Sim, dice: &mut Dice) {
    let pause = Duration::from_millis(dice.between(20, 400));
    sim.sleep(pause).await;
    let victim = dice.pick(SERVERS);
    let leads = |cluster: &Cluster, i| cluster.node(i).raft().is_some_and(raft_core::Raft::is_leader);
    let leader = sim.with(|cluster| (0..SERVERS).find(|i| leads(cluster, *i))).unwrap_or(victim);
    let sides: Vec<bool> = (0..SERVERS).map(|_| dice.chance(1, 2)).collect();
    let what = dice.pick(8);
    sim.with(|cluster| match what {
        0 => cluster.network_mut().partition(&sides),
        1 => cluster.network_mut().disconnect(leader),
        2 => cluster.crash(victim),
        3 => cluster.crash(leader),
        4 => {
            (0..SERVERS).for_each(|i| cluster.crash(i));
            all_well(cluster);
        }
        _ => all_well(cluster),
    });
}

fn all_well(cluster: &mut Cluster) {
    for i in 0..SERVERS {
        if cluster.node(i).raft().is_none() {
            cluster.start(i);
        }
        cluster.network_mut().connect(i);
    }
}

/// One run: trouble for some seconds, then peace; then every client must have its answers, and every store the same state.
async fn script(sim: Sim, stores: Stores, seed: u64) -> Result<Counts, Failure> {
    let (stop, history) = (Rc::new(Cell::new(false)), Histories::default());
    let clients = (1..=CLIENTS).map(|i| {
        let parts = (sim.clone(), stores.clone());
        let client = Client::new(parts, Dice::new(seed, 10 + i), SERVERS, history.clone(), i << 32);
        sim.spawn(client.run(stop.clone()))
    });
    let clients: Vec<_> = clients.collect();
    let mut dice = Dice::new(seed, 3);
    for _ in 0..25 {
        trouble(&sim, &mut dice).await;
    }
    sim.with(|cluster| {
        cluster.network_mut().weather_mut().reliable = true;
        all_well(cluster);
    });
    stop.set(true);
    for client in clients {
        client.join().await?;
    }
    let agreed = |sim: &Sim| {
        let applied =
            |i| sim.with(|cluster| cluster.status(i).map(|status| (status.applied_index, status.last_log.index)));
        (0..SERVERS).all(|i| applied(i) == applied(0) && applied(i).is_some_and(|(applied, last)| applied == last))
    };
    for look in 0.. {
        if agreed(&sim) {
            break;
        }
        if look % 10 == 9 {
            // A leader that adds no entry by itself commits what is left of earlier terms together with this one (paper, section 5.4.2).
            let nothing = Command::EndSession { session: 0 }.encode();
            sim.with(|cluster| (0..SERVERS).for_each(|i| _ = cluster.propose(i, &nothing)));
        }
        sim.sleep(Duration::from_millis(50)).await;
    }
    let states = stores.states();
    if let Some((applied, _)) = states.iter().find(|state| **state != states[0]) {
        return Err(format!("the stores differ at {applied} and {}", states[0].0));
    }
    explain(&history.borrow())?;
    Ok(stores.counts())
}

fn explain(histories: &BTreeMap<u64, Vec<raft_core::sim::linearizability::Operation>>) -> Result<(), Failure> {
    for (key, history) in histories {
        match check(history, 1_000_000) {
            Verdict::Linearizable => {}
            other => return Err(format!("the history of key {key}: {other:?}")),
        }
    }
    Ok(())
}

fn run(seed: u64) -> Result<Counts, Failure> {
    let config = Config {
        election_timeout: Duration::from_millis(200),
        heartbeat_interval: Duration::from_millis(40),
        no_op_on_election: !seed.is_multiple_of(3),
        ..Config::new(NodeId(1))
    };
    let slowest_write = Duration::from_millis(if seed.is_multiple_of(2) { 3 } else { 0 });
    let options = Options { servers: SERVERS, seed, config, slowest_write, tell_failures: true };
    let stores = Stores::new(SERVERS, MAX_SESSIONS, Dice::new(seed, 2));
    let mut cluster = Cluster::new(options, Box::new(stores.clone()), None);
    let weather = cluster.network_mut().weather_mut();
    (weather.reliable, weather.long_delays) = (!seed.is_multiple_of(4), false);
    all_well(&mut cluster);
    let sim = Sim::new(cluster);
    sim.run(Duration::from_mins(1), script(sim.clone(), stores, seed))
        .map_err(|failure| format!("seed {seed}: {failure}"))
}

/// Run it with more seeds: `RAFT_TEST_SEEDS=1000 cargo test -p raft-node kv::simulated`.
#[test]
fn a_command_that_is_repeated_takes_effect_once_whatever_happens_to_the_servers() {
    let seeds = std::env::var("RAFT_TEST_SEEDS").map_or(24, |seeds| seeds.parse().expect("a number"));
    let mut all = Counts::default();
    for seed in 0..seeds {
        let counts = run(seed).unwrap_or_else(|failure| panic!("{failure}"));
        all += counts;
    }
    println!("{all:?}");
    assert!(seeds < 24 || all.is_complete(), "something never occurred: {all:?}");
}

/// A failure can be repeated only if a run is a function of its seed, although there are real files and threads in it.
#[test]
fn the_same_seed_does_the_same() {
    assert_eq!(run(3), run(3));
}
