//! The mesh, made of objects.
//!
//! In: [`Objects`], whatever their source. Out: the model's resources by name, conditions and problems of the objects, and
//! (from one state to the next) which resources changed. Building is a pure function: the same objects give the same
//! world, whatever came before. It never does I/O and never fails; what is wrong with an object is a [`Problem`], and the
//! rest of the world stands.
//!
//! Names follow the wire contracts: a port's listener is `<fqdn>:<port>`, its route configuration, cluster and endpoints are
//! `outbound|<port>||<fqdn>`, a workload's inbound listener is `tulle/inbound/<ip>:<port>`, the one for all ports of an
//! address (for sidecars that capture connections) `tulle/inbound/<ip>`. Clients of a namespace with
//! consumer routes get a listener of their own: its key in the world is `<fqdn>:<port>~<namespace>`, its name on the wire
//! is that of the port all the same, and it names the route configuration `outbound|<port>|~<namespace>|<fqdn>`.
//! A workload's address `<ip>:<port>` that is dialled directly is a listener and a cluster `outbound|<port>||<ip>`; all ports of it
//! that no manifest names are the listener `<ip>:0` and the cluster `outbound|0||<ip>`, however many are dialled.
//! The cluster `inbound|<port>||` to which inbound listeners lead is not here: the sidecar makes it, since only it knows
//! where its application listens.

mod affected;
mod authorization;
mod captured;
mod changes;
mod dns;
mod endpoints;
mod inbound;
mod names;
mod outbound;
mod policies;
mod report;
mod routes;
mod services;
mod telemetry;
mod traffic;
mod virtual_addresses;
mod workloads;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;
use tulle_mesh::address::any_port_listener;
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::model::{
    Cluster, DnsName, EndpointAddress, Listener, LoadAssignment, PerMillion, RouteConfiguration,
};

pub use affected::Affected;
pub use changes::{Changed, Changes};
pub use names::SIDECAR_PORTS;
pub use report::{Condition, ParentStatus, Reference};
pub use virtual_addresses::{RangeError, VirtualAddresses, VirtualRange};

use crate::source::{ObjectRef, Objects, Problem};
use affected::Affects;
use authorization::Authorizations;
use endpoints::{Endpoints, Slices};
use inbound::Inbound;
use names::Names;
use policies::Attached;
use report::Report;
use routes::{Attachments, Builder, read_all};
use services::{Addressed, Services};
use telemetry::Telemetries;
use workloads::Workloads;

/// What holds for the whole mesh.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// Under which identities are named.
    pub trust_domain: TrustDomain,
    /// The end of Services' names, `cluster.local`.
    pub cluster_domain: String,
    /// The control plane's own namespace: a TelemetryPolicy for it holds for the whole mesh.
    pub namespace: String,
    /// Which part of the requests without a sampling decision is traced where no TelemetryPolicy says.
    pub sampling: PerMillion,
    /// What virtual addresses are taken from, one range for each family; empty: none are given.
    pub virtual_ranges: Vec<VirtualRange>,
}

/// Resources of one type, by key.
pub type Resources<T> = BTreeMap<Arc<str>, Arc<T>>;

/// The mesh.
#[derive(Clone, Debug, Default)]
pub struct World {
    listeners: Resources<Listener>,
    routes: Resources<RouteConfiguration>,
    clusters: Resources<Cluster>,
    endpoints: Resources<LoadAssignment>,
    dns: Resources<DnsName>,
    virtual_addresses: VirtualAddresses,
    names: Names,
    workloads: Vec<MeshWorkload>,
    statuses: BTreeMap<ObjectRef, Vec<ParentStatus>>,
    affected: BTreeMap<ObjectRef, BTreeSet<Affected>>,
    problems: Vec<Problem>,
}

/// A workload with a sidecar.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MeshWorkload {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Who it is; `None` where its service account's name can't be part of an identity.
    pub identity: Option<SpiffeId>,
    /// The keys (and names) of its inbound listeners.
    pub inbound: Vec<Arc<str>>,
    /// The application's port behind each mesh port.
    #[serde(skip)]
    pub apps: BTreeMap<u16, u16>,
}

impl World {
    /// A world without objects, in which these virtual addresses were chosen before.
    pub fn with_virtual_addresses(virtual_addresses: VirtualAddresses) -> Self {
        Self { virtual_addresses, ..Self::default() }
    }

    /// Builds the world from objects.
    pub fn build(objects: &Objects, settings: &MeshSettings) -> Self {
        Self::build_with(objects, settings, VirtualAddresses::default())
    }

