//! What gRPC and Envoy get in place of what sidecars get: the same models, in the forms that they take.
//!
//! A gRPC client gets the listener of any port that may carry HTTP, under the name that it asked for; a gRPC server the chain
//! of its port that ends mTLS. Envoy gets a listener for each virtual address and port, `<ip>_<port>`, and, where its node
//! names the workload's address, the inbound listeners of that, with the clusters that lead to the application; one that
//! connections are redirected to gets other listeners ([`captured`]). Clusters name the identities of all their
//! endpoints. Nothing here decides who may call: authorization is carried over as it is, or there
//! is no listener. What depends on a client's own folder is encoded for it each time and never kept.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tulle_mesh::address::{ClusterName, parse_captured_listener, parse_inbound_listener};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    ChainMatch, Cluster, Discovery, Endpoint, EndpointAddress, FilterChain, HttpConnection, HttpFilter,
    Listener, LoadAssignment, Protocol, RouteAction, RouteSource, StringMatch, TrafficDirection,
    UpstreamProtocol,
};
use tulle_mesh::xds::client::Envoy;
use tulle_mesh::xds::{self, Resource};

use super::{View, captured};
use crate::world::{Changes, MeshWorkload, World};
use crate::xds::{Client, Encoded, Kind};

impl View {
    /// The listener of a gRPC client (by any name of a Service's port) or of a gRPC server (by its address).
    pub(super) fn grpc_listener(&self, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let caller = &client.caller;
        let listener = match parse_inbound_listener(name) {
            Some(address) => {
                let key = match address.ip().is_unspecified() {
                    true => everywhere(&self.world, address.port(), &caller.identity)?,
                    false => name.into(),
                };
                let listener = self.world.listener(&key).filter(|_| self.shows(&key, &caller.identity))?;
                server(listener, name, address)?
            }
            None => {
                let key = self.world.resolve(name, caller.namespace())?;
                let listener = self.world.listener(&key)?;
                if listener.direction == TrafficDirection::Inbound {
                    return None;
                }
                client_end(listener, name)?
            }
        };
        Some(encode(&Resource::Listener(listener), client))
    }

    /// A listener of an Envoy.
    pub(super) fn envoy_listener(&self, name: &str, envoy: &Envoy, client: &Client) -> Option<Arc<Encoded>> {
        let caller = &client.caller;
        if let Some(policy) = envoy.capture {
            return self.captured_listener(name, (envoy, policy), client);
        }
        if binds(envoy, name) {
            let listener = self.world.listener(name).filter(|_| self.shows(name, &caller.identity))?;
            return Some(encode(&Resource::Listener((**listener).clone()), client));
        }
        let address = virtual_address(name)?;
        let key = self.world.resolve(&address.to_string(), caller.namespace())?;
        let listener = self.world.listener(&key)?;
        if listens(&key, listener) != Some(address) {
            return None;
        }
        Some(encode(&Resource::Listener(Listener { name: name.into(), ..(**listener).clone() }), client))
    }

    /// The names of all listeners of an Envoy.
    pub(super) fn envoy_listeners(&self, envoy: &Envoy, client: &Client) -> Vec<Arc<str>> {
        if envoy.capture.is_some() {
            return self.captured_listeners();
        }
        let identity = &client.caller.identity;
        let all = self.world.listeners().iter();
        let names = all.filter_map(|(key, listener)| match listens(key, listener) {
            Some(address) => Some(virtual_name(address)),
            None => (binds(envoy, key) && self.shows(key, identity)).then(|| Arc::clone(key)),
        });
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// A cluster for who pins no endpoint.
    pub(super) fn peer_cluster(&self, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let cluster = match self.world.cluster(name) {
            Some(cluster) => pinned(cluster, self.world.assignment(name)),
            None if captures(client) => self.captured_cluster(name, client)?,
            None => application(self.workload(client)?, name)?,
        };
        let cluster = if client.kind == xds::Client::Grpc { looked_up_once(cluster) } else { cluster };
        Some(encode(&Resource::Cluster(cluster), client))
    }

    /// Routes for an Envoy: beside the bound that gRPC's own clients need, it would pass over the timeouts.
    pub(super) fn envoy_routes(&self, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let mut routes = (**self.world.routes().get(name)?).clone();
        for route in routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes) {
            if let RouteAction::Forward(forward) = &mut route.action {
                forward.timeouts.grpc = None;
            }
        }
        Some(encode(&Resource::Route(routes), client))
    }

