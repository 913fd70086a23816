//! What the operating system and the nodes themselves count: CPU time, memory, syncs, bytes.

use std::collections::BTreeMap;
use std::fs;

use raft_core::NodeId;
use raft_node::client::protocol::NodeStatus;

/// Names of counters in a node's status.
mod counter {
    /// Synced batches of the log.
    pub(super) const SYNCS: &str = "log.syncs";
    /// Bytes handed to the log's write-ahead log.
    pub(super) const LOG_BYTES: &str = "log.bytes_written";
    /// UDP payload sent, to peers and clients.
    pub(super) const UDP_BYTES: &str = "net.udp_bytes_sent";
    /// System calls that sent UDP datagrams.
    pub(super) const UDP_SENDS: &str = "net.udp_sends";
}

/// CPU time of processes and of the machine at one moment, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cpu {
    /// All nodes together, user and system; `None` when one of them cannot be looked at.
    pub(crate) nodes: Option<f64>,
    /// This process.
    pub(crate) loader: Option<f64>,
    /// All that the machine did, idle time left out.
    pub(crate) machine: Option<f64>,
    /// What the host of a virtual machine gave to others though there was something to do ("steal").
    pub(crate) stolen: Option<f64>,
}

impl Cpu {
    /// Reads the clocks of the processes `pids`.
    pub(crate) fn read(pids: &[u32]) -> Self {
        let process = |name: &str| parse_process(&fs::read_to_string(format!("/proc/{name}/stat")).ok()?);
        let machine = fs::read_to_string("/proc/stat").ok().and_then(|text| parse_machine(&text));
        Cpu {
            nodes: pids.iter().map(|pid| process(&pid.to_string())).sum(),
            loader: process("self"),
            machine: machine.map(|(busy, _)| busy),
            stolen: machine.map(|(_, stolen)| stolen),
        }
    }

    /// What was used since `earlier`.
    pub(crate) fn since(&self, earlier: &Cpu) -> Cpu {
        let difference = |now: Option<f64>, then: Option<f64>| Some(now? - then?);
        Cpu {
            nodes: difference(self.nodes, earlier.nodes),
            loader: difference(self.loader, earlier.loader),
            machine: difference(self.machine, earlier.machine),
            stolen: difference(self.stolen, earlier.stolen),
        }
    }

    /// What somebody else used: neither the nodes nor this process, but other programs or the host.
    pub(crate) fn others(&self) -> Option<f64> {
        Some((self.machine? - self.nodes? - self.loader?).max(0.0) + self.stolen?.max(0.0))
    }
}

/// How much of the machine's processors its host gave to others, at one moment: a virtual machine that wants to run has to wait meanwhile. In clock ticks since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stolen {
    stolen: u64,
    all: u64,
}

impl Stolen {
    /// Reads the machine's clocks.
    pub(crate) fn read() -> Option<Self> {
        parse_stolen(&fs::read_to_string("/proc/stat").ok()?)
    }

    /// The share since `earlier`, in percent.
    pub(crate) fn percent_since(&self, earlier: &Stolen) -> f64 {
        100.0 * self.stolen.saturating_sub(earlier.stolen) as f64 / self.all.saturating_sub(earlier.all).max(1) as f64
    }
}

/// Microseconds of a clock tick of `/proc`.
#[cfg(unix)]
fn tick() -> f64 {
    1e6 / rustix::param::clock_ticks_per_second().max(1) as f64
}

#[cfg(not(unix))]
fn tick() -> f64 {
    1e4
}

/// utime and stime of `/proc/PID/stat`. The name of the program, in parentheses, may contain anything.
fn parse_process(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some((next()? + next()?) as f64 * tick())
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal. What was busy, and what was stolen.
fn parse_machine(stat: &str) -> Option<(f64, f64)> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    let busy = [0, 1, 2, 5, 6].into_iter().map(|at| fields.get(at)).sum::<Option<u64>>()?;
    // A machine that is not virtual may not have it.
    let stolen = fields.get(7).copied().unwrap_or(0);
    Some((busy as f64 * tick(), stolen as f64 * tick()))
}

fn parse_stolen(stat: &str) -> Option<Stolen> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    // What follows is part of these.
    let fields: Vec<u64> = line.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
    Some(Stolen { stolen: *fields.get(7)?, all: fields.iter().sum() })
}

/// Memory of the nodes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Resident now.
    pub(crate) resident: Option<u64>,
    /// The most that was ever resident, summed over nodes.
    pub(crate) peak: Option<u64>,
}

impl Memory {
    /// Sums over the processes `pids`.
    pub(crate) fn read(pids: &[u32]) -> Self {
        let texts: Option<Vec<String>> =
            pids.iter().map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok()).collect();
        let sum = |key| texts.as_ref()?.iter().map(|text| parse_memory(text, key)).sum();
        Memory { resident: sum("VmRSS:"), peak: sum("VmHWM:") }
    }
}

