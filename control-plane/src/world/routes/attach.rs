//! Which routes hold for which port of which Service, and for whose requests (GEP-1294).
//!
//! In: routes and Services. Out: for each port the routes of all clients (producer routes, from the Service's namespace)
//! and, for single namespaces of clients, the routes that take their place (consumer routes). Kinds don't mix on a port:
//! GRPCRoute goes before HTTPRoute before TLSRoute before TCPRoute.

use std::collections::{BTreeMap, BTreeSet};

use super::read::{MeshRoute, RouteKind};
use crate::source::route::ParentRef;
use crate::source::{Key, ObjectRef};
use crate::world::report::{Condition, ParentStatus, Reference, Report};
use crate::world::services::{Addressed, Port, Protocol, Service, Services, port_number};

/// Routes of one kind, by their place in the list of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::world) struct Group {
    pub(in crate::world) kind: RouteKind,
    pub(super) members: Vec<usize>,
}

impl Group {
    /// Its routes.
    pub(in crate::world) fn members<'a>(
        &'a self,
        routes: &'a [MeshRoute],
    ) -> impl Iterator<Item = &'a MeshRoute> {
        self.members.iter().map(|index| &routes[*index])
    }
}

/// The routes of a port.
#[derive(Clone, Debug, Default)]
pub(in crate::world) struct PortRoutes {
    /// For all clients.
    pub(in crate::world) producer: Option<Group>,
    /// For clients of a namespace, instead.
    pub(in crate::world) consumers: BTreeMap<String, Group>,
}

/// The routes of each Service's ports.
#[derive(Debug, Default)]
pub(in crate::world) struct Attachments {
    by_port: BTreeMap<(Key, u16), PortRoutes>,
}

/// A port and, for a consumer route, the namespace of its clients.
type Slot = (Key, u16, Option<String>);

impl Attachments {
    pub(in crate::world) fn collect(routes: &[MeshRoute], services: &Services, report: &mut Report) -> Self {
        let mut wanted: BTreeMap<Slot, Vec<(RouteKind, usize)>> = BTreeMap::new();
        let mut entries = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            for (at, parent) in route.parents.iter().enumerate().filter(|(_, parent)| is_service(parent)) {
                let field = format!("spec.parentRefs[{at}]");
                let slots = match slots(route, parent, services) {
                    Ok(slots) => slots,
                    Err(fault) => {
                        let (part, reason, message, fix) = *fault;
                        report.error(&route.subject, format!("{field}{part}"), &message, fix);
                        entries.push((
                            index,
                            parent,
                            BTreeSet::new(),
                            Some(Condition::failed("Accepted", reason, message)),
                        ));
                        continue;
                    }
                };
                for slot in &slots {
                    let all = wanted.entry(slot.clone()).or_default();
                    if !all.contains(&(route.kind, index)) {
                        all.push((route.kind, index));
                    }
                }
                entries.push((index, parent, slots, None));
            }
        }

        let mut attached = Self::default();
        let mut lost: BTreeMap<(usize, Slot), String> = BTreeMap::new();
        for (slot, mut all) in wanted {
            all.sort();
            let Some((kind, winner)) = all.first().copied() else { continue };
            // TCP and TLS carry no conditions that could tell several TCPRoutes apart.
            let exclusive = kind == RouteKind::Tcp;
            let stays = |(position, (other, _)): &(usize, (RouteKind, usize))| {
                *other == kind && (!exclusive || *position == 0)
            };
            let (members, losers): (Vec<_>, Vec<_>) = all.into_iter().enumerate().partition(stays);
            for (_, (_, loser)) in losers {
                let message = format!("{} holds for the same port", routes[winner].subject.object);
                lost.insert((loser, slot.clone()), message);
            }
            let group = Group { kind, members: members.into_iter().map(|(_, (_, index))| index).collect() };
            let (service, port, consumer) = slot;
            let port = attached.by_port.entry((service, port)).or_default();
            match consumer {
                None => port.producer = Some(group),
                Some(namespace) => {
                    port.consumers.insert(namespace, group);
                }
            }
        }

