//! Finds out what a journal holds, when it is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::{GroupId, HardState, LogIndex, Segment};

use super::file::{self, FORMAT, PAGE, SegmentFile, Title, Titled};
use super::frame::{self, Place};
use super::index::{self, Index, Location};
use super::record::{self, Piece, Record, Start};
use crate::error::StorageError;
use crate::outline::{self, Misfit};
use crate::rocks::Identity;
use crate::storage::RecoveredLog;

/// What a journal holds.
pub(super) struct Replayed {
    pub(super) journal: u128,
    pub(super) index: Index,
    pub(super) logs: BTreeMap<GroupId, RecoveredLog>,
    /// The segment that is written to, where its frames end, and the checksum of the last.
    pub(super) active: Arc<SegmentFile>,
    pub(super) end: u64,
    pub(super) previous: u32,
    /// The file that was prepared to be the next segment, if there is one.
    pub(super) spare: Option<SegmentFile>,
}

/// A group as the records tell.
struct Group {
    hard_state: HardState,
    start: Start,
    last: LogIndex,
}

struct Replay<'a> {
    owner: &'a Identity,
    dir: &'a Path,
    index: Index,
    states: BTreeMap<GroupId, Group>,
    deleted: &'a BTreeSet<GroupId>,
}

/// The segment that is written to.
struct Newest {
    file: Arc<SegmentFile>,
    bytes: Bytes,
    ends: Ends,
}

/// How the frames of a segment end.
#[derive(Clone, Copy)]
struct Ends {
    /// Where the last one begins.
    last: usize,
    end: u64,
    /// Checksum of the last one.
    previous: u32,
}

/// Reads and verifies everything. `None`: no segment was ever begun.
///
/// # Errors
/// The journal belongs to someone else, comes from a newer version, or is damaged. Of the files of a journal only those are changed that were prepared and never used.
pub(super) fn replay(
    dir: &Path,
    owner: &Identity,
    numbers: &[u64],
    deleted: &BTreeSet<GroupId>,
) -> Result<Option<Replayed>, StorageError> {
    let mut titles = Vec::new();
    for number in numbers {
        titles.push(title(dir, *number, owner)?);
    }
    let Some(last) = titles.iter().rposition(Option::is_some) else { return Ok(None) };
    let first = titles.iter().position(Option::is_some).unwrap_or(last);
    let mut begun: Vec<Title> = Vec::new();
    for at in first..=last {
        match (&titles[at], begun.last()) {
            (Some(title), None) => begun.push(title.clone()),
            (Some(title), Some(before)) if title.number == before.number + 1 && title.journal == before.journal => {
                begun.push(title.clone());
            }
            (_, before) => {
                let missing = before.map_or(numbers[at], |before| before.number + 1);
                return Err(damaged(dir, missing, "it is missing, or does not say which one it is"));
            }
        }
    }
    let replay = Replay { owner, dir, index: Index::default(), states: BTreeMap::new(), deleted };
    replay.run(&begun, &numbers[last + 1..])
}

