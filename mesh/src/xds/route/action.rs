//! What happens to a request: forwarding, a redirect, an answer.

use envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::{
    ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier, UpgradeConfig,
};
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::cluster_weight::HostRewriteSpecifier as BackendHost;
use envoy_types::pb::envoy::config::route::v3::weighted_cluster::{ClusterWeight, RandomValueSpecifier};
use http::StatusCode;

use super::mirror::{decode_mirror, encode_mirror};
use super::{decode_status, filters, headers, policy, rate_limits, rewrite};
use crate::model::{
    Backend, DirectResponse, Forward, HostRewrite, Redirect, RouteAction, RouteRateLimits, Split, Upgrade,
};
use crate::xds::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use crate::xds::{matching, proto, upgrades};

/// Writes an action. `below`: of a route on whole segments, the half that is for what is below the path.
pub(super) fn encode(action: &RouteAction, below: bool) -> Action {
    match action {
        RouteAction::Forward(forward) => Action::Route(encode_forward(forward, below)),
        RouteAction::Redirect(redirect) => Action::Redirect(encode_redirect(redirect, below)),
        RouteAction::Respond(response) => Action::DirectResponse(pb::DirectResponseAction {
            status: response.status.as_u16().into(),
            body: (!response.body.is_empty()).then(|| DataSource {
                specifier: Some(Specifier::InlineString(response.body.clone())),
                ..Default::default()
            }),
            ..Default::default()
        }),
        RouteAction::NonForwarding => Action::NonForwardingAction(pb::NonForwardingAction::default()),
    }
}

pub(super) fn decode(action: Action) -> Decoded<RouteAction> {
    Ok(match action {
        Action::Route(forward) => RouteAction::Forward(decode_forward(forward).at("route")?),
        Action::Redirect(redirect) => RouteAction::Redirect(decode_redirect(redirect).at("redirect")?),
        Action::DirectResponse(response) => {
            RouteAction::Respond(decode_response(response).at("direct_response")?)
        }
        Action::NonForwardingAction(_) => RouteAction::NonForwarding,
        Action::FilterAction(_) => {
            return Err(FieldError::new("is not supported: use route, redirect or direct_response"))
                .at("filter_action");
        }
    })
}

#[expect(deprecated, reason = "Istio's control plane bounds the time of calls by old fields")]
fn encode_forward(forward: &Forward, below: bool) -> pb::RouteAction {
    let (prefix_rewrite, regex_rewrite) = rewrite::encode_forward(forward.path_rewrite.as_ref(), below);
    let unknown = match forward.unknown_cluster_status {
        StatusCode::NOT_FOUND => ClusterNotFoundResponseCode::NotFound,
        StatusCode::INTERNAL_SERVER_ERROR => ClusterNotFoundResponseCode::InternalServerError,
        _ => ClusterNotFoundResponseCode::ServiceUnavailable,
    };
    pb::RouteAction {
        cluster_not_found_response_code: unknown as i32,
        prefix_rewrite,
        regex_rewrite,
        timeout: forward.timeouts.request.map(proto::duration),
        max_grpc_timeout: policy::older(&forward.timeouts).map(|grpc| proto::duration(grpc.max)),
        grpc_timeout_offset: policy::older(&forward.timeouts).and_then(policy::offset),
        idle_timeout: forward.timeouts.idle.map(proto::duration),
        max_stream_duration: policy::max_stream_duration(&forward.timeouts),
        retry_policy: forward.retry.as_ref().and_then(policy::encode_retry),
        request_mirror_policies: forward.mirrors.iter().map(encode_mirror).collect(),
        append_x_forwarded_host: forward.tell_original_host,
        rate_limits: forward.rate_limits.rules.iter().map(rate_limits::encode).collect(),
        include_vh_rate_limits: proto::bool_value(true).filter(|_| forward.rate_limits.with_hosts),
        hash_policy: forward.hash.iter().map(policy::encode_hash).collect(),
        cluster_specifier: Some(encode_backends(forward)),
        host_rewrite_specifier: forward.host_rewrite.as_ref().map(|host| match host {
            HostRewrite::Literal(host) => HostRewriteSpecifier::HostRewriteLiteral(host.clone()),
            HostRewrite::Endpoint => {
                HostRewriteSpecifier::AutoHostRewrite(proto::bool_value(true).unwrap_or_default())
            }
            HostRewrite::Header(name) => HostRewriteSpecifier::HostRewriteHeader(name.as_str().into()),
        }),
        upgrade_configs: forward.upgrades.iter().map(encode_upgrade).collect(),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "Envoy still reads include_vh_rate_limits")]
