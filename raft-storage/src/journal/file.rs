//! The file of one segment.
//!
//! All of its blocks are written before it is used, so that a sync of what is written into it later has nothing to do but write that: the file system need
//! not note down a new length or new blocks. For the same reason a file that is not needed any more becomes a later segment.
//!
//! ```text
//! magic 8 bytes | format u32 | journal u128 | number u64 | where the segment before ends u64 | checksum of its last frame u32
//!   | node u64 | length u8 | name of the cluster | checksum u32 | zeros up to 4096
//! frames (see `frame`)
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raft_core::NodeId;

use crate::rocks::Identity;

/// Where the first frame begins. Files are written in whole pages of this size.
pub(super) const PAGE: usize = 4096;
const MAGIC: [u8; 8] = *b"raftjrnl";
pub(super) const FORMAT: u32 = 1;
const SUFFIX: &str = "journal";
/// A file that is being filled.
const UNFINISHED: &str = "unfinished.tmp";
/// Bytes that are filled, and synced, at a time.
const FILL: usize = 256 << 10;

/// What a segment says of itself on its first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Title {
    pub(super) journal: u128,
    pub(super) number: u64,
    /// Where the last frame of the segment before ends, and its checksum; zero for the very first.
    pub(super) previous_end: u64,
    pub(super) previous: u32,
    pub(super) owner: Identity,
}

/// What was found on a first page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Titled {
    Yes(Title),
    /// Made by a newer version.
    Newer(u32),
    No,
}

