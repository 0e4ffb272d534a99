//! Conditions on strings, headers, query parameters and fractions.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::{CidrRange, RuntimeFractionalPercent};
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher};
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Int64Range, Percent};
use http::HeaderName;
use ipnet::IpNet;

use super::error::{At, Decoded, FieldError, non_empty, required};
use super::proto;
use crate::model::{AskedShare, HeaderMatch, HeaderTest, PerMillion, QueryMatch, Regex, StringMatch, Whole};

pub(super) fn string(condition: &StringMatch) -> StringMatcher {
    let (ignore_case, pattern) = match condition {
        StringMatch::Exact { value, ignore_case } => (*ignore_case, MatchPattern::Exact(value.clone())),
        StringMatch::Prefix { value, ignore_case } => (*ignore_case, MatchPattern::Prefix(value.clone())),
        StringMatch::Suffix { value, ignore_case } => (*ignore_case, MatchPattern::Suffix(value.clone())),
        StringMatch::Contains { value, ignore_case } => (*ignore_case, MatchPattern::Contains(value.clone())),
        StringMatch::Regex(expression) => (false, MatchPattern::SafeRegex(regex(expression))),
    };
    StringMatcher { ignore_case, match_pattern: Some(pattern) }
}

pub(super) fn decode_string(matcher: StringMatcher) -> Decoded<StringMatch> {
    let ignore_case = matcher.ignore_case;
    Ok(match required(matcher.match_pattern, "match_pattern")? {
        MatchPattern::Exact(value) => StringMatch::Exact { value, ignore_case },
        MatchPattern::Prefix(value) => StringMatch::Prefix { value, ignore_case },
        MatchPattern::Suffix(value) => StringMatch::Suffix { value, ignore_case },
        MatchPattern::Contains(value) => StringMatch::Contains { value, ignore_case },
        // Envoy documents that `ignore_case` has no effect on an expression.
        MatchPattern::SafeRegex(matcher) => StringMatch::Regex(decode_regex(matcher).at("safe_regex")?),
        MatchPattern::Custom(_) => {
            return Err(FieldError::new(
                "is not supported: use exact, prefix, suffix, contains or safe_regex",
            ))
            .at("custom");
        }
    })
}

pub(super) fn regex(expression: &Regex) -> RegexMatcher {
    RegexMatcher { regex: expression.as_str().into(), engine_type: None }
}

pub(super) fn decode_regex(matcher: RegexMatcher) -> Decoded<Regex> {
    Regex::new(non_empty(matcher.regex, "regex")?).map_err(FieldError::new).at("regex")
}

pub(super) fn range(range: IpNet) -> CidrRange {
    CidrRange {
        address_prefix: range.addr().to_string(),
        prefix_len: proto::u32_value(u32::from(range.prefix_len())),
    }
}

/// Without a length, all addresses of the family are meant, as in Envoy.
pub(super) fn decode_range(range: CidrRange) -> Decoded<IpNet> {
    let length = range.prefix_len.map_or(0, |length| length.value);
    let address: Option<IpAddr> = range.address_prefix.parse().ok();
    let length = u8::try_from(length).ok();
    address.zip(length).and_then(|(address, length)| IpNet::new(address, length).ok()).ok_or_else(|| {
        FieldError::new(format!(
            "{:?} with this prefix_len is not a range of IP addresses: use one as 10.0.0.0 with 8",
            range.address_prefix
        ))
    })
}

pub(super) fn header(condition: &HeaderMatch) -> pb::HeaderMatcher {
    let specifier = match &condition.test {
        HeaderTest::Present(present) => HeaderMatchSpecifier::PresentMatch(*present),
        HeaderTest::Value(value) => HeaderMatchSpecifier::StringMatch(string(value)),
        HeaderTest::Range { start, end } => {
            HeaderMatchSpecifier::RangeMatch(Int64Range { start: *start, end: *end })
        }
    };
    pb::HeaderMatcher {
        name: condition.name.clone(),
        invert_match: condition.invert,
        treat_missing_header_as_empty: condition.missing_is_empty,
        header_match_specifier: Some(specifier),
    }
}

