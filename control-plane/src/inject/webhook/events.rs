//! Events about injection, on the object that makes the pods: `kubectl describe` shows them.
//!
//! In: what became of pods. Out: Events, in the background, and not more of them than the API server likes: a webhook must
//! not be slowed down by what it says.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event as Published, EventType, Recorder, Reporter};
use serde_json::Value;
use tokio::sync::mpsc;

use super::review::Request;

/// How many may wait; those beyond are dropped.
const WAITING: usize = 256;
/// How long to wait between two.
const PAUSE: Duration = Duration::from_millis(50);

/// What became of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Whom it concerns.
    pub about: ObjectReference,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub note: String,
}

/// Takes Events without waiting.
#[derive(Clone, Debug)]
pub struct Sender(mpsc::Sender<Event>);

impl Sender {
    pub(super) fn send(&self, event: Event) {
        if let Err(error) = self.0.try_send(event) {
            tracing::debug!(%error, "an Event is dropped");
        }
    }
}

/// A sender, and what comes out of it.
pub fn channel() -> (Sender, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel(WAITING);
    (Sender(sender), events)
}

/// Publishes Events until all senders are gone.
pub async fn publish(client: Client, mut events: mpsc::Receiver<Event>) {
    let reporter =
        Reporter { controller: "tulle.dev/injector".into(), instance: std::env::var("POD_NAME").ok() };
    let recorder = Recorder::new(client, reporter);
    while let Some(event) = events.recv().await {
        let published = Published {
            type_: if event.reason == "Injected" { EventType::Normal } else { EventType::Warning },
            reason: event.reason.into(),
            note: Some(event.note),
            action: "Inject".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&published, &event.about).await {
            tracing::debug!(%error, "an Event can't be published");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Who makes the pod: its controller, else it itself, which has no UID yet.
pub(super) fn owner(request: &Request, pod: &Value) -> ObjectReference {
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let about = |object: &Value, name: Option<String>| ObjectReference {
        api_version: text(&object["apiVersion"]),
        kind: text(&object["kind"]),
        name,
        namespace: request.namespace.clone(),
        uid: text(&object["uid"]),
        ..ObjectReference::default()
    };
    match owners.into_iter().find(|owner| owner["controller"] == true) {
        Some(owner) => about(owner, text(&owner["name"])),
        None => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            ..about(pod, Some(request.name.clone()).filter(|name| !name.is_empty()))
        },
    }
}
