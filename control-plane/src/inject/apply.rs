//! Puts a sidecar's parts into a pod, and takes them out again.
//!
//! In: a pod without sidecar as JSON, the parts. Out: the pod with them, and with an annotation that says which labels and
//! annotations were added, and what the probes were. What has that annotation is stripped of exactly those and of the
//! containers and volumes that are named as the sidecar's; nothing else is touched, whatever the annotation says.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::decide::Facts;
use super::options::{ANNOTATIONS, Options, Settings};
use super::probes::{self, Rewritten};
use super::template;
use super::{HEALTH_PORT, INIT, SIDECAR, STATUS_ANNOTATION, TLS_LABEL, TLS_MESH, VALIDATE};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
const DEFAULT_LOGS: &str = "kubectl.kubernetes.io/default-logs-container";
const SCRAPE: &str = "prometheus.io/scrape";
const SCRAPE_PORT: &str = "prometheus.io/port";
const SCRAPE_PATH: &str = "prometheus.io/path";
/// Without it, an emptyDir keeps the cluster's autoscaler from moving the pod.
const SAFE_TO_EVICT: &str = "cluster-autoscaler.kubernetes.io/safe-to-evict-local-volumes";

/// What injection may add, beside the annotations that a namespace gives.
const ADDED: [&str; 6] = [DEFAULT_CONTAINER, DEFAULT_LOGS, SCRAPE, SCRAPE_PORT, SCRAPE_PATH, SAFE_TO_EVICT];

/// What an injection added, for people and for the next injection.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status<'a> {
    version: &'static str,
    containers: Vec<&'a str>,
    volumes: Vec<&'a str>,
    annotations: Vec<&'a str>,
    /// What the kubelet asked before the sidecar did it.
    #[serde(skip_serializing_if = "Map::is_empty")]
    probes: &'a Map<String, Value>,
    /// Of the containers and volumes as they were asked for.
    hash: String,
}

/// Puts the sidecar into `bare`. Parts that `before`, the pod as it came, has already are taken as they are there: others
/// (defaults, other webhooks) may have added to them.
pub(super) fn apply(
    mut bare: Value,
    before: &Value,
    facts: &Facts,
    options: &Options,
    probes: &Rewritten,
    settings: &Settings,
) -> Value {
    let mut redirecting = to_value(&template::redirecting(facts, options, settings));
    let mut sidecar = to_value(&template::sidecar(facts, options, &probes.questions, settings));
    let mut volumes: Vec<Value> = template::volumes(settings).iter().map(to_value).collect();
    let hash = hash(&json!([redirecting, sidecar, volumes, options.native]));
    if status(before)["hash"] == hash {
        let list = if options.native { "initContainers" } else { "containers" };
        keep(&mut redirecting, "initContainers", before);
        keep(&mut sidecar, list, before);
        volumes.iter_mut().for_each(|volume| keep(volume, "volumes", before));
    }
    let annotations = annotations(facts, options, settings);

    let names = |values: &[Value]| values.iter().filter_map(name).map(str::to_owned).collect::<Vec<_>>();
    let added = [redirecting, sidecar];
    let (containers, volume_names) = (names(&added), names(&volumes));
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        containers: containers.iter().map(String::as_str).collect(),
        volumes: volume_names.iter().map(String::as_str).collect(),
        annotations: annotations.iter().map(|(name, _)| *name).collect(),
        probes: &probes.originals,
        hash,
    };
    let status = serde_json::to_string(&status).expect("text and lists of text are JSON");

    let [redirecting, sidecar] = added;
    if let Some(spec) = object(&mut bare, "spec") {
        if options.native {
            prepend(spec, "initContainers", [redirecting, sidecar]);
        } else {
            // Last, because those before it need the network, and nothing would take what is redirected.
            append(spec, "initContainers", [redirecting]);
            prepend(spec, "containers", [sidecar]);
        }
        append(spec, "volumes", volumes);
    }
    if let Some(meta) = object(&mut bare, "metadata") {
        if let Some(labels) = object_of(meta, "labels") {
            labels.insert(TLS_LABEL.into(), TLS_MESH.into());
        }
        if let Some(all) = object_of(meta, "annotations") {
            all.extend(annotations.into_iter().map(|(name, value)| (name.to_owned(), value.into())));
            all.insert(STATUS_ANNOTATION.into(), status.into());
        }
    }
    bare
}

/// Takes out what an injection put in; a pod without sidecar stays as it is.
pub fn uninject(template: &Value) -> Value {
    let mut bare = template.clone();
    if !template["metadata"]["annotations"][STATUS_ANNOTATION].is_string() {
        return bare;
    }
    let status = status(template);

    probes::restore(&mut bare, &status["probes"]);
    if let Some(spec) = bare.get_mut("spec").and_then(Value::as_object_mut) {
        remove_named(spec, "initContainers", &[INIT, VALIDATE, SIDECAR]);
        remove_named(spec, "containers", &[SIDECAR]);
        remove_named(spec, "volumes", &template::VOLUMES);
    }
    if let Some(meta) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
        let ours = status["annotations"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let ours: Vec<&str> =
            ours.filter(|name| ADDED.contains(name) || ANNOTATIONS.contains(name)).collect();
        remove_keys(meta, "annotations", &ours);
        remove_keys(meta, "annotations", &[STATUS_ANNOTATION]);
        remove_keys(meta, "labels", &[TLS_LABEL]);
    }
    if bare["metadata"].as_object().is_some_and(Map::is_empty)
        && let Some(pod) = bare.as_object_mut()
    {
        pod.shift_remove("metadata");
    }
    bare
}

