//! What the checker knows of memberships: which one counts where, how one may follow on another, and that nobody can be elected who lacks what is
//! committed, whatever each server takes for the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::checker::Violation;
use super::disk::{Disk, Image};
use crate::entries::EntryKind;
use crate::io::Write;
use crate::membership::Membership;
use crate::status::{Role, Status};
use crate::types::{LogId, LogIndex, NodeId};

/// The memberships of one cluster.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Who founded the cluster.
    founders: Arc<Membership>,
    /// The newest one that is committed.
    committed: Arc<Membership>,
    committed_at: LogIndex,
    /// What counts at each server: the index, from its disk, and what it said last.
    views: BTreeMap<NodeId, View>,
    /// Those that any server has ever written behind that one: each may be committed yet.
    proposed: BTreeMap<LogId, Arc<Membership>>,
    /// Which server each id means now, if it is not the first one.
    identities: BTreeMap<NodeId, u64>,
    /// What was on the disks of members that have lost them, by id and identity. What was committed was there, and that it is gone is not to blame on anybody.
    graves: BTreeMap<(NodeId, u64), Image>,
}

#[derive(Debug, Default)]
struct View {
    /// The newest one that it has written; `None` when there is none in its log.
    written: Option<LogIndex>,
    said: Option<(LogIndex, Arc<Membership>)>,
    /// Those that have counted, one after the other, since it was looked at, the one from before included.
    lately: Vec<Arc<Membership>>,
    /// One that it has written since it was looked at.
    new: Option<LogIndex>,
}

impl Members {
    /// A server begins a new life, or its life ends.
    pub(super) fn restarted(&mut self, id: NodeId) {
        self.views.remove(&id);
    }

    /// A server has handed out a write, and `disk` has just taken it.
    pub(super) fn wrote(&mut self, id: NodeId, write: &Write, disk: &Disk) {
        let changes = write.entries.segments().iter().flat_map(|segment| segment.of_kind(EntryKind::Membership));
        let changes: Vec<_> =
            changes.filter_map(|entry| Some((entry.id(), Arc::new(Membership::decode(entry.payload).ok()?)))).collect();
        let newer = changes.iter().filter(|(entry, _)| entry.index > self.committed_at);
        self.proposed.extend(newer.cloned());
        let Some(view) = self.views.get_mut(&id) else { return };
        if write.truncate_from.is_some_and(|from| view.written.is_some_and(|at| at >= from))
            || write.log_start.is_some()
        {
            view.written = newest(disk.live());
        }
        for (entry, membership) in changes {
            (view.written, view.new) = (Some(entry.index), Some(entry.index));
            view.lately.push(membership);
        }
    }

    /// The disk of this server is lost, with what was on it.
    pub(super) fn bury(&mut self, id: NodeId, disk: &Disk) {
        let identity = self.identities.get(&id).copied().unwrap_or(0);
        self.graves.insert((id, identity), disk.durable().clone());
    }

