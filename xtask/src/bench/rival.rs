//! What is measured in turn with this build.

use std::path::{Path, PathBuf};

/// A cluster beside ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rival {
    /// Of another build of this project.
    Build {
        /// What it is called in tables.
        name: String,
        /// The program of its nodes.
        program: PathBuf,
    },
    /// Of this build, with this engine for the log.
    Engine(&'static str),
    /// Of etcd; the load generator starts it.
    Etcd,
}

/// What can keep the log of a node.
const ENGINES: [&str; 2] = ["rocksdb", "journal"];

impl Rival {
    /// Takes it from the command line.
    pub(super) fn parse(text: &str) -> Result<Rival, String> {
        if text == "etcd" {
            return Ok(Rival::Etcd);
        }
        if let Some(engine) = ENGINES.iter().find(|engine| **engine == text) {
            return Ok(Rival::Engine(engine));
        }
        let (name, file) = text.split_once('=').unwrap_or((text, text));
        let program = Path::new(file).canonicalize().map_err(|error| format!("{file}: {error}"))?;
        if name.is_empty() || !program.is_file() {
            return Err("must be the path of a program, or NAME=PATH, or journal, rocksdb, etcd".to_owned());
        }
        Ok(Rival::Build { name: name.to_owned(), program })
    }

    /// What it is called in tables, if the cluster is one of our programs.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Rival::Build { name, .. } => Some(name),
            Rival::Engine(engine) => Some(engine),
            Rival::Etcd => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_a_program_or_etcd() {
        assert_eq!(Rival::parse("etcd"), Ok(Rival::Etcd));
        assert_eq!(Rival::parse("journal"), Ok(Rival::Engine("journal")));
        let program = std::env::current_exe().expect("a program").canonicalize().expect("a path");
        let parsed = Rival::parse(&format!("old={}", program.display()));
        assert_eq!(parsed, Ok(Rival::Build { name: "old".into(), program }));
        for bad in ["/there/is/no/such/program", "=/bin/sh", "/"] {
            assert!(Rival::parse(bad).is_err(), "{bad}");
        }
    }
}
