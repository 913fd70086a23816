//! What happened in a run. A simulator that never gets into trouble proves nothing, so every run counts the rare situations
//! that it reached, and a large batch of runs in which one of them never occurred has failed.

use std::fmt;
use std::ops::AddAssign;

macro_rules! situations {
    ($($name:ident: $among:literal, $words:literal;)*) => {
        /// A situation worth counting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Situation {
            $(#[doc = $words] $name,)*
        }

        impl Situation {
            /// All of them.
            pub const ALL: &[Situation] = &[$(Situation::$name),*];

            /// In words.
            pub fn words(self) -> &'static str {
                match self {
                    $(Situation::$name => $words,)*
                }
            }

            /// In so many seeds it occurs at least once, unless something is wrong with the simulator; 0 if it need not occur.
            pub fn certain_among(self) -> u64 {
                match self {
                    $(Situation::$name => $among,)*
                }
            }
        }
    };
}

situations! {
    Elected: 20, "a leader was elected";
    TwoCandidates: 100, "two candidates stood in one term";
    PreVoteRefused: 100, "a pre-vote was refused";
    VoteRefusedForLog: 100, "a vote was refused because of the log";
    NewerTerm: 100, "a leader saw a newer term";
    QuorumLost: 100, "a leader gave up because no majority answered";
    WriteStalled: 300, "a leader gave up because its disk hung";
    Truncated: 100, "entries were truncated";
    WriteOvertaken: 1500, "a write was overtaken by a truncation";
    Rejected: 20, "an append was refused";
    FoundInOne: 20, "the match was found in one round trip";
    FoundInSeveral: 300, "the match was found in several round trips";
    StaleRejection: 200, "a rejection came late or twice";
    RepeatedAppend: 100, "an append came late or twice";
    StaleTerm: 100, "an append or a heartbeat of an older term arrived";
    FetchForFollower: 100, "entries for a follower were fetched";
    FetchForApply: 100, "entries to apply were fetched";
    Busy: 100, "a proposal was refused: busy";
    Undecided: 100, "a leader gave up on proposals";
    TransferBegun: 100, "a leader began to hand over";
    Transferred: 100, "a leader has handed over";
    TransferFailed: 100, "a leader gave up handing over";
    FollowerRead: 20, "a server that does not lead answered a read";
    LeaseRead: 100, "a leader answered a read by its lease";
    ReadLost: 100, "a read was lost with the leadership";
    OldLeaderAsked: 100, "a leader was asked after another was elected";
    ClientTimedOut: 20, "a client gave up waiting";
    Repeated: 100, "a client repeated a command in doubt";
    AnsweredAgain: 100, "a command that was repeated had been applied, and was answered as at first";
    AnsweredByAnother: 300, "such an answer came from a leader of another term";
    KnownBySnapshot: 600, "a server knew of what was repeated from a snapshot";
    LateCopy: 600, "a copy of a command came after its client had gone on, and was refused";
    SessionEnded: 300, "a command was refused because its session had ended";
    Crash: 100, "a server crashed";
    Stopped: 20, "a server stopped: by a crash, because of its disk, or because its time was over";
    AllCrashed: 300, "all servers were down at once";
    WritesLost: 100, "a crash lost writes that were not synced";
    WritesKept: 100, "a crash kept writes that were not synced";
    WriteTorn: 300, "a crash tore a write";
    CrashAfterSync: 600, "a crash came between a sync and its completion";
    SyncFailed: 300, "a sync failed and its server stopped";
    DiskLost: 100, "a disk could not be trusted any more, and its server stayed out";
    RotRead: 600, "a rotten entry was read, and its server stopped";
    DiskStalled: 100, "a disk hung";
    Paused: 100, "a server was paused";
    LeaderPaused: 100, "a leader was paused";
    Overload: 100, "a burst of requests";
    InboxFull: 300, "a server's inbox was full";
    LeaderCutOff: 100, "the leader was cut off";
    MajorityCut: 100, "the cluster was cut in two, one side with a majority";
    NoMajority: 100, "the cluster was cut so that no majority was left";
    OneWayCut: 100, "a link was cut one way";
    Bridge: 300, "one server saw two sides that did not see each other";
    Flapping: 100, "a link flapped";
    SlowLink: 100, "a link was slow";
    Storm: 100, "a storm on the whole network";
    Lost: 20, "a message was lost";
    Duplicated: 20, "a message was duplicated";
    Overtaken: 20, "a message was overtaken by a later one";
    LeaderRemoved: 300, "a leader that was removed stepped down";
    Removed: 300, "a server learned that it was removed";
    MembersChanged: 50, "a change of the membership was completed";
    ChangeTooEarly: 600, "a change was refused: the leader was too new";
    ChangeInProgress: 600, "a change was refused: another was under way";
    NotCaughtUp: 300, "a change was refused: a new voter was behind";
    NewVoterSilent: 300, "a change was refused: a new voter was not heard";
    QuorumAtRisk: 600, "a change was refused: the majority would have been at risk";
    ChangeUndecided: 300, "a leader gave up on a change";
    ChangeTruncated: 600, "a membership was truncated, and the one before counted again";
    JointInherited: 300, "a leader finished the change that another began";
    Replaced: 300, "another server came in the place of one that had left, under its id";
    BackInSameTerm: 600, "a server came back in the term in which it had left";
    MeantAnother: 600, "a message arrived at another server than it was meant for, under the same id";
    WipedRefused: 600, "a member came back with an empty disk, and was refused";
    WipedBack: 600, "a member that had lost its disk was removed, and added as another";
    Stranger: 300, "a message came from a server that the receiver did not know for a member";
    Compacted: 20, "a log was compacted";
    SnapshotSent: 100, "a snapshot was sent";
    SnapshotFailed: 100, "a transfer of a snapshot failed";
    Installed: 100, "a snapshot was installed";
    InstallOvertaken: 1500, "a snapshot was installed, and appends were quicker";
    InstallUnfinished: 900, "a crash came between a snapshot and its log";
    SnapshotsInSuccession: 300, "a snapshot came while another was being installed";
    LeaderSlept: 100, "a leader went to sleep";
    AllSlept: 100, "a whole group slept";
    WokenByRequest: 100, "a request woke a server";
    WokenByMessage: 100, "a message woke a server";
    WokenByReset: 100, "the loss of a link woke a server";
    DiedAsleep: 300, "a server died in its sleep";
    SleeperReplaced: 300, "a leader died in its sleep, and another was elected";
    SleeperDeposed: 600, "a leader slept, and another was elected";
    Backlog: 100, "the log of a server that came back had to be caught up";
}

