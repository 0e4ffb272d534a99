//! Timeouts, retries and hashing of a forwarding route.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader as ResetHeaderPb, ResetHeaderFormat, RetryBackOff,
    RetryHostPredicate,
};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, FilterState, Header, PolicySpecifier, QueryParameter,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy as HashPolicyPb, MaxStreamDuration,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::google::protobuf::Duration as DurationPb;

use super::rewrite;
use crate::model::{
    GrpcTimeout, HashPolicy, RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy, Timeouts,
};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required};
use crate::xds::{matching, proto};

/// How often Envoy draws another endpoint for a retry when it draws one that failed already.
const HOST_SELECTION_ATTEMPTS: i64 = 3;

/// Envoy's pause before the first retry where none is configured; the longest pause is ten times the first.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF_FACTOR: u32 = 10;
/// What an answer may ask for at most where nothing is configured.
const MAX_RATE_LIMITED_BACKOFF: Duration = Duration::from_secs(300);

/// Envoy's limit on a request where nothing is said of its time.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(15);

/// What stands for the life of a stream, and for the time that a call of gRPC brings along.
pub(super) fn max_stream_duration(timeouts: &Timeouts) -> Option<MaxStreamDuration> {
    let grpc = timeouts.grpc.filter(|grpc| !grpc.limits_request);
    (grpc.is_some() || timeouts.max_stream.is_some()).then(|| MaxStreamDuration {
        max_stream_duration: timeouts.max_stream.map(proto::duration),
        grpc_timeout_header_max: grpc.map(|grpc| proto::duration(grpc.max)),
        grpc_timeout_header_offset: grpc.and_then(offset),
    })
}

/// What is said of calls in Envoy's older fields.
pub(super) fn older(timeouts: &Timeouts) -> Option<GrpcTimeout> {
    timeouts.grpc.filter(|grpc| grpc.limits_request)
}

pub(super) fn offset(grpc: GrpcTimeout) -> Option<DurationPb> {
    (!grpc.offset.is_zero()).then(|| proto::duration(grpc.offset))
}

/// Where nothing is said of a limit, Envoy's holds; Tulle's control plane always says something, zero for no limit. Beside a
/// `max_stream_duration` Envoy passes over what `timeout` says; here both hold, since a limit that stands there is meant.
#[expect(deprecated, reason = "Istio's control plane bounds the time of calls by old fields")]
pub(super) fn decode_timeouts(action: &pb::RouteAction) -> Decoded<Timeouts> {
    let newer = action.max_stream_duration.as_ref();
    let (max, offset, limits_request) = match newer {
        Some(newer) => (newer.grpc_timeout_header_max, newer.grpc_timeout_header_offset, false),
        None => (action.max_grpc_timeout, action.grpc_timeout_offset, true),
    };
    let (max_at, offset_at) = match limits_request {
        true => ("max_grpc_timeout", "grpc_timeout_offset"),
        false => {
            ("max_stream_duration.grpc_timeout_header_max", "max_stream_duration.grpc_timeout_header_offset")
        }
    };
    let offset = proto::decode_duration(offset, offset_at)?.unwrap_or_default();
    let grpc = proto::decode_duration(max, max_at)?.map(|max| GrpcTimeout { max, offset, limits_request });
    let max_stream = newer.and_then(|newer| newer.max_stream_duration);
    let request = proto::decode_duration(action.timeout, "timeout")?;
    Ok(Timeouts {
        request: request.or_else(|| newer.is_none().then_some(DEFAULT_TIMEOUT)),
        idle: proto::decode_duration(action.idle_timeout, "idle_timeout")?,
        max_stream: proto::decode_duration(max_stream, "max_stream_duration.max_stream_duration")?,
        grpc,
    })
}

