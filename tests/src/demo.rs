//! `tulle demo` as a user has it: a program that prints, and that is interrupted.
//!
//! In: its command line. Out: its lines, and its end. It ends its own processes, each of which is a process group, when it is
//! interrupted: so it is when it is dropped, after a test that failed as well.

use std::process::{Command as Blocking, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::LIMIT;

/// A demo.
pub struct Demo {
    child: Child,
    /// What it prints.
    pub lines: Lines<BufReader<ChildStdout>>,
}

impl Demo {
    /// Starts it.
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it is built");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        Self { child, lines }
    }

    /// Interrupts it, as who types Control-C, and waits until it has ended.
    pub async fn interrupt(mut self) -> ExitStatus {
        self.signal("-INT");
        while let Ok(Ok(Some(_))) = timeout(LIMIT, self.lines.next_line()).await {}
        timeout(LIMIT, self.child.wait()).await.expect("it ends").expect("it can be waited for")
    }

    fn signal(&self, signal: &str) {
        if let Some(id) = self.child.id() {
            let _ = Blocking::new("kill").args([signal, &id.to_string()]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.signal("-INT");
        let deadline = Instant::now() + LIMIT;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.signal("-KILL");
    }
}
