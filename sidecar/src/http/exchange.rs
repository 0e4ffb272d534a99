//! What is known of one request, from its arrival to its end, and the records that its end makes.
//!
//! An [`Exchange`] is made when a request's head has arrived, filled in as the request goes on its way, and moves into
//! the body of the answer. When it is dropped, wherever that is, it reports: exactly one record per attempt and one per
//! request, also for a client that has gone away.

use std::cell::OnceCell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, StatusCode, Uri};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{Cors, CustomTag, TrafficDirection};
use tulle_mesh::route::{RequestView, RouteId};

use super::fault::Suffering;
use super::pace::Pace;
use super::problem::Problem;
use super::proxy::Downstream;
use super::respond::Asker;
use super::upgrade::Carried;
use super::{forwarded, headers};
use crate::balance::{Cluster, InFlight, Outcome, Permit};
use crate::limit::Tokens;
use crate::retry::replay::Replay;
use crate::snapshot::{Current, HttpRoutes};
use crate::telemetry::metrics::{HttpLabels, HttpSeries};
use crate::telemetry::record::{AttemptRecord, RequestRecord, RetrySkipped};
use crate::telemetry::trace::TraceContext;
use crate::worker::Worker;

/// One request and its answer.
pub(super) struct Exchange {
    pub(super) worker: Rc<Worker>,
    pub(super) downstream: Rc<Downstream>,
    /// The head as it arrived, but for what its listener says of who the client is and what the request is called.
    pub(super) request: Parts,
    pub(super) body: Replay,
    /// It is a gRPC call.
    pub(super) grpc: bool,
    /// Who the client is, where that was asked before its head was changed.
    pub(super) client: Option<IpAddr>,
    pub(super) start: SystemTime,
    /// The head as it was sent, where changes to the answer need it.
    pub(super) sent: Option<Box<Sent>>,
    pub(super) begun: Instant,
    /// The configuration that it is served under.
    pub(super) current: Option<Current>,
    pub(super) routes: Option<Arc<HttpRoutes>>,
    /// The service that it is for, where that is known and has no routes.
    pub(super) service: Option<Arc<str>>,
    /// Its route, and once it has passed all filters which of the route's backends.
    pub(super) route: Option<RouteId>,
    pub(super) backend: Option<usize>,
    /// The cross-origin rules that hold for it.
    pub(super) cors: Option<Arc<Cors>>,
    /// What its answer tells of the limits that it has passed.
    pub(super) tokens: Vec<Tokens>,
    /// It has faults, and so many KiB a second of its answer's body go through.
    pub(super) fault: Option<(Suffering, Option<u64>)>,
    pub(super) trace: Option<TraceContext>,
    /// The attempt under way, or whose answer is passed on.
    attempt: Option<Attempt>,
    attempts: u32,
    /// Where the last attempt went.
    pub(super) endpoint: Option<SocketAddr>,
    /// Whom the endpoint of the last attempt proved to be.
    pub(super) peer: OnceCell<SpiffeId>,
    status: Option<StatusCode>,
    /// For the access log.
    response_headers: Option<HeaderMap>,
    pub(super) grpc_status: Option<u32>,
    pub(super) response_bytes: u64,
    /// What follows the heads of an upgrade or a CONNECT.
    pub(super) carried: Option<Rc<Carried>>,
    /// Why the last attempt was not followed by another, where the rules had allowed one.
    pub(super) retry_skipped: Option<RetrySkipped>,
    error: Option<Problem>,
}

/// What was sent of a request.
pub(super) struct Sent {
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
}

/// By which a client asks for its request to be traced (Envoy).
const CLIENT_TRACE_ID: HeaderName = HeaderName::from_static("x-client-trace-id");

/// One attempt: what it occupies, and how it went.
struct Attempt {
    in_flight: InFlight,
    _request: Permit,
    _retry: Option<Permit>,
    trace: Option<TraceContext>,
    start: SystemTime,
    begun: Instant,
    resend_count: u32,
    path: Box<str>,
    status: Option<StatusCode>,
    grpc_status: Option<u32>,
    error: Option<Problem>,
    judged: bool,
}

