//! Which requests a route is for.
//!
//! A condition on whole segments has no field that both Envoy and gRPC know (gRPC refuses `path_separated_prefix`), so it
//! travels as two routes, one for the very path and one for what is below it; see the parent module.

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_match::{GrpcRouteMatchOptions, PathSpecifier};

use crate::model::{PathMatch, RouteMatch};
use crate::xds::error::{At, Decoded, FieldError, each, required, unsupported};
use crate::xds::{matching, proto};

/// Writes a condition with `path` in place of its own on the path.
pub(super) fn encode(condition: &RouteMatch, path: PathSpecifier) -> pb::RouteMatch {
    pb::RouteMatch {
        // Unset means true.
        case_sensitive: (!condition.case_sensitive).then(|| proto::bool_value(false)).flatten(),
        runtime_fraction: condition.fraction.map(matching::runtime_fraction),
        headers: condition.headers.iter().map(matching::header).collect(),
        query_parameters: condition.query.iter().map(matching::query).collect(),
        grpc: condition.grpc.then(GrpcRouteMatchOptions::default),
        path_specifier: Some(path),
        ..Default::default()
    }
}

pub(super) fn decode(matches: pb::RouteMatch) -> Decoded<RouteMatch> {
    unsupported(matches.tls_context.is_some(), "tls_context", "use an authorization filter")?;
    unsupported(!matches.cookies.is_empty(), "cookies", "match the header cookie by a regular expression")?;
    unsupported(!matches.dynamic_metadata.is_empty(), "dynamic_metadata", "match headers")?;
    unsupported(!matches.filter_state.is_empty(), "filter_state", "match headers")?;
    Ok(RouteMatch {
        path: decode_path(required(matches.path_specifier, "path_specifier")?)?,
        case_sensitive: matches.case_sensitive.is_none_or(|sensitive| sensitive.value),
        headers: each("headers", matches.headers, matching::decode_header)?,
        query: each("query_parameters", matches.query_parameters, matching::decode_query)?,
        grpc: matches.grpc.is_some(),
        fraction: matches
            .runtime_fraction
            .map(|fraction| matching::decode_runtime_fraction(fraction).at("runtime_fraction"))
            .transpose()?,
    })
}

fn decode_path(path: PathSpecifier) -> Decoded<PathMatch> {
    match path {
        PathSpecifier::Prefix(prefix) => Ok(PathMatch::Prefix(prefix)),
        PathSpecifier::Path(path) => Ok(PathMatch::Exact(path)),
        PathSpecifier::SafeRegex(regex) => {
            Ok(PathMatch::Regex(matching::decode_regex(regex).at("safe_regex")?))
        }
        PathSpecifier::PathSeparatedPrefix(path) => {
            let valid = path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#']);
            if !valid {
                let problem =
                    format!("{path:?} must start with '/', not end with it, and hold no '?' or '#'");
                return Err(FieldError::new(problem)).at("path_separated_prefix");
            }
            Ok(PathMatch::Segments(path))
        }
        PathSpecifier::ConnectMatcher(_) => {
            Err(FieldError::new("is not supported: CONNECT is forwarded as TCP")).at("connect_matcher")
        }
        PathSpecifier::PathMatchPolicy(_) => {
            Err(FieldError::new("is not supported: use prefix, path or safe_regex")).at("path_match_policy")
        }
    }
}
