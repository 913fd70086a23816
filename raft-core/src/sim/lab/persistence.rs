//! Lab 2C: persistence, crashes and a bad network.

use std::cell::Cell;
use std::rc::Rc;

use super::Outcome;
use super::harness::{Command, ELECTION, Lab, Waited, ensure, number};

/// Servers come back with what they had.
pub(super) async fn persist1(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(11), n, true).await?;
    (0..n).for_each(|i| t.start(i));
    for i in 0..n {
        t.disconnect(i);
        t.connect(i);
    }
    t.one(&number(12), n, true).await?;
    let first = t.check_one_leader().await?;
    t.disconnect(first);
    t.start(first);
    t.connect(first);
    t.one(&number(13), n, true).await?;
    let second = t.check_one_leader().await?;
    t.disconnect(second);
    t.one(&number(14), n - 1, true).await?;
    t.start(second);
    t.connect(second);
    t.wait(4, n, None).await?;
    let third = (t.check_one_leader().await? + 1) % n;
    t.disconnect(third);
    t.one(&number(15), n - 1, true).await?;
    t.start(third);
    t.connect(third);
    t.one(&number(16), n, true).await?;
    Ok(())
}

/// Majorities that overlap in one server hand the log on.
pub(super) async fn persist2(t: Lab) -> Outcome {
    let n = t.servers();
    let mut next = 10;
    let mut command = || {
        next += 1;
        number(next)
    };
    for _ in 0..5 {
        t.one(&command(), n, true).await?;
        let leader = t.check_one_leader().await?;
        let after = |k| (leader + k) % n;
        t.disconnect(after(1));
        t.disconnect(after(2));
        t.one(&command(), n - 2, true).await?;
        [0, 3, 4].into_iter().for_each(|k| t.disconnect(after(k)));
        t.start(after(1));
        t.start(after(2));
        t.connect(after(1));
        t.connect(after(2));
        t.sleep(ELECTION).await;
        t.start(after(3));
        t.connect(after(3));
        t.one(&command(), n - 2, true).await?;
        t.connect(after(4));
        t.connect(leader);
    }
    t.one(&number(1000), n, true).await?;
    Ok(())
}

/// A leader and one follower crash; the other follower was cut off before.
pub(super) async fn persist3(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(101), n, true).await?;
    let leader = t.check_one_leader().await?;
    let (near, far) = ((leader + 1) % n, (leader + 2) % n);
    t.disconnect(far);
    t.one(&number(102), n - 1, true).await?;
    t.crash(leader);
    t.crash(near);
    t.connect(far);
    t.start(leader);
    t.connect(leader);
    t.one(&number(103), n - 1, true).await?;
    t.start(near);
    t.connect(near);
    t.one(&number(104), n, true).await?;
    Ok(())
}

/// How long Figure 8's leaders live: mostly too short to commit anything.
async fn a_short_life(t: &Lab) {
    let millis = if t.chance(100, 1000) { t.between(0, 499) } else { t.between(0, 12) };
    t.sleep(millis).await;
}

/// Figure 8 of the paper: leaders crash before they have committed their entries, which later leaders find.
pub(super) async fn figure8(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&t.random_command(), 1, true).await?;
    let mut up = n;
    for _ in 0..1000 {
        let mut leader = None;
        for i in 0..n {
            if t.is_alive(i) && t.propose(i, &t.random_command()).is_some() {
                leader = Some(i);
            }
        }
        a_short_life(&t).await;
        if let Some(leader) = leader {
            t.crash(leader);
            up -= 1;
        }
        if up < 3 {
            let i = t.pick_server();
            if !t.is_alive(i) {
                t.start(i);
                t.connect(i);
                up += 1;
            }
        }
    }
    for i in (0..n).filter(|i| !t.is_alive(*i)).collect::<Vec<_>>() {
        t.start(i);
        t.connect(i);
    }
    t.one(&t.random_command(), n, true).await?;
    Ok(())
}