/// `None` for a policy without attempts: gRPC refuses `num_retries: 0`.
pub(super) fn encode_retry(retry: &RetryPolicy) -> Option<pb::RetryPolicy> {
    let name = |on: &RetryOn| RetryOn::ALL.iter().find(|(known, _)| known == on).map(|(_, name)| *name);
    let on: Vec<&str> = retry.on.iter().filter_map(name).collect();
    let other_endpoint = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(pb::retry_policy::retry_host_predicate::ConfigType::TypedConfig(proto::any(
            &PreviousHostsPredicate::default(),
        ))),
    };
    (retry.attempts > 0).then(|| pb::RetryPolicy {
        retry_on: on.join(","),
        num_retries: proto::u32_value(retry.attempts),
        per_try_timeout: retry.per_try_timeout.map(proto::duration),
        per_try_idle_timeout: retry.per_try_idle_timeout.map(proto::duration),
        retry_host_predicate: vec![other_endpoint],
        host_selection_retry_max_attempts: HOST_SELECTION_ATTEMPTS,
        retriable_headers: retry.headers.iter().map(matching::header).collect(),
        retriable_request_headers: retry.request_headers.iter().map(matching::header).collect(),
        rate_limited_retry_back_off: retry.rate_limited.as_ref().map(encode_rate_limited),
        retriable_status_codes: retry.statuses.iter().map(|status| u32::from(*status)).collect(),
        retry_back_off: Some(RetryBackOff {
            base_interval: Some(proto::duration(retry.backoff)),
            max_interval: Some(proto::duration(retry.max_backoff)),
        }),
        ..Default::default()
    })
}

/// A condition that is not known is passed over, as in Envoy: less is tried again, and nothing that was not asked for.
pub(super) fn decode_retry(retry: pb::RetryPolicy) -> Decoded<Option<RetryPolicy>> {
    refuse!(retry; retry_options_predicates, retry_priority)?;
    let attempts = retry.num_retries.map_or(1, |attempts| attempts.value);
    let on = retry.retry_on.split(',').map(str::trim);
    let on = on.filter_map(|on| RetryOn::ALL.iter().find(|(_, name)| *name == on).map(|(known, _)| *known));
    let statuses = retry.retriable_status_codes.iter().map(|status| match u16::try_from(*status) {
        Ok(status) if (100..600).contains(&status) => Ok(status),
        _ => Err(FieldError::new(format!("{status} is not an HTTP status"))),
    });
    let pauses = retry.retry_back_off.unwrap_or_default();
    let backoff = proto::decode_positive(pauses.base_interval, "retry_back_off.base_interval")?;
    let max_backoff = proto::decode_positive(pauses.max_interval, "retry_back_off.max_interval")?;
    let backoff = backoff.unwrap_or(DEFAULT_BACKOFF);
    let max_backoff = max_backoff.unwrap_or_else(|| (backoff * MAX_BACKOFF_FACTOR).min(proto::MAX_DURATION));
    if max_backoff < backoff {
        return Err(FieldError::new("is shorter than base_interval")).at("retry_back_off.max_interval");
    }
    let policy = RetryPolicy {
        on: on.collect(),
        statuses: statuses.collect::<Decoded<_>>().at("retriable_status_codes")?,
        attempts,
        per_try_timeout: proto::decode_duration(retry.per_try_timeout, "per_try_timeout")?,
        per_try_idle_timeout: proto::decode_duration(retry.per_try_idle_timeout, "per_try_idle_timeout")?,
        backoff,
        max_backoff,
        headers: each("retriable_headers", retry.retriable_headers, matching::decode_header)?,
        request_headers: each(
            "retriable_request_headers",
            retry.retriable_request_headers,
            matching::decode_header,
        )?,
        rate_limited: retry
            .rate_limited_retry_back_off
            .map(|limited| decode_rate_limited(limited).at("rate_limited_retry_back_off"))
            .transpose()?,
    };
    Ok((attempts > 0).then_some(policy))
}

fn encode_rate_limited(limited: &RateLimitedBackoff) -> RateLimitedRetryBackOff {
    let header = |header: &ResetHeader| ResetHeaderPb {
        name: header.name.as_str().into(),
        format: match header.is_time {
            true => ResetHeaderFormat::UnixTimestamp as i32,
            false => ResetHeaderFormat::Seconds as i32,
        },
    };
    RateLimitedRetryBackOff {
        reset_headers: limited.reset.iter().map(header).collect(),
        max_interval: Some(proto::duration(limited.max)),
    }
}

