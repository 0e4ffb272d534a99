//! `tulle` with a cluster: checked before and after the installation, analyzed, explained.

use std::path::Path;

use serde_json::{Value, json};
use tokio::process::Command;
use tulle_tests::apiserver::{ApiServer, Channel, programs};
use tulle_tests::{binary, output_of};

use crate::installed::{Installed, SYSTEM_NAME, manifests};
use crate::plane::{SYSTEM, until};

/// Runs `tulle` with a kubeconfig, and the kubectl of the tests: exit status, and what it says as JSON.
pub(crate) async fn tulle(kubeconfig: &Path, arguments: &[&str]) -> (i32, Value) {
    let mut command = Command::new(binary("tulle"));
    command.env("PATH", format!("{}:/usr/bin:/bin", programs().display()));
    command.args(arguments).args(["-o", "json", "--kubeconfig"]).arg(kubeconfig);
    let output = output_of(command).await;
    let text = String::from_utf8_lossy(&output.stdout);
    let said = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code().expect("it is not killed"), said)
}

/// The checks with a verdict, each as its text and its reason.
fn with(report: &Value, verdict: &str) -> Vec<String> {
    let checks =
        report["checks"].as_array().into_iter().flatten().filter(|check| check["verdict"] == verdict);
    checks
        .map(|check| {
            let text = |field: &str| check[field].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", text("what"), text("reason"))
        })
        .collect()
}

