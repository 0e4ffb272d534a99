//! Workloads: Pods and Workload objects as one thing.
//!
//! In: Pods and Workloads. Out: for each its addresses, identity, ports, and whether a sidecar stands in front of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use tulle_mesh::identity::{SpiffeId, TrustDomain};
use tulle_mesh::model::Locality;

use super::report::{Report, Subject};
use super::services::{Protocol, Service, Services, Target, port_number};
use crate::inject::{SIDECAR, SKIP_INBOUND, TLS_LABEL, TLS_MESH};
use crate::kinds;
use crate::source::{Key, Object, Objects};

/// A Pod or a Workload.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) key: Key,
    pub(super) labels: BTreeMap<String, String>,
    /// The first is its main address.
    pub(super) addresses: Vec<IpAddr>,
    pub(super) identity: Option<SpiffeId>,
    /// A sidecar ends mTLS for it.
    pub(super) meshed: bool,
    pub(super) ready: bool,
    pub(super) weight: u32,
    pub(super) locality: Locality,
    pub(super) ports: Vec<WorkloadPort>,
    /// Which of its ports are not redirected to its sidecar.
    pub(super) skipped: PortRanges,
    /// From a Workload object, which Kubernetes' EndpointSlices never name.
    pub(super) outside: bool,
}

/// Ranges of ports.
pub(super) type PortRanges = Vec<RangeInclusive<u16>>;

/// A port of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkloadPort {
    pub(super) name: Option<String>,
    /// On which the application serves.
    pub(super) number: u16,
    /// To which peers connect.
    pub(super) mesh: u16,
}

impl Workload {
    /// `<namespace>/<name>`
    pub(super) fn label(&self) -> String {
        format!("{}/{}", self.key.namespace, self.key.name)
    }

    /// Whether its sidecar takes what is redirected to it, on any port: where the application's port is not the one that
    /// peers dial, nothing is.
    pub(super) fn is_captured(&self) -> bool {
        self.meshed && self.ports.iter().all(|port| port.number == port.mesh)
    }

    /// Whether a port is not redirected to its sidecar.
    pub(super) fn skips(&self, port: u16) -> bool {
        self.skipped.iter().any(|range| range.contains(&port))
    }

    /// The port that a Service's port leads to. A number that the workload does not declare is taken as it is.
    pub(super) fn target(&self, target: &Target) -> Option<WorkloadPort> {
        match target {
            Target::Name(name) => self.ports.iter().find(|port| port.name.as_ref() == Some(name)).cloned(),
            Target::Number(number) => {
                Some(self.ports.iter().find(|port| port.number == *number).cloned().unwrap_or(WorkloadPort {
                    name: None,
                    number: *number,
                    mesh: *number,
                }))
            }
        }
    }

    /// Whether a selector, which must not be empty, selects it.
    pub(super) fn selected(&self, selector: &BTreeMap<String, String>) -> bool {
        !selector.is_empty() && selector.iter().all(|(label, value)| self.labels.get(label) == Some(value))
    }

    /// Whether it stands behind a Service.
    pub(super) fn behind(&self, service: &Service) -> bool {
        self.key.namespace == service.key.namespace && self.selected(&service.selector)
    }
}

/// All workloads.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    all: Vec<Workload>,
    by_address: BTreeMap<IpAddr, Vec<usize>>,
    by_namespace: BTreeMap<String, Vec<usize>>,
}

impl Workloads {
    pub(super) fn collect(
        objects: &Objects,
        trust_domain: &TrustDomain,
        services: &Services,
        report: &mut Report,
    ) -> Self {
        let mut workloads = Self::default();
        for (key, object) in &objects.pods {
            let place = |node: &str| locality(objects, node, "");
            workloads.add(pod(key, object, place, trust_domain));
        }
        let mut taken = Taken::default();
        let own =
            services.iter().flat_map(|service| service.cluster_ips.iter().map(|ip| (*ip, &service.key)));
        let services_at: BTreeMap<IpAddr, &Key> = own.collect();
        for (key, object) in by_age(objects) {
            let subject = Subject::of(key, object);
            let addresses =
                each_once([object.spec.address].into_iter().chain(object.spec.addresses.iter().copied()));
            let owned = addresses.iter().find_map(|ip| workloads.owner(*ip, key, &services_at));
            if let Some(owner) = owned {
                let fix = "tell an address that is the workload's own";
                report.error(&subject, "spec.address", owner, fix);
                continue;
            }
            let labels = object.metadata.labels.clone();
            let workload =
                outside(key, &object.spec, addresses, labels, trust_domain, &subject, &mut taken, report);
            workloads.add(workload);
        }
        workloads.declare_targets(services);
        workloads
    }

