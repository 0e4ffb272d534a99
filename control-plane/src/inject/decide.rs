//! Whether a pod gets a sidecar.
//!
//! In: a pod without one, and its namespace. Out: what else is to be known of the pod, or the reason why not. The labels
//! decide as a pair: the pod's own goes before its namespace's. A pod in which a sidecar could not work, or would be gone
//! around in silence, gets none, whatever its labels say.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Container, PodTemplateSpec};
use serde::Deserialize;
use serde_json::Value;

use super::options::Options;
use super::{COMPONENT_LABEL, INIT, INJECT_LABEL, Namespace, SIDECAR, SIDECAR_USER, Settings, VALIDATE};

/// Why a pod gets no sidecar.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Skip {
    /// Neither the pod nor its namespace asks for one.
    NotEnabled,
    /// The pod's label says so.
    Disabled,
    /// The namespace's label says so.
    NamespaceDisabled,
    /// The label has a value that means nothing.
    Label {
        /// Whose: `pod` or `namespace`.
        of: &'static str,
        /// The value.
        value: String,
    },
    /// It shares its node's network, where a redirection would take everybody's traffic.
    HostNetwork,
    /// It is for Windows.
    Windows,
    /// It is a part of the mesh itself.
    ControlPlane,
    /// Its namespace is one that the mesh never touches.
    SystemNamespace(String),
    /// Another mesh's proxy is in it.
    OtherMesh {
        /// The name of the container.
        container: String,
    },
    /// A container or volume of its own has a name that the sidecar needs.
    Taken(String),
    /// A container runs as the sidecar's user: its traffic would go around the sidecar.
    SidecarUser {
        /// The name of the container.
        container: String,
    },
    /// An annotation has a value that can't be used.
    Annotation {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        expected: String,
    },
    /// It is no pod.
    Unreadable(String),
}

impl Skip {
    /// Whether someone wanted it so, and nobody need be told.
    pub fn is_wanted(&self) -> bool {
        matches!(
            self,
            Self::NotEnabled
                | Self::Disabled
                | Self::NamespaceDisabled
                | Self::ControlPlane
                | Self::SystemNamespace(_)
        )
    }

    /// The reason in one word, for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotEnabled => "NotEnabled",
            Self::Disabled => "Disabled",
            Self::NamespaceDisabled => "NamespaceDisabled",
            Self::Label { .. } => "InvalidLabel",
            Self::HostNetwork => "HostNetwork",
            Self::Windows => "Windows",
            Self::ControlPlane => "ControlPlane",
            Self::SystemNamespace(_) => "SystemNamespace",
            Self::OtherMesh { .. } => "OtherMesh",
            Self::Taken(_) => "NameTaken",
            Self::SidecarUser { .. } => "SidecarUser",
            Self::Annotation { .. } => "InvalidAnnotation",
            Self::Unreadable(_) => "Unreadable",
        }
    }
}

impl fmt::Display for Skip {
    /// The reason and what to do about it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEnabled => {
                write!(f, "neither the pod nor its namespace has the label {INJECT_LABEL}: enabled")
            }
            Self::Disabled => write!(f, "the pod has the label {INJECT_LABEL}: disabled"),
            Self::NamespaceDisabled => write!(f, "the namespace has the label {INJECT_LABEL}: disabled"),
            Self::Label { of, value } => {
                write!(f, "the {of}'s label {INJECT_LABEL} is {value:?}; write enabled or disabled")
            }
            Self::HostNetwork => f.write_str(
                "spec.hostNetwork is true: the sidecar would take the traffic of its whole node; remove it",
            ),
            Self::Windows => f.write_str("spec.os.name is windows; the sidecar runs on Linux"),
            Self::ControlPlane => f.write_str("it is a part of the control plane"),
            Self::SystemNamespace(name) => write!(f, "the mesh leaves pods of the namespace {name} alone"),
            Self::OtherMesh { container } => {
                write!(f, "container {container} is another mesh's; take the pod out of that mesh first")
            }
            Self::Taken(name) => {
                write!(f, "{name} has the name of a part of the sidecar; rename it")
            }
            Self::SidecarUser { container } => write!(
                f,
                "container {container} runs as user {SIDECAR_USER}, which is the sidecar's: its traffic would go around \
                 the mesh; give it another runAsUser"
            ),
            Self::Annotation { name, value, expected } => {
                write!(f, "annotation {name} is {value:?}; write {expected}")
            }
            Self::Unreadable(reason) => write!(f, "it is not a pod: {reason}"),
        }
    }
}

impl std::error::Error for Skip {}

/// What is known of a pod that gets a sidecar.
pub(super) struct Facts {
    pub(super) pod: PodTemplateSpec,
    pub(super) annotations: BTreeMap<String, String>,
}

impl Facts {
    /// The first container of the application.
    pub(super) fn first_container(&self) -> Option<&str> {
        self.containers().next().map(|container| container.name.as_str())
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = &Container> {
        self.pod.spec.iter().flat_map(|spec| &spec.containers)
    }

    /// All containers of the application, and those that run before them.
    pub(super) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        all_containers(&self.pod)
    }

