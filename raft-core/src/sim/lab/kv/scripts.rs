//! The scripts of lab 3.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::clerk::{Clerk, Kv, Links};
use crate::sim::lab::Outcome;
use crate::sim::lab::harness::ensure;
use crate::sim::task::Failure;

/// What the course's generic test does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Generic {
    pub(super) clients: usize,
    pub(super) crash: bool,
    pub(super) partitions: bool,
    pub(super) random_keys: bool,
}

/// Three rounds over one cluster and one history.
pub(super) async fn generic(t: Kv, how: Generic) -> Outcome {
    let n = t.lab.servers();
    for _ in 0..3 {
        let stop = Rc::new(Cell::new(false));
        let clients: Vec<_> = (0..how.clients).map(|c| t.lab.spawn(client(t.clone(), c, how, stop.clone()))).collect();
        let partitioner = if how.partitions {
            t.lab.sleep(1000).await;
            Some(t.lab.spawn(partitioner(t.clone(), stop.clone())))
        } else {
            None
        };
        t.lab.sleep(5000).await;
        stop.set(true);
        if let Some(partitioner) = partitioner {
            partitioner.join().await;
            t.lab.link_all();
            t.lab.sleep(1000).await;
        }
        if how.crash {
            (0..n).for_each(|i| t.lab.crash(i));
            t.lab.sleep(1000).await;
            (0..n).for_each(|i| t.lab.start(i));
            t.lab.link_all();
        }
        let mut clerk = t.clerk_of_all();
        for (c, client) in clients.into_iter().enumerate() {
            let appended = client.join().await?;
            let found = clerk.get(&c.to_string()).await;
            if !how.random_keys {
                check_values(c, &found, appended)?;
            }
        }
        t.check_sizes()?;
    }
    t.check_history()
}

/// One client: puts, appends and gets until it is told to stop. Returns how many values it has written.
async fn client(t: Kv, c: usize, how: Generic, stop: Rc<Cell<bool>>) -> Result<usize, Failure> {
    let mut clerk = t.clerk_of_all();
    let own = c.to_string();
    let (mut j, mut expected) = (0, String::new());
    if !how.random_keys {
        clerk.put(&own, "").await;
    }
    while !stop.get() {
        // About as many operations as the course's own runs make; without a pause it would be twenty times as many.
        let pause = t.lab.between(0, 10 + 15 * how.clients as u64);
        t.lab.sleep(pause).await;
        let key = if how.random_keys { t.lab.between(0, how.clients as u64 - 1).to_string() } else { own.clone() };
        let value = format!("x {c} {j} y");
        if t.lab.chance(500, 1000) {
            clerk.append(&key, &value).await;
            expected.push_str(&value);
            j += 1;
        } else if how.random_keys && t.lab.chance(100, 1000) {
            clerk.put(&key, &value).await;
            j += 1;
        } else {
            let found = clerk.get(&key).await;
            ensure(how.random_keys || found == expected, || format!("client {c} found {found}, wrote {expected}"))?;
        }
    }
    Ok(j)
}

/// Splits the servers in two, anew every second.
async fn partitioner(t: Kv, stop: Rc<Cell<bool>>) {
    while !stop.get() {
        let sides: Vec<bool> = (0..t.lab.servers()).map(|_| t.lab.chance(1, 2)).collect();
        t.lab.partition(&sides);
        let pause = t.lab.between(1000, 1199);
        t.lab.sleep(pause).await;
    }
}

/// Each value of a client occurs once, in order.
fn check_values(client: usize, text: &str, values: usize) -> Outcome {
    let mut last = None;
    for j in 0..values {
        let value = format!("x {client} {j} y");
        let places: Vec<usize> = text.match_indices(&value).map(|(at, _)| at).collect();
        ensure(places.len() == 1, || format!("client {client}: {value} occurs {} times in {text}", places.len()))?;
        ensure(last < places.first().copied(), || format!("client {client}: {value} is out of order in {text}"))?;
        last = places.first().copied();
    }
    Ok(())
}

/// An operation must not wait for a heartbeat.
pub(super) async fn speed(t: Kv) -> Outcome {
    const OPERATIONS: u32 = 1000;
    let mut clerk = t.clerk_of_all();
    clerk.get("x").await;
    let begin = t.lab.now();
    for j in 0..OPERATIONS {
        clerk.append("x", &format!("x 0 {j} y")).await;
    }
    let each = t.lab.now().since(begin) / OPERATIONS;
    check_values(0, &clerk.get("x").await, OPERATIONS as usize)?;
    let limit = Duration::from_millis(100) / 3;
    ensure(each <= limit, || format!("an operation took {each:?}, {limit:?} are allowed"))?;
    t.check_sizes()
}

