//! The harness of the end-to-end tests: a mesh of real processes, the applications beside its sidecars, and clients.
//!
//! Everything listens on loopback, on ports of the kernel's choice, or on hosts in network namespaces ([`hosts`]); every wait
//! is bounded; every process ends with the test, also when it fails.

#![forbid(unsafe_code)]

pub mod apiserver;
mod app;
pub mod cert_manager;
mod certs;
mod demo;
mod h2app;
mod hostile;
pub mod hosts;
pub mod oracle;
mod origin;
mod ports;
mod program;
mod raw;
mod raw_h2;
mod servers;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tulle_cli::local::{Binaries, LocalMesh, Sidecar, SidecarSpec};

pub use app::{App, Seen, script};
pub use certs::certs;
pub use demo::Demo;
pub use h2app::{Call, H2App, H2Client};
pub use hostile::HostileControlPlane;
pub use origin::Origin;
pub use ports::free_port;
use program::python_program;
pub use program::{Program, curl, output_of, python};
pub use raw::{Answer, exchange, read_head, read_to_end};
pub use raw_h2::{End, Frame, RawH2};
pub use servers::{Ground, Server};
pub use tulle_cli::local::{fetch, wait_for};

/// The longest that anything in a test may take. Only a test that fails waits for so long.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The namespace of everything.
pub const NAMESPACE: &str = "shop";

/// The trust domain of everything.
pub const TRUST_DOMAIN: &str = "test.example";

/// A control plane on a folder of manifests of its own.
pub struct TestMesh {
    /// The mesh.
    pub mesh: LocalMesh,
    /// Everything that it keeps.
    pub folder: TempDir,
    /// Its hosts, where it has any: else everything is on this machine's loopback.
    hosts: Option<hosts::Hosts>,
}

/// A workload: an application and its sidecar.
#[derive(Clone, Debug, Default)]
pub struct Workload {
    name: String,
    service: Option<String>,
    protocol: Option<String>,
    app: Option<SocketAddr>,
    ports: Vec<String>,
    otlp: Option<String>,
    config: Map<String, Value>,
}

impl Workload {
    /// One with a service account and, if it has an application, a service of its own name, on port 80.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Its application.
    #[must_use]
    pub fn app(mut self, address: SocketAddr) -> Self {
        self.app = Some(address);
        self
    }

    /// Its service, where that has another name; several workloads may share one.
    #[must_use]
    pub fn service(mut self, name: &str) -> Self {
        self.service = Some(name.into());
        self
    }

    /// What its service's port says of its protocol (`appProtocol`).
    #[must_use]
    pub fn protocol(mut self, protocol: &str) -> Self {
        self.protocol = Some(protocol.into());
        self
    }

    /// A local port for a service (`cart.shop:80`).
    #[must_use]
    pub fn port(mut self, service: &str) -> Self {
        self.ports.push(service.into());
        self
    }

    /// A trace collector.
    #[must_use]
    pub fn otlp(mut self, url: &str) -> Self {
        self.otlp = Some(url.into());
        self
    }

    /// A top-level field of its sidecar's configuration file.
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config.insert(field.into(), value);
        self
    }
}

impl TestMesh {
    /// A mesh without workloads.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// A mesh without workloads, with more flags for its control plane.
    pub async fn start_with(flags: &[&str]) -> Self {
        if hosts::on_hosts() {
            return Self::on_hosts_with(TRUST_DOMAIN, flags).await;
        }
        let folder = test_folder();
        let mesh = LocalMesh::start_with(binaries(), folder.path(), TRUST_DOMAIN, flags).await;
        let mesh = mesh.unwrap_or_else(|error| panic!("{error}"));
        Self { mesh, folder, hosts: None }
    }

    /// Puts a manifest in place, whole or not at all.
    pub fn manifest(&self, name: &str, text: &str) {
        write_whole(&self.mesh.manifests.join(name), text);
    }

    /// Takes a manifest away.
    pub fn remove_manifest(&self, name: &str) {
        std::fs::remove_file(self.mesh.manifests.join(name)).expect("the manifest is there");
    }

