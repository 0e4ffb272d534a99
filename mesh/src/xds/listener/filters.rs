//! HTTP filters.
//!
//! Authorization is never optional: a client that does not know it must refuse the listener. Limits are, since gRPC servers have
//! none and would refuse the whole listener. So are those for cross-origin rules and sessions. What a route says of a filter has
//! no effect where the listener has none of its name.

use envoy_types::pb::envoy::config::core::v3::RuntimeFeatureFlag;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as concurrency;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::adaptive_concurrency::ConcurrencyControllerConfig;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::gradient_controller_config::{
    ConcurrencyLimitCalculationParams, MinimumRttCalculationParams,
};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::http::stateful_session::v3::StatefulSession;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_filter::ConfigType;
use envoy_types::pb::google::protobuf::Any;
use std::time::Duration;

use super::{rate_limit, rbac, replaceable};
use crate::model::{AdaptiveConcurrency, FilterSettings, HttpFilter};
use crate::xds::error::{At, Decoded, FieldError, refuse, required, unsupported};
use crate::xds::proto;
use crate::xds::route::filters::{SESSION, check_session_name};

const ROUTER: &str = "envoy.filters.http.router";
pub(super) const ADAPTIVE_CONCURRENCY: &str = "envoy.filters.http.adaptive_concurrency";

/// Envoy's defaults, by its documentation of the fields.
const MIN_CONCURRENCY: u32 = 3;
const MAX_CONCURRENCY: u32 = 1000;
/// How often Envoy measures the latency without load.
const MIN_RTT_INTERVAL: Duration = Duration::from_secs(60);

/// Writes all filters and the router behind them.
pub(super) fn encode(filters: &[HttpFilter]) -> Vec<pb::HttpFilter> {
    let mut encoded: Vec<pb::HttpFilter> = Vec::with_capacity(filters.len() + 1);
    for filter in filters {
        let replaceable = matches!(filter, HttpFilter::Replaceable(_));
        let mut filter = encode_filter(filter);
        if replaceable {
            // Its name is how routes speak of it.
            encoded.push(filter);
            continue;
        }
        // gRPC asks for different names; several filters of one kind are numbered.
        let base = filter.name.clone();
        for number in 2.. {
            if encoded.iter().all(|other| other.name != filter.name) {
                break;
            }
            filter.name = format!("{base}#{number}");
        }
        encoded.push(filter);
    }
    encoded.push(http_filter(ROUTER, proto::any(&Router::default()), false));
    encoded
}

pub(super) fn decode(filters: Vec<pb::HttpFilter>) -> Decoded<Vec<HttpFilter>> {
    let field = "http_filters";
    let last = filters.len().saturating_sub(1);
    let mut decoded: Vec<HttpFilter> = Vec::with_capacity(last);
    let mut routed = false;
    for (index, filter) in filters.into_iter().enumerate() {
        match decode_filter(filter).at_item(field, index)? {
            Step::Router if index == last => routed = true,
            Step::Router => {
                return Err(FieldError::new("the router must be the last filter")).at_item(field, index);
            }
            Step::Filters(filters) => {
                if let [filter] = &filters[..]
                    && let Some(kind) = single(filter)
                    && decoded.iter().any(|other| single(other) == Some(kind))
                {
                    let problem = format!("is a second filter for {kind}: join it with the first");
                    return Err(FieldError::new(problem)).at_item(field, index);
                }
                decoded.extend(filters);
            }
        }
    }
    if routed {
        Ok(decoded)
    } else {
        Err(FieldError::new(format!("must end with {ROUTER}: add it"))).at(field)
    }
}

/// What a filter does, if a sidecar has but one that does it.
fn single(filter: &HttpFilter) -> Option<&'static str> {
    match filter {
        HttpFilter::Authorization(_) | HttpFilter::LocalRateLimit(_) => None,
        HttpFilter::AdaptiveConcurrency(_) => Some("adaptive concurrency"),
        HttpFilter::Sessions => Some("sessions"),
        HttpFilter::Replaceable(filter) => match &filter.settings {
            FilterSettings::Authorization(_) | FilterSettings::LocalRateLimit(_) => None,
            FilterSettings::AdaptiveConcurrency(_) => Some("adaptive concurrency"),
            FilterSettings::Fault(_) => Some("faults"),
            FilterSettings::Cors(_) => Some("cross-origin rules"),
        },
    }
}

enum Step {
    Filters(Vec<HttpFilter>),
    Router,
}

fn encode_filter(filter: &HttpFilter) -> pb::HttpFilter {
    match filter {
        HttpFilter::Authorization(set) => {
            http_filter(&rbac::filter_name(&set.name), rbac::encode_http(std::slice::from_ref(set)), false)
        }
        HttpFilter::LocalRateLimit(limit) => {
            http_filter(&rate_limit::filter_name(&limit.name), rate_limit::encode(limit), true)
        }
        HttpFilter::AdaptiveConcurrency(limit) => {
            http_filter(ADAPTIVE_CONCURRENCY, proto::any(&encode_concurrency(limit)), true)
        }
        HttpFilter::Sessions => http_filter(SESSION, proto::any(&StatefulSession::default()), true),
        HttpFilter::Replaceable(filter) => {
            let is_optional = matches!(filter.settings, FilterSettings::Fault(_) | FilterSettings::Cors(_));
            let config = replaceable::encode(&filter.settings);
            pb::HttpFilter { disabled: filter.disabled, ..http_filter(&filter.name, config, is_optional) }
        }
    }
}

