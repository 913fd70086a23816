//! On what the figures were measured: without that they mean nothing.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// A machine and the software on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Model of the processor.
    pub(crate) cpu: String,
    /// Processors that this program may use.
    pub(crate) cores: usize,
    /// Whether a hypervisor lies between us and the processor.
    pub(crate) is_virtual: bool,
    /// Memory in bytes.
    pub(crate) memory: u64,
    /// Operating system and its version.
    pub(crate) kernel: String,
    /// File system under the nodes' data, with its device.
    pub(crate) filesystem: String,
}

impl Machine {
    /// Looks around. What cannot be found out is called unknown.
    pub(crate) fn find_out(data_dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let (cpuinfo, meminfo) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let release = read("/proc/sys/kernel/osrelease");
        let real = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
        let unknown = || "unknown".to_owned();
        Machine {
            cpu: field(&cpuinfo, "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            is_virtual: field(&cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            memory: field(&meminfo, "MemTotal").and_then(|kib| kib.strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
                * 1024,
            kernel: format!("{} {}", std::env::consts::OS, release.trim()).trim_end().to_owned(),
            filesystem: filesystem(&read("/proc/self/mountinfo"), &real).unwrap_or_else(unknown),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Machine { cpu, cores, memory, kernel, filesystem, .. } = self;
        let kind = if self.is_virtual { "virtual " } else { "" };
        let gib = *memory as f64 / (1u64 << 30) as f64;
        write!(f, "{cores} {kind}cores of {cpu}, {gib:.1} GiB, {kernel}, {filesystem}")
    }
}

/// The value of `key : value`.
fn field(text: &str, key: &str) -> Option<String> {
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// Type and device of what is mounted at the longest prefix of `path`. The fields of mountinfo are described in proc(5).
fn filesystem(mountinfo: &str, path: &Path) -> Option<String> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        path.starts_with(point).then_some((point.len(), right.next()?, right.next()?))
    });
    // Of several at the same place the last one covers the others.
    let (_, kind, device) = mounts.max_by_key(|(length, _, _)| *length)?;
    Some(format!("{kind} on {device}"))
}

/// The commit of the source tree that this program runs in, `-dirty` when it was changed since.
pub(crate) fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    if is_clean { commit } else { format!("{commit}-dirty") }
}

/// Sorts like time, and can be part of a file's name.
pub(crate) fn timestamp(at: time::OffsetDateTime) -> String {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    format!("{year:04}{:02}{day:02}T{hour:02}{minute:02}{second:02}Z", u8::from(month))
}

/// Bytes that a file takes on its disk; blocks that were only reserved count, and holes do not.
#[cfg(unix)]
pub(crate) fn allocated(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata) * 512
}

/// The length is all that is known here.
#[cfg(not(unix))]
pub(crate) fn allocated(metadata: &std::fs::Metadata) -> u64 {
    metadata.len()
}

/// Bytes free on the file system of `path`, for an ordinary user.
#[cfg(unix)]
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Not known here.
#[cfg(not(unix))]
pub(crate) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mountinfo = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                         30 22 0:25 / /tmp rw,nosuid shared:2 - tmpfs tmpfs rw\n\
                         31 22 8:2 / /data rw - xfs /dev/sdb1 rw\n";
        let of = |path: &str| filesystem(mountinfo, Path::new(path)).unwrap();
        assert_eq!(of("/home/x"), "ext4 on /dev/sda1");
        assert_eq!(of("/data/y"), "xfs on /dev/sdb1");
        assert_eq!(of("/tmpfoo"), "ext4 on /dev/sda1");
        assert_eq!(filesystem("", Path::new("/")), None);
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let cpuinfo = "model\t\t: 1\nmodel name\t: A CPU @ 3: GHz\nflags\t: fpu hypervisor\n";
        assert_eq!(field(cpuinfo, "model name").as_deref(), Some("A CPU @ 3: GHz"));
        assert_eq!(field(cpuinfo, "name"), None);
    }

    #[test]
    fn this_machine_has_cores() {
        let machine = Machine::find_out(Path::new("."));
        assert!(machine.cores > 0 && !machine.kernel.is_empty(), "{machine}");
    }

    #[test]
    fn timestamps_sort_like_time() {
        let at = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        assert_eq!(timestamp(at), "20231114T221320Z");
    }
}