/// Those that somebody brings about, each counted once: a server that stops because of its disk has not crashed besides. Messages that are lost or late on bad
/// links are not among them, nor what the operator does, and the death of a leader after the end of all faults.
const FAULTS: [Situation; 12] = [
    Situation::Crash,
    Situation::SyncFailed,
    Situation::DiskLost,
    Situation::DiskStalled,
    Situation::Paused,
    Situation::MajorityCut,
    Situation::NoMajority,
    Situation::Bridge,
    Situation::OneWayCut,
    Situation::Flapping,
    Situation::SlowLink,
    Situation::Storm,
];

/// How often each situation occurred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts([u64; Situation::ALL.len()]);

impl Default for Counts {
    fn default() -> Self {
        Counts([0; Situation::ALL.len()])
    }
}

impl Counts {
    /// It occurred once more.
    pub fn saw(&mut self, situation: Situation) {
        self.add(situation, 1);
    }

    /// It occurred `times` more.
    pub fn add(&mut self, situation: Situation, times: u64) {
        self.0[situation as usize] += times;
    }

    /// How often it occurred.
    pub fn of(&self, situation: Situation) -> u64 {
        self.0[situation as usize]
    }
}

/// What occurred in a batch of runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    seeds: u64,
    times: Counts,
    in_seeds: Counts,
}

impl Tally {
    /// Adds one run.
    pub fn add(&mut self, counts: &Counts) {
        self.seeds += 1;
        for situation in Situation::ALL {
            self.times.add(*situation, counts.of(*situation));
            self.in_seeds.add(*situation, u64::from(counts.of(*situation) > 0));
        }
    }

    /// How many faults were injected: crashes and failed syncs, disks that hang or are lost, pauses, cuts, and links that flap, are slow, or bad all at once.
    pub fn faults(&self) -> u64 {
        FAULTS.into_iter().map(|fault| self.times.of(fault)).sum()
    }

    /// What should have occurred among so many runs, and did not.
    pub fn missing(&self) -> impl Iterator<Item = Situation> {
        Situation::ALL.iter().copied().filter(|situation| {
            let among = situation.certain_among();
            among > 0 && self.seeds >= among && self.in_seeds.of(*situation) == 0
        })
    }
}

impl AddAssign<&Tally> for Tally {
    fn add_assign(&mut self, other: &Tally) {
        self.seeds += other.seeds;
        for situation in Situation::ALL {
            self.times.add(*situation, other.times.of(*situation));
            self.in_seeds.add(*situation, other.in_seeds.of(*situation));
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>12} {:>8}", "times", "seeds")?;
        for situation in Situation::ALL {
            let (times, seeds) = (self.times.of(*situation), self.in_seeds.of(*situation));
            writeln!(f, "{times:12} {seeds:8}  {}", situation.words())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_is_large_enough_must_have_seen_everything() {
        let mut tally = Tally::default();
        let mut counts = Counts::default();
        counts.add(Situation::Elected, 3);
        (0..19).for_each(|_| tally.add(&counts));
        assert_eq!(tally.missing().count(), 0, "too few seeds to say");
        let copy = tally.clone();
        tally += &copy;
        let missing: Vec<_> = tally.missing().collect();
        assert!(missing.contains(&Situation::Stopped) && !missing.contains(&Situation::Elected));
        counts.add(Situation::Storm, 2);
        tally.add(&counts);
        assert_eq!(tally.faults(), 2, "and nobody injects an election");
        for situation in [Situation::SyncFailed, Situation::Stopped] {
            counts.saw(situation);
        }
        tally.add(&counts);
        assert_eq!(tally.faults(), 2 + 2 + 1, "a failed sync is one fault, although it stops a server");
        assert!(!missing.contains(&Situation::InboxFull), "38 seeds are too few for that");
    }
}
