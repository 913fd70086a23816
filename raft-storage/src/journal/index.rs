//! Where the entries of each log lie. Only in memory: it follows from the frames.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use raft_core::{GroupId, LogIndex, Segment};

use super::file::SegmentFile;
use crate::error::{RecordDamage, StorageError};

/// Where consecutive entries lie that were appended together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    pub(super) first: LogIndex,
    pub(super) segment: u64,
    pub(super) offset: u32,
    /// In bytes, without what does not belong to the log any more.
    pub(super) length: u32,
}

/// The log of one group.
///
/// Invariants: the first indices of `locations` strictly increase, and lie within `start + 1 ..= last`. Once the index is complete, each location ends where the next
/// begins, the last one with `last`, and the first one begins with the log.
#[derive(Clone, Debug, Default)]
pub(super) struct Extent {
    /// Index of the entry before the log.
    start: LogIndex,
    last: LogIndex,
    locations: VecDeque<Location>,
}

/// A segment with frames in it.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) file: Arc<SegmentFile>,
    /// Locations in it.
    live: u64,
}

/// All logs, and the segments that they need. Segments go out of use in the order of their numbers.
#[derive(Debug, Default)]
pub(super) struct Index {
    extents: BTreeMap<GroupId, Extent>,
    segments: BTreeMap<u64, Held>,
}

impl Index {
    /// A segment that is written to from now on.
    pub(super) fn add_segment(&mut self, file: Arc<SegmentFile>) {
        self.segments.insert(file.number, Held { file, live: 0 });
    }

    /// The segments, oldest first.
    pub(super) fn segments(&self) -> impl Iterator<Item = &Held> {
        self.segments.values()
    }

    pub(super) fn holds(&self, segment: u64) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Index of the last entry.
    pub(super) fn last(&self, group: GroupId) -> LogIndex {
        self.extents.get(&group).map_or(LogIndex::ZERO, |extent| extent.last)
    }

    /// Bytes of entries.
    pub(super) fn bytes(&self, group: GroupId) -> u64 {
        let locations = self.extents.get(&group).map(|extent| &extent.locations);
        locations.into_iter().flatten().map(|location| u64::from(location.length)).sum()
    }

    /// Where the entries of a group lie that are in a segment.
    pub(super) fn located_in(&self, segment: u64) -> impl Iterator<Item = (GroupId, LogIndex)> {
        self.extents.iter().flat_map(move |(group, extent)| {
            let here = extent.locations.iter().filter(move |location| location.segment == segment);
            here.map(|location| (*group, location.first))
        })
    }

    /// All locations of a group, in order.
    pub(super) fn locations(&self, group: GroupId) -> impl Iterator<Item = Location> {
        self.extents.get(&group).into_iter().flat_map(|extent| extent.locations.iter().copied())
    }

    /// The location that begins with this entry.
    pub(super) fn at(&self, group: GroupId, first: LogIndex) -> Option<Location> {
        let extent = self.extents.get(&group)?;
        let at = extent.locations.binary_search_by_key(&first, |location| location.first).ok()?;
        extent.locations.get(at).copied()
    }

    /// The locations that together hold the entries `first ..= last`, or about the first `max_bytes` of them.
    pub(super) fn find(
        &self,
        group: GroupId,
        first: LogIndex,
        last: LogIndex,
        max_bytes: usize,
    ) -> Vec<(Location, Arc<SegmentFile>)> {
        let Some(extent) = self.extents.get(&group) else { return Vec::new() };
        if first <= extent.start || first > last || first > extent.last {
            return Vec::new();
        }
        let begin = extent.locations.partition_point(|location| location.first <= first).saturating_sub(1);
        let (mut found, mut bytes) = (Vec::new(), 0usize);
        for location in extent.locations.range(begin..).take_while(|location| location.first <= last) {
            let Some(held) = self.segments.get(&location.segment) else { break };
            found.push((*location, held.file.clone()));
            // Of the first one, part may not be wanted.
            if found.len() > 1 {
                bytes = bytes.saturating_add(location.length as usize);
            }
            if bytes >= max_bytes {
                break;
            }
        }
        found
    }

