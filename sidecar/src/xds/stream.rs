//! Keeps one stream to the control plane open.
//!
//! In: the proof of identity that is held, and the requests that are due. Out: what the control plane sends, in its order,
//! and the news that a stream opened or closed. It knows nothing of what the messages mean.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::backoff::Backoff;
use crate::tls::{ControlPlane, ControlPlaneError, Proof, Rotation, with_causes};

/// The largest response that is read, in bytes: 64 MiB.
const MAX_RESPONSE: usize = 64 << 20;

/// What happens on the way to the control plane.
#[derive(Debug)]
pub(crate) enum Event {
    /// A stream begins; requests go here. It is dropped when the stream has closed.
    Opened(mpsc::UnboundedSender<DeltaDiscoveryRequest>),
    /// The control plane sends something.
    Response(Box<DeltaDiscoveryResponse>),
    /// The stream has ended, or could not be opened; the reason.
    Closed(String),
}

/// Keeps a stream open for ever, or until nobody takes its events any more.
pub(crate) async fn keep_open(
    control_plane: &ControlPlane,
    rotation: &Mutex<Rotation>,
    events: mpsc::Sender<Event>,
) {
    let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(30));
    // Where one proof fails, the other is tried next.
    let mut prefer_token = false;
    loop {
        let (responses, reason) = run_once(control_plane, rotation, prefer_token, &events).await;
        let pause = if responses > 0 {
            backoff.reset();
            Duration::from_secs(1).mul_f64(fastrand::f64())
        } else {
            prefer_token = !prefer_token && control_plane.has_token();
            backoff.next(fastrand::f64())
        };
        if responses == 0 {
            tracing::warn!(retry_in_ms = pause.as_millis(), "no configuration stream: {reason}");
        } else {
            tracing::info!(reconnect_in_ms = pause.as_millis(), "the configuration stream closed: {reason}");
        }
        if events.send(Event::Closed(reason)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// One stream's life: how many responses came, and why it ended.
async fn run_once(
    control_plane: &ControlPlane,
    rotation: &Mutex<Rotation>,
    prefer_token: bool,
    events: &mpsc::Sender<Event>,
) -> (u64, String) {
    let mut responses = 0;
    let end = stream(control_plane, rotation, prefer_token, events, &mut responses).await;
    let reason = match end {
        Ok(()) => "the control plane ended it".into(),
        Err(StreamError::Connect(error)) => error.to_string(),
        Err(StreamError::Status(status)) => match std::error::Error::source(&status) {
            Some(cause) => {
                format!("the way to the control plane at {}: {}", control_plane.address(), with_causes(cause))
            }
            None => {
                let (code, message) = (status.code(), status.message());
                format!("the control plane at {} says {code:?}: {message}", control_plane.address())
            }
        },
    };
    (responses, reason)
}

async fn stream(
    control_plane: &ControlPlane,
    rotation: &Mutex<Rotation>,
    prefer_token: bool,
    events: &mpsc::Sender<Event>,
    responses: &mut u64,
) -> Result<(), StreamError> {
    let (bundle, material) = {
        let rotation = rotation.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (rotation.bundle().clone(), rotation.current())
    };
    let proof = match material.as_deref().filter(|material| material.is_valid(SystemTime::now())) {
        Some(material) if !prefer_token => Proof::Certificate(material),
        _ => Proof::Token,
    };
    let session = control_plane.connect(&bundle, proof).await.map_err(StreamError::Connect)?;
    let mut client = AggregatedDiscoveryServiceClient::new(session.channel.clone())
        .max_decoding_message_size(MAX_RESPONSE);
    let (requests, outgoing) = mpsc::unbounded_channel();
    if events.send(Event::Opened(requests)).await.is_err() {
        return Ok(());
    }
    // Resolves only when the server's headers come, which some servers send with the first response; the requests flow
    // meanwhile.
    let call = session.request(UnboundedReceiverStream::new(outgoing));
    let mut incoming =
        client.delta_aggregated_resources(call).await.map_err(StreamError::Status)?.into_inner();
    while let Some(response) = incoming.message().await.map_err(StreamError::Status)? {
        *responses += 1;
        if events.send(Event::Response(Box::new(response))).await.is_err() {
            break;
        }
    }
    Ok(())
}

enum StreamError {
    Connect(ControlPlaneError),
    Status(tonic::Status),
}
