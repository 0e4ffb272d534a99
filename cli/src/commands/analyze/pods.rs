//! Pods and namespaces: who should have a sidecar, has none, or has one that can't do its work.
//!
//! In: pods, namespaces and policies. Out: findings. A pod is meant to have a sidecar by its own label, else by its
//! namespace's.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use tulle_control_plane::kinds::MtlsMode;
use tulle_control_plane::source::{Key, Object, Objects};

use super::Finding;
use super::codes::Code;

/// The label that asks for a sidecar.
const INJECT: &str = "tulle.dev/inject";
/// Its values.
const VALUES: [&str; 2] = ["enabled", "disabled"];
/// The sidecar's container.
const SIDECAR: &str = "tulle-sidecar";
/// The user that it runs as.
const SIDECAR_USER: i64 = 2102;
/// The containers of other meshes.
const OTHER_MESHES: [&str; 3] = ["istio-proxy", "linkerd-proxy", "consul-dataplane"];

/// All findings.
pub(super) fn findings(objects: &Objects) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, namespace) in &objects.namespaces {
        let found = labels(("Namespace", "", &key.name), namespace.metadata.labels.as_ref());
        findings.extend(found.into_iter().map(|finding| finding.written(namespace.place.as_ref())));
    }
    let mut unmeshed: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, pod) in &objects.pods {
        let found = labels(("Pod", &key.namespace, &key.name), pod.metadata.labels.as_ref());
        findings.extend(found.into_iter().map(|finding| finding.written(pod.place.as_ref())));
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
        if key == INJECT {
            if !VALUES.contains(&value.as_str()) {
                let message = format!("{value:?} is no value of {INJECT}");
                let hint = "use enabled or disabled";
                let field = format!("metadata.labels.{INJECT}");
                findings.push(Finding::about(Code::InjectionValueUnknown, about, field, message, hint));
            }
        } else if is_like_inject(key) {
            let message = format!("the label {key} means nothing to Tulle");
            let hint = format!("if a sidecar is meant: {INJECT}: enabled");
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
    let own = pod.metadata.labels.as_ref().and_then(|labels| labels.get(INJECT));
    let namespace = objects.namespaces.get(&Key::new("", &key.namespace));
    let inherited = namespace.and_then(|namespace| namespace.metadata.labels.as_ref()?.get(INJECT));
    let wanted = own.or(inherited).is_some_and(|value| value == "enabled");
    let found = sidecar(spec);
    let mut add = |code, field: &str, message: String, hint: &str| {
        findings.push(Finding::about(code, about, field, message, hint).written(pod.place.as_ref()));
    };
    if let Some(version) = found.and_then(|container| version(container.image.as_deref()?)) {
        let own = env!("CARGO_PKG_VERSION");
        if version.trim_start_matches('v') != own {
            let message = format!("its sidecar is version {version}, this program is {own}");
            add(Code::OldSidecar, "", message, "restart its workload: a new pod gets a new sidecar");
        }
    }
    if !wanted {
        return;
    }
    if spec.host_network == Some(true) {
        let message =
            "it shares its node's network, where a redirection would take everybody's traffic".into();
        let hint = "label it tulle.dev/inject: disabled, or leave hostNetwork out";
        return add(Code::HostNetwork, "spec.hostNetwork", message, hint);
    }
    if let Some(other) = containers(spec).find(|container| OTHER_MESHES.contains(&container.name.as_str())) {
        let message = format!("it has the proxy of another mesh: {}", other.name);
        let hint = "take its namespace out of the other mesh, or label the pod tulle.dev/inject: disabled";
        return add(Code::OtherMesh, "spec.containers", message, hint);
    }
    let pod_user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let user = |container: &Container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod_user)
    };
    let mut apps = containers(spec).filter(|container| !container.name.starts_with("tulle-"));
    if let Some(same) = apps.find(|container| user(container) == Some(SIDECAR_USER)) {
        let message = format!("container {} runs as user {SIDECAR_USER}, the sidecar's", same.name);
        return add(Code::SidecarUser, "spec.securityContext.runAsUser", message, "run it as another user");
    }
    if found.is_none() {
        let hint = "restart its workload; if that does not help, its Events say why it gets none";
        add(Code::PodNotInjected, "", "it should have a sidecar and has none".into(), hint);
    }
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
