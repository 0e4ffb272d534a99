//! A control plane on a loopback port with a catalog that the test writes, and clients for it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::google::rpc;
use rcgen::{CertificateParams, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status, Streaming};
use tulle_control_plane::ca::service::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use tulle_control_plane::ca::{Authority, tokens};
use tulle_control_plane::grpc::Services;
use tulle_control_plane::metrics::Metrics;
use tulle_control_plane::xds::hub::Hub;
use tulle_control_plane::xds::proxies::Proxies;
use tulle_control_plane::xds::server::Limits;
use tulle_control_plane::xds::{Catalog, Changed, Client, Encoded, Kind};

/// Long enough for a slow machine; nothing waits for it when all is well.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How long nothing must happen before it counts as nothing.
pub const SILENCE: Duration = Duration::from_millis(300);

/// Resources by name, aliases by namespace, owners of inbound listeners.
#[derive(Default)]
pub struct Fake {
    content: RwLock<Content>,
}

#[derive(Default)]
struct Content {
    resources: BTreeMap<(Kind, String), Arc<Encoded>>,
    aliases: BTreeMap<(Kind, String), String>,
    owners: BTreeMap<String, String>,
}

impl Catalog for Fake {
    fn find(&self, kind: Kind, name: &str, client: &Client) -> Option<Arc<Encoded>> {
        let content = self.content.read().unwrap();
        if content.owners.get(name).is_some_and(|owner| owner != client.caller.identity.as_str()) {
            return None;
        }
        let scoped = (kind, format!("{}/{name}", client.caller.namespace()));
        let name = content.aliases.get(&scoped).map_or(name, String::as_str);
        content.resources.get(&(kind, name.to_owned())).cloned()
    }

    fn names(&self, kind: Kind, _: &Client) -> Vec<Arc<str>> {
        let content = self.content.read().unwrap();
        content.resources.keys().filter(|(k, _)| *k == kind).map(|(_, name)| name.as_str().into()).collect()
    }
}

/// A control plane under test.
pub struct ControlPlane {
    pub state: TempDir,
    pub authority: Arc<Authority>,
    pub proxies: Arc<Proxies>,
    pub metrics: Arc<Metrics>,
    pub address: SocketAddr,
    fake: Arc<Fake>,
    hub: Hub,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

impl ControlPlane {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        let state = tempfile::tempdir().unwrap();
        let domain = "cluster.local".parse().unwrap();
        let authority = Arc::new(Authority::open(state.path(), &domain, SystemTime::now()).unwrap());
        let (proxies, metrics, fake) = (Arc::default(), Arc::default(), Arc::<Fake>::default());
        let hub = Hub::new(Arc::clone(&fake) as Arc<dyn Catalog>);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let services = Services {
            authority: Arc::clone(&authority),
            hub: hub.clone(),
            proxies: Arc::clone(&proxies),
            metrics: Arc::clone(&metrics),
            limits,
            hosts: vec!["mesh.example".into()],
        };
        let serving = services.serve(listener, stop.clone());
        let server = tokio::spawn(async move { serving.await.unwrap() });
        Self { state, authority, proxies, metrics, address, fake, hub, stop, server }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.server).await.expect("the server ends").unwrap();
    }

    /// Puts a resource into the catalog and says so.
    pub fn put(&self, kind: Kind, name: &str, content: &str) {
        self.put_all(&[(kind, name, content)]);
    }

    pub fn put_all(&self, resources: &[(Kind, &str, &str)]) {
        self.change(resources, &[]);
    }

    pub fn remove_all(&self, names: &[(Kind, &str)]) {
        self.change(&[], names);
    }

    /// Makes one change of several parts.
    pub fn change(&self, put: &[(Kind, &str, &str)], remove: &[(Kind, &str)]) {
        {
            let mut content = self.fake.content.write().unwrap();
            for (kind, name, bytes) in put {
                let any = Any { type_url: kind.type_url().into(), value: bytes.as_bytes().to_vec() };
                content.resources.insert((*kind, (*name).into()), Arc::new(Encoded::new(name, any)));
            }
            for (kind, name) in remove {
                content.resources.remove(&(*kind, (*name).into()));
            }
        }
        let names = put.iter().map(|(kind, name, _)| (*kind, *name)).chain(remove.iter().copied());
        self.hub.publish(Changed::new(names.map(|(kind, name)| (kind, name.into()))));
    }

    /// Within `namespace`, `alias` means `name`.
    pub fn alias(&self, kind: Kind, namespace: &str, alias: &str, name: &str) {
        let key = (kind, format!("{namespace}/{alias}"));
        self.fake.content.write().unwrap().aliases.insert(key, name.into());
        self.hub.publish(Changed::new([(kind, alias.into()), (kind, name.into())]));
    }

    /// Shows a resource to one identity only.
    pub fn owned_by(&self, name: &str, identity: &str) {
        self.fake.content.write().unwrap().owners.insert(name.into(), identity.into());
    }

    pub fn token(&self, namespace: &str, account: &str) -> String {
        token(self.state.path(), namespace, account)
    }

    pub fn root(&self) -> String {
        std::fs::read_to_string(self.state.path().join("root.pem")).unwrap()
    }

    /// Connects without a certificate.
    pub async fn connect(&self) -> Channel {
        connect(self.address, &self.root(), None).await.unwrap()
    }

    /// A delta stream of a service account that proves itself with a token.
    pub async fn delta(&self, namespace: &str, account: &str) -> DeltaStream {
        DeltaStream::open(self.connect().await, Some(&self.token(namespace, account))).await.unwrap()
    }

    pub async fn sotw(&self, namespace: &str, account: &str) -> SotwStream {
        SotwStream::open(self.connect().await, &self.token(namespace, account)).await
    }
}

