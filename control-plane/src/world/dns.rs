//! What the mesh's names mean to a resolver.
//!
//! In: a Service and what stands behind it. Out: its names, as Kubernetes' specification of DNS has them
//! (github.com/kubernetes/dns, docs/specification.md, 1.1.0): the Service's addresses; of a headless one those of its
//! endpoints, and a name for each endpoint; the places of each named port; and what an ExternalName stands for, unless it
//! has an address of its own. A name without an answer is none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tulle_mesh::model::{
    DnsName, DnsRecords, DnsTarget, EndpointAddress, Health, LoadAssignment, is_domain_name,
};

use super::endpoints::Host;
use super::services::{Addressed, Service};

/// How long the addresses of a Service hold: they don't change while it lives.
const STABLE: Duration = Duration::from_secs(30);
/// How long the addresses of endpoints hold, as in clusters.
const CHANGING: Duration = Duration::from_secs(5);

/// The names of a Service. `hosts` are the endpoints that are ready, `assignments` those of each port, in the order of the
/// ports.
pub(super) fn names(service: &Service, hosts: &[Host], assignments: &[LoadAssignment]) -> Vec<DnsName> {
    let fqdn = service.fqdn.to_ascii_lowercase();
    let named = |name: String, ttl, records| DnsName { name, ttl, records };
    let mut names = Vec::new();
    if let Some(host) = service.external_name.as_ref().filter(|_| service.cluster_ips.is_empty()) {
        let records = match host.parse() {
            Ok(ip) => DnsRecords::Addresses(vec![ip]),
            Err(_) => DnsRecords::Alias(host.to_ascii_lowercase()),
        };
        names.push(named(fqdn, STABLE, records));
    } else if service.addressed == Addressed::Headless {
        let all: BTreeSet<IpAddr> = hosts.iter().map(|host| host.address).collect();
        let mut by_label: BTreeMap<&str, BTreeSet<IpAddr>> = BTreeMap::new();
        for host in hosts {
            by_label.entry(&host.label).or_default().insert(host.address);
        }
        let addresses = |all: BTreeSet<IpAddr>| DnsRecords::Addresses(all.into_iter().collect());
        for (label, own) in by_label {
            names.push(named(format!("{label}.{fqdn}"), CHANGING, addresses(own)));
        }
        for (port, assignment) in service.ports.iter().zip(assignments) {
            if let Some(name) = port.name.as_ref() {
                let targets = targets(assignment, hosts, &fqdn);
                names.push(named(port_name(name, &fqdn), CHANGING, DnsRecords::Services(targets)));
            }
        }
        names.push(named(fqdn, CHANGING, addresses(all)));
    } else {
        for port in &service.ports {
            if let Some(name) = &port.name {
                let target = DnsTarget { host: fqdn.clone(), port: port.number, priority: 0, weight: 1 };
                names.push(named(port_name(name, &fqdn), STABLE, DnsRecords::Services(vec![target])));
            }
        }
        names.push(named(fqdn, STABLE, DnsRecords::Addresses(service.cluster_ips.clone())));
    }
    names.retain(|name| {
        let answered = match &name.records {
            DnsRecords::Addresses(addresses) => !addresses.is_empty(),
            DnsRecords::Services(targets) => !targets.is_empty(),
            DnsRecords::Alias(host) => is_domain_name(host),
        };
        answered && is_domain_name(&name.name)
    });
    names
}

/// The mesh carries nothing but TCP.
fn port_name(port: &str, fqdn: &str) -> String {
    format!("_{}._tcp.{fqdn}", port.to_ascii_lowercase())
}

fn targets(assignment: &LoadAssignment, hosts: &[Host], fqdn: &str) -> Vec<DnsTarget> {
    let ready = assignment.endpoints().filter(|endpoint| endpoint.health == Health::Healthy);
    ready
        .filter_map(|endpoint| {
            let EndpointAddress::Socket(address) = &endpoint.address else { return None };
            let host = hosts.iter().find(|host| host.address == address.ip())?;
            Some(DnsTarget {
                host: format!("{}.{fqdn}", host.label),
                port: address.port(),
                priority: 0,
                weight: u16::try_from(endpoint.weight).unwrap_or(u16::MAX),
            })
        })
        .collect()
}
