//! Routes: from Gateway API objects to the model.
//!
//! In: route objects ([`read`]), attached to Services' ports ([`attach`]). Out: route configurations for HTTP and weighted
//! clusters for TCP. A port without routes leads to its Service; with routes, what none of them matches is answered
//! with 404.

mod attach;
mod filters;
mod read;

use std::time::Duration;

use http::StatusCode;
use tulle_mesh::model::{
    DirectResponse, Domain, Forward, HashPolicy, Origin, PathMatch, Route, RouteAction, RouteConfiguration,
    RouteMatch, Session, Timeouts, VirtualHost,
};
use tulle_mesh::route::precedence;

pub(super) use attach::{Attachments, Group};
pub(super) use filters::per_million;
pub(super) use read::{MeshRoute, RouteKind, read_all, segments};

use super::policies::Attached;
use super::report::{Report, Subject};
use super::services::{Port, Service};
use super::traffic;
use crate::kinds::{BackendTrafficPolicy, BackendTrafficPolicySpec};
use read::{Backend, Rule};

/// Builds what routes make of ports.
pub(super) struct Builder<'a> {
    pub(super) routes: &'a [MeshRoute],
    pub(super) policies: &'a Attached<'a, BackendTrafficPolicy>,
    pub(super) report: &'a mut Report,
}

impl<'a> Builder<'a> {
    /// The route configuration `name` of a port, for the requests that `group` is for; without a group everything goes
    /// to the Service.
    pub(super) fn http(
        &mut self,
        name: String,
        service: &Service,
        port: &Port,
        group: Option<&Group>,
    ) -> RouteConfiguration {
        let routes = match group {
            None => vec![self.default_route(service, port)],
            Some(group) => self.group(service, port, group),
        };
        // Which Service is meant is known from the listener; the Host is the application's own business.
        let host = VirtualHost::new(port.service.to_string(), vec![Domain::Any], routes);
        RouteConfiguration::new(name, vec![host])
    }

    /// The clusters of a TCPRoute or of one rule of a TLSRoute, with their weights.
    pub(super) fn tcp(&mut self, group: &Group) -> Vec<TcpRule> {
        let mut rules = Vec::new();
        for index in &group.members {
            let route = &self.routes[*index];
            for (at, rule) in route.rules.iter().enumerate() {
                if group.kind == RouteKind::Tcp && at > 0 {
                    let (field, fix) = (format!("spec.rules[{at}]"), "put all backends into the first rule");
                    self.report.warning(
                        &route.subject,
                        field,
                        "nothing can tell the rules apart; only the first holds",
                        fix,
                    );
                    break;
                }
                let mut backends: Vec<(String, u32)> = rule
                    .backends
                    .iter()
                    .filter(|backend| backend.weight > 0)
                    .map(|backend| (backend.cluster.clone(), backend.weight))
                    .collect();
                if backends.is_empty() {
                    backends.push((NOWHERE.into(), 1));
                }
                let server_names =
                    if group.kind == RouteKind::Tls { route.hostnames.clone() } else { Vec::new() };
                rules.push(TcpRule { name: rule_name(route, at, rule), server_names, backends });
            }
        }
        rules
    }

    fn default_route(&mut self, service: &Service, port: &Port) -> Route {
        let settings = self.settings(service, port);
        let policy = settings.as_ref().map(|(_, policy)| *policy);
        let mut forward = forward_to(port.cluster().to_string(), policy);
        if let Some((subject, policy)) = &settings {
            forward.hash = traffic::hash(policy, subject, self.report);
            forward.session = self.session_of(subject, policy);
        }
        Route {
            origin: Some(Origin {
                kind: "Service".into(),
                namespace: service.key.namespace.clone(),
                name: service.key.name.clone(),
                rule: 0,
                matched: 0,
            }),
            ..Route::new("default", anything(), RouteAction::Forward(forward))
        }
    }