    fn build_with(
        objects: &Objects,
        settings: &MeshSettings,
        mut virtual_addresses: VirtualAddresses,
    ) -> Self {
        let mut report = Report::default();
        let mut services = Services::collect(objects, &settings.cluster_domain, &mut report);
        services.choose_addresses(&mut virtual_addresses, &settings.virtual_ranges, &mut report);
        let workloads = Workloads::collect(objects, &settings.trust_domain, &services, &mut report);
        let slices = Slices::collect(objects);
        let before = inbound::before(&workloads, &services, &slices);

        let traffic = Attached::collect(&objects.backend_traffic_policies, &services, &mut report);
        let accepted = Attached::collect(&objects.inbound_policies, &services, &mut report);
        let observed = Attached::collect(&objects.telemetry_policies, &services, &mut report);
        let authorizations = Authorizations::collect(objects, &services, &settings.trust_domain, &mut report);
        let telemetries = Telemetries {
            policies: &observed,
            services: &services,
            sampling: settings.sampling,
            mesh: &settings.namespace,
        };
        let inbound = Inbound {
            policies: &accepted,
            traffic: &traffic,
            authorizations: &authorizations,
            telemetries: &telemetries,
            trust_domain: &settings.trust_domain,
        };
        let plaintext = inbound.plaintext(&workloads, &before);
        let endpoints = Endpoints { objects, workloads: &workloads, slices: &slices, plaintext: &plaintext };
        let routes = read_all(objects, &services, &mut report);
        let attachments = Attachments::collect(&routes, &services, &mut report);

        let mut world = Self { names: Names::new(&services), virtual_addresses, ..Self::default() };
        let mut affects = Affects::default();
        world.add_services(&services, &routes, &attachments, &inbound, &endpoints, &mut affects, &mut report);
        for (workload, services) in workloads.iter().zip(&before).filter(|(workload, _)| workload.meshed) {
            world.add_inbound(workload, services, &inbound, &workloads, &mut report);
            world.add_direct(workload, services, &inbound, &endpoints, &mut report);
            if let Some(added) = world.workloads.last() {
                affects.inbound(workload, services, &added.inbound, &inbound);
            }
        }
        world.affected = affects.into_inner();
        report.judge_policies();
        world.statuses = report.statuses;
        world.problems = report.problems;
        world.problems.sort();
        world.problems.dedup();
        world
    }

    #[expect(clippy::too_many_arguments, reason = "one step of the function above")]
    fn add_services(
        &mut self,
        services: &Services,
        routes: &[routes::MeshRoute],
        attachments: &Attachments,
        inbound: &Inbound<'_>,
        endpoints: &Endpoints<'_>,
        affects: &mut Affects,
        report: &mut Report,
    ) {
        let (traffic, telemetries) = (inbound.traffic, inbound.telemetries);
        let telemetry: BTreeMap<_, _> = services
            .iter()
            .map(|service| (&service.key, telemetries.of_service(&service.key, report)))
            .collect();
        let mut builder = Builder { routes, policies: traffic, report };
        for service in services.iter() {
            for port in &service.ports {
                let attached = attachments.of(&service.key, port.number);
                let key: Arc<str> = port.service.to_string().into();
                let observed = &telemetry[&service.key];
                affects.outbound(service, port, attached.producer.as_ref(), None, routes, inbound);
                let made = outbound::listener(
                    service,
                    port,
                    attached.producer.as_ref(),
                    None,
                    observed,
                    &mut builder,
                );
                self.add_listener(key.clone(), made);
                let mut consumers = BTreeMap::new();
                for (namespace, group) in &attached.consumers {
                    let own: Arc<str> = format!("{key}~{namespace}").into();
                    affects.outbound(service, port, Some(group), Some(namespace), routes, inbound);
                    let made = outbound::listener(
                        service,
                        port,
                        Some(group),
                        Some(namespace),
                        observed,
                        &mut builder,
                    );
                    self.add_listener(own.clone(), made);
                    consumers.insert(namespace.clone(), own);
                }
                self.names.add_port(service, port.number, key, consumers);
            }
        }
        for service in services.iter() {
            let mut assignments = Vec::new();
            let hosts = endpoints.hosts(service);
            for port in &service.ports {
                let cluster = outbound::cluster(service, port, traffic);
                let name: Arc<str> = cluster.name.as_str().into();
                self.clusters.insert(name.clone(), Arc::new(cluster));
                if service.external_name.is_some() {
                    continue;
                }
                let assignment = endpoints.of(service, port);
                for endpoint in assignment.endpoints() {
                    if let (EndpointAddress::Socket(address), false) =
                        (&endpoint.address, endpoint.hostname.is_empty())
                    {
                        self.names.add_endpoint(&endpoint.hostname, service, *address);
                    }
                }
                if service.addressed == Addressed::Headless {
                    self.names.add_hosts(&hosts, service, &assignment);
                }
                assignments.push(assignment.clone());
                self.endpoints.insert(name, Arc::new(assignment));
            }
            for name in dns::names(service, &hosts, &assignments) {
                self.dns.insert(name.name.as_str().into(), Arc::new(name));
            }
        }
    }

