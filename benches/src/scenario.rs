//! What is measured, and what comes out of one measurement.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_node::Consistency;
use serde::{Deserialize, Serialize};

use crate::meter::{Latency, Step};

/// The load of one scenario.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Load {
    /// Each client sends its next request when the last one is answered.
    Closed {
        /// Clients, which is requests in progress.
        clients: u32,
    },
    /// Requests are sent by the clock, answered or not.
    Open {
        /// Requests a second.
        rate: u64,
    },
}

impl Load {
    /// Its name in tables and files.
    pub(crate) fn name(&self) -> String {
        match self {
            Load::Closed { clients: 1 } => "closed, 1 client".to_owned(),
            Load::Closed { clients } => format!("closed, {clients} clients"),
            Load::Open { rate } => format!("open, {rate}/s"),
        }
    }

    /// What tells whether a scenario of another run is the same: the rate of an open loop follows from what was measured.
    pub(crate) fn key(&self) -> String {
        match self {
            Load::Closed { .. } => self.name(),
            Load::Open { .. } => "open".to_owned(),
        }
    }
}

/// What the requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Traffic {
    /// Puts, at the leader.
    Writes,
    /// Gets, and puts where they are not all of it.
    Reads {
        /// How many of 100 requests are gets.
        percent: u32,
        /// How fresh their answers must be.
        consistency: Consistency,
        /// Who is asked.
        at: Place,
    },
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The leader.
    Leader,
    /// All others in turn, connection by connection.
    Followers,
}

/// How each repetition is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Seconds that are measured.
    pub(crate) seconds: f64,
    /// Seconds before that.
    pub(crate) warm_up_seconds: f64,
    /// Accepted repetitions of each scenario.
    pub(crate) repetitions: u32,
    /// Bytes of a value.
    pub(crate) value_size: usize,
    /// Keys that are written, at random.
    pub(crate) keys: u64,
    /// Connections, at most; never more than clients.
    pub(crate) connections: u32,
    /// Seed of keys and values.
    pub(crate) seed: u64,
}

impl Settings {
    /// The measured time.
    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    /// The time before it.
    pub(crate) fn warm_up(&self) -> Duration {
        Duration::from_secs_f64(self.warm_up_seconds)
    }
}

/// One measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Repetition {
    /// The node that led, from beginning to end.
    pub(crate) leader: u64,
    /// The term it led in.
    pub(crate) term: u64,
    /// Seconds measured.
    pub(crate) seconds: f64,
    /// Requests done in them.
    pub(crate) operations: u64,
    /// Failures by kind, warm-up included.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Operations a second.
    pub(crate) throughput: f64,
    /// In microseconds; in an open loop from the intended moment of sending.
    pub(crate) latency: Latency,
    /// The same in steps: which share of the requests took at most so long.
    #[serde(default)]
    pub(crate) distribution: Vec<Step>,
    /// Open loop: how much later than intended requests were sent, in microseconds. It is part of the latency.
    pub(crate) lateness: Option<Latency>,
    /// CPU time of all nodes for an operation, in microseconds.
    pub(crate) node_cpu: Option<f64>,
    /// CPU time of the load generator for an operation, in microseconds.
    pub(crate) loader_cpu: Option<f64>,
    /// CPU time that other programs used, or that the host gave to other machines, as a share of all there was.
    pub(crate) foreign_cpu: Option<f64>,
    /// Synced batches of the log for an operation, all nodes.
    pub(crate) fsyncs: Option<f64>,
    /// Bytes handed to the log for an operation, all nodes.
    pub(crate) log_bytes: Option<f64>,
    /// Bytes written to disks for an operation, all nodes and all files.
    pub(crate) disk_bytes: Option<f64>,
    /// UDP payload between nodes for an operation, in bytes.
    pub(crate) peer_bytes: Option<f64>,
    /// UDP payload between clients and the leader, both ways, for an operation, in bytes.
    pub(crate) client_bytes: Option<f64>,
    /// System calls of all nodes that sent datagrams, for an operation.
    pub(crate) udp_sends: Option<f64>,
    /// Resident memory of all nodes at the end, in bytes.
    pub(crate) resident: Option<u64>,
    /// The most that was ever resident until then, in bytes.
    pub(crate) peak_resident: Option<u64>,
}

impl Repetition {
    /// Failures of all kinds.
    pub(crate) fn failures(&self) -> u64 {
        self.errors.values().sum()
    }
}