/// Whether one of the checks with a verdict has all these words.
pub(crate) fn says(report: &Value, verdict: &str, words: &[&str]) -> bool {
    with(report, verdict).iter().any(|line| words.iter().all(|word| line.contains(word)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_checked_before_the_installation() {
    let api = ApiServer::start().await;
    let (code, report) = tulle(&api.kubeconfig, &["check", "--pre"]).await;
    assert_eq!(code, 0, "{report:#}");
    assert!(says(&report, "pass", &["the API server answers", "v1.34."]), "{report:#}");
    assert!(says(&report, "pass", &["native sidecars"]), "{report:#}");
    assert!(says(&report, "pass", &["you may create and change all that is installed"]), "{report:#}");
    assert!(says(&report, "pass", &["you may give the control plane its rights"]), "{report:#}");
    let warned = with(&report, "warn");
    assert!(
        warned.len() == 1 && warned[0].contains("Gateway API"),
        "the one thing that is missing: {warned:?}"
    );
    assert_eq!(tulle(&api.kubeconfig, &["check", "--pre", "--strict"]).await.0, 1);

    // Who may do nothing, and who may do all but give rights to others.
    let shop = api.namespace("shop").await;
    let nobody = api.kubeconfig_of(&shop, "default").await;
    let (code, report) = tulle(&nobody, &["check", "--pre"]).await;
    assert_eq!(code, 1, "{report:#}");
    for words in [["deployments.apps in tulle-system", "create"], ["customresourcedefinitions", "patch"]] {
        assert!(says(&report, "fail", &words), "{words:?}: {report:#}");
    }
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "installer" },
        "rules": [{
            "apiGroups": ["", "apps", "rbac.authorization.k8s.io"],
            "resources": ["namespaces", "services", "serviceaccounts", "deployments", "clusterroles",
                "clusterrolebindings", "roles", "rolebindings"],
            "verbs": ["get", "list", "create", "patch"],
        }],
    });
    api.apply(&role.to_string()).await;
    let account = format!("--serviceaccount={shop}:default");
    api.kubectl(&["create", "clusterrolebinding", "installer", "--clusterrole=installer", &account]).await;
    until(async || {
        let (code, report) = tulle(&nobody, &["check", "--pre"]).await;
        assert_eq!(code, 1, "{report:#}");
        if says(&report, "fail", &["you may apply deployments.apps"]) {
            return Err("the rights are not known yet".into());
        }
        assert!(
            says(&report, "fail", &["give the control plane its rights", "attempting to grant"]),
            "{report:#}"
        );
        Ok(())
    })
    .await;

    // What stands in the way, and what is there already.
    api.install_gateway_api(Channel::Standard).await;
    let labels = ["tulle.dev/inject=enabled", "pod-security.kubernetes.io/enforce=baseline"];
    api.kubectl(&["label", "namespace", &shop, labels[0], labels[1]]).await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    let mine =
        json!([{"op": "replace", "path": "/webhooks/0/clientConfig/service/namespace", "value": "other"}]);
    let patch = ["patch", "mutatingwebhookconfiguration", "tulle", "--type=json", "-p", &mine.to_string()];
    api.kubectl(&patch).await;
    let older = json!([{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/address"},
        {"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec/required"}]);
    let patch = ["patch", "crd", "workloads.tulle.dev", "--type=json", "-p", &older.to_string()];
    api.kubectl(&patch).await;
    let (code, report) = tulle(&api.kubeconfig, &["check", "--pre"]).await;
    assert_eq!(code, 1, "{report:#}");
    assert!(says(&report, "pass", &["Gateway API", "HTTPRoute", "standard channel", "v1."]), "{report:#}");
    assert!(says(&report, "warn", &["earlier installation", "tulle-control-plane:0.1.0"]), "{report:#}");
    assert!(says(&report, "warn", &["of another version: workloads.tulle.dev"]), "{report:#}");
    assert!(says(&report, "fail", &["webhooks", "installation in other"]), "{report:#}");
    assert!(says(&report, "warn", &["NET_ADMIN", &format!("{shop} (baseline)")]), "{report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_not_there_is_a_finding() {
    let mut api = ApiServer::start().await;
    api.kill();
    for pre in [&["check", "--pre"][..], &["check"]] {
        let (code, report) = tulle(&api.kubeconfig, pre).await;
        assert_eq!((code, report["checks"].as_array().map(Vec::len)), (1, Some(1)), "{report:#}");
        assert!(says(&report, "fail", &["the API server answers", "refused"]), "{report:#}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_installation_is_checked() {
    let api = ApiServer::start().await;
    let (code, report) = tulle(&api.kubeconfig, &["check"]).await;
    assert_eq!(code, 1, "{report:#}");
    assert!(says(&report, "fail", &["the Deployment tulle-control-plane", "there is none"]), "{report:#}");
    assert!(says(&report, "fail", &["Tulle's kinds", "workloads.tulle.dev"]), "{report:#}");

    api.install_gateway_api(Channel::Experimental).await;
    api.kubectl(&["apply", "-k", &manifests("base")]).await;
    let cluster = Installed::on(api).await;
    let api = &cluster.api;
    cluster.settle().await;
    let shop = api.namespace("shop").await;
    api.kubectl(&["label", "namespace", &shop, "tulle.dev/inject=enabled"]).await;
    until(async || {
        let (code, report) = tulle(&api.kubeconfig, &["check", "--strict"]).await;
        if code == 0 { Ok(()) } else { Err(format!("not all is well: {report:#}")) }
    })
    .await;

    // Each thing that breaks is named.
    api.patch_status(
        SYSTEM,
        "deployment",
        SYSTEM_NAME,
        &json!({ "readyReplicas": 0, "availableReplicas": 0 }),
    )
    .await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "bare", "namespace": shop, "labels": { "tulle.dev/component": "none" } },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    api.apply(&pod.to_string()).await;
    let (code, report) = tulle(&api.kubeconfig, &["check"]).await;
    assert_eq!(code, 1, "{report:#}");
    assert!(says(&report, "fail", &["replicas are ready", "none is"]), "{report:#}");
    assert!(says(&report, "warn", &["without: 1 in", &shop]), "{report:#}");

    // Who may not read keys is told what could not be checked.
    let view = format!("--serviceaccount={shop}:default");
    api.kubectl(&["create", "clusterrolebinding", "view", "--clusterrole=view", &view]).await;
    let viewer = api.kubeconfig_of(&shop, "default").await;
    until(async || {
        let (_, report) = tulle(&viewer, &["check"]).await;
        let told = says(&report, "warn", &["Secret tulle-webhook-ca", "forbidden"]);
        if told && !says(&report, "fail", &["Secret"]) { Ok(()) } else { Err(format!("{report:#}")) }
    })
    .await;

    let Installed { api, plane, .. } = cluster;
    drop(plane);
    let other = json!([{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": "bm9uZQ=="}]);
    let patch = ["patch", "validatingwebhookconfiguration", "tulle", "--type=json", "-p", &other.to_string()];
    api.kubectl(&patch).await;
    api.kubectl(&["-n", &shop, "delete", "configmap", "tulle-trust-bundle"]).await;
    let (code, report) = tulle(&api.kubeconfig, &["check"]).await;
    assert_eq!(code, 1, "{report:#}");
    assert!(
        says(&report, "fail", &["ValidatingWebhookConfiguration", "not that of the control plane"]),
        "{report:#}"
    );
    assert!(says(&report, "fail", &["a pod that asks for a sidecar", "made without"]), "{report:#}");
    assert!(says(&report, "fail", &["trust bundle", "missing or different in", &shop]), "{report:#}");
    until(async || {
        let (_, report) = tulle(&api.kubeconfig, &["check"]).await;
        let lost = says(&report, "fail", &["holds the Lease"]);
        if lost { Ok(()) } else { Err(format!("the Lease is held still: {report:#}")) }
    })
    .await;
}

/// The same findings as with the same objects in files, and the same answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_objects_of_a_cluster_are_analyzed_and_explained_as_files_are() {
    let api = ApiServer::start().await;
    let (code, found) = tulle(&api.kubeconfig, &["analyze"]).await;
    assert_eq!(code, 0, "{found:#}");
    assert!(found["findings"].to_string().contains("the cluster does not have HTTPRoute"), "{found:#}");

    api.install_gateway_api(Channel::Experimental).await;
    api.install_tulle().await;
    api.make_namespace("shop").await;
    api.apply(OBJECTS).await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("objects.yaml");
    std::fs::write(&file, OBJECTS).expect("the folder can be written");
    let file = file.to_str().expect("UTF-8");

    let (live, offline) = (
        tulle(&api.kubeconfig, &["analyze", "-n", "shop"]).await,
        tulle(&api.kubeconfig, &["analyze", "-n", "shop", "-f", file]).await,
    );
    let codes = |found: &Value| -> Vec<String> {
        let all = found["findings"].as_array().into_iter().flatten();
        all.filter(|finding| !finding["object"].as_str().unwrap_or_default().is_empty())
            .map(|finding| format!("{} {} {}", finding["code"], finding["object"], finding["field"]))
            .collect()
    };
    assert_eq!((live.0, offline.0), (1, 1), "{:#}", live.1);
    let codes = (codes(&live.1), codes(&offline.1));
    assert_eq!(codes.0, codes.1, "{:#}", live.1);
    // Also what no object is wrong about by itself.
    for words in ["Service shop/lost", "HTTPRoute shop/stock", "Pod shop/web"] {
        assert!(codes.0.iter().any(|line| line.contains(words)), "{words}: {codes:?}");
    }

    let question = ["explain", "--from", "shop/web", "--to", "stock.shop", "--path", "/a"];
    let (live, offline) = (
        tulle(&api.kubeconfig, &question).await,
        tulle(&api.kubeconfig, &[&question[..], &["-f", file]].concat()).await,
    );
    assert_eq!(live.0, offline.0);
    assert_eq!(live.1["route"]["matched"]["name"], offline.1["route"]["matched"]["name"], "{:#}", live.1);
    assert!(live.1["route"]["matched"]["name"].is_string(), "{:#}", live.1);

    // Who may read but one namespace is told what is missing.
    api.kubectl(&[
        "-n",
        "shop",
        "create",
        "rolebinding",
        "view",
        "--clusterrole=view",
        "--serviceaccount=shop:default",
    ])
    .await;
    let viewer = api.kubeconfig_of("shop", "default").await;
    let (_, found) = tulle(&viewer, &["analyze"]).await;
    assert!(found["findings"].to_string().contains("objects of kind Service can't be read"), "{found:#}");
}

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tulle.dev/inject: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: stock, namespace: shop}
spec: {clusterIP: 10.96.7.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: lost, namespace: shop}
spec: {clusterIP: 10.96.7.2, selector: {app: nobody}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec:
  serviceAccountName: default
  nodeName: one
  containers: [{name: app, image: app, ports: [{containerPort: 8080}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: stock, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: stock, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}}]
    backendRefs: [{name: stock, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /b}}]
    backendRefs: [{name: nowhere, port: 80}]
";
