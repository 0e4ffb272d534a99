//! The pods in objects of all kinds that make pods.
//!
//! In: a Kubernetes object as JSON. Out: the place of its pod template.

use serde_json::Value;

/// Where the pod template of an object is; `None` for kinds that make no pods.
pub fn template<'a>(object: &'a mut Value) -> Option<&'a mut Value> {
    let path: &[&str] = match (object["apiVersion"].as_str()?, object["kind"].as_str()?) {
        ("v1", "Pod") => &[],
        ("apps/v1", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch/v1", "Job")
        | ("v1", "ReplicationController") => &["spec", "template"],
        ("v1", "PodTemplate") => &["template"],
        ("batch/v1", "CronJob") => &["spec", "jobTemplate", "spec", "template"],
        _ => return None,
    };
    path.iter().try_fold(object, |object: &'a mut Value, field| object.get_mut(*field))
}

/// What to call an object: `Deployment shop/web`.
pub fn label(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, meta) = (text(&object["kind"]), &object["metadata"]);
    let name = meta["name"].as_str().or(meta["generateName"].as_str()).unwrap_or_default();
    match text(&meta["namespace"]).as_str() {
        "" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}
