//! Definitions of an older release: what they lack is told, the rest works, and newer ones are taken up.

use serde_json::{Value, json};
use tulle_tests::apiserver::{ApiServer, Channel, programs};

use crate::check::{says, tulle};
use crate::installed::manifests;
use crate::plane::{Plane, SYSTEM, objects, until};

/// A route with a session whose name is none, which only newer definitions know of.
const ROUTE: &str = "
kind: HTTPRoute
metadata: {name: cart, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: cart, port: 80}]
  rules: [{sessionPersistence: {sessionName: 'a b'}, backendRefs: [{name: cart, port: 80}]}]
";

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: tulle.dev/v1alpha1
kind: BackendTrafficPolicy
metadata: {name: cart, namespace: shop}
spec: {targetRefs: [{kind: Service, name: cart}], timeouts: {request: 1s}}
";

/// An HTTPRoute of v1beta1 alone, without sessions, and no other kind of the Gateway API; of Tulle's kinds one is missing, and
/// one has a field less and a column more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_definitions_are_told_and_served_until_newer_ones_come() {
    let api = ApiServer::start().await;
    for namespace in [SYSTEM, "shop"] {
        api.make_namespace(namespace).await;
    }
    install_older(&api).await;
    api.apply_loosely(OBJECTS).await;
    api.apply_loosely(&format!("apiVersion: gateway.networking.k8s.io/v1beta1{ROUTE}")).await;
    let plane = Plane::start(&api).await;
    let problems = async || objects(plane.http()).await["problems"].to_string();
    until(async || {
        let told = problems().await;
        let lacks = [
            "the cluster does not have GRPCRoute, TLSRoute, TCPRoute",
            "definitions of HTTPRoute (v0.8.1) are older than v1.5",
            "the cluster does not have TelemetryPolicy",
            "definitions of BackendTrafficPolicy are not those of this version of Tulle",
        ];
        match lacks.iter().find(|lack| !told.contains(**lack)) {
            None => Ok(()),
            Some(lack) => Err(format!("{lack:?} is not told: {told}")),
        }
    })
    .await;
    // What is there works.
    accepted(&api, "httproute", "parents", "Accepted").await;
    accepted(&api, "backendtrafficpolicy", "ancestors", "Accepted").await;
    let printed = api.kubectl(&["-n", "shop", "get", "backendtrafficpolicies"]).await;
    assert!(printed.contains("OLD") && printed.contains("True"), "{printed}");
    let policy = api.get("shop", "backendtrafficpolicy", "cart").await;
    assert!(policy["spec"]["timeouts"].is_null(), "the older definition drops it: {policy}");

    let (code, report) = tulle(&api.kubeconfig, &["check"]).await;
    assert_eq!(code, 1, "{report:#}");
    assert!(says(&report, "fail", &["Tulle's kinds", "telemetrypolicies.tulle.dev"]), "{report:#}");
    let lost = "fields that they lack are lost";
    assert!(
        says(&report, "warn", &["Tulle's kinds", "backendtrafficpolicies.tulle.dev", lost]),
        "{report:#}"
    );
    assert!(says(&report, "warn", &["Gateway API", "HTTPRoute (v0.8.1)", lost]), "{report:#}");

    api.install_tulle().await;
    api.install_gateway_api(Channel::Experimental).await;
    until(async || match problems().await {
        told if told == "[]" => Ok(()),
        told => Err(told),
    })
    .await;
    // What they have more is read, though the route is the same object, by the version that has come.
    until(async || {
        api.try_apply(&format!("{OBJECTS}---\napiVersion: gateway.networking.k8s.io/v1{ROUTE}")).await
    })
    .await;
    accepted(&api, "httproute", "parents", "UnsupportedValue").await;
    let telemetry = "apiVersion: tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {name: cart, namespace: shop}\n\
                     spec: {targetRefs: [{kind: Service, name: cart}]}\n";
    until(async || api.try_apply(telemetry).await).await;
    accepted(&api, "telemetrypolicy", "ancestors", "Accepted").await;
    assert!(!plane.process.log().contains("panicked"));
}

/// Waits until the status of the object `cart` has the condition `Accepted` with a reason.
async fn accepted(api: &ApiServer, kind: &str, list: &str, reason: &str) {
    until(async || {
        let status = api.get("shop", kind, "cart").await["status"].clone();
        let conditions = status[list][0]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == "Accepted");
        match found {
            Some(found) if found["reason"] == reason => Ok(()),
            _ => Err(format!("{kind}: not {reason}: {status}")),
        }
    })
    .await;
}

async fn install_older(api: &ApiServer) {
    let routes = programs()
        .join("gateway-api/experimental/gateway.networking.k8s.io_httproutes.yaml")
        .display()
        .to_string();
    api.kubectl(&["apply", "--server-side", "-f", &routes]).await;
    let kinds = [
        "authorizationpolicies",
        "backendtrafficpolicies",
        "httpfaultfilters",
        "inboundpolicies",
        "workloads",
    ];
    for kind in kinds {
        api.kubectl(&["apply", "--server-side", "-f", &manifests(&format!("crds/{kind}.yaml"))]).await;
    }
    let annotation = "/metadata/annotations/gateway.networking.k8s.io~1bundle-version";
    let rules = "/spec/versions/1/schema/openAPIV3Schema/properties/spec/properties/rules/items/properties";
    let patch = |kind: &'static str, operations: Value| async move {
        api.kubectl(&["patch", "crd", kind, "--type=json", "-p", &operations.to_string()]).await
    };
    patch(
        "httproutes.gateway.networking.k8s.io",
        json!([
            { "op": "replace", "path": annotation, "value": "v0.8.1" },
            { "op": "replace", "path": "/spec/versions/0/served", "value": false },
            { "op": "replace", "path": "/spec/versions/0/storage", "value": false },
            { "op": "replace", "path": "/spec/versions/1/storage", "value": true },
            { "op": "remove", "path": format!("{rules}/sessionPersistence") },
        ]),
    )
    .await;
    let properties = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    patch(
        "backendtrafficpolicies.tulle.dev",
        json!([
            { "op": "remove", "path": "/metadata/annotations/tulle.dev~1schema" },
            { "op": "remove", "path": format!("{properties}/timeouts") },
            { "op": "add", "path": "/spec/versions/0/additionalPrinterColumns/-",
              "value": { "name": "Old", "jsonPath": ".metadata.uid", "type": "string" } },
        ]),
    )
    .await;
    // What a definition says is served a while later.
    until(async || {
        let served = api.try_kubectl(&["get", "--raw", "/apis/gateway.networking.k8s.io"]).await?;
        let lacks = api.try_kubectl(&["explain", "backendtrafficpolicy.spec.timeouts"]).await;
        match (served.contains("\"gateway.networking.k8s.io/v1\""), lacks) {
            (false, Err(_)) => Ok(()),
            other => Err(format!("the older definitions are not in force: {other:?}")),
        }
    })
    .await;
}
