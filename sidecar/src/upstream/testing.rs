//! A cluster of one endpoint, an origin that follows a script, and a handler that forwards to it.

use std::cell::OnceCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use tokio::net::TcpListener;
use tulle_mesh::identity::SpiffeId;
use tulle_mesh::model::{
    self, Discovery, EndpointAddress, Limits, LoadAssignment, LoadBalancer, UpstreamTls,
};

use super::{Answer, HttpVersion, Pools, SendError, SendOptions};
use crate::balance::{Cluster, Endpoint};
use crate::http::body::Body;
use crate::http::server::testing::{Client, Serve};
use crate::http::server::{Handler, Interim, Reply};

/// A cluster of one endpoint, and one worker's connections to it.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) pools: Rc<Pools>,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) version: HttpVersion,
    proven: Rc<OnceCell<SpiffeId>>,
}

impl Upstream {
    /// The cluster whose endpoint is at `address`.
    pub(crate) fn new(address: SocketAddr, version: HttpVersion) -> Self {
        Self::limited(address, version, Limits::default())
    }

    /// The same with limits.
    pub(crate) fn limited(address: SocketAddr, version: HttpVersion, limits: Limits) -> Self {
        Self::build(address, version, limits, None)
    }

    /// The same with a sidecar at its endpoint, which has to be `identity`.
    pub(crate) fn meshed(address: SocketAddr, version: HttpVersion, identity: &str) -> Self {
        Self::build(address, version, Limits::default(), Some(identity.parse().expect("valid")))
    }

    /// The same with a change to its cluster.
    pub(crate) fn with(self, change: impl FnOnce(&mut model::Cluster)) -> Self {
        let mut model = (*self.cluster.model).clone();
        change(&mut model);
        let assignment = match &model.discovery {
            Discovery::Static(assignment) => assignment.clone(),
            _ => unreachable!("built so"),
        };
        let cluster = Cluster::build(Arc::new(model), Some(&assignment), Some(&self.cluster), Arc::default());
        Self { cluster, ..self }
    }

    fn build(address: SocketAddr, version: HttpVersion, limits: Limits, identity: Option<SpiffeId>) -> Self {
        let tls = identity.as_ref().map(|_| UpstreamTls {
            sni: "outbound_.80_._.test".into(),
            subject_alt_names: Vec::new(),
            alpn: Vec::new(),
            only_meshed_endpoints: true,
        });
        let endpoint = model::Endpoint {
            meshed: identity.is_some(),
            identity,
            ..model::Endpoint::new(EndpointAddress::Socket(address))
        };
        let assignment = LoadAssignment::new("test", vec![endpoint]);
        let cluster = model::Cluster {
            load_balancer: LoadBalancer::RoundRobin,
            limits,
            tls,
            ..model::Cluster::new("test", Discovery::Static(assignment.clone()))
        };
        let cluster = Cluster::build(Arc::new(cluster), Some(&assignment), None, Arc::default());
        let endpoint = Arc::clone(cluster.endpoints.iter().next().expect("one endpoint"));
        Self { pools: Rc::default(), cluster, endpoint, version, proven: Rc::default() }
    }

    /// Sends a request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Answer, SendError> {
        self.send_with(request, &Interim::default()).await
    }

    /// Sends a request, and interim responses to `interim`.
    pub(crate) async fn send_with(
        &self,
        request: Request<Body>,
        interim: &Interim,
    ) -> Result<Answer, SendError> {
        let options = SendOptions {
            cluster: &self.cluster,
            tls: None,
            version: self.version,
            interim,
            proven: &self.proven,
        };
        self.pools.send(&self.endpoint, request, options).await
    }

    /// A handler that forwards everything, and answers 502 with the error where there is no answer.
    pub(crate) fn forward(self) -> impl Handler {
        Serve(move |request, interim| {
            let upstream = self.clone();
            async move {
                match upstream.send_with(request, &interim).await {
                    Ok(Answer { response, tunnel, .. }) => Reply { response, tunnel, close: false },
                    Err(error) => {
                        let mut response = Response::new(Body::Full(Bytes::from(format!("{error:?}"))));
                        *response.status_mut() = StatusCode::BAD_GATEWAY;
                        Reply { response, tunnel: None, close: false }
                    }
                }
            }
        })
    }
}

/// A request without a body.
pub(crate) fn get(path: &str) -> Request<Body> {
    Request::get(path).header("host", "origin").body(Body::Empty).expect("valid")
}

/// A request with this body.
pub(crate) fn post(body: &'static str) -> Request<Body> {
    Request::post("/")
        .header("host", "origin")
        .body(Body::Full(Bytes::from_static(body.as_bytes())))
        .expect("valid")
}

/// An origin whose connections the test serves itself.
pub(crate) struct Origin(TcpListener);

impl Origin {
    /// One on a free port.
    pub(crate) async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.expect("a free port"))
    }

    /// Where it is.
    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("bound")
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> Client {
        let (socket, _) = self.0.accept().await.expect("listening");
        socket.set_nodelay(true).expect("open");
        Client(socket)
    }

    /// Whether nobody is waiting to be accepted.
    pub(crate) async fn is_left_alone(&self) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(50), self.0.accept()).await.is_err()
    }
}