fn decode_forward(action: pb::RouteAction) -> Decoded<Forward> {
    unsupported(
        action.metadata_match.is_some(),
        "metadata_match",
        "make a cluster of its own for each subset",
    )?;
    refuse_rest(&action)?;
    unsupported(action.path_rewrite_policy.is_some(), "path_rewrite_policy", "use regex_rewrite")?;
    unsupported(action.retry_policy_typed_config.is_some(), "retry_policy_typed_config", "use retry_policy")?;
    let timeouts = policy::decode_timeouts(&action)?;
    let status = match ClusterNotFoundResponseCode::try_from(action.cluster_not_found_response_code) {
        Ok(ClusterNotFoundResponseCode::NotFound) => StatusCode::NOT_FOUND,
        Ok(ClusterNotFoundResponseCode::InternalServerError) => StatusCode::INTERNAL_SERVER_ERROR,
        Ok(ClusterNotFoundResponseCode::ServiceUnavailable) | Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    let host_rewrite = match action.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            (!host.is_empty()).then_some(HostRewrite::Literal(host))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(matching::header_name(&name).at("host_rewrite_header")?))
        }
        Some(HostRewriteSpecifier::AutoHostRewrite(auto)) => auto.value.then_some(HostRewrite::Endpoint),
        Some(_) => {
            return Err(FieldError::new(
                "is not supported: use host_rewrite_literal, host_rewrite_header or auto_host_rewrite",
            ))
            .at("host_rewrite_specifier");
        }
    };
    let (backends, split) = decode_backends(required(action.cluster_specifier, "cluster_specifier")?)?;
    let hash = each("hash_policy", action.hash_policy, policy::decode_hash)?;
    Ok(Forward {
        backends,
        split,
        unknown_cluster_status: status,
        timeouts,
        retry: action
            .retry_policy
            .map_or(Ok(None), |retry| policy::decode_retry(retry).at("retry_policy"))?,
        path_rewrite: rewrite::decode_forward(
            action.prefix_rewrite,
            action.regex_rewrite,
            action.path_rewrite,
        )?,
        host_rewrite,
        tell_original_host: action.append_x_forwarded_host,
        mirrors: each("request_mirror_policies", action.request_mirror_policies, decode_mirror)?,
        hash: hash.into_iter().flatten().collect(),
        // Among the route's settings of filters.
        session: None,
        rate_limits: RouteRateLimits {
            rules: rate_limits::decode(action.rate_limits)?,
            with_hosts: action.include_vh_rate_limits.is_some_and(|include| include.value),
        },
        upgrades: upgrades::decode(action.upgrade_configs, decode_upgrade)?,
    })
}

fn encode_upgrade(upgrade: &Upgrade) -> UpgradeConfig {
    UpgradeConfig {
        upgrade_type: upgrade.protocol.clone(),
        enabled: upgrades::encode_enabled(upgrade.enabled),
        connect_config: None,
    }
}

fn decode_upgrade(config: UpgradeConfig) -> Decoded<Upgrade> {
    refuse!(config; connect_config)?;
    upgrades::decode_one(config.upgrade_type, config.enabled)
}

/// One backend that takes all and changes nothing is written plainly.
fn encode_backends(forward: &Forward) -> ClusterSpecifier {
    let Forward { backends, split, .. } = forward;
    if let [backend] = &backends[..]
        && *split == Split::Random
        && backend.weight == 1
        && backend.request_headers.is_empty()
        && backend.response_headers.is_empty()
        && backend.host_rewrite.is_none()
        && backend.filters.is_empty()
    {
        return ClusterSpecifier::Cluster(backend.cluster.clone());
    }
    let clusters = backends.iter().map(|backend| ClusterWeight {
        name: backend.cluster.clone(),
        weight: proto::u32_value(backend.weight),
        request_headers_to_add: headers::add(&backend.request_headers),
        request_headers_to_remove: headers::remove(&backend.request_headers),
        response_headers_to_add: headers::add(&backend.response_headers),
        response_headers_to_remove: headers::remove(&backend.response_headers),
        host_rewrite_specifier: backend.host_rewrite.clone().map(BackendHost::HostRewriteLiteral),
        typed_per_filter_config: filters::encode_overrides(&backend.filters),
        ..Default::default()
    });
    ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
        clusters: clusters.collect(),
        random_value_specifier: match split {
            Split::Random => None,
            Split::Header(name) => Some(RandomValueSpecifier::HeaderName(name.as_str().into())),
            Split::Hash => proto::bool_value(true).map(RandomValueSpecifier::UseHashPolicy),
        },
        ..Default::default()
    })
}

#[expect(deprecated, reason = "other control planes may still send old fields")]
fn refuse_rest(action: &pb::RouteAction) -> Decoded<()> {
    refuse!(action;
        cors, hedge_policy, internal_redirect_action, internal_redirect_policy, priority)
}

fn decode_backends(specifier: ClusterSpecifier) -> Decoded<(Vec<Backend>, Split)> {
    match specifier {
        ClusterSpecifier::Cluster(cluster) => {
            Ok((vec![Backend::new(non_empty(cluster, "cluster")?, 1)], Split::Random))
        }
        ClusterSpecifier::WeightedClusters(weighted) => decode_weighted(weighted).at("weighted_clusters"),
        ClusterSpecifier::ClusterHeader(_) => {
            Err(FieldError::new("is not supported: use cluster or weighted_clusters")).at("cluster_header")
        }
        ClusterSpecifier::ClusterSpecifierPlugin(_) | ClusterSpecifier::InlineClusterSpecifierPlugin(_) => {
            Err(FieldError::new("is not supported: use cluster or weighted_clusters"))
                .at("cluster_specifier_plugin")
        }
    }
}

