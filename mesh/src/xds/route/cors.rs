//! Cross-origin resource sharing of a route.

use std::time::Duration;

use envoy_types::pb::envoy::extensions::filters::http::cors::v3 as pb;

use crate::model::Cors;
use crate::xds::error::{At, Decoded, FieldError, each, unsupported};
use crate::xds::{matching, proto};

/// How long a client may keep an answer where nothing is said (the Fetch standard).
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5);

pub(super) fn encode(cors: &Cors) -> pb::CorsPolicy {
    pb::CorsPolicy {
        allow_origin_string_match: cors.allow_origins.iter().map(matching::string).collect(),
        allow_methods: cors.allow_methods.join(","),
        allow_headers: cors.allow_headers.join(","),
        expose_headers: cors.expose_headers.join(","),
        max_age: cors.max_age.as_secs().to_string(),
        allow_credentials: proto::bool_value(cors.allow_credentials),
        // Envoy hands on what does not match; Gateway API wants it answered.
        forward_not_matching_preflights: proto::bool_value(false),
        ..Default::default()
    }
}

pub(super) fn decode(policy: pb::CorsPolicy) -> Decoded<Cors> {
    unsupported(policy.filter_enabled.is_some(), "filter_enabled", "leave the policy out to switch it off")?;
    unsupported(policy.shadow_enabled.is_some(), "shadow_enabled", "leave it out")?;
    unsupported(
        policy.allow_private_network_access.is_some_and(|allow| allow.value),
        "allow_private_network_access",
        "leave it out",
    )?;
    let max_age = match policy.max_age.as_str() {
        "" => DEFAULT_MAX_AGE,
        text => {
            let seconds: u32 = text
                .parse()
                .map_err(|_| FieldError::new(format!("{text:?} is not a number of seconds")))
                .at("max_age")?;
            Duration::from_secs(seconds.into())
        }
    };
    Ok(Cors {
        allow_origins: each(
            "allow_origin_string_match",
            policy.allow_origin_string_match,
            matching::decode_string,
        )?,
        allow_credentials: policy.allow_credentials.is_some_and(|allow| allow.value),
        allow_methods: list(&policy.allow_methods),
        allow_headers: list(&policy.allow_headers),
        expose_headers: list(&policy.expose_headers),
        max_age,
    })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(Into::into).collect()
}
