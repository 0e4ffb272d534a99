//! Limits on the rate of requests.
//!
//! A limit that counts all requests, or those that their routes describe, is Envoy's filter. One that counts by header or by client has features that Envoy's
//! bucket lacks, so it is Tulle's own extension, which others pass over.

use std::collections::HashSet;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, VhRateLimitsOptions, XRateLimitHeadersRfcVersion,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, TokenBucket as TokenBucketPb};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Value};
use http::StatusCode;

use crate::model::{
    DescriptorBucket, HeaderMatch, HeaderTest, HostRules, LocalRateLimit, PerMillion, RateDescriptors,
    RateLimitAnswer, Regex, StringMatch, TokenBucket,
};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::matching;
use crate::xds::proto::{self, Fields, Read};
use crate::xds::route::{self, headers, rate_limits};

const OWN: &str = "type.googleapis.com/tulle.LocalRateLimit";

pub(super) fn filter_name(name: &str) -> String {
    format!("tulle.local_rate_limit.{name}")
}

/// A filter that limits nothing, for the sake of the routes.
pub(super) fn encode_none() -> Any {
    proto::any(&pb::LocalRateLimit { stat_prefix: "none".into(), ..Default::default() })
}

pub(super) fn encode(limit: &LocalRateLimit) -> Any {
    if limit.applies_to.is_empty() && limit.clients.is_empty() && !limit.per_client {
        return proto::any(&encode_plain(limit));
    }
    let fields = [
        ("name", proto::text(&limit.name)),
        ("appliesTo", proto::list(limit.applies_to.iter().map(encode_condition))),
        ("clients", proto::list(limit.clients.iter().map(proto::text))),
        ("perClient", proto::flag(limit.per_client)),
        ("burst", proto::number(limit.bucket.burst)),
        ("tokensPerFill", proto::number(limit.bucket.tokens_per_fill)),
        ("fillInterval", proto::text(format!("{}ns", limit.bucket.fill_interval.as_nanos()))),
    ];
    proto::extension_fields(OWN, fields.map(|(name, value)| (name.to_owned(), value)).into())
}

/// `None` for another filter; `Some(None)` for a limit that is switched off.
pub(super) fn decode(config: &Any) -> Decoded<Option<Option<LocalRateLimit>>> {
    if proto::is::<pb::LocalRateLimit>(config) {
        return decode_plain(proto::unpack(config)?).map(Some);
    }
    let Some(fields) = proto::decode_fields(config, OWN)? else { return Ok(None) };
    decode_own(&fields).at("value").map(|limit| Some(Some(limit)))
}

/// The same of what a route says, which must hold a bucket.
pub(super) fn decode_per_route(config: &Any) -> Decoded<Option<Option<LocalRateLimit>>> {
    if !proto::is::<pb::LocalRateLimit>(config) {
        return Ok(None);
    }
    let limit: pb::LocalRateLimit = proto::unpack(config)?;
    required(limit.token_bucket.as_ref(), "token_bucket")?;
    decode_plain(limit).map(Some)
}

/// Envoy's filter does nothing unless it is enabled and enforced for a part of the requests.
fn encode_plain(limit: &LocalRateLimit) -> pb::LocalRateLimit {
    let share = |key: &str, share: PerMillion| RuntimeFractionalPercent {
        runtime_key: key.into(),
        ..matching::runtime_fraction(share)
    };
    let tell = if limit.tell { XRateLimitHeadersRfcVersion::DraftVersion03 } else { Default::default() };
    let plain = pb::LocalRateLimit {
        stat_prefix: limit.name.clone(),
        token_bucket: Some(encode_bucket(limit.bucket)),
        filter_enabled: Some(share("tulle.local_rate_limit.enabled", limit.enabled)),
        filter_enforced: Some(share("tulle.local_rate_limit.enforced", limit.enforced)),
        enable_retry_after_header: true,
        rate_limited_as_resource_exhausted: limit.answer.resource_exhausted,
        response_headers_to_add: headers::add(&limit.answer.headers),
        request_headers_to_add_when_not_enforced: headers::add(&limit.not_enforced),
        enable_x_ratelimit_headers: tell as i32,
        local_rate_limit_per_downstream_connection: limit.per_connection,
        // 429 is Envoy's own.
        status: (limit.answer.status != StatusCode::TOO_MANY_REQUESTS)
            .then(|| HttpStatus { code: limit.answer.status.as_u16().into() }),
        ..Default::default()
    };
    match &limit.descriptors {
        None => plain,
        Some(descriptors) => encode_descriptors(descriptors, plain),
    }
}