    fn add_listener(&mut self, key: Arc<str>, (listener, routes): outbound::Made) {
        self.listeners.insert(key, Arc::new(listener));
        if let Some(routes) = routes {
            self.routes.insert(routes.name.as_str().into(), Arc::new(routes));
        }
    }

    fn add_inbound(
        &mut self,
        workload: &workloads::Workload,
        services: &[&services::Service],
        inbound: &Inbound<'_>,
        workloads: &Workloads,
        report: &mut Report,
    ) {
        let mut listeners = inbound.listeners(workload, services, report);
        let own = captured::own_addresses(workload, workloads);
        listeners.extend(own.map(|ip| inbound.captured(workload, services, ip, report)));
        let mut keys = Vec::new();
        for listener in listeners {
            let key: Arc<str> = listener.name.as_str().into();
            keys.push(key.clone());
            self.listeners.entry(key).or_insert_with(|| Arc::new(listener));
        }
        self.workloads.push(MeshWorkload {
            namespace: workload.key.namespace.clone(),
            name: workload.key.name.clone(),
            identity: workload.identity.clone(),
            inbound: keys,
            apps: workload.ports.iter().map(|port| (port.mesh, port.number)).collect(),
        });
    }

    fn add_direct(
        &mut self,
        workload: &workloads::Workload,
        services: &[&services::Service],
        inbound: &Inbound<'_>,
        endpoints: &Endpoints<'_>,
        report: &mut Report,
    ) {
        let keys: Vec<_> = services.iter().map(|service| &service.key).collect();
        let telemetry = inbound.telemetries.of_workload(&workload.key.namespace, &keys, report);
        let declared = workload.ports.iter().flat_map(|port| {
            workload.addresses.iter().map(move |ip| (SocketAddr::new(*ip, port.mesh), port.clone()))
        });
        let own: Vec<IpAddr> = match workload.is_captured() {
            true => captured::own_addresses(workload, endpoints.workloads).collect(),
            false => Vec::new(),
        };
        let named = inbound.known_ports(workload, services).into_iter().flat_map(|(number, port)| {
            own.iter().map(move |ip| (SocketAddr::new(*ip, number), port.clone()))
        });
        for (address, port) in declared.chain(named) {
            let key: Arc<str> = address.to_string().into();
            if self.names.is_service(address.ip()) || self.listeners.contains_key(&key) {
                continue;
            }
            let protocol = inbound.protocol(workload, services, &port);
            let listener = outbound::direct_listener(address, protocol, &telemetry);
            let cluster = outbound::direct(address, protocol);
            let name: Arc<str> = cluster.name.as_str().into();
            let assignment = endpoints.direct(cluster.name.clone(), workload, address);
            self.listeners.insert(key, Arc::new(listener));
            self.clusters.insert(name.clone(), Arc::new(cluster));
            self.endpoints.insert(name, Arc::new(assignment));
        }
        // Who answers on a port that nobody names is pinned as everywhere: without an identity there is nothing to pin.
        let identity = workload.identity.as_ref();
        let Some(identity) = identity.filter(|_| inbound.takes_mtls_on_any_port(workload, services)) else {
            return;
        };
        for ip in own {
            if !self.names.is_service(ip) {
                let any = SocketAddr::new(ip, 0);
                let listener = outbound::direct_listener(any, services::Protocol::Detect, &telemetry);
                let cluster = outbound::any_port(ip, identity);
                self.listeners.insert(any_port_listener(ip).into(), Arc::new(listener));
                self.clusters.insert(cluster.name.as_str().into(), Arc::new(cluster));
                self.names.add_any_port(ip, workload.skipped.clone());
            }
        }
    }

    /// Brings the world to the state of `objects`. Resources that did not change keep their `Arc`, so that whatever is
    /// kept beside them (encoded bytes, a hash) stays good.
    pub fn update(&mut self, objects: &Objects, settings: &MeshSettings) -> Changes {
        let mut next = Self::build_with(objects, settings, self.virtual_addresses.clone());
        let changes = Changes {
            listeners: changes::carry_over(&self.listeners, &mut next.listeners),
            routes: changes::carry_over(&self.routes, &mut next.routes),
            clusters: changes::carry_over(&self.clusters, &mut next.clusters),
            endpoints: changes::carry_over(&self.endpoints, &mut next.endpoints),
            dns: changes::carry_over(&self.dns, &mut next.dns),
            names: self.names != next.names,
            findings: self.problems != next.problems || self.statuses != next.statuses,
        };
        *self = next;
        changes
    }

