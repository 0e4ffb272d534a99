//! From a route to an endpoint's answer: the loop of attempts.
//!
//! In: a request whose route leads to backends. Out: the answer of one endpoint, or the error of the last attempt. A
//! backend is drawn once, and retries stay with it; each attempt goes to an endpoint that the request has not tried,
//! while there is one, of those that there are then. Nothing is sent twice unless `retry` says that it may be.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::{HOST, SET_COOKIE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, Version};
use smallvec::SmallVec;
use tulle_mesh::model::{
    Backend, Forward, HostRewrite, PerMillion, RetryPolicy, TrafficDirection, UpstreamProtocol,
};
use tulle_mesh::route::{RouteId, RouteTable, filter};

use super::body::{Body, BodyError};
use super::deadline::{self, Deadline, Named, Over};
use super::draw::{Drawn, Hashed};
use super::exchange::{Exchange, Sent};
use super::headers::{self, Origin};
use super::problem::Problem;
use super::proxy::{Answered, Proxy, Target};
use super::refusal::PROXY_STATUS;
use super::server::Interim;
use super::words::{Moment, Words};
use super::{respond, session};
use crate::balance::{Cluster, Endpoint, Limit, Outcome, Permit, Pick};
use crate::error::{RequestError, send_token};
use crate::limit::Slot;
use crate::retry::replay::Replay;
use crate::retry::{self, End, Rules};
use crate::snapshot::{HttpRoutes, RouteRuntime, Snapshot};
use crate::telemetry::record::RetrySkipped;
use crate::upstream::{Answer, ConnectError, HttpVersion, SendError, SendOptions};

const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// What a route says about one request.
pub(super) struct Plan<'a> {
    id: RouteId,
    table: &'a RouteTable,
    pub(super) runtime: &'a RouteRuntime,
    pub(super) forward: &'a Forward,
    backend: &'a Backend,
    cluster: Chosen<'a>,
    /// The path and query that are asked for, where they are rewritten.
    target: Option<PathAndQuery>,
    hash: Option<u64>,
    /// Makes the client come back to the same endpoint.
    cookie: Option<HeaderValue>,
    /// The endpoint that holds its session.
    held: Option<SocketAddr>,
    deadline: Deadline,
}

/// The cluster of a request.
enum Chosen<'a> {
    Configured(&'a Arc<Cluster>),
    /// The part of a configured one that leads where the client was going.
    Original(Arc<Cluster>),
    /// What the configured one has become since the request began.
    Renewed(Arc<Cluster>),
}

impl Deref for Chosen<'_> {
    type Target = Arc<Cluster>;

    fn deref(&self) -> &Arc<Cluster> {
        match self {
            Self::Configured(cluster) => cluster,
            Self::Original(cluster) | Self::Renewed(cluster) => cluster,
        }
    }
}

/// What is gathered from attempt to attempt.
#[derive(Default)]
struct Attempts {
    /// The endpoints.
    tried: SmallVec<[u64; 4]>,
    /// How many attempts were made after the first.
    retries: u32,
    /// What the next attempt takes from the budget.
    permit: Option<Permit>,
}

/// How an attempt ended.
struct Tried {
    /// The answer or the error to give, if this was the last attempt.
    result: Result<Answer, RequestError>,
    /// What it means for another attempt; `None`: there is none.
    end: Option<End>,
    /// A sidecar on the way has made the answer.
    mesh_made: bool,
}

