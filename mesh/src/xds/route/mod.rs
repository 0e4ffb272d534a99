//! Route configurations.
//!
//! A route on whole segments of the path (`/v2`) is written as two routes of one name, `{path: /v2}` and
//! `{prefix: /v2/}`, each marked as a half in Tulle's metadata; reading joins two such halves again, while two routes of
//! another control plane stay two. Where a route comes from ([`Origin`]) is metadata as well.
//!
//! What Envoy lets stand on a virtual host or on the whole configuration (retries, mirrors, faults) is
//! handed down to the routes when it is read, by Envoy's order of precedence.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::virtual_host::TlsRequirementType;
use http::StatusCode;
use prost::Message;

use self::inherit::Inherited;
use super::error::{At, Decoded, FieldError, each, non_empty, refuse, required, unsupported};
use super::proto::{self, Fields, Read};
use super::{Kind, XdsError, matching};
use crate::model::{
    Domain, Origin, PathMatch, Route, RouteAction, RouteConfiguration, TellAttempts, VirtualHost,
};

mod action;
pub(super) mod cors;
pub(super) mod filters;
pub(super) mod headers;
mod inherit;
mod matches;
mod mirror;
mod policy;
pub(super) mod rate_limits;
mod rewrite;
mod session;

/// Writes a route configuration as bytes: the same model always gives the same. A route's settings of filters are a map,
/// whose entries `prost` writes in no fixed order; so they are written one by one, and each is a message that its
/// reader merges with the rest of the route. A backend's are written so as well.
pub fn encode_bytes(routes: &RouteConfiguration) -> Vec<u8> {
    let mut configuration = encode(routes);
    let virtual_hosts = std::mem::take(&mut configuration.virtual_hosts).into_iter().map(|mut host| {
        let routes = std::mem::take(&mut host.routes).into_iter().map(route_bytes).collect();
        let mut bytes = host.encode_to_vec();
        bytes.extend(Routes { routes }.encode_to_vec());
        bytes
    });
    let mut bytes = Configuration { virtual_hosts: virtual_hosts.collect() }.encode_to_vec();
    bytes.extend(configuration.encode_to_vec());
    bytes
}

fn route_bytes(mut route: pb::Route) -> Vec<u8> {
    let settings: BTreeMap<_, _> = std::mem::take(&mut route.typed_per_filter_config).into_iter().collect();
    let settings = settings
        .into_iter()
        .map(|entry| pb::Route { typed_per_filter_config: [entry].into(), ..Default::default() });
    let clusters = take_backends(&mut route).into_iter().map(backend_bytes).collect::<Vec<_>>();
    let mut bytes = proto::merged(std::iter::once(route).chain(settings));
    if !clusters.is_empty() {
        let weighted_clusters = Some(Weighted { clusters });
        bytes.extend(Backends { route: Some(Forwarded { weighted_clusters }) }.encode_to_vec());
    }
    bytes
}