pub fn token(state: &Path, namespace: &str, account: &str) -> String {
    tokens::mint(state, namespace, account, Duration::from_secs(600), SystemTime::now()).unwrap()
}

pub async fn connect(
    address: SocketAddr,
    root: &str,
    identity: Option<(&str, &str)>,
) -> Result<Channel, tonic::transport::Error> {
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("localhost");
    if let Some((certificate, key)) = identity {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    Endpoint::from_shared(format!("https://{address}")).unwrap().tls_config(tls)?.connect().await
}

/// A key, and a CSR that asks for these URIs.
pub fn csr(uris: &[&str]) -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = csr_with(&key, uris);
    (key, csr)
}

pub fn csr_with(key: &KeyPair, uris: &[&str]) -> String {
    let mut params = CertificateParams::default();
    let uri = |uri: &&str| rcgen::SanType::URI((*uri).try_into().unwrap());
    params.subject_alt_names = uris.iter().map(uri).collect();
    params.serialize_request(key).unwrap().pem().unwrap()
}

/// Calls the CA.
pub async fn create_certificate(
    channel: Channel,
    token: Option<&str>,
    csr: &str,
    seconds: i64,
) -> Result<Vec<String>, Status> {
    let mut request = Request::new(CertificateRequest { csr: csr.into(), validity_duration: seconds });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", bearer(token));
    }
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|e| Status::unavailable(format!("{e:?}")))?;
    let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
    Ok(grpc.unary(request, path, codec).await?.into_inner().cert_chain)
}

fn bearer(token: &str) -> AsciiMetadataValue {
    format!("Bearer {token}").parse().unwrap()
}

/// A client of the incremental protocol.
pub struct DeltaStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    first: bool,
    pub user_agent: &'static str,
}