    fn add(&mut self, workload: Option<Workload>) {
        let Some(workload) = workload else { return };
        let index = self.all.len();
        for address in &workload.addresses {
            self.by_address.entry(*address).or_default().push(index);
        }
        self.by_namespace.entry(workload.key.namespace.clone()).or_default().push(index);
        self.all.push(workload);
    }

    /// Who else has an address that a Workload claims. Workloads of one namespace may share one, and those of a machine's
    /// loopback; others, for whom the claim would be an attack, may not.
    fn owner(&self, ip: IpAddr, key: &Key, services_at: &BTreeMap<IpAddr, &Key>) -> Option<String> {
        if let Some(Key { namespace, name }) = services_at.get(&ip) {
            return Some(format!("{ip} is the address of Service {namespace}/{name}"));
        }
        let here = self.by_address.get(&ip).into_iter().flatten().map(|index| &self.all[*index]);
        let mut others =
            here.filter(|other| !other.outside || other.key.namespace != key.namespace && !ip.is_loopback());
        let other = others.next()?;
        let kind = if other.outside { "Workload" } else { "Pod" };
        Some(format!("{ip} is the address of {kind} {}", other.label()))
    }

    /// A pod need not list its ports: those that Services lead to are its ports too.
    fn declare_targets(&mut self, services: &Services) {
        for service in services.iter().filter(|service| !service.selector.is_empty()) {
            let indices = self.by_namespace.get(&service.key.namespace).into_iter().flatten().copied();
            for index in indices {
                let workload = &mut self.all[index];
                if !workload.behind(service) {
                    continue;
                }
                for port in &service.ports {
                    if let Some(target) = workload.target(&port.target)
                        && !workload.ports.contains(&target)
                    {
                        workload.ports.push(target);
                    }
                }
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.all.iter()
    }

    pub(super) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &Workload> {
        self.by_namespace.get(namespace).into_iter().flatten().map(|index| &self.all[*index])
    }

    /// Whether several workloads have the same address.
    pub(super) fn is_shared(&self, ip: IpAddr) -> bool {
        self.by_address.get(&ip).is_some_and(|here| here.len() > 1)
    }

    /// The workload that serves an address: by the port where several share the IP address.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&Workload> {
        self.index_at(address).map(|index| &self.all[index])
    }

    /// The place in the list of all of the workload that serves an address.
    pub(super) fn index_at(&self, address: SocketAddr) -> Option<usize> {
        let here = self.by_address.get(&address.ip())?;
        let serves = |index: &&usize| self.all[**index].ports.iter().any(|port| port.mesh == address.port());
        here.iter().find(serves).or(here.first()).copied()
    }
}

/// `None` while a pod has no address, when it is over, or when it shares its node's address.
fn pod(
    key: &Key,
    pod: &Pod,
    place: impl Fn(&str) -> Locality,
    trust_domain: &TrustDomain,
) -> Option<Workload> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if over || spec.host_network == Some(true) {
        return None;
    }
    let first = status.pod_ip.iter().filter_map(|address| address.parse().ok());
    let more = status.pod_ips.iter().flatten().filter_map(|address| address.ip.parse().ok());
    let addresses = each_once(first.chain(more));
    if addresses.is_empty() {
        return None;
    }
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or("default");
    Some(Workload {
        key: key.clone(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        addresses,
        identity: SpiffeId::workload(trust_domain, &key.namespace, account).ok(),
        meshed: is_injected(pod, spec),
        ready: ready && pod.metadata.deletion_timestamp.is_none(),
        weight: 1,
        locality: spec.node_name.as_deref().map(place).unwrap_or_default(),
        ports: container_ports(spec),
        skipped: pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(SKIP_INBOUND))
            .map_or_else(Vec::new, |text| port_ranges(text)),
        outside: false,
    })
}

