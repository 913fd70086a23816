//! The command line.

mod cert;
mod commands;
mod member;
mod output;
mod serve;
mod status;

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use raft_node::client;
use raft_node::config::{EngineName, LogFormat};

use self::member::MemberCommand;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  error: see the message
  2  wrong usage of the command line
  3  no such key, or compare-and-swap found another revision
  4  no answer in time: nodes unreachable, or no majority of them; nothing was changed
  5  the outcome of a write is unknown: it may or may not take effect";

/// A node of a replicated key-value store, and the tools to talk to it.
#[derive(Debug, Parser)]
#[command(name = "raft-node", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until SIGTERM or SIGINT
    Serve(ServeArgs),
    /// Make a private certificate authority and certificates
    #[command(subcommand)]
    Cert(CertCommand),
    /// Set a key
    Put(PutArgs),
    /// Print the value of a key
    Get(GetArgs),
    /// Remove a key
    Delete(DeleteArgs),
    /// Set a key if its revision is the expected one (compare-and-swap)
    Cas(CasArgs),
    /// List keys in the order of their bytes
    Scan(ScanArgs),
    /// Show what each node knows of itself
    Status(StatusArgs),
    /// Show or change who belongs to the cluster
    #[command(subcommand)]
    Member(MemberCommand),
    /// Have nodes make a snapshot of their state, and compact their logs
    Snapshot(SnapshotArgs),
    /// Have the leader hand over to another node, without a failed write
    Transfer(TransferArgs),
}

