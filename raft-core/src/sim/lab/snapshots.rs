//! Lab 2D: servers forget the beginning of their logs, and send snapshots to those who need it.

use super::Outcome;
use super::harness::{Lab, ensure};

/// The most bytes of term, vote and log that a server may have saved, whatever has happened before.
const MAX_LOG_SIZE: usize = 2000;

/// What happens to the victim of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Harm {
    None,
    Disconnect,
    Crash,
}

/// Everybody keeps up.
pub(super) async fn basic(t: Lab) -> Outcome {
    rounds(t, Harm::None).await
}

/// Someone is cut off while the others go on.
pub(super) async fn install(t: Lab) -> Outcome {
    rounds(t, Harm::Disconnect).await
}

/// Someone is down while the others go on.
pub(super) async fn install_crash(t: Lab) -> Outcome {
    rounds(t, Harm::Crash).await
}

async fn rounds(t: Lab, harm: Harm) -> Outcome {
    let n = t.servers();
    t.one(&t.random_command(), n, true).await?;
    let mut leader = t.check_one_leader().await?;
    for round in 0..30 {
        let follower = (leader + 1) % n;
        let (victim, sender) = if round % 3 == 1 { (leader, follower) } else { (follower, leader) };
        match harm {
            Harm::None => {}
            Harm::Disconnect => t.disconnect(victim),
            Harm::Crash => t.crash(victim),
        }
        if harm != Harm::None {
            t.one(&t.random_command(), n - 1, true).await?;
        }
        for _ in 0..t.between(5, 14) {
            // The sender may be no leader: then nothing comes of it.
            let _ = t.propose(sender, &t.random_command());
        }
        let all = if harm == Harm::None { n } else { n - 1 };
        t.one(&t.random_command(), all, true).await?;
        let size = t.log_size();
        ensure(size < MAX_LOG_SIZE, || format!("{size} bytes of log are saved"))?;
        if harm == Harm::Crash {
            t.start(victim);
        }
        if harm != Harm::None {
            t.connect(victim);
            t.one(&t.random_command(), n, true).await?;
            leader = t.check_one_leader().await?;
        }
    }
    Ok(())
}

fn restart_all(t: &Lab) {
    for i in 0..t.servers() {
        t.crash(i);
    }
    for i in 0..t.servers() {
        t.start(i);
        t.connect(i);
    }
}

/// All servers crash together, again and again, and nothing is lost.
pub(super) async fn all_crash(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&t.random_command(), n, true).await?;
    for _ in 0..5 {
        for _ in 0..t.between(5, 14) {
            t.one(&t.random_command(), n, true).await?;
        }
        let before = t.one(&t.random_command(), n, true).await?;
        restart_all(&t);
        let after = t.one(&t.random_command(), n, true).await?;
        ensure(after > before, || format!("after a restart of all, {after} is agreed on, and before {before} was"))?;
    }
    Ok(())
}

/// A server that saves its state after a restart must not save an empty snapshot with it.
pub(super) async fn init(t: Lab) -> Outcome {
    let n = t.servers();
    t.one(&t.random_command(), n, true).await?;
    for _ in 0..=10 {
        t.one(&t.random_command(), n, true).await?;
    }
    for _ in 0..2 {
        restart_all(&t);
        t.one(&t.random_command(), n, true).await?;
    }
    Ok(())
}
