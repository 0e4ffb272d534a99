//! Clusters.
//!
//! One message serves Tulle's sidecar, Envoy and gRPC. Where Envoy has no field, a value goes into the nearest one: the
//! retries per second of a budget are its `min_retry_concurrency`.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, DnsLookupFamily, EdsClusterConfig, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::core::v3::{self as core, address};
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint_pb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3 as http_pb;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Any, Struct, UInt32Value};

use super::endpoint::{self, ISTIO_TLS_MODE, MESH_TLS_MODE, TLS_MODE};
use super::error::{At, Decoded, FieldError, is_set, non_empty, refuse, required, unsupported};
use super::{Kind, XdsError, http2, proto, tls};
use crate::model::{
    Cluster, Discovery, DnsFamily, HostPort, Http2, LoadBalancer, Panic, UpstreamProtocol, UpstreamTls,
};
use crate::xds::Client;

mod balance;
mod connections;
mod limits;
mod localities;
mod outliers;

use balance::Choice;
use localities::Localities;

/// The key of a cluster's HTTP settings.
const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Writes a cluster. The same model always gives the same bytes.
pub fn encode(cluster: &Cluster) -> pb::Cluster {
    encode_for(cluster, &Client::Sidecar)
}

/// The same in the form that a kind of client takes.
pub fn encode_for(cluster: &Cluster, client: &Client) -> pb::Cluster {
    let mut message = pb::Cluster {
        name: cluster.name.clone(),
        alt_stat_name: cluster.alias.clone().unwrap_or_default(),
        connect_timeout: cluster.connect_timeout.map(proto::duration),
        circuit_breakers: limits::encode(&cluster.limits),
        outlier_detection: cluster.outlier_detection.as_ref().map(outliers::encode),
        common_lb_config: Some(localities::encode(cluster)),
        upstream_connection_options: connections::encode(cluster),
        typed_extension_protocol_options: [(HTTP_OPTIONS.to_owned(), encode_http(cluster))].into(),
        ..Default::default()
    };
    encode_discovery(&mut message, cluster);
    if let Some(tls) = &cluster.tls {
        encode_tls(&mut message, tls, client);
    }
    message
}

/// Reads a cluster.
///
/// # Errors
/// When a field is not valid, or something that Tulle does not do would change where a request goes.
pub fn decode(message: pb::Cluster) -> Result<Cluster, XdsError> {
    let name = message.name.clone();
    decode_cluster(message).map_err(|error| error.of(Kind::Cluster, &name))
}

fn decode_cluster(mut message: pb::Cluster) -> Decoded<Cluster> {
    let name = non_empty(std::mem::take(&mut message.name), "name")?;
    let subsets = message.lb_subset_config.as_ref().is_some_and(|config| !config.subset_selectors.is_empty());
    unsupported(subsets, "lb_subset_config", "make a cluster of its own for each subset")?;
    unsupported(!message.filters.is_empty(), "filters", "leave them out")?;
    refuse_rest(&message)?;
    let Localities { places, panic_threshold, sessions } =
        localities::decode(message.common_lb_config.as_ref())?;
    let Http { protocol, http2, idle_timeout, max_requests_per_connection } = decode_http(&message)?;
    let discovery = decode_discovery(&message, &name)?;
    let (keepalive, happy_eyeballs) = connections::decode(message.upstream_connection_options.as_ref())
        .at("upstream_connection_options")?;
    let Choice { balancer: load_balancer, localities: by_policy } = match discovery {
        // There is nothing to choose from.
        Discovery::OriginalDestination => Choice::of(LoadBalancer::PeakEwma),
        _ => balance::decode(&message)?,
    };
    // What a policy of the list says of localities goes before what stands beside.
    let fails_requests = places.fails_requests || by_policy.is_some_and(|places| places.fails_requests);
    let weighted = by_policy.unwrap_or(places).weighted.unwrap_or(load_balancer == LoadBalancer::PeakEwma);
    Ok(Cluster {
        alias: Some(message.alt_stat_name).filter(|alias| !alias.is_empty()),
        discovery,
        load_balancer,
        connect_timeout: proto::decode_positive(message.connect_timeout, "connect_timeout")?,
        idle_timeout,
        http2,
        max_requests_per_connection,
        limits: limits::decode(message.circuit_breakers).at("circuit_breakers")?,
        outlier_detection: message
            .outlier_detection
            .map(|detection| outliers::decode(detection).at("outlier_detection"))
            .transpose()?,
        tls: decode_tls(
            message.transport_socket,
            message.transport_socket_matches,
            message.transport_socket_matcher.is_some(),
        )?,
        protocol,
        ignores_localities: !weighted,
        panic: Panic { threshold: panic_threshold, fails_requests },
        sessions,
        keepalive,
        happy_eyeballs,
        name,
    })
}

