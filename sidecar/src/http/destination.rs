//! Which configuration a request is served under.
//!
//! In: where its connection leads and, for the forward proxy, the authority that it names. Out: the routes of a listener,
//! asked for on demand; for a destination that the mesh does not know and policy lets through, routes made up here,
//! which lead to what its name resolves to, in plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::request::Parts;
use tulle_mesh::model::{
    Backend, Cluster as ClusterModel, Discovery, Domain, Endpoint, EndpointAddress, Forward, HttpConnection,
    LoadAssignment, OutlierDetection, PathMatch, Route, RouteAction, RouteConfiguration, RouteMatch,
    RouteSource, TrafficDirection, VirtualHost,
};
use tulle_mesh::route::RouteTable;

use super::headers;
use super::proxy::{Proxy, Target};
use crate::balance::Cluster;
use crate::config::OutboundPolicy;
use crate::dns::Lookups;
use crate::error::RequestError;
use crate::limit::Counts;
use crate::snapshot::{BackendRuntime, ChainProtocol, Current, HttpRoutes, Listener, RouteRuntime};
use crate::tcp::passthrough::SERVICE;
use crate::telemetry::metrics::HttpLabels;
use crate::worker::{NoListener, Worker};

/// Where the last request of a connection went: the next one mostly goes there too.
#[derive(Default)]
pub(super) struct Remembered {
    authority: Box<str>,
    name: Arc<str>,
    outside: Option<(Instant, Arc<HttpRoutes>)>,
}

/// How long what a name outside the mesh resolves to is used.
const RESOLVED_FOR: Duration = Duration::from_secs(30);
/// How long that may take.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The configuration of a request, and its routes.
pub(super) type Found = (Current, Arc<HttpRoutes>);

impl Proxy {
    /// The routes for a request to `authority`.
    pub(super) async fn routes(&self, authority: &str) -> Result<Found, RequestError> {
        match &self.downstream.target {
            Target::Application { address, chain } => {
                let current = self.worker.current();
                let listener = current.inbound_at(*address);
                let found = match listener.and_then(|listener| listener.chains.get(*chain)) {
                    Some(chain) => match &chain.protocol {
                        ChainProtocol::Http(routes) => Some(routes.clone()),
                        ChainProtocol::Tcp(_) => None,
                    },
                    None => None,
                };
                let gone = || format!("the listener on {address} is no longer configured for HTTP");
                let routes = found
                    .ok_or_else(|| RequestError::Configuration(StatusCode::SERVICE_UNAVAILABLE, gone()))?;
                Ok((current, routes))
            }
            Target::Service(name) => self.of_service(name).await,
            Target::Authority => {
                let name = self.name(authority)?;
                match self.of_service(&name).await {
                    Err(RequestError::NoListener(_, NoListener::Unknown))
                        if self.worker.outbound_policy == OutboundPolicy::AllowAny =>
                    {
                        let current = self.worker.current();
                        Ok((current, self.outside(&name).await?))
                    }
                    found => found,
                }
            }
        }
    }

    async fn of_service(&self, name: &Arc<str>) -> Result<Found, RequestError> {
        let no_listener = |why| RequestError::NoListener(name.as_ref().into(), why);
        let current = self.worker.outbound(name).await.map_err(no_listener)?;
        let listener = current.outbound.get(name).ok_or_else(|| no_listener(NoListener::Unavailable))?;
        let routes =
            http_routes(listener).ok_or_else(|| RequestError::NotHttp(name.as_ref().into()))?.clone();
        Ok((current, routes))
    }

    /// The name of the listener for an authority: in lower case, with a port.
    pub(super) fn name(&self, authority: &str) -> Result<Arc<str>, RequestError> {
        let mut remembered = self.remembered.borrow_mut();
        if *remembered.authority == *authority && !authority.is_empty() {
            return Ok(remembered.name.clone());
        }
        let name: Arc<str> = listener_name(authority)?.into();
        *remembered = Remembered { authority: authority.into(), name: name.clone(), outside: None };
        Ok(name)
    }

    /// The part of `cluster`, which leads wherever the client was going, that leads to where it was: the address that the
    /// connection names, else the one that the request does.
    pub(super) fn original(&self, request: &Parts, cluster: &Arc<Cluster>) -> Option<Arc<Cluster>> {
        let named = || listener_name(headers::authority(request)).ok()?.parse().ok();
        let address = self.downstream.original.or_else(named)?;
        Some(self.worker.originals.of(cluster, address))
    }

    /// Routes to a destination outside the mesh.
    async fn outside(&self, name: &Arc<str>) -> Result<Arc<HttpRoutes>, RequestError> {
        if let Some((since, routes)) = &self.remembered.borrow().outside
            && since.elapsed() < RESOLVED_FOR
        {
            return Ok(routes.clone());
        }
        let addresses = resolve(&self.worker.lookups, name).await?;
        let mut remembered = self.remembered.borrow_mut();
        let before = remembered.outside.take();
        let before = before.as_ref().and_then(|(_, routes)| cluster_of(routes));
        let routes = Arc::new(passthrough(&self.worker, &addresses, before)?);
        if *remembered.name == **name {
            remembered.outside = Some((Instant::now(), routes.clone()));
        }
        Ok(routes)
    }
}

