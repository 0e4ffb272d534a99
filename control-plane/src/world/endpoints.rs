//! Endpoints: which addresses stand behind a Service's port.
//!
//! In: EndpointSlices, workloads. Out: load assignments. Where Kubernetes keeps EndpointSlices for a Service, they decide
//! about its pods; else the pods and workloads that its selector matches. Workload objects are never in slices and are
//! always added. Each endpoint carries the identity that it must prove.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use tulle_mesh::model::{Endpoint, EndpointAddress, Health, LoadAssignment, Locality, LocalityEndpoints};

use super::services::{Port, Service, port_number};
use super::workloads::{Workload, Workloads, locality};
use crate::source::{Key, Objects};

/// The EndpointSlices of each Service.
pub(super) struct Slices<'a>(BTreeMap<Key, Vec<&'a EndpointSlice>>);

impl<'a> Slices<'a> {
    pub(super) fn collect(objects: &'a Objects) -> Self {
        let mut slices: BTreeMap<Key, Vec<&EndpointSlice>> = BTreeMap::new();
        for (key, slice) in &objects.endpoint_slices {
            let labels = slice.metadata.labels.as_ref();
            if let Some(service) = labels.and_then(|labels| labels.get("kubernetes.io/service-name")) {
                slices.entry(Key::new(&key.namespace, service)).or_default().push(&slice.value);
            }
        }
        Self(slices)
    }

    fn of(&self, service: &Service) -> Option<&[&'a EndpointSlice]> {
        self.0.get(&service.key).map(Vec::as_slice)
    }

    /// Every address that stands in the slices of a Service.
    pub(super) fn addresses(&self, service: &Service) -> impl Iterator<Item = SocketAddr> {
        self.of(service).into_iter().flatten().flat_map(|slice| {
            let ports = slice.ports.iter().flatten().filter_map(|port| port_number(port.port?));
            ports.flat_map(|port| {
                let ips = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
                ips.filter_map(move |ip| Some(SocketAddr::new(ip.parse().ok()?, port)))
            })
        })
    }
}

/// Finds endpoints.
pub(super) struct Endpoints<'a> {
    /// For the zones of nodes.
    pub(super) objects: &'a Objects,
    pub(super) workloads: &'a Workloads,
    pub(super) slices: &'a Slices<'a>,
    /// Addresses whose sidecar takes only plaintext.
    pub(super) plaintext: &'a BTreeSet<SocketAddr>,
}

/// An endpoint of a Service, whatever its ports.
#[derive(Debug)]
pub(super) struct Host {
    /// The label before the Service's name that means this endpoint alone.
    pub(super) label: String,
    pub(super) address: IpAddr,
}

/// An endpoint and where it is.
type Placed = ((String, String, String), Endpoint);

