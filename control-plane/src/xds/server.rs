//! The aggregated discovery service: connects the state machines (`Session`) to gRPC streams.
//!
//! One task per stream. Requests, news and room in the transport are events; a response is only made when there is room,
//! so that whatever changes while a client is slow is sent once, in its last version. A stream ends after a while (with
//! jitter), so that proxies spread over replicas and prove their identity anew.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::rpc;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::delta::Delta;
use super::hub::Hub;
use super::proxies::{About, Connected, Proxies};
use super::sotw::StateOfTheWorld;
use super::{Catalog, Changed, Kind, PUSH_ORDER};
use crate::ca::Authority;
use crate::caller::{Caller, Peer, authenticate};
use crate::metrics::Metrics;

/// How many responses of a stream wait in front of the transport.
const MAX_QUEUED: usize = 2;

/// The longest part of a node's own description that is kept, in bytes.
const MAX_NODE: usize = 256;

/// Limits on streams.
#[derive(Clone, Debug)]
pub struct Limits {
    /// A stream ends after this long and up to a fifth more.
    pub max_age: Duration,
    /// The most streams at one time; who comes after is told `RESOURCE_EXHAUSTED`.
    pub max_streams: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(30 * 60), max_streams: 20_000 }
    }
}

/// The protocol of one stream, as a state machine without I/O.
pub(super) trait Session: Send + Sized + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;

    /// What the protocol is called.
    const PROTOCOL: &'static str;

    /// Starts with the first request, which is then handed to [`Session::request`].
    fn open(caller: Caller, first: &Self::Request) -> Result<Self, Status>;

    /// The node of a request.
    fn node(request: &Self::Request) -> Option<&Node>;

    /// Takes a request. An error ends the stream.
    fn request(&mut self, request: Self::Request, catalog: &dyn Catalog) -> Result<Option<Ack>, Status>;

    /// Takes news.
    fn changed(&mut self, changed: &Changed);

    /// News were lost: anything may have changed.
    fn all_changed(&mut self, catalog: &dyn Catalog);

    /// Whether [`Session::next`] may have something to send.
    fn waiting(&self) -> bool;

    /// Makes the next response, if there is something to say.
    fn next(&mut self, nonce: &str, catalog: &dyn Catalog) -> Option<(Self::Response, Batch)>;

    /// How many names of a kind are subscribed to, and whether all are.
    fn subscribed(&self, kind: Kind) -> (usize, bool);
}

/// What a client said of a response.
#[derive(Debug)]
pub(super) struct Ack {
    pub(super) kind: Kind,
    pub(super) nonce: String,
    /// The reason, when it was rejected.
    pub(super) rejected: Option<String>,
}

impl Ack {
    pub(super) fn new(kind: Kind, nonce: &str, error: Option<rpc::Status>) -> Option<Self> {
        let rejected = error.map(|error| error.message);
        (!nonce.is_empty()).then(|| Self { kind, nonce: nonce.into(), rejected })
    }
}

/// What a response was about.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) kind: Kind,
    /// Of all that the client then holds.
    pub(super) version: String,
    /// The resources in it.
    pub(super) names: Vec<Arc<str>>,
    /// The names that were said to be gone.
    pub(super) removed: Vec<Arc<str>>,
}

/// The service.
pub struct DiscoveryService {
    hub: Hub,
    authority: Arc<Authority>,
    proxies: Arc<Proxies>,
    metrics: Arc<Metrics>,
    limits: Limits,
    streams: Arc<Semaphore>,
    stop: CancellationToken,
}

impl DiscoveryService {
    /// Serves what `hub` has to callers that `authority` knows, until `stop`.
    pub fn new(
        hub: Hub,
        authority: Arc<Authority>,
        proxies: Arc<Proxies>,
        metrics: Arc<Metrics>,
        limits: Limits,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(limits.max_streams));
        Self { hub, authority, proxies, metrics, limits, streams, stop }
    }

    /// As a gRPC service.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
    }

    async fn start<S: Session>(
        &self,
        request: Request<Streaming<S::Request>>,
    ) -> Result<Response<Responses<S::Response>>, Status> {
        let now = SystemTime::now();
        let caller = authenticate(request.metadata(), request.extensions(), &self.authority, now).await?;
        let Ok(permit) = Arc::clone(&self.streams).try_acquire_owned() else {
            return Err(Status::resource_exhausted(
                "this control plane serves all the streams it can; try again",
            ));
        };
        let address = request.extensions().get::<Peer>().map(|peer| peer.address);
        let (responses, out) = mpsc::channel(MAX_QUEUED);
        let max_age = self.limits.max_age.mul_f64(1.0 + fastrand::f64() / 5.0);
        let stream = StreamTask {
            hub: self.hub.clone(),
            proxies: Arc::clone(&self.proxies),
            metrics: Arc::clone(&self.metrics),
            responses,
            caller,
            address,
            max_age,
            stop: self.stop.clone(),
            _permit: permit,
        };
        tokio::spawn(stream.run::<S>(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(out))))
    }
}