fn encode_descriptors(descriptors: &RateDescriptors, limit: pb::LocalRateLimit) -> pb::LocalRateLimit {
    let of_host = match descriptors.of_host {
        HostRules::Override => VhRateLimitsOptions::Override,
        HostRules::Include => VhRateLimitsOptions::Include,
        HostRules::Ignore => VhRateLimitsOptions::Ignore,
    };
    let encode = |bucket: &DescriptorBucket| LocalRateLimitDescriptor {
        entries: bucket
            .entries
            .iter()
            .map(|(key, value)| Entry { key: key.clone(), value: value.clone() })
            .collect(),
        token_bucket: Some(encode_bucket(bucket.bucket)),
        ..Default::default()
    };
    pb::LocalRateLimit {
        descriptors: descriptors.buckets.iter().map(encode).collect(),
        rate_limits: descriptors.rules.iter().map(rate_limits::encode).collect(),
        stage: descriptors.stage,
        vh_rate_limits: of_host as i32,
        max_dynamic_descriptors: proto::u32_value(descriptors.most_open),
        always_consume_default_token_bucket: proto::bool_value(descriptors.and_default),
        ..limit
    }
}

fn encode_bucket(bucket: TokenBucket) -> TokenBucketPb {
    TokenBucketPb {
        max_tokens: bucket.burst,
        tokens_per_fill: proto::u32_value(bucket.tokens_per_fill),
        fill_interval: Some(proto::duration(bucket.fill_interval)),
    }
}

fn decode_plain(mut limit: pb::LocalRateLimit) -> Decoded<Option<LocalRateLimit>> {
    unsupported(limit.local_cluster_rate_limit.is_some(), "local_cluster_rate_limit", "set the local share")?;
    let answer = RateLimitAnswer {
        // Envoy takes 429 for what is no error.
        status: match limit.status.take().map_or(0, |status| status.code) {
            ..400 => StatusCode::TOO_MANY_REQUESTS,
            code => route::decode_status(code.unsigned_abs()).at("status.code")?,
        },
        resource_exhausted: limit.rate_limited_as_resource_exhausted,
        headers: headers::decode(
            "response_headers",
            std::mem::take(&mut limit.response_headers_to_add),
            Vec::new(),
        )?,
    };
    let not_enforced = std::mem::take(&mut limit.request_headers_to_add_when_not_enforced);
    let not_enforced = headers::decode("request_headers", not_enforced, Vec::new())?;
    let tell = match XRateLimitHeadersRfcVersion::try_from(limit.enable_x_ratelimit_headers) {
        Ok(XRateLimitHeadersRfcVersion::Off) => false,
        Ok(XRateLimitHeadersRfcVersion::DraftVersion03) => true,
        Err(_) => {
            return Err(FieldError::new("is none of the known versions: use DRAFT_VERSION_03"))
                .at("enable_x_ratelimit_headers");
        }
    };
    let share = |share: Option<RuntimeFractionalPercent>, field: &str| {
        share.map_or(Ok(PerMillion(0)), matching::decode_runtime_fraction).at(field)
    };
    let enabled = share(limit.filter_enabled.take(), "filter_enabled")?;
    let enforced = share(limit.filter_enforced.take(), "filter_enforced")?;
    let descriptors = decode_descriptors(&mut limit)?;
    let bucket = limit.token_bucket.map(|bucket| decode_bucket(bucket).at("token_bucket")).transpose()?;
    if enabled == PerMillion(0) || (bucket.is_none() && descriptors.is_none()) {
        return Ok(None);
    }
    let name = non_empty(limit.stat_prefix, "stat_prefix")?;
    let limit = LocalRateLimit {
        answer,
        enabled,
        enforced,
        not_enforced,
        tell,
        per_connection: limit.local_rate_limit_per_downstream_connection,
        descriptors: descriptors.map(Box::new),
        ..LocalRateLimit::new(name, required(bucket, "token_bucket")?)
    };
    Ok(Some(limit))
}

