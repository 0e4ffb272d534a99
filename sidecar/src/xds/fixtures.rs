//! Short ways to write resources in tests.

use std::net::SocketAddr;

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::*;

use super::testing::CART;

/// An HTTP listener whose routes are in the route configuration of this name.
pub(crate) fn http_listener(name: &str, direction: TrafficDirection, routes: RouteSource) -> Listener {
    let http = HttpConnection {
        routes,
        filters: Vec::new(),
        idle_timeout: None,
        stream_idle_timeout: None,
        request_headers_timeout: None,
        max_request_headers_bytes: None,
        max_headers: None,
        max_concurrent_streams: None,
        tracing: None,
        access_log: None,
    };
    Listener {
        name: name.into(),
        direction,
        address: tulle_mesh::address::parse_inbound_listener(name),
        chains: vec![FilterChain {
            name: "http".into(),
            matches: ChainMatch::default(),
            tls: None,
            authorization: Vec::new(),
            protocol: Protocol::Http(http),
        }],
    }
}

/// Routes of one host that send everything to these clusters.
pub(crate) fn routes(name: &str, clusters: &[&str]) -> RouteConfiguration {
    let backends = clusters.iter().map(|cluster| Backend {
        cluster: (*cluster).into(),
        weight: 1,
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
    });
    let forward = Forward {
        backends: backends.collect(),
        unknown_cluster_status: http::StatusCode::SERVICE_UNAVAILABLE,
        timeouts: Timeouts::default(),
        retry: None,
        path_rewrite: None,
        host_rewrite: None,
        mirrors: Vec::new(),
        hash: Vec::new(),
    };
    let route = Route {
        name: "all".into(),
        origin: None,
        matches: RouteMatch {
            path: PathMatch::Prefix("/".into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
            fraction: None,
        },
        action: RouteAction::Forward(forward),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        fault: None,
    };
    let host = VirtualHost { name: "all".into(), domains: vec![Domain::Any], routes: vec![route] };
    RouteConfiguration { name: name.into(), virtual_hosts: vec![host] }
}

/// A cluster in plaintext.
pub(crate) fn cluster(name: &str, discovery: Discovery) -> Cluster {
    Cluster {
        name: name.into(),
        discovery,
        load_balancer: LoadBalancer::RoundRobin,
        connect_timeout: None,
        idle_timeout: None,
        limits: Limits::default(),
        outlier_detection: None,
        tls: None,
        protocol: UpstreamProtocol::Downstream,
    }
}

/// Endpoints on port 80 of these addresses.
pub(crate) fn endpoints(name: &str, addresses: &[[u8; 4]]) -> LoadAssignment {
    let endpoints = addresses.iter().map(|ip| Endpoint {
        address: EndpointAddress::Socket(SocketAddr::from((*ip, 80))),
        health: Health::Healthy,
        weight: 1,
        hostname: String::new(),
        meshed: true,
        identity: Some(CART.parse::<SpiffeId>().expect("valid")),
        workload: String::new(),
    });
    let locality = Locality { region: "here".into(), ..Locality::default() };
    let place = LocalityEndpoints { locality, priority: 0, weight: 1, endpoints: endpoints.collect() };
    LoadAssignment { name: name.into(), localities: vec![place] }
}
