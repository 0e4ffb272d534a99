//! What an Envoy gets that connections are redirected to, in a sidecar's place.
//!
//! In: the world, and the Envoy's word of its address. Out: `virtualOutbound`, to which the application's connections are
//! redirected; for each address that the mesh knows a listener that binds nothing, `<ip>_<port>`, to which it hands over;
//! `virtualInbound`, to which those of peers are redirected; and their clusters. What the mesh does not know passes or is
//! refused as the Envoy's node says, and so do ports that peers' redirection leaves alone.
//!
//! Nothing loops: what was going to Envoy's own ports, or nobody redirected, is refused. What a peer was going to is dialled
//! as it is, past redirection, and only at an address of the workload. At its own addresses a workload has no TLS: what is
//! dialled there is the application.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tulle_mesh::address::{
    ClusterName, any_port_listener, captured_listener, is_any_port_listener, parse_captured_listener,
};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    ChainMatch, Cluster, Discovery, EndpointAddress, FilterChain, Listener, LoadAssignment, Protocol,
    TcpProxy, TrafficDirection,
};
use tulle_mesh::xds::Resource;
use tulle_mesh::xds::client::{Envoy, OutboundPolicy};
use tulle_mesh::xds::listener::captured::{Captured, unbound};

use super::View;
use super::peers::{encode, virtual_address, virtual_name};
use crate::world::{Changes, SIDECAR_PORTS, World};
use crate::xds::{Client, Encoded, Kind};

/// The listener that the application's connections are redirected to.
pub(super) const VIRTUAL_OUTBOUND: &str = "virtualOutbound";
/// The listener that peers' connections are redirected to.
pub(super) const VIRTUAL_INBOUND: &str = "virtualInbound";
/// The cluster of wherever a connection was going, as it is.
const PASSTHROUGH: &str = "PassthroughCluster";
/// The cluster of nothing.
const BLACK_HOLE: &str = "BlackHoleCluster";

/// The port of [`VIRTUAL_OUTBOUND`], on loopback, and that of [`VIRTUAL_INBOUND`]: those of `tulle-sidecar init`.
const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;

/// The most ports of one address that are known to be left alone by redirection. Above that, peers' connections to the rest
/// are mTLS, which nobody there takes.
const MAX_LEFT_ALONE: usize = 1024;

