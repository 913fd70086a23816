//! The directory of the snapshot files: what is in it, what is kept, what is cleared away.
//!
//! ```text
//! snapshot-<index>-<term>-<id>   whole and checked; the newest two are kept
//! part-<index>-<term>-<id>       arriving; kept over a restart, so that the transfer can go on
//! new-<id>                       being made; worthless after a restart
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use raft_core::{GroupId, LogIndex, SnapshotId, SnapshotMeta};

use super::file::{FileHeader, FileReader, FileWriter, SnapshotFileError};
use super::lock;
use crate::background::Breather;
use crate::pace::Pace;

/// Whole files that are kept.
const KEPT: usize = 2;
/// Snapshots that have arrived and may still be asked for.
const PINNED: usize = 3;

/// A whole snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) path: PathBuf,
    pub(crate) header: FileHeader,
    /// Of the file, in bytes.
    pub(crate) size: u64,
}

impl Stored {
    pub(crate) fn index(&self) -> LogIndex {
        self.header.meta.last.index
    }
}

/// Where a group's snapshots are kept. Shared by whoever makes, sends, receives and takes them over.
#[derive(Debug)]
pub(crate) struct Directory {
    dir: PathBuf,
    group: GroupId,
    /// How fast work on files may go.
    pace: Arc<Pace>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest first.
    stored: Vec<Stored>,
    /// Those that came from a leader, by the number under which the core knows them.
    arrived: BTreeMap<SnapshotId, PathBuf>,
    last_id: u64,
}

impl Directory {
    /// Opens the directory, makes it if there is none, and clears away what a crash has left.
    pub(crate) fn open(dir: &Path, group: GroupId, pace: Arc<Pace>) -> Result<Self, SnapshotFileError> {
        let io = |source| SnapshotFileError::Io { path: dir.to_owned(), source };
        fs::create_dir_all(dir).map_err(io)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_dir(parent).map_err(io)?;
        }
        let (mut stored, mut parts) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("new-") {
                remove(&path);
            } else if name.starts_with("part-") {
                parts.push(path);
            } else if name.starts_with("snapshot-") {
                let reader = FileReader::open(&path)?;
                let size = fs::metadata(&path).map_err(io)?.len();
                stored.push(Stored { path, header: reader.header, size });
            }
        }
        // Names sort by index: only the newest transfer can be of use.
        parts.sort();
        parts.pop();
        parts.iter().for_each(|path| remove(path));
        stored.retain(|file| file.header.group == group);
        stored.sort_by_key(Stored::index);
        let directory =
            Directory { dir: dir.to_owned(), group, pace, state: Mutex::new(State { stored, ..State::default() }) };
        directory.prune();
        Ok(directory)
    }

    pub(crate) fn group(&self) -> GroupId {
        self.group
    }

    /// How fast work on files may go.
    pub(crate) fn pace(&self) -> Arc<Pace> {
        self.pace.clone()
    }

    /// The newest snapshot.
    pub(crate) fn newest(&self) -> Option<Stored> {
        lock(&self.state).stored.last().cloned()
    }

    /// All snapshots, the newest first.
    pub(crate) fn all(&self) -> Vec<Stored> {
        lock(&self.state).stored.iter().rev().cloned().collect()
    }

    /// Makes a file: `write` is given what to write to.
    pub(crate) fn make(
        &self,
        meta: SnapshotMeta,
        write: impl FnOnce(&mut FileWriter) -> io::Result<()>,
    ) -> Result<Stored, SnapshotFileError> {
        let header = FileHeader { group: self.group, id: rand::random(), meta };
        let path = self.dir.join(format!("new-{:016x}", header.id));
        let breather = Breather::new(self.pace());
        let made = FileWriter::create(&path, &header, breather).and_then(|mut file| {
            write(&mut file).map_err(|source| SnapshotFileError::Io { path: path.clone(), source })?;
            file.finish()
        });
        match made.and_then(|size| self.keep(&path, header, size)) {
            Ok(stored) => Ok(stored),
            Err(error) => {
                remove(&path);
                Err(error)
            }
        }
    }

    /// Where a snapshot that arrives is collected.
    pub(crate) fn part(&self, header: &FileHeader) -> PathBuf {
        self.dir.join(name("part", header))
    }

    /// Forgets transfers that nobody goes on with: only those in `busy` are.
    pub(crate) fn forget_parts(&self, busy: &BTreeSet<PathBuf>) {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let is_part = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("part-"));
        files.filter(|path| is_part(path) && !busy.contains(path)).for_each(|path| remove(&path));
    }

    /// A snapshot has arrived, was checked, and is on the disk. Says under which number it is known from now on.
    pub(crate) fn arrived(&self, part: &Path, header: FileHeader, size: u64) -> Result<SnapshotId, SnapshotFileError> {
        let stored = match self.whole(&header) {
            Some(stored) => stored,
            None => self.keep(part, header, size)?,
        };
        let mut state = lock(&self.state);
        state.last_id += 1;
        let id = SnapshotId(state.last_id);
        state.arrived.insert(id, stored.path);
        while state.arrived.len() > PINNED {
            state.arrived.pop_first();
        }
        Ok(id)
    }

    /// The snapshot that came under this number, if it is still here.
    pub(crate) fn find(&self, id: SnapshotId) -> Option<PathBuf> {
        lock(&self.state).arrived.get(&id).cloned()
    }

    /// The very same snapshot, if it is here already.
    pub(crate) fn whole(&self, header: &FileHeader) -> Option<Stored> {
        lock(&self.state).stored.iter().find(|stored| stored.header == *header).cloned()
    }

    /// Nobody will ask for the snapshots that arrived under this number or earlier.
    pub(crate) fn release(&self, id: SnapshotId) {
        lock(&self.state).arrived.retain(|other, _| *other > id);
        self.prune();
    }

    /// Gives a file its final name, durably.
    fn keep(&self, path: &Path, header: FileHeader, size: u64) -> Result<Stored, SnapshotFileError> {
        let to = self.dir.join(name("snapshot", &header));
        let io = |source| SnapshotFileError::Io { path: to.clone(), source };
        fs::rename(path, &to).map_err(io)?;
        sync_dir(&self.dir).map_err(io)?;
        let stored = Stored { path: to, header, size };
        let mut state = lock(&self.state);
        state.stored.push(stored.clone());
        state.stored.sort_by_key(Stored::index);
        drop(state);
        self.prune();
        Ok(stored)
    }

    /// Removes what is old, and not waiting to be taken over. Whoever is sending it has it open.
    fn prune(&self) {
        let mut state = lock(&self.state);
        let State { stored, arrived, .. } = &mut *state;
        let old = stored.len().saturating_sub(KEPT);
        let mut at = 0;
        stored.retain(|file| {
            at += 1;
            let keep = at > old || arrived.values().any(|path| *path == file.path);
            if !keep {
                remove(&file.path);
            }
            keep
        });
    }
}