    /// A cluster's endpoints, where they are not the same for all.
    pub(super) fn peer_endpoints(&self, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let own = captures(client).then(|| self.captured_endpoints(name, client)).flatten();
        own.or_else(|| self.shared(Kind::Endpoint, name, &client.caller))
    }

    /// The names of the clusters that are for one client alone, such as those that lead to the application beside an Envoy.
    pub(super) fn own_clusters(&self, client: &Client) -> BTreeSet<Arc<str>> {
        if captures(client) {
            return self.captured_clusters(client);
        }
        let ports = self.workload(client).into_iter().flat_map(|workload| workload.apps.keys());
        ports.map(|port| ClusterName::Inbound { port: *port }.to_string().into()).collect()
    }

    /// The workload that an Envoy takes connections for.
    pub(super) fn workload(&self, client: &Client) -> Option<&MeshWorkload> {
        let xds::Client::Envoy(envoy) = &client.kind else { return None };
        self.world.workloads().iter().find(|workload| {
            workload.identity.as_ref() == Some(&client.caller.identity)
                && workload.inbound.iter().any(|key| binds(envoy, key) || is_captured_by(envoy, key))
        })
    }
}

/// The names of what changed for gRPC and Envoy, and has other names or does not change for sidecars. `worlds`: before and
/// after.
pub(super) fn changed(changes: &Changes, worlds: [&World; 2]) -> Vec<(Kind, Arc<str>)> {
    let listeners = changes.listeners.updated.iter().chain(&changes.listeners.removed);
    let bound = listeners.flat_map(|key| {
        let address = |world: &World| listens(key, world.listener(key)?);
        worlds.into_iter().filter_map(address).map(|address| (Kind::Listener, virtual_name(address)))
    });
    let endpoints = changes.endpoints.updated.iter().chain(&changes.endpoints.removed);
    let pinned = endpoints.filter(|key| {
        let [before, after] = worlds.map(|world| world.assignment(key).map(|held| identities(held)));
        before != after
    });
    let [before, after] = worlds.map(applications);
    let moved = before.symmetric_difference(&after).map(|(_, port, _)| ClusterName::Inbound { port: *port });
    let clusters = pinned.cloned().chain(moved.map(|name| name.to_string().into()));
    bound
        .chain(clusters.map(|name| (Kind::Cluster, name)))
        .chain(captured::changed(changes, worlds))
        .collect()
}

/// Whose application is behind which mesh port.
fn applications(world: &World) -> BTreeSet<(Option<&SpiffeId>, u16, u16)> {
    let workloads = world.workloads().iter();
    let apps = workloads.flat_map(|workload| {
        workload.apps.iter().map(|(mesh, app)| (workload.identity.as_ref(), *mesh, *app))
    });
    apps.collect()
}

pub(super) fn encode(resource: &Resource, client: &Client) -> Arc<Encoded> {
    Arc::new(Encoded::new(resource.name(), resource.encode_for(&client.kind)))
}

/// `None` for what is no HTTP.
fn client_end(listener: &Listener, name: &str) -> Option<Listener> {
    let chain = listener.chains.iter().find(|chain| matches!(chain.protocol, Protocol::Http(_)))?;
    let chain = FilterChain { matches: ChainMatch::default(), ..chain.clone() };
    Some(Listener::new(name, listener.direction, vec![chain]))
}

/// Such a server can't tell plaintext from mTLS: where both may come, it takes mTLS alone. `None` for what is no HTTP.
fn server(listener: &Listener, name: &str, address: SocketAddr) -> Option<Listener> {
    let http = || listener.chains.iter().filter(|chain| matches!(chain.protocol, Protocol::Http(_)));
    let chain = http().find(|chain| chain.tls.is_some()).or_else(|| http().next())?;
    let Protocol::Http(connection) = &chain.protocol else { return None };
    // It has no network filters but the one for HTTP, so what holds for the connection is checked for each request.
    let on_connection = chain.authorization.iter().cloned().map(HttpFilter::Authorization);
    let filters = on_connection.chain(connection.filters.iter().cloned()).collect();
    let mut routes = connection.routes.clone();
    if let RouteSource::Inline(routes) = &mut routes {
        let all = routes.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes);
        all.for_each(|route| route.action = RouteAction::NonForwarding);
    }
    let chain = FilterChain {
        matches: ChainMatch::default(),
        authorization: Vec::new(),
        protocol: Protocol::Http(HttpConnection { filters, routes, ..connection.clone() }),
        ..chain.clone()
    };
    Some(Listener { address: Some(address), ..Listener::new(name, listener.direction, vec![chain]) })
}

