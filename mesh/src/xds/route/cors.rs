//! Cross-origin resource sharing, of a route or of one of its backends.

use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;
use envoy_types::pb::google::protobuf::Any;
use http::HeaderValue;

use crate::model::{Cors, PerMillion};
use crate::xds::error::{At, Decoded, FieldError, each};
use crate::xds::{matching, proto};

pub(in crate::xds) fn encode(cors: &Cors) -> pb::CorsPolicy {
    pb::CorsPolicy {
        filter_enabled: (cors.enabled != PerMillion::ALL).then(|| matching::runtime_fraction(cors.enabled)),
        allow_origin_string_match: cors.allow_origins.iter().map(matching::string).collect(),
        allow_methods: cors.allow_methods.clone(),
        allow_headers: cors.allow_headers.clone(),
        expose_headers: cors.expose_headers.clone(),
        max_age: cors.max_age.clone(),
        allow_credentials: proto::bool_value(cors.allow_credentials),
        allow_private_network_access: proto::bool_value(cors.allow_private_network),
        // Envoy hands on what does not match; Gateway API wants it answered.
        forward_not_matching_preflights: proto::bool_value(cors.forward_unmatched),
        ..Default::default()
    }
}

pub(in crate::xds) fn decode(policy: pb::CorsPolicy) -> Decoded<Cors> {
    let flag = |flag: Option<envoy_types::pb::google::protobuf::BoolValue>, default: bool| {
        flag.map_or(default, |flag| flag.value)
    };
    let enabled = policy.filter_enabled.map_or(Ok(PerMillion::ALL), matching::decode_runtime_fraction);
    Ok(Cors {
        enabled: enabled.at("filter_enabled")?,
        allow_origins: each(
            "allow_origin_string_match",
            policy.allow_origin_string_match,
            matching::decode_string,
        )?,
        allow_credentials: flag(policy.allow_credentials, false),
        allow_methods: text(policy.allow_methods, "allow_methods")?,
        allow_headers: text(policy.allow_headers, "allow_headers")?,
        expose_headers: text(policy.expose_headers, "expose_headers")?,
        max_age: text(policy.max_age, "max_age")?,
        allow_private_network: flag(policy.allow_private_network_access, false),
        forward_unmatched: flag(policy.forward_not_matching_preflights, true),
    })
}

/// What `near` says, and where it says nothing what `far` does, as Envoy reads rules of several levels. Whether they hold at all
/// is said by the nearest.
pub(super) fn inherit(near: &Any, far: &Any) -> Option<Any> {
    let (near, far) = (policy_of(near)?, policy_of(far)?);
    let text = |near: String, far: String| if near.is_empty() { far } else { near };
    let origins = match near.allow_origin_string_match.is_empty() {
        true => far.allow_origin_string_match,
        false => near.allow_origin_string_match,
    };
    Some(proto::any(&pb::CorsPolicy {
        allow_origin_string_match: origins,
        allow_methods: text(near.allow_methods, far.allow_methods),
        allow_headers: text(near.allow_headers, far.allow_headers),
        expose_headers: text(near.expose_headers, far.expose_headers),
        max_age: text(near.max_age, far.max_age),
        allow_credentials: near.allow_credentials.or(far.allow_credentials),
        allow_private_network_access: near.allow_private_network_access.or(far.allow_private_network_access),
        forward_not_matching_preflights: near
            .forward_not_matching_preflights
            .or(far.forward_not_matching_preflights),
        filter_enabled: near.filter_enabled,
        shadow_enabled: near.shadow_enabled,
    }))
}

/// The rules in a route's settings, if they are such; what can't be read is told where it is decoded.
fn policy_of(config: &Any) -> Option<pb::CorsPolicy> {
    use envoy_types::pb::envoy::config::route::v3::FilterConfig;
    if proto::is::<FilterConfig>(config) {
        let wrapper: FilterConfig = proto::unpack(config).ok()?;
        let inner = wrapper.config.filter(|_| !wrapper.disabled)?;
        return proto::is::<pb::CorsPolicy>(&inner).then(|| proto::unpack(&inner).ok()).flatten();
    }
    proto::is::<pb::CorsPolicy>(config).then(|| proto::unpack(config).ok()).flatten()
}

/// A text that can be sent.
fn text(text: String, field: &str) -> Decoded<String> {
    match HeaderValue::from_str(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(FieldError::new(format!("{text:?} can't stand in a header"))).at(field),
    }
}