/// The weighted clusters of a route, out of it.
fn take_backends(route: &mut pb::Route) -> Vec<pb::weighted_cluster::ClusterWeight> {
    use pb::{route::Action, route_action::ClusterSpecifier};
    match &mut route.action {
        Some(Action::Route(forward)) => match &mut forward.cluster_specifier {
            Some(ClusterSpecifier::WeightedClusters(weighted)) => std::mem::take(&mut weighted.clusters),
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn backend_bytes(mut backend: pb::weighted_cluster::ClusterWeight) -> Vec<u8> {
    let settings: BTreeMap<_, _> = std::mem::take(&mut backend.typed_per_filter_config).into_iter().collect();
    let settings = settings.into_iter().map(|entry| pb::weighted_cluster::ClusterWeight {
        typed_per_filter_config: [entry].into(),
        ..Default::default()
    });
    proto::merged(std::iter::once(backend).chain(settings))
}

/// `Route` with nothing but its weighted clusters, as bytes.
#[derive(Clone, PartialEq, Message)]
struct Backends {
    #[prost(message, optional, tag = "2")]
    route: Option<Forwarded>,
}

/// `RouteAction` with nothing but the same.
#[derive(Clone, PartialEq, Message)]
struct Forwarded {
    #[prost(message, optional, tag = "3")]
    weighted_clusters: Option<Weighted>,
}

/// `WeightedCluster` with nothing but the same.
#[derive(Clone, PartialEq, Message)]
struct Weighted {
    #[prost(bytes = "vec", repeated, tag = "1")]
    clusters: Vec<Vec<u8>>,
}

/// `RouteConfiguration` with nothing but its virtual hosts, as bytes.
#[derive(Clone, PartialEq, Message)]
struct Configuration {
    #[prost(bytes = "vec", repeated, tag = "2")]
    virtual_hosts: Vec<Vec<u8>>,
}

/// `VirtualHost` with nothing but its routes, as bytes.
#[derive(Clone, PartialEq, Message)]
struct Routes {
    #[prost(bytes = "vec", repeated, tag = "3")]
    routes: Vec<Vec<u8>>,
}

/// Writes a route configuration.
pub fn encode(routes: &RouteConfiguration) -> pb::RouteConfiguration {
    pb::RouteConfiguration {
        name: routes.name.clone(),
        virtual_hosts: routes.virtual_hosts.iter().map(encode_host).collect(),
        request_headers_to_add: headers::add(&routes.headers.request),
        request_headers_to_remove: headers::remove(&routes.headers.request),
        response_headers_to_add: headers::add(&routes.headers.response),
        response_headers_to_remove: headers::remove(&routes.headers.response),
        most_specific_header_mutations_wins: routes.specific_headers_last,
        ..Default::default()
    }
}

/// Reads a route configuration.
///
/// # Errors
/// When a field is not valid, a domain stands in two virtual hosts, or something that Tulle does not do would change
/// where a request goes.
pub fn decode(message: pb::RouteConfiguration) -> Result<RouteConfiguration, XdsError> {
    let name = message.name.clone();
    decode_configuration(message).map_err(|error| error.of(Kind::Route, &name))
}

/// Reads a route configuration within a listener, where it may lack a name.
pub(super) fn decode_configuration(message: pb::RouteConfiguration) -> Decoded<RouteConfiguration> {
    unsupported(message.vhds.is_some(), "vhds", "list all virtual_hosts")?;
    refuse!(message; internal_only_headers)?;
    unsupported(
        message.ignore_port_in_host_matching,
        "ignore_port_in_host_matching",
        "list domains with ports",
    )?;
    unsupported(!message.vhost_header.is_empty(), "vhost_header", "match the host")?;
    unsupported(
        message.ignore_path_parameters_in_path_matching,
        "ignore_path_parameters_in_path_matching",
        "match the whole path",
    )?;
    unsupported(!message.route_specifiers.is_empty(), "route_specifiers", "use routes")?;
    let inherited = Inherited::from_configuration(&message)?;
    let name = non_empty(message.name, "name")?;
    let virtual_hosts =
        each("virtual_hosts", message.virtual_hosts, |host| decode_host(host, inherited.clone()))?;
    let mut seen = HashSet::new();
    for (index, host) in virtual_hosts.iter().enumerate() {
        if let Some(twice) = host.domains.iter().find(|domain| !seen.insert(*domain)) {
            let problem = format!("{:?} stands in another place already: name each once", twice.to_string());
            return Err(FieldError::new(problem)).at("domains").at_item("virtual_hosts", index);
        }
    }
    let headers = headers::decode_both(
        (message.request_headers_to_add, message.request_headers_to_remove),
        (message.response_headers_to_add, message.response_headers_to_remove),
    )?;
    let specific_headers_last = message.most_specific_header_mutations_wins;
    Ok(RouteConfiguration { name, virtual_hosts, headers, specific_headers_last })
}

/// A status of HTTP that a final response may have.
pub(super) fn decode_status(status: u32) -> Decoded<StatusCode> {
    u16::try_from(status)
        .ok()
        .filter(|status| (200..600).contains(status))
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| FieldError::new(format!("{status} is not the status of a response: use 200 to 599")))
}

fn encode_host(host: &VirtualHost) -> pb::VirtualHost {
    pb::VirtualHost {
        name: host.name.clone(),
        domains: host.domains.iter().map(Domain::to_string).collect(),
        routes: host.routes.iter().flat_map(encode_route).collect(),
        include_request_attempt_count: host.tell_attempts.endpoint,
        include_attempt_count_in_response: host.tell_attempts.client,
        rate_limits: host.rate_limits.iter().map(rate_limits::encode).collect(),
        request_headers_to_add: headers::add(&host.headers.request),
        request_headers_to_remove: headers::remove(&host.headers.request),
        response_headers_to_add: headers::add(&host.headers.response),
        response_headers_to_remove: headers::remove(&host.headers.response),
        ..Default::default()
    }
}

fn decode_host(host: pb::VirtualHost, inherited: Inherited) -> Decoded<VirtualHost> {
    unsupported(host.matcher.is_some(), "matcher", "use routes")?;
    refuse_rest(&host)?;
    unsupported(!host.route_specifiers.is_empty(), "route_specifiers", "use routes")?;
    unsupported(
        host.require_tls != TlsRequirementType::None as i32,
        "require_tls",
        "use a redirect, or an authorization filter",
    )?;
    let inherited = inherited.with_host(&host)?;
    if host.domains.is_empty() {
        return Err(FieldError::new("is empty: name at least one host, or \"*\"")).at("domains");
    }
    let halves = host.routes.into_iter().enumerate().map(|(index, route)| {
        let said = inherited.overrides_beside(&route);
        let decoded = decode_route(inherited.apply(route), index).map(|(mut route, half)| {
            route.filters.extend(said);
            (route, half)
        });
        decoded.at_item("routes", index)
    });
    let routes = join_halves(halves.collect::<Decoded<_>>()?);
    let tell_attempts = TellAttempts {
        endpoint: host.include_request_attempt_count,
        client: host.include_attempt_count_in_response,
    };
    Ok(VirtualHost {
        tell_attempts,
        rate_limits: rate_limits::decode(host.rate_limits)?,
        name: host.name,
        domains: each("domains", host.domains, decode_domain)?,
        routes,
        headers: headers::decode_both(
            (host.request_headers_to_add, host.request_headers_to_remove),
            (host.response_headers_to_add, host.response_headers_to_remove),
        )?,
    })
}

#[expect(deprecated, reason = "other control planes may still send `cors`")]
fn refuse_rest(host: &pb::VirtualHost) -> Decoded<()> {
    refuse!(host;
        cors, hedge_policy, include_is_timeout_retry_header)
}

fn decode_domain(domain: String) -> Decoded<Domain> {
    let inner = match domain.as_str() {
        "" => return Err(FieldError::new("is empty: name a host, or \"*\"")),
        "*" => "",
        text => text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text),
    };
    if inner.contains('*') {
        let problem =
            format!("{domain:?} has a * in the middle: it may only be the first or the last character");
        return Err(FieldError::new(problem));
    }
    Ok(Domain::parse(&domain))
}

/// Which half of a route on whole segments this is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    /// For the very path.
    Path,
    /// For what is below it.
    Below,
}