/// The annotations that the pod gets, without those that it has.
fn annotations(facts: &Facts, options: &Options, settings: &Settings) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> =
        options.inherited.iter().map(|(name, value)| (*name, value.clone())).collect();
    if let Some(first) = facts.first_container() {
        all.extend([DEFAULT_CONTAINER, DEFAULT_LOGS].map(|name| (name, first.to_owned())));
    }
    // An application with metrics of its own keeps them: one pod has one such address.
    if ![SCRAPE, SCRAPE_PORT, SCRAPE_PATH].iter().any(|name| facts.annotations.contains_key(*name)) {
        all.extend([
            (SCRAPE, "true".into()),
            (SCRAPE_PORT, HEALTH_PORT.to_string()),
            (SCRAPE_PATH, "/metrics".into()),
        ]);
    }
    let volumes = template::volumes(settings);
    let local: Vec<&str> = volumes
        .iter()
        .filter(|volume| volume.empty_dir.is_some())
        .map(|volume| volume.name.as_str())
        .collect();
    all.push((SAFE_TO_EVICT, local.join(",")));
    all.retain(|(name, _)| !facts.annotations.contains_key(*name));
    all
}

/// What the annotation says. One that can't be read says nothing, and is no reason to leave a second sidecar.
fn status(template: &Value) -> Value {
    let status = template["metadata"]["annotations"][STATUS_ANNOTATION].as_str();
    status.and_then(|status| serde_json::from_str(status).ok()).unwrap_or_default()
}

/// Takes what `before` has under the same name in this list, if it says all that `wanted` does.
fn keep(wanted: &mut Value, list: &str, before: &Value) {
    let mut others = before["spec"][list].as_array().into_iter().flatten();
    if let Some(kept) = others.find(|other| name(other) == name(wanted) && covers(other, wanted)) {
        *wanted = kept.clone();
    }
}

fn hash(parts: &Value) -> String {
    let digest = Sha256::digest(parts.to_string());
    digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether every field of `wanted` is in `kept` with the same value. Lists of objects may have more entries there, in
/// between; other lists must be the same.
fn covers(kept: &Value, wanted: &Value) -> bool {
    match (kept, wanted) {
        (Value::Object(kept), Value::Object(wanted)) => {
            wanted.iter().all(|(name, wanted)| kept.get(name).is_some_and(|kept| covers(kept, wanted)))
        }
        (Value::Array(kept), Value::Array(wanted)) if wanted.iter().all(Value::is_object) => {
            let mut kept = kept.iter();
            wanted.iter().all(|wanted| kept.any(|kept| covers(kept, wanted)))
        }
        _ => kept == wanted,
    }
}

fn to_value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).expect("Kubernetes' types have text as keys")
}

fn name(value: &Value) -> Option<&str> {
    value["name"].as_str()
}

/// The object in this field, made where there is none.
fn object<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    object_of(value.as_object_mut()?, field)
}

fn object_of<'a>(map: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Map<String, Value>> {
    let value = map.entry(field).or_insert_with(|| json!({}));
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn list<'a>(spec: &'a mut Map<String, Value>, field: &str) -> Option<&'a mut Vec<Value>> {
    let value = spec.entry(field).or_insert_with(|| json!([]));
    if value.is_null() {
        *value = json!([]);
    }
    value.as_array_mut()
}

fn prepend(spec: &mut Map<String, Value>, field: &str, values: impl IntoIterator<Item = Value>) {
    if let Some(list) = list(spec, field) {
        list.splice(0..0, values);
    }
}

fn append(spec: &mut Map<String, Value>, field: &str, values: impl IntoIterator<Item = Value>) {
    if let Some(list) = list(spec, field) {
        list.extend(values);
    }
}

/// Removes entries by name, and the list with the last of them.
fn remove_named(spec: &mut Map<String, Value>, field: &str, names: &[&str]) {
    let Some(list) = spec.get_mut(field).and_then(Value::as_array_mut) else { return };
    let before = list.len();
    list.retain(|entry| !name(entry).is_some_and(|name| names.contains(&name)));
    if list.is_empty() && before > 0 {
        spec.shift_remove(field);
    }
}

/// Removes keys, and the object with the last of them.
fn remove_keys(meta: &mut Map<String, Value>, field: &str, keys: &[&str]) {
    let Some(map) = meta.get_mut(field).and_then(Value::as_object_mut) else { return };
    let before = map.len();
    map.retain(|key, _| !keys.contains(&key.as_str()));
    if map.is_empty() && before > 0 {
        meta.shift_remove(field);
    }
}
