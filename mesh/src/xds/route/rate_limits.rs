//! Rules by which requests get descriptors, for limits on their rate.
//!
//! They stand on routes, on virtual hosts, and in the limit's own filter.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::{self, ActionSpecifier};
use envoy_types::pb::envoy::config::route::v3::rate_limit::{Action, XRateLimitOption};

use crate::model::{RateAction, RateLimitRule};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::{matching, proto};

const GENERIC: &str = "generic_key";
const HEADERS: &str = "header_match";
const QUERY: &str = "query_match";

/// The greatest stage.
pub(in crate::xds) const STAGES: u32 = 10;

pub(in crate::xds) fn encode(rule: &RateLimitRule) -> pb::RateLimit {
    pb::RateLimit {
        stage: proto::u32_value((rule.stage > 0).then_some(rule.stage)),
        actions: rule.actions.iter().map(encode_action).collect(),
        ..Default::default()
    }
}

/// Reads those of a route or a virtual host. One that the runtime could switch off (`disable_key`) is passed over by Envoy's
/// filter, and so it is here.
pub(in crate::xds) fn decode(rules: Vec<pb::RateLimit>) -> Decoded<Vec<RateLimitRule>> {
    let rules = each("rate_limits", rules, |rule| {
        let known = rule.disable_key.is_empty();
        decode_rule(rule).map(|rule| known.then_some(rule))
    })?;
    Ok(rules.into_iter().flatten().collect())
}

/// Reads those of the filter itself, which have no stages.
pub(in crate::xds) fn decode_own(rules: Vec<pb::RateLimit>) -> Decoded<Vec<RateLimitRule>> {
    each("rate_limits", rules, |rule| {
        refuse!(rule; stage, disable_key)?;
        decode_rule(rule)
    })
}

fn decode_rule(rule: pb::RateLimit) -> Decoded<RateLimitRule> {
    refuse!(rule; limit, hits_addend, apply_on_stream_done)?;
    let option = rule.x_ratelimit_option;
    unsupported(option != XRateLimitOption::default() as i32, "x_ratelimit_option", "leave it out")?;
    let stage = rule.stage.map_or(0, |stage| stage.value);
    if stage > STAGES {
        return Err(FieldError::new(format!("{stage} is not a stage: use 0 to {STAGES}"))).at("stage");
    }
    if rule.actions.is_empty() {
        return Err(FieldError::new("is empty: add an action")).at("actions");
    }
    Ok(RateLimitRule { stage, actions: each("actions", rule.actions, decode_action)? })
}

fn encode_action(action: &RateAction) -> Action {
    let specifier = match action.clone() {
        RateAction::SourceCluster => ActionSpecifier::SourceCluster(action::SourceCluster {}),
        RateAction::DestinationCluster => ActionSpecifier::DestinationCluster(action::DestinationCluster {}),
        RateAction::RemoteAddress => ActionSpecifier::RemoteAddress(action::RemoteAddress {}),
        RateAction::MaskedRemoteAddress { v4, v6 } => {
            ActionSpecifier::MaskedRemoteAddress(action::MaskedRemoteAddress {
                v4_prefix_mask_len: proto::u32_value(u32::from(v4)),
                v6_prefix_mask_len: proto::u32_value(u32::from(v6)),
            })
        }
        RateAction::GenericKey { key, value } => ActionSpecifier::GenericKey(action::GenericKey {
            descriptor_key: key,
            descriptor_value: value,
            ..Default::default()
        }),
        RateAction::Header { name, key, optional } => {
            ActionSpecifier::RequestHeaders(action::RequestHeaders {
                header_name: name,
                descriptor_key: key,
                skip_if_absent: optional,
            })
        }
        RateAction::Query { name, key, optional } => {
            ActionSpecifier::QueryParameters(action::QueryParameters {
                query_parameter_name: name,
                descriptor_key: key,
                skip_if_absent: optional,
            })
        }
        RateAction::HeadersMatch { key, value, expect, headers } => {
            ActionSpecifier::HeaderValueMatch(action::HeaderValueMatch {
                descriptor_key: key,
                descriptor_value: value,
                expect_match: proto::bool_value(expect),
                headers: headers.iter().map(matching::header).collect(),
                ..Default::default()
            })
        }
        RateAction::QueryMatches { key, value, expect, query } => {
            ActionSpecifier::QueryParameterValueMatch(action::QueryParameterValueMatch {
                descriptor_key: key,
                descriptor_value: value,
                expect_match: proto::bool_value(expect),
                query_parameters: query.iter().map(matching::query).collect(),
                ..Default::default()
            })
        }
    };
    Action { action_specifier: Some(specifier) }
}

