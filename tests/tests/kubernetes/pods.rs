//! Pods: hosts in network namespaces with redirection and a sidecar, which the API server knows as a kubelet would tell it.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tempfile::TempDir;
use tulle_cli::local::Process;
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_tests::apiserver::ApiServer;
use tulle_tests::hosts::{APP_UID, Host, Network, SIDECAR_UID, Server, Wire, redirect};
use tulle_tests::{TRUST_DOMAIN, binaries, output_of};

use crate::plane::{Plane, SYSTEM, trust_bundle, until};

/// The namespace of all pods.
pub(crate) const SHOP: &str = "shop";

/// A cluster with a mesh: an API server, a control plane behind an address in the pods' network, and pods.
pub(crate) struct Cluster {
    pub(crate) api: ApiServer,
    pub(crate) plane: Plane,
    /// The control plane's HTTP API.
    pub(crate) http: SocketAddr,
    /// Where sidecars that connect from now on find a control plane: the first where somebody listens.
    replicas: Arc<Mutex<Vec<SocketAddr>>>,
    control: Host,
    network: Network,
    _service: Wire,
    folder: TempDir,
}

/// A pod with a sidecar.
pub(crate) struct Pod {
    pub(crate) host: Host,
    sidecar: Process,
    _app: Option<Server>,
}

impl Cluster {
    /// A mesh without pods on an API server.
    pub(crate) async fn start(api: ApiServer) -> Self {
        for namespace in [SYSTEM, SHOP] {
            api.make_namespace(namespace).await;
        }
        let network = Network::new();
        let control = network.host("control");
        let plane = Plane::start(&api).await;
        let http = plane.http();
        let replicas = Arc::new(Mutex::new(vec![plane.xds()]));
        let listen = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 15012);
        let service = Wire::service(&control, listen, Arc::clone(&replicas)).expect("nothing listens there");
        let folder = tempfile::Builder::new().prefix("tulle-test-").tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        Self { api, plane, http, replicas, control, network, _service: service, folder }
    }

    /// Has sidecars that connect from now on find these control planes, in this order.
    pub(crate) fn serve_with(&self, planes: &[&Plane]) {
        *self.replicas.lock().expect("nothing panics with it") =
            planes.iter().map(|plane| plane.xds()).collect();
    }

    /// A pod that serves its own name on port 8080, with a sidecar that is ready.
    pub(crate) async fn pod(&self, name: &str, app: &str) -> Pod {
        let host = self.network.host(name);
        let account = json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": { "name": app, "namespace": SHOP },
        });
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": SHOP,
                "labels": { "app": app, "tulle.dev/tls": "mesh" },
            },
            "spec": {
                "serviceAccountName": app,
                "nodeName": "n1",
                "containers": [{ "name": "app", "image": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            },
        });
        self.api.apply(&format!("{account}\n---\n{pod}")).await;
        let status = json!({
            "phase": "Running",
            "podIP": host.v4.to_string(),
            "podIPs": [{ "ip": host.v4.to_string() }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        });
        self.api.patch_status(SHOP, "pod", name, &status).await;
        let app = serve(&host, name).await;
        redirect(&host).await;
        let sidecar = self.sidecar(&host, name, app_of(&pod)).await;
        let ready = ["--silent", "--fail", "http://127.0.0.1:15020/ready"];
        until(async || {
            let output = host.run("curl", &ready).await;
            if output.status.success() {
                Ok(())
            } else {
                Err(format!("{name} is not ready:\n{}", sidecar.log()))
            }
        })
        .await;
        Pod { host, sidecar, _app: Some(app) }
    }

    /// A host that is no pod, and serves its own name on port 8080.
    pub(crate) async fn outside(&self, name: &str) -> (Host, Server) {
        let host = self.network.host(name);
        let server = serve(&host, name).await;
        (host, server)
    }

    async fn sidecar(&self, host: &Host, name: &str, account: &str) -> Process {
        let folder = self.folder.path().join(name);
        std::fs::create_dir(&folder).expect("nobody else has this name");
        let put = |file: &str, text: &str| {
            let path = folder.join(file);
            std::fs::write(&path, text).expect("it is ours");
            chown(&path, Some(SIDECAR_UID), Some(SIDECAR_UID)).expect("root may");
            path
        };
        let token = self.api.token(SHOP, account, AUDIENCE, Some(name)).await;
        let config = json!({
            "workload": { "namespace": SHOP, "serviceAccount": account, "name": name },
            "trustDomain": TRUST_DOMAIN,
            "controlPlane": {
                "address": format!("{}:15012", self.control.v4),
                "serverName": "tulle-control-plane.tulle-system.svc",
                "rootFile": put("root.pem", &trust_bundle(&self.api, SHOP).await),
                "tokenFile": put("token", &token),
            },
            "capture": {},
            "workers": 1,
        });
        let config = put("sidecar.yaml", &config.to_string());
        std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).expect("it is ours");
        let mut command = host.command(SIDECAR_UID, &binaries().sidecar);
        command.args(["run", "--config"]).arg(config);
        let process = Process::start(&format!("sidecar-{name}"), command, &folder).await;
        process.unwrap_or_else(|error| panic!("{error}"))
    }

    /// A Service `name` on port 80 with a cluster IP: its address, as a URL.
    pub(crate) async fn service(&self, name: &str) -> String {
        let service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": name, "namespace": SHOP },
            "spec": { "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        });
        self.api.apply(&service.to_string()).await;
        let address = self.api.get(SHOP, "service", name).await["spec"]["clusterIP"].clone();
        format!("http://{}/", address.as_str().expect("it has one"))
    }

    /// What the endpoints controller says of a Service: its pods, and the conditions of each.
    pub(crate) async fn endpoints(&self, service: &str, pods: &[(&Pod, Value)]) {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|(pod, conditions)| {
                json!({
                    "addresses": [pod.host.v4.to_string()],
                    "conditions": conditions,
                    "nodeName": "n1",
                })
            })
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{service}-1"),
                "namespace": SHOP,
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        });
        self.api.apply(&slice.to_string()).await;
    }
}

impl Pod {
    /// What a page says.
    ///
    /// # Errors
    /// What curl says, or the status where that is not 200.
    pub(crate) async fn get(&self, url: &str) -> Result<String, String> {
        let mut command = self.host.curl();
        command.args(["--write-out", " %{http_code}", url]);
        let output = output_of(command).await;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.rsplit_once(' ') {
            Some((body, "200")) => Ok(body.trim().to_owned()),
            _ => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Waits until a page comes from a pod.
    pub(crate) async fn reaches(&self, url: &str, pod: &str) {
        until(async || match self.get(url).await {
            Ok(name) if name == pod => Ok(()),
            other => Err(format!("{url} is answered with {other:?}, not {pod}\n{}", self.sidecar.log())),
        })
        .await;
    }
}

fn app_of(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().expect("it is written above")
}

/// A web server that says who it is.
async fn serve(host: &Host, name: &str) -> Server {
    let script = "import http.server, sys
class Name(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = sys.argv[1].encode()
        self.send_response(200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(('0.0.0.0', 8080), Name).serve_forever()
";
    let mut command = host.command(APP_UID, "/usr/bin/python3");
    command.args(["-c", script, name]);
    host.serve(command, 8080).await
}
