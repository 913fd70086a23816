//! What this machine can do at best, measured in the same run: latencies are told as multiples of it.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::net::UdpSocket;
use std::path::Path;
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
    /// 256 bytes to another thread and back over UDP on the loopback interface.
    pub(crate) udp_round_trip: Latency,
}

impl Floors {
    /// The least that a lone write of a client can take, in microseconds: to the leader and back, from the leader to a follower and
    /// back, and one sync (the leader's own runs beside the follower's).
    pub(crate) fn write(&self) -> f64 {
        2.0 * self.udp_round_trip.p50 + self.fdatasync.p50
    }
}

/// Measures floors in several parts of a run.
pub(crate) struct FloorMeter {
    fdatasync: Histogram<u64>,
    udp_round_trip: Histogram<u64>,
}

impl FloorMeter {
    pub(crate) fn new() -> Result<Self> {
        Ok(FloorMeter { fdatasync: meter::histogram()?, udp_round_trip: meter::histogram()? })
    }

    /// Measures each floor for `time`, while the cluster is idle. `dir` is on the nodes' file system.
    pub(crate) fn measure(&mut self, dir: &Path, time: Duration) -> Result<()> {
        fdatasync(&mut self.fdatasync, dir, time)
            .with_context(|| format!("cannot measure a sync in {}", dir.display()))?;
        udp(&mut self.udp_round_trip, time).context("cannot measure a round trip")
    }

    /// All that was measured.
    pub(crate) fn floors(&self) -> Floors {
        Floors { fdatasync: meter::latency(&self.fdatasync), udp_round_trip: meter::latency(&self.udp_round_trip) }
    }
}

fn fdatasync(histogram: &mut Histogram<u64>, dir: &Path, time: Duration) -> Result<()> {
    let path = dir.join(format!("raft-load-{}.tmp", std::process::id()));
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
    let near = UdpSocket::bind("127.0.0.1:0")?;
    let far = UdpSocket::bind("127.0.0.1:0")?;
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    // Loopback hardly ever loses a datagram; when it does, the measurement goes on.
    near.set_read_timeout(Some(Duration::from_millis(100)))?;
    std::thread::scope(|scope| {
        let echo = scope.spawn(move || echo(&far));
        let measured = ping(histogram, &near, time);
        near.send(&[])?;
        echo.join().map_err(|_| anyhow::anyhow!("the echo thread panicked"))??;
        measured
    })
}

fn ping(histogram: &mut Histogram<u64>, socket: &UdpSocket, time: Duration) -> Result<()> {
    let (begin, mut buffer) = (Instant::now(), [0; 2 * SIZE]);
    while begin.elapsed() < time {
        let at = Instant::now();
        socket.send(&[0xA5; SIZE])?;
        match socket.recv(&mut buffer) {
            Ok(_) => histogram.saturating_record(nanos(at.elapsed())),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
    fn floors_are_found_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = FloorMeter::new().unwrap();
        meter.measure(dir.path(), Duration::from_millis(20)).unwrap();
        let floors = meter.floors();
        assert!(floors.fdatasync.p50 > 0.0 && floors.udp_round_trip.p50 > 0.0, "{floors:?}");
        assert!(floors.write() > floors.fdatasync.p50, "{floors:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(meter.measure(&dir.path().join("absent"), Duration::ZERO).is_err());
    }
}
