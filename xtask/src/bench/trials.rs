//! `cargo xtask bench failover` and the like: something happens to a cluster, and it is measured what its clients notice.
//!
//! The load generator does it all; this knows its flags, and calls it for each.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{signals, workspace};

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
    /// Reads beside writes, in turn: ReadIndex, by a lease, at followers, stale, and mixed with writes (3 minutes)
    Reads {
        /// Numbers of clients
        #[arg(long, value_delimiter = ',', value_name = "N,N,...", default_value = "1,16,256")]
        clients: Vec<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// Kills nodes with a long log: memory, and time until they serve again (1 minute for a million entries)
    Restart {
        /// Entries in the log
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
        /// Bytes of a value
        #[arg(long, default_value_t = 16)]
        value_size: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Has a follower catch up by a snapshot while clients write: rate, time, latency of the writes (2 minutes for a GiB)
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
        #[command(flatten)]
        common: Common,
    },
}

impl Trial {
    /// Those of `cargo xtask bench all`, in their long form.
    pub(super) fn all() -> Vec<Trial> {
        let common = || Common { keep: false, rest: Vec::new() };
        let catchup = |mode: &str| Trial::Catchup { gib: 1.0, mode: mode.to_owned(), rate: 2000, common: common() };
        let restart = |entries, value_size| Trial::Restart { entries, value_size, common: common() };
        vec![
            Trial::Reads { clients: vec![1, 16, 256], common: common() },
            Trial::Failover { kills: 100, common: common() },
            Trial::Transfer { transfers: 100, common: common() },
            Trial::Overload { common: common() },
            Trial::Stall { stalls: 5, common: common() },
            Trial::Saturation { minutes: 10.0, common: common() },
            restart(100_000, 16),
            restart(1_000_000, 16),
            restart(10_000_000, 16),
            restart(250_000, 4096),
            catchup("wiped"),
            catchup("behind"),
        ]
    }

    /// Its name on the command line.
    pub(super) fn name(&self) -> String {
        match self {
            Trial::Reads { .. } => "reads".to_owned(),
            Trial::Failover { .. } => "failover".to_owned(),
            Trial::Transfer { .. } => "transfer".to_owned(),
            Trial::Overload { .. } => "overload".to_owned(),
            Trial::Stall { .. } => "stall".to_owned(),
            Trial::Saturation { .. } => "saturation".to_owned(),
            Trial::Restart { entries, value_size, .. } => format!("restart, {entries} entries of {value_size} B"),
            Trial::Catchup { mode, .. } => format!("catchup, {mode}"),
        }
    }

    /// Carries it out with the release programs, which must have been built.
    pub(super) fn run(&self) -> Result<()> {
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
            Trial::Overload { common } => ("overload", common, Vec::new()),
            Trial::Stall { stalls, common } => ("stall", common, vec![("--stalls", stalls.to_string())]),
            Trial::Saturation { minutes, common } => ("saturation", common, vec![("--minutes", minutes.to_string())]),
            Trial::Restart { entries, value_size, common } => {
                let flags = vec![("--entries", entries.to_string()), ("--value-size", value_size.to_string())];
                ("restart", common, flags)
            }
            Trial::Catchup { gib, mode, rate, common } => {
                let flags = vec![("--gib", gib.to_string()), ("--mode", mode.clone()), ("--rate", rate.to_string())];
                ("catchup", common, flags)
            }
        };
        let (binaries, output) = (workspace::target_dir().join("release"), workspace::target_dir().join("bench"));
        let mut command = Command::new(binaries.join("raft-load"));
        command.current_dir(workspace::root()).arg(name).arg("--program").arg(binaries.join("raft-node"));
        command.arg("--dir").arg(output.join(format!("{name}-{}", std::process::id()))).arg("--out").arg(output);
        for (flag, value) in flags {
            command.arg(flag).arg(value);
        }
        if common.keep {
            command.arg("--keep");
        }
        command.args(&common.rest);
        command
    }
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
        assert!(shown(&["failover", "--kills", "7"]).ends_with(" --kills 7"));
        assert!(shown(&["overload"]).ends_with("/bench"));
        assert!(shown(&["reads", "--clients", "1,64"]).ends_with(" --clients 1,64"));
    }

    #[test]
    fn all_of_them_are_in_all() {
        let names: Vec<String> = Trial::all().iter().map(Trial::name).collect();
        let restarts = [
            "100000 entries of 16 B",
            "1000000 entries of 16 B",
            "10000000 entries of 16 B",
            "250000 entries of 4096 B",
        ];
        let restarts = restarts.map(|log| format!("restart, {log}"));
        let all = [
            &["reads", "failover", "transfer", "overload", "stall", "saturation"].map(str::to_owned)[..],
            &restarts,
            &["catchup, wiped", "catchup, behind"].map(str::to_owned),
        ];
        assert_eq!(names, all.concat());
    }
}
