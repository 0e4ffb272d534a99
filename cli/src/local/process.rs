//! A child process that tells where it listens and ends with its owner.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a process may take until it has said where it listens.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages, and its log file's name.
    pub name: String,
    /// The first line of its standard output: where it listens.
    pub started: Value,
    log: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
    copy: JoinHandle<()>,
}

impl Process {
    /// Starts `command` and waits for its first line, a JSON object. Its output goes to `<name>.out` and `<name>.log`
    /// in `logs`.
    ///
    /// # Errors
    /// When it can't be started, ends at once, or says nothing; with the end of its log.
    pub async fn start(name: &str, mut command: Command, logs: &Path) -> Result<Self, StartError> {
        let log = logs.join(format!("{name}.log"));
        let fail = |reason: String| StartError { name: name.into(), reason, log: tail(&log) };
        let stderr = File::create(&log).map_err(|error| fail(format!("{}: {error}", log.display())))?;
        let out = tokio::fs::File::create(logs.join(format!("{name}.out"))).await;
        let mut out = out.map_err(|error| fail(error.to_string()))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).kill_on_drop(true);
        // A group of its own: Ctrl-C is for the owner, who still reads the children's last numbers.
        command.process_group(0);
        let program = command.as_std().get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().map_err(|error| fail(format!("{program}: {error}")))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("standard output is piped");
        let mut lines = BufReader::new(stdout).lines();

        let first = match timeout(START_TIMEOUT, lines.next_line()).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None)) => {
                let status = child.wait().await.map_or_else(|error| error.to_string(), |s| s.to_string());
                return Err(fail(format!("it ended before it listened ({status})")));
            }
            Ok(Err(error)) => return Err(fail(error.to_string())),
            Err(_) => return Err(fail(format!("it has said nothing for {START_TIMEOUT:?}"))),
        };
        let started = serde_json::from_str(&first)
            .map_err(|error| fail(format!("its first line is not JSON ({error}): {first}")))?;
        let copy = tokio::spawn(async move { copy_lines(&mut lines, &mut out).await });
        Ok(Self { name: name.into(), started, log, child, stdin, copy })
    }

    /// The operating system's number for it; `None` once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Writes a line to its standard input.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn tell(&mut self, line: &str) -> io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(format!("{line}\n").as_bytes()).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal, by its name without `SIG`.
    pub fn signal(&self, signal: &str) {
        if let Some(id) = self.child.id() {
            // Without `unsafe` the standard library can only kill; the system's own tool does the rest.
            let _ = std::process::Command::new("kill").arg(format!("-{signal}")).arg(id.to_string()).status();
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, format!("{} has not ended", self.name));
        timeout(limit, self.child.wait()).await.map_err(|_| late())?
    }

    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.copy.abort();
    }
}

async fn copy_lines(lines: &mut Lines<BufReader<ChildStdout>>, out: &mut tokio::fs::File) {
    while let Ok(Some(line)) = lines.next_line().await {
        if out.write_all(format!("{line}\n").as_bytes()).await.is_err() {
            return;
        }
        let _ = out.flush().await;
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// Why a process did not start.
#[derive(Debug)]
pub struct StartError {
    name: String,
    reason: String,
    log: String,
}

impl StartError {
    /// For what went wrong around the start of `name`.
    pub(crate) fn new(name: &str, reason: impl fmt::Display) -> Self {
        Self { name: name.into(), reason: reason.to_string(), log: String::new() }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} did not start: {}", self.name, self.reason)?;
        if !self.log.is_empty() {
            write!(f, "\nIts log ends with:\n{}", self.log)?;
        }
        Ok(())
    }
}

impl std::error::Error for StartError {}