impl Proxy {
    /// What `route` says about the request: its backend, which may be `drawn` already, target, hash and deadline.
    pub(super) fn plan<'a>(
        &self,
        exchange: &mut Exchange,
        routes: &'a HttpRoutes,
        id: RouteId,
        forward: &'a Forward,
        drawn: Option<Drawn>,
    ) -> Result<Plan<'a>, RequestError> {
        let (route, runtime) = (routes.table.route(id), &routes.runtime[id.index()]);
        let Drawn { at: drawn, held, hashed } =
            drawn.unwrap_or_else(|| self.draw(exchange, runtime, forward));
        let unavailable = |what: String| RequestError::Configuration(forward.unknown_cluster_status, what);
        let at = drawn
            .ok_or_else(|| unavailable(format!("route {:?} has no backend with a weight", route.name)))?;
        exchange.backend = Some(at);
        let backend = &forward.backends[at];
        let cluster = runtime.backends[at].cluster.as_ref();
        let cluster = cluster
            .ok_or_else(|| unavailable(format!("the cluster {:?} does not exist", backend.cluster)))?;
        let cluster = match cluster.is_original_destination() {
            true => self
                .original(&exchange.request, cluster)
                .map_or(Chosen::Configured(cluster), Chosen::Original),
            false => Chosen::Configured(cluster),
        };
        let target = match &forward.path_rewrite {
            Some(rewrite) => {
                Some(filter::rewrite_path(rewrite, &route.matches.path, &exchange.target()).map_err(
                    |error| RequestError::Configuration(StatusCode::BAD_REQUEST, error.to_string()),
                )?)
            }
            None => None,
        };
        let Hashed { hash, cookie } = hashed.unwrap_or_else(|| self.hash(exchange, forward));
        let timeouts = deadline::timeouts(&forward.timeouts, &routes.settings);
        let deadline = Deadline::new(&exchange.request.headers, &timeouts, exchange.grpc, exchange.begun);
        let table = &*routes.table;
        Ok(Plan { id, table, runtime, forward, backend, cluster, target, hash, cookie, held, deadline })
    }

    /// Sends the request until an answer may be passed on, or no other attempt may be made. `slot`: the request's place
    /// at the application.
    pub(super) async fn forward(
        &self,
        exchange: &mut Exchange,
        mut plan: Plan<'_>,
        interim: &Interim,
        slot: Option<Slot>,
    ) -> Result<Answered, RequestError> {
        if let Some(idle) = plan.forward.timeouts.idle {
            interim.set_idle_timeout(idle);
        }
        for drop in &plan.cluster.drops {
            if drop.fraction.hit(self.worker.draw()) {
                let all = drop.fraction == PerMillion::ALL;
                return Err(RequestError::Dropped { category: drop.category.as_str().into(), all });
            }
        }
        let rules = Rules {
            policy: plan.forward.retry.as_ref(),
            concerned: retry::concerns(plan.forward.retry.as_ref(), &exchange.view()),
            idempotent: retry::is_idempotent(&exchange.request.method, &exchange.request.headers),
            is_retry: headers::is_retry(&exchange.request.headers),
            direction: exchange.direction(),
        };
        // Of a chain of hops, the retries of the one before come out of what this one may add.
        match rules.is_retry && rules.direction == TrafficDirection::Outbound {
            true => plan.cluster.count_retry(exchange.begun),
            false => plan.cluster.count_request(exchange.begun),
        }
        let mut attempts = Attempts::default();
        let last = loop {
            let last = self.attempt(exchange, &plan, &mut attempts, interim, slot.as_ref()).await;
            let pause = last.end.and_then(|end| rules.decide(end, attempts.retries, self.worker.draw_u64()));
            let Some(pause) = pause.filter(|pause| plan.has_time_for(*pause, &exchange.body)) else {
                break last;
            };
            if !exchange.body.is_kept() {
                exchange.retry_skipped = Some(RetrySkipped::BodyTooLarge);
                break last;
            }
            attempts.permit = plan.cluster.retry_permit(Instant::now());
            if attempts.permit.is_none() {
                exchange.retry_skipped = Some(RetrySkipped::Budget);
                break last;
            }
            attempts.retries += 1;
            exchange.end_attempt();
            drop(last);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            plan.renew(&self.worker.current());
        };
        self.mirror(exchange, &plan);
        let answer = last.result?;
        if let Some(slot) = slot {
            slot.answered(Instant::now());
        }
        Ok(accept(exchange, plan, answer, last.mesh_made))
    }

    /// One attempt, up to the head of its answer.
    async fn attempt(
        &self,
        exchange: &mut Exchange,
        plan: &Plan<'_>,
        attempts: &mut Attempts,
        interim: &Interim,
        slot: Option<&Slot>,
    ) -> Tried {
        let pick = Pick {
            now: Instant::now(),
            random: self.worker.draw_u64(),
            hash: plan.hash,
            tried: &attempts.tried,
        };
        let held = plan.held.and_then(|address| plan.cluster.pick_held(address, &pick));
        let Some(endpoint) = held.or_else(|| plan.cluster.pick(&pick).ok()) else {
            return Tried::last(RequestError::NoEndpoint(plan.cluster.name.as_ref().into()));
        };
        attempts.tried.push(endpoint.id);
        let permit = match plan.cluster.permit(Limit::Requests) {
            Ok(permit) => permit,
            Err(limit) => return Tried::last(RequestError::Limit(limit)),
        };
        let in_flight = plan.cluster.begin(endpoint);
        let target = plan.target.clone().unwrap_or_else(|| exchange.target());
        exchange.begin_attempt(in_flight, permit, attempts.permit.take(), target.as_str());
        // What follows from an answer is told by the attempt that was answered.
        exchange.sent = None;
        let request = self.outgoing(exchange, plan, endpoint, attempts.retries, exchange.body.body());
        if plan.table.response_tells_request(plan.id) {
            let (uri, headers) = (request.uri().clone(), request.headers().clone());
            exchange.sent = Some(Box::new(Sent { uri, headers }));
        }
        let options = SendOptions {
            cluster: &plan.cluster,
            tls: exchange.current.as_ref().and_then(|current| current.tls.as_ref()),
            version: version(&plan.cluster, exchange.request.version),
            interim,
            proven: &exchange.peer,
        };
        let per_try = plan.forward.retry.as_ref().and_then(per_try);
        let limited = plan.deadline.is_some() || per_try.is_some();
        let sent = tokio::select! {
            biased;
            sent = self.worker.pools.send(endpoint, request, options) => Ok(sent),
            over = plan.deadline.over(&exchange.body, per_try), if limited => Err(over),
            never = arrival(slot, &exchange.body), if slot.is_some() => match never {},
        };
        match sent {
            Ok(Ok(answer)) => answered(exchange, plan, endpoint, answer),
            Ok(Err(error)) => failed(exchange, endpoint, error),
            Err(over) => timed_out(exchange, over),
        }
    }

    /// The request as it is sent to `endpoint`.
    pub(super) fn outgoing(
        &self,
        exchange: &Exchange,
        plan: &Plan<'_>,
        endpoint: &Endpoint,
        retries: u32,
        body: Body,
    ) -> Request<Body> {
        let head = &exchange.request;
        let origin = Origin {
            direction: exchange.direction(),
            forward_proxy: matches!(self.downstream.target, Target::Authority),
        };
        let mut headers = headers::request(head, origin);
        let changes = plan.table.request_headers(plan.id, Some(plan.backend));
        Words::new(exchange, Moment::Request).change(changes, &mut headers);
        rewrite_host(plan, endpoint, &mut headers);
        if let Some(trace) = exchange.span_of_attempt() {
            trace.inject(&mut headers);
        }
        let told = plan.table.virtual_host(plan.id).tell_attempts.endpoint;
        headers::mark_attempt(&mut headers, headers::attempt_count(&head.headers) + retries, told);
        let left = plan.deadline.left(exchange.body.ended(), Instant::now());
        plan.deadline.write(&mut headers, left, exchange.grpc);

        let mut request = Request::new(body);
        *request.method_mut() = head.method.clone();
        *request.version_mut() = head.version;
        *request.uri_mut() = with_target(&head.uri, plan.target.as_ref());
        *request.headers_mut() = headers;
        if let Some(protocol) = head.extensions.get::<h2::ext::Protocol>() {
            request.extensions_mut().insert(protocol.clone());
        }
        request
    }
}

