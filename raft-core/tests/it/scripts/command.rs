//! The commands of a script.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_core::{
    Config, HardState, Input, Instant, Lease, LogIndex, MembershipChange, NodeId, ProposeError, Raft, ReadError,
    ReadId, Role, Term, TransferError,
};

use super::show;
use super::wire::Filter;
use super::world::{Failure, World};

/// More messages than any script needs to come to rest.
const MOST_MESSAGES: usize = 10_000;

/// Carries out the commands of one script.
#[derive(Debug, Default)]
pub(super) struct Session {
    world: Option<World>,
}

impl Session {
    /// Carries out one command. Returns what came of it, line by line.
    ///
    /// # Errors
    /// The command makes no sense, or one of Raft's promises is broken. Nothing more can be done then.
    pub(super) fn run(&mut self, text: &str) -> Result<Vec<String>, Failure> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (quiet, words) = match words.as_slice() {
            ["quietly", rest @ ..] => (true, rest),
            all => (false, all),
        };
        if let ["cluster", count, options @ ..] = words {
            if self.world.is_some() {
                return Err("there is a cluster already".to_owned());
            }
            let founders = options.iter().find_map(|option| option.strip_prefix("founders="));
            let founders = founders.map_or_else(|| number(count), number)?;
            self.world = Some(World::new(number(count)?, founders, config(options)?)?);
            return Ok(Vec::new());
        }
        let world = self.world.as_mut().ok_or("the first command is `cluster`")?;
        dispatch(world, words)?;
        let said = world.take_said();
        Ok(if quiet { Vec::new() } else { said })
    }

    /// What came of a command before it failed.
    pub(super) fn unfinished(&mut self) -> Vec<String> {
        self.world.as_mut().map(World::take_said).unwrap_or_default()
    }
}

fn dispatch(world: &mut World, words: &[&str]) -> Result<(), Failure> {
    match words {
        ["node", id, past @ ..] => node(world, server(id)?, past),
        ["campaign", id] => campaign(world, server(id)?),
        ["tick", id, millis] => tick(world, id, number(millis)?),
        ["propose", id, commands @ ..] => propose(world, server(id)?, commands),
        ["read", id] => read(world, server(id)?, Raft::read_index),
        ["read-by-lease", id] => read(world, server(id)?, Raft::read_by_lease),
        ["transfer", id] => transfer(world, server(id)?, None),
        ["transfer", id, to] => transfer(world, server(id)?, Some(server(to)?)),
        ["change", id, change @ ..] => change_membership(world, server(id)?, change),
        ["members", ids @ ..] => members(world, ids),
        ["replace", id] => world.replace(server(id)?),
        ["deliver", filter @ ..] => deliver(world, &Filter::parse(filter)?),
        ["settle", ids @ ..] => settle(world, ids),
        ["drop", filter @ ..] => {
            let gone = world.wire.take(&Filter::parse(filter)?);
            list(world, gone.iter().map(show::sent));
            Ok(())
        }
        ["duplicate", filter @ ..] => {
            let copies = world.wire.duplicate(&Filter::parse(filter)?);
            list(world, copies.iter().map(show::sent));
            Ok(())
        }
        ["hold", filter @ ..] => {
            hold(world, &Filter::parse(filter)?, true);
            Ok(())
        }
        ["release", filter @ ..] => {
            hold(world, &Filter::parse(filter)?, false);
            Ok(())
        }
        ["messages"] => {
            let mark = |held| if held { " (held back)" } else { "" };
            let lines: Vec<String> =
                world.wire.packets().iter().map(|p| show::sent(&p.envelope) + mark(p.held)).collect();
            list(world, lines);
            Ok(())
        }
        ["traffic", kinds @ ..] => traffic(world, kinds),
        ["cut", link] => cut(world, link),
        ["isolate", id] => isolate(world, server(id)?),
        ["heal"] => {
            world.wire.heal();
            Ok(())
        }
        ["disk", id, speed] => disk(world, server(id)?, speed),
        ["writes", id] => writes(world, server(id)?),
        ["sync", id] => sync(world, server(id)?, usize::MAX),
        ["sync", id, count] => sync(world, server(id)?, number(count)? as usize),
        ["crash", id, rest @ ..] => crash(world, server(id)?, rest),
        ["restart", id] => world.start(server(id)?),
        ["reset", id, peer] => world.step(server(id)?, Input::LinkReset(server(peer)?)),
        ["compact", id] => world.compact(server(id)?, LogIndex::MAX),
        ["compact", id, up_to] => world.compact(server(id)?, LogIndex(number(up_to)?)),
        ["snapshot", link, how @ ..] => snapshot(world, link, how),
        ["machine", id, speed] => machine(world, server(id)?, speed),
        ["restore", id] => restore(world, server(id)?, true),
        ["restore", id, "unheard"] => restore(world, server(id)?, false),
        ["status", ids @ ..] => status(world, ids),
        ["log", ids @ ..] => log(world, ids),
        ["progress", id] => {
            let status = world.up(server(id)?)?.0.status();
            list(world, show::progress(&status));
            Ok(())
        }
        _ => Err(format!("there is no such command: `{}`", words.join(" "))),
    }
}

