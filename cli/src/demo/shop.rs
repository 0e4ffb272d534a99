//! The bookshop: which processes it is made of, and how they are started.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::apps::{Surroundings, via_proxy};
use super::edges::Edge;
use crate::local::{Binaries, LocalMesh, Process, Sidecar, SidecarSpec};

/// How many services there are.
pub(super) const SERVICES: usize = 5;
/// How many sidecars: one beside each service, and one beside the customers.
pub(super) const SIDECARS: usize = SERVICES + 1;
/// The service accounts whose spans make up a whole trace.
pub const TRACED: &[&str] = &["customers", "web", "cart", "recommend", "stock"];

const NAMESPACE: &str = "shop";
const TRUST_DOMAIN: &str = "bookshop.example";
const READY: Duration = Duration::from_secs(30);

/// What every user of the demo may change while it runs.
pub const MANIFESTS: [(&str, &str); 3] = [
    ("00-services.yaml", include_str!("../../../manifests/demo/00-services.yaml")),
    ("10-routes.yaml", include_str!("../../../manifests/demo/10-routes.yaml")),
    ("20-policies.yaml", include_str!("../../../manifests/demo/20-policies.yaml")),
];

/// The running bookshop.
pub(super) struct Shop {
    mesh: LocalMesh,
    /// The customers' own sidecar first.
    sidecars: Vec<(String, Sidecar)>,
    _apps: Vec<Process>,
}

/// A service and where its parts are.
struct Service {
    name: &'static str,
    account: &'static str,
    /// What its port is called, which tells the mesh what is spoken there.
    port: &'static str,
    app: Process,
    address: SocketAddr,
}

impl Shop {
    /// Starts everything in `folder` and waits until every sidecar is ready.
    pub(super) async fn open(binaries: Binaries, folder: &Path, collector: &str) -> Result<Self, String> {
        let manifests = folder.join("manifests");
        std::fs::create_dir_all(&manifests).map_err(|error| format!("{}: {error}", manifests.display()))?;
        for (name, text) in MANIFESTS {
            std::fs::write(manifests.join(name), text).map_err(|error| format!("{name}: {error}"))?;
        }
        let mesh =
            LocalMesh::start(binaries, folder, TRUST_DOMAIN).await.map_err(|error| error.to_string())?;

        let logs = mesh.logs.clone();
        let mut services = Vec::new();
        for (name, account, port, args) in [
            ("web", "web", "http", &["web"][..]),
            ("cart", "cart", "http", &["cart"]),
            ("recommend", "recommend", "grpc", &["recommend"]),
            ("stock-v1", "stock", "http", &["stock", "--version", "v1"]),
            ("stock-v2", "stock", "http", &["stock", "--version", "v2", "--failing-percent", "20"]),
        ] {
            services.push(Service::start(name, account, port, args, &logs).await?);
        }

        let customers = sidecar(&mesh, "customers", "customers", None, collector).await?;
        let mut sidecars = vec![("customers".to_owned(), customers)];
        let mut workloads = String::new();
        for service in &mut services {
            let app = Some(service.address);
            let sidecar = sidecar(&mesh, service.name, service.account, app, collector).await?;
            let surroundings = Surroundings {
                http_proxy: Some(format!("http://{}", sidecar.proxy)),
                recommend: sidecar.ports.get(RECOMMEND).map(ToString::to_string),
            };
            let line = serde_json::to_string(&surroundings).map_err(|error| error.to_string())?;
            service.app.tell(&line).await.map_err(|error| format!("{}: {error}", service.name))?;
            let mesh_port = sidecar.inbound.first().ok_or("a sidecar with an app has a mesh port")?;
            workloads.push_str(&service.manifest(*mesh_port));
            sidecars.push((service.name.to_owned(), sidecar));
        }
        std::fs::write(mesh.manifests.join("workloads.yaml"), workloads)
            .map_err(|error| error.to_string())?;
        for (_, sidecar) in &sidecars {
            sidecar.ready(READY).await?;
        }
        Ok(Self { mesh, sidecars, _apps: services.into_iter().map(|service| service.app).collect() })
    }

    /// The folder that holds the manifests in force.
    pub(super) fn manifests(&self) -> &Path {
        &self.mesh.manifests
    }

    /// Sends `rate` requests per second to web, each on its own, until the task is aborted.
    pub(super) fn customers(&self, rate: u32) -> Result<JoinHandle<()>, String> {
        let client = via_proxy(&format!("http://{}", self.sidecars[0].1.proxy))?;
        Ok(tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / rate);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            loop {
                ticks.tick().await;
                let request = client.get("http://web.shop/").send();
                // The sidecars count what becomes of it.
                tokio::spawn(async { request.await?.bytes().await });
            }
        }))
    }

    /// Every edge's totals now.
    pub(super) async fn edges(&self) -> Result<Vec<Edge>, String> {
        let mut edges = Vec::new();
        for (name, sidecar) in &self.sidecars {
            edges.extend(Edge::of(name, &sidecar.metrics().await?));
        }
        Ok(edges)
    }

    /// How many requests arrived at any service from a peer that proved no identity.
    pub(super) async fn unproven(&self) -> Result<f64, String> {
        let mut unproven = 0.0;
        for (_, sidecar) in &self.sidecars {
            unproven += super::edges::unproven(&sidecar.metrics().await?);
        }
        Ok(unproven)
    }
}

const RECOMMEND: &str = "recommend.shop:80";

async fn sidecar(
    mesh: &LocalMesh,
    name: &str,
    account: &str,
    app: Option<SocketAddr>,
    collector: &str,
) -> Result<Sidecar, String> {
    let spec = SidecarSpec {
        namespace: NAMESPACE.into(),
        service_account: account.into(),
        name: name.into(),
        apps: app.into_iter().collect(),
        ports: if name == "web" { vec![RECOMMEND.into()] } else { Vec::new() },
        otlp: Some(collector.into()),
        config: serde_json::Map::default(),
    };
    mesh.sidecar(&spec).await.map_err(|error| error.to_string())
}

impl Service {
    async fn start(
        name: &'static str,
        account: &'static str,
        port: &'static str,
        args: &[&str],
        logs: &Path,
    ) -> Result<Self, String> {
        let this = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(this);
        command.arg("demo-app").args(args);
        let app = Process::start(name, command, logs).await.map_err(|error| error.to_string())?;
        let address = app.started["address"].as_str().and_then(|address| address.parse().ok());
        let address = address.ok_or_else(|| format!("{name} does not say where it listens"))?;
        Ok(Self { name, account, port, app, address })
    }

    /// The Workload that stands for the service, as one YAML document (JSON is YAML).
    fn manifest(&self, mesh_port: SocketAddr) -> String {
        let mut labels = json!({ "app": self.account });
        if let Some(version) = self.name.strip_prefix("stock-") {
            labels["version"] = json!(version);
        }
        let workload = json!({
            "apiVersion": "tulle.dev/v1alpha1",
            "kind": "Workload",
            "metadata": {
                "name": self.name,
                "namespace": NAMESPACE,
                "labels": labels,
            },
            "spec": {
                "address": mesh_port.ip().to_string(),
                "serviceAccount": self.account,
                "ports": [{ "name": self.port, "port": self.address.port(), "meshPort": mesh_port.port() }],
            },
        });
        format!("---\n{workload}\n")
    }
}
