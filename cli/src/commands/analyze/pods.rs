//! Pods and namespaces: who should have a sidecar, has none, or has one that can't do its work.
//!
//! In: pods, namespaces and policies. Out: findings. Whether a pod should have a sidecar is decided by the
//! code that injects it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::json;
use tulle_control_plane::inject::{INJECT_LABEL, Namespace, SIDECAR, Settings, Skip, inject};
use tulle_control_plane::kinds::MtlsMode;
use tulle_control_plane::source::{Key, Object, Objects};

use super::Finding;
use super::codes::Code;

/// The values of the label that asks for a sidecar.
const VALUES: [&str; 2] = ["enabled", "disabled"];

/// All findings.
pub(super) fn findings(objects: &Objects) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, namespace) in &objects.namespaces {
        let found = labels(("Namespace", "", &key.name), namespace.metadata.labels.as_ref());
        findings.extend(found.into_iter().map(|finding| finding.written(namespace.place.as_ref())));
    }
    let mut unmeshed: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, pod) in &objects.pods {
        // What it says of injection itself is judged with the rest of the pod.
        let found = labels(("Pod", &key.namespace, &key.name), pod.metadata.labels.as_ref())
            .into_iter()
            .filter(|finding| finding.code == Code::InjectionLabelMisspelled);
        findings.extend(found.map(|finding| finding.written(pod.place.as_ref())));
        let Some(spec) = &pod.spec else { continue };
        if sidecar(spec).is_none() {
            *unmeshed.entry(&key.namespace).or_default() += 1;
        }
        of_pod(key, pod, spec, objects, &mut findings);
    }
    for (key, policy) in &objects.inbound_policies {
        let strict = policy.spec.mtls.as_ref().is_some_and(|mtls| mtls.mode == MtlsMode::Strict);
        if let (true, Some(count)) = (strict, unmeshed.get(key.namespace.as_str())) {
            let about = ("InboundPolicy", key.namespace.as_str(), key.name.as_str());
            let message = format!("only mTLS is accepted, and {count} pods of the namespace have no sidecar");
            let hint = "give them one if they are clients; probes of the kubelet get through either way";
            let finding = Finding::about(Code::StrictWithUnmeshed, about, "spec.mtls.mode", message, hint);
            findings.push(finding.written(policy.place.as_ref()));
        }
    }
    findings
}

/// The label for injection, or what looks like it.
fn labels(about: (&str, &str, &str), labels: Option<&BTreeMap<String, String>>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, value) in labels.into_iter().flatten() {
        if key == INJECT_LABEL {
            if !VALUES.contains(&value.as_str()) {
                let message = format!("{value:?} is no value of {INJECT_LABEL}");
                let hint = "use enabled or disabled";
                let field = format!("metadata.labels.{INJECT_LABEL}");
                findings.push(Finding::about(Code::InjectionValueUnknown, about, field, message, hint));
            }
        } else if is_like_inject(key) {
            let message = format!("the label {key} means nothing to Tulle");
            let hint = format!("if a sidecar is meant: {INJECT_LABEL}: enabled");
            let field = format!("metadata.labels.{key}");
            findings.push(Finding::about(Code::InjectionLabelMisspelled, about, field, message, hint));
        }
    }
    findings
}

fn is_like_inject(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    lower.contains("tulle") && lower.contains("inject") && !lower.ends_with("/injector")
}

fn of_pod(key: &Key, pod: &Object<Pod>, spec: &PodSpec, objects: &Objects, findings: &mut Vec<Finding>) {
    let about = ("Pod", key.namespace.as_str(), key.name.as_str());
    let mut add = |code, field: &str, message: String, hint: &str| {
        findings.push(Finding::about(code, about, field, message, hint).written(pod.place.as_ref()));
    };
    if let Some(container) = sidecar(spec) {
        let own = env!("CARGO_PKG_VERSION");
        let found = container.image.as_deref().and_then(version);
        if let Some(version) = found.filter(|version| version.trim_start_matches('v') != own) {
            let message = format!("its sidecar is version {version}, this program is {own}");
            add(Code::OldSidecar, "", message, "restart its workload: a new pod gets a new sidecar");
        }
        return;
    }
    let (metadata, namespace) = (&pod.metadata, objects.namespaces.get(&Key::new("", &key.namespace)));
    let template = json!({
        "metadata": { "labels": metadata.labels, "annotations": metadata.annotations },
        "spec": spec,
    });
    let namespace = Namespace {
        name: key.namespace.clone(),
        labels: namespace.and_then(|namespace| namespace.metadata.labels.clone()).unwrap_or_default(),
        annotations: namespace
            .and_then(|namespace| namespace.metadata.annotations.clone())
            .unwrap_or_default(),
    };
    // The very code that decides when a pod is made.
    let skip = match inject(&template, &namespace, &Settings::default()) {
        Ok(_) => {
            let hint = "restart its workload; if that does not help, its Events say why it gets none";
            return add(Code::PodNotInjected, "", "it should have a sidecar and has none".into(), hint);
        }
        Err(skip) if skip.is_wanted() => return,
        Err(skip) => skip,
    };
    let code = match &skip {
        Skip::Label { of, .. } if *of == "namespace" => return,
        Skip::Label { .. } => Code::InjectionValueUnknown,
        Skip::HostNetwork => Code::HostNetwork,
        Skip::SidecarUser { .. } => Code::SidecarUser,
        Skip::OtherMesh { .. } => Code::OtherMesh,
        _ => Code::PodNotInjected,
    };
    let hint = format!("then restart its workload, or label it {INJECT_LABEL}: disabled");
    add(code, "", format!("it gets no sidecar: {skip}"), &hint);
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn sidecar(spec: &PodSpec) -> Option<&Container> {
    containers(spec).find(|container| container.name == SIDECAR)
}

/// The tag of an image, where it is a version.
fn version(image: &str) -> Option<&str> {
    let name = image.split('@').next()?.rsplit('/').next()?;
    let (_, tag) = name.split_once(':')?;
    tag.trim_start_matches('v').starts_with(|first: char| first.is_ascii_digit()).then_some(tag)
}