/// Without descriptors, what is said of them has no effect.
fn decode_descriptors(limit: &mut pb::LocalRateLimit) -> Decoded<Option<RateDescriptors>> {
    let rules = rate_limits::decode_own(std::mem::take(&mut limit.rate_limits))?;
    if limit.stage > rate_limits::STAGES {
        let problem = format!("{} is not a stage: use 0 to {}", limit.stage, rate_limits::STAGES);
        return Err(FieldError::new(problem)).at("stage");
    }
    let of_host = match VhRateLimitsOptions::try_from(limit.vh_rate_limits) {
        Ok(VhRateLimitsOptions::Override) => HostRules::Override,
        Ok(VhRateLimitsOptions::Include) => HostRules::Include,
        Ok(VhRateLimitsOptions::Ignore) => HostRules::Ignore,
        Err(_) => return Err(FieldError::new("is none of the options: use OVERRIDE")).at("vh_rate_limits"),
    };
    let most_open = limit.max_dynamic_descriptors.map_or(MOST_OPEN, |most| most.value);
    if most_open == 0 {
        return Err(FieldError::new("is zero: set it from 1")).at("max_dynamic_descriptors");
    }
    let mut seen = HashSet::new();
    let buckets = each("descriptors", std::mem::take(&mut limit.descriptors), decode_descriptor)?;
    for (index, bucket) in buckets.iter().enumerate() {
        if !seen.insert(&bucket.entries) {
            let problem = "has the entries of another: name them once";
            return Err(FieldError::new(problem)).at("entries").at_item("descriptors", index);
        }
    }
    let and_default = limit.always_consume_default_token_bucket.is_none_or(|always| always.value);
    let stage = limit.stage;
    Ok((!buckets.is_empty()).then_some(RateDescriptors {
        buckets,
        rules,
        stage,
        of_host,
        most_open,
        and_default,
    }))
}

fn decode_descriptor(descriptor: LocalRateLimitDescriptor) -> Decoded<DescriptorBucket> {
    refuse!(descriptor; shadow_mode)?;
    let entries =
        each("entries", descriptor.entries, |entry| Ok((non_empty(entry.key, "key")?, entry.value)))?;
    if entries.is_empty() {
        return Err(FieldError::new("is empty: add an entry")).at("entries");
    }
    let bucket = required(descriptor.token_bucket, "token_bucket")?;
    Ok(DescriptorBucket { entries, bucket: decode_bucket(bucket).at("token_bucket")? })
}

fn decode_bucket(bucket: TokenBucketPb) -> Decoded<TokenBucket> {
    let interval = proto::decode_positive(bucket.fill_interval, "fill_interval")?;
    validate(TokenBucket {
        burst: bucket.max_tokens,
        tokens_per_fill: bucket.tokens_per_fill.map_or(1, |tokens| tokens.value),
        fill_interval: required(interval, "fill_interval")?,
    })
}

/// How many buckets there are, at most, for the values that a descriptor leaves open, where nothing is said (Envoy).
const MOST_OPEN: u32 = 20;

fn decode_own(fields: &Fields) -> Decoded<LocalRateLimit> {
    let nanos = fields.text("fillInterval")?;
    let interval = nanos
        .strip_suffix("ns")
        .and_then(|nanos| nanos.parse().ok())
        .map(std::time::Duration::from_nanos)
        .filter(|interval| !interval.is_zero() && *interval <= proto::MAX_DURATION)
        .ok_or_else(|| FieldError::new(format!("{nanos:?} is not a duration in ns, from 1")))
        .at("fillInterval")?;
    let bucket = validate(TokenBucket {
        burst: required(fields.number("burst")?, "burst")?,
        tokens_per_fill: required(fields.number("tokensPerFill")?, "tokensPerFill")?,
        fill_interval: interval,
    })?;
    Ok(LocalRateLimit {
        applies_to: each("appliesTo", fields.list("appliesTo")?, decode_condition)?,
        clients: each("clients", fields.list("clients")?, |client| Ok(as_text(client)?.to_owned()))?,
        per_client: fields.flag("perClient")?,
        ..LocalRateLimit::new(non_empty(fields.text("name")?, "name")?, bucket)
    })
}