fn parse_memory(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// Bytes that the processes `pids` caused to be written to disks, all files included.
pub(crate) fn disk_bytes(pids: &[u32]) -> Option<u64> {
    let of = |pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse::<u64>().ok()
    };
    pids.iter().map(of).sum()
}

/// Counters of all nodes together; `None` when a node does not have one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Synced batches of the log.
    pub(crate) syncs: Option<u64>,
    /// Bytes of log records.
    pub(crate) log_bytes: Option<u64>,
    /// UDP payload sent.
    pub(crate) udp_bytes: Option<u64>,
    /// Payload sent between nodes, where a node counts that by itself.
    pub(crate) peer_bytes: Option<u64>,
    /// System calls that sent UDP datagrams.
    pub(crate) udp_sends: Option<u64>,
    /// Bytes written to disks, of whatever file.
    pub(crate) disk_bytes: Option<u64>,
}

impl Counters {
    /// Sums over all nodes.
    pub(crate) fn read(status: &BTreeMap<NodeId, NodeStatus>, pids: &[u32]) -> Self {
        let sum = |name: &str| status.values().map(|node| node.metrics.get(name).copied()).sum();
        Counters {
            syncs: sum(counter::SYNCS),
            log_bytes: sum(counter::LOG_BYTES),
            udp_bytes: sum(counter::UDP_BYTES),
            peer_bytes: None,
            udp_sends: sum(counter::UDP_SENDS),
            disk_bytes: disk_bytes(pids),
        }
    }

    /// What was counted since `earlier`. A counter that went back belongs to a process that was restarted.
    pub(crate) fn since(&self, earlier: &Counters) -> Counters {
        let difference = |now: Option<u64>, then: Option<u64>| now?.checked_sub(then?);
        Counters {
            syncs: difference(self.syncs, earlier.syncs),
            log_bytes: difference(self.log_bytes, earlier.log_bytes),
            udp_bytes: difference(self.udp_bytes, earlier.udp_bytes),
            peer_bytes: difference(self.peer_bytes, earlier.peer_bytes),
            udp_sends: difference(self.udp_sends, earlier.udp_sends),
            disk_bytes: difference(self.disk_bytes, earlier.disk_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_may_have_any_name() {
        let stat = "12 (a) b (c) S 1 12 12 0 -1 4194304 100 0 0 0 700 300 0 0 20 0 4 0 99 1000 20 18446744073709551615";
        assert_eq!(parse_process(stat), Some(1000.0 * tick()));
        assert_eq!(parse_process("12 (short) S 1 2"), None);
    }

    #[test]
    fn idle_time_is_not_work() {
        let stat = "cpu  100 10 50 9999 7777 3 2 55 0 0\ncpu0 1 1 1 1\n";
        assert_eq!(parse_machine(stat), Some((165.0 * tick(), 55.0 * tick())));
        assert_eq!(parse_machine("intr 1 2 3\n"), None);
        let before = parse_stolen(stat).unwrap();
        let after = Stolen { stolen: before.stolen + 30, all: before.all + 200 };
        assert!((after.percent_since(&before) - 15.0).abs() < 1e-9);
        assert!(before.percent_since(&before).abs() < 1e-9);
        assert_eq!(parse_stolen("cpu  1 2 3\n"), None);
    }

    #[test]
    fn memory_is_given_in_kib() {
        assert_eq!(parse_memory("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n", "VmRSS:"), Some(1 << 20));
        assert_eq!(parse_memory("Name:\tx\n", "VmRSS:"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_can_be_looked_at() {
        let own = std::process::id();
        let begin = std::time::Instant::now();
        let before = Cpu::read(&[own]);
        let mut turns = 0u64;
        while begin.elapsed().as_millis() < 60 {
            turns += std::hint::black_box(1);
        }
        let used = Cpu::read(&[own]).since(&before);
        assert!(turns > 0 && used.nodes.is_some_and(|micros| micros >= 10_000.0), "{used:?}");
        assert!(Memory::read(&[own]).resident.is_some_and(|bytes| bytes > 100_000));
        assert_eq!(Cpu::read(&[u32::MAX]).nodes, None);
    }

    #[test]
    fn a_counter_that_one_node_lacks_is_unknown() {
        let (now, then) = (Counters { syncs: Some(7), ..Counters::default() }, Counters::default());
        assert_eq!(now.since(&then).syncs, None);
        let then = Counters { syncs: Some(9), ..Counters::default() };
        assert_eq!(now.since(&then).syncs, None, "a restarted process");
        let then = Counters { syncs: Some(3), ..Counters::default() };
        assert_eq!(now.since(&then).syncs, Some(4));
    }
}
