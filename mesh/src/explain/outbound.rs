//! The client's side: route, filters, backends, endpoints.

use std::borrow::Cow;
use std::str::FromStr;
use std::time::Duration;

use http::HeaderMap;
use http::uri::PathAndQuery;

use crate::model::{
    self, Discovery, EndpointAddress, FaultPart, FilterChain, HeaderMutations, HeaderOp, HostRewrite,
    Listener, Protocol, Route, RouteAction, RouteSource, TcpProxy, is_secret_header,
};
use crate::route::filter::{mutate_headers, redirect_location, rewrite_path};
use crate::route::{Lookup, Normalized, RequestView, RouteId, RouteTable, normalize};

use super::inbound::arrive;
use super::{
    Action, Backend, Endpoint, ExplainError, Explanation, Forward, Head, Outcome, Question, Resources, Retry,
    Timeouts, health,
};

/// Follows a request through an outbound listener.
///
/// # Errors
/// When the listener's configuration is not complete, or none of its chains is for the request.
pub fn explain(
    question: &Question<'_>,
    listener: &Listener,
    resources: &impl Resources,
) -> Result<Explanation, ExplainError> {
    let mut explanation = Explanation {
        request: head(question.request),
        client: question.client.cloned(),
        listener: listener.name.clone(),
        route: None,
        action: None,
        outcome: Outcome::Forwarded,
    };
    let connection = match chain(listener, question.request).map(|chain| &chain.protocol) {
        None => return Err(ExplainError::NoChain { listener: listener.name.clone() }),
        Some(Protocol::Http(connection)) => connection,
        Some(Protocol::Tcp(proxy)) => {
            let forward = Forward::of_bytes(proxy, question, resources);
            explanation.outcome = arrival(&forward, 503);
            explanation.action = Some(Action::Forward(forward));
            return Ok(explanation);
        }
    };
    let configuration = match &connection.routes {
        RouteSource::Inline(routes) => routes,
        RouteSource::Named(name) => resources.routes(name).ok_or_else(|| ExplainError::MissingRoutes {
            listener: listener.name.clone(),
            routes: name.clone(),
        })?,
    };
    let target = match normalize(question.request.target(), &connection.paths) {
        Normalized::Same => Cow::Borrowed(question.request.target()),
        Normalized::Changed(target) => Cow::Owned(target),
        Normalized::Redirect(location) => {
            explanation.action = Some(Action::Redirect { status: 307, location });
            explanation.outcome = Outcome::Answered { status: 307 };
            return Ok(explanation);
        }
        Normalized::Refused => {
            let reason = "the path holds an escaped slash".into();
            explanation.outcome = Outcome::Refused { status: 400, reason };
            return Ok(explanation);
        }
    };
    let request = question.request.with_target(&target);
    let question = &Question { request: &request, ..*question };
    let table = RouteTable::compile(configuration).map_err(ExplainError::Routes)?;
    // The smallest number is below every fraction but none.
    let draw = || 0;
    explanation.route = Some(table.explain(question.request, draw));
    let id = match table.lookup(question.request, draw) {
        Lookup::Found(id) => id,
        Lookup::NoVirtualHost | Lookup::NoRoute => {
            explanation.outcome = Outcome::Refused { status: 404, reason: "no route matches".into() };
            return Ok(explanation);
        }
    };
    let (action, outcome) = act((&table, id), question, resources);
    explanation.action = Some(action);
    explanation.outcome = outcome;
    Ok(explanation)
}

/// The chain for a request in plain text: one for HTTP, or one for bytes whose server names are those of the request.
fn chain<'a>(listener: &'a Listener, request: &RequestView<'_>) -> Option<&'a FilterChain> {
    let host = request.authority.rsplit_once(':').map_or(request.authority, |(host, _)| host);
    let named = |chain: &FilterChain| {
        let names = &chain.matches.server_names;
        names.is_empty()
            || names.iter().any(|name| match name.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => host == name,
            })
    };
    let http = listener.chains.iter().find(|chain| matches!(chain.protocol, Protocol::Http(_)));
    http.or_else(|| listener.chains.iter().find(|chain| named(chain)))
}

fn act(
    (table, id): (&RouteTable, RouteId),
    question: &Question<'_>,
    resources: &impl Resources,
) -> (Action, Outcome) {
    let route = table.route(id);
    let request = question.request;
    let head = head(request);
    match &route.action {
        RouteAction::Forward(forward) => {
            let unknown = forward.unknown_cluster_status.as_u16();
            let forward = Forward::of((table, id), forward, question, resources);
            let outcome = arrival(&forward, unknown);
            (Action::Forward(forward), outcome)
        }
        RouteAction::Redirect(redirect) => {
            let status = redirect.status.as_u16();
            let target = target(&head);
            let matched = &route.matches.path;
            let location = redirect_location(redirect, request.scheme, request.authority, &target, matched);
            (Action::Redirect { status, location }, Outcome::Answered { status })
        }
        RouteAction::Respond(response) => {
            let status = response.status.as_u16();
            let body = response.body.clone();
            let outcome = match status {
                400.. => Outcome::Refused { status, reason: "the route answers so".into() },
                _ => Outcome::Answered { status },
            };
            (Action::Respond { status, body }, outcome)
        }
        RouteAction::NonForwarding => {
            let reason = "the route does not forward".into();
            (Action::NonForwarding, Outcome::Refused { status: 404, reason })
        }
    }
}

