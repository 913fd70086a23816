//! `cargo xtask bench failover` and the like: something happens to a cluster, and it is measured what its clients notice.
//!
//! The load generator does it all; this knows its flags, and calls it for each.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{prerequisites, signals, workspace};

/// Flags that all of them have.
#[derive(clap::Args)]
pub(super) struct Common {
    /// Keep the folder with data and logs of the nodes
    #[arg(long)]
    keep: bool,
    /// Further arguments for the load generator: `raft-load NAME --help` lists them
    #[arg(last = true)]
    rest: Vec<String>,
}

/// One of them.
#[derive(clap::Subcommand)]
pub(super) enum Trial {
    /// Kills the leader again and again: time to the next acknowledged write (1 minute)
    Failover {
        /// How often, with the default timeouts and again with those for a LAN
        #[arg(long, default_value_t = 20)]
        kills: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Hands leadership over under 64 clients: how long writes pause, and whether one fails (1 minute)
    Transfer {
        /// How often
        #[arg(long, default_value_t = 50)]
        transfers: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Offers four times what the cluster can do: what it still serves, its memory, elections (1 minute)
    Overload {
        #[command(flatten)]
        common: Common,
    },
    /// Holds up an fsync of the leader for 2 s: time until writes go on (half a minute; needs strace)
    Stall {
        /// How often
        #[arg(long, default_value_t = 5)]
        stalls: u32,
        #[command(flatten)]
        common: Common,
    },
    /// Loads the cluster with more clients than it can serve at once: elections, and how long heartbeats take meanwhile (10 minutes)
    Saturation {
        /// For how long
        #[arg(long, default_value_t = 10.0)]
        minutes: f64,
        #[command(flatten)]
        common: Common,
    },
    /// Makes flame graphs of the leader and of a follower, and names what costs most (half a minute; needs perf)
    Flame {
        /// Numbers of clients
        #[arg(long, value_delimiter = ',', value_name = "N,N,...", default_value = "1,256")]
        clients: Vec<u32>,
        /// For how long each is looked at
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
        #[command(flatten)]
        common: Common,
    },
    /// Reads beside writes, in turn: ReadIndex, by a lease, at followers, stale, and mixed with writes (3 minutes)
    Reads {
        /// Numbers of clients
        #[arg(long, value_delimiter = ',', value_name = "N,N,...", default_value = "1,16,256")]
        clients: Vec<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// Writes with values of 16 B to 64 KiB, with 1 and 64 clients: from where on bytes cost more than writes do (1 minute)
    Payload {
        #[command(flatten)]
        common: Common,
    },
    /// Writes to clusters of 1, 3, 5 and 7 nodes, with 1 and 64 clients (1 minute)
    Nodes {
        #[command(flatten)]
        common: Common,
    },
    /// Many groups in three processes: what an idle one costs, and how load spreads over 1, 10 and 100 of them (1 minute)
    ///
    /// What follows `--` is for the program that measures: `-- --idle 200 --seconds 3`, say; `-- --help` lists what there is.
    Groups {
        #[command(flatten)]
        common: Common,
    },
    /// Writes at a fixed rate while logs are purged: bytes on the disks for each byte proposed, and latency, minute by minute (an hour)
    Amplification {
        /// For how long
        #[arg(long, default_value_t = 60.0)]
        minutes: f64,
        #[command(flatten)]
        common: Common,
    },
    /// Kills nodes with a long log: memory, and time until they serve again (1 minute for a million entries)
    Restart {
        /// The logs: `ENTRIESxBYTES` of a value, several of them separated by commas
        #[arg(long, value_name = "NxB,...", default_value = "1000000x16")]
        logs: String,
        #[command(flatten)]
        common: Common,
    },
    /// Has a follower catch up by a snapshot while clients write: rate, time, latency of the writes (4 to 8 minutes for a GiB)
    Catchup {
        /// Size of the state in GiB; needs ten times as much on the disk
        #[arg(long, default_value_t = 1.0)]
        gib: f64,
        /// Why the follower lacks it: `wiped`, its disk was lost; `behind`, it was away
        #[arg(long, default_value = "wiped")]
        mode: String,
        /// Writes a second meanwhile
        #[arg(long, default_value_t = 2000)]
        rate: u64,
        /// Let nodes and clients share a link of so many Mbit/s, instead of the loopback device that copies memory (Linux; needs `tc` and `unshare`)
        #[arg(long, value_name = "MBIT", value_parser = clap::value_parser!(u32).range(1..=100_000))]
        link: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
}

impl Trial {
    /// The curves over payload, nodes, groups, and the length of the log.
    pub(super) fn curves(quick: bool) -> Vec<Trial> {
        let common = |rest: &str| Common { keep: false, rest: rest.split_whitespace().map(str::to_owned).collect() };
        let (short, groups) = if quick { ("--seconds 0.5", "--idle 200 --seconds 2") } else { ("", "--seconds 4") };
        let logs = if quick { "100000x16,1000000x16" } else { "100000x16,1000000x16,10000000x16,250000x4096" };
        vec![
            Trial::Payload { common: common(short) },
            Trial::Nodes { common: common(short) },
            Trial::Groups { common: common(groups) },
            Trial::Restart { logs: logs.to_owned(), common: common(if quick { "--times 1" } else { "--times 2" }) },
        ]
    }

    /// Those of `cargo xtask bench all` in their order: first what is short, so that one knows early whether all is well. The longest is not among them.
    pub(super) fn all(quick: bool) -> Vec<Trial> {
        let common = || Common { keep: false, rest: Vec::new() };
        let gib = if quick { 0.25 } else { 1.0 };
        let catchup =
            |mode: &str| Trial::Catchup { gib, mode: mode.to_owned(), rate: 2000, link: None, common: common() };
        let clients = if quick { vec![1, 256] } else { vec![1, 16, 256] };
        let mut all = vec![Trial::Reads { clients, common: common() }];
        all.extend(Trial::curves(quick));
        all.extend([
            Trial::Flame { clients: vec![1, 256], seconds: 10.0, common: common() },
            Trial::Failover { kills: if quick { 10 } else { 100 }, common: common() },
            Trial::Transfer { transfers: if quick { 20 } else { 100 }, common: common() },
            Trial::Stall { stalls: if quick { 2 } else { 5 }, common: common() },
            Trial::Overload { common: common() },
            catchup("wiped"),
            catchup("behind"),
            Trial::Saturation { minutes: if quick { 1.0 } else { 10.0 }, common: common() },
        ]);
        all
    }

    /// The longest of them.
    pub(super) fn amplification(minutes: f64) -> Trial {
        Trial::Amplification { minutes, common: Common { keep: false, rest: Vec::new() } }
    }

    /// How long it takes, in minutes, about.
    pub(super) fn minutes(&self) -> f64 {
        match self {
            Trial::Reads { clients, .. } => clients.len() as f64,
            Trial::Flame { clients, seconds, .. } => clients.len() as f64 * (seconds + 5.0) / 60.0,
            Trial::Payload { .. } | Trial::Nodes { .. } | Trial::Groups { .. } | Trial::Overload { .. } => 1.0,
            Trial::Amplification { minutes, .. } | Trial::Saturation { minutes, .. } => minutes + 0.5,
            Trial::Failover { kills, .. } => f64::from(*kills) * 0.07,
            Trial::Transfer { transfers, .. } => f64::from(*transfers) * 0.012,
            Trial::Stall { stalls, .. } => f64::from(*stalls) * 0.2,
            Trial::Restart { logs, .. } => logs.split(',').map(minutes_of_log).sum(),
            Trial::Catchup { gib, .. } => 2.0 + gib * 5.0,
        }
    }

    /// Its name on the command line.
    pub(super) fn name(&self) -> String {
        match self {
            Trial::Reads { .. } => "reads".to_owned(),
            Trial::Failover { .. } => "failover".to_owned(),
            Trial::Flame { .. } => "flame".to_owned(),
            Trial::Transfer { .. } => "transfer".to_owned(),
            Trial::Overload { .. } => "overload".to_owned(),
            Trial::Stall { .. } => "stall".to_owned(),
            Trial::Saturation { .. } => "saturation".to_owned(),
            Trial::Payload { .. } => "payload".to_owned(),
            Trial::Nodes { .. } => "nodes".to_owned(),
            Trial::Groups { .. } => "groups".to_owned(),
            Trial::Amplification { minutes, .. } => format!("amplification, {minutes} minutes"),
            Trial::Restart { logs, .. } => format!("restart, {logs}"),
            Trial::Catchup { mode, .. } => format!("catchup, {mode}"),
        }
    }

    /// Looks for what it needs of the machine.
    pub(super) fn prepare(&self) -> Result<()> {
        match self {
            Trial::Flame { .. } => prerequisites::ensure_perf(),
            Trial::Catchup { link: Some(_), .. } => prerequisites::ensure_iproute(),
            _ => Ok(()),
        }
    }

    /// Carries it out with the release programs, which must have been built.
    pub(super) fn run(&self) -> Result<()> {
        self.prepare()?;
        if matches!(self, Trial::Groups { .. }) {
            build_example()?;
        }
        let mut command = self.command();
        let shown = workspace::show(&command);
        let status = signals::supervise(&mut command)?;
        if !status.success() {
            bail!("`{shown}` failed ({status})");
        }
        Ok(())
    }

    /// The one place that knows the flags of the load generator's trials.
    fn command(&self) -> Command {
        let (name, common, flags) = match self {
            Trial::Failover { kills, common } => ("failover", common, vec![("--kills", kills.to_string())]),
            Trial::Transfer { transfers, common } => ("transfer", common, vec![("--transfers", transfers.to_string())]),
            Trial::Reads { clients, common } => {
                let clients: Vec<String> = clients.iter().map(u32::to_string).collect();
                ("reads", common, vec![("--clients", clients.join(","))])
            }
            Trial::Flame { clients, seconds, common } => {
                let clients: Vec<String> = clients.iter().map(u32::to_string).collect();
                ("flame", common, vec![("--clients", clients.join(",")), ("--seconds", seconds.to_string())])
            }
            Trial::Overload { common } => ("overload", common, Vec::new()),
            Trial::Stall { stalls, common } => ("stall", common, vec![("--stalls", stalls.to_string())]),
            Trial::Saturation { minutes, common } => ("saturation", common, vec![("--minutes", minutes.to_string())]),
            Trial::Payload { common } => ("payload", common, Vec::new()),
            Trial::Nodes { common } => ("nodes", common, Vec::new()),
            Trial::Groups { common } => {
                let example = workspace::target_dir().join("release").join("examples").join(EXAMPLE);
                ("groups", common, vec![("--example", example.display().to_string())])
            }
            Trial::Amplification { minutes, common } => {
                ("amplification", common, vec![("--minutes", minutes.to_string())])
            }
            Trial::Restart { logs, common } => ("restart", common, vec![("--logs", logs.clone())]),
            Trial::Catchup { gib, mode, rate, link, common } => {
                let mut flags =
                    vec![("--gib", gib.to_string()), ("--mode", mode.clone()), ("--rate", rate.to_string())];
                flags.extend(link.map(|mbit| ("--link", format!("{mbit} Mbit/s"))));
                ("catchup", common, flags)
            }
        };
        let (binaries, output) = (workspace::target_dir().join("release"), workspace::target_dir().join("bench"));
        let program = binaries.join("raft-load");
        let mut command = match self {
            Trial::Catchup { link: Some(mbit), .. } => behind_link(*mbit, &program),
            _ => Command::new(program),
        };
        command.current_dir(workspace::root()).arg(name).arg("--program").arg(binaries.join("raft-node"));
        command.arg("--dir").arg(output.join(format!("{name}-{}", std::process::id()))).arg("--out").arg(output);
        for (flag, value) in flags {
            command.arg(flag).arg(value);
        }
        if common.keep {
            command.arg("--keep");
        }
        // Those of the groups are for the program behind it.
        if matches!(self, Trial::Groups { .. }) && !common.rest.is_empty() {
            command.arg("--");
        }
        command.args(&common.rest);
        command
    }
}

/// The program, in a network of its own whose loopback device is no faster than that: all nodes share it, both ways. The network is gone with the program.
fn behind_link(mbit: u32, program: &Path) -> Command {
    // Packets as large as on an Ethernet; so many bytes of them may come at once, and what would wait for longer than so long is lost.
    let link = format!(
        "ip link set lo mtu 1500 up && tc qdisc add dev lo root tbf rate {mbit}mbit burst 128kb latency 20ms && exec \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["--net", "--map-root-user", "--", "sh", "-c", &link, "sh"]).arg(program);
    command
}

/// The example that measures groups, and is its own nodes.
const EXAMPLE: &str = "groups";

fn build_example() -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["build", "--release", "-p", "raft-node", "--example", EXAMPLE]);
    workspace::run(&mut command)
}

/// Of `entries x bytes`: to start, to fill, and to restart some times.
fn minutes_of_log(log: &str) -> f64 {
    let mut numbers = log.split('x').map(|number| number.parse().unwrap_or(0.0));
    let mut next = || numbers.next().unwrap_or(0.0);
    let (entries, bytes): (f64, f64) = (next(), next());
    0.2 + entries * (16.0 + bytes / 16.0) * 1.2e-8
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(subcommand)]
        trial: Trial,
    }

    #[test]
    fn flags_reach_the_load_generator() {
        let shown = |words: &[&str]| {
            let cli = Cli::try_parse_from([&["bench"], words].concat()).map_err(|error| error.to_string());
            workspace::show(&cli.expect("valid flags").trial.command())
        };
        let line = shown(&["catchup", "--gib", "0.5", "--mode", "behind", "--keep", "--", "--quiet", "3"]);
        assert!(line.contains("release/raft-load catchup --program "), "{line}");
        assert!(line.ends_with("/bench --gib 0.5 --mode behind --rate 2000 --keep --quiet 3"), "{line}");
        let line = shown(&["catchup", "--link", "1000"]);
        assert!(line.starts_with("unshare --net ") && line.contains(" tbf rate 1000mbit "), "{line}");
        assert!(line.contains("release/raft-load catchup ") && line.contains(" --link "), "{line}");
        assert!(shown(&["failover", "--kills", "7"]).ends_with(" --kills 7"));
        assert!(shown(&["overload"]).ends_with("/bench"));
        assert!(shown(&["flame", "--clients", "1,64"]).ends_with(" --clients 1,64 --seconds 10"));
        assert!(shown(&["reads", "--clients", "1,64"]).ends_with(" --clients 1,64"));
    }

    #[test]
    fn what_is_behind_the_load_generator_gets_its_arguments() {
        let cli = Cli::try_parse_from(["bench", "groups", "--", "--idle", "200"]).map_err(|error| error.to_string());
        let line = workspace::show(&cli.expect("valid flags").trial.command());
        assert!(
            line.contains("raft-load groups --program ") && line.ends_with("/examples/groups -- --idle 200"),
            "{line}"
        );
    }

    #[test]
    fn all_of_them_are_in_all_and_take_their_time() {
        let names: Vec<String> = Trial::all(false).iter().map(Trial::name).collect();
        let expected = [
            "reads",
            "payload",
            "nodes",
            "groups",
            "restart, 100000x16,1000000x16,10000000x16,250000x4096",
            "flame",
            "failover",
            "transfer",
            "stall",
            "overload",
            "catchup, wiped",
            "catchup, behind",
            "saturation",
        ];
        assert_eq!(names, expected);
        let minutes = |trials: &[Trial]| trials.iter().map(Trial::minutes).sum::<f64>();
        let (all, quick, curves) = (Trial::all(false), Trial::all(true), Trial::curves(false));
        assert!(minutes(&quick) * 2.0 < minutes(&all), "{} {}", minutes(&quick), minutes(&all));
        assert!((4.0..9.0).contains(&minutes(&curves)), "{}", minutes(&curves));
    }
}
