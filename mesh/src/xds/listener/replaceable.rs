//! Filters of which a part of the routes may say something else, and what it says.
//!
//! Envoy finds a route's settings of a filter by the filter's name. Tulle's own control plane gives its routes faults and
//! cross-origin rules; filters under names of its own are fixed. Every other filter may be replaced or left out.

use envoy_types::pb::envoy::config::route::v3::FilterConfig;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::{Cors, CorsPolicy};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac, RbacPerRoute};
use envoy_types::pb::google::protobuf::Any;

use super::filters::{ADAPTIVE_CONCURRENCY, decode_concurrency, encode_concurrency};
use super::{rate_limit, rbac};
use crate::model::{FilterOverride, FilterSettings, HttpFilter, ReplaceableFilter};
use crate::xds::error::{At, Decoded, FieldError};
use crate::xds::route::cors;
use crate::xds::{fault, proto};

/// Names of Tulle's own filters start so.
const OWN: &str = "tulle.";

/// Writes a filter's settings as they stand in a listener.
pub(super) fn encode(settings: &FilterSettings) -> Any {
    match settings {
        FilterSettings::Authorization(sets) => rbac::encode_http(sets),
        FilterSettings::LocalRateLimit(limit) => {
            limit.as_ref().map_or_else(rate_limit::encode_none, rate_limit::encode)
        }
        FilterSettings::AdaptiveConcurrency(limit) => proto::any(&encode_concurrency(limit)),
        FilterSettings::Fault(fault) => proto::any(&fault::encode(fault)),
        FilterSettings::Cors(None) => proto::any(&Cors::default()),
        FilterSettings::Cors(Some(rules)) => proto::any(&cors::encode(rules)),
    }
}

/// Reads a filter that does something to requests; `None` for any other.
pub(super) fn decode(name: &str, disabled: bool, config: &Any) -> Decoded<Option<Vec<HttpFilter>>> {
    let Some(settings) = decode_settings(name, config)? else { return Ok(None) };
    let Some(settings) = settings else { return Ok(Some(Vec::new())) };
    let own = name.starts_with(OWN) && !disabled;
    Ok(Some(match settings {
        FilterSettings::Authorization(sets) if own => {
            sets.into_iter().map(HttpFilter::Authorization).collect()
        }
        FilterSettings::LocalRateLimit(limit) if own => {
            limit.map(HttpFilter::LocalRateLimit).into_iter().collect()
        }
        FilterSettings::AdaptiveConcurrency(limit) if name == ADAPTIVE_CONCURRENCY && !disabled => {
            vec![HttpFilter::AdaptiveConcurrency(limit)]
        }
        settings => {
            vec![HttpFilter::Replaceable(ReplaceableFilter { name: name.into(), disabled, settings })]
        }
    }))
}

/// `Some(None)` for one that does nothing, and that no route can make do something.
fn decode_settings(name: &str, config: &Any) -> Decoded<Option<Option<FilterSettings>>> {
    let settings = if proto::is::<Rbac>(config) {
        Some(FilterSettings::Authorization(rbac::decode_http(name, proto::unpack(config)?)?))
    } else if proto::is::<HttpFault>(config) {
        Some(FilterSettings::Fault(fault::decode(proto::unpack(config)?)?))
    } else if proto::is::<Cors>(config) {
        Some(FilterSettings::Cors(None))
    } else if proto::is::<AdaptiveConcurrency>(config) {
        decode_concurrency(proto::unpack(config)?)?.map(FilterSettings::AdaptiveConcurrency)
    } else {
        match rate_limit::decode(config)? {
            Some(limit) => Some(FilterSettings::LocalRateLimit(limit)),
            None => return Ok(None),
        }
    };
    Ok(Some(settings))
}

/// Writes what a route says of a filter.
pub(in crate::xds) fn encode_override(said: &FilterOverride) -> Any {
    match &said.settings {
        None => proto::any(&FilterConfig { config: None, is_optional: false, disabled: true }),
        Some(FilterSettings::Authorization(sets)) => rbac::encode_per_route(sets),
        // Proxyless gRPC has no such filter and would refuse the whole configuration.
        Some(settings @ FilterSettings::Cors(_)) => {
            proto::any(&FilterConfig { config: Some(encode(settings)), is_optional: true, disabled: false })
        }
        Some(settings) => encode(settings),
    }
}

/// Reads what a route says of the filter of a name; `None` for what is no such filter's.
pub(in crate::xds) fn decode_override(name: &str, config: &Any) -> Decoded<Option<FilterOverride>> {
    let settings = if proto::is::<RbacPerRoute>(config) {
        let route: RbacPerRoute = proto::unpack(config)?;
        // Without rules of its own the route has none.
        let sets = route.rbac.map_or(Ok(Vec::new()), |rbac| rbac::decode_http(name, rbac)).at("rbac")?;
        FilterSettings::Authorization(sets)
    } else if proto::is::<HttpFault>(config) {
        FilterSettings::Fault(fault::decode(proto::unpack(config)?)?)
    } else if proto::is::<CorsPolicy>(config) {
        FilterSettings::Cors(Some(cors::decode(proto::unpack(config)?)?))
    } else {
        match rate_limit::decode_per_route(config)? {
            Some(limit) => FilterSettings::LocalRateLimit(limit),
            None => return Ok(None),
        }
    };
    Ok(Some(FilterOverride { filter: name.into(), settings: Some(settings) }))
}

/// Reads that a route passes by the filter of a name.
pub(in crate::xds) fn decode_disabled(name: &str) -> Decoded<FilterOverride> {
    if name.starts_with(ADAPTIVE_CONCURRENCY) || name.starts_with(OWN) {
        let problem = "can't be left out for a part of the routes: leave it out of the listener, or give it another name";
        return Err(FieldError::new(problem));
    }
    Ok(FilterOverride { filter: name.into(), settings: None })
}
