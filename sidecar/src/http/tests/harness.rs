//! Proxies in front of applications, with one route each.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version};
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};
use tulle_mesh::authorize::Authorizer;
use tulle_mesh::model::{
    self, Backend, ClientCertificate, Domain, Forward, HttpConnection, HttpFilter, LoadBalancer, PathMatch,
    Route, RouteAction, RouteConfiguration, RouteMatch, RouteSource, TrafficDirection, VirtualHost,
};
use tulle_mesh::route::RouteTable;

use crate::balance::Cluster;
use crate::http::accounted::Accounted;
use crate::http::body::{Body, BodyError};
use crate::http::proxy::{Downstream, Proxy, Target};
use crate::http::server::{Handler, Interim, Reply, ServerOptions, serve_http1, serve_http2};
use crate::io::{Prefixed, Stream};
use crate::limit::Said;
use crate::snapshot::{
    BackendRuntime, Chain, ChainProtocol, Filters, HttpRoutes, Listener, RouteRuntime, Snapshot,
};
use crate::telemetry::metrics::{HttpLabels, Registry};
use crate::tls::{self, Material};
use crate::worker::Worker;

/// What a proxy is configured with; to be changed by each test.
pub(super) struct Setup {
    pub(super) direction: TrafficDirection,
    pub(super) route: Route,
    pub(super) cluster: model::Cluster,
    pub(super) endpoints: Vec<model::Endpoint>,
    /// Of the cluster `mirror`.
    pub(super) mirror: Option<SocketAddr>,
    pub(super) filters: Vec<HttpFilter>,
    pub(super) identity: Option<&'static str>,
    pub(super) tls: Option<Arc<Material>>,
}