fn encode_discovery(message: &mut pb::Cluster, cluster: &Cluster) {
    let hosts = |hosts: &[HostPort]| encode_hosts(&cluster.name, hosts);
    let discovery = match &cluster.discovery {
        Discovery::Eds(service_name) => {
            message.eds_cluster_config =
                Some(EdsClusterConfig { eds_config: proto::ads(), service_name: service_name.clone() });
            DiscoveryType::Eds
        }
        Discovery::Static(assignment) => {
            message.load_assignment = Some(endpoint::encode(assignment));
            DiscoveryType::Static
        }
        Discovery::StrictDns(names, family) => {
            message.load_assignment = Some(hosts(names));
            message.dns_lookup_family = encode_family(*family) as i32;
            DiscoveryType::StrictDns
        }
        Discovery::LogicalDns(name, family) => {
            message.load_assignment = Some(hosts(std::slice::from_ref(name)));
            message.dns_lookup_family = encode_family(*family) as i32;
            DiscoveryType::LogicalDns
        }
        Discovery::OriginalDestination => DiscoveryType::OriginalDst,
    };
    message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(discovery as i32));
    if discovery == DiscoveryType::OriginalDst {
        message.lb_policy = pb::cluster::LbPolicy::ClusterProvided as i32;
    } else {
        message.load_balancing_policy =
            Some(balance::encode(cluster.load_balancer, !cluster.ignores_localities));
    }
}

fn decode_discovery(message: &pb::Cluster, name: &str) -> Decoded<Discovery> {
    let number = match &message.cluster_discovery_type {
        None => DiscoveryType::Static as i32,
        Some(ClusterDiscoveryType::Type(number)) => *number,
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            return Err(FieldError::new(format!("{:?} is not supported: use type", custom.name)))
                .at("cluster_type");
        }
    };
    let field = "load_assignment";
    match DiscoveryType::try_from(number) {
        Ok(DiscoveryType::Eds) => {
            let config = required(message.eds_cluster_config.clone(), "eds_cluster_config")?;
            proto::decode_source(config.eds_config, "eds_cluster_config.eds_config")?;
            let service_name = config.service_name;
            Ok(Discovery::Eds(if service_name.is_empty() { name.into() } else { service_name }))
        }
        Ok(DiscoveryType::Static) => {
            let mut assignment = required(message.load_assignment.clone(), field)?;
            if assignment.cluster_name.is_empty() {
                assignment.cluster_name = name.into();
            }
            Ok(Discovery::Static(endpoint::decode_assignment(assignment).at(field)?))
        }
        Ok(DiscoveryType::StrictDns) => Ok(Discovery::StrictDns(
            decode_hosts(required(message.load_assignment.clone(), field)?).at(field)?,
            decode_family(message.dns_lookup_family)?,
        )),
        Ok(DiscoveryType::LogicalDns) => {
            let hosts = decode_hosts(required(message.load_assignment.clone(), field)?).at(field)?;
            let count = hosts.len();
            let [host] = <[HostPort; 1]>::try_from(hosts)
                .map_err(|_| FieldError::new(format!("holds {count} endpoints: LOGICAL_DNS takes one")))
                .at(field)?;
            Ok(Discovery::LogicalDns(host, decode_family(message.dns_lookup_family)?))
        }
        Ok(DiscoveryType::OriginalDst) => Ok(Discovery::OriginalDestination),
        Err(_) => Err(FieldError::new(format!("{number} is not a type of discovery"))).at("type"),
    }
}