fn decode_rate_limited(limited: RateLimitedRetryBackOff) -> Decoded<RateLimitedBackoff> {
    let reset = each("reset_headers", limited.reset_headers, |header| {
        let is_time = match ResetHeaderFormat::try_from(header.format) {
            Ok(format) => format == ResetHeaderFormat::UnixTimestamp,
            Err(_) => return Err(FieldError::new(format!("{} is not a format", header.format))).at("format"),
        };
        Ok(ResetHeader { name: matching::header_name(&header.name).at("name")?, is_time })
    })?;
    if reset.is_empty() {
        return Err(FieldError::new("is empty: name a header")).at("reset_headers");
    }
    let max = proto::decode_positive(limited.max_interval, "max_interval")?;
    Ok(RateLimitedBackoff { reset, max: max.unwrap_or(MAX_RATE_LIMITED_BACKOFF) })
}

pub(super) fn encode_hash(hash: &HashPolicy) -> HashPolicyPb {
    let (terminal, specifier) = match hash {
        HashPolicy::Header { name, rewrite, terminal } => (
            terminal,
            PolicySpecifier::Header(Header {
                header_name: name.as_str().into(),
                regex_rewrite: rewrite.as_ref().map(rewrite::encode_regex),
            }),
        ),
        HashPolicy::Cookie { name, ttl, path, attributes, terminal } => (
            terminal,
            PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                ttl: ttl.map(proto::duration),
                path: path.clone().unwrap_or_default(),
                attributes: attributes
                    .iter()
                    .map(|(name, value)| CookieAttribute { name: name.clone(), value: value.clone() })
                    .collect(),
            }),
        ),
        HashPolicy::SourceIp { terminal } => {
            (terminal, PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }))
        }
        HashPolicy::Query { name, terminal } => {
            (terminal, PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }))
        }
        HashPolicy::FilterState { key, terminal } => {
            (terminal, PolicySpecifier::FilterState(FilterState { key: key.clone() }))
        }
    };
    HashPolicyPb { terminal: *terminal, policy_specifier: Some(specifier) }
}

/// `None` for one that says nothing, as in Envoy.
pub(super) fn decode_hash(policy: HashPolicyPb) -> Decoded<Option<HashPolicy>> {
    let terminal = policy.terminal;
    Ok(Some(match required(policy.policy_specifier, "policy_specifier")? {
        PolicySpecifier::Header(header) => HashPolicy::Header {
            name: matching::header_name(&header.header_name).at("header.header_name")?,
            rewrite: header
                .regex_rewrite
                .map(|rewrite| rewrite::decode_substitution(rewrite).at("header.regex_rewrite"))
                .transpose()?,
            terminal,
        },
        PolicySpecifier::Cookie(cookie) => HashPolicy::Cookie {
            name: non_empty(cookie.name, "cookie.name")?,
            ttl: proto::decode_duration(cookie.ttl, "cookie.ttl")?,
            path: (!cookie.path.is_empty()).then_some(cookie.path),
            attributes: each("cookie.attributes", cookie.attributes, decode_attribute)?,
            terminal,
        },
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }) => {
            HashPolicy::SourceIp { terminal }
        }
        PolicySpecifier::ConnectionProperties(_) => return Ok(None),
        PolicySpecifier::QueryParameter(query) => {
            HashPolicy::Query { name: non_empty(query.name, "query_parameter.name")?, terminal }
        }
        PolicySpecifier::FilterState(state) => {
            HashPolicy::FilterState { key: non_empty(state.key, "filter_state.key")?, terminal }
        }
    }))
}

/// What would end the attribute, or the header, stands in none.
fn decode_attribute(attribute: CookieAttribute) -> Decoded<(String, String)> {
    let name = non_empty(attribute.name, "name")?;
    for (field, text) in [("name", &name), ("value", &attribute.value)] {
        if text.contains(|character: char| character == ';' || character.is_ascii_control()) {
            let problem = format!("{text:?} holds a character that no attribute of a cookie may have");
            return Err(FieldError::new(problem)).at(field);
        }
    }
    Ok((name, attribute.value))
}