impl Endpoints<'_> {
    /// The endpoints behind a port of a Service.
    pub(super) fn of(&self, service: &Service, port: &Port) -> LoadAssignment {
        let slices = self.slices.of(service);
        let mut found: Vec<Placed> = Vec::new();
        for slice in slices.into_iter().flatten() {
            self.add_slice(slice, port, &mut found);
        }
        let behind = self.workloads.in_namespace(&service.key.namespace).filter(|workload| {
            workload.ready && workload.behind(service) && (workload.outside || slices.is_none())
        });
        for workload in behind {
            let Some(target) = workload.target(&port.target) else { continue };
            let address = workload
                .addresses
                .first()
                .map(|ip| SocketAddr::new(*ip, if workload.meshed { target.mesh } else { target.number }));
            if let Some(address) = address {
                found.push((
                    place(&workload.locality),
                    self.endpoint(address, Some(workload), workload.weight, Health::Healthy, String::new()),
                ));
            }
        }
        assignment(port.cluster().to_string(), found)
    }

    /// The endpoints of a Service that are ready. One has the host name that it was given, a Workload its own name, and
    /// another one, as in clusters, its address with dashes.
    pub(super) fn hosts(&self, service: &Service) -> Vec<Host> {
        let slices = self.slices.of(service);
        let mut hosts = Vec::new();
        let mut add = |name: Option<&str>, address: IpAddr| {
            let label = match name.filter(|name| !name.is_empty()) {
                Some(name) => name.to_ascii_lowercase(),
                None => address.to_string().replace(['.', ':'], "-"),
            };
            hosts.push(Host { label, address });
        };
        for endpoint in slices.into_iter().flatten().flat_map(|slice| &slice.endpoints) {
            if endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false) {
                let addresses = endpoint.addresses.iter().filter_map(|address| address.parse().ok());
                addresses.for_each(|address| add(endpoint.hostname.as_deref(), address));
            }
        }
        let behind = self.workloads.in_namespace(&service.key.namespace).filter(|workload| {
            workload.ready && workload.behind(service) && (workload.outside || slices.is_none())
        });
        for workload in behind {
            let name = workload.outside.then_some(workload.key.name.as_str());
            workload.addresses.iter().for_each(|address| add(name, *address));
        }
        hosts
    }

    /// The one endpoint of a port of a workload, dialled directly.
    pub(super) fn direct(&self, name: String, workload: &Workload, address: SocketAddr) -> LoadAssignment {
        let endpoint = self.endpoint(address, Some(workload), 1, Health::Healthy, String::new());
        assignment(name, vec![(place(&workload.locality), endpoint)])
    }

    fn add_slice(&self, slice: &EndpointSlice, port: &Port, found: &mut Vec<Placed>) {
        // A slice's port has the name of the Service's port, empty where that has none.
        let wanted = port.name.as_deref().unwrap_or_default();
        let number = slice
            .ports
            .iter()
            .flatten()
            .find(|candidate| candidate.name.as_deref().unwrap_or_default() == wanted)
            .and_then(|candidate| port_number(candidate.port?));
        let Some(number) = number else { return };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            let health = match (conditions.ready, conditions.serving, conditions.terminating) {
                (None | Some(true), _, _) => Health::Healthy,
                (_, Some(true), Some(true)) => Health::Draining,
                _ => continue,
            };
            let node = endpoint.node_name.as_deref().unwrap_or_default();
            let place = place(&locality(self.objects, node, endpoint.zone.as_deref().unwrap_or_default()));
            for address in &endpoint.addresses {
                let Ok(ip) = address.parse::<IpAddr>() else { continue };
                let address = SocketAddr::new(ip, number);
                let hostname = endpoint.hostname.clone().unwrap_or_default();
                let made = self.endpoint(address, self.workloads.at(address), 1, health, hostname);
                found.push((place.clone(), made));
            }
        }
    }

    fn endpoint(
        &self,
        address: SocketAddr,
        workload: Option<&Workload>,
        weight: u32,
        health: Health,
        hostname: String,
    ) -> Endpoint {
        let meshed = workload.is_some_and(|workload| workload.meshed) && !self.plaintext.contains(&address);
        Endpoint {
            address: EndpointAddress::Socket(address),
            additional_addresses: Vec::new(),
            health,
            weight,
            hostname,
            meshed,
            identity: workload.filter(|_| meshed).and_then(|workload| workload.identity.clone()),
            workload: workload.map(Workload::label).unwrap_or_default(),
        }
    }
}

fn place(locality: &Locality) -> (String, String, String) {
    (locality.region.clone(), locality.zone.clone(), locality.sub_zone.clone())
}

/// Groups endpoints by place, in a stable order. An address stands there once.
fn assignment(name: String, found: Vec<Placed>) -> LoadAssignment {
    let mut seen = BTreeSet::new();
    let mut places: BTreeMap<(String, String, String), Vec<(SocketAddr, Endpoint)>> = BTreeMap::new();
    for (place, endpoint) in found {
        let EndpointAddress::Socket(address) = endpoint.address else { continue };
        if seen.insert(address) {
            places.entry(place).or_default().push((address, endpoint));
        }
    }
    let localities = places
        .into_iter()
        .map(|((region, zone, sub_zone), mut endpoints)| {
            endpoints.sort_by_key(|(address, _)| *address);
            let endpoints: Vec<Endpoint> = endpoints.into_iter().map(|(_, endpoint)| endpoint).collect();
            LocalityEndpoints {
                locality: Locality { region, zone, sub_zone },
                priority: 0,
                weight: endpoints
                    .iter()
                    .fold(0u32, |sum, endpoint| sum.saturating_add(endpoint.weight))
                    .max(1),
                endpoints,
            }
        })
        .collect();
    LoadAssignment { overprovisioning: None, name, localities, drops: Vec::new() }
}
