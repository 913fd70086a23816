//! Lab 2B: the log.

use super::Outcome;
use super::harness::{Command, ELECTION, Lab, Started, Waited, ensure, number};
use crate::types::Term;

/// The first commands get the indices 1, 2 and 3, and are not applied before they are proposed.
pub(super) async fn basic_agree(t: Lab) -> Outcome {
    for i in 1..=3 {
        t.check_not_committed(i)?;
        let index = t.one(&number(100 * i), t.servers(), false).await?;
        ensure(index == i, || format!("command {i} got index {index}"))?;
    }
    Ok(())
}

/// Each command travels to each follower about once.
pub(super) async fn rpc_bytes(t: Lab) -> Outcome {
    const LEN: usize = 5000;
    let n = t.servers();
    t.one(&number(99), n, false).await?;
    let before = t.traffic().bytes;
    let mut sent = 0;
    for i in 2..12 {
        let index = t.one(&t.random_string(LEN), n, false).await?;
        ensure(index == i, || format!("command {i} got index {index}"))?;
        sent += LEN;
    }
    let took = t.traffic().bytes - before;
    let limit = (n * sent + 50_000) as u64;
    ensure(took <= limit, || format!("{took} bytes for {sent} bytes of commands, {limit} are allowed"))
}

/// Agreement with one follower cut off; none with two.
pub(super) async fn follower_failure(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(101), n, false).await?;
    let leader = t.check_one_leader().await?;
    t.disconnect((leader + 1) % n);
    t.one(&number(102), n - 1, false).await?;
    t.sleep(ELECTION).await;
    t.one(&number(103), n - 1, false).await?;
    let leader = t.check_one_leader().await?;
    t.disconnect((leader + 1) % n);
    t.disconnect((leader + 2) % n);
    let started = t.propose(leader, &number(104));
    ensure(started.is_some_and(|s| s.index == 4), || format!("the cut-off leader said {started:?}"))?;
    t.sleep(2 * ELECTION).await;
    t.check_not_committed(4)
}

/// Agreement with one leader cut off; none with two.
pub(super) async fn leader_failure(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(101), n, false).await?;
    let first = t.check_one_leader().await?;
    t.disconnect(first);
    t.one(&number(102), n - 1, false).await?;
    t.sleep(ELECTION).await;
    t.one(&number(103), n - 1, false).await?;
    let second = t.check_one_leader().await?;
    t.disconnect(second);
    (0..n).for_each(|i| _ = t.propose(i, &number(104)));
    t.sleep(2 * ELECTION).await;
    t.check_not_committed(4)
}

/// A follower that was cut off catches up.
pub(super) async fn fail_agree(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(101), n, false).await?;
    let leader = t.check_one_leader().await?;
    t.disconnect((leader + 1) % n);
    t.one(&number(102), n - 1, false).await?;
    t.one(&number(103), n - 1, false).await?;
    t.sleep(ELECTION).await;
    t.one(&number(104), n - 1, false).await?;
    t.one(&number(105), n - 1, false).await?;
    t.connect((leader + 1) % n);
    t.one(&number(106), n, true).await?;
    t.sleep(ELECTION).await;
    t.one(&number(107), n, true).await?;
    Ok(())
}

/// Nothing is committed without a majority, and the cluster recovers.
pub(super) async fn fail_no_agree(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(10), n, false).await?;
    let leader = t.check_one_leader().await?;
    let cut = [1, 2, 3].map(|k| (leader + k) % n);
    cut.iter().for_each(|i| t.disconnect(*i));
    let started = t.propose(leader, &number(20));
    ensure(started.is_some_and(|s| s.index == 2), || format!("the leader said {started:?}"))?;
    t.sleep(2 * ELECTION).await;
    t.check_not_committed(2)?;
    cut.iter().for_each(|i| t.connect(*i));
    // The majority may have chosen a leader of its own that lacks the second command, or not.
    let leader = t.check_one_leader().await?;
    let started = t.propose(leader, &number(30));
    ensure(started.is_some_and(|s| s.index == 2 || s.index == 3), || format!("the new leader said {started:?}"))?;
    t.one(&number(1000), n, true).await?;
    Ok(())
}

/// Commands that come at the same time all find a place.
pub(super) async fn concurrent_starts(t: Lab) -> Outcome {
    for attempt in 0..5 {
        if attempt > 0 {
            t.sleep(3000).await;
        }
        if let Some(values) = starts_of_one_term(&t).await? {
            let missing = (100..105).find(|value| !values.contains(&number(*value)));
            return ensure(missing.is_none(), || format!("command {missing:?} is missing"));
        }
    }
    Err("the term changed in each of five attempts".into())
}

