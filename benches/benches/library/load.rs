//! Clients that write one command after another, and what they notice.

use std::any::type_name;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::task::JoinSet;

use crate::PAYLOAD;
use crate::sum::Sum;

/// Three nodes.
pub(crate) trait Cluster {
    /// What it is called in tables.
    const NAME: &'static str;
    type Client: Client;

    /// Somebody at the leader.
    async fn client(&self) -> Result<Self::Client>;
    /// The term that the leader leads in.
    async fn term(&self) -> Result<u64>;
    /// Waits until every node has applied everything, stops them, and tells what they have.
    async fn finish(self) -> Result<Vec<Sum>>;
}

/// Whoever writes.
pub(crate) trait Client: Clone + Send + Sync + 'static {
    /// Returns when the command has been committed and applied at the leader, with the state machine's reply.
    fn write(&self, command: Bytes) -> impl Future<Output = Result<u64>> + Send;
}

/// How long a repetition takes.
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What came of one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// Writes a second.
    pub(crate) rate: f64,
    /// Latencies in microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// CPU time of the whole process for each write, in microseconds: nodes, clients, and the other cluster, which idles.
    pub(crate) cpu: f64,
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// Writes of all repetitions that were acknowledged, by cluster.
static ACKNOWLEDGED: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// How many writes this cluster has acknowledged.
pub(crate) fn acknowledged<C: Cluster>() -> u64 {
    let all = ACKNOWLEDGED.lock().unwrap_or_else(PoisonError::into_inner);
    all.get(type_name::<C::Client>()).copied().unwrap_or(0)
}

/// Lets so many clients write.
pub(crate) async fn run<C: Client>(client: C, clients: u32, times: &Times) -> Result<Measured> {
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let done = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(write(client.clone(), u64::from(number), phase.clone(), done.clone()));
    }
    tokio::time::sleep(times.warm_up).await;
    phase.store(MEASURED, Ordering::Relaxed);
    let (begin, cpu) = (Instant::now(), cpu());
    tokio::time::sleep(times.measured).await;
    phase.store(OVER, Ordering::Relaxed);
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), self::cpu().saturating_sub(cpu));
    let mut took: Vec<u32> = Vec::new();
    let mut failure = None;
    while let Some(ended) = tasks.join_next().await {
        match ended.context("a client panicked")? {
            Ok(of_one) => took.extend(of_one),
            Err(error) => failure = Some(error),
        }
    }
    *ACKNOWLEDGED.lock().unwrap_or_else(PoisonError::into_inner).entry(type_name::<C>()).or_default() +=
        done.load(Ordering::Relaxed);
    match failure {
        Some(error) => Err(error),
        None => summary(took, seconds, cpu),
    }
}

/// Returns how long the writes that ended in the measured time took, in nanoseconds.
async fn write<C: Client>(client: C, seed: u64, phase: Arc<AtomicU8>, all: Arc<AtomicU64>) -> Result<Vec<u32>> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut payload = [0; PAYLOAD];
    rng.fill_bytes(&mut payload);
    let (mut took, mut done) = (Vec::new(), 0u64);
    while phase.load(Ordering::Relaxed) != OVER {
        payload[..8].copy_from_slice(&done.to_le_bytes());
        let command = Bytes::copy_from_slice(&payload);
        let begin = Instant::now();
        client.write(command).await?;
        done += 1;
        if phase.load(Ordering::Relaxed) == MEASURED {
            took.push(u32::try_from(begin.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
    }
    all.fetch_add(done, Ordering::Relaxed);
    Ok(took)
}

fn summary(mut took: Vec<u32>, seconds: f64, cpu: Duration) -> Result<Measured> {
    took.sort_unstable();
    let at = |share: f64| took.get((share * took.len() as f64) as usize).map(|&nanos| f64::from(nanos) / 1e3);
    let none = "no write ended in the measured time";
    let count = took.len() as f64;
    Ok(Measured {
        rate: count / seconds,
        p50: at(0.5).context(none)?,
        p99: at(0.99).context(none)?,
        cpu: cpu.as_secs_f64() * 1e6 / count,
    })
}

/// CPU time of this process.
#[cfg(unix)]
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

/// Not known.
#[cfg(not(unix))]
fn cpu() -> Duration {
    Duration::ZERO
}