/// What comes of a forwarded request; `unknown` is the status where a cluster does not exist.
fn arrival(forward: &Forward, unknown: u16) -> Outcome {
    let refused = |status, reason| Outcome::Refused { status, reason };
    for backend in forward.backends.iter().filter(|backend| backend.share > 0.0) {
        let cluster = &backend.cluster;
        if !backend.known {
            return refused(unknown, format!("cluster {cluster} does not exist"));
        }
        if !backend.dns.is_empty() {
            continue;
        }
        let mut usable = backend.endpoints.iter().filter(|endpoint| endpoint.usable()).peekable();
        if usable.peek().is_none() {
            return refused(503, format!("cluster {cluster} has no healthy endpoint"));
        }
        for endpoint in usable {
            match &endpoint.inbound {
                Some(inbound) if !inbound.accepted => {
                    let reason = format!("{} takes no such connection", endpoint.address);
                    return refused(503, reason);
                }
                Some(inbound) if !inbound.allowed() => {
                    return refused(403, format!("{} does not allow it", endpoint.address));
                }
                _ => {}
            }
        }
    }
    if forward.backends.iter().all(|backend| backend.share <= 0.0) {
        return refused(500, "all backends have weight 0".into());
    }
    Outcome::Forwarded
}

impl Forward {
    fn of(
        (table, id): (&RouteTable, RouteId),
        forward: &model::Forward,
        question: &Question<'_>,
        resources: &impl Resources,
    ) -> Self {
        let route = table.route(id);
        let total: u64 = forward.backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let backends = forward.backends.iter().map(|backend| {
            let mut headers = question.request.headers.clone();
            for changes in table.request_headers(id, Some(backend)) {
                // What operators would stand for is known of live requests alone.
                mutate_headers(changes, &mut headers, |_, _, _| {});
            }
            let mut becomes = head(question.request);
            if let Some(rewrite) = &forward.path_rewrite
                && let Ok(target) = rewrite_path(rewrite, &route.matches.path, &target(&becomes))
            {
                becomes.target = target.to_string();
            }
            if let Some(HostRewrite::Literal(host)) = &forward.host_rewrite {
                becomes.authority.clone_from(host);
            }
            let to = To { question, becomes: &becomes, headers: &headers };
            Backend {
                share: share(backend.weight, total),
                request_headers: words(table.request_headers(id, Some(backend))),
                response_headers: words(table.response_headers(id, Some(backend))),
                ..to.backend(&backend.cluster, Carried::Http, resources)
            }
        });
        Self {
            fault: fault(route),
            timeouts: Timeouts {
                request: forward.timeouts.request.map(milliseconds),
                idle: forward.timeouts.idle.map(milliseconds),
                max_stream: forward.timeouts.max_stream.map(milliseconds),
            },
            retry: forward.retry.as_ref().map(Retry::of),
            mirrors: forward
                .mirrors
                .iter()
                .map(|mirror| format!("{} gets {}", mirror.cluster, percent(mirror.fraction)))
                .collect(),
            backends: backends.collect(),
        }
    }

    fn of_bytes(proxy: &TcpProxy, question: &Question<'_>, resources: &impl Resources) -> Self {
        let total: u64 = proxy.backends.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let becomes = head(question.request);
        let to = To { question, becomes: &becomes, headers: question.request.headers };
        let backends = proxy.backends.iter().map(|(cluster, weight)| Backend {
            share: share(*weight, total),
            ..to.backend(cluster, Carried::Bytes, resources)
        });
        Self {
            fault: Vec::new(),
            timeouts: Timeouts {
                request: None,
                idle: proxy.idle_timeout.map(milliseconds),
                max_stream: None,
            },
            retry: None,
            mirrors: Vec::new(),
            backends: backends.collect(),
        }
    }
}

/// What a connection to an endpoint carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// Requests.
    Http,
    /// Bytes.
    Bytes,
}

/// A request on its way to a backend.
struct To<'a> {
    question: &'a Question<'a>,
    becomes: &'a Head,
    headers: &'a HeaderMap,
}