#[expect(deprecated, reason = "other control planes still send the old forms of a condition on a value")]
pub(super) fn decode_header(matcher: pb::HeaderMatcher) -> Decoded<HeaderMatch> {
    let value = |value: StringMatch| HeaderTest::Value(value);
    let test = match matcher.header_match_specifier {
        None => HeaderTest::Present(true),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => HeaderTest::Present(present),
        Some(HeaderMatchSpecifier::StringMatch(matcher)) => value(decode_string(matcher).at("string_match")?),
        Some(HeaderMatchSpecifier::RangeMatch(Int64Range { start, end })) => HeaderTest::Range { start, end },
        Some(HeaderMatchSpecifier::ExactMatch(text)) => value(StringMatch::exact(text)),
        Some(HeaderMatchSpecifier::PrefixMatch(text)) => value(StringMatch::prefix(text)),
        Some(HeaderMatchSpecifier::SuffixMatch(text)) => {
            value(StringMatch::Suffix { value: text, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::ContainsMatch(text)) => {
            value(StringMatch::Contains { value: text, ignore_case: false })
        }
        Some(HeaderMatchSpecifier::SafeRegexMatch(matcher)) => {
            value(StringMatch::Regex(decode_regex(matcher).at("safe_regex_match")?))
        }
    };
    Ok(HeaderMatch {
        name: match_name(&matcher.name).at("name")?,
        test,
        invert: matcher.invert_match,
        missing_is_empty: matcher.treat_missing_header_as_empty,
    })
}

/// The name of a header in a condition: lower case, and the authority's under its HTTP/2 name.
pub(super) fn match_name(name: &str) -> Decoded<String> {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        ":method" | ":authority" | ":path" | ":scheme" => Ok(name),
        "host" => Ok(":authority".into()),
        _ => Ok(header_name(&name)?.as_str().into()),
    }
}

/// The name of a header that is not a pseudo-header.
pub(super) fn header_name(name: &str) -> Decoded<HeaderName> {
    name.parse().map_err(|_| FieldError::new(format!("{name:?} is not a valid header name")))
}

pub(super) fn query(condition: &QueryMatch) -> pb::QueryParameterMatcher {
    pb::QueryParameterMatcher {
        name: condition.name.clone(),
        query_parameter_match_specifier: Some(match &condition.value {
            Some(value) => QueryParameterMatchSpecifier::StringMatch(string(value)),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    }
}

pub(super) fn decode_query(matcher: pb::QueryParameterMatcher) -> Decoded<QueryMatch> {
    let value = match matcher.query_parameter_match_specifier {
        None | Some(QueryParameterMatchSpecifier::PresentMatch(true)) => None,
        Some(QueryParameterMatchSpecifier::PresentMatch(false)) => {
            return Err(FieldError::new("false is not supported: only ask for a parameter that is there"))
                .at("present_match");
        }
        Some(QueryParameterMatchSpecifier::StringMatch(matcher)) => {
            Some(decode_string(matcher).at("string_match")?)
        }
    };
    Ok(QueryMatch { name: non_empty(matcher.name, "name")?, value })
}

/// A percentage, or `default` where there is none.
pub(super) fn decode_percent(percent: Option<Percent>, default: f64) -> Decoded<f64> {
    let percent = percent.map_or(default, |percent| percent.value);
    match (0.0..=100.0).contains(&percent) {
        true => Ok(percent),
        false => Err(FieldError::new(format!("{percent} is not a percentage: use 0 to 100"))),
    }
}

/// A share as a percentage.
pub(super) fn share(share: PerMillion) -> Percent {
    Percent { value: f64::from(share.0) / 10_000.0 }
}

pub(super) fn decode_share(percent: Option<Percent>, default: PerMillion) -> Decoded<PerMillion> {
    let percent = decode_percent(percent, share(default).value)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is a percentage")]
    Ok(PerMillion((percent * 10_000.0).round() as u32))
}

pub(super) fn fraction(fraction: PerMillion) -> FractionalPercent {
    FractionalPercent {
        numerator: fraction.0.min(PerMillion::ALL.0),
        denominator: DenominatorType::Million as i32,
    }
}

/// More than the whole counts as the whole, as in Envoy.
pub(super) fn decode_fraction(fraction: FractionalPercent) -> Decoded<PerMillion> {
    decode_asked(fraction).map(|share| share.of(None))
}

pub(super) fn asked(share: AskedShare) -> FractionalPercent {
    let denominator = match share.of {
        Whole::Hundred => DenominatorType::Hundred,
        Whole::TenThousand => DenominatorType::TenThousand,
        Whole::Million => DenominatorType::Million,
    };
    FractionalPercent { numerator: share.most, denominator: denominator as i32 }
}

pub(super) fn decode_asked(fraction: FractionalPercent) -> Decoded<AskedShare> {
    let of = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::Hundred) => Whole::Hundred,
        Ok(DenominatorType::TenThousand) => Whole::TenThousand,
        Ok(DenominatorType::Million) => Whole::Million,
        Err(_) => {
            return Err(FieldError::new(format!("{} is not a denominator", fraction.denominator)))
                .at("denominator");
        }
    };
    Ok(AskedShare { most: fraction.numerator, of })
}

pub(super) fn runtime_fraction(value: PerMillion) -> RuntimeFractionalPercent {
    RuntimeFractionalPercent { default_value: Some(fraction(value)), runtime_key: String::new() }
}

pub(super) fn decode_runtime_fraction(fraction: RuntimeFractionalPercent) -> Decoded<PerMillion> {
    required(fraction.default_value, "default_value").and_then(|f| decode_fraction(f).at("default_value"))
}
