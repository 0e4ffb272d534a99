//! `tulle status` and `tulle config` reach into pods as `kubectl port-forward` does, over a node with the kubelet's own code
//! for it.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tulle_cli::local::{Process, ready};
use tulle_control_plane::ca::tokens::AUDIENCE;
use tulle_tests::apiserver::{ApiServer, Channel, programs};
use tulle_tests::{LIMIT, binaries, wait_for};

use crate::check::tulle;
use crate::installed::{Installed, manifests};
use crate::plane::{SYSTEM, trust_bundle, until};

/// The node.
const NODE: &str = "one";

/// Starts the node: where the ports of pods are is read from `table`.
async fn node(api: &ApiServer, table: &Path) -> Child {
    let mut command = Command::new(programs().join("kubelet"));
    command.arg(table).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut kubelet = command.spawn().expect("tests/setup has built it");
    let mut port = String::new();
    let out = kubelet.stdout.take().expect("it is piped");
    BufReader::new(out).read_line(&mut port).await.expect("it says where it listens");
    let port: u16 = port.trim().parse().expect("a port");
    let node = json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } });
    api.apply(&node.to_string()).await;
    let status = json!({
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
    });
    api.patch_status("default", "node", NODE, &status).await;
    kubelet
}

/// Makes a pod that runs on the node.
async fn pod(api: &ApiServer, namespace: &str, name: &str, labels: Value) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "nodeName": NODE, "serviceAccountName": "default", "containers": [{ "name": "app", "image": "app",
            "securityContext": { "allowPrivilegeEscalation": false, "runAsNonRoot": true,
                "capabilities": { "drop": ["ALL"] }, "seccompProfile": { "type": "RuntimeDefault" } } }] },
    });
    api.apply(&pod.to_string()).await;
    api.patch_status(namespace, "pod", name, &json!({ "phase": "Running" })).await;
}

/// Starts a sidecar as the pod of its name has it.
async fn sidecar(cluster: &Installed, namespace: &str, name: &str, folder: &Path) -> Process {
    let put = |file: &str, text: &str| {
        let path = folder.join(file);
        fs::write(&path, text).expect("it is ours");
        path
    };
    let token = cluster.api.token(namespace, "default", AUDIENCE, Some(name)).await;
    let config = json!({
        "workload": { "namespace": namespace, "serviceAccount": "default", "name": name },
        "controlPlane": {
            "address": cluster.plane.started["xds"],
            "rootFile": put("root.pem", &trust_bundle(&cluster.api, namespace).await),
            "tokenFile": put("token", &token),
        },
        "outbound": { "proxy": "127.0.0.1:0" },
        "admin": "127.0.0.1:0",
        "health": "127.0.0.1:0",
        "workers": 1,
    });
    let mut command = Command::new(&binaries().sidecar);
    command.args(["run", "--config"]).arg(put("sidecar.yaml", &config.to_string()));
    let sidecar = Process::start(name, command, folder).await.unwrap_or_else(|error| panic!("{error}"));
    let health = sidecar.started["listening"]["health"].as_str().expect("an address");
    let health = health.parse().expect("an address");
    wait_for(LIMIT, || ready(health)).await.unwrap_or_else(|error| panic!("{error}:\n{}", sidecar.log()));
    sidecar
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_and_a_sidecar_in_pods_are_asked() {
    let api = ApiServer::start().await;
    api.install_gateway_api(Channel::Standard).await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    api.make_namespace(SYSTEM).await;
    api.make_namespace("shop").await;
    let folder = tempfile::tempdir().expect("a folder");
    let table = folder.path().join("ports");
    let _kubelet = node(&api, &table).await;
    let cluster = Installed::on(api).await;
    let api = &cluster.api;
    let kubeconfig = &api.kubeconfig;
    let (code, said) = failing(kubeconfig, &["status"]).await;
    assert!(code == 1 && said.contains("no control plane runs in tulle-system"), "{said}");

    pod(api, SYSTEM, "control-plane-0", json!({ "tulle.dev/component": "control-plane" })).await;
    pod(api, "shop", "web-0", json!({})).await;
    let sidecar = sidecar(&cluster, "shop", "web-0", folder.path()).await;
    let (http, admin) = (&cluster.plane.started["http"], &sidecar.started["listening"]["admin"]);
    let text = |address: &Value| address.as_str().expect("an address").to_owned();
    let ports = format!("{SYSTEM}/control-plane-0:15014 {}\nshop/web-0:15000 {}\n", text(http), text(admin));
    fs::write(&table, ports).expect("it is ours");

    let identity = "spiffe://cluster.local/ns/shop/sa/default";
    until(async || {
        let (code, status) = tulle(kubeconfig, &["status"]).await;
        let proxy = &status["proxies"][0];
        let told = code == 0 && proxy["identity"] == identity && proxy["synced"] == true;
        if told { Ok(()) } else { Err(format!("{status:#}")) }
    })
    .await;
    let (code, config) = tulle(kubeconfig, &["config", "all", "web-0", "-n", "shop"]).await;
    assert_eq!(code, 0, "{config:#}");
    assert_eq!(config["sync"]["stream"]["open"], true, "{config:#}");
    assert!(config["certs"].to_string().contains(identity), "{config:#}");

    // Nothing listens there, there is no such pod, and the user may not.
    pod(api, "shop", "bare", json!({})).await;
    let (code, said) = failing(kubeconfig, &["config", "all", "bare", "-n", "shop"]).await;
    assert!(code == 1 && said.contains("does not answer"), "{said}");
    let (code, said) = failing(kubeconfig, &["config", "all", "nobody", "-n", "shop"]).await;
    assert!(code == 1 && said.contains("\"nobody\" not found"), "{said}");
    let nobody = api.kubeconfig_of("shop", "default").await;
    let (code, said) = failing(&nobody, &["config", "all", "web-0", "-n", "shop"]).await;
    assert!(code == 1 && said.contains("orbidden"), "{said}");
}

/// Runs `tulle` where it fails: exit status and standard error.
async fn failing(kubeconfig: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(tulle_tests::binary("tulle"));
    command.env("PATH", format!("{}:/usr/bin:/bin", programs().display()));
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig);
    let output = tulle_tests::output_of(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code().expect("it is not killed"), said)
}