        for (index, parent, slots, refused) in entries {
            let route = &routes[index];
            let conflicts: Vec<_> = slots
                .iter()
                .filter_map(|slot| lost.get(&(index, slot.clone())).map(|message| (slot.1, message)))
                .collect();
            let accepted = match (refused, conflicts.first()) {
                (Some(refused), _) => refused,
                (None, Some((port, message))) => {
                    let fix = "attach routes of one kind to a port; GRPCRoute goes before HTTPRoute, TLSRoute, TCPRoute";
                    if conflicts.len() == slots.len() {
                        report.warning(&route.subject, "spec.parentRefs", *message, fix);
                        Condition::failed("Accepted", "Conflicted", *message)
                    } else {
                        // It is in force on the others.
                        let message = format!("on port {port}, {message}");
                        report.warning(&route.subject, "spec.parentRefs", &message, fix);
                        Condition { message, ..route.accepted.clone() }
                    }
                }
                (None, None) => route.accepted.clone(),
            };
            let parent = parent_status(route, parent, vec![accepted, route.resolved.clone()]);
            report.status(&route.subject.object, parent);
        }
        attached
    }

    /// The routes of a port.
    pub(in crate::world) fn of(&self, service: &Key, port: u16) -> PortRoutes {
        self.by_port.get(&(service.clone(), port)).cloned().unwrap_or_default()
    }
}

/// Other parents, such as Gateways, are not the mesh's.
fn is_service(parent: &ParentRef) -> bool {
    let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
    (group.is_empty() || group == "core") && parent.kind.as_deref() == Some("Service")
}

fn parent_status(route: &MeshRoute, parent: &ParentRef, conditions: Vec<Condition>) -> ParentStatus {
    ParentStatus {
        parent: ObjectRef {
            kind: "Service",
            namespace: parent.namespace.clone().unwrap_or_else(|| route.key.namespace.clone()),
            name: parent.name.clone(),
        },
        reference: Reference {
            group: parent.group.clone().unwrap_or_default(),
            kind: "Service".into(),
            namespace: parent.namespace.clone(),
            name: parent.name.clone(),
            section_name: parent.section_name.clone(),
            port: parent.port,
        },
        conditions,
    }
}

/// Part of the field, reason for the condition, message, what to do.
type Fault = Box<(&'static str, &'static str, String, String)>;

fn slots(route: &MeshRoute, parent: &ParentRef, services: &Services) -> Result<BTreeSet<Slot>, Fault> {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.key.namespace);
    let Some(service) = services.find(namespace, &parent.name) else {
        let message = format!("there is no Service {namespace}/{}", parent.name);
        return Err(Box::new((
            ".name",
            "NoMatchingParent",
            message,
            "correct the name, or create the Service".into(),
        )));
    };
    let refused = |message: String, fix: &str| {
        Err::<BTreeSet<Slot>, Fault>(Box::new((".name", "NotAllowedByParent", message, fix.into())))
    };
    // Neither has an address by which requests to it could be told from others (GEP-1294).
    let instead = "attach the route to a Service with a cluster IP";
    if service.external_name.is_some() {
        return refused(format!("Service {namespace}/{} is of type ExternalName", parent.name), instead);
    }
    if service.addressed == Addressed::Headless {
        return refused(format!("Service {namespace}/{} is headless", parent.name), instead);
    }
    if service.client_affinity && route.rules.iter().any(|rule| rule.session.is_some()) {
        let message = format!(
            "Service {namespace}/{} has sessionAffinity: ClientIP, which is at odds with the route's sessionPersistence",
            parent.name
        );
        return refused(message, "set the Service's sessionAffinity to None, or remove sessionPersistence");
    }
    let ports = named_ports(service, parent);
    if ports.is_empty() {
        let (part, what) = match (&parent.section_name, parent.port) {
            (Some(section), _) => (".sectionName", format!("TCP port named {section:?}")),
            (None, Some(port)) => (".port", format!("TCP port {port}")),
            (None, None) => (".name", "TCP port".to_owned()),
        };
        let message = format!("Service {namespace}/{} has no {what}", parent.name);
        return Err(Box::new((part, "NoMatchingParent", message, "name one of the Service's ports".into())));
    }
    let is_http = matches!(route.kind, RouteKind::Http | RouteKind::Grpc);
    let carried: Vec<&Port> =
        ports.iter().copied().filter(|port| !is_http || port.protocol != Protocol::Tcp).collect();
    if carried.is_empty() {
        let message =
            format!("the port of Service {namespace}/{} is declared not to carry HTTP", parent.name);
        let fix = "set the port's appProtocol to http or grpc, or its name to http-...".into();
        return Err(Box::new((".name", "NotAllowedByParent", message, fix)));
    }
    let consumer = (service.key.namespace != route.key.namespace).then(|| route.key.namespace.clone());
    Ok(carried.into_iter().map(|port| (service.key.clone(), port.number, consumer.clone())).collect())
}

fn named_ports<'s>(service: &'s Service, parent: &ParentRef) -> Vec<&'s Port> {
    let number = parent.port.map(port_number);
    service
        .ports
        .iter()
        .filter(|port| number.is_none_or(|number| number == Some(port.number)))
        .filter(|port| parent.section_name.as_ref().is_none_or(|name| port.name.as_ref() == Some(name)))
        .collect()
}