    /// The log of the group begins after `start`. Unless it held that entry, it is empty then.
    pub(super) fn begin_after(&mut self, group: GroupId, start: LogIndex, replaced: bool) -> Result<(), StorageError> {
        let extent = self.extents.entry(group).or_default();
        extent.start = start;
        if replaced {
            extent.last = start;
            extent.locations.drain(..).for_each(|location| release(&mut self.segments, location));
            return Ok(());
        }
        extent.last = extent.last.max(start);
        while let Some(front) = extent.locations.front().copied() {
            let end = extent.locations.get(1).map_or(extent.last, |next| next.first.prev());
            if end > start {
                if front.first <= start {
                    let skipped = bytes_before(&self.segments, group, front, start.next())?;
                    if skipped == front.length {
                        // When a journal is replayed, what lies between this location and the next may only come later, when it moves.
                        extent.locations.pop_front();
                        release(&mut self.segments, front);
                        break;
                    }
                    let clipped = Location {
                        first: start.next(),
                        offset: front.offset + skipped,
                        length: front.length - skipped,
                        ..front
                    };
                    extent.locations[0] = clipped;
                }
                break;
            }
            extent.locations.pop_front();
            release(&mut self.segments, front);
        }
        Ok(())
    }

    /// The log ends before `from`.
    pub(super) fn truncate(&mut self, group: GroupId, from: LogIndex) -> Result<(), StorageError> {
        let extent = self.extents.entry(group).or_default();
        while let Some(back) = extent.locations.pop_back_if(|back| back.first >= from) {
            release(&mut self.segments, back);
        }
        if from <= extent.last {
            if let Some(back) = extent.locations.back_mut() {
                back.length = bytes_before(&self.segments, group, *back, from)?;
            }
            extent.last = from.prev();
        }
        Ok(())
    }

    /// Entries up to `last` were appended. `false`: they do not come after all others.
    #[must_use]
    pub(super) fn append(&mut self, group: GroupId, location: Location, last: LogIndex) -> bool {
        let extent = self.extents.entry(group).or_default();
        if extent.locations.back().is_some_and(|back| back.first >= location.first) || location.first <= extent.start {
            return false;
        }
        extent.last = last;
        extent.locations.push_back(location);
        retain(&mut self.segments, location);
        true
    }

    /// Entries that lay elsewhere lie here now. `false`: the log does not have them.
    #[must_use]
    pub(super) fn moved(&mut self, group: GroupId, location: Location) -> bool {
        let Some(extent) = self.extents.get_mut(&group) else { return false };
        if location.first <= extent.start || location.first > extent.last {
            return false;
        }
        retain(&mut self.segments, location);
        match extent.locations.binary_search_by_key(&location.first, |location| location.first) {
            Ok(at) => release(&mut self.segments, std::mem::replace(&mut extent.locations[at], location)),
            // What it was moved from is not there any more.
            Err(at) => extent.locations.insert(at, location),
        }
        true
    }

    /// The log of the group ends here, whatever was found; its beginning has been set.
    pub(super) fn set_last(&mut self, group: GroupId, last: LogIndex) -> Result<(), StorageError> {
        self.truncate(group, last.next())?;
        self.extents.entry(group).or_default().last = last;
        Ok(())
    }

    /// Nothing is left of the group.
    pub(super) fn forget(&mut self, group: GroupId) {
        let extent = self.extents.remove(&group).unwrap_or_default();
        extent.locations.into_iter().for_each(|location| release(&mut self.segments, location));
    }

    /// Takes out the oldest segments, as far as nothing is in them that is needed, and the one that is written to is not among them.
    pub(super) fn retire(&mut self, active: u64) -> Vec<Arc<SegmentFile>> {
        let mut retired = Vec::new();
        while let Some(oldest) = self.segments.first_entry()
            && *oldest.key() != active
            && oldest.get().live == 0
        {
            retired.push(oldest.remove().file);
        }
        retired
    }
}

fn retain(segments: &mut BTreeMap<u64, Held>, location: Location) {
    if let Some(held) = segments.get_mut(&location.segment) {
        held.live += 1;
    }
}

fn release(segments: &mut BTreeMap<u64, Held>, location: Location) {
    if let Some(held) = segments.get_mut(&location.segment) {
        held.live -= 1;
    }
}

/// Bytes of the entries of a location that come before the one at `index`.
fn bytes_before(
    segments: &BTreeMap<u64, Held>,
    group: GroupId,
    location: Location,
    index: LogIndex,
) -> Result<u32, StorageError> {
    let Some(held) = segments.get(&location.segment) else { return Ok(0) };
    let entries = read(&held.file, group, location)?;
    // No longer than the location, whose length fits.
    Ok(entries.slice(LogIndex(1), index.prev()).map_or(0, |before| before.byte_len() as u32))
}

