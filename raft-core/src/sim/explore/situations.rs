//! What a search came across. One that never gets into trouble proves nothing, so the situations that it is for are counted, and one that should have been
//! reached and was not is a failure.

use super::settings::Settings;

/// A situation worth counting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Situation {
    /// Another server leads than the one that led before.
    Replaced,
    /// The leader had died, and another server was elected.
    DeadReplaced,
    /// A log was cut.
    Truncated,
    /// A crash came between a write and its sync, and the disk lost it, or a part of it.
    WriteLost,
    /// A crash came between a sync and the news of it: nothing was lost, and the core was not told.
    WriteKept,
    /// A read was confirmed.
    ReadServed,
    /// A change of the membership was complete: the new configuration counts alone, and is committed.
    ChangeCompleted,
    /// A log was compacted.
    Compacted,
    /// A state machine had taken over a snapshot.
    Installed,
    /// All who live slept.
    Asleep,
}

impl Situation {
    /// All of them.
    pub const ALL: [Situation; 10] = [
        Situation::Replaced,
        Situation::DeadReplaced,
        Situation::Truncated,
        Situation::WriteLost,
        Situation::WriteKept,
        Situation::ReadServed,
        Situation::ChangeCompleted,
        Situation::Compacted,
        Situation::Installed,
        Situation::Asleep,
    ];

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Situation::Replaced => "another server leads than before",
            Situation::DeadReplaced => "the leader died, and another was elected",
            Situation::Truncated => "a log was cut",
            Situation::WriteLost => "a crash lost a write that was not synced",
            Situation::WriteKept => "a crash came between a sync and the news of it",
            Situation::ReadServed => "a read was confirmed",
            Situation::ChangeCompleted => "a change of the membership was completed",
            Situation::Compacted => "a log was compacted",
            Situation::Installed => "a snapshot was installed",
            Situation::Asleep => "all who live slept",
        }
    }

    /// Whether a search with these settings that goes far enough must come across it.
    fn is_due(self, settings: &Settings) -> bool {
        let Settings { servers, crashes, prompt_disks, deaths, .. } = settings;
        let elections = settings.terms + u64::from(settings.led);
        let lasting_writes = *crashes > 0 && !prompt_disks;
        match self {
            Situation::Replaced => elections > 1 && *servers > 1,
            Situation::DeadReplaced => elections > 1 && *deaths > 0 && servers - 1 > servers / 2,
            Situation::Truncated => part(&settings.start),
            Situation::WriteLost | Situation::WriteKept => lasting_writes,
            Situation::ReadServed => settings.reads > 0,
            Situation::ChangeCompleted => settings.change.is_some(),
            Situation::Compacted => settings.compactions > 0,
            Situation::Installed => settings.forgotten.iter().any(|entries| *entries > 0),
            Situation::Asleep => settings.quiesces,
        }
    }
}

/// Whether two of these logs hold entries of different terms at one place.
fn part(logs: &[Vec<u64>]) -> bool {
    logs.iter().any(|a| logs.iter().any(|b| a.iter().zip(b).any(|(x, y)| x != y)))
}

/// How often each situation was met: in how many states, or, where it is about a step, in how many different ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Situations([u64; Situation::ALL.len()]);

impl Situations {
    /// It was met `times` more.
    pub(super) fn add(&mut self, situation: Situation, times: u64) {
        self.0[situation as usize] += times;
    }

    /// It was met, if so.
    pub(super) fn saw(&mut self, situation: Situation, met: bool) {
        self.add(situation, u64::from(met));
    }

    /// How often it was met.
    pub fn of(&self, situation: Situation) -> u64 {
        self.0[situation as usize]
    }

    /// Those that were met, and how often.
    pub fn met(&self) -> impl Iterator<Item = (Situation, u64)> {
        Situation::ALL.into_iter().map(|situation| (situation, self.of(situation))).filter(|(_, times)| *times > 0)
    }

    /// What a search with these settings should have met, and did not.
    pub fn missing(&self, settings: &Settings) -> impl Iterator<Item = Situation> {
        Situation::ALL.into_iter().filter(|situation| situation.is_due(settings) && self.of(*situation) == 0)
    }
}
