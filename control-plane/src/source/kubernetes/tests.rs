use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::mirror::{Absence, Mirror, Reading};
use super::reflect::reading;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::source::{Key, Kind, KindVisitor, Objects, Severity};

fn object(json: Value) -> DynamicObject {
    serde_json::from_value(json).expect("an object")
}

fn service(name: &str, port: u16) -> Reading<Service> {
    reading(object(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop", "resourceVersion": fastrand::u32(..).to_string() },
        "spec": { "ports": [{ "port": port }] },
    })))
}

fn broken(name: &str) -> Reading<Service> {
    reading(object(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": { "ports": [{ "port": "eighty" }] },
    })))
}

/// Every kind but one has been listed, and is empty.
struct Listed<'a>(&'a Mirror, &'static str);

impl KindVisitor for Listed<'_> {
    fn visit<T: Kind>(&mut self) {
        if T::KIND != self.1 {
            self.0.replace::<T>(Vec::new());
        }
    }
}

fn mirror() -> (Mirror, Arc<Health>) {
    let health = Arc::new(Health::default());
    (Mirror::new(Arc::clone(&health), Arc::new(Metrics::new())), health)
}

#[test]
fn nothing_is_said_before_every_kind_is_known() {
    let (mirror, health) = mirror();
    Objects::visit_kinds(&mut Listed(&mirror, "HTTPRoute"));
    assert!(mirror.take().is_none(), "a world without routes is not the world");
    assert!(health.report().1.contains("HTTPRoute: not read yet"));
    mirror.absent::<gateway_api::experimental::httproutes::HttpRoute>(Absence::NotInstalled);
    let loaded = mirror.take().expect("all is known");
    assert_eq!(loaded.problems.len(), 1, "{:?}", loaded.problems);
    assert_eq!(loaded.problems[0].severity, Severity::Warning);
    assert_eq!(loaded.problems[0].reason, "the cluster does not have HTTPRoute");
    assert!(loaded.problems[0].fix.contains("gateway.networking.k8s.io"));
    assert!(mirror.take().is_none(), "nothing has changed since");
}

#[test]
fn a_broken_object_keeps_its_last_good_version() {
    let (mirror, _) = mirror();
    Objects::visit_kinds(&mut Listed(&mirror, ""));
    mirror.replace(vec![service("cart", 80), broken("web")]);
    let first = mirror.take().expect("objects came");
    let cart = first.objects.find::<Service>("shop", "cart").expect("it is sound").clone();
    assert!(first.objects.find::<Service>("shop", "web").is_none(), "it was never good");
    assert_eq!(first.problems[0].field, "spec.ports[0].port");

    mirror.apply(broken("cart"));
    let second = mirror.take().expect("there is a problem more");
    assert!(Arc::ptr_eq(&second.objects.find::<Service>("shop", "cart").expect("kept").value, &cart.value));
    assert_eq!(second.problems.len(), 2);

    // Also over another list.
    mirror.replace(vec![broken("cart"), service("web", 80)]);
    let third = mirror.take().expect("one is mended");
    assert!(Arc::ptr_eq(&third.objects.find::<Service>("shop", "cart").expect("kept").value, &cart.value));
    assert_eq!(third.problems.len(), 1);

    mirror.delete::<Service>(&Key::new("shop", "cart"));
    let last = mirror.take().expect("it is gone");
    assert!(last.objects.find::<Service>("shop", "cart").is_none() && last.problems.is_empty());
}

#[test]
fn what_was_touched_and_not_changed_is_the_same() {
    let (mirror, _) = mirror();
    Objects::visit_kinds(&mut Listed(&mirror, ""));
    mirror.replace(vec![service("cart", 80)]);
    let before = mirror.take().expect("it came");
    mirror.apply(service("cart", 80));
    mirror.replace(vec![service("cart", 80)]);
    assert!(mirror.take().is_none());
    mirror.apply(service("web", 80));
    let after = mirror.take().expect("another came");
    let cart = |objects: &Objects| Arc::clone(&objects.find::<Service>("shop", "cart").expect("there").value);
    assert!(Arc::ptr_eq(&cart(&before.objects), &cart(&after.objects)));
    mirror.replace(vec![service("web", 80)]);
    assert_eq!(mirror.take().expect("one is not listed any more").objects.services.len(), 1);
}

#[test]
fn little_is_kept_of_a_pod() {
    let pod = reading::<Pod>(object(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "cart-1", "namespace": "shop", "uid": "7", "labels": { "app": "cart" },
            "annotations": { "kubectl.kubernetes.io/last-applied-configuration": "{}", "tulle.dev/status": "{}" },
            "managedFields": [{ "manager": "kubectl" }], "resourceVersion": "5",
        },
        "spec": {
            "serviceAccountName": "cart", "nodeName": "n1", "hostNetwork": false,
            "volumes": [{ "name": "large" }],
            "containers": [{
                "name": "app", "image": "app", "env": [{ "name": "A", "value": "b" }],
                "ports": [{ "containerPort": 80 }], "readinessProbe": { "tcpSocket": { "port": 80 } },
            }],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "startTime": "2026-01-01T00:00:00Z",
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
            "containerStatuses": [],
        },
    })));
    assert!(pod.problems.is_empty(), "{:?}", pod.problems);
    let kept = serde_json::to_value(pod.value.expect("it is sound")).expect("JSON");
    assert_eq!(
        kept,
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "annotations": { "tulle.dev/status": "{}" }, "labels": { "app": "cart" }, "name": "cart-1",
                "namespace": "shop", "uid": "7",
            },
            "spec": {
                "containers": [{
                    "name": "app", "ports": [{ "containerPort": 80 }],
                    "readinessProbe": { "tcpSocket": { "port": 80 } },
                }],
                "hostNetwork": false, "nodeName": "n1", "serviceAccountName": "cart",
            },
            "status": {
                "conditions": [{ "status": "True", "type": "Ready" }],
                "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }],
            },
        })
    );
}

#[test]
fn what_a_newer_cluster_says_beside_is_no_fault() {
    let node = reading::<Node>(object(json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": "a" } },
        "spec": { "tomorrow": true },
        "status": { "tomorrow": true },
    })));
    assert!(node.problems.is_empty(), "{:?}", node.problems);
    assert_eq!(node.key, Key::new("", "n1"));
    assert!(node.value.expect("it is sound").spec.is_none());
}
