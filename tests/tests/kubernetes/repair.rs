//! `tulle-control-plane repair`, as the manifests in `manifests/cni` run it: with their RBAC, on pods that have no kubelet.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tulle_tests::apiserver::ApiServer;
use tulle_tests::{LIMIT, binary, wait_for};

/// The state of an init container that has found that nothing redirects its pod's traffic.
fn not_redirected() -> Value {
    let container = json!({
        "name": "tulle-validate", "image": "tulle-sidecar", "imageID": "", "ready": false, "restartCount": 1,
        "state": { "waiting": { "reason": "CrashLoopBackOff" } },
        "lastState": { "terminated": { "exitCode": 95 } },
    });
    json!({ "phase": "Pending", "initContainerStatuses": [container] })
}

/// Makes an injected pod on a node, with a controller of its own or without.
async fn pod(api: &ApiServer, namespace: &str, name: &str, node: &str, has_owner: bool) {
    owned(api, namespace, name, node, has_owner.then_some(name)).await;
}

/// Makes an injected pod on a node, with the controller of a name, if any.
async fn owned(api: &ApiServer, namespace: &str, name: &str, node: &str, owner: Option<&str>) {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": { "tulle.dev/tls": "mesh" } },
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "app", "image": "app" }],
            "initContainers": [{ "name": "tulle-validate", "image": "tulle-sidecar" }],
        },
    });
    if let Some(owner) = owner {
        let owner = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": format!("uid-of-{owner}"),
            "controller": true,
        });
        pod["metadata"]["ownerReferences"] = json!([owner]);
    }
    api.apply(&pod.to_string()).await;
    api.patch_status(namespace, "pod", name, &not_redirected()).await;
}

/// Makes the plugin's pod of a node, and has it be ready or not.
async fn plugin(api: &ApiServer, node: &str, ready: &str) {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": node, "namespace": "tulle-cni", "labels": { "tulle.dev/component": "cni" } },
        "spec": {
            "nodeName": node,
            "serviceAccountName": "tulle-cni",
            "containers": [{ "name": "install", "image": "tulle-cni" }],
        },
    });
    api.apply(&pod.to_string()).await;
    let status = json!({ "conditions": [{ "type": "Ready", "status": ready }] });
    api.patch_status("tulle-cni", "pod", node, &status).await;
}

/// Starts it as the manifests' own service account.
async fn repair(api: &ApiServer) -> Child {
    let kubeconfig = api.kubeconfig_of("tulle-cni", "tulle-cni-repair").await;
    let mut command = Command::new(binary("tulle-control-plane"));
    command.args(["repair", "--kubeconfig"]).arg(kubeconfig).env("POD_NAMESPACE", "tulle-cni");
    command.stdin(Stdio::null()).kill_on_drop(true).spawn().expect("it can be started")
}

async fn pods(api: &ApiServer, namespace: &str) -> String {
    api.kubectl(&["-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]).await
}

/// Waits until these are the pods of a namespace.
async fn remain(api: &ApiServer, namespace: &str, names: &str) {
    let remaining = || async {
        let pods = pods(api, namespace).await;
        if pods == names { Ok(()) } else { Err(format!("{pods}, not {names}")) }
    };
    wait_for(LIMIT, remaining).await.unwrap_or_else(|error| panic!("{error}"));
}

/// The reason of the events about a pod.
async fn reasons(api: &ApiServer, namespace: &str, pod: &str) -> String {
    let selector = format!("--field-selector=involvedObject.name={pod}");
    let path = "jsonpath={.items[*].reason}";
    api.kubectl(&["-n", namespace, "get", "events", &selector, "-o", path]).await
}

/// A pod that raced the plugin is made again, with the manifests' rights.
pub(crate) async fn a_pod_is_made_again(api: &ApiServer) {
    api.kubectl(&["apply", "-k", concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/cni")]).await;
    let shop = api.namespace("raced").await;
    plugin(api, "ready", "True").await;
    pod(api, &shop, "raced", "ready", true).await;
    let _process = repair(api).await;
    remain(api, &shop, "").await;
    let told = || async {
        match reasons(api, &shop, "raced").await {
            reasons if reasons == "Repaired" => Ok(()),
            reasons => Err(reasons),
        }
    };
    wait_for(LIMIT, told).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_were_faster_than_the_plugin_are_made_again() {
    let api = ApiServer::start().await;
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/cni");
    api.kubectl(&["apply", "-k", manifests]).await;
    let shop = api.namespace("shop").await;
    plugin(&api, "ready", "True").await;
    plugin(&api, "waiting", "False").await;
    pod(&api, &shop, "a-raced", "ready", true).await;
    pod(&api, &shop, "b-bare", "ready", false).await;
    pod(&api, &shop, "c-early", "waiting", true).await;
    pod(&api, &shop, "d-nowhere", "other", true).await;
    pod(&api, &shop, "e-well", "ready", true).await;
    let well = json!({ "state": { "terminated": { "exitCode": 0 } }, "name": "tulle-validate", "image": "",
        "imageID": "", "ready": true, "restartCount": 1 });
    api.patch_status(&shop, "pod", "e-well", &json!({ "initContainerStatuses": [well] })).await;
    let mut process = repair(&api).await;

    remain(&api, &shop, "b-bare c-early d-nowhere e-well").await;
    assert_eq!(reasons(&api, &shop, "a-raced").await, "Repaired");
    let told = || async {
        let reasons = reasons(&api, &shop, "b-bare").await;
        if reasons == "RedirectionMissing" { Ok(()) } else { Err(reasons) }
    };
    wait_for(LIMIT, told).await.unwrap_or_else(|error| panic!("{error}"));
    // Once the plugin is there, who waited for it has its turn.
    plugin(&api, "waiting", "True").await;
    remain(&api, &shop, "b-bare d-nowhere e-well").await;
    // One that comes while it runs.
    pod(&api, &shop, "f-later", "ready", true).await;
    remain(&api, &shop, "b-bare d-nowhere e-well").await;
    assert_eq!(reasons(&api, &shop, "b-bare").await, "RedirectionMissing", "told once");
    // Where a new pod fares no better, time after time, it is left, and its Event says so.
    let names: Vec<String> = (0..6).map(|index| format!("g-again-{index}")).collect();
    for name in &names {
        owned(&api, &shop, name, "ready", Some("one-owner")).await;
    }
    let last = || async {
        for name in &names {
            if reasons(&api, &shop, name).await == "RedirectionMissing" {
                return Ok(());
            }
        }
        Err(pods(&api, &shop).await)
    };
    wait_for(2 * LIMIT, last).await.unwrap_or_else(|error| panic!("nobody is told: {error}"));
    assert_eq!(pods(&api, &shop).await.matches("g-again").count(), 1);
    assert!(process.try_wait().expect("it is ours").is_none());
}