    /// Starts a workload's sidecar, puts its Workload and Service in place, and waits until it is ready.
    pub async fn workload(&self, workload: Workload) -> Sidecar {
        let sidecar = self.start_sidecar(&workload).await;
        if let (Some(app), Some(&mesh_port)) = (workload.app, sidecar.inbound.first()) {
            let objects = match self.hosts {
                None => objects(&workload, mesh_port.ip(), &port(app, Some(mesh_port))),
                Some(_) => objects(&workload, self.endpoint(&sidecar).ip(), &port(app, None)),
            };
            self.manifest(&format!("{}.yaml", workload.name), &objects);
            // Until then its name is one of the world outside, to whoever asks.
            self.knows("Workload", &workload.name).await;
        }
        sidecar.ready(LIMIT).await.unwrap_or_else(|error| panic!("{error}\n{}", sidecar.process.log()));
        sidecar
    }

    /// Starts a workload's sidecar and nothing else.
    pub async fn start_sidecar(&self, workload: &Workload) -> Sidecar {
        if self.hosts.is_some() {
            return self.place(workload).await;
        }
        let spec = SidecarSpec {
            namespace: NAMESPACE.into(),
            service_account: workload.name.clone(),
            name: workload.name.clone(),
            apps: workload.app.into_iter().collect(),
            ports: workload.ports.clone(),
            otlp: workload.otlp.clone(),
            config: workload.config.clone(),
        };
        self.mesh.sidecar(&spec).await.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the control plane again after it has ended, at the address where its sidecars look for it.
    pub async fn restart_control_plane(&mut self) {
        if self.hosts.is_some() {
            return self.restart_on_host().await;
        }
        let listen = self.mesh.xds().to_string();
        let flags = ["--listen", listen.as_str()];
        let again = LocalMesh::start_with(binaries(), self.folder.path(), TRUST_DOMAIN, &flags).await;
        self.mesh = again.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Where the mesh knows that a workload's application is served; on hosts that is not where a test reaches it.
    pub fn endpoint(&self, sidecar: &Sidecar) -> SocketAddr {
        match &self.hosts {
            None => sidecar.inbound[0],
            Some(hosts) => hosts.endpoint(sidecar.inbound[0]),
        }
    }

    /// A program as a workload's application would run it: beside its sidecar.
    pub async fn beside(&self, workload: &str, command: Command) -> Command {
        match &self.hosts {
            None => command,
            Some(_) => self.host_of(workload).await.place(0, &command),
        }
    }

    /// Puts a Service in place for an application that has no sidecar, on its own port, and waits until it is known.
    pub async fn outside(&self, name: &str, app: SocketAddr, protocol: Option<&str>) {
        let mut port = json!({ "name": "main", "port": app.port() });
        if let Some(protocol) = protocol {
            port["appProtocol"] = json!(protocol);
        }
        let meta = json!({ "name": name, "namespace": NAMESPACE });
        let objects = match &self.hosts {
            // By its address alone it would be the workload that has the same.
            None => vec![json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": meta,
                "spec": { "type": "ExternalName", "externalName": "localhost", "ports": [port] },
            })],
            Some(_) => {
                let ip = self.outside_on_host(app).await.to_string();
                vec![
                    json!({ "apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": { "ports": [port] } }),
                    json!({
                        "apiVersion": "discovery.k8s.io/v1",
                        "kind": "EndpointSlice",
                        "metadata": {
                            "name": name,
                            "namespace": NAMESPACE,
                            "labels": { "kubernetes.io/service-name": name },
                        },
                        "addressType": "IPv4",
                        "endpoints": [{ "addresses": [ip] }],
                        "ports": [{ "name": "main", "port": app.port() }],
                    }),
                ]
            }
        };
        self.manifest(&format!("{name}.yaml"), &documents(&objects));
        self.knows("Service", name).await;
    }

    /// Has an application of this machine answer at the same address where a workload runs.
    pub async fn stand_in(&self, workload: &str, app: SocketAddr) {
        if self.hosts.is_some() {
            self.stand_in_on_host(workload, app).await;
        }
    }