impl Title {
    /// A whole page.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut page = MAGIC.to_vec();
        page.extend_from_slice(&FORMAT.to_be_bytes());
        page.extend_from_slice(&self.journal.to_be_bytes());
        page.extend_from_slice(&self.number.to_be_bytes());
        page.extend_from_slice(&self.previous_end.to_be_bytes());
        page.extend_from_slice(&self.previous.to_be_bytes());
        page.extend_from_slice(&self.owner.node.0.to_be_bytes());
        // The store of the small things has refused longer names.
        page.push(self.owner.cluster.len() as u8);
        page.extend_from_slice(self.owner.cluster.as_bytes());
        page.extend_from_slice(&crc32c::crc32c(&page).to_be_bytes());
        page.resize(PAGE, 0);
        page
    }

    pub(super) fn decode(page: &[u8]) -> Titled {
        Title::read(page).unwrap_or(Titled::No)
    }

    fn read(page: &[u8]) -> Option<Titled> {
        let mut rest = page.strip_prefix(&MAGIC)?;
        let format = u32::from_be_bytes(take(&mut rest)?);
        let journal = u128::from_be_bytes(take(&mut rest)?);
        let number = u64::from_be_bytes(take(&mut rest)?);
        let previous_end = u64::from_be_bytes(take(&mut rest)?);
        let previous = u32::from_be_bytes(take(&mut rest)?);
        let node = NodeId(u64::from_be_bytes(take(&mut rest)?));
        let [length] = take(&mut rest)?;
        let cluster = rest.split_off(..usize::from(length))?;
        let covered = page.len() - rest.len();
        if u32::from_be_bytes(take(&mut rest)?) != crc32c::crc32c(&page[..covered]) {
            return None;
        }
        if format != FORMAT {
            return Some(Titled::Newer(format));
        }
        let cluster = String::from_utf8(cluster.to_vec()).ok()?;
        Some(Titled::Yes(Title { journal, number, previous_end, previous, owner: Identity { cluster, node } }))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

/// A file whose blocks have all been written.
#[derive(Debug)]
pub(super) struct SegmentFile {
    pub(super) number: u64,
    file: File,
    path: PathBuf,
    pub(super) capacity: u64,
}

impl SegmentFile {
    /// A new file, full of zeros, for the segment `number`; durable, name included.
    /// `rest` is called with the time that each part took, and says whether to go on.
    pub(super) fn create(
        dir: &Path,
        number: u64,
        capacity: u64,
        rest: impl FnMut(Duration) -> bool,
    ) -> io::Result<SegmentFile> {
        let (unfinished, path) = (dir.join(UNFINISHED), path_of(dir, number));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&unfinished)?;
        let mut created = SegmentFile { number, file, path, capacity: 0 };
        created.extend(capacity, rest)?;
        fs::rename(unfinished, &created.path)?;
        sync_dir(dir)?;
        Ok(created)
    }

    pub(super) fn open(dir: &Path, number: u64) -> io::Result<SegmentFile> {
        let path = path_of(dir, number);
        let file = OpenOptions::new().read(true).write(true).open(&path)?;
        let capacity = file.metadata()?.len();
        Ok(SegmentFile { number, file, path, capacity })
    }

    /// Makes it larger, part by part: a sync of everything at once would keep those of the log waiting.
    pub(super) fn extend(&mut self, capacity: u64, mut rest: impl FnMut(Duration) -> bool) -> io::Result<()> {
        let capacity = capacity.next_multiple_of(PAGE as u64);
        if self.capacity >= capacity {
            return Ok(());
        }
        let zeros = vec![0; FILL];
        while self.capacity < capacity {
            let begin = Instant::now();
            let step = (capacity - self.capacity).min(FILL as u64);
            self.file.write_all_at(&zeros[..step as usize], self.capacity)?;
            self.file.sync_data()?;
            self.capacity += step;
            if !rest(begin.elapsed()) {
                return Err(io::Error::other("nobody needs it any more"));
            }
        }
        self.file.sync_all()?;
        self.leave_cache();
        Ok(())
    }

    /// Nothing of the file need stay in memory. The kernel keeps what was written or read in large pieces as large pieces, and writes all of one out when any byte
    /// of it has changed: for each small frame a hundred times as much. What is not in memory is kept in pieces as large as what is written.
    pub(super) fn leave_cache(&self) {
        // Without this the journal is only slower.
        if let Err(error) = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed) {
            tracing::debug!(path = %self.path.display(), %error, "the kernel keeps a segment in memory");
        }
    }

    /// The same file as another segment; durable. What is in it is none of the new segment's.
    pub(super) fn rename(&self, dir: &Path, number: u64) -> io::Result<SegmentFile> {
        let path = path_of(dir, number);
        fs::rename(&self.path, &path)?;
        sync_dir(dir)?;
        self.leave_cache();
        Ok(SegmentFile { number, file: self.file.try_clone()?, path, capacity: self.capacity })
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.{SUFFIX}"))
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a file that was being filled, and makes the names of all others durable: who gave them may have been killed before.
pub(super) fn settle_names(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(UNFINISHED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// The numbers of the segments in a directory, in ascending order, and what else is there, but for a file that is being filled.
pub(super) fn list(dir: &Path) -> io::Result<(Vec<u64>, Vec<String>)> {
    let (mut numbers, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name == UNFINISHED {
            continue;
        }
        let number = name.strip_suffix(SUFFIX).and_then(|stem| stem.strip_suffix('.')).map(str::parse);
        match number {
            Some(Ok(number)) if path_of(dir, number).file_name().is_some_and(|whole| *whole == *name) => {
                numbers.push(number);
            }
            _ => others.push(name),
        }
    }
    numbers.sort_unstable();
    others.sort_unstable();
    Ok((numbers, others))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn title() -> Title {
        let owner = Identity::new("blue", NodeId(4));
        Title { journal: 5 << 90, number: 3, previous_end: 8192, previous: 77, owner }
    }

    #[test]
    fn titles_come_back_and_damage_is_noticed() {
        let page = title().encode();
        assert_eq!(page.len(), PAGE);
        assert_eq!(Title::decode(&page), Titled::Yes(title()));
        let length = page.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for bit in 0..length * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Title::decode(&bad), Titled::No, "bit {bit}");
        }
        assert_eq!(Title::decode(&page[..20]), Titled::No);
        assert_eq!(Title::decode(&[0; PAGE]), Titled::No);
        let mut newer = page[..length - 4].to_vec();
        newer[11] = 9;
        newer.extend_from_slice(&crc32c::crc32c(&newer).to_be_bytes());
        assert_eq!(Title::decode(&newer), Titled::Newer(9));
    }

    #[test]
    fn files_are_filled_before_they_have_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SegmentFile::create(dir.path(), 1, 10_000, |_| true).unwrap();
        assert_eq!(file.capacity, 12_288);
        assert_eq!(file.read(0, 12_288).unwrap(), [0; 12_288]);
        file.extend(20_000, |_| true).unwrap();
        file.write(b"here", 20_000).unwrap();
        let later = file.rename(dir.path(), 7).unwrap();
        assert_eq!((later.capacity, later.read(20_000, 4).unwrap()), (20_480, b"here".to_vec()));
        fs::write(dir.path().join(UNFINISHED), "x").unwrap();
        fs::write(dir.path().join("7.journal"), "x").unwrap();
        assert_eq!(list(dir.path()).unwrap(), (vec![7], vec!["7.journal".to_owned()]));
        assert!(dir.path().join(UNFINISHED).exists());
        settle_names(dir.path()).unwrap();
        settle_names(dir.path()).unwrap();
        assert!(!dir.path().join(UNFINISHED).exists());
        assert_eq!(SegmentFile::open(dir.path(), 7).unwrap().capacity, 20_480);
        later.remove().unwrap();
        assert!(SegmentFile::open(dir.path(), 7).is_err());
    }
}
