//! The ports of one server's driver: what it hands out becomes events in virtual time.

use std::time::Duration;

use super::client::Answer;
use super::server::{Answers, Item, Job, Outbox, told};
use super::sometimes::Situation;
use super::workload::Workload;
use super::world::{Event, World};
use crate::io::{self, Fetch, Input, StepDownReason, WakeReason, Write};
use crate::message::{Envelope, Message};
use crate::sim::cluster::{id_of, index_of};
use crate::types::{Instant, WriteSeq};

impl<W: Workload> World<'_, W> {
    /// A server works off its inbox; then what its driver hands out is carried out, until there is nothing more.
    pub(super) fn pump(&mut self, i: usize) {
        let now = self.now();
        let mut answers = self.servers[i].drain_inbox(now);
        let lease_reads = std::mem::take(&mut self.servers[i].lease_reads);
        self.counts.add(Situation::LeaseRead, lease_reads);
        self.look_at_restored(i);
        while self.failure.is_none()
            && let Some(outbox) = self.servers[i].turn(now)
        {
            self.carry_out(i, outbox, &mut answers);
        }
        self.look_at_outcomes(i);
        for (ticket, answer) in answers {
            // Floods have no tickets of their own.
            if !self.servers[i].open.remove(&ticket) && ticket.client < self.clients.len() {
                self.failed(format!("n{} answers c{} once more: {answer:?}", i + 1, ticket.client + 1));
            }
            self.answer(ticket, answer);
        }
        self.compare_states(i);
        self.observe(i);
        self.compact(i);
        self.show_server(i);
        self.set_alarm(i);
    }

    fn carry_out(&mut self, i: usize, outbox: Outbox, answers: &mut Answers) {
        outbox.events.iter().for_each(|event| self.tells(i, event));
        outbox.writes.iter().for_each(|write| self.save(i, write));
        outbox.messages.into_iter().for_each(|envelope| self.send(i, envelope));
        outbox.jobs.into_iter().for_each(|job| self.hand_to_state_machine(i, job, answers));
        outbox.fetches.into_iter().for_each(|fetch| self.fetch(i, fetch));
        outbox.failed.iter().for_each(|(ticket, error)| self.operator_hears(*ticket, Err(error)));
        outbox.snapshots.into_iter().for_each(|wanted| self.send_snapshot(i, wanted));
        answers.extend(outbox.failed.iter().map(|(ticket, error)| (*ticket, told(error))));
        for (ticket, entry) in outbox.changed {
            self.operator_hears(ticket, Ok(()));
            answers.push((ticket, Answer::Done { answer: Vec::new(), entry: Some(entry), first: None }));
        }
        for (reader, error) in outbox.failed_reads {
            // One that was let in, and not refused at once.
            self.counts.add(Situation::ReadLost, u64::from(reader.since < self.now()));
            answers.push((reader.ticket, told(&error)));
        }
    }

    fn tells(&mut self, i: usize, event: &io::Event) {
        self.note(format_args!("n{} tells: {event:?}", i + 1));
        self.shaken = true;
        let heard = self.checker.heard(id_of(i), event);
        self.check(heard);
        if let io::Event::MembershipChanged { index, membership } = event {
            return self.members_changed(i, *index, membership);
        }
        let situation = match event {
            io::Event::Removed { .. } => Situation::Removed,
            io::Event::BecameLeader { term } => {
                if self.handing_over.is_some_and(|(from, to)| term.0 == from.0 + 1 && to == id_of(i)) {
                    self.counts.saw(Situation::Transferred);
                }
                let sleepers = self.servers.iter().filter_map(super::server::Server::raft);
                if sleepers.map(crate::Raft::status).any(|other| other.quiesced && other.role == crate::Role::Leader) {
                    self.counts.saw(Situation::SleeperDeposed);
                }
                if self.died_asleep.take_if(|died| *died < *term).is_some() {
                    self.counts.saw(Situation::SleeperReplaced);
                }
                Situation::Elected
            }
            io::Event::TransferBegun { term, to } => {
                self.handing_over = Some((*term, *to));
                Situation::TransferBegun
            }
            io::Event::Quiesced { .. } => return self.count_sleepers(i),
            io::Event::Woken { reason, .. } => match reason {
                WakeReason::Request => Situation::WokenByRequest,
                WakeReason::Message => Situation::WokenByMessage,
                WakeReason::LinkReset => Situation::WokenByReset,
            },
            io::Event::TransferFailed { .. } => Situation::TransferFailed,
            io::Event::Truncated { .. } => Situation::Truncated,
            io::Event::Restored { last, kept } => return self.count_restored(i, *last, *kept),
            io::Event::SteppedDown { reason, .. } => match reason {
                StepDownReason::NewerTerm => Situation::NewerTerm,
                StepDownReason::QuorumLost => Situation::QuorumLost,
                StepDownReason::WriteStalled => Situation::WriteStalled,
                StepDownReason::Removed => Situation::LeaderRemoved,
            },
            _ => return,
        };
        self.counts.saw(situation);
    }

    fn count_sleepers(&mut self, i: usize) {
        let sleeps = |server: &super::server::Server<W>| server.raft().is_none_or(|raft| raft.status().quiesced);
        let situation = match self.servers[i].leads() {
            true => Situation::LeaderSlept,
            false if self.servers.iter().all(sleeps) => Situation::AllSlept,
            false => return,
        };
        self.counts.saw(situation);
    }

    /// Hands a write to the disk, which syncs all that it has whenever it is idle.
    fn save(&mut self, i: usize, write: &Write) {
        let disk = &mut self.servers[i].disk;
        if let Some(from) = write.truncate_from
            && disk.pending().any(|earlier| earlier.entries.last_index().is_some_and(|last| last >= from))
        {
            self.counts.saw(Situation::WriteOvertaken);
        }
        let accepted = disk.accept(write.clone());
        self.note(format_args!("n{} writes {write:?}", i + 1));
        self.check(accepted);
        let wrote = self.checker.wrote(id_of(i), write, &self.servers[i].disk);
        self.check(wrote);
        self.sync(i);
    }

    fn sync(&mut self, i: usize) {
        let server = &mut self.servers[i];
        let Some(seq) = server.disk.pending().next_back().map(|write| write.seq) else { return };
        if server.syncing.is_some() {
            return;
        }
        server.syncing = Some(seq);
        let life = server.life;
        let healthy = self.healed.is_some();
        let (fastest, slowest) = self.mix.sync;
        let mut time = self.dice.time(fastest, if healthy { slowest.min(Duration::from_millis(10)) } else { slowest });
        if !healthy && self.mix.sync_hiccups > 0 && self.dice.chance(self.mix.sync_hiccups, 1000) {
            time *= 50;
        }
        self.schedule.after(time, Event::Synced { server: i, life, seq });
    }

    /// A sync is done, unless the disk hangs; now what it covers survives a crash. The core hears of it, at once or a little later.
    pub(super) fn synced(&mut self, i: usize, life: u64, seq: WriteSeq) {
        let now = self.now();
        let Some(server) = self.lives(i, life) else { return };
        if server.sync_fails {
            server.sync_fails = false;
            self.counts.saw(Situation::SyncFailed);
            self.note(format_args!("n{} hears that a sync failed, and stops", i + 1));
            self.crash(i);
            return self.start_later(i);
        }
        if now < server.stalled_until {
            let until = server.stalled_until;
            return self.schedule.at(until, Event::Synced { server: i, life, seq });
        }
        server.syncing = None;
        server.synced = seq;
        let completed = server.disk.complete(seq);
        self.note(format_args!("n{} has synced {seq}", i + 1));
        self.check(completed.map(|_| ()));
        self.sync(i);
        if self.dice.chance(1, 4) {
            let delay = self.dice.time(Duration::ZERO, Duration::from_millis(1));
            self.schedule.after(delay, Event::Told { server: i, life, seq });
        } else {
            self.servers[i].inbox.push_back(Item::Input(Input::Persisted(seq)));
            self.ask_for_pump(i);
        }
    }

    fn send(&mut self, i: usize, envelope: Envelope) {
        let said = self.checker.said(id_of(i), &envelope, &self.servers[i].disk);
        self.check(said);
        let Some(to) = index_of(envelope.to).filter(|to| *to < self.servers.len() && *to != i) else {
            return self.failed(format!("n{} writes to {:?}", i + 1, envelope.to));
        };
        self.count_sent(i, &envelope);
        let meant = self.meant(&envelope);
        let [first, second] = self.network.send(i, to, self.schedule.now(), &mut self.counts);
        if first.is_none() {
            self.note(format_args!("n{} -> n{}  lost: t{} {:?}", i + 1, to + 1, envelope.term, envelope.body));
            self.show_message(&envelope, self.now(), false);
        }
        let sent = self.now();
        if let Some(at) = second {
            self.schedule.at(at, Event::Message { server: to, envelope: envelope.clone(), meant, sent });
        }
        if let Some(at) = first {
            self.schedule.at(at, Event::Message { server: to, envelope, meant, sent });
        }
    }

    fn count_sent(&mut self, i: usize, envelope: &Envelope) {
        let situation = match &envelope.body {
            Message::RequestVote(_) if *self.candidates.entry(envelope.term).or_insert(i) != i => {
                Situation::TwoCandidates
            }
            Message::PreVoteReply(reply) if !reply.granted => Situation::PreVoteRefused,
            Message::RequestVoteReply(reply) if !reply.granted => {
                let hard_state = self.servers[i].disk.live().hard_state();
                if hard_state.voted_for.is_some() || hard_state.current_term != envelope.term {
                    return;
                }
                Situation::VoteRefusedForLog
            }
            Message::AppendReject(_) => Situation::Rejected,
            _ => return,
        };
        self.counts.saw(situation);
    }

    /// The state machine does its jobs one after the other, at once or after a while.
    fn hand_to_state_machine(&mut self, i: usize, job: Job, answers: &mut Answers) {
        let now = self.now();
        let mut time = Duration::ZERO;
        let mut flush = false;
        let mut bytes = 0;
        if let Job::Query(readers) = &job
            && !self.servers[i].leads()
        {
            self.counts.add(Situation::FollowerRead, readers.len() as u64);
        }
        if let Job::Apply { entries, .. } = &job {
            for entry in entries.iter() {
                let applied = self.checker.applied(id_of(i), entry.id());
                self.check(applied);
            }
            bytes = entries.byte_len();
            flush = self.dice.chance(1, 8);
            if !self.mix.apply.is_zero() && self.healed.is_none() {
                time = self.dice.time(Duration::ZERO, self.mix.apply);
            }
            let server = &mut self.servers[i];
            server.handed = entries.last_index().unwrap_or(server.handed);
        }
        if let Job::Restore(restore) = &job {
            let server = &mut self.servers[i];
            (server.handed, server.restoring) = (restore.meta.last.index, true);
            let slowest = self.mix.compaction.map_or(Duration::ZERO, |policy| policy.restore);
            time = self.snapshot_dice.time(Duration::from_micros(1), slowest.max(Duration::from_micros(2)));
        }
        let mut wake = false;
        let server = &mut self.servers[i];
        if time.is_zero() && server.jobs == 0 {
            let applied = server.work(job, answers);
            let shown = server.clock.read(now);
            match applied {
                Some(applied) if self.mix.late_progress => {
                    server.applied = Some(applied);
                    server.quiet_bytes += bytes;
                    wake = server.quiet_bytes >= self.mix.config.max_unapplied_bytes / 2;
                }
                Some(applied) => server.step(shown, applied),
                None => {}
            }
        } else {
            let life = server.life;
            server.jobs += 1;
            server.applying_until = server.applying_until.max(now) + time;
            self.schedule.at(server.applying_until, Event::Worked { server: i, life, job });
        }
        if flush && self.mix.keeps_state {
            server.flushed = server.replica.clone();
            self.checker.saved(id_of(i), server.flushed.applied.index);
        }
        if wake {
            let life = self.servers[i].life;
            self.schedule.after(Duration::from_micros(10), Event::Pump { server: i, life });
        }
    }

    fn fetch(&mut self, i: usize, fetch: Fetch) {
        let server = &self.servers[i];
        let to_apply =
            fetch.first == server.handed.next() && server.raft().is_some_and(|raft| fetch.last <= raft.commit_index());
        self.counts.saw(if to_apply { Situation::FetchForApply } else { Situation::FetchForFollower });
        let life = server.life;
        let delay = self.dice.time(Duration::from_micros(50), Duration::from_millis(1));
        self.schedule.after(delay, Event::Fetched { server: i, life, fetch });
    }

    /// Checks every promise that a look at this server can show broken.
    fn observe(&mut self, i: usize) {
        /// The core's own check takes time in proportion to what it has in memory: after every event that changes a role, a term or a log
        /// otherwise than at its end, and now and then.
        const CHECK_EVERY: u64 = 32;
        self.pumps += 1;
        let shaken = std::mem::take(&mut self.shaken);
        let Some(raft) = self.servers[i].raft() else { return };
        if shaken || self.pumps.is_multiple_of(CHECK_EVERY) {
            raft.check_invariants();
        }
        let status = raft.status();
        let disks = self.servers.iter().map(|server| &server.disk);
        let seen = self.checker.observe(&status, &self.servers[i].disk, disks);
        let word = status.commit_index.0 << 20 ^ status.last_log.index.0 << 40 ^ status.current_term.0;
        self.print(word);
        self.check(seen);
    }

    /// Sets the alarm for the core's deadline, if none that is set goes off in time.
    pub(super) fn set_alarm(&mut self, i: usize) {
        let server = &mut self.servers[i];
        let Some(driver) = &server.driver else { return };
        let deadline = driver.deadline();
        let at = server.clock.when(deadline).max(self.schedule.now());
        if deadline < Instant::NEVER && server.alarm.is_none_or(|alarm| alarm > at) {
            server.alarm = Some(at);
            let life = server.life;
            self.schedule.at(at, Event::Wake { server: i, life });
        }
    }
}
