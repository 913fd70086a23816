//! RocksDB, compiled once per machine, version and flags instead of once per profile and clone.
//!
//! A release build of RocksDB takes a quarter of an hour on two cores, and cargo would repeat it for every profile and every
//! clone. So one static library is kept in a cache outside of `target/`, and `.cargo/rocksdb.toml` (included by
//! `.cargo/config.toml`, never committed) tells the build script of `librocksdb-sys` where it is. Every cargo call in this clone
//! then uses it, through xtask or not. Without that file a plain `cargo build` compiles RocksDB itself; nothing else changes.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::report::Task;
use crate::workspace;

/// The crate whose build script compiles RocksDB.
const CRATE: &str = "librocksdb-sys";
/// The result that is worth keeping.
const LIBRARY: &str = "librocksdb.a";
/// Object files of a whole build, for the progress bar only: about right for any recent version.
const TYPICAL_OBJECTS: u64 = 344;
/// Part of the key: raise it when the way the library is built changes.
const RECIPE: &str = "1";

/// Makes sure that cargo in this clone finds a compiled RocksDB, compiling it when this machine has none yet.
///
/// A cache that cannot be written is no error: the builds then compile RocksDB themselves, and a warning says so.
pub(crate) fn setup() -> Result<()> {
    let Some(entry) = Entry::for_this_machine()? else {
        eprintln!(
            "warning: neither XDG_CACHE_HOME nor HOME is set: no place to keep a compiled RocksDB, each profile compiles its own"
        );
        return disable();
    };
    if !entry.library().is_file() {
        if let Err(error) = fs::create_dir_all(&entry.dir).and_then(|()| File::create(entry.dir.join("lock"))) {
            eprintln!(
                "warning: cannot write {}: {error}; going on without a cache, each profile compiles RocksDB",
                entry.dir.display()
            );
            return disable();
        }
        entry.build()?;
    }
    let setting = config(&entry.dir)?;
    if write_if_changed(&config_path(), &setting)? {
        eprintln!("RocksDB: this clone uses {}", entry.library().display());
    }
    Ok(())
}

/// Makes cargo in this clone compile RocksDB itself again.
pub(crate) fn disable() -> Result<()> {
    let path = config_path();
    match fs::remove_file(&path) {
        Ok(()) => eprintln!("removed {}: cargo compiles RocksDB in target/ from now on", workspace::shorten(&path)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
    Ok(())
}

/// Is the library there for this machine? (Then no C++ compiler has to be tried out.)
pub(crate) fn is_built() -> bool {
    matches!(Entry::for_this_machine(), Ok(Some(entry)) if entry.library().is_file())
}

fn config_path() -> PathBuf {
    workspace::root().join(".cargo").join("rocksdb.toml")
}

/// One compiled library in the cache.
struct Entry {
    dir: PathBuf,
    version: String,
}

impl Entry {
    /// The entry that fits this workspace and this machine; `None` when there is no cache directory at all.
    fn for_this_machine() -> Result<Option<Entry>> {
        let Some(cache) = cache_dir() else { return Ok(None) };
        let root = workspace::root();
        let read = |name: &str| {
            let path = root.join(name);
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
        };
        let version = locked_version(&read("Cargo.lock")?)?;
        let host = host_triple()?;
        let ingredients = [
            RECIPE.to_owned(),
            rustflags(&read(".cargo/config.toml")?),
            dependency_line(&read("Cargo.toml")?),
            compiler_version(),
            std::env::var("CXXFLAGS").unwrap_or_default(),
        ];
        let hash = short_hash(&ingredients);
        Ok(Some(Entry { dir: cache.join("rocksdb").join(format!("{version}-{host}-{hash}")), version }))
    }

    fn library(&self) -> PathBuf {
        self.dir.join(LIBRARY)
    }

    /// Compiles the library, unless another setup on this machine does it right now: then waits for that one.
    fn build(&self) -> Result<()> {
        let lock = self.lock()?;
        if self.library().is_file() {
            return Ok(());
        }
        let target = self.dir.join("build");
        self.compile(&target)?;
        let built = newest_library(&target).with_context(|| format!("no {LIBRARY} below {}", target.display()))?;
        // Renaming makes it appear whole or not at all: an entry that exists is complete.
        let temporary = self.dir.join(format!("{LIBRARY}.tmp"));
        fs::copy(&built, &temporary).with_context(|| format!("cannot copy to {}", temporary.display()))?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, self.library())?;
        if let Err(error) = fs::remove_dir_all(&target) {
            eprintln!("warning: cannot remove {}: {error}", target.display());
        }
        drop(lock);
        Ok(())
    }

    /// The lock belongs to the open file: whatever ends its owner releases it, so it can never be stale.
    fn lock(&self) -> Result<File> {
        let path = self.dir.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let task = Task::spinner("RocksDB: waiting for another setup on this machine that compiles it");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
                task.finish("it is done");
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(file)
    }

    fn compile(&self, target: &Path) -> Result<()> {
        let mut task = Task::bar(
            format!(
                "RocksDB {}: compiling, once on this machine (15 minutes on 2 cores, 26 CPU minutes)",
                self.version
            ),
            TYPICAL_OBJECTS,
        );
        let log_path = self.dir.join("build.log");
        let log = File::create(&log_path).with_context(|| format!("cannot create {}", log_path.display()))?;
        let mut command = workspace::cargo();
        command
            .args(["build", "--release", "-p", CRATE, "--target-dir"])
            .arg(target)
            // An earlier rocksdb.toml must not make this build take its own result from the cache.
            .env("ROCKSDB_COMPILE", "1")
            // Debug information would make the library ten times larger and every link slower.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            // These would replace the flags of .cargo/config.toml, which are part of the key.
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().context("cannot start cargo")?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            task.progress(count_objects(target), TYPICAL_OBJECTS);
            std::thread::sleep(Duration::from_millis(500));
        };
        if !status.success() {
            drop(task);
            let log = fs::read_to_string(&log_path).unwrap_or_default();
            bail!(
                "RocksDB did not compile ({status}); the whole output is in {}\n{}",
                log_path.display(),
                tail(&log, 30)
            );
        }
        task.finish("compiled");
        Ok(())
    }
}