    fn group(&mut self, service: &Service, port: &Port, group: &Group) -> Vec<Route> {
        let mut keyed = Vec::new();
        for index in &group.members {
            let route = &self.routes[*index];
            for (at, rule) in route.rules.iter().enumerate() {
                let action = self.action(service, port, route, rule);
                for (matched, condition) in rule.matches.iter().enumerate() {
                    let (at, matched) = (number(at), number(matched));
                    let key = precedence::Key::new(
                        condition,
                        route.created,
                        &route.key.namespace,
                        &route.key.name,
                        at,
                        matched,
                    );
                    let mut name = rule_name(route, at as usize, rule);
                    if rule.matches.len() > 1 {
                        name.push_str(&format!(".{matched}"));
                    }
                    let made = Route {
                        name,
                        origin: Some(Origin {
                            kind: route.kind.name().into(),
                            namespace: route.key.namespace.clone(),
                            name: route.key.name.clone(),
                            rule: at,
                            matched,
                        }),
                        matches: condition.clone(),
                        action: action.clone(),
                        request_headers: rule.filters.request_headers.clone(),
                        response_headers: rule.filters.response_headers.clone(),
                        filters: rule.filters.overrides(),
                    };
                    keyed.push((key, &route.subject, made));
                }
            }
        }
        keyed.sort_by(|(left, ..), (right, ..)| left.cmp(right));
        self.shadowed(&keyed);
        keyed.into_iter().map(|(_, _, route)| route).collect()
    }

    /// Reports rules that can never match, because an earlier one has the same conditions.
    fn shadowed(&mut self, keyed: &[(precedence::Key, &Subject, Route)]) {
        for (at, (_, subject, route)) in keyed.iter().enumerate() {
            let same = |(_, _, earlier): &&(_, _, Route)| earlier.matches == route.matches;
            let (Some((_, winner, earlier)), Some(origin)) = (keyed[..at].iter().find(same), &route.origin)
            else {
                continue;
            };
            let field = format!("spec.rules[{}].matches[{}]", origin.rule, origin.matched);
            let rule = earlier.origin.as_ref().map_or(0, |origin| origin.rule);
            self.report.warning(
                subject,
                field,
                format!(
                    "never matches: rule {rule} of {} has the same conditions and goes first",
                    winner.object
                ),
                "remove one of the two, or change its conditions",
            );
        }
    }

    fn action(&mut self, service: &Service, port: &Port, route: &MeshRoute, rule: &Rule) -> RouteAction {
        // A gRPC client is told UNAVAILABLE, which is what 503 means there (GRPCRoute, `backendRefs`).
        let nowhere = match route.kind {
            RouteKind::Grpc => StatusCode::SERVICE_UNAVAILABLE,
            RouteKind::Http | RouteKind::Tls | RouteKind::Tcp => StatusCode::INTERNAL_SERVER_ERROR,
        };
        if rule.filters.failed {
            return respond(nowhere);
        }
        if let Some(redirect) = &rule.filters.redirect {
            return RouteAction::Redirect(redirect.clone());
        }
        if rule.backends.iter().all(|backend| backend.weight == 0) {
            return respond(nowhere);
        }
        let session = self.session(rule);
        // One without a weight gets no new requests, but keeps its sessions (GEP-1619).
        let keeps = |backend: &&Backend| backend.weight > 0 || session.is_some() && backend.service.is_some();
        let backends: Vec<_> = rule.backends.iter().filter(keeps).collect();
        let settings = self.settings(service, port);
        let policy = settings.as_ref().map(|(_, policy)| *policy);
        let hash = self.hash(&backends);
        let given = rule.timeouts.as_ref();
        let inherited = policy.and_then(|policy| policy.timeouts.as_ref());
        let each = given
            .and_then(|timeouts| timeouts.backend_request)
            .or_else(|| inherited.and_then(|timeouts| timeouts.backend_request));
        let retry = rule.retry.as_ref().or_else(|| policy.and_then(|policy| policy.retry.as_ref()));
        RouteAction::Forward(Forward {
            unknown_cluster_status: nowhere,
            timeouts: traffic::timeouts(given, policy),
            retry: traffic::retry(retry, each.map(|each| each.get())),
            path_rewrite: rule.filters.path_rewrite.clone(),
            host_rewrite: rule.filters.host_rewrite.clone(),
            mirrors: rule.filters.mirrors.clone(),
            hash,
            session,
            ..Forward::new(backends.into_iter().map(backend).collect())
        })
    }

