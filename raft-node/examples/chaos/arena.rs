//! A cluster with everything around it that breaks it, loads it and watches it; and the judgement at the end.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use raft_core::NodeId;
use raft_core::sim::schedule::Dice;
use raft_node::Consistency;
use raft_node::client::{Client, ClientConfig};

use crate::admin::{self, Admin, Books};
use crate::clients::{self, LEDGER, Load, Shape, TALLY, Told};
use crate::cluster::{Cluster, Stopped};
use crate::disk::{SmallDisk, Tracer};
use crate::history::{Findings, History, Ledger};
use crate::journal::{Journal, human};
use crate::monitor::{MADE, Monitor, REJECTED, RESTORED, SENT};
use crate::proxy::Network;
use crate::report::{Aim, Report, without_service};

/// When all faults are over, the cluster must elect, serve and converge within this time. It takes a second or two, on a machine that is busy with
/// other things longer.
pub(crate) const RECOVERY_WITHIN: Duration = Duration::from_mins(1);
/// How long clients go on after the cluster has recovered.
const AFTERGLOW: Duration = Duration::from_secs(2);
/// Keys asked for at a time when whole nodes are compared.
const PAGE: u32 = 5000;

/// What to build.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// With how many the cluster begins.
    pub(crate) nodes: u64,
    /// Whether there is one more node, which waits to be added.
    pub(crate) spare: bool,
    /// What the run has to come to.
    pub(crate) aim: Aim,
    /// Folder for everything; must not exist.
    pub(crate) dir: PathBuf,
    /// The `raft-node` program.
    pub(crate) program: PathBuf,
    /// Sections of every node's configuration file besides those that it must have.
    pub(crate) more: String,
    pub(crate) shape: Shape,
}

/// Fields are dropped in this order: processes before what they stand on.
pub(crate) struct Arena {
    pub(crate) load: Load,
    pub(crate) monitor: Monitor,
    pub(crate) cluster: Cluster,
    pub(crate) network: Network,
    /// The node whose disk can be filled.
    pub(crate) small: Option<(NodeId, SmallDisk)>,
    pub(crate) journal: Journal,
    pub(crate) notes: Notes,
    /// What was read besides the load.
    pub(crate) extra: History,
    /// The administrator's.
    pub(crate) books: Books,
    options: Options,
}

/// What is to be remembered for the report.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// Faults by kind.
    pub(crate) faults: BTreeMap<String, u64>,
    /// What the administrator did, by kind.
    pub(crate) deeds: BTreeMap<String, u64>,
    /// How long the schedule took.
    pub(crate) endured: Duration,
    /// Kinds of faults that cannot be had here, and why.
    pub(crate) skipped: BTreeMap<String, String>,
    pub(crate) violations: Vec<String>,
    /// Results of measurements.
    pub(crate) figures: Vec<String>,
}

impl Arena {
    /// Starts everything, and returns when the cluster serves.
    pub(crate) async fn start(options: Options, journal: Journal) -> Result<Arena> {
        let addresses = Cluster::addresses(options.nodes + u64::from(options.spare))?;
        let network = Network::start(&addresses, options.seed).await?;
        let Options { dir, program, nodes, more, .. } = &options;
        let mut cluster = Cluster::prepare(dir, program, &addresses, *nodes, &network, more)?;
        let mut notes = Notes::default();
        let last = NodeId(options.nodes);
        let small = match SmallDisk::mount(&cluster.data_dir(last)) {
            Ok(disk) => Some((last, disk)),
            Err(error) => {
                notes.skip(&journal, "full disk", &format!("{error:#}"));
                None
            }
        };
        if let Err(why) = Tracer::available() {
            notes.skip(&journal, "fsync error", &why);
            notes.skip(&journal, "fsync delay", &why);
        }
        cluster.start_all()?;
        let monitor = Monitor::start(&cluster)?;
        monitor.expect((1..=options.nodes).map(NodeId));
        let leader = match monitor.agreement(RECOVERY_WITHIN).await {
            Ok(leader) => leader,
            Err(error) => {
                for stopped in cluster.reap()? {
                    journal.say(&stopped.to_string());
                }
                return Err(error.context("the cluster does not come up"));
            }
        };
        journal.say(&format!("{} nodes are up, node {leader} leads", options.nodes));
        let load = Load::start(&cluster.client_config(), journal.origin(), options.seed, options.shape)?;
        load.next_write(RECOVERY_WITHIN).await?;
        let (extra, books) = (History::default(), Books::default());
        Ok(Arena { load, monitor, cluster, network, small, journal, notes, extra, books, options })
    }

