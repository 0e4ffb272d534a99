//! Which kinds somebody has installed.
//!
//! In: a watch of the names of CustomResourceDefinitions; their schemas, which are large, stay at the API server. Out: the
//! set of names, from the moment on at which it is complete. That a kind is absent is believed only here: an API server
//! that starts, or one of several that lags, may say 404 of a kind that is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::kubernetes::Pause;

/// The names of all definitions (`httproutes.gateway.networking.k8s.io`); `None` until they are known.
pub(super) type Crds = watch::Receiver<Option<Arc<BTreeSet<String>>>>;

/// Follows them until `tasks` ends.
pub(super) fn follow(client: Client, tasks: &mut JoinSet<()>) -> Crds {
    let (sender, receiver) = watch::channel(None);
    tasks.spawn(run(client, sender));
    receiver
}

async fn run(client: Client, sender: watch::Sender<Option<Arc<BTreeSet<String>>>>) {
    let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(client);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut names = BTreeSet::new();
    let mut listed = BTreeSet::new();
    let mut pause = Pause::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => {
                listed = BTreeSet::new();
                continue;
            }
            Ok(Event::InitApply(definition)) => {
                listed.insert(definition.name_any());
                continue;
            }
            Ok(Event::InitDone) => names = std::mem::take(&mut listed),
            Ok(Event::Apply(definition)) => {
                names.insert(definition.name_any());
            }
            Ok(Event::Delete(definition)) => {
                names.remove(&definition.name_any());
            }
            Err(error) => {
                tracing::debug!(%error, "can't follow CustomResourceDefinitions");
                sleep(pause.next()).await;
                continue;
            }
        }
        pause.reset();
        // Each event is told, also one that changes no name: a definition that was there may be served only now.
        sender.send_replace(Some(Arc::new(names.clone())));
    }
}