/// Agreement on an unreliable network, with five clients at a time.
pub(super) async fn unreliable_agree(t: Lab) -> Outcome {
    let mut tasks = Vec::new();
    for i in 1..50 {
        for j in 0..4 {
            let client = t.clone();
            tasks.push(t.spawn(async move { client.one(&number(100 * i + j), 1, true).await }));
        }
        t.one(&number(i), 1, true).await?;
    }
    t.set_reliable(true);
    for task in tasks {
        task.join().await?;
    }
    t.one(&number(100), t.servers(), true).await?;
    Ok(())
}

/// Figure 8 with partitions instead of crashes, on an unreliable network where most replies come late.
pub(super) async fn figure8_unreliable(t: Lab) -> Outcome {
    let n = t.servers();
    let small = || number(t.between(0, 9999));
    t.one(&small(), 1, true).await?;
    let mut up = n;
    for iteration in 0..1000 {
        if iteration == 200 {
            t.set_long_reordering(true);
        }
        let mut leader = None;
        for i in 0..n {
            if t.propose(i, &small()).is_some() && t.is_connected(i) {
                leader = Some(i);
            }
        }
        a_short_life(&t).await;
        if let Some(leader) = leader.filter(|_| t.chance(1, 2)) {
            t.disconnect(leader);
            up -= 1;
        }
        if up < 3 {
            let i = t.pick_server();
            if !t.is_connected(i) {
                t.connect(i);
                up += 1;
            }
        }
    }
    (0..n).filter(|i| !t.is_connected(*i)).collect::<Vec<_>>().into_iter().for_each(|i| t.connect(i));
    t.one(&small(), n, true).await?;
    Ok(())
}

/// Clients at work while servers crash, restart and lose their links.
pub(super) async fn churn(t: Lab) -> Outcome {
    let n = t.servers();
    let stop = Rc::new(Cell::new(false));
    let clients: Vec<_> = (0..3).map(|m| t.spawn(client(t.clone(), m, stop.clone()))).collect();
    for _ in 0..20 {
        if t.chance(200, 1000) {
            t.disconnect(t.pick_server());
        }
        if t.chance(500, 1000) {
            let i = t.pick_server();
            if !t.is_alive(i) {
                t.start(i);
            }
            t.connect(i);
        }
        if t.chance(200, 1000) {
            let i = t.pick_server();
            if t.is_alive(i) {
                t.crash(i);
            }
        }
        t.sleep(700).await;
    }
    t.sleep(ELECTION).await;
    t.set_reliable(true);
    for i in 0..n {
        if !t.is_alive(i) {
            t.start(i);
        }
        t.connect(i);
    }
    stop.set(true);
    let mut done = Vec::new();
    for task in clients {
        done.extend(task.join().await);
    }
    t.sleep(ELECTION).await;
    let last = t.one(&t.random_command(), n, true).await?;
    let mut values = std::collections::BTreeSet::new();
    for index in 1..=last {
        match t.wait(index, n, None).await? {
            Waited::Value(value) => _ = values.insert(value),
            Waited::MovedOn => return Err("moved on from no term".into()),
        }
    }
    let lost = done.iter().filter(|command| !values.contains(*command)).count();
    ensure(lost == 0, || format!("{lost} of {} acknowledged commands are lost", done.len()))
}

/// Proposes to everyone, again and again. Returns what was seen to be committed.
async fn client(t: Lab, number: u64, stop: Rc<Cell<bool>>) -> Vec<Command> {
    let mut done = Vec::new();
    while !stop.get() {
        let command = t.random_command();
        let mut started = None;
        for i in (0..t.servers()).filter(|i| t.is_alive(*i)) {
            started = t.propose(i, &command).or(started);
        }
        let Some(started) = started else {
            t.sleep(79 + 17 * number).await;
            continue;
        };
        for pause in [10, 20, 50, 100, 200] {
            if let (1.., Some(value)) = t.committed(started.index) {
                if value == command {
                    done.push(command);
                }
                break;
            }
            t.sleep(pause).await;
        }
    }
    done
}