    /// With how many nodes the cluster began, and how many voters it is to have.
    pub(crate) fn founders(&self) -> usize {
        self.options.nodes as usize
    }

    /// What the chances of this run come from.
    pub(crate) fn seed(&self) -> u64 {
        self.options.seed
    }

    /// Starts again what has stopped by itself, if it had a reason; otherwise that is a violation.
    pub(crate) fn restart_stopped(&mut self) -> Result<Vec<Stopped>> {
        let stopped = self.cluster.reap()?;
        for one in &stopped {
            self.journal.say(&one.to_string());
            if !one.is_excused() {
                self.notes.violations.push(one.to_string());
            }
            self.cluster.start(one.id)?;
        }
        Ok(stopped)
    }

    /// Ends all faults, demands recovery, and judges what clients and nodes have to say. Whatever fails on the way is a violation: there is
    /// a report in any case.
    pub(crate) async fn finish(mut self) -> Report {
        let (recovered, agreed) = match self.recover().await {
            Ok((recovered, agreed)) => (Some(recovered), Some(agreed)),
            Err(error) => {
                self.notes.violations.push(format!("no recovery: {error:#}"));
                (None, None)
            }
        };
        let (longest_gap, gap_began) = self.load.longest_gap();
        let writes = self.load.samples();
        let Told { mut history, ledger, tallies, repeated, outcomes, violations } = self.load.finish().await;
        history.merge(self.extra);
        self.journal.say("the clients have stopped; comparing");
        self.notes.violations.extend(violations);
        let (config, origin) = (self.cluster.client_config(), self.journal.origin());
        self.notes.violations.extend(read_again(config, origin, &mut history).await);
        // What was seen before the last write says nothing.
        self.monitor.forget();
        let contents = match self.monitor.convergence(RECOVERY_WITHIN).await {
            Ok(index) => {
                self.journal.say(&format!("all nodes have applied up to {index}"));
                contents(&self.cluster).await
            }
            Err(error) => Err(error),
        };
        let lost = match contents {
            Ok(contents) => {
                self.notes.violations.extend(differences(&contents));
                let missing = ledger_problems(&ledger, &contents);
                self.notes.violations.extend(missing.iter().cloned());
                let miscounted = on_each(&contents, TALLY, |found| tallies.check(found));
                self.notes.violations.extend(miscounted);
                missing.len()
            }
            Err(error) => {
                self.notes.violations.push(format!("{error:#}"));
                0
            }
        };
        self.notes.violations.extend(self.monitor.violations());
        match self.cluster.reap() {
            Ok(stopped) => self.notes.violations.extend(stopped.iter().map(|one| format!("at the end: {one}"))),
            Err(error) => self.notes.violations.push(format!("at the end: {error:#}")),
        }
        let all = (1..=self.options.nodes + u64::from(self.options.spare)).map(NodeId);
        self.notes.violations.extend(panics(&self.cluster, all));
        let findings = history.check();
        self.notes.violations.extend(findings.violations.iter().cloned());
        if !self.notes.violations.is_empty()
            && let Err(error) = save_evidence(&self.options.dir, self.small.as_ref(), &history, &findings)
        {
            self.notes.violations.push(format!("the evidence is not complete: {error:#}"));
        }
        Report {
            seed: self.options.seed,
            nodes: self.options.nodes,
            seconds: self.journal.origin().elapsed().as_secs_f64(),
            operations: outcomes,
            faults: self.notes.faults,
            deeds: self.notes.deeds,
            aim: self.options.aim,
            endured_s: self.notes.endured.as_secs_f64(),
            compactions: self.monitor.counted(MADE),
            snapshots_sent: self.monitor.counted(SENT),
            snapshots_restored: self.monitor.counted(RESTORED),
            connections_refused: self.monitor.counted(REJECTED),
            increments: tallies.total(),
            counters: tallies.count(),
            repeated,
            skipped: self.notes.skipped,
            packets: self.network.totals(),
            elections: self.monitor.elections(),
            last_term: self.monitor.term(),
            longest_without_a_write_ms: longest_gap.as_millis() as u64,
            longest_began_s: gap_began.as_secs_f64(),
            without_service_s: without_service(&writes).as_secs_f64(),
            linearizable: findings.violations.is_empty(),
            keys_explained: findings.explained,
            keys_open: findings.open,
            ledger_entries: ledger.acknowledged.len(),
            ledger_problems: lost,
            recovery_ms: recovered.map(|time| time.as_millis() as u64),
            agreement_ms: agreed.map(|time| time.as_millis() as u64),
            figures: self.notes.figures,
            violations: self.notes.violations,
        }
    }

