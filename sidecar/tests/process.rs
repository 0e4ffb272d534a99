//! The program as its user meets it: how it starts, what it says, and how it goes away. No control plane is needed for
//! any of this, and none is there.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[test]
fn it_says_where_it_listens_and_what_it_still_lacks() {
    let sidecar = Sidecar::start("");
    let service = &sidecar.listening["ports"][0];
    assert_eq!(service["service"], "cart.shop:80");
    assert_ne!(address(&service["address"]).port(), 0);
    assert_eq!(sidecar.listening["inbound"][0]["app"], "127.0.0.1:9");

    let (status, body) = ask(sidecar.health(), "GET /live", "127.0.0.1");
    assert_eq!((status, body.as_str()), (200, "live\n"));
    // Why there is no certificate is known once the first attempt to get one has failed.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let parts = ["no certificate yet", "no configuration for the inbound ports yet", "127.0.0.1:1"];
    loop {
        let (status, body) = ask(sidecar.health(), "GET /ready", "127.0.0.1");
        assert_eq!(status, 503);
        if parts.iter().all(|part| body.contains(part)) {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{parts:?} in {body:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let (status, body) = ask(sidecar.health(), "GET /metrics", "127.0.0.1");
    assert_eq!(status, 200);
    assert!(body.contains("tulle_connections_refused_total"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
}

#[test]
fn the_admin_interface_answers_operators_and_no_web_page() {
    let sidecar = Sidecar::start("");
    let admin = sidecar.admin();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let dump = loop {
        let (status, body) = ask(admin, "GET /config", "127.0.0.1");
        assert_eq!(status, 200);
        let dump: tulle_sidecar::admin::types::Dump = serde_json::from_str(&body).expect("a dump");
        // Nothing is shown before the workers have it.
        if !dump.clusters.is_empty() {
            break dump;
        }
        assert!(std::time::Instant::now() < deadline, "{body}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(dump.sync["stream"]["open"], false);
    let app = &dump.clusters[0].endpoints[0];
    assert_eq!((app.address.as_str(), app.tls), ("127.0.0.1:9", false));

    let (status, body) = ask(admin, "GET /certs", "127.0.0.1");
    let certificates: tulle_sidecar::admin::types::Certificates =
        serde_json::from_str(&body).expect("certificates");
    assert_eq!((status, certificates.leaf), (200, None));

    let (status, body) = ask(admin, "GET /explain?host=cart.shop&path=x", "127.0.0.1");
    assert_eq!(status, 400);
    assert!(body.contains("path"), "{body}");
    let (_, body) = ask(admin, "GET /explain?host=Cart.shop&header=a%3Ab", "127.0.0.1");
    let explanation: tulle_sidecar::admin::types::Explanation =
        serde_json::from_str(&body).expect("an explanation");
    assert_eq!(explanation.destination, "cart.shop:80");
    assert!(explanation.reason.expect("no listener").contains("has not answered"));

    let (_, body) = ask(admin, "POST /log?level=debug", "127.0.0.1");
    assert_eq!(body, r#"{"level":"debug"}"#);
    let (status, body) = ask(admin, "POST /log?level=loud", "127.0.0.1");
    assert_eq!(status, 400);
    assert!(body.contains("info"), "{body}");

    assert_eq!(ask(admin, "POST /drain", "rebound.example").0, 403);
    assert_eq!(ask(admin, "POST /drain", "127.0.0.1\r\nOrigin: http://evil.example").0, 403);
    assert_eq!(ask(admin, "GET /drain", "127.0.0.1").0, 405);
    assert_eq!(ask(sidecar.health(), "GET /live", "127.0.0.1").0, 200);
}

#[test]
fn it_takes_as_many_file_descriptors_as_it_may_have() {
    let sidecar = Sidecar::start_by(|program| {
        let mut command = Command::new("prlimit");
        command.args(["--nofile=200:3000", "--"]).arg(program.get_program());
        command
    });
    sidecar.logged("descriptors=3000");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", sidecar.child.id())).expect("it runs");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("Linux tells it");
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["3000", "3000"]);
    sidecar.signal("TERM");
}

#[test]
fn a_drain_ends_with_the_last_connection_and_success() {
    let mut sidecar = Sidecar::start("drain: {lameDuck: 1s, gracePeriod: 20s}");
    // Nobody answers for the service, so the sidecar waits for what the client says.
    let mut client = TcpStream::connect(address(&sidecar.listening["proxy"])).expect("it listens");
    client.write_all(b"G").expect("open");
    assert_eq!(ask(sidecar.admin(), "POST /drain", "127.0.0.1").0, 202);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ask(sidecar.health(), "GET /ready", "127.0.0.1").1.starts_with("draining") {
        assert!(Instant::now() < deadline, "readiness goes off with the drain");
    }
    drop(client);
    assert!(sidecar.end().success());
}

#[test]
fn sigterm_drains_and_a_second_one_ends_at_once() {
    let mut sidecar = Sidecar::start("drain: {lameDuck: 0s, gracePeriod: 20s}");
    sidecar.signal("TERM");
    assert!(sidecar.end().success());

    let mut sidecar = Sidecar::start("drain: {lameDuck: 60s, gracePeriod: 60s}");
    sidecar.signal("TERM");
    sidecar.logged("a second signal ends the sidecar at once");
    sidecar.signal("INT");
    assert!(sidecar.end().success());
}

#[test]
fn a_taken_port_ends_it_with_a_message() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    let (status, message) = fail(&["run", "--admin", &address]);
    assert_eq!(status, Some(1));
    for part in ["admin", &address, "in use by another process"] {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
}

#[test]
fn wrong_settings_end_it_with_a_message_and_another_status() {
    for (arguments, expected) in [
        (&["run", "--admin", "0.0.0.0:1"][..], "loopback"),
        (&["check-config", "--drain", "x"], "--drain"),
        (&["check-config", "--lame-duck", "2h"], "drain.lameDuck"),
        (&["check-config", "--config", "/does/not/exist"], "/does/not/exist"),
    ] {
        let (status, message) = fail(arguments);
        assert_eq!(status, Some(2), "{message}");
        assert!(message.contains(expected), "{expected:?} in {message:?}");
    }
    let (status, message) = fail(&["check-config"]);
    assert_eq!((status, message.as_str()), (Some(0), ""));
    let (status, message) = fail(&["run", "--root-file", "/does/not/exist"]);
    assert_eq!(status, Some(1));
    assert!(message.contains("controlPlane.rootFile"), "{message}");
}

/// A running sidecar, which ends with the value.
struct Sidecar {
    child: Child,
    listening: Value,
    log: std::path::PathBuf,
    _out: BufReader<ChildStdout>,
    _folder: tempfile::TempDir,
}

impl Sidecar {
    fn start(settings: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let command = command(folder.path(), settings);
        Self::run(command, folder)
    }

    /// One that another program starts: `by` is told what, and runs it with the arguments that follow.
    fn start_by(by: impl FnOnce(&Command) -> Command) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let command = command(folder.path(), "");
        let mut other = by(&command);
        other.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Self::run(other, folder)
    }

    fn run(mut command: Command, folder: tempfile::TempDir) -> Self {
        let log = folder.path().join("log");
        let mut child = command
            .args(["run"])
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).expect("writable"))
            .spawn()
            .expect("the program starts");
        let mut out = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        out.read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|_| panic!("{line:?} {}", std::fs::read_to_string(&log).unwrap_or_default()));
        Self { child, listening: said["listening"].clone(), log, _out: out, _folder: folder }
    }

    fn admin(&self) -> SocketAddr {
        address(&self.listening["admin"])
    }

    fn health(&self) -> SocketAddr {
        address(&self.listening["health"])
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.expect("kill runs").success());
    }

    /// Waits until its log holds `text`.
    fn logged(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !std::fs::read_to_string(&self.log).expect("readable").contains(text) {
            assert!(Instant::now() < deadline, "it does not log {text:?}");
            std::thread::yield_now();
        }
    }

    /// Waits for its end.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it still runs");
            std::thread::yield_now();
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with settings that are enough to start, all ports free ones.
fn command(folder: &Path, more: &str) -> Command {
    let root = folder.join("root.pem");
    let authority = rcgen::generate_simple_self_signed(["control.test".into()]).expect("a certificate");
    std::fs::write(&root, authority.cert.pem()).expect("writable");
    let file = folder.join("sidecar.yaml");
    let settings = format!(
        "workload: {{namespace: shop, serviceAccount: web, name: web-1}}
controlPlane: {{address: \"127.0.0.1:1\", rootFile: {root:?}}}
outbound:
  proxy: 127.0.0.1:0
  demandTimeout: 100ms
  ports: [{{listen: \"127.0.0.1:0\", service: \"cart.shop:80\"}}]
inbound: [{{listen: \"127.0.0.1:0\", app: \"127.0.0.1:9\"}}]
admin: 127.0.0.1:0
health: 127.0.0.1:0
{more}
"
    );
    std::fs::write(&file, settings).expect("writable");
    let mut command = Command::new(env!("CARGO_BIN_EXE_tulle-sidecar"));
    command.env("TULLE_CONFIG", file);
    command
}

/// The exit status and what it wrote to standard error.
fn fail(arguments: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let output = command(folder.path(), "").args(arguments).output().expect("the program starts");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A request and its answer: status and body.
fn ask(address: SocketAddr, request: &str, host: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
    write!(stream, "{request} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        .expect("open");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.into())
}

fn address(value: &Value) -> SocketAddr {
    value.as_str().and_then(|text| text.parse().ok()).expect("an address")
}
