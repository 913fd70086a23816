//! Lab 2A: elections.

use super::Outcome;
use super::harness::{ELECTION, Lab, ensure};

/// A leader is elected, and without failures it stays.
pub(super) async fn initial_election(t: Lab) -> Outcome {
    t.check_one_leader().await?;
    t.sleep(50).await;
    let before = t.check_terms()?;
    ensure(before.0 >= 1, || format!("a leader in term {before}"))?;
    t.sleep(2 * ELECTION).await;
    let after = t.check_terms()?;
    ensure(before == after, || format!("without any failure the term went from {before} to {after}"))?;
    t.check_one_leader().await?;
    Ok(())
}

/// A new leader takes over; the old one's return changes nothing; no majority, no leader.
pub(super) async fn reelection(t: Lab) -> Outcome {
    let n = t.servers();
    let first = t.check_one_leader().await?;
    t.disconnect(first);
    t.check_one_leader().await?;
    t.connect(first);
    let second = t.check_one_leader().await?;
    t.disconnect(second);
    t.disconnect((second + 1) % n);
    t.sleep(2 * ELECTION).await;
    t.check_no_leader()?;
    t.connect((second + 1) % n);
    t.check_one_leader().await?;
    t.connect(second);
    t.check_one_leader().await?;
    Ok(())
}

/// Many elections, each without a random minority.
pub(super) async fn many_elections(t: Lab) -> Outcome {
    t.check_one_leader().await?;
    for _ in 1..10 {
        let cut = [t.pick_server(), t.pick_server(), t.pick_server()];
        cut.iter().for_each(|i| t.disconnect(*i));
        t.check_one_leader().await?;
        cut.iter().for_each(|i| t.connect(*i));
    }
    t.check_one_leader().await?;
    Ok(())
}