fn encode_family(family: DnsFamily) -> DnsLookupFamily {
    match family {
        DnsFamily::Auto => DnsLookupFamily::Auto,
        DnsFamily::V4Only => DnsLookupFamily::V4Only,
        DnsFamily::V6Only => DnsLookupFamily::V6Only,
        DnsFamily::V4Preferred => DnsLookupFamily::V4Preferred,
        DnsFamily::All => DnsLookupFamily::All,
    }
}

fn decode_family(family: i32) -> Decoded<DnsFamily> {
    match DnsLookupFamily::try_from(family) {
        Ok(DnsLookupFamily::Auto) => Ok(DnsFamily::Auto),
        Ok(DnsLookupFamily::V4Only) => Ok(DnsFamily::V4Only),
        Ok(DnsLookupFamily::V6Only) => Ok(DnsFamily::V6Only),
        Ok(DnsLookupFamily::V4Preferred) => Ok(DnsFamily::V4Preferred),
        Ok(DnsLookupFamily::All) => Ok(DnsFamily::All),
        Err(_) => Err(FieldError::new(format!("{family} is not a family: use ALL"))).at("dns_lookup_family"),
    }
}

fn encode_hosts(cluster: &str, hosts: &[HostPort]) -> endpoint_pb::ClusterLoadAssignment {
    let endpoints = hosts.iter().map(|host| endpoint_pb::LbEndpoint {
        host_identifier: Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(endpoint_pb::Endpoint {
            address: Some(proto::socket_address(host.host.clone(), host.port)),
            ..Default::default()
        })),
        ..Default::default()
    });
    endpoint_pb::ClusterLoadAssignment {
        cluster_name: cluster.into(),
        endpoints: vec![endpoint_pb::LocalityLbEndpoints {
            locality: Some(core::Locality::default()),
            lb_endpoints: endpoints.collect(),
            load_balancing_weight: proto::u32_value(1),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn decode_hosts(assignment: endpoint_pb::ClusterLoadAssignment) -> Decoded<Vec<HostPort>> {
    let mut hosts = Vec::new();
    for (group, endpoints) in assignment.endpoints.into_iter().enumerate() {
        for (index, endpoint) in endpoints.lb_endpoints.into_iter().enumerate() {
            hosts.push(decode_host(endpoint).at_item("lb_endpoints", index).at_item("endpoints", group)?);
        }
    }
    Ok(hosts)
}

fn decode_host(endpoint: endpoint_pb::LbEndpoint) -> Decoded<HostPort> {
    let address = match endpoint.host_identifier {
        Some(endpoint_pb::lb_endpoint::HostIdentifier::Endpoint(endpoint)) => endpoint.address,
        _ => None,
    };
    match address.and_then(|address| address.address) {
        Some(address::Address::SocketAddress(socket)) => {
            let (host, port) = proto::decode_host_port(socket).at("endpoint.address.socket_address")?;
            Ok(HostPort { host, port })
        }
        _ => required(None, "endpoint.address.socket_address"),
    }
}

fn encode_http(cluster: &Cluster) -> Any {
    let explicit = |protocol| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(protocol) })
    };
    let protocol = match cluster.protocol {
        UpstreamProtocol::Http1 => {
            explicit(ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default()))
        }
        UpstreamProtocol::Http2 => {
            explicit(ProtocolConfig::Http2ProtocolOptions(http2::encode(&cluster.http2)))
        }
        UpstreamProtocol::Downstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2::encode(&cluster.http2)),
                http3_protocol_options: None,
            })
        }
    };
    let common = core::HttpProtocolOptions {
        idle_timeout: cluster.idle_timeout.map(proto::duration),
        max_requests_per_connection: proto::u32_value(cluster.max_requests_per_connection),
        ..Default::default()
    };
    proto::any(&http_pb::HttpProtocolOptions {
        common_http_protocol_options: is_set(&common).then_some(common),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    })
}

#[expect(deprecated, reason = "other control planes may still send old fields")]
fn refuse_rest(message: &pb::Cluster) -> Decoded<()> {
    refuse!(message;
        close_connections_on_host_health_failure, connection_pool_per_downstream_connection, dns_resolution_config, dns_resolvers,
        health_checks, http_protocol_options, protocol_selection,
        typed_dns_resolver_config, upstream_bind_config, upstream_config, upstream_http_protocol_options,
        use_tcp_for_dns_lookups)?;
    if let Some(pb::cluster::LbConfig::OriginalDstLbConfig(original)) = &message.lb_config {
        refuse!(original; http_header_name, metadata_key, upstream_port_override, use_http_header)
            .at("original_dst_lb_config")?;
    }
    Ok(())
}

