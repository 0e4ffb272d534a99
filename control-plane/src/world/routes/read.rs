//! Routes of all kinds as one type, in the model's terms.
//!
//! In: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute objects. Out: [`MeshRoute`]s: where they want to be attached, and rules
//! with matches that the model can run. What can't be is reported, and its rule answers with 500 instead of doing half of
//! what its author meant.

use tulle_mesh::model::{
    HeaderMatch, HeaderTest, PathMatch, QueryMatch, Regex, RouteMatch, Session, StringMatch,
};
use tulle_mesh::route::precedence::ANY_SEGMENT;

use super::filters::{Applied, Reader};
use crate::kinds::{RetrySettings, TimeoutSettings};
use crate::source::route::{self as raw, Match, Method, ParentRef, Spec, Typed};
use crate::source::{FieldFault, Key, Kind, Objects};
use crate::world::policies::{by_age, created};
use crate::world::report::{Condition, Report, Subject};
use crate::world::services::Services;
use crate::world::traffic;

/// A kind of routes, in the order of precedence when several kinds are attached to one port (GEP-1294).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::world) enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

/// A route.
pub(in crate::world) struct MeshRoute {
    pub(in crate::world) kind: RouteKind,
    pub(in crate::world) key: Key,
    pub(in crate::world) subject: Subject,
    pub(super) created: Option<i64>,
    pub(super) parents: Vec<ParentRef>,
    pub(super) hostnames: Vec<String>,
    pub(super) rules: Vec<Rule>,
    /// The first thing in the route that can't be done as written.
    pub(super) accepted: Condition,
    /// The first reference of the route that leads nowhere.
    pub(super) resolved: Condition,
}

impl MeshRoute {
    /// The Services that it leads to, and their ports' names.
    pub(in crate::world) fn backends(&self) -> impl Iterator<Item = (&Key, Option<&str>)> {
        let backends = self.rules.iter().flat_map(|rule| &rule.backends);
        backends
            .filter_map(|backend| backend.service.as_ref())
            .map(|(service, port)| (service, port.as_deref()))
    }
}

/// A rule of a route.
pub(super) struct Rule {
    pub(super) name: Option<String>,
    /// Empty for TLS and TCP.
    pub(super) matches: Vec<RouteMatch>,
    pub(super) filters: Applied,
    pub(super) backends: Vec<Backend>,
    pub(super) timeouts: Option<TimeoutSettings>,
    pub(super) retry: Option<RetrySettings>,
    pub(super) session: Option<Session>,
}

/// A backend of a rule.
pub(super) struct Backend {
    /// Its cluster, whether or not that exists.
    pub(super) cluster: String,
    /// The Service and its port's name, where they exist.
    pub(super) service: Option<(Key, Option<String>)>,
    pub(super) weight: u32,
    pub(super) filters: Applied,
}

/// Reads all routes, each kind from the oldest object.
pub(in crate::world) fn read_all(
    objects: &Objects,
    services: &Services,
    report: &mut Report,
) -> Vec<MeshRoute> {
    let mut routes = Vec::new();
    let mut add =
        |kind, key: &Key, subject: Subject, created, spec: Result<Spec, FieldFault>, report: &mut Report| {
            match spec {
                Ok(spec) => routes.push(read(kind, key, subject, created, spec, objects, services, report)),
                Err((path, reason)) => {
                    report.error(&subject, format!("spec.{path}"), reason, "correct the value")
                }
            }
        };
    for (key, object) in by_age(&objects.grpc_routes) {
        let spec = Spec::of(&object.spec);
        add(RouteKind::Grpc, key, Subject::of(key, object), created(&*object.value), spec, report);
    }
    for (key, object) in by_age(&objects.http_routes) {
        let spec = Spec::of(&object.spec);
        add(RouteKind::Http, key, Subject::of(key, object), created(&*object.value), spec, report);
    }
    for (key, object) in by_age(&objects.tls_routes) {
        let spec = Spec::of(&object.spec);
        add(RouteKind::Tls, key, Subject::of(key, object), created(&*object.value), spec, report);
    }
    for (key, object) in by_age(&objects.tcp_routes) {
        let spec = Spec::of(&object.spec);
        add(RouteKind::Tcp, key, Subject::of(key, object), created(&*object.value), spec, report);
    }
    routes
}

