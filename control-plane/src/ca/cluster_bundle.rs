//! The trust bundle as an object of the whole cluster: a ClusterTrustBundle, which a projected volume puts into pods without a
//! ConfigMap in their namespace.
//!
//! In: the bundle, and whether this control plane leads. Out: one object, where the API server serves the kind (1.33, behind a
//! gate; GA in 1.37) and this control plane may write it; elsewhere nothing, and it is looked for again now and then. It never
//! takes the place of the ConfigMaps of [`distribute`]: who mounts which is injection's choice.

use std::time::Duration;

use futures_util::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Bundle, distribute};
use crate::kubernetes::{FIELD_MANAGER, Pause, with_causes};

/// The object's name. Without a signer in it, no right to vouch for one is needed to write it.
pub const NAME: &str = distribute::NAME;

const GROUP: &str = "certificates.k8s.io";
const KIND: &str = "ClusterTrustBundle";

/// The versions of one form, the best first.
const VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];

/// How often the kind is looked for where it was not served, or might not be written.
const LOOK: Duration = Duration::from_secs(60);

/// The least time between two writes, whoever else writes too.
const PAUSE: Duration = Duration::from_secs(1);

/// Keeps the object while `leads` says so, without end.
pub async fn publish(client: Client, mut bundle: watch::Receiver<Bundle>, mut leads: watch::Receiver<bool>) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let mut lost = leads.clone();
        tokio::select! {
            () = keep(&client, &mut bundle) => return,
            _ = lost.wait_for(|leads| !*leads) => {}
        }
    }
}

/// Whether pods can mount it.
///
/// # Errors
/// When the API server doesn't tell.
pub async fn exists(client: &Client) -> Result<bool, kube::Error> {
    let Some(resource) = served(client).await? else { return Ok(false) };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    Ok(api.get_opt(NAME).await?.is_some())
}

/// Keeps the object until the control plane ends.
async fn keep(client: &Client, bundle: &mut watch::Receiver<Bundle>) {
    let mut told = None;
    loop {
        let kept = match served(client).await {
            Ok(Some(resource)) => follow(client, &resource, bundle).await,
            Ok(None) => Err("the API server does not serve it".into()),
            Err(error) => Err(with_causes(&error)),
        };
        match kept {
            Ok(()) => return,
            Err(reason) if told.as_ref() != Some(&reason) => {
                tracing::info!(
                    reason,
                    "no ClusterTrustBundle is published; ConfigMaps have the trust bundle"
                );
                told = Some(reason);
            }
            Err(_) => {}
        }
        sleep(LOOK).await;
    }
}

/// The version that the API server serves, if any.
async fn served(client: &Client) -> Result<Option<ApiResource>, kube::Error> {
    for version in VERSIONS {
        match client.list_api_group_resources(&format!("{GROUP}/{version}")).await {
            Ok(list) if list.resources.iter().any(|resource| resource.kind == KIND) => {
                return Ok(Some(ApiResource::from_gvk(&GroupVersionKind::gvk(GROUP, version, KIND))));
            }
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Writes the object whenever it does not say what the bundle says.
///
/// # Errors
/// When this control plane may not, or the kind is no longer served: in words.
async fn follow(
    client: &Client,
    resource: &ApiResource,
    bundle: &mut watch::Receiver<Bundle>,
) -> Result<(), String> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut states = std::pin::pin!(watch_object(api.clone(), NAME));
    // What it says: nothing, where there is none. `None` until that is known.
    let mut there: Option<String> = None;
    let mut pause = Pause::default();
    loop {
        tokio::select! {
            state = states.next() => match state {
                Some(Ok(object)) => {
                    pause.reset();
                    let text = object.map(|object| object.data["spec"]["trustBundle"].clone());
                    there = Some(text.unwrap_or_default().as_str().unwrap_or_default().to_owned());
                }
                // It may not be read, or is not served any more.
                Some(Err(error)) if is_refusal(&error) => return Err(with_causes(&error)),
                Some(Err(_)) => sleep(pause.next()).await,
                None => return Ok(()),
            },
            changed = bundle.changed() => if changed.is_err() { return Ok(()) },
        }
        let pem = bundle.borrow_and_update().pem();
        if there.as_ref().is_none_or(|there| *there == pem) {
            continue;
        }
        let object = json!({
            "apiVersion": resource.api_version,
            "kind": KIND,
            "metadata": { "name": NAME, "labels": { "app.kubernetes.io/part-of": "tulle" } },
            "spec": { "trustBundle": pem },
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match api.patch(NAME, &params, &Patch::Apply(&object)).await {
            Ok(_) => there = Some(pem),
            Err(error) => return Err(with_causes(&error)),
        }
        sleep(PAUSE).await;
    }
}

fn is_refusal(error: &watcher::Error) -> bool {
    use watcher::Error as E;
    let refusal = |code: u16| (400..500).contains(&code) && ![408, 410, 429].contains(&code);
    match error {
        E::InitialListFailed(kube::Error::Api(status)) | E::WatchStartFailed(kube::Error::Api(status)) => {
            refusal(status.code)
        }
        E::WatchError(status) => refusal(status.code),
        _ => false,
    }
}
