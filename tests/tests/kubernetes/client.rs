//! A client of a control plane that does what a test says, with a pod's token.

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use envoy_types::pb::google::rpc;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status, Streaming};
use tulle_control_plane::ca::service::{CREATE_CERTIFICATE, CertificateRequest, CertificateResponse};
use tulle_control_plane::xds::Kind;
use tulle_tests::LIMIT;

use crate::plane::Plane;

/// A connection without a certificate.
pub(crate) async fn connect(plane: &Plane, root: &str) -> Channel {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name("localhost");
    let endpoint = Endpoint::from_shared(format!("https://{}", plane.xds())).expect("a URL");
    endpoint.tls_config(tls).expect("a root").connect().await.expect("the control plane listens")
}

/// Asks for a certificate for an identity: the chain.
pub(crate) async fn create(
    channel: Channel,
    token: Option<&str>,
    identity: &str,
) -> Result<Vec<String>, Status> {
    let key = KeyPair::generate().expect("the system gives random bytes");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity.try_into().expect("ASCII"))];
    let csr = params.serialize_request(&key).expect("sound").pem().expect("PEM");
    let mut request = Request::new(CertificateRequest { csr, validity_duration: 0 });
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
    }
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<CertificateRequest, CertificateResponse>::default();
    let path = http::uri::PathAndQuery::from_static(CREATE_CERTIFICATE);
    Ok(grpc.unary(request, path, codec).await?.into_inner().cert_chain)
}

/// A stream of resources that are acknowledged only when the test says so. Ends when dropped.
pub(crate) struct Stream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
}

impl Stream {
    /// Subscribes to resources of a kind by name, as a sidecar that calls itself `node`.
    pub(crate) async fn open(channel: Channel, token: &str, node: &str, kind: Kind, names: &[&str]) -> Self {
        let (requests, out) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(out));
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("ASCII"));
        let first = DeltaDiscoveryRequest {
            node: Some(Node { id: node.into(), ..Node::default() }),
            type_url: kind.type_url().into(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first).await.expect("it is open");
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(request).await.expect("it is let in").into_inner();
        Self { requests, responses }
    }

    /// What comes next.
    pub(crate) async fn next(&mut self) -> DeltaDiscoveryResponse {
        let next = timeout(LIMIT, self.responses.message()).await.expect("something comes");
        next.expect("no error").expect("it is open")
    }

    /// Rejects a response.
    pub(crate) async fn reject(&self, response: &DeltaDiscoveryResponse, reason: &str) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(rpc::Status { code: 3, message: reason.into(), details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(request).await.expect("it is open");
    }
}
