//! What the clients noticed, and what the processes used, in each phase of catching up.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::outcome::{Outcome, short};
use crate::meter::{Latency, Meter, histogram, latency};
use crate::plot::{Axis, Scale, Series};
use crate::probe::Cpu;

/// Latencies are looked at for as long, one after the other.
const MOMENT: Duration = Duration::from_secs(1);

/// The phases, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// All nodes are there, and nothing happens.
    QuietAll,
    /// The follower is away, and nothing happens.
    QuietWithout,
    /// It starts, is added, and the leader makes a snapshot.
    Starting,
    /// The snapshot is under way.
    Transfer,
    /// It has arrived, and the follower's state machine takes it over.
    Restoring,
    /// The rest comes from the log.
    Log,
    /// It has caught up.
    Done,
    /// All nodes are there again, and nothing happens.
    QuietAgain,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Step::QuietAll => "quiet, all nodes",
            Step::QuietWithout => "quiet, follower away",
            Step::Starting => "start, making of the snapshot",
            Step::Transfer => "transfer",
            Step::Restoring => "restoring",
            Step::Log => "log",
            Step::Done => "done",
            Step::QuietAgain => "quiet again, all nodes",
        }
    }

    /// With which phase it shares a line of the picture: there are six colours.
    fn line(self) -> Step {
        if self == Step::Log { Step::Restoring } else { self }
    }

    fn line_name(self) -> &'static str {
        match self {
            Step::Starting => "making the snapshot",
            Step::Restoring | Step::Log => "restoring, log",
            Step::QuietAgain => "quiet again",
            other => other.name(),
        }
    }
}

/// One phase that is over.
struct Phase {
    step: Step,
    seconds: f64,
    latencies: Histogram<u64>,
    /// CPU time of the leader, of the follower and of the machine, and what the host took from it, in microseconds.
    cpu: [Option<f64>; 4],
}

/// A second of a phase, or what was left of it.
struct Moment {
    step: Step,
    /// When it ended, in seconds since the first one began.
    at: f64,
    p99_ms: f64,
    /// What the host took, in percent of one core.
    stolen: Option<f64>,
}

/// The phase that goes on.
struct Now {
    step: Step,
    begin: Instant,
    cpu: [Option<f64>; 4],
    /// Of the moments that are over.
    latencies: Histogram<u64>,
    /// When this one began, and what the host had taken until then.
    moment: Instant,
    stolen: Option<f64>,
}

/// Keeps book of the phases.
pub(super) struct Recorder {
    leader: Vec<u32>,
    follower: Vec<u32>,
    now: Option<Now>,
    phases: Vec<Phase>,
    first: Option<Instant>,
    moments: Vec<Moment>,
}

impl Recorder {
    /// For these processes.
    pub(super) fn new(leader: Option<u32>, follower: Option<u32>) -> Self {
        let (leader, follower) = (leader.into_iter().collect(), follower.into_iter().collect());
        Recorder { leader, follower, now: None, phases: Vec::new(), first: None, moments: Vec::new() }
    }

    /// The follower has another process now.
    pub(super) fn follower(&mut self, pid: Option<u32>) {
        self.follower = pid.into_iter().collect();
    }

    /// The last phase that has begun.
    pub(super) fn step(&self) -> Step {
        let last = self.phases.last().map_or(Step::QuietAll, |phase| phase.step);
        self.now.as_ref().map_or(last, |now| now.step)
    }

    /// Ends the phase that goes on, if there is one, and begins another.
    pub(super) fn begin(&mut self, step: Step, meter: &Meter) -> Result<()> {
        if self.now.is_some() {
            self.end(meter)?;
        } else {
            // What came between two phases belongs to none.
            meter.take_latencies()?;
        }
        let (begin, cpu) = (Instant::now(), self.cpu());
        self.first.get_or_insert(begin);
        self.now = Some(Now { step, begin, cpu, latencies: histogram()?, moment: begin, stolen: cpu[3] });
        Ok(())
    }

    /// To be called now and then while a phase goes on.
    pub(super) fn look(&mut self, meter: &Meter) -> Result<()> {
        match &self.now {
            Some(now) if now.moment.elapsed() >= MOMENT => self.next_moment(meter),
            _ => Ok(()),
        }
    }

    fn next_moment(&mut self, meter: &Meter) -> Result<()> {
        let (at, [.., stolen]) = (Instant::now(), self.cpu());
        let (Some(now), Some(first)) = (&mut self.now, self.first) else { return Ok(()) };
        let latencies = meter.take_latencies()?;
        let seconds = (at - now.moment).as_secs_f64();
        // Of a few milliseconds there is nothing to be said.
        if seconds > MOMENT.as_secs_f64() / 4.0 {
            let percent = |until: f64, since: f64| (until - since).max(0.0) / 1e4 / seconds;
            self.moments.push(Moment {
                step: now.step,
                at: (at - first).as_secs_f64(),
                p99_ms: latency(&latencies).p99 / 1e3,
                stolen: stolen.zip(now.stolen).map(|(until, since)| percent(until, since)),
            });
        }
        now.latencies.add(&latencies)?;
        (now.moment, now.stolen) = (at, stolen);
        Ok(())
    }

