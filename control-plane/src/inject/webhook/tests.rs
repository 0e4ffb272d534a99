use axum::body::Body;
use axum::http::Request as HttpRequest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::sync::mpsc;
use tower::ServiceExt;

use super::*;
use crate::source::manifests::once::{self, Input};

mod authority;
mod ending;

const NAMESPACES: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {tulle.dev/inject: enabled}, annotations: {tulle.dev/log-level: debug}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other}
";

struct Answered {
    status: StatusCode,
    body: Value,
}

/// A webhook that knows [`NAMESPACES`], and what it tells.
fn webhook() -> (Webhook, mpsc::Receiver<Event>) {
    let loaded = once::load(&[Input::Text { name: "x".into(), text: NAMESPACES.into() }]).expect("text");
    let (_, loaded) = watch::channel(Arc::new(loaded));
    let (events, told) = events::channel();
    let webhook = Webhook {
        settings: Settings::default(),
        namespaces: Namespaces { loaded, client: None },
        metrics: Arc::new(Metrics::new()),
        events: Some(events),
    };
    (webhook, told)
}

/// Asks a webhook once; also what it told.
async fn ask(path: &str, body: impl Into<Body>) -> (Answered, Vec<Event>, String) {
    let (webhook, mut told) = webhook();
    let metrics = Arc::clone(&webhook.metrics);
    let request = HttpRequest::post(path).header("content-type", "application/json").body(body.into());
    let response = webhook.router().oneshot(request.expect("a request")).await.expect("an answer");
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    let body = serde_json::from_slice(&bytes).unwrap_or_default();
    let mut events = Vec::new();
    while let Ok(event) = told.try_recv() {
        events.push(event);
    }
    (Answered { status, body }, events, metrics.text().expect("text"))
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "web-7d9-",
            "ownerReferences": [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9", "uid": "1-2", "controller": true},
            ],
        },
        "spec": {"containers": [{"name": "app", "image": "web:1"}]},
    })
}

fn review(kind: (&str, &str, &str), namespace: &str, object: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": kind.0, "version": kind.1, "kind": kind.2},
            "resource": {"group": kind.0, "version": kind.1, "resource": "x"},
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": {"username": "ada"},
            "object": object,
            "oldObject": null,
            "dryRun": false,
            "options": {},
        },
    })
}

async fn ask_for(namespace: &str, pod: &Value) -> (Answered, Vec<Event>, String) {
    ask("/inject", review(("", "v1", "Pod"), namespace, pod).to_string()).await
}

#[tokio::test]
async fn a_pod_of_a_namespace_that_takes_part_gets_a_patch() {
    let (answer, events, metrics) = ask_for("shop", &pod()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer.body["kind"], "AdmissionReview");
    let response = &answer.body["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = STANDARD.decode(response["patch"].as_str().expect("text")).expect("base64");
    let patch: Value = serde_json::from_slice(&patch).expect("JSON");
    let init = patch
        .as_array()
        .expect("a list")
        .iter()
        .find(|operation| operation["path"] == "/spec/initContainers");
    let init = &init.expect("it is added")["value"];
    assert_eq!((&init[0]["name"], &init[1]["name"]), (&json!("tulle-init"), &json!("tulle-sidecar")));
    assert!(
        init[1]["args"].as_array().expect("a list").contains(&json!("--log-level=debug")),
        "the namespace's"
    );
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].reason, "Injected");
    let about = &events[0].about;
    assert_eq!(
        (about.kind.as_deref(), about.name.as_deref(), about.uid.as_deref(), about.namespace.as_deref()),
        (Some("ReplicaSet"), Some("web-7d9"), Some("1-2"), Some("shop"))
    );
    assert!(metrics.contains("admission_reviews_total{result=\"Injected\"} 1"), "{metrics}");
}