impl Plan<'_> {
    /// Before another attempt: takes the endpoints that the cluster has now. Those that the request began with may have ended
    /// meanwhile, one that took their place may be the only one left.
    fn renew(&mut self, current: &Snapshot) {
        if !matches!(self.cluster, Chosen::Original(_))
            && let Some(cluster) = current.clusters.get(self.cluster.name.as_ref())
            && !Arc::ptr_eq(cluster, &self.cluster)
        {
            self.cluster = Chosen::Renewed(Arc::clone(cluster));
        }
    }

    fn has_time_for(&self, pause: Duration, body: &Replay) -> bool {
        self.deadline.left(body.ended(), Instant::now()).is_none_or(|left| left > pause)
    }
}

impl Tried {
    fn last(error: RequestError) -> Self {
        Self { result: Err(error), end: None, mesh_made: false }
    }
}

/// What ends an attempt whose answer does not begin.
fn per_try(policy: &RetryPolicy) -> Option<Named> {
    let limits = [("perTry", policy.per_try_timeout), ("perTryIdle", policy.per_try_idle_timeout)];
    let limits = limits.into_iter().filter_map(|(name, limit)| Some((name, limit?)));
    limits.filter(|(_, limit)| !limit.is_zero()).min_by_key(|(_, limit)| *limit)
}

