//! Programs of others: curl, Python with its libraries, nginx, h2load.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::{Ground, LIMIT};

/// A server that runs until it is dropped.
pub struct Program {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Program {
    /// Kills it and waits until it is gone.
    pub async fn kill(&mut self) {
        let _ = self.child.kill().await;
    }

    /// Starts a Python server of `tests/python`, which prints its port as its first line.
    pub async fn python(script: &str, args: &[&str]) -> Self {
        let mut command = python(script);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("python: {error}; run tests/setup"));
        let stdout = child.stdout.take().expect("it is piped");
        let line = timeout(LIMIT, BufReader::new(stdout).lines().next_line()).await;
        let line = line.expect("the server starts in time").expect("it can be read");
        let port: u16 = line.as_deref().and_then(|line| line.trim().parse().ok()).expect("its port");
        Self { address: SocketAddr::from(([127, 0, 0, 1], port)), child }
    }

    /// Starts nginx in the foreground with the HTTP servers of `servers`, in which `@@PORT@@` stands for a free port and
    /// `@@DIR@@` for a folder, and waits until it listens.
    pub async fn nginx(folder: &Path, servers: &str) -> Self {
        let port = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("it is bound").port()
        };
        let path = folder.join("nginx.conf");
        let dir = folder.to_str().expect("a UTF-8 path");
        let config =
            format!("{NGINX}{servers}}}\n").replace("@@PORT@@", &port.to_string()).replace("@@DIR@@", dir);
        std::fs::write(&path, config).expect("the folder can be written");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&path).args(["-e", "stderr", "-g", NGINX_ALONE]);
        command.stdin(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("nginx: {error}; run tests/setup"));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let listens =
            || async { tokio::net::TcpStream::connect(address).await.map_err(|error| error.to_string()) };
        crate::wait_for(LIMIT, listens).await.unwrap_or_else(|error| panic!("nginx: {error}"));
        Self { address, child }
    }

    /// Starts dnsmasq, which knows nothing but what these arguments say, and waits until it answers.
    pub async fn dnsmasq(ground: &Ground, zone: &[&str]) -> Self {
        // Between its choice and its use another process may take a port.
        for _ in 0..5 {
            if let Some(program) = Self::try_dnsmasq(ground, zone).await {
                return program;
            }
        }
        panic!("dnsmasq ends at once: try it with {zone:?}");
    }

    async fn try_dnsmasq(ground: &Ground, zone: &[&str]) -> Option<Self> {
        let address = ground.free_port();
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let mut command = ground.command(None, "dnsmasq");
        command.args([
            "--no-daemon",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
        ]);
        command.args([&format!("--listen-address={ip}"), &format!("--port={port}")]).args(zone);
        command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("dnsmasq: {error}; run tests/setup"));
        let deadline = tokio::time::Instant::now() + LIMIT;
        loop {
            let mut ask = ground.command(None, "dig");
            ask.args([
                &format!("@{ip}"),
                "-p",
                &port,
                "+tcp",
                "+tries=1",
                "+time=5",
                "version.bind",
                "TXT",
                "CH",
            ]);
            if output_of(ask).await.status.success() {
                return Some(Self { address, child });
            }
            if child.try_wait().expect("it can be asked for").is_some() {
                return None;
            }
            assert!(tokio::time::Instant::now() < deadline, "dnsmasq does not answer at {address}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

/// Without a master process there are no workers that outlive it when it is killed.
pub(crate) const NGINX_ALONE: &str = "daemon off; master_process off;";

/// How nginx runs in a folder of its own; its servers and the closing brace follow.
pub(crate) const NGINX: &str = "\
worker_processes 1;
pid @@DIR@@/nginx.pid;
events {}
http {
  access_log off;
  client_body_temp_path @@DIR@@;
  proxy_temp_path @@DIR@@;
  fastcgi_temp_path @@DIR@@;
  uwsgi_temp_path @@DIR@@;
  scgi_temp_path @@DIR@@;
";

/// A Python script of `tests/python`, in the environment that `tests/setup` makes.
pub fn python(script: &str) -> Command {
    let mut command = Command::new(python_program());
    command.arg("-u").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(script));
    command
}

/// Python, with what `tests/setup` installs.
pub(crate) fn python_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/python/bin/python")
}

/// curl, quiet, with a bound on its time, that no environment sends through another proxy.
pub fn curl() -> Command {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20"]);
    for name in ["http_proxy", "https_proxy", "no_proxy", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy"]
    {
        command.env_remove(name);
    }
    command
}

/// Runs a program to its end.
pub async fn output_of(mut command: Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true);
    let name = PathBuf::from(command.as_std().get_program());
    let output = timeout(LIMIT * 3, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("{} does not end", name.display()));
    output.unwrap_or_else(|error| panic!("{}: {error}; run tests/setup", name.display()))
}