    /// What keeps the sessions of a rule: its own settings, else those of the first of its backends that has any.
    fn session(&mut self, rule: &Rule) -> Option<Session> {
        if rule.session.is_some() {
            return rule.session.clone();
        }
        let policies = self.policies;
        let mut named = rule.backends.iter().filter_map(|backend| backend.service.as_ref());
        named.find_map(|(service, port)| {
            let (subject, policy) = policies.of_port(service, port.as_deref())?;
            self.session_of(subject, &policy.spec)
        })
    }

    fn session_of(&mut self, subject: &Subject, policy: &BackendTrafficPolicySpec) -> Option<Session> {
        let settings = policy.session_persistence.as_ref()?;
        match traffic::session(settings) {
            Ok(session) => Some(session),
            Err((part, reason, fix)) => {
                self.report.error(subject, format!("spec.sessionPersistence{part}"), reason, fix);
                None
            }
        }
    }

    /// What requests of a rule are hashed by: as the first of its backends' policies wants that says anything of it.
    fn hash(&mut self, backends: &[&Backend]) -> Vec<HashPolicy> {
        for backend in backends {
            let Some((service, port)) = &backend.service else { continue };
            let policy = self.policies.of_port(service, port.as_deref());
            let hash = policy.map(|(subject, policy)| traffic::hash(&policy.spec, subject, self.report));
            if let Some(hash) = hash.filter(|hash| !hash.is_empty()) {
                return hash;
            }
        }
        Vec::new()
    }

    /// What belongs to requests in the policy of the Service that the client addressed.
    fn settings(&self, service: &Service, port: &Port) -> Option<(Subject, &'a BackendTrafficPolicySpec)> {
        let (subject, policy) = self.policies.of_port(&service.key, port.name.as_deref())?;
        Some((subject.clone(), &policy.spec))
    }
}

/// A rule of a TCPRoute or TLSRoute.
pub(super) struct TcpRule {
    pub(super) name: String,
    /// For these server names; empty for all connections.
    pub(super) server_names: Vec<String>,
    pub(super) backends: Vec<(String, u32)>,
}

/// A cluster that never exists: connections to it are closed.
const NOWHERE: &str = "nowhere";

/// A route of one backend without conditions, as of a port without routes.
pub(super) fn direct_route(cluster: String) -> Route {
    Route::new("default", anything(), RouteAction::Forward(forward_to(cluster, None)))
}

/// The route of an inbound listener: to the application, for as long as it takes, because the client keeps the time.
pub(super) fn inbound_route(cluster: String) -> Route {
    let mut route = direct_route(cluster);
    if let RouteAction::Forward(forward) = &mut route.action {
        forward.timeouts = Timeouts { request: Some(Duration::ZERO), ..Timeouts::default() };
    }
    route
}

fn forward_to(cluster: String, policy: Option<&BackendTrafficPolicySpec>) -> Forward {
    let settings = policy.and_then(|policy| policy.timeouts.as_ref());
    let each = settings.and_then(|settings| settings.backend_request).map(|each| each.get());
    Forward {
        timeouts: traffic::timeouts(None, policy),
        retry: traffic::retry(policy.and_then(|policy| policy.retry.as_ref()), each),
        ..Forward::new(vec![tulle_mesh::model::Backend::new(cluster, 1)])
    }
}

fn backend(backend: &Backend) -> tulle_mesh::model::Backend {
    // A backend whose filters can't be done is one that can't be found: its share gets 500.
    let cluster = if backend.filters.failed { NOWHERE.into() } else { backend.cluster.clone() };
    tulle_mesh::model::Backend {
        request_headers: backend.filters.request_headers.clone(),
        response_headers: backend.filters.response_headers.clone(),
        ..tulle_mesh::model::Backend::new(cluster, backend.weight)
    }
}

fn anything() -> RouteMatch {
    RouteMatch::new(PathMatch::Prefix("/".into()))
}

fn respond(status: StatusCode) -> RouteAction {
    RouteAction::Respond(DirectResponse { status, body: String::new() })
}

/// `<namespace>/<name>#<rule>`, with `:<name of the rule>` where it has one.
fn rule_name(route: &MeshRoute, at: usize, rule: &Rule) -> String {
    let name = rule.name.as_ref().map(|name| format!(":{name}")).unwrap_or_default();
    format!("{}/{}#{at}{name}", route.key.namespace, route.key.name)
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
