//! Services: their names, addresses and ports.
//!
//! In: Service objects. Out: for each its whole name and ports with the protocol that its author told, and an index from
//! every name and address under which an application may dial it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tulle_mesh::address::{ClusterName, ServicePort};

use super::report::{Report, Subject};
use super::virtual_addresses::{VirtualAddresses, VirtualRange};
use crate::source::{Key, Objects};

/// A Service.
#[derive(Debug)]
pub(super) struct Service {
    pub(super) key: Key,
    pub(super) subject: Subject,
    /// `<name>.<namespace>.svc.<cluster domain>`
    pub(super) fqdn: Arc<str>,
    /// Its virtual addresses; none where it is headless.
    pub(super) cluster_ips: Vec<IpAddr>,
    /// Where those come from.
    pub(super) addressed: Addressed,
    /// Labels of the pods and workloads behind it; empty for none.
    pub(super) selector: BTreeMap<String, String>,
    /// The name that it stands for, with type ExternalName.
    pub(super) external_name: Option<String>,
    /// Its own connections are to stay at one endpoint by the client's address (`sessionAffinity: ClientIP`).
    pub(super) client_affinity: bool,
    /// TCP ports; other protocols are not the mesh's.
    pub(super) ports: Vec<Port>,
}

/// Where a Service's addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressed {
    /// Its object has them.
    Given,
    /// Its object says that it has none.
    Headless,
    /// Its object does not say: virtual ones are chosen for it, if at all.
    Open,
    /// It needs none: its name only stands for another one.
    Alias,
}

/// A port of a Service.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) number: u16,
    pub(super) target: Target,
    pub(super) protocol: Protocol,
    /// What its cluster, endpoints and routes are named after.
    pub(super) service: ServicePort,
}

impl Port {
    /// The name of its cluster, endpoints and route configuration.
    pub(super) fn cluster(&self) -> ClusterName {
        ClusterName::outbound(self.service.clone())
    }
}

/// The port of a pod or workload that a Service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Number(u16),
    Name(String),
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or HTTP/2 where both ends can.
    Http,
    /// HTTP/2 only, as gRPC needs it.
    Http2,
    /// Anything else, passed on as bytes.
    Tcp,
    /// Not told: found out from the first bytes.
    Detect,
}

impl Protocol {
    /// From `appProtocol`. Whoever tells a protocol that is not HTTP wants bytes to be passed on.
    fn of_app_protocol(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/http" | "kubernetes.io/ws" | "ws" => Self::Http,
            "http2" | "h2c" | "kubernetes.io/h2c" | "grpc" | "kubernetes.io/grpc" | "grpc-web" => Self::Http2,
            _ => Self::Tcp,
        }
    }

    /// From a port's name, `<protocol>` or `<protocol>-<anything>`, or its number.
    pub(super) fn of_name(name: Option<&str>, number: u16) -> Self {
        match name.map(|name| name.split('-').next().unwrap_or(name)) {
            Some("http") => Self::Http,
            Some("http2" | "h2c" | "grpc") => Self::Http2,
            Some(
                "tcp" | "tls" | "https" | "mongo" | "mysql" | "postgres" | "postgresql" | "redis" | "amqp",
            ) => Self::Tcp,
            // Where the server speaks first, waiting for the client's first bytes would only cost time.
            _ if SERVER_FIRST.contains(&number) => Self::Tcp,
            _ => Self::Detect,
        }
    }
}

/// SMTP, MySQL, Galera, PostgreSQL, Redis, Elasticsearch, Memcached (Linkerd's list of opaque ports).
const SERVER_FIRST: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];

/// All Services.
#[derive(Debug, Default)]
pub(super) struct Services {
    by_key: BTreeMap<Key, Service>,
}

impl Services {
    pub(super) fn collect(objects: &Objects, cluster_domain: &str, report: &mut Report) -> Self {
        let mut services = Self::default();
        let mut owners: BTreeMap<IpAddr, Key> = BTreeMap::new();
        for (key, object) in &objects.services {
            let subject = Subject::of(key, object);
            let mut service = read(key, object, subject, cluster_domain, report);
            service.cluster_ips.retain(|ip| {
                let owner = owners.entry(*ip).or_insert_with(|| key.clone());
                if owner != key {
                    report.error(
                        &service.subject,
                        "spec.clusterIP",
                        format!("Service {}/{} already has the address {ip}", owner.namespace, owner.name),
                        "give each Service an address of its own",
                    );
                }
                owner == key
            });
            services.by_key.insert(key.clone(), service);
        }
        services.find_aliases();
        services
    }

    /// What stands for another Service leads to that one's address, and so to all that holds for it.
    fn find_aliases(&mut self) {
        let names: BTreeSet<String> =
            self.by_key.values().map(|service| service.fqdn.to_ascii_lowercase()).collect();
        for service in self.by_key.values_mut() {
            let target = service.external_name.as_deref().map(str::to_ascii_lowercase);
            if target.is_some_and(|target| names.contains(&target)) {
                service.addressed = Addressed::Alias;
            }
        }
    }

