//! The story of one request, from its arrival to the last byte of its answer.
//!
//! In: a request of a downstream connection. Out: the answer of an endpoint, or one of the mesh that says why. Outbound and
//! inbound requests take the same way; what differs is the configuration that they find on it. Nothing here allocates a
//! task or a box for a trait, takes a lock or waits for another thread.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tulle_mesh::authorize::{Authorizer, Facts, Verdict};
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    Backend, Cors, Fault, Forward, PerMillion, Route, RouteAction, TrafficDirection, Upgrade,
};
use tulle_mesh::route::{Lookup, RouteId, filter};

use super::accounted::{Accounted, StreamLimits};
use super::body::Body;
use super::destination::Remembered;
use super::draw::Drawn;
use super::exchange::Exchange;
use super::problem::Problem;
use super::request_id::REQUEST_ID;
use super::server::{Handler, Interim, Reply};
use super::upgrade::Tunnel;
use super::words::{Moment, Words};
use super::{client_certificate, cors, fault, forwarded, headers, paths, request_id, respond, server_header};
use crate::error::RequestError;
use crate::limit::{Asking, ConnectionBuckets, Refusal, RequestLimits, Slot, Told};
use crate::snapshot::{HttpRoutes, Stage};
use crate::tls::ClientTls;
use crate::worker::Worker;

/// The facts of a downstream connection.
pub(crate) struct Downstream {
    /// Whether TLS ends here.
    pub(crate) tls: bool,
    /// Which side of the application it is on.
    pub(crate) direction: TrafficDirection,
    /// The client's address; behind a proxy that speaks the PROXY protocol, the one that it tells.
    pub(crate) peer: SocketAddr,
    /// The other end of the connection itself.
    pub(crate) direct: SocketAddr,
    /// The address that the client dialled.
    pub(crate) local: SocketAddr,
    /// The address that is meant, where the connection names one.
    pub(crate) original: Option<SocketAddr>,
    /// Whom the client proved to be, over mesh TLS.
    pub(crate) identity: Option<SpiffeId>,
    /// What is told of its certificate, where that is more than the identity.
    pub(crate) certificate: Option<HeaderValue>,
    /// Its TLS, where logs or headers tell of it.
    pub(crate) tls_facts: Option<Box<ClientTls>>,
    /// The SNI of its ClientHello.
    pub(crate) server_name: Option<Arc<str>>,
    /// Where its requests go.
    pub(crate) target: Target,
}

/// Where the requests of a connection go.
pub(crate) enum Target {
    /// To one outbound listener, by name.
    Service(Arc<str>),
    /// To the service that each request names (forward proxy).
    Authority,
    /// To the application, through the chain with this index of the inbound listener of this address.
    Application {
        /// The listener's address.
        address: SocketAddr,
        /// The index of its chain.
        chain: usize,
    },
}

/// Handles the requests of one connection.
pub(crate) struct Proxy {
    pub(super) worker: Rc<Worker>,
    pub(super) downstream: Rc<Downstream>,
    /// Where its last request went.
    pub(super) remembered: RefCell<Remembered>,
    /// Its own buckets of limits on rates.
    buckets: ConnectionBuckets,
}

/// An answer on its way to the client.
pub(super) struct Answered {
    pub(super) response: Response<Body>,
    pub(super) tunnel: Option<Tunnel>,
    /// Why the mesh is its author, where it is.
    pub(super) problem: Option<Problem>,
}

impl Proxy {
    /// A handler for the requests of `downstream`.
    pub(crate) fn new(worker: Rc<Worker>, downstream: Rc<Downstream>) -> Self {
        Self { worker, downstream, remembered: RefCell::default(), buckets: ConnectionBuckets::default() }
    }