fn decode_weighted(weighted: pb::WeightedCluster) -> Decoded<(Vec<Backend>, Split)> {
    let split = match weighted.random_value_specifier {
        Some(RandomValueSpecifier::HeaderName(name)) if !name.is_empty() => {
            Split::Header(matching::header_name(&name).at("header_name")?)
        }
        Some(RandomValueSpecifier::UseHashPolicy(by_hash)) if by_hash.value => Split::Hash,
        _ => Split::Random,
    };
    let backends = each("clusters", weighted.clusters, decode_backend)?;
    match backends.iter().map(|backend| u64::from(backend.weight)).sum::<u64>() {
        0 => Err(FieldError::new("the sum of all weights is 0: give one a weight")).at("clusters"),
        sum if sum > u32::MAX.into() => {
            Err(FieldError::new(format!("the sum of all weights is {sum}: use at most 4294967295")))
                .at("clusters")
        }
        _ => Ok((backends, split)),
    }
}

fn decode_backend(cluster: ClusterWeight) -> Decoded<Backend> {
    unsupported(!cluster.cluster_header.is_empty(), "cluster_header", "use name")?;
    unsupported(
        cluster.metadata_match.is_some(),
        "metadata_match",
        "make a cluster of its own for the subset",
    )?;
    let filters = filters::decode_backend(&cluster.typed_per_filter_config)?;
    let (name, weight) = (non_empty(cluster.name, "name")?, required(cluster.weight, "weight")?.value);
    let changes = headers::decode_both(
        (cluster.request_headers_to_add, cluster.request_headers_to_remove),
        (cluster.response_headers_to_add, cluster.response_headers_to_remove),
    )?;
    Ok(Backend {
        cluster: name,
        weight,
        request_headers: changes.request,
        response_headers: changes.response,
        host_rewrite: cluster
            .host_rewrite_specifier
            .map(|BackendHost::HostRewriteLiteral(host)| host)
            .filter(|host| !host.is_empty()),
        filters,
    })
}

fn encode_redirect(redirect: &Redirect, below: bool) -> pb::RedirectAction {
    let code = match redirect.status {
        StatusCode::FOUND => RedirectResponseCode::Found,
        StatusCode::SEE_OTHER => RedirectResponseCode::SeeOther,
        StatusCode::TEMPORARY_REDIRECT => RedirectResponseCode::TemporaryRedirect,
        StatusCode::PERMANENT_REDIRECT => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    pb::RedirectAction {
        host_redirect: redirect.host.clone().unwrap_or_default(),
        port_redirect: redirect.port.unwrap_or_default().into(),
        response_code: code as i32,
        strip_query: redirect.strip_query,
        scheme_rewrite_specifier: redirect.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: rewrite::encode_redirect(redirect.path.as_ref(), below),
    }
}

fn decode_redirect(redirect: pb::RedirectAction) -> Decoded<Redirect> {
    let status = match RedirectResponseCode::try_from(redirect.response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => StatusCode::MOVED_PERMANENTLY,
        Ok(RedirectResponseCode::Found) => StatusCode::FOUND,
        Ok(RedirectResponseCode::SeeOther) => StatusCode::SEE_OTHER,
        Ok(RedirectResponseCode::TemporaryRedirect) => StatusCode::TEMPORARY_REDIRECT,
        Ok(RedirectResponseCode::PermanentRedirect) => StatusCode::PERMANENT_REDIRECT,
        Err(_) => {
            return Err(FieldError::new(format!("{} is not a redirect", redirect.response_code)))
                .at("response_code");
        }
    };
    let scheme = match redirect.scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => None,
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some("https".into()),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => (!scheme.is_empty()).then_some(scheme),
    };
    let port = match redirect.port_redirect {
        0 => None,
        port => Some(proto::decode_port(port, "port_redirect")?),
    };
    let path = match redirect.path_rewrite_specifier {
        None => None,
        Some(PathRewriteSpecifier::PathRewrite(_)) => {
            return Err(FieldError::new("is not supported: use path_redirect")).at("path_rewrite");
        }
        Some(specifier) => rewrite::decode_redirect(specifier)?,
    };
    let host = (!redirect.host_redirect.is_empty()).then_some(redirect.host_redirect);
    Ok(Redirect { scheme, host, port, path, status, strip_query: redirect.strip_query })
}

fn decode_response(response: pb::DirectResponseAction) -> Decoded<DirectResponse> {
    unsupported(response.body_format.is_some(), "body_format", "use body")?;
    let body = match response.body.and_then(|body| body.specifier) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text,
        Some(Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes).map_err(|_| FieldError::new("is not UTF-8")).at("body.inline_bytes")?
        }
        Some(_) => {
            return Err(FieldError::new("files and variables are not read: use inline_string")).at("body");
        }
    };
    Ok(DirectResponse { status: decode_status(response.status).at("status")?, body })
}