    /// What injection does not change, but its owner may wonder about.
    pub(super) fn warnings(&self, options: &Options) -> Vec<String> {
        let mut warnings = Vec::new();
        let ports = self.containers().flat_map(|container| container.ports.iter().flatten());
        let udp: Vec<String> = ports
            .filter(|port| port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP"))
            .map(|port| port.container_port.to_string())
            .collect();
        if !udp.is_empty() {
            warnings.push(format!("the mesh carries TCP alone: ports {} stay as they are", udp.join(", ")));
        }
        let restarts = self.pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        if !options.native && restarts.is_some_and(|policy| policy != "Always") {
            warnings.push(
                "the pod does not end while its classic sidecar runs: let the application's last command be `curl -X \
                 POST 127.0.0.1:15000/drain`, or take the native sidecar"
                    .into(),
            );
        }
        for container in self.containers() {
            let hooks = container
                .lifecycle
                .iter()
                .flat_map(|hooks| [("postStart", &hooks.post_start), ("preStop", &hooks.pre_stop)]);
            for (name, _) in
                hooks.filter(|(_, hook)| hook.as_ref().is_some_and(|hook| hook.http_get.is_some()))
            {
                warnings.push(format!(
                    "the {name} hook of container {} asks in plaintext, and fails where mTLS is strict; write an exec hook",
                    container.name
                ));
            }
        }
        warnings
    }
}

/// The containers of other meshes.
const OTHER_MESHES: [&str; 9] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "kuma-sidecar",
    "kuma-init",
    "consul-dataplane",
];

/// Namespaces of Kubernetes itself.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

pub(super) fn decide(bare: &Value, namespace: &Namespace, settings: &Settings) -> Result<Facts, Skip> {
    let pod = PodTemplateSpec::deserialize(bare).map_err(|error| Skip::Unreadable(error.to_string()))?;
    let meta = pod.metadata.clone().unwrap_or_default();
    let labels = meta.labels.unwrap_or_default();
    if SYSTEM_NAMESPACES.contains(&namespace.name.as_str()) || namespace.name == settings.namespace {
        return Err(Skip::SystemNamespace(namespace.name.clone()));
    }
    if labels.contains_key(COMPONENT_LABEL) {
        return Err(Skip::ControlPlane);
    }
    let own = Wish::read(&labels).map_err(|value| Skip::Label { of: "pod", value })?;
    if own == Wish::Disabled {
        return Err(Skip::Disabled);
    }
    if own == Wish::Unsaid {
        match Wish::read(&namespace.labels).map_err(|value| Skip::Label { of: "namespace", value })? {
            Wish::Enabled => {}
            Wish::Disabled => return Err(Skip::NamespaceDisabled),
            Wish::Unsaid => return Err(Skip::NotEnabled),
        }
    }
    let facts = Facts { pod, annotations: meta.annotations.unwrap_or_default() };
    possible(&facts)?;
    Ok(facts)
}

/// What a label says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wish {
    Enabled,
    Disabled,
    Unsaid,
}

impl Wish {
    fn read(labels: &BTreeMap<String, String>) -> Result<Self, String> {
        match labels.get(INJECT_LABEL).map(String::as_str) {
            None => Ok(Self::Unsaid),
            Some("enabled") => Ok(Self::Enabled),
            Some("disabled") => Ok(Self::Disabled),
            Some(other) => Err(other.into()),
        }
    }
}

/// Whether a sidecar can do its work here.
fn possible(facts: &Facts) -> Result<(), Skip> {
    let spec = facts.pod.spec.as_ref().ok_or_else(|| Skip::Unreadable("it has no spec".into()))?;
    if spec.host_network == Some(true) {
        return Err(Skip::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Err(Skip::Windows);
    }
    if facts.first_container().is_none() {
        return Err(Skip::Unreadable("it has no containers".into()));
    }
    for container in facts.all_containers() {
        if OTHER_MESHES.contains(&container.name.as_str()) {
            return Err(Skip::OtherMesh { container: container.name.clone() });
        }
        if [SIDECAR, INIT, VALIDATE].contains(&container.name.as_str()) {
            return Err(Skip::Taken(format!("container {}", container.name)));
        }
    }
    let volumes = spec.volumes.iter().flatten().map(|volume| &volume.name);
    if let Some(name) = volumes.into_iter().find(|name| super::template::VOLUMES.contains(&name.as_str())) {
        return Err(Skip::Taken(format!("volume {name}")));
    }
    let default_user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    for container in facts.all_containers() {
        let own = container.security_context.as_ref().and_then(|context| context.run_as_user);
        if own.or(default_user) == Some(SIDECAR_USER) {
            return Err(Skip::SidecarUser { container: container.name.clone() });
        }
    }
    Ok(())
}

fn all_containers(pod: &PodTemplateSpec) -> impl Iterator<Item = &Container> {
    let specs = pod.spec.iter();
    specs.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}