fn refuse_options(options: &http_pb::HttpProtocolOptions) -> Decoded<()> {
    refuse!(options;
        hash_policy, header_validation_config, http_filters, outlier_detection, request_mirror_policies,
        retry_policy, upstream_http_protocol_options)?;
    refuse_common(options.common_http_protocol_options.as_ref())
}

/// Refuses what is of no use towards endpoints.
fn refuse_common(common: Option<&core::HttpProtocolOptions>) -> Decoded<()> {
    proto::refuse_common(common)?;
    common.map_or(Ok(()), |common| {
        refuse!(common; headers_with_underscores_action, max_headers_count, max_stream_duration)
            .at("common_http_protocol_options")
    })
}

/// How a cluster's endpoints are spoken to.
struct Http {
    protocol: UpstreamProtocol,
    http2: Http2,
    idle_timeout: Option<std::time::Duration>,
    max_requests_per_connection: Option<u32>,
}

/// As in Envoy, a cluster speaks HTTP/1.1 unless something else is set. What stands in the options goes before the older field
/// of the cluster, and 0 is no limit.
#[expect(deprecated, reason = "HTTP/2 and a limit on requests are still asked for by old fields")]
fn decode_http(message: &pb::Cluster) -> Decoded<Http> {
    let field = "typed_extension_protocol_options";
    let options: &HashMap<String, Any> = &message.typed_extension_protocol_options;
    let most = |limit: Option<UInt32Value>| limit.map(|limit| limit.value);
    let older_common = message.common_http_protocol_options.as_ref();
    refuse_common(older_common)?;
    let older = older_common.and_then(|common| most(common.max_requests_per_connection));
    let older = older.or(most(message.max_requests_per_connection));
    let Some(config) = options.get(HTTP_OPTIONS) else {
        let http2 = message.http2_protocol_options.as_ref().map(http2::decode).transpose();
        let http2 = http2.at("http2_protocol_options")?;
        return Ok(Http {
            protocol: if http2.is_some() { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 },
            http2: http2.unwrap_or_default(),
            idle_timeout: proto::decode_duration(
                older_common.and_then(|common| common.idle_timeout),
                "common_http_protocol_options.idle_timeout",
            )?,
            max_requests_per_connection: older.filter(|most| *most > 0),
        });
    };
    let options: http_pb::HttpProtocolOptions = proto::unpack(config).at_key(field, HTTP_OPTIONS)?;
    refuse_options(&options).at_key(field, HTTP_OPTIONS)?;
    let http2 = http2_options(&options).map(http2::decode).transpose();
    let http2 = http2.at("http2_protocol_options").at_key(field, HTTP_OPTIONS)?.unwrap_or_default();
    let protocol = match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(ProtocolConfig::HttpProtocolOptions(http1)) => {
                let at = "explicit_http_config.http_protocol_options";
                unsupported(is_set(&http1), at, "leave it empty").at_key(field, HTTP_OPTIONS)?;
                UpstreamProtocol::Http1
            }
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => UpstreamProtocol::Http2,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                return Err(FieldError::new("HTTP/3 is not supported: use http2_protocol_options"))
                    .at("explicit_http_config")
                    .at_key(field, HTTP_OPTIONS);
            }
            None => UpstreamProtocol::Http1,
        },
        // Both pick per connection: by what the client spoke, or by ALPN.
        Some(
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(_) | UpstreamProtocolOptions::AutoConfig(_),
        ) => UpstreamProtocol::Downstream,
        None => UpstreamProtocol::Http1,
    };
    let common = options.common_http_protocol_options.unwrap_or_default();
    let idle = proto::decode_duration(common.idle_timeout, "common_http_protocol_options.idle_timeout");
    Ok(Http {
        protocol,
        http2,
        idle_timeout: idle.at_key(field, HTTP_OPTIONS)?,
        max_requests_per_connection: most(common.max_requests_per_connection)
            .or(older)
            .filter(|most| *most > 0),
    })
}