/// Says each line, or that there is none.
fn list(world: &mut World, lines: impl IntoIterator<Item = String>) {
    let mut none = true;
    for line in lines {
        none = false;
        world.say(line);
    }
    if none {
        world.say("none");
    }
}

/// The settings of a cluster: those of the paper, with what the options add.
fn config(options: &[&str]) -> Result<Config, Failure> {
    let mut config =
        Config { pre_vote: false, check_quorum: false, no_op_on_election: false, ..Config::new(NodeId(1)) };
    for option in options {
        match option.split_once('=') {
            Some(("founders", _)) => {}
            Some(("lag", entries)) => config.max_promotion_lag = number(entries)?,
            None if *option == "pre-vote" => config.pre_vote = true,
            None if *option == "check-quorum" => config.check_quorum = true,
            None if *option == "no-op" => config.no_op_on_election = true,
            // A lease is shorter than the promises by so many thousandths.
            Some(("lease", drift)) => config.lease = Some(Lease { drift_per_mille: number(drift)? as u32 }),
            // A group in which nothing happens for so many milliseconds goes to sleep.
            Some(("quiesce", millis)) => config.quiesce_after = Some(Duration::from_millis(number(millis)?)),
            Some(("window", appends)) => config.max_inflight_appends = number(appends)? as usize,
            Some(("append-bytes", bytes)) => config.max_append_bytes = number(bytes)? as usize,
            Some(("uncommitted-bytes", bytes)) => config.max_uncommitted_bytes = number(bytes)? as usize,
            Some(("cached-bytes", bytes)) => config.max_cached_bytes = number(bytes)? as usize,
            Some(("reject-runs", runs)) => config.max_reject_runs = number(runs)? as usize,
            _ => return Err(format!("there is no such option: `{option}`")),
        }
    }
    Ok(config)
}

/// `node 1 term 7 vote 1 log 1 1 1 4 4`: what was on its disk when the script began.
fn node(world: &mut World, id: NodeId, past: &[&str]) -> Result<(), Failure> {
    let mut hard_state = HardState::default();
    let mut rest = past;
    loop {
        rest = match rest {
            ["term", term, rest @ ..] => {
                hard_state.current_term = Term(number(term)?);
                rest
            }
            ["vote", vote, rest @ ..] => {
                hard_state.voted_for = Some(server(vote)?);
                rest
            }
            ["log", terms @ ..] => {
                let terms = terms.iter().map(|term| number(term)).collect::<Result<Vec<u64>, Failure>>()?;
                return world.give_past(id, hard_state, &terms);
            }
            [] => return world.give_past(id, hard_state, &[]),
            [word, ..] => return Err(format!("`{word}` is no part of a past: use `term`, `vote`, and at last `log`")),
        };
    }
}

/// The election timer of a server runs out: its clock goes on that far.
fn campaign(world: &mut World, id: NodeId) -> Result<(), Failure> {
    let (raft, _) = world.up(id)?;
    if raft.status().role == Role::Leader {
        return Err(format!("server {id} leads"));
    }
    let at = raft.deadline();
    if at == Instant::NEVER {
        return Err(format!("server {id} sleeps"));
    }
    world.wake_at(id, at)
}

