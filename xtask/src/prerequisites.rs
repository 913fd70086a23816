//! What a machine needs besides Rust, and how it gets it.
//!
//! RocksDB is C++20 (a compiler and its library), its bindings are made with libclang, and build scripts ask pkg-config. On Debian
//! and its relatives `apt-get` installs what is missing when this user may; otherwise one line to type is printed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::report::Task;
use crate::{rocksdb, workspace};

/// Something that a build or a test needs.
struct Prerequisite {
    name: &'static str,
    /// The Debian package that brings it.
    package: &'static str,
    /// Without it only some tests are skipped.
    optional: bool,
    present: fn() -> bool,
}

const PREREQUISITES: &[Prerequisite] = &[
    Prerequisite { name: "a C++20 compiler", package: "build-essential", optional: false, present: has_compiler },
    Prerequisite { name: "libclang and its headers", package: "libclang-dev", optional: false, present: has_libclang },
    Prerequisite { name: "pkg-config", package: "pkg-config", optional: false, present: has_pkg_config },
    Prerequisite { name: "strace", package: "strace", optional: true, present: has_strace },
];

/// Checks what is needed and installs what is missing.
///
/// # Errors
///
/// When something is missing that cannot be installed from here; the message holds the line to type.
pub(crate) fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|prerequisite| prerequisite.package).collect();
    let (optional, required): (Vec<&Prerequisite>, Vec<&Prerequisite>) =
        missing.into_iter().partition(|prerequisite| prerequisite.optional);
    for prerequisite in required.iter().chain(&optional) {
        let weight = if prerequisite.optional { "missing, for some tests only" } else { "missing" };
        eprintln!("{weight}: {}", prerequisite.name);
    }
    if workspace::on_path("apt-get") {
        if let Some(rights) = Rights::of_this_user() {
            match (rights.install(&packages), required.is_empty()) {
                (Err(error), true) => eprintln!("warning: {error:#}; the tests that need it are skipped"),
                (outcome, _) => outcome?,
            }
        } else if required.is_empty() {
            eprintln!("note: for all tests: {}", debian_line(&packages));
        } else {
            bail!("this user may not install packages. Type this and try again:\n\n  {}\n", debian_line(&packages));
        }
    } else if !required.is_empty() {
        let names: Vec<&str> = required.iter().map(|prerequisite| prerequisite.name).collect();
        bail!("please install {} and try again. {}", names.join(", "), other_systems());
    }
    let still: Vec<&str> =
        PREREQUISITES.iter().filter(|one| !one.optional && !(one.present)()).map(|one| one.name).collect();
    if !still.is_empty() {
        bail!("still missing after the installation: {}", still.join(", "));
    }
    Ok(())
}

/// Looks for etcd, which some benchmarks measure beside ours, and installs it when it is missing.
///
/// # Errors
///
/// When it is missing and cannot be installed from here; the message holds the line to type.
pub(crate) fn ensure_etcd() -> Result<()> {
    if ensure_programs(&["etcd"], "etcd-server", "")? {
        eprintln!(
            "note: the package may have started an etcd of its own; it is not used: `systemctl disable --now etcd` ends it"
        );
    }
    Ok(())
}

/// Looks for perf, which makes flame graphs, and installs it when it is missing.
///
/// # Errors
///
/// When it is missing and cannot be installed from here; the message holds the line to type.
pub(crate) fn ensure_perf() -> Result<()> {
    let others = ". Ubuntu's package is `linux-tools-generic`, Fedora's and Arch's `perf`; there is none but for Linux";
    ensure_programs(&["perf"], "linux-perf", others).map(drop)
}

/// Looks for `ip` and `tc`, with which a benchmark makes a network of its own, and installs them when they are missing.
///
/// # Errors
///
/// When they are missing and cannot be installed from here; the message holds the line to type.
pub(crate) fn ensure_iproute() -> Result<()> {
    ensure_programs(&["ip", "tc"], "iproute2", ". There is none but for Linux").map(drop)
}

/// Installs Debian's `package` when one of its `programs` is missing; says whether it did. `others` is about other systems.
fn ensure_programs(programs: &[&str], package: &str, others: &str) -> Result<bool> {
    if programs.iter().all(|program| workspace::on_path(program)) {
        return Ok(false);
    }
    let names = programs.join("` and `");
    if !workspace::on_path("apt-get") {
        bail!("please install what brings `{names}`, so that it is on the PATH, and try again{others}");
    }
    let Some(rights) = Rights::of_this_user() else {
        bail!("`{names}` is missing{others}. Type this and try again:\n\n  {}\n", debian_line(&[package]));
    };
    rights.install(&[package]).with_context(|| format!("`{names}` is missing{others}"))?;
    Ok(true)
}

fn missing() -> Vec<&'static Prerequisite> {
    PREREQUISITES.iter().filter(|prerequisite| !(prerequisite.present)()).collect()
}

fn debian_line(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    format!("sudo sh -c 'apt-get update && apt-get install -y --no-install-recommends {packages}'")
}

fn other_systems() -> &'static str {
    "Fedora: `sudo dnf install gcc-c++ clang-devel pkgconf`; Arch: `sudo pacman -S --needed base-devel clang`; \
     Alpine: `apk add g++ clang-dev pkgconf linux-headers`; macOS: `xcode-select --install && brew install llvm pkgconf` \
     (and LIBCLANG_PATH=$(brew --prefix llvm)/lib)."
}

