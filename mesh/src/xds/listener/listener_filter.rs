//! Listener filters: what is known of a connection before its chain is chosen. Of them only the one for connections behind
//! another proxy and those that look for TLS and for HTTP change what becomes of a connection.

use envoy_types::pb::envoy::config::listener::v3::ListenerFilter;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::google::protobuf::Any;

use crate::model::ProxyProtocol;
use crate::xds::error::{At, Decoded, FieldError, refuse, required, unsupported};
use crate::xds::proto;

const PROXY_PROTOCOL: &str = "envoy.filters.listener.proxy_protocol";
const TLS_INSPECTOR: &str = "envoy.filters.listener.tls_inspector";
const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";

/// What a filter finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finds {
    /// Whose connection it is.
    Client(ProxyProtocol),
    /// Whether it begins with a ClientHello, and what that asks for.
    Tls,
    /// Whether plaintext is HTTP, and which.
    Http,
    /// What makes no difference.
    Other,
}

/// The one that reads the header of a proxy in front.
pub(super) fn proxy_protocol(how: ProxyProtocol) -> ListenerFilter {
    let disallowed = [(how.version_1, V1), (how.version_2, V2)];
    let config = pb::ProxyProtocol {
        allow_requests_without_proxy_protocol: how.optional,
        disallowed_versions: disallowed
            .into_iter()
            .filter(|(on, _)| !on)
            .map(|(_, version)| version)
            .collect(),
        ..Default::default()
    };
    typed(PROXY_PROTOCOL, proto::any(&config))
}

/// Those that look for TLS and for HTTP.
pub(super) fn inspectors(tls: bool, http: bool) -> impl Iterator<Item = ListenerFilter> {
    let tls = tls.then(|| typed(TLS_INSPECTOR, proto::any(&TlsInspector::default())));
    let http = http.then(|| typed(HTTP_INSPECTOR, proto::any(&HttpInspector::default())));
    tls.into_iter().chain(http)
}

pub(super) fn typed(name: &str, config: Any) -> ListenerFilter {
    ListenerFilter {
        name: name.into(),
        config_type: Some(ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub(super) fn decode(filter: ListenerFilter) -> Decoded<Finds> {
    let config = match filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        Some(ConfigType::ConfigDiscovery(_)) => {
            unsupported(true, "config_discovery", "use typed_config")?;
            return Ok(Finds::Other);
        }
        None if [PROXY_PROTOCOL, TLS_INSPECTOR, HTTP_INSPECTOR].contains(&filter.name.as_str()) => {
            return required(None, "typed_config");
        }
        None => return Ok(Finds::Other),
    };
    let finds = if proto::is::<pb::ProxyProtocol>(&config) {
        decode_config(proto::unpack(&config).at("typed_config")?).at("typed_config").map(Finds::Client)?
    } else if proto::is::<TlsInspector>(&config) {
        Finds::Tls
    } else if proto::is::<HttpInspector>(&config) {
        Finds::Http
    } else {
        return Ok(Finds::Other);
    };
    unsupported(filter.filter_disabled.is_some(), "filter_disabled", "make a listener for each case")?;
    Ok(finds)
}

fn decode_config(config: pb::ProxyProtocol) -> Decoded<ProxyProtocol> {
    refuse!(config; rules, pass_through_tlvs)?;
    let allowed = |version| !config.disallowed_versions.contains(&version);
    let how = ProxyProtocol {
        optional: config.allow_requests_without_proxy_protocol,
        version_1: allowed(V1),
        version_2: allowed(V2),
    };
    if !how.version_1 && !how.version_2 && !how.optional {
        return Err(FieldError::new("names both: no connection would be taken")).at("disallowed_versions");
    }
    Ok(how)
}

// The numbers of `envoy.config.core.v3.ProxyProtocolConfig.Version`.
const V1: i32 = 0;
const V2: i32 = 1;
