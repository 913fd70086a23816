//! Processes that end with this one.

use std::path::Path;
use std::process::{Command, Stdio};

/// Makes commands that the kernel kills when this program dies, however it does (`setpriv --pdeathsig`, where there is one), and that Ctrl-C in a terminal
/// does not reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leash {
    kernel: bool,
}

impl Leash {
    /// Looks for what the machine has.
    pub(crate) fn find() -> Self {
        let tried = Command::new("setpriv").args(["--pdeathsig", "KILL", "true"]).stderr(Stdio::null()).status();
        Leash { kernel: tried.is_ok_and(|status| status.success()) }
    }

    /// A command that runs `program`.
    pub(crate) fn command(self, program: &Path) -> Command {
        let mut command = Command::new(program);
        if self.kernel {
            command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL"]).arg(program);
        }
        own_group(&mut command);
        command
    }
}

#[cfg(unix)]
fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

#[cfg(not(unix))]
fn own_group(_: &mut Command) {}
