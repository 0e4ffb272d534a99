//! The program itself: how it starts, what it answers, how it ends.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tulle_control_plane::Ready;
use tulle_control_plane::api::types::{ObjectList, ProxyList};
use tulle_control_plane::xds::Kind;

use super::support::{DeltaStream, PATIENCE, connect, token};

/// A control plane that runs as a process of its own.
pub struct Program {
    folder: TempDir,
    child: Child,
    ready: Ready,
}

impl Program {
    pub async fn start(manifests: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("manifests")).unwrap();
        for (name, text) in manifests {
            fs::write(folder.path().join("manifests").join(name), text).unwrap();
        }
        let mut child = program()
            .args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .env("TULLE_MANIFESTS", folder.path().join("manifests"))
            .env("TULLE_STATE", folder.path().join("state"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = timeout(PATIENCE, lines.next_line()).await.expect("it gets ready").unwrap();
        let ready = serde_json::from_str(&line.expect("a line")).expect("the line that says ready");
        Self { folder, child, ready }
    }

    /// Puts a manifest in place whole, as an editor does.
    pub fn write(&self, name: &str, text: &str) {
        let manifests = self.folder.path().join("manifests");
        fs::write(manifests.join(".half"), text).unwrap();
        fs::rename(manifests.join(".half"), manifests.join(name)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.folder.path().join("manifests").join(name)).unwrap();
    }

    /// Waits until the list of objects shows something.
    pub async fn until<T>(&self, shows: impl Fn(&ObjectList) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(shown) = shows(&self.objects().await) {
                    return shown;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("the list of objects shows it")
    }

    fn state(&self) -> std::path::PathBuf {
        self.folder.path().join("state")
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.ready.http, path).await
    }

    pub async fn objects(&self) -> ObjectList {
        serde_json::from_str(&self.get("/api/v1/objects").await.1).unwrap()
    }

    async fn proxies(&self) -> ProxyList {
        serde_json::from_str(&self.get("/api/v1/proxies").await.1).unwrap()
    }

    pub async fn delta(&self, namespace: &str, account: &str) -> DeltaStream {
        let root = fs::read_to_string(self.state().join("root.pem")).unwrap();
        let channel = connect(self.ready.xds, &root, None).await.unwrap();
        let token = token(&self.state(), namespace, account);
        DeltaStream::open(channel, Some(&token)).await.unwrap()
    }

    /// Ends it as a supervisor does; it must say that all was well.
    pub async fn end(mut self) {
        let pid = self.child.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().await.unwrap().success());
        let status = timeout(PATIENCE, self.child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(0));
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tulle-control-plane"));
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

async fn output(args: &[&str]) -> Output {
    timeout(PATIENCE, program().args(args).output()).await.expect("it ends").unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("it answers").unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.into())
}

#[tokio::test]
async fn it_serves_what_it_says_that_it_serves() {
    let program = Program::start(&[]).await;
    assert_eq!(program.get("/ready").await, (200, "ready\n".into()));
    assert_eq!(program.get("/nothing").await.0, 404);
    assert_eq!(program.proxies().await, ProxyList::default());
    assert_eq!(program.objects().await, ObjectList::default());
    let mut stream = program.delta("shop", "web").await;
    stream.subscribe(Kind::Secret, &["ROOTCA", "default"]).await;
    let (response, names, removed) = stream.next_names().await;
    assert_eq!((names, removed), (vec!["ROOTCA".into()], vec!["default".into()]), "never a key");
    stream.ack(&response).await;
    let proxies = async || program.proxies().await.proxies;
    let waiting = async {
        while !proxies().await.iter().any(|proxy| proxy.synced) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the acknowledgement is shown");
    let proxy = proxies().await.remove(0);
    assert_eq!(proxy.identity, "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(proxy.types["SDS"].subscribed, 2);
    assert!(proxy.token_expires.is_some() && proxy.certificate_expires.is_none());
    let (status, text) = program.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(text.contains("tulle_control_plane_xds_streams{protocol=\"delta\"} 1"), "{text}");
    program.end().await;
}

#[tokio::test]
async fn a_rotation_reaches_a_running_control_plane_and_its_proxies() {
    let program = Program::start(&[]).await;
    let state = program.state();
    let state = state.to_str().unwrap();
    let mut stream = program.delta("shop", "web").await;
    stream.subscribe(Kind::Secret, &["ROOTCA"]).await;
    let roots = |response: &envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryResponse| {
        let text = &response.resources[0].resource.as_ref().unwrap().value;
        String::from_utf8_lossy(text).matches("BEGIN CERTIFICATE").count()
    };
    assert_eq!(roots(&stream.next().await), 1);
    let early = output(&["rotate-root", "switch", "--state", state]).await;
    assert_eq!(early.status.code(), Some(1));
    assert!(stderr(&early).contains("run `prepare` first"), "{}", stderr(&early));
    assert!(output(&["rotate-root", "prepare", "--state", state]).await.status.success());
    assert_eq!(roots(&stream.next().await), 2);
    assert!(output(&["rotate-root", "switch", "--state", state]).await.status.success());
    assert!(output(&["rotate-root", "retire", "--state", state]).await.status.success());
    assert_eq!(roots(&stream.next().await), 1);
    program.end().await;
}

#[tokio::test]
async fn what_keeps_it_from_starting_is_said_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (manifests, state) = (path("manifests"), path("state"));
    fs::create_dir(&manifests).unwrap();
    fs::write(path("file"), "").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let free = "127.0.0.1:0";
    let in_file = path("file/state");
    let nowhere = path("nowhere");
    for (listen, http, manifests, state, words) in [
        (
            &*address,
            free,
            &manifests,
            &state,
            vec!["xDS and the CA", &*address, "another process", "--listen"],
        ),
        (free, &*address, &manifests, &state, vec!["the HTTP API", &*address, "another process", "--http"]),
        (free, free, &manifests, &in_file, vec!["can't write", &*in_file, "--state"]),
        (free, free, &nowhere, &state, vec!["can't read", &*nowhere, "--manifests"]),
    ] {
        let args = ["--listen", listen, "--http", http, "--manifests", manifests, "--state", state];
        let output = output(&args).await;
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(output.stdout.is_empty(), "it never says ready");
        for word in words {
            assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output));
        }
    }
    for args in [vec![], vec!["--manifests", "x"], vec!["--nonsense"]] {
        let output = output(&args).await;
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("Usage:"), "{}", stderr(&output));
    }
    assert!(!Path::new(&path("file/state")).exists());
}