impl Replay<'_> {
    fn run(mut self, begun: &[Title], later: &[u64]) -> Result<Option<Replayed>, StorageError> {
        let (mut end, mut previous) = (begun[0].previous_end, begun[0].previous);
        let mut active = None;
        let mut spare = None;
        for (at, title) in begun.iter().enumerate() {
            if (title.previous_end, title.previous) != (end, previous) {
                return Err(damaged(self.dir, title.number - 1, "it does not end where the next one says"));
            }
            let file = self.open(title.number)?;
            let bytes = Bytes::from(file.read(0, file.capacity as usize).map_err(read_error)?);
            let is_last = at + 1 == begun.len();
            // A segment begins with a title and a frame, in one sync: that was under way.
            if is_last && self.unused(title.journal, title.number, &bytes)? {
                spare = Some(file);
                break;
            }
            let file = Arc::new(file);
            self.index.add_segment(file.clone());
            let ends = self.segment(title, &bytes, is_last)?;
            (end, previous) = (ends.end, ends.previous);
            active = Some(Newest { file, bytes, ends });
        }
        let journal = begun[0].journal;
        for number in later {
            // A segment is prepared when the first frame of the one before it is durable.
            if active.as_ref().is_none_or(|active| *number != active.file.number + 1) {
                return Err(damaged(self.dir, number - 1, "it has been written to, since the next one was prepared"));
            }
            let file = self.open(*number)?;
            let bytes = file.read(0, file.capacity as usize).map_err(read_error)?;
            if !self.unused(journal, *number, &bytes)? {
                return Err(damaged(self.dir, *number, "it does not say which one it is, but holds frames"));
            }
            spare = Some(file);
        }
        let Some(newest) = active else { return Ok(None) };
        let logs = self.outline()?;
        settle(&newest).map_err(|error| StorageError::engine("write the log", error))?;
        spare.as_ref().map_or(Ok(()), wipe).map_err(|error| StorageError::engine("wipe a segment", error))?;
        Ok(Some(Replayed { journal, index: self.index, logs, active: newest.file, end, previous, spare }))
    }

    fn open(&self, number: u64) -> Result<SegmentFile, StorageError> {
        SegmentFile::open(self.dir, number).map_err(read_error)
    }

    /// Whether no frame of the segment was ever acknowledged: at most its first one was being written.
    fn unused(&self, journal: u128, segment: u64, bytes: &[u8]) -> Result<bool, StorageError> {
        let place = Place { journal, segment, offset: PAGE as u64 };
        let Some(rest) = bytes.get(PAGE..) else { return Err(damaged(self.dir, segment, "it is too short")) };
        let titled = matches!(Title::decode(&bytes[..PAGE]), Titled::Yes(title) if title.number == segment);
        Ok(match frame::parse(rest, place) {
            Some(first) => !titled && frame::find(bytes, place, PAGE + first.size).is_none(),
            None => frame::find(bytes, place, PAGE).is_none(),
        })
    }

    /// Takes in the frames of a segment.
    fn segment(&mut self, title: &Title, bytes: &Bytes, is_last: bool) -> Result<Ends, StorageError> {
        let (mut last, mut at, mut previous) = (PAGE, PAGE, title.previous);
        loop {
            let place = Place { journal: title.journal, segment: title.number, offset: at as u64 };
            let Some(frame) = bytes.get(at..).and_then(|rest| frame::parse(rest, place)) else {
                // What was being written at the end may be there in part. In the middle, it is damage.
                if is_last && let Some(later) = frame::find(bytes, place, at) {
                    let what = format!("no frame at {at}, but one at {later}: something in between is damaged");
                    return Err(damaged(self.dir, title.number, &what));
                }
                return Ok(Ends { last, end: at as u64, previous });
            };
            if frame.previous != previous {
                return Err(damaged(self.dir, title.number, &format!("the frame at {at} follows on another one")));
            }
            let body = bytes.slice_ref(frame.body);
            let records: Option<Vec<Record>> = record::records(&body).collect();
            let records = records
                .ok_or_else(|| damaged(self.dir, title.number, &format!("the frame at {at} holds no records")))?;
            // What moves is in the log as the rest of the frame says it is: if that is the first frame there is, nothing is known before its checkpoints.
            let (moved, others): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|record| matches!(record, Record::Moved { .. }));
            for record in others.into_iter().chain(moved) {
                self.record(record, title.number, at + frame::HEADER, &body)?;
            }
            (last, at) = (at, at + frame.size);
            previous = frame.checksum;
        }
    }

    fn record(&mut self, record: Record, segment: u64, base: usize, body: &Bytes) -> Result<(), StorageError> {
        match record {
            Record::Write { group, hard_state, start, replaced, truncate_from, pieces } => {
                let state = self.state(group);
                state.hard_state = hard_state.unwrap_or(state.hard_state);
                if let Some(start) = start {
                    let index = start.last.index;
                    state.start = start;
                    self.index.begin_after(group, index, replaced)?;
                }
                if let Some(from) = truncate_from {
                    self.index.truncate(group, from)?;
                }
                for piece in &pieces {
                    let (location, last) = locate(group, piece, segment, base, body)?;
                    if !self.index.append(group, location, last) {
                        return Err(self.misplaced(segment, group, piece));
                    }
                    self.state(group).last = last;
                }
            }
            Record::Checkpoint { group, hard_state, start, last } => {
                self.index.begin_after(group, start.last.index, false)?;
                self.index.set_last(group, last)?;
                self.states.insert(group, Group { hard_state, start, last });
            }
            Record::Moved { group, piece } => {
                let (location, _) = locate(group, &piece, segment, base, body)?;
                if !self.index.moved(group, location) {
                    return Err(self.misplaced(segment, group, &piece));
                }
            }
        }
        Ok(())
    }

    fn misplaced(&self, segment: u64, group: GroupId, piece: &Piece) -> StorageError {
        damaged(self.dir, segment, &format!("entry {} of group {group} has no place in its log", piece.first))
    }

    fn state(&mut self, group: GroupId) -> &mut Group {
        let start = Start { last: raft_core::LogId::ZERO, membership: None };
        self.states.entry(group).or_insert(Group { hard_state: HardState::default(), start, last: LogIndex::ZERO })
    }

    /// Looks at the entries that there are in the end: each log must be whole.
    fn outline(&self) -> Result<BTreeMap<GroupId, RecoveredLog>, StorageError> {
        let files: BTreeMap<u64, _> = self.index.segments().map(|held| (held.file.number, &held.file)).collect();
        let mut logs = BTreeMap::new();
        // What a deleted group had may be gone already.
        for (group, state) in self.states.iter().filter(|(group, _)| !self.deleted.contains(group)) {
            let group = *group;
            let mut log = RecoveredLog {
                hard_state: state.hard_state,
                log_start: state.start.last,
                membership: state.start.membership.clone(),
                last_index: state.start.last.index,
                ..RecoveredLog::default()
            };
            for location in self.index.locations(group) {
                let Some(file) = files.get(&location.segment) else { continue };
                let entries = index::read(file, group, location)?;
                outline::append(&mut log, &entries).map_err(|misfit| self.misfit(group, &log, location, misfit))?;
                log.bytes += u64::from(location.length);
            }
            let last = self.index.last(group);
            if log.last_index != last {
                return Err(StorageError::Gap { group, expected: log.last_index.next(), found: last.next() });
            }
            logs.insert(group, log);
        }
        tracing::debug!(owner = %self.owner.node, groups = logs.len(), "journal replayed");
        Ok(logs)
    }

    fn misfit(&self, group: GroupId, log: &RecoveredLog, location: Location, misfit: Misfit) -> StorageError {
        match misfit {
            Misfit::Gap => StorageError::Gap { group, expected: log.last_index.next(), found: location.first },
            other => damaged(
                self.dir,
                location.segment,
                &format!("group {group}, the entries from {} on: {}", location.first, other.rule()),
            ),
        }
    }
}

