//! Sorted items become files of the database, and all of them a part of it at once.
//!
//! What a snapshot holds is sorted already. Through the write path it would be written three times (buffer, first level, the levels below) and sorted again; as files it is
//! written once, and until it is complete the database does not know of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{DB, IngestExternalFileOptions, Options, SstFileWriter};

/// Where the files are until the database takes them over, below its directory.
const PLACE: &str = "restoring";
/// A file of so many bytes is complete.
pub(super) const FILE_BYTES: u64 = 16 << 20;

/// Why there are no files.
#[derive(Debug)]
pub(super) enum TableError {
    /// The item does not come after the one before it.
    NotAscending,
    Database(rocksdb::Error),
}

impl From<rocksdb::Error> for TableError {
    fn from(error: rocksdb::Error) -> Self {
        TableError::Database(error)
    }
}

/// Files in the making. They are gone when this is dropped, unless the database has taken them over.
pub(super) struct Tables<'a> {
    options: &'a Options,
    place: PathBuf,
    file_bytes: u64,
    writer: Option<SstFileWriter<'a>>,
    paths: Vec<PathBuf>,
    last: Vec<u8>,
}

impl<'a> Tables<'a> {
    pub(super) fn create(options: &'a Options, dir: &Path, file_bytes: u64) -> io::Result<Self> {
        clear_away(dir)?;
        let place = dir.join(PLACE);
        fs::create_dir(&place)?;
        Ok(Tables { options, place, file_bytes, writer: None, paths: Vec::new(), last: Vec::new() })
    }

    /// Keys must ascend.
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), TableError> {
        if !self.last.is_empty() && key <= &self.last[..] {
            return Err(TableError::NotAscending);
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        let writer = match &mut self.writer {
            Some(writer) => writer,
            none => {
                let path = self.place.join(format!("{:06}.sst", self.paths.len()));
                let writer = SstFileWriter::create(self.options);
                writer.open(&path)?;
                self.paths.push(path);
                none.insert(writer)
            }
        };
        writer.put(key, value)?;
        if writer.file_size() >= self.file_bytes { self.finish_file() } else { Ok(()) }
    }

    /// What was put is part of the database, and durable: all of it, or after a crash perhaps nothing.
    pub(super) fn ingest(mut self, db: &DB) -> Result<(), TableError> {
        self.finish_file()?;
        if self.paths.is_empty() {
            return Ok(());
        }
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(true);
        Ok(db.ingest_external_file_opts(&options, std::mem::take(&mut self.paths))?)
    }

    /// RocksDB syncs a file when it is finished.
    fn finish_file(&mut self) -> Result<(), TableError> {
        match self.writer.take() {
            Some(mut writer) => Ok(writer.finish()?),
            None => Ok(()),
        }
    }
}

impl Drop for Tables<'_> {
    fn drop(&mut self) {
        self.writer = None;
        if let Err(error) = fs::remove_dir_all(&self.place) {
            // The next start or restore does it.
            tracing::warn!(place = %self.place.display(), %error, "files of a restore stay");
        }
    }
}

/// Removes what a crash has left of a restore into the database in `dir`.
pub(super) fn clear_away(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(PLACE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use rocksdb::IteratorMode;

    use super::*;

    fn open(dir: &Path) -> (Options, DB) {
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = DB::open(&options, dir).unwrap();
        (options, db)
    }

    fn keys(db: &DB) -> Vec<u32> {
        db.iterator(IteratorMode::Start)
            .map(|item| u32::from_be_bytes((*item.unwrap().0).try_into().unwrap()))
            .collect()
    }

    #[test]
    fn many_files_become_part_of_the_database_at_once_and_last() {
        let dir = tempfile::tempdir().unwrap();
        let (options, db) = open(dir.path());
        let mut tables = Tables::create(&options, dir.path(), 10 << 10).unwrap();
        for n in 0..10_000u32 {
            tables.put(&n.to_be_bytes(), &[n as u8; 100]).unwrap();
        }
        assert!(tables.paths.len() > 5, "{}", tables.paths.len());
        assert!(keys(&db).is_empty());
        tables.ingest(&db).unwrap();
        assert!(!dir.path().join(PLACE).exists());
        let expected: Vec<u32> = (0..10_000).collect();
        assert_eq!(keys(&db), expected);
        drop(db);
        assert_eq!(keys(&open(dir.path()).1), expected);
    }

    #[test]
    fn what_is_given_up_leaves_nothing_and_nothing_at_all_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let (options, db) = open(dir.path());
        // As a crash leaves it.
        fs::create_dir(dir.path().join(PLACE)).unwrap();
        fs::write(dir.path().join(PLACE).join("000000.sst"), b"half of a file").unwrap();
        let mut tables = Tables::create(&options, dir.path(), FILE_BYTES).unwrap();
        tables.put(b"bbbb", b"").unwrap();
        for bad in [&b"bbbb"[..], b"aaaa"] {
            assert!(matches!(tables.put(bad, b""), Err(TableError::NotAscending)));
        }
        drop(tables);
        assert!(!dir.path().join(PLACE).exists());
        Tables::create(&options, dir.path(), FILE_BYTES).unwrap().ingest(&db).unwrap();
        assert!(keys(&db).is_empty());
    }
}
