//! Filter chains: which connections they are for, TLS, authorization of the connection, and what is inside.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::listener::v3 as pb;
use envoy_types::pb::envoy::config::listener::v3::filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::google::protobuf::Any;

use super::{Client, chain_match, http, rbac, tcp};
use crate::model::{Authorization, ClientCertificate, FilterChain, Protocol};
use crate::xds::error::{At, Decoded, FieldError, each, refuse, required};
use crate::xds::proto::Read;
use crate::xds::{proto, tls};

pub(super) fn encode(chain: &FilterChain, client: &Client) -> pb::FilterChain {
    let authorization = chain
        .authorization
        .iter()
        .map(|set| filter(&rbac::filter_name(&set.name), rbac::encode_network(set)));
    let last = match &chain.protocol {
        Protocol::Http(connection) => filter(
            "envoy.filters.network.http_connection_manager",
            http::encode_any(connection, &chain.name, client),
        ),
        Protocol::Tcp(proxy) => {
            filter("envoy.filters.network.tcp_proxy", proto::any(&tcp::encode(proxy, &chain.name)))
        }
    };
    pb::FilterChain {
        name: chain.name.clone(),
        filter_chain_match: chain_match::encode(&chain.matches),
        transport_socket: chain.tls.as_ref().map(|settings| tls::downstream(settings, client)),
        filters: authorization.chain([last]).collect(),
        metadata: encode_metadata(&chain.protocol),
        ..Default::default()
    }
}

pub(super) fn decode(chain: pb::FilterChain) -> Decoded<FilterChain> {
    refuse_proxy_header(&chain)?;
    let matches =
        chain_match::decode(chain.filter_chain_match.unwrap_or_default()).at("filter_chain_match")?;
    let tls = tls::decode_downstream(chain.transport_socket).at("transport_socket")?;
    let mut filters = each("filters", chain.filters, decode_filter)?;
    let last = filters.len().saturating_sub(1);
    let Some(NetworkFilter::Protocol(mut protocol)) = filters.pop() else {
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
    if let Protocol::Http(http) = &mut protocol
        && matches!(http.client_certificate, ClientCertificate::Set(_))
        && proto::decode_metadata(chain.metadata.as_ref())?.flag(IDENTITY_ALONE)?
    {
        http.client_certificate = ClientCertificate::Identity;
    }
    Ok(FilterChain { name: chain.name, matches, tls, authorization, protocol })
}

/// What stands in a chain's own data where its connection manager tells of its clients nothing but who they are.
const IDENTITY_ALONE: &str = "clientIdentityAlone";

fn encode_metadata(protocol: &Protocol) -> Option<Metadata> {
    match protocol {
        Protocol::Http(http) if http.client_certificate == ClientCertificate::Identity => {
            proto::metadata([(IDENTITY_ALONE.to_owned(), proto::flag(true))].into())
        }
        _ => None,
    }
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