    /// Heals everything; returns how long it took until a write was acknowledged, and until all nodes followed one leader.
    async fn recover(&mut self) -> Result<(Duration, Duration)> {
        self.network.heal();
        if let Some((_, disk)) = &self.small {
            disk.free()?;
        }
        self.cluster.resume_all()?;
        for id in self.cluster.ids() {
            self.cluster.set_trouble(id, None)?;
        }
        self.restart_stopped()?;
        self.cluster.start_all()?;
        self.journal.say("all faults are over");
        let healed = Instant::now();
        self.monitor.forget();
        let served = self.load.next_write(RECOVERY_WITHIN).await?;
        if self.options.spare {
            self.restore_members().await?;
        }
        let leader = loop {
            match self.monitor.agreement(Duration::from_millis(500)).await {
                Ok(leader) => break leader,
                Err(error) if healed.elapsed() > RECOVERY_WITHIN => return Err(error),
                // A disk that failed may stop a node only now.
                Err(_) => drop(self.restart_stopped()?),
            }
        };
        let agreed = healed.elapsed();
        self.journal.say(&format!(
            "recovered: the first write after {}, all nodes follow node {leader} after {}",
            human(served),
            human(agreed)
        ));
        tokio::time::sleep(AFTERGLOW).await;
        Ok((served, agreed))
    }

    /// The cluster is to be as large as it was, of whatever nodes; leadership can be handed over; and who is no member goes.
    async fn restore_members(&mut self) -> Result<()> {
        let client = Client::new(admin::client_config(self.cluster.client_config()))?;
        // What is done now is no deed among faults.
        let mut notes = Notes::default();
        let (voters, seed, cluster) = (self.founders(), self.seed(), RefCell::new(&mut self.cluster));
        let mut admin = Admin {
            cluster: &cluster,
            monitor: &self.monitor,
            journal: &self.journal,
            books: &mut self.books,
            notes: &mut notes,
            client,
            voters,
            dice: Dice::new(seed, 5),
            complaint: String::new(),
        };
        let mended = admin.mend(RECOVERY_WITHIN).await;
        let moved = admin.transfer(None, RECOVERY_WITHIN).await;
        self.notes.violations.append(&mut notes.violations);
        mended.and(moved)?;
        let members = self.monitor.members();
        for id in self.cluster.ids().into_iter().filter(|id| !members.contains(id)) {
            self.journal.say(&format!("node {id} is no member, and goes"));
            self.cluster.dismiss(id)?;
        }
        self.monitor.expect(members);
        Ok(())
    }
}

impl Notes {
    /// Counts a fault that was carried out.
    pub(crate) fn count(&mut self, kind: &str) {
        *self.faults.entry(kind.to_owned()).or_default() += 1;
    }

    /// Counts what the administrator did.
    pub(crate) fn deed(&mut self, kind: &str) {
        *self.deeds.entry(kind.to_owned()).or_default() += 1;
    }

    /// Adds what was noted elsewhere at the same time.
    pub(crate) fn add(&mut self, mut other: Notes) {
        self.faults.append(&mut other.faults);
        self.deeds.append(&mut other.deeds);
        self.skipped.append(&mut other.skipped);
        self.violations.append(&mut other.violations);
        self.figures.append(&mut other.figures);
    }

    fn skip(&mut self, journal: &Journal, kind: &str, why: &str) {
        journal.say(&format!("skipped in this run: {kind} ({why})"));
        self.skipped.insert(kind.to_owned(), why.to_owned());
    }
}

/// Reads every key of the history once more, when all is over; returns what does not work.
async fn read_again(config: ClientConfig, origin: Instant, history: &mut History) -> Vec<String> {
    let client = match Client::new(config) {
        Ok(client) => client,
        Err(error) => return vec![format!("nothing can be read at the end: {error}")],
    };
    let mut problems = Vec::new();
    for key in history.keys() {
        match clients::read(&client, origin, &key).await {
            Ok(record) => history.push(&key, record),
            Err(error) => problems.push(format!("{key} cannot be read at the end: {error:#}")),
        }
    }
    problems
}

