//! Which pods are stranded: they wait for rules that nobody will make any more.

use k8s_openapi::api::core::v1::{ContainerStatus, ObjectReference, Pod};
use kube::Resource;

use crate::inject::VALIDATE;

/// The exit code of the init container that shows whether traffic is redirected, when it is not: `tulle-sidecar validate`'s.
const NOT_REDIRECTED: i32 = 95;

/// A stranded pod.
#[derive(Clone, Debug)]
pub(super) struct Stranded {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) node: String,
    /// The version of it that is stranded.
    pub(super) version: Option<String>,
    /// The UID of the controller that would make it again.
    pub(super) owner: Option<String>,
    pub(super) reference: ObjectReference,
    /// An event has been published that asks for help.
    pub(super) told: bool,
}

impl Stranded {
    /// `None` for a pod that is well, is on its way out, or may still get well.
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        if meta.deletion_timestamp.is_some() {
            return None;
        }
        let containers = pod.status.as_ref()?.init_container_statuses.as_ref()?;
        containers.iter().find(|container| container.name == VALIDATE && has_failed(container))?;
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Some(Self {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            node: pod.spec.as_ref()?.node_name.clone()?,
            version: meta.resource_version.clone(),
            owner: owner.map(|owner| owner.uid.clone()),
            reference: pod.object_ref(&()),
            told: false,
        })
    }
}

/// Whether it has ended, the last time, because traffic is not redirected. While it runs, it may yet succeed.
fn has_failed(container: &ContainerStatus) -> bool {
    let now = container.state.as_ref();
    let before = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let ended = now.and_then(|state| state.terminated.as_ref());
    let waits = now.is_some_and(|state| state.waiting.is_some());
    ended.or(before.filter(|_| waits)).is_some_and(|ended| ended.exit_code == NOT_REDIRECTED)
}

/// Whether a pod's condition `Ready` is true.
pub(super) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