    /// From the head of a request to the head of its answer.
    pub(super) async fn answer(
        &self,
        exchange: &mut Exchange,
        interim: &Interim,
    ) -> Result<Answered, RequestError> {
        if headers::is_loop(&exchange.request.headers) {
            return Err(RequestError::Loop);
        }
        let plain_connect =
            exchange.request.method == Method::CONNECT && !headers::is_upgrade(&exchange.request);
        if plain_connect && matches!(self.downstream.target, Target::Authority) {
            return self.connect(exchange).await;
        }
        let (current, routes) = self.routes(headers::authority(&exchange.request)).await?;
        exchange.current = Some(current);
        exchange.routes = Some(routes.clone());
        exchange.start_trace();
        headers::underscores(&mut exchange.request.headers, routes.settings.underscores)?;
        let external = routes.settings.forwarding.use_remote_address;
        if external {
            exchange.client = Some(forwarded::mark(exchange, &routes.settings.forwarding));
        }
        request_id::assign(exchange, routes.settings.request_ids, external);
        let certificate = &routes.settings.client_certificate;
        client_certificate::apply(&mut exchange.request.headers, certificate, &self.downstream);
        if let Some(response) = paths::apply(exchange, &routes.settings.paths)? {
            return Ok(Answered { response, tunnel: None, problem: None });
        }
        // A CONNECT has no path that a route could be for.
        let found = if plain_connect { None } else { self.look_up(exchange, &routes) };
        exchange.route = found;
        may_switch(exchange, &routes, found)?;
        let drawn = found.and_then(|id| self.draw_first(exchange, &routes, id));
        let at = drawn.as_ref().and_then(|drawn| drawn.at);
        let backend = found.and_then(|id| backend_of(routes.table.route(id), at));
        let mut slot = None;
        for stage in stages(&routes, found, at) {
            match stage {
                Stage::Authorization(authorizer) => self.authorize(exchange, authorizer)?,
                Stage::Limits(limits) => slot = self.admit(exchange, limits, backend)?.or(slot),
                Stage::Cors(rules) => {
                    if let Some(response) = self.cross_origin(exchange, rules) {
                        return Ok(Answered { response, tunnel: None, problem: None });
                    }
                }
                Stage::Fault(fault) => self.inject(exchange, &routes, fault, backend).await?,
            }
        }
        let id = found.ok_or(RequestError::NoRoute)?;
        let route = routes.table.route(id);
        match &route.action {
            RouteAction::Forward(forward) => {
                let plan = self.plan(exchange, &routes, id, forward, drawn)?;
                self.forward(exchange, plan, interim, slot).await
            }
            RouteAction::Redirect(_) | RouteAction::Respond(_) | RouteAction::NonForwarding => {
                local(exchange, route)
            }
        }
    }

    fn authorize(&self, exchange: &Exchange, authorizer: &Authorizer) -> Result<(), RequestError> {
        let downstream = &self.downstream;
        let view = exchange.view();
        let facts = Facts {
            tls: downstream.tls,
            peer: downstream.identity.as_ref(),
            source_ip: downstream.direct.ip(),
            connection_ip: downstream.peer.ip(),
            remote_ip: exchange.client_ip(),
            destination: match &downstream.target {
                Target::Application { address, .. } => *address,
                Target::Service(_) | Target::Authority => downstream.local,
            },
            server_name: downstream.server_name.as_deref(),
            request: Some(&view),
        };
        for hit in authorizer.audits(&facts) {
            tracing::info!(client = %downstream.peer, method = %view.method, path = view.path, ?hit, "audited a request");
            self.worker.audits.count(hit.effect);
        }
        match authorizer.check(&facts) {
            Verdict::Allowed { .. } => Ok(()),
            Verdict::Denied { set, by } => {
                let peer = downstream.identity.as_ref().map_or("without identity", SpiffeId::as_str);
                let policy = by.unwrap_or("no policy allows it");
                tracing::info!(client = %downstream.peer, peer, method = %view.method, path = view.path, set, policy,
                    "denied a request");
                Err(RequestError::Denied(match by {
                    Some(by) => format!("{peer} is denied by {by}"),
                    None => format!("{peer} is not allowed by any policy of {set}"),
                }))
            }
        }
    }

    fn admit(
        &self,
        exchange: &mut Exchange,
        limits: &RequestLimits,
        backend: Option<&Backend>,
    ) -> Result<Option<Slot>, RequestError> {
        let mut told = Told::default();
        let admitted = limits.admit(
            Asking {
                view: exchange.view(),
                identity: self.downstream.identity.as_ref(),
                cluster: backend.map(|backend| backend.cluster.as_str()),
                client: || exchange.client_ip(),
                connection: &self.buckets,
                now: exchange.begun,
                draw: || self.worker.draw(),
            },
            &mut told,
        );
        let admitted = admitted.map_err(|refusal| match refusal {
            Refusal::Rate { retry_after, answer, .. } => {
                RequestError::RateLimited(refusal.to_string(), retry_after, answer.clone())
            }
            Refusal::Concurrency { .. } => RequestError::Overload(refusal.to_string()),
        });
        exchange.tokens.extend(told.tokens);
        for changes in told.passed {
            let mut headers = exchange.request.headers.clone();
            Words::new(exchange, Moment::Request).change([&*changes], &mut headers);
            exchange.request.headers = headers;
        }
        admitted
    }