fn each_once(all: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in all {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

/// The ports and ranges of a list, as `--skip-inbound-ports` takes it; what is neither says nothing.
fn port_ranges(text: &str) -> PortRanges {
    let range = |entry: &str| {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).collect()
}

/// Where a node is, by its labels; `zone` counts where it has none.
pub(super) fn locality(objects: &Objects, node: &str, zone: &str) -> Locality {
    let labels = objects.find::<Node>("", node).and_then(|node| node.metadata.labels.as_ref());
    let label = |name: &str| labels.and_then(|labels| labels.get(name)).cloned();
    Locality {
        region: label("topology.kubernetes.io/region").unwrap_or_default(),
        zone: label("topology.kubernetes.io/zone").unwrap_or_else(|| zone.into()),
        sub_zone: String::new(),
    }
}

fn is_injected(pod: &Pod, spec: &PodSpec) -> bool {
    let labels = pod.metadata.labels.as_ref();
    let labelled = labels.and_then(|labels| labels.get(TLS_LABEL)).is_some_and(|value| value == TLS_MESH);
    let init = spec.init_containers.iter().flatten();
    labelled || spec.containers.iter().chain(init).any(|container| container.name == SIDECAR)
}

fn container_ports(spec: &PodSpec) -> Vec<WorkloadPort> {
    let mut seen = BTreeSet::new();
    spec.containers
        .iter()
        .filter(|container| container.name != SIDECAR)
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| Some((port.name.clone(), port_number(port.container_port)?)))
        .filter(|port| seen.insert(port.clone()))
        .map(|(name, number)| WorkloadPort { name, number, mesh: number })
        .collect()
}

/// Which Workload serves which address.
type Taken = BTreeMap<SocketAddr, Key>;

/// The oldest first: what somebody has can't be taken by whoever comes later.
fn by_age(objects: &Objects) -> Vec<(&Key, &Object<kinds::Workload>)> {
    let mut all: Vec<_> = objects.workloads.iter().collect();
    all.sort_by_key(|(_, object)| object.metadata.creation_timestamp.clone());
    all
}

/// `None` when the object can't be used; the report says why.
#[expect(clippy::too_many_arguments, reason = "one step of the function above")]
fn outside(
    key: &Key,
    spec: &kinds::WorkloadSpec,
    addresses: Vec<IpAddr>,
    labels: Option<BTreeMap<String, String>>,
    trust_domain: &TrustDomain,
    subject: &Subject,
    taken: &mut Taken,
    report: &mut Report,
) -> Option<Workload> {
    let identity = match SpiffeId::workload(trust_domain, &key.namespace, &spec.service_account) {
        Ok(identity) => identity,
        Err(error) => {
            let fix = "use the name of a service account";
            report.error(subject, "spec.serviceAccount", error.to_string(), fix);
            return None;
        }
    };
    let mut ports = Vec::new();
    for (index, port) in spec.ports.iter().enumerate() {
        let mesh = port.mesh_port.unwrap_or(port.port);
        let field = format!("spec.ports[{index}]");
        if port.port == 0 || mesh == 0 {
            report.error(subject, field, "0 is not a port", "write a number from 1 to 65535");
            continue;
        }
        let mut served = addresses.iter().map(|ip| SocketAddr::new(*ip, mesh));
        let other = served.find_map(|address| {
            let owner = taken.entry(address).or_insert_with(|| key.clone());
            (owner != key).then(|| (owner.clone(), address))
        });
        if let Some((owner, address)) = other {
            report.error(
                subject,
                field,
                format!("Workload {}/{} already serves {address}", owner.namespace, owner.name),
                "give each workload of one address a meshPort of its own",
            );
            continue;
        }
        ports.push(WorkloadPort { name: port.name.clone(), number: port.port, mesh });
    }
    let (region, zone) = match spec.locality.as_deref() {
        Some(text) => text.split_once('/').unwrap_or((text, "")),
        None => ("", ""),
    };
    Some(Workload {
        key: key.clone(),
        labels: labels.unwrap_or_default(),
        addresses,
        identity: Some(identity),
        meshed: spec.meshed,
        ready: spec.ready,
        weight: spec.weight.max(1),
        locality: Locality { region: region.into(), zone: zone.into(), sub_zone: String::new() },
        ports,
        skipped: spec.skip_inbound_ports.iter().map(|port| *port..=*port).collect(),
        outside: true,
    })
}

/// What is spoken on a port of a workload, by what the Services before it tell, else by its name.
pub(super) fn protocol(workload: &Workload, port: &WorkloadPort, services: &[&Service]) -> Protocol {
    services
        .iter()
        .flat_map(|service| &service.ports)
        .filter(|candidate| workload.target(&candidate.target).is_some_and(|target| target.mesh == port.mesh))
        .map(|candidate| candidate.protocol)
        .find(|protocol| *protocol != Protocol::Detect)
        .unwrap_or_else(|| Protocol::of_name(port.name.as_deref(), port.number))
}