/// Lets the request count at the application once it has arrived whole.
async fn arrival(slot: Option<&Slot>, body: &Replay) -> Infallible {
    if let Some(slot) = slot {
        slot.arrived(poll_fn(|cx| body.poll_ended(cx)).await);
    }
    pending().await
}

fn answered(exchange: &mut Exchange, plan: &Plan<'_>, endpoint: &Endpoint, mut answer: Answer) -> Tried {
    let status = answer.response.status();
    let response_headers = answer.response.headers_mut();
    let mark = headers::Outcome::take(response_headers, endpoint.tls.is_some());
    let grpc_status = if exchange.grpc { respond::grpc_status(response_headers) } else { None };
    let unavailable = grpc_status == Some(crate::error::GRPC_UNAVAILABLE);
    let not_processed = mark == Some(headers::Outcome::NotProcessed);
    // What is no failure yet may still become one; the end of the body tells.
    let outcome = match Outcome::of(status) {
        _ if not_processed => Some(Outcome::Refused),
        _ if unavailable => Some(Outcome::Failure),
        Outcome::Success => None,
        failure => Some(failure),
    };
    let policy = plan.forward.retry.as_ref();
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let retry_after = retry::retry_after(policy, response_headers, now);
    let named = retry::is_named(policy, response_headers);
    exchange.answered(status, grpc_status, outcome);
    let end = match not_processed {
        true => End::NotProcessed { connect: false },
        false => End::Answer { status, grpc_status, mesh_made: mark.is_some(), named, retry_after },
    };
    Tried { result: Ok(answer), end: Some(end), mesh_made: mark.is_some() }
}

fn failed(exchange: &mut Exchange, endpoint: &Endpoint, error: SendError) -> Tried {
    let (end, outcome) = match &error {
        // The want of an own certificate is no fault of the endpoint.
        SendError::Connect(ConnectError::NoCertificate) => (Some(End::NotProcessed { connect: true }), None),
        SendError::Connect(_) => (Some(End::NotProcessed { connect: true }), Some(Outcome::Unreachable)),
        // A connection that had idled for too long, or an endpoint about to end: no failure either.
        SendError::NotProcessed(_) => (Some(End::NotProcessed { connect: false }), None),
        SendError::Reset(_) | SendError::Protocol(_) => (Some(End::Reset), Some(Outcome::Lost)),
        // It does what it can; another may do more.
        SendError::Version(_) => (Some(End::NotProcessed { connect: true }), None),
        SendError::RequestBody(_) | SendError::Request(_) | SendError::Overflow(_) => (None, None),
    };
    let token = send_token(&error);
    let error = match error {
        SendError::RequestBody(error) => RequestError::RequestBody(error),
        error => RequestError::Attempt(endpoint.address, error),
    };
    exchange.failed(Problem::new(token, error.flags(), error.to_string()), outcome);
    Tried { result: Err(error), end, mesh_made: false }
}