impl Setup {
    /// One route to `endpoints`, outbound.
    pub(super) fn new(endpoints: &[SocketAddr]) -> Self {
        let matches = RouteMatch::new(PathMatch::Prefix("/".into()));
        let route = Route::new("all", matches, RouteAction::Forward(forward()));
        Self {
            direction: TrafficDirection::Outbound,
            route,
            cluster: cluster(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            mirror: None,
            filters: Vec::new(),
            identity: None,
            tls: None,
        }
    }

    /// The same, inbound.
    pub(super) fn inbound(app: SocketAddr) -> Self {
        Self { direction: TrafficDirection::Inbound, ..Self::new(&[app]) }
    }

    /// How the route forwards.
    pub(super) fn forward(&mut self) -> &mut Forward {
        match &mut self.route.action {
            RouteAction::Forward(forward) => forward,
            _ => panic!("the route forwards"),
        }
    }

    /// The proxy.
    pub(super) fn build(self) -> Mesh {
        let registry = crate::worker::testing::shared().0;
        let metrics = &registry.telemetry.metrics;
        let at = SocketAddr::from(([10, 1, 1, 1], 80));
        let upstream = build_cluster(metrics, self.cluster, self.endpoints);
        let mirror = self.mirror.map(|address| build_cluster(metrics, cluster(), vec![endpoint(&address)]));
        let routes = routes(metrics, self.direction, &self.route, &upstream, mirror.as_ref(), &self.filters);
        let mut snapshot = Snapshot { tls: self.tls, ..Snapshot::default() };
        let target = match self.direction {
            TrafficDirection::Outbound => {
                snapshot.outbound.insert("cart.shop:80".into(), Arc::new(listener(self.direction, routes)));
                Target::Authority
            }
            TrafficDirection::Inbound => {
                snapshot.inbound.insert(at, Arc::new(listener(self.direction, routes)));
                Target::Application { address: at, chain: 0 }
            }
        };
        let worker = Worker::new(0, registry, Arc::new(snapshot));
        let downstream = Downstream {
            tls: self.identity.is_some(),
            direction: self.direction,
            peer: SocketAddr::from(([10, 2, 2, 2], 4321)),
            direct: SocketAddr::from(([10, 2, 2, 2], 4321)),
            local: at,
            original: None,
            identity: self.identity.map(|id| id.parse().expect("valid")),
            certificate: None,
            tls_facts: None,
            server_name: None,
            target,
        };
        Mesh { proxy: Rc::new(Proxy::new(worker.clone(), Rc::new(downstream))), worker, cluster: upstream }
    }
}

/// A proxy, and what it works on.
pub(super) struct Mesh {
    pub(super) proxy: Rc<Proxy>,
    pub(super) worker: Rc<Worker>,
    pub(super) cluster: Arc<Cluster>,
}

async fn serve_peer(mesh: Rc<Mesh>, material: Arc<Material>, socket: TcpStream, peer: SocketAddr) {
    let alpn = vec!["h2".into(), "http/1.1".into()];
    let settings = model::DownstreamTls { require_client_certificate: true, alpn };
    let accepted = tls::accept(Prefixed::new(Bytes::new(), socket), &material, &settings, peer).await;
    let Ok(accepted) = accepted else { return };
    let old = &mesh.proxy.downstream;
    let Target::Application { address, chain } = old.target else { panic!("inbound") };
    let downstream = Downstream {
        tls: true,
        direction: old.direction,
        peer,
        direct: peer,
        local: old.local,
        original: None,
        identity: accepted.peer,
        certificate: None,
        tls_facts: None,
        server_name: None,
        target: Target::Application { address, chain },
    };
    let proxy = Proxy::new(mesh.worker.clone(), Rc::new(downstream));
    let stream = Stream::TlsServer(Box::new(accepted.stream));
    let (options, drain) = (ServerOptions::default(), &mesh.worker.drain);
    match accepted.alpn {
        Some(tls::Alpn::Http2) => serve_http2(stream, &proxy, &options, drain).await,
        _ => serve_http1(stream, &proxy, &options, drain).await,
    }
}

/// An answer as the client gets it.
#[derive(Debug)]
pub(super) struct Got {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Result<Bytes, BodyError>,
}

impl Got {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

impl Mesh {
    /// Has a request answered.
    pub(super) async fn send(&self, request: Request<Body>) -> Got {
        let reply: Reply<Accounted> = self.proxy.handle(request, Interim::default()).await;
        let (head, body) = reply.response.into_parts();
        let body = body.collect().await.map(|whole| whole.to_bytes());
        Got { status: head.status, headers: head.headers, body }
    }

    /// Puts a configuration in force in which the cluster has these endpoints instead.
    pub(super) fn moved(&self, endpoints: &[SocketAddr]) {
        let series = self.worker.telemetry.metrics.cluster(&self.cluster.name);
        let assignment =
            model::LoadAssignment::new(&*self.cluster.name, endpoints.iter().map(endpoint).collect());
        let moved = Cluster::build(Arc::new(cluster()), Some(&assignment), Some(&self.cluster), series);
        let current = self.worker.current();
        self.worker.install(Arc::new(Snapshot {
            outbound: current.outbound.clone(),
            clusters: HashMap::from([(Arc::clone(&moved.name), moved)]),
            ..Snapshot::default()
        }));
    }

    /// Serves connections of peers over mesh TLS, as the holder of `material`: where.
    pub(super) async fn serve(self, material: Arc<Material>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let mesh = Rc::new(self);
        tokio::task::spawn_local(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                tokio::task::spawn_local(serve_peer(mesh.clone(), material.clone(), socket, peer));
            }
        });
        address
    }