/// Flags override the file.
#[derive(Debug, Args)]
struct ServeArgs {
    /// TOML file of the node
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Instead of `node.data_dir`
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Instead of `node.listen`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Join a cluster that has begun without this node: `raft-node member add` tells the others. Of no effect once the node has started
    #[arg(long)]
    join: bool,
    /// What keeps the log, instead of `storage.engine`
    #[arg(long, env = "RAFT_NODE_ENGINE")]
    engine: Option<EngineName>,
    /// Instead of `log.level`: error, warn, info, debug, trace, or directives like `info,raft_net=debug`
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Instead of `log.format`
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

#[derive(Debug, Subcommand)]
enum CertCommand {
    /// Make the authority of a cluster: ca.pem for everybody, ca.key for nobody but you
    Ca {
        /// Name of the cluster: lower-case letters, digits, hyphens
        #[arg(long)]
        cluster: String,
        #[command(flatten)]
        out: OutArgs,
    },
    /// Make the certificate of a node: node-ID.pem and node-ID.key
    Node {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// Id of the node, from 1
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        #[command(flatten)]
        out: OutArgs,
    },
    /// Make the certificate of a client: client-NAME.pem and client-NAME.key
    Client {
        #[command(flatten)]
        authority: AuthorityArgs,
        /// Name of the client: lower-case letters, digits, hyphens
        #[arg(long)]
        name: String,
        #[command(flatten)]
        out: OutArgs,
    },
}

#[derive(Debug, Args)]
struct AuthorityArgs {
    /// Folder with the files that `cert ca` made
    #[arg(id = "authority", long = "ca", value_name = "DIR")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct OutArgs {
    /// Folder for the new files; created if need be
    #[arg(id = "out", long = "out", value_name = "DIR")]
    dir: PathBuf,
    /// How many days the certificate is valid
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Overwrite files that exist
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// TOML file of the client
    #[arg(long, value_name = "FILE", env = "RAFT_CLIENT_CONFIG")]
    config: PathBuf,
    /// How long to try in all, like 5, 1.5s or 300ms [default: 5s, or `timeout_ms` of the file]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// Print JSON, errors too
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Show where the time of writes goes instead, on nodes with `timings = true` in `[metrics]`
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct PutArgs {
    /// The key
    key: OsString,
    /// The value; `-` reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: OsString,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct SessionArgs {
    /// Do not open a session first: faster, but when the reply is lost, the outcome is unknown (exit code 5) instead of the write being repeated
    #[arg(long)]
    no_session: bool,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    freshness: FreshnessArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct FreshnessArgs {
    /// How fresh the answer must be
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    consistency: Freshness,
    /// Short for `--consistency stale`
    #[arg(long, conflicts_with = "consistency")]
    stale: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Freshness {
    /// Sees every write that was acknowledged before
    #[default]
    Linearizable,
    /// The same, as far as clocks can be trusted: a leader with a lease asks nobody
    Lease,
    /// What the first reachable node has, however old
    Stale,
}

#[derive(Debug, Args)]
struct SnapshotArgs {
    /// Only this node [default: all of them, one after the other]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    node: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct TransferArgs {
    /// Id of the node that is to lead [default: the one that has most of the log]
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct DeleteArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct CasArgs {
    /// The key
    key: OsString,
    /// The revision that the key must have, as `get --json` shows it; 0: the key must not exist
    #[arg(long = "expect", value_name = "REVISION")]
    expected: u64,
    /// The new value; `-` reads it from standard input
    #[arg(allow_hyphen_values = true)]
    value: OsString,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    client: ClientArgs,
}

#[derive(Debug, Args)]
struct ScanArgs {
    /// First key [default: the first there is]
    start: Option<OsString>,
    /// End before this key
    #[arg(long, value_name = "KEY")]
    end: Option<OsString>,
    /// Only keys that begin so
    #[arg(long, conflicts_with_all = ["start", "end"])]
    prefix: Option<OsString>,
    /// Most keys to list
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    #[command(flatten)]
    freshness: FreshnessArgs,
    #[command(flatten)]
    client: ClientArgs,
}

/// How a command that ran to its end came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Ok,
    /// No such key, or another revision.
    NotFound,
    /// No leader among the nodes.
    NoLeader,
}

/// Runs the command and reports its error.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let json = cli.command.wants_json();
    let outcome = match cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Cert(command) => cert::run(command),
        Command::Put(args) => commands::put(&args),
        Command::Get(args) => commands::get(&args),
        Command::Delete(args) => commands::delete(&args),
        Command::Cas(args) => commands::cas(&args),
        Command::Scan(args) => commands::scan(&args),
        Command::Status(args) => status::run(&args.client, args.timings),
        Command::Member(command) => member::run(&command),
        Command::Transfer(args) => commands::transfer(&args),
        Command::Snapshot(args) => commands::snapshot(&args),
    };
    match outcome {
        Ok(Done::Ok) => ExitCode::SUCCESS,
        Ok(Done::NotFound) => ExitCode::from(3),
        Ok(Done::NoLeader) => ExitCode::from(4),
        // Whoever read our output has had enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit_code(&error);
            let message = format!("{error:#}");
            let line = if json {
                serde_json::json!({ "error": message, "exit_code": code }).to_string()
            } else {
                format!("error: {message}")
            };
            // The exit code counts even when nobody reads the message.
            let _ = writeln!(std::io::stderr(), "{line}");
            ExitCode::from(code)
        }
    }
}

impl Command {
    fn wants_json(&self) -> bool {
        match self {
            Command::Serve(_) | Command::Cert(_) => false,
            Command::Member(command) => command.client().json,
            Command::Put(PutArgs { client, .. })
            | Command::Get(GetArgs { client, .. })
            | Command::Delete(DeleteArgs { client, .. })
            | Command::Cas(CasArgs { client, .. })
            | Command::Scan(ScanArgs { client, .. })
            | Command::Transfer(TransferArgs { client, .. })
            | Command::Snapshot(SnapshotArgs { client, .. })
            | Command::Status(StatusArgs { client, .. }) => client.json,
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<client::Error>() {
        Some(client::Error::Timeout { .. }) => 4,
        Some(client::Error::OutcomeUnknown { .. }) => 5,
        _ => 1,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `5`, `1.5s` or `300ms`.
fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let (number, unit) = match text.strip_suffix("ms") {
        Some(number) => (number, 1e-3),
        None => (text.strip_suffix('s').unwrap_or(text), 1.0),
    };
    let seconds = number.trim().parse::<f64>().map_err(|_| DurationError)? * unit;
    // A day is more than anybody waits, and far below what a `Duration` cannot hold.
    if (0.001..=86_400.0).contains(&seconds) { Ok(Duration::from_secs_f64(seconds)) } else { Err(DurationError) }
}

#[derive(Debug)]
struct DurationError;

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("must be a time from 1ms to 86400s, like 5, 1.5s or 300ms")
    }
}

impl std::error::Error for DurationError {}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn parse(line: &str) -> Result<Command, clap::error::ErrorKind> {
        Cli::try_parse_from(line.split_whitespace()).map(|cli| cli.command).map_err(|e| e.kind())
    }