fn validate(bucket: TokenBucket) -> Decoded<TokenBucket> {
    if bucket.burst == 0 || bucket.tokens_per_fill == 0 {
        return Err(FieldError::new(
            "the bucket would never hold a token: set its size and its fill above 0",
        ));
    }
    Ok(bucket)
}

/// A condition as a list of texts: the header's name, the test, what it compares with, and `ignoreCase` or `invert`. It is a
/// list and not an object because a list has an order.
fn encode_condition(condition: &HeaderMatch) -> Value {
    let (test, operand, ignore_case) = match &condition.test {
        HeaderTest::Present(present) => ("present", present.to_string(), false),
        HeaderTest::Range { start, end } => ("range", format!("{start}..{end}"), false),
        HeaderTest::Value(StringMatch::Exact { value, ignore_case }) => {
            ("exact", value.clone(), *ignore_case)
        }
        HeaderTest::Value(StringMatch::Prefix { value, ignore_case }) => {
            ("prefix", value.clone(), *ignore_case)
        }
        HeaderTest::Value(StringMatch::Suffix { value, ignore_case }) => {
            ("suffix", value.clone(), *ignore_case)
        }
        HeaderTest::Value(StringMatch::Contains { value, ignore_case }) => {
            ("contains", value.clone(), *ignore_case)
        }
        HeaderTest::Value(StringMatch::Regex(regex)) => ("regex", regex.as_str().into(), false),
    };
    let options =
        [(ignore_case, "ignoreCase"), (condition.invert, "invert"), (condition.missing_is_empty, MISSING)];
    let options = options.into_iter().filter(|(set, _)| *set).map(|(_, option)| proto::text(option));
    proto::list(
        [proto::text(&condition.name), proto::text(test), proto::text(operand)].into_iter().chain(options),
    )
}

/// The option by which a missing header counts as an empty one.
const MISSING: &str = "missingIsEmpty";

fn decode_condition(condition: &Value) -> Decoded<HeaderMatch> {
    let form = "is not of the form [name, test, value, option...]";
    let Some(Kind::ListValue(parts)) = &condition.kind else { return Err(FieldError::new(form)) };
    let parts = parts.values.iter().map(as_text).collect::<Decoded<Vec<_>>>()?;
    let [name, test, operand, options @ ..] = parts.as_slice() else { return Err(FieldError::new(form)) };
    let ignore_case = options.contains(&"ignoreCase");
    let value = (*operand).to_owned();
    let invalid = || FieldError::new(format!("{test:?} with {operand:?} is not a test"));
    let test = match *test {
        "present" => HeaderTest::Present(operand.parse().map_err(|_| invalid())?),
        "range" => {
            let (start, end) = operand.split_once("..").ok_or_else(invalid)?;
            HeaderTest::Range {
                start: start.parse().map_err(|_| invalid())?,
                end: end.parse().map_err(|_| invalid())?,
            }
        }
        "exact" => HeaderTest::Value(StringMatch::Exact { value, ignore_case }),
        "prefix" => HeaderTest::Value(StringMatch::Prefix { value, ignore_case }),
        "suffix" => HeaderTest::Value(StringMatch::Suffix { value, ignore_case }),
        "contains" => HeaderTest::Value(StringMatch::Contains { value, ignore_case }),
        "regex" => HeaderTest::Value(StringMatch::Regex(Regex::new(value).map_err(FieldError::new)?)),
        _ => return Err(invalid()),
    };
    Ok(HeaderMatch {
        name: matching::match_name(name)?,
        test,
        invert: options.contains(&"invert"),
        missing_is_empty: options.contains(&MISSING),
    })
}

fn as_text(value: &Value) -> Decoded<&str> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Ok(text),
        _ => Err(FieldError::new("is not a string")),
    }
}