/// What is wrong with the ledger, on any node.
fn ledger_problems(ledger: &Ledger, contents: &BTreeMap<NodeId, Content>) -> Vec<String> {
    on_each(contents, LEDGER, |found| ledger.check(found))
}

/// What is wrong with the keys that begin with `prefix`, on any node.
fn on_each(
    contents: &BTreeMap<NodeId, Content>,
    prefix: &str,
    check: impl Fn(&BTreeMap<String, u64>) -> Vec<String>,
) -> Vec<String> {
    let mut problems = Vec::new();
    for (id, content) in contents {
        let entries = content.iter().filter(|(key, _)| key.starts_with(prefix));
        let entries = entries.map(|(key, (_, value))| (key.clone(), *value)).collect();
        problems.extend(check(&entries).iter().map(|wrong| format!("node {id}: {wrong}")));
    }
    problems
}

/// Puts into `dir`, beside the logs, what would be gone otherwise: the histories in question, and what is on the small disk.
fn save_evidence(
    dir: &Path,
    small: Option<&(NodeId, SmallDisk)>,
    history: &History,
    findings: &Findings,
) -> Result<()> {
    for key in history.keys() {
        if findings.violations.iter().any(|violation| violation.starts_with(&key)) {
            fs::write(dir.join(format!("{key}.history")), history.show(&key))?;
        }
    }
    match small {
        Some((id, disk)) => disk.save(&dir.join(format!("node-{id}.data.saved"))),
        None => Ok(()),
    }
}

/// Panics in the logs of the nodes.
fn panics(cluster: &Cluster, ids: impl Iterator<Item = NodeId>) -> Vec<String> {
    let mut found = Vec::new();
    for id in ids {
        match cluster.log(id) {
            Ok(log) => {
                let lines = log.lines().filter(|line| line.contains("panicked at") || line.contains("stack backtrace"));
                found.extend(lines.map(|line| format!("node {id}: {line}")));
            }
            Err(error) => found.push(format!("the log of node {id} cannot be read: {error:#}")),
        }
    }
    found
}

/// Revision and value of each key.
type Content = BTreeMap<String, (u64, u64)>;

/// All that each node has.
async fn contents(cluster: &Cluster) -> Result<BTreeMap<NodeId, Content>> {
    let mut contents = BTreeMap::new();
    for id in cluster.ids() {
        let client = cluster.client_of(id, RECOVERY_WITHIN)?;
        let (mut content, mut start) = (Content::new(), Vec::new());
        loop {
            let page =
                client.scan(&start, None, PAGE, Consistency::Stale).await.with_context(|| format!("node {id}"))?;
            let Some(last) = page.items.last() else { break };
            start = [&last.key[..], &[0]].concat();
            for item in &page.items {
                let key = String::from_utf8_lossy(&item.key).into_owned();
                let value = clients::number(&item.value).with_context(|| format!("{key} of node {id}"))?;
                content.insert(key, (item.revision, value));
            }
            if !page.more {
                break;
            }
        }
        if client.nodes() != [id] {
            bail!("the answer may be another node's");
        }
        contents.insert(id, content);
    }
    Ok(contents)
}

/// Where nodes disagree.
fn differences(contents: &BTreeMap<NodeId, Content>) -> Vec<String> {
    let mut problems = Vec::new();
    let Some((first, expected)) = contents.first_key_value() else { return problems };
    for (id, content) in contents {
        for key in expected.keys().chain(content.keys()) {
            if expected.get(key) != content.get(key) {
                let [here, there] = [content, expected].map(|content| content.get(key));
                problems.push(format!("{key}: node {id} has {here:?}, node {first} has {there:?}"));
            }
        }
    }
    problems.truncate(20);
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_differ_are_noticed() {
        let content =
            |revision, value| -> Content { [("a".to_owned(), (1, 1)), ("b".to_owned(), (revision, value))].into() };
        let of = |other| BTreeMap::from([(NodeId(1), content(5, 7)), (NodeId(2), other)]);
        assert!(differences(&of(content(5, 7))).is_empty());
        assert!(!differences(&of(content(6, 7))).is_empty());
        assert!(!differences(&of(content(5, 8))).is_empty());
        assert!(!differences(&of(Content::new())).is_empty());
        assert!(!differences(&BTreeMap::from([(NodeId(1), Content::new()), (NodeId(2), content(5, 7))])).is_empty());
    }
}
