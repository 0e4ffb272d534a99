//! A control plane that says what the test tells it to, over real TLS and gRPC.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource as Wire,
};
use futures_util::future::BoxFuture;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tulle_mesh::xds::{Kind, Resource, version};

use super::{Control, Handle};
use crate::config::{self, Config};
use crate::telemetry::{self, Telemetry};
use crate::tls::testing::{Authority, Request as LeafRequest};
use crate::tls::{CertificateFacts, CertificateRequest, CertificateResponse};

/// The control plane's own identity.
pub(crate) const CONTROL_PLANE: &str = "spiffe://mesh.test/ns/tulle-system/sa/tulle-control-plane";
/// The workload of the tests.
pub(crate) const CART: &str = "spiffe://mesh.test/ns/shop/sa/cart";
/// Nothing takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with the files of a sidecar's configuration, and the authority behind them.
pub(crate) struct Mesh {
    pub(crate) authority: Arc<Authority>,
    pub(crate) folder: TempDir,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let mesh =
            Self { authority: Arc::new(Authority::new("root")), folder: TempDir::new().expect("a folder") };
        std::fs::write(mesh.path("root.pem"), mesh.authority.pem()).expect("writes");
        std::fs::write(mesh.path("token"), "let-me-in\n").expect("writes");
        mesh
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The configuration of `cart`, which listens for its peers on 192.0.2.1:8080.
    pub(crate) fn config(&self, control_plane: SocketAddr) -> Config {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Config {
            workload: config::Workload {
                namespace: "shop".into(),
                service_account: "cart".into(),
                name: "cart-1".into(),
            },
            trust_domain: "mesh.test".parse().expect("valid"),
            control_plane: config::ControlPlane {
                address: control_plane.to_string().parse().expect("valid"),
                server_name: "control.test".into(),
                root_file: self.path("root.pem"),
                token_file: Some(self.path("token")),
            },
            identity: None,
            outbound: config::Outbound {
                proxy: Some(local(0)),
                ports: Vec::new(),
                policy: config::OutboundPolicy::AllowAny,
                demand_timeout: Duration::from_secs(5),
                dead_peer_timeout: Duration::from_secs(30),
            },
            inbound: vec!["192.0.2.1:8080=127.0.0.1:9".parse().expect("valid")],
            capture: None,
            dns: None,
            admin: local(0),
            health: local(0),
            probes: Vec::new(),
            state_dir: Some(self.path("state")),
            workers: 1,
            otlp: None,
            drain: config::Drain { grace_period: Duration::ZERO, lame_duck: Duration::ZERO },
            log: config::Log { level: config::LogLevel::default(), format: config::LogFormat::Text },
        }
    }

    pub(crate) fn sidecar(&self, config: Config) -> (Control, Handle) {
        let workload =
            telemetry::Workload { namespace: "shop".into(), name: "cart".into(), instance: "cart-1".into() };
        let (telemetry, _) = Telemetry::new(workload, None).expect("no collector");
        let (control, handle) = Control::new(Arc::new(config), telemetry).expect("starts");
        (control.with_keep_alive(Duration::from_millis(300), Duration::from_secs(3)), handle)
    }
}

/// Runs `script` beside a sidecar, and stops the sidecar in order.
pub(crate) fn beside(
    control: Control,
    script: impl Future<Output = ()>,
) -> Pin<Box<impl Future<Output = ()>>> {
    Box::pin(async move {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let script = async {
            timeout(PATIENCE * 3, script).await.expect("the script ends in time");
            stop.send(()).expect("the sidecar runs");
        };
        tokio::join!(
            script,
            Box::pin(control.run(Vec::new(), async { stopped.await.expect("the script ends") }))
        );
    })
}