fn tick(world: &mut World, id: &str, millis: u64) -> Result<(), Failure> {
    let wait = Duration::from_millis(millis);
    match id {
        "all" => world.ids().into_iter().try_for_each(|id| match world.up(id) {
            Ok(_) => world.tick(id, wait),
            Err(_) => Ok(()),
        }),
        id => world.tick(server(id)?, wait),
    }
}

/// `propose 1 a b`: one batch of two commands. `bytes:100` is a command of that size.
fn propose(world: &mut World, id: NodeId, commands: &[&str]) -> Result<(), Failure> {
    let commands = commands.iter().map(|word| match word.strip_prefix("bytes:") {
        Some(size) => number(size).map(|size| "x".repeat(size as usize)),
        None => Ok((*word).to_owned()),
    });
    let commands = commands.collect::<Result<Vec<String>, Failure>>()?;
    let (raft, now) = world.up(id)?;
    let line = match raft.propose(now, &commands) {
        Ok(proposed) if proposed.first == proposed.last => {
            format!("{id} takes it as {}@{}", proposed.first, proposed.term)
        }
        Ok(proposed) => format!("{id} takes them as {}-{}@{}", proposed.first, proposed.last, proposed.term),
        Err(ProposeError::BadBatch) => return Err("there is nothing to propose".to_owned()),
        Err(error) => format!("{id} {}", show::propose_error(error)),
    };
    world.say(line);
    world.pump(id)
}

/// `change 1 voter 4 learner 5 info 5 five remove 3 forced`: everything in one change.
fn change_membership(world: &mut World, id: NodeId, words: &[&str]) -> Result<(), Failure> {
    let mut change = MembershipChange::new();
    let mut rest = words;
    while !rest.is_empty() {
        (change, rest) = match rest {
            ["voter", id, rest @ ..] => (change.voter(server(id)?), rest),
            ["learner", id, rest @ ..] => (change.learner(server(id)?), rest),
            ["remove", id, rest @ ..] => (change.remove(server(id)?), rest),
            ["info", id, text, rest @ ..] => (change.info(server(id)?, (*text).to_owned()), rest),
            ["identity", id, identity, rest @ ..] => (change.identity(server(id)?, number(identity)?), rest),
            ["forced", rest @ ..] => (change.forced(), rest),
            other => return Err(format!("`{}` is no part of a change", other.join(" "))),
        };
    }
    let (raft, now) = world.up(id)?;
    let line = match raft.change_membership(now, &change) {
        Ok(entry) => format!("{id} takes it as {entry}"),
        Err(error) => format!("{id} {}", show::change_error(error)),
    };
    world.say(line);
    world.pump(id)
}

/// Who belongs to the cluster, as servers see it.
fn members(world: &mut World, ids: &[&str]) -> Result<(), Failure> {
    let ids = if ids.is_empty() { world.ids() } else { servers(ids)? };
    for id in ids {
        let line = match &world.server(id)?.raft {
            Some(raft) => {
                let (index, membership) = raft.membership();
                let sure = if index <= raft.commit_index() { "" } else { ", not committed" };
                format!("{id}: {} (of {index}{sure})", show::membership(membership))
            }
            None => format!("{id}: down"),
        };
        world.say(line);
    }
    Ok(())
}

/// `transfer 1 2`: server 1 hands over to server 2; without a second server, to the best.
fn transfer(world: &mut World, id: NodeId, to: Option<NodeId>) -> Result<(), Failure> {
    let (raft, now) = world.up(id)?;
    if let Err(error) = raft.transfer_leadership(now, to) {
        let line = match error {
            TransferError::NotLeader { hint: Some(hint) } => format!("{id} refuses: not the leader, ask {hint}"),
            other => format!("{id} refuses: {other}"),
        };
        world.say(line);
    }
    world.pump(id)
}

type Ask = fn(&mut Raft, Instant) -> Result<ReadId, ReadError>;

fn read(world: &mut World, id: NodeId, ask: Ask) -> Result<(), Failure> {
    let (raft, now) = world.up(id)?;
    let line = match ask(raft, now) {
        Ok(read) => format!("{id} takes it as read {}", read.0),
        Err(error) => format!("{id} {}", show::read_error(error)),
    };
    world.say(line);
    world.pump(id)
}