impl View {
    /// The names of all listeners of such an Envoy.
    pub(super) fn captured_listeners(&self) -> Vec<Arc<str>> {
        let known = handed_over(&self.world).chain(left_alone(&self.world)).map(virtual_name);
        let own = [VIRTUAL_OUTBOUND, VIRTUAL_INBOUND].map(Arc::from);
        known.chain(own).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A listener of such an Envoy.
    pub(super) fn captured_listener(
        &self,
        name: &str,
        (envoy, policy): (&Envoy, OutboundPolicy),
        client: &Client,
    ) -> Option<Arc<Encoded>> {
        match name {
            VIRTUAL_OUTBOUND => return Some(self.virtual_outbound(envoy, policy, client)),
            VIRTUAL_INBOUND => return Some(self.virtual_inbound(envoy, client)),
            _ => {}
        }
        let address = virtual_address(name)?;
        let key = self.world.resolve(&address.to_string(), client.caller.namespace());
        let listener = match key.as_ref().and_then(|key| self.world.listener(key)) {
            // All ports of an address are chains of the virtual listener.
            Some(any) if is_any_port_listener(&any.name) => return None,
            Some(listener) if listener.direction == TrafficDirection::Outbound => {
                Listener { name: name.into(), address: Some(address), ..(**listener).clone() }
            }
            Some(_) => return None,
            None => left_alone(&self.world).any(|left| left == address).then(|| {
                let chains = vec![to_cluster("left-alone", unknown(policy), None)];
                let listener = Listener::new(name, TrafficDirection::Outbound, chains);
                Listener { address: Some(address), ..listener }
            })?,
        };
        // Connections over loopback are not redirected.
        if address.ip().is_loopback() {
            return Some(encode(&Resource::Listener(listener), client));
        }
        Some(Arc::new(Encoded::new(name, unbound(&listener, &client.kind))))
    }

    /// The names of the clusters that only such an Envoy has.
    pub(super) fn captured_clusters(&self, client: &Client) -> BTreeSet<Arc<str>> {
        let ports = self.own_addresses(client).into_iter().flat_map(|ip| ports(&self.world, ip));
        let inbound = ports.map(|port| ClusterName::Inbound { port }.to_string().into());
        inbound.chain([PASSTHROUGH, BLACK_HOLE].map(Arc::from)).collect()
    }

    /// One of these clusters.
    pub(super) fn captured_cluster(&self, name: &str, client: &Client) -> Option<Cluster> {
        let discovery = match name {
            BLACK_HOLE => Discovery::Static(LoadAssignment::new(name, Vec::new())),
            _ => Discovery::OriginalDestination,
        };
        self.captured_clusters(client).contains(name).then(|| Cluster::new(name, discovery))
    }

    /// The endpoints of a cluster where one of them is the Envoy's own workload: that is the application, without TLS.
    pub(super) fn captured_endpoints(&self, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let own = self.own_addresses(client);
        let mut assignment = (**self.world.assignment(name)?).clone();
        let all = assignment.localities.iter_mut().flat_map(|locality| &mut locality.endpoints);
        let mut found = false;
        for endpoint in all {
            if matches!(endpoint.address, EndpointAddress::Socket(at) if own.contains(&at.ip())) {
                (endpoint.meshed, endpoint.identity, found) = (false, None, true);
            }
        }
        found.then(|| encode(&Resource::Endpoint(assignment), client))
    }

    fn virtual_outbound(&self, envoy: &Envoy, policy: OutboundPolicy, client: &Client) -> Arc<Encoded> {
        let own = self.own_addresses(client);
        let ports = SIDECAR_PORTS.map(|port| match port {
            OUTBOUND_PORT | INBOUND_PORT => to_cluster("own-port", BLACK_HOLE, Some(port)),
            _ => to_cluster("left-alone", unknown(policy), Some(port)),
        });
        let rest = to_cluster("unknown", unknown(policy), None);
        let others = self.world.any_port_addresses().map(|(ip, _)| ip).filter(|ip| !own.contains(ip));
        let workloads = others.filter_map(|ip| Some((ip, self.world.listener(&any_port_listener(ip))?)));
        let known = workloads.flat_map(|(ip, any)| any.chains.iter().map(move |chain| (Some(ip), chain)));
        let chains = ports.iter().map(|chain| (None, chain)).chain(known).chain([(None, &rest)]);
        let listener = Captured {
            name: VIRTUAL_OUTBOUND,
            direction: TrafficDirection::Outbound,
            addresses: of_families(
                envoy,
                &own,
                [
                    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), OUTBOUND_PORT),
                    SocketAddr::new(Ipv6Addr::LOCALHOST.into(), OUTBOUND_PORT),
                ],
            ),
            chains: chains.collect(),
        };
        Arc::new(Encoded::new(VIRTUAL_OUTBOUND, listener.encode(&client.kind)))
    }

    fn virtual_inbound(&self, envoy: &Envoy, client: &Client) -> Arc<Encoded> {
        let own = self.own_addresses(client);
        let itself = to_cluster("own-port", BLACK_HOLE, Some(INBOUND_PORT));
        let listeners =
            own.iter().filter_map(|ip| Some((*ip, self.world.listener(&captured_listener(*ip))?)));
        let known =
            listeners.flat_map(|(ip, listener)| listener.chains.iter().map(move |chain| (Some(ip), chain)));
        let listener = Captured {
            name: VIRTUAL_INBOUND,
            direction: TrafficDirection::Inbound,
            addresses: of_families(
                envoy,
                &own,
                [
                    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), INBOUND_PORT),
                    SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), INBOUND_PORT),
                ],
            ),
            chains: [(None, &itself)].into_iter().chain(known).collect(),
        };
        Arc::new(Encoded::new(VIRTUAL_INBOUND, listener.encode(&client.kind)))
    }

    /// The addresses of the Envoy's workload at which each port is its own.
    fn own_addresses(&self, client: &Client) -> Vec<IpAddr> {
        let workload = self.workload(client);
        let inbound = workload.into_iter().flat_map(|workload| &workload.inbound);
        inbound
            .filter(|key| self.shows(key, &client.caller.identity))
            .filter_map(|key| parse_captured_listener(key))
            .collect()
    }
}

