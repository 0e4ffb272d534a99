//! Processes that end with this one, however it ends: also those of a `static`, which nothing drops.
//!
//! In: a command. Out: a process beside a shell that reads from a pipe of ours. When the pipe is closed, because its
//! owner was dropped or this process is gone, the shell kills the process.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A running process.
#[derive(Debug)]
pub(super) struct Kept {
    shell: Child,
}

/// `$1` is a folder to remove once the process was told to end, or empty; the rest is the process.
const KEEPER: &str = r#"
folder=$1
shift
exec 3<&0
"$@" 3<&- </dev/null &
child=$!
{ cat <&3 >/dev/null; kill -KILL $child; } 2>/dev/null &
reader=$!
exec 3<&-
wait $child
status=$?
kill $reader 2>/dev/null
if [ $status = 137 ] && [ -n "$folder" ]; then rm -rf "$folder"; fi
exit $status
"#;

/// A program whose standard input is to be a pipe: when that is closed it is killed, and `folder` removed. What follows are
/// its arguments.
pub fn kept(program: &Path, folder: &Path) -> tokio::process::Command {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", KEEPER, "sh"]).arg(folder).arg(program);
    shell
}

impl Kept {
    /// Starts a command, whose output goes to a file. A folder, where one is given, is removed after it.
    pub(super) fn start(command: &[String], log: &Path, folder: Option<&Path>) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("the folder can be written");
        let again = log.try_clone().expect("it is open");
        let mut shell = Command::new("sh");
        shell.args(["-c", KEEPER, "sh"]).arg(folder.unwrap_or(Path::new(""))).args(command);
        shell.stdin(Stdio::piped()).stdout(log).stderr(again);
        // A group of its own: what is meant for the test program alone must not end the keeper before its process.
        shell.process_group(0);
        let shell = shell.spawn().expect("every system has a shell");
        Self { shell }
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.shell.try_wait(), Ok(None))
    }
}

impl Drop for Kept {
    /// Returns when the process is gone, so that its port is free.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