fn name(kind: &str, header: &FileHeader) -> String {
    let last = header.meta.last;
    format!("{kind}-{:020}-{:020}-{:016x}", last.index.0, last.term.0, header.id)
}

pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

pub(crate) fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a file that is of no use any more cannot be removed");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use raft_core::{LogId, Membership, NodeId, Term};

    use super::*;

    fn meta(index: u64) -> SnapshotMeta {
        let membership = Membership::of_voters([NodeId(1)]);
        SnapshotMeta { last: LogId::new(Term(2), LogIndex(index)), membership }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_newest_two_are_kept_and_found_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("snapshots");
        let directory = Directory::open(&dir, GroupId(1), Pace::new()).unwrap();
        assert_eq!(directory.newest(), None);
        for index in [10, 20, 30] {
            directory.make(meta(index), |file| file.write_all(&index.to_be_bytes())).unwrap();
        }
        let failed = directory.make(meta(40), |_| Err(io::Error::other("no room")));
        assert!(failed.unwrap_err().to_string().ends_with("no room"));
        assert_eq!(names(&dir).len(), 2);
        fs::write(dir.join("new-0123"), b"half").unwrap();
        fs::write(dir.join("part-1"), b"old").unwrap();
        fs::write(dir.join("part-2"), b"newer").unwrap();
        let again = Directory::open(&dir, GroupId(1), Pace::new()).unwrap();
        assert_eq!(again.all(), directory.all());
        assert_eq!(again.all().iter().map(|stored| stored.index().0).collect::<Vec<_>>(), [30, 20]);
        assert_eq!(names(&dir).iter().filter(|name| !name.starts_with("snapshot-")).collect::<Vec<_>>(), ["part-2"]);
        let mut data = Vec::new();
        FileReader::open(&again.newest().unwrap().path).unwrap().read_to_end(&mut data).unwrap();
        assert_eq!(data, 30u64.to_be_bytes());
        fs::write(dir.join("snapshot-9"), b"no snapshot").unwrap();
        assert!(Directory::open(&dir, GroupId(1), Pace::new()).unwrap_err().to_string().contains("snapshot-9"));
    }

    #[test]
    fn what_has_arrived_stays_until_it_is_released() {
        let tmp = tempfile::tempdir().unwrap();
        let directory = Directory::open(tmp.path(), GroupId(1), Pace::new()).unwrap();
        let header = FileHeader { group: GroupId(1), id: 7, meta: meta(5) };
        let part = directory.part(&header);
        let size = FileWriter::create(&part, &header, Breather::new(Pace::new())).unwrap().finish().unwrap();
        let id = directory.arrived(&part, header.clone(), size).unwrap();
        for index in [10, 20] {
            directory.make(meta(index), |_| Ok(())).unwrap();
        }
        let path = directory.find(id).unwrap();
        assert!(path.exists() && names(tmp.path()).len() == 3);
        // The same once more: nothing has to be moved.
        let second = directory.arrived(&part, header, size).unwrap();
        assert_eq!((second > id, directory.find(second)), (true, Some(path.clone())));
        directory.release(second);
        assert_eq!((directory.find(id), path.exists(), names(tmp.path()).len()), (None, false, 2));
    }
}
