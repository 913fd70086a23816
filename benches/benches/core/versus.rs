//! Our core and raft-rs in turn: what is measured of one is measured of the other right after it, on the same machine in the same mood.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput};

use crate::ratio::Ratio;
use crate::{PAYLOAD, machine, raft_rs};

/// Commands that one of them commits before it is the other's turn.
const TURN: u64 = 4096;

/// Time of both for the same number of batches.
#[derive(Clone, Copy, Default)]
struct Pair {
    ours: Duration,
    theirs: Duration,
}

impl Pair {
    /// Lets both commit `batches` batches, in turn; `ours_first` decides who begins.
    fn measure(
        ours: &mut crate::cluster::Cluster,
        theirs: &mut raft_rs::Cluster,
        commands: &[Bytes],
        batches: u64,
        ours_first: bool,
    ) -> Pair {
        let mut pair = Pair::default();
        for ours_now in [ours_first, !ours_first] {
            let begin = Instant::now();
            for _ in 0..batches {
                if ours_now { ours.commit(commands) } else { theirs.commit(commands) }
            }
            *(if ours_now { &mut pair.ours } else { &mut pair.theirs }) = begin.elapsed();
        }
        pair
    }
}

/// The times are those of raft-rs; ours and the ratio are printed, and written into the folder `RAFT_BENCH_OUT` if that is set.
pub(crate) fn commit(c: &mut Criterion) {
    let mut group = c.benchmark_group("core/commit/raft-rs");
    let mut rows = Vec::new();
    for batch in [1, 16, 256] {
        let commands: Vec<Bytes> = (0..batch).map(|i| Bytes::from(vec![i as u8; PAYLOAD])).collect();
        let (mut ours, mut theirs) = (crate::cluster::Cluster::new(), raft_rs::Cluster::new());
        // One for each sample: times of one command in nanoseconds.
        let mut samples: Vec<(f64, f64)> = Vec::new();
        let mut ours_first = false;
        group.throughput(Throughput::Elements(batch));
        group.bench_function(BenchmarkId::from_parameter(batch), |b| {
            b.iter_custom(|iterations| {
                let (mut sum, mut left) = (Pair::default(), iterations);
                while left > 0 {
                    let batches = left.min(TURN / batch);
                    ours_first = !ours_first;
                    let pair = Pair::measure(&mut ours, &mut theirs, &commands, batches, ours_first);
                    (sum.ours, sum.theirs, left) = (sum.ours + pair.ours, sum.theirs + pair.theirs, left - batches);
                }
                let each = |time: Duration| time.as_nanos() as f64 / (iterations * batch) as f64;
                samples.push((each(sum.ours), each(sum.theirs)));
                sum.theirs
            });
        });
        // The first ones are criterion's warm-up.
        if let Some(row) = row(batch, &samples[samples.len() / 2..]) {
            let messages = |messages: u64, commands: u64| format!("{:.2}", messages as f64 / commands.max(1) as f64);
            let ours = messages(ours.messages, ours.servers[0].commands);
            let theirs = messages(theirs.messages, theirs.commands());
            let row: Vec<String> = row.into_iter().chain([ours, theirs]).collect();
            eprintln!(
                "core/commit/{batch}: {}",
                HEADER.iter().zip(&row).map(|(name, cell)| format!("{name} {cell}")).collect::<Vec<_>>().join(", ")
            );
            rows.push(row);
        }
        black_box(theirs.checksum() + ours.servers.iter().map(|server| server.checksum).sum::<u64>());
    }
    group.finish();
    if let (Some(dir), false) = (std::env::var_os("RAFT_BENCH_OUT"), rows.is_empty()) {
        save(Path::new(&dir), &rows).expect("the figures can be written");
    }
}

const HEADER: [&str; 8] = [
    "batch",
    "ours, ns a command",
    "raft-rs, ns a command",
    "ratio",
    "95 %",
    "verdict",
    "messages a command",
    "of raft-rs",
];

/// The beginning of a row; `None` when too little was measured.
fn row(batch: u64, samples: &[(f64, f64)]) -> Option<[String; 6]> {
    let (ours, theirs): (Vec<f64>, Vec<f64>) = samples.iter().copied().unzip();
    let ratio = Ratio::of_pairs(&ours, &theirs)?;
    let median = |values: &[f64]| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    };
    let verdict = match ratio.is_outside_noise() {
        false => "not certain",
        true if ratio.guess < 1.0 => "ahead",
        true => "behind",
    };
    Some([
        batch.to_string(),
        format!("{:.0}", median(&ours)),
        format!("{:.0}", median(&theirs)),
        format!("{:.3}", ratio.guess),
        format!("{:.3} .. {:.3}", ratio.low, ratio.high),
        verdict.to_owned(),
    ])
}

/// Writes them as the trials of the load generator are written, so that they can go on the same page.
fn save(dir: &Path, rows: &[Vec<String>]) -> std::io::Result<()> {
    let started = machine::timestamp(time::OffsetDateTime::now_utc());
    let outcome = serde_json::json!({
        "format": 1,
        "trial": "core",
        "started": started,
        "commit": machine::commit(),
        "machine": machine::Machine::find_out(dir),
        "settings": { "bytes of a command": PAYLOAD.to_string() },
        "header": HEADER,
        "rows": rows,
    });
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join(format!("{started}-core.json")), format!("{outcome:#}\n"))
}