/// A control plane in this process.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    streams: mpsc::Receiver<Script>,
    /// By what each caller of the CA proved itself: `token <token>` or `certificate <serial>`.
    pub(crate) proofs: Arc<Mutex<Vec<String>>>,
    /// How the CA answers: seconds of life, or a refusal.
    pub(crate) policy: Arc<Mutex<Result<i64, Status>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ControlPlane {
    pub(crate) async fn start(mesh: &Mesh) -> Self {
        Self::start_as(mesh, &LeafRequest::workload(CONTROL_PLANE)).await
    }

    /// Serves with this leaf.
    pub(crate) async fn start_as(mesh: &Mesh, leaf: &LeafRequest) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(mesh.authority.control_plane(leaf));
        let (stream_sender, streams) = mpsc::channel(8);
        let (connections, incoming) = mpsc::channel::<std::io::Result<_>>(8);
        let proofs = Arc::new(Mutex::new(Vec::new()));
        let policy = Arc::new(Mutex::new(Ok(3600)));
        let ca = Ca {
            authority: Arc::clone(&mesh.authority),
            proofs: Arc::clone(&proofs),
            policy: Arc::clone(&policy),
        };
        let task = tokio::spawn(async move {
            let accept = async {
                while let Ok((socket, _)) = listener.accept().await {
                    // A client that does not like us goes away.
                    if let Ok(stream) = acceptor.accept(socket).await {
                        let _ = connections.send(Ok(stream)).await;
                    }
                }
            };
            let serve = Server::builder()
                .add_service(AggregatedDiscoveryServiceServer::new(Ads(stream_sender)))
                .add_service(ca)
                .serve_with_incoming(ReceiverStream::new(incoming));
            let _ = tokio::join!(accept, serve);
        });
        Self { address, streams, proofs, policy, task }
    }

    /// The next stream that a sidecar opens.
    pub(crate) async fn stream(&mut self) -> Script {
        timeout(PATIENCE, self.streams.recv()).await.expect("a stream in time").expect("the server runs")
    }

    pub(crate) fn proofs(&self) -> Vec<String> {
        self.proofs.lock().expect("no panic").clone()
    }
}

/// One stream, in the hands of the test.
pub(crate) struct Script {
    /// By what the sidecar proved itself.
    pub(crate) proof: String,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    nonce: u32,
    /// What came while another thing was waited for.
    early: Vec<DeltaDiscoveryRequest>,
}

impl Script {
    async fn next(&mut self) -> DeltaDiscoveryRequest {
        let request = timeout(PATIENCE, self.requests.next()).await.expect("a request in time");
        request.expect("the stream lives").expect("a request")
    }

    /// The next request that asks for something of this type.
    pub(crate) async fn subscribes(&mut self, kind: Kind) -> DeltaDiscoveryRequest {
        let wanted = |request: &DeltaDiscoveryRequest| {
            request.type_url == kind.type_url() && request.response_nonce.is_empty()
        };
        self.find(wanted).await
    }

    /// The answer to the response with this nonce: `None` for an ACK, the reason for a NACK.
    pub(crate) async fn answers(&mut self, nonce: &str) -> Option<String> {
        let request = self.find(|request| request.response_nonce == nonce).await;
        assert!(request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty());
        request.error_detail.map(|status| status.message)
    }

    async fn find(&mut self, wanted: impl Fn(&DeltaDiscoveryRequest) -> bool) -> DeltaDiscoveryRequest {
        if let Some(at) = self.early.iter().position(&wanted) {
            return self.early.remove(at);
        }
        loop {
            let request = self.next().await;
            if wanted(&request) {
                return request;
            }
            self.early.push(request);
        }
    }

    /// All requests so far that nobody waited for.
    pub(crate) fn left(&self) -> &[DeltaDiscoveryRequest] {
        &self.early
    }

    /// Sends resources under their names, with aliases for the first.
    pub(crate) async fn send(&mut self, resources: &[Resource], aliases: &[&str]) -> String {
        let kind = resources.first().expect("a resource").kind();
        let mut wires: Vec<Wire> = resources.iter().map(wire).collect();
        wires[0].aliases = aliases.iter().map(ToString::to_string).collect();
        self.send_raw(kind, wires, &[]).await
    }

    /// Says that names do not exist.
    pub(crate) async fn remove(&mut self, kind: Kind, names: &[&str]) -> String {
        self.send_raw(kind, Vec::new(), names).await
    }