/// What is on its way now arrives, one after the other; what follows from it does not.
fn deliver(world: &mut World, filter: &Filter) -> Result<(), Failure> {
    let arriving = world.wire.take(filter);
    if arriving.is_empty() {
        world.say("none");
    }
    arriving.into_iter().try_for_each(|envelope| world.arrive(envelope))
}

/// Everything arrives, and all that follows from it, among these servers (or among all), until nothing is on its way.
fn settle(world: &mut World, ids: &[&str]) -> Result<(), Failure> {
    let among = if ids.is_empty() { world.ids() } else { servers(ids)? };
    for _ in 0..MOST_MESSAGES {
        match world.wire.take_first(&among) {
            Some(envelope) => world.arrive(envelope)?,
            None => return Ok(()),
        }
    }
    Err("the servers never stop talking".to_owned())
}

fn hold(world: &mut World, filter: &Filter, held: bool) {
    let found = world.wire.hold(filter, held);
    list(world, found.iter().map(show::sent));
}

/// How many messages have arrived since the beginning, of these kinds or of any.
fn traffic(world: &mut World, kinds: &[&str]) -> Result<(), Failure> {
    if let Some(other) = kinds.iter().find(|kind| !show::KINDS.contains(kind)) {
        return Err(format!("`{other}` is no kind of message"));
    }
    let lines: Vec<String> = world
        .traffic
        .iter()
        .filter(|((.., kind), _)| kinds.is_empty() || kinds.contains(kind))
        .map(|((from, to, kind), count)| format!("{from} -> {to} {kind}: {count}"))
        .collect();
    list(world, lines);
    Ok(())
}

/// `cut 1>2` loses what 1 sends to 2 from now on, `cut 1-2` in both directions.
fn cut(world: &mut World, link: &str) -> Result<(), Failure> {
    let (from, to, both) = match (link.split_once('>'), link.split_once('-')) {
        (Some((from, to)), _) => (server(from)?, server(to)?, false),
        (None, Some((from, to))) => (server(from)?, server(to)?, true),
        _ => return Err(format!("`{link}` is no link: use 1>2 or 1-2")),
    };
    world.wire.set_cut(from, to, true);
    if both {
        world.wire.set_cut(to, from, true);
    }
    Ok(())
}

fn isolate(world: &mut World, id: NodeId) -> Result<(), Failure> {
    world.server(id)?;
    for other in world.ids() {
        world.wire.set_cut(id, other, true);
        world.wire.set_cut(other, id, true);
    }
    Ok(())
}

fn disk(world: &mut World, id: NodeId, speed: &str) -> Result<(), Failure> {
    let slow = match speed {
        "slow" => true,
        "quick" => false,
        _ => return Err(format!("a disk is `slow` or `quick`, not `{speed}`")),
    };
    world.server_mut(id)?.slow_disk = slow;
    if slow { Ok(()) } else { sync(world, id, usize::MAX) }
}

/// `snapshot 1>2 arrives`: the oldest one on its way from 1 to 2 does, and 1 hears of it. `unheard`: it arrives, and 1 hears that it failed. `late`: a
/// copy of it arrives, and it is still on its way. `fails`: it does not arrive, and 1 hears that.
fn snapshot(world: &mut World, link: &str, how: &[&str]) -> Result<(), Failure> {
    let (from, to) = link.split_once('>').ok_or_else(|| format!("`{link}` is no link: use 1>2"))?;
    let (from, to) = (server(from)?, server(to)?);
    let at = world.transfers.iter().position(|transfer| transfer.from == from && transfer.wanted.to == to);
    let at = at.ok_or_else(|| format!("no snapshot is on its way from {from} to {to}"))?;
    let transfer = world.transfers[at].clone();
    let (arrives, heard, stays) = match how {
        ["arrives"] => (true, Some(Some(transfer.meta.last)), false),
        ["unheard"] => (true, Some(None), false),
        ["late"] => (true, None, true),
        ["fails"] => (false, Some(None), false),
        _ => return Err("a snapshot `arrives`, `fails`, arrives `unheard`, or `late`".to_owned()),
    };
    if !stays {
        world.transfers.remove(at);
    }
    if arrives {
        world.snapshot_arrives(&transfer)?;
    }
    match heard {
        Some(last) if world.server(from)?.raft.is_some() => {
            world.say(format!("{from} hears that it {}", if last.is_some() { "has arrived" } else { "failed" }));
            world.step(from, Input::SnapshotSent { to, epoch: transfer.wanted.epoch, last })
        }
        _ => Ok(()),
    }
}