/// How this user may install packages.
enum Rights {
    Root,
    Sudo,
}

impl Rights {
    fn of_this_user() -> Option<Rights> {
        if is_root() {
            return Some(Rights::Root);
        }
        let quiet = |command: &mut Command| {
            command
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        quiet(Command::new("sudo").args(["-n", "true"])).then_some(Rights::Sudo)
    }

    fn install(&self, packages: &[&str]) -> Result<()> {
        let task = Task::spinner(format!("installing {} with apt-get (a minute or two)", packages.join(" ")));
        self.apt_get(&["update"])?;
        self.apt_get(&[&["install", "-y", "--no-install-recommends"], packages].concat())?;
        task.finish("installed");
        Ok(())
    }

    fn apt_get(&self, arguments: &[&str]) -> Result<()> {
        let mut command = match self {
            Rights::Root => Command::new("env"),
            Rights::Sudo => {
                let mut command = Command::new("sudo");
                command.args(["-n", "env"]);
                command
            }
        };
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(arguments).stdin(Stdio::null());
        workspace::read(&mut command).map(drop).context("apt-get could not install what is missing")
    }
}

#[cfg(unix)]
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}

/// Tries the compiler on a program that needs C++20 and its library; skipped when nothing is left to compile but the
/// linker still needs the compiler's library, so its presence is asked for in any case.
fn has_compiler() -> bool {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if rocksdb::is_built() && workspace::read(Command::new(&compiler).arg("--version")).is_ok() {
        return true;
    }
    let child = Command::new(&compiler)
        .args(["-std=c++20", "-fsyntax-only", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let written =
        child.stdin.take().map(|mut input| input.write_all(b"#include <concepts>\nint main() { return 0; }\n"));
    let succeeded = child.wait().is_ok_and(|status| status.success());
    succeeded && matches!(written, Some(Ok(())))
}

fn has_pkg_config() -> bool {
    std::env::var_os("PKG_CONFIG").is_some() || workspace::on_path("pkg-config") || workspace::on_path("pkgconf")
}

fn has_strace() -> bool {
    !cfg!(target_os = "linux") || workspace::on_path("strace")
}

/// Looks where bindgen looks: `LIBCLANG_PATH`, what `llvm-config` says, the usual folders, the linker's cache.
fn has_libclang() -> bool {
    if let Some(path) = std::env::var_os("LIBCLANG_PATH").map(PathBuf::from) {
        return path.is_file() || holds_libclang(&path);
    }
    let mut folders: Vec<PathBuf> = Vec::new();
    if let Ok(prefix) = workspace::read(Command::new("llvm-config").arg("--libdir")) {
        folders.push(PathBuf::from(prefix.trim()));
    }
    for base in ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/llvm/lib", "/opt/homebrew/opt/llvm/lib"] {
        folders.push(PathBuf::from(base));
        folders.extend(subfolders(Path::new(base)));
    }
    // /usr/lib/llvm-14/lib
    folders.extend(subfolders(Path::new("/usr/lib")).into_iter().map(|folder| folder.join("lib")));
    if cfg!(target_os = "macos") {
        folders.push("/Library/Developer/CommandLineTools/usr/lib".into());
        folders.push("/Applications/Xcode.app/Contents/Developer/Toolchains/XcodeDefault.xctoolchain/usr/lib".into());
    }
    folders.iter().any(|folder| holds_libclang(folder))
}

fn subfolders(base: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The library, and in Debian's layout also the compiler's own headers (`stddef.h`), which come in another package.
fn holds_libclang(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let library = entries.map(|entry| entry.file_name()).any(|name| {
        let name = name.to_string_lossy();
        let shared = name.contains(".so") || name.ends_with(".dylib") || name.ends_with(".dll");
        shared && (name.starts_with("libclang.") || name.starts_with("libclang-") && !name.starts_with("libclang-cpp"))
    });
    let versions = folder.join("clang");
    let debian =
        folder.parent().and_then(Path::file_name).is_some_and(|name| name.to_string_lossy().starts_with("llvm-"));
    let headers = subfolders(&versions).iter().any(|version| version.join("include").join("stddef.h").is_file());
    library && (headers || !debian)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_line_to_type_updates_first_and_names_each_package() {
        let line = debian_line(&["build-essential", "libclang-dev"]);
        assert!(line.contains("apt-get update && apt-get install -y"), "{line}");
        assert!(line.ends_with("build-essential libclang-dev'"), "{line}");
    }

    #[test]
    fn libclang_without_its_headers_does_not_count_in_the_debian_layout() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lib = dir.path().join("llvm-14").join("lib");
        fs::create_dir_all(&lib).expect("created");
        assert!(!holds_libclang(&lib));
        fs::write(lib.join("libclang-cpp.so.14"), "").expect("written");
        assert!(!holds_libclang(&lib), "the C++ interface is another library");
        fs::write(lib.join("libclang-14.so.1"), "").expect("written");
        assert!(!holds_libclang(&lib));
        let headers = lib.join("clang").join("14.0.6").join("include");
        fs::create_dir_all(&headers).expect("created");
        fs::write(headers.join("stddef.h"), "").expect("written");
        assert!(holds_libclang(&lib));
    }
}
