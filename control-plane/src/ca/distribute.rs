//! The trust bundle in every namespace, for pods to mount: what a sidecar trusts before it has spoken to anybody.
//!
//! In: the bundle, the cluster's namespaces, and whether this control plane leads. Out: a ConfigMap of one name in each of
//! them. Nothing is written that is already so; one that somebody changed or deleted is put right.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::Bundle;
use crate::kubernetes::{Cluster, FIELD_MANAGER, Pause, with_causes};

/// The ConfigMap's name.
pub const NAME: &str = "tulle-trust-bundle";

/// The key of its one entry: PEM certificates.
pub const KEY: &str = "root.pem";

/// Changes that follow each other within this time are taken together.
const SETTLE: Duration = Duration::from_millis(50);

/// What is known of the cluster.
#[derive(Default)]
struct Known {
    /// Those that are not being deleted; `None` until all are known.
    namespaces: Option<BTreeSet<String>>,
    /// What each namespace's ConfigMap says; `None` until all are known.
    written: Option<BTreeMap<String, Option<String>>>,
    listed_namespaces: BTreeSet<String>,
    listed_written: BTreeMap<String, Option<String>>,
}

/// Keeps the ConfigMaps while `leads` says so, without end.
pub async fn distribute(
    cluster: Cluster,
    mut bundle: watch::Receiver<Bundle>,
    mut leads: watch::Receiver<bool>,
) {
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let mut lost = leads.clone();
        tokio::select! {
            () = keep(&cluster, &mut bundle) => return,
            // Its watches end with it: who does not lead needs none.
            _ = lost.wait_for(|leads| !*leads) => {}
        }
    }
}

async fn keep(cluster: &Cluster, bundle: &mut watch::Receiver<Bundle>) {
    let client = || cluster.client.clone();
    let mut namespaces = std::pin::pin!(watcher(Api::<Namespace>::all(client()), Config::default()));
    let of_name = Config::default().fields(&format!("metadata.name={NAME}"));
    let mut written = std::pin::pin!(watcher(Api::<ConfigMap>::all(client()), of_name));
    let mut known = Known::default();
    let mut pause = Pause::default();
    // When to look again although nothing has changed: after a failure.
    let mut again: Option<Duration> = None;
    loop {
        tokio::select! {
            event = next(&mut namespaces) => known.namespace(event),
            event = next(&mut written) => known.config_map(event),
            changed = bundle.changed() => if changed.is_err() { return },
            () = sleep(again.unwrap_or(SETTLE)), if again.is_some() || known.lacks(&text(bundle)).is_some() => {
                let pem = text(bundle);
                again = None;
                for namespace in known.lacks(&pem).unwrap_or_default() {
                    match write(cluster, &namespace, &pem).await {
                        Ok(()) => known.note(namespace, pem.clone()),
                        Err(error) => {
                            let error = with_causes(&error);
                            tracing::warn!(namespace, error, "can't write the trust bundle; trying again");
                            again = Some(pause.next());
                        }
                    }
                }
                if again.is_none() {
                    pause.reset();
                }
            }
        }
    }
}

fn text(bundle: &watch::Receiver<Bundle>) -> String {
    bundle.borrow().pem()
}

async fn write(cluster: &Cluster, namespace: &str, pem: &str) -> Result<(), kube::Error> {
    let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": { "app.kubernetes.io/part-of": "tulle" } },
        "data": { KEY: pem },
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch(NAME, &params, &Patch::Apply(&object)).await {
        // The namespace is gone, or going: its own watch says so soon.
        Err(kube::Error::Api(status)) if status.code == 404 || status.is_forbidden_by_termination() => Ok(()),
        result => result.map(drop),
    }
}

/// What a refused write says of a namespace that is being deleted.
trait Terminating {
    fn is_forbidden_by_termination(&self) -> bool;
}

impl Terminating for kube::core::Status {
    fn is_forbidden_by_termination(&self) -> bool {
        self.code == 403 && self.message.contains("because it is being terminated")
    }
}

/// The next event; errors are waited out.
async fn next<K>(
    events: &mut (impl Stream<Item = Result<Event<K>, kube::runtime::watcher::Error>> + Unpin),
) -> Event<K> {
    let mut pause = Pause::default();
    loop {
        match events.next().await {
            Some(Ok(event)) => return event,
            Some(Err(error)) => {
                tracing::debug!(
                    error = with_causes(&error),
                    "can't follow what the trust bundle is written to"
                );
                sleep(pause.next()).await;
            }
            None => std::future::pending().await,
        }
    }
}

impl Known {
    /// The namespaces whose ConfigMap does not say `pem`; `None` when there are none, or not all is known.
    fn lacks(&self, pem: &str) -> Option<Vec<String>> {
        let (namespaces, written) = (self.namespaces.as_ref()?, self.written.as_ref()?);
        let right =
            |namespace: &&String| written.get(*namespace).is_some_and(|text| text.as_deref() == Some(pem));
        let lacking: Vec<String> = namespaces.iter().filter(|namespace| !right(namespace)).cloned().collect();
        (!lacking.is_empty()).then_some(lacking)
    }

    /// What was just written; its own event may come later.
    fn note(&mut self, namespace: String, pem: String) {
        self.written.get_or_insert_default().insert(namespace, Some(pem));
    }

    fn namespace(&mut self, event: Event<Namespace>) {
        let alive = |namespace: &Namespace| namespace.metadata.deletion_timestamp.is_none();
        match event {
            Event::Init => self.listed_namespaces.clear(),
            Event::InitApply(namespace) if alive(&namespace) => {
                self.listed_namespaces.insert(namespace.name_any());
            }
            Event::InitApply(_) => {}
            Event::InitDone => self.namespaces = Some(std::mem::take(&mut self.listed_namespaces)),
            Event::Apply(namespace) if alive(&namespace) => {
                self.namespaces.get_or_insert_default().insert(namespace.name_any());
            }
            Event::Apply(namespace) | Event::Delete(namespace) => {
                let name = namespace.name_any();
                self.namespaces.get_or_insert_default().remove(&name);
                self.written.get_or_insert_default().remove(&name);
            }
        }
    }

    fn config_map(&mut self, event: Event<ConfigMap>) {
        let entry = |map: ConfigMap| {
            let text = map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
            (map.namespace().unwrap_or_default(), text)
        };
        match event {
            Event::Init => self.listed_written.clear(),
            Event::InitApply(map) => self.listed_written.extend([entry(map)]),
            Event::InitDone => self.written = Some(std::mem::take(&mut self.listed_written)),
            Event::Apply(map) => self.written.get_or_insert_default().extend([entry(map)]),
            Event::Delete(map) => {
                self.written.get_or_insert_default().remove(&map.namespace().unwrap_or_default());
            }
        }
    }
}
