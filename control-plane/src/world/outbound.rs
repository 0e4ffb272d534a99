//! Outbound: listeners and clusters for what applications dial.
//!
//! In: Services, their routes and policies; workloads that are dialled directly. Out: a listener per port (and per
//! namespace of clients that has consumer routes), and a cluster per port. Endpoints are fetched by the cluster's name and
//! never change a listener or a cluster.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    ChainMatch, Cluster, Discovery, DnsFamily, Domain, FilterChain, HostPort, HttpFilter, Listener,
    LoadBalancer, Protocol as Carried, RouteConfiguration, RouteSource, StringMatch, TcpProxy,
    TrafficDirection, Transport, UpstreamProtocol, UpstreamTls, VirtualHost,
};

use super::inbound::{detected_http, direct_cluster, http_connection, starts_with};
use super::policies::Attached;
use super::routes::{Builder, Group, RouteKind, TcpRule, direct_route};
use super::services::{Port, Protocol, Service};
use super::telemetry::Telemetry;
use super::traffic;
use crate::kinds::BackendTrafficPolicy;

/// A listener, and the route configuration that it names, if any.
pub(super) type Made = (Listener, Option<RouteConfiguration>);

/// The listener of a port, for the clients that `group` is for. `consumer` is their namespace, where the routes are
/// for them only.
pub(super) fn listener(
    service: &Service,
    port: &Port,
    group: Option<&Group>,
    consumer: Option<&str>,
    telemetry: &Telemetry,
    builder: &mut Builder<'_>,
) -> Made {
    let protocol = match group.map(|group| group.kind) {
        Some(RouteKind::Http | RouteKind::Grpc) => Protocol::Http,
        Some(RouteKind::Tls | RouteKind::Tcp) => Protocol::Tcp,
        None => port.protocol,
    };
    let address = service.cluster_ips.first().map(|ip| SocketAddr::new(*ip, port.number));
    let made = |chains| Listener {
        address,
        ..Listener::new(port.service.to_string(), TrafficDirection::Outbound, chains)
    };
    let policy = builder.policies.of_port(&service.key, port.name.as_deref());
    let policy = policy.map(|(_, policy)| &policy.spec);
    let idle = traffic::idle(policy);
    let stream_idle = traffic::longer_than_default(traffic::stream_idle(policy));
    if protocol == Protocol::Tcp {
        let rules = match group {
            Some(group) => builder.tcp(group),
            None => vec![to_service(port)],
        };
        return (made(rules.into_iter().map(|rule| tcp_chain(rule, idle, telemetry)).collect()), None);
    }
    let name = route_name(port, consumer);
    let routes = builder.http(name.clone(), service, port, group);
    let http = http_chain(RouteSource::Named(name), stream_idle, telemetry);
    let chains = match protocol {
        Protocol::Detect => detected(http, tcp_chain(to_service(port), idle, telemetry)),
        _ => vec![http],
    };
    (made(chains), Some(routes))
}

/// The listener of one address, dialled directly: no routes hold for it. Port 0 stands for all that have none of their own.
pub(super) fn direct_listener(address: SocketAddr, protocol: Protocol, telemetry: &Telemetry) -> Listener {
    let cluster = direct_cluster(address).to_string();
    let routes = vec![direct_route(cluster.clone())];
    let host = VirtualHost::new(address.to_string(), vec![Domain::Any], routes);
    let routes = RouteConfiguration::new(cluster.clone(), vec![host]);
    let http = http_chain(RouteSource::Inline(routes), None, telemetry);
    let tcp = TcpRule { name: "default".into(), server_names: Vec::new(), backends: vec![(cluster, 1)] };
    let chains = match protocol {
        Protocol::Http | Protocol::Http2 => vec![http],
        Protocol::Tcp => vec![tcp_chain(tcp, None, telemetry)],
        Protocol::Detect => detected(http, tcp_chain(tcp, None, telemetry)),
    };
    Listener {
        // All ports of an address are no place to listen on.
        address: Some(address).filter(|address| address.port() != 0),
        ..Listener::new(address.to_string(), TrafficDirection::Outbound, chains)
    }
}