    /// Gives addresses to the Services whose objects don't say theirs, and to them alone.
    pub(super) fn choose_addresses(
        &mut self,
        addresses: &mut VirtualAddresses,
        ranges: &[VirtualRange],
        report: &mut Report,
    ) {
        let is_open = |service: &&Service| service.addressed == Addressed::Open;
        let wanted = self.by_key.values().filter(is_open).map(|service| &*service.fqdn).collect();
        let given = self.by_key.values().flat_map(|service| &service.cluster_ips).copied().collect();
        let left_out = addresses.choose(ranges, &wanted, &given);
        let mut owners = BTreeMap::new();
        for service in self.by_key.values_mut().filter(|service| service.addressed == Addressed::Open) {
            service.cluster_ips = addresses.of(&service.fqdn).to_vec();
            owners.extend(service.cluster_ips.iter().map(|ip| (*ip, service.key.clone())));
            if left_out.contains(&service.fqdn.to_string()) {
                report.error(
                    &service.subject,
                    "spec.clusterIP",
                    "no virtual address is left for it",
                    "start the control plane with larger ranges (--virtual-addresses), or write an address here",
                );
            }
        }
        // What was chosen before an object asked for the same is not moved.
        for service in self.by_key.values_mut().filter(|service| service.addressed == Addressed::Given) {
            service.cluster_ips.retain(|ip| match owners.get(ip) {
                None => true,
                Some(owner) => {
                    report.error(
                        &service.subject,
                        "spec.clusterIP",
                        format!(
                            "Service {}/{} already has the virtual address {ip}",
                            owner.namespace, owner.name
                        ),
                        "write an address outside of the ranges of virtual ones",
                    );
                    false
                }
            });
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Service> {
        self.by_key.values()
    }

    pub(super) fn find(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.by_key.get(&Key::new(namespace, name))
    }
}

impl Service {
    pub(super) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }
}

fn read(
    key: &Key,
    object: &core::Service,
    subject: Subject,
    cluster_domain: &str,
    report: &mut Report,
) -> Service {
    let spec = object.spec.clone().unwrap_or_default();
    let fqdn: Arc<str> = format!("{}.{}.svc.{cluster_domain}", key.name, key.namespace).into();
    let addresses = spec.cluster_ips.unwrap_or_else(|| spec.cluster_ip.into_iter().collect());
    let external = spec.type_.as_deref() == Some("ExternalName");
    let mut cluster_ips = Vec::new();
    for address in addresses.iter().filter(|address| !address.is_empty() && *address != "None") {
        match address.parse() {
            Ok(ip) => cluster_ips.push(ip),
            Err(_) => report.error(
                &subject,
                "spec.clusterIP",
                format!("{address:?} is not an IP address"),
                "write an address, or None for a headless Service",
            ),
        }
    }
    let mut ports = Vec::new();
    for (index, port) in spec.ports.unwrap_or_default().into_iter().enumerate() {
        if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
            continue;
        }
        let field = format!("spec.ports[{index}]");
        let fix = "write a number from 1 to 65535";
        let Some(number) = port_number(port.port) else {
            report.error(&subject, format!("{field}.port"), format!("{} is not a port", port.port), fix);
            continue;
        };
        let target = match port.target_port {
            None => Target::Number(number),
            Some(IntOrString::String(name)) => Target::Name(name),
            Some(IntOrString::Int(target)) => match port_number(target) {
                Some(target) => Target::Number(target),
                None => {
                    let reason = format!("{target} is not a port");
                    report.error(&subject, format!("{field}.targetPort"), reason, fix);
                    continue;
                }
            },
        };
        let protocol = match &port.app_protocol {
            Some(told) => Protocol::of_app_protocol(told),
            None => Protocol::of_name(port.name.as_deref(), number),
        };
        let service = ServicePort::new(fqdn.clone(), number);
        ports.push(Port { name: port.name, number, target, protocol, service });
    }
    let addressed = match addresses.iter().map(String::as_str).find(|address| !address.is_empty()) {
        Some("None") => Addressed::Headless,
        Some(_) => Addressed::Given,
        // At an address of its own its ports are known to the mesh, wherever they lead.
        None if !external || !ports.is_empty() => Addressed::Open,
        None => Addressed::Alias,
    };
    let external_name =
        spec.external_name.filter(|_| external).map(|name| name.trim_end_matches('.').to_owned());
    Service {
        key: key.clone(),
        subject,
        fqdn,
        cluster_ips,
        addressed,
        selector: spec.selector.unwrap_or_default(),
        external_name,
        client_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        ports,
    }
}

/// A port from a number in an object; `None` for one that can't be a port.
pub(super) fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number > 0)
}
