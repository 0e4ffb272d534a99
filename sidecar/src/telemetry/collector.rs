//! A trace collector: OTLP/gRPC.
//!
//! In: batches of spans in OTLP's form. Out: whether the collector took them, after as many tries as OTLP asks of a
//! client. A connection that broke is made anew with the next try: to the address of the sidecar's own configuration, or
//! to an endpoint of a cluster, over mesh TLS where that has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Uri;
use http::uri::{Authority, Scheme};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::backoff::Backoff;
use crate::balance::{Cluster, Pick};
use crate::grpc::Channel;
use crate::snapshot::Snapshot;
use crate::tls::{Alpn, Material, with_causes};
use crate::upstream;

/// How often a batch is tried again.
const RETRIES: u32 = 3;
/// The first pause between tries, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1600));
/// The port of a URL that names none.
const HTTP: u16 = 80;

/// Where spans go.
pub(super) struct Collector {
    place: Place,
    channel: Option<Channel>,
}

enum Place {
    Url(Authority),
    Cluster(watch::Receiver<Option<Target>>),
}

/// A collector that is a cluster, and what is needed to connect to it.
#[derive(Clone)]
pub(super) struct Target {
    cluster: Arc<Cluster>,
    tls: Option<Arc<Material>>,
}

impl Target {
    /// The cluster of this name; `None` while there is none.
    pub(super) fn of(snapshot: &Snapshot, name: &str) -> Option<Self> {
        let cluster = snapshot.clusters.get(name)?.clone();
        Some(Self { cluster, tls: snapshot.tls.clone() })
    }

    async fn connect(&self) -> Result<Channel, Status> {
        let unavailable = |reason: String| Status::unavailable(format!("{}: {reason}", self.cluster.name));
        let pick = Pick { now: Instant::now(), random: fastrand::u64(..), hash: None, tried: &[] };
        let endpoint = self.cluster.pick(&pick).map_err(|_| unavailable("it has no endpoints".into()))?;
        let alpn = Some(Alpn::Http2);
        let connection = upstream::connect(&self.cluster, endpoint, self.tls.as_ref(), alpn).await;
        let connection = connection.map_err(|error| unavailable(error.to_string()))?;
        let authority = endpoint.address.to_string().parse().expect("an address and a port are an authority");
        let channel = Channel::over(connection.stream, authority, None).await;
        channel.map_err(|error| unavailable(with_causes(&error)))
    }
}

impl Collector {
    /// The collector at `url`.
    ///
    /// # Errors
    /// When it can't be dialled.
    pub(super) fn at(url: &Uri) -> Result<Self, String> {
        match url.authority() {
            Some(authority) if url.scheme() == Some(&Scheme::HTTP) => {
                Ok(Self { place: Place::Url(authority.clone()), channel: None })
            }
            _ => {
                Err(format!("the trace collector {url} can't be used: only http:// is spoken to collectors"))
            }
        }
    }

    /// The collector that is a cluster, as it is by then.
    pub(super) fn of_cluster(target: watch::Receiver<Option<Target>>) -> Self {
        Self { place: Place::Cluster(target), channel: None }
    }

    /// Sends a batch.
    ///
    /// # Errors
    /// When the collector can't be reached or does not take it; the reason.
    pub(super) async fn export(&mut self, batch: ExportTraceServiceRequest) -> Result<(), String> {
        let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
        let mut tries = 0;
        loop {
            let status = match self.try_export(batch.clone()).await {
                Ok(()) => return Ok(()),
                Err(status) => status,
            };
            tries += 1;
            if tries > RETRIES || !is_transient(status.code()) {
                return Err(reason(&status));
            }
            sleep(backoff.next(fastrand::f64())).await;
        }
    }

    async fn try_export(&mut self, batch: ExportTraceServiceRequest) -> Result<(), Status> {
        let channel = match self.channel.take().filter(|channel| !channel.is_closed()) {
            Some(channel) => channel,
            None => self.connect().await?,
        };
        let answer = TraceServiceClient::new(channel.clone()).export(batch).await;
        // A connection on which an answer was waited for in vain is not used again.
        self.channel = Some(channel);
        answer.map(drop)
    }

    async fn connect(&self) -> Result<Channel, Status> {
        match &self.place {
            Place::Url(authority) => connect(authority).await,
            Place::Cluster(target) => {
                let target = target.borrow().clone();
                target.ok_or_else(|| Status::unavailable("its cluster is not known (yet)"))?.connect().await
            }
        }
    }
}

async fn connect(authority: &Authority) -> Result<Channel, Status> {
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(HTTP);
    let unreachable = |error: &dyn std::error::Error| Status::unavailable(with_causes(error));
    let socket = TcpStream::connect((host, port)).await.map_err(|error| unreachable(&error))?;
    socket.set_nodelay(true).map_err(|error| unreachable(&error))?;
    Channel::over(socket, authority.clone(), None).await.map_err(|error| unreachable(&error))
}

/// What the protocol lets a client try again (OTLP specification, "Failures"). Where a collector is out of resources it
/// would have to say for how long, and a queue that fills up meanwhile drops spans as well.
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn reason(status: &Status) -> String {
    let said = match std::error::Error::source(status) {
        Some(cause) => with_causes(cause),
        None => status.message().to_owned(),
    };
    format!("{:?}: {said}", status.code())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
    use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
        TraceService, TraceServiceServer,
    };
    use tokio::net::TcpListener;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;
    use tonic::{Request, Response};

    use super::*;

    /// Answers each request with the next of its answers, and the last one for ever.
    struct Scripted {
        answers: Vec<Code>,
        asked: Arc<AtomicUsize>,
    }

    #[tonic::async_trait]
    impl TraceService for Scripted {
        async fn export(
            &self,
            _: Request<ExportTraceServiceRequest>,
        ) -> Result<Response<ExportTraceServiceResponse>, Status> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            match self.answers[asked.min(self.answers.len() - 1)] {
                Code::Ok => Ok(Response::new(ExportTraceServiceResponse::default())),
                code => Err(Status::new(code, "scripted")),
            }
        }
    }

    async fn exported(answers: &[Code]) -> (Result<(), String>, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let asked = Arc::<AtomicUsize>::default();
        let service = Scripted { answers: answers.to_vec(), asked: asked.clone() };
        let router = Server::builder().add_service(TraceServiceServer::new(service));
        let server = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        let result = Collector::at(&url).unwrap().export(ExportTraceServiceRequest::default()).await;
        server.abort();
        (result, asked.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn what_may_pass_is_tried_again_and_what_may_not_is_not() {
        assert_eq!(exported(&[Code::Ok]).await, (Ok(()), 1));
        assert_eq!(exported(&[Code::Unavailable, Code::Ok]).await, (Ok(()), 2));
        let (result, asked) = exported(&[Code::InvalidArgument]).await;
        assert_eq!((result.unwrap_err().as_str(), asked), ("InvalidArgument: scripted", 1));
        let (result, asked) = exported(&[Code::Unavailable]).await;
        assert_eq!((result.unwrap_err().as_str(), asked), ("Unavailable: scripted", 4));
    }

    #[test]
    fn a_collector_that_can_not_be_spoken_to_is_refused_at_once() {
        let error = Collector::at(&Uri::from_static("https://collector:4317")).err().expect("no TLS");
        assert!(error.contains("https://collector:4317") && error.contains("http://"), "{error}");
    }
}
