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
    /// Of etcd; the load generator starts it.
    Etcd,
}

impl Rival {
    /// Takes it from the command line.
    pub(super) fn parse(text: &str) -> Result<Rival, String> {
        if text == "etcd" {
            return Ok(Rival::Etcd);
        }
        let (name, file) = text.split_once('=').unwrap_or((text, text));
        let program = Path::new(file).canonicalize().map_err(|error| format!("{file}: {error}"))?;
        if name.is_empty() || !program.is_file() {
            return Err("must be the path of a program, or NAME=PATH, or etcd".to_owned());
        }
        Ok(Rival::Build { name: name.to_owned(), program })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_a_program_or_etcd() {
        assert_eq!(Rival::parse("etcd"), Ok(Rival::Etcd));
        let program = std::env::current_exe().expect("a program").canonicalize().expect("a path");
        let parsed = Rival::parse(&format!("old={}", program.display()));
        assert_eq!(parsed, Ok(Rival::Build { name: "old".into(), program }));
        for bad in ["/there/is/no/such/program", "=/bin/sh", "/"] {
            assert!(Rival::parse(bad).is_err(), "{bad}");
        }
    }
}
