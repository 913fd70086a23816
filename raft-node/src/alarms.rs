//! One timer for all groups: which of them is to be looked at next, and when.

use std::collections::BTreeSet;

use raft_core::{GroupId, Instant};

/// The moments at which groups want to be looked at.
///
/// A group's own deadline moves with nearly every message, nearly always to a later time. So an alarm is only ever moved forward: it may
/// go off too early, and then the group says when it wants to be woken next. That costs a look now and then, and saves two changes of the set
/// for each message.
///
/// Invariant: a group is in `by_time` once, at its [`Alarm`]'s time, or not at all.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    by_time: BTreeSet<(Instant, GroupId)>,
}

/// A group's own note of when its alarm goes off, if it has one.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Instant>);

impl Alarms {
    /// The time of the next alarm.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Makes sure that the group is woken at `due`, or before; at [`Instant::NEVER`] it need not be.
    pub(crate) fn set(&mut self, group: GroupId, alarm: &mut Alarm, due: Instant) {
        if due < alarm.0.unwrap_or(Instant::NEVER) {
            self.clear(group, alarm);
            self.by_time.insert((due, group));
            alarm.0 = Some(due);
        }
    }

    /// A group whose alarm goes off by `now`. It has none any more: call [`Alarm::went_off`], then [`set`](Self::set).
    pub(crate) fn pop(&mut self, now: Instant) -> Option<GroupId> {
        let (at, group) = *self.by_time.first()?;
        (at <= now).then(|| self.by_time.pop_first())?;
        Some(group)
    }

    /// The group is not to be woken any more.
    pub(crate) fn clear(&mut self, group: GroupId, alarm: &mut Alarm) {
        if let Some(at) = alarm.0.take() {
            self.by_time.remove(&(at, group));
        }
    }
}

impl Alarm {
    /// [`Alarms::pop`] has named this group.
    pub(crate) fn went_off(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_moves_forward_only_and_goes_off_once() {
        let (mut alarms, mut one, mut two) = (Alarms::default(), Alarm::default(), Alarm::default());
        let at = Instant::from_millis;
        alarms.set(GroupId(1), &mut one, at(50));
        alarms.set(GroupId(2), &mut two, Instant::NEVER);
        assert_eq!((alarms.next(), alarms.by_time.len()), (Some(at(50)), 1));
        alarms.set(GroupId(1), &mut one, at(70));
        alarms.set(GroupId(2), &mut two, at(60));
        alarms.set(GroupId(1), &mut one, at(40));
        assert_eq!((alarms.next(), alarms.by_time.len()), (Some(at(40)), 2));
        assert_eq!(alarms.pop(at(39)), None);
        assert_eq!(alarms.pop(at(40)), Some(GroupId(1)));
        one.went_off();
        assert_eq!(alarms.pop(at(59)), None, "moved, not doubled");
        alarms.set(GroupId(1), &mut one, at(80));
        alarms.clear(GroupId(2), &mut two);
        assert_eq!(
            (alarms.pop(at(79)), alarms.pop(at(80)), alarms.pop(Instant::NEVER)),
            (None, Some(GroupId(1)), None)
        );
    }
}