/// The cluster of a port.
pub(super) fn cluster(
    service: &Service,
    port: &Port,
    policies: &Attached<'_, BackendTrafficPolicy>,
) -> Cluster {
    let name = port.cluster().to_string();
    let policy = policies.of_port(&service.key, port.name.as_deref()).map(|(_, policy)| &policy.spec);
    let connection = policy.and_then(|policy| policy.connection.as_ref());
    let discovery = match &service.external_name {
        Some(host) => {
            let host = HostPort { host: host.clone(), port: port.number };
            Discovery::StrictDns(vec![host], DnsFamily::All)
        }
        None => Discovery::Eds(name.clone()),
    };
    Cluster {
        load_balancer: traffic::load_balancer(policy),
        connect_timeout: connection.and_then(|settings| settings.connect_timeout).map(|time| time.get()),
        idle_timeout: traffic::idle(policy),
        max_requests_per_connection: None,
        limits: traffic::limits(policy),
        outlier_detection: Some(traffic::outlier_detection(policy)),
        tls: service.external_name.is_none().then(|| mesh_tls(port.cluster().sni())),
        protocol: upstream(port.protocol),
        ..Cluster::new(name, discovery)
    }
}

/// The cluster of one address, dialled directly.
pub(super) fn direct(address: SocketAddr, protocol: Protocol) -> Cluster {
    let name = direct_cluster(address);
    Cluster {
        // There is nothing to choose from.
        load_balancer: LoadBalancer::RoundRobin,
        tls: Some(mesh_tls(name.sni())),
        protocol: upstream(protocol),
        ..Cluster::new(name.to_string(), Discovery::Eds(name.to_string()))
    }
}

/// The cluster of all ports of a workload's address that no manifest names: whichever was dialled. Who answers there must
/// prove to be the workload.
pub(super) fn any_port(ip: IpAddr, identity: &SpiffeId) -> Cluster {
    let name = direct_cluster(SocketAddr::new(ip, 0));
    let tls = UpstreamTls {
        subject_alt_names: vec![StringMatch::exact(identity.as_str())],
        only_meshed_endpoints: false,
        ..mesh_tls(name.sni())
    };
    Cluster { tls: Some(tls), ..Cluster::new(name.to_string(), Discovery::OriginalDestination) }
}

/// mTLS to whichever endpoint has a sidecar: which those are changes with the endpoints, not with the cluster.
fn mesh_tls(sni: String) -> UpstreamTls {
    UpstreamTls { sni, subject_alt_names: Vec::new(), alpn: Vec::new(), only_meshed_endpoints: true }
}

fn upstream(protocol: Protocol) -> UpstreamProtocol {
    match protocol {
        Protocol::Http2 => UpstreamProtocol::Http2,
        Protocol::Http | Protocol::Tcp | Protocol::Detect => UpstreamProtocol::Downstream,
    }
}

/// `outbound|<port>||<fqdn>`, or `outbound|<port>|~<namespace>|<fqdn>` for the clients of one namespace.
pub(super) fn route_name(port: &Port, consumer: Option<&str>) -> String {
    let service = &port.service;
    let subset = consumer.map(|namespace| format!("~{namespace}")).unwrap_or_default();
    format!("outbound|{}|{subset}|{}", service.port, service.fqdn)
}

fn to_service(port: &Port) -> TcpRule {
    TcpRule {
        name: "default".into(),
        server_names: Vec::new(),
        backends: vec![(port.cluster().to_string(), 1)],
    }
}

fn http_chain(routes: RouteSource, stream_idle: Option<Duration>, telemetry: &Telemetry) -> FilterChain {
    FilterChain {
        name: "http".into(),
        matches: ChainMatch::default(),
        tls: None,
        authorization: Vec::new(),
        protocol: Carried::Http(http_connection(routes, HttpFilter::for_routes(), stream_idle, telemetry)),
    }
}

/// HTTP where the first bytes are, else bytes; the application's own TLS too.
fn detected(mut http: FilterChain, mut plaintext: FilterChain) -> Vec<FilterChain> {
    http.matches = detected_http();
    plaintext.name = "tcp".into();
    plaintext.matches = starts_with(Transport::Plaintext);
    let mut tls = plaintext.clone();
    tls.name = "tls".into();
    tls.matches = starts_with(Transport::Tls);
    vec![http, plaintext, tls]
}

fn tcp_chain(rule: TcpRule, idle_timeout: Option<Duration>, telemetry: &Telemetry) -> FilterChain {
    let transport = (!rule.server_names.is_empty()).then_some(Transport::Tls);
    FilterChain {
        name: rule.name,
        matches: ChainMatch { transport, server_names: rule.server_names, ..ChainMatch::default() },
        tls: None,
        authorization: Vec::new(),
        protocol: Carried::Tcp(TcpProxy {
            idle_timeout,
            access_log: telemetry.access_log.clone(),
            ..TcpProxy::new(rule.backends)
        }),
    }
}