/// Five commands at once; what was committed at their indices, or `None` if the term changed meanwhile.
async fn starts_of_one_term(t: &Lab) -> Result<Option<Vec<Command>>, String> {
    let leader = t.check_one_leader().await?;
    let Some(Started { term, .. }) = t.propose(leader, &number(1)) else { return Ok(None) };
    let tasks: Vec<_> = (0..5)
        .map(|k| {
            let client = t.clone();
            t.spawn(async move { client.propose(leader, &number(100 + k)) })
        })
        .collect();
    let mut indices = Vec::new();
    for task in tasks {
        indices.extend(task.join().await.filter(|s| s.term == term).map(|s| s.index));
    }
    if !all_in(t, term) {
        return Ok(None);
    }
    let mut values = Vec::new();
    for index in indices {
        match t.wait(index, t.servers(), Some(term)).await? {
            Waited::Value(value) => values.push(value),
            Waited::MovedOn => return Ok(None),
        }
    }
    Ok(Some(values))
}

fn all_in(t: &Lab, term: Term) -> bool {
    (0..t.servers()).all(|i| t.state(i).is_some_and(|(now, _)| now == term))
}

/// A leader comes back from a partition with entries that nobody wants.
pub(super) async fn rejoin(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&number(101), n, true).await?;
    let first = t.check_one_leader().await?;
    t.disconnect(first);
    for orphan in 102..=104 {
        t.propose(first, &number(orphan));
    }
    t.one(&number(103), n - 1, true).await?;
    let second = t.check_one_leader().await?;
    t.disconnect(second);
    t.connect(first);
    t.one(&number(104), n - 1, true).await?;
    t.connect(second);
    t.one(&number(105), n, true).await?;
    Ok(())
}

/// Leaders find their way back over fifty wrong entries at a time, and need one round trip for it.
pub(super) async fn backup(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&t.random_command(), n, true).await?;
    let first = t.check_one_leader().await?;
    let near = (first + 1) % n;
    let far = [2, 3, 4].map(|k| (first + k) % n);
    far.iter().for_each(|i| t.disconnect(*i));
    orphans(&t, first);
    t.sleep(ELECTION / 2).await;
    t.disconnect(first);
    t.disconnect(near);
    far.iter().for_each(|i| t.connect(*i));
    agree_on_fifty(&t).await?;

    let second = t.check_one_leader().await?;
    let other = if second == far[0] { far[1] } else { far[0] };
    t.disconnect(other);
    orphans(&t, second);
    t.sleep(ELECTION / 2).await;
    (0..n).for_each(|i| t.disconnect(i));
    [first, near, other].into_iter().for_each(|i| t.connect(i));
    agree_on_fifty(&t).await?;

    (0..n).for_each(|i| t.connect(i));
    t.one(&t.random_command(), n, true).await?;
    let trips = t.most_round_trips();
    ensure(trips == 1, || format!("{trips} round trips to find a match; it takes one"))
}

/// Fifty commands that will never be committed.
fn orphans(t: &Lab, leader: usize) {
    for _ in 0..50 {
        t.propose(leader, &t.random_command());
    }
}

async fn agree_on_fifty(t: &Lab) -> Outcome {
    for _ in 0..50 {
        t.one(&t.random_command(), 3, true).await?;
    }
    Ok(())
}

/// Few messages: for an election, for a burst of commands, for an idle second.
pub(super) async fn count(t: Lab) -> Outcome {
    t.check_one_leader().await?;
    let elected = t.traffic().delivered;
    ensure((1..=30).contains(&elected), || format!("{elected} calls to elect the first leader; 1 to 30 are allowed"))?;
    let mut idle_from = None;
    for attempt in 0..5 {
        if attempt > 0 {
            t.sleep(3000).await;
        }
        idle_from = burst(&t).await?;
        if idle_from.is_some() {
            break;
        }
    }
    let idle_from = idle_from.ok_or("the term changed in each of five attempts")?;
    t.sleep(ELECTION).await;
    let idle = t.traffic().delivered - idle_from;
    ensure(idle <= 60, || format!("{idle} calls in an idle second; 60 are allowed"))
}

/// Twelve commands at once. The calls made until then, or `None` if the term changed meanwhile.
async fn burst(t: &Lab) -> Result<Option<u64>, String> {
    let n = t.servers();
    let leader = t.check_one_leader().await?;
    let before = t.traffic().delivered;
    let Some(Started { index, term }) = t.propose(leader, &number(1)) else { return Ok(None) };
    let commands: Vec<Command> = (0..11).map(|_| number(t.between(0, (1 << 31) - 1))).collect();
    for (k, command) in commands.iter().enumerate() {
        let Some(started) = t.propose(leader, command).filter(|s| s.term == term) else { return Ok(None) };
        let expected = index + 1 + k as u64;
        ensure(started.index == expected, || format!("{started:?} instead of index {expected}"))?;
    }
    for (k, command) in commands.iter().enumerate().take(10) {
        let at = index + 1 + k as u64;
        match t.wait(at, n, Some(term)).await? {
            Waited::Value(value) => ensure(value == *command, || format!("another command was committed at {at}"))?,
            Waited::MovedOn => return Ok(None),
        }
    }
    if !all_in(t, term) {
        return Ok(None);
    }
    let after = t.traffic().delivered;
    let limit = (10 + 1 + 3) * 3;
    ensure(after - before <= limit, || format!("{} calls for 12 commands; {limit} are allowed", after - before))?;
    Ok(Some(after))
}