/// Reads and verifies the entries of a location.
pub(super) fn read(file: &SegmentFile, group: GroupId, location: Location) -> Result<Segment, StorageError> {
    let damaged = |what| StorageError::Record { group, first: location.first, what };
    let bytes = file
        .read(u64::from(location.offset), location.length as usize)
        .map_err(|error| StorageError::engine("read the log", error))?;
    match Segment::unpack(location.first, Bytes::from(bytes)) {
        Ok(Some(entries)) => Ok(entries),
        Ok(None) => Err(damaged(RecordDamage::Short(0))),
        Err(error) => Err(damaged(RecordDamage::Entry(error))),
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{EntryKind, Term};

    use super::*;

    const GROUP: GroupId = GroupId(5);

    /// Two segments with entries 1 to 4 in the first and 5 to 8 in the second, two in each location.
    fn filled(dir: &std::path::Path) -> Index {
        let mut index = Index::default();
        for number in [1, 2] {
            let file = SegmentFile::create(dir, number, 4096, |_| true).unwrap();
            let mut offset = 0;
            let mut locations = Vec::new();
            for first in [number * 4 - 3, number * 4 - 1] {
                let entries =
                    Segment::pack(LogIndex(first), Term(1), EntryKind::Command, &["a", "bcd"]).expect("entries");
                file.write(&entries.bytes(), u64::from(offset)).unwrap();
                let length = entries.byte_len() as u32;
                locations.push(Location { first: LogIndex(first), segment: number, offset, length });
                offset += length;
            }
            index.add_segment(Arc::new(file));
            for location in locations {
                assert!(index.append(GROUP, location, location.first.next()));
            }
        }
        index
    }

    fn indices(index: &Index, first: u64, last: u64) -> Vec<u64> {
        let found = index.find(GROUP, LogIndex(first), LogIndex(last), usize::MAX);
        let entries = found.into_iter().map(|(location, file)| read(&file, GROUP, location).unwrap());
        entries.flat_map(|entries| entries.iter().map(|entry| entry.index.0).collect::<Vec<_>>()).collect()
    }

    #[test]
    fn entries_are_found_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let index = filled(dir.path());
        assert_eq!(indices(&index, 1, 99), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(indices(&index, 4, 5), [3, 4, 5, 6]);
        assert_eq!((indices(&index, 0, 9), indices(&index, 9, 20), indices(&index, 3, 2)), (vec![], vec![], vec![]));
        let some = index.find(GROUP, LogIndex(1), LogIndex(8), 1);
        assert_eq!(some.len(), 2, "part of the first may not be wanted");
        assert_eq!(index.bytes(GROUP), 4 * (4 + 2 * 17));
    }

    #[test]
    fn both_ends_can_be_cut_off_inside_a_location() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = filled(dir.path());
        index.truncate(GROUP, LogIndex(8)).unwrap();
        assert_eq!(indices(&index, 1, 99), [1, 2, 3, 4, 5, 6, 7]);
        index.begin_after(GROUP, LogIndex(3), false).unwrap();
        assert_eq!(indices(&index, 4, 99), [4, 5, 6, 7]);
        assert_eq!(indices(&index, 3, 99), []);
        assert!(index.retire(2).is_empty());
        index.begin_after(GROUP, LogIndex(4), false).unwrap();
        assert_eq!(index.retire(2).iter().map(|file| file.number).collect::<Vec<_>>(), [1]);
        assert_eq!(index.bytes(GROUP), 38 + 18);
        index.begin_after(GROUP, LogIndex(7), true).unwrap();
        assert_eq!((indices(&index, 8, 99), index.bytes(GROUP)), (vec![], 0));
        assert!(index.retire(2).is_empty(), "it is written to");
        assert_eq!(index.retire(3).len(), 1);
    }

    #[test]
    fn entries_move_and_their_old_segment_is_free() {
        let dir = tempfile::tempdir().unwrap();
        let mut index = filled(dir.path());
        assert_eq!(index.located_in(1).collect::<Vec<_>>(), [(GROUP, LogIndex(1)), (GROUP, LogIndex(3))]);
        for first in [1, 3] {
            let old = index.at(GROUP, LogIndex(first)).unwrap();
            assert!(index.moved(GROUP, Location { segment: 2, ..old }));
        }
        assert_eq!(index.retire(2).len(), 1);
        assert_eq!(index.locations(GROUP).map(|location| location.segment).collect::<Vec<_>>(), [2; 4]);
        let foreign = Location { first: LogIndex(9), segment: 2, offset: 0, length: 1 };
        assert!(!index.moved(GROUP, foreign));
        assert!(!index.append(GROUP, Location { first: LogIndex(7), ..foreign }, LogIndex(7)));
        index.forget(GROUP);
        assert_eq!((index.locations(GROUP).count(), index.retire(9).len()), (0, 1));
    }
}
