//! Jaeger as a process of this machine, which keeps traces in memory and shows them.
//!
//! In: the program (version 2). Out: where it takes spans and where it shows traces, on ports of the kernel's choice on
//! loopback; it ends with its handle.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long it may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The newest traces in memory, OTLP in, the query API out.
const CONFIG: &str = "\
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {receivers: [otlp], exporters: [jaeger_storage_exporter]}
  telemetry:
    metrics: {level: none}
    logs: {encoding: json, sampling: {enabled: false}}
extensions:
  jaeger_storage:
    backends: {memory: {memory: {max_traces: 100000}}}
  jaeger_query:
    storage: {traces: memory}
    http: {endpoint: '127.0.0.1:0'}
    grpc: {endpoint: '127.0.0.1:0'}
receivers:
  otlp: {protocols: {grpc: {endpoint: '127.0.0.1:0'}}}
exporters:
  jaeger_storage_exporter: {trace_storage: memory}
";

/// A running Jaeger.
#[derive(Debug)]
pub struct Jaeger {
    /// The URL of its OTLP/gRPC endpoint.
    pub otlp: String,
    /// The URL of its pages and its query API.
    pub query: String,
    _child: Child,
    copy: JoinHandle<()>,
}

/// The program of this name or path.
///
/// # Errors
/// When it is not there; with what to do.
pub fn find(program: &Path) -> Result<PathBuf, String> {
    let found = if program.components().count() > 1 {
        program.is_file().then(|| program.to_owned())
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
    };
    found.ok_or_else(|| {
        format!(
            "there is no program {}: download Jaeger 2 (https://www.jaegertracing.io/download) or build it with \
             tests/apiserver/build --jaeger, and say where it is: --jaeger=target/jaeger/jaeger",
            program.display()
        )
    })
}

impl Jaeger {
    /// Starts `program`, which writes its log to `folder`.
    ///
    /// # Errors
    /// When it does not start; with the last that it said.
    pub async fn start(program: &Path, folder: &Path) -> Result<Self, String> {
        let fail = |reason: &dyn std::fmt::Display| format!("{}: {reason}", program.display());
        let config = folder.join("jaeger.yaml");
        std::fs::write(&config, CONFIG).map_err(|error| fail(&error))?;
        let log = tokio::fs::File::create(folder.join("jaeger.log")).await;
        let mut log = log.map_err(|error| fail(&error))?;
        let mut command = Command::new(program);
        command.args([OsStr::new("--config"), config.as_os_str()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // A group of its own: Ctrl-C is for the owner.
        command.process_group(0);
        let mut child = command.spawn().map_err(|error| fail(&error))?;
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        let told = timeout(START_TIMEOUT, addresses(&mut lines, &mut log)).await;
        let told = told.unwrap_or_else(|_| Err(format!("it is not ready after {START_TIMEOUT:?}")));
        let (otlp, query) = told.map_err(|reason| fail(&reason))?;
        let copy = tokio::spawn(async move { while copy_line(&mut lines, &mut log).await.is_some() {} });
        Ok(Self { otlp, query, _child: child, copy })
    }
}

impl Drop for Jaeger {
    fn drop(&mut self) {
        self.copy.abort();
    }
}

/// Reads its log until it has said where it takes spans and where it answers.
async fn addresses(
    lines: &mut Lines<BufReader<ChildStderr>>,
    log: &mut tokio::fs::File,
) -> Result<(String, String), String> {
    let (mut otlp, mut query, mut last) = (None, None, String::new());
    while let Some(line) = copy_line(lines, log).await {
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        let url = |field: &str| said[field].as_str().map(|address| format!("http://{address}"));
        match said["msg"].as_str() {
            Some("Starting GRPC server") => otlp = otlp.or(url("endpoint")),
            Some("Query server started") => query = query.or(url("http_addr")),
            _ => {}
        }
        if let (Some(otlp), Some(query)) = (&otlp, &query) {
            return Ok((otlp.clone(), query.clone()));
        }
        last = line;
    }
    Err(format!("it ended before it listened: {last}"))
}

async fn copy_line(lines: &mut Lines<BufReader<ChildStderr>>, log: &mut tokio::fs::File) -> Option<String> {
    let line = lines.next_line().await.ok()??;
    log.write_all(format!("{line}\n").as_bytes()).await.ok()?;
    log.flush().await.ok()?;
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_jaeger_is_told_how_to_get_it() {
        for name in ["no-such-program", "/no/such/program"] {
            let error = find(Path::new(name)).expect_err("it is not there");
            assert!(error.contains(name) && error.contains("--jaeger="), "{error}");
        }
        assert!(find(Path::new("sh")).is_ok());
    }

    #[tokio::test]
    async fn what_is_no_jaeger_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = Jaeger::start(Path::new("/bin/false"), folder.path()).await.expect_err("it is none");
        assert!(error.contains("it ended before it listened"), "{error}");
    }
}