    #[test]
    fn what_scripts_rely_on_is_understood() {
        for line in [
            "raft-node serve --config node.toml",
            "raft-node serve --config node.toml --listen 127.0.0.1:0 --data-dir d --log-level debug --log-format json",
            "raft-node cert ca --cluster demo --out certs",
            "raft-node cert node --ca certs --id 1 --out certs",
            "raft-node cert client --ca certs --name admin --out certs --days 30 --force",
            "raft-node put --config c.toml key value",
            "raft-node put --config c.toml key -",
            "raft-node put --config c.toml key -5",
            "raft-node get key --config c.toml --json --timeout 300ms --stale",
            "raft-node delete --config c.toml key",
            "raft-node cas --config c.toml key --expect 0 value",
            "raft-node scan --config c.toml",
            "raft-node scan --config c.toml a --end b --limit 5",
            "raft-node scan --config c.toml --prefix a",
            "raft-node status --json --config c.toml",
            "raft-node get key --config c.toml --consistency linearizable",
            "raft-node get key --config c.toml --consistency lease",
            "raft-node scan --config c.toml --consistency stale",
            "raft-node transfer --config c.toml",
            "raft-node transfer --to 2 --json --config c.toml",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_refused() {
        use clap::error::ErrorKind;
        for (line, kind) in [
            ("raft-node", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("raft-node serve", ErrorKind::MissingRequiredArgument),
            ("raft-node cert node --ca d --id 0 --out d", ErrorKind::ValueValidation),
            ("raft-node cas --config c key value", ErrorKind::MissingRequiredArgument),
            ("raft-node scan --config c a --prefix b", ErrorKind::ArgumentConflict),
            ("raft-node scan --config c --limit 0", ErrorKind::ValueValidation),
            ("raft-node get --config c key --timeout soon", ErrorKind::ValueValidation),
            ("raft-node get --config c key --consistency lease --stale", ErrorKind::ArgumentConflict),
            ("raft-node get --config c key --consistency eventual", ErrorKind::InvalidValue),
            ("raft-node transfer --config c --to 0", ErrorKind::ValueValidation),
            ("raft-node frobnicate", ErrorKind::InvalidSubcommand),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }

    #[test]
    fn times_are_read() {
        assert_eq!(parse_duration("5").unwrap(), Duration::from_secs(5));
        assert_eq!(parse_duration("1.5s").unwrap(), Duration::from_millis(1500));
        assert_eq!(parse_duration("300ms").unwrap(), Duration::from_millis(300));
        for bad in ["", "0", "-1", "1e300", "nan", "inf", "5m", "ms"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_have_codes_of_their_own() {
        let unknown = client::Error::OutcomeUnknown { why: String::new() };
        assert_eq!(exit_code(&anyhow::Error::from(unknown).context("putting")), 5);
        let timeout = client::Error::Timeout {
            waited: Duration::ZERO,
            reason: client::Missing::Leader,
            nodes: client::Complaints::default(),
        };
        assert_eq!(exit_code(&timeout.into()), 4);
        assert_eq!(exit_code(&anyhow::anyhow!("other")), 1);
    }
}