/// The inbound listener for a port at all addresses: that of the workload which is `identity` and has the port, if all that
/// there are treat connections alike.
fn everywhere(world: &World, port: u16, identity: &SpiffeId) -> Option<Arc<str>> {
    let is_port = |key: &&Arc<str>| parse_inbound_listener(key).is_some_and(|address| address.port() == port);
    let mut found = world.inbound_of(identity).filter(is_port);
    let first = found.next()?;
    let chains = |key: &str| world.listener(key).map(|listener| &listener.chains);
    found.all(|other| chains(other) == chains(first)).then(|| Arc::clone(first))
}

/// The address that an Envoy binds for an outbound listener: a Service's own, where that is one of loopback. Any other needs
/// redirection, of which Envoy knows nothing.
fn listens(key: &str, listener: &Listener) -> Option<SocketAddr> {
    let is_service = listener.direction == TrafficDirection::Outbound && key.parse::<SocketAddr>().is_err();
    listener.address.filter(|address| is_service && address.ip().is_loopback())
}

pub(super) fn virtual_name(address: SocketAddr) -> Arc<str> {
    format!("{}_{}", address.ip(), address.port()).into()
}

pub(super) fn virtual_address(name: &str) -> Option<SocketAddr> {
    let (ip, port) = name.rsplit_once('_')?;
    Some(SocketAddr::new(ip.parse().ok()?, port.parse().ok()?))
}

/// Whether an inbound listener is one of an Envoy's.
fn binds(envoy: &Envoy, key: &str) -> bool {
    parse_inbound_listener(key).is_some_and(|address| envoy.address == Some(address.ip()))
}

/// Whether an inbound listener is the one for all connections that are redirected to an Envoy's address.
fn is_captured_by(envoy: &Envoy, key: &str) -> bool {
    parse_captured_listener(key).is_some_and(|ip| envoy.address == Some(ip))
}

/// Whether connections are redirected to it.
fn captures(client: &Client) -> bool {
    matches!(&client.kind, xds::Client::Envoy(Envoy { capture: Some(_), .. }))
}

/// The cluster of the application behind a mesh port, on loopback as with Istio.
fn application(workload: &MeshWorkload, name: &str) -> Option<Cluster> {
    let Ok(ClusterName::Inbound { port }) = name.parse() else { return None };
    let app = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), *workload.apps.get(&port)?);
    let assignment = LoadAssignment::new(name, vec![Endpoint::new(EndpointAddress::Socket(app))]);
    let cluster = Cluster::new(name, Discovery::Static(assignment));
    Some(Cluster { protocol: UpstreamProtocol::Downstream, ..cluster })
}

/// Whoever is an endpoint may answer.
fn pinned(cluster: &Cluster, assignment: Option<&Arc<LoadAssignment>>) -> Cluster {
    let mut cluster = cluster.clone();
    if let Some(tls) = cluster.tls.as_mut().filter(|tls| tls.subject_alt_names.is_empty()) {
        let names = assignment.map(|assignment| identities(assignment)).unwrap_or_default();
        tls.subject_alt_names = names.iter().map(|id| StringMatch::exact(id.as_str())).collect();
    }
    cluster
}

/// gRPC looks names up in one way only.
fn looked_up_once(mut cluster: Cluster) -> Cluster {
    if let Discovery::StrictDns(hosts, family) = &cluster.discovery
        && let [host] = hosts.as_slice()
    {
        cluster.discovery = Discovery::LogicalDns(host.clone(), *family);
    }
    cluster
}

/// Who answers at the endpoints of the mesh.
fn identities(assignment: &LoadAssignment) -> Vec<SpiffeId> {
    let mut identities: Vec<_> =
        assignment.endpoints().filter_map(|endpoint| endpoint.identity.clone()).collect();
    identities.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    identities.dedup();
    identities
}