impl Exchange {
    /// Begins with a request's head and body.
    pub(super) fn new(
        worker: &Rc<Worker>,
        downstream: &Rc<Downstream>,
        request: Parts,
        body: super::body::Body,
    ) -> Self {
        let begun = Instant::now();
        let grpc = RequestView::new(&request.method, "", "/", &request.headers).is_grpc();
        Self {
            worker: worker.clone(),
            downstream: downstream.clone(),
            body: Replay::new(body, begun),
            grpc,
            request,
            client: None,
            start: SystemTime::now(),
            sent: None,
            begun,
            current: None,
            routes: None,
            service: None,
            route: None,
            backend: None,
            cors: None,
            tokens: Vec::new(),
            fault: None,
            trace: None,
            attempt: None,
            attempts: 0,
            endpoint: None,
            peer: OnceCell::new(),
            status: None,
            response_headers: None,
            grpc_status: None,
            response_bytes: 0,
            carried: None,
            retry_skipped: None,
            error: None,
        }
    }

    /// What routing and authorization see of it.
    pub(super) fn view(&self) -> RequestView<'_> {
        let path = self.request.uri.path_and_query().map_or("/", |path| path.as_str());
        let authority = headers::authority(&self.request);
        RequestView::new(&self.request.method, authority, path, &self.request.headers)
            .with_scheme(headers::scheme(&self.request.headers))
    }

    /// The client's address, as far as its listener believes the proxies before.
    pub(super) fn client_ip(&self) -> IpAddr {
        let peer = self.downstream.peer.ip();
        let how = self.routes.as_ref().map(|routes| routes.settings.forwarding).unwrap_or_default();
        self.client.unwrap_or_else(|| forwarded::client(&self.request.headers, &how, peer))
    }

    /// How many attempts were made so far.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// The name of its route.
    pub(super) fn route_name(&self) -> Option<&str> {
        let (routes, route) = self.routes.as_ref().zip(self.route)?;
        Some(&routes.table.route(route).name)
    }

    /// The name of its cluster.
    pub(super) fn cluster(&self) -> Option<&str> {
        Some(&self.chosen_cluster()?.name)
    }

    /// What its cluster is called for people.
    pub(super) fn cluster_alias(&self) -> Option<&str> {
        let cluster = self.chosen_cluster()?;
        Some(cluster.model.alias.as_deref().unwrap_or(&cluster.name))
    }

    fn chosen_cluster(&self) -> Option<&Arc<Cluster>> {
        let (routes, route) = self.routes.as_ref().zip(self.route)?;
        routes.runtime[route.index()].backends[self.backend?].cluster.as_ref()
    }

    /// The client, as far as its listener believes the proxies before; what they say of it has no port.
    pub(super) fn believed(&self) -> SocketAddr {
        let peer = self.downstream.peer;
        match self.client_ip() {
            ip if ip == peer.ip() => peer,
            ip => SocketAddr::new(ip, 0),
        }
    }

    /// Which side of the application it is on.
    pub(super) fn direction(&self) -> TrafficDirection {
        self.downstream.direction
    }

    /// Who asked.
    pub(super) fn asker(&self) -> Asker {
        let sidecar = self.direction() == TrafficDirection::Inbound && self.downstream.identity.is_some();
        Asker { grpc: self.grpc, sidecar }
    }

    /// Starts a span where the listener has them.
    pub(super) fn start_trace(&mut self) {
        let tracing = self.routes.as_ref().and_then(|routes| routes.settings.tracing.as_ref());
        let Some(tracing) = tracing else { return };
        let worker = &self.worker;
        let random = [worker.draw_u64(), worker.draw_u64(), worker.draw_u64()];
        let headers = &self.request.headers;
        let asked = headers.contains_key(CLIENT_TRACE_ID) && tracing.client_sampling.hit(worker.draw());
        let sample = (asked || tracing.random_sampling.hit(worker.draw()))
            && tracing.overall_sampling.hit(worker.draw());
        self.trace = Some(TraceContext::start(headers, random, sample));
    }

    /// Begins an attempt that asks for `path`.
    pub(super) fn begin_attempt(
        &mut self,
        in_flight: InFlight,
        request: Permit,
        retry: Option<Permit>,
        path: &str,
    ) {
        self.end_attempt();
        self.peer = OnceCell::new();
        let resend_count = self.attempts;
        self.attempts += 1;
        self.endpoint = Some(in_flight.endpoint().address);
        let outbound = self.direction() == TrafficDirection::Outbound;
        let trace = self.trace.as_ref().filter(|_| outbound);
        let sampled = trace.is_some_and(|trace| trace.sampled);
        self.attempt = Some(Attempt {
            in_flight,
            _request: request,
            _retry: retry,
            trace: trace.map(|trace| trace.child(self.worker.draw_u64())),
            start: SystemTime::now(),
            begun: Instant::now(),
            resend_count,
            // Only the span has it.
            path: if sampled { path.into() } else { Box::default() },
            status: None,
            grpc_status: None,
            error: None,
            judged: false,
        });
    }

    /// Notes the head of an attempt's answer. `outcome`: what it says of the endpoint, where that is known already.
    pub(super) fn answered(
        &mut self,
        status: StatusCode,
        grpc_status: Option<u32>,
        outcome: Option<Outcome>,
    ) {
        let Some(attempt) = &mut self.attempt else { return };
        let now = Instant::now();
        (attempt.status, attempt.grpc_status) = (Some(status), grpc_status);
        if matches!(outcome, None | Some(Outcome::Success)) {
            attempt.in_flight.observe(now.saturating_duration_since(attempt.begun), now);
        }
        if let Some(outcome) = outcome {
            attempt.judge(outcome, now, self.worker.draw_u64());
        }
    }

    /// Notes whom the endpoint of the attempt has proved to be.
    pub(super) fn proved(&mut self, peer: Option<SpiffeId>) {
        self.peer = peer.map_or_else(OnceCell::new, OnceCell::from);
    }

    /// Notes that an attempt has no whole answer. `outcome`: what that says of the endpoint, if anything.
    pub(super) fn failed(&mut self, problem: Problem, outcome: Option<Outcome>) {
        let Some(attempt) = &mut self.attempt else { return };
        attempt.error = Some(problem);
        if let Some(outcome) = outcome {
            attempt.judge(outcome, Instant::now(), self.worker.draw_u64());
        }
    }

    /// Ends an attempt whose answer is not passed on.
    pub(super) fn end_attempt(&mut self) {
        let Some(attempt) = self.attempt.take() else { return };
        let in_flight = &attempt.in_flight;
        self.worker.telemetry.attempt(&AttemptRecord {
            series: &in_flight.cluster().state.series,
            trace: attempt.trace.as_ref(),
            spans: self.routes.as_ref().and_then(|routes| routes.spans.as_ref()),
            tags: tags(self.routes.as_deref()),
            headers: &self.request.headers,
            start: attempt.start,
            duration: attempt.begun.elapsed(),
            method: &self.request.method,
            authority: headers::authority(&self.request),
            path: &attempt.path,
            resend_count: attempt.resend_count,
            status: attempt.status,
            grpc_status: attempt.grpc_status,
            error: attempt.error.as_ref().map(Problem::failure),
            cluster: &in_flight.cluster().name,
            endpoint: in_flight.endpoint().address,
            peer: self.peer.get(),
        });
    }

    /// Notes the head that the client gets. `problem`: why the mesh answers itself.
    pub(super) fn responding(
        &mut self,
        status: StatusCode,
        response_headers: &HeaderMap,
        problem: Option<Problem>,
    ) {
        self.status = Some(status);
        self.error = problem;
        let logged = self.routes.as_ref().is_some_and(|routes| routes.settings.access_log.is_some());
        self.response_headers = logged.then(|| response_headers.clone());
    }

    /// Notes how the body of the answer ended: whole, or not for this reason. `blamed`: it is the endpoint's fault.
    pub(super) fn finish(&mut self, problem: Option<Problem>, blamed: bool) {
        let random = self.worker.draw_u64();
        if let Some(attempt) = &mut self.attempt {
            attempt.grpc_status = attempt.grpc_status.or(self.grpc_status);
            let outcome = match attempt.grpc_status {
                _ if blamed => Outcome::Lost,
                Some(crate::error::GRPC_UNAVAILABLE) => Outcome::Failure,
                _ => Outcome::Success,
            };
            attempt.judge(outcome, Instant::now(), random);
            if attempt.error.is_none() {
                attempt.error.clone_from(&problem);
            }
        }
        if self.error.is_none() {
            self.error = problem;
        }
    }

    /// The context that goes out with a request: the attempt's span, or the request's own towards the application.
    pub(super) fn span_of_attempt(&self) -> Option<&TraceContext> {
        self.attempt.as_ref().and_then(|attempt| attempt.trace.as_ref()).or(self.trace.as_ref())
    }

    /// The path and query that the client asks for.
    pub(super) fn target(&self) -> PathAndQuery {
        self.request.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"))
    }

    /// How fast the body of its answer, or what comes after a switch, may go; with it goes the fault.
    pub(super) fn take_pace(&mut self) -> Option<Pace> {
        let (suffering, rate) = self.fault.take_if(|(_, rate)| rate.is_some())?;
        rate.map(|rate| Pace::new(rate, suffering))
    }

    /// The client is not there any more.
    fn give_up(&mut self) {
        let details = "the client went away before there was an answer".to_owned();
        let problem = Problem::new("http_request_error", "DC", details);
        if let Some(attempt) = &mut self.attempt
            && attempt.status.is_none()
            && attempt.error.is_none()
        {
            // That blames nobody, but an answer would have taken longer than this: an endpoint behind a dead link must not
            // look like the quickest of all.
            let now = Instant::now();
            attempt.in_flight.observe(now.saturating_duration_since(attempt.begun), now);
            attempt.error = Some(problem.clone());
        }
        self.error = Some(problem);
    }

    fn series(&self) -> Arc<HttpSeries> {
        let Some(routes) = &self.routes else {
            // Destinations that nobody knows have one series in all, so that their names can't fill the registry.
            return self.worker.telemetry.metrics.http(HttpLabels {
                direction: self.direction(),
                service: self.service.clone().unwrap_or_else(|| "unknown".into()),
                route: "".into(),
                backend: "".into(),
            });
        };
        let Some(route) = self.route else { return routes.unrouted.clone() };
        let runtime = &routes.runtime[route.index()];
        match self.backend {
            Some(backend) => runtime.backends[backend].series.clone(),
            None => runtime.local.clone(),
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if self.status.is_none() && self.error.is_none() {
            self.give_up();
        }
        self.end_attempt();
        let series = self.series();
        let routes = self.routes.as_deref();
        let peer = match self.direction() {
            TrafficDirection::Inbound => self.downstream.identity.as_ref(),
            TrafficDirection::Outbound => self.peer.get(),
        };
        let access_log = routes.and_then(|routes| routes.settings.access_log.as_ref());
        let (received, sent) = match &self.carried {
            Some(carried) => (carried.received.get(), carried.sent.get()),
            None => (0, 0),
        };
        self.worker.telemetry.request(&RequestRecord {
            series: &series,
            direction: self.direction(),
            trace: self.trace.as_ref(),
            spans: routes.and_then(|routes| routes.spans.as_ref()),
            tags: tags(routes),
            access_log,
            draw: if access_log.is_some_and(|log| log.filter.is_some()) { self.worker.draw() } else { 0 },
            start: self.start,
            duration: self.begun.elapsed(),
            request: &self.request,
            status: self.status,
            response_headers: self.response_headers.as_ref(),
            grpc_status: self.grpc_status,
            request_bytes: self.body.bytes() + received,
            response_bytes: self.response_bytes + sent,
            error: self.error.as_ref().map(Problem::failure),
            route: self.route_name().unwrap_or_default(),
            cluster: self.cluster().unwrap_or_default(),
            cluster_alias: self.cluster_alias().unwrap_or_default(),
            endpoint: self.endpoint,
            attempts: self.attempts,
            retry_skipped: self.retry_skipped,
            peer,
            client: self.downstream.peer,
            believed: self.believed(),
            downstream: &self.downstream,
        });
    }
}

/// What stands on spans besides.
fn tags(routes: Option<&HttpRoutes>) -> &[CustomTag] {
    let tracing = routes.and_then(|routes| routes.settings.tracing.as_ref());
    tracing.map_or(&[], |tracing| &tracing.tags)
}

impl Attempt {
    fn judge(&mut self, outcome: Outcome, now: Instant, random: u64) {
        if !std::mem::replace(&mut self.judged, true) {
            self.in_flight.report(outcome, now, random);
        }
    }
}
