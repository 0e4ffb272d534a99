//! Listener filters: what is known of a connection before its chain is chosen. Of them only the one for connections behind
//! another proxy and the one that looks for HTTP in plaintext change what becomes of a connection; what the others find
//! out is always found out.

use envoy_types::pb::envoy::config::listener::v3::ListenerFilter;
use envoy_types::pb::envoy::config::listener::v3::listener_filter::ConfigType;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::proxy_protocol::v3 as pb;

use crate::model::ProxyProtocol;
use crate::xds::error::{At, Decoded, FieldError, refuse, required, unsupported};
use crate::xds::proto;

const NAME: &str = "envoy.filters.listener.proxy_protocol";
pub(super) const HTTP_INSPECTOR: &str = "envoy.filters.listener.http_inspector";

/// What a filter finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finds {
    /// Whose connection it is.
    Client(ProxyProtocol),
    /// Whether plaintext is HTTP, and which.
    Http,
    /// What is always found out, or makes no difference.
    Other,
}

pub(super) fn encode(how: ProxyProtocol) -> ListenerFilter {
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
    ListenerFilter {
        name: NAME.into(),
        config_type: Some(ConfigType::TypedConfig(proto::any(&config))),
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
        None if [NAME, HTTP_INSPECTOR].contains(&filter.name.as_str()) => {
            return required(None, "typed_config");
        }
        None => return Ok(Finds::Other),
    };
    let (proxied, http) = (proto::is::<pb::ProxyProtocol>(&config), proto::is::<HttpInspector>(&config));
    if !proxied && !http {
        return Ok(Finds::Other);
    }
    unsupported(filter.filter_disabled.is_some(), "filter_disabled", "make a listener for each case")?;
    if http {
        return Ok(Finds::Http);
    }
    decode_config(proto::unpack(&config).at("typed_config")?).at("typed_config").map(Finds::Client)
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