fn http_filter(name: &str, config: Any, is_optional: bool) -> pb::HttpFilter {
    pb::HttpFilter {
        name: name.into(),
        is_optional,
        disabled: false,
        config_type: Some(ConfigType::TypedConfig(config)),
    }
}

fn decode_filter(filter: pb::HttpFilter) -> Decoded<Step> {
    let config = match &filter.config_type {
        Some(ConfigType::TypedConfig(config)) => config,
        _ if filter.is_optional => return Ok(Step::Filters(Vec::new())),
        _ => return required(None, "typed_config"),
    };
    decode_config(&filter, config).at("typed_config")
}

fn decode_config(filter: &pb::HttpFilter, config: &Any) -> Decoded<Step> {
    let &pb::HttpFilter { ref name, is_optional, disabled, .. } = filter;
    if let Some(filters) = replaceable::decode(name, disabled, config)? {
        return Ok(Step::Filters(filters));
    }
    if is_empty_session(config)? {
        check_session_name(name)?;
        // Where it is disabled, what routes say of it switches it on.
        return Ok(Step::Filters(vec![HttpFilter::Sessions]));
    }
    if disabled {
        return Ok(Step::Filters(Vec::new()));
    }
    if proto::is::<Router>(config) {
        let router: Router = proto::unpack(config)?;
        refuse!(router; strict_check_headers, upstream_http_filters, upstream_log, respect_expected_rq_timeout)?;
        return Ok(Step::Router);
    }
    if is_optional {
        return Ok(Step::Filters(Vec::new()));
    }
    Err(FieldError::new(format!(
        "{:?} is not a known filter: remove it, or mark it is_optional where it may be left out",
        proto::inner_type(config)
    )))
}

/// Whether it is the filter for sessions without sessions of its own.
fn is_empty_session(config: &Any) -> Decoded<bool> {
    if !proto::is::<StatefulSession>(config) {
        return Ok(false);
    }
    let session: StatefulSession = proto::unpack(config)?;
    unsupported(session.session_state.is_some(), "session_state", "put it on the routes that it is for")?;
    refuse!(session; strict)?;
    Ok(true)
}

pub(super) fn encode_concurrency(limit: &AdaptiveConcurrency) -> concurrency::AdaptiveConcurrency {
    let gradient = concurrency::GradientControllerConfig {
        sample_aggregate_percentile: None,
        concurrency_limit_params: Some(ConcurrencyLimitCalculationParams {
            max_concurrency_limit: proto::u32_value(limit.max_concurrency),
            concurrency_update_interval: Some(proto::duration(limit.update_interval)),
            min_concurrency_limit: proto::u32_value(limit.min_concurrency),
        }),
        min_rtt_calc_params: Some(MinimumRttCalculationParams {
            interval: Some(proto::duration(MIN_RTT_INTERVAL)),
            min_concurrency: proto::u32_value(limit.min_concurrency),
            ..Default::default()
        }),
    };
    concurrency::AdaptiveConcurrency {
        enabled: Some(RuntimeFeatureFlag {
            default_value: proto::bool_value(true),
            runtime_key: "tulle.adaptive_concurrency".into(),
        }),
        concurrency_controller_config: Some(ConcurrencyControllerConfig::GradientControllerConfig(gradient)),
        ..Default::default()
    }
}

/// `None` where it is switched off.
pub(super) fn decode_concurrency(
    limit: concurrency::AdaptiveConcurrency,
) -> Decoded<Option<AdaptiveConcurrency>> {
    let enabled = limit.enabled.and_then(|flag| flag.default_value).is_none_or(|value| value.value);
    refuse!(limit; concurrency_limit_exceeded_status)?;
    let ConcurrencyControllerConfig::GradientControllerConfig(gradient) =
        required(limit.concurrency_controller_config, "gradient_controller_config")?;
    let field = "gradient_controller_config.concurrency_limit_params";
    let params = required(gradient.concurrency_limit_params, field)?;
    if let Some(measured) = &gradient.min_rtt_calc_params {
        let at = "gradient_controller_config.min_rtt_calc_params.fixed_value";
        unsupported(measured.fixed_value.is_some(), at, "leave it out")?;
    }
    let update_interval =
        proto::decode_positive(params.concurrency_update_interval, "concurrency_update_interval")
            .at(field)?;
    let update_interval = required(update_interval, "concurrency_update_interval").at(field)?;
    let measured_at = gradient.min_rtt_calc_params.and_then(|params| params.min_concurrency);
    let least = params.min_concurrency_limit.or(measured_at).map_or(MIN_CONCURRENCY, |value| value.value);
    let most = params.max_concurrency_limit.map_or(MAX_CONCURRENCY, |value| value.value);
    if least == 0 || least > most {
        let problem = format!("the limit would go from {least} to {most}: start from 1, and end no lower");
        return Err(FieldError::new(problem)).at(field);
    }
    let limit = AdaptiveConcurrency { min_concurrency: least, max_concurrency: most, update_interval };
    Ok(enabled.then_some(limit))
}