#[expect(deprecated, reason = "other control planes may still send dynamic_metadata")]
fn decode_action(action: Action) -> Decoded<RateAction> {
    Ok(match required(action.action_specifier, "action_specifier")? {
        ActionSpecifier::SourceCluster(_) => RateAction::SourceCluster,
        ActionSpecifier::DestinationCluster(_) => RateAction::DestinationCluster,
        ActionSpecifier::RemoteAddress(_) => RateAction::RemoteAddress,
        ActionSpecifier::MaskedRemoteAddress(masked) => {
            let length = |length: Option<u32>, most: u8, field: &str| {
                match length {
                    None => Ok(most),
                    Some(length) => {
                        u8::try_from(length).ok().filter(|length| *length <= most).ok_or_else(|| {
                            FieldError::new(format!(
                                "{length} is not the length of a prefix: use 0 to {most}"
                            ))
                        })
                    }
                }
                .at(field)
            };
            RateAction::MaskedRemoteAddress {
                v4: length(masked.v4_prefix_mask_len.map(|length| length.value), 32, "v4_prefix_mask_len")
                    .at("masked_remote_address")?,
                v6: length(masked.v6_prefix_mask_len.map(|length| length.value), 128, "v6_prefix_mask_len")
                    .at("masked_remote_address")?,
            }
        }
        ActionSpecifier::GenericKey(generic) => RateAction::GenericKey {
            key: or_default(generic.descriptor_key, GENERIC),
            value: non_empty(generic.descriptor_value, "descriptor_value").at("generic_key")?,
        },
        ActionSpecifier::RequestHeaders(headers) => {
            let field = "request_headers";
            RateAction::Header {
                name: matching::match_name(&headers.header_name).at("header_name").at(field)?,
                key: non_empty(headers.descriptor_key, "descriptor_key").at(field)?,
                optional: headers.skip_if_absent,
            }
        }
        ActionSpecifier::QueryParameters(query) => {
            let field = "query_parameters";
            RateAction::Query {
                name: non_empty(query.query_parameter_name, "query_parameter_name").at(field)?,
                key: non_empty(query.descriptor_key, "descriptor_key").at(field)?,
                optional: query.skip_if_absent,
            }
        }
        ActionSpecifier::HeaderValueMatch(matched) => {
            let field = "header_value_match";
            RateAction::HeadersMatch {
                key: or_default(matched.descriptor_key, HEADERS),
                value: non_empty(matched.descriptor_value, "descriptor_value").at(field)?,
                expect: matched.expect_match.is_none_or(|expect| expect.value),
                headers: each("headers", matched.headers, matching::decode_header).at(field)?,
            }
        }
        ActionSpecifier::QueryParameterValueMatch(matched) => {
            let field = "query_parameter_value_match";
            RateAction::QueryMatches {
                key: or_default(matched.descriptor_key, QUERY),
                value: non_empty(matched.descriptor_value, "descriptor_value").at(field)?,
                expect: matched.expect_match.is_none_or(|expect| expect.value),
                query: each("query_parameters", matched.query_parameters, matching::decode_query)
                    .at(field)?,
            }
        }
        ActionSpecifier::DynamicMetadata(_) => return unknown("dynamic_metadata"),
        ActionSpecifier::Metadata(_) => return unknown("metadata"),
        ActionSpecifier::Extension(_) => return unknown("extension"),
        ActionSpecifier::RemoteAddressMatch(_) => return unknown("remote_address_match"),
    })
}

fn unknown(field: &str) -> Decoded<RateAction> {
    Err(FieldError::new("is not supported: use generic_key, request_headers or remote_address")).at(field)
}

fn or_default(key: String, default: &str) -> String {
    if key.is_empty() { default.into() } else { key }
}
