//! Which kinds somebody has installed, and of which release.
//!
//! In: a watch of the metadata of CustomResourceDefinitions; their schemas, which are large, stay at the API server. Out: their
//! names and what their annotations say of their release, from the moment on at which all are known. That a kind is absent is
//! believed only here: an API server that starts, or one of several that lags, may say 404 of a kind that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::mirror::Mirror;
use crate::kinds::SCHEMA;
use crate::kubernetes::Pause;

/// The annotation of the Gateway API's definitions that names their release, `v1.5.0`.
const BUNDLE: &str = "gateway.networking.k8s.io/bundle-version";

/// All definitions by name (`httproutes.gateway.networking.k8s.io`), each with its release where it says one.
pub(super) type Definitions = BTreeMap<String, Option<String>>;

/// All definitions; `None` until they are known.
pub(super) type Crds = watch::Receiver<Option<Arc<Definitions>>>;

/// Follows them until `tasks` ends.
pub(super) fn follow(client: Client, mirror: Arc<Mirror>, tasks: &mut JoinSet<()>) -> Crds {
    let (sender, receiver) = watch::channel(None);
    tasks.spawn(run(client, mirror, sender));
    receiver
}

async fn run(client: Client, mirror: Arc<Mirror>, sender: watch::Sender<Option<Arc<Definitions>>>) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut definitions = Definitions::new();
    let mut listed = Definitions::new();
    let mut pause = Pause::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed = Definitions::new();
                continue;
            }
            Ok(Event::InitApply(definition)) => {
                listed.insert(definition.name_any(), release(&definition));
                continue;
            }
            Ok(Event::InitDone) => definitions = std::mem::take(&mut listed),
            Ok(Event::Apply(definition)) => {
                definitions.insert(definition.name_any(), release(&definition));
            }
            Ok(Event::Delete(definition)) => {
                definitions.remove(&definition.name_any());
            }
            Err(error) => {
                tracing::debug!(%error, "can't follow CustomResourceDefinitions");
                sleep(pause.next()).await;
                continue;
            }
        }
        pause.reset();
        let definitions = Arc::new(definitions.clone());
        mirror.defined(Arc::clone(&definitions));
        // Each event is told, also one that changes no name: a definition that was there may be served only now.
        sender.send_replace(Some(definitions));
    }
}

fn release(definition: &PartialObjectMeta<CustomResourceDefinition>) -> Option<String> {
    let annotations = definition.annotations();
    [SCHEMA, BUNDLE].iter().find_map(|name| annotations.get(*name)).cloned()
}