impl DeltaStream {
    pub async fn open(channel: Channel, token: Option<&str>) -> Result<Self, Status> {
        let (requests, out) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(out));
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", bearer(token));
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self { requests, responses, first: true, user_agent: "tulle-sidecar" })
    }

    pub async fn send(&mut self, mut request: DeltaDiscoveryRequest) {
        if std::mem::take(&mut self.first) {
            request.node = Some(node(self.user_agent));
        }
        self.requests.send(request).await.unwrap();
    }

    pub async fn subscribe(&mut self, kind: Kind, names: &[&str]) {
        self.send(DeltaDiscoveryRequest { resource_names_subscribe: strings(names), ..delta(kind) }).await;
    }

    pub async fn unsubscribe(&mut self, kind: Kind, names: &[&str]) {
        self.send(DeltaDiscoveryRequest { resource_names_unsubscribe: strings(names), ..delta(kind) }).await;
    }

    /// Subscribes as a client that reconnects and holds `held` (name, version).
    pub async fn resume(&mut self, kind: Kind, names: &[&str], held: &[(&str, &str)]) {
        let versions = held.iter().map(|(name, version)| ((*name).into(), (*version).into()));
        self.send(DeltaDiscoveryRequest {
            resource_names_subscribe: strings(names),
            initial_resource_versions: versions.collect(),
            ..delta(kind)
        })
        .await;
    }

    pub async fn ack(&mut self, response: &DeltaDiscoveryResponse) {
        self.answer(response, None).await;
    }

    pub async fn nack(&mut self, response: &DeltaDiscoveryResponse, reason: &str) {
        self.answer(response, Some(reason)).await;
    }

    async fn answer(&mut self, response: &DeltaDiscoveryResponse, reason: Option<&str>) {
        let status = |reason: &str| rpc::Status { code: 3, message: reason.into(), details: Vec::new() };
        self.send(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: reason.map(status),
            ..Default::default()
        })
        .await;
    }

    pub async fn end(&mut self) -> Option<Result<DeltaDiscoveryResponse, Status>> {
        timeout(PATIENCE, self.responses.message()).await.expect("the stream moves").transpose()
    }

    pub async fn next(&mut self) -> DeltaDiscoveryResponse {
        self.end().await.expect("the stream is open").expect("no error")
    }

    /// The next response, with what is in it: names with aliases, then what is gone.
    pub async fn next_names(&mut self) -> (DeltaDiscoveryResponse, Vec<String>, Vec<String>) {
        let response = self.next().await;
        let names = response.resources.iter().map(|resource| {
            let aliases = &resource.aliases;
            if aliases.is_empty() { resource.name.clone() } else { format!("{} {aliases:?}", resource.name) }
        });
        (response.clone(), names.collect(), response.removed_resources)
    }

    /// Takes whatever comes until nothing does.
    pub async fn drain(&mut self) {
        while let Ok(response) = timeout(SILENCE, self.responses.message()).await {
            response.unwrap().expect("the stream is open");
        }
    }

    /// Nothing comes.
    pub async fn silent(&mut self) {
        if let Ok(got) = timeout(SILENCE, self.responses.message()).await {
            panic!("nothing should come, but {got:?} did");
        }
    }
}

/// A client of the state-of-the-world protocol.
pub struct SotwStream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
    first: bool,
}

impl SotwStream {
    async fn open(channel: Channel, token: &str) -> Self {
        let (requests, out) = mpsc::channel(64);
        let mut request = Request::new(ReceiverStream::new(out));
        request.metadata_mut().insert("authorization", bearer(token));
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.stream_aggregated_resources(request).await.unwrap().into_inner();
        Self { requests, responses, first: true }
    }

    pub async fn request(&mut self, kind: Kind, names: &[&str], nonce: &str, version: &str) {
        let request = DiscoveryRequest {
            node: std::mem::take(&mut self.first).then(|| node("gRPC C-core")),
            type_url: kind.type_url().into(),
            resource_names: strings(names),
            response_nonce: nonce.into(),
            version_info: version.into(),
            ..Default::default()
        };
        self.requests.send(request).await.unwrap();
    }

    pub async fn ack(&mut self, kind: Kind, names: &[&str], response: &DiscoveryResponse) {
        self.request(kind, names, &response.nonce, &response.version_info).await;
    }

    pub async fn next(&mut self) -> (DiscoveryResponse, Vec<String>) {
        let message = timeout(PATIENCE, self.responses.message()).await.expect("a response comes");
        let response = message.unwrap().expect("the stream is open");
        let text = |any: &Any| String::from_utf8(any.value.clone()).unwrap();
        let content = response.resources.iter().map(text).collect();
        (response, content)
    }

    pub async fn silent(&mut self) {
        if let Ok(got) = timeout(SILENCE, self.responses.message()).await {
            panic!("nothing should come, but {got:?} did");
        }
    }
}

fn delta(kind: Kind) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: kind.type_url().into(), ..Default::default() }
}

fn node(user_agent: &str) -> Node {
    Node { id: "test".into(), user_agent_name: user_agent.into(), ..Default::default() }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).into()).collect()
}

/// Waits until something holds.
pub async fn eventually(mut holds: impl FnMut() -> bool, what: &str) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}