    /// Where a workload's application runs.
    pub async fn ground(&self, workload: &str) -> Ground {
        match &self.hosts {
            None => Ground::default(),
            Some(_) => {
                let name = self.host_of(workload).await.namespace().to_owned();
                Ground {
                    before: ["ip", "netns", "exec", &name].map(String::from).into(),
                    ..Ground::default()
                }
            }
        }
    }

    /// Where a test reaches, as a workload's application would, any service: on loopback that is the forward proxy.
    pub async fn way(&self, workload: &str, sidecar: &Sidecar, service: &str) -> SocketAddr {
        match &self.hosts {
            None => sidecar.proxy,
            Some(_) => self.wire_to(workload, service).await,
        }
    }

    /// Waits until the control plane serves an object, whatever a manifest of it has just said.
    pub async fn knows(&self, kind: &str, name: &str) {
        let listed = || async {
            let objects = self.api("/api/v1/objects").await;
            let known = objects["objects"].as_array().into_iter().flatten().any(|object| {
                object["kind"] == kind && object["namespace"] == NAMESPACE && object["name"] == name
            });
            if known { Ok(()) } else { Err(format!("{kind} {name} is not known: {objects}")) }
        };
        wait_for(LIMIT, listed).await.unwrap_or_else(|error| panic!("{error}"));
    }

    /// A page of the control plane's HTTP API, as JSON.
    pub async fn api(&self, path: &str) -> Value {
        let (status, text) =
            fetch(&format!("http://{}{path}", self.mesh.http())).await.expect("the control plane answers");
        assert_eq!(status, 200, "{text}");
        serde_json::from_str(&text).expect("JSON")
    }
}

/// The identity of a workload of the test's mesh.
pub fn identity(service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{service_account}")
}

/// The programs under test, which `tests/run` has built.
pub fn binaries() -> Binaries {
    let this = std::env::current_exe().expect("this program has a path");
    let folder = this.ancestors().nth(2).expect("test programs are in a folder of the target folder");
    Binaries::in_folder(folder).unwrap_or_else(|error| panic!("{error}"))
}

/// A program beside the ones under test.
pub fn binary(name: &str) -> std::path::PathBuf {
    binaries().sidecar.with_file_name(name)
}

/// A folder for all that a mesh keeps.
fn test_folder() -> TempDir {
    tempfile::Builder::new().prefix("tulle-test-").tempdir().expect("a folder")
}

/// As an editor does it: nobody sees half a file.
fn write_whole(path: &Path, text: &str) {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, text).expect("the folder can be written");
    std::fs::rename(&temporary, path).expect("the folder can be written");
}

/// A workload's port; without a mesh port the sidecar serves at the application's own.
fn port(app: SocketAddr, mesh_port: Option<SocketAddr>) -> Value {
    let mut port = json!({ "name": "main", "port": app.port() });
    if let Some(mesh_port) = mesh_port {
        port["meshPort"] = json!(mesh_port.port());
    }
    port
}

fn objects(workload: &Workload, ip: IpAddr, app: &Value) -> String {
    let service = workload.service.as_ref().unwrap_or(&workload.name);
    let mut port = json!({ "name": "main", "port": 80, "targetPort": "main" });
    if let Some(protocol) = &workload.protocol {
        port["appProtocol"] = json!(protocol);
    }
    let objects = [
        json!({
            "apiVersion": "tulle.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {
                "name": workload.name,
                "namespace": NAMESPACE,
                "labels": { "app": service, "workload": workload.name },
            },
            "spec": { "address": ip.to_string(), "serviceAccount": workload.name, "ports": [app] },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": service, "namespace": NAMESPACE },
            "spec": { "selector": { "app": service }, "ports": [port] },
        }),
    ];
    // Of several workloads behind one service the first brings the Service.
    let count =
        if workload.service.as_ref().is_some_and(|service| *service != workload.name) { 1 } else { 2 };
    documents(&objects[..count])
}

/// As one manifest.
fn documents(objects: &[Value]) -> String {
    objects.iter().map(|object| format!("---\n{object}\n")).collect()
}
