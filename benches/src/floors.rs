//! What this machine can do at best, measured in the same run: latencies are told as multiples of it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::net::UdpSocket;
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::meter::{self, Latency, nanos};

/// Bytes of an append and of a datagram.
const SIZE: usize = 256;

/// The floors; latencies in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Floors {
    /// Appending 256 bytes to a file and fdatasync, where the nodes keep their data, one writer.
    pub(crate) fdatasync: Latency,
    /// The same by as many writers at once as there are nodes, each with a file of its own: what a write waits for when all nodes share a disk. Absent in older files.
    #[serde(default)]
    pub(crate) fdatasync_together: Latency,
    /// 256 bytes to another thread and back over UDP on the loopback interface.
    pub(crate) udp_round_trip: Latency,
}

impl Floors {
    /// The least that a lone write of a client can take, in microseconds: to the leader and back, from the leader to a follower and
    /// back, and one sync, while the other nodes sync the same write.
    pub(crate) fn write(&self) -> f64 {
        let sync = if self.fdatasync_together.p50 > 0.0 { self.fdatasync_together } else { self.fdatasync };
        2.0 * self.udp_round_trip.p50 + sync.p50
    }
}

/// Measures floors in several parts of a run.
pub(crate) struct FloorMeter {
    fdatasync: Histogram<u64>,
    fdatasync_together: Histogram<u64>,
    udp_round_trip: Histogram<u64>,
}

impl FloorMeter {
    pub(crate) fn new() -> Result<Self> {
        Ok(FloorMeter {
            fdatasync: meter::histogram()?,
            fdatasync_together: meter::histogram()?,
            udp_round_trip: meter::histogram()?,
        })
    }

    /// Measures each floor for `time`, while the cluster is idle. `dir` is on the nodes' file system.
    pub(crate) fn measure(&mut self, dir: &Path, nodes: usize, time: Duration) -> Result<()> {
        let failed = || format!("cannot measure a sync in {}", dir.display());
        fdatasync(&mut self.fdatasync, dir, 0, time).with_context(failed)?;
        let together = &mut self.fdatasync_together;
        let writer = |number| {
            let mut histogram = meter::histogram()?;
            fdatasync(&mut histogram, dir, number, time).map(|()| histogram)
        };
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..nodes).map(|number| scope.spawn(move || writer(number))).collect();
            for writer in writers {
                let histogram = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))??;
                together.add(histogram)?;
            }
            anyhow::Ok(())
        })
        .with_context(failed)?;
        udp(&mut self.udp_round_trip, time).context("cannot measure a round trip")
    }

    /// All that was measured.
    pub(crate) fn floors(&self) -> Floors {
        Floors {
            fdatasync: meter::latency(&self.fdatasync),
            fdatasync_together: meter::latency(&self.fdatasync_together),
            udp_round_trip: meter::latency(&self.udp_round_trip),
        }
    }
}

fn fdatasync(histogram: &mut Histogram<u64>, dir: &Path, number: usize, time: Duration) -> Result<()> {
    let path = dir.join(format!("raft-load-{}-{number}.tmp", std::process::id()));
    let mut file = OpenOptions::new().append(true).create_new(true).open(&path)?;
    let measured = (|| {
        let begin = Instant::now();
        while begin.elapsed() < time {
            let at = Instant::now();
            file.write_all(&[0xA5; SIZE])?;
            file.sync_data()?;
            histogram.saturating_record(nanos(at.elapsed()));
        }
        Ok(())
    })();
    std::fs::remove_file(&path)?;
    measured
}

fn udp(histogram: &mut Histogram<u64>, time: Duration) -> Result<()> {
    with_echo(|near| ping(histogram, near, time))
}

/// Calls `measure` with a socket from which everything comes back that is sent: another thread sees to that.
fn with_echo(measure: impl FnOnce(&UdpSocket) -> Result<()>) -> Result<()> {
    let near = UdpSocket::bind("127.0.0.1:0")?;
    let far = UdpSocket::bind("127.0.0.1:0")?;
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    // Loopback hardly ever loses a datagram; when it does, the measurement goes on.
    near.set_read_timeout(Some(Duration::from_millis(100)))?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || echo(&far));
        let measured = measure(&near);
        near.send(&[])?;
        echo.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))??;
        measured
    })
}

fn ping(histogram: &mut Histogram<u64>, socket: &UdpSocket, time: Duration) -> Result<()> {
    let begin = Instant::now();
    while begin.elapsed() < time {
        round_trip(histogram, socket)?;
    }
    Ok(())
}

fn round_trip(histogram: &mut Histogram<u64>, socket: &UdpSocket) -> Result<()> {
    let (at, mut buffer) = (Instant::now(), [0; 2 * SIZE]);
    socket.send(&[0xA5; SIZE])?;
    match socket.recv(&mut buffer) {
        Ok(_) => histogram.saturating_record(nanos(at.elapsed())),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Round trips of a bare datagram between two threads that sleep until it comes, one now and then, beside whatever else goes on. No message between two processes
/// can be faster there than two threads get a processor, and this tells how fast that is.
pub(crate) struct Echoes {
    /// Dropped when it is to end.
    stop: Sender<()>,
    thread: JoinHandle<Result<Histogram<u64>>>,
}

impl Echoes {
    /// Begins to measure, one round trip after each pause, which is to be shorter than the five seconds for which the other thread listens.
    pub(crate) fn begin(pause: Duration) -> Result<Echoes> {
        let (stop, stopped) = channel();
        let measure = move || {
            let mut histogram = meter::histogram()?;
            with_echo(|near| {
                near.set_read_timeout(Some(Duration::from_secs(1)))?;
                while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
                    round_trip(&mut histogram, near)?;
                }
                Ok(())
            })?;
            Ok(histogram)
        };
        let thread = std::thread::Builder::new().name("echoes".into()).spawn(measure)?;
        Ok(Echoes { stop, thread })
    }

    /// How many there were, and how long they took.
    pub(crate) fn end(self) -> Result<(u64, Latency)> {
        drop(self.stop);
        let histogram =
            self.thread.join().map_err(|_| anyhow::anyhow!("the thread that measures echoes panicked"))??;
        Ok((histogram.len(), meter::latency(&histogram)))
    }
}

/// Sends everything back until an empty datagram comes, or nothing for a while.
fn echo(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [0; 2 * SIZE];
    loop {
        match socket.recv(&mut buffer)? {
            0 => return Ok(()),
            length => socket.send(&buffer[..length])?,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echoes_come_back_until_they_are_ended() {
        let echoes = Echoes::begin(Duration::from_millis(1)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let (count, latency) = echoes.end().unwrap();
        assert!(count > 0 && latency.p50 > 0.0, "{count}, {latency:?}");
        let (none, _) = Echoes::begin(Duration::from_hours(1)).unwrap().end().unwrap();
        assert_eq!(none, 0, "it ends in the midst of a pause");
    }

    #[test]
    fn floors_are_found_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = FloorMeter::new().unwrap();
        meter.measure(dir.path(), 3, Duration::from_millis(20)).unwrap();
        let floors = meter.floors();
        assert!(floors.fdatasync.p50 > 0.0 && floors.udp_round_trip.p50 > 0.0, "{floors:?}");
        assert!(floors.write() > floors.fdatasync_together.p50 && floors.fdatasync_together.p50 > 0.0, "{floors:?}");
        let old = Floors { fdatasync_together: Latency::default(), ..floors };
        assert!(old.write() > floors.fdatasync.p50, "of an older file");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(meter.measure(&dir.path().join("absent"), 3, Duration::ZERO).is_err());
    }
}