    /// Notes that `rules` hold for a request, if they do, and answers it where it asks what another may do.
    fn cross_origin(&self, exchange: &mut Exchange, rules: &Arc<Cors>) -> Option<Response<Body>> {
        if rules.enabled != PerMillion::ALL && !rules.enabled.hit(self.worker.draw()) {
            return None;
        }
        exchange.cors = Some(Arc::clone(rules));
        let asked = &exchange.request;
        if !cors::is_preflight(&asked.method, &asked.headers) || !cors::is_answered(rules, &asked.headers) {
            return None;
        }
        let mut response = respond::preflight();
        cors::allow(rules, &asked.headers, response.headers_mut());
        Some(response)
    }

    fn look_up(&self, exchange: &Exchange, routes: &HttpRoutes) -> Option<RouteId> {
        match routes.table.lookup(&exchange.view(), || self.worker.draw()) {
            Lookup::Found(id) => Some(id),
            Lookup::NoVirtualHost | Lookup::NoRoute => None,
        }
    }

    /// Draws the backend where what the request passes on its way depends on it.
    fn draw_first(&self, exchange: &Exchange, routes: &HttpRoutes, id: RouteId) -> Option<Drawn> {
        let runtime = &routes.runtime[id.index()];
        match &routes.table.route(id).action {
            RouteAction::Forward(forward) if runtime.draws_first => {
                Some(self.draw(exchange, runtime, forward))
            }
            _ => None,
        }
    }

    /// Does `fault` to a request that goes to `backend`, if it is about that.
    async fn inject(
        &self,
        exchange: &mut Exchange,
        routes: &HttpRoutes,
        fault: &Fault,
        backend: Option<&Backend>,
    ) -> Result<(), RequestError> {
        if !fault::concerns(fault, &exchange.view(), backend.map(|backend| backend.cluster.as_str())) {
            return Ok(());
        }
        let injected = fault::draw(fault, &exchange.request.headers, || self.worker.draw());
        if !injected.is_any() {
            return Ok(());
        }
        let Some(suffering) = routes.counts.faults.begin(fault.max_active) else { return Ok(()) };
        exchange.fault = Some((suffering, injected.rate));
        if let Some(delay) = injected.delay {
            tokio::time::sleep(delay).await;
        }
        injected.abort.map_or(Ok(()), |abort| Err(abort.into()))
    }

    /// Makes the changes that are configured for an answer of the mesh itself: those of the limit that was reached, and those of
    /// the request's route, wherever on its way it was answered.
    fn mark(&self, exchange: &Exchange, error: &RequestError, response: &mut Response<Body>) {
        let words = Words::new(exchange, Moment::Local(response.status(), error.flags(), error.code()));
        let headers = response.headers_mut();
        if let RequestError::RateLimited(_, _, answer) = error {
            words.change([&answer.headers], headers);
        }
        if let Some(id) = exchange.route {
            change(exchange, id, &words, headers);
        }
    }

    /// The answer of the mesh itself to a request that failed.
    fn refuse(&self, exchange: &mut Exchange, error: &RequestError) -> Answered {
        let details = error.to_string();
        let mut response = respond::error(error, &details, exchange.asker());
        self.mark(exchange, error, &mut response);
        if error.blame() == crate::error::Blame::Mesh {
            tracing::debug!(client = %self.downstream.peer, token = error.token(), "answered a request: {details}");
        }
        exchange.grpc_status = respond::grpc_status(response.headers());
        Answered {
            response,
            tunnel: None,
            problem: Some(Problem::new(error.token(), error.flags(), details)),
        }
    }
}

/// Makes the changes of a route to an answer of the sidecar itself.
fn change(exchange: &Exchange, id: RouteId, words: &Words<'_>, response: &mut HeaderMap) {
    let Some(routes) = &exchange.routes else { return };
    let backend = backend_of(routes.table.route(id), exchange.backend);
    words.change_answer(&routes.table, id, backend, response);
}

impl Handler for Proxy {
    type Body = Accounted;

