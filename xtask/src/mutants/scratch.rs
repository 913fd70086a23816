//! A copy of the tree in which things may be broken.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::patch::Patch;
use crate::workspace;

/// Files that git ignores and a build needs.
const IGNORED: &[&str] = &[".cargo/rocksdb.toml"];

/// The copy, and where it is built: kept from one mutant to the next, so that little has to be compiled anew.
pub(super) struct Scratch {
    tree: PathBuf,
    build: PathBuf,
    /// Held as long as this lives: two runs in one copy would break each other's mutants.
    _lock: File,
}

impl Scratch {
    pub(super) fn open() -> Result<Scratch> {
        let home = workspace::target_dir().join("mutants");
        let tree = home.join("tree");
        fs::create_dir_all(&tree).with_context(|| format!("cannot make {}", tree.display()))?;
        let lock = File::create(home.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Scratch { tree, build: home.join("build"), _lock: lock }),
            Err(TryLockError::WouldBlock) => bail!("another `cargo xtask mutants` is running in {}", home.display()),
            Err(TryLockError::Error(error)) => Err(error).context("cannot lock the scratch copy"),
        }
    }

    pub(super) fn tree(&self) -> &Path {
        &self.tree
    }

    /// `cargo` in the copy, with its own target directory.
    pub(super) fn cargo(&self) -> Command {
        let mut cargo = workspace::cargo();
        cargo.current_dir(&self.tree).env("CARGO_TARGET_DIR", &self.build);
        cargo
    }

    /// Makes the copy equal to the working tree, committed or not. A file that is equal already is not touched: cargo would compile
    /// it again.
    pub(super) fn refresh(&self) -> Result<()> {
        let root = workspace::root();
        let mut git = Command::new("git");
        git.current_dir(&root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
        let listed = workspace::read(&mut git).context("the copy is made of the files that git knows")?;
        let names = listed.split('\0').filter(|name| !name.is_empty()).chain(IGNORED.iter().copied());
        let names: BTreeSet<PathBuf> = names.map(PathBuf::from).filter(|name| root.join(name).is_file()).collect();
        for name in &names {
            let content = fs::read(root.join(name)).with_context(|| format!("cannot read {}", name.display()))?;
            let copy = self.tree.join(name);
            if fs::read(&copy).is_ok_and(|present| present == content) {
                continue;
            }
            if let Some(folder) = copy.parent() {
                fs::create_dir_all(folder)?;
            }
            fs::write(&copy, content).with_context(|| format!("cannot write {}", copy.display()))?;
        }
        self.remove_others(&self.tree, &names)
    }

    /// Removes what is not in the working tree: files of old, and what failing tests leave behind.
    fn remove_others(&self, folder: &Path, names: &BTreeSet<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let Ok(name) = path.strip_prefix(&self.tree) else { continue };
            if path.is_dir() {
                self.remove_others(&path, names)?;
            } else if !names.contains(name) {
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Puts a bug into the copy.
    pub(super) fn apply(&self, patch: &Patch) -> Result<()> {
        let mut git = Command::new("git");
        git.current_dir(&self.tree).args(["apply", "--whitespace=nowarn"]).arg(&patch.path);
        // The copy usually lies within a repository that ignores it: git would then skip files outside its index.
        if let Some(above) = self.tree.parent() {
            git.env("GIT_CEILING_DIRECTORIES", above);
        }
        workspace::read(&mut git)
            .map(drop)
            .with_context(|| format!("the mutant {} does not apply any more", patch.name))
    }
}
