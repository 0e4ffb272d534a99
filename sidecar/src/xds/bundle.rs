//! Follows the trust bundle alone, for those that take no other configuration.
//!
//! In: the secret that the control plane sends, and sends again when a root comes or goes. Out: the bundle in force in a
//! [`Rotation`].

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use tulle_mesh::model::SecretValue;
use tulle_mesh::xds::Kind;

use super::cache::{Cache, Names};
use super::control::node;
use super::stream::{Event, keep_open};
use super::subscribe::{Subscriptions, kind_of};
use crate::config::Workload;
use crate::tls::{ControlPlane, Rotation, TrustBundle};

/// The name of the trust bundle, as Istio has it.
pub(super) const ROOT_CA: &str = "ROOTCA";

/// What has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Not asked yet.
    Nothing,
    /// The stream ended before it came; why.
    Closed(String),
    /// It is in force.
    Bundle,
}

/// Follows the trust bundle for ever.
pub(crate) async fn follow_bundle(
    control_plane: &ControlPlane,
    workload: &Workload,
    rotation: &Mutex<Rotation>,
    heard: &watch::Sender<Heard>,
) {
    let (sender, mut events) = mpsc::channel(1);
    let node = Node { user_agent_name: "tulle-certs".into(), ..node(workload) };
    let mut wanted = Names::default();
    wanted[Kind::Secret] = BTreeSet::from([ROOT_CA.into()]);
    let mut subscriptions = Subscriptions::new(node);
    let mut cache = Cache::default();
    let mut requests = None;
    let follow = async {
        while let Some(event) = events.recv().await {
            // A stream that has just closed says so by its event, so a request that it does not take is no loss.
            match event {
                Event::Opened(sender) => {
                    subscriptions.reset();
                    cache.reconnected();
                    for request in subscriptions.requests(&wanted, |kind| cache.versions(kind)) {
                        drop(sender.try_send(request));
                    }
                    requests = Some(sender);
                }
                Event::Response(response) => {
                    let (type_url, nonce) = (response.type_url.clone(), response.nonce.clone());
                    let outcome = kind_of(&response)
                        .and_then(|kind| cache.apply(kind, *response, &wanted[kind]))
                        .and_then(|()| trust(&cache, rotation));
                    if outcome.is_ok() && cache.secret(ROOT_CA).is_some() {
                        heard.send_replace(Heard::Bundle);
                    }
                    let answer = subscriptions.answer(&type_url, nonce, outcome);
                    // Who reads none of many answers loses the stream.
                    let kept = requests.take();
                    requests = kept.filter(|requests| !is_full(requests.try_send(answer)));
                }
                Event::Closed(reason) => {
                    requests = None;
                    heard.send_if_modified(|heard| {
                        let first = *heard == Heard::Nothing;
                        if first {
                            *heard = Heard::Closed(reason);
                        }
                        first
                    });
                }
            }
        }
    };
    tokio::join!(keep_open(control_plane, rotation, sender), follow);
}

/// Whether a request was not taken because too many wait to be read.
pub(super) fn is_full(sent: Result<(), TrySendError<DeltaDiscoveryRequest>>) -> bool {
    matches!(sent, Err(TrySendError::Full(_)))
}

/// Puts the trust bundle in force that has arrived.
pub(super) fn trust(cache: &Cache, rotation: &Mutex<Rotation>) -> Result<(), Vec<String>> {
    let Some(secret) = cache.secret(ROOT_CA) else { return Ok(()) };
    let bundle = match &secret.value {
        SecretValue::TrustBundle(pem) => TrustBundle::from_pem(pem.as_bytes()),
        SecretValue::Certificate { .. } => Err("a certificate was sent in place of a trust bundle".into()),
    };
    let mut rotation = rotation.lock().unwrap_or_else(PoisonError::into_inner);
    let trusted = bundle.and_then(|bundle| rotation.trust(bundle).map_err(|error| error.to_string()));
    trusted.map_err(|problem| vec![format!("secret {ROOT_CA}: {problem}")])
}