    pub(crate) async fn send_raw(&mut self, kind: Kind, resources: Vec<Wire>, removed: &[&str]) -> String {
        self.nonce += 1;
        let nonce = format!("n{}", self.nonce);
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            nonce: nonce.clone(),
            ..Default::default()
        };
        self.responses.send(Ok(response)).await.expect("the stream lives");
        nonce
    }

    /// Answers everything that [`shop`] has, for as long as the stream lives.
    pub(crate) async fn serve(&mut self, resources: &[(Resource, Vec<&str>)]) {
        while let Some(Ok(request)) = self.requests.next().await {
            for name in request.resource_names_subscribe {
                let found = resources.iter().find(|(resource, aliases)| {
                    resource.type_url() == request.type_url
                        && (resource.name() == name || aliases.contains(&name.as_str()))
                });
                let kind = Kind::from_type_url(&request.type_url).expect("a type");
                match found {
                    Some((resource, aliases)) => self.send(std::slice::from_ref(resource), aliases).await,
                    None => self.remove(kind, &[&name]).await,
                };
            }
        }
    }
}

/// A resource as it travels.
pub(crate) fn wire(resource: &Resource) -> Wire {
    let bytes = resource.encode_bytes();
    Wire {
        name: resource.name().into(),
        version: version(&bytes),
        resource: Some(resource.encode()),
        ..Default::default()
    }
}

struct Ads(mpsc::Sender<Script>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, outgoing) = mpsc::channel(64);
        let proof = proof_of(&request);
        let script = Script { proof, requests: request.into_inner(), responses, nonce: 0, early: Vec::new() };
        self.0.send(script).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

#[derive(Clone)]
struct Ca {
    authority: Arc<Authority>,
    proofs: Arc<Mutex<Vec<String>>>,
    policy: Arc<Mutex<Result<i64, Status>>>,
}

impl Ca {
    fn issue(&self, request: &Request<CertificateRequest>) -> Result<CertificateResponse, Status> {
        let proof = proof_of(request);
        self.proofs.lock().expect("no panic").push(proof);
        let until = self.policy.lock().expect("no panic").clone()?;
        let leaf = self
            .authority
            .sign(&request.get_ref().csr, &LeafRequest { until, ..LeafRequest::workload(CART) });
        Ok(CertificateResponse { cert_chain: vec![pem(&leaf), self.authority.pem()] })
    }
}

/// By what a caller proves itself: `token <header>` or `certificate <serial>`.
fn proof_of<T>(request: &Request<T>) -> String {
    let certificates =
        request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().and_then(|tls| tls.peer_certs());
    match certificates.as_deref().and_then(|certificates| certificates.first()) {
        Some(leaf) => format!("certificate {}", CertificateFacts::read(leaf).expect("X.509").serial),
        None => {
            let token = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            format!("token {}", token.unwrap_or_default())
        }
    }
}

/// PEM of DER.
pub(crate) fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

impl UnaryService<CertificateRequest> for Ca {
    type Response = CertificateResponse;
    type Future = std::future::Ready<Result<Response<CertificateResponse>, Status>>;

    fn call(&mut self, request: Request<CertificateRequest>) -> Self::Future {
        std::future::ready(self.issue(&request).map(Response::new))
    }
}

impl NamedService for Ca {
    const NAME: &'static str = "istio.v1.auth.IstioCertificateService";
}

impl tower::Service<http::Request<Body>> for Ca {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let codec = ProstCodec::<CertificateResponse, CertificateRequest>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}

/// Waits until the snapshot in force meets a condition, and returns it.
pub(crate) async fn snapshot(
    handle: &Handle,
    condition: impl FnMut(&Arc<crate::snapshot::Snapshot>) -> bool,
) -> Arc<crate::snapshot::Snapshot> {
    let mut snapshots = handle.snapshots.clone();
    let found = timeout(PATIENCE, snapshots.wait_for(condition)).await.expect("a snapshot in time");
    Arc::clone(&found.expect("the sidecar runs"))
}