/// What is said of connections that speak HTTP/2, wherever it stands.
fn http2_options(options: &http_pb::HttpProtocolOptions) -> Option<&core::Http2ProtocolOptions> {
    match options.upstream_protocol_options.as_ref()? {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => match explicit.protocol_config.as_ref()? {
            ProtocolConfig::Http2ProtocolOptions(http2) => Some(http2),
            ProtocolConfig::HttpProtocolOptions(_) | ProtocolConfig::Http3ProtocolOptions(_) => None,
        },
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(config) => {
            config.http2_protocol_options.as_ref()
        }
        UpstreamProtocolOptions::AutoConfig(config) => config.http2_protocol_options.as_ref(),
    }
}

/// gRPC knows no `transport_socket_matches`, so they are written only where plaintext endpoints are among the others. A gRPC
/// client speaks mTLS to all endpoints as soon as one of them has an identity: it never falls back to plaintext.
fn encode_tls(message: &mut pb::Cluster, tls: &UpstreamTls, client: &Client) {
    let one_for_all = match client {
        Client::Grpc => !tls.only_meshed_endpoints || !tls.subject_alt_names.is_empty(),
        Client::Sidecar | Client::Envoy(_) => !tls.only_meshed_endpoints,
    };
    if one_for_all {
        message.transport_socket = Some(tls::upstream(tls, client));
        return;
    }
    if *client == Client::Grpc {
        return;
    }
    let mode = (TLS_MODE.to_owned(), proto::text(MESH_TLS_MODE));
    message.transport_socket_matches = vec![
        TransportSocketMatch {
            name: "mesh".into(),
            r#match: Some(Struct { fields: [mode].into() }),
            transport_socket: Some(tls::upstream(tls, client)),
        },
        TransportSocketMatch {
            name: "plaintext".into(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::raw_buffer()),
        },
    ];
}

fn decode_tls(
    socket: Option<core::TransportSocket>,
    matches: Vec<TransportSocketMatch>,
    has_matcher: bool,
) -> Decoded<Option<UpstreamTls>> {
    unsupported(has_matcher, "transport_socket_matcher", "use transport_socket_matches")?;
    let all = tls::decode_upstream(socket).at("transport_socket")?;
    let mut meshed = None;
    for (index, socket) in matches.into_iter().enumerate() {
        let field = "transport_socket_matches";
        let mesh = is_mesh_condition(socket.r#match.as_ref()).at("match").at_item(field, index)?;
        let tls =
            tls::decode_upstream(socket.transport_socket).at("transport_socket").at_item(field, index)?;
        match (mesh, tls) {
            (true, Some(tls)) => meshed = Some(UpstreamTls { only_meshed_endpoints: true, ..tls }),
            (false, None) => {}
            (true, None) => {
                return Err(FieldError::new("endpoints of the mesh must have a TLS context"))
                    .at_item(field, index);
            }
            (false, Some(_)) => {
                let fix =
                    "must take plaintext where others speak TLS: use raw_buffer, or transport_socket for all";
                return Err(FieldError::new(format!("endpoints outside the mesh {fix}")))
                    .at_item(field, index);
            }
        }
    }
    if meshed.is_some() && all.is_some() {
        return Err(FieldError::new("stands beside transport_socket_matches: set one of them"))
            .at("transport_socket");
    }
    Ok(meshed.or(all))
}

/// Whether the condition is for endpoints of the mesh; else it must be for all that are left.
fn is_mesh_condition(condition: Option<&Struct>) -> Decoded<bool> {
    let Some(condition) = condition.filter(|condition| !condition.fields.is_empty()) else {
        return Ok(false);
    };
    let mode = condition.fields.get(TLS_MODE).and_then(|mode| mode.kind.as_ref());
    match mode {
        Some(ValueKind::StringValue(mode))
            if condition.fields.len() == 1 && (mode == MESH_TLS_MODE || mode == ISTIO_TLS_MODE) =>
        {
            Ok(true)
        }
        _ => Err(FieldError::new("only {tlsMode: tulle}, {tlsMode: istio} and {} are supported")),
    }
}
