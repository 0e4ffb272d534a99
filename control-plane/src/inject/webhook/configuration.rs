//! Tells the API server whom to trust: keeps `caBundle` in the configurations of the webhooks.
//!
//! In: the bundle as it changes, the two configurations as they change. Out: patches, where another bundle than ours is in
//! one of them. Nothing else in them is touched.

use std::fmt::Debug;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

/// The name of both configurations.
pub const NAME: &str = "tulle";

/// How long to wait before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Keeps the bundle in both configurations, for as long as it is polled.
pub async fn keep(client: Client, bundle: watch::Receiver<String>) {
    tokio::join!(
        follow(Api::<MutatingWebhookConfiguration>::all(client.clone()), bundle.clone()),
        follow(Api::<ValidatingWebhookConfiguration>::all(client), bundle),
    );
}

async fn follow<T>(api: Api<T>, mut bundle: watch::Receiver<String>)
where
    T: Resource + Clone + Debug + DeserializeOwned + Serialize + Send + 'static,
{
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    loop {
        let changes = watcher(api.clone(), only.clone()).default_backoff().applied_objects();
        let mut changes = std::pin::pin!(changes);
        let mut newest: Option<T> = None;
        loop {
            let changed = tokio::select! {
                change = changes.try_next() => match change {
                    Ok(Some(object)) => {
                        newest = Some(object);
                        true
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, name = NAME, "a webhook's configuration can't be watched");
                        false
                    }
                },
                changed = bundle.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    true
                }
            };
            let trusted = bundle.borrow_and_update().clone();
            if let Some(object) = newest.as_ref().filter(|_| changed && !trusted.is_empty())
                && let Err(error) = write(&api, object, &trusted).await
            {
                tracing::warn!(%error, name = NAME, "a webhook's configuration can't be patched");
                tokio::time::sleep(RETRY).await;
                break;
            }
        }
    }
}

async fn write<T>(api: &Api<T>, object: &T, bundle: &str) -> Result<(), String>
where
    T: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    let object = serde_json::to_value(object).map_err(|error| error.to_string())?;
    let operations = operations(&object, &STANDARD.encode(bundle));
    if operations.is_empty() {
        return Ok(());
    }
    let patch =
        Patch::Json::<()>(serde_json::from_value(operations.into()).map_err(|error| error.to_string())?);
    let patched = api.patch(NAME, &PatchParams::default(), &patch).await;
    patched
        .map(|_| tracing::info!(name = NAME, "the API server trusts the webhooks' certificates now"))
        .map_err(|error| error.to_string())
}

/// One for each webhook that has another bundle, with a test of its name: entries may move in between.
fn operations(object: &Value, bundle: &str) -> Vec<Value> {
    let webhooks = object["webhooks"].as_array().into_iter().flatten().enumerate();
    webhooks
        .filter(|(_, webhook)| webhook["clientConfig"]["caBundle"] != bundle)
        .flat_map(|(index, webhook)| {
            [
                json!({"op": "test", "path": format!("/webhooks/{index}/name"), "value": webhook["name"]}),
                json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}),
            ]
        })
        .collect()
}
