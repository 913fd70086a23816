//! Finds out whose directory it is before anything in it is touched, and opens or creates the database.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use rand::TryRngCore;
use rand::rngs::OsRng;
use rocksdb::{ColumnFamilyDescriptor, DB, DEFAULT_COLUMN_FAMILY_NAME, ErrorKind, IteratorMode, WriteOptions};

use super::framing::{FramingError, check_framing};
use super::{Identity, LOG, META, Options, column, meta, read_error};
use crate::error::StorageError;

/// Opens the database and returns it with its incarnation.
pub(super) fn open(dir: &Path, identity: &Identity, options: &Options) -> Result<(DB, u128), StorageError> {
    if !(1..=255).contains(&identity.cluster.len()) {
        return Err(StorageError::BadClusterName(identity.cluster.len()));
    }
    create_dir(dir).map_err(|error| StorageError::engine("create the log's directory", error))?;
    if dir.join("CURRENT").exists() {
        check_framing(dir).map_err(|error| match error {
            FramingError::Damaged { file, what } => StorageError::Damaged { place: file.display().to_string(), what },
            error => StorageError::engine("look at the files of the log", error),
        })?;
        check_column_families(dir, options)?;
    } else {
        check_leftovers(dir)?;
    }
    let families = [LOG, META].map(|name| ColumnFamilyDescriptor::new(name, options.column_family()));
    let db = DB::open_cf_descriptors(&options.database(), dir, families).map_err(|error| open_error(dir, error))?;
    let stored =
        db.get_cf(column(&db, META)?, meta::identity_key()).map_err(|error| read_error("the identity", error))?;
    let incarnation = match stored {
        Some(value) => identity.verify(&value, dir)?,
        None => claim(&db, dir, identity)?,
    };
    Ok((db, incarnation))
}

/// Creates what is missing of `dir`, and makes that durable: a log is worth nothing when its directory is lost.
pub(crate) fn create_dir(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|d| !d.as_os_str().is_empty() && !d.exists()).collect();
    fs::create_dir_all(dir)?;
    for created in missing {
        let parent = created.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn not_a_log(dir: &Path, found: impl Into<String>) -> StorageError {
    StorageError::NotALog { dir: dir.to_owned(), found: found.into() }
}

/// A directory without a database may only hold what an interrupted creation leaves behind.
fn check_leftovers(dir: &Path) -> Result<(), StorageError> {
    let entries = fs::read_dir(dir).map_err(|error| StorageError::engine("list the log's directory", error))?;
    for entry in entries {
        let entry = entry.map_err(|error| StorageError::engine("list the log's directory", error))?;
        let name = entry.file_name();
        let leftover = name.to_str().is_some_and(|name| {
            matches!(name, "LOCK" | "LOG" | "IDENTITY" | "lost+found")
                || name.starts_with("LOG.old.")
                || name.starts_with("MANIFEST-")
                || Path::new(name).extension().is_some_and(|extension| extension == "dbtmp")
        });
        if !leftover {
            return Err(not_a_log(dir, format!("it has no file CURRENT, but holds `{}`", name.to_string_lossy())));
        }
    }
    Ok(())
}

/// A database must be one of ours before it is opened for writing.
fn check_column_families(dir: &Path, options: &Options) -> Result<(), StorageError> {
    let db_options = options.database();
    let families = DB::list_cf(&db_options, dir).map_err(|error| open_error(dir, error))?;
    if let Some(other) = families.iter().find(|name| ![DEFAULT_COLUMN_FAMILY_NAME, LOG, META].contains(&name.as_str()))
    {
        return Err(not_a_log(dir, format!("it is a RocksDB database with a column family `{other}`")));
    }
    if !families.iter().any(|name| name == META) {
        // A creation that was interrupted, or somebody else's database, which may have data in it.
        let db =
            DB::open_cf_for_read_only(&db_options, dir, &families, false).map_err(|error| open_error(dir, error))?;
        check_empty(&db, dir, &families)?;
    }
    Ok(())
}

fn check_empty<S: AsRef<str>>(db: &DB, dir: &Path, families: &[S]) -> Result<(), StorageError> {
    for name in families.iter().map(AsRef::as_ref) {
        let Some(family) = db.cf_handle(name) else { continue };
        if let Some(item) = db.iterator_cf(family, IteratorMode::Start).next() {
            item.map_err(|error| read_error(name, error))?;
            return Err(not_a_log(dir, format!("it has data (in the column family `{name}`) but no identity")));
        }
    }
    Ok(())
}

/// Writes the identity into an empty database: from then on it belongs to this node.
fn claim(db: &DB, dir: &Path, identity: &Identity) -> Result<u128, StorageError> {
    check_empty(db, dir, &[DEFAULT_COLUMN_FAMILY_NAME, LOG, META])?;
    let mut random = [0; 16];
    OsRng
        .try_fill_bytes(&mut random)
        .map_err(|error| StorageError::engine("draw a random number", error.to_string()))?;
    let incarnation = u128::from_be_bytes(random);
    let mut synced = WriteOptions::default();
    synced.set_sync(true);
    db.put_cf_opt(column(db, META)?, meta::identity_key(), identity.encode(incarnation), &synced)
        .map_err(|error| StorageError::engine("write the identity", error))?;
    Ok(incarnation)
}

fn open_error(dir: &Path, error: rocksdb::Error) -> StorageError {
    // RocksDB has no error kind for this. Both its messages ("While lock file: .../LOCK: ..." and "lock hold by current
    // process ... .../LOCK: ...") name the file.
    if error.kind() == ErrorKind::IOError && error.as_ref().contains("/LOCK: ") && error.as_ref().contains("lock ") {
        return StorageError::InUse { dir: dir.to_owned() };
    }
    match error.kind() {
        ErrorKind::Corruption => StorageError::Damaged { place: dir.display().to_string(), what: error.into_string() },
        _ => StorageError::engine("open the log", error),
    }
}