const HALF: &str = "half";

impl Half {
    fn name(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Below => "below",
        }
    }
}

fn encode_route(route: &Route) -> Vec<pb::Route> {
    match &route.matches.path {
        PathMatch::Segments(path) => vec![
            encode_half(route, PathSpecifier::Path(path.clone()), Some(Half::Path)),
            encode_half(route, PathSpecifier::Prefix(format!("{path}/")), Some(Half::Below)),
        ],
        PathMatch::Exact(path) => vec![encode_half(route, PathSpecifier::Path(path.clone()), None)],
        PathMatch::Prefix(prefix) => vec![encode_half(route, PathSpecifier::Prefix(prefix.clone()), None)],
        PathMatch::Regex(regex) => {
            vec![encode_half(route, PathSpecifier::SafeRegex(matching::regex(regex)), None)]
        }
    }
}

fn encode_half(route: &Route, path: PathSpecifier, half: Option<Half>) -> pb::Route {
    pb::Route {
        name: route.name.clone(),
        r#match: Some(matches::encode(&route.matches, path)),
        metadata: encode_metadata(route, half),
        typed_per_filter_config: filters::encode(route),
        request_headers_to_add: headers::add(&route.request_headers),
        request_headers_to_remove: headers::remove(&route.request_headers),
        response_headers_to_add: headers::add(&route.response_headers),
        response_headers_to_remove: headers::remove(&route.response_headers),
        action: Some(action::encode(&route.action, half == Some(Half::Below))),
        ..Default::default()
    }
}

