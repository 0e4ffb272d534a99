//! Which listener an application means by a name or an address.
//!
//! In: what it dialled, `<host>:<port>`, and the namespace that it is in. Out: the listener's key. One place knows all
//! forms of a Service's name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tulle_mesh::address::any_port_listener;
use tulle_mesh::model::{EndpointAddress, LoadAssignment};

use super::endpoints::Host;
use super::services::{Service, Services};
use super::workloads::PortRanges;
use crate::source::Key;

/// The names of all Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Whole names, `<name>.<namespace>`, `<name>.<namespace>.svc`.
    hosts: BTreeMap<String, Key>,
    /// Whole names.
    whole: BTreeMap<Key, String>,
    addresses: BTreeMap<IpAddr, Key>,
    ports: BTreeMap<Key, BTreeMap<u16, Keys>>,
    /// `<hostname>.<whole name>` of endpoints that have a host name.
    endpoints: BTreeMap<String, SocketAddr>,
    /// Workloads' addresses of which every port leads to a sidecar, but for these.
    any_port: BTreeMap<IpAddr, PortRanges>,
}

/// Ports of a sidecar's own, which redirection leaves alone wherever it is told of no others: the admin interface, the
/// ports of redirection itself, health and metrics.
pub const SIDECAR_PORTS: [u16; 4] = [15000, 15001, 15006, 15020];

/// The keys of a port's listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Keys {
    all: Arc<str>,
    consumers: BTreeMap<String, Arc<str>>,
}

impl Names {
    pub(super) fn new(services: &Services) -> Self {
        let mut names = Self::default();
        for service in services.iter() {
            let Key { namespace, name } = &service.key;
            for host in
                [service.fqdn.to_string(), format!("{name}.{namespace}"), format!("{name}.{namespace}.svc")]
            {
                names.hosts.insert(host.to_ascii_lowercase(), service.key.clone());
            }
            names.whole.insert(service.key.clone(), service.fqdn.to_ascii_lowercase());
            names.addresses.extend(service.cluster_ips.iter().map(|ip| (*ip, service.key.clone())));
        }
        names
    }

    /// Adds a port's listener, and those for single namespaces of clients.
    pub(super) fn add_port(
        &mut self,
        service: &Service,
        port: u16,
        all: Arc<str>,
        consumers: BTreeMap<String, Arc<str>>,
    ) {
        self.ports.entry(service.key.clone()).or_default().insert(port, Keys { all, consumers });
    }

    /// Adds the name of a single endpoint.
    pub(super) fn add_endpoint(&mut self, hostname: &str, service: &Service, address: SocketAddr) {
        let host = format!("{hostname}.{}:{}", service.fqdn, address.port()).to_ascii_lowercase();
        self.endpoints.entry(host).or_insert(address);
    }

    /// Adds an address of which every port leads to a sidecar, but for some.
    pub(super) fn add_any_port(&mut self, ip: IpAddr, but: PortRanges) {
        self.any_port.insert(ip, but);
    }

    /// The key of the listener for all ports of an address, where a port that is dialled is one of those.
    pub(super) fn any_port(&self, dialled: &str) -> Option<String> {
        let address: SocketAddr = dialled.parse().ok()?;
        let port = address.port();
        let but = self.any_port.get(&address.ip())?;
        let is_left_alone = SIDECAR_PORTS.contains(&port) || but.iter().any(|range| range.contains(&port));
        (!is_left_alone).then(|| any_port_listener(address.ip()))
    }

    /// Every address of a Service's port, with the keys of the port's listeners.
    pub(super) fn service_addresses(
        &self,
    ) -> impl Iterator<Item = (SocketAddr, impl Iterator<Item = &Arc<str>> + Clone)> {
        let ports = self.addresses.iter().filter_map(|(ip, service)| Some((*ip, self.ports.get(service)?)));
        ports.flat_map(|(ip, ports)| {
            ports.iter().map(move |(port, keys)| {
                (SocketAddr::new(ip, *port), [&keys.all].into_iter().chain(keys.consumers.values()))
            })
        })
    }

    /// The addresses of which every port leads to a sidecar, and their ports that do not.
    pub(super) fn any_port_addresses(&self) -> impl Iterator<Item = (IpAddr, &PortRanges)> {
        self.any_port.iter().map(|(ip, but)| (*ip, but))
    }

    /// Adds the names of the endpoints of a headless Service's port.
    pub(super) fn add_hosts(&mut self, hosts: &[Host], service: &Service, assignment: &LoadAssignment) {
        for endpoint in assignment.endpoints() {
            let EndpointAddress::Socket(address) = endpoint.address else { continue };
            if let Some(host) = hosts.iter().find(|host| host.address == address.ip()) {
                self.add_endpoint(&host.label, service, address);
            }
        }
    }

    /// The key of the listener that `name` means to a client in `namespace`. The key of a direct address is that address.
    pub(super) fn resolve(&self, name: &str, namespace: &str) -> Option<Arc<str>> {
        let (host, port) = name.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let service = match name.parse::<SocketAddr>() {
            Ok(address) => match self.addresses.get(&address.ip()) {
                Some(service) => service,
                None => return Some(address.to_string().into()),
            },
            Err(_) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                if let Some(address) = self.endpoints.get(&format!("{host}:{port}")) {
                    return Some(address.to_string().into());
                }
                match self.hosts.get(&host) {
                    Some(service) => service,
                    // A bare name is one of the client's own namespace.
                    None if !host.contains('.') => {
                        self.ports.get_key_value(&Key::new(namespace, host)).map(|(key, _)| key)?
                    }
                    None => return None,
                }
            }
        };
        let keys = self.ports.get(service)?.get(&port)?;
        Some(keys.consumers.get(namespace).unwrap_or(&keys.all).clone())
    }

    /// The whole name that `name` means to a client in `namespace`, whether or not a resolver has an answer for it.
    pub(super) fn resolve_dns(&self, name: &str, namespace: &str) -> Option<String> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let (port, host) = match split_port(&name) {
            Some((port, host)) => (Some(port), host),
            None => (None, name.as_str()),
        };
        let whole = match self.hosts.get(host).and_then(|service| self.whole.get(service)) {
            Some(whole) => whole.as_str(),
            // A bare name is one of the client's own namespace.
            None if !host.contains('.') => self.whole.get(&Key::new(namespace, host))?,
            // An endpoint's, or none at all.
            None => host,
        };
        Some(port.map_or_else(|| whole.to_owned(), |port| format!("{port}.{whole}")))
    }

    /// Whether an address is a Service's own.
    pub(super) fn is_service(&self, ip: IpAddr) -> bool {
        self.addresses.contains_key(&ip)
    }
}

/// The two parts of `_<port>._<protocol>.<host>`.
fn split_port(name: &str) -> Option<(&str, &str)> {
    let port = name.strip_prefix('_')?.find("._")? + 1;
    let protocol = name[port + 1..].find('.')?;
    Some((&name[..port + 1 + protocol], &name[port + 2 + protocol..]))
}