#[tokio::test]
async fn a_pod_that_can_have_none_is_let_in_and_its_owner_is_told() {
    let mut pod = pod();
    pod["spec"]["hostNetwork"] = true.into();
    let (answer, events, metrics) = ask_for("shop", &pod).await;
    let response = &answer.body["response"];
    assert_eq!(response["allowed"], true);
    assert!(response.get("patch").is_none());
    let warning = response["warnings"][0].as_str().expect("a warning");
    assert!(warning.starts_with("tulle: no sidecar was put into the pod: spec.hostNetwork"), "{warning}");
    assert_eq!(events[0].reason, "InjectionSkipped");
    assert!(metrics.contains("admission_reviews_total{result=\"HostNetwork\"} 1"), "{metrics}");
}

#[tokio::test]
async fn who_did_not_ask_is_left_alone_in_silence() {
    for namespace in ["other", "unknown"] {
        let (answer, events, _) = ask_for(namespace, &pod()).await;
        let response = &answer.body["response"];
        assert_eq!(response["allowed"], true);
        assert!(response.get("patch").is_none() && response.get("warnings").is_none(), "{response}");
        assert_eq!(events, []);
    }
}

#[tokio::test]
async fn a_dry_run_tells_nobody() {
    let mut review = review(("", "v1", "Pod"), "shop", &pod());
    review["request"]["dryRun"] = true.into();
    let (answer, events, _) = ask("/inject", review.to_string()).await;
    assert!(answer.body["response"]["patch"].is_string());
    assert_eq!(events, []);
}

#[tokio::test]
async fn what_is_no_review_is_an_error_that_the_failure_policy_handles() {
    let mut old = review(("", "v1", "Pod"), "shop", &pod());
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let service = review(("", "v1", "Service"), "shop", &json!({}));
    for body in
        ["", "{", "[]", "{\"apiVersion\": \"v1\", \"kind\": \"Pod\"}", &old.to_string(), &service.to_string()]
    {
        let (answer, ..) = ask("/inject", body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
    }
    let (answer, ..) = ask("/inject", vec![b' '; MAX_REVIEW + 1]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
}

fn fault_filter(status: u16) -> Value {
    json!({
        "apiVersion": "tulle.dev/v1alpha1", "kind": "HTTPFaultFilter", "metadata": {"name": "slow"},
        "spec": {"abort": {"statusCode": status}, "delay": {"duration": "2s"}},
    })
}

async fn judged(kind: (&str, &str, &str), object: &Value, old: Option<&Value>) -> Value {
    let mut review = review(kind, "shop", object);
    if let Some(old) = old {
        review["request"]["oldObject"] = old.clone();
    }
    ask("/validate", review.to_string()).await.0.body["response"].clone()
}

#[tokio::test]
async fn what_could_not_be_in_force_is_refused_as_tulle_check_says_it() {
    let kind = ("tulle.dev", "v1alpha1", "HTTPFaultFilter");
    assert_eq!(judged(kind, &fault_filter(503), None).await["allowed"], true);
    let mut bad = fault_filter(503);
    bad["spec"]["delay"]["duration"] = "2".into();
    let response = judged(kind, &bad, None).await;
    assert_eq!((&response["allowed"], &response["status"]["code"]), (&json!(false), &json!(422)));
    let said = response["status"]["message"].as_str().expect("text");
    let checked = once::load(&[Input::Text {
        name: "x".into(),
        text: {
            let mut object = bad.clone();
            object["metadata"]["namespace"] = "shop".into();
            object.to_string()
        },
    }]);
    assert_eq!(said, checked.expect("text").problems[0].message());
    // As it was stored: it must be possible to take its finalizer off.
    assert_eq!(judged(kind, &bad, Some(&bad)).await["allowed"], true);
    assert_eq!(judged(kind, &bad, Some(&fault_filter(503))).await["allowed"], false);
}

#[tokio::test]
async fn routes_of_gateways_are_none_of_ours() {
    let route = |parent: Value| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
            "spec": {"parentRefs": [parent], "rules": [{"fromTheFuture": 1}]},
        })
    };
    let kind = ("gateway.networking.k8s.io", "v1", "HTTPRoute");
    assert_eq!(judged(kind, &route(json!({"name": "edge"})), None).await["allowed"], true);
    let ours = route(json!({"name": "web", "kind": "Service", "group": ""}));
    let response = judged(kind, &ours, None).await;
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().expect("text");
    assert!(message.contains("fromTheFuture"), "{message}");
}