fn timed_out(exchange: &mut Exchange, over: Over) -> Tried {
    let (end, (name, value)) = match over {
        Over::Try(named) => (Some(End::TimedOut), named),
        Over::Request(named) => (None, named),
        Over::Body => {
            let error = RequestError::RequestBody(BodyError::Idle);
            exchange.failed(Problem::from(&error), None);
            return Tried::last(error);
        }
    };
    let error = RequestError::Timeout(name, value);
    // A caller in a hurry says nothing about the endpoint.
    let blamed = matches!(name, "request" | "perTry" | "perTryIdle" | "idle").then_some(Outcome::Lost);
    exchange.failed(Problem::from(&error), blamed);
    Tried { result: Err(error), end, mesh_made: false }
}

/// Makes an endpoint's answer the client's.
fn accept(exchange: &mut Exchange, plan: Plan<'_>, answer: Answer, mesh_made: bool) -> Answered {
    let Answer { mut response, tunnel, .. } = answer;
    let status = response.status();
    let response_headers = response.headers_mut();
    headers::response(response_headers, tunnel.is_some());
    let problem = mesh_made.then(|| {
        let said = response_headers.get(PROXY_STATUS).and_then(|value| value.to_str().ok());
        let said = said.unwrap_or("the endpoint's sidecar answered").to_owned();
        Problem::new("destination_unavailable", "-", said)
    });
    let words = Words::new(exchange, Moment::Answer(status));
    words.change_answer(plan.table, plan.id, Some(plan.backend), response_headers);
    if let Some(cookie) = plan.cookie {
        response_headers.append(SET_COOKIE, cookie);
    }
    if let (Some(kept), Some(endpoint), false) = (&plan.runtime.session, exchange.endpoint, mesh_made)
        && plan.held != Some(endpoint)
    {
        session::begin(kept, endpoint, SystemTime::now(), response_headers);
    }
    exchange.grpc_status = if exchange.grpc { respond::grpc_status(response_headers) } else { None };
    Answered { response, tunnel, problem }
}

/// Which HTTP `cluster` is spoken to.
pub(super) fn version(cluster: &Cluster, downstream: Version) -> HttpVersion {
    match cluster.model.protocol {
        UpstreamProtocol::Http1 => HttpVersion::Http1,
        UpstreamProtocol::Http2 => HttpVersion::Http2,
        UpstreamProtocol::Downstream if downstream == Version::HTTP_2 => HttpVersion::Http2,
        UpstreamProtocol::Downstream => HttpVersion::Http1,
    }
}

/// Host, which goes before what the URI says in both versions of HTTP: first the backend's, then the route's.
fn rewrite_host(plan: &Plan<'_>, endpoint: &Endpoint, headers: &mut HeaderMap) {
    if let Some(host) = plan.backend.host_rewrite.as_deref().and_then(|host| HeaderValue::from_str(host).ok())
    {
        headers.insert(HOST, host);
    }
    let host = match &plan.forward.host_rewrite {
        Some(HostRewrite::Literal(host)) => HeaderValue::from_str(host).ok(),
        Some(HostRewrite::Endpoint) => HeaderValue::from_str(&endpoint.model.hostname).ok(),
        Some(HostRewrite::Header(name)) => headers.get(name).cloned(),
        None => None,
    };
    let Some(host) = host.filter(|host| !host.is_empty()) else { return };
    let Some(before) = headers.insert(HOST, host) else { return };
    let told = headers.get_all(FORWARDED_HOST).iter().next_back() == Some(&before);
    if plan.forward.tell_original_host && !told {
        headers.append(FORWARDED_HOST, before);
    }
}

fn with_target(uri: &Uri, target: Option<&PathAndQuery>) -> Uri {
    let Some(target) = target else { return uri.clone() };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.clone());
    // Only a path without a scheme beside an authority could fail, and such a target has come to be no request.
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}
