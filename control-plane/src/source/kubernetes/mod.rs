//! The Kubernetes API server.
//!
//! In: lists and watches of every kind that Tulle reads. Out: [`Loaded`], as from a folder of manifests. Nothing is said
//! before every kind was listed once, or is known to be absent; from then on nothing is lost while the API server does not
//! answer: the last state stays until there is another. A broken object keeps its last good version in force.
//!
//! ```text
//! CustomResourceDefinitions ─► which kinds are there
//! each kind: list, watch ─► read ─► Mirror ─► (changes that follow each other together) ─► Loaded
//! ```

mod crds;
mod lacking;
mod mirror;
pub mod once;
mod prune;
mod reflect;
mod statuses;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::{Kind, KindVisitor, Loaded, Objects};
use crate::health::Health;
use crate::metrics::Metrics;
pub use lacking::{GATEWAY_RELEASE, has_all};
use mirror::Mirror;
pub use statuses::Statuses;

/// Changes that follow each other within this time are taken together.
const SETTLE: Duration = Duration::from_millis(50);
/// While changes never stop, they are taken at least this often.
const SETTLE_AT_MOST: Duration = Duration::from_millis(500);

/// A mirror of the API server's objects. Ends when it is dropped.
pub struct KubernetesSource {
    mirror: Arc<Mirror>,
    _tasks: JoinSet<()>,
}

impl KubernetesSource {
    /// Begins to read. What can't be read is told to `health` and `metrics`.
    pub fn start(client: Client, health: Arc<Health>, metrics: Arc<Metrics>) -> Self {
        let mirror = Arc::new(Mirror::new(health, metrics));
        let mut tasks = JoinSet::new();
        let crds = crds::follow(client.clone(), Arc::clone(&mirror), &mut tasks);
        Objects::visit_kinds(&mut Spawn { client, mirror: &mirror, crds, tasks: &mut tasks });
        Self { mirror, _tasks: tasks }
    }

    /// What the API server has as the status of what was read.
    pub fn statuses(&self) -> Arc<Statuses> {
        Arc::clone(self.mirror.statuses())
    }

    /// Waits until every kind was read once.
    pub async fn load(&self) -> Loaded {
        loop {
            if let Some(loaded) = self.mirror.take() {
                return loaded;
            }
            self.mirror.changed().await;
        }
    }

    /// Keeps `sender` up to date until all its receivers are gone.
    pub async fn watch(self, sender: watch::Sender<Arc<Loaded>>) {
        loop {
            tokio::select! {
                () = sender.closed() => return,
                () = self.mirror.changed() => {}
            }
            self.settle().await;
            if let Some(loaded) = self.mirror.take() {
                sender.send_replace(Arc::new(loaded));
            }
        }
    }

    async fn settle(&self) {
        let end = Instant::now() + SETTLE_AT_MOST;
        loop {
            let quiet = (Instant::now() + SETTLE).min(end);
            tokio::select! {
                () = sleep_until(quiet) => return,
                () = self.mirror.changed() => if Instant::now() >= end { return }
            }
        }
    }
}

/// Starts the task of each kind.
struct Spawn<'a> {
    client: Client,
    mirror: &'a Arc<Mirror>,
    crds: crds::Crds,
    tasks: &'a mut JoinSet<()>,
}

impl KindVisitor for Spawn<'_> {
    fn visit<T: Kind>(&mut self) {
        let reflecting =
            reflect::reflect::<T>(self.client.clone(), Arc::clone(self.mirror), self.crds.clone());
        self.tasks.spawn(reflecting);
    }
}

/// Whether a kind is one that a cluster has only after somebody installed it.
fn is_custom<T: Kind>() -> bool {
    !matches!(T::GROUP, "" | "discovery.k8s.io")
}
