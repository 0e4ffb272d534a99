//! Limits on the rate of requests.
//!
//! A limit that counts all requests is Envoy's filter. One that counts by header or by client has features that Envoy's
//! bucket lacks, so it is Tulle's own extension, which others pass over.

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, TokenBucket};
use envoy_types::pb::google::protobuf::value::Kind;
use envoy_types::pb::google::protobuf::{Any, Value};
use http::StatusCode;

use crate::model::{
    HeaderMatch, HeaderTest, LocalRateLimit, PerMillion, RateLimitAnswer, Regex, StringMatch,
};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::matching;
use crate::xds::proto::{self, Fields, Read};
use crate::xds::route::{self, headers};

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
        ("burst", proto::number(limit.burst)),
        ("tokensPerFill", proto::number(limit.tokens_per_fill)),
        ("fillInterval", proto::text(format!("{}ns", limit.fill_interval.as_nanos()))),
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
    let always = |key: &str| RuntimeFractionalPercent {
        runtime_key: key.into(),
        ..matching::runtime_fraction(PerMillion::ALL)
    };
    pb::LocalRateLimit {
        stat_prefix: limit.name.clone(),
        token_bucket: Some(TokenBucket {
            max_tokens: limit.burst,
            tokens_per_fill: proto::u32_value(limit.tokens_per_fill),
            fill_interval: Some(proto::duration(limit.fill_interval)),
        }),
        filter_enabled: Some(always("tulle.local_rate_limit.enabled")),
        filter_enforced: Some(always("tulle.local_rate_limit.enforced")),
        enable_retry_after_header: true,
        rate_limited_as_resource_exhausted: limit.answer.resource_exhausted,
        response_headers_to_add: headers::add(&limit.answer.headers),
        // 429 is Envoy's own.
        status: (limit.answer.status != StatusCode::TOO_MANY_REQUESTS)
            .then(|| HttpStatus { code: limit.answer.status.as_u16().into() }),
        ..Default::default()
    }
}

fn decode_plain(limit: pb::LocalRateLimit) -> Decoded<Option<LocalRateLimit>> {
    unsupported(!limit.descriptors.is_empty(), "descriptors", "make a filter for each bucket")?;
    unsupported(
        limit.local_rate_limit_per_downstream_connection,
        "local_rate_limit_per_downstream_connection",
        "leave it out: a bucket is shared",
    )?;
    unsupported(limit.local_cluster_rate_limit.is_some(), "local_cluster_rate_limit", "set the local share")?;
    refuse!(limit;
        enable_x_ratelimit_headers, rate_limits, request_headers_to_add_when_not_enforced)?;
    let answer = RateLimitAnswer {
        // Envoy takes 429 for what is no error.
        status: match limit.status.map_or(0, |status| status.code) {
            ..400 => StatusCode::TOO_MANY_REQUESTS,
            code => route::decode_status(code.unsigned_abs()).at("status.code")?,
        },
        resource_exhausted: limit.rate_limited_as_resource_exhausted,
        headers: headers::decode("response_headers", limit.response_headers_to_add, Vec::new())?,
    };
    for (fraction, field) in
        [(&limit.filter_enabled, "filter_enabled"), (&limit.filter_enforced, "filter_enforced")]
    {
        let fraction = fraction.clone().map_or(Ok(PerMillion(0)), matching::decode_runtime_fraction);
        match fraction.at(field)? {
            PerMillion::ALL => {}
            PerMillion(0) => return Ok(None),
            _ => unsupported(true, field, "use 100 %, or 0 % to switch it off")?,
        }
    }
    let bucket = required(limit.token_bucket, "token_bucket")?;
    let tokens = bucket.tokens_per_fill.map_or(1, |tokens| tokens.value);
    let interval = proto::decode_positive(bucket.fill_interval, "fill_interval").at("token_bucket")?;
    let interval = required(interval, "fill_interval").at("token_bucket")?;
    validate(LocalRateLimit {
        name: non_empty(limit.stat_prefix, "stat_prefix")?,
        applies_to: Vec::new(),
        clients: Vec::new(),
        per_client: false,
        burst: bucket.max_tokens,
        tokens_per_fill: tokens,
        fill_interval: interval,
        answer,
    })
    .at("token_bucket")
    .map(Some)
}

fn decode_own(fields: &Fields) -> Decoded<LocalRateLimit> {
    let nanos = fields.text("fillInterval")?;
    let interval = nanos
        .strip_suffix("ns")
        .and_then(|nanos| nanos.parse().ok())
        .map(std::time::Duration::from_nanos)
        .filter(|interval| !interval.is_zero() && *interval <= proto::MAX_DURATION)
        .ok_or_else(|| FieldError::new(format!("{nanos:?} is not a duration in ns, from 1")))
        .at("fillInterval")?;
    validate(LocalRateLimit {
        name: non_empty(fields.text("name")?, "name")?,
        applies_to: each("appliesTo", fields.list("appliesTo")?, decode_condition)?,
        clients: each("clients", fields.list("clients")?, |client| Ok(as_text(client)?.to_owned()))?,
        per_client: fields.flag("perClient")?,
        burst: required(fields.number("burst")?, "burst")?,
        tokens_per_fill: required(fields.number("tokensPerFill")?, "tokensPerFill")?,
        fill_interval: interval,
        answer: RateLimitAnswer::default(),
    })
}

fn validate(limit: LocalRateLimit) -> Decoded<LocalRateLimit> {
    if limit.burst == 0 || limit.tokens_per_fill == 0 {
        return Err(FieldError::new(
            "the bucket would never hold a token: set its size and its fill above 0",
        ));
    }
    Ok(limit)
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
