//! Where things are, and how to call cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The root of the workspace. `cargo xtask` may be called from any folder below it.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}

/// The target directory that cargo uses for this workspace.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        // Cargo takes a relative value from the current directory, and that is the root for every cargo that we start.
        Some(dir) if !dir.is_empty() => root().join(dir),
        _ => root().join("target"),
    }
}

/// `cargo` in the root of the workspace, without what `cargo run` adds to the environment of this program: a build script that
/// looks at such a variable would run again whenever cargo is called through xtask and again when it is called directly.
pub(crate) fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") || name == "CARGO_BIN_NAME" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs a command whose output goes straight to the user; a non-zero exit is an error that shows the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a command and returns what it prints on standard output; an error carries what it printed on standard error.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("cannot start `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
pub(crate) fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut text = match program.file_name() {
        Some(name) if name == "cargo" => "cargo".to_owned(),
        _ => shorten(program),
    };
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&quote(&shorten(Path::new(argument))));
    }
    text
}

/// A path as short as it can be typed from the current directory.
pub(crate) fn shorten(path: &Path) -> String {
    let short = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_path_buf));
    match short {
        Some(short) if !short.as_os_str().is_empty() => short.display().to_string(),
        _ => path.display().to_string(),
    }
}

/// Quotes an argument for a POSIX shell when it needs it.
pub(crate) fn quote(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// Is there a program of this name on the `PATH`?
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("raft-core").join("Cargo.toml").is_file());
    }

    #[test]
    fn arguments_are_quoted_when_a_shell_would_split_or_expand_them() {
        assert_eq!(quote("--out=target/x-1.json"), "--out=target/x-1.json");
        assert_eq!(quote("two words"), "'two words'");
        assert_eq!(quote("it's"), r"'it'\''s'");
        assert_eq!(quote(""), "''");
    }

    #[test]
    fn a_failing_command_is_an_error_that_names_it() {
        let error = run(Command::new("false").arg("x y")).expect_err("`false` fails");
        assert!(error.to_string().starts_with("`false 'x y'` failed"), "{error}");
    }
}
