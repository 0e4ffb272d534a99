//! Filter chains: which connections they are for, TLS, authorization of the connection, and what is inside.

use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::config::listener::v3::filter_chain_match::ConnectionSourceType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::Any;

use super::{Client, http, rbac, tcp};
use crate::model::{Authorization, ChainMatch, FilterChain, Protocol, TrafficDirection, Transport};
use crate::xds::error::{At, Decoded, FieldError, each, refuse, required, unsupported};
use crate::xds::{proto, tls};

pub(super) fn encode(chain: &FilterChain, direction: TrafficDirection, client: &Client) -> pb::FilterChain {
    let authorization = chain
        .authorization
        .iter()
        .map(|set| filter(&rbac::filter_name(&set.name), rbac::encode_network(set)));
    let last = match &chain.protocol {
        Protocol::Http(connection) => filter(
            "envoy.filters.network.http_connection_manager",
            http::encode_any(connection, &chain.name, direction, client),
        ),
        Protocol::Tcp(proxy) => {
            filter("envoy.filters.network.tcp_proxy", proto::any(&tcp::encode(proxy, &chain.name)))
        }
    };
    pb::FilterChain {
        name: chain.name.clone(),
        filter_chain_match: encode_match(&chain.matches),
        transport_socket: chain.tls.as_ref().map(|settings| tls::downstream(settings, client)),
        filters: authorization.chain([last]).collect(),
        ..Default::default()
    }
}

pub(super) fn decode(chain: pb::FilterChain) -> Decoded<FilterChain> {
    refuse_proxy_header(&chain)?;
    let matches = decode_match(chain.filter_chain_match.unwrap_or_default()).at("filter_chain_match")?;
    let tls = tls::decode_downstream(chain.transport_socket).at("transport_socket")?;
    let mut filters = each("filters", chain.filters, decode_filter)?;
    let last = filters.len().saturating_sub(1);
    let Some(NetworkFilter::Protocol(protocol)) = filters.pop() else {
        return Err(FieldError::new("must end with an http_connection_manager or a tcp_proxy")).at("filters");
    };
    let mut authorization = Vec::with_capacity(last);
    for (index, filter) in filters.into_iter().enumerate() {
        match filter {
            NetworkFilter::Authorization(sets) => authorization.extend(sets),
            NetworkFilter::Protocol(_) => {
                return Err(FieldError::new("ends the chain: it must be the last")).at_item("filters", index);
            }
        }
    }
    Ok(FilterChain { name: chain.name, matches, tls, authorization, protocol })
}

#[expect(deprecated, reason = "other control planes may still send it")]
fn refuse_proxy_header(chain: &pb::FilterChain) -> Decoded<()> {
    refuse!(chain; ; switches use_proxy_proto)
}

#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, and few exist at a time")]
enum NetworkFilter {
    Authorization(Vec<Authorization>),
    Protocol(Protocol),
}

fn filter(name: &str, config: Any) -> pb::Filter {
    pb::Filter { name: name.into(), config_type: Some(ConfigType::TypedConfig(config)) }
}

fn decode_filter(filter: pb::Filter) -> Decoded<NetworkFilter> {
    let config = match filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        _ => return required(None, "typed_config"),
    };
    let field = "typed_config";
    if proto::is::<HttpConnectionManager>(&config) {
        let manager = proto::unpack(&config).at(field)?;
        Ok(NetworkFilter::Protocol(Protocol::Http(http::decode(manager).at(field)?)))
    } else if proto::is::<TcpProxy>(&config) {
        let proxy = proto::unpack(&config).at(field)?;
        Ok(NetworkFilter::Protocol(Protocol::Tcp(tcp::decode(proxy).at(field)?)))
    } else if proto::is::<Rbac>(&config) {
        let rbac = proto::unpack(&config).at(field)?;
        Ok(NetworkFilter::Authorization(rbac::decode_network(&filter.name, rbac).at(field)?))
    } else {
        Err(FieldError::new(format!(
            "{:?} is not a known network filter: use http_connection_manager, tcp_proxy or rbac",
            proto::inner_type(&config)
        )))
        .at(field)
    }
}

fn encode_match(matches: &ChainMatch) -> Option<pb::FilterChainMatch> {
    let transport = match matches.transport {
        None => "",
        Some(Transport::Tls) => "tls",
        Some(Transport::Plaintext) => "raw_buffer",
    };
    (*matches != ChainMatch::default()).then(|| pb::FilterChainMatch {
        destination_port: proto::u32_value(matches.destination_port.map(u32::from)),
        transport_protocol: transport.into(),
        application_protocols: matches.application_protocols.clone(),
        server_names: matches.server_names.clone(),
        ..Default::default()
    })
}

fn decode_match(matches: pb::FilterChainMatch) -> Decoded<ChainMatch> {
    let listener = "make a listener for the address";
    unsupported(!matches.prefix_ranges.is_empty(), "prefix_ranges", listener)?;
    unsupported(!matches.address_suffix.is_empty(), "address_suffix", listener)?;
    let authorize = "restrict sources with an authorization filter";
    unsupported(!matches.direct_source_prefix_ranges.is_empty(), "direct_source_prefix_ranges", authorize)?;
    unsupported(!matches.source_prefix_ranges.is_empty(), "source_prefix_ranges", authorize)?;
    unsupported(!matches.source_ports.is_empty(), "source_ports", authorize)?;
    unsupported(matches.source_type != ConnectionSourceType::Any as i32, "source_type", authorize)?;
    let destination_port = match matches.destination_port {
        None => None,
        Some(port) => Some(proto::decode_port(port.value, "destination_port")?),
    };
    let transport = match matches.transport_protocol.as_str() {
        "" => None,
        "tls" => Some(Transport::Tls),
        "raw_buffer" => Some(Transport::Plaintext),
        other => {
            let problem = format!("{other:?} is not known: use \"tls\" or \"raw_buffer\"");
            return Err(FieldError::new(problem)).at("transport_protocol");
        }
    };
    Ok(ChainMatch {
        destination_port,
        transport,
        application_protocols: matches.application_protocols,
        server_names: each("server_names", matches.server_names, decode_server_name)?,
    })
}

fn decode_server_name(name: String) -> Decoded<String> {
    let suffix = name.strip_prefix("*.").unwrap_or(&name);
    if suffix.is_empty() || suffix.contains('*') {
        let problem = format!("{name:?} is not a server name: a * may only stand alone as its first label");
        return Err(FieldError::new(problem));
    }
    Ok(name)
}