impl To<'_> {
    fn backend(&self, name: &str, carried: Carried, resources: &impl Resources) -> Backend {
        let cluster = resources.cluster(name);
        let name_of = |name: &model::HostPort| format!("{}:{}", name.host, name.port);
        let dns = match cluster.map(|cluster| &cluster.discovery) {
            Some(Discovery::StrictDns(names, _)) => names.iter().map(name_of).collect(),
            Some(Discovery::LogicalDns(name, _)) => vec![name_of(name)],
            Some(Discovery::OriginalDestination) => vec!["the address that was dialled".into()],
            Some(Discovery::Eds(_) | Discovery::Static(_)) | None => Vec::new(),
        };
        let endpoints = cluster.map(|cluster| resources.endpoints(cluster)).unwrap_or_default();
        Backend {
            cluster: name.into(),
            share: 0.0,
            becomes: self.becomes.clone(),
            request_headers: Vec::new(),
            response_headers: Vec::new(),
            known: cluster.is_some(),
            dns,
            endpoints: endpoints
                .into_iter()
                .filter_map(|endpoint| Some(self.endpoint(cluster?, endpoint, carried, resources)))
                .collect(),
        }
    }

    fn endpoint(
        &self,
        cluster: &model::Cluster,
        endpoint: &model::Endpoint,
        carried: Carried,
        resources: &impl Resources,
    ) -> Endpoint {
        let tls = cluster.tls.as_ref().filter(|tls| endpoint.meshed || !tls.only_meshed_endpoints);
        let (address, inbound) = match &endpoint.address {
            EndpointAddress::Pipe(path) => (path.clone(), None),
            EndpointAddress::Socket(address) => {
                let listener = resources.inbound(*address).filter(|_| endpoint.meshed);
                let inbound = listener.map(|listener| {
                    let method = self.question.request.method;
                    let Head { authority, target, .. } = self.becomes;
                    let request = RequestView::new(method, authority, target, self.headers);
                    let question = Question { request: &request, ..*self.question };
                    arrive(listener, &question, *address, tls, carried)
                });
                (address.to_string(), inbound)
            }
        };
        Endpoint {
            address,
            workload: endpoint.workload.clone(),
            health: health(endpoint.health).into(),
            identity: endpoint.identity.clone().filter(|_| tls.is_some()),
            mtls: tls.is_some(),
            inbound,
        }
    }
}

impl Retry {
    fn of(policy: &model::RetryPolicy) -> Self {
        let name = |on: &model::RetryOn| {
            let known = model::RetryOn::ALL.iter().find(|(condition, _)| condition == on);
            known.map(|(_, name)| (*name).to_owned())
        };
        let statuses = policy.statuses.iter().map(u16::to_string);
        Self {
            on: policy.on.iter().filter_map(name).chain(statuses).collect(),
            attempts: policy.attempts,
            per_try_timeout: policy.per_try_timeout.map(milliseconds),
        }
    }
}

fn head(request: &RequestView<'_>) -> Head {
    let query = request.query.map(|query| format!("?{query}")).unwrap_or_default();
    Head {
        method: request.method.to_string(),
        authority: request.authority.into(),
        target: format!("{}{query}", request.path),
    }
}

/// A head's target; `/` where it is none, as that of `OPTIONS *`.
fn target(head: &Head) -> PathAndQuery {
    PathAndQuery::from_str(&head.target).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

fn words<'a>(changes: impl Iterator<Item = &'a HeaderMutations>) -> Vec<String> {
    let mut words = Vec::new();
    for changes in changes {
        words.extend(changes.remove.iter().map(|name| format!("remove {name}")));
        words.extend(changes.change.iter().map(|change| {
            let value = match is_secret_header(change.name.as_str()) {
                true => "[redacted]".into(),
                false => change.value.to_string(),
            };
            let op = match change.op {
                HeaderOp::Append => "add",
                HeaderOp::AddIfAbsent => "add if absent",
                HeaderOp::Set => "set",
                HeaderOp::SetIfPresent => "set if present",
            };
            format!("{op} {}: {value}", change.name)
        }));
    }
    words
}

fn fault(route: &Route) -> Vec<String> {
    let Some(fault) = route.fault() else { return Vec::new() };
    fn say<T>(part: Option<&FaultPart<T>>, what: &str, how: impl Fn(&T) -> String) -> Option<String> {
        Some(match part? {
            FaultPart::Fixed { value, fraction } => format!("{} {}", percent(*fraction), how(value)),
            FaultPart::Asked(share) => format!("{} {what} as they ask for", percent(share.of(None))),
        })
    }
    let delay = say(fault.delay.as_ref(), "wait", |delay| format!("wait for {} ms", milliseconds(*delay)));
    let abort = say(fault.abort.as_ref(), "are answered", |abort| {
        format!("are answered with {}", abort.status.as_u16())
    });
    let rate = say(fault.rate.as_ref(), "are slowed down", |rate| format!("get {rate} KiB a second"));
    [delay, abort, rate].into_iter().flatten().collect()
}

fn percent(fraction: model::PerMillion) -> String {
    format!("{} %", f64::from(fraction.0) / 1e4)
}

fn share(weight: u32, total: u64) -> f64 {
    // Weights are far below 2^52, where a float begins to round.
    if total == 0 { 0.0 } else { f64::from(weight) * 100.0 / total as f64 }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