/// The names of what changed for such Envoys, and has other names or does not change for others. `worlds`: before and after.
pub(super) fn changed(changes: &Changes, worlds: [&World; 2]) -> BTreeSet<(Kind, Arc<str>)> {
    let listeners = || changes.listeners.updated.iter().chain(&changes.listeners.removed);
    let keys: BTreeSet<&Arc<str>> = listeners().collect();
    let services = worlds.into_iter().flat_map(|world| {
        world.service_addresses().filter(|(_, meant)| meant.clone().any(|key| keys.contains(key)))
    });
    let mut addresses: BTreeSet<SocketAddr> = services.map(|(address, _)| address).collect();
    addresses.extend(listeners().filter_map(|key| key.parse::<SocketAddr>().ok()));
    let [before, after] = worlds.map(|world| handed_over(world).collect::<BTreeSet<_>>());
    addresses.extend(before.symmetric_difference(&after));
    let [before, after] = worlds.map(|world| left_alone(world).collect::<BTreeSet<_>>());
    addresses.extend(before.symmetric_difference(&after));

    let [before, after] = worlds.map(owned);
    let owned: Vec<_> = before.symmetric_difference(&after).collect();
    let any = |is: fn(&str) -> bool| !owned.is_empty() || listeners().any(|key| is(key));
    let mut names: BTreeSet<_> =
        addresses.into_iter().map(|address| (Kind::Listener, virtual_name(address))).collect();
    if any(is_any_port_listener) {
        names.insert((Kind::Listener, VIRTUAL_OUTBOUND.into()));
    }
    if any(|key| parse_captured_listener(key).is_some()) {
        names.insert((Kind::Listener, VIRTUAL_INBOUND.into()));
    }
    let clusters = owned.into_iter().map(|(_, _, port)| ClusterName::Inbound { port: *port });
    names.extend(clusters.map(|name| (Kind::Cluster, name.to_string().into())));
    names
}

/// The addresses for which there is a listener: of Services' ports, and of workloads' that manifests name.
fn handed_over(world: &World) -> impl Iterator<Item = SocketAddr> {
    let direct = world.listeners().keys().filter_map(|key| key.parse::<SocketAddr>().ok());
    let direct = direct.filter(|address| address.port() != 0 && !address.ip().is_loopback());
    world.service_addresses().map(|(address, _)| address).chain(direct)
}

/// The ports of workloads' addresses that redirection leaves alone there, and that nothing else is known of.
fn left_alone(world: &World) -> impl Iterator<Item = SocketAddr> {
    let all = world.any_port_addresses().flat_map(|(ip, but)| {
        let ports: BTreeSet<u16> = but.iter().cloned().flatten().take(MAX_LEFT_ALONE).collect();
        ports.into_iter().map(move |port| SocketAddr::new(ip, port))
    });
    all.filter(|address| world.listener(&address.to_string()).is_none())
}

/// Who takes what is redirected to which port of which address; port 0 stands for all that are not named.
fn owned(world: &World) -> BTreeSet<(Option<&SpiffeId>, IpAddr, u16)> {
    let workloads = world.workloads().iter();
    let addresses = workloads.flat_map(|workload| {
        let own = workload.inbound.iter().filter_map(|key| parse_captured_listener(key));
        own.map(|ip| (workload.identity.as_ref(), ip))
    });
    addresses.flat_map(|(id, ip)| ports(world, ip).into_iter().map(move |port| (id, ip, port))).collect()
}

fn ports(world: &World, ip: IpAddr) -> BTreeSet<u16> {
    let listener = world.listener(&captured_listener(ip));
    let chains = listener.into_iter().flat_map(|listener| &listener.chains);
    chains.map(|chain| chain.matches.destination_port.unwrap_or_default()).collect()
}

/// Those of some addresses whose family the workload has; of IPv4 where it is not known.
fn of_families(envoy: &Envoy, own: &[IpAddr], addresses: [SocketAddr; 2]) -> Vec<SocketAddr> {
    let told: BTreeSet<bool> = own.iter().chain(&envoy.address).map(IpAddr::is_ipv6).collect();
    let told = if told.is_empty() { BTreeSet::from([false]) } else { told };
    addresses.into_iter().filter(|address| told.contains(&address.is_ipv6())).collect()
}

/// Where connections go of which the mesh knows nothing.
fn unknown(policy: OutboundPolicy) -> &'static str {
    match policy {
        OutboundPolicy::AllowAny => PASSTHROUGH,
        OutboundPolicy::RegistryOnly => BLACK_HOLE,
    }
}

fn to_cluster(name: &str, cluster: &str, port: Option<u16>) -> FilterChain {
    FilterChain {
        name: port.map_or_else(|| name.into(), |port| format!("{port}-{name}")),
        matches: ChainMatch { destination_port: port, ..ChainMatch::default() },
        tls: None,
        authorization: Vec::new(),
        protocol: Protocol::Tcp(TcpProxy::new(vec![(cluster.into(), 1)])),
    }
}
