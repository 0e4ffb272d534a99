//! The trace collector: OTLP/gRPC.
//!
//! In: batches of spans in OTLP's form. Out: whether the collector took them, after as many tries as OTLP asks of a
//! client. A connection that broke is made anew with the next try.

use std::time::Duration;

use http::Uri;
use http::uri::{Authority, Scheme};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use tokio::net::TcpStream;
use tokio::time::sleep;
use tonic::{Code, Status};

use crate::backoff::Backoff;
use crate::grpc::Channel;
use crate::tls::with_causes;

/// How often a batch is tried again.
const RETRIES: u32 = 3;
/// The first pause between tries, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(1600));
/// The port of a URL that names none.
const HTTP: u16 = 80;

/// Where spans go.
pub(super) struct Collector {
    authority: Authority,
    channel: Option<Channel>,
}

impl Collector {
    /// The collector at `url`.
    ///
    /// # Errors
    /// When it can't be dialled.
    pub(super) fn new(url: &Uri) -> Result<Self, String> {
        match url.authority() {
            Some(authority) if url.scheme() == Some(&Scheme::HTTP) => {
                Ok(Self { authority: authority.clone(), channel: None })
            }
            _ => {
                Err(format!("the trace collector {url} can't be used: only http:// is spoken to collectors"))
            }
        }
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
        let host = self.authority.host().trim_matches(['[', ']']);
        let port = self.authority.port_u16().unwrap_or(HTTP);
        let unreachable = |error: &dyn std::error::Error| Status::unavailable(with_causes(error));
        let socket = TcpStream::connect((host, port)).await.map_err(|error| unreachable(&error))?;
        socket.set_nodelay(true).map_err(|error| unreachable(&error))?;
        Channel::over(socket, self.authority.clone(), None).await.map_err(|error| unreachable(&error))
    }
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
