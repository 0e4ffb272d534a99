//! Short ways to write resources in tests.

use std::net::SocketAddr;

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::*;

use super::testing::CART;

/// An HTTP listener whose routes are in the route configuration of this name.
pub(crate) fn http_listener(name: &str, direction: TrafficDirection, routes: RouteSource) -> Listener {
    let http = HttpConnection::new(routes);
    let chain = FilterChain {
        name: "http".into(),
        matches: ChainMatch::default(),
        tls: None,
        authorization: Vec::new(),
        protocol: Protocol::Http(http),
    };
    let address = tulle_mesh::address::parse_inbound_listener(name);
    Listener { address, ..Listener::new(name, direction, vec![chain]) }
}

/// Routes of one host that send everything to these clusters.
pub(crate) fn routes(name: &str, clusters: &[&str]) -> RouteConfiguration {
    let backends = clusters.iter().map(|cluster| Backend::new(*cluster, 1));
    let forward = Forward::new(backends.collect());
    let route =
        Route::new("all", RouteMatch::new(PathMatch::Prefix("/".into())), RouteAction::Forward(forward));
    let host = VirtualHost::new("all", vec![Domain::Any], vec![route]);
    RouteConfiguration::new(name, vec![host])
}

/// A cluster in plaintext.
pub(crate) fn cluster(name: &str, discovery: Discovery) -> Cluster {
    Cluster { load_balancer: LoadBalancer::RoundRobin, ..Cluster::new(name, discovery) }
}

/// Endpoints on port 80 of these addresses.
pub(crate) fn endpoints(name: &str, addresses: &[[u8; 4]]) -> LoadAssignment {
    let endpoints = addresses.iter().map(|ip| Endpoint {
        meshed: true,
        identity: Some(CART.parse::<SpiffeId>().expect("valid")),
        ..Endpoint::new(EndpointAddress::Socket(SocketAddr::from((*ip, 80))))
    });
    let locality = Locality { region: "here".into(), ..Locality::default() };
    let place = LocalityEndpoints { locality, priority: 0, weight: 1, endpoints: endpoints.collect() };
    LoadAssignment { overprovisioning: None, name: name.into(), localities: vec![place], drops: Vec::new() }
}
