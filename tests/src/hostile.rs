//! A control plane between a sidecar and the true one, which passes everything on and says what else the test wants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use crate::{LIMIT, wait_for};

/// The nonces of what the true control plane did not say start with this.
const FORGED: &str = "forged-";

/// The one between. Ends when dropped.
pub struct HostileControlPlane {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    truth: Channel,
    token: String,
    downstream: Mutex<Option<mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>>>,
    answers: Mutex<Vec<DeltaDiscoveryRequest>>,
    /// By which other names the true control plane knows a resource.
    aliases: Mutex<HashMap<String, Vec<String>>>,
}

impl HostileControlPlane {
    /// Stands before the control plane at `truth`, with a certificate of the mesh's root and a token for the sidecar's
    /// identity.
    pub async fn start(truth: SocketAddr, root: &str, certificate: (&str, &str), token: &str) -> Self {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root));
        let endpoint = Channel::from_shared(format!("https://{truth}")).expect("a URL");
        let shared = Arc::new(Shared {
            truth: endpoint.tls_config(tls).expect("a root").connect_lazy(),
            token: format!("Bearer {}", token.trim()),
            downstream: Mutex::default(),
            answers: Mutex::default(),
            aliases: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let identity = Identity::from_pem(certificate.0, certificate.1);
        let server = Server::builder().tls_config(ServerTlsConfig::new().identity(identity));
        let service = AggregatedDiscoveryServiceServer::new(Between(shared.clone()));
        let serve = server.expect("a certificate").add_service(service);
        let task = tokio::spawn(async move {
            let ended = serve.serve_with_incoming(TcpListenerStream::new(listener)).await;
            ended.expect("the listener stays");
        });
        Self { address, shared, task }
    }

    /// Says `response` to the sidecar, whose resources have the aliases of the true ones, and waits for its answer: the
    /// words of its NACK, or nothing for an ACK.
    pub async fn say(&self, mut response: DeltaDiscoveryResponse) -> Option<String> {
        response.nonce = format!("{FORGED}{}", fastrand::u64(..));
        let nonce = response.nonce.clone();
        for resource in &mut response.resources {
            let aliases = self.shared.aliases.lock().expect("no test thread panics with it");
            resource.aliases = aliases.get(&resource.name).cloned().unwrap_or_default();
        }
        let stream = self.shared.downstream.lock().expect("no test thread panics with it").clone();
        stream.expect("the sidecar is connected").send(Ok(response)).await.expect("it still is");
        let answered = || async {
            let answers = self.shared.answers.lock().expect("no test thread panics with it");
            let found = answers.iter().find(|answer| answer.response_nonce == nonce);
            found.map(|answer| answer.error_detail.clone()).ok_or_else(|| "no answer".to_owned())
        };
        let answer = wait_for(LIMIT, answered).await.unwrap_or_else(|error| panic!("{error}"));
        answer.map(|status| status.message)
    }
}

impl Drop for HostileControlPlane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Between(Arc<Shared>);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Between {
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
        let shared = self.0.clone();
        let (to_sidecar, outgoing) = mpsc::channel(64);
        let (to_truth, questions) = mpsc::channel(64);
        *shared.downstream.lock().expect("no test thread panics with it") = Some(to_sidecar.clone());

        let mut asked = Request::new(ReceiverStream::new(questions));
        let token = shared.token.parse().map_err(|_| Status::internal("the token is no header"))?;
        asked.metadata_mut().insert("authorization", token);
        let mut requests = request.into_inner();
        let truth = shared.truth.clone();
        let heard = shared.clone();
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if request.response_nonce.starts_with(FORGED) {
                    shared.answers.lock().expect("no test thread panics with it").push(request);
                } else if to_truth.send(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let answer = AggregatedDiscoveryServiceClient::new(truth).delta_aggregated_resources(asked).await;
            let mut responses = match answer {
                Ok(response) => response.into_inner(),
                Err(status) => return drop(to_sidecar.send(Err(status)).await),
            };
            while let Some(response) = responses.next().await {
                for resource in response.iter().flat_map(|response| &response.resources) {
                    if !resource.aliases.is_empty() {
                        let mut aliases = heard.aliases.lock().expect("no test thread panics with it");
                        aliases.insert(resource.name.clone(), resource.aliases.clone());
                    }
                }
                if to_sidecar.send(response).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}