/// A server that was cut off needs a snapshot, and then serves what is in it.
pub(super) async fn left_behind(t: Kv) -> Outcome {
    let mut first = t.clerk_of_all();
    first.put("a", "A").await;
    expect(&mut first, "a", "A").await?;
    t.lab.partition(&[true, true, false]);
    let mut others = t.clerk([0, 1]);
    for i in 0..50 {
        others.put(&i.to_string(), &i.to_string()).await;
    }
    t.lab.sleep(1000).await;
    others.put("b", "B").await;
    t.check_sizes()?;
    t.lab.partition(&[true, false, true]);
    let mut late = t.clerk([0, 2]);
    late.put("c", "C").await;
    late.put("d", "D").await;
    for (key, value) in [("a", "A"), ("b", "B"), ("1", "1"), ("49", "49")] {
        expect(&mut late, key, value).await?;
    }
    ensure(t.restored(2), || "n3 has caught up without a snapshot".to_owned())?;
    t.lab.link_all();
    first.put("e", "E").await;
    for (key, value) in [("c", "C"), ("e", "E"), ("1", "1")] {
        expect(&mut first, key, value).await?;
    }
    t.check_history()
}

/// The state is small, however many operations there were: so are logs and snapshots.
pub(super) async fn small_state(t: Kv) -> Outcome {
    const MAX_SNAPSHOT_SIZE: usize = 500;
    const LIMIT: Duration = Duration::from_secs(20);
    let begin = t.lab.now();
    let mut clerk = t.clerk_of_all();
    for _ in 0..200 {
        for value in ["0", "1"] {
            clerk.put("x", value).await;
            expect(&mut clerk, "x", value).await?;
        }
    }
    t.check_sizes()?;
    let largest = t.largest_snapshot();
    ensure((1..=MAX_SNAPSHOT_SIZE).contains(&largest), || format!("the largest snapshot has {largest} bytes"))?;
    let took = t.lab.now().since(begin);
    ensure(took <= LIMIT, || format!("800 operations took {took:?}"))?;
    t.check_history()
}

/// Several clients append to one key.
pub(super) async fn one_key(t: Kv) -> Outcome {
    const CLIENTS: usize = 5;
    const APPENDS: usize = 10;
    let mut clerk = t.clerk_of_all();
    clerk.put("k", "").await;
    let append = |c| {
        let t = t.clone();
        async move {
            let mut clerk = t.clerk_of_all();
            for j in 0..APPENDS {
                clerk.append("k", &format!("x {c} {j} y")).await;
            }
        }
    };
    let clients: Vec<_> = (0..CLIENTS).map(|c| t.lab.spawn(append(c))).collect();
    for client in clients {
        client.join().await;
    }
    let found = clerk.get("k").await;
    (0..CLIENTS).try_for_each(|c| check_values(c, &found, APPENDS))?;
    t.check_history()
}

/// A majority goes on, a minority with the old leader does not; afterwards both agree.
pub(super) async fn one_partition(t: Kv) -> Outcome {
    let servers = t.lab.servers();
    t.clerk_of_all().put("1", "13").await;
    let leader = t.lab.check_one_leader().await?;
    let minority = [leader, (leader + 1) % servers];
    let sides: Vec<bool> = (0..servers).map(|i| minority.contains(&i)).collect();
    t.lab.partition(&sides);
    let mut major = t.clerk((0..servers).filter(|i| !minority.contains(i)));
    major.put("1", "14").await;
    expect(&mut major, "1", "14").await?;
    let done = Rc::new(Cell::new((false, false)));
    let (seen, mut b) = (done.clone(), t.clerk(minority));
    let b_links = b.links();
    let putting = t.lab.spawn(async move {
        b.put("1", "15").await;
        seen.set((true, seen.get().1));
    });
    let (seen, mut c) = (done.clone(), t.clerk(minority));
    let links = [b_links, c.links()];
    let getting = t.lab.spawn(async move {
        c.get("1").await;
        seen.set((seen.get().0, true));
    });
    t.lab.sleep(1000).await;
    ensure(done.get() == (false, false), || format!("a minority has answered: {:?}", done.get()))?;
    expect(&mut major, "1", "14").await?;
    major.put("1", "16").await;
    expect(&mut major, "1", "16").await?;
    t.lab.link_all();
    links.iter().for_each(Links::connect_all);
    let healed = t.lab.now();
    putting.join().await;
    getting.join().await;
    let took = t.lab.now().since(healed);
    ensure(took <= Duration::from_secs(4), || format!("after the partition it took {took:?}"))?;
    expect(&mut t.clerk_of_all(), "1", "15").await?;
    t.check_history()
}

async fn expect(clerk: &mut Clerk, key: &str, value: &str) -> Outcome {
    let found = clerk.get(key).await;
    ensure(found == value, || format!("{key} is {found:?}, not {value:?}"))
}
