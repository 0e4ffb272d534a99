//! Replaces pods that were faster than the CNI plugin.
//!
//! In: the injected pods of all namespaces, and the plugin's own, which tell the nodes on which it is installed. Out:
//! deletions of pods whose `tulle-validate` has found that nothing redirects their traffic, each with an Event. Their
//! owners make new ones, which get their rules. A pod that nobody would make again is never deleted, nor one on a node
//! without plugin, which would not fare better; and no more than `limit` allows.
//!
//! It runs once in a cluster, and no node has a token that could delete pods. Two at once do no harm: a deletion is of one
//! pod at one version.

mod limit;
mod stranded;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Event as Told, EventType, Recorder, Reporter};
use kube::runtime::watcher::{self, Event, watcher};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use limit::Limit;
use stranded::{Stranded, is_ready};

use crate::inject::{COMPONENT_LABEL, TLS_LABEL, TLS_MESH};
use crate::kubernetes::Cluster;

/// The component that the plugin's own pods are.
const PLUGIN: &str = "cni";

/// How often what waits is looked at again.
const PERIOD: Duration = Duration::from_secs(2);

/// Repairs until `stop`. The cluster's namespace is that of the plugin's own pods. An API server that does not answer for a
/// while is asked again.
pub async fn repair(cluster: Cluster, stop: CancellationToken) {
    let Cluster { client, namespace } = cluster;
    let mut repairs = Repairs::new(client.clone(), &namespace);
    let seen = watcher(
        Api::<Pod>::all(client),
        watcher::Config::default().labels(&format!("{TLS_LABEL}={TLS_MESH}")),
    );
    let seen = seen.default_backoff();
    pin_mut!(seen);
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tracing::info!(namespace, "repairing");
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = seen.next() => match event {
                Some(Ok(event)) => repairs.see(event),
                Some(Err(error)) => tracing::warn!(%error, "can't watch pods"),
                None => return,
            },
            _ = ticks.tick() => repairs.work().await,
        }
    }
}

/// What waits to be repaired.
struct Repairs {
    pods: Client,
    plugins: Api<Pod>,
    recorder: Recorder,
    limit: Limit,
    waiting: BTreeMap<String, Stranded>,
    /// The pods that were there when a relist began: those that it does not name are gone.
    relisted: BTreeSet<String>,
}

impl Repairs {
    fn new(client: Client, namespace: &str) -> Self {
        let reporter = Reporter { controller: "tulle.dev/cni-repair".into(), instance: None };
        Self {
            plugins: Api::namespaced(client.clone(), namespace),
            recorder: Recorder::new(client.clone(), reporter),
            pods: client,
            limit: Limit::new(Instant::now()),
            waiting: BTreeMap::new(),
            relisted: BTreeSet::new(),
        }
    }

    fn see(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.relisted.clear(),
            Event::InitApply(pod) => {
                self.relisted.extend(pod.metadata.uid.clone());
                self.look_at(&pod);
            }
            Event::InitDone => self.waiting.retain(|uid, _| self.relisted.contains(uid)),
            Event::Apply(pod) => self.look_at(&pod),
            Event::Delete(pod) => {
                self.waiting.remove(pod.metadata.uid.as_deref().unwrap_or_default());
            }
        }
    }

    fn look_at(&mut self, pod: &Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        match Stranded::of(pod) {
            Some(mut stranded) => {
                stranded.told = self.waiting.get(&uid).is_some_and(|before| before.told);
                self.waiting.insert(uid, stranded);
            }
            None => drop(self.waiting.remove(&uid)),
        }
    }

    async fn work(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let nodes = match self
            .plugins
            .list(&ListParams::default().labels(&format!("{COMPONENT_LABEL}={PLUGIN}")))
            .await
        {
            Ok(plugins) => plugins.items.iter().filter(|pod| is_ready(pod)).filter_map(node).collect(),
            Err(error) => {
                tracing::warn!(%error, "can't list the plugin's pods");
                return;
            }
        };
        let uids: Vec<String> = self.waiting.keys().cloned().collect();
        for uid in uids {
            self.work_on(&uid, &nodes).await;
        }
    }

    async fn work_on(&mut self, uid: &str, nodes: &BTreeSet<String>) {
        let Some(stranded) = self.waiting.get_mut(uid) else { return };
        if !nodes.contains(&stranded.node) {
            return;
        }
        let Some(owner) = stranded.owner.clone() else {
            if !stranded.told {
                stranded.told = true;
                let note = "nothing redirects its traffic, because it was made before the CNI plugin was there; no \
                            controller would make it again, so delete it and make it again";
                tell(&self.recorder, stranded, EventType::Warning, "RedirectionMissing", note).await;
            }
            return;
        };
        let now = Instant::now();
        if !self.limit.allows(&owner, &stranded.node, now) {
            if self.limit.is_in_vain(&owner, &stranded.node, now) && !stranded.told {
                stranded.told = true;
                let note = "nothing redirects its traffic, nor that of the pods before it, though the CNI plugin is ready \
                            on their node: the container runtime may not hand pods' annotations to plugins (the \
                            capability io.kubernetes.cri.pod-annotations), or run no chained plugin";
                tell(&self.recorder, stranded, EventType::Warning, "RedirectionMissing", note).await;
            }
            return;
        }
        let stranded = stranded.clone();
        let exactly = Preconditions { uid: Some(uid.to_owned()), resource_version: stranded.version.clone() };
        let pods: Api<Pod> = Api::namespaced(self.pods.clone(), &stranded.namespace);
        match pods.delete(&stranded.name, &DeleteParams::default().preconditions(exactly)).await {
            Ok(_) => {
                self.waiting.remove(uid);
                tracing::info!(pod = stranded.name, namespace = stranded.namespace, "deleted");
                let note = "deleted, because nothing redirected its traffic: it was made before the CNI plugin was \
                            there; the one that follows it gets its rules";
                tell(&self.recorder, &stranded, EventType::Normal, "Repaired", note).await;
            }
            // It has changed or gone: the watch says how.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                self.waiting.remove(uid);
            }
            Err(error) => {
                tracing::warn!(%error, pod = stranded.name, namespace = stranded.namespace, "can't delete");
            }
        }
    }
}

async fn tell(recorder: &Recorder, stranded: &Stranded, type_: EventType, reason: &str, note: &str) {
    let event = Told {
        type_,
        reason: reason.into(),
        note: Some(note.into()),
        action: "Repair".into(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &stranded.reference).await {
        tracing::warn!(%error, pod = stranded.name, "can't publish an event");
    }
}

fn node(pod: &Pod) -> Option<String> {
    pod.spec.as_ref()?.node_name.clone()
}
