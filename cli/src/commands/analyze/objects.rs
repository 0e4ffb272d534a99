//! What objects say of each other: routes without parents, policies and Services that select nothing, ports whose protocol
//! nobody tells.
//!
//! In: objects and the world that is made of them. Out: findings. What is not among the objects at all (no pod, no Workload)
//! is not known, and nothing is said of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tulle_control_plane::source::{Key, Object, Objects, Place};
use tulle_control_plane::world::World;
use tulle_mesh::model::Protocol;

use super::Finding;
use super::codes::Code;

/// Labels by key.
type Labels = BTreeMap<String, String>;

/// All findings.
pub(super) fn findings(objects: &Objects, world: &World) -> Vec<Finding> {
    let mut findings = Vec::new();
    let behind = Behind::of(objects);
    for (key, service) in &objects.services {
        of_service(key, service, world, &behind, &mut findings);
    }
    for (key, policy) in &objects.authorization_policies {
        for (index, target) in policy.spec.target_refs.iter().enumerate() {
            let Some(selector) = &target.selector else { continue };
            if behind.known() && behind.selected(&key.namespace, &selector.match_labels).next().is_none() {
                let field = format!("spec.targetRefs[{index}].selector");
                let message = "no pod or workload has these labels";
                let hint = "correct the labels; until then the policy holds for nothing";
                let about = ("AuthorizationPolicy", key.namespace.as_str(), key.name.as_str());
                let finding = Finding::about(Code::PolicySelectsNothing, about, field, message, hint);
                findings.push(finding.written(policy.place.as_ref()));
            }
        }
    }
    for (kind, key, place) in orphans(objects) {
        let hint = "name the Service whose clients it is for in parentRefs";
        let about = (kind, key.namespace.as_str(), key.name.as_str());
        let message = "it has no parent, and so no effect";
        let finding = Finding::about(Code::RouteWithoutParent, about, "spec.parentRefs", message, hint);
        findings.push(finding.written(place));
    }
    findings
}

/// Routes without any parent.
fn orphans(objects: &Objects) -> Vec<(&'static str, &Key, Option<&Arc<Place>>)> {
    let mut orphans = Vec::new();
    macro_rules! collect {
        ($($table:ident $kind:literal),*) => {$(
            for (key, route) in &objects.$table {
                if route.spec.parent_refs.as_ref().is_none_or(Vec::is_empty) {
                    orphans.push(($kind, key, route.place.as_ref()));
                }
            }
        )*};
    }
    // Four types that share nothing but the names of their fields.
    collect!(http_routes "HTTPRoute", grpc_routes "GRPCRoute", tls_routes "TLSRoute", tcp_routes "TCPRoute");
    orphans
}

fn of_service(
    key: &Key,
    service: &Object<Service>,
    world: &World,
    behind: &Behind<'_>,
    findings: &mut Vec<Finding>,
) {
    let Some(spec) = &service.spec else { return };
    let about = ("Service", key.namespace.as_str(), key.name.as_str());
    let external = spec.type_.as_deref() == Some("ExternalName");
    let mut add = |code, field: String, message: String, hint: &str| {
        findings.push(Finding::about(code, about, field, message, hint).written(service.place.as_ref()));
    };
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty() && !external);
    let selected: Vec<_> =
        selector.map(|labels| behind.selected(&key.namespace, labels).collect()).unwrap_or_default();
    if selector.is_some() && behind.known() && selected.is_empty() {
        let hint = "correct the labels, or start what has them; until then requests to it get 503";
        add(
            Code::ServiceSelectsNothing,
            "spec.selector".into(),
            "no pod or workload has these labels".into(),
            hint,
        );
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let hint =
            "use sessionPersistence in a BackendTrafficPolicy or a route, or a ConsistentHash of SourceIP";
        let message = "sessionAffinity: ClientIP means nothing to sidecars";
        add(Code::ClientAffinityIgnored, "spec.sessionAffinity".into(), message.into(), hint);
    }
    for (index, port) in spec.ports.iter().flatten().enumerate() {
        let field = format!("spec.ports[{index}]");
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        if protocol != "TCP" {
            let message = format!("{protocol} port {} does not go through the mesh", port.port);
            add(Code::UdpPort, field, message, "nothing has to be done, if that is known");
            continue;
        }
        let name = format!("{}.{}:{}", key.name, key.namespace, port.port);
        if !external && is_detected(world, &name, &key.namespace) {
            let message = format!("nothing tells the protocol of port {}", port.port);
            let hint = "set appProtocol, or begin the port's name with it (http-, grpc-, tcp-)";
            add(Code::AmbiguousProtocol, field.clone(), message, hint);
        }
        if let Some(IntOrString::String(target)) = &port.target_port
            && !selected.is_empty()
            && !selected.iter().any(|selected| selected.ports.contains(&target.as_str()))
        {
            let message = format!("no selected pod or workload has a port of the name {target:?}");
            let hint = "correct the name, or give the container's port this name";
            add(Code::TargetPortNotFound, format!("{field}.targetPort"), message, hint);
        }
    }
}

/// Whether the protocol of a port is found out from the first bytes.
fn is_detected(world: &World, name: &str, namespace: &str) -> bool {
    let listener = world.resolve(name, namespace).and_then(|key| world.listener(&key));
    listener.is_some_and(|listener| {
        let http = listener.chains.iter().any(|chain| matches!(chain.protocol, Protocol::Http(_)));
        http && listener.chains.iter().any(|chain| matches!(chain.protocol, Protocol::Tcp(_)))
    })
}

/// What Services may select.
struct Behind<'a> {
    all: Vec<Selectable<'a>>,
}

/// A pod or workload.
struct Selectable<'a> {
    namespace: &'a str,
    labels: Option<&'a Labels>,
    /// The names of its ports.
    ports: Vec<&'a str>,
}

impl<'a> Behind<'a> {
    fn of(objects: &'a Objects) -> Self {
        let pods = objects.pods.iter().map(|(key, pod)| Selectable {
            namespace: &key.namespace,
            labels: pod.metadata.labels.as_ref(),
            ports: port_names(&pod.value),
        });
        let workloads = objects.workloads.iter().map(|(key, workload)| Selectable {
            namespace: &key.namespace,
            labels: workload.metadata.labels.as_ref(),
            ports: workload.spec.ports.iter().filter_map(|port| port.name.as_deref()).collect(),
        });
        Self { all: pods.chain(workloads).collect() }
    }

    /// Whether it is known at all what runs.
    fn known(&self) -> bool {
        !self.all.is_empty()
    }

    fn selected<'s>(
        &'s self,
        namespace: &'s str,
        labels: &'s Labels,
    ) -> impl Iterator<Item = &'s Selectable<'a>> {
        let here = self.all.iter().filter(move |one| one.namespace == namespace);
        here.filter(move |one| {
            labels.iter().all(|(key, value)| one.labels.and_then(|own| own.get(key)) == Some(value))
        })
    }
}

fn port_names(pod: &Pod) -> Vec<&str> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|spec| {
        // A sidecar among the init containers runs beside the application.
        spec.containers.iter().chain(spec.init_containers.iter().flatten())
    });
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| port.name.as_deref()).collect()
}