fn machine(world: &mut World, id: NodeId, speed: &str) -> Result<(), Failure> {
    world.server_mut(id)?.slow_machine = match speed {
        "slow" => true,
        "quick" => false,
        _ => return Err(format!("a state machine is `slow` or `quick`, not `{speed}`")),
    };
    Ok(())
}

/// A slow state machine is done with the snapshot that it was handed; the core hears of it, or a crash is quicker.
fn restore(world: &mut World, id: NodeId, heard: bool) -> Result<(), Failure> {
    let input = world.take_over(id)?.ok_or_else(|| format!("{id} is taking over nothing"))?;
    if heard { world.step(id, input) } else { Ok(()) }
}

fn writes(world: &mut World, id: NodeId) -> Result<(), Failure> {
    let lines: Vec<String> = world.server(id)?.disk.pending().map(show::write).collect();
    list(world, lines);
    Ok(())
}

fn sync(world: &mut World, id: NodeId, count: usize) -> Result<(), Failure> {
    let lines: Vec<String> = world
        .server(id)?
        .disk
        .pending()
        .take(count)
        .map(|write| format!("{id} has w{} on its disk", write.seq))
        .collect();
    lines.iter().for_each(|line| world.say(line));
    world.sync(id, count)
}

/// `crash 1`: all pending writes are lost. `crash 1 keeping 2`: the oldest two are not. `crash 1 keeping 0 torn 1`: of the next one, all but
/// its entries arrived, and of these one.
fn crash(world: &mut World, id: NodeId, rest: &[&str]) -> Result<(), Failure> {
    let (kept, torn) = match rest {
        [] => (0, None),
        ["keeping", kept] => (number(kept)? as usize, None),
        ["keeping", kept, "torn", torn] => (number(kept)? as usize, Some(number(torn)? as usize)),
        _ => return Err("a crash is `crash 1`, `crash 1 keeping 2`, or `crash 1 keeping 2 torn 1`".to_owned()),
    };
    let mut lines = Vec::new();
    for (write, at) in world.server(id)?.disk.pending().zip(0..).skip(kept) {
        let what = if at == kept && torn.is_some() { "tears" } else { "loses" };
        lines.push(format!("{id} {what} {}", show::write(write)));
    }
    lines.iter().for_each(|line| world.say(line));
    world.crash(id, kept, torn)
}

fn status(world: &mut World, ids: &[&str]) -> Result<(), Failure> {
    let ids = if ids.is_empty() { world.ids() } else { servers(ids)? };
    for id in ids {
        let line = match &world.server(id)?.raft {
            Some(raft) => show::status(&raft.status()),
            None => format!("{id}: down"),
        };
        world.say(line);
    }
    Ok(())
}

/// The logs, with what is known to be committed in brackets, and what a crash would leave, if that is something else.
fn log(world: &mut World, ids: &[&str]) -> Result<(), Failure> {
    let ids = if ids.is_empty() { world.ids() } else { servers(ids)? };
    for id in ids {
        let server = world.server(id)?;
        let commit = server.raft.as_ref().map(raft_core::Raft::commit_index).unwrap_or_default();
        let live = show::log(server.disk.live(), commit);
        let durable = show::log(server.disk.durable(), raft_core::LogIndex(0));
        let same = durable == show::log(server.disk.live(), raft_core::LogIndex(0));
        let down = if server.raft.is_some() { "" } else { " (down)" };
        let line = if same { format!("{id}{down}: {live}") } else { format!("{id}{down}: {live}; on disk: {durable}") };
        world.say(line);
    }
    Ok(())
}

fn server(word: &str) -> Result<NodeId, Failure> {
    word.parse().map(NodeId).map_err(|_| format!("`{word}` is no server"))
}

fn servers(words: &[&str]) -> Result<Vec<NodeId>, Failure> {
    let ids = words.iter().map(|word| server(word)).collect::<Result<BTreeSet<NodeId>, Failure>>()?;
    Ok(ids.into_iter().collect())
}

fn number(word: &str) -> Result<u64, Failure> {
    word.parse().map_err(|_| format!("`{word}` is no number"))
}