/// `$XDG_CACHE_HOME/raft-xtask`, or `~/.cache/raft-xtask`.
fn cache_dir() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("raft-xtask"))
}

/// The version of `librocksdb-sys` in a `Cargo.lock`.
fn locked_version(lock: &str) -> Result<String> {
    let mut lines = lock.lines();
    lines
        .by_ref()
        .find(|line| *line == format!("name = \"{CRATE}\""))
        .and_then(|_| lines.next())
        .and_then(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
        .map(str::to_owned)
        .with_context(|| format!("Cargo.lock does not name a version of {CRATE}"))
}

/// The code-generation flags of `.cargo/config.toml`: the build script passes CPU features on to the C++ compiler.
fn rustflags(config: &str) -> String {
    let mut flags = String::new();
    let mut inside = false;
    for line in config.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
        inside |= line.starts_with("rustflags");
        if inside {
            flags.push_str(line);
        }
        inside &= !line.ends_with(']');
    }
    flags
}

/// The workspace's line about `rocksdb`: its features decide what is compiled in.
fn dependency_line(manifest: &str) -> String {
    manifest.lines().find(|line| line.starts_with("rocksdb ")).unwrap_or_default().trim().to_owned()
}

fn host_triple() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = workspace::read(Command::new(rustc).arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` does not name the host")
}

/// The C++ compiler that the build script would use, and its version; empty when there is none.
fn compiler_version() -> String {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let version = workspace::read(Command::new(&compiler).arg("--version")).unwrap_or_default();
    version.lines().next().unwrap_or_default().to_owned()
}

/// FNV-1a over the ingredients: names a folder, defends against nothing.
fn short_hash(ingredients: &[String]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in ingredients.iter().flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{:012x}", hash >> 16)
}

/// The output folders of the build script below a release target directory.
fn out_dirs(target: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(target.join("release").join("build")).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(CRATE))
        .map(|entry| entry.path().join("out"))
        .filter(|path| path.is_dir())
}

fn count_objects(target: &Path) -> u64 {
    let files = out_dirs(target).filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
    files.filter(|file| file.path().extension().is_some_and(|extension| extension == "o")).count() as u64
}

fn newest_library(target: &Path) -> Option<PathBuf> {
    let changed =
        |path: &PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    out_dirs(target).map(|dir| dir.join(LIBRARY)).filter(|path| path.is_file()).max_by_key(changed)
}

/// What `.cargo/rocksdb.toml` says.
fn config(dir: &Path) -> Result<String> {
    let dir = dir.to_str().with_context(|| format!("the cache path is not UTF-8: {}", dir.display()))?;
    // A JSON string is a TOML basic string.
    let dir = serde_json::to_string(dir)?;
    Ok(format!(
        "# Written by `cargo xtask setup`; `cargo xtask setup --no-cache` removes it.\n[env]\nROCKSDB_LIB_DIR = {dir}\nROCKSDB_STATIC = \"1\"\n"
    ))
}

/// Leaves a file alone that already says so: a new modification time could make others rebuild.
fn write_if_changed(path: &Path, content: &str) -> Result<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == content) {
        return Ok(false);
    }
    let temporary = path.with_extension(format!("toml.{}.tmp", std::process::id()));
    fs::write(&temporary, content).with_context(|| format!("cannot write {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(true)
}

/// The last `count` lines.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
