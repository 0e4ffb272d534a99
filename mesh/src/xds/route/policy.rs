//! Timeouts, retries and hashing of a forwarding route.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader as ResetHeaderPb, ResetHeaderFormat, RetryBackOff,
    RetryHostPredicate,
};
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, Header, PolicySpecifier, QueryParameter,
};
use envoy_types::pb::envoy::config::route::v3::route_action::{
    HashPolicy as HashPolicyPb, MaxStreamDuration,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;

use crate::model::{HashPolicy, RateLimitedBackoff, ResetHeader, RetryOn, RetryPolicy, Timeouts};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::{matching, proto};

/// How often Envoy draws another endpoint for a retry when it draws one that failed already.
const HOST_SELECTION_ATTEMPTS: i64 = 3;

/// Envoy's pause before the first retry where none is configured; the longest pause is ten times the first.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(25);
const MAX_BACKOFF_FACTOR: u32 = 10;
/// What an answer may ask for at most where nothing is configured.
const MAX_RATE_LIMITED_BACKOFF: Duration = Duration::from_secs(300);

/// gRPC knows no `timeout`; it cuts a call's deadline to `grpc_timeout_header_max`, or else to
/// `max_stream_duration`. So the shorter of both limits goes there too. Envoy looks at it for requests with a
/// `grpc-timeout` alone, and those may not take longer anyway.
pub(super) fn max_stream_duration(timeouts: &Timeouts) -> Option<MaxStreamDuration> {
    let limits = [timeouts.request, timeouts.max_stream];
    let shortest = limits.into_iter().flatten().filter(|limit| !limit.is_zero()).min();
    (shortest.is_some() || timeouts.max_stream.is_some()).then(|| MaxStreamDuration {
        max_stream_duration: timeouts.max_stream.map(proto::duration),
        grpc_timeout_header_max: shortest.map(proto::duration),
        grpc_timeout_header_offset: None,
    })
}

/// A timeout that is not set takes the sidecar's default here, and 15 s in Envoy; so Tulle's control plane always sets
/// it, zero for no limit.
pub(super) fn decode_timeouts(action: &pb::RouteAction) -> Decoded<Timeouts> {
    let max_stream = action.max_stream_duration.as_ref().and_then(|max| max.max_stream_duration);
    Ok(Timeouts {
        request: proto::decode_duration(action.timeout, "timeout")?,
        idle: proto::decode_duration(action.idle_timeout, "idle_timeout")?,
        max_stream: proto::decode_duration(max_stream, "max_stream_duration.max_stream_duration")?,
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
    refuse!(retry;
        per_try_idle_timeout, retry_options_predicates, retry_priority)?;
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
        HashPolicy::Header { name, terminal } => (
            terminal,
            PolicySpecifier::Header(Header { header_name: name.as_str().into(), regex_rewrite: None }),
        ),
        HashPolicy::Cookie { name, ttl, path, terminal } => (
            terminal,
            PolicySpecifier::Cookie(Cookie {
                name: name.clone(),
                ttl: ttl.map(proto::duration),
                path: path.clone().unwrap_or_default(),
                attributes: Vec::new(),
            }),
        ),
        HashPolicy::SourceIp { terminal } => {
            (terminal, PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }))
        }
        HashPolicy::Query { name, terminal } => {
            (terminal, PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() }))
        }
    };
    HashPolicyPb { terminal: *terminal, policy_specifier: Some(specifier) }
}

pub(super) fn decode_hash(policy: HashPolicyPb) -> Decoded<HashPolicy> {
    let terminal = policy.terminal;
    Ok(match required(policy.policy_specifier, "policy_specifier")? {
        PolicySpecifier::Header(header) => {
            unsupported(header.regex_rewrite.is_some(), "header.regex_rewrite", "leave it out")?;
            let name = matching::header_name(&header.header_name).at("header.header_name")?;
            HashPolicy::Header { name, terminal }
        }
        PolicySpecifier::Cookie(cookie) => {
            unsupported(!cookie.attributes.is_empty(), "cookie.attributes", "leave them out")?;
            HashPolicy::Cookie {
                name: non_empty(cookie.name, "cookie.name")?,
                ttl: proto::decode_duration(cookie.ttl, "cookie.ttl")?,
                path: (!cookie.path.is_empty()).then_some(cookie.path),
                terminal,
            }
        }
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }) => {
            HashPolicy::SourceIp { terminal }
        }
        PolicySpecifier::ConnectionProperties(_) => {
            return Err(FieldError::new("is false: set it")).at("connection_properties.source_ip");
        }
        PolicySpecifier::QueryParameter(query) => {
            HashPolicy::Query { name: non_empty(query.name, "query_parameter.name")?, terminal }
        }
        PolicySpecifier::FilterState(_) => {
            return Err(FieldError::new("is not supported: hash a header, cookie, address or parameter"))
                .at("filter_state");
        }
    })
}