    /// What is on the disk of the server that a membership means, or was on it.
    fn image<'d>(&'d self, membership: &Membership, id: NodeId, disks: &[&'d Disk]) -> Option<&'d Image> {
        self.grave(membership, id)
            .or_else(|| Some(disk_of(disks, id)?.durable()).filter(|_| self.means(membership, id)))
    }

    /// What was on the disk of the server that a membership means, if that is lost.
    fn grave(&self, membership: &Membership, id: NodeId) -> Option<&Image> {
        self.graves.get(&(id, membership.identity(id)))
    }

    /// Every membership that counts, or may count yet, anywhere.
    pub(super) fn may_count(&self) -> impl Iterator<Item = &Membership> {
        self.proposed.values().chain([&self.committed]).map(|membership| &**membership)
    }

    /// Another server has this id now.
    pub(super) fn replaced(&mut self, id: NodeId, identity: u64) {
        self.identities.insert(id, identity);
        self.views.remove(&id);
    }

    /// Whether a membership means the server that has this id now.
    fn means(&self, membership: &Membership, id: NodeId) -> bool {
        membership.identity(id) == self.identities.get(&id).copied().unwrap_or(0)
    }

    /// Looks at a server after an event.
    ///
    /// # Errors
    /// It does not use the newest membership in its log; or, as the leader, it has made one that must not follow on the one before.
    pub(super) fn observe(&mut self, status: &Status, disk: &Disk) -> Result<(), Violation> {
        if self.founders.voters().is_empty() && status.membership_index == LogIndex::ZERO {
            self.founders = status.membership.clone();
            self.committed = status.membership.clone();
        }
        let view =
            self.views.entry(status.id).or_insert_with(|| View { written: newest(disk.live()), ..View::default() });
        let right = match view.written {
            Some(index) => status.membership_index == index,
            None => status.membership_index <= status.log_start.index,
        };
        if !right {
            let (at, newest) = (status.membership_index, view.written);
            return Err(format!(
                "{:?} uses the membership of {at}, the newest in its log is that of {newest:?}",
                status.id
            ));
        }
        // One whose vote was taken by a membership that may never be committed stands, too (thesis, Figure 4.6).
        let settled = status.membership_index <= status.commit_index;
        let identity = self.identities.get(&status.id).copied().unwrap_or(0);
        let votes = status.membership.is_voter(status.id) && status.membership.identity(status.id) == identity;
        if matches!(status.role, Role::PreCandidate | Role::Candidate) && settled && !votes {
            return Err(format!("{:?} stands for election, and has no vote: {status:?}", status.id));
        }
        if view
            .said
            .as_ref()
            .is_some_and(|(index, said)| *index == status.membership_index && said == &status.membership)
        {
            view.lately.clear();
            return Ok(());
        }
        view.lately.extend(view.said.take().map(|(_, before)| before));
        view.said = Some((status.membership_index, status.membership.clone()));
        if let Some(index) = view.written
            && decoded(disk.live(), index).as_ref() != Some(&*status.membership)
        {
            return Err(format!(
                "{:?} does not use the membership that it has written at {index}: {status:?}",
                status.id
            ));
        }
        let new = view.new.take();
        match new.and_then(|index| disk.live().id_at(index)) {
            Some(made) if status.role == Role::Leader && made.term == status.current_term => {
                self.check_made(status, disk, made)
            }
            _ => Ok(()),
        }
    }

    /// One change at a time, not before an entry of the own term is committed, and through a joint configuration if the voters change.
    fn check_made(&self, status: &Status, disk: &Disk, made: LogId) -> Result<(), Violation> {
        let (id, new) = (status.id, &status.membership);
        let own_term = disk.live().id_at(status.commit_index).is_some_and(|id| id.term == made.term);
        let in_log = disk.live().memberships();
        let before = in_log.iter().rev().find(|(index, _)| *index < made.index);
        let first = disk.live().start_membership().unwrap_or(&self.founders);
        let (at, before) = before.map_or((disk.live().start().index, first), |(index, before)| (*index, before));
        if at > status.commit_index {
            return Err(format!("{id:?} changes the membership at {made} while the change at {at} is not committed"));
        }
        if before.is_joint() {
            let follows = !new.is_joint() && new.voters() == before.voters();
            return if follows { Ok(()) } else { Err(format!("{id:?} leaves {before:?} for {new:?}")) };
        }
        if !own_term {
            return Err(format!(
                "{id:?} changes the membership at {made} before it has committed anything in its term"
            ));
        }
        let follows = if new.is_joint() { new.outgoing() } else { new.voters() };
        if follows == before.voters() { Ok(()) } else { Err(format!("{id:?} goes from {before:?} to {new:?}")) }
    }

    /// This membership is committed at `index`.
    pub(super) fn committed(&mut self, index: LogIndex, membership: Membership) {
        (self.committed_at, self.committed) = (index, Arc::new(membership));
        self.proposed.retain(|entry, _| entry.index > index);
    }

    pub(super) fn newest_committed(&self) -> (LogIndex, &Membership) {
        (self.committed_at, &self.committed)
    }

    /// What is committed is on the disks of a majority: of the leader's configuration (or configurations) when it is committed, and of the newest voters for ever.
    ///
    /// # Errors
    /// It is not.
    pub(super) fn check_kept(
        &self,
        status: &Status,
        last: LogId,
        first_time: bool,
        disks: &[&Disk],
    ) -> Result<(), Violation> {
        let kept_by = |members: &Membership| {
            members.has_quorum(|id| self.image(members, id, disks).is_some_and(|image| holds(image, last)))
        };
        let leads = first_time && status.role == Role::Leader;
        let lately = self.views.get(&status.id).map_or(&[][..], |view| &view.lately);
        // Without those that are being left: the next one may count already.
        let mut voters = Membership::of_voters(self.committed.voters().iter().copied());
        for id in self.committed.voters() {
            voters = voters.with_identity(*id, self.committed.identity(*id));
        }
        // The entry may have been committed before the membership changed, in the same step.
        let kept = if leads {
            kept_by(&status.membership) || lately.iter().any(|members| kept_by(members))
        } else {
            kept_by(&voters)
        };
        if kept {
            return Ok(());
        }
        let have: Vec<bool> = disks.iter().map(|disk| holds(disk.durable(), last)).collect();
        let members = if leads { &*status.membership } else { &voters };
        Err(format!("{:?} commits {last}, which is durable on {have:?}, in {members:?}", status.id))
    }

    /// Leader Completeness before anybody stands: a server that lacks a committed entry must not find a majority of what it takes for the
    /// cluster whose logs are no more up-to-date than its own.
    ///
    /// # Errors
    /// It would.
    pub(super) fn check_electable(&self, last: LogId, disks: &[&Disk]) -> Result<(), Violation> {
        for (id, view) in &self.views {
            let (Some((_, members)), Some(disk)) = (&view.said, disk_of(disks, *id)) else { continue };
            if holds(disk.live(), last) || members.voters().is_empty() {
                continue;
            }
            let own = disk.live().last();
            let grants = |voter: NodeId| {
                let no_newer = |disk: &Disk| disk.durable().last() <= own;
                self.means(members, voter) && (voter == *id || disk_of(disks, voter).is_some_and(no_newer))
            };
            if members.has_quorum(grants) {
                return Err(format!(
                    "leader completeness: {id:?} lacks {last}, which is committed, and could be elected by {members:?}"
                ));
            }
        }
        Ok(())
    }
}

fn disk_of<'d>(disks: &[&'d Disk], id: NodeId) -> Option<&'d Disk> {
    disks.get((id.0 as usize).checked_sub(1)?).copied()
}

/// Whether a log has this entry, or had it before it was compacted.
fn holds(image: &Image, id: LogId) -> bool {
    id.index < image.start().index || image.id_at(id.index) == Some(id)
}

fn newest(image: &Image) -> Option<LogIndex> {
    image.memberships().last().map(|(index, _)| *index)
}

fn decoded(image: &Image, index: LogIndex) -> Option<Membership> {
    let segment = image.entry(index)?;
    segment.get(index).and_then(|entry| Membership::decode(entry.payload).ok())
}
