//! `manifests/base` on a real API server, with a control plane that has the rights of its service account and nothing else.
//! It runs outside of the cluster, which has no nodes; what a kubelet and controllers would say of it, [`Installed::settle`]
//! says.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tulle_cli::local::Process;
use tulle_tests::apiserver::{ApiServer, Channel, kept};
use tulle_tests::binaries;

use crate::plane::SYSTEM;

/// The name of the control plane's Deployment and Service.
pub(crate) const SYSTEM_NAME: &str = "tulle-control-plane";

/// A cluster with the manifests, and a control plane outside of it.
pub(crate) struct Installed {
    pub(crate) api: ApiServer,
    pub(crate) plane: Process,
    _folder: TempDir,
}

static CLUSTER: OnceCell<Installed> = OnceCell::const_new();

impl Installed {
    /// The one that tests share.
    pub(crate) async fn shared() -> &'static Self {
        CLUSTER.get_or_init(Self::start).await
    }

    async fn start() -> Self {
        let api = ApiServer::start().await;
        api.install_gateway_api(Channel::Experimental).await;
        api.kubectl(&["apply", "-k", &manifests("base")]).await;
        Self::on(api).await
    }

    /// Starts the control plane where the manifests were applied.
    pub(crate) async fn on(api: ApiServer) -> Self {
        let kubeconfig = api.kubeconfig_of(SYSTEM, "tulle-control-plane").await;
        let folder = tempfile::Builder::new().prefix("tulle-test-").tempdir().expect("a folder");
        // Nothing drops the one that tests share.
        let mut command = kept(&binaries().control_plane, folder.path());
        command.args(["--kubernetes", "--name", "127.0.0.1", "--sidecar-image", "sidecar:test"]);
        command.args(["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--webhook", "127.0.0.1:0"]);
        command.arg("--kubeconfig").arg(kubeconfig);
        let plane = Process::start("control-plane", command, folder.path()).await;
        let plane = plane.unwrap_or_else(|error| panic!("{error}"));
        let cluster = Self { api, plane, _folder: folder };
        cluster.reach().await;
        cluster
    }

    /// No Service leads anywhere here: the API server is told the control plane's address instead.
    async fn reach(&self) {
        let address = self.plane.started["webhook"].as_str().expect("it says where it listens").to_owned();
        for (kind, paths) in [
            ("mutatingwebhookconfiguration", &["/inject", "/inject"][..]),
            ("validatingwebhookconfiguration", &["/validate"][..]),
        ] {
            let operations: Vec<Value> = (0..)
                .zip(paths)
                .flat_map(|(index, path)| {
                    let config = format!("/webhooks/{index}/clientConfig");
                    [
                        json!({"op": "remove", "path": format!("{config}/service")}),
                        json!({"op": "add", "path": format!("{config}/url"), "value": format!("https://{address}{path}")}),
                    ]
                })
                .collect();
            let patch = Value::from(operations).to_string();
            self.api.kubectl(&["patch", kind, "tulle", "--type=json", "-p", &patch]).await;
        }
    }

    /// Says of the control plane what its pod's kubelet and the cluster's controllers would say, and makes what those make.
    pub(crate) async fn settle(&self) {
        self.api.make_namespace("default").await;
        let generation =
            self.api.get(SYSTEM, "deployment", SYSTEM_NAME).await["metadata"]["generation"].clone();
        let status = json!({
            "observedGeneration": generation,
            "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1,
        });
        self.api.patch_status(SYSTEM, "deployment", SYSTEM_NAME, &status).await;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": SYSTEM_NAME, "namespace": SYSTEM,
                "labels": { "kubernetes.io/service-name": SYSTEM_NAME },
            },
            "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.77.0.2"], "conditions": { "ready": true } }],
            "ports": [{ "name": "grpc-xds", "port": 15012 }],
        });
        self.api.apply(&slice.to_string()).await;
    }
}

/// A folder of manifests.
pub(crate) fn manifests(folder: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").join(folder).display().to_string()
}
