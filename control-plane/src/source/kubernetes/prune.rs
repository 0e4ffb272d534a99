//! What is forgotten of an object before it is kept: a mesh has many Pods, and reads little of each.
//!
//! In: an object as the API server has it. Out: the same without what nobody here reads. Of routes and policies nothing but
//! bookkeeping is taken: unknown fields in them are faults that their author must hear of.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// What `kubectl apply` remembers: a second copy of the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Prunes metadata. Without a version, an object that was touched and not changed is the same as before.
pub(super) fn metadata(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    meta.resource_version = None;
    meta.self_link = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            meta.annotations = None;
        }
    }
}

/// Prunes everything beside the metadata of an object of a kind.
pub(super) fn content(kind: &str, data: &mut Value) {
    match kind {
        "Pod" => {
            keep(data, &["spec", "status"]);
            if let Some(spec) = data.get_mut("spec") {
                keep(spec, POD_SPEC);
                each(spec.get_mut("containers"), CONTAINER);
                each(spec.get_mut("initContainers"), CONTAINER);
            }
            if let Some(status) = data.get_mut("status") {
                keep(status, POD_STATUS);
                each(status.get_mut("conditions"), &["type", "status"]);
            }
        }
        "EndpointSlice" => each(data.get_mut("endpoints"), ENDPOINT),
        "Namespace" | "Node" => keep(data, &[]),
        "Service" => keep(data, &["spec"]),
        _ => {}
    }
}

/// Takes the status out of an object: null, where it has none.
pub(super) fn status(data: &mut Value) -> Value {
    data.as_object_mut().and_then(|fields| fields.remove("status")).unwrap_or_default()
}

const POD_SPEC: &[&str] = &["serviceAccountName", "nodeName", "hostNetwork", "containers", "initContainers"];
const CONTAINER: &[&str] =
    &["name", "ports", "restartPolicy", "livenessProbe", "readinessProbe", "startupProbe"];
const POD_STATUS: &[&str] = &["phase", "conditions", "hostIP", "hostIPs", "podIP", "podIPs"];
const ENDPOINT: &[&str] = &["addresses", "conditions", "hostname", "nodeName", "zone"];

/// Keeps some fields of an object, if it is one.
fn keep(value: &mut Value, fields: &[&str]) {
    if let Some(object) = value.as_object_mut() {
        object.retain(|field, _| fields.contains(&field.as_str()));
    }
}

/// Keeps some fields of each object of a list, if it is one.
fn each(values: Option<&mut Value>, fields: &[&str]) {
    values.and_then(Value::as_array_mut).into_iter().flatten().for_each(|value| keep(value, fields));
}