#[expect(clippy::too_many_arguments, reason = "all that a route is made of, once")]
fn read(
    kind: RouteKind,
    key: &Key,
    subject: Subject,
    created: Option<i64>,
    spec: Spec,
    objects: &Objects,
    services: &Services,
    report: &mut Report,
) -> MeshRoute {
    let mut reader = Reader {
        key,
        subject: &subject,
        objects,
        services,
        report,
        accepted: Condition::accepted(),
        resolved: Condition::resolved(),
    };
    let rules = spec
        .rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| read_rule(kind, rule, &format!("spec.rules[{index}]"), &mut reader))
        .collect();
    let (accepted, resolved) = (reader.accepted, reader.resolved);
    MeshRoute {
        kind,
        key: key.clone(),
        created,
        parents: spec.parent_refs,
        hostnames: spec.hostnames,
        rules,
        accepted,
        resolved,
        subject,
    }
}

fn read_rule(kind: RouteKind, rule: raw::Rule, field: &str, reader: &mut Reader<'_>) -> Rule {
    let mut matches = Vec::new();
    if matches!(kind, RouteKind::Http | RouteKind::Grpc) {
        let all = if rule.matches.is_empty() { vec![Match::default()] } else { rule.matches };
        for (index, condition) in all.iter().enumerate() {
            let at = format!("{field}.matches[{index}]");
            match read_match(kind, condition) {
                Ok(condition) => matches.push(condition),
                Err((part, reason)) => {
                    reader.unsupported(format!("{at}.{part}"), reason, "correct the condition")
                }
            }
        }
    }
    let on_prefix = matches
        .iter()
        .all(|condition| matches!(condition.path, PathMatch::Segments(_) | PathMatch::Prefix(_)));
    let filters = reader.filters(&rule.filters, &format!("{field}.filters"), on_prefix, false);
    let backends = rule
        .backend_refs
        .iter()
        .enumerate()
        .map(|(index, backend)| {
            let at = format!("{field}.backendRefs[{index}]");
            let (cluster, service) = reader.backend(backend, &at);
            Backend {
                cluster,
                service,
                weight: u32::try_from(backend.weight.unwrap_or(1)).unwrap_or_default(),
                filters: reader.filters(&backend.filters, &format!("{at}.filters"), false, true),
            }
        })
        .collect();
    let retry = match rule.retry.as_ref().map(raw::RawRetry::settings) {
        Some(Err(reason)) => {
            reader.unsupported(format!("{field}.retry"), reason, "correct the value");
            None
        }
        Some(Ok(retry)) => Some(retry),
        None => None,
    };
    if let Some(timeouts) = &rule.timeouts
        && let (Some(whole), Some(each)) = (timeouts.request, timeouts.backend_request)
        && !whole.get().is_zero()
        && each > whole
    {
        let reason = format!("backendRequest ({each}) is longer than request ({whole})");
        reader.unsupported(format!("{field}.timeouts"), reason, "make it the shorter one");
    }
    let session = rule.session_persistence.and_then(|session: raw::RawSession| {
        let field = format!("{field}.sessionPersistence");
        if session.idle_timeout.is_some() {
            let reason = "an idle timeout of sessions is not supported";
            reader.unsupported(format!("{field}.idleTimeout"), reason, "remove it");
        }
        match traffic::session(&session.settings()) {
            Ok(session) => Some(session),
            Err((part, reason, fix)) => {
                reader.unsupported(format!("{field}{part}"), reason, fix);
                None
            }
        }
    });
    Rule { name: rule.name, matches, filters, backends, timeouts: rule.timeouts, retry, session }
}

/// A field of a match, and what is wrong with it.
type MatchFault = (String, String);