/// Whether the files are such as an interrupted creation leaves behind: at most the first one, with no more than the header of its first frame in it.
pub(super) fn never_begun(dir: &Path, numbers: &[u64]) -> Result<bool, StorageError> {
    match numbers {
        [] => Ok(true),
        [1] => {
            let file = SegmentFile::open(dir, 1).map_err(read_error)?;
            let bytes = file.read(0, file.capacity as usize).map_err(read_error)?;
            Ok(bytes.iter().skip(PAGE + frame::HEADER).all(|byte| *byte == 0))
        }
        _ => Ok(false),
    }
}

/// Makes what was read durable. The last frame may be in memory only: the process was killed before it had synced it; or a sync of it failed, and the operating system took
/// it for clean all the same. So it is written again. And if another frame was being written behind it, there is no beginning of that any more.
fn settle(newest: &Newest) -> io::Result<()> {
    let Newest { file, bytes, ends } = newest;
    // The first one was written together with the title.
    let from = if ends.last == PAGE { 0 } else { ends.last };
    let end = bytes.len().min(ends.end as usize);
    let zeros = frame::HEADER.min(bytes.len() - end);
    file.write(&[&bytes[from..end], &[0; frame::HEADER][..zeros]].concat(), from as u64)?;
    file.sync()
}

/// What was being written to a segment when it was to begin, whole or in part, must not be taken for what is written there next time.
fn wipe(spare: &SegmentFile) -> io::Result<()> {
    spare.write(&[0; PAGE + frame::HEADER], 0)?;
    spare.sync()
}

/// The title of a segment, if the file was begun to be one. Checks whose it is.
fn title(dir: &Path, number: u64, owner: &Identity) -> Result<Option<Title>, StorageError> {
    let file = SegmentFile::open(dir, number).map_err(read_error)?;
    if file.capacity < PAGE as u64 {
        return Err(damaged(dir, number, "it is too short"));
    }
    let title = match Title::decode(&file.read(0, PAGE).map_err(read_error)?) {
        Titled::Yes(title) => title,
        Titled::Newer(found) => {
            let place = file.path().display().to_string();
            return Err(StorageError::NewerFormat { place, found, supported: FORMAT });
        }
        Titled::No => return Ok(None),
    };
    if title.owner.cluster != owner.cluster {
        let (expected, found) = (owner.cluster.clone(), title.owner.cluster);
        return Err(StorageError::WrongCluster { dir: dir.to_owned(), expected, found });
    }
    if title.owner.node != owner.node {
        return Err(StorageError::WrongNode { dir: dir.to_owned(), expected: owner.node, found: title.owner.node });
    }
    if number == u64::MAX {
        return Err(damaged(dir, number, "no other could follow it"));
    }
    // A file that was renamed to be used again still has the title of before.
    Ok((title.number == number).then_some(title))
}

/// Verifies the entries of a piece. `base` is where the body begins in its segment.
fn locate(
    group: GroupId,
    piece: &Piece,
    segment: u64,
    base: usize,
    body: &Bytes,
) -> Result<(Location, LogIndex), StorageError> {
    let damaged = |what| StorageError::Record { group, first: piece.first, what };
    let entries = Segment::unpack(piece.first, body.slice(piece.bytes.clone()))
        .map_err(|error| damaged(crate::error::RecordDamage::Entry(error)))?
        .ok_or_else(|| damaged(crate::error::RecordDamage::Short(0)))?;
    let location = Location {
        first: piece.first,
        segment,
        // Segments are smaller than 4 GiB.
        offset: (base + piece.bytes.start) as u32,
        length: piece.bytes.len() as u32,
    };
    Ok((location, entries.last_index()))
}

fn read_error(error: std::io::Error) -> StorageError {
    StorageError::engine("read the log", error)
}

fn damaged(dir: &Path, segment: u64, what: &str) -> StorageError {
    StorageError::Damaged { place: file::path_of(dir, segment).display().to_string(), what: what.to_owned() }
}