fn decode_route(route: pb::Route, index: usize) -> Decoded<(Route, Option<Half>)> {
    unsupported(!route.route_specifiers.is_empty(), "route_specifiers", "use match and action")?;
    refuse!(route; tracing)?;
    let Own { origin, half, session_lifetime } = decode_metadata(route.metadata.as_ref())?;
    let settings = filters::decode(&route.typed_per_filter_config, session_lifetime)?;
    let matches = matches::decode(required(route.r#match, "match")?).at("match")?;
    let action = action::decode(required(route.action, "action")?)?;
    let changes = headers::decode_both(
        (route.request_headers_to_add, route.request_headers_to_remove),
        (route.response_headers_to_add, route.response_headers_to_remove),
    )?;
    let mut decoded = Route {
        name: if route.name.is_empty() { format!("#{index}") } else { route.name },
        origin,
        matches,
        action,
        request_headers: changes.request,
        response_headers: changes.response,
        filters: settings.overrides,
    };
    if let RouteAction::Forward(forward) = &mut decoded.action {
        forward.session = settings.session;
    }
    Ok((decoded, half))
}

/// Joins the halves that [`encode_route`] makes. A marked half without its other is a route of its own.
fn join_halves(routes: Vec<(Route, Option<Half>)>) -> Vec<Route> {
    let mut joined: Vec<(Route, Option<Half>)> = Vec::with_capacity(routes.len());
    for (route, half) in routes {
        if half == Some(Half::Below)
            && let Some((before, Some(Half::Path))) = joined.last_mut()
            && let (PathMatch::Exact(path), PathMatch::Prefix(below)) =
                (&before.matches.path, &route.matches.path)
            && before.name == route.name
            && below.strip_suffix('/') == Some(path)
        {
            before.matches.path = PathMatch::Segments(path.clone());
        } else {
            joined.push((route, half));
        }
    }
    joined.into_iter().map(|(route, _)| route).collect()
}

/// In seconds.
const SESSION_LIFETIME: &str = "sessionLifetime";

fn encode_metadata(route: &Route, half: Option<Half>) -> Option<Metadata> {
    let mut fields = Fields::new();
    if let Some(lifetime) = filters::session_of(route).and_then(session::watched_lifetime) {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        fields.insert(SESSION_LIFETIME.into(), proto::number(seconds));
    }
    if let Some(origin) = &route.origin {
        fields.insert("kind".into(), proto::text(&origin.kind));
        fields.insert("namespace".into(), proto::text(&origin.namespace));
        fields.insert("name".into(), proto::text(&origin.name));
        fields.insert("rule".into(), proto::number(origin.rule));
        fields.insert("match".into(), proto::number(origin.matched));
    }
    if let Some(half) = half {
        fields.insert(HALF.into(), proto::text(half.name()));
    }
    proto::metadata(fields)
}

/// Tulle's own data of a route.
struct Own {
    origin: Option<Origin>,
    half: Option<Half>,
    session_lifetime: Option<Duration>,
}

fn decode_metadata(metadata: Option<&Metadata>) -> Decoded<Own> {
    let fields = proto::decode_metadata(metadata)?;
    let half = fields.text(HALF).at("metadata")?;
    let half = [Half::Path, Half::Below].into_iter().find(|known| known.name() == half);
    let read = || -> Decoded<Origin> {
        Ok(Origin {
            kind: fields.text("kind")?,
            namespace: fields.text("namespace")?,
            name: fields.text("name")?,
            rule: fields.number("rule")?.unwrap_or_default(),
            matched: fields.number("match")?.unwrap_or_default(),
        })
    };
    let origin = fields.contains_key("kind").then(read).transpose().at("metadata")?;
    let lifetime = fields.number(SESSION_LIFETIME).at("metadata")?.filter(|seconds| *seconds > 0);
    let session_lifetime = lifetime.map(|seconds| Duration::from_secs(seconds.into()));
    Ok(Own { origin, half, session_lifetime })
}
