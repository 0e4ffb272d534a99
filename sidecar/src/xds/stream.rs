//! Keeps one stream to the control plane open.
//!
//! In: the proof of identity that is held, and the requests that are due. Out: what the control plane sends, in its order,
//! and the news that a stream opened or closed. It knows nothing of what the messages mean.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::backoff::Backoff;
use crate::tls::{ControlPlane, ControlPlaneError, Material, Proof, Rotation, with_causes};

/// The largest response that is read, in bytes: 64 MiB.
const MAX_RESPONSE: usize = 64 << 20;

/// How many requests may wait until the control plane reads them. Each response is answered, some with a few KiB.
const MAX_UNREAD: usize = 1024;

/// How long the first stream waits for a certificate to stand on.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(1);

/// What happens on the way to the control plane.
#[derive(Debug)]
pub(crate) enum Event {
    /// A stream begins; requests go here. It is dropped when the stream has closed.
    Opened(mpsc::Sender<DeltaDiscoveryRequest>),
    /// The control plane sends something.
    Response(Box<DeltaDiscoveryResponse>),
    /// The stream has ended, or could not be opened; the reason.
    Closed(String),
}

/// The longest pause before another try. Until the stream stands again, pods that were replaced meanwhile are missed; a try is
/// a connection, and a new stream brings only what has changed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Keeps a stream open for ever, or until nobody takes its events any more. A stream stands on one proof of identity, so a
/// new leaf makes a new stream: the control plane sees by which certificate, of which root, each sidecar lives.
pub(crate) async fn keep_open(
    control_plane: &ControlPlane,
    rotation: &Mutex<Rotation>,
    events: mpsc::Sender<Event>,
) {
    let mut material = lock(rotation).watch();
    let mut backoff = Backoff::new(Duration::from_millis(250), LONGEST_PAUSE);
    // Where one proof fails, the other is tried next.
    let mut prefer_token = false;
    // Most often a certificate is a moment away; a control plane without an authority is not waited for long.
    let _ = timeout(FIRST_CERTIFICATE, material.wait_for(Option::is_some)).await;
    loop {
        let held = material.borrow_and_update().clone();
        let mut responses = 0;
        let open = stream(control_plane, rotation, held.as_deref(), prefer_token, &events, &mut responses);
        let end = tokio::select! {
            end = open => end,
            () = renewed(&mut material, held.as_deref()) => Err(StreamError::Renewed),
        };
        let reason = describe(control_plane, &end);
        let pause = if responses > 0 {
            backoff.reset();
            let pause = Duration::from_secs(1).mul_f64(fastrand::f64());
            if matches!(end, Err(StreamError::Renewed)) { Duration::ZERO } else { pause }
        } else {
            prefer_token = !prefer_token && control_plane.has_token();
            backoff.next(fastrand::f64())
        };
        match responses {
            0 => tracing::warn!(retry_in_ms = pause.as_millis(), "no configuration stream: {reason}"),
            _ => tracing::info!(
                reconnect_in_ms = pause.as_millis(),
                "the configuration stream closed: {reason}"
            ),
        }
        if events.send(Event::Closed(reason)).await.is_err() {
            return;
        }
        sleep(pause).await;
    }
}

/// Waits for another leaf than that of `held`.
async fn renewed(material: &mut watch::Receiver<Option<Arc<Material>>>, held: Option<&Material>) {
    let serial = |material: &Material| material.leaf.serial.clone();
    let held = held.map(serial);
    if material.wait_for(|now| now.as_deref().map(serial) != held).await.is_err() {
        std::future::pending().await
    }
}

/// One stream's life. `responses` counts what came, also when it is cut short.
async fn stream(
    control_plane: &ControlPlane,
    rotation: &Mutex<Rotation>,
    held: Option<&Material>,
    prefer_token: bool,
    events: &mpsc::Sender<Event>,
    responses: &mut u64,
) -> Result<(), StreamError> {
    let proof = match held.filter(|material| material.is_valid(SystemTime::now())) {
        Some(material) if !prefer_token => Proof::Certificate(material),
        _ => Proof::Token,
    };
    let bundle = lock(rotation).bundle().clone();
    let session = control_plane.connect(&bundle, proof).await.map_err(StreamError::Connect)?;
    let mut client = AggregatedDiscoveryServiceClient::new(session.channel.clone())
        .max_decoding_message_size(MAX_RESPONSE);
    let (requests, outgoing) = mpsc::channel(MAX_UNREAD);
    let given_up = requests.downgrade();
    if events.send(Event::Opened(requests)).await.is_err() {
        return Ok(());
    }
    // Resolves only when the server's headers come, which some servers send with the first response; the requests flow
    // meanwhile.
    let call = session.request(ReceiverStream::new(outgoing));
    let mut incoming =
        client.delta_aggregated_resources(call).await.map_err(StreamError::Status)?.into_inner();
    while let Some(response) = incoming.message().await.map_err(StreamError::Status)? {
        *responses += 1;
        if given_up.upgrade().is_none() {
            return Err(StreamError::Unread);
        }
        if events.send(Event::Response(Box::new(response))).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn describe(control_plane: &ControlPlane, end: &Result<(), StreamError>) -> String {
    let address = control_plane.address();
    match end {
        Ok(()) => format!("the control plane at {address} ended it"),
        Err(StreamError::Renewed) => "a new one stands on the new certificate".into(),
        Err(StreamError::Unread) => {
            format!("the control plane at {address} does not read what it is told")
        }
        Err(StreamError::Connect(error)) => error.to_string(),
        Err(StreamError::Status(status)) => match std::error::Error::source(status) {
            Some(cause) => format!("the way to the control plane at {address}: {}", with_causes(cause)),
            None => format!("the control plane at {address} says {:?}: {}", status.code(), status.message()),
        },
    }
}

/// A panic while the lock was held leaves at worst the leaf of before in force.
fn lock(rotation: &Mutex<Rotation>) -> MutexGuard<'_, Rotation> {
    rotation.lock().unwrap_or_else(PoisonError::into_inner)
}

enum StreamError {
    Renewed,
    Unread,
    Connect(ControlPlaneError),
    Status(tonic::Status),
}