type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for DiscoveryService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.start::<StateOfTheWorld>(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.start::<Delta>(request).await
    }
}

/// One stream.
struct StreamTask<R> {
    hub: Hub,
    proxies: Arc<Proxies>,
    metrics: Arc<Metrics>,
    responses: mpsc::Sender<Result<R, Status>>,
    caller: Caller,
    address: Option<std::net::SocketAddr>,
    max_age: Duration,
    stop: CancellationToken,
    _permit: OwnedSemaphorePermit,
}

impl<R: Send + 'static> StreamTask<R> {
    async fn run<S: Session<Response = R>>(self, requests: Streaming<S::Request>) {
        let responses = self.responses.clone();
        if let Err(status) = self.serve::<S>(requests).await {
            // An error means that the client is gone.
            let _ = responses.send(Err(status)).await;
        }
    }

    async fn serve<S: Session<Response = R>>(
        self,
        mut requests: Streaming<S::Request>,
    ) -> Result<(), Status> {
        // Before the first look at the catalog, or a change between the two would be missed. What was published until
        // then is seen with that first look.
        let mut seen = self.hub.published();
        let mut notes = self.hub.subscribe();
        let end = tokio::time::sleep(self.max_age);
        tokio::pin!(end);
        let first = tokio::select! {
            first = requests.next() => first.transpose()?,
            () = &mut end => return Ok(()),
            () = self.stop.cancelled() => return Err(stopping()),
        };
        let Some(first) = first else { return Ok(()) };
        let mut session = S::open(self.caller.clone(), &first)?;
        let record = self.proxies.connect(about::<S>(&first, &self));
        let _counted = self.metrics.stream(S::PROTOCOL);
        self.take(&mut session, &record, first)?;
        let mut nonce: u64 = 0;
        let mut oldest: Option<Instant> = None;
        loop {
            if !session.waiting() {
                record.sent_all(seen);
            }
            tokio::select! {
                request = requests.next() => match request.transpose()? {
                    Some(request) => self.take(&mut session, &record, request)?,
                    None => return Ok(()),
                },
                note = notes.recv() => match note {
                    Ok(changed) => {
                        oldest.get_or_insert(changed.at);
                        seen = changed.sequence;
                        session.changed(&changed);
                    }
                    Err(RecvError::Lagged(_)) => session.all_changed(self.hub.catalog()),
                    Err(RecvError::Closed) => return Err(stopping()),
                },
                permit = self.responses.reserve(), if session.waiting() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    // All news first, so that a response is never newer than the order in which it stands.
                    loop {
                        match notes.try_recv() {
                            Ok(changed) => {
                                oldest.get_or_insert(changed.at);
                                seen = changed.sequence;
                                session.changed(&changed);
                            }
                            Err(TryRecvError::Lagged(_)) => session.all_changed(self.hub.catalog()),
                            Err(_) => break,
                        }
                    }
                    let name = format!("{:x}", nonce + 1);
                    if let Some((response, batch)) = session.next(&name, self.hub.catalog()) {
                        nonce += 1;
                        self.metrics.pushed(batch.kind, batch.names.len(), batch.removed.len());
                        record.sent(&name, batch);
                        permit.send(Ok(response));
                        if let Some(at) = oldest {
                            self.metrics.push_latency(at.elapsed());
                        }
                    }
                    if !session.waiting() {
                        oldest = None;
                    }
                }
                () = &mut end => return Ok(()),
                () = self.stop.cancelled() => return Err(stopping()),
            }
        }
    }

    fn take<S: Session>(
        &self,
        session: &mut S,
        record: &Connected,
        request: S::Request,
    ) -> Result<(), Status> {
        if let Some(ack) = session.request(request, self.hub.catalog())? {
            if let Some(reason) = &ack.rejected {
                self.metrics.nack(ack.kind);
                tracing::warn!(identity = %self.caller.identity, kind = ?ack.kind, reason, "a proxy rejected resources");
            }
            record.answered(ack);
        }
        for kind in PUSH_ORDER {
            record.subscribed(kind, session.subscribed(kind));
        }
        Ok(())
    }
}

fn about<S: Session>(first: &S::Request, task: &StreamTask<S::Response>) -> About {
    let short = |text: &str| text.chars().take(MAX_NODE).collect::<String>();
    let node = S::node(first);
    About {
        node: node.map(|node| short(&node.id)).unwrap_or_default(),
        user_agent: node.map(|node| short(&node.user_agent_name)).unwrap_or_default(),
        version: match node.and_then(|node| node.user_agent_version_type.as_ref()) {
            Some(UserAgentVersionType::UserAgentVersion(version)) => short(version),
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
                .version
                .as_ref()
                .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
                .unwrap_or_default(),
            None => String::new(),
        },
        caller: task.caller.clone(),
        address: task.address,
        protocol: S::PROTOCOL,
        since: SystemTime::now(),
    }
}

fn stopping() -> Status {
    Status::unavailable("the control plane is shutting down; connect again")
}