    /// Puts the time line into the outcome.
    pub(super) fn chart(&self, outcome: &mut Outcome) {
        let steps: BTreeSet<Step> = self.moments.iter().map(|moment| moment.step.line()).collect();
        let latencies = steps.iter().enumerate().map(|(color, step)| {
            let of_step = self.moments.iter().filter(|moment| moment.step.line() == *step);
            Series::new(step.line_name(), color, of_step.map(|moment| (moment.at, moment.p99_ms)))
        });
        let seconds = || Axis::new("seconds", Scale::Linear);
        outcome.chart("p99 of the writes of each second", seconds(), Axis::new("ms", Scale::Log), latencies.collect());
        let stolen = self.moments.iter().filter_map(|moment| Some((moment.at, moment.stolen?)));
        let stolen = vec![Series::new("taken by the host", 0, stolen)];
        outcome.chart("what the host took", seconds(), Axis::new("% of one core", Scale::Linear), stolen);
        outcome.samples("moments_s", self.moments.iter().map(|moment| moment.at));
        outcome.samples("moments_p99_ms", self.moments.iter().map(|moment| moment.p99_ms));
    }

    /// Ends the phase that goes on.
    pub(super) fn end(&mut self, meter: &Meter) -> Result<()> {
        self.next_moment(meter)?;
        if let Some(Now { step, begin, cpu, latencies, .. }) = self.now.take() {
            let used = self.cpu();
            let cpu = std::array::from_fn(|at| Some((used[at]? - cpu[at]?).max(0.0)));
            self.phases.push(Phase { step, seconds: begin.elapsed().as_secs_f64(), latencies, cpu });
        }
        Ok(())
    }

    fn cpu(&self) -> [Option<f64>; 4] {
        let of = |pids: &[u32]| Cpu::read(pids).nodes.filter(|_| !pids.is_empty());
        let Cpu { machine, stolen, .. } = Cpu::read(&[]);
        [of(&self.leader), of(&self.follower), machine, stolen]
    }

    /// A line of the table for each phase, and one for all of catching up.
    pub(super) fn rows(&self) -> Vec<Vec<String>> {
        let mut rows: Vec<_> = self.phases.iter().map(row).collect();
        if let Ok(all) = self.catching_up() {
            rows.push(row(&all));
            if let Some(name) = rows.last_mut().and_then(|row| row.first_mut()) {
                "all of catching up".clone_into(name);
            }
        }
        rows
    }

    /// p99 of the writes in these phases together, in milliseconds.
    pub(super) fn p99_ms(&self, steps: &[Step]) -> Result<f64> {
        Ok(latency(&self.together(|step| steps.contains(&step))?.latencies).p99 / 1e3)
    }

    /// p99 of the writes while the follower catches up, in milliseconds.
    pub(super) fn p99_ms_of_catching_up(&self) -> Result<f64> {
        Ok(latency(&self.catching_up()?.latencies).p99 / 1e3)
    }

    fn catching_up(&self) -> Result<Phase> {
        self.together(|step| (Step::Starting..Step::Done).contains(&step))
    }

    fn together(&self, which: impl Fn(Step) -> bool) -> Result<Phase> {
        let mut all = Phase { step: Step::Done, seconds: 0.0, latencies: histogram()?, cpu: [Some(0.0); 4] };
        for phase in self.phases.iter().filter(|phase| which(phase.step)) {
            all.latencies.add(&phase.latencies)?;
            all.seconds += phase.seconds;
            all.cpu = std::array::from_fn(|at| Some(all.cpu[at]? + phase.cpu[at]?));
        }
        Ok(all)
    }
}

fn row(phase: &Phase) -> Vec<String> {
    let Latency { p50, p99, max, .. } = latency(&phase.latencies);
    let millis = [p50, p99, max].map(|micros| short(micros / 1e3));
    let throughput = phase.latencies.len() as f64 / phase.seconds.max(1e-9);
    let percent =
        |micros: Option<f64>| micros.map_or("-".to_owned(), |m| format!("{:.0}", m / 1e4 / phase.seconds.max(1e-9)));
    let mut row = vec![phase.step.name().to_owned(), format!("{:.1}", phase.seconds), format!("{throughput:.0}")];
    row.extend(millis);
    row.extend(phase.cpu.map(percent));
    row
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_phase_has_its_own_latencies_and_catching_up_has_all_of_its_phases() {
        let (meter, mut recorder) = (Meter::new().unwrap(), Recorder::new(None, None));
        let at = Instant::now();
        let write = |millis| meter.record(at, at + Duration::from_millis(millis));
        write(900);
        recorder.begin(Step::QuietAll, &meter).unwrap();
        write(1);
        recorder.end(&meter).unwrap();
        recorder.begin(Step::Starting, &meter).unwrap();
        write(5);
        assert_eq!(recorder.step(), Step::Starting);
        recorder.begin(Step::Transfer, &meter).unwrap();
        write(20);
        recorder.end(&meter).unwrap();
        let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.01, "{found}, {expected}");
        close(recorder.p99_ms(&[Step::QuietAll]).unwrap(), 1.0);
        close(recorder.p99_ms(&[Step::Starting]).unwrap(), 5.0);
        close(recorder.p99_ms_of_catching_up().unwrap(), 20.0);
        let rows = recorder.rows();
        assert_eq!(rows.len(), 4);
        assert_eq!((rows[3][0].as_str(), rows[3][6].as_str()), ("all of catching up", "-"));
    }
}
