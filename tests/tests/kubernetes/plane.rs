//! A control plane on an API server.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;
use tulle_cli::local::{Process, Samples, fetch, wait_for};
use tulle_tests::apiserver::ApiServer;
use tulle_tests::{LIMIT, TRUST_DOMAIN, binaries};

/// The namespace that it keeps its own objects in.
pub(crate) const SYSTEM: &str = "tulle-system";

/// A control plane. Ends when dropped.
pub(crate) struct Plane {
    pub(crate) process: Process,
    /// Its log.
    _folder: TempDir,
}

impl Plane {
    /// One on this machine's loopback, which may do everything.
    pub(crate) async fn start(api: &ApiServer) -> Self {
        Self::start_as(&api.kubeconfig, &[]).await
    }

    /// One that may do what the user of a kubeconfig may, with more flags.
    pub(crate) async fn start_as(kubeconfig: &Path, flags: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("tulle-test-").tempdir().expect("a folder");
        let mut command = Command::new(&binaries().control_plane);
        command.args(["--kubernetes", "--trust-domain", TRUST_DOMAIN, "--kubeconfig"]).arg(kubeconfig);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--webhook", "127.0.0.1:0"]);
        command.args(flags);
        let process = Process::start("control-plane", command, folder.path()).await;
        Self { process: process.unwrap_or_else(|error| panic!("{error}")), _folder: folder }
    }

    /// Where it serves xDS and the CA.
    pub(crate) fn xds(&self) -> SocketAddr {
        self.address("xds")
    }

    /// Where it serves its HTTP API.
    pub(crate) fn http(&self) -> SocketAddr {
        self.address("http")
    }

    fn address(&self, field: &str) -> SocketAddr {
        let text = self.process.started[field].as_str().expect("it says where it listens");
        text.parse().expect("an address")
    }
}

/// What the control plane whose HTTP API is at an address knows of objects.
pub(crate) async fn objects(http: SocketAddr) -> Value {
    let (status, text) = fetch(&format!("http://{http}/api/v1/objects")).await.expect("it answers");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// Waits until it knows an object.
pub(crate) async fn knows(http: SocketAddr, kind: &str, name: &str) {
    until(async || {
        let objects = objects(http).await;
        let listed = objects["objects"].as_array().into_iter().flatten();
        let known = listed.into_iter().any(|object| object["kind"] == kind && object["name"] == name);
        if known { Ok(()) } else { Err(format!("{kind} {name} is not known: {objects}")) }
    })
    .await;
}

/// Its metrics.
pub(crate) async fn metrics(http: SocketAddr) -> Samples {
    Samples::parse(&fetch(&format!("http://{http}/metrics")).await.expect("it answers").1)
}

/// What it says of its readiness.
pub(crate) async fn readiness(http: SocketAddr) -> (u16, String) {
    fetch(&format!("http://{http}/ready")).await.expect("it answers")
}

/// Asks again and again until it holds.
pub(crate) async fn until<T>(mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = tokio::time::Instant::now() + 2 * LIMIT;
    loop {
        match check().await {
            Ok(value) => return value,
            Err(reason) => assert!(tokio::time::Instant::now() < deadline, "{reason}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// The trust bundle of a namespace, as its pods get it.
pub(crate) async fn trust_bundle(api: &ApiServer, namespace: &str) -> String {
    let arguments =
        ["-n", namespace, "get", "configmap", "tulle-trust-bundle", "-o", "jsonpath={.data.root\\.pem}"];
    let read = || api.try_kubectl(&arguments);
    wait_for(2 * LIMIT, read).await.unwrap_or_else(|error| panic!("{error}"))
}