    /// The key of the listener that `name` means to a client in `namespace`: the name of a port's listener, an alias of it
    /// (any form of the Service's name, its virtual address), a workload's address, or an inbound listener's name.
    /// Ask again after every change: a key may get a variant for a namespace, and lose it.
    pub fn resolve(&self, name: &str, namespace: &str) -> Option<Arc<str>> {
        if let Some((key, listener)) = self.listeners.get_key_value(name)
            && listener.direction == tulle_mesh::model::TrafficDirection::Inbound
        {
            return Some(key.clone());
        }
        let key = self.names.resolve(name, namespace)?;
        let own = self.listeners.get_key_value(&key);
        let found = own.or_else(|| self.listeners.get_key_value(self.names.any_port(&key)?.as_str()));
        found.map(|(key, _)| key.clone())
    }

    /// Every address of a Service's port, with the keys of all listeners that it may mean.
    pub fn service_addresses(
        &self,
    ) -> impl Iterator<Item = (SocketAddr, impl Iterator<Item = &Arc<str>> + Clone)> {
        self.names.service_addresses()
    }

    /// The addresses of workloads of which every port leads to a sidecar, and their ports that do not.
    pub fn any_port_addresses(&self) -> impl Iterator<Item = (IpAddr, &[RangeInclusive<u16>])> {
        self.names.any_port_addresses().map(|(ip, but)| (ip, but.as_slice()))
    }

    /// The key of the answer for a name that a client in `namespace` looks up: any form of a Service's or an endpoint's
    /// name, or of one of their ports'.
    pub fn resolve_dns(&self, name: &str, namespace: &str) -> Option<Arc<str>> {
        let key = self.names.resolve_dns(name, namespace)?;
        self.dns.get_key_value(key.as_str()).map(|(key, _)| key.clone())
    }

    /// The listener with a key from [`Self::resolve`].
    pub fn listener(&self, key: &str) -> Option<&Arc<Listener>> {
        self.listeners.get(key)
    }

    /// A route configuration.
    pub fn route(&self, name: &str) -> Option<&Arc<RouteConfiguration>> {
        self.routes.get(name)
    }

    /// A cluster.
    pub fn cluster(&self, name: &str) -> Option<&Arc<Cluster>> {
        self.clusters.get(name)
    }

    /// The endpoints of a cluster.
    pub fn assignment(&self, name: &str) -> Option<&Arc<LoadAssignment>> {
        self.endpoints.get(name)
    }

    /// All listeners, by key.
    pub fn listeners(&self) -> &Resources<Listener> {
        &self.listeners
    }

    /// All route configurations.
    pub fn routes(&self) -> &Resources<RouteConfiguration> {
        &self.routes
    }

    /// All clusters.
    pub fn clusters(&self) -> &Resources<Cluster> {
        &self.clusters
    }

    /// All load assignments.
    pub fn assignments(&self) -> &Resources<LoadAssignment> {
        &self.endpoints
    }

    /// All answers for resolvers, by name.
    pub fn dns(&self) -> &Resources<DnsName> {
        &self.dns
    }

    /// The virtual addresses that were chosen, also those of Services that are gone.
    pub fn virtual_addresses(&self) -> &VirtualAddresses {
        &self.virtual_addresses
    }

    /// The workloads with a sidecar.
    pub fn workloads(&self) -> &[MeshWorkload] {
        &self.workloads
    }

    /// The keys of the inbound listeners of workloads that are `identity`.
    pub fn inbound_of<'a>(&'a self, identity: &'a SpiffeId) -> impl Iterator<Item = &'a Arc<str>> {
        let own = self.workloads.iter().filter(move |workload| workload.identity.as_ref() == Some(identity));
        own.flat_map(|workload| &workload.inbound)
    }

    /// What became of each route and policy.
    pub fn statuses(&self) -> &BTreeMap<ObjectRef, Vec<ParentStatus>> {
        &self.statuses
    }

    /// The resources that each route and policy has a part in.
    pub fn affected(&self) -> &BTreeMap<ObjectRef, BTreeSet<Affected>> {
        &self.affected
    }

    /// What is wrong with the objects, in order. What could not be read at all is in the source's own list.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}
