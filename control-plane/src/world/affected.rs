//! Which resources an object has a part in: the way from what a sidecar says of a resource back to the user's object.
//!
//! In: what the world is built from, with the decisions of that build (attached routes, policies that hold). Out: for each
//! route and policy the resources that would be other ones without it. It decides nothing, and may name a resource too
//! many, but never one too few: an object must not be called programmed while a sidecar still answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_mesh::xds::Kind;

use super::inbound::Inbound;
use super::outbound;
use super::routes::{Group, MeshRoute};
use super::services::{Port, Service};
use super::workloads::Workload;
use crate::source::ObjectRef;

/// A resource, as sidecars know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affected {
    /// Its type.
    pub kind: Kind,
    /// Its name on the wire.
    pub name: Arc<str>,
    /// The namespace of the clients that it is for, where others have another of the same name.
    pub clients: Option<Arc<str>>,
}

/// The resources of each object.
#[derive(Clone, Debug, Default)]
pub(super) struct Affects {
    by_object: BTreeMap<ObjectRef, BTreeSet<Affected>>,
}

impl Affects {
    /// Notes what has a part in the listener, routes and cluster of a port, for the clients of `consumer` or for all.
    pub(super) fn outbound(
        &mut self,
        service: &Service,
        port: &Port,
        group: Option<&Group>,
        consumer: Option<&str>,
        routes: &[MeshRoute],
        inbound: &Inbound<'_>,
    ) {
        let traffic = inbound.traffic;
        let clients: Option<Arc<str>> = consumer.map(Into::into);
        let listener = Affected { kind: Kind::Listener, name: port.service.to_string().into(), clients };
        let configuration = plain(Kind::Route, outbound::route_name(port, consumer));
        let cluster = plain(Kind::Cluster, port.cluster().to_string());
        for route in group.into_iter().flat_map(|group| group.members(routes)) {
            self.add(&route.subject.object, [&listener, &configuration]);
            for (backend, port) in route.backends() {
                if let Some((policy, _)) = traffic.of_port(backend, port) {
                    self.add(&policy.object, [&configuration]);
                }
            }
        }
        if let Some((policy, _)) = traffic.of_port(&service.key, port.name.as_deref()) {
            self.add(&policy.object, [&listener, &configuration, &cluster]);
        }
        for (policy, _) in inbound.telemetries.for_service(&service.key) {
            self.add(&policy.object, [&listener]);
        }
    }

    /// Notes what has a part in the inbound listeners of a workload, and in how it is reached.
    pub(super) fn inbound(
        &mut self,
        workload: &Workload,
        services: &[&Service],
        listeners: &[Arc<str>],
        inbound: &Inbound<'_>,
    ) {
        let listeners: Vec<_> =
            listeners.iter().map(|name| plain(Kind::Listener, name.to_string())).collect();
        let ports = services.iter().flat_map(|service| &service.ports);
        let endpoints: Vec<_> =
            ports.clone().map(|port| plain(Kind::Endpoint, port.cluster().to_string())).collect();
        for (policy, _) in inbound.all_policies(workload, services) {
            self.add(&policy.object, listeners.iter().chain(&endpoints));
        }
        for service in services {
            for port in &service.ports {
                if let Some((policy, _)) = inbound.traffic.of_port(&service.key, port.name.as_deref()) {
                    self.add(&policy.object, &listeners);
                }
            }
        }
        let keys: Vec<_> = services.iter().map(|service| &service.key).collect();
        for (policy, _) in inbound.telemetries.for_workload(&workload.key.namespace, &keys) {
            self.add(&policy.object, &listeners);
        }
        for policy in inbound.authorizations.holding(workload, services) {
            self.add(policy, &listeners);
        }
    }

    /// The resources of each object.
    pub(super) fn into_inner(self) -> BTreeMap<ObjectRef, BTreeSet<Affected>> {
        self.by_object
    }

    fn add<'a>(&mut self, object: &ObjectRef, resources: impl IntoIterator<Item = &'a Affected>) {
        let known = self.by_object.entry(object.clone()).or_default();
        known.extend(resources.into_iter().cloned());
    }
}

fn plain(kind: Kind, name: String) -> Affected {
    Affected { kind, name: name.into(), clients: None }
}
