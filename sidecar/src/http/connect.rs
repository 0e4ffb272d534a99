//! CONNECT: a connection of bytes, asked for over HTTP.
//!
//! In: a request of the forward proxy's client that names a host and a port. Out: 200 and a tunnel. To a TCP service it
//! leads as a connection would; to an HTTP service whose listener allows it, to where a request for `/` would go, and as the
//! bytes are the client's own (mostly TLS) no further rule applies. Unknown destinations are dialled where policy lets them.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};
use smallvec::SmallVec;
use tulle_mesh::model::{RouteAction, TrafficDirection, Upgrade};
use tulle_mesh::route::{Lookup, RequestView, split};

use super::body::Body;
use super::destination::{plaintext_cluster, resolve};
use super::exchange::Exchange;
use super::headers;
use super::problem::Problem;
use super::proxy::{Answered, Proxy};
use super::upgrade::{Tunnel, TunnelEnd};
use crate::balance::{Cluster, Limit, Outcome, Pick};
use crate::config::OutboundPolicy;
use crate::error::{RequestError, send_token};
use crate::retry::{End, Rules};
use crate::snapshot::{ChainProtocol, HttpRoutes, Listener};
use crate::upstream::{self, ConnectError, Hold, SendError};
use crate::worker::NoListener;

impl Proxy {
    /// Opens a tunnel to the host and port that the request names.
    pub(super) async fn connect(&self, exchange: &mut Exchange) -> Result<Answered, RequestError> {
        let name = self.name(headers::authority(&exchange.request))?;
        let cluster = match self.worker.outbound(&name).await {
            Ok(current) => {
                let listener = current.outbound.get(&name).cloned();
                if let Some(listener) = &listener {
                    may_connect(listener)?;
                }
                exchange.current = Some(current);
                exchange.service = Some(name.clone());
                let cluster = listener.and_then(|listener| self.cluster(exchange, &listener));
                let cluster = cluster.ok_or_else(|| RequestError::NoEndpoint(name.as_ref().into()))?;
                let original =
                    cluster.is_original_destination().then(|| self.original(&exchange.request, &cluster));
                original.flatten().unwrap_or(cluster)
            }
            Err(NoListener::Unknown) if self.worker.outbound_policy == OutboundPolicy::AllowAny => {
                let addresses = resolve(&self.worker.lookups, &name).await?;
                plaintext_cluster(&self.worker, &addresses, None)
            }
            Err(why) => return Err(RequestError::NoListener(name.as_ref().into(), why)),
        };
        let tunnel = self.dial(exchange, &cluster).await?;
        Ok(Answered { response: Response::new(Body::Empty), tunnel: Some(tunnel), problem: None })
    }

    /// The cluster that a connection to `listener` leads to.
    fn cluster(&self, exchange: &mut Exchange, listener: &Listener) -> Option<Arc<Cluster>> {
        match &listener.chains.first()?.protocol {
            ChainProtocol::Tcp(routes) => {
                let weights = routes.backends.iter().map(|(_, weight, _)| *weight);
                routes.backends[split::choose(weights, self.worker.draw())?].0.clone()
            }
            ChainProtocol::Http(routes) => self.cluster_of_root(exchange, routes),
        }
    }

    fn cluster_of_root(&self, exchange: &mut Exchange, routes: &Arc<HttpRoutes>) -> Option<Arc<Cluster>> {
        let none = HeaderMap::new();
        let root = RequestView::new(&Method::GET, headers::authority(&exchange.request), "/", &none);
        let Lookup::Found(id) = routes.table.lookup(&root, || self.worker.draw()) else { return None };
        let RouteAction::Forward(forward) = &routes.table.route(id).action else { return None };
        let at = split::choose(forward.backends.iter().map(|backend| backend.weight), self.worker.draw())?;
        exchange.routes = Some(routes.clone());
        (exchange.route, exchange.backend) = (Some(id), Some(at));
        routes.runtime[id.index()].backends[at].cluster.clone()
    }

    /// Connects to an endpoint of `cluster`; to another one where that fails.
    async fn dial(&self, exchange: &mut Exchange, cluster: &Arc<Cluster>) -> Result<Tunnel, RequestError> {
        let rules = Rules {
            policy: None,
            concerned: true,
            idempotent: false,
            is_retry: false,
            direction: TrafficDirection::Outbound,
        };
        cluster.count_request(exchange.begun);
        let mut tried = SmallVec::<[u64; 4]>::new();
        let mut permit = None;
        let mut retries = 0;
        loop {
            let now = Instant::now();
            let pick = Pick { now, random: self.worker.draw_u64(), hash: None, tried: &tried };
            let no_endpoint = |_| RequestError::NoEndpoint(cluster.name.as_ref().into());
            let endpoint = cluster.pick(&pick).map_err(no_endpoint)?.clone();
            tried.push(endpoint.id);
            let request = cluster.permit(Limit::Requests).map_err(RequestError::Limit)?;
            let connection = cluster.permit(Limit::Connections).map_err(RequestError::Limit)?;
            exchange.begin_attempt(cluster.begin(&endpoint), request, permit.take(), "");
            let material = exchange.current.as_ref().and_then(|current| current.tls.as_ref());
            let error = match upstream::connect(cluster, &endpoint, material, None).await {
                Ok(connected) => {
                    exchange.proved(connected.peer);
                    exchange.answered(StatusCode::OK, None, Some(Outcome::Success));
                    let end = TunnelEnd::http1(connected.stream, Bytes::new());
                    return Ok(Tunnel::new(end, Hold::Connection(connection)));
                }
                Err(error) => error,
            };
            let blamed = !matches!(error, ConnectError::NoCertificate);
            let error = SendError::Connect(error);
            let token = send_token(&error);
            let error = RequestError::Attempt(endpoint.address, error);
            exchange.failed(
                Problem::new(token, error.flags(), error.to_string()),
                blamed.then_some(Outcome::Unreachable),
            );
            let end = End::NotProcessed { connect: true };
            let pause = rules.decide(end, retries, self.worker.draw_u64());
            permit = pause.and_then(|_| cluster.retry_permit(Instant::now()));
            let (Some(pause), Some(_)) = (pause, &permit) else { return Err(error) };
            retries += 1;
            exchange.end_attempt();
            tokio::time::sleep(pause).await;
        }
    }
}

/// Of an HTTP service its listener says whether a CONNECT may lead there.
fn may_connect(listener: &Listener) -> Result<(), RequestError> {
    match listener.chains.first().map(|chain| &chain.protocol) {
        Some(ChainProtocol::Http(routes))
            if !Upgrade::allows(&[], &routes.settings.upgrades, Upgrade::CONNECT) =>
        {
            Err(RequestError::Upgrade(Upgrade::CONNECT.into()))
        }
        _ => Ok(()),
    }
}
