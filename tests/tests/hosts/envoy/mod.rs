//! Stock Envoy behind our redirection, in a sidecar's place, under our control plane and in one mesh with our sidecars.

mod client;
mod server;

use std::fmt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Child;
use tulle_tests::hosts::{Host, SIDECAR_UID, Server, redirect};
use tulle_tests::{LIMIT, NAMESPACE, TRUST_DOMAIN, TestMesh, binary, output_of, python, wait_for};

use crate::captured::greeter;
use crate::echo;

/// A port that stands in no manifest.
const UNDECLARED: u16 = 2525;

/// Envoy in the place of a host's sidecar.
struct Envoy {
    host: Host,
    log: PathBuf,
    _child: Child,
}

/// What a test asks of an Envoy beyond a host.
struct Wish<'a> {
    /// The service account that the control plane knows it by.
    account: &'a str,
    /// The one that it proves itself with to peers.
    proof: &'a str,
    /// More for `tulle bootstrap`.
    options: &'a [&'a str],
}

impl<'a> Wish<'a> {
    fn of(account: &'a str) -> Self {
        Self { account, proof: account, options: &[] }
    }
}

impl Envoy {
    /// Redirects a host's connections, and starts it there as a user would.
    async fn start(mesh: &TestMesh, host: &Host, wish: Wish<'_>) -> Self {
        redirect(host).await;
        let folder = mesh.folder.path().join(format!("envoy-{}", host.name));
        std::fs::create_dir(&folder).expect("nobody else has this name");
        own(&folder);
        let certs = certificates(mesh, host, &folder, wish.account).await;
        let control_plane = format!("{}:15012", mesh.hosts().control.v4);
        let mut command = host.command(SIDECAR_UID, binary("tulle"));
        command
            .args(["bootstrap", "envoy", "--capture", "--trust-domain", TRUST_DOMAIN, "--certs"])
            .arg(&certs);
        command
            .args(["--control-plane", &control_plane, "--address", &host.v4.to_string()])
            .args(wish.options);
        let output = output_of(command).await;
        assert!(output.status.success(), "{output:?}");
        let mut bootstrap: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        if wish.proof != wish.account {
            let other = certificates(mesh, host, &folder, wish.proof).await;
            bootstrap["node"]["metadata"]["TULLE_CERTS"] = json!(other);
        }
        let path = folder.join("envoy.json");
        std::fs::write(&path, bootstrap.to_string()).expect("the folder is ours");
        let log = folder.join("envoy.log");
        let program = Path::new(python("http_server.py").as_std().get_program()).with_file_name("envoy");
        let mut command = host.command(SIDECAR_UID, program);
        command.arg("-c").arg(&path).args(["--concurrency", "1", "--disable-hot-restart", "-l", "info"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        command.stderr(std::fs::File::create(&log).expect("the folder is ours"));
        let child = command.spawn().unwrap_or_else(|error| panic!("envoy: {error}; run tests/setup"));
        let envoy = Self { host: host.clone(), log, _child: child };
        envoy.lists("virtualOutbound").await;
        envoy.lists("virtualInbound").await;
        envoy
    }

    /// Waits until it has a listener.
    async fn lists(&self, listener: &str) {
        let lists = || async {
            let all = self.admin("listeners").await?;
            let own = format!("{listener}::");
            if all.lines().any(|line| line.starts_with(&own)) { Ok(()) } else { Err(all) }
        };
        wait_for(LIMIT, lists).await.unwrap_or_else(|error| panic!("no {listener}: {error}\n{self:?}"));
    }

    /// The sum of its counters whose names end so.
    async fn count(&self, suffix: &str) -> u64 {
        let text = self.admin("stats").await.unwrap_or_else(|error| panic!("{error}"));
        let values = text.lines().filter_map(|line| line.split_once(": "));
        let named = values.filter(|(name, _)| name.ends_with(suffix));
        named.filter_map(|(_, value)| value.parse::<u64>().ok()).sum()
    }

    /// Everything that the control plane has sent was taken.
    async fn has_refused_nothing(&self) {
        assert_eq!(self.count("update_rejected").await, 0, "{self:?}");
    }

    async fn admin(&self, page: &str) -> Result<String, String> {
        let mut command = self.host.curl();
        command.args(["--fail", &format!("http://127.0.0.1:15000/{page}")]);
        let output = output_of(command).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }
}

impl fmt::Debug for Envoy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&std::fs::read_to_string(&self.log).unwrap_or_default())
    }
}

/// The certificates of a service account in a folder on a host.
async fn certificates(mesh: &TestMesh, host: &Host, folder: &Path, account: &str) -> PathBuf {
    let token = mesh.mesh.token(NAMESPACE, account).unwrap_or_else(|error| panic!("{error}"));
    let copy = |from: &Path, to: String| {
        let to = folder.join(to);
        std::fs::copy(from, &to).expect("both folders are there");
        own(&to);
        to
    };
    let certs = folder.join(format!("certs-{account}"));
    let mut command = host.command(SIDECAR_UID, binary("tulle"));
    command.arg("certs").arg(&certs).args(["--namespace", NAMESPACE, "--service-account", account]);
    command.args(["--trust-domain", TRUST_DOMAIN]);
    command.args(["--control-plane", &format!("{}:15012", mesh.hosts().control.v4)]);
    command.arg("--root-file").arg(copy(&mesh.mesh.state.join("root.pem"), format!("root-{account}.pem")));
    command.arg("--token-file").arg(copy(&token, format!("token-{account}")));
    let output = output_of(command).await;
    assert!(output.status.success(), "{output:?}");
    certs
}

fn own(path: &Path) {
    if path.is_dir() {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).expect("it is ours");
    }
    chown(path, Some(SIDECAR_UID), Some(SIDECAR_UID)).expect("root may");
}

/// A host with an application on port 8080, as one of `echo.shop`, behind an Envoy; and a server that speaks first on a port that
/// nobody declares.
async fn served(mesh: &TestMesh, name: &str, proof: &str) -> (Envoy, [Server; 2]) {
    let host = mesh.host(name);
    let apps = [echo(&host, 8080).await, greeter(&host, UNDECLARED).await];
    mesh.workload_at(&host, "echo", &host.addresses(), &[("http", 8080)]);
    let envoy = Envoy::start(mesh, &host, Wish { proof, ..Wish::of(name) }).await;
    (envoy, apps)
}

/// The status with which a URL answers an application, 0 for none, and what it gets.
async fn status(host: &Host, url: &str, options: &[&str]) -> (u16, String) {
    let mut command = host.curl();
    command.args(["--write-out", "\n%{http_code}"]).args(options).arg(url);
    let text = String::from_utf8_lossy(&output_of(command).await.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("curl writes it");
    (status.parse().expect("a number"), body.to_owned())
}

/// Waits until a URL answers an application with a status.
async fn until(host: &Host, url: &str, wanted: u16) -> String {
    let answered = || async {
        match status(host, url, &["--include"]).await {
            (now, text) if now == wanted => Ok(text),
            (now, text) => Err(format!("{now} in place of {wanted}: {text}")),
        }
    };
    wait_for(LIMIT, answered).await.unwrap_or_else(|error| panic!("{host:?} {url}: {error}"))
}