    async fn handle(&self, request: Request<Body>, interim: Interim) -> Reply<Accounted> {
        let (head, body) = request.into_parts();
        let mut exchange = Box::new(Exchange::new(&self.worker, &self.downstream, head, body));
        let (answered, close) = match self.answer(&mut exchange, &interim).await {
            Ok(answered) => (answered, false),
            Err(error) => {
                let answered = self.refuse(&mut exchange, &error);
                // What is left of the client's body is not worth waiting for when the body itself is broken.
                (answered, error.blame() == crate::error::Blame::Client)
            }
        };
        exchange.body.release();
        let Answered { mut response, mut tunnel, problem } = answered;
        if let Some(rules) = &exchange.cors {
            let asked = &exchange.request;
            let preflight = cors::is_preflight(&asked.method, &asked.headers);
            cors::mark(rules, &asked.headers, preflight, response.headers_mut());
        }
        for tokens in std::mem::take(&mut exchange.tokens) {
            respond::tell(tokens, response.headers_mut());
        }
        if let Some(routes) = &exchange.routes {
            server_header::apply(response.headers_mut(), &routes.settings.server);
            if routes.settings.request_ids.tell_client
                && let Some(id) = exchange.request.headers.get(REQUEST_ID)
            {
                response.headers_mut().insert(REQUEST_ID, id.clone());
            }
        }
        exchange.responding(response.status(), response.headers(), problem);
        exchange.carried = tunnel.as_ref().map(Tunnel::carried);
        if let Some(tunnel) = &mut tunnel
            && let Some(idle) = StreamLimits::of(&exchange).idle
        {
            tunnel.set_idle_timeout(idle);
        }
        let tunnel = tunnel.map(|tunnel| match exchange.take_pace() {
            Some(pace) => tunnel.slowed(pace),
            None => tunnel,
        });
        let bodiless = tunnel.is_some() || headers::is_bodiless(&exchange.request.method, response.status());
        let response = response.map(|body| Accounted::new(body, exchange, bodiless));
        Reply { response, tunnel, close }
    }
}

/// Whether a request may switch its connection to another protocol, where it asks to and has a route.
fn may_switch(exchange: &Exchange, routes: &HttpRoutes, route: Option<RouteId>) -> Result<(), RequestError> {
    let (Some(id), Some(protocol)) = (route, headers::upgrade(&exchange.request)) else { return Ok(()) };
    let of_route = match &routes.table.route(id).action {
        RouteAction::Forward(forward) => forward.upgrades.as_slice(),
        _ => &[],
    };
    match Upgrade::allows(of_route, &routes.settings.upgrades, &protocol) {
        true => Ok(()),
        false => Err(RequestError::Upgrade(protocol.into())),
    }
}

/// What a request passes on its way: what its backend (the one with the index `at`), its route or its listener says.
fn stages(routes: &HttpRoutes, route: Option<RouteId>, at: Option<usize>) -> &[Stage] {
    let runtime = route.map(|id| &routes.runtime[id.index()]);
    let of_backend = runtime.zip(at).and_then(|(runtime, at)| runtime.backends.get(at)?.stages.as_ref());
    of_backend.or_else(|| runtime?.stages.as_ref()).unwrap_or(&routes.stages)
}

/// The backend with the index `at`, where that is drawn, or the only one that a route has.
fn backend_of(route: &Route, at: Option<usize>) -> Option<&Backend> {
    let RouteAction::Forward(Forward { backends, .. }) = &route.action else { return None };
    match (at, &backends[..]) {
        (Some(at), backends) => backends.get(at),
        (None, [only]) => Some(only),
        (None, _) => None,
    }
}

/// The answer of a route that leads to no backend.
fn local(exchange: &mut Exchange, route: &Route) -> Result<Answered, RequestError> {
    let asker = exchange.asker();
    let mut response = match &route.action {
        RouteAction::Redirect(redirect) => {
            let view = exchange.view();
            let target = exchange.target();
            let location = filter::redirect_location(
                redirect,
                view.scheme,
                view.authority,
                &target,
                &route.matches.path,
            );
            let location = HeaderValue::from_str(&location).map_err(|_| {
                let what = format!("the redirect of route {:?} leads to {location:?}", route.name);
                RequestError::Configuration(StatusCode::INTERNAL_SERVER_ERROR, what)
            })?;
            respond::redirect(redirect.status, location)
        }
        RouteAction::Respond(configured) => respond::direct(configured, asker),
        RouteAction::Forward(_) | RouteAction::NonForwarding => {
            let what = format!("route {:?} is for servers without a sidecar", route.name);
            return Err(RequestError::Configuration(StatusCode::INTERNAL_SERVER_ERROR, what));
        }
    };
    if let Some(id) = exchange.route {
        let words = Words::new(exchange, Moment::Local(response.status(), "-", "direct_response"));
        change(exchange, id, &words, response.headers_mut());
    }
    exchange.grpc_status = respond::grpc_status(response.headers());
    Ok(Answered { response, tunnel: None, problem: None })
}
