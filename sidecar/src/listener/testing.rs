//! Listeners, clusters and places for tests, with real sockets.

use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, LocalOptions};
use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model::{self, Authorization, ChainMatch, DownstreamTls, FilterChain, TrafficDirection};

pub(crate) use super::place::Role;
use super::{Acceptor, Place};
use crate::balance::Cluster;
use crate::snapshot::{Chain, ChainProtocol, Listener, Snapshot, TcpRoutes};
use crate::telemetry::metrics::{HttpLabels, Registry};
use crate::worker::{Seat, Worker};

/// Runs a test on a runtime as workers have it.
pub(crate) fn on_a_worker(test: impl Future<Output = ()>) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let test = Box::pin(test);
    let result = runtime.expect("a runtime").block_on(async { tokio::time::timeout(LIMIT, test).await });
    result.expect("the test ends in time");
}

/// Only a test that fails takes so long, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(180);

/// A listener's socket and what it is for.
pub(crate) fn place(role: Role) -> (std::net::TcpListener, Arc<Place>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("bound");
    (listener, Arc::new(Place { address, role }))
}

/// Accepts connections of a place on `worker`.
pub(crate) fn accept(worker: &Rc<Worker>, (listener, place): (std::net::TcpListener, Arc<Place>)) {
    let (seat, _) = Seat::new();
    let acceptor = Acceptor::new(listener, place, worker.clone(), vec![seat]).expect("a reactor");
    tokio::task::spawn_local(acceptor.run());
}

/// A snapshot with one outbound listener.
pub(crate) fn outbound(name: &str, listener: Listener) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.outbound.insert(name.into(), Arc::new(listener));
    snapshot
}

/// A snapshot with one inbound listener.
pub(crate) fn inbound(address: SocketAddr, listener: Listener) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.inbound.insert(address, Arc::new(listener));
    snapshot
}

/// A chain that carries bytes to `endpoints` (without any, to where a captured connection was going), by default for all
/// connections.
pub(crate) struct TcpChain {
    /// Which connections it is for.
    pub(crate) matches: ChainMatch,
    /// Mesh TLS.
    pub(crate) tls: Option<DownstreamTls>,
    /// Who may connect.
    pub(crate) authorization: Vec<Authorization>,
    /// Where to; the first is not the only one that may be drawn.
    pub(crate) endpoints: Vec<SocketAddr>,
}

impl TcpChain {
    /// For all connections.
    pub(crate) fn to(endpoints: &[SocketAddr]) -> Self {
        let endpoints = endpoints.to_vec();
        Self { matches: ChainMatch::default(), tls: None, authorization: Vec::new(), endpoints }
    }

    /// For some connections.
    pub(crate) fn when(mut self, set: impl FnOnce(&mut ChainMatch)) -> Self {
        set(&mut self.matches);
        self
    }
}

/// A listener of such chains.
pub(crate) fn listener(metrics: &Registry, chains: Vec<TcpChain>) -> Listener {
    let (chains, models) = chains.into_iter().map(|chain| build(metrics, chain)).unzip();
    let model = model::Listener::new("test", TrafficDirection::Outbound, models);
    Listener { name: "test".into(), model: Arc::new(model), chains, last_use: Arc::default() }
}

fn build(metrics: &Registry, chain: TcpChain) -> (Chain, FilterChain) {
    let settings = model::TcpProxy::new(vec![("test".into(), 1)]);
    let series = metrics.tcp(HttpLabels {
        direction: TrafficDirection::Outbound,
        service: "test".into(),
        route: "".into(),
        backend: "test".into(),
    });
    let cluster = cluster(metrics, &chain.endpoints);
    let model = FilterChain {
        name: "test".into(),
        matches: chain.matches,
        tls: chain.tls,
        authorization: chain.authorization.clone(),
        protocol: model::Protocol::Tcp(settings.clone()),
    };
    let protocol = ChainProtocol::Tcp(TcpRoutes { settings, backends: vec![(Some(cluster), 1, series)] });
    (Chain { authorizer: Authorizer::compile(chain.authorization), protocol }, model)
}

fn cluster(metrics: &Registry, endpoints: &[SocketAddr]) -> Arc<Cluster> {
    let endpoints =
        endpoints.iter().map(|address| model::Endpoint::new(model::EndpointAddress::Socket(*address)));
    let assignment = model::LoadAssignment::new("test", endpoints.collect());
    let discovery = match assignment.endpoints().next() {
        Some(_) => model::Discovery::Static(assignment.clone()),
        None => model::Discovery::OriginalDestination,
    };
    let cluster = model::Cluster {
        load_balancer: model::LoadBalancer::RoundRobin,
        ..model::Cluster::new("test", discovery)
    };
    Cluster::build(Arc::new(cluster), Some(&assignment), None, metrics.cluster(&"test".into()))
}

/// An address that refuses connections.
pub(crate) async fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("bound")
}

/// A server, and the connections that it accepts as they come.
pub(crate) async fn server() -> (SocketAddr, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    (listener.local_addr().expect("bound"), listener)
}

/// Connects to a place.
pub(crate) async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("it listens")
}