fn read_match(kind: RouteKind, condition: &Match) -> Result<RouteMatch, MatchFault> {
    let mut headers = Vec::new();
    for (index, header) in condition.headers.iter().enumerate() {
        let name = header.name.to_ascii_lowercase();
        // Of two conditions on one header only the first counts (Gateway API).
        if headers.iter().any(|known: &HeaderMatch| known.name == name) {
            continue;
        }
        let test = HeaderTest::Value(read_value(header, &format!("headers[{index}]"))?);
        headers.push(HeaderMatch::new(name, test));
    }
    let mut query: Vec<QueryMatch> = Vec::new();
    for (index, parameter) in condition.query_params.iter().enumerate() {
        if query.iter().any(|known| known.name == parameter.name) {
            continue;
        }
        let value = read_value(parameter, &format!("queryParams[{index}]"))?;
        query.push(QueryMatch { name: parameter.name.clone(), value: Some(value) });
    }
    let path = match (kind, &condition.method) {
        (RouteKind::Grpc, Some(Method::Grpc { kind, service, method })) => {
            let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
            grpc_path(kind.as_deref(), filled(service), filled(method))
                .map_err(|reason| ("method".into(), reason))?
        }
        (RouteKind::Grpc, _) => PathMatch::Prefix("/".into()),
        (_, method) => {
            if let Some(Method::Http(method)) = method {
                let test = HeaderTest::Value(StringMatch::exact(method));
                headers.push(HeaderMatch::new(":method", test));
            }
            http_path(condition.path.as_ref()).map_err(|reason| ("path.value".into(), reason))?
        }
    };
    Ok(RouteMatch {
        path,
        case_sensitive: true,
        headers,
        query,
        grpc: kind == RouteKind::Grpc,
        fraction: None,
    })
}

fn read_value(typed: &Typed, field: &str) -> Result<StringMatch, MatchFault> {
    let value = typed.value.clone().unwrap_or_default();
    match typed.kind.as_deref() {
        Some("RegularExpression") => match Regex::new(value) {
            Ok(regex) => Ok(StringMatch::Regex(regex)),
            Err(reason) => Err((format!("{field}.value"), reason)),
        },
        _ => Ok(StringMatch::exact(value)),
    }
}

fn http_path(path: Option<&Typed>) -> Result<PathMatch, String> {
    let Some(path) = path else { return Ok(PathMatch::Prefix("/".into())) };
    let value = path.value.clone().unwrap_or_else(|| "/".into());
    if path.kind.as_deref() == Some("RegularExpression") {
        return Regex::new(value).map(PathMatch::Regex);
    }
    if !value.starts_with('/') {
        return Err(format!("the path {value:?} does not start with \"/\""));
    }
    if path.kind.as_deref() == Some("Exact") {
        return Ok(PathMatch::Exact(value));
    }
    Ok(segments(&value))
}

/// `PathPrefix`: whole segments, without regard to a trailing slash.
pub(in crate::world) fn segments(value: &str) -> PathMatch {
    match value.trim_end_matches('/') {
        "" => PathMatch::Prefix("/".into()),
        path => PathMatch::Segments(path.into()),
    }
}

fn grpc_path(
    kind: Option<&str>,
    service: Option<String>,
    method: Option<String>,
) -> Result<PathMatch, String> {
    if kind == Some("RegularExpression") && (service.is_some() || method.is_some()) {
        let part = |part: Option<String>| part.unwrap_or_else(|| ANY_SEGMENT.into());
        return Regex::new(format!("/{}/{}", part(service), part(method))).map(PathMatch::Regex);
    }
    Ok(match (service, method) {
        (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
        (Some(service), None) => PathMatch::Segments(format!("/{service}")),
        (None, Some(method)) => PathMatch::Regex(Regex::new(format!("/{ANY_SEGMENT}/{}", escape(&method)))?),
        (None, None) => PathMatch::Prefix("/".into()),
    })
}

/// A literal as a regular expression: all but letters, digits and underscores is escaped.
pub(super) fn escape(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let special = !character.is_ascii_alphanumeric() && character != '_';
            special.then_some('\\').into_iter().chain([character])
        })
        .collect()
}

/// Names a kind for messages, and for the model's origins.
impl RouteKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Grpc => gateway_api::experimental::grpcroutes::GrpcRoute::KIND,
            Self::Http => gateway_api::experimental::httproutes::HttpRoute::KIND,
            Self::Tls => gateway_api::experimental::tlsroutes::TlsRoute::KIND,
            Self::Tcp => gateway_api::experimental::tcproutes::TcpRoute::KIND,
        }
    }
}