    /// The value of a metric with all of these texts in its line; 0 where there is none.
    pub(super) fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let text = self.worker.telemetry.metrics.encode();
        let lines =
            text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

/// A request for `http://cart.shop/x` over HTTP/1.1.
pub(super) fn request(method: Method, fields: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Body> {
    let body: Bytes = body.into();
    let mut request = Request::builder().method(method).uri("/x?y=1").version(Version::HTTP_11);
    request = request.header("host", "cart.shop");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let body = if body.is_empty() { Body::Empty } else { Body::Full(body) };
    request.body(body).expect("valid")
}

pub(super) fn get() -> Request<Body> {
    request(Method::GET, &[], "")
}

pub(super) fn post(body: impl Into<Bytes>) -> Request<Body> {
    request(Method::POST, &[], body)
}

pub(super) fn grpc() -> Request<Body> {
    request(Method::POST, &[("content-type", "application/grpc"), ("te", "trailers")], "message")
}

fn forward() -> Forward {
    Forward::new(vec![Backend::new("cart", 1)])
}

pub(super) fn endpoint(address: &SocketAddr) -> model::Endpoint {
    model::Endpoint::new(model::EndpointAddress::Socket(*address))
}

fn cluster() -> model::Cluster {
    model::Cluster {
        load_balancer: LoadBalancer::RoundRobin,
        outlier_detection: Some(model::OutlierDetection::MESH),
        ..model::Cluster::new("cart", model::Discovery::Eds("cart".into()))
    }
}

fn build_cluster(
    metrics: &Registry,
    cluster: model::Cluster,
    endpoints: Vec<model::Endpoint>,
) -> Arc<Cluster> {
    let assignment = model::LoadAssignment::new(&cluster.name, endpoints);
    let series = metrics.cluster(&cluster.name.as_str().into());
    Cluster::build(Arc::new(cluster), Some(&assignment), None, series)
}

fn routes(
    metrics: &Registry,
    direction: TrafficDirection,
    route: &Route,
    cluster: &Arc<Cluster>,
    mirror: Option<&Arc<Cluster>>,
    filters: &[HttpFilter],
) -> HttpRoutes {
    let series = |route: &str, backend: &str| {
        metrics.http(HttpLabels {
            direction,
            service: "cart.shop:80".into(),
            route: route.into(),
            backend: backend.into(),
        })
    };
    let domains = vec![Domain::Exact("cart.shop".into())];
    let host = VirtualHost::new("cart", domains, vec![route.clone()]);
    let configuration = RouteConfiguration::new("cart", vec![host]);
    let clusters: HashMap<&str, &Arc<Cluster>> =
        [("cart", cluster)].into_iter().chain(mirror.map(|mirror| ("mirror", mirror))).collect();
    let mut filters = Filters::new(filters, "", None);
    let (backends, mirrors) = match &route.action {
        RouteAction::Forward(forward) => (forward.backends.as_slice(), forward.mirrors.as_slice()),
        _ => Default::default(),
    };
    let cluster = |name: &str| clusters.get(name).map(|cluster| Arc::clone(cluster));
    let backend = |backend: &model::Backend| BackendRuntime {
        cluster: cluster(&backend.cluster),
        series: series("all", &backend.cluster),
        stages: None,
    };
    let runtime = RouteRuntime {
        stages: Some(filters.stages(&[&route.filters], Said::default(), true)),
        session: None,
        draws_first: false,
        backends: backends.iter().map(backend).collect(),
        mirrors: mirrors.iter().map(|mirror| cluster(&mirror.cluster)).collect(),
        local: series("all", ""),
    };
    HttpRoutes {
        settings: HttpConnection {
            client_certificate: ClientCertificate::Identity,
            ..HttpConnection::new(RouteSource::Named("cart".into()))
        },
        stages: filters.stages(&[], Said::default(), true),
        counts: filters.into_counts(),
        table: Arc::new(RouteTable::compile(&configuration).expect("valid")),
        runtime: vec![runtime],
        unrouted: series("", ""),
        spans: None,
        tells_tls: false,
    }
}

fn listener(direction: TrafficDirection, routes: HttpRoutes) -> Listener {
    let model = model::Listener::new("cart.shop:80", direction, Vec::new());
    let chain = Chain {
        authorizer: Authorizer::compile(Vec::new()),
        protocol: ChainProtocol::Http(Arc::new(routes)),
    };
    Listener {
        name: "cart.shop:80".into(),
        model: Arc::new(model),
        chains: vec![chain],
        last_use: Arc::default(),
    }
}
