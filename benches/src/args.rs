//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::scenario::{Load, Settings};

/// Loads a running cluster and measures throughput, latency, and what they cost.
///
/// Closed loops with several numbers of clients, then an open loop at a fixed rate, without coordinated omission: latency counts from when a
/// request was due. Prints a table and writes every repetition to a JSON file. Without --quick it takes about three minutes.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The cluster.json of a running cluster (see `cargo xtask cluster`)
    #[arg(long, value_name = "FILE")]
    pub(crate) cluster: PathBuf,
    /// Folder for the JSON file
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    pub(crate) out: PathBuf,
    /// Fewer and shorter repetitions: half a minute in all
    #[arg(long)]
    quick: bool,
    /// Numbers of clients of the closed loops, one scenario each
    #[arg(long, value_delimiter = ',', value_name = "N,N,...", default_value = "1,16,64,256",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    clients: Vec<u32>,
    /// Seconds that each repetition measures [default: 5; with --quick: 1.5]
    #[arg(long, value_parser = positive)]
    seconds: Option<f64>,
    /// Seconds of load before that [default: 1; with --quick: 0.5]
    #[arg(long, value_parser = positive)]
    warm_up: Option<f64>,
    /// Repetitions of each scenario [default: 5; with --quick: 3]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: Option<u32>,
    /// Bytes of a value
    #[arg(long, default_value_t = 256, value_parser = value_size)]
    pub(crate) value_size: usize,
    /// Number of keys that are written, at random
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000_000))]
    keys: u64,
    /// Connections to the leader, at most; a scenario uses no more than it has clients
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,
    /// Requests a second of the open loop; 0: no open loop [default: half of the best closed loop]
    #[arg(long)]
    rate: Option<u64>,
    /// Seed of keys and values
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Compare with the JSON file of an earlier run
    #[arg(long, value_name = "FILE")]
    pub(crate) baseline: Option<PathBuf>,
    /// Another cluster to measure in turn with the first, as NAME=FILE; FILE is its cluster.json
    #[arg(long, value_name = "NAME=FILE", value_parser = against)]
    pub(crate) against: Vec<Against>,
    /// Start an etcd cluster of as many nodes, with its data in this new folder, and measure it in turn with the first
    #[cfg(feature = "etcd")]
    #[arg(long, value_name = "DIR")]
    pub(crate) etcd_dir: Option<PathBuf>,
    /// The etcd program
    #[cfg(feature = "etcd")]
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    pub(crate) etcd: PathBuf,
}

/// Another cluster of this project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Against {
    /// What it is called in tables.
    pub(crate) name: String,
    /// Its cluster.json.
    pub(crate) cluster: PathBuf,
}

/// At which rate the open loop shall run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rate {
    /// Not at all.
    None,
    /// At half of what the best closed loop achieves in its first repetition.
    HalfOfBest,
    /// At this one.
    Fixed(u64),
}

impl Args {
    /// How repetitions are made.
    pub(crate) fn settings(&self) -> Settings {
        let (seconds, warm_up, repetitions) = if self.quick { (1.5, 0.5, 3) } else { (5.0, 1.0, 5) };
        Settings {
            seconds: self.seconds.unwrap_or(seconds),
            warm_up_seconds: self.warm_up.unwrap_or(warm_up),
            repetitions: self.repetitions.unwrap_or(repetitions),
            value_size: self.value_size,
            keys: self.keys,
            connections: self.connections,
            seed: self.seed,
        }
    }

    /// The closed loops.
    pub(crate) fn loads(&self) -> Vec<Load> {
        self.clients.iter().map(|&clients| Load::Closed { clients }).collect()
    }

    /// The open loop.
    pub(crate) fn rate(&self) -> Rate {
        match self.rate {
            None => Rate::HalfOfBest,
            Some(0) => Rate::None,
            Some(rate) => Rate::Fixed(rate),
        }
    }

    /// How many clusters take turns.
    pub(crate) fn targets(&self) -> usize {
        #[cfg(feature = "etcd")]
        let peers = usize::from(self.etcd_dir.is_some());
        #[cfg(not(feature = "etcd"))]
        let peers = 0;
        1 + self.against.len() + peers
    }

    /// How long each floor is measured, twice.
    pub(crate) fn floor_time(&self) -> Duration {
        Duration::from_millis(if self.quick { 300 } else { 1000 })
    }

    /// How long all of it takes, about.
    pub(crate) fn duration(&self) -> Duration {
        let settings = self.settings();
        let scenarios = self.clients.len() as u32 + u32::from(self.rate() != Rate::None);
        let overhead = Duration::from_millis(300);
        let each = settings.measured() + settings.warm_up() + overhead;
        each * scenarios * settings.repetitions * self.targets() as u32 + self.floor_time() * 4
    }
}

fn positive(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if value > 0.0 && value <= 86_400.0 { Ok(value) } else { Err("must be more than 0 and at most a day".to_owned()) }
}

fn value_size(text: &str) -> Result<usize, String> {
    let value: usize = text.parse().map_err(|error| format!("{error}"))?;
    let limit = raft_node::kv::MAX_VALUE_BYTES;
    if value <= limit { Ok(value) } else { Err(format!("the store takes at most {limit} bytes")) }
}

fn against(text: &str) -> Result<Against, String> {
    match text.split_once('=') {
        Some((name, file)) if !name.is_empty() && !file.is_empty() => {
            Ok(Against { name: name.to_owned(), cluster: file.into() })
        }
        _ => Err("must be NAME=FILE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(flags: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(["raft-load", "--cluster", "c.json"].iter().chain(flags))
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_run_keeps_to_its_time() {
        let normal = parse(&[]).unwrap();
        assert_eq!(normal.loads().len(), 4);
        assert!(normal.duration() < Duration::from_mins(4), "{:?}", normal.duration());
        let quick = parse(&["--quick"]).unwrap();
        assert!(quick.duration() < Duration::from_secs(50), "{:?}", quick.duration());
        assert_eq!(quick.rate(), Rate::HalfOfBest);
    }

    #[test]
    fn flags_are_checked() {
        let args = parse(&["--clients", "2,3", "--seconds", "7", "--rate", "0", "--quick"]).unwrap();
        assert_eq!(args.loads(), [Load::Closed { clients: 2 }, Load::Closed { clients: 3 }]);
        assert_eq!((args.settings().seconds, args.settings().repetitions, args.rate()), (7.0, 3, Rate::None));
        let both = parse(&["--quick", "--against", "old=a=b.json"]).unwrap();
        assert_eq!(both.against, [Against { name: "old".into(), cluster: "a=b.json".into() }]);
        assert!(both.duration() > parse(&["--quick"]).unwrap().duration());
        for bad in [
            ["--clients", "0"],
            ["--against", "x"],
            ["--against", "=x"],
            ["--seconds", "0"],
            ["--seconds", "nan"],
            ["--value-size", "99999999"],
        ] {
            assert!(parse(&bad).is_err(), "{bad:?}");
        }
    }
}