/// The routes of the first chain that carries HTTP.
fn http_routes(listener: &Listener) -> Option<&Arc<HttpRoutes>> {
    listener.chains.iter().find_map(|chain| match &chain.protocol {
        ChainProtocol::Http(routes) => Some(routes),
        ChainProtocol::Tcp(_) => None,
    })
}

/// The addresses of a listener's name, which is outside the mesh.
pub(super) async fn resolve(lookups: &Lookups, name: &str) -> Result<Vec<SocketAddr>, RequestError> {
    let error = |why: String| RequestError::Dns(name.into(), why);
    let (host, port) = name.rsplit_once(':').ok_or_else(|| error("it has no port".into()))?;
    let port: u16 = port.parse().map_err(|_| error(format!("{port:?} is not a port")))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match tokio::time::timeout(RESOLVE_TIMEOUT, lookups.resolve(host)).await {
        Ok(Ok(found)) => Ok(found.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()),
        Ok(Err(why)) => Err(error(why.reason)),
        Err(_) => Err(error(format!("no answer within {RESOLVE_TIMEOUT:?}"))),
    }
}

/// `<host>:<port>` in lower case, without a trailing dot; the port of HTTP where there is none.
fn listener_name(authority: &str) -> Result<String, RequestError> {
    let invalid = || RequestError::Authority(authority.into());
    let parsed: http::uri::Authority = authority.parse().map_err(|_| invalid())?;
    let port = authority.strip_prefix(parsed.host()).ok_or_else(invalid)?;
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse::<u16>().map_err(|_| invalid())?,
        None if port.is_empty() => 80,
        None => return Err(invalid()),
    };
    let host = parsed.host().trim_end_matches('.').to_ascii_lowercase();
    if host.is_empty() { Err(invalid()) } else { Ok(format!("{host}:{port}")) }
}

fn cluster_of(routes: &HttpRoutes) -> Option<&Arc<Cluster>> {
    routes.runtime.first()?.backends.first()?.cluster.as_ref()
}

/// Routes that lead every request to `addresses` in plaintext.
fn passthrough(
    worker: &Worker,
    addresses: &[SocketAddr],
    previous: Option<&Arc<Cluster>>,
) -> Result<HttpRoutes, RequestError> {
    let cluster = plaintext_cluster(worker, addresses, previous);
    let metrics = &worker.telemetry.metrics;
    let series = |backend: &str| {
        metrics.http(HttpLabels {
            direction: TrafficDirection::Outbound,
            service: SERVICE.into(),
            route: "".into(),
            backend: backend.into(),
        })
    };
    let configuration = passthrough_routes();
    let table = RouteTable::compile(&configuration)
        .map_err(|error| RequestError::Configuration(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    let backend = BackendRuntime { cluster: Some(cluster), series: series(SERVICE), stages: None };
    let runtime = RouteRuntime {
        stages: None,
        session: None,
        draws_first: false,
        backends: vec![backend],
        mirrors: Vec::new(),
        local: series(""),
    };
    Ok(HttpRoutes {
        settings: HttpConnection::new(RouteSource::Named(SERVICE.into())),
        stages: Vec::new(),
        counts: Counts::default(),
        runtime: vec![runtime],
        table: Arc::new(table),
        unrouted: series(""),
        spans: None,
        tells_tls: false,
    })
}

/// A cluster of addresses outside the mesh.
pub(super) fn plaintext_cluster(
    worker: &Worker,
    addresses: &[SocketAddr],
    previous: Option<&Arc<Cluster>>,
) -> Arc<Cluster> {
    let endpoints = addresses.iter().map(|address| Endpoint::new(EndpointAddress::Socket(*address)));
    let model = ClusterModel {
        outlier_detection: Some(OutlierDetection::MESH),
        ..ClusterModel::new(SERVICE, Discovery::OriginalDestination)
    };
    let endpoints = LoadAssignment::new(SERVICE, endpoints.collect());
    let series = worker.telemetry.metrics.cluster(&SERVICE.into());
    Cluster::build(Arc::new(model), Some(&endpoints), previous, series)
}

fn passthrough_routes() -> RouteConfiguration {
    let forward = Forward::new(vec![Backend::new(SERVICE, 1)]);
    let matches = RouteMatch::new(PathMatch::Prefix(String::new()));
    let route = Route::new(SERVICE, matches, RouteAction::Forward(forward));
    let host = VirtualHost::new(SERVICE, vec![Domain::Any], vec![route]);
    RouteConfiguration::new(SERVICE, vec![host])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_names_a_listener() {
        let name = |authority| listener_name(authority).ok();
        assert_eq!(name("Cart.Shop").as_deref(), Some("cart.shop:80"));
        assert_eq!(name("cart.shop.:8080").as_deref(), Some("cart.shop:8080"));
        assert_eq!(name("[fd00::1]").as_deref(), Some("[fd00::1]:80"));
        for bad in ["", "a:b:c", "a@b", "a:99999", "a b", ":80"] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
    }
}
